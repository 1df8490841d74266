"""Detectors of transformers and the original Grounding DINO, with random weights."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_convert

from mobile_sam_plugin import SamPredictor
from mobile_sam_plugin.integrations.detectors import (
    GroundingDinoDetector,
    TransformersDetector,
    cxcywh_to_xyxy,
    match_phrases,
)
from mobile_sam_plugin.integrations.grounded_sam import GroundedMobileSam

from .models import PROMPTS
from .vocabularies import (
    clip_text_config,
    save_clip_tokenizer,
)

Pixels = NDArray[np.uint8]


def save_omdet_detector(folder: Path) -> None:
    save_clip_tokenizer(folder, max_length=77)  # its processor fills texts up to that
    torch.manual_seed(0)
    config = transformers.OmDetTurboConfig(
        text_config=transformers.CLIPTextConfig(projection_dim=16, **clip_text_config(77)),
        backbone_config=transformers.SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_indices=[2, 3, 4],
        ),
        apply_layernorm_after_vision_backbone=False,
        image_size=64,
        class_embed_dim=16,
        text_projection_in_dim=16,
        text_projection_out_dim=16,
        task_encoder_hidden_dim=16,
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 32, 64],
        encoder_dim_feedforward=16,
        encoder_attention_heads=2,
        vision_features_channels=[32, 32, 32],
        decoder_hidden_dim=32,
        decoder_num_heads=2,
        decoder_num_layers=1,
        decoder_dim_feedforward=16,
        num_queries=20,
    )
    transformers.OmDetTurboForObjectDetection(config).save_pretrained(folder)
    transformers.OmDetTurboProcessor(
        transformers.DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False),
        transformers.AutoTokenizer.from_pretrained(folder),
    ).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "box_threshold", "text_threshold"),
    [("GroundingDino", 0.3, 0.4), ("MMGroundingDino", 0.02, 0.04)],
)
def test_grounding_dino(
    folders: dict[str, Path], cup: Pixels, kind: str, box_threshold: float, text_threshold: float
) -> None:
    detector = TransformersDetector(folders[kind])
    found = detector(cup, PROMPTS, box_threshold, text_threshold)

    inputs = detector.processor(
        images=Image.fromarray(cup), text="a dog. the red cars.", return_tensors="pt"
    )
    with torch.no_grad():
        outputs = detector.model(**inputs)
    (expected,) = detector.processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=box_threshold, target_sizes=[cup.shape[:2]]
    )
    assert len(found.boxes) == len(expected["boxes"]) > 0
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=1e-3)
    np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-6)

    # The class is that of the best word, and the phrase holds no word of the other prompt.
    tokens = ["[CLS]", "a", "dog", ".", "the", "red", "car", "##s", ".", "[SEP]"]
    logits = outputs.logits[0].sigmoid()
    logits = logits[logits.max(dim=1).values > box_threshold][:, : len(tokens)]
    assert found.class_ids is not None
    for scores, phrase, class_id in zip(logits, found.phrases, found.class_ids, strict=True):
        best = int(scores.argmax())
        assert class_id == (0 if best <= 3 else 1)
        part = range(1, 3) if class_id == 0 else range(4, 8)
        words = " ".join(tokens[i] for i in part if scores[i] > text_threshold).replace(" ##", "")
        assert phrase == (words.replace("##", "") or PROMPTS[class_id])
    assert {*found.class_ids.tolist()} == {0, 1}


@pytest.mark.parametrize("kind", ["Owlv2", "OwlViT"])
def test_owl(folders: dict[str, Path], coffee: Pixels, kind: str) -> None:
    detector = TransformersDetector(folders[kind])
    prompts = ["a dog", "red", "a car"]
    found = detector(coffee, prompts, 0.0, 0.25)
    inputs = detector.processor(images=Image.fromarray(coffee), text=[prompts], return_tensors="pt")
    with torch.no_grad():
        outputs = detector.model(**inputs)
    best = outputs.logits[0].max(dim=1)
    assert len(found.boxes) == 16
    np.testing.assert_allclose(found.scores, best.values.sigmoid(), atol=1e-6)
    np.testing.assert_array_equal(found.class_ids, best.indices)
    assert found.phrases == [prompts[i] for i in best.indices]
    height, width = coffee.shape[:2]
    # OWLv2 sees the image in the corner of a square, OWL-ViT stretched.
    scale = [max(height, width)] * 4 if kind == "Owlv2" else [width, height, width, height]
    expected = box_convert(outputs.pred_boxes[0], "cxcywh", "xyxy") * torch.tensor(scale)
    np.testing.assert_allclose(found.boxes, expected, atol=1e-2)


def test_omdet_turbo(tmp_path: Path, coffee: Pixels) -> None:
    save_omdet_detector(tmp_path)
    detector = TransformersDetector(tmp_path)
    prompts = ["a dog", "red"]
    found = detector(coffee, prompts, 0.0, 0.25)
    inputs = detector.processor(images=Image.fromarray(coffee), text=[prompts], return_tensors="pt")
    with torch.no_grad():
        scores = detector.model(**inputs).decoder_class_logits[0].sigmoid()
    assert found.scores.max() == pytest.approx(scores.max().item(), abs=1e-6)
    assert found.class_ids is not None
    assert found.phrases == [prompts[i] for i in found.class_ids]
    assert found.class_ids[found.scores.argmax()] == scores.max(dim=0).values.argmax()
    assert len(detector(coffee, prompts, 0.99, 0.25).boxes) == 0


@pytest.mark.parametrize("kind", ["GroundingDino", "Owlv2", "OmDetTurbo"])
def test_detectors_in_half_precision(
    folders: dict[str, Path], cup: Pixels, tmp_path: Path, kind: str
) -> None:
    """As they are saved by those who save space."""
    if kind == "OmDetTurbo":
        save_omdet_detector(tmp_path)
    else:
        shutil.copytree(folders[kind], tmp_path, dirs_exist_ok=True)
    whole = TransformersDetector(tmp_path)
    expected = whole(cup, PROMPTS, 0.0, 0.25)
    whole.model.half().save_pretrained(tmp_path)
    half = TransformersDetector(tmp_path)
    assert half.model.dtype == torch.float16
    found = half(cup, PROMPTS, 0.0, 0.25)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.scores.max() == pytest.approx(expected.scores.max(), abs=0.01)


def test_prompts_that_the_model_would_cut_off(folders: dict[str, Path], cup: Pixels) -> None:
    grounding_dino = TransformersDetector(folders["GroundingDino"])
    many = [f"dog {'a ' * number}" for number in range(1, 22)]
    with pytest.raises(ValueError, match=r"has 2\d\d tokens, the model reads only 256"):
        grounding_dino(cup, many, 0.3, 0.3)
    owl = TransformersDetector(folders["Owlv2"])
    with pytest.raises(ValueError, match=r"'a long red caravan' has .* reads only 16"):
        owl(cup, ["a dog", "a long red caravan"], 0.3, 0.3)


def test_models_that_cannot_be_loaded(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        TransformersDetector(tmp_path / "missing")
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bert.*AutoModelForZeroShotObjectDetection"):
        TransformersDetector(tmp_path / "bert")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in folders["OwlViT"].iterdir():
        content = path.read_bytes()
        (damaged / path.name).write_bytes(content[:-100] if "safetensors" in path.name else content)
    with pytest.raises(ValueError, match="damaged"):
        TransformersDetector(damaged)


def test_transformers_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "mobile-sam-plugin\[grounded\]"'):
        TransformersDetector()


def test_full_stops_in_prompts_do_not_shift_the_classes(
    folders: dict[str, Path], cup: Pixels
) -> None:
    """Grounding DINO takes them, and question marks, for the ends of phrases."""
    detector = TransformersDetector(folders["GroundingDino"])
    plain = detector(cup, ["a red dog", "the car"], 0.3, 0.4)
    stopped = detector(cup, ["a red? dog", "the. car"], 0.3, 0.4)
    assert plain.class_ids is not None and {*plain.class_ids.tolist()} == {0, 1}
    np.testing.assert_array_equal(stopped.class_ids, plain.class_ids)
    np.testing.assert_allclose(stopped.scores, plain.scores)
    assert [re.sub("[?.]", "", phrase) for phrase in stopped.phrases] == plain.phrases


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("a dog", 0),
        ("Dog", 0),
        ("hot dog", 2),
        ("hot", 2),
        ("the red car", 1),
        ("car red dog", 1),  # two of its words are of the red car
        ("##cycle", 3),
        ("t - shirt", 4),
        ("tree", -1),
        ("", -1),
        ("##", -1),
    ],
)
def test_match_phrases(phrase: str, expected: int) -> None:
    classes = ["dog", "red car", "hot dog", "Motorcycle", "t-shirt"]
    assert match_phrases([phrase], classes).tolist() == [expected]


@given(
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), max_size=5),
    st.integers(1, 10_000),
    st.integers(1, 10_000),
)
@settings(deadline=None)
def test_cxcywh_to_xyxy(boxes: list[tuple[float, ...]], height: int, width: int) -> None:
    normalized = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    pixels = cxcywh_to_xyxy(normalized, (height, width))
    assert pixels.shape == normalized.shape
    for (cx, cy, w, h), (x0, y0, x1, y1) in zip(normalized.tolist(), pixels.tolist(), strict=True):
        assert (x0 + x1) / 2 == pytest.approx(cx * width, abs=1e-6)
        assert (y0 + y1) / 2 == pytest.approx(cy * height, abs=1e-6)
        assert x1 - x0 == pytest.approx(w * width, abs=1e-6)
        assert y1 - y0 == pytest.approx(h * height, abs=1e-6)
    size = torch.tensor([width, height, width, height])
    torch.testing.assert_close(box_convert(pixels / size, "xyxy", "cxcywh"), normalized)


@given(st.tuples(*[st.floats(0, 1, width=32)] * 4), st.integers(1, 5000), st.integers(1, 5000))
@settings(deadline=None)
def test_boxes_inside_stay_inside(corners: tuple[float, ...], height: int, width: int) -> None:
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    box = box_convert(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float64), "xyxy", "cxcywh")
    (pixels,) = cxcywh_to_xyxy(box, (height, width)).tolist()
    expected = [x0 * width, y0 * height, x1 * width, y1 * height]
    assert pixels == pytest.approx(expected, abs=1e-6)


def test_original_detector(original: dict[str, str], predictor: SamPredictor, cup: Pixels) -> None:
    from groundingdino.util.inference import Model

    model = Model(original["config"], original["checkpoint"], device="cpu")
    grounded = GroundedMobileSam(predictor, GroundingDinoDetector(model))
    expected, phrases = model.predict_with_caption(
        cup[..., ::-1].copy(), "a dog. the red cars.", box_threshold=0.3, text_threshold=0.0
    )
    for _ in range(2):
        objects = grounded.predict(cup, PROMPTS, 0.3, 0.0, 1.0)
        assert len(objects) == len(expected) > 0
        order = np.argsort(-expected.confidence, kind="stable")
        np.testing.assert_allclose(objects.scores, expected.confidence[order])
        assert sorted(objects.labels) == sorted(phrases)
        assert objects.class_ids is not None
        for label, class_id in zip(objects.labels, objects.class_ids, strict=True):
            assert class_id == ([*PROMPTS, ""].index(label) if label else -1)
    with pytest.raises(ValueError, match="the model reads only 256"):
        grounded.predict(cup, [f"dog {'a ' * number}" for number in range(1, 22)])
