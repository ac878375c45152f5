"""Which answers a selection rule submits: every distinct answer by its share of the samples and its score.

Does: draw one set of sampled answers and ring what each rule chooses. Does not: sample or choose.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from workbench import plots

_ROLES = ("baseline", "other", "ours")


def selection_figure(
    shares: np.ndarray,
    scores: np.ndarray,
    kinds: Mapping[str, tuple[slice, str]],
    chosen: Mapping[str, np.ndarray],
    *,
    right: int = 0,
    alpha: float = 0.0,
) -> Figure:
    """shares, scores (answers,): share of the samples, in [0, 1], and the reward model's score.

    kinds   name -> (its answers, a role of `plots.COLORS`); a dot an answer, spread out a little in height
    chosen  rule -> indices that it submits, -1 for an empty place; at most three rules
    right   the right answer; alpha the share that best-of-majority asks for
    """
    fig, ax = plots.figure(width=7.4, height=4.4)
    least = 0.8 / max(1.0, 1 / shares[shares > 0].min())
    for name, (where, role) in kinds.items():
        numbers = np.arange(len(shares))[where]
        seen = numbers[shares[numbers] > 0]
        spread = 0.1 * ((seen * 0.618) % 1 - 0.5) * (len(numbers) > 1)
        ax.plot(shares[seen], scores[seen] + spread, "o", markersize=4, color=plots.COLORS[role], alpha=0.7)
        if seen.size:
            top = seen[np.argmax(scores[seen])]
            ax.annotate(name, (shares[top], scores[top]), xytext=(12, 12), textcoords="offset points", fontsize=9)
    for column, ((name, picked), role) in enumerate(zip(chosen.items(), _ROLES, strict=False)):
        inside = picked[picked >= 0]
        look = {"markersize": 12 + 5 * column, "markeredgewidth": 1.6, "markerfacecolor": "none"}
        ax.plot(shares[inside], scores[inside], "o", color=plots.COLORS[role], **look)
        found = "finds y*" if right in picked else "misses y*"
        ax.text(0.36 * column, 1.04, f"{name} {found}", transform=ax.transAxes, color=plots.COLORS[role], fontsize=9)
    plots.truth(ax, max(alpha, least), f"alpha = {alpha:g}", vertical=True)
    ax.set(xlabel="share of the samples", ylabel="reward model's score", xscale="log")
    ax.set(xlim=(least, 1.0), ylim=(-0.15, 1.2))
    return fig
