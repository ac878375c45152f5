"""The `workbench` command. Exit status: 0 all as expected; 1 a notebook failed or a verdict is worse than
expected; 2 the command's words or its input were wrong; 130 interrupted."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from workbench.commands.app import app as serve_app
from workbench.commands.estimate import app as estimate_app
from workbench.commands.lab import lab
from workbench.commands.league import league
from workbench.commands.new import app as new_app
from workbench.commands.problems import app as problems_app
from workbench.commands.report import gallery, report
from workbench.commands.reproduce import open_console, plain, reproduce
from workbench.commands.tidy import tidy
from workbench.errors import WorkbenchError, refuse, require_choice
from workbench.papers import FAMILIES, Paper, all_papers, find_paper, how_many
from workbench.paths import datasets_folder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Reproduce papers on risk estimation and budgeted computation, and look at what was found.",
)
models_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Language models: what there is, what it needs, how to rebuild it.",
)
app.add_typer(models_app, name="models")
app.add_typer(problems_app, name="problems")
app.add_typer(new_app, name="new")
app.add_typer(estimate_app, name="estimate")
app.command()(reproduce)
app.command()(lab)
app.command("app")(serve_app)
app.command()(league)
app.command()(report)
app.command()(gallery)
app.command()(tidy)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]


def main() -> None:
    """The console script: a refusal becomes one sentence and status 2."""
    try:
        app()
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command("list")
def list_papers(
    json_: JsonFlag = False,
    family: Annotated[str, typer.Option(help="Only this family.")] = "",
) -> None:
    """All papers, with family, kind, status and claims."""
    if family:
        require_choice("--family", family, FAMILIES)
    papers = [paper for paper in all_papers().values() if family in ("", paper.family)]
    if json_:
        print(json.dumps([paper.summary_dict() for paper in papers], indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("slug", "family", "kind", "year", "status", "claims", "title"):
        table.add_column(
            name, no_wrap=name != "title", overflow="ellipsis", justify="right" if name == "claims" else "left"
        )
    for paper in papers:
        style = None if paper.status == "ready" else "dim"
        cells = (
            paper.slug,
            paper.family,
            paper.kind,
            str(paper.year),
            paper.status,
            str(len(paper.claims) or ""),
            paper.title,
        )
        table.add_row(*cells, style=style)
    console = open_console()
    console.print(table)
    ready = sum(paper.status == "ready" for paper in papers)
    console.print(
        f"{how_many(papers)}, {ready} ready. 'workbench show <slug>' tells more; 'workbench reproduce' runs those that are ready.",
        style="dim",
    )


@app.command()
def show(slug: str, json_: JsonFlag = False) -> None:
    """One paper: what it says, its claims, and where its four files are."""
    paper = find_paper(slug)
    if json_:
        print(json.dumps(paper.summary_dict(), indent=1))
        return
    console = open_console()
    console.print(f"[bold]{paper.title}[/bold]", highlight=False)
    console.print(paper.citation, paper.url, highlight=False, markup=False)
    console.print(paper.summary, highlight=False, markup=False)
    if paper.code:
        console.print(f"Authors' code: {paper.code}", highlight=False, markup=False)
    console.print(
        f"Family {paper.family}, {paper.kind}, {paper.status}. {_where(paper)}", highlight=False, markup=False
    )
    if not paper.claims:
        return
    table = Table(show_lines=True, header_style="bold")
    for name in ("claim", "the paper says", "its figure", "we measure", "passes if", "control"):
        table.add_column(name)
    for claim in paper.claims:
        table.add_row(
            claim.id,
            claim.statement,
            f"{claim.paper} ({claim.source})",
            claim.measure,
            claim.passes,
            claim.control or "none",
        )
    console.print(table)


def _where(paper: Paper) -> str:
    if paper.status == "planned":
        return "Its notebook is not written yet."
    name = paper.slug.replace("-", "_")
    return (
        f"Files: notebooks/{paper.family}/{paper.slug}.ipynb and .toml, "
        f"workbench/methods/{paper.family}/{name}.py, tests/methods/{paper.family}/test_{name}.py"
    )


@models_app.command("list")
def models_list(json_: JsonFlag = False) -> None:
    """The embedded models, and how to name others."""
    from workbench import models

    found = [
        {
            "spec": f"embedded/{name}",
            "summary": models.card(name)["summary"],
            "bytes": models.info(f"embedded/{name}")["bytes"],
        }
        for name in models.list_embedded()
    ]
    if json_:
        print(json.dumps(found, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("spec", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("what it is")
    for entry in found:
        table.add_row(entry["spec"], f"{entry['bytes'] / 1e6:.2f} MB", entry["summary"])
    console = open_console()
    console.print(table)
    console.print(
        "Others: hf:<id or folder> for any Hugging Face causal language model with safetensors weights, "
        "openai:<base url>#<model> for one behind a server.",
        style="dim",
        highlight=False,
    )


@models_app.command("info")
def models_info(
    spec: str,
    tokens: Annotated[
        int | None, typer.Option(help="Length of prompt and answer together; default: 1,024, or the context.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Architecture, size, checksum, and what fits where: weights, cache, largest batch on each device."""
    from workbench import models
    from workbench.models.memory import said

    facts = models.info(spec, tokens)
    facts = facts | {"memory": str(facts["memory"])}
    if json_:
        print(json.dumps(facts, indent=1))
        return
    weights = ", ".join(f"{said(n_bytes)} as {kind}" for kind, n_bytes in facts["weights"].items())
    sizes = {name: said(facts[name]) for name in ("bytes", "cache_bytes_of_context")}
    per_token = f"{facts['cache_bytes_per_token']:,}"
    shown = facts | sizes | {"weights": weights, "cache_bytes_per_token": per_token, "fits": "\n".join(facts["fits"])}
    del shown["memory"]
    _print_facts(shown)


@models_app.command("build")
def models_build(
    name: Annotated[str, typer.Argument(help="An embedded model, e.g. codeword.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the new weights; default: beside the shipped ones, as <name>-rebuilt."),
    ] = None,
) -> None:
    """Train an embedded model again from its recipe, and compare its loss with the card's."""
    from workbench import models

    folder = out or datasets_folder() / "models" / f"{name}-rebuilt"
    _print_facts(models.build(name, folder))


@models_app.command("check")
def models_check(
    endpoint: Annotated[str, typer.Argument(help="openai:<base url>#<model>")],
    against: Annotated[str, typer.Option(help="A model on this machine to compare with, e.g. hf:<folder>.")] = "",
    prompts: Annotated[Path | None, typer.Option(help="A text file with one prompt a line; default: 32 sums.")] = None,
    api: Annotated[str, typer.Option(help="auto | completions | chat")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(help="Length at which an answer is cut.")] = 16,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.")] = 16,
    key_variable: Annotated[str, typer.Option(help="The environment variable with the key.")] = "",
    json_: JsonFlag = False,
) -> None:
    """What an endpoint can do, whether it repeats itself, and how fast it is."""
    from workbench import models
    from workbench.models.endpoint_check import PROMPTS, check_endpoint

    if not endpoint.startswith("openai:"):
        raise refuse("endpoint", endpoint, "begin with openai:", "pass openai:<base url>#<model>")
    asked = PROMPTS if prompts is None else _lines(prompts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table says it too
        model: Any = models.load(
            endpoint, api=api, concurrency=concurrency, key_variable=key_variable or None, probe_prompt=asked[0]
        )
    peer = models.load(against) if against else None
    found = check_endpoint(model, prompts=asked, max_new_tokens=max_new_tokens, against=peer)
    if json_:
        print(json.dumps(found, indent=1))
        return
    console = open_console()
    console.print(model.describe(), highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("asked", "identical answers", "agreeing"):
        table.add_column(name)
    for row in found["rows"]:
        agreeing = f"{row['agree']:,} of {row['compared']:,} {row['unit']}"
        table.add_row(plain(row["what"]), f"{row['identical']} of {row['of']}", agreeing)
    console.print(table)
    said = ", ".join(f"{float(q):.0%} {value * 1000:.0f} ms" for q, value in found["latency"].items())
    console.print(f"latency at {concurrency} at a time, by quantile: {said}", highlight=False, markup=False)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"--prompts {path} can't be read ({error}); pass a text file.") from None
    if not lines:
        raise WorkbenchError(f"--prompts {path} holds no prompt; put one on each line.")
    return lines


def _print_facts(facts: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), str(value))
    open_console().print(table)


@app.command()
def doctor(json_: JsonFlag = False) -> None:
    """What this machine has, what is missing, and how to get it."""
    from workbench.doctor import examine

    checks = examine()
    if json_:
        print(json.dumps(checks, indent=1))
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("", "what", "found", "cure"):
            table.add_column(name)
        marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "broken": "[red]broken[/]"}
        for check in checks:
            table.add_row(marks[check["state"]], check["what"], plain(check["found"]), plain(check["cure"]))
        open_console().print(table)
    raise typer.Exit(1 if any(check["state"] == "broken" for check in checks) else 0)
