"""The cross-entropy method for Gaussian events: a ladder of thresholds leads a shifted Gaussian to the event.

Rubinstein and Kroese, The Cross-Entropy Method (2004); de Boer, Kroese, Mannor and Rubinstein, "A tutorial on the
cross-entropy method", Annals of Operations Research 134 (2005), algorithm 3.1 for the family N(mu, I). In a round, points
z_i ~ q = N(mu, I) with scores s_i = -g(z_i) and weights w_i = exp(-mu.z_i + |mu|^2 / 2) give

    gamma = min(0, the (1 - rho) quantile of s),     mu <- sum_i w_i 1{s_i >= gamma} z_i / sum_i w_i 1{s_i >= gamma},

until gamma = 0, which is the event. The answer comes from fresh draws of (1 - a) N(mu, I) + a N(0, I), a = 0.1:

    p_hat = (1/n) sum w h,     w <= 1 / a.

Departures from the algorithm: 1. the final law is mixed with the plain one (Hesterberg 1995), which bounds the weights, so
that the variance is finite whatever mu is; 2. the covariance stays I: a pilot of hundreds knows no covariance in fifty
dimensions, and its mean alone is off by sqrt(d / (rho pilot)), which is why a round has at least 20 d draws.

What the method can't do is serve an event with several modes: mu goes to one of them, or between them. It is caught here
by what the first round saw under the plain law. Of its best share rho, the points that lie away from the final mu
(mu.z < 0) show that the way to the event leads elsewhere too; more than one in twenty, and `reliable` is False. An event
that bends around the origin is another: a shift covers a part of it, and the rest comes with huge weights or not at all.
So `reliable` is False too where the effective number of hits is below 30 or below a twentieth of the hits (on the far side
of a plane it is about 0.8 / |mu| of the draws), and where the ladder did not reach the event. A mode that does not show
among the best tenth of plain draws is caught by nothing; `unseen_at_most` bounds what it could add.
Does: Gaussian events. Does not: models; see `CrossEntropy` in `lm_tail_risk`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from workbench.errors import Unsuitable, require_integer, require_probability
from workbench.estimate import Estimate
from workbench.methods.tail_risk.lm_tail_risk import NO_WEIGHTS, absorb_weights, importance_estimate
from workbench.run import Batch, State
from workbench.streams import Stream

_MOST_ROUNDS = 30
_MOST_AWAY = 0.05
_LEAST_EVEN = 0.05
_PILOT_PER_DIMENSION = 20


@dataclass(frozen=True)
class GaussianCrossEntropy:
    """Importance sampling from a Gaussian that a ladder of pilots shifted to the event; the pilots are paid for.

    pilot    draws a round, or 20 times the dimension where that is more
    elite    rho, the share of a round that sets its threshold
    mixture  a, the plain law's share of the final draws
    level    of the interval
    """

    pilot: int = 500
    elite: float = 0.1
    mixture: float = 0.1
    level: float = 0.95

    def __post_init__(self) -> None:
        require_integer("pilot", self.pilot, low=20, cure="pass e.g. 500")
        require_probability("elite", self.elite, cure="pass the share that sets the threshold, e.g. 0.1")
        cure = "pass the plain law's share, e.g. 0.1"
        require_probability("mixture", self.mixture, cure=cure)
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        if not callable(getattr(problem, "limit_state", None)):
            raise Unsuitable(
                f"GaussianCrossEntropy needs a Gaussian event with a limit state, and {problem.name} is none; "
                "use MonteCarlo, or CrossEntropy for a model."
            )
        d = problem.dimension
        empty = {"index": np.zeros(0, dtype=np.int64), "z": np.zeros((0, d)), "score": np.zeros(0)}
        return {
            "size": max(self.pilot, _PILOT_PER_DIMENSION * d),
            "round": 0,
            "spent": 0,
            "mu": np.zeros(d),
            "ready": False,
            "first": empty["z"],
            "final": NO_WEIGHTS,
        } | empty

    def round_size(self, problem: Any, state: State) -> int | None:
        return None if state["ready"] else state["size"] - len(state["index"])

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        uniforms = stream.uniforms(n, problem.dimension + 1)
        z, mu = ndtri(np.maximum(uniforms[:, :-1], 2.0**-54)), state["mu"]
        if not state["ready"]:
            z = z + mu
            return {"index": stream.first + np.arange(n), "z": z, "score": -problem.limit_state(z)}
        z = z + np.where(uniforms[:, -1:] < self.mixture, 0.0, mu)
        log_weight = -np.logaddexp(np.log(self.mixture), math.log1p(-self.mixture) + _log_ratio(z, mu))
        return {"hit": problem.limit_state(z) <= 0, "log_weight": log_weight}

    def absorb(self, state: State, batch: Batch) -> State:
        if state["ready"]:
            return state | {"final": absorb_weights(state["final"], batch)}
        state = state | {name: np.concatenate([state[name], batch[name]]) for name in ("index", "z", "score")}
        return self._climb(state) if len(state["index"]) == state["size"] else state

    def _climb(self, state: State) -> State:
        """End of a round: the next threshold and the mean that it asks for."""
        order = np.argsort(state["index"])
        z, score = state["z"][order], state["score"][order]
        height = min(0.0, float(np.sort(score)[math.floor((1 - self.elite) * state["size"])]))
        best = score >= height
        with np.errstate(under="ignore"):
            log_weight = -_log_ratio(z[best], state["mu"])
            weight = np.exp(log_weight - log_weight.max())
        rounds = state["round"] + 1
        empty = {"index": order[:0], "z": z[:0], "score": score[:0]}
        return (
            state
            | empty
            | {
                "round": rounds,
                "spent": state["spent"] + state["size"],
                "mu": (weight[:, None] * z[best]).sum(axis=0) / weight.sum(),
                "first": z[best] if rounds == 1 else state["first"],
                "height": height,
                "ready": height == 0 or rounds == _MOST_ROUNDS,
            }
        )

    def result(self, state: State) -> Estimate:
        spent = state["spent"] + len(state["index"])
        if not state["ready"] or not state["final"]["n"]:
            why = (
                f"the pilot is under way (round {state['round'] + 1}, {spent:,} draws)"
                if spent
                else "no sample has been drawn yet"
            )
            facts = {
                "rounds": state["round"],
                "best_score": float(state["score"].max()) if len(state["score"]) else None,
            }
            return Estimate.unknown(0.0, 1.0, why, level=self.level, n_samples=spent, diagnostics=facts)
        estimate = importance_estimate(state["final"], self.level, -math.log(self.mixture))
        away = float(((state["first"] * state["mu"]).sum(axis=1) < 0).mean())
        why, reliable, facts = estimate.why, estimate.reliable, estimate.diagnostics
        if away > _MOST_AWAY:
            reliable = False
            why = f"{away:.0%} of the first round's best points lie away from the shift: the event may have other modes"
        elif state["height"] < 0:
            reliable, why = False, f"after {_MOST_ROUNDS} rounds the ladder has not reached the event"
        elif reliable and (share := facts["effective_sample_size"] / facts["hits"]) < _LEAST_EVEN:
            reliable = False
            why = f"the hits' weights are so uneven that they count for {share:.1%} of their number"
        facts = facts | {"rounds": state["round"], "shift": float(np.linalg.norm(state["mu"])), "away": away}
        return estimate.with_run(
            n_samples=spent + estimate.n_samples,
            reliable=reliable,
            why=why,
            diagnostics=facts,
        )


def _log_ratio(z: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """log N(z; mu, I) - log N(z; 0, I) at rows of z."""
    # Not a matrix product, whose last bits may depend on the number of rows.
    return (z * mu).sum(axis=1) - float((mu**2).sum()) / 2
