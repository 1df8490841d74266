"""The evaluation: metrics of masks drawn by hand, then models on small pictures."""

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.datasets.annotated import AnnotatedImage
from mobile_sam_plugin.evaluation.costs import count_costs
from mobile_sam_plugin.evaluation.evaluation import evaluate
from mobile_sam_plugin.evaluation.examiner import METRICS
from mobile_sam_plugin.evaluation.metrics import average_recall, bootstrap, mask_iou
from mobile_sam_plugin.evaluation.prompts import (
    Prompt,
    add_click,
    corrective_click,
    find_background,
    make_prompt,
)
from mobile_sam_plugin.evaluation.results import Evaluation, Score
from mobile_sam_plugin.evaluation.worst_and_best import draw_worst_and_best
from mobile_sam_plugin.mobile_sam import set_img_size
from mobile_sam_plugin.records import encode_mask

SIZE = 128
PROMPTED = [name for name in METRICS if not name.startswith("recall")]


def rectangle(
    x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = (120, 160)
) -> NDArray[np.bool_]:
    """A mask (H, W), from its first to before its last column and row."""
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def picture(index: int, size: tuple[int, int] = (120, 160)) -> AnnotatedImage:
    """Two bright shapes on a ramp, and the masks of both."""
    height, width = size
    pixels = np.empty((*size, 3), dtype=np.uint8)
    pixels[:] = np.linspace(40, 120, width)[None, :, None]
    masks = []
    for color, center, radius in (
        ((230, 60, 40), (width // 3, height // 2), height // 4 + index),
        ((40, 90, 230), (3 * width // 4, height // 3), height // 6 + index),
    ):
        mask = np.zeros(size, dtype=np.uint8)
        cv2.circle(mask, center, radius, 1, cv2.FILLED)
        pixels[mask > 0] = color
        masks.append(mask > 0)
    return AnnotatedImage(f"picture {index}", pixels, np.stack(masks))


class Pictures:
    """Three pictures, the one in the middle without masks, and a broken one if asked for."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken
        self.read: list[int] = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> AnnotatedImage:
        self.read.append(index)
        if index == self.broken:
            raise ValueError(f"picture {index} is damaged")
        item = picture(index)
        return replace(item, masks=item.masks[:0]) if index == 1 else item


def tiny_sam(seed: int = 0) -> Sam:
    """segment-anything's architecture with hardly any channels, for small images, untrained."""
    torch.manual_seed(seed)
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=SIZE, embed_dim=16, depth=1, num_heads=1, out_chans=16, window_size=8
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=16,
            image_embedding_size=(SIZE // 16, SIZE // 16),
            input_image_size=(SIZE, SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=1, embedding_dim=16, mlp_dim=16, num_heads=1),
            transformer_dim=16,
        ),
    ).eval()


@pytest.fixture(scope="module")
def sam() -> Sam:
    return tiny_sam()


@pytest.fixture(scope="module")
def of_itself(sam: Sam) -> Evaluation:
    """All metrics but recall, against a teacher that is the student."""
    return evaluate(sam, Pictures(), teacher=sam, metrics=PROMPTED)


# Metrics


def test_iou_of_known_masks() -> None:
    left, right = rectangle(0, 0, 20, 10), rectangle(10, 0, 30, 10)
    nothing = np.zeros_like(left)
    masks = np.stack([left, left, left, nothing])
    others = np.stack([left, right, nothing, nothing])
    np.testing.assert_allclose(mask_iou(masks, others), [1, 1 / 3, 0, 1])


def test_prompts_follow_from_seed_image_and_mask() -> None:
    mask = rectangle(100, 50, 140, 90, (400, 600))
    for kind in ("click", "box", "pair_100"):
        first, again, other = (make_prompt(kind, mask, (0, 3, index)) for index in (5, 5, 6))
        assert first is not None and again is not None and other is not None
        np.testing.assert_array_equal(first.point_coords, again.point_coords)
        np.testing.assert_array_equal(first.point_labels, again.point_labels)
        if kind == "box":
            assert first.box is not None and first.box.tolist() == [100, 50, 139, 89]
        else:
            assert first.point_coords.tolist() != other.point_coords.tolist()
    click, pair = (make_prompt(kind, mask, (0, 3, 5)) for kind in ("click", "pair_100"))
    assert click is not None and pair is not None
    assert pair.point_coords[0].tolist() == click.point_coords[0].tolist()


def test_clicks_are_spread_over_the_mask() -> None:
    mask = rectangle(20, 30, 60, 50) | rectangle(100, 100, 104, 104)
    prompts = [make_prompt("click", mask, (seed, 0, 0)) for seed in range(300)]
    points = np.array([prompt.point_coords[0] for prompt in prompts if prompt is not None])
    assert len(points) == 300 and mask[points[:, 1], points[:, 0]].all()
    in_large = points[points[:, 0] < 80]
    np.testing.assert_allclose(in_large.mean(axis=0), (39.5, 39.5), atol=2)
    np.testing.assert_allclose(in_large.std(axis=0), (40 / 12**0.5, 20 / 12**0.5), rtol=0.1)


@pytest.mark.parametrize("distance", [100, 200, 300, 400, 500])
def test_pair_is_so_far_apart(distance: int) -> None:
    mask = rectangle(280, 180, 420, 320, (600, 900))
    directions = []
    for seed in range(50):
        prompt = make_prompt(f"pair_{distance}", mask, (seed, 0, 0))
        assert prompt is not None and prompt.point_labels.tolist() == [1, 0]
        (x0, y0), (x1, y1) = prompt.point_coords
        assert mask[y0, x0] and not mask[y1, x1] and 0 <= x1 < 900 and 0 <= y1 < 600
        assert abs(np.hypot(x1 - x0, y1 - y0) - distance) <= 0.71
        directions.append(np.arctan2(y1 - y0, x1 - x0))
    assert np.ptp(directions) > 1


def test_pair_is_skipped_where_there_is_no_such_point() -> None:
    assert make_prompt("pair_200", rectangle(60, 40, 100, 80), (0, 0, 0)) is None
    all_but_center = ~rectangle(150, 150, 151, 151, (301, 301))
    assert len(find_background((150, 50), all_but_center, 100)) == 1
    assert len(find_background((150, 60), all_but_center, 100)) == 0
    assert make_prompt("pair_100", np.ones((300, 300), dtype=bool), (0, 0, 0)) is None


def test_corrective_click_is_in_the_middle_of_the_largest_error() -> None:
    truth = rectangle(20, 20, 81, 61)
    click, label = corrective_click(np.zeros_like(truth), truth)
    assert label == 1 and click[1] == 40 and 40 <= click[0] <= 60

    # 61 x 41 pixels are missing, but in two pieces; 50 x 31 are too much, in one.
    cut = truth & ~rectangle(20, 20, 81, 61) | rectangle(46, 20, 54, 61)
    predicted = cut | rectangle(100, 40, 150, 71)
    click, label = corrective_click(predicted, truth)
    assert label == 0 and click[1] == 55 and 115 <= click[0] <= 134

    click, label = corrective_click(truth, truth)
    assert label == -1 and add_click(make_click(truth), click, label).point_labels.tolist() == [
        1,
        -1,
    ]


def test_corrective_click_keeps_off_the_border_of_the_image() -> None:
    click, label = corrective_click(np.zeros((120, 160), dtype=bool), rectangle(0, 0, 31, 120))
    assert label == 1 and click[0] == 15 and 15 <= click[1] <= 104


def make_click(mask: NDArray[np.bool_]) -> Prompt:
    prompt = make_prompt("click", mask, (0, 0, 0))
    assert prompt is not None
    return prompt


def test_recall_of_known_overlaps() -> None:
    ious = np.array([[0.72, 0.0, 0.0], [0.6, 0.0, 0.0], [0.0, 0.97, 0.4]])
    # Found at 0.5 to 0.7, at all ten, at none.
    np.testing.assert_allclose(average_recall(ious), [0.5, 1.0, 0.0])
    np.testing.assert_allclose(average_recall(ious[:2]), [0.5, 0.0, 0.0])
    np.testing.assert_allclose(average_recall(ious[:0]), [0.0, 0.0, 0.0])
    # The first takes the better one, so the second is left with the other.
    np.testing.assert_allclose(average_recall(np.array([[0.9, 0.8], [0.92, 0.1]])), [0.9, 0.0])


def test_recall_is_that_of_coco() -> None:
    random = np.random.default_rng(0)
    truth, found = ([], [])
    per_mask = []
    for image in range(4):
        corners = random.integers(0, (100, 60), size=(6, 2))
        true_masks = [rectangle(x, y, x + 40, y + 40) for x, y in corners]
        shifts = random.integers(-9, 10, size=(40, 2))
        masks = [
            rectangle(*np.maximum(corners[i % 6] + shift, 0), *(corners[i % 6] + shift + 40))
            for i, shift in enumerate(shifts)
        ]
        truth += [(image, encode_mask(mask)) for mask in true_masks]
        found += [(image, encode_mask(mask), 1 - i / 40) for i, mask in enumerate(masks)]
        ious = np.array([[float(mask_iou(mask, true)) for true in true_masks] for mask in masks])
        per_mask += average_recall(ious[:10]).tolist()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image, "height": 120, "width": 160} for image in range(4)],
            "categories": [{"id": 1}],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": image,
                    "category_id": 1,
                    "segmentation": rle,
                    "iscrowd": 0,
                    "area": 1600,
                }
                for i, (image, rle) in enumerate(truth)
            ],
        }
        coco.createIndex()
        detections = coco.loadRes(
            [
                {"image_id": image, "category_id": 1, "segmentation": rle, "score": score}
                for image, rle, score in found
            ]
        )
        official = COCOeval(coco, detections, "segm")
        official.params.maxDets = [1, 10, 100]
        official.evaluate()
        official.accumulate()
    recall = official.eval["recall"][:, 0, 0, 1].mean()
    assert 0.2 < recall < 0.9
    assert np.mean(per_mask) == pytest.approx(recall)


def test_bootstrap_of_images() -> None:
    random = np.random.default_rng(0)
    values = [[value] for value in random.normal(0.5, 0.1, 400)]
    low, high = bootstrap(values, 0)
    # Of the mean of n values the interval is +- 1.96 sigma / sqrt(n).
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.1)
    assert low < np.mean(values) < high
    assert bootstrap(values, 0) == (low, high) != bootstrap(values, 1)
    # Ten masks an image that are all alike tell no more than one does.
    assert bootstrap([[value[0]] * 10 for value in values], 0) == pytest.approx((low, high))
    assert bootstrap([[0.3, 0.3], [], [0.3]], 0) == pytest.approx((0.3, 0.3))
    assert np.isnan(bootstrap([[], []], 0)).all()


# Models


def test_teacher_of_itself_agrees(of_itself: Evaluation) -> None:
    assert of_itself.scores["teacher_click"].mean == 1
    assert of_itself.scores["teacher_box"].mean == 1
    assert list(of_itself.scores)[:3] == ["click", "teacher_click", "click_best"]


def test_another_teacher_disagrees(sam: Sam) -> None:
    evaluation = evaluate(sam, Pictures(), teacher=tiny_sam(1), metrics=["click", "box"])
    assert evaluation.scores["teacher_click"].mean < 0.999
    assert set(evaluation.scores) == {"click", "teacher_click", "box", "teacher_box"}


def test_all_prompts_have_scores(of_itself: Evaluation) -> None:
    scores = of_itself.scores
    assert set(PROMPTED) <= set(scores)
    for name, score in scores.items():
        if name.endswith(("_200", "_300", "_400", "_500")):  # the pictures are 160 x 120
            assert score.count == 0 and score.skipped == 4 and np.isnan(score.mean)
        else:
            assert score.count + score.skipped == 4 and score.count > 0
            assert 0 <= score.low <= score.mean <= score.high <= 1
    assert scores["click_best"].mean >= scores["click"].mean
    without_masks = of_itself.images[1]
    assert without_masks.masks == [] and without_masks.scores == {}


def test_recall_of_what_everything_mode_finds(sam: Sam) -> None:
    """True masks are what it finds itself, and as many that it cannot find."""
    generator = SamAutomaticMaskGenerator(
        sam, pred_iou_thresh=0, stability_score_thresh=0, output_mode="binary_mask"
    )
    records = [record for record in generator.generate(picture(0).image) if record["area"]]
    assert records
    own = [record["segmentation"] for record in records]
    corners = [rectangle(x, 0, x + 1, 1) for x in range(len(own))]
    item = replace(picture(0), masks=np.stack(own + corners))
    evaluation = evaluate(sam, [item], metrics=["recall_1000", "recall_10"])
    scores = evaluation.scores["recall_1000"]
    assert (scores.mean, scores.count, scores.skipped) == (0.5, 2 * len(own), 0)
    assert evaluation.scores["recall_10"].mean == 0.5 * min(1, 10 / len(own))


def test_scores_are_those_of_the_predictor(small_sam: MobileSam) -> None:
    """One mask at a time and by numpy: click, best of three, box, and a click corrected once."""
    metrics = ["click", "click_best", "box", "corrective_1"]
    (scores,) = (
        image.scores for image in evaluate(small_sam, [picture(0)], metrics=metrics).images
    )
    predictor = SamPredictor(small_sam)
    predictor.set_image(picture(0).image)
    for index, truth in enumerate(picture(0).masks):
        click, box = (make_prompt(kind, truth, (0, 0, index)) for kind in ("click", "box"))
        assert click is not None and box is not None
        masks, predicted, logits = predictor.predict(click.point_coords, click.point_labels)
        ious = [(mask & truth).sum() / (mask | truth).sum() for mask in masks]
        best = predicted.argmax()
        assert scores["click"][index] == pytest.approx(ious[best], abs=1e-3)
        assert scores["click_best"][index] == pytest.approx(max(ious), abs=1e-3)
        corrected = add_click(click, *corrective_click(masks[best], truth))
        for name, (mask, _, _) in {
            "box": predictor.predict(box=box.box, multimask_output=False),
            "corrective_1": predictor.predict(
                corrected.point_coords, corrected.point_labels, None, logits[best, None], False
            ),
        }.items():
            iou = (mask[0] & truth).sum() / (mask[0] | truth).sum()
            assert scores[name][index] == pytest.approx(iou, abs=1e-3)


def test_evaluation_is_deterministic(sam: Sam) -> None:
    first, again, other = (
        evaluate(sam, Pictures(), metrics=["click", "box"], masks_per_image=1, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.scores["click"] != other.scores["click"]
    # The same prompts whatever other metrics there are, and however many masks are taken at once.
    many = AnnotatedImage("many", picture(0).image, np.repeat(picture(0).masks, 9, axis=0))
    alone, beside = (
        evaluate(sam, [many], metrics=metrics, masks_per_image=18).images[0]
        for metrics in (["box"], ["click", "box", "corrective_2"])
    )
    assert len(alone.masks) == 18 and alone.masks == beside.masks
    assert alone.scores["box"] == pytest.approx(beside.scores["box"])


def test_broken_images_are_skipped_or_raised(sam: Sam) -> None:
    with pytest.warns(UserWarning, match=r"image 0 of 3 \(1 skipped so far\): picture 0 is"):
        evaluation = evaluate(sam, Pictures(broken=0), metrics=["box"])
    assert evaluation.unreadable == 1 and [image.index for image in evaluation.images] == [1, 2]
    assert evaluation.left_out == "1 of 3 images are left out: 1 not readable"
    assert evaluation.left_out in evaluation.format_table()
    with pytest.raises(ValueError, match="picture 0 is damaged"):
        evaluate(sam, Pictures(broken=0), metrics=["box"], strict=True)


def test_journal_is_continued_after_a_kill(sam: Sam, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    folder = tmp_path / "new"
    journal = folder / "images.jsonl"
    with pytest.raises(Killed):
        evaluate(sam, Pictures(), metrics=["click"], folder=folder, progress=kill)
    with open(journal, "ab") as file:
        file.write(b'{"index": 2, "na')  # a kill can come in the middle of a line
    continued = Pictures()
    evaluation = evaluate(sam, continued, metrics=["click"], folder=folder)
    assert continued.read == [0, 1, 2]  # all are compared
    assert evaluation == evaluate(sam, Pictures(), metrics=["click"])
    assert len(journal.read_text().splitlines()) == 3

    small = tiny_sam()
    small.image_encoder.img_size = 64  # the model that gives other masks
    with pytest.raises(ValueError, match=r"another run \(img_size was 128, is now 64\)"):
        evaluate(small, Pictures(), metrics=["click"], folder=folder)
    with pytest.raises(ValueError, match=r"metrics was \['click'\].*; seed was 0, is now 1"):
        evaluate(sam, Pictures(), metrics=["box"], seed=1, folder=folder)
    with pytest.raises(ValueError, match="model has changed"):
        evaluate(tiny_sam(1), Pictures(), metrics=["click"], folder=folder)
    journal.write_text("no json\n")
    with pytest.raises(ValueError, match="is damaged, or does not belong to an evaluation"):
        evaluate(sam, Pictures(), metrics=["click"], folder=folder)


def test_journal_is_of_contents(sam: Sam, tmp_path: Path) -> None:
    """Names stay, labels are mended: the old scores must not come back."""
    items = [picture(0), picture(1)]
    evaluate(sam, items, metrics=["box"], folder=tmp_path)
    items[1] = replace(items[1], masks=items[1].masks[:, ::-1])
    items.append(picture(2))
    mended = evaluate(sam, items, metrics=["box"], folder=tmp_path)
    assert mended == evaluate(sam, items, metrics=["box"])
    lines = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 1, 2]  # the first was not measured again
    # A place decides which prompts an image gets.
    turned = evaluate(sam, items[::-1], metrics=["click"], folder=tmp_path / "other")
    again = evaluate(sam, items, metrics=["click"], folder=tmp_path / "other")
    assert again == evaluate(sam, items, metrics=["click"]) != turned


def test_an_image_that_does_not_fit_is_skipped(sam: Sam) -> None:
    thin = AnnotatedImage(
        "thin", np.zeros((1, 3000, 3), np.uint8), np.ones((1, 1, 3000), dtype=bool)
    )
    with pytest.warns(UserWarning, match="1 of 3 images are left out: 1 not fit for it"):
        evaluation = evaluate(sam, [picture(0), thin, picture(1)], metrics=["box"])
    assert [image.index for image in evaluation.images] == [0, 2] and evaluation.unreadable == 1
    with pytest.raises(ValueError, match="too thin, 3000 x 1"):
        evaluate(sam, [picture(0), thin], metrics=["box"], strict=True)


@pytest.mark.parametrize("metric", ["click_best", "box"])
def test_any_metric_of_one_prompt_is_drawn(sam: Sam, tmp_path: Path, metric: str) -> None:
    evaluation = evaluate(sam, [picture(0)], metrics=[metric])
    draw_worst_and_best(evaluation, sam, [picture(0)], tmp_path / "drawn.png", count=1)
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert min(drawn.size) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["click", "clack"]}, "no metric 'clack', only click, click_best"),
        ({"metrics": []}, "at least one metric"),
        ({"metrics": "click"}, "metrics must be a list"),
        ({"masks_per_image": 0}, "must be 1 or more, not 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
    ],
)
def test_mistakes_are_named(sam: Sam, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(sam, Pictures(), **arguments)
    with pytest.raises(ValueError, match="no image"):
        evaluate(sam, [])
    empty = replace(picture(0), masks=picture(0).masks[:0])
    with pytest.raises(ValueError, match="none of the 1 readable images, of 1, has a mask"):
        evaluate(sam, [empty])


def test_results_are_written_and_read(sam: Sam, of_itself: Evaluation, tmp_path: Path) -> None:
    evaluation = replace(of_itself, costs=count_costs(sam, runs=1))
    evaluation.save(tmp_path)
    draw_worst_and_best(evaluation, sam, Pictures(), tmp_path / "worst_and_best.png", count=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation.json",
        "evaluation.md",
        "images.jsonl",
        "run.json",
        "scores.png",
        "worst_and_best.png",
    ]
    read = Evaluation.load(tmp_path)
    assert repr(read) == repr(evaluation)  # which also tells that NaN is NaN
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert summary["scores"]["pair_500"]["mean"] is None
    table = (tmp_path / "evaluation.md").read_text()
    assert f"| click | {evaluation.scores['click'].mean:.4f} |" in table
    assert "| mask_decoder | " in table
    for name in ("scores.png", "worst_and_best.png"):
        with Image.open(tmp_path / name) as drawn:
            assert min(drawn.size) > 200 and len(np.unique(np.asarray(drawn))) > 50


def test_worst_and_best_need_a_prompt(sam: Sam, tmp_path: Path) -> None:
    evaluation = Evaluation({"recall_10": Score(0.5, 0.4, 0.6, 4, 0)}, [], {})
    with pytest.raises(ValueError, match="no worst and best case of recall_10"):
        draw_worst_and_best(evaluation, sam, [], tmp_path / "picture.png")


def test_costs_of_mobile_sam(bundled_sam: MobileSam) -> None:
    costs = count_costs(bundled_sam, runs=1)
    assert {name: cost.parameters for name, cost in costs.items()} == {
        "image_encoder": 6_065_532 - 321_640,
        "prompt_encoder": 6_220,
        "mask_decoder": 4_058_340,
    }
    assert costs["image_encoder"].gmac == pytest.approx(36.9, rel=0.06)
    assert costs["mask_decoder"].gmac == pytest.approx(1.75, rel=0.05)
    assert all(cost.milliseconds > 0 for cost in costs.values())
    assert not any(module._forward_hooks for module in bundled_sam.modules())
    assert all(parameter.requires_grad for parameter in bundled_sam.mask_decoder.parameters())


# The command


@pytest.fixture
def small_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the command load its models for images of 224 x 224."""
    module = sys.modules["mobile_sam_plugin.cli.evaluate"]  # the package's name is the function's
    load = module.load_sam

    def load_small(*arguments: Any) -> Sam:
        model = load(*arguments)
        set_img_size(model, 224)
        return model

    monkeypatch.setattr(module, "load_sam", load_small)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photographs, as it were, each with a PNG of instance numbers; one of them is broken."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(2):
        item = picture(index)
        Image.fromarray(item.image).save(folder / f"{index}.jpg")
        numbers = (item.masks * np.array([1, 2], dtype=np.uint8)[:, None, None]).max(axis=0)
        Image.fromarray(numbers).save(folder / f"{index}.png")
    (folder / "2.jpg").write_bytes(b"no image")
    Image.fromarray(numbers).save(folder / "2.png")
    return folder


@pytest.mark.usefixtures("small_input")
def test_command_evaluates_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", str(folder), "--checkpoint", "bundled", "--metrics", "click, box"]
    teacher = ["--teacher", "bundled", "--teacher-type", "vit_t"]
    assert main([*arguments, *teacher, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "warning: skipped image 2 of 3 (1 skipped so far)" in captured.err
    assert "warning: 1 of 3 images are left out: 1 not readable" in captured.err
    evaluation = Evaluation.load(out)
    assert evaluation.format_table() in captured.out
    assert evaluation.scores["teacher_click"].mean == 1 and evaluation.unreadable == 1
    assert evaluation.scores["box"].count == 4
    assert (out / "worst_and_best.png").exists() and (out / "scores.png").exists()

    assert main([*arguments, "--seed", "1", "--out", str(out)]) == 2
    assert "seed was 0, is now 1" in capsys.readouterr().err


@pytest.mark.usefixtures("small_input")
@pytest.mark.parametrize("metric", ["pair_500", "corrective_1"])
def test_command_without_a_picture(
    folder: Path, tmp_path: Path, metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(folder), "--checkpoint", "bundled", "--metrics", metric]
    assert main([*arguments, "--limit", "1", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "no worst_and_best.png: no mask has a score of" in captured.err
    assert f"| {metric} |" in captured.out and (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.usefixtures("small_input")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metrics", "clack"), "no metric 'clack'"),
        (("--strict", "--metrics", "box"), "2.jpg"),
        (("--model-type", "vit_b", "--checkpoint", "bundled"), "holds a vit_t, not a vit_b"),
        (("--teacher", "nowhere.pt"), "nowhere.pt"),
    ],
)
def test_command_names_mistakes(
    folder: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--checkpoint", "bundled", *arguments)
    assert main(["evaluate", str(folder), *given]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("mobile-sam: ")


def test_command_wants_the_checkpoint_of_upstreams_types(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(folder), "--model-type", "vit_h"]) == 2
    assert "required for vit_h" in capsys.readouterr().err
