"""The test of fit: its level where the law holds, its power where it does not, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom, binomtest

from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.beta_binomial import fit_beta_binomial
from workbench.methods.tail_risk.goodness_of_fit import goodness_of_fit
from workbench.problems.best_of_n import draw_counts
from workbench.streams import Stream

STREAM = Stream.of(3, "goodness of fit")


@pytest.mark.parametrize("uneven", [False, True])
def test_p_values_keep_their_level_where_the_law_holds(uneven):
    generator = np.random.default_rng(5)
    p_values = []
    for repeat in range(40):
        _, k, n = draw_counts(generator, 0.6, 2.0, 100, 6, uneven=uneven)
        p_values.append(goodness_of_fit(k, n, STREAM.child(str(repeat)), draws=39).p_value)
    # A test at 20 % that is right fails this once in a thousand times.
    assert binomtest(sum(p <= 0.2 for p in p_values), 40, 0.2).pvalue > 1e-3


def test_a_mixture_of_two_kinds_of_prompts_is_found():
    generator = np.random.default_rng(6)
    found = 0
    for repeat in range(10):
        thetas = np.where(generator.random(150) < 0.5, 0.03, 0.6)
        k = generator.binomial(20, thetas)
        found += goodness_of_fit(k, 20, STREAM.child(str(repeat)), draws=39).p_value <= 0.05
    assert found >= 9


def test_cells_and_expectations_are_the_fitted_laws():
    _, k, n = draw_counts(np.random.default_rng(7), 0.5, 1.5, 120, 8)
    found = goodness_of_fit(k, n, STREAM, draws=19)
    fit = fit_beta_binomial(k, n)
    pmf = 120 * betabinom.pmf(np.arange(9), 8, float(fit.a), float(fit.b))
    starts = [0, *(found.cells[:-1] + 1)]
    expected = [pmf[start : end + 1].sum() for start, end in zip(starts, found.cells, strict=True)]
    assert np.allclose(found.expected, expected) and found.expected.min() >= 3 and found.cells[-1] == 8
    observed = [((k >= start) & (k <= end)).sum() for start, end in zip(starts, found.cells, strict=True)]
    assert found.observed.tolist() == observed
    assert found.statistic == pytest.approx(np.sum((found.observed - found.expected) ** 2 / found.expected))
    assert goodness_of_fit(k, n, STREAM, draws=19).p_value == found.p_value


def test_what_can_not_be_tested_is_refused():
    with pytest.raises(WorkbenchError, match=r"n is 1 but must be at least 2 for some query; try each"):
        goodness_of_fit([0, 1, 0], 1, STREAM)
    with pytest.raises(WorkbenchError, match=r"the fit of k is .* but must have a maximum inside"):
        goodness_of_fit([0, 0, 0], 5, STREAM)
    with pytest.raises(WorkbenchError, match=r"draws is 5 but must be .* at least 19"):
        goodness_of_fit([0, 1, 3], 5, STREAM, draws=5)
