"""Randomised Sobol' points: unbiased, covering, far better on a smooth edge, and no worse than chance on a rough one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import kstest, qmc

import workbench as wb
from tests.methods.tail_risk.repeats import bias_in_errors, covers, repeat, variance_ratio
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk import quasi_monte_carlo as q
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.methods.tail_risk.quasi_monte_carlo import QuasiMonteCarlo
from workbench.problems import analytic
from workbench.problems.suite import find_problem

TAIL = analytic.GaussianTail(-float(ndtri(0.1)))
CASES = {
    "tail": (TAIL, 1024, 200, 20.0),
    "an odd number of points": (TAIL, 1999, 200, 20.0),
    "plane in 20 dimensions": (analytic.linear(0.1, 20), 1024, 60, 20.0),
    "plane": (analytic.four_branch(1.0, 3.0), 1024, 150, 1.5),
    "shell": (analytic.shell(0.2, 3), 1024, 150, 1.2),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_unbiased_covers_and_beats_plain_monte_carlo(case):
    problem, n, repeats, gain = CASES[case]
    ours = repeat(problem, QuasiMonteCarlo(), repeats, samples=n)
    assert all(estimate.reliable for estimate in ours)
    assert abs(bias_in_errors(ours, problem.truth)) < 3.5
    assert covers(ours, problem.truth)
    _, low, high = variance_ratio(ours, repeat(problem, MonteCarlo(), repeats, samples=n))
    assert high > gain and low > 1


def test_a_smooth_edge_is_met_at_the_rate_of_one_over_n():
    few, many = (repeat(TAIL, QuasiMonteCarlo(), 100, samples=n) for n in (512, 8192))
    ratio, low, _ = variance_ratio(many, few)
    assert low > 16**1.2, f"16 times the points: Monte Carlo would have 16 times less variance, here {ratio:.0f} times"


def test_nothing_is_lost_where_the_edge_cuts_across_many_axes():
    problem = analytic.exponential_sum(0.1, 12)
    ours = repeat(problem, QuasiMonteCarlo(), 120, samples=1000)
    plain = repeat(problem, MonteCarlo(), 120, samples=1000)
    assert variance_ratio(ours, plain)[2] > 1 and covers(ours, problem.truth)


def test_points_are_those_of_scipy_and_each_is_uniform():
    stream = Stream.of(4, "points")
    whole = qmc.Sobol(3, bits=32, rng=np.random.default_rng(stream.key)).random(1024)
    mine = np.concatenate([q._points(stream, 3, block) for block in range(4)])
    assert np.array_equal(mine, whole)
    assert not q._points(stream, 3, 0).flags.writeable
    first = np.array([q._points(Stream.of(seed, "points"), 2, 0)[5] for seed in range(400)])
    assert kstest(first[:, 0], "uniform").pvalue > 1e-6 and kstest(first[:, 1], "uniform").pvalue > 1e-6


def test_the_reflection_takes_the_first_axis_to_the_direction_and_keeps_lengths():
    direction = analytic.linear(0.1, 7).direction
    z = ndtri(Stream.of(0, "z").uniforms(20, 7))
    turned = q._turned(z, direction)
    assert np.allclose(turned @ direction, z[:, 0]) and np.allclose(
        np.linalg.norm(turned, axis=1), np.linalg.norm(z, axis=1)
    )
    assert q._turned(z, np.eye(7)[0]) is z


def test_replicates_that_agree_are_not_taken_for_exact():
    n = 16 * 64
    found = QuasiMonteCarlo().result({"draws": np.full(16, 64), "hits": np.full(16, 8)})
    assert found.value == 8 / 64 and found.std_error is None
    assert found.high - found.value == pytest.approx(clopper_pearson(0, n)[1])
    # A share of 8 / 64 in all of 16 replicates: a truth of 8.05 / 64 would do that in half of all cases.
    assert found.low < 7.95 / 64 < 8.05 / 64 < found.high


@pytest.mark.parametrize("problem", [analytic.linear(0.01, 1), analytic.shell(0.01, 4), analytic.heavy_maximum(0.01)])
def test_few_hits_widen_the_interval(problem):
    for n in (3000, 600, 200):
        ours = repeat(problem, QuasiMonteCarlo(), 100, samples=n)
        assert covers(ours, problem.truth) and all("Clopper" in estimate.interval for estimate in ours)


def test_no_hit_bounds_from_above():
    found = wb.run(find_problem("tail-1e-9"), QuasiMonteCarlo(), wb.Budget(samples=1000), seed=0)
    assert (found.value, found.low) == (0.0, 0.0) and found.high == pytest.approx(clopper_pearson(0, 1000)[1])


def test_until_each_replicate_has_a_point_nothing_is_said():
    early = wb.run(TAIL, QuasiMonteCarlo(), wb.Budget(samples=15), seed=0)
    assert early.value is None and (early.low, early.high) == (0.0, 1.0)


def test_the_truth_of_the_tail_is_the_closed_form():
    assert pytest.approx(ndtr(-TAIL.threshold)) == TAIL.truth == pytest.approx(0.1)


@pytest.mark.parametrize(
    "settings, said", [({"replicates": 1}, r"replicates is 1 but must .* at least 2"), ({"level": 2.0}, r"level is 2")]
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(WorkbenchError, match=said):
        QuasiMonteCarlo(**settings)


def test_a_problem_without_a_limit_state_and_one_of_too_many_dimensions_are_refused_by_name():
    with pytest.raises(Unsuitable, match=r"QuasiMonteCarlo needs a Gaussian event"):
        QuasiMonteCarlo().init(find_problem("agent-risk"))
    with pytest.raises(Unsuitable, match=r"at most 21,201 dimensions, and linear\(d=30000.*has 30,000"):
        QuasiMonteCarlo().init(analytic.linear(0.1, 30_000))
