"""A run: what is still to be done, what was asked for, and the files of all images at its end."""

import dataclasses
import json
import os
import warnings
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO, Any

from segment_anything.modeling import Sam

from .. import __version__
from ..errors import UserError
from ..polygons import Losses
from . import writers
from .options import ImageResult, Options
from .pipeline import ordered_map, run_local
from .sources import Listed, Source
from .stages import Segmenter, model_identity
from .storage import Folder

RUN_FILE = "run.json"
ERRORS_FILE = "errors.jsonl"

_WRITTEN = (
    *writers.IMAGE_FOLDERS,
    writers.COCO_FILE,
    writers.PARQUET_FILE,
    writers.YOLO_FILE,
    ERRORS_FILE,
)
_READERS = 8


class AnnotationRun:
    """Annotates images, or goes on with that where it was stopped.

    Nothing is written before the first result is asked for.

    Attributes:
        total: how many images there are, with the limit and the shard; of a video what its header
            tells.
        done: how many of them have been done.
        failed: how many could not be, in this run.
    """

    def __init__(
        self,
        source: Source,
        out: str | os.PathLike[str] | None,
        model: Sam,
        options: Options,
        restart: bool = False,
    ) -> None:
        """Looks at the source and at the folder.

        Args:
            source: the images.
            out: the folder for results, a path or a URL; nothing is written if None.
            model: on the device where it computes.
            options: of the run.
            restart: whether to give up what the folder holds of another run.

        Raises:
            ValueError: the folder holds results of other options, images or weights, or of another
                origin; or there are no boxes for mode boxes.
            ImportError: a format needs a package that is not installed.
        """
        if "parquet" in options.formats:
            writers.import_pyarrow()
        self.options = options
        self.source = source
        if options.mode == "boxes" and source.kind != "coco":
            raise UserError("mode boxes takes its boxes from a COCO json: name one to annotate")
        self.model = model
        self.folder = None if out is None else Folder(out)
        self.failed = 0
        count, checksum = source.scan()
        self.total = options.count(count)
        self._asked_for: dict[str, Any] = {
            "version": __version__,
            "input": source.places,
            "source": source.kind,
            "image_root": source.root,
            "listing": {"images": count, "sha256": checksum},
            "mode": options.mode,
            "formats": list(options.formats),
            "limit": options.limit,
            "options": _describe(options),
            "model": model_identity(model),
        }
        self._done: set[str] | None = None
        self.done = 0
        self._restart = restart
        if self.folder is not None and self._take_up(self.folder):
            self.done = self._count_done()

    def run(
        self, workers: int | None = None, batch_size: int | None = None
    ) -> Generator[ImageResult, None, None]:
        """Annotates on this machine.

        Args:
            workers: threads that compute with the model; 2 on a GPU and 1 elsewhere if None.
            batch_size: images that are encoded together; 8 on a GPU and 1 elsewhere if None.

        Yields:
            The result of each image, once its files are written, in order.

        Raises:
            OSError: there is no room left, or the folder may not be written to. What was done is
                kept.
        """
        on_gpu = self.model.device.type != "cpu"
        segmenter = Segmenter(self.model, self.options, self._categories())
        return self.follow(
            run_local(
                self.source.items(self.is_wanted),
                segmenter,
                self.model.image_encoder.img_size,
                self.folder,
                self.options,
                workers or (2 if on_gpu else 1),
                batch_size or (8 if on_gpu else 1),
            )
        )

    def run_on_ray(
        self,
        address: str | None = None,
        workers: int | None = None,
        batch_size: int | None = None,
        gpus_per_worker: float | None = None,
    ) -> Generator[ImageResult, None, None]:
        """Annotates on a cluster of Ray; as :meth:`run` but for these.

        Args:
            address: of a cluster; one is started on this machine if None.
            workers: actors with a model; as many as the cluster's GPUs serve, else 1, if None.
            batch_size: images that are encoded together; 8 on a GPU and 1 elsewhere if None.
            gpus_per_worker: of an actor; 1 if the model is on a GPU, else 0, if None.

        Raises:
            ValueError: the source is a video, which has no parts to share out.
            ImportError: Ray is not installed.
        """
        from .ray_engine import run_ray

        if self.source.kind == "video":
            raise UserError("the frames of a video come one after another: use the engine local")
        Segmenter(self.model, self.options, self._categories())  # refuses options, if it does
        return self.follow(
            run_ray(
                self.source.items(self.is_wanted),
                self.model,
                self.options,
                self._categories(),
                self.folder,
                address,
                workers,
                batch_size,
                gpus_per_worker,
            )
        )

    def follow(
        self, results: Generator[ImageResult, None, None]
    ) -> Generator[ImageResult, None, None]:
        """Passes on the results of an engine, and writes what is not of one image.

        The files of all images are written when the results end, or are no longer asked for, or
        the user interrupts. After another error they are left out, and the next run writes them.
        """
        self._begin()
        interruption: BaseException | None = None
        losses, unnamed = Losses(), 0
        with ExitStack() as stack:
            errors: IO[bytes] | None = None
            try:
                for result in results:
                    if result.error is None:
                        self.done += 1
                        unnamed += result.unnamed
                        losses.add(result.losses)
                    else:
                        self.failed += 1
                        if self.folder is not None:
                            errors = errors or stack.enter_context(self.folder.create(ERRORS_FILE))
                            line = {"file_name": result.key, "error": result.error}
                            errors.write(json.dumps(line).encode() + b"\n")
                    yield result
            except BaseException as error:
                results.close()
                if self.folder is not None:  # also what was written but not passed on
                    self.done = self._count_done()
                if not isinstance(error, GeneratorExit | KeyboardInterrupt):
                    raise
                interruption = error
        self._finish()
        if unnamed:
            warnings.warn(
                f"left out: {unnamed} objects that the detector calls by none of the prompts; "
                "lower text_threshold",
                stacklevel=2,
            )
        losses.warn()
        if interruption is not None:
            raise interruption

    def is_wanted(self, listed: Listed) -> bool:
        """Whether an image is in this run and has not been done."""
        return self.options.includes(listed.index) and self._is_missing(listed)

    def _count_done(self) -> int:
        self._done = None
        return sum(
            self.options.includes(listed.index) and not self._is_missing(listed)
            for listed in self.source.listing()
        )

    def _is_missing(self, listed: Listed) -> bool:
        if self.folder is None:
            return True
        file = writers.record_file(listed.name)
        if self.folder.local is not None:
            return not self.folder.exists(file)
        if self._done is None:  # one request instead of one an image
            self._done = self.folder.names("sa1b")
        return file not in self._done

    def _take_up(self, folder: Folder) -> bool:
        """Whether the run goes on with what the folder holds of an earlier one.

        Raises:
            ValueError: the folder holds something else.
        """
        try:
            earlier = json.loads(folder.read(RUN_FILE))
        except FileNotFoundError:
            for name in _WRITTEN:
                if folder.exists(name) or folder.names(name):
                    raise UserError(
                        f"{folder.path(name)!r} is no result of mobile-sam annotate: name another "
                        "folder"
                    ) from None
            return False
        except (NotADirectoryError, ValueError):
            earlier = None
        if not isinstance(earlier, dict) or not self._asked_for.keys() <= earlier.keys():
            raise UserError(
                f"{folder.path(RUN_FILE)!r} was not written by mobile-sam annotate: name another "
                "folder"
            )
        if self._restart:
            return False
        now = json.loads(json.dumps(self._asked_for))
        for name in ("input", "limit"):  # more images or other words for them, but the same results
            earlier[name] = now[name]
        differing = _differences(earlier, now)
        if differing:
            raise UserError(
                f"the folder {folder.place!r} holds results of another run ({'; '.join(differing)})"
                ": name another folder, or give them up with --restart"
            )
        return True

    def _begin(self) -> None:
        if self.folder is None:
            return
        self.folder.remove_partial()
        if self._restart:
            self.folder.remove(*_WRITTEN, RUN_FILE)
            self._done = None
        self.folder.write(RUN_FILE, json.dumps(self._asked_for, indent=1).encode() + b"\n")

    def _finish(self) -> None:
        if self.folder is None:
            return
        if not self.failed:
            self.folder.remove(ERRORS_FILE)
        if "coco" in self.options.formats:
            writers.write_coco(self.folder, self._records(self.folder), self._categories())
        if "parquet" in self.options.formats:
            writers.write_parquet(self.folder, self._records(self.folder))
        if "yolo" in self.options.formats:
            writers.write_yolo_names(self.folder, self._categories())
        self.folder.remove_partial()

    def _categories(self) -> Mapping[int, str]:
        if self.options.mode == "boxes":
            return self.source.categories
        return dict(enumerate(self.options.prompts or ["object"], 1))

    def _records(self, folder: Folder) -> Iterator[dict[str, Any]]:
        """The records of all images that are done, in order."""

        def read(listed: Listed) -> dict[str, Any] | None:
            file = writers.record_file(listed.name)
            try:
                content: dict[str, Any] = json.loads(folder.read(file))
            except OSError:  # there is none
                if folder.exists(file):
                    raise
                return None
            except ValueError as error:
                raise UserError(
                    f"{folder.path(file)!r} is damaged: delete it and run the command again"
                ) from error
            return content

        included = (item for item in self.source.listing() if self.options.includes(item.index))
        with ThreadPoolExecutor(_READERS) as pool:
            yield from filter(None, ordered_map(read, included, pool, 4 * _READERS))


def _describe(options: Options) -> dict[str, Any]:
    described = dataclasses.asdict(dataclasses.replace(options, detector=None))
    detector = options.detector
    if detector is not None and not isinstance(detector, str | os.PathLike):
        detector = type(detector).__qualname__
    for name in ("mode", "formats", "limit"):
        del described[name]
    return {**described, "detector": detector and os.fspath(detector)}


def _differences(earlier: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two values of JSON, by name."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        return [
            difference
            for key in {**earlier, **now}
            for difference in _differences(earlier.get(key), now.get(key), f"{name} {key}".strip())
        ]
    return [] if earlier == now else [f"{name} was {earlier!r}, is now {now!r}"]
