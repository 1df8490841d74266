"""``mobile-sam view``: the result of a run as a page to look through."""

from pathlib import Path
from typing import Annotated

import typer


def view(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="What --out of mobile-sam annotate or everything named, a folder or URL.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="The HTML file to write.",
            show_default="DIR/view.html",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where the images are now, if not where the run found them.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Images in the page; of more, a choice at even distances."
        ),
    ] = 500,
) -> None:
    """Write one HTML file to look through the images and masks of a run, without a server.

    It holds small pictures of the images, and filters by area, scores and labels; click on an image
    to see its masks. 500 images with 90 masks each take some 60 MB.
    """
    from tqdm import tqdm

    from ..annotation.view import write_view

    with tqdm(unit="image", disable=None, delay=0.5) as bar:  # mistakes end it sooner

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        page = write_view(folder, out, images=images, limit=limit, progress=advance)
    shown = str(page.shown) if page.shown == page.total else f"{page.shown} of {page.total}"
    typer.echo(f"{page.path}  {shown} images, {page.masks} masks, {page.size / 1e6:.2g} MB")
    if page.without_picture:
        typer.echo(f"{page.without_picture} without a picture; the page says why")
