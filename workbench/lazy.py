"""Names of a package that are loaded when first used, so that one of them does not wait for the imports of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def attach(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose submodules hold its names.

        __getattr__, __dir__, __all__ = attach(__name__, _HOMES)

    package: its `__name__`. homes: {submodule: its names that the package offers}, written as a literal, so that the
    notebook runner can tell which submodule a notebook uses (`reproduce/sources.py`).
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    for name in home_of.keys() & homes.keys():
        # Importing the submodule from anywhere would put it in the place of what it defines.
        raise ImportError(f"{package}.{name} would be a submodule and a name of its own; rename the file.")
    all_names = sorted(home_of)

    def getattr_(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home_of[name]}"), name)
        vars(import_module(package))[name] = value
        return value

    return getattr_, lambda: all_names, all_names
