"""Stratified Monte Carlo: the first thing that a draw decides is spread evenly, the rest is left to chance.

Neyman, "On the two different aspects of the representative method", Journal of the Royal Statistical Society 97 (1934);
Cochran, Sampling Techniques (1977), chapter 5. With strata k of known probability W_k, n_k draws and h_k hits each,

    p_hat = sum_k W_k h_k / n_k,     Var p_hat = sum_k W_k^2 p_k (1 - p_k) / n_k,

which under proportional shares, n_k = n W_k, is that of plain Monte Carlo less sum_k W_k (p_k - p)^2 / n.

What is spread: for a Gaussian event the coordinate along the problem's direction, or the radius; for a chain its first
step; for a model's answer its first token, whose exact probabilities are the weights. Draw i takes the place
frac(U + i / golden ratio) in that law (U uniform, one a run; Weyl's sequence), so that after any number of draws each
stratum has its share to within a few.

The interval. Strata that mostly miss count hits, strata that mostly hit count misses. Each of the two sums is one of
independent rare things, whose variance is between a half and the whole of a binomial's: it gets Clopper and Pearson's
interval at its effective number of draws (Korn and Graubard 1998), kept within these bounds, and the two are joined by
the squares of their arms (MOVER, Zou and Donner 2008). It never has width zero. Where nothing is split yet the bound is
the binomial's, which holds for a sum over strata too (Hoeffding 1956).

Does: proportional shares, which never lose to plain Monte Carlo but for a few draws. Does not: put more draws where the
event is (that needs a pilot; see `lm_tail_risk` and `gaussian_cross_entropy`), or Best-of-N, whose queries `Saber` takes
in turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import beta, chi2

from workbench.errors import Unsuitable, refuse, require_choice, require_integer, require_probability
from workbench.estimate import Estimate
from workbench.methods.tail_risk.chain_walks import is_chain, walk
from workbench.models.sampling import sample_in_step
from workbench.run import Batch, State
from workbench.streams import Stream

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_LEAST_EACH = 8  # strata with fewer draws count as one


@dataclass(frozen=True)
class Stratified:
    """p = sum_k W_k h_k / n_k over strata of known weight, each with its share of the draws.

    strata  of equal weight, for Gaussian events; a chain has its first states and an answer its first tokens
    along   "direction" or "radius": what of a Gaussian point is spread
    level   of the interval
    """

    strata: int = 16
    along: str = "direction"
    level: float = 0.95

    def __post_init__(self) -> None:
        require_integer("strata", self.strata, low=1, cure="pass e.g. 16; 1 is plain Monte Carlo")
        require_choice("along", self.along, ("direction", "radius"))
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        _kind_of(problem)
        whole, real = np.zeros(0, dtype=np.int64), np.zeros(0)
        return {"stratum": whole, "draws": whole, "hits": whole, "weight": real}

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        return _kind_of(problem)(self, problem, places(n, stream), n, stream)

    def absorb(self, state: State, batch: Batch) -> State:
        hit = np.asarray(batch["hit"])
        if hit.dtype != bool:
            raise refuse("batch['hit']", hit.dtype, "hold bool", "return whether each sample hit the event")
        stratum, place = np.unique(np.concatenate([state["stratum"], batch["stratum"]]), return_inverse=True)
        old, new = place[: len(state["stratum"])], place[len(state["stratum"]) :]
        draws, hits, weight = (np.zeros(len(stratum), dtype) for dtype in (np.int64, np.int64, float))
        draws[old], hits[old], weight[old] = state["draws"], state["hits"], state["weight"]
        np.add.at(draws, new, 1)
        np.add.at(hits, new, hit)
        weight[new] = batch["weight"]
        return {"stratum": stratum, "draws": draws, "hits": hits, "weight": weight}

    def result(self, state: State) -> Estimate:
        n, hits = int(state["draws"].sum()), int(state["hits"].sum())
        if n == 0:
            return Estimate.unknown(0.0, 1.0, "no sample has been drawn yet", level=self.level)
        weight, draws, hit = _merged(state)
        rate = hit / draws
        value = float(weight @ rate)
        spread = weight**2 * rate * (1 - rate) / np.maximum(draws - 1, 1)
        low, high = _interval(weight, draws, rate, spread, self.level)
        error = math.sqrt(float(spread.sum()))
        return Estimate(
            value=value,
            low=max(0.0, min(low, value)),
            high=min(1.0, max(high, value)),
            std_error=error if error > 0 else None,
            level=self.level,
            interval="Clopper-Pearson at the strata's effective size",
            n_samples=n,
            why=""
            if hits
            else f"no hit in {n:,} samples: this bounds the probability and does not show that it is zero",
            diagnostics={
                "hits": hits,
                "strata": len(weight),
                "variance_ratio": value * (1 - value) / n / error**2 if error > 0 else None,
            },
        )


def places(n: int, stream: Stream) -> np.ndarray:
    """(n,) in [0, 1): frac(U + i / golden ratio) for samples i = stream.first, ...; U is the stream's own."""
    index = np.arange(stream.first, stream.first + n).astype(np.uint64)
    shift = stream.child("places").uniforms(1)[0, 0]
    # Wrapping in 64 bits is the fractional part, whatever i is.
    turned = index * np.uint64(_GOLDEN) + np.uint64(int(shift * 2.0**53) << 11)
    return (turned >> np.uint64(11)).astype(np.float64) / 2.0**53


def _merged(state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, draws and hits (K,) of the strata, those with few draws and those never drawn as one at the end."""
    enough = state["draws"] >= _LEAST_EACH
    weight, draws, hits = (state[name][enough] for name in ("weight", "draws", "hits"))
    few = int(state["draws"][~enough].sum())
    if few == 0:
        return weight / weight.sum(), draws, hits  # what was never drawn has a weight of the order 1 / n
    rest = max(1.0 - float(weight.sum()), 0.0)
    return np.append(weight, rest), np.append(draws, few), np.append(hits, state["hits"][~enough].sum())


def _interval(
    weight: np.ndarray, draws: np.ndarray, rate: np.ndarray, spread: np.ndarray, level: float
) -> tuple[float, float]:
    """The value's interval from that of the hits where hits are few and that of the misses where misses are."""
    value, arms = float(weight @ rate), []
    for rare, chosen in ((rate, rate <= 0.5), (1 - rate, rate > 0.5)):
        mass = float(weight[chosen].sum())
        if not chosen.any() or mass == 0:
            arms.append((0.0, 0.0))
            continue
        share, n = float(weight[chosen] @ rare[chosen]) / mass, int(draws[chosen].sum())
        variance = float(spread[chosen].sum()) / mass**2
        effective = float(n)
        if variance > 0:
            effective = min(max(share * (1 - share) / variance, float(n)), 2.0 * n)
        tail, x = (1 - level) / 2, share * effective
        low = float(beta.ppf(tail, x, effective - x + 1)) if x > 0 else 0.0
        high = float(beta.isf(tail, x + 1, effective - x)) if x < effective else 1.0
        arms.append((mass * (share - low), mass * (high - share)))
    (hit_down, hit_up), (miss_down, miss_up) = arms
    return value - math.hypot(hit_down, miss_up), value + math.hypot(hit_up, miss_down)


def _kind_of(problem: Any) -> Any:
    if callable(getattr(problem, "limit_state", None)):
        return _gaussian
    if is_chain(problem):
        return _chain
    if "next_log_probs" in getattr(getattr(problem, "model", None), "capabilities", ()) and hasattr(problem, "judge"):
        return _answers
    raise Unsuitable(
        f"Stratified needs a Gaussian event, a chain, or a model with next-token laws, and {problem.name} is none of "
        "these; use MonteCarlo."
    )


def _gaussian(settings: Stratified, problem: Any, at: np.ndarray, n: int, stream: Stream) -> Batch:
    uniforms = stream.uniforms(n, problem.dimension + 1)
    stratum = np.minimum((at * settings.strata).astype(np.int64), settings.strata - 1)
    # Within (0, 1): an endless coordinate is no draw.
    spread = np.clip((stratum + uniforms[:, -1]) / settings.strata, 2.0**-54, 1 - 2.0**-53)
    z = ndtri(np.maximum(uniforms[:, :-1], 2.0**-54))
    if settings.along == "radius":
        radius = np.sqrt(chi2.ppf(spread, problem.dimension))
        z = z * (radius / np.linalg.norm(z, axis=1))[:, None]
    else:
        z = z + (ndtri(spread) - z @ problem.direction)[:, None] * problem.direction
    return {"hit": problem.limit_state(z) <= 0, "stratum": stratum, "weight": np.full(n, 1 / settings.strata)}


def _chain(settings: Stratified, problem: Any, at: np.ndarray, n: int, stream: Stream) -> Batch:
    states = np.full(n, problem.start)
    first, weight = states.copy(), np.ones(n)
    for rows, t, _, after in walk(problem, n, stream, first=at):
        states[rows] = after
        if t == 0:
            first, weight = after, problem.transitions[problem.start, after]
    return {"hit": problem.target[states], "stratum": first, "weight": weight}


def _answers(settings: Stratified, problem: Any, at: np.ndarray, n: int, stream: Stream) -> Batch:
    """Answers whose first token is that at the place `at` of its law, tokens in their order."""
    import torch

    weight = np.zeros(n)

    def fix_first(laws: list[torch.Tensor], rows: np.ndarray, steps: np.ndarray) -> torch.Tensor:
        law, begins = laws[0], steps == 0
        if not begins.any():
            return law
        p = np.exp(law[torch.as_tensor(begins)].double().cpu().numpy())
        cdf = p.cumsum(axis=1)
        token = (cdf[:, :-1] <= at[rows[begins], None] * cdf[:, -1:]).sum(axis=1)
        weight[rows[begins]] = p[np.arange(len(p)), token] / cdf[:, -1]
        fixed = law.clone()
        fixed[torch.as_tensor(begins)] = -torch.inf
        fixed[torch.as_tensor(np.flatnonzero(begins)), torch.as_tensor(token)] = 0.0
        return fixed

    drawn = sample_in_step(
        [problem.model],
        [problem.prompt],
        fuse=fix_first,
        n=n,
        max_new_tokens=problem.max_new_tokens,
        stream=stream,
        stop_ids=problem.stop_ids,
    )
    hit = np.asarray(problem.judge(drawn.tokens))
    return {
        "hit": hit,
        "stratum": drawn.tokens[:, 0],
        "weight": weight,
        "tokens": len(problem.prompt) + drawn.lengths,
    }
