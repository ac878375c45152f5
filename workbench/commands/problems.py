"""`workbench problems`: the suite of questions whose answer is known."""

from __future__ import annotations

import inspect
import json
import math
from typing import Annotated, Any

import typer
from rich.table import Table

from workbench.commands.reproduce import open_console, plain
from workbench.errors import require_choice

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The suite of known truths: what there is, and what answers it."
)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]


@app.command("list")
def problems_list(json_: JsonFlag = False, kind: Annotated[str, typer.Option(help="Only this kind.")] = "") -> None:
    """Every problem with its kind and its truth."""
    from workbench.problems.suite import KINDS, catalogue, find_problem

    if kind:
        require_choice("--kind", kind, tuple(KINDS))
    found = []
    for name, entry in catalogue().items():
        if kind in ("", entry.kind):
            problem = find_problem(name)
            found.append({"problem": name, "kind": entry.kind, "truth": problem.truth, "question": problem.name})
    if json_:
        print(json.dumps(found, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("problem", "kind", "truth", "question"):
        table.add_column(column, no_wrap=column != "question", justify="right" if column == "truth" else "left")
    for row in found:
        table.add_row(row["problem"], row["kind"], _said(row["truth"]), plain(row["question"]))
    console = open_console()
    console.print(table)
    console.print(
        f"{len(found)} problems. 'workbench problems show <problem>' says what it is and what answers it.",
        style="dim",
        highlight=False,
    )


@app.command("show")
def problems_show(problem: str, json_: JsonFlag = False) -> None:
    """One problem: the question, its truth, and the estimators that answer it."""
    from workbench.problems.suite import KINDS, catalogue, find_problem

    made = find_problem(problem)
    kind = catalogue()[problem].kind
    answers, refusals = _asked(made)
    facts = {
        "problem": problem,
        "question": made.name,
        "kind": kind,
        "what": KINDS[kind],
        "about": _about(problem, made),
        "truth": made.truth,
        "estimators": answers,
        "refused by": refusals,
        "python": f'find_problem("{problem}")  # from workbench.problems.suite',
    }
    if json_:
        print(json.dumps(facts, indent=1))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    shown = facts | {
        "truth": _said(made.truth),
        "estimators": ", ".join(answers) or "none yet",
        "refused by": ", ".join(refusals) or "none",
    }
    for name, value in shown.items():
        table.add_row(name, plain(str(value)))
    open_console().print(table)


def _asked(problem: Any) -> tuple[list[str], list[str]]:
    """Names of the estimators that accept the problem, and of the others."""
    from workbench.methods import estimators
    from workbench.run import refusal

    why = {name: refusal(kind(), problem) for name, kind in estimators().items()}
    return [name for name, no in why.items() if no is None], [name for name, no in why.items() if no is not None]


def _about(name: str, problem: Any) -> str:
    """The first paragraph of what made it, or of its class."""
    from workbench.problems.suite import catalogue

    maker = catalogue()[name].make
    told = inspect.getdoc(getattr(maker, "func", maker)) or inspect.getdoc(type(problem)) or ""
    return " ".join(told.split("\n\n")[0].split())


def _said(truth: float | None) -> str:
    if truth is None:
        return "unknown"
    return f"{truth:.3e}" if 0 < abs(truth) < 1e-3 and math.isfinite(truth) else f"{truth:.5g}"
