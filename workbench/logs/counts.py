"""Attempts and successes per prompt, from logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.logs.condition import Condition, MissingScore
from workbench.logs.reading import Logs, Reading

DEFAULT_SUCCESS = "score >= 0.5"
NOT_NAMED = "the score that is asked for is not among theirs"


@dataclass(frozen=True)
class AttemptCounts:
    """What logs say of how often each prompt was tried, and how often with success.

    ids        (n,) names of the prompts, in the order of their first attempt
    attempts   (n,) int64, at least 1
    successes  (n,) int64
    notes      sentences on what was left out: attempts without a score, files that break off
    """

    ids: tuple[str, ...]
    attempts: np.ndarray
    successes: np.ndarray
    notes: tuple[str, ...] = ()


def read_attempts(
    logs: Logs,
    success: str | Callable[[Mapping[str, Any]], bool] = DEFAULT_SUCCESS,
) -> AttemptCounts:
    """Count the attempts in logs of Inspect AI, lm-evaluation-harness or garak, in CSV, Parquet or JSON lines.

    logs     paths or patterns such as 'runs/*.eval'; attempts at the same prompt add up over files
    success  an expression such as "score >= 0.75" (see `Condition`), or a function of {scorer: value}

    Files are read attempt by attempt; what is kept is two numbers a prompt. Attempts without a score are left out and
    counted in `notes`, and so is what is missing at the end of a half-written file. Raises WorkbenchError for a file
    that can't be read, for logs of several models, and where no attempt is left.
    """
    condition = Condition(success) if isinstance(success, str) else success
    reading = Reading(logs)
    counted: dict[str, list[int]] = {}
    unnamed: MissingScore | None = None
    for record in reading:
        if record.scores is None:
            tried, won = record.attempts, record.successes or 0
        else:
            try:
                tried, won = 1, int(condition(record.scores))
            except MissingScore as error:
                unnamed = unnamed or error
                reading.leave_out(NOT_NAMED)
                continue
        if tried:
            entry = counted.setdefault(record.id, [0, 0])
            entry[0] += tried
            entry[1] += won
    reading.one_model()
    if not counted:
        raise unnamed or reading.nothing()
    attempts, successes = np.array(list(counted.values()), dtype=np.int64).T
    return AttemptCounts(tuple(counted), attempts, successes, tuple(reading.notes))
