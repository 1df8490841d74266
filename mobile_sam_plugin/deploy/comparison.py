"""Whether exported files give the masks of torch."""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor

from ..errors import UserError
from ..images import load_image
from ..inputs import input_size, preprocess
from ..mask_postprocessing import MaskUpscaler
from ..model import MaskDecoder
from ..predictor import SamPredictor
from .clients import Client
from .decoder_graph import DecoderGraph
from .runtimes import OnnxRuntime


@dataclass(frozen=True)
class Export:
    """One of the files, compared with torch.

    Attributes:
        path: path of the file, or of the folder that is one.
        megabytes: size in 10^6 bytes.
        largest_difference: largest absolute difference on the first image: of the embeddings, or
            of the decoder's low-res logits for the same embeddings.
        seconds: time of an image or of a click in the file's runtime on this machine's CPU.
        torch_seconds: the same of ``SamPredictor``.
        mask_iou: mean IoU of the masks that the files make, together if there are two, with those
            of torch, over nine clicks per image; or of the masks that the decoder upscales itself,
            if that is lower.
        kept: names of the nodes that :mod:`.half_precision` kept in float32.

    Figures are NaN where the runtime does not run on this machine.
    """

    path: Path
    megabytes: float
    largest_difference: float = math.nan
    seconds: float = math.nan
    torch_seconds: float = math.nan
    mask_iou: float = math.nan
    kept: tuple[str, ...] = ()


def refuse_unexportable(model: Sam) -> None:
    """Raises UserError unless a SAM is in float32 on the CPU, with a mask decoder of its own."""
    weight = next(model.parameters())
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise UserError(
            f"the model must be in float32 on the CPU, not {weight.dtype} on {weight.device}"
        )
    if MaskDecoder.standing_in(model.mask_decoder) is None:
        raise UserError(
            "the mask decoder is not SAM's own: it or a part of it runs other code or has hooks, "
            "which the exported graph would lack"
        )


def model_size(sam: Sam) -> int:
    """Returns the side of the model's input in pixels."""
    size: int = sam.image_encoder.img_size
    return size


def data_of(path: Path) -> Path:
    """Returns where an ONNX file's weights lie if they exceed what one file may hold."""
    return path.with_name(f"{path.name}.data")


def compare(
    theirs: SamPredictor,
    ours: "Graphs",
    images: Sequence[str | os.PathLike[str]],
    judged: "Graphs | None" = None,
) -> list[Export]:
    """Compares files with torch: their masks on all images, the rest on the first.

    Args:
        theirs: a predictor of the model; its image is replaced.
        ours: the files.
        images: paths of images.
        judged: the graphs whose masks count; the files if None.
    """
    judged = judged or ours
    overlaps = []
    for picture in map(load_image, images):
        theirs.set_image(picture)
        features = judged.encode(picture) if ours.encoder_path else theirs.features
        for click in clicks_on(picture):
            feeds = judged.feeds(theirs, click)
            expected = judged.logits_in_torch(feeds)
            logits = judged.logits({**feeds, "image_embeddings": features})
            overlaps += [_overlap(*each) for each in zip(logits > 0, expected > 0, strict=True)]
    mask_iou = float(np.mean(overlaps))

    picture = load_image(images[0])
    theirs.set_image(picture)
    click = clicks_on(picture)[0]
    feeds = ours.feeds(theirs, click)
    if "orig_im_size" in feeds:
        mask_iou = min(mask_iou, ours.upscaled_overlap(feeds))
    found = []
    if ours.encoder_path:
        seconds, torch_seconds = (
            _time(partial(work, picture)) for work in (ours.encode, theirs.set_image)
        )
        difference = float((ours.encode(picture) - theirs.features).abs().max())
        figures = (difference, seconds, torch_seconds, mask_iou)
        found.append(Export(ours.encoder_path, megabytes(ours.encoder_path), *figures))
    seconds = _time(partial(ours.decode, feeds))
    torch_seconds = _time(partial(theirs.predict, click[None], np.ones(1)))
    difference = float(np.abs(ours.logits(feeds) - ours.logits_in_torch(feeds)).max())
    figures = (difference, seconds, torch_seconds, mask_iou)
    found.append(Export(ours.decoder_path, megabytes(ours.decoder_path), *figures))
    return found


class Loaded(Protocol):
    """A file in its runtime."""

    @property
    def inputs(self) -> Mapping[str, object]:
        """What is known of the inputs, by name."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Computes the named outputs, in their order."""


def in_onnxruntime(path: Path) -> Loaded:
    """Loads a graph for the CPU."""
    return OnnxRuntime(path, ("CPUExecutionProvider",))


class Graphs:
    """The files of a client in a runtime, by default onnxruntime, and its decoder in torch."""

    def __init__(
        self,
        sam: Sam,
        encoder: Path | None,
        decoder: Path,
        client: Client,
        load: Callable[[Path], Loaded] = in_onnxruntime,
    ) -> None:
        self.encoder_path, self.decoder_path = encoder, decoder
        self._size, self._picture = model_size(sam), client.picture
        self._graph = client.graph(sam).eval()
        self._encoder = load(encoder) if encoder else None
        self._decoder = load(decoder)

    def encode(self, picture: NDArray[np.uint8]) -> Tensor:
        """Returns the embeddings (1, 256, 64, 64) of an image."""
        assert self._encoder is not None
        given: NDArray[np.generic] = (
            picture.astype(self._picture) if self._picture else preprocess(picture, self._size)
        )
        (name,) = self._encoder.inputs
        return torch.from_numpy(self._encoder.run(["image_embeddings"], {name: given})[0])

    def feeds(self, predictor: SamPredictor, click: NDArray[np.float64]) -> dict[str, Tensor]:
        """Returns the decoder's inputs; see :func:`feeds_of`."""
        return feeds_of(self._graph, predictor, click)

    def decode(
        self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None
    ) -> list[NDArray[np.float32]]:
        """Runs the decoder; by default for all outputs."""
        numpys = {name: value.numpy() for name, value in feeds.items()}
        return self._decoder.run(outputs or self._graph.outputs, numpys)

    def logits(self, feeds: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """Returns low-res logits of the candidates for one prompt, (M, 256, 256)."""
        (logits,) = self.decode(feeds, [self._graph.logits])
        return logits.reshape(-1, *logits.shape[-2:])[-3:]

    @torch.no_grad()
    def logits_in_torch(self, feeds: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """As :meth:`logits`, from torch."""
        outputs = dict(zip(self._graph.outputs, self._graph(**feeds), strict=True))
        logits = outputs[self._graph.logits].numpy()
        return logits.reshape(-1, *logits.shape[-2:])[-3:]

    def upscaled_overlap(self, feeds: Mapping[str, Tensor]) -> float:
        """Returns the IoU of the masks that the graph upscales with those of its low-res logits.

        For an image size that half precision cannot represent.
        """
        size = 2001, 3001
        feeds = {**feeds, "orig_im_size": torch.tensor(size).float()}
        (masks,), (low_res_logits,) = self.decode(feeds, ["masks", "low_res_masks"])
        if masks.shape[1:] != size:
            return 0.0
        shape = low_res_logits.shape[1:]
        upscaler = MaskUpscaler(input_size(*size, self._size), size, shape, self._size)
        pairs = zip(masks, low_res_logits, strict=True)
        return float(
            np.mean([_overlap(mask > 0, upscaler.binary_mask(low)) for mask, low in pairs])
        )


def feeds_of(
    graph: DecoderGraph, predictor: SamPredictor, click: NDArray[np.float64]
) -> dict[str, Tensor]:
    """Returns a decoder's inputs for a click (2,), XY in pixels, on a predictor's image."""
    size = predictor.original_size
    point = torch.from_numpy(predictor.transform.apply_coords(click[None], size)).float()
    return graph.feeds(predictor.features, point[None], torch.tensor(size).float())


def clicks_on(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns clicks all over an image, (9, 2), XY in pixels, the centre first."""
    places = sorted(product((0.25, 0.5, 0.75), repeat=2), key=lambda place: place != (0.5, 0.5))
    return np.array(places) * picture.shape[1::-1]


def _overlap(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = np.count_nonzero(mask | other)
    return np.count_nonzero(mask & other) / union if union else 1.0


def _time(work: Callable[[], object]) -> float:
    """Returns the median seconds of three runs; earlier ones have warmed up."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def megabytes(path: Path) -> float:
    """Returns the size of an exported file or folder, with its weights, in 10^6 bytes."""
    files = [path, data_of(path), *path.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6
