"""The builder that SAM's registry calls for ``vit_t``."""

import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from .checkpoint import DEFAULT_CHECKPOINT, load_checkpoint, locate_checkpoint, read_backbone
from .sam_hq import return_pairs, unpacks_pairs

if TYPE_CHECKING:
    from .mobile_sam import MobileSam


def build_sam_vit_t(
    checkpoint: str | os.PathLike[str] | None = DEFAULT_CHECKPOINT,
) -> "MobileSam":
    """Builds MobileSAM, as segment_anything's ``build_sam_vit_b`` builds SAM.

    Args:
        checkpoint: weights: a path (.pt, .pth, .bin, .safetensors), ``"hf://owner/repo"``,
            ``"hf://owner/repo/file@revision"``, ``"bundled"``, or None for untrained ones. The
            default is the Hub's ``nielsr/mobilesam``, or the authors' upload where that is gone or
            gated; ``MOBILE_SAM_CHECKPOINT`` in the environment overrides the default, and nothing
            else.

    Returns:
        The model on the CPU, in float32 and eval mode. Its image encoder is TinyViT, or the
        backbone that a student's checkpoint names.

    Raises:
        FileNotFoundError: if there is no such path, or no such repository, file or revision on the
            Hub.
        IsADirectoryError: if the path is a folder.
        PermissionError: if the repository is gated.
        ConnectionError: if the Hub cannot be reached, and the file is not in its cache.
        UserError: if the file does not hold a complete and finite MobileSAM, or names a backbone
            that the installed timm does not have.

    Examples:
        >>> predictor = SamPredictor(build_sam_vit_t("mobile_sam.pt"))
    """
    # Late: this module is imported while segment_anything is, to register this function.
    from .mobile_sam import MobileSam

    if checkpoint is None:
        return MobileSam.untrained()
    path = locate_checkpoint(checkpoint)
    sam = MobileSam.untrained(read_backbone(path))
    load_checkpoint(sam, path)
    return sam


def builder_for(module: ModuleType) -> "Callable[..., MobileSam]":
    """Returns the builder for the registry of a copy of segment_anything.

    That is :func:`build_sam_vit_t`. If only one of the copy and the installed segment_anything is
    for SAM-HQ, it is a builder whose models suit the predictors of the copy.
    """
    import segment_anything

    pairs = unpacks_pairs(module)
    if pairs == unpacks_pairs(segment_anything):
        return build_sam_vit_t

    def build_for_copy(
        checkpoint: str | os.PathLike[str] | None = DEFAULT_CHECKPOINT,
    ) -> "MobileSam":
        sam = build_sam_vit_t(checkpoint)
        return_pairs(sam.image_encoder, pairs)
        return sam

    return build_for_copy
