"""Batch predictive inference: bounds on a function of a whole batch of unseen scores.

Paper: Y. Lee, E. Tchetgen Tchetgen and E. Dobriban, "Batch Predictive Inference", arXiv 2409.13990 (2025).

Computes, from n calibration scores exchangeable with m unseen test scores T_1..T_m, a bound that holds with
probability at least 1 - alpha for an order statistic T_(zeta), for two of them jointly, or for the mean of
the batch; and from the first of these a selection rule that makes at most eta false claims.

Notation: calibration scores sorted S_(1) <= ... <= S_(n), with S_(0) and S_(n+1) the ends of the score range.
They cut the line into n + 1 gaps, and R_j in {1..n+1} is the gap that holds T_(j): S_(R_j - 1) <= T_(j) <= S_(R_j).
By exchangeability (R_1 <= ... <= R_m) is uniform on the C(n+m, m) multisets of m gaps. All rank laws below are
counts of such multisets in exact integer arithmetic.

Does: guarantees over the joint draw of calibration set and batch. Does not: promise anything given one
calibration set; bound a batch from a shifted population (see `rejection_mask` for a known shift); keep the
probability over several batches *together* when they share one calibration set (each batch alone keeps it).

Departures from the paper and its code (github.com/yhoon31/batch-PI):
1. Every rank quantile is exact. alpha is read as the decimal that was typed (0.3 is 3/10, not the binary
   number just below it), so a probability that equals 1 - alpha exactly counts as reached. The code adds up
   ratios of floating-point binomials, which overflow for large n, and compares them with a rounded 1 - alpha.
2. The law of the rank sum is counted over multisets. The code draws m ranks independently, which is uniform
   over tuples and gives too small a quantile (n = 40, m = 10, alpha = 0.1: 258 instead of 263).
3. Two order statistics: the window grows around n zeta / m, which for quartiles is the code's 0.25 n and 0.75 n,
   and stops at probability >= 1 - alpha where the code asks for > 1 - alpha.
4. Selection scores a true claim -inf where the paper has 0, so predictions need not be non-negative.
5. Rejection sampling scales the odds by a stated maximum of the propensity; the code uses the odds as they are,
   which must then not exceed 1. Scaling by the sample's own maximum would tie one unit's fate to the others'.
The general theorem (any rank ordering function) is not implemented: its quantile is NP-hard.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from numbers import Rational

import numpy as np
from scipy import stats

from workbench.errors import (
    refuse,
    require_choice,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)

EVERYWHERE = (-math.inf, math.inf)
_SIDES = ("upper", "lower", "two-sided")


def points_to_cover(m: int, delta: float | Fraction) -> int:
    """zeta = ceil((1 - delta) m): the points of a batch of m that must be covered. `delta` in [0, 1)."""
    m = _batch_size(m)
    return math.ceil((1 - _decimal("delta", delta, zero_allowed=True)) * m)


def rank_cdf(k: int, n: int, m: int, zeta: int) -> Fraction:
    """P(R_zeta <= k), exactly: the chance that T_(zeta) <= S_(k) when scores are continuous.

    R_zeta <= k says that at least zeta of the m test scores lie in the first k gaps, hence
        P = sum_{j=zeta}^{m} C(k+j-1, j) C(n-k+m-j, m-j) / C(n+m, m),   k = 0..n+1,
    the same law as R_zeta - 1 ~ BetaBinomial(n, zeta, m - zeta + 1). Source: the paper's quantile example;
    the pmf is `q_quantile` in its code.
    """
    n, m, zeta = _sizes(n, m, zeta)
    k = require_integer("k", k, low=0, high=n + 1, cure="pass a rank between 0 and n + 1")
    return Fraction(_count_rank_at_most(k, n, m, zeta), math.comb(n + m, m))


def quantile_rank(n: int, m: int, zeta: int, alpha: float | Fraction) -> int:
    """The smallest q in 1..n+1 with P(R_zeta <= q) >= 1 - alpha, so that T_(zeta) <= S_(q) with that probability.

    n + 1 means that only the top of the score range will do; `smallest_calibration_size` and `smallest_alpha`
    say what would help. Exact integers throughout.
    """
    n, m, zeta = _sizes(n, m, zeta)
    return _quantile_rank(n, m, zeta, _decimal("alpha", alpha))


def coverage_law(rank: int, n: int, m: int) -> np.ndarray:
    """(m + 1,) probabilities that j = 0..m of the test scores are at most S_(rank), for continuous scores.

    Test scores in the first `rank` of n + 1 gaps: BetaBinomial(m, rank, n + 1 - rank). Holds for any rank, so it
    also says what split conformal's rank does for a batch.
    """
    n, m, _ = _sizes(n, m, 1)
    rank = require_integer("rank", rank, low=0, high=n + 1, cure="pass a rank between 0 and n + 1")
    if rank in (0, n + 1):
        return np.eye(m + 1)[m if rank else 0]
    return stats.betabinom.pmf(np.arange(m + 1), m, rank, n + 1 - rank)


def smallest_alpha(n: int, m: int, zeta: int) -> Fraction:
    """The smallest alpha whose bound on T_(zeta) is a calibration score: P(R_zeta = n+1) = C(n+zeta-1, n) / C(n+m, n).

    A Fraction, so that it can be passed back as alpha; `float()` shows it.
    """
    n, m, zeta = _sizes(n, m, zeta)
    return Fraction(math.comb(n + zeta - 1, n), math.comb(n + m, n))


def smallest_calibration_size(m: int, zeta: int, alpha: float | Fraction) -> int:
    """The smallest n for which the bound on T_(zeta) at level alpha is a calibration score."""
    _, m, zeta = _sizes(1, m, zeta)
    level = _decimal("alpha", alpha)

    def reachable(n: int) -> bool:
        return smallest_alpha(n, m, zeta) <= level

    enough = 1
    while not reachable(enough):
        enough *= 2
    return bisect_left(range(1, enough), True, key=reachable) + 1


def rank_bound(
    calibration_scores: np.ndarray, rank: int, score_range: tuple[float, float] = EVERYWHERE
) -> np.ndarray | np.float64:
    """S_(rank) of scores (..., n) along the last axis, shape (...); rank 0 and n + 1 are the ends of the range."""
    scores, (lowest, highest) = _checked(calibration_scores, score_range)
    rank = require_integer("rank", rank, low=0, high=scores.shape[-1] + 1, cure="pass a rank between 0 and n + 1")
    return _at_rank(scores, rank, lowest, highest)


def quantile_bounds(
    calibration_scores: np.ndarray,
    m: int,
    zeta: int,
    alpha: float | Fraction,
    *,
    side: str = "upper",
    score_range: tuple[float, float] = EVERYWHERE,
) -> tuple[np.ndarray | np.float64, np.ndarray | np.float64]:
    """(low, high) with P(low <= T_(zeta) <= high) >= 1 - alpha, T_(zeta) the zeta-th smallest of m unseen scores.

    `calibration_scores` (..., n), one calibration set a row; both results have shape (...). `side` is "upper"
    (low is the bottom of the range), "lower" or "two-sided" (alpha / 2 each). Where n is too small the bound is
    the end of `score_range`, which is infinite unless a known end is given. Ties only make it conservative.
    """
    scores, (lowest, highest) = _checked(calibration_scores, score_range)
    n, m, zeta = _sizes(scores.shape[-1], m, zeta)
    level = _per_side(side, alpha)
    upper = n + 1 if side == "lower" else _quantile_rank(n, m, zeta, level)
    # Reversing the order of all scores turns R_zeta into n + 2 - R_(m + 1 - zeta).
    lower = 0 if side == "upper" else n + 1 - _quantile_rank(n, m, m + 1 - zeta, level)
    return _at_rank(scores, lower, lowest, highest), _at_rank(scores, upper, lowest, highest)


def joint_rank_probability(p: int, q: int, n: int, m: int, zetas: tuple[int, int]) -> Fraction:
    """P(p < R_zeta1 and R_zeta2 <= q), exactly, for 0 <= p <= q <= n + 1 and zeta1 < zeta2.

    With a, b and c test scores in the first p gaps, the next q - p and the last n + 1 - q, the event is
    a < zeta1 and a + b >= zeta2; each (a, b, c) has a product of three multiset counts.
    """
    n, m, zetas = _pair(n, m, zetas)
    p = require_integer("p", p, low=0, high=n + 1, cure="pass the lower rank of the window")
    q = require_integer("q", q, low=p, high=n + 1, cure="pass the upper rank of the window, at least p")
    return Fraction(_count_window(p, q, n, m, *zetas), math.comb(n + m, m))


def joint_rank_window(n: int, m: int, zetas: tuple[int, int], alpha: float | Fraction) -> tuple[int, int]:
    """Ranks (p, q) with P(S_(p) <= T_(zeta1) and T_(zeta2) <= S_(q)) >= 1 - alpha.

    The smallest t for which the window [round(n zeta1 / m) - t, round(n zeta2 / m) + t], cut to [0, n + 1],
    has that probability. Source: `two_quantiles_lower_upper_bound` in the paper's code.
    """
    n, m, zetas = _pair(n, m, zetas)
    return _joint_rank_window(n, m, *zetas, _decimal("alpha", alpha))


def two_quantile_bounds(
    calibration_scores: np.ndarray,
    m: int,
    zetas: tuple[int, int],
    alpha: float | Fraction,
    *,
    score_range: tuple[float, float] = EVERYWHERE,
) -> tuple[np.ndarray | np.float64, np.ndarray | np.float64]:
    """(low, high) with P(low <= T_(zeta1) and T_(zeta2) <= high) >= 1 - alpha; shapes as in `quantile_bounds`."""
    scores, (lowest, highest) = _checked(calibration_scores, score_range)
    p, q = joint_rank_window(scores.shape[-1], m, zetas, alpha)
    return _at_rank(scores, p, lowest, highest), _at_rank(scores, q, lowest, highest)


def rank_sum_counts(n: int, m: int) -> np.ndarray:
    """Multisets of m gaps out of n + 1 by their rank sum: entry e counts those with R_1 + ... + R_m = m + e.

    (m n + 1,) Python integers with total C(n+m, m). They are the coefficients of the Gaussian binomial
        prod_{j=1}^{m} (1 - x^{n+j}) / (1 - x^j),
    and e is the Mann-Whitney count of pairs (calibration score below test score).
    """
    n, m, _ = _sizes(n, m, 1)
    counts = np.zeros(m * n + 1, dtype=object)
    counts[0] = 1
    for j in range(1, m + 1):
        counts[n + j :] = counts[n + j :] - counts[: max(0, counts.size - n - j)]
        for start in range(min(j, counts.size)):
            counts[start::j] = np.cumsum(counts[start::j])
    return counts


def rank_sum_quantile(n: int, m: int, alpha: float | Fraction) -> int:
    """The smallest q with P(R_1 + ... + R_m <= q) >= 1 - alpha, exactly."""
    n, m, _ = _sizes(n, m, 1)
    return _rank_sum_quantile(n, m, _decimal("alpha", alpha))


def mean_bounds(
    calibration_scores: np.ndarray,
    m: int,
    alpha: float | Fraction,
    *,
    side: str = "upper",
    score_range: tuple[float, float] = EVERYWHERE,
) -> tuple[np.ndarray | np.float64, np.ndarray | np.float64]:
    """(low, high) with P(low <= (T_1 + ... + T_m) / m <= high) >= 1 - alpha.

        high = (1/m) max { S_(r_1) + ... + S_(r_m) : r_1 + ... + r_m <= q },   q = `rank_sum_quantile`,
    by dynamic programming in O(m q n) for each row of `calibration_scores` (..., n); low is the same for negated
    scores. It covers more than 1 - alpha, because the maximum is over every multiset with that rank sum; as n and m
    grow it tends to the concave majorant of the quantile function at 1/2, which is the mean for uniform scores and
    far above it for skewed ones.
    Without a known end in `score_range` the bound is infinite unless 1 - alpha is below about 1 / m!, since one
    test score may then lie beyond S_(n). Sums are rounded to nearest: allow m ulp when a bound meets a mean.
    Source: the paper's compositional score; `maximize_sum` in its code.
    """
    scores, (lowest, highest) = _checked(calibration_scores, score_range)
    n, m, _ = _sizes(scores.shape[-1], m, 1)
    slack = _rank_sum_quantile(n, m, _per_side(side, alpha)) - m
    shape = scores.shape[:-1]
    high = np.full(shape, highest) if side == "lower" else _largest_sum(scores, highest, m, slack) / m
    low = np.full(shape, lowest) if side == "upper" else -_largest_sum(-scores, -lowest, m, slack) / m
    return low[()], high[()]


def selection_threshold(
    calibration_predictions: np.ndarray, calibration_wrong: np.ndarray, m: int, eta: int, alpha: float | Fraction
) -> np.ndarray | np.float64:
    """Threshold t such that claiming every test point with prediction > t makes P(false claims > eta) <= alpha.

    `calibration_predictions` (..., n) and `calibration_wrong` (..., n), true where the claim would be false
    (Y <= c, a wrong answer). t = S_(q) of the scores prediction * 1{wrong} with q from zeta = m - eta; result
    shape (...). +inf (claim nothing) when n is too small, -inf (claim everything) when wrong ones are rare.
    eta = 0 controls the family-wise error. Source: the paper's selection with false discovery control.
    """
    predictions, _ = _checked(calibration_predictions, EVERYWHERE, "calibration_predictions")
    wrong = np.asarray(calibration_wrong)
    if wrong.dtype != bool or wrong.shape != predictions.shape:
        got = f"{wrong.dtype} of shape {wrong.shape}"
        raise refuse("calibration_wrong", got, f"be bool of shape {predictions.shape}", "pass e.g. labels <= c")
    m = _batch_size(m)
    eta = require_integer("eta", eta, low=0, high=m - 1, cure="allow between 0 and m - 1 false claims")
    rank = quantile_rank(predictions.shape[-1], m, m - eta, alpha)
    return _at_rank(np.where(wrong, predictions, -np.inf), rank, *EVERYWHERE)


def rejection_mask(propensity: np.ndarray, max_propensity: float, uniforms: np.ndarray) -> np.ndarray:
    """Which untreated units to keep so that the kept ones are exchangeable with the treated, in x and Y(0).

    Unit i is kept when uniforms_i < odds(e_i) / odds(max_propensity), odds(e) = e / (1 - e): the density ratio of
    treated to untreated covariates, scaled to at most 1. Needs no hidden confounding. `propensity` e(x) and
    `uniforms` in [0, 1) share a shape; `max_propensity` bounds e(x) over the population, not the sample. Source:
    the paper's counterfactual use.
    """
    limit = require_probability("max_propensity", max_propensity, cure="bound e(x) away from 1")
    e = require_finite("propensity", propensity, "drop units with an unknown propensity")
    if e.min() < 0 or e.max() > limit:
        worst = e.min() if e.min() < 0 else e.max()
        raise refuse("propensity", worst, f"lie in [0, max_propensity = {limit:g}]", "raise max_propensity")
    u = require_finite("uniforms", uniforms, "draw them with generator.random")
    if u.shape != e.shape or u.min() < 0 or u.max() >= 1:
        got = f"an array of shape {u.shape} on [{u.min():g}, {u.max():g}]"
        raise refuse("uniforms", got, f"be numbers in [0, 1) of shape {e.shape}", "draw generator.random(shape)")
    return u < e / (1 - e) * (1 - limit) / limit


def split_conformal_rank(n: int, delta: float | Fraction) -> int:
    """Baseline: ceil((n + 1)(1 - delta)), which covers each test point alone with probability >= 1 - delta."""
    n, _, _ = _sizes(n, 1, 1)
    return math.ceil((n + 1) * (1 - _decimal("delta", delta)))


def bonferroni_rank(n: int, m: int, alpha: float | Fraction) -> int:
    """Baseline: the split conformal rank at alpha / m, which covers all m points with probability >= 1 - alpha."""
    return split_conformal_rank(n, _decimal("alpha", alpha) / _batch_size(m))


def partition_bound(
    calibration_scores: np.ndarray,
    m: int,
    alpha: float | Fraction,
    statistic: Callable[[np.ndarray], np.ndarray],
    highest: float = math.inf,
) -> np.ndarray | np.float64:
    """Baseline: cut the n scores into floor(n / m) batches and bound the next batch's statistic by split conformal.

    `calibration_scores` (..., n) in random order; `statistic` maps (..., m) to (...). `highest`, the statistic's
    known maximum, is returned while floor(n / m) < 1 / alpha - 1.
    """
    scores, _ = _checked(calibration_scores, EVERYWHERE)
    m = _batch_size(m)
    level = _decimal("alpha", alpha)
    batches = scores.shape[-1] // m
    batch_scores = scores[..., : batches * m].reshape(*scores.shape[:-1], batches, m)
    values = require_finite("statistic(...)", statistic(batch_scores), "return one number a batch", allow_empty=True)
    return _at_rank(values, math.ceil((batches + 1) * (1 - level)), -math.inf, highest)


def _decimal(argument: str, value: float | Fraction, *, zero_allowed: bool = False) -> Fraction:
    """A probability as the exact number that was typed: Fraction("0.3") for the float 0.3."""
    cure = f"pass e.g. {argument}=0.1"
    require_number(argument, value, low=0, high=1, open_low=not zero_allowed, open_high=True, cure=cure)
    return Fraction(value) if isinstance(value, Rational) else Fraction(repr(float(value)))


def _per_side(side: str, alpha: float | Fraction) -> Fraction:
    level = _decimal("alpha", alpha)
    return level / 2 if require_choice("side", side, _SIDES) == "two-sided" else level


def _batch_size(m: int) -> int:
    return require_integer("m", m, low=1, cure="give the number of unseen test points in the batch")


def _sizes(n: int, m: int, zeta: int) -> tuple[int, int, int]:
    n = require_integer("n", n, low=1, cure="give the number of calibration scores")
    m = _batch_size(m)
    return n, m, require_integer("zeta", zeta, low=1, high=m, cure="zeta counts from the smallest score: 1 to m")


def _pair(n: int, m: int, zetas: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
    if np.shape(zetas) != (2,) or not zetas[0] < zetas[1]:
        raise refuse("zetas", zetas, "be two increasing order statistics", "pass e.g. (m // 4, 3 * m // 4)")
    n, m, first = _sizes(n, m, zetas[0])
    return n, m, (first, _sizes(n, m, zetas[1])[2])


def _checked(
    calibration_scores: np.ndarray, score_range: tuple[float, float], argument: str = "calibration_scores"
) -> tuple[np.ndarray, tuple[float, float]]:
    scores = require_finite(argument, calibration_scores, "drop or impute missing scores before calibrating")
    if scores.ndim == 0:
        raise refuse(argument, scores, "be an array with the n scores on its last axis", "pass a list of them")
    if np.shape(score_range) != (2,) or not score_range[0] < score_range[1]:
        raise refuse("score_range", score_range, "be (lowest, highest) with lowest < highest", "pass e.g. (0, 1)")
    lowest, highest = float(score_range[0]), float(score_range[1])
    outside = (scores < lowest) | (scores > highest)
    if outside.any():
        cure = "widen score_range to all values a score can take"
        raise refuse(argument, scores[outside][0], f"lie in score_range [{lowest:g}, {highest:g}]", cure)
    return scores, (lowest, highest)


def _at_rank(scores: np.ndarray, rank: int, lowest: float, highest: float) -> np.ndarray | np.float64:
    if 1 <= rank <= scores.shape[-1]:
        return np.partition(scores, rank - 1, axis=-1)[..., rank - 1][()]
    return np.full(scores.shape[:-1], lowest if rank < 1 else highest)[()]


def _count_rank_at_most(k: int, n: int, m: int, zeta: int) -> int:
    if k == 0:
        return 0
    if k == n + 1:
        return math.comb(n + m, m)
    term = math.comb(k + zeta - 1, zeta) * math.comb(n - k + m - zeta, m - zeta)
    total = term
    for j in range(zeta, m):
        # Exact: the next term of the sum in `rank_cdf` is a whole number.
        term = term * (k + j) * (m - j) // ((j + 1) * (n - k + m - j))
        total += term
    return total


@lru_cache(maxsize=4096)
def _quantile_rank(n: int, m: int, zeta: int, level: Fraction) -> int:
    needed = math.ceil((1 - level) * math.comb(n + m, m))
    return 1 + bisect_left(range(1, n + 1), needed, key=lambda k: _count_rank_at_most(k, n, m, zeta))


def _multisets(gaps: int, points: int) -> int:
    return math.comb(gaps + points - 1, points) if gaps else int(points == 0)


def _count_window(p: int, q: int, n: int, m: int, zeta1: int, zeta2: int) -> int:
    return sum(
        _multisets(p, a) * _multisets(q - p, b - a) * _multisets(n + 1 - q, m - b)
        for a in range(zeta1)
        for b in range(zeta2, m + 1)
    )


@lru_cache(maxsize=4096)
def _joint_rank_window(n: int, m: int, zeta1: int, zeta2: int, level: Fraction) -> tuple[int, int]:
    needed = math.ceil((1 - level) * math.comb(n + m, m))

    def window(t: int) -> tuple[int, int]:
        return max(round(Fraction(n * zeta1, m)) - t, 0), min(round(Fraction(n * zeta2, m)) + t, n + 1)

    # At t = n + 1 the window is everything, so the search below always ends.
    t = bisect_left(range(n + 1), needed, key=lambda t: _count_window(*window(t), n, m, zeta1, zeta2))
    return window(t)


@lru_cache(maxsize=1024)
def _rank_sum_quantile(n: int, m: int, level: Fraction) -> int:
    needed = math.ceil((1 - level) * math.comb(n + m, m))
    return m + bisect_left(np.cumsum(rank_sum_counts(n, m)).tolist(), needed)


def _largest_sum(scores: np.ndarray, highest: float, m: int, slack: int) -> np.ndarray:
    """max { sum_j S_(1 + e_j) : sum_j e_j <= slack, 0 <= e_j <= n } of scores (..., n), shape (...)."""
    n = scores.shape[-1]
    rows = scores.reshape(-1, n)
    values = np.concatenate([np.sort(rows, axis=-1), np.full((len(rows), 1), highest)], axis=-1)
    # Rows are taken a few at a time: the table then stays in the processor's cache and memory stays bounded.
    width = max(1, 32768 // (slack + 1))
    sums = np.empty(len(rows))
    for at in range(0, len(rows), width):
        part = values[at : at + width, :, None]
        best = np.zeros((len(part), slack + 1))
        for _ in range(m):
            longer = best + part[:, 0]
            for e in range(1, min(n, slack) + 1):
                np.maximum(longer[:, e:], best[:, :-e] + part[:, e], out=longer[:, e:])
            best = longer
        sums[at : at + width] = best[:, -1]
    return sums.reshape(scores.shape[:-1])
