"""Does the way to the event lead elsewhere than where the proposal looks? A look at the plain draws that came nearest.

Importance sampling from q looks precise while it is wrong where the event has a mode that q never visits: the weights that
would tell are on points that nobody draws. A defensive proposal, (1 - a) q + a p, draws from p too. These plain draws do not
reach a rare event, but where the problem gives a score (how near each point comes; 0 or more is a hit), the nearest of
them show the ways to it. Let

    r(x) = log q(x) - log p(x),   with mean -KL(p || q) under p.

A near miss with r below that mean lies where q goes less often than about a typical point of p: away. Among the nearest
the share of these is 0 where q leads to the whole event, a half where it goes to one of two sides, two in five where it goes
along one of five axes at right angles (of those that come near along the others, half lie behind). More than one in twenty is
a warning.

Does: the plain draws nearest to the event, kept exactly whatever the order of batches, and the share that lies away.
Does not: events without a score, such as a judge's yes or no; modes that plain draws don't lead to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.exact_sum import ExactSum
from workbench.run import Batch, State

_KEPT, _SHARE, _LEAST = 50, 0.1, 10
MOST_AWAY = 0.05

NO_LOOK: State = {"n": 0, "log_ratio": ExactSum(), "nearest": np.zeros((0, 2))}


def look(state: State, batch: Batch) -> State:
    """The state with the batch's plain draws in it; unchanged where the batch has no `score`.

    batch: score (n,), plain (n,) bool (drawn from p), log_ratio (n,) r at each draw.
    """
    if "score" not in batch:
        return state
    plain = np.asarray(batch["plain"], dtype=bool)
    score, log_ratio = (np.asarray(batch[name], dtype=np.float64)[plain] for name in ("score", "log_ratio"))
    near = np.concatenate([state["nearest"], np.stack([score, log_ratio], axis=1)])
    order = np.lexsort((near[:, 1], -near[:, 0]))
    return {
        "n": state["n"] + len(score),
        "log_ratio": state["log_ratio"].add(log_ratio),
        "nearest": near[order[:_KEPT]],
    }


def share_away(state: State) -> float | None:
    """The share of near misses that lie away, among the nearest 50 plain draws or tenth of them where that is fewer;
    None where a tenth is fewer than 10."""
    n: int = state["n"]
    kept = min(_KEPT, int(n * _SHARE))
    if kept < _LEAST:
        return None
    score, log_ratio = state["nearest"][:kept].T
    away: Any = (score < 0) & (log_ratio < float(state["log_ratio"]) / n)
    return float(away.mean())
