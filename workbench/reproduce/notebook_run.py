"""One notebook, run to its end or to its limits: what it did, how it ended, in one line.

Does: execute a notebook with given parameters in a kernel and a working folder of its own, save it as it goes, and say
in one sentence what stopped it. Does not: know of papers, claims, runs or caches; see `engine.py`.

The working folder is `<save_to without .ipynb>.files`. What lies beside the notebook is linked into it, so that a
notebook reads its neighbours by their names; what the notebook writes stays there when it has ended. Where the system
has Landlock and the kernel is a forked one, it can write nowhere else but in its own temporary folder, in /dev, and in
the caches that libraries share (see `_shared`); elsewhere nothing keeps it from that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.reproduce.limits import GRACE, Limits

if TYPE_CHECKING:
    from workbench.reproduce.kernels import Job

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Outcome:
    """How a notebook fared.

    state: done | failed | interrupted. error: one line, empty if all went well. seconds: wall time; work_seconds: the
    cells' own. peak_memory: bytes of its own, 0 where unknown. died: "" or what ended its kernel (memory | time |
    signal). notebook: as far as it came, None if it never began. trouble: a sentence if it could not be saved.
    """

    state: str = "running"
    error: str = ""
    seconds: float = 0.0
    work_seconds: float = 0.0
    peak_memory: int = 0
    died: str = ""
    notebook: Any = None
    trouble: str = ""


def run_notebook(
    path: Path,
    parameters: dict[str, Any],
    save_to: Path,
    *,
    stop: threading.Event | None = None,
    threads: int | None = None,
    limits: Limits | None = None,
    claimed: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Outcome:
    """Execute the notebook at `path` and save it at `save_to` as it goes; never raises for what a notebook does.

    stop: set before the notebook ends, it marks what then fails as "interrupted". threads: for torch and linear
    algebra, None for what OMP_NUM_THREADS says. limits: None for no limits but on output. claimed: called with each
    claim's record as it is measured.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from workbench.reproduce.kernels import ENGINE, Job

    began = time.perf_counter()
    outcome, job = Outcome(), Job(save_to, limits or Limits(), threads, claimed=claimed)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _working_folder(path.parent, save_to.with_suffix(".files")) as folder:
            warnings.simplefilter("ignore")
            job.writable = [str(folder), *_shared()]
            papermill.execute_notebook(
                str(path),
                None,
                parameters=parameters,
                engine_name=ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                job=job,
                resources={"metadata": {"path": str(folder)}},
            )
        outcome.state = "done"
    except PapermillExecutionError as error:
        last = _ANSI.sub("", f"{error.ename}: {error.evalue}").strip().splitlines() or ["no message"]
        outcome.error = f"cell {error.exec_count}: {last[0][:300]}"
        if error.ename == "PermissionError":
            outcome.error += "; a notebook writes in its working folder and its temporary folder"
    except DeadKernelError:
        outcome.died, outcome.error = "signal", _said_of_death(job)
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
    if outcome.state != "done":
        outcome.state = "failed"
        if job.watch is not None and job.watch.reason:
            outcome.died, outcome.error = job.watch.reason, _said_of_limit(job, parameters.get("scale"))
        if stop is not None and stop.is_set():
            outcome.state, outcome.error, outcome.died = "interrupted", "", ""
    outcome.seconds = round(time.perf_counter() - began, 2)
    outcome.notebook = job.notebook
    outcome.work_seconds = round(_work_seconds(job.notebook), 2)
    outcome.peak_memory = job.watch.peak_memory if job.watch is not None else 0
    if job.save_error is not None:
        outcome.trouble = f"the executed notebook {save_to.name} can't be written ({job.save_error.strerror})"
    return outcome


def _said_of_limit(job: Job, scale: Any) -> str:
    assert job.watch is not None
    if job.watch.reason == "memory":
        cure = "--workers 1" if scale in (None, "quick") else "--scale quick"
        return f"killed for memory at {job.watch.at / 1e9:.1f} GB in cell {job.cell}; try {cure}"
    hard = "" if job.exit_status is None else f", killed as it took no interrupt within {GRACE:.0f} s"
    return f"stopped after {job.watch.at:.0f} s in cell {job.cell}{hard}; raise the limit or look for an endless loop"


def _said_of_death(job: Job) -> str:
    status = job.exit_status
    how = ""
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            how = f" of {signal.Signals(-status).name}"
    elif status is not None:
        how = f" with exit status {status}"
    at = f" at {job.peak_resident / 1e9:.1f} GB" if job.peak_resident else ""
    cure = "; if memory ran out, try --workers 1 or --scale quick" if how in ("", " of SIGKILL") else ""
    return f"its kernel died{how} in cell {job.cell}{at}{cure}"


def _work_seconds(notebook: Any) -> float:
    """Seconds that the kernel was busy with cells, by papermill's own stamps."""
    return sum(cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in getattr(notebook, "cells", []))


@contextlib.contextmanager
def _working_folder(beside: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    links = []
    for neighbour in beside.iterdir():
        link = folder / neighbour.name
        with contextlib.suppress(OSError):
            link.symlink_to(neighbour.resolve())
            links.append(link)
    try:
        yield folder.resolve()
    finally:
        for link in links:
            if link.is_symlink():
                link.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()


def _shared() -> list[str]:
    """Where libraries write whatever notebook they work for: devices, caches, IPython's and Jupyter's own folders."""
    home = Path.home()
    named = (
        "HF_HOME",
        "HF_HUB_CACHE",
        "IPYTHONDIR",
        "JUPYTER_RUNTIME_DIR",
        "MPLCONFIGDIR",
        "NUMBA_CACHE_DIR",
        "TORCH_HOME",
        "XDG_CACHE_HOME",
    )
    usual = (".cache", ".config/matplotlib", ".ipython", ".local/share/jupyter/runtime", ".nv", ".triton")
    return [
        "/dev",
        "/proc",
        *(os.environ[name] for name in named if os.environ.get(name)),
        *(str(home / name) for name in usual),
    ]
