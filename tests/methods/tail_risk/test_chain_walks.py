"""Paths a step at a time are the paths that the chain draws itself, and the first step can be given."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import chain_walks
from workbench.methods.tail_risk.chain_walks import is_chain, walk
from workbench.problems.suite import find_problem


@pytest.mark.parametrize("name", ["agent-risk-mild", "two-ways", "ladder-even"])
def test_walks_are_the_chains_own_paths(name):
    problem, stream, n = find_problem(name), Stream.of(3, "walk").at(7), 400
    states = np.full(n, problem.start)
    for rows, _, before, after in walk(problem, n, stream):
        assert np.array_equal(states[rows], before) and (problem.transitions[before, after] > 0).all()
        states[rows] = after
    assert np.array_equal(problem.target[states], problem.sample(n, stream)["hit"])
    assert is_chain(problem) and not is_chain(find_problem("tail-1e-3"))


def test_the_first_step_follows_the_uniforms_that_are_given():
    problem = find_problem("agent-risk-mild")
    first = np.linspace(0, 1, 1000, endpoint=False)
    rows, t, _, after = next(walk(problem, 1000, Stream.of(0, "x"), first=first))
    assert t == 0 and len(rows) == 1000
    assert np.allclose(np.bincount(after, minlength=5) / 1000, problem.transitions[problem.start], atol=2e-3)


def test_a_walk_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(chain_walks, "_LONGEST", 3)
    with pytest.raises(WorkbenchError, match=r"took more than 3 steps; set a horizon\."):
        list(walk(find_problem("ladder-8"), 50, Stream.of(0, "x")))
