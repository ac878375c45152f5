"""A pytest plug-in: `pytest notebooks/` runs each paper's notebook once, and each claim is a test of its own.

Does: collect a notebook that has its TOML beside it, as `saber.ipynb::notebook` (it ran to its end) and
`saber.ipynb::C1` (the verdict is no worse than expected), with what was measured in the failure's message. `-k`, `-x`
and `--lf` work as for any test: a notebook is run when the first of its items is. Under xdist the items of a notebook
stay on one worker (`-n 2` is taken as `--dist loadgroup` where notebooks are collected), and should they be spread
after all, one worker runs it and the others read what it found.

Does not: collect notebooks without a TOML, or look at stored outputs. Papers must lie in the workbench's home: for a
folder of your own with notebooks/ and datasets/ set WORKBENCH_HOME to it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from workbench.reproduce.records import NotebookRun, Run

_runs = pytest.StashKey[dict[Path, "Run"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("workbench", "notebooks of papers")
    group.addoption("--workbench-scale", default="quick", help="quick | full | gpu")
    group.addoption("--workbench-seed", type=int, default=0, help="seed of all randomness in notebooks")
    group.addoption("--workbench-control", action="store_true", help="run notebooks with their method switched off")
    group.addoption(
        "--workbench-cached",
        action="store_true",
        help="take notebooks that have not changed since an earlier such run from there",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_runs] = {}
    # Spread over workers, the claims of one notebook would wait for each other.
    named = [Path(argument.partition("::")[0]) for argument in config.args]
    if getattr(config.option, "dist", "no") == "load" and any(_holds_papers(path) for path in named):
        config.option.dist = "loadgroup"


def _holds_papers(path: Path) -> bool:
    return path.suffix == ".ipynb" or any(path.glob("*.ipynb")) or any(path.glob("*/*.ipynb"))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".ipynb" and file_path.with_suffix(".toml").is_file():
        return Notebook.from_parent(parent, path=file_path)
    return None


class Notebook(pytest.File):
    """A paper's notebook; its items are itself and its claims."""

    def collect(self) -> Iterator[pytest.Item]:
        from workbench.errors import WorkbenchError
        from workbench.papers import load_paper

        try:
            paper = load_paper(self.path.with_suffix(".toml"))
        except WorkbenchError as error:
            raise self.CollectError(str(error)) from None
        for name in ("notebook", *(claim.id for claim in paper.claims)):
            item = Claim.from_parent(self, name=name)
            item.add_marker(pytest.mark.xdist_group(str(self.path)))
            yield item

    def run(self) -> Run:
        """What the notebook came to: run by the first item that asks, in whichever process."""
        runs = self.config.stash[_runs]
        if self.path not in runs:
            runs[self.path] = self._run()
        return runs[self.path]

    def _run(self) -> Run:
        from workbench.errors import WorkbenchError
        from workbench.papers import find_paper
        from workbench.reproduce.records import read_run

        slug = self.path.stem
        if find_paper(slug).notebook.resolve() != self.path.resolve():
            raise WorkbenchError(
                f"{self.path} is not the notebook that the workbench has for {slug!r} ({find_paper(slug).notebook}); "
                "set WORKBENCH_HOME to the folder that holds its notebooks/ and datasets/."
            )
        shared = _session_folder(self.config)
        done = shared / slug
        with _lock(shared / f"{slug}.lock"):
            if done.is_file():
                return read_run(Path(done.read_text()))
            run = self._execute(slug)
            done.write_text(str(run.folder.resolve()))
        return run

    def _execute(self, slug: str) -> Run:
        from workbench.reproduce.engine import execute, new_run

        def option(name: str) -> Any:
            return self.config.getoption(name)

        run = new_run(
            [slug],
            scale=option("--workbench-scale"),
            seed=option("--workbench-seed"),
            control=option("--workbench-control"),
            out=_runs_folder(self.config),
        )
        return execute(run, workers=1, warm=True, fresh=not option("--workbench-cached"))


class Claim(pytest.Item):
    """A claim of a paper; or, by the name "notebook", that its notebook ran to its end."""

    parent: Notebook

    def runtest(self) -> None:
        run = self.parent.run()
        [(key, notebook)] = run.notebooks.items()
        if self.name == "notebook":
            if notebook.state != "done" or run.trouble:
                raise Failed("; ".join([f"the notebook {notebook.state}: {notebook.error}", *run.trouble]))
            return
        row = next(row for row in notebook.claims if row["claim"] == self.name)
        if notebook.state != "done" and row["value"] is None:
            pytest.skip(f"not measured: see {self.parent.path.name}::notebook, which {notebook.state}")
        if row["verdict"] == "needs gpu":
            pytest.skip("needs a GPU: --workbench-scale gpu")
        from workbench.papers import find_paper

        if find_paper(notebook.slug).claim(self.name).alarming(row["verdict"], control=notebook.control):
            raise Failed(_told(row, notebook, run.folder / f"{key}.ipynb"))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from workbench.errors import WorkbenchError

        if isinstance(excinfo.value, Failed | WorkbenchError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self.path.stem}::{self.name}"


class Failed(Exception):
    """A claim or a notebook that did not come out as expected; the message is all there is to see."""


def _told(row: dict[str, Any], notebook: NotebookRun, executed: Path) -> str:
    measured = "not measured"
    if row["value"] is not None:
        measured = f"{row['value']:.6g}"
        if row["low"] != row["high"]:
            measured += f" (interval {row['low']:.6g} to {row['high']:.6g})"
    lines = [
        f"{notebook.slug} {row['claim']}: {row['verdict']}, expected {row['expected']}",
        f"  the paper says  {row['statement']} ({row['paper']})",
        f"  measured        {row['measure']}: {measured}",
        f"  passes if       {row['passes']}",
        f"  run             scale {row['scale']}, seed {row['seed']}",
    ]
    lines += [f"  control         {row['control']}"] * (row["controlled"] and bool(row["control"]))
    lines += [f"  note            {row['note']}"] * bool(row["note"])
    return "\n".join([*lines, f"  notebook        {executed}"])


def _runs_folder(config: pytest.Config) -> Path:
    """Where this checkout's pytest keeps its runs, apart from those of `workbench reproduce`."""
    cache = getattr(config, "cache", None)
    return (cache.mkdir("workbench") if cache is not None else config.rootpath) / "runs"


def _session_folder(config: pytest.Config) -> Path:
    """A folder that all processes of this session share."""
    session = getattr(config, "workerinput", {}).get("testrunuid") or f"process-{os.getpid()}"
    folder = _runs_folder(config).parent / "sessions" / session
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The controlling process clears away what sessions left a day ago or earlier, and its own locks."""
    if hasattr(session.config, "workerinput") or not (folder := _runs_folder(session.config)).is_dir():
        return
    day_ago = time.time() - 86_400
    for old in [*folder.glob("2*"), *(folder.parent / "sessions").glob("*")]:
        if old.stat().st_mtime < day_ago or old.name == f"process-{os.getpid()}":
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; a lock dies with its holder."""
    with path.open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
                    break
                except OSError:
                    continue
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
