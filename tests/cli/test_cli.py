"""The command ``mobile-sam``: its commands, and how it ends. ``run`` has tests of its own."""

import inspect
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
import pytest
import segment_anything
import torch
from PIL import Image
from typer.main import get_command

import mobile_sam_plugin
from mobile_sam_plugin import SamAutomaticMaskGenerator, SamPredictor, build_sam_vit_t
from mobile_sam_plugin.checkpoint import BUNDLED_FILE, read_checkpoint
from mobile_sam_plugin.cli import app, main
from mobile_sam_plugin.errors import MissingExtra, UserError
from mobile_sam_plugin.results import claim_folder, name_folders

ROOT = Path(__file__).parents[2]
COMMANDS = ("segment", "everything", "run", "info", "convert", "download")
FIELDS = {
    "segmentation",
    "area",
    "bbox",
    "predicted_iou",
    "point_coords",
    "stability_score",
    "crop_box",
}
QUICK = ("--points-per-side", "2")
PERMISSIVE = ("--pred-iou-thresh", "0", "--stability-score-thresh", "0")

Captured = pytest.CaptureFixture[str]


def scene() -> Image.Image:
    """Two discs on a ramp, 160 x 120."""
    pixels = np.empty((120, 160, 3), dtype=np.uint8)
    pixels[:] = np.linspace(60, 140, 160)[None, :, None]
    cv2.circle(pixels, (50, 60), 30, (220, 40, 40), cv2.FILLED)
    cv2.circle(pixels, (120, 50), 20, (40, 60, 220), cv2.FILLED)
    return Image.fromarray(pixels)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    scene().save(path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def default_checkpoint(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model, for commands that name no checkpoint: what they find does not matter here."""
    monkeypatch.setenv("MOBILE_SAM_CHECKPOINT", str(tiny_file))


@pytest.fixture(scope="module")
def predictor(tiny_file: Path) -> SamPredictor:
    """What the command should compute."""
    predictor = SamPredictor(build_sam_vit_t(tiny_file))
    predictor.set_image(scene())
    return predictor


def check_folder(folder: Path) -> list[dict[str, Any]]:
    """The records in a folder, once they agree with the other files in it."""
    records = json.loads((folder / "masks.json").read_text())
    assert len(list(folder.glob("mask_*.png"))) == len(records)
    for index, record in enumerate(records):
        assert set(record) == FIELDS
        decoded = pycocotools.mask.decode(record["segmentation"])
        with Image.open(folder / f"mask_{index:03}.png") as png:
            np.testing.assert_array_equal(np.asarray(png), decoded * np.uint8(255))
        assert record["area"] == pycocotools.mask.area(record["segmentation"]) == decoded.sum()
        x, y, width, height = cv2.boundingRect(decoded)
        assert record["bbox"] == [x, y, max(width - 1, 0), max(height - 1, 0)]
    with Image.open(folder / "overlay.png") as overlay:
        assert overlay.mode == "RGB"
        assert not records or overlay.size == tuple(records[0]["segmentation"]["size"][::-1])
    return records


def check_mistake(captured: Any, *words: str) -> None:
    assert captured.err.startswith("mobile-sam: ") and captured.err.count("\n") == 1, captured.err
    for word in words:
        assert word in captured.err


# segment


def test_segment_writes_the_best_candidate_of_a_click(
    image: Path, out: Path, predictor: SamPredictor, capsys: Captured
) -> None:
    assert main(["segment", str(image), "--point", "50,60", "--out", str(out)]) == 0
    folder = out / "scene"
    (record,) = check_folder(folder)

    masks, scores, logits = predictor.predict(np.array([[50, 60]]), np.array([1]))
    best = scores.argmax()
    np.testing.assert_array_equal(
        pycocotools.mask.decode(record["segmentation"]).astype(bool), masks[best]
    )
    assert record["predicted_iou"] == pytest.approx(float(scores[best]))
    assert record["point_coords"] == [[50.0, 60.0]] and record["crop_box"] == [0, 0, 160, 120]
    np.testing.assert_array_equal(np.load(folder / "mask_000_logits.npy"), logits[best][None])

    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        f"{folder / 'mask_000.png'}  area {record['area']}  predicted IoU {scores[best]:.3f}",
        str(folder / "overlay.png"),
        str(folder / "masks.json"),
    ]


def test_segment_takes_every_prompt_and_refines(
    image: Path, out: Path, predictor: SamPredictor
) -> None:
    prompt = ["--point", "50,60", "--point", "120,50,0", "--box", "15,25,85,95", "--out", str(out)]
    assert main(["segment", str(image), *prompt, "--multimask"]) == 0
    records = check_folder(out / "scene")
    assert len(records) == 3 and records[0]["point_coords"] == [[50.0, 60.0], [120.0, 50.0]]
    for index in range(3):
        assert np.load(out / "scene" / f"mask_{index:03}_logits.npy").shape == (1, 256, 256)

    logits = out / "scene" / "mask_001_logits.npy"
    prior = np.load(logits)
    assert main(["segment", str(image), "--mask", str(logits), "--out", str(out)]) == 0
    (refined,) = check_folder(out / "scene")
    assert not logits.exists()

    (mask,), _, _ = predictor.predict(mask_input=prior, multimask_output=False)
    np.testing.assert_array_equal(pycocotools.mask.decode(refined["segmentation"]), mask)
    assert refined["point_coords"] == []


def test_no_result_takes_the_place_of_another_images(
    tmp_path: Path, out: Path, capsys: Captured
) -> None:
    for name, radius in (("shot.png", 30), ("shot.bmp", 20), ("x/shot.png", 10)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = np.full((120, 160, 3), 90, dtype=np.uint8)
        cv2.circle(pixels, (50, 60), radius, (220, 40, 40), cv2.FILLED)
        Image.fromarray(pixels).save(tmp_path / name)
        command = ["segment", str(tmp_path / name), "--point", "50,60", "--out", str(out)]
        assert main([*command, "--cutout"]) == 0
    folders = [out / name for name in ("shot", "shot.bmp", "shot.png")]
    for folder, name in zip(folders, ("shot.png", "shot.bmp", "x/shot.png"), strict=True):
        assert len(check_folder(folder)) == 1
        assert json.loads((folder / "source.json").read_text())["path"] == str(tmp_path / name)
    captured = capsys.readouterr()
    assert captured.err.count("warning") == 2 and str(out / "shot.bmp") in captured.err
    assert str(out / "shot.bmp" / "cutout_000.png") in captured.out
    before = {path: path.read_bytes() for folder in folders[1:] for path in folder.iterdir()}
    options = ["--pred-iou-thresh=1", *QUICK]
    assert main(["everything", str(tmp_path / "shot.png"), "--out", str(out), *options]) == 0
    assert check_folder(out / "shot") == [] and not (out / "shot" / "cutout_000.png").exists()
    assert {
        path: path.read_bytes() for folder in folders[1:] for path in folder.iterdir()
    } == before


def test_segment_takes_a_mask_as_an_image(image: Path, out: Path, predictor: SamPredictor) -> None:
    """Which is what it is by what is in it, whatever it is called."""
    mask = np.zeros((120, 160), bool)
    mask[30:90, 20:80] = True
    Image.fromarray(mask).save(image.parent / "mask.png")
    np.save(image.parent / "mask.npy", mask)
    (image.parent / "mask.png").rename(image.parent / "logits.npy")
    prompt = ["--point", "50,60", "--out", str(out)]
    (expected,), _, _ = predictor.predict([[50, 60]], [1], None, mask, multimask_output=False)
    for name in ("logits.npy", "mask.npy"):
        assert main(["segment", str(image), "--mask", str(image.parent / name), *prompt]) == 0
        (record,) = check_folder(out / "scene")
        np.testing.assert_array_equal(pycocotools.mask.decode(record["segmentation"]), expected)


def test_segment_turns_photographs_upright_and_warns_in_one_line(
    tmp_path: Path, out: Path, capsys: Captured
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    scene().save(tmp_path / "photo.jpg", exif=exif)
    arguments = ["segment", str(tmp_path / "photo.jpg"), "--box", "90,10,20,90", "--out", str(out)]
    assert main(arguments) == 0
    (record,) = check_folder(out / "photo")
    assert record["segmentation"]["size"] == [160, 120]
    check_mistake(capsys.readouterr(), "warning", "corners swapped")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "at least one of --point, --box and --mask"),
        (["--point", "50"], "'50' is not X,Y or X,Y,LABEL"),
        (["--point", "50,nan"], "'50,nan' is not X,Y"),
        (["--point", "50,60,2"], "neither 1 (object) nor 0"),
        (["--box", "1,2,3"], "'1,2,3' is not X0,Y0,X1,Y1"),
        (["--box", "1,2,3,4", "--box", "1,2,3,4"], "one box"),
        (["--mask", "{tmp}/missing.npy"], "missing.npy"),
        (["--mask", "{tmp}/notes.txt"], "not a .npy file"),
        (["--mask", "{tmp}/other.png"], "mask_input must be low-res logits"),
        (
            ["--point", "5,1e38"],
            "--point 5,1e+38 is outside of the image, which is 160 pixels wide",
        ),
        (["--point", "5,6", "--max-pixels", "100"], "100 pixels; if you trust it"),
        (["--mask", "{tmp}/small.npy"], "(1, 256, 256)"),
        (["--point", "5,6", "--device", "warp"], "'warp'"),
        (["--point", "5,6", "--device", "cuda:99"], "'cuda:99'"),
        (["--point", "5,6", "--device", "meta"], "'meta'"),
        (["--point", "5,6", "--checkpoint", "{tmp}/missing.pt"], "missing.pt"),
        (["--point", "5,6", "--checkpoint", "{tmp}/scene.png"], "scene.png"),
        (["--point", "5,6", "--out", "{tmp}/scene.png"], "scene.png"),
        (["--points", "5,6"], "--points"),
    ],
    ids=str,
)
def test_segment_rejects_invalid_arguments(
    image: Path, out: Path, capsys: Captured, arguments: list[str], words: str
) -> None:
    np.save(image.parent / "small.npy", np.zeros((1, 64, 64), np.float32))
    (image.parent / "notes.txt").write_text("no mask")
    Image.new("1", (60, 40)).save(image.parent / "other.png")
    limit = Image.MAX_IMAGE_PIXELS
    given = [argument.format(tmp=image.parent) for argument in arguments]
    assert main(["segment", str(image), "--out", str(out), *given]) == 2
    assert limit == Image.MAX_IMAGE_PIXELS  # also behind --max-pixels
    captured = capsys.readouterr()
    assert captured.out == "" and not out.exists()
    check_mistake(captured, words)


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "text", "truncated", "bomb", "float", "thin"]
)
def test_segment_names_images_that_cannot_be_used(
    tmp_path: Path, out: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "image.tiff"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no image")
    elif kind == "truncated":
        scene().save(path, format="png")
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "bomb":
        scene().save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    elif kind == "float":
        Image.new("F", (20, 20)).save(path)
    elif kind == "thin":
        Image.new("L", (4000, 1)).save(path)
    arguments = ["segment", str(path), "--point", "5,1", "--out", str(out)]
    assert main(arguments) == 2
    check_mistake(capsys.readouterr(), "thin" if kind == "thin" else str(path))
    assert not out.exists()


# everything


def test_everything_segments_a_folder(tmp_path: Path, out: Path, capsys: Captured) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    scene().save(folder / "dog.png")
    scene().convert("L").save(folder / "Dog.jpg")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    options = ["--min-mask-region-area", "30", *QUICK, *PERMISSIVE]
    assert main(["everything", str(folder), "--out", str(out), *options]) == 1
    assert {path.name for path in out.iterdir()} == {"dog.png", "Dog.jpg"}
    for name in ("dog.png", "Dog.jpg"):
        records = check_folder(out / name)
        assert records
        for record in records:
            mask = pycocotools.mask.decode(record["segmentation"])
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
            assert len(stats) == 2 or stats[1:, cv2.CC_STAT_AREA].min() >= 30
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    warning, error = captured.err.splitlines()
    assert warning.startswith("mobile-sam: warning: ") and "1 file is left out: 1 .txt" in warning
    assert error.startswith("mobile-sam: ") and "broken.png' is not an image" in error


def test_everything_writes_polygons_labelme_and_cutouts(
    image: Path, out: Path, capsys: Captured
) -> None:
    extra = ["--polygons", "--labelme", "--cutout", "--max-pixels", "1000000"]
    assert main(["everything", str(image), "--out", str(out), *QUICK, *PERMISSIVE, *extra]) == 0
    folder = out / "scene"
    records = check_folder(folder)
    coco = json.loads((folder / "instances.json").read_text())
    assert coco["images"] == [{"id": 1, "file_name": "scene.png", "height": 120, "width": 160}]
    for annotation, record in zip(coco["annotations"], records, strict=True):
        mask = pycocotools.mask.decode(record["segmentation"])
        rles = pycocotools.mask.frPyObjects(annotation["segmentation"], 120, 160)
        filled = pycocotools.mask.decode(pycocotools.mask.merge(rles))
        assert (filled >= mask).all() and annotation["area"] == mask.sum()
        assert annotation["bbox"] == pycocotools.mask.toBbox(record["segmentation"]).tolist()
    content = json.loads((folder / "labelme.json").read_text())
    assert content["imagePath"] == "../../scene.png" and len(content["shapes"]) >= len(records)
    assert len(list(folder.glob("cutout_*.png"))) == len(records)
    assert capsys.readouterr().err.count("holes") <= 1

    # Another command's results of this image take the place of all of these.
    command = ["segment", str(image), "--point", "50,60", "--out", str(out)]
    assert main(command) == 0 and len(check_folder(folder)) == 1
    assert {path.name for path in folder.iterdir()} == {
        *("source.json", "masks.json", "overlay.png", "mask_000.png", "mask_000_logits.npy")
    }


def test_everything_goes_on_after_any_error(
    tmp_path: Path, out: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        scene().save(tmp_path / name)
    generate = SamAutomaticMaskGenerator.generate

    def fail_once(self: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", generate)
        raise RuntimeError("no kernel for this size")

    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", fail_once)
    assert main(["everything", str(tmp_path), "--out", str(out), *QUICK, *PERMISSIVE]) == 1
    assert {path.name for path in out.iterdir()} == {"b"} and check_folder(out / "b")
    check_mistake(capsys.readouterr(), "a.png", "RuntimeError: no kernel for this size")


def test_everything_hands_upstreams_options_on(
    image: Path, out: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = inspect.signature(segment_anything.SamAutomaticMaskGenerator.__init__)
    expected = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in ("self", "model", "point_grids", "output_mode")
    }
    command: Any = get_command(app)
    options = {
        parameter.name: parameter.show_default.replace("512/1500", str(512 / 1500))
        for parameter in command.commands["everything"].params
        if parameter.name in expected
    }
    assert options == {name: str(default) for name, default in expected.items()}

    given = {
        name: default / 2 if isinstance(default, float) else 2 * default + 1
        for name, default in expected.items()
    }
    handed_on = {}

    class Generator(segment_anything.SamAutomaticMaskGenerator):
        def __init__(self, model: object, **options: object) -> None:
            handed_on.update(options)
            raise UserError("enough")

    monkeypatch.setattr(
        "mobile_sam_plugin.automatic_mask_generator.SamAutomaticMaskGenerator", Generator
    )
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert main(["everything", str(image), "--out", str(out), *flags]) == 2
    assert handed_on == {**given, "output_mode": "coco_rle"}


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_everything_shows_its_progress_on_a_terminal(image: Path, out: Path) -> None:
    import fcntl
    import termios

    command = ["everything", str(image), "--out", str(out), "--points-per-batch", "1", *QUICK]
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.run(
            [sys.executable, "-m", "mobile_sam_plugin", *command],
            cwd=ROOT,
            env={**os.environ, "TQDM_MININTERVAL": "0"},
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            timeout=120,
        )
        os.close(theirs)
        shown = terminal.read(4096).decode()
    assert process.returncode == 0
    for done in range(1, 5):
        assert f"| {done}/4 [" in shown, shown
    assert "scene.png (1/1)" in shown


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["cat.png", "dog.png"], ["cat", "dog"]),
        (["cat.png", "cat.jpg", "dog.png"], ["cat.png", "cat.jpg", "dog"]),
        (["Cat.png", "cat.jpg"], ["Cat.png", "cat.jpg"]),
        (["cat.jpg", "cat.png", "cat.jpg.png"], ["cat.jpg", "cat.png", "cat.jpg.png"]),
    ],
)
def test_images_of_a_folder_never_share_a_folder(names: list[str], folders: list[str]) -> None:
    paths = [Path(name) for name in names]
    assert list(name_folders(paths).values()) == folders


def test_everything_says_what_to_do_when_it_finds_nothing(
    image: Path, out: Path, capsys: Captured
) -> None:
    stale = claim_folder(out, image) / "mask_007.png"
    stale.touch()
    assert main(["everything", str(image), "--out", str(out), *QUICK, "--pred-iou-thresh=1"]) == 0
    assert check_folder(out / "scene") == [] and not stale.exists()
    with Image.open(out / "scene" / "overlay.png") as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), np.asarray(scene()))
    assert "no mask passed: lower --pred-iou-thresh (1.0)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/empty"], "no image in the folder"),
        (["{tmp}/missing"], "missing"),
        (["{tmp}/notes.txt"], "notes.txt"),
        (["{tmp}/scene.png", "--points-per-side", "0"], "--points-per-side"),
        (["{tmp}/scene.png", "--pred-iou-thresh", "x"], "--pred-iou-thresh"),
        (["{tmp}/scene.png", "--pred-iou-thresh", "3.5"], "'--pred-iou-thresh': '3.5' "),
        (
            ["{tmp}/scene.png", "--crop-n-layers", "1", "--crop-n-points-downscale-factor", "9"],
            "no point is left",
        ),
    ],
    ids=str,
)
def test_everything_rejects_invalid_arguments(
    image: Path, out: Path, capsys: Captured, arguments: list[str], words: str
) -> None:
    (image.parent / "empty").mkdir()
    (image.parent / "notes.txt").write_text("no image")
    given = [argument.format(tmp=image.parent) for argument in arguments]
    assert main(["everything", "--out", str(out), *QUICK, *given]) == 2
    check_mistake(capsys.readouterr(), words)


# info, convert, download


def test_info_describes_the_bundled_checkpoint(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILE_SAM_CHECKPOINT", "my.pt")
    assert main(["info"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["mobile-sam-plugin"] == mobile_sam_plugin.__version__
    assert told["torch"] == torch.__version__.partition("+")[0]
    assert told["default"] == "checkpoint  my.pt (MOBILE_SAM_CHECKPOINT)"
    assert told["checkpoint"] == str(BUNDLED_FILE)
    assert told["mask_decoder"] == "4,058,340 parameters"
    assert "cpu" in told["devices"] and "float16" in told["tensors"]


def test_conversions_round_trip_exactly(tmp_path: Path, capsys: Captured) -> None:
    steps = [
        ["bundled", "a.pt", "--dtype", "float32"],
        ["a.pt", "b.safetensors"],
        ["b.safetensors", "c.bin", "--for", "upstream"],
        ["c.bin", "d.pth", "--dtype", "float16"],
    ]
    for source, target, *options in steps:
        place = source if source == "bundled" else str(tmp_path / source)
        assert main(["convert", place, str(tmp_path / target), *options]) == 0
    original, last = read_checkpoint(BUNDLED_FILE), read_checkpoint(tmp_path / "d.pth")
    head = {
        key for key in last if key.startswith(("image_encoder.head", "image_encoder.norm_head"))
    }
    assert len(head) == 4 and set(last) == set(original) | head
    assert read_checkpoint(tmp_path / "a.pt").keys() == original.keys()
    for key, value in original.items():
        assert last[key].dtype == value.dtype
        torch.testing.assert_close(last[key], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bundled", "{tmp}/scene.png"], "scene.png' exists: give --overwrite"),
        (["bundled", "{tmp}/weights.onnx"], "weights.onnx"),
        (["bundled", "{tmp}/weights.pt", "--dtype", "int8"], "--dtype"),
        (["{tmp}/scene.png", "{tmp}/weights.pt"], "scene.png"),
        (["hf://no", "{tmp}/weights.pt"], "hf://owner/repo"),
    ],
    ids=str,
)
def test_convert_rejects_invalid_arguments(
    image: Path, capsys: Captured, arguments: list[str], words: str
) -> None:
    before = image.read_bytes()
    given = [argument.format(tmp=image.parent) for argument in arguments]
    assert main(["convert", *given]) == 2
    check_mistake(capsys.readouterr(), words)
    assert image.read_bytes() == before
    assert [path.name for path in image.parent.iterdir()] == ["scene.png"]


def test_convert_overwrites_when_told(image: Path, capsys: Captured) -> None:
    target = image.with_suffix(".pt")
    target.touch()
    assert main(["convert", "bundled", str(target), "--overwrite"]) == 0
    assert len(read_checkpoint(target)) == len(read_checkpoint(BUNDLED_FILE))


def test_download_prints_a_path_and_nothing_else(capsys: Captured) -> None:
    assert main(["download", "bundled"]) == 0
    assert capsys.readouterr() == (f"{BUNDLED_FILE}\n", "")
    assert main(["download", "bundled", "--revision", "main"]) == 2
    check_mistake(capsys.readouterr(), "--revision")


def test_download_writes_a_file_for_programs_that_look_for_one(
    tmp_path: Path, capsys: Captured
) -> None:
    target = tmp_path / "checkpoints" / "mobile_sam.pt"
    command = ["download", "bundled", "--to", str(target)]
    assert main(command) == 0
    assert capsys.readouterr() == (f"{target}\n", "")
    assert isinstance(build_sam_vit_t(target), segment_anything.modeling.Sam)
    before = target.read_bytes()
    assert set(torch.load(target, weights_only=True)) == set(read_checkpoint(BUNDLED_FILE))
    assert main([*command, "--for", "upstream"]) == 2
    check_mistake(capsys.readouterr(), "mobile_sam.pt' exists: give --overwrite")
    assert target.read_bytes() == before
    assert main([*command, "--for", "upstream", "--overwrite"]) == 0
    assert len(torch.load(target, weights_only=True)) == len(read_checkpoint(BUNDLED_FILE)) + 4
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "{tmp}/weights.onnx"], "weights.onnx"),
        (["--to", "{tmp}"], "--to"),
        (["--for", "upstream"], "--for"),
        (["--overwrite"], "--overwrite"),
    ],
    ids=str,
)
def test_download_rejects_invalid_arguments_before_it_downloads(
    tmp_path: Path, capsys: Captured, options: list[str], words: str
) -> None:
    given = [option.format(tmp=tmp_path) for option in options]
    assert main(["download", "hf://no/such", *given]) == 2
    check_mistake(capsys.readouterr(), words)
    assert list(tmp_path.iterdir()) == []


# All of them


def run_python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.process
def test_a_network_that_is_away_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOBILE_SAM_CHECKPOINT")
    code = """if True:
        from mobile_sam_plugin.cli import main
        print(main(["download", "--revision", "main"]))
        print(main(["info"]))
    """
    process = run_python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    downloaded, *info, described = process.stdout.splitlines()
    assert (downloaded, described) == ("1", "0")
    assert process.stderr.startswith("mobile-sam: ") and process.stderr.count("\n") == 1
    assert "bundled" in process.stderr
    assert "hf://nielsr/mobilesam, not downloaded yet" in "\n".join(info)


@pytest.mark.process
def test_help_imports_nothing_heavy() -> None:
    code = f"""if True:
        import sys
        from mobile_sam_plugin.cli import main
        heavy = {{"torch", "numpy", "segment_anything", "cv2", "PIL", "timm", "huggingface_hub"}}
        for arguments in ["--version"], ["--help"], *([name, "--help"] for name in {COMMANDS}):
            assert main(arguments) == 0
            print("imports", arguments, heavy & set(sys.modules))
    """
    process = run_python(code)
    assert (process.returncode, process.stderr) == (0, "")
    imports = [line for line in process.stdout.splitlines() if line.startswith("imports")]
    assert len(imports) == 2 + len(COMMANDS)
    assert all(line.endswith("set()") for line in imports), imports


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "a b.png"), 2, "a b.png: Permission denied"),
        (UserError("two\nlines"), 2, "two lines"),
        (
            MissingExtra.of("x", "y"),
            1,
            'x is not installed: run pip install "mobile-sam-plugin[y]"',
        ),
        (ConnectionError("unreachable"), 1, "unreachable"),
        (OSError(28, "No space left on device", "x"), 1, "x: No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "out of memory: CUDA out of memory."),
    ],
)
def test_errors_end_with_one_line(
    image: Path,
    out: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    line: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("mobile_sam_plugin.build.build_sam_vit_t", fail)
    assert main(["segment", str(image), "--point", "5,6", "--out", str(out)]) == code
    assert capsys.readouterr() == ("", f"mobile-sam: {line}\n")


def test_an_interrupt_ends_quietly_and_a_bug_loudly(
    image: Path, out: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    arguments = ["segment", str(image), "--point", "5,6", "--out", str(out)]
    monkeypatch.setattr("mobile_sam_plugin.build.build_sam_vit_t", fail)
    error: BaseException = KeyboardInterrupt()
    assert main(arguments) == 130
    assert capsys.readouterr() == ("", "")
    # Also of a class that mistakes have, where a bug or a library raises it.
    for error in (KeyError("a bug"), ValueError("a bug"), ImportError("a bug")):
        monkeypatch.delenv("MOBILE_SAM_DEBUG", raising=False)
        assert main(arguments) == 1
        check_mistake(capsys.readouterr(), type(error).__name__, "a bug", "MOBILE_SAM_DEBUG=1")
        monkeypatch.setenv("MOBILE_SAM_DEBUG", "1")
        assert main(arguments) == 1
        *traceback, last = capsys.readouterr().err.splitlines()
        assert traceback[0].startswith("Traceback") and "in fail" in "".join(traceback)
        assert last.startswith("mobile-sam: ")


@pytest.mark.parametrize("arguments", [[], ["segmnt"], ["--nonsense"]])
def test_unknown_commands_end_with_one_line(capsys: Captured, arguments: list[str]) -> None:
    assert main(arguments) == 2
    check_mistake(capsys.readouterr(), "see mobile-sam --help")
