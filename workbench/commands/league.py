"""`workbench league`: estimators against problems with known truths, at equal metered spend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from workbench.checkpoint import write_atomically
from workbench.commands.reproduce import open_console, plain
from workbench.errors import require_integer

_TOLD = 10


def league(
    problems: Annotated[
        list[str] | None, typer.Option(help="Names, kinds or patterns of the suite; may be repeated. Default: all.")
    ] = None,
    estimators: Annotated[
        list[str] | None,
        typer.Option(help="A name, or 'ImportanceSampling(strength=5.0)'; may be repeated. Default: all."),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Of each repeat, e.g. tokens=200k,seconds=10; the first limit reached ends it.")
    ] = "tokens=200k,model_calls=50k,samples=50k",
    repeats: Annotated[int, typer.Option(help="Repeats of each pair, at seeds seed, seed + 1, ...")] = 200,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the repeats; one that holds some already is gone on with.")
    ] = Path("runs/league"),
    json_: Annotated[bool, typer.Option("--json", help="Print the standings as JSON on standard output.")] = False,
) -> None:
    """Relative error, bias, coverage and width of each estimator on each problem that it accepts.

    Every repeat is kept as it ends: the same command goes on where it was stopped, and more --repeats add to those that
    are there. The folder gets repeats.parquet, standings.json and league.png.
    """
    from workbench import league as leagues

    if workers is not None:
        require_integer("--workers", workers, low=1, cure="leave it out for one process a core")
    names = leagues.choose_problems(_words(problems))
    players = leagues.choose_players(_words(estimators))
    errors = open_console(stderr=True)
    left_out: list[str] = []
    columns = (TextColumn("{task.completed} of {task.total} repeats"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("")
        rows = leagues.play(
            names,
            players,
            leagues.read_budget(budget),
            repeats=repeats,
            seed=seed,
            out=out,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            left_out=left_out.append,
        )
    for fault in left_out[:_TOLD] + [f"{len(left_out) - _TOLD} further pairs"] * (len(left_out) > _TOLD):
        errors.print(f"left out: {fault}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    standings = leagues.standings(rows)
    kept = _keep(rows, standings, out, errors)
    if json_:
        print(json.dumps(standings, indent=1))
        return
    _print(standings, repeats)
    open_console().print(f"Each repeat, the standings and the picture: {kept}", highlight=False, soft_wrap=True)


def _words(given: list[str] | None) -> list[str]:
    """The words of options that may be repeated; commas and blanks outside brackets part words too."""
    words, depth, word = [], 0, ""
    for letter in ",".join(given or []) + ",":
        depth += (letter in "([{") - (letter in ")]}")
        if letter in ", " and depth <= 0:
            words.append(word)
            word = ""
        else:
            word += letter
    return [word for word in words if word]


def _keep(rows: list[dict[str, Any]], standings: list[dict[str, Any]], out: Path, errors: Any) -> str:
    from workbench import plots
    from workbench.errors import WorkbenchError
    from workbench.league import write_parquet
    from workbench.plots.league import league as picture

    write_atomically(out / "standings.json", json.dumps(standings, indent=1).encode())
    write_atomically(out / "league.png", plots.to_png(picture(standings)))
    try:
        write_parquet(rows, out / "repeats.parquet")
    except WorkbenchError as error:
        errors.print(f"workbench: {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    return f"{out}/"


def _print(standings: list[dict[str, Any]], repeats: int) -> None:
    table = Table(header_style="bold", title=f"{repeats} repeats each", title_justify="left")
    table.add_column("problem", no_wrap=True)
    table.add_column("truth", no_wrap=True, justify="right")
    table.add_column("estimator", overflow="fold")
    for name in ("relative RMSE", "bias (t)", "coverage", "width", "flagged", "spent"):
        table.add_column(name, no_wrap=True, justify="right")
    previous = None
    for row in standings:
        if previous not in (None, row["problem"]):
            table.add_section()
        fresh = row["problem"] != previous
        table.add_row(row["problem"] * fresh, f"{row['truth']:.3g}" * fresh, plain(row["estimator"]), *_cells(row))
        previous = row["problem"]
    console = open_console()
    console.print(table)
    console.print(
        "RMSE and bias are relative to the truth; coverage and width are those of unflagged intervals, width that of the "
        "median one over the truth; |t| above 3.3 is bias at one in a thousand.",
        style="dim",
        highlight=False,
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    rmse = (
        "no answer" if row["rmse"] is None else f"{row['rmse']:.3g} ({row['rmse_low']:.2g} to {row['rmse_high']:.2g})"
    )
    bias = "" if row["bias"] is None else f"{row['bias']:+.2g}" + (f" ({row['bias_t']:+.1f})" if row["bias_t"] else "")
    covered = ""
    if row["coverage"] is not None:
        covered = f"{row['coverage']:.3f} ({row['coverage_low']:.2f} to {row['coverage_high']:.2f})"
    width = "" if row["width"] is None else f"{row['width']:.2g}"
    unit = next((unit for unit in ("tokens", "model_calls") if row[unit]), "samples")
    spent = f"{row[unit]:,.0f} {unit.replace('_', ' ')}"
    return rmse, bias, covered, width, f"{row['flagged']:.0%}", spent
