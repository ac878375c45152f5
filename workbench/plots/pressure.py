"""Risk against queries and against compute: curves of several attacks, what a level of risk costs, by category.

Does: price recorded trials and draw them. Does not: attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.methods.tail_risk.risk_under_pressure import budget_curve, compute_to, expected_curve, pressure_curve
from workbench.methods.tail_risk.risk_under_pressure_trials import (
    Price,
    Trials,
    book_transfer,
    query_costs,
    simulated_trials,
)
from workbench.streams import Stream

MEGA = 1e6  # MFLOPs in a TFLOP: the tiny models' unit
BOOKINGS = {"step by step": "steps", "all at the first step": "first", "not at all": "free"}
_ROLES = {"template": "ours", "random": "truth", "iterative": "other", "gradient": "baseline", "transfer": "warn"}


def attack_costs(trials: Trials, price: Price, book: str = "steps") -> np.ndarray:
    """(n, budget) TFLOPs. A transferred attack is priced by `book`: the surrogate's search step by step ("steps"), the
    whole of it at the first step ("first"), or left out ("free"); other attacks as they are."""
    if price.optimised is None or book == "steps":
        return price.steps(trials)
    replay = replace(price, kind="template", optimised=None).steps(trials)
    if book == "free":
        return replay
    length = trials.prompt_tokens[:, 0] + price.reference
    search = trials.budget * (price.backward + price.candidates) * 2 * price.optimised * length / 1000
    return book_transfer(replay, search)


def pressure_figure(
    attacks: Mapping[str, tuple[Trials, Price]],
    budget: int,
    tau: float,
    judge: float,
    backward: float,
    candidates: int,
    book: str,
    *,
    stream: Stream,
) -> Figure:
    """Risk against steps (left) and against MFLOPs (right) for each attack; dots where it reaches tau.

    judge: its size in units of the target's. candidates, backward: of the gradient attack, priced and not run again.
    """
    fig, (left, right) = plots.figure(width=10.2, height=3.9, ncols=2, sharey=True)
    said = []
    for name, (trials, price) in attacks.items():
        priced = replace(price, judge=judge * price.target, backward=backward, candidates=candidates)
        costs, color = attack_costs(trials, priced, book), plots.COLORS[_ROLES.get(name, "band")]
        curve = pressure_curve(trials, costs, levels=range(budget + 1), resamples=100, stream=stream)
        left.plot(curve.levels, curve.risk, color=color, marker="o", markersize=3.5)
        left.fill_between(curve.levels, curve.low, curve.high, color=color, alpha=0.12, linewidth=0)
        right.plot(MEGA * curve.cost[1:], curve.risk[1:], color=color, marker="o", markersize=3.5)
        reached = compute_to(curve.risk, curve.cost, tau)
        if np.isfinite(reached):
            right.plot([MEGA * reached], [tau], "D", color=color, markersize=7)
        said.append((name, color, f"{MEGA * reached:,.3g}" if np.isfinite(reached) else "never"))
    look = {"va": "top", "fontsize": 9, "transform": right.transAxes}
    right.text(1.03, 0.95, f"MFLOPs to a\nrisk of {tau:g}", **look)
    for row, (name, color, cost) in enumerate(said):
        right.text(1.03, 0.80 - 0.08 * row, f"{name}: {cost}", color=color, **look)
    right.axhline(tau, color=plots.COLORS["truth"], linewidth=0.7, linestyle=":")
    left.set(xlabel="steps allowed (pressure)", ylabel="risk: share of prompts broken", ylim=(0, 1.03))
    right.set(xscale="log", xlabel="mean MFLOPs a prompt")
    return fig


def cost_figure(found: Mapping[str, Sequence[Sequence[float]]], taus: Sequence[float]) -> Figure:
    """C@tau in MFLOPs by attack (seeds x taus), a dot a seed, and the share of seeds that never reach tau."""
    fig, ax = plots.figure(width=7.6, height=3.4)
    for row, values in enumerate(found.values()):
        table = MEGA * np.asarray(values, dtype=float)
        for column, (tau, role) in enumerate(zip(taus, ("band", "ours", "truth"), strict=False)):
            kept, y = table[np.isfinite(table[:, column]), column], row + 0.22 * (column - 1)
            ax.plot(kept, np.full(len(kept), y), "o", color=plots.COLORS[role], markersize=6, alpha=0.8)
            if len(kept) < len(table):
                share = f"{1 - len(kept) / len(table):.0%} never reach {tau:g}"
                ax.text(
                    1.01,
                    y,
                    share,
                    transform=ax.get_yaxis_transform(),
                    va="center",
                    color=plots.COLORS[role],
                    fontsize=8.5,
                )
    for column, (tau, role) in enumerate(zip(taus, ("band", "ours", "truth"), strict=False)):
        ax.text(0.99 - 0.11 * (len(taus) - 1 - column), 1.02, f"tau {tau:g}", color=plots.COLORS[role], ha="right", transform=ax.transAxes, fontsize=9)  # fmt: skip
    ax.set(xscale="log", xlabel="C@tau, mean MFLOPs a prompt", yticks=range(len(found)), yticklabels=found, ylim=(len(found) - 0.5, -0.5))  # fmt: skip
    return fig


def category_figure(names: Sequence[str], values: Any, low: Any, high: Any, unreached: float) -> Figure:
    """Queries to a level of risk by category (K,) with intervals; `unreached` marks the end of what was tried."""
    fig, ax = plots.figure(width=6.6, height=2.9)
    values, low, high = np.asarray(values), np.asarray(low), np.asarray(high)
    rows = np.arange(len(names))
    error = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
    ax.errorbar(values, rows, xerr=error, fmt="o", color=plots.COLORS["ours"], markersize=5)
    if high.max() >= unreached:
        plots.truth(ax, unreached, "never", vertical=True)
    ax.set(
        xlim=(0, None), xlabel="queries to a risk of 0.2", yticks=rows, yticklabels=names, ylim=(len(names) - 0.5, -0.5)
    )
    return fig


def bend_figure(
    cases: Mapping[str, np.ndarray], exact: Mapping[str, Mapping[str, Any]], budget: int, stream: Stream
) -> Figure:
    """Risk against mean cost (left) and against the budget given (right), steps of cost 1; chances (n,) a prompt.

    exact: by case, the arguments of `expected_curve`, drawn dashed.
    """
    fig, (left, right) = plots.figure(width=9.4, height=3.6, ncols=2, sharey=True)
    for row, (name, chance) in enumerate(cases.items()):
        trials = simulated_trials(chance, budget, stream.child(name))
        costs, color = query_costs(trials), plots.COLORS[("ours", "baseline")[row % 2]]
        curve = pressure_curve(trials, costs, levels=range(budget + 1), resamples=20, stream=stream)
        left.plot(curve.cost, curve.risk, "o", color=color, markersize=4.5)
        risk, cost = expected_curve(curve.levels, 1.0, **exact[name])
        left.plot(cost, risk, "--", color=plots.COLORS["truth"], linewidth=1.1)
        x, r = budget_curve(trials, costs)
        right.step([*x, budget], [*r, r[-1]], where="post", color=color, linewidth=1.8)
        left.text(0.02, 0.95 - 0.08 * row, name, color=color, va="top", fontsize=9, transform=left.transAxes)
    left.set(xlabel="mean cost a prompt, steps", ylabel="risk", ylim=(0, 1))
    right.set(xlabel="budget given to each prompt, steps")
    return fig
