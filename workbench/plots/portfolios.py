"""What a portfolio of k policies brings, by estimator: SharpeRatio@k and the two halves that it is made of.

Does: draw tables that `sharpe_ratio_at_k.top_k` made. Does not: compute them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workbench import plots

_COLOURS = ("ours", "baseline", "other", "warn", "band")
_STYLES: tuple[Any, ...] = ("-", "-", "-", "-", (0, (3, 3)))  # the last estimator may lie on top of another


def portfolio_figure(found: Mapping[str, Any], behaviour_value: float, k: int) -> Figure:
    """Three panels by k: best, mean and worst value in the portfolio; its spread; SharpeRatio@k.

    found: {estimator: TopK of one table}, at most five; `k` is marked.
    """
    fig, (range_ax, spread_ax, ratio_ax) = plots.figure(width=10.5, height=3.6, ncols=3)
    for (name, top), colour, style in zip(found.items(), _COLOURS, _STYLES, strict=False):
        role, inner = plots.COLORS[colour], slice(1, None)
        range_ax.fill_between(top.k, top.worst, top.best, color=role, alpha=0.12, linewidth=0)
        plots.line(range_ax, top.k, top.best, color=role, linestyle=style)
        plots.line(range_ax, top.k, top.worst, color=role, linestyle=":")
        plots.line(spread_ax, top.k[inner], top.std[inner], color=role, linestyle=style)
        ratio = np.where(np.isfinite(top.sharpe), top.sharpe, np.nan)[inner]
        plots.line(ratio_ax, top.k[inner], ratio, color=role, linestyle=style)
        ratio_ax.plot([], [], color=role, linestyle=style, label=name)
    plots.truth(range_ax, behaviour_value, "J_b")
    for ax in (range_ax, spread_ax, ratio_ax):
        ax.axvline(k, color=plots.COLORS["truth"], linewidth=0.6)
    range_ax.set(xlabel="k policies tested", ylabel="true value: best (line), worst (dots)")
    spread_ax.set(xlabel="k policies tested", ylabel="standard deviation of their values", ylim=(0, None))
    ratio_ax.set(xlabel="k policies tested", ylabel="SharpeRatio@k", ylim=(0, None))
    ratio_ax.legend(frameon=False, fontsize=9)
    return fig


def sharpe_bands(sharpe: np.ndarray, names: Sequence[str], draws: np.random.Generator) -> Figure:
    """Mean SharpeRatio@k of each estimator with 95 % bootstrap bands over trials; sharpe (trials, estimators, K)."""
    fig, ax = plots.figure(width=7.2)
    picked = draws.integers(len(sharpe), size=(200, len(sharpe)))
    k = np.arange(1, sharpe.shape[-1] + 1)[1:]
    for i, (name, colour, style) in enumerate(zip(names, _COLOURS, _STYLES, strict=False)):
        mine = sharpe[:, i, 1:]
        low, high = np.quantile(mine[picked].mean(axis=1), [0.025, 0.975], axis=0)
        plots.line(ax, k, mine.mean(axis=0), color=plots.COLORS[colour], low=low, high=high, linestyle=style)
        ax.plot([], [], color=plots.COLORS[colour], linestyle=style, label=name)
    ax.set(xlabel="k policies tested", ylabel="mean SharpeRatio@k over trials", ylim=(0, None))
    ax.legend(frameon=False, fontsize=9, ncols=2)
    return fig


def rank_scatter(sharpe: np.ndarray, others: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """SR@k against each other metric, a dot for each trial and estimator; arrays (trials, estimators)."""
    fig, axes = plots.figure(width=10.5, height=3.4, ncols=len(others), sharey=True)
    for ax, (label, values) in zip(np.atleast_1d(axes), others.items(), strict=True):
        for i, (name, colour) in enumerate(zip(names, _COLOURS, strict=False)):
            ax.plot(values[:, i], sharpe[:, i], ".", markersize=3, alpha=0.5, color=plots.COLORS[colour], label=name)
        ax.set(xlabel=label, ylim=(0, np.nanquantile(sharpe[np.isfinite(sharpe)], 0.99)))
    np.atleast_1d(axes)[0].set_ylabel("SharpeRatio@4")
    np.atleast_1d(axes)[-1].legend(frameon=False, fontsize=8, markerscale=3)
    return fig
