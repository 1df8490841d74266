"""Whether weights are the authors'. Nobody has theirs here: a file of the tests stands for it."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mobile_sam_plugin import MobileSam, build_sam_vit_t, verification
from mobile_sam_plugin.checkpoint import BUNDLED_FILE, read_checkpoint, save_checkpoint
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.files import digest_contents
from mobile_sam_plugin.verification import check_masks, trace_weights

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the fingerprint is recorded; huggingface_hub has read HF_HOME when it was imported."""
    folder = tmp_path / "assets"
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", folder)
    return folder / "mobile-sam-plugin" / "default" / "default"


@pytest.fixture
def theirs(authors_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verification, "AUTHORS_SHA256", digest_contents(authors_file))
    return authors_file


def trace(path: Path) -> verification.Provenance:
    return trace_weights(path, build_sam_vit_t(path).state_dict())


def test_tensors_are_known_once_the_file_was_seen(
    theirs: Path, tmp_path: Path, record: Path
) -> None:
    tensors = read_checkpoint(theirs)
    copies = {
        "no head.safetensors": {k: v for k, v in tensors.items() if ".head." not in k},
        "head.safetensors": tensors,
        "reordered.pt": dict(reversed(tensors.items())),
    }
    for name, content in copies.items():
        save_checkpoint(content, tmp_path / name)
    unknown = trace(tmp_path / "head.safetensors")
    assert unknown.proof is None and unknown.licence.startswith("unknown")
    assert "info --verify hf://dhkim2810/MobileSAM/mobile_sam.pt" in unknown.sentence
    assert not record.exists() or not list(record.iterdir())

    seen = trace(theirs)
    (file,) = record.iterdir()
    assert (seen.proof, seen.licence) == ("file", "Apache-2.0")
    assert str(file) in seen.sentence and file.name.startswith(digest_contents(theirs))
    for name in copies:
        found = trace(tmp_path / name)
        assert (found.proof, found.source) == ("tensors", seen.source), name


def test_other_tensors_are_told_from_the_authors(theirs: Path, tmp_path: Path) -> None:
    trace(theirs)
    tensors = read_checkpoint(theirs)
    save_checkpoint(tensors, tmp_path / "half.pt", torch.float16)
    tensors["mask_decoder.iou_token.weight"][0, 0] += 1e-6
    save_checkpoint(tensors, tmp_path / "changed.pt")
    for name in ("half.pt", "changed.pt"):
        assert trace(tmp_path / name).proof == "other"
    bundled = trace(BUNDLED_FILE)
    assert bundled.proof == "other" and "comes with this package" in bundled.sentence


@pytest.fixture
def quick_sam(small_sam: MobileSam) -> MobileSam:
    return copy.deepcopy(small_sam)


def test_masks_of_sound_weights(bundled_sam: MobileSam) -> None:
    checks = check_masks(bundled_sam, authors=False)
    assert [check.prompt for check in checks] == [
        "flower.jpg, a box",
        "flower.jpg, a point",
        "flower.jpg, two points",
    ]
    assert [check.fault for check in checks] == [None] * 3
    assert 0.1 < checks[0].area < 0.3


def no_numbers(sam: MobileSam) -> None:
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(torch.nan)


def no_pixels(sam: MobileSam) -> None:
    for network in sam.mask_decoder.output_hypernetworks_mlps:
        network.layers[-1].weight.zero_()
        network.layers[-1].bias.zero_()


def upside_down(sam: MobileSam) -> None:
    for network in sam.mask_decoder.output_hypernetworks_mlps:
        network.layers[-1].weight.neg_()
        network.layers[-1].bias.neg_()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (no_numbers, "not finite"),
        (no_pixels, "no plausible area"),
        (upside_down, "not where the prompt is"),
    ],
)
def test_masks_of_damaged_weights(
    quick_sam: MobileSam, damage: Callable[[MobileSam], None], fault: str
) -> None:
    with torch.no_grad():
        damage(quick_sam)
    faults = [check.fault for check in check_masks(quick_sam, authors=False)]
    assert fault in faults and None not in faults


def test_the_authors_weights_are_sure_of_themselves(quick_sam: MobileSam) -> None:
    checks = check_masks(quick_sam, authors=True)
    sound = [check.fault is None for check in check_masks(quick_sam, authors=False)]
    unsure = [check.fault == "predicted IoU not above 0.7" for check in checks]
    assert any(sound) and any(unsure)
    for check, is_sound, is_unsure in zip(checks, sound, unsure, strict=True):
        assert is_unsure == (is_sound and check.predicted_iou <= 0.7)


# The command


def verify(path: Path, capsys: Captured) -> tuple[int, str, str]:
    code = main(["info", "--verify", str(path)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_succeeds_for_the_authors_weights_alone(
    own_sam: MobileSam, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        own_sam.mask_decoder.iou_prediction_head.layers[-1].bias += 0.6
    sure = tmp_path / "mobile_sam.pt"
    save_checkpoint(own_sam.state_dict(), sure)
    code, out, err = verify(sure, capsys)
    assert code == 1 and "weights             unknown: the file is not" in out
    assert err == "mobile-sam: the weights are not proven to be the authors'\n"

    monkeypatch.setattr(verification, "AUTHORS_SHA256", digest_contents(sure))
    code, out, err = verify(sure, capsys)
    assert (code, err) == (0, "")
    for line in (
        "weights             the authors' file, by its sha256",
        "licence             Apache-2.0\n",
        "source              https://github.com/ChaoningZhang/MobileSAM\n",
        "self-check          flower.jpg, a box: ",
    ):
        assert line in out
    assert out.count(": sound\n") == 3


def test_the_command_fails_if_the_self_check_does(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "copy.safetensors"
    file.write_bytes(BUNDLED_FILE.read_bytes())
    monkeypatch.setattr(verification, "AUTHORS_SHA256", digest_contents(file))
    code, out, err = verify(file, capsys)
    assert (code, err) == (1, "mobile-sam: the self-check failed\n")
    assert out.count("predicted IoU not above 0.7") == 3  # the bundled weights are that modest


def test_the_command_refuses_what_is_no_checkpoint(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "page.pt").write_text("<html>")
    code, _, err = verify(tmp_path / "page.pt", capsys)
    assert code == 2 and "is a web page" in err
