"""Gaussian tails: the truth, the law of plain and shifted draws, and weights that are ratios of scipy's densities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.lm_tail_risk import Proposal
from workbench.problems.analytic import GaussianTail

N = 40_000


def bernstein(variance, largest, n=N):
    """How far the mean of n independent terms of [0, largest] strays but with probability below 1e-6."""
    odds = math.log(2e6)
    linear = largest * odds / 3
    return (linear + math.sqrt(linear**2 + 2 * n * variance * odds)) / n


@pytest.mark.parametrize("threshold", [0.0, 1.5, 3, 8.0, 37.0])
def test_the_truth_is_scipys_tail(threshold):
    assert GaussianTail(threshold).truth == pytest.approx(stats.norm.sf(threshold), rel=1e-12)
    assert GaussianTail(threshold, two_sided=True).truth == pytest.approx(2 * stats.norm.sf(threshold), rel=1e-12)
    assert 0 < GaussianTail(threshold).truth <= 0.5


@pytest.mark.parametrize("two_sided", [False, True])
def test_plain_draws_hit_with_the_true_rate(two_sided):
    problem = GaussianTail(1.0, two_sided)
    hit = problem.sample(N, Stream.of(0, "plain"))["hit"]
    assert hit.dtype == bool and abs(hit.mean() - problem.truth) < bernstein(problem.truth, 1.0)


def shifted(problem, strength, mixture, switch, n=N):
    """Draws z of a pilot, read off its log-probs under two shifts, with its batch."""
    batch = problem.pilot_from(
        strength, np.full(n, mixture), np.full(n, switch), n, Stream.of(1, "shifted"), score_under=(1.0, strength)
    )
    z = (batch["log_q"][:, 0] - batch["log_p"])[:, 0] + 0.5  # log N(z; 1) - log N(z; 0) = z - 1/2
    return z, batch


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("strength, mixture, switch", [(2.0, 0.0, 1), (2.0, 0.3, 1), (-1.5, 0.6, 1), (3.0, 0.3, 0)])
def test_shifted_draws_have_the_law_and_the_weights_that_they_should(two_sided, strength, mixture, switch):
    problem = GaussianTail(1.0, two_sided)
    z, batch = shifted(problem, strength, mixture, switch)
    share = 1.0 if switch == 0 else mixture
    # A Kolmogorov-Smirnov p-value is uniform under the null, so this fails by chance once in a million runs.
    law = lambda x: (1 - share) * stats.norm.cdf(x - strength) + share * stats.norm.cdf(x)  # noqa: E731
    assert stats.kstest(z, law).pvalue > 1e-6
    assert np.array_equal(batch["hit"], (np.abs(z) if two_sided else z) > 1.0)
    np.testing.assert_allclose(batch["log_p"][:, 0], stats.norm.logpdf(z), atol=1e-9)
    np.testing.assert_allclose(batch["log_q"][:, 1, 0], stats.norm.logpdf(z, strength), atol=1e-9)
    density = (1 - share) * stats.norm.pdf(z, strength) + share * stats.norm.pdf(z)
    np.testing.assert_allclose(batch["log_weight"], stats.norm.logpdf(z) - np.log(density), atol=1e-9)
    once = problem.sample_from(Proposal(strength, mixture, switch), N, Stream.of(1, "shifted"))
    assert np.array_equal(once["hit"], batch["hit"]) and np.array_equal(once["log_weight"], batch["log_weight"])
    if switch == 0:
        assert not batch["log_weight"].any()


@pytest.mark.parametrize("two_sided", [False, True])
def test_weighted_draws_are_unbiased(two_sided):
    problem, proposal = GaussianTail(2.0, two_sided), Proposal(2.0, 0.2, None)
    q = lambda x: 0.8 * stats.norm.pdf(x, 2.0) + 0.2 * stats.norm.pdf(x)  # noqa: E731
    sides = [(2, 12)] + [(-12, -2)] * two_sided
    second = sum(integrate.quad(lambda x: stats.norm.pdf(x) ** 2 / q(x), *side)[0] for side in sides)
    batch = problem.sample_from(proposal, N, Stream.of(2, "unbiased"))
    allowed = bernstein(second - problem.truth**2, 5.0)
    assert allowed < 0.25 * problem.truth
    assert abs((np.exp(batch["log_weight"]) * batch["hit"]).mean() - problem.truth) < allowed


def test_a_pilot_of_many_settings_is_each_of_them_at_its_own_index():
    problem, stream = GaussianTail(1.0), Stream.of(3, "rows")
    mixture, switch = np.array([0.0, 0.2, 1.0, 0.5]), np.array([1, 0, 1, 1])
    together = problem.pilot_from(2.0, mixture, switch, 4, stream, score_under=(2.0, 3.0, 4.0))
    assert together["log_p"].shape == (4, 1) and together["log_q"].shape == (4, 3, 1)
    for i in range(4):
        alone = problem.pilot_from(2.0, mixture[[i]], switch[[i]], 1, stream.at(i), score_under=(2.0, 3.0, 4.0))
        assert all(np.array_equal(alone[name][0], together[name][i]) for name in together)


def test_each_question_has_its_name():
    assert len({GaussianTail(t, s).name for t in (1.5, 2.0) for s in (False, True)}) == 4


@pytest.mark.parametrize("threshold", [-1.0, 38, math.nan, math.inf, "3", None, True])
def test_a_bad_threshold_is_refused(threshold):
    with pytest.raises(
        WorkbenchError, match=r"threshold is .* but must be a finite number .*; choose .* 3\.0"
    ) as refusal:
        GaussianTail(threshold)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)
