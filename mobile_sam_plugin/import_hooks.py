"""MobileSAM in the SAM packages that a program, or a process that it starts, imports later.

A new process does not inherit the modules of the one that started it. So the settings are passed in
the environment, together with a folder on ``PYTHONPATH``. At its start Python runs the
``sitecustomize`` in it, which sets the same hooks.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import wrapt

_STARTUP = str(Path(__file__).parent / "startup")


class ImportHooks:
    """Changes to ``segment_anything`` and its copies, made as soon as a program imports them.

    Args:
        copies: full names of modules in addition to ``segment_anything``. They get this package's
            ``vit_t``, instead of their own if they have one.
        replaced: model types for which all of these modules build MobileSAM.
        checkpoint: weights for replaced types; the default ones if None.
    """

    def __init__(
        self,
        copies: Sequence[str] = (),
        replaced: Sequence[str] = (),
        checkpoint: str | None = None,
    ) -> None:
        self.copies = list(copies)
        self.replaced = list(replaced)
        self.checkpoint = checkpoint
        self._problems = dict.fromkeys(self.copies, "was not imported")

    def install(self) -> None:
        """Sets the hooks in this process; modules that are already imported are changed at once."""
        for name in dict.fromkeys(("segment_anything", *self.copies)):
            wrapt.when_imported(name)(self._change)

    def hand_down(self) -> None:
        """Sets them in the Python processes that this one starts from now on, and in theirs.

        Except in those of another Python environment, and those started without this process's
        environment variables or with one of Python's options ``-E``, ``-I`` and ``-S``.
        """
        plan = {
            "prefix": sys.prefix,
            "copies": self.copies,
            "replaced": self.replaced,
            "checkpoint": self.checkpoint,
        }
        os.environ["MOBILE_SAM_RUN"] = json.dumps(plan)
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{_STARTUP}{os.pathsep}{path}" if path else _STARTUP

    def problems(self) -> list[str]:
        """Returns the changes that have not been made so far, one sentence each."""
        suffix = ".build_sam"
        known = [name.removesuffix(suffix) for name in list(sys.modules) if name.endswith(suffix)]
        way_out = f"; imported were: {', '.join(known)}" if known else ""
        return [f"{name} {problem}{way_out}" for name, problem in self._problems.items()]

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
        if present:
            from .checkpoint import DEFAULT_CHECKPOINT

            replace(*present, into=module, checkpoint=self.checkpoint or DEFAULT_CHECKPOINT)
