"""A run: checks what is requested, resumes what is in the folder, and writes the overall files."""

import dataclasses
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..engine import TorchBackend, backend_of
from ..errors import UserError
from ..images import join_counts, limit_pixels
from ..polygons import Losses
from ..runs import alone_in, refuse_other_run
from ..threads import ordered_map
from . import writers
from .items import Listed, Source, read_text
from .listing import WAY_OUT, Listing
from .options import AnnotationOptions, ImageResult
from .pipeline import run_local
from .proposals import is_coco
from .stages import MASKS_PER_IMAGE, Job, Segmenter
from .storage import RUN_FILE, Folder
from .writers import ERRORS_FILE, LIST_FILE

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from ..deploy import OnnxPredictor

_READERS = 8
_UNNAMED = "detected objects whose label matches nothing in the text (lower text_threshold)"


class AnnotationRun:
    """Annotates images, or resumes a run that was interrupted.

    Nothing is written before the first result is requested.

    Attributes:
        total: number of images, with the limit and the shard; of a video, as many frames as its
            header promises.
        done: number of images that have been annotated.
        failed: number of images that could not be annotated in this run.
        skipped: what this run left out, counted by kind: files that are not images, boxes outside
            of their image.
    """

    def __init__(
        self,
        source: Source,
        out: str | os.PathLike[str] | None,
        model: "Sam | OnnxPredictor",
        options: AnnotationOptions,
        restart: bool = False,
        max_pixels: int | None = None,
    ) -> None:
        """Lists the source and reads the folder.

        Args:
            source: the images.
            out: the folder for results, a path or a URL; nothing is written if None.
            model: a Sam on the device where it computes; or exported files, which need no torch.
            options: of the run.
            restart: whether to delete the results of an earlier run in the folder.
            max_pixels: maximum per image, see :func:`~mobile_sam_plugin.annotate`.

        Raises:
            UserError: if the folder holds results of other options, boxes or weights, or files of
                another program; or if an option does not fit the source.
            MissingExtra: if a format needs a package that is not installed.
        """
        if "parquet" in options.formats:
            writers.import_pyarrow()
        backend = backend_of(model)
        if options.mode == "text" and not isinstance(backend, TorchBackend):
            raise UserError("mode text finds objects by torch: it takes no exported files")
        if options.mode == "boxes" and source.kind != "coco":
            raise UserError("mode boxes needs a COCO JSON file as input: the boxes are in it")
        if "labelme" in options.formats and source.kind == "video":
            raise UserError("labelme opens image files: it cannot show the frames of a video")
        if max_pixels is not None and max_pixels < 1:
            raise UserError(f"max_pixels must be 1 or more, not {max_pixels}")
        if options.mode != "boxes":
            _refuse_large_ids(source)
        self.options = options
        self.source = source
        self.backend = backend
        self.folder = None if out is None else Folder(out)
        self.failed = 0
        self.skipped = Counter(source.skipped)
        self._max_pixels = max_pixels
        self._restart = restart
        self._listing = Listing(source, self.folder, options)
        self._settings: dict[str, Any] = {
            "version": __version__,
            "input": source.inputs,
            "source": source.kind,
            "image_root": source.root,
            "listing": {"images": self._listing.count, "sha256": self._listing.checksum},
            "skipped": dict(source.skipped),
            "mode": options.mode,
            "formats": list(options.formats),
            "limit": options.limit,
            "options": _describe(options),
            "model": self.backend.identity,
        }
        resumed = self.folder is not None and self._resume(self.folder)
        self.done = self._listing.count_done() if resumed else 0
        self.total = self._listing.total

    def run(
        self, workers: int | None = None, batch_size: int | None = None
    ) -> Generator[ImageResult, None, None]:
        """Annotates on this machine.

        Args:
            workers: threads that run the model; 2 on a GPU and 1 elsewhere if None.
            batch_size: images that are encoded together; 8 on a GPU and 1 elsewhere if None.

        Yields:
            The result of each image, in order, after its files have been written.

        Raises:
            UserError: if another run is writing to the folder.
            OSError: if the disk is full or the folder is not writable. What was done is kept.
        """
        return self.collect(run_local(self._job(), workers, batch_size))

    def run_on_ray(
        self,
        address: str | None = None,
        workers: int | None = None,
        batch_size: int | None = None,
        gpus_per_worker: float | None = None,
    ) -> Generator[ImageResult, None, None]:
        """Annotates on a Ray cluster, like :meth:`run` otherwise.

        Args:
            address: of the cluster; one is started on this machine if None.
            workers: actors with a model; if None as many as the cluster's GPUs serve, without
                GPUs 1.
            batch_size: images that are encoded together; 8 on a GPU and 1 elsewhere if None.
            gpus_per_worker: GPUs per actor; 1 if the model is on a GPU, else 0, if None.

        Raises:
            UserError: if the source is a video, which cannot be divided, or the model is in
                exported files.
            MissingExtra: if Ray is not installed.
        """
        if self.source.kind == "video":
            raise UserError("a video is decoded frame after frame: use --engine local")
        if not isinstance(self.backend, TorchBackend):
            raise UserError("exported files run on this machine alone: use --engine local")
        from .ray_engine import run_ray

        job = self._job()
        Segmenter(job.backend, job.options, job.categories)  # refuses invalid options here
        return self.collect(run_ray(job, address, workers, batch_size, gpus_per_worker))

    def collect(
        self, results: Generator[ImageResult, None, None]
    ) -> Generator[ImageResult, None, None]:
        """Passes on the results of an engine, and writes the files that cover all images.

        They are written when the results end, when the caller stops, or at Ctrl-C. After another
        error they are not written; the next run writes them.
        """
        with ExitStack() as stack:
            if self.folder is not None and self.folder.local is not None:
                stack.enter_context(alone_in(self.folder.local))
            yield from self._collect(results)

    def _collect(
        self, results: Generator[ImageResult, None, None]
    ) -> Generator[ImageResult, None, None]:
        self._begin()
        interruption: BaseException | None = None
        losses = Losses()
        skipped: Counter[str] = Counter()
        with ExitStack() as stack:
            if self._max_pixels is not None:
                stack.enter_context(limit_pixels(self._max_pixels))
            errors: IO[bytes] | None = None
            try:
                for result in results:
                    skipped.update(f"box {entry['reason']}" for entry in result.skipped_boxes)
                    if result.unnamed:
                        skipped[_UNNAMED] += result.unnamed
                    if result.error is None:
                        self.done += 1
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
                if self.folder is not None:  # count images that were written but not passed on
                    self.done = self._listing.count_done()
                if not isinstance(error, GeneratorExit | KeyboardInterrupt):
                    raise
                interruption = error
        self._finish()
        self.skipped += skipped
        if skipped:
            warnings.warn(f"left out: {join_counts(skipped)}", stacklevel=2)
        if not self.options.polygons:  # else write_coco has warned already
            losses.warn()
        if interruption is not None:
            raise interruption

    def _job(self) -> Job:
        items = self._listing.pending()
        return Job(items, self.backend, self.options, self._categories(), self.folder)

    def _resume(self, folder: Folder) -> bool:
        """Returns whether the folder holds a run that this one resumes.

        Raises:
            UserError: if the folder holds something else.
        """
        try:
            earlier = json.loads(folder.read(RUN_FILE))
        except FileNotFoundError:
            for name in writers.WRITTEN:
                if name == LIST_FILE:  # a run was killed while it began
                    continue
                if folder.exists(name) or folder.names(name):
                    raise UserError(
                        f"{folder.path(name)!r} is not a result of mobile-sam annotate: "
                        "choose another folder"
                    ) from None
            return False
        except (NotADirectoryError, ValueError):
            earlier = None
        expected = self._settings.keys() - {"skipped"}
        if not isinstance(earlier, dict) or not expected <= earlier.keys():
            raise UserError(
                f"{folder.path(RUN_FILE)!r} was not written by mobile-sam annotate: choose "
                "another folder"
            )
        if self._restart:
            return False
        now = json.loads(_to_json(self._settings))
        may_change = {"input", "skipped", "limit"}  # they do not change the result of an image
        if self.source.kind != "video":
            may_change.add("listing")
        refuse_other_run(folder.location, earlier, now, may_change, WAY_OUT)
        self._listing.resume(folder, is_same=earlier["listing"] == now["listing"])
        self._settings["listing"] = earlier["listing"]
        return True

    def _begin(self) -> None:
        if self.folder is None:
            return
        self.folder.remove_partial()
        if self._restart:
            self.folder.remove(*writers.WRITTEN, RUN_FILE)
        self._listing.store(self.folder)
        self.folder.write(RUN_FILE, _to_json(self._settings, indent=1).encode() + b"\n")

    def _finish(self) -> None:
        if self.folder is None:
            return
        if not self.failed:
            self.folder.remove(ERRORS_FILE)
        if "coco" in self.options.formats:
            writers.write_coco(
                self.folder,
                self._records(self.folder),
                self._categories(),
                self.options.polygons,
            )
        if "parquet" in self.options.formats:
            writers.write_parquet(self.folder, self._records(self.folder))
        if "yolo" in self.options.formats:
            writers.write_yolo_names(self.folder, self._categories())
        self.folder.remove_partial()

    def _categories(self) -> Mapping[int, str]:
        if self.options.mode == "boxes":
            return self.source.categories
        return dict(enumerate(self.options.text or ["object"], 1))

    def _records(self, folder: Folder) -> Iterator[dict[str, Any]]:
        """Reads the records of all images that are done, in order."""

        def read(listed: Listed) -> dict[str, Any] | None:
            file = writers.record_file(listed.name)
            try:
                content: dict[str, Any] = json.loads(folder.read(file))
            except OSError:  # there is none
                if folder.exists(file):
                    raise
                return None
            except ValueError:
                warnings.warn(
                    f"{folder.path(file)!r} was damaged and is removed: the next run does the "
                    "image again",
                    stacklevel=2,
                )
                folder.remove(file)
                return None
            return content

        with ThreadPoolExecutor(_READERS) as pool:
            included = self._listing.included()
            yield from filter(None, ordered_map(read, included, pool, 4 * _READERS))


def _refuse_large_ids(source: Source) -> None:
    """Refuses a COCO data set whose image ids leave no room for mask ids, before any work."""
    most = (2**63 - 1) // MASKS_PER_IMAGE - 1
    for listed in source.listing() if source.kind == "coco" else ():
        if listed.image_id is not None and abs(listed.image_id) > most:
            raise UserError(
                f"the image id {listed.image_id} is too large: mask ids are {MASKS_PER_IMAGE:,} "
                f"times the image id, so the maximum is {most:,}"
            )


def _to_json(value: Any, indent: int | None = None) -> str:
    """Returns JSON, also of options that are NumPy arrays and numbers."""

    def convert(other: Any) -> Any:
        if isinstance(other, np.ndarray | np.generic):
            return other.tolist()
        raise UserError(f"an option must be a number, a text or a list, not {other!r}")

    return json.dumps(value, indent=indent, default=convert)


def _describe(options: AnnotationOptions) -> dict[str, Any]:
    plain = dataclasses.replace(options, detector=None, proposals=None, generator_options={})
    described = dataclasses.asdict(plain)
    for name in ("mode", "formats", "limit", "polygons"):
        del described[name]
    return {
        **described,
        "generator_options": dict(options.generator_options),
        "detector": _describe_tool(options.detector),
        "proposals": _describe_tool(options.proposals),
    }


def _describe_tool(tool: Any) -> str | None:
    """Returns what tells detectors and sources of boxes apart: a name; a JSON's contents."""
    if tool is None:
        return None
    if not isinstance(tool, str | os.PathLike):
        return getattr(tool, "__qualname__", type(tool).__qualname__)
    name = os.fspath(tool)
    if is_coco(name):
        return hashlib.sha256(read_text(name).encode("utf-8", "surrogatepass")).hexdigest()
    return name
