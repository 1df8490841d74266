"""One engine for small images, and its model in onnxruntime, that several test files share."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mobile_sam_plugin import MobileSam
from mobile_sam_plugin.deploy import OnnxPredictor
from mobile_sam_plugin.engine import Engine, Limits, OnnxBackend, TorchBackend
from mobile_sam_plugin.serve import httpx, uvicorn
from mobile_sam_plugin.serve.api import create_api

from ..conftest import PHOTOGRAPHS
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
    return OnnxBackend(OnnxPredictor(encoder, decoder))


@pytest.fixture
def engine(torch_backend: TorchBackend) -> Iterator[Engine]:
    engine = Engine(torch_backend)
    yield engine
    engine.close()


@contextmanager
def serving(api: Any) -> Iterator[httpx.Client]:
    """Runs a service on a free port, in a thread; yields a client of it."""
    config = uvicorn.Config(api, port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, and a secret beside it."""
    folder = tmp_path_factory.mktemp("served") / "root"
    (folder / "photos").mkdir(parents=True)
    shutil.copy(PHOTOGRAPHS / "coffee.png", folder / "photos")
    (folder.parent / "secret.png").write_bytes((PHOTOGRAPHS / "coffee.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.fixture(scope="session")
def service(torch_backend: TorchBackend, root: Path) -> Iterator[httpx.Client]:
    """A service with small limits, that many tests ask."""
    limits = Limits(max_bytes=2**20, max_pixels=1_000_000, max_prompts=8, seconds=30)
    with serving(create_api(Engine(torch_backend, limits), root)) as client:
        yield client
