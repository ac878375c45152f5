"""Tails of bounded losses: the functionals equal their definitions, the intervals cover where few losses carry them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

import workbench as wb
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk import loss_tails as lt
from workbench.methods.tail_risk.expectile_var import expectile
from workbench.problems.analytic import GaussianTail
from workbench.problems.suite import find_problem

EVERY = [f"{kind}-{law}" for kind in ("cvar", "expectile") for law in ("rare-harm", "spread", "two-point")]
EVERY.append("quantile-spread")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 0.99))
def test_cvar_is_the_minimum_of_rockafellar_and_uryasev_and_lies_beyond_quantile_and_mean(losses, level):
    y = np.array(losses)
    least = min(float(c + np.maximum(y - c, 0).mean() / (1 - level)) for c in y)
    assert lt.cvar(y, level) == pytest.approx(least, abs=1e-9)
    assert lt.cvar(y, level) >= y.mean() - 1e-9


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from(["cvar", "expectile"]), st.floats(0.5, 0.99))
def test_the_interval_holds_the_estimate_and_has_width(losses, functional, level):
    low, high = lt.likelihood_interval(losses, functional, level)
    value = lt.cvar(losses, level) if functional == "cvar" else expectile(losses, level)
    assert 0 <= low <= value + 1e-9 and value - 1e-9 <= high <= 1
    assert low < high or (low == high == 1 and functional == "cvar"), "only where the worst share is 1 for certain"


def test_cvar_where_the_worst_share_is_all_at_one_loss():
    low, high = lt.likelihood_interval([0.4], "cvar", 0.5)
    assert low == pytest.approx(0.4 * 0.025 / 0.5) and high > 0.4
    assert lt.likelihood_interval([1.0] * 30, "cvar", 0.5) == (1.0, 1.0)


def test_without_the_extra_observation_it_is_owens_interval(monkeypatch):
    monkeypatch.setattr(lt, "_EXTRA", 1e-12)
    y = Stream.of(0, "owen").generator().beta(2, 3, 60)

    def ratio(theta):  # by the dual, solved with a general minimiser
        g = y - theta
        ends = -1 / g.max() * (1 - 1e-9), -1 / g.min() * (1 - 1e-9)
        return -2 * optimize.minimize_scalar(lambda step: -np.log1p(step * g).sum(), bounds=ends, method="bounded",
                                             options={"xatol": 1e-12}).fun  # fmt: skip

    low, high = lt.likelihood_interval(y, "expectile", 0.5)
    most = stats.chi2.ppf(0.95, 1)
    assert abs(ratio(low)) == pytest.approx(most, abs=1e-4) and abs(ratio(high)) == pytest.approx(most, abs=1e-4)


def test_a_quantiles_interval_keeps_its_promise_exactly_for_continuous_laws():
    n, level = 80, 0.9
    y = np.sort(Stream.of(1, "uniform").generator().random(n))
    low, high = lt.quantile_interval(y, level)
    first, last = (int(np.flatnonzero(y == end)[0]) + 1 for end in (low, high))
    # P(U_(r) <= q < U_(s)) = P(r <= Binomial(n, q) < s)
    assert stats.binom.cdf(last - 1, n, level) - stats.binom.cdf(first - 1, n, level) >= 0.95
    assert lt.quantile_interval(y[:20], 0.99)[1] == 1.0, "too few draws to bound it from above"


@pytest.mark.parametrize("name", EVERY)
def test_intervals_that_are_trusted_cover_on_every_loss_of_the_suite(name):
    problem, runs = find_problem(name), 120
    found = [
        wb.run(problem, lt.BoundedTail(), wb.Budget(samples=2000), seed=seed, batch_size=2000) for seed in range(runs)
    ]
    trusted = [estimate for estimate in found if estimate.reliable]
    assert len(trusted) >= 0.85 * runs
    covered = sum(estimate.low <= problem.truth <= estimate.high for estimate in trusted)
    # An interval that covers 93 % falls below this count with probability 1e-6.
    assert covered >= stats.binom.ppf(1e-6, len(trusted), 0.93)
    means = np.mean([estimate.value for estimate in found]), np.std([estimate.value for estimate in found])
    # Five standard errors, and the bias of a ratio of moments, which is of order 1/n of the truth.
    assert abs(means[0] - problem.truth) < 5 * means[1] / np.sqrt(runs) + 0.01 * problem.truth


@pytest.mark.parametrize("name", ["expectile-spread", "quantile-spread", "cvar-two-point"])
def test_the_answer_does_not_depend_on_batches_and_goes_on_from_a_checkpoint(name, tmp_path):
    problem, path = find_problem(name), tmp_path / "state"
    whole = wb.run(problem, lt.BoundedTail(), wb.Budget(samples=403), seed=3)
    for size in (1, 7, 64):
        assert wb.run(problem, lt.BoundedTail(), wb.Budget(samples=403), seed=3, batch_size=size).answer == whole.answer
    wb.run(problem, lt.BoundedTail(), wb.Budget(samples=100), seed=3, checkpoint=path)
    assert wb.run(problem, lt.BoundedTail(), wb.Budget(samples=403), seed=3, checkpoint=path).answer == whole.answer


def test_it_warns_while_few_losses_carry_the_tail():
    problem = find_problem("expectile-rare-harm")
    few = wb.run(problem, lt.BoundedTail(), wb.Budget(samples=100), seed=0)
    assert not few.reliable and "effective losses; draw more" in few.why and few.high > few.value
    assert wb.run(problem, lt.BoundedTail(), wb.Budget(samples=20_000), seed=0).reliable


@pytest.mark.parametrize("attempt, said", [
    (lambda: lt.check_losses([0.2, 1.5]), r"losses is 1.5 but must lie in \[0, 1\]; divide by the largest loss"),
    (lambda: lt.cvar([0.1, np.nan], 0.9), r"losses\[1\] is nan but must be finite; drop or mend"),
    (lambda: lt.cvar([0.1], 1.0), r"level is 1.0 but must .* pass e.g. level=0.95"),
    (lambda: lt.likelihood_interval([0.1], "quantile", 0.9), r"functional is 'quantile' but must be one of cvar, expectile"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")


def test_a_problem_without_losses_is_refused_by_name():
    with pytest.raises(Unsuitable, match=r"gaussian-tail.*use a loss problem"):
        lt.BoundedTail().init(GaussianTail(2.0))
