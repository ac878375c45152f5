"""Control variates: means of 0, no bias, the variance that theory gives, and plain Monte Carlo where there is no gain."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri

import workbench as wb
from tests.methods.tail_risk.repeats import bias_in_errors, covers, repeat, values, variance_ratio
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk import control_variates as cv
from workbench.methods.tail_risk.control_variates import ControlVariates
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.problems import analytic, chains
from workbench.problems.event import codeword_event
from workbench.problems.suite import find_problem

TAIL = analytic.GaussianTail(-float(ndtri(0.1)))
MILD = find_problem("agent-risk-mild")
CASES = {
    "tail": (TAIL, ControlVariates(), 1400, 300),
    "shell": (analytic.shell(0.2), ControlVariates(), 1400, 200),
    "chain": (MILD, ControlVariates(), 1400, 120),
    "grammar": (codeword_event("grammar", prompt=(8, 8, 8)), ControlVariates(), 1400, 80),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_unbiased_covers_and_beats_plain_monte_carlo(case):
    problem, estimator, n, repeats = CASES[case]
    ours = repeat(problem, estimator, repeats, samples=n)
    assert abs(bias_in_errors(ours, problem.truth)) < 3.5
    assert covers(ours, problem.truth)
    ratio, _, high = variance_ratio(ours, repeat(problem, MonteCarlo(), repeats, samples=n - estimator.pilot))
    owned = np.mean([e.std_error for e in ours if e.interval == "normal"])
    assert owned == pytest.approx(values(ours).std(ddof=1), rel=3.5 / math.sqrt(2 * repeats)), "the error it owns up to"
    assert high > 1 and ratio > 1.1, "gained on the draws that are used; the pilot is paid beside"


def test_the_gain_is_that_of_the_explained_variance():
    # Cov(1{x > c}, He_k(x) / sqrt k!) = phi(c), c phi(c) / sqrt 2 for k = 1, 2.
    c = TAIL.threshold
    explained = stats.norm.pdf(c) ** 2 * (1 + c**2 / 2) / (0.1 * 0.9)
    found = wb.run(TAIL, ControlVariates(), wb.Budget(samples=60_000), seed=0)
    assert found.diagnostics["variance_ratio"] == pytest.approx(1 / (1 - explained), rel=0.03)
    assert found.diagnostics["coefficient_0"] == pytest.approx(stats.norm.pdf(c), abs=0.05)


@pytest.mark.parametrize(
    "problem", [TAIL, analytic.shell(0.2), find_problem("two-ways"), MILD, find_problem("ladder-even"), CASES["grammar"][0]],
    ids=lambda problem: problem.name,
)  # fmt: skip
def test_every_control_has_mean_nought(problem):
    n = 20_000
    control = cv._controls_of(problem)[1](ControlVariates(depth=4), problem, n, Stream.of(3, "controls"))["control"]
    assert control.std(axis=0).min() > 0
    assert np.abs(control.mean(axis=0) / (control.std(axis=0) / math.sqrt(n))).max() < 4


def test_a_pilot_of_its_own_takes_the_bias_away():
    """With coefficients from the same few draws the mean is off by the order 1 / n; the same test sees that."""
    problem, n = analytic.GaussianTail(1.0), 12

    def fitted_to_itself(seed: int) -> float:
        x = ndtri(Stream.of(seed, "own").uniforms(n)[:, 0])
        hit, control = (x > 1.0).astype(float), np.c_[x, (x**2 - 1) / math.sqrt(2)]
        found = np.linalg.lstsq(np.c_[control, np.ones(n)], hit, rcond=None)[0]
        return float((hit - control @ found[:2]).mean())

    own = np.array([fitted_to_itself(seed) for seed in range(4000)])
    assert abs(own.mean() - problem.truth) > 3.5 * own.std() / math.sqrt(len(own))
    ours = repeat(problem, ControlVariates(pilot=30), 1500, samples=90)
    assert abs(bias_in_errors(ours, problem.truth)) < 3.5


def test_the_exact_reach_probability_leaves_no_variance():
    ours = repeat(MILD, ControlVariates(pilot=1000, depth=MILD.horizon), 5, samples=1200)
    assert np.allclose(values(ours), MILD.truth, rtol=1e-9)
    early = repeat(MILD, ControlVariates(pilot=1000, depth=1), 5, samples=1200)
    assert np.abs(values(early) / MILD.truth - 1).max() > 1e-3


def test_reach_tables_are_the_chains_own():
    reach, expected = cv.reach_tables(MILD, 5)
    for k in range(5):
        assert np.allclose(reach[k], chains.reach_probability(MILD.transitions, MILD.target, k))
        assert np.allclose(
            expected[k][~MILD.ends], chains.reach_probability(MILD.transitions, MILD.target, k + 1)[~MILD.ends]
        )


def test_a_rare_tail_gains_nothing_and_says_what_it_is():
    problem = find_problem("tail-1e-3")
    found = repeat(problem, ControlVariates(), 200, samples=2400)
    plain = [estimate for estimate in found if "plain Monte Carlo" in estimate.why]
    assert len(plain) > 150, "0.4 hits are expected in the pilot"
    mc = repeat(problem, MonteCarlo(), 200, samples=2000)
    _, low, high = variance_ratio(found, mc)
    assert low < 1 < high and covers(found, problem.truth)
    assert all(
        estimate.interval == "Clopper-Pearson on the hits" for estimate in plain if estimate.diagnostics["hits"] < 20
    )
    hits = plain[0].diagnostics["hits"]
    assert (plain[0].low, plain[0].high) == clopper_pearson(hits, 2000)


def test_where_the_pilot_hardly_hits_a_chain_falls_back_on_its_predicted_risks():
    problem = find_problem("agent-risk")
    ours = repeat(problem, ControlVariates(), 80, samples=1400)
    blind = [e for e in ours if e.diagnostics["pilot_hits"] < 5]
    assert len(blind) > 60 and all(
        (e.diagnostics["coefficient_0"], e.diagnostics["coefficient_1"]) == (0, 1) for e in blind
    )
    assert abs(bias_in_errors(ours, problem.truth)) < 3.5 and covers(ours, problem.truth)
    assert variance_ratio(ours, repeat(problem, MonteCarlo(), 80, samples=1400))[1] > 2
    # No path of the pilot gets within two rungs of the top: nothing is known, and plain Monte Carlo says so.
    far = wb.run(find_problem("ladder-24"), ControlVariates(), wb.Budget(samples=600), seed=0)
    assert far.diagnostics["coefficient_1"] == 0 and "plain Monte Carlo" in far.why


def test_coefficient_one_is_scope_and_nought_is_monte_carlo():
    from workbench.methods.tail_risk.scope_reach import scope_paths

    problem = find_problem("timeline-crash-20")
    stream = Stream.of(2, "paths")
    batch = cv._answers(ControlVariates(), problem, 50, stream)
    paths = scope_paths(problem.model, [problem.prompt], problem.judge.args[0], n=50,
                        max_new_tokens=problem.max_new_tokens, stream=stream, end_ids=problem.stop_ids)  # fmt: skip
    assert np.allclose(batch["hit"] - batch["control"][:, 0], paths.scope) and np.array_equal(batch["hit"], paths.hit)


def test_while_the_pilot_is_under_way_nothing_is_said():
    early = wb.run(TAIL, ControlVariates(), wb.Budget(samples=399), seed=0)
    assert early.value is None and "399 of 400" in early.why and not early.reliable


@pytest.mark.parametrize(
    "settings, said",
    [({"pilot": 9}, r"pilot is 9 but must"), ({"depth": 0}, r"depth is 0"), ({"level": 0.0}, r"level is 0")],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(WorkbenchError, match=said):
        ControlVariates(**settings)


def test_a_problem_without_controls_is_refused_by_name():
    with pytest.raises(Unsuitable, match=r"ControlVariates needs a Gaussian event.*use MonteCarlo\."):
        ControlVariates().init(find_problem("population-beta"))


def test_predicted_risks_without_a_hit_leave_room_above_for_paths_that_were_never_drawn():
    problem = find_problem("grammar-4")
    found = wb.run(problem, ControlVariates(), wb.Budget(samples=20_400), seed=1)
    assert found.interval == "normal below, unseen paths above" and found.low <= problem.truth <= found.high
    assert found.high == pytest.approx(found.value + clopper_pearson(0, 20_000)[1])
