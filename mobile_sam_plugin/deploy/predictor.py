"""``SamPredictor`` on exported ONNX files, without torch."""

import copy
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..errors import UserError
from ..inputs import (
    as_finite,
    as_flag,
    as_pixels,
    check_box,
    check_mask,
    check_points,
    input_size,
    preprocess,
)
from ..mask_postprocessing import FloatArray, MaskUpscaler, cached_upscaler
from .runtimes import OnnxRuntime, OpenVino, Providers, Runtime

if TYPE_CHECKING:
    from typing_extensions import Self

MASK_THRESHOLD = 0.0

_DECODER_INPUTS = {
    "image_embeddings",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
    "orig_im_size",
}
# More at once take more memory and are no faster.
_PROMPTS_AT_ONCE = 4


class OnnxPredictor:
    """``SamPredictor`` without torch: segments one image by points, boxes and masks.

    It has the results of :class:`~mobile_sam_plugin.SamPredictor` up to rounding, from the files
    that :func:`~mobile_sam_plugin.deploy.export` writes, and never imports torch. Threads may share
    a predictor whose image is set. ``copy.copy`` shares the graphs; pickles and deep copies store
    the paths of the files, and open them again.

    Attributes:
        is_image_set: whether :meth:`predict` can be called.
        original_size: (H, W) of the image in pixels.
        input_size: (h, w) of the resized image.
        features: image embedding, (1, 256, 64, 64) float32.
        img_size: side of the model's input in pixels, 1024.
        encoder: graph of the image encoder.
        decoder: graph of the prompt encoder and mask decoder.

    Examples:
        >>> predictor = OnnxPredictor("mobile_sam_encoder.onnx", "mobile_sam_decoder.onnx")
        >>> predictor.set_image(Image.open("dog.jpg"))
        >>> masks, scores, logits = predictor.predict([[320, 240]], [1])
    """

    def __init__(
        self,
        encoder: str | os.PathLike[str],
        decoder: str | os.PathLike[str],
        providers: Providers = ("CPUExecutionProvider",),
    ) -> None:
        """Loads the two files.

        Args:
            encoder: path of the image encoder, with or without preprocessing in it.
            decoder: path of the prompt encoder and mask decoder.
            providers: onnxruntime's execution providers, the preferred one first: names, or pairs
                of a name and its options; or one name.

        Raises:
            MissingExtra: if onnxruntime is not installed.
            FileNotFoundError: if a file is missing.
            UserError: if a file is not an ONNX model or not the expected half; or if onnxruntime
                lacks an execution provider or rejects its options.
            TypeError: if `providers` has another form.
        """
        self._set_up(
            OnnxRuntime(encoder, providers), encoder, OnnxRuntime(decoder, providers), decoder
        )

    def _set_up(
        self,
        encoder: Runtime,
        encoder_path: str | os.PathLike[str],
        decoder: Runtime,
        decoder_path: str | os.PathLike[str],
    ) -> None:
        """Keeps the two graphs.

        Raises:
            UserError: if they are not an encoder and a decoder that fit together.
        """
        _check_encoder(encoder, os.fspath(encoder_path))
        _check_decoder(decoder, os.fspath(decoder_path))
        (embedding,), wanted = encoder.outputs.values(), decoder.inputs["image_embeddings"]
        # OpenVINO does not know the size of what follows preprocessing.
        pairs = zip(embedding.shape[1:], wanted.shape[1:], strict=True)
        if any(given not in (None, needed) for given, needed in pairs):
            raise UserError(
                f"{os.fspath(decoder_path)!r} needs embeddings of the shape {wanted.shape}, but "
                f"{os.fspath(encoder_path)!r} gives {embedding.shape}: use files of the same export"
            )
        self.encoder, self.decoder = encoder, decoder
        (self._image_input,) = encoder.inputs
        (self._embedding_output,) = encoder.outputs
        self.img_size = 16 * int(wanted.shape[3] or 0)
        self.reset_image()

    def reset_image(self) -> None:
        """Forgets the image."""
        self.is_image_set = False
        self.original_size: tuple[int, int] = (0, 0)
        self.input_size: tuple[int, int] = (0, 0)
        self.features: FloatArray = np.empty(0, np.float32)

    def set_image(self, image: NDArray[np.uint8] | Image.Image, image_format: str = "RGB") -> None:
        """Computes the image embedding, so that :meth:`predict` can be called.

        Arguments and errors are those of :meth:`~mobile_sam_plugin.SamPredictor.set_image`.
        """
        (predictor,) = self.set_image_batch([image], image_format)
        self.__dict__.update(vars(predictor))

    def set_image_batch(
        self, images: Sequence[NDArray[np.uint8] | Image.Image], image_format: str = "RGB"
    ) -> "list[Self]":
        """Computes the embeddings of several images in one run of the encoder.

        An encoder with preprocessing in it takes them one at a time.

        Arguments, results and errors are those of
        :meth:`~mobile_sam_plugin.SamPredictor.set_image_batch`.
        """
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"image_format must be 'RGB' or 'BGR', not {image_format!r}")
        network_inputs: list[NDArray[Any]] = []
        predictors = []
        shape = self.encoder.inputs[self._image_input].shape
        for image in images:
            pixels = as_pixels(image)
            if image_format == "BGR" and not isinstance(image, Image.Image):
                pixels = pixels[..., ::-1]
            predictor = copy.copy(self)
            predictor.original_size = pixels.shape[0], pixels.shape[1]
            predictor.input_size = input_size(*predictor.original_size, self.img_size)
            predictors.append(predictor)
            network_inputs.append(
                np.ascontiguousarray(pixels)
                if len(shape) == 3
                else preprocess(pixels, self.img_size)
            )
        if predictors and len(shape) == 4:
            network_inputs = [np.concatenate(network_inputs)]
        embeddings: list[FloatArray] = []
        side = self.img_size // 16
        for given in network_inputs:
            (found,) = self.encoder.run([self._embedding_output], {self._image_input: given})
            count = len(given) if len(shape) == 4 else 1
            _check_result("embeddings", found, (count, 256, side, side))
            embeddings += [found[index, None].copy() for index in range(len(found))]
        for predictor, predictor.features in zip(predictors, embeddings, strict=True):
            predictor.is_image_set = True
        return predictors

    def get_image_embedding(self) -> FloatArray:
        """Returns the image embedding, (1, 256, 64, 64) float32.

        Raises:
            RuntimeError: if no image is set.
        """
        self._require_image()
        return self.features

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], FloatArray, FloatArray]:
        """Predicts masks for a prompt.

        Arguments, results and errors are those of :meth:`~mobile_sam_plugin.SamPredictor.predict`.
        """
        return_logits = as_flag("return_logits", return_logits)
        prompt = self._one_prompt(point_coords, point_labels, box, mask_input)
        low_res_logits, scores = self._decode(*prompt, multimask_output)
        return self._upscale(low_res_logits[0], return_logits), scores[0], low_res_logits[0]

    def _one_prompt(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        box: ArrayLike | None,
        mask_input: ArrayLike | None,
    ) -> tuple[FloatArray, FloatArray, NDArray[Any] | None]:
        """Checks a prompt and makes a batch of it: points, labels and low-res logits."""
        self._require_image()
        coords = labels = corners = logits = None
        if point_coords is not None or point_labels is not None:
            coords, labels = (values[None] for values in check_points(point_coords, point_labels))
        if box is not None:
            corners = check_box(box)[None]
        if mask_input is not None:
            sizes = self.low_res_size, self.original_size, self.input_size
            logits = check_mask(mask_input, *sizes)[None]
        return *self._as_points(coords, labels, corners), logits

    @staticmethod
    def predict_image_batch(
        predictors: "Sequence[OnnxPredictor]",
        point_coords: Sequence[ArrayLike] | None = None,
        point_labels: Sequence[ArrayLike] | None = None,
        boxes: Sequence[ArrayLike] | None = None,
        mask_input: Sequence[ArrayLike] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> list[tuple[NDArray[Any], FloatArray, FloatArray]]:
        """Predicts masks for one prompt of each image, in one run of the decoder.

        Args:
            predictors: one per image, as :meth:`set_image_batch` gives them.
            point_coords: per image (N, 2), XY in its pixels; N is the same for all.
            point_labels: per image (N,), 1, 0 or -1.
            boxes: per image 4 numbers, XYXY in its pixels.
            mask_input: per image a mask or low-res logits, as :meth:`predict` takes them.
            multimask_output: whether to return three masks per prompt instead of one.
            return_logits: whether to return logits instead of boolean masks.

        Returns:
            What :meth:`predict` does, per image.

        Raises:
            RuntimeError: if a predictor has no image set.
            UserError: if the predictors run different graphs, or the prompts are not one per image
                or of different kinds; or as :meth:`predict`.

        Example:
            >>> predictors = predictor.set_image_batch([first, second])
            >>> results = predictor.predict_image_batch(predictors, boxes=[[9, 9, 80, 60]] * 2)
        """
        if not predictors:
            return []
        first = predictors[0]
        if any(each.decoder is not first.decoder for each in predictors):
            raise UserError("predictors must share one decoder: make them by one set_image_batch")
        given = {
            "point_coords": point_coords,
            "point_labels": point_labels,
            "boxes": boxes,
            "mask_input": mask_input,
        }
        for name, values in given.items():
            if values is not None and len(values) != len(predictors):
                raise UserError(
                    f"{name} must hold one prompt per image, {len(predictors)}, not {len(values)}"
                )
        each_image = (
            [None] * len(predictors) if values is None else values for values in given.values()
        )
        prompts = [
            predictor._one_prompt(*prompt)
            for predictor, *prompt in zip(predictors, *each_image, strict=True)
        ]
        numbers = sorted({coords.shape[1] for coords, _, _ in prompts})
        if len(numbers) > 1:
            raise UserError(
                f"point_coords must hold equally many points for each image, not {numbers}"
            )
        coords, labels = (np.concatenate([prompt[part] for prompt in prompts]) for part in (0, 1))
        masks_given = [logits for _, _, logits in prompts if logits is not None]
        logits = np.concatenate(masks_given) if masks_given else None
        features = np.concatenate([each.features for each in predictors])
        masks = slice(1, None) if multimask_output else slice(0, 1)
        low_res_logits, scores = first._run_decoder(features, coords, labels, logits, masks)
        return [
            (each._upscale(logits_of_image, return_logits), scores_of_image, logits_of_image)
            for each, logits_of_image, scores_of_image in zip(
                predictors, low_res_logits, scores, strict=True
            )
        ]

    def predict_batch(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], FloatArray, FloatArray]:
        """Predicts masks for a batch of prompts, as ``SamPredictor.predict_torch``.

        Unlike there, coordinates are in pixels of the image, as in :meth:`predict`.

        Args:
            point_coords: (B, N, 2), XY in pixels.
            point_labels: (B, N), 1, 0 or -1.
            boxes: (B, 4), XYXY in pixels.
            mask_input: (B, 1, 256, 256) low-res logits, or (B, 1, H, W) bool or uint8 masks.
            multimask_output: whether to return three masks per prompt instead of one.
            return_logits: whether to return logits instead of boolean masks.

        Returns:
            Masks (B, C, H, W), bool or float32; their predicted IoU (B, C); low-res logits
            (B, C, 256, 256).

        Raises:
            RuntimeError: if no image is set.
            UserError: if there is no prompt, or their numbers differ; or as :meth:`predict`.
        """
        return_logits = as_flag("return_logits", return_logits)
        low_res_logits, scores = self.predict_low_res_batch(
            point_coords, point_labels, boxes, mask_input, multimask_output
        )
        masks = np.empty(
            (*low_res_logits.shape[:2], *self.original_size),
            dtype=np.float32 if return_logits else bool,
        )
        for prompt, logits_of_prompt in enumerate(low_res_logits):
            masks[prompt] = self._upscale(logits_of_prompt, return_logits)
        return masks, scores, low_res_logits

    def predict_low_res_batch(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> tuple[FloatArray, FloatArray]:
        """Predicts what :meth:`predict_batch` does, except for the masks of the image's size.

        Returns:
            Low-res logits (B, C, 256, 256) and predicted IoU (B, C).
        """
        self._require_image()
        given: dict[str, NDArray[Any]] = {}
        coords = labels = corners = logits = None
        if point_coords is not None or point_labels is not None:
            coords, labels = check_points(point_coords, point_labels, batched=True)
            given["point_coords"] = coords
        if boxes is not None:
            given["boxes"] = corners = as_finite("boxes", boxes)
            if corners.ndim != 2 or corners.shape[1] != 4:
                raise UserError(f"boxes must have the shape (B, 4), not {corners.shape}")
        if mask_input is not None:
            sizes = self.low_res_size, self.original_size, self.input_size
            given["mask_input"] = logits = check_mask(mask_input, *sizes, batched=True)
        if not given:
            raise UserError("give point_coords and point_labels, boxes or mask_input")
        lengths = {name: len(values) for name, values in given.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"the prompts must be equally many, not {lengths}")
        batch = next(iter(lengths.values()))
        prompts = self._as_points(coords, labels, corners, batch)
        return self._decode(*prompts, logits, multimask_output)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the image takes."""
        return self.features.nbytes

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise RuntimeError("An image must be set with .set_image(...) before mask prediction.")

    @property
    def low_res_size(self) -> tuple[int, int]:
        """(rows, columns) of low-res logits, (256, 256)."""
        return self.img_size // 4, self.img_size // 4

    def _as_points(
        self,
        coords: NDArray[np.float64] | None,
        labels: NDArray[Any] | None,
        boxes: NDArray[np.float64] | None,
        batch: int = 1,
    ) -> tuple[FloatArray, FloatArray]:
        """Converts points and boxes in pixels of the image to inputs of the decoder.

        Returns:
            (B, N, 2), XY in the frame of the resized image, and their labels (B, N).
        """
        points, kinds = np.empty((batch, 0, 2)), np.empty((batch, 0))
        if coords is not None and labels is not None:
            points, kinds = coords, labels
            if boxes is None:  # SAM pads with a point of label -1
                points = np.concatenate([points, np.zeros((batch, 1, 2))], axis=1)
                kinds = np.concatenate([kinds, -np.ones((batch, 1))], axis=1)
        if boxes is not None:
            points = np.concatenate([points, boxes.reshape(batch, 2, 2)], axis=1)
            kinds = np.concatenate([kinds, np.tile([2, 3], (batch, 1))], axis=1)
        (height, width), (input_height, input_width) = self.original_size, self.input_size
        points = points * [input_width / width, input_height / height]
        return points.astype(np.float32), kinds.astype(np.float32)

    def _decode(
        self,
        coords: FloatArray,
        labels: FloatArray,
        mask_input: NDArray[Any] | None,
        multimask_output: bool,
    ) -> tuple[FloatArray, FloatArray]:
        """Returns low-res logits (B, C, 256, 256) and predicted IoU (B, C)."""
        multimask_output = as_flag("multimask_output", multimask_output)
        masks = slice(1, None) if multimask_output else slice(0, 1)
        decoded = list(self._decode_batches(coords, labels, mask_input, masks))
        if not decoded:
            count = 3 if multimask_output else 1
            none = np.empty((0, count, *self.low_res_size), np.float32)
            return none, np.empty((0, count), np.float32)
        logits, scores = (np.concatenate(parts) for parts in zip(*decoded, strict=True))
        return logits, scores

    def _decode_batches(
        self,
        coords: FloatArray,
        labels: FloatArray,
        mask_input: NDArray[Any] | None,
        masks: slice,
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yields low-res logits and predicted IoU of a few prompts at a time."""
        for start in range(0, len(coords), _PROMPTS_AT_ONCE):
            some = slice(start, start + _PROMPTS_AT_ONCE)
            logits = None if mask_input is None else mask_input[some]
            yield self._run_decoder(self.features, coords[some], labels[some], logits, masks)

    def _run_decoder(
        self,
        features: FloatArray,
        coords: FloatArray,
        labels: FloatArray,
        mask_input: NDArray[Any] | None,
        masks: slice,
    ) -> tuple[FloatArray, FloatArray]:
        """Returns low-res logits and predicted IoU of B prompts for one image or for B."""
        no_mask = np.zeros((1, 1, *self.low_res_size), np.float32)
        scores, logits = self.decoder.run(
            ["iou_predictions", "low_res_masks"],
            {
                "image_embeddings": features,
                "point_coords": coords,
                "point_labels": labels,
                "mask_input": no_mask if mask_input is None else mask_input.astype(np.float32),
                "has_mask_input": np.array([mask_input is not None], np.float32),
                "orig_im_size": np.array(self.original_size, np.float32),
            },
        )
        _check_result("logits", logits, (len(coords), 4, *self.low_res_size))
        _check_result("predicted IoU", scores, (len(coords), 4))
        return logits[:, masks], scores[:, masks]

    def _upscale(self, low_res_logits: FloatArray, return_logits: bool) -> NDArray[Any]:
        """Upscales low-res logits (C, 256, 256) to masks or logits (C, H, W)."""
        upscaler = self.upscaler
        if return_logits:
            return np.stack([upscaler.upscale(logits) for logits in low_res_logits])
        return np.stack([upscaler.binary_mask(logits, MASK_THRESHOLD) for logits in low_res_logits])

    def decode_clicks(
        self, point_coords: NDArray[np.float64], /
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Decodes object points, each a prompt of its own, a few at a time.

        Args:
            point_coords: (N, 2), XY in pixels of the image.

        Yields:
            Low-res logits (B, 3, 256, 256) and predicted IoU (B, 3) of the next B points.

        Raises:
            RuntimeError: if no image is set.
        """
        self._require_image()
        labels = np.ones((len(point_coords), 1))
        prompts = self._as_points(point_coords[:, None], labels, None, len(point_coords))
        yield from self._decode_batches(*prompts, None, slice(1, None))

    def decode_boxes(
        self, boxes: NDArray[np.float64], /
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Decodes boxes (N, 4), XYXY in pixels, as :meth:`decode_clicks`, with one mask each."""
        self._require_image()
        prompts = self._as_points(None, None, boxes, len(boxes))
        yield from self._decode_batches(*prompts, None, slice(0, 1))

    @property
    def upscaler(self) -> MaskUpscaler:
        """Upscaler of low-res logits to the image."""
        return cached_upscaler(
            self.input_size, self.original_size, self.low_res_size, self.img_size
        )


class OpenVinoPredictor(OnnxPredictor):
    """:class:`OnnxPredictor` on OpenVINO, from the same two files.

    Examples:
        >>> predictor = OpenVinoPredictor("mobile_sam_encoder.onnx", "mobile_sam_decoder.onnx")
    """

    def __init__(
        self,
        encoder: str | os.PathLike[str],
        decoder: str | os.PathLike[str],
        device: str = "CPU",
    ) -> None:
        """Loads the two files.

        Args:
            encoder: path of the image encoder, with or without preprocessing in it.
            decoder: path of the prompt encoder and mask decoder.
            device: OpenVINO's name of the device: CPU, GPU, NPU or AUTO.

        Raises:
            MissingExtra: if OpenVINO is not installed.
            FileNotFoundError: if a file is missing.
            UserError: if a file is not an ONNX model or not the expected half, or if OpenVINO finds
                no such device.
        """
        self._set_up(OpenVino(encoder, device), encoder, OpenVino(decoder, device), decoder)


def _check_result(name: str, result: NDArray[Any], expected: tuple[int, ...]) -> None:
    """Raises UserError if a graph computed something of another shape or kind."""
    if result.shape != expected or result.dtype != np.float32:
        raise UserError(
            f"a graph gives {name} of the shape {result.shape}, {result.dtype}, not {expected}, "
            "float32: use both files of one mobile-sam export"
        )


def _check_encoder(graph: Runtime, path: str) -> None:
    if set(graph.inputs) >= _DECODER_INPUTS - {"orig_im_size"}:
        raise UserError(f"{path!r} is the mask decoder, not the image encoder: swap the two files")
    inputs, outputs = list(graph.inputs.values()), list(graph.outputs.values())
    if len(inputs) == len(outputs) == 1:
        (taken,), (given,) = inputs, outputs
        image = len(taken.shape) == 4 and taken.shape[1] == 3 and taken.dtype == "float32"
        picture = len(taken.shape) == 3 and taken.shape[2] == 3 and taken.dtype == "uint8"
        embeds = (
            len(given.shape) == 4 and given.shape[1] == 256 and not isinstance(given.shape[3], str)
        )
        if (image or picture) and embeds:
            return
    raise UserError(
        f"{path!r} is not an image encoder from mobile-sam export: it takes {dict(graph.inputs)} "
        f"and gives {dict(graph.outputs)}"
    )


def _check_decoder(graph: Runtime, path: str) -> None:
    if len(graph.inputs) == 1 and len(next(iter(graph.inputs.values())).shape) in (3, 4):
        raise UserError(f"{path!r} is an image encoder, not the mask decoder: swap the two files")
    lacking = _DECODER_INPUTS - {"orig_im_size"} - set(graph.inputs)
    lacking |= {"iou_predictions", "low_res_masks"} - set(graph.outputs)
    if lacking:
        raise UserError(
            f"{path!r} is not a mask decoder from mobile-sam export: it lacks "
            f"{', '.join(sorted(lacking))}"
        )
    embeddings = graph.inputs["image_embeddings"].shape
    if len(embeddings) != 4:
        raise UserError(
            f"{path!r} is not a mask decoder from mobile-sam export: it takes embeddings of the "
            f"shape {embeddings}, not of 4 dimensions"
        )
    if unknown := set(graph.inputs) - _DECODER_INPUTS:
        raise UserError(
            f"{path!r} is not a mask decoder from mobile-sam export: it takes "
            f"{', '.join(sorted(unknown))} as well"
        )
