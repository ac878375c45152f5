"""Do counts of successes look like draws from the fitted beta-binomial law?

Does: Pearson's statistic over cells of successes, its p-value by a parametric bootstrap that fits every draw again.
Does not: say where an ill fit matters; the tail beyond the tries that were made can't be seen in the counts at all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import betabinom

from workbench.errors import refuse, require_integer
from workbench.methods.tail_risk.beta_binomial import BetaFit, fit_beta_binomial, one_table
from workbench.streams import Stream

_LEAST_EXPECTED = 3.0


class Fit(NamedTuple):
    """statistic    X^2 = sum over cells of (observed - expected)^2 / expected
    p_value      share of draws from the fitted law whose own X^2 is at least as large, (1 + #) / (1 + draws)
    cells        the upper ends of the cells of k, the last one the largest n
    observed, expected   queries in each cell, under the counts and under the fit
    """

    statistic: float
    p_value: float
    cells: np.ndarray
    observed: np.ndarray
    expected: np.ndarray


def goodness_of_fit(k: Any, n: Any, stream: Stream, *, draws: int = 200) -> Fit:
    """Pearson's test of the beta-binomial law for k (n_queries,) successes in n tries.

    Cells of k are merged from 0 upwards until three queries are expected in each. Each of `draws` tables, drawn at the
    fitted a and b with the same tries, is fitted again, so that p is that of a law with unknown parameters. Refuses
    counts with one try a query, on which every law with the same mean agrees, and fits on the edge of their range.
    """
    k, n = one_table(k, n)
    draws = require_integer("draws", draws, low=19, cure="draw at least 19 tables, for p-values down to 0.05")
    if n.max() < 2:
        raise refuse("n", 1, "be at least 2 for some query", "try each query several times")
    fit = fit_beta_binomial(k, n)
    if fit.capped:
        must = "have a maximum inside the range of a and b"
        raise refuse("the fit of k", f"a = {float(fit.a):g}, b = {float(fit.b):g}", must, "make more tries")
    kinds, of_kind = np.unique(n, return_counts=True)
    cells = _cells(kinds, of_kind, fit)
    generator = stream.generator()
    thetas = generator.beta(float(fit.a), float(fit.b), (draws, k.size))
    tables = generator.binomial(n, thetas)
    again = fit_beta_binomial(tables, np.broadcast_to(n, tables.shape))
    expected = _expected(cells, kinds, of_kind, fit.a, fit.b)
    observed = _observed(cells, k)
    statistic = _pearson(observed, expected)
    drawn = _pearson(_observed(cells, tables), _expected(cells, kinds, of_kind, again.a, again.b))
    p_value = (1 + int((drawn >= statistic * (1 - 1e-12)).sum())) / (1 + draws)
    return Fit(float(statistic), p_value, cells, observed, expected)


def _cells(kinds: np.ndarray, of_kind: np.ndarray, fit: BetaFit) -> np.ndarray:
    """Upper ends of cells of k with enough expected queries in each."""
    upto = _upto(np.arange(kinds.max() + 1), kinds, of_kind, fit.a, fit.b)
    ends, below = [], 0.0
    for end, total in enumerate(upto):
        if total - below >= _LEAST_EXPECTED and (upto[-1] - total >= _LEAST_EXPECTED):
            ends.append(end)
            below = total
    return np.array([*ends, kinds.max()])


def _upto(ends: np.ndarray, kinds: np.ndarray, of_kind: np.ndarray, a: Any, b: Any) -> np.ndarray:
    """(..., len(ends)) expected number of queries with k <= end."""
    a, b = (np.asarray(part, dtype=float)[..., None, None] for part in (a, b))
    below = betabinom.cdf(np.minimum(ends[:, None], kinds), kinds, a, b)
    return (below * of_kind).sum(axis=-1)


def _expected(cells: np.ndarray, kinds: np.ndarray, of_kind: np.ndarray, a: Any, b: Any) -> np.ndarray:
    return np.diff(_upto(cells, kinds, of_kind, a, b), prepend=0.0, axis=-1)


def _observed(cells: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.diff((k[..., None] <= cells).sum(axis=-2), prepend=0, axis=-1)


def _pearson(observed: np.ndarray, expected: np.ndarray) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(expected > 0, (observed - expected) ** 2 / expected, np.where(observed > 0, np.inf, 0.0))
    return terms.sum(axis=-1)
