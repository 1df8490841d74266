"""Other people's programs on the files of ``mobile-sam export --for``: their own classes.

    python -m benchmarks.clients NAME SOURCE [--image PHOTOGRAPH] [--checkpoint CHECKPOINT]

NAME is a program as ``--for`` names it, SOURCE its checked-out repository, whose requirements are
installed. Printed are the IoU of its masks with those of ``SamPredictor``, for a click, two clicks
and a box, and the time of the image and of a prompt. Where a program resizes an image its own way,
or pads a box, ``SamPredictor`` is given the same.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import mobile_sam_plugin
from mobile_sam_plugin import SamPredictor, build_sam_vit_t
from mobile_sam_plugin.deploy import export

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
CLICKS = [[330, 150]], [1]
TWO_CLICKS = [[330, 150], [120, 330]], [1, 0]
BOX = [170, 10, 430, 300]
CANVAS = 684, 1024  # rows and columns of what samexporter and both AnyLabelings encode


def overlap(mask: Mask, other: Mask) -> float:
    return float((mask & other).sum() / (mask | other).sum())


def on_canvas(predictor: SamPredictor, pixels: Pixels) -> Callable[..., Mask]:
    """SamPredictor on the picture that the labeling programs encode, with a box padded."""
    height, width = pixels.shape[:2]
    scale = min(CANVAS[1] / width, CANVAS[0] / height)
    matrix = np.array([[scale, 0, 0], [0, scale, 0]])
    predictor.set_image(cv2.warpAffine(pixels, matrix, CANVAS[::-1], flags=cv2.INTER_LINEAR))

    def predict(points: Any = None, labels: Any = None, box: Any = None) -> Mask:
        if box is not None:
            points, labels = [[0, 0]], [-1]
        one = box is not None or len(points) > 1
        logits, scores, _ = predictor.predict(
            np.array(points) * scale,
            labels,
            None if box is None else np.array(box) * scale,
            multimask_output=not one,
            return_logits=True,
        )
        whole = cv2.invertAffineTransform(matrix)
        best: Mask = cv2.warpAffine(logits[scores.argmax()], whole, (width, height)) > 0
        return best

    return predict


def on_image(predictor: SamPredictor, pixels: Pixels) -> Callable[..., Mask]:
    """SamPredictor on the image, with the best mask of one click and the first of more."""
    predictor.set_image(pixels)

    def predict(points: Any = None, labels: Any = None, box: Any = None) -> Mask:
        one = box is not None or len(points) > 1
        masks, scores, _ = predictor.predict(points, labels, box, multimask_output=not one)
        best: Mask = masks[scores.argmax()]
        return best

    return predict


def marks(points: Any = None, labels: Any = None, box: Any = None) -> list[dict[str, Any]]:
    if box is not None:
        return [{"type": "rectangle", "data": box}]
    return [
        {"type": "point", "data": point, "label": label}
        for point, label in zip(points, labels, strict=True)
    ]


def open_samexporter(folder: Path, module: str = "samexporter.sam_onnx") -> Any:
    model = import_module(module).SegmentAnythingONNX(
        str(folder / "mobile_sam_encoder.onnx"), str(folder / "mobile_sam_decoder.onnx")
    )

    def encode(pixels: Pixels) -> Callable[..., Mask]:
        embedding = model.encode(pixels)
        return lambda **prompt: model.predict_masks(embedding, marks(**prompt))[0, 0] > 0

    return encode


def open_x_anylabeling(folder: Path) -> Any:
    """The class below the window's, which needs less to import; it has samexporter's methods."""
    return open_samexporter(folder, "anylabeling.services.auto_labeling.sam_onnx")


def open_labeling(folder: Path) -> Any:
    """The class that AnyLabeling's window loads from a config.yaml, and its model."""
    import yaml

    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["config_file"] = str(folder / "config.yaml")  # as their manager of models does
    program = import_module("anylabeling.services.auto_labeling.segment_anything").SegmentAnything(
        config, on_message=print
    )

    def encode(pixels: Pixels) -> Callable[..., Mask]:
        embedding = program.model.encode(pixels)

        def predict(**prompt: Any) -> Mask:
            masks = program.model.predict_masks(embedding, marks(**prompt))
            shapes = program.post_process(masks[0][0].copy())
            assert shapes and all(shape.shape_type == "polygon" for shape in shapes)
            mask: Mask = masks[0][0] > 0
            return mask

        return predict

    return encode


def open_isat(folder: Path) -> Any:
    """The class for ONNX files, which ISAT's window does not use."""
    model = import_module("ISAT.segment_any.edge_sam.onnx").SamPredictorONNX(
        str(folder / "mobile_sam_encoder.onnx"), str(folder / "mobile_sam_decoder.onnx")
    )

    def encode(pixels: Pixels) -> Callable[..., Mask]:
        model.set_image(pixels)

        def predict(points: Any = None, labels: Any = None, box: Any = None) -> Mask:
            if box is not None:
                points, labels = np.reshape(box, (2, 2)), [2, 3]
            masks, scores, _ = model.predict(np.array(points)[None], np.array(labels)[None])
            one = box is not None or len(points) > 1
            best: Mask = masks[0][0 if one else 1 + scores[0, 1:].argmax()]
            return best

        return predict

    return encode


def open_isat_checkpoint(folder: Path) -> Any:
    """What ISAT's window builds of mobile_sam.pt, in torch, and how it predicts."""
    program = import_module("ISAT.segment_any.mobile_sam")
    sam = program.sam_model_registry["vit_t"](checkpoint=str(folder / "mobile_sam.pt"))
    model = program.SamPredictor(sam.eval())

    def encode(pixels: Pixels) -> Callable[..., Mask]:
        model.set_image(pixels)

        def predict(points: Any = None, labels: Any = None, box: Any = None) -> Mask:
            one = box is not None or len(points) > 1
            points, labels, box = (
                None if given is None else np.array(given) for given in (points, labels, box)
            )
            masks, scores, _ = model.predict(points, labels, box, multimask_output=not one)
            best: Mask = masks[scores.argmax()]
            return best

        return predict

    return encode


def open_label_studio(folder: Path) -> Any:
    """The backend with SAM_CHOICE=ONNX; its image encoder is torch's, of a registry with vit_h."""
    mobile_sam_plugin.replace("vit_h")
    os.environ["ONNX_CHECKPOINT"] = str(folder / "sam_onnx_quantized_example.onnx")

    model = import_module("sam_predictor").SAMPredictor("ONNX")

    def encode(pixels: Pixels) -> Callable[..., Mask]:
        path = folder / "image.png"
        Image.fromarray(pixels).save(path)
        given: dict[str, Any] = {
            "img_path": str(path),
            "task": {"id": 1},
            "path_resolver": lambda name, task_id: name,
        }
        model.set_image(given["img_path"], True, given["task"], given["path_resolver"])

        def predict(points: Any = None, labels: Any = None, box: Any = None) -> Mask:
            if box is not None:  # it takes none without a click
                points, labels = [[300, 150]], [1]
            mask: Mask = model.predict(
                point_coords=points, point_labels=labels, input_box=box, **given
            )["masks"][0].astype(bool)
            return mask

        return predict

    return encode


# What --for is called with, where the program's classes lie, what opens them, and the reference.
PROGRAMS: dict[str, tuple[str, str, Callable[[Path], Any], Any]] = {
    "samexporter": ("samexporter", ".", open_samexporter, on_canvas),
    "anylabeling": ("anylabeling", ".", open_labeling, on_canvas),
    "x-anylabeling": ("x-anylabeling", ".", open_x_anylabeling, on_canvas),
    "isat": ("isat", ".", open_isat, on_image),
    "isat, torch": ("isat", ".", open_isat_checkpoint, on_image),
    "label-studio": (
        "label-studio",
        "label_studio_ml/examples/segment_anything_model",
        open_label_studio,
        on_image,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PROGRAMS)
    parser.add_argument("source", type=Path)
    parser.add_argument("--image", type=Path, default=Path("examples/images/coffee.png"))
    parser.add_argument("--checkpoint", default="bundled")
    given = parser.parse_args()
    client, inner, opener, reference = PROGRAMS[given.name]
    sys.path[:0] = [str(given.source / inner), str(given.source)]
    sam = build_sam_vit_t(given.checkpoint)
    # For the image encoder of Label Studio's backend, whose vit_h is MobileSAM here.
    os.environ["MOBILE_SAM_CHECKPOINT"] = given.checkpoint
    pixels = np.asarray(Image.open(given.image).convert("RGB"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "mobile_sam")
        export(sam, folder, [given.image], client=client)
        encode = opener(folder)
        start = time.perf_counter()
        theirs = encode(pixels)
        seconds = [time.perf_counter() - start]
        ours = reference(SamPredictor(sam), pixels)
        overlaps = []
        prompts: list[dict[str, Any]] = [
            dict(zip(("points", "labels"), clicks, strict=True)) for clicks in (CLICKS, TWO_CLICKS)
        ]
        for prompt in [*prompts, {"box": BOX}]:
            start = time.perf_counter()
            mask = theirs(**prompt)
            seconds.append(time.perf_counter() - start)
            if given.name == "label-studio" and "box" in prompt:
                prompt = {**prompt, "points": [[300, 150]], "labels": [1]}
            overlaps.append(overlap(mask, ours(**prompt)))
    figures = " ".join(f"{value:.4f}" for value in overlaps)
    image, prompt_seconds = seconds[0], np.median(seconds[1:])
    print(f"{given.name}: IoU {figures}  image {image:.2f} s  prompt {prompt_seconds:.3f} s")


if __name__ == "__main__":
    main()
