"""Writes docs/reference/commands.md from what `mobile-sam COMMAND --help` says."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from mobile_sam_plugin.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"


def commands(command: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    """Each command that can be called, with its context, in the order of the help."""
    if not hasattr(command, "list_commands"):
        yield command, context
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        yield from commands(child, type(context)(child, info_name=name, parent=context))


def describe(command: Any, context: Any) -> Iterator[str]:
    """The section of a command: what it does, how it is called, its arguments and options."""
    paragraphs = (command.help or "").replace("\f", "\n\n").split("\n\n")
    yield f"## {context.command_path}"
    yield "\n\n".join(escape(paragraph) for paragraph in paragraphs)
    yield f"```\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```"
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [f"| `{names}` | {escape(text)} |" for names, text in filter(None, records)]
    yield "\n".join(["| option | meaning |", "|---|---|", *rows])


def escape(text: str) -> str:
    """A help text as Markdown in one line, for a paragraph or the cell of a table."""
    return re.sub(r"([\[\]*_`|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def command_page() -> str:
    """The whole page as Markdown."""
    root = get_command(app)
    context = root.make_context("mobile-sam", [], resilient_parsing=True)
    parts = [
        "# Commands",
        "What `mobile-sam COMMAND --help` says. This page is written by `make docs`.",
    ]
    for command, command_context in commands(root, context):
        parts.extend(describe(command, command_context))
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(command_page())
