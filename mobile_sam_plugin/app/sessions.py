"""What the open pages are about: a picture and a prompt each, and the embeddings of the pictures.

Free of gradio: a page is a name here, and the one thing that is computed is the public API's.
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
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import segment_anything
from numpy.typing import NDArray

from .. import SamPredictor
from ..drawing import draw_overlay
from ..errors import UserError
from ..images import open_image
from ..inputs import as_pixels, input_size
from ..records import Record

Pixels = NDArray[np.uint8]
Point = tuple[float, float, int]
"""X and Y in pixels of the picture, and 1 for the object, 0 for the background."""
Box = tuple[float, float, float, float]

MAX_PIXELS = 25_000_000
MAX_BYTES = 32 * 2**20
MAX_SESSIONS = 64
MAX_EMBEDDINGS = 32  # of 4 MiB each
MAX_SHOWN = 1280  # pixels; the long side of what is sent to the page after each click


@dataclass
class Step:
    """A prompt, and the candidate that was chosen of its masks.

    Attributes:
        points: all of them so far.
        box: XYXY in pixels.
        mask_input: (256, 256) float32, the logits that it refines: those of the step before.
        chosen: the index of a candidate; None until there are candidates.
    """

    points: tuple[Point, ...]
    box: Box | None = None
    mask_input: NDArray[np.float32] | None = None
    chosen: int | None = None

    def arguments(self) -> dict[str, Any]:
        """The prompt as ``SamPredictor.predict`` takes it."""
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
    """A picture and what is shown of it.

    Attributes:
        name: of its file.
        pixels: (H, W, 3) uint8 RGB.
        shown: the same, its long side no longer than ``MAX_SHOWN``.
        key: the same for equal pixels.
    """

    name: str
    pixels: Pixels
    shown: Pixels = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.shown = shrink(self.pixels)
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(self.pixels.tobytes())
        self.key = digest.hexdigest()

    @property
    def scale(self) -> float:
        """Pixels shown for a pixel of the picture."""
        return self.shown.shape[1] / self.pixels.shape[1]

    def shrink_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask (H, W) at the size that is shown."""
        size = self.shown.shape[1], self.shown.shape[0]
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        return small.astype(bool)

    def draw(self, masks: list[NDArray[np.bool_]], step: Step | None = None) -> Pixels:
        """What is shown, with masks of that size and a prompt over it."""
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
        lock: to be held while the rest is read or written, since clicks may come fast.
        folder: for the files that are downloaded.
        picture: what is segmented, if there is anything yet.
        steps: the prompts so far, the last one in force.
        corner: the first of a box's two.
        masks, scores, logits: the candidates of the last step, (3, H, W) bool, (3,) float32 and
            (3, 256, 256) float32, if they are computed already.
        records: everything in the picture, in COCO RLE, if it was asked for.
        numbers: what is shown of that: the index of the smallest record at each pixel, else -1.
        inspecting: whether a click asks for a record rather than for a mask.
        video: the path of the video whose first frame the picture is.
    """

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self.folder = folder
        self.inspecting = False
        self.open(None)

    def open(self, picture: Picture | None, video: Path | None = None) -> None:
        """Begins with a picture, or with none, and forgets the one before."""
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
        """Whether it is as one that has just been opened."""
        return self.picture is None and not self.inspecting

    def add(self, point: Point | None, box: Box | None, refine: bool) -> None:
        """Adds a point, or another box, to the prompt.

        Args:
            point, box: one of them.
            refine: go on from the logits of the candidate that is chosen, if there are any.
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
        """Takes back the first corner of a box, or else the last step."""
        if self.corner is not None:
            self.corner = None
        elif self.steps:
            self.steps.pop()
            self.forget_masks()

    def decode(self, predictor: SamPredictor) -> None:
        """Computes the candidates of the last step, where they are not known yet."""
        if not self.steps or self.masks is not None:
            return
        step = self.steps[-1]
        self.masks, self.scores, self.logits = predictor.predict(**step.arguments())
        if step.chosen is None:
            step.chosen = int(self.scores.argmax())

    def chosen_mask(self) -> NDArray[np.bool_] | None:
        """(H, W), or None where nothing is chosen."""
        if self.masks is None or not self.steps or self.steps[-1].chosen is None:
            return None
        return self.masks[self.steps[-1].chosen]

    def require_picture(self) -> Picture:
        """The picture, or a ValueError where there is none."""
        if self.picture is None:
            raise UserError("there is no picture yet: choose one first")
        return self.picture

    def require_mask(self) -> NDArray[np.bool_]:
        """(H, W), or a ValueError where there is none."""
        mask = self.chosen_mask()
        if mask is None:
            raise UserError("there is no mask yet: click on an object in the picture first")
        return mask

    def path(self, suffix: str) -> Path:
        """Of a file to download, named after the picture."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = Path(self.require_picture().name).stem
        return self.folder / (re.sub(r"[^\w.-]+", "_", name)[:80] + suffix)

    def draw(self) -> Pixels | None:
        """The picture with the chosen mask and the prompt over it, as it is shown."""
        if self.picture is None:
            return None
        mask = self.chosen_mask()
        masks = [] if mask is None else [self.picture.shrink_mask(mask)]
        step = self.steps[-1] if self.steps else Step(())
        if self.corner is not None:
            step = Step((*step.points, (*self.corner, 1)), step.box)
        return self.picture.draw(masks, step)


class Sessions:
    """All open pages, and the embeddings of their pictures, both bounded in number.

    Example:
        >>> sessions = Sessions(sam, Path("files"))
        >>> session = sessions.get("a page's name")
        >>> session.open(Picture("dog.jpg", pixels))
        >>> session.add((320, 240, 1), None, refine=True)
        >>> session.decode(sessions.predictor(session.picture))
    """

    def __init__(
        self,
        model: segment_anything.modeling.Sam,
        folder: Path,
        max_pixels: int = MAX_PIXELS,
        max_sessions: int = MAX_SESSIONS,
        max_embeddings: int = MAX_EMBEDDINGS,
    ) -> None:
        """Takes the model and the limits.

        Args:
            model: any SAM.
            folder: where a page's files go, in a folder of its own.
            max_pixels: of a picture.
            max_sessions: of so many pages, the least lately used one is forgotten for another.
            max_embeddings: likewise.
        """
        self.model = model
        self.folder = folder
        self.max_pixels = max_pixels
        self.max_sessions = max_sessions
        self.max_embeddings = max_embeddings
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._predictors: OrderedDict[str, SamPredictor] = OrderedDict()
        self._uses: Counter[str] = Counter()  # of pages, by events that are under way
        self._closed: set[str] = set()  # pages that were closed while there were such
        self._lock = threading.Lock()
        self._encoding = threading.Lock()  # one at a time

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def embeddings(self) -> int:
        """How many there are."""
        return len(self._predictors)

    def get(self, name: str) -> Session:
        """The page of that name; a new one where there is none yet, or where it was forgotten."""
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
        """Holds what a page has for as long as something works on it, even if the page is closed.

        Whatever it writes goes with the page: nothing is left behind by work that ends later. Nor
        is a page kept that holds no picture, such as one that was closed before its turn came.
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
        """Frees what a page holds: its picture, masks and files, and its pictures' embeddings.

        At once, or when the last that is :meth:`using` it has ended.
        """
        with self._lock:
            if self._uses[name]:
                self._closed.add(name)
            else:
                self._forget(name)

    def is_encoded(self, picture: Picture) -> bool:
        return picture.key in self._predictors

    def predictor(self, picture: Picture) -> SamPredictor:
        """A predictor with the picture set, which encodes it where that is not done yet.

        It may serve several pages at once that show the same picture: predicting changes nothing.
        """
        predictor = self._find(picture)  # does not wait for others' pictures
        if predictor is not None:
            return predictor
        with self._encoding:
            predictor = self._find(picture)
            if predictor is None:
                predictor = SamPredictor(self.model)
                predictor.set_image(picture.pixels)
                with self._lock:
                    self._predictors[picture.key] = predictor
                    while len(self._predictors) > self.max_embeddings:
                        self._predictors.popitem(last=False)
        return predictor

    def _find(self, picture: Picture) -> SamPredictor | None:
        with self._lock:
            if picture.key in self._predictors:
                self._predictors.move_to_end(picture.key)
            return self._predictors.get(picture.key)

    def _forget(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is None:
            return
        shutil.rmtree(session.folder, ignore_errors=True)
        # Those of its earlier pictures, too, for which all that no page shows are taken.
        shown = {each.picture.key for each in self._sessions.values() if each.picture is not None}
        for key in self._predictors.keys() - shown:
            del self._predictors[key]


def read_picture(path: str | os.PathLike[str], name: str, max_pixels: int) -> Picture:
    """Decodes a file that came from a browser, which may hold anything.

    Args:
        path: of the file.
        name: what to call it in messages.
        max_pixels: more are refused before they are decoded.

    Raises:
        UserError: it is no picture, damaged, too large or too thin.
    """
    with open_image(path, name) as opened:
        check_size(*opened.size, name, max_pixels)
        pixels = as_pixels(opened)
    input_size(pixels.shape[0], pixels.shape[1], 1024)  # refuses pictures that are too thin
    return Picture(name, pixels)


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Refuses what has too many pixels, with a UserError."""
    if width * height > max_pixels:
        raise UserError(
            f"{name} is too large: it has {width:,} x {height:,} pixels, this page takes up to "
            f"{max_pixels:,}; make it smaller and try again"
        )


def shrink(pixels: Pixels, long_side: int = MAX_SHOWN) -> Pixels:
    """The picture itself, or a smaller one if its long side is longer than that."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
