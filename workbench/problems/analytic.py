"""Rare events under a standard Gaussian whose probability is known: where an estimator is tried first.

The question is P(g(Z) <= 0) with Z ~ N(0, I_d) and a limit state g, as in the field of structural reliability. Truths
are closed forms or one-dimensional integrals.
Does: Gaussian tails with one or two modes, classics of the reliability field, and importance sampling from Gaussians
that are shifted along one direction.
Does not: anything with a model in it; see `workbench.problems.event`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import integrate, stats
from scipy.special import ndtr, ndtri

from workbench.budget import charge
from workbench.errors import require_integer, require_number, require_probability
from workbench.streams import Stream


class GaussianEvent:
    """P(g(Z) <= 0) for Z ~ N(0, I_d).

    A subclass or instance gives name, truth, dimension d, `direction` (d,) (a unit vector along which a proposal is
    shifted) and `_g`: (n, d) -> (n,). Each value of g is charged as one model call.
    """

    name: str
    truth: float
    dimension: int
    direction: np.ndarray

    def _g(self, z: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def limit_state(self, z: np.ndarray) -> np.ndarray:
        """g at each row of z (n, d); the event is g <= 0."""
        charge(model_calls=len(z))
        return self._g(z)

    def sample(self, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"hit": (n,) bool}: one draw of Z each."""
        return {"hit": self.limit_state(ndtri(stream.uniforms(n, self.dimension))) <= 0}

    def sample_from(self, proposal, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"hit", "log_weight", "score", "plain", "log_ratio"}, each (n,): draws from the mixture
        (1 - mixture) N(strength * direction, I) + mixture N(0, I).

        log_weight = log p(z) - log of the mixture; score = -g(z), how near z comes; plain: whether z came from N(0, I);
        log_ratio = log of the shifted law - log p(z).
        """
        plain = proposal.switch == 0
        settings = np.full(n, proposal.mixture), np.full(n, 0 if plain else 1)
        drawn = self.pilot_from(0.0 if plain else proposal.strength, *settings, n, stream, score_under=())
        return {name: drawn[name] for name in ("hit", "log_weight", "score", "plain", "log_ratio")}

    def pilot_from(
        self,
        strength: float,
        mixture: np.ndarray,
        switch: np.ndarray,
        n: int,
        stream: Stream,
        score_under: Sequence[float],
    ) -> dict[str, np.ndarray]:
        """As `sample_from`, with a mixture and switch (n,) for each draw; also log_p (n, 1) of p and log_q
        (n, strengths, 1) of the shifted law for each strength of `score_under`, both of the coordinate along
        `direction`, as the others cancel. A draw is one token: switch 0 draws from p.
        """
        uniforms = stream.uniforms(n, self.dimension + 1)
        share = np.where(switch == 0, 1.0, mixture)
        plain = uniforms[:, -1] < share
        shift = np.where(plain, 0.0, strength)
        z = ndtri(uniforms[:, :-1]) + shift[:, None] * self.direction
        along = z @ self.direction
        log_p = -(along**2) / 2 - np.log(2 * np.pi) / 2
        log_q = log_p + strength * along - strength**2 / 2
        scored = [log_p + other * along - other**2 / 2 for other in score_under]
        with np.errstate(divide="ignore"):
            log_mixed = np.logaddexp(np.log1p(-share) + log_q, np.log(share) + log_p)
        g = self.limit_state(z)
        return {
            "hit": g <= 0,
            "score": -g,
            "plain": plain,
            "log_ratio": log_q - log_p,
            "log_weight": log_p - log_mixed,
            "log_p": log_p[:, None],
            "log_q": np.reshape(scored, (len(score_under), n)).T[:, :, None],
        }


@dataclass(frozen=True)
class GaussianTail(GaussianEvent):
    """P(Z > threshold) for Z ~ N(0, 1), or P(|Z| > threshold) if `two_sided`.

    The two-sided tail is the classic trap for importance sampling: a proposal shifted to one side
    hardly ever visits the other, and looks precise while it is wrong by half.
    """

    threshold: float = 2.0
    two_sided: bool = False

    def __post_init__(self) -> None:
        require_number("threshold", self.threshold, low=0, high=37, cure="choose a threshold such as 3.0")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"gaussian-tail({self.threshold:g}{', two-sided' if self.two_sided else ''})"

    @property
    def truth(self) -> float:  # type: ignore[override]
        """Phi(-threshold), twice that if two-sided."""
        return float(ndtr(-self.threshold)) * (2 if self.two_sided else 1)

    @property
    def dimension(self) -> int:  # type: ignore[override]
        return 1

    @property
    def direction(self) -> np.ndarray:  # type: ignore[override]
        return np.ones(1)

    def _g(self, z: np.ndarray) -> np.ndarray:
        return np.nextafter(self.threshold, np.inf) - (np.abs(z) if self.two_sided else z)[:, 0]


@dataclass(frozen=True, eq=False)
class LimitState(GaussianEvent):
    """P(g(Z) <= 0) for a limit state of one's own; `truth` is None where it is unknown."""

    name: str
    dimension: int
    function: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    truth: float
    direction: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        require_integer("dimension", self.dimension, low=1, cure="g takes at least one coordinate")

    def _g(self, z: np.ndarray) -> np.ndarray:
        return self.function(z)


def linear(probability: float, dimension: int = 50) -> LimitState:
    """The sum of all coordinates over sqrt(d) exceeds a threshold: one mode, far out where d is large."""
    threshold = -float(ndtri(_rare(probability)))
    direction = np.full(dimension, dimension**-0.5)
    return LimitState(
        f"linear(d={dimension}, p={probability:g})",
        dimension,
        lambda z: threshold - z @ direction,
        probability,
        direction,
    )


def lopsided(near: float = 3.0, far: float = 3.3) -> LimitState:
    """Z > near or Z < -far: a second, smaller mode on the other side, Phi(-far) / Phi(-near) as likely."""
    truth = float(ndtr(-near) + ndtr(-far))
    return LimitState(
        f"lopsided({near:g}, -{far:g})", 1, lambda z: np.minimum(near - z[:, 0], far + z[:, 0]), truth, np.ones(1)
    )


def shell(probability: float, dimension: int = 10) -> LimitState:
    """|Z| exceeds a radius: likely in every direction alike, so that no shift helps. Truth: chi-squared tail."""
    radius = float(stats.chi2.isf(_rare(probability), dimension)) ** 0.5
    return LimitState(
        f"shell(d={dimension}, p={probability:g})",
        dimension,
        lambda z: radius - np.linalg.norm(z, axis=1),
        probability,
        np.eye(dimension)[0],
    )


def four_branch(offset: float = 3.0, width: float = 7.0) -> LimitState:
    """The series system with four branches of Waarts (2000), whose failure lies in four directions.

    g = min(offset + (z1 - z2)^2 / 10 -/+ (z1 + z2) / sqrt 2, +/-(z1 - z2) + width / sqrt 2). With u, v the coordinates
    turned by 45 degrees the event is |u| > offset + v^2 / 5 or |v| > width / 2, so that
    P = 1 - int_{-width/2}^{width/2} phi(v) (1 - 2 Phi(-offset - v^2 / 5)) dv, integrated for the complement.
    """
    half = width / 2
    inside, _ = integrate.quad(
        lambda v: stats.norm.pdf(v) * 2 * ndtr(-offset - v * v / 5), -half, half, epsabs=0, epsrel=1e-12, limit=200
    )

    def g(z: np.ndarray) -> np.ndarray:
        u, v = (z[:, 0] + z[:, 1]) / np.sqrt(2), (z[:, 0] - z[:, 1]) / np.sqrt(2)
        return np.minimum(offset + v**2 / 5 - np.abs(u), np.sqrt(2) * (half - np.abs(v)))

    direction = np.full(2, np.sqrt(0.5))
    return LimitState(f"four-branch({offset:g}, {width:g})", 2, g, float(inside + 2 * ndtr(-half)), direction)


def exponential_sum(probability: float, dimension: int = 10) -> LimitState:
    """The sum of d standard exponentials, -log Phi(-z_i), exceeds a threshold. Truth: gamma tail."""
    threshold = float(stats.gamma.isf(_rare(probability), dimension))
    return LimitState(
        f"exponential-sum(d={dimension}, p={probability:g})",
        dimension,
        lambda z: threshold + stats.norm.logsf(z).sum(axis=1),
        probability,
        np.full(dimension, dimension**-0.5),
    )


def heavy_maximum(probability: float, dimension: int = 5, index: float = 2.0) -> LimitState:
    """The largest of d Pareto losses, Phi(-z_i)^(-1/index), exceeds a threshold: d modes, one along each axis.

    Truth: 1 - (1 - t^-index)^d.
    """
    one = -np.expm1(np.log1p(-_rare(probability)) / dimension)
    log_threshold = -np.log(one) / index
    return LimitState(
        f"heavy-maximum(d={dimension}, p={probability:g})",
        dimension,
        lambda z: log_threshold + stats.norm.logsf(z).min(axis=1) / index,
        probability,
        np.eye(dimension)[0],
    )


def _rare(probability: float) -> float:
    return require_probability("probability", probability, cure="pass e.g. probability=1e-4")
