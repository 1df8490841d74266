"""Odd and broken images: read right, or listed with the reason, and the run goes on."""

import io
import json
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from mobile_sam_plugin import MobileSam, annotate
from mobile_sam_plugin.annotation.items import Item
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import load_image

Pixels = NDArray[np.uint8]
Maker = Callable[[Path], object]


def scene() -> Pixels:
    """(40, 60, 3), of four colours, without a symmetry."""
    pixels = np.full((40, 60, 3), (200, 180, 160), np.uint8)
    pixels[4:20, 5:25] = (20, 40, 200)
    pixels[25:36, 30:55] = (0, 120, 30)
    pixels[:3] = (255, 255, 255)
    return pixels


SCENE = scene()
GRAY = np.asarray(Image.fromarray(SCENE).convert("L"))
DEEP = GRAY.astype(np.uint16) << 8 | 77
AS_GRAY = np.repeat(GRAY[..., None], 3, axis=2)


def save(pixels: Any, **options: Any) -> Maker:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda path: image.save(path, **options)


def content(data: bytes) -> Maker:
    return lambda path: path.write_bytes(data)


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(SCENE).save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Maker:
    """A PNG that has to be turned, by EXIF's number of how, to show the scene."""
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(Image.fromarray(SCENE).transpose(turn), exif=exif)


def palette(transparency: Any = None) -> Maker:
    image = Image.fromarray(SCENE).quantize(8)
    return save(image, **({} if transparency is None else {"transparency": transparency}))


def animation(kind: str, **options: Any) -> Maker:
    frames = [Image.fromarray(frame) for frame in (SCENE[::-1], SCENE[:, ::-1])]
    return lambda path: Image.fromarray(SCENE).save(
        path, kind, save_all=True, append_images=frames, **options
    )


def bomb(path: Path) -> None:
    """A valid PNG of 400 megapixels in some kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(2501)) for _ in range(20000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def opencv(pixels: Any) -> Maker:
    return lambda path: cv2.imwrite(str(path), pixels)


ALPHA = np.dstack([SCENE, np.tile(np.arange(60, dtype=np.uint8), (40, 1))])
PNG, JPEG = encoded("png"), encoded("jpeg", quality=95)

# What each must be read as: exactly, or nearly where the format is lossy.
READABLE: dict[str, tuple[Maker, Pixels]] = {
    "rgb.png": (save(SCENE), SCENE),
    "gray.png": (save(GRAY), AS_GRAY),
    "gray_alpha.png": (save(np.dstack([GRAY, ALPHA[..., 3]])), AS_GRAY),
    "alpha.png": (save(ALPHA), SCENE),
    "palette.png": (palette(), SCENE),
    "palette_transparent.png": (palette(0), SCENE),
    "palette_alphas.png": (palette(bytes([0, 100, 255])), SCENE),
    "bilevel.png": (save(Image.fromarray(GRAY > 128)), np.where(AS_GRAY > 128, 255, 0)),
    "gray_16.png": (save(DEEP), AS_GRAY),
    "gray_16.tiff": (save(DEEP), AS_GRAY),
    "gray_16.pgm": (opencv(DEEP), AS_GRAY),
    "rgb_16.png": (opencv(SCENE[..., ::-1].astype(np.uint16) << 8 | 77), SCENE),
    "rgba_16.png": (opencv(ALPHA[..., [2, 1, 0, 3]].astype(np.uint16) << 8), SCENE),
    "cmyk.tiff": (save(Image.fromarray(SCENE).convert("CMYK")), SCENE),
    "cmyk.jpg": (save(Image.fromarray(SCENE).convert("CMYK"), quality=95), SCENE),
    "lzw.tiff": (save(SCENE, compression="tiff_lzw"), SCENE),
    **{f"turned_{number}.png": (turned(number), SCENE) for number in range(2, 9)},
    "animated.gif": (animation("gif"), SCENE),
    "animated.png": (animation("png"), SCENE),
    "animated.webp": (animation("webp", lossless=True), SCENE),
    "pages.tiff": (animation("tiff"), SCENE),
    "plain.bmp": (save(SCENE), SCENE),
    "plain.ppm": (save(SCENE), SCENE),
    "plain.tga": (save(SCENE), SCENE),
    "baseline.jpg": (content(JPEG), SCENE),
    "progressive.jpg": (save(SCENE, progressive=True, quality=95), SCENE),
    "deflated.tiff": (save(SCENE, compression="tiff_adobe_deflate"), SCENE),
    "png_named.jpg": (content(PNG), SCENE),
    "UPPER.PNG": (content(PNG), SCENE),
    "rubbish_behind.png": (content(PNG + bytes(1000)), SCENE),
    "with space\nand line.png": (content(PNG), SCENE),
    "grün_猫.png": (content(PNG), SCENE),
    os.fsdecode(b"latin1_\xe9.png"): (content(PNG), SCENE),
    "one_pixel.png": (save(SCENE[:1, :1]), SCENE[:1, :1]),
    "wide.png": (save(SCENE[:1]), SCENE[:1]),
}
if features.check("jpg_2000"):
    READABLE["plain.jp2"] = save(SCENE), SCENE
if features.check("avif"):
    READABLE["plain.avif"] = save(SCENE, quality=100, subsampling="4:4:4"), SCENE

# What each error says.
UNREADABLE: dict[str, tuple[Maker, str]] = {
    "empty.png": (content(b""), "not an image that can be read here"),
    "text.jpg": (content(b"no image"), "not an image that can be read here"),
    "page.jpg": (content(b"<!DOCTYPE html><html></html>"), "not an image that can be read here"),
    "zip.png": (content(b"PK\3\4" + bytes(100)), "not an image that can be read here"),
    "half.png": (content(PNG[: len(PNG) // 2]), "cannot be read"),
    "half.jpg": (content(JPEG[: len(JPEG) // 2]), "cannot be read"),
    "header_only.png": (content(PNG[:33]), "not an image"),
    "header_cut.png": (content(PNG[:20]), "cannot be read"),
    "header_only.gif": (content(encoded("gif")[:13]), "not an image"),
    "damaged.png": (content(PNG[:60] + bytes(8) + PNG[68:]), "cannot be read"),
    "bomb.png": (bomb, "too large to be safe"),
    "no_rows.bmp": (
        content(encoded("bmp")[:22] + bytes(4) + encoded("bmp")[26:]),
        "not an image",
    ),
    "float.tiff": (save(GRAY.astype(np.float32)), "mode 'F' has no defined range"),
    "integers.tiff": (save(GRAY.astype(np.int32)), "mode 'I' has no defined range"),
    "thin.png": (save(np.zeros((1, 900, 3), np.uint8)), "too thin"),
    "gone.png": (lambda path: path.symlink_to("nowhere.png"), "No such file"),
    "pipe.png": (lambda path: os.mkfifo(path), "is not a regular file"),
    "x" * 251 + ".png": (content(PNG), "too long"),
}


@pytest.mark.parametrize("name", READABLE, ids=ascii)
def test_odd_images_are_read_right(tmp_path: Path, name: str, recwarn: Any) -> None:
    make, expected = READABLE[name]
    make(tmp_path / name)
    pixels = load_image(tmp_path / name)
    assert pixels.shape == expected.shape and pixels.dtype == np.uint8
    lossy = name.endswith((".jpg", ".avif", ".jp2"))
    difference = np.abs(pixels.astype(int) - expected)
    assert np.median(difference) <= 2 and (lossy or difference.max() <= 1)
    assert not recwarn.list


@pytest.mark.parametrize("name", ["null\0.png", "half\ud800.png"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError, match="cannot be the path of a file"):
        Item(0, 1, "key", name, name).load()


def test_a_claimed_length_takes_no_memory(tmp_path: Path) -> None:
    claiming = bytearray(PNG)
    length = claiming.index(b"IDAT") - 4
    claiming[length : length + 4] = struct.pack(">I", 1 << 30)
    (tmp_path / "claiming.png").write_bytes(claiming)
    tracemalloc.start()
    try:
        with suppress(UserError):  # Pillow decides whether it can be read
            load_image(tmp_path / "claiming.png")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_folder_of_odd_and_broken_images_is_annotated(
    tmp_path: Path, tiny_sam: MobileSam
) -> None:
    assert len(READABLE) + len(UNREADABLE) >= 40
    folder = tmp_path / "images"
    folder.mkdir()
    for name, (make, _) in {**READABLE, **UNREADABLE}.items():
        make(folder / name)
    (folder / "folder.png").mkdir()
    (folder / ".hidden.png").write_bytes(b"no image")
    (folder / "notes.md").write_text("no image")
    options: dict[str, Any] = {"points_per_side": 1, "pred_iou_thresh": 0, "model": tiny_sam}
    formats = ["coco", "parquet", "yolo", "ids", "overlay"]
    results = {
        result.key: result
        for result in annotate(folder, tmp_path / "out", formats=formats, **options)
    }
    assert set(results) == {*READABLE, *UNREADABLE}
    for name, (_, expected) in READABLE.items():
        assert results[name].error is None
        assert (results[name].height, results[name].width) == expected.shape[:2]
    lines = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    errors = {entry["file_name"]: entry["error"] for entry in map(json.loads, lines)}
    assert set(errors) == set(UNREADABLE)
    for name, (_, words) in UNREADABLE.items():
        assert words in errors[name] and name[:50] in errors[name], errors[name]
    instances = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert {image["file_name"] for image in instances["images"]} == set(READABLE)
