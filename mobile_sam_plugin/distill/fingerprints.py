"""Weights known by their values, for everything that goes on where it was stopped."""

import hashlib
from collections.abc import Mapping

import torch
from segment_anything.modeling import Sam
from torch import Tensor


def fingerprint(sam: Sam) -> str:
    """A checksum of all that a model has learned, and of how it normalises pixels."""
    of_pixels = {"pixel_mean": sam.pixel_mean, "pixel_std": sam.pixel_std}  # which no file holds
    return _checksum(sam.state_dict() | of_pixels)


def fingerprint_decoder(sam: Sam) -> str:
    """A checksum of the prompt encoder and mask decoder of a model."""
    parts = ("prompt_encoder.", "mask_decoder.")
    tensors = sam.state_dict().items()
    return _checksum({name: tensor for name, tensor in tensors if name.startswith(parts)})


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
