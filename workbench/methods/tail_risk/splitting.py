"""Adaptive multilevel splitting: a rare event as a ladder of events that are not rare.

Kahn and Harris (1951); Cerou and Guyader, "Adaptive multilevel splitting for rare event analysis", Stochastic Analysis
and Applications 25 (2007); for paths as in Brehier, Gazeau, Goudenege, Lelievre and Rousset, "Unbiasedness of some
generalized adaptive multilevel splitting algorithms", Annals of Applied Probability 26 (2016); for points (there called
subset simulation) Au and Beck (2001).

N particles have scores; the event is a score of at least 0. While fewer than a share `kill` of the particles would be
left below: the level L is the ceil(kill N)-th smallest score, all particles with score <= L die, each is replaced by
one that branches off a survivor, chosen uniformly, and stays above L. With K_l killed at level l and M hits at the end

    p_hat = (M / N) prod_l (1 - K_l / N),

which is unbiased for paths whatever N and kill are, and for points as far as the moves decorrelate (its relative bias
is of the order 1 / N). Independent replicates give the interval, R of them: the mean, with Student's t on R - 1 degrees
of freedom, on the logarithmic scale.

Does: points under a Gaussian (a branch is `moves` preconditioned Crank-Nicolson steps that are refused at or below L)
and paths of a Markov chain (a branch starts where its parent first rose above L). Does not: learn scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from workbench.errors import Unsuitable, require_integer, require_probability
from workbench.estimate import Estimate
from workbench.methods.tail_risk.skewed_mean import log_scale_t
from workbench.run import Batch, State
from workbench.streams import Stream

_LEAST_REPLICATES = 5
_MOST_LEVELS = 2000
_STEPS = (0.9, 0.6, 0.3, 0.15)  # of the Crank-Nicolson moves, taken in turn: no size suits every level


@dataclass(frozen=True)
class Splitting:
    """Adaptive multilevel splitting, with intervals from independent replicates.

    particles  N of each replicate
    kill       the share of particles that a level kills at least, in (0, 1)
    moves      steps of a branch under a Gaussian; paths do not need them
    level      of the interval
    """

    particles: int = 50
    kill: float = 0.25
    moves: int = 8
    level: float = 0.95

    def __post_init__(self) -> None:
        require_integer("particles", self.particles, low=2, cure="splitting needs survivors to branch from, e.g. 50")
        cure = "pass the share that dies at each level, e.g. 0.25"
        require_probability("kill", self.kill, cure=cure)
        require_integer("moves", self.moves, low=1, cure="a copy that does not move is no new draw; pass e.g. 8")
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        _moves_of(problem)
        return {"n": 0, "replicates": [], "lost": 0, **_FRESH}

    def round_size(self, problem: Any, state: State) -> int:
        return (self.particles if state["scores"] is None else len(state["dead"])) - len(state["index"])

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        begin, branch = _moves_of(problem)
        index = stream.first + np.arange(n)
        if state["scores"] is None:
            return {"index": index, **begin(problem, n, stream)}
        alive = np.setdiff1d(np.arange(self.particles), state["dead"])
        parents = alive[(stream.uniforms(n)[:, 0] * len(alive)).astype(np.int64)]
        population = {name: np.asarray(values)[parents] for name, values in state["population"].items()}
        return {"index": index, **branch(problem, population, state["height"], self.moves, n, stream)}

    def absorb(self, state: State, batch: Batch) -> State:
        """Collect the round; when it is whole, put it in place and find the next level."""
        rows = [*state["rows"], {name: np.asarray(values) for name, values in batch.items() if name != "index"}]
        index = np.concatenate([state["index"], np.asarray(batch["index"], dtype=np.int64)])
        state = state | {"n": state["n"] + len(batch["index"]), "rows": rows, "index": index}
        if len(index) < (self.particles if state["scores"] is None else len(state["dead"])):
            return state
        order = np.argsort(index)
        drawn = {name: np.concatenate([row[name] for row in rows])[order] for name in rows[0]}
        if state["scores"] is None:
            population = drawn
        else:
            population = {name: np.array(values) for name, values in state["population"].items()}
            for name, values in drawn.items():
                population[name][state["dead"]] = values
        return self._next_level(state, population)

    def _next_level(self, state: State, population: dict[str, np.ndarray]) -> State:
        scores = population["scores"]
        height = float(np.sort(scores)[math.ceil(self.kill * self.particles) - 1])
        hits = int((scores >= 0).sum())
        killed = np.flatnonzero(scores <= height)
        levels = state["levels"] + 1
        if height >= 0 or hits == self.particles:
            return self._end(state, math.exp(state["log_weight"]) * hits / self.particles, lost=False)
        if len(killed) == self.particles or levels > _MOST_LEVELS:
            return self._end(state, 0.0, lost=True)
        return state | {
            "scores": scores,
            "population": population,
            "dead": killed,
            "height": height,
            "levels": levels,
            "log_weight": state["log_weight"] + math.log1p(-len(killed) / self.particles),
            "rows": [],
            "index": np.zeros(0, dtype=np.int64),
        }

    def _end(self, state: State, value: float, lost: bool) -> State:
        return state | {"replicates": [*state["replicates"], value], "lost": state["lost"] + lost, **_FRESH}

    def result(self, state: State) -> Estimate:
        values, n = np.array(state["replicates"]), state["n"]
        facts = {"replicates": len(values), "lost": state["lost"], "level of the current one": state["levels"]}
        common: dict[str, Any] = {"level": self.level, "n_samples": n, "diagnostics": facts}
        if not len(values) or not values.any():
            why = "no replicate has reached the event yet" if n else "no sample has been drawn yet"
            return Estimate.unknown(0.0, 1.0, why, **common)
        value = float(values.mean())
        if len(values) == 1:
            why = "one replicate has no spread, so it has no interval"
            return Estimate(value=value, low=0.0, high=1.0, interval="whole range", reliable=False, why=why, **common)
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        low, high = log_scale_t(value, error, len(values), self.level)
        few = len(values) < _LEAST_REPLICATES
        why = f"only {len(values)} independent replicates: their spread is hardly known" if few else ""
        if state["lost"] and not few:
            why = f"{state['lost']} of {len(values)} replicates died out: give it more particles"
        return Estimate(
            value=value,
            low=low,
            high=min(high, 1.0),
            std_error=error,
            interval="t over replicates, log scale",
            reliable=not few,
            why=why,
            **common,
        )


_FRESH: State = {
    "scores": None,
    "population": {},
    "dead": np.zeros(0, dtype=np.int64),
    "height": -math.inf,
    "levels": 0,
    "log_weight": 0.0,
    "rows": [],
    "index": np.zeros(0, dtype=np.int64),
}


def _moves_of(problem: Any) -> tuple[Any, Any]:
    if callable(getattr(problem, "limit_state", None)):
        return _points, _moved_points
    if callable(getattr(problem, "step", None)) and callable(getattr(problem, "levels", None)):
        return _paths, _branched_paths
    raise Unsuitable(
        f"Splitting needs a problem with a limit state or with steps and levels, and {problem.name} has neither; "
        "use MonteCarlo or importance sampling."
    )


def _points(problem: Any, n: int, stream: Stream) -> Batch:
    z = ndtri(stream.uniforms(n, problem.dimension))
    return {"scores": -problem.limit_state(z), "z": z}


def _moved_points(problem: Any, parents: Batch, height: float, moves: int, n: int, stream: Stream) -> Batch:
    """z' = sqrt(1 - s^2) z + s xi, which leaves N(0, I) as it is, and stays where the score would be at most `height`."""
    z, scores, d = parents["z"].copy(), parents["scores"].copy(), problem.dimension
    for move in range(moves):
        size = _STEPS[move % len(_STEPS)]
        noise = ndtri(stream.uniforms(n, d, step=1 + move * d))
        tried = math.sqrt(1 - size**2) * z + size * noise
        reached = -problem.limit_state(tried)
        goes = reached > height
        z[goes], scores[goes] = tried[goes], reached[goes]
    return {"scores": scores, "z": z}


def _paths(problem: Any, n: int, stream: Stream) -> Batch:
    """Paths from the start; "first_time" and "first_state" (n, levels) say when and where each first rose to a level."""
    heights = np.unique(problem.levels())
    times = np.full((n, len(heights)), -1)
    states = np.full((n, len(heights)), problem.start)
    times[:, heights <= problem.levels()[problem.start]] = 0
    return _walk(problem, np.full(n, problem.start), np.zeros(n, dtype=np.int64), times, states, stream)


def _branched_paths(problem: Any, parents: Batch, height: float, moves: int, n: int, stream: Stream) -> Batch:
    heights = np.unique(problem.levels())
    top = heights.max()
    # A score is a height less the highest, so that the target scores 0.
    above = int(np.searchsorted(heights, height + top, side="right"))
    times, states = parents["first_time"].copy(), parents["first_state"].copy()
    rows = np.arange(n)
    time, state = times[rows, above], states[rows, above]
    times[:, above:] = np.where(times[:, above:] == time[:, None], times[:, above:], -1)
    return _walk(problem, state.copy(), time.copy(), times, states, stream)


def _walk(
    problem: Any, state: np.ndarray, time: np.ndarray, times: np.ndarray, states: np.ndarray, stream: Stream
) -> Batch:
    levels, heights = problem.levels(), np.unique(problem.levels())
    horizon = math.inf if problem.horizon is None else problem.horizon
    alive, step = np.arange(len(state)), 1
    while True:
        alive = alive[~problem.ends[state[alive]] & (time[alive] < horizon)]
        if not len(alive):
            break
        state[alive] = problem.step(state[alive], stream.uniforms_of(alive, 1, step=step)[:, 0])
        time[alive] += 1
        rose = (levels[state[alive]][:, None] >= heights) & (times[alive] < 0)
        row, level = np.nonzero(rose)
        times[alive[row], level] = time[alive[row]]
        states[alive[row], level] = state[alive[row]]
        step += 1
    highest = (times >= 0).sum(axis=1) - 1
    return {"scores": heights[highest] - heights.max(), "first_time": times, "first_state": states}
