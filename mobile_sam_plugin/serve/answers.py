"""From a request on an image to its answer, by the workers of the engine."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from ..coco import coco_box
from ..engine import Deadline, Engine, Prompt, decode_prompts, digest_image
from ..engine.backends import Pixels, Predictor
from ..everything import drop_empty
from ..files import encode_image
from ..polygons import Losses
from ..records import Rle, decode_mask, encode_mask
from . import schemas
from .telemetry import Telemetry

Result = TypeVar("Result")


class NotFound(LookupError):
    """There is no such image here."""


@dataclass(frozen=True)
class Opened:
    """An image of a request.

    Attributes:
        key: its digest.
        pixels: (H, W, 3) uint8 RGB; None where only its digest was given.
    """

    key: str
    pixels: Pixels | None


@dataclass(frozen=True)
class _NotEncoded:
    key: str
    pixels: Pixels


class Answers:
    """Computes answers on an engine.

    Attributes:
        engine: does the work.
        root: folder of the images that requests name by their path; None admits none.
        telemetry: counts and times.
    """

    def __init__(self, engine: Engine, root: Path | None, telemetry: Telemetry) -> None:
        self.engine = engine
        self.root = None if root is None else root.resolve()
        self.telemetry = telemetry

    async def on_image(
        self,
        open_image: Callable[[], Opened],
        work: Callable[[str, Predictor], Result],
        deadline: Deadline,
    ) -> Result:
        """Does some work on an image, which is encoded first if nobody has done it yet.

        Args:
            open_image: returns the image; called by a worker.
            work: called by a worker with the digest and a predictor with the image set.
            deadline: of the request.

        Raises:
            NotFound: if the image is known by its digest alone, and not here any more.
            Unavailable, TimedOut: as ``Engine.run``.
        """

        def begin() -> Result | _NotEncoded:
            opened = open_image()
            predictor = self.engine.cache.find(opened.key)
            if predictor is not None:
                return work(opened.key, predictor)
            if opened.pixels is None:
                raise NotFound(f"the image {opened.key[:12]} is not here: send it again")
            return _NotEncoded(opened.key, opened.pixels)

        first = await self.engine.decoders.submit(begin).wait(deadline)
        if not isinstance(first, _NotEncoded):
            return first
        with self.telemetry.timing("encode"):
            job = self.engine.submit_encoding(first.key, first.pixels)
            predictor = await job.wait(deadline)
        return await self.engine.decoders.submit(partial(work, first.key, predictor)).wait(deadline)

    def open(
        self, reference: schemas.ByDigest | schemas.ByPath | None, upload: BinaryIO | None
    ) -> Opened:
        """Opens the image of a request, which is uploaded or named.

        Raises:
            NotFound: if there is no such file below the root.
            UserError: as ``Engine.read_image``.
        """
        if isinstance(reference, schemas.ByDigest):
            return Opened(reference.sha256, None)
        if isinstance(reference, schemas.ByPath):
            path = self.find_path(reference.path)
            return self.read(path, path.name)
        assert upload is not None
        return self.read(upload, "the image")

    def read(self, file: BinaryIO | Path, name: str) -> Opened:
        """Decodes an image; arguments and errors as ``Engine.read_image``."""
        pixels = self.engine.read_image(file, name)
        return Opened(digest_image(pixels), pixels)

    def find_path(self, name: str) -> Path:
        """Returns the path of an image below the root.

        Raises:
            NotFound: if there is none: the same whether a path leads elsewhere or nowhere.
        """
        missing = NotFound(f"there is no file {name!r} of at most the limit's size below the root")
        if self.root is None:
            raise NotFound("this server has no --root, below which paths would lie: send the image")
        try:
            path = (self.root / name).resolve()  # links followed
            known = path.is_relative_to(self.root) and path.is_file()
            if known and path.stat().st_size <= self.engine.limits.max_bytes:
                return path
        except (OSError, ValueError):  # too long, a NUL, a loop of links
            raise missing from None
        raise missing

    def predict(
        self, request: schemas.PredictRequest, deadline: Deadline, key: str, predictor: Predictor
    ) -> bytes:
        """Returns a :class:`~.schemas.PredictResponse` as JSON."""
        prompts = [as_prompt(each) for each in request.prompts]
        masks: list[list[dict[str, Any]]] = [[] for _ in prompts]
        for index, candidates in self.decode(predictor, prompts, deadline):
            for mask, score in candidates:
                masks[index].append(describe(mask, score, request.format))
        return as_json({"image": about(key, predictor), "masks": masks})

    def decode(self, predictor: Predictor, prompts: list[Prompt], deadline: Deadline) -> Any:
        """Yields the index of a prompt, and the masks (H, W) bool and scores of its candidates."""
        backend = self.engine.backend
        decoded = decode_prompts(backend, predictor, prompts, deadline.check)
        while True:
            with self.telemetry.timing("decode"):
                found = next(decoded, None)
            if found is None:
                return
            index, candidates = found
            upscale = partial(predictor.upscaler.binary_mask, mask_threshold=backend.mask_threshold)
            yield index, [(upscale(logits), score) for logits, score in candidates]

    def everything(
        self,
        request: schemas.EverythingRequest,
        deadline: Deadline,
        key: str,
        predictor: Predictor,
    ) -> bytes:
        """Returns an :class:`~.schemas.EverythingResponse` as JSON."""
        options = request.model_dump(exclude={"image", "format"}) | {"points_per_batch": 16}
        with self.telemetry.timing("everything"):
            generator = self.engine.backend.generator(output_mode="coco_rle", **options)
            found = generator.generate(None, lambda done, total: deadline.check(), predictor)
            records = drop_empty(found)
        masks = [
            describe(record["segmentation"], record["predicted_iou"], request.format)
            | {"stability_score": record["stability_score"]}
            for record in records
        ]
        return as_json({"image": about(key, predictor), "masks": masks})

    def embed(self, key: str, predictor: Predictor) -> tuple[bytes, dict[str, str]]:
        """Returns the embedding as a ``.npy`` file, and headers that describe the image."""
        npy = io.BytesIO()
        np.save(npy, self.engine.backend.features(predictor))
        sizes = {"original": predictor.original_size, "input": predictor.input_size}
        headers = {f"x-{name}-size": "{},{}".format(*size) for name, size in sizes.items()}
        return npy.getvalue(), {"x-image-sha256": key, **headers}


def as_prompt(prompt: schemas.Prompt) -> Prompt:
    """Returns a prompt as the engine takes it.

    Raises:
        UserError: if its mask is damaged.
    """
    mask = None if prompt.mask is None else prompt.mask.expand()
    return Prompt(prompt.points, prompt.labels, prompt.box, mask, prompt.multimask)


def about(key: str, predictor: Predictor) -> dict[str, Any]:
    """Returns a :class:`~.schemas.ImageInfo`."""
    height, width = predictor.original_size
    return {"sha256": key, "width": int(width), "height": int(height)}


def describe(mask: Rle | NDArray[np.bool_], score: float, form: str) -> dict[str, Any]:
    """Returns a :class:`~.schemas.Mask`."""
    rle = encode_mask(mask) if isinstance(mask, np.ndarray) else mask
    segmentation: Any = rle
    if form != "rle":
        pixels = mask if isinstance(mask, np.ndarray) else decode_mask({"segmentation": rle})
        if form == "polygons":
            segmentation = Losses().coco_polygons(pixels)
        else:
            png = encode_image(".png", pixels.astype(np.uint8) * 255)
            segmentation = base64.b64encode(png).decode("ascii")
    return {
        "segmentation": segmentation,
        "area": int(pycocotools.mask.area(rle)),
        "bbox": coco_box(rle),
        "predicted_iou": score,
    }


def as_json(content: Any) -> bytes:
    """Returns JSON, without NaN and the like, which is none."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
