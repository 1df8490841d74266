"""``mobile-sam track``."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mobile_sam_plugin import build_sam_vit_t
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.integrations.propagators import (
    TransformersPropagator,
)
from mobile_sam_plugin.integrations.track_anything import (
    TrackAnything,
    track_video,
)

from ..moving_clips import make_clip
from .clips import make_frames, read_ids, read_table, write_clip, write_folder

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
LENIENT = ("--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0")


@pytest.fixture
def clip_file(tmp_path: Path, video_models: dict[str, Path]) -> Path:
    """A video; beside it, what is none."""
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty").mkdir()
    return write_clip(tmp_path / "clip.mp4", make_frames(4)[0])


def test_track_writes_what_the_tracker_finds(
    tiny_file: Path,
    model_options: list[str],
    clip_file: Path,
    video_models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = clip_file.parent / "out"
    command = ["track", str(clip_file), "--out", str(out), *model_options]
    command += ["--propagator", str(video_models["Sam2"])]
    command += ["--box", "4,4,16,16", "--box", "30,14,42,26"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{out / 'clip' / 'tracks.json'}  2 objects"
    assert all(Path(line.split("  ")[0]).exists() for line in printed)

    tracker = TrackAnything(
        build_sam_vit_t(tiny_file), TransformersPropagator(video_models["Sam2"])
    )

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
    assert "box was" in capsys.readouterr().err


def test_track_takes_clicks_and_everything(
    model_options: list[str],
    video_models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = make_clip(seed=102, length=4, size=(160, 200), objects=2)
    video = write_folder(tmp_path / "clip", [*clip.frames])
    command = ["track", str(video), *model_options, "--propagator", str(video_models["EdgeTam"])]
    y, x = np.argwhere(clip.masks[2][0]).mean(axis=0).round()
    for name, prompt in {
        "clicks": ["--point", f"{x},{y}", "--point", "0,0,0", "--first-frame", "2"],
        "everything": ["--everything", "--detect-every", "2", *LENIENT],
    }.items():
        out = tmp_path / name
        assert main([*command, *prompt, "--out", str(out)]) == 0, capsys.readouterr().err
        assert len(read_ids(out / "clip")) == (2 if name == "clicks" else 4)
        assert "2" in {row["frame"] for row in read_table(out / "clip")}
    assert read_table(tmp_path / "clicks" / "clip")[0]["id"] == "1"


def test_track_leaves_small_finds(
    model_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(seed=102, length=1, size=(160, 200), objects=2)
    video = write_folder(tmp_path / "clip", [*clip.frames])
    command = ["track", str(video), *model_options, "--everything", *LENIENT]
    command += ["--out", str(tmp_path / "out")]
    assert main([*command, "--min-area", str(160 * 200 + 1)]) == 2
    assert "no object to follow" in capsys.readouterr().err
    assert main([*command, "--min-area", "0"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clip.mp4", "--text", "a dog", "--box-threshold", "2"], "--box-threshold"),
        (["clip.mp4"], "give --point, --box, --text or --everything"),
        (["clip.mp4", "--text", "a dog", "--everything"], "give one of"),
        (["clip.mp4", "--text", " "], "the text ' ' is empty"),
        (["clip.mp4", "--point", "1"], "'1' is not X,Y or X,Y,LABEL"),
        (["clip.mp4", "--box", "1,2,3"], "'1,2,3' is not X0,Y0,X1,Y1"),
        (
            ["clip.mp4", "--box", "1,2,3,4", "--detect-every", "5"],
            "needs --text or --everything",
        ),
        (["clip.mp4", "--everything", "--detect-every", "-1"], "--detect-every"),
        (["clip.mp4", "--everything", "--pred-iou-thresh", "2"], "--pred-iou-thresh"),
        (["clip.mp4", "--box", "1,2,3,4", "--first-frame", "9"], "has 4 frames"),
        (["clip.mp4", "--box", "1,2,3,4", "--propagator", "empty"], "empty"),
        (["clip.mp4", "--text", "a dog", "--detector", "empty"], "empty"),
        (["clip.mp4", "--box", "1,2,3,4", "--device", "warp"], "'warp'"),
        (["missing.mp4", "--point", "1,2"], "missing.mp4"),
        (["text.mp4", "--point", "1,2"], "OpenCV cannot decode"),
        (["empty", "--point", "1,2"], "no image in the folder"),
    ],
    ids=str,
)
def test_track_names_mistakes(
    model_options: list[str],
    clip_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(clip_file.parent)
    assert main(["track", *model_options, *arguments, "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mobile-sam: ") and captured.err.count("\n") == 1, captured.err
    assert words in captured.err and captured.out == ""
    assert not (clip_file.parent / "out").exists()
