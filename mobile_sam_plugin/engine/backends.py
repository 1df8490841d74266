"""MobileSAM in torch, onnxruntime or OpenVINO, under one interface for the engine."""

import copy
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..deploy import OnnxAutomaticMaskGenerator, OnnxPredictor, OpenVinoPredictor
from ..deploy.predictor import MASK_THRESHOLD
from ..errors import UserError
from ..everything import Progress
from ..files import digest_contents, replaced
from ..inputs import mask_to_logits
from ..mask_postprocessing import FloatArray, UncompressedRLE, mask_from_rle
from ..records import Record

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from ..automatic_mask_generator import SamAutomaticMaskGenerator
    from ..embeddings import EncoderIdentity
    from ..predictor import SamPredictor

Pixels = NDArray[np.uint8]
Predictor: TypeAlias = Union["SamPredictor", OnnxPredictor]
"""A predictor with an image set."""

_AT_ONCE = 16  # prompts between two looks at the clock


class Generator(Protocol):
    """Everything mode of a model; see :class:`~mobile_sam_plugin.everything.MaskGenerator`."""

    pred_iou_thresh: float
    stability_score_thresh: float
    point_grids: Sequence[NDArray[Any]]

    def generate(
        self,
        image: Pixels | None,
        progress: Progress | None = None,
        predictor: Any = None,
        proposals: ArrayLike | None = None,
    ) -> list[Record]:
        """Returns a record per mask; see ``SamAutomaticMaskGenerator.generate``."""


@dataclass(frozen=True)
class Prompt:
    """What one object is asked for by.

    Attributes:
        points: (N, 2) XY in pixels of the image; N may be 0.
        labels: (N,), 1 for the object, 0 for the background.
        box: XYXY in pixels.
        mask: of the image's size.
        multimask: whether three candidates are wanted instead of one.
    """

    points: Sequence[Sequence[float]] = ()
    labels: Sequence[int] = ()
    box: Sequence[float] | None = None
    mask: UncompressedRLE | None = None
    multimask: bool = False

    @property
    def is_ambiguous(self) -> bool:
        """Whether it is a single click, for which the best of three candidates is better."""
        return len(self.points) == 1 and self.box is None and self.mask is None

    @property
    def form(self) -> tuple[int, bool, bool, bool]:
        """What the prompts of a batch have in common."""
        wants_three = self.multimask or self.is_ambiguous
        return len(self.points), self.box is not None, self.mask is not None, wants_three


class Backend(Protocol):
    """A model that several threads may use at once.

    Attributes:
        name: ``torch``, ``onnx`` or ``openvino``.
        suffix: of the files of embeddings.
        mask_threshold: pixels with logits above it belong to the mask.
        img_size: side of the model's input in pixels.
    """

    name: str
    suffix: str
    mask_threshold: float
    img_size: int

    @property
    def device(self) -> str:
        """Name in torch of the device for what computes beside it, such as a detector."""

    @property
    def encoder(self) -> str:
        """What distinguishes its image encoder, which embeddings belong to, from others."""

    @property
    def identity(self) -> dict[str, Any]:
        """What distinguishes the model from others: its input size and digests of its weights."""

    def encode(self, pixels: Pixels) -> Predictor:
        """Returns a predictor with an image, (H, W, 3) uint8 RGB, set."""

    def encode_resized(
        self, images: Sequence[Pixels], original_sizes: Sequence[tuple[int, int]]
    ) -> "Sequence[Predictor]":
        """Returns predictors with images set that :func:`~..inputs.resize` has resized.

        Args:
            images: (h, w, 3) uint8 RGB each, the longer side as long as the model's input.
            original_sizes: (H, W) of each image before, in whose pixels prompts and masks are.
        """

    def decode(
        self,
        predictor: Predictor,
        points: NDArray[np.float64] | None,
        labels: NDArray[np.int64] | None,
        boxes: NDArray[np.float64] | None,
        logits: FloatArray | None,
        multimask: bool,
    ) -> tuple[FloatArray, FloatArray]:
        """Decodes a batch of prompts.

        Args:
            predictor: with the image set.
            points: (B, N, 2) XY in pixels, or None.
            labels: (B, N), with the points.
            boxes: (B, 4) XYXY in pixels, or None.
            logits: (B, 1, 256, 256) low-res logits, or None.
            multimask: whether to return three masks per prompt instead of one.

        Returns:
            Low-res logits (B, C, 256, 256) and predicted IoU (B, C).
        """

    def generator(self, **options: Any) -> Generator:
        """Returns everything mode with options of ``SamAutomaticMaskGenerator``.

        Raises:
            TypeError, UserError: if an option cannot be used.
        """

    def features(self, predictor: Predictor) -> FloatArray:
        """Returns the embedding, (1, 256, 64, 64) float32."""

    def save(self, predictor: Predictor, path: Path) -> None:
        """Writes the embedding to a file, which appears whole or not at all."""

    def load(self, path: Path) -> Predictor:
        """Returns a predictor with the embedding of a file set.

        Raises:
            FileNotFoundError: if there is none.
            UserError: if it is damaged.
        """


class TorchBackend:
    """A SAM in torch; see :class:`Backend`.

    Examples:
        >>> backend = TorchBackend(build_sam_vit_t())
    """

    name = "torch"
    suffix = ".safetensors"

    def __init__(self, model: "Sam", embeddings: str | os.PathLike[str] | None = None) -> None:
        """Takes the model.

        Args:
            model: any SAM.
            embeddings: file or folder that ``mobile-sam embed`` wrote; its images are not encoded.

        Raises:
            UserError: as :func:`~mobile_sam_plugin.predictor.open_embeddings`.
        """
        from ..predictor import open_embeddings

        self.model = model
        self.mask_threshold = float(model.mask_threshold)
        self.img_size = int(model.image_encoder.img_size)
        self._find: Callable[[Pixels], SamPredictor | None] = lambda pixels: None
        if embeddings is not None:
            self._find = open_embeddings(embeddings, model)

    @property
    def device(self) -> str:
        return str(self.model.device)

    @cached_property
    def _encoder(self) -> "EncoderIdentity":
        from ..embeddings import identify_encoder

        return identify_encoder(self.model)

    @property
    def encoder(self) -> str:
        return f"{self._encoder.name}-{self._encoder.img_size}-{self._encoder.sha256}"

    @property
    def identity(self) -> dict[str, Any]:
        from ..checkpoint import fingerprint

        return {"img_size": self.img_size, "weights_sha256": fingerprint(self.model.state_dict())}

    def encode(self, pixels: Pixels) -> "SamPredictor":
        predictor = self._find(pixels)
        if predictor is None:
            predictor = self._predictor()
            predictor.set_image(pixels)
        return predictor

    def encode_resized(
        self, images: Sequence[Pixels], original_sizes: Sequence[tuple[int, int]]
    ) -> "list[SamPredictor]":
        import torch

        predictor = self._predictor()
        tensors = [
            torch.as_tensor(image, device=predictor.device).permute(2, 0, 1)[None]
            for image in images
        ]
        return predictor.set_torch_image_batch(tensors, original_sizes)

    def _predictor(self) -> "SamPredictor":
        from ..predictor import SamPredictor

        return SamPredictor(self.model)

    def decode(
        self,
        predictor: Any,
        points: NDArray[np.float64] | None,
        labels: NDArray[np.int64] | None,
        boxes: NDArray[np.float64] | None,
        logits: FloatArray | None,
        multimask: bool,
    ) -> tuple[FloatArray, FloatArray]:
        import torch

        def tensor(values: NDArray[Any] | None, dtype: torch.dtype = torch.float) -> Any:
            if values is None:
                return None
            return torch.as_tensor(values, dtype=dtype, device=predictor.device)

        if points is not None:
            points = predictor.transform.apply_coords(points, predictor.original_size)
        if boxes is not None:
            boxes = predictor.transform.apply_boxes(boxes, predictor.original_size)
        low_res_logits, scores = predictor.predict_low_res_torch(
            tensor(points), tensor(labels, torch.int), tensor(boxes), tensor(logits), multimask
        )
        return low_res_logits.cpu().numpy(), scores.cpu().numpy()

    def generator(self, **options: Any) -> "SamAutomaticMaskGenerator":
        from ..automatic_mask_generator import SamAutomaticMaskGenerator

        return SamAutomaticMaskGenerator(self.model, **options)

    def features(self, predictor: Any) -> FloatArray:
        features: FloatArray = predictor.get_image_embedding().float().cpu().numpy()
        return features

    def save(self, predictor: Any, path: Path) -> None:
        predictor.save_embedding(path, encoder=self._encoder)

    def load(self, path: Path) -> "SamPredictor":
        predictor = self._predictor()
        predictor.load_embedding(path, encoder=self._encoder)
        return predictor


class OnnxBackend:
    """The files of ``mobile-sam export`` in onnxruntime or OpenVINO; see :class:`Backend`.

    Attributes:
        graphs: the predictor whose graphs are used.

    Examples:
        >>> backend = OnnxBackend(OnnxPredictor("encoder.onnx", "decoder.onnx"))
    """

    suffix = ".npz"
    mask_threshold = MASK_THRESHOLD
    device = "cpu"

    def __init__(self, predictor: OnnxPredictor) -> None:
        """Takes the graphs of a predictor, whose own image stays as it is."""
        self.name = "openvino" if isinstance(predictor, OpenVinoPredictor) else "onnx"
        self.img_size = predictor.img_size
        self.graphs = predictor

    @cached_property
    def _encoder_sha256(self) -> str:
        return _digest_weights(self.graphs.encoder.path)

    @property
    def encoder(self) -> str:
        return f"{self.name}-{self.img_size}-{self._encoder_sha256}"

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "img_size": self.img_size,
            "encoder_sha256": self._encoder_sha256,
            "decoder_sha256": _digest_weights(self.graphs.decoder.path),
        }

    def encode(self, pixels: Pixels) -> OnnxPredictor:
        predictor = copy.copy(self.graphs)
        predictor.set_image(pixels)
        return predictor

    def encode_resized(
        self, images: Sequence[Pixels], original_sizes: Sequence[tuple[int, int]]
    ) -> list[OnnxPredictor]:
        predictors = [self.encode(image) for image in images]
        for predictor, size in zip(predictors, original_sizes, strict=True):
            predictor.original_size = size
        return predictors

    def decode(
        self,
        predictor: Any,
        points: NDArray[np.float64] | None,
        labels: NDArray[np.int64] | None,
        boxes: NDArray[np.float64] | None,
        logits: FloatArray | None,
        multimask: bool,
    ) -> tuple[FloatArray, FloatArray]:
        decoded: tuple[FloatArray, FloatArray] = predictor.predict_low_res_batch(
            points, labels, boxes, logits, multimask
        )
        return decoded

    def generator(self, **options: Any) -> OnnxAutomaticMaskGenerator:
        return OnnxAutomaticMaskGenerator(self.graphs, **options)

    def features(self, predictor: Any) -> FloatArray:
        features: FloatArray = predictor.get_image_embedding()
        return features

    def save(self, predictor: Any, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes = {"original_size": predictor.original_size, "input_size": predictor.input_size}
        with replaced(path) as partial:
            np.savez(partial, features=predictor.features, **sizes)

    def load(self, path: Path) -> OnnxPredictor:
        predictor = copy.copy(self.graphs)
        try:
            with np.load(path, allow_pickle=False) as file:
                predictor.features = file["features"]
                (height, width), (h, w) = file["original_size"], file["input_size"]
        except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"the embedding {str(path)!r} is damaged: {error}") from error
        predictor.original_size, predictor.input_size = (int(height), int(width)), (int(h), int(w))
        predictor.is_image_set = True
        return predictor


def backend_of(model: "Sam | OnnxPredictor") -> Backend:
    """Returns the backend of a SAM in torch, or of the graphs of a predictor."""
    return OnnxBackend(model) if isinstance(model, OnnxPredictor) else TorchBackend(model)


def _digest_weights(path: str) -> str:
    """Returns the SHA-256 of an ONNX file, and of the weights beside it if it is too large."""
    return digest_contents(*(name for name in (path, f"{path}.data") if os.path.exists(name)))


def decode_prompts(
    backend: Backend, predictor: Predictor, prompts: Sequence[Prompt], check: Callable[[], None]
) -> Iterator[tuple[int, list[tuple[FloatArray, float]]]]:
    """Decodes prompts on one image, those of the same form in batches.

    Args:
        backend: the model.
        predictor: with the image set.
        prompts: in any number.
        check: called before each batch; what it raises ends the work.

    Yields:
        The index of a prompt, and the low-res logits (256, 256) and predicted IoU of its
        candidates: three if it asked for them, else the best one.
    """
    by_form = sorted(range(len(prompts)), key=lambda index: prompts[index].form)
    for (points, box, mask, multimask), group in groupby(by_form, lambda i: prompts[i].form):
        indices = list(group)
        for start in range(0, len(indices), _AT_ONCE):
            check()
            some = indices[start : start + _AT_ONCE]
            batch = [prompts[index] for index in some]
            decoded = backend.decode(
                predictor,
                np.array([each.points for each in batch], float) if points else None,
                np.array([each.labels for each in batch], int) if points else None,
                np.array([each.box for each in batch], float) if box else None,
                np.stack([_as_logits(each, predictor) for each in batch]) if mask else None,
                multimask,
            )
            for index, logits, scores in zip(some, *decoded, strict=True):
                candidates = [*zip(logits, map(float, scores), strict=True)]
                if not prompts[index].multimask:
                    candidates = [max(candidates, key=lambda candidate: candidate[1])]
                yield index, candidates


def _as_logits(prompt: Prompt, predictor: Predictor) -> FloatArray:
    """Returns the mask of a prompt as low-res logits, (1, 256, 256)."""
    assert prompt.mask is not None
    height, width = predictor.original_size
    if list(prompt.mask["size"]) != [height, width]:
        raise UserError(
            f"the mask of a prompt has the size {prompt.mask['size']}, and the image "
            f"[{height}, {width}]"
        )
    # Not of all prompts at once: their masks could fill the memory.
    mask = mask_from_rle(prompt.mask)
    return mask_to_logits(mask, predictor.low_res_size, predictor.input_size)[None]
