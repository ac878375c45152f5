"""Off-policy estimators and SharpeRatio@k against scope-rl 0.2.1 on the same logs: equal values, then time.

scope-rl wants older neighbours than ours, so it gets an environment of its own, made here once (it borrows our torch).
It is given our Q and our marginal ratios, since it has none for tables. It adds 1e-10 to the behaviour policy's value,
"to avoid zero division"; so do we here, to compare the rest exactly. Times are of one core each; medians of 15 runs in
turn, ours and theirs in one go. Run it alone:

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/off_policy_estimators.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from workbench import Stream
from workbench.methods.tail_risk.off_policy_estimators import (
    count_model,
    evaluate_tabular,
    model_values,
    occupancy,
)
from workbench.methods.tail_risk.sharpe_ratio_at_k import top_k
from workbench.problems.policy_portfolios import tabular_portfolio

HERE = Path(__file__).parent
PEER, TRAJECTORIES, RUNS, NAMES = "scope-rl==0.2.1", 2000, 15, ("DM", "PDIS", "DR", "MIS")


def peer_python() -> str:
    """The interpreter of the peer's environment, which is made if it is not there."""
    folder = HERE / ".peers" / "scope-rl"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        subprocess.run([python, "-m", "pip", "install", "-q", PEER], check=True)
    return str(python)


def main() -> None:
    python, results = peer_python(), []
    for mixing in (0, 6):
        stream = Stream.of(0, "benchmark", mixing)
        made = tabular_portfolio(mixing, stream.child("portfolio"))
        log = made.process.log(TRAJECTORIES, stream.child("log"))
        state, action, reward = log["state"], log["action"], log["reward"]
        behaviour, horizon = made.process.behaviour, state.shape[1]
        model = count_model(state, action, reward, *behaviour.shape)
        q, _ = model_values(model, made.targets, horizon)
        theirs, mine = (occupancy(model, policy, horizon) for policy in (behaviour, made.targets))
        weight = made.targets[:, state, action] / behaviour[state, action] * mine[:, state] / theirs[state]
        baseline = reward.sum(axis=1).mean() + 1e-10
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            found = evaluate_tabular(state, action, reward, behaviour, made.targets)
            middle = time.perf_counter()
            ratios = top_k(made.values, np.array([found[name] for name in NAMES]), baseline, ties="first").sharpe
            times.append((middle - start, time.perf_counter() - middle))
        with tempfile.TemporaryDirectory() as folder:
            asked, heard = Path(folder, "asked.npz"), Path(folder, "heard.npz")
            np.savez(asked, state=state, action=action, reward=reward, behaviour=behaviour, targets=made.targets,
                     values=made.values, q=q, weight=weight, runs=RUNS)  # fmt: skip
            subprocess.run([python, "-W", "ignore", HERE / "peers" / "ask_scope_rl.py", asked, heard], check=True,
                           env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)  # fmt: skip
            peer = dict(np.load(heard))
        apart = max(float(np.abs(found[name] - peer[f"value {name}"]).max()) for name in NAMES)
        off = max(float(np.nanmax(np.abs(ratios[i] - peer[f"sharpe {name}"]))) for i, name in enumerate(NAMES))
        common = {"unit": "difference", "ratio": None, "low": None, "high": None, "target": 1e-10}
        where = f"{TRAJECTORIES:,} trajectories, 10 policies, mixing {mixing}"
        results.append({"name": f"DM, PDIS, DR, MIS: largest difference, {where}", "ours": apart, "peer": 0.0, **common,
                        "holds": apart <= 1e-10})  # fmt: skip
        results.append({"name": f"SharpeRatio@k, k to 10: largest difference, {where}", "ours": off, "peer": 0.0,
                        **common, "holds": off <= 1e-10})  # fmt: skip
        for column, name in enumerate(("the four estimates", "SharpeRatio@k of four estimators")):
            ours, yours = np.sort(np.array(times)[:, column]), np.sort(peer["times"][:, column])
            # The 4th smallest and largest of 15 bracket each median; their quotients bracket the ratio.
            results.append({"name": f"{name}, {where}", "ours": ours[7] * 1000, "peer": yours[7] * 1000, "unit": "ms",
                            "ratio": yours[7] / ours[7], "low": yours[3] / ours[-4], "high": yours[-4] / ours[3],
                            "target": 1, "holds": bool(yours[3] / ours[-4] >= 1)})  # fmt: skip
    versions = {name: version(name) for name in ("numpy", "scipy")} | {
        "python": platform.python_version(),
        "scope-rl": PEER.split("==")[1],
    }
    about = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }
    for row in results:
        times = "" if row["ratio"] is None else f", ratio {row['ratio']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
        print(f"{row['name']}: ours {row['ours']:.3g}, peer {row['peer']:.3g} {row['unit']}{times}")
    path = HERE / "results" / "off_policy_estimators.json"
    path.write_text(json.dumps([row | about for row in results], indent=1) + "\n")
    sys.exit(not all(row["holds"] for row in results if row["ratio"] is None))


if __name__ == "__main__":
    main()
