"""Unpacks the data of `make bundled-checkpoint` into folders that `distill supervised` reads.

    python examples/unpack_training_data.py PACK.npz OUT

A pack holds photographs, some with a label map, and cut out objects with the labels of their parts,
in encoded form: `blob` (bytes), `sizes` of the files in it, and `meta`, JSON: "photos" with the
numbers of "image" and "label", and "union", whether all labels together are one person; and "emoji"
with the numbers of "image" and "parts". The label 255 means unknown.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mobile_sam_plugin.datasets.annotated import AnnotatedImage
from mobile_sam_plugin.datasets.formats import write_annotated_image
from mobile_sam_plugin.files import encode_image, write_file

UNKNOWN = 255
SMALLEST = 0.003  # of the image: smaller regions of a label get no mask of their own


class Pack:
    """The files of a pack, by their number."""

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self._blob, sizes = arrays["blob"], arrays["sizes"]
            self.meta: dict[str, Any] = json.loads(bytes(arrays["meta"]))
        self._ends = np.cumsum(sizes)
        self._sizes = sizes

    def read(self, number: int) -> NDArray[np.uint8]:
        end = self._ends[number]
        part = self._blob[end - self._sizes[number] : end]
        image = cv2.imdecode(part, cv2.IMREAD_UNCHANGED)
        if image is None:
            raise ValueError(f"file {number} of the pack is no image")
        if image.ndim == 2:
            return image
        order = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        return np.asarray(cv2.cvtColor(image, order))


def masks_of(labels: NDArray[np.uint8], union: bool) -> Iterator[NDArray[np.bool_]]:
    """Yields things, their separate regions, and if they are a person, the person and the rest."""
    for label in np.unique(labels[(labels != 0) & (labels != UNKNOWN)]):
        mask = labels == label
        yield mask
        _, regions, sizes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        large = sizes[1:, cv2.CC_STAT_AREA] > SMALLEST * mask.size
        if large.sum() > 1:
            for region in np.flatnonzero(large) + 1:
                yield regions == region
    if union:
        person = (labels != 0) & (labels != UNKNOWN)
        if len(np.unique(labels[person])) > 1:
            yield person
        yield labels == 0


def main(path: str, out: str) -> None:
    pack, folder = Pack(path), Path(out)
    for name in ("labelled", "photographs", "objects"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    for photo in pack.meta["photos"]:
        if photo["image"] in seen:  # listed several times, to be shown more often
            continue
        seen.add(photo["image"])
        image, name = pack.read(photo["image"]), f"sa_{photo['image']:05}"
        write_file(folder / "photographs" / f"{name}.jpg", encode_image(".jpg", image))
        if photo["label"] is not None:
            found = [m for m in masks_of(pack.read(photo["label"]), photo["union"]) if m.any()]
            if found:
                item = AnnotatedImage(name, image, np.array(found))
                write_annotated_image(folder / "labelled", name, item)
    for thing in pack.meta["emoji"]:
        name = f"{thing['image']:05}"
        picture = encode_image(".png", pack.read(thing["image"]))
        write_file(folder / "objects" / f"{name}.png", picture)
        parts = pack.read(thing["parts"])
        (folder / "objects" / name).mkdir(exist_ok=True)
        for label in np.unique(parts[parts != 0]):
            mask = encode_image(".png", np.asarray((parts == label) * np.uint8(255)))
            write_file(folder / "objects" / name / f"{label}.png", mask)
    counts = {each.name: sum(1 for _ in each.glob("*.[jp][pn]g")) for each in folder.iterdir()}
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
