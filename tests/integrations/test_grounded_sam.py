"""Grounded-SAM: masks of the boxes that a detector finds.

The detectors have random weights, so their boxes mean nothing: the tests are about the results.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import supervision
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_iou

from mobile_sam_plugin import SamPredictor
from mobile_sam_plugin.integrations.detectors import (
    Detections,
    Detector,
)
from mobile_sam_plugin.integrations.grounded_sam import GroundedMobileSam

from ..fresh import run_code
from .models import PROMPTS

Pixels = NDArray[np.uint8]


def find(
    boxes: Sequence[Sequence[float]],
    phrases: Sequence[str],
    scores: Sequence[float] | None = None,
) -> Detector:
    """A user's own detector, which finds the same everywhere."""

    def detector(
        image: Pixels, prompts: Sequence[str], box_threshold: float, text_threshold: float
    ) -> Detections:
        values = scores or np.linspace(0.9, 0.5, len(boxes))
        return Detections(np.array(boxes), np.array(values), list(phrases))

    return detector


def test_masks_are_those_of_the_boxes(
    folders: dict[str, Path], predictor: SamPredictor, cup: Pixels, tmp_path: Path
) -> None:
    grounded = GroundedMobileSam(predictor, folders["GroundingDino"])
    objects = grounded.predict(Image.fromarray(cup), "a dog. the red cars.", 0.3, 0.4, 0.5)
    assert objects.image_size == cup.shape[:2]
    assert (np.diff(objects.scores) <= 0).all() and (objects.scores > 0.3).all()
    predictor.set_image(cup)
    for box, mask in zip(objects.boxes, objects.masks, strict=True):
        (expected,), _, _ = predictor.predict(box=box, multimask_output=False)
        np.testing.assert_array_equal(mask, expected)
    assert objects.masks.any()

    # Non-maximum suppression, class by class.
    assert objects.class_ids is not None
    for class_id in (0, 1):
        boxes = torch.from_numpy(objects.boxes[objects.class_ids == class_id])
        assert (box_iou(boxes, boxes).triu(1) <= 0.5).all()
    fewer = grounded.predict(cup, PROMPTS, 0.3, 0.4, 0.0)
    more = grounded.predict(cup, PROMPTS, 0.3, 0.4, 1.0)
    assert 0 < len(fewer) < len(objects) <= len(more)

    objects.save(tmp_path)
    assert len(json.loads((tmp_path / "instances.json").read_text())["annotations"]) == len(objects)


def test_suppression_keeps_other_classes_apart(predictor: SamPredictor, cup: Pixels) -> None:
    boxes = [[100, 5, 200, 55], [101, 5, 200, 55], [100, 5, 200, 54], [300, 5, 400, 55]]
    detector = find(boxes, ["dog", "a dog", "red", "tree"], scores=[0.5, 0.7, 0.6, 0.4])
    objects = GroundedMobileSam(predictor, detector).predict(cup, PROMPTS)
    assert objects.labels == ["a dog", "red", "tree"]
    assert objects.class_ids is not None and objects.class_ids.tolist() == [0, 1, -1]
    np.testing.assert_allclose(objects.scores, [0.7, 0.6, 0.4])


def test_boxes_are_clipped_and_dropped(predictor: SamPredictor, cup: Pixels) -> None:
    boxes = [[-50, -50, 90, 90], [550, 30, 900, 61], [600, 0, 700, 60], [10, -9, 50, 0]]
    detector = find([*boxes, [20, 20, 20, 40]], ["a dog"] * 5)
    objects = GroundedMobileSam(predictor, detector).predict(cup, "a dog", nms_thresh=1)
    assert objects.boxes.tolist() == [[0, 0, 90, 60], [550, 30, 600, 60]]


def test_nothing_found(predictor: SamPredictor, cup: Pixels, tmp_path: Path) -> None:
    objects = GroundedMobileSam(predictor, find([], [])).predict(cup, "a dog")
    assert len(objects) == 0 and objects.masks.shape == (0, *cup.shape[:2])
    assert len(objects.to_supervision()) == 0
    names = {path.name for path in objects.save(tmp_path, cup)}
    assert names == {"overlay.png", "instances.json", "instances.png"}


def test_list_of_images(predictor: SamPredictor, cup: Pixels, tmp_path: Path) -> None:
    Image.fromarray(cup[:, :300]).save(tmp_path / "half.png")
    grounded = GroundedMobileSam(predictor, find([[10, 5, 200, 55]], ["a dog"]))
    whole, half = grounded.predict([cup, tmp_path / "half.png"], "a dog")
    assert whole.image_size == (60, 600) and half.image_size == (60, 300)
    np.testing.assert_array_equal(half.masks, grounded.predict(cup[:, :300], "a dog").masks)
    assert grounded.predict([], "a dog") == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (([[0, 0, np.nan, 5]], [0.5], ["dog"]), "box with NaN"),
        (([[0, 0, 5, np.inf]], [0.5], ["dog"]), "box with NaN or infinity"),
        (([[0, 0, 5, 5]], [np.nan], ["dog"]), "score with NaN"),
        (([[30, 20, 10, 40]], [0.5], ["dog"]), r"\[30.0, 20.0, 10.0, 40.0\].*not XYXY"),
        (([[0, 0, 5, 5]], [0.5, 0.4], ["dog"]), "1 boxes, 2 scores, 1 phrases"),
        (([[0, 0, 5, 5]], [0.5], []), "0 phrases"),
        (([[0, 0, 5]], [0.5], ["dog"]), r"\(1, 3\)"),
        (([[0, 0, 5, 5]], [0.5], ["dog"], [1]), "class id 1 for 1 texts"),
    ],
    ids=["NaN", "infinity", "score", "swapped", "scores", "phrases", "shape", "class"],
)
def test_detectors_that_return_nonsense(
    predictor: SamPredictor, cup: Pixels, found: Any, words: str
) -> None:
    boxes, scores, phrases, *class_ids = found
    detections = Detections(np.array(boxes), np.array(scores), phrases, *map(np.array, class_ids))
    grounded = GroundedMobileSam(predictor, lambda *_: detections)
    with pytest.raises(ValueError, match=f"the detector function.*{words}"):
        grounded.predict(cup, "a dog")


@pytest.mark.parametrize("name", ["box_threshold", "text_threshold", "nms_thresh"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_thresholds_outside_0_to_1(
    predictor: SamPredictor, cup: Pixels, name: str, value: float
) -> None:
    grounded = GroundedMobileSam(predictor, find([], []))
    outside: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\]"):
        grounded.predict(cup, "a dog", **outside)
    text: dict[str, Any] = {name: "0.3"}
    with pytest.raises(TypeError, match=rf"{name} must be a number, not '0.3'"):
        grounded.predict([], "a dog", **text)


def test_an_image_that_is_set_is_not_encoded_again(predictor: SamPredictor, cup: Pixels) -> None:
    detector = find([[20, 10, 90, 100], [5, 5, 40, 40]], ["a cup"] * 2)
    expected = GroundedMobileSam(predictor, detector).predict(cup, "a cup")
    predictor.set_image(cup)
    encoded: list[int] = []
    hook = predictor.model.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
    try:
        other = GroundedMobileSam(predictor.model, detector)
        found = other.predict(cup, "a cup", predictor=predictor)
        with pytest.raises(ValueError, match="another image set, of"):
            other.predict(cup[1:], "a cup", predictor=predictor)
        with pytest.raises(ValueError, match="give that image, not a list"):
            other.predict([cup], "a cup", predictor=predictor)  # type: ignore[call-overload]
    finally:
        hook.remove()
    np.testing.assert_array_equal(found.masks, expected.masks)
    assert found.masks.any() and encoded == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.process
def test_hundreds_of_boxes_in_flat_memory(tiny_file: Path) -> None:
    code = (
        f"""
checkpoint = {str(tiny_file)!r}
"""
        + """
import re
import numpy as np
from mobile_sam_plugin import build_sam_vit_t
from mobile_sam_plugin.mobile_sam import set_img_size
from mobile_sam_plugin.integrations.detectors import Detections
from mobile_sam_plugin.integrations.grounded_sam import GroundedMobileSam

def detect(image, prompts, *thresholds):
    boxes = np.random.default_rng(0).uniform(0, 1900, (count, 2)).repeat(2, axis=0).reshape(-1, 4)
    boxes[:, 2:] += 60
    return Detections(boxes, np.linspace(0.9, 0.5, count), ["dog"] * count)

sam = build_sam_vit_t(checkpoint)
set_img_size(sam, 256)
image = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
for count in (8, 120):
    objects = GroundedMobileSam(sam, detect).predict(image, "dog", nms_thresh=1.0)
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
    print(len(objects), int(peak) // 1024)"""
    )
    (few, before), (many, after) = (map(int, line.split()) for line in run_code(code).splitlines())
    assert (few, many) == (8, 120)
    # 120 masks are 458 MiB; three of each box, or in float32, would be a multiple.
    assert after - before < 500


def test_the_demo_with_one_import_line_changed(
    original: dict[str, str], authors_file: Path, cup: Pixels, tmp_path: Path
) -> None:
    """The calls of ``EfficientSAM/grounded_mobile_sam.py``, which annotates twice like this."""
    import torchvision
    from groundingdino.util.inference import Model

    # Upstream's own, as the demo has it.
    from segment_anything import SamPredictor

    # was: from MobileSAM.setup_mobile_sam import setup_model
    from mobile_sam_plugin.integrations.grounded_sam import setup_model

    grounding_dino_model = Model(
        model_config_path=original["config"],
        model_checkpoint_path=original["checkpoint"],
        device="cpu",
    )
    checkpoint = torch.load(authors_file)
    mobile_sam = setup_model()
    mobile_sam.load_state_dict(checkpoint, strict=True)
    mobile_sam.to(device="cpu")
    sam_predictor = SamPredictor(mobile_sam)

    cv2.imwrite(str(tmp_path / "cup.png"), cup)
    classes = ["dog"]
    image = cv2.imread(str(tmp_path / "cup.png"))
    assert image is not None
    detections = grounding_dino_model.predict_with_classes(
        image=image, classes=classes, box_threshold=0.25, text_threshold=0.0
    )
    detections = detections[np.array([i is not None for i in detections.class_id])]
    labels = [
        f"{classes[class_id]} {confidence:0.2f}" for _, _, confidence, class_id, _, _ in detections
    ]
    assert labels

    nms_idx = torchvision.ops.nms(
        torch.from_numpy(detections.xyxy), torch.from_numpy(detections.confidence), 0.8
    )
    kept = nms_idx.numpy().tolist()[:3]
    detections.xyxy = detections.xyxy[kept]
    detections.confidence = detections.confidence[kept]
    detections.class_id = detections.class_id[kept]

    def segment(sam_predictor: Any, image: Pixels, xyxy: NDArray[np.float32]) -> Any:
        sam_predictor.set_image(image)
        result_masks = []
        for box in xyxy:
            masks, scores, logits = sam_predictor.predict(box=box, multimask_output=True)
            index = np.argmax(scores)
            result_masks.append(masks[index])
        return np.array(result_masks)

    detections.mask = segment(
        sam_predictor=sam_predictor,
        image=cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
        xyxy=detections.xyxy,
    )
    annotated = supervision.MaskAnnotator().annotate(scene=image.copy(), detections=detections)
    annotated = supervision.BoxAnnotator().annotate(scene=annotated, detections=detections)
    annotated = supervision.LabelAnnotator().annotate(
        scene=annotated, detections=detections, labels=labels[: len(kept)]
    )
    assert annotated.shape == image.shape and (annotated != image).any()
