"""Runs as `reproduce` leaves them, written without running anything: records, claims and small executed notebooks."""

from __future__ import annotations

import base64
import io
import random
from functools import cache
from pathlib import Path
from typing import Any

import nbformat

from workbench.papers import Condition, all_papers
from workbench.reproduce.records import NotebookRun, Run, as_json, plan
from workbench.reproduce.report import build_site

# Each would run, or fetch, if it were let through as it stands.
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
PROSE = r"""## The reproduction

Query $i$ succeeds with probability $\theta_i$, and $\mathbb E[1-(1-\theta)^N]$ is wanted, so that
$$1-\mathrm{ASR@}N=\frac{B(a,b+N)}{B(a,b)}\;\approx\;C\,N^{-a},\qquad C=\frac{\Gamma(a+b)}{\Gamma(b)}.$$

The anchored estimate $1-(1-\mathrm{ASR}_n)\,\frac{B(a,b+N)}{B(a,b+n)} = 1 - (1-\mathrm{ASR}_n)(n/N)^{\hat a}$ is long.

| a table | with columns |
|---|---|
| of $x<y$ | [a link](https://arxiv.org/abs/2601.22636) |
"""
CODE = """import numpy as np

def ratio(x, y):  # a comment
    return np.mean(x) / np.mean(y) + 0.5 if x is not None else "a rather long text, so that this line has to scroll"
"""


def row(slug: str, claim: str, value: float | None = 5.0, half: float = 1.0, passes: str = ">= 3", **more: Any) -> dict:
    """A row of claims.json, its verdict as `measure` would give it."""
    interval = (None, None) if value is None else (value - half, value + half)
    verdict = "not run" if value is None else Condition(passes).verdict(value, *interval)
    return {
        "slug": slug,
        "claim": claim,
        "mode": "scaled",
        "statement": f"What {slug} says in its claim {claim}",
        "paper": "7.2 against 1.6",
        "measure": "a ratio of two errors",
        "value": value,
        "low": interval[0],
        "high": interval[1],
        "passes": passes,
        "verdict": verdict,
        "expected": "reproduced",
        "control": "the plug-in in its place",
        "controlled": False,
        "seed": 0,
        "scale": "quick",
        "seconds": 1.25,
        "tokens": 1200,
        "note": "",
    } | more


def executed(cells: list[Any] | None = None) -> Any:
    """An executed notebook with prose, formulas, code, a stream, a table, a figure and an error."""
    code = nbformat.v4.new_code_cell(CODE)
    code.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="MAE at N = 1000: " + "2.13, " * 40 + "\n"),
        nbformat.v4.new_output("display_data", data={"text/html": TABLE, "text/plain": "a table"}),
        nbformat.v4.new_output("display_data", data={"image/png": picture(), "text/plain": "a figure"}),
        nbformat.v4.new_output(
            "error", ename="ValueError", evalue="no", traceback=["\x1b[31mValueError\x1b[39m: no such value"]
        ),
    ]
    prose = [nbformat.v4.new_markdown_cell("# A paper"), nbformat.v4.new_markdown_cell(PROSE)]
    caption = nbformat.v4.new_markdown_cell("*What the figure shows.*")
    return nbformat.v4.new_notebook(cells=[*prose, code, caption, *(cells or [])])


TABLE = (
    "<table><caption style='text-align:left'><strong>0.5</strong> an estimator on a problem</caption>"
    "<tr><td style='text-align:left'>interval</td><td>0.1 to 0.9 (95 %, normal)</td></tr></table>"
)


@cache
def picture() -> str:
    from PIL import Image

    buffer = io.BytesIO()
    small = Image.frombytes("RGB", (20, 12), random.Random(0).randbytes(20 * 12 * 3))
    small.resize((700, 400), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Written(Run):
    """A run whose claims are in no TOML, so that nothing can be said of what was expected."""

    alarms = ()  # type: ignore[assignment]


def write_run(
    runs: Path,
    name: str,
    papers: dict[str, list[dict]],
    *,
    notebook: Any = None,
    state: str = "done",
    **more: Any,
) -> Run:
    """A run folder `runs/name` whose notebook runs hold `papers`, {slug: rows}."""
    asked = {"scale": "quick", "seed": 0, "control": False, "started": f"{name[:4]}-11-21T09:16:14+00:00"} | more
    run = Written(runs / name, list(papers), **asked)
    run.notebooks = plan(run)
    run.folder.mkdir(parents=True)
    for key, one in run.notebooks.items():
        one.state, one.seconds, one.work_seconds = state, 12.5, 11.9
        one.claims = [
            entry | {"seed": one.seed, "controlled": one.control} | _off(entry, one) for entry in papers[one.slug]
        ]
        if key == one.slug:
            nbformat.write(notebook or executed(), run.folder / f"{key}.ipynb")
    (run.folder / "run.json").write_text(as_json(run))
    return run


def _off(entry: dict, one: NotebookRun) -> dict:
    """With the method switched off the value drops to 1; another seed moves it a little."""
    if entry["value"] is None:
        return {}
    value = 1.0 if one.control else entry["value"] + 0.2 * one.seed
    fresh = row(entry["slug"], entry["claim"], value, (entry["high"] - entry["low"]) / 2, entry["passes"])
    return {name: fresh[name] for name in ("value", "low", "high", "verdict")}


def thirty_papers() -> dict[str, list[dict]]:
    """Thirty of the registry's papers with ten claims each, of every verdict."""
    slugs = [slug for slug, paper in all_papers().items() if paper.kind != "ours"][::3][:30]
    return {slug: [row(slug, f"C{number}", value=7 - number * 0.5) for number in range(1, 11)] for slug in slugs}


def attacks() -> list:
    """Cells whose source and outputs hold all that a browser might run or fetch."""
    new = nbformat.v4.new_output
    code = nbformat.v4.new_code_cell(f"print('{ATTACK}')")
    code.outputs = [
        new("stream", name="stdout", text=ATTACK),
        new("display_data", data={"text/html": ATTACK + "<b onmouseover=alert(1)>bold</b><svg onload=alert(1)></svg>"}),
        new("display_data", data={"text/html": "<a title='<pre><img src=x onerror=alert(1)>' href='javascript:alert(1)'>x</a>"}),
        new("display_data", data={"text/html": '<iframe src="https://evil.example"></iframe><link rel=stylesheet href="//e.example">'}),
        new("display_data", data={"text/html": '<div style="background:url(https://evil.example/x)">d</div><form action="//e"><input>'}),
        new("display_data", data={"text/html": "<math><mtext><table><mglyph><style><!--</style><img src=x onerror=alert(1)>"}),
        new("display_data", data={"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{ATTACK}</svg>"}),
        new("display_data", data={"application/javascript": "document.title='owned'"}),
        new("display_data", data={"text/markdown": f"{ATTACK} ![i](https://evil.example/i.png) [l](javascript:alert(1))"}),
        new("display_data", data={"text/latex": f"$\\text{{{ATTACK}}}$"}),
        new("error", ename=ATTACK, evalue=ATTACK, traceback=[ATTACK]),
    ]  # fmt: skip
    markdown = nbformat.v4.new_markdown_cell(f"{ATTACK} $\\text{{{ATTACK}}}$ ![i](http://evil.example/i.png)")
    raw = nbformat.v4.new_raw_cell(ATTACK, metadata={"raw_mimetype": "text/html"})
    return [code, markdown, raw]


def site(run: Run, to: Path | None = None) -> dict[str, str]:
    """The pages of a run's report, {file name: text}."""
    index, _ = build_site(run, to)
    return {path.name: path.read_text(encoding="utf-8") for path in index.parent.glob("*.html")}
