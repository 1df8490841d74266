"""The notebooks: they run, and are committed with the pictures that they show."""

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SMALLER = {
    '"10")': '"4")',  # labelled images
    "epochs=3": "epochs=1",
    "(4, 8, 12)": "(2, 3, 4)",  # points per side
    "points_per_side=12": "points_per_side=4",
    "points_per_side=8": "points_per_side=4",
}
"""What a test changes, so that it ends soon: the size of things, not what is done with them."""


def test_there_are_four() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["everything", "finetune", "first_mask", "folder_to_data_set"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_pictures(path: Path) -> None:
    assert path.stat().st_size < 1_000_000
    outputs = [
        out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", [])
    ]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert not [output for output in outputs if output.output_type == "error"]
    assert "site-packages" not in path.read_text()  # a warning with the path of a machine


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES / "images", folder / "images")
    shutil.copy(EXAMPLES / "labelled_images.py", folder)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for size, smaller in SMALLER.items():
            cell.source = cell.source.replace(size, smaller)
    resources: dict[str, Any] = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
