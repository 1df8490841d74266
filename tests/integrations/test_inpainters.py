"""OpenCV, LaMa and diffusers as inpainters."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mobile_sam_plugin.checkpoint import BUNDLED_FILE
from mobile_sam_plugin.integrations.inpaint_anything import (
    InpaintAnything,
    grow_mask,
)
from mobile_sam_plugin.integrations.inpainters import (
    DiffusersInpainter,
    LamaInpainter,
    OpenCVInpainter,
)

from ..hub import Client, Hub
from .clips import SMALL, SPOT, disc, ramp, random_pixels
from .models import write_lama

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@pytest.mark.parametrize("place", [(60, 50), (3, 2), (117, 88)])
def test_opencv_on_the_surroundings_is_opencv_on_the_image(place: tuple[int, int]) -> None:
    image, mask = random_pixels(90, 120, 3), disc(90, 120, *place, 12)
    expected = cv2.inpaint(image, mask.astype(np.uint8), 3.0, cv2.INPAINT_TELEA)
    np.testing.assert_array_equal(OpenCVInpainter(3.0)(image, mask), expected)


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
        (tmp_path / "text.onnx", "onnxruntime cannot read .* as an ONNX model"),
        (BUNDLED_FILE, "onnxruntime cannot read .* as an ONNX model"),
        (write_lama(tmp_path / "other.onnx", inputs=("input", "hole")), "expected image"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            LamaInpainter(path)


def test_lama_takes_no_prompt_and_returns_no_nonsense(lama: LamaInpainter, tmp_path: Path) -> None:
    for inpainter in (lama, OpenCVInpainter()):
        with pytest.raises(ValueError, match="no prompt, such as 'a cat'"):
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
    with pytest.raises(ValueError, match="has 17 tokens, the model reads only 16"):
        editor.fill(SMALL, SPOT, "a" * 15)
    editor.fill(SMALL, SPOT, "a" * 14)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no model_index.json, so no pipeline"):
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


@pytest.mark.process
@pytest.mark.slow
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
