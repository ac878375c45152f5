import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.exact_sum import NO_POWERS, ExactSum, add_powers, spread_of

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@given(st.lists(finite, max_size=40), st.randoms(use_true_random=False))
def test_equals_fsum_in_any_order_and_grouping(values, random):
    expected = math.fsum(values)
    shuffled = random.sample(values, len(values))
    cut = random.randint(0, len(values))
    assert float(ExactSum().add(values)) == expected
    assert ExactSum().add(values) == ExactSum().add(shuffled[:cut]) + ExactSum().add(shuffled[cut:])


def test_subnormals_and_wide_exponents():
    assert float(ExactSum().add([5e-324] * 3 + [1e308])) == 1e308
    assert float(ExactSum().add([5e-324] * 3)) == 1.5e-323
    assert float(ExactSum()) == 0.0


def test_a_million_numbers_do_not_overflow_the_accumulators():
    values = np.full(1_000_000, 0.1)
    assert float(ExactSum().add(values)) == math.fsum(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_what_has_no_sum(bad):
    with pytest.raises(WorkbenchError, match=r"values to sum\[1\]"):
        ExactSum().add([1.0, bad])


def test_the_spread_of_numbers_and_how_many_of_them_tell_it():
    x = np.random.default_rng(0).exponential(size=200)
    powers = add_powers(add_powers(NO_POWERS, x[:50]), x[50:])
    mean, variance, carriers = spread_of(powers, 200)
    d = x - x.mean()
    assert (mean, variance) == (pytest.approx(x.mean()), pytest.approx(x.var()))
    assert carriers == pytest.approx((d**2).sum() ** 2 / (d**4).sum())
    assert spread_of(add_powers(NO_POWERS, np.full(4, 0.5)), 4) == (0.5, 0.0, 0.0)
    assert spread_of(add_powers(NO_POWERS, np.array([0.0, 1.0] * 5)), 10)[2] == pytest.approx(10)
