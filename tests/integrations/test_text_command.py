"""``mobile-sam text``."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin.cli import main

Pixels = NDArray[np.uint8]


@pytest.fixture
def image(tmp_path: Path, cup: Pixels) -> Path:
    Image.fromarray(cup).save(tmp_path / "cup.png")
    return tmp_path / "cup.png"


@pytest.fixture
def run_text(image: Path, model_options: list[str]) -> Callable[..., int]:
    """Runs the command on the image; with random weights, what it finds means nothing."""

    def run_text(text: str, *options: str) -> int:
        out = str(image.parent / "out")
        return main(["text", str(image), text, "--out", out, *model_options, *options])

    return run_text


def test_text_command(
    run_text: Callable[..., int],
    folders: dict[str, Path],
    image: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--detector", str(folders["GroundingDino"]), "--box-threshold", "0.3"]
    assert run_text("a dog. the red cars.", *options, "--nms-thresh", "0.1") == 0
    folder = image.parent / "out" / "cup"
    data = json.loads((folder / "instances.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(data["annotations"]) + 2 > 2
    assert re.fullmatch(r".*mask_000\.png  [a-z ]+  score [01]\.\d{3}", lines[0])
    assert [Path(line) for line in lines[-2:]] == [
        folder / "overlay.png",
        folder / "instances.json",
    ]

    assert run_text("a dog", *options[:2], "--box-threshold", "1") == 0
    assert "lower --box-threshold (1.0)" in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {"overlay.png", "instances.json", "source.json"}


def test_text_command_writes_polygons_labelme_and_cutouts(
    run_text: Callable[..., int], folders: dict[str, Path], image: Path
) -> None:
    options = ["--detector", str(folders["GroundingDino"]), "--box-threshold", "0.3"]
    assert run_text("a dog. the red cars.", *options) == 0
    folder = image.parent / "out" / "cup"
    rle = json.loads((folder / "instances.json").read_text())
    assert rle["images"][0]["file_name"] == "cup.png"
    assert [each["name"] for each in rle["categories"]] == ["a dog", "the red cars"]
    extra = ["--polygons", "--labelme", "--cutout", "--max-pixels", "1000000"]
    assert run_text("a dog. the red cars.", *options, *extra) == 0
    polygons = json.loads((folder / "instances.json").read_text())
    found = [each for each in rle["annotations"] if each["area"]]
    assert len(found) == len(polygons["annotations"]) == len(list(folder.glob("cutout_*.png"))) > 0
    for each, expected in zip(polygons["annotations"], found, strict=True):
        assert isinstance(each["segmentation"], list)
        assert each["category_id"] == expected["category_id"]
    content = json.loads((folder / "labelme.json").read_text())
    assert (folder / content["imagePath"]).resolve() == image
    assert {shape["label"] for shape in content["shapes"]} <= {"a dog", "the red cars"}


def test_everything_and_text_into_one_folder_leave_no_list_without_its_masks(
    run_text: Callable[..., int], folders: dict[str, Path], image: Path, model_options: list[str]
) -> None:
    options = ["--points-per-side", "1", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
    options += ["--out", str(image.parent / "out"), *model_options]
    assert main(["everything", str(image), *options]) == 0
    folder = image.parent / "out" / "cup"
    assert len(json.loads((folder / "masks.json").read_text())) > 0
    detector = str(folders["GroundingDino"])
    assert run_text("a dog", "--detector", detector, "--box-threshold", "1") == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"overlay.png", "instances.json", "source.json"}
    assert json.loads((folder / "instances.json").read_text())["annotations"] == []


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (" . ", [], "is empty"),
        ("a dog. a dog", [], "given twice"),
        ("a dog", ["--box-threshold", "1.5"], "--box-threshold"),
        ("a dog", ["--text-threshold", "-1"], "--text-threshold"),
        ("a dog", ["--detector", "no/such/folder"], "no/such/folder"),
    ],
    ids=str,
)
def test_text_command_names_mistakes(
    run_text: Callable[..., int],
    image: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    options: list[str],
    words: str,
) -> None:
    assert run_text(text, *options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mobile-sam: ") and captured.err.count("\n") == 1
    assert words in captured.err and captured.out == ""
    assert not (image.parent / "out").exists()


def test_text_command_without_the_extra(
    run_text: Callable[..., int],
    image: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run_text("a dog") == 1
    assert capsys.readouterr().err == (
        'mobile-sam: transformers is not installed: run pip install "mobile-sam-plugin[grounded]"\n'
    )
