"""The lattice: the paper's rules, exact risks of the four policies, traces drawn and read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import tool_lattice as tl
from workbench.methods.tail_risk.absorbing_chains import counts_by_group, fit_chain, risk_table

STATES = np.arange(tl.N_STATES)


TWELVE = {"communication": 0.967, "data": 0.262, "system": 0.099, "technical": 0.009}


@pytest.mark.parametrize("policy", TWELVE)
def test_the_policies_risks_are_the_derived_ones(policy):
    law = np.linalg.matrix_power(tl.policy_chain(policy), 12)[0]
    assert law[tl.ENDS].sum() == pytest.approx(TWELVE[policy], abs=5e-4)
    assert tl.expected_visits(policy).sum() < 12 and tl.expected_visits(policy, 1).tolist() == [1.0] + [0.0] * 59


def test_lumping_to_five_levels_moves_the_risk():
    truth = tl.true_risks("communication", 5)
    lumped = risk_table(tl.level_chain("communication"), np.arange(5) == 4, 5)[5]
    assert np.allclose(truth, [0.718, 0.838, 0.922, 0.922, 1], atol=1e-3)
    assert np.allclose(lumped[:2] - truth[:2], [-0.06, 0.02], atol=5e-3)
    assert np.allclose(tl.true_risks("technical", 5)[:4], [0.002, 0.006, 0.049, 0.049], atol=5e-4)


def test_many_traces_give_the_level_chain():
    traces = tl.draw_traces({"communication": 40_000}, Stream.of(3, "many"))
    counts = counts_by_group(traces.levels, 5, np.zeros(len(traces), dtype=int))[0]
    assert np.allclose(fit_chain(counts, np.arange(5) == 4), tl.level_chain("communication"), atol=0.03)


@pytest.mark.parametrize("data, tools, undo, level", [
    ("NONE", "READ_ONLY", "FULLY", "SAFE"), ("INTERNAL", "READ_ONLY", "IRREVERSIBLE", "SAFE"),
    ("PUBLIC", "NETWORK", "IRREVERSIBLE", "SAFE"), ("INTERNAL", "FILE_WRITE", "FULLY", "MILD"),
    ("INTERNAL", "NETWORK", "IRREVERSIBLE", "MILD"), ("SENSITIVE", "READ_ONLY", "FULLY", "MILD"),
    ("SENSITIVE", "FILE_WRITE", "PARTIALLY", "MILD"), ("SENSITIVE", "FILE_WRITE", "IRREVERSIBLE", "ELEVATED"),
    ("SENSITIVE", "CODE_EXEC", "FULLY", "ELEVATED"), ("CREDENTIALS", "READ_ONLY", "FULLY", "ELEVATED"),
    ("CREDENTIALS", "CODE_EXEC", "FULLY", "CRITICAL"), ("SENSITIVE", "NETWORK", "PARTIALLY", "CRITICAL"),
    ("SENSITIVE", "NETWORK", "IRREVERSIBLE", "VIOLATED"), ("CREDENTIALS", "NETWORK", "IRREVERSIBLE", "VIOLATED"),
])  # fmt: skip
def test_levels_are_those_of_the_rules(data, tools, undo, level):
    place = tl.DATA.index(data), tl.TOOLS.index(tools), tl.UNDO.index(undo)
    assert tl.LEVELS[int(tl.risk_level(*place))] == level
    assert tuple(int(part) for part in tl.parts(12 * place[0] + 3 * place[1] + place[2])) == place


def test_levels_can_fall_but_data_and_tools_cannot():
    d, t, _ = tl.parts(STATES)
    after_d, after_t, _ = tl.parts(tl.NEXT)
    assert (after_d >= d[:, None]).all() and (after_t >= t[:, None]).all()
    fall = tl.LEVEL_OF[tl.NEXT] < tl.LEVEL_OF[:, None]
    assert fall[~tl.ENDS].any() and set(np.flatnonzero(fall[~tl.ENDS].any(axis=0))) <= {5, 6, 8}, (
        "write, exec and undo set V"
    )


def test_traces_follow_the_chain_and_end_at_the_violation():
    traces = tl.draw_traces({"communication": 3000, "data": 3000}, Stream.of(0, "draw"))
    for number, policy in enumerate(("communication", "data")):
        mine, truth = traces.take(traces.category == number), TWELVE[policy]
        assert abs(mine.violated.mean() - truth) < 5.33 * np.sqrt(truth * (1 - truth) / 3000)
    assert ((traces.levels == 4).sum(axis=1) == traces.violated).all()
    assert (traces.steps[~traces.violated] == 12).all() and (traces.steps[traces.violated] >= 2).all()
    assert np.array_equal((traces.tools >= 0).sum(axis=1), traces.steps)
    few = tl.draw_traces({"communication": 5}, Stream.of(0, "draw"))
    assert np.array_equal(few.states, traces.states[:5]), "a trace does not depend on how many are drawn"


def record(trace, step, d, t, v, **more):
    return json.dumps({"trace_id": trace, "category": "data", "step": step, "D": d, "T": t, "V": v} | more)


def test_traces_are_read_as_they_were_drawn(tmp_path):
    drawn = tl.draw_traces({"data": 40, "communication": 40}, Stream.of(1, "draw"))
    lines = []
    for i in range(80):
        for step in range(1, drawn.steps[i] + 1):
            d, t, v = (int(part) for part in tl.parts(drawn.states[i, step]))
            row = {
                "trace_id": f"t{i}",
                "category": drawn.names[drawn.category[i]],
                "step": step,
                "D": d,
                "T": tl.TOOLS[t],
                "V": v,
            }
            lines.append(json.dumps(row | {"tool": int(drawn.tools[i, step - 1])}))
    (tmp_path / "traces.jsonl").write_text("\n".join(lines) + "\n\n")
    read = tl.read_traces(tmp_path / "traces.jsonl", names=("data", "communication"))
    assert np.array_equal(read.states, drawn.states) and np.array_equal(read.tools, drawn.tools)
    assert np.array_equal(read.category, drawn.category)
    assert (tl.read_traces(lines, names=["data"]).category[40:] == -1).all(), "an unknown category is told apart"


def test_a_read_trace_ends_at_its_violation_and_may_lack_tools():
    lines = [record("a", 2, 3, 3, 2), record("a", 1, 3, 0, 0), record("a", 3, 3, 3, 0)]
    traces = tl.read_traces(lines)
    assert traces.steps.tolist() == [2] and traces.violated.all() and traces.tools is None


@pytest.mark.parametrize("attempt, said", [
    (lambda: tl.policy_chain("comunication"), r"policy is 'comunication' but must be one of .*; did you mean 'communication'"),
    (lambda: tl.policy_chain([0.5] * 9), r"policy is .* 9 shares that sum to 1; divide"),
    (lambda: tl.draw_traces({"data": 1}, Stream.of(0, "x"), steps=0), r"steps is 0 but must .* at least 1; take"),
    (lambda: tl.read_traces([]), r"source is 'empty' but must hold at least one step; write"),
    (lambda: tl.read_traces(['{"trace_id": "a"}']), r"Line 1 is .* JSON object with trace_id.*KeyError.*; write e.g. "),
    (lambda: tl.read_traces([record("a", 1, "SECRET", 0, 0)]), r"Line 1 is .*'SECRET' but must be one of NONE, PUBLIC"),
    (lambda: tl.read_traces([record("a", 1, 5, 0, 0)]), r"Line 1 .*value is 5 but must be .* at most 4"),
    (lambda: tl.read_traces([record("a", 1, 0, 0, 0)] * 2), r"line 2: step is 1 but must come once in trace 'a'; number"),
    (lambda: tl.read_traces([record("a", 1, 0, 0, 0), record("a", 3, 0, 0, 0)]), r"steps of trace 'a' is \[1, 3\] .* gap; number"),
    (lambda: tl.read_traces([record("a", 1, 3, 1, 0), record("a", 2, 2, 1, 0)]), r"step 2 of trace 'a' is .* not fall below"),
    (lambda: tl.read_traces([record("a", 1, 0, 2, 0), record("a", 2, 3, 1, 0)]), r"step 2 of trace 'a' is .* not fall below"),
    (lambda: tl.read_traces([record("a", 1, 0, 0, 0), record("a", 2, 0, 0, 0, category="b")]), r"category is 'b' but must be 'data'"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")
