"""Risk levels of a tool-using agent as an absorbing Markov chain: fitted from traces, and the risk within some steps.

For safety-drift: Dhodapkar and Pishori, "SafetyDrift: Predicting When AI Agents Cross the Line Before They Actually Do"
(2026, arXiv 2603.27148).
Does: counts of transitions with their intervals, the fitted chain with its absorbing rows forced, the fundamental
matrix, risk by state and horizon for any number of queries, intervals from a Dirichlet posterior or a bootstrap,
lumped chains.
Does not: levels of single tool calls (`tool_lattice`); monitors (`safety_drift`).

With the transient states first, P = [[Q, R], [0, I]]: visits N = (I - Q)^-1, absorption B = N R, expected steps
t = N 1, and risk within h steps p_h = the absorbing columns of P^h.

Departures
1. Absorbing rows are the identity. The authors' code leaves a row without counts uniform, the absorbing one too, so
   that mass leaks out of VIOLATED and the risk comes out too low.
2. A transient state that was never visited stays where it is (with `prior` > 0 its row is the prior's mean), where the
   code sends it to every state alike, VIOLATED included.
3. Absorption is certain exactly if an absorbing state can be reached from every transient one, which is what
   `fundamental` asks for; monotone levels are not the reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from workbench.errors import WorkbenchError, refuse, require_integer, require_number, require_probability
from workbench.problems.chains import check_marked, check_transitions, reach_probability
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


def counts_by_group(paths: Any, n_states: int, groups: Any = None) -> np.ndarray:
    """(G, n_states, n_states) int64: the transitions of each group of paths; paths (n, L) of state numbers, padded
    with -1.

    groups (n,): each path's group, 0 to G - 1; by default every path is one of its own.
    """
    n_states = require_integer("n_states", n_states, low=2, cure="a chain has two states or more")
    states = np.asarray(paths)
    if states.ndim != 2 or not np.issubdtype(states.dtype, np.integer) or states.min() < -1 or states.max() >= n_states:
        must = f"be a table of states from 0 to {n_states - 1}, padded with -1"
        raise refuse("paths", states.shape if states.ndim != 2 else states, must, "number the states from 0")
    group = np.arange(len(states)) if groups is None else np.asarray(groups)
    row, step = np.nonzero((states[:, 1:] >= 0) & (states[:, :-1] >= 0))
    place = (group[row] * n_states + states[row, step]) * n_states + states[row, step + 1]
    n_groups = int(group.max()) + 1
    return np.bincount(place, minlength=n_groups * n_states**2).reshape(n_groups, n_states, n_states)


def transition_intervals(counts: Any, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), (S, S) each: Wilson's interval for every entry of the transition matrix; [0, 1] in a row without
    counts."""
    table = require_counts(counts)
    level = require_probability("level", level, cure="pass e.g. level=0.95")
    total, z = table.sum(axis=1, keepdims=True), norm.isf((1 - level) / 2)
    seen = np.maximum(total, 1.0)
    middle = (table + z**2 / 2) / (seen + z**2)
    half = z * np.sqrt(table * (seen - table) / seen + z**2 / 4) / (seen + z**2)
    low, high = np.where(table == 0, 0.0, middle - half), np.where(table == total, 1.0, middle + half)
    return np.where(total == 0, 0.0, low), np.where(total == 0, 1.0, high)


def require_counts(counts: Any) -> np.ndarray:
    """(..., S, S) float64 of counts at least 0, or a refusal."""
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim < 2 or table.shape[-2] != table.shape[-1]:
        raise refuse("counts", table.shape, "be a square table", "count transitions between numbered states")
    if not np.isfinite(table).all() or (table < 0).any():
        raise refuse("counts", table.tolist(), "be at least 0", "count transitions")
    return table


def fit_chain(counts: Any, absorbing: Any, *, prior: float = 0.0) -> np.ndarray:
    """(..., S, S) transitions (c + prior) / row sum of counts (..., S, S); the rows of `absorbing` (S,) are the
    identity."""
    table = require_counts(counts)
    ends = check_marked("absorbing", absorbing, table.shape[-1])
    table = table + require_number("prior", prior, low=0, cure="pass e.g. prior=0.2")
    stays = ends | (table.sum(axis=-1) == 0)
    table = np.where(stays[..., None], np.eye(len(ends)), table)
    return table / table.sum(axis=-1, keepdims=True)


def check_absorbing(transitions: Any, absorbing: Any) -> tuple[np.ndarray, np.ndarray]:
    """(S, S) float64 and (S,) bool: rows that sum to 1 and absorbing states that nothing leaves, or a refusal."""
    matrix = check_transitions(transitions)
    ends = check_marked("absorbing", absorbing, len(matrix))
    leaking = ends & (np.diag(matrix) < 1 - 1e-9)
    if leaking.any():
        state = int(np.flatnonzero(leaking)[0])
        must = f"stay in state {state}, which is marked as absorbing"
        raise refuse(f"transitions[{state}]", matrix[state].tolist(), must, "put 1 on its diagonal, as fit_chain does")
    return matrix, ends


def risk_table(transitions: Any, absorbing: Any, longest: int) -> np.ndarray:
    """(longest + 1, S) P(absorbed within h steps | state), h = 0 to `longest`."""
    matrix, ends = check_absorbing(transitions, absorbing)
    longest = require_integer("longest", longest, low=1, cure="pass a horizon of one step or more")
    table = [ends.astype(float)]
    for _ in range(longest):
        table.append(matrix @ table[-1])
    return np.minimum(table, 1.0)


def risks(transitions: Any, absorbing: Any, states: Any, horizons: Any) -> np.ndarray:
    """(n,) P(absorbed within horizons[i] steps | states[i]): one table up to the longest horizon, then a look-up a
    query."""
    matrix, ends = check_absorbing(transitions, absorbing)
    asked = {}
    for name, values, low, high in (("states", states, 0, len(matrix) - 1), ("horizons", horizons, 0, 1_000_000)):
        array = np.asarray(values)
        if array.size and (array.dtype.kind not in "iu" or array.min() < low or array.max() > high):
            raise refuse(name, array, f"be whole numbers from {low} to {high}", "number the states and steps from 0")
        asked[name] = array
    state, horizon = np.broadcast_arrays(asked["states"], asked["horizons"])
    if not state.size:
        return np.zeros(state.shape)
    return risk_table(matrix, ends, max(1, int(horizon.max())))[horizon, state]


class Fundamental(NamedTuple):
    """visits (S, S): expected visits N of the column's state from the row's, 0 at absorbing states; absorbed (S, A):
    P(ends in the a-th absorbing state), B = N R; steps (S,): expected steps t = N 1."""

    visits: np.ndarray
    absorbed: np.ndarray
    steps: np.ndarray


def fundamental(transitions: Any, absorbing: Any) -> Fundamental:
    """The closed form of an absorbing chain, by one solve with I - Q.

    Raises where absorption is not certain from every state: t is then infinite, and no smoothing is added silently.
    """
    matrix, ends = check_absorbing(transitions, absorbing)
    never = reach_probability(matrix, ends) < 1 - 1e-9
    if never.any():
        raise WorkbenchError(
            f"Absorption is not certain from state {int(np.flatnonzero(never)[0])}, so it takes infinitely long on "
            "average; ask for the risk within a horizon, or gather traces that end there."
        )
    n, inner = len(matrix), np.ix_(~ends, ~ends)
    visits, absorbed = np.zeros((n, n)), np.eye(n)[:, ends]
    visits[inner] = np.linalg.solve(np.eye((~ends).sum()) - matrix[inner], np.eye((~ends).sum()))
    absorbed[~ends] = visits[inner] @ matrix[np.ix_(~ends, ends)]
    return Fundamental(visits, absorbed, visits.sum(axis=1))


def lump(transitions: Any, weights: Any, groups: Any) -> np.ndarray:
    """(G, G) transitions between groups of states: the rows of a group averaged with `weights` (S,), its columns added.

    groups (S,): each state's group, 0 to G - 1. With weights = expected visits this is what a chain fitted on the
    groups tends to. It is the groups' law for one step only: in general a lumped chain is not Markov. A group without
    weight stays where it is.
    """
    matrix, group = check_transitions(transitions), np.asarray(groups)
    member = (group[:, None] == np.arange(group.max() + 1)).astype(float)
    flow = (member * np.asarray(weights, dtype=float)[:, None]).T @ matrix @ member
    flow = np.where(flow.sum(axis=1, keepdims=True) == 0, np.eye(len(flow)), flow)
    return flow / flow.sum(axis=1, keepdims=True)


def _within(chains: np.ndarray, ends: np.ndarray, horizon: int) -> np.ndarray:
    """(draws, S) risk within `horizon` steps of chains (draws, S, S), their absorbing rows taken as the identity."""
    risk = np.broadcast_to(ends.astype(float), chains.shape[:2])
    for _ in range(horizon):
        risk = np.where(ends, 1.0, np.einsum("dij,dj->di", chains, risk))
    return risk


def posterior_risks(
    counts: Any, absorbing: Any, horizon: int, *, prior: float = 0.2, draws: int = 200, stream: Stream
) -> np.ndarray:
    """(draws, S) P(absorbed within `horizon` steps | state) under chains from the rows' Dirichlet(counts + prior)
    posterior.

    Quantiles along the first axis are an interval. A bootstrap over traces collapses to [0, 0] where no violation was
    seen; this does not.
    """
    table = require_counts(counts)
    ends = check_marked("absorbing", absorbing, len(table))
    prior = require_number("prior", prior, low=0, open_low=True, cure="pass e.g. prior=0.2")
    draws = require_integer("draws", draws, low=1, cure="pass e.g. draws=200")
    horizon = require_integer("horizon", horizon, low=1, cure="pass a horizon of one step or more")
    gammas = stream.generator().standard_gamma(table + prior, size=(draws, *table.shape))
    return _within(gammas / gammas.sum(axis=2, keepdims=True), ends, horizon)


def bootstrap_risks(counts: Any, absorbing: Any, horizon: int, *, draws: int = 200, stream: Stream) -> np.ndarray:
    """(draws, S) the same risk of chains refitted on resampled traces; counts (n, S, S) by trace
    (`counts_by_group`)."""
    table = require_counts(counts)
    ends = check_marked("absorbing", absorbing, table.shape[-1])
    draws = require_integer("draws", draws, low=1, cure="pass e.g. draws=200")
    horizon = require_integer("horizon", horizon, low=1, cure="pass a horizon of one step or more")
    times = stream.generator().multinomial(len(table), np.full(len(table), 1 / len(table)), size=draws)
    return _within(fit_chain(np.einsum("dn,nij->dij", times, table), ends), ends, horizon)
