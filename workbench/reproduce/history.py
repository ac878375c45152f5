"""The runs that lie beside each other in a folder, as their records tell them.

Does: find a run by its name, read it, and read those beside it; a record that can't be used is named, with the cure.
Does not: write anything.
"""

from __future__ import annotations

import json
import math
import re
from difflib import get_close_matches
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.papers import VERDICTS
from workbench.reproduce.records import Run, read_run

_SLUG = re.compile(r"[a-z0-9-]+")
_KEY = re.compile(r"[a-z0-9-]+(\.seed\d+)?(\.control)?")
_TEXTS = ("slug", "claim", "mode", "statement", "paper", "measure", "passes", "verdict", "expected", "scale", "note")
_NUMBERS = ("seconds", "tokens", "seed")


def run_folders(runs: Path) -> list[Path]:
    """The folders of `runs` that hold a record, oldest first."""
    return sorted(path.parent for path in runs.glob("*/run.json") if not path.parent.name.startswith("."))


def find_run(runs: Path, name: str) -> Path:
    """The folder of the run called `name` in `runs` (or at the path `name`), or a refusal that names the nearest."""
    folders = run_folders(runs)
    for folder in [*folders, Path(name)]:
        if name in (folder.name, str(folder)) and (folder / "run.json").is_file():
            return folder
    if (runs / name).is_dir() and name not in ("", ".", ".."):
        raise WorkbenchError(
            f"The folder {runs / name} holds no run.json: the run was cut short before it began, or this is no run; "
            "delete it, or name another."
        )
    if not folders:
        raise WorkbenchError(f"There is no run in {runs}; start one with 'workbench reproduce', or pass --runs FOLDER.")
    near = get_close_matches(name, [folder.name for folder in folders], n=1)
    raise WorkbenchError(
        f"There is no run {name!r} in {runs}; "
        + (f"did you mean {near[0]}?" if near else f"the latest is {folders[-1].name}.")
    )


def latest_run(runs: Path) -> tuple[Run, list[str]]:
    """The newest run whose record can be used, and a sentence for each newer one that was passed over."""
    folders = run_folders(runs)
    if not folders:
        raise WorkbenchError(f"There is no run in {runs}; start one with 'workbench reproduce', or pass --runs FOLDER.")
    trouble: list[str] = []
    for folder in reversed(folders):
        try:
            return recorded_run(folder), trouble
        except WorkbenchError as error:
            trouble.append(str(error))
    raise WorkbenchError(f"No run in {runs} can be used; of the latest: {trouble[0]}")


def runs_beside(run: Run, limit: int = 20) -> tuple[list[Run], list[str]]:
    """The other runs in the folder of `run`, newest first and at most `limit`; and a sentence for each unusable one."""
    found: list[Run] = []
    trouble: list[str] = []
    for folder in reversed(run_folders(run.folder.parent)):
        if folder.name == run.folder.name or len(found) == limit:
            continue
        try:
            found.append(recorded_run(folder))
        except WorkbenchError as error:
            trouble.append(str(error))
    return found, trouble


def recorded_run(folder: Path) -> Run:
    """The run in `folder`, with the machine, versions and commit that it was made with."""
    try:
        state = (folder / "run.json").stat()
    except OSError:
        raise WorkbenchError(f"The folder {folder} holds no run.json; name the folder of a run.") from None
    return _recorded_run(folder, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _recorded_run(folder: Path, _changed: int, _size: int) -> Run:
    run = read_run(folder)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    run.made_with = {"machine": {}, "versions": {}, "commit": None} | {
        name: record[name] for name in ("machine", "versions", "commit") if name in record
    }
    problem = _problem(run)
    if problem:
        raise WorkbenchError(
            f"The record {folder / 'run.json'} is damaged ({problem}); start a new run with 'workbench reproduce'."
        )
    return run


def _problem(run: Run) -> str:
    """What is wrong with a record's content, empty if nothing is: names become file names, rows become pages."""
    for slug in run.slugs:
        if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
            return f"{slug!r} is no slug"
    for key, notebook in run.notebooks.items():
        if not _KEY.fullmatch(key) or notebook.slug not in run.slugs:
            return f"{key!r} is no notebook of this run"
        for row in notebook.claims:
            fault = row_problem(row)
            if fault:
                return f"a claim of {key}: {fault}"
    return ""


def row_problem(row: Any) -> str:
    """What keeps a row of claims.json from being shown, in a few words; empty if nothing does."""
    if not isinstance(row, dict):
        return "it is no table"
    for name in _TEXTS:
        if not isinstance(row.get(name), str):
            return f"{name} is no text"
    for name in _NUMBERS:
        if not isinstance(row.get(name), Real):
            return f"{name} is no number"
    values = [row.get(name) for name in ("low", "value", "high")]
    if row["verdict"] not in VERDICTS or "control" not in row or "controlled" not in row:
        return "its verdict or its control is missing"
    if any(value is not None for value in values):
        numbers = [float(value) for value in values if isinstance(value, Real)]
        if len(numbers) < 3:
            return "value, low or high is no number"
        if not all(map(math.isfinite, numbers)) or numbers != sorted(numbers):
            return "its value lies outside its interval, or is not finite"
    return ""
