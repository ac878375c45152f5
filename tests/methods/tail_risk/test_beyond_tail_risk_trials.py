"""Prices in tokens: held against closed forms, against real runs, and against each other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Annotation
from scipy.stats import binom

import workbench as wb
from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import beyond_tail_risk_trials as trials
from workbench.methods.tail_risk.beyond_tail_risk import TwistedSampling
from workbench.methods.tail_risk.lm_tail_risk import CrossEntropy, Proposal
from workbench.methods.tail_risk.twist_exact import exact_moments, train
from workbench.plots.twists import first_look, marginals, prices_figure
from workbench.problems.event import codeword_event, tabulate_event

MONTE_CARLO = TwistedSampling(rounds=0, explore=1.0, temperatures=(1.0,), conditioning=False)
STRENGTHS = (2.0, 4.0, 6.0)


@pytest.fixture(scope="module")
def table():
    return tabulate_event(codeword_event("grammar", (6, 6, 6), max_new_tokens=4), STRENGTHS)


def test_without_twist_tempering_or_conditioning_the_price_is_monte_carlos(table):
    mine = trials.price_of_twist(MONTE_CARLO, table, 1, Stream.of(0))
    theirs = trials.price_of_monte_carlo(table)
    truth = table.event.truth
    assert theirs.draws == pytest.approx(100 * (1 - truth) / truth)
    assert (mine.draws, mine.each, mine.training) == pytest.approx((theirs.draws, theirs.each, 0))
    unsteered = trials.price_of_proposal(table, Proposal(2.0, 1.0, 1))
    assert unsteered.draws == pytest.approx(theirs.draws) and unsteered.each > theirs.each, "it reads with two models"


def test_the_price_is_what_a_run_spends_and_its_error_what_was_asked(table):
    event, estimator = codeword_event("grammar", (6, 6, 6), max_new_tokens=4), TwistedSampling()
    price = trials.price_of_twist(estimator, table, 20, Stream.of(0), relative_error=0.05)
    budget = wb.Budget(samples=384 + round(price.draws))
    runs = [wb.run(event, estimator, budget, seed=seed, batch_size=512) for seed in range(120)]
    errors = np.array([run.value for run in runs]) / event.truth - 1
    assert np.mean([run.spend.tokens for run in runs]) == pytest.approx(price.tokens, rel=0.02)
    # 120 normal errors: their root mean square strays by a third with chance below 1e-6.
    assert np.sqrt((errors**2).mean()) == pytest.approx(0.05, rel=0.35)


def test_the_published_proposal_pays_for_its_pilot_and_the_best_of_the_grid_is_no_dearer(table):
    pilot = CrossEntropy(strengths=STRENGTHS, particles=40)
    own = trials.price_of_pilot(pilot, table, 3, Stream.of(1))
    [shared] = trials.prices_of_shared_pilot([table], STRENGTHS, 40, 3, Stream.of(1))
    best = trials.price_of_best(table)
    assert 120 * 2 * (3 + 1) <= own.training <= 120 * 5 * (3 + 4) and own.training == pytest.approx(
        shared.training, rel=0.2
    )
    # A proposal of the pilot may have a mixture between those of the grid.
    assert 0.8 * best.tokens < min(own.tokens, shared.tokens) and best.training == 0
    assert trials.price_of_twist(TwistedSampling(), table, 3, Stream.of(2)).tokens < best.tokens / 2


def test_repeated_estimates_differ_and_their_mean_and_spread_are_right(table):
    found = trials.repeated_estimates(TwistedSampling(), table, 200, 100, Stream.of(0))
    values = np.array([one.value for one in found])
    errors = np.array([one.std_error for one in found])
    assert len(set(values.tolist())) == 100 and found[0].n_samples == 384 + 200
    assert abs(values.mean() - table.event.truth) < 5 * values.std() / 10
    assert values.std() == pytest.approx(errors.mean(), rel=0.4)


@pytest.mark.parametrize("n", [5, 6, 11, 25])
def test_the_interval_of_a_median_is_the_tightest_that_covers(n):
    values = Stream.of(0).generator().permutation(n).tolist()
    middle, low, high = trials.median_interval(values)
    assert middle == np.median(values) and low + high == n - 1
    outside = int(low)
    assert 2 * binom.cdf(outside, n, 0.5) <= 0.05 or outside == 0
    assert 2 * binom.cdf(outside + 1, n, 0.5) > 0.05


def test_no_training_at_all_is_refused(table):
    with pytest.raises(WorkbenchError, match="repeats is 0"):
        trials.price_of_twist(TwistedSampling(), table, 0, Stream.of(0))
    with pytest.raises(WorkbenchError, match="repeats is 0"):
        trials.price_of_pilot(CrossEntropy(), table, 0, Stream.of(0))


def test_marginals_are_laws_and_those_of_hits_comply(table):
    trained = train(TwistedSampling(), table, Stream.of(0))
    moments = exact_moments(table, trained.law, [1])
    drawn, ideal = (marginals(moments, 9, of_hits) for of_hits in (False, True))
    assert drawn[:, :3].sum(axis=0) == pytest.approx(np.ones(3)) and not drawn[:, 3].any()
    assert ideal[:, :3].sum(axis=0) == pytest.approx(np.ones(3))
    comply = 3
    assert ideal[comply, 0] > 0.99 and drawn[comply, 0] > 0.5
    assert not ideal[[0, 1]].any(), "neither end nor codeword is on the way to the codeword"


@pytest.mark.parametrize("conditioning", [True, False])
def test_the_first_look_says_what_it_shows(table, conditioning):
    fig = first_look("it", 1, 64, 0.2, 16.0, conditioning, tables={"it": table}, stream=Stream.of(0))
    assert "tokens for 10% error" in fig.axes[2].get_title(loc="left")
    assert [ax.get_title(loc="left") for ax in fig.axes[:2]] == ["drawn after training", "law without variance"]


def test_names_of_the_prices_do_not_stand_on_one_another():
    risk = np.array([1e-4, 2e-4])
    prices = {"ours": risk * 1e7, "Monte Carlo": 100 / risk, "one": np.array([2e5, 1e5]), "two": np.array([2e5, 1e5])}
    ax = prices_figure(risk, prices).axes[0]
    heights = sorted(text.xy[1] for text in ax.texts if isinstance(text, Annotation))
    assert len(heights) == 4 and min(b / a for a, b in pairwise(heights)) >= 1.8
