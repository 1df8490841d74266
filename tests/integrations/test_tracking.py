"""Objects followed through videos: the tracker, what carries masks on, the files, the command."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from benchmarks.tracking import follow, follow_flow, hold_still, make_clip, measure_j
from mobile_sam_plugin import DEFAULT_CHECKPOINT, MobileSam, SamPredictor
from mobile_sam_plugin.checkpoint import BUNDLED_FILE
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.drawing import palette
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.flow import FlowPropagator, mask_prompt
from mobile_sam_plugin.integrations.instances import Instances
from mobile_sam_plugin.integrations.propagators import (
    FrameEncoder,
    TransformersPropagator,
    claim_pixels,
)
from mobile_sam_plugin.integrations.segmenters import BaseSegmenter, Segmentor
from mobile_sam_plugin.integrations.track_anything import (
    TrackAnything,
    find_everything,
    track_video,
)
from mobile_sam_plugin.integrations.tracks import TrackedFrame, TrackWriter
from mobile_sam_plugin.integrations.tracks import _encode_ids as encode_ids
from mobile_sam_plugin.integrations.video import Video, VideoWriter
from mobile_sam_plugin.mobile_sam import set_img_size
from mobile_sam_plugin.records import encode_mask

from ..hub import Client, Hub

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)
SIZE = 48, 64


class ColorPropagator:
    """A propagator as a user might write one: an object is where its colour is."""

    def reset(self) -> None:
        self.colors: dict[int, Pixels] = {}

    def set_masks(self, frame: Pixels, masks: Mapping[int, Mask]) -> None:
        for number, mask in masks.items():
            if mask.any():
                self.colors[number] = np.median(frame[mask], axis=0).astype(np.uint8)

    def propagate(self, frame: Pixels) -> dict[int, Mask]:
        found = {
            number: np.abs(frame.astype(int) - color).max(axis=2) < 60
            for number, color in self.colors.items()
        }
        return {number: mask for number, mask in found.items() if mask.any()}


class StillPropagator:
    """Another one: objects stay where they were told to be; it says the same of all of them."""

    def reset(self) -> None:
        self.masks: dict[int, Mask] = {}

    def set_masks(self, frame: Pixels, masks: Mapping[int, Mask]) -> None:
        self.masks.update(masks)

    def propagate(self, frame: Pixels) -> Mapping[int, Any]:
        return self.masks


def square(x: int, y: int, side: int = 12, size: tuple[int, int] = SIZE) -> Mask:
    mask = np.zeros(size, bool)
    mask[max(y, 0) : y + side, max(x, 0) : x + side] = True
    return mask


def make_frames(length: int = 8) -> tuple[list[Pixels], list[Mask], list[Mask]]:
    """A red square that goes right, away in frames 3 and 4, and a green one that goes down."""
    frames, reds, greens = [], [], []
    for index in range(length):
        red, green = square(4 + 4 * index, 4), square(30, 14 + 2 * index)
        if index in (3, 4):
            red[:] = False
        red &= ~green
        frame = np.full((*SIZE, 3), 90, np.uint8)
        frame[red], frame[green] = RED, GREEN
        frames.append(frame)
        reds.append(red)
        greens.append(green)
    return frames, reds, greens


def write_clip(path: Path, frames: list[Pixels], rate: float = 12.5) -> Path:
    with VideoWriter(path, rate) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_folder(folder: Path, frames: list[Pixels]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


def ids_of(tracked: TrackedFrame) -> list[int]:
    assert tracked.objects.ids is not None
    return list(tracked.objects.ids)


def iou(first: Mask, second: Mask) -> float:
    shared, either = int((first & second).sum()), int((first | second).sum())
    return shared / max(either, 1)


@pytest.fixture
def tracker(small_sam: MobileSam) -> TrackAnything:
    """One that needs no time; prompts are still MobileSAM's."""
    return TrackAnything(small_sam, ColorPropagator())


# Videos


def test_video_files_are_read_frame_by_frame(tmp_path: Path) -> None:
    frames, _, _ = make_frames()
    video = Video(write_clip(tmp_path / "clip.mp4", frames))
    assert (video.name, video.length, video.frame_rate) == ("clip", 8, 12.5)
    for _ in range(2):  # and once more
        read = [*video]
        assert len(read) == 8
        for frame, original in zip(read, frames, strict=True):
            assert frame.dtype == np.uint8 and frame.shape == (*SIZE, 3)
            assert np.abs(frame.astype(int) - original).mean() < 8  # the codec's share; RGB


def test_folders_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 100, 1):
        pixels = np.full((4, 5, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"frame{number}.png")
    # A superscript is no digit that can be counted by.
    Image.fromarray(np.full((4, 5, 3), 200, np.uint8)).save(tmp_path / "frame5²5.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._frame1.png").write_bytes(b"\0\5\x16\7")
    Image.fromarray(np.full((4, 5, 3), 50, np.uint8)).save(tmp_path / ".thumb.png")
    (tmp_path / "more.png").mkdir()
    with pytest.warns(UserWarning, match="3 files are left out: 2 hidden, 1 .txt"):
        video = Video(tmp_path)
    assert (video.name, video.length, video.frame_rate) == (tmp_path.name, 5, 25)
    assert [int(frame[0, 0, 0]) for frame in video] == [1, 200, 9, 10, 100]


def test_a_folder_is_one_whatever_it_is_called(tmp_path: Path) -> None:
    video = Video(write_folder(tmp_path / "clip.mp4", make_frames()[0]))
    assert (video.name, video.length) == ("clip.mp4", 8)


def test_streams_are_read_as_they_come() -> None:
    pulled = []

    def stream() -> Iterator[Pixels]:
        for index in range(3):
            pulled.append(index)
            yield np.full((4, 5), index, np.uint8)

    video = Video(stream())
    assert (video.name, video.length, pulled) == ("stream", None, [])
    frames = iter(video)
    assert next(frames).shape == (4, 5, 3) and pulled == [0]
    assert len([*frames]) == 2


def test_videos_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no video '.*missing.mp4'"):
        Video(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(ValueError, match="text.mp4' is no video that OpenCV can decode"):
        Video(tmp_path / "text.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in the folder"):
        Video(tmp_path / "empty")
    with pytest.raises(ValueError, match="no frame in 'stream'"):
        [*Video(iter(()))]
    with pytest.raises(TypeError, match="uint8 in .0, 255., not float64"):
        [*Video([np.zeros((4, 5, 3))])]  # type: ignore[list-item]
    different = [np.zeros((4, 5, 3), np.uint8), np.zeros((6, 5, 3), np.uint8)]
    with pytest.raises(ValueError, match="frame 1 of 'sizes' has 5 x 6 pixels.* 5 x 4.*cut the"):
        [*Video(write_folder(tmp_path / "sizes", different))]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        write_clip(tmp_path / "file" / "clip.mp4", make_frames(1)[0])


def test_a_damaged_video_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    codec = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), codec, 10, (64, 48))
    for frame in make_frames(40)[0]:
        writer.write(frame)
    writer.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="read up to frame .* only.*tells of 40"):
        assert 0 < len([*Video(path)]) < 30


# The tracker


def test_objects_keep_their_ids_and_are_lost_and_found(tracker: TrackAnything) -> None:
    frames, reds, greens = make_frames()
    first = tracker.start(frames[0])
    assert (first.index, len(first.objects), first.lost) == (0, 0, ())
    assert tracker.add_object(mask=greens[0], label="leaf") == 1
    assert tracker.add_object(mask=reds[0], label="ball") == 2
    for index in range(1, 8):
        tracked = tracker.track(frames[index])
        assert tracked.index == index
        away = index in (3, 4)
        assert ids_of(tracked) == ([1] if away else [1, 2])
        assert tracked.lost == ((2,) if away else ())
        assert tracked.objects.labels == ["leaf", "ball"][: len(tracked.objects)]
        expected = [greens[index]] if away else [greens[index], reds[index]]
        np.testing.assert_array_equal(tracked.objects.masks, expected)
        x0, y0, x1, y1 = tracked.objects.boxes[0]
        rows, columns = np.nonzero(greens[index])
        assert (x0, x1) == (columns.min(), columns.max() + 1)
        assert (y0, y1) == (rows.min(), rows.max() + 1)
        ids = tracked.id_map()
        np.testing.assert_array_equal(ids == 1, greens[index])
        np.testing.assert_array_equal(ids == 2, reds[index])


def test_a_frame_can_be_used_at_once(tracker: TrackAnything, tmp_path: Path) -> None:
    frames, reds, _ = make_frames()
    tracker.start(frames[0])
    tracker.add_object(mask=reds[0], label="ball")
    tracked = tracker.track(frames[1])
    np.testing.assert_array_equal(tracked.overlay(), tracked.objects.overlay(frames[1]))
    assert (tracked.overlay()[reds[1]] != frames[1][reds[1]]).any()
    detections = tracked.to_supervision()
    assert detections.tracker_id.tolist() == [1]
    np.testing.assert_array_equal(detections.mask[0], reds[1])
    (annotation,) = tracked.to_coco()["annotations"]
    assert (annotation["image_id"], annotation["track_id"]) == (2, 1)
    assert set(tracked.save(tmp_path)) == set(tmp_path.iterdir())


def test_clicks_and_boxes_point_objects_out(small_sam: MobileSam, coffee: Pixels) -> None:
    predictor = SamPredictor(small_sam)
    predictor.set_image(coffee)
    tracker = TrackAnything(predictor, StillPropagator())
    tracker.start(coffee)

    masks, scores, _ = predictor.predict([[300, 130]], [1])
    cup = tracker.add_object(points=[[300, 130]])
    np.testing.assert_array_equal(tracker.current.objects.masks[0], masks[scores.argmax()])
    assert tracker.current.objects.scores[0] == pytest.approx(scores.max())

    # The click on the background goes with the mask so far.
    prompt = mask_prompt(predictor, masks[scores.argmax()])
    corrected, _, _ = predictor.predict(
        [[300, 130], [300, 180]], [1, 0], mask_input=prompt, multimask_output=False
    )
    tracked = tracker.correct(cup, points=[[300, 130], [300, 180]], labels=[1, 0])
    np.testing.assert_array_equal(tracked.objects.masks[0], corrected[0])
    np.testing.assert_array_equal(tracker.track(coffee).objects.masks[0], corrected[0])

    boxed, _, _ = predictor.predict(box=[170, 10, 430, 300], multimask_output=False)
    tracked = tracker.correct(cup, box=[170, 10, 430, 300])
    np.testing.assert_array_equal(tracked.objects.masks[0], boxed[0])


def test_a_frame_is_encoded_once(small_sam: MobileSam, coffee: Pixels) -> None:
    predictor = SamPredictor(small_sam)
    encode = FrameEncoder(predictor)
    features = encode(coffee).features
    assert encode(coffee).features is features
    other = coffee.copy()
    other[:200] = 0
    predictor.set_image(other)  # behind its back
    assert not torch.equal(predictor.features, features)
    torch.testing.assert_close(encode(coffee).features, features)
    assert not torch.equal(encode(other).features, features)


def test_mask_prompts_have_the_form_of_low_res_logits(
    bundled_sam: MobileSam, coffee: Pixels
) -> None:
    predictor = SamPredictor(bundled_sam)
    predictor.set_image(coffee)
    mask = np.zeros(coffee.shape[:2], bool)
    mask[100:300, 150:450] = True
    logits = mask_prompt(predictor, mask)
    assert logits.shape == (1, 256, 256) and logits.dtype == np.float32
    y, x = np.nonzero(logits[0] > 0)
    scale = 256 / 600
    corners = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert corners == pytest.approx([150 * scale, 100 * scale, 450 * scale, 300 * scale], abs=1)


def test_corrections_are_where_tracking_goes_on(small_sam: MobileSam) -> None:
    frames, reds, _ = make_frames()
    tracker = TrackAnything(small_sam, StillPropagator())
    tracker.start(frames[0])
    tracker.add_object(mask=reds[0])
    tracker.track(frames[1])
    corrected = tracker.correct(1, mask=reds[1])
    np.testing.assert_array_equal(corrected.objects.masks[0], reds[1])
    np.testing.assert_array_equal(tracker.track(frames[2]).objects.masks[0], reds[1])


def test_of_objects_that_overlap_the_smaller_one_is_on_top(small_sam: MobileSam) -> None:
    """In whatever order they are told."""
    frames, _, _ = make_frames()
    masks = {"coat": square(8, 8, 30), "hat": square(12, 12, 12), "badge": square(14, 14, 4)}
    masks["bag"] = square(30, 20, 16)  # beside the others, over a part of the coat
    expected = np.zeros(SIZE, np.uint8)
    for number, name in enumerate(("coat", "bag", "hat", "badge"), 1):
        expected[masks[name]] = number
    for order in itertools.permutations(masks):
        tracker = TrackAnything(small_sam, StillPropagator())
        tracker.start(frames[0])
        for name in order:
            number = 1 + ["coat", "bag", "hat", "badge"].index(name)
            tracker.add_object(mask=masks[name], object_id=number)
        for tracked in (tracker.current, tracker.track(frames[1])):
            assert tracked.lost == ()
            np.testing.assert_array_equal(tracked.id_map(), expected)
    # What was not told in this frame is as large as it is seen.
    tracker.add_object(mask=square(0, 0, 40), object_id=5)
    np.testing.assert_array_equal(tracker.current.id_map() % 5, expected)
    with pytest.raises(UserError, match=r"but the objects \[3, 4\], which are followed"):
        tracker.add_object(mask=square(12, 12, 12))
    # A correction is the last word.
    corrected = tracker.correct(1, mask=square(8, 8, 30))
    assert corrected.lost == (3, 4)
    np.testing.assert_array_equal(corrected.id_map() == 1, square(8, 8, 30))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_overlaps_go_to_the_highest_logit(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-3, 4, (count, 5, 6)).astype(np.float32)
    ids, highest = claim_pixels(enumerate(logits, 1), (5, 6))
    assert ids.shape == highest.shape == (5, 6)
    np.testing.assert_array_equal(ids > 0, (logits > 0).any(axis=0))
    np.testing.assert_array_equal(highest, logits.max(axis=0, initial=0))
    for y, x in np.argwhere(ids):
        assert ids[y, x] == 1 + logits[:, y, x].argmax()


def finds(masks: list[Mask], labels: list[str] | None = None) -> Instances:
    boxes = []
    for mask in masks:
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        boxes.append([x, y, x + width, y + height])
    return Instances(
        SIZE,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(masks, bool).reshape(-1, *SIZE),
        np.full(len(masks), 0.5, np.float32),
        labels or ["thing"] * len(masks),
    )


def test_new_objects_are_those_that_nothing_followed_covers(small_sam: MobileSam) -> None:
    """As ``find_new_objs``: enough of it must be free, and enough pixels."""
    tracker = TrackAnything(small_sam, StillPropagator(), min_area=20, min_new_share=0.8)
    tracker.start(make_frames()[0][0])
    known = square(10, 10, 10)
    tracker.add_object(mask=known)
    found = [
        known,  # followed already
        square(10, 19, 10),  # 10 of 100 pixels covered
        square(17, 10, 10),  # 30 of 100 pixels covered
        square(50, 40, 4),  # 16 pixels
        square(36, 20, 20),
        square(40, 24, 8),  # on the one before, from which it takes pixels
    ]
    assert tracker.add_instances(finds(found, [*"abcdef"])) == [2, 3, 4]
    objects = tracker.current.objects
    assert objects.labels == ["object", "b", "e", "f"]
    np.testing.assert_array_equal(objects.masks[1], found[1] & ~known)
    np.testing.assert_array_equal(objects.masks[2], found[4] & ~found[5])
    np.testing.assert_array_equal(objects.masks[3], found[5])
    assert tracker.add_instances(finds(found)) == []
    assert tracker.add_instances(finds([])) == []
    assert tracker.left_out == {"small": 2}  # told, and only that one: the others are followed
    assert tracker.describe_left_out() == (
        "left out: 2 finds of fewer than min_area (20) pixels: lower it (--min-area)"
    )
    with pytest.raises(TypeError, match="find returns.* must be Instances, not list"):
        tracker.add_instances(found)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image of 48 x 60 pixels, the frame has 48 x 64"):
        tracker.add_instances(
            Instances((48, 60), np.zeros((0, 4), np.float32), np.zeros((0, 48, 60), bool),
                      np.zeros(0, np.float32), [])
        )  # fmt: skip


def test_no_more_ids_than_a_palette_has(small_sam: MobileSam) -> None:
    tracker = TrackAnything(small_sam, StillPropagator(), min_area=1)
    tracker.start(make_frames()[0][0])
    tracker.add_object(mask=square(0, 0, 2), object_id=254)
    assert tracker.add_instances(finds([square(10, 10), square(40, 30)])) == [255]
    assert tracker.left_out == {"many": 1}
    assert tracker.describe_left_out() == "left out: 1 find beyond 255 objects"
    with pytest.raises(ValueError, match="1 to 255, not at 256"):
        tracker.add_object(mask=square(20, 20))


def test_new_objects_are_looked_for_every_n_frames(small_sam: MobileSam) -> None:
    frames, reds, greens = make_frames()
    asked = []

    def find(frame: Pixels) -> Instances:
        index = next(i for i, known in enumerate(frames) if np.array_equal(known, frame))
        asked.append(index)
        return finds([reds[index], greens[index]] if index == 6 else [greens[index]])

    tracker = TrackAnything(small_sam, ColorPropagator(), find, find_every=3, min_area=50)
    assert ids_of(tracker.start(frames[0])) == [1]
    seen = [ids_of(tracker.track(frame)) for frame in frames[1:]]
    assert asked == [0, 3, 6]
    assert seen == [[1]] * 5 + [[1, 2]] * 2

    asked.clear()
    tracker = TrackAnything(small_sam, ColorPropagator(), find, min_area=50)
    tracker.start(frames[0])
    tracker.track(frames[1])
    assert asked == [0]
    with pytest.raises(RuntimeError, match="pass find to TrackAnything"):
        TrackAnything(small_sam).find_objects()


def test_everything_mode_finds_objects(small_sam: MobileSam, coffee: Pixels) -> None:
    options = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    found = find_everything(small_sam, **options)(coffee)
    assert len(found) and found.image_size == coffee.shape[:2]
    strict = {"points_per_side": 1, "pred_iou_thresh": 1.0, "stability_score_thresh": 1.0}
    nothing = find_everything(small_sam, **strict)(coffee)
    assert len(nothing) == 0 and nothing.masks.shape == (0, 400, 600)
    with pytest.raises(ValueError, match=r"box_nms_thresh must lie in \[0, 1\], not at 7"):
        find_everything(small_sam, box_nms_thresh=7)
    with pytest.raises(TypeError, match="output_mode"):
        find_everything(small_sam, output_mode="binary_mask")


def test_the_caller_may_fill_its_buffer_anew(small_sam: MobileSam) -> None:
    """As cameras do."""
    frames, reds, _ = make_frames()
    buffer = frames[0].copy()
    tracker = TrackAnything(small_sam)
    tracker.start(buffer)
    tracker.add_object(mask=reds[0])
    buffer[:] = 0
    again = TrackAnything(small_sam)
    again.start(frames[0])
    again.add_object(mask=reds[0])
    np.testing.assert_array_equal(
        tracker.track(frames[1]).objects.masks, again.track(frames[1]).objects.masks
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.add_object(), ValueError, "give points, a box or a mask"),
        (lambda t: t.add_object(mask=square(0, 0, size=(9, 9))), ValueError, "not .9, 9."),
        (lambda t: t.add_object(mask=np.zeros(SIZE, bool)), ValueError, "mask is empty"),
        (lambda t: t.add_object(mask=square(1, 1), object_id=1), ValueError, "object 1 already"),
        (lambda t: t.add_object(mask=square(1, 1), object_id=0), ValueError, "1 to 255"),
        (lambda t: t.add_object(mask=np.ones(SIZE)), TypeError, "boolean.* not float64"),
        (lambda t: t.add_object(points=[[1, 2]], mask=square(1, 1)), ValueError, "not both"),
        (lambda t: t.correct(1, box=[1, 2, 3, 4], mask=square(1, 1)), ValueError, "not both"),
        (lambda t: t.add_object(mask=square(1, 1), object_id=1.5), TypeError, "object_id .* 1.5"),
        (lambda t: t.add_object(mask=square(1, 1), label=None), TypeError, "label must be a text"),
        (lambda t: t.add_object(points=[[np.nan, 1]]), ValueError, "NaN"),
        (lambda t: t.add_object(points=5), ValueError, "shape .N, 2."),
        (lambda t: t.add_object(points=[[1, 2]], labels=[1, 1]), ValueError, "one label a point"),
        (lambda t: t.add_object(box=[1, 2, 3]), ValueError, "box must be 4 numbers"),
        (lambda t: t.correct(7, points=[[1, 2]]), KeyError, "no object 7, only .1."),
        (lambda t: t.correct(1), ValueError, "give points, a box or a mask"),
        (lambda t: t.track(np.zeros((9, 9, 3), np.uint8)), ValueError, "9 x 9 pixels.*64 x 48"),
        (lambda t: t.track("missing.png"), FileNotFoundError, "missing.png"),
    ],
    ids=str,
)
def test_mistakes_are_named_and_change_nothing(
    tracker: TrackAnything, call: Any, error: type[Exception], message: str
) -> None:
    frames, reds, _ = make_frames()
    tracker.start(frames[0])
    tracker.add_object(mask=reds[0])
    with pytest.raises(error, match=message):
        call(tracker)
    tracked = tracker.track(frames[1])
    assert tracked.index == 1 and ids_of(tracked) == [1] and tracked.lost == ()


def test_settings_out_of_range_are_named(small_sam: MobileSam) -> None:
    with pytest.raises(ValueError, match=r"find_every \(-1\).* not be negative"):
        TrackAnything(small_sam, find_every=-1)
    with pytest.raises(ValueError, match=r"min_new_share must lie in \[0, 1\], not at 1.5"):
        TrackAnything(small_sam, min_new_share=1.5)
    for wrong, message in (
        ({"find_every": 2.5}, "find_every must be a whole number, not 2.5"),
        ({"min_area": np.nan}, "min_area must be a whole number, not nan"),
        ({"propagator": "some/model"}, "propagator must be an object with reset.*'some/model'"),
        ({"find": "a dog"}, "find must be a function of a frame.*'a dog'"),
    ):
        with pytest.raises(TypeError, match=message):
            TrackAnything(small_sam, **wrong)
    with pytest.raises(TypeError, match="Sam or a SamPredictor, not Linear"):
        TrackAnything(torch.nn.Linear(1, 1))
    for call in (
        lambda t: t.track(make_frames()[0][0]),
        lambda t: t.add_object(mask=square(1, 1)),
        lambda t: t.current,
    ):
        with pytest.raises(RuntimeError, match="call start with the first one"):
            call(TrackAnything(small_sam))
    with pytest.raises(RuntimeError, match="set_masks must be called before"):
        FlowPropagator(FrameEncoder(SamPredictor(small_sam))).propagate(make_frames()[0][0])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({2: np.ones(SIZE, bool)}, "Odd returned an object 2, which is not followed"),
        (
            {1: np.ones((3, 3), bool)},
            r"shape \(3, 3\) for object 1, not of the frame's, \(48, 64\)",
        ),
        ({1: np.full(SIZE, np.nan)}, "NaN or infinity for object 1"),
    ],
    ids=["id", "shape", "nan"],
)
def test_a_propagator_that_returns_nonsense_is_named(
    small_sam: MobileSam, returned: Any, message: str
) -> None:
    class Odd(StillPropagator):
        def propagate(self, frame: Pixels) -> Any:
            return returned

    frames, reds, _ = make_frames()
    tracker = TrackAnything(small_sam, Odd())
    tracker.start(frames[0])
    tracker.add_object(mask=reds[0])
    with pytest.raises(ValueError, match=message):
        tracker.track(frames[1])
    assert tracker.current.index == 0


# The files


def read_table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "tracks.csv", newline="") as table:
        return [*csv.DictReader(table)]


def read_ids(folder: Path) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(path)) for path in sorted((folder / "masks").iterdir())]


def follow_both(tracker: TrackAnything) -> None:
    """A prompt: the two squares of the first frame."""
    _, reds, greens = make_frames()
    tracker.add_object(mask=reds[0], label="ball")
    tracker.add_object(mask=greens[0], label="a leaf, green")


def test_a_video_becomes_masks_a_table_an_overlay_and_json(
    tracker: TrackAnything, tmp_path: Path
) -> None:
    frames, reds, greens = make_frames()
    video, out = write_folder(tmp_path / "clip", frames), tmp_path / "out" / "clip"
    assert track_video(tracker, video, out, {0: follow_both}) == [1, 2]
    assert {path.name for path in out.iterdir()} == {
        "masks", "overlay.mp4", "run.json", "tracks.csv", "tracks.json"
    }  # fmt: skip

    assert [path.name for path in sorted((out / "masks").iterdir())][-1] == "00007.png"
    with Image.open(out / "masks" / "00000.png") as png:
        assert png.mode == "P"
        assert png.getpalette() == palette().ravel().tolist()
    for ids, red, green in zip(read_ids(out), reds, greens, strict=True):
        np.testing.assert_array_equal(ids, red * 1 + green * 2)

    rows = read_table(out)
    assert len(rows) == 16
    assert rows[1] == {
        "frame": "0", "id": "2", "label": "a leaf, green", "state": "seen",
        "x0": "30.0", "y0": "14.0", "x1": "42.0", "y1": "26.0", "area": "144", "score": "1.0000",
    }  # fmt: skip
    lost = [(row["frame"], row["id"]) for row in rows if row["state"] == "lost"]
    assert lost == [("3", "1"), ("4", "1")]

    overlay = [*Video(out / "overlay.mp4")]
    assert len(overlay) == 8 and Video(out / "overlay.mp4").frame_rate == 25
    change = np.abs(overlay[0].astype(int) - frames[0])
    assert change[reds[0]].mean() > 30 and change[44:, 60:].mean() < 8

    content = json.loads((out / "tracks.json").read_text())
    assert content["videos"][0]["length"] == 8 and content["videos"][0]["width"] == 64
    assert [c["name"] for c in content["categories"]] == ["ball", "a leaf, green"]
    ball, leaf = content["annotations"]
    assert [s is None for s in ball["segmentations"]] == [i in (3, 4) for i in range(8)]
    np.testing.assert_array_equal(pycocotools.mask.decode(leaf["segmentations"][7]), greens[7])
    assert leaf["bboxes"][0] == [30, 14, 12, 12] and leaf["areas"][0] == 144  # XYWH
    assert ball["areas"][3] is None and ball["bboxes"][3] is None


def test_prompts_at_any_frame(tracker: TrackAnything, tmp_path: Path) -> None:
    frames, reds, greens = make_frames()
    prompts = {
        2: lambda tracker: tracker.add_object(mask=greens[2]),
        5: lambda tracker: tracker.add_object(mask=reds[5]),
    }
    video = write_folder(tmp_path / "clip", frames)
    assert track_video(tracker, video, tmp_path / "out", prompts, first_frame=1) == [1, 2]
    masks = read_ids(tmp_path / "out")
    assert [sorted(np.unique(ids)) for ids in masks] == [[0]] + [[0, 1]] * 3 + [[0, 1, 2]] * 3
    first, *_ = sorted((tmp_path / "out" / "masks").iterdir())
    assert first.name == "00001.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no object was found in frame 0"),
        ({"prompts": {9: follow_both}}, "has 8 frames, so there is no frame 9"),
        ({"prompts": {0: follow_both}, "first_frame": 8}, "begins at frame 8.* prompt's frame .0."),
        ({"prompts": {8: follow_both}, "first_frame": 8}, "has 8 frames.*no frame 8"),
        ({"first_frame": -1}, "frame -1"),
    ],
    ids=str,
)
def test_runs_that_cannot_be_write_nothing(
    tracker: TrackAnything, tmp_path: Path, arguments: Any, message: str
) -> None:
    video = write_folder(tmp_path / "clip", make_frames()[0])
    with pytest.raises(ValueError, match=message):
        track_video(tracker, video, tmp_path / "out", **arguments)
    done = arguments.get("prompts", {}).keys() == {9}  # frames before it there are
    assert (tmp_path / "out").exists() == done


def test_an_interrupted_run_is_taken_up(tracker: TrackAnything, tmp_path: Path) -> None:
    frames, _, _ = make_frames()
    video = write_folder(tmp_path / "clip", frames)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    track_video(tracker, video, whole, {0: follow_both})

    def interrupt(tracker: TrackAnything) -> None:
        raise KeyboardInterrupt

    # In frame 4 one object is lost, which must not be forgotten.
    with pytest.raises(KeyboardInterrupt):
        track_video(tracker, video, parts, {0: follow_both, 4: interrupt})
    assert len(read_ids(parts)) == 4 and len([*Video(parts / "overlay.mp4")]) == 4
    assert json.loads((parts / "tracks.json").read_text())["videos"][0]["length"] == 4
    # As a machine that fails leaves it: a line cut off, and one of a frame without a PNG.
    with open(parts / "tracks.csv", "a") as table:
        table.write("4,1,ball,seen,1.0,2.0,3.0,4.0,9,1.0\r\n1,1,ba")

    def fail(tracker: TrackAnything) -> None:
        pytest.fail("asked again for a frame that was done, other than the first")

    asked = {0: follow_both, 3: fail}
    assert track_video(tracker, video, parts, asked) == [1, 2]
    for name in ("tracks.csv", "tracks.json", "run.json", "masks/00003.png", "masks/00007.png"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    assert len([*Video(parts / "overlay.mp4")]) == 8
    # And once more, when nothing is left to do.
    assert track_video(tracker, video, parts, asked) == [1, 2]
    assert (parts / "tracks.csv").read_bytes() == (whole / "tracks.csv").read_bytes()


def test_a_run_of_other_prompts_or_weights_is_not_taken_up(
    tracker: TrackAnything, own_sam: MobileSam, tmp_path: Path
) -> None:
    frames, reds, greens = make_frames()
    video, out = write_folder(tmp_path / "clip", frames), tmp_path / "out"
    track_video(tracker, video, out, {0: follow_both})
    before = (out / "tracks.csv").read_bytes()
    for masks in ([greens[0]], [greens[0], reds[0]], [reds[0], greens[0], square(50, 34)]):
        prompts = {0: lambda tracker: [tracker.add_object(mask=mask) for mask in masks]}  # noqa: B023
        with pytest.raises(UserError, match="another run, which follows other objects from frame"):
            track_video(tracker, video, out, prompts)
    set_img_size(own_sam, 224)
    with torch.no_grad():
        own_sam.mask_decoder.iou_token.weight += 1e-3
    with pytest.raises(UserError, match="another run, with another weights_sha256"):
        track_video(TrackAnything(own_sam, ColorPropagator()), video, out, {0: follow_both})
    assert (out / "tracks.csv").read_bytes() == before


def test_a_run_with_objects_that_were_never_seen_is_taken_up(
    small_sam: MobileSam, tmp_path: Path
) -> None:
    def hide_one(tracker: TrackAnything) -> None:
        tracker.add_object(mask=square(10, 10))
        tracker.add_object(mask=square(40, 10, 6))
        tracker.correct(1, mask=square(5, 5, 43))

    video = write_folder(tmp_path / "clip", make_frames()[0])
    new = {0: hide_one, 5: lambda tracker: tracker.add_object(mask=square(50, 34))}
    tracker, out = TrackAnything(small_sam, StillPropagator()), tmp_path / "out"
    assert track_video(tracker, video, out, new) == [1, 2, 3]
    expected = (out / "tracks.csv").read_bytes()
    for index in range(3, 8):
        (out / "masks" / f"{index:05}.png").unlink()
    assert track_video(tracker, video, out, new) == [1, 2, 3]  # the id 2 is not given again
    assert (out / "tracks.csv").read_bytes() == expected


def test_memory_of_a_run_taken_up_does_not_grow_with_lost_objects(
    small_sam: MobileSam, tmp_path: Path
) -> None:
    """Objects that leave one after another, each last seen in a frame of its own."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Frame(np.ndarray):
        """An array that can be counted."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    class Counted(Video):
        def __iter__(self) -> Iterator[Pixels]:
            nonlocal most
            for pixels in super().__iter__():
                frame = pixels.copy().view(Frame)
                alive.add(frame)
                most = max(most, len(alive))
                yield frame

    masks = {number: square(5 * number, 4, 4) for number in range(1, 12)}

    class Leaving(StillPropagator):
        def propagate(self, frame: Pixels) -> Mapping[int, Mask]:
            gone = int(frame[0, 0, 0])
            return {number: mask for number, mask in self.masks.items() if number > gone}

    frames = [np.full((*SIZE, 3), index, np.uint8) for index in range(14)]
    video = Counted(write_folder(tmp_path / "clip", frames))
    prompts = {0: lambda tracker: [tracker.add_object(mask=mask) for mask in masks.values()]}
    tracker, out = TrackAnything(small_sam, Leaving()), tmp_path / "out"
    track_video(tracker, video, out, prompts)
    expected = (out / "tracks.csv").read_bytes()
    for index in range(9, 14):
        (out / "masks" / f"{index:05}.png").unlink()
    most = 0
    track_video(tracker, video, out, prompts)
    assert (out / "tracks.csv").read_bytes() == expected
    assert 1 <= most <= 5


def test_what_was_found_and_not_followed_is_told(small_sam: MobileSam, tmp_path: Path) -> None:
    frames, reds, _ = make_frames()
    video = write_folder(tmp_path / "clip", frames)
    speck = square(50, 40, 4)

    def find(masks: list[Mask]) -> TrackAnything:
        return TrackAnything(small_sam, StillPropagator(), lambda frame: finds(masks), min_area=50)

    with pytest.raises(UserError, match=r"no object was found in frame 0.*1 find .* min_area .50."):
        track_video(find([speck]), video, tmp_path / "none")
    with pytest.warns(UserWarning, match=r"^left out: 1 find of fewer than min_area \(50\) pixels"):
        assert track_video(find([speck, reds[0]]), video, tmp_path / "out") == [1]


def test_full_size_logits_are_held_one_at_a_time(small_sam: MobileSam) -> None:
    """They would take 10 GB for 100 objects in a frame of 4K."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Logits(np.ndarray):
        """An array that can be counted."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    class OnDemand(dict[int, Mask]):
        def __getitem__(self, number: int) -> Any:
            nonlocal most
            logits = np.where(super().__getitem__(number), 1, -1).astype(np.float32).view(Logits)
            alive.add(logits)
            most = max(most, len(alive))
            return logits

    class Frugal(StillPropagator):
        def propagate(self, frame: Pixels) -> Mapping[int, Any]:
            return OnDemand(self.masks)

    tracker = TrackAnything(small_sam, Frugal())
    tracker.start(make_frames()[0][0])
    masks = [square(5 * number, 4, 5) for number in range(10)]
    for mask in masks:
        tracker.add_object(mask=mask)
    tracked = tracker.track(make_frames()[0][1])
    np.testing.assert_array_equal(tracked.objects.masks, masks)
    assert tracked.objects.scores == pytest.approx(1 / (1 + np.exp(-1)))
    assert 1 <= most <= 2


def test_a_run_is_taken_up_where_nothing_was_seen(tracker: TrackAnything, tmp_path: Path) -> None:
    frames, reds, _ = make_frames()
    video = write_folder(tmp_path / "clip", frames)
    prompts = {0: lambda tracker: tracker.add_object(mask=reds[0])}
    track_video(tracker, video, tmp_path / "out", prompts)
    expected = (tmp_path / "out" / "tracks.csv").read_bytes()
    for index in range(5, 8):
        (tmp_path / "out" / "masks" / f"{index:05}.png").unlink()
    track_video(tracker, video, tmp_path / "out", prompts)
    assert (tmp_path / "out" / "tracks.csv").read_bytes() == expected


KILLED = """
import sys, time
from pathlib import Path
from mobile_sam_plugin import build_sam_vit_t
from mobile_sam_plugin.integrations.track_anything import TrackAnything, track_video
from tests.integrations.test_tracking import ColorPropagator, follow_both

class Slow(ColorPropagator):
    def propagate(self, frame):
        time.sleep(0.2)
        return super().propagate(frame)

track_video(TrackAnything(build_sam_vit_t("bundled"), Slow()), *sys.argv[1:3], {0: follow_both})
"""


def test_a_killed_run_is_taken_up(tracker: TrackAnything, tmp_path: Path) -> None:
    frames, _, _ = make_frames(30)
    video = write_folder(tmp_path / "clip", frames)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    track_video(tracker, video, whole, {0: follow_both})
    command = [sys.executable, "-c", KILLED, str(video), str(parts)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    while not (parts / "masks" / "00002.png").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 3 <= len([*(parts / "masks").glob("*.png")]) < 30
    assert not (parts / "tracks.json").exists()
    track_video(tracker, video, parts, {0: follow_both})
    for path in whole.rglob("*"):
        if path.is_file() and path.suffix != ".mp4":
            assert (parts / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    assert len([*Video(parts / "overlay.mp4")]) == 30


def test_a_folder_holds_one_run(tracker: TrackAnything, tmp_path: Path) -> None:
    frames, _, _ = make_frames()
    video = write_folder(tmp_path / "clip", frames)
    prompts = {0: follow_both}
    track_video(tracker, video, tmp_path / "out", prompts, settings={"box": (1, 2)})
    track_video(tracker, video, tmp_path / "out", prompts, settings={"box": (1, 2)})
    with pytest.raises(ValueError, match="another box: name another folder"):
        track_video(tracker, video, tmp_path / "out", prompts, settings={"box": (1, 3)})
    with pytest.raises(ValueError, match="another first_frame and box"):
        track_video(tracker, video, tmp_path / "out", {1: follow_both}, 1)
    # Known by its contents: another one of that name is another one, and a copy is the same.
    other = write_folder(tmp_path / "other" / "clip", frames[::-1])
    with pytest.raises(ValueError, match="another video"):
        track_video(tracker, other, tmp_path / "out", prompts, settings={"box": (1, 2)})
    files = [write_clip(tmp_path / f"{day}.mp4", frames[day:7]) for day in (0, 1)]
    track_video(tracker, files[0], tmp_path / "file", prompts)
    with pytest.raises(ValueError, match="another video"):
        track_video(tracker, files[1].replace(files[0]), tmp_path / "file", prompts)

    track_video(tracker, iter(frames), tmp_path / "camera", prompts)
    with pytest.raises(ValueError, match="with frames gone by"):
        track_video(tracker, iter(frames), tmp_path / "camera", prompts)

    (tmp_path / "own" / "masks").mkdir(parents=True)
    (tmp_path / "own" / "masks" / "mine.png").write_bytes(b"")
    with pytest.raises(ValueError, match="files of another origin"):
        track_video(tracker, video, tmp_path / "own", prompts)
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["masks"]


def test_a_finished_overlay_is_not_shortened(tracker: TrackAnything, tmp_path: Path) -> None:
    video = write_folder(tmp_path / "clip", make_frames()[0])
    out = tmp_path / "out"
    track_video(tracker, video, out, {0: follow_both})
    before = (out / "overlay.mp4").read_bytes()

    class Interrupted(Video):
        def __iter__(self) -> Iterator[Pixels]:
            for index, frame in enumerate(super().__iter__()):
                if index == 3:
                    raise KeyboardInterrupt
                yield frame

    with pytest.raises(KeyboardInterrupt):
        track_video(tracker, Interrupted(video), out, {0: follow_both})
    assert (out / "overlay.mp4").read_bytes() == before
    assert not [*out.glob(".*")]
    # Where there is none, as after a run that was killed, some frames are better than nothing.
    (out / "overlay.mp4").unlink()
    with pytest.raises(KeyboardInterrupt):
        track_video(tracker, Interrupted(video), out, {0: follow_both})
    assert len([*Video(out / "overlay.mp4")]) == 3
    track_video(tracker, video, out, {0: follow_both})
    assert len([*Video(out / "overlay.mp4")]) == 8


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(
    tracker: TrackAnything, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        noise = np.random.default_rng(0).integers(0, 256, (8, 240, 320, 3), dtype=np.uint8)
        video = write_folder(tmp_path / "clip", [*noise])
        tracker.propagator = StillPropagator()
        mask = square(20, 20, 50, (240, 320))
        prompts = {0: lambda tracker: tracker.add_object(mask=mask)}
        with pytest.raises(OSError, match="No space left"):
            track_video(tracker, video, disk / "out", prompts)
        assert not (disk / "out" / "overlay.mp4").exists()
        assert not [*(disk / "out").glob(".*")]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        track_video(tracker, video, disk / "out", prompts)
        track_video(tracker, video, tmp_path / "out", prompts)
        assert len([*Video(disk / "out" / "overlay.mp4")]) == 8
        for name in ("tracks.csv", "tracks.json", "masks/00007.png"):
            assert (disk / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_objects_that_were_never_seen_are_not_forgotten(
    small_sam: MobileSam, tmp_path: Path
) -> None:
    """Their ids are not given to others when a run is taken up, and their labels stay."""
    frames, reds, _ = make_frames()

    def first(tracker: TrackAnything) -> None:
        tracker.add_object(mask=reds[0], label="ball")
        tracker.add_object(mask=square(5, 5, 3), label="spot")
        tracker.correct(1, mask=square(0, 0, 20))  # which hides the spot

    def later(tracker: TrackAnything) -> None:
        tracker.add_object(mask=square(50, 30), label="late")

    def interrupt(tracker: TrackAnything) -> None:
        raise KeyboardInterrupt

    class Still(StillPropagator):
        def propagate(self, frame: Pixels) -> dict[int, Mask]:
            return {number: mask for number, mask in self.masks.items() if mask.any()}

    tracker = TrackAnything(small_sam, Still())
    video = write_folder(tmp_path / "clip", frames)
    assert track_video(tracker, video, tmp_path / "whole", {0: first, 5: later}) == [1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        track_video(tracker, video, tmp_path / "parts", {0: first, 3: interrupt, 5: later})
    assert track_video(tracker, video, tmp_path / "parts", {0: first, 5: later}) == [1, 2, 3]
    whole, parts = (read_table(tmp_path / name) for name in ("whole", "parts"))
    assert parts == whole
    assert {(row["id"], row["label"]) for row in whole if row["state"] == "lost"} == {("2", "spot")}


def test_other_files_beside_the_masks_are_left_alone(
    tracker: TrackAnything, tmp_path: Path
) -> None:
    video = write_folder(tmp_path / "clip", make_frames()[0])
    track_video(tracker, video, tmp_path / "out", {0: follow_both})
    before = (tmp_path / "out" / "tracks.json").read_bytes()
    for name in ("._00000.png", "notes.png", "5².png"):
        (tmp_path / "out" / "masks" / name).write_bytes(b"\0\5\x16\7")
    track_video(tracker, video, tmp_path / "out", {0: follow_both})
    assert (tmp_path / "out" / "tracks.json").read_bytes() == before


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_masks_of_all_ids_are_encoded_at_once(h: int, w: int, most: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, most + 1, (h, w)).astype(np.uint8)
    ids[ids == most] = 255
    encoded = encode_ids(ids)
    assert sorted(encoded) == sorted({*ids.ravel().tolist()} - {0})
    for number, (segmentation, box, area) in encoded.items():
        assert segmentation == encode_mask(ids == number)
        assert box == [*cv2.boundingRect((ids == number).astype(np.uint8))]
        assert area == np.count_nonzero(ids == number)


def test_a_size_that_changes_ends_the_run_and_keeps_what_was_done(
    tracker: TrackAnything, tmp_path: Path
) -> None:
    frames, _, _ = make_frames()
    video = write_folder(tmp_path / "clip", [*frames[:3], frames[3][:40]])
    with pytest.raises(ValueError, match="frame 3 of 'clip' has 64 x 40 pixels"):
        track_video(tracker, video, tmp_path / "out", {0: follow_both})
    assert len(read_ids(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "tracks.json").exists()


def test_memory_does_not_grow_with_the_video(tracker: TrackAnything, tmp_path: Path) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Frame(np.ndarray):
        """An array that can be counted."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    def stream() -> Iterator[Pixels]:
        nonlocal most
        for pixels in make_frames(30)[0]:
            frame = pixels.copy().view(Frame)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    track_video(tracker, stream(), tmp_path / "out", {0: follow_both})
    assert len(read_ids(tmp_path / "out")) == 30
    assert 1 <= most <= 3


def test_a_label_may_be_empty(tmp_path: Path) -> None:
    frames, reds, _ = make_frames()
    objects = finds([reds[0]], [""])
    objects.ids = np.array([7])
    with TrackWriter(tmp_path / "out", Video(frames)) as writer:
        writer.write(frames[0], TrackedFrame(0, objects, (3,)))
    content = json.loads((tmp_path / "out" / "tracks.json").read_text())
    assert [track["id"] for track in content["annotations"]] == [7]
    objects.ids = None
    with pytest.raises(ValueError, match="they do not come from a tracker"):
        TrackedFrame(0, objects).id_map()
    with TrackWriter(tmp_path / "nothing", Video(frames)):
        pass
    assert not (tmp_path / "nothing").exists()


# Optical flow and MobileSAM


def textured(size: int, seed: int) -> Pixels:
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 3)
    noise = (noise - noise.mean()) * (50 / noise.std()) + 128
    return np.clip(noise, 0, 255).astype(np.uint8)


def test_flow_beats_what_there_is_without_mobile_sam(small_sam: MobileSam) -> None:
    clip = make_clip(seed=103, length=20, size=(240, 320))
    still, flow, tracked = (
        measure_j(clip, masks).mean()
        for masks in (hold_still(clip), follow_flow(clip), follow(TrackAnything(small_sam), clip))
    )
    assert tracked > still + 0.1
    assert tracked > flow


def test_flow_loses_hidden_objects_and_finds_them_again(small_sam: MobileSam) -> None:
    background, patch = textured(200, 1), textured(200, 2)[:50, :50]
    background = (background * 0.5).astype(np.uint8)
    patch = np.maximum(patch, 90)

    def frame_at(x: int | None) -> Pixels:
        frame = background.copy()
        if x is not None:
            frame[70:120, x : x + 50] = patch
        return frame

    tracker = TrackAnything(small_sam)
    tracker.start(frame_at(40))
    tracker.add_object(mask=square(40, 70, 50, (200, 200)))
    for x in (44, 48):
        tracked = tracker.track(frame_at(x))
        assert ids_of(tracked) == [1] and tracked.lost == ()
        assert iou(tracked.objects.masks[0], square(x, 70, 50, (200, 200))) > 0.85
    for _ in range(3):
        tracked = tracker.track(frame_at(None))
    assert ids_of(tracked) == [] and tracked.lost == (1,)
    for x in (64, 68):
        tracked = tracker.track(frame_at(x))
    assert ids_of(tracked) == [1]
    assert iou(tracked.objects.masks[0], square(x, 70, 50, (200, 200))) > 0.85

    # Told to be somewhere else, it is there.
    tracked = tracker.correct(1, mask=square(130, 70, 50, (200, 200)))
    tracked = tracker.track(frame_at(130))
    assert iou(tracked.objects.masks[0], square(130, 70, 50, (200, 200))) > 0.85


def test_flow_looks_for_lost_objects_near_where_they_were(
    small_sam: MobileSam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long ago they were lost, and a few in a frame, so that no frame takes long."""
    background, patch = (textured(300, 1) * 0.5).astype(np.uint8), textured(200, 2)[:20, :20]
    patch = np.maximum(patch, 90)
    places = [(20 + 40 * column, 20 + 40 * row) for row in range(2) for column in range(3)]

    def frame_with(*corners: tuple[int, int]) -> Pixels:
        frame = background.copy()
        for x, y in corners:
            frame[y : y + 20, x : x + 20] = patch
        return frame

    searched: list[tuple[int, ...]] = []
    match = cv2.matchTemplate

    def count(region: Pixels, template: Pixels, *arguments: Any, **options: Any) -> Any:
        searched[-1] = (*searched[-1], region.shape[1] * region.shape[0])
        return match(region, template, *arguments, **options)

    tracker = TrackAnything(small_sam)
    tracker.start(frame_with(*places))
    for x, y in places:
        tracker.add_object(mask=square(x, y, 20, (300, 300)))
    monkeypatch.setattr(cv2, "matchTemplate", count)
    for _ in range(30):
        searched.append(())
        tracked = tracker.track(frame_with())
    assert tracked.lost == (1, 2, 3, 4, 5, 6)
    assert max(map(len, searched)) <= 4 and sum(map(len, searched[-3:])) >= 10
    assert max(searched[-1]) < 0.5 * 300 * 300
    # Far away it is another one; where it was it is found, within two frames. All look the same.
    for _ in range(2):
        tracked = tracker.track(frame_with((270, 270)))
    assert tracked.lost == (1, 2, 3, 4, 5, 6)
    for _ in range(2):
        tracked = tracker.track(frame_with(places[5]))
    found = np.asarray(tracked.objects.masks.any(axis=0))
    assert iou(found, square(*places[5], 20, (300, 300))) > 0.7


def test_flow_follows_many_objects(small_sam: MobileSam) -> None:
    """More than MobileSAM is asked for at a time."""
    background, patches = (textured(200, 1) * 0.5).astype(np.uint8), textured(200, 2)
    places = [(x, y) for y in (20, 90, 150) for x in (10, 60, 110, 150)]

    def at(step: int) -> tuple[Pixels, list[Mask]]:
        frame = background.copy()
        masks = [square(x + 3 * step, y, 30, (200, 200)) for x, y in places]
        for (x, y), mask in zip(places, masks, strict=True):
            frame[mask] = patches[y : y + 30, x : x + 30].reshape(-1, 3)
        return frame, masks

    tracker = TrackAnything(small_sam)
    frame, masks = at(0)
    tracker.start(frame)
    for mask in masks:
        tracker.add_object(mask=mask)
    for step in (1, 2):
        frame, masks = at(step)
        tracked = tracker.track(frame)
        assert ids_of(tracked) == [*range(1, 13)]
        for found, mask in zip(tracked.objects.masks, masks, strict=True):
            assert iou(found, mask) > 0.8


def test_flow_does_not_depend_on_what_was_followed_before(small_sam: MobileSam) -> None:
    """OpenCV's DIS keeps the scales that it once chose for a narrow picture."""
    tracker = TrackAnything(small_sam)
    wide = make_clip(seed=102, length=4, size=(160, 200), objects=2)
    narrow = make_clip(seed=103, length=3, size=(60, 60), objects=1)
    first, _, again = ([*follow(tracker, clip)] for clip in (wide, narrow, wide))
    np.testing.assert_array_equal(first, again)
    assert any(masks.any() for masks in first)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (12, 12), (24, 200), (40, 33)])
def test_flow_takes_small_frames(small_sam: MobileSam, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, *size, 3), dtype=np.uint8)
    tracker = TrackAnything(small_sam)
    tracker.start(frames[0])
    tracker.add_object(mask=np.ones(size, bool))
    for frame in frames[1:]:
        tracked = tracker.track(frame)
        assert [*ids_of(tracked), *tracked.lost] == [1]
        assert tracked.objects.image_size == size


def test_flow_is_taken_up(small_sam: MobileSam, tmp_path: Path) -> None:
    clip = make_clip(seed=102, length=5, size=(160, 200), objects=2)
    video = write_folder(tmp_path / "clip", [*clip.frames])
    prompts = {0: lambda tracker: [tracker.add_object(mask=mask) for mask in clip.masks[0]]}
    tracker = TrackAnything(small_sam)
    ids = track_video(tracker, video, tmp_path / "out", prompts)
    before = read_ids(tmp_path / "out")
    for index in (3, 4):
        (tmp_path / "out" / "masks" / f"{index:05}.png").unlink()
    assert track_video(tracker, video, tmp_path / "out", prompts) == ids == [1, 2]
    after = read_ids(tmp_path / "out")
    np.testing.assert_array_equal(after[:3], before[:3])
    for old, new in zip(before[3:], after[3:], strict=True):
        for number in ids:
            assert iou(old == number, new == number) > 0.8


# Video models of transformers


SIDE = 128  # of the small models' images; the real ones' are 1024


def save_video_model(folder: Path, kind: str) -> Path:
    """A small SAM 2 or EdgeTAM with random weights, in the form that the Hub's have."""
    stages = [8, 16, 32, 64]
    if kind == "Sam2":
        backbone: dict[str, Any] = {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [SIDE, SIDE],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": stages,
            "num_attention_heads_per_stage": [1, 1, 1, 1],
            "window_size_per_stage": [8, 4, 4, 2],
            "global_attention_blocks": [3],
        }
        special: dict[str, Any] = {"memory_attention_feed_forward_hidden_size": 16}
    else:
        backbone = {
            "model_type": "timm_wrapper",
            "architecture": "repvit_m1",
            "num_classes": 2,
            "model_args": {
                "in_chans": 3,
                "features_only": True,
                "out_indices": [0, 1, 2, 3],
                "embed_dim": stages,
                "depth": [1, 1, 1, 1],
            },
        }
        special = {
            "memory_attention_mlp_hidden_size": 16,
            "memory_attention_rope_k_sizes": [4, 4],
            "perceiver_resampler_num_latents": 16,
            "perceiver_resampler_num_latents_2d": 16,
            "perceiver_resampler_mlp_intermediate_size": 16,
        }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}VideoConfig")(
        vision_config={
            "model_type": "sam2_vision_model" if kind == "Sam2" else "edgetam_vision_model",
            "backbone_config": backbone,
            "backbone_channel_list": stages[::-1],
            "backbone_feature_sizes": [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
            "fpn_hidden_size": 128,
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": SIDE},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 16, "iou_head_hidden_dim": 16},
        image_size=SIDE,
        num_maskmem=3,
        max_object_pointers_in_encoder=4,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_rope_feat_sizes=[SIDE // 16] * 2,
        memory_encoder_hidden_size=128,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=16,
        memory_fuser_num_layers=1,
        **special,
    )
    model = getattr(transformers, f"{kind}VideoModel")(config)
    # As they are, random weights see nothing anywhere.
    last = model.mask_decoder.pred_obj_score_head.proj_out
    torch.nn.init.constant_(last.bias, 1.0)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.Sam2VideoProcessor(
        transformers.Sam2ImageProcessor(
            size=size, mask_size={"height": SIDE // 4, "width": SIDE // 4}
        ),
        transformers.Sam2VideoVideoProcessor(size=size),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models, as a user has them."""
    kinds = "Sam2", "EdgeTam"
    return {kind: save_video_model(tmp_path_factory.mktemp(kind), kind) for kind in kinds}


@pytest.mark.parametrize("kind", ["Sam2", "EdgeTam"])
def test_video_models_see_what_they_see_elsewhere(video_models: dict[str, Path], kind: str) -> None:
    """The logits are those of the model by itself, which drops nothing of its memory."""
    frames, reds, greens = make_frames(10)
    propagator = TransformersPropagator(video_models[kind])
    propagator.set_masks(frames[0], {2: reds[0], 7: greens[0]})

    model = transformers.AutoModel.from_pretrained(video_models[kind]).eval()
    processor = transformers.AutoProcessor.from_pretrained(video_models[kind])
    session = processor.init_video_session()
    inputs = [processor(images=frame, return_tensors="pt").pixel_values[0] for frame in frames]
    processor.add_inputs_to_inference_session(session, 0, [2, 7], input_masks=[reds[0], greens[0]])
    model(session, frame_idx=0, frame=inputs[0])
    for index in range(1, 10):
        output = model(session, frame=inputs[index])
        expected = processor.post_process_masks([output.pred_masks], [SIZE], binarize=False)[0]
        found = propagator.propagate(frames[index])
        assert [*found] == [2, 7]
        for logits, each in zip(found.values(), expected, strict=True):
            assert logits.shape == SIZE and logits.dtype == np.float32
            np.testing.assert_allclose(logits, each[0].numpy(), atol=1e-6)
    kept = [len(outputs["non_cond_frame_outputs"]) for outputs in
            propagator._session.output_dict_per_obj.values()]  # fmt: skip
    assert max(kept) < 9 and len(propagator._session.processed_frames) == 1


@pytest.mark.parametrize("kind", ["Sam2", "EdgeTam"])
def test_video_models_take_new_objects_and_corrections(
    small_sam: MobileSam, video_models: dict[str, Path], kind: str
) -> None:
    frames, reds, greens = make_frames(6)
    propagator = TransformersPropagator(video_models[kind])
    tracker = TrackAnything(small_sam, propagator)
    for _ in range(2):  # a second video begins from nothing
        tracker.start(frames[0])
        tracker.add_object(mask=reds[0])
        tracker.track(frames[1])
        assert tracker.add_object(mask=greens[1]) == 2
        tracker.track(frames[2])
        tracker.correct(1, mask=reds[2])
        tracker.correct(2, mask=greens[2])
        outputs = propagator._session.output_dict_per_obj
        # Not among the tracked frames, which are forgotten. In frame 1 the first object is told of
        # too if the second took pixels of it, which depends on what the untrained model sees.
        first, second = (set(each["cond_frame_outputs"]) for each in outputs.values())
        assert first | {1} == {0, 1, 2} and first >= {0, 2} and second == {1, 2}
        assert all(2 not in each["non_cond_frame_outputs"] for each in outputs.values())
        for frame in frames[3:]:
            tracked = tracker.track(frame)
            assert sorted([*ids_of(tracked), *tracked.lost]) == [1, 2]
    assert not any(propagator._session.mask_inputs_per_obj.values())


@pytest.mark.parametrize("kind", ["Sam2", "EdgeTam"])
def test_a_new_object_leaves_others_as_they_are(video_models: dict[str, Path], kind: str) -> None:
    frames, reds, greens = make_frames(3)
    propagators = [TransformersPropagator(video_models[kind]) for _ in range(2)]
    for propagator in propagators:
        propagator.set_masks(frames[0], {1: reds[0]})
        propagator.propagate(frames[1])
    propagators[1].set_masks(frames[1], {2: greens[1]})
    alone, both = (propagator.propagate(frames[2]) for propagator in propagators)
    assert [*alone] == [1] and [*both] == [1, 2]
    np.testing.assert_allclose(both[1], alone[1], atol=1e-5)


def test_what_a_video_model_does_not_see_is_lost(
    small_sam: MobileSam, video_models: dict[str, Path]
) -> None:
    frames, reds, _ = make_frames()
    propagator = TransformersPropagator(video_models["Sam2"])
    tracker = TrackAnything(small_sam, propagator)
    tracker.start(frames[0])
    tracker.add_object(mask=reds[0])
    last = propagator._model.mask_decoder.pred_obj_score_head.proj_out
    torch.nn.init.constant_(last.bias, -1.0)
    tracked = tracker.track(frames[1])
    assert len(tracked.objects) == 0 and tracked.lost == (1,)


def test_models_that_follow_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        TransformersPropagator(tmp_path / "missing")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    transformers.CLIPImageProcessor().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="CLIPVisionModel, which is no model for videos such as"):
        TransformersPropagator(tmp_path / "clip")


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "mobile-sam-plugin\[track\]"'):
        TransformersPropagator()


# The command


BUNDLED = ("--checkpoint", "bundled", "--device", "cpu")
LENIENT = ("--points-per-side", "4", "--pred-iou-thresh", "0.1", "--stability-score-thresh", "0")


@pytest.fixture
def clip_file(tmp_path: Path, video_models: dict[str, Path]) -> Path:
    """A video; beside it, what is none."""
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty").mkdir()
    return write_clip(tmp_path / "clip.mp4", make_frames(4)[0])


def test_track_writes_what_the_tracker_finds(
    bundled_sam: MobileSam,
    clip_file: Path,
    video_models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = clip_file.parent / "out"
    command = ["track", str(clip_file), "--out", str(out), *BUNDLED]
    command += ["--propagator", str(video_models["Sam2"])]
    command += ["--box", "4,4,16,16", "--box", "30,14,42,26"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{out / 'clip' / 'tracks.json'}  2 objects"
    assert all(Path(line.split("  ")[0]).exists() for line in printed)

    tracker = TrackAnything(bundled_sam, TransformersPropagator(video_models["Sam2"]))

    def boxes(tracker: TrackAnything) -> None:
        tracker.add_object(box=[4, 4, 16, 16])
        tracker.add_object(box=[30, 14, 42, 26])

    track_video(tracker, clip_file, clip_file.parent / "expected", {0: boxes})
    for name in ("tracks.csv", "tracks.json", "masks/00003.png"):
        expected = (clip_file.parent / "expected" / name).read_bytes()
        assert (out / "clip" / name).read_bytes() == expected

    # Another video of that name gets a folder of its own.
    other = clip_file.parent / "tuesday" / "clip.mp4"
    other.parent.mkdir()
    write_clip(other, make_frames(3)[0])
    assert main(["track", str(other), *command[2:]]) == 0
    assert "the results of" in capsys.readouterr().err
    assert [len(read_ids(out / name)) for name in ("clip", "clip.mp4")] == [4, 3]

    # Taken up, and not mixed with another run.
    (out / "clip" / "masks" / "00003.png").unlink()
    assert main(command) == 0
    assert len(read_ids(out / "clip")) == 4
    assert main([*command, "--box", "1,2,3,4"]) == 2
    assert "another box" in capsys.readouterr().err


def test_track_takes_clicks_and_everything(
    video_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(seed=102, length=4, size=(160, 200), objects=2)
    video = write_folder(tmp_path / "clip", [*clip.frames])
    command = ["track", str(video), *BUNDLED, "--propagator", str(video_models["EdgeTam"])]
    y, x = np.argwhere(clip.masks[2][0]).mean(axis=0).round()
    for name, prompt in {
        "clicks": ["--point", f"{x},{y}", "--point", "0,0,0", "--first-frame", "2"],
        "everything": ["--everything", "--find-every", "2", *LENIENT],
    }.items():
        out = tmp_path / name
        assert main([*command, *prompt, "--out", str(out)]) == 0, capsys.readouterr().err
        assert len(read_ids(out / "clip")) == (2 if name == "clicks" else 4)
        assert "2" in {row["frame"] for row in read_table(out / "clip")}
    assert read_table(tmp_path / "clicks" / "clip")[0]["id"] == "1"


def test_track_leaves_small_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_clip(seed=102, length=1, size=(160, 200), objects=2)
    video = write_folder(tmp_path / "clip", [*clip.frames])
    command = ["track", str(video), *BUNDLED, "--everything", *LENIENT, "--out", str(tmp_path)]
    assert main([*command, "--min-area", str(160 * 200 + 1)]) == 2
    assert "no object was found" in capsys.readouterr().err
    assert main([*command, "--min-area", "0"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clip.mp4", "--text", "a dog", "--box-threshold", "2"], "--box-threshold"),
        (["clip.mp4"], "give --point, --box, --text or --everything"),
        (["clip.mp4", "--text", "a dog", "--everything"], "give one of"),
        (["clip.mp4", "--text", " "], "the prompt ' ' is empty"),
        (["clip.mp4", "--point", "1"], "'1' is not X,Y or X,Y,LABEL"),
        (["clip.mp4", "--box", "1,2,3"], "'1,2,3' is not X0,Y0,X1,Y1"),
        (["clip.mp4", "--box", "1,2,3,4", "--find-every", "5"], "goes with --text or --everything"),
        (["clip.mp4", "--everything", "--find-every", "-1"], "--find-every"),
        (["clip.mp4", "--everything", "--pred-iou-thresh", "2"], "--pred-iou-thresh"),
        (["clip.mp4", "--box", "1,2,3,4", "--first-frame", "9"], "has 4 frames"),
        (["clip.mp4", "--box", "1,2,3,4", "--propagator", "empty"], "empty"),
        (["clip.mp4", "--text", "a dog", "--detector", "empty"], "empty"),
        (["clip.mp4", "--box", "1,2,3,4", "--device", "warp"], "'warp'"),
        (["missing.mp4", "--point", "1,2"], "missing.mp4"),
        (["text.mp4", "--point", "1,2"], "no video that OpenCV can decode"),
        (["empty", "--point", "1,2"], "no image in the folder"),
    ],
    ids=str,
)
def test_track_names_mistakes(
    clip_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(clip_file.parent)
    assert main(["track", *arguments, "--checkpoint", "bundled", "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mobile-sam: ") and captured.err.count("\n") == 1, captured.err
    assert words in captured.err and captured.out == ""
    assert not (clip_file.parent / "out").exists()


# The original projects


def test_track_anything_on_base_segmenter(bundled_sam: MobileSam, coffee: Pixels) -> None:
    """What ``SamControler`` of Track-Anything calls, as its application does."""
    segmenter = BaseSegmenter(str(BUNDLED_FILE), "vit_t", "cpu")
    points, labels = np.array([[300, 130], [300, 180]]), np.array([1, 1])
    with pytest.raises(RuntimeError, match="set"):
        segmenter.predict({"point_coords": points, "point_labels": labels}, "point")
    segmenter.reset_image()
    segmenter.set_image(coffee)
    assert segmenter.embedded and segmenter.orignal_image is coffee
    with pytest.warns(UserWarning, match="call reset_image first"):
        segmenter.set_image(coffee)

    predictor = SamPredictor(bundled_sam)
    predictor.set_image(coffee)
    prompts: dict[str, Any] = {"point_coords": points, "point_labels": labels}
    masks, scores, logits = segmenter.predict(prompts, "point", True)
    assert masks.shape == (3, 400, 600) and logits.shape == (3, 256, 256)
    np.testing.assert_array_equal(masks, predictor.predict(points, labels)[0])
    assert len(segmenter.predict(prompts, "point", multimask=False)[0]) == 1

    prompts["mask_input"] = logits[np.argmax(scores), :, :][None, :, :]
    both = segmenter.predict(prompts, "both", True)
    expected = predictor.predict(points, labels, mask_input=prompts["mask_input"])
    for found, value in zip(both, expected, strict=True):
        np.testing.assert_array_equal(found, value)
    only = segmenter.predict({"mask_input": prompts["mask_input"]}, "mask")
    np.testing.assert_array_equal(only[0], predictor.predict(mask_input=prompts["mask_input"])[0])
    with pytest.raises(ValueError, match="one of point, mask, both, not 'box'"):
        segmenter.predict(prompts, "box")
    with pytest.raises(KeyError, match="mask_input"):
        segmenter.predict({}, "mask")
    segmenter.reset_image()
    assert not segmenter.embedded


def build_vit_b() -> tuple[bool, float]:
    """As their applications do by default; the weight tells the checkpoint."""
    segmenter = BaseSegmenter("sam_vit_b_01ec64.pth", "vit_b", "cpu")
    return isinstance(segmenter.model, MobileSam), float(next(segmenter.model.parameters()).sum())


def test_other_types_are_mobile_sam_too(bundled_sam: MobileSam, tmp_path: Path) -> None:
    """The projects' own checkpoints are of other models, so that the default one stands in."""
    owner, name = DEFAULT_CHECKPOINT.removeprefix("hf://").split("/")[:2]
    with Hub() as hub:
        hub.commit(f"{owner}/{name}", {"model.safetensors": BUNDLED_FILE.read_bytes()})
        mobile, weight = Client(hub.url, tmp_path)(build_vit_b)
    assert mobile and weight == pytest.approx(float(next(bundled_sam.parameters()).sum()))
    with pytest.raises(ValueError, match="no model type 'vit_x'"):
        BaseSegmenter(None, "vit_x", "cpu")


def test_segment_and_track_anything_on_segmentor(bundled_sam: MobileSam, coffee: Pixels) -> None:
    """What ``SegTracker`` of Segment-and-Track-Anything calls, and its application."""
    segmentor = Segmentor(
        {
            "sam_checkpoint": str(BUNDLED_FILE),
            "model_type": "vit_t",
            "generator_args": {
                "points_per_side": 4,
                "pred_iou_thresh": 0.1,
                "stability_score_thresh": 0.0,
            },
            "gpu_id": "cpu",
        }
    )
    assert segmentor.device == "cpu" and not segmentor.have_embedded
    coords, modes = np.array([[300, 130]]), np.array([1])
    mask = segmentor.segment_with_click(coffee, coords, modes)
    assert segmentor.have_embedded
    predictor = SamPredictor(bundled_sam)
    predictor.set_image(coffee)
    _, scores, logits = predictor.predict(coords, modes)
    masks, scores, _ = predictor.predict(coords, modes, mask_input=logits[np.argmax(scores), None])
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, masks[np.argmax(scores)])

    box = np.array([170, 10, 430, 300])
    (boxed,) = segmentor.segment_with_box(coffee, [[170, 10], [430, 300]])
    _, scores, logits = predictor.predict(box=box)
    masks, scores, _ = predictor.predict(box=box, mask_input=logits[np.argmax(scores), None])
    np.testing.assert_array_equal(boxed, masks[np.argmax(scores)])

    only = segmentor.interactive_predict({"mask_prompt": logits[:1]}, "mask", multimask=False)
    np.testing.assert_array_equal(
        only[0], predictor.predict(mask_input=logits[:1], multimask_output=False)[0]
    )
    with pytest.raises(ValueError, match="one of point, mask, point_mask, not 'both'"):
        segmentor.interactive_predict({}, "both")

    # A new frame, as its application announces one.
    segmentor.have_embedded = False
    segmentor.interactive_predictor.features = None
    other = coffee[:, ::-1].copy()
    (mirrored,) = segmentor.segment_with_box(other, [[170, 10], [430, 300]], True)
    predictor.set_image(other)
    _, scores, logits = predictor.predict(box=box)
    masks, scores, _ = predictor.predict(box=box, mask_input=logits[np.argmax(scores), None])
    np.testing.assert_array_equal(mirrored, masks[np.argmax(scores)])
    annotations = segmentor.everything_generator.generate(other)
    assert annotations and annotations[0]["segmentation"].shape == (400, 600)
