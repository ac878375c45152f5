"""A claim's measured values drawn to scale against its passing region, as numbers that a template turns into SVG.

Does: one axis, one lane a value (seeds, control, earlier runs), the region that passes, ticks at round numbers.
Does not: colour or mark up anything; templates and style sheet do.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from workbench.errors import WorkbenchError
from workbench.papers import Condition

WIDTH, MARGIN, LANE, TOP, BOTTOM = 360.0, 14.0, 18.0, 20.0, 18.0


@dataclass(frozen=True)
class Lane:
    """One value on the axis, in pixels; `beyond` is -1 or 1 where the value lies off the drawn part."""

    label: str
    kind: str
    y: float
    low: float
    high: float
    value: float
    beyond: int
    said: str


@dataclass(frozen=True)
class Drawing:
    """What a template needs: sizes in pixels, passing stretches (left, width), bars and ticks (x, text), lanes."""

    width: float
    height: float
    left: float
    passing: list[tuple[float, float]]
    bars: list[float]
    ticks: list[tuple[float, str]]
    lanes: list[Lane]


def said(row: dict[str, Any]) -> str:
    """A row's value with its interval, to four digits; empty if nothing was measured."""
    if row["value"] is None:
        return ""
    if row["low"] == row["high"]:
        return f"{row['value']:.4g}"
    return f"{row['value']:.4g} ({row['low']:.4g} to {row['high']:.4g})"


def draw(lanes: list[tuple[str, str, dict[str, Any]]], passes: str) -> Drawing | None:
    """`lanes` are (label, kind, claims row) from top to bottom; kind "ours" sets the scale, others are clipped to
    ten times its span. None if no lane has a value, or `passes` is no pass condition."""
    shown = [(label, kind, row) for label, kind, row in lanes if row["value"] is not None]
    try:
        condition = Condition(passes)
    except WorkbenchError:
        return None
    if not shown:
        return None
    bars = sorted({float(word) for word in passes.removeprefix("in").strip("<>= []").split(",")})
    labelled = len(shown) > 1
    left = 84.0 if labelled else MARGIN
    low, high = _extent(shown, bars)

    def x(value: float) -> float:
        return round(left + (min(max(value, low), high) - low) / (high - low) * (WIDTH - left - MARGIN), 1)

    edges = [low, *bars, high]
    passing = [
        (x(a), round(x(b) - x(a), 1)) for a, b in itertools.pairwise(edges) if a < b and condition.holds((a + b) / 2)
    ]
    if len(bars) == 2 and bars[0] == bars[1]:
        passing = [(x(bars[0]) - 1, 2.0)]
    drawn = []
    for number, (label, kind, row) in enumerate(shown):
        y = TOP + LANE * (number + 0.5)
        beyond = (row["value"] > high) - (row["value"] < low)
        ends = x(row["low"]), x(row["high"]), x(row["value"])
        drawn.append(Lane(label if labelled else "", kind, y, *ends, beyond, said(row)))
    ticks = [(x(tick), f"{tick:.6g}") for tick in _ticks(low, high)]
    height = TOP + LANE * len(drawn) + BOTTOM
    return Drawing(WIDTH, height, left, passing, [x(bar) for bar in bars], ticks, drawn)


def _extent(shown: list[tuple[str, str, dict[str, Any]]], bars: list[float]) -> tuple[float, float]:
    ours = [row for _, kind, row in shown if kind == "ours"] or [row for _, _, row in shown]
    ends = [number for row in ours for number in (row["low"], row["high"], row["value"])] + bars
    low, high = min(ends), max(ends)
    span = high - low or max(abs(high), 1.0) * 0.2
    for _, _, row in shown:
        for number in (row["low"], row["high"], row["value"]):
            if abs(number - (low + high) / 2) <= 10 * span:
                ends.append(number)
    low, high = min(ends), max(ends)
    pad = 0.1 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]
