"""``mobile-sam distill embed``: a teacher's embeddings of a folder of images."""

from pathlib import Path
from typing import Annotated

import typer

from .inputs import CHECKPOINT_NAMES, Device, MaxPixels, ModelType, load_sam


def embed(
    out: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Output folder.")],
    images: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGES",
            exists=True,
            file_okay=False,
            help="Folder of images, searched recursively, such as SA-1B's.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="C", help=f"The teacher's weights. {CHECKPOINT_NAMES}")
    ] = None,
    teacher_type: Annotated[
        ModelType, typer.Option(help="Model type of the teacher's checkpoint.")
    ] = "vit_h",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per call of the teacher; more take more memory.")
    ] = 1,
    shard_size: Annotated[int, typer.Option(min=1, help="Images per file.")] = 64,
    device: Device = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a broken image instead of skipping it.")
    ] = False,
    max_pixels: MaxPixels = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check the files in DIR against their checksums.")
    ] = False,
) -> None:
    """Compute and store a teacher's image embeddings, 2 MB each, to train students on.

    The total is shown first. Run the same command again to resume an interrupted run. On several
    GPUs or machines: accelerate launch -m mobile_sam_plugin distill embed ...
    """
    if verify:
        from ..distill.embeddings import Embeddings

        embeddings = Embeddings(out)
        embeddings.verify()
        typer.echo(
            f"{out}  {len(embeddings):,} embeddings, {len(embeddings.skipped):,} images left out, "
            "all files whole"
        )
        return
    if images is None:
        raise typer.BadParameter("the folder of images is required", param_hint="IMAGES")
    if teacher is None:
        raise typer.BadParameter(
            "a checkpoint is required: no SAM's weights are the default", param_hint="--teacher"
        )

    from ..distill.embed import embed as embed_images
    from ..distill.embed import process_state

    process = process_state()  # first, since it makes "cuda" the GPU of this process
    embed_images(
        load_sam(teacher_type, teacher, "--teacher", device),
        images,
        out,
        teacher_name=f"{teacher_type} {teacher}",
        batch_size=batch_size,
        shard_size=shard_size,
        strict=strict,
    )
    process.destroy_process_group()
