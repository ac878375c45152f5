"""Tests and scores of forecasts: their laws under right forecasts, their power, and the identities between scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import backtests as bt
from workbench.methods.tail_risk import expectile_var as ev
from workbench.plots.expectiles import forecast_figure


def test_kupiec_and_christoffersen_are_their_likelihood_ratios():
    hits = np.zeros(250, dtype=bool)
    hits[[10, 11, 90, 150, 151, 152, 200]] = True
    zeros, ones, p = 243, 7, 7 / 250
    by_hand = -2 * (zeros * np.log(0.99) + ones * np.log(0.01) - zeros * np.log(1 - p) - ones * np.log(p))
    assert bt.kupiec(hits, 0.01).statistic == pytest.approx(by_hand)
    assert bt.kupiec(hits, 0.01).p_value == pytest.approx(stats.chi2.sf(by_hand, 1))
    table = np.array([[n := 238, 4], [4, 3]])  # 242 calm days before another, 7 hits: three followed by a hit
    assert n + 11 == 249
    expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    independent, both = bt.christoffersen(hits, 0.01)
    assert independent.statistic == pytest.approx(expected)
    assert both.statistic == pytest.approx(expected + by_hand) and both.p_value < 0.01
    assert bt.kupiec(np.zeros(250, dtype=bool), 0.01).statistic == pytest.approx(-500 * np.log(0.99))


def test_coverage_tests_reject_right_forecasts_as_often_as_they_say():
    rng = np.random.default_rng(0)
    rejected = np.mean([bt.kupiec(rng.random(2500) < 0.05, 0.05).p_value < 0.05 for _ in range(1500)])
    # SE of 0.05 is 0.0056; the law is discrete, so a margin of 0.01 is added to five standard errors.
    assert abs(rejected - 0.05) < 0.038


def test_hac_errors_are_those_of_statsmodels_and_grow_with_correlation():
    import statsmodels.api as sm

    x = np.convolve(np.random.default_rng(1).normal(size=1009), np.ones(10), "valid")
    fit = sm.OLS(x, np.ones(len(x))).fit(cov_type="HAC", cov_kwds={"maxlags": 10, "use_correction": False})
    assert bt.newey_west_error(x, 10) == pytest.approx(fit.bse[0])
    assert bt.newey_west_error(x, 10) > 2 * bt.newey_west_error(x, 0)
    assert bt.newey_west_error(x, 0) == pytest.approx(x.std() / np.sqrt(len(x)))


def test_block_bootstrap_keeps_days_together_and_sees_their_correlation():
    rng = np.random.default_rng(6)
    x = np.convolve(rng.normal(size=4009), np.ones(10), "valid")
    pick = bt.block_indices(len(x), 100, 400, rng)
    assert pick.shape == (400, 4000) and pick.min() >= 0 and pick.max() < 4000
    assert np.mean(np.diff(pick, axis=1) == 1) > 0.985
    # The SD of the mean is 10 / sqrt(4000) = 0.158; that of independent draws would be 0.05.
    assert 0.09 < x[pick].mean(axis=1).std() < 0.24


def test_the_better_forecast_has_the_lower_score_and_a_positive_t():
    y, alpha = np.random.default_rng(2).standard_t(5, 20_000), 0.05
    q, e = stats.t(5).ppf(alpha), ev.law_expectile(stats.t(5), 0.01)
    for scores in (lambda shift: bt.pinball(y, q + shift, alpha), lambda shift: bt.expectile_score(y, e + shift, 0.01)):
        for shift in (-0.5, 0.5):
            test = bt.diebold_mariano(scores(0.0), scores(shift))
            assert test.statistic > 5 and test.p_value < 1e-6
            assert bt.diebold_mariano(scores(shift), scores(0.0)).statistic == pytest.approx(-test.statistic)


@pytest.mark.parametrize("y, x", [(1.3, -0.4), (-2.0, 0.7), (0.5, 0.5)])
def test_the_scores_are_integrals_of_murphys_elementary_scores(y, x):
    def whole(**kind):
        places = sorted({y, x})
        return sum(
            integrate.quad(lambda theta: bt.murphy([y], [x], theta, **kind)[0], low, high)[0]
            for low, high in zip([-5, *places], [*places, 5], strict=True)
        )

    assert 2 * whole(tau=0.1) == pytest.approx(bt.expectile_score(y, x, 0.1), abs=1e-9)
    assert whole(alpha=0.1) == pytest.approx(bt.pinball(y, x, 0.1), abs=1e-9)


def test_identification_accepts_the_truth_and_rejects_what_forgets_volatility():
    rng = np.random.default_rng(3)
    sigma = np.exp(0.7 * np.sin(np.arange(20_000) / 200))
    y, tau = sigma * rng.standard_t(8, 20_000), 0.05
    e = ev.law_expectile(stats.t(8), tau)
    t, wald = bt.identification(y, sigma * e, tau)
    # |t| < 5.5 leaves room for the weight of single days; a right forecast exceeds 5 with probability 6e-7 if normal.
    assert abs(t.statistic) < 5.5 and wald.p_value > 1e-7
    flat = np.full_like(y, ev.expectile(y, tau))
    assert bt.identification(y, flat, tau, scale=sigma)[1].p_value < 1e-7
    assert bt.identification(y, 1.3 * sigma * e, tau)[0].statistic > 5.5


def test_acerbi_szekely_is_zero_for_the_truth_and_negative_where_the_tail_is_worse_than_forecast():
    y, alpha = np.random.default_rng(4).normal(size=40_000), 0.025
    q = stats.norm.ppf(alpha)
    es = -stats.norm.pdf(q) / alpha
    shape = np.ones_like(y)
    # The SD of y 1{y < q} / (alpha ES) is 6.3, so five standard errors of the mean of 40,000 are 0.16.
    assert abs(bt.acerbi_szekely(y, q * shape, es * shape, alpha)) < 0.16
    assert bt.acerbi_szekely(1.5 * y, q * shape, es * shape, alpha) < -0.5


def test_mcnemar_counts_only_the_days_that_differ():
    one, other = np.zeros(100, dtype=bool), np.zeros(100, dtype=bool)
    one[0], other[:7], one[50:], other[50:] = True, True, True, True
    assert bt.fewer_hits(one, other) == (6.0, pytest.approx(stats.binom.sf(5, 6, 0.5)))
    assert bt.fewer_hits(other, one).p_value == 1.0 and bt.fewer_hits(one, one).p_value == 1.0


@pytest.mark.parametrize("attempt, said", [
    (lambda: bt.kupiec(np.zeros(9), 0.01), r"hits is .float64 of shape \(9,\). but must be bool .*; pass returns < "),
    (lambda: bt.diebold_mariano(np.ones(30), np.ones(30)), r"difference of scores is 'constant' but must vary"),
    (lambda: bt.newey_west_error(np.ones(5), 10), r"lags is 10 but must .* at most 4; take fewer lags"),
    (lambda: bt.pinball([0.0], [0.0], 0.0), r"alpha is 0.0 but must"),
    (lambda: bt.murphy([0.0], [0.0], [0.0]), r"must name one functional; pass tau=... or alpha=..."),
    (lambda: bt.acerbi_szekely([0.0], [-1.0], [1.0], 0.01), r"shortfall is 1.0 but must be less than 0"),
    (lambda: bt.identification([0.0], [0.0], 0.1), r"scale is 0.0 but must be greater than 0; pass the forecast's sigma"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")


def test_the_figure_of_forecasts_counts_violations_of_all_days_and_refuses_an_empty_part():
    days, y = np.arange(200), np.random.default_rng(7).normal(size=200)
    fig = forecast_figure(days, y, np.full(200, -1.0), np.full(200, -9.0), truth=y, shown=slice(-50, None), said="a")
    assert f"a; violated on {np.mean(y < -1):.2%} (quantile) and 0.00%" in fig.axes[0].get_title(loc="left")
    with pytest.raises(WorkbenchError, match=r"shown is slice\(300, None, None\) but must leave at least one day"):
        forecast_figure(days, y, y, y, shown=slice(300, None))
    with pytest.raises(WorkbenchError, match=r"\(200, 200, 200, 5\) but must be as many"):
        forecast_figure(days, y, y, y[:5])
