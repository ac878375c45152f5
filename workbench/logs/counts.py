"""Attempts and successes per prompt, from logs."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, refuse
from workbench.logs.condition import Condition, MissingScore
from workbench.logs.records import HalfWritten, read_records

DEFAULT_SUCCESS = "score >= 0.5"
_NOT_NAMED = "the score that is asked for is not among theirs"


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
    logs: str | Path | Sequence[str | Path],
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
    paths = _paths(logs)
    counted: dict[str, list[int]] = {}
    missing: dict[str, int] = {}
    models: dict[str, str] = {}
    broken = []
    unnamed: MissingScore | None = None
    for path in paths:
        try:
            for record in read_records(path):
                if record.model:
                    models.setdefault(record.model, path.name)
                if record.successes is not None:
                    tried, won = record.attempts, record.successes
                elif record.scores is None:
                    missing[record.why] = missing.get(record.why, 0) + 1
                    continue
                else:
                    try:
                        tried, won = 1, int(condition(record.scores))
                    except MissingScore as error:
                        unnamed = unnamed or error
                        missing[_NOT_NAMED] = missing.get(_NOT_NAMED, 0) + 1
                        continue
                if tried:
                    entry = counted.setdefault(record.id, [0, 0])
                    entry[0] += tried
                    entry[1] += won
        except HalfWritten:
            broken.append(path.name)
    if len(models) > 1:
        listed = ", ".join(f"{model} ({name})" for model, name in models.items())
        raise WorkbenchError(f"The logs are of several models: {listed}; pass the logs of one model at a time.")
    notes = [f"{n:,} attempts are left out: {why}." for why, n in missing.items()]
    notes += [f"{name} breaks off; what stands before that is used." for name in broken]
    if not counted and unnamed is not None:
        raise unnamed
    if not counted:
        why = " ".join(notes) or "The files are empty."
        raise WorkbenchError(f"There is no scored attempt in {', '.join(path.name for path in paths)}. {why}")
    attempts, successes = np.array(list(counted.values()), dtype=np.int64).T
    return AttemptCounts(tuple(counted), attempts, successes, tuple(notes))


def _paths(logs: str | Path | Sequence[str | Path]) -> list[Path]:
    given = [logs] if isinstance(logs, str | Path) else list(logs)
    paths: list[Path] = []
    for item in given:
        found = [Path(item)] if Path(item).exists() else [Path(name) for name in sorted(glob.glob(str(item)))]
        if not found:
            cure = "check the path; a pattern such as 'runs/*.eval' goes in quotes"
            raise refuse("log", str(item), "name a file that exists", cure)
        paths += found
    if not paths:
        raise refuse("logs", given, "name at least one file", "pass e.g. 'runs/*.eval'")
    return list(dict.fromkeys(paths))
