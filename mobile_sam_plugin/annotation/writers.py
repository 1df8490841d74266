"""The formats of results: those of an image as bytes, those of all images written in a stream.

The record of an image, in the format of SA-1B, is the truth: a run is resumed by it, and the files
of all images are made from it.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from ..errors import MissingExtra
from ..results import decode_mask, draw_overlay
from .options import ImageResult
from .storage import Folder

COCO_FILE = "instances.json"
PARQUET_FILE = "masks.parquet"
IMAGE_FOLDERS = ("sa1b", "ids", "labels", "overlays")

_ROWS_PER_GROUP = 20_000


def record_file(name: str) -> str:
    """Where the record of an image is."""
    return f"sa1b/{name}.json"


def encode_record(result: ImageResult) -> bytes:
    """A record in the format of SA-1B, and the category of each mask if it has one."""
    image = {
        "image_id": result.image_id,
        "file_name": result.key,
        "width": result.width,
        "height": result.height,
    }
    content = {"image": image, "annotations": result.records}
    return json.dumps(content, allow_nan=False).encode()


def encode_ids(result: ImageResult) -> bytes:
    """A PNG of the image's size: 0 is nothing, n the n-th mask, a smaller one above a larger.

    Of 8 bits, or 16 if there are more than 255 masks.
    """
    dtype = np.uint8 if len(result.records) < 256 else np.uint16
    ids = np.zeros((result.height, result.width), dtype)
    for number, record in sorted(enumerate(result.records, 1), key=lambda row: -row[1]["area"]):
        ids[decode_mask(record)] = number
    return bytes(cv2.imencode(".png", ids)[1])


def encode_overlay(pixels: NDArray[np.uint8], result: ImageResult) -> bytes:
    """A JPEG of the image under its masks."""
    return bytes(cv2.imencode(".jpg", draw_overlay(pixels, result.records)[..., ::-1])[1])


def encode_yolo(result: ImageResult) -> bytes:
    """A line a mask, in the format that Ultralytics trains on: its class, and its outline.

    The class is the category's id less 1, and 0 where there are no categories. Outlines are XY
    divided by the image's size. Holes are lost; parts are joined by a line of no width.
    """
    size = np.array([result.width, result.height])
    lines = []
    for record in result.records:
        outline = _outline(decode_mask(record))
        if len(outline):
            numbers = ((outline + 0.5) / size).ravel()
            category = record.get("category_id", 1) - 1
            lines.append(f"{category} {' '.join(f'{number:.6f}' for number in numbers)}\n")
    return "".join(lines).encode()


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One polygon around all parts of a mask, (N, 2), XY of pixels; of no point if it is empty."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    parts = []
    for contour in contours:
        points = contour.reshape(-1, 2).astype(float)
        if len(points) < 3:  # too few for a polygon: the rectangle around these pixels
            (x0, y0), (x1, y1) = points.min(axis=0) - 0.5, points.max(axis=0) + 0.5
            points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        parts.append(points)
    if not parts:
        return np.zeros((0, 2))
    # From the first point of the first part to each of the others, around it, and back.
    start = parts[0][:1]
    around = [np.concatenate([part, part[:1], start]) for part in parts[1:]]
    return np.concatenate([parts[0], *([start] if around else []), *around])


def coco_box(record: Mapping[str, Any]) -> list[float]:
    """XYWH as COCO has it, where SAM's width and height are less by 1."""
    box: list[float] = pycocotools.mask.toBbox(record["segmentation"]).tolist()
    return box


def write_coco(
    folder: Folder, records: Iterable[Mapping[str, Any]], categories: Mapping[int, str]
) -> None:
    """Writes one COCO data set of all images; no more than one record is held at a time."""
    with folder.create(COCO_FILE) as file, folder.scratch() as annotations:
        file.write(b'{"images": [')
        between, between_masks = b"\n", b"\n"
        for content in records:
            image = content["image"]
            entry = {"id": image["image_id"], **_without(image, "image_id")}
            file.write(between + json.dumps(entry).encode())
            between = b",\n"
            for record in content["annotations"]:
                annotation = {
                    "id": record["id"],
                    "image_id": image["image_id"],
                    "category_id": record.get("category_id", 1),
                    "segmentation": record["segmentation"],
                    "area": record["area"],
                    "bbox": coco_box(record),
                    "iscrowd": 0,
                    "predicted_iou": record["predicted_iou"],
                    "stability_score": record["stability_score"],
                }
                if "score" in record:
                    annotation["score"] = record["score"]
                annotations.write(between_masks + json.dumps(annotation).encode())
                between_masks = b",\n"
        file.write(b'\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        listed = [{"id": number, "name": name} for number, name in categories.items()]
        file.write(b'\n],\n"categories": ' + json.dumps(listed).encode() + b"}\n")


def write_parquet(folder: Folder, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one table of all masks, a row each.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    pyarrow, parquet = import_pyarrow()
    schema = pyarrow.schema(
        [
            ("image_id", pyarrow.int64()),
            ("file_name", pyarrow.string()),
            ("width", pyarrow.int32()),
            ("height", pyarrow.int32()),
            ("id", pyarrow.int64()),
            ("category_id", pyarrow.int64()),
            ("category", pyarrow.string()),
            ("rle_counts", pyarrow.string()),
            *((side, pyarrow.float32()) for side in "xywh"),
            ("area", pyarrow.int64()),
            ("predicted_iou", pyarrow.float32()),
            ("stability_score", pyarrow.float32()),
            ("score", pyarrow.float32()),
        ]
    )
    with ExitStack() as stack:
        file = stack.enter_context(folder.create(PARQUET_FILE))
        table = stack.enter_context(parquet.ParquetWriter(file, schema, compression="zstd"))
        rows: list[dict[str, Any]] = []
        for content in records:
            image = content["image"]
            # Names of files need not be Unicode, text in a table must.
            name = image["file_name"].encode("utf-8", "replace").decode()
            for record in content["annotations"]:
                rows.append(
                    {
                        **image,
                        **record,
                        "file_name": name,
                        "rle_counts": record["segmentation"]["counts"],
                        **dict(zip("xywh", coco_box(record), strict=True)),
                    }
                )
            if len(rows) >= _ROWS_PER_GROUP:
                table.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            table.write_table(pyarrow.Table.from_pylist(rows, schema))


def import_pyarrow() -> tuple[Any, Any]:
    """Returns pyarrow and its module for Parquet; MissingExtra if it is absent."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra.of("pyarrow", "annotate") from error
    return pyarrow, parquet


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}
