"""State of the open pages: an image and a prompt each, and the embeddings of the images.

Independent of gradio: a page is a name here. Masks come from the public API.
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
from ..predictor import open_embeddings
from ..records import Record

Pixels = NDArray[np.uint8]
Point = tuple[float, float, int]
"""X and Y in pixels of the image, and 1 for the object, 0 for the background."""
Box = tuple[float, float, float, float]

MAX_PIXELS = 25_000_000
MAX_BYTES = 32 * 2**20
MAX_SESSIONS = 64
MAX_EMBEDDINGS = 32  # of 4 MiB each
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
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(self.pixels.tobytes())
        self.key = digest.hexdigest()

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

    def decode(self, predictor: SamPredictor) -> None:
        """Computes the candidates of the last step, unless they are known."""
        if not self.steps or self.masks is not None:
            return
        step = self.steps[-1]
        self.masks, self.scores, self.logits = predictor.predict(**step.arguments())
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
    """All open pages, and the embeddings of their images, both limited in number.

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
        embeddings: Path | None = None,
    ) -> None:
        """Takes the model and the limits.

        Args:
            model: any SAM.
            folder: folder with one subfolder per page for its files.
            max_pixels: maximum number of pixels of an image.
            max_sessions: maximum number of pages; beyond it the least recently used is forgotten.
            max_embeddings: maximum number of embeddings in memory, likewise.
            embeddings: file or folder that ``mobile-sam embed`` wrote; its images are not encoded.

        Raises:
            UserError: as :func:`~mobile_sam_plugin.predictor.open_embeddings`.
        """
        self.model = model
        self._find_stored = None if embeddings is None else open_embeddings(embeddings, model)
        self.folder = folder
        self.max_pixels = max_pixels
        self.max_sessions = max_sessions
        self.max_embeddings = max_embeddings
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._predictors: OrderedDict[str, SamPredictor] = OrderedDict()
        self._uses: Counter[str] = Counter()  # running events per page
        self._closed: set[str] = set()  # pages that were closed during events
        self._lock = threading.Lock()
        self._encoding = threading.Lock()  # one at a time

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def embeddings(self) -> int:
        """Number of embeddings."""
        return len(self._predictors)

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
        return picture.key in self._predictors

    def predictor(self, picture: Picture) -> SamPredictor:
        """Returns a predictor with the image set, encoding the image if nobody has done it yet.

        Pages that show the same image share it: predicting changes nothing.
        """
        predictor = self._find(picture)  # does not wait for others' images
        if predictor is not None:
            return predictor
        with self._encoding:
            predictor = self._find(picture)
            if predictor is None:
                if self._find_stored is not None:
                    predictor = self._find_stored(picture.pixels)
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
        # Embeddings that no page shows, those of its earlier images among them.
        shown = {each.picture.key for each in self._sessions.values() if each.picture is not None}
        for key in self._predictors.keys() - shown:
            del self._predictors[key]


def read_picture(path: str | os.PathLike[str], name: str, max_pixels: int) -> Picture:
    """Decodes a file that came from a browser, which may hold anything.

    Args:
        path: path of the file.
        name: its name in messages.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        UserError: if it is not an image, damaged, too large or too thin.
    """
    with open_image(path, name) as opened:
        check_size(*opened.size, name, max_pixels)
        pixels = as_pixels(opened)
    input_size(pixels.shape[0], pixels.shape[1], 1024)  # refuses images that are too thin
    return Picture(name, pixels)


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raises a UserError if there are too many pixels."""
    if width * height > max_pixels:
        raise UserError(
            f"{name} is too large: it has {width:,} x {height:,} pixels, this page takes up to "
            f"{max_pixels:,}; make it smaller and try again"
        )


def shrink(pixels: Pixels, long_side: int = MAX_SHOWN) -> Pixels:
    """Returns the image, resized if its longer side exceeds `long_side` pixels."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
