"""Families of Gaussians: densities and draws agree with scipy's, fits with weighted moments, members without points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.gaussian_families import Family, fitted, gaussians


def random_family(members=3, d=4, seed=1):
    rng = Stream.of(seed, "families").generator()
    roots = rng.standard_normal((members, d, d)) + 2 * np.eye(d)
    return gaussians(rng.standard_normal((members, d)), roots @ np.swapaxes(roots, -1, -2))


def covariance(family: Family, j: int = 0, part: int = 0):
    return family.roots[j, part] @ family.roots[j, part].T


def test_densities_equal_scipys():
    family = random_family()
    x = Stream.of(2, "points").generator().standard_normal((5000, 4)) * 3
    for j in range(3):
        law = multivariate_normal(family.means[j, 0], covariance(family, j))
        assert family.log_density(x)[:, j] == pytest.approx(law.logpdf(x), rel=1e-10)
    assert family.member(1).log_density(x)[:, 0] == pytest.approx(family.log_density(x)[:, 1])


def test_a_density_far_out_is_a_finite_logarithm():
    assert gaussians([[0.0]], np.eye(1)).log_density(np.array([[1e6]]))[0, 0] == pytest.approx(-5e11)


def test_draws_have_each_members_moments_and_shares():
    family = random_family()
    mixed = Family(np.array([[0.2, 0.8]]), np.stack([family.means[:2, 0]]), np.stack([family.roots[:2, 0]]))
    x = mixed.draw(np.zeros(200_000, dtype=int), Stream.of(3, "draws").generator())
    mean = 0.2 * family.means[0, 0] + 0.8 * family.means[1, 0]
    assert np.abs(x.mean(axis=0) - mean) == pytest.approx(0, abs=5 * x.std(axis=0).max() / np.sqrt(len(x)))
    pair = Family(np.array([[0.2, 0.8], [1.0, 0.0]]), mixed.means.repeat(2, axis=0), mixed.roots.repeat(2, axis=0))
    x = pair.draw(np.ones(100_000, dtype=int), Stream.of(4, "one").generator())
    assert np.cov(x.T) == pytest.approx(covariance(family, 0), abs=0.03 * covariance(family, 0).max())
    members = np.repeat([0, 1, 2], 100_000)
    x = family.draw(members, Stream.of(4, "draws").generator())
    for j in range(3):
        assert np.cov(x[members == j].T) == pytest.approx(covariance(family, j), abs=0.03 * covariance(family, j).max())


def test_a_fit_of_one_gaussian_is_the_weighted_mean_and_covariance():
    rng = Stream.of(5, "fit").generator()
    x, weights = rng.standard_normal((500, 3)), rng.random((500, 2)) ** 3
    family, effective = fitted(x, weights, gaussians(np.zeros((1, 3)), np.eye(3)), kind="SG", diagonal=False)
    for j in range(2):
        assert family.means[j, 0] == pytest.approx(np.average(x, axis=0, weights=weights[:, j]))
        expected = np.cov(x.T, aweights=weights[:, j], ddof=0) + 1e-6 * np.eye(3)
        assert covariance(family, j) == pytest.approx(expected, rel=1e-9)
    assert effective == pytest.approx(weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0))
    tiny, small = fitted(x, weights * 1e-200, family, kind="SG", diagonal=False)
    assert tiny.means == pytest.approx(family.means) and small == pytest.approx(effective), "tiny weights weigh as well"
    flat, _ = fitted(x, weights, family, kind="SG", diagonal=True)
    assert covariance(flat) == pytest.approx(np.diag(np.diag(covariance(family))), rel=1e-9)


def test_a_fit_of_two_gaussians_equals_sklearns():
    rng = Stream.of(6, "fit").generator()
    x = np.vstack([rng.normal([-3, 0], [1, 0.5], (3000, 2)), rng.normal([3, 1], [0.7, 2], (1500, 2))])
    family, _ = fitted(x, np.ones((4500, 1)), gaussians(np.zeros((1, 2)), np.eye(2)), kind="GM", diagonal=False)
    peer: Any = GaussianMixture(2, random_state=0, tol=1e-6).fit(x)
    order = np.argsort(family.means[0, :, 0]), np.argsort(peer.means_[:, 0])
    assert family.means[0][order[0]] == pytest.approx(peer.means_[order[1]], abs=0.02)
    assert family.shares[0][order[0]] == pytest.approx(peer.weights_[order[1]], abs=0.005)
    assert np.mean(family.log_density(x)) == pytest.approx(peer.score(x), abs=1e-3)


@pytest.mark.parametrize("kind", ["SG", "GM"])
def test_a_member_with_too_few_points_keeps_its_last_law(kind):
    before, x = random_family(2), Stream.of(7, "x").generator().standard_normal((100, 4))
    weights = np.zeros((100, 2))
    weights[:4, 1] = 1.0
    family, effective = fitted(x, weights, before, kind=kind, diagonal=False)
    assert family.log_density(x) == pytest.approx(before.log_density(x)) and effective.tolist() == [0, 4]
    once, _ = fitted(x, np.ones((100, 2)), before, kind="GM", diagonal=False)
    again, _ = fitted(x, np.zeros((100, 2)), once, kind="GM", diagonal=False)
    assert again.log_density(x) == pytest.approx(once.log_density(x)), "a mixture's shares are kept too"


def test_points_in_a_plane_have_a_covariance_all_the_same():
    x = np.column_stack([Stream.of(8, "x").generator().standard_normal(50), np.full(50, 1e5)])
    family, _ = fitted(x, np.ones((50, 1)), gaussians(np.zeros((1, 2)), np.eye(2)), kind="SG", diagonal=False)
    assert np.isfinite(family.log_density(x)).all()


@pytest.mark.parametrize(
    "means, covariances, said",
    [
        ([0.0], np.eye(1), "the shape of means is (1,)"),
        ([[0.0, np.nan]], np.eye(2), "means[1] is nan"),
        ([[0.0, 0.0]], np.eye(3), "the shape of covariances is (3, 3)"),
        ([[0.0, 0.0]], [[1.0, 2.0], [2.0, 1.0]], "not positive definite"),
        ([[0.0, 0.0]], [[1.0, 0.5], [0.0, 1.0]], "not symmetric"),
    ],
)
def test_laws_that_are_none_are_refused(means, covariances, said):
    with pytest.raises(WorkbenchError) as refusal:
        gaussians(means, covariances)
    assert said in str(refusal.value) and str(refusal.value).endswith(".")
