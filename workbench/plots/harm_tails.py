"""Tails of losses by model: exceedance curves with VaR, expectile and CVaR, what dimensions add, which rankings flip.

Does: draw, and mark functionals that `loss_tails` and `expectile_var` compute. Does not: score anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.errors import require_choice
from workbench.methods.tail_risk.expectile_var import expectile
from workbench.methods.tail_risk.harm_profiles import GammaMixture
from workbench.methods.tail_risk.loss_tails import cvar
from workbench.methods.tail_risk.sharp import RiskProfiles

_MARKS = {"VaR": "|", "expectile": "D", "CVaR": "o"}
_PARTS = ("ours", "other", "warn", "baseline", "band")


def tail_figure(
    losses: Mapping[str, np.ndarray],
    level: float,
    shown: Sequence[str],
    *,
    truth: Mapping[str, GammaMixture] | None = None,
    unit: str = "log-risk L, nats",
) -> Figure:
    """losses: {model: (prompts,)}; `shown`: one or two of them, the others are grey.

    Left: the share of prompts beyond each loss, log scale, with VaR, expectile and CVaR at `level` marked on the
    curves. Right: mean against CVaR of all. truth: the laws that losses were drawn from; dashed, rings on the right.
    """
    for name in shown:
        require_choice("shown", name, losses)
    fig, (left, right) = plots.figure(width=9.8, height=4.0, ncols=2)
    roles = dict(zip(dict.fromkeys(shown), ("baseline", "ours"), strict=False))
    widest, tops = max(float(losses[name].max()) for name in roles), {}
    for name, values in sorted(losses.items(), key=lambda item: item[0] in roles):
        y = np.sort(values)
        beyond = 1 - np.arange(len(y)) / len(y)
        colour = plots.COLORS[roles[name]] if name in roles else "#bbbbbb"
        left.plot(y, beyond, color=colour, linewidth=1.8 if name in roles else 0.7, drawstyle="steps-pre")
        found = {
            "VaR": float(np.quantile(y, level, method="inverted_cdf")),
            "expectile": expectile(y, level),
            "CVaR": cvar(y, level),
        }
        right.plot(y.mean(), found["CVaR"], "o", color=colour, markersize=8 if name in roles else 5)
        if name not in roles:
            continue
        if truth and name in truth:
            x = np.linspace(0, 1.05 * widest, 200)
            left.plot(x, truth[name].exceedance(x), "--", color=plots.COLORS["truth"], linewidth=1.1)
            right.plot(truth[name].mean, truth[name].cvar(level), "o", markersize=12, markerfacecolor="none",
                       color=plots.COLORS["truth"])  # fmt: skip
        for kind, mark in _MARKS.items():
            at = float(np.mean(y >= found[kind]))
            size, edge, rim = (13, 2.4, colour) if mark == "|" else (7, 0.8, "white")
            left.plot(found[kind], max(at, 1 / len(y)), mark, color=colour, markersize=size, markeredgewidth=edge,
                      markeredgecolor=rim)  # fmt: skip
        row = list(roles).index(name)
        said = ", ".join(f"{kind} {value:.2f}" for kind, value in found.items())
        left.text(0.99, 0.98 - 0.075 * row, f"{name}: mean {y.mean():.2f}, {said}", color=colour, ha="right", va="top",
                  fontsize=8.5, transform=left.transAxes)  # fmt: skip
        right.axvline(y.mean(), color=colour, linewidth=0.8, linestyle=":")
        tops[name] = (float(y.mean()), found["CVaR"])
    for shift, (name, place) in zip((-12, 5), sorted(tops.items(), key=lambda item: item[1][1]), strict=False):
        right.annotate(name, place, xytext=(8, shift), textcoords="offset points", color=plots.COLORS[roles[name]],
                       fontsize=9, annotation_clip=False)  # fmt: skip
    plots.truth(left, 1 - level, "")
    left.text(
        1.0,
        1 - level,
        f"worst {1 - level:.2g}",
        ha="right",
        va="bottom",
        fontsize=9,
        transform=left.get_yaxis_transform(),
    )
    n = max(map(len, losses.values()))
    left.set(
        yscale="log", xlim=(0, 1.05 * widest), ylim=(0.7 / n, 4), xlabel=unit, ylabel="share of prompts at least as bad"
    )
    left.set_title(
        "bar VaR, diamond expectile, dot CVaR" + ("; dashed: truth" if truth else ""), fontsize=9.5, loc="left"
    )
    right.set(xscale="log", yscale="log", xlabel=f"mean {unit}", ylabel=f"CVaR at {level:g}")
    right.set(xlim=_decade(right.get_xlim()), ylim=_decade(right.get_ylim()))
    return fig


def _decade(limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of a logarithmic axis with room for names, more than a decade."""
    middle, reach = np.sqrt(limits[0] * limits[1]), max(4.0, 1.5 * np.sqrt(limits[1] / limits[0]))
    return float(middle / reach), float(middle * reach)


def contributions_figure(profiles: RiskProfiles, bounds: np.ndarray | None = None) -> Figure:
    """What each dimension adds, by model, in order of CVaR: to the mean (left) and to CVaR (right), whose interval
    `bounds` (2, models) is a whisker. Bars add up to the mean and to CVaR."""
    fig, axes = plots.figure(width=9.8, height=4.2, ncols=2, sharey=True)
    order = np.argsort(profiles.cvar)[::-1]
    rows, means = np.arange(len(order)), profiles.share * profiles.mean[:, None]
    for ax, parts in zip(axes, (means[order], profiles.tail[order]), strict=True):
        start = np.zeros(len(order))
        for number, name in enumerate(profiles.dimensions):
            colour = plots.COLORS[_PARTS[number % len(_PARTS)]]
            ax.barh(rows, parts[:, number], left=start, color=colour, height=0.75, label=name)
            start = start + parts[:, number]
    if bounds is not None:
        low, high = bounds[:, order]
        centre = profiles.cvar[order]
        reach = np.maximum([centre - low, high - centre], 0)
        axes[1].errorbar(centre, rows, xerr=reach, fmt="none", ecolor=plots.COLORS["truth"], elinewidth=1, capsize=2)
    axes[0].set(yticks=rows, yticklabels=[profiles.models[i] for i in order], xlabel="mean log-risk, nats")
    axes[1].set(xlabel=f"CVaR at {profiles.level:g}, nats")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
    return fig


def flip_figure(profiles: RiskProfiles, flips: np.ndarray) -> Figure:
    """CVaR of the row's model over that of the column's, in order of their mean; `flips` (models, models) ringed.

    If tail followed mean, everything right of the diagonal would be below 1.
    """
    fig, ax = plots.figure(width=7.0, height=5.2)
    order = np.argsort(profiles.mean)
    ratio = np.log2(profiles.cvar[order, None] / profiles.cvar[None, order])
    image = ax.imshow(ratio, cmap="PuOr_r", vmin=-3, vmax=3)
    ax.grid(False)
    for row, column in zip(*np.nonzero(flips[np.ix_(order, order)]), strict=True):
        ax.plot(
            column, row, "o", markersize=13, markerfacecolor="none", color=plots.COLORS["truth"], markeredgewidth=1.6
        )
    names = [profiles.models[i] for i in order]
    ax.set(xticks=range(len(names)), yticks=range(len(names)), yticklabels=names)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    fig.colorbar(image, ax=ax, label="CVaR of row / CVaR of column, powers of 2")
    return fig
