"""Severities by model, prompt and dimension from logs, for SHARP: each scorer, or part of one, is a dimension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, refuse
from workbench.logs.condition import GRADES
from workbench.logs.reading import Logs, Reading
from workbench.methods.tail_risk.sharp_scores import Scores, read_scores

_NOT_ALL = "they lack one of the dimensions"


def read_severities(logs: Logs, dimensions: Sequence[str] = ()) -> tuple[Scores, tuple[str, ...]]:
    """(scores, notes) of logs of one model or several: the mean severity of each prompt's attempts.

    logs        as in `read_attempts`; every scorer of an attempt is a dimension of harm in [0, 1], a score of several
                parts as many dimensions, "scorer.part"
    dimensions  which of them; by default all numbers that the first scored attempt has

    A prompt that one of the models lacks is left out for all, and so is an attempt without one of the scores; `notes`
    counts both. Raises WorkbenchError for severities outside [0, 1], and where no prompt is left.
    """
    reading, wanted = Reading(logs), tuple(dimensions)
    found: dict[tuple[str, str], np.ndarray] = {}
    for record in reading:
        if record.scores is None:
            cure = "log each attempt with its scores"
            raise refuse("log", "counts of successes", "hold a severity for each dimension", cure)
        scores = dict(_numbers(record.scores))
        wanted = wanted or tuple(scores)
        if not set(wanted) <= set(scores):
            if not found and dimensions:
                lacking = ", ".join(name for name in wanted if name not in scores)
                cure = f"name some of {', '.join(scores) or 'none'}"
                raise refuse("--dimension", lacking, "be a score of the logs", cure)
            reading.leave_out(_NOT_ALL)
            continue
        row = np.array([*(scores[name] for name in wanted), 1.0])
        beyond = row[:-1][(row[:-1] < 0) | (row[:-1] > 1)]
        if beyond.size:
            what = f"a severity of {record.id}"
            raise refuse(what, float(beyond[0]), "lie in [0, 1]", "divide the scores by the largest possible one")
        key = record.model or "model", record.id
        found[key] = found.get(key, 0.0) + row
    if not found or not wanted:
        raise reading.nothing() if not found else WorkbenchError(
            "No score in these logs is a number, and SHARP needs a severity in [0, 1] for each dimension of harm; "
            "score the answers with graders that give one."
        )  # fmt: skip
    table: dict[str, list[Any]] = {name: [] for name in ("model", "prompt", "dimension", "judge", "score")}
    for (model, prompt), total in found.items():
        for name, value in zip(wanted, total[:-1] / total[-1], strict=True):
            for column, cell in zip(table.values(), (model, prompt, name, "log", value), strict=True):
                column.append(cell)
    scores = read_scores(table, missing="drop")
    notes = reading.notes
    if any(total[-1] > 1 for total in found.values()):
        notes.append("Severities are means over the attempts at a prompt.")
    if scores.dropped:
        notes.append(f"{len(scores.dropped):,} prompts are left out: some model has no score there.")
    return scores, tuple(notes)


def _numbers(scores: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in scores.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{part}", number) for part, number in _numbers(value))
        elif isinstance(value, int | float) or value in GRADES:
            yield name, GRADES[value] if isinstance(value, str) else float(value)
