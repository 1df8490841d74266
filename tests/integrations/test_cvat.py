"""The auto-annotation function, by the interfaces of CVAT's own SDK and command line."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.detectors import Detections

cvataa: Any = pytest.importorskip(
    "cvat_sdk.auto_annotation", reason="cvat-sdk, the extra [cvat], is not installed"
)

from cvat_sdk import models  # noqa: E402
from cvat_sdk.auto_annotation.driver import (  # noqa: E402
    _AnnotationMapper,
    _DetectionFunctionContextImpl,
)
from cvat_sdk.masks import decode_mask  # noqa: E402

from mobile_sam_plugin.integrations.cvat import CvatFunction, create  # noqa: E402

LABELS = ("cup", "plate", "object")


def annotate(
    function: CvatFunction,
    image: NDArray[np.uint8],
    threshold: float | None = None,
    polygons: bool = False,
    name: str = "coffee.png",
) -> list[Any]:
    """What CVAT's driver makes of a function's results for a task with three labels."""
    mapper = _AnnotationMapper(
        logging.getLogger(__name__),
        function.spec.labels,
        [
            models.Label(id=100 + n, name=label, type="any", attributes=[], sublabels=[])
            for n, label in enumerate(LABELS)
        ],
        allow_unmatched_labels=True,
        conv_mask_to_poly=polygons,
    )
    context = _DetectionFunctionContextImpl(
        frame_name=name, conf_threshold=threshold, conv_mask_to_poly=polygons
    )
    _, shapes = mapper.validate_and_remap(function.detect(context, Image.fromarray(image)), 0)
    return shapes


def find_cup(*_: Any) -> Detections:
    boxes = np.array([[170, 10, 430, 300], [20, 20, 90, 90]], np.float32)
    scores = np.array([0.9, 0.4], np.float32)
    return Detections(boxes, scores, ["cup", "plate"], np.array([0, 1]))


@pytest.fixture(scope="module")
def predictor(tiny_sam: MobileSam, coffee: NDArray[np.uint8]) -> SamPredictor:
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(coffee)
    return predictor


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    path = tmp_path / "instances.json"
    content = {
        "images": [{"id": 3, "file_name": "coffee.png"}],
        "categories": [{"id": 8, "name": "plate"}, {"id": 9, "name": "cup"}],
        "annotations": [{"image_id": 3, "category_id": 9, "bbox": [170, 10, 260, 290]}],
    }
    path.write_text(json.dumps(content))
    return path


def test_boxes_become_masks(
    tiny_sam: MobileSam, predictor: SamPredictor, coffee: NDArray[np.uint8], boxes: Path
) -> None:
    function = CvatFunction(tiny_sam, boxes=boxes)
    (shape,) = annotate(function, coffee, name="shelf/coffee.png")
    (expected,), *_ = predictor.predict(box=[170, 10, 430, 300], multimask_output=False)
    found = decode_mask(shape.points, image_width=600, image_height=400)
    np.testing.assert_array_equal(found, expected)
    assert shape.type.value == "mask" and shape.label_id == 100
    assert annotate(function, coffee, name="another.png") == []
    polygons = annotate(function, coffee, polygons=True)
    assert polygons and {each.type.value for each in polygons} == {"polygon"}


def test_texts_become_masks(tiny_sam: MobileSam, coffee: NDArray[np.uint8]) -> None:
    function = CvatFunction(tiny_sam, text="cup, plate", detector=find_cup)
    assert [label.name for label in function.spec.labels] == ["cup", "plate"]
    assert {shape.label_id for shape in annotate(function, coffee)} == {100, 101}


def test_everything_becomes_masks(tiny_sam: MobileSam, coffee: NDArray[np.uint8]) -> None:
    options: dict[str, Any] = {
        "points_per_side": 2,
        "pred_iou_thresh": 0,
        "stability_score_thresh": 0,
    }
    function = CvatFunction(tiny_sam, **options)
    shapes = annotate(function, coffee)
    assert len(shapes) > 3 and {shape.label_id for shape in shapes} == {102}
    assert len(annotate(function, coffee, threshold=1.0)) < len(shapes)


def test_what_the_command_line_creates(tiny_file: Path, boxes: Path) -> None:
    function = create(checkpoint=str(tiny_file), boxes=str(boxes))
    assert [label.name for label in function.spec.labels] == ["plate", "cup"]


def test_mistakes_are_told(tiny_sam: MobileSam, tmp_path: Path, boxes: Path) -> None:
    with pytest.raises(UserError, match="text or boxes, not both"):
        CvatFunction(tiny_sam, text="cup", boxes=boxes)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match="is not a COCO JSON with boxes"):
        CvatFunction(tiny_sam, boxes=tmp_path / "other.json")
