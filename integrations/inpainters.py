"""Inpainters: OpenCV, LaMa and the inpainting models of diffusers."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin.checkpoint import download, locate_checkpoint
from mobile_sam_plugin.errors import MissingExtra, UserError

from .pretrained import check_length

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
LAMA = "hf://Carve/LaMa-ONNX/lama_fp32.onnx"
STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-inpainting"


class Inpainter(Protocol):
    """Paints a hole in an image. A function with these arguments is also an inpainter.

    Examples:
        >>> def gray(image, mask, prompt):
        ...     return np.full_like(image, 128)
        >>> InpaintAnything(sam, gray).remove("street.jpg", mask).save("out")
    """

    def __call__(self, image: Pixels, mask: Mask, prompt: str) -> Pixels:
        """Returns the image with the hole painted.

        Args:
            image: (H, W, 3) uint8 RGB, of any size.
            mask: (H, W) bool, True in the hole, which has at least one pixel.
            prompt: description of what to paint, empty for the background.

        Returns:
            (H, W, 3) uint8 RGB. Only the pixels in the hole are used.
        """
        ...


class OpenCVInpainter:
    """Telea's method in OpenCV, for small or smooth holes; needs no weights."""

    def __init__(self, radius: float = 3.0) -> None:
        """Sets the neighbourhood of the method.

        Args:
            radius: of the neighbourhood that each painted pixel is averaged from, in pixels.
        """
        self.radius = radius

    def __call__(self, image: Pixels, mask: Mask, prompt: str = "") -> Pixels:
        """Returns the image painted, see :class:`Inpainter`.

        Raises:
            UserError: if there is a prompt.
        """
        _refuse_prompt(prompt, "cv2.inpaint")
        context = 2 * int(self.radius) + 2  # pixels further away do not count
        window = window_around(mask, lambda side: side + 2 * context)
        painted = image.copy()
        painted[window] = cv2.inpaint(
            image[window], mask[window].astype(np.uint8), self.radius, cv2.INPAINT_TELEA
        )
        return painted


class LamaInpainter:
    """LaMa (https://arxiv.org/abs/2109.07161) in onnxruntime, for large holes and textures.

    The model sees a square around the hole, at full resolution if the hole is small enough.

    Examples:
        >>> InpaintAnything(sam, LamaInpainter()).remove("street.jpg", car).save("out")
    """

    def __init__(
        self, model: str | os.PathLike[str] = LAMA, device: str | torch.device = "cpu"
    ) -> None:
        """Loads the model, and downloads it (208 MB) if it is not in the Hub's cache.

        Args:
            model: path, or ``"hf://owner/repo/file"`` on the Hub, of an ONNX file with the inputs
                ``image`` (1, 3, S, S) in [0, 1] and ``mask`` (1, 1, S, S), 1 in the hole, and one
                output (1, 3, S, S) in [0, 255], all float32.
            device: ``"cuda"`` needs onnxruntime-gpu; all other devices mean the CPU.

        Raises:
            MissingExtra: if onnxruntime is not installed.
            FileNotFoundError, ConnectionError, PermissionError: as in
                :func:`~mobile_sam_plugin.checkpoint.locate_checkpoint`.
            UserError: if the file is not an ONNX model, or has other inputs.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra.of("onnxruntime", "inpaint") from error
        path = locate_checkpoint(model)
        providers: list[Any] = ["CPUExecutionProvider"]
        target = torch.device(device)
        if target.type == "cuda":
            if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                providers.insert(0, ("CUDAExecutionProvider", {"device_id": target.index or 0}))
            else:
                warnings.warn(
                    "this onnxruntime cannot use CUDA, so LaMa runs on the CPU: install "
                    "onnxruntime-gpu instead of onnxruntime",
                    stacklevel=2,
                )
        try:
            self._session = onnxruntime.InferenceSession(path, providers=providers)
        except Exception as error:  # onnxruntime's errors share no other base
            raise UserError(
                f"onnxruntime cannot read {str(path)!r} as an ONNX model: {error}"
            ) from error
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        sizes = {tuple(shape[2:]) for shape in inputs.values()}
        size = next(iter(sizes))
        if (
            set(inputs) != {"image", "mask"}
            or len(sizes) != 1
            or len(set(size)) != 1
            or not isinstance(size[0], int)
        ):
            raise UserError(
                f"{str(path)!r} is not LaMa as on the Hub ({LAMA}): its inputs are {inputs}, "
                "expected image [1, 3, 512, 512] and mask [1, 1, 512, 512]"
            )
        self._size = size[0]

    def __call__(self, image: Pixels, mask: Mask, prompt: str = "") -> Pixels:
        """Returns the image painted, see :class:`Inpainter`.

        Raises:
            UserError: if there is a prompt, or the model returns NaN.
        """
        _refuse_prompt(prompt, "LaMa")
        return _paint_square(image, mask, self._size, self._paint)

    def _paint(self, square: Pixels, hole: Mask) -> Pixels:
        inputs = {
            "image": np.ascontiguousarray(square.transpose(2, 0, 1))[None].astype(np.float32) / 255,
            "mask": hole[None, None].astype(np.float32),
        }
        output = self._session.run(None, inputs)[0][0].transpose(1, 2, 0)
        if not np.isfinite(output).all():
            raise UserError("LaMa returned NaN or infinity: use its float32 model")
        return output.round().clip(0, 255).astype(np.uint8)


class DiffusersInpainter:
    """An inpainting model of diffusers, which paints what a prompt describes.

    The model sees a square around the hole, scaled to its training size.

    Examples:
        >>> painter = DiffusersInpainter(device="cuda", seed=0, num_inference_steps=30)
        >>> InpaintAnything(sam, painter).fill("dog.jpg", dog, "a cat on a bench").save("out")
    """

    def __init__(
        self,
        model: Any = STABLE_DIFFUSION,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        **options: Any,
    ) -> None:
        """Loads the model, and downloads it if it is not in the Hub's cache.

        Args:
            model: repository on the Hub or folder that ``AutoPipelineForInpainting`` loads, in half
                precision for CUDA; or such a pipeline, which is used as it is.
            device: device of the pipeline.
            seed: random seed, for repeatable results; random if None.
            options: passed to every call of the pipeline, for example ``num_inference_steps``,
                ``guidance_scale`` and ``negative_prompt``.

        Raises:
            MissingExtra: if diffusers or transformers is not installed.
            FileNotFoundError: if there is no such repository or folder, or no pipeline in it.
            ConnectionError: if the Hub cannot be reached and the model is not in its cache.
            PermissionError: if the repository is gated.
        """
        self.seed = seed
        self.options = options
        self.pipeline = model
        if isinstance(model, str | os.PathLike):
            self.pipeline = _load_pipeline(os.fspath(model))
            if torch.device(device).type == "cuda":
                self.pipeline.to(torch.float16)
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=None)

    def __call__(self, image: Pixels, mask: Mask, prompt: str) -> Pixels:
        """Returns the image painted, see :class:`Inpainter`.

        Raises:
            UserError: if the prompt is longer than the model reads, or the model's safety checker
                withholds the result.
        """
        self._check_length(prompt)
        sample_size = getattr(self.pipeline, "default_sample_size", None)
        sample_size = sample_size or self.pipeline.unet.config.sample_size
        size = sample_size * self.pipeline.vae_scale_factor

        def paint(square: Pixels, hole: Mask) -> Pixels:
            return self._paint(square, hole, prompt)

        return _paint_square(image, mask, size, paint)

    def _paint(self, square: Pixels, hole: Mask, prompt: str) -> Pixels:
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        output = self.pipeline(
            prompt=prompt,
            image=Image.fromarray(square),
            mask_image=Image.fromarray(hole.astype(np.uint8) * 255),
            height=hole.shape[0],
            width=hole.shape[1],
            generator=generator,
            **self.options,
        )
        if any(getattr(output, "nsfw_content_detected", None) or []):
            raise UserError(
                "the model's safety checker withholds the result: try another prompt or seed"
            )
        return np.asarray(output.images[0].convert("RGB"))

    def _check_length(self, prompt: str) -> None:
        tokenizers = [
            tokenizer
            for name in ("tokenizer", "tokenizer_2", "tokenizer_3")
            if (tokenizer := getattr(self.pipeline, name, None)) is not None
        ]
        if not tokenizers:
            return
        # Models of several text encoders read a long prompt with one of them.
        widest = max(tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
        check_length([prompt], widest.model_max_length, widest)


def _paint_square(
    image: Pixels, hole: Mask, size: int, paint: Callable[[Pixels, Mask], Pixels]
) -> Pixels:
    """Paints with a model that takes squares of one size only.

    The model sees a square around the hole with a margin of a quarter of its side: at full
    resolution if that fits, else scaled. Beyond its borders the image is reflected, with the hole,
    since a model would continue any other padding as background.
    """
    _, _, *sides = cv2.boundingRect(hole.astype(np.uint8))
    side = max(size, round(1.5 * max(sides)))
    window = window_around(hole, lambda _: side)
    height, width = hole[window].shape
    scale = size / max(height, width)
    scaled = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = cv2.resize(image[window], scaled, interpolation=_interpolation(scale))
    # Every pixel that the hole touches, so that no trace of the object is left.
    share = cv2.resize(hole[window].astype(np.float32), scaled, interpolation=cv2.INTER_AREA)
    borders = 0, size - scaled[1], 0, size - scaled[0]
    square = cv2.copyMakeBorder(pixels, *borders, cv2.BORDER_REFLECT)
    square_hole = cv2.copyMakeBorder((share > 0).astype(np.uint8), *borders, cv2.BORDER_REFLECT)
    painted = paint(square, square_hole.astype(bool))[: scaled[1], : scaled[0]]
    result = image.copy()
    result[window] = cv2.resize(painted, (width, height), interpolation=_interpolation(1 / scale))
    return result


def _interpolation(scale: float) -> int:
    return int(cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def window_around(mask: Mask, enlarge: Callable[[int], int]) -> tuple[slice, slice]:
    """Returns the rows and columns of a window around a mask.

    Args:
        mask: (H, W), not empty.
        enlarge: returns the side of the window for a side of the mask's box. The window is centred
            on the box, moved into the image, and cut where the image is smaller.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    slices = []
    for start, extent, limit in ((y, height, mask.shape[0]), (x, width, mask.shape[1])):
        length = enlarge(extent)
        first = max(0, min(start - (length - extent) // 2, limit - length))
        slices.append(slice(first, min(first + length, limit)))
    return slices[0], slices[1]


def _refuse_prompt(prompt: str, name: str) -> None:
    if prompt:
        raise UserError(
            f"{name} paints the background and takes no prompt, such as {prompt!r}: fill and "
            "replace need a DiffusersInpainter"
        )


def _load_pipeline(name: str) -> Any:
    try:
        import transformers  # noqa: F401 - diffusers reports its absence later, and less clearly
        from diffusers import AutoPipelineForInpainting
    except ImportError as error:
        raise MissingExtra.of(error.name or "diffusers", "inpaint") from error
    index = "model_index.json"
    if not Path(name).is_dir():
        download(name, index)  # unlike diffusers, this explains what is wrong with the name
    elif not (Path(name) / index).exists():
        raise FileNotFoundError(f"the folder {name!r} has no {index}, so no pipeline of diffusers")
    return AutoPipelineForInpainting.from_pretrained(name)
