"""``mobile-sam distill scenes``: synthetic images with masks, as files."""

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import OBJECTS, PHOTOGRAPHS, MaxPixels

if TYPE_CHECKING:
    from ..datasets.annotated import AnnotatedImage
    from ..datasets.unreadable import SkipUnreadable
    from ..scenes.composites import Composites
    from ..scenes.scenes import Scenes

_SAMPLES = 12  # on the contact sheet
_SAMPLE_SIDE = 160
_COLUMNS = 3


def scenes(
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", file_okay=False, help="Output folder, in the layout of SA-1B."),
    ],
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Number of images.")],
    size: Annotated[
        int, typer.Option(min=32, metavar="N", help="Side of the images, in pixels.")
    ] = 512,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed of the images.")] = 0,
    texture_images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            exists=True,
            help="Images whose patches are used as textures.",
            show_default="none",
        ),
    ] = None,
    objects: Annotated[str | None, typer.Option(metavar="DATA", help=OBJECTS)] = None,
    photographs: Annotated[str | None, typer.Option(metavar="DIR", help=PHOTOGRAPHS)] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes.", show_default="one per core")
    ] = None,
    contact_sheet: Annotated[
        bool,
        typer.Option(
            "--contact-sheet", help="Also write contact_sheet.png: samples and their masks."
        ),
    ] = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Write synthetic images with exact masks, in the layout of SA-1B.

    The images are scenes of shapes; with --objects and --photographs, composites: the objects
    pasted on the photographs.

    Writes to DIR: sa_SEED_000000.jpg with sa_SEED_000000.json and so on, and run.json. Run the same
    command again to resume an interrupted run, or with a larger count to add images. The folder is
    a data set for training and evaluation. Its scenes are the scenes:COUNT:SEED of evaluate, and
    its composites those that training with that seed takes, so train on another seed.
    """
    from tqdm import tqdm

    from ..files import remove_partials
    from ..images import list_images
    from ..runs import alone_in, claim
    from ..scenes.composites import Composites, open_cut_outs
    from ..scenes.scenes import Scenes

    if (objects is None) != (photographs is None):
        raise typer.BadParameter("give both or neither", param_hint="--objects and --photographs")
    if texture_images is not None and objects is not None:
        raise typer.BadParameter("not for composites", param_hint="--texture-images")
    settings: dict[str, Any] = {"size": size, "seed": seed}
    requested: Scenes | Composites
    if objects is None or photographs is None:
        paths = [] if texture_images is None else list_images(texture_images, recursive=True)
        requested = Scenes(count, size, seed, paths)
        counted: list[SkipUnreadable[Any]] = [requested.texture_images]
        settings |= {"texture_images": [str(path) for path in paths]}
    else:
        paths = list_images(photographs, recursive=True)
        cut_outs = open_cut_outs(objects)
        requested = Composites(count, cut_outs, paths, size, seed)
        counted = [requested.objects, requested.photographs]
        settings |= {"objects": objects, "number of objects": len(cut_outs)}
        settings |= {"photographs": [str(path) for path in paths]}
    with alone_in(out):
        claim(out, settings, way_out="choose another --out")
        remove_partials(out)
        missing = [i for i in range(count) if not (out / f"{_name(seed, i)}.json").is_file()]
        with tqdm(total=count, initial=count - len(missing), unit="image", disable=None) as bar:
            _write_all(requested, out, missing, workers or os.cpu_count() or 1, bar)
        for each in counted:
            each.skipped.tell()
        typer.echo(f"{out}  {count} image{'s'[: count > 1]}")
        if contact_sheet:
            sheet = out / "contact_sheet.png"
            _write_contact_sheet([requested[i] for i in range(min(count, _SAMPLES))], sheet)
            typer.echo(sheet)


def _name(seed: int, index: int) -> str:
    return f"sa_{seed}_{index:06}"


def _write_all(
    scenes: "Scenes | Composites", out: Path, missing: list[int], workers: int, bar: Any
) -> None:
    if min(workers, len(missing)) < 2:
        for index in missing:
            _write_scene(scenes, out, index)
            bar.update()
        return
    # A process gets the scenes when it starts: they share what they know of texture images.
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(scenes, out))
    try:
        for _ in pool.map(_write_own, missing, chunksize=4):
            bar.update()
    except BrokenProcessPool as error:
        raise MemoryError("a worker process was ended; try fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


_own: "tuple[Scenes | Composites, Path]"  # of a worker process: what it writes, and its folder


def _start_worker(scenes: "Scenes | Composites", out: Path) -> None:
    import signal

    import cv2

    global _own
    _own = scenes, out
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends it
    # There is one process per core. With 1 instead of 0, OpenCV waits forever for threads that it
    # had before the process was forked.
    cv2.setNumThreads(0)


def _write_own(index: int) -> None:
    _write_scene(*_own, index)


def _write_scene(scenes: "Scenes | Composites", out: Path, index: int) -> None:
    from ..datasets.formats import write_annotated_image

    write_annotated_image(out, _name(scenes.seed, index), scenes[index])


def _write_contact_sheet(samples: "list[AnnotatedImage]", path: Path) -> None:
    """Writes a grid of samples, each next to itself with its masks."""
    import cv2
    import numpy as np

    from ..drawing import draw_overlay
    from ..files import encode_image, write_file

    tiles = []
    for sample in samples:
        pair = np.hstack([sample.image, draw_overlay(sample.image, list(sample.masks))])
        side = (2 * _SAMPLE_SIDE, _SAMPLE_SIDE)
        tiles.append(cv2.resize(pair, side, interpolation=cv2.INTER_AREA))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % _COLUMNS)
    rows = [np.hstack(tiles[i : i + _COLUMNS]) for i in range(0, len(tiles), _COLUMNS)]
    write_file(path, encode_image(".png", np.vstack(rows)))
