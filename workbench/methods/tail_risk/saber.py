"""SABER: attack success after N tries per query, predicted from n << N tries.

Feng, Liu, Yang, Xu, White and Gao, "Statistical Estimation of Adversarial Risk in Large Language
Models under Best-of-N Sampling" (2026, arXiv 2601.22636), Sections 3 and 4 and Appendix B.

Computes ASR@N = E[1 - (1 - theta)^N], the share of queries on which at least one of N independent
tries succeeds, when query i's tries succeed with probability theta_i ~ Beta(a, b).

Does: the exact law and its asymptotics; the estimators Anchored, Plug-in, power law, naive and
pass@N; intervals; tries needed for a target; the extensions (a spike at zero, benign traffic); the
workbench's estimator `Saber`.
Does not: the fits themselves (`beta_binomial`); attacks whose tries depend on earlier tries, for
which theta_i is not a constant and none of this holds.

Departures
1. `law="exact"` (the default) uses B(a, b + N) / B(a, b + n) where the paper has (n / N)^a; it costs
   nothing and needs no correction for small N. "plain" and "corrected" are the paper's.
2. Uneven budgets n_i: with the exact law each query without a success carries its own ratio from n_i
   to N, which is unbiased given (a, b). With the other laws the share of queries hit is anchored at
   the mean budget, as in the paper, which is biased.
3. The corrected law shifts N by b + (a - 1) / 2 with the fitted b (Appendix B); the authors' code puts
   b = 1 there for Anchored.
4. Where N <= n_i nothing is extrapolated: the query counts with its unbiased C(n-k, N) / C(n, N).
5. `joint_interval` carries the noise of the anchor, that of a and b, and their covariance; the paper's
   interval (`alpha_interval`) carries that of a alone and covers far too rarely. Ours is taken on the
   scale of log(-log(1 - ASR@N)), where small n errs evenly to both sides, and comes in two kinds, for
   two truths: the ASR@N of the population that the queries are a sample of, and that of the very
   queries at hand.
6. Data on which the model says nothing (no success, no failure, no sign that queries differ) get
   `distribution_free_interval`, which holds for every distribution of theta.
7. Eq. 38 (benign traffic, a new harmful prompt each time) is printed without the share of harmful
   prompts; it is put back here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from workbench.errors import Unsuitable, refuse, require_choice, require_integer, require_probability
from workbench.estimate import Estimate
from workbench.methods.tail_risk.beta_binomial import BetaFit, check_counts, fit_beta_binomial, one_table, query_scores
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.methods.tail_risk.scaling_laws import (
    LAWS,
    anchored,
    check_tries,
    log_survival_of,
    naive,
    plug_in,
    survival_weights,
)
from workbench.problems.best_of_n import MOST_TRIES, solve_tries
from workbench.run import Batch, State
from workbench.streams import Stream

METHODS = ("anchored", "plug-in")
POPULATIONS = ("population", "queries")
_FEW = 5


def _z(level: float) -> float:
    """z of a two-sided interval."""
    level = require_probability("level", level, cure="pass e.g. level=0.95")
    return float(-ndtri((1 - level) / 2))


def alpha_interval(
    k: Any, n: Any, n_tries: Any, fit: BetaFit, *, law: str = "plain", level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """The paper's interval (Eq. 14): Anchored at a_hat -/+ z SE(a_hat), b and the anchor held fixed.

    It leaves out the noise of the anchor; at 95 % it covers between 50 and 90 % (claim C9).
    """
    require_choice("law", law, LAWS)
    z = _z(level)
    k, n = check_counts(k, n)
    spread = z * np.sqrt(fit.covariance[..., 0, 0])
    ends = (np.maximum(fit.a - spread, 1e-6), fit.a + spread)
    low, high = (1 - survival_weights(k, n, check_tries(n_tries), end, fit.b, law).mean(axis=-1) for end in ends)
    return low, high


def joint_interval(
    k: Any,
    n: Any,
    n_tries: Any,
    fit: BetaFit,
    *,
    method: str = "anchored",
    law: str = "exact",
    about: str = "population",
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Delta-method interval for ASR@N with all its noise, on the scale of log(-log(1 - ASR@N)).

    With W the mean of the weights w_i of `anchored`, s_i the score of query i, I the observed
    information and g the gradient of log W in (a, b), query i moves log W by
        IF_i = (w_i - W) / (n_queries W) + g' I^-1 s_i,
    the first term absent for the plug-in. The sum of IF_i^2 carries the covariance of anchor and fit.

    about="population": for ASR@N of the population the queries were drawn from; variance sum IF_i^2.
    about="queries": for the mean of 1 - (1 - theta_i)^N over these queries; w_i is then held against
    v_i = (1 - theta_i)^N, which given k_i has the Beta(a + k_i, b + n_i - k_i) moments m_i and
    variance u_i:  sum ((w_i - m_i) / (n_queries W) + g' I^-1 s_i)^2 + sum u_i / (n_queries W)^2.
    Its level holds on average over sets of queries drawn from a Beta, not for each single set.

    Since log(1 - ASR@N) is close to -a log N, the scale is close to that of log a, on which the noise of
    a fit is symmetric; on the scale of log(1 - ASR@N) itself small n gives misses on one side only.
    Where no query is left without a success the interval is [0, 1]: nothing is known of the tail.
    """
    z = _z(level)
    log_mean, std_dev = _log_moments(k, n, n_tries, fit, method, law, about)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        factor = np.exp(z * std_dev / np.abs(log_mean))
        # The plain law can put ASR@N below 0; there the upper end is taken on the log scale.
        low = np.where(log_mean < 0, -np.expm1(log_mean / factor), 0.0)
        high = np.where(log_mean < 0, -np.expm1(log_mean * factor), -np.expm1(np.minimum(log_mean - z * std_dev, 0.0)))
    known = np.isfinite(log_mean) & np.isfinite(std_dev)
    return np.where(known, low, 0.0), np.where(known, high, 1.0)


def _log_moments(
    k: Any, n: Any, n_tries: Any, fit: BetaFit, method: str, law: str, about: str
) -> tuple[np.ndarray, np.ndarray]:
    """log(1 - ASR@N) as estimated, and its standard deviation; -inf and inf where no query is left."""
    require_choice("method", method, METHODS)
    require_choice("law", law, LAWS)
    require_choice("about", about, POPULATIONS)
    k, n = check_counts(k, n)
    tries = check_tries(n_tries)

    def log_mean_at(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if method == "plug-in":
            return log_survival_of(a, b, tries, law)
        return np.log(survival_weights(k, n, tries, a, b, law).mean(axis=-1))

    # Fits on the edge overflow the plain law; whatever is not finite comes out as an infinite deviation.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        log_mean = log_mean_at(fit.a, fit.b)
        mean = np.exp(log_mean)[..., None]
        weights = survival_weights(k, n, tries, fit.a, fit.b, law) if method == "anchored" else mean
        target: Any = mean
        spread: Any = 0.0
        if about == "queries":
            a, b = fit.a[..., None] + k, fit.b[..., None] + (n - k)
            target = np.exp(log_survival_of(a, b, tries[..., None], "exact"))
            spread = np.maximum(np.exp(log_survival_of(a, b, 2 * tries[..., None], "exact")) - target**2, 0.0)
        share = 1 / (k.shape[-1] * mean)
        slope = _gradient(log_mean_at, fit)
        pulls = np.einsum("...ip,...pq,...q->...i", query_scores(fit.a, fit.b, k, n), fit.covariance, slope)
        variance = np.sum(((weights - target) * share + pulls) ** 2 + spread * share**2, axis=-1)
        return log_mean, np.sqrt(np.nan_to_num(variance, nan=np.inf, posinf=np.inf))


def _gradient(function: Callable[[np.ndarray, np.ndarray], np.ndarray], fit: BetaFit) -> np.ndarray:
    """Derivatives in a and b, (..., 2), by central differences on the log scale (good to about 1e-9)."""
    a, b, up, down = fit.a, fit.b, np.exp(1e-5), np.exp(-1e-5)
    by_a = (function(a * up, b) - function(a * down, b)) / (2e-5 * a)
    by_b = (function(a, b * up) - function(a, b * down)) / (2e-5 * b)
    return np.stack([by_a, by_b], axis=-1)


def distribution_free_interval(k: Any, n: Any, n_tries: Any, level: float = 0.95) -> tuple[float, float]:
    """An interval for ASR@N that holds for every distribution of theta, and for fixed queries as well.

    The number of queries hit bounds the mean of 1 - (1 - theta)^n by Clopper and Pearson (for fixed
    queries of different theta by Hoeffding 1956): L <= ASR_n <= U. By Jensen's inequality
    1 - (1 - L)^min(1, N / max n) <= ASR@N <= 1 - (1 - U)^max(1, N / min n). It is wide for N >> n, as it
    must be: queries that look alike in n tries can differ in N. One data set.
    """
    k, n = one_table(k, n)
    tries = float(check_tries(n_tries))
    low, high = clopper_pearson(int((k > 0).sum()), k.size, level)
    least = -np.expm1(min(1.0, tries / n.max()) * np.log1p(-low)) if low < 1 else 1.0
    most = -np.expm1(max(1.0, tries / n.min()) * np.log1p(-high)) if high < 1 else 1.0
    return float(least), float(most)


def predict(
    k: Any,
    n: Any,
    n_tries: int,
    *,
    method: str = "anchored",
    law: str = "exact",
    interval: str = "joint",
    about: str = "population",
    level: float = 0.95,
) -> Estimate:
    """ASR@N from one table of counts, with its interval and a warning where the model can't carry it.

    k, n: (n_queries,) successes and tries per query. method "anchored" or "plug-in"; interval "joint"
    or "alpha" (the paper's, Anchored only). Where the fit has nothing to hold on to, the interval is
    `distribution_free_interval`, `reliable` is False and `why` says what is missing.
    """
    require_choice("interval", interval, ("joint", "alpha"))
    k, n = one_table(k, n)
    n_tries = require_integer("n_tries", n_tries, low=1, cure="pass a whole number of tries per query, e.g. 1000")
    fit = fit_beta_binomial(k, n)
    log_mean, std_dev = _log_moments(k, n, n_tries, fit, method, law, about)
    value = float(-np.expm1(np.minimum(log_mean, 0.0)))
    why = _weakness(k, n, n_tries, fit, method)
    if not why and not std_dev > 0:
        why = "the counts show no spread at all"
    if not why and log_mean > 0:
        why = "the plain power law puts the survivors above 1 at so few tries, and law='exact' does not"
    if why:
        low, high = distribution_free_interval(k, n, n_tries, level)
        why += "; the interval is one that holds for any distribution of success probabilities"
    elif interval == "alpha":
        low, high = (float(end) for end in alpha_interval(k, n, n_tries, fit, law=law, level=level))
    else:
        low, high = (
            float(end) for end in joint_interval(k, n, n_tries, fit, method=method, law=law, about=about, level=level)
        )
    return Estimate(
        value=min(max(value, low), high),
        low=low,
        high=high,
        std_error=None if why else float((1 - value) * std_dev),
        level=level,
        interval="any distribution" if why else ("a only, Eq. 14" if interval == "alpha" else f"delta method, {about}"),
        n_samples=int(n.sum()),
        reliable=not why,
        why=why,
        diagnostics={
            "a": float(fit.a),
            "b": float(fit.b),
            "asr_observed": float((k > 0).mean()),
            "min_tries": int(n.min()),
            "gain_over_alike": float(fit.gain),
        },
    )


def scaling_curves(
    k: Any, n: Any, n_tries: Any, *, about: str = "population", level: float = 0.95
) -> dict[str, tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]:
    """ASR@N over an array of N from one table of counts: {estimator: (values, low, high)}.

    "Anchored" and "plug-in" with their joint intervals, "naive" with none.
    """
    k, n = one_table(k, n)
    fit = fit_beta_binomial(k, n)
    bands = {method: joint_interval(k, n, n_tries, fit, method=method, about=about, level=level) for method in METHODS}
    return {
        "Anchored": (anchored(k, n, n_tries, fit), *bands["anchored"]),
        "plug-in": (plug_in(fit, n_tries), *bands["plug-in"]),
        "naive": (naive(k, n, n_tries), None, None),
    }


def _weakness(k: np.ndarray, n: np.ndarray, n_tries: float, fit: BetaFit, method: str) -> str:
    """What keeps the delta method from being trusted on these counts; empty if nothing does."""
    hit = int((k > 0).sum())
    if hit == 0:
        return f"no success in {n.sum():,} tries"
    if hit < _FEW:
        return f"only {hit} of {k.size} queries had a success"
    if (k == n).all():
        return f"no failure in {n.sum():,} tries"
    if method == "anchored":
        left = int((n - k >= np.minimum(n, float(n_tries))).sum())
        if left < _FEW:
            return f"only {left} of {k.size} queries are left to carry on from"
        if n_tries <= n.min():
            return ""
    if fit.capped and fit.gain >= 2:
        return "queries succeed always or never, so the tail of their success probabilities is unknown"
    if fit.gain < 2:
        return "the counts do not show that queries differ, so the tail of their success probabilities is unknown"
    return ""


def tries_needed(
    k: Any,
    n: Any,
    target: float,
    fit: BetaFit,
    *,
    method: str = "anchored",
    law: str = "exact",
    about: str = "population",
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, low, high): tries per query until the ASR reaches `target`, and its interval.

    Inverts the estimator; with law="plain" this is the paper's n ((1 - ASR_n) / (1 - target))^(1/a)
    (Anchored, Eq. 16) or (C / (1 - target))^(1/a) (plug-in). Infinite beyond 1e30. The interval is the
    delta method's on log N: the noise of log(1 - ASR@N) divided by the slope of the law there.
    """
    z = _z(level)
    require_choice("method", method, METHODS)
    require_choice("law", law, LAWS)
    k, n = check_counts(k, n)

    def log_mean(tries: np.ndarray) -> np.ndarray:
        if method == "plug-in":
            return log_survival_of(fit.a, fit.b, tries, law)
        return np.log(survival_weights(k, n, tries, fit.a, fit.b, law).mean(axis=-1))

    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        tries = solve_tries(log_mean, target, k.shape[:-1])
        reached = np.minimum(tries, MOST_TRIES)
        std_dev = _log_moments(k, n, reached, fit, method, law, about)[1]
        slope = (log_mean(reached / 1.01) - log_mean(reached * 1.01)) / (2 * np.log(1.01))
        spread = np.nan_to_num(np.exp(z * std_dev / slope), nan=np.inf, posinf=np.inf)
        return tries, np.maximum(reached / spread, 1.0), tries * spread


def predict_tries(
    k: Any,
    n: Any,
    target: float,
    *,
    method: str = "anchored",
    law: str = "exact",
    about: str = "population",
    level: float = 0.95,
) -> Estimate:
    """Tries per query until the ASR reaches `target`, from one table of counts; see `tries_needed`.

    Where the model can't carry it, the interval is the inverse of `distribution_free_interval`: usually
    a lower bound alone, its upper end infinite. `value` is None where the fit gives no finite number.
    """
    k, n = one_table(k, n)
    fit = fit_beta_binomial(k, n)
    tries, low, high = (
        float(part) for part in tries_needed(k, n, target, fit, method=method, law=law, about=about, level=level)
    )
    why = _weakness(k, n, min(tries, MOST_TRIES), fit, method)
    if why:
        least, most = (
            np.log1p(-target) / min(np.log1p(-min(end, 1 - 1e-16)), -1e-300)
            for end in clopper_pearson(int((k > 0).sum()), k.size, level)[::-1]
        )
        low = float(n.min() * least) if least > 1 else 1.0
        high = float(n.max() * most) if most <= 1 else np.inf
        why += "; the interval is one that holds for any distribution of success probabilities"
    return Estimate(
        value=float(np.clip(tries, low, high)) if np.isfinite(tries) else None,
        low=low,
        high=high,
        level=level,
        interval="any distribution" if why else f"delta method on log N, {about}",
        n_samples=int(n.sum()),
        reliable=not why,
        why=why,
        diagnostics={"a": float(fit.a), "b": float(fit.b), "asr_observed": float((k > 0).mean())},
    )


@dataclass(frozen=True)
class Saber:
    """ASR@N of a Best-of-N problem from few tries per query, all queries tried in turn.

    method    "anchored" or "plug-in"
    law       "exact", "plain" or "corrected"
    interval  "joint", or "alpha" for the paper's, which covers far too rarely
    level     of the interval

    The interval speaks of what the problem asks for: the queries' population or the very queries at
    hand (`problem.about`); see `joint_interval` for what its level means in either case.
    """

    method: str = "anchored"
    law: str = "exact"
    interval: str = "joint"
    level: float = 0.95

    def __post_init__(self) -> None:
        require_choice("method", self.method, METHODS)
        require_choice("law", self.law, LAWS)
        require_choice("interval", self.interval, ("joint", "alpha"))
        _z(self.level)
        if self.interval == "alpha" and self.method != "anchored":
            raise refuse(
                "interval",
                self.interval,
                "be 'joint' for the plug-in",
                "the paper's interval is defined for method='anchored' alone",
            )

    def init(self, problem: Any) -> State:
        if not callable(getattr(problem, "attempt", None)) or not hasattr(problem, "n_tries"):
            raise Unsuitable(
                f"Saber needs a Best-of-N problem, and {problem.name} is none; use one of workbench.problems.best_of_n."
            )
        empty = np.zeros(problem.n_queries, dtype=np.int64)
        return {"hits": empty, "tries": empty.copy(), "n_tries": int(problem.n_tries), "about": problem.about}

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        queries = (stream.first + np.arange(n, dtype=np.int64)) % problem.n_queries
        return {"query": queries, "hit": problem.attempt(queries, stream)}

    def absorb(self, state: State, batch: Batch) -> State:
        hit = np.asarray(batch["hit"])
        if hit.dtype != bool:
            raise refuse("batch['hit']", hit.dtype, "hold bool", "return whether each attempt succeeded")
        n_queries = len(state["hits"])
        hits = state["hits"] + np.bincount(batch["query"][hit], minlength=n_queries)
        return state | {"hits": hits, "tries": state["tries"] + np.bincount(batch["query"], minlength=n_queries)}

    def result(self, state: State) -> Estimate:
        tried = int((state["tries"] > 0).sum())
        if tried < len(state["tries"]):
            why = f"only {tried} of {len(state['tries'])} queries have been tried yet"
            return Estimate.unknown(0.0, 1.0, why, level=self.level, n_samples=int(state["tries"].sum()))
        settings = {"method": self.method, "law": self.law, "interval": self.interval, "level": self.level}
        return predict(state["hits"], state["tries"], state["n_tries"], about=state["about"], **settings)
