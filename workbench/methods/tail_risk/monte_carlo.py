"""Plain Monte Carlo: the baseline of every rare-event method.

Computes p_hat = (number of hits) / n, with the interval of Clopper and Pearson (1934), which never has
width zero and covers at least at its level for every p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from workbench.errors import Unsuitable, refuse, require_integer, require_probability
from workbench.estimate import Estimate
from workbench.run import Batch, State
from workbench.streams import Stream


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval for a proportion: coverage is at least `level` for every p and n.

    hits of n trials, 0 <= hits <= n, n >= 1. At hits = 0 the lower end is 0 and the upper end
    1 - ((1 - level) / 2)^(1/n); mirrored at hits = n.
    """
    require_integer("n", n, low=1, cure="draw at least one sample")
    require_integer("hits", hits, low=0, high=n, cure="count hits among the n trials")
    level = require_probability("level", level, cure="pass e.g. level=0.95")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.isf(tail, hits + 1, n - hits))
    return low, high


@dataclass(frozen=True)
class MonteCarlo:
    """p_hat = hits / n for an event problem, with the Clopper-Pearson interval at `level`."""

    level: float = 0.95

    def __post_init__(self) -> None:
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        if not callable(getattr(problem, "sample", None)):
            raise Unsuitable(
                f"MonteCarlo needs a problem that samples events, and {problem.name} has no method 'sample'; use an event problem."
            )
        return {"n": 0, "hits": 0}

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        return problem.sample(n, stream)

    def absorb(self, state: State, batch: Batch) -> State:
        hit = np.asarray(batch["hit"])
        if hit.dtype != bool:
            raise refuse("batch['hit']", hit.dtype, "hold bool", "return whether each sample hit the event")
        return {"n": state["n"] + len(hit), "hits": state["hits"] + int(hit.sum())}

    def result(self, state: State) -> Estimate:
        n, hits = state["n"], state["hits"]
        if n == 0:
            return Estimate.unknown(0.0, 1.0, "no sample has been drawn yet", level=self.level)
        low, high = clopper_pearson(hits, n, self.level)
        value = hits / n
        why = (
            ""
            if hits
            else f"no hit in {n:,} samples: this bounds the probability from above and does not show that it is zero"
        )
        return Estimate(
            value=value,
            low=low,
            high=high,
            std_error=float(np.sqrt(value * (1 - value) / n)) if 0 < hits < n else None,
            level=self.level,
            interval="Clopper-Pearson",
            n_samples=n,
            why=why,
            diagnostics={"hits": hits},
        )
