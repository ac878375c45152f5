"""Questions of many expectations whose answers are known: where multi-expectation-ais (arXiv 2212.00568) is tried.

Does: moments and exponential tilts of a normal law in closed form; the deflection of a cantilever beam under one law or
many, its tail and its first-order Sobol' indices, all by quadrature.
Does not: estimate them, but for the indices as scipy does; see `multi_expectation_ais`.

The beam: D = 4 L^3 / (E w t) sqrt((FX / w^2)^2 + (FY / t^2)^2) in metres, with loads FX and FY in newton, modulus E in
GPa (times 1e9), width w, thickness t and length L in metres. FX, FY and E are lognormal, w, t and L normal. In the
coordinates (log FX, log FY, log E, w, t, L) each law of the inputs is one normal law; standardised by the mean law.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import factorial2, ndtr
from scipy.stats import norm, sobol_indices

from workbench.errors import refuse, require_finite, require_integer, require_probability
from workbench.methods.tail_risk.gaussian_families import Family, gaussians
from workbench.methods.tail_risk.multi_expectation_ais import Expectations
from workbench.streams import Stream

INPUTS = ("FX", "FY", "E", "w", "t", "L")
MEANS = np.array([556.8, 453.6, 200.0, 0.062, 0.0987, 4.29])
VARIATION = np.array([0.08, 0.08, 0.06, 0.1, 0.1, 0.1])
LOWEST, HIGHEST = np.array([[525, 575], [425, 475], [175, 225], [0.06, 0.07], [0.09, 0.1], [4, 5]]).T
_LOG = np.array([True, True, True, False, False, False])


def gaussian_moments(j: int = 10, *, relative: bool = True) -> Expectations:
    """E X^(2k) = (2k - 1)!!, k = 1..J, for X ~ N(0, 1); weights 1 / I^2 (relative errors), or 1."""
    j = require_integer("j", j, low=1, high=20, cure="higher moments exceed what a float can tell apart")
    powers = 2 * np.arange(1, j + 1)
    truth = factorial2(powers - 1)
    weights = 1 / truth**2 if relative else np.ones(j)
    return Expectations(f"{j} moments", gaussians([[0.0]], np.eye(1)), lambda x: x**powers, weights, truth)


def moment_variances(j: int = 10) -> np.ndarray:
    """(J,) variance (4k - 1)!! - ((2k - 1)!!)^2 of X^(2k), k = 1..J, for X ~ N(0, 1): of one draw of Monte Carlo."""
    powers = 2 * np.arange(1, j + 1)
    return factorial2(2 * powers - 1) - factorial2(powers - 1) ** 2


def gaussian_tilts(rates: Any = (0.5, 1.5)) -> tuple[Expectations, Family]:
    """E exp(c X) = exp(c^2 / 2) for X ~ N(0, 1) and each rate c, and the optimal family: g_j* = N(c_j, 1)."""
    c = require_finite("rates", rates, "pass e.g. rates=(0.5, 1.5)")
    question = Expectations(
        "tilts", gaussians([[0.0]], np.eye(1)), lambda x: np.exp(x * c), np.ones(len(c)), np.exp(c**2 / 2)
    )
    return question, gaussians(c[:, None], np.eye(1))


class Beam(NamedTuple):
    """A law of the inputs in the coordinates (log FX, log FY, log E, w, t, L): mean (6,) and covariance (6, 6). FX, FY
    and E depend on nothing."""

    mean: np.ndarray
    covariance: np.ndarray


def beam(means: Any = MEANS, correlations: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Beam:
    """The law with these means of the inputs, the usual coefficients of variation, and correlations w-t, w-L and t-L.

    Correlations that no law can have together are shrunk by 0.9 until one can.
    """
    means = require_finite("means", means, "give the six inputs' means")
    if means.shape != (6,) or not (means > 0).all():
        raise refuse("means", means, "be six positive numbers", f"give those of {', '.join(INPUTS)}")
    spread = np.where(_LOG, np.sqrt(np.log1p(VARIATION**2)), VARIATION * means)
    middle = np.where(_LOG, np.log(means) - spread**2 / 2, means)
    matrix, off = np.eye(6), np.zeros((6, 6))
    off[[3, 3, 4], [4, 5, 5]] = require_finite("correlations", correlations, "give those of w-t, w-L and t-L")
    while np.linalg.eigvalsh(matrix + off + off.T)[0] <= 1e-9:
        off *= 0.9
    return Beam(middle, (matrix + off + off.T) * np.outer(spread, spread))


MEAN_BEAM = beam()
_SPREAD = np.sqrt(np.diag(MEAN_BEAM.covariance))


def deflection(z: np.ndarray) -> np.ndarray:
    """(n,) deflection in metres at standardised coordinates z (n, 6): (coordinate - mean) / SD of the mean law."""
    u = MEAN_BEAM.mean + _SPREAD * z
    fx, fy, e = np.exp(u[:, :3]).T
    return _deflection(fx, fy, 1e9 * e, *u[:, 3:].T)


def _deflection(fx: Any, fy: Any, e: Any, w: Any, t: Any, length: Any) -> Any:
    return 4 * length**3 / (e * w * t) * np.hypot(fx / w**2, fy / t**2)


def beam_laws(j: int, stream: Stream) -> list[Beam]:
    """J laws by a Latin hypercube over the means and the correlations w-t in (-0.6, 0), w-L and t-L in (0, 0.5)."""
    j = require_integer("j", j, low=1, cure="draw one law or more")
    generator, low, high = (
        stream.child("laws").generator(),
        np.append(LOWEST, [-0.6, 0, 0]),
        np.append(HIGHEST, [0, 0.5, 0.5]),
    )
    cells = generator.permuted(np.tile(np.arange(j), (9, 1)), axis=1).T
    drawn = low + (high - low) * (cells + generator.random((j, 9))) / j
    return [beam(row[:6], tuple(row[6:])) for row in drawn]


def standardised(laws: list[Beam]) -> Family:
    """The laws in the standardised coordinates."""
    return gaussians([(law.mean - MEAN_BEAM.mean) / _SPREAD for law in laws],
                     [law.covariance / np.outer(_SPREAD, _SPREAD) for law in laws])  # fmt: skip


def mean_deflections(laws: list[Beam]) -> Expectations:
    """The mean deflection under each law, all from the same points; truth by quadrature."""
    truth = np.array([deflection_moments(law)[0] for law in laws])
    return Expectations(
        f"{len(laws)} beams", standardised(laws), lambda z: deflection(z)[:, None], np.ones(len(laws)), truth
    )


def deflection_moments(law: Beam, nodes: int = 12) -> tuple[float, float]:
    """E D and E D^2: D = L^3 / E times a function of (FX, FY, w, t). Those four by a Gauss-Hermite grid; E, and L given
    w and t, in closed form."""
    (fx, fy, w, t), weight = _grid(law, nodes)
    among, cross = law.covariance[3:5, 3:5], law.covariance[5, 3:5]
    slope = np.linalg.solve(among, cross)
    middle = law.mean[5] + slope[0] * (w - law.mean[3]) + slope[1] * (t - law.mean[4])
    rest = law.covariance[5, 5] - cross @ slope
    third, sixth = _power_moments(middle, rest)
    h, (m, v) = _deflection(fx, fy, 1e9, w, t, 1.0), (law.mean[2], law.covariance[2, 2])
    return float(weight @ (h * third)) * np.exp(-m + v / 2), float(weight @ (h**2 * sixth)) * np.exp(-2 * m + 2 * v)


def _power_moments(m: Any, v: Any) -> tuple[Any, Any]:
    """E L^3 and E L^6 for L ~ N(m, v)."""
    return m**3 + 3 * m * v, m**6 + 15 * m**4 * v + 45 * m**2 * v**2 + 15 * v**3


def _grid(law: Beam, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Values (4, nodes^4) of (FX, FY, w, t) and weights (nodes^4,) that sum to 1."""
    place, share = np.polynomial.hermite_e.hermegauss(nodes)
    z = np.array(np.meshgrid(*[place] * 4, indexing="ij")).reshape(4, -1)
    kept = [0, 1, 3, 4]
    u = law.mean[kept][:, None] + np.linalg.cholesky(law.covariance[np.ix_(kept, kept)]) @ z
    weight = np.prod(np.meshgrid(*[share / share.sum()] * 4, indexing="ij"), axis=0).ravel()
    return np.vstack([np.exp(u[:2]), u[2:]]), weight


def exact_indices(nodes: int = 24) -> np.ndarray:
    """(6,) first-order Sobol' indices Var E[D | X_i] / Var D of the beam under the mean law, in the order of INPUTS."""
    (fx, fy, w, t), weight = _grid(MEAN_BEAM, nodes)
    h = _deflection(fx, fy, 1.0, w, t, 1.0).reshape([nodes] * 4)
    weight = weight.reshape(h.shape)
    mean = (weight * h).sum()
    third, sixth = _power_moments(MEAN_BEAM.mean[5], MEAN_BEAM.covariance[5, 5])
    # E r_i^2, r_i = E[D | X_i] / E D; for E and L in closed form.
    squares = dict.fromkeys(INPUTS, 0.0) | {"E": np.exp(MEAN_BEAM.covariance[2, 2]), "L": sixth / third**2}
    for axis, name in enumerate(("FX", "FY", "w", "t")):
        others = tuple(k for k in range(4) if k != axis)
        share = weight.sum(axis=others)
        squares[name] = (share * ((weight * h).sum(axis=others) / share / mean) ** 2).sum()
    total = (weight * h**2).sum() / mean**2 * squares["E"] * squares["L"]
    return np.array([squares[name] - 1 for name in INPUTS]) / (total - 1)


def pick_freeze(model: Callable[[np.ndarray], np.ndarray], d: int, *, name: str = "model") -> Expectations:
    """The J = d + 2 expectations behind the first-order Sobol' indices of a model of d standard normal inputs.

    Over R^2d, x = (x1, x2): phi = f(x1), f(x1)^2, and f(x1) f(x2 with input i from x1), i = 1..d, where model (n, d) ->
    (n,) is f. A point costs d + 1 runs. Scale the model so that its values are about 1.
    """
    d = require_integer("d", d, low=1, cure="a model needs an input")

    def phi(x: np.ndarray) -> np.ndarray:
        first, mixed = model(x[:, :d]), []
        for i in range(d):
            frozen = x[:, d:].copy()
            frozen[:, i] = x[:, i]
            mixed.append(first * model(frozen))
        return np.column_stack([first, first**2, *mixed])

    return Expectations(
        f"Sobol' indices of {name}", gaussians(np.zeros((1, 2 * d)), np.eye(2 * d)), phi, np.ones(d + 2), runs=d + 1
    )


def first_order(value: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices S_i = (I_i - m^2) / (q - m^2) (d,) and their variances (d,) by the delta method, from the answer to
    `pick_freeze`: value (d + 2,) = (m, q, I_1..I_d) and its covariance."""
    m, q, mixed = value[0], value[1], value[2:]
    spread = q - m**2
    if not spread > 0:
        raise refuse("q - m^2", spread, "be positive", "use more points: the estimated variance of the model is not")
    index = (mixed - m**2) / spread
    slopes = np.column_stack([-2 * m * (1 - index) / spread, -index / spread, np.eye(len(index)) / spread])
    return index, np.einsum("ik,kl,il->i", slopes, covariance, slopes)


def beam_indices() -> Expectations:
    """`pick_freeze` of the deflection, divided by its mean."""
    unit = deflection_moments(MEAN_BEAM)[0]
    return pick_freeze(lambda z: deflection(z) / unit, 6, name="the beam")


def scipy_indices(n: int, stream: Stream, *, quasi: bool = True) -> np.ndarray:
    """(6,) first-order indices of the beam by scipy.stats.sobol_indices (the estimator of Saltelli et al., 2010) from
    8 n runs of the model: on quasi-random points, as it comes (n a power of 2), or on random ones."""
    n = require_integer("n", n, low=2, cure="take e.g. n=2**14")
    if quasi:
        if n & (n - 1):
            raise refuse("n", n, "be a power of 2 for quasi-random points", "take e.g. n=2**14")
        rng, laws = np.random.default_rng(list(stream.key)), [norm()] * 6
        return sobol_indices(func=lambda z: deflection(z.T)[None], n=n, dists=laws, rng=rng).first_order.ravel()
    a, b = stream.generator().standard_normal((2, n, 6))
    mixed = [deflection(np.where(np.arange(6) == i, b, a)) for i in range(6)]
    values = {"f_A": deflection(a)[None], "f_B": deflection(b)[None], "f_AB": np.array(mixed)[:, None]}
    return sobol_indices(func=values, n=n).first_order.ravel()


def exceedance(thresholds: Any, nodes: tuple[int, ...] = (6, 6, 8, 24, 24)) -> np.ndarray:
    """(K,) P(D > d) under the mean law for each threshold d in metres: L in closed form, the others by quadrature with
    so many nodes for FX, FY, E, w and t."""
    d = require_finite("thresholds", thresholds, "give thresholds in metres, e.g. [0.05, 0.1]")
    if not (d > 0).all():
        raise refuse("min(thresholds)", d.min(), "be positive", "a deflection is")
    rules = [np.polynomial.hermite_e.hermegauss(count) for count in nodes]
    grid = np.meshgrid(
        *[m + s * place for (place, _), m, s in zip(rules, MEAN_BEAM.mean, _SPREAD, strict=False)], indexing="ij"
    )
    weight = np.prod(np.meshgrid(*[share / share.sum() for _, share in rules], indexing="ij"), axis=0).ravel()
    fx, fy, e, w, t = (axis.ravel() for axis in grid)
    unit = np.cbrt(_deflection(np.exp(fx), np.exp(fy), 1e9 * np.exp(e), w, t, 1.0))
    return np.array([weight @ ndtr((MEAN_BEAM.mean[5] - np.cbrt(one) / unit) / _SPREAD[5]) for one in np.atleast_1d(d)])


def tail_curve(levels: Any) -> tuple[Expectations, np.ndarray]:
    """P(D > d_k) at the thresholds d_k (K,) of these levels of D, and the thresholds; weights 1 / I^2.

    Thresholds by interpolation, their exact probabilities by quadrature.
    """
    levels = np.array([require_probability("level", level) for level in levels])
    grid = np.geomspace(0.01, 0.4, 40)
    thresholds = np.exp(np.interp(-np.log1p(-levels), -np.log(exceedance(grid)), np.log(grid)))
    truth = exceedance(thresholds)
    question = Expectations("tail of the beam", standardised([MEAN_BEAM]),
                            lambda z: 1.0 * (deflection(z)[:, None] > thresholds), 1 / truth**2, truth)  # fmt: skip
    return question, thresholds
