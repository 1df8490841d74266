"""Images with masks, from the formats that they come in."""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pycocotools.mask
from numpy.typing import NDArray
from PIL import ExifTags, ImageOps

from ..errors import UserError
from ..inputs import list_images, open_image
from ..results import encode_mask, write_file

_SCENES = 1000  # of the source "scenes"


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and masks of things in it.

    Attributes:
        name: tells it from the others of its set.
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool, N at least 1, none of them empty. They may overlap, such as those of
            a thing and of its parts.
    """

    name: str
    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]


class AnnotatedImages(Protocol):
    """A set of images with masks, of which one is read at a time.

    An item that cannot be read raises a ValueError or an OSError that names it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AnnotatedImage: ...


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

    Images without a mask are left out, and so are masks without a pixel. A photograph that its EXIF
    data turn is taken as the masks want it: COCO and SA-1B as it is stored, unless the size in the
    JSON is that of the upright picture; PNG masks upright, as viewers and this package's command
    line show it, unless their size is that of the stored one.

    Args:
        source: see above.
        images: the folder of the images, where they are not beside the JSON file or the PNG masks.

    Returns:
        The set. Reading an item may raise what :class:`AnnotatedImages` says, and
        :class:`Readable` helps.

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
        return _SegmentAnything(records, folder)
    return _PngMasks(path, folder or path)


class Readable:
    """The readable items of a set: in place of a broken one comes the next that is not broken.

    It warns of each broken item once, also where worker processes share it, and counts them.

    Args:
        images: the set.
        strict: raise the error of a broken item instead.

    Example:
        >>> data = Readable(open_annotated_images("photographs"))
        >>> for index in range(len(data)):
        ...     train_on(data[index])
        >>> data.skipped
        2
    """

    def __init__(self, images: AnnotatedImages, *, strict: bool = False) -> None:
        self._images = images
        self._strict = strict
        self._broken = RawArray("b", len(images))

    @property
    def skipped(self) -> int:
        """How many items have turned out to be broken, in all processes."""
        return sum(self._broken)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Reads an item.

        Raises:
            ValueError, OSError: the item is broken and this is strict, or all items are broken.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"there is no item {index} among {count}")
        reason: Exception | None = None
        for candidate in range(index % count, index % count + count):
            place = candidate % count
            if self._broken[place]:
                continue
            try:
                return self._images[place]
            except (ValueError, OSError) as error:
                if self._strict:
                    raise
                reason = error
                self._broken[place] = 1
                warnings.warn(
                    f"skipped item {place} of {count} ({self.skipped} skipped so far): {error}",
                    stacklevel=2,
                )
        raise UserError(f"none of the {count} items can be read") from reason


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
        ValueError: the name begins with something else.
        OSError: it cannot be written.
    """
    if not name.startswith("sa_"):
        raise UserError(f"the name of a file of SA-1B begins with 'sa_', not {name!r}")
    height, width = annotated.image.shape[:2]
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    jpeg = cv2.imencode(".jpg", annotated.image[..., ::-1], quality)[1]
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
    write_file(path.with_suffix(".jpg"), bytes(jpeg))
    write_file(path, json.dumps(record).encode())
    return path


def _open_scenes(source: str) -> AnnotatedImages:
    from .scenes import Scenes

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
        try:
            images = {image["id"]: image for image in content["images"]}
            annotations: dict[Any, list[Any]] = {key: [] for key in images}
            astray = 0
            for annotation in content["annotations"]:
                if annotation.get("iscrowd"):
                    continue
                if annotation["image_id"] in annotations:
                    annotations[annotation["image_id"]].append(
                        {key: annotation.get(key) for key in ("id", "segmentation")}
                    )
                else:
                    astray += 1
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{str(path)!r} is not COCO's instances JSON, which holds 'images' and "
                f"'annotations' with 'id' and 'image_id': {error!r}"
            ) from error
        if astray:
            warnings.warn(
                f"{str(path)!r} holds {astray} annotations of images that it does not list; they "
                "are left out",
                stacklevel=3,
            )
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
        paths = list_images(image_folder, recursive=True)
        # NAME.png beside NAME.jpg holds masks.
        pictures = {path.with_suffix("") for path in paths if path.suffix.lower() != ".png"}
        for path in paths:
            if path.suffix.lower() == ".png" and path.with_suffix("") in pictures:
                continue
            place = folder / path.relative_to(image_folder)
            # `mobile-sam everything` keeps the suffix where two images share a stem.
            for of_masks in (place.with_suffix(""), place):
                if of_masks.is_dir():
                    masks = sorted(of_masks.glob("mask_*.png")) or sorted(of_masks.glob("*.png"))
                    if masks:
                        self._items.append((path, masks, False))
                        break
            else:
                values = place.with_suffix(".png")
                if values.is_file() and values != path:
                    self._items.append((path, [values], True))
        if not self._items:
            raise UserError(
                f"no image in {str(image_folder)!r} has masks in {str(folder)!r}: NAME.png, or a "
                "folder NAME/ of PNGs, or SA-1B's sa_*.json beside the images"
            )

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> AnnotatedImage:
        path, mask_paths, valued = self._items[index]
        maps = [_read_values(mask_path) for mask_path in mask_paths]
        for mask_path, values in zip(mask_paths, maps, strict=True):
            if values.shape != maps[0].shape:
                raise UserError(
                    f"the mask {str(mask_path)!r} is {_size(values.shape)}, but "
                    f"{str(mask_paths[0])!r} {_size(maps[0].shape)}"
                )
        image = _read_image(path, maps[0].shape, upright=True)
        if valued:
            masks = [maps[0] == value for value in np.unique(maps[0]) if value]
        else:
            masks = [values != 0 for values in maps]
        name = str(path.relative_to(self._image_folder))
        return AnnotatedImage(name, image, _stack(masks, repr(str(mask_paths[0]))))


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
    if not isinstance(name, str) or not all(isinstance(side, int) for side in (height, width)):
        raise UserError(f"{str(path)!r}: no image is {name!r}, {width!r} x {height!r} pixels")
    where = f"{str(path)!r}, image {name!r}"
    pixels = _read_image(folder / name, (height, width), upright=False)
    masks = []
    for key, segmentation in numbered:
        try:
            masks.append(_decode(segmentation, height, width))
        except ValueError as error:
            raise UserError(f"{where}, annotation {key}: {error}") from error
    return AnnotatedImage(name, pixels, _stack(masks, where))


def _decode(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """A (H, W) mask of polygons, RLE or compressed RLE, as COCO defines them.

    Raises:
        ValueError: it is none of these, or of another size.
    """
    if not segmentation:
        raise UserError("there is no segmentation")
    if isinstance(segmentation, dict):
        return _decode_rle(segmentation, height, width)
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
    return np.asarray(pycocotools.mask.decode(pycocotools.mask.merge(pieces)), dtype=bool)


def _decode_rle(segmentation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
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
    if not isinstance(counts, str):
        segmentation = pycocotools.mask.frPyObjects(
            {"size": size, "counts": lengths.tolist()}, height, width
        )
    return np.asarray(pycocotools.mask.decode(segmentation), dtype=bool)


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
        if upright and shape == turned or shape != stored:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def _read_values(path: Path) -> NDArray[Any]:
    """The (H, W) values of a PNG; of one with a palette its indices."""
    with open_image(path, str(path)) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16"):
            raise UserError(
                f"the mask {str(path)!r} must be grayscale or have a palette, but its mode is "
                f"{image.mode!r}"
            )
        return np.asarray(image)


def _stack(masks: Sequence[NDArray[np.bool_]], where: str) -> NDArray[np.bool_]:
    """(N, H, W): those that are not empty."""
    filled = [mask for mask in masks if mask.any()]
    if not filled:
        raise UserError(f"{where}: no mask has a pixel")
    return np.stack(filled)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
