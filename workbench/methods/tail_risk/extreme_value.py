"""Forecasting the worst of many queries from the risks of a few, by the law of extremes.

Used by Angell et al. (arXiv 2604.22167, Section on deployment risk) after Jones et al., "Forecasting Rare
Language Model Behaviors" (arXiv 2502.16797): psi_i = -log(-log p_i) has a tail that is close to exponential, so
log S(psi) = a psi + b is fitted to the largest psi of m evaluation queries and read off beyond them.
The fit's details (least squares, plotting position (j - 1/2) / m, 10 largest) are inferred from Jones et al.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import (
    WorkbenchError,
    refuse,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)


@dataclass(frozen=True)
class TailFit:
    """log S(psi) = slope psi + intercept, slope < 0, psi = -log(-log p)."""

    slope: float
    intercept: float

    def worst_of(self, n_queries: float) -> float:
        """The risk that one query in n_queries exceeds: S(psi*) = 1 / n_queries; the forecast of the worst of them."""
        require_number("n_queries", n_queries, low=1, cure="ask for at least one query")
        psi = (-np.log(n_queries) - self.intercept) / self.slope
        return float(np.exp(-np.exp(-psi)))

    def exceedance(self, threshold: float, n_queries: int) -> float:
        """P(the worst of n_queries has a risk above `threshold`) = 1 - (1 - S(psi(threshold)))^n."""
        threshold = require_probability("threshold", threshold, cure="pass a risk such as 1e-3")
        require_number("n_queries", n_queries, low=1, cure="ask for at least one query")
        survival = min(1.0, float(np.exp(self.slope * -np.log(-np.log(threshold)) + self.intercept)))
        return float(-np.expm1(n_queries * np.log1p(-survival))) if survival < 1 else 1.0


def fit_tail(risks: np.ndarray, n_largest: int = 10) -> TailFit:
    """Fit the tail to the `n_largest` of the risks (m,), each in (0, 1).

    Raises WorkbenchError for risks of 0 or 1 (an estimate of 0 is "not seen", not a risk), fewer risks than
    asked for, or no spread among them.
    """
    risks = require_finite("risks", risks, "pass estimated risks, one a query")
    n_largest = require_integer("n_largest", n_largest, low=2, cure="10 is usual")
    if risks.ndim != 1:
        raise refuse("risks", f"of shape {risks.shape}", "be one list of numbers", "pass estimated risks, one a query")
    if len(risks) < n_largest:
        raise refuse("risks", f"{len(risks)} numbers", f"hold at least n_largest={n_largest}", "evaluate more queries")
    if (risks <= 0).any() or (risks >= 1).any():
        bad = risks[(risks <= 0) | (risks >= 1)][0]
        raise refuse("risks", bad, "lie strictly between 0 and 1", "leave out queries whose risk was not seen")
    largest = np.sort(risks)[::-1][:n_largest]
    psi = -np.log(-np.log(largest))
    if np.ptp(psi) < 1e-12:
        raise WorkbenchError(
            f"The {n_largest} largest risks are all {largest[0]:.3g}, so their tail has no slope; evaluate more queries."
        )
    log_survival = np.log((np.arange(n_largest) + 0.5) / len(risks))
    slope, intercept = np.polyfit(psi, log_survival, 1)
    return TailFit(float(slope), float(intercept))
