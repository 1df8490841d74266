"""This package beside the original MobileSAM, ``mobile_sam``: same weights, same photographs."""

import copy
import hashlib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.cli import main

from ..conftest import PHOTOGRAPHS
from ..original import build_original, mobile_sam
from ..records import assert_same_records

Pixels = NDArray[np.uint8]

NAMES = sorted(path.name for path in PHOTOGRAPHS.iterdir() if path.suffix in (".jpg", ".png"))
# Those of the reference data, see tests/core/test_reference.py.
EMBEDDING_TOLERANCE, LOGIT_TOLERANCE, SCORE_TOLERANCE = 1e-4, 1e-2, 1e-3


class EncodesOnce(nn.Module):
    """An image encoder that keeps what it has computed: the original takes seconds an image."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.img_size = encoder.img_size
        self.known: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.encode(image[None]) for image in x])

    def encode(self, x: Tensor) -> Tensor:
        key = hashlib.sha256(x.numpy().tobytes()).digest()
        if key not in self.known:
            self.known[key] = self.encoder(x)
        return self.known[key]


class Models(NamedTuple):
    ours: MobileSam
    original: Any

    def predictors(self, image: Pixels) -> "Predictors":
        ours, original = SamPredictor(self.ours), mobile_sam.SamPredictor(self.original)
        for predictor in (ours, original):
            predictor.set_image(image)
        return Predictors(ours, original)


class Predictors(NamedTuple):
    """Both predictors, with the same image set."""

    ours: SamPredictor
    original: Any


def build_models(ours: MobileSam, source: str, folder: Path) -> Models:
    """A copy of ours, and the original with the file that ``convert`` writes for it."""
    path = folder / "for_upstream.pt"
    assert main(["convert", source, str(path), "--for", "upstream"]) == 0
    models = Models(copy.deepcopy(ours), build_original(path))
    for model in models:
        model.image_encoder = EncodesOnce(model.image_encoder)
    return models


@pytest.fixture(scope="module")
def trained(bundled_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(bundled_sam, "bundled", tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def random(
    reference_sam: MobileSam, authors_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Models:
    return build_models(reference_sam, str(authors_file), tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module", params=NAMES)
def predictors(trained: Models, request: pytest.FixtureRequest) -> Predictors:
    return trained.predictors(photograph(request.param))


def photograph(name: str) -> Pixels:
    return np.asarray(Image.open(PHOTOGRAPHS / name).convert("RGB"))


def assert_same_result(ours: Any, original: Any, looser: float = 1) -> None:
    """Scores and logits within the tolerances; masks may differ where the logits are 0.

    Args:
        ours: masks, scores and low-res logits.
        original: the same with ``return_logits``, whose masks are the logits above 0.
        looser: how many times wider the tolerances are.
    """
    (masks, scores, low_res_logits), (logits, *expected) = ours, original
    masks, logits = np.asarray(masks), np.asarray(logits)
    assert masks.dtype == bool and masks.shape == logits.shape
    assert np.abs(logits[masks != (logits > 0)]).max(initial=0) <= looser * LOGIT_TOLERANCE
    assert_close(scores, expected[0], looser * SCORE_TOLERANCE)
    assert_close(low_res_logits, expected[1], looser * LOGIT_TOLERANCE)


def assert_close(ours: Any, original: Any, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(original), rtol=0, atol=tolerance)


def assert_same_embedding(predictors: Predictors) -> None:
    ours, original = (predictor.get_image_embedding() for predictor in predictors)
    assert ours.shape == (1, 256, 64, 64)
    assert_close(ours, original, EMBEDDING_TOLERANCE)
    assert predictors.ours.original_size == predictors.original.original_size
    assert predictors.ours.input_size == predictors.original.input_size


def test_the_installed_original_is_the_one_compared() -> None:
    files = [Path(str(file.locate())) for file in distribution("mobilesam-mirror").files or ()]
    assert Path(str(mobile_sam.__file__)).resolve() in [file.resolve() for file in files]


def test_embedding(predictors: Predictors) -> None:
    assert_same_embedding(predictors)


POINT = {"point_coords": [[0.5, 0.45]], "point_labels": [1]}
POINTS = {"point_coords": [[0.5, 0.45], [0.1, 0.9], [0.6, 0.6]], "point_labels": [1, 0, 1]}
BOX = {"box": [0.2, 0.15, 0.7, 0.8]}
MASK = {"mask_input": True}
ONE = {"multimask_output": False}


PROMPTS: list[dict[str, Any]] = [
    POINT,
    POINT | ONE,
    POINTS,
    BOX,
    BOX | POINTS | ONE,
    MASK,
    MASK | POINT | ONE,
    MASK | POINTS | BOX,
]


def spell(prompt: dict[str, Any]) -> str:
    return " ".join(name.partition("_")[0] for name in prompt if name != "point_labels")


@pytest.mark.parametrize("prompt", PROMPTS, ids=spell)
def test_predict(predictors: Predictors, prompt: dict[str, Any]) -> None:
    arguments = to_pixels(prompt, predictors.ours.original_size)
    expected = predictors.original.predict(**arguments, return_logits=True)
    assert_same_result(predictors.ours.predict(**arguments), expected)


def to_pixels(prompt: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """A prompt in parts of the image as ``predict`` takes it; its mask as logits."""
    height, width = size
    arguments = dict(prompt)
    if "point_coords" in prompt:
        arguments["point_coords"] = np.array(prompt["point_coords"]) * [width, height]
        arguments["point_labels"] = np.array(prompt["point_labels"])
    if "box" in prompt:
        arguments["box"] = np.array(prompt["box"]) * [width, height, width, height]
    if "mask_input" in prompt:
        arguments["mask_input"] = mask_logits(1)[0]
    return arguments


def mask_logits(count: int) -> NDArray[np.float32]:
    """Discs, as logits: (count, 1, 256, 256)."""
    rows, columns = np.mgrid[:256, :256]
    centers = np.array([110, 140])[:count, None, None]
    distance = np.hypot(rows - centers, columns - centers)
    return np.clip((60 - distance) / 5, -10, 10).astype(np.float32)[:, None]


BATCHES = [("points", True), ("boxes", False), ("points boxes masks", True)]


@pytest.mark.parametrize(("kind", "multimask_output"), BATCHES)
def test_predict_torch(predictors: Predictors, kind: str, multimask_output: bool) -> None:
    arguments = make_batch(predictors.original, kind) | {"multimask_output": multimask_output}
    expected = predictors.original.predict_torch(**arguments, return_logits=True)
    assert_same_result(predictors.ours.predict_torch(**arguments), expected)


def make_batch(predictor: Any, kind: str) -> dict[str, Any]:
    """Two prompts as ``predict_torch`` takes them."""
    height, width = size = predictor.original_size
    points = torch.tensor([[[0.3, 0.4], [0.8, 0.2]], [[0.6, 0.6], [0.0, 0.0]]])
    labels = torch.tensor([[1, 0], [1, -1]])  # of the second prompt, one point is padding
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.4, 0.3, 0.95, 0.9]])
    arguments: dict[str, Any] = {"point_coords": None, "point_labels": None}
    if "points" in kind:
        coords = points * torch.tensor([width, height])
        arguments["point_coords"] = predictor.transform.apply_coords_torch(coords, size)
        arguments["point_labels"] = labels
    if "boxes" in kind:
        corners = boxes * torch.tensor([width, height, width, height])
        arguments["boxes"] = predictor.transform.apply_boxes_torch(corners, size)
    if "masks" in kind:
        arguments["mask_input"] = torch.from_numpy(mask_logits(2))
    return arguments


@pytest.mark.parametrize(
    ("name", "prompt", "kind"),
    zip(NAMES, PROMPTS[1:], [kind for kind, _ in [*BATCHES, *BATCHES, *BATCHES]], strict=False),
    ids=lambda value: spell(value) if isinstance(value, dict) else value,
)
def test_random_weights(random: Models, name: str, prompt: dict[str, Any], kind: str) -> None:
    """Every photograph, with another prompt each."""
    predictors = random.predictors(photograph(name))
    assert_same_embedding(predictors)
    # The embeddings differ by rounding, 1e-5. Random decoders amplify it: by 4e-2 at one logit in
    # 100,000.
    arguments = to_pixels(prompt, predictors.ours.original_size)
    expected = predictors.original.predict(**arguments, return_logits=True)
    assert_same_result(predictors.ours.predict(**arguments), expected, looser=10)
    batch = make_batch(predictors.original, kind) | {"multimask_output": False}
    expected = predictors.original.predict_torch(**batch, return_logits=True)
    assert_same_result(predictors.ours.predict_torch(**batch), expected, looser=10)


def test_images_in_other_formats(trained: Models, coffee: Pixels) -> None:
    ours, original = SamPredictor(trained.ours), mobile_sam.SamPredictor(trained.original)
    for predictor in (ours, original):
        predictor.set_image(coffee[..., ::-1], image_format="BGR")
    assert_close(ours.features, original.features, EMBEDDING_TOLERANCE)
    resized = torch.from_numpy(original.transform.apply_image(coffee)).permute(2, 0, 1)[None]
    for predictor in (ours, original):
        predictor.set_torch_image(resized.contiguous(), coffee.shape[:2])
    assert_close(ours.features, original.features, EMBEDDING_TOLERANCE)


def test_images_in_a_batch(trained: Models) -> None:
    """``Sam.forward``, whose images may have other sizes and other kinds of prompts."""
    transform = mobile_sam.SamPredictor(trained.original).transform
    batch: list[dict[str, Any]] = []
    for name in ("coffee.png", "flower.jpg"):
        pixels = photograph(name)
        resized = torch.from_numpy(transform.apply_image(pixels)).permute(2, 0, 1)
        batch.append({"image": resized, "original_size": pixels.shape[:2]})
    batch[0]["boxes"] = torch.tensor([[200.0, 100, 700, 600], [50, 60, 300, 500]])
    batch[1]["point_coords"] = torch.tensor([[[512.0, 350]]])
    batch[1]["point_labels"] = torch.ones(1, 1)
    ours, original = (model(batch, multimask_output=True) for model in trained)
    for mine, theirs in zip(ours, original, strict=True):
        assert mine.keys() == theirs.keys()
        differ = mine["masks"] != theirs["masks"]
        assert differ.sum() <= 1e-4 * differ.numel()
        assert_close(mine["iou_predictions"], theirs["iou_predictions"], SCORE_TOLERANCE)
        assert_close(mine["low_res_logits"], theirs["low_res_logits"], LOGIT_TOLERANCE)


# The bundled weights are weak: at the default thresholds nothing is left to compare.
OPTIONS: dict[str, Any] = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.1,
    "stability_score_thresh": 0.4,
    "stability_score_offset": 0.3,
}


def assert_same_as_original(models: Models, pixels: Pixels, options: dict[str, Any]) -> None:
    # The original is at its fastest with few points a batch, which changes nothing else.
    settings = OPTIONS | {"points_per_batch": 2} | options
    expected = mobile_sam.SamAutomaticMaskGenerator(models.original, **settings).generate(pixels)
    actual = SamAutomaticMaskGenerator(models.ours, **OPTIONS | options).generate(pixels)
    assert len(expected) >= 5
    assert_same_records(actual, expected)


@pytest.mark.parametrize(
    ("name", "turns", "options"),
    [
        ("astronaut.png", 0, {}),
        ("camera.png", 0, {"output_mode": "coco_rle"}),
        ("chelsea.png", 0, {"output_mode": "uncompressed_rle", "stability_score_thresh": 0.1}),
        ("china.jpg", 1, {"stability_score_thresh": 0.0}),  # taller than wide
        ("coffee.png", 0, {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.5}),
        ("flower.jpg", 0, {"box_nms_thresh": 0.5, "stability_score_thresh": 0.3}),
        ("rocket.jpg", 0, {"points_per_batch": 7, "min_mask_region_area": 400}),
    ],
)
def test_everything_gives_the_same_records(
    trained: Models, name: str, turns: int, options: dict[str, Any]
) -> None:
    assert_same_as_original(trained, np.rot90(photograph(name), turns).copy(), options)


def test_everything_gives_the_same_records_with_crops_and_small_regions(
    trained: Models, coffee: Pixels
) -> None:
    options = {
        "points_per_side": None,
        "point_grids": [np.array([[0.3, 0.4], [0.5, 0.5]]), np.array([[0.5, 0.6]])],
        "crop_n_layers": 1,
        "crop_nms_thresh": 0.5,
        "min_mask_region_area": 200,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.1,
    }
    assert_same_as_original(trained, coffee, options)


def test_everything_gives_the_same_records_with_random_weights(
    random: Models, coffee: Pixels
) -> None:
    options: dict[str, Any] = {"pred_iou_thresh": -10.0, "box_nms_thresh": 1.0}
    options |= {"stability_score_thresh": 0.0, "points_per_side": 2}
    assert_same_as_original(random, coffee, options)
