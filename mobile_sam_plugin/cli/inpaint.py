"""``mobile-sam remove``, ``fill`` and ``replace``: inpaint an object or its background."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    with_groups,
)

if TYPE_CHECKING:
    from ..images import ImageSource
    from ..integrations.inpaint_anything import InpaintAnything, Inpainting, Selection
    from ..integrations.inpainters import DiffusersInpainter
    from ..integrations.instances import Instances
    from ..integrations.video import Video


InpainterName = Literal["opencv", "lama", "diffusers"]


def _check_prompt(prompt: str) -> str:
    if not prompt.strip():
        raise typer.BadParameter("the prompt is empty: describe what to paint")
    return prompt


Prompt = Annotated[
    str,
    typer.Argument(metavar="PROMPT", help="Description of what to paint.", callback=_check_prompt),
]
Margin = Annotated[
    int, typer.Option(metavar="PIXELS", min=0, help="Distance by which the mask is dilated.")
]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps; fewer are faster.")]
Seed = Annotated[
    int | None, typer.Option(help="Random seed, for repeatable results.", show_default="random")
]


@dataclass(frozen=True)
class Selector:
    """The options that select objects in an image."""

    point: Points = None
    box: Annotated[
        str | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="A box around the object, in pixels."),
    ] = None
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Select every object that matches this text, for example 'a dog. the red car.'",
        ),
    ] = None
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            exists=True,
            dir_okay=False,
            help="Mask image instead of a prompt, white inside; or a map of ids, or a cut-out.",
        ),
    ] = None
    detector: Detector = None
    box_threshold: BoxThreshold = 0.25
    min_area: Annotated[
        int,
        typer.Option(
            metavar="PIXELS", min=1, help="Ignore objects that match --text and have fewer pixels."
        ),
    ] = 1
    max_pixels: MaxPixels = None
    checkpoint: Checkpoint = None
    device: Device = "auto"

    def __post_init__(self) -> None:
        points_or_box = self.point or self.box
        prompts = {"--text": self.text, "--mask": self.mask, "--point and --box": points_or_box}
        given = [name for name, value in prompts.items() if value]
        if len(given) != 1:
            raise typer.BadParameter(
                f"give one of --point, --box, --text and --mask, not {' and '.join(given)}"
                if given
                else "give --point, --box, --text or --mask, to select an object"
            )

    def select(self, image: "ImageSource") -> "tuple[InpaintAnything, Selection]":
        """Returns an editor, and the objects in an image, or the mask from a file."""
        points = [parse_point(each) for each in self.point or []]
        corners = parse_box(self.box) if self.box else None

        from ..images import load_mask
        from ..integrations.detectors import DEFAULT_DETECTOR
        from ..integrations.inpaint_anything import InpaintAnything

        if self.mask is not None:
            return InpaintAnything(None), load_mask(self.mask)
        model = load_model(self.checkpoint, self.device)
        editor = InpaintAnything(model, detector=self.detector or DEFAULT_DETECTOR)
        objects = editor.segment(
            image,
            [each[:2] for each in points] or None,
            [each[2] for each in points] or None,
            corners,
            self.text,
            self.box_threshold,
            self.min_area,
        )
        return editor, objects


@dataclass(frozen=True)
class SelectorInVideo(Selector):
    """The same options for an image or a video."""

    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG|FOLDER",
            exists=True,
            help="Mask image instead of a prompt, white inside; for a video a folder of masks, "
            "numbered like the frames, from 0, as `mobile-sam track` writes it.",
        ),
    ] = None


@dataclass(frozen=True)
class Painting:
    """The options of `fill` and `replace` that do not select objects."""

    margin: Margin = 7
    inpainter_model: Annotated[
        str | None,
        typer.Option(
            "--inpainter-model",
            metavar="M",
            help="Inpainting model of diffusers: Hub repository or folder.",
            show_default="stable-diffusion-v1-5/stable-diffusion-inpainting",
        ),
    ] = None
    steps: Steps = 50
    seed: Seed = None

    def prepare(self, image: Path, selector: Selector) -> "tuple[InpaintAnything, Selection]":
        """Returns an editor with an inpainter that takes prompts, and the selection."""
        editor, selection = selector.select(image)
        editor.inpainter = _load_diffusers(
            self.inpainter_model, selector.device, self.steps, self.seed
        )
        return editor, selection


@with_groups
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
    *,
    selector: SelectorInVideo,
    margin: Margin = 7,
    inpainter: Annotated[
        InpainterName,
        typer.Option(
            help="Inpainter: opencv needs no weights; lama and diffusers suit large holes and "
            "textures."
        ),
    ] = "opencv",
    inpainter_model: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="Weights of the inpainter: an ONNX file of LaMa, or a folder or Hub repository of "
            "diffusers.",
            show_default="hf://Carve/LaMa-ONNX/lama_fp32.onnx, or as in `mobile-sam fill`",
        ),
    ] = None,
    steps: Steps = 50,
    seed: Seed = None,
) -> None:
    """Remove an object from an image, or from every frame of a video.

    For a video, points, box and text refer to the first frame. Writes to DIR/<name of the image>/:
    inpainted.png, inpainted_mask.png, and the selected objects: mask_000.png and so on, overlay.png
    and instances.json; for a video inpainted.mp4.
    """
    if inpainter_model is not None and inpainter == "opencv":
        raise typer.BadParameter(
            "OpenCV has no weights: add --inpainter", param_hint="--inpainter-model"
        )

    from tqdm import tqdm

    from ..integrations.inpaint_anything import InpaintAnything
    from ..integrations.video import MaskFolder, Video, is_video, write_video
    from ..results import claim_folder

    filmed, mask = is_video(image), selector.mask
    if mask is not None and mask.is_dir() != filmed:
        expected = "a folder with a mask for each frame" if filmed else "a PNG"
        raise typer.BadParameter(f"{str(mask)!r} must be {expected}", param_hint="--mask")
    if not filmed:
        editor, selection = selector.select(image)
        editor.inpainter = _load_inpainter(inpainter, inpainter_model, selector.device, steps, seed)
        _write(editor.remove(image, selection, margin), out, image)
        return
    video = Video(image)
    selections: Any
    if mask is not None:
        editor, selections = InpaintAnything(None), MaskFolder(mask, video)
    else:
        editor, objects = selector.select(next(iter(video)))
        selections = _follow(editor, video, objects)
    editor.inpainter = _load_inpainter(inpainter, inpainter_model, selector.device, steps, seed)
    frames = editor.remove_video(video, selections, margin)
    target = claim_folder(out, image.resolve(), video.name) / "inpainted.mp4"
    bar = tqdm(frames, total=video.length, unit="frame", disable=None)
    write_video(target, bar, video.frame_rate)
    typer.echo(target)


@with_groups
def fill(
    image: ImageFile,
    prompt: Prompt,
    out: Out,
    *,
    selector: Selector,
    painting: Painting,
) -> None:
    """Paint what PROMPT describes in the place of an object.

    Writes to DIR/<name of the image>/ the files of `mobile-sam remove`.
    """
    editor, selection = painting.prepare(image, selector)
    _write(editor.fill(image, selection, prompt, painting.margin), out, image)


@with_groups
def replace(
    image: ImageFile,
    prompt: Prompt,
    out: Out,
    *,
    selector: Selector,
    painting: Painting,
) -> None:
    """Keep the object and paint a new background, which PROMPT describes.

    Writes to DIR/<name of the image>/ the files of `mobile-sam remove`.
    """
    editor, selection = painting.prepare(image, selector)
    _write(editor.replace(image, selection, prompt, painting.margin), out, image)


def _load_inpainter(
    backend: InpainterName, model: str | None, device: str, steps: int, seed: int | None
) -> Any:
    from ..integrations.inpainters import LAMA, LamaInpainter, OpenCVInpainter

    if backend == "opencv":
        return OpenCVInpainter()
    if backend == "lama":
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


def _follow(editor: "InpaintAnything", video: "Video", objects: Any) -> "Iterator[Instances]":
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
