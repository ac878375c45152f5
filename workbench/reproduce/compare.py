"""What moved between two runs: each claim's value held against the other run's interval.

A claim has moved when the new value lies outside the old interval. With new seeds that happens by chance: for two
independent normal estimates with 95 % intervals of equal width, the second leaves the first's interval with
probability 2 Phi(-1.96 / sqrt 2) = 0.166. So the stronger sign is told apart: intervals that have no point in common
(probability 2 Phi(-1.96 sqrt 2) = 0.0056 if nothing changed).

Does: pair the claims of two recorded runs and say what differs. Does not: run anything, or test all claims jointly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.checkpoint import write_atomically
from workbench.errors import WorkbenchError
from workbench.papers import VERDICTS
from workbench.reproduce.drawing import draw, said
from workbench.reproduce.records import Run
from workbench.reproduce.report import INDEX, page
from workbench.reproduce.scrub import scrub_all, scrubber

SAME = 1e-9  # relative; values nearer than this differ by the order of summation only
KINDS = ("apart", "outside", "inside", "same", "one only")


@dataclass(frozen=True)
class Change:
    """One claim in both runs.

    kind: apart (the intervals share no point) | outside (the new value lies outside the old interval) | inside |
    same (equal to nine digits) | one only (measured in one of the two).
    """

    old: dict[str, Any] | None
    new: dict[str, Any] | None
    kind: str

    @property
    def row(self) -> dict[str, Any]:
        found = self.new or self.old
        assert found is not None
        return found

    @property
    def name(self) -> str:
        return f"{self.row['slug']} {self.row['claim']}" + " (control)" * bool(self.row["controlled"])

    @property
    def verdict_changed(self) -> bool:
        return self.old is not None and self.new is not None and self.old["verdict"] != self.new["verdict"]

    @property
    def bar_changed(self) -> bool:
        return self.old is not None and self.new is not None and self.old["passes"] != self.new["passes"]

    @property
    def moved(self) -> bool:
        return self.kind in ("apart", "outside")


def compare(old: Run, new: Run) -> list[Change]:
    """Every claim of either run at the runs' own seeds, what moved most first."""
    rows = [_rows(run) for run in (old, new)]
    changes = [_change(rows[0].get(key), rows[1].get(key)) for key in dict.fromkeys([*rows[1], *rows[0]])]
    return sorted(changes, key=lambda change: (not change.verdict_changed, KINDS.index(change.kind)))


def _rows(run: Run) -> dict[tuple[str, str, bool], dict[str, Any]]:
    """The rows at the run's own seed: later seeds of the same claim are not paired."""
    return {
        (row["slug"], row["claim"], bool(row["controlled"])): row
        for notebook in run.notebooks.values()
        if notebook.seed == run.seed or run.seeds == 1
        for row in notebook.claims
    }


def _change(old: dict[str, Any] | None, new: dict[str, Any] | None) -> Change:
    if old is None or new is None or (old["value"] is None) != (new["value"] is None):
        return Change(old, new, "one only")
    if old["value"] is None or all(math.isclose(old[n], new[n], rel_tol=SAME) for n in ("value", "low", "high")):
        return Change(old, new, "same")
    if old["high"] < new["low"] or new["high"] < old["low"]:
        return Change(old, new, "apart")
    return Change(old, new, "inside" if old["low"] <= new["value"] <= old["high"] else "outside")


def notes(old: Run, new: Run) -> list[str]:
    """What a reader must know before comparing the figures, a sentence each."""
    told = []
    for name in ("scale", "parameters"):
        if getattr(old, name) != getattr(new, name):
            told.append(
                f"The {name} differ: {getattr(old, name)} and {getattr(new, name)}.".replace(
                    "scale differ", "scales differ"
                )
            )
    if old.control != new.control:
        told.append("One of the two is a control run; claims are paired with their like only.")
    if old.seed != new.seed:
        told.append(
            "The seeds differ, so about one value in six leaves the other run's interval by chance alone; "
            "intervals that share no point are rarer, about one in two hundred."
        )
    commits = [run.made_with.get("commit") or "none recorded" for run in (old, new)]
    if commits[0] != commits[1]:
        told.append(f"The commits differ: {commits[0]} and {commits[1]}.")
    if old.made_with.get("machine") != new.made_with.get("machine"):
        told.append("The machines differ.")
    versions = [run.made_with.get("versions", {}) for run in (old, new)]
    differ = [
        name
        for name in sorted(versions[0].keys() | versions[1].keys())
        if versions[0].get(name) != versions[1].get(name)
    ]
    if differ:
        pairs = (f"{name} {versions[0].get(name, 'absent')} and {versions[1].get(name, 'absent')}" for name in differ)
        told.append(f"Versions differ: {', '.join(pairs)}.")
    return told


def write_comparison(old: Run, new: Run, to: Path | None = None) -> Path:
    """Write the page that shows what moved from `old` to `new`: into the folder of `new` as compare-<old>.html, or
    into `to` as index.html. Gives back its path."""
    scrubbed = scrubber()
    changes = [
        Change(scrub_all(change.old, scrubbed), scrub_all(change.new, scrubbed), change.kind)
        for change in compare(old, new)
    ]
    shown = [change for change in changes if change.moved or change.verdict_changed or change.bar_changed]
    text = page(
        "compare.html.j2",
        title=f"Runs {old.id} and {new.id}",
        old=old,
        new=new,
        notes=scrub_all(notes(old, new), scrubbed),
        shown=[(change, _drawing(change), *(said(row) if row else "" for row in (change.old, change.new))) for change in shown],
        rest={kind: [change.name for change in changes if change.kind == kind and change not in shown] for kind in KINDS},
        index=INDEX if to is None else "",
        counts=counts(changes),
        times=[
            (key, old.notebooks[key].seconds, new.notebooks[key].seconds) for key in new.notebooks if key in old.notebooks
        ],
    )  # fmt: skip
    folder, name = (new.folder, f"compare-{old.id}.html") if to is None else (to, "index.html")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, text.encode())
    except OSError as error:
        raise WorkbenchError(
            f"The comparison can't be written to {folder} ({error.strerror}); choose another folder with --to."
        ) from None
    return folder / name


def _drawing(change: Change) -> Any:
    rows = [("before", change.old), ("after", change.new)]
    return draw([(label, "ours", row) for label, row in rows if row is not None], change.row["passes"])


def counts(changes: list[Change]) -> dict[str, int]:
    """How many claims are of each kind, and how many verdicts rose or fell."""
    found = {kind: sum(change.kind == kind for change in changes) for kind in KINDS}
    steps = [
        VERDICTS.index(change.old["verdict"]) - VERDICTS.index(change.new["verdict"])
        for change in changes
        if change.old is not None and change.new is not None
    ]
    return found | {"better": sum(step > 0 for step in steps), "worse": sum(step < 0 for step in steps)}
