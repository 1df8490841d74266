"""Models, weights and pictures that several test files share."""

import copy
import json
import shutil
import sys
import zlib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from numpy.typing import NDArray
from packaging.version import Version
from PIL import Image
from segment_anything.build_sam import _build_sam
from torch import Tensor

from mobile_sam_plugin import MobileSam, build_sam_vit_t
from mobile_sam_plugin.mobile_sam import set_img_size

HERE = Path(__file__).parent
REFERENCE = HERE / "reference"
PHOTOGRAPHS = HERE.parent / "examples" / "images"


def needs(library: str, release: str, what: str) -> pytest.MarkDecorator:
    """Skips a test where a library is installed that is older than it has to be."""
    is_older = Version(version(library)) < Version(release)
    return pytest.mark.skipif(is_older, reason=f"{library} {what} from {release} on")


def reference_weights() -> dict[str, Tensor]:
    """The 439 tensors behind predictor_golden.npz, each from the formula for its key.

    They are not trained; so the file of 40 MB need not travel.
    """
    manifest = json.loads((REFERENCE / "state_dict_manifest.json").read_text())
    return {key: torch.from_numpy(_tensor(key, tuple(manifest[key]["shape"]))) for key in manifest}


def _tensor(key: str, shape: tuple[int, ...]) -> NDArray[Any]:
    seed = zlib.crc32(key.encode("utf-8"))
    x = np.asarray(np.random.RandomState(seed).standard_normal(shape), dtype=np.float32)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if key.endswith("running_var"):
        return 1 + 0.2 * np.abs(x)
    if key.endswith("running_mean"):
        return 0.1 * x
    if key.endswith("attention_biases"):
        return 0.3 * x
    if key.endswith("positional_encoding_gaussian_matrix"):
        return x
    if key.endswith("bias"):
        return 0.05 * x
    if key.endswith("weight") and len(shape) == 1:
        return 1 + 0.1 * x
    embedding = "embed" in key and "patch_embed" not in key and "mask_downscaling" not in key
    if embedding or "_token" in key:
        return 0.5 * x
    fan_in = shape[0] if "output_upscaling" in key else np.prod(shape[1:])
    return (x / np.sqrt(fan_in)).astype(np.float32)


@pytest.fixture(scope="session")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``mobile_sam.pt`` as the authors' is: 439 tensors, the classification head among them."""
    path = tmp_path_factory.mktemp("authors") / "mobile_sam.pt"
    torch.save(reference_weights(), path)
    return path


@pytest.fixture(scope="session")
def reference_sam(authors_file: Path) -> MobileSam:
    """MobileSAM with the weights of the reference data; not to be changed by a test."""
    return build_sam_vit_t(authors_file)


@pytest.fixture(scope="session")
def bundled_sam() -> MobileSam:
    """MobileSAM with the bundled weights; not to be changed by a test."""
    return build_sam_vit_t("bundled")


@pytest.fixture(scope="session")
def small_sam(bundled_sam: MobileSam) -> MobileSam:
    """The same for images of 224 x 224, which is quick; not to be changed by a test."""
    sam = copy.deepcopy(bundled_sam)
    set_img_size(sam, 224)
    return sam


@pytest.fixture(scope="session")
def tiny_sam(bundled_sam: MobileSam) -> MobileSam:
    """MobileSAM for claims about files, queues and processes; not to be changed by a test.

    An untrained encoder of 256 x 256 pixels, ten times as fast as ``small_sam``'s, with the bundled
    prompt encoder and mask decoder. Its masks are small and local, but follow nothing in the image:
    use ``small_sam`` where they must. Everything mode keeps some with ``pred_iou_thresh=0,
    stability_score_thresh=0``: about 10 from 2 points per side. Saved and loaded again, it takes
    images of 1024 x 1024 pixels, until ``set_img_size(sam, 256)``.
    """
    torch.manual_seed(0)
    sam = MobileSam.untrained("test_efficientnet")  # timm's own, made for tests
    for name in ("prompt_encoder", "mask_decoder"):
        getattr(sam, name).load_state_dict(getattr(bundled_sam, name).state_dict())
    set_img_size(sam, 256)
    return sam


@pytest.fixture(scope="session")
def tiny_file(tiny_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_sam`` as a checkpoint; built from it, a model takes images of 1024 x 1024 pixels."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_sam.save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.fixture
def own_sam(bundled_sam: MobileSam) -> MobileSam:
    """A copy of ``bundled_sam`` that the test may change."""
    return copy.deepcopy(bundled_sam)


@pytest.fixture(scope="session")
def upstream_sam() -> segment_anything.modeling.Sam:
    """Upstream's SAM with a ViT of two narrow layers, untrained; not to be changed by a test."""
    torch.manual_seed(0)
    return _build_sam(
        encoder_embed_dim=64,
        encoder_depth=2,
        encoder_num_heads=2,
        encoder_global_attn_indexes=[1],
    )


@pytest.fixture(scope="session")
def coffee() -> NDArray[np.uint8]:
    """A photograph, (400, 600, 3) uint8 in RGB."""
    return np.asarray(Image.open(PHOTOGRAPHS / "coffee.png").convert("RGB"))


@pytest.fixture
def vendored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A project's own copy of segment_anything, as Segment-and-Track-Anything carries it."""
    shutil.copytree(Path(segment_anything.__file__).parent, tmp_path / "sam" / "segment_anything")
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("sam.segment_anything")
    for name in [name for name in sys.modules if name.split(".")[0] == "sam"]:
        del sys.modules[name]
