"""Runs that are killed, or whose disk is full: the same command again gives the same bytes.

Each command runs once undisturbed. Then it is started again and again in a new folder, and
disturbed at a random moment: by a signal, by a disk that is full or that can no longer be written.
The same command must then succeed, and leave the files that it left undisturbed, and no others.

What a trial waits for is kept small: the processes are forks of one in which the command has run
before, and a model is a copy of timm's smallest for images of 64 x 64 pixels.
"""

import argparse
import copy
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from mobile_sam_plugin.cli import main
from mobile_sam_plugin.datasets.annotated import AnnotatedImage
from mobile_sam_plugin.datasets.formats import write_annotated_image
from mobile_sam_plugin.mobile_sam import MobileSam, set_img_size

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
WAYS = (*SIGNALS, "full disk", "read-only")
_EVERYTHING = "--points-per-side 2 --pred-iou-thresh 0 --stability-score-thresh 0"
_SIDE = 64  # of the models' input
_TRAINING = f"--img-size {_SIDE} --workers 0"
COMMANDS = {
    "annotate": f"annotate images {_EVERYTHING} --checkpoint C --out out "
    "--format sa1b --format coco --format ids --format overlay",
    "track": "track clip.mp4 --box 8,8,30,30 --checkpoint C --out out",
    "embed": "embed images --dtype float16 --checkpoint C --out out",
    "distill": f"distill supervised data {_TRAINING} --batch-size 2 --steps 3 --save-every 1 "
    "--validation few --evaluate-every 2 --checkpoint C --out out",
    "finetune": f"finetune data {_TRAINING} --batch-size 4 --epochs 2 --checkpoint C --out out",
}
"""C stands for the weights."""
# Curves have the times of their points.
_NOT_COMPARED = ("log",)
# A resumed tracking learns templates anew, from the last frame that is done, so later masks differ.
_BY_NAME = ("track",)
_MEGABYTES = 256  # of the disk, which holds the results of any command
_LONGEST = 300  # seconds, after which a run is said to hang


@dataclass
class Outcome:
    """What became of the disturbed runs of a command.

    Attributes:
        disturbed: number that ended by the disturbance, by its kind.
        in_time: number that were complete before it.
        faults: what went wrong, and with which trial.
    """

    disturbed: Counter[str] = field(default_factory=Counter)
    in_time: int = 0
    faults: list[str] = field(default_factory=list)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """Mounts a disk of its own at a folder; yields a function that changes its options.

    Raises:
        PermissionError: without root, who alone may do so.
    """
    if os.geteuid():
        raise PermissionError("a disk can only be filled by root, who may mount one")
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_MEGABYTES}m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)

    def remount(options: str) -> None:
        command = ["mount", "-o", f"remount,{options}", str(folder)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def prepare(folder: Path) -> None:
    """Writes what the commands take: weights, images, a clip and a data set."""
    torch.manual_seed(0)
    model = MobileSam.untrained("test_efficientnet")
    model.save_pretrained(folder / "weights")
    set_img_size(model, _SIDE)
    # Its weights are then those of the checkpoint, as of any model that is built.
    MobileSam.untrained = lambda *_: copy.deepcopy(model)  # type: ignore[method-assign]
    chance = np.random.default_rng(0)
    for name in ("images", "data", "few"):
        (folder / name).mkdir()
    for number in range(5):
        pixels = cv2.resize(
            chance.integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48), interpolation=0
        )
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        masks = np.zeros((2, 48, 64), bool)
        masks[0, 8:24, 8:32], masks[1, 24:40, 16:56] = True, True
        item = AnnotatedImage("", pixels, masks)
        write_annotated_image(folder / "data", f"sa_{number}", item)
    write_annotated_image(folder / "few", "sa_0", item)
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), codec, 5, (64, 48))
    texture = chance.integers(0, 256, (48, 96, 3), dtype=np.uint8)
    for shift in range(8):
        writer.write(np.ascontiguousarray(texture[:, shift : shift + 64]))
    writer.release()


def start(argv: list[str], log: Path) -> int:
    """Starts a command in a fork of this process, which has all imported; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        # A shell starts what runs in its background with this signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ["MOBILE_SAM_DEBUG"] = "1"
        code = main(argv)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int, seconds: float = _LONGEST) -> int | None:
    """Returns the exit code of a process, negative for a signal; None if it runs still."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def contents(path: Path) -> bytes:
    """Returns a file's bytes; of a state to resume from, its values.

    After a state has been read, equal strings are other objects, which pickle writes otherwise.
    """
    if path.suffix != ".pt":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        tensors = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    return repr(torch.load(path, weights_only=True)).encode() + b"".join(tensors)


def digest(folder: Path) -> dict[str, str]:
    """Returns the checksum of every file, hidden ones too, by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(contents(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(path.relative_to(folder).parts) & {*_NOT_COMPARED}
    }


def disturb(
    argv: list[str], way: str, moment: float, remount: Callable[[str], None], log: Path
) -> int | None:
    """Runs a command, disturbs it after so many seconds, and returns its exit code."""
    process = start(argv, log)
    code = wait(process, moment)
    if code is not None:
        return code
    if way in SIGNALS:
        os.kill(process, SIGNALS[way])
    elif way == "full disk":
        used = sum(path.stat().st_size for path in Path("out").rglob("*") if path.is_file())
        with suppress(subprocess.CalledProcessError):  # it has grown in between
            remount(f"size={used // 1024 + 8}k")
    else:
        for _ in range(200):  # refused while a file is being written
            os.kill(process, signal.SIGSTOP)
            with suppress(subprocess.CalledProcessError):
                remount("ro")
                break
            os.kill(process, signal.SIGCONT)
            code = wait(process, 0.005)
            if code is not None:
                return code
        os.kill(process, signal.SIGCONT)
    code = wait(process)
    if code is None:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return code


def measure(name: str, trials: int, seed: int, seconds: float) -> Outcome:
    """Runs a command undisturbed and disturbed, in the current folder, which :func:`prepare` made.

    Args:
        name: of the command.
        trials: disturbed runs.
        seed: of the moments.
        seconds: after which no further trial begins.
    """
    outcome, end = Outcome(), time.monotonic() + seconds
    weights = str(Path("weights", "model.safetensors").absolute())
    argv = [weights if word == "C" else word for word in COMMANDS[name].split()]
    log, again = Path("log.txt"), Path("again.txt")
    with small_disk(Path("out")) as remount:
        with open(os.devnull, "w") as silence, redirect_stdout(silence), redirect_stderr(silence):
            main(argv)  # imports what it needs
        shutil.rmtree("out", ignore_errors=True)  # but for the mount itself
        begin = time.monotonic()
        code = wait(start(argv, log))
        took = time.monotonic() - begin
        if code:
            raise RuntimeError(f"{name} fails undisturbed: {log.read_text()[-1000:]}")
        expected = digest(Path("out"))
        for trial in range(trials):
            if time.monotonic() > end:
                break
            if trial % 10 == 0:  # tqdm has a thread, and forks would wait for its lock
                print(f"{name}: {trial} of {trials}", file=sys.stderr)
            chance = random.Random(f"{name} {seed} {trial}")
            way, moment = WAYS[trial % len(WAYS)], chance.random() * took
            shutil.rmtree("out", ignore_errors=True)
            code = disturb(argv, way, moment, remount, log)
            remount(f"rw,size={_MEGABYTES}m")
            where = f"{name} {trial}: {way} after {moment:.2f} of {took:.2f} s"
            if code == 0:
                outcome.in_time += 1
            else:
                outcome.disturbed[way] += 1
            told = log.read_text(errors="replace")
            if code is None:
                outcome.faults.append(f"{where}: it hung")
            elif way not in SIGNALS and code and "Traceback" in told:
                outcome.faults.append(f"{where}: {told[-1500:]}")
            code = wait(start(argv, again))
            found = digest(Path("out"))
            if code:
                outcome.faults.append(f"{where}: then exit {code}, {again.read_text()[-1500:]}")
            elif found.keys() != expected.keys() or (name not in _BY_NAME and found != expected):
                differing = sorted(
                    path for path in {*found, *expected} if found.get(path) != expected.get(path)
                )
                outcome.faults.append(f"{where}: then other files: {', '.join(differing[:9])}")
    return outcome


def format_table(outcomes: dict[str, Outcome]) -> str:
    """The results as Markdown."""
    lines = [
        f"| command | {' | '.join(WAYS)} | complete before | faults |",
        f"|---{'|---' * (len(WAYS) + 2)}|",
    ]
    for name, outcome in outcomes.items():
        counts = [str(outcome.disturbed[way]) for way in WAYS]
        lines.append(
            f"| {name} | {' | '.join(counts)} | {outcome.in_time} | {len(outcome.faults)} |"
        )
    faults = [fault for outcome in outcomes.values() for fault in outcome.faults]
    return "\n".join([*lines, "", *faults])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}")
    parser.add_argument("--trials", type=int, default=100, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each command")
    parser.add_argument("--out", type=Path, default=Path("kills.json"))


def run(arguments: argparse.Namespace) -> None:
    """Disturbs the commands, prints the table, and exits with 1 if there are faults."""
    torch.set_num_threads(1)  # or a fork would wait for threads that it does not have
    cv2.setNumThreads(0)
    outcomes: dict[str, Outcome] = {}
    out, before = arguments.out.absolute(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(Path(folder))
        for name in arguments.commands or COMMANDS:
            outcomes[name] = measure(name, arguments.trials, arguments.seed, arguments.seconds)
            content: dict[str, Any] = {name: vars(each) for name, each in outcomes.items()}
            out.write_text(json.dumps(content, indent=1))
        os.chdir(before)
    print(format_table(outcomes))
    if any(outcome.faults for outcome in outcomes.values()):
        raise SystemExit(1)
