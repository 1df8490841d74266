"""Files for other people's programs, called here as each of them does."""

import json
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from segment_anything.utils.onnx import SamOnnxModel

from mobile_sam_plugin import MobileSam, SamPredictor, build_sam_vit_t
from mobile_sam_plugin.cli.export import Target
from mobile_sam_plugin.deploy import export
from mobile_sam_plugin.deploy.clients import CLIENTS

from ..conftest import PHOTOGRAPHS, REFERENCE

FloatArray = NDArray[np.float32]
ENCODER, DECODER = "mobile_sam_encoder.onnx", "mobile_sam_decoder.onnx"
POINT = [330, 150]  # XY on coffee.png
SAME = {"x-anylabeling": "anylabeling", "sam-web-demo": "label-studio"}
DIFFERENT = [client for client in CLIENTS if client not in SAME]


@pytest.fixture(scope="module")
def sam(tiny_file: Path) -> MobileSam:
    """For images of 1024 x 1024 pixels, the size that most of the programs are written for."""
    return build_sam_vit_t(tiny_file)


@pytest.fixture(scope="module")
def folder(
    sam: MobileSam, bundled_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of files for each program, of the bundled weights for ISAT, which has TinyViT."""
    whole = tmp_path_factory.mktemp("clients")
    for client in DIFFERENT:
        model = bundled_sam if client == "isat" else sam
        found = export(model, whole / client, [PHOTOGRAPHS / "coffee.png"], client=client)
        assert all(each.mask_iou > 0.99 and each.path.is_file() for each in found), client
    return whole


@pytest.fixture
def predictor(sam: MobileSam, coffee: NDArray[np.uint8]) -> SamPredictor:
    predictor = SamPredictor(sam)
    predictor.set_image(coffee)
    return predictor


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def overlap(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    assert mask.shape == other.shape and other.any()
    return float((mask & other).sum() / (mask | other).sum())


def best_of(predictor: SamPredictor, **prompt: Any) -> NDArray[np.bool_]:
    masks, scores, _ = predictor.predict(**prompt)
    best: NDArray[np.bool_] = masks[scores.argmax()]
    return best


def test_the_command_offers_every_client() -> None:
    assert get_args(Target) == tuple(CLIENTS)


def test_programs_that_load_the_same() -> None:
    for client, other in SAME.items():
        assert CLIENTS[client] == CLIENTS[other]


def test_files(folder: Path) -> None:
    files = {
        client: sorted(
            path.relative_to(folder / client).as_posix()
            for path in (folder / client).rglob("*")
            if path.is_file()
        )
        for client in DIFFERENT
    }
    pair = [DECODER, ENCODER]
    assert files == {
        "samexporter": pair,
        "anylabeling": ["config.yaml", *pair],
        "isat": ["mobile_sam.pt", *pair],
        "label-studio": ["sam_onnx_quantized_example.onnx"],
        "transformers.js": [
            "config.json",
            "onnx/prompt_encoder_mask_decoder.onnx",
            "onnx/vision_encoder.onnx",
            "preprocessor_config.json",
        ],
        "upstream": ["sam_onnx_example.onnx"],
    }


@pytest.mark.parametrize("client", ["samexporter", "anylabeling"])
def test_labeling_programs(
    folder: Path, sam: MobileSam, coffee: NDArray[np.uint8], client: str
) -> None:
    """They warp an image to 684 x 1024 pixels, with black around it, and pad boxes, too."""
    target = (684, 1024)
    scale = min(1024 / 600, 684 / 400)
    matrix = np.array([[scale, 0, 0], [0, scale, 0]])
    canvas = cv2.warpAffine(coffee, matrix, target[::-1], flags=cv2.INTER_LINEAR)
    encoder, decoder = (session(folder / client / name) for name in (ENCODER, DECODER))
    name = encoder.get_inputs()[0].name
    embeddings = encoder.run(None, {name: canvas.astype(np.float32)})[0]
    predictor = SamPredictor(sam)
    predictor.set_image(canvas)
    np.testing.assert_allclose(embeddings, predictor.features.numpy(), rtol=0, atol=1e-3)
    point, pad = np.array(POINT) * scale, [0.0, 0.0]
    box = np.array([200, 60, 430, 300]) * scale
    for points, labels, prompt in (
        ([point, pad], [1, -1], {"point_coords": [point], "point_labels": [1]}),
        (
            [box[:2], box[2:], pad],
            [2, 3, -1],
            {"point_coords": [pad], "point_labels": [-1], "box": box, "multimask_output": False},
        ),
    ):
        masks, _, _ = decoder.run(
            None,
            {
                "image_embeddings": embeddings,
                "point_coords": np.array(points, np.float32)[None],
                "point_labels": np.array(labels, np.float32)[None],
                "mask_input": np.zeros((1, 1, 256, 256), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": np.array(target, np.float32),
            },
        )
        assert masks.shape == (1, 1, *target)
        assert overlap(masks[0][0] > 0, best_of(predictor, **prompt)) > 0.99


def test_labeling_programs_find_the_files(folder: Path) -> None:
    config = yaml.safe_load((folder / "anylabeling" / "config.yaml").read_text())
    assert config["type"] == "segment_anything"
    assert {"name", "display_name", "input_size", "max_width", "max_height"} <= set(config)
    for half in ("encoder", "decoder"):
        assert (folder / "anylabeling" / config[f"{half}_model_path"]).is_file()


@pytest.mark.parametrize("prompt", ["click", "box"])
def test_isat(folder: Path, bundled_sam: MobileSam, coffee: NDArray[np.uint8], prompt: str) -> None:
    """Its ``SamPredictorONNX`` was written for EdgeSAM, and adds no point to a prompt."""
    predictor = SamPredictor(bundled_sam)
    predictor.set_image(coffee)
    encoder, decoder = (session(folder / "isat" / name) for name in (ENCODER, DECODER))
    resized = np.asarray(Image.fromarray(coffee).resize((1024, 683), Image.Resampling.BILINEAR))
    mean, deviation = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    image = ((resized - mean) / deviation).transpose(2, 0, 1)[None]
    image = np.pad(image, ((0, 0), (0, 0), (0, 341), (0, 0))).astype(np.float32)
    embeddings = encoder.run(None, {"image": image})[0]
    click: dict[str, Any] = {"point_coords": [POINT], "point_labels": [1]}
    box: dict[str, Any] = {"box": [200, 60, 430, 300]}
    points, labels, expected = {
        "click": ([POINT], [1], predictor.predict(**click)),
        "box": ([[200, 60], [430, 300]], [2, 3], predictor.predict(**box)),
    }[prompt]
    coords = np.array(points) * [1024 / 600, 683 / 400]
    outputs = decoder.run(
        None,
        {
            "image_embeddings": embeddings,
            "point_coords": coords[None].astype(np.float32),
            "point_labels": np.array(labels, np.float32)[None],
        },
    )
    scores, low_res_masks = outputs[0], outputs[1]
    assert (scores.shape, low_res_masks.shape) == ((1, 4), (1, 4, 256, 256))
    np.testing.assert_allclose(scores[0, 1:], expected[1], rtol=0, atol=1e-3)
    np.testing.assert_allclose(low_res_masks[0, 1:], expected[2], rtol=0, atol=0.01)


def test_isat_loads_weights_strictly(folder: Path, bundled_sam: MobileSam) -> None:
    tensors = torch.load(folder / "isat" / "mobile_sam.pt", weights_only=True)
    manifest = json.loads((REFERENCE / "state_dict_manifest.json").read_text())
    assert set(tensors) == set(manifest)
    for name, tensor in bundled_sam.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


def decoder_feeds(predictor: SamPredictor, points: Any, labels: Any) -> dict[str, FloatArray]:
    """What everyone gives a decoder of SAM's own export."""
    coords = predictor.transform.apply_coords(np.array(points), predictor.original_size)
    feeds = {
        "image_embeddings": predictor.features.numpy(),
        "point_coords": coords[None],
        "point_labels": np.array(labels)[None],
        "mask_input": np.zeros((1, 1, 256, 256)),
        "has_mask_input": np.zeros(1),
        "orig_im_size": np.array(predictor.original_size),
    }
    return {name: value.astype(np.float32) for name, value in feeds.items()}


@pytest.mark.parametrize("client", ["label-studio", "upstream"])
@pytest.mark.parametrize("clicks", [1, 3])
def test_programs_that_load_the_decoder_alone(
    folder: Path, predictor: SamPredictor, client: str, clicks: int
) -> None:
    """Its outputs are those of SAM's ``SamOnnxModel``, for an image of any shape."""
    (path,) = (folder / client).iterdir()
    points = [POINT, [250, 120], [20, 30]][:clicks]
    feeds = decoder_feeds(predictor, [*points, [0, 0]], [1, 1, 0][:clicks] + [-1])
    decoder = session(path)
    assert [each.name for each in decoder.get_inputs()] == list(feeds)
    found = decoder.run(None, feeds)
    upstream = SamOnnxModel(predictor.model, return_single_mask=client != "upstream").eval()
    expected = upstream(*(torch.from_numpy(value) for value in feeds.values()))
    count = 4 if client == "upstream" else 1
    shapes = [(1, count, 400, 600), (1, count), (1, count, 256, 256)]
    assert [each.shape for each in found] == shapes
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-3)


def test_transformers_js(folder: Path, sam: MobileSam, coffee: NDArray[np.uint8]) -> None:
    """It resizes to whole pixels by flooring, keeps embeddings, and takes 8 bits unless told."""
    whole = folder / "transformers.js"
    config = json.loads((whole / "config.json").read_text())
    assert config["model_type"] == "sam"
    assert config["transformers.js_config"]["dtype"] == {
        "vision_encoder": "fp32",
        "prompt_encoder_mask_decoder": "fp32",
    }
    settings = json.loads((whole / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "SamImageProcessor"
    assert (settings["size"], settings["pad_size"]) == (
        {"longest_edge": 1024},
        {"height": 1024, "width": 1024},
    )
    predictor = SamPredictor(sam)
    pictures = []
    for pixels in (coffee, coffee[:, :300]):
        height, width = (int(side * 1024 / max(pixels.shape)) for side in pixels.shape[:2])
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        values = np.asarray(resized) * settings["rescale_factor"]
        normalised = (values - settings["image_mean"]) / settings["image_std"]
        padded = np.zeros((1024, 1024, 3))
        padded[:height, :width] = normalised
        pictures.append((padded.transpose(2, 0, 1).astype(np.float32), resized, pixels))
    encoder, decoder = (
        session(whole / "onnx" / f"{name}.onnx")
        for name in ("vision_encoder", "prompt_encoder_mask_decoder")
    )
    given = np.stack([picture for picture, _, _ in pictures])
    names = [each.name for each in encoder.get_outputs()]
    embeddings = dict(zip(names, encoder.run(None, {"pixel_values": given}), strict=True))
    assert set(embeddings) == {"image_embeddings", "image_positional_embeddings"}
    assert {value.shape for value in embeddings.values()} == {(2, 256, 64, 64)}
    # Two prompts of one point for each of two images, in the resized image.
    points = np.array([[[[500, 250]], [[100, 90]]], [[[300, 300]], [[90, 600]]]], np.float32)
    labels = np.ones((2, 2, 1), np.int64)
    scores, logits = decoder.run(
        ["iou_scores", "pred_masks"],
        {**embeddings, "input_points": points, "input_labels": labels},
    )
    assert (scores.shape, logits.shape) == ((2, 2, 3), (2, 2, 3, 256, 256))
    for image, (_, resized, pixels) in enumerate(pictures):
        tensor = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)[None]
        predictor.set_torch_image(tensor, pixels.shape[:2])
        for prompt in range(2):
            _, expected_scores, expected = predictor.predict_torch(
                torch.from_numpy(points[image, prompt][None]), torch.ones(1, 1)
            )
            np.testing.assert_allclose(scores[image, prompt], expected_scores[0], atol=1e-3)
            np.testing.assert_allclose(logits[image, prompt], expected[0], rtol=0, atol=0.02)


def test_transformers_js_takes_boxes_and_points_that_count_for_nothing(
    folder: Path, predictor: SamPredictor
) -> None:
    decoder = session(folder / "transformers.js" / "onnx" / "prompt_encoder_mask_decoder.onnx")
    feeds = decoder_feeds(predictor, [[200, 60], [430, 300]], [2, 3])
    positions = predictor.model.prompt_encoder.get_dense_pe().detach().numpy()
    given = {
        "image_embeddings": feeds["image_embeddings"],
        "image_positional_embeddings": positions,
        "input_points": feeds["point_coords"][None],
        "input_labels": np.array([[[2, 3]]]),
    }
    _, logits = decoder.run(None, given)
    _, _, expected = predictor.predict(box=[200, 60, 430, 300])
    np.testing.assert_allclose(logits[0, 0], expected, rtol=0, atol=0.01)
    ignored = np.array([[[1, -10]]])
    moved = given["input_points"] * np.array([[1], [0.3]], np.float32)
    there, elsewhere = (
        decoder.run(None, {**given, "input_points": points, "input_labels": ignored})[1]
        for points in (given["input_points"], moved)
    )
    np.testing.assert_array_equal(there, elsewhere)


def test_precisions_of_transformers_js_share_a_folder(sam: MobileSam, tmp_path: Path) -> None:
    for precision in ("fp16", "int8"):
        export(
            sam,
            tmp_path,
            [PHOTOGRAPHS / "coffee.png"],
            precision,
            client="transformers.js",
            force=True,
        )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["transformers.js_config"]["dtype"] == {
        "vision_encoder": "q8",
        "prompt_encoder_mask_decoder": "fp32",
    }
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == [
        "prompt_encoder_mask_decoder.onnx",
        "prompt_encoder_mask_decoder_fp16.onnx",
        "vision_encoder_fp16.onnx",
        "vision_encoder_quantized.onnx",
    ]


def test_contradictions_are_refused(sam: MobileSam, tmp_path: Path) -> None:
    photographs = [PHOTOGRAPHS / "coffee.png"]
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"client": "photoshop"}, "client must be one of samexporter, .* not 'photoshop'"),
        ({"client": "upstream", "precision": "int8"}, "upstream loads the mask decoder alone"),
        ({"client": "isat", "with_preprocessing": True}, "the encoder takes for isat is settled"),
        ({"client": "samexporter", "opset": 17}, "preprocessing needs opset 18"),
        ({"client": "isat"}, "isat loads no SAM but MobileSAM, with TinyViT"),
    ]
    for options, message in refusals:
        with pytest.raises(ValueError, match=message):
            export(sam, tmp_path / "out", photographs, **options)
    assert not (tmp_path / "out").exists()
