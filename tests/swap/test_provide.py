"""``import mobile_sam`` on this package: who gets it, and the calls that its clients make."""

import ast
import importlib.util
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from numpy.typing import NDArray

import mobile_sam_plugin
from mobile_sam_plugin import MobileSam, provide
from mobile_sam_plugin.mobile_sam import set_img_size

Pixels = NDArray[np.uint8]
ROOT = Path(__file__).parents[2]
RUN = (sys.executable, "-m", "mobile_sam_plugin", "run")
PROVIDED = str(ROOT / "mobile_sam_plugin" / "provided" / "__init__.py")
MODULES = (
    "",
    ".automatic_mask_generator",
    ".build_sam",
    ".modeling",
    ".modeling.common",
    ".modeling.image_encoder",
    ".modeling.mask_decoder",
    ".modeling.prompt_encoder",
    ".modeling.sam",
    ".modeling.tiny_vit_sam",
    ".modeling.transformer",
    ".predictor",
    ".utils",
    ".utils.amg",
    ".utils.onnx",
    ".utils.transforms",
)


@pytest.fixture
def nothing_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgets a mobile_sam that another test imported, and brings it back."""
    before = {name: module for name, module in sys.modules.items() if _is_part(name)}
    for name in before:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if _is_part(name)]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def provided(nothing_imported: None) -> Iterator[None]:
    with provide("mobile_sam", hide_installed=True):
        yield


@pytest.fixture
def not_installed(nothing_imported: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the original that the tests have installed."""
    find_spec = PathFinder.find_spec

    def find_others(fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname == "mobile_sam" else find_spec(fullname, path, target)

    monkeypatch.setattr(PathFinder, "find_spec", find_others)


@pytest.fixture
def original(nothing_imported: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mobile_sam of somebody else, first on the path."""
    package = tmp_path / "site" / "mobile_sam"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("sam_model_registry = {}\n")
    monkeypatch.syspath_prepend(package.parent)
    return package / "__init__.py"


def _is_part(name: str) -> bool:
    return name.split(".")[0] == "mobile_sam"


def imported_file() -> str | None:
    return import_module("mobile_sam").__file__


# Who gets it


def test_it_is_there_where_the_original_is_not(not_installed: None) -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("mobile_sam")
    with provide("mobile_sam"):
        with provide("mobile_sam"):
            assert imported_file() == PROVIDED
        assert imported_file() == PROVIDED
    assert not any(map(_is_part, sys.modules))
    with pytest.raises(ModuleNotFoundError):
        import_module("mobile_sam")


def test_a_folder_of_weights_is_no_original(
    nothing_imported: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mobile_sam").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert import_module("mobile_sam").__file__ is None
    del sys.modules["mobile_sam"]
    with provide("mobile_sam"):
        spec = importlib.util.find_spec("mobile_sam")
        assert spec is not None and spec.origin == PROVIDED


@pytest.mark.parametrize("imported", [False, True])
def test_an_original_stays_in_use(
    original: Path, caplog: pytest.LogCaptureFixture, imported: bool
) -> None:
    if imported:
        import_module("mobile_sam")
    with provide("mobile_sam"):
        assert imported_file() == str(original)
    (record,) = caplog.records
    assert f"{original} and stays in use" in record.getMessage()
    assert "provide('mobile_sam', hide_installed=True)" in record.getMessage()
    assert imported_file() == str(original)


def test_an_original_is_hidden_if_told_to(original: Path) -> None:
    with provide("mobile_sam", hide_installed=True):
        assert imported_file() == PROVIDED
    assert imported_file() == str(original)


def test_an_original_cannot_be_hidden_once_it_is_imported(original: Path) -> None:
    import_module("mobile_sam")
    with pytest.raises(ValueError, match="before its first import") as raised:
        provide("mobile_sam", hide_installed=True)
    assert str(original) in str(raised.value)
    assert imported_file() == str(original)


def test_no_other_package_is_provided() -> None:
    with pytest.raises(ValueError, match="package must be 'mobile_sam', not 'mobilesam'"):
        provide("mobilesam")


# The command, and the processes that its script starts

SCRIPT = """
import multiprocessing, subprocess, sys
from importlib.util import find_spec

def file(_):
    return find_spec("mobile_sam").origin

if __name__ == "__main__":
    print(file(0))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(file, [0]))
    child = "from importlib.util import find_spec; print(find_spec('mobile_sam').origin)"
    subprocess.run([sys.executable, "-c", child], check=True)
    import mobile_sam
    print(mobile_sam.__file__)
"""

# Run by every process at its start, so that none finds the original that the tests have installed.
SITECUSTOMIZE = """
from importlib.machinery import PathFinder

def find_others(fullname, path=None, target=None, find_spec=PathFinder.find_spec):
    return None if fullname == "mobile_sam" else find_spec(fullname, path, target)

PathFinder.find_spec = find_others
"""


def outcome(folder: Path, *options: str) -> tuple[int, list[str], str]:
    (folder / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(folder / "site"), str(ROOT)])
    done = subprocess.run(
        [*RUN, *options, "script.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.split(), done.stderr


@pytest.mark.process
def test_run_provides_it_in_all_processes(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    assert outcome(tmp_path, "--provide", "mobile_sam") == (0, 4 * [PROVIDED], "")
    assert outcome(tmp_path)[0] == 1


@pytest.mark.process
def test_run_hides_an_original_only_if_told_to(original: Path, tmp_path: Path) -> None:
    code, files, stderr = outcome(tmp_path, "--provide", "mobile_sam")
    assert (code, files) == (0, 4 * [str(original)])
    assert stderr == (
        f"mobile-sam: warning: --provide mobile_sam had no effect, since {original} was imported: "
        "--hide-installed hides it\n"
    )
    hidden = outcome(tmp_path, "--provide", "mobile_sam", "--hide-installed")
    assert hidden == (0, 4 * [PROVIDED], "")


def test_run_asks_what_to_hide(capsys: pytest.CaptureFixture[str]) -> None:
    assert mobile_sam_plugin.cli.main(["run", "--hide-installed", "script.py"]) == 2
    assert "it goes with --provide" in capsys.readouterr().err


# Its names


@pytest.mark.parametrize("module", MODULES)
def test_it_has_the_names_and_arguments_of_the_original(provided: None, module: str) -> None:
    """As read from the original's files, which are not imported."""
    found = PathFinder.find_spec("mobile_sam")
    if found is None or found.origin is None:
        pytest.skip("the original is not installed")
    file = Path(found.origin).parent.joinpath(*module.split("."))
    source = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text()
    ours = import_module(f"mobile_sam{module}")
    tiny_vit = module == ".modeling.tiny_vit_sam"  # the constructor alone: its inside is another
    names = 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.level and file.is_dir():
            assert [alias.name for alias in node.names if not hasattr(ours, alias.name)] == []
            names += len(node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if tiny_vit and node.name not in ("TinyViT", "LayerNorm2d"):
                continue
            names += 1
            own = getattr(ours, node.name)
            for method in node.body if isinstance(node, ast.ClassDef) else [node]:
                if not isinstance(method, ast.FunctionDef):
                    continue
                if method.name == "__init__" or not (tiny_vit or method.name.startswith("_")):
                    its = own if method is node else inspect.getattr_static(own, method.name)
                    assert_takes(getattr(its, "__func__", its), method)
    assert names or module == ".utils"


def assert_takes(function: Any, theirs: ast.FunctionDef) -> None:
    """The arguments of the original, by their names and places; more may follow."""
    if isinstance(function, property):
        return
    wanted = [argument.arg for argument in theirs.args.args]
    parameters = list(inspect.signature(function).parameters)
    assert parameters[: len(wanted)] == wanted or not wanted, theirs.name


def test_its_registry(provided: None) -> None:
    from mobile_sam import build_sam, build_sam_vit_b, sam_model_registry

    assert list(sam_model_registry) == ["default", "vit_h", "vit_l", "vit_b", "vit_t"]
    assert sam_model_registry["default"] is build_sam is segment_anything.build_sam
    assert sam_model_registry["vit_b"] is build_sam_vit_b is segment_anything.build_sam_vit_b


def test_its_parts_are_segment_anythings(provided: None) -> None:
    import mobile_sam.modeling.mask_decoder
    from mobile_sam.modeling import Sam, TinyViT
    from mobile_sam.modeling.common import LayerNorm2d
    from mobile_sam.utils import amg

    assert mobile_sam.modeling.mask_decoder.MaskDecoder is segment_anything.modeling.MaskDecoder
    assert Sam is segment_anything.modeling.Sam
    assert LayerNorm2d is segment_anything.modeling.common.LayerNorm2d
    assert amg is segment_anything.utils.amg
    assert TinyViT.__module__ == "mobile_sam.modeling.tiny_vit_sam"


# Its clients, and exactly the calls that each of them makes


def test_micro_sam(provided: None, authors_file: Path, coffee: Pixels) -> None:
    """``micro_sam.util.get_sam_model``, and its adaptor for the BioImage.IO model zoo."""
    from mobile_sam import SamPredictor, sam_model_registry

    sam = sam_model_registry["vit_t"]()
    sam.load_state_dict(torch.load(authors_file, map_location="cpu", weights_only=False))
    sam.to(device="cpu")
    set_img_size(sam, 224)  # for the test alone
    predictor = SamPredictor(sam)
    predictor.model_type = "vit_t"
    predictor._hash = "xxh128:..."

    image = torch.tensor(coffee).permute(2, 0, 1)[None].float()
    resized = predictor.transform.apply_image_torch(image)
    assert resized.shape == (1, 3, 149, 224)
    predictor.set_torch_image(resized, original_image_size=image.shape[2:])
    original_size, input_size = predictor.original_size, predictor.input_size
    boxes = torch.tensor([[[170, 70, 500, 330]]])
    points, labels = torch.tensor([[[[300, 200], [20, 20]]]]), torch.tensor([[[1, 0]]])
    prompts = {
        "boxes": predictor.transform.apply_boxes_torch(boxes, original_size=original_size),
        "point_coords": predictor.transform.apply_coords_torch(points, original_size)[0],
        "point_labels": labels[0],
    }
    masks, scores, _ = predictor.predict_torch(**prompts, multimask_output=False)
    assert masks.shape == (1, 1, *image.shape[2:])

    other = SamPredictor(sam)  # given the embeddings of the first
    other.features = predictor.get_image_embedding()
    other.orig_h, other.orig_w = image.shape[2:]
    other.input_h, other.input_w = predictor.transform.apply_image_torch(image).shape[2:]
    other.is_image_set = True
    other.input_size, other.original_size = input_size, original_size
    again, _, _ = other.predict_torch(**prompts, multimask_output=False)
    assert torch.equal(again, masks)


def test_label_studio(provided: None, tiny_file: Path, coffee: Pixels) -> None:
    """The examples ``segment_anything_model`` and ``grounding_sam``."""
    from mobile_sam import SamPredictor, sam_model_registry
    from mobile_sam.utils.transforms import ResizeLongestSide

    sam = sam_model_registry["vit_t"](checkpoint=tiny_file)
    sam.to(device="cpu")
    predictor = SamPredictor(sam)
    predictor.set_image(np.ascontiguousarray(coffee, dtype=np.uint8))
    assert predictor.get_image_embedding().cpu().numpy().shape == (1, 256, 64, 64)
    masks, probs, _ = predictor.predict(
        point_coords=np.array([[300, 200]], dtype=np.float32),
        point_labels=np.array([1], dtype=np.float32),
        box=np.array([170, 70, 500, 330], dtype=np.float32),
        multimask_output=False,
    )
    assert masks[0, :, :].astype(np.uint8).shape == coffee.shape[:2] and 0 <= float(probs[0]) <= 1
    assert predictor.model.mask_threshold == 0

    transform = ResizeLongestSide(sam.image_encoder.img_size)
    resized = torch.as_tensor(transform.apply_image(coffee), device=sam.device)
    boxes = torch.tensor([[170.0, 70.0, 500.0, 330.0], [10.0, 10.0, 90.0, 120.0]])
    batch = {
        "image": resized.permute(2, 0, 1).contiguous(),
        "boxes": transform.apply_boxes_torch(boxes, coffee.shape[:2]),
        "original_size": coffee.shape[:2],
    }
    (output,) = sam([batch], multimask_output=False)
    assert output["masks"][:, 0, :, :].cpu().numpy().shape == (2, *coffee.shape[:2])
    assert output["iou_predictions"].cpu().numpy().shape == (2, 1)


def test_scripts(provided: None, tiny_file: Path, coffee: Pixels) -> None:
    """As in MobileSAM's own ``app.py`` and ``scripts/amg.py``, and in grids of points."""
    from mobile_sam import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
    from mobile_sam.utils.amg import batched_mask_to_box, build_all_layer_point_grids

    mobile_sam = sam_model_registry["vit_t"](checkpoint=str(tiny_file))
    mobile_sam = mobile_sam.to(device="cpu")
    mobile_sam.eval()
    set_img_size(mobile_sam, 256)  # for the test alone
    generator = SamAutomaticMaskGenerator(
        mobile_sam, points_per_side=1, pred_iou_thresh=0, stability_score_thresh=0
    )
    generator.point_grids = build_all_layer_point_grids(2, 0, 1)
    clicked = {tuple(record["point_coords"][0]) for record in generator.generate(coffee)}
    assert len(clicked) > 1

    predictor = SamPredictor(mobile_sam)
    predictor.set_image(coffee)
    side = mobile_sam.image_encoder.img_size
    grid = torch.tensor([[[side / 4, side / 4]], [[side / 2, side / 2]]])
    masks, scores, _ = predictor.predict_torch(
        point_coords=grid, point_labels=torch.ones(2, 1), multimask_output=True
    )
    best = masks[torch.arange(2), torch.argmax(scores, dim=1)]
    assert batched_mask_to_box(best).shape == (2, 4)


def test_a_model_of_parts(provided: None, authors_file: Path, reference_sam: MobileSam) -> None:
    """As the original's own builder, and trainings that take it from there."""
    from mobile_sam.modeling import MaskDecoder, PromptEncoder, Sam, TinyViT, TwoWayTransformer

    encoder = TinyViT(
        img_size=1024,
        in_chans=3,
        num_classes=1000,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        mlp_ratio=4.0,
        drop_rate=0.0,
        drop_path_rate=0.0,
        use_checkpoint=False,
        mbconv_expand_ratio=4.0,
        local_conv_size=3,
        layer_lr_decay=0.8,
    )
    prompts = PromptEncoder(256, (64, 64), (1024, 1024), 16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    sam = Sam(encoder, prompts, MaskDecoder(transformer_dim=256, transformer=transformer))
    sam.load_state_dict(torch.load(authors_file))
    expected = reference_sam.state_dict()
    assert sam.state_dict().keys() == expected.keys()
    image = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        embedding = sam.eval().image_encoder(image)
        assert torch.equal(embedding, reference_sam.image_encoder(image))


@pytest.mark.parametrize(
    "other", [{}, {"embed_dims": [96, 192, 384, 576]}, {"depths": (2, 2, 2, 2)}, {"in_chans": 1}]
)
def test_another_tiny_vit_is_refused(provided: None, other: dict[str, Any]) -> None:
    from mobile_sam.modeling.tiny_vit_sam import TinyViT

    own = {"embed_dims": [64, 128, 160, 320], "num_heads": [2, 4, 5, 10], "drop_path_rate": 0.0}
    assert TinyViT(**own).img_size == 224
    with pytest.raises(ValueError, match="TinyViT's .* must be .* as in MobileSAM, not"):
        TinyViT(**{**own, **other} if other else {})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning")
def test_export_to_onnx(provided: None, tiny_sam: MobileSam) -> None:
    """``scripts/export_onnx_model.py``: what is traced at one aspect ratio serves others."""
    from mobile_sam.utils.onnx import SamOnnxModel

    def inputs(height: int, width: int) -> dict[str, torch.Tensor]:
        return {
            "image_embeddings": torch.zeros(1, 256, 16, 16),
            "point_coords": torch.tensor([[[100.0, 60.0], [0.0, 0.0]]]),
            "point_labels": torch.tensor([[1.0, -1.0]]),
            "mask_input": torch.zeros(1, 1, 64, 64),
            "has_mask_input": torch.zeros(1),
            "orig_im_size": torch.tensor([height, width], dtype=torch.float),
        }

    model = SamOnnxModel(tiny_sam, return_single_mask=True)
    with torch.no_grad():
        traced = torch.jit.trace(model, example_kwarg_inputs=inputs(150, 225), check_trace=False)
        for size in ((150, 225), (225, 150), (90, 90)):
            expected, actual = model(**inputs(*size)), traced(**inputs(*size))
            assert actual[0].shape[-2:] == size
            for mine, theirs in zip(actual, expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_traced_encoder(provided: None, tiny_file: Path) -> None:
    """A script for Triton: the encoder behind the predictor, traced."""
    from mobile_sam import SamPredictor, sam_model_registry
    from mobile_sam.utils.transforms import ResizeLongestSide

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sam = sam_model_registry["vit_t"](checkpoint=tiny_file)
            self.predictor = SamPredictor(self.sam)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.predictor.set_torch_image(x, (256, 180))
            return self.predictor.get_image_embedding()

    model = Model()
    set_img_size(model.sam, 256)  # for the test alone
    image = ResizeLongestSide(256).apply_image(np.zeros((180, 256, 3), dtype=np.uint8))
    x = torch.as_tensor(image).permute(2, 0, 1).contiguous()[None, :, :, :]
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-3, atol=1e-3)
