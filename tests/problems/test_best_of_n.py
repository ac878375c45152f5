"""Properties of the Best-of-N problems: their truth, their attempts, their names."""

import math
import pickle

import numpy as np
import pytest
from scipy.stats import beta, binom, kstest

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.problems.best_of_n import (
    Attempts,
    BestOfN,
    BetaPopulation,
    draw_counts,
    draw_thetas,
    hit_rate,
    noisy_digits,
    solve_tries,
    tries_until,
)


def test_hit_rate_is_its_definition_and_keeps_small_probabilities():
    assert hit_rate([0.0, 0.5, 1.0], 3) == pytest.approx((0 + 0.875 + 1) / 3)
    np.testing.assert_allclose(hit_rate([[0.1, 0.2], [1e-15, 1e-15]], [2, 1000]), [(0.19 + 0.36) / 2, 1e-12])
    np.testing.assert_allclose(hit_rate([0.1, 0.3], [1, 2]), [0.2, 0.35])


def test_tries_until_inverts_hit_rate():
    thetas = np.random.default_rng(0).beta(0.7, 4.0, (5, 159))
    np.testing.assert_allclose(hit_rate(thetas, tries_until(thetas, 0.9)), 0.9, atol=1e-9)
    assert tries_until([0.0, 1.0], 0.4) == pytest.approx(1.0)
    assert tries_until([0.0, 1.0], 0.6) == np.inf
    assert solve_tries(lambda n: -0.5 * np.log(n), 0.9) == pytest.approx(100)


def test_truth_of_fixed_queries_is_theirs_and_of_a_population_its_own():
    problem = BestOfN((0.0, 0.01, 0.5), 100)
    assert problem.truth == pytest.approx(np.mean([0, 1 - 0.99**100, 1.0]))
    many = BestOfN.from_beta(0.4, 4.0, 200_000, 50)
    # The SD of one query's 1 - (1 - theta)^50 is below 0.5, so the mean's is below 0.0012: 6 of those.
    assert many.truth == pytest.approx(BetaPopulation(0.4, 4.0, 10, 50).truth, abs=0.007)
    assert (problem.about, BetaPopulation().about) == ("queries", "population")


def test_thetas_follow_the_beta_to_its_very_tail():
    thetas = draw_thetas(0.2, 1.5, 5000, wb.Stream.of(3))
    assert kstest(thetas, beta(0.2, 1.5).cdf).pvalue > 1e-6
    assert thetas.min() > 0 and np.array_equal(thetas[:10], draw_thetas(0.2, 1.5, 10, wb.Stream.of(3)))


def test_attempts_succeed_as_often_as_theta_says_whatever_the_batches():
    problem = BestOfN((0.05, 0.5, 0.93), 10)
    stream, n = wb.Stream.of(1, problem.name), 30_000
    queries = np.arange(n) % 3
    hits = problem.attempt(queries, stream)
    for query, theta in enumerate(problem.thetas):
        low, high = binom.ppf([1e-7, 1 - 1e-7], n // 3, theta)
        assert low <= hits[queries == query].sum() <= high
    parts = [problem.attempt(queries[i : i + 700], stream.at(i)) for i in range(0, n, 700)]
    assert np.array_equal(np.concatenate(parts), hits)


def test_a_population_draws_new_queries_for_each_seed_and_keeps_them_within_a_run():
    problem = BetaPopulation(0.5, 0.5, n_queries=4, n_tries=10)
    queries = np.repeat(np.arange(4), 3000)

    def shares(seed, first=0):
        hits = problem.attempt(queries, wb.Stream.of(seed, problem.name).at(first))
        return hits.reshape(4, -1).mean(axis=1)

    # Two shares of 3,000 attempts at one theta differ by less than 0.08 but with probability 1e-8.
    assert np.abs(shares(0) - shares(0, first=10**6)).max() < 0.08
    assert np.abs(shares(0) - shares(1)).max() > 0.08


def test_attempts_by_a_function_are_a_problem_and_are_checked():
    problem = Attempts(lambda queries, stream: stream.uniforms(len(queries))[:, 0] < 0.1 * queries, 5, "lambda")
    assert problem.truth is None and problem.about == "queries" and "lambda" in problem.name
    hits = problem.attempt(np.array([0, 4, 2]), wb.Stream.of(0))
    assert hits.shape == (3,) and hits.dtype == bool and not hits[0]
    wrong = Attempts(lambda queries, stream: queries * 0.5, 5, "halves")
    with pytest.raises(WorkbenchError, match="halves returned float64"):
        wrong.attempt(np.arange(5), wb.Stream.of(0))


def test_names_tell_problems_apart_and_problems_travel_to_workers():
    problems = [
        BestOfN((0.1, 0.2), 10),
        BestOfN((0.1, 0.2), 20),
        BestOfN((0.1, 0.2 + 1e-12), 10),
        BestOfN.from_beta(0.4, 4.0, 2, 10, seed=0),
        BestOfN.from_beta(0.4, 4.0, 2, 10, seed=1),
        BetaPopulation(0.4, 4.0, 2, 10),
        BetaPopulation(0.4, 4.0, 3, 10),
        BetaPopulation(0.4, 4.0000001, 3, 10),
    ]
    assert len({problem.name for problem in problems}) == len(problems)
    assert len({BestOfN.from_beta(0.4, 4.0, 2, 10).name for _ in range(2)}) == 1
    for problem in problems:
        assert pickle.loads(pickle.dumps(problem)) == problem


def test_draw_counts_has_the_shares_and_budgets_it_was_asked_for():
    generator = np.random.default_rng(4)
    thetas, k, n = draw_counts(generator, 2.0, 5.0, 5000, 10, spike=0.3, uneven=True)
    low, high = binom.ppf([1e-7, 1 - 1e-7], 5000, 0.3)
    assert low <= (thetas == 0).sum() <= high and (k[thetas == 0] == 0).all()
    assert (n.min(), n.max()) == (1, 20) and (k <= n).all()
    assert kstest(thetas[thetas > 0], beta(2.0, 5.0).cdf).pvalue > 1e-6
    thetas, k, n = draw_counts(generator, 2.0, 5.0, 30, 40, repeats=7)
    assert thetas.shape == k.shape == n.shape == (7, 30) and (n == 40).all()


def test_noisy_digits_are_what_noise_on_pixels_gives():
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    counts = noisy_digits(np.random.default_rng(2), 200, n_blocks=20, n_queries=12)
    assert counts.shape == (20, 12)
    images, labels = load_digits(return_X_y=True)
    generator = np.random.default_rng(2)
    order = generator.permutation(len(labels))
    images, labels = images[order] / 16, labels[order]
    model = LogisticRegression(max_iter=1000).fit(images[:1000], labels[:1000])
    right = 1000 + np.flatnonzero(model.predict(images[1000:]) == labels[1000:])[:12]
    for column, query in enumerate(right):
        noise = generator.normal(0, 0.25, (4000, 64))
        direct = np.mean(model.predict(images[query] + noise) != labels[query])
        ours = counts[:, column].mean() / 200
        # Twelve comparisons of two shares of 4,000 attempts; 5.5 standard errors are 4e-8 each.
        assert abs(direct - ours) <= 5.5 * np.sqrt((ours * (1 - ours) + 1e-4) * 2 / 4000)


@pytest.mark.parametrize(
    "call, start",
    [
        (lambda: BestOfN((), 10), "thetas is 'empty'"),
        (lambda: BestOfN((0.1, 1.2), 10), r"thetas\[1\] is 1\.2"),
        (lambda: BestOfN((0.1, -0.2), 10), r"thetas\[1\] is -0\.2"),
        (lambda: BestOfN((0.1, math.nan), 10), r"thetas\[1\] is nan"),
        (lambda: BestOfN(((0.1,), (0.2,)), 10), "the shape of thetas"),
        (lambda: BestOfN((0.1,), 0), "n_tries is 0"),
        (lambda: BestOfN((0.1,), 2.5), "n_tries is 2.5"),
        (lambda: BestOfN.from_beta(0, 4, 10), "a is 0"),
        (lambda: BestOfN.from_beta(0.4, math.nan, 10), "b is nan"),
        (lambda: BestOfN.from_beta(0.4, 4, 0), "n_queries is 0"),
        (lambda: BetaPopulation(a=-1.0), "a is -1"),
        (lambda: BetaPopulation(n_queries=0), "n_queries is 0"),
        (lambda: BetaPopulation(n_tries=0), "n_tries is 0"),
        (lambda: Attempts("no function", 5, "x"), "function is 'no function'"),
        (lambda: Attempts(print, 5, "x", truth=1.5), "truth is 1.5"),
        (lambda: hit_rate([0.1], 0.5), "n_tries is 0.5"),
        (lambda: tries_until([0.1], 1.0), "target is 1"),
        (lambda: draw_counts(np.random.default_rng(0), 0.4, 4, spike=1.5), "spike is 1.5"),
        (lambda: draw_counts(np.random.default_rng(0), 0.4, 4, n=0), "n is 0"),
        (lambda: noisy_digits(np.random.default_rng(0), 0), "n_attempts is 0"),
        (lambda: noisy_digits(np.random.default_rng(0), 10, noise=0), "noise is 0"),
        (lambda: noisy_digits(np.random.default_rng(0), 10, n_queries=5000), "n_queries is 5000"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(call, start):
    with pytest.raises(WorkbenchError, match=start) as refusal:
        call()
    text = str(refusal.value)
    assert "; " in text and text.endswith(".")
