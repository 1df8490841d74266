"""MobileSAM under the Auto classes of transformers, beside this package's predictor."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, SamProcessor, pipeline

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import MissingExtra, UserError
from mobile_sam_plugin.transformers import (
    MobileSamConfig,
    MobileSamModel,
    save_for_transformers,
    to_transformers,
)

from ..conftest import PHOTOGRAPHS

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint, as the command line converts it."""
    folder = tmp_path_factory.mktemp("converted") / "mobile-sam"
    assert main(["convert", "bundled", str(folder), "--for", "transformers"]) == 0
    return folder


@pytest.fixture(scope="module")
def small_folder(small_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for images of 224 x 224."""
    folder = tmp_path_factory.mktemp("small")
    save_for_transformers(small_sam, folder)
    return folder


@pytest.fixture(scope="module")
def small_model(small_folder: Path) -> MobileSamModel:
    model = AutoModel.from_pretrained(small_folder)
    assert type(model) is MobileSamModel and not model.training
    return model


def predict(model: Any, processor: Any, image: Pixels, **prompt: Any) -> tuple[Any, Any]:
    """Masks (prompts, 3, H, W) and scores (prompts, 3) of one image."""
    inputs = processor(Image.fromarray(image), return_tensors="pt", **prompt)
    with torch.no_grad():
        outputs = model(**inputs)
    masks = processor.image_processor.post_process_masks(
        outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    return masks[0].numpy(), outputs.iou_scores[0].numpy()


@pytest.mark.parametrize("name", ["coffee.png", "flower.jpg", "astronaut.png"])
def test_masks_are_those_of_the_predictor(
    converted: Path, bundled_sam: MobileSam, name: str
) -> None:
    model, processor = (
        AutoModel.from_pretrained(converted),
        AutoProcessor.from_pretrained(converted),
    )
    assert type(processor) is SamProcessor
    image = np.asarray(Image.open(PHOTOGRAPHS / name).convert("RGB"))
    height, width = image.shape[:2]
    points = [[0.5 * width, 0.45 * height], [0.1 * width, 0.9 * height]]
    box = [0.2 * width, 0.15 * height, 0.7 * width, 0.8 * height]
    inputs = processor(Image.fromarray(image), return_tensors="pt")
    embeddings = model.get_image_embeddings(inputs["pixel_values"])
    predictor = SamPredictor(bundled_sam)
    predictor.set_image(image)
    # The processor resizes by torchvision, the predictor by Pillow: some pixels differ by one step.
    torch.testing.assert_close(embeddings, predictor.features, rtol=0, atol=1e-2)
    for theirs, ours in (
        (
            {"input_points": [[points]], "input_labels": [[[1, 0]]]},
            {"point_coords": np.array(points), "point_labels": np.array([1, 0])},
        ),
        ({"input_boxes": [[box]]}, {"box": np.array(box)}),
        (
            {"input_points": [[points[:1]]], "input_labels": [[[1]]], "input_boxes": [[box]]},
            {
                "point_coords": np.array(points[:1]),
                "point_labels": np.array([1]),
                "box": np.array(box),
            },
        ),
    ):
        prompt = processor(Image.fromarray(image), return_tensors="pt", **theirs)
        prompt.pop("pixel_values")
        sizes = prompt.pop("original_sizes"), prompt.pop("reshaped_input_sizes")
        with torch.no_grad():
            outputs = model(image_embeddings=embeddings, **prompt)
        masks = processor.image_processor.post_process_masks(outputs.pred_masks, *sizes)[0][0]
        expected, scores, _ = predictor.predict(**ours)
        assert (masks.numpy() != expected).sum() <= 1e-4 * expected.sum()
        np.testing.assert_allclose(outputs.iou_scores[0, 0], scores, rtol=0, atol=1e-3)


def test_several_prompts_and_a_mask(
    small_model: MobileSamModel, small_folder: Path, small_sam: MobileSam, coffee: Pixels
) -> None:
    processor = AutoProcessor.from_pretrained(small_folder)
    predictor = SamPredictor(small_sam)
    predictor.set_image(coffee)
    boxes = [[170.0, 10, 430, 300], [30, 200, 300, 390]]
    masks, scores = predict(small_model, processor, coffee, input_boxes=[boxes])
    tensor = predictor.transform.apply_boxes_torch(torch.tensor(boxes), coffee.shape[:2])
    expected = predictor.predict_torch(None, None, tensor)
    assert (masks != expected[0].numpy()).sum() <= 1e-3 * masks.sum()
    np.testing.assert_allclose(scores, expected[1], rtol=0, atol=1e-2)
    low_res_logits = expected[2][:1, :1]
    with torch.no_grad():
        outputs = small_model(
            image_embeddings=predictor.features,
            input_boxes=tensor[None, :1].float(),
            input_masks=low_res_logits,
            multimask_output=False,
        )
    _, _, refined = predictor.predict_torch(None, None, tensor[:1], low_res_logits, False)
    torch.testing.assert_close(outputs.pred_masks[0], refined, rtol=0, atol=1e-3)


def test_pipeline_finds_what_the_generator_finds(
    small_folder: Path, small_sam: MobileSam, coffee: Pixels, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {
        "pred_iou_thresh": 0.2,
        "stability_score_thresh": 0.5,
        "stability_score_offset": 0.3,
    }
    generate = pipeline("mask-generation", model=str(small_folder))
    found = generate(Image.fromarray(coffee), points_per_crop=6, points_per_batch=8, **options)
    records = SamAutomaticMaskGenerator(small_sam, points_per_side=6, **options).generate(coffee)
    assert len(found["masks"]) == len(records) >= 5
    for mask, score, record in zip(found["masks"], found["scores"], records, strict=True):
        expected = record["segmentation"]
        assert (np.asarray(mask) != expected).sum() <= 1e-2 * expected.sum()
        assert float(score) == pytest.approx(record["predicted_iou"], abs=1e-2)
    assert "not supported" not in caplog.text


def test_saved_and_loaded_again_it_is_the_same(
    small_model: MobileSamModel, small_folder: Path, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(small_folder)
    assert type(config) is MobileSamConfig
    assert config.vision_config.image_size == config.prompt_encoder_config.image_size == 224
    assert MobileSamConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    small_model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.state_dict().keys() == small_model.state_dict().keys()
    for name, tensor in small_model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    pixels = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(
        again.get_image_embeddings(pixels), small_model.get_image_embeddings(pixels)
    )


def test_trains(small_sam: MobileSam) -> None:
    model = to_transformers(small_sam).train()
    boxes = torch.tensor([[[30.0, 30, 150, 120]]])
    model(pixel_values=torch.randn(1, 3, 224, 224), input_boxes=boxes).pred_masks.sum().backward()
    for name, parameter in model.named_parameters():
        # A box is no point, has no label, and comes without a mask.
        if not name.startswith("prompt_encoder.") and "iou_prediction" not in name:
            assert parameter.grad is not None or "positional" in name, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(
    small_sam: MobileSam, small_model: MobileSamModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_for_transformers(small_sam, tmp_path, dtype)
    model = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert model.dtype == dtype
    prompt = {"input_boxes": torch.tensor([[[30.0, 30, 150, 120]]])}
    pixels = torch.randn(1, 3, 224, 224, generator=torch.manual_seed(0))
    with torch.no_grad():
        ours, expected = (each(pixels, **prompt).pred_masks > 0 for each in (model, small_model))
    assert (ours != expected).float().mean() < 0.02


@pytest.mark.process
def test_transformers_is_imported_when_it_is_asked_for(small_folder: Path) -> None:
    code = """
import sys
import mobile_sam_plugin, mobile_sam_plugin.cli
mobile_sam_plugin.SamPredictor, mobile_sam_plugin.build_sam_vit_t
assert "transformers" not in sys.modules
from transformers import AutoModel
try:
    AutoModel.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
import mobile_sam_plugin.transformers
print(type(AutoModel.from_pretrained(sys.argv[1])).__name__)
"""
    command = [sys.executable, "-c", code, str(small_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model type `mobile_sam_plugin`" in done.stdout  # which says what to import
    assert done.stdout.endswith("MobileSamModel\n")


def test_transformers_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "mobile_sam_plugin.transformers")
    with pytest.raises(MissingExtra, match=r"mobile-sam-plugin\[transformers\]"):
        import mobile_sam_plugin.transformers  # noqa: F401


@pytest.mark.parametrize("what", ["missing", "unexpected"])
def test_weights_that_do_not_fit_are_refused(
    small_model: MobileSamModel, tmp_path: Path, what: str
) -> None:
    small_model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if what == "missing":
        del tensors["mask_decoder.iou_token.weight"]
    else:
        tensors["mask_decoder.hq_token.weight"] = torch.zeros(1, 256)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"1 {what} tensors, 'mask_decoder"):
        AutoModel.from_pretrained(tmp_path)


def test_pickles_are_not_read(small_model: MobileSamModel, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(small_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        AutoModel.from_pretrained(tmp_path)


def test_only_tiny_vit_is_converted(
    tiny_sam: MobileSam, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="test_efficientnet"):
        to_transformers(tiny_sam)
    out = tmp_path / "folder"
    assert main(["convert", str(tiny_file), str(out), "--for", "transformers"]) == 2
    assert "test_efficientnet" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_a_folder(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {path.name for path in converted.iterdir()}
    assert {"config.json", "model.safetensors"} < names
    assert not any(name.endswith((".bin", ".pt")) or name.startswith(".") for name in names)
    tensors = load_file(converted / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}
    before = (converted / "model.safetensors").stat().st_mtime_ns
    assert main(["convert", "bundled", str(converted), "--for", "transformers"]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert (converted / "model.safetensors").stat().st_mtime_ns == before
    file = str(tmp_path / "mobile_sam.pt")
    assert main(["convert", "bundled", file, "--for", "transformers"]) == 2
    assert "name a folder" in capsys.readouterr().err
    assert main(["convert", "bundled", str(converted), "--overwrite"]) == 2
    assert "is a folder" in capsys.readouterr().err
