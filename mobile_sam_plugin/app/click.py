"""The tab *Click*: points and boxes in, three candidates out, and files to download."""

import json
import secrets
from functools import partial
from typing import Any

import numpy as np

from ..engine import Backend, OnnxBackend
from ..errors import UserError
from ..files import encode_image
from ..records import make_record
from ..results import cut_out
from . import gradio as gr
from .everything import inspect
from .parts import QUEUED, Components, render
from .sessions import Session

OBJECT, BACKGROUND, CORNER = "Object point", "Background point", "Box corner"


class ClickTab:
    """Components and callbacks of the tab."""

    def __init__(
        self, components: Components, mode: Any, undo: Any, reset: Any, checkpoint: str | None
    ):
        """Adds the tab to the page that gradio is building.

        Args:
            components: the components that the tabs share.
            mode: radio buttons that choose what a click adds.
            undo: button.
            reset: button.
            checkpoint: name of the checkpoint, for the Python lines.
        """
        self.components = components
        self.checkpoint = checkpoint
        gr.Markdown(
            "Click on an object. Add points on it or on the background until the mask fits, "
            "or click two corners of a box."
        )
        components.candidates.render()
        self.refine = gr.Checkbox(
            True,
            label="Refine the chosen candidate",
            info="The next click starts from its logits.",
        )
        with gr.Accordion("Without a mouse", open=False):
            with gr.Row():
                x = gr.Number(0, label="X, in pixels from the left", minimum=0, min_width=100)
                y = gr.Number(0, label="Y, in pixels from the top", minimum=0, min_width=100)
            add = gr.Button("Add it here", size="sm")
        gr.Markdown("**Download**")
        with gr.Row(elem_classes="downloads"):
            mask = gr.Button("Mask (PNG)", size="sm", min_width=120)
            cutout = gr.Button("Cut-out (PNG)", size="sm", min_width=120)
            record = gr.Button("COCO RLE (JSON)", size="sm", min_width=120)
            lines = gr.Button("Python lines", size="sm", min_width=120)

        changed = [*components.views, components.pending]
        # Clicks may come faster than masks; none is dropped.
        components.listen(
            components.picture.select,
            self.click,
            inputs=[mode, self.refine],
            outputs=changed,
            trigger_mode="multiple",
        )
        components.listen(add.click, self.add, inputs=[x, y, mode, self.refine], outputs=changed)
        components.listen(undo.click, self.undo, outputs=changed, trigger_mode="multiple")
        components.listen(reset.click, self.reset, outputs=changed)
        components.listen(
            components.candidates.input,
            self.choose,
            inputs=components.candidates,
            outputs=components.views,
        )
        components.listen(
            components.pending.change,
            self.encode,
            outputs=components.views,
            show_progress="minimal",
            show_progress_on=components.status,
            **QUEUED,
        )
        for button, write in (
            (mask, self.write_mask),
            (cutout, self.write_cutout),
            (record, self.write_record),
            (lines, self.write_lines),
        ):
            components.offer(button, write)

    def click(self, event: gr.SelectData, mode: str, refine: bool, request: gr.Request) -> Any:
        session = self.components.session(request)
        x, y = event.index
        with session.lock:
            if session.picture is None:
                return *render(session), gr.skip()
            if session.inspecting:
                return *inspect(session, int(x), int(y)), gr.skip()
            scale = session.picture.scale
            return self._add(session, x / scale, y / scale, mode, refine)

    def add(self, x: float, y: float, mode: str, refine: bool, request: gr.Request) -> Any:
        with self.components.locked(request) as session:
            return self._add(session, x, y, mode, refine)

    def _add(self, session: Session, x: float, y: float, mode: str, refine: bool) -> Any:
        height, width = session.require_picture().pixels.shape[:2]
        x, y = float(np.clip(x, 0, width - 1)), float(np.clip(y, 0, height - 1))
        if mode != CORNER:
            session.add((x, y, int(mode == OBJECT)), None, refine)
        elif session.corner is None:
            session.corner = x, y
            return *render(session), gr.skip()
        else:
            x0, y0 = session.corner
            if x0 == x or y0 == y:
                raise UserError("the box has no area: click further away from its first corner")
            session.add(None, (min(x0, x), min(y0, y), max(x0, x), max(y0, y)), refine)
        return self._decode(session)

    def _decode(self, session: Session) -> Any:
        """Shows the masks at once if the image is encoded; otherwise has it encoded first."""
        picture = session.picture
        if picture is not None and session.steps and session.masks is None:
            if not self.components.sessions.is_encoded(picture):
                message = "Encoding the image: this is done once, later clicks are fast."
                return *render(session, message), secrets.token_hex(4)
            sessions = self.components.sessions
            session.decode(sessions.predictor(picture), sessions.engine)
        return *render(session), gr.skip()

    def encode(self, request: gr.Request) -> Any:
        session = self.components.session(request)
        picture = session.picture
        if picture is not None:
            sessions = self.components.sessions
            predictor = sessions.predictor(picture)
            with session.lock:
                if session.picture is picture:  # not another one by now
                    session.decode(predictor, sessions.engine)
        with session.lock:
            return render(session)

    def undo(self, request: gr.Request) -> Any:
        with self.components.locked(request) as session:
            session.undo()
            return self._decode(session)

    def reset(self, request: gr.Request) -> Any:
        with self.components.locked(request) as session:
            session.reset()
            return *render(session), gr.skip()

    def choose(self, index: int, request: gr.Request) -> Any:
        with self.components.locked(request) as session:
            if session.steps and session.scores is not None and index in range(len(session.scores)):
                session.steps[-1].chosen = index
            return render(session)

    def write_mask(self, request: gr.Request) -> str:
        with self.components.locked(request) as session:
            path = session.path("_mask.png")
            mask = session.require_mask().astype(np.uint8) * 255
            path.write_bytes(encode_image(".png", mask))
        return str(path)

    def write_cutout(self, request: gr.Request) -> str:
        with self.components.locked(request) as session:
            mask, path = session.require_mask(), session.path("_cutout.png")
            if not mask.any():
                raise UserError("the mask is empty: choose another candidate")
            pixels = cut_out(session.require_picture().pixels, mask)
            path.write_bytes(encode_image(".png", pixels))
        return str(path)

    def write_record(self, request: gr.Request) -> str:
        """Writes a record of SAM's generator; its stability score needs the logits again."""
        with self.components.locked(request) as session:
            session.require_mask()
            step, path = session.steps[-1], session.path("_mask.json")
            sessions = self.components.sessions
            predictor = sessions.predictor(session.require_picture())
            predict = partial(predictor.predict, **step.arguments(), return_logits=True)
            logits, scores, _ = sessions.engine.run(predict)
            chosen = step.chosen or 0
            record = make_record(
                logits[chosen],
                scores[chosen],
                [point[:2] for point in step.points],
                sessions.engine.backend.mask_threshold,
            )
            path.write_text(json.dumps([record], allow_nan=False))
        return str(path)

    def write_lines(self, request: gr.Request) -> str:
        with self.components.locked(request) as session:
            session.require_mask()
            path = session.path("_mask.py")
            backend = self.components.sessions.engine.backend
            path.write_text(python_lines(session, backend, self.checkpoint))
        return str(path)


def python_lines(session: Session, backend: Backend, checkpoint: str | None) -> str:
    """Returns Python that computes the chosen mask again, with the steps it was refined from."""
    assert session.picture is not None and session.scores is not None
    steps = [session.steps[-1]]
    for step in reversed(session.steps[:-1]):
        if steps[0].mask_input is None:
            break
        steps.insert(0, step)
    calls = []
    for index, step in enumerate(steps):
        arguments = step.arguments()
        arguments.pop("mask_input", None)
        parts = [f"{name}={value!r}" for name, value in arguments.items()]
        if index:
            parts.append(f"mask_input=logits[{steps[index - 1].chosen}]")
        inner = "".join(f"    {part},\n" for part in parts)
        calls.append(f"masks, scores, logits = predictor.predict(\n{inner})\n")
    if session.video is None:
        opening = "from PIL import Image\n"
        opened = f"Image.open({session.picture.name!r})"
    else:
        opening = "from mobile_sam_plugin.integrations.video import Video\n"
        opened = f"next(iter(Video({session.picture.name!r})))"
    chosen = steps[-1].chosen or 0
    if isinstance(backend, OnnxBackend):
        graphs, name = backend.graphs, type(backend.graphs).__name__
        names = f"from mobile_sam_plugin.deploy import {name}"
        built = f"{name}({graphs.encoder.path!r}, {graphs.decoder.path!r})"
    else:
        names = "from mobile_sam_plugin import SamPredictor, sam_model_registry"
        weights = repr(checkpoint) if checkpoint else ""
        built = f'SamPredictor(sam_model_registry["vit_t"]({weights}))'
    return (
        f"{opening}\n"
        f"{names}\n\n"
        f"predictor = {built}\n"
        f"predictor.set_image({opened})\n"
        f"{''.join(calls)}"
        f"mask = masks[{chosen}]  # (H, W) bool, predicted IoU {session.scores[chosen]:.3f}\n"
    )
