"""Which images a run has, by which numbers and names, and which of them are done."""

import dataclasses
import gzip
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain

from ..errors import UserError
from . import writers
from .items import Item, Listed, Source
from .options import AnnotationOptions
from .sources import list_frame
from .storage import Folder
from .writers import LIST_FILE

WAY_OUT = "choose another folder, or start over with --restart (restart=True)"


class Listing:
    """The images of a run, by the numbers and names that they have in its folder.

    Numbers and names stay when images are added to the input: new images are numbered after the
    others. Of a video, the frames that are done are listed.

    Attributes:
        count: number of images in the source; of a video, as many as its header promises.
        checksum: of the source's list of images.
    """

    def __init__(self, source: Source, folder: Folder | None, options: AnnotationOptions) -> None:
        """Lists the images as the source does, until :meth:`resume` is called.

        Args:
            source: the images.
            folder: of the run; without one no image is ever done.
            options: of the run, which include an image or not.
        """
        self.count, self.checksum = source.scan()
        self._source = source
        self._folder = folder
        self._options = options
        self._is_stored = False  # in the folder
        self._numbered: list[Listed] | None = None  # set if the images are not the first run's
        self._removed: list[Listed] = []  # images of the first run that are no longer in the input
        self._records: set[str] | None = None  # the files in a remote folder

    @property
    def total(self) -> int:
        """The number of included images; of a video, as many as its header promises."""
        if self._numbered is None:
            return self._options.count(self.count)
        return sum(1 for _ in self.included())

    def resume(self, folder: Folder, is_same: bool) -> None:
        """Continues with the numbers and names in the folder of an earlier run.

        Args:
            folder: of the run.
            is_same: whether the source has the same images as at the first run.

        Raises:
            UserError: if ids or boxes of images in the folder have changed, or if the folder's
                listing is missing.
        """
        if not is_same:
            self._renumber(folder)
        self._is_stored = folder.exists(LIST_FILE)

    def included(self) -> Iterator[Listed]:
        """Lists the images that the limit and the shard include."""
        return (listed for listed in self._all() if self._options.includes(listed.index))

    def pending(self) -> Iterator[Item]:
        """Lists the images that are to be done; the folder is read when the first is requested."""
        if self._source.kind == "video":
            yield from self._source.items(self._is_pending, self._options.limit)
            return
        for listed in filter(self._is_pending, self._all()):
            item = self._source.item(listed)
            if self._options.mode != "boxes":
                item = dataclasses.replace(item, boxes=(), size=None)
            yield item

    def count_done(self) -> int:
        """Counts the included images that are done, by the files that are there now."""
        self._records = None
        return sum(not self._is_missing(listed) for listed in self.included())

    def store(self, folder: Folder) -> None:
        """Writes the listing to the folder, unless the same one is there already."""
        if self._source.kind == "video":
            return
        if self._numbered is not None:
            every = chain(self._removed, self._numbered)
            _write(folder, sorted(every, key=lambda listed: listed.index))
        elif not self._is_stored:
            _write(folder, self._source.listing())
        self._is_stored = True

    def _renumber(self, folder: Folder) -> None:
        """Keeps the numbers and names of the folder's images, and gives new ones to new images.

        The name of a new image decides to which shard it belongs, so that shards agree on it
        whenever each of them sees it. Its number is one that no other shard gives.
        """
        try:
            known = {listed.key: listed for listed in _read(folder)}
        except FileNotFoundError:
            raise UserError(
                f"{folder.path(LIST_FILE)!r} is missing, so images that were added cannot be told "
                f"from the others: {WAY_OUT}"
            ) from None
        part, parts = self._options.shard
        taken = {listed.name.casefold() for listed in known.values()}
        after = 1 + max(listed.index for listed in known.values())
        index = after + (part - 1 - after) % parts
        numbered, changed = [], []
        for listed in self._source.listing():
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
                self._options.mode == "boxes" and before.boxes_checksum != listed.boxes_checksum
            ):
                changed.append(listed.key)
            numbered.append(dataclasses.replace(listed, index=before.index, name=before.name))
        if changed:
            raise UserError(
                f"the folder {folder.location!r} holds another run: the ids or boxes of "
                f"{len(changed)} images have changed, such as {changed[0]!r}; {WAY_OUT}"
            )
        self._removed = [*known.values()]
        self._numbered = numbered
        if self._removed:
            verb = "images are" if len(self._removed) > 1 else "image is"
            warnings.warn(
                f"{len(self._removed)} {verb} no longer in the input, such as "
                f"{self._removed[0].key!r}: their results stay, but instances.json and "
                "masks.parquet leave them out",
                stacklevel=5,
            )

    def _all(self) -> Iterable[Listed]:
        if self._source.kind == "video":
            return [] if self._folder is None else _list_frames(self._folder)
        if self._numbered is not None:
            return self._numbered
        if self._folder is not None and self._is_stored:
            return _read(self._folder)
        return self._source.listing()

    def _is_pending(self, listed: Listed) -> bool:
        return self._options.includes(listed.index) and self._is_missing(listed)

    def _is_missing(self, listed: Listed) -> bool:
        if self._folder is None:
            return True
        file = writers.record_file(listed.name)
        if self._folder.local is not None:
            return not self._folder.exists(file)
        if self._records is None:  # one request instead of one per image
            self._records = self._folder.names("sa1b")
        return file not in self._records


def _read(folder: Folder) -> Iterator[Listed]:
    """Reads the images that have numbers in a folder, in the order of these."""
    with folder.open(LIST_FILE) as file, gzip.open(file) as lines:
        for line in lines:
            yield Listed(*json.loads(line))


def _write(folder: Folder, listing: Iterable[Listed]) -> None:
    with (
        folder.create(LIST_FILE) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as lines,
    ):
        for listed in listing:
            lines.write(json.dumps(dataclasses.astuple(listed)).encode() + b"\n")


def _list_frames(folder: Folder) -> list[Listed]:
    """Lists the frames of a video that are done."""
    found = (re.fullmatch(r"sa1b/([0-9]{6,})\.json", name) for name in folder.names("sa1b"))
    return [list_frame(index) for index in sorted(int(name[1]) for name in found if name)]
