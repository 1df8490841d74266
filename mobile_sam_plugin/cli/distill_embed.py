"""``mobile-sam distill embed``: a teacher's embeddings of a folder of images."""

from pathlib import Path
from typing import Annotated

import typer

from .inputs import CHECKPOINT_NAMES, Device, MaxPixels, ModelType, load_sam


def embed(
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Where the embeddings go.")
    ],
    images: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGES",
            exists=True,
            file_okay=False,
            help="A folder with images in it, such as one of SA-1B.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="C", help=f"The teacher's weights. {CHECKPOINT_NAMES}"),
    ] = None,
    model_type: Annotated[
        ModelType, typer.Option(help="What the teacher's checkpoint is.")
    ] = ModelType.vit_h,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images at once; more take more memory.")
    ] = 1,
    shard_size: Annotated[int, typer.Option(min=1, help="Images in a file.")] = 64,
    device: Device = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a broken image instead of leaving it out.")
    ] = False,
    max_pixels: MaxPixels = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Compute nothing, but check the files in DIR by their checksums."
        ),
    ] = False,
) -> None:
    """Compute a teacher's embeddings of images, once, for a student to be trained on.

    They take 2 MB an image; how much that is, is told first. A run that broke off goes on when it
    is started again. On several GPUs or machines, start it with

        accelerate launch -m mobile_sam_plugin distill embed ...
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
        raise typer.BadParameter("name the folder of images", param_hint="IMAGES")
    if teacher is None:
        raise typer.BadParameter("name the teacher's checkpoint", param_hint="--teacher")

    from ..distill.embeddings import embed as embed_images
    from ..distill.embeddings import find_process

    process = find_process()  # first, since it makes "cuda" the GPU of this process
    embed_images(
        load_sam(model_type, teacher, "--teacher", device),
        images,
        out,
        teacher_name=f"{model_type.value} {teacher}",
        batch_size=batch_size,
        shard_size=shard_size,
        strict=strict,
    )
    process.destroy_process_group()
