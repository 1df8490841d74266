"""What decides about the results of a run, and what a result is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..polygons import Losses
from ..records import Record

MODES = ("everything", "boxes", "text")
FORMATS = ("sa1b", "coco", "parquet", "ids", "yolo", "labelme", "overlay")


@dataclass(frozen=True)
class Options:
    """The options that :func:`~mobile_sam_plugin.annotate` describes, checked.

    Raises:
        ValueError: an option that is unknown, out of range or does not go with another.
    """

    mode: str = "everything"
    formats: tuple[str, ...] = ("coco",)
    search: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    detector: Any = None
    box_threshold: float = 0.25
    text_threshold: float = 0.25
    nms_threshold: float = 0.8
    overlay_every: int = 1
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    polygons: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"the mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if isinstance(self.formats, str):
            object.__setattr__(self, "formats", (self.formats,))
        for name in self.formats:
            if name not in FORMATS:
                raise UserError(f"a format must be one of {', '.join(FORMATS)}, not {name!r}")
        asked_for = {"sa1b", *self.formats}  # what the others are made from
        object.__setattr__(self, "formats", tuple(name for name in FORMATS if name in asked_for))
        if self.polygons and "coco" not in self.formats:
            raise UserError("polygons are of the format coco: ask for it as well")
        if self.mode != "everything" and self.search:
            raise UserError(f"{', '.join(self.search)}: of mode everything, not {self.mode}")
        if (self.mode == "text") != bool(self.prompts):
            raise UserError("mode text needs a prompt, and no other mode takes one")
        for name in ("box_threshold", "text_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.overlay_every < 1:
            raise UserError(f"overlay_every must be 1 or more, not {self.overlay_every}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be 1 or more, not {self.limit}")
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise UserError(f"shard {part}/{parts}: the first must lie between 1 and the second")

    def includes(self, index: int) -> bool:
        """Whether the limit and the shard let an image in, by its place in the source, from 0."""
        part, parts = self.shard
        return index % parts == part - 1 and (self.limit is None or index < self.limit)

    def count(self, images: int) -> int:
        """How many of so many images they let in."""
        part, parts = self.shard
        return len(range(part - 1, min(images, self.limit or images), parts))


@dataclass
class ImageResult:
    """What was found in an image, or why nothing could be.

    Attributes:
        key: the image's path relative to the root of what is annotated, with ``/``; of a frame of a
            video its number.
        image_id: its number, unique and the same in every run.
        width, height: in pixels of the upright image; 0 if it could not be read.
        records: one a mask, as of upstream's generator with COCO RLE, and ``id``, unique over all
            images; in modes boxes and text also ``category_id`` and ``category``, in mode text the
            detector's ``score``.
        error: why there are none.
        left_out: in mode boxes the boxes that could not be used, of each its ``annotation``,
            ``bbox`` and the ``reason``.
        categories: id to name, all of the run in their order.
        unnamed: objects that are left out since what the detector calls them is none of the
            prompts.
        losses: what is lost in the outlines that were written.
    """

    key: str
    image_id: int
    width: int = 0
    height: int = 0
    records: list[Record] = field(default_factory=list)
    error: str | None = None
    left_out: list[dict[str, Any]] = field(default_factory=list)
    categories: Mapping[int, str] = field(default_factory=dict)
    unnamed: int = 0
    losses: Losses = field(default_factory=Losses)
