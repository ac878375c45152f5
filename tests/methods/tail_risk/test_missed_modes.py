"""The look at the nearest plain draws: it finds the modes that a shift misses, and is quiet where there are none."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from tests.methods.tail_risk.repeats import covered, repeat
from workbench import Stream
from workbench.methods.tail_risk.lm_tail_risk import CrossEntropy, ImportanceSampling, Proposal
from workbench.methods.tail_risk.missed_modes import MOST_AWAY, NO_LOOK, look, share_away
from workbench.problems import analytic
from workbench.problems.suite import find_problem

SAMPLES = 12_000


def looked(problem, proposal=Proposal(), n=SAMPLES, seed=0):  # noqa: B008
    return look(NO_LOOK, problem.sample_from(proposal, n, Stream.of(seed, "look")))


@pytest.mark.parametrize(
    "problem, away",
    [
        ("two-sided-1e-6", 1 / 2),  # half lies on the other side
        ("heavy-maximum-1e-6", 2 / 5),  # half of what four of five axes show
        ("four-branch-rare", 1 / 2),  # one branch opposite, half of what the two branches across show
        ("shell-1e-6", 1 / 2),
    ],
)
def test_the_share_away_is_what_the_geometry_says(problem, away):
    shares = [share_away(looked(find_problem(problem), seed=seed)) for seed in range(20)]
    # 50 near misses a look, 20 looks: five standard errors of a share.
    assert np.mean(shares) == pytest.approx(away, abs=5 * np.sqrt(away * (1 - away) / 1000) + 0.05)
    assert min(shares) > MOST_AWAY


@pytest.mark.parametrize(
    "problem", ["tail-1e-3", "tail-1e-9", "linear-50d-1e-4", "linear-50d-1e-8", "exponential-sum-1e-6"]
)
@pytest.mark.parametrize("strength", [2.0, 6.0])
def test_it_is_quiet_where_the_shift_leads_to_the_whole_event(problem, strength):
    assert share_away(looked(find_problem(problem), Proposal(strength))) <= MOST_AWAY


def test_a_shift_to_the_wrong_side_leaves_all_near_misses_away():
    assert share_away(looked(find_problem("tail-1e-6"), Proposal(-3.0))) == 1


def test_the_plain_law_is_nobodys_wrong_side_and_hits_are_no_misses():
    assert share_away(looked(find_problem("two-sided-1e-6"), Proposal(switch=0))) == 0
    common = analytic.GaussianTail(0.5, two_sided=True)
    assert share_away(looked(common)) == 0, "its far side is drawn, and is in the spread"


def test_few_plain_draws_say_nothing_and_a_judge_gives_no_score():
    problem = find_problem("two-sided-1e-6")
    assert share_away(looked(problem, n=300)) is None
    assert share_away(looked(problem, Proposal(mixture=0.0))) is None
    assert look(NO_LOOK, {"hit": np.ones(3, dtype=bool), "log_weight": np.zeros(3)}) is NO_LOOK


def test_any_batches_in_any_order_give_the_same_look():
    problem = find_problem("four-branch-rare")
    batch = problem.sample_from(Proposal(), 6000, Stream.of(1, "look"))
    whole = look(NO_LOOK, batch)
    parts = NO_LOOK
    for rows in np.array_split(np.random.default_rng(0).permutation(6000), 7):
        parts = look(parts, {name: column[rows] for name, column in batch.items()})
    assert parts["n"] == whole["n"] and parts["log_ratio"] == whole["log_ratio"]
    assert np.array_equal(parts["nearest"], whole["nearest"])


@pytest.mark.parametrize("estimator", [ImportanceSampling(), CrossEntropy()])
@pytest.mark.parametrize("name", ["two-sided-1e-6", "heavy-maximum-1e-6", "four-branch-rare", "lopsided"])
def test_a_steered_estimate_of_an_event_with_several_modes_says_so(estimator, name):
    ours = repeat(find_problem(name), estimator, 20, samples=SAMPLES)
    assert not any(estimate.reliable for estimate in ours) and all(estimate.why for estimate in ours)


@pytest.mark.parametrize("estimator", [ImportanceSampling(), CrossEntropy()])
@pytest.mark.parametrize("name", ["tail-1e-6", "linear-50d-1e-4"])
def test_a_steered_estimate_of_one_mode_is_trusted_and_right(estimator, name):
    problem = find_problem(name)
    held, trusted = covered(repeat(problem, estimator, 40, samples=SAMPLES), problem.truth)
    assert trusted == 40 and held >= 33, "40 of 95 %: 33 or more in all but 1e-3 of cases"


def test_the_trap_is_a_trap(monkeypatch):
    """Without the look, the estimate of a two-sided tail is wrong by half and says nothing."""
    monkeypatch.setattr("workbench.methods.tail_risk.lm_tail_risk.MOST_AWAY", 1.0)
    problem = find_problem("four-branch-rare")
    found = wb.run(problem, ImportanceSampling(), wb.Budget(samples=SAMPLES), seed=0)
    assert found.reliable and found.high < 0.7 * problem.truth
