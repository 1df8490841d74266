"""Writes the coverage of the last `make coverage` into CONTRIBUTING.md, between its marks."""

import subprocess
import sys

from benchmarks.report import ROOT, put_between_marks

if __name__ == "__main__":
    command = [sys.executable, "-m", "coverage", "report", "--format", "total"]
    percent = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    sentence = f"Tests run {percent} % of the lines and branches."
    put_between_marks(ROOT / "CONTRIBUTING.md", sentence, "coverage")
