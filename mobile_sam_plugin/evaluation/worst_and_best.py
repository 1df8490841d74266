"""A figure of the masks that a model did worst and best on."""

import os
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from segment_anything.modeling import Sam

from ..datasets.annotated import AnnotatedImages
from ..drawing import draw_overlay
from ..errors import UserError
from .examiner import predict
from .metrics import mask_iou
from .predictors import Predictor, predictor_of
from .prompts import PAIR_DISTANCES, make_prompt
from .results import Evaluation, ImageScores, save_figure

_DRAWN = ("click", "click_best", "box", *PAIR_DISTANCES)


def find_drawable(evaluation: Evaluation) -> str | None:
    """Returns the metric that :func:`draw_worst_and_best` shows: the first with a single prompt.

    Returns:
        ``click``, ``click_best``, ``box`` or one of the pairs; None if no mask has any of them.
    """
    scores = evaluation.scores
    return next((name for name in _DRAWN if name in scores and scores[name].count), None)


def draw_worst_and_best(
    evaluation: Evaluation,
    model: Sam | Predictor,
    data: AnnotatedImages,
    path: str | os.PathLike[str],
    count: int = 4,
) -> None:
    """Draws the masks that a model did worst and best on: image, truth, prediction with prompt.

    It goes by the metric of :func:`find_drawable`, and shows at most one mask per image, with the
    part of the image around it.

    Args:
        evaluation: of that model on that data.
        model: predicts these masks again.
        data: the images are read again from here.
        path: of the figure, a PNG.
        count: number of cases of each kind.

    Raises:
        ValueError: if there is no such metric.
    """
    metric = find_drawable(evaluation)
    if metric is None:
        raise UserError(f"there is no worst and best case of {', '.join(evaluation.scores)}")
    kind = "click" if metric == "click_best" else metric
    cases = {}
    for title, choose in (("worst", min), ("best", max)):
        of_images = [
            (*choose(scored), image.index)
            for image in evaluation.images
            if (scored := _scored_masks(image, metric))
        ]
        cases[title] = sorted(of_images, reverse=choose is max)[:count]
    rows = max(len(found) for found in cases.values())
    figure = Figure(figsize=(15, 2.6 * rows), layout="constrained")
    tiles = figure.subplots(rows, 6, squeeze=False)
    for tile in tiles.flat:
        tile.set_axis_off()
    predictor = predictor_of(model)
    for column, (title, found) in zip((0, 3), cases.items(), strict=True):
        for row, (iou, mask, index) in enumerate(found):
            item = data[index]
            truth = item.take([mask])[0]
            prompt = make_prompt(kind, truth, (evaluation.settings["seed"], index, mask))
            assert prompt is not None  # it has a score
            predictor.set_image(item.image)
            found_masks = predict(predictor, [prompt])
            predicted = found_masks.best_masks[0]
            if metric == "click_best":
                candidates = found_masks.masks[0]
                predicted = candidates[mask_iou(candidates, truth).argmax()]
            window = _window(truth | predicted)
            image, corner = item.image[window], np.array([window[1].start, window[0].start])
            drawn = draw_overlay(
                image,
                [predicted[window]],
                point_coords=prompt.point_coords - corner,
                point_labels=prompt.point_labels,
                prompt_box=None if prompt.box is None else prompt.box - np.tile(corner, 2),
            )
            pictures = {
                f"{title} {metric}: IoU {iou:.3f}": image,
                "true mask": draw_overlay(image, [truth[window]]),
                "predicted": drawn,
            }
            for offset, (name, picture) in enumerate(pictures.items()):
                tiles[row, column + offset].imshow(_shrink(picture))
                tiles[row, column + offset].set_title(name, fontsize=9)
    save_figure(figure, Path(path))


def _scored_masks(image: ImageScores, kind: str) -> list[tuple[float, int]]:
    """Returns the IoU and index of the masks that have a score."""
    scores = image.scores.get(kind, [])
    return [(iou, mask) for iou, mask in zip(scores, image.masks, strict=False) if iou is not None]


def _window(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Returns the rows and columns around a mask, so that small things can be seen."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    side = max(1.5 * max(width, height), 200)
    windows = []
    for start, length, limit in ((y, height, mask.shape[0]), (x, width, mask.shape[1])):
        first = max(0, min(round(start + (length - side) / 2), round(limit - side)))
        windows.append(slice(first, min(limit, first + round(side))))
    return windows[0], windows[1]


def _shrink(picture: NDArray[np.uint8], side: int = 384) -> NDArray[np.uint8]:
    scale = min(1.0, side / max(picture.shape[:2]))
    width, height = (max(1, round(length * scale)) for length in picture.shape[1::-1])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
