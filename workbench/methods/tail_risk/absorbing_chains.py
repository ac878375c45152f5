"""Risk levels of a tool-using agent as an absorbing Markov chain: fitted from traces, and the risk within some steps.

For safety-drift: Dhodapkar and Pishori, "SafetyDrift: Predicting When AI Agents Cross the Line Before They Actually Do"
(2026, arXiv 2603.27148).
Does: counts of transitions, the fitted chain with its absorbing rows forced, fundamental matrix, risk by horizon and state,
intervals from a Dirichlet posterior.
Does not: levels of single tool calls; monitors; chains with a known truth (see `workbench.problems.chains`).

Departures
1. Absorbing rows are the identity. The authors' code leaves a row without counts uniform, the absorbing one too, so that
   mass leaks out of VIOLATED and the risk comes out too low.
2. A transient state that was never visited stays where it is (with `prior` > 0 its row is the prior's mean), where the
   code sends it to every state alike, VIOLATED included.
3. Absorption is certain exactly if the absorbing state can be reached from every transient one, which is what
   `expected_steps` asks for; monotone levels are not the reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, refuse, require_integer, require_number
from workbench.problems.chains import check_transitions, reach_probability
from workbench.streams import Stream


def transition_counts(traces: Any, n_states: int) -> np.ndarray:
    """(n_states, n_states) int64: how often each state followed each other one; traces: sequences of state numbers."""
    n_states = require_integer("n_states", n_states, low=2, cure="a chain has two states or more")
    counts = np.zeros((n_states, n_states), dtype=np.int64)
    for number, trace in enumerate(traces):
        states = np.asarray(trace)
        if states.ndim != 1 or not np.issubdtype(states.dtype, np.integer):
            raise refuse(f"traces[{number}]", trace, "be a sequence of whole numbers", "number the states from 0")
        if len(states) and (states.min() < 0 or states.max() >= n_states):
            must = f"hold states from 0 to {n_states - 1}"
            raise refuse(f"traces[{number}]", states.tolist(), must, "number the states from 0")
        np.add.at(counts, (states[:-1], states[1:]), 1)
    return counts


def _checked_counts(counts: Any, absorbing: Any) -> tuple[np.ndarray, np.ndarray]:
    table, ends = np.asarray(counts, dtype=np.float64), np.asarray(absorbing, dtype=bool)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or ends.shape != table.shape[:1] or not ends.any():
        must = "be a square table with one absorbing state or more marked"
        raise refuse("the shapes of counts and absorbing", (table.shape, ends.shape), must, "pass one bool a state")
    if not np.isfinite(table).all() or (table < 0).any():
        raise refuse("counts", table.tolist(), "be at least 0", "count transitions")
    return table, ends


def fit_chain(counts: Any, absorbing: Any, *, prior: float = 0.0) -> np.ndarray:
    """(S, S) transitions (c + prior) / row sum of counts (S, S); the rows of `absorbing` (S,) bool are the identity."""
    table, ends = _checked_counts(counts, absorbing)
    table = table + require_number("prior", prior, low=0, cure="pass e.g. prior=0.2")
    empty = table.sum(axis=1) == 0
    table = np.where((ends | empty)[:, None], np.eye(len(table)), table)
    return table / table.sum(axis=1, keepdims=True)


def risk_table(transitions: Any, absorbing: Any, longest: int) -> np.ndarray:
    """(longest + 1, S) P(absorbed within h steps | state), h = 0 to `longest`; any number of queries is a look-up in it."""
    matrix, ends = check_transitions(transitions), np.asarray(absorbing, dtype=bool)
    longest = require_integer("longest", longest, low=1, cure="pass a horizon of one step or more")
    table = [reach_probability(matrix, ends, 0)]
    for _ in range(longest):
        table.append(np.where(ends, 1.0, matrix @ table[-1]))
    return np.array(table)


def expected_steps(transitions: Any, absorbing: Any) -> np.ndarray:
    """(S,) steps to absorption, t = (I - Q)^-1 1, 0 at the absorbing states.

    Raises where absorption is not certain from every state: t is then infinite, and no smoothing is added silently.
    """
    matrix, ends = check_transitions(transitions), np.asarray(absorbing, dtype=bool)
    never = reach_probability(matrix, ends) < 1 - 1e-9
    if never.any():
        raise WorkbenchError(
            f"Absorption is not certain from state {int(np.flatnonzero(never)[0])}, so it takes infinitely long on "
            "average; ask for the risk within a horizon, or gather traces that end there."
        )
    steps, inner = np.zeros(len(matrix)), np.ix_(~ends, ~ends)
    steps[~ends] = np.linalg.solve(np.eye((~ends).sum()) - matrix[inner], np.ones((~ends).sum()))
    return steps


def posterior_risks(
    counts: Any, absorbing: Any, horizon: int, *, prior: float = 0.2, draws: int = 200, stream: Stream
) -> np.ndarray:
    """(draws, S) P(absorbed within `horizon` steps | state) under chains from the rows' Dirichlet(counts + prior) posterior.

    Quantiles along the first axis are an interval. A bootstrap over traces collapses to [0, 0] where no violation was
    seen; this does not.
    """
    table, ends = _checked_counts(counts, absorbing)
    prior = require_number("prior", prior, low=0, open_low=True, cure="pass e.g. prior=0.2")
    draws = require_integer("draws", draws, low=1, cure="pass e.g. draws=200")
    horizon = require_integer("horizon", horizon, low=1, cure="pass a horizon of one step or more")
    gammas = stream.generator().standard_gamma(table + prior, size=(draws, *table.shape))
    chains = gammas / gammas.sum(axis=2, keepdims=True)
    risk = np.broadcast_to(ends.astype(float), (draws, len(ends)))
    for _ in range(horizon):
        risk = np.where(ends, 1.0, np.einsum("dij,dj->di", chains, risk))
    return risk
