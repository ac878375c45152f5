"""Event logs with known risks: the language of `embedded/timeline` and `grammar/timeline`.

A log of a machine begins with `start` and goes on, one event at a time, until `<eos>` or `stop` ends it. Two outcomes
may strike, again and again: `fault` is spontaneous, with a small hazard at every step that rises with wear; `crash` is
announced, since it comes after `smoke` alone. Wear is the number of high and peak loads since the last service, at most
7: it is nowhere to be read but in the whole history.
Does: states the law as an automaton, draws histories of any length, and gives each outcome's exact risk.
For estimators that read hazards off next-token laws, after Solo et al., SCOPE and REACH (arXiv 2602.03730).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from workbench.errors import refuse, require_choice, require_integer
from workbench.models.base import check_tokens
from workbench.models.grammar import GrammarModel
from workbench.streams import Stream

EVENTS = ("<eos>", "stop", "fault", "crash", "smoke", "service", "idle", "low", "mid", "high", "peak", "start")
END_TOKENS = (0, 1)
OUTCOMES = {"fault": 2, "crash": 3}
_SMOKE, _SERVICE, _IDLE, _HIGH, _PEAK, _START = 4, 5, 6, 9, 10, 11
_LAST = range(2, len(EVENTS))
_MOST_WEAR = 7


def hazard(wear: int, last: int) -> dict[str, float]:
    """P(fault) and P(crash) at the next step, with so much wear after the event `last` (a token id)."""
    return {"fault": 1e-4 * 2.0**wear, "crash": 0.4 if last == _SMOKE else 0.0}


@lru_cache(maxsize=1)
def timeline_grammar() -> GrammarModel:
    """`grammar/timeline`: one state for each wear and last event."""
    states = [(wear, last) for wear in range(_MOST_WEAR + 1) for last in _LAST]
    number = {state: i for i, state in enumerate(states)}
    probs, transition = np.zeros((len(states), len(EVENTS))), np.zeros((len(states), len(EVENTS)), dtype=np.int64)
    for (wear, last), i in number.items():
        probs[i] = _law(wear, last)
        for token in range(len(EVENTS)):
            worn = 0 if token in (_SERVICE, _START) else min(wear + (token in (_HIGH, _PEAK)), _MOST_WEAR)
            transition[i, token] = number[worn, token] if token in _LAST else i
    with np.errstate(divide="ignore"):
        made = GrammarModel(
            np.log(probs), transition, start_state=number[0, _START], eos_id=0, tokens=EVENTS, name="grammar/timeline"
        )
    made.eos_ids = END_TOKENS
    return made


def timeline_histories(n: int, stream: Stream, *, length: int = 16) -> list[list[int]]:
    """n beginnings of logs, each of `length` tokens with `start`, none of them ended; history j depends on row j of
    `stream` alone. Drawn from the grammar, given that the log goes on and that no outcome has struck so far."""
    n = require_integer("n", n, low=1, cure="ask for at least one history")
    length = require_integer("length", length, low=1, cure="a history holds at least its start")
    grammar = timeline_grammar()
    banned = [*END_TOKENS, *OUTCOMES.values()]
    probs = np.exp(grammar.table)
    probs[:, banned] = 0.0
    cdf = probs.cumsum(axis=1)
    uniforms = stream.uniforms(n, length)
    histories = np.full((n, length), _START)
    states = np.full(n, grammar.start_state)
    for t in range(1, length):
        histories[:, t] = (cdf[states] <= uniforms[:, t, None] * cdf[states, -1:]).sum(axis=1)
        states = grammar.transition[states, histories[:, t]]
    return histories.tolist()


def outcome_risk(history: Sequence[int], outcome: str, horizon: int) -> float:
    """P(the outcome strikes within the next `horizon` tokens, before the log ends | history), exact.

    Backward dynamic programming over (wear, last event, tokens left). Other outcomes do not end a log.
    """
    require_choice("outcome", outcome, OUTCOMES)
    horizon = require_integer("horizon", horizon, low=0, cure="ask for at least 0 tokens")
    grammar, given = timeline_grammar(), np.asarray(history, dtype=np.int64).reshape(-1)
    check_tokens(grammar, "history", given)
    if len(given) == 0 or given[0] != _START or np.isin(given, END_TOKENS).any():
        cure = "make histories with timeline_histories"
        raise refuse("history", given.tolist(), f"begin with {_START} (start) and not have ended", cure)
    return grammar.event_probability(given.tolist(), OUTCOMES[outcome], horizon)


def _law(wear: int, last: int) -> np.ndarray:
    """P(next event | wear, last event), (12,)."""
    probs = np.zeros(len(EVENTS))
    dangers = hazard(wear, last)
    probs[OUTCOMES["fault"]], probs[OUTCOMES["crash"]] = dangers["fault"], dangers["crash"]
    probs[list(END_TOKENS)] = 0.005, 0.01 if last == _IDLE else 0.002
    if last == _SMOKE or last in OUTCOMES.values():
        probs[_SERVICE] = 0.35 if last == _SMOKE else 0.8
    else:
        probs[_SERVICE] = 0.012 * (1 + wear)
        probs[_SMOKE] = 0.003 * (1 + wear)
    # Loads wander from where they were, and a worn machine is driven harder.
    loads = np.arange(_IDLE, _PEAK + 1)
    centre = last if last in loads else _IDLE + 1
    pull = np.exp(-0.9 * np.abs(loads - centre) + 0.22 * (wear - 2) * (loads - loads.mean()))
    probs[loads] = (1 - probs.sum()) * pull / pull.sum()
    return probs
