import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.exact_sum import ExactSum

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
