"""``mobile-sam run``: an unmodified SAM script, with MobileSAM in its registry."""

import atexit
import builtins
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..import_hooks import ImportHooks
from .inputs import CHECKPOINT_NAMES


class ReplaceableType(str, Enum):
    """Model types in SAM's registry that can be replaced."""

    default = "default"
    vit_h = "vit_h"
    vit_l = "vit_l"
    vit_b = "vit_b"


class Provided(str, Enum):
    """Packages that can be provided."""

    mobile_sam = "mobile_sam"


class RunCommand(TyperCommand):
    """Takes options only before the script, and several types after one ``--replace``."""

    allow_interspersed_args = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Writes ``--replace A B`` out as ``--replace A --replace B`` before it is parsed."""
        spelled_out, rest = [], list(args)
        while rest and rest[0].startswith("-"):
            option = rest.pop(0)
            spelled_out.append(option)
            if option in ("--replace", "--in", "--provide", "--checkpoint"):
                spelled_out += rest[:1]
                del rest[:1]
            while option == "--replace" and rest and rest[0] in list(ReplaceableType):
                spelled_out += [option, rest.pop(0)]
        return super().parse_args(ctx, [*spelled_out, *rest])


def run(
    script: Annotated[
        str, typer.Argument(metavar="script.py", help="The script, or with -m the module.")
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="Arguments of the script.")
    ] = None,
    module: Annotated[
        bool, typer.Option("-m", help="Run a module by its name, as python -m does.")
    ] = False,
    replace: Annotated[
        list[ReplaceableType] | None,
        typer.Option(
            metavar="TYPE ...",
            help="Build MobileSAM if the script requests one of these types: default, vit_h, "
            "vit_l, vit_b. The script's checkpoint for it is ignored, unless --by-checkpoint is "
            "given.",
        ),
    ] = None,
    by_checkpoint: Annotated[
        bool,
        typer.Option(
            "--by-checkpoint",
            help="Build the model that the script's checkpoint holds, MobileSAM or SAM, whatever "
            "type it requests. With --replace, for these types only.",
        ),
    ] = False,
    in_: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            metavar="MODULE",
            help="Full name of a copy of segment_anything that the script imports, such as "
            "mobile_sam or sam.segment_anything. It gets vit_t, and --replace applies to it. Can "
            "be given several times.",
        ),
    ] = None,
    provide: Annotated[
        Provided | None,
        typer.Option(
            metavar="mobile_sam",
            help="Let the script import mobile_sam without the original package.",
        ),
    ] = None,
    hide_installed: Annotated[
        bool,
        typer.Option(
            "--hide-installed",
            help="With --provide: also if the original is installed, which stays in use otherwise.",
        ),
    ] = False,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="C",
            help="Weights for replaced types, and for segment_anything's vit_t if the script names "
            "none. " + CHECKPOINT_NAMES,
            show_default="the Hub's nielsr/mobilesam",
        ),
    ] = None,
) -> Callable[[], None]:
    """Run an unmodified SAM script with vit_t registered.

    The script runs as Python itself would run it, with the same sys.argv, __main__, sys.path and
    exit code. All arguments after the script's name go to the script. Registration and replacement
    also apply to the Python processes that it starts.
    """
    for name in in_ or ():
        if not all(part.isidentifier() for part in name.split(".")):
            raise typer.BadParameter(
                f"{name!r} is not a module: write its name as in the script's import, "
                "such as sam.segment_anything",
                param_hint="--in",
            )
    if hide_installed and provide is None:
        raise typer.BadParameter("it goes with --provide", param_hint="--hide-installed")
    weights = None
    if checkpoint is not None:
        from ..checkpoint import locate_checkpoint

        # Now: a script may change folders, and would end with a traceback if it is not found.
        weights = str(locate_checkpoint(checkpoint).absolute())
    if module:
        program = partial(_run_module, script, arguments or [])
    else:
        with open(script, "rb") as file:
            program = partial(_run_script, script, file.read(), arguments or [])
    if weights is not None:
        os.environ["MOBILE_SAM_CHECKPOINT"] = weights
    hooks = ImportHooks(
        copies=in_ or [],
        replaced=[model_type.value for model_type in replace or ()],
        checkpoint=weights,
        by_checkpoint=by_checkpoint,
        provided=provide is not None,
        hide_installed=hide_installed,
    )
    hooks.install()
    hooks.hand_down()
    atexit.register(_print_problems, hooks)
    return program


def _print_problems(hooks: ImportHooks) -> None:
    for problem in hooks.problems():
        print(f"mobile-sam: warning: {problem}", file=sys.stderr)


def _run_script(script: str, source: bytes, arguments: list[str]) -> None:
    path = os.path.abspath(script)
    main = _become_main([script, *arguments], os.path.dirname(os.path.realpath(script)))
    main.__file__ = path
    main.__loader__ = SourceFileLoader("__main__", path)
    with _own_frames_hidden():
        exec(compile(source, path, "exec", dont_inherit=True), vars(main))


def _run_module(name: str, arguments: list[str]) -> None:
    _become_main(["-m", *arguments], os.getcwd())
    with _own_frames_hidden():
        # What `python -m` itself calls. The public run_module puts sys.argv and __main__ back at
        # the end, when threads and exit handlers of the module may still need them.
        runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def _become_main(argv: list[str], folder: str) -> Any:
    """Sets up the state of a fresh interpreter before the first line of a program."""
    sys.argv[:] = argv
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder  # was this program's own
    main: Any = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __annotations__={}, __cached__=None)
    sys.modules["__main__"] = main
    return main


@contextmanager
def _own_frames_hidden() -> Iterator[None]:
    """Lets errors through, and removes this file from the traceback that Python prints."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        print_error = sys.excepthook

        def print_script_frames(kind: type[BaseException], value: BaseException, _: Any) -> None:
            print_error(kind, value.with_traceback(traceback), traceback)

        sys.excepthook = print_script_frames
        raise
