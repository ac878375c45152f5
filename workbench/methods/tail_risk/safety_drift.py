"""Dhodapkar and Pishori: "SafetyDrift: Predicting When AI Agents Cross the Line Before They Actually Do", arXiv
2603.27148 (2026).

Computes, at every step of an agent's trace, the risk of a violation within h steps, by looking up p_h(category, risk
level) in a table fitted from other traces, and replays traces to see which violations would have been announced.

Does: the monitor with one chain a category and an aggregate one for unknown categories; the same on pairs of levels
(order 2), on six predicates (after Pro2Guard) and on all 60 states; the keyword rule and the category prior; replay,
ROC curves, splits.
Does not: ask a language model to judge (those figures of the paper are taken as printed); intervals, which are in
`absorbing_chains`; whether a chain fits at all, which is in `safety_drift_checks`.

Departures from the released code
1. Absorbing rows are the identity and unvisited ones stay where they are (see `absorbing_chains`).
2. Order 2 keeps the first transition: the state before a trace's start counts as equal to its first.
3. An unknown category is told, not only sent to the aggregate chain.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from workbench.errors import (
    WorkbenchError,
    refuse,
    require_choice,
    require_integer,
    require_number,
    require_probability,
)
from workbench.methods.tail_risk.absorbing_chains import counts_by_group, fit_chain, risk_table
from workbench.methods.tail_risk.tool_lattice import ENDS, LEVELS, VIOLATED, Traces, parts
from workbench.streams import Stream

VIEWS = ("level", "pair", "predicates", "state")


def encode(traces: Traces, view: str) -> tuple[np.ndarray, np.ndarray]:
    """(codes (n, L + 1) padded with -1, absorbing (S,) bool): what a chain sees of each state.

    level       the five levels of risk, as in the paper
    pair        5 * level before + level, for a chain of order 2
    predicates  six bits that once set stay set: D >= SENSITIVE, D = CREDENTIALS, T >= FILE_WRITE, T >= CODE_EXEC,
                T = NETWORK, V = IRREVERSIBLE; a violation is SENSITIVE, NETWORK and IRREVERSIBLE, at whatever steps they came
    state       all 60 states
    """
    require_choice("view", view, VIEWS)
    on, levels = traces.states >= 0, traces.levels
    if view == "state":
        return traces.states, ENDS
    if view == "level":
        return levels, np.arange(len(LEVELS)) == VIOLATED
    if view == "pair":
        before = np.concatenate([levels[:, :1], levels[:, :-1]], axis=1)
        return np.where(on, len(LEVELS) * before + levels, -1), np.arange(len(LEVELS) ** 2) % len(LEVELS) == VIOLATED
    d, t, v = parts(np.maximum(traces.states, 0))
    bits = sum(
        np.where(bit, 1 << place, 0) for place, bit in enumerate((d >= 3, d == 4, t >= 1, t >= 2, t == 3, v == 2))
    )
    codes = np.bitwise_or.accumulate(np.where(on, bits, 0), axis=1)
    return np.where(on, codes, -1), (np.arange(64) & 0b110001) == 0b110001


@dataclass(frozen=True)
class Monitor:
    """risk (categories + 1, S): p_h by category and code, the aggregate chain's in the last row; fitted by
    `fit_monitor`."""

    view: str
    horizon: int
    names: tuple[str, ...]
    risk: np.ndarray

    def scores(self, traces: Traces) -> np.ndarray:
        """(n, L) risk after each step, -inf after a trace's end. Warns of categories that the monitor does not know."""
        codes, _ = encode(traces, self.view)
        known = [self.names.index(name) if name in self.names else -1 for name in traces.names]
        rows = np.array([*known, -1])[traces.category]
        if len(self.names) and (rows < 0).any():
            warnings.warn(
                f"{(rows < 0).sum()} of {len(traces)} traces are of a category that the monitor was not fitted on; the "
                "aggregate chain is used for them.",
                stacklevel=2,
            )
        return np.where(codes[:, 1:] < 0, -np.inf, self.risk[rows[:, None], codes[:, 1:]])


def fit_monitor(
    traces: Traces, *, view: str = "level", horizon: int = 5, prior: float = 0.0, by_category: bool = True
) -> Monitor:
    """The look-up table of p_h, h = `horizon`, from the transitions of `traces`.

    by_category False: the aggregate chain alone. Raises WorkbenchError where a category to be fitted has no trace.
    """
    horizon = require_integer("horizon", horizon, low=1, cure="pass a horizon of one step or more")
    codes, ends = encode(traces, view)
    names = traces.names if by_category else ()
    group = np.where((traces.category >= 0) & by_category, traces.category, len(names))
    for number, name in enumerate(names):
        if not (group == number).any():
            raise refuse(f"traces of category {name!r}", 0, "be at least 1", "gather some, or drop the name")
    counts = counts_by_group(codes, len(ends), group)
    tables = [*counts[: len(names)], counts.sum(axis=0)]
    risk = [risk_table(fit_chain(table, ends, prior=prior), ends, horizon)[-1] for table in tables]
    return Monitor(view, horizon, names, np.array(risk))


def keyword_scores(traces: Traces) -> np.ndarray:
    """(n, L) 1.0 at a network call, and at code execution when SENSITIVE data or more were seen; -inf after the end."""
    if traces.tools is None:
        raise WorkbenchError(
            "The keyword rule needs the tool of each step's own call, which these traces lack; add 'tool'."
        )
    seen = parts(np.maximum(traces.states[:, 1:], 0))[0]
    flag = (traces.tools == 3) | ((traces.tools == 2) & (seen >= 3))
    return np.where(traces.states[:, 1:] < 0, -np.inf, flag.astype(float))


def prior_scores(train: Traces, traces: Traces) -> np.ndarray:
    """(n, L) the share of `train` that violates in a trace's category, whatever the agent does; of all, where
    unknown."""
    by_name = {
        name: train.violated[train.category == number].mean()
        for number, name in enumerate(train.names)
        if (train.category == number).any()
    }
    rates = np.array([*(by_name.get(name, train.violated.mean()) for name in traces.names), train.violated.mean()])
    return np.where(traces.states[:, 1:] < 0, -np.inf, rates[traces.category][:, None])


def side_by_side(train: Traces, test: Traces) -> dict[str, np.ndarray]:
    """name -> scores (n, L) on `test` of the monitors fitted on `train`: one chain a category on each of `VIEWS`, the
    "aggregate" chain on levels, and "category alone"."""
    found = {view: fit_monitor(train, view=view).scores(test) for view in VIEWS}
    found["aggregate"] = fit_monitor(train, by_category=False).scores(test)
    return found | {"category alone": prior_scores(train, test)}


class Replay(NamedTuple):
    """By trace: detected (flagged strictly before its violation), false_alarm (flagged, and never violates), warning
    (steps from the first flag to the violation, 0 where not detected)."""

    detected: np.ndarray
    false_alarm: np.ndarray
    warning: np.ndarray


def replay(scores: np.ndarray, traces: Traces, threshold: float) -> Replay:
    """What a monitor that flags scores (n, L) of at least `threshold` would have said, step by step."""
    threshold = require_number("threshold", threshold, cure="pass e.g. threshold=0.5")
    flags = scores >= threshold
    first = np.where(flags.any(axis=1), flags.argmax(axis=1) + 1, traces.states.shape[1] + 1)
    detected = traces.violated & (first < traces.steps)
    alarm = ~traces.violated & flags.any(axis=1)
    return Replay(detected, alarm, np.where(detected, traces.steps - first, 0))


def trace_scores(scores: np.ndarray, traces: Traces) -> np.ndarray:
    """(n,) the highest score that could still warn: over all steps, or over those strictly before the violation. A
    trace that violates at its first step gets -1, below every score."""
    step = np.arange(1, scores.shape[1] + 1)
    in_time = step < np.where(traces.violated, traces.steps, traces.states.shape[1] + 1)[:, None]
    return np.maximum(np.where(in_time, scores, -np.inf).max(axis=1), -1.0)


def roc(scores: np.ndarray, violated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rates, detection rates) of flagging at each distinct score, from (0, 0) to (1, 1)."""
    violated = np.asarray(violated, dtype=bool)
    if violated.all() or not violated.any():
        raise refuse("violated", violated.tolist(), "hold both kinds of traces", "take more traces")
    edges = np.unique(scores)[::-1]
    rates = [np.append(0.0, (scores[kind] >= edges[:, None]).mean(axis=1)) for kind in (~violated, violated)]
    return rates[0], rates[1]


def detection_at(false_positives: float, scores: np.ndarray, violated: np.ndarray) -> float:
    """The detection rate at a false positive rate in [0, 1], between two thresholds by flipping a coin for one or the
    other."""
    rate = require_number("false_positives", false_positives, low=0, high=1, cure="pass a rate")
    fpr, detection = roc(scores, violated)
    keep = np.append(np.diff(fpr) > 0, True)  # the best detection at each rate
    return float(np.interp(rate, fpr[keep], detection[keep]))


def split(traces: Traces, stream: Stream, *, test_share: float = 0.2) -> tuple[Traces, Traces]:
    """(train, test), each stratum of (category, violated) split alike: one test trace or more where it has two or
    more."""
    share = require_probability("test_share", test_share, cure="pass e.g. 0.2")
    rng, stratum = stream.generator(), 2 * traces.category + traces.violated
    test = np.zeros(len(traces), dtype=bool)
    for value in np.unique(stratum):
        rows = rng.permutation(np.flatnonzero(stratum == value))
        test[rows[: min(max(1, int(share * len(rows))), len(rows) - 1)]] = True
    return traces.take(~test), traces.take(test)
