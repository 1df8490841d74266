"""``mobile-sam distill scenes``: synthetic pictures with masks, as files."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import MaxPixels

if TYPE_CHECKING:
    from ..datasets.annotated import AnnotatedImage
    from ..scenes.scenes import Scenes

_SAMPLES = 12  # on the contact sheet
_SAMPLE_SIDE = 160
_COLUMNS = 3


def scenes(
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", file_okay=False, help="Where to write, in the layout of SA-1B."
        ),
    ],
    count: Annotated[int, typer.Option(min=1, metavar="N", help="How many pictures.")],
    size: Annotated[int, typer.Option(min=32, metavar="N", help="Their sides, in pixels.")] = 512,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="The same seed gives the same pictures.")
    ] = 0,
    photographs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            exists=True,
            help="Photographs, of which patches become surfaces.",
            show_default="none",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes.", show_default="one a core"),
    ] = None,
    contact_sheet: Annotated[
        bool,
        typer.Option(
            "--contact-sheet", help="Also write contact_sheet.png: samples, with masks beside them."
        ),
    ] = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Write synthetic pictures with exact masks, as SA-1B is laid out.

    Writes into DIR: sa_SEED_000000.jpg with sa_SEED_000000.json and so on, and settings.json. A run
    that broke off is continued, and one with a larger N adds to it. The folder is a data set for
    training and for evaluation; they are the scenes:N:SEED of evaluate, so train on another seed.
    """
    from tqdm import tqdm

    from ..images import list_images
    from ..scenes.scenes import Scenes

    paths = [] if photographs is None else list_images(photographs, recursive=True)
    settings = {"size": size, "seed": seed, "photographs": [str(path) for path in paths]}
    _claim(out, settings)
    wanted = Scenes(count, size, seed, paths)
    missing = [i for i in range(count) if not (out / f"{_name(seed, i)}.json").is_file()]
    with tqdm(total=count, initial=count - len(missing), unit="picture", disable=None) as bar:
        _write_all(wanted, out, missing, workers or os.cpu_count() or 1, bar)
    wanted.photographs.skipped.tell()
    typer.echo(f"{out}  {count} picture{'s'[: count > 1]}")
    if contact_sheet:
        _write_contact_sheet([wanted[i] for i in range(min(count, _SAMPLES))], out)
        typer.echo(out / "contact_sheet.png")


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Sees to it that a folder holds scenes of one kind.

    Raises:
        FileExistsError: it holds others.
    """
    from ..files import write_file

    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_file(path, json.dumps(settings, indent=1).encode())
        return
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if found != settings:
        raise FileExistsError(
            f"{str(folder)!r} holds scenes of another size, seed or photographs, see "
            f"{str(path)!r}: choose another --out"
        )


def _name(seed: int, index: int) -> str:
    return f"sa_{seed}_{index:06}"


def _write_all(scenes: "Scenes", out: Path, missing: list[int], workers: int, bar: Any) -> None:
    if min(workers, len(missing)) < 2:
        for index in missing:
            _write_scene(scenes, out, index)
            bar.update()
        return
    # The scenes go to a process when it starts, since they share what they know of photographs.
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(scenes, out))
    try:
        for _ in pool.map(_write_own, missing, chunksize=4):
            bar.update()
    except BrokenProcessPool as error:
        raise MemoryError("a worker process was ended; try fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


_own: "tuple[Scenes, Path]"  # what this process writes, and where, if it is a worker


def _start_worker(scenes: "Scenes", out: Path) -> None:
    import signal

    import cv2

    global _own
    _own = scenes, out
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends it
    # There is a process a core. With 1 instead of 0, OpenCV waits for ever for threads that it had
    # before the process was forked.
    cv2.setNumThreads(0)


def _write_own(index: int) -> None:
    _write_scene(*_own, index)


def _write_scene(scenes: "Scenes", out: Path, index: int) -> None:
    from ..datasets.annotated import write_annotated_image

    write_annotated_image(out, _name(scenes.seed, index), scenes[index])


def _write_contact_sheet(samples: "list[AnnotatedImage]", out: Path) -> None:
    import io

    import cv2
    import numpy as np
    from PIL import Image

    from ..drawing import draw_overlay
    from ..files import write_file

    tiles = []
    for sample in samples:
        pair = np.hstack([sample.image, draw_overlay(sample.image, list(sample.masks))])
        side = (2 * _SAMPLE_SIDE, _SAMPLE_SIDE)
        tiles.append(cv2.resize(pair, side, interpolation=cv2.INTER_AREA))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % _COLUMNS)
    rows = [np.hstack(tiles[i : i + _COLUMNS]) for i in range(0, len(tiles), _COLUMNS)]
    png = io.BytesIO()
    Image.fromarray(np.vstack(rows)).save(png, "png", optimize=True)
    write_file(out / "contact_sheet.png", png.getvalue())
