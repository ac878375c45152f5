"""Absorbing chains: the toy's printed figures, absorption exactly where it can be reached, intervals that know ignorance."""

from __future__ import annotations

import numpy as np
import pytest

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
    assert np.allclose(ac.expected_steps(TOY, END)[:4], [10.71, 6.31, 4.29, 2.5], atol=5e-3)


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
            assert np.isfinite(ac.expected_steps(matrix, END)).all()
            continue
        matrix[2] = np.eye(5)[2]
        with pytest.raises(
            WorkbenchError, match=r"Absorption is not certain from state [0-3], .*; ask for the risk within"
        ):
            ac.expected_steps(matrix, END)


def test_a_hundred_thousand_queries_are_a_look_up():
    rng = np.random.default_rng(1)
    states, horizons = rng.integers(0, 5, 100_000), rng.integers(1, 11, 100_000)
    risks = ac.risk_table(TOY, END, 10)[horizons, states]
    assert risks.shape == (100_000,)
    assert risks[7] == pytest.approx(np.linalg.matrix_power(TOY, horizons[7])[states[7], 4])


def test_the_posterior_covers_the_truth_and_does_not_collapse_without_a_violation():
    counts = np.zeros((5, 5))
    counts[0, 0], counts[0, 1], counts[1, 1] = 400, 30, 200
    none = ac.posterior_risks(counts, END, 5, stream=Stream.of(0, "post"))
    assert none.shape == (200, 5) and (none[:, 4] == 1).all()
    assert 0 <= np.quantile(none[:, 0], 0.025) < 0.002 < np.quantile(none[:, 1], 0.975) < 0.2
    many = ac.posterior_risks(np.round(1e6 * TOY), END, 5, stream=Stream.of(0, "post"))
    assert np.allclose(many.mean(axis=0)[:4], [0.182, 0.503, 0.731, 0.922], atol=2e-3)


@pytest.mark.parametrize("attempt, said", [
    (lambda: ac.transition_counts([[0, 5]], 5), r"traces\[0\] is \[0, 5\] but must hold states from 0 to 4; number"),
    (lambda: ac.transition_counts([[0.5, 1]], 5), r"traces\[0\] is .* whole numbers; number the states"),
    (lambda: ac.fit_chain(-np.ones((2, 2)), [False, True]), r"counts is .* but must be at least 0; count"),
    (lambda: ac.fit_chain(np.ones((2, 2)), [False, False]), r"one absorbing state or more marked; pass one bool"),
    (lambda: ac.risk_table(TOY * 0.9, END, 5), r"sum of transitions\[0\] is 0.9.* but must be 1; divide the row"),
    (lambda: ac.risk_table(TOY, END, 0), r"longest is 0 but must .* at least 1; pass a horizon"),
    (lambda: ac.posterior_risks(TOY, END, 5, prior=0.0, stream=Stream.of(0, "x")), r"prior is 0.0 but must .* greater than 0"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")
