"""Masks on disk: what ``mobile_sam_plugin.results`` writes and draws."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from segment_anything.utils import amg

from mobile_sam_plugin.drawing import draw_overlay
from mobile_sam_plugin.files import digest_source
from mobile_sam_plugin.records import decode_mask, encode_mask, make_record
from mobile_sam_plugin.results import claim_folder, read_source, write_results

GRAY = np.full((60, 80, 3), 120, dtype=np.uint8)


def disc(x: int, y: int, radius: int) -> NDArray[np.float32]:
    """Logits of a disc in a picture of the size of GRAY."""
    rows, columns = np.mgrid[:60, :80]
    return (radius - np.hypot(columns - x, rows - y)).astype(np.float32)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(-3, 3, width=32),
    )
)
def test_records_are_computed_as_upstream_does(logits: NDArray[np.float32]) -> None:
    record = make_record(logits, 0.5, [(1, 2)], stability_score_offset=1.0)
    tensor = torch.from_numpy(logits)[None]
    rle = amg.mask_to_rle_pytorch(tensor > 0)[0]
    box = amg.box_xyxy_to_xywh(amg.batched_mask_to_box(tensor > 0)[0])
    stability = amg.calculate_stability_score(tensor, 0.0, 1.0).nan_to_num().item()
    assert record == {
        "segmentation": amg.coco_encode_rle(rle),
        "area": amg.area_from_rle(rle),
        "bbox": box.tolist(),
        "predicted_iou": 0.5,
        "point_coords": [[1.0, 2.0]],
        "stability_score": pytest.approx(stability),
        "crop_box": [0, 0, logits.shape[1], logits.shape[0]],
    }


def test_an_empty_mask_makes_a_record_that_json_takes() -> None:
    record = make_record(np.full((4, 5), -9, dtype=np.float32), 0.1)
    assert record["area"] == 0 and record["stability_score"] == 0.0 and record["point_coords"] == []
    json.dumps(record, allow_nan=False)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_masks_survive_encoding(mask: NDArray[np.bool_]) -> None:
    encoded = json.loads(json.dumps(encode_mask(mask)))
    np.testing.assert_array_equal(decode_mask({"segmentation": encoded}), mask)
    np.testing.assert_array_equal(decode_mask({"segmentation": mask}), mask)


def test_writes_what_pycocotools_and_pillow_read(tmp_path: Path) -> None:
    logits = [disc(20, 20, 12), disc(50, 40, 9)]
    low_res = [np.full((1, 256, 256), i, dtype=np.float32) for i in range(2)]
    records = [make_record(mask, 0.9) for mask in logits]
    paths = write_results(tmp_path / "new" / "folder", GRAY, records, low_res)
    folder = tmp_path / "new" / "folder"
    assert paths == [folder / "mask_000.png", folder / "mask_001.png"]
    assert json.loads((folder / "masks.json").read_text()) == records
    for i, path in enumerate(paths):
        with Image.open(path) as png:
            assert png.mode == "L"
            np.testing.assert_array_equal(np.asarray(png), (logits[i] > 0) * np.uint8(255))
        np.testing.assert_array_equal(
            pycocotools.mask.decode(records[i]["segmentation"]), logits[i] > 0
        )
        np.testing.assert_array_equal(np.load(folder / f"mask_{i:03}_logits.npy"), low_res[i])
    with Image.open(folder / "overlay.png") as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), draw_overlay(GRAY, records))


def test_replaces_an_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    others = ["mask_1.png", "mask_000.jpg", "my_mask_000.png", "mask_000_logits.npz", "notes.txt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    records = [make_record(disc(20, 20, radius), 0.9) for radius in (3, 5, 9)]
    write_results(tmp_path, GRAY, records, [np.zeros((1, 256, 256), np.float32)] * 3)
    write_results(tmp_path, GRAY, records[:1])
    written = {"mask_000.png", "masks.json", "overlay.png"}
    assert {path.name for path in tmp_path.iterdir()} == written | set(others)
    assert all((tmp_path / name).read_text() == "mine" for name in others)


def test_a_run_that_breaks_off_leaves_no_list_of_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [make_record(disc(20, 20, 9), 0.9)]
    write_results(tmp_path, GRAY, records)

    def full_disk(path: Path, content: bytes) -> None:
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_results(tmp_path, GRAY, records)
    assert {path.name for path in tmp_path.iterdir()} == {"overlay.png"}


def test_draws_small_masks_over_large_ones() -> None:
    large, small = make_record(disc(40, 30, 25), 0.9), make_record(disc(40, 30, 4), 0.9)
    picture = draw_overlay(GRAY, [small, large])
    inside, around, outside = picture[30, 40], picture[30, 55], picture[2, 2]
    assert len({tuple(inside), tuple(around), tuple(outside)}) == 3
    np.testing.assert_array_equal(outside, GRAY[2, 2])
    np.testing.assert_array_equal(picture, draw_overlay(GRAY, [small, large]))
    assert (GRAY == 120).all()


@pytest.mark.parametrize("background", [0, 120, 255])
def test_prompts_show_on_any_background(background: int) -> None:
    image = np.full((300, 400, 3), background, dtype=np.uint8)
    picture = draw_overlay(
        image,
        [],
        point_coords=[(100, 100), (300, 100)],
        point_labels=[1, 0],
        prompt_box=(50, 150, 350, 250),
    )
    object_point, background_point, edge = picture[100, 100], picture[100, 300], picture[200, 50]
    assert object_point.argmax() == 1 and background_point.argmax() == 0 and edge.argmax() == 0
    for row, column in ((100, 100), (100, 300), (200, 50)):
        white = (picture[row - 6 : row + 7, column - 6 : column + 7] == 255).all(axis=2)
        assert white.any()
    changed = np.argwhere((picture != image).any(axis=2))
    assert len(changed) < 0.1 * 300 * 400


@pytest.mark.parametrize(
    "prompt",
    [
        {"point_coords": [(-5, 1e30)], "point_labels": [1]},
        {"point_coords": [(1e30, -1e30), (79, 59)], "point_labels": [0, 0]},
        {"prompt_box": (-1e30, -1e30, 1e30, 1e30)},
        {"prompt_box": (70, 50, 10, 5)},
    ],
)
def test_draws_prompts_that_lie_anywhere(prompt: dict[str, Any]) -> None:
    assert draw_overlay(GRAY, [], **prompt).shape == GRAY.shape


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (2000, 3)])
def test_draws_on_pictures_of_any_size(size: tuple[int, int]) -> None:
    record = make_record(np.ones(size, dtype=np.float32), 0.9)
    picture = draw_overlay(
        np.zeros((*size, 3), np.uint8),
        [record],
        point_coords=[(0, 0)],
        point_labels=[1],
        prompt_box=(0, 0, 1, 1),
    )
    assert picture.shape == (*size, 3)


# Whose results a folder holds


def save(path: Path, gray: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 9, 3), gray, np.uint8)).save(path)
    return path


def test_images_of_one_stem_have_folders_of_their_own(tmp_path: Path) -> None:
    names = ["shot.png", "shot.bmp", "x/shot.png", "y/shot.png"]
    images = [save(tmp_path / name, 40 * index) for index, name in enumerate(names)]
    out = tmp_path / "out"
    expected = [out / name for name in ("shot", "shot.bmp", "shot.png", "shot_2")]
    assert claim_folder(out, images[0]) == expected[0]
    for image, folder in zip(images[1:], expected[1:], strict=True):
        with pytest.warns(UserWarning, match=f"something else.*{folder.name}"):
            assert claim_folder(out, image) == folder
    # Each finds its own again, also by another path.
    monday = tmp_path / "monday"
    (tmp_path / "y").rename(monday)
    with pytest.warns(UserWarning, match="shot_2"):
        assert claim_folder(out, monday / "shot.png") == expected[3]
    assert claim_folder(out, images[0]) == expected[0]
    assert read_source(expected[3]) == {
        "path": str(monday / "shot.png"),
        "sha256": digest_source(images[0].parent / "monday/shot.png"),
    }


def test_an_image_finds_its_folder_whatever_else_is_there_by_now(tmp_path: Path) -> None:
    out, image = tmp_path / "out", save(tmp_path / "shot.png", 1)
    assert claim_folder(out, image).name == "shot"
    with pytest.warns(UserWarning, match="shot"):  # beside shot.jpg it would be named so
        assert claim_folder(out, image, "shot.png").name == "shot"
    shutil.rmtree(out / "shot")
    assert claim_folder(out, image, "shot.png").name == "shot.png"
    assert claim_folder(out, save(tmp_path / "x" / "shot.png", 2)).name == "shot"


def test_other_contents_of_the_same_name_are_another_image(tmp_path: Path) -> None:
    out, image = tmp_path / "out", save(tmp_path / "upload.png", 1)
    assert claim_folder(out, image).name == "upload"
    save(image, 2)
    with pytest.warns(UserWarning, match="upload.png"):
        assert claim_folder(out, image).name == "upload.png"


def test_what_is_not_known_is_left_alone(tmp_path: Path) -> None:
    image, out = save(tmp_path / "shot.png", 1), tmp_path / "out"
    (out / "shot").mkdir(parents=True)
    (out / "shot" / ".DS_Store").touch()
    assert claim_folder(out, image) == out / "shot"  # as good as empty
    (out / "shot" / "source.json").write_text("[]")
    save(out / "shot.png", 3)
    with pytest.warns(UserWarning, match="shot_2"):
        assert claim_folder(out, image) == out / "shot_2"
    (tmp_path / "noext").write_bytes(image.read_bytes())
    with pytest.warns(UserWarning, match="noext_2"):
        assert claim_folder(tmp_path, tmp_path / "noext") == tmp_path / "noext_2"


def test_videos_and_folders_of_frames_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobile_sam_plugin.files._WHOLE", 1000)
    monkeypatch.setattr("mobile_sam_plugin.files._END", 400)
    clip = tmp_path / "clip.mp4"
    digests = set()
    for content in (b"a" * 2000, b"b" + b"a" * 1999, b"a" * 1999 + b"b", b"a" * 2001):
        clip.write_bytes(content)
        digests.add(digest_source(clip))
    for frames in (["0.png"], ["0.png", "1.png"], ["0.png", "2.png"]):
        for name in frames:
            save(tmp_path / "+".join(frames) / name, 7)
        digests.add(digest_source(tmp_path / "+".join(frames)))
    save(tmp_path / "0.png" / "0.png", 8)
    digests.add(digest_source(tmp_path / "0.png"))
    for shade in (8, 9):  # of one name and size, as frames without compression are
        Image.new("RGB", (60, 40), (7, 7, 7)).save(tmp_path / "0.png" / "0.bmp")
        Image.new("RGB", (60, 40), (shade, 7, 7)).save(tmp_path / "0.png" / "1.bmp")
        digests.add(digest_source(tmp_path / "0.png"))
    (tmp_path / "empty").mkdir()
    digests.add(digest_source(tmp_path / "empty"))
    assert len(digests) == 11


# Cut-outs


def test_cutouts_are_cropped_and_hold_nothing_of_the_background(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(1, 256, (60, 80, 3), dtype=np.uint8)
    logits = [disc(20, 20, 12), np.full((60, 80), -9, np.float32), disc(75, 55, 9)]
    records = [make_record(mask, 0.9) for mask in logits]
    with pytest.warns(UserWarning, match="1 mask of no pixel has no cut-out"):
        write_results(tmp_path, image, records, cutouts=True)
    for index in (0, 2):
        x, y, width, height = pycocotools.mask.toBbox(records[index]["segmentation"]).astype(int)
        inside = logits[index][y : y + height, x : x + width] > 0
        with Image.open(tmp_path / f"cutout_{index:03}.png") as cutout:
            assert cutout.mode == "RGBA" and cutout.size == (width, height)
            pixels = np.asarray(cutout)
        crop = image[y : y + height, x : x + width]
        np.testing.assert_array_equal(pixels[..., 3], inside * np.uint8(255))
        np.testing.assert_array_equal(pixels[..., :3], crop * inside[..., None])
    assert not (tmp_path / "cutout_001.png").exists()
    write_results(tmp_path, image, records[:1])
    assert not list(tmp_path.glob("cutout_*"))
