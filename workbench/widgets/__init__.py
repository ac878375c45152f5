"""Explorers: a drawing function with sliders, and its static face where nobody can move them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from IPython.display import Image, display
from matplotlib.figure import Figure

from workbench.errors import refuse
from workbench.plots import to_png

Range = tuple[float, float, float] | list[Any] | bool


def explore(draw: Callable[..., Figure], **controls: Range) -> None:
    """Show `draw(**values)` with a control for each value.

    A control is (low, high, default) for a slider (whole numbers if all three are), a list for a
    choice whose first entry is the default, or a bool for a tick box. Headless (as under papermill,
    where WORKBENCH_HEADLESS is set) only the default state's figure is shown.
    """
    defaults = {name: _default(name, control) for name, control in controls.items()}
    if os.environ.get("WORKBENCH_HEADLESS"):
        display(Image(to_png(draw(**defaults))))
        return
    import ipywidgets

    picture = ipywidgets.Image(value=to_png(draw(**defaults)), format="png", layout={"max_width": "100%"})
    boxes = {name: _box(name, control) for name, control in controls.items()}

    def redraw(_: Any) -> None:
        picture.value = to_png(draw(**{name: box.value for name, box in boxes.items()}))

    for box in boxes.values():
        box.observe(redraw, names="value")
    display(ipywidgets.VBox([*boxes.values(), picture]))


def _default(name: str, control: Range) -> Any:
    if isinstance(control, bool):
        return control
    if isinstance(control, list) and control:
        return control[0]
    if isinstance(control, tuple) and len(control) == 3 and control[0] <= control[2] <= control[1]:
        return control[2]
    raise refuse(
        name, control, "be (low, high, default), a list of choices or a bool", f"write e.g. {name}=(1, 100, 10)"
    )


def _box(name: str, control: Range) -> Any:
    import ipywidgets

    common = {"description": name, "style": {"description_width": "8em"}, "layout": {"width": "30em"}}
    if isinstance(control, bool):
        return ipywidgets.Checkbox(value=control, **common)
    if isinstance(control, list):
        return ipywidgets.Dropdown(options=control, value=control[0], **common)
    low, high, default = control
    if all(isinstance(end, int) for end in control):
        return ipywidgets.IntSlider(value=default, min=low, max=high, continuous_update=False, **common)
    return ipywidgets.FloatSlider(
        value=default, min=low, max=high, step=(high - low) / 100, continuous_update=False, **common
    )
