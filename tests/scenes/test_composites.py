"""Composites: cut out things pasted on photographs."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mobile_sam_plugin.datasets.annotated import AnnotatedImage, AnnotatedImages
from mobile_sam_plugin.datasets.formats import open_annotated_images, write_annotated_image
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import list_images
from mobile_sam_plugin.scenes.composites import Composites, open_cut_outs

from ..conftest import PHOTOGRAPHS
from .test_scenes import write

SIZE, COUNT = 96, 12


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dark photographs, so that things of bright colours can be told from them."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("coffee.png", "chelsea.png"):
        with Image.open(PHOTOGRAPHS / name) as image:
            small = np.asarray(image.convert("RGB").resize((160, 120))) // 8
        Image.fromarray(small).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs on a transparent background, in pure colours."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, color in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items():
        pixels = np.zeros((80, 100, 4), np.uint8)
        cv2.circle(pixels, (50, 40), 30, (*color, 255), cv2.FILLED, cv2.LINE_AA)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A white square with a red part, beside a background that has a mask of its own."""
    folder = tmp_path_factory.mktemp("labelled")
    image = np.zeros((100, 100, 3), np.uint8)
    image[20:80, 20:80] = 255
    image[20:50, 20:50] = (255, 0, 0)
    square, part = np.zeros((2, 100, 100), bool)
    square[20:80, 20:80] = True
    part[20:50, 20:50] = True
    masks = np.array([square, part, ~square & (np.arange(100) < 200)])
    write_annotated_image(folder, "sa_0", AnnotatedImage("", image, masks))
    return folder


def composites(objects: Path, photographs: Path, seed: int = 0) -> Composites:
    return Composites(COUNT, open_cut_outs(objects), list_images(photographs), SIZE, seed)


def read_all(data: AnnotatedImages) -> list[AnnotatedImage]:
    return [data[index] for index in range(len(data))]


def test_masks_are_the_pixels_of_the_pasted_things(pictures: Path, photographs: Path) -> None:
    seen = 0
    for item in read_all(composites(pictures, photographs)):
        assert max(item.image.shape[:2]) == SIZE and len(item.masks)
        vivid = item.image.max(2).astype(int) - np.median(item.image, axis=2) > 90
        things = [mask for mask in item.masks if vivid[mask].mean() > 0.5]  # not what is behind
        seen += len(things)
        for mask in things:
            eroded = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            assert vivid[eroded].all()
            hues = item.image[eroded].argmax(1)
            assert len(np.unique(hues)) <= 1  # one thing, in one colour
        if len(things) > 1:
            assert np.sum(things, axis=0).max() == 1  # whoever is in front owns the pixel
        assert np.count_nonzero(vivid & ~np.any(item.masks, axis=0)) < 0.05 * vivid.size
    assert seen > 20


def test_things_are_cut_from_images_with_masks(labelled: Path, photographs: Path) -> None:
    thing = open_cut_outs(labelled)[0]
    assert thing.pixels.shape == (62, 62, 4)  # with its soft edge
    assert thing.parts.shape == (1, 62, 62)
    assert (thing.pixels[..., :3][thing.parts[0]].mean(0) > (200, -1, -1)).all()
    nested = 0
    for item in read_all(composites(labelled, photographs)):
        for part in item.masks:
            nested += any(
                (part & whole).sum() == part.sum() < whole.sum() and part.any()
                for whole in item.masks
            )
    assert nested > 3


def test_a_folder_beside_a_picture_holds_its_parts(
    pictures: Path, photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "red.png").write_bytes((pictures / "red.png").read_bytes())
    part = np.zeros((80, 100), np.uint8)
    part[20:40, 30:60] = 255
    (tmp_path / "red").mkdir()
    Image.fromarray(part).save(tmp_path / "red" / "1.png")
    things = open_cut_outs(tmp_path)
    assert len(things) == 1
    thing = things[0]
    assert thing.parts.shape == (1, *thing.pixels.shape[:2])
    assert np.count_nonzero(thing.parts) == 20 * 30
    Image.fromarray(part[:50]).save(tmp_path / "red" / "2.png")
    with pytest.raises(UserError, match=r"red.png' are not of its size"):
        open_cut_outs(tmp_path)[0]


def test_a_composite_of_a_seed_is_always_the_same(pictures: Path, photographs: Path) -> None:
    first, again, other = (composites(pictures, photographs, seed=seed)[3] for seed in (1, 1, 2))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.masks, again.masks)
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)
    assert first.name == "composite_1_000003"
    with pytest.raises(IndexError, match="no composite 12 among 12"):
        composites(pictures, photographs)[12]


def test_unusable_objects_are_left_out(pictures: Path, photographs: Path, tmp_path: Path) -> None:
    for path in pictures.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Image.new("RGB", (30, 30)).save(tmp_path / "zz_opaque.png")
    found = composites(tmp_path, photographs)
    with pytest.warns(UserWarning, match=r"zz_opaque.png' is no cut out thing"):
        assert all(len(item.masks) for item in read_all(found))
    assert found.objects.skipped.describe() == "1 of 4 objects are left out: 1 not readable"
    with pytest.raises(UserError, match="no image in .* has masks"):
        open_cut_outs(photographs)


def test_the_command_writes_composites(pictures: Path, photographs: Path, tmp_path: Path) -> None:
    given = {"objects": pictures, "photographs": photographs, "size": SIZE, "workers": 1}
    write(tmp_path / "a", 3, **given)
    read = open_annotated_images(tmp_path / "a")
    assert len(read) == 3
    made = composites(pictures, photographs)
    for index, item in enumerate(read_all(read)):
        expected = made[index]
        assert np.array_equal(item.masks, expected.masks)
    with pytest.raises(UserError, match="holds another run"):
        write(tmp_path / "a", 3, **{**given, "photographs": PHOTOGRAPHS})
