"""``mobile-sam annotate``: creates masks for a data set, in common formats."""

import sys
import time
from contextlib import closing
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .generator_options import GeneratorOptions, Proposals, check_proposals
from .inputs import (
    Backend,
    BackendDevice,
    BoxThreshold,
    Checkpoint,
    Detector,
    MaxPixels,
    ModelType,
    NmsThresh,
    OnnxFolder,
    Source,
    TextThreshold,
    check_backend,
    load_exported,
    load_sam,
    with_groups,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from segment_anything.modeling import Sam

    from ..annotation import ImageResult
    from ..deploy import OnnxPredictor

_MEASURED = 3  # images that a dry run measures

Mode = Literal["everything", "boxes", "text"]


class Format(str, Enum):
    """Output format. typer takes lists of these, but not of Literal."""

    sa1b = "sa1b"
    coco = "coco"
    parquet = "parquet"
    ids = "ids"
    yolo = "yolo"
    labelme = "labelme"
    overlay = "overlay"


Engine = Literal["local", "ray"]


@with_groups
def annotate(
    source: Source,
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Output folder or URL; an unfinished run there is resumed."
        ),
    ],
    *,
    mode: Annotated[
        Mode,
        typer.Option(
            help="Segment everything, the boxes of a COCO JSON, or the objects that --text names."
        ),
    ] = "everything",
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="Output format; can be given several times. sa1b is always written.",
            show_default="coco",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder of a COCO data set's images, if not the JSON's."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='For mode text, what to find: "a dog. the red car."'),
    ] = None,
    detector: Detector = None,
    box_threshold: BoxThreshold = 0.25,
    text_threshold: TextThreshold = 0.25,
    nms_thresh: NmsThresh = 0.8,
    overlay_every: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="With --format overlay: only for every N-th image."),
    ] = 1,
    polygons: Annotated[
        bool,
        typer.Option(
            "--polygons", help="With --format coco: polygons, without holes, instead of RLE."
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Process only the first images, this many.", show_default="all"),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(metavar="I/N", help="Process only part I of N; give each part its own --out."),
    ] = "1/1",
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the results in DIR and start over.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Count images and estimate the time; write nothing."),
    ] = False,
    max_pixels: MaxPixels = None,
    everything: GeneratorOptions,
    proposals: Proposals = None,
    checkpoint: Checkpoint = None,
    model_type: Annotated[ModelType, typer.Option(help="Model type of --checkpoint.")] = "vit_t",
    backend: Backend = "torch",
    onnx_dir: OnnxFolder = None,
    device: BackendDevice = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Parallel workers that run the model: threads or Ray actors.",
            show_default="2 on a GPU, else 1",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images encoded together.", show_default="8 on a GPU, else 1"),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Threads on this machine, or Ray on one or many machines.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of a running Ray cluster, or auto.",
            show_default="a new cluster on this machine",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            min=0, help="GPUs per Ray actor; may be a fraction.", show_default="by --device"
        ),
    ] = None,
) -> None:
    """Create masks for a data set, or resume an interrupted run.

    Writes sa1b/ to DIR, one JSON per image in the format of SA-1B; and by --format instances.json
    (COCO), masks.parquet, ids/ (PNGs of mask numbers), labels/ (YOLO), labelme/ and overlays/.
    Run the same command again to process missing images, after an interruption or with more images.
    Images that cannot be read are listed in errors.jsonl, and the exit code is then 1.
    """
    from ..annotation import AnnotationOptions, AnnotationRun, open_source, split_text
    from ..images import join_counts

    if engine == "local":
        for option, value in (
            ("--ray-address", ray_address),
            ("--gpus-per-worker", gpus_per_worker),
        ):
            if value is not None:
                raise typer.BadParameter("needs --engine ray", param_hint=option)
    check_proposals(everything, proposals)
    check_backend(backend, onnx_dir, checkpoint, None)
    if onnx_dir is not None:
        for option, differs in (
            ("--model-type", model_type != "vit_t"),
            ("--mode", mode == "text"),
            ("--engine", engine == "ray"),
        ):
            if differs:
                raise typer.BadParameter("needs --backend torch", param_hint=option)
    options = AnnotationOptions(
        mode=mode,
        formats=tuple(each.value for each in formats or [Format.coco]),
        generator_options=everything.given(),
        text=split_text(text),
        detector=detector,
        box_threshold=box_threshold,
        text_threshold=text_threshold,
        nms_thresh=nms_thresh,
        overlay_every=overlay_every,
        limit=limit,
        shard=_parse_shard(shard),
        polygons=polygons,
        proposals=proposals,
    )
    opened = open_source(source, images, exclude=out)
    if onnx_dir is not None:
        model: Sam | OnnxPredictor = load_exported(backend, onnx_dir, device)
    else:
        model = load_sam(model_type, checkpoint, "--checkpoint", device)
    run = AnnotationRun(opened, out, model, options, restart)
    if dry_run:
        typer.echo(f"{run.total} images: {run.done} done, {run.total - run.done} to do")
        if run.total > run.done:
            sample = AnnotationRun(opened, None, model, options)
            _estimate(sample.run(workers, batch_size), run.total - run.done)
        return
    if engine == "ray":
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
        typer.echo(f"{out}  {run.done} of {run.total} images are done, {rate:.3g} per second")
    typer.echo(f"{out}  {masks} masks in {run.done - before} images")
    if run.skipped:
        typer.echo(f"{out}  left out: {join_counts(run.skipped)}")
    if run.failed:
        typer.echo(f"{run.failed} could not be annotated: see {out.rstrip('/')}/errors.jsonl")
        raise typer.Exit(1)


def _parse_shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise typer.BadParameter(f"{text!r} is not I/N, such as 1/4", param_hint="--shard")
    return int(part), int(parts)


def _estimate(results: "Generator[ImageResult, None, None]", left: int) -> None:
    """Prints how long ``left`` images will take, measured on the first of them."""
    start = time.perf_counter()
    with closing(results):
        times = [time.perf_counter() - start for _ in islice(results, _MEASURED)]
    if not times:  # a video whose header promises frames that it does not have
        return
    # The first image includes the warm-up, so only the others count if there are any.
    each = times[0] if len(times) == 1 else (times[-1] - times[0]) / (len(times) - 1)
    total = _duration(each * left)
    typer.echo(f"about {each:.2g} s per image (measured on {len(times)}), {total} in total")


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
