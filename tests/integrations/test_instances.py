"""What the pipelines take and give: images, models and the objects found."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import segment_anything
import supervision
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from mobile_sam_plugin import MobileSam, SamPredictor, annotate
from mobile_sam_plugin.drawing import colors_of, palette
from mobile_sam_plugin.files import encode_image
from mobile_sam_plugin.images import load_image
from mobile_sam_plugin.integrations.instances import (
    Instances,
    as_predictor,
    boxes_of,
    path_of,
)

SIZE = (60, 80)


def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def objects(**changes: Any) -> Instances:
    """Three rectangles, of which the second lies on the first."""
    boxes = np.array([[4, 10, 60, 50], [20, 30, 40, 40], [70, 0, 80, 60]], dtype=np.float32)
    masks = np.zeros((3, *SIZE), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    values: dict[str, Any] = {
        "image_size": SIZE,
        "boxes": boxes,
        "masks": masks,
        "scores": np.array([0.9, 0.5, 0.25], dtype=np.float32),
        "labels": ["a dog", "car", "a dog"],
    }
    return Instances(**{**values, **changes})


# Images and models


@pytest.mark.parametrize("kind", ["array", "alpha", "PIL", "str", "path"])
def test_images_of_every_kind(tmp_path: Path, kind: str) -> None:
    expected = picture()
    Image.fromarray(expected).save(tmp_path / "picture.png")
    image: Any = {
        "array": expected,
        "alpha": np.dstack([expected, expected[..., :1]]),
        "PIL": Image.fromarray(expected),
        "str": str(tmp_path / "picture.png"),
        "path": tmp_path / "picture.png",
    }[kind]
    np.testing.assert_array_equal(load_image(image), expected)


def test_files_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(picture()).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(
        load_image(tmp_path / "photo.png"), np.rot90(picture(), -1), strict=True
    )


def test_files_that_are_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing.png"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError):
        load_image(tmp_path)
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(ValueError, match="text.png.*is not an image"):
        load_image(text)
    png = encode_image(".png", picture())
    (tmp_path / "truncated.png").write_bytes(png[: len(png) // 2])
    with pytest.raises(ValueError, match="truncated.png"):
        load_image(tmp_path / "truncated.png")
    with pytest.raises(TypeError, match="float64"):
        load_image(np.zeros(SIZE))  # type: ignore[arg-type]


def test_predictor_of_any_model(own_sam: MobileSam) -> None:
    predictor = as_predictor(own_sam)
    assert isinstance(predictor, SamPredictor) and predictor.model is own_sam
    assert as_predictor(predictor) is predictor
    upstream = segment_anything.SamPredictor(own_sam)
    assert isinstance(as_predictor(upstream), SamPredictor)
    assert as_predictor(upstream, "meta").device.type == "meta"
    with pytest.raises(TypeError, match="not str"):
        as_predictor("vit_t")


# Instances


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": np.zeros((2, 4), np.float32)},
        {"masks": np.zeros((3, 80, 60), bool)},
        {"scores": np.zeros((3, 1), np.float32)},
        {"labels": ["a dog"]},
        {"class_ids": np.zeros(2, np.int64)},
        {"tracker_id": np.zeros(4, np.int64)},
        {"image": np.zeros((80, 60, 3), np.uint8)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_shapes_must_agree(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must have the shape"):
        objects(**changes)


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(0), [0]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
    ],
    ids=str,
)
def test_indexing(index: Any, kept: list[int]) -> None:
    everything = objects(class_ids=np.array([0, -1, 0]), tracker_id=np.array([7, 8, 9]))
    some = everything[index]
    assert len(some) == len(kept)
    assert some.labels == [everything.labels[i] for i in kept]
    for name in ("boxes", "masks", "scores", "class_ids", "tracker_id"):
        np.testing.assert_array_equal(getattr(some, name), getattr(everything, name)[kept])


def test_loop() -> None:
    assert [each.labels for each in objects()] == [["a dog"], ["car"], ["a dog"]]
    with pytest.raises(IndexError, match="3"):
        objects()[3]


def test_supervision_annotates_them() -> None:
    detections = objects().to_supervision()
    np.testing.assert_array_equal(detections.xyxy, objects().boxes)
    np.testing.assert_array_equal(detections.mask, objects().masks)
    assert detections["class_name"].tolist() == ["a dog", "car", "a dog"]
    assert detections.class_id is not None and detections.class_id.tolist() == [0, 1, 0]
    annotated = supervision.MaskAnnotator().annotate(picture(), detections)
    annotated = supervision.BoxAnnotator().annotate(annotated, detections)
    annotated = supervision.LabelAnnotator().annotate(annotated, detections)
    assert (annotated != picture()).any(axis=2)[objects().masks.any(axis=0)].mean() > 0.9

    tracked = objects(
        class_ids=np.array([4, -1, 4]), tracker_id=np.array([7, 8, 9])
    ).to_supervision()
    assert tracked.class_id is not None and tracked.class_id.tolist() == [4, -1, 4]
    assert tracked.tracker_id is not None and tracked.tracker_id.tolist() == [7, 8, 9]
    assert len(objects()[[]].to_supervision()) == 0


def test_supervision_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r'pip install "mobile-sam-plugin\[grounded\]"'):
        objects().to_supervision()


def test_coco_reads_them(tmp_path: Path) -> None:
    data = objects(tracker_id=np.array([7, 8, 9])).to_coco(image_id=5, first_annotation_id=100)
    (tmp_path / "instances.json").write_text(json.dumps(data))
    coco = COCO(str(tmp_path / "instances.json"))
    assert coco.getImgIds() == [5] and coco.loadImgs(5)[0]["width"] == 80
    assert sorted(coco.getAnnIds(imgIds=5)) == [100, 101, 102]
    for index, annotation in enumerate(coco.loadAnns([100, 101, 102])):
        np.testing.assert_array_equal(coco.annToMask(annotation), objects().masks[index])
        assert coco.loadCats(annotation["category_id"])[0]["name"] == objects().labels[index]
        assert annotation["area"] == pycocotools.mask.area(annotation["segmentation"])
        assert annotation["track_id"] == 7 + index
    assert coco.loadAnns(100)[0]["bbox"] == [4, 10, 56, 40]


def test_categories_are_what_was_asked_for() -> None:
    asked = {"classes": ["the red car", "cat", "dog"], "labels": ["red car", "cat", "car"]}
    first = objects(**asked, class_ids=np.array([0, 1, 0])).to_coco()
    second = objects(**asked, class_ids=np.array([0, 1, 0]))[1].to_coco()
    assert first["categories"] == second["categories"]
    assert [category["name"] for category in first["categories"]] == asked["classes"]
    assert [category["id"] for category in first["categories"]] == [1, 2, 3]
    assert [each["category_id"] for each in first["annotations"]] == [1, 2, 1]
    assert [each["label"] for each in first["annotations"]] == asked["labels"]
    assert second["annotations"][0]["category_id"] == 2

    other = objects(**asked, class_ids=np.array([-1, 1, 0])).to_coco()
    assert [category["id"] for category in other["categories"]] == [1, 2, 3, 4]
    assert [each["category_id"] for each in other["annotations"]] == [4, 2, 1]
    unnamed = objects(labels=["b", "a", "a"], class_ids=np.array([5, 2, 2])).to_coco()
    assert unnamed["categories"] == [{"id": 3, "name": "a"}, {"id": 6, "name": "b"}]
    assert [each["category_id"] for each in unnamed["annotations"]] == [6, 3, 3]


@pytest.mark.parametrize("polygons", [False, True])
def test_supervision_and_annotate_read_what_is_saved(
    tmp_path: Path, own_sam: MobileSam, polygons: bool
) -> None:
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    for found, folder, images in (
        (objects(image=picture()), tmp_path / "array", tmp_path / "array"),
        (objects(image_path=str(tmp_path / "photo.png")), tmp_path / "file", tmp_path),
    ):
        found.save(folder, picture(), polygons=polygons)
        path = folder / "instances.json"
        data = supervision.DetectionDataset.from_coco(str(images), str(path), force_masks=True)
        ((_, pixels, detections),) = data
        np.testing.assert_array_equal(pixels[..., ::-1], picture())
        assert detections.mask is not None
        # It paints polygons with OpenCV, which takes the pixels behind the edges as well.
        extra = detections.mask & ~found.masks
        assert (detections.mask | ~found.masks).all() and polygons == extra.any()
        assert extra.sum() < 0.05 * found.masks.sum()
        (result,) = annotate(path, None, model=own_sam, mode="boxes", images=images)
        assert result.error is None
        assert [record["category"] for record in result.records] == found.labels


def test_polygons_tell_what_they_lose(tmp_path: Path) -> None:
    masks = objects().masks
    masks[0, 20:30, 20:30] = False
    masks[1] = False
    found = objects(masks=masks, image=picture())
    with pytest.warns(UserWarning, match="holes of 1 mask are filled, 1 mask of no pixel") as told:
        found.save(tmp_path, polygons=True, labelme=True)
    assert sum(each.category is UserWarning for each in told) == 1
    first, last = found.to_coco()["annotations"][::2]
    kept = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    assert [each["id"] for each in kept] == [first["id"], last["id"]]
    assert kept[0]["area"] == first["area"] == masks[0].sum()
    assert kept[0]["segmentation"] == [[4, 10, 4, 50, 60, 50, 60, 10]]


def test_labelme_finds_the_image(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "a.png"
    Image.fromarray(picture()).save(photo)
    folder = tmp_path / "out" / "a"
    objects(classes=["dog", "car"], class_ids=np.array([0, 1, 0]), image_path=str(photo)).save(
        folder, photo, labelme=True
    )
    content = json.loads((folder / "labelme.json").read_text())
    assert content["imagePath"] == "../../photos/a.png" and content["imageData"] is None
    assert (content["imageHeight"], content["imageWidth"]) == SIZE
    assert [shape["label"] for shape in content["shapes"]] == ["dog", "car", "dog"]
    objects(image=picture()).save(folder, labelme=True)
    assert json.loads((folder / "labelme.json").read_text())["imagePath"] == "instances.png"
    np.testing.assert_array_equal(load_image(folder / "instances.png"), picture())


def test_cutouts(tmp_path: Path) -> None:
    paths = objects().save(tmp_path, picture(), cutouts=True)
    names = [f"{kind}_{index:03}.png" for kind in ("mask", "cutout") for index in range(3)]
    assert [path.name for path in paths[:6]] == names
    with Image.open(paths[3]) as cutout:
        np.testing.assert_array_equal(np.asarray(cutout)[..., :3], picture()[10:50, 4:60])


@pytest.mark.parametrize("number", [1, 2, 7, 255])
def test_an_object_has_one_colour_in_maps_and_overlays(number: int) -> None:
    tracked = objects(tracker_id=np.array([300, 301, number]), image=np.zeros((*SIZE, 3), np.uint8))
    expected = (colors_of(number) * 0.45).round()
    np.testing.assert_array_equal(tracked[2].overlay()[55, 75], expected)


def test_paths_of_images(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        images: list[Any] = [str(tmp_path / "a.png"), tmp_path / "a.png", opened]
        assert [path_of(image) for image in images] == [str(tmp_path / "a.png")] * 3
    assert path_of(picture()) is path_of(Image.fromarray(picture())) is path_of(None) is None


def test_overlay_draws_masks_boxes_and_labels() -> None:
    image = np.full((*SIZE, 3), 200, dtype=np.uint8)
    drawn = objects().overlay(image)
    assert (image == 200).all()
    changed = (drawn != 200).any(axis=2)
    assert changed[objects().masks.any(axis=0)].all()
    # The small mask is drawn over the large one, in another colour.
    assert tuple(drawn[36, 25]) != tuple(drawn[45, 10])
    assert not changed[32:, 63:68].any()  # between the objects, below the labels

    # A colour goes with the id, whatever the place.
    tracked = objects(tracker_id=np.array([7, 300, 2]))
    first, second = tracked.overlay(image), tracked[[2, 1, 0]].overlay(image)
    assert tuple(first[45, 10]) == tuple(second[45, 10]) != tuple(drawn[45, 10])

    with pytest.raises(ValueError, match="80 x 60.*60 x 80"):
        objects().overlay(image.transpose(1, 0, 2))


def test_pictures_are_of_the_image_that_the_objects_came_with(tmp_path: Path) -> None:
    found = objects(image=picture())
    np.testing.assert_array_equal(found.overlay(), objects().overlay(picture()))
    assert found[[1]].save(tmp_path)[1].name == "overlay.png"
    np.testing.assert_array_equal(load_image(tmp_path / "overlay.png"), found[1].overlay())
    with pytest.raises(ValueError, match="have no image"):
        objects().save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_overlay_of_boxes_far_outside_and_of_none() -> None:
    boxes = np.array([[-1e9, -1e9, 1e9, 1e9], [0, 0, 1, 1], [79, 59, 80, 60]], dtype=np.float32)
    assert objects(boxes=boxes).overlay(picture()).shape == (*SIZE, 3)
    np.testing.assert_array_equal(objects()[[]].overlay(picture()), picture())


def test_save_replaces_an_earlier_result(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "objects"
    assert len(objects().save(folder, picture(), cutouts=True, labelme=True)) == 10
    (folder / "notes.txt").write_text("mine")
    paths = objects(image_path="photos/a.png")[1].save(str(folder), Image.fromarray(picture()))
    assert [path.name for path in paths] == ["mask_000.png", "overlay.png", "instances.json"]
    assert {path.name for path in folder.iterdir()} == {*(p.name for p in paths), "notes.txt"}
    mask = np.asarray(Image.open(paths[0]))
    np.testing.assert_array_equal(mask, objects().masks[1] * np.uint8(255))
    np.testing.assert_array_equal(load_image(paths[1]), objects()[1].overlay(picture()))
    assert json.loads(paths[2].read_text()) == objects()[1].to_coco(file_name="a.png")


def test_save_of_another_image_leaves_what_was_there(tmp_path: Path) -> None:
    objects().save(tmp_path, picture())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="the image has"):
        objects()[0].save(tmp_path, picture()[1:])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "overlay.png").mkdir()
    with pytest.raises(OSError):
        objects()[0].save(tmp_path, picture())
    assert {path.name for path in tmp_path.iterdir()} == {"mask_000.png", "overlay.png"}


def test_boxes_of_masks() -> None:
    np.testing.assert_array_equal(boxes_of(objects().masks), objects().boxes)
    masks = np.zeros((2, *SIZE), dtype=bool)
    masks[1, 59, 79] = True
    assert boxes_of(masks).tolist() == [[0, 0, 0, 0], [79, 59, 80, 60]]
    assert boxes_of(masks[:0]).shape == (0, 4)


def test_colours_of_objects_differ_and_repeat_without_black() -> None:
    assert palette()[0].tolist() == [0, 0, 0]
    assert len(np.unique(palette(), axis=0)) == 256
    np.testing.assert_array_equal(colors_of([0, 1, 255]), palette()[[0, 1, 255]])
    np.testing.assert_array_equal(colors_of(np.arange(256, 600)), colors_of(np.arange(1, 345)))
    assert np.abs(np.diff(palette()[1:20].astype(int), axis=0)).sum(axis=1).min() > 100


def test_png_with_a_palette(tmp_path: Path) -> None:
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "numbers.png").write_bytes(encode_image(".png", numbers, palette=palette()))
    with Image.open(tmp_path / "numbers.png") as image:
        np.testing.assert_array_equal(np.asarray(image), numbers)
        np.testing.assert_array_equal(
            np.asarray(image.convert("RGB")), colors_of(numbers), strict=True
        )
