"""Pictures and their masks in the memory of a device, and what is seen of them through a matrix."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..datasets.unreadable import Items
from ..errors import UserError
from ..evaluation.examiner import choose_masks
from ..inputs import input_size
from ..threads import ordered_map
from .batches import find_parts, resize_masks

MOST_MASKS = 63
"""The most masks that are kept of a picture: each is a bit of an int64 per pixel."""

_SMALL = 512  # input size up to which colours are sampled twice as finely, against aliasing

Matrix = NDArray[np.float64]


class Pictures(NamedTuple):
    """Pictures of one kind in a device's memory, each in the upper left corner of a square.

    Attributes:
        pixels: (N, C, S, S) uint8, RGB, or RGB multiplied by alpha, and alpha.
        masks: (N, S, S) int64; bit k of a pixel says whether it is in mask k.
        are_parts: (N, 63) bool, whether mask k lies in another one of the picture.
        shapes: (N, 2), height and width of the files, on the CPU.
        sizes: (N, 2), height and width in the squares, on the CPU.
    """

    pixels: Tensor
    masks: Tensor
    are_parts: Tensor
    shapes: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def read(
        cls,
        items: Items[Any],
        read: Callable[[Any], tuple[NDArray[np.uint8], NDArray[np.bool_]]],
        side: int,
        device: torch.device,
        *,
        channels: int = 3,
        have_masks: bool = True,
    ) -> "Pictures":
        """Reads a data set to a device.

        Args:
            items: the data set.
            read: returns pixels (H, W, C) and masks (N, H, W) of an item. Of more than 63 masks,
                so many are drawn.
            side: S, to which larger pictures are reduced.
            device: the device.
            channels: C, 3 or 4.
            have_masks: whether the items have masks, which take memory.

        Raises:
            UserError: if the device's memory is too small.
        """
        count = len(items)
        try:
            pixels = torch.zeros((count, channels, side, side), dtype=torch.uint8, device=device)
            masks = torch.zeros(
                (count, side, side) if have_masks else (), dtype=torch.int64, device=device
            ).expand(count, side, side)
        except RuntimeError as error:
            gigabytes = count * side**2 * (channels + 8 * have_masks) / 1e9
            raise UserError(
                f"{count:,} pictures of {side} x {side} pixels take {gigabytes:,.1f} GB of the "
                "device's memory: lower img_size, give fewer pictures, or leave out on_device"
            ) from error
        are_parts = np.zeros((count, MOST_MASKS), bool)
        shapes, sizes = np.zeros((2, count, 2), np.int64)

        def fit(index: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
            picture, found = read(items[index])
            found = found[choose_masks(len(found), MOST_MASKS, [index])]
            if len(found):
                are_parts[index, : len(found)] = find_parts(found)
            height, width = shapes[index] = picture.shape[:2]
            if max(height, width) > side:
                height, width = input_size(height, width, side)
                picture = np.asarray(
                    cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
                )
            sizes[index] = height, width
            # Where colours are interpolated, what lies beyond an edge shows.
            border = cv2.BORDER_REPLICATE if channels == 3 else cv2.BORDER_CONSTANT
            square = cv2.copyMakeBorder(picture, 0, side - height, 0, side - width, border)
            bits = np.zeros((side, side), np.int64)
            for bit, mask in enumerate(resize_masks(found, (height, width), side).numpy()):
                bits |= mask.astype(np.int64) << bit
            return np.asarray(square), bits

        with ThreadPoolExecutor() as pool:
            fitted = ordered_map(fit, range(count), pool, ahead=64)
            bar = tqdm(fitted, "reading pictures", count, unit="picture", disable=None)
            for index, (square, bits) in enumerate(bar):
                pixels[index] = torch.from_numpy(square).permute(2, 0, 1)
                if have_masks:
                    masks[index] = torch.from_numpy(bits)
        return cls(pixels, masks, torch.from_numpy(are_parts).to(device), shapes, sizes)

    def to_square(self, index: int) -> Matrix:
        """Returns the matrix (3, 3) from pixels of a file to those of its square."""
        height, width = self.sizes[index] / self.shapes[index]
        return np.diag([width, height, 1])

    def sample_colors(
        self, index: Tensor, matrices: Sequence[Matrix], size: int, step: int = 1
    ) -> Tensor:
        """Returns what an input shows of pictures, (B, C, S / step, S / step) float32.

        Beyond its edges a picture goes on, or is transparent.

        Args:
            index: of the pictures, (B,).
            matrices: (3, 3) each, from pixels of the input to those of the picture's square.
            size: side S of the input.
            step: pixels of the input from one sample to the next.
        """
        side, channels = self.pixels.shape[-1], self.pixels.shape[1]
        # affine_grid's coordinates go from -1 to 1.
        from_grid = np.array([[size / 2, 0, size / 2], [0, size / 2, size / 2], [0, 0, 1]])
        to_grid = np.array([[2 / side, 0, -1], [0, 2 / side, -1], [0, 0, 1]])
        theta = np.array([(to_grid @ matrix @ from_grid)[:2] for matrix in matrices], np.float32)
        finer = 2 if size <= _SMALL and step == 1 else 1
        samples = finer * size // step
        grid = F.affine_grid(
            torch.from_numpy(theta).to(index.device, non_blocking=True),
            [len(index), channels, samples, samples],
            align_corners=False,
        )
        sampled = F.grid_sample(
            self.pixels[index].float(),
            grid,
            padding_mode="border" if channels == 3 else "zeros",
            align_corners=False,
        )
        return F.avg_pool2d(sampled, finer) if finer > 1 else sampled

    def take_masks(self, index: Tensor, matrices: Sequence[Matrix], size: int) -> Tensor:
        """Returns the masks that the centre of each pixel of an input is in, (B, S, S) int64.

        Args:
            index, matrices, size: see `sample_colors`.
        """
        side = self.masks.shape[-1]
        theta = torch.from_numpy(np.array(matrices, np.float32)).to(index.device, non_blocking=True)
        steps = torch.arange(size, device=index.device) + 0.5
        across, down, start = theta[:, :2, :, None, None].unbind(2)
        x, y = (across * steps + down * steps[:, None] + start).floor().long().unbind(1)
        is_there = (x >= 0) & (x < side) & (y >= 0) & (y < side)
        at = (y * side + x).clamp(0, side**2 - 1)
        found = self.masks[index].flatten(1).gather(1, at.flatten(1)).view_as(at)
        return found * is_there
