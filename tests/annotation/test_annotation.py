"""Annotating data sets: sources, formats, runs that are stopped and go on, and the command.

The model is the bundled one on small inputs; what it finds does not matter here.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pycocotools.mask
import pytest
import supervision
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from pycocotools.coco import COCO

from mobile_sam_plugin import MobileSam, SamPredictor, annotate
from mobile_sam_plugin.annotation import (
    AnnotationOptions,
    AnnotationRun,
    ImageResult,
    stages,
    writers,
)
from mobile_sam_plugin.annotation.items import Listed
from mobile_sam_plugin.annotation.sources import open_source
from mobile_sam_plugin.annotation.storage import Folder
from mobile_sam_plugin.automatic_mask_generator import SamAutomaticMaskGenerator
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.detectors import Detections
from mobile_sam_plugin.integrations.grounded_sam import GroundedMobileSam
from mobile_sam_plugin.integrations.video import VideoWriter
from mobile_sam_plugin.mobile_sam import set_img_size
from mobile_sam_plugin.records import decode_mask, encode_mask

from ..integrations.models import save_owl_detector
from .attempts import FORMATS, SEARCH

ROOT = Path(__file__).parents[2]
FLAGS = ["--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]

Captured = pytest.CaptureFixture[str]


def draw(seed: int, width: int = 80, height: int = 60) -> Image.Image:
    """A disc and a square on a ramp."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = np.linspace(40, 200, width)[None, :, None]
    x, y = (int(v) for v in rng.integers(15, 45, 2))
    cv2.circle(pixels, (x, y), 12, tuple(map(int, rng.integers(0, 255, 3))), cv2.FILLED)
    cv2.rectangle(pixels, (55, 20), (75, 50), tuple(map(int, rng.integers(0, 255, 3))), cv2.FILLED)
    return Image.fromarray(pixels)


def save_images(folder: Path, count: int) -> Path:
    """Images in a folder and in one below it."""
    (folder / "sub").mkdir(parents=True)
    for index in range(count):
        draw(index).save(folder / ("sub" if index % 3 == 2 else "") / f"image_{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, of which two would share a name without their suffixes."""
    folder = save_images(tmp_path_factory.mktemp("photos") / "photos", 4)
    draw(9).save(folder / "image_00.jpg")
    return folder


@pytest.fixture(scope="module")
def annotated(
    photos: Path, tiny_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[ImageResult]]:
    """A finished run in all formats, and what it has yielded."""
    out = tmp_path_factory.mktemp("annotated") / "out"
    return out, [*annotate(photos, out, model=tiny_sam, formats=FORMATS, **SEARCH)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def tiny_cli(tiny_sam: MobileSam, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the command use the tiny model, which no option of it would."""
    module = sys.modules["mobile_sam_plugin.cli.annotate"]  # the package has its function
    monkeypatch.setattr(module, "load_sam", lambda *_: tiny_sam)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_records(out: Path) -> dict[str, Any]:
    """The records of a run by the name of their image's file."""
    contents = [json.loads(path.read_text()) for path in (out / "sa1b").rglob("*.json")]
    return {content["image"]["file_name"]: content for content in contents}


def save_coco(folder: Path, **changes: Any) -> Path:
    """A data set of two images with boxes, and one without, beside its images."""
    folder.mkdir(exist_ok=True)
    for index in range(3):
        draw(index).save(folder / f"{index}.png")
    boxes = [
        (1, 7, [10.0, 10.0, 30.0, 30.0]),
        (1, 8, [55.0, 20.0, 20.0, 30.0]),
        (2, 7, [5, 5, 9, 9]),
    ]
    content = {
        "images": [{"id": 1 + i, "file_name": f"{i}.png"} for i in range(3)],
        "categories": [{"id": 7, "name": "disc"}, {"id": 8, "name": "square"}],
        "annotations": [
            {"id": 40 + i, "image_id": image, "category_id": category, "bbox": box}
            for i, (image, category, box) in enumerate(boxes)
        ],
        **changes,
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


# what comes out


def test_results_are_those_of_the_generator(
    photos: Path, annotated: tuple[Path, list[ImageResult]], tiny_sam: MobileSam
) -> None:
    out, results = annotated
    keys = ["image_00.jpg", "image_00.png", "image_01.png", "image_03.png", "sub/image_02.png"]
    assert [result.key for result in results] == keys
    assert [result.image_id for result in results] == [1, 2, 3, 4, 5]
    generator = SamAutomaticMaskGenerator(tiny_sam, output_mode="coco_rle", **SEARCH)
    records = read_records(out)
    for result in results:
        generated = generator.generate(Image.open(photos / result.key))
        expected = [record for record in generated if record["area"]]
        found = [{k: v for k, v in record.items() if k != "id"} for record in result.records]
        assert found == expected and expected and result.error is None
        assert records[result.key] == {
            "image": {
                "image_id": result.image_id,
                "file_name": result.key,
                "width": 80,
                "height": 60,
            },
            "annotations": result.records,
        }
    names = {"image_00.jpg", "image_00.png", "image_01", "image_03", "sub/image_02"}
    for folder, suffix in (
        ("sa1b", "json"),
        ("ids", "png"),
        ("labels", "txt"),
        ("overlays", "jpg"),
    ):
        assert set(files_in(out / folder)) == {f"{name}.{suffix}" for name in names}
    assert not (out / "errors.jsonl").exists() and not (out / ".partial").exists()
    ids = [record["id"] for result in results for record in result.records]
    assert len(set(ids)) == len(ids)


def test_coco_is_read_by_pycocotools_and_supervision(
    photos: Path, annotated: tuple[Path, list[ImageResult]]
) -> None:
    out, results = annotated
    coco = COCO(out / "instances.json")
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "object"}]
    data = supervision.DetectionDataset.from_coco(str(photos), str(out / "instances.json"), True)
    detections = {os.path.relpath(path, photos): found for path, _, found in data}
    for result in results:
        annotations = coco.loadAnns(coco.getAnnIds(result.image_id))
        assert coco.loadImgs(result.image_id)[0]["file_name"] == result.key
        masks = np.array([decode_mask(record) for record in result.records])
        np.testing.assert_array_equal([coco.annToMask(each) for each in annotations], masks)
        np.testing.assert_array_equal(detections[result.key].mask, masks)
        for annotation, mask in zip(annotations, masks, strict=True):
            assert annotation["bbox"] == [*cv2.boundingRect(mask.astype(np.uint8))]
            assert annotation["area"] == mask.sum()


def test_parquet_is_a_table_of_masks(annotated: tuple[Path, list[ImageResult]]) -> None:
    out, results = annotated
    table = parquet.read_table(out / "masks.parquet").to_pylist()
    masks = [(result, record) for result in results for record in result.records]
    for row, (result, record) in zip(table, masks, strict=True):
        assert row["file_name"] == result.key and row["image_id"] == result.image_id
        for name in ("id", "area", "predicted_iou", "stability_score"):
            assert row[name] == pytest.approx(record[name])
        rle = {"size": [row["height"], row["width"]], "counts": row["rle_counts"]}
        np.testing.assert_array_equal(pycocotools.mask.decode(rle), decode_mask(record))
        assert [row[side] for side in "xywh"] == pycocotools.mask.toBbox(rle).tolist()


def read_yolo(path: Path, width: int, height: int) -> list[NDArray[np.uint8]]:
    """Masks from a label file, as Ultralytics reads and rasterises it."""
    masks = []
    for line in path.read_text().splitlines():
        number, *outline = line.split()
        assert number.isdecimal() and len(outline) >= 6 and len(outline) % 2 == 0
        polygon = np.array(outline, np.float32).reshape(-1, 2)
        assert polygon.min() >= 0 and polygon.max() <= 1
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [(polygon * [width, height]).astype(np.int32)], 1)
        masks.append(mask)
    return masks


def test_yolo_outlines_and_ids_agree_with_the_masks(
    annotated: tuple[Path, list[ImageResult]],
) -> None:
    out, results = annotated
    for result in results:
        name = result.key if result.key.startswith("image_00") else result.key[:-4]
        masks = [decode_mask(record) for record in result.records]
        outlines = read_yolo(out / "labels" / f"{name}.txt", 80, 60)
        for mask, outline in zip(masks, outlines, strict=True):
            contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, 2)
            filled = cv2.drawContours(np.zeros_like(outline), contours, -1, 1, cv2.FILLED)
            assert (outline >= filled).all()  # joints between parts may add a line
            assert np.count_nonzero(outline - filled) <= 100 * (len(contours) - 1)
        ids = np.asarray(Image.open(out / "ids" / f"{name}.png"))
        np.testing.assert_array_equal(ids > 0, np.any(masks, axis=0))
        smallest = int(np.argmin([mask.sum() for mask in masks]))
        assert (ids[masks[smallest]] == 1 + smallest).all()


@pytest.mark.parametrize("ids", [[0, 1], [1, 90], [3, 2]], ids=str)
def test_yolo_numbers_classes_from_0_and_names_them(
    tmp_path: Path, tiny_sam: MobileSam, ids: list[int]
) -> None:
    names = ['the "red": car', "яблоко"]
    categories = [{"id": n, "name": name} for n, name in zip(ids, names, strict=True)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": category, "bbox": [10, 10, 30, 30]}
        for n, category in enumerate(reversed(ids), 1)
    ]
    data = save_coco(tmp_path / "data", categories=categories, annotations=annotations)
    out = tmp_path / "out"
    assert len([*annotate(data, out, model=tiny_sam, mode="boxes", formats=["yolo"])]) == 3
    lines = (out / "labels" / "0.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "0"]
    read = yaml.safe_load((out / "data.yaml").read_text())
    assert read == {"train": "images", "val": "images", "names": dict(enumerate(names))}


@pytest.mark.parametrize(
    ("categories", "category_id"), [(None, 1), ([{"id": 1, "name": "a"}], 5)], ids=str
)
def test_categories_that_are_used_are_listed(
    tmp_path: Path, tiny_sam: MobileSam, categories: Any, category_id: int
) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": category_id, "bbox": [10, 10, 30, 30]}
    data = save_coco(tmp_path / "data", categories=categories or [], annotations=[annotation])
    if categories is None:
        content = json.loads(data.read_text())
        del content["categories"]
        data.write_text(json.dumps(content))
    options: Any = {"model": tiny_sam, "mode": "boxes", "formats": ["coco", "yolo"]}
    with pytest.warns(UserWarning, match=f"categor.*{category_id}"):
        results = [*annotate(data, tmp_path / "out", **options)]
    coco = COCO(tmp_path / "out" / "instances.json")
    assert coco.anns[1]["category_id"] in coco.cats
    assert coco.cats[category_id]["name"] == results[0].records[0]["category"] == str(category_id)
    expected = "1" if categories else "0"
    assert (tmp_path / "out" / "labels" / "0.txt").read_text().startswith(f"{expected} ")


def test_coco_in_polygons_tells_what_is_lost(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 20:50] = True
    mask[15:20, 30:40] = False
    fields = {"predicted_iou": 0.5, "stability_score": 0.5}
    records = [
        {"id": n, "segmentation": encode_mask(each), "area": int(each.sum()), **fields}
        for n, each in enumerate((mask, mask & False), 1)
    ]
    image = {"image_id": 3, "file_name": "a.png", "width": 60, "height": 40}
    content = {"image": image, "annotations": records}
    with pytest.warns(UserWarning, match="holes of 1 mask are filled, 1 mask of no pixel"):
        writers.write_coco(Folder(tmp_path), [content], {1: "object"}, polygons=True)
    coco = COCO(tmp_path / "instances.json")
    (annotation,) = coco.anns.values()
    filled = np.zeros_like(mask)
    filled[10:30, 20:50] = True
    np.testing.assert_array_equal(coco.annToMask(annotation), filled)
    assert annotation["area"] == mask.sum() and annotation["bbox"] == [20, 10, 30, 20]


def test_labelme_has_the_categories() -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 20:50] = True
    record: Any = {"segmentation": encode_mask(mask), "area": 600}
    result = ImageResult("a.png", 1, 60, 40, [record, record | {"category": "cat"}])
    content = json.loads(writers.encode_labelme(result, "../../photos/a.png"))
    assert [shape["label"] for shape in content["shapes"]] == ["object", "cat"]
    assert (content["imageWidth"], content["imageHeight"]) == (60, 40)
    assert content["imagePath"] == "../../photos/a.png"


def only_item(path: Path) -> Any:
    draw(0).save(path)
    return next(open_source(path).items(lambda _: True))


def test_an_overlay_too_long_for_jpeg_is_a_png(tmp_path: Path) -> None:
    item = only_item(tmp_path / "a.png")
    options = AnnotationOptions(formats=("overlay",))
    for width, suffix in ((65500, "jpg"), (65501, "png")):
        pixels = np.zeros((2, width, 3), np.uint8)
        result = ImageResult("a.png", 1, width, 2)
        stages.write(stages.Loaded(item, pixels), result, Folder(tmp_path), options)
        assert result.error is None
        with Image.open(tmp_path / "overlays" / f"a.{suffix}") as overlay:
            assert overlay.size == (width, 2)


def test_what_no_format_can_hold_is_an_error_of_that_image(tmp_path: Path) -> None:
    item = only_item(tmp_path / "a.png")
    pixels = np.zeros((1, 1_000_001, 3), np.uint8)  # longer than libpng writes
    result = ImageResult("a.png", 1, 1_000_001, 1)
    options = AnnotationOptions(formats=("ids",))
    stages.write(stages.Loaded(item, pixels), result, Folder(tmp_path), options)
    assert result.error is not None and "1000001 x 1" in result.error
    assert not list(tmp_path.rglob("*/*.png")) and not list(tmp_path.rglob("*.json"))


def test_objects_that_the_text_does_not_name_are_left_out(
    photos: Path, tmp_path: Path, tiny_sam: MobileSam
) -> None:
    def detect(image: NDArray[np.uint8], prompts: Any, *_: float) -> Detections:
        boxes = np.array([[5, 5, 40, 40], [50, 10, 79, 55]], np.float32)
        return Detections(boxes, np.array([0.9, 0.4], np.float32), ["zebra", "square"])

    options: Any = {"mode": "text", "text": "a disc. a square", "detector": detect}
    with pytest.warns(UserWarning, match="left out: 2 detected objects"):
        results = [*annotate(photos, tmp_path, model=tiny_sam, **options, limit=2)]
    for result in results:
        assert [record["category"] for record in result.records] == ["a square"]
        assert [record["category_id"] for record in result.records] == [2]


def test_ids_take_16_bits_for_many_masks() -> None:
    records: list[Any] = []
    for index in range(300):
        mask = np.zeros((20, 20), bool)
        mask.flat[index] = True
        records.append({"segmentation": encode_mask(mask), "area": 1})
    png = writers.encode_ids(ImageResult("a", 1, 20, 20, records))
    ids = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))
    assert ids.dtype == np.uint16 and ids.flat[299] == 300 and ids.flat[300] == 0


def test_overlays_of_every_nth_image(photos: Path, tiny_sam: MobileSam, tmp_path: Path) -> None:
    options: Any = {"formats": ["overlay"], "overlay_every": 2, **SEARCH}
    assert len([*annotate(photos, tmp_path, model=tiny_sam, **options)]) == 5
    assert len(files_in(tmp_path / "overlays")) == 3


def test_threads_and_batches_change_nothing(
    photos: Path, annotated: tuple[Path, list[ImageResult]], tiny_sam: MobileSam
) -> None:
    _, expected = annotated
    results = [*annotate(photos, model=tiny_sam, workers=3, batch_size=2, **SEARCH)]
    for result, before in zip(results, expected, strict=True):
        assert result.key == before.key
        for record, other in zip(result.records, before.records, strict=True):
            assert pycocotools.mask.iou(
                [record["segmentation"]], [other["segmentation"]], [0]
            ) == pytest.approx(1, abs=0.01)


def test_boxes_are_segmented_as_the_predictor_does(tmp_path: Path, tiny_sam: MobileSam) -> None:
    data = save_coco(tmp_path / "data")
    options: Any = {"mode": "boxes", "formats": ["coco", "yolo"]}
    results = [*annotate(data, tmp_path / "out", model=tiny_sam, **options)]
    assert [[record["id"] for record in result.records] for result in results] == [
        [40, 41],
        [42],
        [],
    ]
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(Image.open(tmp_path / "data" / "0.png"))
    boxes = ([10, 10, 40, 40], [55, 20, 75, 50])
    for record, box in zip(results[0].records, boxes, strict=True):
        (mask,), (score,), _ = predictor.predict(box=box, multimask_output=False)
        np.testing.assert_array_equal(decode_mask(record), mask)
        assert record["predicted_iou"] == pytest.approx(float(score), abs=1e-5)
    assert [record["category"] for record in results[0].records] == ["disc", "square"]
    coco = COCO(tmp_path / "out" / "instances.json")
    assert [coco.anns[number]["category_id"] for number in (40, 41, 42)] == [7, 8, 7]
    assert sorted(coco.cats) == [7, 8] and sorted(coco.imgs) == [1, 2, 3]


def test_words_are_segmented_as_grounded_sam_does(
    photos: Path, tmp_path: Path, tiny_sam: MobileSam
) -> None:
    def detect(image: NDArray[np.uint8], prompts: Any, *_: float) -> Detections:
        boxes = np.array([[5, 5, 40, 40], [50, 10, 79, 55]], np.float32)
        return Detections(boxes, np.array([0.9, 0.4], np.float32), ["disc", "square"])

    options: Any = {"mode": "text", "text": "a disc. a square", "detector": detect}
    results = [*annotate(photos, tmp_path, model=tiny_sam, **options, limit=2)]
    grounded = GroundedMobileSam(tiny_sam, detect)
    for result in results:
        expected = grounded.predict(photos / result.key, "a disc. a square")
        found = [decode_mask(record) for record in result.records]
        np.testing.assert_array_equal(found, expected.masks)
        assert [record["score"] for record in result.records] == expected.scores.tolist()
        assert [record["category"] for record in result.records] == ["a disc", "a square"]
    content = json.loads((tmp_path / "instances.json").read_text())
    assert [each["name"] for each in content["categories"]] == ["a disc", "a square"]


def test_command_segments_words_by_a_detector_in_a_folder(
    photos: Path, tiny_cli: None, out: Path, tmp_path: Path
) -> None:
    """One with random weights, that finds something everywhere."""
    save_owl_detector(tmp_path / "detector", "Owlv2")
    words = ["--mode", "text", "--text", "a dog. the red cars", "--box-threshold", "0"]
    detector = ["--detector", str(tmp_path / "detector"), "--limit", "1"]
    assert main(["annotate", str(photos), "--out", str(out), *words, *detector]) == 0
    (content,) = read_records(out).values()
    names = {1: "a dog", 2: "the red cars"}
    assert content["annotations"]
    for record in content["annotations"]:
        assert record["category"] == names[record["category_id"]]


def test_crops_are_searched_as_the_generator_does(photos: Path, tiny_sam: MobileSam) -> None:
    search: dict[str, Any] = {**SEARCH, "crop_n_layers": 1}
    (result,) = annotate(photos / "image_01.png", model=tiny_sam, **search)
    generator = SamAutomaticMaskGenerator(tiny_sam, output_mode="coco_rle", **search)
    expected = generator.generate(Image.open(photos / "image_01.png"))
    assert [record["segmentation"] for record in result.records] == [
        record["segmentation"] for record in expected if record["area"]
    ]


# what goes in


def test_sources_list_the_same_images(photos: Path, tmp_path: Path) -> None:
    def keys(source: Any) -> list[str]:
        return [listed.key for listed in open_source(source).listing()]

    below = ["image_00.jpg", "image_00.png", "image_01.png", "image_03.png", "sub/image_02.png"]
    assert keys(photos) == keys(f"{photos}/**/*.*g") == keys(f"file://{photos}") == below
    assert keys([photos / "sub", f"{photos}/image_0[13].png"]) == [
        "sub/image_02.png",
        "image_01.png",
        "image_03.png",
    ]
    paths = tmp_path / "paths.txt"
    paths.write_text(f"# two\n{photos}/sub/image_02.png\n\n{photos}/image_01.png\n")
    assert keys(paths) == ["sub/image_02.png", "image_01.png"]
    paths = photos.parent / "relative.txt"
    paths.write_text("photos/image_01.png\n./photos/sub/image_02.png\n")
    assert keys(paths) == ["image_01.png", "sub/image_02.png"]
    assert keys(photos / "image_01.png") == ["image_01.png"]


def test_folder_of_results_in_the_source_is_left_out(
    photos: Path, tiny_sam: MobileSam, tmp_path: Path
) -> None:
    source = save_images(tmp_path / "photos", 3)
    for _ in range(2):
        options: Any = {"formats": ["overlay", "ids"], **SEARCH}
        run = annotate(source, source / "out", model=tiny_sam, **options)
        assert {result.key for result in run} <= {f"image_0{i}.png" for i in (0, 1)} | {
            "sub/image_02.png"
        }
    assert len(files_in(source / "out" / "sa1b")) == 3


def test_frames_of_a_video_and_going_on_with_them(tiny_sam: MobileSam, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 25) as video:
        for index in range(6):
            video.write(np.asarray(draw(index)))
    whole = tmp_path / "whole"
    results = [*annotate(tmp_path / "video.mp4", whole, model=tiny_sam, **SEARCH)]
    assert [result.key for result in results] == [f"{index:06}" for index in range(6)]
    assert all(result.records for result in results)

    (whole / "sa1b" / "000003.json").unlink()
    before = files_in(whole)
    (result,) = annotate(tmp_path / "video.mp4", whole, model=tiny_sam, **SEARCH)
    assert result.key == "000003" and result.records == results[3].records
    assert before.items() <= files_in(whole).items()


def test_a_video_that_goes_on_counts_what_is_done(tiny_sam: MobileSam, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 25) as video:
        for index in range(6):
            video.write(np.asarray(draw(index)))

    def begin(**options: Any) -> AnnotationRun:
        source = open_source(tmp_path / "video.mp4")
        return AnnotationRun(
            source,
            tmp_path / "out",
            tiny_sam,
            AnnotationOptions(generator_options=SEARCH, **options),
        )

    def images() -> int:
        return len(json.loads((tmp_path / "out" / "instances.json").read_text())["images"])

    run = begin(limit=4)
    assert [result.key for result in run.run()] == [f"{index:06}" for index in range(4)]
    assert (run.done, run.total) == (4, 4)
    run = begin()
    assert (run.done, run.total) == (4, 6)
    interrupted = run.collect(interrupt())  # while it skips what is done
    with pytest.raises(KeyboardInterrupt):
        next(interrupted)
    assert run.done == images() == 4
    run = begin()
    assert len([*run.run()]) == 2 and run.done == images() == 6
    assert begin().done == 6


def interrupt() -> Any:
    raise KeyboardInterrupt
    yield


def test_a_limit_ends_the_decoding_of_a_video(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 25) as video:
        for index in range(9):
            video.write(np.asarray(draw(index)))
    asked = []

    def is_wanted(listed: Listed) -> bool:
        asked.append(listed.index)
        return True

    found = [*open_source(tmp_path / "video.mp4").items(is_wanted, 2)]
    assert [item.index for item in found] == asked == [0, 1]


def test_labelme_and_polygons(photos: Path, tiny_sam: MobileSam, tmp_path: Path) -> None:
    options: Any = {"model": tiny_sam, "formats": ["coco", "labelme"], "polygons": True, **SEARCH}
    results = [*annotate(photos, tmp_path, **options)]
    content = json.loads((tmp_path / "labelme" / "sub" / "image_02.json").read_text())
    path = tmp_path / "labelme" / "sub" / content["imagePath"]
    assert path.resolve() == photos / "sub" / "image_02.png"
    assert content["imagePath"].startswith("..")
    assert content["shapes"][0]["shape_type"] == "polygon"
    coco = COCO(tmp_path / "instances.json")
    for result in results:
        for annotation in coco.loadAnns(coco.getAnnIds(result.image_id)):
            assert isinstance(annotation["segmentation"], list)
    again = [*annotate(photos, tmp_path, **{**options, "polygons": False})]  # made from the records
    assert again == []
    coco = COCO(tmp_path / "instances.json")
    assert all(isinstance(each["segmentation"], dict) for each in coco.anns.values())
    with pytest.raises(UserError, match="polygons applies only to the format coco"):
        AnnotationOptions(formats=("yolo",), polygons=True)
    with pytest.raises(UserError, match="overlay_every applies only to the format overlay"):
        AnnotationOptions(formats=("yolo",), overlay_every=2)


def test_options_may_be_numpy_values(photos: Path, tiny_sam: MobileSam, tmp_path: Path) -> None:
    options: Any = {
        "points_per_side": None,
        "point_grids": [np.array([[0.5, 0.5]])],
        "pred_iou_thresh": np.float32(0),
        "stability_score_thresh": np.float64(0),
    }
    for _ in range(2):
        run = annotate(photos, tmp_path, model=tiny_sam, formats="coco", limit=1, **options)
        assert len([*run]) <= 1
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["formats"] == ["sa1b", "coco"]
    assert described["options"]["generator_options"]["point_grids"] == [[[0.5, 0.5]]]


def test_the_limit_of_pixels_can_be_lifted(tiny_sam: MobileSam, tmp_path: Path) -> None:
    draw(0, 80, 60).save(tmp_path / "a.png")
    draw(0, 80, 59).save(tmp_path / "b.png")
    options: Any = {"model": tiny_sam, "points_per_side": 1}
    limit = Image.MAX_IMAGE_PIXELS
    large, small = annotate(tmp_path, tmp_path / "out", max_pixels=80 * 59, **options)
    assert "--max-pixels" in str(large.error) and small.error is None
    assert limit == Image.MAX_IMAGE_PIXELS
    (large,) = annotate(tmp_path, tmp_path / "out", max_pixels=80 * 60, **options)
    assert large.error is None
    with pytest.raises(UserError, match="max_pixels must be 1 or more"):
        annotate(tmp_path, max_pixels=0, **options)


def test_urls_are_read_and_written(
    photos: Path, annotated: tuple[Path, list[ImageResult]], tiny_sam: MobileSam
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{photos}/", "/photos/", recursive=True)
    source, out = "memory://photos", "memory://out"
    options: Any = {"model": tiny_sam, "formats": FORMATS, **SEARCH}
    first = annotate(source, out, limit=2, **options)
    assert len([*first]) == 2
    results = [*annotate(source, out, **options)]
    assert [result.key for result in results] == [r.key for r in annotated[1][2:]]
    expected = files_in(annotated[0])
    found = {path.removeprefix("/out/"): memory.cat(path) for path in memory.find("/out")}
    run, other = json.loads(found.pop("run.json")), json.loads(expected.pop("run.json"))
    assert found == expected
    assert run["listing"] == other["listing"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.png", "no image or folder"),
        ("missing/*.png", "no image matches"),
        ("empty", "there is no image in the folder"),
        ("empty.txt", "no path"),
        ("missing.txt", "missing.txt"),
        ("broken.json", "is not COCO's instances JSON"),
        ("noise.mp4", "OpenCV cannot decode"),
        ("missing.mp4", "there is no video"),
        ("twice.txt", "listed twice"),
        ("escape.json", "is not below"),
        ("unknown://bucket/a.png", "unknown"),
    ],
)
def test_sources_that_cannot_be_used_are_named(
    tmp_path: Path, tiny_cli: None, capsys: Captured, source: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "twice.txt").write_text("a.png\n./a.png\n")
    (tmp_path / "broken.json").write_text("[]")
    (tmp_path / "noise.mp4").write_bytes(b"noise")
    listed = {"images": [{"id": 1, "file_name": "../up.png"}]}
    (tmp_path / "escape.json").write_text(json.dumps(listed))
    name = source if "://" in source else str(tmp_path / source)
    assert main(["annotate", name, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and words in captured.err, captured.err
    assert not (tmp_path / "out").exists()


# stopping and going on


@pytest.mark.process
@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_as_an_undisturbed_one(
    tiny_sam: MobileSam, tmp_path: Path
) -> None:
    torch.save(tiny_sam, tmp_path / "model.pt")
    images = save_images(tmp_path / "images", 16)
    (images / "broken.png").write_bytes(b"no image")
    arguments = map(str, (tmp_path / "model.pt", images, tmp_path, 20, 7))
    done = subprocess.run(
        [sys.executable, "-m", "tests.annotation.attempts", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    progress = [int(line) for line in done.stdout.split()]
    assert len(progress) == 20 and progress == sorted(progress)
    assert any(0 < count < 16 for count in progress), progress
    undisturbed = files_in(tmp_path / "undisturbed")
    assert files_in(tmp_path / "killed") == undisturbed
    assert len([name for name in undisturbed if name.startswith("sa1b/")]) == 16
    assert len(undisturbed["errors.jsonl"].splitlines()) == 1


def test_a_run_that_is_left_closes_its_files_and_goes_on(
    photos: Path, annotated: tuple[Path, list[ImageResult]], tiny_sam: MobileSam, tmp_path: Path
) -> None:
    options: Any = {"model": tiny_sam, "formats": FORMATS, **SEARCH}
    run = annotate(photos, tmp_path, **options)
    next(run)
    run.close()  # type: ignore[attr-defined]
    begun = json.loads((tmp_path / "instances.json").read_text())
    assert 0 < len(begun["images"]) < 5
    assert begun["images"][0]["file_name"] == "image_00.jpg"
    assert {image["file_name"] for image in begun["images"]} == set(read_records(tmp_path))
    assert 5 - len(begun["images"]) == len([*annotate(photos, tmp_path, **options)])
    assert files_in(tmp_path) == files_in(annotated[0])
    assert [*annotate(photos, tmp_path, **options)] == []


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(
    tiny_sam: MobileSam, tiny_cli: None, tmp_path: Path, capsys: Captured
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        images = save_images(tmp_path / "images", 12)
        formats = ["--format", "coco", "--format", "ids"]
        command = ["annotate", str(images), "--out", str(disk / "out"), *FLAGS, *formats]
        assert main(command) == 1
        captured = capsys.readouterr()
        (line,) = [line for line in captured.err.splitlines() if line.startswith("mobile-sam:")]
        assert "No space left" in line and str(disk) in line
        done = read_records(disk / "out")
        assert 0 < len(done) < 12
        assert f"{len(done)} of 12 images are done" in captured.out
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert main(command) == 0
        assert (
            main(["annotate", str(images), "--out", str(tmp_path / "out"), *FLAGS, *formats]) == 0
        )
        assert files_in(disk / "out") == files_in(tmp_path / "out")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_new_images_are_taken_in_and_ids_and_names_stay(
    tiny_sam: MobileSam, tmp_path: Path
) -> None:
    """Before, between and behind those that are there, and with the name of one."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()

    def run() -> list[str]:
        options: Any = {"model": tiny_sam, "formats": ["coco", "yolo"], **SEARCH}
        return [result.key for result in annotate(images, out, **options)]

    for index, name in enumerate(("b.png", "d.png")):
        draw(index).save(images / name)
    assert run() == ["b.png", "d.png"]
    before = files_in(out)
    for index, name in enumerate(("a.png", "c.png", "d.jpg", "e.png"), 2):
        draw(index).save(images / name)
    assert run() == ["a.png", "c.png", "d.jpg", "e.png"]
    after = files_in(out)
    whole = {"images.jsonl.gz", "instances.json"}
    assert {name: after[name] for name in before.keys() - whole} == {
        name: before[name] for name in before.keys() - whole
    }
    ids = {key: content["image"]["image_id"] for key, content in read_records(out).items()}
    assert ids == {"b.png": 1, "d.png": 2, "a.png": 3, "c.png": 4, "d.jpg": 5, "e.png": 6}
    coco = COCO(out / "instances.json")
    assert {image["file_name"]: number for number, image in coco.imgs.items()} == ids
    assert len(coco.anns) == sum(len(each["annotations"]) for each in read_records(out).values())
    assert run() == [] and files_in(out) == after

    (images / "b.png").unlink()
    draw(9).save(images / "f.png")
    with pytest.warns(UserWarning, match=r"1 image is no longer in the input, such as 'b.png'"):
        assert run() == ["f.png"]
    assert sorted(COCO(out / "instances.json").imgs) == [2, 3, 4, 5, 6, 7]
    assert (out / "sa1b" / "b.json").exists()


def test_parts_share_new_images_out_whenever_they_see_them(
    tiny_sam: MobileSam, tmp_path: Path
) -> None:
    images = save_images(tmp_path / "images", 4)

    def run(part: int) -> list[tuple[str, int]]:
        options: Any = {"model": tiny_sam, "shard": (part, 2), "points_per_side": 1}
        results = annotate(images, tmp_path / str(part), **options)
        return [(result.key, result.image_id) for result in results]

    found = run(1) + run(2)
    for name in "uvwx":
        draw(ord(name)).save(images / f"{name}.png")
    found += run(1)  # the other part does not see these alone
    for name in "abcd":
        draw(ord(name)).save(images / f"{name}.png")
    found += run(1) + run(2)
    assert sorted(key for key, _ in found) == sorted(
        path.relative_to(images).as_posix() for path in images.rglob("*.png")
    )
    assert len({image_id for _, image_id in found}) == 12
    assert run(1) == run(2) == []


def test_new_images_of_a_json_are_taken_in_and_changed_boxes_refused(
    tiny_sam: MobileSam, tmp_path: Path
) -> None:
    data, out = save_coco(tmp_path / "data"), tmp_path / "out"
    content = json.loads(data.read_text())

    def run(mode: str = "boxes") -> list[int]:
        data.write_text(json.dumps(content))
        options: Any = {"model": tiny_sam, "mode": mode}
        return [result.image_id for result in annotate(data, out, **options)]

    assert run() == [1, 2, 3]
    draw(7).save(tmp_path / "data" / "7.png")
    content["images"].insert(0, {"id": 70, "file_name": "7.png"})
    content["annotations"].append(
        {"id": 90, "image_id": 70, "category_id": 7, "bbox": [5, 5, 9, 9]}
    )
    assert run() == [70]
    assert sorted(COCO(out / "instances.json").anns) == [40, 41, 42, 90]
    content["annotations"][0]["bbox"] = [0, 0, 5, 5]
    with pytest.raises(UserError, match=r"ids or boxes of 1 images have changed, such as '0.png'"):
        run()


def test_a_damaged_record_is_made_again(tiny_sam: MobileSam, tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", 3)
    options: Any = {"model": tiny_sam, **SEARCH}
    assert len([*annotate(images, tmp_path / "out", **options)]) == 3
    before = files_in(tmp_path / "out")
    (tmp_path / "out" / "sa1b" / "image_00.json").write_bytes(b"")  # the machine lost its power
    with pytest.warns(UserWarning, match=r"image_00.json' was damaged and is removed"):
        assert [*annotate(images, tmp_path / "out", **options)] == []
    (result,) = annotate(images, tmp_path / "out", **options)
    assert result.key == "image_00.png" and files_in(tmp_path / "out") == before


def test_results_that_cannot_have_their_name_are_the_error_of_their_image(
    tiny_sam: MobileSam, tmp_path: Path
) -> None:
    """Here the results of one image would be a folder of those of another."""
    (tmp_path / "images" / "a.json").mkdir(parents=True)
    draw(0).save(tmp_path / "images" / "a.png")
    draw(1).save(tmp_path / "images" / "a.json" / "b.png")
    options: Any = {"model": tiny_sam, "points_per_side": 1}
    first, second = annotate(tmp_path / "images", tmp_path / "out", **options)
    assert first.error is None and "a.json" in str(second.error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points_per_side": 3}, "generator_options points_per_side was 2, is now 3"),
        ({"box_nms_thresh": 0.5}, "box_nms_thresh was None, is now 0.5"),
        ({"formats": ["coco", "ids"]}, "formats was"),
        ({"shard": (1, 2)}, "shard was [1, 1], is now [1, 2]"),
        ({"overlay_every": 4}, "overlay_every"),
        ({"model": "weights"}, "weights_sha256 has changed"),
        ({"model": "size"}, "img_size was 256, is now 128"),
        ({"source": "sub"}, "image_root "),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_run_of_other_options_is_refused(
    photos: Path,
    annotated: tuple[Path, list[ImageResult]],
    tiny_sam: MobileSam,
    change: dict[str, Any],
    words: str,
) -> None:
    out = annotated[0]
    before = files_in(out)
    options: Any = {"model": tiny_sam, "formats": FORMATS, **SEARCH, **change}
    if options["model"] is not tiny_sam:
        model = copy.deepcopy(tiny_sam)
        if change["model"] == "size":
            set_img_size(model, 128)
        else:
            model.mask_decoder.iou_token.weight.data[0, 0] += 1
        options["model"] = model
    source = options.pop("source", None)
    with pytest.raises(ValueError, match="another run") as raised:
        annotate(photos / "sub" if source else photos, out, **options)
    assert words in str(raised.value) and "--restart" in str(raised.value)
    assert files_in(out) == before


def test_restart_gives_up_an_earlier_run_and_nothing_else(
    photos: Path, annotated: tuple[Path, list[ImageResult]], tiny_sam: MobileSam, tmp_path: Path
) -> None:
    options: Any = {"model": tiny_sam, **SEARCH}
    all_formats = ["ids", "overlay", "parquet"]
    assert len([*annotate(photos, tmp_path, formats=all_formats, **options)]) == 5
    (tmp_path / "notes.txt").write_text("mine")
    assert len([*annotate(photos, tmp_path, formats=["yolo"], restart=True, **options)]) == 5
    found = {name.partition("/")[0] for name in files_in(tmp_path)}
    assert found == {"images.jsonl.gz", "run.json", "sa1b", "labels", "data.yaml", "notes.txt"}


def test_folders_of_another_origin_are_refused(
    photos: Path, tiny_sam: MobileSam, tmp_path: Path
) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.txt").write_text("mine")
    for restart in (False, True):
        with pytest.raises(ValueError, match="not a result of mobile-sam annotate"):
            annotate(photos, tmp_path, model=tiny_sam, restart=restart)
    for other in ("something", "[1, 2]", '{"video": "street", "length": 9}'):
        (tmp_path / "run.json").write_text(other)
        with pytest.raises(ValueError, match="was not written by mobile-sam annotate"):
            annotate(photos, tmp_path, model=tiny_sam, restart=True)
    assert set(files_in(tmp_path)) == {"labels/mine.txt", "run.json"}


def test_shards_are_disjoint_and_cover_all(
    photos: Path, annotated: tuple[Path, list[ImageResult]], tiny_sam: MobileSam, tmp_path: Path
) -> None:
    parts = []
    for part in (1, 2, 3):
        options: Any = {"model": tiny_sam, "shard": (part, 3), "formats": FORMATS, **SEARCH}
        parts += [*annotate(photos, tmp_path / str(part), **options)]
    parts.sort(key=lambda result: result.image_id)
    assert parts == annotated[1]


# the command


def test_command_counts_estimates_and_annotates(
    photos: Path, tiny_cli: None, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out"
    command = ["annotate", str(photos), "--out", str(out), *FLAGS, "--format", "ids"]
    assert main([*command, "--dry-run"]) == 0
    assert not out.exists()
    counted, estimated = capsys.readouterr().out.splitlines()
    assert counted == "5 images: 0 done, 5 to do" and "s per image" in estimated
    assert main([*command, "--limit", "2"]) == 0
    assert f"{out}  2 of 2 images are done" in capsys.readouterr().out
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and f"{out}  5 of 5 images are done" in captured.out
    assert set(read_records(out)) == {listed.key for listed in open_source(photos).listing()}
    assert not (out / "instances.json").exists()


def test_command_tells_what_is_left_out_and_of_a_part_without_images(
    tiny_cli: None, tmp_path: Path, capsys: Captured
) -> None:
    draw(0).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    command = ["annotate", str(tmp_path), "--out", str(tmp_path / "out"), *FLAGS]
    assert main([*command, "--shard", "2/2", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "0 images: 0 done, 0 to do\n"
    assert captured.err.count("1 file is left out: 1 .txt") == captured.err.count("\n") == 1
    assert main([*command, "--max-pixels", "4000"]) == 1
    captured = capsys.readouterr()
    assert "too large to be safe" in captured.err and "left out: 1 .txt" in captured.out
    Image.MAX_IMAGE_PIXELS = 89478485  # as Pillow has it
    assert main([*command, "--polygons", "--format", "coco", "--format", "labelme"]) == 2
    assert "formats was" in capsys.readouterr().err


def test_command_loads_the_model_and_tells_of_unreadable_images(
    tiny_file: Path, tmp_path: Path, capsys: Captured
) -> None:
    draw(0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    command = ["annotate", str(tmp_path), "--out", str(tmp_path / "out"), *FLAGS]
    command += ["--checkpoint", str(tiny_file)]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("mobile-sam: ") and "bad.png" in captured.err
    assert "1 could not be annotated" in captured.out
    (error,) = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert json.loads(error)["file_name"] == "bad.png"
    assert list(read_records(tmp_path / "out")) == ["good.png"]
    draw(1).save(tmp_path / "bad.png")  # mended
    assert main(command) == 0
    assert len(read_records(tmp_path / "out")) == 2
    assert not (tmp_path / "out" / "errors.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard", "3"], "'3' is not I/N"),
        (["--shard", "3/2"], "1 <= I <= N, not 3/2"),
        (["--mode", "boxes"], "COCO JSON"),
        (["--mode", "text"], "needs a text"),
        (["--text", "a dog"], "mode text"),
        (["--images", "."], "needs a COCO JSON"),
        (["--mode", "boxes", "--points-per-side", "2"], "applies only to mode everything"),
        (["--format", "png"], "--format"),
        (["--ray-address", "auto"], "--ray-address: needs --engine ray"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker: needs --engine ray"),
        (["--crop-n-layers", "3", "--crop-n-points-downscale-factor", "9"], "no point is left"),
    ],
    ids=str,
)
def test_command_rejects_invalid_arguments(
    photos: Path,
    tiny_cli: None,
    tmp_path: Path,
    capsys: Captured,
    arguments: list[str],
    words: str,
) -> None:
    assert main(["annotate", str(photos), "--out", str(tmp_path / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and words in captured.err, captured.err
    assert not (tmp_path / "out").exists()
