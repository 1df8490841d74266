"""Proposals for everything mode: boxes in an image from a COCO JSON, a detector or a function."""

import os
import posixpath
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError
from ..images import join_counts
from .coco import CocoSource, place_boxes

if TYPE_CHECKING:
    import torch


class Proposer(Protocol):
    """Finds the proposals in an image."""

    def __call__(self, pixels: NDArray[np.uint8], name: str, /) -> ArrayLike:
        """Returns boxes (N, 4), XYXY, or points (N, 2), XY, in pixels.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            name: path, URL or name of the image's file.

        Raises:
            UserError: if there is nothing known of the image, or what is known does not fit it.
        """


ProposalSource = str | os.PathLike[str] | Callable[[NDArray[np.uint8]], ArrayLike]
"""What :func:`open_proposals` takes."""


def open_proposals(source: ProposalSource, device: "str | torch.device" = "cpu") -> Proposer:
    """Opens a source of proposals.

    Args:
        source: a COCO ``.json`` with annotations that have a ``bbox``, a path or URL; the name or
            folder of a detector in transformers, see :class:`~
            mobile_sam_plugin.integrations.detectors.ClassAgnosticDetector`; or a function that
            takes an image, (H, W, 3) uint8 RGB, and returns boxes (N, 4) or points (N, 2).
        device: of the detector.

    Raises:
        FileNotFoundError, UserError: if the JSON cannot be read.
        Exception: as :func:`~mobile_sam_plugin.integrations.pretrained.load_pretrained`.

    Examples:
        >>> propose = open_proposals("instances_val2017.json")
        >>> generator = SamAutomaticMaskGenerator(sam, search="proposals")
        >>> generator.generate(pixels, proposals=propose(pixels, "000000000139.jpg"))
    """
    if callable(source):
        find_boxes = source
    else:
        location = os.fspath(source)
        if is_coco(location):
            return _CocoProposals(location)
        from mobile_sam_plugin.integrations.detectors import ClassAgnosticDetector

        find_boxes = ClassAgnosticDetector(location, device)
    return lambda pixels, name: find_boxes(pixels)


def is_coco(source: str) -> bool:
    """Returns whether a source of proposals is a COCO JSON, by its name."""
    return source.lower().endswith(".json")


class _CocoProposals:
    """The boxes of a COCO JSON, by the names of the images."""

    def __init__(self, location: str) -> None:
        self._location = location
        source = CocoSource(location, None)
        self._items: dict[str, list[Any]] = {}
        for listed in source.listing():
            item = source.item(listed)
            self._items.setdefault(posixpath.basename(listed.key), []).append((listed.key, item))

    def __call__(self, pixels: NDArray[np.uint8], name: str, /) -> NDArray[np.float32]:
        path = PurePath(name)
        found = self._items.get(path.name, [])
        if len(found) > 1:  # images of one name in several folders
            found = [(key, item) for key, item in found if path.as_posix().endswith(f"/{key}")]
        if len(found) != 1:
            raise UserError(
                f"{self._location!r} has proposals for no image {name!r}: list it there with its "
                "'file_name'"
            )
        ((_, item),) = found
        _, boxes, skipped = place_boxes(item.boxes, item.size, pixels.shape[:2], lambda: 1)
        if skipped:
            reasons = Counter(f"boxes {box['reason']}" for box in skipped)
            warnings.warn(
                f"left out of the proposals for {name!r}: {join_counts(reasons)}", stacklevel=2
            )
        return boxes
