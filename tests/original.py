"""The original MobileSAM, as its authors' package ``mobile_sam`` computes it."""

import os
import warnings

import timm
import torch
from torch import nn

with warnings.catch_warnings():
    # It imports from where timm kept things once, and registers its TinyViT over timm's, which
    # other tests want back.
    warnings.simplefilter("ignore")
    import mobile_sam

    for size in ("5m_224", "11m_224", "21m_224", "21m_384", "21m_512"):
        timm.models.register_model(getattr(timm.models.tiny_vit, f"tiny_vit_{size}"))


def build_original(checkpoint: str | os.PathLike[str]) -> nn.Module:
    """The original model with the weights of a file, in eval mode.

    Args:
        checkpoint: what ``mobile-sam convert --for upstream`` writes, as ``.pt``.
    """
    sam: nn.Module = mobile_sam.sam_model_registry["vit_t"]()
    sam.load_state_dict(torch.load(checkpoint, weights_only=True))
    # The original's attention looks its biases up in eval() and would keep those of before.
    return sam.eval()
