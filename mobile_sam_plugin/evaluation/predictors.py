"""Any segmenter beside this package's: what an evaluation needs of it, and how it is loaded."""

import importlib
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from segment_anything.modeling import Sam
from torch import nn

from ..errors import UserError
from ..predictor import SamPredictor


@runtime_checkable
class Predictor(Protocol):
    """A model that segments an image by prompts, as ``segment_anything.SamPredictor`` does.

    That of SAM 2, ``SAM2ImagePredictor``, is one. For others a class of ten lines will do, see
    docs/how-to/compare.md. If it is, or has as its attribute ``model``, an ``nn.Module``, its
    parameters are counted.
    """

    def set_image(self, image: NDArray[np.uint8], /) -> Any:
        """Takes the image, (H, W, 3) uint8 RGB, that later calls of ``predict`` are for."""

    def predict(
        self,
        *,
        point_coords: NDArray[np.float32] | None = None,
        point_labels: NDArray[np.int64] | None = None,
        box: NDArray[np.float32] | None = None,
        mask_input: NDArray[np.float32] | None = None,
        multimask_output: bool = True,
    ) -> tuple[ArrayLike, ArrayLike, Any]:
        """Segments what a prompt means. All arguments are given by name.

        Args:
            point_coords: (N, 2), XY in pixels of the image.
            point_labels: (N,), 1 for the object, 0 for the background, -1 for no point.
            box: (4,), XYXY in pixels.
            mask_input: for ``corrective_...``, the logits of an earlier prediction, (1, h, w).
            multimask_output: whether several masks are asked for, of which the one with the highest
                score counts; True for a single point.

        Returns:
            Masks (C, H, W), bool or above 0 where the object is; their scores (C,); low-res logits
            (C, h, w) for ``mask_input``, or None if the model takes none.
        """


def predictor_of(model: Sam | Predictor) -> SamPredictor | Predictor:
    """Returns a new predictor of a SAM, or the predictor that was given."""
    return model if isinstance(model, Predictor) else SamPredictor(model)


def load_predictor(name: str) -> Predictor:
    """Imports a function and calls it; modules in the current folder are found too.

    Args:
        name: ``MODULE:FUNCTION``; the function takes nothing and returns a :class:`Predictor`.

    Raises:
        UserError: if there is no such function, or it returns something else.
        Others: whatever the function raises.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise UserError(f"the predictor must be MODULE:FUNCTION, not {name!r}")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"there is no module {module_name!r} for the predictor {name!r}: it must be "
                "installed, or lie in the current folder"
            ) from error
        raise
    finally:
        sys.path.remove("")
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"the module {module_name!r} has no function {function_name!r}")
    predictor = function()
    if not isinstance(predictor, Predictor):
        raise UserError(
            f"{name!r} returned a {type(predictor).__name__}, which lacks set_image or predict"
        )
    return predictor


def find_module(model: Sam | Predictor) -> nn.Module | None:
    """Returns the network of a model: itself, or its attribute ``model``; None if it has none."""
    found = (each for each in (model, getattr(model, "model", None)) if isinstance(each, nn.Module))
    return next(found, None)


@dataclass(frozen=True)
class Effort:
    """What a model takes as a whole, whatever its parts are.

    Attributes:
        parameters: number of learned values; None if no network was found.
        image_milliseconds: median time to take an image.
        click_milliseconds: median time to segment by a point in it.
    """

    parameters: int | None
    image_milliseconds: float
    click_milliseconds: float


def measure_effort(model: Sam | Predictor, image: NDArray[np.uint8], runs: int = 3) -> Effort:
    """Times a model on its device, after a run that is not counted.

    Args:
        model: a SAM, or any predictor.
        image: (H, W, 3) uint8 RGB.
        runs: number of runs, whose median times are taken.
    """
    predictor = predictor_of(model)
    network = find_module(model)
    height, width = image.shape[:2]
    middle = np.array([[width / 2, height / 2]], dtype=np.float32)
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        predictor.set_image(image)
        predictor.predict(point_coords=middle, point_labels=np.ones(1, dtype=np.int64))
        first = time.perf_counter()
        predictor.predict(point_coords=middle, point_labels=np.ones(1, dtype=np.int64))
        click = time.perf_counter() - first
        # A device may still be busy when set_image returns, so the first click is in its time.
        times.append((max(first - start - click, 0.0), click))
    images, clicks = zip(*times[1:], strict=True)
    return Effort(
        None if network is None else sum(each.numel() for each in network.parameters()),
        statistics.median(images) * 1e3,
        statistics.median(clicks) * 1e3,
    )
