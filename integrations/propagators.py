"""Propagators, which carry masks from frame to frame, and the video models of transformers."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mobile_sam_plugin import SamPredictor
from mobile_sam_plugin.errors import UserError

from .pretrained import load_pretrained

Frame = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Logits = NDArray[np.float32]


class Propagator(Protocol):
    """Follows the objects of a video. Any class with these methods is a propagator."""

    def reset(self) -> None:
        """Forgets all objects and frames: another video begins."""

    def set_masks(self, frame: Frame, masks: Mapping[int, Mask]) -> None:
        """Sets the masks of new or corrected objects.

        Args:
            frame: (H, W, 3) uint8 RGB: the first frame, the last one propagated to, or a later one;
                objects not in ``masks`` are lost after such a gap.
            masks: (H, W) bool by object id; empty for an object that is not visible.
        """

    def propagate(self, frame: Frame) -> Mapping[int, Logits | Mask]:
        """Follows all objects to the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            (H, W) by the id of each visible object: logits, above 0 inside, or a bool mask. Where
            objects overlap, the higher logit wins. Each value is read once, so a mapping that
            creates values when they are read keeps memory low.
        """


class FrameEncoder:
    """Encodes a frame when a prompt first needs it, and only once."""

    def __init__(self, predictor: SamPredictor) -> None:
        self.predictor = predictor
        self._encoded: tuple[Frame | None, Any] = None, None

    def __call__(self, frame: Frame) -> SamPredictor:
        """Returns the predictor with this frame set. A frame is recognised by its identity."""
        predictor = self.predictor
        # The features change if someone else sets another image.
        known, features = self._encoded
        if known is not frame or features is not predictor.features:
            predictor.set_image(frame)
            self._encoded = frame, predictor.features
        return predictor


def claim_pixels(
    logits: Iterable[tuple[int, Logits]], size: tuple[int, ...]
) -> tuple[NDArray[np.int32], Logits]:
    """Assigns each pixel to the object with the highest logit above 0.

    Args:
        logits: pairs of an id above 0 and logits (H, W), which are read once and not kept. Of equal
            logits the first counts.
        size: (H, W).

    Returns:
        The ids, (H, W) int32, and the logits of these objects, (H, W) float32; both 0 for none.
    """
    ids = np.zeros(size, dtype=np.int32)
    highest = np.zeros(size, dtype=np.float32)
    for number, values in logits:
        higher = values > highest
        np.copyto(ids, number, where=higher)
        np.copyto(highest, values, where=higher)
    return ids, highest


class OnDemand(Mapping[int, Logits]):
    """Logits of objects in the size of the frame, computed when they are read."""

    def __init__(self, small: Mapping[int, Any], enlarge: Callable[[Any], Logits]) -> None:
        self._small = small
        self._enlarge = enlarge

    def __getitem__(self, number: int) -> Logits:
        return self._enlarge(self._small[number])

    def __iter__(self) -> Iterator[int]:
        return iter(self._small)

    def __len__(self) -> int:
        return len(self._small)


DEFAULT_VIDEO_MODEL = "yonigozlan/EdgeTAM-hf"


class TransformersPropagator:
    """Follows objects with a video model of transformers: EdgeTAM, SAM 2 and similar ones.

    The model starts from MobileSAM's masks of the first frame or of corrections, and keeps a memory
    of some frames. Older frames are dropped, so memory does not grow with the video.

    Examples:
        >>> propagator = TransformersPropagator("facebook/sam2.1-hiera-tiny", "cuda")
        >>> tracker = TrackAnything(sam, propagator)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_VIDEO_MODEL,
        device: str | torch.device = "cpu",
    ) -> None:
        """Loads a model with a video session.

        Args:
            model: repository on the Hub, ``"owner/repo"``, or a folder that ``save_pretrained`` has
                written.
            device: device of the model.

        Raises:
            UserError: if it is not a video model.
            Exception: as :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
        """
        self._model, self._processor = load_pretrained("AutoModel", model, device, "track")
        config = self._model.config
        streams = hasattr(self._processor, "init_video_session")
        if not streams or not hasattr(config, "num_maskmem"):
            raise UserError(
                f"{os.fspath(model)!r} is a {type(self._model).__name__}, not a video model such "
                f"as {DEFAULT_VIDEO_MODEL!r} or 'facebook/sam2.1-hiera-tiny'"
            )
        self._memory = max(config.num_maskmem, config.max_object_pointers_in_encoder)
        self._use_mask = self._model._use_mask_as_output
        self._model._use_mask_as_output = self._use_mask_with_score
        self.reset()

    def _use_mask_with_score(self, *args: Any, **kwargs: Any) -> Any:
        """The model's method; adds a dimension that EdgeTAM's scores lack beside other scores."""
        output = self._use_mask(*args, **kwargs)
        output.object_score_logits = output.object_score_logits.reshape(-1, 1, 1)
        return output

    def reset(self) -> None:
        """As :meth:`Propagator.reset`."""
        self._session = self._processor.init_video_session(
            inference_device=self._model.device, dtype=self._model.dtype
        )
        self._frame: Frame | None = None
        self._index = -1

    def set_masks(self, frame: Frame, masks: Mapping[int, Mask]) -> None:
        """As :meth:`Propagator.set_masks`."""
        pixels = self._add(frame)
        self._processor.add_inputs_to_inference_session(
            self._session, self._index, [*masks], input_masks=[*masks.values()]
        )
        for number in masks:
            # If the model has tracked the object in this frame before, it would treat the mask as a
            # tracked one, which it soon forgets.
            index = self._session.obj_id_to_idx(number)
            self._session.frames_tracked_per_obj[index].pop(self._index, None)
            self._session.output_dict_per_obj[index]["non_cond_frame_outputs"].pop(
                self._index, None
            )
        self._model(self._session, frame_idx=self._index, frame=pixels)
        for inputs in self._session.mask_inputs_per_obj.values():
            inputs.clear()

    def propagate(self, frame: Frame) -> Mapping[int, Logits]:
        """As :meth:`Propagator.propagate`."""
        pixels = self._add(frame)
        output = self._model(self._session, frame_idx=self._index, frame=pixels)
        seen = {
            number: output.pred_masks[index : index + 1]
            for index, number in enumerate(output.object_ids)
            if output.object_score_logits[index] > 0
        }
        size = frame.shape[:2]

        def enlarge(logits: torch.Tensor) -> Logits:
            (large,) = self._processor.post_process_masks([logits], [size], binarize=False)
            return large[0, 0].float().cpu().numpy()

        return OnDemand(seen, enlarge)

    def _add(self, frame: Frame) -> torch.Tensor:
        """The model's input for a frame; drops old frames if it is a new one."""
        frames = self._session.processed_frames
        if frame is self._frame:
            return frames[self._index]
        self._frame = frame
        self._index += 1
        if frames is not None:
            frames.clear()
        oldest = self._index - self._memory
        for outputs in self._session.output_dict_per_obj.values():
            _drop_before(outputs["non_cond_frame_outputs"], oldest)
        for tracked in self._session.frames_tracked_per_obj.values():
            _drop_before(tracked, oldest)
        return self._processor(images=frame, return_tensors="pt").pixel_values[0]


def _drop_before(by_frame: dict[int, Any], oldest: int) -> None:
    for index in [index for index in by_frame if index < oldest]:
        del by_frame[index]
