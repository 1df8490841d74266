"""``mobile-sam remove``, ``fill`` and ``replace``."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import build_sam_vit_t
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.integrations.inpaint_anything import (
    InpaintAnything,
)
from mobile_sam_plugin.integrations.inpainters import (
    DiffusersInpainter,
)
from mobile_sam_plugin.integrations.video import (
    Video,
    write_video,
)

from .clips import clip, disc, ramp, random_pixels
from .models import write_lama

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@pytest.fixture
def files(tmp_path: Path, coffee: Pixels) -> Path:
    """A folder with a photograph, a mask of it and a text."""
    Image.fromarray(coffee).save(tmp_path / "coffee.png")
    Image.fromarray(disc(400, 600, 300, 150, 40)).save(tmp_path / "mask.png")
    Image.new("L", (600, 400), 255).save(tmp_path / "white.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    return tmp_path


def test_remove_writes_what_the_pipeline_makes(
    tiny_file: Path,
    model_options: list[str],
    coffee: Pixels,
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    editor = InpaintAnything(build_sam_vit_t(tiny_file))
    click = ["--point", "300,130", "--point", "20,20,0", "--margin", "3"]
    command = ["remove", str(files / "coffee.png"), *click, "--out", str(files)]
    assert main([*command, *model_options]) == 0
    objects = editor.segment(coffee, [[300, 130], [20, 20]], [1, 0])
    expected = editor.remove(coffee, objects, margin=3)
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    claimed = files / "coffee" / "source.json"
    assert {*paths, claimed} == set((files / "coffee").iterdir())
    np.testing.assert_array_equal(np.asarray(Image.open(paths[0])), expected.image)


def test_images_of_one_name_get_folders_of_their_own(files: Path) -> None:
    (files / "other").mkdir()
    Image.fromarray(random_pixels(400, 600, 3)).save(files / "other" / "coffee.png")
    for source in ("coffee.png", "other/coffee.png", "coffee.png"):
        arguments = ["remove", str(files / source), "--mask", str(files / "mask.png")]
        assert main([*arguments, "--out", str(files / "out")]) == 0
    for folder, source in (("coffee", "coffee.png"), ("coffee.png", "other/coffee.png")):
        with Image.open(files / "out" / folder / "inpainted.png") as painted:
            corner = np.asarray(painted)[:50]
        np.testing.assert_array_equal(corner, np.asarray(Image.open(files / source))[:50])


def test_remove_paints_with_lama_and_diffusers(files: Path, pipeline_folder: Path) -> None:
    lama = str(write_lama(files / "lama.onnx"))
    arguments = ["remove", str(files / "coffee.png"), "--mask", str(files / "mask.png")]
    arguments += ["--margin", "0", "--device", "cpu", "--out", str(files)]
    assert main([*arguments, "--inpainter", "lama", "--inpainter-model", lama]) == 0
    painted = np.asarray(Image.open(files / "coffee" / "inpainted.png"))
    assert (painted[150, 300] == (51, 102, 153)).all()
    options = ["--inpainter-model", str(pipeline_folder), "--steps", "1"]
    assert main([*arguments, "--inpainter", "diffusers", *options]) == 0
    assert (np.asarray(Image.open(files / "coffee" / "inpainted.png")) != painted).any()


def test_fill_and_replace_write_what_the_pipeline_makes(
    coffee: Pixels, files: Path, pipeline_folder: Path
) -> None:
    mask = disc(400, 600, 300, 150, 40)
    painter = DiffusersInpainter(pipeline_folder, seed=5, num_inference_steps=2)
    for command in ("fill", "replace"):
        arguments = [str(files / "coffee.png"), "a teapot", "--mask", str(files / "mask.png")]
        arguments += ["--margin", "2", "--inpainter-model", str(pipeline_folder), "--steps", "2"]
        arguments += ["--seed", "5", "--device", "cpu", "--out", str(files)]
        assert main([command, *arguments]) == 0
        expected = getattr(InpaintAnything(None, painter), command)(coffee, mask, "a teapot", 2)
        painted = np.asarray(Image.open(files / "coffee" / "inpainted.png"))
        np.testing.assert_array_equal(painted, expected.image)


def test_remove_takes_a_video_and_a_folder_of_masks(
    editor: InpaintAnything, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames, masks = clip()
    write_video(tmp_path / "clip.mp4", frames, 12.5)
    (tmp_path / "masks").mkdir()
    for index, mask in enumerate(masks):  # object ids and a palette, as the tracker writes them
        ids = Image.fromarray(mask.astype(np.uint8) * 3)
        ids.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
        ids.save(tmp_path / "masks" / f"{index:05}.png")
    arguments = ["remove", str(tmp_path / "clip.mp4"), "--mask", str(tmp_path / "masks")]
    assert main([*arguments, "--out", str(tmp_path), "--device", "cpu"]) == 0
    target = tmp_path / "clip" / "inpainted.mp4"
    assert capsys.readouterr().out == f"{target}\n"
    assert Video(target).frame_rate == 12.5
    expected = editor.remove_video(tmp_path / "clip.mp4", masks)
    for painted, frame in zip(Video(target), expected, strict=True):
        assert np.abs(painted.astype(int) - frame).mean() < 6  # the codec's share

    # A mask belongs to the frame of its number; a frame without one stays as it is.
    for index in (0, 2):
        (tmp_path / "masks" / f"{index:05}.png").unlink()
    assert main([*arguments, "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert "2 of 5 frames have no mask and stay as they are" in capsys.readouterr().err
    red = [bool(frame[24, 10 + 10 * index, 1] < 60) for index, frame in enumerate(Video(target))]
    assert red == [True, False, False, False, False]  # in frame 2 nothing is to be seen

    (tmp_path / "masks" / "00009.png").write_bytes((tmp_path / "masks" / "00001.png").read_bytes())
    before = target.read_bytes()
    assert main([*arguments, "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "'00009.png' belongs to frame 9, but 'clip' has 5 frames" in capsys.readouterr().err
    assert target.read_bytes() == before


def test_remove_follows_an_object_through_a_video(tmp_path: Path) -> None:
    frames, _ = clip()
    write_video(tmp_path / "clip.mp4", [np.tile(frames[0], (3, 3, 1)), *[ramp(144, 192)] * 2], 10)
    arguments = ["remove", str(tmp_path / "clip.mp4"), "--box", "3,17,17,31", "--margin", "2"]
    arguments += ["--checkpoint", "bundled", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    before, after = (
        [*Video(path)] for path in (tmp_path / "clip.mp4", tmp_path / "clip" / "inpainted.mp4")
    )
    assert len(after) == 3
    removed = np.abs(before[0].astype(int) - after[0]).max(axis=-1) > 60
    assert removed[24, 10] and not removed[72:].any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["remove", "coffee.png"], "give --point, --box, --text or --mask"),
        (["remove", "coffee.png", "--text", "a cup", "--box", "1,2,3,4"], "give one of"),
        (["remove", "coffee.png", "--point", "1"], "'1' is not X,Y or X,Y,LABEL"),
        (["remove", "coffee.png", "--box", "1,2,3"], "'1,2,3' is not X0,Y0,X1,Y1"),
        (["remove", "coffee.png", "--mask", "missing.png"], "missing.png"),
        (["remove", "empty", "--point", "1,2"], "no image in the folder"),
        (["remove", "empty", "--mask", "mask.png"], "must be a folder with a mask for each frame"),
        (["remove", "coffee.png", "--mask", "empty"], "'empty' must be a PNG"),
        (["remove", "text.mp4", "--point", "1,2"], "text.mp4"),
        (["remove", "coffee.png", "--mask", "mask.png", "--margin", "-1"], "--margin"),
        (
            ["remove", "coffee.png", "--mask", "mask.png", "--inpainter-model", "m"],
            "OpenCV has no weights",
        ),
        (["remove", "coffee.png", "--mask", "white.png"], "cover the whole image"),
        (["remove", "coffee.png", "--mask", "mask.png", "--max-pixels", "9"], "too large"),
        (["fill", "coffee.png", "x", "--mask", "mask.png", "--max-pixels", "9"], "too large"),
        (
            ["remove", "mask.png", "--mask", "mask.png", "--device", "warp", "--inpainter", "lama"],
            "'warp'",
        ),
        (["remove", "coffee.png", "--text", "a cup", "--detector", "empty"], "empty"),
        (["fill", "coffee.png", " ", "--point", "1,2"], "prompt is empty"),
        (
            ["fill", "coffee.png", "a cat", "--mask", "mask.png", "--inpainter-model", "empty"],
            "model_index",
        ),
        (["replace", "coffee.png", "a cat", "--mask", "mask.png", "--steps", "0"], "--steps"),
    ],
    ids=str,
)
def test_commands_name_mistakes(
    model_options: list[str],
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # set by --max-pixels
    assert main([*arguments[:1], *model_options, *arguments[1:], "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mobile-sam: ") and captured.err.count("\n") == 1, captured.err
    assert words in captured.err and captured.out == ""
    assert not (files / "out").exists()
