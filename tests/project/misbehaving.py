"""A target of the fuzzer that does all that no case may do; quick to import."""

import contextlib
import ctypes
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from benchmarks.fuzz import Case


def misbehave(folder: Path) -> Case:
    def case(chance: Random) -> None:
        match chance.randrange(12):
            case 0:
                ctypes.string_at(0)
            case 1:
                time.sleep(60)
            case 2:
                bytearray(2**33)
            case 3:
                with contextlib.suppress(OSError):
                    subprocess.run([sys.executable, "-c", ""], check=False)
            case 4:
                raise KeyError("x")
            case 5:
                raise ValueError("documented")

    return case
