"""The scripts in examples/, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(folder: Path, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_remove_object(tmp_path: Path) -> None:
    done = run(tmp_path, "remove_object.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("removed.png: ")
    before, _, after = np.split(np.asarray(Image.open(tmp_path / "removed.png")), 3, axis=1)
    with Image.open(EXAMPLES / "images" / "rocket.jpg") as image:
        np.testing.assert_array_equal(before, image.convert("RGB"))
    assert 0 < (after != before).any(axis=2).mean() < 0.2


@pytest.mark.parametrize(
    ("script", "option"),
    [("grounded_sam.py", "--detector"), ("semantic_labels.py", "--classifier")],
)
def test_models_that_cannot_be_had_are_told_in_a_line(
    tmp_path: Path, script: str, option: str
) -> None:
    done = run(tmp_path, script, option, "no/such/folder")
    assert done.returncode == 1 and done.stderr.startswith(f"{script}: ")
    assert "no/such/folder" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
