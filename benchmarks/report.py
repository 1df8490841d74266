"""From benchmark.json to a table and a picture."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
START, END = "<!-- benchmark -->", "<!-- /benchmark -->"


IN_README = ("set_image", "second click", "everything, 32 points per side")
"""The rows of the short table."""


def write_report(path: Path, pages: bool = False) -> None:
    """Prints the table of a benchmark.json and draws benchmark.png beside it.

    Args:
        path: the file that ``python -m benchmarks speed`` wrote.
        pages: whether to update ``docs/speed.md``, its picture, and the short table of README.md.

    Raises:
        ValueError: if a page has no marks for the table, or a row of the short one is missing.
    """
    results = json.loads(path.read_text())
    table = format_table(results)
    print(table)
    draw(results, path.with_suffix(".png"))
    if pages:
        put_between_marks(ROOT / "docs" / "speed.md", table)
        draw(results, ROOT / "docs" / "images" / "speed.png")
        put_between_marks(ROOT / "README.md", format_short_table(results))


def put_between_marks(path: Path, table: str) -> None:
    """Replaces the text between a file's marks.

    Raises:
        ValueError: the file has no marks.
    """
    text = path.read_text()
    marked = re.compile(re.escape(START) + ".*" + re.escape(END), re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"{path} has no {START} ... {END} to put the table between")
    path.write_text(marked.sub(lambda _: f"{START}\n{table}\n{END}", text))


def format_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine, start = results["machine"], results["start"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"torch {machine['torch']}, Python {machine['python']}; medians of {machine['runs']} runs, "
        f"alternating. Limit: the arithmetic alone at this machine's peak of "
        f"{machine['gflops']:.0f} GFLOP/s.",
        "",
        "| | segment-anything and timm | this package | faster | limit (GMAC) | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"].values():
        before, after = (row["median"][side] for side in ("baseline", "ours"))
        megabytes = row["megabytes"]
        memory = f"{megabytes['baseline']:,.0f} to {megabytes['ours']:,.0f} MB" if megabytes else ""
        limit = f"{seconds(row['limit'])} ({row['gmac']:,.1f})"
        lines.append(
            f"| {row['title']} | {seconds(before)} | {seconds(after)} | "
            f"**{before / after:.1f} x** | {limit} | {memory} |"
        )
    build = start["build"]
    lines.append(
        f"| build the model | {seconds(build['baseline'])} | {seconds(build['ours'])} | "
        f"{build['baseline'] / build['ours']:.1f} x | | |"
    )
    lines.append(f"| import, beyond the libraries | | {seconds(start['import'])} | | | |")
    return "\n".join(lines)


def format_short_table(results: dict[str, Any]) -> str:
    """The three rows of the README."""
    machine = results["machine"]
    rows = {row["title"]: row["median"] for row in results["rows"].values()}
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"torch {machine['torch']}; medians.",
        "",
        "| | segment-anything with timm's TinyViT | this package | faster |",
        "|---|---|---|---|",
    ]
    for title in IN_README:
        if title not in rows:
            raise ValueError(f"the benchmark has no row {title!r} for the README: run it whole")
        before, after = (rows[title][side] for side in ("baseline", "ours"))
        faster = f"**{before / after:.1f} x**"
        lines.append(f"| {title} | {seconds(before)} | {seconds(after)} | {faster} |")
    return "\n".join(lines)


def seconds(value: float) -> str:
    """Three digits, in ms below a second."""
    if value >= 1:
        return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} s"
    return f"{value * 1e3:.3g} ms"


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of both sides and the limit, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(results["rows"].values())[::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.55 * len(rows) + 1.2), layout="constrained")
    for offset, side, color in ((0.2, "baseline", "#b8bcc4"), (-0.2, "ours", "#2a78d6")):
        times = [row["median"][side] for row in rows]
        label = "segment-anything and timm" if side == "baseline" else "mobile-sam-plugin"
        bars = axes.barh([i + offset for i in range(len(rows))], times, 0.38, color=color)
        bars.set_label(label)
        axes.bar_label(bars, [seconds(time) for time in times], padding=3, fontsize=8)
    limits = [row["limit"] for row in rows]
    axes.scatter(limits, [i - 0.2 for i in range(len(rows))], marker="|", s=90, color="#d03b3b")
    axes.collections[-1].set_label("limit of the arithmetic")
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=110)
