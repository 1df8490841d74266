"""The check of images with masks before they are trained on: what is wrong is counted and shown."""

import hashlib
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from ..errors import UserError
from .annotated import AnnotatedImages, Labelled
from .unreadable import NoMask, OtherSize, Unfit, check_fit

_SHOWN = 3  # examples of a fault


class DataCheck:
    """Reads data sets once, and counts what can and cannot be used.

    Args:
        size: side of the square input.

    Attributes:
        images, masks: the number of usable images, and of their masks, per data set.
        left_out: what is wrong with the others, and an example each time.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: dict[str, int] = {}
        self.masks: dict[str, int] = {}
        self.left_out: dict[str, list[str]] = {}
        self._noisy: list[str] = []
        self._places: dict[str, dict[str, str]] = {}  # digest of pixels: data set: image

    def read(
        self, name: str, images: AnnotatedImages, progress: Callable[[], object] = lambda: None
    ) -> None:
        """Reads a data set.

        Args:
            name: of the data set, for messages.
            images: its images.
            progress: called after each image.
        """
        self.images[name] = self.masks[name] = 0
        for index in range(len(images)):
            progress()
            try:
                item = images[index]
                check_fit(item.image, self.size)
            except (OSError, ValueError) as error:
                kinds = {
                    OtherSize: "images whose masks have another size",
                    NoMask: "images without a mask that has a pixel",
                    Unfit: "images that are too thin",
                    FileNotFoundError: "images that are missing",
                }
                self._leave_out(kinds.get(type(error), "images that cannot be read"), str(error))
                continue
            self.images[name] += 1
            self.masks[name] += item.count
            if item.empty:
                self._leave_out("masks without a pixel", item.name, item.empty)
            if isinstance(item, Labelled) and item.has_jpeg_noise():
                self._noisy.append(item.name)
            pixels = np.ascontiguousarray(item.image)
            digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
            self._places.setdefault(digest, {}).setdefault(name, item.name)

    def _leave_out(self, kind: str, example: str, count: int = 1) -> None:
        self.left_out.setdefault(kind, []).extend([example] * count)

    def tell(self) -> str:
        """Returns the numbers of images and masks, and warns of what is left out.

        Raises:
            UserError: if a data set has no usable image, an image is in two data sets, or label
                maps look as if they had been saved as JPEG.
        """
        for kind, examples in self.left_out.items():
            warnings.warn(
                f"{len(examples):,} {kind} are left out, such as {_join(dict.fromkeys(examples))}",
                stacklevel=2,
            )
        for name, count in self.images.items():
            if not count:
                raise UserError(f"there is no usable image {name}: see the warnings above")
        if self._noisy:
            raise UserError(
                f"{len(self._noisy)} label maps look as if they had been saved as JPEG, which "
                f"alters their values, such as of {_join(self._noisy)}: make them anew as PNG"
            )
        twice = [places for places in self._places.values() if len(places) > 1]
        if twice:
            raise UserError(
                f"{len(twice)} images are in two data sets, so that scores would be too high, such "
                f"as {'; '.join(map(_describe_places, twice[:_SHOWN]))}: remove one of each"
            )
        return " and ".join(
            f"{count:,} images with {self.masks[name]:,} masks {name}"
            for name, count in self.images.items()
        )


def _join(examples: Mapping[str, object] | list[str]) -> str:
    shown = list(examples)[:_SHOWN]
    return ", ".join(map(repr, shown))


def _describe_places(places: Mapping[str, str]) -> str:
    return " and ".join(f"{image!r} {name}" for name, image in places.items())
