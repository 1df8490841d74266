"""Fuzzes what the package reads: files, prompts and command lines that no one meant.

Each case is made from a seed and its number alone, in a process of its own kind: it has a limit of
memory and of seconds, and may start no program and open no connection. A case may succeed, or raise
one of the errors that the target documents. All else is a finding, which the report names with the
command that repeats it.
"""

import argparse
import faulthandler
import json
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MEGABYTES = 1024
"""Memory that the cases of a target may take beyond what the first one left."""
# Events of Python's audit that no input may cause: https://docs.python.org/3/library/audit_events
FORBIDDEN = ("os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess.", "socket.connect")
Case = Callable[[random.Random], None]

_SPARED = 5  # processes that may end before their time, after which a target is given up


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        cases: number of the long run.
        open: prepares in an empty folder, the current one, and returns what runs a case.
        allowed: the errors that are documented.
        seconds: that a case may take.
        starts_programs: whether it may start processes of its own.
    """

    cases: int
    open: Callable[[Path], Case]
    allowed: tuple[type[BaseException], ...]
    seconds: int = 10
    starts_programs: bool = False


@dataclass
class Finding:
    """What a case did that it may not do.

    Attributes:
        kind: the error's class and the place where it was raised, or how the process ended.
        case: number of the first such case.
        count: of such cases.
        detail: traceback of the first.
    """

    kind: str
    case: int
    count: int
    detail: str


@dataclass
class Report:
    """What the cases of a target did.

    Attributes:
        cases: number that ran.
        accepted: those that raised nothing.
        seconds: of all.
        slowest: seconds of the slowest case, and its number.
        megabytes: growth of the process at its peak.
        findings: by their kind.
    """

    cases: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    megabytes: float = 0.0
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Adds the cases of another process."""
        self.cases += other.cases
        self.accepted += other.accepted
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.megabytes = max(self.megabytes, other.megabytes)
        for finding in other.findings.values():
            self.find(finding)

    def find(self, finding: Finding) -> None:
        """Adds a finding, or counts it to an earlier one of its kind."""
        known = self.findings.setdefault(finding.kind, finding)
        if known is not finding:
            known.count += finding.count


def fuzz(
    name: str, target: Target, seed: int, first: int, count: int, seconds: float = float("inf")
) -> Report:
    """Runs cases of a target, in a process that is replaced if a case ends it.

    Args:
        name: of the target, on which the cases depend.
        target: what they call.
        seed: of all cases.
        first: number of the first case.
        count: of cases.
        seconds: after which no further case begins.
    """
    report, end = Report(), time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    stop, ended_early = first + count, 0
    while first < stop and time.monotonic() < end and ended_early < _SPARED:
        ours, theirs = context.Pipe(duplex=False)
        number = context.RawValue("q", first)
        with tempfile.TemporaryDirectory() as folder:
            left = end - time.monotonic()
            arguments = (name, target, seed, first, stop, left, folder, number, theirs)
            process = context.Process(target=_work, args=arguments)
            process.start()
            theirs.close()
            try:
                report.add(ours.recv())
                break
            except EOFError:  # it ended without a report, in the case of this number
                process.join()
                last = number.value
                trace = Path(folder, "trace")
                detail = trace.read_text(errors="replace") if trace.exists() else ""
                kind = _describe_end(process.exitcode, detail, target)
                report.find(Finding(kind, last, 1, detail))
                report.cases += last + 1 - first
                first, ended_early = last + 1, ended_early + 1
            finally:
                process.join()
    return report


def run_cases(name: str, target: Target, seed: int, numbers: Iterable[int]) -> None:
    """Runs cases in this process, without limits; errors that are not allowed are raised."""
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
        case = target.open(Path(folder))
        for number in numbers:
            with suppress(*target.allowed):
                case(_chance(name, seed, number))


def _work(
    name: str,
    target: Target,
    seed: int,
    first: int,
    stop: int,
    seconds: float,
    folder: str,
    number: Any,
    answer: Connection,
) -> None:
    """Runs cases, and sends a :class:`Report`."""
    report = Report()
    silence = os.open(os.devnull, os.O_WRONLY)  # libraries in C print what they think of files
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    end = time.monotonic() + seconds
    warnings.simplefilter("ignore")
    watched, caused = [False], []
    forbidden = FORBIDDEN[-1:] if target.starts_programs else FORBIDDEN

    def watch(event: str, arguments: Any) -> None:
        if watched[0] and event.startswith(forbidden):
            caused.append(f"{event} {arguments!r:.200}")  # whatever becomes of the error
            raise PermissionError(caused[-1])

    with (
        open(Path(folder, "trace"), "w") as trace,
        tempfile.TemporaryDirectory(dir=folder) as place,
        _inside(Path(place)),
    ):
        faulthandler.enable(trace)
        case = target.open(Path(place))
        sys.addaudithook(watch)
        before = 0.0
        _limit_memory(4 * MEGABYTES)
        for at in range(first, stop):
            if time.monotonic() > end:
                break
            number.value = at
            faulthandler.dump_traceback_later(target.seconds, exit=True, file=trace)
            watched[0], start = True, time.monotonic()
            try:
                case(_chance(name, seed, at))
                report.accepted += 1
            except target.allowed:
                pass
            except BaseException as error:
                report.find(_describe(error, at))
            if caused:
                report.find(Finding(f"caused {caused[0].partition(' ')[0]}", at, 1, caused[0]))
                caused.clear()
            took, watched[0] = time.monotonic() - start, False
            report.seconds += took
            report.slowest = max(report.slowest, (took, at))
            report.cases += 1
            faulthandler.cancel_dump_traceback_later()
            if not before:  # by now all has been imported
                before = _memory("VmHWM")
                _limit_memory(MEGABYTES)
        report.megabytes = _memory("VmHWM") - before
    answer.send(report)


def _chance(name: str, seed: int, case: int) -> random.Random:
    return random.Random(f"{name} {seed} {case}")


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _limit_memory(megabytes: int) -> None:
    """Lets this process take so much more memory than it has."""
    limit = int(_memory("VmSize") + megabytes) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _memory(name: str) -> float:
    """Megabytes of this process, by a name in /proc/self/status."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _describe(error: BaseException, case: int) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
    kind = f"{type(error).__name__} at {place}: {str(error)[:100]}"
    # Values differ from case to case.
    kind = re.sub(r"0x[0-9a-f]+|-?\d[\d,.]*|'[^']*'", "*", kind)
    return Finding(kind, case, 1, "".join(traceback.format_exception(error))[-4000:])


def _describe_end(code: int | None, trace: str, target: Target) -> str:
    if trace.startswith("Timeout"):
        places = re.findall(r'File ".*?([^/"]+)", line (\d+)', trace)
        place = ":".join(places[0]) if places else "an unknown place"
        return f"more than {target.seconds} s at {place}"
    return f"the process ended with {code}"


def format_table(reports: dict[str, Report], seed: int) -> str:
    """The results as Markdown, with a command for each finding."""
    lines = [
        f"Seed {seed}. A case may take {MEGABYTES:,} MB more than the process had before.",
        "",
        "| input | cases | accepted | refused | per second | slowest | peak growth | findings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        found = sum(finding.count for finding in report.findings.values())
        cells = [
            name,
            f"{report.cases:,}",
            f"{report.accepted:,}",
            f"{report.cases - report.accepted - found:,}",
            f"{report.cases / max(report.seconds, 1e-9):,.0f}",
            f"{report.slowest[0]:.2f} s",
            f"{report.megabytes:,.0f} MB",
            f"{found:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for name, report in reports.items():
        for finding in report.findings.values():
            repeat = f"python -m benchmarks fuzz {name} --seed {seed} --case {finding.case}"
            lines += ["", f"{finding.count:,} x {finding.kind}", f"    {repeat}"]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    from .fuzz_targets import TARGETS

    parser.add_argument("targets", nargs="*", metavar="INPUT", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, help="of each input, instead of the full number")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each input")
    parser.add_argument("--case", type=int, help="run this one alone, with its traceback")
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"))


def run(arguments: argparse.Namespace) -> None:
    """Runs the cases, prints the table, and exits with 1 if there are findings."""
    from .fuzz_targets import TARGETS  # which the process of a case imports when it needs them

    names: Sequence[str] = arguments.targets or [*TARGETS]
    if unknown := set(names) - TARGETS.keys():
        raise ValueError(f"there is no input {', '.join(unknown)}, only {', '.join(TARGETS)}")
    if arguments.case is not None:
        for name in names:
            run_cases(name, TARGETS[name], arguments.seed, [arguments.case])
        return
    reports: dict[str, Report] = {}
    for name in names:
        count = TARGETS[name].cases if arguments.cases is None else arguments.cases
        reports[name] = fuzz(
            name, TARGETS[name], arguments.seed, arguments.first, count, arguments.seconds
        )
        content = {name: asdict(report) for name, report in reports.items()}
        arguments.out.write_text(json.dumps({"seed": arguments.seed, "inputs": content}, indent=1))
    print(format_table(reports, arguments.seed))
    if any(report.findings for report in reports.values()):
        raise SystemExit(1)
