"""Exact moments of Monte Carlo, SCOPE and REACH on Markov chains, where no sampling noise can turn a verdict.

A chain is given by its hazards h_s = P(next token is the outcome | state s) and A_ss' = P(the path goes on in s' | s);
what is left of a row, 1 - h_s - sum A_s, ends the path without the outcome. Backwards over the tokens left, from 0:

    risk     v  <- h + A v
    SCOPE    m2 <- h^2 + 2 h (A v) + A m2                 E S^2, where E S = v
    REACH    r2 <- h^2 + 2 h (A v) + (1 - h) (A r2)       E R^2, where E R = v
    lengths  l  <- 1 + A l   and with the outcome suppressed   l <- 1 + A / (1 - h) l.

By induction r2 <= m2 and r2 <= v: REACH's variance is never above SCOPE's, nor above Monte Carlo's v (1 - v).
Does: these moments, paths of all three estimators, and a few chains for experiments.
Does not: models of language; see `scope_reach`, whose equations these are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from workbench.errors import refuse, require_finite, require_integer, require_number
from workbench.streams import Stream


@dataclass(frozen=True, eq=False)
class HazardChain:
    """hazard (S,) in [0, 1]; onward (S, S) >= 0; hazard + the row's sum of onward is at most 1 in each state."""

    hazard: np.ndarray = field(repr=False)
    onward: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        cure = "pass P(outcome) for each state and P(going on in each state) for each state"
        hazard = np.atleast_1d(require_finite("hazard", self.hazard, cure))
        onward = require_finite("onward", self.onward, cure)
        if hazard.ndim != 1 or onward.shape != (len(hazard), len(hazard)):
            raise refuse("the shape of onward", onward.shape, f"be ({len(hazard)}, {len(hazard)})", cure)
        if (hazard < 0).any() or (onward < 0).any():
            raise refuse("the smallest probability", min(hazard.min(), onward.min()), "be at least 0", cure)
        total = hazard + onward.sum(axis=1)
        if (total > 1 + 1e-9).any():
            row = int(np.argmax(total))
            raise refuse(f"hazard[{row}] + sum of onward[{row}]", total[row], "be at most 1", "normalise the row")
        object.__setattr__(self, "hazard", np.minimum(hazard, 1.0))
        object.__setattr__(self, "onward", onward)

    @property
    def masked(self) -> np.ndarray:
        """(S, S): A / (1 - h), the way on with the outcome suppressed; 0 where the outcome is certain."""
        room = 1 - self.hazard[:, None]
        return np.divide(self.onward, room, out=np.zeros_like(self.onward), where=room > 0)


@dataclass(frozen=True)
class Moments:
    """By start state (S,): the risk, the variance of one sample of each estimator, and the tokens that one costs.

    tokens are those of Monte Carlo and SCOPE, which stop at the outcome; reach_tokens those of REACH, which doesn't.
    """

    risk: np.ndarray
    monte_carlo: np.ndarray
    scope: np.ndarray
    reach: np.ndarray
    tokens: np.ndarray
    reach_tokens: np.ndarray

    def ratio(self, estimator: str) -> np.ndarray:
        """(S,) Var(MC) / Var(estimator) at equal samples; NaN where both are 0."""
        return _ratio(self.monte_carlo, getattr(self, estimator))

    def token_ratio(self, estimator: str) -> np.ndarray:
        """(S,) the same at equal tokens."""
        spent = self.tokens / self.reach_tokens if estimator == "reach" else 1.0
        return self.ratio(estimator) * spent

    @property
    def spontaneity(self) -> np.ndarray:
        """(S,) 1 - Var(REACH) / Var(MC), in [0, 1]: a working definition, as the paper's was not found."""
        return 1 - _ratio(self.reach, self.monte_carlo)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / below


def exact_moments(chain: HazardChain, horizon: int) -> Moments:
    """The moments of one sample of each estimator for paths of at most `horizon` tokens."""
    horizon = require_integer("horizon", horizon, low=1, cure="ask for at least one token")
    h, onward, masked = chain.hazard, chain.onward, chain.masked
    risk, scope, reach, tokens, reach_tokens = (np.zeros(len(h)) for _ in range(5))
    for _ in range(horizon):
        cross = h**2 + 2 * h * (onward @ risk)
        scope = cross + onward @ scope
        reach = cross + (1 - h) * (onward @ reach)
        risk = h + onward @ risk
        tokens, reach_tokens = 1 + onward @ tokens, 1 + masked @ reach_tokens
    return Moments(risk, risk * (1 - risk), scope - risk**2, reach - risk**2, tokens, reach_tokens)


def risk_without_last_step(chain: HazardChain, horizon: int) -> np.ndarray:
    """(S,) What SCOPE tends to if the hazard of the step that ends a path is left out: m <- h sum A + A m, 0 at one token."""
    horizon = require_integer("horizon", horizon, low=1, cure="ask for at least one token")
    goes_on, found = chain.onward.sum(axis=1), np.zeros(len(chain.hazard))
    for _ in range(horizon - 1):
        found = chain.hazard * goes_on + chain.onward @ found
    return found


def announced_share(chain: HazardChain, start: int, horizon: int, threshold: float = 0.5) -> float:
    """The share of the risk that falls on steps whose hazard exceeds `threshold`, from `start`."""
    require_integer("start", start, low=0, high=len(chain.hazard) - 1, cure="number the states from 0")
    at, loud, total = np.eye(len(chain.hazard))[start], 0.0, 0.0
    for _ in range(require_integer("horizon", horizon, low=1, cure="ask for at least one token")):
        loud += float(at @ np.where(chain.hazard > threshold, chain.hazard, 0.0))
        total += float(at @ chain.hazard)
        at = at @ chain.onward
    return loud / total if total > 0 else 0.0


@dataclass(frozen=True)
class ChainPaths:
    """Paths of a chain, (starts, n) each: hit (bool), scope = sum of hazards, reach = 1 - prod (1 - hazard), tokens, and
    last_hazard, that of the step that ended the path.

    Of ordinary paths hit and scope are unbiased for the risk, of masked ones reach.
    """

    hit: np.ndarray
    scope: np.ndarray
    reach: np.ndarray
    tokens: np.ndarray
    last_hazard: np.ndarray


def draw_paths(
    chain: HazardChain, starts: np.ndarray, n: int, horizon: int, stream: Stream, *, masked: bool = False
) -> ChainPaths:
    """n paths of at most `horizon` tokens from each of `starts` (starts,), as the chain goes or, with `masked`, with the
    outcome suppressed and the rest renormalised."""
    first = np.asarray(starts, dtype=np.int64)
    if first.ndim != 1 or not len(first) or first.min() < 0 or first.max() >= len(chain.hazard):
        must = f"be a list of states from 0 to {len(chain.hazard) - 1}"
        raise refuse("starts", first.tolist(), must, "pass one state for each prefix")
    n = require_integer("n", n, low=1, cure="ask for at least one path")
    horizon = require_integer("horizon", horizon, low=1, cure="ask for at least one token")
    generator, at = stream.generator(), np.repeat(first, n)
    law, hazard = (chain.masked if masked else chain.onward), chain.hazard
    cdf = law.cumsum(axis=1)
    # Rows one after another on one line, so that a look-up is one bisection.
    line = (cdf + np.arange(len(cdf))[:, None]).ravel()
    with np.errstate(divide="ignore"):
        log_no = np.log1p(-hazard)
    scope, unhit, tokens = np.zeros(len(at)), np.zeros(len(at)), np.zeros(len(at), dtype=np.int64)
    hit, last, alive = np.zeros(len(at), dtype=bool), np.zeros(len(at)), np.arange(len(at))
    for _ in range(horizon):
        scope[alive] += hazard[at]
        unhit[alive] += log_no[at]
        tokens[alive] += 1
        last[alive] = hazard[at]
        uniforms = generator.random(len(at))
        # The ways on lie below, the end in the middle, the outcome at the top of [0, 1).
        onward = uniforms < cdf[at, -1]
        if not masked:
            hit[alive[~onward & (uniforms >= 1 - hazard[at])]] = True
        alive, at, uniforms = alive[onward], at[onward], uniforms[onward]
        if not len(alive):
            break
        place = np.searchsorted(line, at + uniforms, side="right") - len(cdf) * at
        at = np.minimum(place, len(cdf) - 1)
    shape = (len(first), n)
    return ChainPaths(*(part.reshape(shape) for part in (hit, scope, -np.expm1(unhit), tokens, last)))


def random_chain(generator: np.random.Generator) -> HazardChain:
    """A chain of 4 to 12 tokens, two of them outcome and end, with Dirichlet rows of concentration 10^U(-1.5, 0.5)."""
    states = int(generator.integers(4, 13)) - 2
    rows = generator.dirichlet(np.full(states + 2, 10.0 ** generator.uniform(-1.5, 0.5)), size=states)
    return HazardChain(rows[:, 0], rows[:, 2:])


def spontaneous_chain(generator: np.random.Generator, rate: float, end: float = 0.03) -> HazardChain:
    """Twelve tokens: an end, and an outcome that strikes with probability `rate` from each of ten states alike."""
    rate = require_number("rate", rate, low=0, high=1 - end, cure="pass a hazard such as 0.002")
    return HazardChain(np.full(10, rate), (1 - rate - end) * generator.dirichlet(np.ones(10), size=10))


def announced_chain(
    generator: np.random.Generator, rate: float, strength: float = 0.6, end: float = 0.03
) -> HazardChain:
    """The same, but for the outcome, which follows with probability `strength` on a precursor and on nothing else.

    The precursor, state 9, strikes with probability `rate` from every other state.
    """
    rate = require_number("rate", rate, low=0, high=1 - end, cure="pass a hazard such as 0.002")
    strength = require_number("strength", strength, low=0, high=1 - end, cure="pass the precursor's hazard, e.g. 0.6")
    hazard = np.append(np.zeros(9), strength)
    onward = np.zeros((10, 10))
    onward[:, :9] = generator.dirichlet(np.ones(9), size=10)
    onward[:9] *= 1 - rate - end
    onward[:9, 9] = rate
    onward[9] *= 1 - strength - end
    return HazardChain(hazard, onward)


def two_state_chain() -> HazardChain:
    """start -> warning or end, one half each; warning -> outcome with 0.3, else it stays: SCOPE is worse than plain draws.

    The risk tends to 1/2 and the ratio Var(MC) / Var(SCOPE) to 0.25 / 0.6.
    """
    return HazardChain(np.array([0.0, 0.3]), np.array([[0.0, 0.5], [0.0, 0.7]]))
