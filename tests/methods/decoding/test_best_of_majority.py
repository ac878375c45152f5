"""Best-of-majority and its rivals against brute force, exact laws and the inequalities of the theory."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.errors import WorkbenchError
from workbench.methods.decoding import best_of_majority as bom
from workbench.problems import selection

ANSWERS = ["a", "b", "a", "c", "b", "a", "d", "a", "b", "c"]
REWARDS = [0.1, 0.5, 0.3, 0.9, 0.7, 0.2, 1.0, 0.2, 0.3, 0.7]  # means: a .2, b .5, c .8, d 1


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def as_set(row: np.ndarray) -> set[int]:
    return set(row[row >= 0].tolist())


tables = st.lists(st.integers(0, 5), min_size=1, max_size=7).filter(any)
rewards_of = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


# selection on raw answers


def test_select_is_the_algorithm_on_an_example():
    picked = bom.select(ANSWERS, REWARDS, k=2, alpha=0.2)
    assert picked.answers == ("c", "b")
    assert picked.frequencies == (0.2, 0.3)
    assert picked.rewards == pytest.approx((0.8, 0.5))
    assert picked.padded == (False, False) and not picked.fallback
    assert bom.select(ANSWERS, REWARDS, k=2, alpha=0).answers == ("d", "c"), "alpha = 0 is best-of-N"
    assert bom.select(ANSWERS, REWARDS, k=2, alpha=0.1).answers == ("d", "c"), "alpha = 1 / N keeps everything"
    assert bom.select(ANSWERS, REWARDS, k=1, alpha=0.31).answers == ("a",)


def test_a_class_is_scored_by_its_mean_or_by_its_maximum():
    answers, scores = ["x", "x", "x", "y", "y"], [0.9, 0.1, 0.2, 0.5, 0.6]
    assert bom.select(answers, scores, 1, 0.2).answers == ("y",)
    assert bom.select(answers, scores, 1, 0.2, aggregate="max").answers == ("x",)


def test_frequencies_are_those_of_equivalent_answers():
    answers = ["42", "42.0", " $42$ ", "\\boxed{42}.", "7", "8"]
    picked = bom.select(answers, [0.5] * 4 + [0.9, 0.9], k=1, alpha=0.5)
    assert picked.answers == ("42",) and picked.frequencies == (pytest.approx(4 / 6),) and not picked.fallback
    raw = bom.select(answers, [0.5] * 4 + [0.9, 0.9], k=1, alpha=0.5, key=lambda answer: answer)
    assert raw.fallback and raw.frequencies == (pytest.approx(1 / 6),)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.5", "1/2"),
        ("1,000", 1000),
        ("-3", "-3.0"),
        ("Yes.", "yes"),
        ("$x + 1$", "x  + 1"),
        ("2 / 4", 0.5),
        (" B ", "b"),
    ],
)
def test_equivalent_answers_have_one_class(one, other):
    assert bom.canonicalise(one) == bom.canonicalise(other) is not None


@pytest.mark.parametrize(("one", "other"), [("1,2", "12"), ("12", "1 2"), ("1/0", "1"), ("x", "y"), ("0.1", "0.10001")])
def test_different_answers_have_different_classes(one, other):
    assert bom.canonicalise(one) != bom.canonicalise(other)


@pytest.mark.parametrize("nothing", [None, "", "  ", "$$", "."])
def test_no_answer_has_no_class(nothing):
    assert bom.canonicalise(nothing) is None


def test_samples_without_an_answer_count_in_n_and_are_not_submitted():
    answers, scores = ["a", "a", None, None, None, "b"], [0.1, 0.1, 0.9, 0.9, 0.9, 0.2]
    picked = bom.select(answers, scores, k=3, alpha=0.3)
    assert picked.answers == ("a",) and picked.frequencies == (pytest.approx(1 / 3),)
    assert bom.select(answers, scores, k=3, alpha=0.4).fallback


def test_an_empty_filter_falls_back_to_the_most_frequent_and_says_so():
    picked = bom.select(ANSWERS, REWARDS, k=3, alpha=0.5)
    assert picked.fallback and picked.answers == ("a",) and picked.padded == (False,)


def test_fewer_survivors_than_places_are_padded_only_when_asked_and_marked():
    assert bom.select(ANSWERS, REWARDS, k=3, alpha=0.3).answers == ("b", "a")
    padded = bom.select(ANSWERS, REWARDS, k=4, alpha=0.3, pad=True)
    assert padded.answers == ("b", "a", "c", "d") and padded.padded == (False, False, True, True)
    fallen = bom.select(ANSWERS, REWARDS, k=3, alpha=0.5, pad=True)
    assert fallen.answers == ("a", "b", "c") and fallen.padded == (False, True, True) and fallen.fallback
    assert len(bom.select(ANSWERS, REWARDS, k=9, alpha=0.3, pad=True).answers) == 4


def test_ties_are_broken_at_random_by_the_seed():
    answers, scores = list("abcd") * 5, [0.5] * 20
    first = [bom.select(answers, scores, 1, 0.1, seed=seed).answers[0] for seed in range(400)]
    # 400 draws out of 4: each count has mean 100 and standard deviation 8.7; 55..145 is 5.2 of them, 2e-7 two-sided.
    assert all(55 < first.count(letter) < 145 for letter in "abcd")
    again = [bom.select(answers, scores, 1, 0.1, seed=seed).answers[0] for seed in range(400)]
    assert first == again


def test_tabulate_equals_counting_by_hand():
    labels = np.array([[0, 2, 2, -1], [1, 1, 1, 0]])
    scores = np.array([[0.5, 0.1, 0.3, 9.0], [0.2, 0.4, -0.9, 0.7]])
    counts, means = bom.tabulate(labels, scores, 4)
    np.testing.assert_array_equal(counts, [[1, 0, 2, 0], [1, 3, 0, 0]])
    np.testing.assert_allclose(means, [[0.5, 0, 0.2, 0], [0.7, -0.1, 0, 0]])
    _, largest = bom.tabulate(labels, scores, 4, aggregate="max")
    np.testing.assert_allclose(largest, [[0.5, 0, 0.3, 0], [0.7, 0.4, 0, 0]])
    one, _ = bom.tabulate(labels[0], scores[0], 4)
    np.testing.assert_array_equal(one, counts[0])


# the rules on tables


@settings(max_examples=150, deadline=None)
@given(counts=tables, data=st.data(), k=st.integers(1, 8), alpha=st.sampled_from([0, 0.1, 0.25, 1 / 3, 0.5, 1]))
def test_every_rule_takes_the_k_best_of_what_it_may(counts, data, k, alpha):
    scores = np.array(data.draw(st.lists(rewards_of, min_size=len(counts), max_size=len(counts))))
    counts = np.array(counts)
    drawn = counts > 0
    passes = drawn & (counts / counts.sum() >= alpha)
    cases = [
        (bom.majority_voting(counts, k, rng=rng()), counts, drawn),
        (bom.weighted_majority(counts, scores, k, rng=rng()), counts * scores, drawn),
        (bom.best_of_n(counts, scores, k, rng=rng()), scores, drawn),
        (bom.soft_best_of_n(counts, scores, k, 1e-6, rng=rng()), scores, drawn),
        (bom.best_of_majority(counts, scores, k, 0.0, rng=rng()), scores, drawn),
    ]
    if passes.any():
        cases.append((bom.best_of_majority(counts, scores, k, alpha, rng=rng()), scores, passes))
    for submitted, value, eligible in cases:
        size = min(k, int(eligible.sum()))
        assert submitted.shape == (k,) and (submitted[size:] == -1).all()
        chosen = submitted[:size]
        assert len(as_set(chosen)) == size and eligible[chosen].all()
        np.testing.assert_array_equal(value[chosen], np.sort(value[eligible])[::-1][:size])


def test_many_tables_are_each_table():
    draws = rng(3).multinomial(30, [0.3, 0.25, 0.2, 0.15, 0.1], size=(4, 6))
    scores = rng(4).random((4, 1, 5))
    for rule in (
        lambda c, r: bom.majority_voting(c, 3, rng=rng()),
        lambda c, r: bom.best_of_n(c, r, 3, rng=rng()),
        lambda c, r: bom.weighted_majority(c, r, 3, rng=rng()),
        lambda c, r: bom.best_of_majority(c, r, 3, 0.18, rng=rng()),
        lambda c, r: bom.best_of_majority(c, r, 3, 0.18, rng=rng(), pad=True),
    ):
        # A tie may fall differently, so counts are made distinct first.
        counts = draws * 5 + np.arange(5)
        together = rule(counts, scores)
        assert together.shape == (4, 6, 3)
        for i in range(4):
            for j in range(6):
                np.testing.assert_array_equal(together[i, j], rule(counts[i, j], scores[i, 0]))


def test_the_first_j_places_are_what_the_rule_submits_for_j():
    counts, scores = rng(5).integers(1, 30, size=20), rng(6).random(20)
    for rule in (
        lambda k: bom.majority_voting(np.argsort(counts), k, rng=rng()),
        lambda k: bom.best_of_n(counts, scores, k, rng=rng()),
        lambda k: bom.best_of_majority(counts, scores, k, 0.05, rng=rng()),
    ):
        longest = rule(10)
        for k in range(1, 10):
            np.testing.assert_array_equal(rule(k), longest[:k])


def test_tied_answers_are_submitted_equally_often_wherever_they_stand():
    counts = np.tile([3, 1, 3, 3, 1, 3], (6000, 1))
    for submitted in (
        bom.majority_voting(counts, 2, rng=rng(7)),
        bom.best_of_n(counts, np.array([1, 0, 1, 1, 0, 1]), 2, rng=rng(8)),
        bom.best_of_majority(counts, np.array([1, 1, 1, 1, 1, 1]), 2, 0.2, rng=rng(9)),
    ):
        often = np.bincount(submitted.ravel(), minlength=6)
        assert often[[1, 4]].sum() == 0
        # Each of four is among the two with chance 1/2: 6000 fair coins, 3000 +- 5.2 x 38.7; 12 of them, 3e-6 in all.
        assert (np.abs(often[[0, 2, 3, 5]] - 3000) < 202).all()


def test_soft_best_of_n_draws_by_the_softmax_over_samples():
    counts, scores, temperature = np.array([5, 2, 0, 1]), np.array([0.0, 0.5, 9.0, 1.0]), 0.7
    weights = counts * np.exp(scores / temperature)
    chances = weights / weights.sum()
    submitted = bom.soft_best_of_n(np.tile(counts, (40_000, 1)), scores, 2, temperature, rng=rng(10))
    first = np.bincount(submitted[:, 0], minlength=4)
    assert first[2] == 0
    assert stats.chisquare(first[[0, 1, 3]], 40_000 * chances[[0, 1, 3]]).pvalue > 1e-6
    pair = chances[0] * chances[1] / (1 - chances[0])  # then the second, without replacement
    seen = ((submitted == [0, 1]).all(axis=1)).mean()
    assert seen == pytest.approx(pair, abs=5 * math.sqrt(pair * (1 - pair) / 40_000))


def test_the_filter_reads_alpha_as_typed():
    for n, alpha, count in ((200, 0.015, 3), (1000, 0.007, 7), (100, 0.29, 29), (100, 0.57, 57)):
        assert bom.survivors(np.array([count, n - count]), alpha)[0]
        assert not bom.survivors(np.array([count - 1, n - count + 1]), alpha)[0]
        assert selection.threshold_count(alpha, n) == count


@pytest.mark.parametrize(("n", "k", "alpha"), [(12, 1, 0.0), (12, 2, 0.2), (30, 2, 0.1), (30, 3, 0.0), (60, 1, 0.15)])
def test_simulated_regret_agrees_with_the_exact_one(n, k, alpha):
    policy = np.array([0.2, 0.25, 0.25, 0.1, 0.1, 0.06, 0.04])
    true = np.array([1.0, 0.3, 0.0, 0.6, 0.0, 0.0, 0.2])
    proxy = np.array([0.7, 0.3, 0.7, 0.7, 0.9, 1.0, 0.8])
    problem = selection.SelectionProblem(policy, true, proxy)
    counts = problem.counts(n, 40_000, rng(11))
    regrets = problem.regret(bom.best_of_majority(counts, proxy, k, alpha, rng=rng(12)))
    # The exact value submits nothing where nothing passes, so that case is left to its probability; 5 standard errors.
    fallback = ~bom.survivors(counts, alpha).any(axis=-1)
    regrets = np.where(fallback, true.max(), regrets)
    error = 5 * regrets.std() / math.sqrt(len(regrets)) + 1e-9
    assert regrets.mean() == pytest.approx(selection.expected_regret(problem, n, k, alpha), abs=error)
    empty = selection.empty_filter(problem, n, alpha)
    assert fallback.mean() == pytest.approx(empty, abs=5 * math.sqrt(empty / 40_000) + 1e-3)


# the theory


@settings(max_examples=200, deadline=None)
@given(data=st.data(), size=st.integers(2, 8), k=st.integers(1, 5))
def test_the_key_inequality(data, size, k):
    weights = np.array(data.draw(st.lists(st.integers(1, 9), min_size=size, max_size=size)), dtype=float)
    true, proxy = (np.array(data.draw(st.lists(rewards_of, min_size=size, max_size=size))) for _ in range(2))
    policy = weights / weights.sum()
    errors = np.abs(proxy - true)
    eps_rm_sq = float(policy @ errors**2)
    for chosen in combinations(range(size), min(k, size)):
        chosen = list(chosen)
        least = policy[chosen].min()
        middle = math.sqrt((errors[chosen] ** 2).mean())
        assert errors[chosen].min() <= middle + 1e-12
        assert middle <= math.sqrt(eps_rm_sq / (least * len(chosen))) + 1e-12


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(2, 6), n=st.integers(1, 400), k=st.integers(1, 4))
def test_expected_regret_is_within_the_bound_on_any_problem(data, size, n, k):
    weights = np.array(data.draw(st.lists(st.integers(1, 20), min_size=size, max_size=size)), dtype=float)
    true, proxy = (np.array(data.draw(st.lists(rewards_of, min_size=size, max_size=size))) for _ in range(2))
    problem = selection.SelectionProblem(weights / weights.sum(), true, proxy)
    coverage = float(problem.coverage)
    failure = selection.event_failure(problem, n)
    bound = bom.regret_bound(float(problem.eps_opt), float(problem.eps_rm_sq), coverage, k, failure)
    assert selection.expected_regret(problem, n, k, bom.theory_alpha(coverage)) <= bound + 1e-9
    assert failure <= bom.failure_bound(coverage, n) + 1e-9


@pytest.mark.parametrize("n", [500, 2000, 5000, 20_000])
@pytest.mark.parametrize("problem", [selection.arena(), selection.least_favourable(8)], ids=["arena", "family"])
def test_the_closed_form_bounds_the_events_probability(problem, n):
    assert selection.event_failure(problem, n) <= bom.failure_bound(float(problem.coverage), n) + 1e-12


def test_values_of_the_theory():
    assert bom.theory_alpha(20) == 0.0375
    assert bom.practice_alpha(100) == 0.015 and bom.practice_alpha(2000) == 0.005
    assert bom.samples_needed(20, 5e-4, 1) == pytest.approx(3391, abs=1)
    assert bom.regret_bound(0.1, 0.002, 80, 4, 0.05) == pytest.approx(0.15 + 2 * math.sqrt(0.04))


def test_majority_voting_and_best_of_n_fail_where_best_of_majority_does_not():
    problem = selection.arena(0.02)
    counts = problem.counts(2000, 200, rng(13))
    regret = {
        "mv": problem.regret(bom.majority_voting(counts, 3, rng=rng())).mean(),
        "bon": problem.regret(bom.best_of_n(counts, problem.proxy_rewards, 3, rng=rng())).mean(),
        "bom": problem.regret(bom.best_of_majority(counts, problem.proxy_rewards, 3, 0.0375, rng=rng())).mean(),
    }
    # Exact: 1.00, 1.00 and 0.003 of 0.95; 200 binomial repeats reach 0.1 with a chance far below 1e-6.
    assert regret["mv"] > 0.85 and regret["bon"] > 0.85 and regret["bom"] < 0.1


# Pass@k


@pytest.mark.parametrize("k", [1, 2, 5])
def test_unbiased_pass_at_k_is_the_chance_over_all_choices_and_unbiased(k):
    n = 7
    for c in range(n + 1):
        ways = [any(i < c for i in chosen) for chosen in combinations(range(n), k)]
        assert float(bom.unbiased_pass_at_k(n, c, k)) == pytest.approx(sum(ways) / len(ways), abs=1e-12)
    p = Fraction(3, 10)
    law = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(float(w) * float(bom.unbiased_pass_at_k(n, c, k)) for c, w in enumerate(law))
    assert mean == pytest.approx(1 - float((1 - p) ** k), abs=1e-12)


def test_selected_pass_is_not_the_unbiased_one():
    counts, correct = np.array([6, 3, 1]), np.array([False, True, False])
    submitted = bom.majority_voting(np.tile(counts, (2, 1)), 2, rng=rng())
    np.testing.assert_array_equal(bom.selected_pass(submitted, correct), [True, True])
    assert float(bom.unbiased_pass_at_k(10, 3, 2)) == pytest.approx(8 / 15)
    assert not bom.selected_pass(np.array([-1, -1]), np.array([True, True, True]))


# refusals

COUNTS = np.array([2, 3, 0])
SCORES = np.array([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bom.select(ANSWERS, REWARDS, 1, 1.2), "alpha is 1.2"),
        (lambda: bom.select(ANSWERS, REWARDS, 1, -0.1), "alpha is -0.1"),
        (lambda: bom.select(ANSWERS, REWARDS, 1, math.nan), "alpha is nan"),
        (lambda: bom.select(ANSWERS, REWARDS, 0, 0.1), "k is 0"),
        (lambda: bom.select(ANSWERS, REWARDS, 1.5, 0.1), "k is 1.5"),
        (lambda: bom.select([], [], 1, 0.1), r"len\(answers\) is 0"),
        (lambda: bom.select(ANSWERS, REWARDS[:-1], 1, 0.1), r"rewards.shape is \(9,\) but must be \(10,\)"),
        (lambda: bom.select(ANSWERS, [*REWARDS[:-1], math.nan], 1, 0.1), r"rewards\[9\] is nan"),
        (lambda: bom.select([None, ""], [0, 0], 1, 0.1), "the number of answers with a class is 0"),
        (lambda: bom.select(ANSWERS, REWARDS, 1, 0.1, aggregate="median"), "aggregate is 'median'"),
        (lambda: bom.majority_voting(COUNTS, 0, rng=rng()), "k is 0"),
        (lambda: bom.majority_voting(np.array([0.5, 0.5]), 1, rng=rng()), "counts.dtype is float64"),
        (lambda: bom.majority_voting(np.array([2, -1]), 1, rng=rng()), "counts is -1"),
        (lambda: bom.majority_voting(np.array([[1, 0], [0, 0]]), 1, rng=rng()), "the number of samples is 0"),
        (lambda: bom.best_of_n(COUNTS, SCORES[:2], 1, rng=rng()), r"rewards.shape is \(2,\)"),
        (lambda: bom.best_of_n(np.tile(COUNTS, (4, 1)), np.ones((3, 3)), 1, rng=rng()), r"rewards.shape is \(3, 3\)"),
        (lambda: bom.best_of_n(COUNTS, np.ones((2, 3)), 1, rng=rng()), r"rewards.shape is \(2, 3\)"),
        (lambda: bom.best_of_n(COUNTS, np.array([0, np.inf, 0]), 1, rng=rng()), r"rewards\[1\] is inf"),
        (lambda: bom.weighted_majority(COUNTS, -SCORES, 1, rng=rng()), "rewards is -0.2"),
        (lambda: bom.soft_best_of_n(COUNTS, SCORES, 1, 0, rng=rng()), "temperature is 0"),
        (lambda: bom.best_of_majority(COUNTS, SCORES, 1, 2, rng=rng()), "alpha is 2"),
        (lambda: bom.survivors(COUNTS, 0.1, n_samples=4), "n_samples is 4"),
        (lambda: bom.tabulate(np.array([0, 3]), np.zeros(2), 3), "labels is 3"),
        (lambda: bom.tabulate(np.array([0, 1]), np.zeros(3), 3), r"labels.shape is \(2,\)"),
        (lambda: bom.tabulate(np.array([0.0, 1.0]), np.zeros(2), 3), "labels.dtype is float64"),
        (lambda: bom.theory_alpha(0.5), "coverage is 0.5"),
        (lambda: bom.practice_alpha(0), "n_samples is 0"),
        (lambda: bom.regret_bound(0, 2, 20, 1, 0), "eps_rm_sq is 2"),
        (lambda: bom.regret_bound(0, 0.1, 20, 1, 1.5), "failure is 1.5"),
        (lambda: bom.samples_needed(20, 0, 1), "eps_rm_sq is 0"),
        (lambda: bom.unbiased_pass_at_k(5, 3, 6), "k is 6"),
        (lambda: bom.unbiased_pass_at_k(5, 7, 1), "n_right is 7"),
    ],
)
def test_bad_input_gets_one_sentence_with_a_cure(call, says):
    with pytest.raises(WorkbenchError, match=says) as refusal:
        call()
    text = str(refusal.value)
    assert " must " in text and "; " in text and text.endswith(".") and "\n" not in text
