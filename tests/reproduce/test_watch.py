"""What `reproduce` shows while it runs."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from workbench.commands.reproduce import Watch
from workbench.reproduce.records import Run, plan


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "20260101-000000", ["alpha", "beta", "gamma"], "quick", 0, False)
    made.notebooks = plan(made)
    made.usual = {"alpha": 10.0, "beta": 40.0, "gamma": 30.0}
    return made


def watch(run: Run, *, terminal: bool, workers: int = 2, height: int = 40) -> Watch:
    # Not started: a live table in the tests' own terminal would tell us nothing.
    return Watch(
        Console(file=io.StringIO(), force_terminal=terminal, width=140, height=height, color_system=None), run, workers
    )


def end(run: Run, key: str, seconds: float, verdict: str) -> None:
    notebook = run.notebooks[key]
    notebook.state, notebook.seconds = "done", seconds
    notebook.claims = [{"verdict": verdict, "tokens": 1200}]


def printed(seen: Watch) -> str:
    return seen.console.file.getvalue()


def shown(seen: Watch) -> str:
    seen.console.print(seen.table())
    return printed(seen)


def test_lines_say_why_how_long_and_what_came_out(run):
    seen = watch(run, terminal=False)
    run.notebooks["alpha"].state, run.notebooks["alpha"].why = "running", "workbench/a.py changed"
    seen.changed("alpha", "running")
    end(run, "alpha", 11.2, "reproduced")
    seen.changed("alpha", "done")
    run.notebooks["beta"].state, run.notebooks["beta"].error = "failed", "killed for memory at 6.1 GB in cell 7"
    seen.changed("beta", "failed")
    end(run, "gamma", 5, "consistent")
    run.notebooks["gamma"].cached = "20251231-235959"
    seen.changed("gamma", "done")
    assert printed(seen).splitlines() == [
        "alpha: running (workbench/a.py changed)",
        "alpha: done in 11 s: 1 reproduced (2 to go, about 40 s left)",
        "beta: failed (killed for memory at 6.1 GB in cell 7)",
        "gamma: unchanged since run 20251231-235959: taken from there",
    ]


def test_time_left_comes_from_earlier_times_and_workers(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seen = watch(run, terminal=False)
    assert seen.seconds_left() == 40, "two at a time, but the longest takes 40 s"
    seen.workers = 1
    assert seen.seconds_left() == 80
    run.notebooks["beta"].state = "running"
    seen.changed("beta", "running")
    now[0] += 15
    assert seen.seconds_left() == 65
    now[0] += 1000
    assert seen.seconds_left() == 41, "what takes longer than usual is about to end"
    run.usual["gamma"] = 0.0
    assert seen.seconds_left() is None
    for key in run.notebooks:
        end(run, key, 1, "reproduced")
    assert seen.seconds_left() == 0


def test_the_table_counts_all_and_shows_what_matters(run):
    seen = watch(run, terminal=True)
    end(run, "alpha", 11, "reproduced")
    run.notebooks["beta"].state = "running"
    seen.changed("beta", "running")
    text = shown(seen)
    assert "alpha" in text and "beta" in text and "gamma" not in text
    assert "1 running, 1 of 3 done, 1 reproduced, 1,200 tokens, about" in text
    run.notebooks["gamma"].state, run.notebooks["gamma"].error = "failed", "cell 3: KeyError: '[bold]'"
    text = shown(seen)
    assert "cell 3: KeyError: '[bold]'" in text and "1 failed" in text


def test_the_table_fits_the_terminal_and_never_hides_what_failed(tmp_path):
    run = Run(tmp_path / "20260101-000000", [f"p{number}" for number in range(98)], "quick", 0, False)
    run.notebooks = plan(run)
    for key in list(run.notebooks)[:90]:
        end(run, key, 1, "reproduced")
    run.notebooks["p0"].state, run.notebooks["p0"].error = "failed", "it broke"
    text = shown(watch(run, terminal=True, height=15))
    assert len(text.splitlines()) <= 15 and "it broke" in text and "p89" in text and "89 of 98 done" in text


def test_a_running_notebook_shows_what_it_has_measured_so_far(run):
    seen = watch(run, terminal=True)
    end(run, "alpha", 11, "reproduced")
    run.notebooks["beta"].state, run.notebooks["beta"].why = "running", "--fresh"
    seen.changed("beta", "running")
    run.so_far["beta"] = [{"verdict": "not reproduced", "tokens": 34}]
    text = shown(seen)
    row = next(line for line in text.splitlines() if line.startswith("beta ") and "running" in line)
    assert "1 not reproduced" in row and "34" in row
    assert "1 reproduced, 1 not reproduced, 1,234 tokens" in text
