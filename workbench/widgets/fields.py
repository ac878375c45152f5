"""Fields for what a person types or drags: a number with its slider, a tick, a word; each with its own refusal under it.

Does: read exact values ("20_000", "2e4", "20,000"); keep slider and field together; show one sentence under the field.
Does not: bound what is typed by the slider's range; whether a value is allowed is the business of what it is for.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Callable
from typing import Any

import ipywidgets

from workbench.errors import refuse
from workbench.widgets.controls import keep_together
from workbench.widgets.theme import row

RISK_LEVELS = {"level": "confidence level", "alpha": "risk level α", "delta": "failure probability δ"}


@dataclasses.dataclass(frozen=True)
class Field:
    """One field on screen: `read()` gives its value or raises a WorkbenchError, `say(sentence)` writes under it."""

    name: str
    box: Any
    read: Callable[[], Any]
    say: Callable[[str], None]
    observe: Callable[[Callable[[Any], None]], None]


def parse(name: str, text: str, *, whole: bool, optional: bool = False) -> float | int | None:
    """The number that was typed: "20_000", "2e4" and "20,000" are one; an empty field is None where that is allowed."""
    text = text.strip()
    if optional and text.lower() in ("", "none"):
        return None
    plain = text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else text
    try:
        value = float(plain)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise refuse(name, text, "be a finite number", "type e.g. 20_000 or 2e4")
    if whole:
        if value != int(value):
            raise refuse(name, text, "be a whole number", f"round it, e.g. {math.ceil(value)}")
        # Through int where it is written as one, so that no digit of a long number is lost.
        return int(plain) if re.fullmatch(r"[+-]?[\d_]+", plain) else int(value)
    return value


def show(value: float | int | None) -> str:
    """The shortest text that `parse` reads as `value` again; whole numbers with _ between thousands."""
    if value is None:
        return "none"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):_}"
    return repr(value)


def number(
    name: str,
    label: str,
    value: float | int | None,
    low: float,
    high: float,
    *,
    step: float | None = None,
    log: bool = False,
    whole: bool = False,
    optional: bool = False,
    ticked: bool | None = None,
) -> Field:
    """A slider over [low, high] and a field that takes any number; with `ticked` a box that switches it on or off.

    While the box is off, or the field is empty where `optional`, its value is None.
    """
    look: dict[str, Any] = {"readout": False}
    start = min(max(low if value is None else value, low), high)
    scale: Callable[[float], float] = math.log10 if log else float
    step = (0.02 if log else (high - low) / 200) if step is None else step
    kind = ipywidgets.FloatLogSlider if log else ipywidgets.FloatSlider
    slider = kind(min=scale(low), max=scale(high), step=step, value=start, **look)
    text = ipywidgets.Text(value=show(start if value is None and not optional else value), description=label)
    tick = None if ticked is None else ipywidgets.Checkbox(value=ticked, description=f"limit {label}", indent=False)
    note = ipywidgets.HTML()

    def typed_number() -> float | None:
        try:
            return parse(name, text.value, whole=whole, optional=optional)
        except ValueError:
            return None

    def dragged() -> None:
        now, at = typed_number(), slider.value
        # The browser moves a slider to its nearest step by itself; that must not round what was typed.
        if now is not None and abs(scale(at) - scale(min(max(now, low), high))) < 0.75 * step:
            return
        text.value = show(int(float(f"{at:.3g}")) if whole and log else round(at) if whole else float(f"{at:.3g}"))

    def typed() -> None:
        now = typed_number()
        if now is not None and low <= now <= high:
            slider.value = now

    def switched(_: Any) -> None:
        for part in (slider, text):
            part.layout.display = "none" if tick is not None and not tick.value else None

    def read() -> float | int | None:
        if tick is not None and not tick.value:
            return None
        return parse(name, text.value, whole=whole, optional=optional)

    def observe(changed: Callable[[Any], None]) -> None:
        for part in (text, tick) if tick is not None else (text,):
            part.observe(changed, names="value")

    keep_together(slider, text, dragged, typed)
    if tick is not None:
        tick.observe(switched, names="value")
    switched(None)
    parts = [text, slider, note] if tick is None else [tick, text, slider, note]
    return Field(name, row(parts), read, sayer(note), observe)


def tick(name: str, label: str, value: bool) -> Field:
    """A box that is ticked or not."""
    box, note = ipywidgets.Checkbox(value=value, description=label, indent=False), ipywidgets.HTML()
    return Field(name, row([box, note]), lambda: box.value, sayer(note), lambda heard: box.observe(heard, "value"))


def words(name: str, label: str, value: str, read: Callable[[str], Any] = str) -> Field:
    """A text field; `read` makes the value of the text, or raises a WorkbenchError."""
    text, note = ipywidgets.Text(value=value, description=label), ipywidgets.HTML()
    box = row([text, note])
    return Field(name, box, lambda: read(text.value), sayer(note), lambda heard: text.observe(heard, "value"))


def of_estimator(estimator: Any, without: tuple[str, ...] = ()) -> list[Field]:
    """A field for each setting of an estimator that a person can write: numbers, ticks, words, rows of numbers."""
    made = []
    for item in dataclasses.fields(estimator):
        if item.init and item.name not in without:
            field = _of_setting(item, getattr(estimator, item.name))
            made += [] if field is None else [field]
    return made


def _of_setting(item: dataclasses.Field[Any], value: Any) -> Field | None:
    name, kind = item.name, str(item.type)
    label = RISK_LEVELS.get(name, name.replace("_", " "))
    if isinstance(value, bool):
        return tick(name, label, value)
    if isinstance(value, str):
        return words(name, label, value)
    if isinstance(value, tuple):
        return _of_row(name, label, value)
    if type(value) in (int, float) or (value is None and ("int" in kind or "float" in kind)):
        whole = "float" not in kind and ("int" in kind or isinstance(value, int))
        low, high = _usual_range(name, value, whole)
        step = 0.001 if name in RISK_LEVELS else 1 if whole else None
        optional = value is None or "None" in kind
        return number(name, label, value, low, high, step=step, whole=whole, optional=optional)
    return None


def _of_row(name: str, label: str, value: tuple[Any, ...]) -> Field | None:
    if not value or any(type(part) not in (int, float) for part in value):
        return None
    whole = all(isinstance(part, int) for part in value)

    def read(text: str) -> tuple[Any, ...]:
        return tuple(parse(name, part, whole=whole) for part in re.split(r"[,;\s()]+", text) if part)

    return words(name, f"{label}, separated by commas", ", ".join(show(part) for part in value), read)


def _usual_range(name: str, value: float | None, whole: bool) -> tuple[float, float]:
    if name in RISK_LEVELS:
        return (0.5, 0.999) if name == "level" else (0.0, 0.5)
    if whole:
        return (0, max(10, 4 * (value or 0)))
    if value is None or 0 <= value <= 1:
        return (0.0, 1.0)
    return (min(0.0, 2 * value), max(0.0, 2 * value))


def sayer(note: ipywidgets.HTML) -> Callable[[str], None]:
    note.layout.display = "none"

    def say(sentence: str) -> None:
        shown = f'<div class="workbench-error" role="alert">{html.escape(sentence)}</div>' if sentence else ""
        if note.value != shown:
            note.value = shown
            note.layout.display = None if sentence else "none"

    return say
