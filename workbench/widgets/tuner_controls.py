"""The controls of a BudgetTuner: problem, methods, budget, risk levels, settings; read into a `Setup`.

Does: grey out the methods that can't answer the problem; put each refusal under the field that it is about.
Does not: run or draw anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets

from workbench.budget import UNITS, Budget
from workbench.errors import WorkbenchError, require_integer
from workbench.widgets import fields, theme
from workbench.widgets.equal_spend import UNIT_NAMES
from workbench.widgets.fields import RISK_LEVELS, Field
from workbench.widgets.freeze import Setup, literals

_WHOLE = ("samples", "tokens", "model_calls")


class Controls:
    """The controls, and `setup`, what they say now: None where that can't be run.

    start      the setup that the controls begin with
    estimators name -> estimator, all that can be picked
    problems   names of the problems that can be picked
    ranges     unit -> (low, high) of the budget's sliders
    unsuited   problem's name -> {method: why it can't answer it}
    `loaded` names the picked problem once it is made, None where it can't be; `boxes` are the widgets to show.
    """

    def __init__(
        self,
        start: Setup,
        estimators: Mapping[str, Any],
        problems: Sequence[str],
        ranges: Mapping[str, tuple[float, float]],
        unsuited: Callable[[str], dict[str, str]],
    ) -> None:
        self._start, self._estimators = start, dict(estimators)
        self._unsuited = unsuited
        self._changed: Callable[[], None] = lambda: None
        self.setup: Setup | None = None
        self.loaded: str | None = None
        self.pick = ipywidgets.Dropdown(options=list(problems), value=start.problem, description="problem")
        self.pick_note = ipywidgets.HTML()
        self.ticks = {name: ipywidgets.Checkbox(description=name, indent=False) for name in self._estimators}
        for name, tick in self.ticks.items():
            tick.value = name in start.methods
        self.reasons = {name: ipywidgets.HTML() for name in self._estimators}
        self.limits = {unit: self._limit(unit, ranges[unit]) for unit in UNITS}
        budget_note, methods_note = ipywidgets.HTML(), ipywidgets.HTML()
        self._say_budget, self._say_methods = fields.sayer(budget_note), fields.sayer(methods_note)
        now = self._estimators | start.methods
        self._shared = [name for name in RISK_LEVELS if len({_risk(m, name) for m in now.values()} - {None}) == 1]
        self.risks = {name: self._risk_field(name, list(now.values())) for name in self._shared}
        self.settings = {name: fields.of_estimator(m, tuple(self._shared)) for name, m in now.items()}
        self.seed = fields.words("seed", "seed of all randomness", str(start.seed), _seed)
        self.unit = _dropdown("spend shown in", [(UNIT_NAMES[unit], unit) for unit in UNITS], start.unit)
        self.turns = _dropdown(
            "order of work",
            [("in turns, at equal spend", True), ("one after the other", False)],
            start.interleaved,
        )
        methods = [theme.row([self.ticks[name], self.reasons[name]]) for name in self.ticks]
        folded = [ipywidgets.VBox([field.box for field in self.settings[name]]) for name in now if self.settings[name]]
        settings = ipywidgets.Accordion(children=folded, selected_index=None)
        for number, name in enumerate(name for name in now if self.settings[name]):
            settings.set_title(number, f"Settings of {name}")
        self.boxes = [
            theme.row([self.pick, self.pick_note]),
            _heading("Methods"),
            *methods,
            methods_note,
            _heading("Budget of each method"),
            *(field.box for field in self.limits.values()),
            budget_note,
            *([_heading("Risk levels")] if self.risks else []),
            *(field.box for field in self.risks.values()),
            _heading("Run"),
            self.seed.box,
            theme.row([self.unit, *([self.turns] if len(self.ticks) > 1 else [])]),
            settings,
        ]
        for field in self._fields():
            field.observe(self._edited)
        for part in (*self.ticks.values(), self.unit, self.turns):
            part.observe(self._edited, names="value")
        self.pick.observe(self._picked, names="value")
        self._picked(None)

    def _limit(self, unit: str, ends: tuple[float, float]) -> Field:
        value = self._start.budget.limits().get(unit)
        label = UNIT_NAMES[unit] + (" of drawing (a pause is free)" if unit == "seconds" else "")
        shown = ends[0] * 10 if value is None else value
        kind = {"log": True, "whole": unit in _WHOLE, "ticked": value is not None}
        return fields.number(unit, label, int(shown) if unit in _WHOLE else shown, *ends, **kind)

    def _risk_field(self, name: str, estimators: list[Any]) -> Field:
        value = next(value for value in (_risk(estimator, name) for estimator in estimators) if value is not None)
        ends = (0.5, 0.999) if name == "level" else (0.001, 0.5)
        return fields.number(name, RISK_LEVELS[name], value, *ends, step=0.001)

    def _fields(self) -> list[Field]:
        own = [field for settings in self.settings.values() for field in settings]
        return [*self.limits.values(), *self.risks.values(), *own, self.seed]

    def _picked(self, _: Any) -> None:
        """Another problem: grey out the methods that can't answer it, with the reason beside them."""
        why: dict[str, str] = {}
        self.pick_note.value, self.loaded = "", None
        try:
            why = self._unsuited(str(self.pick.value))
            self.loaded = str(self.pick.value)
        except Exception as error:
            self.pick_note.value = theme.error_html(error, f"{self.pick.value} can't be used")
            why = dict.fromkeys(self.ticks, "")
        for name, tick in self.ticks.items():
            tick.disabled = name in why
            reason = self.reasons[name]
            reason.value = f'<div class="workbench-reason">{html.escape(why.get(name, ""))}</div>'
            reason.layout.display = None if why.get(name) else "none"
        self._edited(None)

    def _edited(self, _: Any) -> None:
        self.setup = self._read()
        self._changed()

    def observe(self, changed: Callable[[], None]) -> None:
        """Call `changed()` now, and whenever `setup` has been read anew."""
        self._changed = changed
        changed()

    def limit(self) -> float | None:
        """The limit on what is shown; None where there is none, or none that makes sense."""
        with contextlib.suppress(WorkbenchError):
            value = self.limits[str(self.unit.value)].read()
            return value if value and value > 0 else None
        return None

    def _read(self) -> Setup | None:
        """What the controls say; None where that can't be run, with a sentence under what is wrong."""
        said: dict[int, str] = {}
        read: dict[int, Any] = {}
        for field in self._fields():
            try:
                read[id(field)] = field.read()
            except WorkbenchError as error:
                said[id(field)] = str(error)
        limits: dict[str, float] = {}
        for unit, field in self.limits.items():
            try:
                limits |= Budget(**{unit: read.get(id(field))}).limits()
            except WorkbenchError as error:
                said[id(field)] = str(error)
        picked = [name for name, tick in self.ticks.items() if tick.value and not tick.disabled]
        methods = {} if said else {name: self._built(name, read, said) for name in picked}
        nothing = "There is no limit, so a run would never end; tick one of them." if not limits and not said else ""
        nobody = "" if picked else "No method is ticked; tick at least one."
        for field in self._fields():
            field.say(said.get(id(field), ""))
        self._say_budget(nothing)
        self._say_methods(nobody)
        if said or not limits or not methods:
            return None
        setup = Setup(
            problem=str(self.pick.value),
            methods=methods,
            budget=Budget(**limits),
            seed=read[id(self.seed)],
            unit=self.unit.value,
            interleaved=self.turns.value,
        )
        # What was frozen after an early stop is done again as it was, until something is changed.
        again = dataclasses.replace(setup, stopped_at=self._start.stopped_at)
        return again if again.gives_what(self._start) else setup

    def _built(self, name: str, read: Mapping[int, Any], said: dict[int, str]) -> Any:
        """The method with what its fields say; None, with an entry in `said`, where it refuses that."""
        estimator = self._start.methods.get(name, self._estimators[name])
        shared = {risk: field for risk, field in self.risks.items() if _risk(estimator, risk) is not None}
        asked = {field.name: field for field in self.settings[name]} | shared
        try:
            return dataclasses.replace(estimator, **{key: read[id(field)] for key, field in asked.items()})
        except (WorkbenchError, TypeError) as error:
            sentence = str(error)
            named = next(
                (field for key, field in asked.items() if sentence.startswith(key)), next(iter(asked.values()))
            )
            said[id(named)] = sentence
            return None


def _risk(estimator: Any, name: str) -> float | None:
    value = literals(estimator).get(name)
    return value if isinstance(value, float) else None


def _seed(text: str) -> int:
    value = fields.parse("seed", text, whole=True)
    return require_integer("seed", value, low=0, high=2**63 - 1, cure="type a whole number such as 0")


def _heading(text: str) -> Any:
    return ipywidgets.HTML(f"<strong>{html.escape(text)}</strong>")


def _dropdown(label: str, options: list[tuple[str, Any]], value: Any) -> Any:
    return ipywidgets.Dropdown(options=options, value=value, description=label)
