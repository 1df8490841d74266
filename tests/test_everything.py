"""Everything mode against upstream's generator on a model of installed parts, same weights."""

import copy
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.baseline import build_baseline
from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator
from mobile_sam_plugin.distill.objectives import set_image_size

from .conftest import PHOTOGRAPHS
from .records import assert_same_records

Pixels = NDArray[np.uint8]
# The bundled checkpoint is weak: at upstream's thresholds nothing is left to compare.
OPTIONS: dict[str, Any] = {
    "points_per_side": 7,
    "pred_iou_thresh": 0.2,
    "stability_score_thresh": 0.5,
    "stability_score_offset": 0.3,
}


@pytest.fixture(scope="module")
def baseline(bundled_sam: MobileSam) -> segment_anything.modeling.Sam:
    return build_baseline(bundled_sam)


def photograph(name: str, size: tuple[int, int] | None = None) -> Pixels:
    image = Image.open(PHOTOGRAPHS / name).convert("RGB")
    return np.asarray(image.resize(size) if size else image)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("astronaut.png", None, {}),
        ("camera.png", (300, 512), {"output_mode": "coco_rle"}),
        ("chelsea.png", None, {"output_mode": "uncompressed_rle"}),
        ("china.jpg", (1280, 300), {"stability_score_thresh": 0.0}),
        ("coffee.png", None, {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.7}),
        ("flower.jpg", (427, 640), {"box_nms_thresh": 0.5, "stability_score_thresh": 0.3}),
        ("rocket.jpg", None, {"points_per_batch": 7, "min_mask_region_area": 400}),
    ],
)
def test_same_records_on_photographs(
    bundled_sam: MobileSam,
    baseline: segment_anything.modeling.Sam,
    name: str,
    size: tuple[int, int] | None,
    options: dict[str, Any],
) -> None:
    pixels = photograph(name, size)
    settings = OPTIONS | options
    # Upstream is at its fastest with few points a batch, which changes nothing else.
    upstream = segment_anything.SamAutomaticMaskGenerator(
        baseline, **{"points_per_batch": 8} | settings
    )
    expected = upstream.generate(pixels)
    assert 20 <= len(expected) <= 200
    actual = SamAutomaticMaskGenerator(bundled_sam, **settings).generate(pixels)
    assert_same_records(actual, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"points_per_side": 3, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
        {
            "points_per_side": None,
            "point_grids": [np.array([[0.3, 0.4], [0.5, 0.5]]), np.array([[0.5, 0.6]])],
            "crop_n_layers": 1,
            "crop_nms_thresh": 0.5,
            "min_mask_region_area": 200,
        },
    ],
    ids=["downscaled grid", "own grids"],
)
def test_same_records_with_crops(
    bundled_sam: MobileSam,
    baseline: segment_anything.modeling.Sam,
    coffee: Pixels,
    options: dict[str, Any],
) -> None:
    settings = OPTIONS | {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.1} | options
    expected = segment_anything.SamAutomaticMaskGenerator(baseline, **settings).generate(coffee)
    assert len({tuple(record["crop_box"]) for record in expected}) > 2
    actual = SamAutomaticMaskGenerator(bundled_sam, **settings).generate(coffee)
    assert_same_records(actual, expected)


def test_nothing_found_is_an_empty_list(bundled_sam: MobileSam, coffee: Pixels) -> None:
    each: list[dict[str, Any]] = [{"crop_n_layers": 1}, {"min_mask_region_area": 9}]
    for options in each:
        generator = SamAutomaticMaskGenerator(bundled_sam, points_per_side=1, **options)
        assert generator.generate(coffee) == []


def test_progress_is_told(bundled_sam: MobileSam, coffee: Pixels) -> None:
    generator = SamAutomaticMaskGenerator(bundled_sam, points_per_side=3, points_per_batch=4)
    told: list[tuple[int, int]] = []
    generator.generate(coffee, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 9), (8, 9), (9, 9)]


def test_threads_share_a_generator_and_clients_its_predictor(
    own_sam: MobileSam, coffee: Pixels
) -> None:
    generator = SamAutomaticMaskGenerator(own_sam, **OPTIONS | {"points_per_side": 3})
    generator.predictor.set_image(coffee)
    embedding = generator.predictor.get_image_embedding().clone()
    images = [coffee, photograph("chelsea.png"), photograph("rocket.jpg")]
    expected = [generator.generate(image) for image in images]
    own_sam.train()
    with ThreadPoolExecutor(3) as pool:
        actual = list(pool.map(generator.generate, images))
    assert all(module.training for module in own_sam.modules())
    for ours, theirs in zip(actual, expected, strict=True):
        assert len(theirs) > 0
        assert_same_records(ours, theirs)
    torch.testing.assert_close(generator.predictor.get_image_embedding(), embedding)


def test_nothing_of_the_size_of_prompts_times_pixels_is_held(
    bundled_sam: MobileSam, coffee: Pixels
) -> None:
    large = photograph("coffee.png", (3000, 2000))
    generator = SamAutomaticMaskGenerator(bundled_sam, **OPTIONS | {"output_mode": "coco_rle"})
    generator.generate(coffee)
    tracemalloc.start()
    records = generator.generate(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) > 8
    assert peak < 100e6, "numpy alone; the picture has 18 MB"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_twelve_megapixels_take_less_than_two_and_a_half_gigabytes() -> None:
    """All counted: the interpreter, PyTorch, the weights and the picture."""
    code = f"""
import re
import numpy as np
from PIL import Image
from mobile_sam_plugin import SamAutomaticMaskGenerator, build_sam_vit_t
options = {OPTIONS | {"points_per_side": 4, "output_mode": "coco_rle"}}
generator = SamAutomaticMaskGenerator(build_sam_vit_t("bundled"), **options)
image = Image.open({str(PHOTOGRAPHS / "coffee.png")!r}).convert("RGB").resize((4000, 3000))
records = generator.generate(image)
print(len(records), re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    records, kilobytes = map(int, done.stdout.split())
    assert records > 8
    assert kilobytes < 2.5e6


def test_half_precision_finds_the_same_masks(own_sam: MobileSam, coffee: Pixels) -> None:
    settings = OPTIONS | {"points_per_side": 3, "stability_score_thresh": 0.0}
    expected = SamAutomaticMaskGenerator(own_sam, **settings).generate(coffee)
    own_sam.to(torch.bfloat16)
    found = SamAutomaticMaskGenerator(own_sam, **settings).generate(coffee)
    assert all(np.isfinite(record["predicted_iou"]) for record in found)
    ours = [record["segmentation"] for record in found]
    overlaps = [
        max(
            float((mask & twin["segmentation"]).sum() / (mask | twin["segmentation"]).sum())
            for mask in ours
        )
        for twin in expected
    ]
    assert np.mean(overlaps) > 0.8


def test_same_records_where_the_model_takes_small_images(own_sam: MobileSam) -> None:
    set_image_size(own_sam, 256)
    image = photograph("coffee.png")
    ours = SamAutomaticMaskGenerator(own_sam, **OPTIONS)
    theirs = segment_anything.SamAutomaticMaskGenerator(own_sam, **OPTIONS)
    found = ours.generate(image)
    assert len(found) > 5
    assert_same_records(found, theirs.generate(image))


class Negated(nn.Module):
    """An adaptation of a mask decoder: the logits of what it wraps, with the other sign."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Any, **options: Any) -> tuple[Tensor, Tensor]:
        logits, scores = self.decoder(*inputs, **options)
        return -logits, scores


def negate(sam: MobileSam, how: str) -> None:
    decoder = sam.mask_decoder
    if how == "module":
        sam.mask_decoder = Negated(decoder)
    elif how == "hook":
        decoder.register_forward_hook(lambda module, inputs, output: (-output[0], output[1]))
    elif how == "patched":
        decoder.forward = Negated(copy.deepcopy(decoder)).forward
    else:
        plain = type(decoder)
        decoder.__class__ = type("Adapted", (plain,), {"forward": negated_forward(plain)})


def negated_forward(plain: Any) -> Any:
    def forward(self: Any, *inputs: Any, **options: Any) -> tuple[Tensor, Tensor]:
        logits, scores = plain.forward(self, *inputs, **options)
        return -logits, scores

    return forward


@pytest.mark.parametrize("how", ["module", "hook", "patched", "subclass"])
def test_an_adapted_decoder_is_called_as_a_module(small_sam: MobileSam, how: str) -> None:
    image = photograph("coffee.png", (150, 100))
    options = OPTIONS | {"points_per_side": 3, "pred_iou_thresh": 0.0, "box_nms_thresh": 1.0}
    options["stability_score_thresh"] = 0.0
    sam = copy.deepcopy(small_sam)
    plain = SamAutomaticMaskGenerator(sam, **options).generate(image)
    negate(sam, how)
    found = SamAutomaticMaskGenerator(sam, **options).generate(image)
    expected = segment_anything.SamAutomaticMaskGenerator(sam, **options).generate(image)
    assert_same_records(found, expected)
    assert len(found) > 8 and found[0]["area"] != plain[0]["area"]
