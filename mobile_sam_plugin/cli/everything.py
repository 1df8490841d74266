"""``mobile-sam everything``: segments everything in an image or in the images of a folder."""

import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .generator_options import GeneratorOptions, Proposals, check_proposals
from .inputs import (
    Backend,
    BackendDevice,
    Checkpoint,
    Cutout,
    Embeddings,
    Labelme,
    MaxPixels,
    OnnxFolder,
    Out,
    check_backend,
    load_exported,
    load_model,
    require_embeddings,
    with_groups,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .. import MobileSam
    from ..deploy import OnnxPredictor
    from ..engine.backends import Generator
    from ..polygons import Losses
    from ..records import Record


@with_groups
def everything(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE|FOLDER", exists=True, help="An image, or a folder with images in it."
        ),
    ],
    out: Out,
    options: GeneratorOptions,
    proposals: Proposals = None,
    cutout: Cutout = False,
    polygons: Annotated[
        bool,
        typer.Option(
            "--polygons",
            help="Also write instances.json, a COCO data set with masks as polygons; holes are "
            "filled.",
        ),
    ] = False,
    labelme: Labelme = False,
    embeddings: Embeddings = None,
    max_pixels: MaxPixels = None,
    checkpoint: Checkpoint = None,
    backend: Backend = "torch",
    onnx_dir: OnnxFolder = None,
    device: BackendDevice = "auto",
) -> None:
    """Segment everything in an image, or in every image of a folder.

    Writes to DIR/<name of the image>/: one PNG per mask, overlay.png, and masks.json with COCO RLE
    and the fields of SAM's scripts/amg.py. The generator's options are those of SAM's
    SamAutomaticMaskGenerator.

    If an image of a folder fails, it is reported, the others are processed, and the exit code is 1.
    """
    check_proposals(options, proposals)
    check_backend(backend, onnx_dir, checkpoint, embeddings)
    from tqdm import tqdm

    from ..annotation.proposals import open_proposals
    from ..engine import backend_of
    from ..everything import drop_empty
    from ..images import list_images, load_image
    from ..polygons import Losses
    from ..results import claim_folder, name_folders, write_results

    paths = list_images(images) if images.is_dir() else [images]
    model: MobileSam | OnnxPredictor
    if onnx_dir is not None:
        model = load_exported(backend, onnx_dir, device)
        find_embedding = None
    else:
        model = load_model(checkpoint, device)
        find_embedding = None if embeddings is None else require_embeddings(embeddings, model)
    segmenter = backend_of(model)
    propose = None if proposals is None else open_proposals(proposals, segmenter.device)
    generator = segmenter.generator(output_mode="coco_rle", **options.given())
    # Layer N has 4^N crops.
    points = sum(4**layer * len(grid) for layer, grid in enumerate(generator.point_grids))
    folders = name_folders(paths)
    failed, losses = False, Losses()
    with tqdm(total=len(paths) * points, unit="point", disable=None) as bar:

        def report(path: Path, error: Exception) -> None:
            if path == images:
                raise error
            bar.write(f"mobile-sam: {_describe(path, error)}", file=sys.stderr)

        for index, path in enumerate(paths):
            bar.set_description(f"{path.name} ({index + 1}/{len(paths)})")
            try:
                pixels = load_image(path)
                predictor = None if find_embedding is None else find_embedding(pixels)
                advance = partial(_advance, bar, index * points, points)
                boxes = None if propose is None else propose(pixels, str(path))
                found = generator.generate(pixels, advance, predictor, boxes)
            except Exception as error:  # of any class: the other images may still succeed
                report(path, error)
                failed = True
                continue
            records = drop_empty(found)
            try:
                folder = claim_folder(out, path, folders[path])
                write_results(folder, pixels, records, cutouts=cutout)
            except UserError as error:  # an OSError, such as a full disk, ends the command
                report(path, error)
                failed = True
                continue
            if polygons or labelme:
                losses.add(_write_polygons(folder, path, pixels, records, polygons, labelme))
            bar.write(f"{folder / 'masks.json'}  {_summarize(records, generator)}")
    losses.warn()
    if failed:
        raise typer.Exit(1)


def _write_polygons(
    folder: Path,
    image: Path,
    pixels: "NDArray[np.uint8]",
    records: list["Record"],
    coco: bool,
    labelme: bool,
) -> "Losses":
    """Writes the requested JSON for COCO and labelme, and returns what polygons cannot hold."""
    from ..coco import records_dataset
    from ..files import write_file
    from ..polygons import Losses, labelme_content, relative_path
    from ..records import decode_mask

    height, width = pixels.shape[:2]
    losses = Losses()
    if coco:
        content = records_dataset(records, (height, width), image.name, losses)
        write_file(folder / "instances.json", json.dumps(content).encode())
    if labelme:
        masks = (("object", decode_mask(record)) for record in records)
        losses = Losses()
        content = labelme_content(masks, (height, width), relative_path(image, folder), losses)
        write_file(folder / "labelme.json", json.dumps(content).encode())
    return losses


def _advance(bar: Any, before: int, points: int, done: int, total: int) -> None:
    """Moves the bar, which counts the points of all images, ``before`` of earlier ones.

    Proposals, whose number differs by image, count as the points of a grid in proportion.
    """
    bar.update(before + points * done // total - bar.n)


def _describe(path: Path, error: Exception) -> str:
    """Describes an image's error; an unexpected one with its class and, if debugging, traceback."""
    message = str(error)
    if not isinstance(error, OSError | UserError):
        if os.environ.get("MOBILE_SAM_DEBUG"):
            traceback.print_exception(error)
        message = f"{type(error).__name__}: {error}"
    return message if str(path) in message else f"{str(path)!r}: {message}"


def _summarize(records: list["Record"], generator: "Generator") -> str:
    if records:
        return f"{len(records)} mask{'s'[: len(records) > 1]}"
    return (
        f"no mask passed: lower --pred-iou-thresh ({generator.pred_iou_thresh}) or "
        f"--stability-score-thresh ({generator.stability_score_thresh})"
    )
