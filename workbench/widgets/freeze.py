"""What was tuned by hand, written so that a machine does it again.

Does: a tuner's setup as a dict of plain literals for a notebook's parameters cell, and back; as a `workbench reproduce`
command; as the Python calls that give the identical estimates.
Does not: run anything.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from workbench.budget import UNITS, Budget
from workbench.errors import WorkbenchError, refuse, require_choice, require_integer
from workbench.estimate import Estimate

_KEYS = ("problem", "methods", "budget", "seed", "unit", "interleaved", "stopped_at")
_LONGEST_CALL = 400  # characters; a variable says more than a page of numbers


@dataclass(frozen=True)
class Setup:
    """What a comparison of methods is run with.

    problem      name of the problem
    methods      name -> estimator
    budget       what each method may spend
    unit         the unit of spend that is shown
    interleaved  methods take turns, so that at any moment all have used the same share of their budgets
    stopped_at   name -> samples absorbed by a method whose run was stopped, or limited in seconds; such a run is
                 done again with this many samples, because seconds do not replay
    """

    problem: str
    methods: dict[str, Any]
    budget: Budget
    seed: int = 0
    unit: str = "samples"
    interleaved: bool = True
    stopped_at: dict[str, int] = field(default_factory=dict)

    def gives_what(self, other: Setup) -> bool:
        """Whether both give the same estimates; the unit that is shown and the order of work do not matter."""
        return replace(self, unit=other.unit, interleaved=other.interleaved, stopped_at=other.stopped_at) == other

    def budget_of(self, method: str) -> Budget:
        """The budget that gives this method's estimate again."""
        return Budget(samples=self.stopped_at[method]) if method in self.stopped_at else self.budget


def literals(estimator: Any) -> dict[str, Any]:
    """An estimator's fields that are plain numbers, words, bools, None or sequences of those (as lists)."""
    values = {item.name: getattr(estimator, item.name) for item in fields(estimator) if item.init}
    return {name: _plain(value) for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def ended_early(setup: Setup, estimates: Mapping[str, Estimate]) -> Setup:
    """`setup` with `stopped_at` for each method whose run ended by anything but a limit that replays."""
    early = {
        name: estimate.n_samples
        for name, estimate in estimates.items()
        if not _replays(estimate.stopped) and estimate.n_samples
    }
    # A run of what had been frozen before ended where it should.
    return replace(setup, stopped_at={name: n for name, n in (setup.stopped_at | early).items() if name in estimates})


def _replays(stopped: str) -> bool:
    return stopped.startswith("budget of") and "seconds" not in stopped


def to_tuned(setup: Setup) -> dict[str, Any]:
    """The setup as a dict of plain literals, which `from_tuned` reads."""
    tuned: dict[str, Any] = {
        "problem": setup.problem,
        "methods": {name: literals(estimator) for name, estimator in setup.methods.items()},
        "budget": setup.budget.limits(),
        "seed": setup.seed,
        "unit": setup.unit,
        "interleaved": setup.interleaved,
    }
    return tuned | ({"stopped_at": dict(setup.stopped_at)} if setup.stopped_at else {})


def from_tuned(tuned: Any, problems: Mapping[str, Any], estimators: Mapping[str, Any], default: Setup) -> Setup:
    """The setup that `to_tuned` wrote; what `tuned` leaves out is taken from `default`. Refuses what does not fit."""
    cure = "paste the line that Freeze gives, or leave it {}"
    if not isinstance(tuned, Mapping):
        raise refuse("tuned", tuned, "be a dict", cure)
    for key in tuned:
        require_choice("a key of tuned", key, _KEYS, cure)
    for key in ("methods", "budget", "stopped_at"):
        if not isinstance(tuned.get(key, {}), Mapping):
            raise refuse(f"tuned[{key!r}]", tuned[key], "be a dict", cure)
    for unit in tuned.get("budget", {}):
        require_choice("a unit of tuned['budget']", unit, UNITS, cure)
    methods = {}
    for name, values in tuned.get("methods", {}).items():
        require_choice("a method of tuned", name, estimators, cure)
        methods[name] = _with_fields(name, estimators[name], values, cure)
    stopped_at = {}
    for name, samples in tuned.get("stopped_at", {}).items():
        require_choice("a method of tuned['stopped_at']", name, methods or default.methods, cure)
        stopped_at[name] = require_integer(f"tuned['stopped_at'][{name!r}]", samples, low=1, cure=cure)
    interleaved = tuned.get("interleaved", default.interleaved)
    if not isinstance(interleaved, bool):
        raise refuse("tuned['interleaved']", interleaved, "be True or False", cure)
    return Setup(
        problem=require_choice("tuned['problem']", tuned.get("problem", default.problem), problems, cure),
        methods=methods or default.methods,
        budget=Budget(**tuned["budget"]) if tuned.get("budget") else default.budget,
        seed=require_integer("tuned['seed']", tuned.get("seed", default.seed), low=0, high=2**63 - 1, cure=cure),
        unit=require_choice("tuned['unit']", tuned.get("unit", default.unit), UNITS, cure),
        interleaved=interleaved,
        stopped_at=stopped_at,
    )


def _with_fields(name: str, estimator: Any, values: Any, cure: str) -> Any:
    if not isinstance(values, Mapping):
        raise refuse(f"tuned['methods'][{name!r}]", values, "be a dict of its fields", cure)
    known = {item.name: getattr(estimator, item.name) for item in fields(estimator) if item.init}
    for key in values:
        require_choice(f"a field of {name}", key, known, cure)
    return replace(
        estimator,
        **{key: tuple(value) if isinstance(known[key], tuple) else value for key, value in values.items()},
    )


def parameter_line(setup: Setup) -> str:
    """The line for the notebook's parameters cell."""
    return f"tuned = {to_tuned(setup)!r}"


def command(setup: Setup, slug: str, *, seed: int, scale: str = "quick") -> str:
    """The `workbench reproduce` command, quoted for a POSIX shell; `seed` and `scale` are the notebook's."""
    words = ["workbench", "reproduce", slug, "--seed", str(seed), "--set", f"tuned={to_tuned(setup)!r}"]
    return shlex.join(words if scale == "quick" else [*words, "--scale", scale])


def as_code(setup: Setup, problem: Any, namespace: Mapping[str, Any], made_by: Any = None) -> str:
    """Python that gives the same estimates: `estimate = workbench.run(...)`, or `estimates = {...}` for several methods.

    problem    the problem itself; `made_by` is the function without arguments that made it, if one did
    namespace  the notebook's variables; what can't be written as a call is named by the variable that holds it
    Raises WorkbenchError where a problem or method has neither a call nor a variable.
    """
    imports, notes = {"import workbench"}, []

    def write(thing: Any, what: str, maker: Any = None) -> str:
        found = _expression(thing, namespace, maker)
        if found is None:
            raise WorkbenchError(
                f"{what} can't be written as code, because it is in no variable; assign it to one, e.g. problem = ..., and pass that."
            )
        text, is_call = found
        if not is_call:
            notes.append(f"# {text}: as this notebook has it")
        elif type(thing).__module__ == "__main__":
            notes.append(f"# {type(thing).__name__}: as this notebook defines it")
        else:
            imports.add(f"from {type(thing).__module__} import {type(thing).__name__}")
        return text

    named = write(problem, f"The problem {setup.problem!r}", made_by)
    calls = {}
    for name, estimator in setup.methods.items():
        method = write(estimator, f"The method {name!r}")
        calls[name] = f"workbench.run(problem, {method}, workbench.{setup.budget_of(name)!r}, seed={setup.seed})"
    if len(calls) == 1:
        [call] = calls.values()
        body = f"estimate = {call}\n"
    else:
        body = "estimates = {\n" + "".join(f"    {name!r}: {call},\n" for name, call in calls.items()) + "}\n"
    head = [*sorted(imports, reverse=True, key=lambda line: line.startswith("import")), "", *dict.fromkeys(notes)]
    return "\n".join([*head, f"problem = {named}", body])


def _expression(thing: Any, namespace: Mapping[str, Any], maker: Any) -> tuple[str, bool] | None:
    """(Python that gives `thing`, whether that is a call of its class): a short call, a variable, or a long call."""
    call = _call(thing)
    if call is not None and len(call) <= _LONGEST_CALL:
        return call, True
    variable = _variable(thing, namespace)
    if variable is not None:
        return variable, False
    making = _variable(maker, namespace) if maker is not None else None
    if making is not None:
        return f"{making}()", False
    return None if call is None else (call, True)


def _call(thing: Any) -> str | None:
    """`repr(thing)` if that makes an equal thing again."""
    if not is_dataclass(thing) or isinstance(thing, type):
        return None
    text = repr(thing)
    try:
        again = eval(text, {type(thing).__name__: type(thing), "inf": float("inf")})
        return text if type(again) is type(thing) and bool(again == thing) and "inf" not in text else None
    except Exception:
        return None


def _variable(thing: Any, namespace: Mapping[str, Any]) -> str | None:
    """The variable that holds `thing`, itself or in a dict or list of its own."""
    own = {name: value for name, value in namespace.items() if not name.startswith("_")}
    for name, value in own.items():
        if value is thing:
            return name
    for name, value in own.items():
        items = value.items() if type(value) is dict else enumerate(value) if type(value) in (list, tuple) else ()
        for key, item in items:
            if item is thing and isinstance(key, (str, int)):
                return f"{name}[{key!r}]"
    return None
