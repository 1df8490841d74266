"""Proposals for everything mode: from a COCO JSON, a detector of transformers, or a function."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_iou

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, annotate
from mobile_sam_plugin.annotation.proposals import open_proposals
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.detectors import ClassAgnosticDetector, TransformersDetector

from ..conftest import PHOTOGRAPHS
from ..integrations.models import save_owl_detector, save_swin_detector

Pixels = NDArray[np.uint8]
BOX, SMALL = [170, 10, 260, 290], [20, 300, 80, 60]  # XYWH in coffee.png
KEEP_ALL: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


def write_coco(folder: Path, names: list[str], size: tuple[int, int] = (600, 400)) -> Path:
    width, height = size
    annotations = [
        {"id": 2 * number + place, "image_id": number, "category_id": 1, "bbox": box}
        for number in range(len(names))
        for place, box in enumerate((BOX, SMALL))
    ]
    content = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, name in enumerate(names)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def save_rt_detr(folder: Path) -> None:
    """RT-DETR with random weights, in the form that the Hub's has."""
    torch.manual_seed(0)
    config = transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 16, 16],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        encoder_hidden_dim=16,
        encoder_in_channels=[16, 16, 16],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_layers=2,
        num_queries=30,
        num_labels=3,
    )
    transformers.RTDetrForObjectDetection(config).save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def test_boxes_of_a_json_are_found_by_the_name_of_the_image(tmp_path: Path, coffee: Pixels) -> None:
    names = ["coffee.png", "a/cup.png", "b/cup.png"]
    propose = open_proposals(write_coco(tmp_path, names))
    expected = [[170, 10, 430, 300], [20, 300, 100, 360]]
    for name in ("coffee.png", "/photos/coffee.png", "/photos/a/cup.png"):
        np.testing.assert_array_equal(propose(coffee, name), expected)
    half = propose(np.ascontiguousarray(coffee[::2, ::2]), "coffee.png")
    np.testing.assert_array_equal(half, np.array(expected) / 2)
    for name in ("tea.png", "cup.png"):
        with pytest.raises(UserError, match=f"has proposals for no image '{name}'"):
            propose(coffee, name)


def test_a_function_is_asked_with_the_image(coffee: Pixels) -> None:
    propose = open_proposals(lambda pixels: [[0, 0, pixels.shape[1], pixels.shape[0]]])
    assert propose(coffee, "coffee.png") == [[0, 0, 600, 400]]


@pytest.mark.parametrize("kind", ["Owlv2", "GroundingDino", "RTDetr"])
def test_detectors_propose_their_best_boxes_of_any_class(
    tmp_path: Path, coffee: Pixels, kind: str
) -> None:
    """All boxes are computed here from the model's outputs; the first that are left must agree."""
    if kind == "RTDetr":
        save_rt_detr(tmp_path)
    else:
        (save_owl_detector if kind == "Owlv2" else save_swin_detector)(tmp_path, kind)
    detector = ClassAgnosticDetector(tmp_path, most=5)
    boxes = detector(coffee)
    assert boxes.dtype == np.float32 and 1 < len(boxes) <= 5
    between = box_iou(*[torch.from_numpy(boxes)] * 2).fill_diagonal_(0)
    assert between.max() <= 0.7

    image = Image.fromarray(coffee)
    with torch.no_grad():
        if kind == "GroundingDino":
            found = TransformersDetector(tmp_path)(coffee, ["object"], 0.0, 0.0)
            scores, places = torch.from_numpy(found.scores), torch.from_numpy(found.boxes)
        else:
            text = {"text": [["object"]]} if kind == "Owlv2" else {}
            inputs = detector.processor(images=image, return_tensors="pt", **text)
            outputs = detector.model(**inputs)
            x, y, width, height = outputs.pred_boxes[0].unbind(1)
            corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            # OWLv2 sees the image in the corner of a square.
            scale = [600, 600] * 2 if kind == "Owlv2" else [600, 400] * 2
            places = torch.stack(corners, 1) * torch.tensor(scale)
            scores = (
                outputs.objectness_logits[0] if kind == "Owlv2" else outputs.logits[0].amax(dim=1)
            )
    ranked = scores.sigmoid() if kind != "GroundingDino" else scores
    distances = (places - torch.from_numpy(boxes)[:, None]).abs().amax(dim=2)
    assert distances.amin(dim=1).max() < 0.01
    taken = ranked[distances.argmin(dim=1)]
    assert taken[0] == ranked.max() and (taken.diff() <= 0).all(), "best first"


def test_a_model_that_detects_nothing_is_refused(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded.*AutoModelForObjectDetection"):
        open_proposals(tmp_path)


def test_annotate_resumes_with_the_same_proposals_alone(
    tmp_path: Path, tiny_sam: MobileSam, coffee: Pixels
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("coffee.png", "unlisted.png"):
        shutil.copy(PHOTOGRAPHS / "coffee.png", photos / name)
    boxes = write_coco(tmp_path, ["coffee.png"])
    options: dict[str, Any] = {"model": tiny_sam, "search": "proposals", **KEEP_ALL}
    listed, unlisted = annotate(photos, tmp_path / "out", proposals=boxes, **options)
    generator = SamAutomaticMaskGenerator(tiny_sam, search="proposals", **KEEP_ALL)
    expected = generator.generate(coffee, proposals=[[170, 10, 430, 300], [20, 300, 100, 360]])
    assert [each["area"] for each in listed.records] == [each["area"] for each in expected]
    assert len(listed.records) == 2
    assert unlisted.error is not None and "for no image" in unlisted.error

    again = annotate(photos, tmp_path / "out", proposals=boxes, **options)
    assert [each.key for each in again] == ["unlisted.png"]
    boxes.write_text(boxes.read_text().replace("[20, 300", "[21, 300"))
    with pytest.raises(UserError, match="options proposals has changed"):
        annotate(photos, tmp_path / "out", proposals=boxes, **options)
    for wrong in (options, {"mode": "boxes", "proposals": boxes}):
        with pytest.raises(UserError, match="search 'proposals' needs proposals, and no other"):
            annotate(photos, None, **wrong)


def test_commands_search_where_they_are_told(
    tmp_path: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = PHOTOGRAPHS / "coffee.png"
    keep = ["--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--box-nms-thresh", "1"]
    common = [str(photo), *keep, "--checkpoint", str(tiny_file), "--out"]
    proposing = ["--search", "proposals", "--proposals", str(write_coco(tmp_path, [photo.name]))]
    assert main(["everything", *common, str(tmp_path / "boxes"), *proposing]) == 0
    assert len(list((tmp_path / "boxes" / "coffee").glob("mask_*.png"))) == 2
    assert main(["annotate", *common, str(tmp_path / "annotated"), *proposing]) == 0
    record = json.loads((tmp_path / "annotated" / "sa1b" / "coffee.json").read_text())
    assert len(record["annotations"]) == 2
    hierarchical = ["--search", "hierarchical", "--points-per-side", "2"]
    assert main(["everything", *common, str(tmp_path / "points"), *hierarchical]) == 0
    capsys.readouterr()
    for options, message in (
        (proposing[:2], "required for --search proposals"),
        (proposing[2:], "needs --search proposals"),
        ([*proposing, "--points-per-side", "4"], "--search proposals has no grid"),
    ):
        for command in ("everything", "annotate"):
            assert main([command, *common, str(tmp_path / "no"), *options]) == 2
            assert message in " ".join(capsys.readouterr().err.split())
