"""Images with masks, from the formats that they come in."""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
from numpy.typing import NDArray
from PIL import ExifTags

from ..errors import UserError
from ..files import encode_image, write_file
from ..images import is_image_name, list_images, load_mask, open_image, opened_pixels
from ..records import encode_mask
from .readable import Items

_SCENES = 1000  # of the source "scenes"


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and masks of things in it.

    The masks of a file are made when they are asked for, and not kept: those of thousands of
    objects do not fit into memory at once. :meth:`take` makes some of them, ``masks`` all.

    Attributes:
        name: tells it from the others of its set.
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool, N at least 1, none of them empty. They may overlap, such as those of
            a thing and of its parts.
        empty: how many more masks it was given, which have no pixel and are left out.
    """

    name: str
    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    empty: int = 0

    @property
    def count(self) -> int:
        """N, how many masks there are."""
        return len(self.masks)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Some of the masks, (n, H, W)."""
        return self.masks[np.asarray(indices, dtype=np.int64)]

    def find_visible(self, rows: slice, columns: slice) -> NDArray[np.int64]:
        """The indices of the masks that have a pixel in a part of the image, in their order."""
        return np.flatnonzero(self.masks[:, rows, columns].any((1, 2)))

    def fingerprint(self) -> str:
        """A checksum of its pixels and masks, whatever it is called."""
        digest = hashlib.sha256(f"{self.image.shape} {self.count}".encode())
        digest.update(np.ascontiguousarray(self.image).data)
        for content in self._mask_contents():
            digest.update(content)
        return digest.hexdigest()

    def _mask_contents(self) -> Iterable[Any]:
        """Bytes that tell the masks."""
        return (np.packbits(mask) for mask in self.masks)


class _Labelled(AnnotatedImage):
    """An image of which each pixel belongs to one mask at most, known by its value."""

    def __init__(self, name: str, image: NDArray[np.uint8], values: NDArray[Any]) -> None:
        labels = np.unique(values)
        # The base is frozen.
        vars(self).update(name=name, image=image, _values=values, _labels=labels[labels != 0])

    _values: NDArray[Any]
    _labels: NDArray[Any]

    @property
    def masks(self) -> NDArray[np.bool_]:
        return self.take(range(self.count))

    @property
    def count(self) -> int:
        return len(self._labels)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        masks = np.empty((len(indices), *self._values.shape), dtype=bool)
        for mask, index in zip(masks, indices, strict=True):
            np.equal(self._values, self._labels[index], out=mask)
        return masks

    def find_visible(self, rows: slice, columns: slice) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(self._labels, np.unique(self._values[rows, columns])))

    def _mask_contents(self) -> Iterable[Any]:
        return (str(self._values.dtype).encode(), np.ascontiguousarray(self._values))


class _Encoded(AnnotatedImage):
    """An image with masks in COCO's RLE, compressed; those without a pixel are left out."""

    def __init__(
        self,
        name: str,
        image: NDArray[np.uint8],
        encoded: Sequence[Mapping[str, Any]],
        empty: int = 0,
    ) -> None:
        filled = [rle for rle in encoded if pycocotools.mask.area(rle)]
        empty += len(encoded) - len(filled)
        vars(self).update(name=name, image=image, empty=empty, _encoded=filled)

    _encoded: Sequence[Mapping[str, Any]]

    @property
    def masks(self) -> NDArray[np.bool_]:
        return self.take(range(self.count))

    @property
    def count(self) -> int:
        return len(self._encoded)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        masks = np.empty((len(indices), *self.image.shape[:2]), dtype=bool)
        for mask, index in zip(masks, indices, strict=True):
            mask[:] = pycocotools.mask.decode(self._encoded[index])
        return masks

    def find_visible(self, rows: slice, columns: slice) -> NDArray[np.int64]:
        window = np.zeros(self.image.shape[:2], dtype=np.uint8, order="F")
        window[rows, columns] = 1
        inside = pycocotools.mask.encode(window)
        common = (pycocotools.mask.merge([rle, inside], intersect=True) for rle in self._encoded)
        # One at a time, since of a list of more than 255 it fails.
        return np.flatnonzero([pycocotools.mask.area(rle) for rle in common])

    def _mask_contents(self) -> Iterable[Any]:
        return (bytes(rle["counts"]) for rle in self._encoded)


AnnotatedImages = Items[AnnotatedImage]
"""A set of images with masks, of which one is read at a time.

An item that cannot be read raises a ValueError or an OSError that names it.
"""


def open_annotated_images(
    source: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None
) -> AnnotatedImages:
    """Opens a set of images with masks; what it is, is found out from the source.

    =============================  ===========================================================
    ``scenes``                     synthetic scenes of 512 x 512 pixels, a thousand of seed 0;
                                   ``scenes:500`` is the first 500 of them, ``scenes:500:7`` is
                                   500 of seed 7. A folder of that name is ``./scenes``.
    a JSON file                    COCO's ``instances_*.json``: polygons or RLE, compressed or not.
                                   Regions of crowds are left out.
    a folder with ``sa_*.json``    SA-1B, at any depth: an image of the name that the JSON gives
                                   lies beside it.
    another folder                 images, at any depth, with PNG masks. Either ``NAME.jpg`` (or
                                   another format) with ``NAME.png``, whose values are 0 for no
                                   mask and else one value a mask. Or any image ``NAME.*`` with a
                                   folder ``NAME/`` of one PNG a mask, 0 outside: all that are
                                   called ``mask_*.png``, such as ``mobile-sam everything`` writes
                                   them, or all PNGs where none is.
    =============================  ===========================================================

    Images without a mask are left out, which a warning counts, and so are masks without a pixel,
    which :class:`AnnotatedImage` counts. A photograph that its EXIF
    data turn is taken as the masks want it: COCO and SA-1B as it is stored, unless the size in the
    JSON is that of the upright picture; PNG masks upright, as viewers and this package's command
    line show it, unless their size is that of the stored one. A PNG of one mask may also be a
    picture in colour or with transparency, see :func:`~mobile_sam_plugin.images.load_mask`.

    Args:
        source: see above.
        images: the folder of the images, where they are not beside the JSON file or the PNG masks.

    Returns:
        The set. Reading an item may raise what :data:`AnnotatedImages` says, and
        :class:`~.readable.Readable` helps.

    Raises:
        FileNotFoundError: there is no such source or folder of images.
        ValueError: the JSON file is none, or not COCO's; or there is no image with a mask.

    Example:
        >>> data = open_annotated_images("annotations/instances_val2017.json", images="val2017")
        >>> first = data[0]
        >>> first.name, first.image.shape, first.masks.shape
        ('000000397133.jpg', (427, 640, 3), (19, 427, 640))
    """
    if isinstance(source, str) and source.partition(":")[0] == "scenes":
        return _open_scenes(source)
    path = Path(source)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of images {str(folder)!r}")
    if path.is_file():
        return _Coco(path, folder or path.parent)
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no {str(path)!r}: a COCO JSON file, a folder or 'scenes' was expected"
        )
    records = sorted(path.rglob("sa_*.json"))
    if records:
        if folder is None:
            pictures = {image.with_suffix("") for image in path.rglob("sa_*.jpg")}
            alone = pictures.difference(record.with_suffix("") for record in records)
            _tell_left_out(path, Counter({"images without a json": len(alone)}))
        return _SegmentAnything(records, folder)
    return _PngMasks(path, folder or path)


def write_annotated_image(
    folder: str | os.PathLike[str], name: str, annotated: AnnotatedImage
) -> Path:
    """Writes an image and its masks as SA-1B does, for :func:`open_annotated_images` to read.

    Args:
        folder: where to.
        name: of the files, without suffix; it must begin with ``sa_``.
        annotated: what to write, the image as JPEG of quality 95.

    Returns:
        The JSON file, which is written last: where it is, the image is, and both are whole.

    Raises:
        ValueError: the name begins with something else, or JPEG cannot hold the image.
        OSError: it cannot be written.
    """
    if not name.startswith("sa_"):
        raise UserError(f"the name of a file of SA-1B begins with 'sa_', not {name!r}")
    height, width = annotated.image.shape[:2]
    jpeg = encode_image(".jpg", annotated.image, cv2.IMWRITE_JPEG_QUALITY, 95)
    record = {
        "image": {"file_name": f"{name}.jpg", "height": height, "width": width},
        "annotations": [
            {
                "id": index,
                "segmentation": encode_mask(mask),
                "bbox": cv2.boundingRect(mask.astype(np.uint8)),
                "area": int(np.count_nonzero(mask)),
            }
            for index, mask in enumerate(annotated.masks)
        ],
    }
    path = Path(folder) / f"{name}.json"
    write_file(path.with_suffix(".jpg"), jpeg)
    write_file(path, json.dumps(record).encode())
    return path


def _open_scenes(source: str) -> AnnotatedImages:
    from ..scenes.scenes import Scenes

    _, *numbers = source.split(":")
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise UserError(
            f"{source!r} must be 'scenes', 'scenes:COUNT' or 'scenes:COUNT:SEED', for example "
            "'scenes:500:7'"
        )
    count = int(numbers[0]) if numbers else _SCENES
    return Scenes(count, seed=int(numbers[1]) if len(numbers) > 1 else 0)


class _Coco:
    """COCO instances. Of the JSON, which may be large, it holds each image's part as text."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._folder = folder
        content = _load_json(path)
        left_out: Counter[str] = Counter()
        try:
            images = {image["id"]: image for image in content["images"]}
            left_out["images of an id that another has"] = len(content["images"]) - len(images)
            # Some write the same id as a number here and as text there.
            texts = {str(key): key for key in images}
            annotations: dict[Any, list[Any]] = {key: [] for key in images}
            for annotation in content["annotations"]:
                key = annotation["image_id"]
                key = key if key in images else texts.get(str(key))
                if annotation.get("iscrowd"):
                    left_out["regions of crowds"] += 1
                elif key is None:
                    left_out["annotations of images that it does not list"] += 1
                elif not annotation.get("segmentation"):
                    left_out["annotations without a segmentation"] += 1
                else:
                    annotations[key].append(
                        {name: annotation.get(name) for name in ("id", "segmentation")}
                    )
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{str(path)!r} is not COCO's instances JSON, which holds 'images' and "
                f"'annotations' with 'id' and 'image_id': {error!r}"
            ) from error
        left_out["images without a mask"] = sum(not found for found in annotations.values())
        _tell_left_out(path, left_out)
        self._items = [
            (image, json.dumps(annotations[key]).encode())
            for key, image in images.items()
            if annotations[key]
        ]
        if not self._items:
            raise UserError(f"no image in {str(path)!r} has an annotation")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> AnnotatedImage:
        image, annotations = self._items[index]
        return _read_annotated(self._path, self._folder, image, json.loads(annotations))


class _SegmentAnything:
    """SA-1B: a JSON file an image."""

    def __init__(self, records: Sequence[Path], folder: Path | None) -> None:
        self._records = records
        self._folder = folder

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> AnnotatedImage:
        path = self._records[index]
        content = _load_json(path)
        try:
            image, annotations = content["image"], content["annotations"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{str(path)!r} is not SA-1B's JSON, which holds 'image' and 'annotations': "
                f"{error!r}"
            ) from error
        return _read_annotated(path, self._folder or path.parent, image, annotations)


class _PngMasks:
    """Images with a PNG of all masks, or a folder of one PNG a mask."""

    def __init__(self, folder: Path, image_folder: Path) -> None:
        self._image_folder = image_folder
        self._items: list[tuple[Path, list[Path], bool]] = []
        # What `mobile-sam everything` writes beside masks is no news.
        paths = list_images(image_folder, recursive=True, beside=(".json", ".npy"))
        # NAME.png beside NAME.jpg holds masks.
        pictures = {path.with_suffix("") for path in paths if path.suffix.lower() != ".png"}
        values = {path.with_suffix(""): path for path in _list_pngs(folder.rglob("*"))}
        without = []
        of_masks: set[Path] = set()
        for path in paths:
            if path.suffix.lower() == ".png" and path.with_suffix("") in pictures:
                continue
            place = folder / path.relative_to(image_folder)
            # `mobile-sam everything` keeps the suffix where two images share a stem.
            for masks_folder in (place.with_suffix(""), place):
                if masks := _list_masks(masks_folder):
                    self._items.append((path, masks, False))
                    of_masks.add(masks_folder)
                    break
            else:
                mask = values.get(place.with_suffix(""))
                if mask is not None and mask != path:
                    self._items.append((path, [mask], True))
                else:
                    without.append(path)
        if not self._items:
            raise UserError(
                f"no image in {str(image_folder)!r} has masks in {str(folder)!r}: NAME.png, or a "
                "folder NAME/ of PNGs, or SA-1B's sa_*.json beside the images"
            )
        alone = sum(path.parent not in of_masks for path in without)
        _tell_left_out(image_folder, Counter({"images without masks": alone}))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> AnnotatedImage:
        path, mask_paths, valued = self._items[index]
        name = str(path.relative_to(self._image_folder))
        if valued:
            values = _read_values(mask_paths[0])
            item: AnnotatedImage = _Labelled(
                name, _read_image(path, values.shape, upright=True), values
            )
        else:
            encoded: list[Mapping[str, Any]] = []
            for mask_path in mask_paths:
                encoded.append(encode_mask(load_mask(mask_path)))
                if encoded[-1]["size"] != encoded[0]["size"]:
                    raise UserError(
                        f"the mask {str(mask_path)!r} is {_size(encoded[-1]['size'])}, but "
                        f"{str(mask_paths[0])!r} {_size(encoded[0]['size'])}"
                    )
            item = _Encoded(
                name, _read_image(path, tuple(encoded[0]["size"]), upright=True), encoded
            )
        return _with_masks(item, repr(str(mask_paths[0])))


def _list_pngs(paths: Iterable[Path]) -> list[Path]:
    """Those of paths that are PNGs, sorted, which puts NAME.png behind NAME.PNG."""
    pngs = (path for path in paths if path.suffix.lower() == ".png" and is_image_name(path.name))
    return sorted(path for path in pngs if path.is_file())


def _list_masks(folder: Path) -> list[Path]:
    """The PNGs of one mask each in a folder, if it is one."""
    pngs = _list_pngs(folder.iterdir()) if folder.is_dir() else []
    return [path for path in pngs if path.name.startswith("mask_")] or pngs


def _tell_left_out(source: Path, kinds: Counter[str]) -> None:
    """Warns of what of a source is left out, by kind."""
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common() if count)
    if told:
        warnings.warn(f"of {str(source)!r} are left out: {told}", stacklevel=4)


def _read_annotated(path: Path, folder: Path, image: Any, annotations: Any) -> AnnotatedImage:
    """Reads an image and decodes its annotations, both as COCO and SA-1B describe them."""
    try:
        name, height, width = image["file_name"], image["height"], image["width"]
        numbered = [
            (annotation.get("id", place), annotation.get("segmentation"))
            for place, annotation in enumerate(annotations)
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(path)!r}: an image must have 'file_name', 'height' and 'width', and a list of "
            f"annotations: {error!r}"
        ) from error
    sides = [side for side in (height, width) if isinstance(side, int | float) and side % 1 == 0]
    if not isinstance(name, str) or len(sides) < 2:
        raise UserError(f"{str(path)!r}: no image is {name!r}, {width!r} x {height!r} pixels")
    height, width = (int(side) for side in sides)  # some write 480.0
    where = f"{str(path)!r}, image {name!r}"
    pixels = _read_image(folder / name, (height, width), upright=False)
    encoded = []
    for key, segmentation in numbered:
        if not segmentation:  # a box alone
            continue
        try:
            encoded.append(_encode(segmentation, height, width))
        except ValueError as error:
            raise UserError(f"{where}, annotation {key}: {error}") from error
    return _with_masks(_Encoded(name, pixels, encoded, empty=len(numbered) - len(encoded)), where)


def _encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """The compressed RLE of polygons, RLE or compressed RLE, as COCO defines them.

    Raises:
        ValueError: it is none of these, or of another size.
    """
    if isinstance(segmentation, dict):
        return _encode_rle(segmentation, height, width)
    try:
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
        extent = np.array((width, height), dtype=np.float64)
        for polygon in polygons:
            if polygon.ndim != 1 or polygon.size < 6 or polygon.size % 2:
                raise UserError("three pairs XY were expected at least")
            # pycocotools walks along the edges, which takes forever where they lead far away.
            points = polygon.reshape(-1, 2)
            if not ((points >= -extent) & (points <= 2 * extent)).all():
                raise UserError(f"a corner lies far outside of {width} x {height} pixels")
    except (TypeError, ValueError) as error:
        raise UserError(f"a polygon cannot be read: {error}") from error
    pieces = pycocotools.mask.frPyObjects([p.tolist() for p in polygons], height, width)
    merged: dict[str, Any] = pycocotools.mask.merge(pieces)
    return merged


def _encode_rle(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise UserError(f"the RLE's size is {size}, but the image's {[height, width]}")
    try:
        if isinstance(counts, str):
            lengths = _run_lengths(counts)
        else:
            lengths = np.asarray(counts, dtype=np.int64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise UserError(f"the RLE's counts cannot be read: {error}") from error
    # pycocotools takes too few for granted, and leaves the other pixels to chance.
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise UserError(
            f"the RLE's counts cover {lengths.sum()} pixels instead of {height * width}"
        )
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii")}
    encoded: dict[str, Any] = pycocotools.mask.frPyObjects(
        {"size": [height, width], "counts": lengths.tolist()}, height, width
    )
    return encoded


def _run_lengths(counts: str) -> NDArray[np.int64]:
    """Undoes COCO's compression: 5 bits a character, differences to the last but one length."""
    codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((codes & 32) == 0)
    if not codes.size or (codes < 0).any() or (codes > 63).any() or last[-1:] != codes.size - 1:
        raise UserError(f"{counts[:20]!r} is not compressed RLE")
    first = np.concatenate([[0], last[:-1] + 1])
    digit = np.arange(codes.size) - np.repeat(first, last - first + 1)
    if digit.max() > 8:
        raise UserError(f"{counts[:20]!r} holds a number beyond all images")
    values = np.add.reduceat((codes & 31) << (5 * digit), first)
    negative = (codes[last] & 16) != 0
    lengths = values - (negative.astype(np.int64) << (5 * (last - first + 1)))
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is not JSON: {error}") from error


def _read_image(path: Path, shape: tuple[int, ...], upright: bool) -> NDArray[np.uint8]:
    """The pixels of a file, (H, W, 3) RGB, as they are stored or turned as its EXIF data say.

    Args:
        path: the file.
        shape: (H, W), which decides.
        upright: decides where both have that shape.

    Raises:
        ValueError: neither has that shape, or the file cannot be read.
    """
    with open_image(path, str(path)) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        stored = (image.height, image.width)
        turned = stored[::-1] if orientation in (5, 6, 7, 8) else stored
        if shape not in (stored, turned):
            raise UserError(
                f"the image {str(path)!r} is {_size(stored)}, not {_size(shape)} as its masks are"
            )
        if not (upright and shape == turned or shape != stored):
            image.getexif().pop(ExifTags.Base.Orientation, None)
        return opened_pixels(image)


def _read_values(path: Path) -> NDArray[Any]:
    """The (H, W) values of a PNG; of one with a palette its indices."""
    with open_image(path, str(path)) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16"):
            raise UserError(
                f"the mask {str(path)!r} must be grayscale or have a palette, but its mode is "
                f"{image.mode!r}"
            )
        return np.asarray(image)


def _with_masks(item: AnnotatedImage, where: str) -> AnnotatedImage:
    """The item; UserError if it has no mask."""
    if not item.count:
        raise UserError(f"{where}: no mask has a pixel")
    return item


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
