"""The two ONNX files, the predictors that run them, and that these need no torch."""

import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything.utils.onnx import SamOnnxModel

from mobile_sam_plugin import (
    MobileSam,
    SamAutomaticMaskGenerator,
    SamPredictor,
    annotate,
    build_sam_vit_t,
)
from mobile_sam_plugin.annotation import AnnotationOptions, AnnotationRun, open_source
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.deploy import (
    Export,
    OnnxAutomaticMaskGenerator,
    OnnxPredictor,
    OpenVinoPredictor,
    comparison,
    export,
    onnx_export,
)
from mobile_sam_plugin.deploy.half_precision import find_unsafe_nodes
from mobile_sam_plugin.deploy.onnx_export import _add_preprocessing, _halve
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.everything import drop_empty
from mobile_sam_plugin.images import load_image
from mobile_sam_plugin.inputs import input_size, mask_to_logits, preprocess
from mobile_sam_plugin.mask_postprocessing import MaskUpscaler

from ..conftest import PHOTOGRAPHS, REFERENCE
from ..records import assert_same_records
from .conftest import Files, named, write_files

Pixels = NDArray[np.uint8]

DECODER_INPUTS = {
    "image_embeddings": ["tensor(float)", ["images", 256, 64, 64]],
    "point_coords": ["tensor(float)", ["prompts", "points", 2]],
    "point_labels": ["tensor(float)", ["prompts", "points"]],
    "mask_input": ["tensor(float)", ["mask_prompts", 1, 256, 256]],
    "has_mask_input": ["tensor(float)", [1]],
    "orig_im_size": ["tensor(float)", [2]],
}
# Wide, tall, and smaller than the model's input.
SHAPES = [("coffee.png", None), ("china.jpg", (427, 1100)), ("camera.png", (300, 301))]
PROMPTS: dict[str, dict[str, Any]] = {
    "click": {"point_coords": [[250, 180]], "point_labels": [1]},
    "click, one mask": {
        "point_coords": [[250, 180]],
        "point_labels": [1],
        "multimask_output": False,
    },
    "clicks": {
        "point_coords": [[250, 180], [20, 30], [9999, -50], [0, 0]],
        "point_labels": [1, 0, 1, -1],
    },
    "box": {"box": [60, 40, 280, 250], "multimask_output": False},
    "box and clicks": {
        "point_coords": [[150, 180], [70, 90]],
        "point_labels": [1, 0],
        "box": [60, 40, 280, 250],
    },
    "mask": {"mask_input": None},
    "mask and click": {"point_coords": [[250, 180]], "point_labels": [1], "mask_input": None},
}


def photograph(name: str, size: tuple[int, int] | None = None) -> Pixels:
    image = Image.open(PHOTOGRAPHS / name).convert("RGB")
    return np.asarray(image.resize(size) if size else image)


@pytest.fixture(scope="session")
def exported(
    small_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Export]]:
    """For images of 224 x 224, which is quick."""
    folder = tmp_path_factory.mktemp("small")
    return folder, export(small_sam, folder, [PHOTOGRAPHS / "coffee.png"])


@pytest.fixture(scope="session")
def small_files(exported: tuple[Path, list[Export]]) -> Files:
    return named(exported[0])


@pytest.fixture(scope="session")
def tiny_files(tiny_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """For claims about files and runtimes, and for images of 256 x 256."""
    folder = tmp_path_factory.mktemp("tiny")
    export(tiny_sam, folder, [PHOTOGRAPHS / "coffee.png"], opset=17)
    return named(folder)


@pytest.fixture(scope="session")
def exported_with_preprocessing(
    tiny_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Where ``mobile-sam export --with-preprocessing`` wrote its files, and what it printed.

    Of ``tiny_file``, so for images of 1024 x 1024 pixels.
    """
    folder, pictures = tmp_path_factory.mktemp("exported") / "deep", tmp_path_factory.mktemp("one")
    shutil.copy(PHOTOGRAPHS / "coffee.png", pictures)
    options = ("--with-preprocessing", "--checkpoint", str(tiny_file), "--images", str(pictures))
    with redirect_stdout(StringIO()) as printed:
        assert main(["export", "--out", str(folder), *options]) == 0
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def tiny_reference(tiny_file: Path) -> SamPredictor:
    """The model behind ``exported_with_preprocessing``."""
    return SamPredictor(build_sam_vit_t(tiny_file))


@pytest.fixture(scope="module")
def small_predictor(small_files: Files) -> OnnxPredictor:
    return OnnxPredictor(*small_files)


@pytest.fixture(scope="module")
def small_reference(small_sam: MobileSam) -> SamPredictor:
    return SamPredictor(small_sam)


def assert_same(
    ours: tuple[NDArray[Any], ...],
    theirs: tuple[NDArray[Any], ...],
    tolerance: float = 1e-3,
) -> None:
    masks, scores, low_res_logits = theirs
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in theirs]
    assert (ours[0] == masks).mean() >= 0.999
    np.testing.assert_allclose(ours[1], scores, rtol=0, atol=tolerance)
    np.testing.assert_allclose(ours[2], low_res_logits, rtol=0, atol=tolerance)


def assert_parity(predictor: OnnxPredictor, reference: SamPredictor) -> None:
    """Asserts that both, with the same image set, agree on every kind of prompt."""
    for name in ("original_size", "input_size"):
        assert getattr(predictor, name) == getattr(reference, name)
    embedding = reference.get_image_embedding().numpy()
    np.testing.assert_allclose(predictor.get_image_embedding(), embedding, rtol=0, atol=1e-4)
    _, _, earlier = reference.predict(box=PROMPTS["box"]["box"], multimask_output=False)
    for prompt in PROMPTS.values():
        prompt = {**prompt, **({"mask_input": earlier} if "mask_input" in prompt else {})}
        theirs = reference.predict(**prompt)
        assert_same(predictor.predict(**prompt), theirs)
    assert reference.predict(**PROMPTS["click"])[0].any(), "nothing to compare"


def test_the_files_are_checked_and_described(exported: tuple[Path, list[Export]]) -> None:
    folder, (encoder, decoder) = exported
    assert (encoder.path, decoder.path) == named(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in named(folder)
    )
    for found in (encoder, decoder):
        onnx.checker.check_model(found.path, full_check=True)
        assert found.megabytes == pytest.approx(found.path.stat().st_size / 1e6)
        assert found.seconds > 0 and found.torch_seconds > 0
        assert found.mask_iou > 0.99
        assert onnx.load(found.path).opset_import[0].version == 18
    assert 0 < encoder.largest_difference < 1e-4
    assert 0 < decoder.largest_difference < 1e-3


def test_names_and_shapes_are_upstreams(files: Files) -> None:
    encoder, decoder = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in files
    )
    (image,) = encoder.get_inputs()
    assert (image.type, image.shape) == ("tensor(float)", ["images", 3, 1024, 1024])
    (embeddings,) = encoder.get_outputs()
    assert (embeddings.name, embeddings.shape) == ("image_embeddings", ["images", 256, 64, 64])
    assert {each.name: [each.type, each.shape] for each in decoder.get_inputs()} == DECODER_INPUTS
    assert [each.name for each in decoder.get_outputs()] == [
        "masks",
        "iou_predictions",
        "low_res_masks",
    ]


def test_parity_with_torch(files: Files, bundled_sam: MobileSam, coffee: Pixels) -> None:
    predictor, reference = OnnxPredictor(*files), SamPredictor(bundled_sam)
    predictor.set_image(coffee)
    reference.set_image(coffee)
    assert_parity(predictor, reference)


@pytest.mark.parametrize(("name", "size"), SHAPES)
def test_parity_with_torch_for_images_of_all_shapes(
    small_predictor: OnnxPredictor,
    small_reference: SamPredictor,
    name: str,
    size: tuple[int, int] | None,
) -> None:
    pixels = photograph(name, size)
    small_predictor.set_image(pixels)
    small_reference.set_image(pixels)
    assert_parity(small_predictor, small_reference)


def test_full_size_logits(small_predictor: OnnxPredictor, small_reference: SamPredictor) -> None:
    pixels = photograph("camera.png", (333, 200))
    logits = []
    for each in (small_predictor, small_reference):
        each.set_image(pixels)
        logits.append(each.predict([[100, 90]], [1], return_logits=True)[0])
    ours, theirs = logits
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


def test_batches(
    small_predictor: OnnxPredictor, small_reference: SamPredictor, coffee: Pixels
) -> None:
    predictor, reference = small_predictor, small_reference
    predictor.set_image(coffee)
    reference.set_image(coffee)
    random = np.random.default_rng(0)
    corners = random.uniform(size=(6, 2, 2)) * [600, 400]
    corners.sort(axis=1)
    boxes = corners.reshape(6, 4)
    points, labels = random.uniform(size=(6, 2, 2)) * 400, np.array([[1, 0]] * 6)
    transform, size = reference.transform, reference.original_size
    torch_boxes = transform.apply_boxes_torch(torch.from_numpy(boxes), size)
    torch_points = transform.apply_coords_torch(torch.from_numpy(points), size)
    each: list[dict[str, Any]] = [{"multimask_output": False}, {"return_logits": True}]
    for options in each:
        theirs = reference.predict_torch(None, None, torch_boxes, **options)
        ours = predictor.predict_batch(boxes=boxes, **options)
        if "return_logits" in options:
            np.testing.assert_allclose(ours[0], theirs[0].numpy(), rtol=0, atol=1e-3)
        else:
            assert_same(ours, tuple(each.numpy() for each in theirs))
    theirs = reference.predict_torch(torch_points, torch.from_numpy(labels), torch_boxes)
    ours = predictor.predict_batch(points, labels, boxes)
    assert_same(ours, tuple(each.numpy() for each in theirs))
    logits = ours[2][:, :1]
    theirs = reference.predict_torch(None, None, torch_boxes, torch.from_numpy(logits))
    ours = predictor.predict_batch(boxes=boxes, mask_input=logits)
    assert_same(ours, tuple(each.numpy() for each in theirs))
    none = predictor.predict_batch(boxes=np.empty((0, 4)))
    assert [each.shape for each in none] == [(0, 3, 400, 600), (0, 3), (0, 3, 56, 56)]


def test_batches_of_images(
    small_predictor: OnnxPredictor, small_reference: SamPredictor, coffee: Pixels
) -> None:
    pictures = [coffee, photograph("china.jpg", (427, 1100)), photograph("camera.png", (300, 301))]
    predictors = small_predictor.set_image_batch(pictures)
    assert [each.original_size for each in predictors] == [(400, 600), (1100, 427), (301, 300)]
    prompts: list[dict[str, Any]] = [
        {"point_coords": [[[250, 180]], [[200, 500]], [[9, 9]]], "point_labels": [[1], [1], [0]]},
        {"boxes": np.array([[60, 40, 280, 250], [9, 300, 400, 900], [50, 60, 200, 290]])},
    ]
    earlier = [each.predict(box=[60, 40, 280, 250])[2][:1] for each in predictors]
    prompts.append({**prompts[0], "mask_input": earlier, "multimask_output": False})
    prompts.append({**prompts[1], **prompts[0], "return_logits": True})
    for prompt in prompts:
        found = small_predictor.predict_image_batch(predictors, **prompt)
        for index, picture in enumerate(pictures):
            small_reference.set_image(picture)
            one = {
                name.replace("boxes", "box"): value if isinstance(value, bool) else value[index]
                for name, value in prompt.items()
            }
            theirs = small_reference.predict(**one)
            if "return_logits" in prompt:
                np.testing.assert_allclose(found[index][0], theirs[0], rtol=0, atol=1e-3)
            else:
                assert_same(found[index], theirs)
    assert small_predictor.set_image_batch([]) == []
    assert small_predictor.predict_image_batch([]) == []
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"boxes": [[1, 2, 3, 4]]}, "boxes must hold one prompt per image, 3, not 1"),
        (
            {
                "point_coords": [[[1, 2]], [[1, 2]], [[1, 2], [3, 4]]],
                "point_labels": [[1], [1], [1, 1]],
            },
            r"equally many points for each image, not \[2, 3\]",
        ),
    ]
    for options, message in refusals:
        with pytest.raises(ValueError, match=message):
            small_predictor.predict_image_batch(predictors, **options)


def test_the_oldest_opset(tiny_files: Files) -> None:
    assert {onnx.load(path).opset_import[0].version for path in tiny_files} == {17}


def test_reference_data(reference_sam: MobileSam, tmp_path: Path) -> None:
    """What the original MobileSAM computed through the decoder that it exports."""
    golden = np.load(REFERENCE / "predictor_golden.npz")
    files = write_files(reference_sam, tmp_path, opset=17)
    encoder, decoder = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in files
    )
    pixels = np.asarray(Image.open(REFERENCE / "landscape.png"))
    (embedding,) = encoder.run(None, {"input_image": preprocess(pixels, 1024)})
    expected = golden["landscape/embedding_subsample"]
    np.testing.assert_allclose(embedding[:, ::8, ::2, ::2], expected, rtol=0, atol=1e-4)
    feeds = {
        "image_embeddings": embedding,
        "point_coords": golden["onnx_decoder/point_coords"],
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(pixels.shape[:2], np.float32),
    }
    masks, iou, low_res_logits = decoder.run(None, feeds)
    assert masks.shape == (1, 4, *pixels.shape[:2])
    for found, name in (
        (iou, "iou"),
        (low_res_logits[:, :, ::4, ::4], "low_res_subsample"),
        (masks[:, :, ::4, ::4], "masks_subsample"),
    ):
        expected = golden[f"onnx_decoder/{name}"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3, err_msg=name)


def test_upstreams_wrapper_still_exports(own_sam: MobileSam, tmp_path: Path) -> None:
    """As ``scripts/export_onnx_model.py`` does, but for the exporter's new default.

    The exporter leaves the model in the wrapper's mode, which is training.
    """
    inputs = {
        "image_embeddings": torch.randn(1, 256, 64, 64),
        "point_coords": torch.tensor([[[100.0, 200.0], [300.0, 400.0]]]),
        "point_labels": torch.tensor([[1.0, 0.0]]),
        "mask_input": torch.zeros(1, 1, 256, 256),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([683.0, 1024.0]),
    }
    path = tmp_path / "upstream.onnx"
    model = SamOnnxModel(own_sam, return_single_mask=True)
    torch.onnx.export(
        model,
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=["masks", "iou_predictions", "low_res_masks"],
        dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
        opset_version=17,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fewer = {"point_coords": inputs["point_coords"][:, :1], "point_labels": torch.ones(1, 1)}
    for given in (inputs, {**inputs, **fewer}):
        found = session.run(None, {name: value.numpy() for name, value in given.items()})
        for ours, theirs in zip(found, model(**given), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-3)


def run_without_torch(code: str, *arguments: str | Path) -> str:
    """Runs a program in which importing torch or what stands on it is an error."""
    barred = ["torch", "torchvision", "timm", "segment_anything", "huggingface_hub", "safetensors"]
    code = f"import sys\nfor name in {barred}: sys.modules[name] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
def test_predictor_needs_no_torch(
    small_files: Files, small_reference: SamPredictor, coffee: Pixels, tmp_path: Path
) -> None:
    code = """
import numpy as np
from PIL import Image
from mobile_sam_plugin.deploy import OnnxAutomaticMaskGenerator, OnnxPredictor
predictor = OnnxPredictor(*sys.argv[1:3])
predictor.set_image(Image.open(sys.argv[3]))
np.save(sys.argv[4], predictor.predict([[300, 200]], [1])[0])
generator = OnnxAutomaticMaskGenerator(predictor, points_per_side=1, pred_iou_thresh=0.0,
                                       stability_score_thresh=0.0)
print(len(generator.generate(Image.open(sys.argv[3]))))
"""
    printed = run_without_torch(
        code, *small_files, PHOTOGRAPHS / "coffee.png", tmp_path / "masks.npy"
    )
    assert int(printed) >= 1
    small_reference.set_image(coffee)
    expected = small_reference.predict([[300, 200]], [1])[0]
    assert (np.load(tmp_path / "masks.npy") == expected).mean() >= 0.999


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.process
def test_command_segments_without_torch(files: Files, tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    arguments: list[str | Path] = [
        *("segment", PHOTOGRAPHS / "coffee.png", "--point", "300,130", "--box", "170,10,430,300"),
        *("--out", tmp_path / backend, "--backend", backend, "--onnx-dir", files[0].parent),
    ]
    run_without_torch("from mobile_sam_plugin.cli import main; main(sys.argv[1:])", *arguments)
    by_torch = [*map(str, arguments[:6]), "--out", str(tmp_path / "torch"), "--checkpoint"]
    assert main([*by_torch, "bundled"]) == 0
    ours, theirs = (
        json.loads((tmp_path / each / "coffee" / "masks.json").read_text())
        for each in (backend, "torch")
    )
    assert len(ours) == 1
    assert ours[0]["area"] == pytest.approx(theirs[0]["area"], rel=1e-3, abs=5)
    assert ours[0]["predicted_iou"] == pytest.approx(theirs[0]["predicted_iou"], abs=1e-3)


SEARCH: dict[str, Any] = {
    "points_per_side": 2,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
}


@pytest.mark.process
def test_commands_find_everything_without_torch(
    tiny_files: Files, tiny_sam: MobileSam, coffee: Pixels, tmp_path: Path
) -> None:
    shutil.copy(PHOTOGRAPHS / "coffee.png", tmp_path)
    search = [f"--{name.replace('_', '-')}={value}" for name, value in SEARCH.items()]
    options = [*search, "--backend", "onnx", "--onnx-dir", str(tiny_files[0].parent)]
    code = """
from mobile_sam_plugin.cli import main
image, out, *options = sys.argv[1:]
for command in ("everything", "annotate"):
    assert main([command, image, "--out", f"{out}/{command}", *options]) == 0
"""
    run_without_torch(code, tmp_path / "coffee.png", tmp_path, *options)
    expected = SamAutomaticMaskGenerator(tiny_sam, output_mode="coco_rle", **SEARCH)
    records = drop_empty(expected.generate(coffee))
    assert len(records) > 3
    everything = json.loads((tmp_path / "everything" / "coffee" / "masks.json").read_text())
    annotated = json.loads((tmp_path / "annotate" / "sa1b" / "coffee.json").read_text())
    for found in (everything, annotated["annotations"]):
        # JSON has more fields than records.
        ours = [{name: record[name] for name in records[0]} for record in found]
        assert_same_records(ours, records)


def test_annotation_of_boxes_is_that_of_torch(
    tiny_files: Files, tiny_sam: MobileSam, tmp_path: Path
) -> None:
    shutil.copy(PHOTOGRAPHS / "coffee.png", tmp_path)
    boxes = [[170, 10, 260, 290], [20, 20, 200, 200]]
    content = {
        "images": [{"id": 1, "file_name": "coffee.png", "width": 600, "height": 400}],
        "annotations": [
            {"id": 1 + i, "image_id": 1, "category_id": 1, "bbox": box}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    graphs = OnnxPredictor(*tiny_files)
    (ours,), (theirs,) = (
        annotate(tmp_path / "boxes.json", model=model, mode="boxes") for model in (graphs, tiny_sam)
    )
    assert len(ours.records) == 2 and ours.error is None
    assert_same_records(ours.records, theirs.records)
    assert not graphs.is_image_set, "the client's predictor is left alone"


def test_annotation_goes_on_with_the_same_files_alone(
    tiny_files: Files, tiny_sam: MobileSam, tmp_path: Path
) -> None:
    graphs, image = OnnxPredictor(*tiny_files), PHOTOGRAPHS / "coffee.png"
    (done,) = annotate(image, tmp_path, model=graphs, **SEARCH)
    assert done.error is None and not list(annotate(image, tmp_path, model=graphs, **SEARCH))
    with pytest.raises(UserError, match="holds another run .*encoder_sha256"):
        annotate(image, tmp_path, model=tiny_sam, **SEARCH)
    with pytest.raises(UserError, match="mode text finds objects by torch"):
        annotate(image, model=graphs, mode="text", text="a cup")
    run = AnnotationRun(open_source(image), None, graphs, AnnotationOptions())
    with pytest.raises(UserError, match="--engine local"):
        run.run_on_ray()


@pytest.mark.parametrize(
    "options",
    [
        {"output_mode": "coco_rle", "points_per_batch": 5},
        {"points_per_side": 3, "crop_n_layers": 1, "min_mask_region_area": 100},
        {"output_mode": "uncompressed_rle", "pred_iou_thresh": 0.0, "points_per_side": 2},
        {"search": "hierarchical", "pred_iou_thresh": 0.0, "points_per_side": 6},
    ],
    ids=["rle", "crops", "every mask", "hierarchical"],
)
def test_generator_finds_what_torchs_does(
    small_files: Files, small_sam: MobileSam, coffee: Pixels, options: dict[str, Any]
) -> None:
    settings = {
        "points_per_side": 5,
        "pred_iou_thresh": 0.2,
        "stability_score_thresh": 0.3,
        "stability_score_offset": 0.3,
        **options,
    }
    expected = SamAutomaticMaskGenerator(small_sam, **settings).generate(coffee)
    assert len(expected) > 2
    predictor = OnnxPredictor(*small_files)
    told: list[tuple[int, int]] = []
    generator = OnnxAutomaticMaskGenerator(predictor, **settings)
    assert_same_records(generator.generate(coffee, lambda *each: told.append(each)), expected)
    assert (
        told[-1][0]
        == told[-1][1]
        == sum(4**layer * len(grid) for layer, grid in enumerate(generator.point_grids))
    )
    assert not predictor.is_image_set, "the client's predictor is left alone"


@pytest.mark.parametrize(
    "proposals", [[[170, 10, 430, 300], [0, 0, 200, 200]], [[300, 130], [20, 20]]]
)
def test_generator_takes_the_proposals_that_torchs_takes(
    small_predictor: OnnxPredictor, small_sam: MobileSam, coffee: Pixels, proposals: Any
) -> None:
    options: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    expected = SamAutomaticMaskGenerator(small_sam, **options, search="proposals").generate(
        coffee, proposals=proposals
    )
    generator = OnnxAutomaticMaskGenerator(small_predictor, **options, search="proposals")
    assert_same_records(generator.generate(coffee, proposals=proposals), expected)
    assert len(expected) >= 2


def test_generator_refuses_contradictions(small_predictor: OnnxPredictor) -> None:
    for options, message in (
        ({"points_per_side": None}, "either points_per_side or point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "either points_per_side or point_grids"),
        ({"output_mode": "polygon"}, "output_mode must be one of .* not 'polygon'"),
    ):
        with pytest.raises(ValueError, match=message):
            OnnxAutomaticMaskGenerator(small_predictor, **options)


def test_export_command(exported_with_preprocessing: tuple[Path, str]) -> None:
    folder, printed = exported_with_preprocessing
    encoder, decoder, masks = printed.splitlines()
    figures = r"\d\S* of torch  \d+\.\d{3} s \(torch \d+\.\d{3} s\)"
    for line, path, what in zip(
        (encoder, decoder), named(folder), ("embeddings", "low-res logits"), strict=True
    ):
        megabytes = path.stat().st_size / 1e6
        start = f"{path}  {megabytes:.1f} MB  {what} within "
        assert re.fullmatch(re.escape(start) + figures, line), line
    assert masks.startswith("mask IoU with torch 0.99") or masks.endswith("1.0000")


def test_preprocessing_in_the_graph(
    exported_with_preprocessing: tuple[Path, str], tiny_reference: SamPredictor
) -> None:
    paths = named(exported_with_preprocessing[0])
    onnx.checker.check_model(paths[0], full_check=True)
    session = onnxruntime.InferenceSession(paths[0], providers=["CPUExecutionProvider"])
    (picture,) = session.get_inputs()
    assert (picture.type, picture.shape) == ("tensor(uint8)", ["height", "width", 3])
    predictor = OnnxPredictor(*paths)
    for name, size in [*SHAPES, ("rocket.jpg", (1500, 1333))]:
        pixels = photograph(name, size)
        predictor.set_image(pixels[..., ::-1], image_format="BGR")
        tiny_reference.set_image(pixels)
        embeddings = tiny_reference.get_image_embedding().numpy()
        np.testing.assert_allclose(predictor.get_image_embedding(), embeddings, rtol=0, atol=0.02)
        ours, theirs = (each.predict([[150, 120]], [1]) for each in (predictor, tiny_reference))
        assert (ours[0] == theirs[0]).mean() >= 0.999
        np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-3)


def test_openvino_preprocesses(
    small_files: Files, small_reference: SamPredictor, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    encoder = Path(shutil.copy(small_files[0], tmp_path))
    _add_preprocessing(encoder, size=224, opset=18)
    predictor = OpenVinoPredictor(encoder, small_files[1])
    for name, size in SHAPES[:2]:
        pixels = photograph(name, size)
        predictor.set_image(pixels)
        small_reference.set_image(pixels)
        assert predictor.input_size == small_reference.input_size
        ours, theirs = (each.predict([[150, 120]], [1]) for each in (predictor, small_reference))
        # It rounds otherwise than Pillow when it resizes: by one step of 255, here and there.
        assert (ours[0] == theirs[0]).mean() >= 0.98
        np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("kind", "precision", "opset", "with_preprocessing"),
    [
        ("small", "fp16", None, True),
        ("tiny", "fp16", 20, False),
        ("tiny", "int8", 18, False),
        ("small", "int8", None, True),
    ],
)
def test_smaller_files(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kind: str,
    precision: str,
    opset: int | None,
    with_preprocessing: bool,
) -> None:
    sam, whole_files = (request.getfixturevalue(f"{kind}_{what}") for what in ("sam", "files"))
    photographs = [PHOTOGRAPHS / name for name in ("coffee.png", "chelsea.png")]
    # How well int8 does depends on the weights, so little is asked of its masks here.
    options: dict[str, Any] = {"with_preprocessing": with_preprocessing, "force": True}
    found = export(sam, tmp_path, photographs, precision, opset, **options)
    encoder, decoder = found
    whole = [path.stat().st_size / 1e6 for path in whole_files]
    assert encoder.megabytes < (0.6 if precision == "fp16" else 0.4) * whole[0]
    assert decoder.megabytes < (0.6 if precision == "fp16" else 1.1) * whole[1]
    assert encoder.mask_iou == decoder.mask_iou > (0.9 if precision == "fp16" else 0.3)
    predictor = OnnxPredictor(*named(tmp_path))
    predictor.set_image(photograph("coffee.png"))
    masks, scores, logits = predictor.predict([[300, 200]], [1])
    assert (masks.dtype, scores.dtype, logits.dtype) == (bool, np.float32, np.float32)
    model = onnx.load(encoder.path)
    onnx.checker.check_model(model, full_check=True)
    onnx.checker.check_model(decoder.path, full_check=True)
    assert model.opset_import[0].version == (opset or {"fp16": 18, "int8": 20}[precision])
    weights = {
        onnx.TensorProto.DataType.Name(each.data_type)
        for each in model.graph.initializer
        if np.prod(each.dims) > 1000
    }
    assert {"fp16": "FLOAT16", "int8": "INT8"}[precision] in weights


def half_feeds(size: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    feeds: dict[str, Any] = {
        "image_embeddings": np.random.default_rng(0).normal(size=(1, 256, 14, 14)) * 0.2,
        "point_coords": [[[150.3, 100.7], [2.0**24, -(2.0**24)]]],
        "point_labels": [[1, 0]],
        "mask_input": np.zeros((1, 1, 56, 56)),
        "has_mask_input": np.zeros(1),
        "orig_im_size": size,
    }
    return {name: np.array(value, np.float32) for name, value in feeds.items()}


@pytest.mark.parametrize("size", [(400, 600), (2001, 3001), (1365, 2049), (3023, 4031)])
def test_half_precision_keeps_sizes_and_places(
    half_decoder: Files, small_sam: MobileSam, size: tuple[int, int]
) -> None:
    """There is no 2001 in half precision, and no 700.25."""
    whole, half = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in half_decoder
    )
    given = half_feeds(size)
    masks, scores, logits = half.run(None, given)
    _, expected_scores, expected = whole.run(None, given)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=5e-3)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.1)
    assert masks.shape == (1, 4, *size)
    upscaler = MaskUpscaler(input_size(*size, 224), size, (56, 56), 224)
    for mask, low_res in zip(masks[0] > 0, logits[0], strict=True):
        assert (mask == upscaler.binary_mask(low_res)).mean() > 0.999


@pytest.fixture(scope="module")
def half_decoder(small_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The decoder, and in half precision."""
    half = tmp_path_factory.mktemp("half") / "decoder.onnx"
    shutil.copy(small_files[1], half)
    feeds = half_feeds((400, 600))
    assert _halve(half, lambda: [feeds]) == [], "the bundled weights are safe"
    return small_files[1], half


@pytest.mark.parametrize("scale", [30, 3000])
def test_half_precision_keeps_in_float32_what_overflows(
    small_sam: MobileSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """A norm takes the scale out again, so the embeddings stay as they are."""
    sam = copy.deepcopy(small_sam)
    with torch.no_grad():
        sam.image_encoder.neck[0].weight.mul_(scale)
    arguments: dict[str, Any] = {
        "model": sam,
        "folder": tmp_path,
        "images": [PHOTOGRAPHS / "coffee.png"],
        "precision": "fp16",
    }
    encoder, decoder = export(**arguments)
    assert {"/neck/neck.1/Pow", "/neck/neck.1/ReduceMean_1"} <= set(encoder.kept)
    assert ("/neck/neck.0/Conv" in encoder.kept) == (scale == 3000)
    assert all(name.startswith(("/neck/", "/stages/stages.3/")) for name in encoder.kept)
    assert decoder.kept == () and encoder.mask_iou > 0.98
    predictor, reference = OnnxPredictor(*named(tmp_path)), SamPredictor(sam)
    for each in (predictor, reference):
        each.set_image(photograph("coffee.png"))
    np.testing.assert_allclose(predictor.features, reference.features, rtol=0, atol=0.05)
    monkeypatch.setattr(onnx_export, "find_unsafe_nodes", lambda *_: [])
    with pytest.raises(ValueError, match=r"in fp16 the masks have an IoU of 0\.\d+ with"):
        export(**arguments)
    assert export(**arguments, force=True)[0].kept == ()


def test_half_precision_keeps_a_softmax_of_large_scores_in_float32(tmp_path: Path) -> None:
    """At 2048 half precision tells whole numbers apart at best; softmax makes ratios of them."""
    graph = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        scores (float[1, 4] x, float[4, 4] w) => (float[1, 4] y) {
            [product] s = MatMul (x, w)
            [softmax] y = Softmax (s)
        }"""
    )
    x, w = np.array([[2048.3, 2047.6, 2046.9, 2047]], np.float32), np.eye(4, dtype=np.float32)
    assert find_unsafe_nodes(graph, lambda: [{"x": x, "w": w}], []) == ["product", "softmax"]
    assert find_unsafe_nodes(graph, lambda: [{"x": x / 2048, "w": w}], []) == []


def test_export_checks_the_masks_that_the_graph_upscales(
    tiny_sam: MobileSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_nodes_between", lambda *_: [])  # all in half precision
    with pytest.raises(ValueError, match="in fp16 the masks have an IoU of 0.000"):
        export(tiny_sam, tmp_path, [PHOTOGRAPHS / "coffee.png"], "fp16")
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_one_file_are_not_lost(
    tiny_sam: MobileSam,
    coffee: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 1_000_000)
    arguments: Any = [tiny_sam, tmp_path, [PHOTOGRAPHS / "coffee.png"], "fp16"]
    encoder, decoder = export(*arguments)
    names = [path.name for path in named(tmp_path)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*names, *(f"{name}.data" for name in names)]
    )
    assert encoder.path.stat().st_size < 1e6 < 1e6 * encoder.megabytes
    predictor = OnnxPredictor(*named(tmp_path))
    predictor.set_image(coffee)
    assert predictor.predict([[300, 200]], [1])[0].any()
    monkeypatch.undo()
    export(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_photographs_are_checked_first_and_held_one_at_a_time(
    tiny_sam: MobileSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [PHOTOGRAPHS / name for name in ("coffee.png", "chelsea.png", "rocket.jpg")]
    (tmp_path / "broken.png").write_text("no image")
    Image.new("L", (9000, 1)).save(tmp_path / "thin.png")
    for name, message in (("broken.png", "broken.png' is not an image"), ("thin.png", "too thin")):
        with pytest.raises(ValueError, match=message):
            export(tiny_sam, tmp_path / "out", [*good, tmp_path / name], "int8")
        assert not (tmp_path / "out").exists()
    loaded: list[weakref.ref[Pixels]] = []
    held = []

    def load(path: Path) -> Pixels:
        pixels = load_image(path)
        held.append(sum(each() is not None for each in loaded))
        loaded.append(weakref.ref(pixels))
        return pixels

    for module in (onnx_export, comparison):
        monkeypatch.setattr(module, "load_image", load)
    export(tiny_sam, tmp_path / "out", good, "int8", force=True)
    assert len(held) == 7 and max(held) <= 1


def test_decoder_without_the_upscaling(
    small_files: Files, small_predictor: OnnxPredictor, coffee: Pixels, tmp_path: Path
) -> None:
    """As docs/how-to/tensorrt.md cuts it."""
    names = list(DECODER_INPUTS)[:-1]
    cut = tmp_path / "mobile_sam_decoder_low_res.onnx"
    onnx.utils.extract_model(
        str(small_files[1]), str(cut), names, ["iou_predictions", "low_res_masks"]
    )
    session = onnxruntime.InferenceSession(cut, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == names
    predictor = small_predictor
    predictor.set_image(coffee)
    scale = np.array([224 / 600, 149 / 400], np.float32)  # whole pixels: 149, not 149.3
    box = np.array([[[170, 10], [430, 300]]], np.float32) * scale
    labels, mask_input = np.array([[2, 3]], np.float32), np.zeros((1, 1, 56, 56), np.float32)
    feeds = (predictor.features, box, labels, mask_input, np.zeros(1, np.float32))
    scores, logits = session.run(None, dict(zip(names, feeds, strict=True)))
    _, expected_scores, expected = predictor.predict(box=[170, 10, 430, 300])
    np.testing.assert_allclose(scores[0, 1:], expected_scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits[0, 1:], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_masks_unlike_those_of_torch_are_not_written(
    tiny_sam: MobileSam, tmp_path: Path, precision: str
) -> None:
    """Weights too small for half precision; and a channel beside which 8 bits lose all others."""
    sam = copy.deepcopy(tiny_sam)
    with torch.no_grad():
        if precision == "fp16":
            sam.image_encoder.neck[2].weight.mul_(1e-9)
            sam.image_encoder.neck[3].eps = 1e-24
        else:
            norm, convolution = sam.image_encoder.neck[1:3]
            norm.weight[0] *= 1e4
            norm.bias[0] *= 1e4
            convolution.weight[:, 0] /= 1e4
    photographs = [PHOTOGRAPHS / "coffee.png"]
    message = (
        rf"in {precision} the masks have an IoU of .* below 0.9.?: nothing was written; .*force"
    )
    with pytest.raises(ValueError, match=message):
        export(sam, tmp_path, photographs, precision)
    assert list(tmp_path.iterdir()) == []
    export(sam, tmp_path, photographs, precision, force=True)
    assert sorted(tmp_path.iterdir()) == sorted(named(tmp_path), key=lambda path: path.name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "one of fp32, fp16, int8, not 'int4'"),
        ({"opset": 16}, "17 to 20, not 16"),
        ({"opset": 17, "with_preprocessing": True}, "opset 18 or later, not 17"),
        ({"images": []}, "at least one path"),
    ],
)
def test_export_refuses(
    tiny_sam: MobileSam, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    arguments = {"images": [PHOTOGRAPHS / "coffee.png"], **options}
    with pytest.raises(ValueError, match=message):
        export(tiny_sam, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_export_refuses_an_adapted_decoder(own_sam: MobileSam, tmp_path: Path) -> None:
    hook = own_sam.mask_decoder.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="the mask decoder is not SAM's own"):
        export(own_sam, tmp_path / "out", [PHOTOGRAPHS / "coffee.png"], force=True)
    hook.remove()
    assert not (tmp_path / "out").exists()


def test_export_refuses_half_precision(own_sam: MobileSam, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float32 on the CPU, not torch.float16"):
        export(own_sam.half(), tmp_path, [PHOTOGRAPHS / "coffee.png"])
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        export(own_sam.float(), tmp_path, [tmp_path / "nowhere.png"])


@pytest.fixture(params=["onnxruntime", "openvino"])
def runtime(request: pytest.FixtureRequest) -> type[OnnxPredictor]:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return OnnxPredictor if request.param == "onnxruntime" else OpenVinoPredictor


def test_wrong_files_are_told_in_one_line(
    runtime: type[OnnxPredictor], tiny_files: Files, files: Files, tmp_path: Path
) -> None:
    encoder, decoder = tiny_files
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(encoder.read_bytes()[:-1_000_000])
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    other = tmp_path / "other.onnx"
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [value],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), other)
    for first, second, error, message in (
        (tmp_path / "nowhere.onnx", decoder, FileNotFoundError, "no file '.*nowhere.onnx'"),
        (encoder, tmp_path, FileNotFoundError, "no file"),
        (damaged, decoder, ValueError, "cannot r(ead|un) '.*damaged.onnx' as an ONNX model"),
        (encoder, text, ValueError, "cannot r(ead|un) '.*text.onnx' as an ONNX model"),
        (decoder, encoder, ValueError, "decoder.onnx' is the mask decoder, not .* swap"),
        (encoder, encoder, ValueError, "encoder.onnx' is an image encoder, not .* swap"),
        (other, decoder, ValueError, "other.onnx' is not an image encoder"),
        (encoder, other, ValueError, "other.onnx' is not a mask decoder .* lacks"),
        (encoder, files[1], ValueError, r"decoder.onnx' needs .*, 256, 64, 64\), but .*16"),
    ):
        with pytest.raises(error, match=message) as caught:
            runtime(first, second)
        assert "\n" not in str(caught.value)


def test_a_decoder_that_takes_or_gives_something_else(
    runtime: type[OnnxPredictor], tiny_files: Files, tmp_path: Path
) -> None:
    encoder, decoder = tiny_files
    model = onnx.load(decoder)
    extra = onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [1])
    model.graph.input.append(extra)
    onnx.save(model, tmp_path / "more.onnx")
    with pytest.raises(ValueError, match=r"more.onnx' is not a mask decoder .* takes extra"):
        runtime(encoder, tmp_path / "more.onnx")
    constants = {
        "iou_predictions": np.ones((1, 4), np.float32),
        "low_res_masks": np.ones((1, 4, 8, 8), np.float32),
    }
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [f"{name}_"], [name]) for name in constants],
        "constants",
        [*model.graph.input][:-1],
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape)
            for name, value in constants.items()
        ],
        [onnx.numpy_helper.from_array(value, f"{name}_") for name, value in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "c")
    predictor = runtime(encoder, (tmp_path / "c").rename(tmp_path / "constants.onnx"))
    predictor.set_image(np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(ValueError, match=r"gives logits of the shape \(1, 4, 8, 8\), float32, not"):
        predictor.predict([[3, 3]], [1])
    (embeddings,) = (value for value in graph.input if value.name == "image_embeddings")
    del embeddings.type.tensor_type.shape.dim[3]
    flat = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.save(flat, tmp_path / "flat.onnx")
    with pytest.raises(ValueError, match=r"flat.onnx' is not a mask decoder .* of 4 dimensions"):
        runtime(encoder, tmp_path / "flat.onnx")


def test_missing_provider_and_device(tiny_files: Files) -> None:
    with pytest.raises(ValueError, match="no execution provider 'NoSuch', only .*CPUExecution"):
        OnnxPredictor(*tiny_files, providers=["NoSuch"])
    with pytest.raises(ValueError, match="at least one execution provider"):
        OnnxPredictor(*tiny_files, providers=[])
    for wrong in ([7], [("CPUExecutionProvider", 7)], [("CPUExecutionProvider",)]):
        with pytest.raises(TypeError, match="names, or pairs of a name and a dict of options"):
            OnnxPredictor(*tiny_files, providers=wrong)  # type: ignore[arg-type]
    pytest.importorskip("openvino", reason="openvino is not installed")
    with pytest.raises(ValueError, match="OpenVINO has no device 'NPU9' here, only .*CPU"):
        OpenVinoPredictor(*tiny_files, device="NPU9")


def test_providers_are_what_onnxruntime_takes(tiny_files: Files, coffee: Pixels) -> None:
    options = {"arena_extend_strategy": "kSameAsRequested"}
    each: list[Any] = ["CPUExecutionProvider", [("CPUExecutionProvider", options)], ("CPU",)]
    for providers in each[:2]:
        predictor = OnnxPredictor(*tiny_files, providers=providers)
        predictor.set_image(coffee)
        assert predictor.predict([[300, 200]], [1])[0].any()
    with pytest.raises(ValueError, match="no execution provider 'CPU'"):
        OnnxPredictor(*tiny_files, providers=each[2])


def test_copies_and_pickles_open_the_files_again(
    runtime: type[OnnxPredictor],
    tiny_files: Files,
    coffee: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path in tiny_files:
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    predictor = runtime(*(path.name for path in tiny_files))
    predictor.set_image(coffee)
    expected = predictor.predict([[300, 200]], [1])
    pickled = pickle.dumps(predictor)
    assert len(pickled) < 2e6, "the weights are in it"
    monkeypatch.chdir("/")
    for copied in (pickle.loads(pickled), copy.deepcopy(predictor), copy.copy(predictor)):
        assert type(copied) is runtime and copied.original_size == (400, 600)
        assert_same(copied.predict([[300, 200]], [1]), expected)
    (tmp_path / tiny_files[0].name).unlink()
    with pytest.raises(FileNotFoundError, match="mobile_sam_encoder.onnx"):
        pickle.loads(pickled)


def test_threads_share_a_predictor(
    runtime: type[OnnxPredictor], tiny_files: Files, coffee: Pixels
) -> None:
    predictor = runtime(*tiny_files)
    predictor.set_image(coffee)
    points = [[[x, 200]] for x in range(50, 600, 50)]
    expected = [predictor.predict(point, [1]) for point in points]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda point: predictor.predict(point, [1]), points))
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


def test_masks_of_the_images_size_are_prompts(
    runtime: type[OnnxPredictor], tiny_files: Files, coffee: Pixels
) -> None:
    predictor = runtime(*tiny_files)
    predictor.set_image(coffee)
    mask = np.zeros((400, 600), bool)
    mask[80:300, 200:400] = True
    logits = mask_to_logits(mask, (64, 64), predictor.input_size)
    click: dict[str, Any] = {"point_coords": [[300, 200]], "point_labels": [1]}
    expected = predictor.predict(**click, mask_input=logits)
    assert np.abs(expected[2] - predictor.predict(**click)[2]).max() > 0.1
    assert_same(predictor.predict(**click, mask_input=mask), expected)
    masks = np.stack([mask[None]] * 2).astype(np.uint8) * 255
    batch = predictor.predict_batch([[[300, 200]]] * 2, [[1]] * 2, mask_input=masks)
    for index in range(2):
        assert_same(tuple(each[index] for each in batch), expected)


def test_generator_refuses_options_and_takes_small_images(tiny_files: Files) -> None:
    predictor = OnnxPredictor(*tiny_files)
    for options, message in (
        ({"pred_iou_thresh": 88}, "pred_iou_thresh must be at most 1"),
        ({"points_per_side": None, "point_grids": []}, "point_grids must hold"),
        ({"crop_overlap_ratio": 1.5}, "crop_overlap_ratio must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            OnnxAutomaticMaskGenerator(predictor, **options)
    generator = OnnxAutomaticMaskGenerator(
        predictor, 1, pred_iou_thresh=0, stability_score_thresh=0, crop_n_layers=2
    )
    for size in ((1, 1), (3, 700)):
        generator.generate(np.zeros((*size, 3), np.uint8))


def test_prompts_are_checked(tiny_files: Files, coffee: Pixels) -> None:
    predictor = OnnxPredictor(*tiny_files)
    for ask in (
        lambda: predictor.predict([[1, 1]], [1]),
        lambda: predictor.predict_batch(boxes=[[1, 1, 2, 2]]),
        predictor.get_image_embedding,
    ):
        with pytest.raises(RuntimeError, match="set_image"):
            ask()
    with pytest.raises(TypeError, match="uint8 .* not float64"):
        predictor.set_image(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'RGB' or 'BGR', not 'HSV'"):
        predictor.set_image(coffee, "HSV")
    with pytest.raises(ValueError, match="too thin"):
        predictor.set_image(np.zeros((1, 9000, 3), np.uint8))
    predictor.set_image(coffee)
    box = [[1, 1, 2, 2]]
    checks: list[tuple[dict[str, Any], str]] = [
        ({}, "give point_coords and point_labels, boxes or mask_input"),
        ({"boxes": [1, 2, 3, 4]}, r"shape \(B, 4\), not \(4,\)"),
        ({"point_coords": [[1, 2]], "point_labels": [[1]]}, r"shape \(B, N, 2\), not \(1, 2\)"),
        ({"point_coords": [[[1, 2]]]}, "point_coords came without point_labels"),
        ({"boxes": [[1, 2, 3, np.nan]]}, "NaN or infinity"),
        ({"boxes": [[1, 2, 3, 1e38]]}, "boxes holds 1e.38"),
        ({"boxes": box, "mask_input": np.zeros((1, 256, 256))}, r"mask_input must be low-res"),
        ({"boxes": box, "mask_input": np.full((1, 1, 64, 64), 1e5)}, "mask_input holds 1"),
        (
            {"boxes": box * 2, "point_coords": [[[1, 2]]], "point_labels": [[1]]},
            "equally many, not .*boxes': 2",
        ),
    ]
    for prompt, message in checks:
        with pytest.raises(ValueError, match=message):
            predictor.predict_batch(**prompt)
    with pytest.raises(ValueError, match=r"box must be 4 numbers"):
        predictor.predict(box=[1, 2, 3])
    predictor.reset_image()
    assert not predictor.is_image_set


def test_openvino_gives_the_same(
    small_files: Files, small_reference: SamPredictor, coffee: Pixels
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    predictor, reference = OpenVinoPredictor(*small_files), small_reference
    predictor.set_image(coffee)
    reference.set_image(coffee)
    assert_parity(predictor, reference)
    ours = predictor.predict_batch(boxes=[[60, 40, 280, 250], [90, 80, 500, 390]])
    boxes = torch.tensor([[60, 40, 280, 250], [90, 80, 500, 390]])
    boxes = reference.transform.apply_boxes_torch(boxes, reference.original_size)
    assert_same(ours, tuple(e.numpy() for e in reference.predict_torch(None, None, boxes)))


@pytest.mark.process
def test_openvino_predictors_survive_the_end_of_a_child(tiny_files: Files) -> None:
    """Two whose lives overlap share OpenVINO's core; two cores would leave a freed signal stack."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    code = """
import signal, subprocess
from mobile_sam_plugin.deploy import OpenVinoPredictor
signal.signal(signal.SIGCHLD, lambda *_: None)
first = OpenVinoPredictor(*sys.argv[1:])
second = OpenVinoPredictor(*sys.argv[1:])
del first
del second
for _ in range(3):
    subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""
    assert run_without_torch(code, *tiny_files) == "alive\n"


def test_commands_tell_mistakes_in_one_line(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for path, other in zip(named(swapped), files[::-1], strict=True):
        shutil.copy(other, path)
    picture = str(PHOTOGRAPHS / "coffee.png")
    segment = ["segment", picture, "--point", "9,9", "--out", str(tmp_path / "out")]
    good = str(files[0].parent)
    annotating = ["annotate", picture, "--out", str(tmp_path / "out")]
    annotating += ["--backend", "onnx", "--onnx-dir", good]
    for arguments, message in (
        ([*segment, "--backend", "onnx"], "required for --backend onnx"),
        ([*segment, "--onnx-dir", good], "required for --backend onnx"),
        (
            [*segment, "--backend", "onnx", "--onnx-dir", good, "--checkpoint", "x"],
            "contain their weights",
        ),
        ([*segment, "--backend", "onnx", "--onnx-dir", str(swapped)], "swap the two files"),
        (
            [*segment, "--backend", "onnx", "--onnx-dir", str(PHOTOGRAPHS)],
            "mobile-sam export writes",
        ),
        ([*segment, "--backend", "onnx", "--onnx-dir", good, "--device", "NoSuch"], "no execution"),
        ([*annotating, "--mode", "text", "--text", "a cup"], "needs --backend torch"),
        ([*annotating, "--engine", "ray"], "needs --backend torch"),
        ([*annotating, "--model-type", "vit_b"], "needs --backend torch"),
        (["everything", *annotating[1:], "--checkpoint", "x"], "contain their weights"),
        (["app", "--backend", "onnx"], "required for --backend onnx"),
        (["export", "--out", good, "--opset", "16"], "'--opset'"),
        (["export", "--out", good, "--precision", "int4"], "int4"),
        (["export", "--out", good, "--images", str(tmp_path)], "there is no image in"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "out").exists()
