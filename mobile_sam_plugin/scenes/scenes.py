"""Synthetic images with exact masks, any number of them, to train and to evaluate on.

A scene is a background of several regions, and objects in front of it, painted from back to front.
Each thing is painted into three maps: its colours, the light that falls on it, and the owner of
each pixel. A mask holds the pixels that its thing and the parts of that thing own at the end: the
visible ones.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..datasets.annotated import AnnotatedImage, AnnotatedImages
from ..datasets.formats import open_annotated_images
from ..datasets.unreadable import Items, SkipUnreadable
from ..errors import UserError
from .camera import take_picture
from .canvas import Canvas
from .composer import Composer
from .textures import TextureImages

_MINIMUM_SIDE = 32
_DEFAULT_COUNT = 1000  # of the data set "scenes"
# Added to the 64-bit seeds of scenes to train on. numpy hashes a seed in words of 32 bits: the
# third word is then 3, and otherwise at most 2, the number of a purpose.
_TRAINING = 3 << 64


def make_scene(
    seed: int, size: int | tuple[int, int] = 512, texture_images: Items[Path] = ()
) -> AnnotatedImage:
    """Makes the scene of a seed: always the same, in every process.

    At another size it is the same scene, as another camera would have taken it.

    Args:
        seed: 0 or more.
        size: side of a square, or (height, width), in pixels; at least 32.
        texture_images: image files whose patches become the surfaces of some things.

    Returns:
        An image named after its seed, and the masks of regions of the background, of objects and
        of their parts: at least one, and none of them empty.

    Raises:
        ValueError: if `seed` is negative, `size` too small, or a texture image unreadable.

    Examples:
        >>> scene = make_scene(seed=7, size=512)
        >>> scene.image.shape, scene.masks.dtype
        ((512, 512, 3), dtype('bool'))
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < _MINIMUM_SIDE:
        raise UserError(
            f"a scene must be at least {_MINIMUM_SIDE} pixels high and wide, not {height} x {width}"
        )
    if seed < 0:
        raise UserError(f"the seed of a scene must be 0 or more, not {seed}")
    composer, camera, sensor = (np.random.default_rng((seed, purpose)) for purpose in range(3))
    canvas = Canvas(height, width)
    Composer(composer, texture_images, canvas).compose()
    image = take_picture(canvas, camera, sensor)
    return AnnotatedImage(f"scene_{seed}", image, canvas.masks())


class Scenes:
    """A data set of scenes; ``scenes[i]`` is made on request, and always the same.

    Args:
        count: number of scenes.
        size: of each scene, as :func:`make_scene` takes it.
        seed: sets with different seeds have no scene in common.
        texture_images: image files whose patches become surfaces. An unreadable one is replaced
            with the next.
        training: make scenes to train on. No set without `training` has any of them, whatever the
            seeds.
        strict: raise an error at an unreadable texture image.

    Attributes:
        texture_images: the readable ones, and a count of the others.
    """

    def __init__(
        self,
        count: int,
        size: int | tuple[int, int] = 512,
        seed: int = 0,
        texture_images: Sequence[Path] = (),
        *,
        training: bool = False,
        strict: bool = False,
    ) -> None:
        if count < 1:
            raise UserError(f"there must be at least one scene, not {count}")
        self.count = count
        self.size = size
        self.seed = seed
        self.texture_images = SkipUnreadable(
            TextureImages(texture_images), strict=strict, what="texture image"
        )
        self.training = training

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> AnnotatedImage:
        if not -self.count <= index < self.count:
            raise IndexError(f"there is no scene {index} among {self.count}")
        place = index % self.count
        state = np.random.SeedSequence((self.seed, place)).generate_state(2)
        seed = int(state[0]) << 32 | int(state[1])
        scene = make_scene(seed + self.training * _TRAINING, self.size, self.texture_images)
        kind = "training_scene" if self.training else "scene"
        return replace(scene, name=f"{kind}_{self.seed}_{place:06}")


def open_images_or_scenes(
    source: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> AnnotatedImages:
    """Opens a data set of images with masks, which may be synthetic.

    Args:
        source: ``"scenes"`` for a thousand scenes of seed 0 with 512 x 512 pixels,
            ``"scenes:500"`` for the first 500 of them, ``"scenes:500:7"`` for 500 of seed 7; or
            what :func:`~mobile_sam_plugin.datasets.formats.open_annotated_images` takes. A folder
            named like scenes is ``"./scenes"``.
        images: the folder of the images, if they are not beside the JSON file or the PNG masks.

    Raises:
        ValueError: if the name of the scenes is malformed.
        FileNotFoundError, ValueError: see `open_annotated_images`.
    """
    kind, *numbers = source.split(":") if isinstance(source, str) else [""]
    if kind != "scenes":
        return open_annotated_images(source, images=images)
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise UserError(
            f"{source!r} must be 'scenes', 'scenes:COUNT' or 'scenes:COUNT:SEED', for example "
            "'scenes:500:7'"
        )
    count, seed = (*map(int, numbers), *(_DEFAULT_COUNT, 0)[len(numbers) :])
    return Scenes(count, seed=seed)
