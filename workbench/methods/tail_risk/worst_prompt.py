"""Which prompt is the worst? The arm of the largest hit probability, found with fewer tries than an even share each.

Two questions, two algorithms, both as the field states them for Bernoulli arms:
- `sequential_halving`: a budget of tries is given. Karnin, Koren and Somekh, "Almost optimal exploration in multi-armed
  bandits", ICML 2013. ceil(log2 K) rounds of equal spend; each tries what is left evenly and keeps the better half. With
  gaps d_i = p_1 - p_(i) to the worst arm and H2 = max_{i > 1} i / d_(i)^2,

      P(wrong) <= 3 log2(K) exp(-T / (8 H2 log2 K)).

- `lucb`: an error probability is given. Kaufmann and Kalyanakrishnan, "Information complexity in bandit subset selection",
  COLT 2013, with Chernoff's bounds: u_i(t) = max {q: n_i KL(p_i, q) <= beta(t)} and l_i alike below. It tries the arm that
  looks worst and, of the others, the one of the highest upper bound, until the former's lower bound is above the latter's
  upper one less `tolerance`. With beta(t, delta) = log(405.5 K t^1.1 / delta) + log log(405.5 K t^1.1 / delta), as in their
  theorem 1, the answer is within `tolerance` of the worst arm but with probability delta.

`uniform` spends evenly, which is what both are held against.

These are plain functions: the answer is an arm and not a probability, so there is nothing for `workbench.run` to estimate.
`attempt(arms, stream) -> (n,) bool` is that of the Best-of-N problems (`workbench.problems.best_of_n`): row j is a try at arm
`arms[j]`, sample `stream.first + j`. `of_events` makes one of several events, a ModelEvent for each prompt say.
Does: one worst arm. Does not: the m worst, arms whose tries are dependent, or how bad the worst is: after a search for the
largest its share is biased upward; try the found arm afresh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import rel_entr

from workbench.errors import (
    Unsuitable,
    WorkbenchError,
    refuse,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)
from workbench.streams import Stream

Attempt = Callable[[np.ndarray, Stream], np.ndarray]


class Worst(NamedTuple):
    """The arm that was found, the tries and hits of each (K,), and whether the search came to its end."""

    arm: int
    tries: np.ndarray
    hits: np.ndarray
    decided: bool


def sequential_halving(attempt: Attempt, n_arms: int, budget: int, stream: Stream) -> Worst:
    """The worst of `n_arms` within `budget` tries in all.

    Each round's tries are all the tries that an arm is judged by, as in the paper's analysis. Ties go to the arm of the
    lower number. Refuses a budget that can't give each arm one try in the first round.
    """
    n_arms, rounds = _arms(n_arms), _rounds(n_arms)
    least = n_arms * rounds
    require_integer("budget", budget, low=least, cure=f"{n_arms} arms in {rounds} rounds need a try each")
    left, tries, hits, spent = np.arange(n_arms), np.zeros(n_arms, np.int64), np.zeros(n_arms, np.int64), 0
    for _ in range(rounds):
        each = budget // (len(left) * rounds)
        got = _tried(attempt, np.repeat(left, each), stream.at(spent)).reshape(len(left), each).sum(axis=1)
        spent += len(left) * each
        tries[left] += each
        hits[left] += got
        left = np.sort(left[np.argsort(-got, kind="stable")[: math.ceil(len(left) / 2)]])
    return Worst(int(left[0]), tries, hits, decided=True)


def uniform(attempt: Attempt, n_arms: int, budget: int, stream: Stream) -> Worst:
    """The arm with the most hits when `budget` tries are shared evenly; ties go to the lower number."""
    n_arms = _arms(n_arms)
    each = require_integer("budget", budget, low=n_arms, cure="every arm needs a try") // n_arms
    hits = _tried(attempt, np.repeat(np.arange(n_arms), each), stream).reshape(n_arms, each).sum(axis=1)
    return Worst(int(hits.argmax()), np.full(n_arms, each), hits, decided=True)


def lucb(
    attempt: Attempt,
    n_arms: int,
    stream: Stream,
    *,
    delta: float = 0.05,
    tolerance: float = 0.0,
    batch: int = 1,
    most: int = 1_000_000,
    evenly: bool = False,
) -> Worst:
    """The worst of `n_arms`, right within `tolerance` but with probability `delta`; undecided after `most` tries.

    batch   tries of an arm at once; more are as safe, and cost at most that many too many
    evenly  try all arms in each round in place of the two that matter: the same guarantee, the baseline
    Two equal worst arms are never told apart with tolerance 0; `most` then ends the search with `decided` False.
    """
    n_arms = _arms(n_arms)
    delta = require_probability("delta", delta, cure="pass the error probability, e.g. 0.05")
    require_number("tolerance", tolerance, low=0, high=1, cure="pass the difference that does not matter, e.g. 0.01")
    require_integer("batch", batch, low=1, cure="pass e.g. 10")
    require_integer("most", most, low=n_arms * batch, cure="every arm needs a try")
    tries, hits, spent, t = np.zeros(n_arms, np.int64), np.zeros(n_arms, np.int64), 0, 0
    chosen, decided = np.arange(n_arms), False
    while not decided and spent + len(chosen) * batch <= most:
        got = _tried(attempt, np.repeat(chosen, batch), stream.at(spent)).reshape(len(chosen), batch).sum(axis=1)
        spent += len(chosen) * batch
        tries[chosen] += batch
        hits[chosen] += got
        t += 1
        low, high = kl_bounds(hits / tries, tries, exploration(n_arms, t, delta))
        leader = int((hits / tries).argmax())
        rival = int(np.where(np.arange(n_arms) == leader, -1.0, high).argmax())
        decided = bool(low[leader] > high[rival] - tolerance)
        chosen = np.arange(n_arms) if evenly else np.array([leader, rival])
    return Worst(int((hits / tries).argmax()), tries, hits, decided)


def exploration(n_arms: int, t: int, delta: float) -> float:
    """beta(t, delta) = x + log x with x = log(405.5 K t^1.1 / delta), theorem 1 with alpha = 1.1."""
    x = math.log(405.5 * n_arms * t**1.1 / delta)
    return x + math.log(x)


def kl_bounds(shares: np.ndarray, tries: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) (K,): the ends of {q: n KL(share, q) <= beta}, KL of Bernoulli laws, to 1e-12."""
    shares = require_finite("shares", shares, "pass hits / tries")
    inside, outside = np.stack([shares, shares]), np.stack([np.zeros_like(shares), np.ones_like(shares)])
    for _ in range(42):
        middle = (inside + outside) / 2
        holds = tries * (rel_entr(shares, middle) + rel_entr(1 - shares, 1 - middle)) <= beta
        inside, outside = np.where(holds, middle, inside), np.where(holds, outside, middle)
    return outside[0], outside[1]


def halving_bound(rates: Sequence[float], budget: int) -> float:
    """The bound on the error probability of `sequential_halving`, at most 1, for arms of known rates; 1 for a tie."""
    p = -np.sort(-require_finite("rates", rates, "pass one probability an arm"))
    _arms(len(p))
    gaps = p[0] - p[1:]
    if not (gaps > 0).all():
        return 1.0
    hardness, log = float((np.arange(2, len(p) + 1) / gaps**2).max()), math.log2(len(p))
    return min(1.0, 3 * log * math.exp(-budget / (8 * hardness * log)))


def of_events(events: Sequence[Any]) -> Attempt:
    """`attempt` for events with a `sample`, arm k being events[k]; a try is one sample of its event."""
    lacking = [event for event in events if not callable(getattr(event, "sample", None))]
    if lacking or not len(events):
        told = lacking[0].name if lacking else "an empty list"
        raise Unsuitable(f"of_events needs problems that sample events, and was given {told}; pass e.g. ModelEvents.")

    def attempt(arms: np.ndarray, stream: Stream) -> np.ndarray:
        out = np.zeros(len(arms), dtype=bool)
        for arm in np.unique(arms):
            rows = np.flatnonzero(arms == arm)
            # An arm's rows are not always next to each other: each run of neighbours is one batch of the event.
            for part in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
                drawn = events[arm].sample(len(part), stream.child(events[arm].name).at(stream.first + int(part[0])))
                out[part] = drawn["hit"]
        return out

    return attempt


def _tried(attempt: Attempt, arms: np.ndarray, stream: Stream) -> np.ndarray:
    hit = np.asarray(attempt(arms, stream))
    if hit.dtype != bool or hit.shape != arms.shape:
        told = f"{hit.dtype} of shape {hit.shape}"
        raise refuse("what attempt returned", told, f"be bool of shape {arms.shape}", "return one bool a try")
    return hit


def _arms(n_arms: int) -> int:
    if n_arms == 1:
        raise WorkbenchError("n_arms is 1 but must be at least 2; one prompt alone is the worst without a try.")
    return require_integer("n_arms", n_arms, low=2, cure="pass the number of prompts")


def _rounds(n_arms: int) -> int:
    return math.ceil(math.log2(n_arms))
