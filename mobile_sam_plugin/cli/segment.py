"""``mobile-sam segment``: one image, one prompt."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .inputs import Checkpoint, Device, Out, load_model, open_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def segment(
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", exists=True, dir_okay=False, help="A file that Pillow can open."
        ),
    ],
    out: Out,
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y[,LABEL]",
            help="A click, in pixels of the upright image: on the object (LABEL 1, the default) or "
            "on the background (0). Can be given several times.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="A box around the object, in pixels."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="LOGITS.npy",
            exists=True,
            dir_okay=False,
            help="A mask to refine: the mask_NNN_logits.npy of an earlier run on this image.",
        ),
    ] = None,
    multimask: Annotated[
        bool,
        typer.Option(
            "--multimask/--best",
            help="Write three candidates, or one mask: for a single click the candidate of the "
            "highest predicted IoU, else the one that SAM makes for unambiguous prompts.",
        ),
    ] = False,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Segment the object that clicks, a box or a mask point out.

    Writes into DIR/<name of the image>/: a PNG a mask, overlay.png with masks and prompts,
    masks.json with COCO RLE and the fields of SAM's scripts/amg.py, and the logits for --mask.
    """
    if not point and not box and mask is None:
        raise typer.BadParameter("give at least one of --point, --box and --mask")
    if box and len(box) > 1:
        raise typer.BadParameter("give one box at most", param_hint="--box")
    clicks = [_parse_point(text) for text in point or []]
    corners = _parse_box(box[0]) if box else None

    import numpy as np

    from .. import SamPredictor
    from ..results import make_record, write_results

    coords = np.array([click[:2] for click in clicks]).reshape(-1, 2)
    labels = np.array([click[2] for click in clicks], dtype=int)
    mask_input = None if mask is None else _read_logits(mask)
    pixels = open_image(image)
    predictor = SamPredictor(load_model(checkpoint, device))
    predictor.set_image(pixels)
    ambiguous = len(clicks) == 1 and corners is None and mask is None
    logits, scores, low_res_logits = predictor.predict(
        point_coords=coords if clicks else None,
        point_labels=labels if clicks else None,
        box=corners,
        mask_input=mask_input,
        multimask_output=multimask or ambiguous,
        return_logits=True,
    )
    kept = range(len(scores)) if multimask else [int(scores.argmax())]
    records = [
        make_record(logits[i], scores[i], coords, predictor.model.mask_threshold) for i in kept
    ]
    folder = out / image.stem
    paths = write_results(
        folder,
        pixels,
        records,
        low_res_logits=[low_res_logits[i, None] for i in kept],
        point_coords=coords,
        point_labels=labels,
        box=corners,
    )
    for path, record in zip(paths, records, strict=True):
        typer.echo(f"{path}  area {record['area']}  predicted IoU {record['predicted_iou']:.3f}")
    typer.echo(folder / "overlay.png")
    typer.echo(folder / "masks.json")


def _parse_point(text: str) -> tuple[float, float, int]:
    x, y, label = (*_parse_numbers(text, "--point", "X,Y or X,Y,LABEL", (2, 3)), 1.0)[:3]
    if label not in (0, 1):
        raise typer.BadParameter(
            f"the label of {text!r} is neither 1 (object) nor 0 (background)", param_hint="--point"
        )
    return x, y, int(label)


def _parse_box(text: str) -> list[float]:
    return _parse_numbers(text, "--box", "X0,Y0,X1,Y1", (4,))


def _parse_numbers(text: str, option: str, form: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(map(math.isfinite, numbers)):
        raise typer.BadParameter(f"{text!r} is not {form}, in numbers", param_hint=option)
    return numbers


def _read_logits(path: Path) -> "NDArray[np.float32]":
    from numpy.lib.format import read_array

    try:
        with open(path, "rb") as file:
            return read_array(file)
    except (EOFError, ValueError) as error:
        raise ValueError(f"the mask {str(path)!r} is no .npy file of logits: {error}") from error
