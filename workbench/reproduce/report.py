"""One self-contained HTML page for a run: every claim with the paper's figure, ours, and the verdict."""

from __future__ import annotations

import itertools
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from workbench.papers import Condition, find_paper

if TYPE_CHECKING:
    from workbench.reproduce.engine import Run

_WIDTH, _HEIGHT = 260, 26


def write_report(run: Run) -> str:
    """The page as text. Everything that came from a notebook or a TOML is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("workbench.reproduce").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    papers = []
    for slug in run.slugs:
        notebook = run.notebooks[slug]
        rows = [row | {"drawing": _drawing(row), "shown": _shown(row)} for row in notebook.claims]
        papers.append({"paper": find_paper(slug), "notebook": notebook, "rows": rows})
    counts: dict[str, int] = {}
    for row in run.claims:
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    return template.render(run=run, papers=papers, counts=counts)


def notebook_page(notebook: Any) -> str:
    """An executed notebook as one HTML page, figures inside."""
    from nbconvert import HTMLExporter

    return HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(notebook)[0]


def _shown(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return ""
    if row["low"] == row["high"]:
        return f"{row['value']:.4g}"
    return f"{row['value']:.4g} ({row['low']:.4g} to {row['high']:.4g})"


def _drawing(row: dict[str, Any]) -> dict[str, Any] | None:
    """Interval, point and passing region on one axis, in pixels."""
    if row["value"] is None:
        return None
    condition = Condition(row["passes"])
    bars = [float(word) for word in row["passes"].replace("in", "").strip("<>= []").split(",")]
    ends = [row["low"], row["high"], row["value"], *bars]
    low, high = min(ends), max(ends)
    pad = 0.12 * (high - low) or max(abs(high), 1.0) * 0.1
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return round((value - low) / (high - low) * _WIDTH, 1)

    edges = [low, *sorted(bars), high]
    passing = [(x(a), x(b) - x(a)) for a, b in itertools.pairwise(edges) if condition.holds((a + b) / 2)]
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "passing": passing,
        "low": x(row["low"]),
        "high": x(row["high"]),
        "value": x(row["value"]),
        "bars": [x(bar) for bar in bars],
    }
