"""The report: a static site of a run, an index and a page a paper, that needs no network and no server.

Does: draw each claim to scale, set seeds, control and earlier runs beside it, embed the executed notebook, say how
all was made. Each page holds its own style and script and forbids every request. A page whose content has not
changed is not written again, and a notebook that has not changed is not converted again.

Does not: run or measure anything; it reads records and executed notebooks.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from workbench.checkpoint import write_atomically
from workbench.errors import WorkbenchError
from workbench.papers import FAMILIES, VERDICTS, Paper, load_paper
from workbench.paths import notebooks_folder
from workbench.reproduce import views
from workbench.reproduce.history import row_problem, runs_beside
from workbench.reproduce.records import Run
from workbench.reproduce.scrub import scrub, scrub_all, scrubber

INDEX = "report.html"


def write_report(run: Run) -> str:
    """Write the papers' pages into the run's folder and give back the text of its index, `report.html`.

    Rows that no `measure` of ours can have made are left out and named. Raises OSError if a page can't be written.
    """
    papers, trouble = _registry()
    others, _ = runs_beside(run)
    sound, unsound = _sound(run)
    return _write_pages(sound, run.folder, INDEX, papers, others, trouble + unsound)


def build_site(run: Run, to: Path | None = None) -> tuple[Path, list[str]]:
    """Write the whole site of `run` and give back its index's path, and a sentence for each thing left out.

    to: None for the run's own folder, where the index is report.html and pages link the executed notebooks; else a
    folder to publish, where the index is index.html and no notebook file is linked (they are not scrubbed).
    """
    papers, trouble = _registry()
    others, unusable = runs_beside(run)
    folder, name = (run.folder, INDEX) if to is None else (to, "index.html")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = _write_pages(run, folder, name, papers, others, trouble)
        write_atomically(folder / name, text.encode())
    except OSError as error:
        raise WorkbenchError(
            f"The report can't be written to {folder} ({error.strerror}); choose another folder with --to."
        ) from None
    return folder / name, trouble + unusable


def _sound(run: Run) -> tuple[Run, list[str]]:
    """`run` without the rows that can't be shown, and a sentence for each: a notebook may display what it likes."""
    trouble: list[str] = []
    notebooks = {}
    for key, one in run.notebooks.items():
        problems = [row_problem(row) for row in one.claims]
        trouble += [
            f"{key}: a claim is left out, as {problem}; measure it with paper.measure"
            for problem in problems
            if problem
        ]
        rows = [row for row, problem in zip(one.claims, problems, strict=True) if not problem]
        notebooks[key] = dataclasses.replace(one, claims=rows)
    sound = dataclasses.replace(run, notebooks=notebooks)
    sound.made_with = run.made_with
    return sound, trouble


def _write_pages(
    run: Run, folder: Path, index: str, papers: dict[str, Paper], others: list[Run], trouble: list[str]
) -> str:
    scrubbed = scrubber()
    entries = views.entries(run, papers, others, scrubbed)
    for entry in entries:
        _write_paper(run, entry, folder, index)
    here = {entry["paper"].slug: entry for entry in entries}
    return page(
        "index.html.j2",
        title=f"Workbench run {run.id}",
        run=run,
        entries=entries,
        families=[(family, views.family(family, papers, here)) for family in FAMILIES],
        n_papers=len(papers | here),
        tokens=sum(row["tokens"] for row in run.claims),
        counts=views.counts([card["row"] for entry in entries for card in entry["cards"]]),
        always=views.always(entries),
        unfinished=[key for key, one in run.notebooks.items() if one.state in ("waiting", "running")],
        alarms=scrub_all(views.alarms(run), scrubbed),
        trouble=scrub_all([*run.trouble, *trouble], scrubbed),
    )


def _registry() -> tuple[dict[str, Paper], list[str]]:
    """Every paper whose TOML can be used, by slug, and a sentence for each that can't."""
    papers: dict[str, Paper] = {}
    trouble: list[str] = []
    for family in FAMILIES:
        for path in sorted((notebooks_folder() / family).glob("*.toml")):
            try:
                papers[path.stem] = _paper(path, path.stat().st_mtime_ns)
            except (OSError, WorkbenchError) as error:
                trouble.append(str(error))
    return papers, trouble


@cache
def _paper(path: Path, _changed: int) -> Paper:
    return load_paper(path)


def _write_paper(run: Run, entry: dict[str, Any], folder: Path, index: str) -> None:
    """Write a paper's page, unless the one that is there has the same content."""
    slug = entry["paper"].slug
    target = folder / f"{slug}.html"
    executed = run.folder / f"{slug}.ipynb"
    content = _bytes(executed)
    digest = hashlib.sha256(content + _converter()).hexdigest() if content else "none"
    linked = folder == run.folder and bool(content)
    marker = Markup("<!-- notebook -->")
    text = page(
        "paper.html.j2",
        title=f"{entry['paper'].title}, run {run.id}",
        run=run,
        entry=entry,
        index=index,
        executed=executed.name if linked else "",
        fragment=marker,
    )
    inputs = f"<!-- inputs {hashlib.sha256(text.encode()).hexdigest()} notebook {digest} -->"
    there = _bytes(target, 400).decode(errors="ignore")
    if inputs in there:
        return
    fragment = _kept(target, digest) or _kept(run.folder / target.name, digest) or _converted(content)
    opening, closing = f"<!-- notebook {digest} -->", "<!-- /notebook -->"
    text = text.replace(marker, f"{opening}{fragment}{closing}", 1).replace("<head>", f"<head>{inputs}", 1)
    write_atomically(target, text.encode())


def _kept(target: Path, digest: str) -> str:
    """The converted notebook in the page that is there, if it is of this digest; else empty."""
    if digest == "none" or f"notebook {digest}".encode() not in _bytes(target, 400):
        return ""
    text = _bytes(target).decode(errors="ignore")
    found = re.search(f"<!-- notebook {digest} -->(.*?)<!-- /notebook -->", text, flags=re.DOTALL)
    return found[1] if found else ""


def _converted(content: bytes) -> str:
    if not content:
        return '<p class="notice">There is no executed notebook: its run had not begun or left no file.</p>'
    import nbformat

    from workbench.reproduce.notebook_html import notebook_html

    try:
        notebook: Any = nbformat.reads(content.decode(), as_version=4)
        return notebook_html(notebook)
    except Exception as error:  # nbformat and nbconvert raise many kinds for a torn file
        return (
            f'<p class="notice">The executed notebook can\'t be shown ({type(error).__name__}): its file is torn or no '
            "notebook. Run the paper again with --fresh.</p>"
        )


@cache
def _converter() -> bytes:
    """What decides the conversion beside the notebook: the sources of the modules that do it."""
    sources = ("notebook_html.py", "formulas.py", "scrub.py")
    return b"".join(files("workbench.reproduce").joinpath(name).read_bytes() for name in sources)


def _bytes(path: Path, count: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def page(template: str, *, title: str, **values: Any) -> str:
    """A page of the site from its template; every value is escaped unless it is Markup."""
    style, script = (Markup(_site(name)) for name in ("style.css", "script.js"))
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _templates().get_template(template).render(
        title=title, style=style, script=script, script_hash=hashed, glyphs=views.GLYPHS, verdicts=VERDICTS, **values
    )  # fmt: skip


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_site), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["name"] = lambda family: family.replace("_", " ").capitalize()
    environment.filters["css"] = lambda verdict: verdict.replace(" ", "-")
    environment.filters["scrub"] = lambda value: scrub(str(value))
    return environment


@cache
def _site(name: str) -> str:
    return files("workbench.reproduce").joinpath("site", name).read_text(encoding="utf-8")
