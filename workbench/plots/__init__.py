"""The few figure kinds that recur, on matplotlib's object API: nothing is kept in a global registry."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure

from workbench.plots.ticks import quick_ticks

# Okabe and Ito's palette, by role: distinguishable with the common colour-vision deficiencies.
COLORS = {
    "truth": "#222222",
    "ours": "#0072B2",
    "baseline": "#D55E00",
    "other": "#009E73",
    "warn": "#CC79A7",
    "band": "#56B4E9",
}


_DRAWING = threading.Lock()


class _Figure(Figure):
    def _repr_png_(self) -> bytes:
        return to_png(self)

    def draw(self, renderer: Any) -> None:
        with quick_ticks(self):
            super().draw(renderer)


def figure(
    width: float = 6.4, height: float = 3.8, ncols: int = 1, nrows: int = 1, **kwargs: Any
) -> tuple[Figure, Any]:
    """A figure and its axes (an array of them if there are several); sizes in inches."""
    fig = _Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(fig)
    axes = fig.subplots(nrows, ncols, **kwargs)
    for ax in np.atleast_1d(axes).ravel():
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    return fig, axes


def line(
    ax: Axes,
    x: Any,
    y: Any,
    *,
    label: str | None = None,
    color: str = COLORS["ours"],
    low: Any = None,
    high: Any = None,
    marker: str = "",
    linestyle: str = "-",
) -> None:
    """A line with its uncertainty band, named at its right end rather than in a legend."""
    x, y = np.asarray(x), np.asarray(y, dtype=float)
    ax.plot(x, y, color=color, marker=marker, markersize=4, linestyle=linestyle, linewidth=1.8)
    if low is not None and high is not None:
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    shown = np.flatnonzero(np.isfinite(y))
    if label and shown.size:
        end = shown[-1]
        ax.annotate(
            label,
            (x[end], y[end]),
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def truth(ax: Axes, value: float, label: str = "truth", *, vertical: bool = False) -> None:
    """The known truth, as a dashed line with its name on it."""
    if vertical:
        ax.axvline(value, color=COLORS["truth"], linestyle="--", linewidth=1.2)
        ax.annotate(
            label,
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -4),
            textcoords="offset points",
            va="top",
            fontsize=9,
            color=COLORS["truth"],
        )
    else:
        ax.axhline(value, color=COLORS["truth"], linestyle="--", linewidth=1.2)
        ax.annotate(
            label,
            (0, value),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            va="bottom",
            fontsize=9,
            color=COLORS["truth"],
        )


class _Canvas(FigureCanvasAgg):
    """A canvas that draws with the renderer of the last figure of its size: that one has measured most words already,
    and has parsed most formulas. Used under `_DRAWING` only."""

    _KEPT: ClassVar[OrderedDict[tuple[float, float, float], RendererAgg]] = OrderedDict()

    def get_renderer(self) -> RendererAgg:
        key = (*self.figure.bbox.size, self.figure.dpi)
        renderer = self._KEPT.pop(key, None) or RendererAgg(*key)
        self._KEPT[key] = renderer
        if len(self._KEPT) > 4:
            self._KEPT.popitem(last=False)
        return renderer


@contextmanager
def _drawn_alone(fig: Figure) -> Iterator[_Canvas]:
    """One figure at a time: matplotlib's parser of mathematics is shared, and not made for two threads at once."""
    with _DRAWING:
        own = fig.canvas
        try:
            yield _Canvas(fig)
        finally:
            fig.set_canvas(own)


def to_png(fig: Figure, dpi: float = 110) -> bytes:
    """The figure as PNG bytes; may be called from any thread."""
    buffer = io.BytesIO()
    with _drawn_alone(fig) as canvas:
        canvas.print_figure(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def to_rough_png(fig: Figure, dpi: float = 80) -> bytes:
    """The figure as PNG bytes with one pass over its parts, where `to_png` makes two; hardly compressed."""
    from PIL import Image

    buffer, own = io.BytesIO(), fig.dpi
    with _drawn_alone(fig) as canvas:
        fig.set_dpi(dpi)
        canvas.draw()
        pixels = np.array(canvas.buffer_rgba())[..., :3]
        fig.set_dpi(own)
    Image.fromarray(pixels).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()
