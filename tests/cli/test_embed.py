"""``mobile-sam embed``, and the commands that take its embeddings instead of encoding."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mobile_sam_plugin import SamPredictor, build_sam_vit_t
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.embeddings import list_embeddings, read_embedding
from mobile_sam_plugin.model.backbone_encoder import BackboneImageEncoder

from .test_cli import PERMISSIVE, QUICK, check_mistake, scene

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def default_checkpoint(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILE_SAM_CHECKPOINT", str(tiny_file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one in a subfolder, and what is no image."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    scene().save(folder / "scene.png")
    scene().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "deep" / "scene.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "embeddings"


def names(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts the images that models encode."""
    encoded: list[int] = []
    forward = BackboneImageEncoder.forward

    def count(self: Any, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":  # as it tries itself when it is built
            encoded.append(len(x))
        return forward(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(BackboneImageEncoder, "forward", count)
        yield encoded


def test_a_folder_is_embedded_once(
    folder: Path, out: Path, tiny_file: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(monkeypatch) as encoded:
        assert main(["embed", str(folder), "--out", str(out)]) == 0
        assert encoded == [1, 1]
        captured = capsys.readouterr()
        assert captured.out.startswith(f"{out}  2 of 2 images are done, ")
        assert "1 file is left out: 1 .txt" in captured.err
        expected = {"run.json", "scene.png.safetensors", "deep/scene.png.safetensors"}
        assert names(out) == expected

        assert main(["embed", str(folder), "--out", str(out)]) == 0
        assert encoded == [1, 1]
        assert capsys.readouterr().out == f"{out}  2 of 2 images are done\n"

        # One is added, one is changed later, and one was cut off; of a killed process some is left.
        scene().convert("L").save(folder / "new.png")
        changed, file = folder / "scene.png", out / "scene.png.safetensors"
        scene().rotate(180).save(changed)
        os.utime(changed, (file.stat().st_mtime + 9,) * 2)
        cut_off = out / "deep" / "scene.png.safetensors"
        cut_off.write_bytes(cut_off.read_bytes()[:1000])
        (out / "deep" / ".scene.png.0123.partial.safetensors").write_bytes(b"half")
        assert main(["embed", str(folder), "--out", str(out), "--batch-size", "2"]) == 0
        assert encoded == [1, 1, 2, 1]
        assert names(out) == expected | {"new.png.safetensors"}

    predictor = SamPredictor(build_sam_vit_t(tiny_file))
    for path in (changed, folder / "new.png", folder / "deep" / "scene.png"):
        found = SamPredictor(predictor.model)
        image = Image.open(path)
        found.load_embedding(out / f"{path.relative_to(folder)}.safetensors", image)
        predictor.set_image(image)
        torch.testing.assert_close(found.features, predictor.features, rtol=0, atol=1e-4)


def test_lists_and_single_images(folder: Path, out: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder / 'scene.png'}\n{folder / 'deep' / 'scene.png'}\n")
    assert main(["embed", str(listed), "--out", str(out), "--dtype", "float16"]) == 0
    assert len(list_embeddings(out)) == 2
    assert read_embedding(out / "scene.png.safetensors").features.dtype == torch.float16
    assert main(["embed", str(folder / "scene.png"), "--out", str(tmp_path / "one")]) == 0
    assert names(tmp_path / "one") == {"run.json", "scene.png.safetensors"}


def test_what_cannot_be_read_is_told_and_the_rest_is_done(
    folder: Path, out: Path, capsys: Captured
) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (5000, 2)).save(folder / "thin.png")
    assert main(["embed", str(folder), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "broken.png' is not an image" in captured.err and "too thin" in captured.err
    first, second = captured.out.splitlines()
    assert "2 of 4 images are done" in first and second == "2 could not be encoded"
    assert len(list_embeddings(out)) == 2


def test_a_folder_of_another_run_is_refused(
    folder: Path, out: Path, capsys: Captured, tmp_path: Path
) -> None:
    assert main(["embed", str(folder), "--out", str(out)]) == 0
    before = names(out)
    for options, words in (
        (["--dtype", "float16"], "dtype was 'float32', is now 'float16'"),
        (["--checkpoint", "bundled"], "encoder was 'test_efficientnet', is now 'vit_t'"),
    ):
        capsys.readouterr()
        assert main(["embed", str(folder), "--out", str(out), *options]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    scene().save(tmp_path / "elsewhere" / "scene.png")
    assert main(["embed", str(tmp_path / "elsewhere"), "--out", str(out)]) == 2
    assert "image_root" in capsys.readouterr().err
    assert names(out) == before


@pytest.mark.process
def test_killed_midway_and_run_again(folder: Path, out: Path, tiny_file: Path) -> None:
    for index in range(1, 7):
        scene().rotate(index).save(folder / f"{index:02}.png")
    command = [sys.executable, "-m", "mobile_sam_plugin", "embed", str(folder), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not list(out.glob("[!.]*.safetensors")) and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = list(out.glob("[!.]*.safetensors"))
    assert 0 < len(done) < 8
    for file in done:
        assert read_embedding(file).features.shape == (1, 256, 64, 64)
    assert main(["embed", str(folder), "--out", str(out)]) == 0
    assert len(list_embeddings(out)) == 8
    assert not list(out.rglob("*.partial*"))


def results(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}


@pytest.mark.parametrize(
    "command",
    [
        ("segment", "--point", "50,60"),
        ("everything", *QUICK, *PERMISSIVE),
    ],
)
def test_commands_take_embeddings_and_give_the_same_results(
    command: tuple[str, ...],
    folder: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, *options = command
    assert main(["embed", str(folder), "--out", str(out)]) == 0
    image = folder / "scene.png"
    assert main([name, str(image), *options, "--out", str(tmp_path / "encoded")]) == 0
    expected = results(tmp_path / "encoded")
    assert len(expected) > 3
    for number, given in enumerate((out, out / "scene.png.safetensors")):
        target = tmp_path / f"taken{number}"
        with counting(monkeypatch) as encoded:
            arguments = [name, str(image), *options, "--out", str(target)]
            assert main([*arguments, "--embeddings", str(given)]) == 0
        assert encoded == []
        assert results(target) == expected


def test_embeddings_that_do_not_fit_are_refused(
    folder: Path, out: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["embed", str(folder), "--out", str(out)]) == 0
    capsys.readouterr()
    target = tmp_path / "masks"
    prompt = [str(folder / "scene.png"), "--point", "50,60", "--out", str(target)]
    other = out / "deep" / "scene.png.safetensors"
    for options, word in (
        (["--embeddings", str(other)], "has no embedding of this image"),
        (["--embeddings", str(out), "--checkpoint", "bundled"], "of another model"),
        (["--embeddings", str(folder)], "there is no embedding in"),
        (["--embeddings", str(folder / "scene.png")], "damaged, or not an image embedding"),
        (["--embeddings", str(out / "nothing")], "does not exist"),
    ):
        assert main(["segment", *prompt, *options]) == 2
        check_mistake(capsys.readouterr(), word)
    onnx = ["--embeddings", str(out), "--backend", "onnx", "--onnx-dir", str(out)]
    assert main(["segment", *prompt, *onnx]) == 2
    check_mistake(capsys.readouterr(), "--embeddings", "not for --onnx-dir")
    assert not target.exists()


def test_everything_goes_on_where_an_embedding_is_missing(
    folder: Path, out: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["embed", str(folder), "--out", str(out)]) == 0
    scene().rotate(90).save(folder / "later.png")
    capsys.readouterr()
    arguments = ["everything", str(folder), *QUICK, "--embeddings", str(out)]
    assert main([*arguments, "--out", str(tmp_path / "masks")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "later.png" in error and "has no embedding of this image" in error
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["scene"]


def test_settings_are_told(folder: Path, out: Path) -> None:
    assert main(["embed", str(folder), "--out", str(out)]) == 0
    settings = json.loads((out / "run.json").read_text())
    assert settings.keys() == {"encoder", "encoder_sha256", "img_size", "dtype", "image_root"}
    assert (settings["img_size"], settings["image_root"]) == (1024, str(folder))
