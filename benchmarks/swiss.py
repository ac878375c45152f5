"""Seasons of a Swiss round: our compiled loop against the same tournament written in plain Python, side by side in
one run.

No package for this tournament was found (chess pairing programs follow other rules), so the peer is the method's text
in lists and `random.shuffle`, and runs 500 seasons where ours runs 100,000. Two sizes: 12 models on 14 benchmarks,
which is to take at most 2 s for 100,000 seasons on one core, and 29 on 38, as in the paper. Compiling (once a
machine) is not counted. Both are held against each other: expected wins within 5 standard errors.
"""

from __future__ import annotations

import json
import platform
import random
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from workbench import Stream
from workbench.methods.tail_risk.swiss_round import play, win_tensor

SEASONS, FEW, PAIRS = 100_000, 500, 7


def plain(win: list, models: int, seasons: int, rng: random.Random) -> list[list[int]]:
    found = []
    for _ in range(seasons):
        score = [0] * models
        for task in win:
            groups: dict[int, list[int]] = {}
            for m in range(models):
                groups.setdefault(score[m], []).append(m)
            for group in groups.values():
                rng.shuffle(group)
                for a, b in zip(group[::2], group[1::2], strict=False):
                    score[a if task[a][b] else b] += 1
        found.append(score)
    return found


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    stream, results = Stream.of(0, "benchmark"), []
    for models, tasks in ((12, 14), (29, 38)):
        win = win_tensor(stream.child(models).generator().random((models, tasks)), stream)
        lists, rng = win.astype(int).tolist(), random.Random(0)
        ours, peer = play(win, stream=stream), np.array(plain(lists, models, 4 * FEW, rng))
        apart = np.abs(ours.mean - peer.mean(axis=0)) / (peer.std(axis=0) / np.sqrt(len(peer)) + 1e-12)
        print(f"{models} models, {tasks} rounds: expected wins at most {apart.max():.1f} standard errors apart")
        pairs = np.array(
            [
                (seconds(lambda w=win: play(w, seasons=SEASONS, stream=stream)),
                 seconds(lambda w=lists, m=models, r=rng: plain(w, m, FEW, r)) * SEASONS / FEW)
                for _ in range(PAIRS)
            ]
        )  # fmt: skip
        mine, theirs = np.median(pairs, axis=0)
        ratios = np.sort(pairs[:, 1] / pairs[:, 0])
        name = f"swiss, 100,000 seasons of {models} models and {tasks} rounds"
        common = {"ours": mine, "unit": "s"}
        # The smallest and largest of 7 bracket the median with 98.4 % confidence.
        row = {"ratio": np.median(ratios), "low": ratios[0], "high": ratios[-1]}
        agrees = bool(apart.max() < 5)
        results.append({"name": f"{name}, against plain Python", **common, "peer": theirs, **row, "target": 10,
                        "holds": agrees and bool(ratios[0] >= 10)})  # fmt: skip
        if models == 12:
            limit = np.sort(2.0 / pairs[:, 0])
            results.append({"name": f"{name}, against the limit", **common, "peer": 2.0, "ratio": np.median(limit),
                            "low": limit[0], "high": limit[-1], "target": 1, "holds": bool(limit[0] >= 1)})  # fmt: skip
    about = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("numpy", "numba")} | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    for result in results:
        print(
            "{name}: ours {ours:.3g}, peer {peer:.3g} {unit}, ratio {ratio:.3g} ({low:.3g} to {high:.3g})".format(
                **result
            )
        )
    path = Path(__file__).parent / "results" / "swiss.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([result | about for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
