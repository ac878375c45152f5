"""Kill a run at random moments and resume it; print whether the answers agree. Run as a program.

    python killer.py <case label> <kills> <entropy>

One interpreter imports everything and forks a child for each attempt, so that a kill costs
milliseconds; the children are real processes and the signal is SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from battery import case

import workbench as wb

SAMPLES, BATCH = 240, 4


def attempt(estimator: Any, problem: Any, checkpoint: Path, answer: Path) -> int:
    """Fork a child that runs (or resumes) to the end and writes its answer; returns its pid."""
    pid = os.fork()
    if pid == 0:
        estimate = wb.run(
            problem, estimator, wb.Budget(samples=SAMPLES), seed=3, batch_size=BATCH, checkpoint=checkpoint
        )
        temporary = answer.with_suffix(".part")
        temporary.write_text(estimate.to_json())
        temporary.rename(answer)
        os._exit(0)
    return pid


def main(label: str, kills: int, entropy: int) -> None:
    # Forking a process with threads is deprecated; this one has none that matter by now.
    warnings.simplefilter("ignore", DeprecationWarning)
    random = np.random.default_rng(entropy)
    estimator, problem = case(label)
    outcome: dict[str, list[object]] = {"identical": [], "samples_spent": []}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        finish(attempt(estimator, problem, base / "warm.state", base / "warm.json"))
        began = time.perf_counter()
        finish(attempt(estimator, problem, base / "whole.state", base / "whole.json"))
        whole, usual = json.loads((base / "whole.json").read_text()), time.perf_counter() - began
        trial = 0
        while len(outcome["identical"]) < kills:
            trial += 1
            state, answer = base / f"{trial}.state", base / f"{trial}.json"
            kill_after(random.uniform(0.02, 0.98) * usual, attempt(estimator, problem, state, answer))
            if answer.exists():
                assert trial < 20 * kills, "the runs end before they can be killed"
                continue
            # The resumed run is killed too, as often as not, and resumed again.
            if random.random() < 0.5:
                kill_after(random.uniform(0.02, 0.5) * usual, attempt(estimator, problem, state, answer))
            finish(attempt(estimator, problem, state, answer))
            resumed = json.loads(answer.read_text())
            same = {name: value for name, value in resumed.items() if name not in ("spend", "stopped")}
            outcome["identical"].append(same == {name: whole[name] for name in same})
            outcome["samples_spent"].append(resumed["spend"]["samples"])
    print(json.dumps(outcome))


def finish(pid: int) -> None:
    os.waitpid(pid, 0)


def kill_after(seconds: float, pid: int) -> None:
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
