"""Everything mode: its options, errors and memory, and upstream's generator on the same model.

Beside the original's generator and model it stands in tests/core/test_original.py.
"""

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

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.mobile_sam import set_img_size

from ..conftest import PHOTOGRAPHS
from ..records import assert_same_records

Pixels = NDArray[np.uint8]
# The bundled checkpoint is weak: at upstream's thresholds nothing is left to compare.
OPTIONS: dict[str, Any] = {
    "points_per_side": 7,
    "pred_iou_thresh": 0.2,
    "stability_score_thresh": 0.5,
    "stability_score_offset": 0.3,
}


def photograph(name: str, size: tuple[int, int] | None = None) -> Pixels:
    image = Image.open(PHOTOGRAPHS / name).convert("RGB")
    return np.asarray(image.resize(size) if size else image)


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
    small_sam: MobileSam, coffee: Pixels, options: dict[str, Any]
) -> None:
    settings = OPTIONS | {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.1} | options
    expected = segment_anything.SamAutomaticMaskGenerator(small_sam, **settings).generate(coffee)
    assert len({tuple(record["crop_box"]) for record in expected}) > 2
    actual = SamAutomaticMaskGenerator(small_sam, **settings).generate(coffee)
    assert_same_records(actual, expected)


def test_nothing_found_is_an_empty_list(tiny_sam: MobileSam, coffee: Pixels) -> None:
    each: list[dict[str, Any]] = [{"crop_n_layers": 1}, {"min_mask_region_area": 9}]
    for options in each:
        generator = SamAutomaticMaskGenerator(tiny_sam, points_per_side=1, **options)
        assert generator.generate(coffee) == []


def test_progress_is_told(tiny_sam: MobileSam, coffee: Pixels) -> None:
    generator = SamAutomaticMaskGenerator(tiny_sam, points_per_side=3, points_per_batch=4)
    told: list[tuple[int, int]] = []
    generator.generate(coffee, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 9), (8, 9), (9, 9)]


def test_threads_share_a_generator_and_clients_its_predictor(
    own_sam: MobileSam, coffee: Pixels
) -> None:
    set_img_size(own_sam, 224)
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
    small_sam: MobileSam, coffee: Pixels
) -> None:
    large = photograph("coffee.png", (3000, 2000))
    generator = SamAutomaticMaskGenerator(small_sam, **OPTIONS | {"output_mode": "coco_rle"})
    generator.generate(coffee)
    tracemalloc.start()
    records = generator.generate(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) > 8
    assert peak < 100e6, "numpy alone; the picture has 18 MB"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.process
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
    set_img_size(own_sam, 448)
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
    set_img_size(own_sam, 256)
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


def test_hierarchical_asks_a_fine_point_only_outside_of_confident_masks(
    small_sam: MobileSam, coffee: Pixels
) -> None:
    """Which points are asked is computed here, one by one; a grid of these finds the same."""
    options = OPTIONS | {"points_per_side": 10, "pred_iou_thresh": 0.0}
    told: list[tuple[int, int]] = []
    generator = SamAutomaticMaskGenerator(small_sam, **options, search="hierarchical")
    found = generator.generate(coffee, lambda *each: told.append(each))

    predictor = SamPredictor(small_sam)
    predictor.set_image(coffee)
    (grid,) = generator.point_grids
    middle = [2, 6]  # of the first four rows and columns, and of the second four
    coarse = [10 * row + column for row in middle for column in middle]
    covered = np.zeros(len(grid), bool)
    columns, rows = (grid * [224 / 4, 149 / 4]).astype(int).T  # of the low-res logits
    for index in coarse:
        _, scores, low_res = predictor.predict([grid[index] * [600, 400]], [1])
        kept = [
            (score, logits)
            for score, logits in zip(scores, low_res, strict=True)
            if predictor.upscaler.extract_mask(logits, 0.0, 0.3, 0.5) is not None
        ]
        if kept:
            _, best = max(kept, key=lambda each: each[0])
            at = best[rows, columns]
            covered |= (at > 0) & (at >= 0.6 * at[index])
    fine = [index for index in np.flatnonzero(~covered) if index not in coarse]
    assert 0 < len(fine) < len(grid) - len(coarse)
    asked = grid[np.array([*coarse, *fine])]
    by_hand = options | {"points_per_side": None, "point_grids": [asked]}
    assert_same_records(found, SamAutomaticMaskGenerator(small_sam, **by_hand).generate(coffee))
    assert len(found) > 2
    assert told[-1] == (100, 100) and told == sorted(told)


def test_hierarchical_goes_on_in_crops_and_asks_all_of_a_grid_too_small_to_divide(
    tiny_sam: MobileSam, coffee: Pixels
) -> None:
    options: dict[str, Any] = {
        "points_per_side": 2,
        "crop_n_layers": 1,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
    }
    grid, hierarchical = (
        SamAutomaticMaskGenerator(tiny_sam, **options, search=search).generate(coffee)
        for search in ("grid", "hierarchical")
    )
    assert len(grid) > 2
    assert_same_records(hierarchical, grid)


EVERY_MASK: dict[str, Any] = {
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "search": "proposals",
}


@pytest.mark.parametrize("decoder", ["own", "called as a module"])
def test_proposed_boxes_give_the_single_mask_of_each(
    small_sam: MobileSam, coffee: Pixels, decoder: str
) -> None:
    sam = small_sam
    if decoder != "own":
        sam = copy.deepcopy(small_sam)
        negate(sam, "hook")
    boxes = np.array([[170, 10, 430, 300], [-50, 40, 250.5, 380], [500, 300, 700, 900]])
    outside = [[-30, -30, 0, 10], [600, 0, 700, 400]]
    told: list[tuple[int, int]] = []
    found = SamAutomaticMaskGenerator(sam, points_per_batch=2, **EVERY_MASK).generate(
        coffee, lambda *each: told.append(each), proposals=[*boxes, *outside]
    )
    predictor = SamPredictor(sam)
    predictor.set_image(coffee)
    expected = [
        predictor.predict(box=box, multimask_output=False)
        for box in boxes.clip(0, [600, 400, 600, 400])
    ]
    expected.sort(key=lambda each: -each[1][0])
    assert len(found) == 3
    for record, (masks, scores, _) in zip(found, expected, strict=True):
        assert (record["segmentation"] ^ masks[0]).sum() <= 0.001 * masks[0].sum()
        assert record["predicted_iou"] == pytest.approx(scores[0], abs=1e-4)
        assert record["point_coords"] == [] and record["crop_box"] == [0, 0, 600, 400]
    assert told == [(2, 3), (3, 3)]


def test_proposed_points_give_what_a_grid_of_them_gives(
    small_sam: MobileSam, coffee: Pixels
) -> None:
    points = np.array([[300.0, 130.0], [20.0, 390.0]])
    options = EVERY_MASK | {"search": "grid", "points_per_side": None}
    grid = SamAutomaticMaskGenerator(small_sam, **options, point_grids=[points / [600, 400]])
    proposing = SamAutomaticMaskGenerator(small_sam, **EVERY_MASK)
    found = proposing.generate(coffee, proposals=[*points, [-1, 0], [30, 401]])
    assert_same_records(found, grid.generate(coffee))
    assert len(found) > 3
    assert proposing.generate(coffee, proposals=[]) == []


@pytest.mark.parametrize(
    ("search", "proposals", "message"),
    [
        ("proposals", None, "search is 'proposals': give the boxes or points"),
        ("grid", [[1, 2]], "proposals go with search 'proposals', not 'grid'"),
        ("proposals", [1, 2, 3, 4], r"boxes \(N, 4\).* or points \(N, 2\).*not of the shape \(4,"),
        ("proposals", [[1, 2, 3]], r"not of the shape \(1, 3\)"),
        ("proposals", [[1, 2, np.nan, 4]], "proposals holds NaN"),
        ("proposals", [[30, 2, 3, 4]], r"the box \[30.0, 2.0, 3.0, 4.0\], which is not XYXY"),
    ],
)
def test_proposals_that_cannot_be_prompts_are_refused(
    tiny_sam: MobileSam, coffee: Pixels, search: str, proposals: Any, message: str
) -> None:
    generator = SamAutomaticMaskGenerator(tiny_sam, search=search)
    with pytest.raises(UserError, match=message):
        generator.generate(coffee, proposals=proposals)


GRID = np.array([[0.5, 0.5]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points_per_side": 0}, ValueError, "points_per_side must be in .*, not 0"),
        ({"points_per_side": "32"}, TypeError, "points_per_side must be a number, not '32'"),
        ({"points_per_batch": 0}, ValueError, "points_per_batch .* at least 1, not 0"),
        ({"points_per_batch": 1.5}, TypeError, "points_per_batch must be a whole number, not 1.5"),
        ({"pred_iou_thresh": 88}, ValueError, "pred_iou_thresh must be at most 1, not 88"),
        ({"stability_score_thresh": 95}, ValueError, "stability_score_thresh .* at most 1, not 95"),
        ({"stability_score_offset": np.nan}, ValueError, "stability_score_offset .*not nan"),
        ({"box_nms_thresh": np.nan}, ValueError, "box_nms_thresh .*not nan"),
        ({"crop_nms_thresh": None}, TypeError, "crop_nms_thresh must be a number, not None"),
        ({"crop_n_layers": -1}, ValueError, "crop_n_layers .* at least 0, not -1"),
        ({"crop_overlap_ratio": 1.5}, ValueError, "crop_overlap_ratio must be in .0, 1., not 1.5"),
        (
            {"crop_overlap_ratio": -0.1},
            ValueError,
            "crop_overlap_ratio must be in .0, 1., not -0.1",
        ),
        ({"crop_n_points_downscale_factor": 0}, ValueError, "downscale_factor must be above 0"),
        (
            {"points_per_side": 8, "crop_n_layers": 3, "crop_n_points_downscale_factor": 3},
            ValueError,
            r"no point is left in layer 2 .*points_per_side \(8\).*downscale_factor \(3\)",
        ),
        ({"min_mask_region_area": np.nan}, ValueError, "min_mask_region_area .*not nan"),
        ({"search": "random"}, ValueError, "search must be one of grid, .*not 'random'"),
        (
            {"search": "hierarchical", "point_grids": [GRID]},
            ValueError,
            "search 'hierarchical' takes no point_grids: give points_per_side",
        ),
        (
            {"search": "proposals", "crop_n_layers": 1},
            ValueError,
            "'proposals' prompts in the whole image .*crop_n_layers must be 0, not 1",
        ),
        ({"point_grids": []}, ValueError, "point_grids must hold a grid .* not 0 in all"),
        (
            {"point_grids": [GRID], "crop_n_layers": 1},
            ValueError,
            r"point_grids must hold .* \(crop_n_layers is 1\), not 1 in all",
        ),
        ({"point_grids": [GRID[0]]}, ValueError, r"point_grids\[0\] .*\(N, 2\), not \(2,\)"),
        ({"point_grids": [GRID * 600]}, ValueError, r"point_grids\[0\] must lie in \[0, 1\].*300"),
        ({"point_grids": [GRID * np.nan]}, ValueError, r"point_grids\[0\] holds NaN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_cannot_work_are_refused_when_the_generator_is_built(
    small_sam: MobileSam, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if "point_grids" in options:
        options = {"points_per_side": None, **options}
    with pytest.raises(error, match=message):
        SamAutomaticMaskGenerator(small_sam, **options)


def test_options_keep_upstreams_meaning(small_sam: MobileSam) -> None:
    image = photograph("coffee.png", (150, 100))
    for options in (
        {"points_per_side": None, "point_grids": np.array([[[0.4, 0.4], [0.5, 0.5]]])},
        {"points_per_side": 2.5, "pred_iou_thresh": -1.0, "box_nms_thresh": 2},
        {
            "points_per_side": 1,
            "crop_n_layers": 1,
            "crop_n_points_downscale_factor": 0.5,
            "crop_overlap_ratio": 1,
        },
        {"points_per_side": np.int64(2), "points_per_batch": np.int64(3)},
    ):
        settings: dict[str, Any] = {
            "pred_iou_thresh": 0.0,
            "stability_score_thresh": 0.0,
            **options,
        }
        ours, theirs = (
            each(small_sam, **settings).generate(image)
            for each in (
                SamAutomaticMaskGenerator,
                segment_anything.SamAutomaticMaskGenerator,
            )
        )
        assert len(ours) > 0
        assert_same_records(ours, theirs)


@pytest.mark.parametrize("size", [(1, 1), (12, 14), (3, 700)])
def test_small_images_are_searched_in_the_crops_that_hold_anything(
    tiny_sam: MobileSam, size: tuple[int, int]
) -> None:
    """Upstream fails at an empty crop, or one whose short side is nothing to the model."""
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    options: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    generator = SamAutomaticMaskGenerator(tiny_sam, 1, crop_n_layers=2, **options)
    told: list[tuple[int, int]] = []
    records = generator.generate(pixels, lambda *each: told.append(each))
    assert told[-1][0] == told[-1][1] <= 21
    for record in records:
        x, y, width, height = record["crop_box"]
        assert width > 0 and height > 0 and x + width <= size[1] and y + height <= size[0]
