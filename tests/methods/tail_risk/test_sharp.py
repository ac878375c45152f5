"""SHARP: identities of the log-risk, the CVaR convention, tests against the libraries, the traps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri
from statsmodels.stats.multitest import multipletests

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import loss_tails, sharp

severities = st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=20, max_size=40)


def harms(models=3, prompts=200, seed=0):
    return np.random.default_rng(seed).beta(0.3, 2, (models, prompts, 4))


@given(severities)
def test_log_risk_is_additive_and_monotone(rows):
    h, eps = np.array(rows), 1e-3
    parts = sharp.log_risks(h, eps)
    union = sharp.any_failure(np.minimum(h, 1 - eps))
    assert np.allclose(parts.sum(axis=-1), -np.log1p(-union), rtol=1e-3, atol=1e-9)
    assert np.allclose(-np.expm1(-parts.sum(axis=-1)), union, rtol=0, atol=1e-12)
    assert (sharp.log_risks(np.minimum(h + 0.01, 1), eps) >= parts).all()
    assert parts.max() <= np.log(1 / eps) + 1e-12


@given(severities, st.sampled_from([0.0, 0.5, 0.9, 0.95]))
def test_cvar_is_that_of_loss_tails_and_its_parts_add_up(rows, level):
    profiles = sharp.risk_profiles([rows], level=level)
    losses = profiles.losses[0]
    if level:
        assert profiles.cvar[0] == pytest.approx(loss_tails.cvar(losses, level), abs=1e-12)
    else:
        assert profiles.cvar[0] == pytest.approx(losses.mean(), abs=1e-12)
    assert profiles.tail.sum() == pytest.approx(profiles.cvar[0], abs=1e-12)
    assert profiles.share.sum() == pytest.approx(1)
    assert profiles.tail[0] @ np.ones(4) <= profiles.marginal.sum() + 1e-12, "CVaR is subadditive"
    assert (profiles.tail <= profiles.marginal + 1e-12).all()


def test_the_46th_prompt_of_901_counts_in_part_and_ties_share():
    losses = np.random.default_rng(1).permutation(901).astype(float)
    weights = sharp.tail_weights(losses, 0.95) * 45.05
    assert np.allclose(weights[losses >= 856], 1) and weights[losses == 855] == pytest.approx(0.05)
    assert weights[losses < 855].max() == 0
    tied = sharp.tail_weights([5.0, 1.0, 1.0, 1.0, 0.0], 0.5)
    assert tied == pytest.approx([0.4, 0.2, 0.2, 0.2, 0.0])


def test_dependent_failures_are_over_counted_by_the_product():
    h, rng = np.array([0.3, 0.1, 0.05, 0.2]), np.random.default_rng(3)
    z = np.sqrt(0.6) * rng.standard_normal((400_000, 1)) + np.sqrt(0.4) * rng.standard_normal((400_000, 4))
    drawn = (z < ndtri(h)).any(axis=1).mean()
    assert sharp.any_failure(h, 0.6) == pytest.approx(drawn, abs=5 * np.sqrt(0.25 / 400_000))
    by_rho = [float(sharp.any_failure(h, rho)) for rho in (0, 0.2, 0.6, 0.95, 1)]
    assert (np.diff(by_rho) < 0).all() and by_rho[-1] == 0.3
    assert sharp.any_failure([0.0, 1.0, 0.3], 0.5) == pytest.approx(1)
    assert sharp.any_failure([0.0, 0.0], 0.5) == pytest.approx(0)


def test_one_clipped_prompt_can_carry_the_tail():
    h = np.full((1, 100, 4), 0.05)
    h[0, 0] = 1.0
    cvars = [sharp.risk_profiles(h, eps=eps).cvar[0] for eps in (1e-2, 1e-3, 1e-4)]
    assert np.allclose(np.diff(cvars), 4 * np.log(10) / 5)


def test_the_bootstrap_is_the_plain_one_paired_by_prompt():
    losses = np.random.default_rng(4).gamma(0.4, 1, (3, 90))
    found = sharp.resample(losses, level=0.9, n_draws=50, stream=Stream.of(0, "x"))
    picks = Stream.of(0, "x").generator().integers(90, size=(50, 90))
    for draw, rows in enumerate(picks):
        again = losses[:, rows]
        assert found.mean[draw] == pytest.approx(again.mean(axis=1))
        assert found.std[draw] == pytest.approx(again.std(axis=1, ddof=1))
        assert found.cvar[draw] == pytest.approx([loss_tails.cvar(row, 0.9) for row in again])
    assert (np.ptp(found.ratio("cvar", 0, 0)) == 0) and found.interval("mean").shape == (2, 3)


def test_a_resample_that_needs_more_than_the_worst_rows_gets_them(monkeypatch):
    losses = np.random.default_rng(8).random((2, 50))
    found = sharp.resample(losses, stream=Stream.of(1, "x"))
    monkeypatch.setattr(sharp, "_SPARE", 0)
    assert (sharp.resample(losses, stream=Stream.of(1, "x")).cvar == found.cvar).all()


def test_a_flip_is_a_clear_tail_with_no_worse_mean():
    rng = np.random.default_rng(5)
    even, rare = np.full(400, 0.5) + 0.01 * rng.random(400), np.full(400, 0.1)
    rare[:30] = 5.0
    flips = sharp.resample([even, rare, even + 5], stream=Stream.of(2, "x")).flips()
    assert flips.tolist() == [[False, False, False], [True, False, False], [False, False, False]]


def test_tests_are_the_libraries():
    losses = sharp.risk_profiles(harms(6, 60)).losses * np.array([[1.0, 1.1, 1.2, 1.3, 1.5, 2.0]]).T
    losses[:, :20] = 0.0
    found = sharp.compare_models(losses)
    assert found.statistic == pytest.approx(stats.friedmanchisquare(*losses).statistic)
    raw = [
        stats.wilcoxon(losses[i], losses[j], zero_method="zsplit", method="asymptotic").pvalue for i, j in found.pairs
    ]
    assert found.pair_p_values == pytest.approx(multipletests(raw, method="holm")[1])
    assert sharp.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    same = sharp.compare_models(np.zeros((3, 30)))
    assert same.p_value == 1 and (same.pair_p_values == 1).all(), "all harmless"


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: sharp.risk_profiles(harms(prompts=19)), "the number of prompts is 19 but must be at least 20"),
        (lambda: sharp.risk_profiles(harms() * 1.5), "lie in [0, 1]"),
        (lambda: sharp.risk_profiles(harms()[0]), "(models, prompts, dimensions)"),
        (lambda: sharp.risk_profiles(np.where(harms() > 0.5, np.nan, 0)), "must be finite"),
        (lambda: sharp.risk_profiles(harms(), models=["a"]), "len(models) is 1 but must be 3"),
        (lambda: sharp.risk_profiles(harms(), level=1.0), "level is 1.0"),
        (lambda: sharp.log_risks(harms(), eps=0), "eps is 0"),
        (lambda: sharp.any_failure([0.5], 1.5), "rho is 1.5"),
        (lambda: sharp.resample([1.0, 2.0], stream=Stream.of(0, "x")), "(models, prompts)"),
        (lambda: sharp.compare_models(np.ones((2, 9))), "at least 3 models"),
        (lambda: sharp.resample(np.zeros((2, 30)), stream=Stream.of(0, "x")).ratio("cvar", 0, 1), "says nothing"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, said):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    assert said in str(refusal.value) and str(refusal.value).endswith(".")
