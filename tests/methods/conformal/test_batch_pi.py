"""Batch predictive inference against enumeration, exact rationals, scipy, and exhaustive splits of small pools."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, combinations_with_replacement
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.errors import WorkbenchError
from workbench.methods.conformal import batch_pi as bp

LEVELS = (0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.7, Fraction(1, 3))


def multisets(n: int, m: int) -> list[tuple[int, ...]]:
    return list(combinations_with_replacement(range(1, n + 2), m))


def smallest_quantile(counts: dict[int, int], level: Fraction) -> int:
    """The smallest value whose exact cumulative share reaches 1 - level."""
    total, seen = sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if Fraction(seen, total) >= 1 - level:
            return value
    raise AssertionError


def tally(values) -> dict[int, int]:
    counts: dict[int, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def typed(alpha: float | Fraction) -> Fraction:
    return alpha if isinstance(alpha, Fraction) else Fraction(str(alpha))


def every_split(pool: list[float], m: int):
    """All ways to choose which m scores of the pool are the unseen batch: the exact law given the pool."""
    for batch in combinations(range(len(pool)), m):
        chosen = set(batch)
        yield np.array([s for i, s in enumerate(pool) if i not in chosen]), np.sort([pool[i] for i in batch])


# rank laws


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (4, 3), (5, 1), (6, 4)])
def test_every_interleaving_gives_its_own_multiset_of_ranks(n, m):
    ranks = set()
    for batch in combinations(range(n + m), m):
        calibration = [i for i in range(n + m) if i not in batch]
        ranks.add(tuple(sorted(1 + sum(c < t for c in calibration) for t in batch)))
    assert ranks == set(multisets(n, m))
    assert len(ranks) == comb(n + m, m)


def test_rank_law_equals_enumeration():
    for n in range(1, 7):
        for m in range(1, 5):
            law = multisets(n, m)
            for zeta in range(1, m + 1):
                for k in range(n + 2):
                    exact = Fraction(sum(r[zeta - 1] <= k for r in law), len(law))
                    assert bp.rank_cdf(k, n, m, zeta) == exact


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (40, 10), (200, 100), (1000, 100), (30, 300)])
def test_rank_law_equals_scipy_betabinom(n, m):
    for zeta in {1, (m + 1) // 2, max(1, m - 1), m}:
        ours = [float(bp.rank_cdf(k, n, m, zeta)) for k in range(1, n + 2)]
        peer = stats.betabinom(n, zeta, m - zeta + 1).cdf(np.arange(n + 1))
        np.testing.assert_allclose(ours, peer, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 4), (30, 7)])
def test_coverage_law_agrees_with_the_rank_law(n, m):
    for rank in range(n + 2):
        law = bp.coverage_law(rank, n, m)
        assert law.sum() == pytest.approx(1, abs=1e-12)
        for zeta in range(1, m + 1):
            assert law[zeta:].sum() == pytest.approx(float(bp.rank_cdf(rank, n, m, zeta)), abs=1e-12)


def test_quantile_rank_equals_exact_rationals_on_the_grid():
    for n in (1, 2, 3, 5, 9, 14, 20):
        for m in (1, 2, 3, 4, 7):
            for zeta in range(1, m + 1):
                counts = {
                    k: comb(k + zeta - 2, zeta - 1) * comb(n + m - k - zeta + 1, m - zeta) for k in range(1, n + 2)
                }
                assert sum(counts.values()) == comb(n + m, m)
                touched = [Fraction(sum(counts[i] for i in range(k, n + 2)), comb(n + m, m)) for k in range(2, n + 2)]
                for alpha in (*LEVELS, *touched):
                    assert bp.quantile_rank(n, m, zeta, alpha) == smallest_quantile(counts, typed(alpha))


@pytest.mark.parametrize(("n", "m", "alpha"), [(7, 3, 0.3), (9, 1, 0.1), (900, 100, 0.1), (3, 7, 0.7), (19, 1, 0.05)])
def test_a_probability_of_exactly_one_minus_alpha_counts_as_reached(n, m, alpha):
    assert bp.rank_cdf(n, n, m, m) == 1 - typed(alpha)
    assert bp.quantile_rank(n, m, m, alpha) == n
    assert bp.quantile_rank(n, m, m, typed(alpha) - Fraction(1, 10**12)) == n + 1


def test_ranks_that_the_paper_and_its_code_give():
    assert [bp.quantile_rank(200, 100, 90, alpha) for alpha in (0.1, 0.05, 0.01)] == [188, 190, 194]
    assert bp.split_conformal_rank(200, 0.1) == 181
    ranks = [bp.quantile_rank(1000, 100, 100 - eta, 0.1) for eta in range(0, 11, 2)]
    assert ranks == [1000, 991, 978, 963, 948, 932]
    assert (bp.rank_sum_quantile(40, 10, 0.1), bp.rank_sum_quantile(40, 10, 0.05)) == (263, 278)


def test_one_test_point_is_split_conformal():
    for n in (1, 9, 10, 19, 57):
        for alpha in (0.05, 0.1, 0.3, 0.7):
            assert bp.quantile_rank(n, 1, 1, alpha) == bp.split_conformal_rank(n, alpha)


@pytest.mark.parametrize(("m", "delta", "zeta"), [(100, 0.1, 90), (10, 0.7, 3), (40, 0.1, 36), (7, 0, 7), (3, 0.99, 1)])
def test_points_to_cover_reads_delta_as_typed(m, delta, zeta):
    assert bp.points_to_cover(m, delta) == zeta


def test_rank_sum_counts_equal_enumeration_and_quantiles_are_exact():
    for n in range(1, 9):
        for m in range(1, 5):
            counts = tally(sum(r) for r in multisets(n, m))
            assert bp.rank_sum_counts(n, m).tolist() == [counts[m + e] for e in range(m * n + 1)]
            for alpha in LEVELS:
                assert bp.rank_sum_quantile(n, m, alpha) == smallest_quantile(counts, typed(alpha))


def test_rank_sum_law_is_the_mann_whitney_law():
    calibration, batch = np.arange(12.0), np.array([0.5, 3.5, 3.6, 8.5, 20.0])
    peer = stats.mannwhitneyu(batch, calibration, alternative="less", method="exact")
    counts = bp.rank_sum_counts(12, 5)
    assert float(Fraction(sum(counts[: int(peer.statistic) + 1]), comb(17, 5))) == pytest.approx(peer.pvalue, abs=1e-12)


def test_rank_sum_counts_do_not_overflow():
    counts = bp.rank_sum_counts(120, 40)
    assert sum(counts) == comb(160, 40) > 2**63
    assert counts.tolist() == counts[::-1].tolist()


def test_joint_probability_equals_enumeration_and_the_papers_formula():
    for n, m in ((1, 2), (4, 3), (6, 4)):
        law = multisets(n, m)
        for z1, z2 in combinations(range(1, m + 1), 2):
            for p in range(n + 2):
                for q in range(p, n + 2):
                    inside = sum(p < r[z1 - 1] and r[z2 - 1] <= q for r in law)
                    formula = sum(
                        comb(a + z1 - 2, z1 - 1)
                        * comb(b - a + z2 - z1 - 1, z2 - z1 - 1)
                        * comb(n + m - b - z2 + 1, m - z2)
                        for a in range(p + 1, q + 1)
                        for b in range(a, q + 1)
                    )
                    assert bp.joint_rank_probability(p, q, n, m, (z1, z2)) == Fraction(inside, len(law))
                    assert inside == formula


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize(
    ("n", "m", "zetas"), [(41, 40, (10, 30)), (200, 40, (10, 30)), (12, 7, (2, 6)), (3, 9, (1, 9))]
)
def test_joint_window_is_the_first_that_is_wide_enough(n, m, zetas, alpha):
    centre = [round(Fraction(n * zeta, m)) for zeta in zetas]
    windows = [(max(centre[0] - t, 0), min(centre[1] + t, n + 1)) for t in range(n + 2)]
    enough = (w for w in windows if bp.joint_rank_probability(*w, n, m, zetas) >= 1 - typed(alpha))
    assert bp.joint_rank_window(n, m, zetas, alpha) == next(enough)


# how much calibration data


@pytest.mark.parametrize("m", [1, 2, 9, 100])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.3, 0.9])
def test_smallest_calibration_size_is_the_first_with_a_finite_bound(m, alpha):
    for zeta in {1, (m + 1) // 2, m}:
        n = bp.smallest_calibration_size(m, zeta, alpha)
        assert bp.quantile_rank(n, m, zeta, alpha) <= n
        if n > 1:
            assert bp.quantile_rank(n - 1, m, zeta, alpha) == n


def test_smallest_sizes_for_a_batch_of_100():
    assert [bp.smallest_calibration_size(100, zeta, 0.1) for zeta in (90, 95, 99, 100)] == [23, 46, 216, 900]
    assert (bp.bonferroni_rank(998, 100, 0.1), bp.bonferroni_rank(999, 100, 0.1)) == (999, 999)


@pytest.mark.parametrize(("n", "m", "zeta"), [(5, 3, 3), (50, 100, 90), (899, 100, 100)])
def test_smallest_alpha_is_reachable_and_the_smallest(n, m, zeta):
    alpha = bp.smallest_alpha(n, m, zeta)
    assert bp.quantile_rank(n, m, zeta, alpha) == n
    assert bp.quantile_rank(n, m, zeta, alpha * Fraction(999, 1000)) == n + 1


# bounds


def test_quantile_bounds_are_order_statistics_or_the_ends_of_the_range():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 31.0))
    q = bp.quantile_rank(30, 5, 4, 0.2)
    assert bp.quantile_bounds(scores, 5, 4, 0.2) == (-math.inf, q)
    assert bp.quantile_bounds(scores, 5, 5, 0.01) == (-math.inf, math.inf)
    assert bp.quantile_bounds(scores, 5, 5, 0.01, score_range=(0, 99)) == (0, 99)
    low, high = bp.quantile_bounds(scores, 5, 3, 0.1, side="two-sided")
    assert bp.quantile_bounds(scores, 5, 3, 0.05, side="lower") == (low, math.inf)
    assert bp.quantile_bounds(scores, 5, 3, 0.05, side="upper") == (-math.inf, high)
    assert low + high == 31


def test_bounds_of_many_sets_are_the_bounds_of_each():
    scores = np.random.default_rng(1).random((3, 4, 17))
    calls = (
        lambda s: bp.quantile_bounds(s, 6, 5, 0.2, side="two-sided"),
        lambda s: bp.two_quantile_bounds(s, 6, (2, 5), 0.2),
        lambda s: bp.mean_bounds(s, 6, 0.2, side="two-sided", score_range=(0, 1)),
    )
    for call in calls:
        together = np.array(call(scores))
        alone = np.array([[call(s) for s in row] for row in scores])
        np.testing.assert_array_equal(together, np.moveaxis(alone, -1, 0))


def test_mean_bound_of_many_sets_is_the_bound_of_each():
    few = np.random.default_rng(5).random((7, 12))
    alone = [bp.mean_bounds(row, 4, 0.1, score_range=(0, 1))[1] for row in few]
    _, high = bp.mean_bounds(np.tile(few, (300, 1, 1)), 4, 0.1, score_range=(0, 1))
    np.testing.assert_array_equal(high, np.tile(alone, (300, 1)))


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("m", range(1, 5))
def test_mean_bound_equals_brute_force(n, m):
    rng = np.random.default_rng([n, m])
    law = np.array(multisets(n, m))
    sums = law.sum(axis=1)
    for draw in (rng.random((4, n)), rng.integers(0, 3, (4, n)) / 4, np.full((1, n), 0.5), rng.normal(size=(4, n))):
        for alpha in (0.05, 0.1, 0.3, 0.5, 0.9):
            q = smallest_quantile(tally(sums.tolist()), typed(alpha))
            for ends in ((draw.min() - 0.5, draw.max() + 0.5), (draw.min(), draw.max() + 1e-9), bp.EVERYWHERE):
                padded = np.concatenate([np.sort(draw), np.full((len(draw), 1), ends[1])], axis=1)
                expected = padded[:, law[sums <= q] - 1].mean(axis=2).max(axis=1)
                low, high = bp.mean_bounds(draw, m, alpha, score_range=ends)
                np.testing.assert_allclose(high, expected, rtol=1e-13)
                assert (low == ends[0]).all()
                mirrored, _ = bp.mean_bounds(-draw, m, alpha, side="lower", score_range=(-ends[1], -ends[0]))
                np.testing.assert_array_equal(mirrored, -high)


# Choosing the batch at random from a fixed pool is exchangeable, so the guarantees must hold exactly over all
# splits of any pool, ties included: no sampling error and no tolerance.
pools = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=4, max_size=9)


@settings(max_examples=60, deadline=None)
@given(pool=pools, m=st.integers(1, 3), alpha=st.sampled_from([0.1, 0.2, 0.3, 0.5]), data=st.data())
def test_guarantees_hold_over_all_splits_of_any_pool(pool, m, alpha, data):
    zeta = data.draw(st.integers(1, m))
    quantile = mean = joint = total = 0
    for calibration, batch in every_split(pool, m):
        total += 1
        low, high = bp.quantile_bounds(calibration, m, zeta, alpha, side="two-sided")
        quantile += low <= batch[zeta - 1] <= high
        low, high = bp.mean_bounds(calibration, m, alpha, side="two-sided", score_range=(0, 1))
        mean += low <= batch.mean() + 1e-12 and batch.mean() - 1e-12 <= high
        if m > 1:
            low, high = bp.two_quantile_bounds(calibration, m, (1, m), alpha)
            joint += low <= batch[0] and batch[-1] <= high
    needed = (1 - typed(alpha)) * total
    assert quantile >= needed
    assert mean >= needed
    assert joint >= needed or m == 1


@pytest.mark.parametrize("side", ["upper", "lower"])
def test_one_sided_coverage_over_all_splits_is_the_rank_law_itself(side):
    pool, m, zeta, alpha = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0, 3.5, 8.0], 3, 2, 0.2
    hits = [
        low <= batch[zeta - 1] <= high
        for calibration, batch in every_split(pool, m)
        for low, high in [bp.quantile_bounds(calibration, m, zeta, alpha, side=side)]
    ]
    q = bp.quantile_rank(6, m, zeta, alpha)
    assert Fraction(sum(hits), len(hits)) == bp.rank_cdf(q, 6, m, zeta)


def test_coverage_in_simulation_is_within_a_hundredth_of_exact():
    # 60 000 repeats: the standard error is at most 0.00204, so 0.01 is 4.9 of them; two-sided chance 1e-6.
    scores = np.random.default_rng(2).normal(size=(60_000, 70))
    for n, m, zeta, alpha in ((50, 20, 18, 0.1), (60, 10, 5, 0.5), (40, 30, 30, 0.4)):
        batch = np.sort(scores[:, n : n + m])
        _, high = bp.quantile_bounds(scores[:, :n], m, zeta, alpha)
        exact = float(bp.rank_cdf(bp.quantile_rank(n, m, zeta, alpha), n, m, zeta))
        assert abs((batch[:, zeta - 1] <= high).mean() - exact) < 0.01
    low, high = bp.two_quantile_bounds(scores[:, :50], 20, (5, 15), 0.1)
    p, q = bp.joint_rank_window(50, 20, (5, 15), 0.1)
    batch = np.sort(scores[:, 50:])
    covered = ((low <= batch[:, 4]) & (batch[:, 14] <= high)).mean()
    assert abs(covered - float(bp.joint_rank_probability(p, q, 50, 20, (5, 15)))) < 0.01


# selection


@settings(max_examples=60, deadline=None)
@given(
    answers=st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), st.booleans()), min_size=4, max_size=9),
    m=st.integers(1, 3),
    alpha=st.sampled_from([0.1, 0.3, 0.5]),
    data=st.data(),
)
def test_false_claims_stay_within_alpha_over_all_splits_of_any_pool(answers, m, alpha, data):
    eta = data.draw(st.integers(0, m - 1))
    prediction, wrong = np.array([a for a, _ in answers]), np.array([w for _, w in answers])
    bad = total = 0
    for batch in combinations(range(len(answers)), m):
        test = np.isin(np.arange(len(answers)), batch)
        threshold = bp.selection_threshold(prediction[~test], wrong[~test], m, eta, alpha)
        bad += (wrong[test] & (prediction[test] > threshold)).sum() > eta
        total += 1
    assert bad <= typed(alpha) * total


def test_selection_with_too_few_scores_claims_nothing_and_with_none_wrong_claims_all():
    confidence = np.linspace(0, 1, 600)
    wrong = np.ones(600, dtype=bool)
    assert bp.selection_threshold(confidence, wrong, 100, 0, 0.1) == math.inf
    assert bp.selection_threshold(confidence, wrong, 100, 2, 0.1) < math.inf
    assert bp.selection_threshold(confidence, ~wrong, 100, 2, 0.1) == -math.inf


# counterfactuals


def test_rejection_sampling_makes_untreated_look_treated():
    rng = np.random.default_rng(3)
    x = rng.random(300_000)
    propensity = 0.1 + 0.7 * x
    treated = rng.random(x.size) < propensity
    kept = bp.rejection_mask(propensity[~treated], 0.8, rng.random((~treated).sum()))
    # Among untreated the mean of odds(e) / odds(0.8) is (E[e] / 4) / E[1 - e] = 0.45 / 4 / 0.55 = 9/44.
    se_share = math.sqrt(9 / 44 * 35 / 44 / kept.size)
    assert abs(kept.mean() - 9 / 44) < 5 * se_share  # two-sided chance 6e-7
    # A Kolmogorov-Smirnov p-value is uniform under the null, so this fails by chance once in a million runs.
    assert stats.ks_2samp(x[~treated][kept], x[treated]).pvalue > 1e-6
    assert stats.ks_2samp(x[~treated], x[treated]).pvalue < 1e-6


# baselines


def test_partition_bound_is_split_conformal_on_batch_values():
    scores = np.random.default_rng(4).random((5, 905))
    bound = bp.partition_bound(scores, 100, 0.1, lambda batch: batch.mean(axis=-1), highest=1.0)
    np.testing.assert_allclose(bound, scores[:, :900].reshape(5, 9, 100).mean(axis=2).max(axis=1))
    assert (bp.partition_bound(scores[:, :899], 100, 0.1, lambda batch: batch.mean(axis=-1), highest=1.0) == 1).all()
    assert bp.partition_bound(scores[0, :50], 100, 0.1, lambda batch: batch.mean(axis=-1)) == math.inf


def test_rank_bound_takes_the_ends_of_the_range():
    assert [bp.rank_bound([3.0, 1.0, 2.0], rank, (0, 9)) for rank in range(5)] == [0, 1, 2, 3, 9]


# refusals

SCORES = np.linspace(0, 1, 20)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bp.quantile_bounds(SCORES, 5, 3, 0), ("alpha is 0", "alpha=0.1")),
        (lambda: bp.quantile_bounds(SCORES, 5, 3, 1.0), ("alpha is 1.0", "alpha=0.1")),
        (lambda: bp.mean_bounds(SCORES, 5, math.nan), ("alpha is nan", "alpha=0.1")),
        (lambda: bp.mean_bounds(SCORES, 5, "0.1"), ("alpha is '0.1'", "alpha=0.1")),
        (lambda: bp.points_to_cover(10, 1.0), ("delta is 1.0", "delta=0.1")),
        (lambda: bp.quantile_bounds([], 5, 3, 0.1), ("calibration_scores is 'empty'", "drop")),
        (lambda: bp.quantile_bounds(0.5, 5, 3, 0.1), ("calibration_scores is 0.5", "pass a list")),
        (lambda: bp.mean_bounds([0.1, math.nan], 5, 0.1), ("calibration_scores[1] is nan", "drop")),
        (lambda: bp.mean_bounds([0.1, math.inf], 5, 0.1), ("calibration_scores[1] is inf", "drop")),
        (lambda: bp.quantile_bounds(SCORES, 5, 0, 0.1), ("zeta is 0", "1 to m")),
        (lambda: bp.quantile_bounds(SCORES, 5, 6, 0.1), ("zeta is 6", "at most 5")),
        (lambda: bp.quantile_rank(20, 5, 2.5, 0.1), ("zeta is 2.5", "whole number")),
        (lambda: bp.quantile_bounds(SCORES, 0, 1, 0.1), ("m is 0", "test points")),
        (lambda: bp.mean_bounds(SCORES, -3, 0.1), ("m is -3", "test points")),
        (lambda: bp.quantile_rank(0, 5, 3, 0.1), ("n is 0", "calibration scores")),
        (lambda: bp.mean_bounds([0.2, 1.4], 5, 0.1, score_range=(0, 1)), ("calibration_scores is 1.4", "widen")),
        (lambda: bp.mean_bounds(SCORES, 5, 0.1, score_range=(1, 0)), ("score_range is (1, 0)", "(0, 1)")),
        (lambda: bp.mean_bounds(SCORES, 5, 0.1, score_range=1), ("score_range is 1", "(0, 1)")),
        (lambda: bp.mean_bounds(SCORES, 5, 0.1, side="up"), ("side is 'up'", "upper, lower, two-sided")),
        (lambda: bp.two_quantile_bounds(SCORES, 5, (4, 2), 0.1), ("zetas is (4, 2)", "increasing")),
        (lambda: bp.two_quantile_bounds(SCORES, 5, (2, 6), 0.1), ("zeta is 6", "at most 5")),
        (lambda: bp.two_quantile_bounds(SCORES, 5, 3, 0.1), ("zetas is 3", "pass e.g.")),
        (lambda: bp.rank_bound(SCORES, 22), ("rank is 22", "n + 1")),
        (lambda: bp.selection_threshold(SCORES, SCORES > 0.5, 5, 5, 0.1), ("eta is 5", "m - 1")),
        (
            lambda: bp.selection_threshold(SCORES, SCORES, 5, 1, 0.1),
            ("calibration_wrong is 'float64 of shape", "labels <= c"),
        ),
        (lambda: bp.rejection_mask([0.2, 0.9], 0.8, [0.1, 0.1]), ("propensity is 0.9", "raise max_propensity")),
        (lambda: bp.rejection_mask([0.2, 0.5], 1.0, [0.1, 0.1]), ("max_propensity is 1.0", "away from 1")),
        (lambda: bp.rejection_mask([0.2, 0.5], 0.8, [0.1, 1.0]), ("uniforms is", "generator.random")),
        (lambda: bp.partition_bound(SCORES, 5, 0.1, lambda b: b.mean(axis=-1) * np.nan), ("statistic", "nan")),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    message = str(refusal.value)
    assert all(part in message for part in says), message
    assert message.endswith(".") and "\n" not in message
