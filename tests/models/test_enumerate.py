"""Trees that add up to one, and bounds that hold the truth."""

from __future__ import annotations

import time

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.models import Bounds, contains, event_bounds, next_log_probs, prefix_tree, score
from workbench.models import enumerate as enumerate_module


def test_a_tree_is_complete_and_scores_as_the_model_does(model):
    tree = prefix_tree(model, [4, 5, 6], 4, [1])
    leaves = tree.is_leaf
    assert np.exp(tree.path_log_prob[leaves]).sum() == pytest.approx(1, abs=1e-12)
    # 7 of the 9 tokens go on: 1 + 7 + 49 + 343 prefixes are evaluated, and each has 9 children.
    assert len(tree) == 1 + 9 * (1 + 7 + 49 + 343)
    assert (tree.parent[1:] < np.arange(1, len(tree))).all()
    some = np.flatnonzero(leaves)[::97]
    completions = [tree.tokens[i][tree.tokens[i] >= 0] for i in some]
    scores = score(model, [[4, 5, 6]] * len(some), completions)
    np.testing.assert_allclose([s.sum() for s in scores], tree.path_log_prob[some], atol=2e-5)
    assert [int(tree.depth[i]) for i in some] == [len(c) for c in completions]
    np.testing.assert_allclose(tree.log_probs_under(model), tree.log_prob, atol=0)
    assert tree.path_sums(tree.log_prob) == pytest.approx(tree.path_log_prob, abs=1e-12)


def test_a_tree_knows_where_generation_ends(grammar):
    tree = prefix_tree(grammar, [8, 8, 8], 4, [1])
    ends = np.isin(tree.token, (0, 1)) | (tree.depth == 4)
    assert np.array_equal(tree.is_leaf, ends)
    assert tree.probability(tree.contains(1)) == pytest.approx(grammar.event_probability([8, 8, 8], 1, 4), abs=1e-12)
    assert tree.probability(np.ones(len(tree), dtype=bool)) == pytest.approx(1, abs=1e-12)


def test_two_thousand_prefixes_take_no_time(codeword):
    prefix_tree(codeword, [4, 4, 4], 3, [1])
    began = time.process_time()
    prefix_tree(codeword, [4, 5, 6], 5, [1])
    assert time.process_time() - began < 2


@pytest.mark.parametrize("most", [1, 3, 20, 100, 5000])
def test_bounds_hold_the_truth_and_close(codeword, most):
    tree = prefix_tree(codeword, [7, 8, 7], 5, [1])
    truth = tree.probability(tree.contains(1))
    bounds = event_bounds(codeword, [7, 8, 7], contains(1), 5, stop_ids=[1], max_prefixes=most, tolerance=1e-9)
    assert bounds.low - 1e-6 * truth <= truth <= bounds.high + 1e-6 * truth
    assert bounds.n_prefixes <= most
    if most == 5000:
        assert bounds.width < 1e-7
        assert bounds.low == pytest.approx(truth, rel=1e-4)


def test_bounds_of_a_grammar_are_exact_and_stop_at_the_tolerance(grammar):
    truth = grammar.event_probability([8, 8, 8], 1, 5)
    exact = event_bounds(grammar, [8, 8, 8], contains(1), 5, stop_ids=[1], tolerance=0)
    assert exact.low == pytest.approx(truth, abs=1e-12)
    assert exact.high == pytest.approx(truth, abs=1e-12)
    loose = event_bounds(grammar, [8, 8, 8], contains(1), 5, stop_ids=[1], tolerance=0.05)
    assert loose.width <= 0.05
    assert loose.n_prefixes <= exact.n_prefixes
    assert loose.low <= truth <= loose.high
    assert isinstance(loose, Bounds)


def test_an_event_may_be_false_early_and_that_saves_work(grammar):
    def starts_with_comply(tokens, finished):
        return tokens[0] == 3 if tokens else None

    bounds = event_bounds(grammar, [8, 8, 8], starts_with_comply, 5, tolerance=0)
    assert (bounds.low, bounds.high, bounds.n_prefixes) == (pytest.approx(0.1), pytest.approx(0.1), 1)


def test_next_log_probs_are_those_of_single_calls_whatever_the_company(model):
    prefixes = [[4], [5, 6], [7, 8, 4], [4], [8] * 20, [5, 5]]
    together = next_log_probs(model, prefixes)
    for row, prefix in zip(together, prefixes, strict=True):
        assert np.array_equal(row, next_log_probs(model, prefix)[0])
    assert np.exp(together).sum(axis=1) == pytest.approx(np.ones(6), abs=1e-12)


@pytest.mark.parametrize(
    "ask, told",
    [
        (lambda m: prefix_tree(m, [4], 0), "max_new_tokens is 0"),
        (lambda m: prefix_tree(m, [], 2), "prompt is 'empty'"),
        (lambda m: prefix_tree(m, [4], 2, [12]), r"stop_ids\[1\] is 12"),
        (lambda m: event_bounds(m, [4], contains(1), 2, tolerance=-1), "tolerance is -1"),
        (lambda m: event_bounds(m, [4], contains(1), 2, max_prefixes=0), "max_prefixes is 0"),
        (lambda m: event_bounds(m, [4], lambda t, f: None, 1), r"event is undecided .* must be True or False"),
    ],
)
def test_bad_questions_are_refused(grammar, ask, told):
    with pytest.raises(WorkbenchError, match=told):
        ask(grammar)


def test_a_tree_too_large_is_refused_while_it_grows(codeword, monkeypatch):
    monkeypatch.setattr(enumerate_module, "_MOST_NODES", 1000)
    with pytest.raises(WorkbenchError, match="max_new_tokens is 5 but the tree passes 1,000 nodes at step 4; ask for"):
        prefix_tree(codeword, [4, 5, 6], 5)
