"""``mobile-sam remove``, ``fill`` and ``replace``: an object gone, another one, or elsewhere."""

from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import (
    BoxThreshold,
    Checkpoint,
    Detector,
    Device,
    ImageFile,
    MaxPixels,
    Out,
    Points,
    find_device,
    load_model,
    parse_box,
    parse_point,
)

if TYPE_CHECKING:
    from ..images import ImageSource
    from ..integrations.inpaint_anything import InpaintAnything, Inpainting
    from ..integrations.inpainters import DiffusersInpainter
    from ..integrations.instances import Instances
    from ..integrations.video import Video


class Backend(str, Enum):
    """What paints where an object was."""

    opencv = "opencv"
    lama = "lama"
    diffusers = "diffusers"


def _check_prompt(prompt: str) -> str:
    if not prompt.strip():
        raise typer.BadParameter("the prompt is empty: say what to paint")
    return prompt


Prompt = Annotated[
    str,
    typer.Argument(metavar="PROMPT", help="What to paint, in words.", callback=_check_prompt),
]
Box = Annotated[
    str | None,
    typer.Option(metavar="X0,Y0,X1,Y1", help="A box around the object, in pixels."),
]
Text = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS", help="What the objects are, for example 'a dog. the red car.'; all found."
    ),
]
MaskFile = Annotated[
    Path | None,
    typer.Option(
        metavar="PNG",
        exists=True,
        dir_okay=False,
        help="A mask instead, white where something is chosen; or a map of ids, or a cut-out.",
    ),
]
MinArea = Annotated[
    int, typer.Option(metavar="PIXELS", min=1, help="Leave out what words find and is smaller.")
]
Margin = Annotated[
    int, typer.Option(metavar="PIXELS", min=0, help="By how much the mask is grown.")
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="M",
        help="What paints: an inpainting model of diffusers, on the Hub or in a folder.",
        show_default="stable-diffusion-v1-5/stable-diffusion-inpainting",
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps; fewer are faster.")]
Seed = Annotated[int | None, typer.Option(help="Paint the same every time.", show_default="random")]


def remove(
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE|VIDEO",
            exists=True,
            help="An image; or a video, an animated GIF or WebP, or a folder of frames.",
        ),
    ],
    out: Out,
    point: Points = None,
    box: Box = None,
    text: Text = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG|FOLDER",
            exists=True,
            help="A mask instead, white where something is chosen; for a video a folder of them, "
            "numbered as the frames, from 0, as `mobile-sam track` writes it.",
        ),
    ] = None,
    margin: Margin = 7,
    inpainter: Annotated[
        Backend,
        typer.Option(
            help="What paints: opencv needs no weights; lama and diffusers do large holes and "
            "textures."
        ),
    ] = Backend.opencv,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="Its weights: an ONNX file of LaMa, or a folder or Hub repository of diffusers.",
            show_default="hf://Carve/LaMa-ONNX/lama_fp32.onnx, or as of `mobile-sam fill`",
        ),
    ] = None,
    steps: Steps = 50,
    seed: Seed = None,
    detector: Detector = None,
    box_threshold: BoxThreshold = 0.25,
    min_area: MinArea = 1,
    max_pixels: MaxPixels = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Remove an object from an image, or from a video, through which it is followed.

    Of a video, clicks, box and words are for the first frame. Writes into DIR/<name of the image>/:
    inpainted.png, inpainted_mask.png, and what was chosen, mask_000.png and so on, overlay.png and
    instances.json; of a video inpainted.mp4.
    """
    if model is not None and inpainter is Backend.opencv:
        raise typer.BadParameter("OpenCV has no weights: add --inpainter", param_hint="--model")
    _check_prompts(point, box, text, mask)

    from tqdm import tqdm

    from ..integrations.inpaint_anything import InpaintAnything
    from ..integrations.video import MaskFolder, Video, is_video, write_video
    from ..results import claim_folder

    filmed = is_video(image)
    if mask is not None and mask.is_dir() != filmed:
        wanted = "a folder with a mask for each frame" if filmed else "a PNG"
        raise typer.BadParameter(f"{str(mask)!r} must be {wanted}", param_hint="--mask")
    video = Video(image) if filmed else None
    selections: Any = None
    if video is not None and mask is not None:
        editor, selections = InpaintAnything(None), MaskFolder(mask, video)
    else:
        editor, selection = _select(
            image if video is None else next(iter(video)),
            point,
            box,
            text,
            mask,
            detector,
            box_threshold,
            min_area,
            checkpoint,
            device,
        )
    editor.inpainter = _load_inpainter(inpainter, model, device, steps, seed)
    if video is None:
        _write(editor.remove(image, selection, margin), out, image)
        return
    if selections is None:
        selections = _follow(editor, video, selection)
    frames = editor.remove_video(video, selections, margin)
    target = claim_folder(out, image.resolve(), video.name) / "inpainted.mp4"
    bar = tqdm(frames, total=video.length, unit="frame", disable=None)
    write_video(target, bar, video.frame_rate)
    typer.echo(target)


def _painting_command(name: str, purpose: str) -> Callable[..., None]:
    """``fill`` or ``replace``, which take the same."""

    def command(
        image: ImageFile,
        prompt: Prompt,
        out: Out,
        point: Points = None,
        box: Box = None,
        text: Text = None,
        mask: MaskFile = None,
        margin: Margin = 7,
        model: Model = None,
        steps: Steps = 50,
        seed: Seed = None,
        detector: Detector = None,
        box_threshold: BoxThreshold = 0.25,
        min_area: MinArea = 1,
        max_pixels: MaxPixels = None,
        checkpoint: Checkpoint = None,
        device: Device = "auto",
    ) -> None:
        _check_prompts(point, box, text, mask)
        editor, selection = _select(
            image,
            point,
            box,
            text,
            mask,
            detector,
            box_threshold,
            min_area,
            checkpoint,
            device,
        )
        editor.inpainter = _load_diffusers(model, device, steps, seed)
        _write(getattr(editor, name)(image, selection, prompt, margin), out, image)

    command.__name__ = name
    command.__doc__ = f"""{purpose}

    Writes into DIR/<name of the image>/ what `mobile-sam remove` writes.
    """
    return command


fill = _painting_command("fill", "Paint what PROMPT says in place of an object.")
replace = _painting_command("replace", "Paint the background that PROMPT says around an object.")


def _check_prompts(
    point: list[str] | None, box: str | None, text: str | None, mask: Path | None
) -> None:
    prompts = {"--text": text, "--mask": mask, "--point and --box": point or box}
    given = [name for name, value in prompts.items() if value]
    if len(given) != 1:
        raise typer.BadParameter(
            f"give one of --point, --box, --text and --mask, not {' and '.join(given)}"
            if given
            else "give --point, --box, --text or --mask, so that it is known what to work on"
        )


def _select(
    image: "ImageSource",
    point: list[str] | None,
    box: str | None,
    text: str | None,
    mask: Path | None,
    detector: str | None,
    box_threshold: float,
    min_area: int,
    checkpoint: str | None,
    device: str,
) -> "tuple[InpaintAnything, Any]":
    """The editor, and what is chosen in an image: objects, or the mask that is given."""
    clicks = [parse_point(click) for click in point or []]
    corners = parse_box(box) if box else None

    from ..images import load_mask
    from ..integrations.detectors import DEFAULT_DETECTOR
    from ..integrations.inpaint_anything import InpaintAnything

    if mask is not None:
        return InpaintAnything(None), load_mask(mask)
    editor = InpaintAnything(load_model(checkpoint, device), detector=detector or DEFAULT_DETECTOR)
    objects = editor.segment(
        image,
        [click[:2] for click in clicks] or None,
        [click[2] for click in clicks] or None,
        corners,
        text,
        box_threshold,
        min_area,
    )
    return editor, objects


def _load_inpainter(
    backend: Backend, model: str | None, device: str, steps: int, seed: int | None
) -> Any:
    from ..integrations.inpainters import LAMA, LamaInpainter, OpenCVInpainter

    if backend is Backend.opencv:
        return OpenCVInpainter()
    if backend is Backend.lama:
        return LamaInpainter(model or LAMA, find_device(device))
    return _load_diffusers(model, device, steps, seed)


def _load_diffusers(
    model: str | None, device: str, steps: int, seed: int | None
) -> "DiffusersInpainter":
    from ..integrations.inpainters import STABLE_DIFFUSION, DiffusersInpainter

    return DiffusersInpainter(
        model or STABLE_DIFFUSION, find_device(device), seed, num_inference_steps=steps
    )


def _write(result: "Inpainting", out: Path, image: Path) -> None:
    from ..results import claim_folder

    result.objects.image_path = str(image)
    for path in result.save(claim_folder(out, image)):
        typer.echo(path)


def _follow(
    editor: "InpaintAnything", video: "Video", objects: "Instances"
) -> "Iterator[Instances]":
    from ..integrations.track_anything import TrackAnything

    assert editor.predictor is not None
    tracker = TrackAnything(editor.predictor)
    frames = iter(video)
    tracker.start(next(frames))
    for mask in objects.masks:
        if mask.any():
            tracker.add_object(mask=mask)
    yield tracker.current.objects
    for frame in frames:
        yield tracker.track(frame).objects
