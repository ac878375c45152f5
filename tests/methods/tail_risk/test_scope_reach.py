"""SCOPE and REACH on language models: unbiased, each step's own hazard, the traps, the estimators' intervals."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.special import rel_entr
from scipy.stats import binom

import workbench as wb
from workbench import Stream
from workbench.errors import LacksCapability, Unsuitable, WorkbenchError
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.methods.tail_risk.scope_reach import (
    Reach,
    Scope,
    chernoff_interval,
    pooled_paths,
    reach_paths,
    reach_risk,
    scope_paths,
)
from workbench.models import GrammarModel, load, next_log_probs, outcome_risk, timeline_histories
from workbench.models.timeline import OUTCOMES, timeline_grammar
from workbench.problems.analytic import GaussianTail
from workbench.problems.event import ModelEvent, generates, timeline_event
from workbench.problems.suite import find_problem

SIGMA = 5.33  # two-sided chance of 1e-7 for a normal score
FAULT, CRASH = [OUTCOMES["fault"]], [OUTCOMES["crash"]]
[HISTORY] = timeline_histories(1, Stream.of(5, "scope-reach"), length=12)


def near(values, truth):
    """Whether the mean of `values` is within 5.33 standard errors of the truth.

    A false alarm has chance 1e-7 for a normal mean; with hits as few as 80 the skewness makes that less than 1e-6.
    """
    return abs(values.mean() - truth) <= SIGMA * values.std() / np.sqrt(len(values)) + 1e-12


def memoryless(**shares):
    """A grammar of one state that gives each token always the same probability."""
    with np.errstate(divide="ignore"):
        table = np.log(np.array([list(shares.values())]))
    return GrammarModel(table, np.zeros(table.shape, dtype=int), tokens=tuple(shares), name="memoryless")


@pytest.mark.parametrize("outcome, horizon", [("fault", 20), ("crash", 20), ("fault", 1), ("crash", 5)])
def test_both_are_unbiased_on_event_logs(outcome, horizon):
    truth, settings = outcome_risk(HISTORY, outcome, horizon), {"n": 8000, "max_new_tokens": horizon}
    plain = scope_paths(timeline_grammar(), HISTORY, [OUTCOMES[outcome]], stream=Stream.of(1, outcome), **settings)
    masked = reach_paths(timeline_grammar(), HISTORY, [OUTCOMES[outcome]], stream=Stream.of(2, outcome), **settings)
    assert near(plain.hit, truth) and near(plain.scope, truth) and near(masked.reach, truth)
    assert masked.reach.var() <= truth * (1 - truth)
    assert not np.isin(masked.tokens, [OUTCOMES[outcome]]).any() and not masked.hit.any()


def test_the_step_that_ends_a_path_counts():
    truth = outcome_risk(HISTORY, "crash", 20)
    drawn = scope_paths(timeline_grammar(), HISTORY, CRASH, n=8000, max_new_tokens=20, stream=Stream.of(3, "x"))
    ending = drawn.hazards[np.arange(len(drawn.hazards)), drawn.lengths - 1]
    assert not near(drawn.scope - ending, truth)
    assert (drawn.scope - ending).mean() < 0.8 * truth, "an announced outcome strikes at the step that is left out"


@pytest.mark.parametrize("draw", [scope_paths, reach_paths])
def test_hazards_are_those_of_the_models_own_law_at_every_step(draw):
    model = load("embedded/timeline")
    drawn = draw(model, [HISTORY, HISTORY[:-3]], CRASH, n=12, max_new_tokens=6, stream=Stream.of(4, "x"))
    for row in range(len(drawn.tokens)):
        prompt = HISTORY if row < 12 else HISTORY[:-3]
        for step in range(6):
            if step >= drawn.lengths[row]:
                assert drawn.hazards[row, step] == 0
                continue
            law = np.exp(next_log_probs(model, [[*prompt, *drawn.tokens[row, :step].tolist()]])[0])
            assert drawn.hazards[row, step] == pytest.approx(law[CRASH].sum(), rel=1e-4)


def test_reach_draws_from_the_renormalised_law():
    model = memoryless(o=0.6, a=0.3, b=0.1)
    drawn = reach_paths(model, [1], [0], n=4000, max_new_tokens=2, stream=Stream.of(5, "x"))
    assert near(drawn.tokens[:, 0] == 1, 0.75)
    assert drawn.reach == pytest.approx(1 - 0.4**2)


def test_rows_do_not_depend_on_their_neighbours():
    model, settings = load("embedded/timeline"), dict[str, Any](max_new_tokens=10)
    many = reach_paths(model, HISTORY, FAULT, n=700, stream=Stream.of(6, "x"), **settings)
    few = reach_paths(model, HISTORY, FAULT, n=5, stream=Stream.of(6, "x").at(400), **settings)
    assert (many.tokens[400:405] == few.tokens).all() and (many.hazards[400:405] == few.hazards).all()


def test_a_certain_outcome_ends_the_path_without_nan():
    with np.errstate(divide="ignore"):
        table = np.log(np.array([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    model = GrammarModel(table, np.array([[0, 1, 2]] * 3), tokens=("o", "a", "b"))
    masked = reach_paths(model, [2], [0], n=10, max_new_tokens=4, stream=Stream.of(7, "x"))
    assert (masked.reach == 0).all()
    masked = reach_paths(model, [1], [0], n=10, max_new_tokens=4, stream=Stream.of(7, "x"))
    assert (masked.reach == 1).all() and (masked.lengths == 1).all() and masked.hit.all()
    assert reach_risk(np.array([[0.2, 1.0, 0.5], [0.0, 0.0, 0.0]])).tolist() == [1.0, 0.0]


def test_tiny_hazards_are_not_lost():
    assert reach_risk(np.full(10, 1e-18)) == pytest.approx(1e-17)


def test_a_token_that_is_outcome_and_end_is_an_outcome():
    model = memoryless(death=0.05, a=0.95)
    model.eos_ids = (0,)
    settings: dict[str, Any] = {"n": 4000, "max_new_tokens": 3}
    plain = scope_paths(model, [1], [0], stream=Stream.of(8, "x"), **settings)
    masked = reach_paths(model, [1], [0], stream=Stream.of(9, "x"), **settings)
    truth = 1 - 0.95**3
    assert near(plain.hit, truth) and near(plain.scope, truth) and near(masked.reach, truth)


def test_several_tokens_make_one_outcome():
    both = [*FAULT, *CRASH]
    plain = scope_paths(timeline_grammar(), HISTORY, both, n=8000, max_new_tokens=10, stream=Stream.of(10, "x"))
    masked = reach_paths(timeline_grammar(), HISTORY, both, n=8000, max_new_tokens=10, stream=Stream.of(11, "x"))
    truth = timeline_grammar().event_probability(HISTORY, both, 10)
    assert near(plain.scope, truth) and near(masked.reach, truth)


def test_one_pool_serves_several_outcomes():
    pool = pooled_paths(
        timeline_grammar(), HISTORY, {"fault": FAULT, "crash": CRASH}, n=8000, max_new_tokens=20, stream=Stream.of(12, "x")
    )  # fmt: skip
    for outcome, drawn in pool.items():
        assert near(drawn.scope, outcome_risk(HISTORY, outcome, 20)) and near(
            drawn.hit, outcome_risk(HISTORY, outcome, 20)
        )
        inside = np.where(np.arange(20) < drawn.lengths[:, None] - 1, drawn.tokens, -1)
        assert not np.isin(inside, OUTCOMES[outcome]).any(), "a path goes no further than its first outcome"


def test_a_horizon_in_time_counts_the_step_that_crosses_it():
    shares, times, horizon = {"o": 0.1, "a": 0.5, "b": 0.4}, [0.0, 1.0, 2.0], 3.0

    def risk(left):
        """P(outcome before the tokens' time passes the horizon)."""
        return 0.0 if left < 0 else 0.1 + 0.5 * risk(left - 1) + 0.4 * risk(left - 2)

    settings = {"n": 20_000, "max_new_tokens": 10, "durations": times, "time_horizon": horizon}
    plain = scope_paths(memoryless(**shares), [1], [0], stream=Stream.of(13, "x"), **settings)
    masked = reach_paths(memoryless(**shares), [1], [0], stream=Stream.of(14, "x"), **settings)
    assert near(plain.hit, risk(horizon)) and near(plain.scope, risk(horizon)) and near(masked.reach, risk(horizon))


def test_scope_is_not_clipped_at_one():
    drawn = scope_paths(memoryless(o=0.4, a=0.6), [1], [0], n=500, max_new_tokens=20, stream=Stream.of(15, "x"))
    assert drawn.scope.max() > 1
    estimate = wb.run(
        ModelEvent(memoryless(o=0.4, a=0.6), [1], partial(generates, (0,)), max_new_tokens=20, name="likely"),
        Scope(),
        wb.Budget(samples=3),
        seed=4,
    )
    assert estimate.value is None or estimate.value <= estimate.high <= 1


@pytest.mark.parametrize("estimator", [Scope(), Reach()])
def test_an_outcome_that_can_not_strike_is_bounded_and_not_declared_impossible(estimator):
    event = ModelEvent(memoryless(o=0.0, a=1.0), [1], partial(generates, (0,)), max_new_tokens=5, name="never")
    estimate = wb.run(event, estimator, wb.Budget(samples=100), seed=0)
    assert estimate.value == 0 and estimate.low == 0
    assert estimate.high == pytest.approx(clopper_pearson(0, 100)[1]) and estimate.reliable


def test_constant_hazards_do_not_give_an_interval_of_width_zero():
    event = ModelEvent(memoryless(o=0.1, a=0.9), [1], partial(generates, (0,)), max_new_tokens=5, name="constant")
    estimate = wb.run(event, Reach(), wb.Budget(samples=100), seed=0)
    assert estimate.value == pytest.approx(1 - 0.9**5) and estimate.interval == "Chernoff"
    assert estimate.value is not None and estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize("estimator", [Reach(), Scope()])
def test_a_risk_below_what_the_paths_can_rule_out_is_bounded_from_above(estimator):
    """A branch of probability 1e-5 carries most of the risk, and 20,000 paths mostly miss it: no spread tells."""
    event = find_problem("grammar-4")
    found = [wb.run(event, estimator, wb.Budget(samples=20_000), seed=seed) for seed in range(5)]
    unseen = clopper_pearson(0, 20_000)[1]
    assert all(estimate.low <= event.truth <= estimate.high for estimate in found)
    missed = [estimate for estimate in found if estimate.interval == "normal below, unseen paths above"]
    assert missed and all(each.value + 2 * each.std_error < event.truth for each in missed[:1])
    for each in missed:
        assert each.high == pytest.approx(each.value + unseen) and each.value < unseen and each.reliable
    # Where the paths can rule such a branch out, the interval is the normal one.
    likely = wb.run(find_problem("grammar-7"), estimator, wb.Budget(samples=20_000), seed=0)
    assert likely.interval == "normal" and likely.value > unseen


def test_reach_needs_far_fewer_samples_for_a_spontaneous_outcome():
    budget = wb.Budget(tokens=30_000)
    fault = timeline_event("grammar", "fault", 20)
    estimate = wb.run(fault, Reach(), budget, seed=1)
    assert estimate.diagnostics["variance_ratio"] > 5
    assert fault.truth is not None and estimate.low <= fault.truth <= estimate.high
    assert "never drawn could add up to" in estimate.why and estimate.reliable


def test_chernoffs_interval_covers_and_is_clopper_pearsons_at_nought():
    assert chernoff_interval(0.0, 50) == pytest.approx(clopper_pearson(0, 50))
    assert chernoff_interval(1.0, 50) == pytest.approx(clopper_pearson(50, 50))
    n = 25
    intervals = np.array([chernoff_interval(k / n, n) for k in range(n + 1)])
    for p in np.linspace(0.001, 0.999, 97):
        covered = (intervals[:, 0] <= p) & (p <= intervals[:, 1])
        assert binom.pmf(np.arange(n + 1), n, p)[covered].sum() >= 0.95
    assert (np.diff(intervals, axis=0) > 0).all()


@pytest.mark.parametrize("mean", [1e-300, 1e-12, 2.9445463979021693e-06, 0.3, 1 - 1e-9, 1 - 1e-16])
@pytest.mark.parametrize("n", [1, 40, 20_000, 10**9])
def test_chernoffs_ends_solve_its_equation_at_any_size(mean, n):
    low, high = chernoff_interval(mean, n)
    most = np.log(2 / 0.05) / n
    assert 0 <= low <= mean <= high <= 1
    for end in (low, high):
        kl = rel_entr(mean, end) + rel_entr(1 - mean, 1 - end)
        assert end in (0, 1) or kl == pytest.approx(most, rel=1e-4, abs=1e-15)


BAD: dict[str, Any] = {"n": 1, "max_new_tokens": 3, "stream": Stream.of(0, "x")}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"outcome": "fault"}, "a phrase has no hazard at one step"),
        ({"outcome": [[2, 3]]}, "a phrase has no hazard at one step"),
        ({"outcome": []}, "must hold at least one token id"),
        ({"outcome": [99]}, "outcome[0] is 99"),
        ({"durations": [1.0] * 12}, "belong together"),
        ({"durations": [1.0] * 12, "time_horizon": 3.0}, "the outcome's duration is 1.0 but must be 0"),
        ({"durations": [1.0] * 3, "time_horizon": 3.0}, "for each of 12 tokens"),
        ({"durations": [-1.0] * 12, "time_horizon": 3.0}, "smallest -1"),
        ({"durations": [0.0] * 12, "time_horizon": np.nan}, "time_horizon is nan"),
    ],
)
@pytest.mark.parametrize("draw", [scope_paths, reach_paths])
def test_bad_input_is_refused_with_a_sentence(draw, change, said):
    settings = {"outcome": FAULT, **BAD} | change
    with pytest.raises(WorkbenchError) as refusal:
        draw(timeline_grammar(), HISTORY, settings.pop("outcome"), **settings)
    assert said in str(refusal.value) and str(refusal.value).endswith(".")


def test_other_refusals():
    with pytest.raises(WorkbenchError, match="name at least one outcome"):
        pooled_paths(timeline_grammar(), HISTORY, {}, **BAD)
    for hazards in ([0.2, 1.2], [-0.1]):
        with pytest.raises(WorkbenchError, match="lie from 0 to 1"):
            reach_risk(np.array(hazards))
    with pytest.raises(WorkbenchError, match="must be finite"):
        reach_risk(np.array([np.nan]))
    with pytest.raises(WorkbenchError, match=r"mean is 1\.2"):
        chernoff_interval(1.2, 5)
    for problem in (GaussianTail(2.0), ModelEvent(timeline_grammar(), HISTORY, lambda t: t[:, 0] == 2, max_new_tokens=3, name="own judge")):  # fmt: skip
        with pytest.raises(Unsuitable, match="one token of a set") as refusal:
            wb.run(problem, Reach(), wb.Budget(samples=5))
        assert problem.name in str(refusal.value)


def test_a_model_without_next_token_laws_is_refused():
    class SamplesOnly(GrammarModel):
        capabilities = frozenset({"sample"})

    model = SamplesOnly(np.log([[0.5, 0.5]]), np.zeros((1, 2), dtype=int), name="server")
    with pytest.raises(LacksCapability, match="next_log_probs"):
        scope_paths(model, [1], [0], **BAD)
    event = ModelEvent(model, [1], partial(generates, (0,)), max_new_tokens=3, name="behind a server")
    with pytest.raises(Unsuitable, match="behind a server"):
        wb.run(event, Scope(), wb.Budget(samples=5))
