"""Expectiles: equal to the library's, to the law's, coherent, and tied to quantiles by their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import expectile_var as ev

numbers = st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 6)), min_size=1, max_size=40)


@given(numbers, st.floats(0.001, 0.999))
def test_the_sample_expectile_solves_its_condition_and_is_the_librarys(values, tau):
    y = np.array(values)
    e = ev.expectile(y, tau)
    scale = max(1.0, np.abs(y).max())
    balance = tau * np.maximum(y - e, 0).mean() - (1 - tau) * np.maximum(e - y, 0).mean()
    assert abs(balance) <= 1e-10 * scale
    assert e == pytest.approx(stats.expectile(y, tau), abs=1e-9 * scale)


def test_weights_are_repetitions_and_axes_are_samples():
    y, w = np.array([3.0, -1.0, 2.0, 7.0]), np.array([2, 0, 5, 1])
    assert ev.expectile(y, 0.1, w) == pytest.approx(ev.expectile(np.repeat(y, w), 0.1), abs=1e-14)
    assert ev.expectile(y, 0.5) == pytest.approx(y.mean())
    table = np.random.default_rng(0).normal(size=(5, 30))
    assert np.allclose(ev.expectile(table, 0.03), [ev.expectile(row, 0.03) for row in table], rtol=0, atol=1e-14)


def test_rolling_forecasts_use_the_days_before_and_no_other():
    y = np.random.default_rng(1).standard_t(4, 300)
    rolling = ev.RollingWindows(y, 50)
    assert len(rolling.returns) == len(rolling.expectile(0.01)) == 250
    for i in (0, 7, 249):
        past = y[i : i + 50]
        assert rolling.expectile(0.01)[i] == pytest.approx(stats.expectile(past, 0.01), abs=1e-13)
        assert rolling.quantile(0.025)[i] == pytest.approx(np.quantile(past, 0.025), abs=1e-13)
        assert rolling.returns[i] == y[i + 50]
    tau = rolling.tau_at_coverage(9)
    assert abs(int((rolling.returns < rolling.expectile(tau)).sum()) - 9) <= 1


@pytest.mark.parametrize("law, alpha, tau", [
    (stats.norm(), 0.01, 0.0014524), (stats.norm(), 0.025, 0.0047735), (stats.norm(), 0.05, 0.0123873),
    (stats.t(4), 0.01, 0.0039022), (stats.t(6), 0.01, 0.002816),
])  # fmt: skip
def test_the_calibrated_tau_gives_the_quantile_and_the_shortfall(law, alpha, tau):
    found = ev.calibrated_tau(law, alpha)
    assert found == pytest.approx(tau, abs=6e-8 if law.dist.name == "norm" or tau == 0.0039022 else 5e-7)
    q = law.ppf(alpha)
    assert ev.law_expectile(law, found) == pytest.approx(q, abs=1e-9)
    shortfall = law.expect(lambda y: y, ub=q, conditional=True)
    assert ev.shortfall_of(q, found, alpha, law.mean()) == pytest.approx(shortfall, abs=1e-7)


def test_calibration_does_not_depend_on_place_and_scale():
    for law in (stats.norm(3, 0.2), stats.norm(-50, 7)):
        assert ev.calibrated_tau(law, 0.01) == pytest.approx(ev.normal_tau(0.01), abs=1e-9)
    assert ev.tau_of(3.0, 1.0, 3.0, 3.0) == 0.5, "0/0 is one half"
    assert ev.calibrated_tau(stats.norm(), 0.5) == pytest.approx(0.5)


def test_the_empirical_tau_makes_the_expectile_the_quantile():
    y = np.random.default_rng(2).standard_t(3, 401)
    tau = ev.empirical_tau(y, 0.05)
    assert ev.expectile(y, tau) == pytest.approx(np.quantile(y, 0.05), abs=1e-12)


def test_only_expectiles_of_losses_with_tau_above_one_half_are_subadditive():
    rng, low = np.random.default_rng(3), 0
    for _ in range(200):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.4], [0.4, 1]], 100).T / np.sqrt(rng.chisquare(3, 100) / 3)
        tau = rng.uniform(0.5, 0.999)
        assert ev.expectile(x + y, tau) <= ev.expectile(x, tau) + ev.expectile(y, tau) + 1e-9
        low += ev.expectile(x + y, 1 - tau) > ev.expectile(x, 1 - tau) + ev.expectile(y, 1 - tau) + 1e-9
    assert low > 150


def test_one_more_loss_moves_the_expectile_in_proportion_and_the_quantile_not():
    y = np.random.default_rng(4).normal(size=500)
    moved = ev.influence(y, 0.0015, [-10.0, -20.0, -40.0])
    assert moved[0] < 0 and (moved[2] - moved[1]) / (moved[1] - moved[0]) == pytest.approx(2.0, abs=0.4)
    tripled = np.where(y == y.min(), 3 * y, y)
    assert np.quantile(tripled, 0.01) == np.quantile(y, 0.01)
    assert ev.expectile(tripled, 0.0015) < 1.1 * ev.expectile(y, 0.0015)


def test_the_expectile_var_is_positive_says_its_tau_and_warns_when_it_rests_on_single_days():
    y = np.random.default_rng(5).standard_t(4, 2000)
    estimate = ev.expectile_var(y, 0.05)
    assert estimate.reliable and 0 < estimate.low <= estimate.value <= estimate.high
    assert estimate.value == pytest.approx(-stats.expectile(y, ev.normal_tau(0.05)))
    assert estimate.answer == ev.expectile_var(y, 0.05).answer
    assert ev.expectile_var(y, 0.05, stream=wb.Stream.of(1, "x")).low != estimate.low
    few = ev.expectile_var(y[:250], 0.01)
    assert not few.reliable and "days lie beyond" in few.why
    own = ev.expectile_var(y, 0.05, calibration="empirical")
    assert own.value == pytest.approx(-np.quantile(y, 0.05)) and own.diagnostics["tau"] > estimate.diagnostics["tau"]
    assert ev.expectile_var(y, 0.05, calibration="student").value < estimate.value


def test_prices_from_a_file_and_their_returns(tmp_path):
    path = tmp_path / "ftse.csv"
    path.write_text("Date,Close\n2024-01-02,100\n2024-01-03,110\n2024-01-05,99\n")
    days, closes = ev.read_prices(path)
    assert len(days) == 3 and np.allclose(ev.log_returns(closes), 100 * np.log([1.1, 0.9]))


@pytest.mark.parametrize("text, said", [
    ("date,close\n2024-01-02,100\n2024-01-02,101\n", r"date\[1\] is 2024-01-02 but must be later"),
    ("date,close\n2024-01-02,100\n2024-03-02,101\n", r"2024-03-02 after 2024-01-02. but must follow.*fill the missing"),
    ("date,close\n2024-01-02,100\n2024-01-03,-1\n", r"prices\[1\] is -1.0 but must be greater than 0"),
    ("date,close\n2024-01-02,100\n2024-01-03,\n", r"prices\[1\] is nan but must be finite; drop the days"),
    ("date,close\nsoon,100\n2024-01-03,1\n", r"date\[0\] is 'soon' but must be a date"),
    ("day,close\n2024-01-02,100\n", r"columns is 'day, close' but must include 'date'"),
])  # fmt: skip
def test_a_bad_file_of_prices_is_refused_by_its_row(tmp_path, text, said):
    path = tmp_path / "prices.csv"
    path.write_text(text)
    with pytest.raises(WorkbenchError, match=said):
        ev.read_prices(path)


@pytest.mark.parametrize("attempt, said", [
    (lambda: ev.expectile([1.0, np.nan], 0.1), r"values\[1\] is nan but must be finite; drop"),
    (lambda: ev.expectile([1.0], 1.0), r"tau is 1.0 but must .* less than 1; pass e.g. tau"),
    (lambda: ev.expectile([1.0, 2.0], 0.1, [0, 0]), r"weights is .* not all 0; drop"),
    (lambda: ev.expectile([], 0.1), r"values is 'empty'"),
    (lambda: ev.RollingWindows(np.arange(20.0), 20), r"window is 20 but must .* at most 19; take a window shorter"),
    (lambda: ev.calibrated_tau(stats.cauchy(), 0.01), r"law.mean\(\) is (nan|inf) but must be finite"),
    (lambda: ev.calibrated_tau(stats.norm(), 1.2), r"alpha is 1.2 but must"),
    (lambda: ev.shortfall_of(-1.0, 0.6, 0.01), r"tau is 0.6 but must be less than 0.5"),
    (lambda: ev.expectile_var([1.0] * 9 + [2.0], 0.01, calibration="empirical"), r"returns is .* but must spread"),
    (lambda: ev.expectile_var(np.arange(9.0), 0.01, calibration="gauss"), r"calibration is 'gauss' but must be one of"),
    (lambda: ev.log_returns([1.0, 0.0]), r"prices\[1\] is 0.0 but must be greater than 0; drop or mend"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize(
    "ask",
    [
        lambda y: ev.expectile_var(y),
        lambda y: ev.RollingWindows(y, 50),
        lambda y: ev.tau_for("empirical", 0.05, values=y),
        lambda y: ev.parametric_normal_var(y, 0.05),
    ],
)
def test_returns_that_are_all_equal_are_refused(ask):
    with pytest.raises(WorkbenchError, match=r"returns is '0\.01 on all 300 days' but must differ from day to day"):
        ask(np.full(300, 0.01))
