"""What the report's pages say of a run and its papers, put together from records: no file is read or written here.

Does: collect for each claim its seeds, its control (this run's, or another's), its earlier values and its drawing.
Does not: escape or mark up anything; templates do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.papers import FAMILIES, VERDICTS, Claim, Paper
from workbench.reproduce.drawing import draw, said
from workbench.reproduce.records import NotebookRun, Run, passes
from workbench.reproduce.scrub import scrub_all

GLYPHS = {"reproduced": "✓", "consistent": "≈", "not reproduced": "✗", "needs gpu": "G", "not run": "–"}
_EARLIER = 8  # runs drawn in a claim's history


def entries(
    run: Run, papers: dict[str, Paper], others: list[Run], scrubbed: Callable[[str], str]
) -> list[dict[str, Any]]:
    """All that the pages say of each paper of `run`, in its order; `others` are the runs beside it, newest first."""
    shares: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for share in passes(run):
        shares.setdefault((share["slug"], share["claim"]), []).append(share)
    found = [_entry(run, slug, papers.get(slug), others, scrubbed) for slug in run.slugs]
    for entry in found:
        for card in entry["cards"]:
            card["shares"] = shares.get((entry["paper"].slug, card["row"]["claim"]), [])
    return found


def _entry(
    run: Run, slug: str, paper: Paper | None, others: list[Run], scrubbed: Callable[[str], str]
) -> dict[str, Any]:
    """All that a page of one paper says. `main` is its first notebook run, `notebooks` are all of this run."""
    notebooks = {key: one for key, one in run.notebooks.items() if one.slug == slug}
    main = notebooks.get(slug) or NotebookRun(slug)
    controls, elsewhere = _controls(run, slug, notebooks, others)
    earlier = [(other, other.notebooks[slug]) for other in others if slug in other.notebooks]
    cards = [
        _card(run, row, paper, notebooks, controls, elsewhere, earlier) for row in scrub_all(main.claims, scrubbed)
    ]
    known = paper or Paper(
        slug=slug, title=slug, authors=(), year=0, family="", kind="", status="", summary="", path=Path(slug)
    )
    times = [(run, main), *earlier]
    longest = max([one.seconds for _, one in times] + [1e-9])
    return {
        "paper": dataclasses.replace(known, **scrub_all({"title": known.title, "summary": known.summary}, scrubbed)),
        "known": paper is not None,
        "main": dataclasses.replace(main, error=scrubbed(main.error), why=scrubbed(main.why)),
        "notebooks": notebooks,
        "cards": cards,
        "marks": _marks(main),
        "counts": counts(main.claims),
        "seconds": sum(one.seconds for one in notebooks.values()),
        "tokens": sum(row["tokens"] for one in notebooks.values() for row in one.claims),
        "history": [
            {"run": other, "one": one, "marks": _marks(one), "share": round(100 * one.seconds / longest)}
            for other, one in times
        ],
    }


def _controls(
    run: Run, slug: str, notebooks: dict[str, NotebookRun], others: list[Run]
) -> tuple[list[NotebookRun], Run | None]:
    """The runs of this paper with its method off: this run's, else those of the latest other run at this scale that
    has any, with that run."""
    if run.control:
        return [], None
    inside = [one for one in notebooks.values() if one.control]
    if inside:
        return inside, None
    for other in others:
        outside = [one for one in other.notebooks.values() if one.slug == slug and one.control and one.state == "done"]
        if outside and other.scale == run.scale:
            return outside, other
    return [], None


def _card(
    run: Run,
    row: dict[str, Any],
    paper: Paper | None,
    notebooks: dict[str, NotebookRun],
    controls: list[NotebookRun],
    elsewhere: Run | None,
    earlier: list[tuple[Run, NotebookRun]],
) -> dict[str, Any]:
    claim = next((claim for claim in paper.claims if claim.id == row["claim"]), None) if paper else None

    def rows(ones: list[NotebookRun]) -> list[dict[str, Any]]:
        return [other for one in ones for other in one.claims if other["claim"] == row["claim"]]

    kind = "control" if run.control and row["control"] else "ours"
    ours = [one for one in notebooks.values() if one.control == run.control]
    off = rows(controls) if row["control"] else []
    lanes = [(f"seed {other['seed']}", kind, other) for other in rows(ours)]
    lanes += [("control" if len(off) == 1 else f"control {other['seed']}", "control", other) for other in off]
    past = [("this run", kind, row)] + [
        (_when(other), "earlier", same)
        for other, one in earlier
        if other.scale == run.scale and one.control == run.control and not one.cached
        for same in one.claims
        if same["claim"] == row["claim"] and same["passes"] == row["passes"]
    ]
    return {
        "row": row,
        "claim": claim,
        "said": said(row),
        "drawing": draw(lanes, row["passes"]),
        "off": [other | {"said": said(other)} for other in off],
        "elsewhere": elsewhere,
        "history": draw(past[: _EARLIER + 1], row["passes"]) if len(past) > 1 else None,
        "n_history": min(len(past) - 1, _EARLIER),
    }


def _when(run: Run) -> str:
    """A run's day and time, short: "11-20 09:16"."""
    return run.started[5:16].replace("T", " ")


def _marks(notebook: NotebookRun) -> list[tuple[str, str, str]]:
    """(claim, verdict, glyph) of each claim."""
    return [(row["claim"], row["verdict"], GLYPHS[row["verdict"]]) for row in notebook.claims]


def family(family: str, papers: dict[str, Paper], here: dict[str, Any]) -> list[dict[str, Any]]:
    """The map's tiles of one family: papers of this run first, then those not in it, then those planned."""
    tiles = []
    for slug, paper in papers.items():
        if paper.family == family and slug not in here:
            tiles.append({"paper": paper, "entry": None, "state": "planned" if paper.status == "planned" else "absent"})
    tiles.sort(key=lambda tile: tile["state"] == "planned")
    ours = [entry for entry in here.values() if (entry["paper"].family or FAMILIES[-1]) == family]
    return [{"paper": entry["paper"], "entry": entry, "state": "here"} for entry in ours] + tiles


def always(entries: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Of the claims measured, how many pass (with the method) or fail (with its control) at every seed."""
    shares = [
        share for entry in entries for card in entry["cards"] for share in card["shares"] if card["row"]["control"]
    ]
    every = [
        share for entry in entries for card in entry["cards"] for share in card["shares"] if not share["controlled"]
    ]
    off = [share for share in shares if share["controlled"]]
    return {
        "ours": {"n": len(every), "passed": sum(share["passed"] == share["runs"] for share in every)},
        "control": {"n": len(off), "failed": sum(share["passed"] == 0 for share in off)},
    }


def alarms(run: Run) -> list[str]:
    """What was worse than expected, by the expectations recorded then: the TOMLs may have changed since."""
    told = []
    for key, notebook in run.notebooks.items():
        if notebook.state in ("failed", "interrupted"):
            told.append(f"{key}: the notebook {notebook.state}" + f" ({notebook.error})" * bool(notebook.error))
        for row in notebook.claims if notebook.state == "done" else []:
            same = {name: row[name] for name in ("statement", "paper", "mode", "measure", "passes", "expected")}
            claim = Claim(id=row["claim"], source="", bar="paper", control=row["control"] or "", **same)
            if claim.alarming(row["verdict"], control=row["controlled"]):
                told.append(f"{key} {claim.id}: {row['verdict']}, expected {claim.expected}")
    return told


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    verdicts = [row["verdict"] for row in rows]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS if verdict in verdicts}
