"""What ``python -m benchmarks fuzz`` calls: a target for each kind of input.

A target opens once in a process, with a folder of its own, and returns a function that makes a case
of random numbers and runs it.
"""

import contextlib
import copy
import io
import json
import math
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamPredictor as UpstreamPredictor
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from mobile_sam_plugin import SamPredictor, build_sam_vit_t
from mobile_sam_plugin.annotation import open_source
from mobile_sam_plugin.checkpoint import load_checkpoint, read_backbone, read_checkpoint
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.datasets.formats import open_annotated_images
from mobile_sam_plugin.deploy import OnnxPredictor
from mobile_sam_plugin.embeddings import (
    Embedding,
    EncoderIdentity,
    read_embedding,
    write_embedding,
)
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import image_formats, limit_pixels, load_image, load_mask
from mobile_sam_plugin.integrations.video import Video
from mobile_sam_plugin.mobile_sam import MobileSam, set_img_size
from mobile_sam_plugin.records import encode_mask

from .fuzz import Case, Target

WILD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, 2, 255, 65536, 2**31, -(2**31), 2**63, 10**400),
    *(1e308, -1e308, 1e-320, float("nan"), float("inf"), "", "0", "x", "é", "\0", "\ud800", "../x"),
    *("a" * 300, [], {}, [[]], [None], {"counts": "x"}),
)
"""Values that stand where others are expected."""
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def break_bytes(content: bytes, chance: Random) -> bytes:
    """Returns an altered copy, mostly altered at its start, where the structure is."""
    broken = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8, 30))):
        reach = min(len(broken), chance.choice((64, 512, len(broken) or 1)))
        at = chance.randrange(reach + 1)
        match chance.randrange(7):
            case 0:
                del broken[at:]
            case 1:
                del broken[at : at + chance.randrange(1, 64)]
            case 2:
                broken[at:at] = chance.randbytes(chance.randrange(1, 16))
            case 3:
                broken[at:at] = broken[at : at + chance.randrange(1, 256)]
            case 4:
                order, size = chance.choice("<>"), chance.choice("BHIQ")
                width = struct.calcsize(size)
                value = chance.choice(_INTEGERS) & (256**width - 1)
                broken[at : at + width] = struct.pack(order + size, value)
            case _:
                if at < len(broken):
                    broken[at] ^= 1 << chance.randrange(8)
    return bytes(broken)


def break_value(value: Any, chance: Random) -> Any:
    """Returns a copy of a value of JSON in which a part is altered, doubled or removed."""
    value = copy.deepcopy(value)
    if isinstance(value, dict | list) and value and chance.random() < 0.9:
        key = chance.choice([*value] if isinstance(value, dict) else range(len(value)))
        match chance.randrange(12):
            case 0:
                del value[key]
            case 1 if isinstance(value, list):
                value.append(value[key])
            case 2 if isinstance(value, dict):
                value[chance.choice(("id", "size", "counts", "x"))] = value[key]
            case _:
                value[key] = break_value(value[key], chance)
        return value
    if isinstance(value, int | float) and chance.random() < 0.5:
        return value + chance.choice((1, -1, 1000, -1000, 2**40))
    return chance.choice(WILD)


# Checkpoints.


class _Small(torch.nn.Module):
    """A module whose checkpoint is quickly read; with an integer, as batch norms have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4)


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _open_checkpoints(folder: Path) -> Case:
    torch.manual_seed(0)
    tensors = _Small().state_dict()
    files: list[bytes] = []
    for content in (
        tensors,
        {"model": tensors},
        {"state_dict": {f"module.{key}": value for key, value in tensors.items()}},
        {key: value.half() for key, value in tensors.items() if value.is_floating_point()},
    ):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            files.append(buffer.getvalue())
    half = {key: value.half() for key, value in tensors.items()}
    files += [safetensors.torch.save(each, {"format": "pt"}) for each in (tensors, half)]
    files.append(safetensors.torch.save(tensors, {"backbone": "x", "format": "pt"}))
    encoder = EncoderIdentity("vit_t", "0" * 64, 64)
    features = torch.zeros(1, 4, 2, 2)
    write_embedding("a.safetensors", Embedding(features, (), (9, 12), (48, 64), None, encoder))
    files.append(Path("a.safetensors").read_bytes())
    canary = folder / "a pickle ran"
    calls = [
        _Call(os.system, f"touch '{canary}'"),
        _Call(os.mkdir, str(canary)),
        _Call(exec, f"open({str(canary)!r}, 'w')"),
        _Call(eval, f"__import__('os').mkdir({str(canary)!r})"),
        _Call(shutil.rmtree, str(folder)),
    ]
    module = _Small()

    def case(chance: Random) -> None:
        content = chance.choice(files)
        way = chance.randrange(6)
        if way == 0:
            content = _pickle_of(chance, tensors, calls)
        elif way == 1 and content.startswith(b"PK"):
            content = _rezip(content, chance, _pickle_of(chance, tensors, calls))
        elif way == 2 and content[8:9] == b"{":
            size = int.from_bytes(content[:8], "little")
            header = json.dumps(break_value(json.loads(content[8 : 8 + size]), chance)).encode()
            content = struct.pack("<Q", len(header)) + header + content[8 + size :]
        elif way < 5 or chance.random() < 0.9:  # else it stays whole
            content = break_bytes(content, chance)
        path = folder / f"case{chance.choice(('.pt', '.pth', '.bin', '.safetensors', ''))}"
        path.write_bytes(content)
        before = {key: value.clone() for key, value in module.state_dict().items()}
        try:
            load_checkpoint(module, path)
        except UserError:
            for key, value in module.state_dict().items():
                assert torch.equal(value, before[key]), "a refused file changed the model"
            for read in (read_backbone, read_embedding):
                with contextlib.suppress(UserError):
                    read(path)
            raise
        finally:
            assert not canary.exists(), "a pickle ran"
        found = read_checkpoint(path)
        for key, value in module.state_dict().items():
            assert torch.isfinite(value).all(), "weights are not finite"
            assert torch.equal(value, found[key].to(value.dtype)), "other weights than the file's"

    return case


def _pickle_of(chance: Random, tensors: Any, calls: list[_Call]) -> bytes:
    """Returns a pickle that calls something, somewhere."""
    call = chance.choice(calls)
    value: Any = chance.choice(
        [call, [call], {"model": call}, {**{key: 0 for key in tensors}, "linear.bias": call}]
    )
    content = pickle.dumps(value, protocol=chance.randrange(6))
    return content if chance.random() < 0.5 else break_bytes(content, chance)


def _rezip(content: bytes, chance: Random, other: bytes) -> bytes:
    """Returns the archive of a checkpoint with a member altered, its checksum right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        names = before.namelist()
        chosen = chance.choice([name for name in names if "pkl" in name] + names)
        for name in names:
            part = before.read(name)
            if name == chosen:
                part = other if chance.random() < 0.3 else break_bytes(part, chance)
            after.writestr(name, part)
    return buffer.getvalue()


# Images and masks in files.


def _open_images(folder: Path) -> Case:
    files = [*_image_files()]

    def case(chance: Random) -> None:
        suffix, content = chance.choice(files)
        if chance.random() < 0.98:
            content = break_bytes(content, chance)
        if chance.random() < 0.1:  # contents decide, not suffixes
            suffix = chance.choice(files)[0]
        path = folder / f"image{suffix}"
        path.write_bytes(content)
        with limit_pixels(2**22):
            if chance.random() < 0.7:
                pixels = load_image(path)
                assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            else:
                mask = load_mask(path)
                assert mask.dtype == bool and mask.ndim == 2

    return case


def _image_files() -> Iterator[tuple[str, bytes]]:
    """Yields small images in the formats that Pillow and OpenCV write, by their suffixes."""
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (17, 24, 4), dtype=np.uint8)
    wide = chance.integers(0, 65536, (17, 24), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [
        *(Image.fromarray(pixels).convert(mode) for mode in ("RGB", "L", "1", "P", "RGBA", "LA")),
        *(Image.fromarray(pixels).convert(mode) for mode in ("CMYK", "YCbCr", "LAB", "F", "I")),
        *(Image.fromarray(wide), Image.fromarray(wide.astype(np.float32) / 65536)),
    ]
    formats = {*image_formats(), *Image.SAVE} - {"PDF", "PALM", "H5", "BUFR", "GRIB"}
    suffixes = {kind: suffix for suffix, kind in Image.registered_extensions().items()}
    options: list[dict[str, Any]] = [
        *({}, {"exif": exif}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}),
        *({"progressive": True}, {"save_all": True, "append_images": pictures[:1]}),
    ]
    for kind in sorted(formats):
        for picture in pictures:
            for option in options if picture.mode in ("RGB", "L") else options[:1]:
                with contextlib.suppress(Exception):  # most formats have a few modes only
                    picture.save(buffer := io.BytesIO(), kind, **option)
                    yield suffixes.get(kind, ""), buffer.getvalue()
    for suffix in (".hdr", ".pfm", ".ras", ".pam", ".jp2", ".tiff", ".png", ".ppm", ".pxm", ".exr"):
        for array in (pixels[..., :3], pixels[..., 0], wide, wide.astype(np.float32)):
            with contextlib.suppress(cv2.error):
                written, content = cv2.imencode(suffix, array)
                if written:
                    yield suffix, content.tobytes()


# Prompts, against upstream.

_SIDE = 64  # of the model's input: a prompt takes milliseconds


def _open_prompts(folder: Path) -> Case:
    torch.manual_seed(0)
    weights = build_sam_vit_t("bundled").state_dict()
    sam = MobileSam.untrained("test_efficientnet")
    set_img_size(sam, _SIDE)
    upstream = Sam(
        copy.copy(sam.image_encoder),
        PromptEncoder(256, (_SIDE // 16, _SIDE // 16), (_SIDE, _SIDE), 16),
        MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
    ).eval()
    for name in ("prompt_encoder", "mask_decoder"):
        part = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(name)}
        getattr(sam, name).load_state_dict(part)
        getattr(upstream, name).load_state_dict(part)
    images = np.random.default_rng(0).integers(0, 256, (2, 53, 61, 3), dtype=np.uint8)
    pairs = []
    for image in (images[0], images[1, :9, :40]):
        ours, theirs = SamPredictor(sam), UpstreamPredictor(upstream)
        ours.set_image(image)
        theirs.set_image(image)
        pairs.append((ours, theirs))

    def case(chance: Random) -> None:
        ours, theirs = chance.choice(pairs)
        prompt = _valid_prompt(chance, *ours.original_size)
        is_valid = chance.random() < 0.4
        if not is_valid:
            for name in chance.sample([*prompt], chance.choice((1, 1, 2))):
                prompt[name] = _wild_prompt(prompt[name], chance)
        try:
            found = ours.predict(**prompt)
        except (UserError, TypeError) as error:
            if is_valid:
                raise AssertionError(f"a valid prompt was refused: {error}") from error
            raise
        for each, dtype in zip(found, (None, np.float32, np.float32), strict=True):
            assert np.isfinite(each).all(), "a result is not finite"
            assert dtype is None or each.dtype == dtype
        try:
            expected = theirs.predict(**prompt)
        except Exception:  # upstream takes less: lists, masks of the image's size
            assert not is_valid or isinstance(prompt["mask_input"], np.ndarray)
            return
        if not all(np.isfinite(each).all() for each in expected):
            return
        for mine, other in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-3)
        if prompt["return_logits"]:
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-3, atol=1e-3)
        else:
            assert (found[0] != expected[0]).mean() < 0.02, "other masks than upstream's"

    return case


def _valid_prompt(chance: Random, height: int, width: int) -> dict[str, Any]:
    numbers = np.random.default_rng(chance.getrandbits(32))
    dtype = chance.choice((np.float64, np.float32, np.int64, np.int32, np.float16))
    prompt: dict[str, Any] = dict.fromkeys(("point_coords", "point_labels", "box", "mask_input"))
    prompt |= {"multimask_output": chance.random() < 0.5, "return_logits": chance.random() < 0.5}
    extent = (width, height)
    if chance.random() < 0.8:
        count = chance.choice((1, 1, 2, 3, 9))
        reach = chance.choice((1, 1, 1, 3))  # points may lie outside
        prompt["point_coords"] = (numbers.random((count, 2)) * extent * reach).astype(dtype)
        prompt["point_labels"] = numbers.integers(-1, 2, count)
    if chance.random() < 0.4 or prompt["point_coords"] is None:
        corners = np.sort(numbers.random((2, 2)) * extent, axis=0).reshape(4)
        prompt["box"] = corners.astype(dtype)
    if chance.random() < 0.3:
        side = _SIDE // 4
        logits = (numbers.standard_normal((1, side, side)) * chance.choice((1, 10, 100))).astype(
            np.float32
        )
        blob = numbers.random((height, width)) < 0.5
        prompt["mask_input"] = chance.choice((logits, logits, blob, blob[None].astype(np.uint8)))
    return prompt


def _wild_prompt(value: Any, chance: Random) -> Any:
    """Returns what may stand in the place of an argument of ``predict``."""
    ways: list[Callable[[], Any]] = [
        lambda: chance.choice(WILD),
        lambda: np.full(chance.choice(((), (0,), (2,), (1, 2), (4,), (0, 2), (1, 1, 2))), 1.0),
        lambda: np.array(chance.choice(WILD), dtype=object),
        lambda: np.array(chance.choice(("a", b"a", 1j, np.datetime64("2020-01-01")))),
        lambda: [chance.choice(WILD) for _ in range(chance.randrange(5))],
        lambda: [[chance.choice(WILD) for _ in range(2)]],
        lambda: np.full((1, 2), chance.choice((1e39, -1e39, 2.0**24, 2.0**25, 1e-45, -0.0))),
    ]
    if isinstance(value, np.ndarray):
        kinds = (np.int8, np.uint64, bool, np.float16, complex, str, object)
        ways += [
            lambda: value.tolist(),
            lambda: torch.as_tensor(value.copy()),
            lambda: value[None],
            lambda: value.reshape(-1),
            lambda: value[::-1],
            lambda: np.asfortranarray(value),
            lambda: np.where(np.arange(value.size).reshape(value.shape) % 3, value, math.nan),
            lambda: value.astype(chance.choice(kinds)),
            lambda: value.astype(float) * chance.choice((-1, 1e6, 1e8, 1e300)),
            lambda: (
                value + np.asarray(chance.choice((2, -3, 100))).astype(value.dtype)
                if value.dtype != bool
                else ~value
            ),
        ]
    return chance.choice(ways)()


# JSON of data sets.


def _open_json(folder: Path) -> Case:
    Image.new("RGB", (12, 9), "gray").save(folder / "a.png")
    mask = np.zeros((9, 12), bool)
    mask[2:6, 3:9] = True
    sizes = {"height": 9, "width": 12}
    polygon = [[2.0, 2.0, 9.0, 2.0, 9.0, 6.0, 2.0, 6.0]]
    runs = {"size": [9, 12], "counts": [20, 4, 84]}
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": [2, 2, 5, 4], "area": 20, **more}
        for n, more in enumerate(
            ({"segmentation": each, "iscrowd": 0} for each in (encode_mask(mask), polygon, runs)), 1
        )
    ]
    image = {"id": 1, "file_name": "a.png", **sizes}
    categories = [{"id": 1, "name": "thing"}]
    shape: dict[str, Any] = {"label": "a", "group_id": None, "flags": {}, "mask": None}
    shapes = [
        {**shape, "shape_type": "polygon", "points": [[2, 2], [9, 2], [9, 6]]},
        {**shape, "shape_type": "rectangle", "points": [[2, 2], [9, 6]]},
        {**shape, "shape_type": "circle", "points": [[5, 5], [7, 5]]},
        {**shape, "shape_type": "mask", "points": [[1, 1], [3, 3]], "mask": _base64_png()},
    ]
    labelme = {"imagePath": "a.png", "imageData": None, "imageHeight": 9, "imageWidth": 12}
    contents: dict[str, Any] = {
        "coco.json": {"images": [image], "annotations": annotations, "categories": categories},
        "sa_1.json": {"image": {"image_id": 1, **image}, "annotations": annotations},
        "a.json": {"version": "5.5.0", "flags": {}, "shapes": shapes, **labelme},
    }

    def case(chance: Random) -> None:
        name = chance.choice([*contents])
        content = contents[name]
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            content = break_value(content, chance)
        text = json.dumps(content).encode()
        if chance.random() < 0.1:
            text = break_bytes(text, chance)
        for other in contents:
            (folder / other).unlink(missing_ok=True)
        (folder / name).write_bytes(text)
        if name == "coco.json" and chance.random() < 0.5:
            source = open_source(folder / name)
            for item in source.items(lambda listed: True):
                assert item.load().shape[2] == 3
            return
        images = open_annotated_images(folder / name if name == "coco.json" else folder)
        for index in range(len(images)):
            masks = images[index].masks
            assert masks.dtype == bool and masks.shape[1:] == images[index].image.shape[:2]

    return case


def _base64_png() -> str:
    import base64

    buffer = io.BytesIO()
    Image.new("1", (3, 3), 1).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


# Videos.


def _open_videos(folder: Path) -> Case:
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
    files = []
    for suffix, codec in ((".mp4", "mp4v"), (".avi", "MJPG"), (".mkv", "mp4v"), (".webm", "VP80")):
        path = folder / f"clip{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 5, (48, 32))
        for frame in frames:
            writer.write(frame)
        writer.release()
        if path.exists():
            files.append((suffix, path.read_bytes()))
            path.unlink()
    pictures = [Image.fromarray(frame) for frame in frames]
    for kind in ("GIF", "PNG", "WEBP", "AVIF"):
        with contextlib.suppress(Exception):  # formats that this Pillow does not write
            pictures[0].save(
                buffer := io.BytesIO(), kind, save_all=True, append_images=pictures[1:], duration=9
            )
            files.append((f".{kind.lower()}", buffer.getvalue()))

    def case(chance: Random) -> None:
        suffix, content = chance.choice(files)
        if chance.random() < 0.98:
            content = break_bytes(content, chance)
        path = folder / f"case{suffix}"
        path.write_bytes(content)
        with limit_pixels(2**22):
            video = Video(path)
            assert 0 < video.frame_rate < 10_000
            for number, frame in enumerate(video):
                assert frame.dtype == np.uint8 and frame.shape[2] == 3
                if number == 20:  # a header may repeat the same frame
                    return

    return case


# ONNX files.


def _open_onnx(folder: Path) -> Case:
    import onnx
    from onnx import TensorProto as kinds
    from onnx import helper

    def tensor(name: str, shape: list[Any], kind: int = kinds.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def constant(name: str, values: NDArray[Any]) -> Any:
        return onnx.numpy_helper.from_array(values, name)

    # As small as an encoder and a decoder can be: the features are means, the masks constants.
    encoder = helper.make_graph(
        [
            helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[16, 16]),
            helper.make_node("Tile", ["pooled", "times"], ["tiled"]),
            helper.make_node("Slice", ["tiled", "zero", "end", "one"], ["image_embeddings"]),
        ],
        "encoder",
        [tensor("image", [1, 3, 16, 16])],
        [tensor("image_embeddings", [1, 256, 1, 1])],
        [
            constant("times", np.array([1, 86, 1, 1])),
            constant("zero", np.array([0])),
            constant("end", np.array([256])),
            constant("one", np.array([1])),
        ],
    )
    decoder = helper.make_graph(
        [
            helper.make_node("Identity", ["scores"], ["iou_predictions"]),
            helper.make_node("Identity", ["logits"], ["low_res_masks"]),
        ],
        "decoder",
        [
            tensor("image_embeddings", [1, 256, 1, 1]),
            tensor("point_coords", ["batch", "points", 2]),
            tensor("point_labels", ["batch", "points"]),
            tensor("mask_input", ["batch", 1, 4, 4]),
            tensor("has_mask_input", ["batch"]),
        ],
        [tensor("iou_predictions", [1, 4]), tensor("low_res_masks", [1, 4, 4, 4])],
        [
            constant("scores", np.ones((1, 4), np.float32)),
            constant("logits", np.ones((1, 4, 4, 4), np.float32)),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    files = [
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
        for graph in (encoder, decoder)
    ]
    paths = folder / "encoder.onnx", folder / "decoder.onnx"
    image = np.zeros((7, 9, 3), np.uint8)

    def case(chance: Random) -> None:
        broken = chance.randrange(3)
        for number, (path, content) in enumerate(zip(paths, files, strict=True)):
            path.write_bytes(break_bytes(content, chance) if number == broken else content)
        predictor = OnnxPredictor(*paths)
        predictor.set_image(image)
        masks, scores, logits = predictor.predict([[3, 3]], [1])
        assert masks.shape[1:] == image.shape[:2] and len(scores) == len(logits) == len(masks)

    return case


# Command lines.

_VALID = (
    "segment a.png --point 5,5 --checkpoint C --out out",
    "segment a.png --box 1,1,9,8 --mask mask.png --cutout --checkpoint C --out out",
    "everything images --points-per-side 1 --polygons --checkpoint C --out out",
    "annotate images --points-per-side 1 --checkpoint C --out out",
    "annotate coco.json --mode boxes --format coco --checkpoint C --out out",
    "embed images --checkpoint C --out out",
    "view out --out view.html",
    "evaluate coco.json --metrics click --checkpoint C --out out",
    "export --checkpoint C --out out",
    "track clip.mp4 --point 5,5 --propagator flow --checkpoint C --out out",
    "remove a.png --point 5,5 --inpainter opencv --checkpoint C --out out",
    "fill a.png text --box 1,1,9,8 --checkpoint C --out out",
    "text a.png cup. --detector none --checkpoint C --out out",
    "label a.png --classes cup,spoon --classifier none --checkpoint C --out out",
    "search a.png cup --classifier none --checkpoint C --out out",
    "info C",
    "convert C out.pt --dtype float16",
    "finetune coco.json --checkpoint C --epochs 1 --out out",
    "distill embed images --teacher C --teacher-type vit_t --out out",
    "distill scenes --count 1 --size 32 --workers 1 --out out",
    "distill train out --steps 1 --img-size 64 --out out2",
    "distill supervised coco.json --steps 1 --img-size 64 --batch-size 1 --workers 0 --out out",
    "run script.py --anything",
)
_WORDS = (
    *("", "-", "--", "x", "é", "-1", "0", "1", "2", "nan", "inf", "-inf", "0.5", "1e400", "1,2"),
    *("1,2,3", "1,2,3,4", "9,9,1,1", ",", "nan,1", "a.png", "broken.png", "images", "empty", "."),
    *("missing", "coco.json", "notes.txt", "clip.mp4", "mask.png", "hf://", "hf://a/b", "C", "*"),
    *("s3://", "file://x", "memory://x", "a\nb", "a" * 300, "cpu", "cuda:9", "meta", "--help"),
)


def _open_commands(folder: Path) -> Case:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    torch.manual_seed(0)
    sam = MobileSam.untrained("test_efficientnet")
    weights = folder / "weights"
    sam.save_pretrained(weights)
    seeds, place = folder / "seeds", folder / "place"
    _write_inputs(seeds)
    options = [*_all_options()]

    def case(chance: Random) -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(seeds, place)
        words = chance.choice(_VALID).split()
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
            at = chance.randrange(len(words) + 1)
            match chance.randrange(4):
                case 0:
                    del words[at : at + 1]
                case 1:
                    words[at:at] = [chance.choice(_WORDS)]
                case 2:
                    words[at : at + 1] = [chance.choice(_WORDS)]
                case _:
                    words += [chance.choice(options), chance.choice(_WORDS)]
        if words[:1] in (["app"], ["serve"], ["download"]):  # they wait, or need a network
            return
        argv = [str(weights / "model.safetensors") if word == "C" else word for word in words]
        printed, told = io.StringIO(), io.StringIO()
        os.chdir(place)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
            try:
                code = main(argv)
            except SystemExit as exit:  # of the script of `run`
                code = exit.code if isinstance(exit.code, int) else 1
        message = told.getvalue()
        assert code in (0, 1, 2), f"{argv}: exit code {code}"
        assert "unexpected error" not in message, f"{message[-300:]}\n{argv}"
        assert "Traceback" not in message, f"{message[-2000:]}\n{argv}"
        last = message.rstrip().rpartition("\n")[2]
        assert not code or last.startswith("mobile-sam:") or printed.getvalue(), (
            f"{message}\n{argv}"
        )
        if code:
            raise UserError(message)

    return case


def _write_inputs(folder: Path) -> None:
    images = folder / "images"
    images.mkdir(parents=True)
    (folder / "empty").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    for name in ("a.png", "images/b.png"):
        Image.fromarray(pixels).save(folder / name)
    Image.fromarray(pixels[..., 0] // 128 * 255).save(folder / "mask.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("a.png\nimages/b.png\n")
    (folder / "script.py").write_text("import sys\nprint(sys.argv)\n")
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (48, 32))
    for _ in range(2):
        writer.write(np.zeros((32, 48, 3), np.uint8))
    writer.release()
    polygon = [[2, 2, 9, 2, 9, 6, 2, 6]]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 7, 4]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 12}],
        "annotations": [{**annotation, "segmentation": polygon, "area": 28, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "coco.json").write_text(json.dumps(content))


def _all_options() -> Iterator[str]:
    """Yields the options of all commands."""
    from typer.main import get_command

    from mobile_sam_plugin.cli import app

    waiting: list[Any] = [get_command(app)]
    for command in waiting:
        waiting += getattr(command, "commands", {}).values()
        for parameter in command.params:
            yield from (option for option in parameter.opts if option.startswith("--"))


TARGETS = {
    "checkpoints": Target(200_000, _open_checkpoints, (UserError,)),
    "images": Target(200_000, _open_images, (UserError,)),
    "prompts": Target(400_000, _open_prompts, (UserError, TypeError)),
    "json": Target(10_000, _open_json, (UserError, OSError)),
    "videos": Target(10_000, _open_videos, (UserError,)),
    "onnx": Target(10_000, _open_onnx, (UserError,)),
    "commands": Target(10_000, _open_commands, (UserError,), seconds=60, starts_programs=True),
}
"""By name."""
