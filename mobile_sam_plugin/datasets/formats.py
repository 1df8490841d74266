"""Data sets of images with masks, in the formats that people have.

These are COCO, SA-1B, the json of labelme, and PNG masks.
"""

import itertools
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import UserError
from ..files import encode_image, write_file
from ..images import is_image_name, join_counts, list_images, load_mask
from ..records import encode_mask
from .annotated import AnnotatedImage, AnnotatedImages, Encoded, Labelled
from .labelme import Labelme, list_labelme
from .reading import describe_size, load_json, read_pixels, read_values, require_masks
from .segmentations import encode_segmentation
from .unreadable import OtherSize


def open_annotated_images(
    source: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None
) -> AnnotatedImages:
    """Opens a data set of images with masks, in the format of the source.

    =============================  ===========================================================
    a JSON file                    COCO's ``instances_*.json``: polygons or RLE, compressed or not.
                                   ``iscrowd`` annotations are skipped.
    a folder with ``sa_*.json``    SA-1B, at any depth. Each JSON file names its image, which is
                                   next to it.
    a folder with labelme's json   labelme, at any depth. Each JSON file names or holds its image.
                                   Shapes of one label and ``group_id`` are one mask; points and
                                   lines are left out.
    another folder                 images, at any depth, with PNG masks. Either ``NAME.jpg`` (or
                                   another format) with ``NAME.png``, which has one value per mask
                                   and 0 for no mask. Or any image ``NAME.*`` with a folder
                                   ``NAME/`` of one PNG per mask, 0 outside: all ``mask_*.png``,
                                   as ``mobile-sam everything`` writes them, or all PNGs if there
                                   is none.
    =============================  ===========================================================

    Images without a mask are skipped, and a warning counts them. Masks without a pixel are skipped
    too; :class:`AnnotatedImage` counts them. If EXIF data turn an image, the masks decide: COCO and
    SA-1B belong to the image as it is stored, unless the size in the JSON is that of the upright
    image; PNG masks and labelme's belong to the upright image, as viewers show it, unless their
    size is that of the stored one. A PNG of one mask may also have colours or transparency, see
    :func:`~mobile_sam_plugin.images.load_mask`.

    Args:
        source: see above.
        images: the folder of the images, if they are not beside the JSON files or the PNG masks.

    Returns:
        The data set. Reading a broken item raises a ValueError or an OSError;
        :class:`~.unreadable.SkipUnreadable` replaces such items.

    Raises:
        FileNotFoundError: if there is no such source or folder of images.
        ValueError: if the JSON file is not JSON or not COCO's, or if no image has a mask.

    Examples:
        >>> data = open_annotated_images("annotations/instances_val2017.json", images="val2017")
        >>> first = data[0]
        >>> first.name, first.image.shape, first.masks.shape
        ('000000397133.jpg', (427, 640, 3), (19, 427, 640))
    """
    path = Path(source)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of images {str(folder)!r}")
    if path.is_file():
        return _Coco(path, folder or path.parent)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no {str(path)!r}: expected a COCO JSON file or a folder")
    records = sorted(path.rglob("sa_*.json"))
    if records:
        if folder is None:
            pictures = {image.with_suffix("") for image in path.rglob("sa_*.jpg")}
            alone = pictures.difference(record.with_suffix("") for record in records)
            _tell_left_out(path, Counter({"images without a json": len(alone)}))
        return _SegmentAnything(records, folder)
    records = list_labelme(path)
    if records:
        return Labelme(records, path, folder)
    return _PngMasks(path, folder or path)


def write_annotated_image(
    folder: str | os.PathLike[str], name: str, annotated: AnnotatedImage
) -> Path:
    """Writes an image and its masks in the layout of SA-1B.

    Args:
        folder: output folder.
        name: name of the files, without a suffix; begins with ``sa_``.
        annotated: image and masks; the image becomes a JPEG of quality 95.

    Returns:
        The JSON file. It is written last: if it exists, both files are complete.

    Raises:
        ValueError: if `name` has another prefix, or JPEG cannot hold the image.
        OSError: if a file cannot be written.
    """
    if not name.startswith("sa_"):
        raise UserError(f"the names of SA-1B's files begin with 'sa_', unlike {name!r}")
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


class _Coco:
    """COCO instances. The JSON may be large, so each image's part of it is kept as text."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._folder = folder
        content = load_json(path)
        left_out: Counter[str] = Counter()
        try:
            images = {image["id"]: image for image in content["images"]}
            left_out["images with the id of another"] = len(content["images"]) - len(images)
            # Some files write the same id as a number here and as text there.
            texts = {str(key): key for key in images}
            annotations: dict[Any, list[Any]] = {key: [] for key in images}
            for annotation in content["annotations"]:
                key = annotation["image_id"]
                key = key if key in images else texts.get(str(key))
                if annotation.get("iscrowd"):
                    left_out["iscrowd annotations"] += 1
                elif key is None:
                    left_out["annotations of images that are not listed"] += 1
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
    """SA-1B: one JSON file per image."""

    def __init__(self, records: Sequence[Path], folder: Path | None) -> None:
        self._records = records
        self._folder = folder

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> AnnotatedImage:
        path = self._records[index]
        content = load_json(path)
        try:
            image, annotations = content["image"], content["annotations"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{str(path)!r} is not SA-1B's JSON, which holds 'image' and 'annotations': "
                f"{error!r}"
            ) from error
        return _read_annotated(path, self._folder or path.parent, image, annotations)


class _PngMasks:
    """Images with one PNG of all masks, or with a folder of one PNG per mask."""

    def __init__(self, folder: Path, image_folder: Path) -> None:
        self._image_folder = image_folder
        self._items: list[tuple[Path, list[Path], bool]] = []
        # `mobile-sam everything` writes these beside masks: no reason for a warning.
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
                "folder NAME/ of PNGs, or the json of SA-1B or labelme beside the images"
                + _jpeg_hint(folder, image_folder, paths)
            )
        alone = sum(path.parent not in of_masks for path in without)
        _tell_left_out(image_folder, Counter({"images without masks": alone}))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> AnnotatedImage:
        path, mask_paths, valued = self._items[index]
        name = str(path.relative_to(self._image_folder))
        if valued:
            values = read_values(mask_paths[0])
            item: AnnotatedImage = Labelled(
                name, read_pixels(path, values.shape, upright=True), values
            )
        else:
            encoded: list[Mapping[str, Any]] = []
            for mask_path in mask_paths:
                encoded.append(encode_mask(load_mask(mask_path)))
                if encoded[-1]["size"] != encoded[0]["size"]:
                    raise OtherSize(
                        f"the mask {str(mask_path)!r} is {describe_size(encoded[-1]['size'])}, but "
                        f"{str(mask_paths[0])!r} {describe_size(encoded[0]['size'])}"
                    )
            item = Encoded(
                name, read_pixels(path, tuple(encoded[0]["size"]), upright=True), encoded
            )
        return require_masks(item, repr(str(mask_paths[0])))


def _jpeg_hint(folder: Path, image_folder: Path, images: Iterable[Path]) -> str:
    """Returns what to say of masks that are JPEGs, if there are any."""
    for image in images:
        place = (folder / image.relative_to(image_folder)).with_suffix("")
        found = place.iterdir() if place.is_dir() else iter(())
        if folder != image_folder:
            beside = (path for path in place.parent.iterdir() if path.stem == place.name)
            found = itertools.chain(beside if place.parent.is_dir() else (), found)
        for path in found:
            if path.suffix.lower() in (".jpg", ".jpeg"):
                return (
                    f"; {str(path)!r} cannot hold masks, because JPEG alters their values: make "
                    "the masks anew as PNG"
                )
    return ""


def _list_pngs(paths: Iterable[Path]) -> list[Path]:
    """Returns the PNG files among paths, sorted, so that NAME.png comes after NAME.PNG."""
    pngs = (path for path in paths if path.suffix.lower() == ".png" and is_image_name(path.name))
    return sorted(path for path in pngs if path.is_file())


def _list_masks(folder: Path) -> list[Path]:
    """Returns the PNGs of one mask each in a folder; none if it is not a folder."""
    pngs = _list_pngs(folder.iterdir()) if folder.is_dir() else []
    return [path for path in pngs if path.name.startswith("mask_")] or pngs


def _tell_left_out(source: Path, kinds: Counter[str]) -> None:
    """Warns of what is left out of a source, by kind."""
    if kinds.total():
        warnings.warn(f"left out of {str(source)!r}: {join_counts(kinds)}", stacklevel=4)


def _read_annotated(path: Path, folder: Path, image: Any, annotations: Any) -> AnnotatedImage:
    """Reads an image and its annotations, as COCO and SA-1B describe them."""
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
        raise UserError(
            f"{str(path)!r}: file_name must be a string, height and width whole numbers, not "
            f"{name!r}, {height!r} and {width!r}"
        )
    height, width = (int(side) for side in sides)  # some files have 480.0
    where = f"{str(path)!r}, image {name!r}"
    pixels = read_pixels(folder / name, (height, width), upright=False)
    encoded = []
    for key, segmentation in numbered:
        if not segmentation:  # a box alone
            continue
        try:
            encoded.append(encode_segmentation(segmentation, height, width))
        except ValueError as error:
            kind = OtherSize if isinstance(error, OtherSize) else UserError
            raise kind(f"{where}, annotation {key}: {error}") from error
    return require_masks(Encoded(name, pixels, encoded, empty=len(numbered) - len(encoded)), where)
