"""Risk against compute: a risk that grows with the number of tries, the tries for a target, and what they cost.

Does: read tries off a curve with its band; turn tries into tokens, FLOPs and USD; draw all of it in one figure.
Does not: estimate a curve; a method gives it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.budget import Spend
from workbench.errors import refuse, require_choice, require_finite, require_number, require_probability

UNITS = ("tokens", "flops", "usd")


@dataclass(frozen=True)
class RiskCurve:
    """A risk by tries: tries (G,) rising, risk (G,) in [0, 1], its band and the known truth (G,) or None.

    seen   tries a query that the curve was fitted on; beyond them it extrapolates
    """

    tries: np.ndarray
    risk: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    truth: np.ndarray | None = None
    seen: float | None = None
    name: str = "estimate"

    def __post_init__(self) -> None:
        tries = require_finite("tries", self.tries, "pass the numbers of tries, e.g. np.geomspace(1, 10_000, 60)")
        if tries.ndim != 1 or len(tries) < 2 or tries[0] <= 0 or (np.diff(tries) <= 0).any():
            raise refuse("tries", self.tries, "be two or more positive numbers that rise", "sort them")
        for name in ("risk", "low", "high", "truth"):
            values = getattr(self, name)
            if values is not None and np.shape(values) != tries.shape:
                must = f"have the shape of tries, {tries.shape}"
                raise refuse(f"the shape of {name}", np.shape(values), must, "give one value for each of tries")
        require_finite("risk", self.risk, "leave out the tries at which the risk is unknown")


@dataclass(frozen=True)
class Price:
    """What one try costs. A model of P parameters does about 2 P floating-point operations a token."""

    tokens_per_try: float = 200
    usd_per_1000_tokens: float = 0.002
    parameters: float = 8e9

    def of(self, tries: float) -> Spend:
        """The cost of `tries`: tokens, FLOPs = 2 x parameters x tokens, USD = tokens / 1000 x price."""
        tries = require_number("tries", tries, low=0, cure="pass how many tries are made")
        tokens = tries * require_number("tokens_per_try", self.tokens_per_try, low=0, cure="pass e.g. 200")
        price = require_number("usd_per_1000_tokens", self.usd_per_1000_tokens, low=0, cure="pass e.g. 0.002")
        size = require_number("parameters", self.parameters, low=0, cure="pass the model's size, e.g. 8e9")
        return Spend(tokens=tokens, flops=2 * size * tokens, usd=tokens / 1000 * price)


def tries_for(curve: RiskCurve, target: float) -> tuple[float, float, float]:
    """(N, low, high): the tries at which the risk first reaches `target`, linear in log N between grid points.

    low is read off the band's upper edge and high off its lower one. Infinite where the target lies beyond the
    curve's last point; the first point where it is reached there already; low = 0 and high = inf without a band.
    """
    require_probability("target", target, cure="pass a risk such as 0.9")

    def first(values: np.ndarray) -> float:
        reached = np.flatnonzero(values >= target)
        if not reached.size:
            return np.inf
        at = int(reached[0])
        if at == 0:
            return float(curve.tries[0])
        share = (target - values[at - 1]) / (values[at] - values[at - 1])
        low, high = np.log(curve.tries[at - 1 : at + 1])
        return float(np.exp(low + share * (high - low)))

    risk = np.asarray(curve.risk, dtype=np.float64)
    low = first(np.asarray(curve.high)) if curve.high is not None else 0.0
    return first(risk), low, first(np.asarray(curve.low)) if curve.low is not None else np.inf


def risk_figure(curve: RiskCurve, planned: float, target: float, price: Price, unit: str = "tokens") -> Figure:
    """The curve with its band and truth, the risk at `planned` tries, the tries for `target`, and their cost.

    The upper axis says what the tries cost a query, in `unit`: "tokens", "flops" or "usd".
    """
    require_choice("unit", unit, UNITS)
    planned = require_number("planned", planned, low=0, open_low=True, cure="plan at least one try")
    fig, ax = plots.figure(width=7.6, height=4.6)
    low, high = (None if edge is None else 100 * np.asarray(edge) for edge in (curve.low, curve.high))
    plots.line(ax, curve.tries, 100 * np.asarray(curve.risk), label=curve.name, low=low, high=high)
    if curve.truth is not None:
        ax.plot(curve.tries, 100 * np.asarray(curve.truth), "--", color=plots.COLORS["truth"], linewidth=1.2)
        ax.text(0.99, 0.02, "dashed: truth", ha="right", fontsize=9, transform=ax.transAxes)
    ax.set(xscale="log", ylim=(0, 100), xlim=(curve.tries[0], curve.tries[-1] * 3))
    ax.minorticks_off()
    ax.set(xlabel="tries per query N", ylabel="risk: queries broken at least once, %")
    if curve.seen is not None:
        ax.axvline(curve.seen, color=plots.COLORS["truth"], linewidth=0.6)
        ax.annotate(
            f"n = {curve.seen:,.0f} seen", (curve.seen, 1), xytext=(4, 0), textcoords="offset points", fontsize=9
        )
    risk = float(np.interp(np.log(planned), np.log(curve.tries), curve.risk))
    ax.plot([planned], [100 * risk], "o", color=plots.COLORS["ours"], markersize=8)
    needed, soonest, latest = tries_for(curve, target)
    ax.axhline(100 * target, color=plots.COLORS["baseline"], linewidth=0.8, linestyle=":")
    if np.isfinite(needed):
        ax.plot([needed], [100 * target], "D", color=plots.COLORS["baseline"], markersize=7)
    each = getattr(price.of(1), unit)
    if each > 0:
        above = ax.secondary_xaxis("top", functions=(lambda x: x * each, lambda x: x / each))
        above.set_xlabel(f"cost a query, {_SAID[unit]}", fontsize=9)
        above.tick_params(labelsize=8)
        above.minorticks_off()
    interval = _percent_band(curve, planned)
    ax.set_title(
        f"N = {planned:,.0f}: risk {100 * risk:.1f} %{interval}, at {cost_in_words(price.of(planned))} a query\n"
        + _needed_in_words(target, needed, soonest, latest, price),
        fontsize=9.5,
        loc="left",
    )
    return fig


_SAID = {"tokens": "tokens", "flops": "FLOPs", "usd": "USD"}


def cost_in_words(cost: Spend) -> str:
    """ "200,000 tokens, 3.2e+15 FLOPs, 0.4 USD"."""
    return f"{cost.tokens:,.0f} tokens, {cost.flops:.2g} FLOPs, {cost.usd:.3g} USD"


def _percent_band(curve: RiskCurve, planned: float) -> str:
    if curve.low is None or curve.high is None:
        return ""
    low, high = (100 * np.interp(np.log(planned), np.log(curve.tries), edge) for edge in (curve.low, curve.high))
    return f" ({low:.1f} to {high:.1f})"


def _needed_in_words(target: float, needed: float, low: float, high: float, price: Price) -> str:
    if not np.isfinite(needed):
        return f"{100 * target:.0f} % is not reached on this curve"
    ends = f"{low:,.0f} to {high:,.0f}" if np.isfinite(high) else f"from {low:,.0f}" if low else ""
    between = f" ({ends})" if ends else ""
    return f"{100 * target:.0f} % takes {needed:,.0f} tries{between}: {cost_in_words(price.of(needed))} a query"
