"""Twisted sequential Monte Carlo: unbiased under any twist, without variance under the exact one, covering by islands."""

from __future__ import annotations

import math

import numpy as np
import pytest

import workbench as wb
from tests.methods.tail_risk.repeats import covers, repeat, values
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk import twisted
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.methods.tail_risk.twisted import Twisted, islands, learned_twist, systematic
from workbench.problems import chains
from workbench.problems.suite import find_problem

TWO_WAYS, LADDER, AGENT = chains.two_ways(0.01, 0.2, 6), chains.ladder(0.3, 6), chains.agent_risk(6, 1)


@pytest.mark.parametrize("problem", [TWO_WAYS, LADDER, AGENT], ids=lambda problem: problem.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_islands_are_unbiased_whatever_the_twist(problem, seed):
    # Any psi that is 0 at hopeless states alone, with few particles so that resampling has a part in it.
    psi = Stream.of(seed, "psi").uniforms(1, len(problem.transitions))[0] + 0.1
    psi[problem.ends & ~problem.target] = 0.0
    psi[problem.target] = 1.0
    z = islands(problem, psi[None], 3, 6000, Stream.of(seed, "islands"))
    assert z.std() > 0
    assert abs(z.mean() - problem.truth) < 3.5 * z.std() / math.sqrt(len(z))


def test_without_a_twist_an_island_is_the_share_of_its_plain_paths():
    z = islands(TWO_WAYS, np.ones((1, 5)), 8, 4000, Stream.of(0, "plain"))
    assert np.allclose(z * 8, np.round(z * 8))
    assert z.var() == pytest.approx(TWO_WAYS.truth * (1 - TWO_WAYS.truth) / 8, rel=0.15)


@pytest.mark.parametrize("name", ["ladder-24", "repairs-rare", "two-ways", "agent-risk"])
def test_the_exact_twist_leaves_no_variance(name):
    problem = find_problem(name)
    found = wb.run(problem, Twisted(twist="exact", particles=4), wb.Budget(samples=20), seed=0)
    assert found.value == pytest.approx(problem.truth, rel=1e-9) and found.low <= problem.truth <= found.high
    assert "no variance" in found.interval and found.reliable


@pytest.mark.parametrize("name", ["agent-risk-mild", "two-ways", "ladder-8", "repairs"])
def test_learned_it_is_unbiased_covers_and_beats_monte_carlo_at_equal_calls(name):
    problem, calls, repeats = find_problem(name), 8000, 50
    ours = repeat(problem, Twisted(), repeats, model_calls=calls)
    # Twists differ by pilot and so do the errors: each estimate is weighed by its own.
    scores = np.array([(e.value - problem.truth) / e.std_error for e in ours])
    assert abs(scores.mean()) < 3.5 * scores.std(ddof=1) / math.sqrt(repeats) + 0.35, "skew of the islands apart"
    assert covers(ours, problem.truth)
    spread = np.median(np.abs(values(ours) / problem.truth - 1))
    plain = np.median(np.abs(values(repeat(problem, MonteCarlo(), repeats, model_calls=calls)) / problem.truth - 1))
    assert spread < 0.6 * plain


def test_the_rare_ladder_is_met_where_plain_paths_never_get():
    problem = find_problem("ladder-16")
    found = wb.run(problem, Twisted(), wb.Budget(model_calls=60_000), seed=0)
    assert found.reliable and abs(math.log(found.value / problem.truth)) < 0.2 and problem.truth < 1e-5


def test_an_untwisted_island_gains_nothing():
    calls = 6000
    ours = values(repeat(TWO_WAYS, Twisted(twist="none"), 80, model_calls=calls))
    plain = values(repeat(TWO_WAYS, MonteCarlo(), 80, model_calls=calls))
    assert 0.5 < ours.var() / plain.var() < 2.0


def test_the_twist_that_is_learned_is_the_product_of_shares():
    # 100 paths on level 0, 50 of them rose to 1, 5 to 2, none to 3; states 0..3 and a dead end.
    psi = learned_twist(np.array([100, 50, 5, 0]), np.array([0, 1, 2, 3, -1]))
    shares = np.array([50.5 / 101, 5.5 / 51, 0.5 / 6])
    assert psi == pytest.approx([shares.prod(), shares[1:].prod(), shares[2], 1.0, 0.0])
    # A level that nobody reached gets the mean of the logarithms of the others; without any, one half.
    unseen = learned_twist(np.array([100, 50, 3, 0]), np.array([0, 1, 2, 3]))
    assert unseen[2] == pytest.approx(math.exp(np.log([50.5 / 101, 3.5 / 51]).mean()))
    assert learned_twist(np.array([2, 0]), np.array([0, 1])).tolist() == [0.5, 1.0]


def test_systematic_resampling_takes_each_as_often_as_its_weight_says():
    share = np.array([0.05, 0.5, 0.0, 0.33, 0.12])
    taken = systematic(np.tile(share, (20_000, 1)), Stream.of(0, "u").uniforms(20_000)[:, 0])
    counts = np.stack([(taken == i).sum(axis=1) for i in range(5)], axis=1)
    assert (np.floor(5 * share) <= counts).all() and (counts <= np.ceil(5 * share)).all()
    assert np.abs(counts.mean(axis=0) - 5 * share).max() < 0.02


def test_each_step_of_each_path_is_charged():
    problem = find_problem("agent-risk-mild")
    with wb.Meter() as meter:
        islands(problem, np.ones((1, 5)), 4, 50, Stream.of(0, "x"))
    assert 0.8 * 50 * 4 * 10 < meter.spend.model_calls <= 50 * 4 * 10, "paths that end early cost less"
    found = wb.run(problem, Twisted(particles=4, pilot=5), wb.Budget(samples=30), seed=0)
    assert found.n_samples == 30 and found.diagnostics["islands"] == 25


def test_until_it_can_speak_it_says_so():
    problem = find_problem("ladder-16")
    early = wb.run(problem, Twisted(), wb.Budget(samples=19), seed=0)
    assert early.value is None and "19 of 20 islands" in early.why
    assert "single island" in wb.run(problem, Twisted(), wb.Budget(samples=21), seed=0).why
    few = wb.run(problem, Twisted(), wb.Budget(samples=30), seed=0)
    assert not few.reliable and "islands' worth" in few.why
    never = wb.run(find_problem("ladder-24"), Twisted(twist="none"), wb.Budget(samples=30), seed=0)
    assert never.value is None and "none of 30 islands" in never.why


def test_a_walk_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(twisted, "_LONGEST", 3)
    with pytest.raises(WorkbenchError, match=r"took more than 3 steps; set a horizon\."):
        islands(LADDER, np.ones((1, 7)), 4, 20, Stream.of(0, "x"))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"particles": 1}, r"particles is 1"),
        ({"twist": "exakt"}, r"twist is 'exakt'.*did you mean 'exact'"),
        ({"pilot": 0}, r"pilot is 0"),
        ({"level": 1.0}, r"level is 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(WorkbenchError, match=said):
        Twisted(**settings)


def test_a_problem_that_is_no_chain_is_refused_by_name():
    with pytest.raises(Unsuitable, match=r"Twisted needs a Markov chain.*Splitting for a Gaussian event\."):
        Twisted().init(find_problem("tail-1e-3"))
