"""The parts of MobileSAM that are computed: nothing here knows of files or networks."""

from .image_encoder import TinyVitImageEncoder
from .mask_decoder import MaskDecoder, use_fast_decoder
from .prompt_encoder import PromptEncoder

__all__ = ["MaskDecoder", "PromptEncoder", "TinyVitImageEncoder", "use_fast_decoder"]
