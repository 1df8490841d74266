"""What several commands take: their common options, and a model on a device."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

    from .. import MobileSam


CHECKPOINT_NAMES = "A path, hf://owner/repo[/file][@revision] or 'bundled'."

ImageFile = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGE", exists=True, dir_okay=False, help="A file that Pillow can open."
    ),
]
Points = Annotated[
    list[str] | None,
    typer.Option(
        "--point",
        metavar="X,Y[,LABEL]",
        help="A click, in pixels of the upright image: on the object (LABEL 1, the default) or "
        "on the background (0). Can be given several times.",
    ),
]
Detector = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What finds words: a zero-shot detector of transformers, on the Hub or in a folder.",
        show_default="IDEA-Research/grounding-dino-tiny",
    ),
]
BoxThreshold = Annotated[
    float,
    typer.Option(min=0, max=1, help="Drop objects that words find at a lower score; OWLv2: 0.1."),
]
MinArea = Annotated[
    int,
    typer.Option(metavar="PIXELS", min=0, help="Follow no object that is found and smaller."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="C",
        help=f"The weights. {CHECKPOINT_NAMES}",
        show_default="the Hub's nielsr/mobilesam",
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="D", help="Where to compute: cpu, cuda, cuda:1, mps; or auto."),
]
PointsPerSide = Annotated[int, typer.Option(min=1, help="As of mobile-sam everything.")]
Threshold = Annotated[float, typer.Option(min=0, max=1, help="As of mobile-sam everything.")]
Out = Annotated[
    Path,
    typer.Option(
        metavar="DIR", file_okay=False, help="Where to write: a folder an image, named after it."
    ),
]


def _limit_pixels(context: typer.Context, max_pixels: int | None) -> int | None:
    """Sets Pillow's limit until the command ends, which may be called in a longer process."""
    if max_pixels is not None:
        from ..images import limit_pixels

        context.with_resource(limit_pixels(max_pixels))
    return max_pixels


MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=_limit_pixels,
        show_default="178,956,970",
        help="Refuse images of more pixels, which could be made to fill the memory.",
    ),
]


Cutout = Annotated[
    bool,
    typer.Option(
        "--cutout",
        help="Also write cutout_000.png and so on: the object alone, cropped, around it "
        "transparent.",
    ),
]
Labelme = Annotated[
    bool,
    typer.Option(
        "--labelme",
        help="Also write labelme.json, polygons that labelme opens and edits; holes are filled.",
    ),
]


class ModelType(str, Enum):
    """The types in SAM's registry."""

    vit_t = "vit_t"
    vit_b = "vit_b"
    vit_l = "vit_l"
    vit_h = "vit_h"


def load_model(checkpoint: str | None, device: str) -> "MobileSam":
    """Builds MobileSAM on a device.

    Raises:
        ValueError: there is no such device.
        FileNotFoundError, IsADirectoryError, PermissionError, ConnectionError, ValueError: no such
            checkpoint, see :func:`~mobile_sam_plugin.build_sam_vit_t`.
    """
    from .. import DEFAULT_CHECKPOINT, build_sam_vit_t

    target = find_device(device)
    return build_sam_vit_t(checkpoint or DEFAULT_CHECKPOINT).to(target)


def load_sam(model_type: ModelType, checkpoint: str | None, option: str, device: str) -> "Sam":
    """Builds a SAM of a type on a device.

    Raises:
        typer.BadParameter: no checkpoint is named, and the type has no default one.
        ValueError: the checkpoint is of another type.
        Others: as :func:`load_model`.
    """
    if model_type == ModelType.vit_t:
        return load_model(checkpoint, device)
    if checkpoint is None:
        raise typer.BadParameter(f"name the checkpoint of a {model_type.value}", param_hint=option)

    from .. import sam_model_registry
    from ..checkpoint import locate_checkpoint, read_checkpoint

    target = find_device(device)
    tensors = read_checkpoint(locate_checkpoint(checkpoint))
    model = sam_model_registry[model_type.value]()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {checkpoint!r} is no {model_type.value}: {str(error)[:200]}"
        ) from error
    return model.to(target)


def find_device(name: str) -> "torch.device":
    """A device by its name, or the best there is for ``"auto"``.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (AssertionError, ImportError, RuntimeError) as error:  # whatever the backend raises
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"the device {name!r} cannot be used here: {reason}") from error
    return device
