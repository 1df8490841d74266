"""The segmenter classes of Track-Anything and Segment-and-Track-Anything."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mobile_sam_plugin import DEFAULT_CHECKPOINT, MobileSam, SamPredictor, build_sam_vit_t
from mobile_sam_plugin.checkpoint import BUNDLED_FILE
from mobile_sam_plugin.integrations.segmenters import BaseSegmenter, Segmentor

from ..hub import Client, Hub

Pixels = NDArray[np.uint8]


def test_track_anything_on_base_segmenter(tiny_file: Path, coffee: Pixels) -> None:
    """What ``SamControler`` of Track-Anything calls, as its application does."""
    segmenter = BaseSegmenter(str(tiny_file), "vit_t", "cpu")
    points, labels = np.array([[300, 130], [300, 180]]), np.array([1, 1])
    with pytest.raises(RuntimeError, match="set"):
        segmenter.predict({"point_coords": points, "point_labels": labels}, "point")
    segmenter.reset_image()
    segmenter.set_image(coffee)
    assert segmenter.embedded and segmenter.orignal_image is coffee
    with pytest.warns(UserWarning, match="call reset_image first"):
        segmenter.set_image(coffee)

    predictor = SamPredictor(build_sam_vit_t(tiny_file))
    predictor.set_image(coffee)
    prompts: dict[str, Any] = {"point_coords": points, "point_labels": labels}
    masks, scores, logits = segmenter.predict(prompts, "point", True)
    assert masks.shape == (3, 400, 600) and logits.shape == (3, 256, 256)
    np.testing.assert_array_equal(masks, predictor.predict(points, labels)[0])
    assert len(segmenter.predict(prompts, "point", multimask=False)[0]) == 1

    prompts["mask_input"] = logits[np.argmax(scores), :, :][None, :, :]
    both = segmenter.predict(prompts, "both", True)
    expected = predictor.predict(points, labels, mask_input=prompts["mask_input"])
    for found, value in zip(both, expected, strict=True):
        np.testing.assert_array_equal(found, value)
    only = segmenter.predict({"mask_input": prompts["mask_input"]}, "mask")
    np.testing.assert_array_equal(only[0], predictor.predict(mask_input=prompts["mask_input"])[0])
    with pytest.raises(ValueError, match="one of point, mask, both, not 'box'"):
        segmenter.predict(prompts, "box")
    with pytest.raises(KeyError, match="mask_input"):
        segmenter.predict({}, "mask")
    segmenter.reset_image()
    assert not segmenter.embedded


def build_vit_b() -> tuple[bool, float]:
    """As their applications do by default; the weight tells the checkpoint."""
    segmenter = BaseSegmenter("sam_vit_b_01ec64.pth", "vit_b", "cpu")
    return isinstance(segmenter.model, MobileSam), float(next(segmenter.model.parameters()).sum())


@pytest.mark.process
def test_other_types_are_mobile_sam_too(bundled_sam: MobileSam, tmp_path: Path) -> None:
    """The projects' own checkpoints are of other models, so that the default one stands in."""
    owner, name = DEFAULT_CHECKPOINT.removeprefix("hf://").split("/")[:2]
    with Hub() as hub:
        hub.commit(f"{owner}/{name}", {"model.safetensors": BUNDLED_FILE.read_bytes()})
        mobile, weight = Client(hub.url, tmp_path)(build_vit_b)
    assert mobile and weight == pytest.approx(float(next(bundled_sam.parameters()).sum()))
    with pytest.raises(ValueError, match="no model type 'vit_x'"):
        BaseSegmenter(None, "vit_x", "cpu")


def test_segment_and_track_anything_on_segmentor(tiny_file: Path, coffee: Pixels) -> None:
    """What ``SegTracker`` of Segment-and-Track-Anything calls, and its application."""
    segmentor = Segmentor(
        {
            "sam_checkpoint": str(tiny_file),
            "model_type": "vit_t",
            "generator_args": {
                "points_per_side": 2,
                "pred_iou_thresh": 0.0,
                "stability_score_thresh": 0.0,
            },
            "gpu_id": "cpu",
        }
    )
    assert segmentor.device == "cpu" and not segmentor.have_embedded
    coords, modes = np.array([[300, 130]]), np.array([1])
    mask = segmentor.segment_with_click(coffee, coords, modes)
    assert segmentor.have_embedded
    predictor = SamPredictor(build_sam_vit_t(tiny_file))
    predictor.set_image(coffee)
    _, scores, logits = predictor.predict(coords, modes)
    masks, scores, _ = predictor.predict(coords, modes, mask_input=logits[np.argmax(scores), None])
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, masks[np.argmax(scores)])

    box = np.array([170, 10, 430, 300])
    (boxed,) = segmentor.segment_with_box(coffee, [[170, 10], [430, 300]])
    _, scores, logits = predictor.predict(box=box)
    masks, scores, _ = predictor.predict(box=box, mask_input=logits[np.argmax(scores), None])
    np.testing.assert_array_equal(boxed, masks[np.argmax(scores)])

    only = segmentor.interactive_predict({"mask_prompt": logits[:1]}, "mask", multimask=False)
    np.testing.assert_array_equal(
        only[0], predictor.predict(mask_input=logits[:1], multimask_output=False)[0]
    )
    with pytest.raises(ValueError, match="one of point, mask, point_mask, not 'both'"):
        segmentor.interactive_predict({}, "both")

    # A new frame, as its application announces one.
    segmentor.have_embedded = False
    segmentor.interactive_predictor.features = None
    other = coffee[:, ::-1].copy()
    (mirrored,) = segmentor.segment_with_box(other, [[170, 10], [430, 300]], True)
    predictor.set_image(other)
    _, scores, logits = predictor.predict(box=box)
    masks, scores, _ = predictor.predict(box=box, mask_input=logits[np.argmax(scores), None])
    np.testing.assert_array_equal(mirrored, masks[np.argmax(scores)])
    annotations = segmentor.everything_generator.generate(other)
    assert annotations and annotations[0]["segmentation"].shape == (400, 600)
