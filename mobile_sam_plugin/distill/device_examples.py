"""Examples for supervised training that are made on the device, so that it waits for no CPU.

All pictures lie in the device's memory. Batches are cropped, composed and varied there. The CPU
draws where things go, and nothing is copied back to it.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from ..datasets.annotated import AnnotatedImage, AnnotatedImages
from ..inputs import PIXEL_MEAN, PIXEL_STD, input_size
from ..scenes.composites import (
    MOST_OBJECTS,
    SHADOW_BLUR,
    Composites,
    CutOut,
    Placement,
    Plan,
)
from ..scenes.textures import read_texture_image
from .augmentation import (
    BLUR,
    BLUR_CHANCE,
    COLOR_CHANCE,
    CONTRAST,
    GRAIN,
    GRAIN_CHANCE,
    GRAY_CHANCE,
    SATURATION,
)
from .batches import MaskExamples, View, draw_view
from .device_pictures import MOST_MASKS, Matrix, Pictures
from .objectives import LOW_RES, Batch
from .options import DEFAULT_AUGMENTATION

_COARSE = 64  # points a side at which the pixels of masks are counted
_FEWEST = 2  # such points of a mask
_SHADOW = 8  # how much coarser shadows are than the input
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)


class Layers(NamedTuple):
    """Composed pictures: the colours, and the masks of the layer that is on top at each pixel.

    Attributes:
        image: (B, 3, S, S) float32, 0 to 255.
        tops: (B, S, S) int64, the number of the layer on top; 0 is the background.
        masks: (B, S, S) int64, which masks of that layer have the pixel, see `Pictures`.
        are_parts: (B, L, 63) bool, whether a mask of a layer lies in another one.
        are_inside: (B, S, S) bool, whether a pixel is of the picture and not of the padding.
    """

    image: Tensor
    tops: Tensor
    masks: Tensor
    are_parts: Tensor
    are_inside: Tensor


class _Pasted(NamedTuple):
    """Where a thing goes in the input.

    Attributes:
        thing: its index.
        to_square, shadow: (3, 3), from pixels of the input to those of the thing's square, for the
            thing and for its shadow.
        shadow_blur: standard deviation, in pixels of the input.
        darkness: of the shadow.
        gain: (3,), factors of the colours.
    """

    thing: int
    to_square: Matrix
    shadow: Matrix
    shadow_blur: float
    darkness: float
    gain: NDArray[np.float32]


class _Example(NamedTuple):
    """What the CPU draws of an example.

    Attributes:
        number: of the data set.
        photograph: its index.
        to_square: (3, 3), from pixels of the input to those of the photograph's square.
        size: height and width of the input without its padding.
        gain: (3,), factors of the photograph's colours.
        blur: of the photograph, standard deviation in pixels of the input.
        is_mask: whether all that shows of the photograph is a mask.
        pasted: the things on it, from the back to the front.
    """

    number: int
    photograph: int
    to_square: Matrix
    size: tuple[int, int]
    gain: NDArray[np.float32] = np.ones(3, np.float32)
    blur: float = 0.0
    is_mask: bool = False
    pasted: Sequence[_Pasted] = ()


class DeviceExamples(MaskExamples):
    """The pictures of :class:`~.batches.MaskExamples`, made in the memory of a device, in batches.

    At the same position both show the same part of the same picture, and things pasted at the same
    places. Prompts, and variations of colours and quality, are drawn in another way, and depend on
    the first position of a batch and on its length. What else differs:

    - photographs are kept with their longer side at the input size, things to paste at half of it,
      so the parts that are shown are less sharp than those of larger photographs;
    - at most 63 masks of a picture are kept;
    - a part of a picture that shows no mask has no prompt;
    - there are no JPEG artefacts.

    Args:
        images: data sets of photographs, and of composites. All of their pictures are read here.
        size: side S of the square input.
        prompts_per_image: P. Half of the prompts are for parts of others, where there are some.
        seed: random seed of order, crops, composites and prompts.
        weights, prompts, augmentation: see `MaskExamples`.
        device: has the pictures.

    Raises:
        UserError: if the device's memory is too small for the pictures.
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
        *,
        device: torch.device,
    ) -> None:
        super().__init__(images, size, prompts_per_image, seed, weights, prompts, augmentation)
        self.device = device
        self._pictures: list[Pictures] = []
        self._things: dict[int, Pictures] = {}
        for number, each in enumerate(images):
            if isinstance(each, Composites):
                pictures = Pictures.read(
                    each.photographs, _read_photograph, size, device, have_masks=False
                )
                self._things[number] = Pictures.read(
                    each.objects, _read_thing, size // 2, device, channels=4
                )
            else:
                pictures = Pictures.read(each, _read_annotated, size, device)
            self._pictures.append(pictures)

    def __getitem__(self, position: int) -> Batch:
        """Returns the example of a batch of one."""
        return {name: values[0] for name, values in self.__getitems__([position]).items()}

    @torch.no_grad()
    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """Returns the batch of these positions; torch's DataLoader looks for this method."""
        entropy = self.seed, positions[0], len(positions)
        rng = np.random.default_rng(entropy)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**63)))
        layers = self._compose(positions)
        pixels = self._vary(layers.image, rng, generator)
        return {
            "pixels": self._normalise(pixels) * layers.are_inside[:, None],
            **self._prompt(layers, generator),
        }

    def _to_device(self, values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values)).to(self.device, non_blocking=True)

    def _place(self, position: int) -> _Example:
        """Returns where everything in an example goes, as `MaskExamples` draws it."""
        number, index, _, rng = self.draw(position)
        images, pictures = self.images[number], self._pictures[number]
        if not isinstance(images, Composites):
            height, width = pictures.shapes[index].tolist()
            view = draw_view((height, width), self.size, self.augmentation, rng)
            matrix, size = _from_input(view, self.size)
            return _Example(number, index, pictures.to_square(index) @ matrix, size)
        plan = images.plan(index)
        view = draw_view((plan.height, plan.width), self.size, self.augmentation, rng)
        matrix, size = _from_input(view, self.size)
        scale = np.sqrt(abs(np.linalg.det(matrix)))
        shown = plan.background(tuple(pictures.shapes[plan.photograph]))
        to_photograph = _to_part(*shown, plan.height, plan.width)
        return _Example(
            number,
            plan.photograph,
            pictures.to_square(plan.photograph) @ to_photograph @ matrix,
            size,
            plan.gain,
            plan.blur / scale,
            plan.has_behind,
            [
                _draw_pasted(placement, plan, self._things[number], matrix, scale)
                for placement in plan.placements
            ],
        )

    def _compose(self, positions: Sequence[int]) -> Layers:
        """Composes the pictures of these positions."""
        drawn = [self._place(position) for position in positions]
        numbers = np.array([each.number for each in drawn])
        parts = [
            self._compose_of(number, [each for each in drawn if each.number == number])
            for number in np.unique(numbers).tolist()
        ]
        places = self._to_device(numbers.argsort(kind="stable").argsort())
        return Layers(*(torch.cat(values)[places] for values in zip(*parts, strict=True)))

    def _compose_of(self, number: int, examples: Sequence[_Example]) -> Layers:
        """Composes pictures of a data set."""
        pictures = self._pictures[number]
        index = self._to_device([each.photograph for each in examples])
        matrices = [each.to_square for each in examples]
        image = pictures.sample_colors(index, matrices, self.size)
        image = self._tint(image, [each.gain for each in examples])
        for row, each in enumerate(examples):
            if each.blur:
                image[row] = _soften(image[row : row + 1], each.blur)[0]
        masks = pictures.take_masks(index, matrices, self.size)
        masks |= self._to_device([int(each.is_mask) for each in examples])[:, None, None]
        places = torch.arange(self.size, device=self.device)
        heights, widths = self._to_device([each.size for each in examples]).T[:, :, None]
        layers = Layers(
            image,
            torch.zeros_like(masks, dtype=torch.uint8),
            masks,
            F.pad(pictures.are_parts[index, None], (0, 0, 0, MOST_OBJECTS)),
            (places < heights)[:, :, None] & (places < widths)[:, None, :],
        )
        for layer in range(MOST_OBJECTS):
            rows = [row for row, each in enumerate(examples) if layer < len(each.pasted)]
            if rows:
                pasted = [examples[row].pasted[layer] for row in rows]
                self._paste(layers, layer + 1, rows, pasted, self._things[number])
        return layers._replace(masks=layers.masks * layers.are_inside)

    def _paste(
        self,
        layers: Layers,
        layer: int,
        rows: list[int],
        pasted: Sequence[_Pasted],
        things: Pictures,
    ) -> None:
        """Pastes a thing on each of these rows of some pictures, in place."""
        self._cast_shadows(layers.image, rows, pasted, things)
        at, index = self._to_device(rows), self._to_device([each.thing for each in pasted])
        matrices = [each.to_square for each in pasted]
        colors = things.sample_colors(index, matrices, self.size)
        alpha = colors[:, 3:] / 255
        colors = self._tint(colors[:, :3], [each.gain for each in pasted])
        layers.image[at] = layers.image[at] * (1 - alpha) + colors
        is_on = alpha[:, 0] > 0.5
        layers.tops[at] = torch.where(is_on, layer, layers.tops[at])
        masks = things.take_masks(index, matrices, self.size)
        layers.masks[at] = torch.where(is_on, masks, layers.masks[at])
        layers.are_parts[at, layer] = things.are_parts[index]

    def _cast_shadows(
        self, image: Tensor, rows: list[int], pasted: Sequence[_Pasted], things: Pictures
    ) -> None:
        """Darkens some pictures below the things that cast a shadow, in place."""
        # One blur for all of them, that of the mean thing.
        sigma = max(0.5, float(np.mean([each.shadow_blur for each in pasted])) / _SHADOW)
        rows = [row for row, each in zip(rows, pasted, strict=True) if each.darkness]
        pasted = [each for each in pasted if each.darkness]
        if not rows:
            return
        index = self._to_device([each.thing for each in pasted])
        matrices = [each.shadow for each in pasted]
        alpha = things.sample_colors(index, matrices, self.size, step=_SHADOW)[:, 3:] / 255
        shadows = gaussian_blur(alpha, [7, 7], [sigma, sigma])
        shadows = F.interpolate(shadows, image.shape[-2:], mode="bilinear")
        darkness = self._to_device(np.array([each.darkness for each in pasted], np.float32))
        image[self._to_device(rows)] *= 1 - darkness[:, None, None, None] * shadows

    def _tint(self, pixels: Tensor, gains: Sequence[NDArray[np.float32]]) -> Tensor:
        """Multiplies the colours (B, 3, S, S) of pictures by factors, (3,) each."""
        return (pixels * self._to_device(np.array(gains))[:, :, None, None]).clamp(0, 255)

    def _vary(self, image: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Varies colours and quality of pictures (B, 3, S, S), as far as `augmentation` says."""

        def draw(low: float, high: float, chance: float, neutral: float) -> Tensor:
            shape = len(image), 1, 1, 1
            drawn = torch.rand((2, *shape), generator=generator, device=self.device)
            return torch.where(drawn[0] < chance, low + (high - low) * drawn[1], neutral)

        if "color" in self.augmentation:
            light, vivid = (1 - CONTRAST, 1 + CONTRAST), (1 - SATURATION, 1 + SATURATION)
            image = (image * draw(*light, COLOR_CHANCE, 1)).clamp(0, 255)
            mean = image.mean((1, 2, 3), keepdim=True)
            image = (mean + (image - mean) * draw(*light, COLOR_CHANCE, 1)).clamp(0, 255)
            gray = (image * self._to_device(_GRAY)[:, None, None]).sum(1, keepdim=True)
            saturation = draw(*vivid, COLOR_CHANCE, 1) * draw(0, 0, GRAY_CHANCE, 1)
            image = (gray + (image - gray) * saturation).clamp(0, 255)
        if "quality" in self.augmentation:
            blurred = gaussian_blur(image, [7, 7], [rng.uniform(*BLUR)] * 2)
            image = torch.where(draw(0, 1, BLUR_CHANCE, -1) >= 0, blurred, image)
            grain = torch.randn(image.shape, generator=generator, device=self.device)
            image = image + grain * draw(*GRAIN, GRAIN_CHANCE, 0)
        return image.clamp(0, 255).round()

    def _normalise(self, image: Tensor) -> Tensor:
        mean, std = self._to_device(np.array([PIXEL_MEAN, PIXEL_STD], np.float32))[..., None, None]
        return (image - mean) / std

    def _prompt(self, layers: Layers, generator: torch.Generator) -> Batch:
        """Draws masks of pictures, and prompts for them."""
        count = self.prompts_per_image
        step = max(1, self.size // _COARSE)
        masks, tops = (
            values[:, step // 2 :: step, step // 2 :: step].flatten(1)
            for values in (layers.masks, layers.tops)
        )
        bits = torch.arange(MOST_MASKS, device=self.device)
        are_set = ((masks[:, :, None] >> bits) & 1).float()
        numbers = torch.arange(1 + MOST_OBJECTS, device=self.device)
        are_tops = (tops[:, :, None] == numbers).float()
        areas = are_tops.transpose(1, 2) @ are_set
        are_visible = areas >= _FEWEST
        kinds = [are_visible & layers.are_parts, are_visible & ~layers.are_parts]
        chances = sum(kind / kind.sum((1, 2), keepdim=True).clamp(min=1) for kind in kinds)
        # The largest of these are a draw without replacement (Gumbel's trick).
        noise = torch.empty_like(areas).exponential_(generator=generator)
        order = (chances / noise).flatten(1).argsort(1, descending=True)
        visible = are_visible.flatten(1).sum(1, keepdim=True)
        turn = torch.arange(count, device=self.device) % visible.clamp(min=1)
        chosen = order.gather(1, turn)
        layer, bit = (chosen // MOST_MASKS)[..., None, None], (chosen % MOST_MASKS)[..., None, None]
        targets = (layers.tops[:, None] == layer) & ((layers.masks[:, None] >> bit) & 1).bool()
        low_res = F.avg_pool2d(targets.float(), LOW_RES) >= 0.5
        prompts = self.prompt(targets.flatten(0, 1), generator)
        return {
            **{k: v.unflatten(0, (-1, count)) for k, v in prompts._asdict().items()},
            "masks": low_res,
            "is_real": low_res.flatten(2).any(-1),
        }


def _from_input(view: View, size: int) -> tuple[Matrix, tuple[int, int]]:
    """Returns the matrix (3, 3) from pixels of the input to those of a picture.

    Also returns the height and width of the input without its padding.
    """
    rows, columns = view.rows, view.columns
    height, width = input_size(rows.stop - rows.start, columns.stop - columns.start, size)
    part = _to_part(rows, columns, height, width)
    flip = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) if view.is_flipped else np.eye(3)
    turn = (
        np.eye(3),
        np.array([[0.0, -1, width], [1, 0, 0], [0, 0, 1]]),
        np.array([[-1.0, 0, width], [0, -1, height], [0, 0, 1]]),
        np.array([[0.0, 1, 0], [-1, 0, height], [0, 0, 1]]),
    )[view.turns]
    return part @ flip @ turn, (width, height) if view.turns % 2 else (height, width)


def _to_part(rows: slice, columns: slice, height: int, width: int) -> Matrix:
    """Returns the matrix (3, 3) from pixels of a picture of this size to the part it shows."""
    x, y = (columns.stop - columns.start) / width, (rows.stop - rows.start) / height
    return np.array([[x, 0, columns.start], [0, y, rows.start], [0, 0, 1]])


def _draw_pasted(
    placement: Placement, plan: Plan, things: Pictures, from_input: Matrix, scale: float
) -> _Pasted:
    """Returns where a thing goes, given the matrix from the input to the composite."""
    index = placement.number
    length = placement.side * min(plan.height, plan.width)
    placed, shift = np.eye(3), np.eye(3)
    placed[:2] = placement.matrix(tuple(things.shapes[index]), plan.height, plan.width)
    shift[:2, 2] = placement.shift * length
    to_square = things.to_square(index)
    return _Pasted(
        index,
        to_square @ np.linalg.inv(placed) @ from_input,
        to_square @ np.linalg.inv(shift @ placed) @ from_input,
        SHADOW_BLUR * length / scale,
        placement.darkness,
        placement.gain,
    )


def _soften(image: Tensor, sigma: float) -> Tensor:
    """Blurs a picture (1, C, S, S); a strong blur at a lower resolution."""
    factor = max(1, int(sigma))
    small = F.avg_pool2d(image, factor, ceil_mode=True) if factor > 1 else image
    small = gaussian_blur(small, [7, 7], [sigma / factor] * 2)
    return F.interpolate(small, image.shape[-2:], mode="bilinear")


def _read_annotated(item: AnnotatedImage) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return item.image, item.masks


def _read_photograph(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return read_texture_image(path), np.zeros((0, 1, 1), bool)


def _read_thing(thing: CutOut) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    whole = thing.pixels[..., 3] > 127
    return thing.pixels, np.concatenate([whole[None], thing.parts & whole])
