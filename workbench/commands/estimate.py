"""`workbench estimate`: a paper's method on the user's own logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from workbench.checkpoint import write_atomically
from workbench.commands.reproduce import open_console, plain
from workbench.errors import refuse, require_choice

if TYPE_CHECKING:
    from workbench.logs.page import Page

PAPERS = ("saber", "sharp", "risk-under-pressure", "distributional-correctness")


class _Papers(TyperGroup):
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        require_choice("the paper", cmd_name, PAPERS, "only these take logs so far")
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    cls=_Papers,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A paper's method on your own evaluation logs: the answers, a figure and one page.",
)

_FILES = "Files or patterns: .eval, .json, samples_*.jsonl, *.report.jsonl, .csv, .parquet."
More = Annotated[list[str] | None, typer.Argument(help="More files for --log.", show_default=False)]
Log = Annotated[list[str] | None, typer.Option(help=_FILES)]
Success = Annotated[
    str, typer.Option(help="What counts as a success, e.g. 'score>=0.75' or \"includes == 'C'\".")
]  # fmt: skip
Out = Annotated[Path, typer.Option(help="Folder for the figure and the page.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the answers as JSON on standard output.")]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn: resamples, the test of fit.")]
OUT = Path("runs/estimate")


@app.command()
def saber(
    more: Annotated[
        list[str] | None, typer.Argument(help="More numbers for --n, or more files for --log.", show_default=False)
    ] = None,
    log: Log = None,
    success: Success = "score >= 0.5",
    n: Annotated[list[int] | None, typer.Option(help="Tries per prompt N of ASR@N; several are allowed.")] = None,
    target: Annotated[list[float] | None, typer.Option(help="Risk whose tries are asked for; may be repeated.")] = None,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    seed: Seed = 0,
    out: Out = OUT,
    json_: JsonFlag = False,
) -> None:
    """ASR@N with intervals, goodness of fit and the tries for a target.

    Example: workbench estimate saber --log 'runs/*.eval' --success 'score>=0.75' --n 1000 10000
    """
    from workbench.logs import read_attempts, saber_page

    words = more or []
    wanted = [*(n or []), *(int(word) for word in words if word.isdecimal())] or [100, 1000, 10_000]
    counts = read_attempts(_logs(log, [word for word in words if not word.isdecimal()]), success)
    found = saber_page.answer(counts, wanted, target or [0.5], success=success, level=level, seed=seed)
    _publish("saber", saber_page.page(found, level=level), out, json_)


@app.command()
def sharp(
    more: More = None,
    log: Log = None,
    dimension: Annotated[
        list[str] | None, typer.Option(help="A scorer that grades a dimension of harm, 0 to 1; default: all numbers.")
    ] = None,
    tail: Annotated[float, typer.Option(help="Level of VaR and CVaR: the tail is the worst 1 - level.")] = 0.95,
    seed: Seed = 0,
    out: Out = OUT,
    json_: JsonFlag = False,
) -> None:
    """Tails of cumulative harm by model, what each dimension adds, and which rankings flip.

    Example: workbench estimate sharp --log 'runs/*.eval' --dimension bias --dimension privacy
    """
    from workbench.logs import read_severities, sharp_page

    scores, notes = read_severities(_logs(log, more), dimension or ())
    _publish("sharp", sharp_page.page(scores, notes, level=tail, seed=seed), out, json_)


@app.command("risk-under-pressure")
def risk_under_pressure(
    more: More = None,
    log: Log = None,
    success: Success = "score >= 0.5",
    size: Annotated[float | None, typer.Option(help="Size of the model under test, billions of parameters.")] = None,
    judge_size: Annotated[float, typer.Option(help="Size of the judge; 0 for one that is free.")] = 0.0,
    steps: Annotated[int | None, typer.Option(help="Steps that an attack was allowed; default: from the logs.")] = None,
    target: Annotated[
        list[float] | None, typer.Option(help="Risk whose compute is asked for; may be repeated.")
    ] = None,
    seed: Seed = 0,
    out: Out = OUT,
    json_: JsonFlag = False,
) -> None:
    """Risk against the compute that was spent, and the compute that a target risk takes.

    Example: workbench estimate risk-under-pressure --log 'runs/*.eval' --success 'score>=0.75' --size 7.6
    """
    from workbench.logs import pressure_page, read_attack_trials
    from workbench.methods.tail_risk.risk_under_pressure_trials import Price

    files = _logs(log, more)
    if size is None:
        cure = "no log says it, and compute is priced by it; write e.g. --size 7.6 for 7.6 billion parameters"
        raise refuse("--size", size, "be the model's size", cure)
    price = Price("template", target=size, judge=judge_size)
    trials, notes = read_attack_trials(files, success, steps=steps)
    made = pressure_page.page(trials, price, notes, success=success, targets=target or [0.5], seed=seed)
    _publish("risk-under-pressure", made, out, json_)


@app.command("distributional-correctness")
def distributional_correctness(
    more: More = None,
    log: Log = None,
    idk: Annotated[
        list[str] | None, typer.Option(help='An option that says "I don\'t know"; default: the usual spellings.')
    ] = None,
    length: Annotated[
        str, typer.Option(help="What a log-likelihood is divided by: characters | tokens | none.")
    ] = "characters",
    l_right: Annotated[float, typer.Option(help="What a right answer earns.")] = 1.0,
    l_wrong: Annotated[float, typer.Option(help="What a wrong one costs.")] = 1.0,
    out: Out = OUT,
    json_: JsonFlag = False,
) -> None:
    """The DCS and the scores beside it, from the log-likelihoods of answer options.

    Example: workbench estimate distributional-correctness --log 'runs/samples_*.jsonl' --idk "I can't tell"
    """
    from workbench.logs import correctness_page, read_options
    from workbench.methods.tail_risk.distributional_correctness import IDK

    given, notes = read_options(_logs(log, more), idk=idk or IDK, length=length)
    made = correctness_page.page(given, notes, l_right=l_right, l_wrong=l_wrong)
    _publish("distributional-correctness", made, out, json_)


def _logs(log: list[str] | None, more: list[str] | None) -> list[str]:
    logs = [*(log or []), *(more or [])]
    if not logs:
        raise refuse("--log", logs, "name at least one file", "write e.g. --log 'runs/*.eval'")
    return logs


def _publish(name: str, found: Page, out: Path, json_: bool) -> None:
    """Write the figure and the page, and print the answers."""
    from workbench.plots import to_png

    png = to_png(found.figure)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / f"{name}.png", png)
    write_atomically(out / f"{name}.html", found.html(png).encode())
    if json_:
        print(json.dumps(found.numbers, indent=1))
        return
    console = open_console()
    for sentence in found.said:
        console.print(plain(sentence), highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in found.columns:
        table.add_column(column, overflow="fold")
    for row in found.rows:
        table.add_row(*map(plain, row))
    console.print(table)
    files = f"{out / name}.png, {out / name}.html"
    console.print(f"The figure and a page: {files}", highlight=False, soft_wrap=True)
