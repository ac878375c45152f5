"""Families of Gaussian mixtures: the proposals of multi-expectation-ais (arXiv 2212.00568), and its input laws.

Does: densities of J members at once, draws from a mixture of members, cross-entropy fits to weighted points.
Does not: know what is estimated; see `multi_expectation_ais`.

Departures from the paper's code:
1. A member whose weights lie on fewer than d + 1 points keeps its last law: its covariance would be singular. (The
   paper's code adds 1e-6 I and goes on.) This holds for weights that are all 0 too.
2. The mixture of two Gaussians begins at the two halves of the weighted points along their longest axis; the paper's
   begins at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, refuse, require_finite

KINDS = ("SG", "GM")
RIDGE = 1e-6  # added to each fitted variance
_EM_STEPS, _EM_CHANGE = 50, 1e-4
_ROWS = 4096  # points a density is computed for at once: what a processor's cache holds


@dataclass(frozen=True)
class Family:
    """J members, each a mixture of C Gaussians over R^d: shares (J, C), means (J, C, d), and the lower Cholesky factors
    roots (J, C, d, d) of the covariances. Made by `gaussians` and `fitted`."""

    shares: np.ndarray
    means: np.ndarray
    roots: np.ndarray

    def __len__(self) -> int:
        return len(self.means)

    @property
    def dimension(self) -> int:
        return self.means.shape[-1]

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """(n, J) log g_j at each row of x (n, d)."""
        parts = _log_gaussians(x, self.means.reshape(-1, self.dimension), self.roots.reshape(-1, *self.roots.shape[2:]))
        parts = parts.reshape(len(x), *self.shares.shape)
        if parts.shape[-1] == 1:
            return parts[..., 0]
        with np.errstate(divide="ignore"):
            return np.logaddexp.reduce(parts + np.log(self.shares), axis=-1)

    def draw(self, members: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(n, d): row i from member `members[i]`."""
        part = (generator.random((len(members), 1)) > self.shares.cumsum(axis=1)[members, :-1]).sum(axis=1)
        normal, x = generator.standard_normal((len(members), self.dimension)), np.empty((len(members), self.dimension))
        for j, c in np.ndindex(self.shares.shape):
            rows = (members == j) & (part == c)
            x[rows] = self.means[j, c] + normal[rows] @ self.roots[j, c].T
        return x

    def member(self, j: int) -> Family:
        """Member j alone."""
        return Family(self.shares[[j]], self.means[[j]], self.roots[[j]])


def gaussians(means: Any, covariances: Any) -> Family:
    """J Gaussians: means (J, d), covariances (J, d, d), or (d, d) for all of them. Raises where one isn't positive
    definite."""
    means = require_finite("means", means, "drop the laws without a mean")
    covariances = require_finite("covariances", covariances, "drop the laws without a covariance")
    if means.ndim != 2:
        raise refuse("the shape of means", means.shape, "be (laws, dimensions)", "write [[0.0]] for one law over R")
    j, d = means.shape
    if covariances.shape not in ((j, d, d), (d, d)):
        raise refuse(
            "the shape of covariances", covariances.shape, f"be ({j}, {d}, {d})", "give each law its own matrix"
        )
    if not np.allclose(covariances, np.swapaxes(covariances, -1, -2)):
        raise WorkbenchError("A covariance is not symmetric; pass e.g. (S + S.T) / 2.")
    try:
        roots = np.linalg.cholesky(np.broadcast_to(covariances, (j, d, d)))
    except np.linalg.LinAlgError:
        raise WorkbenchError("A covariance is not positive definite; shrink its correlations.") from None
    return Family(np.ones((j, 1)), means[:, None], roots[:, None])


def fitted(
    x: np.ndarray, weights: np.ndarray, before: Family, *, kind: str, diagonal: bool
) -> tuple[Family, np.ndarray]:
    """The family that each column of weights (n, J) >= 0 fits to the points x (n, d), and each fit's effective sample
    size (J,), (sum v)^2 / sum v^2.

    "SG": mu_j = sum v x / sum v and the weighted covariance + 1e-6 I, the Gaussian of least cross-entropy to the
    weighted points; "GM": a mixture of two by weighted expectation-maximisation. `before` (J members, or one for all)
    gives the laws of members that can't be fitted. diagonal: covariances off the diagonal are 0.
    """
    d = x.shape[1]
    top = weights.max(axis=0)
    scaled = weights / np.where(top > 0, top, 1)  # so that tiny or huge weights have squares
    effective = np.where(top > 0, scaled.sum(axis=0) ** 2 / np.maximum((scaled**2).sum(axis=0), 1e-300), 0)
    parts = 1 if kind == "SG" else 2
    shares, means, roots = _alike(before, len(top), parts)
    enough = (scaled > 0).sum(axis=0) > d
    single, single_roots = _moments(x, scaled[:, enough], diagonal)
    if kind == "SG":
        means[enough, 0], roots[enough, 0] = single, single_roots
    else:
        for j, mean, root in zip(np.flatnonzero(enough), single, single_roots, strict=True):
            used = scaled[:, j] > 0
            shares[j], means[j], roots[j] = _two_gaussians(x[used], scaled[used, j], mean, root, diagonal)
    return Family(shares, means, roots), effective


def _alike(before: Family, members: int, parts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares, means and roots of `before` for J members of C parts each."""
    shape, d = (members, parts), before.dimension
    shares = np.broadcast_to(before.shares * before.shares.shape[1] / parts, shape)
    means, roots = np.broadcast_to(before.means, (*shape, d)), np.broadcast_to(before.roots, (*shape, d, d))
    return shares.copy(), means.copy(), roots.copy()


def _moments(x: np.ndarray, weights: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means (J, d), and Cholesky factors (J, d, d) of the weighted covariances + 1e-6 I."""
    d, share = x.shape[1], weights / weights.sum(axis=0)
    means = share.T @ x
    squares = (share.T @ (x[:, :, None] * x[:, None, :]).reshape(len(x), d * d)).reshape(-1, d, d)
    covariances = squares - means[:, :, None] * means[:, None, :]
    if diagonal:
        covariances = covariances * np.eye(d)
    # Rounding may leave a variance below 0 by 1e-16 of the mean's square, which the ridge has to exceed.
    ridge = RIDGE + 1e-12 * (means**2).max(axis=1, initial=0.0)
    return means, np.linalg.cholesky(covariances + ridge[:, None, None] * np.eye(d))


def _two_gaussians(
    x: np.ndarray, weight: np.ndarray, mean: np.ndarray, root: np.ndarray, diagonal: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares (2,), means (2, d) and roots (2, d, d) of the mixture that maximises sum weight log density."""
    axis = np.linalg.svd(root)[0][:, 0]
    side = (x - mean) @ axis > 0
    belongs, last = np.column_stack([side, ~side]).astype(float), -np.inf
    shares, means, roots = np.full(2, 0.5), np.tile(mean, (2, 1)), np.tile(root, (2, 1, 1))
    for _ in range(_EM_STEPS):
        mass = weight[:, None] * belongs
        if ((mass > 0).sum(axis=0) <= x.shape[1]).any():
            break
        shares = mass.sum(axis=0) / mass.sum()
        means, roots = _moments(x, mass, diagonal)
        logs = _log_gaussians(x, means, roots) + np.log(shares)
        total = np.logaddexp.reduce(logs, axis=1)
        belongs = np.exp(logs - total[:, None])
        fit = float(weight @ total / weight.sum())
        if fit - last < _EM_CHANGE:
            break
        last = fit
    return shares, means, roots


def _log_gaussians(x: np.ndarray, means: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """(n, K) log densities of K Gaussians; means (K, d), roots (K, d, d)."""
    d, inverses = x.shape[1], np.linalg.inv(roots)
    constants = np.log(np.einsum("kii->ki", roots)).sum(axis=1) + d * np.log(2 * np.pi) / 2
    found = np.empty((len(x), len(means)))
    for first in range(0, len(x), _ROWS):
        rows = slice(first, first + _ROWS)
        for k, (mean, inverse) in enumerate(zip(means, inverses, strict=True)):
            z = (x[rows] - mean) @ inverse.T
            found[rows, k] = -0.5 * np.einsum("ni,ni->n", z, z) - constants[k]
    return found
