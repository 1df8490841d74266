"""From benchmark.json to a table and a picture."""

import json
import platform
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
IN_README = ("set_image", "second click", "everything, 16 points per side")
"""The rows of the short table."""

SIDES = {
    "original": ("the original MobileSAM", "#b8bcc4"),
    "ours": ("this package", "#2a78d6"),
    "vit_b": ("SAM's vit_b", "#e3cfa4"),
}
"""Their names, and their colors in the picture."""

_INSTRUCTIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX512-BF16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
"""Flags of a processor, from the fastest down."""


def write_report(path: Path, pages: bool = False) -> None:
    """Prints the table of a benchmark.json and draws benchmark.png beside it.

    Args:
        path: the file that ``python -m benchmarks speed`` wrote.
        pages: whether to update ``docs/measurements/speed.md``, its picture, and the short table of
            README.md.

    Raises:
        ValueError: if a page has no marks for the table, or a row of the short one is missing.
    """
    results = json.loads(path.read_text())
    table = format_table(results)
    print(table)
    draw(results, path.with_suffix(".png"))
    if pages:
        put_between_marks(ROOT / "docs" / "measurements" / "speed.md", table)
        draw(results, ROOT / "docs" / "images" / "speed.png")
        put_between_marks(ROOT / "README.md", format_short_table(results))


def processor() -> str:
    """The name of this machine's processor and its widest instructions, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    flags = told.get("flags", "").split()
    widest = [shown for flag, shown in _INSTRUCTIONS.items() if flag in flags][:1]
    return " with ".join([name, *widest])


def put_between_marks(path: Path, given: str, name: str = "benchmark") -> None:
    """Replaces the text between a file's marks of a name.

    Raises:
        ValueError: the file has no marks.
    """
    text = path.read_text()
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    marked = re.compile(re.escape(start) + ".*" + re.escape(end), re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"{path} has no {start} ... {end} to put the text between")
    path.write_text(marked.sub(lambda _: f"{start}\n{given}\n{end}", text))


def format_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine, start = results["machine"], results["start"]
    titles = [title for title, _ in SIDES.values()]
    lines = [
        f"{_describe(machine)}, Python {machine['python']}. Medians of alternating runs, with "
        "quartiles in brackets. Limit: the arithmetic alone at this machine's peak of "
        f"{machine['gflops']:.0f} GFLOP/s.",
        "",
        f"| | {titles[0]} | {titles[1]} | faster | {titles[2]} | runs | limit (GMAC) | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"].values():
        times, megabytes = row["seconds"], row["megabytes"]
        memory = ""
        if megabytes:
            memory = f"{megabytes['original']:,.0f} to {megabytes['ours']:,.0f} MB"
        cells = [
            row["title"],
            *_compare(times),
            _spread(times["vit_b"]) if "vit_b" in times else "",
            str(len(times["ours"])),
            f"{seconds(row['limit'])} ({row['gmac']:,.1f})",
            memory,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    build = start["build"]
    lines.append(
        f"| build the model | {' | '.join(_compare(build))} | | {len(build['ours'])} | | |"
    )
    imports = start["import"]
    lines.append(
        f"| import, beyond the libraries | | {_spread(imports)} | | | {len(imports)} | | |"
    )
    return "\n".join(lines)


def format_short_table(results: dict[str, Any]) -> str:
    """The three rows of the README."""
    rows = {row["title"]: row["seconds"] for row in results["rows"].values()}
    lines = [
        f"{_describe(results['machine'])}; medians.",
        "",
        f"| | {SIDES['original'][0]} | {SIDES['ours'][0]} | faster |",
        "|---|---|---|---|",
    ]
    for title in IN_README:
        if title not in rows:
            raise ValueError(f"the benchmark has no row {title!r} for the README: run it whole")
        before, after = (quartiles(rows[title][side])[1] for side in ("original", "ours"))
        faster = f"**{before / after:.1f} x**"
        lines.append(f"| {title} | {seconds(before)} | {seconds(after)} | {faster} |")
    return "\n".join(lines)


def _describe(machine: dict[str, Any]) -> str:
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"torch {machine['torch']}"
    )


def _compare(times: dict[str, list[float]]) -> list[str]:
    """The cells of the original, of this package, and of their ratio."""
    before, after = (quartiles(times[side])[1] for side in ("original", "ours"))
    ratio = f"**{before / after:.1f} x**"
    return [_spread(times["original"]), _spread(times["ours"]), ratio]


def _spread(times: list[float]) -> str:
    """The median, and in brackets the quartiles."""
    low, median, high = quartiles(times)
    spread = f" ({seconds(low)} to {seconds(high)})" if len(times) > 1 else ""
    return seconds(median) + spread


def quartiles(times: list[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third quartile."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, median, high


def seconds(value: float) -> str:
    """Three digits, in ms below a second."""
    if value >= 1:
        return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} s"
    return f"{value * 1e3:.3g} ms"


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of all sides and the limit, on a logarithmic axis; whiskers join the quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(results["rows"].values())[::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.75 * len(rows) + 1.2), layout="constrained")
    for offset, (side, (title, color)) in zip((0.26, 0.0, -0.26), SIDES.items(), strict=True):
        places = [place for place, row in enumerate(rows) if side in row["seconds"]]
        if not places:
            continue
        spreads = [quartiles(rows[place]["seconds"][side]) for place in places]
        whiskers = [[median - low for low, median, _ in spreads]]
        whiskers.append([high - median for _, median, high in spreads])
        medians = [median for _, median, _ in spreads]
        heights = [place + offset for place in places]
        bars = axes.barh(heights, medians, 0.25, xerr=whiskers, color=color, ecolor="#555555")
        bars.set_label(title)
        axes.bar_label(bars, [seconds(median) for median in medians], padding=3, fontsize=8)
    limits = [row["limit"] for row in rows]
    axes.scatter(limits, range(len(rows)), marker="|", s=90, color="#d03b3b")
    axes.collections[-1].set_label("limit of the arithmetic")
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=110)
