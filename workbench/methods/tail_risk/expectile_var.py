"""Expectile VaR: the expectile of returns as a measure of risk.

Oketunji, "Quantitative Risk Management in Volatile Markets with an Expectile-Based Framework for the FTSE Index" (2025,
arXiv 2507.13391). Only its abstract and first page were within reach; what stands here is the standard theory that it
builds on: Newey and Powell (1987), Taylor (2008), Bellini and Di Bernardino (2017).

Computes e_tau = argmin_m E |tau - 1{Y <= m}| (Y - m)^2, whose first-order condition is
    tau E(Y - e)+ = (1 - tau) E(e - Y)+.
Does: expectiles of samples, of rolling windows and of laws; the tau at which the expectile is a given quantile; expected
shortfall from the expectile; the influence of one observation; an expectile VaR with its interval.
Does not: models of returns (`expectile_models`), tests and scores of forecasts (`backtests`), the workbench's estimator
for bounded losses (`loss_tails`).

Conventions
1. Y are returns in per cent and tau < 1/2 the lower tail; `alpha` is the quantile level P(Y <= q). Losses -Y swap tau and
   1 - tau. A VaR is reported as a positive number. "EVaR" also names the entropic VaR of Ahmadi-Javid, which this is not.
2. Departure: the paper's "threshold determination" is not spelled out in what we could read. `calibrated_tau` is taken,
   under the normal law, a Student law or the sample; these are three different products, and the argument names which.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy import integrate, optimize, stats
from scipy.special import ndtri

from workbench.errors import (
    refuse,
    require_choice,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)
from workbench.estimate import Estimate
from workbench.streams import Stream

CALIBRATIONS = ("normal", "student", "empirical")
_FEWEST = 5  # observations beyond the expectile below which its value rests on single days


def expectile(values: Any, tau: float, weights: Any = None) -> Any:
    """The tau-expectile along the last axis, exactly, in O(n log n); a float for a single sample.

    values (..., n) finite; tau in (0, 1); weights (n,) or as values, at least 0, not all 0. The condition is piecewise
    linear in e between order statistics, so the bracket is found from prefix sums and solved. Equals
    scipy.stats.expectile.
    """
    found = _Sorted.of(values, weights).expectile(require_probability("tau", tau))
    return float(found) if found.ndim == 0 else found


class _Sorted(NamedTuple):
    """Samples sorted along the last axis, with running sums of weight and of weight times value."""

    values: np.ndarray
    weight: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, values: Any, weights: Any = None) -> _Sorted:
        y = np.atleast_1d(require_finite("values", values, "drop or mend the missing ones"))
        if weights is None:
            y = np.sort(y, axis=-1)
            return cls(y, np.arange(1.0, y.shape[-1] + 1), np.cumsum(y, axis=-1))
        w = require_finite("weights", weights, "give one weight a value")
        if w.shape not in (y.shape, y.shape[-1:]):
            raise refuse("the shape of weights", w.shape, f"be {y.shape} or {y.shape[-1:]}", "give one weight a value")
        w = np.broadcast_to(w, y.shape)
        if (w < 0).any() or not (w.sum(axis=-1) > 0).all():
            raise refuse("weights", w.tolist(), "be at least 0 and not all 0", "drop what has no weight")
        order = np.argsort(y, axis=-1)
        y, w = np.take_along_axis(y, order, -1), np.take_along_axis(w, order, -1)
        return cls(y, np.cumsum(w, axis=-1), np.cumsum(w * y, axis=-1))

    def expectile(self, tau: float) -> np.ndarray:
        below, above = self.weight * self.values - self.total, self.total[..., -1:] - self.total
        above = above - (self.weight[..., -1:] - self.weight) * self.values
        # The balance tau E(Y - y_k)+ - (1 - tau) E(y_k - Y)+ falls in y_k: e lies past the last place it is >= 0.
        last = np.maximum((tau * above >= (1 - tau) * below).sum(axis=-1, keepdims=True) - 1, 0)
        weight = np.take_along_axis(np.broadcast_to(self.weight, self.values.shape), last, -1)[..., 0]
        total = np.take_along_axis(self.total, last, -1)[..., 0]
        found = tau * (self.total[..., -1] - total) + (1 - tau) * total
        found = found / (tau * (self.weight[..., -1] - weight) + (1 - tau) * weight)
        return np.clip(found, self.values[..., 0], self.values[..., -1])


class RollingWindows:
    """All windows of the last `window` days of returns (n,), sorted once; forecasts for the day after each.

    Forecast i is of day window + i, i < n - window; the last window's forecast (of a day not yet seen) is left out.
    """

    def __init__(self, returns: Any, window: int) -> None:
        y = varying_returns(returns)
        window = require_integer("window", window, low=2, high=len(y) - 1, cure="take a window shorter than the sample")
        self.window, self.returns = window, y[window:]
        self._sorted = _Sorted.of(np.lib.stride_tricks.sliding_window_view(y, window)[:-1])

    def expectile(self, tau: float) -> np.ndarray:
        """(n - window,) one-day-ahead expectiles."""
        return self._sorted.expectile(require_probability("tau", tau))

    def quantile(self, alpha: float) -> np.ndarray:
        """(n - window,) one-day-ahead quantiles, linear between order statistics as in numpy.quantile."""
        place = require_probability("alpha", alpha) * (self.window - 1)
        first = min(int(place), self.window - 2)
        left, right = self._sorted.values[:, first], self._sorted.values[:, first + 1]
        return left + (place - first) * (right - left)

    def tau_at_coverage(self, violations: int) -> float:
        """The tau at which the expectile forecasts are violated `violations` times, as nearly as can be (bisection)."""
        require_integer("violations", violations, low=0, high=len(self.returns), cure="count days below the forecast")

        def count(tau: float) -> int:
            return int((self.returns < self.expectile(tau)).sum())

        low, high = 1e-6, 0.5
        for _ in range(40):
            middle = float(np.sqrt(low * high))
            found = count(middle)
            if found == violations:
                return middle
            low, high = (middle, high) if found < violations else (low, middle)
        return min(low, high, key=lambda tau: abs(count(tau) - violations))


def check_returns(returns: Any) -> np.ndarray:
    """(n,) finite returns, or a refusal."""
    y = require_finite("returns", returns, "drop or mend the missing days")
    if y.ndim != 1:
        raise refuse("the shape of returns", y.shape, "be (days,)", "pass one series at a time")
    return y


def varying_returns(returns: Any) -> np.ndarray:
    """(n,) finite returns that are not all equal, or a refusal."""
    y = check_returns(returns)
    if y.size > 1 and (y == y[0]).all():
        cure = "nothing can be told of a tail from days that are all alike; check the column that was read"
        raise refuse("returns", f"{y[0]:g} on all {len(y):,} days", "differ from day to day", cure)
    return y


def log_returns(prices: Any) -> np.ndarray:
    """(n - 1,) returns 100 log(p_t / p_{t-1}) in per cent of prices (n,) > 0."""
    p = require_finite("prices", prices, "drop the days without a price")
    if p.ndim != 1 or len(p) < 2:
        raise refuse("the shape of prices", p.shape, "be (days,) with two days or more", "pass one series at a time")
    if (p <= 0).any():
        day = int(np.flatnonzero(p <= 0)[0])
        raise refuse(f"prices[{day}]", p[day], "be greater than 0", "drop or mend that day")
    return 100 * np.diff(np.log(p))


def read_prices(path: Any, *, longest_gap: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """(dates (n,) datetime64[D], closes (n,)) from a CSV file with the columns date and close, one row a trading day.

    Refuses dates that are out of order or twice, and gaps of more than `longest_gap` calendar days: missing days would
    be read as one large return.
    """
    import pandas as pd

    table = pd.read_csv(path)
    table.columns = [str(name).strip().lower() for name in table.columns]
    for column in ("date", "close"):
        if column not in table:
            raise refuse("columns", ", ".join(table.columns), f"include {column!r}", "name them date and close")
    dates = pd.to_datetime(table["date"], errors="coerce", format="ISO8601")
    if dates.isna().any():
        row = int(np.flatnonzero(dates.isna())[0])
        raise refuse(f"date[{row}]", table["date"].iloc[row], "be a date", "write dates as 2024-01-31")
    days = np.asarray(dates, dtype="datetime64[D]")
    gaps = np.diff(days).astype(int)
    if (gaps <= 0).any():
        row = int(np.flatnonzero(gaps <= 0)[0]) + 1
        raise refuse(f"date[{row}]", days[row], "be later than the date before it", "sort the rows, each day once")
    if (gaps > longest_gap).any():
        row = int(np.flatnonzero(gaps > longest_gap)[0]) + 1
        must = f"follow the date before it by at most {longest_gap} days"
        raise refuse(f"date[{row}]", f"{days[row]} after {days[row - 1]}", must, "fill the missing days, or cut there")
    closes = np.asarray(pd.to_numeric(table["close"], errors="coerce"), dtype=float)
    log_returns(closes)
    return days, closes


def tau_of(quantile: Any, alpha: Any, mean: Any, partial_mean: Any) -> Any:
    """tau with e_tau(F) = q: [a q - G] / [m - 2 G - (1 - 2a) q], where q = F^-1(a), m = E Y, G = E[Y 1{Y <= q}].

    0/0, a law in one point, gives 1/2. Arrays broadcast.
    """
    q, a, m, g = np.broadcast_arrays(quantile, alpha, mean, partial_mean)
    above, below = a * q - g, m - 2 * g - (1 - 2 * a) * q
    found = np.where(below == 0, 0.5, above / np.where(below == 0, 1.0, below))
    return float(found) if found.ndim == 0 else found


def partial_mean(law: Any, q: float) -> float:
    """G = E[Y 1{Y <= q}] of a frozen continuous scipy law, by quadrature."""
    # Split where the density is high: a rule over the whole of a wide range would step over it.
    edges = np.unique([min(float(place), q) for place in (*law.ppf([1e-6, 0.5, 1 - 1e-6]), q)])
    found = integrate.tanhsinh(lambda y: y * law.pdf(y), np.r_[-np.inf, edges[:-1]], edges, atol=1e-14, rtol=1e-12)
    return float(found.integral.sum())


def calibrated_tau(law: Any, alpha: float) -> float:
    """The tau whose expectile is the alpha-quantile of `law`, a frozen continuous scipy law with a mean.

    Normal: 0.0014524, 0.0047735, 0.0123873 at 1, 2.5, 5 %; Student with 4 degrees: 0.0039022 at 1 %.
    """
    q = float(law.ppf(require_probability("alpha", alpha)))
    mean = float(law.mean())
    if not np.isfinite(mean):
        raise refuse("law.mean()", mean, "be finite, as an expectile needs a mean", "take e.g. scipy.stats.t(4)")
    return float(tau_of(q, alpha, mean, partial_mean(law, q)))


@cache
def normal_tau(alpha: float) -> float:
    """`calibrated_tau` of the normal law, which does not depend on its mean and SD."""
    return calibrated_tau(stats.norm(), alpha)


def empirical_tau(values: Any, alpha: float) -> Any:
    """The tau whose sample expectile is the sample's alpha-quantile, along the last axis (..., n)."""
    y = require_finite("values", values, "drop or mend the missing ones")
    q = np.quantile(y, require_probability("alpha", alpha), axis=-1, keepdims=True)
    share = (y <= q).mean(axis=-1)
    return tau_of(q[..., 0], share, y.mean(axis=-1), np.where(y <= q, y, 0.0).mean(axis=-1))


def law_expectile(law: Any, tau: float) -> float:
    """e_tau of a frozen continuous scipy law: the root of the first-order condition, by quadrature."""
    tau, mean = require_probability("tau", tau), float(law.mean())

    def balance(e: float) -> float:
        below = e * float(law.cdf(e)) - partial_mean(law, e)  # E(e - Y)+
        return tau * (mean - e + below) - (1 - tau) * below

    low, high = float(law.ppf(1e-9)), float(law.isf(1e-9))
    return float(optimize.brentq(balance, low, high, xtol=1e-14, rtol=1e-14, maxiter=500))  # type: ignore[arg-type]


def tau_for(calibration: str, alpha: float, *, values: Any = None, degrees: float = 4.0) -> float:
    """tau at quantile level alpha under a calibration: "normal", "student" with `degrees`, or "empirical" of `values`."""
    require_choice("calibration", calibration, CALIBRATIONS)
    if calibration == "normal":
        return normal_tau(require_probability("alpha", alpha))
    if calibration == "student":
        return calibrated_tau(
            stats.t(require_number("degrees", degrees, low=1, open_low=True, cure="pass e.g. 4")), alpha
        )
    tau = float(empirical_tau(varying_returns(values), alpha))
    if not 0 < tau < 1:
        raise refuse("returns", list(values), "spread, or no expectile is their quantile", "pass returns that differ")
    return tau


def shortfall_of(e: Any, tau: Any, alpha: Any, mean: Any = 0.0) -> Any:
    """E[Y | Y <= e] from the expectile e = e_tau, alpha = P(Y <= e) and E Y = mean (Taylor 2008).

    e (1 + tau / ((1 - 2 tau) alpha)) - mean tau / ((1 - 2 tau) alpha), tau < 1/2.
    """
    if not (np.asarray(tau) < 0.5).all():
        raise refuse("tau", tau, "be less than 0.5, the lower tail of returns", "use 1 - tau on losses turned round")
    pull = np.asarray(tau) / ((1 - 2 * np.asarray(tau)) * np.asarray(alpha))
    found = np.asarray(e) * (1 + pull) - np.asarray(mean) * pull
    return float(found) if found.ndim == 0 else found


def influence(values: Any, tau: float, at: Any) -> np.ndarray:
    """(k,) how far one more observation at each place of `at` (k,) moves the expectile, times n + 1.

    Grows without bound, linearly, on both sides; a quantile's is flat beyond the quantile.
    """
    y, at = check_returns(values), np.atleast_1d(require_finite("at", at, "pass the places of one more observation"))
    more = np.concatenate([np.broadcast_to(y, (len(at), len(y))), at[:, None]], axis=1)
    return (len(y) + 1) * (expectile(more, tau) - expectile(y, tau))


def expectile_var(
    returns: Any,
    alpha: float = 0.01,
    *,
    calibration: str = "normal",
    degrees: float = 4.0,
    level: float = 0.95,
    resamples: int = 1000,
    stream: Stream | None = None,
) -> Estimate:
    """The expectile VaR -e_tau of returns (n,), in their unit, with a percentile bootstrap interval.

    calibration  how tau follows from alpha: "normal"; "student" with `degrees` of freedom; "empirical", where the
                 expectile is the sample's own quantile and so the VaR itself
    resamples    of the days, with replacement, tau held fixed; it forgets that volatile days come in clusters

    Where fewer than five observations lie beyond the expectile, `reliable` is False: its value rests on single days.
    """
    y, alpha = varying_returns(returns), require_probability("alpha", alpha)
    level = require_probability("level", level)
    resamples = require_integer("resamples", resamples, low=100, cure="pass e.g. resamples=1000")
    if len(y) < 2:
        raise refuse("len(returns)", len(y), "be at least 2", "pass more days")
    tau = tau_for(calibration, alpha, values=y, degrees=degrees)
    value = -float(expectile(y, tau))
    pick = (stream or Stream.of(0, "expectile_var")).generator().integers(len(y), size=(resamples, len(y)))
    drawn = -expectile(y[pick], tau)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    beyond = int((y < -value).sum())
    why = "" if beyond >= _FEWEST else f"only {beyond} of {len(y):,} days lie beyond the expectile, so it rests on them"
    return Estimate(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        std_error=float(drawn.std()),
        level=level,
        interval="percentile bootstrap",
        n_samples=len(y),
        reliable=not why,
        why=why,
        diagnostics={"tau": float(tau), "alpha": alpha, "calibration": calibration, "days_beyond": beyond},
    )


def parametric_normal_var(returns: Any, alpha: float) -> float:
    """The baseline -(mean + z_alpha SD) of returns (n,), a positive number where there is risk."""
    y = varying_returns(returns)
    return -float(y.mean() + ndtri(require_probability("alpha", alpha)) * y.std(ddof=1))
