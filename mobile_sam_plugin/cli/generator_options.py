"""The options of everything mode, for the commands that search images for all masks.

They are those of SAM's SamAutomaticMaskGenerator, and so are their defaults, since what is not
given is not handed on.
"""

from typing import Annotated, Any

import typer

PointsPerSide = Annotated[
    int | None,
    typer.Option(min=1, show_default="32", help="Clicks along a side of the image."),
]
PointsPerBatch = Annotated[
    int | None,
    typer.Option(min=1, show_default="64", help="Clicks at once; more take more memory."),
]
PredIouThresh = Annotated[
    float | None,
    typer.Option(show_default="0.88", help="Drop masks of a lower predicted IoU."),
]
StabilityScoreThresh = Annotated[
    float | None,
    typer.Option(
        show_default="0.95", help="Drop masks that change more when the cutoff is shifted."
    ),
]
StabilityScoreOffset = Annotated[
    float | None,
    typer.Option(show_default="1.0", help="By how much the cutoff is shifted for that."),
]
BoxNmsThresh = Annotated[
    float | None,
    typer.Option(show_default="0.7", help="Box IoU from which on two masks are duplicates."),
]
CropNLayers = Annotated[
    int | None,
    typer.Option(
        min=0, show_default="0", help="Search crops, too: layer N has 2^N a side of the image."
    ),
]
CropNmsThresh = Annotated[
    float | None,
    typer.Option(show_default="0.7", help="As --box-nms-thresh, between crops."),
]
CropOverlapRatio = Annotated[
    float | None,
    typer.Option(
        show_default="512/1500", help="Overlap of crops, as a fraction of the image's length."
    ),
]
CropNPointsDownscaleFactor = Annotated[
    int | None,
    typer.Option(min=1, show_default="1", help="In layer N, divide --points-per-side by this^N."),
]
MinMaskRegionArea = Annotated[
    int | None,
    typer.Option(min=0, show_default="0", help="Remove islands and fill holes of fewer pixels."),
]


def given(**options: Any) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name, value in options.items() if value is not None}
