"""The rules of ARCHITECTURE.md, which are read from there."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import mobile_sam_plugin

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
FLOORS = {
    part: int(floor)
    for floor, parts in re.findall(r"^\| (\d) \| (.+?) \|", PAGE, re.MULTILINE)
    for part in re.findall(r"`(\w+)`", parts)
}


@cache
def modules() -> list[tuple[str, str, ast.Module]]:
    """Each module's package, the part that it belongs to, and its syntax tree."""
    found = []
    for folder in ("mobile_sam_plugin", "integrations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).with_suffix("").parts
            if name[:2] == ("mobile_sam_plugin", "integrations"):  # the link for tools
                continue
            if folder == "integrations":
                name = ("mobile_sam_plugin", *name)
            found.append((".".join(name[:-1]), name[1], ast.parse(path.read_text())))
    return found


def imported(tree: ast.Module, package: str) -> Iterator[str]:
    """The modules that a module imports, wherever in it, by their absolute names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = ".".join(base if node.level else []) + "." * bool(node.level and node.module)
            module = prefix + (node.module or "")
            for alias in node.names:
                known = mobile_sam_plugin._MODULES.get(alias.name, alias.name)
                yield f"{module}.{known}" if module == "mobile_sam_plugin" else module


def calls() -> Iterator[tuple[str, str]]:
    """The part and the function of each call in the package."""
    for _, part, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                yield part, ast.unparse(node.func)


def part_of(module: str) -> str:
    """The part that a module belongs to; "" if it is another library's."""
    own = re.match(r"mobile_sam_plugin\.(\w+)", module)
    return own[1].replace("__version__", "_version") if own else ""


def test_every_part_has_a_floor() -> None:
    parts = {part for _, part, _ in modules()} - {"__init__", "__main__"}
    assert parts == FLOORS.keys()


def test_parts_import_their_own_floor_and_those_below() -> None:
    above = {
        (part, other)
        for package, part, tree in modules()
        for other in map(part_of, imported(tree, package))
        if part in FLOORS and other in FLOORS and FLOORS[other] > FLOORS[part]
    }
    assert not above


def test_no_parts_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for package, part, tree in modules():
        others = map(part_of, imported(tree, package))
        graph.setdefault(part, set()).update(
            other for other in others if other in FLOORS and other != part
        )
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the parts


def test_only_checkpoint_opens_weights_and_two_parts_what_they_write() -> None:
    reading = r"(safetensors\.)?safe_open|safetensors\.torch\.\w+|torch\.load|hf_hub_download"
    opening = {part for part, call in calls() if re.fullmatch(reading, call)}
    assert opening == {"checkpoint", "embeddings", "distill"}


def test_the_model_knows_no_files() -> None:
    known = {
        module.split(".")[1] if module.startswith("mobile_sam_plugin.") else module
        for package, part, tree in modules()
        if part == "model"
        for module in imported(tree, package)
    }
    assert {"model", "errors", "threads"} & known
    assert not known & {
        *(FLOORS.keys() - {"model", "errors", "threads"}),
        "io",
        "os",
        "pathlib",
        "shutil",
    }


def test_pillow_reads_files_in_one_place() -> None:
    assert {part for part, call in calls() if call.endswith("Image.open")} == {"images"}


def test_torch_is_imported_when_it_is_needed() -> None:
    (sentence,) = re.findall(r"Free of torch: (.+?)\. The", PAGE, re.DOTALL)
    names = re.findall(r"`([\w.]+)`", sentence)
    assert len(names) > 10
    code = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'mobile_sam_plugin.{name}')\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code, *names], check=True)
