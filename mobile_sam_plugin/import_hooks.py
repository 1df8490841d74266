"""MobileSAM in the SAM packages that a program, or a process that it starts, imports later.

That is also a package ``mobile_sam`` where the original is not installed, see :func:`provide`.

A new process does not inherit the modules of the one that started it. So the settings are passed in
the environment, together with a folder on ``PYTHONPATH``. At its start Python runs the
``sitecustomize`` in it, which sets the same hooks.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import wrapt

from .errors import UserError

logger = logging.getLogger(__name__)

PROVIDED = "mobile_sam"
"""The name of the package that :func:`provide` knows."""

_STARTUP = str(Path(__file__).parent / "startup")
_PACKAGE = Path(__file__).parent / "provided"


def provide(package: str, hide_installed: bool = False) -> ExitStack:
    """Makes ``import mobile_sam`` import this package's code, for clients of the original.

    It has the original's names: ``sam_model_registry``, ``SamPredictor``,
    ``SamAutomaticMaskGenerator``, the builders, and the modules ``build_sam``, ``predictor``,
    ``automatic_mask_generator``, ``modeling`` and ``utils``. As in the original, its ``vit_t``
    without a checkpoint is untrained.

    An original that is installed, or lies on ``sys.path``, stays in use, and a line in the log says
    so, unless ``hide_installed`` is set.

    Args:
        package: ``"mobile_sam"``.
        hide_installed: whether to be imported in place of an original that is installed.

    Returns:
        A context manager that takes the package away again at its end, or on ``close()``. What was
        imported from it goes on working.

    Raises:
        UserError: if another package is asked for, or the original is to be hidden and has been
            imported already.

    Examples:
        >>> provide("mobile_sam")
        >>> from mobile_sam import SamPredictor, sam_model_registry
        >>> predictor = SamPredictor(sam_model_registry["vit_t"](checkpoint="mobile_sam.pt"))
    """
    if package != PROVIDED:
        raise UserError(f"package must be {PROVIDED!r}, not {package!r}")
    other = _imported_other()
    if other and hide_installed:
        raise UserError(
            f"{PROVIDED} has been imported from {other} already, where it cannot be hidden any "
            f"more: call provide({PROVIDED!r}, hide_installed=True) before its first import"
        )
    if not other and not hide_installed and PROVIDED not in sys.modules:
        other = _origin(find_spec(PROVIDED))
    if other:
        logger.warning(
            "%s is installed in %s and stays in use: provide(%r, hide_installed=True) hides it",
            PROVIDED,
            other,
            PROVIDED,
        )
        return ExitStack()
    finder = _Finder(hide_installed)
    finder.install()
    taken_away = ExitStack()
    taken_away.callback(finder.remove)
    return taken_away


class _Finder(MetaPathFinder):
    """Finds the package ``mobile_sam`` in this package's folder ``provided``.

    It stands before Python's finder for ``sys.path``. A folder of that name without code, as for
    weights, is a package for that one, though an empty one.
    """

    def __init__(self, hide_installed: bool) -> None:
        self._hide_installed = hide_installed

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PROVIDED:
            return None  # its submodules are found by its __path__
        if not self._hide_installed:
            for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
                if _origin(finder.find_spec(fullname, path, target)):
                    return None
        return spec_from_file_location(
            PROVIDED, _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
        )

    def install(self) -> None:
        sys.meta_path.insert(sys.meta_path.index(PathFinder), self)

    def remove(self) -> None:
        sys.meta_path.remove(self)
        if _imported_other() or any(isinstance(finder, _Finder) for finder in sys.meta_path):
            return
        for name in [name for name in sys.modules if name.split(".")[0] == PROVIDED]:
            del sys.modules[name]


def _imported_other() -> str | None:
    """Where a ``mobile_sam`` that is not this package's was imported from; None if none was."""
    module = sys.modules.get(PROVIDED)
    if module is None or _is_provided(getattr(module, "__file__", None)):
        return None
    return str(getattr(module, "__file__", None) or module)


def _origin(spec: ModuleSpec | None) -> str | None:
    """Where the code of a package that was found lies; None if it has none, or is provided."""
    return None if spec is None or _is_provided(spec.origin) else spec.origin


def _is_provided(file: str | None) -> bool:
    return file is not None and Path(file).parent == _PACKAGE


@dataclass
class ImportHooks:
    """Changes to ``segment_anything`` and its copies, made as soon as a program imports them.

    Attributes:
        copies: full names of modules in addition to ``segment_anything``. They get this package's
            ``vit_t``, instead of their own if they have one.
        replaced: model types for which all of these modules build MobileSAM.
        checkpoint: weights for replaced types; the default ones if None.
        by_checkpoint: whether the modules build what the file of a checkpoint holds instead: for
            the replaced types, or for all types if there are none.
        provided: whether there is a ``mobile_sam``, see :func:`provide`.
        hide_installed: whether it hides an original that is installed.
    """

    copies: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    checkpoint: str | None = None
    by_checkpoint: bool = False
    provided: bool = False
    hide_installed: bool = False

    def __post_init__(self) -> None:
        self._problems = dict.fromkeys(self.copies, "was not imported")

    def install(self) -> None:
        """Sets the hooks in this process; modules that are already imported are changed at once."""
        if self.provided:
            _Finder(self.hide_installed).install()
        provided = [PROVIDED] if self.provided else []
        for name in dict.fromkeys(("segment_anything", *self.copies, *provided)):
            wrapt.when_imported(name)(self._change)

    def hand_down(self) -> None:
        """Sets them in the Python processes that this one starts from now on, and in theirs.

        Except in those of another Python environment, and those started without this process's
        environment variables or with one of Python's options ``-E``, ``-I`` and ``-S``.
        """
        plan = {"prefix": sys.prefix, **asdict(self)}
        os.environ["MOBILE_SAM_RUN"] = json.dumps(plan)
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{_STARTUP}{os.pathsep}{path}" if path else _STARTUP

    def problems(self) -> list[str]:
        """Returns the changes that have not been made so far, one sentence each."""
        suffix = ".build_sam"
        known = [name.removesuffix(suffix) for name in list(sys.modules) if name.endswith(suffix)]
        way_out = f"; imported were: {', '.join(known)}" if known else ""
        problems = [f"--in {name} {it}{way_out}" for name, it in self._problems.items()]
        if self.provided and (other := _imported_other()):
            hint = "" if self.hide_installed else ": --hide-installed hides it"
            problems.append(f"--provide {PROVIDED} had no effect, since {other} was imported{hint}")
        return problems

    def _change(self, module: ModuleType) -> None:
        from .replacement import register, replace

        name = module.__name__
        registry = getattr(module, "sam_model_registry", None)
        if not isinstance(registry, dict):
            self._problems[name] = "has no dict sam_model_registry"
            return
        self._problems.pop(name, None)
        missing = [model_type for model_type in self.replaced if model_type not in registry]
        if missing:
            names, known = ", ".join(missing), ", ".join(registry)
            self._problems[name] = f"has no {names} to replace, only {known}"
        if name in self.copies:
            register(module, override=True)
        present = [model_type for model_type in self.replaced if model_type in registry]
        if self.by_checkpoint and (present or not self.replaced):
            replace(*present, into=module, by_checkpoint=True)
        elif present:
            from .checkpoint import DEFAULT_CHECKPOINT

            replace(*present, into=module, checkpoint=self.checkpoint or DEFAULT_CHECKPOINT)
