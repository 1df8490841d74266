"""Run by python at its start in every process below ``mobile-sam run``, see ``import_hooks.py``.

Also by pythons that have nothing to do with this package, which must not notice: its folder goes
from ``sys.path``, and the ``sitecustomize`` that it stands in front of runs as it would have.
"""

import json
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_HERE = os.path.dirname(os.path.abspath(__file__))


def _run_the_one_behind() -> None:
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]
    spec = PathFinder.find_spec(__name__)
    if spec is not None and spec.loader is not None:
        module = sys.modules[__name__] = module_from_spec(spec)
        spec.loader.exec_module(module)


def _set_hooks() -> None:
    plan = json.loads(os.environ.get("MOBILE_SAM_RUN", "{}"))
    if plan.pop("prefix", None) != sys.prefix:
        return  # another environment, which may not have what this package needs
    path = sys.path[:]
    # Where the package lies, in case python only found it in the folder that it was started in.
    sys.path.append(os.path.dirname(os.path.dirname(_HERE)))
    try:
        from mobile_sam_plugin.import_hooks import ImportHooks
    finally:
        sys.path[:] = path
    ImportHooks(**plan).install()


try:
    _run_the_one_behind()
finally:
    _set_hooks()
