"""An interval for the mean of a skewed law: Hall, "On the removal of skewness by transformation", Journal of the Royal
Statistical Society B 54 (1992).

Terms of importance sampling are skewed: most are 0, a few are large. Where the large ones have not come up, the mean and
its standard error are both too small, and value -/+ z s / sqrt n misses a truth above far more often than one below. With

    a = skewness / sqrt n,   T = sqrt n (mean - theta) / s,   g(T) = T + a T^2 / 3 + a^2 T^3 / 27 + a / 6,

g(T) is normal up to terms of order 1/n, and g is increasing, so that the interval is

    [mean - s / sqrt n * G(z),  mean - s / sqrt n * G(-z)],   G(x) = g^-1(x) = (3 / a) ((1 + a (x - a / 6))^(1/3) - 1).

At a = 0 it is the normal interval. For 30 hits of one weight a is .18 and the ends lie 1.7 s below and 2.3 s above.

Does: the interval from moments, for one sample or many; Student's t on the log scale. Does not: cut to a range.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student


def skewness_corrected(
    mean: Any, variance: Any, third: Any, n: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), of the shape of `mean`: Hall's interval.

    variance = sum (x - mean)^2 / n and third = sum (x - mean)^3 / n. Where the variance is below 1e-8 mean^2 the third
    moment is rounding and is taken as 0.
    """
    mean, variance, third = (np.asarray(moment, dtype=np.float64) for moment in (mean, variance, third))
    told = variance > 1e-8 * mean**2
    a = np.divide(third, variance**1.5, out=np.zeros_like(mean), where=told) / np.sqrt(n)
    error, z = np.sqrt(variance / (n - 1)), float(norm.isf((1 - level) / 2))
    low, high = (mean - error * _inverse(a, x) for x in (z, -z))
    return low, high


def log_scale_t(mean: float, error: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """(low, high) = mean exp(-/+ t_{n-1} error / mean): Student's t on the log scale, for a positive mean of n independent
    values with standard error `error`. It leans upwards as the law of such a mean does, and stays above 0."""
    factor = math.exp(float(student.isf((1 - level) / 2, n - 1)) * error / mean)
    return mean / factor, mean * factor


def _inverse(a: np.ndarray, x: float) -> np.ndarray:
    """G(x); for small a its series, x - a / 6 - a (x - a / 6)^2 / 3."""
    shifted = x - a / 6
    small = np.abs(a) < 1e-6
    safe = np.where(small, 1.0, a)
    return np.where(small, shifted - a * shifted**2 / 3, (3 / safe) * (np.cbrt(1 + safe * shifted) - 1))
