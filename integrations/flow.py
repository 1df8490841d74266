"""Objects followed by optical flow and by their appearance, refined by MobileSAM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mobile_sam_plugin import SamPredictor

from .propagators import Frame, FrameEncoder, Logits, Mask, OnDemand, claim_pixels

Matrix = NDArray[np.float64]  # (3, 3), of an affine map of XY
_WORK_SIDE = 640  # frames are reduced to this for everything except MobileSAM
_LEAST_FLOW_SIDE = 32  # OpenCV 5 crashes on wide images with fewer rows
_FLOW_ERROR = 1.5  # pixels between flow forward and back; sigma of a Gaussian
_FIT_ERROR = 1.5  # RANSAC's threshold for a template's motion, in pixels
_COLOR_ERROR = 27.0  # difference of a template's pixel; sigma of a Gaussian
_TEMPLATE_WEIGHT = 1.5  # of a template that fits, where reliable flow has 1
_POOR_TEMPLATE_WEIGHT = 0.6
_GOOD_FIT = 0.5  # least mean similarity of a template's visible pixels
_MISFITS = 3  # frames in a row after which a template is replaced
_AGREEMENT = 0.6  # IoU above which MobileSAM's mask counts, fully at 0.2 more
_BAND = (
    0.12  # width of the band along the outline where it counts, as a fraction of the object's size
)
_LOGIT_SCALE = 4.0  # of MobileSAM's logits
_OBJECTS_AT_ONCE = 8  # prompts per batch; more need memory and are not faster
_PROMPT_LOGIT = 6.0  # of a mask as MobileSAM's prompt
_LEAST_PIXELS = 40  # smaller objects, at the working size, are lost
_LEAST_SHARE = 0.03  # least visible fraction of an object
_MATCH = 0.6  # least correlation with a lost object
_SEARCHES = 4  # lost objects that are searched for per frame, in turn
_REACH_GROWS = 20  # frames during which the search radius grows


class FlowPropagator:
    """Follows objects by dense optical flow and by templates, refined by MobileSAM.

    It needs no weights except MobileSAM's. Each object's mask is propagated in two ways: by optical
    flow from the previous frame (DIS, Kroeger et al. 2016), where flow forward and back agree; and
    by a template, the object's appearance when it was last set. The template is fitted to the frame
    by an affine map and counts where it still looks the same, so errors do not add up and hidden
    parts come back. Then MobileSAM, prompted with box and mask, refines a band along the outline if
    it agrees about the object.

    An object of which too little is visible is lost. Its template is searched for around its last
    position, up to two and a half times its size away: four lost objects per frame, in turn, so the
    time per frame does not grow with their number.
    """

    def __init__(self, encoder: FrameEncoder) -> None:
        self._encoder = encoder
        self.reset()

    def reset(self) -> None:
        """As :meth:`Propagator.reset`."""
        self._frame: Frame | None = None
        self._picture: _Picture | None = None
        self._objects: dict[int, _Object] = {}

    def set_masks(self, frame: Frame, masks: Mapping[int, Mask]) -> None:
        """As :meth:`Propagator.set_masks`."""
        picture = self._picture
        if frame is not self._frame or picture is None:
            picture = self._picture = _Picture(frame)
            self._frame = frame
            for known in self._objects.values():
                known.mask = None
        size = picture.gray.shape[::-1]
        for number, mask in masks.items():
            small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            if np.count_nonzero(small > 0.5) >= _LEAST_PIXELS:
                self._objects[number] = _Object.seen_in(picture, small)
            elif number in self._objects:
                self._objects[number].mask = None

    def propagate(self, frame: Frame) -> Mapping[int, Logits]:
        """As :meth:`Propagator.propagate`."""
        if self._picture is None:
            raise RuntimeError("set_masks must be called before propagate")
        before, picture = self._picture, _Picture(frame)
        motion = _Motion.between(before.gray, picture.gray)
        turn = self._take_turns()
        carried: dict[int, Logits] = {}
        for number, followed in self._objects.items():
            logits = None
            if followed.mask is not None:
                logits = followed.carry(motion, picture)
            elif number in turn:
                logits = followed.search(picture)
            if logits is not None:
                carried[number] = logits
        self._refine(frame, carried)
        owners, _ = claim_pixels(carried.items(), picture.gray.shape)
        for followed in self._objects.values():
            followed.mask = None
        seen: dict[int, Logits] = {}
        for number, logits in carried.items():
            # Removes specks.
            mask = (owners == number).astype(np.uint8)
            kept = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3)))
            if self._objects[number].settle(kept.astype(np.float32), picture):
                outside = np.minimum(logits, -0.01)
                inside = np.maximum(logits, 0.01)
                seen[number] = np.where(kept > 0, inside, outside).astype(np.float32)
        self._frame, self._picture = frame, picture
        size = frame.shape[1], frame.shape[0]
        return OnDemand(seen, lambda logits: cv2.resize(logits, size))

    def _take_turns(self) -> set[int]:
        """The lost objects to search for in the next frame: those that waited longest."""
        lost = [number for number, followed in self._objects.items() if followed.mask is None]
        for number in lost:
            self._objects[number].lost_for += 1
            self._objects[number].waited += 1
        turn = sorted(lost, key=lambda number: -self._objects[number].waited)[:_SEARCHES]
        for number in turn:
            self._objects[number].waited = 0
        return set(turn)

    def _refine(self, frame: Frame, carried: dict[int, Logits]) -> None:
        """Adds MobileSAM's logits to those of the objects, in a band along their outlines."""
        promptable = [
            number for number in carried if np.count_nonzero(carried[number] > 0) >= _LEAST_PIXELS
        ]
        if not promptable:
            return
        predictor = self._encoder(frame)
        predictions: list[Logits] = []
        for start in range(0, len(promptable), _OBJECTS_AT_ONCE):
            numbers = promptable[start : start + _OBJECTS_AT_ONCE]
            predictions += _predict(predictor, [carried[number] for number in numbers])
        for number, prediction in zip(promptable, predictions, strict=True):
            logits = carried[number]
            inside, proposed = logits > 0, prediction > 0
            agreement = np.count_nonzero(inside & proposed) / np.count_nonzero(inside | proposed)
            if agreement > _AGREEMENT:
                size = np.sqrt(np.count_nonzero(inside))
                trust = min(1.0, (agreement - _AGREEMENT) / 0.2)
                band = np.exp(-((_distance_to_outline(inside) / (_BAND * size)) ** 2))
                logits += trust * band * np.tanh(prediction / _LOGIT_SCALE)


class _Picture:
    """A frame at the working size."""

    def __init__(self, frame: Frame) -> None:
        height, width = frame.shape[:2]
        scale = min(1.0, _WORK_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        self.colors = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        self.gray = cv2.cvtColor(self.colors, cv2.COLOR_RGB2GRAY)


def _dense_flow(
    before: NDArray[np.uint8], after: NDArray[np.uint8], finest_scale: int
) -> NDArray[np.float32]:
    """The optical flow from one gray image to another, (H, W, 2) XY; pads small images.

    It is computed at half resolution for a ``finest_scale`` of 1, at a quarter for 2.
    """
    height, width = before.shape
    down, right = (max(0, _LEAST_FLOW_SIDE - length) for length in (height, width))
    before, after = (
        cv2.copyMakeBorder(picture, 0, down, 0, right, cv2.BORDER_REPLICATE)
        for picture in (before, after)
    )
    # Created each time, since a narrow image permanently changes its scales.
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow.setFinestScale(finest_scale)
    return flow.calc(before, after, None)[:height, :width]


@dataclass(frozen=True)
class _Motion:
    """The optical flow between two frames.

    Attributes:
        source: (H, W, 2), XY in the earlier frame of each pixel of the later one.
        reliability: (H, W), 1 where flow forward and back cancel, towards 0 where they do not.
        forward: (H, W, 2), motion of each pixel of the earlier frame, XY.
    """

    source: NDArray[np.float32]
    reliability: NDArray[np.float32]
    forward: NDArray[np.float32]

    @classmethod
    def between(cls, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> "_Motion":
        height, width = before.shape
        grid = np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
        forward = _dense_flow(before, after, finest_scale=2)
        backward = _dense_flow(after, before, finest_scale=2)
        source = grid + backward
        back = cv2.remap(forward, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        error = cv2.magnitude(*cv2.split(backward + back))
        return cls(source, np.exp(-((error / _FLOW_ERROR) ** 2)), forward)

    def fit(self, mask: NDArray[np.float32]) -> Matrix:
        """The affine motion of most of a mask in the earlier frame; the identity if unknown."""
        points = _sample(mask > 0.5, 500)
        moved = points + self.forward[points[:, 1], points[:, 0]]
        matrix, inliers = _fit_affine(points, moved)
        return np.eye(3) if matrix is None or inliers < 0.4 else matrix


@dataclass(frozen=True)
class _Template:
    """An object's appearance in a frame.

    Attributes:
        colors: window of the frame, RGB.
        shape: mask of the object in the window, in [0, 1].
        histogram: fraction of each of 512 colours in the object.
    """

    colors: NDArray[np.uint8]
    shape: NDArray[np.float32]
    histogram: NDArray[np.float32]

    @classmethod
    def cut(cls, picture: _Picture, mask: NDArray[np.float32]) -> "tuple[_Template, Matrix]":
        """The template of a mask, and its pose in this frame."""
        x, y, width, height = cv2.boundingRect((mask > 0.5).astype(np.uint8))
        x0, y0 = max(x - 8, 0), max(y - 8, 0)
        window = slice(y0, y + height + 8), slice(x0, x + width + 8)
        template = cls(
            picture.colors[window].copy(),
            mask[window].copy(),
            _histogram(picture, mask),
        )
        return template, _translation(x0, y0)


@dataclass
class _Object:
    """An object that is followed.

    Attributes:
        template: appearance when it was last set, or replaced since it no longer fitted.
        pose: affine map from the template's pixels to those of the current frame.
        mask: (H, W) in the current frame, in [0, 1]; None if the object is lost.
        misfits: number of frames in a row in which the template did not fit.
        lost_for: number of frames since it was lost.
        waited: number of frames since it was searched for or visible.
    """

    template: _Template
    pose: Matrix
    mask: NDArray[np.float32] | None
    misfits: int = 0
    lost_for: int = 0
    waited: int = 0

    @classmethod
    def seen_in(cls, picture: _Picture, mask: NDArray[np.float32]) -> "_Object":
        return cls(*_Template.cut(picture, mask), mask)

    def carry(self, motion: _Motion, picture: _Picture) -> NDArray[np.float32]:
        """The logits of the mask in the next frame, in [-1, 1]."""
        assert self.mask is not None
        carried = cv2.remap(self.mask, motion.source, None, cv2.INTER_LINEAR)
        logits = 2 * carried - 1
        self.pose = motion.fit(self.mask) @ self.pose
        fit = self._fit(picture, carried)
        if fit is None:
            self.misfits += 1
            return logits
        self.pose = fit.pose
        if fit.likeness < _GOOD_FIT:
            self.misfits += 1
            weight = _POOR_TEMPLATE_WEIGHT
        else:
            self.misfits = 0
            weight = _TEMPLATE_WEIGHT
        trust = motion.reliability
        return (logits * trust + weight * fit.logits) / (trust + weight)

    def search(self, picture: _Picture) -> NDArray[np.float32] | None:
        """The logits of a lost object if it is found around its last position; else None."""
        linear = self.pose.copy()
        linear[:2, 2] -= _corners(self.pose, self.template.shape.shape).min(axis=0)
        size = np.ceil(_corners(linear, self.template.shape.shape).max(axis=0)).astype(int).tolist()
        reach = int(max(size) * (0.5 + 0.1 * min(self.lost_for, _REACH_GROWS))) + 8
        x0, y0, x1, y1 = self._window(self.pose, picture, reach)
        # A small scale suffices, and is fast.
        scale = min(1.0, 40 / max(*size, 1))
        small_size = max(2, round(size[0] * scale)), max(2, round(size[1] * scale))
        region_size = round((x1 - x0) * scale), round((y1 - y0) * scale)
        if region_size[0] <= small_size[0] or region_size[1] <= small_size[1]:
            return None
        small = np.diag([scale, scale, 1.0]) @ linear
        colors, shape = self._moved(small, small_size)
        patch = cv2.cvtColor(colors, cv2.COLOR_RGB2GRAY)
        region = cv2.resize(picture.gray[y0:y1, x0:x1], region_size, interpolation=cv2.INTER_AREA)
        matches = cv2.matchTemplate(
            region, patch, cv2.TM_CCOEFF_NORMED, mask=(shape > 0.5).astype(np.float32)
        )
        matches[~np.isfinite(matches)] = -1
        _, best, _, (x, y) = cv2.minMaxLoc(matches)
        if best < _MATCH:
            return None
        pose = self.pose
        self.pose = linear.copy()
        self.pose[:2, 2] += x0 + x / scale, y0 + y / scale
        fit = self._fit(picture, None)
        if fit is None or fit.likeness < _GOOD_FIT:
            self.pose = pose
            return None
        self.pose = fit.pose
        return fit.logits

    def settle(self, mask: NDArray[np.float32], picture: _Picture) -> bool:
        """Sets the mask in the current frame; returns whether the object is visible at all."""
        size = picture.gray.shape[::-1]
        expected = cv2.warpAffine(self.template.shape, self.pose[:2], size).sum()
        if np.count_nonzero(mask) < max(_LEAST_PIXELS, _LEAST_SHARE * expected):
            return False
        if self.misfits >= _MISFITS:
            # Its appearance has changed: it has turned or bent, or another object hides it.
            likeness = cv2.compareHist(
                self.template.histogram, _histogram(picture, mask), cv2.HISTCMP_INTERSECT
            )
            if likeness < _GOOD_FIT:
                return False
            self.template, self.pose = _Template.cut(picture, mask)
            self.misfits = 0
        self.mask, self.lost_for, self.waited = mask, 0, 0
        return True

    def _fit(self, picture: _Picture, carried: NDArray[np.float32] | None) -> "_Fit | None":
        """Fits the template to the frame, from its pose; None if it does not fit."""
        x0, y0, x1, y1 = self._window(self.pose, picture, 8)
        width, height = x1 - x0, y1 - y0
        if min(width, height) < 16:
            return None
        origin = _translation(-x0, -y0)
        looks, shape = self._moved(origin @ self.pose, (width, height))
        current = picture.colors[y0:y1, x0:x1]
        gray = picture.gray[y0:y1, x0:x1]
        hint = np.ones(gray.shape, bool) if carried is None else carried[y0:y1, x0:x1] > 0.5
        visible = (shape > 0.5) & hint
        if np.count_nonzero(visible) < _LEAST_PIXELS:
            return None
        gray_looks = cv2.cvtColor(looks, cv2.COLOR_RGB2GRAY)
        # Compensates for a change of light.
        gain = (1.0 + np.median(gray[visible])) / (1.0 + np.median(gray_looks[visible]))
        gain = float(np.clip(gain, 0.6, 1.6))
        # Finer than between frames, since errors of the pose add up.
        residual = _dense_flow(cv2.convertScaleAbs(gray_looks, alpha=gain), gray, finest_scale=1)
        points = _sample(visible, 600)
        matrix, inliers = _fit_affine(points, points + residual[points[:, 1], points[:, 0]])
        if matrix is None or inliers < 0.3:
            return None
        pose = np.linalg.inv(origin) @ matrix @ origin @ self.pose
        scales = np.linalg.svd(pose[:2, :2], compute_uv=False)
        if scales.min() < 0.15 or scales.max() > 6:
            return None
        looks, shape = self._moved(origin @ pose, (width, height))
        difference = cv2.absdiff(cv2.convertScaleAbs(looks, alpha=gain), current)
        difference = cv2.transform(difference.astype(np.float32), np.full((1, 3), 1 / 3))
        difference = cv2.GaussianBlur(difference, (0, 0), 1.5)
        alike = np.exp(-((difference / _COLOR_ERROR) ** 2))
        inside = shape > 0.5
        logits = np.full(picture.gray.shape, -1, dtype=np.float32)
        logits[y0:y1, x0:x1] = np.where(inside, 2 * alike - 1, 2 * shape - 1)
        visible = inside & hint if np.count_nonzero(inside & hint) else inside
        return _Fit(pose, logits, float(alike[visible].mean()) if visible.any() else 0.0)

    def _moved(
        self, matrix: Matrix, size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The template's colours and mask, warped into a window of this size."""
        colors = cv2.warpAffine(
            self.template.colors, matrix[:2], size, borderMode=cv2.BORDER_REPLICATE
        )
        return colors, cv2.warpAffine(self.template.shape, matrix[:2], size)

    def _window(self, pose: Matrix, picture: _Picture, margin: int) -> tuple[int, int, int, int]:
        """The box around the template in a frame, XYXY, with a margin."""
        height, width = picture.gray.shape
        corners = _corners(pose, self.template.shape.shape)
        x0, y0 = np.clip(np.floor(corners.min(axis=0)) - margin, 0, (width, height)).astype(int)
        x1, y1 = np.clip(np.ceil(corners.max(axis=0)) + margin, 0, (width, height)).astype(int)
        return int(x0), int(y0), int(x1), int(y1)


@dataclass(frozen=True)
class _Fit:
    """A template fitted to a frame.

    Attributes:
        pose: affine map from the template's pixels to those of the frame.
        logits: (H, W), in [-1, 1], above 0 where template and frame look the same.
        likeness: their mean similarity where the object should be visible, in [0, 1].
    """

    pose: Matrix
    logits: NDArray[np.float32]
    likeness: float


def mask_prompt(predictor: SamPredictor, mask: Mask) -> Logits:
    """Returns a mask as the low-resolution logits that ``predict`` takes as ``mask_input``.

    Args:
        predictor: with the image set.
        mask: (H, W), of the image's proportions.

    Returns:
        (1, 256, 256) float32.
    """
    side = predictor.model.prompt_encoder.mask_input_size[0]
    scale = side / predictor.model.image_encoder.img_size
    height, width = (max(1, round(length * scale)) for length in predictor.input_size)
    small = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    logits = np.full((1, side, side), -_PROMPT_LOGIT, dtype=np.float32)
    logits[0, :height, :width] = _PROMPT_LOGIT * (2 * small - 1)
    return logits


def _predict(predictor: SamPredictor, logits: Sequence[Logits]) -> list[Logits]:
    """MobileSAM's logits for objects with these logits, all at the working size."""
    height, width = logits[0].shape
    to_model = predictor.input_size[1] / width
    boxes, masks = [], []
    for each in logits:
        inside = each > 0
        x, y, box_width, box_height = cv2.boundingRect(inside.astype(np.uint8))
        boxes.append([x, y, x + box_width, y + box_height])
        masks.append(mask_prompt(predictor, inside))
    low_res_logits, _ = predictor.predict_low_res_torch(
        point_coords=None,
        point_labels=None,
        boxes=torch.as_tensor(
            np.array(boxes) * to_model, dtype=torch.float, device=predictor.device
        ),
        mask_input=torch.as_tensor(np.array(masks), device=predictor.device),
        multimask_output=False,
    )
    # Pixel centres are at halves in both.
    low_res_side = predictor.model.prompt_encoder.mask_input_size[0]
    to_low_res = to_model * low_res_side / predictor.model.image_encoder.img_size
    offset = 0.5 * to_low_res - 0.5
    matrix = np.array([[to_low_res, 0, offset], [0, to_low_res, offset]])
    return [
        cv2.warpAffine(
            each,
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for each in low_res_logits[:, 0].cpu().numpy()
    ]


def _distance_to_outline(mask: Mask) -> NDArray[np.float32]:
    inside = mask.astype(np.uint8)
    return cv2.distanceTransform(inside, cv2.DIST_L2, 3) + cv2.distanceTransform(
        1 - inside, cv2.DIST_L2, 3
    )


def _histogram(picture: _Picture, mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """The fraction of each of 512 colours in a mask."""
    inside = (mask > 0.5).astype(np.uint8)
    counts = cv2.calcHist([picture.colors], [0, 1, 2], inside, [8, 8, 8], [0, 256] * 3)
    return counts / max(counts.sum(), 1)


def _sample(mask: Mask, count: int) -> NDArray[np.int64]:
    """About ``count`` pixels of a mask, or all of them, (N, 2) XY."""
    y, x = np.nonzero(mask)
    step = max(1, len(y) // count)
    return np.column_stack([x[::step], y[::step]])


def _fit_affine(points: NDArray[Any], moved: NDArray[Any]) -> tuple[Matrix | None, float]:
    """The affine map of most points and the fraction that it fits; None if there is none."""
    if len(points) < 8:
        return None, 0.0
    matrix, inliers = cv2.estimateAffine2D(
        points.astype(np.float32),
        moved.astype(np.float32),
        method=cv2.RANSAC,
        ransacReprojThreshold=_FIT_ERROR,
        maxIters=200,
    )
    if matrix is None:
        return None, 0.0
    scales = np.linalg.svd(matrix[:, :2], compute_uv=False)
    if scales.min() < 0.75 or scales.max() > 1.35:  # objects do not change so much between frames
        return None, 0.0
    return np.vstack([matrix, (0, 0, 1)]), float(inliers.mean())


def _translation(x: float, y: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=float)


def _corners(matrix: Matrix, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The corners of an array of this shape after a map, (4, 2) XY."""
    height, width = shape[:2]
    corners = np.array([(0, 0, 1), (width, 0, 1), (width, height, 1), (0, height, 1)])
    return (corners @ matrix.T)[:, :2]
