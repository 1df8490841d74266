"""The options of everything mode, for the commands that segment everything in images.

Names and defaults are those of SAM's SamAutomaticMaskGenerator: options that are not given are not
passed on.
"""

from typing import Annotated, Any

import typer

PointsPerSide = Annotated[
    int | None,
    typer.Option(min=1, show_default="32", help="Points along each side of the grid."),
]
PointsPerBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default="64",
        help="Points between two progress updates; hardly affects speed or memory.",
    ),
]
PredIouThresh = Annotated[
    float | None,
    typer.Option(show_default="0.88", help="Drop masks with a lower predicted IoU."),
]
StabilityScoreThresh = Annotated[
    float | None,
    typer.Option(show_default="0.95", help="Drop masks with a lower stability score."),
]
StabilityScoreOffset = Annotated[
    float | None,
    typer.Option(
        show_default="1.0",
        help="Shift of the mask threshold, in logits, for the stability score.",
    ),
]
BoxNmsThresh = Annotated[
    float | None,
    typer.Option(show_default="0.7", help="Box IoU above which two masks are duplicates."),
]
CropNLayers = Annotated[
    int | None,
    typer.Option(
        min=0, show_default="0", help="Also search crops: layer N splits each side into 2^N."
    ),
]
CropNmsThresh = Annotated[
    float | None,
    typer.Option(show_default="0.7", help="Like --box-nms-thresh, for masks from different crops."),
]
CropOverlapRatio = Annotated[
    float | None,
    typer.Option(
        show_default="512/1500",
        help="Overlap of the crops in layer 1, as a fraction of the image's shorter side; smaller "
        "in later layers.",
    ),
]
CropNPointsDownscaleFactor = Annotated[
    int | None,
    typer.Option(min=1, show_default="1", help="In layer N, divide --points-per-side by this^N."),
]
MinMaskRegionArea = Annotated[
    int | None,
    typer.Option(min=0, show_default="0", help="Remove islands and fill holes with fewer pixels."),
]


def given(**options: Any) -> dict[str, Any]:
    """Returns the options that were given."""
    return {name: value for name, value in options.items() if value is not None}
