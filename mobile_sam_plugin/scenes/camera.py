"""The camera of synthetic scenes: light, exposure, blur, noise, tone and JPEG artefacts."""

import cv2
import numpy as np
from numpy.typing import NDArray

from ..files import encode_image
from . import shapes
from .canvas import Canvas
from .shapes import placement


def take_picture(
    canvas: Canvas, rng: np.random.Generator, sensor: np.random.Generator
) -> NDArray[np.uint8]:
    """Takes the picture of a canvas, (H, W, 3) uint8 RGB.

    Args:
        canvas: with the painted scene.
        rng: decides how the camera is set.
        sensor: makes the noise; only its draws depend on the number of pixels.
    """
    size = (canvas.width, canvas.height)
    light = canvas.light * cv2.resize(_illumination(rng), size, interpolation=cv2.INTER_CUBIC)
    picture = canvas.colors * light[..., None]
    # As a camera's exposure, which only comes close to a middle grey.
    brightness = max(float(np.mean(picture[::4, ::4])), 8.0)
    exposure = (np.clip(rng.normal(115, 28), 55, 190) / brightness) ** 0.9
    picture *= (exposure * np.exp(rng.normal(0, 0.07, 3))).astype(np.float32)
    haze = rng.uniform(0, 0.25) * (rng.random() < 0.3)
    if haze:
        picture = picture * np.float32(1 - haze) + np.float32(haze * rng.uniform(120, 255))
    if rng.random() < 0.06:
        picture[:] = picture.mean(axis=2, keepdims=True)
    exposed = np.asarray(cv2.convertScaleAbs(picture))
    blurs = (0.0, rng.uniform(0.0005, 0.0015), rng.uniform(0.001, 0.004))
    blur = rng.choice(blurs, p=(0.3, 0.5, 0.2)) * canvas.unit
    if blur > 0.3:
        exposed = cv2.GaussianBlur(exposed, (0, 0), blur)
    noise = rng.choice((0.0, rng.uniform(0.5, 4), rng.uniform(3, 14)), p=(0.25, 0.55, 0.2))
    if noise:
        grain = sensor.standard_normal((canvas.height, canvas.width), np.float32) * np.float32(
            noise
        )
        exposed = cv2.add(exposed, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
    gamma, curve = np.exp(rng.normal(0, 0.15)), rng.uniform(-0.1, 0.5)
    values = np.linspace(0, 1, 256) ** gamma
    values = (1 - curve) * values + curve * (3 * values**2 - 2 * values**3)
    exposed = cv2.LUT(exposed, (255 * np.clip(values, 0, 1)).round().astype(np.uint8))
    if rng.random() < 0.75:
        return compress(np.asarray(exposed), int(rng.integers(35, 98)))
    return np.asarray(exposed)


def compress(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Returns an image (H, W, 3) uint8 RGB as JPEG of a quality, 0 to 100, shows it."""
    jpeg = encode_image(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, quality)
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))


def _illumination(rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns the light on the whole scene, (64, 64): from one side, in patches, vignetted."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.35) * (np.cos(angle) * x + np.sin(angle) * y)
    light -= rng.uniform(0, 0.25) * (rng.random() < 0.4) * (x**2 + y**2)
    if rng.random() < 0.25:  # leaves or a window frame between the light and the scene
        shade = np.zeros((64, 64), np.uint8)
        for _ in range(rng.integers(1, 6)):
            matrix = placement(rng.uniform(0, 64, 2), rng.uniform(6, 40), rng.uniform(0, 6.28))
            outline = shapes.transform(shapes.silhouette(rng), matrix)
            cv2.fillPoly(shade, [np.round(c).astype(np.int32) for c in outline], 255)
        soft = cv2.GaussianBlur(shade, (0, 0), rng.uniform(0.6, 3))
        light *= 1 - soft / 255 * rng.uniform(0.15, 0.55)
    return np.clip(light, 0.25, 2).astype(np.float32)
