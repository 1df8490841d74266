"""Removing, filling and replacing objects: the pipeline, its backends, and the commands."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.checkpoint import BUNDLED_FILE
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.inpaint_anything import (
    InpaintAnything,
    grow_mask,
    predict_masks_with_sam,
)
from mobile_sam_plugin.integrations.inpainters import (
    DiffusersInpainter,
    LamaInpainter,
    OpenCVInpainter,
)
from mobile_sam_plugin.integrations.instances import Instances
from mobile_sam_plugin.integrations.video import (
    MaskFolder,
    Video,
    VideoWriter,
    is_video,
    write_video,
)

from ..hub import Client, Hub
from .vocabularies import clip_text_config, save_clip_tokenizer

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

LAMA_SIZE = 64  # of the small file that stands in for LaMa; the real one's is 512


def ramp(height: int, width: int) -> Pixels:
    """Smooth, so that scaling it down and up again changes little, and different everywhere."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (np.stack([x, y, (x + y) / 2], axis=-1) * 200 + 20).round().astype(np.uint8)


def disc(height: int, width: int, x: int, y: int, radius: int) -> Mask:
    rows, columns = np.ogrid[:height, :width]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def random_pixels(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def gray(image: Pixels, mask: Mask, prompt: str) -> Pixels:
    """An inpainter as a user might write one; it also spoils what it was given."""
    image[:] = 128
    mask[:] = True
    return image


@pytest.fixture(scope="module")
def editor(small_sam: MobileSam) -> InpaintAnything:
    return InpaintAnything(small_sam)


# What is chosen


def test_segment_takes_clicks_and_boxes(editor: InpaintAnything, coffee: Pixels) -> None:
    assert editor.predictor is not None
    predictor = SamPredictor(editor.predictor.model)
    predictor.set_image(coffee)
    click = np.array([[300, 130]])

    masks, scores, _ = predictor.predict(click, np.array([1]))
    clicked = editor.segment(coffee, point_coords=click)
    np.testing.assert_array_equal(clicked.masks, masks[[scores.argmax()]])
    assert clicked.scores == pytest.approx([scores.max()])

    box = [170, 10, 430, 300]
    masks, _, _ = predictor.predict(click, np.array([0]), box, multimask_output=False)
    boxed = editor.segment(Image.fromarray(coffee), click, [0], box)
    np.testing.assert_array_equal(boxed.masks, masks)
    rows, columns = np.nonzero(masks[0])
    x0, y0, x1, y1 = boxed.boxes[0]
    assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_segment_takes_text(small_sam: MobileSam, coffee: Pixels) -> None:
    from mobile_sam_plugin.integrations.detectors import Detections

    def detect(image: Pixels, prompts: Any, *_: float) -> Detections:
        assert image.shape == coffee.shape and list(prompts) == ["a cup", "nothing"][: len(prompts)]
        boxes = np.array([[170, 10, 430, 300]], np.float32)[: len(prompts) % 2]
        return Detections(boxes, np.array([0.7], np.float32)[: len(boxes)], ["a cup"][: len(boxes)])

    editor = InpaintAnything(small_sam, detector=detect)
    (found,) = editor.segment(coffee, text="a cup")
    expected = editor.segment(coffee, box=[170, 10, 430, 300])
    np.testing.assert_array_equal(found.masks, expected.masks)
    assert found.labels == ["a cup"]
    with pytest.raises(ValueError, match="nothing in the image matches 'a cup. nothing.'"):
        editor.segment(coffee, text="a cup. nothing.")


def test_small_finds_are_told_of(small_sam: MobileSam, coffee: Pixels) -> None:
    from mobile_sam_plugin.integrations.detectors import Detections

    thresholds = []

    def detect(image: Pixels, prompts: Any, box_threshold: float, _: float) -> Detections:
        thresholds.append(box_threshold)
        boxes = np.array([[170, 10, 430, 300], [250, 60, 350, 200], [20, 20, 60, 60]], np.float32)
        return Detections(boxes, np.array([0.7, 0.6, 0.5], np.float32), ["a cup"] * 3)

    editor = InpaintAnything(small_sam, detector=detect)
    with pytest.warns(UserWarning, match="1 of 3 objects .* smaller than 1 pixels and left out"):
        both = editor.segment(coffee, text="a cup", box_threshold=0.1)  # the last one's is empty
    areas = sorted(np.count_nonzero(both.masks, axis=(1, 2)).tolist())
    assert thresholds == [0.1] and len(areas) == 2 and areas[0] < areas[1]
    with pytest.warns(UserWarning, match="2 of 3 objects that match 'a cup' are smaller than"):
        (large,) = editor.segment(coffee, text="a cup", min_area=areas[1])
    assert np.count_nonzero(large.masks) == areas[1]
    with pytest.raises(UserError, match=f"smaller than {areas[1] + 1} pixels: {areas[1]} at most"):
        editor.segment(coffee, text="a cup", min_area=areas[1] + 1)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "nothing says what to segment"),
        ({"text": "a cup", "box": [1, 2, 3, 4]}, "not both"),
        ({"text": " "}, "empty"),
        ({"point_coords": [[1, np.nan]]}, "NaN"),
        ({"box": [1, 2, 3]}, "box"),
    ],
    ids=str,
)
def test_segment_names_mistakes(
    small_sam: MobileSam, coffee: Pixels, prompt: dict[str, Any], message: str
) -> None:
    editor = InpaintAnything(small_sam, detector=lambda *_: pytest.fail("looked for nothing"))
    with pytest.raises(ValueError, match=message):
        editor.segment(coffee, **prompt)


def test_without_a_model_there_are_only_masks(coffee: Pixels) -> None:
    editor = InpaintAnything(None)
    assert editor.remove(coffee, disc(400, 600, 300, 150, 20)).image.shape == coffee.shape
    with pytest.raises(RuntimeError, match="no model"):
        editor.segment(coffee, [[300, 130]])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_masks_grow_by_the_distance(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    margin = data.draw(st.integers(0, 6))
    pixels = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(pixels).reshape(height, width)
    rows, columns = np.nonzero(mask)
    expected = np.zeros_like(mask)
    for y, x in np.ndindex(height, width):
        expected[y, x] = ((rows - y) ** 2 + (columns - x) ** 2 <= margin**2).any()
    before = mask.copy()
    np.testing.assert_array_equal(grow_mask(mask, margin), expected)
    np.testing.assert_array_equal(mask, before)


# What is done to it


def test_remove_leaves_every_other_pixel_of_a_photograph(
    editor: InpaintAnything, coffee: Pixels
) -> None:
    before = coffee.copy()
    mask = disc(400, 600, 300, 150, 60)
    result = editor.remove(coffee, mask, margin=4)
    np.testing.assert_array_equal(result.mask, disc(400, 600, 300, 150, 64) & result.mask)
    np.testing.assert_array_equal(result.mask, grow_mask(mask, 4))
    np.testing.assert_array_equal(result.image[~result.mask], coffee[~result.mask])
    assert (result.image[mask] != coffee[mask]).any(axis=-1).mean() > 0.9
    np.testing.assert_array_equal(result.original, before)
    np.testing.assert_array_equal(coffee, before)


def test_remove_gives_the_background_back(editor: InpaintAnything) -> None:
    background = ramp(120, 160)
    image = background.copy()
    mask = disc(120, 160, 70, 60, 20)
    image[mask] = (255, 0, 0)
    result = editor.remove(image, mask, margin=0).image
    assert np.abs(result.astype(int) - background)[mask].mean() < 10
    assert np.abs(image.astype(int) - background)[mask].mean() > 100


def test_remove_works_on_12_megapixels(editor: InpaintAnything) -> None:
    image = cv2.resize(random_pixels(30, 40, 3), (4000, 3000), interpolation=cv2.INTER_CUBIC)
    mask = disc(3000, 4000, 3900, 200, 350)  # reaches over two edges
    result = editor.remove(image, mask, margin=10)
    np.testing.assert_array_equal(result.image[~result.mask], image[~result.mask])
    assert (result.image[mask] != image[mask]).any(axis=-1).mean() > 0.9


@pytest.mark.parametrize("place", [(60, 50), (3, 2), (117, 88)])
def test_opencv_on_the_surroundings_is_opencv_on_the_image(place: tuple[int, int]) -> None:
    image, mask = random_pixels(90, 120, 3), disc(90, 120, *place, 12)
    expected = cv2.inpaint(image, mask.astype(np.uint8), 3.0, cv2.INPAINT_TELEA)
    np.testing.assert_array_equal(OpenCVInpainter(3.0)(image, mask), expected)


def test_fill_and_replace_keep_the_right_pixels(small_sam: MobileSam, coffee: Pixels) -> None:
    editor = InpaintAnything(small_sam, inpainter=gray)
    before = coffee.copy()
    mask = disc(400, 600, 300, 150, 60)
    grown = grow_mask(mask, 5)

    filled = editor.fill(coffee, mask.astype(np.uint8) * 255, "a teapot", margin=5)
    np.testing.assert_array_equal(filled.mask, grown)
    np.testing.assert_array_equal(filled.image[~grown], coffee[~grown])
    assert (filled.image[grown] == 128).all()

    replaced = editor.replace(coffee, mask, "on the moon", margin=5)
    np.testing.assert_array_equal(replaced.mask, ~grown)
    np.testing.assert_array_equal(replaced.image[grown], coffee[grown])
    assert (replaced.image[~grown] == 128).all()
    np.testing.assert_array_equal(coffee, before)


def test_all_objects_are_done_at_once(editor: InpaintAnything, coffee: Pixels) -> None:
    discs = np.stack([disc(400, 600, x, 150, 20) for x in (100, 300)])
    objects = Instances(
        (400, 600),
        np.array([[80, 130, 121, 171], [280, 130, 321, 171]], np.float32),
        discs,
        np.ones(2, np.float32),
        ["cup", "spoon"],
    )
    result = editor.remove(coffee, objects, margin=0)
    np.testing.assert_array_equal(result.mask, discs[0] | discs[1])
    assert result.objects is objects
    assert [category["name"] for category in result.to_coco()["categories"]] == ["cup", "spoon"]
    assert len(result.to_supervision()) == 2


def test_results_are_saved(editor: InpaintAnything, coffee: Pixels, tmp_path: Path) -> None:
    mask = disc(400, 600, 300, 150, 60)
    result = editor.remove(coffee, mask)
    paths = result.save(tmp_path / "out")
    assert set(paths) == set((tmp_path / "out").iterdir())
    for path, expected in (
        (paths[0], result.image),
        (paths[1], result.mask * np.uint8(255)),
        (tmp_path / "out" / "mask_000.png", mask * np.uint8(255)),
        (tmp_path / "out" / "overlay.png", result.overlay()),
    ):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    assert json.loads((tmp_path / "out" / "instances.json").read_text()) == result.to_coco()


@pytest.mark.parametrize("kind", ["path", "pil", "array"])
def test_transparency_and_profile_are_kept(tmp_path: Path, kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.full((60, 80, 4), 200, np.uint8)
    pixels[:, 40:, 3] = 0
    logo = Image.fromarray(pixels)
    logo.info["icc_profile"] = profile
    logo.save(tmp_path / "logo.png", icc_profile=profile)
    source: Any = {"path": tmp_path / "logo.png", "pil": logo, "array": pixels}[kind]
    left, right = disc(60, 80, 15, 20, 6), disc(60, 80, 65, 20, 6)
    editor = InpaintAnything(None, gray)
    # What is behind an object is as transparent as what is around it; what is painted is not.
    for result, expected in (
        (InpaintAnything(None).remove(source, left | right, margin=0), 0),
        (editor.fill(source, right, "a cup", margin=0), 255),
    ):
        saved = Image.open(result.save(tmp_path / "out")[0])
        assert saved.mode == "RGBA"
        assert saved.info.get("icc_profile") == (None if kind == "array" else profile)
        alpha = np.asarray(saved)[..., 3]
        np.testing.assert_array_equal(alpha[~right], pixels[~right, 3])  # 200 also behind the left
        assert (alpha[right] == expected).all()
    opaque = editor.fill(pixels[..., :3], right, "a cup").save(tmp_path / "opaque")[0]
    assert Image.open(opaque).mode == "RGB"


SMALL = np.zeros((6, 8, 3), dtype=np.uint8)
SPOT = np.eye(6, 8, dtype=bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.remove(SMALL, np.zeros((6, 8))), "mask is empty"),
        (lambda e: e.remove(SMALL, np.ones((6, 8))), "cover the whole image"),
        (lambda e: e.replace(SMALL, SPOT, "a beach", margin=9), "cover the whole image"),
        (lambda e: e.remove(SMALL, np.ones((8, 6))), r"\(6, 8\) of the image, not \(8, 6\)"),
        (lambda e: e.remove(SMALL, np.ones((1, 6, 8))), r"\(H, W\), not \(1, 6, 8\)"),
        (lambda e: e.remove(SMALL, SPOT, margin=-1), "0 pixels or more, not -1"),
        (lambda e: e.fill(SMALL, SPOT, ""), "prompt is empty"),
        (lambda e: e.replace(SMALL, SPOT, "\t "), "prompt is empty"),
        (lambda e: e.remove("missing.png", SPOT), "missing.png"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    editor = InpaintAnything(None, inpainter=gray)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(editor)


@pytest.mark.parametrize("returned", [SMALL[:3], SMALL.astype(np.float32), None])
def test_an_inpainter_that_returns_no_such_image_is_named(returned: Any) -> None:
    class Broken:
        def __call__(self, image: Pixels, mask: Mask, prompt: str) -> Pixels:
            return returned

    with pytest.raises(ValueError, match=r"Broken returned .* expected uint8 of the shape"):
        InpaintAnything(None, Broken()).remove(SMALL, SPOT, 0)


# Video


def clip() -> tuple[list[Pixels], list[Mask]]:
    """A red disc that crosses a ramp and is hidden in the third frame."""
    frames, masks = [], []
    for index in range(5):
        mask = disc(48, 64, 10 + 10 * index, 24, 6)
        frame = ramp(48, 64)
        if index == 2:
            mask[:] = False
        frame[mask] = (255, 0, 0)
        frames.append(frame)
        masks.append(mask)
    return frames, masks


def test_remove_takes_a_video_frame_by_frame(editor: InpaintAnything) -> None:
    frames, masks = clip()
    pulled = []

    def stream() -> Iterator[Pixels]:
        for index, frame in enumerate(frames):
            pulled.append(index)
            yield frame

    selections = [None if not mask.any() else mask for mask in masks]
    for index, painted in enumerate(editor.remove_video(stream(), selections, margin=2)):
        assert pulled == list(range(index + 1))  # no frame is held or read ahead
        grown = grow_mask(masks[index], 2)
        np.testing.assert_array_equal(painted[~grown], frames[index][~grown])
        assert np.abs(painted.astype(int) - ramp(48, 64)).mean() < 1
    assert len(pulled) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames, masks: masks.pop(), "masks end after 4, and the frames go on"),
        (lambda frames, masks: frames.pop(), "frames end after 4, and the masks go on"),
        (
            lambda frames, masks: frames.__setitem__(3, frames[3][:40]),
            "frame 3 of 'stream' has 64 x 40 pixels",
        ),
        (lambda frames, masks: masks.__setitem__(1, masks[1][:40]), r"not \(40, 64\)"),
    ],
)
def test_videos_that_do_not_fit_are_named(
    editor: InpaintAnything, change: Any, message: str
) -> None:
    frames, masks = clip()
    change(frames, masks)
    with pytest.raises(ValueError, match=message):
        list(editor.remove_video(frames, masks))


def test_remove_takes_video_files(editor: InpaintAnything, tmp_path: Path) -> None:
    frames, masks = clip()
    write_video(tmp_path / "in.mp4", frames, 12.5)
    video = Video(tmp_path / "in.mp4")
    assert (video.length, video.frame_rate) == (5, 12.5)
    painted = list(editor.remove_video(tmp_path / "in.mp4", masks, margin=5))
    for before, after, mask in zip(video, painted, masks, strict=True):
        assert np.abs(before.astype(int) - after)[~grow_mask(mask, 5)].max(initial=0) == 0
        assert np.abs(after.astype(int) - ramp(48, 64)).mean() < 6  # the codec's share

    def break_off() -> Iterator[Pixels]:
        yield from painted[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "out.mp4", break_off(), 12.5)
    for path, rest, message in (("out.mp4", [], "no frame"), ("out.gif", painted, "end in .mp4")):
        with pytest.raises(ValueError, match=message):
            write_video(tmp_path / path, rest, 12.5)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


# LaMa


def write_lama(
    path: Path, painted: str = "hole", inputs: tuple[str, str] = ("image", "mask")
) -> Path:
    """An ONNX file with LaMa's inputs, output and ranges.

    What it paints: ``"hole"``, the hole in (51, 102, 153) and the rest as it is; ``"image"``, the
    image with the hole as it is; ``"nan"``.
    """
    image, mask = inputs
    size = LAMA_SIZE
    number = onnx.TensorProto.FLOAT
    color = np.array([51, 102, 153], np.float32).reshape(1, 3, 1, 1) / 255
    constants = {
        "one": np.ones(1),
        "full": np.full(1, 255),
        "color": color,
        "nan": np.full(1, np.nan),
    }
    make_node = onnx.helper.make_node
    nodes = {
        "hole": [
            make_node("Sub", ["one", mask], ["rest"]),
            make_node("Mul", [image, "rest"], ["kept"]),
            make_node("Mul", ["color", mask], ["filled"]),
            make_node("Add", ["kept", "filled"], ["both"]),
        ],
        "image": [
            make_node("Mul", [mask, "one"], ["unused"]),
            make_node("Mul", [image, "one"], ["both"]),
        ],
        "nan": [
            make_node("Mul", [mask, "nan"], ["hidden"]),
            make_node("Add", [image, "hidden"], ["both"]),
        ],
    }[painted]
    graph = onnx.helper.make_graph(
        [*nodes, make_node("Mul", ["both", "full"], ["output"])],
        "lama",
        [
            onnx.helper.make_tensor_value_info(image, number, ["batch", 3, size, size]),
            onnx.helper.make_tensor_value_info(mask, number, ["batch", 1, size, size]),
        ],
        [onnx.helper.make_tensor_value_info("output", number, ["batch", 3, size, size])],
        [
            onnx.numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in constants.items()
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def lama(tmp_path_factory: pytest.TempPathFactory) -> LamaInpainter:
    return LamaInpainter(write_lama(tmp_path_factory.mktemp("lama") / "lama.onnx"))


@pytest.mark.parametrize(
    ("size", "hole"),
    [
        ((300, 400), (200, 150, 12)),  # fits at full resolution
        ((300, 400), (2, 298, 12)),  # in a corner
        ((300, 400), (200, 150, 90)),  # must be scaled down
        ((40, 50), (20, 20, 8)),  # the image is smaller than the model
        ((30, 900), (500, 15, 9)),  # and thinner
        ((900, 30), (15, 500, 100)),
        ((1, 70), (30, 0, 2)),
    ],
    ids=str,
)
def test_lama_paints_the_hole_and_nothing_else(
    lama: LamaInpainter, size: tuple[int, int], hole: tuple[int, int, int]
) -> None:
    image, mask = random_pixels(*size, 3), disc(*size, *hole)
    result = InpaintAnything(None, lama).remove(image, mask, margin=0).image
    np.testing.assert_array_equal(result[~mask], image[~mask])
    # Where the model's size is less than the hole's, the edge is as sharp as the model's pixels.
    inside = ~grow_mask(~mask, 12 if hole[2] > 20 else 0)
    assert inside.any() and (result[inside] == (51, 102, 153)).all()


def test_lama_sees_and_is_pasted_at_the_right_place(tmp_path: Path) -> None:
    lama = LamaInpainter(write_lama(tmp_path / "lama.onnx", "image"))
    image = random_pixels(300, 400, 3)
    for place in ((200, 150), (2, 298), (399, 0)):
        np.testing.assert_array_equal(lama(image, disc(300, 400, *place, 12)), image)
    smooth = ramp(300, 400)
    for radius in (90, 170):
        scaled = lama(smooth, disc(300, 400, 180, 140, radius))
        assert np.abs(scaled.astype(int) - smooth).max() <= 4


def test_lama_names_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for path, message in (
        (tmp_path / "missing.onnx", "no checkpoint at"),
        (tmp_path / "text.onnx", "no ONNX model that onnxruntime can read"),
        (BUNDLED_FILE, "no ONNX model that onnxruntime can read"),
        (write_lama(tmp_path / "other.onnx", inputs=("input", "hole")), "expected image"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            LamaInpainter(path)


def test_lama_takes_no_prompt_and_returns_no_nonsense(lama: LamaInpainter, tmp_path: Path) -> None:
    for inpainter in (lama, OpenCVInpainter()):
        with pytest.raises(ValueError, match="no prompt, so not 'a cat'"):
            InpaintAnything(None, inpainter).fill(SMALL, SPOT, "a cat")
    broken = LamaInpainter(write_lama(tmp_path / "nan.onnx", "nan"))
    with pytest.raises(ValueError, match="NaN"):
        InpaintAnything(None, broken).remove(SMALL, SPOT, 0)


def test_lama_without_cuda_says_so(lama: LamaInpainter, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has CUDA here")
    with pytest.warns(UserWarning, match="install onnxruntime-gpu"):
        LamaInpainter(write_lama(tmp_path / "lama.onnx"), device="cuda")


# diffusers


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion's inpainting pipeline, tiny and untrained: 64 x 64, 16 tokens, letters."""
    import diffusers
    import transformers

    folder = tmp_path_factory.mktemp("diffusers")
    save_clip_tokenizer(folder / "tokenizer", max_length=16)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionInpaintPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**clip_text_config(16))
        ),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=32,
            in_channels=9,  # latents, the mask, and latents of the image without the hole
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="module")
def painter(pipeline_folder: Path) -> DiffusersInpainter:
    return DiffusersInpainter(pipeline_folder, seed=0, num_inference_steps=2)


@pytest.mark.parametrize("size", [(150, 200), (40, 90)])
def test_diffusers_fills_and_replaces(painter: DiffusersInpainter, size: tuple[int, int]) -> None:
    editor = InpaintAnything(None, painter)
    image, mask = random_pixels(*size, 3), disc(*size, 40, 20, 12)
    grown = grow_mask(mask, 3)

    filled = editor.fill(image, mask, "a cat", margin=3).image
    np.testing.assert_array_equal(filled[~grown], image[~grown])
    assert (filled[grown] != image[grown]).any(axis=-1).mean() > 0.9

    replaced = editor.replace(image, mask, "a beach", margin=3).image
    np.testing.assert_array_equal(replaced[grown], image[grown])
    assert (replaced[~grown] != image[~grown]).any(axis=-1).mean() > 0.9


def test_diffusers_is_asked_at_its_size_for_the_prompt(pipeline_folder: Path) -> None:
    import diffusers

    calls = []

    class Pipeline(diffusers.StableDiffusionInpaintPipeline):
        def __call__(self, **arguments: Any) -> Any:
            calls.append(arguments)
            return super().__call__(**arguments)

    painter = DiffusersInpainter(
        Pipeline.from_pretrained(pipeline_folder), seed=3, num_inference_steps=1, guidance_scale=2.0
    )
    image, mask = random_pixels(150, 200, 3), disc(150, 200, 100, 60, 12)
    painter(image, mask, "a cat")
    (call,) = calls
    assert call["prompt"] == "a cat" and call["guidance_scale"] == 2.0
    assert call["height"] == call["width"] == 64
    np.testing.assert_array_equal(np.asarray(call["image"]), image[29:93, 69:133])
    np.testing.assert_array_equal(np.asarray(call["mask_image"]) > 0, mask[29:93, 69:133])


def test_diffusers_repeats_itself_with_a_seed(pipeline_folder: Path) -> None:
    image, mask = random_pixels(64, 64, 3), disc(64, 64, 30, 30, 12)
    options: dict[str, Any] = {"num_inference_steps": 2}
    first, second, other = (
        DiffusersInpainter(pipeline_folder, seed=seed, **options)(image, mask, "a cat")
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first[mask] != other[mask]).any()


def test_diffusers_names_mistakes(painter: DiffusersInpainter, tmp_path: Path) -> None:
    editor = InpaintAnything(None, painter)
    with pytest.raises(ValueError, match="it has 17 tokens, the model reads 16"):
        editor.fill(SMALL, SPOT, "a" * 15)
    editor.fill(SMALL, SPOT, "a" * 14)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no pipeline of diffusers, no model_index.json"):
        DiffusersInpainter(tmp_path / "empty")
    with pytest.raises(ValueError, match="missing"):
        DiffusersInpainter(tmp_path / "missing")


def test_diffusers_hands_on_what_the_safety_checker_holds_back(pipeline_folder: Path) -> None:
    import diffusers

    class Pipeline(diffusers.StableDiffusionInpaintPipeline):
        def run_safety_checker(self, image: Any, *_: Any) -> Any:
            return image * 0, [True]

    painter = DiffusersInpainter(Pipeline.from_pretrained(pipeline_folder), num_inference_steps=1)
    with pytest.raises(ValueError, match="safety checker"):
        painter(SMALL, SPOT, "a cat")


@pytest.mark.parametrize(
    ("library", "load"),
    [
        ("onnxruntime", LamaInpainter),
        ("diffusers", DiffusersInpainter),
        ("transformers", DiffusersInpainter),
    ],
)
def test_the_extra_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, library: str, load: Callable[[], Any]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'{library} .* "mobile-sam-plugin\[inpaint\]"'):
        load()


# The default models, from a Hub


def painted_by_defaults() -> list[Pixels]:
    """The middle of a hole that each painted."""
    image, mask = random_pixels(60, 60, 3), disc(60, 60, 30, 30, 9)
    diffusers = DiffusersInpainter(seed=0, num_inference_steps=1)
    return [LamaInpainter()(image, mask)[30, 30], diffusers(image, mask, "a cat")[30, 30]]


def use_the_hub() -> tuple[list[Pixels], list[str]]:
    """What the default models paint, and what is said of names that the Hub does not know."""
    messages = []
    for load in (LamaInpainter, DiffusersInpainter):
        with pytest.raises(FileNotFoundError) as error:
            load("hf://nobody/nothing/lama.onnx" if load is LamaInpainter else "nobody/nothing")
        messages.append(str(error.value))
    return painted_by_defaults(), messages


def test_the_default_models_come_from_the_hub(pipeline_folder: Path, tmp_path: Path) -> None:
    pipeline = {
        path.relative_to(pipeline_folder).as_posix(): path.read_bytes()
        for path in pipeline_folder.rglob("*")
        if path.is_file()
    }
    with Hub() as hub:
        model = write_lama(tmp_path / "lama.onnx").read_bytes()
        hub.commit("Carve/LaMa-ONNX", {"lama_fp32.onnx": model})
        hub.commit("stable-diffusion-v1-5/stable-diffusion-inpainting", pipeline)
        (by_lama, by_diffusion), messages = Client(hub.url, tmp_path / "hf_home")(use_the_hub)
        assert tuple(by_lama) == (51, 102, 153)
        painter = DiffusersInpainter(pipeline_folder, seed=0, num_inference_steps=1)
        image, mask = random_pixels(60, 60, 3), disc(60, 60, 30, 30, 9)
        np.testing.assert_array_equal(by_diffusion, painter(image, mask, "a cat")[30, 30])
        for message in messages:
            assert "no repository 'nobody/nothing' on the Hub" in message


# The commands


BUNDLED = ("--checkpoint", "bundled", "--device", "cpu")


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
    bundled_sam: MobileSam, coffee: Pixels, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    editor = InpaintAnything(bundled_sam)
    click = ["--point", "300,130", "--point", "20,20,0", "--margin", "3"]
    assert main(["remove", str(files / "coffee.png"), *click, "--out", str(files), *BUNDLED]) == 0
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
    assert main([*arguments, "--inpainter", "lama", "--model", lama]) == 0
    painted = np.asarray(Image.open(files / "coffee" / "inpainted.png"))
    assert (painted[150, 300] == (51, 102, 153)).all()
    options = ["--model", str(pipeline_folder), "--steps", "1"]
    assert main([*arguments, "--inpainter", "diffusers", *options]) == 0
    assert (np.asarray(Image.open(files / "coffee" / "inpainted.png")) != painted).any()


def test_fill_and_replace_write_what_the_pipeline_makes(
    coffee: Pixels, files: Path, pipeline_folder: Path
) -> None:
    mask = disc(400, 600, 300, 150, 40)
    painter = DiffusersInpainter(pipeline_folder, seed=5, num_inference_steps=2)
    for command in ("fill", "replace"):
        arguments = [str(files / "coffee.png"), "a teapot", "--mask", str(files / "mask.png")]
        arguments += ["--margin", "2", "--model", str(pipeline_folder), "--steps", "2"]
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
    assert "2 of 5 frames have no mask and are left as they are" in capsys.readouterr().err
    red = [bool(frame[24, 10 + 10 * index, 1] < 60) for index, frame in enumerate(Video(target))]
    assert red == [True, False, False, False, False]  # in frame 2 nothing is to be seen

    (tmp_path / "masks" / "00009.png").write_bytes((tmp_path / "masks" / "00001.png").read_bytes())
    before = target.read_bytes()
    assert main([*arguments, "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "'00009.png' is of frame 9, and 'clip' has 5 frames" in capsys.readouterr().err
    assert target.read_bytes() == before


def mask_folder(folder: Path, names: list[str]) -> Path:
    """Masks of as many pixels as their place in the list, from 1."""
    folder.mkdir(parents=True)
    for count, name in enumerate(names, start=1):
        mask = np.zeros((8, 8), np.uint8)
        mask.flat[:count] = 255
        Image.fromarray(mask).save(folder / name)
    return folder


def test_masks_belong_to_the_frames_of_their_numbers(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(1, 5):
        Image.fromarray(random_pixels(8, 8, 3)).save(frames / f"frame_{index:04}.png")
    stream, folder = Video([random_pixels(8, 8, 3)] * 12), Video(frames)

    def pair(names: list[str], video: Video, place: str) -> dict[int, int]:
        masks = MaskFolder(mask_folder(tmp_path / place, names), video)
        assert len(masks) == len(names)
        return {index: int(masks[index].sum()) for index in masks}

    assert pair(["00002.png", "00010.png"], stream, "a") == {2: 1, 10: 2}
    assert pair(["take2_3.png", "take2_11.png"], stream, "b") == {3: 1, 11: 2}
    # As the frames are called, unless a tracker numbered them.
    names = ["frame_0002.png", "frame_0004.png"]
    assert pair(names, folder, "c") == {1: 1, 3: 2}
    for index in range(1, 5):
        (frames / f"frame_{index:04}.png").rename(frames / f"{index:05}.png")
    folder = Video(frames)
    assert pair(["00001.png", "00003.png"], folder, "d") == {0: 1, 2: 2}
    (tmp_path / "tracked").mkdir()
    (tmp_path / "tracked" / "run.json").write_text("{}")
    assert pair(["00001.png", "00003.png"], folder, "tracked/masks") == {1: 1, 3: 2}

    for names, message in (
        (["mask.png"], "no number in its name"),
        (["1.png", "01.png"], "'01.png' and '1.png' are both masks of frame 1"),
        (["0.png", "7.png"], "'7.png' is of frame 7, and 'frames' has 4 frames"),
    ):
        with pytest.raises(UserError, match=message):
            pair(names, folder, names[0])


def test_masks_of_frames_that_a_video_does_not_reach_are_told_of(editor: InpaintAnything) -> None:
    frames, masks = clip()
    with pytest.warns(UserWarning, match="1 of 2 masks are left out.*ends before.*, after 5"):
        painted = list(editor.remove_video(frames, {3: masks[3], 5: masks[3]}, margin=2))
    np.testing.assert_array_equal(painted[1], frames[1])
    assert np.abs(painted[3].astype(int) - ramp(48, 64)).mean() < 1


def test_frames_that_are_covered_whole_do_not_end_a_video(editor: InpaintAnything) -> None:
    frames, masks = clip()
    masks[3][:] = True
    with pytest.warns(UserWarning, match="1 of 5 frames are left as they are.*cover them whole"):
        painted = list(editor.remove_video(frames, masks, margin=2))
    np.testing.assert_array_equal(painted[3], frames[3])
    assert np.abs(painted[4].astype(int) - ramp(48, 64)).mean() < 1


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("jpeg85.jpg", lambda mask: Image.fromarray(mask)),
        ("0_and_1.png", lambda mask: Image.fromarray(mask // 255)),
        ("ids.png", lambda mask: Image.fromarray((mask > 0).astype(np.uint16) * 300)),
        ("alpha.png", lambda mask: Image.fromarray(np.dstack([mask * 0] * 3 + [mask]))),
    ],
)
def test_masks_are_what_a_person_means(tmp_path: Path, name: str, image: Any) -> None:
    mask = np.zeros((120, 160), np.uint8)
    mask[40:80, 64:112] = 255
    options = {"quality": 85} if name.endswith("jpg") else {}
    image(mask).save(tmp_path / name, **options)
    Image.fromarray(random_pixels(120, 160, 3)).save(tmp_path / "photo.png")
    arguments = ["remove", str(tmp_path / "photo.png"), "--mask", str(tmp_path / name)]
    assert main([*arguments, "--margin", "0", "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "photo" / "inpainted_mask.png") as painted:
        np.testing.assert_array_equal(np.asarray(painted), mask)


def save_animation(path: Path, frames: list[Pixels], duration: int) -> Path:
    first, *others = map(Image.fromarray, frames)
    options: Any = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=duration, **options)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".bin"])
def test_animations_are_videos(tmp_path: Path, suffix: str) -> None:
    """Also by a name that says nothing; of one frame, they are images."""
    frames, masks = clip()
    path = save_animation(tmp_path / f"a{suffix.replace('bin', 'gif')}", frames, 40)
    path = path.rename(tmp_path / f"clip{suffix}")
    assert is_video(path)
    video = Video(path)
    assert (video.name, video.length, video.frame_rate) == ("clip", 5, 25)
    for read, frame in zip(video, frames, strict=True):
        assert np.abs(read.astype(int) - frame).mean() < 4  # a palette's share
    folder = mask_folder(tmp_path / "masks", [])
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{index}.png")
    options = "--device", "cpu", "--out", str(tmp_path / "out")
    assert main(["remove", str(path), "--mask", str(folder), *options]) == 0
    written = Video(tmp_path / "out" / "clip" / "inpainted.mp4")
    assert written.frame_rate == 25
    for painted in written:
        assert np.abs(painted.astype(int) - ramp(48, 64)).mean() < 6

    still = save_animation(tmp_path / f"still{suffix.replace('bin', 'gif')}", frames[:1], 40)
    assert not is_video(still)
    assert main(["remove", str(still), "--mask", str(folder / "0.png"), *options]) == 0
    assert (tmp_path / "out" / "still" / "inpainted.png").exists()


def test_an_animation_of_uneven_times_is_told_of(tmp_path: Path) -> None:
    frames, _ = clip()
    first, *others = map(Image.fromarray, frames)
    times = [40, 40, 200, 40, 80]
    first.save(tmp_path / "clip.gif", save_all=True, append_images=others, duration=times)
    with pytest.warns(UserWarning, match="shown for 40 to 200 ms"):
        assert Video(tmp_path / "clip.gif").frame_rate == pytest.approx(5 / 0.4)


# Files of videos


@pytest.mark.parametrize("size", [(120, 160), (119, 159), (120, 159), (3, 500), (2, 1), (1, 1)])
def test_videos_have_the_size_that_went_in(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = [np.full((*size, 3), 40 * index + 40, np.uint8) for index in range(3)]
    for frame in frames:
        frame[-1:], frame[:, -1:] = 250, 250  # what OpenCV's writer would drop
    write_video(tmp_path / "clip.mp4", frames, 25)
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    for frame in frames:
        read, seen = capture.read()
        assert read and seen.shape == frame.shape
        assert np.abs(seen[-1].astype(int) - 250).max() < 32
        assert np.abs(seen[:, -1].astype(int) - 250).max() < 32
        if min(size) > 100:
            assert np.abs(seen[:-4, :-4].astype(int) - frame[:-4, :-4]).mean() < 3
    assert not capture.read()[0]


@pytest.mark.parametrize("rate", [25, 12.5, 59.94, 30000 / 1001, 119.988, 0.1])
def test_frame_rates_are_kept(
    tmp_path: Path, rate: float, recwarn: pytest.WarningsRecorder
) -> None:
    write_video(tmp_path / "clip.mp4", clip()[0], rate)
    assert Video(tmp_path / "clip.mp4").frame_rate == pytest.approx(rate, rel=1e-9)
    assert not recwarn.list


@pytest.mark.parametrize("rate", [66.667, 72.727, 211.222, 143.913, 1e-9])
def test_the_nearest_frame_rate_is_told_of(tmp_path: Path, rate: float) -> None:
    """MPEG-4 holds fractions of numbers up to 65535."""
    with pytest.warns(UserWarning, match="cannot hold .* frames a second") as told:
        write_video(tmp_path / "clip.mp4", clip()[0], rate)
    assert len(told) == 1
    if rate > 1:
        assert Video(tmp_path / "clip.mp4").frame_rate == pytest.approx(rate, rel=1e-6)
    assert len([*Video(tmp_path / "clip.mp4")]) == 5


@pytest.mark.parametrize("rate", [0, -5, np.nan, np.inf])
def test_no_rate_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(UserError, match="frame rate must be a positive number"):
        write_video(tmp_path / "clip.mp4", clip()[0], rate)


def test_a_rate_that_makes_no_sense_ends_no_run(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", clip()[0], 1200)
    with pytest.warns(UserWarning, match=r"no frame rate that makes sense \(1200\).* 25 frames"):
        assert Video(tmp_path / "clip.mp4").frame_rate == 25


def test_a_frame_of_another_size_is_no_frame_less(tmp_path: Path) -> None:
    frames = clip()[0]
    frames[2] = frames[2][:, :60]
    (tmp_path / "clip.mp4").write_bytes(b"before")
    with pytest.raises(UserError, match="frame 2 has 60 x 48 pixels, those before have 64 x 48"):
        write_video(tmp_path / "clip.mp4", frames, 25)
    assert (tmp_path / "clip.mp4").read_bytes() == b"before"
    assert len([*tmp_path.iterdir()]) == 1


def test_a_full_disk_is_told_of_and_keeps_what_was_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk:1"  # what stands before a colon is no protocol
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        write_video(disk / "clip.mp4", clip()[0], 25)
        before = (disk / "clip.mp4").read_bytes()
        noise = np.random.default_rng(0).integers(0, 256, (30, 240, 320, 3), dtype=np.uint8)
        # Full in the middle, and when what is left in buffers is written at the end.
        for frames in (noise, noise[:2]):
            with pytest.raises(OSError, match="No space left") as error:
                write_video(disk / "clip.mp4", frames, 25)
            assert error.value.filename == str(disk / "clip.mp4")
            assert (disk / "clip.mp4").read_bytes() == before
            assert [*disk.iterdir()] == [disk / "clip.mp4"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_videos_need_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which is asked for before anything is painted."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "mobile-sam-plugin\[video\]"'):
        write_video(tmp_path / "clip.mp4", (pytest.fail("painted") for _ in "a"), 25)


def test_two_runs_may_write_one_file(tmp_path: Path) -> None:
    frames = clip()[0]
    first, second = (VideoWriter(tmp_path / "clip.mp4", 25) for _ in range(2))
    for frame in frames:
        first.write(frame)
        second.write(frame)
    second.close()
    first.close()
    assert len([*Video(tmp_path / "clip.mp4")]) == 5
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize("suffix", [".mkv", ".m4v", ""])
def test_videos_and_images_of_any_suffix(tmp_path: Path, suffix: str) -> None:
    """Told apart by what they hold where the suffix is no image's."""
    frames, masks = clip()
    write_video(tmp_path / "clip.mp4", frames, 12.5)
    video = (tmp_path / "clip.mp4").rename(tmp_path / f"street{suffix}")
    (tmp_path / "masks").mkdir()
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    picture = tmp_path / f"picture{suffix}"
    Image.fromarray(frames[0]).save(picture, format="png")
    options = "--device", "cpu", "--out", str(tmp_path / "out")
    assert main(["remove", str(video), "--mask", str(tmp_path / "masks"), *options]) == 0
    assert len([*Video(tmp_path / "out" / "street" / "inpainted.mp4")]) == 5
    assert (
        main(["remove", str(picture), "--mask", str(tmp_path / "masks" / "0.png"), *options]) == 0
    )
    assert (tmp_path / "out" / "picture" / "inpainted.png").exists()


def test_remove_follows_an_object_through_a_video(tmp_path: Path) -> None:
    frames, _ = clip()
    write_video(tmp_path / "clip.mp4", [np.tile(frames[0], (3, 3, 1)), *[ramp(144, 192)] * 2], 10)
    arguments = ["remove", str(tmp_path / "clip.mp4"), "--box", "3,17,17,31", "--margin", "2"]
    assert main([*arguments, "--out", str(tmp_path), *BUNDLED]) == 0
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
        (["remove", "coffee.png", "--mask", "mask.png", "--model", "m"], "OpenCV has no weights"),
        (["remove", "coffee.png", "--mask", "white.png"], "cover the whole image"),
        (["remove", "coffee.png", "--mask", "mask.png", "--max-pixels", "9"], "too large"),
        (["fill", "coffee.png", "x", "--mask", "mask.png", "--max-pixels", "9"], "too large"),
        (
            ["remove", "mask.png", "--mask", "mask.png", "--device", "warp", "--inpainter", "lama"],
            "'warp'",
        ),
        (["remove", "coffee.png", "--text", "a cup", "--detector", "empty"], "empty"),
        (["fill", "coffee.png", " ", "--point", "1,2"], "prompt is empty"),
        (["fill", "coffee.png", "a cat", "--mask", "mask.png", "--model", "empty"], "model_index"),
        (["replace", "coffee.png", "a cat", "--mask", "mask.png", "--steps", "0"], "--steps"),
    ],
    ids=str,
)
def test_commands_name_mistakes(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # set by --max-pixels
    assert main([*arguments, "--checkpoint", "bundled", "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mobile-sam: ") and captured.err.count("\n") == 1, captured.err
    assert words in captured.err and captured.out == ""
    assert not (files / "out").exists()


# The original project


def test_predict_masks_with_sam_is_that_of_the_project(coffee: Pixels) -> None:
    """``remove_anything.py``: three masks to 0 and 255, dilated, painted one by one."""
    masks, scores, logits = predict_masks_with_sam(
        coffee,
        [[300.0, 130.0]],
        [1],
        model_type="vit_t",
        ckpt_p=str(BUNDLED_FILE),
        device="cpu",
    )
    assert masks.shape == (3, 400, 600) and scores.shape == (3,) and logits.shape == (3, 256, 256)
    gray = masks[0].astype(np.uint8) * 255
    dilated = cv2.dilate(gray, np.ones((15, 15), np.uint8), iterations=1)
    assert InpaintAnything(None).remove(coffee, dilated, margin=0).image.shape == coffee.shape
    with pytest.raises(ValueError, match="no model type 'sam3', only .*vit_t"):
        predict_masks_with_sam(coffee, [[1, 2]], [1], "sam3", "sam3.pt", "cpu")
