"""The league as a picture: error, coverage and warnings of each estimator on each problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workbench.plots import COLORS, figure

_ROLES = ("ours", "baseline", "other", "warn", "band", "truth")
_MARKS = "osD^vPX*"


def league(standings: Sequence[dict[str, Any]]) -> Figure:
    """A line a problem; a mark an estimator: relative RMSE with its interval, coverage with its interval against the
    level, share of flagged repeats. Estimators differ by mark as well as by colour."""
    problems = list(dict.fromkeys(row["problem"] for row in standings))
    players = list(dict.fromkeys(row["estimator"] for row in standings))
    fig, axes = figure(width=11, height=1.6 + 0.34 * len(problems) + 0.2 * len(players), ncols=3, sharey=True, width_ratios=[2, 1, 1])  # fmt: skip
    for number, player in enumerate(players):
        look = {"color": COLORS[_ROLES[number % len(_ROLES)]], "marker": _MARKS[number % len(_MARKS)], "markersize": 5}
        shift = 0.6 * ((number + 0.5) / len(players) - 0.5)
        rows = [row for row in standings if row["estimator"] == player]
        y = np.array([problems.index(row["problem"]) for row in rows]) + shift
        for ax, name, ends in (
            (axes[0], "rmse", ("rmse_low", "rmse_high")),
            (axes[1], "coverage", ("coverage_low", "coverage_high")),
            (axes[2], "flagged", ("flagged_low", "flagged_high")),
        ):
            shown = [(at, row) for at, row in zip(y, rows, strict=True) if row[name] is not None]
            if not shown:
                continue
            x = np.array([row[name] for _, row in shown])
            bars = np.array([[row[name] - row[ends[0]], row[ends[1]] - row[name]] for _, row in shown]).T
            ax.errorbar(x, [at for at, _ in shown], xerr=np.maximum(bars, 0), linestyle="", linewidth=1, **look)
        axes[0].plot([], [], linestyle="", label=player, **look)
    level = next((row["level"] for row in standings), 0.95)
    axes[1].axvline(level, color=COLORS["truth"], linestyle="--", linewidth=1)
    axes[0].set(xscale="log", xlabel="relative RMSE", yticks=range(len(problems)), yticklabels=problems)
    axes[0].set_ylim(len(problems) - 0.5, -0.5)
    axes[1].set(xlabel="coverage of unflagged intervals", xlim=(-0.03, 1.03))
    axes[2].set(xlabel="share flagged unreliable", xlim=(-0.03, 1.03))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(players), 3), fontsize=9)
    return fig
