"""What a run of `reproduce` is, in memory and in its folder.

A run's folder holds `run.json` (what was asked, on what machine, how each notebook ended) and `claims.json` (one row
for each claim of each notebook run); the executed notebooks lie beside them as `<key>.ipynb`.

Does: hold, write and read these records, and count passes over seeds. Does not: run anything.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.checkpoint import write_atomically
from workbench.errors import WorkbenchError
from workbench.measure import CLAIM_MIME
from workbench.papers import MEASURED_VERDICTS, Paper, find_paper
from workbench.paths import home

VERSION = 2
STATES = ("waiting", "running", "done", "failed", "interrupted")


@dataclass
class NotebookRun:
    """How one paper's notebook fared at one seed, with its method or with its control.

    state: one of STATES. error: one line. seconds: wall time; work_seconds: the cells' own; peak_memory: bytes,
    0 where unknown; died: "" or what ended its kernel. why: why it was run; cached: the run that its results were
    taken from, "" if it was run. reads: data files read before its last claim, named from the workbench's home.
    """

    slug: str
    state: str = "waiting"
    seconds: float = 0.0
    error: str = ""
    claims: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0
    control: bool = False
    why: str = ""
    cached: str = ""
    reads: list[str] = field(default_factory=list)
    peak_memory: int = 0
    work_seconds: float = 0.0
    died: str = ""


@dataclass
class Run:
    """A run of `reproduce`: what was asked, and what came out.

    notebooks: by key. A paper's first run (the run's own seed and `control`) has its slug as key; the others are
    "<slug>.seed<seed>", "<slug>.control" or "<slug>.seed<seed>.control". Not recorded: usual, the seconds that those
    which must run took last time, and so_far, the claims of those that are running.
    """

    folder: Path
    slugs: list[str]
    scale: str
    seed: int
    control: bool
    notebooks: dict[str, NotebookRun] = field(default_factory=dict)
    started: str = ""
    interrupted: bool = False
    trouble: list[str] = field(default_factory=list)
    seeds: int = 1
    with_control: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)
    so_far: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def claims(self) -> list[dict[str, Any]]:
        """A row for each claim of each notebook run, in the order of `notebooks`."""
        return [row for notebook in self.notebooks.values() for row in notebook.claims]

    @property
    def alarms(self) -> list[str]:
        """What is worse than the TOMLs expect: a sentence each; empty if all is as expected."""
        return [sentence for key in self.notebooks for sentence in alarms_of(self, key)]

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """Machine, versions and commit: looked up once."""
        return {"machine": machine(), "versions": versions(), "commit": commit()}

    def parameters_of(self, key: str) -> dict[str, Any]:
        """What is injected after the notebook's parameters cell."""
        notebook = self.notebooks[key]
        return {"scale": self.scale, "seed": notebook.seed, "control": notebook.control, **self.parameters}


def plan(run: Run) -> dict[str, NotebookRun]:
    """The notebook runs that were asked for, all waiting, by key: papers, then method before control, then seeds."""
    notebooks = {}
    for slug in run.slugs:
        for control in (run.control, True) if run.with_control and not run.control else (run.control,):
            for seed in range(run.seed, run.seed + run.seeds):
                key = slug + f".seed{seed}" * (seed != run.seed) + ".control" * (control != run.control)
                notebooks[key] = NotebookRun(slug, seed=seed, control=control)
    return notebooks


def alarms_of(run: Run, key: str) -> list[str]:
    """What is worse than expected in one notebook run, a sentence each."""
    notebook = run.notebooks[key]
    name = notebook.slug + f" at seed {notebook.seed}" * (run.seeds > 1)
    name += " under control" * (run.with_control and notebook.control)
    if notebook.state != "done":
        return [f"{name}: the notebook {notebook.state}" + f" ({notebook.error})" * bool(notebook.error)]
    paper, said = find_paper(notebook.slug), []
    for row in notebook.claims:
        claim = paper.claim(row["claim"])
        if claim.alarming(row["verdict"], control=notebook.control):
            controlled = notebook.control and claim.control
            expected = "not reproduced, as its control is on" if controlled else claim.expected
            said.append(f"{name} {claim.id}: {row['verdict']}, expected {expected}")
    return said


def claim_rows(run: Run, key: str, paper: Paper, cells: list[Any]) -> None:
    """Set a notebook run's claims from its executed cells: what was measured, in the TOML's order, and the rest as
    "needs gpu" or "not run". A claim that was measured twice with different values is an error of the notebook.
    """
    notebook = run.notebooks[key]
    measured: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for output in cell.get("outputs", []):
            record = output.get("data", {}).get(CLAIM_MIME)
            if not record:
                continue
            record = dict(record)
            notebook.reads = record.pop("reads", [])
            earlier = measured.setdefault(record["claim"], record)
            if earlier["value"] != record["value"] and not notebook.error:
                values = f"{earlier['value']:g} and {record['value']:g}"
                notebook.error = (
                    f"claim {record['claim']} was measured twice, as {values}; measure it once, "
                    "or give the second its own [[claims]]"
                )
    notebook.claims = [measured.get(claim.id) or _blank(run, notebook, claim) for claim in paper.claims]


def _blank(run: Run, notebook: NotebookRun, claim: Any) -> dict[str, Any]:
    return {
        "slug": notebook.slug,
        "claim": claim.id,
        "mode": claim.mode,
        "statement": claim.statement,
        "paper": claim.paper,
        "measure": claim.measure,
        "value": None,
        "low": None,
        "high": None,
        "passes": claim.passes,
        "verdict": "needs gpu" if claim.mode == "gpu" else "not run",
        "expected": claim.expects(notebook.control),
        "control": claim.control or None,
        "controlled": notebook.control,
        "seed": notebook.seed,
        "scale": run.scale,
        "seconds": 0.0,
        "tokens": 0,
        "note": claim.note,
    }


def passes(run: Run) -> list[dict[str, Any]]:
    """How often each claim's value met its pass condition: {slug, claim, controlled, passed, runs, low, high}.

    Only runs that measured the claim count; low and high are the 95 % Wilson interval of the share of passes, which
    speaks of seeds drawn like these.
    """
    counts: dict[tuple[str, str, bool], list[int]] = {}
    for row in run.claims:
        if row["verdict"] in MEASURED_VERDICTS:
            count = counts.setdefault((row["slug"], row["claim"], row["controlled"]), [0, 0])
            count[0] += row["verdict"] != "not reproduced"
            count[1] += 1
    rows = []
    for (slug, claim, controlled), (passed, runs) in counts.items():
        low, high = wilson(passed, runs)
        rows.append({"slug": slug, "claim": claim, "controlled": controlled, "passed": passed, "runs": runs})
        rows[-1] |= {"low": round(low, 4), "high": round(high, 4)}
    return rows


def wilson(passed: int, runs: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927), in closed form: nothing need be imported for it."""
    z = 1.959963984540054
    middle = (passed + z**2 / 2) / (runs + z**2)
    half = z * math.sqrt(passed * (runs - passed) / runs + z**2 / 4) / (runs + z**2)
    return (0.0 if passed == 0 else middle - half), (1.0 if passed == runs else middle + half)


def keep(run: Run, pages: dict[str, Any]) -> None:
    """Write what is known: run.json, claims.json and `pages`, {file name: function that gives its text}.

    A disk that refuses costs the files, not the results: they stay in memory, and `run.trouble` says so.
    """
    known = {"claims.json": lambda: json.dumps(run.claims, indent=1), "run.json": lambda: as_json(run)}
    for name, text in (known | pages).items():
        try:
            write_atomically(run.folder / name, text().encode())
        except OSError as error:
            sentence = f"{run.folder / name} can't be written ({error.strerror})"
            if sentence not in run.trouble:
                run.trouble.append(sentence)
                _rescue(run)


def _rescue(run: Run) -> None:
    """The run's folder can't be written: leave the claims in the system's temporary folder instead."""
    target = Path(tempfile.gettempdir()) / f"workbench-{run.id}-claims.json"
    with contextlib.suppress(OSError):
        write_atomically(target, json.dumps(run.claims, indent=1).encode())
        note = f"the claims are kept in {target}"
        if note not in run.trouble:
            run.trouble.append(note)


def as_json(run: Run) -> str:
    """run.json."""
    ended = all(notebook.state not in ("waiting", "running") for notebook in run.notebooks.values())
    record = {
        "version": VERSION,
        "id": run.id,
        "slugs": run.slugs,
        "scale": run.scale,
        "seed": run.seed,
        "seeds": run.seeds,
        "control": run.control,
        "with_control": run.with_control,
        "parameters": run.parameters,
        "started": run.started,
        "interrupted": run.interrupted,
        "notebooks": {key: vars(notebook) for key, notebook in run.notebooks.items()},
        "passes": passes(run),
        "alarms": run.alarms if ended else [],
        "trouble": run.trouble,
        **run.made_with,
    }
    return json.dumps(record, indent=1)


def read_run(folder: Path) -> Run:
    """The run in `folder`; a record that is torn, missing or of another version is refused by name."""
    path = folder / "run.json"
    start = "start a new run with 'workbench reproduce'"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record.get("version", 1)
    except (OSError, ValueError, AttributeError) as error:
        raise WorkbenchError(f"The record {path} can't be used ({type(error).__name__}: {error}); {start}.") from None
    if version != VERSION:
        age = "an older" if version in range(1, VERSION) else "another"
        raise WorkbenchError(
            f"The record {path} was written by {age} workbench (record version {version!r}; this one reads {VERSION}); {start}."
        )
    try:
        asked = {name: record[name] for name in ("slugs", "scale", "seed", "control", "started", "interrupted")}
        asked |= {name: record[name] for name in ("seeds", "with_control", "parameters", "trouble")}
        run = Run(folder, **asked)
        run.notebooks = {key: NotebookRun(**notebook) for key, notebook in record["notebooks"].items()}
        if any(notebook.state not in STATES for notebook in run.notebooks.values()):
            raise KeyError("state")
    except (KeyError, TypeError, AttributeError) as error:
        raise WorkbenchError(f"The record {path} is incomplete ({type(error).__name__}: {error}); {start}.") from None
    return run


def machine() -> dict[str, Any]:
    """What a reader of a timing wants to know; no host name, no paths."""
    import psutil

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


@cache
def versions() -> dict[str, str]:
    names = ("numpy", "scipy", "torch", "transformers", "scikit-learn", "statsmodels", "papermill", "ipykernel")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """The checkout's commit, marked "+" where files differ from it; None outside a checkout."""
    try:
        ask = {"cwd": home(), "capture_output": True, "text": True, "timeout": 10}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **ask)
        dirty = subprocess.run(["git", "status", "--porcelain"], **ask)
    except (OSError, subprocess.SubprocessError):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
