"""Rare events whose probability is known in closed form: where an estimator is tried first.

Does: a Gaussian tail with one or two modes, and importance sampling from shifted Gaussians.
Does not: anything with a model in it; see `workbench.problems.event`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from workbench.errors import require_number
from workbench.streams import Stream


@dataclass(frozen=True)
class GaussianTail:
    """P(Z > threshold) for Z ~ N(0, 1), or P(|Z| > threshold) if `two_sided`.

    The two-sided tail is the classic trap for importance sampling: a proposal shifted to one side
    hardly ever visits the other, and looks precise while it is wrong by half.
    """

    threshold: float = 2.0
    two_sided: bool = False

    def __post_init__(self) -> None:
        require_number("threshold", self.threshold, low=0, high=37, cure="choose a threshold such as 3.0")

    @property
    def name(self) -> str:
        return f"gaussian-tail({self.threshold:g}{', two-sided' if self.two_sided else ''})"

    @property
    def truth(self) -> float:
        """Phi(-threshold), twice that if two-sided."""
        return float(ndtr(-self.threshold)) * (2 if self.two_sided else 1)

    def sample(self, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"hit": (n,) bool}: one draw of Z each."""
        return {"hit": self._hit(ndtri(stream.uniforms(n)[:, 0]))}

    def sample_from(self, proposal, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"hit": (n,), "log_weight": (n,)}: draws from (1 - mixture) N(strength, 1) + mixture N(0, 1).

        The log-weight is log p(z) - log q(z).
        """
        plain = proposal.switch == 0
        settings = np.full(n, proposal.mixture), np.full(n, 0 if plain else 1)
        drawn = self.pilot_from(proposal.strength, *settings, n, stream, score_under=())
        return {"hit": drawn["hit"], "log_weight": drawn["log_weight"]}

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
        (n, strengths, 1) of N(strength, 1) for each strength of `score_under`. A draw is one token: switch 0 draws from p.
        """
        uniforms = stream.uniforms(n, 2)
        share = np.where(switch == 0, 1.0, mixture)
        z = ndtri(uniforms[:, 0]) + np.where(uniforms[:, 1] < share, 0.0, strength)
        log_p = -(z**2) / 2 - np.log(2 * np.pi) / 2
        log_q = log_p + strength * z - strength**2 / 2
        scored = [log_p + other * z - other**2 / 2 for other in score_under]
        with np.errstate(divide="ignore"):
            log_mixed = np.logaddexp(np.log1p(-share) + log_q, np.log(share) + log_p)
        return {
            "hit": self._hit(z),
            "log_weight": log_p - log_mixed,
            "log_p": log_p[:, None],
            "log_q": np.reshape(scored, (len(score_under), n)).T[:, :, None],
        }

    def _hit(self, z: np.ndarray) -> np.ndarray:
        return np.abs(z) > self.threshold if self.two_sided else z > self.threshold
