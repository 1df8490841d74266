"""The files of phones: torch's programs of both halves, and what the extras make of them."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import torch

from mobile_sam_plugin import MobileSam
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.cli.export import Format
from mobile_sam_plugin.deploy import export_for_phones
from mobile_sam_plugin.deploy.decoder_graph import LowResGraph
from mobile_sam_plugin.deploy.phones import FORMATS
from mobile_sam_plugin.errors import MissingExtra, UserError

from ..conftest import PHOTOGRAPHS

IMAGES = [PHOTOGRAPHS / "coffee.png"]
LIBRARIES = {"litert": "litert_torch", "executorch": "executorch", "coreml": "coremltools"}


def test_the_command_offers_every_format() -> None:
    assert get_args(Format) == ("onnx", *FORMATS) == ("onnx", *LIBRARIES)


def test_torch_export_takes_both_halves(small_sam: MobileSam) -> None:
    """What the libraries are handed, TinyViT included."""
    inputs = (
        torch.randn(1, 256, 14, 14),
        torch.tensor([[[130.0, 80.0], [0.0, 0.0]]]),
        torch.tensor([[1.0, -1.0]]),
        torch.zeros(1, 1, 56, 56),
        torch.zeros(1),
    )
    with torch.no_grad():
        for module, given in (
            (small_sam.image_encoder, (torch.randn(1, 3, 224, 224),)),
            (LowResGraph(small_sam).eval(), inputs),
        ):
            program = torch.export.export(module, given).run_decompositions({})
            found, expected = program.module()(*given), module(*given)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_masks_are_those_of_torch(format: str, tiny_sam: MobileSam, tmp_path: Path) -> None:
    pytest.importorskip(LIBRARIES[format], reason=f"the extra {format} is not installed")
    names = [f"mobile_sam_{half}{FORMATS[format].suffix}" for half in ("encoder", "decoder")]
    old = tmp_path / names[0] / "old"
    if format == "coreml":  # whose files are folders
        old.parent.mkdir()
        old.touch()
    found = export_for_phones(tiny_sam, tmp_path, IMAGES, format)
    assert not old.exists()
    assert [each.path for each in found] == [tmp_path / name for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for each in found:
        assert each.megabytes > 0.1
        if FORMATS[format].load:
            assert each.mask_iou > 0.99 and each.largest_difference < 0.01
        else:
            assert math.isnan(each.mask_iou)


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_library_is_told(format: str, tiny_sam: MobileSam, tmp_path: Path) -> None:
    if find_spec(LIBRARIES[format]):
        pytest.skip(f"the extra {format} is installed")
    with pytest.raises(MissingExtra, match=rf"mobile-sam-plugin\[{format}\]"):
        export_for_phones(tiny_sam, tmp_path, IMAGES, format)
    assert not list(tmp_path.iterdir())


def test_contradictions_are_refused(
    tiny_sam: MobileSam, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="format must be one of litert, .*, not 'tflite'"):
        export_for_phones(tiny_sam, tmp_path, IMAGES, "tflite")
    with pytest.raises(UserError, match="images must hold"):
        export_for_phones(tiny_sam, tmp_path, [], "litert")
    assert main(["export", "--out", str(tmp_path), "--format", "coreml", "--for", "isat"]) == 2
    assert "--for are for --format onnx, not coreml" in " ".join(capsys.readouterr().err.split())
