"""Methods side by side at equal spend: what each had said by the time it had spent as much as the others.

Does: keep a bounded trace of interim estimates; read off all traces at common amounts of spend; draw and tabulate them.
Does not: run anything, or hold a widget.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench import plots
from workbench.budget import UNITS
from workbench.estimate import Estimate

UNIT_NAMES = {unit: {"flops": "FLOPs", "usd": "USD"}.get(unit, unit.replace("_", " ")) for unit in UNITS}
_LONGEST_TRACE = 400
_ROLES = ("ours", "baseline", "other", "warn", "band")
_DASHES = ("-", "--", "-.", ":", "-")
Traces = Mapping[str, Sequence[Estimate]]


def add(trace: list[Estimate], estimate: Estimate) -> None:
    """Append to a trace; a long one loses every second entry of its older part, so that it stays bounded."""
    trace.append(estimate)
    if len(trace) > _LONGEST_TRACE:
        del trace[1:-2:2]


def amount(unit: str, value: float) -> str:
    """An amount of spend in words, e.g. "12,000 tokens"."""
    shown = f"{value:,.0f}" if unit in ("samples", "tokens", "model_calls") else f"{value:.3g}"
    return f"{shown} {UNIT_NAMES[unit]}"


@dataclass(frozen=True)
class Row:
    """What a method had said when it had spent `spent` of a unit; `point` is the common amount, None for the latest."""

    point: float | None
    method: str
    estimate: Estimate
    spent: float


def rows(traces: Traces, unit: str, points: int = 2) -> list[Row]:
    """For each method its latest estimate, and its last one at or before each common amount of spend.

    The common amounts are the largest `points` numbers 1, 2 or 5 times a power of ten that every method has passed.
    """
    begun = {name: trace for name, trace in traces.items() if trace}
    if not begun:
        return []
    found = [Row(None, name, trace[-1], getattr(trace[-1].spend, unit)) for name, trace in begun.items()]
    first = max(min(_spent(trace, unit), default=0.0) for trace in begun.values())
    last = min(row.spent for row in found)
    for point in sorted(_round_numbers(first, last), reverse=True)[: points if len(begun) > 1 else 0]:
        for name, trace in begun.items():
            before = [estimate for estimate in trace if getattr(estimate.spend, unit) <= point]
            found.append(Row(point, name, before[-1], getattr(before[-1].spend, unit)))
    return found


def _spent(trace: Sequence[Estimate], unit: str) -> list[float]:
    return [float(getattr(estimate.spend, unit)) for estimate in trace]


def _round_numbers(low: float, high: float) -> list[float]:
    if high <= 0:
        return []
    powers = range(math.floor(math.log10(max(low, high * 1e-6))), math.floor(math.log10(high)) + 1)
    return [times * 10.0**power for power in powers for times in (1, 2, 5) if low <= times * 10.0**power <= high]


def table(traces: Traces, unit: str, truth: float | None) -> str:
    """The rows as an HTML table; everything that comes from outside is escaped."""
    found = rows(traces, unit)
    if not found:
        return ""
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("method", "estimate", "interval", "standard error", f"spent, {UNIT_NAMES[unit]}", "reliable")
    )
    body, group = "", object()
    for row in found:
        if row.point != group:
            group = row.point
            title = "so far" if row.point is None else f"at {amount(unit, row.point)} each"
            body += f'<tr><th scope="colgroup" colspan="6">{title}</th></tr>'
        estimate = row.estimate
        cells = (
            "unknown" if estimate.value is None else f"{estimate.value:.4g}",
            f"{estimate.low:.3g} to {estimate.high:.3g} ({estimate.level:.4g}, {estimate.interval})",
            "" if estimate.std_error is None else f"{estimate.std_error:.2g}",
            f"{row.spent:,.0f}" if row.spent >= 1000 else f"{row.spent:.4g}",
            ("yes" if estimate.reliable else "no") + (f": {estimate.why}" if estimate.why else ""),
        )
        body += f'<tr><th scope="row">{html.escape(row.method)}</th>'
        body += "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    known = "" if truth is None else f" The truth is {truth:.4g}."
    return (
        '<table class="workbench-table"><caption>Each method\'s latest estimate, then at equal spend.'
        f"{known}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def draw(traces: Traces, unit: str, truth: float | None, limit: float | None = None) -> Figure:
    """Each method's estimate with its band against what it had spent; the truth dashed; the budget as a thin line.

    The vertical axis shows the latest intervals whole; wider, older ones run out of the picture.
    """
    width = 8.4
    fig, ax = plots.figure(width=width, height=3.9)
    # Fixed margins: axes that keep still while the numbers move, in half the time.
    fig.set_layout_engine("none")
    names = max((len(name) for name, trace in traces.items() if trace), default=0)
    ax.set_position((0.115, 0.135, 0.885 - (0.15 + 0.085 * min(names, 30)) / width, 0.835))
    ends = []
    for number, (name, trace) in enumerate(traces.items()):
        if not trace:
            continue
        values = [np.nan if estimate.value is None else estimate.value for estimate in trace]
        low, high = [estimate.low for estimate in trace], [estimate.high for estimate in trace]
        color, dashes = plots.COLORS[_ROLES[number % len(_ROLES)]], _DASHES[number % len(_DASHES)]
        plots.line(ax, _spent(trace, unit), values, color=color, low=low, high=high, linestyle=dashes)
        ends.append((name, _spent(trace, unit)[-1], trace[-1], color))
    spends: list[float] = [spent for trace in traces.values() for spent in _spent(trace, unit) if spent > 0]
    right = max([*spends, limit or 0.0]) or 1.0
    ax.set(
        xscale="log",
        xlim=(min([*spends, right / 10]), right * 1.02),
        ylim=_range([estimate for _, _, estimate, _ in ends], truth),
        xlabel=f"{UNIT_NAMES[unit]} spent by each method",
        ylabel="estimate, with its interval",
    )
    if truth is not None:
        plots.truth(ax, truth, f"truth {truth:.4g}")
    if limit is not None:
        ax.axvline(limit, color=plots.COLORS["truth"], linewidth=0.8)
        at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 9}
        ax.annotate("budget", (limit, 1), xytext=(-3, -3), ha="right", va="top", **at)
    _name_ends(ax, ends)
    return fig


def _range(latest: Sequence[Estimate], truth: float | None) -> tuple[float, float]:
    ends = [end for estimate in latest for end in (estimate.low, estimate.high) if math.isfinite(end)]
    ends += [] if truth is None else [truth]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    if not latest:
        low, high = min(0.0, low), 3 * high if high > 0 else 1.0
    margin = 0.35 * (high - low) or abs(high) or 1.0
    return (low - margin if low < 0 else max(-0.02 * (high + margin), low - margin)), high + margin


def _name_ends(ax: Axes, ends: Sequence[tuple[str, float, Estimate, str]]) -> None:
    """Each line's name at its right end, moved apart where the ends lie close."""
    low, high = ax.get_ylim()
    placed, floor = [], -math.inf
    for name, _, estimate, color in sorted(ends, key=lambda end: end[2].value or end[2].low):
        value = estimate.low if estimate.value is None else estimate.value
        at = min(max((value - low) / (high - low), 0.03), 0.97)
        floor = max(at, floor + 0.08)
        placed.append((name, floor, color))
    for name, at, color in placed:
        where = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center", "fontsize": 9}
        ax.annotate(name, (1, at), xytext=(6, 0), color=color, annotation_clip=False, **where)


def describe(traces: Traces, unit: str, truth: float | None) -> str:
    """The figure in words, for those who can't see it."""
    said = [
        f"{row.method} says {'nothing yet' if row.estimate.value is None else f'{row.estimate.value:.3g}'}, between "
        f"{row.estimate.low:.3g} and {row.estimate.high:.3g}, after {amount(unit, row.spent)}"
        for row in rows(traces, unit)
        if row.point is None
    ]
    known = [] if truth is None else [f"the truth is {truth:.3g}"]
    return (
        f"Estimates against {UNIT_NAMES[unit]} spent: " + ("; ".join([*said, *known]) or "nothing has been run") + "."
    )
