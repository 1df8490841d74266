"""Corruptions: as strong as the published ones; and an evaluation on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import SamPredictor
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.evaluation.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    parse_corruptions,
)
from mobile_sam_plugin.evaluation.prompts import make_prompt
from mobile_sam_plugin.evaluation.results import Evaluation
from mobile_sam_plugin.evaluation.robustness import evaluate_corruptions, format_corruptions

from ..conftest import PHOTOGRAPHS, REFERENCE
from .test_evaluation import Pictures, picture, small_input, tiny_sam  # noqa: F401
from .test_predictors import RIVALS, Wrapped

PUBLISHED = json.loads((REFERENCE / "corruption_strengths.json").read_text())
# Fog is of our own noise, and OpenCV enlarges otherwise than SciPy; the others agree within 5 %.
TOLERANCES = {"zoom_blur": 0.1, "fog": 0.1}


@pytest.fixture(scope="module")
def crops() -> list[NDArray[np.uint8]]:
    """The middles of the photographs that the published code was run on, 224 x 224."""
    found = []
    for name in PUBLISHED["photographs"]:
        photograph = Image.open(PHOTOGRAPHS / name).convert("RGB")
        scale = 224 / min(photograph.size)
        size = round(photograph.width * scale), round(photograph.height * scale)
        pixels = np.asarray(photograph.resize(size, Image.Resampling.BICUBIC))
        top, left = (pixels.shape[0] - 224) // 2, (pixels.shape[1] - 224) // 2
        found.append(np.ascontiguousarray(pixels[top : top + 224, left : left + 224]))
    return found


@pytest.mark.parametrize("name", CORRUPTIONS[:-1])
def test_corruptions_are_as_strong_as_the_published_ones(
    name: str, crops: list[NDArray[np.uint8]]
) -> None:
    """The root mean square of what changes, the mean of six photographs."""
    draws = 3 if name in ("snow", "frost", "fog", "motion_blur") else 1
    for severity in SEVERITIES:
        changes = [
            corrupt(crop, name, severity, (index, draw)).astype(float) - crop
            for index, crop in enumerate(crops)
            for draw in range(draws)
        ]
        strength = np.mean([np.sqrt(np.mean(change**2)) for change in changes])
        expected = PUBLISHED["strengths"][name][severity - 1]
        assert strength == pytest.approx(expected, rel=TOLERANCES.get(name, 0.05)), severity


def test_occlusion_hides_its_share(crops: list[NDArray[np.uint8]]) -> None:
    bright = np.maximum(crops[0], 1)
    for severity in SEVERITIES:
        hidden = (corrupt(bright, "occlusion", severity) == 0).all(axis=2)
        assert hidden.mean() == pytest.approx(severity / 10, abs=0.003)
        squares = hidden.reshape(16, 14, 16, 14).mean(axis=(1, 3))
        assert set(np.unique(squares)) == {0.0, 1.0}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_take_any_size_and_follow_the_seed(name: str) -> None:
    random = np.random.default_rng(0)
    for size in ((37, 61), (1, 1), (5, 300)):
        image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        kept = image.copy()
        first, again = (corrupt(image, name, 3, (4, 5)) for _ in range(2))
        assert first.shape == image.shape and first.dtype == np.uint8
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(image, kept)
    drawn = {"noise", "snow", "frost", "fog", "elastic_transform", "occlusion", "glass_blur"}
    if any(part in name for part in drawn):
        image = random.integers(0, 256, (37, 61, 3), dtype=np.uint8)
        assert (corrupt(image, name, 3, 1) != corrupt(image, name, 3, 2)).any()


def test_names_of_corruptions() -> None:
    assert parse_corruptions(["fog:3", "snow:1", "fog:2", "fog:3"]) == [
        ("snow", 1),
        ("fog", 2),
        ("fog", 3),
    ]
    assert parse_corruptions(["fog"]) == [("fog", severity) for severity in SEVERITIES]
    assert len(parse_corruptions(["all", "fog"])) == 5 * len(CORRUPTIONS) == 80
    assert parse_corruptions(["all:2"]) == [(name, 2) for name in CORRUPTIONS]
    for text, message in {
        "rain": "no corruption 'rain', only all, gaussian_noise",
        "fog:6": "the severity of 'fog:6' must be 1 to 5",
        "fog:": "the severity of 'fog:' must be 1 to 5",
    }.items():
        with pytest.raises(UserError, match=message):
            parse_corruptions([text])
    image = picture(0).image
    with pytest.raises(UserError, match="no corruption 'rain'"):
        corrupt(image, "rain", 1)
    with pytest.raises(UserError, match="1 to 5, not 0"):
        corrupt(image, "fog", 0)


def test_scores_are_those_of_the_predictor_on_the_corrupted_image() -> None:
    sam, item = tiny_sam(), picture(0)
    found = evaluate_corruptions(sam, [item], ["gaussian_noise:5"], metrics=["box"])
    predictor = SamPredictor(sam)
    for place, truth in enumerate(item.masks):
        prompt = make_prompt("box", truth, (0, 0, place))
        assert prompt is not None
        masks = []
        for image in (item.image, corrupt(item.image, "gaussian_noise", 5, (0, 0, 0, 5))):
            predictor.set_image(image)
            masks.append(predictor.predict(box=prompt.box, multimask_output=False)[0][0])
        for name, first, second in (
            ("box", masks[0], truth),
            ("box gaussian_noise:5", masks[1], truth),
            ("clean_box gaussian_noise:5", masks[1], masks[0]),
        ):
            iou = (first & second).sum() / max((first | second).sum(), 1)
            assert found.images[0].scores[name][place] == pytest.approx(iou), name
    assert (masks[0] != masks[1]).any()


def test_predictors_and_interrupted_runs(tmp_path: Path) -> None:
    sam, asked = tiny_sam(), ["contrast:1", "pixelate"]
    metrics = ["click", "box", "pair_500"]  # no picture has a pair so far apart
    found = evaluate_corruptions(sam, Pictures(), asked, metrics=metrics, folder=tmp_path)
    assert evaluate_corruptions(Wrapped(sam), Pictures(), asked, metrics=metrics).scores.keys() == (
        found.scores.keys()
    )
    assert found.scores["pair_500 contrast:1"].count == 0
    assert found.scores["clean_click pixelate:5"].count == 4
    journal = (tmp_path / "images.jsonl").read_text()
    again = evaluate_corruptions(sam, Pictures(), asked, metrics=metrics, folder=tmp_path)
    assert again.images == found.images and (tmp_path / "images.jsonl").read_text() == journal
    with pytest.raises(UserError, match="another run .*corruptions"):
        evaluate_corruptions(sam, Pictures(), ["fog"], metrics=metrics, folder=tmp_path)
    with pytest.raises(UserError, match="no metric 'recall_10', only click, box"):
        evaluate_corruptions(sam, Pictures(), ["fog"], metrics=["recall_10"])
    with pytest.raises(UserError, match="at least one corruption"):
        evaluate_corruptions(sam, Pictures(), [])
    report = format_corruptions({"one": found, "two": found})
    mean = found.scores["clean_box contrast:1"].mean
    assert f"| contrast | {mean:.3f} |  |  |  |  | {mean:.3f} |" in report
    assert "Mean IoU of `box` with the true mask, two" in report
    assert f"| contrast | {mean:.3f} | {mean:.3f} |" in report


@pytest.mark.usefixtures("small_input")
def test_command_reports_corruptions_of_all_models(
    tmp_path: Path,
    tiny_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "rivals_corrupted.py").write_text(RIVALS)
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "scenes:1", "--checkpoint", str(tiny_file), "--masks-per-image", "1"]
    arguments += ["--predictor", "rivals_corrupted:boxes", "--corruption", "pixelate:2"]
    arguments += ["--corruption", "occlusion:5", "--metrics", "box"]
    assert main([*arguments, "--out", "out"]) == 0
    report = Path("out/robustness.md").read_text()
    assert report in capsys.readouterr().out + "\n"
    # It fills the box, whatever is in the image.
    own = report.partition("clean image's mask, rivals_corrupted:boxes\n")[2]
    assert "| pixelate |  | 1.000 |" in own.partition("true mask")[0]
    with Image.open("out/robustness.png") as figure:
        assert min(figure.size) > 200
    found = Evaluation.load("out/rivals_corrupted_boxes")
    assert found.scores["clean_box occlusion:5"].mean == 1
    assert main([*arguments, "--attack", "fgsm"]) == 2
    assert "give only one of --corruption and --attack" in " ".join(capsys.readouterr().err.split())
