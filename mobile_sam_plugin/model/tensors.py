"""Whether tensors still hold the values that something was computed from.

Values are compared and not identities. PyTorch counts most writes to a tensor (``_version``), but
not those of fused optimizers, of ``parameter.data``, of NumPy or to inference tensors.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Snapshot:
    """A copy of the weights of some modules, to find out whether they still have these values."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        tensors = list(_weights(modules))
        self._kinds = [_kind(tensor) for tensor in tensors]
        with torch.inference_mode(False), torch.no_grad():
            self._copies = [tensor.clone() for tensor in _comparable(tensors)]

    def is_of(self, modules: Iterable[nn.Module]) -> bool:
        """Whether the parameters and buffers of modules equal the copy."""
        tensors = list(_weights(modules))
        with torch.no_grad():
            return [_kind(tensor) for tensor in tensors] == self._kinds and all_equal(
                self._copies, _comparable(tensors)
            )


def gradients_wanted(modules: Iterable[nn.Module], inputs: Iterable[Tensor]) -> bool:
    """Whether autograd would record what modules compute of inputs.

    Weights may also be plain attributes, as ``nn.DataParallel`` has them in its replicas.
    """
    return torch.is_grad_enabled() and (
        any(tensor.requires_grad for tensor in inputs)
        or any(
            isinstance(value, Tensor) and value.requires_grad
            for module in modules
            for value in (*module._parameters.values(), *vars(module).values())
        )
    )


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Computes in the dtypes of the tensors, whatever a caller's autocast is."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def free_bytes(device: torch.device) -> int:
    """Returns how much memory an accelerator has left; 4 GB if it does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return 4 << 30


def _weights(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    yield tensor


def all_equal(kept: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether as many tensors are equal in shape, dtype, device and every value."""
    return all(_equal(*pair) for pair in zip(kept, given, strict=True))


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _comparable(tensors: list[Tensor]) -> list[Tensor]:
    """The same values in one tensor if each comparison waits for a device, else as they are."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return tensors
    return [torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])]


def _equal(kept: Tensor, given: Tensor) -> bool:
    if _kind(kept) != _kind(given):
        return False
    if kept.stride() == given.stride():
        kept, given = _as_words(kept), _as_words(given)
    return torch.equal(kept, given)


def _as_words(tensor: Tensor) -> Tensor:
    """The memory of a tensor without gaps as 64-bit integers, which compare twice as fast."""
    in_memory = tensor
    if not tensor.is_contiguous():
        in_memory = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    if in_memory.is_contiguous() and tensor.nbytes % 8 == 0:
        return in_memory.view(-1).view(torch.int64)
    return tensor
