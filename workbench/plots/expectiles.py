"""Returns against their one-day-ahead VaR and expectile VaR, with the days that fell below.

Does: draw forecasts that a method made. Does not: forecast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.errors import refuse


def forecast_figure(
    days: Any,
    returns: Any,
    quantile: Any,
    expectile: Any,
    *,
    truth: Any = None,
    shown: slice = slice(None),
    said: str = "",
) -> Figure:
    """Returns (n,) as bars, both forecasts (n,) as lines, violations of each in a row below; `truth` (n,) dashed.

    shown: the part to draw; the shares of violations in the title are those of all days. said: what stands before them.
    """
    days, y, q, e = np.asarray(days), np.asarray(returns), np.asarray(quantile), np.asarray(expectile)
    if not len(days) == len(y) == len(q) == len(e) or len(y) == 0:
        must = "be as many, and at least one"
        raise refuse("days, returns, quantile, expectile", (len(days), len(y), len(q), len(e)), must, "cut them alike")
    shares = f"violated on {np.mean(y < q):.2%} (quantile) and {np.mean(y < e):.2%} of days (expectile)"
    title = "; ".join(part for part in (said, shares, "dashed: true expectile" if truth is not None else "") if part)
    days, y, q, e = days[shown], y[shown], q[shown], e[shown]
    if not len(days):
        raise refuse("shown", shown, "leave at least one day", "draw a longer part")
    fig, ax = plots.figure(width=8.6, height=3.9)
    ax.vlines(days, np.minimum(y, 0), np.maximum(y, 0), color=plots.COLORS["truth"], alpha=0.35, linewidth=0.5)
    plots.line(ax, days, q, color=plots.COLORS["baseline"], label="quantile")
    plots.line(ax, days, e, color=plots.COLORS["ours"])
    ends = (q[-1], e[-1])
    apart = 0.05 * float(y.max() - min(y.min(), *ends))
    place = min(ends[1], ends[0] - apart) if ends[1] <= ends[0] else max(ends[1], ends[0] + apart)
    look = {"textcoords": "offset points", "va": "center", "fontsize": 9, "annotation_clip": False}
    ax.annotate("expectile", (days[-1], place), xytext=(5, 0), color=plots.COLORS["ours"], **look)
    if truth is not None:
        ax.plot(days, np.asarray(truth)[shown], "--", color=plots.COLORS["truth"], linewidth=1.2)
    top = float(y.max())
    for row, (forecast, role) in enumerate(((q, "baseline"), (e, "ours"))):
        below = y < forecast
        height = np.full(int(below.sum()), top * (1.12 + 0.12 * row))
        ax.plot(days[below], height, "|", color=plots.COLORS[role], markersize=7)
    ax.set(xlabel="day", ylabel="return, per cent a day")
    ax.set_title(title, fontsize=9.5, loc="left")
    return fig
