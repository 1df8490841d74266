"""``SamPredictor`` that checks its inputs."""

import copy
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import segment_anything
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor, nn
from typing_extensions import Self

from .embeddings import (
    Embedding,
    EncoderIdentity,
    digest_pixels,
    identify_encoder,
    list_embeddings,
    read_embedding,
    refuse_other_encoder,
    write_embedding,
)
from .errors import UserError
from .images import ImageSource as ImageSource
from .images import load_image as load_image
from .inputs import (
    MAX_COORDINATE,
    MAX_VALUE,
    as_flag,
    as_pixels,
    check_box,
    check_mask,
    check_points,
    input_size,
    refuse_half,
    refuse_label,
    refuse_number,
)
from .mask_postprocessing import MaskUpscaler, cached_upscaler
from .sam_hq import InnerFeatures, decoder_arguments, unpack


class SamPredictor(segment_anything.SamPredictor):
    """Segments one image from points, boxes and masks; subclass of upstream's, same results.

    Works with any ``segment_anything.modeling.Sam``. It also accepts PIL, grayscale and RGBA
    images, explains invalid inputs, and computes in eval mode even if the model was left in
    training mode, whose batch norms would change the masks.

    Examples:
        >>> predictor = SamPredictor(sam_model_registry["vit_t"](checkpoint="mobile_sam.pt"))
        >>> predictor.set_image(Image.open("dog.jpg"))
        >>> masks, scores, logits = predictor.predict(np.array([[320, 240]]), np.array([1]))
    """

    interm_features: InnerFeatures | None = None  # of models for SAM-HQ
    _pixels: Tensor | None = None  # the resized image, of which save_embedding writes the digest
    _image_sha256: str | None = None  # the digest of an embedding that was loaded

    def set_image(self, image: NDArray[np.uint8] | Image.Image, image_format: str = "RGB") -> None:
        """Computes the image embedding, so that :meth:`predict` can be called.

        Args:
            image: (H, W, 3) uint8; or grayscale, (H, W) or (H, W, 1); or (H, W, 4), whose alpha is
                dropped; or a PIL image, whose EXIF orientation is applied first.
            image_format: channel order of an array, ``"RGB"`` or ``"BGR"``; ignored for PIL images.

        Raises:
            TypeError: if ``image`` is not an array or a PIL image, or its dtype is not uint8.
            UserError: if its shape is another one or it has no pixels, or if ``image_format`` is
                unknown.
        """
        resized, size = self._prepare(image, image_format)
        self.set_torch_image(resized, size)
        self._pixels = resized

    def _prepare(
        self, image: NDArray[np.uint8] | Image.Image, image_format: str
    ) -> tuple[Tensor, tuple[int, int]]:
        """Returns the image (1, 3, h, w) resized for the model, and its original size (H, W)."""
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"image_format must be 'RGB' or 'BGR', not {image_format!r}")
        if isinstance(image, Image.Image):
            image_format = "RGB"
        pixels = as_pixels(image)
        height, width = pixels.shape[:2]
        input_size(height, width, self.transform.target_length)  # refuses images that are too thin
        if image_format != self.model.image_format:
            pixels = pixels[..., ::-1]
        resized = torch.as_tensor(self.transform.apply_image(pixels), device=self.device)
        return resized.permute(2, 0, 1).contiguous()[None], (height, width)

    @torch.no_grad()
    def set_torch_image(
        self, transformed_image: Tensor, original_image_size: tuple[int, ...]
    ) -> None:
        """Computes the image embedding of a transformed image, as upstream's, in eval mode.

        Args:
            transformed_image: (1, 3, h, w) in [0, 255], any dtype, transformed with
                ``ResizeLongestSide``, on the model's device.
            original_image_size: (H, W) before the transformation.

        Raises:
            TypeError: if ``transformed_image`` is not a tensor.
            UserError: if its shape is another one, or a pixel is NaN, infinite or of a magnitude
                above 10^4.
        """
        self._check_transformed("transformed_image", transformed_image, original_image_size)
        self.reset_image()  # so that an encoder that fails leaves no earlier image
        (predictor,) = self._encode([transformed_image], [original_image_size])
        self.__dict__.update(vars(predictor))

    @torch.no_grad()
    def set_image_batch(
        self, images: Sequence[NDArray[np.uint8] | Image.Image], image_format: str = "RGB"
    ) -> list[Self]:
        """Computes the embeddings of several images at once, faster than one by one on a GPU.

        Args:
            images: each as :meth:`set_image` takes it; their sizes may differ.
            image_format: channel order of arrays, ``"RGB"`` or ``"BGR"``.

        Returns:
            One predictor per image, with that image set; ``self`` is unchanged.

        Raises:
            TypeError, UserError: if :meth:`set_image` would reject an image; the first one counts.

        Examples:
            >>> for each in predictor.set_image_batch([Image.open("a.jpg"), Image.open("b.jpg")]):
            ...     masks, scores, logits = each.predict(box=[10, 10, 200, 150])
        """
        if not images:
            return []
        resized, sizes = zip(*(self._prepare(image, image_format) for image in images), strict=True)
        predictors = self.set_torch_image_batch(resized, sizes)
        for predictor, pixels in zip(predictors, resized, strict=True):
            predictor._pixels = pixels
        return predictors

    @torch.no_grad()
    def set_torch_image_batch(
        self, transformed_images: Sequence[Tensor], original_image_sizes: Sequence[tuple[int, ...]]
    ) -> list[Self]:
        """Computes the embeddings of several transformed images at once.

        Args:
            transformed_images: each as :meth:`set_torch_image` takes it; their sizes may differ.
            original_image_sizes: (H, W) of each before the transformation.

        Returns:
            One predictor per image, with that image set; ``self`` is unchanged.

        Raises:
            TypeError, UserError: if :meth:`set_torch_image` would reject an image; the message
                gives its index.
        """
        images, sizes = list(transformed_images), list(original_image_sizes)
        if len(images) != len(sizes):
            raise UserError(
                f"transformed_images and original_image_sizes must be equally many, not "
                f"{len(images)} and {len(sizes)}"
            )
        for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
            self._check_transformed(f"transformed_images[{index}]", image, size)
        return self._encode(images, sizes) if images else []

    def _encode(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Self]:
        """Does the work of :meth:`set_torch_image_batch`, for at least one image, checked."""
        with eval_mode(self.model):
            embeddings, inner = unpack(
                self.model.image_encoder(torch.cat(list(map(self.model.preprocess, images))))
            )
        predictors = []
        for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
            predictor = copy.copy(self)
            predictor._set_embedding(
                (size[0], size[1]),
                (image.shape[-2], image.shape[-1]),
                _take(embeddings, index),
                inner and [_take(each, index) for each in inner],
            )
            predictors.append(predictor)
        return predictors

    def reset_image(self) -> None:
        """Forgets the image, as upstream's."""
        super().reset_image()
        self.interm_features = self._pixels = self._image_sha256 = None

    def _set_embedding(
        self,
        original_size: tuple[int, int],
        input_size: tuple[int, int],
        features: Tensor,
        interm_features: InnerFeatures | None,
    ) -> None:
        self.reset_image()
        self.original_size, self.input_size = original_size, input_size
        self.features, self.interm_features = features, interm_features
        self.is_image_set = True

    def save_embedding(
        self,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        encoder: EncoderIdentity | None = None,
    ) -> None:
        """Writes the image embedding to a file, for :meth:`load_embedding`.

        The file also holds a digest of the image, by which it is recognised later, unless the image
        was set with :meth:`set_torch_image`; and the fingerprint of the image encoder's weights.

        Args:
            path: ends in ``.safetensors``; its folder is created if missing.
            dtype: that the embedding is converted to. ``torch.float16`` halves the 4 MB of
                float32, and moves a few pixels along the outlines of masks. None keeps its own.
            encoder: what :func:`~mobile_sam_plugin.embeddings.identify_encoder` returns for this
                model, to save the time for many images; it is asked if None.

        Raises:
            RuntimeError: if no image has been set.
            UserError: if the path has another suffix, the dtype is not float32, float16 or
                bfloat16, or a value is not finite in it.

        Examples:
            >>> predictor.set_image(Image.open("dog.jpg"))
            >>> predictor.save_embedding("dog.safetensors")
        """
        self._require_image()
        height, width = self.original_size
        digest = self._image_sha256
        if self._pixels is not None:
            digest = digest_pixels(self._pixels, (height, width))
        embedding = Embedding(
            features=self.features,
            interm_features=self.interm_features or (),
            original_size=(height, width),
            input_size=self.input_size,
            image_sha256=digest,
            encoder=encoder or identify_encoder(self.model),
        )
        write_embedding(path, embedding, dtype)

    def load_embedding(
        self,
        path: str | os.PathLike[str],
        image: NDArray[np.uint8] | Image.Image | None = None,
        image_format: str = "RGB",
        encoder: EncoderIdentity | None = None,
    ) -> None:
        """Takes the image embedding from a file, so that :meth:`predict` can be called.

        This takes a few hundredths of a second. Masks are those of :meth:`set_image`, unless the
        file was written in another dtype: to the bit with MobileSAM's encoder, and up to rounding
        with encoders that leave their results in memory in another order, as SAM-HQ's does.

        Args:
            path: of a file that :meth:`save_embedding` or ``mobile-sam embed`` wrote.
            image: the image, as :meth:`set_image` takes it, to make sure that the embedding is its
                own; no pixels are needed otherwise.
            image_format: channel order of an array, ``"RGB"`` or ``"BGR"``.
            encoder: as for :meth:`save_embedding`.

        Raises:
            FileNotFoundError, IsADirectoryError, PermissionError: if the path cannot be opened.
            UserError: if the file is of another model, or another input size of the same model; if
                it is of another image; or if it is damaged or holds something else.
            TypeError: as :meth:`set_image`.

        Examples:
            >>> predictor.load_embedding("dog.safetensors")
            >>> masks, scores, logits = predictor.predict(np.array([[320, 240]]), np.array([1]))
        """
        embedding = read_embedding(path)
        refuse_other_encoder(path, embedding, encoder or identify_encoder(self.model))
        prompts = self.model.prompt_encoder
        expected = (1, prompts.embed_dim, *prompts.image_embedding_size)
        if tuple(embedding.features.shape) != expected:
            raise UserError(
                f"the embedding {os.fspath(path)!r} has the shape "
                f"{tuple(embedding.features.shape)}, and the model takes {expected}"
            )
        if image is not None and self.digest_image(image, image_format) != embedding.image_sha256:
            raise UserError(
                f"the embedding {os.fspath(path)!r} is not of this image, but of one of "
                f"{embedding.original_size[1]} x {embedding.original_size[0]} pixels"
                + ("" if embedding.image_sha256 else " that was set with set_torch_image")
            )
        dtype = next(self.model.mask_decoder.parameters()).dtype
        features, *interm = (
            each.to(self.device, dtype) for each in (embedding.features, *embedding.interm_features)
        )
        self._set_embedding(embedding.original_size, embedding.input_size, features, interm or None)
        self._image_sha256 = embedding.image_sha256

    def check_image(self, pixels: NDArray[np.uint8]) -> None:
        """Checks that the image that is set is another one: by its size, and if loaded, its digest.

        Args:
            pixels: the other image, (H, W, 3) RGB.

        Raises:
            RuntimeError: if no image has been set.
            UserError: if it is another image.
        """
        self._require_image()
        height, width = self.original_size
        if pixels.shape[:2] != (height, width):
            raise UserError(
                f"the predictor has another image set, of {width} x {height} pixels: the image has "
                f"{pixels.shape[1]} x {pixels.shape[0]}"
            )
        if self._image_sha256 is not None and self.digest_image(pixels) != self._image_sha256:
            raise UserError("the predictor has loaded the embedding of another image")

    def digest_image(
        self, image: NDArray[np.uint8] | Image.Image, image_format: str = "RGB"
    ) -> str:
        """Returns the digest by which embeddings recognise an image, of its resized pixels.

        Arguments and errors are those of :meth:`set_image`.
        """
        return digest_pixels(*self._prepare(image, image_format))

    def _check_transformed(self, name: str, image: Tensor, original_size: tuple[int, ...]) -> None:
        """Checks a transformed image; errors give the name of the argument."""
        if isinstance(image, Tensor) and image.ndim == 4 and len(image) != 1:
            raise UserError(
                f"{name} must be one image, (1, 3, h, w), not of the shape {tuple(image.shape)}: "
                "several go to set_torch_image_batch"
            )
        _check_tensor(name, image, (1, 3, "h", "w"), MAX_VALUE)
        long_side = self.model.image_encoder.img_size
        if max(image.shape[2:]) != long_side or min(image.shape[2:]) < 1:
            raise UserError(
                f"{name} must have a long side of {long_side}, as transform.apply_image_torch "
                f"gives it, not the shape {tuple(image.shape)}"
            )
        if len(original_size) != 2 or min(original_size) < 1:
            raise UserError(
                f"the original size of {name} must be (H, W) in pixels, not {tuple(original_size)}"
            )

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Predicts masks from a prompt on the image that was set, as upstream's ``predict``.

        Args:
            point_coords: (N, 2), XY in pixels of the image; points may lie outside it.
            point_labels: (N,), 1 for an object point, 0 for a background point, -1 for padding.
            box: 4 numbers, XYXY in pixels. Swapped corners are used as they are, with a warning.
            mask_input: (256, 256) or (1, 256, 256), low-res logits of an earlier prediction; or
                (H, W) or (1, H, W), a bool or uint8 mask of the image, converted by
                :func:`~mobile_sam_plugin.inputs.mask_to_logits`. Add a point or a box, unless the
                weights were trained on masks alone.
            multimask_output: whether to return three candidates; better for a single point.
            return_logits: whether to return logits instead of boolean masks.

        Returns:
            Masks (C, H, W), bool or float32; their predicted IoU (C,); low-res logits
            (C, 256, 256).

        Raises:
            RuntimeError: if no image has been set.
            UserError: if a prompt has the wrong shape or length, or holds NaN, infinity or a
                magnitude above 2^24, in logits 10^4.
            TypeError: if ``multimask_output`` or ``return_logits`` is neither on nor off.
        """
        self._require_image()
        if point_coords is not None or point_labels is not None:
            point_coords, point_labels = check_points(point_coords, point_labels)
        if box is not None:
            box = check_box(box)
        if mask_input is not None:
            mask_input = check_mask(mask_input, *self._mask_sizes)
        if point_coords is not None:
            point_coords = self.transform.apply_coords(point_coords, self.original_size)
        if box is not None:
            box = self.transform.apply_boxes(box, self.original_size)
        # Not by upstream's method, which passes one more argument in copies for SAM-HQ.
        results = self.predict_torch(
            self._one_prompt(point_coords),
            self._one_prompt(point_labels, torch.int),
            self._one_prompt(box),
            self._one_prompt(mask_input),
            multimask_output,
            return_logits,
        )
        masks, scores, low_res_logits = (result[0].cpu().numpy() for result in results)
        return masks, scores, low_res_logits

    def _one_prompt(
        self, values: ArrayLike | None, dtype: torch.dtype = torch.float
    ) -> Tensor | None:
        return (
            None
            if values is None
            else torch.as_tensor(np.ascontiguousarray(values), dtype=dtype, device=self.device)[
                None
            ]
        )

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predicts masks for a batch of prompts, as upstream's ``predict_torch``.

        Args:
            point_coords: (B, N, 2) float, XY, transformed with ``transform.apply_coords_torch``, on
                the model's device as all prompts.
            point_labels: (B, N) of any dtype, 1, 0 or -1.
            boxes: (B, 4) float, XYXY, transformed with ``transform.apply_boxes_torch``.
            mask_input: (B, 1, 256, 256) float, low-res logits; or (B, 1, H, W) bool or uint8, masks
                of the image that are not transformed; or one for all prompts, with 1 for B.
            multimask_output: three masks per prompt rather than one.
            return_logits: whether to return logits instead of boolean masks.

        Returns:
            Masks (B, C, H, W), bool or float; their predicted IoU (B, C); low-res logits
            (B, C, 256, 256). float32 even if the model is in half precision. Without prompts B is
            1, as upstream; with empty prompts it is 0.

        Raises:
            RuntimeError: if no image has been set.
            TypeError: if a prompt is not a tensor, or an option neither on nor off.
            UserError: if :meth:`predict` would reject a prompt, or their numbers differ.
        """
        return_logits = as_flag("return_logits", return_logits)
        low_res_logits, scores = self.predict_low_res_torch(
            point_coords, point_labels, boxes, mask_input, multimask_output
        )
        masks = low_res_logits.new_empty(
            *low_res_logits.shape[:2],
            *self.original_size,
            dtype=torch.float if return_logits else torch.bool,
        )
        # One prompt after another: all of them in float32 can exceed the memory.
        for prompt, logits in enumerate(low_res_logits):
            masks[prompt] = self._upscale(logits, return_logits)
        return masks, scores, low_res_logits

    @torch.no_grad()
    def predict_low_res_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Predicts what :meth:`predict_torch` does, except for the masks of the image's size.

        Returns:
            Low-res logits (B, C, 256, 256) and predicted IoU (B, C), both float32.

        Examples:
            >>> boxes = predictor.transform.apply_boxes_torch(boxes, predictor.original_size)
            >>> logits, scores = predictor.predict_low_res_torch(None, None, boxes)
        """
        self._require_image()
        multimask_output = as_flag("multimask_output", multimask_output)
        batch = self._check_prompts(point_coords, point_labels, boxes)
        if mask_input is not None:
            mask_input = self._check_masks(mask_input, batch)
        if batch == 0 or (batch is None and mask_input is not None and len(mask_input) == 0):
            return self._no_masks(multimask_output)
        points = None if point_coords is None else (point_coords, point_labels)
        with eval_mode(self.model.prompt_encoder), eval_mode(self.model.mask_decoder):
            sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=mask_input)
            low_res_logits, scores = self.model.mask_decoder(
                image_embeddings=self.features,
                image_pe=self.model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
                **decoder_arguments(self.interm_features),
            )
        return low_res_logits.float(), scores.float()

    def _check_prompts(
        self, coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None
    ) -> int | None:
        """Returns the number of prompts in points and boxes; None if there are neither.

        Raises:
            TypeError, UserError: as :meth:`predict_torch`.
        """
        if (coords is None) != (labels is None):
            refuse_half(coords)
        # Transformed: a pixel of the image may be as large as the model's input.
        highest = MAX_COORDINATE * self.model.image_encoder.img_size
        given_prompts = {}
        if coords is not None and labels is not None:
            _check_tensor("point_coords", coords, ("B", "N", 2), highest)
            _check_tensor("point_labels", labels, tuple(coords.shape[:2]), highest)
            unknown = labels[(labels != 1) & (labels != 0) & (labels != -1)]
            if len(unknown):
                refuse_label(unknown[0].item())
            given_prompts["point_coords"] = len(coords)
        if boxes is not None:
            if isinstance(boxes, Tensor) and boxes.ndim == 3:  # as upstream's predict hands them on
                _check_tensor("boxes", boxes, ("B", 1, 4), highest)
            else:
                _check_tensor("boxes", boxes, ("B", 4), highest)
            given_prompts["boxes"] = len(boxes)
        if len(set(given_prompts.values())) > 1:
            raise UserError(f"the prompts must be equally many, not {given_prompts}")
        return next(iter(given_prompts.values()), None)

    def _check_masks(self, masks: Tensor, batch: int | None) -> Tensor:
        """Returns low-res logits (B or 1, 1, 256, 256) of mask prompts, checked."""
        if not isinstance(masks, Tensor):
            raise TypeError(f"mask_input must be a torch.Tensor, not {type(masks).__name__}")
        if masks.dtype in (torch.bool, torch.uint8):
            converted = check_mask(masks.cpu().numpy(), *self._mask_sizes, batched=True)
            masks = torch.as_tensor(converted, dtype=torch.float, device=self.device)
        else:
            _check_tensor("mask_input", masks, ("B", 1, *self._mask_sizes[0]), MAX_VALUE)
        if batch is not None and len(masks) not in (1, batch):
            raise UserError(
                f"mask_input must hold one mask per prompt, or one for all: {batch} or 1, not "
                f"{len(masks)}"
            )
        return masks

    def _no_masks(self, multimask_output: bool) -> tuple[Tensor, Tensor]:
        """Returns the low-res logits and scores of an empty batch."""
        masks = self.model.mask_decoder.num_multimask_outputs if multimask_output else 1
        size = 0, masks, *self.model.prompt_encoder.mask_input_size
        low_res_logits = torch.empty(size, device=self.device)
        return low_res_logits, low_res_logits.new_empty(0, masks)

    @property
    def _mask_sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Sizes of low-res logits, of the image and of the resized image."""
        height, width = self.original_size
        return self.low_res_size, (height, width), self.input_size

    @property
    def low_res_size(self) -> tuple[int, int]:
        """(rows, columns) of low-res logits, (256, 256)."""
        size: tuple[int, int] = self.model.prompt_encoder.mask_input_size
        return size

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the image takes: its embedding, and the resized pixels."""
        tensors = (self.features, self._pixels, *(self.interm_features or ()))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def upscaler(self) -> MaskUpscaler:
        """Upscales low-res logits of one mask, float32 on the CPU, to the image that is set."""
        return cached_upscaler(
            tuple(self.input_size),
            tuple(self.original_size),
            tuple(self.model.prompt_encoder.mask_input_size),
            self.model.image_encoder.img_size,
        )

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise RuntimeError("An image must be set with .set_image(...) before mask prediction.")

    def _upscale(self, low_res_logits: Tensor, return_logits: bool) -> Tensor:
        """Turns low-res logits (C, 256, 256) into masks, or logits, (C, H, W) of the image."""
        if return_logits or low_res_logits.device.type != "cpu":
            logits: Tensor = self.model.postprocess_masks(
                low_res_logits[None], self.input_size, self.original_size
            )[0]
            return logits if return_logits else logits > self.model.mask_threshold
        threshold = self.model.mask_threshold
        masks = [self.upscaler.binary_mask(logits, threshold) for logits in low_res_logits.numpy()]
        return torch.from_numpy(np.stack(masks))


def _take(batch: Tensor, index: int) -> Tensor:
    """Returns one of a batch, (1, ...), as a copy: a view would keep the whole batch in memory."""
    one = batch[index : index + 1]
    return one.clone() if len(batch) > 1 else one


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int | str, ...], highest: float) -> None:
    """Checks that ``tensor`` has a shape, in which letters stand for any length, and small values.

    Raises:
        TypeError, UserError: if not; the message gives the name of the argument.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
    if tensor.ndim != len(shape) or any(
        length != side
        for length, side in zip(tensor.shape, shape, strict=True)
        if isinstance(side, int)
    ):
        expected = ", ".join(map(str, shape))
        raise UserError(f"{name} must have the shape ({expected}), not {tuple(tensor.shape)}")
    fits = tensor.abs() <= highest if tensor.dtype != torch.bool else tensor >= 0
    if not fits.all():
        refuse_number(name, float(tensor[~fits][0]), highest)


@dataclass
class _Borrowed:
    borrowers: int
    training: list[nn.Module]


_borrowed: WeakKeyDictionary[nn.Module, _Borrowed] = WeakKeyDictionary()
_borrowed_lock = threading.Lock()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Holds a model in eval mode, then restores the mode of each of its modules.

    If several threads hold one model, the last one to leave restores the modes.
    """
    with _borrowed_lock:
        borrowed = _borrowed.setdefault(model, _Borrowed(0, []))
        borrowed.borrowers += 1
        training = [module for module in model.modules() if module.training]
        borrowed.training += training
        for module in training:
            module.training = False
    try:
        yield
    finally:
        with _borrowed_lock:
            borrowed.borrowers -= 1
            if borrowed.borrowers == 0:
                del _borrowed[model]
                for module in borrowed.training:
                    module.training = True


def open_embeddings(
    path: str | os.PathLike[str], model: Sam
) -> Callable[[NDArray[np.uint8]], SamPredictor | None]:
    """Returns a function that looks up an image among embeddings in files.

    It takes an image, (H, W, 3) uint8 RGB, and returns a predictor that has loaded its embedding;
    None if there is none.

    Args:
        path: a file or a folder, as :func:`~mobile_sam_plugin.embeddings.list_embeddings` takes it.
        model: the model that all of them must be of.

    Raises:
        FileNotFoundError, UserError: as `list_embeddings`.
    """
    encoder = identify_encoder(model)
    files = list_embeddings(path, encoder)

    def find(pixels: NDArray[np.uint8]) -> SamPredictor | None:
        predictor = SamPredictor(model)
        file = files.get(predictor.digest_image(pixels))
        if file is None:
            return None
        predictor.load_embedding(file, encoder=encoder)
        return predictor

    return find
