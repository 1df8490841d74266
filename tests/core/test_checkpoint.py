"""Files of weights: reading, verifying, loading and writing them, without any network."""

import errno
import json
import os
import pickle
import struct
import subprocess
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mobile_sam_plugin import MobileSam, build_sam_vit_t
from mobile_sam_plugin.checkpoint import (
    BUNDLED_FILE,
    fingerprint,
    load_checkpoint,
    locate_checkpoint,
    read_checkpoint,
    save_checkpoint,
)

from ..conftest import REFERENCE

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MANIFEST: dict[str, Any] = json.loads((REFERENCE / "state_dict_manifest.json").read_text())
HEAD = ("image_encoder.norm_head.", "image_encoder.head.")

Writer = Callable[[Any, Path], None]

many_examples = settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ignore_odd_pickles = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Copies and comparisons gain nothing from more, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def few_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Enough for a file's layout; the values include those that a careless copy would change."""
    awkward = torch.tensor([-0.0, 1e-7, 6e4, float("-inf"), 1 / 3])
    weight = torch.arange(12.0).reshape(3, 4).t()
    return {
        "z.weight": weight.to(dtype),
        "a.bias": awkward.to(dtype),
        "a.num_batches_tracked": torch.tensor(2**40 + 1),
    }


def write_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def write_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_safetensors(content: Mapping[str, Tensor], path: Path) -> None:
    contiguous = {key: value.contiguous() for key, value in content.items()}
    safetensors.torch.save_file(contiguous, path)


def assert_identical(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal to the bit, which tells -0.0 from 0.0, and of the same dtypes and shapes."""
    assert sorted(actual) == sorted(expected)
    for key, value in expected.items():
        assert (actual[key].dtype, actual[key].shape) == (value.dtype, value.shape), key
        assert torch.equal(_bytes_of(actual[key]), _bytes_of(value)), key


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_mentions(raised: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    message = str(raised.value)
    assert [part for part in parts if part not in message] == [], message


# Names


def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.pt"
    path.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert locate_checkpoint(path) == path
    assert locate_checkpoint(str(path)) == path
    assert locate_checkpoint("~/mine.pt") == path
    assert locate_checkpoint("bundled") == BUNDLED_FILE

    monkeypatch.setenv("MOBILE_SAM_CHECKPOINT", "~/mine.pt")
    assert locate_checkpoint() == path
    assert locate_checkpoint("bundled") == BUNDLED_FILE
    monkeypatch.setenv("MOBILE_SAM_CHECKPOINT", "bundled")
    assert locate_checkpoint() == BUNDLED_FILE


@pytest.mark.parametrize(
    ("name", "hint"),
    [("no/such.pt", None), ("nothing", None), ("owner/repo", "hf://owner/repo")],
)
def test_no_such_file(name: str, hint: str | None) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        locate_checkpoint(name)
    assert_mentions(raised, str(Path(name)), hint or "no checkpoint")
    assert hint is not None or "hf://" not in str(raised.value)


def test_environment_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILE_SAM_CHECKPOINT", str(tmp_path / "gone.pt"))
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        locate_checkpoint()


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as raised:
        locate_checkpoint(tmp_path)
    assert_mentions(raised, tmp_path.name, "holds no checkpoint")
    for name in ("b.safetensors", "a.pt", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(IsADirectoryError) as raised:
        locate_checkpoint(tmp_path)
    assert_mentions(raised, tmp_path.name, "(a.pt, b.safetensors)")


@pytest.mark.parametrize(
    "name",
    [
        "hf://",
        "hf://owner",
        "hf://owner/",
        "hf:///repo",
        "hf:owner/repo",
        "hf:/owner/repo",
        "hf://owner/repo/",
        "hf://owner/repo@",
        "hf://owner/repo/@main",
        "hf://owner@main/repo",
    ],
)
def test_malformed_names_on_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match="names nothing on the Hub") as raised:
        locate_checkpoint(name)
    assert_mentions(raised, repr(name), "hf://owner/repo/file@revision")


# Reading


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("write", [write_zip, write_legacy, write_safetensors])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_every_kind_of_file(tmp_path: Path, suffix: str, write: Writer, dtype: torch.dtype) -> None:
    path = tmp_path / f"file{suffix}"  # the content tells the kind, whatever the suffix says
    write(few_tensors(dtype), path)
    assert_identical(read_checkpoint(path), few_tensors(dtype))


@pytest.mark.parametrize("length", [0x0180, 0x0480, 0x3C20, 0x4B50, 0x0A38, 0x093C])
def test_safetensors_header_of_any_length(tmp_path: Path, length: int) -> None:
    # The file starts with this length, whose bytes may look like those that start another kind.
    tensors = few_tensors()
    tensors["z.weight"] = tensors["z.weight"].contiguous()
    header, data = _split(safetensors.torch.save(tensors))
    path = tmp_path / "model"
    path.write_bytes(struct.pack("<Q", length) + header.rstrip().ljust(length) + data)
    assert_identical(safetensors.torch.load_file(path), tensors)
    assert_identical(read_checkpoint(path), tensors)


def _split(file: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack("<Q", file[:8])
    return file[8 : 8 + length], file[8 + length :]


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: OrderedDict(tensors),
        lambda tensors: {"model": tensors, "epoch": 3, "optimizer": {"state": {0: [1.5]}}},
        lambda tensors: {"state_dict": tensors},
        lambda tensors: {"model": {"state_dict": tensors}},
        lambda tensors: {"module." + key: value for key, value in tensors.items()},
        lambda tensors: {"model": {"module." + key: value for key, value in tensors.items()}},
        lambda tensors: {
            key: torch.nn.Parameter(value, requires_grad=value.is_floating_point())
            for key, value in tensors.items()
        },
    ],
    ids=["ordered", "model", "state_dict", "both", "module.", "model and module.", "parameters"],
)
def test_wrappers_are_taken_off(tmp_path: Path, wrap: Writer, write: Writer) -> None:
    path = tmp_path / "wrapped.pt"
    write(wrap(few_tensors()), path)  # type: ignore[call-arg, func-returns-value]
    tensors = read_checkpoint(path)
    assert list(tensors) == list(few_tensors()), "in the file's order"
    assert_identical(tensors, few_tensors())


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_safetensors])
def test_shapes_without_values(tmp_path: Path, write: Writer) -> None:
    write(few_tensors(), tmp_path / "file")
    found = read_checkpoint(tmp_path / "file", "meta")
    for key, value in few_tensors().items():
        assert found[key].is_meta
        assert (found[key].shape, found[key].dtype) == (value.shape, value.dtype)


def test_module_prefix_of_some_keys_only_is_kept(tmp_path: Path) -> None:
    tensors = {"module.weight": torch.ones(2), "bias": torch.ones(2)}
    write_zip(tensors, tmp_path / "mixed.pt")
    assert_identical(read_checkpoint(tmp_path / "mixed.pt"), tensors)


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        (b"", ["empty", "0 bytes", "download it again"]),
        (b"<!DOCTYPE html><html></html>", ["web page", "download the file itself"]),
        (b"\r\n  <html lang='en'>", ["web page"]),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', ["web page"]),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64,
            ["Git LFS pointer", "git lfs pull"],
        ),
        (b"Entry not found", ["neither a PyTorch nor a safetensors file", "Entry not found"]),
        (b'{"error": "not found"}', ["neither"]),
        (b"\0" * 1000, ["neither"]),
    ],
    ids=["empty", "html", "html after blanks", "xml", "lfs", "text", "json", "zeros"],
)
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes, mentions: list[str]) -> None:
    path = tmp_path / "mobile_sam.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        read_checkpoint(path)
    assert_mentions(raised, repr(str(path)), *mentions)


class Intruder:
    """Leaves a mark where unpickling it runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def write_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_pickle])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {**few_tensors(), "x": value}])
def test_code_in_a_pickle_does_not_run(
    tmp_path: Path, wrap: Callable[[Any], Any], write: Writer
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "hostile.pt"
    write(wrap(Intruder(mark)), path)
    with pytest.raises(ValueError, match=r"hostile\.pt"):
        read_checkpoint(path)
    assert not mark.exists()
    with open(path, "rb") as file:  # the file is one that would have, with torch.load's old default
        if write is write_pickle:
            pickle.load(file)
        else:
            torch.load(file, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"model": few_tensors(), "args": Namespace(lr=0.1)}, "argparse.Namespace"),
    ],
    ids=["whole model", "arguments beside the weights"],
)
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_objects_in_a_pickle(tmp_path: Path, content: Any, named: str, write: Writer) -> None:
    path = tmp_path / "whole.pt"
    write(content, path)
    with pytest.raises(ValueError, match="code or objects") as raised:
        read_checkpoint(path)
    assert_mentions(raised, repr(str(path)), named, "state_dict()", ".safetensors")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {}},
        [torch.ones(2)],
        torch.ones(2),
        "text",
        None,
        {"weight": 1.5},
        {"model": {"weight": torch.ones(2), "epoch": 3}},
        {1: torch.ones(2)},
    ],
    ids=repr,
)
def test_other_contents_than_tensors_by_name(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pt"
    write_zip(content, path)
    with pytest.raises(ValueError, match="expected") as raised:
        read_checkpoint(path)
    assert_mentions(raised, repr(str(path)))


@pytest.mark.parametrize("fraction", [1e-5, 0.001, 0.5, 0.999999])
@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
def test_download_that_ended_early(
    tmp_path: Path, authors_file: Path, kind: str, fraction: float
) -> None:
    whole = authors_file if kind == ".pt" else BUNDLED_FILE
    length = int(whole.stat().st_size * fraction)
    path = tmp_path / f"part{kind}"
    with open(whole, "rb") as file:
        path.write_bytes(file.read(length))
    with pytest.raises(ValueError, match="damaged or truncated") as raised:
        read_checkpoint(path)
    assert_mentions(raised, repr(str(path)), f"{length:,} bytes", "download it again")


TOO_LITTLE_MEMORY = """
import resource, sys
from mobile_sam_plugin.checkpoint import read_checkpoint

in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 50_000_000,) * 2)
try:
    read_checkpoint(sys.argv[1])
except MemoryError as error:
    print(error)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux's means")
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_too_little_memory_is_no_damage(tmp_path: Path, write: Writer) -> None:
    path = tmp_path / "large.pt"
    write({"weight": torch.zeros(25_000_000)}, path)
    command = (sys.executable, "-c", TOO_LITTLE_MEMORY, str(path))
    done = subprocess.run(command, capture_output=True, text=True)
    assert "large.pt' (100,0" in done.stdout and "needs more memory" in done.stdout, done.stderr


def test_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.load lets an error of the file through; no disk of a test fails when asked to."""

    def fail(file: Any, **options: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_zip(few_tensors(), tmp_path / "weights.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError) as raised:
        read_checkpoint(tmp_path / "weights.pt")
    assert raised.value.errno == errno.EIO


def tensors_or_value_error(path: Path, content: bytes) -> dict[str, Tensor] | None:
    path.write_bytes(content)
    try:
        return read_checkpoint(path)
    except ValueError:
        return None


@ignore_odd_pickles
@many_examples
@given(data=st.data())
@pytest.mark.parametrize("write", [write_zip, write_legacy, write_safetensors])
def test_any_truncation_is_a_value_error(
    tmp_path: Path, write: Writer, data: st.DataObject
) -> None:
    path = tmp_path / "file"
    write(few_tensors(), path)
    whole = path.read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))
    assert tensors_or_value_error(path, whole[:length]) is None


@ignore_odd_pickles
@many_examples
@given(
    start=st.sampled_from(
        [b"", b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04", b"\x40\0\0\0\0\0\0\0{", b"PK", b"\x80"]
    ),
    garbage=st.binary(max_size=200),
)
@example(b"\x80\x02", b"0.")
@example(b"\x80\x02", b"}.")
@example(b"\x80\x02", b"Vx\nK\x01\x86R.")
@example(b"\x80\x02", b"]K\x01K\x02s.")
def test_any_garbage_is_a_value_error(tmp_path: Path, start: bytes, garbage: bytes) -> None:
    assert tensors_or_value_error(tmp_path / "garbage", start + garbage) is None


@ignore_odd_pickles
@many_examples
@given(data=st.data())
@pytest.mark.parametrize("write", [write_zip, write_legacy, write_safetensors])
def test_any_changed_bytes_are_a_value_error_or_harmless(
    tmp_path: Path, write: Writer, data: st.DataObject
) -> None:
    path = tmp_path / "file"
    write(few_tensors(), path)
    content = bytearray(path.read_bytes())
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.dictionaries(places, st.integers(0, 255), min_size=1)).items():
        content[place] = value
    tensors = tensors_or_value_error(path, bytes(content))
    if tensors is not None:
        assert all(isinstance(value, Tensor) for value in tensors.values())


# Loading into the model


def test_state_dict_is_the_authors_without_the_head(bundled_sam: MobileSam) -> None:
    expected = [
        (key, tuple(entry["shape"]), f"torch.{entry['dtype']}")
        for key, entry in MANIFEST.items()
        if not key.startswith(HEAD)
    ]
    state = bundled_sam.state_dict()
    assert len(expected) == 435
    assert [(key, tuple(value.shape), str(value.dtype)) for key, value in state.items()] == expected


def test_authors_file_loads_strictly(own_sam: MobileSam, authors_file: Path) -> None:
    loaded = torch.load(authors_file, weights_only=True)
    assert len(loaded) == 439
    own_sam.load_state_dict(loaded, strict=True)
    assert_identical(own_sam.state_dict(), without_head(loaded))


def without_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.startswith(HEAD)}


@pytest.fixture(scope="module")
def authors_weights(authors_file: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(authors_file, weights_only=True)
    return weights


@pytest.mark.parametrize(
    ("dtype", "head"),
    [(torch.float16, True), (torch.bfloat16, False), (torch.float64, True)],
    ids=str,
)
def test_any_float_dtype_is_loaded_as_float32(
    tmp_path: Path,
    own_sam: MobileSam,
    authors_weights: dict[str, Tensor],
    dtype: torch.dtype,
    head: bool,
) -> None:
    tensors = authors_weights if head else without_head(authors_weights)
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    write_zip({"model": {f"module.{k}": v for k, v in stored.items()}}, tmp_path / "weights.pt")
    load_checkpoint(own_sam, tmp_path / "weights.pt")
    expected = {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}
    assert_identical(own_sam.state_dict(), without_head(expected))


def test_untrained_model_needs_no_file() -> None:
    sam = build_sam_vit_t(None)
    assert not sam.training
    assert {p.dtype for p in sam.parameters()} == {torch.float32}


BIAS = "image_encoder.neck.1.bias"
TOKENS = "mask_decoder.mask_tokens.weight"
COUNTER = "image_encoder.patch_embed.seq.0.bn.num_batches_tracked"


def blank_weights() -> dict[str, Tensor]:
    """Zeros in the authors' layout, of which a file keeps only one per tensor."""
    return {
        key: torch.zeros((), dtype=getattr(torch, entry["dtype"])).expand(entry["shape"])
        for key, entry in MANIFEST.items()
    }


def position_embedding(*shape: int) -> dict[str, Tensor]:
    return {"image_encoder.pos_embed": torch.zeros(shape)}


def test_blank_weights_are_right_but_for_what_a_test_changes(
    tmp_path: Path, own_sam: MobileSam
) -> None:
    write_zip(blank_weights(), tmp_path / "blank.pt")
    load_checkpoint(own_sam, tmp_path / "blank.pt")
    assert_identical(own_sam.state_dict(), without_head(blank_weights()))


@pytest.mark.parametrize(
    ("remove", "add", "mentions"),
    [
        (
            "all",
            position_embedding(1, 64, 64, 1280),
            ["SAM's vit_h", "sam_model_registry['vit_h']"],
        ),
        (
            "all",
            position_embedding(1, 64, 64, 1024),
            ["SAM's vit_l", "sam_model_registry['vit_l']"],
        ),
        ("all", position_embedding(1, 64, 64, 768), ["SAM's vit_b", "sam_model_registry['vit_b']"]),
        (
            "all",
            position_embedding(1, 64, 64, 192),
            ["a ViT of unknown width", "MobileSAM's vit_t"],
        ),
        ("all", position_embedding(), ["MobileSAM's vit_t"]),
        ("all", {"weight": torch.ones(2)}, ["435 missing", "1 unexpected (weight)", "it has 0"]),
        (BIAS, {}, ["has 434", f"1 missing ({BIAS})"]),
        ("mask_decoder.iou_", {}, ["7 missing", "mask_decoder.iou_token.weight, ", ", ..."]),
        ("", {"extra": torch.ones(2)}, ["435 tensors it has 435", "1 unexpected (extra)"]),
        ("", {BIAS: torch.ones(255)}, [f"1 misshapen ({BIAS} is (255,) float32, expected (256,)"]),
        ("", {BIAS: torch.ones(256, 1)}, ["1 misshapen", "(256, 1)"]),
        ("", {BIAS: torch.ones(256).int()}, ["1 misshapen", "(256,) int32", "(256,) float32"]),
        ("", {COUNTER: torch.tensor(1.0)}, ["1 misshapen", "() float32", "() int64"]),
        ("", {BIAS: torch.ones(256).to_sparse()}, [BIAS]),
        (
            BIAS,
            {TOKENS: torch.ones(1), "extra": torch.ones(1)},
            ["1 missing", "1 unexpected", "1 misshapen"],
        ),
        ("", {BIAS: torch.full((256,), float("nan"))}, [BIAS, "NaN or infinity"]),
        ("", {BIAS: torch.full((256,), float("nan")).half()}, [BIAS, "NaN or infinity"]),
        ("", {BIAS: torch.full((256,), float("inf"))}, [BIAS, "NaN or infinity"]),
        ("", {BIAS: torch.full((256,), float("-inf")).half()}, [BIAS, "NaN or infinity"]),
        ("", {BIAS: torch.ones(256).double() * 1e300}, [BIAS, "infinity"]),
    ],
    ids=[
        "vit_h",
        "vit_l",
        "vit_b",
        "another ViT",
        "no ViT",
        "another model",
        "one missing",
        "several missing",
        "unexpected",
        "too short",
        "another rank",
        "integers for floats",
        "float for an integer",
        "sparse",
        "three at once",
        "NaN",
        "NaN in float16",
        "infinity",
        "infinity in float16",
        "too large for float32",
    ],
)
@pytest.mark.filterwarnings("ignore:.*sparse")
def test_wrong_weights_leave_the_model_alone(
    tmp_path: Path, own_sam: MobileSam, remove: str, add: dict[str, Tensor], mentions: list[str]
) -> None:
    before = {key: value.clone() for key, value in own_sam.state_dict().items()}
    kept = {
        key: value
        for key, value in blank_weights().items()
        if remove == "" or (remove != "all" and not key.startswith(remove))
    }
    path = tmp_path / "wrong.pt"
    write_zip(kept | add, path)
    with pytest.raises(ValueError) as raised:
        load_checkpoint(own_sam, path)
    assert_mentions(raised, repr(str(path)), *mentions)
    assert_identical(own_sam.state_dict(), before)


# Writing


@pytest.mark.parametrize("second", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("first", [".pt", ".safetensors"])
def test_conversion_there_and_back_is_exact(tmp_path: Path, first: str, second: str) -> None:
    there, back = tmp_path / f"there{first}", tmp_path / "new" / "folder" / f"back{second}"
    save_checkpoint(few_tensors(), there)
    save_checkpoint(read_checkpoint(there), back)
    assert_identical(read_checkpoint(back), few_tensors())
    assert [path.name for path in back.parent.iterdir()] == [back.name]


def test_formats_are_those_of_the_suffix(tmp_path: Path) -> None:
    save_checkpoint(few_tensors(), tmp_path / "a.safetensors")
    save_checkpoint(few_tensors(), tmp_path / "a.pt")
    assert_identical(torch.load(tmp_path / "a.pt", weights_only=True), few_tensors())
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # which transformers asks for
        assert sorted(file.keys()) == sorted(few_tensors())


def test_float16_rounds_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {"w": torch.randn(50, 20), "tiny": torch.tensor([1e-7, -0.0]), "n": torch.tensor(3)}
    save_checkpoint(weights, tmp_path / "half.safetensors", dtype=torch.float16)
    half = read_checkpoint(tmp_path / "half.safetensors")
    assert [half[key].dtype for key in weights] == [torch.float16, torch.float16, torch.int64]
    save_checkpoint(half, tmp_path / "single.pt", dtype=torch.float32)
    expected = {k: v.half().float() if v.is_floating_point() else v for k, v in weights.items()}
    assert_identical(read_checkpoint(tmp_path / "single.pt"), expected)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_value_too_large_for_the_dtype(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"kept{suffix}"
    save_checkpoint({"weight": torch.ones(1)}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError) as raised:
        save_checkpoint({"weight": torch.tensor([65520.0])}, path, dtype=torch.float16)
    assert_mentions(raised, "weight", "float16", "float32")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"kept{suffix}"
    save_checkpoint({"weight": torch.ones(1)}, path)
    before = path.read_bytes()

    def full(source: Path, target: Path) -> None:
        assert source.stat().st_size > 0, "it was written, but not to its place"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        save_checkpoint({"weight": torch.zeros(100)}, path)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_saved_file_has_the_permissions_of_any_file(tmp_path: Path, suffix: str) -> None:
    path, other = tmp_path / f"weights{suffix}", tmp_path / "other"
    save_checkpoint({"weight": torch.ones(1)}, path)
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("name", ["weights", "weights.ckpt", "weights.txt"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError) as raised:
        save_checkpoint(few_tensors(), tmp_path / name)
    assert_mentions(raised, name, ".safetensors", ".pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_for_upstream_adds_the_head(tmp_path: Path, bundled_sam: MobileSam, suffix: str) -> None:
    path = tmp_path / f"mobile_sam{suffix}"
    save_checkpoint(bundled_sam.state_dict(), path, for_upstream=True)
    written = read_checkpoint(path)
    assert {key: list(value.shape) for key, value in written.items()} == {
        key: entry["shape"] for key, entry in MANIFEST.items()
    }
    assert {str(value.dtype) for value in written.values()} == {"torch.float32", "torch.int64"}
    assert_identical(without_head(written), bundled_sam.state_dict())


def test_for_upstream_keeps_a_head(tmp_path: Path, authors_weights: dict[str, Tensor]) -> None:
    save_checkpoint(authors_weights, tmp_path / "mobile_sam.pt", for_upstream=True)
    assert_identical(read_checkpoint(tmp_path / "mobile_sam.pt"), authors_weights)


def test_fingerprints_go_by_contents() -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1)}
    known = fingerprint(tensors)
    assert known == fingerprint({key: tensors[key].clone() for key in ("a", "b")})
    assert known == fingerprint({**tensors, "b": tensors["b"].T.contiguous().T})
    others = [
        {**tensors, "b": tensors["b"] + 1e-6 * torch.eye(2, 3)},
        {**tensors, "b": tensors["b"].half()},
        {**tensors, "b": tensors["b"].reshape(3, 2)},
        {"b": tensors["b"], "c": tensors["a"]},
        {"b": tensors["b"]},
    ]
    assert len({known, *map(fingerprint, others)}) == 6


def test_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(2, dtype=torch.float16)}
    metadata = {name: f"{name} é" for name in "qwertyuiop"}
    written = set()
    for number in range(5):
        path = tmp_path / f"{number}.safetensors"
        save_checkpoint(tensors, path, metadata=metadata)
        written.add(path.read_bytes())
    assert len(written) == 1
    for key, value in read_checkpoint(path).items():
        torch.testing.assert_close(value, tensors[key], rtol=0, atol=0)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {**metadata, "format": "pt"}
    for number in range(2):
        save_checkpoint(tensors, tmp_path / f"{number}.pt")
    assert (tmp_path / "0.pt").read_bytes() == (tmp_path / "1.pt").read_bytes()
