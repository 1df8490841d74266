"""What tracking writes into a folder, and how a run is resumed from it."""

import json
import subprocess
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
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import MobileSam, build_sam_vit_t
from mobile_sam_plugin.drawing import palette
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.track_anything import (
    TrackAnything,
    track_video,
)
from mobile_sam_plugin.integrations.tracks import TrackedFrame, TrackWriter
from mobile_sam_plugin.integrations.tracks import _encode_ids as encode_ids
from mobile_sam_plugin.integrations.video import Video
from mobile_sam_plugin.mobile_sam import set_img_size
from mobile_sam_plugin.records import encode_mask

from ..fresh import fresh_context
from .clips import (
    SIZE,
    ColorPropagator,
    StillPropagator,
    finds,
    follow_both,
    make_frames,
    read_ids,
    read_table,
    square,
    write_clip,
    write_folder,
)

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


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
        ({}, "no object to follow in frame 0"),
        ({"prompts": {9: follow_both}}, "has 8 frames, so there is no frame 9"),
        (
            {"prompts": {0: follow_both}, "first_frame": 8},
            r"first_frame \(8\) .* later than .* prompt .0.",
        ),
        ({"prompts": {8: follow_both}, "first_frame": 8}, "has 8 frames.*no frame 8"),
        ({"first_frame": -1}, "first_frame must be at least 0, not -1"),
    ],
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
        with pytest.raises(UserError, match="another run, with other objects in frame"):
            track_video(tracker, video, out, prompts)
    set_img_size(own_sam, 224)
    with torch.no_grad():
        own_sam.mask_decoder.iou_token.weight += 1e-3
    with pytest.raises(UserError, match="another run .*weights_sha256 has changed"):
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

    with pytest.raises(
        UserError, match=r"no object to follow in frame 0.*1 detection .* min_area .50."
    ):
        track_video(find([speck]), video, tmp_path / "none")
    with pytest.warns(
        UserWarning, match=r"^left out: 1 detection of fewer than min_area \(50\) pixels"
    ):
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


class SlowPropagator(ColorPropagator):
    def propagate(self, frame: Pixels) -> dict[int, Mask]:
        time.sleep(0.2)
        return super().propagate(frame)


def track_slowly(model: Path, video: Path, out: Path) -> None:
    tracker = TrackAnything(build_sam_vit_t(model), SlowPropagator())
    track_video(tracker, video, out, {0: follow_both})


@pytest.mark.process
def test_a_killed_run_is_taken_up(tracker: TrackAnything, tiny_file: Path, tmp_path: Path) -> None:
    frames, _, _ = make_frames(30)
    video = write_folder(tmp_path / "clip", frames)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    track_video(tracker, video, whole, {0: follow_both})
    process = fresh_context().Process(target=track_slowly, args=(tiny_file, video, parts))
    process.start()
    while not (parts / "masks" / "00002.png").exists():
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.join()
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
    with pytest.raises(
        ValueError, match=r"box was \[1, 2\], is now \[1, 3\]\): choose another folder"
    ):
        track_video(tracker, video, tmp_path / "out", prompts, settings={"box": (1, 3)})
    with pytest.raises(ValueError, match="first_frame was 0, is now .*; box was"):
        track_video(tracker, video, tmp_path / "out", {1: follow_both}, 1)
    # Known by its contents: another one of that name is another one, and a copy is the same.
    other = write_folder(tmp_path / "other" / "clip", frames[::-1])
    with pytest.raises(ValueError, match="video has changed"):
        track_video(tracker, other, tmp_path / "out", prompts, settings={"box": (1, 2)})
    files = [write_clip(tmp_path / f"{day}.mp4", frames[day:7]) for day in (0, 1)]
    track_video(tracker, files[0], tmp_path / "file", prompts)
    with pytest.raises(ValueError, match="video has changed"):
        track_video(tracker, files[1].replace(files[0]), tmp_path / "file", prompts)

    track_video(tracker, iter(frames), tmp_path / "camera", prompts)
    with pytest.raises(ValueError, match="run on a stream, which cannot be resumed"):
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
    objects.tracker_id = np.array([7])
    with TrackWriter(tmp_path / "out", Video(frames)) as writer:
        writer.write(frames[0], TrackedFrame(0, objects, (3,)))
    content = json.loads((tmp_path / "out" / "tracks.json").read_text())
    assert [track["id"] for track in content["annotations"]] == [7]
    objects.tracker_id = None
    with pytest.raises(ValueError, match="they do not come from a tracker"):
        TrackedFrame(0, objects).id_map()
    with TrackWriter(tmp_path / "nothing", Video(frames)):
        pass
    assert not (tmp_path / "nothing").exists()
