"""Images with masks: in memory, labelled by value, or run-length encoded."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray
from typing_extensions import override

from .unreadable import Items

_FEWEST_NOISY = 16  # values of a label map that can look like noise


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and the masks of things in it.

    Masks from files are decoded on request and not kept, because those of thousands of objects do
    not fit into memory at once: :meth:`take` decodes some of them, ``masks`` all.

    Attributes:
        name: identifies the image in its data set.
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool, at least one, none of them empty. They may overlap, such as those of
            a thing and its parts.
        empty: number of further masks that are left out because they have no pixel.
    """

    name: str
    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    empty: int = 0

    @property
    def count(self) -> int:
        """N, the number of masks."""
        return len(self.masks)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns the masks of these indices, (n, H, W)."""
        return self.masks[np.asarray(indices, dtype=np.int64)]

    def find_visible(self, rows: slice, columns: slice) -> NDArray[np.int64]:
        """Returns the indices, ascending, of the masks with a pixel in a part of the image."""
        return np.flatnonzero(self.masks[:, rows, columns].any((1, 2)))

    def fingerprint(self) -> str:
        """Returns a checksum of its pixels and masks, which does not depend on its name."""
        digest = hashlib.sha256(f"{self.image.shape} {self.count}".encode())
        digest.update(np.ascontiguousarray(self.image).data)
        for content in self._mask_contents():
            digest.update(content)
        return digest.hexdigest()

    def _mask_contents(self) -> Iterable[Any]:
        """Bytes that identify the masks."""
        return (np.packbits(mask) for mask in self.masks)


class Labelled(AnnotatedImage):
    """An image whose pixels belong to at most one mask each, given by a value; 0 is no mask."""

    def __init__(self, name: str, image: NDArray[np.uint8], values: NDArray[Any]) -> None:
        labels = np.unique(values)
        # The base is frozen.
        vars(self).update(name=name, image=image, _values=values, _labels=labels[labels != 0])

    _values: NDArray[Any]
    _labels: NDArray[Any]

    @property
    @override
    def masks(self) -> NDArray[np.bool_]:
        return self.take(range(self.count))

    @property
    @override
    def count(self) -> int:
        return len(self._labels)

    @override
    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        masks = np.empty((len(indices), *self._values.shape), dtype=bool)
        for mask, index in zip(masks, indices, strict=True):
            np.equal(self._values, self._labels[index], out=mask)
        return masks

    @override
    def find_visible(self, rows: slice, columns: slice) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(self._labels, np.unique(self._values[rows, columns])))

    @override
    def _mask_contents(self) -> Iterable[Any]:
        return (str(self._values.dtype).encode(), np.ascontiguousarray(self._values))

    def has_jpeg_noise(self) -> bool:
        """Whether the values look as if they had been saved as JPEG, which alters them.

        Then most of the values belong to no thing, but to single pixels along the edges of things.
        """
        starts = np.ones(self._values.shape, bool)  # where a run of a value begins in its row
        starts[:, 1:] = self._values[:, 1:] != self._values[:, :-1]
        _, values = np.unique(self._values, return_inverse=True)
        values = values.reshape(starts.shape)
        are_thin = np.bincount(values.ravel()) < 2 * np.bincount(values[starts])
        return len(are_thin) >= _FEWEST_NOISY and bool(are_thin.mean() > 0.5)


class Encoded(AnnotatedImage):
    """An image with masks in COCO's compressed RLE; those without a pixel are left out."""

    def __init__(
        self,
        name: str,
        image: NDArray[np.uint8],
        encoded: Sequence[Mapping[str, Any]],
        empty: int = 0,
    ) -> None:
        filled = [rle for rle in encoded if pycocotools.mask.area(rle)]
        empty += len(encoded) - len(filled)
        vars(self).update(name=name, image=image, empty=empty, _encoded=filled)

    _encoded: Sequence[Mapping[str, Any]]

    @property
    @override
    def masks(self) -> NDArray[np.bool_]:
        return self.take(range(self.count))

    @property
    @override
    def count(self) -> int:
        return len(self._encoded)

    @override
    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        masks = np.empty((len(indices), *self.image.shape[:2]), dtype=bool)
        for mask, index in zip(masks, indices, strict=True):
            mask[:] = pycocotools.mask.decode(self._encoded[index])
        return masks

    @override
    def find_visible(self, rows: slice, columns: slice) -> NDArray[np.int64]:
        window = np.zeros(self.image.shape[:2], dtype=np.uint8, order="F")
        window[rows, columns] = 1
        inside = pycocotools.mask.encode(window)
        common = (pycocotools.mask.merge([rle, inside], intersect=True) for rle in self._encoded)
        # One by one, because area() fails for lists of more than 255.
        return np.flatnonzero([pycocotools.mask.area(rle) for rle in common])

    @override
    def _mask_contents(self) -> Iterable[Any]:
        return (bytes(rle["counts"]) for rle in self._encoded)


AnnotatedImages = Items[AnnotatedImage]
"""A data set of images with masks, read one by one; see :class:`~.unreadable.Items`."""
