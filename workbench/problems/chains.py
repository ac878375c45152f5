"""Does a Markov chain reach its target, before it is absorbed elsewhere or before a horizon?

Truth comes from linear algebra: with Q the transitions among the other states and r_i = P(i -> target) in one step,
p = (I - Q)^-1 r without a horizon, and p_h = sum_{t < h} Q^t r with one.
Does: draws paths one step at a time, so that what weighs, splits or conditions paths can take hold of them; some
classics with their closed forms.
Does not: fit chains to data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from workbench.budget import charge
from workbench.errors import WorkbenchError, refuse, require_integer, require_probability
from workbench.streams import Stream

_LONGEST = 1_000_000  # steps; a chain that is absorbed for certain ends far sooner


def check_transitions(transitions: np.ndarray) -> np.ndarray:
    """(S, S) float64 with rows that sum to 1, or a refusal that names the row."""
    try:
        matrix = np.asarray(transitions, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if not matrix.size or matrix.ndim != 2 or len(matrix) != len(matrix.T):
        raise refuse("transitions", matrix.shape, "be a square matrix", "give one row and one column a state")
    for row, probabilities in enumerate(matrix):
        if not np.isfinite(probabilities).all() or (probabilities < 0).any():
            raise refuse(
                f"transitions[{row}]", probabilities.tolist(), "hold probabilities", "mend the entries below 0 or NaN"
            )
        if abs(probabilities.sum() - 1) > 1e-9:
            raise refuse(
                f"the sum of transitions[{row}]", float(probabilities.sum()), "be 1", "divide the row by its sum"
            )
    return matrix


def reach_probability(transitions: np.ndarray, target: np.ndarray, horizon: int | None = None) -> np.ndarray:
    """(S,) P(a target state is reached within `horizon` steps | start), 1 at the targets; horizon None: ever.

    transitions (S, S); target (S,) bool. "Ever" is the smallest solution of p = Q p + r: states that can't reach the
    target have 0, the others' system is then regular.
    """
    matrix = check_transitions(transitions)
    target = check_marked("target", target, len(matrix))
    step_in = matrix[:, target].sum(axis=1)
    inner = np.where(target[None, :] | target[:, None], 0.0, matrix)
    if horizon is not None:
        horizon = require_integer("horizon", horizon, low=0, cure="pass a number of steps")
        reached = target.astype(float)
        for _ in range(horizon):
            reached = np.where(target, 1.0, step_in + inner @ reached)
        return reached
    alive = _can_reach(matrix, target) & ~target
    reached = target.astype(float)
    reached[alive] = np.linalg.solve(np.eye(alive.sum()) - inner[np.ix_(alive, alive)], step_in[alive])
    return reached


def check_marked(argument: str, marks: Any, n_states: int) -> np.ndarray:
    """(n_states,) bool with at least one True, or a refusal; states by number are refused too."""
    given = np.asarray(marks)
    if given.shape != (n_states,) or not np.isin(given, (0, 1)).all() or not given.any():
        cure = f"pass one bool a state, e.g. np.isin(np.arange({n_states}), numbers) for states by number"
        raise refuse(argument, given.tolist(), f"mark at least one of {n_states} states as {argument}", cure)
    return given.astype(bool)


def _can_reach(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    found = target.copy()
    while True:
        more = found | (matrix[:, found] > 0).any(axis=1)
        if (more == found).all():
            return found
        found = more


@dataclass(frozen=True, eq=False)
class ChainEvent:
    """P(a state of `target` is reached | start), within `horizon` steps or ever.

    transitions (S, S); target (S,) bool; `height` (S,) orders the states by how near the target is, for methods that
    split paths at levels (default: the state's number). A path ends at the target, in a state that it can't leave, or
    at the horizon. Each step of a path is charged as one model call.
    """

    name: str
    transitions: np.ndarray = field(repr=False)
    start: int
    target: np.ndarray = field(repr=False)
    horizon: int | None = None
    height: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        matrix = check_transitions(self.transitions)
        target = check_marked("target", self.target, len(matrix))
        cure = "number the states from 0"
        require_integer("start", self.start, low=0, high=len(matrix) - 1, cure=cure)
        object.__setattr__(self, "transitions", matrix)
        object.__setattr__(self, "target", target)
        if self.horizon is not None:
            require_integer("horizon", self.horizon, low=0, cure="pass a number of steps")
        elif not _can_reach(matrix, self.ends)[self.start]:
            raise WorkbenchError(
                f"{self.name} never ends: from state {self.start} neither the target nor an absorbing state can be "
                "reached; set a horizon, or an absorbing state."
            )

    @cached_property
    def truth(self) -> float:
        return float(reach_probability(self.transitions, self.target, self.horizon)[self.start])

    @cached_property
    def ends(self) -> np.ndarray:
        """(S,) bool: where a path ends, at the target or in a state that it can't leave."""
        return self.target | (np.diag(self.transitions) == 1)

    @cached_property
    def _cdf(self) -> np.ndarray:
        return self.transitions.cumsum(axis=1)

    def levels(self) -> np.ndarray:
        """(S,) float: how near the target each state is."""
        return np.arange(len(self.transitions), dtype=float) if self.height is None else np.asarray(self.height, float)

    def step(self, states: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """The next states (n,) of paths in `states` (n,), by inversion of `uniforms` (n,)."""
        charge(model_calls=len(states))
        cdf = self._cdf[states]
        return (cdf[:, :-1] <= uniforms[:, None]).sum(axis=1)

    def sample(self, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"hit": (n,) bool}: n paths."""
        states, alive = np.full(n, self.start), np.arange(n)
        for t in range(_LONGEST if self.horizon is None else self.horizon):
            alive = alive[~self.ends[states[alive]]]
            if not len(alive):
                break
            states[alive] = self.step(states[alive], stream.uniforms_of(alive, 1, step=t)[:, 0])
        else:
            if self.horizon is None:
                raise WorkbenchError(f"A path of {self.name} took more than {_LONGEST:,} steps; set a horizon.")
        return {"hit": self.target[states]}


def ladder(up: float, rungs: int) -> ChainEvent:
    """Gambler's ruin: from rung 1, up with probability `up`, else down; the top before rung 0?

    Truth: (1 - s) / (1 - s^rungs) with s = (1 - up) / up, and 1 / rungs at up = 1/2. It is also a queue that overflows
    before it is empty again, the classic of splitting.
    """
    up = require_probability("up", up, cure="pass e.g. up=0.3")
    rungs = require_integer("rungs", rungs, low=2, cure="a ladder has a top and a bottom")
    matrix = np.zeros((rungs + 1, rungs + 1))
    matrix[0, 0] = matrix[rungs, rungs] = 1
    for rung in range(1, rungs):
        matrix[rung, rung + 1], matrix[rung, rung - 1] = up, 1 - up
    return ChainEvent(f"ladder(up={up:g}, {rungs})", matrix, 1, np.arange(rungs + 1) == rungs)


def repairs(parts: int = 6, failure: float = 0.01, repair: float = 0.5) -> ChainEvent:
    """`parts` parts fail one by one and are repaired one by one; are all down before all are up again?

    The state counts what is down; a failure comes with rate (parts - down) * failure, a repair with rate `repair`;
    it begins with one part down.
    """
    parts = require_integer("parts", parts, low=2, cure="take at least two parts")
    matrix = np.zeros((parts + 1, parts + 1))
    matrix[0, 0] = matrix[parts, parts] = 1
    for down in range(1, parts):
        fails = (parts - down) * failure
        matrix[down, down + 1], matrix[down, down - 1] = fails / (fails + repair), repair / (fails + repair)
    return ChainEvent(f"repairs({parts}, {failure:g}, {repair:g})", matrix, 1, np.arange(parts + 1) == parts)


def two_ways(rare: float = 0.002, common: float = 0.05, horizon: int = 12) -> ChainEvent:
    """A violation that can be reached by a long road of common steps or by a short one of rare steps.

    From state 0 (calm) three common steps in a row lead to the target by states 1 and 2, or one rare step leads to
    state 3, from where the target follows at once; every step may also fall back to calm. What adapts to the first
    road seen forgets the other.
    """
    matrix = np.array(
        [
            [1 - common - rare, common, 0, rare, 0],
            [1 - common - rare, 0, common, rare, 0],
            [1 - common - rare, 0, 0, rare, common],
            [0.1, 0, 0, 0, 0.9],
            [0, 0, 0, 0, 1.0],
        ]
    )
    return ChainEvent(
        f"two-ways({rare:g}, {common:g}, T={horizon})",
        matrix,
        0,
        np.arange(5) == 4,
        horizon,
        np.array([0.0, 1, 2, 2, 3]),
    )


def agent_risk(horizon: int = 10, start: int = 0) -> ChainEvent:
    """Five levels of risk of a tool-using agent, VIOLATED absorbing, after Dhodapkar and Pishori (arXiv 2603.27148).

    The transition matrix is a made-up one with a tenth of the levels' usual drift, so that violations are rare.
    """
    matrix = np.array(
        [
            [0.976, 0.020, 0.003, 0.001, 0.0],
            [0.050, 0.920, 0.020, 0.008, 0.002],
            [0.010, 0.050, 0.910, 0.020, 0.010],
            [0.0, 0.010, 0.050, 0.890, 0.050],
            [0.0, 0.0, 0.0, 0.0, 1.0],
        ]
    )
    return ChainEvent(f"agent-risk(T={horizon}, from {start})", matrix, start, np.arange(5) == 4, horizon)
