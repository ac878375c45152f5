"""A proposal of importance sampling at a glance: its weights, and the exact variance ratio around it.

Does: draw a histogram of log-weights and a map of variance ratios over strength and switch.
Does not: draw samples or sum anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.errors import refuse, require_finite


def proposal_figure(
    log_weight: np.ndarray,
    hit: np.ndarray,
    ratios: np.ndarray,
    strengths: Sequence[float],
    switches: Sequence[str],
    *,
    at: tuple[int, int],
    value: float,
    std_error: float,
    truth: float | None = None,
    tends_to: float | None = None,
    said: str = "",
) -> Figure:
    """log_weight (k,) and hit (k,) of the draws; ratios (strengths, switches) Var_MC / Var_IS.

    at        (row, column) of the proposal in use, ringed on the map
    value     the estimate, with `std_error`; truth the exact risk; tends_to what a wrong weight makes it tend to
    """
    log_weight = require_finite("log_weight", log_weight, "leave out draws of weight 0")
    if ratios.shape != (len(strengths), len(switches)):
        must = f"have shape ({len(strengths)}, {len(switches)})"
        raise refuse("the shape of ratios", ratios.shape, must, "give one ratio for each strength and switch")
    fig, (left, right) = plots.figure(width=9.6, height=4.1, ncols=2)
    _draw_weights(left, log_weight / np.log(10), np.asarray(hit))
    at_truth = "" if truth is None else f", exact {truth:.3g} ({round(100 * (value / truth - 1)):+d} %)"
    wrong = "" if tends_to is None else f"\nmore draws would bring it to {tends_to:.3g}, not to the truth"
    hits = f"{np.sum(hit):,} of {len(hit):,} draws hit (dark)"
    left.set_title(f"{hits}\nestimate {value:.3g} ± {std_error:.1g}{at_truth}{wrong}", fontsize=9.5, loc="left")
    _draw_map(right, ratios, strengths, switches, at)
    if said:
        fig.suptitle(said, fontsize=9.5, x=0.01, ha="left")
    return fig


def _draw_weights(ax, decades: np.ndarray, hit: np.ndarray) -> None:
    low, high = min(float(decades.min()), -0.5), max(float(decades.max()), 0.5)
    bins = np.linspace(low, high, 41)
    for chosen, role in ((~hit, "band"), (hit, "ours")):
        ax.hist(decades[chosen], bins, color=plots.COLORS[role], alpha=0.75)
    plots.truth(ax, 0.0, "weight 1", vertical=True)
    ax.set(xlabel="log10 of the weight w = p / q", ylabel="draws")
    ax.set_yscale("symlog", linthresh=10)
    ax.minorticks_off()
    ax.locator_params(axis="x", nbins=6)


def _draw_map(ax, ratios: np.ndarray, strengths: Sequence[float], switches: Sequence[str], at: tuple[int, int]):
    decades = np.log10(np.clip(ratios, 1e-6, 1e6))
    # Symmetric, so that white is "no gain"; brown and violet differ for every eye.
    limit = max(1.0, float(np.abs(decades).max()))
    ax.imshow(decades, aspect="auto", cmap="PuOr", vmin=-limit, vmax=limit, origin="lower")
    for (row, column), ratio in np.ndenumerate(ratios):
        text = f"{ratio:.2g}" if ratio < 1000 else f"{ratio:.0e}"
        color = "white" if abs(decades[row, column]) > 0.6 * limit else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks(range(len(switches)), switches)
    ax.set_yticks(range(len(strengths)), [f"{strength:g}" for strength in strengths])
    for color, width in (("white", 4.5), ("black", 1.8)):  # seen on dark and on light cells
        ax.plot([at[1]], [at[0]], "o", ms=22, mfc="none", mec=color, mew=width, clip_on=False)
    ax.set(xlabel="switch to the base model after token", ylabel="steering strength")
    ax.set_title("exact variance ratio, Monte Carlo / importance sampling", fontsize=9.5, loc="left")
    ax.grid(False)
