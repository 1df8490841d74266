"""Boxes of a COCO data set: reads its JSON, and converts boxes to pixels of the image."""

import hashlib
import json
import math
import posixpath
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ..errors import UserError
from .items import (
    BoxPrompt,
    Item,
    Listed,
    Source,
    output_names,
    read_text,
    refuse_duplicates,
    with_slashes,
)
from .storage import Location, is_url, local_path

_LARGEST_ID = 2**63 - 1  # that a table of Parquet holds

_TURNS: dict[int, Callable[[float, float, float, float], tuple[float, float]]] = {
    5: lambda x, y, width, height: (y, x),
    6: lambda x, y, width, height: (height - y, x),
    7: lambda x, y, width, height: (height - y, width - x),
    8: lambda x, y, width, height: (y, width - x),
}
"""EXIF orientation to a function that converts a point of the stored image to the upright one."""


class CocoSource(Source):
    """The images of a COCO data set, in its order, with the boxes of its annotations."""

    def __init__(self, location: str, images: str | None) -> None:
        """Reads the JSON.

        Args:
            location: path or URL of the JSON.
            images: the folder of the images; that of the JSON if None.

        Raises:
            UserError: if it is not a COCO data set, if images are not below the folder, or if an
                id or image is listed twice.
        """
        folder = str(Location.of(location).parent()) or "." if images is None else images
        super().__init__("coco", folder if is_url(folder) else str(local_path(folder).resolve()))
        self._location = location
        try:
            content = json.loads(read_text(location))
            self._read(
                content["images"], content.get("annotations", []), content.get("categories", [])
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{location!r} is not COCO's instances JSON, which holds 'images' with 'id' and "
                f"'file_name', and 'annotations' with 'id', 'image_id' and 'bbox': {error!r}"
            ) from error

    @override
    def listing(self) -> Iterator[Listed]:
        names = output_names([*self._items])
        for index, (key, name) in enumerate(zip(self._items, names, strict=True)):
            _, image_id, boxes, size = self._items[key]
            described = [(box.id, self.categories[box.category_id], box.bbox) for box in boxes]
            digest = hashlib.sha256(repr((size, described)).encode("utf-8", "surrogatepass"))
            yield Listed(index, key, name, image_id, digest.hexdigest()[:16])

    @override
    def item(self, listed: Listed) -> Item:
        path, _, boxes, size = self._items[listed.key]
        return listed.at(path, boxes=tuple(boxes), size=size)

    def _read(self, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
        if not images:
            raise UserError(f"there is no image in {self._location!r}")
        where = repr(self._location)
        image_ids = _Ids("image", [image["id"] for image in images], where)
        category_ids = _Ids("category", [category["id"] for category in categories], where)
        numbers = category_ids.numbers or [*range(1, 1 + len(categories))]
        names = [str(category["name"]) for category in categories]
        self.categories = dict(zip(numbers, names, strict=True))

        kept: list[tuple[int, Any]] = []  # index of the image, annotation
        for annotation in annotations:
            index = image_ids.find(annotation["image_id"])
            if index is None:
                self.skipped["of images that are not listed"] += 1
            elif annotation.get("iscrowd"):
                self.skipped["of crowds"] += 1
            elif annotation.get("bbox") is None:
                self.skipped["without a bbox"] += 1
            else:
                kept.append((index, annotation))
        ids = [annotation.get("id") for _, annotation in kept]
        mask_ids = None if None in ids else _Ids("annotation", ids, where).numbers
        unknown: Counter[Any] = Counter()
        boxes: list[list[BoxPrompt]] = [[] for _ in images]
        for number, (index, annotation) in enumerate(kept):
            category = annotation.get("category_id", 1)
            found = category_ids.find(category)
            if found is None:
                unknown[category] += 1
            boxes[index].append(
                BoxPrompt(
                    ids[number],
                    None if mask_ids is None else mask_ids[number],
                    self._add_category(category) if found is None else numbers[found],
                    annotation["bbox"],
                )
            )
        if unknown:
            listed = ", ".join(sorted(map(str, unknown)))
            warnings.warn(
                f"{self._location!r} lists no category for {unknown.total()} of its boxes: their "
                f"category ids are used as names ({listed})",
                stacklevel=5,
            )
        keys = [self._find_key(image["file_name"]) for image in images]
        numbered: Sequence[int | None] = image_ids.numbers or [None] * len(keys)
        self._items = {
            key: (path, image_id, prompts, _declared_size(image))
            for (key, path), image_id, prompts, image in zip(
                keys, numbered, boxes, images, strict=True
            )
        }
        if len(self._items) < len(keys):
            refuse_duplicates("image", [key for key, _ in keys], repr(self._location))

    def _add_category(self, value: Any) -> int:
        """Numbers a category that is used but not listed, and names it after its id."""
        name = str(value)
        number = _as_number(_check_id("category", value))
        if number is None:
            named = {name: number for number, name in self.categories.items()}
            number = named.get(name, 1 + max(self.categories, default=0))
        self.categories.setdefault(number, name)
        return number

    def _find_key(self, file_name: Any) -> tuple[str, str]:
        """Returns the key of an image, and its path or URL."""
        root = Location.of(self.root)
        name = str(file_name)
        name = with_slashes(name, root.join(name)).removeprefix(f"{self.root.rstrip('/')}/")
        key = posixpath.normpath(name)
        if posixpath.isabs(key) or key.startswith("../"):
            raise UserError(
                f"{self._location!r} lists the image {name!r}, which is not below {self.root!r}: "
                "give the folder that holds all images as --images (images=)"
            )
        return key, root.join(name)


class _Ids:
    """The ids of one kind in a JSON: numbers or text, each compared with its own type first.

    Attributes:
        numbers: the ids as numbers; None if not all of them can be read as different numbers.
    """

    def __init__(self, kind: str, given: Sequence[Any], where: str) -> None:
        self._kind = kind
        identities = [_check_id(kind, value) for value in given]
        refuse_duplicates(f"{kind} id", identities, where)
        self._indices = {identity: index for index, identity in enumerate(identities)}
        numbers = [number for number in map(_as_number, identities) if number is not None]
        self.numbers = numbers if len(set(numbers)) == len(identities) else None

    def find(self, value: Any) -> int | None:
        """Returns the index of an id among the given ones; None if it is not there."""
        identity = _check_id(self._kind, value)
        if identity in self._indices:
            return self._indices[identity]
        other = str(identity) if isinstance(identity, int) else _as_number(identity)
        return None if other is None else self._indices.get(other)


def _check_id(kind: str, value: Any) -> int | str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"the {kind} id must be a whole number or a text, not {value!r}")
    if isinstance(value, int) and abs(value) > _LARGEST_ID:
        raise UserError(f"the {kind} id {value} is too large: the maximum is {_LARGEST_ID}")
    return value


def _as_number(identity: int | str) -> int | None:
    if isinstance(identity, int):
        return identity
    digits = identity.strip()
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else None


def _declared_size(image: dict[str, Any]) -> tuple[float, float] | None:
    """Returns an image's (width, height) by the JSON; None if it has none."""
    width, height = image.get("width"), image.get("height")
    if not width or not height:
        return None
    size = float(width), float(height)
    if not (math.isfinite(sum(size)) and min(size) > 0):
        raise UserError(f"the image {image['file_name']!r} cannot be {width} x {height} pixels")
    return size


def place_boxes(
    boxes: Sequence[BoxPrompt],
    declared: tuple[float, float] | None,
    size: tuple[int, int],
    orientation: Callable[[], int],
) -> tuple[list[BoxPrompt], NDArray[np.float32], list[dict[str, Any]]]:
    """Converts the boxes of a COCO data set to pixels of the upright image.

    If the JSON gives another size with the same aspect ratio, the boxes are scaled. If that is the
    aspect ratio of the stored image, before EXIF turns it, they are turned with the image.

    Args:
        boxes: of an image.
        declared: (width, height) by the JSON; the image's size if None.
        size: (height, width) of the upright image.
        orientation: returns the file's EXIF orientation; called only if needed.

    Returns:
        The boxes that can be used; the same as (N, 4) float32 XYXY in pixels; and the others, each
        with its ``annotation``, its ``bbox`` as text and the ``reason``.

    Raises:
        UserError: if neither size is the other scaled.
    """
    height, width = size
    upright, across = (width, height), (height, width)
    declared = declared or upright
    stored, turn = upright, None
    if declared != upright and (declared == across or not _is_same_aspect(declared, upright)):
        stored = across
        turn = _TURNS.get(orientation()) if _is_same_aspect(declared, across) else None
        if turn is None:
            raise UserError(
                f"the JSON gives {declared[0]:g} x {declared[1]:g} pixels, the image has {width} x "
                f"{height}: its boxes cannot be placed, since neither size is the other scaled"
            )
    scale = stored[0] / declared[0], stored[1] / declared[1]
    kept, corners, skipped = [], [], []
    for box in boxes:
        reason, bounds = "", np.zeros((2, 2))
        try:
            x, y, box_width, box_height = map(float, box.bbox)
            bounds = np.array([[x, y], [x + box_width, y + box_height]]) * scale
            if turn is not None:
                bounds = np.sort([turn(x, y, *stored) for x, y in bounds], axis=0)
        except (OverflowError, TypeError, ValueError):
            reason = "not four numbers"
        if not np.isfinite(bounds).all():
            reason = "not finite"
        elif not reason and (bounds[1] <= bounds[0]).any():
            reason = "without area"
        elif not reason and ((bounds[1] <= 0).any() or (bounds[0] >= (width, height)).any()):
            reason = "outside of the image"
        if reason:
            skipped.append({"annotation": box.id, "bbox": str(box.bbox)[:100], "reason": reason})
            continue
        kept.append(box)
        # Coordinates far beyond the image would only lose precision.
        corners.append(np.clip(bounds, (-width, -height), (2 * width, 2 * height)).ravel())
    return kept, np.array(corners, np.float32).reshape(-1, 4), skipped


def _is_same_aspect(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Returns whether one may be the other scaled, each side rounded to whole pixels."""
    scale = max(other) / max(size)
    return all(
        abs(side * scale - expected) <= max(1, scale)
        for side, expected in zip(size, other, strict=True)
    )
