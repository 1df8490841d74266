"""Models known by what they compute, for everything that goes on where it was stopped."""

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """A checksum of all parameters and buffers of a module, those that no file holds included."""
    digest = hashlib.sha256()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
