"""Notebooks run in this process instead of in kernels, so that what surrounds them is tested in milliseconds."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

from workbench import measure, reads
from workbench.reproduce import engine, notebook_run
from workbench.reproduce.notebook_run import Outcome

from .conftest import Home


class Bench:
    """A small workbench whose notebooks run at once, one after another. `ran` are the keys run, `reads` what notebooks say they read."""

    def __init__(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.ran, self.reads, self.seconds = home, [], [], 1.0
        self.out = home.folder / "runs"
        monkeypatch.setenv("WORKBENCH_HOME", str(home.folder))
        monkeypatch.setenv("WORKBENCH_KERNELS", "ordinary")
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        monkeypatch.setattr(notebook_run, "run_notebook", self.execute)
        monkeypatch.setattr(measure, "show", lambda thing: self.shown.append(thing))
        monkeypatch.setattr(reads, "watch", lambda *folders: None)
        monkeypatch.setattr(reads, "seen", lambda home: list(self.reads))

    def execute(self, path: Path, parameters: dict, save_to: Path, **_) -> Outcome:
        self.ran.append(save_to.stem)
        notebook = nbformat.read(path, as_version=4)
        at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
        injected = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(injected, metadata={"tags": ["injected-parameters"]}))
        names: dict = {}
        state, error = "done", ""
        for cell in notebook.cells:
            self.shown: list = []
            if cell.cell_type == "code" and not error:
                try:
                    exec(cell.source, names)
                except Exception as raised:
                    state, error = "failed", f"{type(raised).__name__}: {raised}"
                bundles = [thing._repr_mimebundle_() for thing in self.shown]
                cell.outputs = [nbformat.v4.new_output("display_data", bundle) for bundle in bundles]
        nbformat.write(notebook, save_to)
        return Outcome(state=state, error=error, seconds=self.seconds, notebook=notebook)

    def go(self, *slugs: str, fresh: bool = False, scale: str = "quick", seed: int = 0, control: bool = False, **more):
        """Run; the Run, with `ran` those notebooks that were not taken from an earlier run."""
        self.ran = []
        run = engine.new_run(list(slugs), scale=scale, seed=seed, control=control, out=self.out, **more)
        return engine.execute(run, fresh=fresh, warm=True)
