"""Exact risks and variances against slow loops over the tree, dynamic programming, and real draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench import Meter, Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import exact_risk
from workbench.methods.tail_risk.lm_tail_risk import MIXTURES, ImportanceSampling, Proposal, log_weights
from workbench.methods.tail_risk.skewed_mean import skewness_corrected
from workbench.models import bigram, codeword_grammar, prefix_tree
from workbench.models.grammars import CODEWORD, COMPLY
from workbench.problems.event import ModelEvent, codeword_event, generates, tabulate_event

PROMPT = (7, 7, 7)
STRENGTHS = (-2.0, 3.0, 8.0)
# Steering that acts on every step and on <eos>; the codeword grammar's own acts on the first token alone.
GRAMMARS = {
    "codeword": (codeword_grammar(), lambda s: {COMPLY: s, CODEWORD: s / 3, 0: -s / 4}, PROMPT, True),
    "bigram": (bigram(5, rare=0.02), lambda s: {0: s / 3, CODEWORD: s / 2, 3: 1.0}, (2,), False),
}


def grammar_event(name: str, max_new_tokens: int = 5) -> ModelEvent:
    grammar, tilts, prompt, stops = GRAMMARS[name]
    return ModelEvent(
        grammar,
        prompt,
        lambda tokens: generates([CODEWORD], tokens),
        max_new_tokens=max_new_tokens,
        name=name,
        stop_ids=[CODEWORD] if stops else [],
        steer=lambda strength: grammar.steered(tilts(strength)),
    )


@pytest.fixture(scope="module", params=["codeword", "bigram", "embedded"])
def everything(request):
    event = codeword_event("embedded", PROMPT) if request.param == "embedded" else grammar_event(request.param)
    return tabulate_event(event, STRENGTHS)


@pytest.fixture(scope="module")
def codeword():
    return tabulate_event(grammar_event("codeword"), STRENGTHS)


def paths_of(tabulated, strength):
    return exact_risk.event_paths(tabulated.tree, tabulated.hits, tabulated.log_q[strength])


def drawn_with(tree, log_q, mixture, switch):
    """(N,) probability of each node's path under the proposal, token by token, without logarithms of mixtures."""
    steered, base = np.exp(log_q), np.exp(tree.log_prob)
    token = np.where(tree.depth <= switch, (1 - mixture) * steered + mixture * base, base)
    path = np.ones(len(tree))
    for node in range(1, len(tree)):
        path[node] = path[tree.parent[node]] * token[node]
    return path


def bernstein(variance, largest, n, chance=1e-6):
    """How far the mean of n independent terms of [0, largest] strays from its expectation, but for `chance`."""
    odds = math.log(2 / chance)
    linear = largest * odds / 3
    return (linear + math.sqrt(linear**2 + 2 * n * variance * odds)) / n


def test_event_paths_are_the_leaves_that_hit_token_by_token(everything):
    tree, strength = everything.tree, 3.0
    paths = paths_of(everything, strength)
    leaves = np.flatnonzero(tree.is_leaf & everything.hits)
    assert len(paths.log_p) == len(leaves)
    for row in range(0, len(leaves), 1 + len(leaves) // 40):
        node, log_p, log_q = leaves[row], [], []
        while node:
            log_p.append(tree.log_prob[node])
            log_q.append(everything.log_q[strength][node])
            node = tree.parent[node]
        padding = [0.0] * (tree.tokens.shape[1] - len(log_p))
        assert paths.log_p[row].tolist() == log_p[::-1] + padding
        assert paths.log_q[row].tolist() == log_q[::-1] + padding
    assert paths.probability == pytest.approx(everything.event.truth, rel=1e-12)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_unbiased_and_second_moment_by_summation_over_the_tree(everything, strength):
    tree = everything.tree
    leaves, steps = np.flatnonzero(tree.is_leaf & everything.hits), tree.tokens.shape[1]
    paths = paths_of(everything, strength)
    for mixture, switch in ((0.0, 5), (0.0, 1), (0.01, 5), (0.2, 3), (0.2, 1), (0.5, 0), (0.9, 2), (1.0, 5)):
        q = drawn_with(tree, everything.log_q[strength], mixture, switch)[leaves]
        w = np.exp(log_weights(paths.log_p, paths.log_q, mixture))[:, switch]
        assert np.sum(q * w) == pytest.approx(everything.event.truth, rel=1e-10)
        assert exact_risk.second_moments(paths, mixture)[switch] == pytest.approx(np.sum(q * w**2), rel=1e-10)
    assert exact_risk.second_moments(paths, 0.3).shape == (steps + 1,)


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_second_moments_equal_dynamic_programming(name, strength):
    grammar, tilts, prompt, stops = GRAMMARS[name]
    paths = paths_of(tabulate_event(grammar_event(name), [strength]), strength)
    p = grammar.event_probability(prompt, CODEWORD, 5)
    ratios = exact_risk.variance_ratios(paths)
    for row, mixture in enumerate(MIXTURES):
        moments = exact_risk.second_moments(paths, mixture)
        for switch in (*range(6), None):
            told = {"mixture": mixture, "switch": switch, "stop_at_event": stops}
            exact = grammar.second_moment(grammar.steered(tilts(strength)), prompt, CODEWORD, 5, **told)
            column = 5 if switch is None else switch
            assert moments[column] == pytest.approx(exact, rel=1e-10)
            ratio = (p - p**2) / (exact - p**2)
            assert ratios[row, column] == pytest.approx(ratio, rel=1e-7)
            assert exact_risk.variance_ratio(paths, Proposal(strength, mixture, switch)) == ratios[row, column]
    assert exact_risk.variance_ratio(paths, Proposal(strength, 0.5, 77)) == ratios[12, 5]
    # Drawing from the base model itself is plain Monte Carlo.
    assert ratios[:, 0] == pytest.approx(1, rel=1e-9) and ratios[-1] == pytest.approx(1, rel=1e-9)


def test_a_proposal_that_cannot_draw_a_path_has_an_infinite_second_moment():
    paths = exact_risk.EventPaths(np.log([[0.1, 0.2], [0.1, 0.3]]), np.array([[-1.0, -1.0], [-1.0, -np.inf]]))
    assert exact_risk.second_moments(paths, 0.0).tolist() == [
        pytest.approx(0.05),
        pytest.approx(0.005 * math.e),
        np.inf,
    ]
    assert np.isfinite(exact_risk.second_moments(paths, 0.01)).all()


@pytest.mark.parametrize("mixture, switch", [(0.0, None), (0.3, 1), (0.3, 0), (0.05, 2), (1.0, 3)])
@pytest.mark.parametrize("name", GRAMMARS)
def test_expected_tokens_are_what_draws_cost(name, mixture, switch):
    event, proposal, n = grammar_event(name), Proposal(3.0, mixture, switch), 100_000
    tabulated = tabulate_event(event, [3.0])
    expected = exact_risk.expected_tokens(tabulated.tree, tabulated.log_q[3.0], proposal)
    with Meter() as meter:
        tokens = event.sample_from(proposal, n, Stream.of(0, "tokens", name))["tokens"]
    assert meter.spend.tokens == tokens.sum()
    # Hoeffding: a draw costs between 1 and T tokens for each model, so the mean of n is off by more than
    # range sqrt(log(2e6) / 2n) with probability below 1e-6. That is 0.07 tokens of about 10.
    steps = 5 if switch is None else switch
    assert abs(tokens.mean() - expected) < (4 + max(0, steps - 1)) * math.sqrt(math.log(2e6) / (2 * n))
    if switch == 0:
        with Meter() as meter:
            event.sample(1000, Stream.of(1, "plain"))
        assert abs(meter.spend.tokens / 1000 - expected) < 4 * math.sqrt(math.log(2e6) / 2000)


def test_samples_for_a_relative_error():
    # Plain draws: relative variance (1 - p) / (p n).
    assert exact_risk.samples_for_relative_error(1e-4, 1e-4) == pytest.approx(100 * (1 - 1e-4) / 1e-4)
    assert exact_risk.samples_for_relative_error(0.2, 0.05, 0.5) == pytest.approx(0.01 / 0.01)


class Planned:
    """In a generator's place: gives the counts it was told, and keeps the law it was asked for."""

    def __init__(self, counts):
        self.counts = np.asarray(counts)

    def multinomial(self, k, law, size):
        assert len(self.counts) == size and (self.counts.sum(axis=1) == k).all()
        self.law = law
        return self.counts


def estimator_says(log_weight, counts, level):
    """ImportanceSampling's answer to draws that came up so often; the last kind are those that do not hit."""
    estimator = ImportanceSampling(level=level)
    hit = np.repeat(np.arange(len(counts)) < len(counts) - 1, counts)
    batch = {"hit": hit, "log_weight": np.repeat([*log_weight, 0.0], counts)}
    return estimator.result(estimator.absorb(estimator.init(codeword_event()), batch))


def test_repeats_from_counts_are_the_estimators_own_answers(codeword):
    tree, level = codeword.tree, 0.9
    paths, proposal = paths_of(codeword, 3.0), Proposal(3.0, 0.2, 2)
    leaves = np.flatnonzero(tree.is_leaf & codeword.hits)
    q = drawn_with(tree, codeword.log_q[3.0], 0.2, 2)[leaves]
    log_weight = tree.path_log_prob[leaves] - np.log(q)
    planned = Planned(np.random.default_rng(0).multinomial(400, np.append(q, 1 - q.sum()), size=20))
    value, low, high, ess = exact_risk.repeated_from_paths(paths, proposal, 400, 20, planned, level=level)
    np.testing.assert_allclose(planned.law, np.append(q, 1 - q.sum()), rtol=1e-10)
    for i, counts in enumerate(planned.counts):
        estimate = estimator_says(log_weight, counts, level)
        assert value[i] == pytest.approx(estimate.value, rel=1e-10)
        assert (max(0.0, low[i]), high[i]) == pytest.approx((estimate.low, estimate.high), rel=1e-10)
        assert ess[i] == pytest.approx(estimate.diagnostics["effective_sample_size"], rel=1e-10)
    unweighted = exact_risk.repeated_from_paths(paths, proposal, 400, 20, planned, weighted=False)[0]
    np.testing.assert_allclose(unweighted, planned.counts[:, :-1].sum(axis=1) / 400)
    nothing = Planned([[0] * len(q) + [400]])
    assert [float(x[0]) for x in exact_risk.repeated_from_paths(paths, proposal, 400, 1, nothing)] == [0, 0, 0, 0]


def test_repeats_have_the_law_of_real_draws_and_are_unbiased(codeword):
    proposal, k, repeats = Proposal(3.0, 0.2, 2), 60, 4000
    paths, p = paths_of(codeword, 3.0), codeword.event.truth
    counted = exact_risk.repeated_from_paths(paths, proposal, k, repeats, Stream.of(0, "counts").generator())
    drawn = codeword.event.sample_from(proposal, k * repeats, Stream.of(0, "draws"))
    terms = (np.exp(drawn["log_weight"]) * drawn["hit"]).reshape(repeats, k)
    third = ((terms - terms.mean(axis=1, keepdims=True)) ** 3).mean(axis=1)
    low, high = skewness_corrected(terms.mean(axis=1), terms.var(axis=1), third, k)
    squares = (terms**2).sum(axis=1)
    ess = np.divide(terms.sum(axis=1) ** 2, squares, out=np.zeros(repeats), where=squares > 0)
    real = (terms.mean(axis=1), low, high, ess)

    w = np.exp(log_weights(paths.log_p, paths.log_q, 0.2)[:, 2])
    variance = exact_risk.second_moments(paths, 0.2)[2] - p**2
    allowed = bernstein(variance, w.max(), k * repeats, chance=1e-7)
    assert allowed < 0.05 * p
    assert abs(counted[0].mean() - p) < allowed and abs(terms.mean() - p) < allowed
    # Dvoretzky, Kiefer and Wolfowitz with Massart's constant, also for discrete laws: each empirical distribution
    # function strays by more than sqrt(log(2 / c) / 2R) with probability c; 2 samples of 4 statistics, 1e-6 in all.
    apart = 2 * math.sqrt(math.log(2 * 8 / 8e-7) / (2 * repeats))
    assert apart < 0.12
    for ours, theirs in zip(counted, real, strict=True):
        # A grid of their joint values, rounded so that equal sums in another order stay equal.
        ours, theirs = np.sort(np.round(ours, 9)), np.sort(np.round(theirs, 9))
        at = np.concatenate([ours, theirs])
        gap = np.searchsorted(ours, at, side="right") - np.searchsorted(theirs, at, side="right")
        assert np.abs(gap).max() / repeats < apart


def test_a_longer_answer_than_the_switch_costs_the_steered_model_nothing_more():
    grammar = codeword_grammar()
    tree = prefix_tree(grammar, [list(PROMPT)], 4)
    log_q = tree.log_probs_under(grammar.steered({COMPLY: 3.0}))
    plain = exact_risk.expected_tokens(tree, log_q, Proposal(3.0, 1.0, 0))
    # The base model's share is 1, so both models read one law: 3 prompt tokens twice, one more token, the answer.
    assert exact_risk.expected_tokens(tree, log_q, Proposal(3.0, 1.0, 1)) == pytest.approx(plain + 3 + 1)
    assert exact_risk.expected_tokens(tree, log_q, Proposal(3.0, 1.0, None)) == pytest.approx(2 * plain)


NOTHING = exact_risk.EventPaths(np.zeros((0, 3)), np.zeros((0, 3)))
SOMETHING = exact_risk.EventPaths(np.log([[0.1]]), np.log([[0.3]]))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: exact_risk.variance_ratios(NOTHING), ("paths.probability is 0.0", "choose one that some do")),
        (lambda: exact_risk.second_moments(SOMETHING, 1.2), ("mixture is 1.2", "mixture=0.2")),
        (lambda: exact_risk.second_moments(SOMETHING, math.nan), ("mixture is nan", "mixture=0.2")),
        (lambda: exact_risk.variance_ratios(SOMETHING, [0.1, -0.1]), ("mixture is -0.1", "mixture=0.2")),
        (lambda: exact_risk.samples_for_relative_error(0.0, 0.0), ("probability is 0.0", "choose one")),
        (lambda: exact_risk.samples_for_relative_error(0.1, 0.1, 0), ("relative_error is 0", "relative_error=0.1")),
        (
            lambda: exact_risk.repeated_from_paths(SOMETHING, Proposal(), 1, 5, np.random.default_rng(0)),
            ("k is 1", "two or more"),
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    message = str(refusal.value)
    assert all(part in message for part in says), message
    assert message.endswith(".") and "\n" not in message
