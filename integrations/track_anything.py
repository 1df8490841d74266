"""Track-Anything and Segment-and-Track-Anything on MobileSAM: objects followed through videos.

:class:`TrackAnything` follows objects frame by frame; :func:`track_video` follows them through a
whole video and writes the results to a folder. See https://github.com/gaomingqi/Track-Anything and
https://github.com/z-x-yang/Segment-and-Track-Anything.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import segment_anything
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from mobile_sam_plugin.checkpoint import fingerprint
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.inputs import check_integer, check_number
from mobile_sam_plugin.runs import WAY_OUT

from .flow import FlowPropagator, mask_prompt
from .instances import (
    ImageSource,
    Instances,
    as_predictor,
    boxes_of,
    everything_mode,
    load_image,
)
from .propagators import FrameEncoder, Propagator, claim_pixels
from .tracks import TrackedFrame, TrackWriter, ids_of
from .video import Frame, Video, VideoSource

Mask = NDArray[np.bool_]
FrameDetector = Callable[[Frame], Instances]
"""Returns the objects in a frame, (H, W, 3) uint8 RGB."""

MAX_OBJECTS = 255  # ids must fit a PNG with a palette
_SAME_PROMPT = 0.9  # least IoU of two masks of one prompt, which computers may round differently


def everything_detector(
    model: nn.Module | segment_anything.SamPredictor, **options: Any
) -> FrameDetector:
    """Returns a detector that segments everything in a frame.

    Args:
        model: a ``Sam``, or a predictor that holds one.
        options: of :class:`~mobile_sam_plugin.SamAutomaticMaskGenerator`, except ``output_mode``.

    Examples:
        >>> detector = everything_detector(sam, points_per_side=16)
        >>> tracker = TrackAnything(sam, detector=detector)
    """
    generator = everything_mode(model, output_mode="coco_rle", **options)

    def detect(frame: Frame) -> Instances:
        return Instances.from_records(generator.generate(frame), frame.shape[:2])

    return detect


class TrackAnything:
    """Follows objects through the frames of a video, one frame at a time.

    Attributes:
        left_out (Counter[str]): number of detections since :meth:`start` that are not followed, by
            reason: ``"small"`` (fewer than ``min_area`` pixels) and ``"many"`` (beyond 255
            objects). Detections of objects that are followed already do not count.

    Examples:
        >>> tracker = TrackAnything(sam_model_registry["vit_t"]())
        >>> frames = iter(Video("street.mp4"))
        >>> tracker.start(next(frames))
        >>> dog = tracker.add_object(point_coords=[[320, 240]])
        >>> car = tracker.add_object(box=[10, 200, 210, 330])
        >>> for frame in frames:
        ...     tracked = tracker.track(frame)
        ...     print(tracked.index, tracked.objects.tracker_id, tracked.lost)
    """

    def __init__(
        self,
        model: nn.Module | segment_anything.SamPredictor,
        propagator: Propagator | None = None,
        detector: FrameDetector | None = None,
        detect_every: int = 0,
        min_area: int = 200,
        min_new_fraction: float = 0.8,
        device: str | torch.device | None = None,
    ) -> None:
        """Combines a model with a propagator and a detector.

        Args:
            model: a ``Sam``, or a predictor that holds one.
            propagator: carries masks from frame to frame; a
                :class:`~mobile_sam_plugin.integrations.flow.FlowPropagator` if None.
            detector: detects objects in the first frame and every ``detect_every`` frames, for
                example :func:`everything_detector`, or ``lambda frame: grounded.predict(frame,
                "a dog.")`` for a text. New objects are followed from then on.
            detect_every: 0 for the first frame only; Segment-and-Track-Anything's ``sam_gap``.
            min_area: minimum area in pixels of a new object; Segment-and-Track-Anything's
                ``min_area``.
            min_new_fraction: minimum fraction of a detection that no followed object covers, if it
                is to count as new; Segment-and-Track-Anything's ``min_new_obj_iou``.
            device: device that the model is moved to; it stays where it is if None.

        Raises:
            TypeError: if ``model`` is not a ``Sam``, ``propagator`` lacks a method, ``detector`` is
                not callable, or ``detect_every`` or ``min_area`` is not a whole number.
            UserError: if ``detect_every`` or ``min_area`` is negative, or ``min_new_fraction``
                outside [0, 1].
        """
        check_integer("detect_every", detect_every, 0)
        check_integer("min_area", min_area, 0)
        check_number("min_new_fraction", min_new_fraction, 0, 1)
        methods = ("reset", "set_masks", "propagate")
        if propagator is not None and not all(hasattr(propagator, name) for name in methods):
            raise TypeError(
                f"propagator must be an object with {', '.join(methods)}, such as "
                f"TransformersPropagator(NAME), not {propagator!r:.60}"
            )
        if detector is not None and not callable(detector):
            raise TypeError(
                "detector must be a function of a frame, such as everything_detector(model), not "
                f"{detector!r:.60}"
            )
        self.predictor = as_predictor(model, device)
        self._encoder = FrameEncoder(self.predictor)
        self.propagator: Propagator = (
            FlowPropagator(self._encoder) if propagator is None else propagator
        )
        self.detector = detector
        self.detect_every = detect_every
        self.min_area = min_area
        self.min_new_fraction = min_new_fraction
        # Of the objects visible in the current frame: the id of each pixel, which takes less memory
        # than their masks, since those do not overlap; their scores; and the areas of new ones,
        # including what other objects hide.
        self._ids = np.zeros((0, 0), np.int32)
        self._scores: dict[int, float] = {}
        self._areas: dict[int, int] = {}
        self._forget()

    def start(self, frame: ImageSource, index: int = 0) -> TrackedFrame:
        """Begins a video: forgets the objects of an earlier one, and runs the detector, if any.

        Args:
            frame: first frame, an array (H, W, 3) in RGB order, a PIL image or a path.
            index: its number in the video.

        Returns:
            :attr:`current`.
        """
        self._forget()
        self._begin(load_image(frame).copy(), index)  # the caller may reuse its buffer
        if self.detector is not None:
            self.detect_objects()
        return self.current

    def add_object(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: Mask | None = None,
        label: str = "object",
        object_id: int | None = None,
    ) -> int:
        """Starts to follow another object, which is given by points, a box or a mask.

        Where objects overlap, the smaller one is on top, whatever their order.

        Args:
            point_coords: (N, 2), XY in pixels.
            point_labels: (N,), 1 on the object, 0 on the background; all 1 if None.
            box: XYXY in pixels.
            mask: (H, W), bool or whole numbers above 0 inside, instead of points and a box.
            label: name of the object in the results.
            object_id: 1 to 255; the highest id plus 1 if None.

        Returns:
            The object's id.

        Raises:
            RuntimeError: if :meth:`start` has not been called.
            TypeError: if the mask has another dtype, ``label`` is not a str, or ``object_id`` not a
                whole number.
            UserError: if there is no prompt, or a mask and another prompt; if the prompt has the
                wrong shape, or selects only pixels of smaller objects; if the id is used already or
                out of range.
        """
        frame = self._require_frame()
        if not isinstance(label, str):
            raise TypeError(f"label must be a text, not {type(label).__name__} ({label!r:.60})")
        if object_id is None:
            object_id = 1 + max(self._labels, default=0)
        check_integer("object_id", object_id)
        if object_id in self._labels:
            raise UserError(f"there is an object {object_id} already: call correct to change it")
        if not 1 <= object_id <= MAX_OBJECTS:
            raise UserError(f"object_id must be in 1 to {MAX_OBJECTS}, not {object_id}")
        if mask is None:
            found, score = self._segment(point_coords, point_labels, box)
        else:
            found, score = _only_mask(mask, frame, point_coords, point_labels, box), 1.0
        area = int(np.count_nonzero(found))
        smaller = [number for number in self._scores if self._area(number) < area]
        visible = found & ~np.isin(self._ids, smaller)
        if not visible.any():
            raise UserError(
                f"the prompt selects only pixels of the objects {smaller}, which are followed "
                "already: call correct to change them"
            )
        self._labels[object_id] = label
        self._place({object_id: visible}, {object_id: score})
        self._areas[object_id] = area
        return object_id

    def correct(
        self,
        object_id: int,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: Mask | None = None,
    ) -> TrackedFrame:
        """Corrects an object in the current frame, or shows where a lost object is.

        Args:
            object_id: id of a followed object.
            point_coords, point_labels, box, mask: as in :meth:`add_object`. Points refine the
                current mask. The new mask takes its pixels from other objects.

        Returns:
            :attr:`current`, from which tracking continues.

        Raises:
            KeyError: if there is no such object.
            RuntimeError, TypeError, UserError: as in :meth:`add_object`.
        """
        frame = self._require_frame()
        if object_id not in self._labels:
            raise KeyError(f"there is no object {object_id}, only {sorted(self._labels)}")
        if mask is None:
            before = None
            if box is None and object_id in self._scores:
                before = self._ids == object_id
            found, score = self._segment(point_coords, point_labels, box, before)
        else:
            found, score = _only_mask(mask, frame, point_coords, point_labels, box), 1.0
        self._place({object_id: found}, {object_id: score})
        return self.current

    def add_instances(self, instances: Instances) -> list[int]:
        """Starts to follow the objects detected in the current frame that are new.

        Works as Segment-and-Track-Anything's ``find_new_objs``: where detections overlap, the
        smaller one is on top. The visible part of a detection is a new object if it is large enough
        and followed objects cover little enough of it.

        Args:
            instances: detections in the current frame.

        Returns:
            The ids of the new objects. At most 255 objects are followed; :attr:`left_out` counts
            the others.

        Raises:
            RuntimeError: if :meth:`start` has not been called.
            TypeError: if they are not ``Instances``.
            UserError: if they come from an image of another size.
        """
        frame = self._require_frame()
        if not isinstance(instances, Instances):
            raise TypeError(
                f"a detector must return Instances, not {type(instances).__name__}; the same holds "
                "for the argument of add_instances"
            )
        if instances.image_size != frame.shape[:2]:
            raise UserError(
                f"the objects come from an image of {instances.image_size[0]} x "
                f"{instances.image_size[1]} pixels, the frame has {frame.shape[0]} x "
                f"{frame.shape[1]}"
            )
        painted = np.full(frame.shape[:2], -1)
        for place in np.argsort([-np.count_nonzero(mask) for mask in instances.masks]):
            painted[instances.masks[place]] = place
        free = self._ids == 0
        masks: dict[int, Mask] = {}
        scores: dict[int, float] = {}
        for place, label in enumerate(instances.labels):
            visible = painted == place
            new = visible & free
            area = np.count_nonzero(new)
            enough = area >= self.min_new_fraction * np.count_nonzero(visible)
            object_id = 1 + max(self._labels, default=0)
            if not enough or not area:
                continue
            if area < self.min_area:
                self.left_out["small"] += 1
            elif object_id > MAX_OBJECTS:
                self.left_out["many"] += 1
            else:
                self._labels[object_id] = label
                masks[object_id] = new
                scores[object_id] = float(instances.scores[place])
        if masks:
            self._place(masks, scores)
        return [*masks]

    def detect_objects(self) -> list[int]:
        """Runs the detector on the current frame, and returns the ids of new objects.

        Raises:
            RuntimeError: if there is no detector, or :meth:`start` has not been called.
            TypeError, UserError: as in :meth:`add_instances`.
        """
        if self.detector is None:
            raise RuntimeError("there is no detector: pass detector to TrackAnything")
        return self.add_instances(self.detector(self._require_frame()))

    def track(self, frame: ImageSource) -> TrackedFrame:
        """Follows all objects to the next frame.

        Args:
            frame: as in :meth:`start`, of the same size.

        Returns:
            :attr:`current`.

        Raises:
            RuntimeError: if :meth:`start` has not been called.
            UserError: if the frame has another size, or the propagator returns unknown objects,
                masks of another size, or NaN.
        """
        before = self._require_frame()
        pixels = load_image(frame).copy()
        if pixels.shape != before.shape:
            raise UserError(
                f"frame {self._index + 1} has {pixels.shape[1]} x {pixels.shape[0]} pixels, the "
                f"frames before have {before.shape[1]} x {before.shape[0]}: call start for another "
                "video"
            )
        logits = self.propagator.propagate(pixels) if self._labels else {}
        # One after another, since all of them in the size of the frame would take much memory.
        checked = ((number, self._check_logits(number, logits[number])) for number in logits)
        ids, highest = claim_pixels(checked, pixels.shape[:2])
        self._begin(pixels, self._index + 1)
        self._ids = ids
        for number in _values(ids):
            self._scores[number] = float(np.mean(1 / (1 + np.exp(-highest[ids == number]))))
        if self.detector and self.detect_every and self._index % self.detect_every == 0:
            self.detect_objects()
        return self.current

    @property
    def current(self) -> TrackedFrame:
        """The visible objects in the current frame, and the ids of the lost ones.

        A score is the mean probability of the mask's pixels. For an object that was added or
        corrected in this frame it is the predicted IoU, or 1 for a mask.
        """
        frame = self._require_frame()
        seen = sorted(self._scores)
        masks = np.empty((len(seen), *frame.shape[:2]), dtype=bool)
        for mask, number in zip(masks, seen, strict=True):
            np.equal(self._ids, number, out=mask)
        objects = Instances(
            frame.shape[:2],
            boxes_of(masks),
            masks,
            np.array([self._scores[number] for number in seen], np.float32),
            [self._labels[number] for number in seen],
            tracker_id=np.array(seen, np.int64),
            image=frame,
        )
        lost = tuple(sorted(self._labels.keys() - self._scores.keys()))
        return TrackedFrame(self._index, objects, lost, tuple(self._labels[i] for i in lost))

    def resume(self, history: Iterable[tuple[ImageSource, TrackedFrame]]) -> None:
        """Continues a video where another tracker has stopped.

        Args:
            history: the frames in which lost objects were last seen, in order, then the last frame,
                each with its objects. It is read once and not kept. Objects of which only the id is
                known get the label ``"object"``.

        Raises:
            UserError: if the objects have no ``tracker_id``.
        """
        self._forget()
        for frame, tracked in history:
            self._begin(load_image(frame).copy(), tracked.index)
            objects = tracked.objects
            ids = ids_of(objects)
            self._labels.update(zip(ids, objects.labels, strict=True))
            labels = dict(zip(tracked.lost, tracked.lost_labels, strict=False))
            for number in tracked.lost:  # some of which may never have been seen
                self._labels.setdefault(number, labels.get(number) or "object")
            # Also where nothing is visible, so that the propagator knows that all are lost.
            if self._labels:
                self._place(
                    dict(zip(ids, objects.masks, strict=True)),
                    dict(zip(ids, objects.scores.tolist(), strict=True)),
                )

    def describe_left_out(self) -> str:
        """Returns a message about the detections in :attr:`left_out`, "" if there are none."""
        kinds = {
            "small": f"of fewer than min_area ({self.min_area}) pixels: lower it (--min-area)",
            "many": f"beyond {MAX_OBJECTS} objects",
        }
        told = [
            f"{count} detection{'s'[: count != 1]} {kinds[kind]}"
            for kind, count in sorted(self.left_out.items())
        ]
        return f"left out: {'; '.join(told)}" if told else ""

    def _forget(self) -> None:
        self.propagator.reset()
        self._frame: Frame | None = None
        self._index = 0
        self._labels: dict[int, str] = {}
        self.left_out: Counter[str] = Counter()

    def _begin(self, frame: Frame, index: int) -> None:
        """Makes a frame the current one, in which nothing is visible yet."""
        self._frame, self._index = frame, index
        self._ids = np.zeros(frame.shape[:2], np.int32)
        self._scores, self._areas = {}, {}

    def _area(self, number: int) -> int:
        """The area of a visible object; with its hidden part, if it is new in this frame."""
        return self._areas.get(number) or int(np.count_nonzero(self._ids == number))

    def _require_frame(self) -> Frame:
        if self._frame is None:
            raise RuntimeError("there is no frame yet: call start with the first one")
        return self._frame

    def _segment(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        box: ArrayLike | None,
        before: Mask | None = None,
    ) -> tuple[Mask, float]:
        """The mask of a prompt in the current frame, and its predicted IoU."""
        if point_coords is None and box is None:
            raise UserError("there is no prompt: give points, a box or a mask")
        predictor = self._encoder(self._require_frame())
        count = np.shape(point_coords)[:1] if point_coords is not None else ()
        if point_coords is not None and point_labels is None:
            point_labels = np.ones(count, dtype=int)
        ambiguous = box is None and before is None and count == (1,)
        masks, scores, _ = predictor.predict(
            point_coords,
            point_labels,
            box,
            mask_input=None if before is None else mask_prompt(predictor, before),
            multimask_output=ambiguous,
        )
        best = int(scores.argmax())
        if not masks[best].any():
            raise UserError("the mask of the prompt is empty: give more points, or a box")
        return masks[best], float(scores[best])

    def _place(self, masks: dict[int, Mask], scores: dict[int, float]) -> None:
        """Sets masks in the current frame, which take their pixels from other objects."""
        frame = self._require_frame()
        ids = self._ids.copy()
        ids[np.isin(ids, [*masks])] = 0  # the earlier masks of corrected objects
        for number, mask in masks.items():
            ids[mask] = number
        robbed = [number for number in _values(self._ids[ids != self._ids]) if number not in masks]
        changed = {**masks, **{number: ids == number for number in robbed}}
        self.propagator.set_masks(frame, changed)
        self._ids = ids
        self._scores.update(scores)
        self._scores = {number: self._scores[number] for number in _values(ids)}
        for number in masks:
            self._areas.pop(number, None)

    def _check_logits(self, object_id: int, values: NDArray[Any]) -> NDArray[np.float32]:
        frame = self._require_frame()
        name = type(self.propagator).__name__
        if object_id not in self._labels:
            raise UserError(f"{name} returned the object {object_id}, which is not followed")
        logits = np.asarray(values)
        if logits.shape != frame.shape[:2]:
            raise UserError(
                f"{name} returned a mask of the shape {logits.shape} for object {object_id}, the "
                f"frame has {frame.shape[:2]}"
            )
        if logits.dtype == bool:
            return np.where(logits, 10, -10).astype(np.float32)
        if not np.isfinite(logits).all():
            raise UserError(f"{name} returned NaN or infinity for object {object_id}")
        return logits.astype(np.float32)


def track_video(
    tracker: TrackAnything,
    video: Video | VideoSource,
    folder: str | os.PathLike[str],
    prompts: Mapping[int, Callable[[TrackAnything], object]] | None = None,
    first_frame: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int | None], object] | None = None,
    on_frame: Callable[[Frame, TrackedFrame], object] | None = None,
) -> list[int]:
    """Follows objects through a video, and writes the results to a folder.

    See :class:`~mobile_sam_plugin.integrations.tracks.TrackWriter` for the files. Memory does not
    grow with the video. At the end, a warning reports detections that are not followed.

    The same call resumes an interrupted run: the frames that are done stay as they are, and objects
    are followed from the last of them. A run is the same if video, weights and settings are, and if
    the prompt of the first frame gives the masks that are written for it.

    Args:
        tracker: the tracker, which forgets its objects.
        video: a video file, a folder of images, or an iterable of frames. An iterable cannot be
            resumed.
        folder: created if missing.
        prompts: functions of the tracker by frame number, for example ``{0: lambda tracker:
            tracker.add_object(point_coords=[[320, 240]]), 30: lambda tracker: tracker.correct(1,
            point_coords=[[200, 90]], point_labels=[0])}``.
        first_frame: frame at which tracking begins; earlier frames are skipped.
        settings: everything else that distinguishes this run from others on the same video, such
            as the prompts of later frames, as ``json`` takes it.
        progress: called after each frame with the number of frames done and of all frames, which is
            None if unknown.
        on_frame: called after each frame with the frame and its objects.

    Returns:
        The ids of all objects, sorted.

    Raises:
        UserError: if there is no object to follow, ``prompts`` has a frame that the video lacks, or
            the folder holds another run; or as in :class:`Video` and the tracker.
    """
    check_integer("first_frame", first_frame, 0)
    video = video if isinstance(video, Video) else Video(video)
    prompts = prompts or {}
    early = [index for index in prompts if index < first_frame]
    if early:
        raise UserError(
            f"first_frame ({first_frame}) must not be later than the frame of a prompt {early}"
        )
    index = -1
    objects: set[int] = set()
    last_seen: dict[int, int] = {}  # of the frames that are done, the last one with each object
    weights = fingerprint(tracker.predictor.model.state_dict())
    run = {"first_frame": first_frame, "weights_sha256": weights, **(settings or {})}
    total = None if video.length is None else max(0, video.length - first_frame)
    with TrackWriter(folder, video, run) as writer:
        for index, frame in enumerate(video):
            if index < first_frame:
                continue
            done = index in writer.done
            if index == first_frame:
                tracker.start(frame, index)
            elif not done:
                if index - 1 in writer.done:
                    tracker.resume(_read_again(video, writer, {*last_seen.values()}))
                tracker.track(frame)
            if index in prompts and (index == first_frame or not done):
                prompts[index](tracker)
            tracked = writer.read(index) if done else tracker.current
            if done and index == first_frame and not _alike(tracker.current, tracked):
                raise UserError(
                    f"the folder {os.fspath(folder)!r} holds another run, with other objects in "
                    f"frame {index}: {WAY_OUT}"
                )
            seen = ids_of(tracked.objects)
            objects.update(seen, tracked.lost)
            more_to_come = tracker.detect_every or any(number > index for number in prompts)
            if index == first_frame and not objects and not more_to_come:
                reasons = tracker.describe_left_out()
                raise UserError(
                    f"there is no object to follow in frame {index}"
                    + (f"; {reasons}" if reasons else "")
                )
            writer.write(frame, tracked)
            if done:
                # 0, which is no object's id, stands for the last frame.
                last_seen.update(dict.fromkeys((0, *seen), index))
            if on_frame is not None:
                on_frame(frame, tracked)
            if progress is not None:
                progress(index + 1 - first_frame, total)
        late = [number for number in prompts if number > index]
        if first_frame > index or late:
            raise UserError(
                f"{video.name!r} has {index + 1} frames, so there is no frame "
                f"{max([first_frame, *late])}"
            )
    if tracker.left_out:
        warnings.warn(tracker.describe_left_out(), stacklevel=2)
    return sorted(objects)


def _read_again(
    video: Video, writer: TrackWriter, indices: Collection[int]
) -> Iterator[tuple[Frame, TrackedFrame]]:
    """Yields some of the frames that an earlier run has done, with their objects, in order.

    They are decoded again: to keep them for objects that may never come back would take memory in
    proportion to the video.
    """
    for index, frame in enumerate(islice(video, max(indices) + 1)):
        if index in indices:
            yield frame, writer.read(index)


def _alike(found: TrackedFrame, written: TrackedFrame) -> bool:
    """Whether two runs begin with the same objects, apart from rounding."""
    if found.lost != written.lost or len(found.objects) != len(written.objects):
        return False
    ours, theirs = found.id_map(), written.id_map()
    for number in {*_values(ours), *_values(theirs)}:
        common = np.count_nonzero((ours == number) & (theirs == number))
        if common < _SAME_PROMPT * np.count_nonzero((ours == number) | (theirs == number)):
            return False
    return True


def _values(ids: NDArray[np.int32] | NDArray[np.uint8]) -> list[int]:
    """The ids in a map, without 0."""
    return [number for number in np.flatnonzero(np.bincount(ids.ravel())).tolist() if number]


def _only_mask(mask: Mask, frame: Frame, *others: ArrayLike | None) -> Mask:
    """Checks a mask that is given instead of points and a box."""
    if any(other is not None for other in others):
        raise UserError("give a mask, or points and a box, not both")
    checked = np.asarray(mask)
    if checked.dtype.kind not in "bui":
        raise TypeError(f"the mask must be boolean or whole numbers, not {checked.dtype}")
    if checked.shape != frame.shape[:2]:
        raise UserError(
            f"the mask must have the shape of the frame, {frame.shape[:2]}, not {checked.shape}"
        )
    if not checked.any():
        raise UserError("the mask is empty: there is nothing to follow")
    return checked > 0
