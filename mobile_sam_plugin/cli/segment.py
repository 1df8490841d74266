"""``mobile-sam segment``: one image, one prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .inputs import (
    Backend,
    BackendDevice,
    Checkpoint,
    Cutout,
    Embeddings,
    ImageFile,
    MaxPixels,
    OnnxFolder,
    Out,
    Points,
    check_backend,
    load_exported,
    load_model,
    parse_box,
    parse_point,
    require_embeddings,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..deploy import OnnxPredictor
    from ..predictor import SamPredictor


def segment(
    image: ImageFile,
    out: Out,
    point: Points = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="A box around the object, in pixels."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Mask to refine: the mask_NNN_logits.npy of an earlier run on this image, or a "
            "mask image of the same size. Add a point on the object: few weights were trained on "
            "masks alone, and the bundled ones were not.",
        ),
    ] = None,
    multimask: Annotated[
        bool,
        typer.Option(
            "--multimask/--best",
            help="--multimask writes SAM's three candidates. --best writes one mask: for a single "
            "point the candidate with the highest predicted IoU, else SAM's single-mask output.",
        ),
    ] = False,
    cutout: Cutout = False,
    embeddings: Embeddings = None,
    checkpoint: Checkpoint = None,
    backend: Backend = "torch",
    onnx_dir: OnnxFolder = None,
    device: BackendDevice = "auto",
    max_pixels: MaxPixels = None,
) -> None:
    """Segment one object, given by points, a box or an earlier mask.

    Writes to DIR/<name of the image>/: one PNG per mask, overlay.png with masks and prompts,
    masks.json with COCO RLE and the fields of SAM's scripts/amg.py, and the logits for --mask.
    """
    if not point and not box and mask is None:
        raise typer.BadParameter("give at least one of --point, --box and --mask")
    if box and len(box) > 1:
        raise typer.BadParameter("give one box at most", param_hint="--box")
    check_backend(backend, onnx_dir, checkpoint, embeddings)
    points = [parse_point(text) for text in point or []]
    corners = parse_box(box[0]) if box else None

    import numpy as np

    from ..images import load_image
    from ..records import make_record
    from ..results import claim_folder, write_results

    coords = np.array([xy for *xy, _ in points]).reshape(-1, 2)
    labels = np.array([label for *_, label in points], dtype=int)
    mask_input = None if mask is None else _read_mask(mask)
    pixels = load_image(image)
    height, width = pixels.shape[:2]
    for x, y in coords:
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(
                f"--point {x:g},{y:g} is outside of the image, which is {width} pixels wide and "
                f"{height} high"
            )
    predictor: SamPredictor | OnnxPredictor
    if embeddings is not None:
        predictor = require_embeddings(embeddings, load_model(checkpoint, device))(pixels)
    else:
        if onnx_dir is not None:
            predictor = load_exported(backend, onnx_dir, device)
        else:
            import mobile_sam_plugin

            predictor = mobile_sam_plugin.SamPredictor(load_model(checkpoint, device))
        predictor.set_image(pixels)
    ambiguous = len(points) == 1 and corners is None and mask is None
    logits, scores, low_res_logits = predictor.predict(
        point_coords=coords if points else None,
        point_labels=labels if points else None,
        box=corners,
        mask_input=mask_input,
        multimask_output=multimask or ambiguous,
        return_logits=True,
    )
    kept = range(len(scores)) if multimask else [int(scores.argmax())]
    records = [make_record(logits[i], scores[i], coords) for i in kept]
    folder = claim_folder(out, image)
    paths = write_results(
        folder,
        pixels,
        records,
        low_res_logits=[low_res_logits[i, None] for i in kept],
        point_coords=coords,
        point_labels=labels,
        box=corners,
        cutouts=cutout,
    )
    for path, record in zip(paths, records, strict=True):
        typer.echo(f"{path}  area {record['area']}  predicted IoU {record['predicted_iou']:.3f}")
    for path in sorted(folder.glob("cutout_*.png")):
        typer.echo(path)
    typer.echo(folder / "overlay.png")
    typer.echo(folder / "masks.json")


def _read_mask(path: Path) -> "NDArray[Any]":
    """Reads low-res logits, or a mask of the image's size: whichever the file contains."""
    from numpy.lib.format import MAGIC_PREFIX, read_array

    from ..images import load_mask

    with open(path, "rb") as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
            try:
                return load_mask(path)
            except UserError as error:
                raise UserError(f"{error}; it is not a .npy file of logits either") from error
        file.seek(0)
        try:
            array: NDArray[Any] = read_array(file)
        except (EOFError, ValueError) as error:
            raise UserError(f"the mask {str(path)!r} cannot be read: {error}") from error
        return array
