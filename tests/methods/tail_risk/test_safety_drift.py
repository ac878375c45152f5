"""The monitor: its table is the chain's risk, replay is strict, categories confound, unknown ones are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import safety_drift as sd
from workbench.methods.tail_risk.absorbing_chains import counts_by_group
from workbench.methods.tail_risk.market_hazards import auc
from workbench.methods.tail_risk.tool_lattice import ENDS, Traces, draw_traces, policy_chain

MANY = draw_traces({"communication": 20_000, "technical": 20_000}, Stream.of(0, "many"))
# three states at SAFE, MILD (SENSITIVE), VIOLATED; a trace that violates at step 2 and one that never does
HAND = Traces(np.array([[0, 36, 47], [0, 0, 36]]), np.array([0, 0]), ("data",), np.array([[0, 3], [0, 0]]))


@pytest.mark.parametrize("view", ["state", "level", "pair"])
def test_the_table_is_the_risk_of_the_chain(view):
    monitor = sd.fit_monitor(MANY, view=view)
    if view == "state":
        exact = np.linalg.matrix_power(policy_chain("communication"), 5)[:, ENDS].sum(axis=1)
        often = counts_by_group(MANY.states, 60, MANY.category)[0].sum(axis=1) > 1000
        assert often.sum() >= 7 and np.allclose(monitor.risk[0][often], exact[often], atol=0.03)
    else:
        risks = monitor.risk[:2, :4] if view == "level" else monitor.risk[:2, [0, 6, 12, 18]]
        assert np.allclose(risks[0, :2], [0.66, 0.858], atol=0.02 if view == "level" else 0.09)
        assert risks[1, :2].max() < 0.02


def test_the_aggregate_row_serves_unknown_categories_and_says_so():
    monitor = sd.fit_monitor(MANY)
    strange = replace(HAND, names=("strange",))
    with pytest.warns(UserWarning, match=r"2 of 2 traces are of a category .* not fitted on; the aggregate chain"):
        scores = monitor.scores(strange)
    assert np.array_equal(scores, sd.fit_monitor(MANY, by_category=False).scores(strange))
    assert not np.array_equal(scores, monitor.scores(replace(HAND, names=("technical",))))


def test_names_decide_and_not_numbers():
    swapped = replace(MANY, names=MANY.names[::-1], category=1 - MANY.category)
    assert np.array_equal(sd.fit_monitor(MANY).scores(swapped), sd.fit_monitor(MANY).scores(MANY))
    assert np.array_equal(sd.prior_scores(MANY, swapped), sd.prior_scores(MANY, MANY))


def test_detection_is_strictly_before_the_violation():
    scores = np.array([[0.4, 0.9], [0.1, 0.4]])
    found = sd.replay(scores, HAND, 0.5)
    assert not found.detected.any() and not found.false_alarm.any(), "a flag at the violating step comes too late"
    found = sd.replay(scores, HAND, 0.4)
    assert found.detected.tolist() == [True, False] and found.false_alarm.tolist() == [False, True]
    assert found.warning.tolist() == [1, 0]
    assert sd.trace_scores(scores, HAND).tolist() == [0.4, 0.4]
    assert sd.keyword_scores(HAND).tolist() == [[0, 1], [0, 0]]
    assert not sd.replay(sd.keyword_scores(HAND), HAND, 0.5).detected.any()


@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.7, 0.9])
def test_the_roc_curve_is_replay_at_every_threshold(threshold):
    traces = draw_traces({"communication": 300, "data": 300}, Stream.of(1, "roc"))
    scores = sd.fit_monitor(traces).scores(traces)
    found = sd.replay(scores, traces, threshold)
    best = sd.trace_scores(scores, traces)
    assert np.array_equal((best >= threshold) & traces.violated, found.detected)
    assert np.array_equal((best >= threshold) & ~traces.violated, found.false_alarm)
    fpr, detection = sd.roc(best, traces.violated)
    assert (fpr[0], detection[0], fpr[-1], detection[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(detection, fpr) == pytest.approx(auc(best, traces.violated))
    rates = found.false_alarm.sum() / (~traces.violated).sum(), found.detected.sum() / traces.violated.sum()
    assert sd.detection_at(rates[0], best, traces.violated) >= rates[1] - 1e-12


def test_detection_between_two_thresholds_is_a_coin():
    scores, violated = np.array([3.0, 2, 1, 3, 2, 2, 1, 1]), np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    assert sd.detection_at(0.2, scores, violated) == pytest.approx(1 / 3)
    assert sd.detection_at(0.4, scores, violated) == pytest.approx(0.5)
    assert sd.detection_at(0.6, scores, violated) == pytest.approx(2 / 3)


def test_where_the_category_decides_the_monitor_adds_nothing_and_the_aggregate_chain_misleads():
    data = draw_traces({"communication": 400, "technical": 400}, Stream.of(3, "confounded"))
    train, test = sd.split(data, Stream.of(3, "s"))
    area = {name: auc(sd.trace_scores(one, test), test.violated) for name, one in sd.side_by_side(train, test).items()}
    assert area["category alone"] > 0.95 and abs(area["level"] - area["category alone"]) < 0.04
    assert area["aggregate"] < area["level"] - 0.3


def test_the_keyword_rule_flags_code_only_once_sensitive_data_were_seen():
    states = np.array([[0, 7, 43, 43], [0, 9, 9, -1]])
    traces = Traces(states, np.array([0, 0]), ("data",), np.array([[2, 2, 1], [3, 0, -1]]))
    assert sd.keyword_scores(traces).tolist() == [[0, 1, 0], [1, 0, -np.inf]]


def test_predicates_stay_set_and_forget_the_order():
    # network first, undone, then sensitive data: no violation by the levels, one by the six bits
    path = np.array([[0, 11, 9, 45, 45]])
    codes, ends = sd.encode(Traces(path, np.array([0]), ("data",)), "predicates")
    assert codes[0].tolist() == [0, 0b111100, 0b111100, 0b111101, 0b111101]
    assert ends[codes[0]].tolist() == [False, False, False, True, True] and not ENDS[path].any()


def test_a_pair_holds_the_level_before():
    codes, ends = sd.encode(HAND, "pair")
    assert codes.tolist() == [[0, 1, 9], [0, 0, 1]] and ends[9] and not ends[[0, 1]].any()


def test_a_split_keeps_every_stratum_and_loses_nothing():
    traces = draw_traces({"communication": 90, "technical": 89}, Stream.of(2, "split"))
    train, test = sd.split(traces, Stream.of(2, "s"))
    assert len(train) + len(test) == 179
    both = np.concatenate([train.states, test.states])
    assert np.array_equal(both[np.lexsort(both.T)], traces.states[np.lexsort(traces.states.T)])
    for category in (0, 1):
        for violated in (False, True):
            n = [((t.category == category) & (t.violated == violated)).sum() for t in (train, test)]
            assert n[1] == (max(1, int(0.2 * sum(n))) if sum(n) > 1 else 0)


@pytest.mark.parametrize("attempt, said", [
    (lambda: sd.fit_monitor(MANY, view="lattice"), r"view is 'lattice' but must be one of level, pair"),
    (lambda: sd.fit_monitor(MANY, horizon=0), r"horizon is 0 but must .* at least 1; pass a horizon"),
    (lambda: sd.fit_monitor(replace(HAND, names=("data", "system"))), r"traces of category 'system' is 0 but must be at least 1"),
    (lambda: sd.keyword_scores(replace(HAND, tools=None)), r"keyword rule needs the tool .*; add 'tool'"),
    (lambda: sd.roc(np.ones(3), np.ones(3)), r"violated is .* hold both kinds of traces; take more"),
    (lambda: sd.split(HAND, Stream.of(0, "x"), test_share=1.0), r"test_share is 1.0 but must .* less than 1"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")
