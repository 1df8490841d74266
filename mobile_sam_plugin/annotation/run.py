"""A run: what is still to be done, what was asked for, and the files of all images at its end."""

import dataclasses
import gzip
import json
import math
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import IO, Any

import numpy as np
from PIL import Image
from segment_anything.modeling import Sam

from .. import __version__
from ..errors import UserError
from ..polygons import Losses
from . import writers
from .items import Item, Listed, Source
from .options import ImageResult, Options
from .pipeline import ordered_map, run_local
from .sources import list_frame
from .stages import MASKS_PER_IMAGE, Segmenter, model_identity
from .storage import RUN_FILE, Folder
from .writers import ERRORS_FILE, LIST_FILE

_READERS = 8
_UNNAMED = "that the detector calls by none of the prompts (lower text_threshold)"


class AnnotationRun:
    """Annotates images, or goes on with that where it was stopped.

    Nothing is written before the first result is asked for.

    Attributes:
        total: how many images there are, with the limit and the shard; of a video what its header
            tells.
        done: how many of them have been done.
        failed: how many could not be, in this run.
        left_out: what was left out in this run, counted by kind: files that are no images, boxes
            that lie outside of their image.
    """

    def __init__(
        self,
        source: Source,
        out: str | os.PathLike[str] | None,
        model: Sam,
        options: Options,
        restart: bool = False,
        max_pixels: int | None = None,
    ) -> None:
        """Looks at the source and at the folder.

        Args:
            source: the images.
            out: the folder for results, a path or a URL; nothing is written if None.
            model: on the device where it computes.
            options: of the run.
            restart: whether to give up what the folder holds of another run.
            max_pixels: of an image, as :func:`~mobile_sam_plugin.annotate` takes it.

        Raises:
            UserError: the folder holds results of other options, boxes or weights, or of another
                origin; or an option does not go with the source.
            ImportError: a format needs a package that is not installed.
        """
        if "parquet" in options.formats:
            writers.import_pyarrow()
        self.options = options
        self.source = source
        if options.mode == "boxes" and source.kind != "coco":
            raise UserError("mode boxes takes its boxes from a COCO json: name one to annotate")
        if "labelme" in options.formats and source.kind == "video":
            raise UserError("labelme opens files of images: it cannot show the frames of a video")
        if max_pixels is not None and max_pixels < 1:
            raise UserError(f"max_pixels must be 1 or more, not {max_pixels}")
        self.model = model
        self.folder = None if out is None else Folder(out)
        self.failed = 0
        self.left_out = Counter(source.left_out)
        self._max_pixels = max_pixels
        count, checksum = source.scan()
        if options.mode != "boxes":
            _refuse_large_ids(source)
        self.total = options.count(count)
        self._asked_for: dict[str, Any] = {
            "version": __version__,
            "input": source.places,
            "source": source.kind,
            "image_root": source.root,
            "listing": {"images": count, "sha256": checksum},
            "left_out": dict(source.left_out),
            "mode": options.mode,
            "formats": list(options.formats),
            "limit": options.limit,
            "options": _describe(options),
            "model": model_identity(model),
        }
        self._done: set[str] | None = None
        self._has_listing = False  # in the folder
        self._numbered: list[Listed] | None = None  # if the images are not those of the first run
        self._gone: list[Listed] = []
        self.done = 0
        self._restart = restart
        if self.folder is not None and self._take_up(self.folder):
            if self._numbered is not None:
                self.total = sum(options.includes(listed.index) for listed in self._numbered)
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
                self._items(),
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
                self._items(),
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
        losses = Losses()
        left_out: Counter[str] = Counter()
        with ExitStack() as stack:
            stack.enter_context(_limit_pixels(self._max_pixels))
            errors: IO[bytes] | None = None
            try:
                for result in results:
                    left_out.update(f"box {entry['reason']}" for entry in result.left_out)
                    if result.unnamed:
                        left_out[_UNNAMED] += result.unnamed
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
                if self.folder is not None:  # also what was written but not passed on
                    self.done = self._count_done()
                if not isinstance(error, GeneratorExit | KeyboardInterrupt):
                    raise
                interruption = error
        self._finish()
        self.left_out += left_out
        if left_out:
            kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
            warnings.warn(f"left out: {kinds}", stacklevel=2)
        if not self.options.polygons:  # of which more has been told
            losses.warn()
        if interruption is not None:
            raise interruption

    def is_wanted(self, listed: Listed) -> bool:
        """Whether an image is in this run and has not been done."""
        return self.options.includes(listed.index) and self._is_missing(listed)

    def _items(self) -> Iterator[Item]:
        """The images still to be done; the folder is looked into when the first is asked for."""
        if self.source.kind == "video":
            yield from self.source.items(self.is_wanted, self.options.limit)
        else:
            yield from map(self._item, filter(self.is_wanted, self._listing()))

    def _item(self, listed: Listed) -> Item:
        item = self.source.item(listed)
        if self.options.mode != "boxes":  # then they are not looked at
            item = dataclasses.replace(item, boxes=(), size=None)
        return item

    def _listing(self) -> Iterable[Listed]:
        """All images, by the numbers and names that the folder has for them.

        Of a video the frames that are done.
        """
        if self.source.kind == "video":
            return [] if self.folder is None else _list_frames(self.folder)
        if self._numbered is not None:
            return self._numbered
        if self.folder is not None and self._has_listing:
            return _read_listing(self.folder)
        return self.source.listing()

    def _count_done(self) -> int:
        self._done = None
        return sum(
            self.options.includes(listed.index) and not self._is_missing(listed)
            for listed in self._listing()
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
            for name in writers.WRITTEN:
                if name == LIST_FILE:  # a run was killed while it began
                    continue
                if folder.exists(name) or folder.names(name):
                    raise UserError(
                        f"{folder.path(name)!r} is no result of mobile-sam annotate: name another "
                        "folder"
                    ) from None
            return False
        except (NotADirectoryError, ValueError):
            earlier = None
        expected = self._asked_for.keys() - {"left_out"}
        if not isinstance(earlier, dict) or not expected <= earlier.keys():
            raise UserError(
                f"{folder.path(RUN_FILE)!r} was not written by mobile-sam annotate: name another "
                "folder"
            )
        if self._restart:
            return False
        now = json.loads(_to_json(self._asked_for))
        # More images or other words for them, but the same results.
        for name in ("input", "left_out", "limit"):
            earlier[name] = now[name]
        first = earlier["listing"]
        if self.source.kind != "video":
            earlier["listing"] = now["listing"]
        differing = _differences(earlier, now)
        if differing:
            raise UserError(
                f"the folder {folder.place!r} holds results of another run ({'; '.join(differing)})"
                ": name another folder, or give them up with --restart"
            )
        if first != now["listing"]:
            self._asked_for["listing"] = first
            self._number(folder)
        self._has_listing = folder.exists(LIST_FILE)
        return True

    def _number(self, folder: Folder) -> None:
        """Gives numbers and names to images that the first run into the folder did not know.

        Those of the others stay. An image that is new belongs to the part that its name says, so
        that parts share it out wherever each has come to; its number is one that no other part
        gives.

        Raises:
            UserError: boxes or ids of images that are done have changed.
        """
        try:
            known = {listed.key: listed for listed in _read_listing(folder)}
        except FileNotFoundError:
            raise UserError(
                f"{folder.path(LIST_FILE)!r} is missing, so that images which were added cannot be "
                "told: name another folder, or give up the results with --restart"
            ) from None
        part, parts = self.options.shard
        taken = {listed.name.casefold() for listed in known.values()}
        after = 1 + max(listed.index for listed in known.values())
        index = after + (part - 1 - after) % parts
        numbered, changed = [], []
        for listed in self.source.listing():
            before = known.pop(listed.key, None)
            if before is None:
                if zlib.crc32(os.fsencode(listed.key)) % parts != part - 1:
                    continue
                name = listed.name if listed.name.casefold() not in taken else listed.key
                while name.casefold() in taken:
                    name += "_"
                taken.add(name.casefold())
                numbered.append(dataclasses.replace(listed, index=index, name=name))
                index += parts
                continue
            if before.image_id != listed.image_id or (
                self.options.mode == "boxes" and before.prompts != listed.prompts
            ):
                changed.append(listed.key)
            numbered.append(dataclasses.replace(listed, index=before.index, name=before.name))
        if changed:
            raise UserError(
                f"the folder {folder.place!r} holds results of another run: the ids or boxes of "
                f"{len(changed)} images have changed, such as {changed[0]!r}; name another folder, "
                "or give them up with --restart"
            )
        self._gone = [*known.values()]
        self._numbered = numbered
        if self._gone:
            verb = "images are" if len(self._gone) > 1 else "image is"
            warnings.warn(
                f"{len(self._gone)} {verb} no longer in the input, such as {self._gone[0].key!r}: "
                "their results stay where they are, but are left out of the files of all images",
                stacklevel=4,
            )

    def _begin(self) -> None:
        if self.folder is None:
            return
        self.folder.remove_partial()
        if self._restart:
            self.folder.remove(*writers.WRITTEN, RUN_FILE)
            self._done = None
        if self.source.kind != "video":
            if self._numbered is not None:
                every = sorted(chain(self._gone, self._numbered), key=lambda listed: listed.index)
                _write_listing(self.folder, every)
            elif not self._has_listing:
                _write_listing(self.folder, self.source.listing())
            self._has_listing = True
        self.folder.write(RUN_FILE, _to_json(self._asked_for, indent=1).encode() + b"\n")

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
            except ValueError:
                warnings.warn(
                    f"{folder.path(file)!r} was damaged and is removed: the next run does the "
                    "image again",
                    stacklevel=2,
                )
                folder.remove(file)
                return None
            return content

        included = (item for item in self._listing() if self.options.includes(item.index))
        with ThreadPoolExecutor(_READERS) as pool:
            yield from filter(None, ordered_map(read, included, pool, 4 * _READERS))


def _read_listing(folder: Folder) -> Iterator[Listed]:
    """The images that a folder has numbers for, a line each, in the order of these."""
    with folder.open(LIST_FILE) as file, gzip.open(file) as lines:
        for line in lines:
            yield Listed(*json.loads(line))


def _write_listing(folder: Folder, listing: Iterable[Listed]) -> None:
    with (
        folder.create(LIST_FILE) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as lines,
    ):
        for listed in listing:
            lines.write(json.dumps(dataclasses.astuple(listed)).encode() + b"\n")


def _list_frames(folder: Folder) -> list[Listed]:
    """The frames of a video that are done."""
    found = (re.fullmatch(r"sa1b/([0-9]{6,})\.json", name) for name in folder.names("sa1b"))
    return [list_frame(index) for index in sorted(int(name[1]) for name in found if name)]


def _refuse_large_ids(source: Source) -> None:
    """Refuses a COCO json whose ids leave no room for those of masks, before any work is done."""
    most = (2**63 - 1) // MASKS_PER_IMAGE - 1
    for listed in source.listing() if source.kind == "coco" else ():
        if listed.image_id is not None and abs(listed.image_id) > most:
            raise UserError(
                f"the image id {listed.image_id} is too large: the ids of masks are "
                f"{MASKS_PER_IMAGE:,} times that, so that {most:,} is the most"
            )


@contextmanager
def _limit_pixels(max_pixels: int | None) -> Iterator[None]:
    """Lets Pillow open images of so many pixels, as long as the run goes on."""
    before = Image.MAX_IMAGE_PIXELS
    if max_pixels is not None:
        Image.MAX_IMAGE_PIXELS = math.ceil(max_pixels / 2)  # Pillow refuses twice as many
    try:
        yield
    finally:
        if max_pixels is not None:
            Image.MAX_IMAGE_PIXELS = before


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON, also of options that are arrays and numbers of NumPy."""

    def convert(other: Any) -> Any:
        if isinstance(other, np.ndarray | np.generic):
            return other.tolist()
        raise UserError(f"an option cannot be {other!r}: give a number, a text or a list")

    return json.dumps(value, indent=indent, default=convert)


def _describe(options: Options) -> dict[str, Any]:
    described = dataclasses.asdict(dataclasses.replace(options, detector=None))
    detector = options.detector
    if detector is not None and not isinstance(detector, str | os.PathLike):
        detector = type(detector).__qualname__
    for name in ("mode", "formats", "limit", "polygons"):
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
