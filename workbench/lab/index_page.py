"""The index of the papers as a notebook shows it: a map by family, with search, filters, verdicts and launch buttons.

Does: put together each paper and its latest verdicts as one piece of HTML, with the little script that filters it. The
verdicts are those of the newest run that measured the paper; where there is none, the ones that its TOML expects, and
the card says which. Records that can't be read are named, and the rest is shown. Does not: run notebooks, or write
anything.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.papers import FAMILIES, VERDICTS, Paper, load_paper
from workbench.paths import home, notebooks_folder
from workbench.reproduce.history import recorded_run, run_folders
from workbench.reproduce.views import GLYPHS, counts

_PAGES = Path(__file__).resolve().parent / "pages"
_RUNS = 50  # the newest ones; older verdicts are history


def index(runs: str | Path | None = None) -> None:
    """Show the index in a notebook. `runs`: the folder with runs; default: `runs` here, else beside the notebooks."""
    from IPython.display import HTML, display

    display(HTML(index_html(runs)))


def index_html(runs: str | Path | None = None) -> str:
    """The index as HTML that stands by itself; see `index`."""
    papers, trouble = _papers()
    measured, unread = latest_verdicts(Path(runs) if runs is not None else _usual_runs())
    tiles = [_tile(paper, measured.get(slug)) for slug, paper in papers.items()]
    tiles.sort(key=lambda tile: tile["paper"].status != "ready")
    families = [(family, [tile for tile in tiles if tile["paper"].family == family]) for family in FAMILIES]
    shown = [verdict for verdict in VERDICTS if any(verdict in tile["counts"] for tile in tiles)]
    return _template().render(
        families=families,
        verdicts=shown,
        glyphs=GLYPHS,
        trouble=trouble + unread,
        n_papers=len(papers),
        n_ready=sum(paper.status == "ready" for paper in papers.values()),
        style=(_PAGES / "index.css").read_text(encoding="utf-8"),
        script=(_PAGES / "index.js").read_text(encoding="utf-8"),
    )


def latest_verdicts(runs: Path) -> tuple[dict[str, tuple[str, list[dict[str, Any]]]], list[str]]:
    """For each slug the newest run (its id, and its rows) that measured it to the end with its method on; and a
    sentence for each record that could not be read."""
    found: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    trouble = []
    for folder in reversed(run_folders(runs)[-_RUNS:]):
        try:
            run = recorded_run(folder)
        except WorkbenchError as error:
            trouble.append(str(error))
            continue
        for slug in run.slugs:
            main = run.notebooks.get(slug)
            if slug not in found and main is not None and main.state == "done" and not main.control:
                found[slug] = (run.id, main.claims)
    return found, trouble


def _papers() -> tuple[dict[str, Paper], list[str]]:
    """Every paper whose TOML can be used, and a sentence for each other."""
    found, trouble = {}, []
    for family in FAMILIES:
        for path in sorted((notebooks_folder() / family).glob("*.toml")):
            try:
                found[path.stem] = load_paper(path)
            except WorkbenchError as error:
                trouble.append(str(error))
    return found, trouble


def _usual_runs() -> Path:
    here = Path("runs")
    return here if here.is_dir() else home() / "runs"


def _tile(paper: Paper, measured: tuple[str, list[dict[str, Any]]] | None) -> dict[str, Any]:
    if measured is not None:
        marks = [(row["claim"], row["verdict"]) for row in measured[1]]
        source = f"measured in run {measured[0]}"
    else:
        marks = [(claim.id, "needs gpu" if claim.mode == "gpu" else claim.expected) for claim in paper.claims]
        source = "as expected; not run here yet" if marks else ""
    return {
        "paper": paper,
        "marks": marks,
        "counts": counts([{"verdict": verdict} for _, verdict in marks]),
        "source": source,
        "text": " ".join([paper.slug, paper.title, *paper.authors, paper.summary]).lower(),
    }


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = lambda family: family.replace("_", " ").capitalize()
    environment.filters["css"] = lambda verdict: verdict.replace(" ", "-")
    return environment.get_template("index.html.j2")
