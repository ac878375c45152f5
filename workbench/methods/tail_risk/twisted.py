"""Twisted sequential Monte Carlo for Markov chains: particles that are drawn to where the target can be reached from.

Whiteley and Lee, "Twisted particle filters", Annals of Statistics 42 (2014); Guarniero, Johansen and Lee, "The iterated
auxiliary particle filter", JASA 112 (2017); Del Moral, Doucet and Jasra (2006) for the sampler. With a twist psi_t > 0 of
the state, t steps before the end, particles move by the twisted law and pay for it,

    P_psi(x, y) = P(x, y) psi_t-1(y) / (P psi_t-1)(x),     G_t(x) = (P psi_t-1)(x) / psi_t(x),

those of an island are resampled (systematically) where their effective number falls below half, and an island of N gives

    Z = psi_T(x_0) prod_t (weighted mean of G_t) (weighted mean of 1{hit} / psi_0),

which is unbiased for every N and every psi that is 0 at hopeless states alone. If psi is the reach probability itself,
G = 1 and Z = p in every island: the twist that can't be had is the answer that is sought (as REACH's hazards are for one
step, arXiv 2602.03730). Islands are independent, and their spread gives the interval: Student's t on the logarithmic
scale. `reliable` is False where fewer than 10 islands' worth carry that spread, (sum d^2)^2 / sum d^4 with d = Z - mean Z.

The twist is exact (by linear algebra, to see the above), learned, or 1 (plain paths in islands). It is learned from a
pilot of plain paths, paid for and not used again, as splitting would see them: with q_l the share of those that had
reached level l of the problem's heights and went on to the next, psi(x) = prod of q_l over the levels above x; a level
that fewer than five paths reached gets the mean of the logarithms of the others.

One sample is one island, of N paths: hold it against other methods at equal model calls, of which each step is one.
Does: chains whose one-step law is known where the path is, as a language model's is. Does not: language models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.budget import charge
from workbench.errors import (
    Unsuitable,
    WorkbenchError,
    require_choice,
    require_finite,
    require_integer,
    require_probability,
)
from workbench.estimate import Estimate
from workbench.exact_sum import NO_POWERS, add_powers, spread_of
from workbench.methods.tail_risk.chain_walks import is_chain, walk
from workbench.methods.tail_risk.control_variates import reach_tables
from workbench.methods.tail_risk.skewed_mean import log_scale_t
from workbench.problems.chains import reach_probability
from workbench.run import Batch, State
from workbench.streams import Stream

_LEAST_CARRIERS = 10.0
_LEAST_PATHS = 5
_LONGEST = 100_000
TWISTS = ("learned", "exact", "none")


@dataclass(frozen=True)
class Twisted:
    """The mean of Z over islands of `particles` paths each.

    particles  N of an island
    twist      "learned" from a pilot, "exact", or "none"
    pilot      islands of plain paths that the twist is learned from
    level      of the interval
    """

    particles: int = 16
    twist: str = "learned"
    pilot: int = 20
    level: float = 0.95

    def __post_init__(self) -> None:
        require_integer("particles", self.particles, low=2, cure="an island has paths to choose between, e.g. 16")
        require_choice("twist", self.twist, TWISTS)
        require_integer("pilot", self.pilot, low=1, cure="a twist is learned from a pilot, e.g. 20 islands")
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        if not is_chain(problem) or not callable(getattr(problem, "levels", None)):
            raise Unsuitable(
                f"Twisted needs a Markov chain with transitions and levels, and {problem.name} has none; use MonteCarlo, "
                "or Splitting for a Gaussian event."
            )
        learns = self.twist == "learned"
        levels = np.unique(problem.levels())
        place = np.searchsorted(levels, problem.levels())
        # Where a path ends short of the target there is no way on: the twist is 0 there.
        place = np.where(problem.ends & ~problem.target, -1, place)
        place[problem.target] = len(levels) - 1
        return {
            "pilot_n": 0 if learns else self.pilot,
            "reached": np.zeros(len(levels), dtype=np.int64),
            "place": place,
            "psi": None if learns else np.ones(len(place)),
            "n": 0,
            "paid": 0 if learns else -self.pilot,
            "powers": list(NO_POWERS),
        }

    def round_size(self, problem: Any, state: State) -> int | None:
        return self.pilot - state["pilot_n"] if state["psi"] is None else None

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        if state["psi"] is None:
            return {"highest": _highest(problem, state["place"], self.particles, n, stream)}
        return {"z": islands(problem, self._twist(problem, state), self.particles, n, stream)}

    def _twist(self, problem: Any, state: State) -> np.ndarray:
        """(T + 1, S) psi by the steps that are left, or (1, S) where it is the same at every step."""
        if self.twist != "exact":
            return state["psi"][None]
        if problem.horizon is None:
            return reach_probability(problem.transitions, problem.target)[None]
        return reach_tables(problem, problem.horizon + 1)[0]

    def absorb(self, state: State, batch: Batch) -> State:
        if state["psi"] is None:
            reached = (batch["highest"][:, :, None] >= np.arange(len(state["reached"]))).sum(axis=(0, 1))
            state = state | {
                "reached": state["reached"] + reached,
                "pilot_n": state["pilot_n"] + len(batch["highest"]),
            }
            if state["pilot_n"] < self.pilot:
                return state
            return state | {"psi": learned_twist(state["reached"], state["place"])}
        z = require_finite("islands' values", batch["z"], "look for transitions that are no law", allow_empty=True)
        return state | {
            "n": state["n"] + len(z),
            "powers": add_powers(state["powers"], z),
        }

    def result(self, state: State) -> Estimate:
        n, spent = state["n"], state["n"] + state["paid"] + state["pilot_n"]
        common: dict[str, Any] = {"level": self.level, "n_samples": spent}
        if n == 0:
            why = (
                f"the pilot is under way ({spent} of {self.pilot} islands)" if spent else "no sample has been drawn yet"
            )
            return Estimate.unknown(0.0, 1.0, why, diagnostics={"reached": state["reached"].tolist()}, **common)
        value, variance, carriers = spread_of(state["powers"], n)
        common["diagnostics"] = {"islands": n, "carriers": carriers}
        if value == 0:
            return Estimate.unknown(0.0, 1.0, f"none of {n:,} islands has reached the target", **common)
        if n == 1 or value > 1:
            why = (
                "a single island has no spread"
                if n == 1
                else f"the islands are so uneven that their mean is {value:.3g}"
            )
            return Estimate.unknown(0.0, 1.0, why, **common)
        if variance <= 1e-12 * value**2:
            if self.twist != "exact":
                return Estimate.unknown(0.0, 1.0, f"all {n:,} islands gave one value, which shows no spread", **common)
            ends = {"low": value * (1 - 1e-9), "high": min(1.0, value * (1 + 1e-9))}
            return Estimate(
                value=value, std_error=0.0, interval="rounding: the exact twist has no variance", **ends, **common
            )
        error = math.sqrt(variance / (n - 1))
        low, high = log_scale_t(value, error, n, self.level)
        few = carriers < _LEAST_CARRIERS
        return Estimate(
            value=value,
            low=low,
            high=min(1.0, high),
            std_error=error,
            interval="t over islands, log scale",
            reliable=not few,
            why=f"{carriers:.1f} islands' worth carry the spread, below {_LEAST_CARRIERS:g}" if few else "",
            **common,
        )


def learned_twist(reached: np.ndarray, place: np.ndarray) -> np.ndarray:
    """psi (S,) from how many pilot paths reached each level (L,) and which level each state is on (S,); 0 for place -1."""
    before, after = reached[:-1], reached[1:]
    seen = before >= _LEAST_PATHS
    log_share = np.log((after + 0.5) / (before + 1.0))
    log_share[~seen] = log_share[seen].mean() if seen.any() else math.log(0.5)
    above = np.append(np.cumsum(log_share[::-1])[::-1], 0.0)
    return np.where(place < 0, 0.0, np.exp(above[place]))


def islands(problem: Any, psi: np.ndarray, particles: int, n: int, stream: Stream) -> np.ndarray:
    """(n,) Z of n islands; psi (T + 1, S) by the steps left, or (1, S). Row j is sample `stream.first + j`."""
    transitions, ends, horizon = problem.transitions, problem.ends, problem.horizon
    x, weight = np.full((n, particles), problem.start), np.ones((n, particles))
    log_z = np.zeros(n)
    for t in range(_LONGEST if horizon is None else horizon):
        rows = np.flatnonzero((~ends[x] & (weight > 0)).any(axis=1))
        if not len(rows):
            break
        now, after = (psi[0], psi[0]) if horizon is None or len(psi) == 1 else psi[[horizon - t, horizon - t - 1]]
        kernel = transitions * after
        onward = kernel.sum(axis=1)
        cdf = kernel.cumsum(axis=1)
        gain = np.divide(onward, now, out=np.zeros_like(onward), where=now > 0)
        uniforms = stream.uniforms_of(rows, particles + 1, step=t * (particles + 1))
        at, w = x[rows], weight[rows]
        moves = ~ends[at] & (w > 0)
        charge(model_calls=int(moves.sum()))
        drawn = (cdf[at, :-1] <= uniforms[:, :-1, None] * cdf[at, -1:]).sum(axis=2)
        w = np.where(moves, w * gain[at], w)
        at = np.where(moves & (onward[at] > 0), drawn, at)
        total = w.sum(axis=1)
        share = np.divide(w, total[:, None], out=np.zeros_like(w), where=total[:, None] > 0)
        poor = (total > 0) & (particles / 2 * (share**2).sum(axis=1) > 1)
        if poor.any():
            chosen = systematic(share[poor], uniforms[poor, -1])
            at[poor] = np.take_along_axis(at[poor], chosen, axis=1)
            w[poor] = 1.0
            log_z[rows[poor]] += np.log(total[poor] / particles)
        x[rows], weight[rows] = at, w
    else:
        if horizon is None:
            raise WorkbenchError(f"A path of {problem.name} took more than {_LONGEST:,} steps; set a horizon.")
    last = psi[0]
    value = np.divide(problem.target[x], last[x], out=np.zeros(x.shape), where=problem.target[x])
    return psi[-1][problem.start] * np.exp(log_z) * (weight * value).mean(axis=1)


def systematic(share: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """(n, N) which particle each place takes, from normalised weights (n, N) and one uniform a row (n,).

    Particle i is taken floor or ceil of N share_i times, N share_i on average.
    """
    count = share.shape[1]
    edges = share.cumsum(axis=1)
    places = (uniform[:, None] + np.arange(count)) / count
    return np.minimum((edges[:, None, :] <= places[:, :, None] * edges[:, None, -1:]).sum(axis=2), count - 1)


def _highest(problem: Any, place: np.ndarray, particles: int, n: int, stream: Stream) -> np.ndarray:
    """(n, N) the highest level that each of N plain paths reached, for n islands."""
    highest = np.full((n, particles), place[problem.start])
    for path in range(particles):
        for rows, _, _, after in walk(problem, n, stream.child("pilot", path).at(stream.first)):
            highest[rows, path] = np.maximum(highest[rows, path], place[after])
    return highest
