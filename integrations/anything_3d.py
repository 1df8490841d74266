"""Anything-3D on MobileSAM: an object of a photograph, cut out, and lifted into three dimensions.

The pipeline of Shen et al., "Anything-3D: Towards Single-view Anything Reconstruction in the Wild"
(https://arxiv.org/abs/2304.10261): a SAM cuts the object out, and a model makes it solid. Which
model, is open: any pipeline from an image to a mesh is a function of a square cut-out. Without one
the object becomes a relief by monocular depth: its visible side, on a flat back. Nothing behind it
is invented.
"""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import cv2
import numpy as np
import segment_anything
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mobile_sam_plugin.errors import MissingExtra, UserError
from mobile_sam_plugin.files import encode_image, write_file
from mobile_sam_plugin.images import ImageSource, load_image
from mobile_sam_plugin.inputs import check_number

from .detectors import DEFAULT_DETECTOR, Detector
from .inpaint_anything import InpaintAnything, Selection, as_instances
from .instances import Instances
from .pretrained import load_pretrained, place_inputs

if TYPE_CHECKING:
    import trimesh

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
DepthEstimator = Callable[[Pixels], NDArray[np.float32]]
"""From an image, (H, W, 3) uint8 RGB, to how near its pixels are, (H, W), in any unit."""
ImageTo3d = Callable[[Pixels], Any]
"""From a square cut-out, as :func:`cut_out_square` returns it, to a ``trimesh.Trimesh``."""
Background = Literal["white", "grey", "transparent"]

DEFAULT_DEPTH = "depth-anything/Depth-Anything-V2-Small-hf"
"""On the Hub; Apache-2.0. Its larger siblings are not for commercial use."""

_METRIC = ("depth_pro", "glpn", "prompt_depth_anything", "zoedepth")  # these predict distances
_LATTICE = 256  # points of a relief along its longer side
_BACK = 0.05  # thickness of a relief behind its farthest point, in parts of its longer side
_SWING = 40  # degrees to either side
_FRAMES = 48
_GIF_SIDE = 320
_SAMPLES = 400_000  # points of a surface that are drawn


class TransformersDepth:
    """A monocular depth model of transformers, as a :data:`DepthEstimator`.

    Example:
        >>> nearness = TransformersDepth()(image)
    """

    def __init__(
        self, name: str | os.PathLike[str] = DEFAULT_DEPTH, device: str | torch.device = "cpu"
    ) -> None:
        """Loads a model.

        Args:
            name: of any ``AutoModelForDepthEstimation``: a repository on the Hub, or a folder.
            device: of the model.

        Raises:
            Exception: as :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.
        """
        self.model, self.processor = load_pretrained(
            "AutoModelForDepthEstimation", name, device, "lift"
        )
        config = self.model.config
        kind = getattr(config, "depth_estimation_type", "relative")
        self._is_metric = kind == "metric" or config.model_type in _METRIC

    @torch.no_grad()
    def __call__(self, image: Pixels) -> NDArray[np.float32]:
        """Returns how near pixels are, (H, W): disparity, or distance with the opposite sign."""
        size = image.shape[:2]
        inputs = self.processor(images=image, return_tensors="pt")
        outputs = self.model(**place_inputs(inputs, self.model))
        finish = self.processor.post_process_depth_estimation
        sizes = {"target_sizes": [size], "source_sizes": [size]}  # ZoeDepth removes its padding
        known = {
            name: value for name, value in sizes.items() if name in signature(finish).parameters
        }
        (found,) = finish(outputs, **known)
        depth = found["predicted_depth"].float().cpu().numpy().reshape(size)
        return -depth if self._is_metric else depth


@dataclass(eq=False)
class Lifted:
    """An object in three dimensions.

    Attributes:
        cutout: the square that an image-to-3D model takes, see :func:`cut_out_square`.
        mesh: a ``trimesh.Trimesh``. A relief has its longer side from -0.5 to 0.5, Y up, and Z
            towards the camera.
        objects: the object, in its image.
    """

    cutout: Pixels
    mesh: "trimesh.Trimesh"
    objects: Instances

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes ``cutout.png``, ``object.glb`` with texture, ``object.ply`` and ``turntable.gif``.

        The PLY has a colour for each vertex, which more programs read than a texture.

        Args:
            folder: created if missing.

        Returns:
            The paths of all files.
        """
        target = Path(folder)
        colored = self.mesh.copy()
        if colored.visual.kind == "texture":
            colored.visual = colored.visual.to_color()
        contents = {
            "cutout.png": encode_image(".png", self.cutout),
            "object.glb": self.mesh.export(file_type="glb"),
            "object.ply": colored.export(file_type="ply"),
            "turntable.gif": _encode_gif(draw_turntable(self.mesh)),
        }
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_file(target / name, content)
        return [target / name for name in contents]


class Anything3d:
    """Lifts the object that MobileSAM, or any other SAM, segments.

    Example:
        >>> lifter = Anything3d(sam_model_registry["vit_t"]())
        >>> cup = lifter.segment("coffee.png", point_coords=[[320, 240]])
        >>> lifter.lift("coffee.png", cup).save("out")

        An image-to-3D model of your own is a function from the cut-out to a mesh:

        >>> def reconstruct(square):
        ...     return trimesh.load(model.run(Image.fromarray(square)), force="mesh")
        >>> Anything3d(sam, image_to_3d=reconstruct).lift("coffee.png", cup, background="grey")
    """

    def __init__(
        self,
        model: nn.Module | segment_anything.SamPredictor | None,
        depth: DepthEstimator | str | os.PathLike[str] = DEFAULT_DEPTH,
        image_to_3d: ImageTo3d | None = None,
        detector: Detector | str | os.PathLike[str] = DEFAULT_DETECTOR,
        device: str | torch.device | None = None,
    ) -> None:
        """Combines a model with one for depth, or with one for all of it.

        Args:
            model: a ``Sam``, or a predictor that holds one; None if :meth:`segment` is not used.
            depth: estimates depth for a relief; loaded on first use if it is given by name.
            image_to_3d: makes meshes instead.
            detector: detects objects by text; loaded on first use if it is given by name.
            device: of the models; where the SAM is if None.

        Raises:
            TypeError: if ``model`` is neither a Sam nor a predictor.
        """
        self._editor = InpaintAnything(model, detector=detector, device=device)
        self._depth = depth
        self.image_to_3d = image_to_3d

    def segment(self, image: ImageSource, *prompt: Any, **more: Any) -> Instances:
        """Segments an object, or all that match a text, as :meth:`InpaintAnything.segment`."""
        return self._editor.segment(image, *prompt, **more)

    @cached_property
    def depth(self) -> DepthEstimator:
        """The depth model, which is loaded now if it was given by name."""
        if isinstance(self._depth, str | os.PathLike):
            return TransformersDepth(self._depth, self._editor.device or "cpu")
        return self._depth

    def lift(
        self,
        image: ImageSource,
        selection: Selection,
        size: int = 512,
        foreground: float = 0.85,
        background: Background = "white",
        relief: float = 0.3,
    ) -> Lifted:
        """Lifts one object.

        Args:
            image: an array, a PIL image or a path.
            selection: objects of :meth:`segment`, of which the one with the highest score counts;
                or a mask (H, W).
            size, foreground, background: of the cut-out, see :func:`cut_out_square`.
            relief: how far its nearest point stands out from its farthest, in parts of its longer
                side; not for ``image_to_3d``.

        Raises:
            UserError: if a mask is empty, has another size or is too thin for a relief, a number is
                out of range, or a model returns something unsuitable.
            MissingExtra: if trimesh, or transformers for the depth model, is not installed.
            Exception: as :class:`TransformersDepth`.
        """
        trimesh = _import_trimesh()
        pixels = load_image(image)
        objects = _best(as_instances(selection, pixels))
        mask = objects.masks[0]
        cutout = cut_out_square(pixels, mask, size, foreground, background)
        check_number("relief", relief, 0, 1)
        if self.image_to_3d is None:
            mesh = make_relief(pixels, mask, self._estimate(pixels), relief)
        else:
            mesh = self.image_to_3d(cutout.copy())
            if not isinstance(mesh, trimesh.Trimesh):
                raise UserError(
                    f"image_to_3d must return a trimesh.Trimesh, not a {type(mesh).__name__}: "
                    'trimesh.load(..., force="mesh") makes one'
                )
        return Lifted(cutout, mesh, objects)

    def _estimate(self, pixels: Pixels) -> NDArray[np.float32]:
        nearness = np.asarray(self.depth(pixels), dtype=np.float32)
        if nearness.shape != pixels.shape[:2] or not np.isfinite(nearness).all():
            raise UserError(
                f"the depth model returned the shape {nearness.shape}, or values that are not "
                f"finite, for an image of {pixels.shape[:2]}"
            )
        return nearness


def cut_out_square(
    image: Pixels,
    mask: Mask,
    size: int = 512,
    foreground: float = 0.85,
    background: Background = "white",
) -> Pixels:
    """Returns an object in the middle of a square, as image-to-3D models want it.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        size: side of the square in pixels; at least 16.
        foreground: longer side of the object, in parts of the square, in (0, 1].
        background: white, grey (127, half of white), or transparent, for RGBA.

    Returns:
        (size, size, 3) uint8 RGB; or (size, size, 4) RGBA, whose colours are 0 where it is
        transparent.

    Raises:
        UserError: if the mask is empty, or a number or the background is something else.
    """
    if size < 16:
        raise UserError(f"the size must be 16 pixels or more, not {size}")
    check_number("foreground", foreground, 0.01, 1)
    if background not in get_args(Background):
        raise UserError(f"there is no background {background!r}, only white, grey, transparent")
    if not mask.any():
        raise UserError("the mask is empty: it selects no pixel of the image")
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    place = np.s_[y : y + height, x : x + width]
    # Colours are weighted with opacity, so that none of the old background comes through.
    opaque = mask[place][..., None].astype(np.float32)
    weighted = np.dstack([image[place] * opaque, 255 * opaque])
    scale = foreground * size / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(weighted, inner, interpolation=way)
    square = np.zeros((size, size, 4), dtype=np.float32)
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    square[top : top + inner[1], left : left + inner[0]] = resized
    colors, alpha = square[..., :3], square[..., 3:]
    if background == "transparent":
        colors = np.divide(colors * 255, alpha, out=np.zeros_like(colors), where=alpha > 0)
        return np.rint(np.dstack([colors, alpha])).clip(0, 255).astype(np.uint8)
    shade = 255 if background == "white" else 127
    return np.rint(colors + shade * (1 - alpha / 255)).clip(0, 255).astype(np.uint8)


def make_relief(
    image: Pixels, mask: Mask, nearness: NDArray[np.float32], relief: float = 0.3
) -> "trimesh.Trimesh":
    """Makes a closed mesh of an object: its visible side by depth, sides, and a flat back.

    Args:
        image: (H, W, 3) uint8 RGB, the texture.
        mask: (H, W) bool, not empty.
        nearness: (H, W), larger where the object is nearer; the lowest and the highest two per cent
            in the mask are cut off.
        relief: as in :meth:`Anything3d.lift`.

    Returns:
        A mesh of at most 256 x 256 points for each side; see :class:`Lifted` for its axes.

    Raises:
        UserError: if the mask is too thin: it holds no square of the points.
        MissingExtra: if trimesh is not installed.
    """
    trimesh = _import_trimesh()
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    place = np.s_[y : y + height, x : x + width]
    inside = mask[place]
    low, high = np.percentile(nearness[place][inside], (2, 98))
    heights = (nearness[place].clip(low, high) - low) / max(float(high - low), 1e-6)
    # A lattice of every point, or of fewer.
    step = max(1.0, max(width, height) / _LATTICE)
    rows, columns = (
        np.unique(np.linspace(0, length - 1, max(2, round(length / step))).round().astype(int))
        for length in (height, width)
    )
    kept = inside[np.ix_(rows, columns)]
    numbers = np.full(kept.shape, -1)
    cells = kept[:-1, :-1] & kept[1:, :-1] & kept[:-1, 1:] & kept[1:, 1:]
    if not cells.any():
        raise UserError("the mask is too thin for a relief: segment a larger object")
    used = np.zeros_like(kept)
    for down in (0, 1):
        for right in (0, 1):
            part = np.s_[down : down + len(cells), right : right + cells.shape[1]]
            used[part] |= cells
    numbers[used] = np.arange(used.sum())
    a, b, c, d = (
        grid[cells]
        for grid in (numbers[:-1, :-1], numbers[1:, :-1], numbers[1:, 1:], numbers[:-1, 1:])
    )
    front = np.vstack([np.column_stack([a, b, c]), np.column_stack([a, c, d])])
    at_row, at_column = rows[np.nonzero(used)[0]], columns[np.nonzero(used)[1]]
    side = max(width, height)
    flat = np.column_stack([at_column - (width - 1) / 2, (height - 1) / 2 - at_row]) / side
    near = relief * heights[at_row, at_column]
    middle = relief / 2
    points = np.vstack(
        [
            np.column_stack([flat, near - middle]),
            np.column_stack([flat, np.full(len(flat), -middle - _BACK)]),
        ]
    )
    count = len(flat)
    faces = np.vstack([front, front[:, ::-1] + count, _walls(front, count)])
    uv = np.column_stack([(at_column + 0.5) / width, 1 - (at_row + 0.5) / height])
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(np.ascontiguousarray(image[place])),
        metallicFactor=0.0,
        roughnessFactor=1.0,
    )
    texture = trimesh.visual.TextureVisuals(uv=np.vstack([uv, uv]), material=material)
    return trimesh.Trimesh(points, faces, visual=texture, process=False)


def _walls(front: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Returns faces between the edges of a surface and those of its back, ``count`` further on."""
    edges = np.vstack([front[:, [0, 1]], front[:, [1, 2]], front[:, [2, 0]]])
    _, first, uses = np.unique(
        np.sort(edges, axis=1), axis=0, return_index=True, return_counts=True
    )
    start, end = edges[first[uses == 1]].T
    return np.vstack(
        [
            np.column_stack([end, start, start + count]),
            np.column_stack([end, start + count, end + count]),
        ]
    )


def draw_turntable(mesh: "trimesh.Trimesh") -> list[Pixels]:
    """Draws a mesh that turns 40 degrees to either side and back, without perspective.

    Args:
        mesh: a ``trimesh.Trimesh``, Y up, that faces along Z.

    Returns:
        48 pictures, (320, 320, 3) uint8 RGB, on white.
    """
    trimesh = _import_trimesh()
    colored = mesh.visual.to_color() if mesh.visual.kind == "texture" else mesh.visual
    points, places = trimesh.sample.sample_surface(mesh, _SAMPLES, seed=0)
    corners = trimesh.triangles.points_to_barycentric(mesh.triangles[places], points)
    colors = np.asarray(colored.vertex_colors)[mesh.faces[places]][..., :3].astype(np.float32)
    colors = np.einsum("nk,nkc->nc", corners, colors).clip(0, 255)
    points = points - mesh.bounds.mean(axis=0)
    scale = 0.45 * _GIF_SIDE / max(float(np.linalg.norm(points, axis=1).max()), 1e-9)
    normals = mesh.face_normals[places]
    pictures = []
    for frame in range(_FRAMES):
        angle = np.deg2rad(_SWING) * np.sin(2 * np.pi * frame / _FRAMES)
        x = np.cos(angle) * points[:, 0] + np.sin(angle) * points[:, 2]
        z = np.cos(angle) * points[:, 2] - np.sin(angle) * points[:, 0]
        facing = np.cos(angle) * normals[:, 2] - np.sin(angle) * normals[:, 0]
        seen = np.flatnonzero(facing > 0)
        order = seen[np.argsort(z[seen])]  # the nearest are drawn last
        columns = (_GIF_SIDE / 2 + scale * x[order]).astype(int)
        rows = (_GIF_SIDE / 2 - scale * points[order, 1]).astype(int)
        shade = 0.35 + 0.65 * facing[order, None]
        picture = np.full((_GIF_SIDE, _GIF_SIDE, 3), 255, dtype=np.uint8)
        picture[rows, columns] = (colors[order] * shade).astype(np.uint8)
        drawn = np.zeros(picture.shape[:2], dtype=np.uint8)
        drawn[rows, columns] = 1
        gaps = (cv2.morphologyEx(drawn, cv2.MORPH_CLOSE, np.ones((3, 3))) > 0) & (drawn == 0)
        picture[gaps] = cv2.medianBlur(picture, 3)[gaps]  # single pixels that no point fell on
        pictures.append(picture)
    return pictures


def _encode_gif(pictures: list[Pixels]) -> bytes:
    first, *others = (Image.fromarray(each).quantize(255) for each in pictures)
    gif = io.BytesIO()
    first.save(gif, "GIF", save_all=True, append_images=others, duration=50, loop=0, disposal=2)
    return gif.getvalue()


def _best(objects: Instances) -> Instances:
    return objects[int(objects.scores.argmax())]


def _import_trimesh() -> Any:
    try:
        import trimesh
        import trimesh.sample
        import trimesh.visual
    except ImportError as error:
        raise MissingExtra.of("trimesh", "lift") from error
    return trimesh
