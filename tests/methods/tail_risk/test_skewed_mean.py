"""Hall's interval: normal without skewness, inverse of his transformation, and closer to its level on skewed laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from workbench.methods.tail_risk.skewed_mean import _inverse, skewness_corrected


def moments(x):
    d = x - x.mean(axis=0)
    return x.mean(axis=0), (d**2).mean(axis=0), (d**3).mean(axis=0)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1, 1), st.floats(0.5, 4))
def test_the_ends_are_where_the_transformation_says(a, z):
    g = lambda t: t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6  # noqa: E731
    low, high = _inverse(np.array(a), -z), _inverse(np.array(a), z)
    assert low < high and g(low) == pytest.approx(-z, abs=1e-9) and g(high) == pytest.approx(z, abs=1e-9)


def test_without_skewness_it_is_the_normal_interval_and_its_mirror_is_mirrored():
    low, high = skewness_corrected(2.0, 9.0, 0.0, 101, 0.9)
    z = norm.isf(0.05)
    assert (float(low), float(high)) == pytest.approx((2 - z * 0.3, 2 + z * 0.3))
    right, left = skewness_corrected(0.0, 1.0, 2.0, 50), skewness_corrected(0.0, 1.0, -2.0, 50)
    assert float(right[1]) == pytest.approx(-float(left[0])) and float(right[1]) > -float(right[0]) > 0


def test_a_spread_of_rounding_has_no_skewness():
    assert np.ptp(skewness_corrected(1.0, 1e-20, 1e-16, 40)) == pytest.approx(2 * norm.isf(0.025) * 1e-10 / 39**0.5)


@pytest.mark.parametrize(
    "name, n, draw",
    [
        ("exponential", 20, lambda rng, size: rng.exponential(size=size)),
        ("forty hits of one weight", 4000, lambda rng, size: (rng.random(size) < 0.01).astype(float)),
        ("lognormal", 60, lambda rng, size: rng.lognormal(sigma=1.0, size=size)),
    ],
)
def test_it_is_nearer_its_level_than_the_normal_interval(name, n, draw):
    rng, truth = np.random.default_rng(0), {"exponential": 1.0, "lognormal": np.exp(0.5)}.get(name, 0.01)
    mean, variance, third = moments(draw(rng, (n, 4000)))
    low, high = skewness_corrected(mean, variance, third, n)
    plain_low, plain_high = skewness_corrected(mean, variance, 0 * third, n)
    held, plain = ((low <= truth) & (truth <= high)).mean(), ((plain_low <= truth) & (truth <= plain_high)).mean()
    above, below = (high < truth).mean(), (low > truth).mean()
    plain_above, plain_below = (plain_high < truth).mean(), (plain_low > truth).mean()
    assert abs(above - below) < abs(plain_above - plain_below), "misses on both sides are nearer to even"
    assert abs(held - 0.95) <= abs(plain - 0.95) + 0.01
