"""Track-Anything and Segment-and-Track-Anything on MobileSAM: objects followed through videos.

:class:`TrackAnything` follows objects frame by frame, :func:`track_video` a whole video into a
folder. :class:`BaseSegmenter` and :class:`Segmentor` stand for the classes of those names in
https://github.com/gaomingqi/Track-Anything and
https://github.com/z-x-yang/Segment-and-Track-Anything.
"""

import operator
import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import segment_anything
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from tqdm import tqdm

from mobile_sam_plugin.checkpoint import fingerprint
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.inputs import check_number
from mobile_sam_plugin.records import decode_mask

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
from .tracks import TrackedFrame, TrackWriter
from .video import Frame, Video, VideoSource

Mask = NDArray[np.bool_]
Finder = Callable[[Frame], Instances]
"""Finds objects in a frame, (H, W, 3) uint8 RGB."""
MAX_OBJECTS = 255  # ids must fit a PNG with a palette


def find_everything(model: nn.Module | segment_anything.SamPredictor, **options: Any) -> Finder:
    """Returns a finder of everything in a frame.

    Args:
        model: a ``Sam``, or a predictor that holds one.
        options: of :class:`~mobile_sam_plugin.SamAutomaticMaskGenerator`, but for its
            ``output_mode``.

    Example:
        >>> tracker = TrackAnything(sam, find=find_everything(sam, points_per_side=16))
    """
    generator = everything_mode(model, output_mode="coco_rle", **options)

    def find(frame: Frame) -> Instances:
        records = generator.generate(frame)
        masks = np.zeros((len(records), *frame.shape[:2]), dtype=bool)
        for mask, record in zip(masks, records, strict=True):
            mask[:] = decode_mask(record)
        scores = [record["predicted_iou"] for record in records]
        return _as_instances(masks, scores, ["object"] * len(records))

    return find


class TrackAnything:
    """Follows objects through the frames of a video, as they come.

    Attributes:
        left_out (Counter[str]): how many finds were not followed since :meth:`start`, by the
            reason: ``"small"``, of fewer than ``min_area`` pixels, and ``"many"``, beyond 255
            objects. Those that are followed already do not count.

    Example:
        >>> tracker = TrackAnything(sam_model_registry["vit_t"]())
        >>> frames = iter(Video("street.mp4"))
        >>> tracker.start(next(frames))
        >>> dog = tracker.add_object(points=[[320, 240]])
        >>> car = tracker.add_object(box=[10, 200, 210, 330])
        >>> for frame in frames:
        ...     tracked = tracker.track(frame)
        ...     print(tracked.index, tracked.objects.ids, tracked.objects.boxes, tracked.lost)
    """

    def __init__(
        self,
        model: nn.Module | segment_anything.SamPredictor,
        propagator: Propagator | None = None,
        find: Finder | None = None,
        find_every: int = 0,
        min_area: int = 200,
        min_new_share: float = 0.8,
        device: str | torch.device | None = None,
    ) -> None:
        """Takes the model and what carries masks from frame to frame.

        Args:
            model: a ``Sam``, or a predictor that holds one.
            propagator: a :class:`~mobile_sam_plugin.integrations.propagators.FlowPropagator` if
                None.
            find: finds objects in the first frame and every ``find_every`` frames, such as
                :func:`find_everything`, or a text's by ``lambda frame: grounded.predict(frame,
                "a dog.")``. Those that are not followed yet are, from then on.
            find_every: 0 for the first frame only; Segment-and-Track-Anything's ``sam_gap``.
            min_area: in pixels; smaller finds are left. Its ``min_area``.
            min_new_share: of a find that no followed object may cover. Its ``min_new_obj_iou``.
            device: where the model is moved; it stays where it is if None.

        Raises:
            TypeError: the model is no ``Sam``, the propagator none, ``find`` no function, or
                ``find_every`` or ``min_area`` no whole number.
            UserError: ``find_every`` or ``min_area`` is negative, or ``min_new_share`` outside
                [0, 1].
        """
        for name, value in (("find_every", find_every), ("min_area", min_area)):
            if _whole_number(name, value) < 0:
                raise UserError(f"{name} ({value}) must not be negative")
        check_number("min_new_share", min_new_share, 0, 1)
        methods = ("reset", "set_masks", "propagate")
        if propagator is not None and not all(hasattr(propagator, name) for name in methods):
            raise TypeError(
                f"propagator must be an object with {', '.join(methods)}, such as "
                f"TransformersPropagator(NAME), not {propagator!r:.60}"
            )
        if find is not None and not callable(find):
            raise TypeError(
                f"find must be a function of a frame, such as find_everything(model), not "
                f"{find!r:.60}"
            )
        self.predictor = as_predictor(model, device)
        self._encoder = FrameEncoder(self.predictor)
        self.propagator: Propagator = (
            FlowPropagator(self._encoder) if propagator is None else propagator
        )
        self.find = find
        self.find_every = find_every
        self.min_area = min_area
        self.min_new_share = min_new_share
        self._frame: Frame | None = None
        self._labels: dict[int, str] = {}
        # Of the objects seen in the current frame: the id of each pixel's, which takes less memory
        # than their masks, since those do not overlap; their scores; and the areas of those just
        # told, with what is hidden by others.
        self._ids = np.zeros((0, 0), np.int32)
        self._scores: dict[int, float] = {}
        self._areas: dict[int, int] = {}
        self._forget()

    def start(self, frame: ImageSource, index: int = 0) -> TrackedFrame:
        """Begins a video, forgetting the one before, and finds objects if there is a finder.

        Args:
            frame: the first one: an array (H, W, 3) in RGB order, a PIL image or a path.
            index: its number in the video.

        Returns:
            As :attr:`current`.
        """
        self._forget()
        self._begin(load_image(frame).copy(), index)  # the caller may fill its buffer anew
        if self.find is not None:
            self.find_objects()
        return self.current

    def add_object(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: Mask | None = None,
        label: str = "object",
        object_id: int | None = None,
    ) -> int:
        """Follows another object from the current frame on.

        Of objects that overlap the smaller one is on top, in whatever order they are told.

        Args:
            points: (N, 2), XY in pixels.
            labels: (N,), 1 on the object, 0 on the background; all 1 if None.
            box: XYXY in pixels.
            mask: (H, W), bool or whole numbers above 0 inside, in place of clicks and a box.
            label: what it is, for the results.
            object_id: 1 to 255; the next after the highest if None.

        Returns:
            Its id.

        Raises:
            RuntimeError: before :meth:`start`.
            TypeError: the mask has other numbers, the label is no text, or the id no whole number.
            UserError: no prompt, a mask beside another one, or one of the wrong shape; nothing is
                found there but smaller objects; the id is taken or too high.
        """
        frame = self._require_frame()
        if not isinstance(label, str):
            raise TypeError(f"label must be a text, not {type(label).__name__} ({label!r:.60})")
        if object_id is None:
            object_id = 1 + max(self._labels, default=0)
        object_id = _whole_number("object_id", object_id)
        if object_id in self._labels:
            raise UserError(f"there is an object {object_id} already: call correct to change it")
        if not 1 <= object_id <= MAX_OBJECTS:
            raise UserError(f"an object's id must lie in 1 to {MAX_OBJECTS}, not at {object_id}")
        if mask is None:
            found, score = self._segment(points, labels, box)
        else:
            found, score = _only_mask(mask, frame, points, labels, box), 1.0
        area = int(np.count_nonzero(found))
        smaller = [number for number in self._scores if self._area(number) < area]
        visible = found & ~np.isin(self._ids, smaller)
        if not visible.any():
            raise UserError(
                f"nothing was found there but the objects {smaller}, which are followed already: "
                "call correct to change them"
            )
        self._labels[object_id] = label
        self._place({object_id: visible}, {object_id: score})
        self._areas[object_id] = area
        return object_id

    def correct(
        self,
        object_id: int,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: Mask | None = None,
    ) -> TrackedFrame:
        """Corrects an object in the current frame, or shows where it is if it was lost.

        Args:
            object_id: of a followed object.
            points, labels, box, mask: as :meth:`add_object`. Clicks go with the mask so far. What
                is found is the object's, whichever was there.

        Returns:
            As :attr:`current`, from where tracking goes on.

        Raises:
            KeyError: there is no such object.
            RuntimeError, TypeError, UserError: as :meth:`add_object`.
        """
        frame = self._require_frame()
        if object_id not in self._labels:
            raise KeyError(f"there is no object {object_id}, only {sorted(self._labels)}")
        if mask is None:
            before = None
            if box is None and object_id in self._scores:
                before = self._ids == object_id
            found, score = self._segment(points, labels, box, before)
        else:
            found, score = _only_mask(mask, frame, points, labels, box), 1.0
        self._place({object_id: found}, {object_id: score})
        return self.current

    def add_instances(self, instances: Instances) -> list[int]:
        """Follows those of the objects found in the current frame that are not followed yet.

        As Segment-and-Track-Anything's ``find_new_objs``: of objects that overlap each other the
        smaller one is on top, and what is left of each is new if enough of it is no followed
        object's, and large enough.

        Args:
            instances: of the current frame, be it by text, everything mode or another way.

        Returns:
            The ids that they got. No more than 255 objects are followed; :attr:`left_out` counts
            what was left out.

        Raises:
            TypeError: they are no ``Instances``.
            UserError: they are of an image of another size.
        """
        frame = self._require_frame()
        if not isinstance(instances, Instances):
            raise TypeError(
                f"what find returns, or add_instances gets, must be Instances, not "
                f"{type(instances).__name__}"
            )
        if instances.image_size != frame.shape[:2]:
            raise UserError(
                f"the objects are of an image of {instances.image_size[0]} x "
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
            enough = area >= self.min_new_share * np.count_nonzero(visible)
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

    def find_objects(self) -> list[int]:
        """Has the finder look at the current frame; returns the ids of new objects."""
        if self.find is None:
            raise RuntimeError("there is nothing to find objects by: pass find to TrackAnything")
        return self.add_instances(self.find(self._require_frame()))

    def track(self, frame: ImageSource) -> TrackedFrame:
        """Follows all objects to the next frame.

        Args:
            frame: as :meth:`start` takes it, of the same size.

        Returns:
            As :attr:`current`.

        Raises:
            RuntimeError: before :meth:`start`.
            ValueError: the frame has another size, or the propagator returns other objects, masks
                of another size, or NaN.
        """
        before = self._require_frame()
        pixels = load_image(frame).copy()
        if pixels.shape != before.shape:
            raise UserError(
                f"frame {self._index + 1} has {pixels.shape[1]} x {pixels.shape[0]} pixels, those "
                f"before have {before.shape[1]} x {before.shape[0]}: start anew for another video"
            )
        logits = self.propagator.propagate(pixels) if self._labels else {}
        # One after another: all of them in the size of the frame would take much memory.
        checked = ((number, self._check_logits(number, logits[number])) for number in logits)
        ids, highest = claim_pixels(checked, pixels.shape[:2])
        self._begin(pixels, self._index + 1)
        self._ids = ids
        for number in _values(ids):
            self._scores[number] = float(np.mean(1 / (1 + np.exp(-highest[ids == number]))))
        if self.find is not None and self.find_every and self._index % self.find_every == 0:
            self.find_objects()
        return self.current

    @property
    def current(self) -> TrackedFrame:
        """What is known of the current frame: the objects seen in it, and the ids of the others.

        A score is the mean probability of a mask's pixels, or the predicted IoU where the object
        was just told.
        """
        frame = self._require_frame()
        seen = sorted(self._scores)
        masks = np.empty((len(seen), *frame.shape[:2]), dtype=bool)
        for mask, number in zip(masks, seen, strict=True):
            np.equal(self._ids, number, out=mask)
        objects = _as_instances(
            masks,
            [self._scores[i] for i in seen],
            [self._labels[i] for i in seen],
            seen,
            frame,
        )
        lost = tuple(sorted(self._labels.keys() - self._scores.keys()))
        return TrackedFrame(self._index, objects, lost, tuple(self._labels[i] for i in lost))

    def resume(self, history: Iterable[tuple[ImageSource, TrackedFrame]]) -> None:
        """Takes up a video where another tracker left it.

        Args:
            history: the last frame, and before it, in order, those in which objects that are lost
                by now were last seen. It is read once, and none of it is kept. Objects of which it
                has no more than the id are labelled ``"object"``.
        """
        self._forget()
        for frame, tracked in history:
            self._begin(load_image(frame).copy(), tracked.index)
            objects = tracked.objects
            assert objects.ids is not None
            ids = objects.ids.tolist()
            self._labels.update(zip(ids, objects.labels, strict=True))
            labels = dict(zip(tracked.lost, tracked.lost_labels, strict=False))
            for number in tracked.lost:  # which may never have been seen
                self._labels.setdefault(number, labels.get(number) or "object")
            # Also where nothing is seen, so that the propagator knows that all are lost.
            if self._labels:
                self._place(
                    dict(zip(ids, objects.masks, strict=True)),
                    dict(zip(ids, objects.scores.tolist(), strict=True)),
                )

    def describe_left_out(self) -> str:
        """Returns in words how many finds were not followed since :meth:`start`, and why."""
        kinds = {
            "small": f"of fewer than min_area ({self.min_area}) pixels: lower it (--min-area)",
            "many": f"beyond {MAX_OBJECTS} objects",
        }
        told = [
            f"{count} find{'s'[: count != 1]} {kinds[kind]}"
            for kind, count in sorted(self.left_out.items())
        ]
        return f"left out: {'; '.join(told)}" if told else ""

    def _forget(self) -> None:
        self.propagator.reset()
        self._frame = None
        self._index = 0
        self._labels = {}
        self.left_out: Counter[str] = Counter()

    def _begin(self, frame: Frame, index: int) -> None:
        """Makes a frame the current one, in which nothing is seen yet."""
        self._frame, self._index = frame, index
        self._ids = np.zeros(frame.shape[:2], np.int32)
        self._scores, self._areas = {}, {}

    def _area(self, number: int) -> int:
        """Of an object that is seen: as it was told, or in pixels."""
        return self._areas.get(number) or int(np.count_nonzero(self._ids == number))

    def _require_frame(self) -> Frame:
        if self._frame is None:
            raise RuntimeError("there is no frame yet: call start with the first one")
        return self._frame

    def _segment(
        self,
        points: ArrayLike | None,
        labels: ArrayLike | None,
        box: ArrayLike | None,
        before: Mask | None = None,
    ) -> tuple[Mask, float]:
        """The mask that a prompt points out in the current frame, and its predicted IoU."""
        if points is None and box is None:
            raise UserError("point the object out: give points, a box or a mask")
        predictor = self._encoder(self._require_frame())
        count = np.shape(points)[:1] if points is not None else ()
        if points is not None and labels is None:
            labels = np.ones(count, dtype=int)
        ambiguous = box is None and before is None and count == (1,)
        masks, scores, _ = predictor.predict(
            points,
            labels,
            box,
            mask_input=None if before is None else mask_prompt(predictor, before),
            multimask_output=ambiguous,
        )
        best = int(scores.argmax())
        if not masks[best].any():
            raise UserError("nothing was found there: give more points, or a box")
        return masks[best], float(scores[best])

    def _place(self, masks: dict[int, Mask], scores: dict[int, float]) -> None:
        """Sets masks in the current frame, which take their pixels from other objects."""
        frame = self._require_frame()
        ids = self._ids.copy()
        ids[np.isin(ids, [*masks])] = 0  # where corrected ones were
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
            raise UserError(f"{name} returned an object {object_id}, which is not followed")
        logits = np.asarray(values)
        if logits.shape != frame.shape[:2]:
            raise UserError(
                f"{name} returned a mask of the shape {logits.shape} for object {object_id}, not "
                f"of the frame's, {frame.shape[:2]}"
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
) -> list[int]:
    """Follows objects through a video, and writes what it finds into a folder.

    See :class:`~mobile_sam_plugin.integrations.video.TrackWriter` for the files. Memory does not
    grow with the video. A bar shows the progress and the frames a second. What is found and not
    followed is told of at the end. A run that was interrupted is taken up by the same call: frames
    that were done stay as they are, and objects are followed from where they are in the last of
    them. It is the same if the weights are, and if the first frame's prompt comes to what is
    written of that frame.

    Args:
        tracker: what follows; it forgets the objects that it knows.
        video: a video file, a folder of images, or an iterable of frames.
        folder: made if need be.
        prompts: what to do with the tracker on which frame, such as ``{0: lambda tracker:
            tracker.add_object(points=[[320, 240]]), 30: lambda tracker: tracker.correct(1,
            points=[[200, 90]], labels=[0])}``.
        first_frame: where tracking begins; frames before it are left out.
        settings: what else tells this run from others on the same video, which may not be taken up
            as this one, such as later frames' prompts; ``json`` must be able to write it.

    Returns:
        The ids of all objects.

    Raises:
        UserError: no object is found to be followed, ``prompts`` name a frame that the video does
            not have, the folder holds another run, or as :class:`Video` and the tracker.
    """
    first_frame = _whole_number("first_frame", first_frame)
    video = video if isinstance(video, Video) else Video(video)
    prompts = prompts or {}
    early = [index for index in prompts if index < first_frame]
    if first_frame < 0 or early:
        raise UserError(
            f"tracking begins at frame {first_frame}, which must not be negative, nor behind a "
            f"prompt's frame {early}"
        )
    index = -1
    objects: set[int] = set()
    last_seen: dict[int, int] = {}  # the frame in which each object was, of those that are done
    weights = fingerprint(tracker.predictor.model.state_dict())
    run = {"first_frame": first_frame, "weights_sha256": weights, **(settings or {})}
    total = None if video.length is None else max(0, video.length - first_frame)
    with (
        TrackWriter(folder, video, run) as writer,
        tqdm(total=total, unit=" frames", bar_format=_BAR, disable=None) as bar,
    ):
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
                    f"the folder {os.fspath(folder)!r} holds results of another run, which follows "
                    f"other objects from frame {index} on: name another folder, or delete this one"
                )
            assert tracked.objects.ids is not None
            seen_ids = tracked.objects.ids.tolist()
            objects.update(seen_ids, tracked.lost)
            more_to_come = tracker.find_every or any(number > index for number in prompts)
            if index == first_frame and not objects and not more_to_come:
                reasons = tracker.describe_left_out()
                raise UserError(
                    f"no object was found in frame {index} to be followed"
                    + (f"; {reasons}" if reasons else "")
                )
            writer.write(frame, tracked)
            if done:
                # Under 0, no object's id, the last frame.
                last_seen.update(dict.fromkeys((0, *seen_ids), index))
            bar.set_postfix_str(f"{len(seen_ids)} objects, {len(tracked.lost)} lost", False)
            bar.update()
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
    """Some of the frames that an earlier run has done, in order, and what it found in them.

    They are decoded once more, since to keep them for objects that may never come back would take
    the more memory the longer the video.
    """
    last = max(indices)
    for index, frame in enumerate(video):
        if index in indices:
            yield frame, writer.read(index)
        if index == last:
            return


def _alike(found: TrackedFrame, written: TrackedFrame) -> bool:
    """Whether two runs begin with the same objects, but for what computers differ in."""
    if found.lost != written.lost or len(found.objects) != len(written.objects):
        return False
    ours, theirs = found.id_map(), written.id_map()
    for number in {*_values(ours), *_values(theirs)}:
        common = np.count_nonzero((ours == number) & (theirs == number))
        if common < _SAME * np.count_nonzero((ours == number) | (theirs == number)):
            return False
    return True


_SAME = 0.9  # IoU from which on two masks of a frame are of one prompt
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}, {postfix}]"


def _as_instances(
    masks: NDArray[np.bool_],
    scores: Iterable[float],
    labels: list[str],
    ids: list[int] | None = None,
    image: Frame | None = None,
) -> Instances:
    return Instances(
        (masks.shape[1], masks.shape[2]),
        boxes_of(masks),
        masks,
        np.array([*scores], np.float32),
        labels,
        ids=None if ids is None else np.array(ids, np.int64),
        image=image,
    )


def _values(ids: NDArray[np.int32] | NDArray[np.uint8]) -> list[int]:
    """The ids that occur, 0 left out."""
    return [number for number in np.flatnonzero(np.bincount(ids.ravel())).tolist() if number]


def _whole_number(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r:.60}") from None


def _only_mask(mask: Mask, frame: Frame, *others: ArrayLike | None) -> Mask:
    """A mask that is given in place of clicks and a box."""
    if any(other is not None for other in others):
        raise UserError("give a mask, or points and a box, not both")
    checked = np.asarray(mask)
    if checked.dtype.kind not in "bui":
        raise TypeError(f"the mask must be boolean, or whole numbers, not {checked.dtype}")
    if checked.shape != frame.shape[:2]:
        raise UserError(
            f"the mask must have the shape of the frame, {frame.shape[:2]}, not {checked.shape}"
        )
    if not checked.any():
        raise UserError("the mask is empty: there is nothing to follow")
    return checked > 0
