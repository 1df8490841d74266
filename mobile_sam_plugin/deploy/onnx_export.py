"""A SAM as two ONNX files, checked against torch before they get their names."""

import os
import tempfile
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ..checkpoint import save_checkpoint
from ..errors import MissingExtra, UserError
from ..images import load_image, open_image
from ..inputs import PIXEL_MEAN, PIXEL_STD, input_size, preprocess
from ..mobile_sam import MobileSam
from ..predictor import SamPredictor, eval_mode
from .clients import CLIENTS, PLUGIN, Client
from .comparison import (
    Export,
    Graphs,
    clicks_on,
    compare,
    data_of,
    feeds_of,
    model_size,
    refuse_unexportable,
)
from .decoder_graph import EncoderGraph
from .half_precision import Samples, find_unsafe_nodes, rounding_model

try:
    import onnx
    import onnx.compose
    import onnx.parser
    import onnxruntime  # noqa: F401
except ImportError as error:
    raise MissingExtra.of("onnx and onnxruntime", "onnx") from error

PRECISIONS = ("fp32", "fp16", "int8")
# Of the masks with those of torch. Whatever falls short in half precision is more than rounding.
MINIMUM_IOU = {"fp32": 0.98, "fp16": 0.98, "int8": 0.90}
LARGEST_FILE = 2 * 10**9  # bytes; protobuf's limit is 2^31
# In 20 GELU is one operator. In earlier ones it is five, which onnxruntime fuses into one, but not
# between operators in 8 bits: the encoder then takes a quarter longer, and more memory.
_OPSETS = {"fp32": 18, "fp16": 18, "int8": 20}

# What SamPredictor.set_image and Sam.preprocess do: Pillow's antialiased resizing, which rounds to
# whole numbers, then normalising and padding. Sides are multiplied before they are divided, since
# OpenVINO inverts a constant's quotient here. Up to 5000 pixels the sizes are the same either way.
_PREPROCESSING = """
<ir_version: 8, opset_import: ["" : {opset}]>
preprocessing ({dtype}[height, width, 3] picture) => (float[1, 3, {size}, {size}] normalised)
<float[1, 3, 1, 1] mean = {{{mean}}}, float[1, 3, 1, 1] std = {{{std}}},
 int64[1] zero = {{0}}, int64[1] two = {{2}}, int64[2] batch = {{1, 3}},
 int64[6] before = {{0, 0, 0, 0, 0, 0}}, int64[2] whole = {{{size}, {size}}},
 double long_side = {{{size}}}, double half = {{0.5}}>
{{
    pixels = Cast <to = 2> (picture)
    shape = Shape (picture)
    sides = Slice (shape, zero, two)
    real_sides = Cast <to = 11> (sides)
    longest = ReduceMax <keepdims = 0> (real_sides)
    products = Mul (real_sides, long_side)
    scaled = Div (products, longest)
    shifted = Add (scaled, half)
    rounded = Floor (shifted)
    resized_sides = Cast <to = 7> (rounded)
    channels_first = Transpose <perm = [2, 0, 1]> (pixels)
    batched = Unsqueeze (channels_first, zero)
    sizes = Concat <axis = 0> (batch, resized_sides)
    resized = Resize <mode = "linear", antialias = 1> (batched, , , sizes)
    values = Cast <to = 1> (resized)
    centred = Sub (values, mean)
    scaled_values = Div (centred, std)
    missing = Sub (whole, resized_sides)
    pads = Concat <axis = 0> (before, missing)
    normalised = Pad (scaled_values, pads)
}}
"""


def export(
    model: Sam,
    folder: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    precision: str = "fp32",
    opset: int | None = None,
    with_preprocessing: bool = False,
    force: bool = False,
    client: str | None = None,
) -> list[Export]:
    """Writes a SAM as ONNX files, checked against torch.

    Without a client these are ``mobile_sam_encoder.onnx`` and ``mobile_sam_decoder.onnx``, for this
    package's predictors. The decoder has the inputs and outputs of segment-anything's
    ``SamOnnxModel``, for any number of prompts and points. The encoder takes preprocessed images,
    (B, 3, 1024, 1024) float32.

    Args:
        model: SAM in float32 on the CPU.
        folder: output folder, created if missing; files of the same names are replaced. Weights
            above 2 GB, the limit of an ONNX file, go into a second file with the suffix ``.data``.
        images: paths of images. In fp32 the files are checked on the first. In fp16 they are
            searched for what overflows and checked on all; in int8 the encoder is calibrated and
            checked on all.
        precision: ``"fp32"``; ``"fp16"``, weights and arithmetic of both in half precision but for
            what overflows or loses too much, inputs and outputs in float32; or ``"int8"``, the
            encoder's matrix products and convolutions in 8 bits, the decoder in float32.
        opset: ONNX opset, 17 to 20; if None 18, and 20 for int8, because that is faster.
        with_preprocessing: whether the encoder takes an image, (H, W, 3) uint8 RGB, instead.
        force: whether to write the files even if their masks differ from those of torch.
        client: the program that is to load the files, a key of ``clients.CLIENTS``: its names,
            inputs and outputs, and its configuration; None for this package's predictors.

    Returns:
        Size, time and agreement with torch of the encoder, if there is one, and of the decoder.

    Raises:
        MissingExtra: if onnx or onnxruntime is not installed.
        FileNotFoundError: if there is no such image.
        UserError: if the precision or the client is unknown, the opset is unsupported or too old
            for preprocessing, there is no image, the client has no use for int8 or preprocessing,
            the model is not one that it loads, not float32 on the CPU or its mask decoder is
            adapted; or if the mean mask IoU with torch is below 0.98, or 0.9 for int8, without
            ``force``.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if client is not None and client not in CLIENTS:
        raise UserError(f"client must be one of {', '.join(CLIENTS)}, not {client!r}")
    target = PLUGIN if client is None else CLIENTS[client]
    if with_preprocessing:
        if client is not None:
            raise UserError(
                f"with_preprocessing is for this package's predictors: what the encoder takes for "
                f"{client} is settled"
            )
        target = replace(target, picture="uint8")
    if precision == "int8" and target.encoder is None:
        raise UserError(
            f"precision 'int8' is for the image encoder, and {client} loads the mask decoder "
            "alone: choose fp32 or fp16"
        )
    if opset is None:
        opset = _OPSETS[precision]
    if not 17 <= opset <= 20:
        raise UserError(f"opset must be 17 to 20, not {opset}")
    if target.picture and opset < 18:
        raise UserError(f"preprocessing needs opset 18 or later, not {opset}")
    if not images:
        raise UserError("images must hold at least one path, to check the files on")
    refuse_unexportable(model)
    if target.checkpoint and not (isinstance(model, MobileSam) and model.backbone is None):
        raise UserError(f"{client} loads no SAM but MobileSAM, with TinyViT as its image encoder")
    needed = images[:1] if precision == "fp32" else images
    for image in needed:  # opened one after the other below, since they may be many
        with open_image(image, os.fspath(image)) as picture:
            input_size(picture.height, picture.width, model_size(model))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch, eval_mode(model):
        name = Path(scratch, "files")
        encoder_name, decoder_name = target.files(precision)
        encoder = name / encoder_name if encoder_name else None
        decoder = name / decoder_name
        for path in filter(None, (encoder, decoder)):
            path.parent.mkdir(parents=True, exist_ok=True)
        kept: dict[Path, list[str]] = {}
        if encoder:
            _write_encoder(model, encoder, opset, target)
        _write_decoder(model, decoder, opset, target)
        if encoder and precision == "int8":
            _quantise(encoder, (preprocess(load_image(each), model_size(model)) for each in needed))
        elif precision == "fp16":
            if encoder:
                kept[encoder] = _halve(encoder, partial(_encoder_samples, model, target, needed))
            kept[decoder] = _halve(decoder, partial(_decoder_samples, model, target, needed))
        if encoder and target.picture:
            _add_preprocessing(encoder, model_size(model), opset, target.picture)
        found = _compare(model, encoder, decoder, target, needed)
        mask_iou, least = found[0].mask_iou, MINIMUM_IOU[precision]
        if not mask_iou >= least and not force:
            raise UserError(
                f"in {precision} the masks have an IoU of {mask_iou:.3f} with those of torch, "
                f"below {least}: nothing was written; choose another precision, or pass --force "
                "(force=True)"
            )
        if target.checkpoint:
            save_checkpoint(model.state_dict(), Path(name, target.checkpoint), for_upstream=True)
        for file, text in target.configs(model_size(model), precision).items():
            Path(name, file).write_text(text, encoding="utf-8")
        written = [path for path in name.rglob("*") if path.is_file()]
        # Weights before the graphs that refer to them.
        for path in sorted(written, key=lambda path: path.suffix != ".data"):
            whole = Path(folder, path.relative_to(name))
            whole.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, whole)
            if path.suffix == ".onnx" and data_of(path) not in written:
                data_of(whole).unlink(missing_ok=True)  # of an earlier, larger export
        return [
            replace(
                each,
                path=Path(folder, each.path.relative_to(name)),
                kept=tuple(kept.get(each.path, ())),
            )
            for each in found
        ]


def _write_encoder(sam: Sam, path: Path, opset: int, client: Client = PLUGIN) -> None:
    image = torch.zeros(2, 3, model_size(sam), model_size(sam))
    outputs = ["image_embeddings", *["image_positional_embeddings"] * client.positions]
    names = [client.image, *outputs]
    module = EncoderGraph(sam) if client.positions else sam.image_encoder
    axes = {name: {0: "images"} for name in names}
    _trace(module, (image,), path, opset, names[:1], outputs, axes)


def _write_decoder(sam: Sam, path: Path, opset: int, client: Client = PLUGIN) -> None:
    graph = client.graph(sam).eval()
    side = model_size(sam) // 16
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 256, side, side, generator=generator)
    points = torch.rand(2, 3, 2, generator=generator) * model_size(sam)
    feeds = graph.feeds(embeddings, points, torch.tensor([400.0, 600.0]))
    _trace(
        graph,
        tuple(feeds.values()),
        path,
        opset,
        list(feeds),
        list(graph.outputs),
        graph.dynamic_axes,
    )


def _trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    opset: int,
    input_names: list[str],
    output_names: list[str],
    dynamic_axes: Mapping[str, Mapping[int, str]],
) -> None:
    # The exporter by tracing: torch.export's gives mask prompts and prompts one number, and a
    # larger encoder, and before torch 2.6 it knows none of these modules.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            str(path),
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=dynamic_axes,
            opset_version=opset,
            dynamo=False,
        )
    model = onnx.load(path, load_external_data=False)
    scattered = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if scattered:  # above 2 GB torch writes one file per tensor
        _save(onnx.load(path), path)
        for name in scattered:
            (path.parent / name).unlink()


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model, with its weights in a second file if they exceed ONNX's limit."""
    data = data_of(path)
    data.unlink(missing_ok=True)  # or else more is written to its end
    if sum(len(each.raw_data) for each in model.graph.initializer) > LARGEST_FILE:
        onnx.save(model, path, save_as_external_data=True, location=data.name)
    else:
        onnx.save(model, path)


def _add_preprocessing(path: Path, size: int, opset: int, dtype: str = "uint8") -> None:
    mean, std = (", ".join(map(str, values)) for values in (PIXEL_MEAN, PIXEL_STD))
    encoder = onnx.load(path)
    before = onnx.parser.parse_model(
        _PREPROCESSING.format(
            opset=opset, size=size, mean=mean, std=std, dtype=dtype.replace("float32", "float")
        )
    )
    before.ir_version = encoder.ir_version
    # Quantising adds a domain of its own, and both must know it.
    del before.opset_import[:]
    before.opset_import.extend(encoder.opset_import)
    io_map = [("normalised", encoder.graph.input[0].name)]
    _save(onnx.compose.merge_models(before, encoder, io_map), path)


def _encoder_samples(
    sam: Sam, client: Client, images: Sequence[str | os.PathLike[str]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    for image in images:
        yield {client.image: preprocess(load_image(image), model_size(sam))}


def _decoder_samples(
    sam: Sam, client: Client, images: Sequence[str | os.PathLike[str]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    graph, predictor = client.graph(sam).eval(), SamPredictor(sam)
    for image in images:
        picture = load_image(image)
        predictor.set_image(picture)
        feeds = feeds_of(graph, predictor, clicks_on(picture)[0])
        yield {name: value.numpy() for name, value in feeds.items()}


def _halve(path: Path, samples: Samples) -> list[str]:
    """Makes a file's graph one in half precision; returns the nodes kept in float32 for safety."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    whole = onnx.load(path)
    # What computes sizes and places in pixels stays in float32: above 2048 half precision has no
    # odd numbers, and between 512 and 1024 nothing finer than half a pixel.
    places = _nodes_between(whole.graph, "point_coords", ("Sin", "Cos"))
    sizes = _nodes_between(whole.graph, "orig_im_size", ("Resize",))
    unsafe = find_unsafe_nodes(whole, samples, [*places, *sizes])
    _save(rounding_model(whole, [*places, *sizes, *unsafe]), _rounding_of(path))
    halved = convert_float_to_float16(
        whole, keep_io_types=True, node_block_list=[*places, *sizes, *unsafe]
    )
    # It halves what goes in and out of each of those, too, before it casts it back: undone here.
    casts = [node for node in halved.graph.node if node.op_type == "Cast"]
    target = {node.output[0]: node.attribute[0].i for node in casts}
    whole_of = {
        node.output[0]: node.input[0]
        for node in casts
        if target[node.output[0]] == onnx.TensorProto.FLOAT16
    }
    for node in casts:
        if target[node.output[0]] == onnx.TensorProto.FLOAT:
            node.input[0] = whole_of.get(node.input[0], node.input[0])
    # It puts the casts of the inputs last, which onnxruntime takes, but no checker.
    OnnxModel.graph_topological_sort(halved.graph)
    _save(halved, path)
    return unsafe


def _rounding_of(path: Path) -> Path:
    """Where the graph lies that computes as a half-precision one does, while it is compared."""
    return path.with_suffix(".rounding")


def _nodes_between(graph: onnx.GraphProto, start: str, ends: Container[str]) -> list[str]:
    """Returns the nodes' names, constants included, from an input to the operators in `ends`."""
    reached, found, inputs = {start}, [], set()
    for node in graph.node:  # in the order in which they are computed
        if not reached.isdisjoint(node.input):
            found.append(node.name)
            inputs.update(node.input)
            if node.op_type not in ends:
                reached.update(node.output)
    constants = [node for node in graph.node if node.op_type == "Constant"]
    return found + [node.name for node in constants if not inputs.isdisjoint(node.output)]


class _Calibration:
    """Calibration reader of onnxruntime: a dict of inputs per image, then None."""

    def __init__(self, name: str, images: Iterable[NDArray[np.float32]]) -> None:
        self._name, self._images = name, iter(images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        image = next(self._images, None)
        return None if image is None else {self._name: image}


def _quantise(path: Path, images: Iterable[NDArray[np.float32]]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared")
    # onnxruntime's optimisations would write matrix products as Gemm, and look up attention biases.
    quant_pre_process(str(path), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        _Calibration(onnx.load(prepared).graph.input[0].name, images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul"],
        per_channel=True,
        # 7 bits: processors without VNNI add pairs of products of 8 bits with saturation.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Queries, keys and attention weights suffer more in 8 bits than there is to gain.
        extra_options={"MatMulConstBOnly": True},
    )
    prepared.unlink()


def _compare(
    sam: Sam,
    encoder: Path | None,
    decoder: Path,
    client: Client,
    images: Sequence[str | os.PathLike[str]],
) -> list[Export]:
    """Compares the files with torch.

    The masks of half precision are those of the graphs that round, which are then removed.
    """
    ours, judged = Graphs(sam, encoder, decoder, client), None
    if _rounding_of(decoder).exists():
        rounding = encoder and _rounding_of(encoder), _rounding_of(decoder)
        judged = Graphs(sam, *rounding, replace(client, picture=None))
        for path in filter(None, rounding):
            path.unlink()
            data_of(path).unlink(missing_ok=True)
    return compare(SamPredictor(sam), ours, images, judged)
