"""Distributional correctness on logs: the DCS and the scores beside it, from log-likelihoods of answer options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from workbench import plots
from workbench.logs.page import Page
from workbench.methods.tail_risk.distributional_correctness import Answers, item_scores, summary, threshold

_MASSES = {"right": "ours", "wrong": "baseline", "I don't know": "band"}


def page(given: Answers, notes: Sequence[str] = (), *, l_right: float = 1.0, l_wrong: float = 1.0) -> Page:
    """Means over questions with 95 % intervals, and where the mass of the answers lies."""
    loadings: dict[str, Any] = {"l_right": l_right, "l_wrong": l_wrong}
    found = summary(given, **loadings)
    masses = {"right": given.p_right, "wrong": given.p_wrong, "I don't know": given.p_idk}
    root = np.sqrt(len(given))
    found |= {f"mass on {name}": (float(p.mean()), float(p.std(ddof=1) / root)) for name, p in masses.items()}
    reach = float(stats.t.ppf(0.975, len(given) - 1))
    ends = {name: _ends(name, mean, reach * se) for name, (mean, se) in found.items()}
    rows = [(name, f"{found[name][0]:.3g}", f"{low:.3g} to {high:.3g}" if np.isfinite(high - low) else "none")
            for name, (low, high) in ends.items()]  # fmt: skip
    dcs = item_scores(given, **loadings)["DCS"]
    low, high = ends["DCS"]
    verdict = "above" if low > 0 else "below" if high < 0 else "not told from"
    said = [
        f"{len(given):,} questions; the DCS is {found['DCS'][0]:.3g} (95 % interval {low:.3g} to {high:.3g}), "
        f"{verdict} 0, what always abstaining gets.",
        f"At these loadings who is right with less than {threshold(l_right, l_wrong):.3g} chance does best to abstain.",
        *notes,
    ]
    fig, (left, right) = plots.figure(width=9.2, height=3.6, ncols=2)
    order, start, places = np.argsort(dcs), np.zeros(len(dcs) + 1), np.arange(len(dcs) + 1)
    for name, role in _MASSES.items():
        mass = masses[name][order]
        top = start + np.append(mass, mass[-1])
        left.fill_between(places, start, top, color=plots.COLORS[role], step="post", linewidth=0, label=name)
        start = top
    left.set(xlabel="questions, in order of their DCS", ylabel="mass of the answer", ylim=(0, 1), xlim=(0, len(dcs)))
    fig.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    right.hist(dcs, bins=np.linspace(-l_wrong, l_right, 25), color=plots.COLORS["ours"])
    plots.truth(right, 0.0, "abstain", vertical=True)
    right.set(xlabel="DCS of a question", ylabel="questions")
    right.yaxis.get_major_locator().set_params(integer=True)
    return Page(
        "Distributional correctness, from logs",
        said,
        ("score", "mean", "95 % interval"),
        rows,
        fig,
        "How the mass of each answer is shared by right options, wrong ones and I don't know, and the DCS of each question",
        "Method: arXiv 2510.04302 (departures as in workbench.methods.tail_risk.distributional_correctness). Intervals: "
        "Student's t over questions.",
        {"questions": len(given), "notes": list(notes),
         "scores": {name: [found[name][0], *pair] for name, pair in ends.items()}},
    )  # fmt: skip


def _ends(name: str, mean: float, half: float) -> tuple[float, float]:
    """An interval's ends, kept in [0, 1] where the score is a share."""
    share = name in ("accuracy", "CWA") or name.startswith("mass on ")
    low, high = mean - half, mean + half
    return (max(low, 0.0), min(high, 1.0)) if share else (low, high)
