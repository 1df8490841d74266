"""Inpaint-Anything on MobileSAM: remove, fill or replace an object.

The pipeline of Yu et al., "Inpaint Anything: Segment Anything Meets Image Inpainting"
(https://arxiv.org/abs/2304.06790). SAM's mask of the object is dilated by a margin, since an
inpainter would continue the remains of its edge. Then *remove* paints the background, *fill* paints
what a prompt describes, and *replace* paints a background around the object.
"""

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import segment_anything
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from torch import nn

from mobile_sam_plugin import SamPredictor, sam_model_registry
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.files import encode_image, write_file
from mobile_sam_plugin.images import ImageSource, load_image, open_image

from .detectors import DEFAULT_DETECTOR, Detector
from .grounded_sam import GroundedMobileSam
from .inpainters import DiffusersInpainter, Inpainter, Mask, OpenCVInpainter, Pixels, window_around
from .instances import Instances, as_predictor, boxes_of
from .video import Video, VideoSource

Selection = Instances | NDArray[Any]
"""The pixels to paint: objects, or one mask (H, W), bool or numbers that are not 0 inside."""
MARGIN = 7
"""In pixels; Inpaint-Anything's own scripts dilate by 15 x 15."""


@dataclass(eq=False)
class Inpainting:
    """An image before and after inpainting.

    Attributes:
        image: (H, W, 3) uint8 RGB, the painted image.
        original: (H, W, 3) uint8 RGB. ``image`` has the same bytes where ``mask`` is False.
        mask: (H, W) bool, True where the image is painted.
        objects: the selected objects, before their masks are dilated.
        alpha: (H, W) uint8, opacity of the painted image, if the original has transparency.
        icc_profile: colour profile of the original, if it has one.
    """

    image: Pixels
    original: Pixels
    mask: Mask
    objects: Instances
    alpha: Pixels | None = None
    icc_profile: bytes | None = None

    def overlay(self) -> Pixels:
        """Returns the original with the selected objects drawn over it, (H, W, 3) RGB."""
        return self.objects.overlay(self.original)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes ``inpainted.png``, ``inpainted_mask.png`` and the selected objects.

        ``inpainted.png`` has the transparency and ICC profile of the original. For the objects see
        :meth:`Instances.save`.

        Args:
            folder: created if missing.

        Returns:
            The paths of all files, ``inpainted.png`` first.
        """
        objects = self.objects.save(folder, self.original)
        paths = [Path(folder) / "inpainted.png", Path(folder) / "inpainted_mask.png"]
        pixels = self.image if self.alpha is None else np.dstack([self.image, self.alpha])
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format="png", icc_profile=self.icc_profile)
        write_file(paths[0], png.getvalue())
        write_file(paths[1], encode_image(".png", self.mask.astype(np.uint8) * 255))
        return paths + objects


class InpaintAnything:
    """Removes, fills and replaces the objects that MobileSAM, or any other SAM, segments.

    Examples:
        >>> editor = InpaintAnything(sam_model_registry["vit_t"]())
        >>> dog = editor.segment("dog.jpg", point_coords=[[320, 240]])
        >>> editor.remove("dog.jpg", dog).save("out")
        >>> editor.fill("dog.jpg", dog, "a cat on a bench").save("out")
        >>> editor.replace("dog.jpg", dog, "on a swing").save("out")
    """

    def __init__(
        self,
        model: nn.Module | segment_anything.SamPredictor | None,
        inpainter: Inpainter | None = None,
        detector: Detector | str | os.PathLike[str] = DEFAULT_DETECTOR,
        device: str | torch.device | None = None,
    ) -> None:
        """Combines a model with an inpainter and a detector.

        Args:
            model: a ``Sam``, or a predictor that holds one; None if :meth:`segment` is not used.
            inpainter: the inpainter. If None, ``OpenCVInpainter`` for :meth:`remove`, and
                ``DiffusersInpainter``, loaded on first use, for :meth:`fill` and :meth:`replace`.
            detector: detects objects by text, as in ``GroundedMobileSam``; loaded on first use if
                it is given by name.
            device: device of the model, the detector and the default inpainter; where the model is
                if None.

        Raises:
            TypeError: if ``model`` is neither a Sam nor a predictor.
        """
        self.predictor = None if model is None else as_predictor(model, device)
        self.device = device if self.predictor is None else self.predictor.device
        self.inpainter = inpainter
        self.detector = detector

    def segment(
        self,
        image: ImageSource,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        text: str | None = None,
        box_threshold: float = 0.25,
        min_area: int = 1,
    ) -> Instances:
        """Segments the object at points or in a box, or the objects that match a text.

        A single point is ambiguous: the result is the one of SAM's three candidates with the
        highest predicted IoU.

        Args:
            image: an array, a PIL image or a path.
            point_coords: (N, 2), XY in pixels.
            point_labels: (N,), 1 on the object, 0 on the background; all 1 if None.
            box: XYXY in pixels.
            text: phrases with full stops or commas between them; selects all matching objects.
                Needs ``pip install "mobile-sam-plugin[grounded]"``.
            box_threshold: minimum score of an object that matches the text, in [0, 1].
            min_area: minimum area in pixels of an object that matches the text; a warning reports
                how many are skipped.

        Returns:
            The objects: one for points and box, at least one for a text.

        Raises:
            RuntimeError: if there is no model.
            UserError: if there is no prompt, text and another prompt, or a malformed one; if
                nothing matches the text, or nothing of that score and area.
            MissingExtra: if the extra for text is not installed.
            FileNotFoundError, ConnectionError: if the detector cannot be loaded.
        """
        if self.predictor is None:
            raise RuntimeError("there is no model to segment with: InpaintAnything(sam)")
        pixels = load_image(image)
        if text is not None:
            if point_coords is not None or box is not None:
                raise UserError("give either text, or points and a box, not both")
            found = self._grounded.predict(pixels, text, box_threshold)
            if not len(found):
                raise UserError(
                    f"nothing in the image matches {text!r} with a score of {box_threshold} or "
                    "more: try other words, or a lower box_threshold"
                )
            areas = np.count_nonzero(found.masks, axis=(1, 2))
            large = areas >= max(min_area, 1)
            if not large.any():
                raise UserError(
                    f"all objects that match {text!r} have fewer than {max(min_area, 1)} pixels, "
                    f"at most {areas.max()}: lower min_area, or try other words"
                )
            if not large.all():
                warnings.warn(
                    f"skipped {np.count_nonzero(~large)} of {len(found)} objects that match "
                    f"{text!r}: they have fewer than {max(min_area, 1)} pixels",
                    stacklevel=2,
                )
            return found[large]
        if point_coords is None and box is None:
            raise UserError("there is no prompt: give point_coords, box or text")
        count = 0
        if point_coords is not None:
            count = len(np.atleast_2d(np.asarray(point_coords)))
            if point_labels is None:
                point_labels = np.ones(count, dtype=int)
        self.predictor.set_image(pixels)
        masks, scores, _ = self.predictor.predict(
            point_coords, point_labels, box, multimask_output=count == 1 and box is None
        )
        best = int(scores.argmax())
        return as_instances(masks[best], pixels, float(scores[best]))

    def remove(self, image: ImageSource, selection: Selection, margin: int = MARGIN) -> Inpainting:
        """Removes objects: paints the background in their place.

        A painted pixel gets the opacity of the nearest pixel that is not painted.

        Args:
            image: an array, a PIL image or a path.
            selection: objects of :meth:`segment`, or a mask (H, W).
            margin: distance in pixels by which the masks are dilated. Pixels outside keep their
                bytes.

        Raises:
            UserError: if a mask is empty, covers the whole image or has another size; if the margin
                is negative; or if the inpainter returns another kind of image.
        """
        pixels = load_image(image)
        objects = as_instances(selection, pixels)
        hole = _union(objects, margin)
        painted = self._remove(pixels, hole)
        alpha, profile = _read_extras(image)
        if alpha is not None:
            alpha = _fill_nearest(alpha, hole)
        return Inpainting(painted, pixels, hole, objects, alpha, profile)

    def remove_video(
        self,
        video: Video | VideoSource,
        selections: Iterable[Selection | None] | Mapping[int, Selection],
        margin: int = MARGIN,
    ) -> Iterator[Pixels]:
        """Removes a tracked object from a video, one frame at a time.

        Args:
            video: a video file, a folder of images, or an iterable of frames.
            selections: one per frame, as in :meth:`remove`, or None or an empty mask where the
                object is not visible; or a mapping of frame numbers, for example a
                :class:`~mobile_sam_plugin.integrations.video.MaskFolder`. Frames stay as they are
                if they have no selection or it covers them; warnings at the end report how many.
            margin: as in :meth:`remove`.

        Yields:
            The painted frames, (H, W, 3) uint8 RGB.

        Raises:
            FileNotFoundError: if there is no such file.
            UserError: if the video cannot be decoded or its size changes, or the numbers of frames
                and of selections differ; or as in :meth:`remove`.

        Examples:
            >>> masks = (tracked.objects for tracked in track)
            >>> frames = editor.remove_video("street.mp4", masks)
            >>> write_video("empty_street.mp4", frames, Video("street.mp4").frame_rate)
        """
        video = video if isinstance(video, Video) else Video(video)
        length = covered = 0
        for pixels, selection in _pair(video, selections):
            length += 1
            if selection is None or not _masks_of(selection).any():
                yield pixels
                continue
            hole = _union(as_instances(selection, pixels), margin)
            covered += bool(hole.all())
            yield pixels if hole.all() else self._remove(pixels, hole)
        if covered:
            warnings.warn(
                f"{covered} of {length} frames stay as they are, since their masks cover them "
                "completely: nothing shows the background",
                stacklevel=2,
            )

    def fill(
        self, image: ImageSource, selection: Selection, prompt: str, margin: int = MARGIN
    ) -> Inpainting:
        """Paints what a prompt describes in the place of the objects.

        Args:
            image, selection, margin: as in :meth:`remove`.
            prompt: description of what to paint.

        Raises:
            UserError: if the prompt is empty or longer than the model reads; if a mask is empty or
                has another size; or if the inpainter fails.
            MissingExtra: if the extra of the default inpainter is not installed.
        """
        pixels, objects = self._prepare(image, selection, prompt)
        hole = _union(objects, margin)
        return self._paint_prompt(image, pixels, hole, prompt, objects)

    def replace(
        self, image: ImageSource, selection: Selection, prompt: str, margin: int = MARGIN
    ) -> Inpainting:
        """Paints a background that a prompt describes around the objects.

        The pixels of the objects and of the margin around them keep their bytes.

        Args:
            image, selection, margin: as in :meth:`remove`.
            prompt: description of the background.

        Raises:
            UserError: as in :meth:`fill`, or if the masks leave no background.
            MissingExtra: if the extra of the default inpainter is not installed.
        """
        pixels, objects = self._prepare(image, selection, prompt)
        hole = ~_union(objects, margin)
        if not hole.any():
            raise UserError("the masks cover the whole image: there is no background to replace")
        return self._paint_prompt(image, pixels, hole, prompt, objects)

    def _remove(self, pixels: Pixels, hole: Mask) -> Pixels:
        if hole.all():
            raise UserError("the masks cover the whole image: nothing shows the background")
        return _paint(self.inpainter or OpenCVInpainter(), pixels, hole, "")

    def _paint_prompt(
        self, image: ImageSource, pixels: Pixels, hole: Mask, prompt: str, objects: Instances
    ) -> Inpainting:
        painted = _paint(self.inpainter or self._diffusers, pixels, hole, prompt)
        alpha, profile = _read_extras(image)
        if alpha is not None:
            alpha = np.where(hole, np.uint8(255), alpha)
        return Inpainting(painted, pixels, hole, objects, alpha, profile)

    def _prepare(
        self, image: ImageSource, selection: Selection, prompt: str
    ) -> tuple[Pixels, Instances]:
        if not prompt.strip():
            raise UserError("the prompt is empty: describe what to paint, as 'a cat on a bench'")
        pixels = load_image(image)
        return pixels, as_instances(selection, pixels)

    @cached_property
    def _grounded(self) -> GroundedMobileSam:
        return GroundedMobileSam(self.predictor, self.detector)

    @cached_property
    def _diffusers(self) -> DiffusersInpainter:
        return DiffusersInpainter(device=self.device or "cpu")


def predict_masks_with_sam(
    img: Pixels,
    point_coords: list[list[float]],
    point_labels: list[int],
    model_type: str,
    ckpt_p: str,
    device: str = "cuda",
) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    """Replaces ``predict_masks_with_sam`` of Inpaint-Anything's ``sam_segment.py``.

    Args:
        img: (H, W, 3) uint8 RGB.
        point_coords: (N, 2), XY in pixels.
        point_labels: (N,), 1 on the object, 0 on the background.
        model_type: ``"vit_t"``, or another type in ``sam_model_registry``.
        ckpt_p: checkpoint, see :func:`~mobile_sam_plugin.build_sam_vit_t`.
        device: device of the model.

    Returns:
        Three masks (3, H, W), their predicted IoU (3,), and low-res logits (3, 256, 256).

    Raises:
        UserError: if ``model_type`` is unknown, or as in ``SamPredictor.predict``.

    Examples:
        >>> masks, _, _ = predict_masks_with_sam(
        ...     img, [[200, 450]], [1], model_type="vit_t", ckpt_p="mobile_sam.pt", device="cpu"
        ... )
    """
    if model_type not in sam_model_registry:
        raise UserError(
            f"there is no model type {model_type!r}, only {', '.join(sam_model_registry)}"
        )
    sam = sam_model_registry[model_type](checkpoint=ckpt_p).to(device)
    predictor = SamPredictor(sam)
    predictor.set_image(img)
    return predictor.predict(np.array(point_coords), np.array(point_labels), multimask_output=True)


def grow_mask(mask: Mask, margin: int) -> Mask:
    """Returns a mask with all pixels that are at most a margin away from it.

    Args:
        mask: (H, W) bool.
        margin: distance in pixels between centres, at least 0.

    Raises:
        UserError: if the margin is negative.
    """
    if margin < 0:
        raise UserError(f"the margin must be 0 pixels or more, not {margin}")
    grown = mask.copy()
    if margin == 0 or not mask.any():
        return grown
    # The cost of a distance transform does not depend on the margin; that of a dilation is square.
    window = window_around(mask, lambda side: side + 2 * margin + 2)
    distance = cv2.distanceTransform(
        (~mask[window]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    grown[window] = distance <= margin + 1e-3
    return grown


def _read_extras(image: ImageSource) -> tuple[Pixels | None, bytes | None]:
    """The opacity (H, W) of an image, and its ICC profile, as far as it has them."""
    if isinstance(image, np.ndarray):
        return (image[..., 3].copy() if image.ndim == 3 and image.shape[2] == 4 else None), None
    if not isinstance(image, Image.Image):
        with open_image(image, os.fspath(image)) as opened:
            opened.load()
            return _read_extras(opened)
    alpha = None
    if image.has_transparency_data:
        alpha = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))[..., 3]
    # A profile of gray or CMYK does not fit the painted RGB.
    fits = image.mode in ("P", "PA", "RGB", "RGBA", "RGBX")
    return alpha, image.info.get("icc_profile") if fits else None


def _pair(
    video: Video, selections: Iterable[Selection | None] | Mapping[int, Selection]
) -> Iterator[tuple[Pixels, Selection | None]]:
    """Yields each frame with its selection."""
    if isinstance(selections, Mapping):
        index = -1
        for index, pixels in enumerate(video):
            yield pixels, selections.get(index)
        masked = sum(number <= index for number in selections)
        if masked <= index:
            warnings.warn(
                f"{index + 1 - masked} of {index + 1} frames have no mask and stay as they are",
                stacklevel=3,
            )
        if masked < len(selections):
            warnings.warn(
                f"{len(selections) - masked} of {len(selections)} masks are not used, since the "
                f"video has only {index + 1} frames",
                stacklevel=3,
            )
        return
    end: Any = object()
    for index, (pixels, selection) in enumerate(zip_longest(video, selections, fillvalue=end)):
        if pixels is end or selection is end:
            ended, others = ("frames", "masks") if pixels is end else ("masks", "frames")
            raise UserError(
                f"there are {index} {ended} and more {others}: give one mask per frame, None where "
                "the object is not visible"
            )
        yield pixels, selection


def _fill_nearest(values: Pixels, hole: Mask) -> Pixels:
    """Replaces the values (H, W) in a hole by those of the nearest pixels outside."""
    _, places = cv2.distanceTransformWithLabels(
        hole.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    known = np.zeros(places.max() + 1, np.uint8)
    known[places[~hole]] = values[~hole]
    return known[places]


def as_instances(selection: Selection, image: Pixels, score: float = 1.0) -> Instances:
    """Returns a selection as objects of this image, which have at least one pixel.

    Raises:
        UserError: if a mask is empty, or has another size than the image.
    """
    masks = _masks_of(selection)
    if masks.shape[-2:] != image.shape[:2]:
        raise UserError(
            f"the mask must have the shape {image.shape[:2]} of the image, not {masks.shape[-2:]}"
        )
    if not masks.any():
        raise UserError("the mask is empty: it selects no pixel of the image")
    if isinstance(selection, Instances):
        return selection
    return Instances(
        (image.shape[0], image.shape[1]),
        boxes_of(masks),
        masks,
        np.array([score], dtype=np.float32),
        ["object"],
        image=image,
    )


def _masks_of(selection: Selection) -> Mask:
    """The masks of a selection, (N, H, W)."""
    if isinstance(selection, Instances):
        return selection.masks
    mask = np.asarray(selection)
    if mask.ndim != 2:
        raise UserError(f"the mask must have the shape (H, W), not {mask.shape}")
    return mask.astype(bool)[None]


def _union(objects: Instances, margin: int) -> Mask:
    return grow_mask(np.logical_or.reduce(objects.masks), margin)


def _paint(inpainter: Inpainter, image: Pixels, hole: Mask, prompt: str) -> Pixels:
    """Paints an image in the hole and, whatever the inpainter does, nowhere else."""
    painted = np.asarray(inpainter(image.copy(), hole.copy(), prompt))
    if painted.shape != image.shape or painted.dtype != np.uint8:
        raise UserError(
            f"the inpainter {type(inpainter).__name__} returned {painted.dtype} of the shape "
            f"{painted.shape}, expected uint8 of the shape {image.shape}"
        )
    return np.where(hole[..., None], painted, image)
