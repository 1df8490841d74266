"""Students whose image encoder is another timm network than TinyViT."""

import copy
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import segment_anything
import torch
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam, SamPredictor, build_sam_vit_t
from mobile_sam_plugin.checkpoint import read_backbone, read_checkpoint, save_checkpoint
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.model.backbone_encoder import BackboneImageEncoder

from ..conftest import needs

STUDENT = "mobilenetv3_small_050"
needs_newer = needs("timm", "1.0.31", "gives feature maps of more networks")

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def student() -> MobileSam:
    """A small student, untrained; not to be changed by a test."""
    torch.manual_seed(0)
    return MobileSam.untrained(STUDENT)


@pytest.fixture(scope="module")
def student_file(student: MobileSam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student") / "model.safetensors"
    save_checkpoint(student.state_dict(), path, backbone=STUDENT)
    return path


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "mobilenetv3_small_050",
        *(
            pytest.param(name, marks=needs_newer)
            for name in ("efficientvit_b0", "repvit_m0_9", "convnext_atto", "tiny_vit_11m_224")
        ),
        "levit_128s",  # built for one image size, and its constructor hides the argument
        "swin_tiny_patch4_window7_224",  # channels last
        "vit_tiny_patch16_224",
        "eva02_tiny_patch14_224",  # patches of 14 pixels
        "xcit_nano_12_p8_224",  # a stride of 8
    ],
)
def test_every_family_gives_a_map_of_stride_16(backbone: str) -> None:
    torch.manual_seed(0)
    encoder = BackboneImageEncoder(backbone, img_size=128)
    assert (encoder.backbone_name, encoder.img_size) == (backbone, 128)
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"backbone", "neck"}

    image = torch.randn(2, 3, 128, 128)
    embeddings = encoder.train()(image)
    assert embeddings.shape == (2, 256, 8, 8)
    embeddings.square().mean().backward()
    trained = [item for item in encoder.named_parameters() if item[1].requires_grad]
    unused = [name for name, weight in trained if weight.grad is None]
    assert unused == [], "which several GPUs could not train"

    # What is at the upper right of the image is at the upper right of its embeddings.
    changed = image.clone()
    changed[:, :, 16:32, 96:112] += 3
    with torch.no_grad():
        difference = (encoder.eval()(changed) - encoder(image)).abs().sum(dim=(0, 1))
    row, column = divmod(int(difference.argmax()), 8)
    assert abs(row - 1) <= 1 and abs(column - 6) <= 1, difference


def test_tag_of_pretrained_weights_is_not_part_of_the_name() -> None:
    assert BackboneImageEncoder("resnet18.a1_in1k", img_size=64).backbone_name == "resnet18"


@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny_patch16_224"])
def test_other_image_sizes_than_the_nominal_one(backbone: str) -> None:
    encoder = BackboneImageEncoder(backbone, img_size=128)
    assert encoder(torch.randn(1, 3, 64, 96)).shape == (1, 256, 4, 6)


@pytest.mark.parametrize(
    ("backbone", "mentions"),
    [
        ("resnet81", ["resnet81", "resnet18", "timm.list_models()"]),
        ("hf-hub:timm/resnet18", ["hf-hub:timm/resnet18", "timm.list_models()"]),
        ("vit_small_patch32_224", ["32 times smaller", "16 times", "another"]),
        ("resnet18.no_such_tag", ["no_such_tag"]),
        ("eca_botnext26ts_256", ["1000 x 1000 pixels", "another"]),
        pytest.param("inception_v3", ["edges", "60 x 60", "62 x 62"], marks=needs_newer),
    ],
)
def test_backbones_that_cannot_be_used(backbone: str, mentions: list[str]) -> None:
    with pytest.raises(ValueError) as raised:
        BackboneImageEncoder(backbone, img_size=1000)
    message = str(raised.value)
    assert [part for part in [backbone, *mentions] if part not in message] == [], message


def test_backbone_without_pretrained_weights() -> None:
    with pytest.raises(ValueError, match="cannot build 'resnet200': No pretrained weights"):
        BackboneImageEncoder("resnet200", img_size=64, pretrained=True)


@needs_newer
def test_weights_changed_in_eval_mode_reach_the_attention_biases() -> None:
    """Timm keeps the first image's biases in eval mode; an average of weights would go unseen."""
    torch.manual_seed(0)
    encoder = BackboneImageEncoder("tiny_vit_11m_224", img_size=64).eval()
    image = torch.randn(1, 3, 64, 64)
    encoder(image).mean().backward()
    before = encoder(image)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("attention_biases"):
                parameter.copy_(3 * torch.randn_like(parameter))
    after = encoder(image)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(copy.deepcopy(encoder)(image), after, rtol=0, atol=0)


def test_student_is_saved_and_loaded_with_its_backbone(
    student: MobileSam, student_file: Path, tmp_path: Path, coffee: NDArray[np.uint8]
) -> None:
    assert student.backbone == STUDENT and not student.training
    assert read_backbone(student_file) == STUDENT
    with safetensors.safe_open(student_file, "pt") as file:
        assert file.metadata() == {"format": "pt", "backbone": STUDENT}

    student.save_pretrained(tmp_path)
    predictor = SamPredictor(student)
    predictor.set_image(coffee)
    expected = predictor.predict(box=[170, 10, 430, 300])
    for twin in (
        segment_anything.sam_model_registry["vit_t"](checkpoint=str(student_file)),
        MobileSam.from_pretrained(tmp_path),
    ):
        assert twin.backbone == STUDENT and not twin.training
        predictor = SamPredictor(twin)
        predictor.set_image(coffee)
        for found, wanted in zip(predictor.predict(box=[170, 10, 430, 300]), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_tiny_vit_has_no_name(bundled_sam: MobileSam, tmp_path: Path) -> None:
    assert bundled_sam.backbone is None
    bundled_sam.save_pretrained(tmp_path)
    assert read_backbone(tmp_path / "model.safetensors") is None


def test_convert_and_info_know_the_backbone(
    student_file: Path, tmp_path: Path, capsys: Captured
) -> None:
    half = tmp_path / "half.safetensors"
    assert main(["convert", str(student_file), str(half), "--dtype", "float16"]) == 0
    assert read_backbone(half) == STUDENT
    capsys.readouterr()
    assert main(["info", str(half)]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["backbone"] == STUDENT
    assert told["image_encoder"].endswith(" parameters") and "float16" in told["tensors"]
    assert main(["info"]) == 0
    assert "backbone            TinyViT\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (["weights.pt"], [STUDENT, ".safetensors"]),
        (["weights.safetensors", "--for", "upstream"], [STUDENT, "TinyViT"]),
    ],
    ids=str,
)
def test_formats_that_cannot_hold_another_backbone(
    student_file: Path, tmp_path: Path, capsys: Captured, target: list[str], words: list[str]
) -> None:
    path, *options = target
    assert main(["convert", str(student_file), str(tmp_path / path), *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert [word for word in words if word not in message] == [], message
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_that_does_not_name_its_backbone(student: MobileSam, tmp_path: Path) -> None:
    torch.save(student.state_dict(), tmp_path / "student.pt")
    with pytest.raises(ValueError, match="another image encoder than TinyViT") as raised:
        build_sam_vit_t(tmp_path / "student.pt")
    assert "student.pt" in str(raised.value) and "save_pretrained" in str(raised.value)


def test_checkpoint_that_names_an_unknown_backbone(student_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_checkpoint(read_checkpoint(student_file), path, backbone="mobilenetv3_small_051")
    with pytest.raises(ValueError, match="'mobilenetv3_small_051'.*mobilenetv3_small_050"):
        build_sam_vit_t(path)


def test_checkpoint_that_names_another_backbone(student_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_checkpoint(read_checkpoint(student_file), path, backbone="mobilenetv3_small_075")
    with pytest.raises(ValueError, match="does not fit"):
        build_sam_vit_t(path)


def test_damaged_header(student_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    path.write_bytes(student_file.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged or truncated"):
        read_backbone(path)


def test_layers_that_share_a_parameter_are_saved(tmp_path: Path) -> None:
    shared = torch.randn(3)
    save_checkpoint({"a": shared, "b": shared}, tmp_path / "shared.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "shared.safetensors")["b"], shared)


@torch.no_grad()
def test_patches_of_14_pixels_in_half_precision() -> None:
    encoder = BackboneImageEncoder("eva02_tiny_patch14_224", img_size=224).eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = encoder(images)
    for dtype in (torch.bfloat16, torch.float16):
        embeddings = copy.deepcopy(encoder).to(dtype)(images.to(dtype))
        assert embeddings.dtype == dtype
        torch.testing.assert_close(embeddings.float(), expected, rtol=0, atol=0.2)
