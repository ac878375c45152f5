"""Questions of many expectations: closed forms and quadrature against sampling, other quadrature, scipy's indices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from workbench import Meter, Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import expectation_questions as eq
from workbench.methods.tail_risk.multi_expectation_ais import Expectations

SIGMA = 5.33  # two-sided chance of 1e-7 for a normal score


def sampled(question: Expectations, n: int, seed: int):
    """(n, J) values at draws from each expectation's own law."""
    generator = Stream.of(seed, "check").generator()
    if len(question.laws) == 1:
        return question.evaluate(question.laws.draw(np.zeros(n, dtype=int), generator))
    return np.column_stack(
        [question.evaluate(question.laws.draw(np.full(n, j), generator))[:, j] for j in range(len(question))]
    )


def holds(values, truth):
    return np.abs(values.mean(axis=0) - truth) <= SIGMA * values.std(axis=0) / np.sqrt(len(values))


def test_moments_are_a_normal_laws():
    question = eq.gaussian_moments(10)
    assert question.truth is not None
    assert question.truth == pytest.approx([stats.norm.moment(2 * k) for k in range(1, 11)])
    assert eq.moment_variances(5) == pytest.approx(
        [stats.norm.moment(4 * k) - stats.norm.moment(2 * k) ** 2 for k in range(1, 6)]
    )
    assert question.weights @ eq.moment_variances() / 20_000 == pytest.approx(49.75, abs=0.005)
    assert eq.gaussian_moments(3, relative=False).weights.tolist() == [1, 1, 1]


def test_tilts_have_their_closed_form_and_optimal_family():
    question, best = eq.gaussian_tilts((0.5, 1.5))
    assert question.truth is not None and holds(sampled(question, 200_000, 1), question.truth).all()
    x = np.linspace(-3, 3, 7)[:, None]
    target = np.exp(question.laws.log_density(x)) * question.evaluate(x) / question.truth
    assert np.exp(best.log_density(x)) == pytest.approx(target)


def test_deflection_is_the_formula_in_physical_units():
    means = 4 * 4.29**3 / (200e9 * 0.062 * 0.0987) * np.hypot(556.8 / 0.062**2, 453.6 / 0.0987**2)
    middle = (np.log([556.8, 453.6, 200.0]) - eq.MEAN_BEAM.mean[:3]) / np.sqrt(np.diag(eq.MEAN_BEAM.covariance)[:3])
    assert eq.deflection(np.append(middle, [0, 0, 0])[None, :]) == pytest.approx([means])
    assert np.exp(eq.MEAN_BEAM.mean + np.diag(eq.MEAN_BEAM.covariance) / 2)[:3] == pytest.approx(eq.MEANS[:3])


def test_twenty_laws_have_the_means_of_quadrature():
    laws = eq.beam_laws(20, Stream.of(2, "laws"))
    question = eq.mean_deflections(laws)
    values = sampled(question, 40_000, 3)
    assert question.truth is not None and holds(values, question.truth).all()
    assert holds(values**2, np.array([eq.deflection_moments(law)[1] for law in laws])).all()
    for law in laws[:3]:
        assert eq.deflection_moments(law) == pytest.approx(eq.deflection_moments(law, nodes=20), rel=1e-7)


def test_the_mean_law_has_the_moments_of_a_full_grid():
    place, share = np.polynomial.hermite_e.hermegauss(9)
    z = np.array(np.meshgrid(*[place] * 6, indexing="ij")).reshape(6, -1).T
    weight = np.prod(np.meshgrid(*[share / share.sum()] * 6, indexing="ij"), axis=0).ravel()
    values = eq.deflection(z)
    assert eq.deflection_moments(eq.MEAN_BEAM) == pytest.approx((weight @ values, weight @ values**2), rel=1e-6)


def test_laws_fill_the_hypercube_and_are_laws():
    laws = eq.beam_laws(200, Stream.of(4, "laws"))
    length = np.array([law.mean[5] for law in laws])
    assert np.sort(np.floor((length - 4) * 200)).tolist() == list(range(200)), "one law in each slice"
    correlations = np.array(
        [law.covariance[3, 4] / np.sqrt(law.covariance[3, 3] * law.covariance[4, 4]) for law in laws]
    )
    assert -0.6 < correlations.min() < -0.55 and -0.05 < correlations.max() < 0
    assert all(np.linalg.eigvalsh(law.covariance)[0] > 0 for law in laws)


def test_correlations_that_no_law_has_are_shrunk():
    assert np.linalg.eigvalsh(np.array([[1, -0.6, 0.5], [-0.6, 1, 0.5], [0.5, 0.5, 1]]))[0] < 0
    law = eq.beam(correlations=(-0.6, 0.5, 0.5))
    scale = np.sqrt(np.diag(law.covariance))
    found = (law.covariance / np.outer(scale, scale))[[3, 3, 4], [4, 5, 5]]
    assert np.linalg.eigvalsh(law.covariance)[0] > 0
    assert found == pytest.approx(np.array([-0.6, 0.5, 0.5]) * 0.9 ** round(np.log(found[1] / 0.5) / np.log(0.9)))


def test_exact_indices_agree_with_the_literature_and_with_scipys_estimate():
    exact = eq.exact_indices()
    # The authors' reference, by Monte Carlo.
    assert exact == pytest.approx([0.0240, 0.0006, 0.0166, 0.4276, 0.0732, 0.4021], abs=0.002)
    assert eq.exact_indices(16) == pytest.approx(exact, rel=1e-6)
    found = stats.sobol_indices(
        func=lambda z: eq.deflection(z.T)[None, :], n=2**14, dists=[stats.norm()] * 6, rng=np.random.default_rng(0)
    )
    assert exact == pytest.approx(found.first_order.ravel(), abs=0.01)


def test_pick_freeze_gives_the_indices_and_counts_its_runs():
    question = eq.beam_indices()
    with Meter() as meter:
        values = sampled(question, 50_000, 5)
    assert meter.spend.model_calls == 50_000 * 7 and len(question) == 8
    index, variance = eq.first_order(values.mean(axis=0), np.cov(values.T) / len(values))
    assert (np.abs(index - eq.exact_indices()) < SIGMA * np.sqrt(variance)).all()


def test_the_delta_methods_variance_is_that_of_repeats():
    question = eq.beam_indices()
    values = sampled(question, 400 * 1000, 6).reshape(400, 1000, 8)
    pairs = [eq.first_order(one.mean(axis=0), np.cov(one.T) / 1000) for one in values]
    ratio = np.mean([variance for _, variance in pairs], axis=0) / np.var([index for index, _ in pairs], axis=0)
    assert (ratio > 0.7).all() and (ratio < 1.4).all()


def test_the_tail_is_exact():
    question, thresholds = eq.tail_curve([0.5, 0.9, 0.99, 0.999])
    assert question.truth == pytest.approx([0.5, 0.1, 0.01, 0.001], rel=0.02)
    values = sampled(question, 400_000, 7)
    assert question.truth is not None and holds(values, question.truth).all()
    assert eq.exceedance(thresholds, nodes=(8, 8, 10, 32, 32)) == pytest.approx(question.truth, rel=1e-6)
    # A sharp step is what quadrature finds hard: the other way round, L by quadrature and E in closed form.
    rng = Stream.of(8, "check").generator()
    z = rng.standard_normal((200_000, 6))
    z[:, 2] = 0
    spread = np.sqrt(eq.MEAN_BEAM.covariance[2, 2])
    smooth = stats.norm.cdf(np.log(eq.deflection(z)[:, None] / thresholds) / spread)
    assert holds(smooth, question.truth).all()


def test_the_delta_method_has_the_slopes_of_small_steps():
    value, step = np.array([1.0, 1.3, 1.2, 1.05]), 1e-6
    root = Stream.of(10, "x").generator().standard_normal((4, 4))
    steps = [
        eq.first_order(value + step * row, np.eye(4))[0] - eq.first_order(value - step * row, np.eye(4))[0]
        for row in np.eye(4)
    ]
    slopes = np.array(steps).T / (2 * step)
    expected = np.diag(slopes @ root @ root.T @ slopes.T)
    assert eq.first_order(value, root @ root.T)[1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: eq.gaussian_moments(0), "j is 0"),
        (lambda: eq.gaussian_moments(21), "j is 21"),
        (lambda: eq.beam([1.0]), "be six positive numbers"),
        (lambda: eq.beam(correlations=(0.0, np.nan, 0.0)), "correlations[1] is nan"),
        (lambda: eq.beam_laws(0, Stream.of(0, "x")), "j is 0"),
        (lambda: eq.exceedance([-1.0]), "min(thresholds) is -1.0"),
        (lambda: eq.tail_curve([1.0]), "level is 1.0"),
        (lambda: eq.gaussian_tilts((np.inf,)), "rates[0] is inf"),
        (lambda: eq.pick_freeze(eq.deflection, 0), "d is 0"),
        (lambda: eq.first_order(np.array([1.0, 1.0, 1.0]), np.eye(3)), "q - m^2 is 0.0"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, said):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    assert said in str(refusal.value) and str(refusal.value).endswith(".")
