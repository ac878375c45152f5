"""Tests and scores of one-day-ahead forecasts of quantiles, expectiles and expected shortfall.

For expectile-var (arXiv 2507.13391), after Kupiec (1995), Christoffersen (1998), Diebold and Mariano (1995), Acerbi and
Szekely (2014), Ehm, Gneiting, Jordan and Krueger (2016).
Does: coverage tests, identification tests of expectiles, consistent scores, Murphy diagrams, comparisons of forecasts.
Does not: forecast anything. Returns and forecasts are (n,) in one unit, lower tail; a hit is a return below its forecast.
Scores of different functionals (pinball, asymmetric squares) must not be compared with each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.special import xlogy

from workbench.errors import refuse, require_finite, require_integer, require_probability
from workbench.methods.tail_risk.expectile_models import asymmetric_squares
from workbench.methods.tail_risk.expectile_var import check_returns


class Test(NamedTuple):
    """A test's statistic and its p-value."""

    statistic: float
    p_value: float

    __test__ = False  # not a test of pytest's


def kupiec(hits: Any, alpha: float) -> Test:
    """Is the share of hits alpha? LR_uc = -2 [n0 log(1 - a) + n1 log a - n0 log(1 - p) - n1 log p], chi-squared(1)."""
    hit, alpha = _hits(hits), require_probability("alpha", alpha)
    n, ones = len(hit), int(hit.sum())
    share = ones / n
    ratio = 2 * float(_bernoulli(n - ones, ones, share) - _bernoulli(n - ones, ones, alpha))
    return Test(max(ratio, 0.0), float(stats.chi2.sf(ratio, 1)))


def christoffersen(hits: Any, alpha: float) -> tuple[Test, Test]:
    """(LR_ind, LR_cc): does a hit today change tomorrow's chance (chi-squared(1)); and that with `kupiec` (2 degrees)."""
    hit = _hits(hits)
    before, after = hit[:-1], hit[1:]
    n00, n01 = int((~before & ~after).sum()), int((~before & after).sum())
    n10, n11 = int((before & ~after).sum()), int((before & after).sum())
    apart = _bernoulli(n00, n01, n01 / max(n00 + n01, 1)) + _bernoulli(n10, n11, n11 / max(n10 + n11, 1))
    alike = _bernoulli(n00 + n10, n01 + n11, (n01 + n11) / (len(hit) - 1))
    independent = max(2 * float(apart - alike), 0.0)
    both = independent + kupiec(hit, alpha).statistic
    return Test(independent, float(stats.chi2.sf(independent, 1))), Test(both, float(stats.chi2.sf(both, 2)))


def _bernoulli(zeros: int, ones: int, p: float) -> Any:
    return xlogy(zeros, 1 - p) + xlogy(ones, p)


def _hits(hits: Any) -> np.ndarray:
    hit = np.asarray(hits)
    if hit.dtype != bool or hit.ndim != 1 or len(hit) < 2:
        raise refuse("hits", f"{hit.dtype} of shape {hit.shape}", "be bool (days,)", "pass returns < forecast")
    return hit


def newey_west_error(values: Any, lags: int = 10) -> float:
    """Standard error of the mean of a series (n,) with Bartlett weights to `lags`."""
    x = require_finite("values", values, "drop the missing days")
    lags = require_integer("lags", lags, low=0, high=len(x) - 1, cure="take fewer lags than days")
    x = x - x.mean()
    variance = x @ x + 2 * sum((1 - lag / (lags + 1)) * (x[lag:] @ x[:-lag]) for lag in range(1, lags + 1))
    return float(np.sqrt(max(variance, 0.0))) / len(x)


def block_indices(n: int, block: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(resamples, n) indices of the moving block bootstrap: blocks of `block` days in a row, laid end to end."""
    n = require_integer("n", n, low=1, cure="pass the number of days")
    block = require_integer("block", block, low=1, high=n, cure="take blocks shorter than the sample")
    starts = generator.integers(n - block + 1, size=(resamples, -(-n // block)))
    return (starts[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :n]


def diebold_mariano(scores: Any, other_scores: Any, lags: int = 10) -> Test:
    """t of the mean of `other_scores - scores` (n,) with HAC errors: positive where `scores` are the better, lower ones."""
    difference = require_finite("other_scores - scores", np.subtract(other_scores, scores), "drop the missing days")
    error = newey_west_error(difference, lags)
    if error == 0:
        raise refuse("the difference of scores", "constant", "vary", "compare two different forecasts")
    t = float(difference.mean()) / error
    return Test(t, float(2 * stats.norm.sf(abs(t))))


def fewer_hits(hits: Any, other_hits: Any) -> Test:
    """Exact one-sided McNemar test that `hits` (n,) are rarer than `other_hits`: of the days on which they differ, how
    many are hits of `other_hits` alone. The statistic is that count; without a day that differs p is 1."""
    one, other = _hits(hits), _hits(other_hits)
    alone, other_alone = int((one & ~other).sum()), int((other & ~one).sum())
    if alone + other_alone == 0:
        return Test(0.0, 1.0)
    p = stats.binomtest(other_alone, alone + other_alone, alternative="greater").pvalue
    return Test(float(other_alone), float(p))


def pinball(y: Any, q: Any, alpha: float) -> np.ndarray:
    """(alpha - 1{y < q}) (y - q), the score of an alpha-quantile forecast."""
    y, q = np.asarray(y), np.asarray(q)
    return (require_probability("alpha", alpha) - (y < q)) * (y - q)


def expectile_score(y: Any, e: Any, tau: float) -> np.ndarray:
    """|tau - 1{y <= e}| (y - e)^2, the score of a tau-expectile forecast."""
    return asymmetric_squares(np.asarray(y), np.asarray(e), require_probability("tau", tau))


def identification(y: Any, e: Any, tau: float, *, scale: Any = None, lags: int = 10) -> tuple[Test, Test]:
    """(t-test, Wald test) of E[v_t | past] = 0 with v_t = |tau - 1{y_t <= e_t}| (y_t - e_t) / s_t.

    The Wald test regresses v_t on (1, log s_t) with HAC errors (chi-squared(2)); s_t defaults to |e_t|. At extreme tau
    both are weak, and over-sized: one crash day can reject a perfect forecast. Report their power.
    """
    import statsmodels.api as sm

    y, e = check_returns(y), check_returns(e)
    s = np.abs(e) if scale is None else check_returns(scale)
    if not (s > 0).all():
        raise refuse("scale", s.min(), "be greater than 0", "pass the forecast's sigma")
    v = np.where(y <= e, 1 - tau, tau) * (y - e) / s
    t = float(v.mean()) / newey_west_error(v, lags)
    x = np.column_stack([np.ones(len(v)), np.log(s) - np.log(s).mean()])
    fit = sm.OLS(v, x).fit(cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": False})
    wald = float(fit.params @ np.linalg.solve(fit.cov_params(), fit.params))
    return Test(t, float(2 * stats.norm.sf(abs(t)))), Test(wald, float(stats.chi2.sf(wald, 2)))


def acerbi_szekely(y: Any, quantile: Any, shortfall: Any, alpha: float) -> float:
    """Z = 1 - sum_t y_t 1{y_t < q_t} / (n alpha ES_t) with forecasts q_t and ES_t = E[Y | Y <= q_t] < 0.

    0 on average for right forecasts; negative where the shortfall is worse than forecast.
    """
    y, q, es = check_returns(y), check_returns(quantile), check_returns(shortfall)
    if not (es < 0).all():
        raise refuse("shortfall", es.max(), "be less than 0, a mean of the worst returns", "turn its sign round")
    return float(1 - np.sum(np.where(y < q, y / es, 0.0)) / (len(y) * require_probability("alpha", alpha)))


def murphy(y: Any, forecast: Any, thetas: Any, *, tau: float | None = None, alpha: float | None = None) -> np.ndarray:
    """(k,) mean elementary scores at each theta (k,), of an expectile (`tau`) or a quantile forecast (`alpha`).

    expectile: |1{y < x} - tau| ((y - theta)+ - (x - theta)+ - (y - x) 1{theta < x});
    quantile: (1{y < x} - alpha) (1{theta < x} - 1{theta < y}). A forecast that is lower at every theta is better under
    every consistent score. Twice the integral of the first is `expectile_score`; the integral of the second `pinball`.
    """
    if (tau is None) == (alpha is None):
        raise refuse("tau and alpha", (tau, alpha), "name one functional", "pass tau=... or alpha=...")
    y, x = check_returns(y), check_returns(forecast)
    found = []
    for theta in np.atleast_1d(np.asarray(thetas, dtype=float)):
        if alpha is not None:
            scores = ((y < x) - alpha) * ((theta < x).astype(float) - (theta < y))
        else:
            excess = np.maximum(y - theta, 0) - np.maximum(x - theta, 0) - (y - x) * (theta < x)
            scores = np.abs((y < x) - float(tau)) * excess  # type: ignore[arg-type]
        found.append(scores.mean())
    return np.array(found)
