"""Estimators that read hazards, at a glance: what repeated runs say, what accuracy costs in tokens, where the gain is.

Does: draw. Does not: choose chains or sum anything that `methods.tail_risk.hazard_chains` does not give.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.methods.tail_risk.hazard_chains import (
    Moments,
    announced_chain,
    draw_paths,
    exact_moments,
    spontaneous_chain,
)
from workbench.streams import Stream

ROLES = {"Monte Carlo": "baseline", "SCOPE": "other", "REACH": "ours"}


def toy_figure(
    outcome: str,
    rate: float,
    strength: float,
    horizon: int,
    n: int,
    start: int,
    *,
    stream: Stream,
    repeats: int = 300,
) -> Figure:
    """`estimates_figure` of a chain of twelve tokens whose outcome is "spontaneous" (hazard `rate` everywhere) or
    "announced" (hazard `strength` after a precursor that comes with `rate`), from state `start`, 0 to 9."""
    rows = stream.child("chain").generator()
    chain = spontaneous_chain(rows, rate) if outcome == "spontaneous" else announced_chain(rows, rate, strength)
    starts = np.full(repeats, start)
    plain = draw_paths(chain, starts, n, horizon, stream.child("ordinary"))
    masked = draw_paths(chain, starts, n, horizon, stream.child("masked"), masked=True)
    estimates = {"Monte Carlo": plain.hit, "SCOPE": plain.scope, "REACH": masked.reach}
    means = {name: values.mean(axis=1) for name, values in estimates.items()}
    return estimates_figure(means, exact_moments(chain, horizon), start, n)


def estimates_figure(estimates: Mapping[str, np.ndarray], moments: Moments, start: int, n: int) -> Figure:
    """estimates: (repeats,) means over n samples by estimator, one of `ROLES`; moments of one sample from `start`.

    Left: how the estimates scatter about the truth. Right: relative error against tokens, exact.
    """
    fig, (left, right) = plots.figure(width=9.6, height=3.9, ncols=2)
    risk = float(moments.risk[start])
    widest = max(float(np.quantile(values, 0.995)) for values in estimates.values())
    bins = np.linspace(0, max(widest, 2 * risk, 1e-12), 61)
    for row, (name, values) in enumerate(reversed(list(estimates.items()))):
        counts, _ = np.histogram(values, bins)
        tall = 0.85 * counts / max(counts.max(), 1)
        left.fill_between(bins[:-1], row, row + tall, step="post", color=plots.COLORS[ROLES[name]], alpha=0.75)
        left.text(bins[-1], row + 0.25, name, color=plots.COLORS[ROLES[name]], ha="right", fontsize=9)
    plots.truth(left, risk, f"truth {risk:.3g}", vertical=True)
    left.set(xlabel=f"estimate from {n} samples", ylim=(0, len(estimates) + 0.25), yticks=[])
    left.set_ylabel("how often, by estimator")

    costs = {
        "Monte Carlo": (moments.monte_carlo, moments.tokens),
        "SCOPE": (moments.scope, moments.tokens),
        "REACH": (moments.reach, moments.reach_tokens),
    }
    spent = np.geomspace(10, 1e6, 40)
    for name, (variance, tokens) in costs.items():
        error = np.sqrt(max(variance[start], 0.0) * tokens[start] / spent) / risk if risk > 0 else np.zeros(len(spent))
        ratio = moments.monte_carlo[start] / variance[start] if variance[start] > 0 else np.inf
        said = name if name == "Monte Carlo" else f"{name}, variance / {ratio:.3g}"
        plots.line(right, spent, 100 * error, color=plots.COLORS[ROLES[name]])
        right.text(0.98, 0.95 - 0.07 * list(costs).index(name), said, color=plots.COLORS[ROLES[name]], ha="right",
                   va="top", fontsize=9, transform=right.transAxes)  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="tokens spent", ylabel="relative error, %")
    return fig


def ratios_figure(risk: np.ndarray, reach: np.ndarray, scope: np.ndarray, announced: np.ndarray) -> Figure:
    """(problems,) each: risk, Var(MC) / Var of either estimator at equal samples, and the announced share of the risk."""
    fig, axes = plots.figure(width=9.6, height=3.9, ncols=2, sharey=True)
    for ax, name, ratio in zip(axes, ("REACH", "SCOPE"), (reach, scope), strict=True):
        shown = ax.scatter(risk, ratio, c=announced, cmap="viridis", vmin=0, vmax=1, s=16)
        plots.truth(ax, 1.0, "")
        ax.text(0.02, 0.03, "below the line: worse than Monte Carlo", fontsize=9, transform=ax.transAxes)
        below = int(np.sum(ratio < 1 - 1e-9))
        ax.set_title(f"{name}: worse than Monte Carlo on {below} of {len(risk)}", fontsize=9.5, loc="left")
        ax.set(yscale="log", xlabel="risk")
    axes[0].set_ylabel("Var(MC) / Var(estimator), per sample")
    fig.colorbar(shown, ax=axes[1], label="share of the risk at hazards above 0.5")
    return fig
