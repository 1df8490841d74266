"""The examples that objectives train on, from images with masks or with a teacher's embeddings.

Training draws from an endless stream of examples. The example at a position of the stream depends
only on the seed and the position, so training can resume from any step.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from ..datasets.annotated import AnnotatedImages
from ..datasets.unreadable import Items, Unfit, check_fit
from ..errors import UserError
from ..images import load_image
from ..inputs import preprocess
from ..scenes.composites import Composites
from ..scenes.scenes import Scenes
from .augmentation import change_colors, lower_quality, random_crop
from .embeddings import Embeddings
from .objectives import LOW_RES, Batch, Prompts, sample_prompts
from .options import DEFAULT_AUGMENTATION

_CANDIDATES = 32  # masks of an image that are decoded, of which the prompts' are drawn
_COARSE = 64  # pixels of the longer side at which it is decided whether a mask is part of another


class MaskExamples(Dataset[Batch]):
    """Images with masks and a first prompt for each mask, for :class:`~.objectives.Supervised`.

    Images are varied at random, each in a way of its own, as far as `augmentation` names it:

    - ``"flip"``: half of the images are flipped left to right;
    - ``"rotate"``: images are turned by a multiple of 90 degrees;
    - ``"crop"``: photographs and composites are cropped, to 0.3 to 1 of their sides;
    - ``"color"``: their brightness, contrast and saturation change, and some become gray;
    - ``"quality"``: some of them get blur, noise or JPEG artefacts.

    Whatever it names, half of the scenes are cropped to between half and all of their width or
    height, so that the model sees the padding of images that are not square.

    Args:
        images: one data set or more. Scenes and composites keep their order, all others are
            shuffled in every epoch.
        size: side S of the square input.
        prompts_per_image: P. If an image has more masks, P of them are drawn at random; if it has
            fewer, they are repeated with different prompts. If some are parts of others, half of
            the prompts are for parts.
        seed: random seed of order, crops and prompts.
        weights: the share of each data set among the examples; if None, equal shares.
        prompts: ``"point"``, ``"box"``, or ``"both"`` with equal probability.
        augmentation: names of the variations, see above.

    Examples:
        >>> example = MaskExamples([Scenes(1000, size=256)], 256, 8, seed=0)[0]
        >>> example["pixels"].shape, example["masks"].shape
        (torch.Size([3, 256, 256]), torch.Size([8, 64, 64]))
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImages],
        size: int,
        prompts_per_image: int,
        seed: int,
        weights: Sequence[float] | None = None,
        prompts: str = "both",
        augmentation: Collection[str] = DEFAULT_AUGMENTATION,
    ) -> None:
        self.images = images
        self.size = size
        self.prompts_per_image = prompts_per_image
        self.seed = seed
        self.prompts = prompts
        self.augmentation = augmentation
        shares = np.ones(len(images)) if weights is None else np.array(weights, float)
        self.shares = shares / shares.sum()

    def __getitem__(self, position: int) -> Batch:
        draw = self.draw(position)
        images, rng = self.images[draw.number], draw.rng
        are_scenes = isinstance(images, Scenes)
        item = images[draw.item]
        check_fit(item.image, self.size)

        shape = item.image.shape[:2]
        view = draw_view(shape, self.size, self.augmentation, rng, is_scene=are_scenes)
        visible = item.find_visible(view.rows, view.columns)
        if not len(visible):
            view = view._replace(rows=slice(None), columns=slice(None))
            visible = item.find_visible(view.rows, view.columns)
        count = self.prompts_per_image
        if len(visible):
            candidates = rng.permutation(visible)[: max(_CANDIDATES, count)]
            masks = item.take(candidates)[:, view.rows, view.columns]
            masks = masks[_draw(masks, count, rng)]
        else:
            masks = np.zeros((count, 1, 1), bool)
        image = np.ascontiguousarray(view.turn(item.image[view.rows, view.columns]))
        masks = view.turn(masks, (1, 2))
        height, width = _resized_shape(image, self.size)
        targets = resize_masks(masks, (height, width), self.size)
        if not are_scenes:
            image = ResizeLongestSide(self.size).apply_image(image)
            if "color" in self.augmentation:
                image = change_colors(image, rng)
            if "quality" in self.augmentation:
                image = lower_quality(image, rng)
        low_res = F.avg_pool2d(targets.float(), LOW_RES) >= 0.5
        prompts = self.prompt(targets, torch.Generator().manual_seed(draw.seed))
        return {
            "pixels": _as_input(image, self.size),
            **prompts._asdict(),
            "masks": low_res,
            "is_real": low_res.any(-1).any(-1),
        }

    def draw(self, position: int) -> "Draw":
        """Draws the picture at a position of the stream."""
        rng = np.random.default_rng((self.seed, position))
        seed = int(rng.integers(2**63))
        number = int(rng.choice(len(self.images), p=self.shares))
        images = self.images[number]
        length = len(images)
        are_made = isinstance(images, Scenes | Composites)
        index = position % length if are_made else shuffled_index(position, length, self.seed)
        return Draw(number, index, seed, rng)

    def prompt(self, masks: Tensor, generator: torch.Generator) -> Prompts:
        """Draws a first prompt, of the kind that is asked for, for each mask (N, S, S) bool."""
        prompts = sample_prompts(masks, generator)
        if self.prompts == "both":
            return prompts
        return prompts._replace(is_box=torch.full_like(prompts.is_box, self.prompts == "box"))


class Draw(NamedTuple):
    """Which picture is at a position of the stream of examples.

    Attributes:
        number: of its data set.
        item: its index in the data set.
        seed: random seed of its prompts.
        rng: the source of randomness of all else.
    """

    number: int
    item: int
    seed: int
    rng: np.random.Generator


class View(NamedTuple):
    """How an image is shown: a part of it, flipped, then turned.

    Attributes:
        rows, columns: of the part.
        is_flipped: left to right.
        turns: by 90 degrees, counter-clockwise.
    """

    rows: slice
    columns: slice
    is_flipped: bool
    turns: int

    def turn(self, part: NDArray[Any], axes: tuple[int, int] = (0, 1)) -> NDArray[Any]:
        """Flips and turns a part, whose rows and columns are these axes."""
        return np.rot90(np.flip(part, axes[1]) if self.is_flipped else part, self.turns, axes)


def draw_view(
    shape: tuple[int, int],
    size: int,
    augmentation: Collection[str],
    rng: np.random.Generator,
    *,
    is_scene: bool = False,
) -> View:
    """Draws how an image of a height and width is shown, see :class:`MaskExamples`."""
    rows, columns = whole = slice(0, shape[0]), slice(0, shape[1])
    if is_scene:
        rows, columns = _crop_of_scene(shape, rng)
    elif "crop" in augmentation:
        rows, columns = random_crop(shape, rng)
    sides = rows.stop - rows.start, columns.stop - columns.start
    if min(ResizeLongestSide.get_preprocess_shape(*sides, size)) < 1:  # too thin
        rows, columns = whole
    is_flipped = bool(rng.random() < 0.5) and "flip" in augmentation
    turns = int(rng.integers(4)) if "rotate" in augmentation else 0
    return View(rows, columns, is_flipped, turns)


class EmbeddedImages:
    """A data set of images and their embeddings by a teacher.

    Args:
        embeddings: see :class:`~.embeddings.Embeddings`.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Tensor]:
        """Returns an image, (H, W, 3) uint8 RGB, and its embedding, (C, h, w) float16.

        Raises:
            OSError, ValueError: if either cannot be read, or the image has changed in size.
        """
        path, size, embedding = self.embeddings[index]
        image = load_image(path)
        if image.shape[:2] != size:
            raise Unfit(
                f"the image {str(path)!r} has {image.shape[1]} x {image.shape[0]} pixels, but had "
                f"{size[1]} x {size[0]} when its embedding was computed"
            )
        return image, embedding


class EmbeddingExamples(Dataset[Batch]):
    """Images with a teacher's embeddings, for distillation, in shuffled epochs.

    Args:
        embedded: pairs, see :class:`EmbeddedImages`.
        size: side S of the square input, 16 h.
        seed: random seed of the order.
    """

    def __init__(
        self, embedded: Items[tuple[NDArray[np.uint8], Tensor]], size: int, seed: int
    ) -> None:
        self.embedded = embedded
        self.size = size
        self.seed = seed

    def __getitem__(self, position: int) -> Batch:
        index = shuffled_index(position, len(self.embedded), self.seed)
        image, embedding = self.embedded[index]
        height, width = _resized_shape(image, self.size)
        return {
            "pixels": _as_input(image, self.size),
            "size": torch.tensor((height, width)),
            "embedding": embedding,
        }


class StepBatchSampler(Sampler[list[int]]):
    """Samples the batches of one process: positions in the stream of examples.

    Each step takes the next ``batch_size`` examples. They are divided among processes, and then
    among the batches whose gradients are accumulated.

    Args:
        first, last: the steps, without the last.
        batch_size: examples per step, over all processes and batches.
        batches: batches per step and process.
        process: index of this process.
        processes: number of processes.

    Raises:
        ValueError: if the examples of a step cannot be divided evenly.
    """

    def __init__(
        self,
        first: int,
        last: int,
        batch_size: int,
        batches: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_size % (batches * processes):
            raise UserError(
                f"{batch_size} images per step cannot be divided evenly among {processes} "
                f"processes and {batches} accumulated batches"
            )
        self.first, self.last = first, last
        self.batch_size, self.batches = batch_size, batches
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return (self.last - self.first) * self.batches

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size // (self.batches * self.processes)
        for step in range(self.first, self.last):
            for batch in range(self.batches):
                start = step * self.batch_size + (batch * self.processes + self.process) * size
                yield list(range(start, start + size))


def shuffled_index(position: int, length: int, seed: int) -> int:
    """Returns the index of the item at a position of a stream that is shuffled in every epoch.

    Args:
        position: 0 or more; epochs follow one another without end.
        length: number of items.
        seed: random seed of the orders.
    """
    epoch, place = divmod(position, length)
    return int(_permutation(epoch, length, seed)[place])


@lru_cache(maxsize=2)  # a batch may reach into the next epoch
def _permutation(epoch: int, length: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(length)


def _as_input(image: NDArray[np.uint8], size: int) -> Tensor:
    """Returns an image preprocessed, (3, size, size) float32."""
    return torch.from_numpy(preprocess(image, size)[0])


def _resized_shape(image: NDArray[np.uint8], size: int) -> tuple[int, int]:
    """Returns the height and width of a preprocessed image without its padding."""
    height, width = ResizeLongestSide.get_preprocess_shape(*image.shape[:2], size)
    return height, width


def _draw(masks: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws masks by granularity: half of them parts of others, as far as there are both.

    Args:
        masks: (N, H, W), at least one.
        count: number of masks to draw; all of a kind are drawn before one is drawn again.
        rng: the source of randomness.

    Returns:
        The indices of the drawn masks, (count,).
    """
    is_part = find_parts(masks)
    kinds = [rng.permutation(np.flatnonzero(is_part)), rng.permutation(np.flatnonzero(~is_part))]
    kinds = [kind for kind in kinds if len(kind)]
    chosen = rng.permutation(np.arange(count) % len(kinds))
    drawn = np.empty(count, np.int64)
    for number, kind in enumerate(kinds):
        drawn[chosen == number] = np.resize(kind, np.count_nonzero(chosen == number))
    return drawn


def find_parts(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns which of some masks (N, H, W) are parts of others, (N,)."""
    step = max(1, max(masks.shape[1:]) // _COARSE)
    coarse = masks[:, ::step, ::step].reshape(len(masks), -1).astype(np.float32)
    areas = coarse.sum(1)
    inside = coarse @ coarse.T >= 0.9 * areas[:, None]  # [i, j]: i lies in j
    smaller = areas[:, None] < 0.9 * areas
    is_part: NDArray[np.bool_] = (inside & smaller & (areas[:, None] > 0)).any(1)
    return is_part


def _crop_of_scene(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice]:
    """Returns the rows and columns of a scene that are kept."""
    kept = [slice(0, length) for length in shape[:2]]
    axis, share, place, cropped = rng.integers(2), rng.uniform(0.5, 1), rng.random(), rng.random()
    if cropped < 0.5:
        length = max(1, round(share * shape[axis]))
        start = round(place * (shape[axis] - length))
        kept[axis] = slice(start, start + length)
    return kept[0], kept[1]


def resize_masks(masks: NDArray[np.bool_], shape: tuple[int, int], size: int) -> Tensor:
    """Returns masks (N, H, W) resized and padded as their image: (N, size, size) bool."""
    height, width = shape
    resized = np.zeros((len(masks), size, size), np.uint8)
    shrinks = masks.shape[1] > height or masks.shape[2] > width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    for mask, target in zip(masks, resized, strict=True):
        values = mask.astype(np.uint8) * 255
        if mask.shape != shape:
            values = cv2.resize(values, (width, height), interpolation=interpolation)
        target[:height, :width] = values > 127
    return torch.from_numpy(resized).bool()
