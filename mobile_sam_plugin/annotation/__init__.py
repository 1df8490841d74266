"""Annotating a data set: from one photograph to a cluster's worth of them.

``sources`` lists images, as ``items`` describes them, and ``coco`` those of a data set with their
boxes; ``stages`` says what becomes of one, ``pipeline`` and ``ray_engine`` take many through the
stages, ``writers`` has the formats, ``storage`` the folder, and ``run`` knows what is done and what
is missing.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from segment_anything.modeling import Sam

from ..build import build_sam_vit_t
from ..checkpoint import DEFAULT_CHECKPOINT
from .options import FORMATS, MODES, ImageResult, Options
from .run import AnnotationRun
from .sources import open_source

__all__ = [
    "FORMATS",
    "MODES",
    "AnnotationRun",
    "ImageResult",
    "Options",
    "annotate",
    "open_source",
    "split_prompt",
]


def annotate(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    model: Sam | str | os.PathLike[str] = DEFAULT_CHECKPOINT,
    mode: str = "everything",
    formats: str | Sequence[str] = ("coco",),
    images: str | os.PathLike[str] | None = None,
    prompt: str | Sequence[str] | None = None,
    detector: Any = None,
    box_threshold: float = 0.25,
    text_threshold: float = 0.25,
    nms_threshold: float = 0.8,
    overlay_every: int = 1,
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
    polygons: bool = False,
    max_pixels: int | None = None,
    restart: bool = False,
    workers: int | None = None,
    batch_size: int | None = None,
    **search: Any,
) -> Iterator[ImageResult]:
    """Annotates images, with files or without, and goes on with a run that was stopped.

    Reading, computing and writing overlap, and memory does not grow with the number of images. What
    is left out of the source is counted and told by a warning.

    Args:
        source: an image, a glob, a folder and all below it, a ``.txt`` with a path a line, a COCO
            ``.json``, a video, a URL that fsspec understands; or several images, globs and folders.
        out: the folder for results, a path or a URL. If None nothing is written.
        model: a Sam on the device where it computes, or the name of MobileSAM's checkpoint.
        mode: "everything"; "boxes", those of the COCO json; or "text", what the prompt names.
        formats: any of "coco", "parquet", "ids", "yolo", "labelme" and "overlay"; see
            docs/annotate.md. "sa1b" is always written.
        images: where the images of a COCO json are; beside it if None.
        prompt: in mode text what to find, a list, or one text with full stops or commas in it.
        detector: in mode text what finds it, and ``box_threshold``, ``text_threshold`` and
            ``nms_threshold``: as of :class:`~mobile_sam_plugin.integrations.grounded_sam.
            GroundedMobileSam`.
        overlay_every: of how many images one gets an overlay.
        limit: only so many images.
        shard: (i, n), only the i-th of n parts, from 1. Each part needs an ``out`` of its own.
        polygons: whether masks in the format coco are polygons, which have no holes, and not RLE.
        max_pixels: images of more pixels are refused; Pillow's limit, 178,956,970, if None. While
            the iterator is open it holds for all that Pillow opens in this process.
        restart: whether to give up what ``out`` holds of another run.
        workers: threads that compute with the model; 2 on a GPU and 1 elsewhere if None.
        batch_size: images that are encoded together; 8 on a GPU and 1 elsewhere if None.
        search: options of :class:`~mobile_sam_plugin.SamAutomaticMaskGenerator`, in mode
            everything.

    Returns:
        An iterator of results, in order, each once its files are written; of images that an earlier
        run has done there are none. An image that cannot be used has its ``error`` set.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source or an option cannot be used, or ``out`` holds another run's results.
        ImportError: a format or a mode needs a package that is not installed.
        OSError: while iterating, there is no room left; what was done is kept.

    Example:
        >>> for result in annotate("photos", "out", formats=["coco", "overlay"]):
        ...     print(result.key, len(result.records))
    """
    options = Options(
        mode,
        (formats,) if isinstance(formats, str) else tuple(formats),
        search,
        split_prompt(prompt),
        detector,
        box_threshold,
        text_threshold,
        nms_threshold,
        overlay_every,
        limit,
        shard,
        polygons,
    )
    opened = open_source(source, images, leave_out=out)
    if not isinstance(model, Sam):
        model = build_sam_vit_t(model)
    run = AnnotationRun(opened, out, model, options, restart, max_pixels)
    return run.run(workers, batch_size)


def split_prompt(prompt: str | Sequence[str] | None) -> tuple[str, ...]:
    """The phrases in a prompt; ValueError if there is none in it, none for None."""
    if prompt is None:
        return ()
    from mobile_sam_plugin.integrations.grounded_sam import split_prompts

    return tuple(split_prompts(prompt))
