"""Folders of results: one per image or video, with the files in it and whose they are."""

import io
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .drawing import draw_overlay
from .files import digest_source, encode_image, write_file
from .polygons import count_masks
from .records import Record, decode_mask

AnyPath = TypeVar("AnyPath", bound=PurePath)

SOURCE_FILE = "source.json"
"""Names the image or video that the results in a folder belong to."""

_RESULTS = re.compile(
    r"mask_\d{3,}(\.png|_logits\.npy)|cutout_\d{3,}\.png|instances\.png|labelme\.json"
)
_LISTS = ("masks.json", "instances.json")


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
    """Writes the results of one image into a folder, instead of those of an earlier run there.

    ``mask_000.png`` and so on (0 and 255), ``mask_000_logits.npy`` and so on if logits are given,
    ``overlay.png``, and ``masks.json``, a list of the records. A file appears whole or not at all,
    ``masks.json`` last. Other files in the folder are left alone.

    Args:
        folder: created if missing.
        image: (H, W, 3) RGB.
        records: masks of that size.
        low_res_logits: (1, 256, 256) float32 for each record, or none.
        point_coords, point_labels, box: the prompt, see
            :func:`~mobile_sam_plugin.drawing.draw_overlay`.
        cutouts: whether to write ``cutout_000.png`` and so on also, see :func:`cut_out`.

    Returns:
        The paths of the masks.
    """
    masks = write_masks(folder, map(decode_mask, records), image if cutouts else None)
    for index, logits in enumerate(low_res_logits):
        npy = io.BytesIO()
        np.save(npy, logits)
        write_file(folder / f"mask_{index:03}_logits.npy", npy.getvalue())
    overlay = draw_overlay(
        image, records, point_coords=point_coords, point_labels=point_labels, prompt_box=box
    )
    write_file(folder / "overlay.png", encode_image(".png", overlay))
    write_file(folder / "masks.json", json.dumps(list(records), allow_nan=False).encode())
    return masks


def write_masks(
    folder: Path, masks: Iterable[NDArray[np.bool_]], image: NDArray[np.uint8] | None = None
) -> list[Path]:
    """Writes one PNG per mask into a folder, instead of all results of an earlier run there.

    These are masks, logits, cut-outs, and the files that list them, whatever command wrote them; so
    no list is left whose masks are gone.

    Args:
        folder: created if missing.
        masks: (H, W) bool each.
        image: (H, W, 3) uint8 RGB, to write a :func:`cut_out` of each mask also. A warning counts
            the empty masks, which have none.

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


def cut_out(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns the object alone, cropped to the box of its mask.

    Args:
        image: (H, W, 3) RGB.
        mask: (H, W) bool, not empty.

    Returns:
        (h, w, 4) uint8 RGBA, opaque in the mask, all 0 outside, so that no background is left.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    place = np.s_[y : y + height, x : x + width]
    opaque = np.dstack([image[place], np.full((height, width), 255, np.uint8)])
    return np.where(mask[place][..., None], opaque, np.uint8(0))


def claim_folder(out: Path, source: Path, name: str | None = None) -> Path:
    """Returns the folder in ``out`` for the results of an image or video, and of no other.

    Its name is the stem of the source. If another source has that folder, it is the whole name,
    then the stem with ``_2``, ``_3`` and so on; a warning says so. ``source.json`` in it identifies
    the source by its contents, so that it finds its folder again even after it was moved.

    Args:
        out: created if missing.
        source: a file, or a folder of frames.
        name: first name to try instead of the stem.

    Returns:
        The folder, which exists now.
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
    """Returns ``path`` and ``sha256`` of the source that claimed a folder, or None."""
    try:
        content = json.loads((folder / SOURCE_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    fits = isinstance(content, dict) and content.keys() >= {"path", "sha256"}
    return content if fits else None


def _is_free(folder: Path) -> bool:
    """Whether nothing has that name, or a folder that holds hidden files at most."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.name.startswith(".") for path in folder.iterdir())


def name_folders(paths: Sequence[AnyPath]) -> dict[AnyPath, str]:
    """Returns names for the results of images from one folder.

    These are the stems, or the whole names of images that would share one, on any file system.
    """
    stems = Counter(path.stem.casefold() for path in paths)
    names = {path.name.casefold() for path in paths}
    return {
        path: path.name
        if stems[path.stem.casefold()] > 1 or path.stem.casefold() in names
        else path.stem
        for path in paths
    }
