"""What the parts of a model take: the columns of the paper's Tables 1, 3 and 6."""

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
    """What a part of a model takes for one image and one click.

    Attributes:
        parameters: how many numbers it has learned.
        gmac: multiplications with addition, in 1e9, of its matrix products and convolutions.
        milliseconds: the median of a few runs where the model is now.
    """

    parameters: int
    gmac: float
    milliseconds: float


def count_costs(sam: Sam, runs: int = 3) -> dict[str, Cost]:
    """Counts and times the three parts of a model, for one image and one click.

    Operations are those of the modules as they are defined, whatever shortcuts a part takes; time
    is that of the part as it runs. The image has the side ``image_encoder.img_size``.

    Args:
        sam: any SAM, where it is to be timed.
        runs: of which the median time is taken.

    Returns:
        ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``.
    """
    side = sam.image_encoder.img_size
    weight = sam.prompt_encoder.no_mask_embed.weight
    image = torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)
    point = torch.full((1, 1, 2), side / 2, device=weight.device)
    label = torch.ones(1, 1, device=weight.device)

    def encode_prompt() -> tuple[Tensor, Tensor, Tensor]:
        sparse, dense = sam.prompt_encoder(points=(point, label), boxes=None, masks=None)
        return sam.prompt_encoder.get_dense_pe(), sparse, dense

    with eval_mode(sam), torch.no_grad(), _frozen(sam):
        (embedding, _), prompt = unpack(sam.image_encoder(image)), encode_prompt()
        parts: dict[str, Callable[[], Any]] = {
            "image_encoder": lambda: sam.image_encoder(image),
            "prompt_encoder": encode_prompt,
            "mask_decoder": lambda: sam.mask_decoder(embedding, *prompt, multimask_output=True),
        }
        return {
            name: Cost(
                parameters=sum(p.numel() for p in sam.get_submodule(name).parameters()),
                gmac=_count_gmac(sam.get_submodule(name), run),
                milliseconds=statistics.median(_time(run) for _ in range(runs)) * 1e3,
            )
            for name, run in parts.items()
        }


@contextmanager
def _frozen(sam: Sam) -> Iterator[None]:
    """PyTorch's counter stumbles on parameters that want gradients where none are recorded."""
    trained = [parameter for parameter in sam.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad = False
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True


def _count_gmac(part: nn.Module, run: Callable[[], Any]) -> float:
    # A part with hooks inside runs as its modules are defined.
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
    """Seconds, until the result can be read."""
    start = time.perf_counter()
    result = run()
    for tensor in result if isinstance(result, tuple) else (result,):
        tensor.flatten()[0].item()
    return time.perf_counter() - start
