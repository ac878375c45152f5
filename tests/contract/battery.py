"""What every estimator is held to. A new estimator gets all of it by being in a family."""

from __future__ import annotations

from typing import Any

from workbench.methods import estimators
from workbench.problems.suite import suitable


def cases() -> list[tuple[str, Any, Any]]:
    """(label, estimator with its defaults, problem) for each estimator and each problem it accepts."""
    found = []
    for name, kind in estimators().items():
        for problem in suitable(kind()):
            found.append((f"{name}-on-{problem.name}", kind(), problem))
    return found


def case(label: str) -> tuple[Any, Any]:
    return next((estimator, problem) for name, estimator, problem in cases() if name == label)
