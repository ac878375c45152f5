"""What a learned twist is worth, without sampling noise: exact moments of its terms where all answers can be listed.

With M(path) the proposal's probability of a whole path and Y its term, E Y = sum M Y = P(event) whatever the twist, and
Var Y = sum M Y^2 - P(event)^2 gives the draws for any accuracy. `train` runs an estimator's rounds alone and says what
they cost.
Does: this on a `Tabulated` event. Does not: choose or fit anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.budget import Meter
from workbench.errors import require_number
from workbench.methods.tail_risk.beyond_tail_risk import TwistedSampling
from workbench.methods.tail_risk.twist import PathLaw, TwistedPaths, twisted_paths
from workbench.problems.event import Tabulated
from workbench.streams import Stream


@dataclass(frozen=True)
class Trained:
    """A path law, what its training cost in tokens as the event's own prompt would, and the rounds' effective hits."""

    law: PathLaw
    tokens: int
    effective: tuple[float, ...]


def tokens_of(table: Tabulated, meter: Meter) -> int:
    """What `meter` counted on the table, whose prompt is one token long, with the event's own prompt in its place."""
    return int(meter.spend.tokens + (len(table.tree.prompt) - 1) * meter.spend.model_calls)


def trained_state(estimator: Any, table: Tabulated, stream: Stream) -> tuple[dict[str, Any], int]:
    """The state of an estimator whose rounds end, when they have, and the tokens that they took."""
    problem: Any = table.event
    state, at = estimator.init(problem), 0
    with Meter() as meter:
        while (n := estimator.round_size(problem, state)) is not None:
            state = estimator.absorb(state, estimator.draw(problem, state, n, stream.at(at)))
            at += n
    return state, tokens_of(table, meter)


def train(estimator: TwistedSampling, table: Tabulated, stream: Stream) -> Trained:
    """The estimator's rounds of training, and nothing after them."""
    state, tokens = trained_state(estimator, table, stream)
    return Trained(estimator.law(table.event, state), tokens, tuple(state["effective"]))


def all_paths(table: Tabulated, outcome: Sequence[int] | None) -> np.ndarray:
    """(paths, T) every path that a `PathLaw` can draw, padded with -1: whole answers, or with an outcome those free of
    it, without the last token, which is not drawn."""
    tree = table.tree
    if outcome is None:
        return tree.tokens[tree.is_leaf]
    last = tree.tokens.shape[1] - 1
    ends = (tree.is_leaf & (tree.depth <= last)) | (tree.depth == last)
    return tree.tokens[ends & ~tree.contains(*outcome)]


@dataclass(frozen=True)
class Moments:
    """mass: the proposal's total, 1; mean and second moment of a draw's term; tokens a draw costs on average."""

    mass: float
    mean: float
    second: float
    tokens: float
    paths: TwistedPaths

    @property
    def variance(self) -> float:
        return max(self.second - self.mean**2, 0.0)

    def draws_for(self, relative_error: float = 0.1) -> float:
        """n with sqrt(Var Y / n) = relative_error P(event)."""
        require_number("relative_error", relative_error, low=0, open_low=True, cure="pass e.g. relative_error=0.1")
        return self.variance / (relative_error * self.mean) ** 2


def exact_moments(table: Tabulated, law: PathLaw, outcome: Sequence[int] | None) -> Moments:
    """Sums over `all_paths` of the proposal's probability times 1, Y, Y^2 and the tokens."""
    given = all_paths(table, outcome)
    paths = twisted_paths(table.event, law, len(given), Stream.of(0), outcome=outcome, given=given)
    share = np.exp(paths.log_density)
    spent = len(table.tree.prompt) + paths.laws_read
    mass, mean, second, tokens = (
        float(share @ values) for values in (np.ones(len(share)), paths.term, paths.term**2, spent)
    )
    return Moments(mass, mean, second, tokens, paths)
