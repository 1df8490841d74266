"""The parts of MobileSAM that are computed: nothing here knows of files or networks."""

from .image_encoder import TinyVitImageEncoder
from .prompt_encoder import PromptEncoder

__all__ = ["PromptEncoder", "TinyVitImageEncoder"]
