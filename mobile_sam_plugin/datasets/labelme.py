"""The json of labelme: one file per image, with its masks as shapes."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from ..errors import UserError
from ..images import open_image
from ..records import encode_mask
from .annotated import AnnotatedImage, Encoded
from .reading import load_json, read_pixels, require_masks
from .segmentations import encode_segmentation
from .unreadable import OtherSize

# What this package writes beside masks, which stay the masks of such a folder.
_OWN_FILES = ("labelme.json", "masks.json", "instances.json", "source.json", "run.json")
_CORNERS = 64  # of the polygon in place of a circle
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def list_labelme(folder: Path) -> list[Path]:
    """Returns the JSON files in a folder, at any depth, if the first of them is labelme's."""
    paths = sorted(path for path in folder.rglob("*.json") if path.name not in _OWN_FILES)
    if not paths:
        return []
    first = load_json(paths[0])
    is_labelme = isinstance(first, dict) and {"shapes", "imagePath"} <= first.keys()
    return paths if is_labelme else []


class Labelme:
    """A data set of labelme's files.

    Args:
        records: the JSON files.
        root: the folder that holds them, at any depth; names are relative to it.
        folder: of the images, if not where the JSON files say.
    """

    def __init__(self, records: Sequence[Path], root: Path, folder: Path | None) -> None:
        self._records = records
        self._root = root
        self._folder = folder

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> AnnotatedImage:
        path = self._records[index]
        content = load_json(path)
        where = repr(str(path))
        try:
            shapes = content["shapes"]
            image = PurePath(content["imagePath"].replace("\\", "/"))
            groups: dict[Any, list[Any]] = {}
            for place, shape in enumerate(shapes):
                if shape["shape_type"] not in _WITHOUT_AREA:
                    group = shape.get("group_id")
                    key = place if group is None else (shape.get("label"), group)
                    groups.setdefault(key, []).append(shape)
            size = (int(content["imageHeight"]), int(content["imageWidth"]))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(
                f"{where} is not labelme's JSON, which holds 'shapes' with 'shape_type', "
                f"'imagePath', 'imageHeight' and 'imageWidth': {error!r}"
            ) from error
        picture = path.parent / image if self._folder is None else self._folder / image.name
        data = content.get("imageData")
        if data is not None and not picture.exists():
            try:
                file = io.BytesIO(base64.b64decode(data))
            except (TypeError, ValueError) as error:
                raise UserError(f"{where}: its 'imageData' is not base64: {error}") from error
            pixels = read_pixels(file, size, upright=True, name=where)
        else:
            pixels = read_pixels(picture, size, upright=True)
        encoded = []
        for shapes in groups.values():
            try:
                parts = [_encode_shape(shape, size) for shape in shapes]
            except OtherSize as error:
                raise OtherSize(f"{where}: {error}") from error
            except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
                raise UserError(f"{where}: a shape cannot be read: {error}") from error
            encoded.append(pycocotools.mask.merge(parts))
        name = str(path.relative_to(self._root).with_suffix(""))
        return require_masks(Encoded(name, pixels, encoded), where)


def _encode_shape(shape: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Returns the mask of a shape with an area, in COCO's compressed RLE.

    Raises:
        ValueError, IndexError, KeyError, OverflowError, TypeError: if it is malformed.
    """
    kind, points = shape["shape_type"], np.asarray(shape["points"], float).reshape(-1, 2)
    if kind == "polygon":
        corners = points
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    elif kind == "circle":  # by its centre and a point on it
        angles = np.linspace(0, 2 * math.pi, _CORNERS, endpoint=False)
        radius = math.dist(*points)
        corners = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind == "mask":
        return dict(encode_mask(_paste(shape["mask"], points[0], size)))
    else:
        raise UserError(f"its type is {kind!r}")
    return encode_segmentation([corners.ravel().tolist()], *size)


def _paste(data: str, corner: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Returns the mask of a PNG in base64, whose first pixel is at the corner, XY."""
    with open_image(io.BytesIO(base64.b64decode(data)), "the mask of a shape") as image:
        part = np.asarray(image) > 0
    x, y = (round(float(value)) for value in corner)
    height, width = part.shape
    if x < 0 or y < 0 or y + height > size[0] or x + width > size[1]:
        raise OtherSize(f"the mask of a shape at {x}, {y} leaves its image")
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = part
    return mask
