"""The living things of synthetic scenes: people, animals, plants and trees.

Every maker takes the scene's materials and the object's diameter in picture units, and returns the
object around the origin, with a radius of about 1.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from . import shapes
from .parts import Part, decorate, surface
from .shapes import placement
from .textures import Materials, Texture


def figure(materials: Materials, size: float) -> Part:
    """Makes a rough person: head, body and limbs, clothed."""
    rng = materials.rng
    skin, top, bottom = (materials.texture(size * factor) for factor in (0.2, 0.4, 0.4))
    width = rng.uniform(0.16, 0.32)
    spread = rng.uniform(0.05, 0.35)
    limb = rng.uniform(0.06, 0.12)
    roundness = materials.roundness

    def limb_between(points: NDArray[np.float64], thick: float, texture: Texture) -> list[Part]:
        return [
            Part(
                shapes.capsule(first, second, thick, thick * 0.85),
                texture,
                attached=True,
                annotated=False,
                roundness=roundness,
            )
            for first, second in pairwise(points)
        ]

    legs: list[Part] = []
    for side in (-1, 1):
        hip = np.array((side * width * 0.5, 0.1))
        knee = hip + (side * spread * 0.5 + rng.normal(0, 0.08), 0.42)
        foot = knee + (rng.normal(0, 0.12), 0.42)
        bones = limb_between(np.array([hip, knee, foot]), limb * 1.2, bottom)
        shoe = shapes.transform(
            shapes.ellipse(rng, 0.45), placement((foot[0] + 0.04 * side, foot[1]), limb * 1.6)
        )
        boot = surface(materials, shoe, size * 0.1, attached=True)
        legs.append(Part([], parts=(*bones, boot), attached=True))
    arms: list[Part] = []
    for side in (-1, 1):
        shoulder = np.array((side * width, -0.42))
        elbow = shoulder + (side * rng.uniform(0.02, 0.3), rng.uniform(-0.2, 0.32))
        hand = elbow + rng.normal(0, 0.2, 2) + (0, 0.1)
        bare = rng.random() < 0.4
        bones = limb_between(np.array([shoulder, elbow]), limb, top)
        bones += limb_between(np.array([elbow, hand]), limb * 0.85, skin if bare else top)
        palm = shapes.transform(shapes.blob(rng, 0.2), placement((hand[0], hand[1]), limb * 1.2))
        grip = Part(palm, skin, attached=True, roundness=roundness)
        arms.append(Part([], parts=(*bones, grip), attached=True))
    waist = width * rng.uniform(0.7, 1.2)
    trunk = np.array([(-width, -0.5), (width, -0.5), (waist, 0.18), (-waist, 0.18)])
    torso = Part([shapes.smooth(trunk, 2)], top, attached=True, roundness=roundness)
    if rng.random() < 0.5:
        torso = decorate(materials, torso, size * 0.4, depth=1)
    radius = rng.uniform(0.13, 0.2)
    head = _head(materials, skin, size).moved(placement((0, -0.5 - radius), radius))
    skirts: list[Part] = []
    if rng.random() < 0.25:
        skirt = [np.array([(-width, 0.1), (width, 0.1), (width * 2, 0.6), (-width * 2, 0.6)])]
        skirts.append(surface(materials, skirt, size * 0.4, attached=True))
    clothed = [*legs, *skirts, torso]
    arms_behind = rng.random() < 0.3
    return Part([], parts=(*((*arms, *clothed) if arms_behind else (*clothed, *arms)), head))


def _head(materials: Materials, skin: Texture, size: float) -> Part:
    """Makes a face with eyes and a mouth, and hair or a hat behind and above."""
    rng = materials.rng
    features: list[Part] = []
    eyes = rng.uniform(0.3, 0.45)
    eye_shape = shapes.ellipse(rng, rng.uniform(0.4, 0.8))
    white, iris = materials.flat(), materials.flat()
    for side in (-1, 1):
        at = placement((side * eyes, -0.1), 0.2)
        pupil = Part(
            shapes.transform(shapes.ellipse(rng, 1.0), placement((side * eyes, -0.1), 0.1)), iris
        )
        features.append(Part(shapes.transform(eye_shape, at), white, (pupil,)))
    mouth = shapes.transform(shapes.leaf(rng), placement((0, 0.5), rng.uniform(0.25, 0.45)))
    features.append(Part(mouth, materials.flat()))
    if rng.random() < 0.6:
        nose = shapes.transform(shapes.ellipse(rng, 0.8), placement((0, 0.2), 0.12))
        features.append(Part(nose, skin.shaded(0.8), annotated=False, roundness=1.0))
    face = Part(
        shapes.transform(shapes.blob(rng, 0.05), placement((0, 0), 1, np.pi / 2)),
        skin,
        tuple(features),
        attached=True,
        roundness=materials.roundness,
    )
    hair = shapes.transform(
        shapes.blob(rng, rng.uniform(0.1, 0.8)),
        placement((0, -0.45), rng.uniform(0.9, 1.3), aspect=1.1),
    )
    return Part(
        [], parts=(surface(materials, hair, size * 0.2, attached=True), face), attached=True
    )


def creature(materials: Materials, size: float) -> Part:
    """Makes a rough animal: a body on legs, a head, a tail."""
    rng = materials.rng
    fur = materials.texture(size)
    roundness = materials.roundness
    legs = []
    thickness = rng.uniform(0.05, 0.12)
    length = rng.uniform(0.35, 0.7)
    for x in (-0.55, -0.35, 0.35, 0.55):
        hip = np.array((x + rng.normal(0, 0.04), 0.1))
        foot = hip + (rng.normal(0, 0.12), length)
        legs.append(
            Part(
                shapes.capsule(hip, foot, thickness * 1.5, thickness),
                fur.shaded(rng.uniform(0.7, 1)),
                attached=True,
                roundness=roundness,
            )
        )
    body = Part(
        shapes.transform(shapes.blob(rng, 0.15), placement((0, 0), 0.8, aspect=1.0)),
        fur,
        attached=True,
        roundness=roundness,
    )
    if rng.random() < 0.4:
        body = decorate(materials, body, size * 0.7, depth=1)
    tail = shapes.transform(
        shapes.stroke(rng, rng.uniform(0.05, 0.25)),
        placement((-0.9, -0.1), 0.45, rng.uniform(-1, 1) + np.pi),
    )
    neck = np.array((0.75, rng.uniform(-0.75, -0.2)))
    throat = Part(
        shapes.capsule(np.array((0.5, -0.1)), neck, 0.25, 0.15),
        fur,
        attached=True,
        annotated=False,
        roundness=roundness,
    )
    radius = rng.uniform(0.2, 0.35)
    ears = [
        Part(
            shapes.transform(
                shapes.leaf(rng),
                placement((neck[0] + x, neck[1] - radius), radius * 0.7, rng.uniform(1, 2.2)),
            ),
            fur.shaded(0.75),
            attached=True,
        )
        for x in (-0.1, 0.1)
    ]
    eye = Part(
        shapes.transform(
            shapes.ellipse(rng, 0.9), placement((neck[0] + 0.05, neck[1] - 0.05), radius * 0.18)
        ),
        materials.flat(),
    )
    muzzle = shapes.transform(
        shapes.ellipse(rng, 0.7), placement((neck[0] + radius * 0.7, neck[1] + 0.06), radius * 0.5)
    )
    face = Part(
        shapes.transform(shapes.blob(rng, 0.1), placement((neck[0], neck[1]), radius)),
        fur,
        (eye,),
        attached=True,
        roundness=roundness,
    )
    head = Part(
        [],
        parts=(*ears, face, surface(materials, muzzle, size * 0.1, attached=True)),
        attached=True,
    )
    animal = Part(
        [], parts=(Part(tail, fur, attached=True), *legs[::2], body, *legs[1::2], throat, head)
    )
    return animal.moved(placement((0, 0), 1, aspect=rng.choice((-1.0, 1.0))))


def plant(materials: Materials, size: float) -> Part:
    """Makes stems with leaves or blossoms, perhaps in a pot."""
    rng = materials.rng
    green = materials.texture(size * 0.2)
    stems: list[Part] = []
    leaf = shapes.leaf(rng) if rng.random() < 0.7 else shapes.flower(rng)
    blossom = surface(materials, shapes.flower(rng), size * 0.2, attached=True)
    blossom = decorate(materials, blossom, size * 0.2, depth=1)
    for _ in range(rng.integers(2, 8)):
        tip = np.array((rng.normal(0, 0.5), -rng.uniform(0.2, 1.1)))
        root = np.array((rng.normal(0, 0.06), 0.35))
        stem = Part(
            shapes.capsule(root, tip, 0.03, 0.015),
            green.shaded(0.7),
            attached=True,
            annotated=False,
        )
        stems.append(stem)
        scale = rng.uniform(0.15, 0.5)
        if rng.random() < 0.35:
            stems.append(
                blossom.moved(placement(tip, scale * 0.7, rng.uniform(0, 6))).varied(rng, 0.1)
            )
        else:
            angle = np.arctan2(*(tip - root)[::-1]) + rng.normal(0, 0.5)
            shape = shapes.transform(leaf, placement(tip, scale, angle))
            stems.append(
                Part(shape, green.varied(rng, 0.25), attached=True, roundness=materials.roundness)
            )
    plant = Part([], parts=tuple(stems), attached=True)
    if rng.random() < 0.5:
        return plant
    flare = rng.uniform(0.25, 0.45)
    pot_outline = [
        np.array([(-flare, 0.25), (flare, 0.25), (flare * 0.75, 0.95), (-flare * 0.75, 0.95)])
    ]
    pot = surface(materials, pot_outline, size * 0.4, attached=True)
    return Part([], parts=(plant, decorate(materials, pot, size * 0.4, depth=1)))


def tree(materials: Materials, size: float) -> Part:
    """Makes a trunk under a ragged crown of one or several lumps."""
    rng = materials.rng
    trunk = shapes.capsule(
        np.array((0.0, 1.0)), np.array((rng.normal(0, 0.1), -0.1)), rng.uniform(0.06, 0.14), 0.05
    )
    foliage = materials.texture(size * 0.3)
    lumps = tuple(
        Part(
            shapes.transform(
                shapes.blob(rng, rng.uniform(0.6, 1.0)),
                placement(rng.normal((0, -0.3), 0.22), rng.uniform(0.35, 0.7), rng.uniform(0, 6)),
            ),
            foliage.varied(rng, 0.08),
            attached=True,
            annotated=False,
            roundness=materials.roundness,
        )
        for _ in range(rng.integers(1, 5))
    )
    crown = Part([], parts=lumps, attached=True)
    bark = surface(materials, trunk, size * 0.2, attached=True)
    return Part([], parts=(bark, crown))
