"""Paths of a Markov chain, a step at a time, for the estimators that look at every step of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.streams import Stream

_LONGEST = 1_000_000


def is_chain(problem: Any) -> bool:
    """Whether the problem is a chain whose transitions can be read."""
    return callable(getattr(problem, "step", None)) and getattr(problem, "transitions", None) is not None


def walk(
    problem: Any, n: int, stream: Stream, first: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, int, np.ndarray, np.ndarray]]:
    """(rows, t, before, after) for every step t of n paths from the start: which paths moved, and from where to where.

    Row j uses the numbers of sample `stream.first + j`, the same as `ChainEvent.sample`; `first` (n,) puts uniforms of
    one's own in the place of the first step's. A path that has ended no longer appears.
    """
    states, alive = np.full(n, problem.start), np.arange(n)
    for t in range(_LONGEST if problem.horizon is None else problem.horizon):
        alive = alive[~problem.ends[states[alive]]]
        if not len(alive):
            return
        own = t == 0 and first is not None
        uniforms = np.asarray(first)[alive] if own else stream.uniforms_of(alive, 1, step=t)[:, 0]
        before = states[alive]
        states[alive] = problem.step(before, uniforms)
        yield alive, t, before, states[alive]
    if problem.horizon is None:
        raise WorkbenchError(f"A path of {problem.name} took more than {_LONGEST:,} steps; set a horizon.")
