"""Masks as polygons: what fills them gets the masks again."""

from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mobile_sam_plugin.polygons import (
    Losses,
    labelme_content,
    outer_polygons,
    outline,
    relative_path,
)

Mask = NDArray[np.bool_]
small_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=10))


def without_holes(mask: Mask) -> Mask:
    """What cannot be reached from outside by steps to the side, up and down."""
    _, regions = cv2.connectedComponents(1 - np.pad(mask, 1).astype(np.uint8), connectivity=4)
    return np.asarray(regions != regions[0, 0])[1:-1, 1:-1]


def fill_as_coco(polygons: list[list[int]], size: tuple[int, ...]) -> Mask:
    rles = pycocotools.mask.frPyObjects(polygons, *size)
    return np.asarray(pycocotools.mask.decode(pycocotools.mask.merge(rles)), dtype=bool)


def fill_as_ultralytics(points: NDArray[np.float64], size: tuple[int, ...]) -> Mask:
    """The mask of a line in a label file, whose numbers have six decimals."""
    height, width = size
    fractions = np.array([[f"{each:.6f}" for each in p] for p in points / [width, height]], float)
    painted = np.zeros(size, np.uint8)
    cv2.fillPoly(painted, [(fractions * [width, height]).astype(np.int32)], 1)
    return painted.astype(bool)


def thin(kind: str) -> Mask:
    mask = np.zeros((40, 50), dtype=bool)
    steps = np.arange(5, 35)
    if kind == "pixel":
        mask[7, 9] = True
    elif kind == "row":
        mask[7, 9:30] = True
    elif kind == "column at the edge":
        mask[:, 49] = True
    elif kind == "diagonal":
        mask[steps, steps] = True
    elif kind == "other diagonal":
        mask[steps, 40 - steps] = True
    elif kind == "angle":
        mask[5:20, 7] = mask[19, 7:30] = True
    elif kind == "cross":
        mask[5:20, 12] = mask[12, 5:20] = True
    return mask


THIN = ["pixel", "row", "column at the edge", "diagonal", "other diagonal", "angle", "cross"]


@given(small_masks)
def test_pycocotools_gets_the_mask_again(mask: Mask) -> None:
    losses = Losses()
    polygons = losses.coco_polygons(mask)
    filled = without_holes(mask)
    assert losses == Losses(int((filled != mask).any()), int(not mask.any()))
    if mask.any():
        np.testing.assert_array_equal(fill_as_coco(polygons, mask.shape), filled)
    else:
        assert polygons == []


@given(small_masks)
def test_polygons_are_closed_paths_along_pixels(mask: Mask) -> None:
    for polygon in outer_polygons(np.asfortranarray(mask)):
        sides = np.roll(polygon, -1, axis=0) - polygon
        assert len(polygon) >= 4
        assert ((sides == 0).sum(axis=1) == 1).all()  # along one axis, and none of no length
        assert ((sides[:, 0] == 0) != (np.roll(sides, 1, axis=0)[:, 0] == 0)).all()  # all turn
        assert (polygon >= 0).all() and (polygon <= mask.shape[::-1]).all()


@pytest.mark.parametrize("kind", THIN)
def test_thin_masks_survive(kind: str) -> None:
    mask = thin(kind)
    np.testing.assert_array_equal(fill_as_coco(Losses().coco_polygons(mask), mask.shape), mask)
    points = outline(mask)
    assert len(points) >= 3  # Ultralytics takes fewer for a box
    np.testing.assert_array_equal(fill_as_ultralytics(points, mask.shape), mask)
    assert (np.ptp(points, axis=0) > 0).all()  # which drops boxes without an area


@given(small_masks)
def test_ultralytics_gets_the_mask_again(mask: Mask) -> None:
    filled = without_holes(mask)
    painted = fill_as_ultralytics(outline(mask), mask.shape) if mask.any() else mask
    assert (painted | ~filled).all()
    if (
        cv2.connectedComponents(filled.astype(np.uint8))[0] == 2
    ):  # with the ground; else joints add pixels
        np.testing.assert_array_equal(painted, filled)


def test_few_points_for_large_shapes() -> None:
    mask = np.zeros((1000, 2000), dtype=bool)
    mask[100:900, 200:1500] = True
    (polygon,) = outer_polygons(mask)
    assert sorted(map(tuple, polygon)) == [(200, 100), (200, 900), (1500, 100), (1500, 900)]
    assert len(outline(mask)) == 4


def test_losses_are_told_once(recwarn: pytest.WarningsRecorder) -> None:
    Losses().warn()
    assert not recwarn
    losses = Losses(1, 0)
    losses.add(Losses(2, 1))
    with pytest.warns(UserWarning, match="holes of 3 masks are filled, 1 mask of no pixel"):
        losses.warn()


def test_labelme_groups_parts() -> None:
    parts = np.zeros((20, 30), dtype=bool)
    parts[2:5, 3:9] = parts[10:12, 20:30] = True
    losses = Losses()
    masks = [("cat", parts), ("dog", parts & (np.arange(20) < 8)[:, None]), ("no", parts & False)]
    content = labelme_content(masks, (20, 30), "../a.jpg", losses)
    assert {"version", "flags", "shapes", "imagePath", "imageData"} <= content.keys()
    shapes = content["shapes"]
    assert [(shape["label"], shape["group_id"]) for shape in shapes] == [
        ("cat", 1),
        ("cat", 1),
        ("dog", None),
    ]
    assert {shape["shape_type"] for shape in shapes} == {"polygon"}
    assert [3, 2] in shapes[2]["points"] and [9, 5] in shapes[2]["points"]
    assert losses == Losses(0, 1)


def test_relative_paths_lead_through_links(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep" / "out").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "deep" / "out")
    (tmp_path / "a.jpg").write_bytes(b"here")
    path = relative_path(tmp_path / "a.jpg", tmp_path / "out")
    assert path == "../../../a.jpg" and (tmp_path / "out" / path).read_bytes() == b"here"
