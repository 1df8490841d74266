"""Boxes of a COCO data set: its json as people's tools write it, and where its boxes lie."""

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

from ..errors import UserError
from .items import BoxPrompt, Images, Item, Listed, output_names, read_text, with_slashes
from .storage import Place, is_url, local_path

_LARGEST = 2**63 - 1  # of ids, as tables hold them

_TURNS: dict[int, Callable[[float, float, float, float], tuple[float, float]]] = {
    5: lambda x, y, width, height: (y, x),
    6: lambda x, y, width, height: (height - y, x),
    7: lambda x, y, width, height: (height - y, width - x),
    8: lambda x, y, width, height: (y, width - x),
}
"""By EXIF's orientation, where a point of the stored image of a size lies in the upright one."""


class CocoSource(Images):
    """The images of a COCO data set, in its order, with the boxes of its annotations."""

    def __init__(self, place: str, images: str | None) -> None:
        """Reads the json.

        Args:
            place: of the json, a path or URL.
            images: the folder of its images; that of the json if None.

        Raises:
            UserError: it is none, or it names images that are not below the folder, or ids twice.
        """
        folder = str(Place.of(place).parent()) or "." if images is None else images
        super().__init__("coco", folder if is_url(folder) else str(local_path(folder).resolve()))
        self._place = place
        try:
            content = json.loads(read_text(place))
            self._read(
                content["images"], content.get("annotations", []), content.get("categories", [])
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{place!r} is not COCO's instances JSON, which holds 'images' with 'id' and "
                f"'file_name', and 'annotations' with 'id', 'image_id' and 'bbox': {error!r}"
            ) from error

    def listing(self) -> Iterator[Listed]:
        names = output_names([*self._items])
        for index, (key, name) in enumerate(zip(self._items, names, strict=True)):
            _, image_id, boxes, size = self._items[key]
            described = [(box.id, self.categories[box.category_id], box.bbox) for box in boxes]
            prompts = hashlib.sha256(repr((size, described)).encode("utf-8", "surrogatepass"))
            yield Listed(index, key, name, image_id, prompts.hexdigest()[:16])

    def item(self, listed: Listed) -> Item:
        path, _, boxes, size = self._items[listed.key]
        return listed.at(path, boxes=tuple(boxes), size=size)

    def _read(self, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
        if not images:
            raise UserError(f"there is no image in {self._place!r}")
        image_ids = _Ids("image", [image["id"] for image in images])
        category_ids = _Ids("category", [category["id"] for category in categories])
        numbers = category_ids.numbers or [*range(1, 1 + len(categories))]
        names = [str(category["name"]) for category in categories]
        self.categories = dict(zip(numbers, names, strict=True))

        kept: list[tuple[int, Any]] = []  # the place of its image, and the annotation
        for annotation in annotations:
            place = image_ids.find(annotation["image_id"])
            if place is None:
                self.left_out["of images that are not listed"] += 1
            elif annotation.get("iscrowd"):
                self.left_out["of crowds"] += 1
            elif annotation.get("bbox") is None:
                self.left_out["without a bbox"] += 1
            else:
                kept.append((place, annotation))
        ids = [annotation.get("id") for _, annotation in kept]
        mask_ids = None if None in ids else _Ids("annotation", ids).numbers
        unknown: Counter[Any] = Counter()
        boxes: list[list[BoxPrompt]] = [[] for _ in images]
        for index, (place, annotation) in enumerate(kept):
            category = annotation.get("category_id", 1)
            found = category_ids.find(category)
            if found is None:
                unknown[category] += 1
            boxes[place].append(
                BoxPrompt(
                    ids[index],
                    None if mask_ids is None else mask_ids[index],
                    self._add_category(category) if found is None else numbers[found],
                    annotation["bbox"],
                )
            )
        if unknown:
            listed = ", ".join(sorted(map(str, unknown)))
            warnings.warn(
                f"{self._place!r} lists no category of {unknown.total()} of its boxes ({listed}): "
                "what stands there is taken for names",
                stacklevel=5,
            )
        keys = [self._find_key(image["file_name"]) for image in images]
        numbered: Sequence[int | None] = image_ids.numbers or [None] * len(keys)
        self._items = {
            key: (path, image_id, placed, _told_size(image))
            for (key, path), image_id, placed, image in zip(
                keys, numbered, boxes, images, strict=True
            )
        }
        if len(self._items) < len(keys):
            twice = Counter(key for key, _ in keys).most_common(1)[0][0]
            raise UserError(f"{twice!r} is listed twice in {self._place!r}")

    def _add_category(self, value: Any) -> int:
        """The number of a category that is used, but not listed; it gets its id for a name."""
        name = str(value)
        number = _as_number(_check_id("category", value))
        if number is None:
            named = {name: number for number, name in self.categories.items()}
            number = named.get(name, 1 + max(self.categories, default=0))
        self.categories.setdefault(number, name)
        return number

    def _find_key(self, file_name: Any) -> tuple[str, str]:
        """The key of an image, and its path or URL."""
        root = Place.of(self.root)
        name = str(file_name)
        name = with_slashes(name, root.join(name)).removeprefix(f"{self.root.rstrip('/')}/")
        key = posixpath.normpath(name)
        if posixpath.isabs(key) or key.startswith("../"):
            raise UserError(
                f"{self._place!r} names the image {name!r}, which is not below {self.root!r}: name "
                "the folder that all its images are in"
            )
        return key, root.join(name)


class _Ids:
    """The ids of one kind in a json: numbers or text, each compared with its own kind first.

    Attributes:
        numbers: the ids, if they can be had as numbers; None if not.
    """

    def __init__(self, kind: str, given: Sequence[Any]) -> None:
        self._kind = kind
        self._places: dict[int | str, int] = {}
        for place, value in enumerate(given):
            identity = _check_id(kind, value)
            if identity in self._places:
                raise UserError(f"the {kind} id {identity!r} is listed twice")
            self._places[identity] = place
        numbers = [number for number in map(_as_number, self._places) if number is not None]
        whole = len(set(numbers)) == len(self._places)
        self.numbers = numbers if whole else None

    def find(self, value: Any) -> int | None:
        """The place of what has an id; None if there is none."""
        identity = _check_id(self._kind, value)
        if identity in self._places:
            return self._places[identity]
        other = str(identity) if isinstance(identity, int) else _as_number(identity)
        return None if other is None else self._places.get(other)


def _check_id(kind: str, value: Any) -> int | str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"an id of COCO is a whole number or a text, not {value!r} of the {kind}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f"the {kind} id {value} is too large: {_LARGEST} is the most")
    return value


def _as_number(identity: int | str) -> int | None:
    if isinstance(identity, int):
        return identity
    digits = identity.strip()
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else None


def _told_size(image: dict[str, Any]) -> tuple[float, float] | None:
    """The (width, height) that a json tells of an image; None where it tells none."""
    width, height = image.get("width"), image.get("height")
    if not width or not height:
        return None
    size = float(width), float(height)
    if not (math.isfinite(sum(size)) and min(size) > 0):
        raise UserError(f"the image {image['file_name']!r} cannot be {width} x {height} pixels")
    return size


def place_boxes(
    boxes: Sequence[BoxPrompt],
    told: tuple[float, float] | None,
    size: tuple[int, int],
    orientation: Callable[[], int],
) -> tuple[list[BoxPrompt], NDArray[np.float32], list[dict[str, Any]]]:
    """Where the boxes of a json lie in the upright image.

    They are scaled where the json tells another size of the same aspect, and turned with the image
    where that is the aspect of the image as it is stored and EXIF turns it.

    Args:
        boxes: of an image.
        told: (width, height) by the json; that of the image if None.
        size: (height, width) of the upright image.
        orientation: EXIF's of the file; called where it matters.

    Returns:
        The boxes that are kept, the same as (N, 4) XYXY in pixels, and what is left out: of each
        its ``annotation``, ``bbox`` as text and the ``reason``.

    Raises:
        UserError: the two sizes do not go together; naming both.
    """
    height, width = size
    upright, across = (width, height), (height, width)
    told = told or upright
    stored, turn = upright, None
    if told != upright and (told == across or not _is_same_aspect(told, upright)):
        stored = across
        turn = _TURNS.get(orientation()) if _is_same_aspect(told, across) else None
        if turn is None:
            raise UserError(
                f"the json tells of {told[0]:g} x {told[1]:g} pixels, the image has {width} x "
                f"{height}: its boxes cannot be placed, since one is not the other scaled"
            )
    scale = stored[0] / told[0], stored[1] / told[1]
    kept, corners, left_out = [], [], []
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
            left_out.append({"annotation": box.id, "bbox": str(box.bbox)[:100], "reason": reason})
            continue
        kept.append(box)
        # What reaches far beyond the image would only lose precision.
        corners.append(np.clip(bounds, (-width, -height), (2 * width, 2 * height)).ravel())
    return kept, np.array(corners, np.float32).reshape(-1, 4), left_out


def _is_same_aspect(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one may be the other scaled, each side rounded to whole pixels."""
    scale = max(other) / max(size)
    return all(
        abs(side * scale - expected) <= max(1, scale)
        for side, expected in zip(size, other, strict=True)
    )
