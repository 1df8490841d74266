"""One engine for small images, and its model in onnxruntime, that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mobile_sam_plugin import MobileSam
from mobile_sam_plugin.deploy import OnnxPredictor
from mobile_sam_plugin.engine import Engine, OnnxBackend, TorchBackend

from ..deploy.conftest import write_files


@pytest.fixture(scope="session")
def torch_backend(tiny_sam: MobileSam) -> TorchBackend:
    return TorchBackend(tiny_sam)


@pytest.fixture(scope="session")
def onnx_folder(tiny_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``mobile-sam export`` writes, of ``tiny_sam``."""
    folder = tmp_path_factory.mktemp("onnx")
    write_files(tiny_sam, folder, opset=18)
    return folder


@pytest.fixture(scope="session")
def onnx_backend(onnx_folder: Path) -> OnnxBackend:
    encoder, decoder = (onnx_folder / f"mobile_sam_{half}.onnx" for half in ("encoder", "decoder"))
    return OnnxBackend("onnx", OnnxPredictor(encoder, decoder), encoder)


@pytest.fixture
def engine(torch_backend: TorchBackend) -> Iterator[Engine]:
    engine = Engine(torch_backend)
    yield engine
    engine.close()
