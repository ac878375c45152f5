"""A miniature workbench of small papers, so that the runner is tested in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

CLAIM = """
[[claims]]
id = "{id}"
statement = "A statement"
source = "Table 1"
paper = "7"
mode = "{mode}"
measure = "a number"
passes = "{passes}"
bar = "theory"
{more}
"""

HEAD = """
title = "{slug} in small"
authors = ["A. Author"]
year = 2026
family = "conformal"
kind = "method"
status = "{status}"
summary = "A small paper."
"""

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
OPEN = "import workbench as wb\npaper = wb.paper('{slug}', scale=scale, seed=seed, control=control)"


class Home:
    """A folder with notebooks/ and datasets/ that the command is pointed at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "notebooks" / "conformal").mkdir(parents=True)
        (folder / "datasets").mkdir()

    def add(
        self,
        slug: str,
        cells: list[str],
        *,
        claims: str | None = None,
        status: str = "ready",
        parameters: str | None = "scale = 'quick'\nseed = 0\ncontrol = False",
    ) -> Path:
        claims = (
            CLAIM.format(id="C1", mode="scaled", passes=">= 3", more='control = "the method is off"')
            if claims is None
            else claims
        )
        toml = self.folder / "notebooks" / "conformal" / f"{slug}.toml"
        toml.write_text(HEAD.format(slug=slug, status=status) + claims)
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}})
        if parameters is not None:
            notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
        notebook.cells.append(nbformat.v4.new_code_cell(OPEN.format(slug=slug)))
        notebook.cells += [nbformat.v4.new_code_cell(source) for source in cells]
        nbformat.write(notebook, toml.with_suffix(".ipynb"))
        return toml

    def command(self, *arguments: str, **kwargs) -> list[str]:
        return [sys.executable, "-m", "workbench", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        # Ordinary kernels: a small notebook needs none of the imports that the others have done.
        return {"WORKBENCH_KERNELS": "ordinary"} | os.environ | {"WORKBENCH_HOME": str(self.folder)}

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=120,
            env=self.environment,
            cwd=cwd or self.folder,
        )

    def runs(self, out: str = "runs") -> list[Path]:
        """The folders of the runs, oldest first (what they keep for later runs is hidden beside them)."""
        return sorted(record.parent for record in (self.folder / out).glob("*/run.json"))

    def claims(self, out: str = "runs") -> list[dict]:
        """The claims of the only run."""
        [folder] = self.runs(out)
        return json.loads((folder / "claims.json").read_text())

    def record(self, out: str = "runs") -> dict:
        """run.json of the latest run."""
        return json.loads((self.runs(out)[-1] / "run.json").read_text())


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path)
