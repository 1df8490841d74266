"""Other predictors beside a SAM: by the same prompts, and COCO's AP with boxes as prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from segment_anything.modeling import Sam

from mobile_sam_plugin import SamPredictor
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.evaluation.detections import BoxPrompts, evaluate_boxes
from mobile_sam_plugin.evaluation.evaluation import evaluate
from mobile_sam_plugin.evaluation.examiner import OF_ONE_PROMPT
from mobile_sam_plugin.evaluation.predictors import load_predictor, measure_effort

from .test_evaluation import Pictures, picture, tiny_sam

RIVALS = """
import numpy as np

class Boxes:
    '''Fills the box; with several masks, the second of three. A point is a square around it.'''

    asked = 0

    def set_image(self, image):
        self.size = image.shape[:2]

    def predict(self, point_coords=None, point_labels=None, box=None, mask_input=None,
                multimask_output=True):
        type(self).asked += 1
        if box is None:
            box = np.tile(point_coords[0], 2) + [-20, -20, 20, 20]
        x0, y0, x1, y1 = np.clip(np.round(box), 0, None).astype(int)
        mask = np.zeros(self.size, np.float32)
        mask[y0:y1, x0:x1] = 1
        if not multimask_output:
            return mask[None], [0.5], None
        return np.stack([1 - mask, mask, 0 * mask]), [0.1, 0.9, 0.2], None

def boxes():
    return Boxes()

def nothing():
    return None
"""


class Wrapped:
    """A SAM behind nothing but the two methods of the protocol."""

    def __init__(self, model: Sam) -> None:
        self.model = model
        self._predictor = SamPredictor(model)

    def set_image(self, image: NDArray[np.uint8], /) -> None:
        self._predictor.set_image(image)

    def predict(self, **prompt: Any) -> Any:
        return self._predictor.predict(**prompt)


@pytest.fixture
def rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    name = f"rivals_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(RIVALS)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_predictor_gets_the_prompts_and_scores_of_a_sam(tmp_path: Path) -> None:
    sam = tiny_sam()
    metrics = [*OF_ONE_PROMPT, "corrective_1", "corrective_2"]
    expected = evaluate(sam, Pictures(), metrics=metrics)
    found = evaluate(Wrapped(sam), Pictures(), metrics=metrics, folder=tmp_path)
    for ours, theirs in zip(found.images, expected.images, strict=True):
        assert ours.masks == theirs.masks and ours.scores.keys() == theirs.scores.keys()
        for name, values in ours.scores.items():
            assert values == pytest.approx(theirs.scores[name], abs=1e-6), name
    with pytest.raises(UserError, match="another run .*model"):
        evaluate(Wrapped(tiny_sam(seed=1)), Pictures(), metrics=metrics, folder=tmp_path)


def test_what_a_predictor_cannot_be_asked_is_refused(rivals: str) -> None:
    boxes = load_predictor(f"{rivals}:boxes")
    with pytest.raises(UserError, match="recall_10: everything mode needs a SAM"):
        evaluate(boxes, Pictures(), metrics=["click", "recall_10"])
    with pytest.raises(UserError, match="returned no logits: leave out the corrective metrics"):
        evaluate(boxes, Pictures(), metrics=["corrective_1"])

    class Small(Wrapped):
        def predict(self, **prompt: Any) -> Any:
            masks, scores, logits = super().predict(**prompt)
            return masks[:, ::2], scores, logits

    with pytest.raises(UserError, match=r"masks of the shape \(60, 160\) for an image of"):
        evaluate(Small(tiny_sam()), Pictures(), metrics=["box"])


def test_a_predictor_is_loaded_by_its_name(rivals: str) -> None:
    assert type(load_predictor(f"{rivals}:boxes")).__name__ == "Boxes"
    for name, message in {
        "rivals": "must be MODULE:FUNCTION, not 'rivals'",
        "no_such_module:boxes": "there is no module 'no_such_module'",
        f"{rivals}:none": "has no function 'none'",
        f"{rivals}:nothing": "returned a NoneType, which lacks set_image or predict",
    }.items():
        with pytest.raises(UserError, match=message):
            load_predictor(name)


def test_effort_counts_parameters_where_there_is_a_network(rivals: str) -> None:
    image = picture(0).image
    sam = tiny_sam()
    count = sum(parameter.numel() for parameter in sam.parameters())
    for model in (sam, Wrapped(sam)):
        effort = measure_effort(model, image, runs=1)
        assert effort.parameters == count
        assert effort.image_milliseconds > 0 and effort.click_milliseconds > 0
    assert measure_effort(load_predictor(f"{rivals}:boxes"), image).parameters is None


def test_command_puts_predictors_side_by_side(
    rivals: str, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{rivals}:boxes"
    arguments = ["evaluate", "scenes:1", "--checkpoint", str(tiny_file), "--masks-per-image", "1"]
    assert main([*arguments, "--predictor", name, "--out", str(tmp_path / "out")]) == 0
    comparison = (tmp_path / "out" / "comparison.md").read_text()
    assert comparison in capsys.readouterr().out + "\n"
    header, _, *rows = comparison.splitlines()
    assert header == f"| | masks | vit_t | {name} |"
    table = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in rows}
    assert [*table] == [*OF_ONE_PROMPT, "parameters", "ms an image", "ms a click"]
    for folder, column in (("", 1), (f"{rivals}_boxes", 2)):
        content = json.loads((tmp_path / "out" / folder / "evaluation.json").read_text())
        assert table["box"][column].startswith(f"{content['scores']['box']['mean']:.4f} (")
    assert rows[-3].endswith(" |  |"), "there is no network to count"


def write_coco(folder: Path) -> tuple[Path, Path]:
    """Two images of small, medium and large rectangles, and a detector's boxes, one of them off."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number in range(2):
        Image.new("RGB", (400, 300), "gray").save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 400, "height": 300})
        for x, y, width, height in ((10, 10, 20, 20), (60, 10, 60, 50), (150, 50, 200, 150)):
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "segmentation": [corners],
                    "iscrowd": 0,
                }
            )
            off = 30 if number == 1 and width == 60 else 0
            found.append(
                {
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x + off, y, width, height],
                    "score": 0.9 - off / 100,
                }
            )
    truth, boxes = folder / "truth.json", folder / "boxes.json"
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    truth.write_text(json.dumps(content))
    boxes.write_text(json.dumps(found))
    return truth, boxes


def test_boxes_as_prompts_are_evaluated_as_coco_does(rivals: str, tmp_path: Path) -> None:
    """Masks that fill their boxes have the precision of the boxes, at all sizes."""
    truth, boxes = write_coco(tmp_path)
    model = load_predictor(f"{rivals}:boxes")
    prompts = BoxPrompts(truth, boxes)
    figures = evaluate_boxes(model, prompts, folder=tmp_path / "out")
    found = [box for each in prompts.boxes.values() for box in each]
    of_boxes = prompts.average_precision(found, "bbox")
    assert figures == {"single": of_boxes, "best_of_three": of_boxes}
    assert of_boxes.small == of_boxes.large == pytest.approx(1)
    # One of two medium objects is found; precision is taken at 101 recalls, 51 of them up to 0.5.
    assert of_boxes.medium == pytest.approx(51 / 101)

    asked = type(model).asked  # type: ignore[attr-defined]
    assert asked == 12
    assert evaluate_boxes(model, prompts, folder=tmp_path / "out") == figures
    assert type(model).asked == asked, "an interrupted run goes on"  # type: ignore[attr-defined]
    first = BoxPrompts(truth, boxes, limit=1)
    assert evaluate_boxes(model, first)["single"].medium == pytest.approx(1)
    with pytest.raises(UserError, match="another run"):
        evaluate_boxes(model, first, folder=tmp_path / "out")


def test_boxes_go_to_a_sam_as_to_a_predictor(tmp_path: Path) -> None:
    prompts = BoxPrompts(*write_coco(tmp_path))
    sam = tiny_sam()
    for model, folder in ((sam, "sam"), (Wrapped(sam), "wrapped")):
        evaluate_boxes(model, prompts, folder=tmp_path / folder)
    ours, theirs = ((tmp_path / name / "boxes.jsonl").read_text() for name in ("sam", "wrapped"))
    assert ours == theirs and ours.count("\n") == 2


def test_files_that_are_not_coco_are_refused(tmp_path: Path) -> None:
    truth, boxes = write_coco(tmp_path)
    found = json.loads(boxes.read_text())
    for content, message in (
        ({"images": []}, "not a list of COCO's results"),
        ([{"image_id": 0, "bbox": [1, 2, 3, 4]}], "not a list of COCO's results.*category_id"),
        ([found[0] | {"image_id": 7}], "a box in the image 7, which .*truth.json.* does not list"),
        ([], "has no box in the first 2 images"),
    ):
        boxes.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            BoxPrompts(truth, boxes)
    with pytest.raises(UserError, match="COCO's instances JSON as DATA"):
        BoxPrompts(boxes, boxes)


def test_command_prints_the_ap_of_boxes(
    rivals: str, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, boxes = write_coco(tmp_path)
    arguments = ["evaluate", str(truth), "--boxes", str(boxes), "--checkpoint", str(tiny_file)]
    arguments += ["--limit", "1"]
    with_others = ["--predictor", f"{rivals}:boxes", "--out", str(tmp_path / "out")]
    assert main([*arguments, *with_others]) == 0
    rows = (tmp_path / "out" / "boxes.md").read_text().splitlines()
    assert rows[2] == "| the boxes themselves | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |"
    assert rows[5] == rows[2].replace("the boxes themselves", f"{rivals}:boxes, single")
    assert rows[3].startswith("| vit_t, single |") and rows[-1] == "1 images, 3 boxes."
    assert rows[2] in capsys.readouterr().out
    assert main([*arguments, "--metrics", "click"]) == 2
    assert "goes with neither --metrics nor --teacher" in " ".join(capsys.readouterr().err.split())
