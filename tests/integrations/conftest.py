"""Fixtures that several files of tests use."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.integrations.inpaint_anything import (
    InpaintAnything,
)
from mobile_sam_plugin.integrations.inpainters import (
    DiffusersInpainter,
    LamaInpainter,
)
from mobile_sam_plugin.integrations.track_anything import (
    TrackAnything,
)

from .clips import ColorPropagator
from .models import (
    save_grounding_dino,
    save_inpainting_pipeline,
    save_owl_detector,
    save_swin_detector,
    save_video_model,
    write_lama,
)

Pixels = NDArray[np.uint8]


@pytest.fixture
def tracker(tiny_sam: MobileSam) -> TrackAnything:
    """One that needs no time; prompts are still MobileSAM's."""
    return TrackAnything(tiny_sam, ColorPropagator())


@pytest.fixture(scope="session")
def model_options(tiny_file: Path) -> list[str]:
    """Options for a command whose masks do not matter."""
    return ["--checkpoint", str(tiny_file), "--device", "cpu"]


@pytest.fixture(scope="session")
def video_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models, as a user has them."""
    kinds = "Sam2", "EdgeTam"
    return {kind: save_video_model(tmp_path_factory.mktemp(kind), kind) for kind in kinds}


@pytest.fixture(scope="module")
def editor(small_sam: MobileSam) -> InpaintAnything:
    return InpaintAnything(small_sam)


@pytest.fixture(scope="session")
def lama(tmp_path_factory: pytest.TempPathFactory) -> LamaInpainter:
    return LamaInpainter(write_lama(tmp_path_factory.mktemp("lama") / "lama.onnx"))


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inpainting_pipeline(tmp_path_factory.mktemp("diffusers"))


@pytest.fixture(scope="session")
def painter(pipeline_folder: Path) -> DiffusersInpainter:
    return DiffusersInpainter(pipeline_folder, seed=0, num_inference_steps=2)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved detectors, as a user has them."""
    kinds = ["GroundingDino", "MMGroundingDino", "Owlv2", "OwlViT"]
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in kinds}
    for kind in kinds[:2]:
        save_swin_detector(folders[kind], kind)
    for kind in kinds[2:]:
        save_owl_detector(folders[kind], kind)
    return folders


@pytest.fixture(scope="module")
def predictor(tiny_sam: MobileSam) -> SamPredictor:
    return SamPredictor(tiny_sam)


@pytest.fixture(scope="module")
def cup(coffee: Pixels) -> Pixels:
    """A part of the photograph, (60, 600, 3): thin, which is quick where the short side counts."""
    return np.ascontiguousarray(coffee[150:210])


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_grounding_dino(tmp_path_factory.mktemp("original"))
