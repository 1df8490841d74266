"""Writes the coverage of the last `make coverage` into CONTRIBUTING.md, between its marks."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
MARKED = re.compile("(<!-- coverage -->).*(<!-- /coverage -->)", re.DOTALL)


def write_figure(page: Path, percent: str) -> None:
    """Puts the figure between the marks of the page."""
    sentence = f"Tests run {percent} % of the lines and branches."
    text, marks = MARKED.subn(rf"\1{sentence}\2", page.read_text())
    if not marks:
        sys.exit(
            f"{page} has no <!-- coverage --> ... <!-- /coverage --> to put the figure between"
        )
    page.write_text(text)


if __name__ == "__main__":
    command = [sys.executable, "-m", "coverage", "report", "--format", "total"]
    total = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    write_figure(PAGE, total)
