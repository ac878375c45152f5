"""Plain Monte Carlo: the baseline of every rare-event method.

Computes p_hat = (number of hits) / n, with the interval of Clopper and Pearson (1934), which never has
width zero and covers at least at its level for every p, or another of `proportions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import Unsuitable, refuse, require_choice, require_probability
from workbench.estimate import Estimate
from workbench.methods.tail_risk.proportions import INTERVALS, NAMES
from workbench.run import Batch, State
from workbench.streams import Stream


@dataclass(frozen=True)
class MonteCarlo:
    """p_hat = hits / n for an event problem.

    level     of the interval
    interval  "clopper-pearson", "wilson", "jeffreys", "agresti-coull", or "anytime" where the run may be stopped by
              what its interim estimates show
    """

    level: float = 0.95
    interval: str = "clopper-pearson"

    def __post_init__(self) -> None:
        require_choice("interval", self.interval, INTERVALS)
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
        low, high = INTERVALS[self.interval](hits, n, self.level)
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
            interval=NAMES[self.interval],
            n_samples=n,
            why=why,
            diagnostics={"hits": hits},
        )
