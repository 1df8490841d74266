"""Copies of segment_anything for SAM-HQ, whose image encoders return pairs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from numpy.typing import NDArray
from torch import nn

from mobile_sam_plugin import (
    SamAutomaticMaskGenerator,
    SamPredictor,
    build_sam_vit_t,
    register,
    replace,
    use_fast_decoder,
)
from mobile_sam_plugin.mobile_sam import set_img_size

from ..records import assert_same_records

CLICK = np.array([[30, 20]]), np.array([1])
EVERYTHING: dict[str, Any] = {
    "points_per_side": 2,
    "pred_iou_thresh": -10.0,
    "stability_score_thresh": 0.0,
}


@pytest.fixture(scope="module")
def hq() -> ModuleType:
    """The package of SAM-HQ's authors."""
    module: ModuleType = pytest.importorskip("segment_anything_hq")
    return module


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def build_hq(hq: ModuleType, decoder: type[nn.Module], **options: Any) -> Any:
    """A SAM-HQ with weights drawn at random, for images of 128 x 128."""
    torch.manual_seed(0)
    parts = hq.modeling
    sam = parts.Sam(
        parts.ImageEncoderViT(
            img_size=128, embed_dim=32, depth=1, num_heads=2, out_chans=64, window_size=0
        ),
        parts.PromptEncoder(64, (8, 8), (128, 128), 16),
        decoder(transformer_dim=64, transformer=parts.TwoWayTransformer(2, 64, 8, 128), **options),
    )
    return sam.eval()


def predictions(predictor: Any, image: NDArray[np.uint8]) -> list[NDArray[Any]]:
    predictor.set_image(image)
    return list(predictor.predict(*CLICK, return_logits=True))


def assert_equal(found: list[NDArray[Any]], expected: list[NDArray[Any]]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)


def test_our_classes_on_sam_hq(hq: ModuleType, image: NDArray[np.uint8]) -> None:
    for sam in (
        build_hq(hq, hq.modeling.MaskDecoderHQ, vit_dim=32),
        build_hq(hq, hq.modeling.MaskDecoder),
    ):
        assert_equal(
            predictions(SamPredictor(sam), image), predictions(hq.SamPredictor(sam), image)
        )
        expected = hq.SamAutomaticMaskGenerator(sam, **EVERYTHING).generate(image)
        assert len(expected) > 0
        assert_same_records(SamAutomaticMaskGenerator(sam, **EVERYTHING).generate(image), expected)


def test_several_images_at_once(hq: ModuleType, image: NDArray[np.uint8]) -> None:
    predictor = SamPredictor(build_hq(hq, hq.modeling.MaskDecoderHQ, vit_dim=32))
    images = [image, image[:, ::-1].copy()]
    for one, each in zip(images, predictor.set_image_batch(images), strict=True):
        found = list(each.predict(*CLICK, return_logits=True))
        assert_equal(found, predictions(hq.SamPredictor(predictor.model), one))


def test_embeddings_on_disk(hq: ModuleType, image: NDArray[np.uint8], tmp_path: Path) -> None:
    predictor = SamPredictor(build_hq(hq, hq.modeling.MaskDecoderHQ, vit_dim=32))
    expected = predictions(predictor, image)
    predictor.save_embedding(tmp_path / "image.safetensors")
    found = SamPredictor(predictor.model)
    found.load_embedding(tmp_path / "image.safetensors", image)
    assert found.interm_features is not None
    assert_equal(list(found.predict(*CLICK, return_logits=True)), expected)


def test_use_fast_decoder_on_sam_hq(hq: ModuleType, image: NDArray[np.uint8]) -> None:
    with pytest.raises(TypeError, match="MaskDecoderHQ is not segment-anything's"):
        use_fast_decoder(build_hq(hq, hq.modeling.MaskDecoderHQ, vit_dim=32))
    sam = build_hq(hq, hq.modeling.MaskDecoder)
    expected = predictions(hq.SamPredictor(sam), image)
    assert_equal(predictions(hq.SamPredictor(use_fast_decoder(sam)), image), expected)


def test_vit_t_registered_in_a_copy(hq: ModuleType, image: NDArray[np.uint8]) -> None:
    register(hq)
    with replace("vit_h", into=hq, checkpoint="bundled"):
        models = hq.sam_model_registry["vit_t"]("bundled"), hq.sam_model_registry["vit_h"]("h.pth")
    plain = build_sam_vit_t("bundled")
    for sam in (plain, *models):
        set_img_size(sam, 224)
    expected = predictions(segment_anything.SamPredictor(plain), image)
    records = segment_anything.SamAutomaticMaskGenerator(plain, **EVERYTHING).generate(image)
    batch = [{"image": torch.zeros(3, 168, 224), "original_size": (48, 64)}]
    masks = plain(batch, multimask_output=True)[0]["masks"]
    for sam in models:
        assert_equal(predictions(hq.SamPredictor(sam), image), expected)
        assert_equal(predictions(SamPredictor(sam), image), expected)
        found = hq.SamAutomaticMaskGenerator(sam, **EVERYTHING).generate(image)
        assert_same_records(found, records)
        assert torch.equal(sam(batch, multimask_output=True)[0]["masks"], masks)
        assert torch.equal(hq.modeling.Sam.forward(sam, batch, True)[0]["masks"], masks)
    assert isinstance(plain.image_encoder(torch.zeros(1, 3, 64, 64)), torch.Tensor)


SCRIPT = """
import json, numpy as np, torch
import mobile_sam_plugin, segment_anything
from mobile_sam_plugin.mobile_sam import set_img_size
from mobile_sam_plugin.model import MaskDecoder
from segment_anything import SamPredictor, sam_model_registry

assert "hq_token_only" in segment_anything.SamPredictor.predict.__code__.co_varnames
image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
options = {"points_per_side": 2, "pred_iou_thresh": -10.0, "stability_score_thresh": 0.0}
with mobile_sam_plugin.replace("vit_h", checkpoint="bundled"):
    models = [sam_model_registry["vit_t"]("bundled"), sam_model_registry["vit_h"]("h.pth")]
answers = []
for sam in models:
    set_img_size(sam, 224)
    for library in (segment_anything, mobile_sam_plugin):
        predictor = library.SamPredictor(sam)
        predictor.set_image(image)
        masks, scores, _ = predictor.predict(np.array([[30, 20]]), np.array([1]))
        records = library.SamAutomaticMaskGenerator(sam, **options).generate(image)
        areas = [record["area"] for record in records]
        answers.append([masks.sum(axis=(1, 2)).tolist(), scores.round(4).tolist(), areas])
batch = [{"image": torch.zeros(3, 168, 224), "original_size": (48, 64)}]
assert sam(batch, multimask_output=True)[0]["masks"].shape == (1, 3, 48, 64)
sparse, dense = sam.prompt_encoder(None, None, None)
embedding, positions = torch.zeros(1, 256, 14, 14), sam.prompt_encoder.get_dense_pe()
assert sam.mask_decoder.train()(embedding, positions, sparse, dense, True)[0].requires_grad
print(json.dumps(answers))
"""


@pytest.mark.process
def test_a_copy_installed_as_segment_anything(hq: ModuleType, tmp_path: Path) -> None:
    package = Path(hq.__file__ or "").parent
    shutil.copytree(package, tmp_path / "segment_anything")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == 4 and answers[0][2]
    assert all(answer == answers[0] for answer in answers)
