"""An object cut out and lifted: a square, a relief by depth, and meshes of any other function."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import trimesh
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin.cli import main
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.anything_3d import (
    Anything3d,
    TransformersDepth,
    cut_out_square,
    draw_turntable,
    make_relief,
)

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Depth Anything with random weights, as the Hub has it."""
    folder = tmp_path_factory.mktemp("depth")
    torch.manual_seed(0)
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(
            image_size=56,
            patch_size=14,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            out_features=["stage1", "stage2", "stage3", "stage4"],
            reshape_hidden_states=False,
        ),
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    transformers.DPTImageProcessor(
        size={"height": 56, "width": 56}, ensure_multiple_of=14, keep_aspect_ratio=True
    ).save_pretrained(folder)
    return folder


def disc(size: tuple[int, int] = (60, 80)) -> tuple[Pixels, NDArray[np.bool_]]:
    """A red disc of 41 pixels on green, and its mask."""
    rows, columns = np.indices(size)
    mask = np.hypot(rows - 30, columns - 40) <= 20
    image = np.where(mask[..., None], (200, 0, 0), (0, 255, 0)).astype(np.uint8)
    return image, mask


@pytest.mark.parametrize("background", ["white", "grey", "transparent"])
def test_square_holds_the_object_and_nothing_else(background: Any) -> None:
    image, mask = disc()
    square = cut_out_square(image, mask, 128, 0.75, background)
    assert square.shape == (128, 128, 4 if background == "transparent" else 3)
    colors = square[..., :3].astype(int)
    if background == "transparent":
        drawn = square[..., 3] > 0
        assert (square[~drawn] == 0).all() and (colors[drawn, 0] >= 199).all()
    else:
        drawn = (colors != (255 if background == "white" else 127)).any(axis=2)
        assert not (colors[..., 1] > colors[..., 2] + 1).any(), "no green comes through"
    rows, columns = np.nonzero(drawn)
    for places in (rows, columns):
        assert np.ptp(places) + 1 == pytest.approx(96, abs=2)
        assert (places.min() + places.max()) / 2 == pytest.approx(63.5, abs=1.5)


def test_relief_is_closed_and_stands_out_by_its_depth() -> None:
    image, mask = disc()
    rows, columns = np.indices(mask.shape)
    nearness = -np.hypot(rows - 30, columns - 40).astype(np.float32)
    mesh = make_relief(image, mask, nearness, relief=0.4)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    # The four outermost pixels are corners of no square of four.
    np.testing.assert_allclose(mesh.bounds[:, :2], [[-19 / 41] * 2, [19 / 41] * 2], atol=1e-6)
    assert mesh.bounds[1, 2] == pytest.approx(0.2) and mesh.bounds[0, 2] == pytest.approx(-0.25)
    nearest = mesh.vertices[mesh.vertices[:, 2].argmax()]
    assert np.abs(nearest[:2]).max() < 0.1
    colors = mesh.visual.to_color().vertex_colors
    assert (colors[:, 0] == 200).all() and (colors[:, 1] == 0).all()
    flat = make_relief(image, mask, np.ones(mask.shape, np.float32))
    assert flat.is_watertight
    with pytest.raises(UserError, match="too thin for a relief"):
        make_relief(image, np.arange(80)[None] + np.zeros((60, 1)) == 7, nearness)


def test_depth_model_and_files(depth_folder: Path, tmp_path: Path) -> None:
    image, mask = disc()
    depth = TransformersDepth(depth_folder)
    nearness = depth(image)
    assert nearness.shape == mask.shape and np.isfinite(nearness).all() and nearness.std() > 0
    lifted = Anything3d(None, depth).lift(image, mask, size=64)
    paths = lifted.save(tmp_path / "out")
    names = ["cutout.png", "object.glb", "object.ply", "turntable.gif"]
    assert [path.name for path in paths] == names
    glb = trimesh.load(paths[1], force="mesh")
    ply = trimesh.load(paths[2])
    assert len(glb.faces) == len(ply.faces) == len(lifted.mesh.faces)
    assert glb.visual.kind == "texture" and ply.visual.kind == "vertex"
    with Image.open(io.BytesIO(paths[3].read_bytes())) as gif:
        assert gif.size == (320, 320) and getattr(gif, "n_frames", 1) > 20
    pictures = draw_turntable(lifted.mesh)
    middle = pictures[0][115:205, 115:205].reshape(-1, 3)
    assert ((middle[:, 0] > 50) & (middle[:, 1] < 20)).mean() > 0.95, "the disc fills the middle"


def test_any_function_makes_the_mesh() -> None:
    image, mask = disc()
    seen = []

    def reconstruct(square: Pixels) -> Any:
        seen.append(square)
        return trimesh.creation.box()

    lifter = Anything3d(None, image_to_3d=reconstruct)
    lifted = lifter.lift(image, mask, 96, background="grey")
    assert len(lifted.mesh.faces) == 12
    np.testing.assert_array_equal(seen[0], lifted.cutout)
    with pytest.raises(UserError, match=r"must return a trimesh\.Trimesh, not a str"):
        Anything3d(None, image_to_3d=lambda square: "mesh").lift(image, mask)
    with pytest.raises(UserError, match="the mask is empty"):
        lifter.lift(image, np.zeros_like(mask))
    with pytest.raises(UserError, match="no background 'black'"):
        cut_out_square(image, mask, background="black")  # type: ignore[arg-type]


def test_command_lifts_a_mask(
    depth_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = disc()
    Image.fromarray(image).save(tmp_path / "disc.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ["lift", str(tmp_path / "disc.png"), "--mask", str(tmp_path / "mask.png")]
    arguments += ["--depth-model", str(depth_folder), "--device", "cpu", "--size", "64"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    written = capsys.readouterr().out.split()
    assert [Path(path).name for path in written][-1] == "turntable.gif"
    assert all(Path(path).exists() for path in written)
