"""State of the open pages: an image and a prompt each.

Independent of gradio: a page is a name here. The engine computes masks and keeps embeddings.
"""

import hashlib
import os
import re
import shutil
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..drawing import draw_overlay
from ..engine import Engine, TorchBackend, digest_image
from ..engine.backends import Pixels, Predictor
from ..errors import UserError
from ..records import Record

Point = tuple[float, float, int]
"""X and Y in pixels of the image, and 1 for the object, 0 for the background."""
Box = tuple[float, float, float, float]

MAX_SESSIONS = 64
MAX_SHOWN = 1280  # pixels; longer side of the image that is sent to the page after each click


@dataclass
class Step:
    """A prompt, and the candidate that was chosen from its masks.

    Attributes:
        points: all points so far.
        box: XYXY in pixels.
        mask_input: (256, 256) float32, the logits of the step before, which this one refines.
        chosen: index of the chosen candidate; None until there are candidates.
    """

    points: tuple[Point, ...]
    box: Box | None = None
    mask_input: NDArray[np.float32] | None = None
    chosen: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Returns the prompt as arguments of ``SamPredictor.predict``."""
        given: dict[str, Any] = {}
        if self.points:
            given["point_coords"] = [[x, y] for x, y, _ in self.points]
            given["point_labels"] = [label for _, _, label in self.points]
        if self.box is not None:
            given["box"] = list(self.box)
        if self.mask_input is not None:
            given["mask_input"] = self.mask_input
        return given


@dataclass(eq=False)
class Picture:
    """An image, and the size at which the page shows it.

    Attributes:
        name: name of the file.
        pixels: (H, W, 3) uint8 RGB.
        shown: the same, its longer side at most ``MAX_SHOWN`` pixels.
        key: digest of the pixels.
    """

    name: str
    pixels: Pixels
    shown: Pixels = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.shown = shrink(self.pixels)
        self.key = digest_image(self.pixels)

    @property
    def scale(self) -> float:
        """Displayed pixels per pixel of the image."""
        return self.shown.shape[1] / self.pixels.shape[1]

    def shrink_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Returns a mask (H, W) at the displayed size."""
        size = self.shown.shape[1], self.shown.shape[0]
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        return small.astype(bool)

    def draw(self, masks: list[NDArray[np.bool_]], step: Step | None = None) -> Pixels:
        """Returns the displayed image with masks of its size and a prompt drawn over it."""
        step = step or Step(())
        return draw_overlay(
            self.shown,
            masks,
            point_coords=[(x * self.scale, y * self.scale) for x, y, _ in step.points],
            point_labels=[label for _, _, label in step.points],
            prompt_box=None if step.box is None else np.array(step.box) * self.scale,
        )


class Session:
    """One open page.

    Attributes:
        lock: held while the rest is read or written, since clicks may come fast.
        folder: folder of the files to download.
        picture: the image, if there is one yet.
        steps: the prompts so far; the last one is current.
        corner: first corner of a box whose second is awaited.
        masks, scores, logits: the candidates of the last step, (3, H, W) bool, (3,) float32 and
            (3, 256, 256) float32; None until they are computed.
        records: everything in the image, in COCO RLE, if it was requested.
        numbers: index of the smallest record at each displayed pixel, -1 for none.
        inspecting: whether a click shows a record instead of adding a point.
        video: path of the video whose first frame the image is.
    """

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self.folder = folder
        self.inspecting = False
        self.open(None)

    def open(self, picture: Picture | None, video: Path | None = None) -> None:
        """Opens an image, or none, and forgets the previous one."""
        self.picture = picture
        self.video = video
        self.records: list[Record] = []
        self.numbers: NDArray[np.int32] | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets the prompts."""
        self.steps: list[Step] = []
        self.corner: tuple[float, float] | None = None
        self.forget_masks()

    def forget_masks(self) -> None:
        self.masks: NDArray[np.bool_] | None = None
        self.scores: NDArray[np.float32] | None = None
        self.logits: NDArray[np.float32] | None = None

    @property
    def is_new(self) -> bool:
        """Whether the page is as it was when it opened."""
        return self.picture is None and not self.inspecting

    def add(self, point: Point | None, box: Box | None, refine: bool) -> None:
        """Adds a point, or another box, to the prompt.

        Args:
            point: a point, or None.
            box: a box, or None.
            refine: whether to start from the logits of the chosen candidate, if there are any.
        """
        last = self.steps[-1] if self.steps else Step(())
        refined = None
        if refine and self.logits is not None and last.chosen is not None:
            refined = self.logits[last.chosen]
        points = last.points if point is None else (*last.points, point)
        self.steps.append(Step(points, last.box if box is None else box, refined))
        self.corner = None
        self.forget_masks()

    def undo(self) -> None:
        """Removes the first corner of a box, or else the last step."""
        if self.corner is not None:
            self.corner = None
        elif self.steps:
            self.steps.pop()
            self.forget_masks()

    def decode(self, predictor: Predictor, engine: Engine) -> None:
        """Lets the engine compute the candidates of the last step, unless they are known."""
        if not self.steps or self.masks is not None:
            return
        step = self.steps[-1]
        predict = partial(predictor.predict, **step.arguments())
        self.masks, self.scores, self.logits = engine.run(predict)
        if step.chosen is None:
            step.chosen = int(self.scores.argmax())

    def chosen_mask(self) -> NDArray[np.bool_] | None:
        """Returns the chosen mask, (H, W), or None."""
        if self.masks is None or not self.steps or self.steps[-1].chosen is None:
            return None
        return self.masks[self.steps[-1].chosen]

    def require_picture(self) -> Picture:
        """Returns the image, or raises a UserError if there is none."""
        if self.picture is None:
            raise UserError("there is no image yet: choose one first")
        return self.picture

    def require_mask(self) -> NDArray[np.bool_]:
        """Returns the chosen mask, (H, W), or raises a UserError if there is none."""
        mask = self.chosen_mask()
        if mask is None:
            raise UserError("there is no mask yet: click on an object in the image first")
        return mask

    def path(self, suffix: str) -> Path:
        """Returns the path of a file to download, named after the image."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = Path(self.require_picture().name).stem
        return self.folder / (re.sub(r"[^\w.-]+", "_", name)[:80] + suffix)

    def draw(self) -> Pixels | None:
        """Returns the displayed image with the chosen mask and the prompt over it."""
        if self.picture is None:
            return None
        mask = self.chosen_mask()
        masks = [] if mask is None else [self.picture.shrink_mask(mask)]
        step = self.steps[-1] if self.steps else Step(())
        if self.corner is not None:
            step = Step((*step.points, (*self.corner, 1)), step.box)
        return self.picture.draw(masks, step)


class Sessions:
    """All open pages, limited in number.

    Attributes:
        engine: encodes their images and decodes their prompts.

    Examples:
        >>> sessions = Sessions(Engine(TorchBackend(sam)), Path("files"))
        >>> session = sessions.get("a page's name")
        >>> session.open(Picture("dog.jpg", pixels))
        >>> session.add((320, 240, 1), None, refine=True)
        >>> session.decode(sessions.predictor(session.picture), sessions.engine)
    """

    def __init__(self, engine: Engine, folder: Path, max_sessions: int = MAX_SESSIONS) -> None:
        """Takes the engine and the limit.

        Args:
            engine: encodes and decodes.
            folder: folder with one subfolder per page for its files.
            max_sessions: maximum number of pages; beyond it the least recently used is forgotten.
        """
        self.engine = engine
        self.folder = folder
        self.max_sessions = max_sessions
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._uses: Counter[str] = Counter()  # running events per page
        self._closed: set[str] = set()  # pages that were closed during events
        self._encoded: set[str] = set()  # images of pages whose embeddings may be there
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def model(self) -> Any:
        """The engine's SAM in torch, on which the pipelines stand."""
        assert isinstance(self.engine.backend, TorchBackend)
        return self.engine.backend.model

    def get(self, name: str) -> Session:
        """Returns the page of that name, a new one if it is unknown or was forgotten."""
        with self._lock:
            session = self._sessions.pop(name, None)
            if session is None:
                # Not named after the page: what a browser sends must not become a path.
                folder = self.folder / hashlib.sha256(name.encode()).hexdigest()[:32]
                session = Session(folder)
            self._sessions[name] = session
            idle = [each for each in self._sessions if each != name and not self._uses[each]]
            for each in idle[: max(0, len(self._sessions) - self.max_sessions)]:
                self._forget(each)
        return session

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Keeps the state of a page while an event works on it, even if the page is closed.

        Files that the event writes are deleted with the page. A page without an image is not kept
        either, such as one that was closed before its turn in the queue.
        """
        with self._lock:
            self._uses[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._uses[name] -= 1
                if not self._uses[name]:
                    del self._uses[name]
                    session = self._sessions.get(name)
                    if name in self._closed or (session is not None and session.is_new):
                        self._closed.discard(name)
                        self._forget(name)

    def drop(self, name: str) -> None:
        """Frees the image, masks, files and embeddings of a page.

        At once, or when the last event that is :meth:`using` it has ended.
        """
        with self._lock:
            if self._uses[name]:
                self._closed.add(name)
            else:
                self._forget(name)

    def is_encoded(self, picture: Picture) -> bool:
        return picture.key in self.engine.cache

    def predictor(self, picture: Picture) -> Predictor:
        """Returns a predictor with the image set, encoding the image if nobody has done it yet.

        Raises:
            Unavailable, TimedOut: as :meth:`Engine.predictor`.
        """
        with self._lock:
            self._encoded.add(picture.key)
        return self.engine.predictor(picture.key, picture.pixels)

    def _forget(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is None:
            return
        shutil.rmtree(session.folder, ignore_errors=True)
        # Embeddings that no page shows, those of its earlier images among them.
        shown = {each.picture.key for each in self._sessions.values() if each.picture is not None}
        self.engine.cache.forget(self._encoded - shown)
        self._encoded &= shown


def read_picture(path: str | os.PathLike[str], name: str, engine: Engine) -> Picture:
    """Decodes a file that came from a browser; arguments and errors as `Engine.read_image`."""
    return Picture(name, engine.read_image(path, name))


def shrink(pixels: Pixels, long_side: int = MAX_SHOWN) -> Pixels:
    """Returns the image, resized if its longer side exceeds `long_side` pixels."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
