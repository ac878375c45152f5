"""Adaptive multilevel splitting: unbiased on paths, the law of its moves, every mode found, honest while it can't tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import workbench as wb
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk.splitting import Splitting, _branched_paths, _moved_points, _paths, _points
from workbench.problems import analytic, chains
from workbench.problems.suite import find_problem

# z thresholds of 5 fail a correct estimator with probability 6e-7 each, where the mean of so many replicates is normal.
Z = 5.0


@pytest.mark.parametrize(
    "problem, settings",
    [
        (chains.ladder(0.3, 5), {"particles": 6, "kill": 0.3}),
        (chains.two_ways(0.01, 0.2, 6), {"particles": 5, "kill": 0.5}),
        (chains.agent_risk(6, 1), {"particles": 10, "kill": 0.1}),
    ],
)
def test_it_is_unbiased_on_paths_with_a_handful_of_particles(problem, settings):
    estimate = wb.run(problem, Splitting(**settings), wb.Budget(samples=30_000), seed=1)
    assert estimate.diagnostics["replicates"] > 1000 and estimate.diagnostics["lost"] > 0
    assert abs(estimate.value - problem.truth) < Z * estimate.std_error


@pytest.mark.parametrize(
    "name", ["four-branch", "two-sided-1e-6", "shell-1e-6", "heavy-maximum-1e-6", "linear-50d-1e-4"]
)
def test_it_finds_every_mode_of_a_rare_event(name):
    problem = find_problem(name)
    estimate = wb.run(problem, Splitting(), wb.Budget(model_calls=60_000), seed=2)
    # Measured: relative error 0.1 to 0.25 with this budget. A missed half would be 0.5 off, in every replicate.
    assert estimate.value is not None and abs(math.log(estimate.value / problem.truth)) < math.log(2)


def test_moves_leave_the_gaussian_beyond_the_level_as_it_is():
    n, height = 4000, -1.0
    problem = analytic.GaussianTail(2.0)
    start = stats.truncnorm(1.0, np.inf).ppf(Stream.of(0, "start").uniforms(n)[:, 0])[:, None]
    parents = {"z": start, "scores": start[:, 0] - 2.0}
    moved = _moved_points(problem, parents, height, 4, n, Stream.of(1, "moves"))
    assert (moved["scores"] > height).all() and np.allclose(moved["scores"], moved["z"][:, 0] - 2.0)
    assert np.mean(moved["z"] != start) > 0.9, "nearly all have moved"
    assert stats.kstest(moved["z"][:, 0], stats.truncnorm(1.0, np.inf).cdf).pvalue > 1e-6


def test_a_branch_keeps_its_past_and_begins_where_its_parent_rose():
    problem, n = chains.ladder(0.45, 6), 500
    parents = _paths(problem, n, Stream.of(0, "paths"))
    top = parents["scores"] > -4.0  # has been on rung 3
    chosen = {name: values[top] for name, values in parents.items()}
    branch = _branched_paths(problem, chosen, -4.0, 1, top.sum(), Stream.of(1, "branch"))
    assert (branch["scores"] > -4.0).all()
    assert np.array_equal(branch["first_time"][:, :4], chosen["first_time"][:, :4])
    assert (branch["first_state"][:, 3] == 3).all()
    assert (branch["first_time"] != chosen["first_time"]).any(), "the future is drawn anew"
    later = branch["first_time"][:, 4]
    assert ((later == -1) | (later > branch["first_time"][:, 3])).all()


def test_a_horizon_counts_from_the_beginning_of_the_path():
    # Two steps up are needed; a branch that forgot the time would have them for certain.
    matrix = np.array([[0.9, 0.1, 0, 0], [0.0, 0.9, 0.1, 0], [0, 0, 0, 1.0], [0, 0, 0, 1.0]])
    problem = chains.ChainEvent("slow", matrix, 0, np.arange(4) == 3, horizon=4)
    estimate = wb.run(problem, Splitting(particles=20), wb.Budget(samples=30_000), seed=3)
    assert abs(estimate.value - problem.truth) < Z * estimate.std_error


def test_points_are_charged_as_evaluations():
    problem = analytic.GaussianTail(3.0)
    with wb.Meter() as meter:
        _points(problem, 10, Stream.of(0, "x"))
    assert meter.spend.model_calls == 10
    parents = {"z": np.full((7, 1), 2.0), "scores": np.full(7, -1.0)}
    with wb.Meter() as meter:
        _moved_points(problem, parents, -2.0, 5, 7, Stream.of(0, "y"))
    assert meter.spend.model_calls == 35


def test_until_a_replicate_is_whole_it_says_so():
    problem = find_problem("tail-1e-6")
    early = wb.run(problem, Splitting(), wb.Budget(samples=60), seed=0)
    assert early.value is None and (early.low, early.high) == (0.0, 1.0) and "no replicate" in early.why
    few = wb.run(problem, Splitting(particles=20, moves=2), wb.Budget(samples=700), seed=0)
    assert not few.reliable and 1 <= few.diagnostics["replicates"] < 5 and few.why


def test_an_event_more_likely_than_the_share_that_stays_needs_no_level():
    estimate = wb.run(analytic.GaussianTail(0.0), Splitting(particles=50, kill=0.8), wb.Budget(samples=5000), seed=0)
    assert estimate.diagnostics["replicates"] == 100 and abs(estimate.value - 0.5) < Z * estimate.std_error


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"particles": 1}, r"particles is 1"),
        ({"kill": 0.0}, r"kill is 0"),
        ({"kill": 1.0}, r"kill is 1"),
        ({"moves": 0}, r"moves is 0"),
        ({"level": 1.0}, r"level is 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(WorkbenchError, match=said):
        Splitting(**settings)


def test_a_problem_without_scores_is_refused_by_name():
    with pytest.raises(Unsuitable, match=r"Splitting needs a problem with a limit state or with steps and levels"):
        Splitting().init(find_problem("grammar-7"))
