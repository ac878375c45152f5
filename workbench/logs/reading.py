"""Several logs read one after another, with an account of what had to be left out."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench.errors import WorkbenchError, refuse
from workbench.logs.records import HalfWritten, Record, read_records

Logs = str | Path | Sequence[str | Path]


class Reading:
    """The scored attempts of `logs`, paths or patterns such as 'runs/*.eval', in their order.

    What has no score is left out and counted, and so is what is missing at the end of a half-written file; `notes`
    says both when all has been read.
    """

    def __init__(self, logs: Logs) -> None:
        self.paths = find_logs(logs)
        self._models: dict[str, str] = {}
        self._missing: dict[str, int] = {}
        self._broken: list[str] = []

    def __iter__(self) -> Iterator[Record]:
        for path in self.paths:
            try:
                for record in read_records(path):
                    if record.model:
                        self._models.setdefault(record.model, path.name)
                    if record.scores is None and record.successes is None:
                        self.leave_out(record.why)
                    else:
                        yield record
            except HalfWritten:
                self._broken.append(path.name)

    def leave_out(self, why: str) -> None:
        """Count an attempt that is not used."""
        self._missing[why] = self._missing.get(why, 0) + 1

    def one_model(self) -> None:
        """Refuse logs of several models, once all has been read."""
        if len(self._models) > 1:
            listed = ", ".join(f"{model} ({name})" for model, name in self._models.items())
            raise WorkbenchError(f"The logs are of several models: {listed}; pass the logs of one model at a time.")

    @property
    def notes(self) -> list[str]:
        return [
            *(f"{n:,} attempts are left out: {why}." for why, n in self._missing.items()),
            *(f"{name} breaks off; what stands before that is used." for name in self._broken),
        ]

    def nothing(self) -> WorkbenchError:
        """What to say where nothing was left."""
        why = " ".join(self.notes) or "The files are empty."
        return WorkbenchError(f"There is no scored attempt in {', '.join(path.name for path in self.paths)}. {why}")


def find_logs(logs: Logs) -> list[Path]:
    """The files that paths and patterns name, each once."""
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
