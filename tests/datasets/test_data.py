"""Images with masks in the formats that people have, whole and broken."""

import base64
import copy
import io
import json
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mobile_sam_plugin.datasets.annotated import AnnotatedImage
from mobile_sam_plugin.datasets.formats import open_annotated_images, write_annotated_image
from mobile_sam_plugin.datasets.unreadable import SkipUnreadable, check_fit
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import list_images
from mobile_sam_plugin.polygons import Losses, labelme_content
from mobile_sam_plugin.records import encode_mask
from mobile_sam_plugin.scenes.scenes import Scenes

HEIGHT, WIDTH = 30, 40


def picture(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Different in each corner."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, x * 0 + 80], axis=2).astype(np.uint8)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def uncompressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [2]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


POLYGON = [[5.0, 6.0, 15.0, 6.0, 15.0, 20.0, 5.0, 20.0]]
COCO: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        {"id": 8, "file_name": "sub/b.png", "height": HEIGHT, "width": WIDTH},
        {"id": 9, "file_name": "nothing.png", "height": HEIGHT, "width": WIDTH},
        {"id": 10, "file_name": "crowd.png", "height": HEIGHT, "width": WIDTH},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "segmentation": POLYGON, "iscrowd": 0},
        {"id": 2, "image_id": 7, "segmentation": uncompressed(rectangle(2, 3, 9, 8))},
        {"id": 3, "image_id": 7, "segmentation": encode_mask(rectangle(20, 0, 40, 30))},
        {"id": 4, "image_id": 7, "segmentation": uncompressed(rectangle(0, 0, 9, 9)), "iscrowd": 1},
        {"id": 5, "image_id": 8, "segmentation": [POLYGON[0], [20, 20, 30, 20, 30, 28]]},
        {"id": 6, "image_id": 8, "segmentation": [[3, 3, 3.1, 3, 3.1, 3.1]]},  # no pixel
        {"id": 7, "image_id": 10, "segmentation": encode_mask(rectangle(1, 1, 9, 9)), "iscrowd": 1},
    ],
}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO data set of two images with masks of objects, in a folder of its own."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for image in COCO["images"]:
        Image.fromarray(picture()).save(folder / image["file_name"])
    path = folder / "instances.json"
    path.write_text(json.dumps(COCO))
    return path


def test_coco(coco: Path) -> None:
    data = open_annotated_images(coco)
    assert len(data) == 2  # one has no annotation, one only a crowd
    first, second = data[0], data[1]
    assert (first.name, second.name) == ("a.png", "sub/b.png")
    np.testing.assert_array_equal(first.image, picture())
    assert first.masks.dtype == bool and first.masks.shape == (3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(first.masks[1], rectangle(2, 3, 9, 8))
    np.testing.assert_array_equal(first.masks[2], rectangle(20, 0, 40, 30))
    polygon = rectangle(5, 6, 15, 20)
    assert np.count_nonzero(first.masks[0] ^ polygon) < 0.2 * np.count_nonzero(polygon)
    assert second.masks.shape == (1, HEIGHT, WIDTH)  # of two polygons
    assert second.masks[0, 12, 10] and second.masks[0, 22, 28] and not second.masks[0, 22, 10]


def test_coco_agrees_with_pycocotools(coco: Path) -> None:
    from pycocotools.coco import COCO as Reference

    reference = Reference(coco)
    masks = open_annotated_images(coco)[0].masks
    for mask, annotation in zip(masks, reference.loadAnns([1, 2, 3]), strict=True):
        np.testing.assert_array_equal(mask, reference.annToMask(annotation))


def test_coco_with_its_images_elsewhere(coco: Path) -> None:
    path = coco.parent.parent / "instances.json"
    coco.rename(path)
    assert open_annotated_images(path, images=coco.parent)[0].name == "a.png"
    with pytest.raises(FileNotFoundError, match="a.png"):
        open_annotated_images(path)[0]
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        open_annotated_images(path, images=coco.parent / "nowhere")


def test_annotations_of_no_image_are_counted(coco: Path) -> None:
    content = copy.deepcopy(COCO)
    content["annotations"][1]["image_id"] = 123
    coco.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="1 annotations of images that are not listed"):
        data = open_annotated_images(coco)
    assert [data[i].name for i in range(len(data))] == ["a.png", "sub/b.png"]
    assert len(data[0].masks) == 2


def test_what_coco_has_besides_masks_is_left_out_and_counted(coco: Path) -> None:
    content = copy.deepcopy(COCO)
    nothing: list[Any] = [None, [], {}]
    for key, segmentation in enumerate(nothing, start=20):
        content["annotations"].append({"id": key, "image_id": 7, "segmentation": segmentation})
    coco.write_text(json.dumps(content))
    with pytest.warns(UserWarning) as caught:
        data = open_annotated_images(coco)
    (text,) = (str(each.message) for each in caught if each.category is UserWarning)
    assert text.endswith(
        "3 annotations without a segmentation, 2 iscrowd annotations, 2 images without a mask"
    )
    assert data[0].masks.shape == (3, HEIGHT, WIDTH)  # a box alone costs no other its mask
    assert (data[0].empty, data[1].empty) == (0, 1)


def test_ids_that_are_text_here_and_numbers_there(coco: Path) -> None:
    content = copy.deepcopy(COCO)
    content["images"][1]["id"] = "7"  # beside 7, which is another
    content["annotations"][0]["image_id"] = "7"
    content["annotations"][4]["image_id"] = "10"
    coco.write_text(json.dumps(content))
    data = open_annotated_images(coco)
    found = {data[i].name: data[i].count for i in range(2)}
    assert found == {"a.png": 2, "sub/b.png": 1} and len(data) == 3


def test_sides_may_be_written_as_floats(coco: Path) -> None:
    content = copy.deepcopy(COCO)
    content["images"][0].update(height=float(HEIGHT), width=float(WIDTH))
    coco.write_text(json.dumps(content))
    assert open_annotated_images(coco)[0].masks.shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_in_other_encodings(coco: Path, encoding: str) -> None:
    coco.write_text(coco.read_text(), encoding=encoding)
    assert open_annotated_images(coco)[0].name == "a.png"


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "three XY pairs"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three XY pairs"),
        ([1, 2, 3, 4, 5, 6], "three XY pairs"),
        ([["x"] * 6], "polygon cannot be read"),
        (5, "polygon cannot be read"),
        ([[10**400] * 6], "polygon cannot be read"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "far outside of the 40 x 30"),
        ([[0, 0, 5, float("nan"), 5, 5]], "far outside"),
        ([[]], "three XY pairs"),
        ({"size": [30, 40]}, "counts cannot be read"),
        ({"size": [40, 30], "counts": [1200]}, r"size is \[40, 30\], but the image's \[30, 40\]"),
        ({"counts": [1200]}, "size is None"),
        ({"size": [30, 40], "counts": [5, 10]}, "cover 15 pixels instead of 1200"),
        ({"size": [30, 40], "counts": [1205, -5]}, "cover 1200 pixels|cover"),
        ({"size": [30, 40], "counts": [5, "x"]}, "counts cannot be read"),
        ({"size": [30, 40], "counts": [2**70]}, "counts cannot be read"),
        ({"size": [30, 40], "counts": ""}, "not compressed RLE"),
        ({"size": [30, 40], "counts": "\x01\x02"}, "not compressed RLE"),
        ({"size": [30, 40], "counts": "é"}, "counts cannot be read"),
        ({"size": [30, 40], "counts": "o" * 40 + "0"}, "larger than any image"),
        (encode_mask(rectangle(2, 3, 9, 8)) | {"counts": "52"}, "instead of 1200"),
    ],
)
def test_a_broken_annotation_is_named(coco: Path, segmentation: Any, message: str) -> None:
    content = copy.deepcopy(COCO)
    content["annotations"][1]["segmentation"] = segmentation
    coco.write_text(json.dumps(content))
    data = open_annotated_images(coco)
    with pytest.raises(ValueError, match=message) as caught:
        data[0]
    for named in (str(coco), "a.png", "annotation 2"):
        assert named in str(caught.value)
    assert data[1].name == "sub/b.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 31}, "a.png.* is 40 x 30 pixels, not 40 x 31 pixels"),
        ({"height": None}, "whole numbers, not 'a.png', None and 40"),
        ({"width": "40"}, "file_name must be a string, height and width"),
        ({"width": 40.5}, "file_name must be a string, height and width"),
        ({"width": float("nan")}, "file_name must be a string, height and width"),
        ({"file_name": None}, "not None, 30 and 40"),
    ],
)
def test_json_that_lies_about_an_image(coco: Path, change: dict[str, Any], message: str) -> None:
    content = copy.deepcopy(COCO)
    content["images"][0].update(change)
    coco.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        open_annotated_images(coco)[0]


def test_an_image_without_a_size(coco: Path) -> None:
    content = copy.deepcopy(COCO)
    del content["images"][0]["width"]
    coco.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must have 'file_name', 'height' and 'width'"):
        open_annotated_images(coco)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "not COCO's instances JSON"),
        (b"{}", "not COCO's instances JSON"),
        (b'{"images": [{}], "annotations": []}', "not COCO's instances JSON"),
        (b'{"images": [{"id": 1}], "annotations": [{}]}', "not COCO's instances JSON"),
        (b'{"images": [{"id": 1}], "annotations": []}', "no image .* has an annotation"),
    ],
)
def test_json_that_is_not_coco(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_annotated_images(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda path: path.unlink(), FileNotFoundError, "a.png"),
        (lambda path: path.write_bytes(b""), ValueError, "not an image that can be read here"),
        (
            lambda path: path.write_bytes(b"GIF89a"),
            ValueError,
            "not an image that can be read here",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), ValueError, "cannot be read"),
    ],
)
def test_a_broken_image_is_named(
    coco: Path, break_it: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    break_it(coco.parent / "a.png")
    with pytest.raises(error, match=message) as caught:
        open_annotated_images(coco)[0]
    assert str(coco.parent / "a.png") in str(caught.value)


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_any_mask_survives_being_written(mask: NDArray[np.bool_]) -> None:
    from mobile_sam_plugin.datasets.segmentations import encode_segmentation, run_lengths

    compressed = encode_mask(mask)
    for segmentation in (compressed, uncompressed(mask)):
        encoded = encode_segmentation(segmentation, *mask.shape)
        np.testing.assert_array_equal(pycocotools.mask.decode(encoded), mask)
    lengths = uncompressed(mask)["counts"]
    np.testing.assert_array_equal(run_lengths(compressed["counts"]), lengths)


@given(st.text(alphabet=[chr(c) for c in range(40, 120)], max_size=12))
def test_any_text_as_rle_is_a_mask_or_an_error(counts: str) -> None:
    from mobile_sam_plugin.datasets.segmentations import encode_segmentation

    try:
        mask = pycocotools.mask.decode(
            encode_segmentation({"size": [5, 7], "counts": counts}, 5, 7)
        )
    except ValueError:
        return
    back = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert pycocotools.mask.area(back) == np.count_nonzero(mask)


def test_segment_anything_folder(tmp_path: Path) -> None:
    masks = np.stack([rectangle(1, 2, 30, 29), rectangle(4, 4, 9, 9)])
    for name in ("sa_2", "sa_10"):
        (tmp_path / "deeper").mkdir(exist_ok=True)
        path = write_annotated_image(
            tmp_path / "deeper", name, AnnotatedImage("any", picture(), masks)
        )
        assert path == tmp_path / "deeper" / f"{name}.json"
    data = open_annotated_images(tmp_path)
    assert [data[i].name for i in range(len(data))] == ["sa_10.jpg", "sa_2.jpg"]
    np.testing.assert_array_equal(data[0].masks, masks)
    assert np.abs(data[0].image.astype(int) - picture()).mean() < 6
    with pytest.raises(ValueError, match="begin with 'sa_'"):
        write_annotated_image(tmp_path, "other", data[0])


def test_a_broken_segment_anything_folder(tmp_path: Path) -> None:
    masks = rectangle(1, 2, 30, 29)[None]
    for index in range(5):
        write_annotated_image(tmp_path, f"sa_{index}", AnnotatedImage("", picture(), masks))
    (tmp_path / "sa_0.jpg").unlink()
    (tmp_path / "sa_1.json").write_text("{")
    (tmp_path / "sa_2.json").write_text("{}")
    (tmp_path / "sa_3.json").write_text((tmp_path / "sa_4.json").read_text().replace("30", "31"))
    data = open_annotated_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="sa_0.jpg"):
        data[0]
    for index, message in ((1, "not JSON"), (2, "not SA-1B's JSON"), (3, "x 30 pixels, not")):
        with pytest.raises(ValueError, match=message):
            data[index]
    assert len(data[4].masks) == 1


def save_values(path: Path, values: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def png_masks(tmp_path: Path) -> Path:
    """Images with PNG masks in both layouts, and files that are neither."""
    large, small = rectangle(0, 0, 30, 20), rectangle(5, 5, 10, 10)
    values = np.where(small, 300, np.where(large, 2, 0)).astype(np.uint16)
    save_values(tmp_path / "a.jpg", picture())
    save_values(tmp_path / "a.png", values)
    save_values(tmp_path / "more" / "b.png", picture())
    save_values(tmp_path / "more" / "b" / "mask_000.png", large.astype(np.uint8) * 255)
    save_values(tmp_path / "more" / "b" / "mask_001.png", small.astype(np.uint8) * 255)
    save_values(tmp_path / "more" / "b" / "overlay.png", picture())
    save_values(tmp_path / "c.bmp", picture())
    save_values(tmp_path / "d.jpg", picture())  # no masks
    save_values(tmp_path / "c" / "cat.png", small)
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def test_png_masks(png_masks: Path) -> None:
    large, small = rectangle(0, 0, 30, 20), rectangle(5, 5, 10, 10)
    data = open_annotated_images(png_masks)
    found = {item.name: item for item in (data[i] for i in range(len(data)))}
    assert sorted(found) == ["a.jpg", "c.bmp", os.path.join("more", "b.png")]
    np.testing.assert_array_equal(found["a.jpg"].masks, [large & ~small, small])
    np.testing.assert_array_equal(found[os.path.join("more", "b.png")].masks, [large, small])
    np.testing.assert_array_equal(found["c.bmp"].masks, [small])
    np.testing.assert_array_equal(found["c.bmp"].image, picture())


def test_a_palette_is_read_as_indices(tmp_path: Path) -> None:
    save_values(tmp_path / "a.jpg", picture())
    values = Image.fromarray(rectangle(2, 2, 9, 9).astype(np.uint8) * 3, mode=None)
    values = values.convert("P")
    values.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 0])  # the colour of 3 is black
    values.save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_annotated_images(tmp_path)[0].masks, [rectangle(2, 2, 9, 9)])


def test_what_the_command_everything_wrote_is_read(
    tmp_path: Path, coffee: NDArray[np.uint8]
) -> None:
    from mobile_sam_plugin.results import write_results

    masks = [np.zeros(coffee.shape[:2], dtype=bool) for _ in range(2)]
    masks[0][50:200, 60:300], masks[1][100:150, 80:90] = True, True
    records: list[Any] = [
        {"segmentation": encode_mask(mask), "area": int(mask.sum())} for mask in masks
    ]
    for image in ("cup.jpg", "cup.png"):  # of one stem, so each has a folder of its whole name
        save_values(tmp_path / "photographs" / image, coffee)
        write_results(tmp_path / "masks" / image, coffee, records)
    data = open_annotated_images(tmp_path / "masks", images=tmp_path / "photographs")
    assert [data[i].name for i in range(len(data))] == ["cup.jpg"]
    np.testing.assert_array_equal(data[0].masks, masks)


def test_suffixes_in_capital_letters(tmp_path: Path) -> None:
    mask = rectangle(2, 2, 9, 9)
    for image, values in (("a.JPG", "a.png"), ("b.jpg", "b.PNG"), ("c.jpg", "c/MASK.PNG")):
        save_values(tmp_path / image, picture())
        save_values(tmp_path / values, mask.astype(np.uint8))
    save_values(tmp_path / "d.jpg", picture())
    (tmp_path / "masks.json").write_text("[]")
    with pytest.warns(UserWarning) as caught:
        data = open_annotated_images(tmp_path)
    assert [data[i].name for i in range(len(data))] == ["a.JPG", "b.jpg", "c.jpg"]
    assert all(np.array_equal(data[i].masks[0], mask) for i in range(3))
    (text,) = (str(each.message) for each in caught if each.category is UserWarning)
    assert text.endswith(": 1 images without masks")  # d.jpg, and not what lies beside


def test_a_mask_with_transparency(tmp_path: Path) -> None:
    mask = rectangle(2, 2, 9, 9)
    cut_out = np.dstack([picture(), mask.astype(np.uint8) * 255])
    save_values(tmp_path / "a.jpg", picture())
    save_values(tmp_path / "a" / "cat.png", cut_out)
    with pytest.warns(UserWarning, match="is a cut-out"):
        np.testing.assert_array_equal(open_annotated_images(tmp_path)[0].masks, [mask])


def test_16_bits_become_8(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    header = f"P5 {WIDTH} {HEIGHT} 65535\n".encode()
    (tmp_path / "a.pgm").write_bytes(header + ramp.astype(">u2").tobytes())
    save_values(tmp_path / "a.png", rectangle(2, 2, 9, 9).astype(np.uint8))
    expected = np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(open_annotated_images(tmp_path)[0].image, expected)


def test_masks_are_made_when_they_are_asked_for(tmp_path: Path) -> None:
    """Those of all objects at once took gigabytes; values and RLE take less than the picture."""
    values = np.kron(np.arange(1, 785).reshape(28, 28), np.ones((9, 9), int)).astype(np.uint16)
    side = len(values)
    save_values(tmp_path / "map" / "a.jpg", np.zeros((side, side, 3), np.uint8))
    save_values(tmp_path / "map" / "a.png", values)
    item = open_annotated_images(tmp_path / "map")[0]
    write_annotated_image(tmp_path, "sa_1", item)
    for stored in (item, open_annotated_images(tmp_path)[0]):
        assert len(pickle.dumps(stored)) < 3 * stored.image.nbytes < stored.masks.nbytes / 50
        window = slice(4, 30), slice(100, 140)
        visible = stored.find_visible(*window)
        expected = [value - 1 for value in np.unique(values[window])]
        assert visible.tolist() == expected
        np.testing.assert_array_equal(stored.take([5, 700]), [values == 6, values == 701])
        np.testing.assert_array_equal(stored.masks[300], values == 301)
        whole = AnnotatedImage("whole", stored.image, stored.masks)
        np.testing.assert_array_equal(whole.find_visible(*window), visible)
        np.testing.assert_array_equal(whole.take([5, 700]), stored.take([5, 700]))


def test_fingerprints_are_of_contents(coco: Path, tmp_path: Path) -> None:
    scene = Scenes(1, 64)[0]
    prints = {scene.fingerprint(), replace(scene, name="other").fingerprint()}
    assert len(prints) == 1
    prints |= {replace(scene, image=255 - scene.image).fingerprint()}
    prints |= {replace(scene, masks=~scene.masks).fingerprint()}
    assert len(prints) == 3
    first = open_annotated_images(coco)[0].fingerprint()
    assert open_annotated_images(coco)[0].fingerprint() == first
    content = copy.deepcopy(COCO)
    content["annotations"][0]["segmentation"][0][0] += 4
    coco.write_text(json.dumps(content))
    assert open_annotated_images(coco)[0].fingerprint() != first


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((HEIGHT, WIDTH + 1), np.uint8), "a.jpg' is 40 x 30 pixels, not 41 x 30"),
        (np.ones((WIDTH, HEIGHT), np.uint8), "is 40 x 30 pixels, not 30 x 40"),
        (np.ones((HEIGHT, WIDTH, 3), np.uint8), "a.png' must be grayscale .* mode is 'RGB'"),
        (np.zeros((HEIGHT, WIDTH), np.uint8), "a.png': no mask has a pixel"),
    ],
)
def test_masks_that_do_not_match(tmp_path: Path, values: NDArray[Any], message: str) -> None:
    save_values(tmp_path / "a.jpg", picture())
    save_values(tmp_path / "a.png", values)
    with pytest.raises(ValueError, match=message):
        open_annotated_images(tmp_path)[0]


def test_masks_of_different_sizes(png_masks: Path) -> None:
    save_values(png_masks / "more" / "b" / "mask_001.png", np.ones((4, 4), np.uint8))
    data = open_annotated_images(png_masks)
    with pytest.raises(ValueError, match="mask_001.png' is 4 x 4 pixels, but"):
        data[2]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """PNG masks are of the upright picture, COCO's of what the JSON says."""
    stored = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    upright = np.rot90(picture(), turns)
    save_values(tmp_path / "masks" / "a" / "m.png", upright[..., 0] > 100)
    found = open_annotated_images(tmp_path / "masks", images=tmp_path)[0]
    np.testing.assert_array_equal(found.image, upright)
    np.testing.assert_array_equal(found.masks[0], upright[..., 0] > 100)

    for wanted in (picture(), upright):
        mask = wanted[..., 0] > 100
        image = {"id": 1, "file_name": "a.png", "height": len(mask), "width": len(mask[0])}
        annotation = {"id": 1, "image_id": 1, "segmentation": encode_mask(mask)}
        path = tmp_path / "coco.json"
        path.write_text(json.dumps({"images": [image], "annotations": [annotation]}))
        found = open_annotated_images(path)[0]
        # Upside down, both are of one size: then it is the stored one.
        expected = picture() if orientation == 3 else wanted
        np.testing.assert_array_equal(found.image, expected)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_annotated_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no image in the folder"):
        open_annotated_images(tmp_path)
    save_values(tmp_path / "a.jpg", picture())
    with pytest.raises(ValueError, match="has masks in"):
        open_annotated_images(tmp_path)


def test_list_images(png_masks: Path) -> None:
    (png_masks / "._a.jpg").write_bytes(b"")
    (png_masks / "UPPER.JPEG").write_bytes(b"")
    names = [str(path.relative_to(png_masks)) for path in list_images(png_masks, recursive=True)]
    assert names == sorted(names, key=lambda name: Path(name))
    assert {"a.jpg", "a.png", "UPPER.JPEG", os.path.join("more", "b", "overlay.png")} < set(names)
    assert not {"notes.txt", "._a.jpg"} & set(names)
    with pytest.raises(NotADirectoryError, match="notes.txt"):
        list_images(png_masks / "notes.txt")


@pytest.fixture
def partly_broken(tmp_path: Path) -> Path:
    """Six of SA-1B's images, of which 1, 2 and 5 are broken."""
    for index in range(6):
        masks = rectangle(index, 2, 30, 29)[None]
        write_annotated_image(tmp_path, f"sa_{index}", AnnotatedImage("", picture(), masks))
    (tmp_path / "sa_1.jpg").unlink()
    (tmp_path / "sa_2.jpg").write_bytes(b"no image")
    (tmp_path / "sa_5.json").write_text("{}")
    return tmp_path


def test_broken_items_are_replaced_and_counted(partly_broken: Path) -> None:
    data = SkipUnreadable(open_annotated_images(partly_broken))
    with pytest.warns(UserWarning) as caught:
        names = [data[i].name for i in range(len(data))]
    assert names == [f"sa_{i}.jpg" for i in (0, 3, 3, 3, 4, 0)]
    assert len(data.skipped) == 3
    texts = [str(each.message) for each in caught if each.category is UserWarning]
    assert [text.split(":")[0] for text in texts] == [
        "skipped item 1 of 6 (1 skipped so far)",
        "skipped item 2 of 6 (2 skipped so far)",
        "skipped item 5 of 6 (3 skipped so far)",
    ]
    assert "sa_1.jpg" in texts[0] and "sa_2.jpg" in texts[1] and "sa_5.json" in texts[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # each is warned of once
        assert data[-1].name == "sa_0.jpg"
    with pytest.raises(IndexError, match="no item 6 among 6"):
        data[6]


def test_strictly_a_broken_item_is_an_error(partly_broken: Path) -> None:
    data = SkipUnreadable(open_annotated_images(partly_broken), strict=True)
    assert data[0].name == "sa_0.jpg"
    with pytest.raises(FileNotFoundError, match="sa_1.jpg"):
        data[1]
    with pytest.raises(ValueError, match="sa_2.jpg"):
        data[2]
    assert len(data.skipped) == 0


def test_all_items_are_broken(partly_broken: Path) -> None:
    for path in partly_broken.glob("*.jpg"):
        path.unlink()
    data = SkipUnreadable(open_annotated_images(partly_broken))
    with (
        pytest.warns(UserWarning, match="5 skipped so far"),
        pytest.raises(ValueError, match="6 of 6 items are left out: 5 missing, 1 not read"),
    ):
        data[3]


def test_items_that_do_not_fit_are_replaced_and_counted(partly_broken: Path) -> None:
    def check(item: AnnotatedImage) -> None:
        if item.name == "sa_3.jpg":
            check_fit(np.zeros((1, 600, 3), np.uint8), 224)

    data = SkipUnreadable(open_annotated_images(partly_broken), check=check)
    with pytest.warns(UserWarning, match="1 skipped so far.: the image is too thin, 600 x 1"):
        assert data[3].name == "sa_4.jpg"
    with pytest.warns(UserWarning):
        assert data[1].name == "sa_4.jpg"
    told = "3 of 6 items are left out: 1 missing, 1 not fit for it, 1 not readable"
    assert data.skipped.describe() == told
    with pytest.warns(UserWarning, match=told):
        data.skipped.tell()


def test_too_many_broken_items_are_an_error_that_is_told_once() -> None:
    class Gone:
        def __len__(self) -> int:
            return 500

        def __getitem__(self, index: int) -> AnnotatedImage:
            raise FileNotFoundError(f"no {index}")

    with (
        pytest.warns(UserWarning) as caught,
        pytest.raises(ValueError, match="32 of 500 .* too many .* the last: no 34"),
    ):
        SkipUnreadable[AnnotatedImage](Gone())[3]
    assert len(caught) == 5


def test_masks_without_a_pixel_are_counted(coco: Path) -> None:
    data = SkipUnreadable(open_annotated_images(coco))
    assert [data[i].name for i in (0, 1, 1)] == ["a.png", "sub/b.png", "sub/b.png"]
    assert data.skipped.describe() == "masks without a pixel are left out: 1"


class Names(Dataset[str]):
    """The names alone, as a training's data set would read the items."""

    def __init__(self, images: SkipUnreadable[AnnotatedImage]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        return self.images[index].name


@pytest.mark.filterwarnings("ignore:skipped item")
def test_worker_processes_count_together(partly_broken: Path) -> None:
    data = SkipUnreadable(open_annotated_images(partly_broken))
    names = [name for batch in DataLoader(Names(data), num_workers=2) for name in batch]
    assert names == [f"sa_{i}.jpg" for i in (0, 3, 3, 3, 4, 0)]
    assert len(data.skipped) == 3


def test_labelme(tmp_path: Path) -> None:
    """What this package writes for labelme, and each kind of shape that labelme draws."""
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 5:20, 10:30] = masks[0, 30:40, 10:30] = True  # of two parts
    masks[1, 10:50, 40:70] = True
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    content = labelme_content(
        [("leaf", mask) for mask in masks], (60, 80), "..\\images\\a.png", Losses()
    )
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.json").write_text(json.dumps(content))
    item = open_annotated_images(tmp_path / "labels")[0]
    assert item.name == "a" and np.array_equal(item.image, pixels)
    assert np.array_equal(item.masks, masks)
    moved = open_annotated_images(tmp_path / "labels", images=tmp_path / "images")[0]
    assert moved.fingerprint() == item.fingerprint()

    part = io.BytesIO()
    Image.fromarray(masks[1, 10:50, 40:70]).save(part, "png")
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, "png")
    shapes: list[dict[str, Any]] = [
        {"shape_type": "rectangle", "points": [[40, 10], [70, 50]]},
        {
            "shape_type": "mask",
            "points": [[40, 10], [69, 49]],
            "mask": base64.b64encode(part.getvalue()).decode(),
        },
        {"shape_type": "circle", "points": [[30, 30], [30, 20]]},
        {"shape_type": "point", "points": [[1, 1]]},
    ]
    inside = content | {
        "shapes": shapes,
        "imagePath": "gone.png",
        "imageData": base64.b64encode(whole.getvalue()).decode(),
    }
    (tmp_path / "labels" / "a.json").write_text(json.dumps(inside))
    item = open_annotated_images(tmp_path / "labels")[0]
    assert np.array_equal(item.image, pixels)
    rectangle, mask, circle = item.masks
    assert np.array_equal(rectangle, masks[1]) and np.array_equal(mask, masks[1])
    assert circle.sum() == pytest.approx(np.pi * 10**2, rel=0.03) and circle[30, 30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imageHeight": 61}, "is 80 x 60 pixels, not 80 x 61 pixels as its masks are"),
        ({"shapes": [{"points": []}]}, "is not labelme's JSON"),
        ({"shapes": [{"shape_type": "star", "points": [[1, 2]]}]}, "its type is 'star'"),
        ({"shapes": [{"shape_type": "circle", "points": [[1, 2]]}]}, "a shape cannot be read"),
        ({"shapes": []}, "no mask has a pixel"),
        ({"imageHeight": float("inf")}, "is not labelme's JSON"),
        ({"shapes": [{"shape_type": "circle", "points": [[10**400, 2]]}]}, "cannot be read"),
        ({"imagePath": "b.png", "imageData": "A"}, "'imageData' is not base64"),
        ({"imagePath": "b.png", "imageData": 5}, "'imageData' is not base64"),
    ],
)
def test_labelme_that_cannot_be_read(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "a.png")
    content = labelme_content([("a", np.ones((60, 80), bool))], (60, 80), "a.png", Losses())
    (tmp_path / "a.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=message):
        open_annotated_images(tmp_path)[0]
