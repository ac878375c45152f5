"""`workbench estimate`: a paper's method on the user's own logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from workbench.checkpoint import write_atomically
from workbench.commands.reproduce import open_console, plain
from workbench.errors import refuse, require_choice

PAPERS = ("saber",)


def estimate(
    paper: Annotated[str, typer.Argument(help="The paper whose method answers: saber.")],
    more: Annotated[
        list[str] | None, typer.Argument(help="More numbers for --n, or more files for --log.", show_default=False)
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(help="Files or patterns: .eval, .json, samples_*.jsonl, *.report.jsonl, .csv, .parquet."),
    ] = None,
    success: Annotated[
        str, typer.Option(help="What counts as a success, e.g. 'score>=0.75' or \"includes == 'C'\".")
    ] = "score >= 0.5",
    n: Annotated[list[int] | None, typer.Option(help="Tries per prompt N of ASR@N; several are allowed.")] = None,
    target: Annotated[list[float] | None, typer.Option(help="Risk whose tries are asked for; may be repeated.")] = None,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the goodness-of-fit test's draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the figure and the page.")] = Path("runs/estimate"),
    json_: Annotated[bool, typer.Option("--json", help="Print the answers as JSON on standard output.")] = False,
) -> None:
    """ASR@N with intervals, goodness of fit and the tries for a target, from evaluation logs.

    Example: workbench estimate saber --log 'runs/*.eval' --success 'score>=0.75' --n 1000 10000
    """
    from workbench.logs import read_attempts, saber_page
    from workbench.plots import to_png

    require_choice("the paper", paper, PAPERS, "only these take logs so far")
    words = more or []
    wanted = [*(n or []), *(int(word) for word in words if word.isdecimal())] or [100, 1000, 10_000]
    logs = [*(log or []), *(word for word in words if not word.isdecimal())]
    if not logs:
        raise refuse("--log", logs, "name at least one file", "write e.g. --log 'runs/*.eval'")
    counts = read_attempts(logs, success)
    found = saber_page.answer(counts, wanted, target or [0.5], success=success, level=level, seed=seed)
    png = to_png(saber_page.draw(found, level=level))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "saber.png", png)
    write_atomically(out / "saber.html", saber_page.page(found, png).encode())
    if json_:
        fit = None if found.fit is None else {"statistic": found.fit.statistic, "p_value": found.fit.p_value}
        answers = {
            "prompts": len(counts.ids),
            "attempts": int(counts.attempts.sum()),
            "successes": int(counts.successes.sum()),
            "notes": list(counts.notes),
            "asr": {str(tries): json.loads(each.to_json()) for tries, each in found.asr.items()},
            "tries": {str(risk): json.loads(each.to_json()) for risk, each in found.tries.items()},
            "goodness_of_fit": fit,
        }
        print(json.dumps(answers, indent=1))
        return
    console = open_console()
    for sentence in saber_page.in_words(found):
        console.print(plain(sentence), highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("what", "estimate", f"{100 * level:g} % interval", "remark"):
        table.add_column(column, overflow="fold")
    for row in saber_page.rows(found):
        table.add_row(*map(plain, row))
    console.print(table)
    console.print(f"The figure and a page: {out / 'saber.png'}, {out / 'saber.html'}", highlight=False, soft_wrap=True)
