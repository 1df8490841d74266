"""Whether a checkpoint is the authors', and whether it segments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from huggingface_hub import cached_assets_path
from segment_anything.modeling import Sam
from torch import Tensor

from .checkpoint import (
    AUTHORS_CHECKPOINT,
    AUTHORS_SHA256,
    BUNDLED_FILE,
    fingerprint,
)
from .files import digest_contents, write_file
from .images import load_image
from .photographs import list_photographs
from .predictor import SamPredictor

_AUTHORS = "Apache-2.0", "https://github.com/ChaoningZhang/MobileSAM"  # licence and source
_BUNDLED = "Apache-2.0", "this package, see README.md beside the file"

_PHOTOGRAPH = "flower.jpg"
_BLOSSOM = [165, 82, 448, 358]  # XYXY
_INSIDE, _OUTSIDE = [306, 220], [30, 30]  # XY
_AREAS = 0.001, 0.9  # of the image, from a petal to more than the blossom
_PREDICTED_IOU = 0.7  # that the authors' weights exceed on an object as plain as this


class Provenance(NamedTuple):
    """What is known about where weights come from.

    Attributes:
        proof: ``"file"``: the file is the authors', byte for byte. ``"tensors"``: its tensors are
            those of such a file. ``"other"``: they are not. None: nothing is proven, since no
            file of the authors has been seen here.
        sentence: the same in words, with what it rests on.
        licence: of the weights.
        source: where they come from.
    """

    proof: Literal["file", "tensors", "other"] | None
    sentence: str
    licence: str = "unknown: ask whoever made the weights"
    source: str = "unknown"


class Check(NamedTuple):
    """The best mask for one prompt.

    Attributes:
        prompt: in words.
        area: as a part of the image.
        predicted_iou: the model's own estimate.
        fault: what is wrong with it; None if nothing is.
    """

    prompt: str
    area: float
    predicted_iou: float
    fault: str | None


def trace_weights(path: Path, state: Mapping[str, Tensor]) -> Provenance:
    """Tells whether weights are the authors'.

    A file is theirs if its SHA-256 is the one that they published. Their tensors can also come in
    another file, such as a .safetensors. So the fingerprint of their tensors is recorded when a
    file of theirs is seen for the first time, and later files are compared with it. The record is
    a file in the folder of Hugging Face's assets, for this user alone.

    Args:
        path: the checkpoint's file.
        state: the ``state_dict()`` of the model that has loaded it, in float32. It has no
            classification head, in whatever file the weights came.
    """
    found = fingerprint(state)
    record = cached_assets_path("mobile-sam-plugin") / f"{AUTHORS_SHA256}.fingerprint"
    if digest_contents(path) == AUTHORS_SHA256:
        write_file(record, found.encode())
        sentence = f"the authors' file, by its sha256; fingerprint recorded in {record}"
        return Provenance("file", sentence, *_AUTHORS)
    if path == BUNDLED_FILE:
        sentence = "not the authors': the checkpoint that comes with this package"
        return Provenance("other", sentence, *_BUNDLED)
    if not record.exists():
        return Provenance(
            None,
            "unknown: the file is not the authors' own, and no file of theirs has been verified "
            f"here to compare the tensors with; run mobile-sam info --verify {AUTHORS_CHECKPOINT}",
        )
    if record.read_text() == found:
        return Provenance(
            "tensors",
            "the authors', by comparison: another file than theirs, with tensors equal to the bit "
            f"to those of the authors' file that was verified here, see {record}",
            *_AUTHORS,
        )
    return Provenance(
        "other",
        "not the authors': the tensors differ from those of the authors' file that was verified "
        "here; so do those of a copy in float16",
    )


def check_masks(model: Sam, authors: bool) -> list[Check]:
    """Segments a photograph of this package by three prompts, and looks at the masks.

    A mask has to be finite, to have a plausible area, and to keep to its prompt.

    Args:
        model: in float32; the photograph is computed in eval mode.
        authors: whether the weights are the authors', so that their predicted IoU has to be above
            0.7. Others may score lower and be sound.
    """
    (photograph,) = (path for path in list_photographs() if path.name == _PHOTOGRAPH)
    predictor = SamPredictor(model)
    predictor.set_image(load_image(photograph))
    prompts: dict[str, dict[str, Any]] = {
        "a box": {"box": _BLOSSOM},
        "a point": {"point_coords": [_INSIDE], "point_labels": [1]},
        "two points": {"point_coords": [_INSIDE, _OUTSIDE], "point_labels": [1, 0]},
    }
    checks = []
    for name, prompt in prompts.items():
        masks, scores, logits = predictor.predict(**prompt)
        best = int(np.argmax(scores))
        finite = bool(np.isfinite(scores).all() and np.isfinite(logits).all())
        area, score = float(masks[best].mean()), float(scores[best])
        fault = None
        if not finite:
            fault = "not finite"
        elif not _AREAS[0] < area < _AREAS[1]:
            fault = "no plausible area"
        elif not _keeps_to(masks[best], prompt):
            fault = "not where the prompt is"
        elif authors and score <= _PREDICTED_IOU:
            fault = f"predicted IoU not above {_PREDICTED_IOU}"
        checks.append(Check(f"{_PHOTOGRAPH}, {name}", area, score, fault))
    return checks


def _keeps_to(mask: Any, prompt: dict[str, Any]) -> bool:
    if "box" in prompt:
        x0, y0, x1, y1 = prompt["box"]
        inside = mask[y0:y1, x0:x1]
        return bool(inside.sum() > mask.sum() / 2 and inside.mean() > 0.1)
    return all(
        bool(mask[y, x]) == bool(label)
        for (x, y), label in zip(prompt["point_coords"], prompt["point_labels"], strict=True)
    )
