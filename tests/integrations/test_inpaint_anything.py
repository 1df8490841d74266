"""Objects that are selected in images and videos, removed, filled and replaced."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.checkpoint import BUNDLED_FILE
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.inpaint_anything import (
    InpaintAnything,
    grow_mask,
    predict_masks_with_sam,
)
from mobile_sam_plugin.integrations.instances import Instances
from mobile_sam_plugin.integrations.video import (
    Video,
    write_video,
)

from .clips import SMALL, SPOT, clip, disc, ramp, random_pixels

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def gray(image: Pixels, mask: Mask, prompt: str) -> Pixels:
    """An inpainter as a user might write one; it also spoils what it was given."""
    image[:] = 128
    mask[:] = True
    return image


def test_segment_takes_clicks_and_boxes(editor: InpaintAnything, coffee: Pixels) -> None:
    assert editor.predictor is not None
    predictor = SamPredictor(editor.predictor.model)
    predictor.set_image(coffee)
    click = np.array([[300, 130]])

    masks, scores, _ = predictor.predict(click, np.array([1]))
    clicked = editor.segment(coffee, point_coords=click)
    np.testing.assert_array_equal(clicked.masks, masks[[scores.argmax()]])
    assert clicked.scores == pytest.approx([scores.max()])

    box = [170, 10, 430, 300]
    masks, _, _ = predictor.predict(click, np.array([0]), box, multimask_output=False)
    boxed = editor.segment(Image.fromarray(coffee), click, [0], box)
    np.testing.assert_array_equal(boxed.masks, masks)
    rows, columns = np.nonzero(masks[0])
    x0, y0, x1, y1 = boxed.boxes[0]
    assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_segment_takes_text(small_sam: MobileSam, coffee: Pixels) -> None:
    from mobile_sam_plugin.integrations.detectors import Detections

    def detect(image: Pixels, prompts: Any, *_: float) -> Detections:
        assert image.shape == coffee.shape and list(prompts) == ["a cup", "nothing"][: len(prompts)]
        boxes = np.array([[170, 10, 430, 300]], np.float32)[: len(prompts) % 2]
        return Detections(boxes, np.array([0.7], np.float32)[: len(boxes)], ["a cup"][: len(boxes)])

    editor = InpaintAnything(small_sam, detector=detect)
    (found,) = editor.segment(coffee, text="a cup")
    expected = editor.segment(coffee, box=[170, 10, 430, 300])
    np.testing.assert_array_equal(found.masks, expected.masks)
    assert found.labels == ["a cup"]
    with pytest.raises(ValueError, match="nothing in the image matches 'a cup. nothing.'"):
        editor.segment(coffee, text="a cup. nothing.")


def test_small_finds_are_told_of(small_sam: MobileSam, coffee: Pixels) -> None:
    from mobile_sam_plugin.integrations.detectors import Detections

    thresholds = []

    def detect(image: Pixels, prompts: Any, box_threshold: float, _: float) -> Detections:
        thresholds.append(box_threshold)
        boxes = np.array(
            [[170, 10, 430, 300], [250, 60, 350, 200], [599, 399, 600, 400]], np.float32
        )
        return Detections(boxes, np.array([0.7, 0.6, 0.5], np.float32), ["a cup"] * 3)

    editor = InpaintAnything(small_sam, detector=detect)
    with pytest.warns(UserWarning, match="skipped 1 of 3 objects .* fewer than 1 pixels"):
        both = editor.segment(coffee, text="a cup", box_threshold=0.1)  # the last one's is empty
    areas = sorted(np.count_nonzero(both.masks, axis=(1, 2)).tolist())
    assert thresholds == [0.1] and len(areas) == 2 and areas[0] < areas[1]
    with pytest.warns(UserWarning, match="2 of 3 objects that match 'a cup': they have fewer than"):
        (large,) = editor.segment(coffee, text="a cup", min_area=areas[1])
    assert np.count_nonzero(large.masks) == areas[1]
    with pytest.raises(UserError, match=f"fewer than {areas[1] + 1} pixels, at most {areas[1]}:"):
        editor.segment(coffee, text="a cup", min_area=areas[1] + 1)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "there is no prompt"),
        ({"text": "a cup", "box": [1, 2, 3, 4]}, "not both"),
        ({"text": " "}, "empty"),
        ({"point_coords": [[1, np.nan]]}, "NaN"),
        ({"box": [1, 2, 3]}, "box"),
    ],
    ids=str,
)
def test_segment_names_mistakes(
    small_sam: MobileSam, coffee: Pixels, prompt: dict[str, Any], message: str
) -> None:
    editor = InpaintAnything(small_sam, detector=lambda *_: pytest.fail("looked for nothing"))
    with pytest.raises(ValueError, match=message):
        editor.segment(coffee, **prompt)


def test_without_a_model_there_are_only_masks(coffee: Pixels) -> None:
    editor = InpaintAnything(None)
    assert editor.remove(coffee, disc(400, 600, 300, 150, 20)).image.shape == coffee.shape
    with pytest.raises(RuntimeError, match="no model"):
        editor.segment(coffee, [[300, 130]])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_masks_grow_by_the_distance(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    margin = data.draw(st.integers(0, 6))
    pixels = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(pixels).reshape(height, width)
    rows, columns = np.nonzero(mask)
    expected = np.zeros_like(mask)
    for y, x in np.ndindex(height, width):
        expected[y, x] = ((rows - y) ** 2 + (columns - x) ** 2 <= margin**2).any()
    before = mask.copy()
    np.testing.assert_array_equal(grow_mask(mask, margin), expected)
    np.testing.assert_array_equal(mask, before)


def test_remove_leaves_every_other_pixel_of_a_photograph(
    editor: InpaintAnything, coffee: Pixels
) -> None:
    before = coffee.copy()
    mask = disc(400, 600, 300, 150, 60)
    result = editor.remove(coffee, mask, margin=4)
    np.testing.assert_array_equal(result.mask, disc(400, 600, 300, 150, 64) & result.mask)
    np.testing.assert_array_equal(result.mask, grow_mask(mask, 4))
    np.testing.assert_array_equal(result.image[~result.mask], coffee[~result.mask])
    assert (result.image[mask] != coffee[mask]).any(axis=-1).mean() > 0.9
    np.testing.assert_array_equal(result.original, before)
    np.testing.assert_array_equal(coffee, before)


def test_remove_gives_the_background_back(editor: InpaintAnything) -> None:
    background = ramp(120, 160)
    image = background.copy()
    mask = disc(120, 160, 70, 60, 20)
    image[mask] = (255, 0, 0)
    result = editor.remove(image, mask, margin=0).image
    assert np.abs(result.astype(int) - background)[mask].mean() < 10
    assert np.abs(image.astype(int) - background)[mask].mean() > 100


def test_remove_works_on_12_megapixels(editor: InpaintAnything) -> None:
    image = cv2.resize(random_pixels(30, 40, 3), (4000, 3000), interpolation=cv2.INTER_CUBIC)
    mask = disc(3000, 4000, 3900, 200, 350)  # reaches over two edges
    result = editor.remove(image, mask, margin=10)
    np.testing.assert_array_equal(result.image[~result.mask], image[~result.mask])
    assert (result.image[mask] != image[mask]).any(axis=-1).mean() > 0.9


def test_fill_and_replace_keep_the_right_pixels(small_sam: MobileSam, coffee: Pixels) -> None:
    editor = InpaintAnything(small_sam, inpainter=gray)
    before = coffee.copy()
    mask = disc(400, 600, 300, 150, 60)
    grown = grow_mask(mask, 5)

    filled = editor.fill(coffee, mask.astype(np.uint8) * 255, "a teapot", margin=5)
    np.testing.assert_array_equal(filled.mask, grown)
    np.testing.assert_array_equal(filled.image[~grown], coffee[~grown])
    assert (filled.image[grown] == 128).all()

    replaced = editor.replace(coffee, mask, "on the moon", margin=5)
    np.testing.assert_array_equal(replaced.mask, ~grown)
    np.testing.assert_array_equal(replaced.image[grown], coffee[grown])
    assert (replaced.image[~grown] == 128).all()
    np.testing.assert_array_equal(coffee, before)


def test_all_objects_are_done_at_once(editor: InpaintAnything, coffee: Pixels) -> None:
    discs = np.stack([disc(400, 600, x, 150, 20) for x in (100, 300)])
    objects = Instances(
        (400, 600),
        np.array([[80, 130, 121, 171], [280, 130, 321, 171]], np.float32),
        discs,
        np.ones(2, np.float32),
        ["cup", "spoon"],
    )
    result = editor.remove(coffee, objects, margin=0)
    np.testing.assert_array_equal(result.mask, discs[0] | discs[1])
    assert result.objects is objects
    assert [category["name"] for category in result.objects.to_coco()["categories"]] == [
        "cup",
        "spoon",
    ]
    assert len(result.objects.to_supervision()) == 2


def test_results_are_saved(editor: InpaintAnything, coffee: Pixels, tmp_path: Path) -> None:
    mask = disc(400, 600, 300, 150, 60)
    result = editor.remove(coffee, mask)
    paths = result.save(tmp_path / "out")
    assert set(paths) == set((tmp_path / "out").iterdir())
    for path, expected in (
        (paths[0], result.image),
        (paths[1], result.mask * np.uint8(255)),
        (tmp_path / "out" / "mask_000.png", mask * np.uint8(255)),
        (tmp_path / "out" / "overlay.png", result.overlay()),
    ):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    assert json.loads((tmp_path / "out" / "instances.json").read_text()) == result.objects.to_coco()


@pytest.mark.parametrize("kind", ["path", "pil", "array"])
def test_transparency_and_profile_are_kept(tmp_path: Path, kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.full((60, 80, 4), 200, np.uint8)
    pixels[:, 40:, 3] = 0
    logo = Image.fromarray(pixels)
    logo.info["icc_profile"] = profile
    logo.save(tmp_path / "logo.png", icc_profile=profile)
    source: Any = {"path": tmp_path / "logo.png", "pil": logo, "array": pixels}[kind]
    left, right = disc(60, 80, 15, 20, 6), disc(60, 80, 65, 20, 6)
    editor = InpaintAnything(None, gray)
    # What is behind an object is as transparent as what is around it; what is painted is not.
    for result, expected in (
        (InpaintAnything(None).remove(source, left | right, margin=0), 0),
        (editor.fill(source, right, "a cup", margin=0), 255),
    ):
        saved = Image.open(result.save(tmp_path / "out")[0])
        assert saved.mode == "RGBA"
        assert saved.info.get("icc_profile") == (None if kind == "array" else profile)
        alpha = np.asarray(saved)[..., 3]
        np.testing.assert_array_equal(alpha[~right], pixels[~right, 3])  # 200 also behind the left
        assert (alpha[right] == expected).all()
    opaque = editor.fill(pixels[..., :3], right, "a cup").save(tmp_path / "opaque")[0]
    assert Image.open(opaque).mode == "RGB"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.remove(SMALL, np.zeros((6, 8))), "mask is empty"),
        (lambda e: e.remove(SMALL, np.ones((6, 8))), "cover the whole image"),
        (lambda e: e.replace(SMALL, SPOT, "a beach", margin=9), "cover the whole image"),
        (lambda e: e.remove(SMALL, np.ones((8, 6))), r"\(6, 8\) of the image, not \(8, 6\)"),
        (lambda e: e.remove(SMALL, np.ones((1, 6, 8))), r"\(H, W\), not \(1, 6, 8\)"),
        (lambda e: e.remove(SMALL, SPOT, margin=-1), "0 pixels or more, not -1"),
        (lambda e: e.fill(SMALL, SPOT, ""), "prompt is empty"),
        (lambda e: e.replace(SMALL, SPOT, "\t "), "prompt is empty"),
        (lambda e: e.remove("missing.png", SPOT), "missing.png"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    editor = InpaintAnything(None, inpainter=gray)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(editor)


@pytest.mark.parametrize("returned", [SMALL[:3], SMALL.astype(np.float32), None])
def test_an_inpainter_that_returns_no_such_image_is_named(returned: Any) -> None:
    class Broken:
        def __call__(self, image: Pixels, mask: Mask, prompt: str) -> Pixels:
            return returned

    with pytest.raises(ValueError, match=r"Broken returned .* expected uint8 of the shape"):
        InpaintAnything(None, Broken()).remove(SMALL, SPOT, 0)


def test_remove_takes_a_video_frame_by_frame(editor: InpaintAnything) -> None:
    frames, masks = clip()
    pulled = []

    def stream() -> Iterator[Pixels]:
        for index, frame in enumerate(frames):
            pulled.append(index)
            yield frame

    selections = [None if not mask.any() else mask for mask in masks]
    for index, painted in enumerate(editor.remove_video(stream(), selections, margin=2)):
        assert pulled == list(range(index + 1))  # no frame is held or read ahead
        grown = grow_mask(masks[index], 2)
        np.testing.assert_array_equal(painted[~grown], frames[index][~grown])
        assert np.abs(painted.astype(int) - ramp(48, 64)).mean() < 1
    assert len(pulled) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames, masks: masks.pop(), "there are 4 masks and more frames"),
        (lambda frames, masks: frames.pop(), "there are 4 frames and more masks"),
        (
            lambda frames, masks: frames.__setitem__(3, frames[3][:40]),
            "frame 3 of 'stream' has 64 x 40 pixels",
        ),
        (lambda frames, masks: masks.__setitem__(1, masks[1][:40]), r"not \(40, 64\)"),
    ],
)
def test_videos_that_do_not_fit_are_named(
    editor: InpaintAnything, change: Any, message: str
) -> None:
    frames, masks = clip()
    change(frames, masks)
    with pytest.raises(ValueError, match=message):
        list(editor.remove_video(frames, masks))


def test_remove_takes_video_files(editor: InpaintAnything, tmp_path: Path) -> None:
    frames, masks = clip()
    write_video(tmp_path / "in.mp4", frames, 12.5)
    video = Video(tmp_path / "in.mp4")
    assert (video.length, video.frame_rate) == (5, 12.5)
    painted = list(editor.remove_video(tmp_path / "in.mp4", masks, margin=5))
    for before, after, mask in zip(video, painted, masks, strict=True):
        assert np.abs(before.astype(int) - after)[~grow_mask(mask, 5)].max(initial=0) == 0
        assert np.abs(after.astype(int) - ramp(48, 64)).mean() < 6  # the codec's share

    def break_off() -> Iterator[Pixels]:
        yield from painted[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "out.mp4", break_off(), 12.5)
    for path, rest, message in (("out.mp4", [], "no frame"), ("out.gif", painted, "end in .mp4")):
        with pytest.raises(ValueError, match=message):
            write_video(tmp_path / path, rest, 12.5)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_masks_of_frames_that_a_video_does_not_reach_are_told_of(editor: InpaintAnything) -> None:
    frames, masks = clip()
    with pytest.warns(UserWarning, match="1 of 2 masks are not used.*only 5 frames"):
        painted = list(editor.remove_video(frames, {3: masks[3], 5: masks[3]}, margin=2))
    np.testing.assert_array_equal(painted[1], frames[1])
    assert np.abs(painted[3].astype(int) - ramp(48, 64)).mean() < 1


def test_frames_that_are_covered_whole_do_not_end_a_video(editor: InpaintAnything) -> None:
    frames, masks = clip()
    masks[3][:] = True
    with pytest.warns(UserWarning, match="1 of 5 frames stay as they are.*cover them completely"):
        painted = list(editor.remove_video(frames, masks, margin=2))
    np.testing.assert_array_equal(painted[3], frames[3])
    assert np.abs(painted[4].astype(int) - ramp(48, 64)).mean() < 1


def test_predict_masks_with_sam_is_that_of_the_project(coffee: Pixels) -> None:
    """``remove_anything.py``: three masks to 0 and 255, dilated, painted one by one."""
    masks, scores, logits = predict_masks_with_sam(
        coffee,
        [[300.0, 130.0]],
        [1],
        model_type="vit_t",
        ckpt_p=str(BUNDLED_FILE),
        device="cpu",
    )
    assert masks.shape == (3, 400, 600) and scores.shape == (3,) and logits.shape == (3, 256, 256)
    gray = masks[0].astype(np.uint8) * 255
    dilated = cv2.dilate(gray, np.ones((15, 15), np.uint8), iterations=1)
    assert InpaintAnything(None).remove(coffee, dilated, margin=0).image.shape == coffee.shape
    with pytest.raises(ValueError, match="no model type 'sam3', only .*vit_t"):
        predict_masks_with_sam(coffee, [[1, 2]], [1], "sam3", "sam3.pt", "cpu")
