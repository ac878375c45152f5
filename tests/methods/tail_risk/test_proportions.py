"""Intervals for a proportion: equal to the peers', and which of them cover, exactly and under peeking."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import betaln, xlog1py, xlogy
from statsmodels.stats.proportion import proportion_confint

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import proportions
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.methods.tail_risk.proportions import INTERVALS, NAMES, coverage
from workbench.problems.analytic import GaussianTail

COUNTS = [(0, 1), (1, 1), (0, 40), (1, 40), (7, 40), (39, 40), (40, 40), (3, 10_000), (5_000, 10_000)]


@pytest.mark.parametrize("hits, n", COUNTS)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_each_equals_its_peer(hits, n, level):
    test = stats.binomtest(hits, n)
    for kind, peer in (("clopper-pearson", "exact"), ("wilson", "wilson")):
        low, high = test.proportion_ci(level, peer)
        assert INTERVALS[kind](hits, n, level) == pytest.approx((low, high), rel=1e-9, abs=1e-12)
    for kind, peer in (("agresti-coull", "agresti_coull"), ("jeffreys", "jeffreys")):
        low, high = proportion_confint(hits, n, 1 - level, peer)
        if kind == "jeffreys":  # statsmodels leaves the ends where the posterior has them
            low, high = (0.0 if hits == 0 else low), (1.0 if hits == n else high)
        assert INTERVALS[kind](hits, n, level) == pytest.approx((max(low, 0), min(high, 1)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", INTERVALS)
@pytest.mark.parametrize("hits, n", COUNTS)
def test_each_holds_the_estimate_has_width_and_is_its_mirror_image(kind, hits, n):
    low, high = INTERVALS[kind](hits, n, 0.95)
    assert 0 <= low <= hits / n <= high <= 1 and low < high
    mirrored = INTERVALS[kind](n - hits, n, 0.95)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


# n, then per kind the least and mean coverage over p uniform in (0, 1), and least over p below 1/n.
@pytest.mark.parametrize("n", [20, 100, 400])
def test_which_cover(n):
    p = (np.arange(4000) + 0.5) / 4000
    found = {kind: coverage(kind, n, p) for kind in INTERVALS}
    least, mean = ({kind: float(f(c)) for kind, c in found.items()} for f in (np.min, np.mean))
    assert least["clopper-pearson"] >= 0.95 and mean["clopper-pearson"] > mean["wilson"], "always, so more than needed"
    assert least["anytime"] >= 0.95 and mean["anytime"] > 0.98, "at one n it is far too wide: that is its price"
    for kind in ("wilson", "jeffreys"):
        assert mean[kind] == pytest.approx(0.95, abs=0.006) and least[kind] < 0.92, "on average over p, not for each"
    assert least["agresti-coull"] >= 0.92 and mean["agresti-coull"] > mean["wilson"]
    wald = [proportion_confint(hits, n, method="normal") for hits in range(n + 1)]
    low, high = np.array(wald).T
    weights = stats.binom.pmf(np.arange(n + 1), n, p[:, None])
    assert (weights * ((low <= p[:, None]) & (p[:, None] <= high))).sum(axis=1).min() < 0.1, "what none of them is"


def test_a_coverage_by_hand():
    # n = 1: Wilson's intervals are [0, 0.793] and [0.207, 1].
    assert coverage("wilson", 1, [0.1, 0.5, 0.9]) == pytest.approx([0.9, 1.0, 0.9])


def test_the_confidence_sequence_is_the_set_that_it_says():
    for hits, n in COUNTS:
        low, high = proportions.anytime(hits, n)
        for end, outside in ((low, low * (1 - 1e-6)), (high, high + (1 - high) * 1e-6)):
            if 0 < end < 1:
                assert abs(_log_ratio(hits, n, end) - np.log(20)) < 1e-6
                assert _log_ratio(hits, n, outside) > np.log(20)
        assert _log_ratio(hits, n, np.clip(hits / n, 1e-12, 1 - 1e-12)) < np.log(20)


def _log_ratio(hits, n, p):
    return betaln(0.5 + hits, 0.5 + n - hits) - betaln(0.5, 0.5) - xlogy(hits, p) - xlog1py(n - hits, -p)


@pytest.mark.parametrize("p", [0.03, 0.3])
def test_peeking_breaks_clopper_and_pearson_and_not_the_confidence_sequence(p):
    paths, most = 2000, 1000
    hits = (np.random.default_rng(0).random((paths, most)) < p).cumsum(axis=1)
    n = np.arange(1, most + 1)
    always = (_log_ratio(hits, n, p) < np.log(20)).all(axis=1).mean()
    assert always >= stats.binom.ppf(1e-6, paths, 0.95) / paths
    tail = stats.binom.cdf(hits, n, p), stats.binom.sf(hits - 1, n, p)
    exact = ((tail[0] > 0.025) & (tail[1] > 0.025)).all(axis=1).mean()  # p is in Clopper and Pearson's at every n
    assert exact < 0.85


def test_a_run_that_stops_when_it_looks_good():
    """Whoever stops at the first interval beyond the truth is wrong as often as the method lets him."""
    problem, wrong = GaussianTail(1.5), {"clopper-pearson": 0, "anytime": 0}
    for kind in wrong:
        for seed in range(60):
            estimate = wb.run(
                problem,
                MonteCarlo(interval=kind),
                wb.Budget(samples=1500),
                seed=seed,
                batch_size=30,
                callback=lambda e: not e.low <= problem.truth <= e.high,
                progress=False,
            )
            wrong[kind] += not estimate.low <= problem.truth <= estimate.high
    assert wrong["anytime"] <= stats.binom.isf(1e-4, 60, 0.05) and wrong["clopper-pearson"] > wrong["anytime"]


@pytest.mark.parametrize("kind", INTERVALS)
def test_monte_carlo_uses_what_it_is_told(kind):
    found = wb.run(GaussianTail(1.5), MonteCarlo(interval=kind), wb.Budget(samples=300), seed=0)
    assert (found.low, found.high) == INTERVALS[kind](found.diagnostics["hits"], 300, 0.95)
    assert found.interval == NAMES[kind]


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: proportions.wilson(3, 2), r"hits is 3 but must be .* at most 2"),
        (lambda: proportions.jeffreys(0, 0), r"n is 0 but must"),
        (lambda: proportions.agresti_coull(1, 2, 1.0), r"level is 1"),
        (lambda: proportions.anytime(1, 2, a=0.0), r"a is 0"),
        (lambda: coverage("wald", 5, 0.1), r"kind is 'wald' but must be one of clopper-pearson"),
        (lambda: MonteCarlo(interval="willson"), r"interval is 'willson'.*did you mean 'wilson'"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said):
    with pytest.raises(WorkbenchError, match=said):
        call()
