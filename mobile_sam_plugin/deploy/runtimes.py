"""ONNX graphs in the two runtimes that predictors may use: onnxruntime and OpenVINO."""

import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtra, UserError

Providers = str | Sequence[str | tuple[str, Mapping[str, Any]]]
"""onnxruntime's execution providers: names, or pairs of a name and options; or one name."""


class TensorInfo(NamedTuple):
    """Shape and dtype of a graph's input or output."""

    shape: tuple[int | str | None, ...]
    """A dynamic size is its name, or None."""
    dtype: str
    """numpy's name, such as "float32"."""


class Runtime(Protocol):
    """A loaded graph."""

    path: str
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Computes the named outputs, in their order."""


class OnnxRuntime:
    """A graph in onnxruntime."""

    def __init__(self, path: str | os.PathLike[str], providers: Providers) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra.of("onnxruntime", "onnx") from error
        chosen = _check_providers(providers, onnxruntime.get_available_providers())
        name = _existing(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Without these four lines the encoder takes twice the memory, and no less time. A pattern
        # is planned in the first run and allocated in the second, on top of what the first took;
        # and a buffer that is to be reused is kept even while there is no use of it.
        options.enable_mem_pattern = False
        options.enable_mem_reuse = False
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        try:
            self._session = onnxruntime.InferenceSession(name, options, providers=chosen)
            self.inputs = {value.name: _onnx_info(value) for value in self._session.get_inputs()}
            self.outputs = {value.name: _onnx_info(value) for value in self._session.get_outputs()}
        except UnicodeDecodeError as error:
            raise UserError(f"{name!r} is damaged: a name in it is no text ({error})") from error
        except (TypeError, ValueError) as error:
            raise UserError(
                f"onnxruntime rejects the execution providers {chosen}: {_first_line(error)}"
            ) from error
        except Exception as error:  # onnxruntime's own errors share no other base
            raise UserError(
                f"onnxruntime cannot read {name!r} as an ONNX model: {_first_line(error)}"
            ) from error
        if self._session.get_providers()[0] != chosen[0][0]:
            raise UserError(
                f"onnxruntime cannot start its execution provider {chosen[0][0]!r} here: its "
                "libraries or its device are missing"
            )
        self.path = os.path.abspath(name)
        self._origin = self.path, chosen
        # Otherwise the decoder also upscales every mask to the image.
        self._options = onnxruntime.RunOptions()
        self._options.only_execute_path_to_fetches = True

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        known = {name: feeds[name] for name in self.inputs}
        try:
            results: list[NDArray[Any]] = self._session.run(list(outputs), known, self._options)
        except Exception as error:  # as above; a graph that is damaged may fail only here
            raise UserError(
                f"onnxruntime cannot run {self._origin[0]!r}: {_first_line(error)}"
            ) from error
        return results

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._origin


def _check_providers(
    providers: Providers, available: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Returns execution providers, each with its options.

    Raises:
        TypeError, UserError: as ``OnnxPredictor``.
    """
    chosen: list[tuple[str, dict[str, Any]]] = []
    name: str
    options: dict[str, Any]
    for provider in [providers] if isinstance(providers, str) else providers:
        match provider:
            case str():
                name, options = provider, {}
            case (str(given), Mapping() as settings):
                name, options = given, dict(settings)
            case _:
                raise TypeError(
                    "providers must be names, or pairs of a name and a dict of options, not "
                    f"{provider!r}"
                )
        if name not in available:
            raise UserError(
                f"this onnxruntime has no execution provider {name!r}, only "
                f"{', '.join(available)}: choose one of them, or install another onnxruntime"
            )
        chosen.append((name, options))
    if not chosen:
        raise UserError("providers must hold at least one execution provider")
    return chosen


@cache
def _register_arena() -> None:
    """Registers memory that grows by what is requested, not to the next power of 2.

    Sessions of this process that ask for it, such as those here, share it.
    """
    import onnxruntime

    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        ),
        # max_mem, arena_extend_strategy (1: kSameAsRequested), initial_chunk_size_bytes and
        # max_dead_bytes_per_chunk, of which the default would waste half of large chunks; 0 and -1
        # are the defaults.
        onnxruntime.OrtArenaCfg(0, 1, -1, 1 << 20),
    )


def _onnx_info(value: Any) -> TensorInfo:
    dtype = value.type.removeprefix("tensor(").removesuffix(")")
    return TensorInfo(tuple(value.shape), "float32" if dtype == "float" else dtype)


class OpenVino:
    """A graph in OpenVINO."""

    def __init__(self, path: str | os.PathLike[str], device: str) -> None:
        core = _openvino_core()
        name = _existing(path)
        kinds = {kind.partition(".")[0] for kind in core.available_devices} | {"AUTO"}
        if device.partition(".")[0].partition(":")[0] not in kinds:
            raise UserError(
                f"OpenVINO has no device {device!r} here, only {', '.join(sorted(kinds))}"
            )
        try:
            model = core.read_model(name)
            # An output that exists is computed, and nobody here uses masks of the image's size.
            for output in model.outputs:
                if "masks" in output.names:
                    model.remove_result(output.node)
            self._request = core.compile_model(
                model, device, {"INFERENCE_PRECISION_HINT": "f32"}
            ).create_infer_request()
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO cannot run {name!r} as an ONNX model: {_first_line(error)}"
            ) from error
        self.path = os.path.abspath(name)
        self._origin = self.path, device
        self._lock = threading.Lock()  # a request is for one thread at a time
        self.inputs = {value.any_name: _openvino_info(value) for value in model.inputs}
        self.outputs = {value.any_name: _openvino_info(value) for value in model.outputs}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        known = {name: feeds[name] for name in self.inputs}
        with self._lock:
            results = self._request.infer(known)
            return [np.array(results[name]) for name in outputs]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._origin


@cache
def _openvino_core() -> Any:
    """Returns the one core of this process.

    Each core takes over the stack that signals are handled on, and gives it back when it ends. Of
    two whose lives overlap, the second would give back what the first has freed, and the next
    signal, such as the end of a child process, would kill this one.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra.of("OpenVINO", "openvino") from error
    return openvino.Core()


def _openvino_info(value: Any) -> TensorInfo:
    shape = tuple(side.get_length() if side.is_static else None for side in value.partial_shape)
    return TensorInfo(shape, value.element_type.to_dtype().name)


def _existing(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(
            f"there is no file {name!r}: mobile-sam export writes the encoder and the decoder"
        )
    return name


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
