"""Low-rank adapters in an image encoder (LoRA, arXiv 2106.09685), by peft."""

import copy
from typing import Any

from torch import nn

from ..errors import MissingExtra, UserError
from ..mobile_sam import MobileSam


def add_lora(encoder: nn.Module, rank: int) -> None:
    """Adds trainable adapters to the attention and the MLPs of an image encoder, in place.

    These are all of its linear layers. Each becomes one of peft's, which computes W x + 2 B A x,
    with the layer's own W and trainable A and B; B is 0 at the start. All other parameters of the
    encoder are frozen.

    Args:
        encoder: of a SAM.
        rank: rows of A.

    Raises:
        MissingExtra: if peft is not installed.
        UserError: if the encoder has no linear layer, as a convolutional network.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtra.of("peft", "finetune") from error
    names = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise UserError("lora needs an image encoder with attention or MLPs, and this has neither")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    inject_adapter_in_model(config, encoder)


def merge_lora(model: MobileSam) -> MobileSam:
    """Returns a copy of a model in which the adapters are part of the weights again.

    It has the modules and tensors of a model that never had adapters, and gives the same masks but
    for rounding.
    """
    from peft.tuners.lora import LoraLayer

    merged = copy.deepcopy(model)
    encoder: Any = merged.image_encoder
    adapted = [
        (name, module) for name, module in encoder.named_modules() if isinstance(module, LoraLayer)
    ]
    for name, module in adapted:
        layer: Any = module
        layer.merge(safe_merge=True)
        encoder.set_submodule(name, layer.get_base_layer())
    encoder.requires_grad_(True)
    return merged
