"""The scripts in examples/, with the backends of a few lines that need no network."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin.datasets.formats import open_annotated_images
from mobile_sam_plugin.files import encode_image
from mobile_sam_plugin.scenes.composites import open_cut_outs

EXAMPLES = Path(__file__).parents[2] / "examples"
FLOWER = str(EXAMPLES / "images" / "flower.jpg")


class Scripts:
    """Runs scripts in a folder as a user does, but in this process, which has torch already."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(EXAMPLES)

    def run(self, script: str, *arguments: str) -> None:
        self._monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")

    def read(self, name: str) -> NDArray[np.uint8]:
        with Image.open(self.folder / name) as image:
            return np.asarray(image.convert("RGB"))


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    return Scripts(tmp_path, monkeypatch)


def test_one_line_swap(scripts: Scripts, capsys: pytest.CaptureFixture[str]) -> None:
    scripts.run("one_line_swap.py")
    assert capsys.readouterr().out.startswith("coffee_cut_out.png: ")
    with Image.open("coffee_cut_out.png") as image:
        assert image.mode == "RGBA" and image.size == (600, 400)


def test_remove_object(scripts: Scripts, capsys: pytest.CaptureFixture[str]) -> None:
    scripts.run("remove_object.py")
    assert capsys.readouterr().out.startswith("removed.png: ")
    before, _, after = np.split(scripts.read("removed.png"), 3, axis=1)
    with Image.open(EXAMPLES / "images" / "rocket.jpg") as image:
        np.testing.assert_array_equal(before, image.convert("RGB"))
    assert 0 < (after != before).any(axis=2).mean() < 0.2


def test_compare_checkpoints(scripts: Scripts, capsys: pytest.CaptureFixture[str]) -> None:
    scripts.run("compare_checkpoints.py", "bundled", "--out", "one.png")
    scripts.run("compare_checkpoints.py", "bundled", "bundled", "--out", "two.png")
    assert capsys.readouterr().out == "one.png\ntwo.png\n"
    one, two = scripts.read("one.png"), scripts.read("two.png")
    assert one.shape == (6 * 147, 4 * 196, 3)
    np.testing.assert_array_equal(two, np.hstack([one, one]))
    point, box = one[2 * 147 : 3 * 147, :196], one[2 * 147 : 3 * 147, -196:]
    assert (point != box).any(), "a blossom by a point and by a box, with their prompts"


def test_grounded_sam(scripts: Scripts, capsys: pytest.CaptureFixture[str]) -> None:
    text = "an orange blossom. a pink cat."
    scripts.run("grounded_sam.py", text, "--detector", "colors", "--image", FLOWER)
    assert capsys.readouterr().out == "grounded.png: an orange blossom\n"
    with Image.open(FLOWER) as image:
        change = np.abs(scripts.read("grounded.png").astype(int) - image.convert("RGB")).max(axis=2)
    assert change[95:354, 170:446].mean() > 20 and change[380:, 500:].max() == 0


def test_track_objects(scripts: Scripts, capsys: pytest.CaptureFixture[str]) -> None:
    module = runpy.run_path(str(EXAMPLES / "track_objects.py"))
    views = [*module["move_camera"]()]
    assert len(views) == module["STEPS"] and views[0].shape == (280, 360, 3)
    (scripts.folder / "views").mkdir()
    for index, view in enumerate(views[:2]):
        cv2.imwrite(f"views/{index}.png", view[..., ::-1])
    scripts.run("track_objects.py", "--video", "views")
    assert capsys.readouterr().out.startswith("frame 1: ")
    assert scripts.read("tracked.png").shape == (280, 3 * 360, 3)


def test_semantic_labels(scripts: Scripts, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--classifier", "colors", "--image", FLOWER, "--points-per-side", "4"
    scripts.run(
        "semantic_labels.py", "--classes", "orange,teal,black", "--search", "teal", *options
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["semantic_labels.png", "search.png"]
    legend, found = scripts.read("semantic_labels.png"), scripts.read("search.png")
    assert legend.shape[0] == 427 and legend.shape[1] > 640 and found.shape == (427, 640, 3)


def test_colors_are_words_and_black_is_one() -> None:
    colors = runpy.run_path(str(EXAMPLES / "colors.py"))
    black = np.zeros((5, 5, 3), np.uint8)
    texts = ["black ground", "a colored blueprint", "Red cars, teal leaves"]
    np.testing.assert_array_equal(colors["classify_colors"]([black], texts), [[10, 0, 0]])
    image = np.full((60, 60, 3), colors["COLORS"]["red"], np.uint8)
    image[:, 30:] = colors["COLORS"]["teal"]
    found = colors["detect_colors"](image, texts, 0.5, 0.25)
    assert found.phrases == [texts[2]] and found.boxes.tolist() == [[0, 0, 60, 60]]
    np.testing.assert_array_equal(colors["classify_colors"]([image], texts), [[0, 0, 10]])


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("grounded_sam.py", ["--detector", "no/such/folder"]),
        ("semantic_labels.py", ["--classifier", "no/such/folder"]),
        ("remove_object.py", ["--image", "no/such/folder"]),
        ("track_objects.py", ["--video", "no/such/folder"]),
    ],
)
def test_mistakes_are_told_in_a_line(scripts: Scripts, script: str, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        scripts.run(script, *arguments)
    message = str(end.value)  # which the interpreter prints, and ends with 1
    assert message.startswith(f"{script}: ") and "no/such/folder" in message
    assert "\n" not in message and not list(scripts.folder.iterdir())


def test_unpack_training_data(
    scripts: Scripts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.full((40, 50, 3), 90, np.uint8)
    labels = np.zeros((40, 50), np.uint8)
    labels[5:15, 5:15] = labels[5:15, 30:40] = 7  # two shoes
    labels[20:35, 10:40] = 9
    labels[0, 0] = 255
    thing = np.zeros((30, 30, 4), np.uint8)
    thing[5:25, 5:25] = (10, 20, 200, 255)
    parts = np.zeros((30, 30), np.uint8)
    parts[5:15, 5:25] = 1
    parts[15:25, 5:25] = 2
    files = [encode_image(".png", each) for each in (image, labels, thing, parts)]
    photo = {"image": 0, "label": 1, "union": True}
    meta = {"photos": [photo, photo], "emoji": [{"image": 2, "parts": 3}]}
    np.savez(
        "pack.npz",
        blob=np.frombuffer(b"".join(files), np.uint8),
        sizes=[len(file) for file in files],
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
    )
    scripts.run("unpack_training_data.py", "pack.npz", "data")
    assert capsys.readouterr().out == "1 labelled, 1 objects, 1 photographs\n"
    (item,) = [open_annotated_images("data/labelled")[0]]
    # Both shoes, each of them, the dress, the person, and what lies behind.
    assert [mask.sum() for mask in item.masks] == [200, 100, 100, 450, 650, 40 * 50 - 651]
    cut_out = open_cut_outs("data/objects")[0]
    assert [part.sum() for part in cut_out.parts] == [200, 200]
    assert (cut_out.pixels[10, 10] == thing[10, 10]).all()


@pytest.mark.parametrize("kind", ["leaves", "nuclei", "letters"])
def test_labelled_images(scripts: Scripts, kind: str) -> None:
    scripts.run("labelled_images.py", kind, "data", "2")
    images = open_annotated_images(scripts.folder / "data")
    assert len(images) == 2 and images[0].fingerprint() != images[1].fingerprint()
    for image in (images[0], images[1]):
        assert image.count > 8
        contrast = np.abs(
            image.image[image.masks.any(0)].mean(0) - image.image[~image.masks.any(0)].mean(0)
        )
        assert contrast.max() > 15
