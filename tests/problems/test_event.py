"""A model's event as a problem: its law, what it charges, what its weights hold, and what it refuses."""

from __future__ import annotations

import math
import sys
import threading
from functools import partial

import numpy as np
import pytest

from workbench import Meter, Stream
from workbench.errors import LacksCapability, WorkbenchError
from workbench.methods.tail_risk.lm_tail_risk import Proposal
from workbench.models import GrammarModel, bigram, codeword_grammar, score
from workbench.models.grammars import CODEWORD
from workbench.problems.event import ModelEvent, codeword_event, embedded_codeword, generates, tabulate_event

PROMPT = (7, 7, 7)
has_codeword = partial(generates, [CODEWORD])


def bigram_event(**changes):
    language = bigram(5, rare=0.05)
    told = {"max_new_tokens": 6, "name": "bigram", "steer": lambda s: language.steered({0: s / 2, CODEWORD: s})}
    return ModelEvent(language, [2, 3], has_codeword, **(told | changes))


EVENTS = {
    "grammar": codeword_event("grammar", PROMPT),
    "bigram": bigram_event(),
    "embedded": codeword_event("embedded", (8, 8, 6)),
}
every_event = pytest.mark.parametrize("event", list(EVENTS.values()), ids=list(EVENTS))


def settings_of(n):
    """A mixture and a switch for each of n draws, with zeros and ones, early, late and unreachable switches."""
    mixture = np.resize([0.0, 0.3, 1.0, 0.7, 0.05], n)
    return mixture, np.resize([0, 5, 1, 0, 2, 99, 3], n)


# What is charged


@every_event
@pytest.mark.parametrize("n", [1, 2, 7, 64, 520])
def test_the_tokens_of_the_draws_are_those_that_the_meter_counts(event, n):
    stream, mixture_switch = Stream.of(0, "metered"), settings_of(n)
    calls = [
        lambda: event.sample(n, stream),
        *(lambda p=p: event.sample_from(p, n, stream) for p in (Proposal(3.0, 0.2, s) for s in (0, 1, 3, None, 50))),
        lambda: event.pilot_from(3.0, *mixture_switch, n, stream, score_under=(3.0, 5.0)),
        lambda: event.pilot_from(3.0, *mixture_switch, n, stream, score_under=()),
        lambda: event.pilot_from(5.0, np.zeros(n), np.zeros(n, dtype=int), n, stream, score_under=(1.0,)),
    ]
    for call in calls:
        with Meter() as meter:
            batch = call()
        assert batch["tokens"].shape == (n,) and batch["tokens"].sum() == meter.spend.tokens


def test_scoring_the_pilots_hits_is_paid_for_by_the_hits():
    event, n = bigram_event(), 400
    mixture, switch = settings_of(n)
    free = event.pilot_from(3.0, mixture, switch, n, Stream.of(1), score_under=())
    paid = event.pilot_from(3.0, mixture, switch, n, Stream.of(1), score_under=(3.0, 5.0, 7.0))
    extra, hit = paid["tokens"] - free["tokens"], paid["hit"]
    assert np.array_equal(free["hit"], hit) and 20 < hit.sum() < n - 20
    assert not extra[~hit].any() and (extra[hit] % 3 == 0).all() and (extra[hit] >= 3 * (2 + 1)).all()


# The law


def test_the_truth_of_the_codeword_event_is_exact():
    for source in ("grammar", "embedded"):
        event = codeword_event(source, (8, 7, 8), 3)
        tabulated = tabulate_event(event)
        assert tabulated.event.truth == pytest.approx(event.truth, rel=1e-10)
        assert np.array_equal(tabulated.hits, (tabulated.tree.tokens == CODEWORD).any(axis=1))
    assert codeword_event("grammar").truth == codeword_grammar().event_probability(PROMPT, CODEWORD, 5)


@every_event
def test_draws_hit_as_often_as_they_should_and_their_weights_undo_the_steering(event):
    n, tabulated = 20_000, tabulate_event(event, (2.0,))
    truth, tree = tabulated.event.truth, tabulated.tree
    leaves = np.flatnonzero(tree.is_leaf)
    drawn = tabulated.event.sample(n, Stream.of(0, "law", event.name))

    def allowed(variance, largest):
        """Bernstein: the mean of n draws strays from its expectation by more with probability below 1e-7."""
        odds = math.log(2e7)
        linear = largest * odds / 3
        return (linear + math.sqrt(linear**2 + 2 * n * variance * odds)) / n

    assert abs(drawn["hit"].mean() - truth) < allowed(truth, 1.0)
    for mixture, switch in ((0.3, 2), (0.5, None)):
        steps = event.max_new_tokens if switch is None else switch
        mixed = np.logaddexp(np.log1p(-mixture) + tabulated.log_q[2.0], np.log(mixture) + tree.log_prob)
        ratio = np.where((tree.depth > 0) & (tree.depth <= steps), tree.log_prob - mixed, 0.0)
        w, p = np.exp(tree.path_sums(ratio))[leaves], np.exp(tree.path_log_prob[leaves])
        drawn = tabulated.event.sample_from(Proposal(2.0, mixture, switch), n, Stream.of(1, "law", event.name))
        weights = np.exp(drawn["log_weight"])
        assert abs(weights.mean() - 1) < allowed(np.sum(p * w) - 1, w.max())
        hit = tabulated.hits[leaves]
        assert abs((weights * drawn["hit"]).mean() - truth) < allowed(np.sum((p * w)[hit]), w[hit].max())


@every_event
def test_weights_hold_every_token_scored_by_each_model_on_its_own(event):
    n, strength = 250, 3.0
    mixture, switch = settings_of(n)
    drawn = event.mixed(strength, mixture, switch, n, Stream.of(2, "weights"))
    batch = event.pilot_from(strength, mixture, switch, n, Stream.of(2, "weights"), score_under=(strength, 6.0))
    prompts, answers = [list(event.prompt)] * n, drawn.completions()
    scored = {s: score(event.steer(s), prompts, answers) for s in (strength, 6.0)}
    base = score(event.model, prompts, answers)
    # The transformer's logits are float32, and depend in their last bits on how many rows are read at once.
    near = {"atol": 1e-12 if isinstance(event.model, GrammarModel) else 2e-5, "rtol": 0}
    for i, (m, s) in enumerate(zip(mixture, switch, strict=True)):
        with np.errstate(divide="ignore"):
            mixed = np.log((1 - m) * np.exp(scored[strength][i]) + m * np.exp(base[i]))
        ratio = np.where(np.arange(len(answers[i])) < s, base[i] - mixed, 0.0)
        np.testing.assert_allclose(batch["log_weight"][i], ratio.sum(), **near)
        padding = event.max_new_tokens - len(answers[i])
        kept = batch["hit"][i]
        np.testing.assert_allclose(batch["log_p"][i], np.pad(base[i] * kept, (0, padding)), **near)
        for number, each in enumerate((strength, 6.0)):
            np.testing.assert_allclose(batch["log_q"][i, number], np.pad(scored[each][i] * kept, (0, padding)), **near)
    assert batch["hit"].sum() > 3 and np.array_equal(batch["hit"], has_codeword(drawn.tokens))


def test_sample_from_is_a_pilot_of_one_proposal():
    event, n = bigram_event(), 200
    for switch in (0, 2, None):
        one = event.sample_from(Proposal(3.0, 0.2, switch), n, Stream.of(3))
        steps = 6 if switch is None else switch
        many = event.pilot_from(3.0, np.full(n, 0.2), np.full(n, steps), n, Stream.of(3), score_under=())
        assert np.array_equal(one["hit"], many["hit"]) and np.array_equal(one["log_weight"], many["log_weight"])
    assert not event.sample_from(Proposal(3.0, 0.2, 0), n, Stream.of(3))["log_weight"].any()
    assert np.array_equal(
        event.sample(n, Stream.of(3))["hit"], event.sample_from(Proposal(9.0, 0.2, 0), n, Stream.of(3))["hit"]
    )


# The problem's face


def test_name_replay_prompt_and_truth():
    event = bigram_event(truth=0.25)
    assert (event.name, event.truth, event.prompt, event.replay) == ("bigram", 0.25, (2, 3), "exact replay")
    assert "bigram" in repr(event) and bigram_event().truth is None
    asked = []
    lazy = bigram_event(truth=lambda: asked.append(1) or 0.5)
    assert not asked and (lazy.truth, lazy.truth) == (0.5, 0.5) and asked == [1]
    assert bigram_event(name="other").name == "other"
    worded = ModelEvent(codeword_grammar(), "f3 f3 f3", has_codeword, max_new_tokens=2, name="words")
    assert worded.prompt == PROMPT

    class Elsewhere(GrammarModel):
        replay = "same in distribution"

    served = Elsewhere(*(getattr(bigram(5), name) for name in ("table", "transition")), start_state=2, eos_id=0)
    assert ModelEvent(served, [2], has_codeword, max_new_tokens=3, name="served").replay == "same in distribution"
    names = {
        codeword_event(*args).name
        for args in (("grammar",), ("embedded",), ("grammar", (4, 4, 4)), ("grammar", PROMPT, 3))
    }
    assert len(names) == 4, "the name keys the random numbers"


def test_generates_finds_any_of_the_tokens_and_never_the_padding():
    tokens = np.array([[1, 2, -1], [2, -1, -1], [0, 3, 3], [-1, -1, -1]])
    assert generates([1, 3], tokens).tolist() == [True, False, True, False]


def test_workers_that_ask_for_different_strengths_get_their_own_model():
    event, wrong = bigram_event(steer=lambda strength: strength), []

    def ask(strength):
        wrong.extend(1 for _ in range(30_000) if event.steered(strength) != strength)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(float(i),)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    made = []
    event = bigram_event(steer=lambda strength: made.append(strength) or bigram(5))
    assert event.steered(2.0) is event.steered(2.0) and made == [2.0], "the last one is kept"


# Refusals


def test_a_problem_without_steering_has_no_proposal_and_says_so():
    event = bigram_event(steer=None)
    assert event.sample(5, Stream.of(0))["hit"].shape == (5,)
    for call in (
        lambda: event.sample_from(Proposal(), 5, Stream.of(0)),
        lambda: event.pilot_from(2.0, np.zeros(5), np.zeros(5, dtype=int), 5, Stream.of(0), ()),
    ):
        with pytest.raises(
            LacksCapability, match=r"bigram can't be steered, .*give the event steer=\.\.\., or use plain"
        ):
            call()


def graded(tokens):
    return has_codeword(tokens) * 0.75


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: bigram_event(max_new_tokens=0), ("max_new_tokens is 0", "at least one token")),
        (lambda: bigram_event(max_new_tokens=2.5), ("max_new_tokens is 2.5", "at least one token")),
        (
            lambda: ModelEvent(embedded_codeword()[0], [5] * 70, has_codeword, max_new_tokens=5, name="long"),
            ("prompt of 70 tokens with max_new_tokens=5", "64 tokens", "shorten the prompt"),
        ),
        (
            lambda: ModelEvent(embedded_codeword()[0], [5] * 60, has_codeword, max_new_tokens=5, name="long"),
            ("prompt of 60 tokens with max_new_tokens=5", "at most 4 new tokens"),
        ),
        (
            lambda: ModelEvent(bigram(5), [], has_codeword, max_new_tokens=5, name="none"),
            ("prompt[0] is 'empty'", "at least one token"),
        ),
        (
            lambda: ModelEvent(bigram(5), [2, 5], has_codeword, max_new_tokens=5, name="outside"),
            ("prompt[0][1] is 5", "0 to 4", "tokenizer"),
        ),
        (lambda: codeword_event("grammer"), ("source is 'grammer'", "did you mean 'grammar'")),
        (lambda: codeword_event("grammar", (4, 4, 44)), ("prompt[0][2] is 44", "0 to 8")),
        (
            lambda: ModelEvent(bigram(5), [2], graded, max_new_tokens=2, name="g").sample(4, Stream.of(0)),
            ("judge's answer is 'float64 of shape (4,)'", "bool of shape (4,)", "scores >= 0.75"),
        ),
        (
            lambda: ModelEvent(bigram(5), [2], lambda t: t == 1, max_new_tokens=2, name="g").sample(4, Stream.of(0)),
            ("judge's answer is 'bool of shape (4, 2)'", "bool of shape (4,)"),
        ),
        (lambda: EVENTS["bigram"].sample(0, Stream.of(0)), ("n is 0", "at least one")),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    message = str(refusal.value)
    assert all(part in message for part in says), message
    assert message.endswith(".") and "\n" not in message
