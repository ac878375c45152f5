"""The methods, one file each in its family. `estimators()` finds those that `workbench.run` can drive."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from workbench.run import is_estimator


def estimators() -> dict[str, type[Any]]:
    """Every estimator class by name: whatever in a family's modules has the protocol's shape.

    A class counts where it is defined, not where it is imported, and needs no registration.
    """
    found: dict[str, type[Any]] = {}
    for module_info in pkgutil.walk_packages(__path__, prefix=__name__ + "."):
        module = importlib.import_module(module_info.name)
        for name, thing in vars(module).items():
            if (
                not name.startswith("_")
                and getattr(thing, "__module__", None) == module.__name__
                and is_estimator(thing)
            ):
                found[name] = thing
    return dict(sorted(found.items()))
