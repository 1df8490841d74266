"""The page of ``mobile-sam view``: the results of a run in one HTML file that works offline.

``view.html`` is the page without data. The data is added as JSON: for each image a small JPEG, the
preview, and its masks as COCO RLE at the same size.
"""

import base64
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from ..drawing import palette
from ..errors import UserError
from ..files import encode_image, write_file
from ..images import is_image_name, load_image
from ..records import decode_mask, encode_mask
from ..results import read_source
from .items import Item
from .sources import open_source
from .storage import RUN_FILE, Folder, Location, is_url, local_path
from .writers import COCO_FILE, ERRORS_FILE

_LONG_SIDE = 640  # pixels, of previews and masks
_PREVIEW_BYTES = 64_000  # maximum size of a JPEG, unless the lowest quality takes more
_QUALITIES = (80, 60, 40, 20)


@dataclass(frozen=True)
class View:
    """A page that was written.

    Attributes:
        path: path or URL of the page.
        size: of the page, in bytes.
        shown: number of images in the page.
        total: number of images in the run.
        masks: number of masks in the page.
        without_preview: images in the page whose file is missing, unreadable or of another size.
    """

    path: str
    size: int
    shown: int
    total: int
    masks: int
    without_preview: int


@dataclass(frozen=True)
class _Image:
    """An image of a run, before its pixels are read."""

    name: str
    size: tuple[int, int]  # height, width
    records: list[dict[str, Any]]
    load: Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Run:
    """The content of a folder; images are read one at a time, since there may be millions."""

    images: Sequence[Any]
    read: Callable[[Any], _Image]
    facts: dict[str, str]
    errors: list[dict[str, str]]


def write_view(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    limit: int = 500,
    progress: Callable[[int, int], None] | None = None,
) -> View:
    """Writes a page to look through the results of a run; it appears whole or not at all.

    Args:
        folder: a folder that ``mobile-sam annotate`` wrote, path or URL, or that ``mobile-sam
            everything`` wrote.
        out: the HTML file; ``view.html`` in the folder if None.
        images: folder, URL or video where the images are now; where the run found them if None.
            For results of ``mobile-sam everything``, overlays replace missing images.
        limit: maximum number of images in the page; a larger run is sampled evenly.
        progress: called with the number of images done and the total.

    Raises:
        FileNotFoundError, NotADirectoryError: if there is no such folder.
        UserError: if the folder holds no run, if a file in it is damaged, or if ``limit`` is below
            1.
        OSError: if the page cannot be written.
    """
    if limit < 1:
        raise UserError(f"limit must be 1 or more, not {limit}")
    location = _expand(folder)
    run = _open_run(location, None if images is None else _expand(images))
    target = None if out is None else Path(_expand(out))
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    total = len(run.images)
    chosen = np.linspace(0, total - 1, min(limit, total)).round().astype(int).tolist()
    # The page is composed in memory: it has to fit into a browser's anyway.
    entries, masks, without_preview = [], 0, 0
    for done, index in enumerate(chosen, 1):
        entry = _make_entry(run.read(run.images[index]))
        masks += len(entry["masks"])
        without_preview += entry["preview"] is None
        entries.append(_script("image", entry))
        if progress is not None:
            progress(done, len(chosen))
    name = os.path.basename(location.rstrip("/") if is_url(location) else os.path.abspath(location))
    about = {
        "name": name,
        "total": total,
        "facts": run.facts,
        "errors": run.errors,
        "palette": palette()[1:].tolist(),
    }
    template = resources.files(__package__).joinpath("view.html").read_text("utf-8")
    head, tail = template.split("<!-- data -->")
    page = "\n".join((head, _script("run", about), *entries, tail)).encode()
    if target is None and is_url(location):
        path = Folder(location).path("view.html")
        Folder(location).write("view.html", page)
    else:
        path = str(target or Path(location, "view.html"))
        write_file(Path(path), page)
    return View(path, len(page), len(entries), total, masks, without_preview)


def _expand(name: str | os.PathLike[str]) -> str:
    """Returns a URL as given, and any other name as a path without ``file://`` and ``~``."""
    return os.fspath(name) if is_url(name) else str(local_path(name))


def _script(kind: str, content: dict[str, Any]) -> str:
    """Returns data for the page's script; no text in it can end the element or act as markup."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" data-kind="{kind}">{text}</script>'


def _make_entry(image: _Image) -> dict[str, Any]:
    """Returns an image for the page's script; sizes and boxes are in pixels of the original."""
    height, width = image.size
    scale = min(1, _LONG_SIDE / max(height, width))
    small = max(1, round(height * scale)), max(1, round(width * scale))
    preview = note = None
    try:
        pixels = image.load()
    except FileNotFoundError as error:
        note = f"The image is missing: {error.filename or error}"
    except Exception as error:  # fsspec's back ends raise errors of any class
        note = f"The image cannot be read: {error}"
    else:
        if pixels.shape[:2] == image.size:
            preview = _encode_preview(pixels, small)
        else:
            note = (
                f"The image has changed: {pixels.shape[1]} x {pixels.shape[0]} pixels instead of "
                f"{width} x {height}"
            )
    return {
        "name": image.name,
        "width": width,
        "height": height,
        "shown": small[::-1],
        "preview": preview,
        "note": note,
        "masks": [_make_mask(record, image, small) for record in image.records],
    }


def _encode_preview(pixels: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """Returns a JPEG of a size (h, w), as a data URI."""
    small = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    for quality in _QUALITIES:
        jpeg = encode_image(".jpg", small, cv2.IMWRITE_JPEG_QUALITY, quality)
        if len(jpeg) <= _PREVIEW_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _make_mask(record: dict[str, Any], image: _Image, size: tuple[int, int]) -> dict[str, Any]:
    """Returns the data of a record for the page, with the mask resized to (h, w)."""
    try:
        mask = _decode(record, image.size)
        if mask.shape != image.size:
            raise UserError(f"the mask is {mask.shape}, the image {image.size}")
        shown = {
            "counts": encode_mask(shrink_mask(mask, size))["counts"],
            "area": int(record["area"]),
            "bbox": [round(float(side), 2) for side in record["bbox"]],
        }
        for name in ("predicted_iou", "stability_score", "score"):
            value = record.get(name)
            if value is not None and math.isfinite(value):
                shown[name] = round(float(value), 6)
        points = np.asarray(record.get("point_coords") or (), dtype=float).reshape(-1, 2)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"a mask of {image.name!r} is damaged: {error!r}") from error
    if len(points):
        shown["points"] = points.round(1).tolist()
    if record.get("label") is not None:
        shown["label"] = str(record["label"])
    return shown


def _decode(record: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Returns the mask of a record, also of one whose segmentation is polygons."""
    segmentation = record["segmentation"]
    if segmentation == []:
        return np.zeros(size, dtype=bool)
    if isinstance(segmentation, list):
        rles = pycocotools.mask.frPyObjects(segmentation, *size)
        return decode_mask({"segmentation": pycocotools.mask.merge(rles)})
    return decode_mask(record)


def shrink_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Shrinks a mask (H, W) to a size (h, w): pixels that are half covered by it stay.

    If no pixel is, the pixels with the largest coverage stay, so that the mask remains visible.
    """
    # Masks from COCO RLE are stored column by column: for OpenCV, as the transposed image.
    covered = cv2.resize(
        mask.T.astype(np.uint8, order="C", copy=False) * 255, size, interpolation=cv2.INTER_AREA
    )
    half = max(1, min(128, covered.max()))
    return (covered >= half).T


def _open_run(location: str, images: str | None) -> _Run:
    folder = Folder(location)
    if folder.local is not None:
        if not folder.local.exists():
            raise FileNotFoundError(f"there is no folder {location!r}")
        if not folder.local.is_dir():
            raise NotADirectoryError(f"{location!r} is not a folder: give the folder of a run")
    about = _read_json(folder, RUN_FILE, dict) if folder.exists(RUN_FILE) else {}
    root = images or str(about.get("image_root") or location)
    found: Sequence[Any] = sorted(name for name in folder.names("sa1b") if name.endswith(".json"))
    read: Callable[[Any], _Image]
    if found:
        load = _make_loader(root, found if about.get("source") == "video" else None)
        read = partial(_read_sa1b, folder, load=load)
    elif folder.exists(COCO_FILE):
        found = list(_read_coco(folder, COCO_FILE, _make_loader(root)))
        read = _as_read
    else:
        if not about and folder.local is not None:
            found = sorted(path.parent for path in folder.local.glob("*/masks.json"))
        if not about and not found:
            raise UserError(
                f"{location!r} holds no run: there is no run.json, sa1b/, instances.json or "
                "*/masks.json in it; give the folder that was --out of mobile-sam annotate or "
                "everything"
            )
        read = partial(_read_everything, images=images)
    try:
        facts = _describe(about)
    except (AttributeError, TypeError) as error:
        raise UserError(f"{folder.path(RUN_FILE)!r} is not a run's: {error}") from error
    return _Run(found, read, facts, _read_errors(folder))


def _as_read(image: _Image) -> _Image:
    """Returns an image that was read along with all others, from the one JSON of COCO."""
    return image


_Loader = Callable[[str], NDArray[np.uint8]]


def _make_loader(root: str, frames: Sequence[str] | None = None) -> _Loader:
    """Returns a function that reads an image by its path relative to a folder, URL or video.

    Args:
        root: that folder, URL or video.
        frames: for a video, the results of its frames; images must be read in this order.
    """
    if frames is None:
        return lambda key: Item(0, 0, key, key, Location.of(root).join(key)).load()
    keys = {Path(name).stem for name in frames}
    items: Iterator[Item] | None = None

    def load(key: str) -> NDArray[np.uint8]:
        nonlocal items
        if items is None:
            items = open_source(root).items(lambda listed: listed.key in keys)
        for item in items:
            if item.key == key:
                return item.load()
        raise FileNotFoundError(f"frame {key} of {root}")

    return load


def _describe(about: dict[str, Any]) -> dict[str, str]:
    """Returns the facts about a run for the head of the page, from its ``run.json``."""
    options, model = about.get("options") or {}, about.get("model") or {}
    generator_options = options.get("generator_options") or {}
    facts = {
        "input": ", ".join(about.get("input") or ()),
        "mode": about.get("mode"),
        "text": ", ".join(options.get("text") or ()),
        "options": ", ".join(f"{k} {v}" for k, v in generator_options.items()),
        "weights": (model.get("weights_sha256") or "")[:12],
        "version": about.get("version"),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _read_json(folder: Folder, name: str, kind: type) -> Any:
    path = folder.path(name)
    try:
        content = json.loads(folder.read(name))
    except ValueError as error:
        raise UserError(f"{path!r} is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path!r} must hold a {kind.__name__}, not {str(content)[:40]!r}")
    return content


def _read_sa1b(folder: Folder, name: str, load: _Loader) -> _Image:
    content = _read_json(folder, name, dict)
    try:
        image = content["image"]
        key = str(image["file_name"])
        size = int(image["height"]), int(image["width"])
        records = [{"label": record.get("category")} | record for record in content["annotations"]]
        return _Image(key, size, records, partial(load, key))
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{folder.path(name)!r} is not a JSON of SA-1B: {error!r}") from error


def _read_coco(folder: Folder, name: str, load: _Loader) -> Iterator[_Image]:
    content = _read_json(folder, name, dict)
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        records: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            # The name of the only category says nothing.
            label = names[annotation["category_id"]] if len(names) > 1 else None
            records[annotation["image_id"]].append({"label": label} | annotation)
        for image in sorted(content["images"], key=lambda image: str(image["file_name"])):
            key = str(image["file_name"])
            size = int(image["height"]), int(image["width"])
            yield _Image(key, size, records[image["id"]], partial(load, key))
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{folder.path(name)!r} is not COCO's instances JSON: {error!r}") from error


def _read_everything(folder: Path, images: str | None) -> _Image:
    """Reads a folder of ``mobile-sam everything``; its overlay replaces a missing image."""
    overlay = folder / "overlay.png"
    records = _read_json(Folder(folder), "masks.json", list)
    try:
        size = records[0]["segmentation"]["size"] if records else load_image(overlay).shape[:2]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{str(folder)!r} holds no results of a run: {error!r}") from error
    claim = read_source(folder)
    source = overlay if claim is None else Path(claim["path"])
    if images is not None:
        # Without source.json the folder's name is all there is: the image's name or stem.
        names = [folder.name] if claim is None else [source.name, folder.name]
        listed = [path for path in sorted(Path(images).iterdir()) if is_image_name(path.name)]
        found = (path for name in names for path in listed if name in (path.name, path.stem))
        source = next(found, Path(images, names[0]))
    elif not source.exists():
        source = overlay
    height, width = map(int, size)
    return _Image(folder.name, (height, width), records, partial(load_image, source))


def _read_errors(folder: Folder) -> list[dict[str, str]]:
    """Reads ``errors.jsonl``: the image and the reason on each line."""
    if not folder.exists(ERRORS_FILE):
        return []
    errors = []
    for line in folder.read(ERRORS_FILE).decode("utf-8", "replace").splitlines():
        try:
            error = json.loads(line)
            errors.append({"image": str(error["file_name"]), "reason": str(error["error"])})
        except (KeyError, OverflowError, TypeError, ValueError):  # damaged
            errors.append({"image": "", "reason": line})
    return errors
