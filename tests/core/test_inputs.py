"""What opens images, reads masks and checks prompts, for every predictor."""

import contextlib
import io
import os
import stat
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import (
    describe_skipped,
    image_formats,
    image_suffixes,
    is_image_name,
    list_images,
    load_image,
    load_mask,
    open_image,
)
from mobile_sam_plugin.inputs import input_size, mask_to_logits
from mobile_sam_plugin.mask_postprocessing import MaskUpscaler

Mask = NDArray[np.bool_]


@pytest.fixture
def mask() -> Mask:
    mask = np.zeros((120, 160), bool)
    mask[40:80, 60:110] = True
    return mask


def as_image(mask: Mask, high: int = 255, low: int = 0) -> Image.Image:
    return Image.fromarray(np.where(mask, high, low).astype(np.uint8))


def with_alpha(color: Any, alpha: Image.Image) -> Image.Image:
    image = color if isinstance(color, Image.Image) else Image.new("RGB", alpha.size, color)
    image.putalpha(alpha)
    return image


def palette_of_ids(mask: Mask) -> Image.Image:
    image = Image.fromarray(np.where(mask, 3, 0).astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 40, 0, 0])
    return image


MASKS = {
    "white.png": as_image,
    "bits.png": lambda mask: Image.fromarray(mask),
    "zeros and ones.png": lambda mask: as_image(mask, 1),
    "good.jpg": as_image,
    "bad.jpg": as_image,
    "red.png": lambda mask: Image.merge("RGB", [as_image(mask), *[Image.new("L", (160, 120))] * 2]),
    "white, alpha.png": lambda mask: with_alpha("white", as_image(mask)),
    "black, alpha.png": lambda mask: with_alpha("black", as_image(mask)),
    "LA.png": lambda mask: Image.merge("LA", [Image.new("L", (160, 120), 255), as_image(mask)]),
    "opaque.png": lambda mask: with_alpha(as_image(mask).convert("RGB"), as_image(mask, 255, 255)),
    "ids.png": lambda mask: Image.fromarray((mask * 3).astype(np.uint16)),
    "many ids.png": lambda mask: Image.fromarray((mask * 300).astype(np.uint16)),
    "16 bits.png": lambda mask: Image.fromarray((mask * 65535).astype(np.uint16)),
    "palette of ids.png": palette_of_ids,
    "palette.gif": lambda mask: as_image(mask).convert("P"),
    "half transparent.png": lambda mask: with_alpha("red", as_image(mask, 100)),
    "probabilities.tif": lambda mask: Image.fromarray(np.where(mask, 0.7, 0.3).astype(np.float32)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_what_a_person_means(name: str, mask: Mask, tmp_path: Path) -> None:
    options: dict[str, Any] = (
        {"quality": 40 if "bad" in name else 85} if name.endswith("jpg") else {}
    )
    MASKS[name](mask).save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_mask(tmp_path / name)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, mask)


def test_masks_are_turned_upright(mask: Mask, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    as_image(mask).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_mask(tmp_path / "turned.png"), np.rot90(mask, -1))


def test_doubtful_masks_are_told_with_the_share_that_is_taken(mask: Mask, tmp_path: Path) -> None:
    ids = np.where(mask, np.arange(160) % 7 + 1, 0).astype(np.uint8)
    photograph = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    images = {
        "ids": (Image.fromarray(ids), mask, "values 0 to 7, which are taken for ids"),
        "cut-out": (with_alpha(Image.fromarray(photograph), as_image(mask)), mask, "is a cut-out"),
        "photograph": (Image.fromarray(photograph), None, "neither dark nor bright"),
    }
    for name, (image, expected, doubt) in images.items():
        image.save(tmp_path / f"{name}.png")
        with pytest.warns(UserWarning, match=rf"{name}.png' .*{doubt}.*: \d+\.\d% of its pixels"):
            found = load_mask(tmp_path / f"{name}.png")
        if expected is not None:
            np.testing.assert_array_equal(found, expected)


def test_postscript_in_a_jpg_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would hand it to Ghostscript, which does what the file says."""
    started = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin64c", "gswin32c"):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\ntouch '{started}'\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "photo.jpg"
    path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with contextlib.suppress(OSError), Image.open(path) as opened:
        opened.load()
    assert started.exists(), "the test shows nothing where Pillow starts nothing"
    started.unlink()
    for read in (load_image, load_mask):
        with pytest.raises(UserError, match=r"photo.jpg' is not an image that can be read here"):
            read(path)
    assert not started.exists()


def test_the_formats_are_pixels_alone() -> None:
    assert {"JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"} <= set(image_formats())
    assert not {"EPS", "WMF", "MPEG", "HDF5", "PDF"} & set(image_formats())
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif"} <= image_suffixes()
    assert not {".eps", ".ps", ".h5", ".mpg", ".wmf"} & image_suffixes()
    assert is_image_name("photos/A.JPG") and not is_image_name("photos/._A.JPG")


def test_too_many_pixels_are_refused_by_the_option_that_lifts_it(tmp_path: Path) -> None:
    """Told by the header alone: 20,000 x 20,000 pixels in a few bytes."""
    header = [54, 0, 0, 54, 40, 20_000, 20_000, 1, 24, *[0] * 6]
    (tmp_path / "huge.bmp").write_bytes(struct.pack("<2sIHHIIiiHHIIiiII", b"BM", *header))
    with pytest.raises(UserError, match=r"huge.bmp' .*178,956,970 pixels.*--max-pixels.*MAX_IMAGE"):
        load_image(tmp_path / "huge.bmp")


def test_whatever_fails_in_an_open_image_names_it(tmp_path: Path) -> None:
    Image.new("F", (9, 9)).save(tmp_path / "depth.tif")
    with pytest.raises(UserError, match="depth.tif' cannot be read: .*no defined range"):
        load_image(tmp_path / "depth.tif")
    with pytest.raises(UserError, match="mine"), open_image(io.BytesIO(b""), "mine"):
        pass
    for path, error in ((tmp_path / "none.png", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(error):
            load_image(path)


def test_what_is_left_out_of_a_folder_is_told_once_by_kind(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.png", "deep/c.png", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    for name in ("notes.txt", "more.txt", "._a.png", "README"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning) as caught:
        found = list_images(tmp_path)
    assert [path.name for path in found] == ["a.png", "b.PNG"]
    (warning,) = caught
    told = str(warning.message).split(f"{str(tmp_path)!r} 4 files are left out: ")[1].split(", ")
    assert sorted(told) == ["1 hidden", "1 without a suffix", "2 .txt"]
    with pytest.warns(UserWarning):
        found = list_images(tmp_path, recursive=True)
    assert [path.name for path in found] == ["a.png", "b.PNG", "c.png"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "film.mp4").touch()
    with pytest.raises(UserError, match=r"no image .*empty': 1 file is left out: 1 .mp4"):
        list_images(tmp_path / "empty")
    with pytest.raises(NotADirectoryError):
        list_images(tmp_path / "a.png")


def test_heic_is_read_where_its_library_is_and_named_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra [heic] is not installed")
    assert "HEIF" in image_formats() and describe_skipped(["a.HEIC"]) == ""
    pixels = np.full((64, 48, 3), (200, 60, 30), np.uint8)
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "photo.heic")
    assert np.abs(load_image(tmp_path / "photo.heic").astype(int) - pixels).max() < 12

    formats = tuple(name for name in image_formats() if name != "HEIF")
    suffixes = frozenset(image_suffixes() - {".heic", ".heif"})
    monkeypatch.setattr("mobile_sam_plugin.images.image_formats", lambda: formats)
    monkeypatch.setattr("mobile_sam_plugin.images.image_suffixes", lambda: suffixes)
    told = describe_skipped(["a.jpg", "b.HEIC", "c.heic"])
    assert told.startswith("2 files are left out: 2 .heic") and "mobile-sam-plugin[heic]" in told
    with pytest.raises(UserError, match=r"photo.heic' is not an image .*mobile-sam-plugin\[heic\]"):
        load_image(tmp_path / "photo.heic")


@pytest.mark.parametrize("size", [(400, 600), (1333, 2000), (90, 61), (37, 1024)])
def test_logits_of_a_mask_say_the_mask(size: tuple[int, int]) -> None:
    """Upscaled as the model's own are, they give it back, but for what is too fine for them."""
    height, width = size
    mask = np.zeros(size, bool)
    mask[height // 4 : height // 2, width // 8 : width // 3] = True
    y, x = np.mgrid[:height, :width]
    mask |= (y - 0.7 * height) ** 2 + (x - 0.6 * width) ** 2 < (0.2 * min(size)) ** 2
    resized = input_size(*size, 1024)
    logits = mask_to_logits(mask, (256, 256), resized)
    assert logits.shape == (256, 256) and logits.dtype == np.float32
    assert logits.min() == -10 and logits.max() == 10
    found = MaskUpscaler(resized, size).binary_mask(logits)
    assert (found & mask).sum() > 0.95 * (found | mask).sum()
    assert (mask_to_logits(np.ones(size, bool), (256, 256), resized) > 0).sum() == pytest.approx(
        resized[0] * resized[1] / 16, rel=0.05
    )
    assert (mask_to_logits(np.zeros(size, bool), (256, 256), resized) == -10).all()
