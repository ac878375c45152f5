"""Selection problems against enumeration of all samples, against simulation, and against their own definitions."""

from __future__ import annotations

from itertools import combinations, pairwise, product
from math import comb, factorial, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.problems import selection as sel


def problem_of(policy, true, proxy) -> sel.SelectionProblem:
    return sel.SelectionProblem(np.array(policy), np.array(true), np.array(proxy))


def all_counts(n: int, answers: int):
    for bars in combinations(range(n + answers - 1), answers - 1):
        edges = (-1, *bars, n + answers - 1)
        yield np.array([b - a - 1 for a, b in pairwise(edges)])


def by_enumeration(problem: sel.SelectionProblem, n: int, k: int, alpha: float) -> float:
    """Expected regret over every table of counts and every order of ties, from first principles."""
    total = 0.0
    for counts in all_counts(n, problem.policy.size):
        probability = factorial(n) / prod(map(factorial, counts.tolist())) * np.prod(problem.policy**counts)
        alive = [i for i, c in enumerate(counts.tolist()) if c > 0 and c / n >= alpha]
        subsets = list(combinations(alive, min(k, len(alive))))
        proxy = problem.proxy_rewards
        top = sorted((proxy[i] for i in alive), reverse=True)[:k]
        best = [s for s in subsets if sorted((proxy[i] for i in s), reverse=True) == top]
        earned = np.mean([max((problem.true_rewards[i] for i in s), default=0) for s in best])
        total += probability * (problem.true_rewards.max() - earned)
    return total


TINY = problem_of([0.3, 0.2, 0.2, 0.15, 0.1, 0.05], [0.9, 0.5, 0.5, 0.0, 0.2, 0.0], [0.6, 0.6, 0.6, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("k", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.25, 0.5, 1.0])
def test_expected_regret_equals_enumeration(n, k, alpha):
    assert sel.expected_regret(TINY, n, k, alpha) == pytest.approx(by_enumeration(TINY, n, k, alpha), abs=1e-10)


levels = st.sampled_from([0.0, 0.3, 0.6, 1.0])


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(0, 4), min_size=2, max_size=5).filter(any),
    data=st.data(),
    n=st.integers(1, 6),
    k=st.integers(1, 4),
    alpha=st.sampled_from([0.0, 0.2, 1 / 3, 0.5]),
)
def test_expected_regret_equals_enumeration_on_any_small_problem(weights, data, n, k, alpha):
    rewards = st.lists(levels, min_size=len(weights), max_size=len(weights))
    policy = np.array(weights) / sum(weights)
    problem = problem_of(policy, data.draw(rewards), data.draw(rewards))
    assert sel.expected_regret(problem, n, k, alpha) == pytest.approx(by_enumeration(problem, n, k, alpha), abs=1e-10)


def test_filter_probabilities_equal_enumeration():
    problem = problem_of([0.5, 0.3, 0.1, 0.06, 0.04], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0])
    for n in (3, 7, 10):
        failure = empty = 0.0
        for counts in all_counts(n, 5):
            weight = factorial(n) / prod(map(factorial, counts.tolist())) * np.prod(problem.policy**counts)
            passes = (counts > 0) & (counts / n >= 0.75 / problem.coverage)
            # C* = 2: pi >= 0.5 must pass and pi < 0.125 must not; 0.3 may do either.
            failure += weight * (not passes[0] or passes[2:].any())
            empty += weight * (not ((counts > 0) & (counts / n >= 0.6)).any())
        assert sel.event_failure(problem, n) == pytest.approx(failure, abs=1e-10)
        assert sel.empty_filter(problem, n, 0.6) == pytest.approx(empty, abs=1e-10)


@pytest.mark.parametrize(("n", "alpha"), [(30, 0.0), (200, 0.0), (200, 0.0375), (2000, 0.0375), (10_000, 0.0)])
def test_expected_regret_in_the_arena_equals_a_closed_form(n, alpha):
    # Best-of-N: y* is submitted iff it was drawn and fewer than k of the m over-scored answers were. Inclusion and
    # exclusion over those m: P(exactly j seen, y* seen) needs only the chance that a set of answers stays unseen.
    problem = sel.arena(0.02)
    k, m, q, p = 3, 229, 0.35 / 4000, 0.05
    assert (problem.proxy_rewards == 1).sum() == m
    if alpha == 0:
        found = 0.0
        for j in range(k):
            for i in range(j + 1):
                hidden = (m - j + i) * q
                found += (-1) ** i * comb(m, j) * comb(j, i) * ((1 - hidden) ** n - (1 - hidden - p) ** n)
    else:
        # An over-scored answer practically never passes here, so y* is submitted iff its binomial count passes.
        c = sel.threshold_count(alpha, n)
        found = 1 - sum(comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(c))
    assert sel.expected_regret(problem, n, k, alpha) == pytest.approx(0.95 * (1 - found), abs=1e-8)


@pytest.mark.parametrize("k", [2, 8, 32])
def test_no_rule_beats_half_of_d_on_the_least_favourable_family(k):
    problem = sel.least_favourable(k, coverage=80, eps_rm_sq=0.002)
    d = np.sqrt(80 * 0.001 / (2 * k - 1))
    assert problem.coverage == pytest.approx(80)
    assert problem.eps_opt == 0
    assert problem.eps_rm_sq == pytest.approx(0.002, rel=0.06)  # the over-scored mass is a whole number of answers
    # Submitting any k of the 2k indistinguishable answers: y* is in half of all choices.
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((20_000, 2 * k)), axis=1)[:, :k]
    # 20 000 fair coins: 5 standard errors, false alarm below 1e-6.
    assert problem.regret(chosen).mean() == pytest.approx(d / 2, abs=5 * d / 2 / np.sqrt(20_000))
    assert sel.expected_regret(problem, 20_000, k, 3 / 320) == pytest.approx(d / 2, rel=2e-3)


def test_a_rival_for_every_place_keeps_the_under_scored_optimum_out():
    problem = sel.under_scored_optimum(0.2, 0.05, n_rivals=12, coverage=20)
    assert problem.eps_opt == pytest.approx(0.2)
    assert problem.eps_rm_sq == pytest.approx(0.2**2 / 20)
    for k, regret in ((1, 0.15), (12, 0.15), (13, 0.0)):
        assert sel.expected_regret(problem, 20_000, k, 3 / 80) == pytest.approx(regret, abs=1e-9)


def test_the_arena_is_what_it_says():
    problem = sel.arena(0.02)
    assert problem.policy.sum() == pytest.approx(1)
    assert problem.optimum == 0 and problem.coverage == pytest.approx(20)
    assert problem.eps_rm_sq == pytest.approx(0.02, abs=0.35 / 4000 / 2) and problem.eps_opt == 0
    assert sel.arena(0.0).eps_rm_sq == 0


def test_regret_is_the_best_of_what_was_submitted():
    batch = sel.SelectionProblem(np.full((2, 3), 1 / 3), np.array([[1, 0.4, 0], [0, 0.2, 0.8]]), np.zeros((2, 3)))
    submitted = np.array([[[0, 1], [1, 2], [-1, -1]], [[0, 1], [2, -1], [0, -1]]])
    np.testing.assert_allclose(batch.regret(submitted), [[0, 0.6, 1], [0.6, 0, 0.8]])
    alone = problem_of(batch.policy[0], batch.true_rewards[0], batch.proxy_rewards[0])
    np.testing.assert_allclose(alone.regret(submitted[0]), [0, 0.6, 1])
    assert alone.regret(np.array([1])) == pytest.approx(0.6)


def test_the_likeliest_of_several_right_answers_is_the_optimum():
    problem = problem_of([0.2, 0.5, 0.3], [1, 0.5, 1], [1, 1, 1])
    assert problem.optimum == 2 and problem.coverage == pytest.approx(1 / 0.3)


def test_counts_have_the_policys_law():
    batch = sel.SelectionProblem(np.array([[0.5, 0.5, 0], [0.1, 0.2, 0.7]]), np.zeros((2, 3)), np.zeros((2, 3)))
    counts = batch.counts(40, 5000, np.random.default_rng(1))
    assert counts.shape == (2, 5000, 3) and (counts.sum(axis=-1) == 40).all()
    # The mean of 200 000 draws has a standard error of at most 0.0012: 5 of them, six entries, false alarm below 1e-5
    # for any generator and none for this seed.
    np.testing.assert_allclose(counts.mean(axis=1) / 40, batch.policy, atol=0.006)


def test_threshold_count_reads_alpha_as_typed():
    assert sel.threshold_count(0.0, 10) == 1
    assert sel.threshold_count(1.0, 10) == 10
    for alpha, n in product((0.005, 0.015, 0.07, 0.29, 0.57), (100, 200, 1000)):
        exact = round(alpha * 1000) * n
        assert sel.threshold_count(alpha, n) == -(-exact // 1000), (alpha, n)


def test_digits_are_a_known_policy():
    problem = sel.digit_triples(7, np.random.default_rng(0), n_trees=20, n_training=100, n_reward_models=3)
    assert problem.policy.shape == (7, 1000)
    np.testing.assert_allclose(problem.policy.sum(axis=1), 1)
    np.testing.assert_allclose(problem.proxy_rewards.sum(axis=1), 1)
    assert (problem.true_rewards.sum(axis=1) == 1).all()
    # A product of three vote shares of 20 trees is a multiple of 1 / 8000.
    np.testing.assert_allclose(problem.policy * 8000, np.round(problem.policy * 8000), atol=1e-8)
    again = sel.digit_triples(7, np.random.default_rng(0), n_trees=20, n_training=100, n_reward_models=3)
    np.testing.assert_array_equal(problem.proxy_rewards, again.proxy_rewards)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: problem_of([0.5, 0.6], [1, 0], [1, 0]), "policy's sum over the answers is 1.1 but must be 1"),
        (lambda: problem_of([0.5, 0.5], [1, 2], [1, 0]), r"true_rewards is 2.0 but must lie in \[0, 1\]"),
        (lambda: problem_of([0.5, 0.5], [1, 0], [np.nan, 0]), r"proxy_rewards\[0\] is nan"),
        (
            lambda: problem_of([0.5, 0.5], [1, 0, 0], [1, 0]),
            r"true_rewards.shape is \(3,\) but must be the policy's \(2,\)",
        ),
        (lambda: TINY.counts(0, 1, np.random.default_rng(0)), "n_samples is 0"),
        (lambda: TINY.regret(np.array([[6]])), "submitted is"),
        (lambda: TINY.regret(np.array([[0.5]])), "submitted is"),
        (lambda: sel.expected_regret(TINY, 5, 0), "k is 0"),
        (lambda: sel.expected_regret(TINY, 5, 1, 1.5), "alpha is 1.5"),
        (lambda: sel.expected_regret(TINY, 0, 1), "n_samples is 0"),
        (lambda: sel.event_failure(sel.digit_triples(1, np.random.default_rng(0), n_trees=2), 5), "single prompt"),
        (lambda: sel.least_favourable(41), "k is 41"),
        (lambda: sel.least_favourable(1, eps_rm_sq=0.5), "eps_rm_sq is 0.5"),
        (lambda: sel.arena(0.5), "eps_rm_sq is 0.5"),
        (lambda: sel.arena(n_decoys=10), "the tail's mass"),
        (lambda: sel.under_scored_optimum(0.1, 0.2), "delta is 0.2"),
    ],
)
def test_bad_input_gets_one_sentence_with_a_cure(call, says):
    with pytest.raises(WorkbenchError, match=says) as refusal:
        call()
    text = str(refusal.value)
    assert " must " in text and "; " in text and text.endswith(".") and "\n" not in text
