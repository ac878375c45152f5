"""Beta-binomial fits of many small experiments: k_i successes in n_i tries, theta_i ~ Beta(a, b).

Source: Feng et al. (2026, arXiv 2601.22636), Section 3 and Appendix B: the likelihood (Eq. 9), its
scores and its observed information, the two-stage Beta fit they compare with, and the extension
with a share of queries that never succeed.

Does: maximum likelihood by Newton's method on (log a, log b), many data sets at once; scores per
query for influence functions; the two-stage fit; the model with a spike at zero.
Does not: predict anything (see `saber`).

Departures
1. The likelihood is written with counts of exceedance, S_j = #{k_i > j}, F_j = #{n_i - k_i > j},
   T_j = #{n_i > j}:  l(a, b) = sum_j S_j log(a + j) + F_j log(b + j) - T_j log(a + b + j).
   It is the paper's sum of log B(k_i + a, n_i - k_i + b) - log B(a, b), for even and uneven budgets
   alike, but costs O(max n) whatever the number of queries, and loses no digits when a and b are large.
2. Newton with the exact Hessian in place of L-BFGS-B; a and b are kept in [1e-6, 1e6], and a fit
   that ends on an edge of that square says so (`capped`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, expit, logit, polygamma, psi, xlog1py, xlogy

from workbench.errors import refuse, require_finite, require_number

_EDGE = np.log(1e6)
_MAX_STEPS = 200


@dataclass(frozen=True)
class BetaFit:
    """A fitted Beta(a, b), or one per data set; each field has the leading shape of the data sets.

    a, b            the parameters
    log_likelihood  at the maximum, without the binomial coefficients, which hold no parameter
    covariance      (..., 2, 2), of (a, b), the inverse of the observed information
    gain            log-likelihood gained over "all queries are alike" (a, b to infinity); below
                    about 2 the data hardly show that queries differ, and a has no upper limit
    capped          the maximum lies on an edge of [1e-6, 1e6]^2: there is no interior maximum
    """

    a: np.ndarray
    b: np.ndarray
    log_likelihood: np.ndarray
    covariance: np.ndarray
    gain: np.ndarray
    capped: np.ndarray


@dataclass(frozen=True)
class SpikedFit:
    """theta ~ pi delta_0 + (1 - pi) Beta(a, b), fitted to one data set.

    std_error_pi is from the observed information, or None where that is singular (pi or the Beta's
    parameters not identified); `gain` is the log-likelihood gained over no spike.
    """

    pi: float
    a: float
    b: float
    log_likelihood: float
    std_error_pi: float | None
    gain: float


def check_counts(k: Any, n: Any) -> tuple[np.ndarray, np.ndarray]:
    """`k` and `n` as int64 arrays of one shape (..., n_queries), or a refusal.

    n may be one number for all queries. Each query needs at least one try.
    """
    cure = "pass whole counts, successes k and tries n, one entry per query"
    successes, tries = require_finite("k", k, cure), require_finite("n", n, cure)
    if successes.ndim == 0:
        raise refuse("k", k, "be an array with one entry per query", cure)
    try:
        tries = np.broadcast_to(tries, successes.shape)
    except ValueError:
        cure = "pass one n per query, or a single number"
        raise refuse("the shape of n", tries.shape, f"fit that of k, {successes.shape}", cure) from None
    whole = "count successes and tries, don't average them"
    _refuse_where(successes != np.floor(successes), "k", successes, "be a whole number", whole)
    _refuse_where(tries != np.floor(tries), "n", tries, "be a whole number", whole)
    _refuse_where(tries < 1, "n", tries, "be at least 1", "leave out queries that were never tried")
    _refuse_where(successes < 0, "k", successes, "be at least 0", "check how successes were counted")
    order = "check that k and n are in the right order"
    _refuse_where(successes > tries, "k", successes, "not exceed its number of tries n", order)
    return successes.astype(np.int64), tries.astype(np.int64)


def one_table(k: Any, n: Any) -> tuple[np.ndarray, np.ndarray]:
    """`check_counts` for a single data set, (n_queries,)."""
    k, n = check_counts(k, n)
    if k.ndim != 1:
        raise refuse("the shape of k", k.shape, "be that of one row of counts", "pass one data set at a time")
    return k, n


def _refuse_where(bad: np.ndarray, name: str, values: np.ndarray, must: str, cure: str) -> None:
    if bad.any():
        where = np.unravel_index(int(np.flatnonzero(bad)[0]), bad.shape)
        value = float(values[where])
        shown = int(value) if value.is_integer() else value
        raise refuse(f"{name}[{', '.join(str(i) for i in where)}]", shown, must, cure)


def exceedances(counts: np.ndarray, length: int) -> np.ndarray:
    """#{i: counts_i > j} for j = 0..length-1: (..., n_queries) of whole numbers to (..., length)."""
    rows = counts.reshape(-1, counts.shape[-1])
    flat = rows + (length + 1) * np.arange(len(rows))[:, None]
    histogram = np.bincount(flat.ravel(), minlength=len(rows) * (length + 1)).reshape(len(rows), length + 1)
    above = counts.shape[-1] - np.cumsum(histogram[:, :length], axis=1)
    return above.reshape(*counts.shape[:-1], length)


def log_likelihood(a: Any, b: Any, k: Any, n: Any) -> np.ndarray:
    """sum_i log B(k_i + a, n_i - k_i + b) - log B(a, b), Eq. 9 (no binomial coefficients).

    a, b: shape (...); k: (..., n_queries); returns shape (...).
    """
    k, n = check_counts(k, n)
    a, b = (np.asarray(value, dtype=np.float64)[..., None] for value in (a, b))
    length = int(n.max())
    j = np.arange(length)
    hit, missed, tried = (exceedances(counts, length) for counts in (k, n - k, n))
    return np.sum(hit * np.log(a + j) + missed * np.log(b + j) - tried * np.log(a + b + j), axis=-1)


def query_scores(a: Any, b: Any, k: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Scores of each query, (..., n_queries, 2): the derivatives of its log-likelihood in a and in b."""
    a, b = (np.asarray(value, dtype=np.float64)[..., None] for value in (a, b))
    j = np.arange(int(n.max()))

    def upto(counts: np.ndarray, start: np.ndarray) -> np.ndarray:
        steps = np.cumsum(1.0 / (start + j), axis=-1)
        table = np.concatenate([np.zeros((*steps.shape[:-1], 1)), steps], axis=-1)
        return np.take_along_axis(np.broadcast_to(table, (*counts.shape[:-1], table.shape[-1])), counts, axis=-1)

    tried = upto(n, a + b)
    return np.stack([upto(k, a) - tried, upto(n - k, b) - tried], axis=-1)


def fit_beta_binomial(k: Any, n: Any, *, known_b: float | None = None) -> BetaFit:
    """Maximum likelihood for theta_i ~ Beta(a, b), k_i ~ Binomial(n_i, theta_i).

    k (..., n_queries) and n (the same, or one number): each leading index is a data set of its own.
    Given `known_b`, b is held at that value and counts as free of error.
    Data without an interior maximum (all k = 0, all k = n, less spread than a binomial has) come
    back with `capped` set rather than as an error.
    """
    k, n = check_counts(k, n)
    if known_b is not None:
        known_b = require_number("known_b", known_b, low=1e-6, high=1e6, cure="leave it out and b is fitted")
    shape, n_queries, length = k.shape[:-1], k.shape[-1], int(n.max())
    k, n = k.reshape(-1, n_queries), n.reshape(-1, n_queries)
    hit, missed, tried = (exceedances(counts, length).astype(np.float64) for counts in (k, n - k, n))
    j = np.arange(length)

    def objective(rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at, bt, ct = a[:, None] + j, b[:, None] + j, (a + b)[:, None] + j
        s, f, t = hit[rows], missed[rows], tried[rows]
        value = np.sum(s * np.log(at) + f * np.log(bt) - t * np.log(ct), axis=1)
        s, f, t = s / at, f / bt, t / ct
        gradient = np.stack([np.sum(s - t, axis=1), np.sum(f - t, axis=1)], axis=1)
        cross = np.sum(t / ct, axis=1)
        hessian = np.empty((len(rows), 2, 2))
        hessian[:, 0, 1] = hessian[:, 1, 0] = cross
        hessian[:, 0, 0] = cross - np.sum(s / at, axis=1)
        hessian[:, 1, 1] = cross - np.sum(f / bt, axis=1)
        if known_b is not None:
            # No slope and boundless information: the step in b and its variance are 0.
            gradient[:, 1], hessian[:, 0, 1], hessian[:, 1, 0], hessian[:, 1, 1] = 0, 0, 0, -1e30
        return value, gradient, hessian

    successes, tries = k.sum(axis=1), n.sum(axis=1)
    alike = xlogy(successes, successes / tries) + xlog1py(tries - successes, -successes / tries)
    start = _moments(k / n, n.mean(axis=1))
    if known_b is not None:
        start[:, 1] = np.log(known_b)
    return _maximise(objective, start, alike, shape)


def fit_two_stage(k: Any, n: Any, clip: float = 1e-4) -> BetaFit:
    """The baseline: a Beta fitted by maximum likelihood to theta_i = k_i / n_i as if it were observed.

    Shares of 0 and 1 have no density under a Beta, so they are moved to `clip` and 1 - clip; the
    answer depends on that choice, which is one reason not to use it. `gain` has no meaning here and is 0.
    """
    k, n = check_counts(k, n)
    clip = require_number(
        "clip", clip, low=0, high=0.5, open_low=True, open_high=True, cure="pass a small share such as clip=1e-4"
    )
    shape, n_queries = k.shape[:-1], k.shape[-1]
    theta = np.clip(k / n, clip, 1 - clip).reshape(-1, n_queries)
    mean_log, mean_log1m = np.log(theta).mean(axis=1), np.log1p(-theta).mean(axis=1)

    def objective(rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value = (a - 1) * mean_log[rows] + (b - 1) * mean_log1m[rows] - betaln(a, b)
        common, curvature = psi(a + b), polygamma(1, a + b)
        gradient = np.stack([mean_log[rows] - psi(a) + common, mean_log1m[rows] - psi(b) + common], axis=1)
        hessian = np.empty((len(rows), 2, 2))
        hessian[:, 0, 1] = hessian[:, 1, 0] = curvature
        hessian[:, 0, 0], hessian[:, 1, 1] = curvature - polygamma(1, a), curvature - polygamma(1, b)
        return n_queries * value, n_queries * gradient, n_queries * hessian

    start = _moments(theta, np.full(len(theta), np.inf))
    return _maximise(objective, start, None, shape)


def _moments(theta: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Starting (log a, log b), (n_sets, 2), from the mean and the spread of the shares (n_sets, n_queries)."""
    mean = np.clip(theta.mean(axis=1), 1e-4, 1 - 1e-4)
    spread = theta.var(axis=1) / (mean * (1 - mean))
    correlation = np.clip((spread - 1 / n) / (1 - 1 / n + 1e-12), 0.02, 0.9)
    total = 1 / correlation - 1
    return np.log(np.stack([mean * total, (1 - mean) * total], axis=1))


Objective = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def _maximise(objective: Objective, start: np.ndarray, alike: np.ndarray | None, shape: tuple[int, ...]) -> BetaFit:
    """Damped Newton on (log a, log b) inside the square, all data sets at once.

    objective(rows, a, b) gives value (n,), gradient (n, 2) and Hessian (n, 2, 2) in (a, b).
    """
    place = np.clip(start, -_EDGE, _EDGE)
    active = np.arange(len(place))
    damping = np.zeros(len(place))
    value, gradient, hessian = (np.array(part) for part in objective(active, *np.exp(place).T))
    for _ in range(_MAX_STEPS):
        step, promise = _newton_step(place[active], gradient[active], hessian[active], damping[active])
        trial = np.clip(place[active] + step, -_EDGE, _EDGE)
        new_value, new_gradient, new_hessian = objective(active, *np.exp(trial).T)
        better = new_value >= value[active] - 1e-12 * np.abs(value[active])
        moved = active[better]
        place[moved], value[moved] = trial[better], new_value[better]
        gradient[moved], hessian[moved] = new_gradient[better], new_hessian[better]
        damping[active] = np.where(better, damping[active] / 10, np.maximum(10 * damping[active], 1e-2))
        # The promised gain of a Newton step bounds the distance to the maximum once it is this small.
        active = active[promise > 1e-11]
        if active.size == 0:
            break
    a, b = np.exp(place).T
    capped = (np.abs(place) >= _EDGE - 1e-9).any(axis=1)
    gain = value - alike if alike is not None else np.zeros_like(value)
    fields = (a, b, value, _inverse(-hessian), np.maximum(gain, 0.0), capped)
    return BetaFit(*(field.reshape(shape + field.shape[1:]) for field in fields))


def _newton_step(
    place: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n, 2) uphill in (log a, log b), at most 2 long in each, and the gain each promises (n,)."""
    scale = np.exp(place)
    uphill = scale * gradient
    curvature = scale[:, :, None] * hessian * scale[:, None, :]
    curvature[:, [0, 1], [0, 1]] += uphill
    # A parameter on an edge with the maximum beyond it stays there.
    held = (np.abs(place) >= _EDGE - 1e-9) & (uphill * np.sign(place) > 0)
    uphill = np.where(held, 0.0, uphill)
    curvature = np.where((held[:, :, None] | held[:, None, :]) & ~np.eye(2, dtype=bool), 0.0, curvature)
    values, vectors = np.linalg.eigh(-curvature)
    strength = np.maximum(np.abs(values), 1e-8) * (1 + damping[:, None])
    along = np.einsum("nij,ni->nj", vectors, uphill)
    step = np.einsum("nij,nj->ni", vectors, along / strength)
    step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1), 1e-300))[:, None]
    return step, np.sum(step * uphill, axis=1)


def _inverse(information: np.ndarray) -> np.ndarray:
    """Inverses (n, 2, 2) of the information matrices; where one is not positive definite, a huge variance."""
    (aa, ab), (_, bb) = information.transpose(1, 2, 0)
    determinant = aa * bb - ab * ab
    sound = (determinant > 1e-12 * aa * bb) & (aa > 0) & (bb > 0)
    divide = np.where(sound, determinant, 1.0)
    inverse = (
        np.stack([np.stack([bb, ab * -1], axis=-1), np.stack([ab * -1, aa], axis=-1)], axis=-2) / divide[:, None, None]
    )
    return np.where(sound[:, None, None], inverse, 1e12 * np.eye(2))


def fit_spiked(k: Any, n: Any) -> SpikedFit:
    """Maximum likelihood for theta ~ pi delta_0 + (1 - pi) Beta(a, b); one data set, L-BFGS-B.

    A query with k_i >= 1 has (1 - pi) BB(k_i); one with k_i = 0 has pi + (1 - pi) BB(0). With a well
    below 1 a Beta has so many theta near 0 of its own that pi is weakly identified.
    """
    k, n = one_table(k, n)
    never = k == 0

    def log_pmf(a: float, b: float) -> np.ndarray:
        return betaln(k + a, n - k + b) - betaln(a, b)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        pi, a, b = expit(x[0]), *np.exp(x[1:])
        beta = log_pmf(a, b)
        mixed = np.where(never, np.logaddexp(np.log(pi), np.log1p(-pi) + beta), np.log1p(-pi) + beta)
        from_beta = np.exp(np.log1p(-pi) + beta - mixed)
        scores = from_beta[:, None] * query_scores(a, b, k, n) * [a, b]
        # d/dlogit(pi) is (share of the spike) - pi for every query.
        gradient = np.concatenate([[np.sum(1 - from_beta - pi)], scores.sum(axis=0)])
        return -float(mixed.sum()), -gradient

    plain = fit_beta_binomial(k, n)
    starts = [
        (pi, a, b)
        for pi in (0.02, 0.3 * never.mean() + 0.01)
        for a, b in [(float(plain.a), float(plain.b)), (1.0, 5.0)]
    ]
    bounds = [(-_EDGE, _EDGE)] * 3
    runs = []
    for pi, a, b in starts:
        x0 = np.clip([logit(pi), np.log(a), np.log(b)], -_EDGE, _EDGE)
        runs.append(
            minimize(objective, x0, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-7})
        )
    best = min(runs, key=lambda run: run.fun)
    pi, (a, b) = float(expit(best.x[0])), np.exp(best.x[1:])
    shift = 1e-4
    information = np.stack(
        [(objective(best.x + shift * e)[1] - objective(best.x - shift * e)[1]) / (2 * shift) for e in np.eye(3)]
    )
    information = (information + information.T) / 2
    sound = np.linalg.eigvalsh(information)[0] > 1e-6
    std_error = float(pi * (1 - pi) * np.sqrt(np.linalg.inv(information)[0, 0])) if sound else None
    gain = max(-float(best.fun) - float(plain.log_likelihood), 0.0)
    return SpikedFit(pi, float(a), float(b), -float(best.fun), std_error, gain)
