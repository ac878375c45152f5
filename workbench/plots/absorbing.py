"""Absorbing chains at a glance: the matrix and its risk by horizon, fits against a known truth, monitors' ROC curves.

Does: draw. Does not: fit or replay anything that `methods.tail_risk.absorbing_chains` and `safety_drift` do not give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench import plots
from workbench.methods.tail_risk.absorbing_chains import (
    bootstrap_risks,
    counts_by_group,
    fit_chain,
    posterior_risks,
    risk_table,
)
from workbench.methods.tail_risk.tool_lattice import LEVELS, draw_traces, level_chain, true_risks
from workbench.streams import Stream

TOY = np.array(
    [
        [0.80, 0.15, 0.04, 0.01, 0.00],
        [0.00, 0.70, 0.15, 0.10, 0.05],
        [0.00, 0.00, 0.65, 0.20, 0.15],
        [0.00, 0.00, 0.00, 0.60, 0.40],
        [0.00, 0.00, 0.00, 0.00, 1.00],
    ]
)
"""A made-up chain on the five levels; VIOLATED is the last."""
_SHADES = ("band", "ours", "other", "baseline", "truth")
_ENDS = np.arange(len(LEVELS)) == len(LEVELS) - 1


def toy_chain(climb: float, finish: float) -> tuple[np.ndarray, tuple[str, ...]]:
    """(transitions, names): the toy with its upward moves times `climb`, and, if finish > 0, a sixth state DONE that
    every transient level goes to with that probability a step, and that nothing leaves."""
    matrix = TOY * (1 - np.eye(5)) * climb
    matrix += np.diag(1 - matrix.sum(axis=1))
    if finish == 0:
        return matrix, LEVELS
    grown = np.zeros((6, 6))
    grown[:5, :5], grown[:4, 5] = matrix, finish
    grown[:4, :5] *= 1 - finish
    grown[5, 5] = 1
    return grown, (*LEVELS, "DONE")


def explorer_figure(climb: float, finish: float, horizon: int, threshold: float, leak: bool) -> Figure:
    """The toy's matrix, and the risk of each level by horizon; arguments of `toy_chain`, a horizon and a threshold to
    mark, and `leak`: whether the row of VIOLATED is left uniform, as in the released code."""
    matrix, names = toy_chain(climb, finish)
    if leak:
        matrix[4] = 1 / len(names)
    powers = [np.eye(len(names))[:, 4]]  # not risk_table, which refuses a leak
    for _ in range(60):
        powers.append(matrix @ powers[-1])
    risk = np.array(powers)
    fig, (left, right) = plots.figure(width=10.4, height=4.0, ncols=2, width_ratios=(1, 1.35))
    shade(left, matrix, names, names)
    left.set(xlabel="level after the step", ylabel="level before it")
    for level in range(4):
        color = plots.COLORS[_SHADES[level]]
        plots.line(
            right, np.arange(61), risk[:, level], label=f"{LEVELS[level]}  {risk[horizon, level]:.2f}", color=color
        )
    ends = _apart(risk[60, :4], 0.065)
    for text, place in zip(right.texts, ends, strict=True):
        text.xyann = (5, (place - text.xy[1]) * 185)
    right.axvline(horizon, color=plots.COLORS["truth"], linewidth=0.8)
    right.axhline(threshold, color=plots.COLORS["warn"], linestyle="--", linewidth=1.2)
    right.text(
        60,
        threshold + 0.01,
        f"threshold {threshold:.2f}",
        ha="right",
        va="bottom",
        color=plots.COLORS["warn"],
        fontsize=9,
    )
    flagged = [LEVELS[level] for level in range(4) if risk[horizon, level] >= threshold]
    right.set_title(f"flagged at h = {horizon}: {', '.join(flagged) or 'no level'}", fontsize=9.5, loc="left")
    right.set(xlabel="horizon h, steps", ylabel="P(VIOLATED within h steps)", ylim=(-0.02, 1.06), xlim=(0, 60))
    return fig


def _apart(values: np.ndarray, gap: float) -> np.ndarray:
    """The values moved up where needed so that labels at them do not overlap; their order is kept."""
    placed = values.astype(float).copy()
    for before, after in pairwise(np.argsort(values)):
        placed[after] = max(placed[after], placed[before] + gap)
    return placed - max(0.0, placed.max() - 1.03)


def shade(
    ax: Axes, table: np.ndarray, rows: Sequence[str], columns: Sequence[str], words: np.ndarray | None = None
) -> None:
    """A heat map of probabilities with its numbers, or `words`, in the cells."""
    ax.imshow(table, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        said = f"{value:.2f}".lstrip("0") if words is None else str(words[i, j])
        if words is not None or value > 0:
            ax.text(j, i, said, ha="center", va="center", fontsize=8.5, color="white" if value > 0.75 else "#222222")
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.grid(False)


def fitted_figure(policy: str, n: int, horizon: int, prior: float, *, stream: Stream) -> Figure:
    """Risk by level fitted from n traces of a policy: the two intervals, the large-sample fit, and the exact risk."""
    traces = draw_traces({policy: n}, stream.child("traces", n))
    counts = counts_by_group(traces.levels, 5)
    post = posterior_risks(counts.sum(axis=0), _ENDS, horizon, prior=prior, draws=400, stream=stream.child("posterior"))
    boot = bootstrap_risks(counts, _ENDS, horizon, draws=400, stream=stream.child("bootstrap"))
    point = risk_table(fit_chain(counts.sum(axis=0), _ENDS), _ENDS, horizon)[-1]
    limit, exact = risk_table(level_chain(policy), _ENDS, horizon)[-1], true_risks(policy, horizon)
    fig, ax = plots.figure(width=7.6, height=4.0)
    for shift, draws, role, name in (
        (-0.12, post, "ours", "Dirichlet posterior"),
        (0.12, boot, "baseline", "bootstrap over traces"),
    ):
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)[:, :4]
        ax.vlines(np.arange(4) + shift, low, high, color=plots.COLORS[role], linewidth=6, alpha=0.55)
        ax.plot([], [], color=plots.COLORS[role], linewidth=6, alpha=0.55, label=name)
    ax.plot(np.arange(4), point[:4], "o", color=plots.COLORS["ours"], markersize=5, label=f"fit from {n} traces")
    ax.plot(np.arange(4), limit[:4], "_", color=plots.COLORS["truth"], markersize=22, label="fit from endless traces")
    ax.plot(np.arange(4), exact[:4], "D", color=plots.COLORS["warn"], markersize=5, label="exact, 60 states")
    ax.set_xticks(range(4), LEVELS[:4])
    top = max(0.02, 1.08 * float(max(limit[:4].max(), exact[:4].max(), np.quantile(post[:, :4], 0.975, axis=0).max())))
    ax.set(ylabel=f"P(VIOLATED within {horizon} steps)", ylim=(-0.03 * top, min(top, 1.05)), xlim=(-0.5, 3.5))
    ax.set_title(f"{policy}: {int(traces.violated.sum())} of {n} traces violate", fontsize=9.5, loc="left")
    ax.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def risk_map(risk: np.ndarray, low: np.ndarray, high: np.ndarray, names: Sequence[str]) -> Figure:
    """risk, low, high (categories, 4): the look-up table of the monitor, with its intervals."""
    fig, ax = plots.figure(width=7.2, height=3.2)
    said = np.array(
        [
            [f"{r:.2f}\n{a:.2f} to {b:.2f}" for r, a, b in zip(*rows, strict=True)]
            for rows in zip(risk, low, high, strict=True)
        ]
    )
    shade(ax, risk, names, LEVELS[:4], said)
    ax.set_xlabel("level of risk now")
    return fig


def roc_figure(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, str]], points: Mapping[str, tuple[float, float, str]]
) -> Figure:
    """curves: name -> (false positive rates, detection rates, role); points: name -> (rate, detection, role), single
    rules."""
    fig, ax = plots.figure(width=6.4, height=4.6)
    ax.plot([0, 1], [0, 1], color=plots.COLORS["truth"], linewidth=0.8, linestyle=":")
    for (name, (fpr, detection, role)), style in zip(curves.items(), ("-", "--", "-", "-.", (0, (1, 1))), strict=False):
        ax.plot(fpr, detection, color=plots.COLORS[role], linewidth=1.8, linestyle=style, label=name)
    for name, (fpr, detection, role) in points.items():
        ax.plot(fpr, detection, "s", color=plots.COLORS[role], markersize=7, label=name)
    ax.set(xlabel="false positive rate", ylabel="violations announced", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(frameon=False, fontsize=8.5, loc="lower right")
    return fig


def survival_figure(
    observed: Mapping[str, tuple[np.ndarray, np.ndarray]],
    chains: Mapping[str, np.ndarray],
    exact: Mapping[str, np.ndarray],
) -> Figure:
    """observed: category -> (survival, standard error) by step; chains, exact: category -> survival by step, as far
    as wished."""
    fig, ax = plots.figure(width=8.2, height=4.0)
    last = 0
    for (name, (survival, error)), role in zip(observed.items(), ("baseline", "ours", "other", "warn"), strict=False):
        color, time = plots.COLORS[role], np.arange(len(survival))
        ax.fill_between(
            time,
            np.clip(survival - 1.96 * error, 0, 1),
            np.clip(survival + 1.96 * error, 0, 1),
            step="post",
            alpha=0.25,
            color=color,
            linewidth=0,
        )
        ax.step(time, survival, where="post", color=color, linewidth=2)
        ax.plot(chains[name], color=color, linestyle="--", linewidth=1.4)
        ax.plot(exact[name], color=color, linestyle=":", linewidth=1.4)
        ax.annotate(
            name,
            (len(chains[name]) - 1, chains[name][-1]),
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
        last = max(last, len(survival) - 1)
    ax.axvspan(last, max(map(len, chains.values())) - 1, color="#888888", alpha=0.10, linewidth=0)
    ax.text(last + 1, 0.03, "no trace reaches here", fontsize=9, color="#555555")
    for style, name in (("-", "observed (Kaplan-Meier)"), ("--", "fitted chain of five levels"), (":", "exact")):
        ax.plot([], [], color=plots.COLORS["truth"], linestyle=style, label=name)
    ax.set(xlabel="steps", ylabel="share without a violation", ylim=(0, 1.03), xlim=(0, None))
    ax.legend(frameon=False, fontsize=8.5, loc="upper right", bbox_to_anchor=(1.0, 0.82))
    return fig
