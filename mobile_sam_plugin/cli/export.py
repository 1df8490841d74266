"""``mobile-sam export``: the model as two ONNX files."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UserError
from .inputs import Checkpoint, MaxPixels, load_model

Precision = Literal["fp32", "fp16", "int8"]
Target = Literal[
    "samexporter",
    "anylabeling",
    "x-anylabeling",
    "isat",
    "label-studio",
    "sam-web-demo",
    "transformers.js",
    "upstream",
]
Format = Literal["onnx", "litert", "executorch", "coreml"]


def export(
    out: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Output folder.")],
    format: Annotated[
        Format,
        typer.Option(
            help="Files of ONNX, or of a phone's runtime, each with an extra of its name. The "
            "options below but --images and --force are for ONNX."
        ),
    ] = "onnx",
    precision: Annotated[
        Precision,
        typer.Option(help="fp16 for GPUs and phones; int8 for a faster encoder on a CPU."),
    ] = "fp32",
    opset: Annotated[
        int | None,
        typer.Option(min=17, max=20, help="ONNX opset.", show_default="18; 20 for int8"),
    ] = None,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="Include resizing and normalising in the encoder: its input is an image of any "
            "size, H x W x 3 uint8, not 1 x 3 x 1024 x 1024 float.",
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="Images to check the files on, and to calibrate int8 with.",
            show_default="this package's photographs",
        ),
    ] = None,
    for_: Annotated[
        Target | None,
        typer.Option(
            "--for",
            help="Write the files that this program loads instead, with the names, inputs and "
            "outputs that it expects, and its configuration. 'upstream' is the file of SAM's own "
            "export script.",
            show_default="this package's predictors",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write the files even if their masks differ from those of torch."
        ),
    ] = False,
    checkpoint: Checkpoint = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Export MobileSAM to ONNX, for machines without torch, for phones and for other programs.

    Writes mobile_sam_encoder.onnx and mobile_sam_decoder.onnx, and prints how they compare with
    torch. The decoder has the inputs and outputs of segment-anything's own export. With --for,
    writes what another program loads; with --format, what a phone's runtime loads.
    """
    from ..images import list_images
    from ..photographs import list_photographs

    paths = list_images(images, recursive=True) if images else list_photographs()
    if format == "onnx":
        from ..deploy import export as export_model

        exported = export_model(
            load_model(checkpoint, "cpu"),
            out,
            paths,
            precision,
            opset,
            with_preprocessing,
            force,
            for_,
        )
    else:
        if precision != "fp32" or opset or with_preprocessing or for_:
            raise UserError(
                "--precision, --opset, --with-preprocessing and --for are for --format onnx, not "
                f"{format}: leave them out"
            )
        from ..deploy import export_for_phones

        exported = export_for_phones(load_model(checkpoint, "cpu"), out, paths, format, force)
    values = ("embeddings", "low-res logits")[-len(exported) :]  # a decoder may be alone
    for found, value in zip(exported, values, strict=True):
        text = f"{found.path}  {found.megabytes:.1f} MB"
        if not math.isnan(found.seconds):
            text += (
                f"  {value} within {found.largest_difference:.2g} of torch  {found.seconds:.3f} s "
                f"(torch {found.torch_seconds:.3f} s)"
            )
        typer.echo(text)
        if found.kept:
            typer.echo(f"  kept in float32: {', '.join(found.kept)}")
    if math.isnan(exported[0].mask_iou):
        typer.echo(f"not compared with torch: {format} does not run on this machine")
    else:
        typer.echo(f"mask IoU with torch {exported[0].mask_iou:.4f}")
