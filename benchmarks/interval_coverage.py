"""Do 95 % intervals hold the truth 95 % of the time? Every estimator on every problem of the suite that it accepts, at
the league's standard budget, each repeat with a seed of its own.

Of each estimator: the share of runs that warn of nothing whose interval holds the exact truth, and the share of runs
that warn, pooled over its problems, with Clopper-Pearson intervals; then the same of all runs together, and by kind of
problem. REPEATS of each pair make more than 1,000 runs of every estimator with enough problems; `--repeats 1000` makes
as many of each pair, which takes hours. The transformer's five problems are left out of the default: their tabulated
twins (grammar-4 to grammar-8) ask the same at a hundredth of the time; `--all` plays them too. Repeats are kept in
runs/coverage, and a run that was stopped goes on there; `--only` plays some estimators, and what is written is of all
that are kept.

    .venv/bin/python benchmarks/interval_coverage.py [--repeats 1000] [--all] [--only MonteCarlo,Reach]
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench.league import choose_players, choose_problems, pairs, play, read_rows
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.problems.suite import KINDS, catalogue

AT_LEAST, LEAST_REPEATS = 1000, 25
BAND, CALM = (0.93, 0.97), 0.85


def main(words: list[str]) -> None:
    kinds = [kind for kind in KINDS if "--all" in words or kind != "transformer"]
    asked = int(words[words.index("--repeats") + 1]) if "--repeats" in words else 0
    problems, out = choose_problems(kinds), Path("runs/coverage")
    named = words[words.index("--only") + 1].split(",") if "--only" in words else []
    for player in choose_players(named):
        fit = [problem for problem, _ in pairs(problems, [player])[0]]
        if not fit:
            continue
        repeats = asked or max(LEAST_REPEATS, -(-AT_LEAST // len(fit)))
        play(fit, [player], repeats=repeats, out=out)
        print(player, len(fit), "problems,", repeats, "repeats", flush=True)
    rows = read_rows(out)
    results = [said(f"{name}", [row for row in rows if row["estimator"] == name]) for name in names(rows, "estimator")]
    kind_of: Callable[[dict], str] = lambda row: catalogue()[row["problem"]].kind  # noqa: E731
    by_kind = {kind: [row for row in rows if kind_of(row) == kind] for kind in KINDS}
    results += [said(f"problems of kind {kind}", group) for kind, group in by_kind.items() if group]
    results.append(said("all runs", rows))
    about = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("numpy", "scipy", "torch")}
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    for row in results:
        print(
            "{name}: {runs:,} runs, {ours:.1%} of those without a warning hold the truth ({low:.1%} to {high:.1%}); "
            "{flagged:.1%} warn".format(**row)
        )
    path = Path(__file__).parent / "results" / "interval_coverage.json"
    path.write_text(json.dumps([row | about for row in results], indent=1) + "\n")


def names(rows: list[dict[str, Any]], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def said(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage and warnings of these runs; `holds` where coverage is in its band and few enough warn."""
    calm = [row for row in rows if row["reliable"]]
    ends = [(row["low"], row["high"], row["truth"]) for row in calm]
    held = sum((low is None or low <= t) and (high is None or t <= high) for low, high, t in ends)
    low, high = clopper_pearson(held, len(calm)) if calm else (0.0, 1.0)
    share, flagged = held / max(1, len(calm)), 1 - len(calm) / len(rows)
    return {"name": f"95 % intervals, {name}", "ours": share, "peer": 0.95, "unit": "coverage", "ratio": None, "low": low,
            "high": high, "target": BAND, "runs": len(rows), "flagged": flagged,
            "holds": BAND[0] <= share <= BAND[1] and flagged <= 1 - CALM}  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
