"""`reproduce`: papers in, claims out.

A run is a folder: `run.json` (what was asked, on what machine, how each notebook ended), one executed
notebook a paper, `claims.json` and `report.html`. Everything is written as soon as it is known, so a
run that was interrupted or killed can be taken up again.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import logging
import os
import platform
import re
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat

from workbench.checkpoint import write_atomically
from workbench.errors import WorkbenchError, require_choice, require_integer
from workbench.measure import CLAIM_MIME
from workbench.papers import SCALES, Paper, all_papers, find_paper
from workbench.paths import home
from workbench.reproduce.report import notebook_page, write_report

Progress = Callable[[str, str], None]
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class NotebookRun:
    """How one paper's notebook fared. state: waiting | running | done | failed | interrupted."""

    slug: str
    state: str = "waiting"
    seconds: float = 0.0
    error: str = ""
    claims: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Run:
    """A run of `reproduce`: what was asked, and what came out."""

    folder: Path
    slugs: list[str]
    scale: str
    seed: int
    control: bool
    notebooks: dict[str, NotebookRun] = field(default_factory=dict)
    started: str = ""
    interrupted: bool = False
    trouble: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def claims(self) -> list[dict[str, Any]]:
        return [claim for slug in self.slugs for claim in self.notebooks[slug].claims]

    @property
    def alarms(self) -> list[str]:
        """What is worse than the TOMLs expect: a sentence each; empty if all is as expected."""
        said = []
        for slug, notebook in self.notebooks.items():
            if notebook.state != "done":
                said.append(
                    f"{slug}: the notebook {notebook.state}" + (f" ({notebook.error})" if notebook.error else "")
                )
                continue
            paper = find_paper(slug)
            for row in notebook.claims:
                claim = paper.claim(row["claim"])
                if claim.alarming(row["verdict"], control=self.control):
                    expected = (
                        "not reproduced, as its control is on" if self.control and claim.control else claim.expected
                    )
                    said.append(f"{slug} {claim.id}: {row['verdict']}, expected {expected}")
        return said


def choose_papers(slugs: list[str]) -> list[Paper]:
    """The papers to run: those named, or all that are ready. Refuses what can't run, before anything runs."""
    if not slugs:
        return [paper for paper in all_papers().values() if paper.status == "ready"]
    papers = [find_paper(slug) for slug in dict.fromkeys(slugs)]
    for paper in papers:
        if paper.status == "planned":
            ready = ", ".join(slug for slug, other in all_papers().items() if other.status == "ready")
            raise WorkbenchError(f"{paper.slug} is planned and has no notebook yet; ready are: {ready}.")
    return papers


def check_notebook(path: Path) -> None:
    """Refuse a notebook that can't be parameterised."""
    shown = f"{path.parent.name}/{path.name}"
    try:
        notebook: Any = nbformat.read(path, as_version=4)
    except OSError as error:
        raise WorkbenchError(
            f'The notebook {shown} can\'t be read ({error.strerror}); restore it or set status = "planned" in its TOML.'
        ) from None
    except Exception as error:
        raise WorkbenchError(
            f"The notebook {shown} is not a valid notebook ({type(error).__name__}); open it in JupyterLab and save it again."
        ) from None
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        count = "no cell" if not tagged else f"{len(tagged)} cells"
        raise WorkbenchError(
            f"The notebook {shown} has {count} tagged 'parameters'; tag exactly one cell, which sets scale, seed and control."
        )
    for name in ("scale", "seed", "control"):
        if not re.search(rf"^{name}\s*=", tagged[0].source, flags=re.MULTILINE):
            raise WorkbenchError(f"The parameters cell of {shown} does not set {name}; add a line such as {name} = ...")


def new_run(slugs: list[str], *, scale: str, seed: int, control: bool, out: Path) -> Run:
    """Check everything that can be checked before spending anything, and make the run's folder."""
    require_choice("scale", scale, SCALES)
    require_integer("--seed", seed, low=0, cure="pass a whole number such as --seed 1")
    papers = choose_papers(slugs)
    for paper in papers:
        check_notebook(paper.notebook)
    now = datetime.datetime.now(datetime.UTC)
    folder = _fresh_folder(out, now.strftime("%Y%m%d-%H%M%S"))
    run = Run(folder, [paper.slug for paper in papers], scale, seed, control, started=now.isoformat(timespec="seconds"))
    run.notebooks = {slug: NotebookRun(slug) for slug in run.slugs}
    try:
        write_atomically(folder / "run.json", _record(run))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise WorkbenchError(
            f"The output folder {out} can't be written ({error.strerror}); free space or choose another with --out."
        ) from None
    return run


def _fresh_folder(out: Path, stem: str) -> Path:
    for name in itertools.chain([stem], (f"{stem}-{attempt}" for attempt in itertools.count(1))):
        try:
            (out / name).mkdir(parents=True, exist_ok=False)
            return out / name
        except FileExistsError:
            if not out.is_dir():
                raise WorkbenchError(f"The output folder {out} is a file; choose another with --out.") from None
        except OSError as error:
            raise WorkbenchError(
                f"The output folder {out} can't be written ({error.strerror}); choose another with --out."
            ) from None
    raise AssertionError


def resume_run(out: Path, run_id: str) -> Run:
    """Take up an earlier run ("latest" or its id): finished notebooks are kept, the others run."""
    folders = sorted(path.parent for path in out.glob("*/run.json"))
    if not folders:
        raise WorkbenchError(f"There is no run to resume in {out}; start one with 'workbench reproduce'.")
    folder = folders[-1] if run_id == "latest" else out / run_id
    if folder not in folders:
        raise WorkbenchError(f"There is no run {run_id!r} in {out}; the latest is {folders[-1].name}.")
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        run = Run(
            folder, record["slugs"], record["scale"], record["seed"], record["control"], started=record["started"]
        )
        run.notebooks = {slug: NotebookRun(**record["notebooks"][slug]) for slug in run.slugs}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise WorkbenchError(
            f"The record {folder / 'run.json'} can't be used ({type(error).__name__}); start a new run instead."
        ) from None
    for notebook in run.notebooks.values():
        if notebook.state != "done":
            check_notebook(find_paper(notebook.slug).notebook)
            run.notebooks[notebook.slug] = NotebookRun(notebook.slug)
    return run


def execute(run: Run, *, workers: int | None = None, progress: Progress = lambda slug, state: None) -> Run:
    """Run the notebooks that are not done yet, `workers` at a time (default: one a core)."""
    waiting = [slug for slug in run.slugs if run.notebooks[slug].state != "done"]
    usual = {slug: find_paper(slug).seconds.get(run.scale, 0.0) for slug in waiting}
    waiting.sort(key=lambda slug: -usual[slug])
    stop = threading.Event()
    with _headless(), ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1) as pool:
        futures = {pool.submit(_run_notebook, run, slug, stop, progress): slug for slug in waiting}
        try:
            _watch(run, set(futures))
        except KeyboardInterrupt:
            from workbench.reproduce.kernels import kill_all_kernels

            run.interrupted = True
            stop.set()
            while not all(future.done() for future in futures):
                kill_all_kernels()
                wait(futures, timeout=0.2)
    _keep(run)
    return run


def _watch(run: Run, pending: set[Future[None]]) -> None:
    while pending:
        done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
            _keep(run)


@contextlib.contextmanager
def _headless() -> Iterator[None]:
    """What the kernels inherit: nobody is looking, and one thread each, so that replays are exact."""
    settings = {
        "WORKBENCH_HEADLESS": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _run_notebook(run: Run, slug: str, stop: threading.Event, progress: Progress) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from workbench.reproduce.kernels import ENGINE

    state = run.notebooks[slug]
    if stop.is_set():
        return
    paper = find_paper(slug)
    keep: dict[str, Any] = {}
    state.state = "running"
    progress(slug, "running")
    began = time.perf_counter()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(paper.notebook),
                None,
                parameters={"scale": run.scale, "seed": run.seed, "control": run.control},
                engine_name=ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                save_to=run.folder / f"{slug}.ipynb",
                keep=keep,
                resources={"metadata": {"path": str(paper.notebook.parent)}},
            )
        state.state = "done"
    except PapermillExecutionError as error:
        state.state = "failed"
        last = _ANSI.sub("", f"{error.ename}: {error.evalue}").strip().splitlines() or ["no message"]
        state.error = f"cell {error.exec_count}: {last[0][:300]}"
    except DeadKernelError:
        state.state = "interrupted" if stop.is_set() else "failed"
        state.error = "" if stop.is_set() else "its kernel died; if memory ran out, try --workers 1 or --scale quick"
    except Exception as error:
        state.state = "interrupted" if stop.is_set() else "failed"
        state.error = (
            "" if stop.is_set() else f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
        )
    state.seconds = round(time.perf_counter() - began, 2)
    state.claims = _claims(paper, keep.get("notebook"), run)
    if "notebook" in keep and "save_error" not in keep:
        try:
            write_atomically(run.folder / f"{slug}.html", notebook_page(keep["notebook"]).encode())
        except OSError as error:
            keep["save_error"] = error
    if "save_error" in keep:
        run.trouble.append(f"the executed notebook {slug}.ipynb can't be written ({keep['save_error'].strerror})")
    progress(slug, state.state)


def _claims(paper: Paper, notebook: Any, run: Run) -> list[dict[str, Any]]:
    """What the notebook measured, in the TOML's order; the rest as "needs gpu" or "not run"."""
    measured: dict[str, dict[str, Any]] = {}
    for cell in getattr(notebook, "cells", []):
        for output in cell.get("outputs", []):
            record = output.get("data", {}).get(CLAIM_MIME)
            if record:
                measured[record["claim"]] = dict(record)
    rows = []
    for claim in paper.claims:
        blank = {
            "slug": paper.slug,
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
            "expected": claim.expects(run.control),
            "control": claim.control or None,
            "controlled": run.control,
            "seed": run.seed,
            "scale": run.scale,
            "seconds": 0.0,
            "tokens": 0,
            "note": claim.note,
        }
        rows.append(measured.get(claim.id, blank))
    return rows


def _keep(run: Run) -> None:
    """Write what is known. A disk that refuses costs the files, not the results: they stay in memory."""
    pages = {
        "claims.json": lambda: json.dumps(run.claims, indent=1).encode(),
        "run.json": lambda: _record(run),
        "report.html": lambda: write_report(run).encode(),
    }
    for name, content in pages.items():
        try:
            write_atomically(run.folder / name, content())
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


def _record(run: Run) -> bytes:
    record = {
        "id": run.id,
        "slugs": run.slugs,
        "scale": run.scale,
        "seed": run.seed,
        "control": run.control,
        "started": run.started,
        "interrupted": run.interrupted,
        "notebooks": {slug: vars(notebook) for slug, notebook in run.notebooks.items()},
        "alarms": [] if any(n.state in ("waiting", "running") for n in run.notebooks.values()) else run.alarms,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    return json.dumps(record, indent=1).encode()


def machine() -> dict[str, Any]:
    """What a reader of a timing wants to know; no host name, no paths."""
    import psutil

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


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


__all__ = [
    "NotebookRun",
    "Run",
    "check_notebook",
    "choose_papers",
    "execute",
    "machine",
    "new_run",
    "resume_run",
    "versions",
]
