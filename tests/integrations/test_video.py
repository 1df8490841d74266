"""Videos: what is read frame by frame, masks by frames, and what is written."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.video import (
    MaskFolder,
    Video,
    VideoWriter,
    is_video,
    write_video,
)

from .clips import SIZE, clip, make_frames, ramp, random_pixels, write_clip, write_folder

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


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
    with pytest.raises(ValueError, match="OpenCV cannot decode '.*text.mp4' as a video"):
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
    with pytest.warns(UserWarning, match="only .* frames of .* could be read.*promises 40"):
        assert 0 < len([*Video(path)]) < 30


def mask_folder(folder: Path, names: list[str]) -> Path:
    """Masks of as many pixels as their place in the list, from 1."""
    folder.mkdir(parents=True)
    for count, name in enumerate(names, start=1):
        mask = np.zeros((8, 8), np.uint8)
        mask.flat[:count] = 255
        Image.fromarray(mask).save(folder / name)
    return folder


def test_masks_belong_to_the_frames_of_their_numbers(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(1, 5):
        Image.fromarray(random_pixels(8, 8, 3)).save(frames / f"frame_{index:04}.png")
    stream, folder = Video([random_pixels(8, 8, 3)] * 12), Video(frames)

    def pair(names: list[str], video: Video, place: str) -> dict[int, int]:
        masks = MaskFolder(mask_folder(tmp_path / place, names), video)
        assert len(masks) == len(names)
        return {index: int(masks[index].sum()) for index in masks}

    assert pair(["00002.png", "00010.png"], stream, "a") == {2: 1, 10: 2}
    assert pair(["take2_3.png", "take2_11.png"], stream, "b") == {3: 1, 11: 2}
    # As the frames are called, unless a tracker numbered them.
    names = ["frame_0002.png", "frame_0004.png"]
    assert pair(names, folder, "c") == {1: 1, 3: 2}
    for index in range(1, 5):
        (frames / f"frame_{index:04}.png").rename(frames / f"{index:05}.png")
    folder = Video(frames)
    assert pair(["00001.png", "00003.png"], folder, "d") == {0: 1, 2: 2}
    (tmp_path / "tracked").mkdir()
    (tmp_path / "tracked" / "run.json").write_text("{}")
    assert pair(["00001.png", "00003.png"], folder, "tracked/masks") == {1: 1, 3: 2}

    for names, message in (
        (["mask.png"], "no number in its name"),
        (["1.png", "01.png"], "'01.png' and '1.png' are both masks of frame 1"),
        (["0.png", "7.png"], "'7.png' belongs to frame 7, but 'frames' has 4 frames"),
    ):
        with pytest.raises(UserError, match=message):
            pair(names, folder, names[0])


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("jpeg85.jpg", lambda mask: Image.fromarray(mask)),
        ("0_and_1.png", lambda mask: Image.fromarray(mask // 255)),
        ("ids.png", lambda mask: Image.fromarray((mask > 0).astype(np.uint16) * 300)),
        ("alpha.png", lambda mask: Image.fromarray(np.dstack([mask * 0] * 3 + [mask]))),
    ],
)
def test_masks_are_what_a_person_means(tmp_path: Path, name: str, image: Any) -> None:
    mask = np.zeros((120, 160), np.uint8)
    mask[40:80, 64:112] = 255
    options = {"quality": 85} if name.endswith("jpg") else {}
    image(mask).save(tmp_path / name, **options)
    Image.fromarray(random_pixels(120, 160, 3)).save(tmp_path / "photo.png")
    arguments = ["remove", str(tmp_path / "photo.png"), "--mask", str(tmp_path / name)]
    assert main([*arguments, "--margin", "0", "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "photo" / "inpainted_mask.png") as painted:
        np.testing.assert_array_equal(np.asarray(painted), mask)


def save_animation(path: Path, frames: list[Pixels], duration: int) -> Path:
    first, *others = map(Image.fromarray, frames)
    options: Any = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=duration, **options)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".bin"])
def test_animations_are_videos(tmp_path: Path, suffix: str) -> None:
    """Also by a name that says nothing; of one frame, they are images."""
    frames, masks = clip()
    path = save_animation(tmp_path / f"a{suffix.replace('bin', 'gif')}", frames, 40)
    path = path.rename(tmp_path / f"clip{suffix}")
    assert is_video(path)
    video = Video(path)
    assert (video.name, video.length, video.frame_rate) == ("clip", 5, 25)
    for read, frame in zip(video, frames, strict=True):
        assert np.abs(read.astype(int) - frame).mean() < 4  # a palette's share
    folder = mask_folder(tmp_path / "masks", [])
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{index}.png")
    options = "--device", "cpu", "--out", str(tmp_path / "out")
    assert main(["remove", str(path), "--mask", str(folder), *options]) == 0
    written = Video(tmp_path / "out" / "clip" / "inpainted.mp4")
    assert written.frame_rate == 25
    for painted in written:
        assert np.abs(painted.astype(int) - ramp(48, 64)).mean() < 6

    still = save_animation(tmp_path / f"still{suffix.replace('bin', 'gif')}", frames[:1], 40)
    assert not is_video(still)
    assert main(["remove", str(still), "--mask", str(folder / "0.png"), *options]) == 0
    assert (tmp_path / "out" / "still" / "inpainted.png").exists()


def test_an_animation_of_uneven_times_is_told_of(tmp_path: Path) -> None:
    frames, _ = clip()
    first, *others = map(Image.fromarray, frames)
    times = [40, 40, 200, 40, 80]
    first.save(tmp_path / "clip.gif", save_all=True, append_images=others, duration=times)
    with pytest.warns(UserWarning, match="last 40 to 200 ms"):
        assert Video(tmp_path / "clip.gif").frame_rate == pytest.approx(5 / 0.4)


@pytest.mark.parametrize("size", [(120, 160), (119, 159), (120, 159), (3, 500), (2, 1), (1, 1)])
def test_videos_have_the_size_that_went_in(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = [np.full((*size, 3), 40 * index + 40, np.uint8) for index in range(3)]
    for frame in frames:
        frame[-1:], frame[:, -1:] = 250, 250  # what OpenCV's writer would drop
    write_video(tmp_path / "clip.mp4", frames, 25)
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    for frame in frames:
        read, seen = capture.read()
        assert read and seen.shape == frame.shape
        assert np.abs(seen[-1].astype(int) - 250).max() < 32
        assert np.abs(seen[:, -1].astype(int) - 250).max() < 32
        if min(size) > 100:
            assert np.abs(seen[:-4, :-4].astype(int) - frame[:-4, :-4]).mean() < 3
    assert not capture.read()[0]


@pytest.mark.parametrize("rate", [25, 12.5, 59.94, 30000 / 1001, 119.988, 0.1])
def test_frame_rates_are_kept(
    tmp_path: Path, rate: float, recwarn: pytest.WarningsRecorder
) -> None:
    write_video(tmp_path / "clip.mp4", clip()[0], rate)
    assert Video(tmp_path / "clip.mp4").frame_rate == pytest.approx(rate, rel=1e-9)
    assert not recwarn.list


@pytest.mark.parametrize("rate", [66.667, 72.727, 211.222, 143.913, 1e-9])
def test_the_nearest_frame_rate_is_told_of(tmp_path: Path, rate: float) -> None:
    """MPEG-4 holds fractions of numbers up to 65535."""
    with pytest.warns(UserWarning, match="cannot hold .* frames per second") as told:
        write_video(tmp_path / "clip.mp4", clip()[0], rate)
    assert len(told) == 1
    if rate > 1:
        assert Video(tmp_path / "clip.mp4").frame_rate == pytest.approx(rate, rel=1e-6)
    assert len([*Video(tmp_path / "clip.mp4")]) == 5


@pytest.mark.parametrize("rate", [0, -5, np.nan, np.inf])
def test_no_rate_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(UserError, match="frame rate must be a positive number"):
        write_video(tmp_path / "clip.mp4", clip()[0], rate)


def test_a_rate_that_makes_no_sense_ends_no_run(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", clip()[0], 1200)
    with pytest.warns(UserWarning, match=r"frame rate 1200, which makes no sense.* 25 frames"):
        assert Video(tmp_path / "clip.mp4").frame_rate == 25


def test_a_frame_of_another_size_is_no_frame_less(tmp_path: Path) -> None:
    frames = clip()[0]
    frames[2] = frames[2][:, :60]
    (tmp_path / "clip.mp4").write_bytes(b"before")
    with pytest.raises(
        UserError, match="frame 2 has 60 x 48 pixels, the frames before have 64 x 48"
    ):
        write_video(tmp_path / "clip.mp4", frames, 25)
    assert (tmp_path / "clip.mp4").read_bytes() == b"before"
    assert len([*tmp_path.iterdir()]) == 1


def test_a_full_disk_is_told_of_and_keeps_what_was_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk:1"  # what stands before a colon is no protocol
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        write_video(disk / "clip.mp4", clip()[0], 25)
        before = (disk / "clip.mp4").read_bytes()
        noise = np.random.default_rng(0).integers(0, 256, (30, 240, 320, 3), dtype=np.uint8)
        # Full in the middle, and when what is left in buffers is written at the end.
        for frames in (noise, noise[:2]):
            with pytest.raises(OSError, match="No space left") as error:
                write_video(disk / "clip.mp4", frames, 25)
            assert error.value.filename == str(disk / "clip.mp4")
            assert (disk / "clip.mp4").read_bytes() == before
            assert [*disk.iterdir()] == [disk / "clip.mp4"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_videos_need_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which is asked for before anything is painted."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "mobile-sam-plugin\[video\]"'):
        write_video(tmp_path / "clip.mp4", (pytest.fail("painted") for _ in "a"), 25)


def test_two_runs_may_write_one_file(tmp_path: Path) -> None:
    frames = clip()[0]
    first, second = (VideoWriter(tmp_path / "clip.mp4", 25) for _ in range(2))
    for frame in frames:
        first.write(frame)
        second.write(frame)
    second.close()
    first.close()
    assert len([*Video(tmp_path / "clip.mp4")]) == 5
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize("suffix", [".mkv", ".m4v", ""])
def test_videos_and_images_of_any_suffix(tmp_path: Path, suffix: str) -> None:
    """Told apart by what they hold where the suffix is no image's."""
    frames, masks = clip()
    write_video(tmp_path / "clip.mp4", frames, 12.5)
    video = (tmp_path / "clip.mp4").rename(tmp_path / f"street{suffix}")
    (tmp_path / "masks").mkdir()
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    picture = tmp_path / f"picture{suffix}"
    Image.fromarray(frames[0]).save(picture, format="png")
    options = "--device", "cpu", "--out", str(tmp_path / "out")
    assert main(["remove", str(video), "--mask", str(tmp_path / "masks"), *options]) == 0
    assert len([*Video(tmp_path / "out" / "street" / "inpainted.mp4")]) == 5
    assert (
        main(["remove", str(picture), "--mask", str(tmp_path / "masks" / "0.png"), *options]) == 0
    )
    assert (tmp_path / "out" / "picture" / "inpainted.png").exists()
