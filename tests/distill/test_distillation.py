"""Distillation and training: losses, prompts, objectives, batches, and whole runs."""

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything.modeling import ImageEncoderViT, Sam
from tensorboard.summary.writer.event_file_writer import _AsyncWriter
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

from mobile_sam_plugin import MobileSam, SamPredictor, sam_model_registry
from mobile_sam_plugin.checkpoint import read_checkpoint
from mobile_sam_plugin.cli.distill import app
from mobile_sam_plugin.datasets.annotated import AnnotatedImage
from mobile_sam_plugin.datasets.formats import write_annotated_image
from mobile_sam_plugin.distill.augmentation import change_colors, lower_quality, random_crop
from mobile_sam_plugin.distill.batches import (
    MaskExamples,
    StepBatchSampler,
    _draw,
    shuffled_index,
)
from mobile_sam_plugin.distill.embed import embed
from mobile_sam_plugin.distill.objectives import (
    Batch,
    Coupled,
    Decoupled,
    Objective,
    Prompts,
    Supervised,
    corrective_clicks,
    dice_loss,
    focal_loss,
    mask_iou,
    mask_losses,
    predict_masks,
    random_points,
    sample_prompts,
)
from mobile_sam_plugin.distill.options import PARTS, TrainingOptions
from mobile_sam_plugin.distill.training import _log_errors_told_once, ramped_average, train
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import list_images
from mobile_sam_plugin.inputs import preprocess
from mobile_sam_plugin.mobile_sam import set_img_size
from mobile_sam_plugin.records import encode_mask
from mobile_sam_plugin.scenes.scenes import Scenes, make_scene

from .processes import StartProcess, launched, needs_fork, wait

pytest.importorskip("tensorboard")

SIZE = 64


@pytest.fixture(scope="module")
def sam() -> MobileSam:
    """MobileSAM for small images, untrained; not to be changed by a test."""
    torch.manual_seed(0)
    model = MobileSam.untrained()
    set_img_size(model, SIZE)
    return model


# Losses


def test_focal_loss_of_a_coin_flip() -> None:
    logits = torch.zeros(2, 3, 5)
    targets = torch.stack([torch.ones(3, 5), torch.zeros(3, 5)])
    expected = torch.tensor([0.25, 0.75]) * 0.5**2 * math.log(2)
    torch.testing.assert_close(focal_loss(logits, targets), expected)


def test_dice_loss() -> None:
    target = torch.zeros(1, 4, 4)
    target[:, :2] = 1
    right, wrong, coin = 100 * (2 * target - 1), 100 * (1 - 2 * target), torch.zeros(1, 4, 4)
    assert dice_loss(right, target).item() == pytest.approx(0)
    assert dice_loss(wrong, target).item() == pytest.approx(1 - 1 / 17)
    assert dice_loss(coin, target).item() == pytest.approx(1 - 9 / 17)


def test_mask_iou() -> None:
    masks = torch.zeros(3, 2, 4, dtype=torch.bool)
    targets = masks.clone()
    masks[0, 0], targets[0, :, :2] = True, True
    masks[1], targets[1] = True, True
    assert mask_iou(masks, targets).tolist() == pytest.approx([2 / 6, 1, 0])


def test_only_the_best_of_three_masks_is_trained_for_a_click() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.bool)
    target[:, :4] = True
    sign = torch.where(target, 1.0, -1.0)
    logits = torch.stack([sign, -sign, sign, 0 * sign], dim=1).requires_grad_()
    iou = torch.zeros(1, 4, requires_grad=True)

    focal, dice, iou_error = mask_losses(logits, iou, target, torch.ones(1), 20)

    torch.testing.assert_close(focal, focal_loss(sign, target.float()))
    torch.testing.assert_close(dice, dice_loss(sign, target.float()))
    assert iou_error.item() == pytest.approx((0 + 1 + 0) / 3)  # of the three masks' IoU
    (20 * focal + dice + iou_error).sum().backward()
    assert logits.grad is not None and iou.grad is not None
    assert (logits.grad[0] != 0).any(-1).any(-1).tolist() == [False, False, True, False]
    assert iou.grad[0, 0] == 0


def test_a_box_trains_both_kinds_of_masks() -> None:
    target = torch.ones(1, 8, 8, dtype=torch.bool)
    ones = torch.ones(1, 8, 8)
    logits = torch.stack([0 * ones, 3 * ones, -ones, -ones], dim=1)
    logits.requires_grad_()
    focal, dice, _ = mask_losses(logits, torch.zeros(1, 4), target, torch.full((1,), 0.5), 20)
    expected = dice_loss(logits, torch.ones_like(logits))[0, :2].mean()
    torch.testing.assert_close(dice[0], expected)
    (focal + dice).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0] != 0).any(-1).any(-1).tolist() == [True, True, False, False]


# Prompts


def test_random_points_are_uniform_in_their_regions() -> None:
    regions = torch.zeros(4000, 3, 5, dtype=torch.bool)
    regions[:, 0, 1] = regions[:, 2, 4] = True
    regions[-1] = False
    points = random_points(regions, torch.Generator().manual_seed(0))
    assert points[-1].tolist() == [0, 0]
    first = (points[:-1] == torch.tensor([1, 0])).all(1)
    second = (points[:-1] == torch.tensor([4, 2])).all(1)
    assert (first | second).all()
    assert 0.45 < first.float().mean() < 0.55


def test_first_prompts_follow_sams_recipe() -> None:
    size = 128
    masks = torch.zeros(3000, size, size, dtype=torch.bool)
    masks[:1500, 10:31, 20:61] = True
    masks[1500:, 2:123, 3:124] = True
    prompts = sample_prompts(masks, torch.Generator().manual_seed(0))
    x, y = prompts.points.long().unbind(1)
    assert masks[torch.arange(3000), y, x].all()
    assert 0.45 < prompts.is_box.float().mean() < 0.55
    noise = prompts.boxes[:1500] - torch.tensor([20.0, 10, 60, 30])
    limit = 20 / 1024 * size
    assert noise.abs().max() == limit
    assert noise[:, 1::2].std() == pytest.approx(0.1 * 20, rel=0.25)  # but for what is cut off
    assert (prompts.boxes[1500:] - torch.tensor([3.0, 2, 123, 122])).abs().max() == limit


def test_corrective_clicks_lie_in_the_error() -> None:
    torch.manual_seed(0)
    targets = torch.rand(300, 6, 6) < 0.5
    masks = torch.rand(300, 6, 6) < 0.5
    masks[:5] = targets[:5]
    points, labels = corrective_clicks(masks, targets)
    at = torch.arange(300), points[:, 1], points[:, 0]
    assert (masks[at] != targets[at])[5:].all()
    assert targets[at][:5].all()  # nothing to correct: a click on the object
    assert torch.equal(labels.bool(), targets[at])
    assert 0 < labels.float().mean() < 1


def test_masks_of_several_images_at_once_are_upstreams(small_sam: MobileSam) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(2, 256, 14, 14).repeat_interleave(2, 0)
    points = torch.tensor([[20.0, 40], [60, 10], [150, 170], [2, 4]])
    boxes = torch.tensor([[10.0, 12, 80, 100], [1, 2, 3, 4], [1, 120, 140, 200], [9, 9, 99, 99]])
    is_box = torch.tensor([False, True, True, False])
    clicks, labels = torch.rand(4, 1, 2) * 224, torch.tensor([[1.0], [0], [0], [1]])
    mask = torch.randn(4, 1, 56, 56)
    for further, kinds, prior in (
        (clicks[:, :0], labels[:, :0], None),
        (clicks, labels, mask),
    ):
        logits, iou = predict_masks(
            small_sam, embeddings, Prompts(points, boxes, is_box), further, kinds, prior
        )
        for index in range(4):
            one = slice(index, index + 1)
            if is_box[index]:
                clicked = (further[one], kinds[one]) if further.shape[1] else None
                box = boxes[one]
            else:
                clicked = (
                    torch.cat([points[one, None], further[one]], 1),
                    torch.cat([torch.ones(1, 1), kinds[one]], 1),
                )
                box = None
            sparse, dense = small_sam.prompt_encoder(
                clicked, box, None if prior is None else prior[one]
            )
            for multimask, masks in ((True, slice(1, 4)), (False, slice(0, 1))):
                expected_logits, expected_iou = small_sam.mask_decoder(
                    image_embeddings=embeddings[one],
                    image_pe=small_sam.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=multimask,
                )
                scale = expected_logits.abs().max().item()
                torch.testing.assert_close(
                    logits[one, masks], expected_logits, atol=1e-4 * scale, rtol=0
                )
                torch.testing.assert_close(iou[one, masks], expected_iou, atol=1e-4, rtol=0)


def test_image_size_must_be_a_multiple_of_16(sam: MobileSam) -> None:
    with pytest.raises(ValueError, match="multiple of 16, not 100"):
        set_img_size(sam, 100)


# Objectives


def _batch() -> Batch:
    torch.manual_seed(0)
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.bool)
    masks[:, 8:40, 12:50] = True
    prompts = {name: x.unflatten(0, (2, 2)) for name, x in sample_prompts(masks)._asdict().items()}
    return {
        "pixels": torch.randn(2, 3, SIZE, SIZE),
        "size": torch.tensor([[SIZE, SIZE], [SIZE, 40]]),
        "embedding": torch.randn(2, 256, SIZE // 16, SIZE // 16).half(),
        "masks": masks[:, ::4, ::4].unflatten(0, (2, 2)),
        "is_real": torch.ones(2, 2, dtype=torch.bool),
        **prompts,
    }


@pytest.fixture(scope="module")
def pristine(sam: MobileSam) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in sam.state_dict().items()}


@pytest.mark.parametrize(
    ("objective", "trained"),
    [
        (lambda sam: Decoupled(sam), {"image_encoder"}),
        (lambda sam: Coupled(sam, ["encoder"], 2), {"image_encoder"}),
        (
            lambda sam: Coupled(sam, PARTS, 2),
            {"image_encoder", "prompt_encoder", "mask_decoder"},
        ),
        (
            lambda sam: Supervised(sam, ["prompt_encoder", "mask_decoder"]),
            {"prompt_encoder", "mask_decoder"},
        ),
        (lambda sam: Supervised(sam, ["encoder"]), {"image_encoder"}),
        (
            lambda sam: Supervised(sam, PARTS, 2, 2),
            {"image_encoder", "prompt_encoder", "mask_decoder"},
        ),
    ],
    ids=["decoupled", "semi-coupled", "coupled", "finetune", "encoder", "supervised"],
)
def test_gradients_reach_exactly_the_parts_that_are_trained(
    sam: MobileSam, pristine: dict[str, Tensor], objective: Any, trained: set[str]
) -> None:
    sam.load_state_dict(pristine)
    sam.zero_grad()
    module = objective(sam).train()
    losses = module(_batch())
    losses["loss"].backward()

    of_coupled_prompts = {"mask_downscaling"}  # Coupled has no mask prompts
    for name, parameter in module.named_parameters():
        part = name.split(".")[1]
        if name.startswith("teacher.") or part not in trained:
            assert parameter.grad is None, name
        elif isinstance(module, Coupled) and of_coupled_prompts & set(name.split(".")):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    for part in trained:
        gradients = [p.grad for p in getattr(sam, part).parameters() if p.grad is not None]
        assert sum(gradient.abs().sum() for gradient in gradients) > 0
    # Batch norms of a frozen encoder keep their statistics, too.
    moved = {
        name.split(".")[0]
        for name, value in sam.state_dict().items()
        if not torch.equal(value, pristine[name])
    }
    assert moved == ({"image_encoder"} & trained)


def test_losses_add_up(sam: MobileSam, pristine: dict[str, Tensor]) -> None:
    sam.load_state_dict(pristine)
    objectives: list[tuple[Objective, float]] = [
        (Supervised(sam, ["encoder"]), 20),
        (Supervised(sam, ["encoder"], focal_weight=3), 3),
        (Coupled(sam, ["encoder"], 3), 20),
        (Coupled(sam, ["encoder"], 3, focal_weight=0), 0),
    ]
    for objective, weight in objectives:
        losses = objective.train()(_batch())
        total = weight * losses["focal"] + losses["dice"] + losses["iou_error"]
        torch.testing.assert_close(losses["loss"], total)


def test_a_part_that_does_not_exist_is_refused(sam: MobileSam) -> None:
    with pytest.raises(UserError, match=r"must be of encoder, .*, not \['decoder'\]"):
        Supervised(sam, ["encoder", "decoder"])


def test_coupled_compares_with_the_teachers_masks(
    sam: MobileSam, pristine: dict[str, Tensor]
) -> None:
    sam.load_state_dict(pristine)
    objective = Coupled(sam, ["encoder"], 4).eval()
    batch = _batch()
    with torch.no_grad():
        batch["embedding"] = objective.encode(batch)
        same = objective(batch)
        batch["embedding"] = torch.randn_like(batch["embedding"])
        other = objective(batch)
    assert same["iou_error"].item() == pytest.approx(0, abs=1e-9)
    assert other["iou_error"].item() > 1e-6


def test_images_without_masks_train_nothing(sam: MobileSam, pristine: dict[str, Tensor]) -> None:
    sam.load_state_dict(pristine)
    sam.zero_grad()
    blank = AnnotatedImage("blank", np.zeros((40, 60, 3), np.uint8), np.zeros((0, 40, 60), bool))
    example = MaskExamples([[blank]], SIZE, 2, seed=0)[0]
    assert not example["is_real"].any()
    batch = torch.utils.data.default_collate([example])
    losses = Supervised(sam, ["prompt_encoder", "mask_decoder"])(batch)
    losses["loss"].backward()
    assert losses["loss"].item() == 0
    assert all((p.grad == 0).all() for p in sam.mask_decoder.parameters() if p.grad is not None)


# Batches


def test_examples_are_what_sam_sees() -> None:
    scene = make_scene(3, (96, 128))
    examples = MaskExamples([[scene]], SIZE, 6, seed=5)
    sizes = set()
    for position in range(12):
        example = examples[position]
        again = MaskExamples([[scene]], SIZE, 6, seed=5)[position]
        assert all(torch.equal(example[name], again[name]) for name in example)
        assert example["pixels"].shape == (3, SIZE, SIZE)
        assert example["masks"].shape == (6, SIZE // 4, SIZE // 4)
        padding = (example["pixels"] == 0).all(0)
        height, width = SIZE - padding.all(1).sum().item(), SIZE - padding.all(0).sum().item()
        sizes.add((height, width))
        assert not example["masks"][:, -(-height // 4) :].any()
        assert not example["masks"][:, :, -(-width // 4) :].any()
    assert len(sizes) > 3  # crops


def test_a_mask_lands_where_its_pixels_land() -> None:
    image = np.zeros((100, 80, 3), np.uint8)
    image[30:70, 10:50] = 255
    mask = image[None, :, :, 0] > 0
    for position in range(8):
        example = MaskExamples([[AnnotatedImage("square", image, mask)]], SIZE, 1, 0)[position]
        bright = nn.functional.avg_pool2d(example["pixels"][:1], 4)[0] > 0
        assert mask_iou(example["masks"][0], bright) > 0.75
        x, y = example["points"][0].long().tolist()
        assert example["pixels"][0, y, x] > 0


def test_steps_divide_the_stream_among_processes_and_batches() -> None:
    def take(**parts: int) -> list[int]:
        return [position for batch in StepBatchSampler(2, 4, 12, **parts) for position in batch]

    assert take() == list(range(24, 48))
    divided = [take(batches=2, process=process, processes=3) for process in range(3)]
    assert sorted(position for part in divided for position in part) == list(range(24, 48))
    assert [sorted(x for part in divided for x in part[:4]), len(divided[0])] == [
        list(range(24, 36)),
        8,
    ]
    assert (
        len(StepBatchSampler(2, 4, 12, batches=2))
        == len(list(StepBatchSampler(2, 4, 12, batches=2)))
        == 4
    )
    with pytest.raises(ValueError, match="12 images per step .* 5 processes"):
        StepBatchSampler(0, 1, 12, processes=5)


def test_every_epoch_has_an_order_of_its_own() -> None:
    orders = [[shuffled_index(7 * epoch + i, 7, seed=1) for i in range(7)] for epoch in range(3)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


# Whole runs


def test_ramped_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=ramped_average(0.5))
    expected = 0.0
    for count, value in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        decay = min(0.5, (1 + count) / (10 + count)) if count else 0.0
        expected = decay * expected + (1 - decay) * value
    assert next(average.parameters()).item() == pytest.approx(expected)
    assert decay == 0.5


def test_whole_numbers_are_not_averaged() -> None:
    model: Any = nn.BatchNorm1d(2)
    model.register_buffer("indices", torch.arange(196), persistent=False)
    average: Any = AveragedModel(model, multi_avg_fn=ramped_average(0.999), use_buffers=True)
    for count in range(1, 31):
        nn.init.constant_(model.num_batches_tracked, count)
        average.update_parameters(model)
        assert torch.equal(average.module.indices, torch.arange(196))
        assert average.module.num_batches_tracked == count


def _tiny_teacher() -> Sam:
    """SAM's vit_b for images of 64 x 64, with 2 blocks of 64 channels, untrained."""
    torch.manual_seed(1)
    teacher: Any = MobileSam.untrained()
    teacher.image_encoder = ImageEncoderViT(
        img_size=SIZE,
        embed_dim=64,
        depth=2,
        num_heads=2,
        out_chans=256,
        use_rel_pos=True,
        window_size=2,
        global_attn_indexes=(1,),
    )
    set_img_size(teacher, SIZE)
    return Sam(teacher.image_encoder, teacher.prompt_encoder, teacher.mask_decoder).eval()


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "images").mkdir()
    for seed in range(8):
        scene = make_scene(seed, (48 + 4 * seed, 64))
        Image.fromarray(scene.image).save(folder / "images" / f"{seed}.png")
    embed(_tiny_teacher(), folder / "images", folder / "embeddings", shard_size=3)
    return folder / "embeddings"


@pytest.fixture(scope="module")
def options(embeddings: Path) -> TrainingOptions:
    return TrainingOptions(
        "decoupled",
        str(embeddings),
        backbone="test_efficientnet",  # timm's own, made for tests: small and quick
        steps=30,
        batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        warmup_steps=3,
        evaluate_every=15,
        save_every=5,
        log_every=1,
        workers=0,
    )


@pytest.fixture(scope="module")
def run(options: TrainingOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert train(options, folder) == folder / "best.safetensors"
    return folder


def _losses(folder: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder / "log"))
    log.Reload()
    return {event.step: event.value for event in log.Scalars("loss")}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As other processes have here: sums over several threads differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _train(
    options: TrainingOptions, folder: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> None:
    """A run in a process of its own, with these variables beside those of this one."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    train(options, folder)


def test_a_log_that_cannot_be_written_is_told(options: TrainingOptions, tmp_path: Path) -> None:
    """As by a full disk: accelerate fails at ending what it could not begin."""
    (tmp_path / "log").touch()
    with pytest.raises(OSError, match="log"):
        train(options, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_an_error_of_the_log_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    with open("/dev/full", "wb", buffering=0) as full, _log_errors_told_once():
        writer = _AsyncWriter(RecordWriter(full))
        with pytest.raises(OSError, match="No space left"):
            for _ in range(1000):
                writer.write(b"entry")
                time.sleep(0.01)
        other = threading.Thread(target=[].pop)
        other.start()
        other.join()
    assert [each.exc_type for each in told] == [IndexError]


def test_a_student_learns_its_teachers_embeddings(run: Path, coffee: NDArray[np.uint8]) -> None:
    losses = _losses(run)
    assert list(losses) == list(range(1, 31))
    assert losses[1] > 1.5  # two sets of independent numbers of variance 1
    assert np.mean([losses[step] for step in range(26, 31)]) < losses[1] / 5

    for name in ("best.safetensors", "last.safetensors"):
        tensors = read_checkpoint(run / name)
        assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}
    student = sam_model_registry["vit_t"](run / "best.safetensors")
    predictor = SamPredictor(student)
    predictor.set_image(coffee)
    masks, scores, _ = predictor.predict(np.array([[300, 130]]), np.array([1]))
    assert masks.shape == (3, 400, 600) and np.isfinite(scores).all()


@pytest.mark.process
@needs_fork
def test_a_run_that_was_killed_ends_with_the_same_weights(
    run: Path, options: TrainingOptions, tmp_path: Path, start_process: StartProcess
) -> None:
    process = start_process(_train, options, tmp_path)
    while process.is_alive() and not (tmp_path / "state.pt").exists():
        time.sleep(0.01)
    process.kill()
    assert wait(process) == [-signal.SIGKILL]
    reached = torch.load(tmp_path / "state.pt", weights_only=True)["step"]
    assert 0 < reached < 30

    train(options, tmp_path)

    assert _losses(tmp_path) == _losses(run)
    for name in ("best.safetensors", "last.safetensors"):
        expected, found = read_checkpoint(run / name), read_checkpoint(tmp_path / name)
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_another_option_is_refused_by_its_name(run: Path, options: TrainingOptions) -> None:
    with pytest.raises(ValueError, match="learning_rate was 0.003, is now 0.001"):
        train(replace(options, learning_rate=1e-3), run)
    before = (run / "last.safetensors").read_bytes()
    train(replace(options, workers=1, log_every=7), run)  # these may change; it is at its end
    assert (run / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize("objective", ["semi-coupled", "coupled"])
def test_distillation_through_the_decoder(
    objective: str, options: TrainingOptions, run: Path, tmp_path: Path
) -> None:
    start = run / "last.safetensors"
    shorter = replace(
        options,
        objective=objective,
        checkpoint=str(start),
        backbone=None,
        steps=2,
        warmup_steps=1,
        gradient_accumulation_steps=1,
    )
    before, after = read_checkpoint(start), read_checkpoint(train(shorter, tmp_path))
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    both = {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert changed == (both if objective == "coupled" else {"image_encoder"})


def test_a_student_starts_with_its_teachers_decoder(
    options: TrainingOptions, tmp_path: Path
) -> None:
    torch.save(_tiny_teacher().state_dict(), tmp_path / "teacher.pt")
    teacher = read_checkpoint(tmp_path / "teacher.pt")
    short = replace(options, steps=1, warmup_steps=0, teacher=str(tmp_path / "teacher.pt"))
    student = read_checkpoint(train(short, tmp_path / "run"))
    of_decoder = [key for key in student if not key.startswith("image_encoder.")]
    assert of_decoder and all(torch.equal(student[key], teacher[key]) for key in of_decoder)
    with pytest.raises(ValueError, match="teacher '', and the decoder of 'bundled' does not fit"):
        train(replace(short, teacher="bundled"), tmp_path / "other")


def test_supervised_on_a_mixture_and_finetune_on_scenes(tmp_path: Path) -> None:
    for folder in ("objects", "photographs", "labelled"):
        (tmp_path / folder).mkdir()
    disc = np.zeros((40, 40, 4), np.uint8)
    cv2.circle(disc, (20, 20), 15, (200, 40, 40, 255), cv2.FILLED)
    Image.fromarray(disc).save(tmp_path / "objects" / "disc.png")
    scene = make_scene(1, 48)
    Image.fromarray(scene.image).save(tmp_path / "photographs" / "scene.png")
    write_annotated_image(tmp_path / "labelled", "sa_0", scene)
    options = TrainingOptions(
        "supervised",
        ["scenes", "composites", str(tmp_path / "labelled")],
        steps=2,
        weights=(1, 2, 2),
        objects=str(tmp_path / "objects"),
        photographs=str(tmp_path / "photographs"),
        backbone="test_efficientnet",
        img_size=SIZE,
        batch_size=8,
        prompts_per_image=3,
        validation="scenes:2",
        evaluate_every=1,
        warmup_steps=1,
        workers=1,
    )
    best = train(options, tmp_path / "supervised")
    finetuned = train(
        replace(
            options,
            data="scenes:4",
            weights=None,
            objects=None,
            photographs=None,
            freeze=["encoder"],
            checkpoint=str(best),
            backbone=None,
        ),
        tmp_path / "finetuned",
    )
    before, after = read_checkpoint(best), read_checkpoint(finetuned)
    assert {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])} == {
        "prompt_encoder",
        "mask_decoder",
    }


def test_broken_images_are_skipped_or_end_the_run(
    options: TrainingOptions, embeddings: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (embeddings.parent / "images").iterdir():
        (images / path.name).write_bytes(b"" if path.stem in "25" else path.read_bytes())
    short = replace(options, steps=4, images=str(images))
    with pytest.warns(UserWarning, match="2 of 8 images are left out: 2 not readable"):
        train(short, tmp_path / "run")
    with pytest.raises(ValueError, match="not an image that can be read here"):
        train(replace(short, strict=True), tmp_path / "strict")
    assert not (tmp_path / "strict" / "run.json").exists()


@pytest.mark.process
@needs_fork
def test_processes_share_the_work_and_go_on_from_one_state(
    tmp_path: Path, start_process: StartProcess
) -> None:
    """As on two machines: the second's folder lacks the state that the first goes on from."""
    data = tmp_path / "data"
    data.mkdir()
    for index in range(8):
        write_annotated_image(data, f"sa_{index}", Scenes(8, SIZE)[index])
    options = TrainingOptions(
        "supervised",
        str(data),
        steps=3,
        backbone="test_efficientnet",
        img_size=SIZE,
        batch_size=4,
        freeze=["encoder"],  # batch norms see the images of one process
        corrective_clicks=0,  # each process draws its own
        warmup_steps=1,
        save_every=1,
        log_every=1,
        workers=0,
        strict=True,
    )
    train(options, tmp_path / "one")
    broken = data / f"sa_{shuffled_index(4, 8, seed=0)}.jpg"  # of the second step
    whole = broken.read_bytes()
    broken.unlink()
    with pytest.raises(FileNotFoundError):
        train(options, tmp_path / "first")
    broken.write_bytes(whole)
    assert torch.load(tmp_path / "first" / "state.pt", weights_only=True)["step"] == 1

    first = launched(0, 2)
    second = first | {"RANK": "1", "LOCAL_RANK": "1"}
    processes = [
        start_process(_train, options, tmp_path / "first", first),
        start_process(_train, options, tmp_path / "second", second),
    ]
    assert wait(*processes) == [0, 0]
    expected, found = _losses(tmp_path / "one"), _losses(tmp_path / "first")
    assert found == pytest.approx(expected, rel=1e-3) and len(found) == 3
    assert not list((tmp_path / "second").glob("*"))


def test_other_embeddings_under_the_same_name_are_refused(
    options: TrainingOptions, embeddings: Path, tmp_path: Path
) -> None:
    store = tmp_path / "embeddings"
    shutil.copytree(embeddings, store)
    short = replace(
        options, data=str(store), steps=1, warmup_steps=0, gradient_accumulation_steps=1
    )
    train(short, tmp_path / "run")
    shutil.rmtree(store)
    embed(_tiny_teacher(), [embeddings.parent / "images" / "1.png"], store)
    with pytest.raises(ValueError, match="embeddings has changed"):
        train(short, tmp_path / "run")


def test_a_gradient_that_is_not_finite_reaches_no_weight(
    options: TrainingOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite; of the second step one gradient is infinite, or of all steps."""
    from mobile_sam_plugin.distill import training

    build, steps = training._build_student, {2}

    def build_with_hook(options: TrainingOptions) -> MobileSam:
        student = build(options)
        calls = iter(range(1, 100))
        weight = student.image_encoder.neck[2].weight
        weight.register_hook(lambda g: g * math.inf if next(calls) in steps else g)
        return student

    monkeypatch.setattr(training, "_build_student", build_with_hook)
    short = replace(options, steps=3, warmup_steps=0, gradient_accumulation_steps=1)
    with pytest.warns(UserWarning) as caught:
        train(short, tmp_path / "run")
    told = [str(each.message) for each in caught if each.category is UserWarning]
    assert "skipped step 2: its gradient is not finite" in told
    assert "skipped 1 of 3 steps, because their gradients were not finite" in told
    for tensors in (
        read_checkpoint(tmp_path / "run" / "last.safetensors"),
        torch.load(tmp_path / "run" / "state.pt", weights_only=True)["model"],
    ):
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())

    steps.update(range(1, 100))
    with pytest.raises(FloatingPointError, match="11 steps in a row are not finite"):
        train(replace(short, steps=12), tmp_path / "hopeless")
    state = torch.load(tmp_path / "hopeless" / "state.pt", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def _one_mask(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return np.zeros((height, width, 3), np.uint8), np.ones((1, height, width), dtype=bool)


def test_images_that_do_not_fit_are_skipped(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for index, scene in enumerate(Scenes(3, SIZE)[i] for i in range(3)):
        write_annotated_image(data, f"sa_{index}", scene)
    thin = AnnotatedImage("", *_one_mask(1, 600))
    write_annotated_image(data, "sa_3", thin)
    options = TrainingOptions(
        "supervised",
        str(data),
        steps=2,
        backbone="test_efficientnet",
        img_size=SIZE,
        batch_size=4,
        prompts_per_image=1,
        freeze=["encoder"],
        validation=str(data),
        evaluate_every=1,
        workers=1,
    )
    with pytest.warns(UserWarning) as caught:
        train(options, tmp_path / "run")
    told = [str(each.message) for each in caught]
    assert told.count("1 of 4 images are left out: 1 not fit for it") == 3  # 2 evaluations, the run
    with pytest.raises(ValueError, match=r"^the image is too thin, 600 x 1 pixels"):
        train(replace(options, strict=True), tmp_path / "strict")


def test_crops_of_a_thin_image_fit() -> None:
    with pytest.raises(ValueError, match="too thin, 600 x 1 pixels"):
        MaskExamples([[AnnotatedImage("", *_one_mask(1, 600))]], SIZE, 1, seed=0)[0]
    thin = AnnotatedImage("", *_one_mask(3, 300))
    examples = MaskExamples([[thin]], SIZE, 1, seed=0)
    assert all(examples[position]["pixels"].shape == (3, SIZE, SIZE) for position in range(20))


def test_a_broken_photograph_is_left_out(tmp_path: Path) -> None:
    for index in range(9):
        Image.fromarray(make_scene(index, 32).image).save(tmp_path / f"{index}.jpg")
    broken = tmp_path / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    scenes = Scenes(1 << 40, 32, 1, list_images(tmp_path))
    with pytest.warns(UserWarning, match=r"skipped texture image 5 of 9 \(1 skipped so far\)"):
        found = [scenes[index].image for index in range(40)]
    assert (
        scenes.texture_images.skipped.describe()
        == "1 of 9 texture images are left out: 1 not readable"
    )
    again = Scenes(1 << 40, 32, 1, list_images(tmp_path))
    assert np.array_equal(again[39].image, found[39])


def test_scenes_to_train_on_are_never_those_to_measure_on(tmp_path: Path) -> None:
    trained, measured = Scenes(2, 32, 1, training=True), Scenes(2, 32, 1)
    images = [scene.image.tobytes() for scenes in (trained, measured) for scene in (scenes[0],)]
    assert len(set(images)) == 2 and trained[0].name == "training_scene_1_000000"
    # By construction: numpy's generators start from the words of these seeds.
    for purpose in range(3):
        words = [3 << 64 | 2**64 - 1, purpose]
        states = {
            tuple(np.random.SeedSequence([2**64 - 1, other]).generate_state(4))
            for other in range(3)
        }
        assert tuple(np.random.SeedSequence(words).generate_state(4)) not in states


def test_stages_of_the_bundled_checkpoint_have_scenes_of_their_own() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    stages = [line for line in makefile.splitlines() if "$(SUPERVISED) --out" in line]
    seeds = {line.partition("--seed ")[2].split()[0] for line in stages}
    assert len(seeds) == len(stages) == 3


def test_validation_are_tried_before_the_first_step(tmp_path: Path) -> None:
    """COCO's own layout: the json in one folder, the images in another."""
    scene = Scenes(1, SIZE)[0]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").mkdir()
    Image.fromarray(scene.image).save(tmp_path / "val" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE, "width": SIZE}],
        "annotations": [{"id": 1, "image_id": 1, "segmentation": encode_mask(scene.masks[0])}],
    }
    json_file = tmp_path / "annotations" / "instances.json"
    json_file.write_text(json.dumps(content))
    options = TrainingOptions(
        "supervised",
        "scenes",
        steps=1,
        backbone="test_efficientnet",
        img_size=SIZE,
        batch_size=1,
        freeze=["encoder"],
        workers=0,
        validation=str(json_file),
    )
    with pytest.raises(ValueError, match="1 of 1 evaluation image is left out: 1 missing.*a.png"):
        train(options, tmp_path / "run")
    found = replace(options, validation_images=str(tmp_path / "val"))
    assert train(found, tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "guessing"}, "objective must be one of decoupled"),
        ({"prompts": "mask"}, "prompts must be one of both, point, box, not 'mask'"),
        ({"freeze": ["encoder"]}, "freeze and lora apply only to supervised training"),
        (
            {"objective": "supervised", "freeze": "encoder"},
            r"freeze must be a list .* \['encoder'\]",
        ),
        ({"objective": "supervised", "freeze": ["head"]}, "freeze has 'head', which is none of"),
        ({"objective": "supervised", "freeze": PARTS}, "nothing is left to train"),
        (
            {"objective": "supervised", "freeze": ["encoder"], "lora": 4},
            "do not freeze the encoder",
        ),
        ({"epochs": 3}, "give steps or epochs, one of them"),
        ({"patience": 3}, "patience applies only with validation"),
        ({"validation": 0.1}, "give validation data"),
        ({"objective": "supervised", "validation": 1.5}, "above 0 and below 1, not 1.5"),
        (
            {"objective": "supervised", "data": "scenes:9", "validation": 0.5},
            "name the data to validate on",
        ),
        (
            {"objective": "supervised", "data": "scenes", "steps": None, "epochs": 1},
            "a single data set of known length",
        ),
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"checkpoint": "bundled"}, "not both"),
        ({"save_every": 0}, "save_every must be 1 or more, not 0"),
        ({"log_every": 0}, "log_every must be 1 or more, not 0"),
        ({"workers": -1}, "workers must be 0 or more, not -1"),
        ({"mask_only_rounds": -1}, "mask_only_rounds must be 0 or more"),
        ({"learning_rate": math.nan}, "learning_rate must be a number above 0, not nan"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, not -0.1"),
        ({"focal_weight": math.inf}, "focal_weight must be 0 or more, not inf"),
        ({"gradient_clip": 0}, "gradient_clip must be a number above 0, not 0"),
        ({"ema_decay": 1.0}, "ema_decay must be 0 or more and less than 1, not 1.0"),
        ({"warmup_steps": 30}, "warmup_steps must be less than the 30 steps of the run, not 30"),
        ({"texture_images": "images"}, "applies only to data 'scenes'"),
        ({"data": ["a", "b"]}, "decoupled training takes one data set, not 2"),
        (
            {"objective": "supervised", "data": ["a", "b"], "weights": [1]},
            "weights must have one number for each of the 2 data sets, not 1",
        ),
        ({"weights": [-1]}, "weights must be numbers above 0"),
        (
            {"objective": "supervised", "data": ["a", "b"], "images": "c"},
            "keep the images of each beside its masks",
        ),
        (
            {"objective": "supervised", "data": "composites", "objects": "a"},
            "photographs is required for data 'composites', and only for it",
        ),
        ({"objects": "a"}, "objects is required for data 'composites', and only for it"),
        ({"validation_images": "val"}, "applies only with a data set"),
    ],
)
def test_options_that_are_none(options: TrainingOptions, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(options, **changes)


def test_the_warm_up_of_a_short_run() -> None:
    assert TrainingOptions("supervised", "scenes", 5000).warmup_steps == 100
    assert TrainingOptions("supervised", "scenes", 50).warmup_steps == 5


def test_the_command_line_passes_its_options_on(run: Path, options: TrainingOptions) -> None:
    arguments = [
        *("train", *options.data, "--out", str(run), "--steps", "30", "--batch-size", "4"),
        *("--gradient-accumulation-steps", "2", "--warmup-steps", "3", "--evaluate-every", "15"),
        *("--checkpoint", "bundled", "--learning-rate", "0.003"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ValueError)
    assert "checkpoint was None, is now 'bundled'" in str(result.exception)
    result = CliRunner().invoke(app, ["train", *options.data, "--out", str(run), "--steps", "30"])
    assert result.exit_code == 2 and "--teacher" in result.output


def test_a_mixture_has_the_shares_of_its_weights() -> None:
    mask = np.ones((1, 40, 40), bool)
    dark, bright = (
        AnnotatedImage("", np.full((40, 40, 3), value, np.uint8), mask) for value in (0, 255)
    )
    for weights, share in (((3, 1), 0.25), (None, 0.5)):
        examples = MaskExamples([[dark], [bright]], SIZE, 1, 0, weights)
        are_bright = [examples[position]["pixels"].max().item() > 0.5 for position in range(200)]
        assert np.mean(are_bright) == pytest.approx(share, abs=0.1)


def test_scenes_keep_their_order_and_their_look() -> None:
    scenes = Scenes(1 << 40, SIZE, seed=1)
    found = MaskExamples([scenes], SIZE, 1, 0)[7]["pixels"]  # which is not cropped
    same = torch.from_numpy(preprocess(scenes[7].image, SIZE)[0])
    assert torch.equal(found, same) or torch.equal(found, same.flip(2))


def test_photographs_are_seen_in_varied_zoom_and_colour() -> None:
    scene = make_scene(3, (90, 120))
    rng = np.random.default_rng(0)
    crops = [random_crop(scene.image.shape, rng) for _ in range(300)]
    heights, widths = (
        np.array([crop[axis].stop - crop[axis].start for crop in crops]) / length
        for axis, length in enumerate((90, 120))
    )
    for shares in (heights, widths):
        assert 0.2 < shares.min() < 0.35 and shares.max() == 1
    assert np.ptp(widths / heights) > 0.3

    def change_look(seed: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        return lower_quality(change_colors(scene.image, rng), rng)

    looks = [change_look(seed) for seed in range(20)]
    assert all(look.shape == scene.image.shape and look.dtype == np.uint8 for look in looks)
    assert np.array_equal(looks[3], change_look(3))
    assert np.std([look.mean() for look in looks]) > 5  # brightness
    assert any(np.ptp(look, axis=2).max() <= 30 for look in looks)  # grey, but for noise
    before = torch.random.get_rng_state()
    change_look(20)
    assert torch.equal(before, torch.random.get_rng_state())


def test_half_of_the_prompts_are_for_parts() -> None:
    masks = np.zeros((8, 64, 64), bool)
    masks[0, 8:56, 8:56] = True  # a whole with six parts, and a thing beside it
    for part in range(1, 7):
        masks[part, 10 + 7 * part - 7 : 15 + 7 * part - 7, 12:50] = True
    masks[7, 58:, 58:] = True
    image = AnnotatedImage("", np.zeros((64, 64, 3), np.uint8), masks)
    rng = np.random.default_rng(0)
    drawn = np.bincount(_draw(image.masks, 400, rng), minlength=8)
    assert drawn[[0, 7]].sum() == 200 and min(drawn[[0, 7]]) == 100
    assert min(drawn[1:7]) >= 33
    assert set(_draw(masks[[0, 7]], 5, rng)) == {0, 1}  # no parts
