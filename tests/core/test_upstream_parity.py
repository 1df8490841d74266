"""The interface of the installed segment-anything, by inspection, and its results, both ways."""

import inspect
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor

from ..records import assert_same_records

EMPTY = inspect.Parameter.empty


def public_methods(upstream: type) -> list[str]:
    return [
        name
        for name, member in inspect.getmembers(upstream)
        if callable(member)
        and (not name.startswith("_") or name == "__init__")
        and getattr(member, "__module__", "").startswith("segment_anything")
    ]


@pytest.mark.parametrize(
    ("ours", "upstream"),
    [
        (SamPredictor, segment_anything.SamPredictor),
        (SamAutomaticMaskGenerator, segment_anything.SamAutomaticMaskGenerator),
        (MobileSam, segment_anything.modeling.Sam),
    ],
)
def test_signatures_accept_what_upstreams_accept(ours: type, upstream: type) -> None:
    assert issubclass(ours, upstream)
    methods = public_methods(upstream)
    assert len(methods) >= 3
    for name in methods:
        theirs = list(inspect.signature(getattr(upstream, name)).parameters.values())
        mine = list(inspect.signature(getattr(ours, name)).parameters.values())
        assert [(p.name, p.kind, p.default) for p in mine[: len(theirs)]] == [
            (p.name, p.kind, p.default) for p in theirs
        ], name
        assert all(p.default is not EMPTY for p in mine[len(theirs) :]), name


def test_instances_have_upstreams_attributes(bundled_sam: MobileSam) -> None:
    for ours, upstream in (
        (SamPredictor(bundled_sam), segment_anything.SamPredictor(bundled_sam)),
        (
            SamAutomaticMaskGenerator(bundled_sam),
            segment_anything.SamAutomaticMaskGenerator(bundled_sam),
        ),
    ):
        assert set(vars(upstream)) <= set(vars(ours))
        assert {name for name in dir(upstream) if not name.startswith("_")} <= set(dir(ours))


def test_our_predictor_on_upstreams_sam(
    upstream_sam: segment_anything.modeling.Sam, coffee: NDArray[np.uint8]
) -> None:
    upstream, ours = segment_anything.SamPredictor(upstream_sam), SamPredictor(upstream_sam)
    upstream.set_image(coffee)
    ours.set_image(coffee)
    torch.testing.assert_close(ours.features, upstream.features, rtol=0, atol=0)
    prompt = (np.array([[300, 200], [5, 5]]), np.array([1, 0]), np.array([9, 9, 500, 300]))
    for mine, theirs in zip(ours.predict(*prompt), upstream.predict(*prompt), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_our_generator_on_upstreams_sam(
    upstream_sam: segment_anything.modeling.Sam, coffee: NDArray[np.uint8]
) -> None:
    options: dict[str, Any] = {
        "points_per_side": 2,
        "pred_iou_thresh": -10.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
        "output_mode": "uncompressed_rle",
    }
    expected = segment_anything.SamAutomaticMaskGenerator(upstream_sam, **options).generate(coffee)
    assert len(expected) > 3
    assert_same_records(
        SamAutomaticMaskGenerator(upstream_sam, **options).generate(coffee), expected
    )


def test_upstreams_predictor_and_generator_on_our_model(
    small_sam: MobileSam, coffee: NDArray[np.uint8]
) -> None:
    upstream, ours = segment_anything.SamPredictor(small_sam), SamPredictor(small_sam)
    upstream.set_image(coffee, image_format="BGR")
    ours.set_image(coffee, image_format="BGR")
    prompt: dict[str, Any] = {"box": np.array([170, 70, 500, 330]), "multimask_output": False}
    for mine, theirs in zip(ours.predict(**prompt), upstream.predict(**prompt), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    options: dict[str, Any] = {
        "points_per_side": 4,
        "pred_iou_thresh": 0.2,
        "stability_score_thresh": 0.3,
        "stability_score_offset": 0.3,
    }
    generator = segment_anything.SamAutomaticMaskGenerator(small_sam, **options)
    expected = generator.generate(coffee)
    assert len(expected) > 1
    actual = SamAutomaticMaskGenerator(small_sam, **options).generate(coffee)
    assert_same_records(actual, expected)
