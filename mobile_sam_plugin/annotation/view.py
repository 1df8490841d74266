"""The page of ``mobile-sam view``: the result of a run as one HTML file, to look through offline.

``view.html`` is the page without data. What it shows is put into it as JSON: a small JPEG of each
image, and its masks as COCO RLE of the same size, so that the file needs nothing beside it.
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

from ..errors import UserError
from ..files import encode_image, write_file
from ..images import is_image_name, load_image
from ..records import Record, decode_mask, encode_mask
from ..results import read_source
from .sources import Item, open_source
from .storage import Folder, Place, is_url, local_path

_LONG_SIDE = 640
"""Of the pictures and masks in the page, pixels."""
_PICTURE_BYTES = 64_000
"""What a JPEG takes at most, unless the coarsest quality takes more."""
_QUALITIES = (80, 60, 40, 20)


@dataclass(frozen=True)
class View:
    """What was written.

    Attributes:
        path: the page, a path or URL.
        size: of that file, bytes.
        shown: images in it.
        total: images of the run.
        masks: masks in it.
        without_picture: images in it whose file is missing, unreadable or another one by now.
    """

    path: str
    size: int
    shown: int
    total: int
    masks: int
    without_picture: int


@dataclass(frozen=True)
class _Image:
    """An image of a run, before its pixels are read."""

    name: str
    size: tuple[int, int]  # height, width
    records: list[Record]
    load: Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Run:
    """What a folder holds. ``images`` reads one image a call, since there may be millions."""

    images: Sequence[Callable[[], _Image]]
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
    """Writes a page to look through the result of a run; it appears whole or not at all.

    Args:
        folder: what ``mobile-sam annotate`` wrote, a path or URL, or what ``mobile-sam
            everything`` wrote.
        out: the HTML file; ``view.html`` in the folder if None.
        images: where the images are now, a folder, URL or video; where the run found them if None.
            Of what ``mobile-sam everything`` wrote, overlays stand in for images that are lost.
        limit: images in the page at most; of more, as many are taken at even distances.
        progress: called with the number of images done and of all that will be.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: the folder is no run's, or a file in it is damaged; ``limit`` is below 1.
        OSError: the page cannot be written.
    """
    if limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    place = _expand(folder)
    run = _open_run(place, None if images is None else _expand(images))
    target = None if out is None else Path(_expand(out))
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    total = len(run.images)
    chosen = np.linspace(0, total - 1, min(limit, total)).round().astype(int).tolist()
    # The page is put together in memory: it has to fit into that of a browser anyway.
    entries, masks, without_picture = [], 0, 0
    for done, index in enumerate(chosen):
        entry = _make_entry(run.images[index]())
        masks += len(entry["masks"])
        without_picture += entry["picture"] is None
        entries.append(_script("image", entry))
        if progress is not None:
            progress(done + 1, len(chosen))
    name = place.rstrip("/").rpartition("/")[2] if is_url(place) else Path(place).resolve().name
    about = {"name": name, "total": total, "facts": run.facts, "errors": run.errors}
    template = resources.files(__package__).joinpath("view.html").read_text("utf-8")
    head, tail = template.split("<!-- data -->")
    page = "\n".join((head, _script("run", about), *entries, tail)).encode()
    if target is not None:
        path = str(target)
        write_file(target, page)
    elif is_url(place):
        path = Folder(place).path("view.html")
        Folder(place).write("view.html", page)
    else:
        path = str(Path(place, "view.html"))
        write_file(Path(path), page)
    return View(path, len(page), len(entries), total, masks, without_picture)


def _expand(name: str | os.PathLike[str]) -> str:
    """A URL as it is, any other name as a path: without ``file://`` and ``~``."""
    return os.fspath(name) if is_url(name) else str(local_path(name))


def _script(kind: str, content: dict[str, Any]) -> str:
    """Data for the page's script; no text in it can end the element or be read as markup."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" data-kind="{kind}">{text}</script>'


def _make_entry(image: _Image) -> dict[str, Any]:
    """An image as the page's script takes it: sizes and boxes in pixels of the original image."""
    height, width = image.size
    scale = min(1, _LONG_SIDE / max(height, width))
    small = max(1, round(height * scale)), max(1, round(width * scale))
    picture = note = None
    try:
        pixels = image.load()
    except FileNotFoundError as error:
        note = f"The image is not there any more: {error.filename or error}"
    except Exception as error:  # fsspec's backends raise of every kind
        note = f"The image cannot be read: {error}"
    else:
        if pixels.shape[:2] == image.size:
            picture = _encode_picture(pixels, small)
        else:
            note = (
                f"The image is another one by now: {pixels.shape[1]} x {pixels.shape[0]} pixels "
                f"instead of {width} x {height}"
            )
    return {
        "name": image.name,
        "width": width,
        "height": height,
        "shown": small[::-1],
        "picture": picture,
        "note": note,
        "masks": [_make_mask(record, image, small) for record in image.records],
    }


def _encode_picture(pixels: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """A JPEG of a size (h, w), as a data URI."""
    small = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    for quality in _QUALITIES:
        jpeg = encode_image(".jpg", small, cv2.IMWRITE_JPEG_QUALITY, quality)
        if len(jpeg) <= _PICTURE_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _make_mask(record: Any, image: _Image, size: tuple[int, int]) -> dict[str, Any]:
    """What the page shows of a record, with its mask resized to a size (h, w)."""
    try:
        mask = _decode(record, image.size)
        if mask.shape != image.size:
            raise UserError(f"a mask of {mask.shape} in an image of {image.size}")
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
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"a mask of {image.name!r} is damaged: {error!r}") from error
    if len(points):
        shown["points"] = points.round(1).tolist()
    if record.get("label") is not None:
        shown["label"] = str(record["label"])
    return shown


def _decode(record: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of a record, also in polygons, as COCO has them."""
    segmentation = record["segmentation"]
    if segmentation == []:
        return np.zeros(size, dtype=bool)
    if isinstance(segmentation, list):
        rles = pycocotools.mask.frPyObjects(segmentation, *size)
        return decode_mask({"segmentation": pycocotools.mask.merge(rles)})
    return decode_mask(record)


def shrink_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resizes a mask (H, W) to a size (h, w), neither larger: to the pixels half covered by it.

    Of a mask too small for that, the pixels most covered are left, so that it can be seen.
    """
    # COCO's masks lie in memory column by column, which for OpenCV is the transposed image.
    covered = cv2.resize(
        mask.T.astype(np.uint8, order="C", copy=False) * 255, size, interpolation=cv2.INTER_AREA
    )
    half = max(1, min(128, covered.max()))
    return (covered >= half).T


def _open_run(place: str, images: str | None) -> _Run:
    folder = Folder(place)
    if folder.local is not None:
        if not folder.local.exists():
            raise FileNotFoundError(f"there is no folder {place!r}")
        if not folder.local.is_dir():
            raise NotADirectoryError(f"{place!r} is no folder: name that of a run")
    about = _read_json(folder, "run.json", dict) if folder.exists("run.json") else {}
    root = images or str(about.get("image_root") or place)
    results = sorted(name for name in folder.names("sa1b") if name.endswith(".json"))
    readers: list[Callable[[], _Image]] = []
    if results:
        load = _make_loader(root, results if about.get("source") == "video" else None)
        readers = [partial(_read_sa1b, folder, name, load) for name in results]
    elif folder.exists("instances.json"):
        coco = _read_coco(folder, "instances.json", _make_loader(root))
        readers = [partial(_Image, *fields) for fields in coco]
    elif not about:
        if folder.local is not None:
            found = sorted(folder.local.glob("*/masks.json"))
            readers = [partial(_read_everything, path.parent, images) for path in found]
        if not readers:
            raise UserError(
                f"{place!r} is no result of a run: there is neither run.json, nor sa1b/, nor "
                "instances.json, nor a folder with masks.json in it; name what was given as --out "
                "to mobile-sam annotate or everything"
            )
    try:
        facts = _describe(about)
    except (AttributeError, TypeError) as error:
        raise UserError(f"{folder.path('run.json')!r} is no run's: {error}") from error
    return _Run(readers, facts, _read_errors(folder))


_Loader = Callable[[str], NDArray[np.uint8]]


def _make_loader(root: str, frames: Sequence[str] | None = None) -> _Loader:
    """What reads the pixels of an image by its path relative to a folder, URL or video.

    Args:
        root: that folder, URL or video.
        frames: the results of a video's frames, which are then to be asked for in this order.
    """
    if frames is None:
        return lambda key: Item(0, 0, key, key, Place.of(root).join(key)).load()
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
    """What the head of the page tells of a run, from its ``run.json``."""
    options, model = about.get("options") or {}, about.get("model") or {}
    facts = {
        "input": ", ".join(about.get("input") or ()),
        "mode": about.get("mode"),
        "prompt": ", ".join(options.get("prompts") or ()),
        "options": ", ".join(f"{k} {v}" for k, v in (options.get("search") or {}).items()),
        "weights": (model.get("weights_sha256") or "")[:12],
        "version": about.get("version"),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _read_json(folder: Folder, name: str, kind: type) -> Any:
    path = folder.path(name)
    try:
        content = json.loads(folder.read(name))
    except ValueError as error:
        raise UserError(f"{path!r} is no JSON: {error}") from error
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
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.path(name)!r} is no JSON of SA-1B: {error!r}") from error


def _read_coco(
    folder: Folder, name: str, load: _Loader
) -> Iterator[tuple[str, tuple[int, int], list[Record], Callable[[], NDArray[np.uint8]]]]:
    """The fields of each :class:`_Image`."""
    content = _read_json(folder, name, dict)
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        records: dict[int, list[Record]] = defaultdict(list)
        for annotation in content["annotations"]:
            # With one category for all, its name tells nothing.
            label = names[annotation["category_id"]] if len(names) > 1 else None
            records[annotation["image_id"]].append({"label": label} | annotation)
        for image in sorted(content["images"], key=lambda image: str(image["file_name"])):
            key = str(image["file_name"])
            size = int(image["height"]), int(image["width"])
            yield key, size, records[image["id"]], partial(load, key)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.path(name)!r} is no COCO instances JSON: {error!r}") from error


def _read_everything(folder: Path, images: str | None) -> _Image:
    """A folder that ``mobile-sam everything`` wrote; its overlay stands in for a lost image."""
    overlay = folder / "overlay.png"
    records = _read_json(Folder(folder), "masks.json", list)
    try:
        size = records[0]["segmentation"]["size"] if records else load_image(overlay).shape[:2]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{str(folder)!r} holds no result of a run: {error!r}") from error
    claim = read_source(folder)
    source = overlay if claim is None else Path(claim["path"])
    if images is not None:
        # Older versions did not write whose a folder is: it is named by the stem or the name.
        names = [folder.name] if claim is None else [source.name, folder.name]
        listed = [path for path in sorted(Path(images).iterdir()) if is_image_name(path.name)]
        found = (path for name in names for path in listed if name in (path.name, path.stem))
        source = next(found, Path(images, names[0]))
    elif not source.exists():
        source = overlay
    height, width = map(int, size)
    return _Image(folder.name, (height, width), records, partial(load_image, source))


def _read_errors(folder: Folder) -> list[dict[str, str]]:
    """What ``errors.jsonl`` tells: the image and the reason of each line."""
    if not folder.exists("errors.jsonl"):
        return []
    errors = []
    for line in folder.read("errors.jsonl").decode("utf-8", "replace").splitlines():
        try:
            error = json.loads(line)
            errors.append({"image": str(error["file_name"]), "reason": str(error["error"])})
        except (KeyError, TypeError, ValueError):  # half a line, of a run that was killed
            errors.append({"image": "", "reason": line})
    return errors
