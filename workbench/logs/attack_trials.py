"""Trials of attacks from logs, for compute-aware risk: the attempts at a prompt, in order, up to the first success."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, require_integer
from workbench.logs.condition import Condition, MissingScore
from workbench.logs.counts import DEFAULT_SUCCESS, NOT_NAMED
from workbench.logs.reading import Logs, Reading, find_logs
from workbench.methods.tail_risk.risk_under_pressure_trials import Trials, read_trials


def read_attack_trials(
    logs: Logs,
    success: str | Callable[[Mapping[str, Any]], bool] = DEFAULT_SUCCESS,
    *,
    steps: int | None = None,
) -> tuple[Trials, tuple[str, ...]]:
    """(trials, notes) of logs of one model; attempts at the same prompt are the steps of its trial.

    logs     as in `read_attempts`, with the tokens of each attempt: Inspect AI logs them, a table has them as
             prompt_tokens and response_tokens. Or one file of recorded trials, as `read_trials` takes it.
    success  as in `read_attempts`
    steps    how many an attack was allowed; by default the fewest that a prompt without success got

    Steps after the first success are dropped; a prompt without success and with fewer steps is left out.
    Raises WorkbenchError where tokens are missing, and as `read_attempts` does.
    """
    paths = find_logs(logs)
    if len(paths) == 1 and paths[0].suffix == ".jsonl" and '"steps"' in _first_line(paths[0]):
        longest = max(len(json.loads(line)["steps"]) for line in paths[0].open(encoding="utf-8") if line.strip())
        return read_trials(paths[0], budget=steps or longest), ()
    condition = Condition(success) if isinstance(success, str) else success
    reading = Reading(logs)
    tried: dict[str, list[tuple[float, float]]] = {}
    broken: set[str] = set()
    unnamed: MissingScore | None = None
    for record in reading:
        if record.scores is None or record.tokens is None:
            what = "the order of attempts" if record.scores is None else "prompt_tokens and response_tokens"
            raise WorkbenchError(
                f"Compute-aware risk prices every attempt by its tokens, but these logs lack {what} (first at "
                f"{record.id}); log with Inspect AI, or write a table of id, score, prompt_tokens, response_tokens."
            )
        if record.id in broken:
            continue
        try:
            hit = condition(record.scores)
        except MissingScore as error:
            unnamed = unnamed or error
            reading.leave_out(NOT_NAMED)
            continue
        tried.setdefault(record.id, []).append(record.tokens)
        if hit:
            broken.add(record.id)
    reading.one_model()
    if not tried:
        raise unnamed or reading.nothing()
    unbroken = [len(row) for name, row in tried.items() if name not in broken]
    allowed = steps or min(unbroken, default=max(map(len, tried.values())))
    require_integer("steps", allowed, low=1, cure="pass how many steps an attack was allowed")
    kept = [name for name, row in tried.items() if name in broken or len(row) >= allowed]
    notes = reading.notes
    if len(kept) < len(tried):
        notes.append(f"{len(tried) - len(kept):,} prompts are left out: no success, and fewer than {allowed} steps.")
    if not kept:
        raise WorkbenchError(f"No prompt got {allowed} steps or a success; pass a smaller --steps.")
    ran = np.array([min(len(tried[name]), allowed) for name in kept])
    won = np.array([name in broken and len(tried[name]) <= allowed for name in kept])
    tokens = np.zeros((2, len(kept), allowed))
    for row, name in enumerate(kept):
        tokens[:, row, : ran[row]] = np.array(tried[name][:allowed]).T
    return Trials(tuple(kept), ("all",) * len(kept), ran, won, *tokens), tuple(notes)


def _first_line(path: Any) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline()
