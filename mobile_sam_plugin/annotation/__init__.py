"""Annotates data sets, from one image to a cluster's worth of them.

``sources`` lists images, described by ``items``; ``coco`` lists those of a COCO data set with their
boxes; ``proposals`` finds boxes for everything mode. ``stages`` takes one image from file to
result; ``pipeline`` (threads) and ``ray_engine`` run the stages on many images. ``writers`` has the
formats, ``storage`` the folder, ``listing`` knows which images are done, and ``run`` ties these
together.
"""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Union

from .options import FORMATS, MODES, AnnotationOptions, ImageResult
from .proposals import ProposalSource
from .run import AnnotationRun
from .sources import open_source

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from ..deploy import OnnxPredictor

__all__ = [
    "FORMATS",
    "MODES",
    "AnnotationOptions",
    "AnnotationRun",
    "ImageResult",
    "annotate",
    "open_source",
    "split_text",
]


def annotate(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    model: Union["Sam", "OnnxPredictor", str, os.PathLike[str], None] = None,
    mode: str = "everything",
    formats: str | Sequence[str] = ("coco",),
    images: str | os.PathLike[str] | None = None,
    text: str | Sequence[str] | None = None,
    detector: Any = None,
    box_threshold: float = 0.25,
    text_threshold: float = 0.25,
    nms_thresh: float = 0.8,
    overlay_every: int = 1,
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
    polygons: bool = False,
    max_pixels: int | None = None,
    restart: bool = False,
    workers: int | None = None,
    batch_size: int | None = None,
    proposals: ProposalSource | None = None,
    **generator_options: Any,
) -> Iterator[ImageResult]:
    """Annotates images, with or without writing files, and resumes an interrupted run.

    Reading, computing and writing overlap, and memory does not grow with the number of images.
    Files and annotations in the source that are left out are counted in a warning.

    Args:
        source: an image, a glob, a folder (searched recursively), a ``.txt`` with one path per
            line, a COCO ``.json``, a video, or a URL that fsspec understands; or several images,
            globs and folders.
        out: the folder for results, a path or a URL. If None nothing is written.
        model: a Sam on the device where it computes; a checkpoint of MobileSAM, by default
            ``DEFAULT_CHECKPOINT``; or, for modes everything and boxes, an
            :class:`~mobile_sam_plugin.deploy.OnnxPredictor`, which needs no torch.
        mode: "everything"; "boxes", the boxes of the COCO JSON file; or "text", the objects that
            ``text`` describes.
        formats: any of "coco", "parquet", "ids", "yolo", "labelme" and "overlay"; see
            docs/reference/data_sets.md. "sa1b" is always written.
        images: the folder of a COCO data set's images; that of the JSON file if None.
        text: for mode text, what to find: a list, or one string separated by full stops or commas.
        detector, box_threshold, text_threshold, nms_thresh: for mode text, see :class:`~
            mobile_sam_plugin.integrations.grounded_sam.GroundedMobileSam`.
        overlay_every: write overlays for every N-th image only.
        limit: process only the first images, this many.
        shard: (i, n): process only part i of n, from 1. Each part needs its own ``out``.
        polygons: write the masks in format coco as polygons, without holes, instead of RLE.
        max_pixels: maximum per image; Pillow's limit, 178,956,970, if None. While the iterator is
            open it applies to all images that Pillow opens in this process.
        restart: delete the results of an earlier run in ``out`` and start over.
        workers: threads that run the model; 2 on a GPU and 1 elsewhere if None.
        batch_size: images that are encoded together; 8 on a GPU and 1 elsewhere if None.
        proposals: for mode everything with ``search="proposals"``, what
            :func:`~.proposals.open_proposals` takes.
        generator_options: for mode everything, of
            :class:`~mobile_sam_plugin.SamAutomaticMaskGenerator`.

    Returns:
        An iterator of results, in order, each after its files have been written. Images that an
        earlier run has done are skipped. If an image cannot be used, its ``error`` says why.

    Raises:
        FileNotFoundError: if the source does not exist.
        UserError: if the source or an option is invalid, or ``out`` holds another run's results.
        MissingExtra: if a format or a mode needs a package that is not installed.
        OSError: while iterating, if the disk is full. What was done is kept.

    Examples:
        >>> for result in annotate("photos", "out", formats=["coco", "overlay"]):
        ...     print(result.key, len(result.records))
    """
    options = AnnotationOptions(
        mode,
        (formats,) if isinstance(formats, str) else tuple(formats),
        generator_options,
        split_text(text),
        detector,
        box_threshold,
        text_threshold,
        nms_thresh,
        overlay_every,
        limit,
        shard,
        polygons,
        proposals,
    )
    opened = open_source(source, images, exclude=out)
    if model is None or isinstance(model, str | os.PathLike):
        from ..build import build_sam_vit_t
        from ..checkpoint import DEFAULT_CHECKPOINT

        model = build_sam_vit_t(model or DEFAULT_CHECKPOINT)
    run = AnnotationRun(opened, out, model, options, restart, max_pixels)
    return run.run(workers, batch_size)


def split_text(text: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the phrases in a text, none for None; UserError if the text has none."""
    if text is None:
        return ()
    from mobile_sam_plugin.integrations.texts import split_text

    return tuple(split_text(text))
