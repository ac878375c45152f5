"""What the tests of the classics ask of many runs: no bias, coverage, and how the variance compares at equal spend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

import workbench as wb


def repeat(problem: Any, estimator: Any, repeats: int, *, first: int = 0, **budget: float) -> list[wb.Estimate]:
    """One run at each seed first, first + 1, ..."""
    limit = wb.Budget(**budget)
    return [wb.run(problem, estimator, limit, seed=first + s, progress=False) for s in range(repeats)]


def values(estimates: list[wb.Estimate]) -> np.ndarray:
    return np.array([estimate.value for estimate in estimates], dtype=float)


def bias_in_errors(estimates: list[wb.Estimate], truth: float) -> float:
    """(mean - truth) over the standard error of that mean."""
    x = values(estimates)
    return float((x.mean() - truth) / (x.std(ddof=1) / math.sqrt(len(x))))


def covered(estimates: list[wb.Estimate], truth: float) -> tuple[int, int]:
    """(trusted intervals that hold the truth, trusted intervals)."""
    trusted = [estimate for estimate in estimates if estimate.reliable]
    return sum(estimate.low <= truth <= estimate.high for estimate in trusted), len(trusted)


def covers(estimates: list[wb.Estimate], truth: float) -> bool:
    """Whether coverage agrees with at least 93 %: one that covers 93 % fails with probability 1e-4."""
    held, of = covered(estimates, truth)
    return held >= int(stats.binom.ppf(1e-4, of, 0.93))


def variance_ratio(fewer: list[wb.Estimate], more: list[wb.Estimate]) -> tuple[float, float, float]:
    """Variance of `more` over that of `fewer`, with its 99.9 % interval by F, for values that are about normal."""
    a, b = values(more), values(fewer)
    ratio = float(a.var(ddof=1) / b.var(ddof=1))
    tail = stats.f.isf(0.0005, len(a) - 1, len(b) - 1)
    return ratio, float(ratio / tail), float(ratio * stats.f.isf(0.0005, len(b) - 1, len(a) - 1))
