"""A sample depends on its seed, name and index alone, and has the law that the model states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench import Meter, Stream
from workbench.errors import DoesNotFit, LacksCapability, WorkbenchError
from workbench.models import (
    GrammarModel,
    codeword_prompts,
    load,
    next_log_probs,
    prefix_tree,
    sample,
    sample_in_step,
    score,
)
from workbench.models.base import LanguageModel
from workbench.models.laws import draw

PROMPT = [4, 5, 6]


def same(left, right):
    assert np.array_equal(left.tokens, right.tokens)
    assert np.array_equal(left.log_probs, right.log_probs)
    assert np.array_equal(left.finish_reasons, right.finish_reasons)


def rows(samples, which):
    return type(samples)(*(getattr(samples, f)[which] for f in ("tokens", "lengths", "log_probs", "finish_reasons")))


def test_a_sample_is_bit_for_bit_the_same_whatever_the_batch_the_order_and_the_neighbours(model):
    stream = Stream.of(3, "independence")
    whole = sample(model, PROMPT, n=300, max_new_tokens=8, stream=stream)
    for first, n in ((0, 1), (17, 1), (100, 65), (299, 1)):
        same(
            sample(model, PROMPT, n=n, max_new_tokens=8, stream=stream.at(first)), rows(whole, slice(first, first + n))
        )
    among_others = [[8, 8, 8], [4], PROMPT, [7, 7], PROMPT]
    mixed = sample(model, among_others, n=1, max_new_tokens=8, stream=stream.at(98))
    same(rows(mixed, [2, 4]), rows(whole, [100, 102]))


def test_the_number_of_threads_changes_nothing(llama):
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            drawn.append(sample(llama, PROMPT, n=80, max_new_tokens=6, stream=Stream.of(0, "threads")))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    same(*drawn)


def test_a_longer_horizon_only_goes_on(llama):
    stream = Stream.of(1, "horizon")
    short = sample(llama, PROMPT, n=100, max_new_tokens=5, stream=stream)
    long = sample(llama, PROMPT, n=100, max_new_tokens=20, stream=stream)
    assert np.array_equal(long.tokens[:, :5], short.tokens)


def test_sampled_log_probs_are_the_scores_of_the_completions(model):
    samples = sample(model, PROMPT, n=60, max_new_tokens=8, stream=Stream.of(0, "scores"))
    scores = score(model, [PROMPT] * 60, samples.completions())
    for row, length, values in zip(samples.log_probs, samples.lengths, scores, strict=True):
        np.testing.assert_allclose(row[:length], values, atol=1e-5)
        assert not row[length:].any()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_frequencies_are_the_enumerated_probabilities(llama, temperature):
    n = 6000
    tree = prefix_tree(llama, PROMPT, 3)
    samples = sample(llama, PROMPT, n=n, max_new_tokens=3, stream=Stream.of(0, "law"), temperature=temperature)
    token_log_probs = np.zeros(len(tree))
    for node in np.flatnonzero(~tree.is_leaf):
        children = np.flatnonzero(tree.parent == node)
        tempered = tree.log_prob[children] / temperature
        token_log_probs[children] = tempered - np.logaddexp.reduce(tempered)
    paths = tree.path_sums(token_log_probs)
    leaves = np.flatnonzero(tree.is_leaf)
    expected = n * np.exp(paths[leaves])
    index = {tuple(tokens): i for i, tokens in enumerate(tree.tokens[leaves])}
    counts = np.zeros(len(leaves))
    for row in samples.tokens:
        counts[index[tuple(row)]] += 1
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    # One false alarm in a million by the chi-square law; cells below 10 are pooled so that the law holds.
    assert stats.chisquare(observed, wanted).pvalue > 1e-6
    whole = [paths[leaves[index[tuple(row)]]] for row in samples.tokens]
    np.testing.assert_allclose(samples.log_prob, whole, atol=1e-5)


def test_greedy_takes_the_likeliest_token_each_time(model):
    greedy = sample(model, PROMPT, max_new_tokens=6, stream=Stream.of(0, "greedy"), greedy=True)
    prefix = list(PROMPT)
    for token in greedy.completions()[0]:
        assert token == next_log_probs(model, prefix)[0].argmax()
        prefix.append(int(token))


def test_completions_end_at_end_of_sequence_at_stop_ids_and_where_told(grammar):
    samples = sample(grammar, [8, 8, 8], n=500, max_new_tokens=6, stream=Stream.of(0, "ends"), stop_ids=[1])
    last = samples.tokens[np.arange(500), samples.lengths - 1]
    assert set(samples.finish_reasons) == {"eos", "stop", "length"}
    assert (last[samples.finish_reasons == "eos"] == 0).all()
    assert (last[samples.finish_reasons == "stop"] == 1).all()
    assert (samples.lengths[samples.finish_reasons == "length"] == 6).all()
    ended = np.isin(samples.tokens[:, :-1], (0, 1))
    assert (samples.tokens[:, 1:][ended] == -1).all()
    by_function = sample(
        grammar, [8, 8, 8], n=500, max_new_tokens=6, stream=Stream.of(0, "ends"), stop=lambda t: t[:, -1] == 1
    )
    assert np.array_equal(by_function.tokens, samples.tokens)
    assert np.array_equal(by_function.finish_reasons, samples.finish_reasons)


def test_the_meter_counts_prompts_and_kept_tokens_and_does_not_see_batches(llama, grammar):
    for model in (llama, grammar):
        stream = Stream.of(0, "meter")
        with Meter() as whole:
            samples = sample(model, PROMPT, n=130, max_new_tokens=7, stream=stream)
        assert whole.spend.model_calls == 130
        assert whole.spend.tokens == 130 * 3 + samples.lengths.sum()
        assert whole.spend.flops == pytest.approx(model.flops_per_token * (whole.spend.tokens - 130))
        with Meter() as parts:
            for first in range(0, 130, 26):
                sample(model, PROMPT, n=26, max_new_tokens=7, stream=stream.at(first))
        assert parts.spend.tokens == whole.spend.tokens
        assert parts.spend.flops == pytest.approx(whole.spend.flops)


def test_scoring_is_charged_for_every_token(llama, grammar):
    for model in (llama, grammar):
        with Meter() as meter:
            score(model, [PROMPT, PROMPT, [4]], [[5, 6], [7], []])
        assert (meter.spend.tokens, meter.spend.model_calls) == (5 + 4, 2)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-800, 0), min_size=1, max_size=40), st.floats(0, 1, exclude_max=True))
def test_a_draw_inverts_the_cumulative_distribution_and_never_takes_an_impossible_token(logits, u):
    log_probs = torch.log_softmax(torch.tensor([logits, logits], dtype=torch.float64), dim=-1)
    log_probs = torch.cat([torch.full((2, 1), -torch.inf), log_probs, torch.full((2, 2), -torch.inf)], dim=1)
    extremes, totals = draw(log_probs, torch.tensor([u, 1 - 2**-53], dtype=torch.float64))
    np.testing.assert_allclose(totals.numpy(), 0, atol=1e-12)
    probs = log_probs.exp()[0].numpy()
    for token, number in zip(extremes.tolist(), (u, 1 - 2**-53), strict=True):
        assert probs[token] > 0
        below, upto = probs[:token].sum(), probs[: token + 1].sum()
        assert below - 1e-12 <= number <= upto + 1e-12


class Nervous(GrammarModel):
    """Has room for three rows at a time."""

    rows_at_once = 8

    def start(self, prompts):
        if len(prompts) > self.space:
            raise torch.OutOfMemoryError("no room")
        return super().start(prompts)


def test_out_of_memory_halves_the_batch_and_goes_on(grammar):
    small = Nervous(grammar.table, grammar.transition, eos_id=0)
    small.space = 3
    stream = Stream.of(0, "memory")
    same(
        sample(small, PROMPT, n=20, max_new_tokens=4, stream=stream),
        sample(grammar, PROMPT, n=20, max_new_tokens=4, stream=stream),
    )
    assert small.rows_at_once == 2
    small.space = 0
    with pytest.raises(DoesNotFit, match="single sequence; ask for fewer tokens"):
        sample(small, PROMPT, n=20, max_new_tokens=4, stream=stream)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"prompts": []}, "prompt is 'empty'"),
        ({"prompts": [[4, 5], []]}, r"prompt\[1\] is 'empty' but must hold at least one token; begin with"),
        ({"prompts": [4, 9]}, r"prompt\[0\]\[1\] is 9 but must be a token id from 0 to 8"),
        ({"prompts": "f0 nonsense"}, "nonsense.* but must be made of tokens"),
        ({"max_new_tokens": 30}, "max_new_tokens=30 must fit the context .* 32 tokens; .*at most 29 new"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0 but must be a whole number at least 1"),
        ({"n": 0}, "n is 0 but must be a whole number at least 1"),
        ({"temperature": 0}, "temperature is 0 but must be greater than 0; pass greedy=True"),
        ({"temperature": -1.0}, "temperature is -1.0 but"),
        ({"temperature": float("nan")}, "temperature is nan but"),
        ({"stop_ids": [11]}, r"stop_ids\[0\] is 11 but must be a token id from 0 to 8"),
    ],
)
def test_bad_questions_are_refused_in_one_sentence(llama, options, told):
    asked = {"prompts": PROMPT, "max_new_tokens": 3, "stream": Stream.of(0, "x")} | options
    with pytest.raises(WorkbenchError, match=told) as refusal:
        sample(llama, asked.pop("prompts"), **asked)
    assert "\n" not in str(refusal.value)


def test_laws_that_are_no_laws_are_refused(llama):
    uniforms = torch.zeros(2, dtype=torch.float64)
    for number in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(WorkbenchError, match=r"logits of row 0 are not numbers .*; load the model with dtype"):
            draw(torch.full((2, 4), number, dtype=torch.float64), uniforms)
    with pytest.raises(WorkbenchError, match=r"law from fuse: its sum is 2\.0.* but must be 1; normalise it"):
        sample_in_step(
            [llama, llama],
            PROMPT,
            fuse=lambda laws, rows, steps: laws[0] + np.log(2),
            max_new_tokens=2,
            stream=Stream.of(0),
        )


def test_what_a_model_cannot_do_is_refused_by_name_with_the_alternative(grammar):
    class Bare(LanguageModel):
        name = "bare"
        vocab_size = 9

    bare = Bare()
    with pytest.raises(LacksCapability, match="bare can't do 'sample'; load one"):
        sample(bare, PROMPT, max_new_tokens=2, stream=Stream.of(0))
    with pytest.raises(LacksCapability, match="bare can't do 'log_probs'; use an estimator that needs sampled"):
        score(bare, PROMPT, [4])
    with pytest.raises(LacksCapability, match="bare can't do 'next_log_probs'; use log_probs"):
        next_log_probs(bare, PROMPT)
    with pytest.raises(LacksCapability, match="'hidden_states'; load the model locally"):
        grammar.hidden_states(PROMPT, 0)
    with pytest.raises(LacksCapability, match="bare can't do 'steer'"):
        bare.steered(None)
    with pytest.raises(LacksCapability, match="bare has no tokenizer; pass token ids"):
        sample(
            type("Open", (Bare,), {"capabilities": frozenset({"sample"})})(),
            "text",
            max_new_tokens=1,
            stream=Stream.of(0),
        )


def test_scoring_refuses_unequal_lists_and_long_texts(llama):
    with pytest.raises(WorkbenchError, match="completions is '1 sequences' but must be as many as the prompts, 2"):
        score(llama, [PROMPT, PROMPT], [[4]])
    with pytest.raises(WorkbenchError, match="must fit the context"):
        score(llama, PROMPT, [4] * 30)


@pytest.mark.slow
def test_two_hundred_thousand_samples_agree_with_enumeration_on_every_prompt_of_some_risk():
    """|z| < 4 on every prompt of embedded/codeword with p >= 1e-3: over some 60 prompts a false alarm in 250 runs, were
    the seed not fixed."""
    model, n, scores = load("embedded/codeword"), 200_000, {}
    for prompt in codeword_prompts():
        tree = prefix_tree(model, prompt, 5, [1])
        truth = tree.probability(tree.contains(1))
        if truth >= 1e-3:
            drawn = sample(model, prompt, n=n, max_new_tokens=5, stop_ids=[1], stream=Stream.of(0, "many", *prompt))
            hits = (drawn.tokens == 1).any(axis=1).sum()
            scores[tuple(prompt)] = (hits - n * truth) / np.sqrt(n * truth * (1 - truth))
    assert len(scores) > 20
    assert max(map(abs, scores.values())) < 4, scores
    assert stats.kstest(list(scores.values()), "norm").pvalue > 1e-6
