"""The options of everything mode, for the commands that segment everything in images.

Names and defaults are those of SAM's SamAutomaticMaskGenerator: options that are not given are not
passed on.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

Search = Literal["grid", "hierarchical", "proposals"]

Proposals = Annotated[
    str | None,
    typer.Option(
        metavar="JSON|NAME",
        help="For --search proposals: a COCO JSON with boxes in the images, found by their names; "
        "or a detector from transformers, Hub repository or folder, whose best 256 boxes of any "
        "class count.",
    ),
]


@dataclass(frozen=True)
class GeneratorOptions:
    """The options of everything mode; None if not given."""

    search: Annotated[
        Search | None,
        typer.Option(
            show_default="grid",
            help="Where to prompt: at every point of the grid; hierarchical: at fewer of them, "
            "first every fourth row and column, then where no mask was found with confidence; or "
            "at --proposals. Fewer prompts take less time, and find other masks.",
        ),
    ] = None
    points_per_side: Annotated[
        int | None,
        typer.Option(min=1, show_default="32", help="Points along each side of the grid."),
    ] = None
    points_per_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="64",
            help="Points between two progress updates; hardly affects speed or memory.",
        ),
    ] = None
    pred_iou_thresh: Annotated[
        float | None,
        typer.Option(max=1, show_default="0.88", help="Drop masks with a lower predicted IoU."),
    ] = None
    stability_score_thresh: Annotated[
        float | None,
        typer.Option(max=1, show_default="0.95", help="Drop masks with a lower stability score."),
    ] = None
    stability_score_offset: Annotated[
        float | None,
        typer.Option(
            show_default="1.0",
            help="Shift of the mask threshold, in logits, for the stability score.",
        ),
    ] = None
    box_nms_thresh: Annotated[
        float | None,
        typer.Option(show_default="0.7", help="Box IoU above which two masks are duplicates."),
    ] = None
    crop_n_layers: Annotated[
        int | None,
        typer.Option(
            min=0, show_default="0", help="Also search crops: layer N splits each side into 2^N."
        ),
    ] = None
    crop_nms_thresh: Annotated[
        float | None,
        typer.Option(
            show_default="0.7", help="Like --box-nms-thresh, for masks from different crops."
        ),
    ] = None
    crop_overlap_ratio: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default="512/1500",
            help="Overlap of the crops in layer 1, as a fraction of the image's shorter side; "
            "smaller in later layers.",
        ),
    ] = None
    crop_n_points_downscale_factor: Annotated[
        int | None,
        typer.Option(
            min=1, show_default="1", help="In layer N, divide --points-per-side by this^N."
        ),
    ] = None
    min_mask_region_area: Annotated[
        int | None,
        typer.Option(
            min=0, show_default="0", help="Remove islands and fill holes with fewer pixels."
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Returns the options that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}


def check_proposals(options: GeneratorOptions, proposals: str | None) -> None:
    """Raises typer.BadParameter if ``--search`` and ``--proposals`` do not go together."""
    if options.search == "proposals" and proposals is None:
        raise typer.BadParameter("required for --search proposals", param_hint="--proposals")
    if options.search != "proposals" and proposals is not None:
        raise typer.BadParameter("needs --search proposals", param_hint="--proposals")
    if options.search == "proposals" and options.points_per_side is not None:
        raise typer.BadParameter("--search proposals has no grid", param_hint="--points-per-side")
