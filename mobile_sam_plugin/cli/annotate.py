"""``mobile-sam annotate``: masks of a data set, in the formats that others read."""

import sys
import time
from contextlib import closing
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from . import search_options
from .inputs import Checkpoint, Detector, Device, MaxPixels, ModelType, load_sam

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..annotation import ImageResult

_MEASURED = 3  # images by which a dry run estimates


class Mode(str, Enum):
    """What is segmented."""

    everything = "everything"
    boxes = "boxes"
    text = "text"


class Format(str, Enum):
    """What is written."""

    sa1b = "sa1b"
    coco = "coco"
    parquet = "parquet"
    ids = "ids"
    yolo = "yolo"
    labelme = "labelme"
    overlay = "overlay"


class Engine(str, Enum):
    """What lets the stages overlap."""

    local = "local"
    ray = "ray"


def annotate(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Images, globs and folders, or one text file of paths, one COCO json, one video. "
            "All but videos can be URLs, such as s3://bucket/folder.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Where to write, and what to go on with: a folder or URL."
        ),
    ],
    mode: Annotated[
        Mode,
        typer.Option(
            help="Segment everything, what the boxes of a COCO json hold, or what a text names."
        ),
    ] = Mode.everything,
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="A format to write; can be given several times. sa1b is always written.",
            show_default="coco",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where the images of a COCO json are, if not beside it."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='In mode text what to find: "a dog. the red car."'),
    ] = None,
    detector: Detector = None,
    box_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="As of mobile-sam text.")
    ] = 0.25,
    text_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="As of mobile-sam text.")
    ] = 0.25,
    nms_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="As of mobile-sam text.")
    ] = 0.8,
    overlay_every: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --format overlay: one of N images.")
    ] = 1,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="With --format coco: polygons without holes, no RLE.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take only the first images.", show_default="all")
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Take the I-th of N parts, into a folder of its own.")
    ] = "1/1",
    restart: Annotated[
        bool, typer.Option("--restart", help="Give up what DIR holds of another run.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Count and estimate, but write nothing."),
    ] = False,
    max_pixels: MaxPixels = None,
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
    model_type: Annotated[
        ModelType, typer.Option(help="What the checkpoint is.")
    ] = ModelType.vit_t,
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many compute with the model: threads, or Ray's actors.",
            show_default="2 on a GPU, else 1",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images encoded together.", show_default="8 on a GPU, else 1"),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Threads on this machine, or Ray on this or many.")
    ] = Engine.local,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Of a Ray cluster, or auto.",
            show_default="a cluster of its own",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            min=0, help="Of Ray's actors; can be a part of one.", show_default="by --device"
        ),
    ] = None,
) -> None:
    """Annotate a data set, and go on with it where it was stopped.

    Writes into DIR: sa1b/, a json an image in the format of SA-1B; and by --format instances.json
    (COCO), masks.parquet, ids/ (PNGs of instance numbers), labels/ (YOLO), labelme/ and overlays/.
    The same command after an interruption, or with more images, does what is missing. Images that
    cannot be read are listed in errors.jsonl, and the exit code is then 1.
    """
    from ..annotation import AnnotationRun, Options, open_source, split_prompt

    options = Options(
        mode=mode.value,
        formats=tuple(each.value for each in formats or [Format.coco]),
        search=search_options.given(
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
        ),
        prompts=split_prompt(prompt),
        detector=detector,
        box_threshold=box_threshold,
        text_threshold=text_threshold,
        nms_threshold=nms_threshold,
        overlay_every=overlay_every,
        limit=limit,
        shard=_parse_shard(shard),
        polygons=polygons,
    )
    if engine == Engine.local and (ray_address is not None or gpus_per_worker is not None):
        raise typer.BadParameter("goes with --engine ray", param_hint="--ray-address")
    opened = open_source(source, images, leave_out=out)
    model = load_sam(model_type, checkpoint, "--checkpoint", device)
    run = AnnotationRun(opened, out, model, options, restart)
    if dry_run:
        typer.echo(f"{run.total} images, {run.done} of them done, {run.total - run.done} to do")
        if run.total > run.done:
            sample = AnnotationRun(opened, None, model, options)
            _estimate(sample.run(workers, batch_size), run.total - run.done)
        return
    if engine == Engine.ray:
        results = run.run_on_ray(ray_address, workers, batch_size, gpus_per_worker)
    else:
        results = run.run(workers, batch_size)

    from tqdm import tqdm

    before, masks, start = run.done, 0, time.perf_counter()
    try:
        with tqdm(total=run.total, initial=before, unit="image", disable=None) as bar:
            for result in results:
                bar.update()
                masks += len(result.records)
                if result.error is not None:
                    bar.write(f"mobile-sam: {result.error}", file=sys.stderr)
    finally:  # also where the disk is full
        rate = (run.done - before + run.failed) / (time.perf_counter() - start)
        typer.echo(f"{out}  {run.done} of {run.total} images are done, {rate:.3g} a second")
    typer.echo(f"{out}  {masks} masks in {run.done - before} images")
    if run.left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in run.left_out.most_common())
        typer.echo(f"{out}  left out: {kinds}")
    if run.failed:
        typer.echo(f"{run.failed} could not be read: see {out.rstrip('/')}/errors.jsonl")
        raise typer.Exit(1)


def _parse_shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise typer.BadParameter(f"{text!r} is not I/N, such as 1/4", param_hint="--shard")
    return int(part), int(parts)


def _estimate(results: "Generator[ImageResult, None, None]", left: int) -> None:
    """Says how long so many images will take, by the first of them."""
    start = time.perf_counter()
    with closing(results):
        times = [time.perf_counter() - start for _ in islice(results, _MEASURED)]
    if not times:  # a video whose header tells of frames that it does not have
        return
    # The first also warms up, so that the others tell more.
    each = times[0] if len(times) == 1 else (times[-1] - times[0]) / (len(times) - 1)
    typer.echo(
        f"about {each:.2g} s an image by the first {len(times)}, so {_duration(each * left)} in all"
    )


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
