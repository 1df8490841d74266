"""The node for ComfyUI, loaded as ComfyUI does, and the calls that Impact-Pack makes."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mobile_sam_plugin import SamPredictor

NODE = Path(__file__).parents[2] / "examples" / "comfyui" / "mobile_sam_loader.py"


@pytest.fixture
def node(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file as ComfyUI loads it, whose two modules are here as far as it asks for them."""
    folders: Any = ModuleType("folder_paths")
    folders.get_filename_list = lambda kind: [tiny_file.name] if kind == "sams" else []
    folders.get_full_path = lambda kind, name: str(tiny_file.parent / name)
    management: Any = ModuleType("comfy.model_management")
    management.get_torch_device = lambda: torch.device("cpu")
    comfy: Any = ModuleType("comfy")
    comfy.model_management = management
    for module in (folders, comfy, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("custom_node", NODE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_impact_pack_gets_the_masks(node: Any, tiny_file: Path, coffee: NDArray[np.uint8]) -> None:
    loader = node.NODE_CLASS_MAPPINGS["MobileSamLoader"]()
    inputs = loader.INPUT_TYPES()["required"]
    assert inputs["model_name"][0] == ["bundled", tiny_file.name]
    assert loader.RETURN_TYPES == ("SAM_MODEL",)
    assert set(node.NODE_DISPLAY_NAME_MAPPINGS) == set(node.NODE_CLASS_MAPPINGS)
    (sam,) = getattr(loader, loader.FUNCTION)(tiny_file.name, inputs["device_mode"][0][0])
    # As make_sam_mask does: a box with a point in it, and a box alone.
    box = [170, 10, 430, 300]
    wrapper = sam.sam_wrapper
    wrapper.prepare_device()
    try:
        found = wrapper.predict(coffee, [(300, 155)], [1], box, 0.0)
        one = wrapper.predict(coffee, [], [], box, 2.0)
    finally:
        wrapper.release_device()
    predictor = SamPredictor(sam)
    predictor.set_image(coffee)
    masks, *_ = predictor.predict([[300, 155]], [1], box)
    np.testing.assert_array_equal(np.stack(found), masks)
    masks, scores, _ = predictor.predict(box=box)
    np.testing.assert_array_equal(one, masks[[scores.argmax()]])
