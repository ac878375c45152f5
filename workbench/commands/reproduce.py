"""`workbench reproduce`: run papers and print their claims.

Does: turn words into a run, show how it goes (a live table in a terminal, a line an event elsewhere; both on standard
error), print the claims, and end with the status that says whether all is as expected.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from workbench.errors import WorkbenchError, require_integer
from workbench.papers import VERDICTS

if TYPE_CHECKING:
    from workbench.reproduce.records import NotebookRun, Run

_STYLES = {"reproduced": "green", "consistent": "yellow", "not reproduced": "red", "not run": "red", "needs gpu": "dim"}
_STATE_STYLES = {"running": "cyan", "failed": "red", "interrupted": "red", "done": "green", "waiting": "dim"}
_MANY = 12  # rows of the live table beyond which notebooks that went well are only counted


def reproduce(
    slugs: Annotated[list[str] | None, typer.Argument(help="Papers by slug; default: all that are ready.")] = None,
    scale: Annotated[str, typer.Option(help="quick | full | gpu")] = "quick",
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    seeds: Annotated[int, typer.Option(help="Run each notebook at so many seeds: seed, seed + 1, ...")] = 1,
    control: Annotated[
        bool, typer.Option("--control", help="Replace each method by its control; claims that have one must then fail.")
    ] = False,
    with_control: Annotated[
        bool, typer.Option("--with-control", help="Run each notebook with its method and with its control.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Another parameter of the notebooks.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Notebooks at a time; default: one a core.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run everything, also what has not changed since an earlier run.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the latest run, or with the one named by --run.")
    ] = False,
    run_id: Annotated[str, typer.Option("--run", help="The run that --resume takes up.")] = "latest",
    json_: Annotated[bool, typer.Option("--json", help="Print the claims as JSON on standard output.")] = False,
) -> None:
    """Run papers' notebooks and print each claim: the paper's figure, ours, the verdict.

    A notebook whose code, package files, data, claims, parameters and lock file have not changed since it last came out
    as expected is not run again: its results are taken from there.
    """
    from workbench.reproduce.engine import execute, new_run, read_parameters, resume_run

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if workers is not None:
        require_integer("--workers", workers, low=1, cure="leave it out for one notebook a core")
    if resume:
        if slugs or control or with_control or settings or scale != "quick" or seed != 0 or seeds != 1:
            raise WorkbenchError(
                "--resume takes up an earlier run as it was asked for; leave out slugs, --scale, --seed, --seeds, "
                "--control, --with-control and --set."
            )
        run = resume_run(out, run_id)
    else:
        run = new_run(
            slugs or [],
            scale=scale,
            seed=seed,
            control=control,
            out=out,
            seeds=seeds,
            with_control=with_control,
            parameters=read_parameters(settings or []),
        )
    errors = open_console(stderr=True)
    with Watch(errors, run, workers) as watch:
        execute(run, workers=workers, fresh=fresh, progress=watch.changed)
    if json_:
        print(json.dumps(run.claims, indent=1))
    else:
        print_claims(run)
    raise typer.Exit(_end(run, errors, out, quiet=json_))


def _end(run: Run, errors: Console, out: Path, *, quiet: bool) -> int:
    """Say what went wrong and what came out; the exit status."""

    def say(sentence: str, style: str | None = None) -> None:
        errors.print(sentence, style=style, highlight=False, markup=False, soft_wrap=True)

    for sentence in run.trouble:
        say(f"workbench: {sentence}.", "red")
    if run.interrupted:
        done = sum(notebook.state == "done" for notebook in run.notebooks.values())
        say(
            f"Interrupted with {done} of {len(run.notebooks)} notebooks done; go on with: "
            f"workbench reproduce --resume --run {run.id} --out {out}"
        )
        return 130
    alarms = run.alarms
    for sentence in alarms:
        say(f"not as expected: {sentence}", "red")
    if not quiet:
        say(_summary(run, alarms))
    return 1 if alarms or run.trouble else 0


def open_console(**kwargs: Any) -> Console:
    """A console as wide as its terminal, or wide enough for a table of claims."""
    found = Console(**kwargs)
    return found if found.is_terminal else Console(width=150, **kwargs)


class Watch:
    """How the run goes, while it goes."""

    def __init__(self, console: Console, run: Run, workers: int | None) -> None:
        self.console, self.run, self.workers = console, run, workers or os.cpu_count() or 1
        self._began: dict[str, float] = {}
        self._live = None
        if console.is_terminal:
            self._live = Live(get_renderable=self.table, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Watch:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live:
            self._live.stop()

    def changed(self, key: str, state: str) -> None:
        """What a notebook has come to. In a terminal, what the table can't keep is printed above it."""
        notebook = self.run.notebooks[key]
        if state == "running":
            self._began[key] = time.monotonic()
        line = f"{key}: {state}"
        if notebook.cached:
            line = f"{key}: unchanged since run {notebook.cached}: taken from there"
        elif state == "running" and notebook.why:
            line += f" ({notebook.why})"
        elif state == "done":
            line += f" in {notebook.seconds:.0f} s: {_verdicts(notebook.claims)}{self._left()}"
        elif notebook.error:
            line += f" ({notebook.error})"
        if not self._live or state in ("running", "failed"):
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        waiting = sum(one.state in ("waiting", "running") for one in self.run.notebooks.values())
        eta = self.seconds_left()
        about = f", about {_duration(eta)} left" if eta else ""
        return f" ({waiting} to go{about})" if waiting else ""

    def seconds_left(self) -> float | None:
        """From the times of earlier runs; None while a notebook is under way that has none."""
        now, left = time.monotonic(), []
        for key, notebook in self.run.notebooks.items():
            if notebook.state in ("waiting", "running"):
                usual = self.run.usual.get(key, 0.0)
                if not usual:
                    return None
                left.append(max(usual - (now - self._began.get(key, now)), 1.0))
        return max(sum(left) / self.workers, max(left)) if left else 0.0

    def table(self) -> Group:
        """The notebooks under way and ended, then one line for all."""
        notebooks = self.run.notebooks
        states = [notebook.state for notebook in notebooks.values()]
        table = Table(box=None, pad_edge=False)
        for name, right in (("paper", 0), ("state", 0), ("seconds", 1), ("tokens", 1), ("verdicts", 0)):
            table.add_column(name, justify="right" if right else "left", no_wrap=name != "verdicts")
        ended = sorted((k for k, one in notebooks.items() if one.state == "done"), key=lambda k: self._began.get(k, 0))
        shown = {key for key, one in notebooks.items() if one.state not in ("waiting", "done")}
        room = max(min(_MANY, self.console.height - 6) - len(shown), 1)
        shown.update(ended[-room:])
        for key, notebook in notebooks.items():
            if key in shown:
                table.add_row(*self._row(key, notebook))
        rows, eta = [row for key in notebooks for row in self._claims(key)], self.seconds_left()
        counts = [f"{states.count('running')} running", f"{states.count('done')} of {len(states)} done"]
        counts += [f"{states.count('failed')} failed"] * ("failed" in states)
        counts += [_verdicts(rows) or "no verdict yet", f"{sum(row['tokens'] for row in rows):,} tokens"]
        told = f"run {self.run.id}: {', '.join(counts)}" + (f", about {_duration(eta)} left" if eta else "")
        return Group(table, Text(told))

    def _claims(self, key: str) -> list[dict[str, Any]]:
        """A notebook's claims, while it runs those measured so far."""
        notebook = self.run.notebooks[key]
        return self.run.so_far.get(key, []) if notebook.state == "running" else notebook.claims

    def _row(self, key: str, notebook: NotebookRun) -> tuple[str, ...]:
        seconds = notebook.seconds
        if notebook.state == "running" and key in self._began:
            seconds = time.monotonic() - self._began[key]
        rows = self._claims(key)
        tokens = sum(row["tokens"] for row in rows)
        said = notebook.error or _verdicts(rows) or notebook.why
        if notebook.cached:
            said += f" (unchanged since run {notebook.cached})"
        state = f"[{_STATE_STYLES[notebook.state]}]{notebook.state}[/]"
        return (key, state, f"{seconds:.0f}" if seconds else "", f"{tokens:,}" if tokens else "", plain(said))


def _verdicts(rows: list[dict[str, Any]]) -> str:
    found = [row["verdict"] for row in rows]
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _summary(run: Run, alarms: list[str]) -> str:
    state = "all as expected" if not alarms else f"{len(alarms)} not as expected"
    papers = f"{len(run.slugs)} paper{'s' * (len(run.slugs) != 1)}"
    runs = f" in {len(run.notebooks)} runs" if len(run.notebooks) > len(run.slugs) else ""
    taken = sum(bool(notebook.cached) for notebook in run.notebooks.values())
    kept = f" {taken} of {len(run.notebooks)} taken from earlier runs (--fresh runs all)." if taken else ""
    return f"{len(run.claims)} claim{'s' * (len(run.claims) != 1)} of {papers}{runs}: {_verdicts(run.claims)}; {state}.{kept} Report: {run.folder / 'report.html'}"


def print_claims(run: Run) -> None:
    """The table of claims; with several seeds, a row a claim with its share of passes."""
    from workbench.reproduce.records import passes

    seeds = f"seeds {run.seed} to {run.seed + run.seeds - 1}" if run.seeds > 1 else f"seed {run.seed}"
    control = ", control" if run.control else (", method and control" if run.with_control else "")
    table = Table(header_style="bold", title=f"scale {run.scale}, {seeds}{control}", title_justify="left")
    table.add_column("paper", no_wrap=True)
    table.add_column("claim", no_wrap=True)
    table.add_column("the paper", max_width=34)
    table.add_column("measured", max_width=34)
    table.add_column("passed at (95 %)" if run.seeds > 1 else "ours (interval)", no_wrap=True)
    table.add_column("passes if", no_wrap=True)
    table.add_column("verdict", no_wrap=run.seeds == 1)
    table.add_column("s", justify="right")
    table.add_column("tokens", justify="right")
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for row in run.claims:
        groups.setdefault((row["slug"], row["claim"], row["controlled"]), []).append(row)
    shares = {(share["slug"], share["claim"], share["controlled"]): share for share in passes(run)}
    previous = None
    for (slug, claim, controlled), rows in groups.items():
        if previous not in (None, slug):
            table.add_section()
        first, tokens = rows[0], sum(row["tokens"] for row in rows)
        if run.seeds > 1:
            share = shares.get((slug, claim, controlled))
            ours = f"{share['passed']} of {share['runs']} ({share['low']:.2f} to {share['high']:.2f})" if share else ""
            verdict = _verdicts(rows)
        else:
            ours = _interval(first)
            verdict = f"[{_STYLES[first['verdict']]}]{first['verdict']}[/]"
        name = claim + " control" * (run.with_control and controlled)
        said = (plain(first["paper"]), plain(first["measure"]), ours, plain(first["passes"]), verdict)
        spent = (f"{sum(row['seconds'] for row in rows):.1f}", f"{tokens:,}" if tokens else "")
        table.add_row(slug if slug != previous else "", name, *said, *spent)
        previous = slug
    open_console().print(table)


def _interval(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return ""
    return f"{row['value']:.3g}" + (f" ({row['low']:.3g} to {row['high']:.3g})" if row["low"] != row["high"] else "")


def plain(text: str) -> str:
    """`text` with nothing that rich would take for markup."""
    return text.replace("[", r"\[")
