"""The look that all widgets share: one style sheet, a panel, pictures with alternative text, errors in one sentence.

Does: follow JupyterLab's light and dark through its CSS variables, with fallbacks for Voila and plain pages.
Does not: hold state, or decide what is shown.
"""

from __future__ import annotations

import html
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
from matplotlib.figure import Figure
from traitlets import Unicode

from workbench.errors import WorkbenchError
from workbench.plots import to_png, to_rough_png

_SHARP_DPI = 192  # sharp enough for screens with four pixels in the place of one


class Picture(ipywidgets.Image):
    """A PNG whose alternative text is its tooltip.

    ipywidgets' view reads the tooltip only of widgets that have a description, which Image lacks.
    """

    description = Unicode("").tag(sync=True)


def picture(fig: Figure, alt: str) -> Picture:
    """The figure as a widget as wide as there is room, with `alt` for those who can't see it."""
    shown = Picture(format="png")
    shown.add_class("workbench-figure")
    redraw(shown, fig, alt)
    return shown


def redraw(shown: Picture, fig: Figure, alt: str) -> None:
    """Put another figure into a picture."""
    swap(shown, screen_png(fig), alt)


def swap(shown: Picture, png: bytes, alt: str) -> None:
    """Put other PNG bytes into a picture; both traits travel in one message, so that nothing flickers."""
    with shown.hold_sync():
        shown.value, shown.tooltip = png, alt


def screen_png(fig: Figure) -> bytes:
    """The figure as PNG bytes, sharp on screens with small pixels."""
    return to_png(fig, dpi=_SHARP_DPI)


def rough_png(fig: Figure, like: Figure) -> bytes:
    """The figure as PNG bytes in a third of the time: coarse, its parts placed where `like`, drawn before, has them.

    `fig` itself is left as it was.
    """
    layout = fig.get_layout_engine()
    if layout is None or len(like.axes) != len(fig.axes):
        return to_rough_png(fig)
    fig.set_layout_engine("none")
    for ax, model in zip(fig.axes, like.axes, strict=True):
        ax.set_position(model.get_position())
    with _words_placed(fig, like):
        png = to_rough_png(fig)
    for ax in fig.axes:
        ax.set_in_layout(True)  # set_position took it out
    fig.set_layout_engine(layout)
    return png


@contextmanager
def _words_placed(fig: Figure, like: Figure) -> Iterator[None]:
    """Titles and axis labels where `like` has them: finding a place for them takes a quarter of a drawing."""
    placed: list[tuple[Any, str, Any]] = []
    for ax, model in zip(fig.axes, like.axes, strict=True):
        by_itself = [(ax, model, "_autotitlepos", "title"), (ax, model, "_autotitlepos", "_left_title")]
        by_itself += [(ax.xaxis, model.xaxis, "_autolabelpos", "label"), (ax.yaxis, model.yaxis, "_autolabelpos", "label")]  # fmt: skip
        free = [words for words in by_itself if getattr(words[0], words[2]) is not False]
        for owner, of_model, flag, text in free:
            placed.append((owner, flag, getattr(owner, flag)))
            setattr(owner, flag, False)
            getattr(owner, text).set_position(getattr(of_model, text).get_position())
    yield
    for owner, flag, before in reversed(placed):
        setattr(owner, flag, before)


def describe(fig: Figure, state: str = "") -> str:
    """Alternative text made from a figure's titles and axis labels, and the state it was drawn for."""
    parts = []
    for ax in fig.axes:
        across, up = ax.get_xlabel(), ax.get_ylabel()
        axes = f"{up} against {across}" if up and across else up or across
        parts.append(": ".join(part for part in (ax.get_title(), axes) if part))
    said = "; ".join(part for part in parts if part)
    return ("Figure: " + said if said else "Figure") + (f". {state}." if state else ".")


def error_html(error: BaseException, doing: str) -> str:
    """One sentence on what went wrong while `doing`, the details folded under it; everything escaped."""
    said = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, WorkbenchError):
        said = f"{type(error).__name__}: {said}"
    details = "".join(traceback.format_exception(error))
    return (
        f'<div class="workbench-error" role="alert">{html.escape(doing)}: {html.escape(said)}'
        f"<details><summary>Details</summary><pre>{html.escape(details)}</pre></details></div>"
    )


class Style(anywidget.AnyWidget):
    """The style sheet, and names for the handles of the sliders in its panel; shows nothing itself."""

    _css = Path(__file__).with_name("theme.css")
    _esm = Path(__file__).with_name("theme.js")


def row(children: Sequence[Any]) -> ipywidgets.Box:
    """Parts of one control, one under the other."""
    made = ipywidgets.VBox(children)
    made.add_class("workbench-row")
    return made


def panel(children: Sequence[Any], *, side_by_side: bool = False) -> ipywidgets.Box:
    """Widgets in the house's style, one under the other, or beside each other where the page is wide enough."""
    box = ipywidgets.Box if side_by_side else ipywidgets.VBox
    made = box([Style(layout={"display": "none"}), *children])
    made.add_class("workbench")
    if side_by_side:
        made.add_class("workbench-side")
    return made
