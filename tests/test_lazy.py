"""Names of packages that are loaded when first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workbench.lazy import attach

ALL_THEN_NAMES = """
import importlib, pkgutil, types
import {package} as package
for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
    if not found.name.endswith(("__main__", "recipes")):
        importlib.import_module(found.name)
print([name for name in package.__all__ if isinstance(getattr(package, name), types.ModuleType)])
"""


@pytest.mark.parametrize("package", ["workbench.widgets", "workbench.models"])
def test_a_name_is_what_the_package_offers_whatever_was_imported_before(package):
    done = subprocess.run(
        [sys.executable, "-c", ALL_THEN_NAMES.format(package=package)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_name_that_is_also_a_submodule_is_refused():
    with pytest.raises(ImportError, match=r"shop\.bread .* rename the file"):
        attach("shop", {"bread": ("bread", "roll")})


def test_an_unknown_name_is_an_attribute_error():
    getattr_, names, offered = attach("workbench.models", {"laws": ("Law",)})
    assert offered == names() == ["Law"] and getattr_("Law").__name__ == "Law"
    with pytest.raises(AttributeError, match="has no attribute 'Lore'"):
        getattr_("Lore")
