"""Where the notebooks and the bundled data are: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.errors import WorkbenchError

_PACKAGE = Path(__file__).resolve().parent


def home() -> Path:
    """The folder that holds `notebooks/` and `datasets/`; the environment's WORKBENCH_HOME goes first."""
    named = os.environ.get("WORKBENCH_HOME")
    candidates = [Path(named)] if named else [_PACKAGE.parent, _PACKAGE / "share"]
    for folder in candidates:
        if (folder / "notebooks").is_dir() and (folder / "datasets").is_dir():
            return folder
    raise WorkbenchError(
        f"No folders notebooks/ and datasets/ in {' or '.join(str(c) for c in candidates)}; "
        "set WORKBENCH_HOME to a checkout of the workbench."
    )


def notebooks_folder() -> Path:
    return home() / "notebooks"


def datasets_folder() -> Path:
    return home() / "datasets"
