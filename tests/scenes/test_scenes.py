"""The generator of synthetic pictures, and the command that writes them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin.cli.distill_scenes import scenes
from mobile_sam_plugin.datasets.annotated import AnnotatedImage
from mobile_sam_plugin.datasets.formats import open_annotated_images
from mobile_sam_plugin.scenes.scenes import Scenes, make_scene, open_images_or_scenes

from ..conftest import PHOTOGRAPHS

SEEDS = range(12)


@pytest.fixture(scope="module")
def some_scenes() -> list[AnnotatedImage]:
    return [make_scene(seed, 192) for seed in SEEDS]


def digest(scene: AnnotatedImage) -> str:
    return hashlib.sha256(scene.image.tobytes() + scene.masks.tobytes()).hexdigest()


def intersection(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(a & b))


def test_a_seed_gives_the_same_scene_again_and_another_seed_another(
    some_scenes: list[AnnotatedImage],
) -> None:
    np.random.seed(0)  # the global generator must not matter
    again = [digest(make_scene(seed, 192)) for seed in reversed(SEEDS)][::-1]
    assert again == [digest(scene) for scene in some_scenes]
    assert len(set(again)) == len(SEEDS)


@pytest.mark.process
def test_another_process_makes_the_same_scenes() -> None:
    data = Scenes(5, size=(96, 128), seed=3)
    program = (
        "import hashlib, sys\n"
        "from mobile_sam_plugin.scenes.scenes import Scenes\n"
        "scene = Scenes(99, size=(96, 128), seed=3)[4]\n"
        "print(hashlib.sha256(scene.image.tobytes() + scene.masks.tobytes()).hexdigest())\n"
        "assert 'torch' not in sys.modules\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert printed.split() == [digest(data[4])]


def test_masks_are_of_the_picture_and_neither_empty_nor_all_of_it(
    some_scenes: list[AnnotatedImage],
) -> None:
    for scene in some_scenes:
        assert scene.image.shape == (192, 192, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape[1:] == (192, 192) and scene.masks.dtype == bool
        shares = scene.masks.mean(axis=(1, 2))
        assert shares.min() >= 0.0015 and shares.max() <= 0.9
        assert scene.image.std() > 5  # there is something to be seen


def test_masks_are_nested_or_apart_and_few_are_alike(some_scenes: list[AnnotatedImage]) -> None:
    nested = 0
    for scene in some_scenes:
        areas = scene.masks.sum(axis=(1, 2))
        for i, first in enumerate(scene.masks):
            for j in range(i):
                common = intersection(first, scene.masks[j])
                # Visible pixels belong to one thing, and to all that it is a part of.
                assert common in (0, areas[i], areas[j])
                if common:
                    assert max(areas[i], areas[j]) > min(areas[i], areas[j])
                    nested += 1
    assert nested > 5 * len(some_scenes)


def test_some_clicks_mean_a_whole_a_part_or_a_part_of_that(
    some_scenes: list[AnnotatedImage],
) -> None:
    assert any(scene.masks.sum(axis=0).max() >= 3 for scene in some_scenes)


def test_sizes_of_masks_are_spread(some_scenes: list[AnnotatedImage]) -> None:
    shares = np.concatenate([scene.masks.mean(axis=(1, 2)) for scene in some_scenes])
    assert (shares < 0.01).mean() > 0.2
    assert ((shares > 0.01) & (shares < 0.1)).mean() > 0.1
    assert (shares > 0.1).mean() > 0.03


def test_edges_of_masks_are_edges_of_the_picture(some_scenes: list[AnnotatedImage]) -> None:
    ratios = []
    for scene in some_scenes:
        gray = scene.image.astype(float).mean(axis=2)
        step = np.abs(np.diff(gray, axis=1))
        crossing = (scene.masks[:, :, 1:] != scene.masks[:, :, :-1]).any(axis=0)
        ratios.append(step[crossing].mean() / step[~crossing].mean())
    assert np.median(ratios) > 1.8


def test_the_same_scene_at_another_size() -> None:
    for seed in range(4):
        small, large = make_scene(seed, 96), make_scene(seed, 288)
        reduced = np.asarray(Image.fromarray(large.image).resize((12, 12), Image.Resampling.BOX))
        tiny = np.asarray(Image.fromarray(small.image).resize((12, 12), Image.Resampling.BOX))
        assert np.abs(reduced.astype(float) - tiny).mean() < 12
        largest = large.masks[large.masks.sum(axis=(1, 2)).argmax()][1::3, 1::3]
        best = max(
            intersection(mask, largest) / np.count_nonzero(mask | largest) for mask in small.masks
        )
        assert best > 0.8


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    height=st.integers(32, 150),
    width=st.integers(32, 150),
)
def test_any_seed_and_size(seed: int, height: int, width: int) -> None:
    scene = make_scene(seed, (height, width))
    assert scene.image.shape == (height, width, 3)
    assert scene.masks.shape[1:] == (height, width)
    assert scene.masks.any(axis=(1, 2)).all() and len(scene.masks)


@pytest.mark.parametrize("size", [(32, 640), (640, 32), 32])
def test_extreme_shapes(size: int | tuple[int, int]) -> None:
    scene = make_scene(1, size)
    assert scene.masks.any(axis=(1, 2)).all() and len(scene.masks)


def test_photographs_become_surfaces() -> None:
    photographs = [PHOTOGRAPHS / "coffee.png", PHOTOGRAPHS / "flower.jpg"]
    without = [digest(make_scene(seed, 64)) for seed in range(6)]
    with_them = [digest(make_scene(seed, 64, photographs)) for seed in range(6)]
    assert sum(a != b for a, b in zip(without, with_them, strict=True)) >= 5
    assert with_them == [digest(make_scene(seed, 64, photographs)) for seed in range(6)]


def test_a_broken_photograph_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes((PHOTOGRAPHS / "flower.jpg").read_bytes()[:5000])
    with pytest.raises(ValueError, match="broken.jpg"):
        for seed in range(8):
            make_scene(seed, 64, [tmp_path / "broken.jpg"])


def test_scenes_are_a_sequence_of_different_scenes() -> None:
    data = Scenes(3, size=48, seed=5)
    assert len(data) == 3
    assert len({digest(data[i]) for i in range(3)} | {digest(Scenes(1, 48, seed=6)[0])}) == 4
    assert digest(data[-1]) == digest(data[2])
    assert data[2].name == "scene_5_000002"
    with pytest.raises(IndexError, match="no scene 3 among 3"):
        data[3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_scene(-1), "seed of a scene must be 0 or more, not -1"),
        (lambda: make_scene(0, 31), "at least 32 pixels"),
        (lambda: make_scene(0, (512, 8)), "not 512 x 8"),
        (lambda: Scenes(0), "at least one scene, not 0"),
    ],
)
def test_nonsense_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("source", "count"), [("scenes", 1000), ("scenes:3", 3), ("scenes:3:5", 3)]
)
def test_scenes(source: str, count: int) -> None:
    data = open_images_or_scenes(source)
    assert len(data) == count
    seed = 5 if source.endswith(":5") else 0
    np.testing.assert_array_equal(data[2].image, Scenes(count, 512, seed)[2].image)


@pytest.mark.parametrize("source", ["scenes:", "scenes:x", "scenes:-1", "scenes:1:2:3"])
def test_scenes_misspelt(source: str) -> None:
    with pytest.raises(ValueError, match="must be 'scenes', 'scenes:COUNT' or"):
        open_images_or_scenes(source)


def write(out: Path, count: int, **options: object) -> None:
    """Runs the command as typer calls it."""
    app = typer.Typer()
    app.command()(scenes)
    arguments = ["--out", str(out), "--count", str(count)]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        arguments += [option] if value is True else [option, str(value)]
    app(arguments, standalone_mode=False)


@pytest.mark.process
def test_the_command_writes_what_can_be_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", 5, size=64, seed=2, workers=2, contact_sheet=True)
    assert f"{tmp_path / 'a'}  5 images" in capsys.readouterr().out
    data = open_annotated_images(tmp_path / "a")
    assert len(data) == 5
    for index, expected in enumerate(Scenes(5, 64, seed=2)[i] for i in range(5)):
        found = data[index]
        assert found.name == f"sa_2_{index:06}.jpg"
        np.testing.assert_array_equal(found.masks, expected.masks)
        assert np.abs(found.image.astype(int) - expected.image).mean() < 8  # JPEG
    with Image.open(tmp_path / "a" / "contact_sheet.png") as sheet:
        assert sheet.size == (960, 320)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert len(names) == 12 and not any("partial" in name for name in names)


def test_the_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    write(out, 3, size=32)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "sa_0_000001.json").unlink()  # as if it was killed between the two files
    write(out, 4, size=32)
    changed = {p.name for p in out.glob("sa_*") if before.get(p) != p.stat().st_mtime_ns}
    assert changed == {f"sa_0_00000{i}.{suffix}" for i in (1, 3) for suffix in ("jpg", "json")}
    assert json.loads((out / "sa_0_000001.json").read_text())["image"]["width"] == 32


def test_the_command_does_not_mix_scenes(tmp_path: Path) -> None:
    write(tmp_path, 1, size=32)
    with pytest.raises(ValueError, match="size was 32, is now 48"):
        write(tmp_path, 1, size=48)
    assert len(open_annotated_images(tmp_path)) == 1


def test_the_command_takes_photographs(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, size=64, texture_images=PHOTOGRAPHS, seed=1)
    settings_of_it = json.loads((tmp_path / "a" / "run.json").read_text())
    assert len(settings_of_it["texture_images"]) == 7
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in the folder"):
        write(tmp_path / "b", 1, texture_images=tmp_path / "empty")
