"""Masks on disk: records with COCO RLE, PNGs, and a picture of masks and prompts.

A record is a dict, with the fields of those that upstream's ``SamAutomaticMaskGenerator`` makes and
``scripts/amg.py`` writes.
"""

import colorsys
import hashlib
import io
import itertools
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import cv2
import numpy as np
import pycocotools.mask
from numpy.typing import ArrayLike, NDArray

from .errors import UserError
from .polygons import Losses, count_masks

Record = dict[str, Any]
Color = tuple[int, int, int]
AnyPath = TypeVar("AnyPath", bound=PurePath)

SOURCE_FILE = "source.json"
"""What a folder of results tells by which image or video they are of."""

_RESULTS = re.compile(
    r"mask_\d{3,}(\.png|_logits\.npy)|cutout_\d{3,}\.png|instances\.png|labelme\.json"
)
_LISTS = ("masks.json", "instances.json")
_WHOLE = 1 << 26  # bytes of the largest file that is read whole to know it again
_END = 1 << 20  # bytes at either end of a larger one
_PIECE = 1 << 14  # bytes of a file in a folder of frames
_WHITE: Color = (255, 255, 255)
_OBJECT: Color = (0, 170, 60)
_BACKGROUND: Color = (230, 30, 40)
_BOX: Color = (255, 140, 0)


def make_record(
    logits: NDArray[np.float32],
    predicted_iou: float,
    point_coords: ArrayLike = (),
    mask_threshold: float = 0.0,
    stability_score_offset: float = 1.0,
) -> Record:
    """The record of a mask that ``SamPredictor.predict`` returned.

    Args:
        logits: (H, W), as ``return_logits=True`` gives them.
        predicted_iou: the mask's score.
        point_coords: (N, 2), the clicks that it comes from.
        mask_threshold: the logit from which on a pixel belongs to the mask.
        stability_score_offset: as in upstream's generator.

    Returns:
        segmentation (COCO RLE), area, bbox (XYWH), predicted_iou, point_coords, stability_score and
        crop_box, computed as upstream's generator does.
    """
    mask = logits > mask_threshold
    height, width = mask.shape
    x, y, box_width, box_height = cv2.boundingRect(mask.astype(np.uint8))
    surely = np.count_nonzero(logits > mask_threshold + stability_score_offset)
    perhaps = np.count_nonzero(logits > mask_threshold - stability_score_offset)
    return {
        "segmentation": encode_mask(mask),
        "area": int(np.count_nonzero(mask)),
        # Upstream's width and height are the distances of the outermost pixels.
        "bbox": [x, y, max(box_width - 1, 0), max(box_height - 1, 0)],
        "predicted_iou": float(predicted_iou),
        "point_coords": np.asarray(point_coords, dtype=float).reshape(-1, 2).tolist(),
        "stability_score": surely / perhaps if perhaps else 0.0,
        "crop_box": [0, 0, width, height],
    }


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A (H, W) mask as COCO RLE that ``json`` can write and ``pycocotools`` can read."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_mask(record: Record) -> NDArray[np.bool_]:
    """The (H, W) mask of a record in upstream's output mode ``binary_mask`` or ``coco_rle``."""
    segmentation = record["segmentation"]
    if isinstance(segmentation, np.ndarray):
        return segmentation.astype(bool)
    return np.asarray(pycocotools.mask.decode(segmentation), dtype=bool)


def draw_overlay(
    image: NDArray[np.uint8],
    records: Sequence[Record],
    point_coords: ArrayLike = (),
    point_labels: ArrayLike = (),
    box: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    """Draws masks and the prompt that they come from over a copy of an image.

    Args:
        image: (H, W, 3) RGB.
        records: masks of that size. Large ones are drawn first, so that small ones stay visible.
        point_coords: (N, 2), XY.
        point_labels: (N,), 1 is drawn as a green disc, 0 as a red cross.
        box: XYXY.

    Returns:
        (H, W, 3) RGB.
    """
    picture = image.copy()
    unit = max(*image.shape[:2], 400) / 400  # lines and clicks grow with the image
    largest_first = sorted(enumerate(records), key=lambda item: -item[1]["area"])
    for index, record in largest_first:
        _draw_mask(picture, decode_mask(record), _color(index), unit)
    if box is not None:
        _draw_box(picture, box, unit)
    coords = np.asarray(point_coords, dtype=float).reshape(-1, 2)
    for point, label in zip(coords, np.ravel(point_labels), strict=True):
        _draw_point(picture, point, label, unit)
    return picture


def write_results(
    folder: Path,
    image: NDArray[np.uint8],
    records: Sequence[Record],
    low_res_logits: Sequence[NDArray[np.float32]] = (),
    point_coords: ArrayLike = (),
    point_labels: ArrayLike = (),
    box: ArrayLike | None = None,
    cutouts: bool = False,
) -> list[Path]:
    """Writes the results of one image into a folder, in place of those of an earlier run there.

    ``mask_000.png`` and so on (0 and 255), ``mask_000_logits.npy`` and so on if logits are given,
    ``overlay.png``, and ``masks.json``, a list of the records. A file appears whole or not at all,
    ``masks.json`` after all that it tells of. Other files in the folder are left alone.

    Args:
        folder: made if need be.
        image: (H, W, 3) RGB.
        records: masks of that size.
        low_res_logits: (1, 256, 256) for each record, or nothing.
        point_coords, point_labels, box: the prompt, as :func:`draw_overlay` takes it.
        cutouts: whether there is ``cutout_000.png`` and so on as well, see :func:`cut_out`.

    Returns:
        The paths of the masks.
    """
    masks = write_masks(folder, map(decode_mask, records), image if cutouts else None)
    for index, logits in enumerate(low_res_logits):
        npy = io.BytesIO()
        np.save(npy, logits)
        write_file(folder / f"mask_{index:03}_logits.npy", npy.getvalue())
    overlay = draw_overlay(image, records, point_coords, point_labels, box)
    write_file(folder / "overlay.png", encode_image(".png", overlay))
    write_file(folder / "masks.json", json.dumps(list(records), allow_nan=False).encode())
    return masks


def write_masks(
    folder: Path, masks: Iterable[NDArray[np.bool_]], image: NDArray[np.uint8] | None = None
) -> list[Path]:
    """Writes a PNG a mask into a folder, in place of all results of an earlier run there.

    Those are masks, logits, cut-outs, and the files that list them, whatever command wrote them:
    no list is left whose masks are gone.

    Args:
        folder: made if need be.
        masks: (H, W) each.
        image: (H, W, 3) RGB, to write a :func:`cut_out` of each mask as well; none if None. A mask
            of no pixel has none, which a warning tells.

    Returns:
        The paths of the masks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _LISTS:
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _RESULTS.fullmatch(path.name):
            path.unlink()
    paths, empty = [], 0
    for index, mask in enumerate(masks):
        paths.append(folder / f"mask_{index:03}.png")
        write_file(paths[-1], encode_image(".png", mask.astype(np.uint8) * 255))
        if image is not None and mask.any():
            cutout = encode_image(".png", cut_out(image, mask))
            write_file(folder / f"cutout_{index:03}.png", cutout)
        elif image is not None:
            empty += 1
    if empty:
        warnings.warn(
            f"{folder}: {count_masks(empty)} of no pixel {'has' if empty == 1 else 'have'} no "
            "cut-out",
            stacklevel=2,
        )
    return paths


def to_coco(
    records: Sequence[Record],
    image_size: tuple[int, int],
    file_name: str,
    losses: Losses | None = None,
) -> dict[str, Any]:
    """A COCO data set of one image, of which all masks are of the category "object".

    Args:
        records: of its masks.
        image_size: (height, width).
        file_name: the image's.
        losses: as of :func:`coco_annotation`.
    """
    height, width = image_size
    annotations = (coco_annotation(record, 1, n, losses) for n, record in enumerate(records, 1))
    return {
        "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": list(filter(None, annotations)),
    }


def coco_annotation(
    record: Record, image_id: int, annotation_id: int, losses: Losses | None = None
) -> Record | None:
    """COCO's annotation of a record.

    Args:
        record: with COCO RLE.
        image_id, annotation_id: their numbers in the data set.
        losses: if given, masks become polygons, and it counts what is lost in them.

    Returns:
        It, with the scores of the record; None of a mask of no pixel, if that is to be polygons.
    """
    segmentation: Any = record["segmentation"]
    if losses is not None:
        segmentation = losses.coco_polygons(decode_mask(record))
        if not segmentation:
            return None
    scores = ("predicted_iou", "stability_score", "score")
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": record.get("category_id", 1),
        "segmentation": segmentation,
        "area": record["area"],
        "bbox": coco_box(record),
        "iscrowd": 0,
        **{name: record[name] for name in scores if name in record},
    }


def coco_box(record: Mapping[str, Any]) -> list[float]:
    """XYWH as COCO has it, where SAM's width and height are less by 1."""
    box: list[float] = pycocotools.mask.toBbox(record["segmentation"]).tolist()
    return box


def cut_out(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The object alone, cropped to the box of its mask.

    Args:
        image: (H, W, 3) RGB.
        mask: (H, W), of one pixel at least.

    Returns:
        (h, w, 4) RGBA, opaque in the mask; all 0 outside, so that nothing of the background is
        left.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    place = np.s_[y : y + height, x : x + width]
    opaque = np.dstack([image[place], np.full((height, width), 255, np.uint8)])
    return np.where(mask[place][..., None], opaque, np.uint8(0))


def claim_folder(out: Path, source: Path, name: str | None = None) -> Path:
    """The folder in ``out`` for the results of an image or video, in which no other's are.

    It is named after the source: by its stem, its whole name where another's results have that
    folder, then the stem with ``_2``, ``_3`` and so on, of which a warning tells.
    ``source.json`` in it tells whose it is, so that the same contents find their folder again, also
    after they were moved.

    Args:
        out: made if need be.
        source: a file, or a folder of frames.
        name: what to try in place of the stem.

    Returns:
        The folder, which exists.
    """
    claim = {"path": str(source.resolve()), "sha256": digest_source(source)}
    content = json.dumps(claim, indent=1).encode() + b"\n"
    wanted, free = name or source.stem, None
    names = dict.fromkeys((wanted, source.stem, source.name))
    for number in itertools.count(2):
        names[f"{source.stem}_{number}"] = None
        if not (out / f"{source.stem}_{number}").exists():
            break
    for folder in map(out.joinpath, names):
        earlier = read_source(folder)
        if earlier is not None and earlier["sha256"] == claim["sha256"]:
            if earlier != claim:  # it was moved
                write_file(folder / SOURCE_FILE, content)
            break
        if free is None and _is_free(folder):
            free = folder
    else:
        assert free is not None  # the last of the names is
        folder = free
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(folder / SOURCE_FILE, "xb") as file:
                file.write(content)
        except FileExistsError:  # another process was faster
            return claim_folder(out, source, name)
    if folder.name != wanted:
        warnings.warn(
            f"{str(out / wanted)!r} holds something else: the results of {str(source)!r} go into "
            f"{str(folder)!r}",
            stacklevel=2,
        )
    return folder


def read_source(folder: Path) -> dict[str, str] | None:
    """Whose results a folder holds by :func:`claim_folder`: ``path`` and ``sha256``, or None."""
    try:
        content = json.loads((folder / SOURCE_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    fits = isinstance(content, dict) and content.keys() >= {"path", "sha256"}
    return content if fits else None


def digest_source(path: Path) -> str:
    """The SHA-256 by which an image, a video or a folder of frames is known again.

    Of files above 64 MiB the size and both ends count; of a folder the names and sizes of its
    files, and a piece from the middle of each.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for each in sorted(each for each in path.iterdir() if each.is_file()):
            size = each.stat().st_size
            digest.update(os.fsencode(f"{each.name}\0{size}\0"))
            with open(each, "rb") as file:
                file.seek(max(0, size - _PIECE) // 2)
                digest.update(file.read(_PIECE))
    elif path.is_file():
        size = path.stat().st_size
        digest.update(f"{size}\0".encode())
        with open(path, "rb") as file:
            if size > _WHOLE:
                digest.update(file.read(_END))
                file.seek(-_END, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


def _is_free(folder: Path) -> bool:
    """Whether there is nothing of that name, or a folder with no more than hidden files in it."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.name.startswith(".") for path in folder.iterdir())


def name_folders(paths: Sequence[AnyPath]) -> dict[AnyPath, str]:
    """Names for the results of images that lie in one folder.

    Stems, but whole names where images would share one, if only on some file systems.
    """
    stems = Counter(path.stem.casefold() for path in paths)
    names = {path.name.casefold() for path in paths}
    return {
        path: path.name
        if stems[path.stem.casefold()] > 1 or path.stem.casefold() in names
        else path.stem
        for path in paths
    }


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def encode_image(suffix: str, pixels: NDArray[Any], *options: int) -> bytes:
    """An image as the bytes of a file.

    Args:
        suffix: of the format, ``".png"`` or ``".jpg"``.
        pixels: (H, W) grayscale, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, or uint16 for PNG.
        options: as of ``cv2.imencode``.

    Raises:
        UserError: the format cannot hold it, as JPEG no side of more than 65,500 pixels.
    """
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    try:
        encoded, content = cv2.imencode(suffix, pixels, options)
    except cv2.error as error:
        encoded, reason = False, f": {error}"
    else:
        reason = ""
    if not encoded:
        raise UserError(
            f"an image of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be written as "
            f"{suffix}{reason}"
        )
    return bytes(content)


def _color(index: int) -> Color:
    """Hues a golden angle apart: spread evenly however many there are, neighbours unlike."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * 0.618034) % 1, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_mask(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_], color: Color, unit: float
) -> None:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    region = picture[y : y + height, x : x + width]
    inside = mask[y : y + height, x : x + width]
    region[inside] = (region[inside] * 0.55 + np.array(color) * 0.45).round()
    outlines, _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y)
    )
    cv2.drawContours(picture, outlines, -1, color, _pixels(0.7 * unit), cv2.LINE_AA)


def _draw_box(picture: NDArray[np.uint8], box: ArrayLike, unit: float) -> None:
    x0, y0, x1, y1 = np.asarray(box, dtype=float).reshape(4)
    for color, width in ((_WHITE, 3.0), (_BOX, 1.4)):
        corners = _visible(picture, (x0, y0)), _visible(picture, (x1, y1))
        cv2.rectangle(picture, *corners, color, _pixels(width * unit), cv2.LINE_AA)


def _draw_point(picture: NDArray[np.uint8], point: ArrayLike, label: int, unit: float) -> None:
    """A green disc for the object, a red cross for the background, both with a white edge."""
    center = _visible(picture, point)
    if label == 1:
        cv2.circle(picture, center, _pixels(5.5 * unit), _WHITE, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, center, _pixels(3.8 * unit), _OBJECT, cv2.FILLED, cv2.LINE_AA)
    else:
        for color, size, width in ((_WHITE, 11, 5), (_BACKGROUND, 9, 2)):
            cv2.drawMarker(
                picture,
                center,
                color,
                cv2.MARKER_TILTED_CROSS,
                _pixels(size * unit),
                _pixels(width * unit),
                cv2.LINE_AA,
            )


def _pixels(length: float) -> int:
    return max(1, round(length))


def _visible(picture: NDArray[np.uint8], point: ArrayLike) -> tuple[int, int]:
    """Whole pixels; what lies far outside of the picture stays outside, but in OpenCV's range."""
    height, width = picture.shape[:2]
    x, y = np.clip(np.asarray(point, dtype=float), (-width, -height), (2 * width, 2 * height))
    return round(x), round(y)
