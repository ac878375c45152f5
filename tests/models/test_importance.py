"""Importance weights of a mixed and switched proposal: exactly unbiased on the whole tree, and as sampled."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from workbench import Meter, Stream
from workbench.errors import WorkbenchError
from workbench.models import Steering, mean_difference_direction, prefix_tree, sample, sample_mixture
from workbench.models.grammars import CODEWORD, codeword_prompts

PROMPT = [7, 7, 7]
SETTINGS = [(0.0, None), (0.2, None), (0.2, 1), (0.5, 3), (1.0, None), (0.3, 0)]


@pytest.fixture(scope="module")
def pair(codeword):
    prompts = codeword_prompts()
    comply = [p for p in prompts if sum(p) >= 20]
    refuse = [p for p in prompts if sum(p) <= 16]
    direction = mean_difference_direction(codeword, comply, refuse, 1)
    return codeword, codeword.steered(Steering(direction, 8.0, "add", 1))


def proposal(tree, steered_log_probs, mixture, switch):
    """(N,) log q of each node's token."""
    with np.errstate(divide="ignore"):
        mixed = np.logaddexp(np.log1p(-mixture) + steered_log_probs, np.log(mixture) + tree.log_prob)
    before = (tree.depth > 0) & (tree.depth - 1 < (99 if switch is None else switch))
    return np.where(before, mixed, tree.log_prob)


@pytest.mark.parametrize("mixture, switch", SETTINGS)
def test_summed_over_the_whole_tree_the_weighted_event_has_the_exact_probability(pair, mixture, switch):
    base, steered = pair
    tree = prefix_tree(base, PROMPT, 5, [CODEWORD])
    log_q = tree.path_sums(proposal(tree, tree.log_probs_under(steered), mixture, switch))
    hit = tree.is_leaf & tree.contains(CODEWORD)
    q, w = np.exp(log_q), np.exp(tree.path_log_prob - log_q)
    assert (q * w)[hit].sum() == pytest.approx(tree.probability(hit), abs=1e-10, rel=1e-9)
    assert q[tree.is_leaf].sum() == pytest.approx(1, abs=1e-10)
    assert (q * w)[tree.is_leaf].sum() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("mixture, switch", SETTINGS)
def test_sampled_ratios_are_those_of_the_tree_and_weights_have_mean_one(pair, mixture, switch):
    base, steered = pair
    n = 2000
    tree = prefix_tree(base, PROMPT, 5, [CODEWORD])
    log_q = tree.path_sums(proposal(tree, tree.log_probs_under(steered), mixture, switch))
    samples = sample_mixture(
        base,
        steered,
        PROMPT,
        mixture=mixture,
        switch=switch,
        n=n,
        max_new_tokens=5,
        stop_ids=[CODEWORD],
        stream=Stream.of(0, "weights", mixture, switch),
    )
    leaves = np.flatnonzero(tree.is_leaf)
    leaf_of = {tuple(tokens): leaf for tokens, leaf in zip(tree.tokens[leaves], leaves, strict=True)}
    at = np.array([leaf_of[tuple(row)] for row in samples.tokens])
    np.testing.assert_allclose(samples.log_p.sum(axis=1), tree.path_log_prob[at], atol=2e-5)
    np.testing.assert_allclose(samples.log_q.sum(axis=1), log_q[at], atol=2e-5)
    assert np.array_equal(samples.log_weights, (samples.log_p - samples.log_q).sum(axis=1))
    if mixture > 0:
        # The weights lie in [0, b]. With the exact variance v of the tree, Bernstein: P(|mean - 1| >= t) <=
        # 2 exp(-n t^2 / (2 v + 2 b t / 3)), which is 1e-6 at the t solved for here.
        w = np.exp(tree.path_log_prob - log_q)[leaves]
        variance, largest = float((np.exp(log_q[leaves]) * (w - 1) ** 2).sum()), float(w.max())
        log_odds = np.log(2e6)
        t = (largest * log_odds / 3 + np.sqrt((largest * log_odds / 3) ** 2 + 2 * n * variance * log_odds)) / n
        assert abs(np.exp(samples.log_weights).mean() - 1) < max(t, 1e-12)


def test_end_of_sequence_is_in_the_ratio(grammar):
    tilted = grammar.steered({0: 3.0})
    samples = sample_mixture(
        grammar, tilted, [8, 8, 8], mixture=0.0, switch=None, n=200, max_new_tokens=4, stream=Stream.of(0, "eos")
    )
    ended = samples.finish_reasons == "eos"
    last = samples.lengths[ended] - 1
    ratios = (samples.log_p - samples.log_q)[np.flatnonzero(ended), last]
    assert ended.sum() > 50
    assert (ratios < -0.5).all()


def test_without_the_end_of_sequence_ratio_the_answer_would_be_wrong(grammar):
    """Guards the guard: on a tree where q ends texts early, leaving p/q of <eos> out is biased by more than a tenth."""
    tree = prefix_tree(grammar, [8, 8, 8], 5)
    log_q = tree.log_probs_under(grammar.steered({0: 2.0}))
    hit = tree.is_leaf & tree.contains(CODEWORD)
    q = np.exp(tree.path_sums(log_q))
    ratio = tree.log_prob - log_q
    exact = tree.probability(hit)
    assert (q * np.exp(tree.path_sums(ratio)))[hit].sum() == pytest.approx(exact, rel=1e-10)
    without = tree.path_sums(np.where(tree.token == 0, 0.0, ratio))
    assert abs((q * np.exp(without))[hit].sum() / exact - 1) > 0.1


def test_switched_steps_and_a_full_share_of_the_base_have_ratio_exactly_one(pair):
    base, steered = pair
    common = {"n": 200, "max_new_tokens": 5, "stop_ids": [CODEWORD], "stream": Stream.of(0, "ones")}
    switched = sample_mixture(base, steered, PROMPT, mixture=0.2, switch=2, **common)
    assert np.array_equal(switched.log_p[:, 2:], switched.log_q[:, 2:])
    for mixture, switch in ((0.2, 0), (1.0, None)):
        plain = sample_mixture(base, steered, PROMPT, mixture=mixture, switch=switch, **common)
        assert not plain.log_weights.any()
        assert np.array_equal(plain.tokens, sample(base, PROMPT, **common).tokens)


def test_settings_by_row_are_the_same_as_one_by_one_and_free_of_the_batch(pair):
    base, steered = pair
    mixture, switch = np.tile([0.0, 0.2, 1.0, 0.5], 50), np.tile([5, 1, 3, 0], 50)
    common = {"max_new_tokens": 5, "stop_ids": [CODEWORD]}
    stream = Stream.of(0, "rows")
    together = sample_mixture(base, steered, PROMPT, mixture=mixture, switch=switch, n=200, stream=stream, **common)
    for row in (0, 1, 2, 3, 77, 198):
        alone = sample_mixture(
            base,
            steered,
            PROMPT,
            mixture=mixture[row],
            switch=int(switch[row]),
            n=1,
            stream=stream.at(row),
            **common,
        )
        for field in ("tokens", "log_p", "log_q", "log_weights"):
            assert np.array_equal(getattr(alone, field)[0], getattr(together, field)[row]), (row, field)


def test_both_models_are_charged_and_the_steered_one_only_before_the_switch(grammar):
    tilted = grammar.steered({3: 4.0})
    for switch, steered_steps in ((None, 4), (0, 0), (2, 2)):
        with Meter() as meter:
            samples = sample_mixture(
                grammar, tilted, PROMPT, mixture=0.2, switch=switch, n=50, max_new_tokens=4, stream=Stream.of(0, "m")
            )
        base = 3 * 50 + samples.lengths.sum()
        steered = (3 * 50 if steered_steps else 0) + np.minimum(samples.lengths, steered_steps).sum()
        assert meter.spend.tokens == base + steered


def test_the_estimate_by_sampling_agrees_with_dynamic_programming(grammar):
    n = 40_000
    tilted = grammar.steered({3: 5.0})
    samples = sample_mixture(
        grammar,
        tilted,
        PROMPT,
        mixture=0.2,
        switch=1,
        n=n,
        max_new_tokens=5,
        stop_ids=[CODEWORD],
        stream=Stream.of(0, "dp"),
    )
    terms = np.exp(samples.log_weights) * (samples.tokens == CODEWORD).any(axis=1)
    p = grammar.event_probability(PROMPT, CODEWORD, 5)
    second = grammar.second_moment(tilted, PROMPT, CODEWORD, 5, mixture=0.2, switch=1)
    # The normal law at a false-alarm probability of 1e-6, with the exact variance.
    allowed = stats.norm.isf(5e-7) * np.sqrt((second - p**2) / n)
    assert abs(terms.mean() - p) < allowed
    assert allowed < 0.15 * p


@pytest.mark.parametrize(
    "options, told",
    [
        ({"mixture": 1.2}, "mixture is 1.2 but must be a finite number at least 0 and at most 1; pass the base"),
        ({"mixture": -0.1}, "mixture is -0.1"),
        ({"mixture": float("nan")}, r"mixture\[0\] is nan but must be finite"),
        ({"switch": -1}, "switch is -1 but must be a whole number at least 0; pass the first step"),
        ({"switch": 1.5}, "switch is 1.5"),
        ({"mixture": [0.1, 0.2]}, r"mixture is 'of shape \(2,\)' but must have one entry for each completion"),
        ({"prompts": []}, "prompt is 'empty'"),
        ({"max_new_tokens": 62}, "at most 61 new tokens"),
    ],
)
def test_bad_proposals_are_refused_in_one_sentence(pair, options, told):
    asked = {"prompts": PROMPT, "mixture": 0.2, "switch": None, "n": 5, "max_new_tokens": 3} | options
    with pytest.raises(WorkbenchError, match=told):
        sample_mixture(*pair, asked.pop("prompts"), stream=Stream.of(0), **asked)


def test_models_of_unlike_vocabularies_are_refused(grammar, codeword):
    from workbench.models import bigram

    with pytest.raises(
        WorkbenchError,
        match=r"grammar/bigram has 8 tokens .* must share the vocabulary of grammar/codeword, 9 tokens .*; pass a steered",
    ):
        sample_mixture(grammar, bigram(), PROMPT, mixture=0.2, switch=None, n=5, max_new_tokens=3, stream=Stream.of(0))
