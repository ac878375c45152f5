"""Cross entropy for Gaussian events: unbiased, covering, far better than chance where it fits, and never silent where not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import norm

import workbench as wb
from tests.methods.tail_risk.repeats import bias_in_errors, covered, covers, repeat, values
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk.gaussian_cross_entropy import GaussianCrossEntropy
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.problems import analytic
from workbench.problems.suite import find_problem

PLANES = {
    "tail-1e-3": (find_problem("tail-1e-3"), 3000, 150),
    "tail-1e-6": (find_problem("tail-1e-6"), 4000, 150),
    "plane in ten dimensions": (analytic.linear(1e-4, 10), 4000, 150),
}


@pytest.mark.parametrize("case", PLANES)
def test_it_is_unbiased_and_covers(case):
    problem, n, repeats = PLANES[case]
    ours = repeat(problem, GaussianCrossEntropy(), repeats, samples=n)
    assert sum(estimate.reliable for estimate in ours) > 0.9 * repeats
    assert abs(bias_in_errors(ours, problem.truth)) < 3.5
    assert covers(ours, problem.truth)
    # What plain Monte Carlo would have at this spend, and the error that the estimates own up to.
    spread = values(ours).std(ddof=1)
    assert spread < 0.2 * math.sqrt(problem.truth * (1 - problem.truth) / n)
    assert np.mean([estimate.std_error for estimate in ours]) == pytest.approx(spread, rel=0.25)


def test_where_the_event_is_common_the_pilot_is_all_that_it_costs():
    problem, n = analytic.GaussianTail(0.5), 3000
    ours, plain = (repeat(problem, e, 100, samples=n) for e in (GaussianCrossEntropy(), MonteCarlo()))
    assert covers(ours, problem.truth) and values(ours).std() < 1.4 * values(plain).std()


# Of the four the first two are the classic traps; a shell has no direction at all, and the sum's edge bends.
TRAPS = [
    "two-sided-1e-3",
    "two-sided-1e-6",
    "four-branch",
    "four-branch-rare",
    "lopsided",
    "shell-1e-3",
    "heavy-maximum-1e-6",
]


@pytest.mark.parametrize("name", TRAPS)
def test_a_mode_that_one_shift_misses_is_never_missed_in_silence(name):
    problem = find_problem(name)
    ours = repeat(problem, GaussianCrossEntropy(), 40, samples=12_000)
    held, trusted = covered(ours, problem.truth)
    assert trusted - held <= 0.1 * len(ours), f"{trusted - held} of {len(ours)} are wrong and say nothing"
    assert trusted <= 4, "next to none can be trusted, and they say why"
    assert all(estimate.why for estimate in ours)


def test_the_traps_are_traps(monkeypatch):
    """Without the look at the first round the two-sided tail is wrong by half, with a short interval."""
    monkeypatch.setattr("workbench.methods.tail_risk.gaussian_cross_entropy._MOST_AWAY", 1.0)
    problem = find_problem("two-sided-1e-6")
    ours = [
        e for e in repeat(problem, GaussianCrossEntropy(), 40, samples=12_000) if e.value is not None and e.reliable
    ]
    wrong = [e for e in ours if e.high < 0.7 * problem.truth]
    assert len(wrong) >= 5


def test_a_bent_edge_is_flagged_or_covered():
    problem = find_problem("exponential-sum-1e-6")
    ours = repeat(problem, GaussianCrossEntropy(), 60, samples=8000)
    held, trusted = covered(ours, problem.truth)
    assert trusted - held <= 0.1 * len(ours) and any("uneven" in estimate.why for estimate in ours)


def test_the_ladder_reaches_the_mean_of_the_law_beyond_the_threshold():
    # The best mu of the family N(mu, 1) is E[Z | Z > t] = phi(t) / Phi(-t).
    problem = find_problem("tail-1e-6")
    t = problem.threshold
    found = wb.run(problem, GaussianCrossEntropy(pilot=4000), wb.Budget(samples=30_000), seed=1)
    assert found.diagnostics["shift"] == pytest.approx(norm.pdf(t) / norm.sf(t), rel=0.02)
    assert found.diagnostics["rounds"] <= 5
    assert found.n_samples == found.spend.samples == found.spend.model_calls == 30_000, "the pilots are paid for"


def test_weights_are_the_ratio_of_the_laws():
    problem = analytic.linear(0.01, 3)
    estimator = GaussianCrossEntropy(pilot=200)
    state = estimator.init(problem)
    seen = []

    def keep(z):
        seen.append(z)
        return 1 - z @ problem.direction

    spy = analytic.LimitState("spy", 3, keep, 0.5, problem.direction)
    mu = np.array([1.0, 0.5, -0.2])
    batch = estimator.draw(spy, state | {"ready": True, "mu": mu}, 300, Stream.of(0, "x"))
    z = seen[0]
    p, q = norm.logpdf(z).sum(axis=1), norm.logpdf(z - mu).sum(axis=1)
    assert np.allclose(batch["log_weight"], p - np.log(0.1 * np.exp(p) + 0.9 * np.exp(q)))
    assert batch["log_weight"].max() <= -math.log(0.1) + 1e-12
    shifted = (z @ mu > float(mu @ mu) / 2).mean()
    assert shifted > 0.5


def test_an_event_out_of_reach_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr("workbench.methods.tail_risk.gaussian_cross_entropy._MOST_ROUNDS", 2)
    found = wb.run(find_problem("tail-1e-9"), GaussianCrossEntropy(), wb.Budget(samples=3000), seed=0)
    assert not found.reliable and "after 2 rounds the ladder has not reached" in found.why


def test_while_the_pilot_is_under_way_nothing_is_said():
    early = wb.run(find_problem("tail-1e-6"), GaussianCrossEntropy(), wb.Budget(samples=700), seed=0)
    assert early.value is None and "round 2, 700 draws" in early.why
    assert GaussianCrossEntropy().init(analytic.linear(0.1, 50))["size"] == 1000


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"pilot": 10}, r"pilot is 10 but must"),
        ({"elite": 0.0}, r"elite is 0"),
        ({"mixture": 0.0}, r"mixture is 0"),
        ({"level": 1.0}, r"level is 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(WorkbenchError, match=said):
        GaussianCrossEntropy(**settings)


def test_a_problem_without_a_limit_state_is_refused_by_name():
    with pytest.raises(Unsuitable, match=r"GaussianCrossEntropy needs a Gaussian event.*CrossEntropy for a model\."):
        GaussianCrossEntropy().init(find_problem("grammar-7"))


def test_ndtri_of_the_draws_is_the_plain_law_in_the_first_round():
    problem = analytic.linear(0.1, 2)
    batch = GaussianCrossEntropy().draw(problem, GaussianCrossEntropy().init(problem), 30, Stream.of(1, "x"))
    assert np.array_equal(batch["z"], ndtri(Stream.of(1, "x").uniforms(30, 3)[:, :2]))
