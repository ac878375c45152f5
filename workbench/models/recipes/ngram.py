"""The baseline that every bundled model has to beat: an interpolated n-gram model with modified Kneser-Ney discounts.

Does: raises the order on the training sequences for as long as the loss on validation sequences falls.
Does not: share anything with the models but their tokens; counts are exact, nothing is pruned.
Source: Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1999), equations 26 to 29.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

HIGHEST = 32
_FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])
"""Discounts of counts 0, 1, 2 and more where none can be estimated, as KenLM has them."""


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order. `keys` (sorted) numbers them: a key is (number of the context) * base + token.

    counts of each n-gram; totals of each context, by the context's number; freed: the mass that discounts take there.
    """

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    freed: np.ndarray
    discounts: np.ndarray


@dataclass(frozen=True)
class NGram:
    """P(w | last order - 1 tokens) over `vocab_size` tokens, every one of them possible."""

    vocab_size: int
    levels: tuple[_Level, ...]

    @property
    def order(self) -> int:
        return len(self.levels)

    def loss(self, sequences: Sequence[np.ndarray], counted: Sequence[np.ndarray] | None = None) -> float:
        """Mean -log p (nats) of the tokens of `sequences` where `counted` is true (None: of all)."""
        tokens, real = _padded(sequences, self.vocab_size, self.order)
        p = np.full(len(tokens), 1.0 / self.vocab_size)
        context = np.zeros(len(tokens), dtype=np.int64)
        for level in self.levels:
            key = context * (self.vocab_size + 1) + tokens
            at = np.minimum(np.searchsorted(level.keys, key), len(level.keys) - 1)
            seen = (level.keys[at] == key) & (context >= 0)
            count = np.where(seen, level.counts[at], 0)
            kept = np.maximum(count - level.discounts[np.minimum(count, 3)], 0)
            total = np.where(context >= 0, level.totals[context], 0)
            p = np.where(total > 0, (kept + level.freed[context] * p) / np.maximum(total, 1), p)
            context = np.concatenate([[-1], np.where(seen, at, -1)[:-1]])
        scores = -np.log(p[real])
        return float(scores.mean() if counted is None else scores[np.concatenate(counted)].mean())


def fit(
    training: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    vocab_size: int,
    counted: Sequence[np.ndarray] | None = None,
) -> NGram:
    """The order with the least loss on the validation sequences, at the positions that count there; orders rise until
    the loss does. Each sequence is read on its own, from a start symbol on."""
    tokens, real = _padded(training, vocab_size, HIGHEST)
    lower: tuple[_Level, ...] = ()
    best, least = None, np.inf
    context = shorter = np.zeros(len(tokens), dtype=np.int64)
    n_contexts = 1
    for _ in range(HIGHEST):
        keys, first, number = np.unique(context * (vocab_size + 1) + tokens, return_index=True, return_inverse=True)
        counts = np.bincount(number[real], minlength=len(keys))
        if lower:
            # Below the highest order, an n-gram counts in how many different contexts, one token longer, it was seen.
            seen = np.unique(number[real])
            lower = (
                *lower[:-1],
                _counted(lower[-1], np.bincount(shorter[first[seen]], minlength=len(lower[-1].keys)), vocab_size),
            )
        blank = np.zeros(n_contexts)
        level = _counted(_Level(keys, counts, blank, blank, blank), counts, vocab_size)
        model = NGram(vocab_size, (*lower, level))
        loss = model.loss(validation, counted)
        if loss >= least:
            break
        best, least, lower = model, loss, model.levels
        shorter, n_contexts = number, len(keys)
        context = np.concatenate([[0], number[:-1]])
    assert best is not None
    return best


def _counted(level: _Level, counts: np.ndarray, vocab_size: int) -> _Level:
    """The level with these counts, and what follows from them."""
    of = [int((counts == k).sum()) for k in (1, 2, 3, 4)]
    discounts = _FALLBACK
    if min(of) > 0:
        share = of[0] / (of[0] + 2 * of[1])
        estimated = np.array([0.0, *(k - (k + 1) * share * of[k] / of[k - 1] for k in (1, 2, 3))])
        # Text made by rule can have counts of counts from which no discount follows.
        discounts = estimated if ((estimated[1:] > 0) & (estimated[1:] <= [1, 2, 3])).all() else _FALLBACK
    context, size = level.keys // (vocab_size + 1), len(level.totals)
    totals = np.bincount(context, weights=counts, minlength=size)
    freed = np.bincount(context, weights=discounts[np.minimum(counts, 3)], minlength=size)
    return replace(level, counts=counts, totals=totals, freed=freed, discounts=discounts)


def _padded(sequences: Sequence[np.ndarray], vocab_size: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """All sequences in one row, each after order - 1 start symbols (vocab_size), and where their own tokens are."""
    pad = np.full(max(order - 1, 1), vocab_size)
    tokens = np.concatenate([part for sequence in sequences for part in (pad, np.asarray(sequence))]).astype(np.int64)
    return tokens, tokens < vocab_size
