"""Stratified Monte Carlo: unbiased, its variance is the formula's, it never loses, and its interval is never width zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtri

import workbench as wb
from tests.methods.tail_risk.repeats import bias_in_errors, covers, repeat, variance_ratio
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.methods.tail_risk.stratified import Stratified, places
from workbench.problems import analytic, chains
from workbench.problems.event import codeword_event
from workbench.problems.suite import find_problem

TAIL = analytic.GaussianTail(-float(ndtri(0.1)))
CASES = {
    "tail": (TAIL, Stratified(), 1000, 300),
    "shell by radius": (analytic.shell(0.1), Stratified(along="radius"), 1000, 200),
    "four branches": (analytic.four_branch(1.0, 3.0), Stratified(), 1000, 200),
    "chain": (find_problem("agent-risk-mild"), Stratified(), 1000, 120),
    "grammar": (codeword_event("grammar", prompt=(8, 8, 8)), Stratified(), 1000, 80),
    "few draws": (TAIL, Stratified(), 37, 600),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_unbiased_covers_and_does_not_lose_to_plain_monte_carlo(case):
    problem, estimator, n, repeats = CASES[case]
    ours = repeat(problem, estimator, repeats, samples=n)
    assert abs(bias_in_errors(ours, problem.truth)) < 3.5
    assert covers(ours, problem.truth)
    plain = repeat(problem, MonteCarlo(), repeats, samples=n)
    assert variance_ratio(ours, plain)[2] > 1, "Monte Carlo has the smaller variance, for certain"


@pytest.mark.parametrize("case, along", [("tail", "direction"), ("shell by radius", "radius")])
def test_the_variance_is_the_formulas(case, along):
    # p = 0.1: of 16 strata one hits for certain, and one with probability 0.1 * 16 - 1.
    problem, estimator, n, repeats = CASES[case]
    inside = 0.1 * 16 - 1
    gain = 0.1 * 0.9 / (inside * (1 - inside) / 16)
    ours, plain = (repeat(problem, e, repeats, samples=n) for e in (estimator, MonteCarlo()))
    ratio, low, high = variance_ratio(ours, plain)
    assert low < gain < high, f"{ratio:.2f} in place of {gain:.2f}"
    assert gain > 5 and np.mean([e.diagnostics["variance_ratio"] for e in ours]) == pytest.approx(gain, rel=0.1)


def test_first_tokens_explain_what_the_formula_says():
    # Given comply the codeword comes with probability q, else hardly ever: the variance falls by 1 / (1 - q), about.
    problem = codeword_event("grammar", prompt=(8, 8, 8))
    q = problem.truth / 0.1
    budget = wb.Budget(samples=20_000)
    found, plain = (wb.run(problem, estimator, budget, seed=0) for estimator in (Stratified(), MonteCarlo()))
    assert found.diagnostics["variance_ratio"] == pytest.approx((1 - problem.truth) / (1 - q), rel=0.1)
    assert found.spend.tokens == pytest.approx(plain.spend.tokens, rel=0.05)


def test_nothing_is_gained_where_the_strata_do_not_tell_hits_apart():
    # A radius says nothing of the sign of a coordinate.
    problem = analytic.linear(0.2, 5)
    ours = repeat(problem, Stratified(along="radius"), 400, samples=500)
    plain = repeat(problem, MonteCarlo(), 400, samples=500)
    _, low, high = variance_ratio(ours, plain)
    assert low < 1.2 and high > 0.95, "but for the little that a large radius helps"


def test_every_stratum_has_its_share_after_any_number_of_draws():
    for seed in range(5):
        at = places(3000, Stream.of(seed, "x"))
        for n in (50, 317, 1000, 3000):
            counts = np.bincount((at[:n] * 16).astype(int), minlength=16)
            assert abs(counts - n / 16).max() < 4, "random draws would be off by 3 sqrt(n / 16)"
        assert np.array_equal(at[100:200], places(100, Stream.of(seed, "x").at(100)))
    starts = np.array([places(1, Stream.of(seed, "x"))[0] for seed in range(500)])
    assert abs(starts.mean() - 0.5) < 3.5 / math.sqrt(12 * 500), "each place is uniform over seeds"


def test_points_of_a_stratum_lie_in_it_and_are_gaussian_otherwise():
    problem, estimator = analytic.linear(0.3, 4), Stratified(strata=4)
    seen = []

    def keep(z):
        seen.append(z)
        return np.ones(len(z))

    spy = analytic.LimitState("spy", 4, keep, 0.5, problem.direction)
    batch = estimator.draw(spy, estimator.init(spy), 4000, Stream.of(0, "x"))
    along = seen[0] @ problem.direction
    edges = ndtri(np.arange(5) / 4)
    assert ((edges[batch["stratum"]] <= along + 1e-9) & (along <= edges[batch["stratum"] + 1] + 1e-9)).all()
    assert np.allclose(np.cov(seen[0].T), np.eye(4), atol=0.1) and np.abs(seen[0].mean(axis=0)).max() < 0.06


@pytest.mark.parametrize("hits", [0, 50, 200])
def test_pure_strata_still_leave_an_open_interval(hits):
    """Strata that all hit or all miss have no spread; what few cases could hide in n draws stays open."""
    strata = np.arange(4)
    state = {
        "stratum": strata,
        "draws": np.full(4, 50),
        "hits": np.where(strata < hits // 50, 50, 0),
        "weight": np.full(4, 0.25),
    }
    found = Stratified().result(state)
    assert found.value == hits / 200 and found.std_error is None
    assert found.high - found.low > 0.8 * clopper_pearson(0, 200)[1]
    assert bool(found.why) == (hits == 0)


def test_with_one_stratum_it_is_plain_monte_carlos_interval():
    found = wb.run(TAIL, Stratified(strata=1), wb.Budget(samples=500), seed=0)
    hits = found.diagnostics["hits"]
    # n / (n - 1) of an unbiased variance aside, and never more draws than twice those made.
    assert (found.low, found.high) == pytest.approx(clopper_pearson(hits, 500), rel=0.01)


def test_a_chain_that_has_ended_before_it_began():
    matrix = np.array([[0.5, 0.5], [0.0, 1.0]])
    problem = chains.ChainEvent("at-home", matrix, 1, np.array([False, True]))
    found = wb.run(problem, Stratified(), wb.Budget(samples=50), seed=0)
    assert found.value == 1.0 and found.low > 0.9


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"strata": 0}, r"strata is 0 but must be .* at least 1"),
        ({"along": "diagonal"}, r"along is 'diagonal' but must be one of direction, radius"),
        ({"level": 1.0}, r"level is 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(WorkbenchError, match=said):
        Stratified(**settings)


def test_a_problem_without_strata_is_refused_by_name():
    with pytest.raises(Unsuitable, match=r"Stratified needs a Gaussian event.*use MonteCarlo\."):
        Stratified().init(find_problem("population-beta"))
