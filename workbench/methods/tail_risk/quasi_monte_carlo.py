"""Quasi-Monte Carlo: points that fill the cube more evenly than chance, randomised so that their error can be told.

Sobol' (1967), scrambled by Matousek's random linear scramble and digital shift as in scipy.stats.qmc (Owen 1998; Matousek
1998). R replicates with independent scrambles; of the whole, draw i is point i // R of replicate i mod R. With p_r the
share of replicate r's points that hit,

    p_hat = mean_r p_r,     interval p_hat -/+ t_{R-1} sd(p_r) / sqrt R.

Each scrambled point is uniform, so p_hat is unbiased for every n; full powers of two are where it is best. A point u is
taken to z = H Phi^-1(u), with H the reflection that takes the first axis to the problem's direction: the first
coordinate of the points is their best, and the Gaussian is the same in every direction. scipy's points lie on a grid of 2^-32; chance
fills it in.

The interval is never shorter than what n draws that all agree leave open, 1 - (tail)^(1/n) to either side: replicates
that all have one share have no spread, which does not make them exact. With fewer than 50 hits or misses in all the
replicates' shares are too uneven for Student's t, and the interval is that and Clopper and Pearson's together: points that
keep apart share few hits among themselves, so that their number varies no more than that of as many plain draws.

Does: Gaussian events of up to 21,201 dimensions, as many as scipy has direction numbers for. Does not: promise a gain
where the event is rare (few points see it) or its edge cuts across many axes; there it is Monte Carlo, about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc
from scipy.stats import t as student

from workbench.errors import Unsuitable, refuse, require_integer, require_probability
from workbench.estimate import Estimate
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.run import Batch, State
from workbench.streams import Stream

_LEAST_FOR_T = 50
_BLOCK = 256  # points made and kept at once
_BITS = 32  # with more, scipy's fast_forward fails


@dataclass(frozen=True)
class QuasiMonteCarlo:
    """p_hat over `replicates` independent scrambles of Sobol's points, with Student's t interval over them at `level`."""

    replicates: int = 16
    level: float = 0.95

    def __post_init__(self) -> None:
        require_integer("replicates", self.replicates, low=2, cure="one replicate has no spread; 16 is usual")
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        if not callable(getattr(problem, "limit_state", None)):
            raise Unsuitable(
                f"QuasiMonteCarlo needs a Gaussian event with a limit state, and {problem.name} is none; use MonteCarlo."
            )
        if problem.dimension > qmc.Sobol.MAXDIM:
            raise Unsuitable(
                f"QuasiMonteCarlo has points of at most {qmc.Sobol.MAXDIM:,} dimensions, and {problem.name} has "
                f"{problem.dimension:,}; use MonteCarlo."
            )
        zero = np.zeros(self.replicates, dtype=np.int64)
        return {"draws": zero, "hits": zero}

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        index = stream.first + np.arange(n)
        replicate, number = index % self.replicates, index // self.replicates
        uniforms = np.empty((n, problem.dimension))
        for r in np.unique(replicate):
            rows = np.flatnonzero(replicate == r)
            for block in np.unique(number[rows] // _BLOCK):
                those = rows[number[rows] // _BLOCK == block]
                points = _points(stream.child("scramble", r), problem.dimension, int(block))
                uniforms[those] = points[number[those] % _BLOCK]
        # Below the grid of 2^-32 the place is left to chance, so that the farthest tails are met at their rate.
        uniforms += stream.uniforms(n, problem.dimension) * 2.0**-_BITS
        z = _turned(ndtri(np.clip(uniforms, 2.0**-54, 1 - 2.0**-53)), problem.direction)
        return {"hit": problem.limit_state(z) <= 0, "replicate": replicate}

    def absorb(self, state: State, batch: Batch) -> State:
        hit = np.asarray(batch["hit"])
        if hit.dtype != bool:
            raise refuse("batch['hit']", hit.dtype, "hold bool", "return whether each point hit the event")
        draws = np.bincount(batch["replicate"], minlength=self.replicates)
        hits = np.bincount(batch["replicate"][hit], minlength=self.replicates)
        return {"draws": state["draws"] + draws, "hits": state["hits"] + hits}

    def result(self, state: State) -> Estimate:
        n, hits = int(state["draws"].sum()), int(state["hits"].sum())
        diagnostics: dict[str, Any] = {"hits": hits, "replicates": self.replicates}
        common: dict[str, Any] = {"level": self.level, "n_samples": n, "diagnostics": diagnostics}
        if n == 0:
            return Estimate.unknown(0.0, 1.0, "no sample has been drawn yet", **common)
        if not state["draws"].all():
            return Estimate.unknown(0.0, 1.0, "not every replicate has a point yet", **common)
        shares = state["hits"] / state["draws"]
        value, spread, tail = float(shares.mean()), float(shares.var(ddof=1)), (1 - self.level) / 2
        error = math.sqrt(spread / self.replicates)
        if spread > 0:
            diagnostics["variance_ratio"] = value * (1 - value) / n / error**2
        half = max(float(student.isf(tail, self.replicates - 1)) * error, -math.expm1(math.log(tail) / n))
        low, high, rarer = value - half, value + half, min(hits, n - hits)
        if rarer < _LEAST_FOR_T:
            bound = clopper_pearson(hits, n, self.level)
            low, high = min(low, bound[0]), max(high, bound[1])
        return Estimate(
            value=value,
            low=max(0.0, min(low, value)),
            high=min(1.0, max(high, value)),
            std_error=error if spread > 0 else None,
            interval="t over replicates" if rarer >= _LEAST_FOR_T else "t over replicates and Clopper-Pearson",
            **common,
        )


@lru_cache(maxsize=256)
def _points(stream: Stream, dimension: int, block: int) -> np.ndarray:
    """(256, d) points number 256 * block and on of one scramble; the same whoever asks, and read only."""
    # scipy spawns from the seed sequence, which a generator of ours has not.
    engine = qmc.Sobol(dimension, scramble=True, bits=_BITS, rng=np.random.default_rng(stream.key))
    if block:
        engine.fast_forward(block * _BLOCK)
    points = engine.random(_BLOCK)
    points.setflags(write=False)
    return points


def _turned(z: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """z (n, d) reflected so that the first axis becomes `direction` (a unit vector)."""
    mirror = np.eye(len(direction))[0] - direction
    size = float((mirror**2).sum())
    if size < 1e-30:
        return z
    # Not a matrix product, whose last bits may depend on the number of rows.
    return z - (2 / size) * (z * mirror).sum(axis=1)[:, None] * mirror
