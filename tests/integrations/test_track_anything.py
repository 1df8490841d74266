"""The tracker: objects, prompts, new objects, errors."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.flow import FlowPropagator, mask_prompt
from mobile_sam_plugin.integrations.instances import Instances
from mobile_sam_plugin.integrations.propagators import (
    FrameEncoder,
    claim_pixels,
)
from mobile_sam_plugin.integrations.track_anything import (
    TrackAnything,
    everything_detector,
)

from .clips import SIZE, ColorPropagator, StillPropagator, finds, ids_of, make_frames, square

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


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
    cup = tracker.add_object(point_coords=[[300, 130]])
    np.testing.assert_array_equal(tracker.current.objects.masks[0], masks[scores.argmax()])
    assert tracker.current.objects.scores[0] == pytest.approx(scores.max())

    # The click on the background goes with the mask so far.
    prompt = mask_prompt(predictor, masks[scores.argmax()])
    corrected, _, _ = predictor.predict(
        [[300, 130], [300, 180]], [1, 0], mask_input=prompt, multimask_output=False
    )
    tracked = tracker.correct(cup, point_coords=[[300, 130], [300, 180]], point_labels=[1, 0])
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
    with pytest.raises(UserError, match=r"only pixels of the objects \[3, 4\], which are followed"):
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


def test_new_objects_are_those_that_nothing_followed_covers(small_sam: MobileSam) -> None:
    """As ``find_new_objs``: enough of it must be free, and enough pixels."""
    tracker = TrackAnything(small_sam, StillPropagator(), min_area=20, min_new_fraction=0.8)
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
        "left out: 2 detections of fewer than min_area (20) pixels: lower it (--min-area)"
    )
    with pytest.raises(TypeError, match="detector must return Instances, not list"):
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
    assert tracker.describe_left_out() == "left out: 1 detection beyond 255 objects"
    with pytest.raises(ValueError, match="1 to 255, not 256"):
        tracker.add_object(mask=square(20, 20))


def test_new_objects_are_looked_for_every_n_frames(small_sam: MobileSam) -> None:
    frames, reds, greens = make_frames()
    asked = []

    def find(frame: Pixels) -> Instances:
        index = next(i for i, known in enumerate(frames) if np.array_equal(known, frame))
        asked.append(index)
        return finds([reds[index], greens[index]] if index == 6 else [greens[index]])

    tracker = TrackAnything(small_sam, ColorPropagator(), find, detect_every=3, min_area=50)
    assert ids_of(tracker.start(frames[0])) == [1]
    seen = [ids_of(tracker.track(frame)) for frame in frames[1:]]
    assert asked == [0, 3, 6]
    assert seen == [[1]] * 5 + [[1, 2]] * 2

    asked.clear()
    tracker = TrackAnything(small_sam, ColorPropagator(), find, min_area=50)
    tracker.start(frames[0])
    tracker.track(frames[1])
    assert asked == [0]
    with pytest.raises(RuntimeError, match="pass detector to TrackAnything"):
        TrackAnything(small_sam).detect_objects()


def test_everything_mode_finds_objects(small_sam: MobileSam, coffee: Pixels) -> None:
    options = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    found = everything_detector(small_sam, **options)(coffee)
    assert len(found) and found.image_size == coffee.shape[:2]
    strict = {"points_per_side": 1, "pred_iou_thresh": 1.0, "stability_score_thresh": 1.0}
    nothing = everything_detector(small_sam, **strict)(coffee)
    assert len(nothing) == 0 and nothing.masks.shape == (0, 400, 600)
    with pytest.raises(ValueError, match=r"box_nms_thresh must be in \[0, 1\], not 7"):
        everything_detector(small_sam, box_nms_thresh=7)
    with pytest.raises(TypeError, match="output_mode"):
        everything_detector(small_sam, output_mode="binary_mask")


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
        (lambda t: t.add_object(point_coords=[[1, 2]], mask=square(1, 1)), ValueError, "not both"),
        (lambda t: t.correct(1, box=[1, 2, 3, 4], mask=square(1, 1)), ValueError, "not both"),
        (lambda t: t.add_object(mask=square(1, 1), object_id=1.5), TypeError, "object_id .* 1.5"),
        (lambda t: t.add_object(mask=square(1, 1), label=None), TypeError, "label must be a text"),
        (lambda t: t.add_object(point_coords=[[np.nan, 1]]), ValueError, "NaN"),
        (lambda t: t.add_object(point_coords=5), ValueError, "shape .N, 2."),
        (
            lambda t: t.add_object(point_coords=[[1, 2]], point_labels=[1, 1]),
            ValueError,
            "one label per point",
        ),
        (lambda t: t.add_object(box=[1, 2, 3]), ValueError, "box must be 4 numbers"),
        (lambda t: t.correct(7, point_coords=[[1, 2]]), KeyError, "no object 7, only .1."),
        (lambda t: t.correct(1), ValueError, "give points, a box or a mask"),
        (lambda t: t.track(np.zeros((9, 9, 3), np.uint8)), ValueError, "9 x 9 pixels.*64 x 48"),
        (lambda t: t.track("missing.png"), FileNotFoundError, "missing.png"),
    ],
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
    with pytest.raises(ValueError, match="detect_every must be at least 0, not -1"):
        TrackAnything(small_sam, detect_every=-1)
    with pytest.raises(ValueError, match=r"min_new_fraction must be in \[0, 1\], not 1.5"):
        TrackAnything(small_sam, min_new_fraction=1.5)
    with pytest.raises(ValueError, match="min_area must be at least 0, not nan"):
        TrackAnything(small_sam, min_area=np.nan)  # type: ignore[arg-type]
    for wrong, message in (
        ({"detect_every": 2.5}, "detect_every must be a whole number, not 2.5"),
        ({"min_area": "many"}, "min_area must be a number, not 'many'"),
        ({"propagator": "some/model"}, "propagator must be an object with reset.*'some/model'"),
        ({"detector": "a dog"}, "detector must be a function of a frame.*'a dog'"),
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
        ({2: np.ones(SIZE, bool)}, "Odd returned the object 2, which is not followed"),
        (
            {1: np.ones((3, 3), bool)},
            r"shape \(3, 3\) for object 1, the frame has \(48, 64\)",
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
