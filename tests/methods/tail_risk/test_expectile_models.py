"""Models of expectiles: regression equals the minimiser, the simulator knows its truth, the filter finds it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import expectile_models as em
from workbench.methods.tail_risk import expectile_var as ev


def test_regression_minimises_the_asymmetric_squares_and_is_the_sample_expectile_without_columns():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(400), rng.normal(size=400)])
    y = 1 + 2 * x[:, 1] + (1 + np.abs(x[:, 1])) * rng.standard_t(4, 400)
    b = em.expectile_regression(x, y, 0.02)
    numeric = optimize.minimize(
        lambda c: em.asymmetric_squares(y, x @ c, 0.02).mean(), b + 0.3, method="BFGS", options={"gtol": 1e-10}
    )
    assert np.allclose(b, numeric.x, atol=1e-5)
    assert em.expectile_regression(x[:, :1], y, 0.02)[0] == pytest.approx(ev.expectile(y, 0.02), abs=1e-10)
    assert np.allclose(em.expectile_regression(x, y, 0.5), np.linalg.lstsq(x, y, rcond=None)[0])


def test_simulated_days_have_the_volatility_that_comes_with_them():
    y, sigma = em.simulate_garch(200_000, Stream.of(1, "days"))
    z = y / sigma
    # The KS statistic of 2e5 i.i.d. draws exceeds 2.7 / sqrt(n) with probability 9e-7.
    law = stats.t(6, scale=np.sqrt(4 / 6))
    assert stats.kstest(z, law.cdf).statistic < 2.7 / np.sqrt(len(z))
    assert np.allclose(sigma[1:] ** 2, 0.02 + 0.09 * y[:-1] ** 2 + 0.9 * sigma[:-1] ** 2)


def test_a_model_with_the_right_parameters_finds_the_volatility_from_the_past_alone():
    y, sigma = em.simulate_garch(2000, Stream.of(2, "days"))
    model = em.Garch(0.0, 0.02, 0.09, 0.90, 6.0)
    found = model.sigmas(y, first=1.0)
    assert len(found) == 2001 and np.allclose(found[300:-1], sigma[300:], rtol=1e-9)
    other = model.sigmas(np.append(y[:1000], 50 + y[1000:]), first=1.0)
    assert np.array_equal(other[:1001], found[:1001]) and other[1001] > 5 * found[1001]


def test_care_minimises_its_score_and_follows_volatility():
    y, sigma = em.simulate_garch(2500, Stream.of(3, "days"))
    tau = ev.calibrated_tau(stats.t(6), 0.01)
    for kind in em.CARE_KINDS:
        care = em.fit_care(y, tau, kind=kind, starts=200, refined=5, stream=Stream.of(0, "care"))
        e = care.forecast(y)
        assert em.asymmetric_squares(y, e, tau).mean() == pytest.approx(care.score)
        assert care.score < 0.9 * em.asymmetric_squares(y, ev.expectile(y, tau), tau).mean()
        assert care.score == care.start_scores[0] and (np.diff(care.start_scores) >= 0).all()
        assert np.corrcoef(-e[50:], sigma[50:])[0, 1] > 0.8
        b = care.coefficients
        news = b[2] * abs(y[9]) if kind == "symmetric" else b[2] * max(y[9], 0) + b[3] * max(-y[9], 0)
        assert e[10] == pytest.approx(b[0] + b[1] * e[9] + news)


def test_the_filter_is_near_the_truth_where_the_rolling_forecast_is_not():
    pytest.importorskip("arch")
    y, sigma = em.simulate_garch(2000, Stream.of(4, "days"))
    law = stats.t(6, scale=np.sqrt(4 / 6))
    tau = ev.calibrated_tau(law, 0.01)
    found = em.garch_filter(y, 0.01, tau=tau, window=1000, refit=250)
    truth = sigma[1000:] * law.ppf(0.01)
    assert found.expectile.shape == found.quantile.shape == found.sigma.shape == found.tau.shape == (1000,)
    rolling = ev.RollingWindows(y, 500).expectile(tau)[500:]
    assert ((found.expectile - truth) ** 2).mean() < 0.5 * ((rolling - truth) ** 2).mean()
    again = em.garch_filter(np.append(y[:1500], y[1500:] + 9), 0.01, tau=tau, window=1000, refit=250)
    assert np.array_equal(found.expectile[:501], again.expectile[:501]), "a forecast knows the past alone"
    own = em.garch_filter(y[:1250], 0.01, window=1000, refit=250)
    assert 0.0014524 < own.tau[0] < 0.006, "recalibrated to the fit's own Student law"


@pytest.mark.parametrize("attempt, said", [
    (lambda: em.expectile_regression(np.ones((5, 2)), np.arange(5.0), 0.1), r"rank 1 of 2 columns.*drop columns"),
    (lambda: em.expectile_regression(np.ones((4, 1)), np.arange(5.0), 0.1), r"shape of x is \(4, 1\) but must be \(5,"),
    (lambda: em.fit_care(np.arange(9.0), 0.1, kind="both", stream=Stream.of(0, "x")), r"kind is 'both' but must be one of"),
    (lambda: em.fit_care(np.arange(9.0), 0.1, starts=5, refined=9, stream=Stream.of(0, "x")), r"refined is 9 .* at most 5"),
    (lambda: em.fit_garch(np.arange(20.0)), r"len\(returns\) is 20 but must be at least 100 for GARCH; pass more days"),
    (lambda: em.garch_filter(np.arange(200.0), 0.01, window=500), r"window is 500 but must .* at most 199; take a window"),
    (lambda: em.simulate_garch(10, Stream.of(0, "x"), alpha=0.2), r"alpha \+ beta is 1.1 but must be less than 1"),
    (lambda: em.simulate_garch(10, Stream.of(0, "x"), nu=2.0), r"nu is 2.0 but must"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")
