"""Options that several commands share, and how they are read: points, boxes, models, devices."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from segment_anything.modeling import Sam

    from .. import MobileSam, SamPredictor
    from ..deploy import OnnxPredictor
    from ..engine import OnnxBackend, TorchBackend


OBJECTS = (
    "For composites: a folder of pictures with transparency; or images with masks, from each of "
    "which its largest thing is cut, with its parts."
)
PHOTOGRAPHS = "For composites: the folder of the backgrounds."
CHECKPOINT_NAMES = "A path, hf://owner/repo[/file][@revision] or 'bundled'."

ImageFile = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGE", exists=True, dir_okay=False, help="A file that Pillow can open."
    ),
]
Source = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="Images, globs and folders; or one text file of paths, COCO JSON or video. All "
        "except videos can be URLs, such as s3://bucket/folder.",
    ),
]
Points = Annotated[
    list[str] | None,
    typer.Option(
        "--point",
        metavar="X,Y[,LABEL]",
        help="A point in pixels of the upright image, on the object (LABEL 1, the default) or on "
        "the background (0). Can be given several times.",
    ),
]
Detector = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Zero-shot object detector from transformers: Hub repository or folder.",
        show_default="IDEA-Research/grounding-dino-tiny",
    ),
]
BoxThreshold = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Drop detections with a lower score; 0.1 suits OWLv2 detectors."
    ),
]
TextThreshold = Annotated[
    float,
    typer.Option(min=0, max=1, help="Drop words with a lower score from labels."),
]
NmsThresh = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="If two boxes of a class have an IoU above this, drop the one with the lower score.",
    ),
]
MinArea = Annotated[
    int,
    typer.Option(metavar="PIXELS", min=0, help="Ignore detected objects with fewer pixels."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="C",
        help=f"Weights. {CHECKPOINT_NAMES}",
        show_default="the Hub's nielsr/mobilesam",
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="D", help="Device: cpu, cuda, cuda:1, mps or auto."),
]
PointsPerSide = Annotated[
    int, typer.Option(min=1, help="Points along each side of the grid of everything mode.")
]
PredIouThresh = Annotated[
    float, typer.Option(min=0, max=1, help="Drop masks with a lower predicted IoU.")
]
StabilityScoreThresh = Annotated[
    float, typer.Option(min=0, max=1, help="Drop masks with a lower stability score.")
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="DIR", file_okay=False, help="Output folder, with one subfolder per image."
    ),
]


def _limit_pixels(context: typer.Context, max_pixels: int | None) -> int | None:
    """Sets Pillow's limit until the command ends, which may be called in a longer process."""
    if max_pixels is not None:
        from ..images import limit_pixels

        context.with_resource(limit_pixels(max_pixels))
    return max_pixels


MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=_limit_pixels,
        show_default="178,956,970",
        help="Refuse images with more pixels, which could fill the memory.",
    ),
]


Cutout = Annotated[
    bool,
    typer.Option(
        "--cutout",
        help="Also write cutout_000.png and so on: the object alone, cropped, on a transparent "
        "background.",
    ),
]
Labelme = Annotated[
    bool,
    typer.Option(
        "--labelme",
        help="Also write labelme.json: polygons for labelme; holes are filled.",
    ),
]


Embeddings = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|DIR",
        exists=True,
        help="Take the embedding of an image from here, as mobile-sam embed wrote it with this "
        "checkpoint, instead of encoding the image.",
    ),
]

Backend = Annotated[
    Literal["torch", "onnx", "openvino"],
    typer.Option(
        help="Inference engine; onnx and openvino run the files of mobile-sam export, see "
        "--onnx-dir."
    ),
]
OnnxFolder = Annotated[
    Path | None,
    typer.Option(
        "--onnx-dir",
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Output folder of mobile-sam export; for --backend onnx and openvino.",
    ),
]
BackendDevice = Annotated[
    str,
    typer.Option(
        metavar="D",
        help="Device. torch: cpu, cuda, cuda:1, mps; onnx: an execution provider; openvino: "
        "CPU, GPU, NPU; or auto.",
    ),
]

ModelType = Literal["vit_t", "vit_b", "vit_l", "vit_h"]
Dtype = Literal["float32", "float16"]


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, in the place of each parameter that is a dataclass, its fields as options.

    typer passes one value per option; the command gets them as instances of the dataclasses.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for each in inspect.signature(command).parameters.values():
        if isinstance(each.annotation, type) and is_dataclass(each.annotation):
            groups[each.name] = each.annotation
            parameters += inspect.signature(each.annotation).parameters.values()
        else:
            parameters.append(each)

    @functools.wraps(command)
    def called(**given: Any) -> None:
        for name, group in groups.items():
            names = [each.name for each in fields(group)]
            given[name] = group(**{each: given.pop(each) for each in names})
        command(**given)

    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return called


def parse_point(text: str) -> tuple[float, float, int]:
    """Returns X, Y and the label of a ``--point``."""
    x, y, label = (*parse_numbers(text, "--point", "X,Y or X,Y,LABEL", (2, 3)), 1.0)[:3]
    if label not in (0, 1):
        raise typer.BadParameter(
            f"the label of {text!r} is neither 1 (object) nor 0 (background)", param_hint="--point"
        )
    return x, y, int(label)


def parse_box(text: str) -> list[float]:
    """Returns the XYXY of a ``--box``."""
    return parse_numbers(text, "--box", "X0,Y0,X1,Y1", (4,))


def parse_numbers(
    text: str, option: str, form: str, counts: tuple[int, ...] | None = None
) -> list[float]:
    """Returns the numbers of an option's value.

    Args:
        text: the value, such as ``"1,2"``.
        option: its name, for the message.
        form: what it should look like, for the message.
        counts: how many numbers it may have; None for one or more.

    Raises:
        typer.BadParameter: if it has another number of them, or one is not finite.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    allowed = bool(numbers) if counts is None else len(numbers) in counts
    if not allowed or not all(map(math.isfinite, numbers)):
        raise typer.BadParameter(f"{text!r} is not {form}, in numbers", param_hint=option)
    return numbers


def load_model(checkpoint: str | None, device: str) -> "MobileSam":
    """Builds MobileSAM on a device.

    Raises:
        UserError: if the device cannot be used.
        FileNotFoundError, IsADirectoryError, PermissionError, ConnectionError, UserError: if the
            checkpoint cannot be loaded, see :func:`~mobile_sam_plugin.build_sam_vit_t`.
    """
    from .. import DEFAULT_CHECKPOINT, build_sam_vit_t

    target = find_device(device)
    return build_sam_vit_t(checkpoint or DEFAULT_CHECKPOINT).to(target)


def check_backend(
    backend: str, folder: Path | None, checkpoint: str | None, embeddings: Path | None
) -> None:
    """Raises typer.BadParameter where options of torch and of exported files contradict."""
    if (backend == "torch") != (folder is None):
        raise typer.BadParameter(
            "required for --backend onnx and openvino, and only for them", param_hint="--onnx-dir"
        )
    if folder is not None and checkpoint is not None:
        raise typer.BadParameter(
            "not for --onnx-dir: exported files contain their weights", param_hint="--checkpoint"
        )
    if folder is not None and embeddings is not None:
        raise typer.BadParameter(
            "not for --onnx-dir: exported files do not say of which weights they are",
            param_hint="--embeddings",
        )


def load_exported(backend: str, folder: Path, device: str) -> "OnnxPredictor":
    """Loads the files of ``mobile-sam export`` for onnxruntime or OpenVINO; errors as theirs."""
    from ..deploy import OnnxPredictor, OpenVinoPredictor

    files = folder / "mobile_sam_encoder.onnx", folder / "mobile_sam_decoder.onnx"
    given = () if device == "auto" else (device,)
    if backend == "openvino":
        return OpenVinoPredictor(*files, *given)
    return OnnxPredictor(*files, given) if given else OnnxPredictor(*files)


def load_backend(
    backend: str,
    folder: Path | None,
    checkpoint: str | None,
    embeddings: Path | None,
    device: str,
) -> "OnnxBackend | TorchBackend":
    """Loads a model for the engine, exported files without torch; errors as of what it loads."""
    from ..engine import OnnxBackend, TorchBackend

    if folder is not None:
        return OnnxBackend(load_exported(backend, folder, device))
    return TorchBackend(load_model(checkpoint, device), embeddings)


def load_sam(model_type: ModelType, checkpoint: str | None, option: str, device: str) -> "Sam":
    """Builds a SAM of a type on a device.

    Raises:
        typer.BadParameter: if no checkpoint is given, and the type has no default one.
        UserError: if the checkpoint is of another type.
        Others: as :func:`load_model`.
    """
    if model_type == "vit_t":
        return load_model(checkpoint, device)
    if checkpoint is None:
        raise typer.BadParameter(f"required for {model_type}: it has no default", param_hint=option)

    from .. import sam_model_registry
    from ..checkpoint import locate_checkpoint, model_type_of, read_checkpoint

    target = find_device(device)
    tensors = read_checkpoint(locate_checkpoint(checkpoint))
    found = model_type_of(tensors)
    if found != model_type:  # before a large model is built in vain
        raise UserError(
            f"checkpoint {checkpoint!r} holds {f'a {found}' if found else 'another model'}, not a "
            f"{model_type}: give its type, or another {option}"
        )
    model = sam_model_registry[model_type]()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {checkpoint!r} is not a {model_type}: {str(error)[:200]}"
        ) from error
    return model.to(target)


def require_embeddings(path: Path, model: "Sam") -> "Callable[[NDArray[np.uint8]], SamPredictor]":
    """Returns :func:`~mobile_sam_plugin.predictor.open_embeddings`'s function, which then raises.

    It raises a UserError if there is no embedding of an image.

    Raises:
        UserError: as `open_embeddings`.
    """
    from ..predictor import open_embeddings

    find = open_embeddings(path, model)

    def find_or_refuse(pixels: "NDArray[np.uint8]") -> "SamPredictor":
        predictor = find(pixels)
        if predictor is None:
            raise UserError(
                f"{str(path)!r} has no embedding of this image: add it with mobile-sam embed, or "
                "leave out --embeddings"
            )
        return predictor

    return find_or_refuse


def find_device(name: str) -> "torch.device":
    """Returns a device by its name, or the best one for ``"auto"``.

    Raises:
        UserError: if the device cannot be used.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (AssertionError, ImportError, RuntimeError) as error:  # whatever the backend raises
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"device {name!r} cannot be used here; give cpu, cuda, cuda:N or mps ({reason})"
        ) from error
    return device
