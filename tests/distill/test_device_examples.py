"""Examples that are made on the device, against those of the CPU."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mobile_sam_plugin.datasets.annotated import AnnotatedImage
from mobile_sam_plugin.datasets.formats import open_annotated_images, write_annotated_image
from mobile_sam_plugin.distill.batches import MaskExamples, StepBatchSampler
from mobile_sam_plugin.distill.device_examples import DeviceExamples
from mobile_sam_plugin.distill.device_pictures import MOST_MASKS
from mobile_sam_plugin.distill.objectives import LOW_RES, Batch
from mobile_sam_plugin.distill.options import TrainingOptions
from mobile_sam_plugin.distill.training import train
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import list_images
from mobile_sam_plugin.inputs import PIXEL_MEAN, PIXEL_STD
from mobile_sam_plugin.scenes.composites import Composites, open_cut_outs

from ..conftest import PHOTOGRAPHS

CPU = torch.device("cpu")
SIZE, PROMPTS = 128, 16
FEWEST = 40  # low-resolution pixels of a mask that is compared


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs without their finest details, which no two ways of resizing show alike."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("coffee.png", "chelsea.png"):
        with Image.open(PHOTOGRAPHS / name) as image:
            image.convert("RGB").resize((200, 150)).resize((400, 300)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Things with a part: a coloured body with a white head."""
    folder = tmp_path_factory.mktemp("objects")
    for name, color in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items():
        pixels = np.zeros((160, 120, 4), np.uint8)
        cv2.ellipse(pixels, (60, 100), (50, 50), 0, 0, 360, (*color, 255), cv2.FILLED)
        head = cv2.circle(np.zeros((160, 120), np.uint8), (60, 35), 30, 255, cv2.FILLED)
        pixels[head > 0] = 255
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / name).mkdir()
        Image.fromarray(head).save(folder / name / "head.png")
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with masks, one of them of a part of another."""
    folder = tmp_path_factory.mktemp("labelled")
    for number, name in enumerate(("coffee.png", "chelsea.png", "rocket.jpg")):
        with Image.open(PHOTOGRAPHS / name) as image:
            pixels = np.asarray(image.convert("RGB").resize((200 - 60 * number, 160)))
        masks = np.zeros((3, *pixels.shape[:2]), bool)
        masks[0, 20:140, 10:60] = True
        masks[1, 30:80, 15:50] = True
        masks[2, 60:, 70:] = True
        write_annotated_image(folder, f"sa_{number}", AnnotatedImage("", pixels, masks))
    return folder


def composites(objects: Path, photographs: Path) -> Composites:
    return Composites(1000, open_cut_outs(objects), list_images(photographs), SIZE)


def image_of(pixels: torch.Tensor) -> np.ndarray:
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (pixels * std + mean).numpy()


def iou(mask: torch.Tensor, other: torch.Tensor) -> float:
    return ((mask & other).sum() / (mask | other).sum().clamp(min=1)).item()


def true_masks(examples: MaskExamples, position: int) -> torch.Tensor:
    """Returns the masks, (N, h, w), that the CPU draws in many examples of this picture."""
    masks = examples[position]["masks"]
    return masks[masks.flatten(1).any(1)].unique(dim=0)


@pytest.mark.parametrize("augmentation", [(), ("flip",), ("crop",), ("flip", "rotate", "crop")])
@pytest.mark.parametrize("kinds", ["labelled", "composites", "labelled composites"])
def test_pictures_and_masks_are_those_of_the_cpu(
    kinds: str, augmentation: tuple[str, ...], labelled: Path, objects: Path, photographs: Path
) -> None:
    of_kind = {
        "labelled": open_annotated_images(labelled),
        "composites": composites(objects, photographs),
    }
    data = [of_kind[kind] for kind in kinds.split()]
    arguments = data, SIZE, 24, 7, None, "both", augmentation
    of_cpu, of_device = MaskExamples(*arguments), DeviceExamples(*arguments, device=CPU)
    batch = of_device.__getitems__(range(24))
    compared, ious = 0, []
    for position in range(24):
        expected = of_cpu[position]
        masks = true_masks(of_cpu, position)
        drawn = batch["masks"][position][batch["is_real"][position]].unique(dim=0)
        if not len(drawn):  # the CPU shows the whole picture where a part of it has no mask
            continue
        compared += 1
        difference = np.abs(image_of(batch["pixels"][position]) - image_of(expected["pixels"]))
        assert difference.mean() < 7 and np.median(difference) < 3, position
        # Either draws all masks of a picture. Of small ones some pixels are a large share.
        for mine, others in ((drawn, masks), (masks, drawn)):
            for mask in mine[mine.flatten(1).sum(1) >= FEWEST]:
                ious.append(max(iou(mask, other) for other in others))
    assert min(ious) > 0.75 and np.mean(ious) > 0.96
    assert compared >= 20


def test_prompts_are_on_their_masks(labelled: Path, objects: Path, photographs: Path) -> None:
    data = [open_annotated_images(labelled), composites(objects, photographs)]
    batch = DeviceExamples(data, SIZE, PROMPTS, 3, device=CPU).__getitems__(range(12))
    assert batch["pixels"].shape == (12, 3, SIZE, SIZE)
    assert batch["masks"].shape == (12, PROMPTS, SIZE // LOW_RES, SIZE // LOW_RES)
    assert batch["is_real"].float().mean() > 0.8 and 0.2 < batch["is_box"].float().mean() < 0.8
    near = torch.nn.functional.max_pool2d(batch["masks"].float(), 3, 1, 1).bool()
    for example, real in enumerate(batch["is_real"]):
        for prompt in torch.nonzero(real).flatten():
            x, y = (batch["points"][example, prompt] / LOW_RES).long()
            assert near[example, prompt, y, x]
            rows, columns = torch.nonzero(batch["masks"][example, prompt]).T
            extent = torch.stack([columns.min(), rows.min(), columns.max(), rows.max()]) * LOW_RES
            distance = (batch["boxes"][example, prompt] - extent).abs().max()
            assert distance < 20 / 1024 * SIZE + 3 * LOW_RES


def test_half_of_the_prompts_are_for_parts(labelled: Path) -> None:
    examples = DeviceExamples(
        [open_annotated_images(labelled)], SIZE, 2, 0, None, "both", (), device=CPU
    )
    areas = examples.__getitems__(range(90))["masks"].flatten(2).sum(2)
    part = (50 * 35) / (120 * 50)
    ratios = areas.min(1).values / areas.max(1).values
    assert (ratios < 1).float().mean() > 0.9, "two prompts are for two masks"
    assert ((ratios - part).abs() < 0.1).float().mean() > 0.2


def test_batches_depend_on_seed_and_position_alone(
    labelled: Path, objects: Path, photographs: Path
) -> None:
    data = [open_annotated_images(labelled), composites(objects, photographs)]
    first = DeviceExamples(data, SIZE, 4, 1, device=CPU)
    torch.manual_seed(5)
    again = DeviceExamples(data, SIZE, 4, 1, device=CPU)
    batch = first.__getitems__(range(8, 12))
    torch.rand(3)
    assert all(
        torch.equal(batch[name], values)
        for name, values in again.__getitems__(range(8, 12)).items()
    )
    other = DeviceExamples(data, SIZE, 4, 2, device=CPU).__getitems__(range(8, 12))
    assert not torch.equal(batch["pixels"], other["pixels"])
    assert first[8].keys() == MaskExamples(data, SIZE, 4, 1)[8].keys()


def test_shares_of_data_sets(labelled: Path, objects: Path, photographs: Path) -> None:
    data = [open_annotated_images(labelled), composites(objects, photographs)]
    examples = DeviceExamples(data, 32, 1, 0, [0.9, 0.1], device=CPU)
    numbers = [examples.draw(position).number for position in range(300)]
    assert 0.05 < np.mean(numbers) < 0.16


@pytest.mark.parametrize(("prompts", "share"), [("point", 0), ("box", 1)])
def test_kind_of_prompt(prompts: str, share: int, labelled: Path) -> None:
    examples = DeviceExamples(
        [open_annotated_images(labelled)], 64, 4, 0, None, prompts, device=CPU
    )
    assert examples.__getitems__(range(3))["is_box"].float().mean() == share


def test_colours_and_quality_vary(labelled: Path) -> None:
    data = [open_annotated_images(labelled)]
    plain = DeviceExamples(data, SIZE, 1, 0, None, "both", (), device=CPU)
    varied = DeviceExamples(data, SIZE, 1, 0, None, "both", ("color", "quality"), device=CPU)
    positions = range(30)
    before, after = (each.__getitems__(positions)["pixels"] for each in (plain, varied))
    change = (after - before).abs().mean((1, 2, 3))
    assert (change > 0.1).float().mean() > 0.6
    assert torch.equal(before[:, :, -1, -1] == 0, after[:, :, -1, -1] == 0), "padding stays zero"
    images = image_of(after)
    assert images[:, :, :50, :30].min() > -1e-3 and images.max() < 255.001


def test_a_picture_of_many_masks_keeps_63(tmp_path: Path) -> None:
    masks = np.zeros((100, 80, 80), bool)
    for number, mask in enumerate(masks):
        row, column = divmod(number, 10)
        mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = True
    image = np.zeros((80, 80, 3), np.uint8)
    write_annotated_image(tmp_path, "sa_0", AnnotatedImage("", image, masks))
    examples = DeviceExamples(
        [open_annotated_images(tmp_path)], 320, 80, 0, None, "both", (), device=CPU
    )
    drawn = examples.__getitems__([0])["masks"][0]
    assert len(drawn.unique(dim=0)) == MOST_MASKS
    assert (drawn.flatten(1).sum(1) == (32 // LOW_RES) ** 2).all()


def test_data_loader_takes_whole_batches(labelled: Path) -> None:
    examples = DeviceExamples([open_annotated_images(labelled)], 64, 2, 0, device=CPU)
    loader = DataLoader(
        examples, batch_sampler=StepBatchSampler(0, 2, 3), collate_fn=lambda batch: batch
    )
    for step, batch in enumerate(loader):
        expected = examples.__getitems__(range(3 * step, 3 * step + 3))
        assert all(torch.equal(batch[name], values) for name, values in expected.items())


def options(data: tuple[str, ...], **changes: object) -> TrainingOptions:
    given = {"steps": 4, "img_size": 64, "batch_size": 4, "prompts_per_image": 2, "save_every": 2}
    return TrainingOptions("supervised", data, on_device=True, **given | changes)  # type: ignore[arg-type]


def test_training_on_the_device_resumes_to_the_same_weights(
    labelled: Path,
    objects: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = options(
        (str(labelled), "composites"), objects=str(objects), photographs=str(photographs)
    )
    whole = train(given, tmp_path / "whole")
    make = DeviceExamples.__getitems__

    def fail_at_last_step(examples: DeviceExamples, positions: list[int]) -> Batch:
        if positions[0] == 12:
            raise KeyboardInterrupt
        return make(examples, positions)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DeviceExamples, "__getitems__", fail_at_last_step)
        train(given, tmp_path / "parts")
    assert train(given, tmp_path / "parts").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "decoupled", "data": "embeddings"}, "on_device applies only to supervised"),
        ({"data": ("photographs", "scenes:4:64:0")}, "scenes are drawn by the CPU"),
    ],
)
def test_options_that_do_not_go_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingOptions(**{"objective": "supervised", "steps": 2, "on_device": True} | changes)  # type: ignore[arg-type]


def test_too_many_pictures_for_the_memory(labelled: Path) -> None:
    images = open_annotated_images(labelled)

    class Endless:
        def __len__(self) -> int:
            return 1 << 50

        def __getitem__(self, index: int) -> AnnotatedImage:
            return images[index % 3]

    with pytest.raises(UserError, match="GB of the device's memory: lower img_size"):
        DeviceExamples([Endless()], 1024, 1, 0, device=CPU)


def test_unreadable_pictures_are_replaced(labelled: Path, tmp_path: Path) -> None:
    for path in labelled.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "sa_1.jpg").write_bytes(b"damaged")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(options((str(tmp_path),)), tmp_path / "run")
    assert any("1 of 3 images are left out: 1 not readable" in str(each.message) for each in caught)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_gpu_makes_the_same_masks_and_waits_for_nothing(
    labelled: Path, objects: Path, photographs: Path
) -> None:
    data = [open_annotated_images(labelled), composites(objects, photographs)]
    arguments = data, SIZE, PROMPTS, 0, None, "both", ("flip", "crop")
    expected = DeviceExamples(*arguments, device=CPU)
    examples = DeviceExamples(*arguments, device=torch.device("cuda"))
    examples.__getitems__(range(8))  # what a first call sets up may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        examples.__getitems__(range(8, 16))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for position in range(8, 16):
        of_cpu, of_gpu = (each._compose([position]) for each in (expected, examples))
        assert (of_cpu.masks == of_gpu.masks.cpu()).float().mean() > 0.999
        assert (of_cpu.image - of_gpu.image.cpu()).abs().mean() < 0.5
