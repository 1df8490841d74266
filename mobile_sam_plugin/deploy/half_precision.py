"""Half precision where it is safe: what overflows or loses too much stays in float32.

Whether half precision is right depends on the weights. So the graph is computed on photographs as
it is and, beside it, with every tensor rounded to half precision, as a runtime does that keeps
tensors in half precision and adds up products in float32. The float16 file on a CPU tells nothing:
there onnxruntime computes in float32, leaves out the rounding between nodes, and hides what
overflows.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Samples = Callable[[], Iterable[Mapping[str, NDArray[Any]]]]
"""Gives inputs of a graph by name, for one photograph after the other, each time it is called."""

LARGEST = 65504.0  # of half precision
# Other photographs than those that were looked at have larger values, by a factor of two at most.
_ROOM = 2
# Relative to the root mean square of a tensor. Rounding alone gives 0.0003, and adds up to 0.005
# through the encoder with the bundled weights.
_LARGEST_ERROR = 0.02
_ROUNDS = 4


def find_unsafe_nodes(model: onnx.ModelProto, samples: Samples, kept: Iterable[str]) -> list[str]:
    """Finds the nodes of a graph that must stay in float32.

    Where a tensor comes within a factor of two of the largest number of half precision, these are
    the node that makes it and those that take it; so is a norm whose squares do, since runtimes may
    square in half precision. Where an error appears that none of a node's inputs has, these are the
    node and those before it, such as a softmax and the product before it.

    Args:
        model: in float32.
        samples: inputs of the graph, at least one.
        kept: names of nodes that stay in float32 in any case.

    Returns:
        The names of the nodes, without those in `kept`.
    """
    fixed = set(kept)
    found: set[str] = set()
    for _ in range(_ROUNDS):
        unsafe = _unsafe_nodes(model, samples, fixed | found) - fixed
        if unsafe <= found:
            break
        found |= unsafe
    return [node.name for node in model.graph.node if node.name in found]


def _unsafe_nodes(model: onnx.ModelProto, samples: Samples, kept: Container[str]) -> set[str]:
    ranges, errors = _measure(model, samples, kept)
    maker = {name: node.name for node in model.graph.node for name in node.output}
    unsafe: set[str] = set()
    for node in model.graph.node:
        inputs = [name for name in node.input if name in ranges]
        range_in = max((ranges[name] for name in inputs), default=0.0)
        range_out = max((ranges.get(name, 0.0) for name in node.output), default=0.0)
        if node.op_type.endswith("Normalization"):
            range_in = max(range_in, range_in**2)
        if _ROOM * max(range_in, range_out) >= LARGEST:
            unsafe.add(node.name)
        error_in = max((errors[name] for name in inputs), default=0.0)
        error_out = max((errors.get(name, 0.0) for name in node.output), default=0.0)
        if error_out > _LARGEST_ERROR and error_out > 2 * error_in:
            unsafe.add(node.name)
            unsafe.update(maker[name] for name in inputs if name in maker)
    return unsafe


def _measure(
    model: onnx.ModelProto, samples: Samples, kept: Container[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns each float tensor's largest value and its error when all are rounded, over samples.

    The error is relative to the tensor's root mean square, and infinite where there is no number.
    """
    probe, names = _probe(model, kept)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    measured = [
        np.reshape(session.run(None, dict(feeds)), (len(names), 3)).astype(np.float64)
        for feeds in samples()
    ]
    ranges, wrong, whole = np.moveaxis(np.stack(measured), 2, 0)
    with np.errstate(all="ignore"):
        errors = np.sqrt(wrong / np.maximum(whole, 1e-30))
    errors = np.where(np.isfinite(errors), errors, np.inf)
    return (
        dict(zip(names, ranges.max(axis=0).tolist(), strict=True)),
        dict(zip(names, errors.max(axis=0).tolist(), strict=True)),
    )


def _probe(model: onnx.ModelProto, kept: Container[str]) -> tuple[onnx.ModelProto, list[str]]:
    """Returns a graph with three numbers per float tensor, and the tensors' names.

    The numbers are the largest absolute value, the sum of squared differences between the tensor
    and its counterpart in a copy of the graph that rounds, and the sum of its squares.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    counterparts = _add_rounding_copy(probe.graph, model, kept)
    names = [name for name in _floats(model) if name in counterparts]
    del probe.graph.output[:], probe.graph.value_info[:]
    for name in names:
        absolute = _add(probe.graph, "Abs", [name], f"{name}/absolute")
        difference = _add(probe.graph, "Sub", [name, counterparts[name]], f"{name}/difference")
        for operator, given, figure in (
            ("ReduceMax", absolute, "range"),
            ("ReduceSumSquare", difference, "wrong"),
            ("ReduceSumSquare", name, "whole"),
        ):
            output = _add(probe.graph, operator, [given], f"{name}/{figure}", keepdims=0)
            probe.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    return probe, names


def rounding_model(model: onnx.ModelProto, kept: Container[str]) -> onnx.ModelProto:
    """Returns a graph in float32 with every tensor rounded to half precision.

    So it gives, anywhere, what a runtime gives that keeps tensors in half precision.

    Args:
        model: in float32.
        kept: names of nodes whose outputs are not rounded.
    """
    rounding = onnx.ModelProto()
    rounding.CopyFrom(model)
    graph = rounding.graph
    del graph.node[:], graph.value_info[:]
    counterparts = _add_rounding_copy(graph, model, kept)
    for output in graph.output:
        _add(graph, "Identity", [counterparts[output.name]], output.name)
    return rounding


def _add_rounding_copy(
    graph: onnx.GraphProto, model: onnx.ModelProto, kept: Container[str]
) -> dict[str, str]:
    """Adds a copy of the model's nodes that rounds; returns its names for the model's tensors."""
    floats = set(_floats(model))
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    rounded: set[str] = set()
    counterparts: dict[str, str] = {}
    for node in model.graph.node:
        rounds = node.name not in kept
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{node.name}/half"
        for index, name in enumerate(node.input):
            if name not in weights:
                copy.input[index] = counterparts.get(name, name)
            elif rounds:
                copy.input[index] = f"{name}/half"
                if name not in rounded:
                    rounded.add(name)
                    with np.errstate(over="ignore"):
                        values = weights[name].astype(np.float16).astype(np.float32)
                    graph.initializer.append(numpy_helper.from_array(values, f"{name}/half"))
        for index, name in enumerate(node.output):
            if not name:  # an optional output that nobody takes
                continue
            half = counterparts[name] = copy.output[index] = f"{name}/half"
            if rounds and name in floats:
                half = _add(graph, "Cast", [half], f"{name}/16", to=TensorProto.FLOAT16)
                counterparts[name] = _add(graph, "Cast", [half], f"{name}/32", to=TensorProto.FLOAT)
    return counterparts


def _floats(model: onnx.ModelProto) -> list[str]:
    """Returns the names of the float tensors that nodes make."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return [
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]


def _add(
    graph: onnx.GraphProto, operator: str, inputs: Sequence[str], output: str, **attributes: int
) -> str:
    graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
    return output
