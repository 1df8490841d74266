"""Masks on a GPU are those of the CPU.

``MOBILE_SAM_TEST_DEVICE=cpu`` tries these tests without one.
"""

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.records import decode_mask

from ..conftest import PHOTOGRAPHS

DEVICE = os.environ.get("MOBILE_SAM_TEST_DEVICE", "cuda")
CLICK: Any = {"point_coords": np.array([[300, 200]]), "point_labels": np.array([1])}
# The bundled checkpoint's scores are low: at these thresholds dozens of masks survive.
EVERYTHING: Any = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.25,
    "stability_score_thresh": 0.7,
    "stability_score_offset": 0.3,
    "output_mode": "coco_rle",
}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device here"
    ),
]


def photograph(name: str) -> NDArray[np.uint8]:
    with Image.open(PHOTOGRAPHS / name) as image:
        return np.asarray(image.convert("RGB"))


def overlap(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    return float((masks & others).sum() / max(1, (masks | others).sum()))


@pytest.fixture(scope="module", autouse=True)
def exact_products() -> Iterator[None]:
    """Turns TF32 off, whose products have 10 bits."""
    cuda: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in cuda]
    for backend in cuda:
        backend.allow_tf32 = False
    yield
    for backend, value in zip(cuda, before, strict=True):
        backend.allow_tf32 = value


@pytest.fixture(scope="module")
def on_cpu(bundled_sam: MobileSam) -> SamPredictor:
    predictor = SamPredictor(bundled_sam)
    predictor.set_image(photograph("coffee.png"))
    return predictor


@pytest.fixture
def sam(bundled_sam: MobileSam) -> MobileSam:
    return copy.deepcopy(bundled_sam).to(DEVICE)


def test_float32_gives_the_masks_of_the_cpu(sam: MobileSam, on_cpu: SamPredictor) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(photograph("coffee.png"))
    assert predictor.features is not None and on_cpu.features is not None
    assert (predictor.features.cpu() - on_cpu.features).abs().max() < 1e-3
    for prompt in (CLICK, {"box": np.array([170, 10, 430, 300])}):
        ours, theirs = predictor.predict(**prompt), on_cpu.predict(**prompt)
        assert np.abs(ours[2] - theirs[2]).max() < 1e-2
        assert (ours[0] != theirs[0]).mean() < 1e-4


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 0.97), (torch.bfloat16, 0.9)])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_gives_nearly_the_same_masks(
    sam: MobileSam, on_cpu: SamPredictor, dtype: torch.dtype, least: float, autocast: bool
) -> None:
    predictor = SamPredictor(sam if autocast else sam.to(dtype))
    with torch.autocast(DEVICE, dtype, enabled=autocast):
        predictor.set_image(photograph("coffee.png"))
        masks, _, _ = predictor.predict(**CLICK)
    assert overlap(masks, on_cpu.predict(**CLICK)[0]) > least


def test_everything_mode_gives_the_records_of_the_cpu(
    sam: MobileSam, bundled_sam: MobileSam
) -> None:
    image = photograph("coffee.png")
    ours, theirs = (
        SamAutomaticMaskGenerator(model, **EVERYTHING).generate(image)
        for model in (sam, bundled_sam)
    )
    # A score within rounding of a threshold may fall on its other side.
    assert len(theirs) > 5 and abs(len(ours) - len(theirs)) <= 0.05 * len(theirs)
    known = {tuple(record["point_coords"][0]): record for record in theirs}
    overlaps = [
        overlap(decode_mask(record), decode_mask(known[point]))
        for record in ours
        if (point := tuple(record["point_coords"][0])) in known
    ]
    assert len(overlaps) >= 0.9 * len(theirs) and np.median(overlaps) > 0.999


def test_a_batch_gives_the_embeddings_of_single_images(sam: MobileSam) -> None:
    images = [photograph(name) for name in ("coffee.png", "chelsea.png")]
    batch = SamPredictor(sam).set_image_batch(images)
    for image, predictor in zip(images, batch, strict=True):
        alone = SamPredictor(sam)
        alone.set_image(image)
        assert predictor.features is not None and alone.features is not None
        assert (predictor.features - alone.features).abs().max() < 1e-3


def test_a_compiled_encoder_gives_the_same_masks(sam: MobileSam, on_cpu: SamPredictor) -> None:
    sam.image_encoder.compile()
    predictor = SamPredictor(sam)
    predictor.set_image(photograph("coffee.png"))
    assert overlap(predictor.predict(**CLICK)[0], on_cpu.predict(**CLICK)[0]) > 0.999
