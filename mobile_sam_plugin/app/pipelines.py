"""The tabs *Text*, *Remove / fill / replace*, *Track* and *Label* over the integrations.

Models come from the Hub's cache on this machine. Nothing is downloaded while the page runs: a tab
whose weights or libraries are missing shows the commands that install them.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from ..engine import check_size
from ..errors import UserError
from . import gradio as gr
from .parts import Components, render, status_html
from .sessions import Picture, Session, shrink

if TYPE_CHECKING:
    from ..integrations.grounded_sam import GroundedMobileSam
    from ..integrations.inpaint_anything import InpaintAnything, Inpainting
    from ..integrations.instances import Instances
    from ..integrations.tracks import TrackedFrame

_PROGRESS = gr.Progress()
_CLASSES = "person, animal, plant, vehicle, building, food, sky, ground"
_SHOWN_FRAMES = 6


@dataclass(frozen=True)
class Need:
    """Libraries and weights that a pipeline needs besides MobileSAM.

    Attributes:
        extra: extra of this package that installs the libraries.
        libraries: names of the modules.
        repository: repository on the Hub.
        files: files of the repository; any of them shows that it was downloaded.
        one_file: whether the first file is all that is needed.
    """

    extra: str
    libraries: tuple[str, ...]
    repository: str
    files: tuple[str, ...]
    one_file: bool = False

    @property
    def file(self) -> Path | None:
        """Path of one of the files in the Hub's cache, or None; no network is used."""
        for name in self.files:
            path = try_to_load_from_cache(self.repository, name)
            if isinstance(path, str):
                return Path(path)
        return None

    @property
    def folder(self) -> Path:
        """Folder of the files; transformers looks up the name of a repository, but not a folder."""
        assert self.file is not None
        return self.file.parent

    @property
    def missing(self) -> str | None:
        """Markdown with the commands that install what is missing; None if nothing is."""
        lines = []
        if not all(map(find_spec, self.libraries)):
            lines.append(f'pip install "mobile-sam-plugin[{self.extra}]"')
        if self.file is None:
            file = f" {self.files[0]}" if self.one_file else ""
            lines.append(f"hf download {self.repository}{file}")
        if not lines:
            return None
        commands = "\n".join(lines)
        return (
            f"**Not installed on this server.** Run there, then restart `mobile-sam app`:"
            f"\n```\n{commands}\n```"
        )


_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
DETECTOR = Need("grounded", ("transformers",), "IDEA-Research/grounding-dino-tiny", _WEIGHTS)
CLASSIFIER = Need("semantic", ("transformers",), "openai/clip-vit-base-patch32", _WEIGHTS)
LAMA = Need("inpaint", ("onnxruntime",), "Carve/LaMa-ONNX", ("lama_fp32.onnx",), one_file=True)
PAINTER = Need(
    "inpaint",
    ("diffusers", "transformers"),
    "stable-diffusion-v1-5/stable-diffusion-inpainting",
    ("model_index.json",),
)


def show_missing(need: Need) -> bool:
    """Shows what is missing, if anything; returns whether the tab can be used."""
    missing = need.missing
    if missing is not None:
        gr.Markdown(missing, elem_classes="unavailable")
    return missing is None


class TextTab:
    """Grounded-SAM: masks of objects that match a text."""

    def __init__(self, components: Components) -> None:
        self.components = components
        gr.Markdown(
            "Find and segment objects that match a text; separate several with full stops or "
            "commas."
        )
        usable = show_missing(DETECTOR)
        words = gr.Textbox(
            "", label="What to find", placeholder="a dog. the red car.", interactive=usable
        )
        box = gr.Slider(0, 1, 0.25, step=0.01, label="Minimum score of a box", interactive=usable)
        text = gr.Slider(0, 1, 0.25, step=0.01, label="Minimum score of a word", interactive=usable)
        find = gr.Button("Find it", variant="primary", interactive=usable)
        download = gr.DownloadButton("Download COCO JSON", interactive=False, size="sm")
        components.run(find, self.find, [words, box, text], [*components.views, download])

    @cached_property
    def _pipeline(self) -> "GroundedMobileSam":
        from ..integrations.grounded_sam import GroundedMobileSam

        return GroundedMobileSam(self.components.sessions.model, DETECTOR.folder)

    def find(
        self, words: str, box_threshold: float, text_threshold: float, request: gr.Request
    ) -> Any:
        session = self.components.session(request)
        picture = session.require_picture()
        predictor: Any = self.components.sessions.predictor(picture)
        found = self._pipeline.predict(
            picture.pixels, words, box_threshold, text_threshold, predictor=predictor
        )
        message = (
            f"Found: {_count(found)}." if len(found) else "Nothing was found: lower the score."
        )
        return _show(session, picture, found, message)


class InpaintTab:
    """Inpaint-Anything: remove an object, replace it, or change its background."""

    def __init__(self, components: Components) -> None:
        self.components = components
        gr.Markdown(
            "Click on an object in the image, then remove it, fill its place with something else, "
            "or replace its background."
        )
        choices = ["Remove (OpenCV)"]
        if LAMA.missing is None:
            choices.append("Remove (LaMa)")
        paints = PAINTER.missing is None
        choices += ["Fill", "Replace"] if paints else []
        action = gr.Radio(choices, value=choices[0], label="What to do")
        margin = gr.Slider(0, 50, 7, step=1, label="Margin", info="Pixels added around the mask")
        prompt = gr.Textbox("", label="What to paint, for fill and replace", visible=paints)
        start = gr.Button("Paint", variant="primary")
        result = gr.Image(
            label="Result", interactive=False, visible=False, format="jpeg", buttons=["fullscreen"]
        )
        download = gr.DownloadButton("Download PNG", interactive=False, size="sm")
        for title, need in (("Remove with LaMa", LAMA), ("Fill and replace", PAINTER)):
            if need.missing is not None:
                with gr.Accordion(f"{title}: not installed", open=False):
                    show_missing(need)
        components.run(
            start, self.paint, [action, margin, prompt], [components.status, result, download]
        )

    @cached_property
    def _lama(self) -> "InpaintAnything":
        from ..integrations.inpaint_anything import InpaintAnything
        from ..integrations.inpainters import LamaInpainter

        assert LAMA.file is not None
        return InpaintAnything(None, LamaInpainter(LAMA.file, self._device))

    @cached_property
    def _painter(self) -> "InpaintAnything":
        from ..integrations.inpaint_anything import InpaintAnything
        from ..integrations.inpainters import DiffusersInpainter

        return InpaintAnything(None, DiffusersInpainter(PAINTER.folder, self._device))

    @property
    def _device(self) -> Any:
        return self.components.sessions.model.device

    def paint(self, action: str, margin: float, prompt: str, request: gr.Request) -> Any:
        from ..integrations.inpaint_anything import InpaintAnything

        with self.components.locked(request) as session:
            pixels, mask = session.require_picture().pixels, session.require_mask()
            path = session.path("_painted.png")
        painted: Inpainting
        if action == "Fill":
            painted = self._painter.fill(pixels, mask, prompt, int(margin))
        elif action == "Replace":
            painted = self._painter.replace(pixels, mask, prompt, int(margin))
        else:
            editor = self._lama if "LaMa" in action else InpaintAnything(None)
            painted = editor.remove(pixels, mask, int(margin))
        Image.fromarray(painted.image).save(path)
        return (
            status_html("Done: the result is in the tab."),
            gr.Image(shrink(painted.image), visible=True),
            gr.DownloadButton(value=str(path), interactive=True),
        )


class TrackTab:
    """Track-Anything: an object tracked through a video."""

    def __init__(self, components: Components) -> None:
        self.components = components
        gr.Markdown(
            "Upload a video, click on an object in its first frame, then press *Follow the object*."
        )
        video = gr.File(label="Video", file_types=["video"], height=130)
        start = gr.Button("Follow the object", variant="primary")
        frames = gr.Gallery(
            label="Frames", columns=3, visible=False, interactive=False, format="jpeg", buttons=[]
        )
        with gr.Row(elem_classes="downloads"):
            files = [
                gr.DownloadButton(name, interactive=False, size="sm", min_width=100)
                for name in ("overlay.mp4", "tracks.csv", "tracks.json")
            ]
        components.receive(video.upload, self.open, inputs=video, outputs=components.views)
        components.run(start, self.track, None, [components.status, frames, *files])

    def open(self, path: Path, request: gr.Request) -> Any:
        from ..integrations.video import Video

        session = self.components.session(request)
        name = path.name
        with session.lock:
            try:
                video = Video(path)
                height, width = video.image_size or (0, 0)
                check_size(width, height, name, self.components.sessions.engine.limits.max_pixels)
                frame = next(iter(video))
            except ValueError as error:
                message = str(error).replace(str(path), name)
                return render(session, message, mistake=True)
            session.open(Picture(name, frame), path)
            return render(session)

    def track(self, request: gr.Request, progress: gr.Progress = _PROGRESS) -> Any:
        from ..integrations.track_anything import TrackAnything, track_video
        from ..integrations.video import Video

        with self.components.locked(request) as session:
            if session.video is None:
                raise UserError("there is no video yet: choose one above")
            mask, folder = session.require_mask(), session.path("_tracks")
            video = Video(session.video)
        shown = np.linspace(0, (video.length or 1) - 1, _SHOWN_FRAMES).round().astype(int)
        overlays = []

        def keep_overlay(frame: Any, tracked: "TrackedFrame") -> None:
            if tracked.index in shown:
                overlays.append(shrink(tracked.objects.overlay(frame), 480))

        def report(done: int, total: int | None) -> None:
            progress((done, total), desc="Following", unit="frames")

        tracker = TrackAnything(self.components.sessions.model)
        # A folder for each run, since another mask may be followed now.
        target = folder / str(sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0)
        prompts = {0: lambda tracker: tracker.add_object(mask=mask)}
        track_video(tracker, video, target, prompts, progress=report, on_frame=keep_overlay)
        return (
            status_html("Done: frames and files are in the tab."),
            gr.Gallery(overlays, visible=True),
            *(
                gr.DownloadButton(value=str(target / name), interactive=True)
                for name in ("overlay.mp4", "tracks.csv", "tracks.json")
            ),
        )


class LabelTab:
    """Semantic-Segment-Anything: a name for every mask."""

    def __init__(self, components: Components) -> None:
        self.components = components
        gr.Markdown("Segment everything, and give each mask the most likely name of a list.")
        usable = show_missing(CLASSIFIER)
        names = gr.Textbox(_CLASSES, label="Names, separated by commas", interactive=usable)
        points = gr.Slider(2, 64, 16, step=1, label="Points per side", interactive=usable)
        iou = gr.Slider(0, 1, 0.88, step=0.01, label="Minimum predicted IoU", interactive=usable)
        stability = gr.Slider(
            0, 1, 0.95, step=0.01, label="Minimum stability score", interactive=usable
        )
        start = gr.Button("Name everything", variant="primary", interactive=usable)
        download = gr.DownloadButton("Download COCO JSON", interactive=False, size="sm")
        components.run(
            start, self.label, [names, points, iou, stability], [*components.views, download]
        )

    @cached_property
    def _classifier(self) -> Any:
        from ..integrations.semantic_segment_anything import ClipClassifier

        return ClipClassifier(CLASSIFIER.folder, self.components.sessions.model.device)

    def label(
        self,
        names: str,
        points_per_side: float,
        pred_iou_thresh: float,
        stability_score_thresh: float,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> Any:
        from ..integrations.semantic_segment_anything import SemanticMobileSam
        from ..integrations.texts import split_classes

        session = self.components.session(request)
        picture = session.require_picture()
        pipeline: SemanticMobileSam = SemanticMobileSam(
            self.components.sessions.model,
            self._classifier,
            points_per_side=int(points_per_side),
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
        )

        def report(done: int, total: int) -> None:
            progress((done, total), desc="Looking for masks", unit="points")

        predictor: Any = self.components.sessions.predictor(picture)
        masks = pipeline.segment(picture.pixels, report, predictor)
        found = pipeline.predict(picture.pixels, split_classes(names), masks)
        message = f"Named: {_count(found)}." if len(found) else "No mask passed the thresholds."
        return _show(session, picture, found, message)


def _show(session: Session, picture: Picture, found: "Instances", message: str) -> Any:
    """Returns the views and the download button for objects found in an image."""
    with session.lock:
        if session.picture is not picture:
            raise UserError("the image changed during the run: press the button again")
        path = session.path("_objects.json")
        path.write_text(json.dumps(found.to_coco(), allow_nan=False))
        _, _, candidates = render(session)
    return (
        shrink(found.overlay()),
        status_html(message),
        candidates,
        gr.DownloadButton(value=str(path), interactive=True),
    )


def _count(found: "Instances") -> str:
    names = sorted(set(found.labels), key=lambda name: -found.labels.count(name))
    return ", ".join(f"{found.labels.count(name)} {name}" for name in names)
