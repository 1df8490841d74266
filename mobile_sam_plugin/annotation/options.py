"""The options of a run, and the result of an image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..polygons import Losses
from ..records import Record

MODES = ("everything", "boxes", "text")
FORMATS = ("sa1b", "coco", "parquet", "ids", "yolo", "labelme", "overlay")


@dataclass(frozen=True)
class AnnotationOptions:
    """The options of :func:`~mobile_sam_plugin.annotate`, checked.

    Raises:
        UserError: if an option is unknown, out of range or does not fit another.
    """

    mode: str = "everything"
    formats: tuple[str, ...] = ("coco",)
    generator_options: Mapping[str, Any] = field(default_factory=dict)
    text: tuple[str, ...] = ()
    detector: Any = None
    box_threshold: float = 0.25
    text_threshold: float = 0.25
    nms_thresh: float = 0.8
    overlay_every: int = 1
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    polygons: bool = False
    proposals: Any = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"the mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if isinstance(self.formats, str):
            object.__setattr__(self, "formats", (self.formats,))
        for name in self.formats:
            if name not in FORMATS:
                raise UserError(f"a format must be one of {', '.join(FORMATS)}, not {name!r}")
        written = {"sa1b", *self.formats}  # the other formats are made from sa1b
        object.__setattr__(self, "formats", tuple(name for name in FORMATS if name in written))
        if self.polygons and "coco" not in self.formats:
            raise UserError("polygons applies only to the format coco: request it as well")
        if self.mode != "everything" and self.generator_options:
            names = ", ".join(self.generator_options)
            verb = "applies" if len(self.generator_options) == 1 else "apply"
            raise UserError(f"{names} {verb} only to mode everything, not {self.mode}")
        if (self.generator_options.get("search") == "proposals") != (self.proposals is not None):
            raise UserError("search 'proposals' needs proposals, and no other search takes any")
        if (self.mode == "text") != bool(self.text):
            raise UserError("mode text needs a text to search for, and no other mode takes one")
        for name in ("box_threshold", "text_threshold", "nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        if self.overlay_every < 1:
            raise UserError(f"overlay_every must be 1 or more, not {self.overlay_every}")
        if self.overlay_every > 1 and "overlay" not in self.formats:
            raise UserError("overlay_every applies only to the format overlay: request it as well")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be 1 or more, not {self.limit}")
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise UserError(f"shard must be I/N with 1 <= I <= N, not {part}/{parts}")

    def includes(self, index: int) -> bool:
        """Returns whether limit and shard include an image, by its place in the source, from 0."""
        part, parts = self.shard
        return index % parts == part - 1 and (self.limit is None or index < self.limit)

    def count(self, images: int) -> int:
        """Returns how many of the first ``images`` images limit and shard include."""
        part, parts = self.shard
        return len(range(part - 1, min(images, self.limit or images), parts))


@dataclass
class ImageResult:
    """The masks of an image, or the reason why there are none.

    Attributes:
        key: the image's path relative to the root of the input, with ``/``; for a frame of a video
            its number in six digits.
        image_id: number of the image, unique and the same in every run.
        width, height: in pixels of the upright image; 0 if it could not be read.
        records: one per mask, with the fields of SAM's generator, segmentation as COCO RLE, and
            ``id``, unique over all images; in modes boxes and text also ``category_id`` and
            ``category``, in mode text the detector's ``score``.
        error: why the image has no masks; None if it was annotated.
        skipped_boxes: in mode boxes the boxes that could not be used, each with its
            ``annotation``, ``bbox`` and the ``reason``.
        categories: id to name, all of the run in their order.
        unnamed: number of detected objects that were skipped because the detector's label for
            them matches nothing in the text.
        losses: what outlines could not represent: holes and empty masks.
    """

    key: str
    image_id: int
    width: int = 0
    height: int = 0
    records: list[Record] = field(default_factory=list)
    error: str | None = None
    skipped_boxes: list[dict[str, Any]] = field(default_factory=list)
    categories: Mapping[int, str] = field(default_factory=dict)
    unnamed: int = 0
    losses: Losses = field(default_factory=Losses)
