"""Splitting along generation: unbiased for every score, N and kill; the right law of the hit; honest intervals."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.methods.tail_risk.repeats import covers, repeat
from workbench import Stream
from workbench.budget import Meter
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.methods.tail_risk.scope_reach import Reach, chernoff_interval, reach_paths
from workbench.methods.tail_risk.splitting_decoding import Answers, SplittingDecoding, ToGo, replicates
from workbench.models import GrammarModel
from workbench.problems.analytic import GaussianTail
from workbench.problems.event import ModelEvent, codeword_event, generates, timeline_event
from workbench.problems.suite import find_problem

# Five standard errors: 6e-7 each, where the mean of so many replicates is normal.
Z = 5.0


def event_of(
    probs: np.ndarray, transition: np.ndarray, steps: int, name: str, prompt: int, **settings: Any
) -> ModelEvent:
    """Token 0 is the outcome."""
    with np.errstate(divide="ignore"):
        grammar = GrammarModel(np.log(probs), transition, name=name, **settings)
    truth = grammar.event_probability([prompt], (0,), steps)
    return ModelEvent(grammar, [prompt], partial(generates, (0,)), max_new_tokens=steps, name=name, stop_ids=(0,), truth=truth)  # fmt: skip


def climb(rungs: int = 6, steps: int = 12, up: float = 0.1) -> ModelEvent:
    """Tokens 1 and 2 climb and fall; the hazard doubles with each rung from 1e-5, and is `up` at the top; token 3 ends.
    One step ahead a prefix shows how high it is: what splitting wants."""
    rung = np.arange(rungs)
    probs = np.zeros((rungs, 4))
    probs[:, 0], probs[:, 1], probs[:, 3] = 1e-5 * 2.0**rung, up, 0.02
    probs[-1, :2] = up, 0
    probs[:, 2] = 1 - probs.sum(axis=1)
    transition = np.stack([rung, np.minimum(rung + 1, rungs - 1), np.maximum(rung - 1, 0), rung], axis=1)
    return event_of(probs, transition, steps, f"climb({rungs}, {steps})", 2, eos_id=3)


def stairs(rungs: int = 5, steps: int = 10, up: float = 0.35) -> ModelEvent:
    """Token k is rung k, and the hazard is 0 below the top: the last token tells what one step ahead does not show."""
    probs = np.zeros((rungs + 1, rungs + 1))
    for rung in range(1, rungs + 1):
        probs[rung, rung + 1 if rung < rungs else 0] = up
        probs[rung, max(rung - 1, 1)] += 1 - up
    probs[0] = probs[1]
    transition = np.tile(np.arange(rungs + 1), (rungs + 1, 1))
    return event_of(probs, transition, steps, f"stairs({rungs}, {steps})", 1, start_state=1)


def drawn(problem: ModelEvent, n: int, seed: int = 0, **settings: Any):
    settings = {"particles": 8, "kill": 0.5, "rest": 0.0, "score": "hazard"} | settings
    return replicates(problem, list(problem.judge.args[0]), n, Stream.of(seed, problem.name), **settings)


def by_step(problem: ModelEvent) -> np.ndarray:
    """P(the outcome comes first at step t), exact."""
    outcome = problem.judge.args[0]
    within = [problem.model.event_probability(problem.prompt, outcome, t) for t in range(problem.max_new_tokens + 1)]
    return np.diff(within)


@pytest.mark.parametrize("conditioning", [True, False], ids=["hazards", "hits"])
@pytest.mark.parametrize("score", ["hazard", "learned", "none"])
@pytest.mark.parametrize(
    "problem, samples",
    [(find_problem("grammar-5"), 40_000), (find_problem("grammar-6"), 8000), (timeline_event(horizon=5), 4000)],
    ids=["grammar-5", "grammar-6", "timeline"],
)
def test_its_mean_is_the_exact_risk(problem, samples, score, conditioning):
    estimator = SplittingDecoding(score=score, conditioning=conditioning)
    estimate = wb.run(problem, estimator, wb.Budget(samples=samples), seed=1)
    assert abs(estimate.value - problem.truth) < Z * estimate.std_error


@pytest.mark.parametrize("conditioning", [True, False], ids=["hazards", "hits"])
@pytest.mark.parametrize("score", ["hazard", "learned"])
@pytest.mark.parametrize("rest", [0.0, 1.0])
@pytest.mark.parametrize("particles, kill", [(2, 0.5), (3, 0.2), (7, 0.8), (20, 0.05), (20, 0.5)])
def test_it_is_unbiased_through_many_levels_with_a_handful_of_particles(particles, kill, rest, score, conditioning):
    problem = stairs()
    estimator = SplittingDecoding(particles, kill, rest, score, pilot=400 // particles, conditioning=conditioning)
    samples = 60_000 // particles
    estimate = wb.run(problem, estimator, wb.Budget(samples=samples + 400 // particles), seed=2)
    assert estimate.diagnostics["levels"] > 0.1
    assert abs(estimate.value - problem.truth) < Z * estimate.std_error


@pytest.mark.parametrize(
    "settings", [{}, {"kill": 0.1}, {"rest": 1.0}, {"conditioning": False}, {"particles": 3, "kill": 0.6}], ids=str
)
def test_the_outcome_comes_at_each_step_as_often_as_enumeration_says(settings):
    problem = stairs(4, 8)
    z = drawn(problem, 6000, **settings).by_step
    errors = z.std(axis=0) / np.sqrt(len(z))
    exact = by_step(problem)
    reachable = exact > 0
    assert not z[:, ~reachable].any()
    assert (np.abs(z.mean(axis=0) - exact)[reachable] < Z * errors[reachable]).all()


def test_a_learned_score_with_any_values_leaves_it_unbiased():
    problem = stairs(4, 8)
    random = Stream.of(5).uniforms(50, 8)
    nonsense = ToGo((random * 5).astype(np.int64), Stream.of(6).uniforms(50, 8))
    z = drawn(problem, 8000, score="learned", learned=nonsense).by_step.sum(axis=1)
    assert abs(z.mean() - problem.truth) < Z * z.std() / np.sqrt(len(z))


def test_replicates_lie_between_nought_and_one_and_without_a_score_they_are_plain_paths():
    problem = climb()
    z = drawn(problem, 500).by_step.sum(axis=1)
    assert (z >= 0).all() and (z <= 1).all()
    plain = drawn(problem, 4000, score="none", particles=4)
    assert not plain.levels.any() and np.allclose(plain.by_step.sum(axis=1), plain.first)
    reach = reach_paths(problem.model, [2], [0], n=16_000, max_new_tokens=12, stream=Stream.of(0)).reach
    spread = np.hypot(plain.first.std() / np.sqrt(4000), reach.std() / np.sqrt(16_000))
    assert abs(plain.first.mean() - reach.mean()) < Z * spread


def test_a_branch_takes_over_its_parent_up_to_the_first_score_above_the_level_and_no_more():
    problem = stairs(4, 6)
    answers = Answers(problem, [0], None, "hazard", True, 3)
    answers.tokens[1], answers.strikes[1] = [2, 3, 2, 3, 4, 3], np.arange(1, 7) / 10
    answers.scores[1] = [0.0, 0.2, 0.5, 0.1, 0.9, 0.3, -np.inf]
    answers.tokens[0], answers.strikes[0], answers.scores[0] = 1, 0.7, 0.05
    at = answers.branch(np.array([0, 2]), np.array([1, 1]), np.array([0.2, 0.6]))
    assert at.tolist() == [2, 4]
    assert answers.tokens[0].tolist() == [2, 3, -1, -1, -1, -1]
    assert answers.strikes[0] == pytest.approx([0.1, 0.2, 0.3, 0, 0, 0])
    assert answers.scores[0].tolist() == [0.0, 0.2, 0.5, *[-np.inf] * 4]
    assert answers.tokens[2].tolist() == [2, 3, 2, 3, -1, -1]
    before = answers.spent.copy()
    answers.grow(np.array([0, 2]), at, Stream.of(0).uniforms(2, 6))
    assert (answers.scores[[0, 2]].max(axis=1) > [0.2, 0.6]).all()
    assert answers.tokens[0, :2].tolist() == [2, 3] and answers.scores[0, :3].tolist() == [0.0, 0.2, 0.5]
    # A prompt of 1, the tokens taken over, and a law for each step that is left: what a fresh answer of 6 steps pays.
    assert (answers.spent - before).tolist() == [7, 0, 7]


def test_what_it_says_it_paid_is_what_the_model_charged():
    for conditioning in (True, False):
        with Meter() as meter:
            paid = drawn(climb(), 50, conditioning=conditioning)
        assert meter.spend.tokens == paid.tokens.sum() and paid.levels.max() > 3


def test_a_value_to_go_is_a_mean_by_step_and_last_token_drawn_to_that_of_the_step():
    togo = ToGo(
        np.array([[1, 2], [1, -1], [3, 2], [0, -1]]), np.array([[0.5, 0.4], [0.5, 0.2], [0.1, 0.3], [0.9, 0.0]])
    )
    ends = np.array([True, False, False, False, False])
    mean = 0.3
    assert togo.after(1, ends) == pytest.approx([0, (0.6 + 4 * mean) / 6, mean, (0.3 + 4 * mean) / 5, mean])
    assert not togo.after(2, ends).any(), "nothing comes after the last step"


@pytest.mark.parametrize("settings", [{}, {"score": "learned", "pilot": 5}, {"conditioning": False}], ids=str)
@pytest.mark.parametrize(
    "problem",
    [codeword_event("embedded", prompt=(7, 8, 8)), timeline_event("embedded", "crash", 8)],
    ids=["codeword", "timeline"],
)
def test_a_transformers_answer_does_not_depend_on_batches(problem, settings, tmp_path):
    estimator = SplittingDecoding(particles=6, rest=0.0, **settings)
    whole = wb.run(problem, estimator, wb.Budget(samples=25), seed=3)
    assert whole.diagnostics["levels"] > 0
    for batch_size in (1, 7):
        assert wb.run(problem, estimator, wb.Budget(samples=25), seed=3, batch_size=batch_size).answer == whole.answer
    path = tmp_path / "state"
    wb.run(problem, estimator, wb.Budget(samples=9), seed=3, batch_size=2, checkpoint=path)
    resumed = wb.run(problem, estimator, wb.Budget(samples=25), seed=3, checkpoint=path)
    assert resumed.answer == whole.answer and resumed.spend.tokens == whole.spend.tokens


@pytest.mark.parametrize("score", ["hazard", "learned"])
@pytest.mark.parametrize(
    "problem", [find_problem("grammar-4"), find_problem("grammar-6"), climb(), stairs()], ids=lambda p: p.name
)
def test_intervals_that_warn_of_nothing_cover(problem, score):
    runs = repeat(problem, SplittingDecoding(score=score), 60, tokens=60_000)
    assert all(run.reliable for run in runs) and covers(runs, problem.truth)
    assert all(run.low < run.high for run in runs)


def test_a_risk_below_what_the_first_populations_rule_out_is_bounded_from_above():
    """A branch of probability 1e-5 carries two thirds of the risk: replicates agree about a third of it."""
    problem = find_problem("grammar-4")
    runs = repeat(problem, SplittingDecoding(), 20, tokens=100_000)
    assert all(run.low <= problem.truth <= run.high for run in runs)
    missed = [run for run in runs if run.interval == "t below, log scale; unseen paths above"]
    assert any(run.value + 4 * run.std_error < problem.truth for run in missed)
    for run in missed:
        unseen = clopper_pearson(0, SplittingDecoding().particles * run.diagnostics["replicates"])[1]
        assert run.high == pytest.approx(run.value + unseen) and run.value < unseen


def test_where_hazards_rise_by_steps_it_needs_a_tenth_of_the_tokens_and_where_they_jump_it_needs_more():
    """The variance of one token's worth of draws."""

    def price(z: np.ndarray, tokens: np.ndarray) -> float:
        return float(z.var() * tokens.mean())

    def compared(problem: ModelEvent) -> float:
        split = drawn(problem, 2000, particles=32, rest=1.0)
        plain = drawn(problem, 2000, particles=32, score="none")
        return price(split.by_step.sum(axis=1), split.tokens) / price(plain.first, plain.tokens)

    assert compared(climb()) < 0.1
    assert compared(find_problem("timeline-crash-20")) > 1.2


def test_one_replicate_and_equal_terms_give_chernoffs_interval_and_nothing_of_width_zero():
    one = wb.run(climb(), SplittingDecoding(), wb.Budget(samples=1), seed=0)
    assert one.interval == "Chernoff on the first populations" and one.std_error is None and one.low < one.high
    probs = np.array([[0.1, 0.9]])
    same = event_of(probs, np.zeros((1, 2), dtype=int), 4, "constant", 1)
    estimate = wb.run(same, SplittingDecoding(), wb.Budget(samples=20), seed=0)
    assert estimate.value == pytest.approx(1 - 0.9**4) and estimate.interval == "Chernoff on the first populations"
    assert (estimate.low, estimate.high) == pytest.approx(chernoff_interval(1 - 0.9**4, 20 * 16))
    short = codeword_event("grammar", (8, 8, 8), max_new_tokens=1)
    estimate = wb.run(short, SplittingDecoding(), wb.Budget(samples=20), seed=0)
    assert estimate.low <= short.truth <= estimate.high and estimate.low < estimate.high


@pytest.mark.parametrize("conditioning", [True, False], ids=["hazards", "hits"])
def test_an_outcome_that_can_not_come_is_bounded_and_not_declared_impossible(conditioning):
    never = event_of(np.array([[0.0, 1.0]]), np.zeros((1, 2), dtype=int), 5, "never", 1)
    estimate = wb.run(never, SplittingDecoding(conditioning=conditioning), wb.Budget(samples=30), seed=0)
    assert estimate.value == 0 and estimate.low == 0 and "does not show that it is zero" in estimate.why
    assert estimate.high == pytest.approx(clopper_pearson(0, 30 * 16)[1])


@pytest.mark.parametrize("conditioning", [True, False], ids=["hazards", "hits"])
def test_a_certain_outcome_ends_a_path_with_all_of_its_weight(conditioning):
    probs = np.array([[0.0, 0.7, 0.3], [1.0, 0.0, 0.0]])
    sure = event_of(probs, np.array([[0, 0, 1], [1, 1, 1]]), 3, "certain", 1)
    z = drawn(sure, 4000, conditioning=conditioning).by_step.sum(axis=1)
    assert sure.truth == pytest.approx(0.51) and abs(z.mean() - 0.51) < Z * z.std() / np.sqrt(len(z))


def test_while_the_pilot_is_under_way_it_says_so():
    early = wb.run(climb(), SplittingDecoding(score="learned"), wb.Budget(samples=7), seed=0)
    assert early.value is None and "the pilot is under way (7 of 32" in early.why


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"particles": 1}, "particles is 1"),
        ({"kill": 1.0}, "kill is 1.0"),
        ({"kill": 0.0}, "kill is 0.0"),
        ({"particles": 4, "kill": 0.9}, "leave at least one of 4 particles"),
        ({"rest": -1.0}, "rest is -1.0"),
        ({"score": "hazards"}, "did you mean 'hazard'"),
        ({"pilot": 0}, "pilot is 0"),
        ({"level": 1.0}, "level is 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(WorkbenchError) as refusal:
        SplittingDecoding(**settings)
    assert said in str(refusal.value) and str(refusal.value).endswith(".")


def test_other_events_are_refused_as_reach_refuses_them():
    event = climb()
    own = ModelEvent(event.model, [2], lambda t: t[:, 0] == 0, max_new_tokens=3, name="own judge")

    class SamplesOnly(GrammarModel):
        capabilities = frozenset({"sample"})

    server = SamplesOnly(np.log([[0.5, 0.5]]), np.zeros((1, 2), dtype=int), name="server")
    behind = ModelEvent(server, [1], partial(generates, (0,)), max_new_tokens=3, name="behind a server")
    for problem in (GaussianTail(2.0), own, behind):
        said = []
        for estimator in (SplittingDecoding(), Reach()):
            with pytest.raises(Unsuitable, match=problem.name.split("(")[0]) as refusal:
                wb.run(problem, estimator, wb.Budget(samples=5))
            said.append(str(refusal.value))
        assert said[0] == said[1].replace("Reach", "SplittingDecoding")
