"""Names for masks: CLIP with random weights, and what becomes of what it says."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from mobile_sam_plugin import MobileSam
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.drawing import colors_of
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import load_image
from mobile_sam_plugin.integrations.semantic_segment_anything import (
    ClipClassifier,
    SemanticInstances,
    SemanticMobileSam,
)

from ..hub import Client, Cut, Hub
from .models import save_clip
from .vocabularies import SMALL_LAYER

Pixels = NDArray[np.uint8]
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220)}
NOTHING_PASSES: dict[str, Any] = {
    "points_per_side": 1,
    "pred_iou_thresh": 1.0,
    "stability_score_thresh": 1.0,
}


def compare_colors(images: Iterable[Pixels], texts: Sequence[str]) -> NDArray[np.float32]:
    """A user's own classifier: how near the colour of an image is to the colour in a text."""
    logits = []
    for image in images:
        color = image[image.any(axis=2)].mean(axis=0)
        named = [next(COLORS[name] for name in COLORS if name in text) for text in texts]
        logits.append([-np.abs(color - np.array(each)).sum() / 50 for each in named])
    return np.array(logits)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved CLIP, as a user has it."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def semantic(tiny_sam: MobileSam) -> SemanticMobileSam:
    return SemanticMobileSam(
        tiny_sam,
        compare_colors,
        points_per_side=4,
        pred_iou_thresh=0,
        stability_score_thresh=0,
    )


@pytest.fixture(scope="module")
def scene() -> Pixels:
    """A red and a blue rectangle on green, (90, 120, 3)."""
    image = np.full((90, 120, 3), COLORS["green"], dtype=np.uint8)
    image[20:70, 10:60] = COLORS["red"]
    image[30:60, 80:110] = COLORS["blue"]
    return image


@pytest.fixture(scope="module")
def masks(scene: Pixels) -> NDArray[np.bool_]:
    """The blue one, all, the red one."""
    blue, red = (np.all(scene == COLORS[name], axis=2) for name in ("blue", "red"))
    return np.stack([blue, np.ones_like(blue), red])


# Labels


def test_masks_get_their_names(
    semantic: SemanticMobileSam, scene: Pixels, masks: NDArray[np.bool_]
) -> None:
    found = semantic.predict(Image.fromarray(scene), ["red", " green ", "blue"], masks)
    assert found.labels == ["blue", "green", "red"]
    assert found.class_ids is not None and found.class_ids.tolist() == [2, 1, 0]
    assert found.boxes.tolist() == [[80, 30, 110, 60], [0, 0, 120, 90], [10, 20, 60, 70]]
    np.testing.assert_array_equal(found.masks, masks)
    logits = compare_colors([scene], ["red", "green", "blue"])[0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert found.scores[1] == pytest.approx(probabilities.max(), rel=1e-4)
    only = semantic.predict(scene, ["red"], masks)
    assert only.labels == ["red"] * 3 and only.scores.tolist() == [1, 1, 1]


def test_semantic_map_prefers_small_masks(
    semantic: SemanticMobileSam, scene: Pixels, masks: NDArray[np.bool_]
) -> None:
    found = semantic.predict(scene, ["red", "green", "blue"], masks)
    expected = np.full(scene.shape[:2], 1)
    expected[masks[2]], expected[masks[0]] = 0, 2
    np.testing.assert_array_equal(found.semantic_map(), expected)
    np.testing.assert_array_equal(
        found[[0, 2]].semantic_map(), np.where(expected == 1, -1, expected)
    )
    assert (found[[]].semantic_map() == -1).all()


def test_legend_names_what_occurs(
    semantic: SemanticMobileSam, scene: Pixels, masks: NDArray[np.bool_]
) -> None:
    found = semantic.predict(scene, ["red", "green", "blue"], masks[:2])
    legend = found.legend(scene)
    height, width = scene.shape[:2]
    assert legend.shape[0] == height and legend.shape[1] > width
    column = {tuple(color) for color in legend[:, width:].reshape(-1, 3).tolist()}
    red, green, blue = (tuple(color) for color in colors_of([1, 2, 3]).tolist())
    assert green in column and blue in column and red not in column
    expected = scene[5, 5] * 0.4 + colors_of(2) * 0.6
    np.testing.assert_allclose(legend[5, 5], expected, atol=0.5)

    (nothing,) = [found[[]].legend(scene)]
    np.testing.assert_array_equal(nothing[:, :width], scene)
    with pytest.raises(ValueError, match="the image has"):
        found.legend(scene[1:])


@pytest.mark.parametrize("count", [3, 300])
def test_save_writes_map_and_legend(
    semantic: SemanticMobileSam,
    scene: Pixels,
    masks: NDArray[np.bool_],
    tmp_path: Path,
    count: int,
) -> None:
    found = semantic.predict(scene, ["red", "green", "blue"], masks)
    assert found.class_ids is not None
    found.class_ids += count - 3
    found.classes = [str(number) for number in range(count)]
    paths = found.save(tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    with Image.open(tmp_path / "semantic_map.png") as image:
        np.testing.assert_array_equal(np.asarray(image), found.semantic_map() + 1)
        if count < 256:
            np.testing.assert_array_equal(
                np.asarray(image.convert("RGB")), colors_of(found.semantic_map() + 1)
            )
    np.testing.assert_array_equal(load_image(tmp_path / "legend.png"), found.legend())
    assert len(json.loads((tmp_path / "instances.json").read_text())["annotations"]) == 3


def test_classifiers_see_cutouts_on_black(
    tiny_sam: MobileSam, scene: Pixels, masks: NDArray[np.bool_]
) -> None:
    crops: list[Pixels] = []

    def classify(images: Iterable[Pixels], texts: Sequence[str]) -> NDArray[np.float32]:
        crops.extend(images)
        return np.zeros((1, len(texts)), np.float32)

    semantic = SemanticMobileSam(tiny_sam, classify)
    semantic.predict(scene, ["red"], masks[2:3])
    crop = crops.pop()
    assert crop.shape == (50, 50, 3) and (crop == COLORS["red"]).all()
    ring = masks[2].copy()
    ring[30:40, 30:40] = False
    semantic.predict(scene, ["red"], ring[None])
    crop = crops.pop()
    assert not crop[10:20, 20:30].any() and (crop[:10] == COLORS["red"]).all()


def test_everything_is_segmented(semantic: SemanticMobileSam, coffee: Pixels) -> None:
    steps: list[tuple[int, int]] = []
    masks = semantic.segment(coffee, lambda done, total: steps.append((done, total)))
    assert len(masks) and masks.any(axis=(1, 2)).all() and steps[-1] == (16, 16)
    found = semantic.predict(coffee, ["red", "green"])
    np.testing.assert_array_equal(found.masks, masks)


def test_nothing_is_found(tiny_sam: MobileSam, scene: Pixels, tmp_path: Path) -> None:
    semantic = SemanticMobileSam(tiny_sam, compare_colors, **NOTHING_PASSES)
    found = semantic.predict(scene, ["red"])
    assert isinstance(found, SemanticInstances) and len(found) == 0
    assert (tmp_path / "legend.png") in found.save(tmp_path)
    assert len(semantic.search(scene, "red")) == 0


# Search


def test_search_puts_the_best_first(
    semantic: SemanticMobileSam, scene: Pixels, masks: NDArray[np.bool_]
) -> None:
    found = semantic.search(scene, "something red", masks)
    np.testing.assert_array_equal(found.masks[0], masks[2])
    assert len(found) == 3 and found.labels == ["something red"] * 3
    assert (np.diff(found.scores) <= 0).all() and found.scores.sum() == pytest.approx(1)
    (best,) = semantic.search(scene, "blue", masks, limit=1)
    np.testing.assert_array_equal(best.masks[0], masks[0])


# Bad input


@pytest.mark.parametrize(
    ("classes", "error", "words"),
    [
        ([], ValueError, "no classes"),
        (["red", " "], ValueError, "empty"),
        (["red", "blue", "red "], ValueError, "'red' is given twice"),
        ("red", TypeError, "list of texts"),
        (["red", 3], TypeError, "classes must be a list of texts: item 1 .* not int"),
        (None, TypeError, "classes must be a list of texts, not NoneType"),
    ],
    ids=str,
)
def test_bad_classes(
    semantic: SemanticMobileSam,
    scene: Pixels,
    masks: NDArray[np.bool_],
    classes: Any,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        semantic.predict(scene, classes, masks)


def test_bad_searches(semantic: SemanticMobileSam, scene: Pixels, masks: NDArray[np.bool_]) -> None:
    with pytest.raises(ValueError, match="empty"):
        semantic.search(scene, " ", masks)
    with pytest.raises(TypeError, match="not list"):
        semantic.search(scene, ["red"], masks)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1, not 0"):
        semantic.search(scene, "red", masks, limit=0)
    with pytest.raises(TypeError, match="limit must be a whole number, not 2.5"):
        semantic.search(scene, "red", masks, limit=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_thresholds_outside_0_to_1(tiny_sam: MobileSam, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], not {value}"):
        SemanticMobileSam(tiny_sam, compare_colors, **{name: value})  # type: ignore[arg-type]


def test_bad_masks(semantic: SemanticMobileSam, scene: Pixels, masks: NDArray[np.bool_]) -> None:
    with pytest.raises(ValueError, match=r"\(N, 90, 120\).*\(3, 89, 120\)"):
        semantic.predict(scene, ["red"], masks[:, 1:])
    with pytest.raises(ValueError, match=r"not \(90, 120\)"):
        semantic.predict(scene, ["red"], masks[0])
    with pytest.raises(TypeError, match="uint8"):
        semantic.predict(scene, ["red"], masks.astype(np.uint8))
    with pytest.raises(ValueError, match="mask 1 is empty"):
        semantic.predict(scene, ["red"], masks & [[[True]], [[False]], [[True]]])
    with pytest.raises(UserError, match=r"\(N, 90, 120\) for this image, not several shapes"):
        semantic.predict(scene, ["red"], [masks[0], masks[1, 1:]])
    with pytest.raises(TypeError, match="boolean, not int64"):
        semantic.predict(scene, ["red"], 5)  # type: ignore[arg-type]


def test_masks_may_be_a_list(
    semantic: SemanticMobileSam, scene: Pixels, masks: NDArray[np.bool_]
) -> None:
    found = semantic.predict(scene, ["red", "green", "blue"], [*masks])
    np.testing.assert_array_equal(found.masks, masks)
    assert found.labels == ["blue", "green", "red"]
    assert len(semantic.search(scene, "red", [*masks], limit=2)) == 2
    assert len(semantic.predict(scene, ["red"], [])) == 0


@pytest.mark.parametrize(
    ("logits", "words"),
    [(np.zeros((3, 1)), r"\(3, 1\) for 3 images and 2 texts"), (np.full((3, 2), np.nan), "NaN")],
    ids=["shape", "NaN"],
)
def test_classifiers_that_return_nonsense(
    tiny_sam: MobileSam, scene: Pixels, masks: NDArray[np.bool_], logits: Any, words: str
) -> None:
    semantic = SemanticMobileSam(tiny_sam, lambda images, texts: logits)
    with pytest.raises(ValueError, match=f"the classifier function returned.*{words}"):
        semantic.predict(scene, ["red", "blue"], masks)


# CLIP


def test_clip_compares_as_transformers_does(clip_folder: Path, coffee: Pixels) -> None:
    classifier = ClipClassifier(clip_folder, batch_size=2)
    images = [coffee[:100, :100], coffee[100:164, 200:264], coffee[:50, -50:]]
    texts = ["a cup", "a photo of a table"]
    inputs = classifier.processor(
        images=[Image.fromarray(image) for image in images],
        text=texts,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = classifier.model(**inputs).logits_per_image
    np.testing.assert_allclose(classifier(iter(images), texts), expected, atol=1e-4)


def test_clip_sees_the_ends_of_long_crops(clip_folder: Path) -> None:
    classifier = ClipClassifier(clip_folder)
    plain = np.full((20, 200, 3), 128, dtype=np.uint8)
    marked = plain.copy()
    marked[:, :20] = 255
    first, second = classifier([plain, marked], ["a cup"])
    assert abs(first - second) > 1e-5


def test_clip_refuses_texts_that_it_would_cut_off(clip_folder: Path, coffee: Pixels) -> None:
    with pytest.raises(ValueError, match="has 5[0-9] tokens, the model reads only 40"):
        ClipClassifier(clip_folder)([coffee], ["a cup", "x" * 50])


def test_siglip_reads_texts_of_full_length(tmp_path: Path, coffee: Pixels) -> None:
    """As it was trained: what fills a text up is a part of it."""
    words = ["a", "photo", "of", "cat", "dog", "the", "small", "brown", "on", "red", "mat"]
    vocabulary = {word: place for place, word in enumerate(["</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    model = transformers.SiglipModel(
        transformers.SiglipConfig(
            text_config={"vocab_size": 32, "max_position_embeddings": 20, **SMALL_LAYER},
            vision_config={"image_size": 32, "patch_size": 16, **SMALL_LAYER},
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    transformers.SiglipProcessor(
        transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="</s>",
            unk_token="<unk>",
            model_input_names=["input_ids"],
        ),
    ).save_pretrained(tmp_path)

    classifier = ClipClassifier(tmp_path)
    image, texts = coffee[:64, :64], ["a photo of a cat", "a small brown dog on the red mat"]
    inputs = classifier.processor(
        images=[Image.fromarray(image)],
        text=texts,
        padding="max_length",
        max_length=20,
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = classifier.model(**inputs).logits_per_image
    np.testing.assert_allclose(classifier([image], texts), expected, atol=1e-4)
    # Beside a longer text a text means the same as alone.
    np.testing.assert_allclose(classifier([image], texts[:1]), expected[:, :1], atol=1e-4)


def test_clip_in_half_precision(clip_folder: Path, coffee: Pixels, tmp_path: Path) -> None:
    whole = ClipClassifier(clip_folder)
    shutil.copytree(clip_folder, tmp_path / "half")
    transformers.CLIPModel.from_pretrained(clip_folder).half().save_pretrained(tmp_path / "half")
    half = ClipClassifier(tmp_path / "half")
    assert half.model.dtype == torch.float16
    texts = ["a cup", "a table"]
    np.testing.assert_allclose(half([coffee], texts), whole([coffee], texts), atol=0.1)


def load_from_hub(names: list[str]) -> list[tuple[str, str]]:
    """The class of the error that each ends with, and its message; in a process of its own."""
    time.sleep = lambda seconds: None  # the pauses between the client's attempts
    told = []
    for name in names:
        try:
            ClipClassifier(name)
            told.append(("", ""))
        except Exception as error:
            told.append((type(error).__name__, str(error)))
    return told


@pytest.mark.process
@pytest.mark.slow
def test_what_the_hub_does_not_give_is_told_by_its_class(clip_folder: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in clip_folder.iterdir()}
    with Hub() as hub:
        hub.commit("of/all", files)
        hub.commit("of/few", files, gated=True)
        without = {name: content for name, content in files.items() if "safetensors" not in name}
        hub.commit("of/nothing", without)
        hub.cuts = [Cut(1000, "close")] * 6  # as often as the client tries
        names = ["of/none", "of/few", "of/nothing", "of/all", "of/all"]
        none, few, nothing, cut, whole = Client(hub.url, tmp_path / "hub")(load_from_hub, names)
        (tmp_path / "file").write_text("where the cache should be")
        ((cache, message),) = Client(hub.url, tmp_path / "file")(load_from_hub, ["of/all"])
    assert none[0] == "FileNotFoundError" and "'of/none'" in none[1]
    assert few[0] == "PermissionError" and "is gated: accept its terms at http" in few[1]
    assert nothing[0] == "FileNotFoundError" and "safetensors" in nothing[1]
    assert cut[0] == "ConnectionError" and "'of/all'" in cut[1] and "try again" in cut[1]
    assert whole == ("", "")
    assert cache in ("FileExistsError", "NotADirectoryError") and "'of/all'" in message
    # Nobody listens there any more.
    ((name, message),) = Client(hub.url, tmp_path / "other")(load_from_hub, ["of/all"])
    assert name == "ConnectionError" and hub.url in message and "'of/all'" in message


def test_clip_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        ClipClassifier(tmp_path / "missing")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "mobile-sam-plugin\[semantic\]"'):
        ClipClassifier()


# The commands


@pytest.fixture
def image(tmp_path: Path, coffee: Pixels) -> Path:
    Image.fromarray(coffee[:200, :200]).save(tmp_path / "cup.png")
    return tmp_path / "cup.png"


@pytest.fixture
def run(image: Path, model_options: list[str]) -> Callable[..., int]:
    """Runs a command on the image with a small model, which finds a few masks."""

    def run(command: str, *arguments: str) -> int:
        options = ["--points-per-side", "1", "--pred-iou-thresh", "0"]
        options += ["--stability-score-thresh", "0", *model_options]
        return main([command, str(image), "--out", str(image.parent / "out"), *options, *arguments])

    return run


def test_label_command(
    run: Callable[..., int], clip_folder: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--classes", "cup; spoon，table,\n", "--classifier", str(clip_folder)]
    assert run("label", *arguments) == 0
    folder = image.parent / "out" / "cup"
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in lines[-4:]] == [
        "overlay.png",
        "semantic_map.png",
        "legend.png",
        "instances.json",
    ]
    assert len(lines) > 4
    assert all(line.split("  ")[1] in ("cup", "spoon", "table") for line in lines[:-4])
    with Image.open(folder / "semantic_map.png") as semantic_map:
        assert semantic_map.mode == "P" and 0 < np.asarray(semantic_map).max() <= 3

    strict = "--pred-iou-thresh", "1", "--stability-score-thresh", "1"
    assert run("label", *arguments, *strict) == 0
    assert "no mask passed: lower --pred-iou-thresh (1.0)" in capsys.readouterr().out


def test_search_command(
    run: Callable[..., int], clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["a red cup", "--limit", "1", "--classifier", str(clip_folder)]
    assert run("search", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "mask_000.png  a red cup  score " in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["label", "--classes", "cup,,spoon"], "empty name"),
        (["search", " "], "empty"),
        (["search", "cup", "--limit", "0"], "--limit"),
        (["search", "cup", "--max-pixels", "30000"], "--max-pixels"),
        (["label", "--classes", "cup", "--max-pixels", "30000"], "--max-pixels"),
        (["search", "cup", "--pred-iou-thresh", "1.5"], "--pred-iou-thresh"),
        (["label", "--classes", "cup", "--stability-score-thresh", "-1"], "--stability-score"),
        (["search", "cup", "--classifier", "no/such/folder"], "no/such/folder"),
    ],
    ids=str,
)
def test_commands_name_mistakes(
    run: Callable[..., int],
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which they may set
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mobile-sam: ") and captured.err.count("\n") == 1
    assert words in captured.err and captured.out == ""
    assert not (image.parent / "out").exists()
