"""Grounded-SAM: detectors of transformers and the original one, with random weights, on MobileSAM.

Their boxes mean nothing; what is tested is what becomes of them.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import supervision
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_convert, box_iou

from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.detectors import (
    Detections,
    Detector,
    GroundingDinoDetector,
    TransformersDetector,
    cxcywh_to_xyxy,
    match_phrases,
)
from mobile_sam_plugin.integrations.grounded_sam import GroundedMobileSam
from mobile_sam_plugin.integrations.texts import split_prompts

from .vocabularies import (
    BERT_VOCABULARY_SIZE,
    SMALL_LAYER,
    clip_text_config,
    save_bert_tokenizer,
    save_clip_tokenizer,
)

Pixels = NDArray[np.uint8]
PROMPTS = ["a dog", "the red cars"]


def save_tokenizer(folder: Path) -> None:
    save_bert_tokenizer(folder, ["a", "dog", "the", "red", "car", "##s", "motor", "##cycle"])


def save_swin_detector(folder: Path, kind: str) -> None:
    """Grounding DINO or its copy by MMDetection."""
    save_tokenizer(folder)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=transformers.SwinConfig(
            image_size=32,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config=transformers.BertConfig(vocab_size=BERT_VOCABULARY_SIZE, **SMALL_LAYER),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=30,
    )
    getattr(transformers, f"{kind}ForObjectDetection")(config).save_pretrained(folder)
    transformers.GroundingDinoProcessor(
        transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
        transformers.AutoTokenizer.from_pretrained(folder),
    ).save_pretrained(folder)


def save_owl_detector(folder: Path, kind: str) -> None:
    save_clip_tokenizer(folder, max_length=16)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        text_config=clip_text_config(16),
        vision_config={"image_size": 64, "patch_size": 16, **SMALL_LAYER},
        projection_dim=16,
    )
    getattr(transformers, f"{kind}ForObjectDetection")(config).save_pretrained(folder)
    getattr(transformers, f"{kind}Processor")(
        getattr(transformers, f"{kind}ImageProcessor")(size={"height": 64, "width": 64}),
        transformers.AutoTokenizer.from_pretrained(folder),
    ).save_pretrained(folder)


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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved detectors, as a user has them."""
    kinds = ["GroundingDino", "MMGroundingDino", "Owlv2", "OwlViT"]
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in kinds}
    for kind in kinds[:2]:
        save_swin_detector(folders[kind], kind)
    for kind in kinds[2:]:
        save_owl_detector(folders[kind], kind)
    return folders


@pytest.fixture(scope="module")
def predictor(small_sam: MobileSam) -> SamPredictor:
    return SamPredictor(small_sam)


@pytest.fixture(scope="module")
def cup(coffee: Pixels) -> Pixels:
    """A part of the photograph, (60, 600, 3): thin, which is quick where the short side counts."""
    return np.ascontiguousarray(coffee[150:210])


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


# Detectors of transformers


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
    with pytest.raises(ValueError, match=r"too long: it has 2\d\d tokens, the model reads 256"):
        grounding_dino(cup, many, 0.3, 0.3)
    owl = TransformersDetector(folders["Owlv2"])
    with pytest.raises(ValueError, match=r"'a long red caravan' is too long.* reads 16"):
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


# The pipeline


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
    objects = GroundedMobileSam(predictor, detector).predict(cup, "a dog", nms_threshold=1)
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
        (([[0, 0, 5, 5]], [0.5], ["dog"], [1]), "class id 1, there are 1 prompts"),
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


@pytest.mark.parametrize("name", ["box_threshold", "text_threshold", "nms_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_thresholds_outside_0_to_1(
    predictor: SamPredictor, cup: Pixels, name: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\]"):
        GroundedMobileSam(predictor, find([], [])).predict(cup, "a dog", **{name: value})
    with pytest.raises(TypeError, match=rf"{name} must be a number in \[0, 1\], not '0.3'"):
        GroundedMobileSam(predictor, find([], [])).predict([], "a dog", **{name: "0.3"})  # type: ignore[call-overload]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hundreds_of_boxes_in_flat_memory() -> None:
    script = """
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

sam = build_sam_vit_t("bundled")
set_img_size(sam, 224)
image = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
for count in (8, 120):
    objects = GroundedMobileSam(sam, detect).predict(image, "dog", nms_threshold=1.0)
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
    print(len(objects), int(peak) // 1024)"""
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    (few, before), (many, after) = (map(int, line.split()) for line in output.splitlines())
    assert (few, many) == (8, 120)
    # 120 masks are 458 MiB; three of each box, or in float32, would be a multiple.
    assert after - before < 500


# Texts


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a dog. the red car.", ["a dog", "the red car"]),
        ("dog . cat", ["dog", "cat"]),
        ("A Dog", ["A Dog"]),
        ("DOG.", ["DOG"]),
        ("dog, cat; a red\tcar\n\ntree\r\n", ["dog", "cat", "a red car", "tree"]),
        ("狗。猫。", ["狗", "猫"]),
        ("犬、猫，鳥；魚．", ["犬", "猫", "鳥", "魚"]),
        ("कुत्ता। बिल्ली।", ["कुत्ता", "बिल्ली"]),
        ("كلب، قطة؛ طائر۔", ["كلب", "قطة", "طائر"]),
        ("a 3.5 inch disk. no. 5.", ["a 3.5 inch disk", "no", "5"]),
        ("version 2.a cat.5", ["version 2", "a cat", "5"]),
        ("a ３．５ inch disk", ["a ３．５ inch disk"]),
        (["St. Bernard", "cat"], ["St. Bernard", "cat"]),
        ([" a dog. ", "the red  car . tree", "salt, pepper"],
         ["a dog", "the red car . tree", "salt, pepper"]),
        (("a dog",), ["a dog"]),
    ],
    ids=str,
)  # fmt: skip
def test_split_prompts(prompts: Any, expected: list[str]) -> None:
    assert split_prompts(prompts) == expected


def test_prompts_that_are_none() -> None:
    for prompts in ("", " . ", ",\n", ["a dog", " "], ["."], []):
        with pytest.raises(UserError, match="name what is to be found"):
            split_prompts(prompts)
    for twice in ("a dog. A dog.", "a dog, a  dog", ["a dog", "a dog."]):
        with pytest.raises(UserError, match="'[Aa] dog' is given twice"):
            split_prompts(twice)
    with pytest.raises(TypeError, match="prompts must be .* list of texts: item 1 .* not int"):
        split_prompts(["a dog", 3])  # type: ignore[list-item]
    wrong: Any
    for wrong in (None, 5, b"a dog", {"a dog": 1}):
        kind = type(wrong).__name__
        with pytest.raises(TypeError, match=f"prompts must be a text or a list .* not {kind}"):
            split_prompts(wrong)


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


# The original package


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a config and a checkpoint for the original Grounding DINO, and a device."""
    import groundingdino.config
    from groundingdino.models import build_model
    from groundingdino.util.slconfig import SLConfig

    folder = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    bert = transformers.BertConfig(vocab_size=BERT_VOCABULARY_SIZE, **SMALL_LAYER)
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    save_tokenizer(folder / "bert")
    config = (Path(groundingdino.config.__path__[0]) / "GroundingDINO_SwinT_OGC.py").read_text()
    config += "\nenc_layers = 1\ndec_layers = 1\nnum_queries = 30\n"
    config += f"text_encoder_type = {str(folder / 'bert')!r}\n"
    (folder / "config.py").write_text(config)
    arguments = SLConfig.fromfile(str(folder / "config.py"))
    arguments.device = "cpu"
    weights = build_model(arguments).state_dict()
    torch.save(
        {"model": {f"module.{key}": value for key, value in weights.items()}}, folder / "model.pth"
    )
    return {"config": str(folder / "config.py"), "checkpoint": str(folder / "model.pth")}


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
    with pytest.raises(ValueError, match="the model reads 256"):
        grounded.predict(cup, [f"dog {'a ' * number}" for number in range(1, 22)])


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


# The command


@pytest.fixture
def image(tmp_path: Path, cup: Pixels) -> Path:
    Image.fromarray(cup).save(tmp_path / "cup.png")
    return tmp_path / "cup.png"


def run_text(image: Path, text: str, *options: str) -> int:
    out = str(image.parent / "out")
    return main(["text", str(image), text, "--out", out, "--checkpoint", "bundled", *options])


def test_text_command(
    folders: dict[str, Path], image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--detector", str(folders["GroundingDino"]), "--box-threshold", "0.3"]
    assert run_text(image, "a dog. the red cars.", *options, "--nms-threshold", "0.1") == 0
    folder = image.parent / "out" / "cup"
    data = json.loads((folder / "instances.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(data["annotations"]) + 2 > 2
    assert re.fullmatch(r".*mask_000\.png  [a-z ]+  score [01]\.\d{3}", lines[0])
    assert [Path(line) for line in lines[-2:]] == [
        folder / "overlay.png",
        folder / "instances.json",
    ]

    assert run_text(image, "a dog", *options[:2], "--box-threshold", "1") == 0
    assert "lower --box-threshold (1.0)" in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {"overlay.png", "instances.json", "source.json"}


def test_text_command_writes_polygons_labelme_and_cutouts(
    folders: dict[str, Path], image: Path
) -> None:
    options = ["--detector", str(folders["GroundingDino"]), "--box-threshold", "0.3"]
    assert run_text(image, "a dog. the red cars.", *options) == 0
    folder = image.parent / "out" / "cup"
    rle = json.loads((folder / "instances.json").read_text())
    assert rle["images"][0]["file_name"] == "cup.png"
    assert [each["name"] for each in rle["categories"]] == ["a dog", "the red cars"]
    extra = ["--polygons", "--labelme", "--cutout", "--max-pixels", "1000000"]
    assert run_text(image, "a dog. the red cars.", *options, *extra) == 0
    polygons = json.loads((folder / "instances.json").read_text())
    found = [each for each in rle["annotations"] if each["area"]]
    assert len(found) == len(polygons["annotations"]) == len(list(folder.glob("cutout_*.png"))) > 0
    for each, expected in zip(polygons["annotations"], found, strict=True):
        assert isinstance(each["segmentation"], list)
        assert each["category_id"] == expected["category_id"]
    content = json.loads((folder / "labelme.json").read_text())
    assert (folder / content["imagePath"]).resolve() == image
    assert {shape["label"] for shape in content["shapes"]} <= {"a dog", "the red cars"}


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (" . ", [], "is empty"),
        ("a dog. a dog", [], "given twice"),
        ("a dog", ["--box-threshold", "1.5"], "--box-threshold"),
        ("a dog", ["--text-threshold", "-1"], "--text-threshold"),
        ("a dog", ["--detector", "no/such/folder"], "no/such/folder"),
    ],
    ids=str,
)
def test_text_command_names_mistakes(
    image: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    options: list[str],
    words: str,
) -> None:
    assert run_text(image, text, *options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mobile-sam: ") and captured.err.count("\n") == 1
    assert words in captured.err and captured.out == ""
    assert not (image.parent / "out").exists()


def test_text_command_without_the_extra(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run_text(image, "a dog") == 1
    assert capsys.readouterr().err == (
        'mobile-sam: transformers is not installed: run pip install "mobile-sam-plugin[grounded]"\n'
    )
