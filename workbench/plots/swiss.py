"""Swiss rounds at a glance: expected wins with their byes, profiles under removal, ranks that move with the method or
the order.

Does: draw, and play the small tournaments of the explorers. Does not: choose tables; see
`methods.tail_risk.swiss_round`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from workbench import plots
from workbench.methods.tail_risk.swiss_round import play, sensitivity, win_tensor
from workbench.methods.tail_risk.swiss_round_tables import ItemTable, mean_score, places, planted_scores
from workbench.streams import Stream


def toy_figure(
    models: int, tasks: int, failures: str, eliminate: int, seasons: int, bye: str, *, stream: Stream
) -> Figure:
    """A planted table (model 3 is the specialist): E[S] and byes of each model, and the games played in each round."""
    scores = planted_scores(stream.child("scores"), failures=failures, models=models, tasks=tasks)
    win = win_tensor(scores, stream.child("ties"))
    out = min(eliminate, models - 1)
    found = play(win, eliminate=out, seasons=seasons, bye={"0": 0.0, "1/2": 0.5}[bye], stream=stream.child("pairings"))
    fig, (left, right) = plots.figure(width=10.0, height=3.8, ncols=2, width_ratios=(1.5, 1))
    x = np.arange(models)
    colors = [plots.COLORS["baseline" if m == 2 and failures != "none" else "ours"] for m in x]
    left.bar(x, found.mean, color=colors, width=0.7)
    left.errorbar(x, found.mean, yerr=1.96 * found.std_error, fmt="none", ecolor=plots.COLORS["truth"], capsize=3)
    left.plot(x, found.byes, "v", color=plots.COLORS["warn"], markersize=7)
    left.plot(
        x,
        win.sum(axis=(0, 2)) / (models - 1) - 0.5 * tasks / (models - 1),
        "_",
        color=plots.COLORS["truth"],
        markersize=20,
    )
    left.set_xticks(x, [str(m + 1) for m in x])
    left.set(
        xlabel="model (3 is the specialist)" if failures != "none" else "model",
        ylabel="a season",
        ylim=(0, tasks * 1.02),
    )
    left.set_title("bars: expected wins   triangles: byes   dashes: wins if all met all", fontsize=9, loc="left")
    right.bar(np.arange(1, tasks + 1), found.games, color=plots.COLORS["other"], width=0.7)
    plots.truth(right, models // 2, "as many as could be played")
    right.set(xlabel="round", ylabel="games played", ylim=(0, models // 2 * 1.25 + 0.2))
    return fig


def table_figure(table: ItemTable, model: int, zeroed: int, where: str, eliminate: int, *, stream: Stream) -> Figure:
    """The table's E[S] before and after `zeroed` scores of one model are set to 0, the first or the last ones, beside
    the mean."""
    scores, changed = table.scores, table.scores.copy()
    changed[model, slice(0, zeroed) if where == "first" else slice(changed.shape[1] - zeroed, None)] = 0
    wins = [
        play(win_tensor(one, stream.child("ties")), eliminate=eliminate, seasons=2000, stream=stream.child("p")).mean
        for one in (scores, changed)
    ]
    rows = {
        "mean score": (places(mean_score(scores)), places(mean_score(changed))),
        "Swiss round": (places(wins[0]), places(wins[1])),
    }
    fig, axes = plots.figure(width=9.6, height=4.2, ncols=2, sharey=True)
    for ax, (name, (before, after)) in zip(axes, rows.items(), strict=True):
        _flow(ax, before, after, table.models, ("as measured", f"{zeroed} scores set to 0"), highlight=model)
        ax.set_title(f"{name}: place {before[model]:g} to {after[model]:g}", fontsize=9.5, loc="left")
    axes[0].set_ylabel("place")
    return fig


def _flow(
    ax: Axes,
    before: np.ndarray,
    after: np.ndarray,
    names: Sequence[str],
    ends: tuple[str, str],
    *,
    highlight: int | None = None,
) -> None:
    for m, name in enumerate(names):
        mine = m == highlight
        color = plots.COLORS["baseline"] if mine else plots.COLORS["ours"]
        ax.plot(
            [0, 1],
            [before[m], after[m]],
            color=color,
            linewidth=2.4 if mine else 1.2,
            alpha=1 if mine else 0.55,
            marker="o",
            markersize=4,
        )
        ax.annotate(
            name,
            (1, after[m]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
            annotation_clip=False,
        )
    ax.set(xlim=(-0.08, 1.05), ylim=(len(names) + 0.6, 0.4))
    ax.set_xticks([0, 1], ends)
    ax.grid(False)


def profile_figure(names: Sequence[str], profile: np.ndarray, error: np.ndarray) -> Figure:
    """E[S](T) of each model, (levels, M), coloured by its relative slope; made by `failure_profile`."""
    _, relative = sensitivity(profile)
    fig, ax = plots.figure(width=7.4, height=4.4)
    scale = _scale(relative)
    for m in range(len(names)):
        color = scale.to_rgba(relative[m])
        ax.errorbar(
            np.arange(len(profile)),
            profile[:, m],
            yerr=1.96 * error[:, m],
            color=color,
            linewidth=1.8,
            marker="o",
            markersize=3,
        )
    ends = _apart(profile[0], 0.034 * max(profile.max(), 1e-9))
    for m, name in enumerate(names):
        ax.annotate(
            name,
            (0, ends[m]),
            xytext=(-7, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    ax.set(xlabel="T, models removed after each round", ylabel="expected wins", xlim=(-0.05, len(profile) - 0.95))
    ax.set_xticks(range(len(profile)))
    ax.yaxis.set_label_coords(-0.28, 0.5)
    ax.tick_params(axis="y", pad=2)
    ax.yaxis.tick_right()
    fig.colorbar(scale, ax=ax, label="slope a step of T, as a share of E[S](0)", pad=0.09)
    return fig


def _scale(values: np.ndarray) -> ScalarMappable:
    """A colour scale over the values, dark where they are lowest."""
    return ScalarMappable(Normalize(float(values.min()), float(max(values.max(), values.min() + 1e-9))), "viridis")


def _apart(values: np.ndarray, gap: float) -> np.ndarray:
    """The values moved up where needed so that labels at them do not overlap; their order is kept."""
    placed, order = values.astype(float).copy(), np.argsort(values)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    return placed


def intervals_figure(names: Sequence[str], wins: np.ndarray, pairing: np.ndarray, items: np.ndarray) -> Figure:
    """E[S] (M,) with two 95 % intervals: from random pairings, SE `pairing` (M,), and from resampled items, `items`
    (B, M)."""
    fig, ax = plots.figure(width=7.2, height=4.2)
    order = np.argsort(wins)
    low, high = np.quantile(items, [0.025, 0.975], axis=0)[:, order]
    y = np.arange(len(order))
    ax.hlines(y, low, high, color=plots.COLORS["baseline"], linewidth=7, alpha=0.45)
    ax.errorbar(
        wins[order], y, xerr=1.96 * pairing[order], fmt="o", color=plots.COLORS["ours"], markersize=4, capsize=4
    )
    ax.set_yticks(y, [names[m] for m in order])
    ax.plot([], [], color=plots.COLORS["baseline"], linewidth=7, alpha=0.45, label="items drawn anew")
    ax.plot(
        [],
        [],
        "o",
        color=plots.COLORS["ours"],
        markersize=4,
        label="random pairings, 100,000 seasons",
    )
    ax.set(xlabel="expected wins of 14")
    ax.legend(frameon=False, fontsize=8.5, loc="lower right")
    return fig


def order_figure(names: Sequence[str], ranks: Mapping[str, np.ndarray]) -> Figure:
    """A heat map of places (orders, M) over shuffled orders of the benchmarks, one panel a setting; models by mean
    place."""
    fig, axes = plots.figure(width=9.8, height=4.2, ncols=len(ranks), sharey=True)
    first = np.argsort(next(iter(ranks.values())).mean(axis=0))
    for ax, (title, table) in zip(np.atleast_1d(axes), ranks.items(), strict=True):
        shown = ax.imshow(
            table[:, first].T, aspect="auto", cmap="viridis_r", vmin=1, vmax=len(names), interpolation="nearest"
        )
        ax.set_title(title, fontsize=9.5, loc="left")
        ax.set(xlabel="order of the benchmarks, shuffled")
        ax.set_yticks(range(len(names)), [names[m] for m in first], fontsize=8)
        ax.grid(False)
    fig.colorbar(shown, ax=axes, label="place")
    return fig
