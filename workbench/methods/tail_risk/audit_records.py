"""Records of a crossed safety audit: who audited whom, on which scenario, and how severe the judge found it.

Does: read records, and result files of the simpleaudit package (github.com/kelkalot/simpleaudit), into an `Audit`.
Does not: score; `simple_audit` does.

An unknown severity is refused; the released code counts it as 2. A failed run ("ERROR") is kept as -1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import refuse, require_choice

SEVERITIES = ("critical", "high", "medium", "low", "pass")
ERROR = -1
_FIELDS = ("target", "auditor", "judge", "scenario", "category", "run", "severity")


@dataclass(frozen=True)
class Audit:
    """A crossed audit: severity (targets, auditors, judges, scenarios, runs), 0 to 4, or -1 for a run that failed.

    categories  one a scenario
    """

    targets: tuple[str, ...]
    auditors: tuple[str, ...]
    judges: tuple[str, ...]
    scenarios: tuple[str, ...]
    categories: tuple[str, ...]
    severity: np.ndarray

    def __post_init__(self) -> None:
        names = (self.targets, self.auditors, self.judges, self.scenarios)
        shape = tuple(len(group) for group in names)
        if self.severity.ndim != 5 or self.severity.shape[:4] != shape:
            must = f"be {shape} and the number of runs"
            raise refuse("the shape of severity", self.severity.shape, must, "give each name its slice")
        if len(self.categories) != len(self.scenarios):
            raise refuse("len(categories)", len(self.categories), "be that of scenarios", "give each scenario one")
        check_severity(self.severity)

    def of(self, target: str, auditor: str | None = None, judge: str | None = None) -> np.ndarray:
        """(auditors, judges, scenarios, runs) of a target; a named auditor or judge keeps its slice alone."""
        found = self.severity[self.targets.index(require_choice("target", target, self.targets))]
        a = range(len(self.auditors)) if auditor is None else [self.auditors.index(auditor)]
        j = range(len(self.judges)) if judge is None else [self.judges.index(judge)]
        return found[np.ix_(a, j)]

    @property
    def self_judged(self) -> tuple[str, ...]:
        """Targets that are also a judge: a model may prefer its own answers."""
        return tuple(name for name in self.targets if name in self.judges)


def check_severity(severity: Any) -> np.ndarray:
    """`severity` as whole numbers 0 to 4, or -1 for a failed run; or a refusal."""
    given = np.asarray(severity)
    if given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        told = "empty" if given.size == 0 else f"of type {given.dtype}"
        raise refuse("severity", told, "hold whole numbers", "code critical to pass as 0 to 4, a failed run as -1")
    outside = given[(given < ERROR) | (given > 4)]
    if outside.size:
        raise refuse("severity", int(outside[0]), "lie from 0 to 4, or be -1", "code critical to pass as 0 to 4")
    return given


def read_audit(records: Iterable[Mapping[str, Any]]) -> Audit:
    """An `Audit` of records {target, auditor, judge, scenario, category, run, severity}, severity a word or "ERROR".

    Every target must have met every auditor and judge on every scenario as often: compare like with like.
    """
    rows: dict[tuple[str, ...], int] = {}
    category: dict[str, str] = {}
    for number, record in enumerate(records):
        missing = [field for field in _FIELDS if field not in record]
        if missing:
            raise refuse(f"records[{number}]", f"without {missing[0]}", f"have {', '.join(_FIELDS)}", "add the field")
        key = tuple(str(record[field]) for field in ("target", "auditor", "judge", "scenario", "run"))
        if key in rows:
            cure = "name scenarios apart, or give reruns their own run"
            raise refuse(f"records[{number}]", f"a second {' / '.join(key)}", "be there once", cure)
        word = str(record["severity"])
        require_choice(f"records[{number}]['severity']", word, (*SEVERITIES, "ERROR"))
        rows[key] = ERROR if word == "ERROR" else SEVERITIES.index(word)
        kind = category.setdefault(key[3], str(record["category"]))
        if kind != str(record["category"]):
            raise refuse(f"category of {key[3]}", f"{kind} and {record['category']}", "be one", "rename the scenario")
    if not rows:
        raise refuse("records", "empty", "hold at least one run", "pass the records of an audit")
    names = [tuple(dict.fromkeys(key[axis] for key in rows)) for axis in range(5)]
    severity = np.full([len(group) for group in names], ERROR - 1)
    for key, value in rows.items():
        severity[tuple(group.index(part) for group, part in zip(names, key, strict=True))] = value
    if (severity == ERROR - 1).any():
        hole = [group[i] for group, i in zip(names, np.argwhere(severity == ERROR - 1)[0], strict=True)]
        cure = "run it, or leave that name out everywhere: shares of variance and deltas need a crossed design"
        raise refuse("records", f"without {' / '.join(hole)}", "hold every combination", cure)
    targets, auditors, judges, scenarios, _ = names
    return Audit(targets, auditors, judges, scenarios, tuple(category[name] for name in scenarios), severity)


def simpleaudit_records(
    path: Any, *, target: str, auditor: str, judge: str, categories: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Records of one target from a result file of the simpleaudit package: one audit, or "runs" of repeated ones.

    categories: scenario name -> category; "all" where it is left out. With repeated runs of several models in a file,
    those labelled `target` are taken.
    """
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    if "runs" in found:
        found = found["runs"]
        runs = found[require_choice("target", target, found)]
    else:
        runs = [found]
    kinds = categories or {}
    return [
        dict(zip(_FIELDS, (target, auditor, judge, name, kinds.get(name, "all"), run, result["severity"]), strict=True))
        for run, audit in enumerate(runs)
        for result in (audit["results"] if isinstance(audit, dict) else audit)
        for name in [result["scenario_name"]]
    ]
