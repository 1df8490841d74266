"""The projects built on SAM that exist today, and exactly the calls that each of them makes."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import segment_anything
import torch
from numpy.typing import NDArray

import mobile_sam_plugin
from mobile_sam_plugin.checkpoint import BUNDLED_FILE

Pixels = NDArray[np.uint8]
WEAK: dict[str, Any] = {
    "pred_iou_thresh": 0.2,
    "stability_score_thresh": 0.3,
    "stability_score_offset": 0.3,
}


def test_any_sam_script(coffee: Pixels) -> None:
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

    sam = sam_model_registry["vit_t"](checkpoint=str(BUNDLED_FILE))
    sam.to(device="cpu")
    predictor = SamPredictor(sam)
    predictor.set_image(coffee)
    masks, scores, logits = predictor.predict(
        point_coords=np.array([[300, 200]]),
        point_labels=np.array([1]),
        multimask_output=True,
    )
    assert masks.shape == (3, *coffee.shape[:2])
    masks, _, _ = predictor.predict(
        point_coords=np.array([[300, 200], [20, 20]]),
        point_labels=np.array([1, 0]),
        mask_input=logits[np.argmax(scores), :, :][None, :, :],
        multimask_output=False,
    )
    assert masks.shape == (1, *coffee.shape[:2])
    args: dict[str, Any] = {"points_per_side": 3, **WEAK}
    assert SamAutomaticMaskGenerator(sam, **args).generate(coffee)


def test_scripts_amg(coffee: Pixels) -> None:
    """``scripts/amg.py``: unset options are left out, RLE or masks out, fields to a table."""
    sam = segment_anything.sam_model_registry["vit_t"](checkpoint=str(BUNDLED_FILE))
    _ = sam.to(device="cpu")
    amg_kwargs: dict[str, Any] = {
        "points_per_side": 3,
        "points_per_batch": 5,
        "min_mask_region_area": 50,
        **WEAK,
    }
    for output_mode in ("coco_rle", "binary_mask"):
        generator = mobile_sam_plugin.SamAutomaticMaskGenerator(
            sam, output_mode=output_mode, **amg_kwargs
        )
        masks = generator.generate(coffee)
        assert masks
        for mask_data in masks:
            row = [
                mask_data["area"],
                *mask_data["bbox"],
                *mask_data["point_coords"][0],
                mask_data["predicted_iou"],
                mask_data["stability_score"],
                *mask_data["crop_box"],
            ]
            assert len(row) == 13 and np.isfinite(row).all()


def test_scripts_export_onnx_model(bundled_sam: segment_anything.modeling.Sam) -> None:
    """``scripts/export_onnx_model.py``, up to the call of the exporter: it traces this forward."""
    from segment_anything.utils.onnx import SamOnnxModel

    onnx_model = SamOnnxModel(
        model=bundled_sam,
        return_single_mask=True,
        use_stability_score=True,
        return_extra_metrics=True,
    )
    embed_dim = bundled_sam.prompt_encoder.embed_dim
    embed_size = bundled_sam.prompt_encoder.image_embedding_size
    mask_input_size = [4 * x for x in embed_size]
    dummy_inputs = {
        "image_embeddings": torch.randn(1, embed_dim, *embed_size, dtype=torch.float),
        "point_coords": torch.randint(low=0, high=1024, size=(1, 5, 2), dtype=torch.float),
        "point_labels": torch.randint(low=0, high=4, size=(1, 5), dtype=torch.float),
        "mask_input": torch.randn(1, 1, *mask_input_size, dtype=torch.float),
        "has_mask_input": torch.tensor([1], dtype=torch.float),
        "orig_im_size": torch.tensor([1500, 2250], dtype=torch.float),
    }
    outputs = onnx_model(**dummy_inputs)
    assert [tuple(output.shape) for output in outputs] == [
        (1, 1, 1500, 2250),
        (1, 1),
        (1, 1),
        (1, 1),
        (1, 1, 256, 256),
    ]
    with torch.no_grad():
        traced = torch.jit.trace(onnx_model, example_kwarg_inputs=dummy_inputs, check_trace=False)
    for expected, actual in zip(outputs, traced(**dummy_inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_grounded_sam(authors_file: Path, coffee: Pixels) -> None:
    """``grounded_mobile_sam.py`` builds first and loads the authors' file itself, strictly."""
    mobile_sam = mobile_sam_plugin.build_sam_vit_t(None)
    mobile_sam.load_state_dict(torch.load(authors_file), strict=True)
    mobile_sam.to(device="cpu")
    mobile_sam.eval()
    sam_predictor = mobile_sam_plugin.SamPredictor(mobile_sam)
    sam_predictor.set_image(coffee)
    xyxy = np.array([[170.0, 70.0, 500.0, 330.0], [10.0, 10.0, 90.0, 120.0]])
    result_masks = []
    for box in xyxy:
        masks, scores, logits = sam_predictor.predict(box=box, multimask_output=True)
        result_masks.append(masks[np.argmax(scores)])
    assert np.array(result_masks).shape == (2, *coffee.shape[:2])

    transformed_boxes = sam_predictor.transform.apply_boxes_torch(
        torch.tensor(xyxy), coffee.shape[:2]
    )
    batched_masks, _, _ = sam_predictor.predict_torch(
        point_coords=None,
        point_labels=None,
        boxes=transformed_boxes.to("cpu"),
        multimask_output=False,
    )
    assert batched_masks.shape == (2, 1, *coffee.shape[:2])


def test_inpaint_anything(coffee: Pixels) -> None:
    """``sam_segment.predict_masks_with_sam``, to which ``model_type`` may be ``vit_t``."""
    from segment_anything import SamPredictor, sam_model_registry

    def predict_masks_with_sam(
        img: Pixels,
        point_coords: list[list[float]],
        point_labels: list[int],
        model_type: str,
        ckpt_p: str,
        device: str = "cuda",
    ) -> Any:
        sam = sam_model_registry[model_type](checkpoint=ckpt_p)
        sam.to(device=device)
        predictor = SamPredictor(sam)
        predictor.set_image(img)
        return predictor.predict(
            point_coords=np.array(point_coords),
            point_labels=np.array(point_labels),
            multimask_output=True,
        )

    masks, scores, logits = predict_masks_with_sam(
        coffee, [[300.0, 200.0]], [1], model_type="vit_t", ckpt_p=str(BUNDLED_FILE), device="cpu"
    )
    assert masks.astype(np.uint8).max() == 1
    assert scores.shape == (3,) and logits.shape == (3, 256, 256)


def test_track_anything(coffee: Pixels) -> None:
    """``BaseSegmenter`` asserts the model type, so only ``replace`` gets in."""
    from segment_anything import SamPredictor, sam_model_registry

    class BaseSegmenter:
        def __init__(self, SAM_checkpoint: str, model_type: str, device: str = "cuda:0") -> None:
            assert model_type in ["vit_b", "vit_l", "vit_h"]
            self.model = sam_model_registry[model_type](checkpoint=SAM_checkpoint)
            self.model.to(device=device)
            self.predictor = SamPredictor(self.model)
            self.embedded = False

        def set_image(self, image: Pixels) -> None:
            self.orignal_image = image
            assert not self.embedded
            self.predictor.set_image(image)
            self.embedded = True

        def predict(self, prompts: dict[str, Any], mode: str, multimask: bool = True) -> Any:
            assert self.embedded
            points = {
                "point_coords": prompts.get("point_coords"),
                "point_labels": prompts.get("point_labels"),
            }
            if mode == "point":
                return self.predictor.predict(**points, multimask_output=multimask)
            mask = {"mask_input": prompts["mask_input"]}
            if mode == "mask":
                return self.predictor.predict(**mask, multimask_output=multimask)
            return self.predictor.predict(**points, **mask, multimask_output=multimask)

    with mobile_sam_plugin.replace("vit_h", checkpoint="bundled"):
        segmenter = BaseSegmenter("checkpoints/sam_vit_h_4b8939.pth", "vit_h", "cpu")
    assert isinstance(segmenter.model, mobile_sam_plugin.MobileSam)
    segmenter.set_image(coffee)
    prompts: dict[str, Any] = {
        "point_coords": np.array([[300, 200], [350, 250]]),
        "point_labels": np.array([1, 1]),
    }
    masks, scores, logits = segmenter.predict(prompts, "point")
    prompts["mask_input"] = logits[np.argmax(scores)][None, :, :]
    for mode in ("mask", "both"):
        refined, _, _ = segmenter.predict(prompts, mode)
        assert refined.shape == masks.shape == (3, *coffee.shape[:2])


def test_segment_and_track_anything(vendored: ModuleType, coffee: Pixels) -> None:
    """``Segmentor`` keeps the generator and clicks through its predictor."""
    mobile_sam_plugin.register(vendored)

    class Segmentor:
        def __init__(self, sam_args: dict[str, Any]) -> None:
            self.device = sam_args["gpu_id"]
            self.sam = vendored.sam_model_registry[sam_args["model_type"]](
                checkpoint=sam_args["sam_checkpoint"]
            )
            self.sam.to(device=self.device)
            self.everything_generator = vendored.SamAutomaticMaskGenerator(
                model=self.sam, **sam_args["generator_args"]
            )
            self.interactive_predictor = self.everything_generator.predictor
            self.have_embedded = False

        def set_image(self, image: Pixels) -> None:
            if not self.have_embedded:
                self.interactive_predictor.set_image(image)
                self.have_embedded = True

        def interactive_predict(self, prompts: dict[str, Any], multimask: bool = True) -> Any:
            return self.interactive_predictor.predict(
                point_coords=prompts["point_coords"],
                point_labels=prompts["point_modes"],
                multimask_output=multimask,
            )

        def segment_with_box(self, origin_frame: Pixels, bbox: list[list[int]]) -> Any:
            self.set_image(origin_frame)
            return self.interactive_predictor.predict(
                point_coords=None,
                point_labels=None,
                box=np.array([bbox[0][0], bbox[0][1], bbox[1][0], bbox[1][1]]),
                multimask_output=True,
            )

    segmentor = Segmentor(
        {
            "sam_checkpoint": str(BUNDLED_FILE),
            "model_type": "vit_t",
            "generator_args": {"points_per_side": 3, "min_mask_region_area": 200, **WEAK},
            "gpu_id": "cpu",
        }
    )
    assert segmentor.everything_generator.generate(coffee)
    segmentor.set_image(coffee)
    click = {"point_coords": np.array([[300, 200]]), "point_modes": np.array([1])}
    masks, scores, _ = segmentor.interactive_predict(click)
    assert masks.shape == (3, *coffee.shape[:2]) and scores.shape == (3,)
    masks, _, _ = segmentor.segment_with_box(coffee, [[170, 70], [500, 330]])
    assert masks.shape == (3, *coffee.shape[:2])
