"""What a relative error costs in tokens: our twist, the published proposal and plain Monte Carlo on enumerated prompts.

For each method: tokens of its training or pilot, plus draws times tokens a draw, with draws = Var / (error x risk)^2
and Var exact, averaged over trainings, so that a training that went wrong counts with its whole variance. Tokens are
those of the event's own prompt, as the meter charges them; the published proposal reads each answer by two models up to
its switch.

Does: price `TwistedSampling`; `CrossEntropy` (Angell et al., arXiv 2604.22167) with a pilot for each prompt, or one
pilot shared by all, or the best proposal of a grid as if it were known; Monte Carlo.
Does not: draw the final samples for a price; the estimators do, and tests hold the prices against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from workbench.budget import Meter
from workbench.errors import require_integer
from workbench.estimate import Estimate
from workbench.methods.tail_risk.beyond_tail_risk import TwistedSampling
from workbench.methods.tail_risk.exact_risk import (
    event_paths,
    expected_tokens,
    samples_for_relative_error,
    second_moments,
)
from workbench.methods.tail_risk.lm_tail_risk import MIXTURES, CrossEntropy, Proposal, choose_proposal, run_pilot
from workbench.methods.tail_risk.twist_exact import exact_moments, tokens_of, train, trained_state
from workbench.problems.event import Tabulated
from workbench.streams import Stream


@dataclass(frozen=True)
class Price:
    """training tokens, then `draws` of `each` tokens."""

    training: float
    draws: float
    each: float

    @property
    def tokens(self) -> float:
        return self.training + self.draws * self.each


def _mean_price(prices: Sequence[Price]) -> Price:
    each = np.average([p.each for p in prices], weights=[p.draws for p in prices])
    return Price(float(np.mean([p.training for p in prices])), float(np.mean([p.draws for p in prices])), float(each))


def price_of_twist(
    estimator: TwistedSampling, table: Tabulated, repeats: int, stream: Stream, relative_error: float = 0.1
) -> Price:
    """The mean over `repeats` trainings."""
    require_integer("repeats", repeats, low=1, cure="train at least once")
    prices, outcome = [], estimator.outcome(table.event)
    for number in range(repeats):
        trained = train(estimator, table, stream.child("training", number))
        moments = exact_moments(table, trained.law, outcome)
        prices.append(Price(trained.tokens, moments.draws_for(relative_error), moments.tokens))
    return _mean_price(prices)


def price_of_monte_carlo(table: Tabulated, relative_error: float = 0.1) -> Price:
    truth = table.event.truth or 0.0
    plain = expected_tokens(table.tree, table.tree.log_prob, Proposal(0.0, 0.0, 0))
    return Price(0.0, samples_for_relative_error(truth, truth, relative_error), plain)


def price_of_proposal(table: Tabulated, proposal: Proposal, relative_error: float = 0.1) -> Price:
    """Importance sampling from a given proposal, whose strength is one of the table's."""
    log_q = table.log_q[proposal.strength]
    paths = event_paths(table.tree, table.hits, log_q)
    steps = table.tree.tokens.shape[1]
    switch = steps if proposal.switch is None else min(proposal.switch, steps)
    second = float(second_moments(paths, proposal.mixture)[switch])
    draws = samples_for_relative_error(paths.probability, second, relative_error)
    return Price(0.0, draws, expected_tokens(table.tree, log_q, proposal))


def price_of_pilot(
    estimator: CrossEntropy, table: Tabulated, repeats: int, stream: Stream, relative_error: float = 0.1
) -> Price:
    """The published proposal with the prompt's own pilot, as `CrossEntropy` runs it; mean over `repeats` pilots."""
    require_integer("repeats", repeats, low=1, cure="run at least one pilot")
    prices = []
    for number in range(repeats):
        state, spent = trained_state(estimator, table, stream.child("pilot", number))
        chosen = state["proposal"]
        after = price_of_proposal(
            table, Proposal(chosen["strength"], chosen["mixture"], chosen["switch"]), relative_error
        )
        prices.append(Price(spent, after.draws, after.each))
    return _mean_price(prices)


def prices_of_shared_pilot(
    tables: Sequence[Tabulated],
    strengths: Sequence[float],
    particles: int,
    repeats: int,
    stream: Stream,
    relative_error: float = 0.1,
) -> list[Price]:
    """One proposal for all prompts, as in the paper; each prompt bears its share of the pilots' tokens."""
    found: list[list[Price]] = [[] for _ in tables]
    for number in range(repeats):
        pilots, spent = [], 0
        for i, table in enumerate(tables):
            with Meter() as meter:
                pilots.append(run_pilot(table.event, strengths, particles, stream.child("shared", number, i))[1])
            spent += tokens_of(table, meter)
        proposal = choose_proposal(pilots)[0] or Proposal()
        for mine, table in zip(found, tables, strict=True):
            after = price_of_proposal(table, proposal, relative_error)
            mine.append(Price(spent / len(tables), after.draws, after.each))
    return [_mean_price(mine) for mine in found]


def price_of_best(table: Tabulated, mixtures: Sequence[float] = MIXTURES[:-1:4], relative_error: float = 0.1) -> Price:
    """The cheapest proposal of the grid over the table's strengths, all mixtures and switches, as if it were known."""
    steps = range(1, table.tree.tokens.shape[1] + 1)
    grid = [Proposal(s, m, switch) for s in table.log_q for m in mixtures for switch in steps]
    return min(
        (price_of_proposal(table, proposal, relative_error) for proposal in grid), key=lambda price: price.tokens
    )


def repeated_estimates(
    estimator: TwistedSampling, table: Tabulated, draws: int, repeats: int, stream: Stream
) -> list[Estimate]:
    """As many estimates of `draws` fresh draws each after one training. They share it, so an interval for their coverage
    has to be over trainings."""
    state, _ = trained_state(estimator, table, stream.child("training"))
    batch = estimator.draw(table.event, state, draws * repeats, stream.child("draws"))
    parts = [{name: values[i * draws : (i + 1) * draws] for name, values in batch.items()} for i in range(repeats)]
    return [estimator.result(estimator.absorb(state, part)) for part in parts]


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): order statistics that hold the median of the prompts' law with at least `level`, whatever
    the law; the whole range where there are too few values for that."""
    ordered = np.sort(np.asarray(values, dtype=float))
    outside = max(int(binom.ppf((1 - level) / 2, len(ordered), 0.5)) - 1, 0)
    return float(np.median(ordered)), float(ordered[outside]), float(ordered[len(ordered) - 1 - outside])
