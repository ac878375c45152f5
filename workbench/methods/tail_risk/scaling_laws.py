"""How ASR@N grows with N: the laws under theta ~ Beta(a, b), and point estimators from counts.

Source: Feng et al. (2026, arXiv 2601.22636), Sections 3 and 4 and Appendix B; the departures are
listed in `saber`, which adds intervals and the workbench's estimator.

ASR@N is a share in [0, 1] throughout; k_i successes in n_i tries at query i; n_tries is N.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import betaln, gammaln, logsumexp
from scipy.stats import binom

from workbench.errors import refuse, require_choice, require_finite, require_integer, require_number
from workbench.methods.tail_risk.beta_binomial import BetaFit, SpikedFit, check_counts, one_table

LAWS = ("exact", "plain", "corrected")


def check_tries(n_tries: Any) -> np.ndarray:
    tries = require_finite("n_tries", n_tries, "pass a number of tries such as 1000")
    if (tries < 1).any():
        raise refuse("n_tries", float(tries.min()), "be at least 1", "pass the number of tries per query, e.g. 1000")
    return tries


def _shape_parameters(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    cure = "a Beta distribution has two positive parameters, e.g. a=0.4, b=4"
    values = require_finite("a", a, cure), require_finite("b", b, cure)
    for name, value in zip("ab", values, strict=True):
        if (value <= 0).any():
            raise refuse(name, float(value.min()), "be greater than 0", cure)
    return values


def log_survival(a: Any, b: Any, n_tries: Any, law: str = "exact") -> np.ndarray:
    """log(1 - ASR@N) for theta ~ Beta(a, b); arguments broadcast.

    exact      log B(a, b + N) - log B(a, b)
    plain      log C - a log N with C = Gamma(a + b) / Gamma(b)                     (Theorem 3.1)
    corrected  the same at N + b + (a - 1) / 2                                      (Eq. 56)

    For a < 1 the corrected law is off by at most |a (a + 1) (a - 1)| / 24 C (N + b + (a - 1)/2)^(-a - 2).
    The plain law can exceed 0 (an ASR below 0) where N is not far above b.
    """
    require_choice("law", law, LAWS)
    a, b = _shape_parameters(a, b)
    tries = check_tries(n_tries)
    return log_survival_of(a, b, tries, law)


def log_survival_of(a: np.ndarray, b: np.ndarray, tries: Any, law: str) -> np.ndarray:
    if law == "exact":
        return betaln(a, b + tries) - betaln(a, b)
    shift = b + (a - 1) / 2 if law == "corrected" else 0.0
    return gammaln(a + b) - gammaln(b) - a * np.log(tries + shift)


def log_ratio(a: np.ndarray, b: np.ndarray, done: Any, tries: Any, law: str) -> np.ndarray:
    """log of (1 - ASR@N) / (1 - ASR@n): the chance that a query without success in n has none in N."""
    if law == "exact":
        return betaln(a, b + tries) - betaln(a, b + done)
    shift = b + (a - 1) / 2 if law == "corrected" else 0.0
    return a * (np.log(done + shift) - np.log(tries + shift))


def asr(a: Any, b: Any, n_tries: Any, law: str = "exact") -> np.ndarray:
    """ASR@N = 1 - exp(log_survival): the share of queries hit within N tries, for theta ~ Beta(a, b)."""
    return -np.expm1(log_survival(a, b, n_tries, law))


def spiked_asr(fit: SpikedFit, n_tries: Any) -> np.ndarray:
    """ASR@N with a share pi of queries that never succeed: (1 - pi) (1 - B(a, b + N) / B(a, b))."""
    return (1 - fit.pi) * asr(fit.a, fit.b, n_tries)


def benign_traffic_asr(a: float, b: float, harmful_share: float, n_tries: int, *, new_prompts: bool = False) -> float:
    """The chance of at least one harmful answer in N requests of which a share p_h is harmful.

    By default the harmful requests are all one query: 1 - 2F1(-N, a; a + b; p_h) (Eq. 37), summed as
    E[B(a, b + J) / B(a, b)] over J ~ Binomial(N, p_h), whose terms are all positive. With
    `new_prompts` each harmful request is a query of its own: 1 - (1 - p_h a / (a + b))^N (Eq. 38).
    """
    a, b = (float(value) for value in _shape_parameters(a, b))
    p = require_number(
        "harmful_share", harmful_share, low=0, high=1, cure="pass the share of harmful requests, e.g. 0.01"
    )
    n = require_integer("n_tries", n_tries, low=1, cure="pass a whole number of requests, e.g. 1000")
    if new_prompts:
        return float(-np.expm1(n * np.log1p(-p * a / (a + b))))
    harmful = np.arange(n + 1)
    return float(-np.expm1(logsumexp(binom.logpmf(harmful, n, p) + betaln(a, b + harmful) - betaln(a, b))))


def naive(k: Any, n: Any, n_tries: Any) -> np.ndarray:
    """Mean of 1 - (1 - k_i / n_i)^N (Eq. 15): as if each k_i / n_i were theta_i; far too low for N > n."""
    k, n = check_counts(k, n)
    with np.errstate(divide="ignore"):
        return -np.expm1(check_tries(n_tries)[..., None] * np.log1p(-k / n)).mean(axis=-1)


def pass_at(k: Any, n: Any, n_tries: Any) -> np.ndarray:
    """Mean of 1 - C(n_i - k_i, N) / C(n_i, N) (Chen et al. 2021): unbiased, for N <= every n_i."""
    k, n = check_counts(k, n)
    tries = check_tries(n_tries)
    if (tries > n.min()).any():
        raise refuse(
            "n_tries",
            float(tries.max()),
            f"be at most the smallest n, {n.min()}",
            "pass_at can't extrapolate; use anchored() for larger N",
        )
    return 1 - _observed_survival(k, n, tries[..., None]).mean(axis=-1)


def _observed_survival(k: np.ndarray, n: np.ndarray, tries: np.ndarray) -> np.ndarray:
    """C(n - k, N) / C(n, N), which is 0 where N > n - k; N <= n."""
    left = np.maximum(n - k - tries, 0)
    log_share = gammaln(n - k + 1) - gammaln(left + 1) + gammaln(np.maximum(n - tries, 0) + 1) - gammaln(n + 1)
    return np.where(tries <= n - k, np.exp(np.minimum(log_share, 0.0)), 0.0)


def power_law(k: Any, n: Any, n_tries: Any) -> np.ndarray:
    """Hughes et al. (2024): -log ASR@m = A m^-B, fitted on the log-log scale for m <= n, read off at N.

    Weighted by 1/m and from m = 5 on, as in the authors' code; values of m at which all or none of the
    queries are hit are left out, and fewer than two usable ones are refused. One data set.
    """
    k, n = one_table(k, n)
    observed = np.arange(5 if n.min() >= 10 else 1, n.min() + 1)
    curve = pass_at(k, n, observed)
    usable = (curve > 0) & (curve < 1)
    if usable.sum() < 2:
        raise refuse(
            "the number of m with ASR@m strictly between 0 and 1",
            int(usable.sum()),
            "be at least 2",
            "make more tries, so that some queries are hit and some are not",
        )
    observed, curve = observed[usable], curve[usable]
    slope, intercept = np.polyfit(np.log(observed), np.log(-np.log(curve)), 1, w=1 / observed)
    return np.exp(-np.exp(intercept + slope * np.log(check_tries(n_tries))))


def plug_in(fit: BetaFit, n_tries: Any, law: str = "exact") -> np.ndarray:
    """The law at the fitted a and b (Eq. 11)."""
    return asr(fit.a, fit.b, n_tries, law)


def anchored(k: Any, n: Any, n_tries: Any, fit: BetaFit, law: str = "exact") -> np.ndarray:
    """1 - (1 - ASR_n) (n / N)^a (Eq. 12), the observed share of queries hit carried on to N by the law.

    k: (..., n_queries); n the same or one number; n_tries: (...) or scalar, the leading shapes
    broadcast, so that one data set and an array of N give a curve. With law="exact" it is
    1 - mean_i w_i, w_i = 1{k_i = 0} B(a, b + N) / B(a, b + n_i), or C(n_i - k_i, N) / C(n_i, N) where
    N <= n_i. If all queries were hit it is 1 whatever N.
    """
    require_choice("law", law, LAWS)
    k, n = check_counts(k, n)
    return 1 - survival_weights(k, n, check_tries(n_tries), fit.a, fit.b, law).mean(axis=-1)


def survival_weights(
    k: np.ndarray, n: np.ndarray, tries: np.ndarray, a: np.ndarray, b: np.ndarray, law: str
) -> np.ndarray:
    """Each query's estimate of (1 - theta_i)^N, (..., n_queries)."""
    a, b, tries = np.asarray(a)[..., None], np.asarray(b)[..., None], tries[..., None]
    per_query = law == "exact" and bool((n != n[..., :1]).any())
    done = n if per_query else n.mean(axis=-1, keepdims=True)
    weights = (k == 0) * np.exp(log_ratio(a, b, np.minimum(done, tries), tries, law))
    inside = tries <= (n if per_query else n.min(axis=-1, keepdims=True))
    if not inside.any():
        return weights
    return np.where(inside, _observed_survival(k, n, np.minimum(tries, n)), weights)
