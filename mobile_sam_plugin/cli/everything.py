"""``mobile-sam everything``: all masks of an image, or of each image in a folder."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from . import search_options
from .inputs import Checkpoint, Device, Out, load_model


def everything(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE|FOLDER", exists=True, help="An image, or a folder with images in it."
        ),
    ],
    out: Out,
    points_per_side: search_options.PointsPerSide = None,
    points_per_batch: search_options.PointsPerBatch = None,
    pred_iou_thresh: search_options.PredIouThresh = None,
    stability_score_thresh: search_options.StabilityScoreThresh = None,
    stability_score_offset: search_options.StabilityScoreOffset = None,
    box_nms_thresh: search_options.BoxNmsThresh = None,
    crop_n_layers: search_options.CropNLayers = None,
    crop_nms_thresh: search_options.CropNmsThresh = None,
    crop_overlap_ratio: search_options.CropOverlapRatio = None,
    crop_n_points_downscale_factor: search_options.CropNPointsDownscaleFactor = None,
    min_mask_region_area: search_options.MinMaskRegionArea = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Segment everything in an image, or in every image of a folder.

    The options of the search are those of SAM's SamAutomaticMaskGenerator. Writes into DIR/<name of
    the image>/: a PNG a mask, overlay.png, and masks.json with COCO RLE and the fields of SAM's
    scripts/amg.py.

    An image of a folder that cannot be read is reported and left out, and the exit code is then 1.
    """
    given = search_options.given(
        points_per_side=points_per_side,
        points_per_batch=points_per_batch,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        stability_score_offset=stability_score_offset,
        box_nms_thresh=box_nms_thresh,
        crop_n_layers=crop_n_layers,
        crop_nms_thresh=crop_nms_thresh,
        crop_overlap_ratio=crop_overlap_ratio,
        crop_n_points_downscale_factor=crop_n_points_downscale_factor,
        min_mask_region_area=min_mask_region_area,
    )

    from tqdm import tqdm

    from .. import SamAutomaticMaskGenerator
    from ..inputs import list_images, load_image
    from ..results import name_folders, write_results

    paths = list_images(images) if images.is_dir() else [images]
    model = load_model(checkpoint, device)
    try:
        generator = SamAutomaticMaskGenerator(model, output_mode="coco_rle", **given)
    except ZeroDivisionError as error:
        raise UserError(
            "no click is left in the last layer of crops: raise --points-per-side, "
            "or lower --crop-n-layers or --crop-n-points-downscale-factor"
        ) from error
    # In layer N of the crops there are 4^N.
    clicks = sum(4**layer * len(grid) for layer, grid in enumerate(generator.point_grids))
    folders = name_folders(paths)
    failed = False
    with tqdm(total=len(paths) * clicks, unit="click", disable=None) as bar:
        for index, path in enumerate(paths):
            bar.set_description(f"{path.name} ({index + 1}/{len(paths)})")
            try:
                pixels = load_image(path)
                records = generator.generate(pixels, partial(_advance, bar, index * clicks))
            except (OSError, ValueError) as error:
                if path == images:
                    raise
                bar.write(f"mobile-sam: {error}", file=sys.stderr)
                failed = True
            else:
                # With both thresholds at 0 the generator lets masks of no pixel pass.
                records = [record for record in records if record["area"]]
                folder = out / folders[path]
                write_results(folder, pixels, records)
                bar.write(f"{folder / 'masks.json'}  {_summarize(records, generator)}")
    if failed:
        raise typer.Exit(1)


def _advance(bar: Any, before: int, done: int, _: int) -> None:
    """Moves the one bar for all images, before this one of which there were so many clicks."""
    bar.update(before + done - bar.n)


def _summarize(records: list[dict[str, Any]], generator: Any) -> str:
    if records:
        return f"{len(records)} mask{'s'[: len(records) > 1]}"
    return (
        f"no mask passed: lower --pred-iou-thresh ({generator.pred_iou_thresh}) or "
        f"--stability-score-thresh ({generator.stability_score_thresh})"
    )
