"""The parts of MobileSAM that are computed: nothing here knows of files or networks."""

from .image_encoder import TinyVitImageEncoder
from .mask_decoder import MaskDecoder, accelerate
from .prompt_encoder import PromptEncoder

__all__ = ["MaskDecoder", "PromptEncoder", "TinyVitImageEncoder", "accelerate"]
