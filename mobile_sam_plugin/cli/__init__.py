"""The command ``mobile-sam``: its subcommands and exit codes.

The exit code is 0, 2 for a usage error, or 1 for another failure, the last two with one line on
stderr; ``run`` ends as its script does. If the cause is a fault of this package or of a library,
``MOBILE_SAM_DEBUG=1`` prints its traceback before that line. Commands import torch, numpy and other
slow libraries when they are called, so that ``--help`` answers at once.
"""

import os
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.main import get_command

from .. import __version__
from ..errors import MissingExtra, UserError, is_out_of_memory
from .annotate import annotate
from .app import app as page
from .checkpoints import convert, download, info
from .distill import app as distill
from .embed import embed
from .evaluate import evaluate
from .everything import everything
from .export import export
from .finetune import finetune
from .inpaint import fill, remove, replace
from .label import label, search
from .lift import lift
from .run import RunCommand, run
from .segment import segment
from .serve import serve
from .text import text
from .track import track
from .view import view

# typer's own usage error, or click's where typer still builds on that.
_UsageError: Any = typer.BadParameter.__base__

# OSErrors that a user can put right; others are failures.
_MISTAKES = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command()(segment)
app.command()(everything)
app.command()(text)
app.command()(label)
app.command()(search)
app.command()(remove)
app.command()(fill)
app.command()(replace)
app.command()(lift)
app.command()(track)
app.command()(annotate)
app.command()(view)
app.command()(embed)
app.command(cls=RunCommand)(run)
app.command("app")(page)
app.command()(serve)
app.command()(export)
app.command()(evaluate)
app.command()(finetune)
app.add_typer(distill, name="distill")
app.command()(info)
app.command()(convert)
app.command()(download)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mobile-sam {__version__}")
        raise typer.Exit


@app.callback()
def mobile_sam(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """MobileSAM: masks from points, boxes and masks, or of everything in an image."""


def main(argv: list[str] | None = None) -> int:
    """Runs ``mobile-sam`` and returns its exit code; ``run`` may raise what its script raises.

    Args:
        argv: arguments after the command's name; those of this process if None.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.showwarning = _show_warning
            outcome = get_command(app).main(argv, prog_name="mobile-sam", standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "mobile-sam"
        return _fail(2, f"{_describe(error)}; see {command} --help")
    except UserError as error:
        return _fail(2, str(error))
    except MissingExtra as error:
        return _fail(1, str(error))
    except OSError as error:
        named = error.strerror and error.filename
        message = f"{error.filename}: {error.strerror}" if named else str(error)
        return _fail(2 if isinstance(error, _MISTAKES) else 1, message)
    except Exception as error:
        if is_out_of_memory(error):
            return _fail(1, f"out of memory: {error}".rstrip(": "))
        if os.environ.get("MOBILE_SAM_DEBUG"):
            traceback.print_exc()
            return _fail(1, "unexpected error, see above")
        return _fail(
            1,
            f"unexpected error: {type(error).__name__}: {error} (MOBILE_SAM_DEBUG=1 shows where)",
        )
    except KeyboardInterrupt:
        return 130
    if callable(outcome):  # the program of `run`, outside of typer, which catches and alters errors
        outcome()
        return 0
    return outcome or 0


def _describe(error: Any) -> str:
    """Returns the message of a usage error, with the value that was given."""
    message: str = error.format_message().rstrip(".")
    # Newer typer checks values by pydantic, whose messages do not name them.
    refusals = getattr(error.__cause__, "errors", None)
    if callable(refusals):
        (refusal, *_) = refusals()
        message = message.replace("Value error, ", "")
        message = message.replace("Input should be", f"{refusal['input']!r} should be")
    return message


def _fail(code: int, message: str) -> int:
    print("mobile-sam:", *message.split(), file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print("mobile-sam: warning:", *str(message).split(), file=sys.stderr)
