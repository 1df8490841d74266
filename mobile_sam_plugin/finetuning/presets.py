"""Sizes of a fine-tuning step that fit into a memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What a step is made of, so that it fits.

    Attributes:
        name: of the memory.
        img_size: side of the square input, in pixels.
        batch_size: images of an optimizer step.
        gradient_accumulation_steps: parts in which they are computed.
        mixed_precision: ``"no"`` for float32, or ``"fp16"`` or ``"bf16"``.
        gigabytes: of memory that a step needs with 8 prompts per image and one corrective click.
        source: of that number, ``"measured"`` or ``"computed"``.
    """

    name: str
    img_size: int
    batch_size: int
    gradient_accumulation_steps: int
    mixed_precision: str
    gigabytes: float
    source: str


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("cpu", 448, 4, 2, "no", 3.9, "measured"),
        # What autograd keeps of an image, 0.63 GB at 512 pixels and 2.34 GB at 1024, which is
        # measured on a CPU; 0.2 GB of weights, gradients, moments and averages; 0.5 GB of CUDA.
        Preset("4gb", 512, 8, 2, "bf16", 3.2, "computed"),
        Preset("8gb", 1024, 8, 4, "bf16", 5.4, "computed"),
        Preset("24gb", 1024, 8, 1, "bf16", 19.4, "computed"),
    )
}


def choose_preset(gigabytes: float | None) -> Preset:
    """Returns the largest preset that fits.

    Args:
        gigabytes: of memory of the GPU; None if there is none.
    """
    if gigabytes is None:
        return PRESETS["cpu"]
    fitting = [
        preset
        for preset in PRESETS.values()
        if preset.name != "cpu" and preset.gigabytes <= gigabytes
    ]
    return fitting[-1] if fitting else PRESETS["4gb"]
