"""What earlier runs found, by a key of all that their notebooks depended on.

The key of a notebook run has these parts: the source of its code cells; its claims' modes, pass conditions, controls
and expected verdicts; its parameters; requirements.lock, Python and the installed versions of the packages that decide
figures; every source file that its code reaches (see `sources`). The data and weights that it read before its last
claim (see `workbench.reads`) are known only afterwards: they are kept beside the key and checked before the result is
taken. Prose, tags, ids, outputs, titles and notes are not part of it, nor is the number of threads.

Does: keep each result under <runs>/.cache with its executed notebook, say why a notebook must run, and hand out what
can be taken. Entries are files of their own, written whole, so that deleted run folders, runs cut short and runs side
by side do no harm; all of .cache may be deleted at any time. Only results as expected are taken.

Does not: keep what read from a network or weights from outside the workbench's folders: it cannot tell whether these
are still the same.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from workbench import reads
from workbench.checkpoint import write_atomically
from workbench.papers import Paper, find_paper
from workbench.paths import home
from workbench.reproduce.records import NotebookRun, Run, alarms_of, versions
from workbench.reproduce.sources import Sources

FOLDER = ".cache"
_VERSION = 1
_KEPT = 8  # results of one notebook at one set of parameters
_PACKAGES = ("numpy", "scipy", "torch", "transformers", "scikit-learn", "statsmodels")
_TOO_LARGE = 64 << 20  # a file beyond this is known by its size and time, not by its content


class Cache:
    """The results kept beside the runs of one folder. It looks at the sources once, when it is made."""

    def __init__(self, runs: Path) -> None:
        self.folder = runs / FOLDER
        self.sources = Sources(self.folder / "sources.json")
        self._digests: dict[str, str] = {}
        self._stored: dict[str, str] = {}
        self._common: dict[str, str] = {}

    def parts(self, run: Run, key: str) -> dict[str, str]:
        """{what a notebook run depends on: digest}, all that is known before it has run."""
        notebook = run.notebooks[key]
        paper = find_paper(notebook.slug)
        self._stored[key] = _sha256(paper.notebook)
        cells = code_cells(paper.notebook)
        claims = [[c.id, c.mode, c.passes, c.control, c.expected] for c in paper.claims]
        files = self.sources.reached("\n".join(cells), paper.notebook.parent)
        if not self._common:
            lock = home() / "requirements.lock"
            pins = [line for line in _text(lock).splitlines() if line.strip() and not line.startswith("#")]
            self._common = {"requirements.lock": _digest(pins)}
            self._common |= {name: version for name, version in versions().items() if name in ("python", *_PACKAGES)}
        return {
            "the notebook's code": _digest(cells),
            "its claims": _digest(claims),
            "its parameters": _digest(run.parameters_of(key)),
            **self._common,
            **files,
        }

    def take(self, run: Run, key: str, parts: dict[str, str]) -> str:
        """Take this notebook's result from an earlier run, if it still holds; else the reason why it must run."""
        notebook = run.notebooks[key]
        entries = self._entries(run, key)
        same = next((entry for entry in entries if entry["parts"] == parts), None)
        if same is None:
            return _differs(entries[0]["parts"], parts) if entries else self._never(run, notebook)
        if same["problem"]:
            return f"run {same['run']}: {same['problem']}"
        changed = [name for name, digest in same["reads"].items() if self._data(name) != digest]
        if changed:
            return f"{', '.join(changed)} changed"
        source = self._stem(run, key) / same["name"]
        try:
            for suffix, digest in same["files"].items():
                _link(source.with_suffix(suffix), run.folder / f"{key}{suffix}", digest)
        except (OSError, ValueError):
            return f"what was kept of run {same['run']} is missing or damaged"
        with contextlib.suppress(OSError):
            os.utime(source.with_suffix(".json"))
        paper = find_paper(notebook.slug)
        if same["source"] != self._stored[key]:
            _retell(run.folder / f"{key}.ipynb", paper.notebook)
            (run.folder / f"{key}.html").unlink(missing_ok=True)
        run.notebooks[key] = _refreshed(same, paper)
        return ""

    def keep(self, run: Run, key: str, parts: dict[str, str], files: tuple[str, ...] = (".ipynb", ".html")) -> None:
        """Keep a notebook run that ended by itself, for later runs. `parts` are those from before it ran: a source
        that was edited meanwhile must not be taken for the one that was used."""
        notebook = run.notebooks[key]
        problem = "; ".join(alarms_of(run, key))
        unknown = [name for name in notebook.reads if name in (reads.ELSEWHERE, reads.NETWORK)]
        if unknown and not problem:
            problem = f"it read from {' and '.join(unknown)}, which may have changed"
        stem, name = self._stem(run, key), _digest(parts)
        kept: dict[str, str] = {}
        with contextlib.suppress(OSError):
            stem.mkdir(parents=True, exist_ok=True)
            for suffix in files if not problem else ():
                made = run.folder / f"{key}{suffix}"
                if made.is_file():
                    kept[suffix] = _sha256(made)
                    _link(made, stem / f"{name}{suffix}", kept[suffix])
            entry = {
                "version": _VERSION,
                "name": name,
                "run": run.id,
                "kept": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "problem": problem,
                "parts": parts,
                "source": self._stored[key],
                "reads": {place: self._data(place) for place in sorted({_place(read) for read in notebook.reads})},
                "notes": {claim.id: claim.note for claim in find_paper(notebook.slug).claims},
                "files": kept,
                "notebook": vars(notebook),
            }
            write_atomically(stem / f"{name}.json", json.dumps(entry).encode())
            for old in self._entries(run, key)[_KEPT:]:
                for file in stem.glob(f"{old['name']}.*"):
                    file.unlink(missing_ok=True)

    def usual_seconds(self, run: Run, key: str) -> float:
        """How long this notebook took when it last ran at this scale; what its TOML says if it never did."""
        notebook = run.notebooks[key]
        entries = self._entries(run, key) or self._others(run, notebook)
        known = [entry["notebook"]["seconds"] for entry in entries if entry["notebook"]["seconds"]]
        return known[0] if known else find_paper(notebook.slug).seconds.get(run.scale, 0.0)

    def _stem(self, run: Run, key: str) -> Path:
        notebook = run.notebooks[key]
        name = f"{run.scale}.seed{notebook.seed}" + ".control" * notebook.control
        return self.folder / notebook.slug / (name + f".{_digest(run.parameters)}" * bool(run.parameters))

    def _entries(self, run: Run, key: str) -> list[dict[str, Any]]:
        """What was kept of this notebook at these parameters, newest first."""
        return _read_entries(self._stem(run, key))

    def _others(self, run: Run, notebook: NotebookRun) -> list[dict[str, Any]]:
        stems = (self.folder / notebook.slug).glob(f"{run.scale}.seed*")
        return [
            entry for stem in stems if ".control" in stem.name or not notebook.control for entry in _read_entries(stem)
        ]

    def _never(self, run: Run, notebook: NotebookRun) -> str:
        kept = [stem.name for stem in (self.folder / notebook.slug).glob("*")]
        if not any(name.startswith(f"{run.scale}.") for name in kept):
            return f"never run at scale {run.scale}" if kept else "never run"
        if run.parameters:
            return "never run with these parameters"
        same_seed = any(name.split(".")[1] == f"seed{notebook.seed}" for name in kept)
        return "never run with its control" if notebook.control and same_seed else f"seed {notebook.seed} never run"

    def _data(self, place: str) -> str:
        """The digest of a data file, or of a folder of data: of each file that lies in it."""
        if place not in self._digests:
            path = home() / place
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
            self._digests[place] = _digest([[file.name, _content(file)] for file in files])
        return self._digests[place]


def code_cells(notebook: Path) -> list[str]:
    """The source of each code cell. Read as JSON: importing nbformat takes longer than a whole run from the cache."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]).strip() for cell in cells if cell["cell_type"] == "code"]


def _read_entries(stem: Path) -> list[dict[str, Any]]:
    found = []
    for path in stem.glob("*.json"):
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry["version"] == _VERSION and NotebookRun(**entry["notebook"]):
                found.append((path.stat().st_mtime, entry))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged, of another version, or just deleted: it is as if it had never been
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]


def _refreshed(entry: dict[str, Any], paper: Paper) -> NotebookRun:
    """The kept result under today's statements and notes."""
    notebook = NotebookRun(**entry["notebook"])
    notebook.cached, notebook.why = entry["notebook"]["cached"] or entry["run"], ""
    for row in notebook.claims:
        claim, old = paper.claim(row["claim"]), entry["notes"][row["claim"]]
        row |= {"statement": claim.statement, "paper": claim.paper, "measure": claim.measure}
        row["note"] = " ".join(part for part in (claim.note, row["note"].removeprefix(old).strip()) if part)
    return notebook


def _retell(executed: Path, today: Path) -> None:
    """Give an executed notebook today's prose and tags; its code is the same."""
    told, shown = (json.loads(path.read_text(encoding="utf-8")) for path in (today, executed))
    code = iter([cell for cell in shown["cells"] if cell["cell_type"] == "code"])
    cells = []
    for cell in told["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        ran = next(code)
        cells.append(ran | {"metadata": ran["metadata"] | cell["metadata"]})
        if "parameters" in cell["metadata"].get("tags", []):
            cells.append(next(code))
    write_atomically(executed, json.dumps(shown | {"cells": cells}, indent=1, ensure_ascii=False).encode())


def _differs(old: dict[str, str], new: dict[str, str]) -> str:
    changed = [f"{name} changed" for name in new if name in old and new[name] != old[name]]
    changed += [f"{name} is new to it" for name in new if name not in old]
    changed += [f"{name} is no longer used" for name in old if name not in new]
    return ", ".join(changed[:2]) + (f" and {len(changed) - 2} more" if len(changed) > 2 else "")


def _place(read: str) -> str:
    """Bundled data is a folder (weights, tokenizer and card belong together); beside a notebook it is a file."""
    return read.rpartition("/")[0] if read.startswith("datasets/") else read


def _link(source: Path, target: Path, digest: str) -> None:
    """`target` becomes the same file as `source`, whose content must be the one expected."""
    if _sha256(source) != digest:
        raise ValueError(f"{source} is damaged")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # two names of one file: the rename did nothing


def _content(path: Path) -> str:
    try:
        size = path.stat()
        return f"{size.st_size} {size.st_mtime_ns}" if size.st_size > _TOO_LARGE else _sha256(path)
    except OSError:
        return "missing"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _digest(things: Any) -> str:
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:16]
