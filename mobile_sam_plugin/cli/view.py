"""``mobile-sam view``: the results of a run as a page to look through."""

from pathlib import Path
from typing import Annotated

import typer


def view(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="Output folder or URL of mobile-sam annotate or everything.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="HTML file to write.",
            show_default="DIR/view.html",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder or URL where the images are now, if they have moved.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Maximum number of images; a larger run is sampled evenly."
        ),
    ] = 500,
) -> None:
    """Write one HTML file to look through the images and masks of a run, without a server.

    The page holds a small preview of each image, with filters for area, scores and labels; click an
    image to see its masks. 500 images with 90 masks each take about 60 MB.
    """
    from tqdm import tqdm

    from ..annotation.view import write_view

    with tqdm(unit="image", disable=None, delay=0.5) as bar:  # not shown for early errors

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        page = write_view(folder, out, images=images, limit=limit, progress=advance)
    shown = str(page.shown) if page.shown == page.total else f"{page.shown} of {page.total}"
    typer.echo(f"{page.path}  {shown} images, {page.masks} masks, {page.size / 1e6:.2g} MB")
    if page.without_preview:
        typer.echo(f"{page.without_preview} without a preview; the page says why")
