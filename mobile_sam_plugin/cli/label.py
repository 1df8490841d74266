"""``mobile-sam label`` and ``search``: compare the masks of everything mode with texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .inputs import (
    Checkpoint,
    Device,
    ImageFile,
    MaxPixels,
    Out,
    PointsPerSide,
    PredIouThresh,
    StabilityScoreThresh,
    load_model,
    with_groups,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..integrations.instances import Instances
    from ..integrations.semantic_segment_anything import SemanticMobileSam


@dataclass(frozen=True)
class Pipeline:
    """The options of everything mode, and of the model that compares masks with texts."""

    classifier: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="CLIP model of transformers: Hub repository or folder.",
            show_default="openai/clip-vit-base-patch32",
        ),
    ] = None
    points_per_side: PointsPerSide = 32
    pred_iou_thresh: PredIouThresh = 0.88
    stability_score_thresh: StabilityScoreThresh = 0.95
    max_pixels: MaxPixels = None
    checkpoint: Checkpoint = None
    device: Device = "auto"

    def segment(
        self, image: Path
    ) -> "tuple[SemanticMobileSam, NDArray[np.uint8], NDArray[np.bool_]]":
        """Returns the pipeline, the image and the masks of everything in it."""
        from tqdm import tqdm

        from ..images import load_image
        from ..integrations.semantic_segment_anything import DEFAULT_CLASSIFIER, SemanticMobileSam

        pixels = load_image(image)
        semantic = SemanticMobileSam(
            load_model(self.checkpoint, self.device),
            self.classifier or DEFAULT_CLASSIFIER,
            points_per_side=self.points_per_side,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
        )
        with tqdm(total=self.points_per_side**2, unit="click", disable=None) as bar:
            masks = semantic.segment(pixels, lambda done, _: bar.update(done - bar.n))
        return semantic, pixels, masks


@with_groups
def label(
    image: ImageFile,
    classes: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME,...",
            help='Class names, separated by commas or line ends: "cup, spoon, table".',
        ),
    ],
    out: Out,
    pipeline: Pipeline,
) -> None:
    """Segment everything in an image, and classify each mask.

    Writes to DIR/<name of the image>/: one PNG per mask, overlay.png with masks and names,
    semantic_map.png, whose values are positions in the list of classes, from 1, and 0 for none,
    legend.png, the map over the image with the names, and instances.json, a COCO data set.
    """
    from ..integrations.texts import split_classes

    names = split_classes(classes)
    if not all(names):
        raise typer.BadParameter(f"there is an empty name in {classes!r}", param_hint="--classes")
    semantic, pixels, masks = pipeline.segment(image)
    _write(semantic.predict(pixels, names, masks), image, out, pipeline)


@with_groups
def search(
    image: ImageFile,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help='Sentence to search for: "a cup with a blue rim".')
    ],
    out: Out,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of masks.")] = 5,
    pipeline: Pipeline,
) -> None:
    """Segment everything in an image, and find the masks that match a sentence best.

    Writes to DIR/<name of the image>/: one PNG per mask, the best first, overlay.png, and
    instances.json, a COCO data set. The scores are the probabilities among all masks.
    """
    if not text.strip():
        raise typer.BadParameter("the text is empty", param_hint="TEXT")
    semantic, pixels, masks = pipeline.segment(image)
    _write(semantic.search(pixels, text, masks, limit), image, out, pipeline)


def _write(objects: "Instances", image: Path, out: Path, pipeline: Pipeline) -> None:
    from ..results import claim_folder

    objects.image_path = str(image)
    paths = objects.save(claim_folder(out, image))
    for path, name, score in zip(paths, objects.labels, objects.scores, strict=False):
        typer.echo(f"{path}  {name}  score {score:.3f}")
    if not len(objects):
        typer.echo(
            f"no mask passed: lower --pred-iou-thresh ({pipeline.pred_iou_thresh}) or "
            f"--stability-score-thresh ({pipeline.stability_score_thresh})"
        )
    for path in paths[len(objects) :]:
        typer.echo(path)
