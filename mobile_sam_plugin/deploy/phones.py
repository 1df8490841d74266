"""A SAM in the formats of phones, made by the libraries of their runtimes from torch's programs."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ..errors import MissingExtra, UserError
from ..predictor import SamPredictor, eval_mode
from .clients import Client
from .comparison import Export, Graphs, compare, megabytes, model_size, refuse_unexportable
from .decoder_graph import LowResGraph

Inputs = Mapping[str, Tensor]
Work = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]
MINIMUM_IOU = 0.98  # of the masks with those of torch


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        suffix: of its files.
        library: what converts, by its name on the package index; the extra has the format's.
        convert: writes a module for inputs of these names and shapes, with outputs of these names.
        load: loads a file into its runtime; None if the runtime does not run here.
    """

    suffix: str
    library: str
    convert: Callable[[nn.Module, Inputs, Sequence[str], Path], None]
    load: Callable[[Path], Work] | None


def _to_litert(module: nn.Module, inputs: Inputs, outputs: Sequence[str], path: Path) -> None:
    import litert_torch

    litert_torch.convert(module, tuple(inputs.values())).export(os.fspath(path))


def _in_litert(path: Path) -> Work:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(os.fspath(path), num_threads=torch.get_num_threads())
    signature = interpreter.get_signature_runner()
    names = sorted(signature.get_input_details())  # args_0, args_1, ...

    def work(given: list[NDArray[Any]]) -> list[NDArray[Any]]:
        found = signature(**dict(zip(names, given, strict=True)))
        return [found[name] for name in sorted(found)]  # output_0, output_1

    return work


def _to_executorch(module: nn.Module, inputs: Inputs, outputs: Sequence[str], path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(module, tuple(inputs.values()))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _in_executorch(path: Path) -> Work:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    return lambda given: [
        each.numpy() for each in method.execute([torch.from_numpy(array) for array in given])
    ]


def _to_coreml(module: nn.Module, inputs: Inputs, outputs: Sequence[str], path: Path) -> None:
    import coremltools

    program = torch.export.export(module, tuple(inputs.values())).run_decompositions({})
    coremltools.convert(
        program,
        inputs=[
            coremltools.TensorType(name=name, shape=tuple(each.shape))
            for name, each in inputs.items()
        ],
        outputs=[coremltools.TensorType(name=name) for name in outputs],
        minimum_deployment_target=coremltools.target.iOS17,
    ).save(os.fspath(path))


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "litert": Format(".tflite", "litert-torch", _to_litert, _in_litert),
        "executorch": Format(".pte", "executorch", _to_executorch, _in_executorch),
        "coreml": Format(".mlpackage", "coremltools", _to_coreml, None),
    }
)
"""Formats by the name that ``mobile-sam export --format`` takes."""


class _InOrder:
    """A file in its runtime, which knows inputs and outputs by their order alone."""

    def __init__(self, work: Work, inputs: Inputs, outputs: Sequence[str]) -> None:
        self.inputs, self._outputs, self._work = inputs, outputs, work

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found = self._work([feeds[name] for name in self.inputs])
        by_name = dict(zip(self._outputs, found, strict=True))
        return [by_name[name] for name in outputs]


def export_for_phones(
    model: Sam,
    folder: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    format: str,
    force: bool = False,
) -> list[Export]:
    """Writes a SAM as ``mobile_sam_encoder`` and ``mobile_sam_decoder`` in a phone's format.

    The encoder takes a preprocessed image, (1, 3, 1024, 1024) float32. The decoder takes one prompt
    of two points, a click and its padding or a box, and gives low-res logits and predicted IoU.
    Both have the inputs of :func:`.onnx_export.export` in its order.

    Args:
        model: SAM in float32 on the CPU.
        folder: output folder, created if missing; files of the same names are replaced.
        images: paths of images, to check the files on, if their runtime runs here.
        format: a key of :data:`FORMATS`.
        force: whether to write the files even if their masks differ from those of torch.

    Returns:
        Size, time and agreement with torch of the encoder and of the decoder; of Core ML the size,
        and nothing else.

    Raises:
        MissingExtra: if the format's library is not installed.
        UserError: if the format is unknown, there is no image, the model is not float32 on the CPU
            or its mask decoder is adapted; or if the mean mask IoU with torch is below 0.98 without
            ``force``.
    """
    if format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    if not images:
        raise UserError("images must hold at least one path, to check the files on")
    refuse_unexportable(model)
    chosen = FORMATS[format]
    encoder, decoder = (f"mobile_sam_{half}{chosen.suffix}" for half in ("encoder", "decoder"))
    client = Client(encoder, decoder, graph=LowResGraph)
    graph = LowResGraph(model).eval()
    size = model_size(model)
    embeddings = torch.zeros(1, 256, size // 16, size // 16)
    inputs: dict[str, Inputs] = {
        encoder: {client.image: torch.zeros(1, 3, size, size)},
        decoder: graph.feeds(embeddings, torch.full((1, 1, 2), size / 2), torch.ones(2)),
    }
    outputs: dict[str, Sequence[str]] = {encoder: ["image_embeddings"], decoder: graph.outputs}
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch, eval_mode(model):
        paths = [Path(scratch, name) for name in inputs]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            for path, module in zip(paths, (model.image_encoder, graph), strict=True):
                try:
                    chosen.convert(module, inputs[path.name], outputs[path.name], path)
                except ImportError as error:
                    raise MissingExtra.of(chosen.library, format) from error
            if chosen.load is None:
                found = [Export(path, megabytes(path)) for path in paths]
            else:
                in_order = {
                    path: _InOrder(chosen.load(path), inputs[path.name], outputs[path.name])
                    for path in paths
                }
                graphs = Graphs(model, paths[0], paths[1], client, in_order.__getitem__)
                found = compare(SamPredictor(model), graphs, images)
                mask_iou = found[0].mask_iou
                if not mask_iou >= MINIMUM_IOU and not force:
                    raise UserError(
                        f"in {format} the masks have an IoU of {mask_iou:.3f} with those of torch, "
                        f"below {MINIMUM_IOU}: nothing was written; pass --force (force=True)"
                    )
        for path in paths:
            whole = Path(folder, path.name)
            if whole.is_dir():
                shutil.rmtree(whole)
            os.replace(path, whole)
        return [replace(each, path=Path(folder, each.path.name)) for each in found]
