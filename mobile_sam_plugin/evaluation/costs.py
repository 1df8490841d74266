"""The costs of a model's parts: the columns of the paper's Tables 1, 3 and 6."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..predictor import eval_mode
from ..sam_hq import unpack


@dataclass(frozen=True)
class Cost:
    """The cost of a part of a model, for one image and one point.

    Attributes:
        parameters: number of learned values.
        gmac: multiply-accumulates, in 1e9, of its matrix products and convolutions.
        milliseconds: median of a few runs, on the device of the model.
    """

    parameters: int
    gmac: float
    milliseconds: float


def count_costs(model: Sam, runs: int = 3) -> dict[str, Cost]:
    """Counts and times the three parts of a model, for one image and one point.

    Operations are counted as the modules define them, and times measured with the shortcuts that a
    part may take. The image has the side ``image_encoder.img_size``.

    Args:
        model: any SAM, on the device to be timed.
        runs: number of runs, whose median time is taken.

    Returns:
        The costs of ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``.
    """
    side = model.image_encoder.img_size
    weight = model.prompt_encoder.no_mask_embed.weight
    image = torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)
    point = torch.full((1, 1, 2), side / 2, device=weight.device)
    label = torch.ones(1, 1, device=weight.device)

    def encode_prompt() -> tuple[Tensor, Tensor, Tensor]:
        sparse, dense = model.prompt_encoder(points=(point, label), boxes=None, masks=None)
        return model.prompt_encoder.get_dense_pe(), sparse, dense

    with eval_mode(model), torch.no_grad(), _frozen(model):
        (embedding, _), prompt = unpack(model.image_encoder(image)), encode_prompt()
        parts: dict[str, Callable[[], Any]] = {
            "image_encoder": lambda: model.image_encoder(image),
            "prompt_encoder": encode_prompt,
            "mask_decoder": lambda: model.mask_decoder(embedding, *prompt, multimask_output=True),
        }
        return {
            name: Cost(
                parameters=sum(p.numel() for p in model.get_submodule(name).parameters()),
                gmac=_count_gmac(model.get_submodule(name), run),
                milliseconds=statistics.median(_time(run) for _ in range(runs)) * 1e3,
            )
            for name, run in parts.items()
        }


@contextmanager
def _frozen(model: Sam) -> Iterator[None]:
    """Freezes the parameters: PyTorch's counter fails if they need gradients and none are taken."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad = False
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True


def _count_gmac(part: nn.Module, run: Callable[[], Any]) -> float:
    # With hooks inside, a part runs as its modules define it, without shortcuts.
    hooks = [
        module.register_forward_hook(lambda *_: None)
        for module in part.modules()
        if module is not part
    ]
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() / 2e9


def _time(run: Callable[[], Any]) -> float:
    """Returns the seconds until the result can be read."""
    start = time.perf_counter()
    result = run()
    for tensor in result if isinstance(result, tuple) else (result,):
        tensor.flatten()[0].item()
    return time.perf_counter() - start
