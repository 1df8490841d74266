"""``mobile-sam text``: segments the objects that a text names."""

from typing import Annotated

import typer

from .inputs import (
    BoxThreshold,
    Checkpoint,
    Cutout,
    Detector,
    Device,
    ImageFile,
    Labelme,
    MaxPixels,
    NmsThresh,
    Out,
    TextThreshold,
    load_model,
)


def text(
    image: ImageFile,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            help="Names of the objects, with full stops or commas between them: "
            '"a dog. the red car."',
        ),
    ],
    out: Out,
    detector: Detector = None,
    box_threshold: BoxThreshold = 0.25,
    text_threshold: TextThreshold = 0.25,
    nms_thresh: NmsThresh = 0.8,
    cutout: Cutout = False,
    polygons: Annotated[
        bool,
        typer.Option(
            "--polygons", help="Write masks in instances.json as polygons; holes are filled."
        ),
    ] = False,
    labelme: Labelme = False,
    max_pixels: MaxPixels = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Segment the objects that a text names, as Grounded-SAM does.

    Writes to DIR/<name of the image>/: one PNG per mask, overlay.png with masks, boxes and labels,
    and instances.json, a COCO data set whose categories are the phrases of TEXT.
    """
    from ..images import load_image
    from ..integrations.detectors import DEFAULT_DETECTOR
    from ..integrations.grounded_sam import GroundedMobileSam
    from ..integrations.texts import split_text
    from ..results import claim_folder

    phrases = split_text(prompts)
    pixels = load_image(image)
    grounded = GroundedMobileSam(load_model(checkpoint, device), detector or DEFAULT_DETECTOR)
    objects = grounded.predict(pixels, phrases, box_threshold, text_threshold, nms_thresh)
    objects.image_path = str(image)
    folder = claim_folder(out, image)
    paths = objects.save(folder, cutouts=cutout, polygons=polygons, labelme=labelme)
    for path, label, score in zip(paths, objects.labels, objects.scores, strict=False):
        typer.echo(f"{path}  {label}  score {score:.3f}")
    if not len(objects):
        typer.echo(f"nothing was found: lower --box-threshold ({box_threshold})")
    for path in paths[len(objects) :]:
        typer.echo(path)
