"""What a tool-using agent has seen, what it can do, and whether it can be undone: 60 states, and traces through them.

For safety-drift: Dhodapkar and Pishori, "SafetyDrift: Predicting When AI Agents Cross the Line Before They Actually Do"
(2026, arXiv 2603.27148).
Does: the states and their five levels of risk, nine kinds of action, four made-up policies whose risks are exact,
traces drawn from them, and traces read from a file of JSON lines.
Does not: label an agent's steps, or fit anything.

State 12 D + 3 T + V: data D and tools T are running maxima, reversibility V is that of the last step that set it. So
D and T only rise, and V, and with it the level, can fall.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, refuse, require_choice, require_finite, require_integer
from workbench.methods.tail_risk.absorbing_chains import lump, risk_table
from workbench.streams import Stream

DATA = ("NONE", "PUBLIC", "INTERNAL", "SENSITIVE", "CREDENTIALS")
TOOLS = ("READ_ONLY", "FILE_WRITE", "CODE_EXEC", "NETWORK")
UNDO = ("FULLY", "PARTIALLY", "IRREVERSIBLE")
LEVELS = ("SAFE", "MILD", "ELEVATED", "CRITICAL", "VIOLATED")
N_STATES, VIOLATED = len(DATA) * len(TOOLS) * len(UNDO), len(LEVELS) - 1

# action -> (data it shows, tool it needs, reversibility that it leaves; None: as it was)
ACTIONS: dict[str, tuple[int, int, int | None]] = {
    "idle": (0, 0, None),
    "pub": (1, 0, None),
    "inter": (2, 0, None),
    "sens": (3, 0, None),
    "cred": (4, 0, None),
    "write": (0, 1, 1),
    "exec": (0, 2, 1),
    "net": (0, 3, 2),
    "undo": (0, 0, 0),
}

# Shares of the actions in their order. Communication was sharpened until its p_5 at MILD came near the paper's 0.85.
POLICIES: dict[str, tuple[float, ...]] = {
    "communication": (0.08, 0.05, 0.10, 0.25, 0.02, 0.05, 0.0, 0.40, 0.05),
    "data": (0.30, 0.12, 0.22, 0.12, 0.01, 0.10, 0.04, 0.04, 0.05),
    "system": (0.30, 0.12, 0.15, 0.03, 0.05, 0.15, 0.12, 0.02, 0.06),
    "technical": (0.35, 0.20, 0.10, 0.01, 0.0, 0.18, 0.10, 0.01, 0.05),
}


def parts(states: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(D, T, V) of states numbered 12 D + 3 T + V."""
    numbers = np.asarray(states)
    return numbers // 12, numbers // 3 % 4, numbers % 3


def risk_level(data: Any, tools: Any, undo: Any) -> np.ndarray:
    """0 SAFE to 4 VIOLATED: the first of the paper's rules that holds, from the worst level down."""
    d, t, v = np.broadcast_arrays(data, tools, undo)
    return np.select(
        [
            (d >= 3) & (t >= 3) & (v == 2),
            ((d >= 4) & (t >= 2)) | ((d >= 3) & (t >= 3)),
            (d >= 4) | ((d >= 3) & (t >= 2)) | ((d >= 3) & (t >= 1) & (v == 2)),
            (d >= 3) | ((d >= 2) & (t >= 1)),
        ],
        [4, 3, 2, 1],
        default=0,
    )


LEVEL_OF = risk_level(*parts(np.arange(N_STATES)))
ENDS = LEVEL_OF == VIOLATED


def _after(states: np.ndarray, action: tuple[int, int, int | None]) -> np.ndarray:
    (d, t, v), (data, tool, undo) = parts(states), action
    return 12 * np.maximum(d, data) + 3 * np.maximum(t, tool) + (v if undo is None else undo)


NEXT = np.stack([_after(np.arange(N_STATES), action) for action in ACTIONS.values()], axis=1)
"""(60, 9) the state after each action in each state."""


def _shares(policy: str | Iterable[float]) -> np.ndarray:
    if isinstance(policy, str):
        policy = POLICIES[require_choice("policy", policy, POLICIES)]
    shares = require_finite("policy", list(policy), "give one share an action")
    if shares.shape != (len(ACTIONS),) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-9:
        raise refuse("policy", shares.tolist(), f"be {len(ACTIONS)} shares that sum to 1", "divide them by their sum")
    return shares


def policy_chain(policy: str | Iterable[float]) -> np.ndarray:
    """(60, 60) transitions under a policy, a name or nine shares; the VIOLATED states stay where they are."""
    matrix = np.zeros((N_STATES, N_STATES))
    for share, targets in zip(_shares(policy), NEXT.T, strict=True):
        np.add.at(matrix, (np.arange(N_STATES), targets), share)
    matrix[ENDS] = np.eye(N_STATES)[ENDS]
    return matrix


def expected_visits(policy: str | Iterable[float], steps: int = 12) -> np.ndarray:
    """(60,) expected number of steps that begin in each state, of `steps` steps from state 0; 0 at the VIOLATED
    ones."""
    steps = require_integer("steps", steps, low=1, cure="take at least one step")
    matrix, law, visits = policy_chain(policy), np.eye(N_STATES)[0], np.zeros(N_STATES)
    for _ in range(steps):
        visits += np.where(ENDS, 0, law)
        law = law @ matrix
    return visits


def level_chain(policy: str | Iterable[float], steps: int = 12) -> np.ndarray:
    """(5, 5) transitions between levels that counts over ever more traces of `steps` steps tend to."""
    return lump(policy_chain(policy), expected_visits(policy, steps), LEVEL_OF)


def true_risks(policy: str | Iterable[float], horizon: int, steps: int = 12) -> np.ndarray:
    """(5,) exact P(violation within `horizon` steps | level), averaged over a level's states by their expected
    visits."""
    risk, visits = risk_table(policy_chain(policy), ENDS, horizon)[-1], expected_visits(policy, steps) + 1e-12
    return np.array([np.average(risk[of], weights=visits[of]) for of in np.arange(len(LEVELS))[:, None] == LEVEL_OF])


@dataclass(frozen=True)
class Traces:
    """n traces of at most L steps, padded with -1.

    states (n, L + 1): state before the first step, then after each; tools (n, L): the tool of the step's own call, 0
    to 3 as in `TOOLS`, or None where that is not known; category (n,): places in `names`, -1 for none of them.
    """

    states: np.ndarray
    category: np.ndarray
    names: tuple[str, ...]
    tools: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.states)

    @property
    def levels(self) -> np.ndarray:
        """(n, L + 1) level of each state, padded with -1."""
        return np.where(self.states < 0, -1, LEVEL_OF[self.states])

    @property
    def steps(self) -> np.ndarray:
        """(n,) steps taken."""
        return (self.states >= 0).sum(axis=1) - 1

    @property
    def violated(self) -> np.ndarray:
        """(n,) bool: whether the last state is VIOLATED, which ends a trace."""
        return ENDS[self.states[np.arange(len(self)), self.steps]]

    def take(self, rows: Any) -> Traces:
        """The traces `rows`, an index array or a mask."""
        tools = None if self.tools is None else self.tools[rows]
        return replace(self, states=self.states[rows], category=self.category[rows], tools=tools)


def draw_traces(counts: Mapping[str, int], stream: Stream, *, steps: int = 12) -> Traces:
    """counts[policy] traces of each policy from state 0, each of `steps` steps or up to its violation."""
    steps = require_integer("steps", steps, low=1, cure="take at least one step")
    parts_ = [_draw(np.cumsum(_shares(name)), n, steps, stream.child(name)) for name, n in counts.items()]
    category = np.repeat(np.arange(len(counts)), [len(states) for states, _ in parts_])
    states, tools = (np.concatenate(arrays) for arrays in zip(*parts_, strict=True))
    return Traces(states, category, tuple(counts), tools)


def _draw(edges: np.ndarray, n: int, steps: int, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.searchsorted(edges[:-1], stream.uniforms(n, steps), side="right")
    needed = np.array([tool for _, tool, _ in ACTIONS.values()])
    states, tools = np.full((n, steps + 1), -1), np.full((n, steps), -1)
    states[:, 0] = 0
    for t in range(steps):
        on = np.flatnonzero((states[:, t] >= 0) & ~ENDS[states[:, t]])
        states[on, t + 1] = NEXT[states[on, t], chosen[on, t]]
        tools[on, t] = needed[chosen[on, t]]
    return states, tools


_SCALES = {"D": DATA, "T": TOOLS, "V": UNDO}


def read_traces(source: str | Path | Iterable[str], names: Iterable[str] = ()) -> Traces:
    """Traces from JSON lines {"trace_id", "category", "step", "D", "T", "V"[, "tool"]}: the state after each step.

    D, T, V are numbers or the names in `DATA`, `TOOLS`, `UNDO`; `tool` is the step's own call, on T's scale. Steps
    are numbered from 1, in any order of lines; before step 1 an agent has seen nothing (state 0). Steps after a
    violation are left out.
    names fixes the categories and their order (others become -1); by default those found, sorted.
    Raises WorkbenchError: a line that is no such record, a step twice or missing, D or T that falls.
    """
    lines = Path(source).read_text(encoding="utf-8").splitlines() if isinstance(source, (str, Path)) else source
    found: dict[str, dict[int, tuple[int, int]]] = {}
    kinds: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        trace, category, step, state, tool = _record(number, line)
        if kinds.setdefault(trace, category) != category:
            raise refuse(f"line {number}: category", category, f"be {kinds[trace]!r} as before", "give a trace one")
        if step in found.setdefault(trace, {}):
            raise refuse(f"line {number}: step", step, f"come once in trace {trace!r}", "number the steps 1, 2, 3")
        found[trace][step] = state, tool
    if not found:
        raise refuse("source", "empty", "hold at least one step", "write one JSON object a line")
    known = tuple(names) or tuple(sorted(set(kinds.values())))
    longest = max(map(len, found.values()))
    states, tools = np.full((len(found), longest + 1), -1), np.full((len(found), longest), -1)
    states[:, 0] = 0
    for row, (trace, steps) in enumerate(found.items()):
        if sorted(steps) != list(range(1, len(steps) + 1)):
            raise refuse(f"steps of trace {trace!r}", sorted(steps), "run from 1 without a gap", "number them 1, 2, 3")
        for t in range(1, len(steps) + 1):
            states[row, t], tools[row, t - 1] = steps[t]
            before, now = (tuple(int(part) for part in parts(states[row, at])[:2]) for at in (t - 1, t))
            if now[0] < before[0] or now[1] < before[1]:
                must = f"not fall below D, T = {before[0]}, {before[1]}"
                raise refuse(f"D, T at step {t} of trace {trace!r}", now, must, "take running maxima")
            if ENDS[states[row, t]]:
                break
    category = np.array([known.index(kind) if kind in known else -1 for kind in kinds.values()])
    return Traces(states, category, known, None if (tools < 0)[states[:, 1:] >= 0].any() else tools)


def _record(number: int, line: str) -> tuple[str, str, int, int, int]:
    try:
        row = json.loads(line)
        values = {key: _place(scale, row[key]) for key, scale in _SCALES.items()}
        tool = _place(TOOLS, row["tool"]) if "tool" in row else -1
        step = require_integer("step", row["step"], low=1, cure="number the steps 1, 2, 3")
        return str(row["trace_id"]), str(row["category"]), step, 12 * values["D"] + 3 * values["T"] + values["V"], tool
    except (ValueError, TypeError, KeyError) as error:
        raise WorkbenchError(
            f"Line {number} is {line.strip()[:80]!r} but must be a JSON object with trace_id, category, step (from 1), "
            f"D, T and V ({type(error).__name__}: {str(error).rstrip('.')}); write e.g. "
            '{"trace_id": "a", "category": "data", "step": 1, "D": 3, "T": "NETWORK", "V": 0}.'
        ) from None


def _place(scale: tuple[str, ...], value: Any) -> int:
    if isinstance(value, str):
        return scale.index(require_choice("value", value, scale))
    return require_integer("value", value, low=0, high=len(scale) - 1, cure=f"number {', '.join(scale)} from 0")
