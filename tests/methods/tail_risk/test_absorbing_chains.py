"""Absorbing chains: the toy's printed figures, absorption exactly where it can be reached, intervals that know ignorance."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import absorbing_chains as ac

TOY = np.array(
    [
        [0.8, 0.15, 0.04, 0.01, 0],
        [0, 0.7, 0.15, 0.1, 0.05],
        [0, 0, 0.65, 0.2, 0.15],
        [0, 0, 0, 0.6, 0.4],
        [0, 0, 0, 0, 1],
    ]
)
END = np.arange(5) == 4


def test_the_toy_has_the_risks_and_the_steps_of_matrix_powers():
    table = ac.risk_table(TOY, END, 10)
    assert np.allclose(table[5, :4], [0.182, 0.503, 0.731, 0.922], atol=5e-4)
    assert np.allclose(table[10, :4], [0.567, 0.861, 0.957, 0.994], atol=5e-4)
    for h in (0, 1, 7):
        assert np.allclose(table[h], np.linalg.matrix_power(TOY, h)[:, 4])
    found = ac.fundamental(TOY, END)
    assert np.allclose(found.steps, [10.71, 6.31, 4.29, 2.5, 0], atol=5e-3)
    assert np.allclose(found.absorbed, 1)
    visits = sum(np.linalg.matrix_power(TOY, t)[0] for t in range(400))
    assert np.allclose(found.visits[0, :4], visits[:4]) and found.visits[0, 4] == 0


def test_two_ends_share_the_absorption():
    matrix = np.array([[0.5, 0.2, 0.2, 0.1], [0, 1, 0, 0], [0.4, 0, 0.1, 0.5], [0, 0, 0, 1]])
    found = ac.fundamental(matrix, [False, True, False, True])
    assert np.allclose(found.absorbed, np.linalg.matrix_power(matrix, 400)[:, [1, 3]])
    assert np.allclose(found.absorbed.sum(axis=1), 1) and 0.1 < found.absorbed[0, 0] < 0.9


def test_the_absorbing_row_is_forced_and_an_unvisited_one_stays():
    counts = ac.transition_counts([[0, 1, 1, 4], [0, 0, 1], [3]], 5)
    assert counts[0, 1] == 2 and counts[1, 4] == 1 and counts.sum() == 5
    fitted = ac.fit_chain(counts, END)
    assert np.array_equal(fitted[4], END) and fitted[2, 2] == fitted[3, 3] == 1.0
    assert np.allclose(fitted[1], [0, 0.5, 0, 0, 0.5])
    leaky = ac.fit_chain(counts, END, prior=0.2)
    assert np.array_equal(leaky[4], END) and np.allclose(leaky[2], 0.2) and np.allclose(leaky.sum(axis=1), 1)


def test_absorption_takes_finite_time_exactly_where_it_can_be_reached():
    rng = np.random.default_rng(0)
    for trap in (False, True) * 10:
        matrix = ac.fit_chain(rng.integers(0, 3, (5, 5)) + np.eye(5, k=1), END)
        if not trap:
            assert np.isfinite(ac.fundamental(matrix, END).steps).all()
            continue
        matrix[2] = np.eye(5)[2]
        with pytest.raises(
            WorkbenchError, match=r"Absorption is not certain from state [0-3], .*; ask for the risk within"
        ):
            ac.fundamental(matrix, END)


def test_a_hundred_thousand_queries_are_a_look_up():
    rng = np.random.default_rng(1)
    states, horizons = rng.integers(0, 5, 100_000), rng.integers(1, 11, 100_000)
    found = ac.risks(TOY, END, states, horizons)
    powers = np.array([np.linalg.matrix_power(TOY, h)[:, 4] for h in range(11)])
    assert found.shape == (100_000,) and np.allclose(found, powers[horizons, states])
    assert np.array_equal(ac.risks(TOY, END, states, 5), ac.risk_table(TOY, END, 5)[5, states])
    assert ac.risks(TOY, END, [], []).shape == (0,) and ac.risks(TOY, END, 1, 0) == 0


def test_the_posterior_covers_the_truth_and_does_not_collapse_without_a_violation():
    counts = np.zeros((5, 5))
    counts[0, 0], counts[0, 1], counts[1, 1] = 400, 30, 200
    none = ac.posterior_risks(counts, END, 5, stream=Stream.of(0, "post"))
    assert none.shape == (200, 5) and (none[:, 4] == 1).all()
    assert 0 <= np.quantile(none[:, 0], 0.025) < 0.002 < np.quantile(none[:, 1], 0.975) < 0.2
    many = ac.posterior_risks(np.round(1e6 * TOY), END, 5, stream=Stream.of(0, "post"))
    assert np.allclose(many.mean(axis=0)[:4], [0.182, 0.503, 0.731, 0.922], atol=2e-3)


def test_a_bootstrap_collapses_without_a_violation_and_agrees_with_the_posterior_with_many():
    rng = np.random.default_rng(2)
    paths = np.zeros((400, 13), dtype=int)
    for t in range(12):
        paths[:, t + 1] = (rng.random(400)[:, None] > TOY[paths[:, t]].cumsum(axis=1)).sum(axis=1)
    counts = ac.counts_by_group(paths, 5)
    assert np.array_equal(counts.sum(axis=0), ac.transition_counts(paths, 5)) and (counts.sum(axis=(1, 2)) == 12).all()
    again = ac.bootstrap_risks(counts, END, 5, draws=400, stream=Stream.of(0, "boot"))
    post = ac.posterior_risks(counts.sum(axis=0), END, 5, prior=1e-3, draws=400, stream=Stream.of(0, "post"))
    assert np.allclose(again.mean(axis=0), post.mean(axis=0), atol=0.02)
    assert np.allclose(again.std(axis=0)[:4] / post.std(axis=0)[:4], 1, atol=0.35)
    calm = counts[counts[:, :, 4].sum(axis=1) == 0]
    assert np.ptp(ac.bootstrap_risks(calm, END, 5, stream=Stream.of(0, "boot"))[:, :4]) == 0


def test_paths_are_counted_up_to_their_padding():
    counts = ac.counts_by_group(np.array([[0, 1, -1, -1], [1, 1, 0, 0]]), 2)
    assert counts.tolist() == [[[0, 1], [0, 0]], [[1, 0], [1, 1]]]
    assert np.array_equal(ac.counts_by_group(np.array([[0, 1], [1, 1], [1, 0]]), 2, [1, 0, 1])[1], [[0, 1], [1, 0]])


def test_intervals_are_wilsons():
    counts = np.array([[7, 3, 0], [0, 0, 0], [1, 0, 499]])
    low, high = ac.transition_intervals(counts)
    for k in range(3):
        assert np.allclose((low[0, k], high[0, k]), proportion_confint(counts[0, k], 10, method="wilson"))
        assert np.allclose((low[2, k], high[2, k]), proportion_confint(counts[2, k], 500, method="wilson"))
    assert (low[1] == 0).all() and (high[1] == 1).all()


def test_lumping_adds_columns_and_averages_rows():
    lumped = ac.lump(TOY, [1, 3, 0, 0, 0], [0, 0, 1, 1, 2])
    assert np.allclose(lumped[0], [0.25 * 0.95 + 0.75 * 0.7, 0.25 * 0.05 + 0.75 * 0.25, 0.75 * 0.05])
    assert np.array_equal(lumped[1:], np.eye(3)[1:]), "a group without weight stays where it is"
    alike = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0, 0, 1]])
    coarse = ac.risk_table(ac.lump(alike, [1, 1, 0], [0, 0, 1]), [False, True], 6)
    assert np.allclose(coarse[:, 0], ac.risk_table(alike, np.arange(3) == 2, 6)[:, 0]), (
        "states of one risk may be lumped"
    )


@pytest.mark.parametrize("attempt, said", [
    (lambda: ac.transition_counts([[0, 5]], 5), r"traces\[0\] is \[0, 5\] but must hold states from 0 to 4; number"),
    (lambda: ac.transition_counts([[0.5, 1]], 5), r"traces\[0\] is .* whole numbers; number the states"),
    (lambda: ac.fit_chain(-np.ones((2, 2)), [False, True]), r"counts is .* but must be at least 0; count"),
    (lambda: ac.fit_chain(np.ones((2, 2)), [False, False]), r"absorbing is .* at least one of 2 states .*; pass one bool"),
    (lambda: ac.fit_chain(np.ones((2, 2)), [1]), r"absorbing is \[1\] .* at least one of 2 states .*isin\(np.arange\(2\), numbers"),
    (lambda: ac.fit_chain(np.ones((3, 3)), [0, 1, 2]), r"absorbing is \[0, 1, 2\] but must mark"),
    (lambda: ac.fit_chain(np.ones((2, 3)), [False, True]), r"counts is \(2, 3\) but must be a square table; count"),
    (lambda: ac.counts_by_group(np.array([[0, 5]]), 5), r"paths is .* states from 0 to 4, padded with -1; number"),
    (lambda: ac.risks(TOY, np.arange(5) == 3, [0], [5]), r"transitions\[3\] is .* stay in state 3, .*; put 1 on its diagonal"),
    (lambda: ac.risks(TOY, END, [5], [5]), r"states is \[5\] but must be whole numbers from 0 to 4; number"),
    (lambda: ac.risks(TOY, END, [0], [-1]), r"horizons is \[-1\] but must be whole numbers from 0"),
    (lambda: ac.risk_table(TOY * 0.9, END, 5), r"sum of transitions\[0\] is 0.9.* but must be 1; divide the row"),
    (lambda: ac.risk_table(TOY, END, 0), r"longest is 0 but must .* at least 1; pass a horizon"),
    (lambda: ac.posterior_risks(TOY, END, 5, prior=0.0, stream=Stream.of(0, "x")), r"prior is 0.0 but must .* greater than 0"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")
