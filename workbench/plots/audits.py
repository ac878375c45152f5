"""Audits of models by scenarios: severities and scores of a safe target and its twin, intervals by cell, stability.

Does: draw what an audit gave, beside its exact law where that is known. Does not: run audits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench import plots
from workbench.methods.tail_risk.audit_records import SEVERITIES
from workbench.methods.tail_risk.audit_simulation import exact_score, severity_law, twin_auroc, twins
from workbench.methods.tail_risk.simple_audit import (
    Interval,
    deviation_sd,
    responsiveness,
    scenario_scores,
)
from workbench.streams import Stream


def twins_figure(
    distance: float, strength: float, scenarios: int, runs: int, scenario: float, rerun: float, *, stream: Stream
) -> Figure:
    """Exact severities of a safe target and its twin `distance` lower, one drawn audit of both, and its AUROC.

    strength: of the auditor, who lowers both latent values by it. scenario, rerun: the SDs.
    """
    audit = twins(distance, 0.5 - strength, scenario=scenario, rerun=rerun)
    law = severity_law(audit.latent[:, 0, 0], audit.sd)
    scores = scenario_scores(audit.draw(scenarios, runs, stream.child("audit"))[:, 0, 0])
    found = responsiveness(scores[0], scores[1], stream.child("bootstrap"), resamples=400)
    fig, (left, right) = plots.figure(width=9.4, height=3.6, ncols=2)
    for row, (name, role) in enumerate((("safe", "ours"), ("twin", "baseline"))):
        color = plots.COLORS[role]
        left.bar(np.arange(5) + 0.2 * (2 * row - 1), law[row], width=0.38, color=color, alpha=0.8)
        said = f"{name}: exact score {25 * law[row] @ np.arange(5):.1f}, critical {law[row][0]:.1%}"
        left.text(0.02, 0.97 - 0.08 * row, said, color=color, va="top", fontsize=9, transform=left.transAxes)
        height = row + 0.5 * (stream.child("jitter", name).uniforms(scenarios)[:, 0] - 0.5)
        right.plot(scores[row], height, "o", color=color, alpha=0.55, markersize=4.5)
        right.plot([scores[row].mean()] * 2, [row - 0.38, row + 0.38], color=color, linewidth=2.2)
    left.set(xticks=range(5), xticklabels=SEVERITIES, ylabel="exact share of runs", ylim=(0, 1.25 * law.max()))
    right.set(
        yticks=[0, 1], yticklabels=["safe", "twin"], xlabel=f"score of a scenario, mean of {runs} runs", xlim=(-3, 103)
    )
    truth = twin_auroc(audit, runs)
    right.set_title(
        f"AUROC {found.value:.3f} ({found.low:.3f} to {found.high:.3f}); exact {truth:.3f}", fontsize=9.5, loc="left"
    )
    return fig


def forest(
    ax: Axes,
    found: Mapping[str, Interval],
    *,
    roles: Sequence[str] = (),
    truths: Sequence[float] = (),
    bar: float | None = None,
) -> None:
    """Intervals by name, first on top; truths as dashes across them, `bar` as a line through all."""
    for row, (value, low, high) in enumerate(found.values()):
        color = plots.COLORS[roles[row] if len(roles) else "ours"]
        ax.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", color=color, markersize=5)
        if len(truths):
            ax.plot([truths[row]] * 2, [row - 0.25, row + 0.25], "--", color=plots.COLORS["truth"], linewidth=1.6)
    if bar is not None:
        ax.axvline(bar, color=plots.COLORS["truth"], linewidth=0.8)
    ax.set(yticks=range(len(found)), yticklabels=found, ylim=(len(found) - 0.5, -0.5))


def stability_figure(same: Any, fresh: Any, sd: float, reported: Mapping[int, float]) -> Figure:
    """Mean absolute deviations (runs,) of n-run means from the ten-run mean that they are part of and from ten fresh
    runs, in points, over the exact curves for normal noise of `sd`; `reported` figures by n as crosses."""
    n, fold = np.arange(1, len(np.asarray(same)) + 1), np.sqrt(2 / np.pi)
    fig, ax = plots.figure(width=7.6, height=3.8)
    for reference, measured, role in (
        ("same", same, "baseline"),
        ("fresh", fresh, "ours"),
        ("expectation", None, "other"),
    ):
        exact = sd * fold * deviation_sd(n, len(n), reference)
        plots.line(ax, n, exact, color=plots.COLORS[role])
        if measured is not None:
            ax.plot(n, measured, "o", color=plots.COLORS[role], markersize=5)
        said = {
            "same": "from the mean of the same ten",
            "fresh": "from ten fresh runs",
            "expectation": "from the expectation",
        }[reference]
        row = ("fresh", "expectation", "same").index(reference)
        ax.text(
            0.98,
            0.96 - 0.08 * row,
            said,
            color=plots.COLORS[role],
            ha="right",
            va="top",
            transform=ax.transAxes,
            fontsize=9,
        )
    ax.plot(list(reported), list(reported.values()), "x", color=plots.COLORS["truth"], markersize=9, markeredgewidth=2)
    ax.text(0.98, 0.72, "crosses: the paper's figures", ha="right", va="top", transform=ax.transAxes, fontsize=9)
    ax.set(xlabel="runs n in the mean", ylabel="mean absolute deviation, points", xticks=n, ylim=(0, None))
    return fig


def auditor_figure(targets: tuple[float, float], sd: float, strengths: Any, drawn: Mapping[str, np.ndarray]) -> Figure:
    """Exact scores of two targets against the auditor's strength, and their delta; drawn: "value", "low", "high"."""
    x = np.linspace(min(strengths) - 0.5, max(strengths) + 0.5, 200)
    fig, (left, right) = plots.figure(width=9.4, height=3.6, ncols=2)
    curves = [exact_score(target - x, sd) for target in targets]
    for curve, role, name in zip(curves, ("ours", "baseline"), ("safer target", "less safe target"), strict=True):
        left.plot(x, curve, color=plots.COLORS[role], linewidth=1.8)
        place = 0.98, 0.95 - 0.08 * (role == "baseline")
        left.text(*place, name, color=plots.COLORS[role], ha="right", va="top", fontsize=9, transform=left.transAxes)
    plots.line(right, x, curves[0] - curves[1], color=plots.COLORS["ours"])
    value, low, high = (np.asarray(drawn[name]) for name in ("value", "low", "high"))
    right.errorbar(
        strengths, value, yerr=[value - low, high - value], fmt="o", color=plots.COLORS["truth"], markersize=5
    )
    right.axhline(0, color=plots.COLORS["truth"], linewidth=0.8)
    left.set(xlabel="auditor's strength (latent shift)", ylabel="exact score", ylim=(0, 103))
    right.set(xlabel="auditor's strength (latent shift)", ylabel="delta of the two, points")
    return fig
