"""The fuzzer: what it sees of cases that misbehave, and a few cases of each target."""

import pytest

from benchmarks.fuzz import Target, fuzz, run_cases
from benchmarks.fuzz_targets import TARGETS

from .misbehaving import misbehave


@pytest.mark.process
def test_crash_hang_memory_and_programs_are_seen() -> None:
    target = Target(14, misbehave, (ValueError,), seconds=1)
    # With this seed, the first 14 cases do each of it, and crash and hang once.
    report = fuzz("misbehaving", target, seed=80, first=0, count=14)
    kinds = " | ".join(report.findings)
    for kind in ("ended with -11", "more than 1 s", "MemoryError", "subprocess.Popen", "KeyError"):
        assert kind in kinds, kinds
    assert "ValueError" not in kinds
    assert report.accepted and report.megabytes < 1024


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "commands"])
def test_a_few_cases_of_each_target(name: str) -> None:
    run_cases(name, TARGETS[name], 1, range(100))
