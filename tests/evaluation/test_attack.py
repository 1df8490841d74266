"""Attacks: bounded, stronger with more steps, and measured by the ordinary predictor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything.modeling import Sam

from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.evaluation.attack import (
    GOALS,
    attack,
    evaluate_attack,
    format_attacks,
    predict_logits,
)
from mobile_sam_plugin.evaluation.examiner import predict
from mobile_sam_plugin.evaluation.metrics import mask_iou
from mobile_sam_plugin.evaluation.prompts import Prompt, make_prompt
from mobile_sam_plugin.evaluation.results import Evaluation

from .test_evaluation import Pictures, picture, small_input, tiny_sam  # noqa: F401
from .test_predictors import Wrapped

CUP = {
    "click": Prompt(np.array([[320, 200]]), np.array([1])),
    "box": Prompt(np.zeros((0, 2), int), np.zeros(0, int), np.array([150, 60, 480, 330])),
}


@pytest.mark.parametrize("kind", ["click", "box"])
def test_differentiable_path_is_that_of_the_predictor(
    small_sam: MobileSam, coffee: NDArray[np.uint8], kind: str
) -> None:
    pixels = torch.tensor(coffee).permute(2, 0, 1)[None].float().requires_grad_()
    logits = predict_logits(small_sam, pixels, CUP[kind])
    assert logits.requires_grad and logits.shape == (400, 600)
    predictor = SamPredictor(small_sam)
    predictor.set_image(coffee)
    expected = predict(predictor, [CUP[kind]]).best_masks[0]
    # Pillow resizes in whole numbers, and torch does not.
    assert mask_iou((logits > 0).detach().numpy(), expected) > 0.95


def test_differentiable_path_chooses_the_mask_that_the_predictor_chooses() -> None:
    item, chosen = picture(0), set()
    prompt = make_prompt("click", item.masks[0], (0, 0, 0))
    assert prompt is not None
    for seed in range(3):
        sam = tiny_sam(seed)
        pixels = torch.tensor(item.image).permute(2, 0, 1)[None].float()
        mask = (predict_logits(sam, pixels, prompt) > 0).numpy()
        predictor = SamPredictor(sam)
        predictor.set_image(item.image)
        expected = predict(predictor, [prompt])
        ious = mask_iou(expected.masks[0], mask[None])
        assert ious.argmax() == expected.best[0] and ious.max() > 0.95
        chosen.add(int(expected.best[0]))
    assert chosen == {0, 1, 2}


@pytest.mark.parametrize(("goal", "seed"), [("remove", 5), ("remove", 7), ("enlarge", 1)])
def test_attack_does_not_move_the_chosen_mask_the_wrong_way(goal: str, seed: int) -> None:
    """With these weights it did, when it moved all three masks: the model chose another one."""
    item, sam = picture(1), tiny_sam(seed)
    prompt = make_prompt("click", item.masks[0], (0, 1, 0))
    assert prompt is not None
    wanted = np.full(item.image.shape[:2], goal == "enlarge")
    predictor, shares = SamPredictor(sam), []
    for image in (item.image, attack(sam, item.image, prompt, wanted)):
        predictor.set_image(image)
        shares.append(predict(predictor, [prompt]).best_masks[0].mean())
    assert shares[1] < shares[0] if goal == "remove" else shares[1] > shares[0]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "goal"), [("box", "remove"), ("click", "enlarge")])
def test_attack_stays_in_its_bound_and_comes_closer_to_its_goal(
    small_sam: MobileSam, coffee: NDArray[np.uint8], kind: str, goal: str
) -> None:
    predictor = SamPredictor(small_sam)
    predictor.set_image(coffee)
    clean = predict(predictor, [CUP[kind]]).best_masks[0]
    kept = coffee.copy()
    wanted = np.full_like(clean, goal == "enlarge")
    attacked = attack(small_sam, coffee, CUP[kind], wanted, epsilon=8, steps=5)
    assert attacked.dtype == np.uint8 and np.abs(attacked.astype(int) - coffee).max() == 8
    np.testing.assert_array_equal(coffee, kept)
    assert all(weight.grad is None for weight in small_sam.parameters())
    predictor.set_image(attacked)
    area = predict(predictor, [CUP[kind]]).best_masks[0].sum()
    if goal == "remove":
        assert 0 < area < 0.5 * clean.sum()
    else:
        assert area > 10 * clean.sum()


@pytest.fixture(scope="module")
def sam() -> Sam:
    return tiny_sam()


@pytest.mark.parametrize("goal", GOALS)
def test_scores_are_those_of_the_attacked_image(sam: Sam, goal: str, tmp_path: Path) -> None:
    """By the saved image and the predictor."""
    item = picture(0)
    found = evaluate_attack(
        sam,
        {"itself": sam, "other": Wrapped(tiny_sam(1))},
        [item],
        goal,  # type: ignore[arg-type]
        steps=2,
        metrics=["box"],
        folder=tmp_path,
        save_images=True,
    )
    predictor = SamPredictor(sam)
    for place, truth in enumerate(item.masks):
        prompt = make_prompt("box", truth, (0, 0, place))
        assert prompt is not None
        attacked = np.asarray(Image.open(tmp_path / "attacked" / f"000000_{place:03}_box.png"))
        masks = []
        for image in (item.image, attacked):
            predictor.set_image(image)
            masks.append(predictor.predict(box=prompt.box, multimask_output=False)[0][0])
        wanted = {
            "remove": np.zeros_like(truth),
            "enlarge": np.ones_like(truth),
            "target": item.masks[1 - place],
        }[goal]
        for name, first, second in (
            ("box itself", masks[0], truth),
            ("attacked_box itself", masks[1], truth),
            ("clean_box itself", masks[1], masks[0]),
            ("goal_box itself", masks[1], wanted),
        ):
            score = found.images[0].scores[name][place]
            assert score == pytest.approx(float(mask_iou(first, second))), name
    assert found.scores["clean_box other"].count == 2


def test_goals_that_do_not_exist_are_skipped_and_mistakes_refused(sam: Sam) -> None:
    one = picture(0)
    found = evaluate_attack(sam, {"it": sam}, [one], "target", masks_per_image=1, steps=1)
    assert found.scores["clean_click it"].skipped == 1
    assert "| it | it | click |  |  |  |  | 0 |" in format_attacks({"it": found})
    for more, message in (
        ({"goal": "move"}, "no goal 'move', only remove, enlarge, target"),
        ({"epsilon": 0}, "epsilon must be 1 to 255, not 0"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"save_images": True}, "need a folder"),
        ({"metrics": ["click_best"]}, "no metric 'click_best'"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_attack(sam, {"it": sam}, [one], **more)


def test_interrupted_attack_goes_on(sam: Sam, tmp_path: Path) -> None:
    asked = {"epsilon": 4, "steps": 1, "folder": tmp_path}
    found = evaluate_attack(sam, {"it": sam}, Pictures(), **asked)  # type: ignore[arg-type]
    journal = (tmp_path / "images.jsonl").read_text()
    again = evaluate_attack(sam, {"it": sam}, Pictures(), **asked)  # type: ignore[arg-type]
    assert again == found and (tmp_path / "images.jsonl").read_text() == journal
    with pytest.raises(UserError, match="epsilon was 4, is now 8"):
        evaluate_attack(sam, {"it": sam}, Pictures(), steps=1, folder=tmp_path)


@pytest.mark.usefixtures("small_input")
def test_command_attacks_every_sam(
    tmp_path: Path,
    tiny_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "scenes:1", "--checkpoint", str(tiny_file), "--masks-per-image", "1"]
    arguments += ["--teacher", str(tiny_file), "--teacher-type", "vit_t", "--attack", "fgsm"]
    assert main([*arguments, "--epsilon", "4", "--save-images", "--out", "out"]) == 0
    report = Path("out/attack.md").read_text()
    assert report in capsys.readouterr().out + "\n"
    for source in ("vit_t", "teacher"):
        found = Evaluation.load(f"out/{source}")
        assert found.settings["epsilon"] == 4 and found.settings["steps"] == 1
        assert len(list(Path(f"out/{source}/attacked").iterdir())) == 1
        for model in ("vit_t", "teacher"):
            assert f"| {source} | {model} | click |" in report
    for more, message in (
        (["--steps", "3"], "fgsm takes one step"),
        (["--save-images"], "the images need --out"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert main([*arguments[:-2], "--goal", "enlarge"]) == 2
    assert "--epsilon, --steps, --goal and --save-images need it" in capsys.readouterr().err
