"""Shows Sphinx's roles in docstrings, such as ``:func:`~.images.load_image```, as names."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)\s*([\w.]+)`")


class DocstringRoles(griffe.Extension):
    """An extension of griffe, which reads the docstrings for the reference and knows no roles."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object once it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_name, obj.docstring.value)


def _name(role: re.Match[str]) -> str:
    shortened, path = role.groups()
    return f"`{path.rpartition('.')[2] if shortened else path.lstrip('.')}`"
