"""Twisted sequential Monte Carlo for language models: unbiased under any twist, without variance under the exact one."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

import workbench as wb
from tests.methods.tail_risk.repeats import covers, repeat, values
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.methods.tail_risk.twisted_decoding import ClassTwist, TwistedDecoding, islands, pilot_paths
from workbench.models import GrammarModel
from workbench.models.base import LanguageModel
from workbench.problems.event import ModelEvent, codeword_event, generates
from workbench.problems.suite import find_problem


def log_values(problem):
    """(T + 1, states) log P(event) of each state with so many tokens left, by dynamic programming."""
    model, outcome = problem.model, list(problem.judge.args[0])
    probs, onward = np.exp(model.table), np.ones(model.vocab_size, dtype=bool)
    onward[[*model.eos_ids, *problem.stop_ids, *outcome]] = False
    found = [np.zeros(len(probs))]
    for _ in range(problem.max_new_tokens):
        later = probs * found[-1][model.transition]
        found.append(probs[:, outcome].sum(axis=1) + later[:, onward].sum(axis=1))
    with np.errstate(divide="ignore"):
        return np.log(found)


def never(problem):
    return [*problem.model.eos_ids, *problem.stop_ids]


def exact_twist(problem):
    """log P(event | prefix v), which looks at the whole prefix."""
    model, known = problem.model, log_values(problem)
    assert math.exp(known[-1][model.state_after([problem.prompt])[0]]) == pytest.approx(problem.truth, rel=1e-12)

    def twist(prefixes):
        prompts = np.broadcast_to(problem.prompt, (len(prefixes), len(problem.prompt)))
        states = model.state_after(np.concatenate([prompts, np.maximum(prefixes, 0)], axis=1))
        log_value = known[problem.max_new_tokens - prefixes.shape[1] - 1][model.transition[states]]
        log_value[:, never(problem)] = -np.inf
        return log_value

    return twist


def random_twist(problem, seed):
    """A factor of up to 8 either way for each step, last token and token: wrong, and positive where it has to be."""
    vocabulary = problem.model.vocab_size
    shape = (problem.max_new_tokens * vocabulary, vocabulary)
    table = math.log(8) * (2 * Stream.of(seed, "bad").uniforms(*shape) - 1)
    table[:, never(problem)] = -np.inf

    def twist(prefixes):
        step = prefixes.shape[1]
        last = np.maximum(prefixes[:, -1], 0) if step else np.zeros(len(prefixes), dtype=int)
        return table[step * vocabulary + last]

    return twist


def no_twist(problem):
    return lambda prefixes: np.where(np.isin(np.arange(problem.model.vocab_size), never(problem)), -np.inf, 0.0)


def learned_twist(problem, seed):
    estimator = TwistedDecoding()
    state = estimator.init(problem)
    state = estimator.absorb(state, estimator.draw(problem, state, estimator.pilot, Stream.of(seed, "pilot")))
    return estimator._twist(problem, state)


@pytest.mark.parametrize("name", ["grammar-4", "grammar-5", "timeline-fault-20", "timeline-crash-20"])
@pytest.mark.parametrize("memory", [0.0, 0.5, 1.0])
def test_under_the_exact_twist_every_island_gives_the_truth(name, memory):
    problem = find_problem(name)
    z = islands(problem, exact_twist(problem), 4, 50, Stream.of(0, "exact"), memory=memory)["z"]
    assert z == pytest.approx(np.full(50, problem.truth), rel=1e-9)


@pytest.mark.parametrize("name", ["grammar-7", "grammar-8", "timeline-fault-20", "timeline-crash-20"])
@pytest.mark.parametrize("memory, floor", [(0.0, 0.0), (1.0, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("kind", ["none", "random", "learned"])
def test_islands_are_unbiased_whatever_the_twist(name, memory, floor, kind):
    problem = find_problem(name)
    twist = {"none": no_twist(problem), "random": random_twist(problem, 1), "learned": learned_twist(problem, 2)}[kind]
    # Three particles, so that resampling has a part in it.
    settings = {"memory": memory, "floor": floor}
    z = islands(problem, twist, 3, 20_000 if "grammar" in name else 5000, Stream.of(3, "islands"), **settings)["z"]
    assert z.std() > 0
    assert abs(z.mean() - problem.truth) < 4 * z.std() / math.sqrt(len(z))


@pytest.mark.parametrize("name", ["grammar-6", "grammar-8", "timeline-fault-5", "timeline-crash-20"])
def test_learned_it_is_unbiased_and_covers(name):
    problem, repeats = find_problem(name), 50
    ours = repeat(problem, TwistedDecoding(), repeats, tokens=100_000)
    # Twists differ by pilot and so do the errors: each estimate is weighed by its own.
    scores = np.array([(e.value - problem.truth) / e.std_error for e in ours])
    assert abs(scores.mean()) < 3.5 * scores.std(ddof=1) / math.sqrt(repeats) + 0.35, "skew of the islands apart"
    assert covers(ours, problem.truth)


@pytest.mark.parametrize("name, gain", [("grammar-5", 1000), ("grammar-6", 100), ("timeline-crash-20", 4)])
def test_a_rare_outcome_takes_far_less_than_monte_carlo_at_equal_tokens(name, gain):
    problem = find_problem(name)
    ours = values(repeat(problem, TwistedDecoding(), 20, tokens=100_000)) / problem.truth
    plain = (1 - problem.truth) / problem.truth
    samples = wb.run(problem, MonteCarlo(), wb.Budget(tokens=100_000), seed=0).n_samples
    assert gain * np.mean((ours - 1) ** 2) < plain / samples


def test_a_twist_by_class_alone_forgets_which_way_a_path_took():
    problem = find_problem("grammar-5")
    errors = [
        np.abs(values(repeat(problem, TwistedDecoding(memory=memory), 15, tokens=60_000)) / problem.truth - 1)
        for memory in (0.0, 1.0)
    ]
    assert np.median(errors[0]) > 5 * np.median(errors[1])


def test_what_a_path_goes_on_to_is_its_value():
    problem = find_problem("timeline-crash-20")
    known, n, vocabulary = np.exp(log_values(problem)), 6000, problem.model.vocab_size
    switch = np.where(np.arange(n) < n / 2, 0, 2)
    tokens, to_go = pilot_paths(problem, np.full(n, 4.0), switch, Stream.of(0, "pilot"))
    assert not np.isin(tokens, problem.stop_ids).any() and (to_go >= 0).all() and (to_go <= 1).all()
    prompts = np.broadcast_to(problem.prompt, (n, len(problem.prompt)))
    after = problem.model.state_after(np.concatenate([prompts, tokens[:, :2]], axis=1))
    goes_on = ~np.isin(tokens[:, :2], [*never(problem), -1]).any(axis=1)
    # The third token on is plain everywhere, so that what follows two tokens is unbiased for tempered paths too.
    for chosen in (goes_on & (switch == 0), goes_on & (switch == 2)):
        error = to_go[chosen, 1] - known[problem.max_new_tokens - 2][after[chosen]]
        assert abs(error.mean()) < 4 * error.std() / math.sqrt(chosen.sum())
    spread = [len(np.unique(tokens[switch == kind, 0])) for kind in (0, 2)]
    assert spread[0] <= spread[1] <= vocabulary, "hot paths try more"


def test_classes_are_means_drawn_to_that_of_plain_paths():
    # Tokens 0 (an end), 1, 2, 3; the last path is tempered for its first token, which teaches from the first on.
    tokens = np.array([[1, 1], [1, 2], [2, 0], [3, 1]])
    to_go = np.array([[0.2, 0.0], [0.4, 0.0], [0.0, 0.0], [0.9, 0.0]])
    twist = ClassTwist(tokens, to_go, np.array([0, 0, 0, 1]), never=(0,), vocab_size=5, shrink=2.0)
    log_value = twist(np.zeros((7, 0), dtype=int))
    mean = (0.6 + 1.5 / 4) / 4  # three plain paths, and one of the mean of all
    assert np.exp(log_value) == pytest.approx([0, (0.6 + 2 * mean) / 4, 2 * mean / 3, (0.9 + 2 * mean) / 3, mean])
    hot = ClassTwist(tokens, to_go, np.array([0, 0, 0, 2]), never=(0,), vocab_size=5, shrink=2.0)
    mean = (0.6 + 0.6 / 3) / 4
    assert np.exp(hot(np.zeros((7, 0), dtype=int)))[3] == pytest.approx(mean), "what is tempered later is no value"
    worthless = ClassTwist(tokens, 0 * to_go, np.zeros(4, dtype=int), never=(0,), vocab_size=5, shrink=2.0)
    assert (np.exp(worthless(np.zeros((7, 0), dtype=int)))[1:] > 0).all(), "others than the pilot's may have a value"
    none = ClassTwist(tokens[:0], to_go[:0], np.zeros(0, dtype=int), never=(0,), vocab_size=5, shrink=2.0)
    assert np.exp(none(np.zeros((7, 1), dtype=int))) == pytest.approx([0, 1, 1, 1, 1])


def test_every_law_that_is_read_is_charged_with_the_prompt():
    problem = find_problem("timeline-fault-20")
    estimator = TwistedDecoding(particles=4, pilot=6)
    state = estimator.init(problem)
    for _ in range(2):  # the pilot, then islands
        with wb.Meter() as meter:
            batch = estimator.draw(problem, state, 6, Stream.of(0, "x"))
        assert batch["tokens"].sum() == meter.spend.tokens and meter.spend.model_calls == 24
        assert (batch["tokens"] <= 4 * (len(problem.prompt) + 20)).all()
        state = estimator.absorb(state, batch)
    found = wb.run(problem, estimator, wb.Budget(samples=30), seed=0)
    assert found.n_samples == 30 and found.diagnostics["islands"] == 24


def test_islands_do_not_depend_on_their_neighbours_or_on_memory(monkeypatch):
    problem = find_problem("timeline-crash-20")
    twist, stream = learned_twist(problem, 0), Stream.of(1, "x")
    many = islands(problem, twist, 5, 60, stream)
    few = islands(problem, twist, 5, 7, stream.at(31))
    assert all((many[name][31:38] == few[name]).all() for name in many)
    for rows in (1, 23):
        monkeypatch.setattr(problem.model, "rows_at_once", rows, raising=False)
        assert all((many[name] == part).all() for name, part in islands(problem, twist, 5, 60, stream).items())


def test_on_a_transformer_batches_and_a_restart_across_the_end_of_the_pilot_change_nothing(tmp_path):
    problem, estimator = codeword_event("embedded", (7, 8, 8)), TwistedDecoding(particles=4, pilot=10)
    whole = wb.run(problem, estimator, wb.Budget(samples=60), seed=3)
    assert problem.replay == "exact replay" and whole.value is not None
    for batch_size in (1, 7, 60):
        assert wb.run(problem, estimator, wb.Budget(samples=60), seed=3, batch_size=batch_size).answer == whole.answer
    for end in (6, 10, 33):
        path = tmp_path / str(end)
        wb.run(problem, estimator, wb.Budget(samples=end), seed=3, batch_size=4, checkpoint=path)
        resumed = wb.run(problem, estimator, wb.Budget(samples=60), seed=3, batch_size=13, checkpoint=path)
        assert resumed.answer == whole.answer and resumed.spend.tokens == whole.spend.tokens
    assert abs(whole.value / problem.truth - 1) < 0.3


@pytest.mark.parametrize("seed", range(4))
def test_a_branch_that_the_pilot_missed_is_allowed_for(seed):
    """A branch of probability 1e-5 carries two thirds of the risk, and plain paths do not show it."""
    problem = find_problem("grammar-4")
    found = wb.run(problem, TwistedDecoding(explore=0.0), wb.Budget(tokens=100_000), seed=seed)
    unseen = clopper_pearson(0, 64 * 16)[1]
    assert found.diagnostics["unseen_at_most"] == pytest.approx(unseen)
    assert found.high >= found.value + unseen > problem.truth and "unseen paths above" in found.interval
    assert found.low <= problem.truth
    # Where the pilot can rule such a branch out, the interval is that of the islands, with a note.
    likely = wb.run(find_problem("grammar-8"), TwistedDecoding(), wb.Budget(tokens=200_000), seed=seed)
    assert likely.interval == "t over islands, log scale" and "never drawn could add up to" in likely.why


def memoryless(name, **shares):
    """An event of a model that gives each token always the same probability; the outcome is token 0."""
    with np.errstate(divide="ignore"):
        table = np.log(np.array([list(shares.values())]))
    model = GrammarModel(table, np.zeros(table.shape, dtype=int), tokens=tuple(shares), name="memoryless")
    return ModelEvent(model, [1], partial(generates, (0,)), max_new_tokens=5, name=name)


@pytest.mark.parametrize("outcome, truth", [(0.1, 1 - 0.9**5), (0.0, 0.0), (1.0, 1.0)])
def test_islands_that_agree_exactly_do_not_make_an_interval_of_width_zero(outcome, truth):
    found = wb.run(
        memoryless(f"h={outcome}", o=outcome, a=1 - outcome), TwistedDecoding(), wb.Budget(samples=80), seed=0
    )
    assert found.value == pytest.approx(truth) and not found.reliable and "no spread" in found.why
    assert found.low == 0 and found.high >= min(1.0, found.value + clopper_pearson(0, 1024)[1])


def test_until_it_can_speak_it_says_so():
    problem = find_problem("grammar-7")
    early = wb.run(problem, TwistedDecoding(), wb.Budget(samples=63), seed=0)
    assert early.value is None and "63 of 64 islands" in early.why
    assert "single island" in wb.run(problem, TwistedDecoding(), wb.Budget(samples=65), seed=0).why
    few = wb.run(problem, TwistedDecoding(), wb.Budget(samples=70), seed=0)
    assert not few.reliable and "islands' worth" in few.why
    plain = wb.run(problem, TwistedDecoding(twist="none"), wb.Budget(samples=100), seed=0)
    assert plain.diagnostics["islands"] == 100
    assert plain.diagnostics["unseen_at_most"] == pytest.approx(clopper_pearson(0, 1600)[1])


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"particles": 1}, r"particles is 1"),
        ({"twist": "learnt"}, r"twist is 'learnt'.*did you mean 'learned'"),
        ({"pilot": 0}, r"pilot is 0"),
        ({"shrink": 0.0}, r"shrink is 0"),
        ({"memory": 1.5}, r"memory is 1\.5"),
        ({"floor": 2.0}, r"floor is 2"),
        ({"explore": -0.1}, r"explore is -0\.1"),
        ({"temperatures": ()}, r"temperatures"),
        ({"temperatures": (2.0, -1.0)}, r"positive"),
        ({"level": 1.0}, r"level is 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(WorkbenchError, match=said):
        TwistedDecoding(**settings)


def test_it_refuses_what_it_cannot_answer():
    class Spoken(LanguageModel):
        name, vocab_size, capabilities = "spoken", 9, frozenset({"sample"})

    whole = ModelEvent(
        find_problem("grammar-6").model, [4, 4, 4], lambda c: c[:, 0] > 4, max_new_tokens=3, name="judged"
    )
    for problem in (find_problem("agent-risk"), find_problem("tail-1e-3"), whole):
        with pytest.raises(Unsuitable, match="TwistedDecoding needs an outcome that is one token of a set") as refusal:
            TwistedDecoding().init(problem)
        assert problem.name in str(refusal.value)
    behind = ModelEvent(Spoken(), [4], partial(generates, (1,)), max_new_tokens=3, name="behind a server")
    with pytest.raises(Unsuitable, match="reads hazards off next-token laws, and the model of behind a server"):
        TwistedDecoding().init(behind)
