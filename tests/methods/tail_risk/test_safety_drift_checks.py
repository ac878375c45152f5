"""Order tests that hold their level, Kaplan-Meier against statsmodels, scores at one step."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest
from statsmodels.duration.survfunc import SurvfuncRight

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import safety_drift_checks as checks
from workbench.methods.tail_risk.tool_lattice import draw_traces


def walks(matrix, n, length, rng):
    paths = np.zeros((n, length), dtype=int)
    for t in range(1, length):
        paths[:, t] = (rng.random(n)[:, None] > matrix[paths[:, t - 1]].cumsum(axis=1)).sum(axis=1)
    return paths


def test_p_values_are_uniform_on_a_markov_chain():
    rng, matrix = np.random.default_rng(0), np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])
    found = [checks.order_test(walks(matrix, 200, 12, rng), 3) for _ in range(300)]
    assert {one.df for one in found} == {12}, "3 states in the middle, (3 - 1)(3 - 1) each"
    assert kstest([one.p_value for one in found], "uniform").pvalue > 1e-4


def test_a_chain_of_order_two_is_found_out():
    rng = np.random.default_rng(1)
    paths = rng.integers(0, 2, (300, 12))
    for t in range(2, 12):
        paths[:, t] = np.where(rng.random(300) < 0.8, paths[:, t - 2], 1 - paths[:, t - 2])
    assert checks.order_test(paths, 2).p_value < 1e-20
    one, two, three = (checks.order_scores(paths[:200], paths[200:], 2, order) for order in (1, 2, 3))
    assert two[0] > one[0] + 0.2 and two[1] > one[1] + 0.1
    assert two[1] == pytest.approx(three[1], abs=0.02) and two[1] == pytest.approx(
        0.8 * np.log(0.8) + 0.2 * np.log(0.2), abs=0.05
    )


def test_it_holds_its_level_where_most_cells_are_thin():
    found = [checks.order_test(draw_traces({"data": 2000}, Stream.of(s, "thin")).states, 60).p_value for s in range(60)]
    assert 0 < np.mean(np.array(found) < 0.1) < 0.3, "10 % expected; the likelihood ratio rejects more than half"


def test_five_levels_are_not_markov_where_sixty_states_are():
    traces = draw_traces({"communication": 20_000}, Stream.of(0, "order"))
    assert checks.order_test(traces.levels, 5).p_value < 1e-10
    assert checks.order_test(traces.states, 60).p_value > 1e-4


def test_the_survival_curve_is_kaplan_and_meiers():
    rng = np.random.default_rng(2)
    steps, violated = rng.integers(1, 13, 200), rng.random(200) < 0.4
    survival, error = checks.kaplan_meier(steps, violated)
    peer = SurvfuncRight(steps, violated)
    assert np.allclose(survival[peer.surv_times.astype(int)], peer.surv_prob)
    alive = peer.surv_prob > 0
    assert np.allclose(error[peer.surv_times.astype(int)][alive], peer.surv_prob_se[alive])


def test_a_landmark_asks_those_still_going_whose_answer_is_known():
    scores = np.arange(20.0).reshape(5, 4)
    steps, violated = np.array([2, 3, 4, 4, 3]), np.array([True, True, True, False, False])
    picked, labels = checks.landmark(scores, steps, violated, 2, 2)
    assert picked.tolist() == [5, 9, 13] and labels.tolist() == [True, True, False]
    assert checks.landmark(scores, steps, violated, 2, 1)[1].tolist() == [True, False, False, False]


@pytest.mark.parametrize("attempt, said", [
    (lambda: checks.order_test(np.zeros((3, 2), dtype=int), 2), r"paths is '0 runs of three states' but must visit two contexts"),
    (lambda: checks.order_test(np.zeros((9, 9), dtype=int), 2), r"two contexts of one state at least 5 times each; gather more"),
    (lambda: checks.order_scores(np.zeros((3, 5), int), np.zeros((3, 3), int), 2, 1), r"test is .* hold one; take longer"),
    (lambda: checks.order_scores(np.zeros((3, 5), int), np.zeros((3, 5), int), 2, 4), r"order is 4 but must .* at most 3"),
    (lambda: checks.kaplan_meier(np.array([1, -1]), np.array([True, False])), r"steps is \[1, -1\] but must be counts"),
    (lambda: checks.landmark(np.zeros((2, 3)), np.ones(2), np.ones(2, bool), 4, 1), r"at is 4 but must .* at most 3"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")
