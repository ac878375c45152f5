"""Explorers: a drawing function with controls, and its static face where nobody can move them.

Does: redraw off the main thread for the newest values; keep the last picture where drawing fails, and say why.
Does not: know any method; what is drawn is a plain function that works without widgets.
"""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ipywidgets
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure
from PIL import Image as Raster

from workbench.errors import WorkbenchError, refuse
from workbench.plots import to_png
from workbench.widgets import controls as kinds
from workbench.widgets import theme
from workbench.widgets.controls import Short, Spec
from workbench.widgets.latest import Latest

Drawn = Figure | HTML
_WIDEST = 1500  # pixels of figures in a row, beyond which a notebook shrinks their type
_READABLE = 66  # pixels an inch of a figure, of which its type takes 9 or 10 points
_MANY = 9  # controls that still fit beside a figure


def explore(
    draw: Callable[..., Drawn],
    *,
    alt: str = "",
    static: Sequence[Mapping[str, Any]] | None = None,
    **controls: Short,
) -> None:
    """Show `draw(**values)` with a control for each value.

    draw      returns a Figure, or an IPython HTML object whose text is escaped already
    alt       what the figure shows, for those who can't see it; by default its titles and axis labels
    static    up to three states, e.g. [{"n": 5}, {"n": 50}]; headless they stand side by side, or in rows
    controls  (low, high, default) for a slider (whole numbers if all three are), a list for a choice whose
              first entry is the default, a bool for a tick box; or `Slider`, `Choice`, `Tick` with a
              label, a unit, a log scale

    Headless (as under papermill, where WORKBENCH_HEADLESS is set) there is no widget: only figures of the
    `static` states, or of the default state. Raises WorkbenchError for a control that makes no sense, and for
    controls that are not the arguments of `draw`.
    """
    specs = {name: kinds.spec(name, short) for name, short in controls.items()}
    check_controls(draw, specs)
    defaults = {name: kinds.default(spec) for name, spec in specs.items()}
    states = [defaults | _state(specs, state) for state in static or [{}]]
    if len(states) > 3:
        raise refuse("len(static)", len(states), "be at most 3", "keep the states that differ most")
    if os.environ.get("WORKBENCH_HEADLESS"):
        _show_static(draw, specs, states, alt, named=bool(static))
        return
    display(_panel(draw, specs, defaults, alt))


def _panel(draw: Callable[..., Drawn], specs: dict[str, Spec], defaults: dict[str, Any], alt: str) -> Any:
    built = {name: kinds.build(name, spec) for name, spec in specs.items()}
    reset = ipywidgets.Button(description="Reset", tooltip="Put every control back to where it began")
    trouble = ipywidgets.HTML()
    begin = draw(**defaults)
    if isinstance(begin, Figure):
        view: Any = theme.picture(begin, _alt(begin, specs, defaults, alt))
    else:
        view = ipywidgets.HTML(begin.data)
    placed = begin if isinstance(begin, Figure) else Figure()

    def compute(values: dict[str, Any]) -> Iterator[tuple[Any, str]]:
        nonlocal placed
        drawn = draw(**values)
        if not isinstance(drawn, Figure):
            yield drawn.data, ""
            return
        said = _alt(drawn, specs, values, alt)
        yield theme.rough_png(drawn, like=placed), said
        yield theme.screen_png(drawn), said
        placed = drawn

    def show(result: tuple[Any, str]) -> None:
        content, said = result
        if isinstance(content, bytes):
            theme.swap(view, content, said)
        else:
            view.value = content
        trouble.value = ""

    def failed(error: Exception) -> None:
        trouble.value = theme.error_html(error, "This could not be drawn, so the last picture stays")

    latest = Latest(compute, show, failed)

    def moved(_: Any) -> None:
        latest.submit({name: control.value for name, control in built.items()})

    def put_back(_: Any) -> None:
        for control in built.values():
            control.reset()

    for control in built.values():
        control.observe(moved)
    reset.on_click(put_back)
    left = ipywidgets.VBox([*(control.box for control in built.values()), reset])
    left.add_class("workbench-controls")
    right = ipywidgets.VBox([trouble, view])
    right.add_class("workbench-view")
    if isinstance(begin, Figure):
        # Beside the controls as long as its type stays readable, else below them.
        right.layout.flex = f"3 1 {round(_READABLE * begin.get_figwidth())}px"
    both = theme.panel([left, right], side_by_side=True)
    if len(built) > _MANY:
        both.add_class("workbench-many")
    return both


def _alt(fig: Figure, specs: dict[str, Spec], values: Mapping[str, Any], alt: str) -> str:
    state = _in_words(specs, values)
    return f"{alt.rstrip('.')}. {state}." if alt else theme.describe(fig, state)


def _in_words(specs: dict[str, Spec], values: Mapping[str, Any]) -> str:
    return ", ".join(kinds.said(specs[name], name, value) for name, value in values.items())


def _show_static(
    draw: Callable[..., Drawn], specs: dict[str, Spec], states: list[dict[str, Any]], alt: str, *, named: bool
) -> None:
    pictures, said = [], []
    for state in states:
        drawn = draw(**state)
        if not isinstance(drawn, Figure):
            display(drawn)
            continue
        if named:
            varied = {name: value for name, value in state.items() if any(value != other[name] for other in states)}
            title = "\n".join(part for part in (_in_words(specs, varied), drawn.get_suptitle()) if part)
            drawn.suptitle(title, fontsize=9.5, x=0.01, ha="left")
            said.append(f"{_in_words(specs, varied)}." if said else _alt(drawn, specs, state, alt))
        else:
            said.append(_alt(drawn, specs, state, alt))
        pictures.append(to_png(drawn))
    if pictures:
        display(Image(_beside(pictures), alt=" Next to it: ".join(said)))


def _beside(pngs: list[bytes]) -> bytes:
    """PNGs as one PNG, in rows that are narrow enough to read."""
    if len(pngs) == 1:
        return pngs[0]
    parts = [Raster.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    width, height = max(part.width for part in parts), max(part.height for part in parts)
    columns = min(len(parts), max(1, _WIDEST // width))
    whole = Raster.new("RGB", (columns * width, -(-len(parts) // columns) * height), "white")
    for i, part in enumerate(parts):
        whole.paste(part, (i % columns * width, i // columns * height))
    buffer = io.BytesIO()
    whole.save(buffer, format="png")
    return buffer.getvalue()


def _state(specs: dict[str, Spec], state: Mapping[str, Any]) -> dict[str, Any]:
    for name in state:
        if name not in specs:
            raise refuse("static", name, f"name controls only ({', '.join(specs)})", "leave it out")
    return {name: kinds.admits(f"static {name}", specs[name], value) for name, value in state.items()}


def check_controls(draw: Callable[..., Any], specs: Mapping[str, Spec]) -> None:
    """Refuse unless every argument of `draw` has a control, every control is an argument, and the labels differ."""
    arguments = inspect.signature(draw).parameters
    takes_all = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    called = getattr(draw, "__name__", "draw")
    for name in specs:
        if name not in arguments and not takes_all:
            raise WorkbenchError(
                f"{called} has no argument {name}, only {', '.join(arguments) or 'none'}, but there is a control {name}; "
                "rename or remove the control."
            )
    for name, argument in arguments.items():
        spread = argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL)
        if name not in specs and argument.default is argument.empty and not spread:
            raise WorkbenchError(f"{called}'s argument {name} has no control; add one, e.g. {name}=(1, 100, 10).")
    labels: dict[str, str] = {}
    for name, spec in specs.items():
        label = spec.label or name
        if label in labels:
            must = f"differ from that of {labels[label]}"
            raise refuse(f"the label of {name}", label, must, "give each control a label of its own")
        labels[label] = name
