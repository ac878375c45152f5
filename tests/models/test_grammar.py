"""Grammar models: dynamic programming is enumeration is the closed form."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.models import (
    GrammarModel,
    Tilt,
    bigram,
    codeword_prompts,
    comply_probability,
    load,
    next_log_probs,
    prefix_tree,
    two_branch,
)


def random_grammar(seed: int) -> GrammarModel:
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet(np.full(4, 0.7), size=5)
    probs[2, 3] = 0
    probs /= probs.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return GrammarModel(np.log(probs), generator.integers(0, 5, size=(5, 4)), eos_id=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stop", [True, False])
def test_event_probability_and_second_moment_are_those_of_the_whole_tree(seed, stop):
    p = random_grammar(seed)
    q = p.steered({1: 1.5, 2: -0.7})
    for prompt, wanted, steps in (([1, 2], 1, 5), ([3], [1, 3], 4), ([1], [0], 3)):
        tree = prefix_tree(p, prompt, steps, np.atleast_1d(wanted) if stop else ())
        hit = tree.is_leaf & tree.contains(*np.atleast_1d(wanted))
        assert p.event_probability(prompt, wanted, steps) == pytest.approx(tree.probability(hit), abs=1e-12)
        steered = tree.log_probs_under(q)
        for mixture, switch in ((0.0, None), (0.3, None), (0.2, 2), (0.0, 0), (1.0, None)):
            with np.errstate(divide="ignore"):
                mixed = np.logaddexp(np.log1p(-mixture) + steered, np.log(mixture) + tree.log_prob)
            before = (tree.depth > 0) & (tree.depth - 1 < (99 if switch is None else switch))
            log_q = tree.path_sums(np.where(before, mixed, tree.log_prob))
            exact = np.exp(2 * tree.path_log_prob - log_q)[hit].sum()
            found = p.second_moment(q, prompt, wanted, steps, mixture=mixture, switch=switch, stop_at_event=stop)
            assert found == pytest.approx(exact, rel=1e-12, abs=1e-14)


def test_two_branches_have_their_closed_form():
    for c, r, steps in ((1e-3, 0.3, 5), (1e-6, 0.9, 2), (0.5, 0.0, 7)):
        model = two_branch(c, r)
        exact = c * (1 - (1 - r) ** (steps - 1)) + (1 - c) * (1 - (1 - 1e-6) ** (steps - 1))
        assert model.event_probability([], 1, steps) == pytest.approx(exact, rel=1e-9)


def test_the_codeword_grammar_spans_what_it_promises(grammar):
    prompts = codeword_prompts()
    laws = np.exp(next_log_probs(grammar, prompts))
    comply = 10.0 ** (-5 + (np.array([sum(p) for p in prompts]) - 12) / 3)
    np.testing.assert_allclose(laws[:, 3], comply, rtol=1e-12)
    assert (comply.min(), comply.max()) == pytest.approx((1e-5, 1e-1))
    assert comply_probability(18) == pytest.approx(1e-3)
    after = np.exp(next_log_probs(grammar, [[4, 5, 6, 3], [4, 5, 6, 2]]))
    assert after[:, 1] == pytest.approx([0.3, 1e-6])


def test_a_tilt_raises_the_log_odds_by_exactly_what_it_says(grammar):
    before = next_log_probs(grammar, [[4, 5, 6]])[0]
    after = next_log_probs(grammar.steered(Tilt(3, 2.5)), [[4, 5, 6]])[0]
    odds = np.log(np.expm1(-before[[3]]) / np.expm1(-after[[3]]))
    assert odds == pytest.approx(2.5)
    elsewhere = grammar.steered(Tilt(3, 2.5, states=(0,)))
    assert np.array_equal(next_log_probs(elsewhere, [[4, 5, 6]])[0], before)


def test_a_proposal_that_misses_a_path_has_infinite_second_moment():
    p = two_branch(0.5, 0.5)
    q = two_branch(0.0, 0.5)
    assert p.second_moment(q, [], 1, 3) == np.inf
    assert p.second_moment(q, [], 1, 3, mixture=0.1) < np.inf


def test_text_and_tokens(grammar):
    assert grammar.encode("f0 f4 comply X") == [4, 8, 3, 1]
    assert grammar.decode([4, 8, 3, 1, -1]) == "f0 f4 comply X"
    with pytest.raises(WorkbenchError, match="text is 'hello' but must be made of <eos>, X"):
        grammar.encode("hello")


def test_the_bigram_grammar_is_rare_and_ends(grammar):
    model = load("grammar/bigram")
    p = model.event_probability([3], 1, 20)
    assert 1e-3 < p < 0.1
    assert bigram(rare=1e-6).event_probability([3], 1, 20) < 1e-4
    assert np.array_equal(bigram(seed=4).table, bigram(seed=4).table)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: GrammarModel(np.log([[0.5, 0.4]]), [[0, 0]]), r"exp\(log_probs\) of state 0 is .*0.9.* sum to 1"),
        (lambda: GrammarModel(np.array([[np.nan, 0.0]]), [[0, 0]]), r"log_probs\[0\] is nan but must be finite"),
        (lambda: GrammarModel(np.array([[1.0, -np.inf]]), [[0, 0]]), "log_probs is 1.0 but must be at most 0"),
        (lambda: GrammarModel(np.log([[0.5, 0.5]]), [[0, 1]]), "transition .* states from 0 to 0"),
        (lambda: GrammarModel(np.log([[0.5, 0.5]]), [[0]]), r"transition is \(1, 1\) but must have shape \(1, 2\)"),
        (lambda: GrammarModel(np.log([[0.5, 0.5]]), [[0, 0]], eos_id=2), r"eos_id\[0\] is 2"),
        (lambda: GrammarModel(np.log([[0.5, 0.5]]), [[0, 0]], start_state=3), "start_state is 3"),
        (lambda: GrammarModel(np.array([]), []), r"log_probs is 'of shape \(0,\)'"),
        (lambda: two_branch(1.5, 0.3), "c is 1.5 but must be a finite number at least 0 and at most 1"),
        (lambda: two_branch(0.5, 0.3, n_fillers=0), "n_fillers is 0"),
        (lambda: bigram(rare=0), "rare is 0"),
        (lambda: bigram(n_tokens=2), "n_tokens is 2"),
        (lambda: bigram(seed=0.5), "seed is 0.5"),
        (lambda: two_branch(0.5, 0.3).steered({9: 1.0}), r"tilt token\[0\] is 9"),
        (lambda: two_branch(0.5, 0.3).steered({1: np.inf}), "tilt log_odds is inf but must be a finite number"),
        (lambda: two_branch(0.5, 0.3).event_probability([], 7, 3), r"tokens\[0\] is 7"),
        (lambda: two_branch(0.5, 0.3).second_moment(bigram(), [], 1, 3), "proposal is grammar/bigram but must share"),
        (lambda: load("grammar/bigramm"), "did you mean 'bigram'"),
        (lambda: two_branch(0.5, 0.3).start([[1], [1, 2]]), r"prompts is 'of lengths \[1, 2\]'"),
        (lambda: two_branch(0.5, 0.3).start([]), "prompts is 'empty'"),
    ],
)
def test_bad_grammars_and_questions_are_refused(make, told):
    with pytest.raises(WorkbenchError, match=told):
        make()
