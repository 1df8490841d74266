"""The neural networks of MobileSAM; no module here reads files or uses a network."""

from .image_encoder import TinyVitImageEncoder
from .mask_decoder import MaskDecoder, use_fast_decoder
from .prompt_encoder import PromptEncoder

__all__ = ["MaskDecoder", "PromptEncoder", "TinyVitImageEncoder", "use_fast_decoder"]
