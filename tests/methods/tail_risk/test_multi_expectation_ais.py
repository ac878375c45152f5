"""Many expectations from one sample: unbiased, zero variance at the optimum, honest errors, the stop rule, traps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize

from workbench import Meter, Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import multi_expectation_ais as me
from workbench.methods.tail_risk.expectation_questions import (
    gaussian_moments,
    gaussian_tilts,
    moment_variances,
    tail_curve,
)
from workbench.methods.tail_risk.gaussian_families import gaussians
from workbench.plots import to_png
from workbench.plots.expectations import moments_figure

SIGMA = 5.33  # two-sided chance of 1e-7 for a normal score
NORMAL = gaussians([[0.0]], np.eye(1))
TWO = gaussians([[-1.0], [1.0]], np.eye(1))


def stream(*names):
    return Stream.of(3, "aiscv", *names)


def repeats(question, n, times, name, **settings):
    return [me.aiscv(question, n, stream=stream(name, number), **settings) for number in range(times)]


def test_the_optimal_family_has_zero_variance_for_every_alpha_and_its_control_has_not():
    question, best = gaussian_tilts()
    assert question.truth is not None
    for number, share in enumerate((0.02, 0.2, 0.5, 0.8, 0.98)):
        proposal = me.Proposal(best, np.array([share, 1 - share]), question.laws)
        for beta, bar in ((np.diag(question.truth), 0), (np.zeros((2, 2)), 1e-3)):
            value, covariance, _ = me.iscv(question, proposal, beta, 2000, stream("C4", number).generator())
            relative = 2000 * np.diag(covariance) / question.truth**2
            assert (relative < 1e-25).all() if bar == 0 else relative.max() > bar
            if bar == 0:
                assert value == pytest.approx(question.truth, rel=1e-12)


@pytest.mark.parametrize("beta", [np.zeros((2, 2)), np.array([[0.3, -2.0], [5.0, 0.1]])])
@pytest.mark.parametrize("defensive", [0.0, 0.2])
def test_any_family_alpha_and_beta_are_unbiased(beta, defensive):
    question, _ = gaussian_tilts()
    proposal = me.Proposal(
        gaussians([[0.5], [2.0]], [[[1.5]], [[2.0]]]), np.array([0.3, 0.7]), question.laws, defensive
    )
    value, covariance, _ = me.iscv(question, proposal, beta, 200_000, stream("any", defensive).generator())
    assert (np.abs(value - question.truth) < SIGMA * np.sqrt(np.diag(covariance))).all()


@pytest.mark.parametrize(
    "n, settings",
    [
        (2000, {}),
        (2000, {"controls": "all"}),
        (2000, {"controls": "none"}),
        (2000, {"diagonal": True, "defensive": 0.1}),
        (2000, {"keep": "best"}),
        (10_000, {"kind": "GM"}),
    ],
)
def test_adaptive_estimates_are_unbiased_and_their_errors_honest(n, settings):
    question = gaussian_moments(3)
    runs = repeats(question, n, 60, "unbiased", **settings)
    z = np.array([(run.value - question.truth) / run.std_error for run in runs])
    assert (np.abs(z.mean(axis=0)) < SIGMA / np.sqrt(len(runs)) * np.maximum(z.std(axis=0), 1)).all()
    assert 0.7 < z.std() < 1.5


def test_mixtures_fitted_to_few_points_do_not_know_their_errors():
    question = gaussian_moments(4)
    runs = repeats(question, 1000, 60, "few", kind="GM")
    z = np.array([(run.value - question.truth) / run.std_error for run in runs])
    assert z[:, 3].std() > 1.5 and z[:, 3].mean() < -0.5


def test_the_budget_is_kept_to_the_point():
    question = gaussian_moments(3)
    for n in (50, 55, 1234):
        with Meter() as meter:
            answer = me.aiscv(question, n, stream=stream("budget", n))
        assert meter.spend.model_calls == answer.evaluated == n
        assert answer.last == n - answer.steps[-1].evaluated and answer.last >= 0.3 * n
    costly = me.Expectations("costly", NORMAL, lambda x: x**2, [1.0], runs=7)
    with Meter() as meter:
        me.plain(costly, 100, stream=stream("costly"))
    assert meter.spend.model_calls == 700


def test_gains_on_ten_moments_need_adaptation_and_the_low_ones_need_controls():
    question, closed = gaussian_moments(), moment_variances() / 20_000
    gains = {
        controls: closed
        / np.mean([run.variances for run in repeats(question, 20_000, 8, "gain", controls=controls)], axis=0)
        for controls in me.CONTROLS
    }
    assert gains["own"][0] > 1.4 > 1.25 > gains["none"][0] and gains["own"][9] > 1e4 and gains["none"][9] > 1e4
    assert gains["all"][0] > gains["own"][0] and gains["all"][9] > gains["own"][9]


def test_monte_carlo_does_not_know_its_own_variance_at_high_moments():
    question, closed = gaussian_moments(), moment_variances() / 20_000
    said = [
        question.weights @ me.plain(question, 20_000, stream=stream("mc", number)).variances for number in range(10)
    ]
    assert np.median(said) < 0.2 * (question.weights @ closed)


def test_beta_on_the_same_draws_is_biased_and_on_others_is_not():
    question, best = gaussian_tilts((0.5, 1.5))
    proposal, few, times = me.Proposal(gaussians([[0.0], [1.0]], np.eye(1)), np.array([0.5, 0.5]), best), 5, 4000
    assert question.truth is not None
    found = {"same": [], "other": []}
    generator = stream("frozen").generator()
    for _ in range(times):
        terms = []
        for _ in range(2):
            x = proposal.draw(few, generator)
            log_g = proposal.family.log_density(x)
            log_q = me._log_mixture(log_g, proposal.alpha)[:, None]
            terms.append((np.exp(question.laws.log_density(x) - log_q) * question.evaluate(x), np.exp(log_g - log_q)))
        for name, (fitted_on, used_on) in {"same": (0, 0), "other": (0, 1)}.items():
            beta = me.control_coefficients(*terms[fitted_on])
            weighted, ratio = terms[used_on]
            found[name].append((weighted - ratio @ beta).mean(axis=0) + beta.sum(axis=0))
    z = {name: (np.mean(v, axis=0) - question.truth) / np.std(v, axis=0) * np.sqrt(times) for name, v in found.items()}
    assert np.abs(z["same"]).max() > SIGMA > np.abs(z["other"]).max()


def test_the_stop_rule_weighs_the_gain_against_the_budget_lost():
    before, after = (
        me.Step(evaluated, me.Proposal(NORMAL, np.ones(1), NORMAL), np.zeros((1, 1)), np.ones(1), criterion, np.ones(1))
        for evaluated, criterion in ((4000, 32.0), (6000, 30.0))
    )
    assert not me.pays(before, after, 20_000) and me.pays(before, after._replace(criterion=27.9), 20_000)
    for number in range(20):
        answer = me.aiscv(gaussian_moments(), 20_000, stream=stream("stop", number))
        pairs = list(zip(answer.steps, answer.steps[1:], strict=False))
        assert all(me.pays(*pair, 20_000) for pair in pairs[:-1])
        assert len(answer.steps) == 5 or not me.pays(*pairs[-1], 20_000)


def test_the_code_goes_on_with_the_rejected_parameters_and_a_flag_keeps_the_best():
    question, told = gaussian_moments(), []
    for number in range(30):
        last, best = (me.aiscv(question, 1000, stream=stream("keep", number), keep=keep) for keep in ("last", "best"))
        assert last.steps[-1].evaluated == best.steps[-1].evaluated
        told.append(last.steps[-1].criterion > min(step.criterion for step in last.steps))
        assert (last.value == best.value).all() == (not told[-1])
    assert any(told) and not all(told)


def test_iterations_can_be_forced():
    for steps in (0, 3, 8):
        answer = me.aiscv(gaussian_moments(2), 1000, stream=stream("forced"), iterations=steps)
        assert len(answer.steps) == steps + 1 and answer.last == 1000 - 100 * (steps + 1)
    still = me.aiscv(gaussian_moments(2), 1000, stream=stream("forced"), iterations=0)
    assert (still.max_weight == 1).all(), "without adaptation the last sample comes from the input law"


def test_where_the_control_can_not_vary_it_does_nothing():
    single = gaussian_moments(1)
    one, none = (me.aiscv(single, 1000, stream=stream("single"), controls=controls) for controls in ("own", "none"))
    assert one.value == pytest.approx(none.value) and one.variances == pytest.approx(none.variances)
    constant = me.control_coefficients(np.array([[1.0], [3.0]]), np.ones((2, 1)))
    assert constant.tolist() == [[2.0]]


@pytest.mark.parametrize("fixed", [0.0, 0.05])
def test_alpha_is_the_minimum_on_the_simplex(fixed):
    rng = stream("alpha").generator()
    for scale in (1.0, 1e303, 1e-290):
        ratios, numerator = rng.exponential(size=(300, 4)) ** 2, rng.exponential(size=300) ** 4

        def value(alpha, ratios=ratios, numerator=numerator):
            return np.mean(numerator / ((1 - fixed) * ratios @ alpha + fixed))

        found = me.best_alpha(numerator * scale, ratios, np.full(4, 0.25), fixed=fixed, share=1 - fixed)
        assert found.sum() == pytest.approx(1) and (found > 0).all()
        others = rng.dirichlet(np.full(4, 0.5), size=4000)
        assert value(found) <= min(value(alpha) for alpha in others) * (1 + 1e-3)


def test_a_point_that_no_member_covers_leaves_alpha_to_the_others():
    ratios, numerator = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([1e250, 1e249, 4e249])
    assert me.best_alpha(numerator, ratios, np.array([0.5, 0.5])) == pytest.approx([1 / 3, 2 / 3], abs=0.02)
    assert me.best_alpha(numerator[:1], ratios[:1], np.array([0.3, 0.7])) == pytest.approx([0.3, 0.7])


def test_where_slsqp_fails_multiplicative_updates_find_alpha(monkeypatch):
    rng = stream("fallback").generator()
    ratios, numerator = rng.exponential(size=(300, 4)) ** 2, rng.exponential(size=300) ** 4
    expected = me.best_alpha(numerator, ratios, np.full(4, 0.25))

    def fails(*_: Any, **__: Any):
        return optimize.OptimizeResult(x=np.full(4, np.nan))

    monkeypatch.setattr(me.optimize, "minimize", fails)
    found = me.best_alpha(numerator, ratios, np.full(4, 0.25))
    value = [np.mean(numerator / (ratios @ alpha)) for alpha in (expected, found)]
    assert value[1] == pytest.approx(value[0], rel=2e-3)


def test_densities_that_underflow_do_no_harm():
    # Two laws 80 standard deviations apart: g_1 at the other's points is exp(-3200).
    far = gaussians([[-40.0], [40.0]], np.eye(1))
    question = me.Expectations("far", far, lambda x: 1 + x**2, [1.0, 1.0], np.array([1602.0, 1602.0]))
    answer = me.aiscv(question, 2000, stream=stream("far"))
    assert np.isfinite(answer.value).all() and (np.abs(answer.value - 1602) < SIGMA * answer.std_error).all()


def test_an_event_that_no_point_saw_is_no_crash():
    question = me.Expectations("never", NORMAL, lambda x: (x > [0.0, 50.0]).astype(float), [1.0, 1.0])
    for kind in ("SG", "GM"):
        answer = me.aiscv(question, 500, stream=stream("never"), kind=kind)
        assert np.isfinite(answer.value).all() and np.abs(answer.value[1]) < 1e-6
        assert answer.steps[1].effective[1] == 0


def test_functions_of_both_signs_are_unbiased():
    question = me.Expectations("odd", NORMAL, lambda x: x ** np.array([1, 3]), [1.0, 1.0], np.zeros(2))
    runs = repeats(question, 1000, 100, "odd")
    z = np.array([run.value / run.std_error for run in runs])
    assert (np.abs(z.mean(axis=0)) < SIGMA / 10 * np.maximum(z.std(axis=0), 1)).all()


def test_a_defensive_share_bounds_the_weights():
    question, _ = tail_curve([0.5, 0.9, 0.99])
    runs = {share: repeats(question, 2000, 5, "weights", defensive=share) for share in (0.0, 0.1)}
    largest = {share: max(run.max_weight.max() for run in found) for share, found in runs.items()}
    assert largest[0.1] <= 10 + 1e-9 < 50 < largest[0.0]


def test_individual_and_mixed_sampling_serve_several_laws():
    question = me.Expectations("two", TWO, lambda x: np.exp(x), [1.0, 1.0], np.exp(np.array([-0.5, 1.5])))
    for how in ("individual", "mixture"):
        answer = me.plain(question, 100_000, stream=stream(how), how=how)
        assert (np.abs(answer.value - question.truth) < SIGMA * answer.std_error).all() and answer.evaluated == 100_000
    own = np.exp(2 * np.array([-1.0, 1.0]) + 2) - np.exp(2 * np.array([-0.5, 1.5]))
    assert me.plain(question, 100_000, stream=stream("own"), how="individual").variances == pytest.approx(
        own / 50_000, rel=0.2
    )


def test_separate_runs_split_the_budget_and_ask_the_same():
    question = me.Expectations("two", TWO, lambda x: np.exp(x), [1.0, 1.0], np.exp(np.array([-0.5, 1.5])))
    with Meter() as meter:
        apart = me.separate(question, 2000, stream=stream("apart"))
    assert meter.spend.model_calls == 2000 and [run.evaluated for run in apart] == [1000, 1000]
    for j, run in enumerate(apart):
        assert abs(run.value[0] - np.exp([-0.5, 1.5])[j]) < SIGMA * run.std_error[0]
    several = me.only(gaussian_moments(3), 2)
    assert several.evaluate(np.array([[2.0]])).tolist() == [[64.0]]
    assert several.truth == pytest.approx([15.0])


def test_the_same_stream_gives_the_same_answer():
    one, two, other = (me.aiscv(gaussian_moments(3), 500, stream=stream(name)) for name in ("a", "a", "b"))
    assert (one.value == two.value).all() and (one.value != other.value).all()


@pytest.mark.parametrize(
    "j, kind, controls, iterations", [(1, "SG", "none", 0), (10, "GM", "all", 8), (3, "SG", "own", None)]
)
def test_the_first_look_draws_at_its_corners(j, kind, controls, iterations):
    fig = moments_figure(100, j, "equal", kind, controls, iterations, stream=stream("look"))
    assert to_png(fig)[:4] == b"\x89PNG" and len(fig.axes) == 4
    assert fig.axes[1].get_ylim()[1] > 0 and "points left" in fig.axes[3].get_title(loc="left")


def good(**change: Any) -> me.Expectations:
    settings: dict[str, Any] = {
        "name": "bad",
        "laws": NORMAL,
        "phi": lambda x: x ** np.array([2, 4]),
        "weights": [1.0, 1.0],
    }
    return me.Expectations(**settings | change)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: good(weights=[1.0, 0.0]), "be a list of positive numbers"),
        (lambda: good(weights=[1.0, -1.0]), "be a list of positive numbers"),
        (lambda: good(weights=[1.0, np.nan]), "weights[1] is nan"),
        (lambda: good(weights=[]), "weights is 'empty'"),
        (lambda: good(weights=[1.0, 1.0, 1.0], laws=TWO), "len(laws) is 2 but must be 1 or 3"),
        (lambda: good(runs=0), "runs is 0"),
        (lambda: good(truth=np.ones(3)), "the shape of truth is (3,)"),
        (lambda: me.aiscv(good(), 49, stream=stream("x")), "n is 49"),
        (lambda: me.aiscv(good(), 500, stream=stream("x"), kind="gm"), "kind is 'gm' but must be one of SG, GM"),
        (lambda: me.aiscv(good(), 500, stream=stream("x"), controls="every"), "be one of own, all, none"),
        (lambda: me.aiscv(good(), 500, stream=stream("x"), keep="first"), "be one of last, best"),
        (lambda: me.aiscv(good(), 500, stream=stream("x"), defensive=1.0), "defensive is 1.0"),
        (lambda: me.aiscv(good(), 500, stream=stream("x"), iterations=9), "iterations is 9"),
        (lambda: me.aiscv(good(weights=[1.0] * 3), 500, stream=stream("x")), "the shape of phi(x) is (50, 2)"),
        (lambda: me.aiscv(good(phi=lambda x: x[:, 0]), 500, stream=stream("x")), "the shape of phi(x) is (50,)"),
        (lambda: me.aiscv(good(phi=lambda x: x * [1, np.inf]), 500, stream=stream("x")), "must be finite"),
        (lambda: me.plain(good(), 1, stream=stream("x")), "n is 1"),
        (lambda: me.plain(good(), 10, stream=stream("x"), how="apart"), "be one of mixture, individual"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, said):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    assert said in str(refusal.value) and str(refusal.value).endswith(".")
