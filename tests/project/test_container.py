"""The Dockerfile's steps without an engine for containers: the same script, in an environment."""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml

from .test_packaging import copy_tree

ROOT = Path(__file__).parents[2]


def test_the_compose_file_passes_options_that_the_command_has() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    given = [each for each in services["mobile-sam"]["command"] if each.startswith("--")]
    given += re.findall(r"--[a-z-]+", (ROOT / "Dockerfile").read_text().partition("ENTRYPOINT")[2])
    source = (ROOT / "mobile_sam_plugin" / "cli" / "serve.py").read_text()
    names = {"checkpoint", *re.findall(r"^    (\w+): ", source, re.MULTILINE)}
    assert {option[2:].replace("-", "_") for option in given} <= names
    assert (ROOT / "docker" / "install.sh").exists()


@pytest.mark.slow
@pytest.mark.process
def test_what_the_image_would_hold_serves(tmp_path: Path) -> None:
    checkout = copy_tree(tmp_path / "checkout")
    shutil.copytree(ROOT / "docker", checkout / "docker")
    environment = tmp_path / "environment"
    # The index of this machine, whatever it is, in the place of torch's own.
    done = subprocess.run(
        ["sh", str(checkout / "docker" / "install.sh"), str(environment)],
        env={**os.environ, "TORCH_INDEX": ""},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if "No matching distribution" in done.stderr or "ConnectionError" in done.stderr:
        pytest.skip(f"the libraries cannot be installed here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("mobile-sam ")
    files = [path.name for path in environment.glob("lib/python*/site-packages/opencv_python*")]
    assert files and all("headless" in name for name in files)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(environment / "bin" / "mobile-sam"), "serve", "--checkpoint", "bundled"]
    process = subprocess.Popen([*command, "--port", str(port)], cwd=tmp_path)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(600):
                try:
                    assert client.get("/v1/health").status_code == 200
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    time.sleep(0.2)
            image = (ROOT / "examples" / "images" / "coffee.png").read_bytes()
            request = '{"prompts": [{"points": [[300, 130]], "labels": [1]}]}'
            answer = client.post(
                "/v1/predict", files={"image": ("a.png", image)}, data={"request": request}
            )
            assert answer.status_code == 200
    finally:
        process.terminate()
        process.wait(60)
