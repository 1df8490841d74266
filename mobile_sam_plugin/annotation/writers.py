"""The output formats: per image as bytes, for all images as a stream.

A run is resumed by the record of each image, in the format of SA-1B, and the files that cover all
images are made from these records.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..coco import coco_box, record_annotation
from ..drawing import draw_overlay
from ..errors import MissingExtra
from ..files import encode_image
from ..polygons import Losses, labelme_content, outline
from ..records import decode_mask
from .options import ImageResult
from .storage import Folder

COCO_FILE = "instances.json"
PARQUET_FILE = "masks.parquet"
YOLO_FILE = "data.yaml"
ERRORS_FILE = "errors.jsonl"
LIST_FILE = "images.jsonl.gz"
IMAGE_FOLDERS = ("sa1b", "ids", "labels", "overlays", "labelme")
WRITTEN = (*IMAGE_FOLDERS, COCO_FILE, PARQUET_FILE, YOLO_FILE, ERRORS_FILE, LIST_FILE)
"""All that a run writes, except ``run.json``."""

_ROWS_PER_GROUP = 20_000
_MAX_JPEG_SIDE = 65_500  # pixels, a limit of libjpeg


def record_file(name: str) -> str:
    """Returns the path of an image's record in the folder."""
    return f"sa1b/{name}.json"


def encode_record(result: ImageResult) -> bytes:
    """Returns a record in the format of SA-1B, with the category of each mask if it has one."""
    image = {
        "image_id": result.image_id,
        "file_name": result.key,
        "width": result.width,
        "height": result.height,
    }
    content: dict[str, Any] = {"image": image, "annotations": result.records}
    if result.skipped_boxes:
        content["skipped_boxes"] = result.skipped_boxes
    return json.dumps(content, allow_nan=False).encode()


def encode_ids(result: ImageResult) -> bytes:
    """Returns a PNG of the image's size: 0 is no mask, n the n-th mask; smaller masks on top.

    It has 8 bits, or 16 if there are more than 255 masks.
    """
    dtype = np.uint8 if len(result.records) < 256 else np.uint16
    ids = np.zeros((result.height, result.width), dtype)
    for number, record in sorted(enumerate(result.records, 1), key=lambda row: -row[1]["area"]):
        ids[decode_mask(record)] = number
    return encode_image(".png", ids)


def overlay_suffix(result: ImageResult) -> str:
    """Returns the suffix of an overlay: ``.jpg``, or ``.png`` if a side is too long for JPEG."""
    return ".jpg" if max(result.width, result.height) <= _MAX_JPEG_SIDE else ".png"


def encode_overlay(pixels: NDArray[np.uint8], result: ImageResult) -> bytes:
    """Returns the image with its masks, in the format of :func:`overlay_suffix`."""
    return encode_image(overlay_suffix(result), draw_overlay(pixels, result.records))


def encode_yolo(result: ImageResult) -> bytes:
    """Returns one line per mask in Ultralytics' format: class and outline.

    The class is the index of the category among those of the run, from 0. Outlines are XY divided
    by the image's size. Holes are lost, parts are joined by a line of no width, and empty masks
    have no line.
    """
    size = np.array([result.width, result.height])
    classes = {category: place for place, category in enumerate(result.categories)}
    lines = []
    for record in result.records:
        points = outline(decode_mask(record))
        if len(points):
            numbers = " ".join(f"{number:.6f}" for number in (points / size).ravel())
            lines.append(f"{classes[record.get('category_id', 1)] if classes else 0} {numbers}\n")
    return "".join(lines).encode()


def write_yolo_names(folder: Folder, categories: Mapping[int, str]) -> None:
    """Writes ``data.yaml``, which names the classes for Ultralytics.

    Ultralytics expects the labels of ``images/a/b.jpg`` in ``labels/a/b.txt``, next to this file.
    """
    lines = [
        "# Ultralytics finds these labels if the images are, or are linked, in images/ here.",
        "train: images",
        "val: images",
        "names:",
        # A JSON string is also a YAML string.
        *(f"  {place}: {json.dumps(name)}" for place, name in enumerate(categories.values())),
    ]
    folder.write(YOLO_FILE, "\n".join([*lines, ""]).encode())


def encode_labelme(result: ImageResult, image_path: str) -> bytes:
    """Returns the JSON of an image for labelme; masks without a category are labelled "object".

    Args:
        result: of an image.
        image_path: the image for labelme, relative to the folder of the JSON or absolute.
    """
    masks = ((record.get("category", "object"), decode_mask(record)) for record in result.records)
    size = result.height, result.width
    return json.dumps(labelme_content(masks, size, image_path, Losses())).encode()


def write_coco(
    folder: Folder,
    records: Iterable[Mapping[str, Any]],
    categories: Mapping[int, str],
    polygons: bool = False,
) -> None:
    """Writes one COCO data set of all images, holding one record at a time.

    Args:
        folder: of the run.
        records: per image, what :func:`encode_record` wrote.
        categories: id to name.
        polygons: write masks as polygons instead of RLE. This loses holes and empty masks; a
            warning counts them.
    """
    losses = Losses()
    with folder.create(COCO_FILE) as file, folder.scratch() as annotations:
        file.write(b'{"images": [')
        between, between_masks = b"\n", b"\n"
        for content in records:
            image = content["image"]
            entry = {"id": image["image_id"], **_without(image, "image_id")}
            file.write(between + json.dumps(entry).encode())
            between = b",\n"
            for record in content["annotations"]:
                annotation = record_annotation(
                    record, image["image_id"], record["id"], losses if polygons else None
                )
                if annotation is not None:
                    annotations.write(between_masks + json.dumps(annotation).encode())
                    between_masks = b",\n"
        file.write(b'\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        listed = [{"id": number, "name": name} for number, name in categories.items()]
        file.write(b'\n],\n"categories": ' + json.dumps(listed).encode() + b"}\n")
    losses.warn()


def write_parquet(folder: Folder, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one table of all masks, one row per mask.

    Raises:
        MissingExtra: if pyarrow is not installed.
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
            # File names need not be valid Unicode, text in a table must be.
            name = image["file_name"].encode("utf-8", "replace").decode()
            for record in content["annotations"]:
                rows.append(
                    {
                        **image,
                        **record,
                        "file_name": name,
                        "rle_counts": record["segmentation"]["counts"],
                        **dict(zip("xywh", coco_box(record["segmentation"]), strict=True)),
                    }
                )
            if len(rows) >= _ROWS_PER_GROUP:
                table.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            table.write_table(pyarrow.Table.from_pylist(rows, schema))


def import_pyarrow() -> tuple[Any, Any]:
    """Returns pyarrow and its module for Parquet; raises MissingExtra if not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra.of("pyarrow", "annotate") from error
    return pyarrow, parquet


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}
