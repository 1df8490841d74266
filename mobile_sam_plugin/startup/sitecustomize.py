"""Run by Python at the start of every process below ``mobile-sam run``, see ``import_hooks.py``.

Processes that have nothing to do with this package run it as well, and must not notice: it removes
its folder from ``sys.path`` and runs the ``sitecustomize`` that it hides.
"""

import json
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_HERE = os.path.dirname(os.path.abspath(__file__))


def _run_hidden_sitecustomize() -> None:
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]
    spec = PathFinder.find_spec(__name__)
    if spec is not None and spec.loader is not None:
        module = sys.modules[__name__] = module_from_spec(spec)
        spec.loader.exec_module(module)


def _set_hooks() -> None:
    plan = json.loads(os.environ.get("MOBILE_SAM_RUN", "{}"))
    if plan.pop("prefix", None) != sys.prefix:
        return  # another environment, which may lack this package's requirements
    path = sys.path[:]
    # The package's folder, in case Python found it only in the folder that it was started in.
    sys.path.append(os.path.dirname(os.path.dirname(_HERE)))
    try:
        from mobile_sam_plugin.import_hooks import ImportHooks
    finally:
        sys.path[:] = path
    ImportHooks(**plan).install()


try:
    _run_hidden_sitecustomize()
finally:
    _set_hooks()
