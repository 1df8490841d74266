"""What carries masks from frame to frame: optical flow with MobileSAM, or a video model."""

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
    """Follows the objects of a video. Any class with these three methods is one."""

    def reset(self) -> None:
        """Forgets all objects and frames: another video begins."""

    def set_masks(self, frame: Frame, masks: Mapping[int, Mask]) -> None:
        """Says where some objects are, be they new, or known and corrected.

        Args:
            frame: (H, W, 3) uint8 RGB: the first one, or that which was propagated to last. After a
                gap, a later one; objects that are not told of are then lost.
            masks: (H, W) for each object's id; empty for one that is known not to be seen.
        """

    def propagate(self, frame: Frame) -> Mapping[int, Logits | Mask]:
        """Follows all objects to the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            (H, W) for the id of each object that is seen: logits, above 0 inside, or a mask. Where
            objects overlap, the higher logit wins. Each is asked for once, so that a mapping that
            makes them as they are asked for keeps memory low.
        """


class FrameEncoder:
    """Has a predictor encode a frame as soon as a prompt needs it, and not twice."""

    def __init__(self, predictor: SamPredictor) -> None:
        self.predictor = predictor
        self._encoded: tuple[Frame | None, Any] = None, None

    def __call__(self, frame: Frame) -> SamPredictor:
        """Returns the predictor with this frame set. A frame is known by its identity."""
        predictor = self.predictor
        # The features tell whether someone else has set another image since.
        known, features = self._encoded
        if known is not frame or features is not predictor.features:
            predictor.set_image(frame)
            self._encoded = frame, predictor.features
        return predictor


def claim_pixels(
    logits: Iterable[tuple[int, Logits]], size: tuple[int, ...]
) -> tuple[NDArray[np.int32], Logits]:
    """Gives each pixel to one object at most: that of the highest logit, if it is above 0.

    Args:
        logits: an object's id, above 0, and its logits (H, W), for one object after another. Of
            equal logits the first counts. None is kept.
        size: (H, W).

    Returns:
        (H, W) ids, 0 for none, and (H, W) the logits of their objects, 0 for none.
    """
    ids = np.zeros(size, dtype=np.int32)
    highest = np.zeros(size, dtype=np.float32)
    for number, values in logits:
        higher = values > highest
        np.copyto(ids, number, where=higher)
        np.copyto(highest, values, where=higher)
    return ids, highest


class OnDemand(Mapping[int, Logits]):
    """Logits of objects in the size of the frame, each made as it is asked for."""

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
    """Follows objects by one of transformers' video models: EdgeTAM, SAM 2 and those built alike.

    The model takes MobileSAM's masks of the first frame, or of corrections, as they are, and keeps
    a memory of some frames; older ones are dropped, so that memory does not grow with the video.

    Example:
        >>> propagator = TransformersPropagator("facebook/sam2.1-hiera-tiny", "cuda")
        >>> tracker = TrackAnything(sam, propagator)
    """

    def __init__(
        self,
        name: str | os.PathLike[str] = DEFAULT_VIDEO_MODEL,
        device: str | torch.device = "cpu",
    ) -> None:
        """Loads a model.

        Args:
            name: a repository on the Hub, ``"owner/repo"``, or a folder that ``save_pretrained``
                wrote, of a model with a session that frames are added to.
            device: where it computes.

        Raises:
            ImportError, FileNotFoundError, ConnectionError, ValueError: as
                :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
            ValueError: it is a model for single images, or of another kind.
        """
        self._model, self._processor = load_pretrained("AutoModel", name, device, "track")
        config = self._model.config
        streams = hasattr(self._processor, "init_video_session")
        if not streams or not hasattr(config, "num_maskmem"):
            raise UserError(
                f"{os.fspath(name)!r} holds a {type(self._model).__name__}, which is no model for "
                f"videos such as {DEFAULT_VIDEO_MODEL!r} or 'facebook/sam2.1-hiera-tiny'"
            )
        self._memory = max(config.num_maskmem, config.max_object_pointers_in_encoder)
        self._use_mask = self._model._use_mask_as_output
        self._model._use_mask_as_output = self._use_mask_with_score
        self.reset()

    def _use_mask_with_score(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own; EdgeTAM's scores lack a dimension, and cannot be joined with others."""
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
            # The model takes a mask for a tracked one, which it forgets soon, where it has tracked
            # the object in that frame before.
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
        """The pixels of a frame as the model takes them; if it is a new one, older ones go."""
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
