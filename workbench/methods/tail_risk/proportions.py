"""Intervals for a proportion: hits of n independent trials, each in closed form or by one root.

Does: the four that a reader meets in papers and tools, and one that holds at every n at once. Which of them cover is a
question with an exact answer, since hits have n + 1 values; `coverage` gives it.
Does not: the Wald interval p_hat -/+ z sqrt(p_hat (1 - p_hat) / n), which has width zero where nothing hit.

Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16 (2001), compare the first
four: "clopper-pearson" covers at least at its level for every p; "wilson" and "jeffreys" do so on average over p;
"agresti-coull" is Wilson's, a little wider at the ends. All of them are for an n that was fixed beforehand. "anytime"
is for a run that somebody may stop when it looks good: it covers with probability `level` at all n together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy
from scipy.stats import beta, binom, norm

from workbench.errors import require_choice, require_integer, require_number, require_probability

Interval = tuple[float, float]


def _checked(hits: int, n: int, level: float) -> float:
    require_integer("n", n, low=1, cure="draw at least one sample")
    require_integer("hits", hits, low=0, high=n, cure="count hits among the n trials")
    return require_probability("level", level, cure="pass e.g. level=0.95")


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval for a proportion: coverage is at least `level` for every p and n.

    hits of n trials, 0 <= hits <= n, n >= 1. At hits = 0 the lower end is 0 and the upper end
    1 - ((1 - level) / 2)^(1/n); mirrored at hits = n. Clopper and Pearson (1934).
    """
    tail = (1 - _checked(hits, n, level)) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.isf(tail, hits + 1, n - hits))
    return low, high


def wilson(hits: int, n: int, level: float = 0.95) -> Interval:
    """{p: |p_hat - p| <= z sqrt(p (1 - p) / n)}, the score interval. Wilson (1927)."""
    centre, half = _score(hits, n, _z(_checked(hits, n, level)))
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def agresti_coull(hits: int, n: int, level: float = 0.95) -> Interval:
    """The Wald interval after z^2 / 2 hits and z^2 / 2 misses are added, cut to [0, 1]. Agresti and Coull (1998)."""
    z = _z(_checked(hits, n, level))
    centre = _score(hits, n, z)[0]
    half = z * math.sqrt(centre * (1 - centre) / (n + z * z))
    return max(0.0, centre - half), min(1.0, centre + half)


def jeffreys(hits: int, n: int, level: float = 0.95) -> Interval:
    """The equal tails of Beta(hits + 1/2, n - hits + 1/2), the lower end 0 at no hit and the upper 1 at no miss."""
    tail = (1 - _checked(hits, n, level)) / 2
    a, b = hits + 0.5, n - hits + 0.5
    return (0.0 if hits == 0 else float(beta.ppf(tail, a, b))), (1.0 if hits == n else float(beta.isf(tail, a, b)))


def anytime(hits: int, n: int, level: float = 0.95, a: float = 0.5, b: float = 0.5) -> Interval:
    """{p: int p'^h (1 - p')^(n-h) dBeta(a, b)(p') < p^h (1 - p)^(n-h) / (1 - level)}, a confidence sequence.

    The ratio of the two sides is a martingale of mean 1 at the true p, so that by Ville's inequality the chance that p is
    ever outside, at any n, is at most 1 - level (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021). It is the
    price of peeking: nearly twice as wide as Clopper and Pearson's.
    """
    level = _checked(hits, n, level)
    a = require_number("a", a, low=0, open_low=True, cure="pass e.g. 0.5")
    b = require_number("b", b, low=0, open_low=True, cure="pass e.g. 0.5")
    mixed = float(betaln(a + hits, b + n - hits) - betaln(a, b)) + math.log1p(-level)
    place = hits / n

    def excess(p: float) -> float:
        return mixed - float(xlogy(hits, p) + xlog1py(n - hits, -p))

    def root(left: float, right: float) -> float:
        found: Any = brentq(excess, left, right, xtol=1e-300)
        return float(found)

    tiny, almost = float(np.nextafter(0.0, 1.0)), float(np.nextafter(1.0, 0.0))
    low = 0.0 if hits == 0 or excess(tiny) <= 0 else math.exp(mixed / n) if hits == n else root(tiny, place)
    high = 1.0 if hits == n or excess(almost) <= 0 else -math.expm1(mixed / n) if hits == 0 else root(place, almost)
    return low, high


INTERVALS: dict[str, Callable[[int, int, float], Interval]] = {
    "clopper-pearson": clopper_pearson,
    "wilson": wilson,
    "jeffreys": jeffreys,
    "agresti-coull": agresti_coull,
    "anytime": anytime,
}
NAMES = {
    "clopper-pearson": "Clopper-Pearson",
    "wilson": "Wilson",
    "jeffreys": "Jeffreys",
    "agresti-coull": "Agresti-Coull",
    "anytime": "beta mixture, at all n",
}


def room_for_unseen(value: float, high: float, unseen: float) -> tuple[float, bool, str]:
    """(upper end, whether it was moved, remark) of an interval for a risk, given how its n draws may mislead.

    A kind of path as rare as `unseen`, Clopper and Pearson's upper end for no hit in n, may not have been drawn, and the
    risk may be 1 along it; no spread among those that were drawn tells of it. Where the risk lies below that bound, the
    upper end is at least their sum; where the bound exceeds the upper half alone, the remark says so.
    """
    if unseen > value:
        return max(high, value + unseen), True, ""
    remark = f"paths of a kind that was never drawn could add up to {unseen:.2g}"
    return high, False, remark if unseen > high - value else ""


def coverage(kind: str, n: int, p: Any, level: float = 0.95) -> np.ndarray:
    """P(the interval of `kind` holds p) for each p (...), exact: the sum over the n + 1 numbers of hits."""
    interval = INTERVALS[require_choice("kind", kind, INTERVALS)]
    ends = np.array([interval(hits, n, level) for hits in range(n + 1)])
    at = np.asarray(p, dtype=np.float64)[..., None]
    holds = (ends[:, 0] <= at) & (at <= ends[:, 1])
    return (holds * binom.pmf(np.arange(n + 1), n, at)).sum(axis=-1)


def _z(level: float) -> float:
    return float(norm.isf((1 - level) / 2))


def _score(hits: int, n: int, z: float) -> Interval:
    """Centre and half width of Wilson's interval."""
    share = hits / n
    total = n + z * z
    half = z * math.sqrt(n * share * (1 - share) + z * z / 4) / total
    return (hits + z * z / 2) / total, half
