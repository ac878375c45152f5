"""A model's next-token laws for every prefix of one prompt, as a finite automaton.

Does: turns an enumerated tree into a `GrammarModel` with one state a prefix, so that drawing from it is a table
look-up: the same law as the model's own, a thousand times faster. For experiments with many repeats.
Does not: go beyond the tree's length; the last state ends every text.
"""

from __future__ import annotations

import numpy as np

from workbench.models.base import LanguageModel
from workbench.models.enumerate import PrefixTree
from workbench.models.grammar import GrammarModel


def tabulate(tree: PrefixTree, model: LanguageModel, log_probs: np.ndarray | None = None) -> GrammarModel:
    """The automaton that gives `tree.prompt` the completions of `model`, to be prompted with [0].

    log_probs (N,): log p(token | prefix) at each node, as from `tree.log_probs_under`; default: the tree's own.
    Two automata of one tree share their states, so one can be the other's steered version.
    """
    given = tree.log_prob if log_probs is None else log_probs
    inner = np.flatnonzero(~tree.is_leaf)
    state_of = np.full(len(tree), len(inner))
    state_of[inner] = np.arange(len(inner))
    table = np.full((len(inner) + 1, model.vocab_size), -np.inf)
    transition = np.full(table.shape, len(inner))
    child = np.flatnonzero(tree.parent >= 0)
    table[state_of[tree.parent[child]], tree.token[child]] = given[child]
    transition[state_of[tree.parent[child]], tree.token[child]] = state_of[child]
    table[-1, model.eos_id or 0] = 0.0
    # Token 0 of the automaton's own one-token prompt leads to the state before any token.
    start = len(table)
    table = np.vstack([table, np.full(model.vocab_size, -np.log(model.vocab_size))])
    transition = np.vstack([transition, np.zeros(model.vocab_size, dtype=np.int64)])
    made = GrammarModel(table, transition, start_state=start, eos_id=model.eos_id, name=f"{model.name} tabulated")
    made.eos_ids = model.eos_ids
    return made
