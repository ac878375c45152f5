"""Refusals: one sentence that names the argument, what it was, what it must be, and the usual cure."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import numpy as np


class WorkbenchError(ValueError):
    """Bad input, told in one sentence. The command line prints it and exits with status 2."""


class Unsuitable(WorkbenchError):
    """The estimator can't answer this kind of problem."""


class LacksCapability(WorkbenchError):
    """The model can't do what was asked of it."""


class DoesNotFit(WorkbenchError):
    """The model needs more memory than is free."""


def refuse(
    argument: str, value: Any, must: str, cure: str, kind: type[WorkbenchError] = WorkbenchError
) -> WorkbenchError:
    """The error to raise: "alpha is 1.2 but must lie strictly between 0 and 1; pass e.g. alpha=0.1"."""
    shown = repr(value) if isinstance(value, str) else str(value)
    if len(shown) > 200:
        shown = shown[:200] + "..."
    return kind(f"{argument} is {shown} but must {must}; {cure}.")


def require_number(
    argument: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    cure: str,
) -> float:
    """`value` as a float, or a refusal: real, finite and inside the range (ends open where asked)."""
    lower, upper = ("greater than" if open_low else "at least"), ("less than" if open_high else "at most")
    parts = ([f"{lower} {low:g}"] if low > -math.inf else []) + ([f"{upper} {high:g}"] if high < math.inf else [])
    must = "be a finite number" + (" " + " and ".join(parts) if parts else "")
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.number)):
        raise refuse(argument, value, must, cure)
    number = float(value)
    inside = (number > low if open_low else number >= low) and (number < high if open_high else number <= high)
    if not math.isfinite(number) or not inside:
        raise refuse(argument, value, must, cure)
    return number


def require_probability(argument: str, value: Any, *, cure: str = "") -> float:
    """`value` as a float strictly between 0 and 1, or a refusal."""
    cure = cure or f"pass e.g. {argument}=0.01"
    return require_number(argument, value, low=0, high=1, open_low=True, open_high=True, cure=cure)


def require_integer(argument: str, value: Any, *, low: int | None = None, high: int | None = None, cure: str) -> int:
    """`value` as an int, or a refusal: whole and inside [low, high]."""
    bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    must = "be a whole number" + (" " + " and ".join(bounds) if bounds else "")
    if not isinstance(value, (numbers.Integral, np.integer)) or isinstance(value, (bool, np.bool_)):
        raise refuse(argument, value, must, cure)
    whole = int(value)
    if (low is not None and whole < low) or (high is not None and whole > high):
        raise refuse(argument, value, must, cure)
    return whole


def require_choice(argument: str, value: Any, choices: Iterable[str], cure: str = "") -> str:
    """`value`, or a refusal that lists the choices and names the nearest one."""
    known = list(choices)
    if value in known:
        return value
    near = get_close_matches(str(value), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(known) if len(known) <= 12 else f"{', '.join(known[:8])}, ... ({len(known)} in all)"
    advice = " ".join(part for part in (hint, cure) if part).rstrip(".") or "choose one of them"
    raise refuse(argument, value, f"be one of {listed}", advice)


def require_finite(argument: str, values: Any, cure: str, *, allow_empty: bool = False) -> np.ndarray:
    """`values` as a float64 array without NaN or infinity, or a refusal that says where the first one is."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise refuse(argument, values, "be an array of numbers", cure) from None
    if array.size == 0 and not allow_empty:
        raise refuse(argument, "empty", "hold at least one number", cure)
    bad = ~np.isfinite(array)
    if bad.any():
        where = int(np.flatnonzero(bad.ravel())[0])
        raise refuse(f"{argument}[{where}]", array.ravel()[where], "be finite", cure)
    return array
