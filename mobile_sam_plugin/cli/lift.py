"""``mobile-sam lift``: an object of an image, cut out and lifted into three dimensions."""

from typing import Annotated, Literal

import typer

from .inpaint import Selector
from .inputs import ImageFile, Out, find_device, with_groups


@with_groups
def lift(
    image: ImageFile,
    out: Out,
    *,
    selector: Selector,
    depth_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Monocular depth model from transformers: Hub repository or folder.",
            show_default="depth-anything/Depth-Anything-V2-Small-hf",
        ),
    ] = None,
    relief: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="How far the nearest point stands out from the farthest, in parts of the longer "
            "side of the object.",
        ),
    ] = 0.3,
    size: Annotated[int, typer.Option(min=16, help="Side of the square cut-out, in pixels.")] = 512,
    foreground: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, help="Longer side of the object, in parts of the square cut-out."
        ),
    ] = 0.85,
    background: Annotated[
        Literal["white", "grey", "transparent"], typer.Option(help="Of the square cut-out.")
    ] = "white",
) -> None:
    """Cut an object out as image-to-3D models want it, and make a relief of it by its depth.

    Of several objects that match --text, the one with the highest score is taken. Writes to
    DIR/<name of the image>/: cutout.png, object.glb with texture, object.ply with colours, and
    turntable.gif.
    """
    from ..integrations.anything_3d import DEFAULT_DEPTH, Anything3d
    from ..results import claim_folder

    _, selection = selector.select(image)
    lifter = Anything3d(None, depth_model or DEFAULT_DEPTH, device=find_device(selector.device))
    lifted = lifter.lift(image, selection, size, foreground, background, relief)
    for path in lifted.save(claim_folder(out, image)):
        typer.echo(path)
