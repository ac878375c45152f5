"""Calibration against the level asked for: how large the sets are, how often they keep their promise, by groups.

Does: draw what a conformal method gives at every alpha, and mark the chosen one.
Does not: calibrate anything; a method gives the curves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench import plots
from workbench.errors import refuse, require_finite, require_probability

_ROLES = ("baseline", "other", "warn", "band")


@dataclass(frozen=True)
class Calibration:
    """What a method gives at each alpha of `alphas` (A,) rising in (0, 1).

    kept    (A,) probability that the promise is kept, to be held against 1 - alpha
    size    (A,) how large the set or bound is, in the unit that `size_label` names; inf where it says nothing
    groups  name -> (A,): `kept` of subgroups, or of other methods
    law     (x, probabilities) of the quantity that the promise is about, at the chosen alpha; `law_label` names x
    bar     the value of x from which on the promise is kept (up to which, where `below`)
    said    a sentence about the chosen alpha
    """

    alphas: np.ndarray
    kept: np.ndarray
    size: np.ndarray
    size_label: str = "size of the set"
    kept_label: str = "probability that the promise is kept"
    name: str = "kept"
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    law: tuple[np.ndarray, np.ndarray] | None = None
    law_label: str = ""
    bar: float | None = None
    below: bool = False
    said: str = ""

    def __post_init__(self) -> None:
        alphas = require_finite("alphas", self.alphas, "pass e.g. np.linspace(0.01, 0.5, 50)")
        if alphas.ndim != 1 or len(alphas) < 2 or (np.diff(alphas) <= 0).any() or alphas[0] <= 0 or alphas[-1] >= 1:
            raise refuse("alphas", self.alphas, "be two or more numbers in (0, 1) that rise", "sort them")
        for name, values in {"kept": self.kept, "size": self.size, **self.groups}.items():
            if np.shape(values) != alphas.shape:
                must = f"have the shape of alphas, {alphas.shape}"
                raise refuse(f"the shape of {name}", np.shape(values), must, "give one value for each alpha")


def calibration_figure(found: Calibration, alpha: float) -> Figure:
    """Three panels (two where there is no law): the law at alpha, the size and the promise kept against alpha."""
    require_probability("alpha", alpha, cure="pass e.g. alpha=0.1")
    fig, axes = plots.figure(width=10.2 if found.law else 7.4, height=3.9, ncols=3 if found.law else 2)
    *first, size, kept = axes
    for ax in first:
        _draw_law(ax, found)
    shown = np.isfinite(found.size)
    size.plot(found.alphas[shown], found.size[shown], drawstyle="steps-post", color=plots.COLORS["ours"])
    at = _at(found.alphas, found.size, alpha)
    if np.isfinite(at):
        size.plot([alpha], [at], "o", color=plots.COLORS["ours"], markersize=7)
    if not shown.all():
        size.set_title("no bound left of the line", fontsize=9, loc="left")
    size.set(xlabel="alpha", ylabel=found.size_label)
    kept.plot(found.alphas, 1 - found.alphas, "--", color=plots.COLORS["truth"], linewidth=1.2)
    third = len(found.alphas) // 3
    place = (found.alphas[third], 1 - found.alphas[third])
    kept.annotate("1 - alpha", place, xytext=(-3, -12), textcoords="offset points", ha="right", fontsize=9)
    for (name, values), role in zip({found.name: found.kept, **found.groups}.items(), ("ours", *_ROLES), strict=False):
        kept.plot(found.alphas, values, drawstyle="steps-post", color=plots.COLORS[role], linewidth=1.6)
        place = (found.alphas[2 * third], values[2 * third])
        look = {"textcoords": "offset points", "color": plots.COLORS[role], "fontsize": 9}
        kept.annotate(name, place, xytext=(0, 6), **look)
    kept.plot([alpha], [_at(found.alphas, found.kept, alpha)], "o", color=plots.COLORS["ours"], markersize=7)
    kept.set(xlabel="alpha", ylabel=found.kept_label, ylim=(None, 1.04))
    for ax in axes:
        ax.locator_params(nbins=5)  # a tick costs a millisecond, and somebody is dragging a slider
    if found.said:
        fig.suptitle(found.said, fontsize=9.5, x=0.01, ha="left")
    return fig


def _at(alphas: np.ndarray, values: np.ndarray, alpha: float) -> float:
    """The value of a step function at alpha: that of the last grid point at or below it."""
    return float(values[max(0, int(np.searchsorted(alphas, alpha + 1e-12, side="right")) - 1)])


def _draw_law(ax: Axes, found: Calibration) -> None:
    assert found.law is not None
    x, law = found.law
    ax.fill_between(x, law, step="mid", color=plots.COLORS["ours"], alpha=0.45)
    if found.bar is not None:
        broken = x > found.bar if found.below else x < found.bar
        ax.fill_between(x, np.where(broken, law, 0), step="mid", color=plots.COLORS["baseline"], alpha=0.7)
        plots.truth(ax, found.bar, "promise", vertical=True)
    seen = np.flatnonzero(law > 1e-4 * law.max())
    step = x[1] - x[0]
    low, high = x[seen[0]] - 2 * step, x[seen[-1]] + 2 * step
    if found.bar is not None:
        low, high = min(low, found.bar - 2 * step), max(high, found.bar + 2 * step)
    ax.set(xlabel=found.law_label, ylabel="probability", xlim=(low, high), ylim=(0, 1.1 * law.max()))
