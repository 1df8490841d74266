"""The evaluation of a SAM on a data set of images with masks."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from segment_anything.modeling import Sam

from ..checkpoint import fingerprint
from ..datasets.annotated import AnnotatedImage, AnnotatedImages
from ..datasets.unreadable import Skipped, check_fit
from ..errors import UserError
from ..runs import alone_in
from .examiner import METRICS, Examiner
from .predictors import Predictor, find_module
from .results import Evaluation, ImageScores, Journal, summarize


def evaluate(
    model: Sam | Predictor,
    data: AnnotatedImages,
    *,
    teacher: Sam | None = None,
    metrics: Sequence[str] = METRICS,
    masks_per_image: int = 5,
    seed: int = 0,
    strict: bool = False,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates a model on a data set, one image after another.

    Masks are compared at the size of the original image. The masks that are chosen from an image
    and their prompts depend only on the seed, the index of the image and that of the mask, so
    models and metrics can be compared mask by mask.

    Args:
        model: any SAM, or another :class:`~.predictors.Predictor`.
        data: images with masks; images without masks are skipped.
        teacher: if given, also compare with this model's masks.
        metrics: some of :data:`~.examiner.METRICS`, which that module explains. Recall takes by far
            the most time: 1024 points per image; it needs a SAM.
        masks_per_image: maximum number of masks per image to prompt for, drawn at random. Recall
            counts all masks.
        seed: random seed of masks, prompts and bootstrap.
        strict: raise an error at an unusable image, instead of skipping it with a warning.
        folder: if given, the scores of each image are added to ``images.jsonl`` in it. The scores
            of an interrupted run are taken from there if an image's pixels and masks are unchanged.
        progress: called with the number of images done and of all images.

    Raises:
        ValueError: if an argument is invalid; if there is no image, or no mask in any of them; if
            the folder holds an evaluation of other models, input sizes or arguments, or one that is
            being written; if most images are unusable; or, with `strict`, if one is.
        OSError: with `strict`, if an image cannot be read.

    Examples:
        >>> evaluation = evaluate(sam, open_annotated_images("val"), metrics=["click"])
        >>> evaluation.scores["click"].mean
        >>> evaluation.save("evaluation")
    """
    check_arguments(data, metrics, METRICS, masks_per_image, seed)
    sizes = {}
    if not isinstance(model, Predictor):
        sizes["img_size"] = model.image_encoder.img_size
    elif searching := [name for name in metrics if name.startswith("recall")]:
        raise UserError(f"{', '.join(searching)}: everything mode needs a SAM, not any predictor")
    if teacher is not None:
        sizes["teacher_img_size"] = teacher.image_encoder.img_size
    settings: dict[str, Any] = {
        "metrics": [name for name in METRICS if name in metrics],
        "masks_per_image": masks_per_image,
        "seed": seed,
        **sizes,
        "model": fingerprint_of(model),
        "teacher": None if teacher is None else fingerprint_of(teacher),
    }
    examiner = Examiner(model, teacher, settings["metrics"], masks_per_image, seed)
    return examine_all(
        data,
        examiner,
        settings,
        sizes=sizes.values(),
        strict=strict,
        folder=folder,
        progress=progress,
    )


class Examines(Protocol):
    """What :func:`examine_all` asks for the scores of an image.

    Attributes:
        names: names of the scores.
    """

    names: list[str]

    def examine(
        self, index: int, item: AnnotatedImage
    ) -> tuple[list[int], dict[str, list[float | None]]]:
        """Scores an image, as :meth:`~.examiner.Examiner.examine`."""


def examine_all(
    data: AnnotatedImages,
    examiner: Examines,
    settings: dict[str, Any],
    *,
    sizes: Iterable[int] = (),
    strict: bool = False,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores all images of a data set, one after another.

    Args:
        data: images with masks.
        examiner: scores an image.
        settings: all that decides the scores, ``seed`` among them, that of the bootstrap.
        sizes: input sizes of the models, for which no image may be too thin.
        strict, folder, progress: as in :func:`evaluate`, and so are the errors.
    """
    sizes = list(sizes)
    images: list[ImageScores] = []
    skipped = Skipped(len(data), strict=strict, what="image")
    with ExitStack() as stack:
        journal = None
        if folder is not None:
            stack.enter_context(alone_in(Path(folder)))
            journal = Journal(Path(folder), settings)
        for index in range(len(data)):
            try:
                item = data[index]
                for size in sizes:
                    check_fit(item.image, size)
            except (OSError, ValueError) as error:
                skipped.skip(index, error)
            else:
                skipped.use(index, item.empty)
                content = item.fingerprint()
                scores = None if journal is None else journal.known.get((index, content))
                if scores is None:
                    masks, values = examiner.examine(index, item)
                    scores = ImageScores(index, item.name, masks, values, content)
                    if journal is not None:
                        journal.add(scores)
                images.append(scores)
            if progress is not None:
                progress(index + 1, len(data))
    skipped.tell()
    if not any(image.masks for image in images):
        raise UserError(f"none of the {len(images)} readable images, of {len(data)}, has a mask")
    scores_of_all = summarize(images, examiner.names, settings["seed"])
    return Evaluation(scores_of_all, images, settings, len(skipped), skipped.describe())


def check_arguments(
    data: AnnotatedImages,
    metrics: Sequence[str],
    known: Sequence[str],
    masks_per_image: int,
    seed: int,
) -> None:
    """Raises UserError if an argument of :func:`evaluate` is invalid; ``known`` are all metrics."""
    if isinstance(metrics, str):
        raise UserError(f"metrics must be a list of names such as ['click'], not {metrics!r}")
    for name in metrics:
        if name not in known:
            raise UserError(f"there is no metric {name!r}, only {', '.join(known)}")
    if not metrics:
        raise UserError(f"give at least one metric: {', '.join(known)}")
    if masks_per_image < 1:
        raise UserError(f"masks_per_image must be 1 or more, not {masks_per_image}")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, not {seed}")
    if len(data) == 0:
        raise UserError("there is no image to evaluate on")


def fingerprint_of(model: Sam | Predictor) -> str:
    """Returns what tells models apart: the checksum of the weights, as far as they are known."""
    if isinstance(model, Predictor):
        network = find_module(model)
        name = f"{type(model).__module__}.{type(model).__qualname__}"
        return name if network is None else f"{name} {fingerprint(network.state_dict())}"
    # Files do not hold these.
    normalisation = {"pixel_mean": model.pixel_mean, "pixel_std": model.pixel_std}
    return fingerprint(model.state_dict() | normalisation)
