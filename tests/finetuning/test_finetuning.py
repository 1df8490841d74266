"""Fine-tuning on one's own data: what is trained, what is refused, and what is left behind."""

import copy
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import MobileSam, SamPredictor, build_sam_vit_t, finetune, finetuning
from mobile_sam_plugin.checkpoint import BUNDLED_FILE, fingerprint, read_checkpoint
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.datasets.annotated import AnnotatedImage
from mobile_sam_plugin.distill import training
from mobile_sam_plugin.distill.batches import MaskExamples
from mobile_sam_plugin.distill.lora import add_lora, merge_lora
from mobile_sam_plugin.distill.objectives import Supervised
from mobile_sam_plugin.distill.options import PARTS, TrainingOptions
from mobile_sam_plugin.distill.sources import split
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.evaluation.results import Evaluation
from mobile_sam_plugin.finetuning.presets import PRESETS, choose_preset
from mobile_sam_plugin.mobile_sam import set_img_size
from mobile_sam_plugin.scenes.scenes import Scenes, make_scene

SIZE = 64


def write_label_map(folder: Path, name: str, seed: int, size: int = 96) -> NDArray[np.uint8]:
    """Writes a scene as NAME.jpg with its masks as NAME.png, the later over the earlier ones."""
    scene = make_scene(seed, size)
    values = np.zeros((size, size), np.uint8)
    for index, mask in enumerate(scene.masks[:20], 1):
        values[mask] = index
    folder.mkdir(exist_ok=True)
    Image.fromarray(scene.image).save(folder / f"{name}.jpg", quality=95)
    Image.fromarray(values).save(folder / f"{name}.png")
    return values


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images with label maps."""
    folder = tmp_path_factory.mktemp("data") / "labelled"
    for index in range(6):
        write_label_map(folder, str(index), index)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _small_validation() -> Iterator[None]:
    """Scores models at a size at which that is quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "_USED_SIZE", 128)
        yield


@pytest.fixture(scope="module")
def options(tiny_file: Path) -> dict[str, Any]:
    return {
        "checkpoint": tiny_file,
        "epochs": 2,
        "validation": 0.34,
        "img_size": SIZE,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "prompts_per_image": 2,
        "workers": 0,
        "learning_rate": 1e-3,
    }


@pytest.fixture(scope="module")
def result(data: Path, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("result")
    return finetune(data, out, **options)


# From images and labels to a file


def test_one_file_that_works_everywhere(
    result: Any, tiny_file: Path, data: Path, coffee: NDArray[np.uint8]
) -> None:
    assert result.path.name == "model.safetensors"
    predictor = SamPredictor(build_sam_vit_t(result.path))
    predictor.set_image(coffee)
    assert predictor.predict(np.array([[300, 130]]), np.array([1]))[0].shape == (3, 400, 600)
    loaded = MobileSam.from_pretrained(result.path.parent)
    assert loaded.backbone == "test_efficientnet"

    with safetensors.safe_open(result.path, "pt") as file:
        about = file.metadata()
    assert about["data"] == str(data) and about["base"] == str(tiny_file)
    assert json.loads(about["options"])["epochs"] == 2
    scores = json.loads(about["scores"])
    assert scores["before"]["box"] == result.before.scores["box"].mean
    assert scores["after"]["click_best"] == result.after.scores["click_best"].mean


def test_what_else_is_left(result: Any) -> None:
    out = result.path.parent
    card = (out / "README.md").read_text()
    table = result.format_table()
    assert table in card and "mobile-sam-plugin" in card and "learning_rate: 0.001" in card
    rows = [line.split(" | ")[0] for line in table.splitlines()[2:6]]
    assert rows == [
        "| one click",
        "| one click, best of three masks",
        "| box",
        "| click and three corrective clicks",
    ]
    assert Image.open(out / "worst_and_best.png").size[0] > 1000
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(out / "training" / "log"))
    log.Reload()
    assert [event.step for event in log.Scalars("box")] == [0, 2, 4]  # after each epoch


def test_the_gain_is_of_the_same_masks(result: Any) -> None:
    gains = result.before.compare(result.after)
    for name in ("click", "click_best", "box", "corrective_3"):
        before, after = result.before.scores[name], result.after.scores[name]
        assert gains[name].mean == pytest.approx(after.mean - before.mean)
        assert gains[name].low <= gains[name].mean <= gains[name].high
        assert gains[name].count == before.count
    same = result.before.compare(result.before)["box"]
    assert (same.low, same.mean, same.high) == (0, 0, 0)


def test_the_best_weights_are_never_worse_than_the_start(
    data: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """With a learning rate that destroys the weights."""
    hopeless = options | {"learning_rate": 0.5, "ema_decay": 0.0, "epochs": 5, "patience": 3}
    with pytest.warns(UserWarning) as caught:
        result = finetune(data, tmp_path, **hopeless)
    told = "\n".join(str(each.message) for each in caught)
    assert "at the start to" in told and "no epoch scored higher than the checkpoint" in told
    assert "lower learning_rate" in told
    assert result.after.scores == result.before.scores
    base, kept = read_checkpoint(options["checkpoint"]), read_checkpoint(result.path)
    assert all(torch.equal(base[key], kept[key]) for key in base)
    state = torch.load(tmp_path / "training" / "state.pt", weights_only=True)
    assert state["step"] == 3 * 2  # it stopped early, after three epochs


def test_an_interrupted_run_keeps_its_best_and_goes_on(
    data: Path,
    options: dict[str, Any],
    result: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    update = training._Run._update
    steps = 0

    def interrupt_third(run: Any, batches: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
        return update(run, batches)

    monkeypatch.setattr(training._Run, "_update", interrupt_third)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        finetune(data, tmp_path, **options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "training" / "state.pt", weights_only=True)["step"] == 3
    build_sam_vit_t(tmp_path / "model.safetensors")
    assert "before" in (tmp_path / "README.md").read_text()

    again = finetune(data, tmp_path, **options)
    assert again.after.scores == result.after.scores
    assert fingerprint(read_checkpoint(again.path)) == fingerprint(read_checkpoint(result.path))
    with pytest.raises(UserError, match="learning_rate was 0.001, is now 0.002"):
        finetune(data, tmp_path, **options | {"learning_rate": 2e-3})


# The command


def test_the_command(
    data: Path, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("finetune", str(data), "--out", str(tmp_path), "--checkpoint", str(tiny_file)),
        *("--validation", "0.34", "--epochs", "1", "--img-size", "64", "--batch-size", "2"),
        *("--prompts", "box", "--no-flip", "--no-color", "--rotate", "--workers", "0"),
        *("--freeze", "encoder", "--freeze", "prompt_encoder", "--preset", "cpu"),
    ]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "| one click | " in captured.out
    assert captured.out.splitlines()[-1] == str(tmp_path / "model.safetensors")
    assert "64 x 64 pixels, 2 images a step, float32 (changed from preset cpu)" in captured.err
    run = json.loads((tmp_path / "training" / "run.json").read_text())
    assert run["freeze"] == ["encoder", "prompt_encoder"] and run["prompts"] == "box"
    assert run["augmentation"] == ["rotate", "crop", "quality"]
    assert run["corrective_clicks"] == 0
    base, tuned = read_checkpoint(tiny_file), read_checkpoint(tmp_path / "model.safetensors")
    changed = {key.split(".")[0] for key in base if not torch.equal(base[key], tuned[key])}
    assert changed <= {"mask_decoder"}


def test_presets() -> None:
    assert choose_preset(None).name == "cpu"
    for memory, name in ((4.2, "4gb"), (8.3, "8gb"), (16, "8gb"), (25, "24gb"), (80, "24gb")):
        assert choose_preset(memory).name == name
    assert choose_preset(2).name == "4gb"  # the smallest
    for preset in PRESETS.values():
        assert preset.batch_size % preset.gradient_accumulation_steps == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"preset": "2gb"}, UserError, "preset must be one of cpu, 4gb, 8gb, 24gb, not '2gb'"),
        ({"steps": 3}, TypeError, "no argument 'steps'"),
        ({"validation": 1.0}, UserError, "above 0 and below 1, not 1.0"),
        ({"validation": 0.99}, UserError, "6 images are too few to set 99% of them aside"),
        ({"lora": 4}, UserError, "needs an image encoder with attention or MLPs"),
        ({"checkpoint": "nowhere.pt"}, FileNotFoundError, "no checkpoint at 'nowhere.pt'"),
    ],
)
def test_arguments_that_cannot_be(
    data: Path, options: dict[str, Any], tmp_path: Path, changes: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        finetune(data, tmp_path / "out", **options | changes)
    assert not (tmp_path / "out" / "model.safetensors").exists()


# The check of the data


def test_faults_of_the_data_are_counted_and_left_out(
    options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for index in range(8):
        write_label_map(data, str(index), index)
    Image.fromarray(np.ones((50, 40), np.uint8)).save(data / "1.png")
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(data / "2.png")
    with pytest.warns(UserWarning) as caught:
        finetune(data, tmp_path / "out", **options | {"epochs": 1})
    told = "\n".join(str(each.message) for each in caught)
    assert "1 images whose masks have another size are left out, such as" in told
    assert "'1.jpg' is 96 x 96 pixels, not 40 x 50 pixels as its masks are" in told.replace(
        str(data) + "/", ""
    )
    assert "1 images without a mask that has a pixel are left out" in told
    assert "images to train on" not in told
    assert "masks to train on and" in capfd.readouterr().err


def test_an_image_in_both_sets_is_refused(
    data: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    other = tmp_path / "validation"
    other.mkdir()
    for suffix in (".jpg", ".png"):
        (other / f"copy{suffix}").write_bytes((data / f"3{suffix}").read_bytes())
    with pytest.raises(
        UserError, match=r"1 images are in two .*'3.jpg' to train on and 'copy.jpg'"
    ):
        finetune(data, tmp_path / "out", **options | {"validation": other})


def test_label_maps_that_were_jpegs_are_refused(
    data: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    for index in range(3):
        values = write_label_map(tmp_path / "a", str(index), index, 256)
        Image.fromarray(values).save(tmp_path / "map.jpg", quality=70)
        Image.open(tmp_path / "map.jpg").save(tmp_path / "a" / f"{index}.png")
    with pytest.raises(UserError, match="label maps look as if they had been saved as JPEG"):
        finetune(tmp_path / "a", tmp_path / "out", **options)

    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes((data / "0.jpg").read_bytes())
    (tmp_path / "masks" / "0.jpg").write_bytes((tmp_path / "map.jpg").read_bytes())
    with pytest.raises(UserError, match=r"masks/0.jpg' cannot hold masks, because JPEG alters"):
        finetune(tmp_path / "masks", tmp_path / "out", images=tmp_path / "images", **options)


# What is trained


@pytest.fixture(scope="module")
def sam() -> MobileSam:
    torch.manual_seed(0)
    model = MobileSam.untrained()
    set_img_size(model, SIZE)
    return model


def _batch() -> dict[str, torch.Tensor]:
    examples = MaskExamples([Scenes(2, SIZE)], SIZE, 2, seed=0)
    return torch.utils.data.default_collate([examples[0], examples[1]])


@pytest.mark.parametrize("frozen", [("encoder",), ("prompt_encoder",), ("mask_decoder",)])
def test_gradients_reach_what_is_not_frozen_and_nothing_else(
    sam: MobileSam, frozen: tuple[str, ...]
) -> None:
    sam.zero_grad()
    objective = Supervised(sam, [part for part in PARTS if part not in frozen]).train()
    objective(_batch())["loss"].backward()
    names = {"image_encoder": "encoder"}
    for name, part in sam.named_children():
        reached = any(
            parameter.grad is not None and parameter.grad.abs().sum() > 0
            for parameter in part.parameters()
        )
        assert reached == (names.get(name, name) not in frozen), name
        assert all(p.grad is None for p in part.parameters()) == (not reached)


def test_lora_trains_adapters_and_merges_into_the_same_masks(bundled_sam: MobileSam) -> None:
    model = copy.deepcopy(bundled_sam)
    set_img_size(model, 224)
    objective = Supervised(model, PARTS)
    add_lora(model.image_encoder, 4)
    objective.frozen.append(model.image_encoder)
    objective.train()
    examples = MaskExamples([Scenes(2, 224)], 224, 2, seed=0)
    batch = torch.utils.data.default_collate([examples[0], examples[1]])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(2):  # A gets a gradient once B is not 0
        optimizer.zero_grad()
        objective(batch)["loss"].backward()
        optimizer.step()
    for name, parameter in model.image_encoder.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    of_encoder = {name for name in changed if name.startswith("image_encoder.")}
    assert of_encoder and all("lora_" in name for name in of_encoder)
    assert any(".attn.qkv." in name for name in of_encoder)
    assert any(".mlp.fc1." in name for name in of_encoder)

    merged = merge_lora(model)
    assert merged.state_dict().keys() == bundled_sam.state_dict().keys()
    image = make_scene(5, 224).image
    results = []
    for each in (model.eval(), merged.eval()):
        predictor = SamPredictor(each)
        predictor.set_image(image)
        results.append(predictor.predict(box=np.array([40, 40, 160, 160]), return_logits=True))
    (masks, scores, _), (merged_masks, merged_scores, _) = results
    np.testing.assert_allclose(masks, merged_masks, rtol=0, atol=1e-4 * np.abs(masks).max())
    np.testing.assert_allclose(scores, merged_scores, rtol=0, atol=1e-4)


def test_a_run_with_lora_leaves_a_plain_checkpoint(data: Path, tmp_path: Path) -> None:
    result = finetune(
        data,
        tmp_path,
        checkpoint="bundled",
        validation=0.2,
        epochs=1,
        lora=2,
        img_size=112,
        batch_size=2,
        prompts_per_image=1,
        workers=0,
        learning_rate=1e-3,
    )
    base, tuned = read_checkpoint(BUNDLED_FILE), read_checkpoint(result.path)
    assert tuned.keys() == base.keys()
    state = torch.load(tmp_path / "training" / "state.pt", weights_only=True)
    assert any("lora_A" in key for key in state["model"])


def test_augmentation_by_name() -> None:
    ramp = np.zeros((SIZE, SIZE, 3), np.uint8)
    ramp[..., 0] = np.arange(SIZE) * 3
    image = AnnotatedImage("ramp", ramp, np.ones((1, SIZE, SIZE), bool))

    def look(*names: str) -> set[bytes]:
        examples = MaskExamples([[image]], SIZE, 1, 0, augmentation=names)
        return {examples[position]["pixels"].numpy().tobytes() for position in range(24)}

    assert len(look()) == 1
    assert len(look("flip")) == 2
    assert len(look("rotate")) == 4
    for name in ("crop", "color", "quality"):
        assert len(look(name)) > 6, name


def test_prompts_of_one_kind() -> None:
    for prompts, expected in (("box", {True}), ("point", {False}), ("both", {True, False})):
        examples = MaskExamples([Scenes(3, SIZE)], SIZE, 8, 0, prompts=prompts)
        found = {bool(value) for position in range(4) for value in examples[position]["is_box"]}
        assert found == expected


def test_a_split_is_by_the_seed_and_without_overlap() -> None:
    images: Any = [f"image {index}" for index in range(10)]
    rest, aside = split(images, 0.3, seed=1)
    assert len(aside) == 3 and len(rest) == 7
    assert sorted(rest.indices + aside.indices) == list(range(10))
    assert rest[0] == f"image {rest.indices[0]}"
    assert split(images, 0.3, seed=1)[1].indices == aside.indices
    assert split(images, 0.3, seed=2)[1].indices != aside.indices
    assert len(split(images, 0.01, seed=0)[1]) == 1


def test_too_little_memory_names_what_to_lower() -> None:
    options = TrainingOptions("supervised", "scenes", steps=10, batch_size=8, img_size=512)
    with (
        pytest.raises(MemoryError, match="8 images of 512 x 512 pixels .* lower batch_size"),
        training._naming_what_to_lower(options),
    ):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="size"), training._naming_what_to_lower(options):
        torch.zeros(2) @ torch.zeros(3)


def test_an_evaluation_is_compared_image_by_image(result: Any) -> None:
    fewer = Evaluation(result.after.scores, result.after.images[:1], result.after.settings)
    assert result.before.compare(fewer)["box"].count == len(result.after.images[0].masks)
