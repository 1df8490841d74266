"""The tabs *Text*, *Remove / fill / replace*, *Track* and *Label* over the integrations.

Models are taken from the Hub's cache on this machine. Nothing is fetched while the page runs: where
weights or libraries are missing, a tab says by which line they come.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from ..errors import UserError
from . import gradio as gr
from .parts import HEAVY, Stage, look, say
from .sessions import Picture, Session, check_size, shrink

if TYPE_CHECKING:
    from ..integrations.grounded_sam import GroundedMobileSam
    from ..integrations.inpaint_anything import InpaintAnything, Inpainting
    from ..integrations.instances import Instances

_PROGRESS = gr.Progress()
_CLASSES = "person, animal, plant, vehicle, building, food, sky, ground"
_SHOWN_FRAMES = 6


@dataclass(frozen=True)
class Need:
    """What a pipeline needs beside MobileSAM.

    Attributes:
        extra: of this package, which brings the libraries.
        libraries: their names in Python.
        repository: on the Hub.
        files: of the repository, any of which tells that it has been fetched.
        one_file: whether that one is all that is needed of it.
    """

    extra: str
    libraries: tuple[str, ...]
    repository: str
    files: tuple[str, ...]
    one_file: bool = False

    @property
    def file(self) -> Path | None:
        """One of the files in the Hub's cache; looks at this machine's disk only."""
        for name in self.files:
            path = try_to_load_from_cache(self.repository, name)
            if isinstance(path, str):
                return Path(path)
        return None

    @property
    def folder(self) -> Path:
        """The repository's files. A folder's name, unlike a repository's, is not looked up."""
        assert self.file is not None
        return self.file.parent

    @property
    def missing(self) -> str | None:
        """How to get what is not there, in Markdown; None if all is."""
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
            f"**Unavailable here.** Run this where the server runs, then start `mobile-sam app` "
            f"again:\n```\n{commands}\n```"
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


class Tab:
    """What these tabs have in common: a stage, and a warning where they cannot be used."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def run(self, button: Any, fn: Callable[..., Any], inputs: Any, outputs: Any) -> None:
        """Has a button start what takes long."""
        self.stage.listen(
            button.click,
            fn,
            inputs=inputs,
            outputs=outputs,
            show_progress="full",
            show_progress_on=self.stage.status,
            **HEAVY,
        )

    @staticmethod
    def note(need: Need) -> bool:
        """Says what is missing, if anything is; returns whether the tab can be used."""
        missing = need.missing
        if missing is not None:
            gr.Markdown(missing, elem_classes="unavailable")
        return missing is None


class TextTab(Tab):
    """Grounded-SAM: masks of what words name."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        gr.Markdown("Find and segment what words name, with full stops or commas between several.")
        usable = self.note(DETECTOR)
        words = gr.Textbox(
            "", label="What to find", placeholder="a dog. the red car.", interactive=usable
        )
        box = gr.Slider(0, 1, 0.25, step=0.01, label="Least score of a box", interactive=usable)
        text = gr.Slider(0, 1, 0.25, step=0.01, label="Least score of a word", interactive=usable)
        find = gr.Button("Find it", variant="primary", interactive=usable)
        download = gr.DownloadButton("Download COCO JSON", interactive=False, size="sm")
        self.run(find, self.find, [words, box, text], [*stage.views, download])

    @cached_property
    def _pipeline(self) -> "GroundedMobileSam":
        from ..integrations.grounded_sam import GroundedMobileSam

        return GroundedMobileSam(self.stage.sessions.model, DETECTOR.folder)

    def find(
        self, words: str, box_threshold: float, text_threshold: float, request: gr.Request
    ) -> Any:
        session = self.stage.session(request)
        picture = session.require_picture()
        found = self._pipeline.predict(picture.pixels, words, box_threshold, text_threshold)
        message = (
            f"Found: {_count(found)}." if len(found) else "Nothing was found: lower the score."
        )
        return _show(session, picture, found, message)


class InpaintTab(Tab):
    """Inpaint-Anything: the chosen object gone, another one, or elsewhere."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        gr.Markdown(
            "Click on an object in the picture, then remove it, fill its place with something else "
            "or replace what is around it."
        )
        choices = ["Remove (OpenCV)"]
        if LAMA.missing is None:
            choices.append("Remove (LaMa)")
        paints = PAINTER.missing is None
        choices += ["Fill", "Replace"] if paints else []
        action = gr.Radio(choices, value=choices[0], label="What to do")
        margin = gr.Slider(0, 50, 7, step=1, label="Margin", info="Pixels by which the mask grows")
        prompt = gr.Textbox("", label="What to paint, for fill and replace", visible=paints)
        start = gr.Button("Paint", variant="primary")
        result = gr.Image(
            label="Result", interactive=False, visible=False, format="jpeg", buttons=["fullscreen"]
        )
        download = gr.DownloadButton("Download PNG", interactive=False, size="sm")
        for title, need in (("Remove with LaMa", LAMA), ("Fill and replace", PAINTER)):
            if need.missing is not None:
                with gr.Accordion(f"{title}: unavailable here", open=False):
                    self.note(need)
        self.run(start, self.paint, [action, margin, prompt], [stage.status, result, download])

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
        return self.stage.sessions.model.device

    def paint(self, action: str, margin: float, prompt: str, request: gr.Request) -> Any:
        from ..integrations.inpaint_anything import InpaintAnything

        session = self.stage.session(request)
        with session.lock:
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
            say("Done: the result is in the tab."),
            gr.Image(shrink(painted.image), visible=True),
            gr.DownloadButton(value=str(path), interactive=True),
        )


class TrackTab(Tab):
    """Track-Anything: an object followed through a video."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        gr.Markdown(
            "Give a video: its first frame becomes the picture. Click on an object there, then "
            "follow it."
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
        stage.receive(video.upload, self.open, inputs=video, outputs=stage.views)
        self.run(start, self.track, None, [stage.status, frames, *files])

    def open(self, path: Path, request: gr.Request) -> Any:
        from ..integrations.video import Video

        session = self.stage.session(request)
        capture = cv2.VideoCapture(str(path))
        width, height = (
            int(capture.get(each)) for each in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        capture.release()
        name = path.name
        with session.lock:
            try:
                check_size(width, height, name, self.stage.sessions.max_pixels)
                frame = next(iter(Video(path)))
            except ValueError as error:
                message = str(error).replace(str(path), name)
                return look(session, message, mistake=True)
            session.open(Picture(name, frame), path)
            return look(session)

    def track(self, request: gr.Request, progress: gr.Progress = _PROGRESS) -> Any:
        from ..integrations.track_anything import TrackAnything, track_video
        from ..integrations.video import Video

        session = self.stage.session(request)
        with session.lock:
            if session.video is None:
                raise UserError("there is no video yet: choose one above")
            mask, folder = session.require_mask(), session.path("_tracks")
            video = Video(session.video)
        length = video.length

        class Reporting(TrackAnything):
            def track(self, frame: Any) -> Any:
                tracked = super().track(frame)
                progress((tracked.index + 1, length), desc="Following", unit="frames")
                return tracked

        tracker = Reporting(self.stage.sessions.model)
        # Every time anew, since another mask may be followed now.
        target = folder / str(sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0)
        track_video(tracker, video, target, {0: lambda tracker: tracker.add_object(mask=mask)})
        overlays = list(_sample(target / "overlay.mp4", length or 1))
        return (
            say("Done: frames and files are in the tab."),
            gr.Gallery(overlays, visible=True),
            *(
                gr.DownloadButton(value=str(target / name), interactive=True)
                for name in ("overlay.mp4", "tracks.csv", "tracks.json")
            ),
        )


class LabelTab(Tab):
    """Semantic-Segment-Anything: names for everything."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        gr.Markdown("Segment everything, and give each mask the likeliest of some names.")
        usable = self.note(CLASSIFIER)
        names = gr.Textbox(_CLASSES, label="Names, with commas between", interactive=usable)
        points = gr.Slider(2, 64, 16, step=1, label="Points a side", interactive=usable)
        iou = gr.Slider(0, 1, 0.88, step=0.01, label="Least predicted IoU", interactive=usable)
        stability = gr.Slider(
            0, 1, 0.95, step=0.01, label="Least stability score", interactive=usable
        )
        start = gr.Button("Name everything", variant="primary", interactive=usable)
        download = gr.DownloadButton("Download COCO JSON", interactive=False, size="sm")
        self.run(start, self.label, [names, points, iou, stability], [*stage.views, download])

    @cached_property
    def _classifier(self) -> Any:
        from ..integrations.semantic_segment_anything import ClipClassifier

        return ClipClassifier(CLASSIFIER.folder, self.stage.sessions.model.device)

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

        session = self.stage.session(request)
        picture = session.require_picture()
        pipeline: SemanticMobileSam = SemanticMobileSam(
            self.stage.sessions.model,
            self._classifier,
            points_per_side=int(points_per_side),
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
        )

        def report(done: int, total: int) -> None:
            progress((done, total), desc="Looking for masks", unit="points")

        predictor = self.stage.sessions.predictor(picture)
        masks = pipeline.segment(picture.pixels, report, predictor)
        found = pipeline.predict(picture.pixels, split_classes(names), masks)
        message = f"Named: {_count(found)}." if len(found) else "No mask passed the thresholds."
        return _show(session, picture, found, message)


def _show(session: Session, picture: Picture, found: "Instances", message: str) -> Any:
    """The stage's views and the download, of what was found in a picture."""
    with session.lock:
        if session.picture is not picture:
            raise UserError("another picture has come meanwhile: press the button again")
        path = session.path("_objects.json")
        path.write_text(json.dumps(found.to_coco(), allow_nan=False))
        _, _, candidates = look(session)
    return (
        shrink(found.overlay()),
        say(message),
        candidates,
        gr.DownloadButton(value=str(path), interactive=True),
    )


def _count(found: "Instances") -> str:
    names = sorted(set(found.labels), key=lambda name: -found.labels.count(name))
    return ", ".join(f"{found.labels.count(name)} {name}" for name in names)


def _sample(video: Path, length: int) -> Any:
    """Some frames of a video, small."""
    from ..integrations.video import Video

    wanted = set(np.linspace(0, length - 1, _SHOWN_FRAMES).round().astype(int).tolist())
    for index, frame in enumerate(Video(video)):
        if index in wanted:
            yield shrink(frame, 480)
