"""The answer: a value with its uncertainty, what it cost, and how far to believe it."""

from __future__ import annotations

import html
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from workbench.budget import Spend
from workbench.errors import WorkbenchError, refuse


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate that is valid at any moment of a run.

    value       the point estimate, or None while nothing can be said
    std_error   its standard error in the same unit, or None where the method gives none
    low, high   the interval; the whole range of the quantity while nothing can be said
    level       confidence level of the interval, in (0, 1)
    interval    its kind: "normal", "Wilson", "delta method, log scale", "whole range", ...
    n_samples   draws absorbed
    reliable    False where the interval should not be trusted; `why` then says why
    why         one sentence, empty if there is nothing to warn of
    diagnostics numbers and words about the run (effective sample size, weights, rounds, ...)
    spend       what was spent in total, as the meter counted it
    problem, estimator, seed, truth, stopped, replay   filled in by `run`
    """

    value: float | None
    low: float
    high: float
    std_error: float | None = None
    level: float = 0.95
    interval: str = "normal"
    n_samples: int = 0
    reliable: bool = True
    why: str = ""
    diagnostics: dict[str, Any] = field(default_factory=dict)
    spend: Spend = field(default_factory=Spend)
    problem: str = ""
    estimator: str = ""
    seed: int | None = None
    truth: float | None = None
    stopped: str = ""
    replay: str = "exact replay"

    def __post_init__(self) -> None:
        for name in ("value", "std_error", "low", "high"):
            number = getattr(self, name)
            if number is not None and math.isnan(number):
                raise refuse(
                    f"Estimate({name})",
                    number,
                    "not be NaN",
                    "an estimator that can say nothing gives value=None, the whole range, and why",
                )
        if not self.low <= self.high:
            raise refuse(
                "Estimate(low)", self.low, f"not exceed high={self.high}", "check the order of the interval's ends"
            )
        if self.value is not None and not self.low <= self.value <= self.high:
            raise refuse(
                "Estimate(value)",
                self.value,
                f"lie in its interval [{self.low}, {self.high}]",
                "check the interval's formula",
            )

    @classmethod
    def unknown(cls, low: float, high: float, why: str, **kwargs: Any) -> Estimate:
        """The honest answer where nothing can be said: the whole range, and why."""
        return cls(value=None, low=low, high=high, interval="whole range", reliable=False, why=why, **kwargs)

    def with_run(self, **kwargs: Any) -> Estimate:
        return replace(self, **kwargs)

    @property
    def answer(self) -> dict[str, Any]:
        """What has to be identical in a replay: everything but what was spent."""
        return {name: value for name, value in self.to_dict().items() if name not in ("spend", "stopped")}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        """One line of JSON; infinite ends are written as the strings "inf" and "-inf"."""
        return json.dumps(_plain(self.to_dict()), allow_nan=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Estimate:
        """The estimate that `to_json` wrote, equal to it field by field."""
        try:
            data = json.loads(text)
            known = {item.name for item in fields(cls)}
            unknown = sorted(set(data) - known)
            if unknown:
                raise WorkbenchError(
                    f"An estimate's JSON has no key {unknown[0]!r}; was it written by a newer version?"
                )
            for name in ("low", "high"):
                data[name] = float(data[name])
            return cls(**data | {"spend": Spend(**data["spend"])})
        except WorkbenchError:
            raise
        except (json.JSONDecodeError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise WorkbenchError(
                f"This is not an estimate's JSON ({error}); pass what Estimate.to_json() wrote."
            ) from None

    def __str__(self) -> str:
        point = "unknown" if self.value is None else f"{self.value:.4g}"
        text = f"{point}  [{self.low:.4g}, {self.high:.4g}]  ({self.level:.0%} {self.interval}; {self.n_samples:,} samples; spent {self.spend})"
        if self.truth is not None:
            text += f"; truth {self.truth:.4g}"
        return text + (f"\n{'unreliable' if not self.reliable else 'note'}: {self.why}" if self.why else "")

    def _repr_html_(self) -> str:
        say = html.escape
        point = "unknown" if self.value is None else f"{self.value:.4g}"
        rows = [
            ("interval", f"{self.low:.4g} to {self.high:.4g} ({self.level:.0%}, {self.interval})"),
            ("standard error", "" if self.std_error is None else f"{self.std_error:.3g}"),
            ("truth", "" if self.truth is None else f"{self.truth:.4g}"),
            ("samples", f"{self.n_samples:,}"),
            ("spent", str(self.spend)),
            ("stopped", self.stopped),
            ("unreliable" if not self.reliable else "note", self.why),
        ]
        body = "".join(
            f"<tr><td style='text-align:left'>{name}</td><td style='text-align:left'>{say(text)}</td></tr>"
            for name, text in rows
            if text
        )
        return f"<table><caption style='text-align:left'><strong>{point}</strong> {say(self.estimator)} on {say(self.problem)}</caption>{body}</table>"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value
