"""Controls with a label, a unit and a field to type in: sliders, choices and ticks.

Does: check what was asked for; keep a slider and its field at one value; whole numbers stay whole.
Does not: draw anything or know what a value means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets

from workbench.errors import refuse, require_choice, require_integer, require_number
from workbench.widgets.theme import row


@dataclass(frozen=True)
class Slider:
    """A number in [low, high]; whole if low, high and default are. `log` spaces the slider evenly in decades."""

    low: float
    high: float
    default: float
    label: str = ""
    unit: str = ""
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Choice:
    """One of `options`, which need a readable `str`, or a dict of names to values; the first is the default."""

    options: Sequence[Any] | dict[str, Any]
    label: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Tick:
    """Yes or no."""

    default: bool = False
    label: str = ""


Spec = Slider | Choice | Tick
Short = Spec | tuple[float, float, float] | list[Any] | bool


@dataclass(frozen=True)
class Control:
    """A control on screen: `box` is what to display, `field` the widget that holds the value."""

    name: str
    label: str
    unit: str
    default: Any
    box: ipywidgets.Widget
    field: Any

    @property
    def value(self) -> Any:
        return self.field.value

    def observe(self, changed: Callable[[Any], None]) -> None:
        """Call `changed(change)` whenever the value changes."""
        self.field.observe(changed, names="value")

    def reset(self) -> None:
        self.field.value = self.default


def spec(name: str, short: Short) -> Spec:
    """The control that `name=short` asks for: (low, high, default), a list of choices, a bool, or written out."""
    if isinstance(short, bool):
        return Tick(short)
    if isinstance(short, list):
        short = Choice(short)
    if isinstance(short, tuple):
        if len(short) != 3:
            raise _unfit(name, short)
        short = Slider(*short)
    if isinstance(short, Slider):
        return _checked(name, short)
    if isinstance(short, Choice):
        if not short.options:
            raise refuse(name, short.options, "offer at least one choice", f"write e.g. {name}=[1, 2, 5]")
        return short
    if isinstance(short, Tick):
        return short
    raise _unfit(name, short)


def default(control: Spec) -> Any:
    """The value that a control has before anyone touches it."""
    if isinstance(control, Choice):
        return _choices(control)[0][1]
    return control.default


def admits(name: str, control: Spec, value: Any) -> Any:
    """`value` if the control can be put to it, or a refusal that names it."""
    if isinstance(control, Slider):
        cure = f"choose a value that the slider of {name} has"
        require_number(name, value, low=control.low, high=control.high, cure=cure)
        if _whole(control):
            require_integer(name, value, cure=cure)
    elif isinstance(control, Choice):
        if value not in [known for _, known in _choices(control)]:
            require_choice(name, value, [said for said, _ in _choices(control)])
    elif not isinstance(value, bool):
        raise refuse(name, value, "be True or False", "it is a tick box")
    return value


def said(control: Spec, name: str, value: Any) -> str:
    """A control's state in words, e.g. "tries 20 (per query)" or "not uneven"."""
    label, unit = control.label or name, getattr(control, "unit", "")
    if isinstance(control, Tick):
        return label if value else f"not {label}"
    if isinstance(control, Choice):
        value = next((text for text, known in _choices(control) if known == value), value)
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{label} {shown} ({unit})" if unit else f"{label} {shown}"


def build(name: str, short: Short) -> Control:
    """The control as widgets: its name and unit, the slider with a field beside it, a choice or a tick box."""
    control = spec(name, short)
    label, unit = control.label or name, getattr(control, "unit", "")
    full = f"{label} ({unit})" if unit else label
    if isinstance(control, Tick):
        field = ipywidgets.Checkbox(value=control.default, description=label, indent=False)
        return Control(name, label, unit, control.default, row([field]), field)
    if isinstance(control, Choice):
        options = _choices(control)
        field = ipywidgets.Dropdown(options=options, value=options[0][1], description=full)
        return Control(name, label, unit, options[0][1], row([field]), field)
    slider, field = _slider(control, full)
    return Control(name, label, unit, field.value, row([field, slider]), field)


def _slider(control: Slider, full: str) -> tuple[Any, Any]:
    whole, low, high, start = _whole(control), control.low, control.high, control.default
    look = {"readout": False, "continuous_update": True}
    step = control.step or (1 if whole else _round_step(low, high, start))
    if control.log:
        place, grid = math.log10, (math.log10(high) - math.log10(low)) / 200
        ends = {"min": math.log10(low), "max": math.log10(high), "step": grid}
        slider: Any = ipywidgets.FloatLogSlider(value=start, base=10, **ends, **look)
    else:
        place, grid = float, step
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        slider = kind(value=start, min=low, max=high, step=step, **look)
    kind = ipywidgets.BoundedIntText if whole else ipywidgets.BoundedFloatText
    field = kind(value=start, min=low, max=high, step=step, description=full)

    def follow() -> None:
        # The page moves a handle to its nearest step and says so; that is no reason to change what was typed.
        if abs(place(slider.value) - place(field.value)) > 0.501 * grid:
            value = round(slider.value) if whole else float(f"{slider.value:.{3 if control.log else 6}g}")
            field.value = min(max(value, low), high)

    def lead() -> None:
        slider.value = field.value

    keep_together(slider, field, follow, lead)
    return slider, field


def keep_together(slider: Any, field: Any, dragged: Callable[[], None], typed: Callable[[], None]) -> None:
    """Call `dragged` when the slider moves and `typed` when the field changes, neither in answer to the other.

    So a handle that somebody holds is not moved to where its rounded value would have it.
    """
    answering = False

    def hear(act: Callable[[], None]) -> Callable[[Any], None]:
        def heard(_: Any) -> None:
            nonlocal answering
            if answering:
                return
            answering = True
            try:
                act()
            finally:
                answering = False

        return heard

    slider.observe(hear(dragged), names="value")
    field.observe(hear(typed), names="value")


def _round_step(low: float, high: float, start: float) -> float:
    """A step of 1, 2 or 5 times a power of ten, about a hundredth of the range, that the default lies on."""
    power = 10.0 ** math.floor(math.log10((high - low) / 100))
    for step in (5 * power, 2 * power, power, power / 2, power / 5, power / 10):
        steps = (start - low) / step
        if step <= (high - low) / 100 and abs(steps - round(steps)) < 1e-6:
            return step
    return (high - low) / 100


def _whole(control: Slider) -> bool:
    ends = (control.low, control.high, control.default, control.step or 1)
    return all(isinstance(end, int) and not isinstance(end, bool) for end in ends)


def _choices(control: Choice) -> list[tuple[str, Any]]:
    if isinstance(control.options, dict):
        return list(control.options.items())
    return [(f"{option:g}" if isinstance(option, float) else str(option), option) for option in control.options]


def _checked(name: str, control: Slider) -> Slider:
    for end in (control.low, control.high, control.default):
        if isinstance(end, bool) or not isinstance(end, (int, float)) or not math.isfinite(end):
            raise _unfit(name, (control.low, control.high, control.default))
    if not control.low < control.high:
        must = f"be a range with low < high, here low is {control.low:g} and high {control.high:g}"
        raise refuse(name, (control.low, control.high, control.default), must, "swap or move the ends")
    if not control.low <= control.default <= control.high:
        must = f"be (low, high, default) with a default from {control.low:g} to {control.high:g}"
        raise refuse(name, (control.low, control.high, control.default), must, f"write e.g. {name}=(1, 100, 10)")
    if control.log and control.low <= 0:
        raise refuse(name, control.low, "be greater than 0 at its low end to be on a log scale", "raise low")
    if control.step is not None:
        require_number(f"{name}'s step", control.step, low=0, open_low=True, cure="leave it out for a hundred steps")
    return control


def _unfit(name: str, value: Any) -> Exception:
    must = "be (low, high, default), a list of choices, a bool, or a Slider, Choice or Tick"
    return refuse(name, value, must, f"write e.g. {name}=(1, 100, 10)")
