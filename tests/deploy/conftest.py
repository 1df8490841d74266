"""The two ONNX files that several test files share."""

from pathlib import Path

import pytest

from mobile_sam_plugin import MobileSam
from mobile_sam_plugin.deploy.clients import DECODER_FILE, ENCODER_FILE
from mobile_sam_plugin.deploy.onnx_export import _write_decoder, _write_encoder

Files = tuple[Path, Path]


def named(folder: Path) -> Files:
    return folder / ENCODER_FILE, folder / DECODER_FILE


def write_files(sam: MobileSam, folder: Path, opset: int) -> Files:
    """Exports without the comparison with torch, which takes most of the time."""
    encoder, decoder = files = named(folder)
    _write_encoder(sam, encoder, opset)
    _write_decoder(sam, decoder, opset)
    return files


@pytest.fixture(scope="session")
def files(bundled_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """For images of 1024 x 1024 pixels; not to be changed by a test."""
    return write_files(bundled_sam, tmp_path_factory.mktemp("large"), opset=18)
