"""The images with masks of a supervised run: what it trains on, and what is set aside."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..datasets.annotated import AnnotatedImage, AnnotatedImages
from ..datasets.unreadable import SkipUnreadable, check_fit
from ..errors import UserError
from ..images import list_images
from ..scenes.composites import Composites, open_cut_outs
from ..scenes.scenes import Scenes, open_images_or_scenes
from .options import TrainingOptions

ENDLESS = 1 << 40
"""The length of a data set that is made while it is read."""


class Chosen:
    """Some items of a data set, in the order of their indices.

    Args:
        images: the data set.
        indices: of the items.
    """

    def __init__(self, images: AnnotatedImages, indices: list[int]) -> None:
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> AnnotatedImage:
        return self.images[self.indices[index]]


class Sources(NamedTuple):
    """The data sets of a supervised run.

    Attributes:
        training: those to train on.
        counted: those of them, and of their parts, whose unusable items are counted.
        aside: the share that is set aside to evaluate on, or None.
    """

    training: list[AnnotatedImages]
    counted: list[SkipUnreadable[Any]]
    aside: AnnotatedImages | None


def open_sources(options: TrainingOptions) -> Sources:
    """Opens the data of a supervised run, except for those that :func:`open_validation` opens.

    Raises:
        FileNotFoundError, ValueError: as
            :func:`~mobile_sam_plugin.scenes.scenes.open_images_or_scenes`; or if there are too few
            images to set some aside.
    """
    texture_images = (
        list_images(options.texture_images, recursive=True) if options.texture_images else ()
    )

    def training_scenes(count: int, size: int | tuple[int, int], seed: int) -> Scenes:
        return Scenes(count, size, seed, texture_images, training=True, strict=options.strict)

    sets: list[AnnotatedImages] = []
    counted: list[SkipUnreadable[Any]] = []
    aside: AnnotatedImages | None = None
    for name in options.data:
        if name == "composites":
            assert options.objects is not None and options.photographs is not None
            composites = Composites(
                ENDLESS,
                open_cut_outs(options.objects),
                list_images(options.photographs, recursive=True),
                options.img_size,
                options.seed,
                strict=options.strict,
            )
            sets.append(composites)
            counted += [composites.objects, composites.photographs]
            continue
        source = open_images_or_scenes(name, options.images)
        if isinstance(options.validation, float):
            source, aside = split(source, options.validation, options.seed)
        if isinstance(source, Scenes):
            if name == "scenes":
                scenes = training_scenes(ENDLESS, options.img_size, options.seed)
            else:
                scenes = training_scenes(source.count, source.size, source.seed)
            sets.append(scenes)
            counted.append(scenes.texture_images)
        else:
            readable = SkipUnreadable(
                source,
                strict=options.strict,
                check=partial(check_image, size=options.img_size),
                what="image",
            )
            sets.append(readable)
            counted.append(readable)
    return Sources(sets, counted, aside)


def open_validation(options: TrainingOptions) -> AnnotatedImages | None:
    """Opens the data to evaluate on, unless they are a share of those to train on."""
    if not isinstance(options.validation, str):
        return None
    return open_images_or_scenes(options.validation, options.validation_images)


def split(images: AnnotatedImages, share: float, seed: int) -> tuple[Chosen, Chosen]:
    """Sets a share of a data set aside, drawn at random: at least one image.

    Returns:
        The rest, and the share; both in the order of the data set.

    Raises:
        UserError: if nothing would be left.
    """
    count = max(1, round(share * len(images)))
    if count >= len(images):
        raise UserError(
            f"{len(images)} images are too few to set {share:.0%} of them aside for validation"
        )
    drawn = np.random.default_rng(seed).permutation(len(images))
    return Chosen(images, sorted(drawn[count:].tolist())), Chosen(
        images, sorted(drawn[:count].tolist())
    )


def check_image(image: AnnotatedImage, size: int) -> None:
    """Raises Unfit if an image is too thin for the input size."""
    check_fit(image.image, size)
