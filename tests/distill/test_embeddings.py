"""A teacher's embeddings on disk: computed whole whatever happens, and read back as they were."""

import errno
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.utils.transforms import ResizeLongestSide
from torch.utils.data import DataLoader

from mobile_sam_plugin import SamPredictor
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.distill.embed import embed
from mobile_sam_plugin.distill.embeddings import Embeddings
from mobile_sam_plugin.inputs import preprocess

from .processes import StartProcess, launched, needs_fork, wait

SIZE = 64

Captured = pytest.CaptureFixture[str]


def make_teacher(seed: int = 0, size: int = SIZE) -> Sam:
    """Upstream's SAM in all its parts, shrunk, with random weights."""
    torch.manual_seed(seed)
    grid = (size // 16, size // 16)
    return Sam(
        ImageEncoderViT(
            img_size=SIZE, embed_dim=16, depth=1, num_heads=2, out_chans=32, use_rel_pos=True
        ),
        PromptEncoder(32, grid, (size, size), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=16),
        ),
    ).eval()


@pytest.fixture(scope="module")
def teacher() -> Sam:
    return make_teacher()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of several sizes and kinds, in a folder and one within it."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))

    noise(40, 60, 3).save(folder / "a.png")
    noise(100, 30, 3).save(folder / "b.jpg")
    noise(64, 64).save(folder / "gray.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    noise(33, 77, 3).save(folder / "more" / "turned.jpg", exif=exif)
    noise(20, 30, 4).save(folder / "with alpha.png")
    return folder


@pytest.fixture(scope="module")
def store(teacher: Sam, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their embeddings, computed in one go; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("store")
    embed(teacher, images, folder, teacher_name="tiny", shard_size=2)
    return folder


@pytest.fixture
def own_store(store: Path, tmp_path: Path) -> Path:
    """A copy of ``store`` that the test may change."""
    folder = tmp_path / "store"
    folder.mkdir()
    for path in store.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is stored


def test_embeddings_are_those_of_the_predictor(teacher: Sam, images: Path, store: Path) -> None:
    embeddings = Embeddings(store)
    assert embeddings.names == ["a.png", "b.jpg", "gray.png", "more/turned.jpg", "with alpha.png"]
    assert embeddings.sizes == [(40, 60), (100, 30), (64, 64), (77, 33), (20, 30)]
    assert (embeddings.teacher, embeddings.img_size, embeddings.skipped) == ("tiny", SIZE, {})
    assert embeddings.shape == (32, 4, 4) and len(embeddings) == 5
    predictor = SamPredictor(teacher)
    for path, size, embedding in (embeddings[index] for index in range(5)):
        with Image.open(path) as image:
            predictor.set_image(image)
        assert predictor.original_size == size
        assert embedding.dtype == torch.float16 and embedding.shape == (32, 4, 4)
        torch.testing.assert_close(embedding, predictor.features[0].half(), rtol=0, atol=0)
    with pytest.raises(IndexError):
        embeddings[5]


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (64, 64), (1, 50), (300, 200)])
def test_preprocessing_is_the_predictors(teacher: Sam, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    resized = torch.as_tensor(ResizeLongestSide(SIZE).apply_image(image)).permute(2, 0, 1)
    found = torch.from_numpy(preprocess(image, SIZE)[0])
    assert found.dtype == torch.float32 and found.shape == (3, SIZE, SIZE)
    torch.testing.assert_close(found, teacher.preprocess(resized), rtol=0, atol=0)


def test_files_tell_what_they_hold(store: Path) -> None:
    assert sorted(path.name for path in store.iterdir()) == [
        "000000.json",
        "000000.safetensors",
        "000001.json",
        "000001.safetensors",
        "000002.json",
        "000002.safetensors",
        "store.json",
    ]
    assert list(safetensors.torch.load_file(store / "000001.safetensors")) == [
        "gray.png",
        "more/turned.jpg",
    ]


def test_batches_and_lists_of_images(
    teacher: Sam, images: Path, store: Path, tmp_path: Path
) -> None:
    paths = [images / "b.jpg", images / "a.png", images / "gray.png"]
    embed(teacher, paths, tmp_path / "new" / "store", batch_size=2)
    embeddings, expected = Embeddings(tmp_path / "new" / "store"), Embeddings(store)
    assert embeddings.names == ["b.jpg", "a.png", "gray.png"]
    for index, twin in enumerate((1, 0, 2)):
        assert embeddings[index].path == expected[twin].path
        difference = embeddings[index].embedding.float() - expected[twin].embedding.float()
        assert difference.abs().max() < 0.01


def test_teacher_in_half_precision(images: Path, store: Path, tmp_path: Path) -> None:
    embed(make_teacher().to(torch.bfloat16), images, tmp_path / "store")
    embeddings, expected = Embeddings(tmp_path / "store"), Embeddings(store)
    for index in range(len(embeddings)):
        assert embeddings[index].embedding.dtype == torch.float16
        difference = embeddings[index].embedding.float() - expected[index].embedding.float()
        assert 0 < difference.abs().max() < 0.2


def test_works_in_the_workers_of_a_loader(store: Path) -> None:
    embeddings = pickle.loads(pickle.dumps(Embeddings(store)))
    loader = DataLoader(embeddings, batch_size=3, num_workers=1, collate_fn=list)
    loaded = [item for batch in loader for item in batch]
    assert [item.path for item in loaded] == [embeddings[index].path for index in range(5)]
    for index, item in enumerate(loaded):
        assert torch.equal(item.embedding, embeddings[index].embedding)


def test_images_that_have_moved(
    teacher: Sam, images: Path, store: Path, own_store: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    (moved / "more").mkdir(parents=True)
    for name in Embeddings(store).names:
        (moved / name).write_bytes((images / name).read_bytes())
    assert Embeddings(own_store, images=moved)[3].path == moved / "more" / "turned.jpg"
    (own_store / "000002.json").unlink()
    embed(teacher, moved, own_store, teacher_name="tiny", shard_size=2)
    assert Embeddings(own_store)[0].path == moved / "a.png"
    for name in ("000000.json", "000002.json", "000002.safetensors"):
        assert (own_store / name).read_bytes() == (store / name).read_bytes()


# Whatever happens


def run_embed(
    images: Path,
    folder: Path,
    environment: dict[str, str] | None = None,
    kill_at: int = 0,
    file_limit: int = 0,
) -> None:
    """Embeds in a process of its own, which kills itself when it writes for the nth time."""
    torch.set_num_threads(1)
    os.environ.update(environment or {})
    writes = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal writes
        opened = event == "open" and "w" in str(arguments[1])
        if (opened or event == "os.rename") and str(folder) in str(arguments[0]):
            writes += 1
            if writes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        sys.addaudithook(count)
    if file_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        embed(make_teacher(), images, folder, teacher_name="tiny", shard_size=2)
    except OSError as error:
        sys.exit(error.errno)


@pytest.mark.process
@needs_fork
def test_killed_at_every_write_and_resumed(
    start_process: StartProcess, images: Path, store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    for kill_at in range(1, 20):
        (code,) = wait(start_process(run_embed, images, folder, kill_at=kill_at))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        with pytest.raises((FileNotFoundError, ValueError), match="no teacher emb|are missing"):
            Embeddings(folder)
        for entry in folder.glob("0*.json"):
            for path in (entry, entry.with_suffix(".safetensors")):
                assert path.read_bytes() == (store / path.name).read_bytes()
    assert kill_at > 8, "it was killed at the writing of each kind of file"
    assert read_files(folder) == read_files(store)


@pytest.mark.process
@needs_fork
def test_disk_that_fills_up_and_is_freed(
    start_process: StartProcess, images: Path, store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shard_bytes = (store / "000000.safetensors").stat().st_size
    assert wait(start_process(run_embed, images, folder, file_limit=shard_bytes // 2)) == [
        errno.EFBIG
    ]
    assert [path.name for path in folder.iterdir()] == ["store.json"]
    assert wait(start_process(run_embed, images, folder)) == [0]
    assert read_files(folder) == read_files(store)


@pytest.mark.process
@needs_fork
def test_processes_divide_the_shards(
    start_process: StartProcess, images: Path, store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    first = launched(0, 2)
    second = first | {"RANK": "1", "LOCAL_RANK": "1"}
    codes = wait(
        start_process(run_embed, images, folder, first),
        start_process(run_embed, images, folder, second, kill_at=2),
    )
    assert codes == [0, -signal.SIGKILL]
    whole = {"000000.json", "000000.safetensors", "000002.json", "000002.safetensors", "store.json"}
    assert {name for name in read_files(folder) if not name.startswith(".")} == whole
    with pytest.raises(ValueError, match="1 of 3 shards .* missing"):
        Embeddings(folder)
    written = (folder / "000000.safetensors").stat().st_mtime_ns
    assert wait(start_process(run_embed, images, folder)) == [0]
    assert read_files(folder) == read_files(store)
    assert (folder / "000000.safetensors").stat().st_mtime_ns == written


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
@pytest.mark.parametrize("name", ["000001.safetensors", "000001.json"])
def test_damaged_shards_are_computed_anew(
    teacher: Sam,
    images: Path,
    store: Path,
    own_store: Path,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    opened = Embeddings(own_store)
    damage(own_store / name)
    with pytest.raises(ValueError, match="1 of 3 shards .* missing or damaged, .* 000001"):
        Embeddings(own_store)
    if name.endswith(".safetensors"):
        with pytest.raises(ValueError, match="000001.safetensors"):
            opened[2]
    written = (own_store / "000000.safetensors").stat().st_mtime_ns
    embed(teacher, images, own_store, teacher_name="tiny", shard_size=2)
    assert read_files(own_store) == read_files(store)
    assert (own_store / "000000.safetensors").stat().st_mtime_ns == written


def test_checksums_find_a_changed_bit(own_store: Path) -> None:
    Embeddings(own_store).verify()
    flip_a_bit(own_store / "000001.safetensors")
    embeddings = Embeddings(own_store)
    with pytest.raises(ValueError, match=r"1 shards .* damaged \(000001.safetensors\): delete"):
        embeddings.verify()


# What is refused


def test_other_embeddings_in_the_folder(
    teacher: Sam, images: Path, store: Path, own_store: Path
) -> None:
    with pytest.raises(ValueError, match="another run .*teacher_sha256 has changed"):
        embed(make_teacher(seed=1), images, own_store, shard_size=2)
    with pytest.raises(ValueError, match="images_sha256 has changed"):
        embed(teacher, [images / "a.png", images / "b.jpg"], own_store, shard_size=2)
    with pytest.raises(ValueError, match="shard_size was 2, is now 64"):
        embed(teacher, images, own_store)
    assert read_files(own_store) == read_files(store)


def test_shards_of_another_store(
    teacher: Sam, images: Path, own_store: Path, tmp_path: Path
) -> None:
    embed(make_teacher(seed=1), images, tmp_path / "other", shard_size=2)
    for name in ("000001.json", "000001.safetensors"):
        (own_store / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match="000001.safetensors' is a shard of other embeddings"):
        Embeddings(own_store)


def test_too_little_space(images: Path, tmp_path: Path, capsys: Captured) -> None:
    teacher = make_teacher(size=2**26)  # of pictures with a side of 67 million pixels
    with pytest.raises(OSError, match="5 images need .* GB free") as raised:
        embed(teacher, images, tmp_path / "store")
    assert raised.value.errno == errno.ENOSPC
    assert "5 of 5 images to embed, 5,629,4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_space_is_told_first(teacher: Sam, images: Path, tmp_path: Path, capsys: Captured) -> None:
    embed(teacher, images, tmp_path / "store")
    assert "5 of 5 images to embed, 0.00 GB in" in capsys.readouterr().err
    embed(teacher, images, tmp_path / "store")
    assert "0 of 5 images to embed" in capsys.readouterr().err


def test_values_beyond_float16(images: Path, tmp_path: Path) -> None:
    teacher = make_teacher()
    torch.nn.init.constant_(teacher.image_encoder.neck[3].weight, 1e5)
    with pytest.raises(ValueError, match="5 of 5 images are left out.* reaches .*65504"):
        embed(teacher, images, tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["store.json"]


def test_nothing_to_embed(teacher: Sam, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image"):
        embed(teacher, tmp_path, tmp_path / "store")
    with pytest.raises(ValueError, match="no image"):
        embed(teacher, [], tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="no teacher embeddings"):
        Embeddings(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_image_twice(teacher: Sam, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a.png' is in the list twice"):
        embed(teacher, [images / "a.png", images / "a.png"], tmp_path / "store")


def test_other_normalisation_than_sams(images: Path, tmp_path: Path) -> None:
    teacher = make_teacher()
    teacher.pixel_mean.zero_()
    with pytest.raises(ValueError, match="normalises pixels"):
        embed(teacher, images, tmp_path / "store")


def test_accelerate_is_not_installed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    arguments = [str(images), "--out", str(tmp_path / "store"), "--teacher", "bundled"]
    assert main(["distill", "embed", *arguments, "--teacher-type", "vit_t"]) == 1
    message = capsys.readouterr().err
    assert 'pip install "mobile-sam-plugin[distill]"' in message and message.count("\n") == 1


# Broken images


@pytest.fixture
def some_broken(images: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "some broken"
    folder.mkdir()
    (folder / "a.png").write_bytes((images / "a.png").read_bytes())
    (folder / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:300])
    (folder / "c.png").write_text("no image")
    Image.new("L", (4000, 1)).save(folder / "d.png")  # nothing is left of it at 64 pixels
    (folder / "e.png").write_bytes((images / "gray.png").read_bytes())
    return folder


def test_broken_images_are_left_out_and_counted(
    teacher: Sam, store: Path, some_broken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    for _ in range(2):  # computed, then found as they are
        with pytest.warns(UserWarning, match="3 of 5 images .* such as 'b.jpg'"):
            embed(teacher, some_broken, folder, shard_size=2)
        embeddings = Embeddings(folder)
        assert embeddings.names == ["a.png", "e.png"]
        assert list(embeddings.skipped) == ["b.jpg", "c.png", "d.png"]
        assert "b.jpg" in embeddings.skipped["b.jpg"] and "thin" in embeddings.skipped["d.png"]
        assert torch.equal(embeddings[1].embedding, Embeddings(store)[2].embedding)
        embeddings.verify()


def test_strict_stops_at_a_broken_image(teacher: Sam, some_broken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with pytest.raises(ValueError, match=r"b\.jpg"):
        embed(teacher, some_broken, folder, shard_size=2, strict=True)
    with pytest.warns(UserWarning, match="3 of 5 images"):
        embed(teacher, some_broken, folder, shard_size=2)
    for name in ("b.jpg", "c.png", "d.png"):
        with pytest.raises(ValueError, match=name[0]):
            embed(teacher, some_broken, folder, shard_size=2, strict=True)
        (some_broken / name).write_bytes((some_broken / "a.png").read_bytes())
    embed(teacher, some_broken, folder, shard_size=2, strict=True)
    embeddings = Embeddings(folder)
    assert embeddings.names == ["a.png", "b.jpg", "c.png", "d.png", "e.png"]
    assert torch.equal(embeddings[3].embedding, embeddings[0].embedding)


# The command


def test_command_embeds_and_verifies(images: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes((images / "a.png").read_bytes())
    out = str(tmp_path / "store")
    teacher = ["--teacher", "bundled", "--teacher-type", "vit_t"]
    assert main(["distill", "embed", str(folder), "--out", out, *teacher]) == 0
    assert "1 of 1 images to embed, 0.00 GB" in capsys.readouterr().err
    assert main(["distill", "embed", "--out", out, "--verify"]) == 0
    assert "1 embeddings, 0 images left out, all files whole" in capsys.readouterr().out
    embeddings = Embeddings(out)
    assert embeddings.shape == (256, 64, 64) and embeddings.teacher == "vit_t bundled"
    assert (tmp_path / "store" / "000000.safetensors").stat().st_size < 2**21 + 1024
    flip_a_bit(tmp_path / "store" / "000000.safetensors")
    assert main(["distill", "embed", "--out", out, "--verify"]) == 2
    assert "000000.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--teacher", "bundled"], "IMAGES"),
        (["{images}"], "--teacher"),
        (["{images}", "--teacher", "{images}/a.png", "--teacher-type", "vit_b"], "a.png"),
        (["{images}", "--teacher", "bundled", "--teacher-type", "vit_b"], "not a vit_b"),
        (["{images}", "--teacher", "bundled", "--teacher-type", "vit_x"], "vit_x"),
        (["{images}/missing", "--teacher", "bundled"], "missing"),
        (["--verify"], "no teacher embeddings"),
    ],
    ids=str,
)
def test_command_names_mistakes(
    images: Path, tmp_path: Path, capsys: Captured, arguments: list[str], words: str
) -> None:
    given = [argument.format(images=images) for argument in arguments]
    assert main(["distill", "embed", "--out", str(tmp_path / "store"), *given]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1, message
    assert list(tmp_path.iterdir()) == []
