"""Log-likelihoods of answer options from logs, for distributional correctness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.logs.reading import Logs, find_logs
from workbench.logs.records import HalfWritten, json_lines
from workbench.methods.tail_risk.distributional_correctness import IDK, Answers, read_answers


def read_options(
    logs: Logs, *, idk: Sequence[str] = IDK, length: str = "characters"
) -> tuple[Answers, tuple[str, ...]]:
    """(answers, notes) of logs that hold the log-likelihood of every option of each question.

    logs         samples_*.jsonl of lm-evaluation-harness's multiple-choice tasks, or JSON lines of
                 {"log_likelihoods": {option: natural logarithm}, "correct": option}
    idk, length  as in `read_answers`

    A question without a wrong option or one that says "I don't know" is left out and counted in `notes`. Raises
    WorkbenchError for logs without log-likelihoods, and where no question is left.
    """
    notes: list[str] = []
    given = read_answers(_items(find_logs(logs), notes), idk=idk, length=length)
    if given.errors:
        first = next(iter(given.errors.values()))
        notes.append(f"{len(given.errors):,} questions are left out, the first because {first[:1].lower()}{first[1:]}")
    return given, tuple(notes)


def _items(paths: Sequence[Path], notes: list[str]) -> Iterator[Mapping[str, Any]]:
    for path in paths:
        try:
            for line in json_lines(path) if path.suffix == ".jsonl" else ({},):
                item = line if "log_likelihoods" in line else _lm_eval(line)
                if item is None:
                    raise WorkbenchError(
                        f"{path.name} holds no log-likelihoods of answer options, which distributional correctness is "
                        "computed from; log a multiple-choice task of lm-evaluation-harness (--log_samples), or write "
                        'JSON lines of {"log_likelihoods": {option: number}, "correct": option}.'
                    )
                yield item
        except HalfWritten:
            notes.append(f"{path.name} breaks off; what stands before that is used.")


def _lm_eval(line: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """An item of a line that lm-evaluation-harness wrote for a multiple-choice task; None if it is none."""
    asked, heard = line.get("arguments"), line.get("filtered_resps")
    if not isinstance(asked, Mapping) or not isinstance(heard, list) or len(asked) != len(heard):
        return None
    options = [str(each.get("arg_1", "")).strip() for each in asked.values() if isinstance(each, Mapping)]
    pairs = [each for each in heard if isinstance(each, list) and len(each) == 2]
    if len(options) != len(heard) or len(pairs) != len(heard):
        return None
    target = str(line.get("target", ""))
    numbered = target.isdecimal() and int(target) < len(options) and target not in options
    correct = options[int(target)] if numbered else target.strip()
    return {"log_likelihoods": {o: float(pair[0]) for o, pair in zip(options, pairs, strict=True)}, "correct": correct}
