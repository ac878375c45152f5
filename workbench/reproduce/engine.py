"""`reproduce`: papers in, claims out.

Does: check what was asked, take from earlier runs what still holds, run the other notebooks side by side, and write
everything as soon as it is known, so that a run that was interrupted or killed can be taken up again. One bad
notebook costs its own claims only.

Does not: start kernels (`notebook_run`), decide what still holds (`cache`), or draw the report (`report`).
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.checkpoint import write_atomically
from workbench.errors import WorkbenchError, require_choice, require_integer
from workbench.papers import SCALES, find_paper
from workbench.reproduce.asked import check_notebook, choose_papers, read_parameters
from workbench.reproduce.cache import Cache
from workbench.reproduce.records import (
    NotebookRun,
    Run,
    as_json,
    claim_rows,
    keep,
    machine,
    plan,
    read_run,
    versions,
)
from workbench.reproduce.report import write_report

if TYPE_CHECKING:
    from workbench.reproduce.limits import Limits

Progress = Callable[[str, str], None]


def new_run(
    slugs: list[str],
    *,
    scale: str,
    seed: int,
    control: bool,
    out: Path,
    seeds: int = 1,
    with_control: bool = False,
    parameters: dict[str, Any] | None = None,
) -> Run:
    """Check everything that can be checked before spending anything, and make the run's folder.

    A notebook that can't be run has failed before it began; the others are waiting.
    """
    require_choice("--scale", scale, SCALES)
    require_integer("--seed", seed, low=0, cure="pass a whole number such as --seed 1")
    require_integer("--seeds", seeds, low=1, cure="pass how many seeds to run, such as --seeds 5")
    if control and with_control:
        raise WorkbenchError("--control runs the controls alone; leave it out beside --with-control, which runs both.")
    papers, trouble = choose_papers(slugs)
    now = datetime.datetime.now(datetime.UTC)
    run = Run(
        _fresh_folder(out, now.strftime("%Y%m%d-%H%M%S")),
        [paper.slug for paper in papers],
        scale,
        seed,
        control,
        started=now.isoformat(timespec="seconds"),
        trouble=trouble,
        seeds=seeds,
        with_control=with_control,
        parameters=parameters or {},
    )
    run.notebooks = plan(run)
    _refuse_the_bad(run)
    try:
        write_atomically(run.folder / "run.json", as_json(run).encode())
    except OSError as error:
        with contextlib.suppress(OSError):
            run.folder.rmdir()
        raise WorkbenchError(
            f"The output folder {out} can't be written ({error.strerror}); free space or choose another with --out."
        ) from None
    return run


def _refuse_the_bad(run: Run) -> None:
    """Notebooks that can't run have failed, each with its sentence."""
    for key, notebook in run.notebooks.items():
        if notebook.state == "waiting":
            paper = find_paper(notebook.slug)
            try:
                check_notebook(paper.notebook, run.parameters)
            except WorkbenchError as error:
                notebook.state, notebook.error = "failed", str(error)
                claim_rows(run, key, paper, [])


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
    run = read_run(folder)
    run.interrupted, run.trouble = False, []
    fresh = plan(run)
    if fresh.keys() != run.notebooks.keys():
        raise WorkbenchError(
            f"The record {folder / 'run.json'} is incomplete (its notebooks); start a new run instead."
        )
    run.notebooks = {key: old if old.state == "done" else fresh[key] for key, old in run.notebooks.items()}
    _refuse_the_bad(run)
    return run


def execute(
    run: Run,
    *,
    workers: int | None = None,
    fresh: bool = False,
    warm: bool = False,
    progress: Progress = lambda key, state: None,
) -> Run:
    """Run the notebooks that are still waiting, `workers` at a time (default: one a core), the longest first.

    What an earlier run in the same folder found is taken from there if nothing that it depends on has changed, unless
    `fresh`. warm: leave the process that kernels are forked from to the next call, until this process ends.
    progress(key, state) is called when a notebook's state changes, from any thread.
    """
    cache = Cache(run.folder.parent)
    parts: dict[str, dict[str, str]] = {}
    for key, notebook in run.notebooks.items():
        if notebook.state != "waiting":
            continue
        parts[key] = cache.parts(run, key)
        notebook.why = "--fresh" if fresh else cache.take(run, key, parts[key])
        if run.notebooks[key].cached:
            del parts[key]
            progress(key, "done")
    run.usual = {key: cache.usual_seconds(run, key) for key in parts}
    if parts:
        _run_all(run, cache, parts, workers or os.cpu_count() or 1, warm, progress)
    _keep(run)
    cache.sources.keep()
    return run


def _run_all(
    run: Run, cache: Cache, parts: dict[str, dict[str, str]], workers: int, warm: bool, progress: Progress
) -> None:
    from workbench.reproduce.limits import default_limits
    from workbench.reproduce.provisioner import pre_imported

    stop = threading.Event()
    # With a worker for each notebook, each may as well do its own imports.
    libraries = len(parts) > workers
    workers = min(workers, len(parts))
    limits = default_limits(run.scale, workers)
    threads = max(1, (os.cpu_count() or 1) // workers)
    forked_from = contextlib.nullcontext() if warm else pre_imported(libraries)
    with _headless(threads, cache.folder), forked_from, ThreadPoolExecutor(max_workers=workers) as pool:
        longest_first = sorted(parts, key=lambda key: -run.usual[key])
        futures = {pool.submit(_run_notebook, run, key, stop, threads, limits, progress): key for key in longest_first}
        try:
            _watch(run, futures, cache, parts)
        except KeyboardInterrupt:
            from workbench.reproduce.kernels import kill_all_kernels

            run.interrupted = True
            stop.set()
            while not all(future.done() for future in futures):
                kill_all_kernels()
                wait(futures, timeout=0.2)


def _watch(run: Run, futures: dict[Future[bool], str], cache: Cache, parts: dict[str, dict[str, str]]) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        if done:
            ended = [futures[future] for future in done if future.result()]
            _keep(run)  # before the cache, which keeps the page that the report makes of the notebook
            for key in ended:
                cache.keep(run, key, parts[key])


@contextlib.contextmanager
def _headless(threads: int, cache: Path) -> Iterator[None]:
    """What the kernels inherit: nobody is looking, the cores are shared out among them, and what numba compiles is kept
    where they may write."""
    settings = {
        "WORKBENCH_HEADLESS": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "NUMBA_CACHE_DIR": str(cache.resolve() / "numba"),
    }
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    with contextlib.suppress(OSError):
        os.makedirs(os.environ["NUMBA_CACHE_DIR"], exist_ok=True)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _run_notebook(run: Run, key: str, stop: threading.Event, threads: int, limits: Limits, progress: Progress) -> bool:
    """True if it ended by itself and all that it left could be written."""
    from workbench.reproduce.notebook_run import run_notebook

    state = run.notebooks[key]
    if stop.is_set():
        return False
    paper = find_paper(state.slug)
    state.state = "running"
    progress(key, "running")
    so_far = run.so_far.setdefault(key, [])
    outcome = run_notebook(
        paper.notebook,
        run.parameters_of(key),
        run.folder / f"{key}.ipynb",
        stop=stop,
        threads=threads,
        limits=limits,
        claimed=so_far.append,
    )
    state.error, state.seconds, state.died = outcome.error, outcome.seconds, outcome.died
    state.work_seconds, state.peak_memory = outcome.work_seconds, outcome.peak_memory
    claim_rows(run, key, paper, getattr(outcome.notebook, "cells", []))
    if outcome.trouble:
        run.trouble.append(outcome.trouble)
    # Said last: whoever reads run.json meanwhile must not see a notebook that is done without its claims.
    state.state = "failed" if outcome.state == "done" and state.error else outcome.state
    progress(key, state.state)
    return outcome.state != "interrupted" and not outcome.trouble


def _keep(run: Run) -> None:
    keep(run, {"report.html": lambda: write_report(run)})


__all__ = [
    "NotebookRun",
    "Run",
    "check_notebook",
    "choose_papers",
    "execute",
    "machine",
    "new_run",
    "read_parameters",
    "read_run",
    "resume_run",
    "versions",
]
