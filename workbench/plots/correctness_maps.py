"""What distributional correctness rewards: maps over the simplex of masses, best abstention, scores of classifiers.

Does: draw. Does not: fit, or score anything that `methods.tail_risk.distributional_correctness` does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.errors import require_choice
from workbench.methods.tail_risk.distributional_correctness import answers, dcs, item_scores, threshold

SCORES = ("DCS, product form", "DCS, linear form", "ternary", "negative Brier")
_LINES = ("baseline", "warn", "truth", "other", "ours")


def simplex_score(
    score: str, right: Any, wrong: Any, idk: Any, l_right: float = 1.0, l_wrong: float = 1.0
) -> np.ndarray:
    """One of `SCORES` at masses (...) that add up to 1, with one right and one wrong option; loadings free."""
    require_choice("score", score, SCORES)
    loadings: dict[str, Any] = {"l_right": l_right, "l_wrong": l_wrong, "high_stakes": True}
    if score.startswith("DCS"):
        return dcs(right, wrong, idk, form=score.split()[1], **loadings)
    table = np.stack([np.ravel(mass) for mass in (right, wrong, idk)], axis=1)
    found = item_scores(answers(table, np.zeros(len(table), dtype=int), idk=2), **loadings)
    return (found["ternary"] if score == "ternary" else -found["Brier"]).reshape(np.shape(right))


def simplex_figure(l_right: float, l_wrong: float, score: str) -> Figure:
    """Left: the score over all ways to spread the mass, one right and one wrong option. Right: the score against the
    mass u of "I don't know" for five shares x of the right option in what is answered; a dot where it is largest."""
    fig, (left, right) = plots.figure(width=9.8, height=4.1, ncols=2)
    fine = np.linspace(0, 1, 161)
    u, x = np.meshgrid(fine, fine)
    values = simplex_score(score, x * (1 - u), (1 - x) * (1 - u), u, l_right, l_wrong)
    across, up = x * (1 - u) + u / 2, u * np.sqrt(0.75)
    most = float(np.abs(values).max())
    image = left.pcolormesh(across, up, values, cmap="PuOr", vmin=-most, vmax=most, shading="gouraud")
    if values.min() < 0 < values.max() and score != "ternary":
        left.contour(across, up, values, levels=[0.0], colors=plots.COLORS["truth"], linewidths=1.2)
    for place, name, side in (((0, 0), "all wrong", "left"), ((1, 0), "all right", "right")):
        left.annotate(name, place, xytext=(0, -6), textcoords="offset points", ha=side, va="top", fontsize=9)
    left.annotate(
        "all on I don't know", (0.5, np.sqrt(0.75)), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=9
    )
    left.set(xticks=[], yticks=[], xlim=(-0.05, 1.05), ylim=(-0.1, 0.97), aspect="equal")
    left.grid(False)
    left.spines[:].set_visible(False)
    left.set_title(
        score + (", line: 0" if values.min() < 0 < values.max() and score != "ternary" else ""),
        fontsize=9.5,
        loc="left",
    )
    fig.colorbar(image, ax=left, shrink=0.75)

    theta, starts = threshold(l_right, l_wrong), []
    for share, role in zip((0.15, 0.35, theta, 0.65, 0.85), _LINES, strict=True):
        along = simplex_score(score, share * (1 - fine), (1 - share) * (1 - fine), fine, l_right, l_wrong)
        best = int(np.round(along, 9).argmax())
        plots.line(right, fine, along, color=plots.COLORS[role], linestyle="--" if role == "truth" else "-")
        right.plot(fine[best], along[best], "o", color=plots.COLORS[role])
        name = f"x = {share:.2f}" + (" (theta)" if role == "truth" else "")
        above = (-4, 11 * starts.count(along[0]))
        right.annotate(name, (0, along[0]), xytext=above, textcoords="offset points", color=plots.COLORS[role],
                       ha="right", va="center", fontsize=8.5, annotation_clip=False)  # fmt: skip
        starts.append(along[0])
    right.set(xlabel="u, mass on I don't know", ylabel="score", xlim=(-0.42, 1.02), xticks=np.linspace(0, 1, 6))
    return fig


def phrases_figure(masses: Mapping[str, Sequence[float]], scores: Mapping[str, tuple[float, float]]) -> Figure:
    """masses: {setting: mean mass on right, wrong, IDK}; scores: {setting: mean DCS and its standard error}."""
    fig, (left, right) = plots.figure(width=9.8, height=0.9 + 0.45 * len(masses), ncols=2, sharey=True)
    rows = np.arange(len(masses))[::-1]
    start = np.zeros(len(rows))
    for part, (name, role) in enumerate((("right", "ours"), ("wrong", "baseline"), ("I don't know", "other"))):
        width = np.array([parts[part] for parts in masses.values()])
        left.barh(rows, width, left=start, color=plots.COLORS[role], height=0.7)
        left.text(0.02 + 0.3 * part, 1.02, name, color=plots.COLORS[role], fontsize=9, transform=left.transAxes)
        start = start + width
    means, errors = np.array([scores[name] for name in masses]).T
    right.errorbar(means, rows, xerr=1.96 * errors, fmt="o", color=plots.COLORS["ours"])
    plots.truth(right, 0.0, "abstain", vertical=True)
    left.set(yticks=rows, yticklabels=list(masses), xlabel="mean mass", xlim=(0, 1))
    right.set(xlabel="mean DCS, 95 %")
    return fig


def scatter_figure(found: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """found: {task: {classifier: accuracy, DCS, mean mass on IDK}}. Left: DCS against accuracy, a line a task from its
    worst to its best classifier by accuracy. Right: DCS against the mass of IDK."""
    fig, (left, right) = plots.figure(width=9.8, height=4.2, ncols=2, sharey=True)
    for of in found.values():
        accuracy, score, idk = np.array(sorted(of.values())).T
        inside = plots.COLORS["baseline"] if score.max() < 0 else plots.COLORS["ours"]
        left.plot(accuracy, score, "o-", color=inside, markersize=4, linewidth=0.8, alpha=0.8)
        right.plot(idk, score, "o", color=inside, markersize=4, alpha=0.8)
    grid = np.linspace(0.2, 1, 20)
    left.plot(grid, 2 * grid - 1, "--", color=plots.COLORS["truth"], linewidth=1.1)
    left.text(
        0.98, 0.04, "dashed: all mass on one option, 2 accuracy - 1", ha="right", fontsize=9, transform=left.transAxes
    )
    plots.truth(right, 0.0, "abstain")
    left.axhline(0.0, color=plots.COLORS["truth"], linewidth=0.8)
    left.set(xlabel="accuracy of the top option", ylabel="mean DCS")
    right.set(xlabel="mean mass on I don't know")
    right.set_title("red: tasks where all classifiers score below 0", fontsize=9.5, loc="left")
    return fig
