"""What the original MobileSAM computed, case by case, within the tolerances of its README."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything.utils.onnx import SamOnnxModel

from mobile_sam_plugin import MobileSam, SamPredictor

from ..conftest import REFERENCE

IMAGES = ("landscape", "portrait")
CASES = (
    "one_point",
    "one_point_single",
    "two_points",
    "box",
    "box_and_points",
    "mask_only",
    "mask_and_point",
)
GOLDEN = np.load(REFERENCE / "predictor_golden.npz")


@pytest.fixture(scope="module")
def predictors(reference_sam: MobileSam) -> dict[str, SamPredictor]:
    predictors = {}
    for image in IMAGES:
        predictors[image] = SamPredictor(reference_sam)
        predictors[image].set_image(Image.open(REFERENCE / f"{image}.png"))
    return predictors


def assert_close(actual: Any, name: str, tolerance: float) -> None:
    expected = GOLDEN[name]
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=name)


def assert_masks(actual: Any, name: str) -> None:
    shape = tuple(GOLDEN[f"{name}/masks_shape"])
    packed = GOLDEN[f"{name}/masks_packed"]
    expected = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)
    actual = np.asarray(actual)
    assert actual.shape == shape
    assert actual.dtype == bool
    assert (actual == expected).mean() >= 0.999


@pytest.mark.parametrize("image", IMAGES)
def test_embedding(predictors: dict[str, SamPredictor], image: str) -> None:
    embedding = predictors[image].get_image_embedding()
    assert embedding.shape == (1, 256, 64, 64)
    assert_close(embedding[:, ::8, ::2, ::2], f"{image}/embedding_subsample", 1e-4)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("case", CASES)
def test_predict(predictors: dict[str, SamPredictor], image: str, case: str) -> None:
    name = f"{image}/{case}"
    prefix = f"{name}/in_"
    prompt: dict[str, Any] = {
        key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)
    }
    prompt["multimask_output"] = bool(prompt["multimask_output"])
    if case.startswith("mask_"):
        prompt["mask_input"] = GOLDEN[f"{image}/mask_input"]
    masks, iou, low_res_logits = predictors[image].predict(**prompt)
    assert_masks(masks, name)
    assert_close(iou, f"{name}/iou", 1e-3)
    assert_close(low_res_logits[:, ::4, ::4], f"{name}/low_res_subsample", 1e-2)
    if f"{name}/logits_subsample" in GOLDEN:
        logits, _, _ = predictors[image].predict(**prompt, return_logits=True)
        assert_close(logits[:, ::7, ::7], f"{name}/logits_subsample", 1e-2)


@pytest.mark.parametrize("image", IMAGES)
def test_predict_torch_with_boxes(predictors: dict[str, SamPredictor], image: str) -> None:
    predictor, name = predictors[image], f"{image}/batched_boxes"
    boxes = predictor.transform.apply_boxes_torch(
        torch.from_numpy(GOLDEN[f"{name}/in_boxes"]), predictor.original_size
    )
    masks, iou, low_res_logits = predictor.predict_torch(
        None, None, boxes=boxes, multimask_output=True
    )
    assert_masks(masks, name)
    assert_close(iou, f"{name}/iou", 1e-3)
    assert_close(low_res_logits[:, :, ::8, ::8], f"{name}/low_res_subsample", 1e-2)


@pytest.mark.parametrize("image", IMAGES)
def test_sam_forward(
    reference_sam: MobileSam, predictors: dict[str, SamPredictor], image: str
) -> None:
    predictor = predictors[image]
    pixels: NDArray[np.uint8] = np.asarray(Image.open(REFERENCE / f"{image}.png"))
    height, width = pixels.shape[:2]
    resized = torch.from_numpy(predictor.transform.apply_image(pixels)).permute(2, 0, 1)
    record = {"image": resized, "original_size": (height, width)}
    boxes = torch.from_numpy(GOLDEN[f"{image}/batched_boxes/in_boxes"])
    point = torch.tensor([[[0.4 * width, 0.5 * height]]])
    outputs = reference_sam(
        [
            record | {"boxes": predictor.transform.apply_boxes_torch(boxes, (height, width))},
            record
            | {
                "point_coords": predictor.transform.apply_coords_torch(point, (height, width)),
                "point_labels": torch.ones(1, 1),
            },
        ],
        multimask_output=False,
    )
    for index, output in enumerate(outputs):
        assert_masks(output["masks"], f"{image}/forward/{index}")
        assert_close(output["iou_predictions"], f"{image}/forward/{index}/iou", 1e-3)


def test_onnx_decoder_wrapper(
    reference_sam: MobileSam, predictors: dict[str, SamPredictor]
) -> None:
    predictor = predictors["landscape"]
    height, width = predictor.original_size
    decoder = SamOnnxModel(reference_sam, return_single_mask=False)
    masks, iou, low_res_logits = decoder(
        image_embeddings=predictor.get_image_embedding(),
        point_coords=torch.from_numpy(GOLDEN["onnx_decoder/point_coords"]),
        point_labels=torch.tensor([[1.0, -1.0]]),
        mask_input=torch.zeros(1, 1, 256, 256),
        has_mask_input=torch.zeros(1),
        orig_im_size=torch.tensor([height, width], dtype=torch.float),
    )
    assert_close(iou, "onnx_decoder/iou", 1e-3)
    assert_close(low_res_logits[:, :, ::4, ::4], "onnx_decoder/low_res_subsample", 1e-2)
    assert_close(masks[:, :, ::4, ::4], "onnx_decoder/masks_subsample", 1e-2)
