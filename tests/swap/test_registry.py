"""``vit_t`` in every registry that it should be in, and nothing else moved."""

import inspect
import logging
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import segment_anything
import torch

from mobile_sam_plugin import (
    DEFAULT_CHECKPOINT,
    MobileSam,
    build_sam_vit_t,
    register,
    replace,
    sam_model_registry,
)
from mobile_sam_plugin.checkpoint import BUNDLED_FILE, read_checkpoint, save_checkpoint
from mobile_sam_plugin.errors import UserError

from ..fresh import run_code


def test_our_registry_has_upstreams_builders_and_vit_t() -> None:
    assert list(sam_model_registry) == ["default", "vit_h", "vit_l", "vit_b", "vit_t"]
    assert sam_model_registry["vit_b"] is segment_anything.build_sam_vit_b
    assert sam_model_registry["default"] is segment_anything.build_sam
    assert sam_model_registry["vit_t"] is build_sam_vit_t


def test_builder_takes_its_checkpoint_as_upstreams_do() -> None:
    (upstream,) = inspect.signature(segment_anything.build_sam_vit_b).parameters.values()
    (ours,) = inspect.signature(build_sam_vit_t).parameters.values()
    assert (ours.name, ours.kind) == (upstream.name, upstream.kind)
    assert ours.default == DEFAULT_CHECKPOINT == "hf://nielsr/mobilesam"


@pytest.mark.process
@pytest.mark.parametrize(
    "imports",
    [
        "import mobile_sam_plugin, segment_anything",
        "import segment_anything, mobile_sam_plugin",
        "from mobile_sam_plugin import SamPredictor; import segment_anything",
        "import mobile_sam_plugin.mobile_sam, segment_anything",
        "import mobile_sam_plugin.registry, segment_anything",
        "import mobile_sam_plugin.integrations, segment_anything",
    ],
)
def test_importing_the_package_adds_vit_t_upstream(imports: str) -> None:
    code = f"""{imports}
from segment_anything import sam_model_registry
sam = sam_model_registry["vit_t"](checkpoint=None)
print(type(sam).__name__, isinstance(sam, segment_anything.modeling.Sam), sam.training)"""
    assert run_code(code) == "MobileSam True False"


@pytest.mark.process
def test_importing_the_package_alone_imports_nothing_heavy() -> None:
    code = """import sys, mobile_sam_plugin
print([name for name in ("torch", "timm", "numpy", "segment_anything") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    import mobile_sam_plugin

    assert {name for name in dir(mobile_sam_plugin) if name in mobile_sam_plugin.__all__} == set(
        mobile_sam_plugin.__all__
    )
    for name in mobile_sam_plugin.__all__:
        assert getattr(mobile_sam_plugin, name) is not None
    with pytest.raises(AttributeError, match="sam_model_regisrty"):
        _ = mobile_sam_plugin.sam_model_regisrty


def test_register_adds_vit_t_to_a_vendored_copy(vendored: ModuleType) -> None:
    assert "vit_t" not in vendored.sam_model_registry
    register(vendored)
    sam = vendored.sam_model_registry["vit_t"](checkpoint="bundled")
    assert vendored.SamPredictor(sam).device.type == "cpu"


def test_register_leaves_a_vit_t_of_its_own_alone(vendored: ModuleType) -> None:
    own = vendored.sam_model_registry["vit_t"] = vendored.build_sam_vit_b
    register(vendored)
    assert vendored.sam_model_registry["vit_t"] is own
    register(vendored, override=True)
    assert vendored.sam_model_registry["vit_t"] is build_sam_vit_t


def test_register_refuses_what_has_no_registry() -> None:
    with pytest.raises(TypeError, match="logging has no dict sam_model_registry"):
        register(logging)


def test_replace_builds_mobile_sam_and_says_what_it_ignores(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = dict(segment_anything.sam_model_registry)
    with replace("vit_h", "vit_l", checkpoint="bundled"):
        for build in (
            segment_anything.sam_model_registry["vit_h"],
            segment_anything.sam_model_registry["vit_l"],
            segment_anything.build_sam_vit_h,
        ):
            caplog.clear()
            assert isinstance(build(checkpoint="no/such/sam_vit_h_4b8939.pth"), MobileSam)
            (record,) = caplog.records
            assert "ignoring its checkpoint 'no/such/sam_vit_h_4b8939.pth'" in record.getMessage()
        assert segment_anything.sam_model_registry["vit_b"] is before["vit_b"]
    assert segment_anything.sam_model_registry == before
    assert segment_anything.build_sam_vit_h is before["vit_h"]
    assert sam_model_registry["vit_h"] is before["vit_h"]


def names_of(builder: object) -> set[str]:
    """Where in segment_anything and its registry a function is, by all names."""
    modules = (segment_anything, import_module("segment_anything.build_sam"))
    tables = (*map(vars, modules), segment_anything.sam_model_registry)
    names = ("package", "module", "registry")
    return {
        f"{where}.{name}"
        for where, table in zip(names, tables, strict=True)
        for name, value in table.items()
        if value is builder
    }


@pytest.mark.parametrize("model_type", ["vit_h", "default"])
def test_replace_goes_with_the_builder_under_all_its_names(model_type: str) -> None:
    """Upstream's build_sam, build_sam_vit_h and "default" are one function; scripts use each."""
    upstream = segment_anything.build_sam
    before = names_of(upstream)
    assert before >= {"package.build_sam", "module.build_sam_vit_h", "registry.default"}
    with replace(model_type, checkpoint="bundled"):
        from segment_anything import build_sam
        from segment_anything.build_sam import build_sam_vit_h

        assert build_sam is build_sam_vit_h is not upstream
        assert names_of(build_sam) == before and names_of(upstream) == set()
        assert isinstance(build_sam(checkpoint="sam_vit_h_4b8939.pth"), MobileSam)
    assert names_of(upstream) == before and names_of(build_sam) == set()


def test_replace_restores_modules_that_were_loaded_meanwhile(
    vendored: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "sam" / "segment_anything" / "late.py").write_text("from . import build_sam_vit_l")
    own = vendored.build_sam_vit_l
    with replace("vit_l", into=vendored):
        late = import_module("sam.segment_anything.late")
        assert late.build_sam_vit_l is vendored.build_sam_vit_l is not own
    assert late.build_sam_vit_l is own


def test_register_overrides_under_all_names(vendored: ModuleType) -> None:
    """As the original mobile_sam has it: a registry entry, and a function of the package."""
    own = vendored.build_sam_vit_b
    vars(vendored)["build_sam_vit_t"] = vendored.sam_model_registry["vit_t"] = lambda checkpoint: (
        own
    )
    register(vendored, override=True)
    assert vars(vendored)["build_sam_vit_t"] is build_sam_vit_t
    assert vendored.sam_model_registry["vit_b"] is vendored.build_sam_vit_b is own


def test_replace_names_the_checkpoint_that_it_loads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MOBILE_SAM_CHECKPOINT", str(BUNDLED_FILE))
    with replace("vit_h"):
        segment_anything.build_sam()
    assert f"building MobileSAM ({BUNDLED_FILE}) in place of vit_h" in caplog.text
    assert str(DEFAULT_CHECKPOINT) not in caplog.text


def test_replace_is_also_a_function_and_nests(vendored: ModuleType) -> None:
    before = dict(vendored.sam_model_registry)
    outer = replace("vit_b", into=vendored, checkpoint=None)
    replaced = vendored.sam_model_registry["vit_b"]
    with replace("vit_b", "default", into=vendored, checkpoint="bundled"):
        assert vendored.sam_model_registry["vit_b"] is not replaced
        assert isinstance(vendored.build_sam(), MobileSam)
    assert vendored.sam_model_registry["vit_b"] is replaced
    assert isinstance(vendored.sam_model_registry["vit_b"]("ignored.pth"), MobileSam)
    outer.close()
    assert vendored.sam_model_registry == before


def test_replace_restores_after_an_exception() -> None:
    before = dict(segment_anything.sam_model_registry)
    with pytest.raises(ZeroDivisionError), replace("vit_h"):
        raise ZeroDivisionError
    assert segment_anything.sam_model_registry == before


def test_replace_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="no model type 'vit_x', only default, vit_h"):
        replace("vit_h", "vit_x")
    with pytest.raises(ValueError, match="at least one model type"):
        replace()
    assert segment_anything.sam_model_registry["vit_h"] is segment_anything.build_sam_vit_h


# A model told by its file


@pytest.fixture
def narrow(vendored: ModuleType, tmp_path: Path) -> Path:
    """A file of SAM's vit_b, which the vendored copy builds with one layer instead of twelve."""
    build = import_module("sam.segment_anything.build_sam")._build_sam

    def build_narrow(checkpoint: str | None = None) -> segment_anything.modeling.Sam:
        return build(768, 1, 12, [0], checkpoint)

    torch.manual_seed(0)
    vars(vendored)["build_sam_vit_b"] = vendored.sam_model_registry["vit_b"] = build_narrow
    torch.save(build_narrow().state_dict(), tmp_path / "sam_vit_b.pth")
    return tmp_path / "sam_vit_b.pth"


def equal_weights(model: torch.nn.Module, file: Path) -> bool:
    tensors = read_checkpoint(file)
    own = model.state_dict()
    return all(torch.equal(value, tensors[key].to(value.dtype)) for key, value in own.items())


def test_the_file_decides_on_the_model(
    vendored: ModuleType, narrow: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register(vendored)
    before = dict(vendored.sam_model_registry)
    with replace(into=vendored, by_checkpoint=True):
        for model_type in ("default", "vit_l", "vit_b", "vit_t"):
            for file, kind in ((BUNDLED_FILE, MobileSam), (narrow, vendored.modeling.Sam)):
                caplog.clear()
                sam = vendored.sam_model_registry[model_type](checkpoint=str(file))
                assert type(sam) is kind and equal_weights(sam, file)
                as_asked = (model_type, file) in (("vit_t", BUNDLED_FILE), ("vit_b", narrow))
                lines = [it.getMessage() for it in caplog.records if "in place of" in it.message]
                asked = "vit_h" if model_type == "default" else model_type
                expected = f"building what {file} holds in place of {asked}"
                assert lines == ([] if as_asked else [expected])
        assert isinstance(vendored.build_sam(narrow), vendored.modeling.Sam)
        safe = narrow.with_suffix(".safetensors")
        save_checkpoint(read_checkpoint(narrow), safe)
        assert equal_weights(vendored.build_sam(safe), narrow)
        save_checkpoint({"features": torch.zeros(1)}, safe)
        with pytest.raises(UserError, match="holds neither MobileSAM nor SAM"):
            vendored.build_sam(checkpoint=safe)
        assert isinstance(vendored.build_sam_vit_l("bundled"), MobileSam)
    assert vendored.sam_model_registry == before


def test_only_the_types_that_are_named_go_by_the_file(vendored: ModuleType) -> None:
    before = dict(vendored.sam_model_registry)
    with replace("vit_b", into=vendored, by_checkpoint=True):
        assert isinstance(vendored.sam_model_registry["vit_b"](BUNDLED_FILE), MobileSam)
        assert vendored.sam_model_registry["vit_l"] is before["vit_l"]


def test_a_call_without_a_file_builds_what_it_asks_for(vendored: ModuleType, narrow: Path) -> None:
    def build_with_options(options: object) -> object:
        return options

    vendored.sam_model_registry["vit_l"] = build_with_options
    with replace(into=vendored, by_checkpoint=True):
        assert type(vendored.sam_model_registry["vit_b"]()) is vendored.modeling.Sam
        assert type(vendored.sam_model_registry["vit_b"](None)) is vendored.modeling.Sam
        options = object()  # as MedSAM's registry takes them
        assert vendored.sam_model_registry["vit_l"](options) is options


def test_a_student_is_told_by_its_file(vendored: ModuleType, tiny_file: Path) -> None:
    with replace(into=vendored, by_checkpoint=True):
        sam = vendored.sam_model_registry["vit_b"](tiny_file)
    assert isinstance(sam, MobileSam) and sam.backbone == "test_efficientnet"


def test_a_file_of_no_known_model_goes_to_the_builder_asked_for(
    vendored: ModuleType, narrow: Path, tmp_path: Path
) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with replace(into=vendored, by_checkpoint=True):
        with pytest.raises(RuntimeError, match="Missing key"):
            vendored.sam_model_registry["vit_b"](tmp_path / "other.pth")
        with pytest.raises(FileNotFoundError, match="no checkpoint at 'missing.pth'"):
            vendored.sam_model_registry["vit_b"]("missing.pth")


def test_files_of_sam_hq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hq = pytest.importorskip("segment_anything_hq")
    position = {"image_encoder.pos_embed": torch.zeros(1, 2, 2, 768)}
    tiny_vit = {"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(1)}
    addition = {"mask_decoder.hf_token.weight": torch.zeros(1, 256)}
    files = {
        "plain vit_b": position,
        "vit_b": position | addition,
        "vit_tiny": tiny_vit | addition,
    }
    for name, tensors in files.items():
        torch.save(tensors, tmp_path / name)
    for name in ("vit_b", "vit_l", "vit_tiny"):
        monkeypatch.setitem(hq.sam_model_registry, name, lambda checkpoint, it=name: it)
    plain = lambda checkpoint: "plain vit_b"  # noqa: E731
    monkeypatch.setitem(hq.sam_model_registry_baseline, "vit_b", plain)
    with replace(into=hq, by_checkpoint=True):
        for name in files:
            assert hq.sam_model_registry["vit_l"](tmp_path / name) == name
    with replace(by_checkpoint=True):
        for name, told in (("vit_b", "vit_b"), ("vit_tiny", "vit_t")):
            with pytest.raises(ValueError, match=f"is SAM-HQ's {told}.*use segment_anything_hq"):
                segment_anything.build_sam(tmp_path / name)


def test_one_checkpoint_and_each_callers_own_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="checkpoint .* and by_checkpoint .* give one"):
        replace("vit_b", checkpoint="bundled", by_checkpoint=True)
