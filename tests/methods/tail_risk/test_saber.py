"""Properties of SABER's fits, laws, estimators and intervals."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import comb, gammaln, hyp2f1, polygamma, psi, roots_jacobi
from scipy.stats import beta as beta_law
from scipy.stats import betabinom, binom

import workbench as wb
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk.beta_binomial import (
    fit_beta_binomial,
    fit_spiked,
    fit_two_stage,
    log_likelihood,
    query_scores,
)
from workbench.methods.tail_risk.saber import (
    Saber,
    alpha_interval,
    distribution_free_interval,
    joint_interval,
    predict,
    predict_tries,
    scaling_curves,
    tries_needed,
)
from workbench.methods.tail_risk.scaling_laws import (
    anchored,
    asr,
    benign_traffic_asr,
    log_survival,
    naive,
    pass_at,
    plug_in,
    power_law,
    spiked_asr,
)
from workbench.problems.best_of_n import BestOfN, BetaPopulation, hit_rate, solve_tries, tries_until

POPULATIONS = [(0.4, 4.0), (0.8, 30.0), (0.2, 1.5), (0.5, 20.0)]


def draw(a, b, n_queries=159, n=100, repeats=1, seed=0):
    generator = np.random.default_rng(seed)
    thetas = generator.beta(a, b, (repeats, n_queries))
    return thetas, generator.binomial(n, thetas)


def uneven(seed=0, n_queries=80, most=60):
    generator = np.random.default_rng(seed)
    n = generator.integers(1, most + 1, n_queries)
    return generator.binomial(n, generator.beta(0.4, 4.0, n_queries)), n


# The fit


@pytest.mark.parametrize("a, b", [(0.4, 4.0), (0.01, 0.3), (30.0, 900.0), (2e4, 5e5)])
def test_likelihood_is_scipys_for_even_and_uneven_budgets(a, b):
    for k, n in [(draw(0.4, 4.0)[1][0], np.full(159, 100)), uneven()]:
        constants = np.sum(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
        expected = betabinom.logpmf(k, n, a, b).sum()
        # scipy's own cancellation grows with a and b; ours does not.
        assert log_likelihood(a, b, k, n) + constants == pytest.approx(expected, abs=1e-10 * max(1.0, b), rel=1e-10)


def test_scores_and_covariance_are_the_papers():
    k, n = uneven(3)
    fit = fit_beta_binomial(k, n)
    a, b = float(fit.a), float(fit.b)
    by_a = psi(k + a) - psi(n + a + b) - psi(a) + psi(a + b)
    by_b = psi(n - k + b) - psi(n + a + b) - psi(b) + psi(a + b)
    np.testing.assert_allclose(query_scores(a, b, k, n), np.stack([by_a, by_b], axis=1), atol=1e-10)
    np.testing.assert_allclose(query_scores(a, b, k, n).sum(axis=0), 0, atol=1e-4)
    common = np.sum(polygamma(1, a + b) - polygamma(1, n + a + b))
    hessian = np.array(
        [
            [np.sum(polygamma(1, k + a) - polygamma(1, a)) + common, common],
            [common, np.sum(polygamma(1, n - k + b) - polygamma(1, b)) + common],
        ]
    )
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(-hessian), rtol=1e-6)


@pytest.mark.parametrize("a, b", [*POPULATIONS, (5.0, 5.0), (0.05, 0.05)])
def test_newton_finds_the_maximum_that_lbfgs_finds_from_several_starts(a, b):
    _, k = draw(a, b, n_queries=60, n=30, repeats=5, seed=4)
    for counts in k:
        fit = fit_beta_binomial(counts, 30)
        runs = [
            minimize(
                lambda x, counts=counts: -float(log_likelihood(*np.exp(x), counts, 30)),
                np.log(start),
                method="L-BFGS-B",
                bounds=[(-13.8, 13.8)] * 2,
            )
            for start in [(1, 1), (0.3, 3), (10, 10)]
        ]
        best = min(runs, key=lambda run: run.fun)
        assert float(fit.log_likelihood) >= -best.fun - 1e-7
        if not fit.capped:
            np.testing.assert_allclose(np.log([fit.a, fit.b]), best.x, atol=2e-2)


def test_many_data_sets_at_once_are_the_same_as_one_by_one():
    _, k = draw(0.4, 4.0, n_queries=40, n=10, repeats=30, seed=5)
    together = fit_beta_binomial(k, 10)
    for row, counts in enumerate(k):
        alone = fit_beta_binomial(counts, 10)
        np.testing.assert_allclose([together.a[row], together.b[row]], [alone.a, alone.b], rtol=1e-6)


def test_a_fit_with_b_known_is_the_maximum_over_a():
    _, k = draw(0.4, 4.0)
    fit = fit_beta_binomial(k[0], 100, known_b=2.5)
    assert fit.b == pytest.approx(2.5, rel=1e-12) and fit.covariance[1, 1] < 1e-20
    around = log_likelihood(fit.a * np.array([0.99, 1.0, 1.01]), np.full(3, 2.5), k[0], 100)
    assert around.argmax() == 1
    assert fit.covariance[0, 0] < fit_beta_binomial(k[0], 100).covariance[0, 0]


def test_a_fit_of_159_queries_takes_at_most_30_ms():
    _, k = draw(0.4, 4.0)
    fit_beta_binomial(k[0], 100)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        fit_beta_binomial(k[0], 100)
        times.append(time.perf_counter() - start)
    # Usually half a millisecond, so that a busy machine does not trip this.
    assert min(times) <= 0.030


def test_fits_without_a_maximum_are_flagged_and_finite():
    thin = draw(0.5, 19.5, n_queries=40, n=10, repeats=400, seed=6)[1]
    alike = np.full((1, 40), 3)
    split = np.tile([0, 10], 20)[None]
    counts = np.concatenate([thin, np.zeros((1, 40), int), np.full((1, 40), 10), alike, split])
    fit = fit_beta_binomial(counts, 10)
    for field in (fit.a, fit.b, fit.covariance, fit.log_likelihood, fit.gain):
        assert np.isfinite(field).all()
    assert fit.capped[-4:].all()
    assert 0 < fit.capped[:400].mean() < 1, "some of these thin tables are less spread than a binomial"
    assert (fit.gain[fit.capped & (fit.a > 10)] < 1e-3).all(), "a runaway fit gains nothing over 'all alike'"


def test_two_stage_fit_is_scipys_beta_fit_of_the_clipped_shares():
    _, k = draw(0.8, 5.0, n_queries=60, n=50)
    fit = fit_two_stage(k[0], 50, clip=1e-3)
    a, b, _, _ = beta_law.fit(np.clip(k[0] / 50, 1e-3, 1 - 1e-3), floc=0, fscale=1)
    np.testing.assert_allclose([fit.a, fit.b], [a, b], rtol=1e-4)


def test_two_stage_fit_is_biased_where_the_beta_binomial_is_not():
    # SD of a_hat is about 0.06, so the mean of 200 fits is known to 0.005; the bias is 10 times that.
    _, k = draw(0.4, 4.0, n=10, repeats=200, seed=7)
    assert abs(np.mean(fit_two_stage(k, 10).a) - 0.4) > 2 * abs(np.median(fit_beta_binomial(k, 10).a) - 0.4)


def test_spike_is_found_where_it_is_and_not_where_it_is_not():
    generator = np.random.default_rng(8)
    thetas = generator.beta(1.0, 10.0, (80, 159)) * (generator.random((80, 159)) > 0.2)
    fits = [fit_spiked(k, 100) for k in generator.binomial(100, thetas)]
    # One pi_hat has SD 0.04 and the mean of 80 has 0.0045, so 0.04 is nine of those; an SD of 80 numbers is
    # known to 8 %, so a factor of 1.6 is six of those.
    spikes = np.array([fit.pi for fit in fits])
    assert spikes.mean() == pytest.approx(0.2, abs=0.04)
    assert 1 / 1.6 < np.median([fit.std_error_pi for fit in fits]) / spikes.std() < 1.6
    errors = [spiked_asr(fit, 1000) - hit_rate(theta, 1000) for fit, theta in zip(fits, thetas, strict=True)]
    assert abs(np.mean(errors)) < 0.03
    plain = [fit_beta_binomial(k, 100) for k in generator.binomial(100, thetas)]
    assert np.mean([plug_in(fit, 1000) for fit in plain] - hit_rate(thetas, 1000)) > 0.08
    _, k = draw(2.0, 10.0, n=100)
    assert fit_spiked(k[0], 100).gain < 8, "a spike that is not there gains little"


def test_spiked_likelihood_is_the_mixtures():
    generator = np.random.default_rng(9)
    k = generator.binomial(50, generator.beta(1.0, 8.0, 100) * (generator.random(100) > 0.3))
    fit = fit_spiked(k, 50)
    pmf = (1 - fit.pi) * betabinom.pmf(k, 50, fit.a, fit.b) + fit.pi * (k == 0)
    constants = np.sum(gammaln(51) - gammaln(k + 1) - gammaln(51 - k))
    assert fit.log_likelihood + constants == pytest.approx(np.log(pmf).sum(), abs=1e-7)
    assert fit.log_likelihood >= float(fit_beta_binomial(k, 50).log_likelihood)


# The laws


@pytest.mark.parametrize("a, b", [*POPULATIONS, (1.0, 1.0), (3.0, 2.0)])
@pytest.mark.parametrize("n_tries", [1, 7, 300])
def test_exact_law_is_the_integral(a, b, n_tries):
    # Gauss-Jacobi quadrature with enough nodes is exact for the polynomial (1 - theta)^N.
    nodes, weights = roots_jacobi(n_tries // 2 + 1, b - 1, a - 1)
    mean = weights @ ((1 - nodes) / 2) ** n_tries / weights.sum()
    assert np.exp(log_survival(a, b, n_tries)) == pytest.approx(mean, rel=1e-7)


def test_the_corrected_law_keeps_its_error_bound_and_the_plain_one_its_order():
    a, b, n = np.meshgrid(np.linspace(0.05, 0.99, 12), [0.5, 1, 2, 4, 10, 30], [1, 2, 5, 20, 100, 1000], indexing="ij")
    exact = np.exp(log_survival(a, b, n))
    shifted = n + b + (a - 1) / 2
    valid = shifted > 0.5
    bound = np.abs(a * (a + 1) * (a - 1)) / 24 * np.exp(gammaln(a + b) - gammaln(b)) * shifted ** (-a - 2)
    error = np.abs(np.exp(log_survival(a, b, n, "corrected")) - exact)
    assert (error[valid] <= bound[valid] * 1.05 + 1e-12).all()
    plain = np.exp(log_survival(0.4, 4.0, 1e5, "plain")) / np.exp(log_survival(0.4, 4.0, 1e5))
    assert (plain - 1) * 1e5 == pytest.approx(0.4 * (0.4 + 8 - 1) / 2, rel=1e-3)
    assert asr(0.8, 30.0, 20, "plain") < 0 < asr(0.8, 30.0, 20), "the plain law is useless far below b"


def test_rankings_cross():
    assert asr(0.25, 1.25, 1) > asr(1, 9, 1) and asr(0.25, 1.25, 15) < asr(1, 9, 15)
    assert asr(1, 9, 15) == pytest.approx(0.625) and asr(0.25, 1.25, 1) == pytest.approx(1 / 6)


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_benign_traffic_is_the_hypergeometric_function_and_its_asymptotics(share):
    assert benign_traffic_asr(0.4, 4.0, share, 15) == pytest.approx(1 - hyp2f1(-15, 0.4, 4.4, share), abs=1e-10)
    if share == 1.0:
        assert benign_traffic_asr(0.4, 4.0, 1.0, 1000) == pytest.approx(float(asr(0.4, 4.0, 1000)), abs=1e-12)
    many = 1 - benign_traffic_asr(0.4, 4.0, share, 100_000)
    assert many == pytest.approx(np.exp(gammaln(4.4) - gammaln(4)) * (1e5 * share) ** -0.4, rel=2e-3)


def test_benign_traffic_with_new_prompts_is_independent_trials():
    assert benign_traffic_asr(0.4, 4.0, 0.1, 50, new_prompts=True) == pytest.approx(1 - (1 - 0.1 * 0.4 / 4.4) ** 50)
    assert benign_traffic_asr(0.4, 4.0, 0.0, 50) == pytest.approx(0.0, abs=1e-12)


# The estimators


def test_pass_at_is_the_share_of_subsets_with_a_success():
    k, n = np.array([0, 1, 3]), np.array([5, 6, 4])
    for m in (1, 2, 4):
        shares = []
        for hits, tries in zip(k, n, strict=True):
            subsets = list(itertools.combinations([1] * hits + [0] * (tries - hits), m))
            shares.append(np.mean([any(subset) for subset in subsets]))
        assert pass_at(k, n, m) == pytest.approx(np.mean(shares), abs=1e-12)


@pytest.mark.parametrize("n_tries", [3, 10, 25, 1000])
def test_anchored_is_unbiased_given_the_parameters_for_uneven_budgets(n_tries):
    a, b, budgets = 0.4, 4.0, np.array([1, 5, 10, 20])
    fit = fit_beta_binomial(*uneven())
    fit = type(fit)(**{**fit.__dict__, "a": np.float64(a), "b": np.float64(b)})
    # The estimate is a sum over queries, so its mean over all outcomes is found by changing one at a time.
    nothing = np.zeros(4, dtype=int)
    mean = start = float(anchored(nothing, budgets, n_tries, fit))
    for query, n in enumerate(budgets):
        k = np.arange(n + 1)
        tables = np.tile(nothing, (n + 1, 1))
        tables[:, query] = k
        mean += betabinom.pmf(k, n, a, b) @ (anchored(tables, budgets, n_tries, fit) - start)
    assert mean == pytest.approx(float(asr(a, b, n_tries)), abs=1e-10)


def test_anchored_with_the_plain_law_is_the_papers_formula():
    _, k = draw(0.4, 4.0)
    fit = fit_beta_binomial(k[0], 100)
    observed = np.mean(k[0] > 0)
    assert anchored(k[0], 100, 1000, fit, "plain") == pytest.approx(1 - (1 - observed) * 0.1 ** float(fit.a))
    shift = float(fit.b + (fit.a - 1) / 2)
    corrected = 1 - (1 - observed) * ((100 + shift) / (1000 + shift)) ** float(fit.a)
    assert anchored(k[0], 100, 1000, fit, "corrected") == pytest.approx(corrected)
    assert anchored(k[0], 100, 1000, fit) == pytest.approx(corrected, abs=1e-5)


def test_anchored_carries_on_the_observed_curve_without_a_jump():
    _, k = draw(0.4, 4.0)
    fit = fit_beta_binomial(k[0], 100)
    grid = np.array([1, 10, 99, 100, 101, 200, 10_000])
    curve = anchored(k[0], 100, grid, fit)
    np.testing.assert_allclose(curve[:4], pass_at(k[0], 100, grid[:4]))
    assert (np.diff(curve) > 0).all() and curve[4] - curve[3] < 0.005
    assert anchored(np.full(30, 2), 10, 1000, fit) == 1.0


def test_naive_is_far_too_low_and_saber_is_not():
    for a, b in POPULATIONS:
        thetas, k = draw(a, b, repeats=200, seed=10)
        truth, fit = hit_rate(thetas, 1000), fit_beta_binomial(k, 100)
        miss = np.abs(naive(k, 100, 1000) - truth).mean()
        for estimate in (anchored(k, 100, 1000, fit), anchored(k, 100, 1000, fit, "plain"), plug_in(fit, 1000)):
            assert miss > 4 * np.abs(estimate - truth).mean()


def test_power_law_goes_through_two_points_exactly_and_stays_a_probability():
    k = np.array([0, 0, 1, 2, 1, 0, 1])
    np.testing.assert_allclose(power_law(k, 2, [1, 2]), pass_at(k, 2, [1, 2]))
    _, k = draw(0.4, 4.0)
    curve = power_law(k[0], 100, [100, 1000, 1e6])
    assert (np.diff(curve) > 0).all() and curve[-1] < 1
    assert curve[0] == pytest.approx(float(pass_at(k[0], 100, 100)), abs=0.1)


# Intervals. Each floor is the 1e-7 quantile of the number covered if the coverage were 0.925, so that a
# correct interval (0.94 to 0.96 in 2,000 repeats) trips it with a probability far below 1e-6.

REPEATS = 2000
FLOOR = binom.ppf(1e-7, REPEATS, 0.925)


@pytest.mark.parametrize("a, b", POPULATIONS)
@pytest.mark.parametrize("method", ["anchored", "plug-in"])
@pytest.mark.parametrize("about", ["population", "queries"])
def test_joint_intervals_cover_the_truth_they_speak_of(a, b, method, about):
    thetas, k = draw(a, b, repeats=REPEATS, seed=11)
    fit = fit_beta_binomial(k, 100)
    truth = asr(a, b, 1000) if about == "population" else hit_rate(thetas, 1000)
    low, high = joint_interval(k, 100, 1000, fit, method=method, about=about)
    assert np.sum((low <= truth) & (truth <= high)) >= FLOOR


def test_the_population_is_farther_off_than_the_queries_at_hand():
    _, k = draw(0.2, 1.5, repeats=500, seed=12)
    fit = fit_beta_binomial(k, 100)
    widths = {
        about: np.subtract(*joint_interval(k, 100, 1000, fit, about=about)).mean()
        for about in ("population", "queries")
    }
    assert widths["population"] / widths["queries"] > 1.3
    low, high = joint_interval(k, 100, 1000, fit, about="queries")
    covered = np.mean((low <= asr(0.2, 1.5, 1000)) & (asr(0.2, 1.5, 1000) <= high))
    assert covered < 0.9, "the interval for these queries does not speak of the population"


@pytest.mark.parametrize("a, b", POPULATIONS)
def test_the_papers_interval_covers_too_rarely(a, b):
    _, k = draw(a, b, repeats=REPEATS, seed=13)
    low, high = alpha_interval(k, 100, 1000, fit_beta_binomial(k, 100))
    truth = float(asr(a, b, 1000))
    assert 0.3 < np.mean((low <= truth) & (truth <= high)) < 0.92


def test_anchor_and_fit_are_correlated_so_their_variances_do_not_just_add():
    _, k = draw(0.4, 4.0, repeats=REPEATS, seed=14)
    fit = fit_beta_binomial(k, 100)
    miss = np.mean(k == 0, axis=1)
    alone = np.sqrt((1 - miss) / miss / 159 + (np.log(10) ** 2) * fit.covariance[:, 0, 0])
    log_estimate = np.log1p(-anchored(k, 100, 1000, fit, "plain"))
    covered = np.mean(np.abs(log_estimate - log_survival(0.4, 4.0, 1000)) <= 1.96 * alone)
    assert covered < 0.92


@pytest.mark.parametrize(
    "thetas, n",
    [
        (np.full(30, 0.02), 10),
        (np.r_[np.zeros(28), 0.5, 0.9], 10),
        (np.r_[np.full(15, 1e-3), np.full(15, 0.3)], 20),
        (np.linspace(0, 0.2, 30), np.tile([5, 20], 15)),
    ],
)
@pytest.mark.parametrize("n_tries", [2, 8, 200])
def test_distribution_free_interval_covers_any_fixed_queries(thetas, n, n_tries):
    k = np.random.default_rng(15).binomial(n, thetas, (1500, 30))
    truth = float(hit_rate(thetas, n_tries))
    ends = {}
    for hits in np.unique((k > 0).sum(axis=1)):
        row = k[(k > 0).sum(axis=1) == hits][0]
        ends[hits] = distribution_free_interval(row, n, n_tries)
    covered = sum(ends[h][0] <= truth <= ends[h][1] for h in (k > 0).sum(axis=1))
    assert covered >= binom.ppf(1e-7, 1500, 0.95)


def test_distribution_free_interval_without_a_success_is_the_rule_of_3_7():
    low, high = distribution_free_interval(np.zeros(100, int), 50, 1000)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1000 / (100 * 50)))


# Tries needed


def test_tries_needed_inverts_the_estimator_and_the_plain_law_is_the_papers_formula():
    _, k = draw(0.4, 4.0)
    fit = fit_beta_binomial(k[0], 100)
    tries, low, high = tries_needed(k[0], 100, 0.95, fit)
    assert low < tries < high and anchored(k[0], 100, tries, fit) == pytest.approx(0.95, abs=1e-9)
    tries, _, _ = tries_needed(k[0], 100, 0.95, fit, method="plug-in")
    assert plug_in(fit, tries) == pytest.approx(0.95, abs=1e-9)
    tries, _, _ = tries_needed(k[0], 100, 0.95, fit, law="plain")
    assert tries == pytest.approx(100 * (np.mean(k[0] == 0) / 0.05) ** (1 / float(fit.a)), rel=1e-9)
    tries, _, _ = tries_needed(k[0], 100, 0.95, fit, law="plain", method="plug-in")
    constant = math.exp(gammaln(float(fit.a + fit.b)) - gammaln(float(fit.b)))
    assert tries == pytest.approx((constant / 0.05) ** (1 / float(fit.a)), rel=1e-9)
    # A target already reached is read off the observed curve.
    tries, _, _ = tries_needed(k[0], 100, 0.3, fit)
    assert tries < 100 and anchored(k[0], 100, tries, fit) == pytest.approx(0.3, abs=1e-9)


@pytest.mark.parametrize("method", ["anchored", "plug-in"])
def test_intervals_of_tries_cover(method):
    _, k = draw(0.7, 4.0, repeats=REPEATS, seed=16)
    _, low, high = tries_needed(k, 100, 0.95, fit_beta_binomial(k, 100), method=method)
    truth = solve_tries(lambda tries: log_survival(0.7, 4.0, tries), 0.95)
    assert np.sum((low <= truth) & (truth <= high)) >= binom.ppf(1e-7, REPEATS, 0.91)


def test_tries_that_are_never_enough_are_infinite():
    assert tries_until([0.0, 0.5], 0.95) == np.inf
    k = np.r_[np.zeros(20, int), np.full(20, 100)]
    estimate = predict_tries(k, 100, 0.95)
    assert estimate.value is None and estimate.high == np.inf and not estimate.reliable and estimate.low > 100


# One table in, an estimate out


def degenerate():
    return {
        "no success": (np.zeros(20, int), 10),
        "no failure": (np.full(20, 10), 10),
        "only 3 of 20": (np.r_[np.ones(3, int), np.zeros(17, int)], 10),
        "do not show that queries differ": (np.tile([0, 0, 1], 14), 10),
        "succeed always or never": (np.r_[np.zeros(20, int), np.full(20, 10)], 10),
        "only 2 of 20 queries are left": (np.r_[0, 0, np.arange(1, 10), np.ones(9, int)], 10),
    }


@pytest.mark.parametrize("why", degenerate())
def test_degenerate_tables_are_flagged_and_bounded_for_any_distribution(why):
    k, n = degenerate()[why]
    estimate = predict(k, n, 1000)
    assert not estimate.reliable and why in estimate.why
    assert (estimate.low, estimate.high) == distribution_free_interval(k, n, 1000)
    assert estimate.low <= estimate.value <= estimate.high
    tries = predict_tries(k, n, 0.95)
    assert not tries.reliable and tries.low >= 1
    assert wb.Estimate.from_json(tries.to_json()) == tries


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=30), st.integers(1, 400))
def test_any_table_of_counts_gets_a_valid_estimate(pairs, n_tries):
    k = [hits for hits, _ in pairs]
    n = [max(1, hits + misses) for hits, misses in pairs]
    for method, law, about in itertools.product(["anchored", "plug-in"], ["exact", "plain"], ["population", "queries"]):
        estimate = predict(k, n, n_tries, method=method, law=law, about=about)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.low < estimate.high
        assert wb.Estimate.from_json(estimate.to_json()) == estimate
        assert estimate.reliable or estimate.why
    tries = predict_tries(k, n, 0.9)
    assert 1 <= tries.low <= tries.high


def test_a_power_law_above_one_is_not_called_reliable():
    k, n = [1, 1, 1, 3, 8], [1, 7, 9, 4, 11]
    estimate = predict(k, n, 1, method="plug-in", law="plain")
    assert not estimate.reliable and "above 1 at so few tries" in estimate.why
    assert (estimate.low, estimate.high) == distribution_free_interval(k, n, 1) and 0 < estimate.low <= estimate.value
    assert predict(k, n, 1, method="plug-in").reliable


def test_predict_is_the_functions_put_together():
    _, k = draw(0.4, 4.0)
    fit = fit_beta_binomial(k[0], 100)
    estimate = predict(k[0], 100, 1000)
    assert estimate.value == pytest.approx(float(anchored(k[0], 100, 1000, fit)))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(map(float, joint_interval(k[0], 100, 1000, fit))))
    paper = predict(k[0], 100, 1000, interval="alpha", law="plain")
    assert (paper.low, paper.high) == pytest.approx(tuple(map(float, alpha_interval(k[0], 100, 1000, fit))))
    assert paper.high - paper.low < estimate.high - estimate.low
    assert predict(k[0], 100, 50).value == pytest.approx(float(pass_at(k[0], 100, 50)))


def test_scaling_curves_are_predict_along_a_grid():
    k, n = uneven(17)
    curves = scaling_curves(k, n, np.array([10, 500]), about="queries")
    for method, label in (("anchored", "Anchored"), ("plug-in", "plug-in")):
        values, low, high = curves[label]
        estimate = predict(k, n, 500, method=method, about="queries")
        assert (values[1], low[1], high[1]) == pytest.approx((estimate.value, estimate.low, estimate.high))
    np.testing.assert_allclose(curves["naive"][0], naive(k, n, [10, 500]))


# The workbench's estimator


def test_estimator_covers_population_and_queries_over_seeds():
    runs = 400
    floor = binom.ppf(1e-7, runs, 0.92)
    population = BetaPopulation(0.4, 4.0, n_queries=40, n_tries=200)
    covered = {"population": 0, "queries": 0}
    for seed in range(runs):
        queries = BestOfN.from_beta(0.4, 4.0, n_queries=40, n_tries=200, seed=seed)
        for problem in (population, queries):
            estimate = wb.run(problem, Saber(), wb.Budget(samples=2000), seed=seed, batch_size=2000, progress=False)
            assert estimate.reliable and problem.about in estimate.interval
            covered[problem.about] += estimate.low <= problem.truth <= estimate.high
    assert min(covered.values()) >= floor, covered


def test_estimator_counts_tries_in_turn_and_does_not_depend_on_batches():
    problem = BestOfN.from_beta(0.4, 4.0, n_queries=30, n_tries=300)
    answers = [
        wb.run(problem, Saber(), wb.Budget(samples=1000), batch_size=size, progress=False).answer
        for size in (1, 7, 999, 5000)
    ]
    assert all(answer == answers[0] for answer in answers)
    state, stream = Saber().init(problem), wb.Stream.of(0, problem.name)
    batches = [Saber().draw(problem, state, 25, stream.at(25 * i)) for i in range(4)]
    results = []
    for order in itertools.permutations(range(4)):
        now = state
        for i in order:
            now = Saber().absorb(now, batches[i])
        assert now["tries"].tolist() == [4] * 10 + [3] * 20
        results.append(Saber().result(now).answer)
    assert all(result == results[0] for result in results)


def test_estimator_says_nothing_until_every_query_was_tried_and_refuses_other_problems():
    problem = BestOfN.from_beta(0.4, 4.0, n_queries=30, n_tries=300)
    early = wb.run(problem, Saber(), wb.Budget(samples=29), progress=False)
    assert early.value is None and (early.low, early.high) == (0, 1) and "29 of 30" in early.why

    class Other:
        name, truth = "something-else", None

    with pytest.raises(Unsuitable, match="something-else"):
        Saber().init(Other())


# Refusals: one sentence with the argument, the value, and a cure after the semicolon.

BAD_COUNTS = {
    "k > n": ([1, 11], [10, 10], r"k\[1\] is 11"),
    "negative k": ([1, -1], [10, 10], r"k\[1\] is -1"),
    "NaN": ([1, math.nan], [10, 10], r"k\[1\] is nan"),
    "infinite n": ([1, 2], [10, math.inf], r"n\[1\] is inf"),
    "fraction": ([1, 2.5], [10, 10], r"k\[1\] is 2\.5"),
    "fractional n": ([1, 2], [10, 9.5], r"n\[1\] is 9\.5"),
    "no tries": ([0, 0], [10, 0], r"n\[1\] is 0"),
    "empty": ([], [], "k is 'empty'"),
    "lengths": ([1, 2, 3], [10, 10], r"the shape of n is \(2,\)"),
    "a number": (3, 10, "k is 3"),
    "words": (["many"], [10], "k is"),
}


@pytest.mark.parametrize("name", BAD_COUNTS)
@pytest.mark.parametrize(
    "function",
    [
        fit_beta_binomial,
        fit_two_stage,
        fit_spiked,
        lambda k, n: predict(k, n, 1000),
        lambda k, n: naive(k, n, 1000),
        lambda k, n: predict_tries(k, n, 0.95),
        lambda k, n: distribution_free_interval(k, n, 1000),
    ],
    ids=["fit", "two-stage", "spiked", "predict", "naive", "tries", "distribution-free"],
)
def test_bad_counts_are_refused_with_a_sentence(name, function):
    k, n, start = BAD_COUNTS[name]
    with pytest.raises(WorkbenchError, match=start) as refusal:
        function(k, n)
    text = str(refusal.value)
    assert "; " in text and text.endswith(".") and " must " in text


FIT = fit_beta_binomial([0, 1, 3, 0, 2, 5, 1], 10)
K = [0, 1, 3, 0, 2, 5, 1]


@pytest.mark.parametrize(
    "call, start",
    [
        (lambda: predict(K, 10, 0), "n_tries is 0"),
        (lambda: predict(K, 10, 0.5), "n_tries is 0.5"),
        (lambda: predict(K, 10, math.nan), "n_tries is nan"),
        (lambda: asr(0.4, 4, 0.5), "n_tries is 0.5"),
        (lambda: asr(-0.4, 4, 10), "a is -0.4"),
        (lambda: asr(0.4, 0, 10), "b is 0"),
        (lambda: asr(math.nan, 4, 10), r"a\[0\] is nan"),
        (lambda: asr(0.4, 4, 10, "exakt"), "law is 'exakt'"),
        (lambda: pass_at(K, 10, 11), "n_tries is 11"),
        (lambda: anchored(K, 10, 100, FIT, "power"), "law is 'power'"),
        (lambda: power_law(np.zeros(5, int), 10, 100), "the number of m with"),
        (lambda: power_law([K, K], 10, 100), r"the shape of k is \(2, 7\)"),
        (lambda: joint_interval(K, 10, 100, FIT, level=1.0), "level is 1"),
        (lambda: joint_interval(K, 10, 100, FIT, method="naive"), "method is 'naive'"),
        (lambda: joint_interval(K, 10, 100, FIT, about="all"), "about is 'all'"),
        (lambda: tries_needed(K, 10, 1.0, FIT), "target is 1"),
        (lambda: predict_tries(K, 10, math.nan), "target is nan"),
        (lambda: fit_two_stage(K, 10, clip=0), "clip is 0"),
        (lambda: benign_traffic_asr(0.4, 4, 1.2, 10), "harmful_share is 1.2"),
        (lambda: predict(K, 10, 100, interval="wald"), "interval is 'wald'"),
        (lambda: Saber(method="best"), "method is 'best'"),
        (lambda: Saber(level=math.nan), "level is nan"),
        (lambda: Saber(method="plug-in", interval="alpha"), "interval is 'alpha'"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(call, start):
    with pytest.raises(WorkbenchError, match=start) as refusal:
        call()
    text = str(refusal.value)
    assert "; " in text and text.endswith(".")


def test_combinatorial_weights_are_the_binomial_coefficients():
    k, n = np.array([3]), np.array([12])
    assert 1 - pass_at(k, n, 5) == pytest.approx(comb(9, 5) / comb(12, 5))
