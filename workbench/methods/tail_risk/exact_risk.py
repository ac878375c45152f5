"""Exact risk and exact variance of importance sampling, by going through a model's completions.

For Angell et al. (arXiv 2604.22167): on a model small enough to enumerate, the event's probability
p = sum of p(path) and the second moment E_q[w^2 h] = sum of p(path)^2 / q(path) are sums, so that

    VR = (p - p^2) / (E_q[w^2 h] - p^2),

the variance of plain Monte Carlo over that of importance sampling, a sample each, is exact for every proposal.
Does: this for every mixture and switch at once, and many repeats of an estimate from the law of its counts.
Does not: draw answers token by token; the estimators of `lm_tail_risk` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import require_integer, require_number
from workbench.methods.tail_risk.lm_tail_risk import MIXTURES, Proposal, log_weights
from workbench.methods.tail_risk.skewed_mean import skewness_corrected
from workbench.models import PrefixTree

_CURE = "an event that no completion hits has no relative error; choose one that some do"


@dataclass(frozen=True)
class EventPaths:
    """The completions that hit the event: log_p and log_q by token (paths, T), padded with 0."""

    log_p: np.ndarray
    log_q: np.ndarray

    @property
    def probability(self) -> float:
        """p, the exact risk."""
        return float(np.exp(self.log_p.sum(axis=1)).sum())


def event_paths(tree: PrefixTree, event: np.ndarray, log_q: np.ndarray) -> EventPaths:
    """The tree's leaves where `event` (N,) holds; log_q (N,) as from `tree.log_probs_under(steered)`."""
    leaves = np.flatnonzero(tree.is_leaf & event)
    depth = tree.tokens.shape[1]
    by_token = np.zeros((2, len(leaves), depth))
    node = leaves
    for _ in range(depth):
        inside = tree.depth[node] > 0
        place = np.flatnonzero(inside), tree.depth[node[inside]] - 1
        by_token[(0, *place)], by_token[(1, *place)] = tree.log_prob[node[inside]], log_q[node[inside]]
        node = np.where(inside, tree.parent[node], node)
    return EventPaths(by_token[0], by_token[1])


def second_moments(paths: EventPaths, mixture: float) -> np.ndarray:
    """(T + 1,) E_q[w^2 h] for each switch 0..T at one mixture."""
    log_p = paths.log_p.sum(axis=1)
    with np.errstate(over="ignore"):
        return np.exp(log_p[:, None] + log_weights(paths.log_p, paths.log_q, mixture)).sum(axis=0)


def variance_ratios(paths: EventPaths, mixtures: Sequence[float] = MIXTURES) -> np.ndarray:
    """(mixtures, T + 1) VR for each mixture and switch; above 1 importance sampling needs fewer samples."""
    p = require_number("paths.probability", paths.probability, low=0, open_low=True, cure=_CURE)
    moments = np.stack([second_moments(paths, mixture) for mixture in mixtures])
    return (p - p**2) / (moments - p**2)


def variance_ratio(paths: EventPaths, proposal: Proposal) -> float:
    """VR of one proposal; its strength is the one that `paths` was scored with."""
    steps = paths.log_p.shape[1]
    switch = steps if proposal.switch is None else min(proposal.switch, steps)
    return float(variance_ratios(paths, [proposal.mixture])[0, switch])


def expected_tokens(tree: PrefixTree, log_q: np.ndarray, proposal: Proposal) -> float:
    """Tokens that one draw from the proposal costs on average, both models' prompts and answers counted.

    log_q (N,): log q(token | prefix) of the steered model at each node. The base model reads the prompt and the
    whole answer; the steered one reads them up to the switch. For plain Monte Carlo pass switch=0.
    """
    steps = tree.tokens.shape[1]
    switch = steps if proposal.switch is None else min(proposal.switch, steps)
    with np.errstate(divide="ignore"):
        mixed = np.logaddexp(np.log1p(-proposal.mixture) + log_q, np.log(proposal.mixture) + tree.log_prob)
    drawn = np.where(tree.depth > switch, tree.log_prob, mixed)
    drawn[0] = 0.0
    reached = np.exp(tree.path_sums(drawn))
    answer, until_switch = reached[tree.depth > 0].sum(), reached[(tree.depth > 0) & (tree.depth <= switch)].sum()
    prompt = len(tree.prompt)
    return float(prompt + answer + (prompt + until_switch if switch else 0.0))


def samples_for_relative_error(probability: float, second_moment: float, relative_error: float = 0.1) -> float:
    """n with sqrt(Var / n) = relative_error * probability, Var = second_moment - probability^2 a sample."""
    require_number("probability", probability, low=0, open_low=True, cure=_CURE)
    require_number("relative_error", relative_error, low=0, open_low=True, cure="pass e.g. relative_error=0.1")
    return (second_moment - probability**2) / (relative_error * probability) ** 2


def repeated_from_paths(
    paths: EventPaths,
    proposal: Proposal,
    k: int,
    repeats: int,
    generator: np.random.Generator,
    *,
    weighted: bool = True,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(value, low, high, ESS), each (repeats,): as many importance-sampling estimates of k draws each.

    How often each of the enumerated answers comes up in k draws is multinomial, so drawing those counts is drawing
    the estimates themselves; answers that do not hit count as one kind. weighted=False leaves the weights out, as a
    control. The formulas are those of `lm_tail_risk.importance_estimate`, uncut.
    """
    require_integer("k", k, low=2, cure="one draw has no spread, so ask for two or more")
    steps = paths.log_p.shape[1]
    switch = steps if proposal.switch is None else min(proposal.switch, steps)
    log_weight = log_weights(paths.log_p, paths.log_q, proposal.mixture)[:, switch]
    q = np.exp(paths.log_p.sum(axis=1) - log_weight)
    counts = generator.multinomial(k, np.append(q, max(0.0, 1 - q.sum())), size=repeats)[:, :-1]
    weight = np.exp(log_weight) if weighted else np.ones(len(log_weight))
    total, squares, cubes = (counts @ weight**power for power in (1, 2, 3))
    value = total / k
    third = cubes / k - 3 * value * squares / k + 2 * value**3
    low, high = skewness_corrected(value, np.maximum(squares / k - value**2, 0), third, k, level)
    ess = np.divide(total**2, squares, out=np.zeros(repeats), where=squares > 0)
    return value, low, high, ess
