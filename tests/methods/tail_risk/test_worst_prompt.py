"""Which prompt is the worst: the guarantees hold, and fewer tries are needed than when they are shared evenly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import rel_entr

from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk import worst_prompt as wp
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.problems.analytic import GaussianTail
from workbench.problems.best_of_n import BestOfN
from workbench.problems.event import codeword_event
from workbench.problems.suite import find_problem

FEW_BAD = (0.1,) * 20 + (0.5,) + (0.38,) * 3 + (0.1,) * 8  # arm 20 is the worst, three come near, the rest are clear
EASY = (0.1, 0.1, 0.6, 0.3, 0.1, 0.1)


def wrong(search, rates, repeats, **settings):
    """How often the wrong arm is found, over streams, and the tries of each search."""
    problem, worst = BestOfN(tuple(rates)), int(np.argmax(rates))
    found = [
        search(problem.attempt, len(rates), stream=Stream.of(seed, "search"), **settings) for seed in range(repeats)
    ]
    return np.array([answer.arm != worst for answer in found]), np.array([answer.tries.sum() for answer in found])


@pytest.mark.parametrize("budget", [2000, 4000, 8000])
def test_sequential_halving_keeps_its_bound(budget):
    errs, spent = wrong(wp.sequential_halving, EASY, 300, budget=budget)
    assert (spent <= budget).all() and spent.min() > 0.95 * budget
    assert clopper_pearson(int(errs.sum()), 300, 0.9999)[0] <= wp.halving_bound(EASY, budget)


def test_the_bound_is_tight_enough_to_say_something():
    assert wp.halving_bound(EASY, 2000) > wp.halving_bound(EASY, 4000) and wp.halving_bound(EASY, 8000) < 0.01
    # By hand: two arms, gap 0.4: H2 = 2 / 0.16, log2 K = 1.
    assert wp.halving_bound([0.1, 0.5], 500) == pytest.approx(3 * math.exp(-500 / (8 * 2 / 0.16)))
    assert wp.halving_bound([0.5, 0.5], 10**9) == 1.0


def test_halving_errs_less_than_an_even_share_of_the_same_budget():
    halved, spent = wrong(wp.sequential_halving, FEW_BAD, 400, budget=3200)
    evenly, even_spent = wrong(wp.uniform, FEW_BAD, 400, budget=3200)
    assert spent.max() <= even_spent.min() == 3200
    test = stats.binomtest(int((evenly & ~halved).sum()), int((evenly ^ halved).sum()), alternative="greater")
    assert test.pvalue < 1e-4, f"{halved.mean():.3f} against {evenly.mean():.3f}"


def test_halving_gains_nothing_where_all_others_are_alike_and_two():
    # Two arms are one round: the same tries, and the same answer.
    halved, _ = wrong(wp.sequential_halving, (0.3, 0.4), 200, budget=100)
    evenly, _ = wrong(wp.uniform, (0.3, 0.4), 200, budget=100)
    assert np.array_equal(halved, evenly)


def test_lucb_errs_less_often_than_it_is_allowed_and_needs_fewer_tries():
    errs, spent = wrong(wp.lucb, EASY, 60, delta=0.2, batch=10)
    evenly_errs, even_spent = wrong(wp.lucb, EASY, 20, delta=0.2, batch=10, evenly=True)
    assert stats.binom.sf(errs.sum() - 1, 60, 0.2) > 1e-4 and stats.binom.sf(evenly_errs.sum() - 1, 20, 0.2) > 1e-4
    gain = even_spent.mean() / spent.mean()
    error = gain * math.hypot(stats.sem(even_spent) / even_spent.mean(), stats.sem(spent) / spent.mean())
    assert gain - 3.5 * error > 1.5, f"{gain:.2f} -/+ {error:.2f}"


def test_lucb_keeps_delta_where_arms_are_close():
    """The guarantee where it is needed; a search that stops at the first difference seen would err in a third of cases."""
    errs, _ = wrong(wp.lucb, (0.5, 0.4, 0.4), 30, delta=0.2, batch=50)
    assert stats.binom.sf(errs.sum() - 1, 30, 0.2) > 1e-4
    hasty, _ = wrong(wp.uniform, (0.5, 0.4, 0.4), 300, budget=60)
    assert hasty.mean() > 0.2


def test_ties_end_at_the_limit_or_by_the_tolerance():
    tie = BestOfN((0.4, 0.4)).attempt
    stuck = wp.lucb(tie, 2, Stream.of(0, "tie"), batch=50, most=2000)
    assert not stuck.decided and stuck.tries.sum() <= 2000
    found = wp.lucb(tie, 2, Stream.of(0, "tie"), batch=50, tolerance=0.2)
    assert found.decided


def test_bounds_solve_their_equation():
    shares, tries, beta = np.array([0.0, 0.02, 0.5, 0.9, 1.0]), np.array([10, 400, 30, 5, 10]), 7.3
    low, high = wp.kl_bounds(shares, tries, beta)
    for end, open_end in ((low, shares > 0), (high, shares < 1)):
        divergence = tries * (rel_entr(shares, end) + rel_entr(1 - shares, 1 - end))
        assert np.allclose(divergence[open_end], beta, rtol=1e-6)
    assert low[0] == pytest.approx(0, abs=1e-12) and high[-1] == pytest.approx(1, abs=1e-12)
    assert high[0] == pytest.approx(1 - math.exp(-beta / 10))
    x = math.log(405.5 * 5 * 100**1.1 / 0.05)
    assert wp.exploration(5, 100, 0.05) == pytest.approx(x + math.log(x))


def test_prompts_of_a_model():
    events = [codeword_event("grammar", prompt=(filler,) * 3) for filler in (6, 8, 7)]
    found = wp.sequential_halving(wp.of_events(events), 3, 4000, Stream.of(0, "prompts"))
    assert found.arm == 1 and found.tries[1] == found.tries.max()
    again = wp.sequential_halving(wp.of_events(events), 3, 4000, Stream.of(0, "prompts"))
    assert found.arm == again.arm and np.array_equal(found.hits, again.hits)


def test_a_try_depends_on_its_arm_and_its_number_alone():
    attempt, stream = wp.of_events([GaussianTail(0.0), GaussianTail(0.5)]), Stream.of(0, "tries")
    arms = np.random.default_rng(0).integers(0, 2, 200)
    whole = attempt(arms, stream)
    assert whole.any() and not whole.all()
    assert np.array_equal(whole[120:], attempt(arms[120:], stream.at(120)))
    assert np.array_equal(whole[arms == 0], attempt(np.zeros(200, dtype=int), stream)[arms == 0])


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda a, s: wp.sequential_halving(a, 1, 100, s), r"n_arms is 1 but must be at least 2"),
        (lambda a, s: wp.sequential_halving(a, 6, 17, s), r"budget is 17 but must .* at least 18"),
        (lambda a, s: wp.uniform(a, 6, 5, s), r"budget is 5"),
        (lambda a, s: wp.lucb(a, 6, s, delta=0.0), r"delta is 0"),
        (lambda a, s: wp.lucb(a, 6, s, tolerance=-1), r"tolerance is -1"),
        (lambda a, s: wp.lucb(a, 6, s, batch=0), r"batch is 0"),
        (lambda a, s: wp.lucb(a, 6, s, batch=10, most=59), r"most is 59"),
        (lambda a, s: wp.uniform(lambda arms, stream: np.ones(3), 6, 6, s), r"attempt returned is 'float64"),
        (lambda a, s: wp.halving_bound([0.5, math.nan], 10), r"rates\[1\] is nan"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said):
    with pytest.raises(WorkbenchError, match=said):
        call(BestOfN(EASY).attempt, Stream.of(0, "x"))


def test_problems_that_sample_no_event_are_refused_by_name():
    with pytest.raises(Unsuitable, match=r"was given best-of-n"):
        wp.of_events([find_problem("queries-beta")])
    with pytest.raises(Unsuitable, match=r"an empty list"):
        wp.of_events([])
