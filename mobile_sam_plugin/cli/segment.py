"""``mobile-sam segment``: one image, one prompt."""

import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .inputs import Checkpoint, Cutout, ImageFile, MaxPixels, Out, Points, load_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .. import SamPredictor
    from ..deploy import OnnxPredictor


class Backend(str, Enum):
    """What computes."""

    torch = "torch"
    onnx = "onnx"
    openvino = "openvino"


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
            help="A mask to refine: the mask_NNN_logits.npy of an earlier run on this image, or an "
            "image of a mask in the size of this one. Add a click on the object: few weights, the "
            "bundled ones not among them, were trained on masks alone.",
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
    cutout: Cutout = False,
    checkpoint: Checkpoint = None,
    backend: Annotated[
        Backend,
        typer.Option(help="torch; or onnxruntime or OpenVINO on the files of mobile-sam export."),
    ] = Backend.torch,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Where mobile-sam export wrote its files; for --backend onnx and openvino.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="D",
            help="Where to compute. torch: cpu, cuda, cuda:1, mps; onnx: an execution provider; "
            "openvino: CPU, GPU, NPU; or auto.",
        ),
    ] = "auto",
    max_pixels: MaxPixels = None,
) -> None:
    """Segment the object that clicks, a box or a mask point out.

    Writes into DIR/<name of the image>/: a PNG a mask, overlay.png with masks and prompts,
    masks.json with COCO RLE and the fields of SAM's scripts/amg.py, and the logits for --mask.
    """
    if not point and not box and mask is None:
        raise typer.BadParameter("give at least one of --point, --box and --mask")
    if box and len(box) > 1:
        raise typer.BadParameter("give one box at most", param_hint="--box")
    if (backend == Backend.torch) != (model is None):
        raise typer.BadParameter(
            "name the folder of exported files with --backend onnx and openvino, and with them "
            "alone",
            param_hint="--model",
        )
    if model is not None and checkpoint is not None:
        raise typer.BadParameter(
            "the exported files hold weights of their own", param_hint="--checkpoint"
        )
    clicks = [parse_point(text) for text in point or []]
    corners = parse_box(box[0]) if box else None

    import numpy as np

    from ..images import load_image
    from ..records import make_record
    from ..results import claim_folder, write_results

    coords = np.array([click[:2] for click in clicks]).reshape(-1, 2)
    labels = np.array([click[2] for click in clicks], dtype=int)
    mask_input = None if mask is None else _read_mask(mask)
    pixels = load_image(image)
    predictor = _load(backend, model, checkpoint, device)
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


def _load(
    backend: Backend, folder: Path | None, checkpoint: str | None, device: str
) -> "SamPredictor | OnnxPredictor":
    if folder is None:
        from .. import SamPredictor

        return SamPredictor(load_model(checkpoint, device))

    from ..deploy import OnnxPredictor, OpenVinoPredictor

    files = folder / "mobile_sam_encoder.onnx", folder / "mobile_sam_decoder.onnx"
    given = () if device == "auto" else (device,)
    if backend == Backend.openvino:
        return OpenVinoPredictor(*files, *given)
    return OnnxPredictor(*files, given) if given else OnnxPredictor(*files)


def parse_point(text: str) -> tuple[float, float, int]:
    x, y, label = (*_parse_numbers(text, "--point", "X,Y or X,Y,LABEL", (2, 3)), 1.0)[:3]
    if label not in (0, 1):
        raise typer.BadParameter(
            f"the label of {text!r} is neither 1 (object) nor 0 (background)", param_hint="--point"
        )
    return x, y, int(label)


def parse_box(text: str) -> list[float]:
    return _parse_numbers(text, "--box", "X0,Y0,X1,Y1", (4,))


def _parse_numbers(text: str, option: str, form: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(map(math.isfinite, numbers)):
        raise typer.BadParameter(f"{text!r} is not {form}, in numbers", param_hint=option)
    return numbers


def _read_mask(path: Path) -> "NDArray[Any]":
    """Low-res logits, or a mask of the image's size: told by what the file holds."""
    from numpy.lib.format import MAGIC_PREFIX, read_array

    from ..images import load_mask

    with open(path, "rb") as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
            try:
                return load_mask(path)
            except UserError as error:
                raise UserError(f"{error}; nor is it a .npy file of logits") from error
        file.seek(0)
        try:
            array: NDArray[Any] = read_array(file)
        except (EOFError, ValueError) as error:
            raise UserError(f"the mask {str(path)!r} cannot be read: {error}") from error
        return array
