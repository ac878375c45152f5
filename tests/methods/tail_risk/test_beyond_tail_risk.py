"""What TwistedSampling promises beyond the contract, which tests/contract/ holds it to by itself."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.stats import binom

import workbench as wb
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk.beyond_tail_risk import TwistedSampling
from workbench.methods.tail_risk.exact_risk import samples_for_relative_error
from workbench.methods.tail_risk.twist_exact import exact_moments, train
from workbench.models.base import LanguageModel
from workbench.problems.event import ModelEvent, codeword_event, generates, tabulate_event, timeline_event
from workbench.problems.suite import find_problem

TRAINING = TwistedSampling().rounds * TwistedSampling().per_round


def has_codeword(completions):
    return np.asarray((completions == 1).any(axis=1))


def judged(prompt=(6, 6, 6)):
    """The codeword event with a judge that says nothing of tokens."""
    event = codeword_event("grammar", prompt)
    settings = {"max_new_tokens": 5, "stop_ids": (1,), "truth": event.truth}
    return ModelEvent(event.model, prompt, has_codeword, name="judged", **settings)


@pytest.fixture(scope="module")
def table():
    return tabulate_event(codeword_event("embedded", (5, 6, 6)))


@pytest.mark.parametrize(
    "problem, draws, repeats",
    [(find_problem("grammar-5"), 300, 100), (judged(), 3000, 60), (timeline_event(horizon=5), 300, 60)],
    ids=["grammar", "judged", "timeline"],
)
def test_the_mean_of_many_runs_is_the_truth_and_the_intervals_cover(problem, draws, repeats):
    budget = wb.Budget(samples=TRAINING + draws)
    runs = [wb.run(problem, TwistedSampling(), budget, seed=seed, batch_size=4000) for seed in range(repeats)]
    values = np.array([run.value for run in runs])
    # Five standard errors of the mean of runs: below 1e-6 for a normal mean.
    assert abs(values.mean() - problem.truth) < 5 * values.std() / np.sqrt(len(values))
    trusted = [run for run in runs if run.reliable]
    covered = sum(run.low <= problem.truth <= run.high for run in trusted)
    assert covered >= binom.ppf(1e-6, len(trusted), 0.92) and len(trusted) > repeats / 2


def test_fifty_times_fewer_tokens_than_monte_carlo_training_included(table):
    truth, estimator, totals = table.event.truth, TwistedSampling(), []
    for seed in range(5):
        trained = train(estimator, table, Stream.of(seed))
        moments = exact_moments(table, trained.law, [1])
        totals.append(trained.tokens + moments.draws_for(0.1) * moments.tokens)
    plain = samples_for_relative_error(truth, truth) * (3 + 1)
    assert plain / np.mean(totals) > 50


def test_conditioning_costs_nothing_and_cuts_the_variance(table):
    draws = {}
    for conditioning in (True, False):
        estimator = TwistedSampling(conditioning=conditioning)
        trained = train(estimator, table, Stream.of(0))
        draws[conditioning] = exact_moments(table, trained.law, estimator.outcome(table.event)).draws_for(0.1)
    assert 10 * draws[True] < draws[False]


def test_an_event_of_which_no_draw_shows_a_trace_is_flagged_with_a_bound():
    event = codeword_event("grammar", (6, 6, 6))
    never = ModelEvent(
        event.model, (6, 6, 6), lambda c: np.zeros(len(c), bool), max_new_tokens=5, name="never", truth=0.0
    )
    estimate = wb.run(never, TwistedSampling(), wb.Budget(samples=TRAINING + 2000), seed=0)
    assert (estimate.value, estimate.low) == (0.0, 0.0) and not estimate.reliable
    assert 0 < estimate.high < 0.02, "the exploration's weights are at most 4"
    assert "no hit" in estimate.why and "the training found no hit" in estimate.why


def test_few_draws_after_the_training_are_flagged():
    estimate = wb.run(judged(), TwistedSampling(), wb.Budget(samples=TRAINING + 20), seed=1)
    assert not estimate.reliable and "effective number of hits" in estimate.why


def test_a_first_round_that_met_few_hits_is_flagged_however_sure_the_draws_look():
    estimates = [
        wb.run(find_problem("grammar-5"), TwistedSampling(per_round=12), wb.Budget(samples=536), seed=seed)
        for seed in range(8)
    ]
    few = [one.diagnostics["training_effective_hits"][0] < 4 for one in estimates]
    assert any(few) and any(one.diagnostics["effective_sample_size"] >= 30 for one in estimates)
    for one, doubtful in zip(estimates, few, strict=True):
        assert one.reliable == (not doubtful and one.diagnostics["effective_sample_size"] >= 30)
        if doubtful and one.diagnostics["effective_sample_size"] >= 30:
            assert "answers of another kind" in one.why


def test_while_it_trains_nothing_is_said():
    estimate = wb.run(find_problem("grammar-5"), TwistedSampling(), wb.Budget(samples=TRAINING - 1), seed=0)
    assert estimate.value is None and (estimate.low, estimate.high) == (0.0, 1.0)
    assert f"{TRAINING - 1} of {TRAINING}" in estimate.why and len(estimate.diagnostics["training_means"]) == 2


def test_on_a_transformer_batches_and_a_restart_across_the_end_of_training_change_nothing(tmp_path):
    problem, estimator = codeword_event("embedded", (7, 8, 8)), TwistedSampling(rounds=2, per_round=40)
    whole = wb.run(problem, estimator, wb.Budget(samples=120), seed=3)
    assert problem.replay == "exact replay" and whole.value is not None
    for batch_size in (1, 7, 50):
        assert wb.run(problem, estimator, wb.Budget(samples=120), seed=3, batch_size=batch_size).answer == whole.answer
    # The 80th draw ends the training.
    for end in (40, 80, 97):
        path = tmp_path / str(end)
        wb.run(problem, estimator, wb.Budget(samples=end), seed=3, batch_size=9, checkpoint=path)
        resumed = wb.run(problem, estimator, wb.Budget(samples=120), seed=3, batch_size=33, checkpoint=path)
        assert resumed.answer == whole.answer and resumed.spend.tokens == whole.spend.tokens


def test_a_state_is_not_changed_by_teaching(table):
    estimator, problem = TwistedSampling(rounds=1, per_round=30), table.event
    state = estimator.init(problem)
    batch = estimator.draw(problem, state, 30, Stream.of(0))
    before = repr(state)
    later = estimator.absorb(state, batch)
    assert repr(state) == before and later["round"] == 1 and len(later["taught"]["tokens"]) > 0
    assert later["effective"] == [pytest.approx(batch["term"].sum() ** 2 / (batch["term"] ** 2).sum())]
    assert later["means"] == [pytest.approx(batch["term"].mean())]


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"level": 2}, "level is 2"),
        ({"explore": 0}, "explore is 0"),
        ({"floor": 0.0}, "floor is 0"),
        ({"depth": 4}, "depth is 4"),
        ({"temperatures": (2.0, 4.0)}, "1 among them"),
        ({"temperatures": (1.0, -2.0)}, "positive"),
        ({"temperatures": (1.0, 1.0)}, "different"),
        ({"per_round": 0}, "per_round is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(WorkbenchError, match=told):
        TwistedSampling(**settings)


def test_it_refuses_what_it_cannot_answer():
    class Spoken(LanguageModel):
        name, vocab_size, capabilities = "spoken", 9, frozenset({"sample"})

    event = ModelEvent(Spoken(), [4], partial(generates, (1,)), max_new_tokens=3, name="behind a server")
    for problem in (find_problem("cvar-spread"), find_problem("agent-risk"), event):
        with pytest.raises(Unsuitable, match="TwistedSampling reweighs next-token laws") as refusal:
            TwistedSampling().init(problem)
        assert problem.name in str(refusal.value)
