"""`workbench new`: the four files of an estimator or a paper, with an example that runs.

Does: write the method, its test, the TOML and the notebook, none of which exists; name what to run next.
Does not: register anything: an estimator is found by its shape, a paper by its TOML.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Annotated, Any

import typer

from workbench.checkpoint import write_atomically
from workbench.commands.reproduce import open_console
from workbench.errors import WorkbenchError, refuse, require_choice
from workbench.papers import FAMILIES, all_papers
from workbench.paths import home

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The four files of an estimator or a paper, with a running example.",
)
_TEMPLATES = Path(__file__).parent.parent / "scaffold"
Family = Annotated[str, typer.Option(help=f"One of {', '.join(FAMILIES)}.")]


@app.command("estimator")
def new_estimator(name: str, family: Family = "tail_risk") -> None:
    """An estimator NAME (e.g. my-idea): the contract tests and the league find it by itself."""
    from workbench.methods import estimators

    require_choice("--family", family, FAMILIES)
    _refuse_bad_name(name)
    class_name = "".join(part.capitalize() for part in name.split("-"))
    if class_name in estimators():
        raise WorkbenchError(f"There is an estimator {class_name} already; choose another name.")
    if name in all_papers():
        raise WorkbenchError(f"There is a paper {name!r} already; choose another name.")
    title = f"{class_name}: an estimator of our own"
    words = _words(name, family, title) | {"class_name": class_name}
    _write("estimator", words, {"toml": _filled("estimator_toml", words)})
    _say(
        f"pytest tests/contract tests/methods/{family}/test_{words['module']}.py -k {class_name}",
        f'workbench league --estimators {class_name},MonteCarlo --problems "tail-*,grammar" --repeats 50',
        f"workbench reproduce {name}",
    )


@app.command("paper")
def new_paper(slug: str, family: Family = "tail_risk") -> None:
    """A paper: one of those planned by its slug, or another one of FAMILY."""
    known = all_papers()
    _refuse_bad_name(slug)
    if slug in known and known[slug].status != "planned":
        raise WorkbenchError(f"The paper {slug!r} is {known[slug].status} already; open its notebook instead.")
    if slug in known:
        paper = known[slug]
        words = _words(slug, paper.family, paper.title) | {"citation": paper.citation}
        toml = re.sub(r'^status = "planned"', 'status = "draft"', paper.path.read_text(encoding="utf-8"), flags=re.MULTILINE)  # fmt: skip
    else:
        words = _words(slug, require_choice("--family", family, FAMILIES), slug.replace("-", " ").capitalize())
        words |= {"citation": f"{words['author']} ({words['year']})."}
        toml = _filled("paper_toml", words)
    _write("paper", words, {"toml": toml + _filled("paper_claims", words)}, replaces=slug in known)
    _say(
        f"pytest tests/methods/{words['family']}/test_{words['module']}.py",
        f"workbench reproduce {slug}",
        f"workbench reproduce {slug} --control",
    )


def _refuse_bad_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise refuse("the name", name, "hold lower-case letters, digits and single hyphens", "write e.g. my-idea")


def _words(slug: str, family: str, title: str) -> dict[str, Any]:
    words = {"slug": slug, "module": slug.replace("-", "_"), "family": family, "title": title}
    return words | {"author": "A. Author", "year": datetime.now(UTC).year}


def _filled(template: str, words: dict[str, Any]) -> str:
    return Template((_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(words)


def _write(kind: str, words: dict[str, Any], texts: dict[str, str], *, replaces: bool = False) -> None:
    """Write the four files, all or none."""
    root, family, module = home(), words["family"], words["module"]
    if not (root / "workbench" / "methods").is_dir():
        raise WorkbenchError(f"{root} holds no workbench/methods; run this in a checkout of the workbench.")
    files = {
        root / "workbench" / "methods" / family / f"{module}.py": _filled(f"{kind}_method", words),
        root / "tests" / "methods" / family / f"test_{module}.py": _filled(f"{kind}_test", words),
        root / "notebooks" / family / f"{words['slug']}.toml": texts["toml"],
        root / "notebooks" / family / f"{words['slug']}.ipynb": _notebook(_filled(f"{kind}_notebook", words)),
    }
    for path in files:
        if path.exists() and not (replaces and path.suffix == ".toml"):
            raise WorkbenchError(
                f"There is a file {path.relative_to(root)} already; choose another name, or delete it."
            )
    package = root / "workbench" / "methods" / family / "__init__.py"
    if not package.exists():
        write_atomically(package, f'"""The family {family}."""\n'.encode())
    console = open_console()
    for path, text in files.items():
        write_atomically(path, text.encode())
        console.print(f"wrote {path.relative_to(root)}", highlight=False)


def _notebook(text: str) -> str:
    """Cells from a text in which '# %%', '# %% [markdown]' or '# %% parameters' begins each."""
    from workbench.reproduce.tidy import as_text, tidied

    cells: list[dict[str, Any]] = []
    for number, part in enumerate(re.split(r"^# %%", text, flags=re.MULTILINE)[1:]):
        head, _, body = part.partition("\n")
        cell: dict[str, Any] = {"id": f"cell-{number:02d}", "metadata": {}, "source": body.rstrip("\n")}
        if head.strip() == "parameters":
            cell["metadata"] = {"tags": ["parameters"]}
        if head.strip() == "[markdown]":
            cells.append(cell | {"cell_type": "markdown"})
        else:
            cells.append(cell | {"cell_type": "code", "outputs": [], "execution_count": None})
    return as_text(tidied({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def _say(*commands: str) -> None:
    console = open_console()
    console.print("Then:", highlight=False)
    for command in commands:
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
