"""Exact and certified answers by going through a model's completions instead of sampling them.

Does: the whole tree of completions of a small model (`prefix_tree`), on which any other model can be scored, so
that probabilities and variances of importance sampling are sums; and certified bounds for larger models
(`event_bounds`), best prefix first.
Does not: cut anything off silently; what was not visited is in the gap between the bounds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, require_integer, require_number
from workbench.models.base import LanguageModel, check_tokens, prompt_lists
from workbench.models.scoring import next_log_probs_of_array

Event = Callable[[tuple[int, ...], bool], bool | None]
_MOST_NODES = 5_000_000
_EXPANDED_TOGETHER = 256
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PrefixTree:
    """Every completion of a prompt that the model can give, as arrays over N nodes, parents before children.

    Node 0 is the prompt alone. parent, token, depth (N,) int64 (-1 at the root's parent and token);
    log_prob (N,): log p(token | prefix before it); path_log_prob (N,): log p(all tokens so far);
    is_leaf (N,): the text ends there, by end of sequence, a stop id or length; tokens (N, max_new_tokens)
    padded with -1. Tokens of probability 0 have no node. The leaves' probabilities add up to 1.
    """

    prompt: tuple[int, ...]
    parent: np.ndarray
    token: np.ndarray
    depth: np.ndarray
    log_prob: np.ndarray
    path_log_prob: np.ndarray
    is_leaf: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.parent)

    def contains(self, *wanted: int) -> np.ndarray:
        """(N,) booleans: any of the tokens `wanted` is among those generated."""
        return np.asarray(np.isin(self.tokens, wanted).any(axis=1))

    def probability(self, event: np.ndarray) -> float:
        """Sum of the probabilities of the leaves where `event` (N,) holds."""
        return float(np.exp(self.path_log_prob[self.is_leaf & event]).sum())

    def log_probs_under(self, model: LanguageModel) -> np.ndarray:
        """(N,) log q(token | prefix before it) of another model at every node; 0 at the root."""
        out = np.zeros(len(self))
        inner = np.flatnonzero(~self.is_leaf)
        position = np.full(len(self), -1)
        for depth in range(self.depth.max()):
            nodes = inner[self.depth[inner] == depth]
            position[nodes] = np.arange(len(nodes))
            children = np.flatnonzero(self.depth == depth + 1)
            laws = next_log_probs_of_array(model, _prefixes(self.prompt, self.tokens[nodes, :depth]))
            out[children] = laws[position[self.parent[children]], self.token[children]]
        return out

    def path_sums(self, values: np.ndarray) -> np.ndarray:
        """(N,) the sum of `values` (N,) along the path from the root to each node, both included."""
        total = np.array(values, dtype=np.float64)
        for depth in range(1, self.depth.max() + 1):
            nodes = np.flatnonzero(self.depth == depth)
            total[nodes] += total[self.parent[nodes]]
        return total


def prefix_tree(model: LanguageModel, prompt: Any, max_new_tokens: int, stop_ids: Iterable[int] = ()) -> PrefixTree:
    """The complete tree of completions of at most `max_new_tokens` tokens; generation ends at end of sequence and at
    `stop_ids`.

    Costs one model evaluation for each prefix that goes on: with V tokens of which V - s go on, (V - s)^(T-1) at the
    last step. Raises WorkbenchError above five million nodes at a step: use `event_bounds` or a grammar's dynamic programming.
    """
    model.require("next_log_probs")
    steps = require_integer("max_new_tokens", max_new_tokens, low=1, cure="ask for at least one token")
    (given,) = prompt_lists(model, prompt, steps)
    ends = np.array(sorted({*model.eos_ids, *stop_ids}), dtype=np.int64)
    check_tokens(model, "stop_ids", ends)

    level = np.full((1, steps), -1, dtype=np.int64)
    levels, going, first = [level], np.array([0]), 0
    parents, log_probs, paths, leaves = [np.array([-1])], [np.zeros(1)], [np.zeros(1)], [np.array([False])]
    for depth in range(steps):
        open_tokens, open_path = levels[-1][going], paths[-1][going]
        if len(going) * model.vocab_size > _MOST_NODES:
            raise WorkbenchError(
                f"max_new_tokens is {steps} but the tree passes {_MOST_NODES:,} nodes at step {depth + 1}; "
                "ask for fewer tokens, or use event_bounds."
            )
        laws = next_log_probs_of_array(model, _prefixes(given, open_tokens[:, :depth]))
        row, token = np.nonzero(laws > -np.inf)
        level = open_tokens[row]
        level[:, depth] = token
        leaf = np.isin(token, ends) | (depth + 1 == steps)
        parents.append(first + going[row])
        log_probs.append(laws[row, token])
        paths.append(open_path[row] + laws[row, token])
        leaves.append(leaf)
        first += len(levels[-1])
        levels.append(level)
        going = np.flatnonzero(~leaf)
        if not len(going):
            break
    tokens = np.concatenate(levels)
    depths = np.concatenate([np.full(len(level), depth) for depth, level in enumerate(levels)])
    return PrefixTree(
        prompt=tuple(int(t) for t in given),
        parent=np.concatenate(parents),
        token=np.where(depths > 0, tokens[np.arange(len(tokens)), np.maximum(depths - 1, 0)], -1),
        depth=depths,
        log_prob=np.concatenate(log_probs),
        path_log_prob=np.concatenate(paths),
        is_leaf=np.concatenate(leaves),
        tokens=tokens,
    )


@dataclass(frozen=True)
class Bounds:
    """low <= P(event) <= high for certain, rounding included, after `n_prefixes` model evaluations."""

    low: float
    high: float
    n_prefixes: int

    @property
    def width(self) -> float:
        return self.high - self.low


def contains(*wanted: int) -> Event:
    """The event "one of the tokens `wanted` is generated", for `event_bounds`."""

    def event(tokens: tuple[int, ...], finished: bool) -> bool | None:
        if tokens and tokens[-1] in wanted:
            return True
        return False if finished else None

    return event


def event_bounds(
    model: LanguageModel,
    prompt: Any,
    event: Event,
    max_new_tokens: int,
    *,
    stop_ids: Iterable[int] = (),
    max_prefixes: int = 10_000,
    tolerance: float = 1e-6,
) -> Bounds:
    """Certified bounds on P(event), expanding the likeliest undecided prefixes first.

    event(tokens, finished) says of the tokens generated so far True, False, or None for not yet decided; once it has
    said True or False of a prefix, that holds for every continuation, and of a finished text it must decide.
    low = probability of the prefixes decided True, high = low + probability of those still undecided. Stops at
    `max_prefixes` model evaluations or when high - low <= tolerance. Children less likely than
    tolerance / (10 max_prefixes) stay undecided without being looked at.
    Raises WorkbenchError where event does not decide a finished text.
    """
    model.require("next_log_probs")
    steps = require_integer("max_new_tokens", max_new_tokens, low=1, cure="ask for at least one token")
    most = require_integer("max_prefixes", max_prefixes, low=1, cure="allow at least one model evaluation")
    tolerance = require_number("tolerance", tolerance, low=0, cure="pass the width to stop at, e.g. 1e-6")
    (given,) = prompt_lists(model, prompt, steps)
    ends = {*model.eos_ids, *stop_ids}
    check_tokens(model, "stop_ids", np.array(sorted(ends), dtype=np.int64))
    floor = np.log(tolerance / (10 * most)) if tolerance > 0 else -np.inf

    frontier: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    sure, unseen, used = 0.0, 0.0, 0
    undecided = 1.0
    while frontier and used < most and undecided > tolerance:
        batch = [heapq.heappop(frontier) for _ in range(min(_EXPANDED_TOGETHER, most - used, len(frontier)))]
        used += len(batch)
        for (minus_path, tokens), law in zip(batch, _laws(model, given, [t for _, t in batch]), strict=True):
            paths = law - minus_path
            looked_at = np.flatnonzero((paths >= floor) & (paths > -np.inf))
            unseen += max(0.0, float(np.exp(-minus_path) - np.exp(paths[looked_at]).sum()))
            for token in looked_at.tolist():
                longer = (*tokens, token)
                finished = token in ends or len(longer) == steps
                verdict = event(longer, finished)
                if verdict is None and finished:
                    told = f"event is undecided on the finished text {longer}"
                    raise WorkbenchError(f"{told} but must be True or False there; return one where finished is true.")
                if verdict:
                    sure += float(np.exp(paths[token]))
                elif verdict is None:
                    heapq.heappush(frontier, (-float(paths[token]), longer))
        undecided = unseen + float(np.exp([-minus_path for minus_path, _ in frontier]).sum())
    return Bounds(sure * (1 - _ROUNDING), min(1.0, (sure + undecided) * (1 + _ROUNDING)), used)


def _laws(model: LanguageModel, prompt: np.ndarray, completions: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    out: list[Any] = [None] * len(completions)
    for length in {len(c) for c in completions}:
        indices = [i for i, c in enumerate(completions) if len(c) == length]
        generated = np.array([completions[i] for i in indices], dtype=np.int64).reshape(len(indices), length)
        for i, law in zip(indices, next_log_probs_of_array(model, _prefixes(prompt, generated)), strict=True):
            out[i] = law
    return out


def _prefixes(prompt: Sequence[int] | np.ndarray, completions: np.ndarray) -> np.ndarray:
    before = np.broadcast_to(np.asarray(prompt, dtype=np.int64), (len(completions), len(prompt)))
    return np.concatenate([before, completions], axis=1)
