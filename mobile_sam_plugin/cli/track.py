"""``mobile-sam track``: follows objects through a video."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .inputs import (
    BoxThreshold,
    Checkpoint,
    Detector,
    Device,
    MaxPixels,
    MinArea,
    PointsPerSide,
    PredIouThresh,
    StabilityScoreThresh,
    find_device,
    load_model,
    parse_box,
    parse_point,
)

if TYPE_CHECKING:
    from ..integrations.track_anything import TrackAnything
    from ..integrations.tracks import TrackedFrame

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}, {postfix}]"


def track(
    video: Annotated[
        Path,
        typer.Argument(
            metavar="VIDEO",
            exists=True,
            help="A file that OpenCV decodes, an animated GIF or WebP, or a folder of frames.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", file_okay=False, help="Output folder, with one subfolder per video."
        ),
    ],
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y[,LABEL]",
            help="A point in the first frame, in pixels, on the object (LABEL 1, the default) or "
            "on the background (0). Several points describe one object.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X0,Y0,X1,Y1",
            help="A box around an object, in pixels. Each box is one object.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Track every object that matches this text, for example 'a dog. a red car.'",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Track every object that everything mode finds.")
    ] = False,
    detect_every: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Detect new objects every N frames; 0: in the first frame only.",
        ),
    ] = 0,
    first_frame: Annotated[
        int, typer.Option(metavar="N", min=0, help="First frame; earlier frames are skipped.")
    ] = 0,
    propagator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Video model of transformers that propagates the masks: Hub repository or folder, "
            "such as yonigozlan/EdgeTAM-hf or facebook/sam2.1-hiera-tiny.",
            show_default="optical flow",
        ),
    ] = None,
    detector: Detector = None,
    box_threshold: BoxThreshold = 0.25,
    min_area: MinArea = 200,
    points_per_side: PointsPerSide = 32,
    pred_iou_thresh: PredIouThresh = 0.88,
    stability_score_thresh: StabilityScoreThresh = 0.95,
    max_pixels: MaxPixels = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Follow objects through a video, as Track-Anything and Segment-and-Track-Anything do.

    Writes to DIR/<name of the video>/: masks/, one PNG of object ids per frame; tracks.csv with
    boxes and areas; tracks.json in YouTube-VIS format; and overlay.mp4.

    Run the same command again to resume an interrupted run.
    """
    given = {
        "--point": point,
        "--box": box,
        "--text": text is not None,
        "--everything": everything,
    }
    chosen = [name for name, value in given.items() if value]
    if len(chosen) != 1:
        raise typer.BadParameter(
            f"give one of --point, --box, --text and --everything, not {' and '.join(chosen)}"
            if chosen
            else "give --point, --box, --text or --everything, to select the objects to follow"
        )
    if detect_every and (point or box):
        raise typer.BadParameter("--detect-every needs --text or --everything")
    points = [parse_point(each) for each in point or []]
    boxes = [parse_box(corners) for corners in box or []]

    from tqdm import tqdm

    from ..integrations.detectors import DEFAULT_DETECTOR
    from ..integrations.grounded_sam import GroundedMobileSam
    from ..integrations.propagators import TransformersPropagator
    from ..integrations.texts import split_text
    from ..integrations.track_anything import (
        FrameDetector,
        TrackAnything,
        everything_detector,
        track_video,
    )
    from ..integrations.video import Video
    from ..results import claim_folder

    phrases = None if text is None else split_text(text)
    thresholds = {
        "points_per_side": points_per_side,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
    }
    source = Video(video)
    if source.length is not None and first_frame >= source.length:
        raise typer.BadParameter(
            f"{source.name!r} has {source.length} frames, so there is no frame {first_frame}",
            param_hint="--first-frame",
        )
    model = load_model(checkpoint, device)
    frame_detector: FrameDetector | None = None
    if phrases is not None:
        grounded = GroundedMobileSam(model, detector or DEFAULT_DETECTOR)
        frame_detector = partial(grounded.predict, text=phrases, box_threshold=box_threshold)
    elif everything:
        frame_detector = everything_detector(model, **thresholds)
    tracker = TrackAnything(
        model,
        None if propagator is None else TransformersPropagator(propagator, find_device(device)),
        frame_detector,
        detect_every,
        min_area,
    )

    def choose(tracker: "TrackAnything") -> None:
        if points:
            tracker.add_object([each[:2] for each in points], [each[2] for each in points])
        for corners in boxes:
            tracker.add_object(box=corners)

    folder = claim_folder(out, video.resolve(), source.name)
    settings = {
        "point": point,
        "box": box,
        "text": text,
        "everything": everything,
        "detect_every": detect_every,
        "propagator": propagator,
        "detector": detector,
        **({} if text is None else {"box_threshold": box_threshold}),
        **(thresholds if everything else {}),
        **({} if frame_detector is None else {"min_area": min_area}),
    }
    with tqdm(unit=" frames", bar_format=_BAR, disable=None) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def count(_: object, tracked: "TrackedFrame") -> None:
            bar.set_postfix_str(f"{len(tracked.objects)} objects, {len(tracked.lost)} lost", False)

        prompts = {first_frame: choose}
        objects = track_video(tracker, source, folder, prompts, first_frame, settings, show, count)
    typer.echo(f"{folder / 'tracks.json'}  {len(objects)} object{'s'[: len(objects) != 1]}")
    for name in ("tracks.csv", "overlay.mp4", "masks"):
        typer.echo(folder / name)
