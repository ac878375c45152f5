"""Ticks of logarithmic axes, quickly: most of the time that matplotlib takes for a small figure goes into them.

Does: labels as plain text, 10² and 2×10⁻³, in the place of formulas that are parsed at each drawing; unlabelled minor
ticks as one line of marks in the place of an object each. Does not: change where ticks are, or leave a figure changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import TICKDOWN, TICKLEFT, TICKRIGHT, TICKUP
from matplotlib.ticker import LogFormatterSciNotation, NullLocator

_MARKS: dict[str, Any] = {"bottom": TICKDOWN, "top": TICKUP, "left": TICKLEFT, "right": TICKRIGHT}


class _PowersOfTen(LogFormatterSciNotation):
    _RAISED = str.maketrans("-0123456789\u2212", "\u207b⁰¹²³⁴⁵⁶⁷⁸⁹\u207b")

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos)
        found = re.fullmatch(r"\$\\mathdefault\{(.*?)(?:\\times)?10\^\{(.+?)\}\}\$", text)
        if found is None:
            return text
        return f"{found[1]}×" * bool(found[1]) + "10" + found[2].translate(self._RAISED)


@contextmanager
def quick_ticks(fig: Figure) -> Iterator[None]:
    """While it lasts, the figure's logarithmic axes are drawn quickly."""
    undo: list[Any] = []
    try:
        for ax in [*fig.axes, *(child for parent in fig.axes for child in parent.child_axes)]:
            for axis in (ax.xaxis, ax.yaxis):
                for ticker in (axis.major, axis.minor):
                    told = ticker.formatter
                    if type(told) is LogFormatterSciNotation:
                        quick = _PowersOfTen(told._base, told.labelOnlyBase, told.minor_thresholds)  # type: ignore[attr-defined]
                        quick.set_axis(axis)
                        ticker.formatter = quick
                        undo.append((setattr, ticker, "formatter", told))
                if axis.get_scale() == "log" and _decades(axis) > 1:
                    marks = _marks(ax, axis)
                    undo.append((setattr, axis.minor, "locator", axis.minor.locator))
                    axis.minor.locator = NullLocator()
                    undo.extend((mark.remove,) for mark in marks)
        yield
    finally:
        for call, *arguments in reversed(undo):
            call(*arguments)


def _decades(axis: Any) -> float:
    """Matplotlib labels minor ticks where an axis spans one decade or less."""
    low, high = sorted(axis.get_view_interval())
    return float(np.log10(high / low)) if low > 0 else 0.0


def _marks(ax: Axes, axis: Any) -> list[Line2D]:
    """Lines of marks where the axis has its minor ticks, one a side that has them."""
    if not axis.get_visible():
        return []
    name = axis.axis_name
    low, high = sorted(axis.get_view_interval())
    at = np.asarray(axis.get_minorticklocs())
    at = at[(at >= low) & (at <= high)]
    rc: Any = matplotlib.rcParams
    lines = []
    for side, across, shown in zip(("bottom", "top") if name == "x" else ("left", "right"), (0.0, 1.0), _sides(axis), strict=True):  # fmt: skip
        if not shown:
            continue
        places = np.full(len(at), across)
        line = Line2D(
            *((at, places) if name == "x" else (places, at)),
            transform=ax.get_xaxis_transform() if name == "x" else ax.get_yaxis_transform(),
            linestyle="none",
            marker=_MARKS[side],
            markersize=rc[f"{name}tick.minor.size"],
            markeredgewidth=rc[f"{name}tick.minor.width"],
            color=rc[f"{name}tick.color"],
            clip_on=False,
            zorder=2.01,
        )
        line.set_in_layout(False)
        ax.add_artist(line)
        lines.append(line)
    return lines


def _sides(axis: Any) -> tuple[bool, bool]:
    """Whether minor ticks show on the axis' first side (bottom, left) and on its second."""
    ticks = axis.get_minor_ticks(1)
    return ticks[0].tick1line.get_visible(), ticks[0].tick2line.get_visible()
