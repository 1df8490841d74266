"""Decides what is in a synthetic scene, and paints it from back to front."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ..datasets.unreadable import Items
from . import shapes
from .canvas import Canvas
from .objects import make_object
from .parts import Part, decorate
from .shapes import Outline, placement
from .textures import Materials, Texture

_MAXIMUM_THINGS = 90  # of one scene, to bound the time


class Composer:
    """Decides what is in a scene, and paints it from back to front."""

    def __init__(
        self, rng: np.random.Generator, texture_images: Items[Path], canvas: Canvas
    ) -> None:
        self.rng = rng
        self.canvas = canvas
        self.width = canvas.width / canvas.unit
        self.height = canvas.height / canvas.unit
        self.materials = Materials(rng, texture_images)
        angle = rng.uniform(-np.pi, 0)  # from above
        low = rng.uniform(0.2, 1.0)
        self.light_from = (float(np.cos(angle) * low), float(np.sin(angle) * low))
        self.shadow = rng.uniform(0, 0.75) * (rng.random() < 0.85)
        self.shadow_blur = shapes.log_uniform(rng, 0.002, 0.03)
        self.shadow_length = rng.uniform(0.01, 0.12)
        self.horizon: float | None = None

    def compose(self) -> None:
        """Paints the scene on the canvas."""
        rng = self.rng
        self._paint_background()
        if rng.random() < 0.2:
            self._defocus()
        self._paint_objects()
        if rng.random() < 0.12:
            self._paint_foreground()

    def _paint_region(self, outline: Outline, texture: Texture) -> None:
        part = Part(outline, texture)
        if self.rng.random() < 0.12:
            part = decorate(self.materials, part, 1.0, depth=1)
        self.canvas.paint(part, self.light_from)

    def _paint_background(self) -> None:
        rng = self.rng
        everything = shapes.rectangle(4 * self.width, 4 * self.height)
        kind = rng.choice(5, p=(0.22, 0.32, 0.2, 0.18, 0.08))
        texture = self.materials.texture(rng.uniform(0.3, 1.2))
        self._paint_region(everything, texture)
        if kind == 1:
            self._paint_land()
        elif kind == 2:
            self._paint_room()
        elif kind == 3:
            self._paint_patchwork()
        elif kind == 4:
            self._paint_lumps()

    def _paint_land(self) -> None:
        """Paints sky, hills and ground: each lower edge in front of the one above."""
        rng = self.rng
        edges = np.sort(rng.uniform(0.1, 0.85, rng.integers(1, 5))) * self.height
        for edge in edges:
            x = np.linspace(-0.2, self.width + 0.2, 120)
            waves = rng.normal(0, 1, 9) / np.arange(1, 10) ** rng.uniform(0.8, 2)
            rise = rng.choice((0.0, rng.uniform(0, 0.08)))
            y = edge + rise * (
                waves @ np.sin(np.outer(np.arange(1, 10) * 3, x) + waves[:, None] * 9)
            )
            y = y + rng.normal(0, 0.08) * (x - self.width / 2)
            outline = [np.vstack([np.column_stack([x, y]), (x[-1], 9), (x[0], 9)])]
            self._paint_region(outline, self._receding(edge))
        self.horizon = float(edges[-1])

    def _paint_room(self) -> None:
        """Paints walls that meet in corners, and a floor or a table."""
        rng = self.rng
        edge = rng.uniform(0.3, 0.9) * self.height
        corner = rng.uniform(-0.3, 1.3) * self.width
        drop = rng.normal(0, 0.3, 2)
        if rng.random() < 0.5:
            side = [np.array([(corner, -1), (9, -1), (9, 9), (corner, 9)])]
            self._paint_region(side, self.materials.texture(rng.uniform(0.3, 1.2)))
        left = edge + drop[0] * corner
        right = edge + drop[1] * (self.width - corner)
        floor = [
            np.array(
                [
                    (-0.1, left),
                    (corner, edge),
                    (self.width + 0.1, right),
                    (self.width + 0.1, 9),
                    (-0.1, 9),
                ]
            )
        ]
        self._paint_region(floor, self._receding(edge))
        self.horizon = float(edge)

    def _paint_patchwork(self) -> None:
        """Cuts the image by lines and curves, like fields from above."""
        rng = self.rng
        for _ in range(rng.integers(1, 7)):
            x, y = rng.uniform(0, self.width), rng.uniform(0, self.height)
            angle = rng.uniform(0, 2 * np.pi)
            if rng.random() < 0.6:
                outline = shapes.half_plane(x, y, angle, 4)
            else:
                stroke = shapes.stroke(rng, rng.uniform(0.03, 0.2))
                outline = shapes.transform(stroke, placement((x, y), 1.6, angle))
            self._paint_region(outline, self.materials.texture(rng.uniform(0.2, 1.0)))

    def _paint_lumps(self) -> None:
        """Paints large irregular patches, like a thicket or a rock face."""
        rng = self.rng
        for _ in range(rng.integers(2, 8)):
            matrix = placement(
                (rng.uniform(0, self.width), rng.uniform(0, self.height)), rng.uniform(0.2, 0.6)
            )
            outline = shapes.transform(shapes.blob(rng), matrix)
            self._paint_region(outline, self.materials.texture(rng.uniform(0.2, 1.0)))

    def _receding(self, edge: float) -> Texture:
        """Makes a texture, at random in perspective, receding towards a height of the image."""
        rng = self.rng
        texture = self.materials.texture(rng.uniform(0.2, 1.0))
        if rng.random() < 0.5 or texture.image:
            return texture
        vanishing = edge - rng.uniform(0.1, 0.5)
        tilt = np.array(
            [[1, 0, -self.width / 2], [0, 0, 0.3], [0, 1 / (self.height - vanishing), 0]]
        )
        tilt[2, 2] = -vanishing / (self.height - vanishing)
        layers = tuple(
            (tile, np.vstack([matrix, (0, 0, 1)]) @ tilt, share)
            for tile, matrix, share in texture.layers
        )
        return replace(texture, layers=layers)

    def _defocus(self) -> None:
        """Puts everything painted so far out of focus."""
        sigma = self.rng.uniform(0.002, 0.012) * self.canvas.unit
        self.canvas.colors = cv2.GaussianBlur(self.canvas.colors, (0, 0), sigma)

    def _paint_objects(self) -> None:
        rng = self.rng
        budget = rng.uniform(0.4, 2.4)  # sum of their areas, relative to the image
        largest = shapes.log_uniform(rng, 0.2, 1.2)
        placed: list[tuple[float, float, float]] = []
        while budget > 0 and len(placed) < 30:
            size = shapes.log_uniform(rng, 0.1, largest)
            x, y = rng.uniform(-0.05, 1.05, 2) * (self.width, self.height)
            if self.horizon is not None and rng.random() < 0.8:  # it stands on the ground
                nearness = rng.random()
                size = max(size * (0.6 + 0.8 * nearness), 0.08)
                y = self.horizon + (self.height - self.horizon) * nearness - 0.3 * size
            placed.append((size, x, y))
            budget -= 0.5 * size**2
        if rng.random() < 0.35:  # the subject of the image
            placed.append(
                (rng.uniform(0.6, 1.1), *rng.normal(0.5, 0.1, 2) * (self.width, self.height))
            )
        if self.horizon is not None:
            placed.sort(key=lambda place: place[2] + 0.5 * place[0])
        elif rng.random() < 0.7:
            placed.sort(key=lambda place: -place[0])
        made: list[Part] = []
        for size, x, y in placed:
            if len(self.canvas.things) > _MAXIMUM_THINGS:
                break
            if made and rng.random() < 0.2:
                part = made[rng.integers(len(made))].varied(rng, rng.uniform(0, 0.4))
            else:
                part = make_object(self.materials, size)
                made.append(part)
            turns = (0.0, rng.normal(0, 0.15), rng.uniform(0, 6.28))
            turn = rng.choice(turns, p=(0.55, 0.35, 0.1) if self.horizon else (0.35, 0.3, 0.35))
            aspect = rng.choice((-1, 1)) * np.exp(rng.normal(0, 0.12))
            part = part.moved(placement((x, y), size / 2, turn, aspect))
            self._cast_shadow(part, size)
            self.canvas.paint(part, self.light_from)

    def _cast_shadow(self, part: Part, size: float) -> None:
        rng = self.rng
        if rng.random() > 0.8 or not self.shadow:
            return
        outlines = part.outlines()
        _, _, _, bottom = part.bounds()
        away = -np.array(self.light_from) * self.shadow_length * size * 1.5
        if self.horizon is not None and rng.random() < 0.7:
            # On the ground: flat, and sheared away from the light.
            shear = -self.light_from[0] * rng.uniform(0.3, 1.0)
            flat = rng.uniform(0.1, 0.4)
            matrix = np.array([[1, -shear, shear * bottom], [0, flat, bottom * (1 - flat)]])
        else:
            matrix = placement(away, 1.0)
        outlines = [shapes.transform(outline, matrix) for outline in outlines]
        self.canvas.cast(outlines, self.shadow_blur * max(size, 0.1) * 2, self.shadow)

    def _paint_foreground(self) -> None:
        """Paints things close to the camera, cut by the edge of the image, out of focus."""
        rng = self.rng
        for _ in range(rng.integers(1, 4)):
            size = rng.uniform(0.4, 1.2)
            x, y = rng.choice((-0.1, 1.1)) * self.width, rng.uniform(0, 1) * self.height
            part = make_object(self.materials, size)
            part = part.moved(placement((x, y), size / 2, rng.uniform(0, 6.28)))
            self.canvas.paint(part, self.light_from, blur=rng.uniform(0, 0.015))
