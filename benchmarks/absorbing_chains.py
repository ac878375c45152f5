"""Risks of absorbing chains: one table and a look-up against what one would write first, and closed forms and risks
within 50 steps against PyDTMC 8.7.0 on the same chains: equal values, then time.

A matrix power for each of 100,000 queries (state, horizon) is timed on 2,000 and scaled up. PyDTMC wants matplotlib up
to 3.7.3, so numpy 1, and gets an environment of its own, made here once. It has no risk within a horizon by name; its
first passage probabilities, summed up, are that risk. Answers are compared to 1e-10 before anything is timed. Each
process times its own work on the same chains, the two in turn, 15 times; a closed form is from the bare matrix, for
PyDTMC by way of a chain object, since it keeps the answer there; risks within 50 steps are from chains made before. One
core each. Run it alone:

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/absorbing_chains.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from workbench.methods.tail_risk.absorbing_chains import fundamental, risk_table, risks
from workbench.methods.tail_risk.tool_lattice import ENDS, POLICIES, level_chain, policy_chain

HERE = Path(__file__).parent
PEER, QUERIES, FEW, PAIRS, LONGEST = "PyDTMC==8.7.0", 100_000, 2_000, 15, 50
MINE = {"numpy": version("numpy"), "python": platform.python_version()}


def peer_python() -> str:
    """The interpreter of the peer's environment, which is made if it is not there."""
    folder = HERE / ".peers" / "pydtmc"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", PEER], check=True)
    return str(python)


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, ours, peer, *, target: float, versions: dict) -> dict:
    """Times of `PAIRS` runs in turn; ours is called, peer() returns its seconds; ratio above 1 means ours is faster."""
    ours(), peer()
    pairs = np.array([(seconds(ours), peer()) for _ in range(PAIRS)]) * 1000
    ratios, (mine, theirs) = np.sort(pairs[:, 1] / pairs[:, 0]), np.median(pairs, axis=0)
    # The 4th smallest and 4th largest of 15 bracket the median with 96.5 % confidence.
    low, high = ratios[3], ratios[-4]
    row = {"name": name, "ours": mine, "peer": theirs, "unit": "ms", "ratio": np.median(ratios)}
    return row | {"low": low, "high": high, "target": target, "holds": bool(low >= target), "versions": versions}


def against_powers() -> list[dict]:
    rng, results = np.random.default_rng(0), []
    for matrix, ends, name in (
        (level_chain("communication"), np.arange(5) == 4, "5 states"),
        (policy_chain("communication"), ENDS, "60 states"),
    ):
        states, horizons = rng.integers(0, len(matrix), QUERIES), rng.integers(1, 51, QUERIES)

        def one_by_one(matrix=matrix, ends=ends, states=states, horizons=horizons) -> list[float]:
            pairs = zip(states[:FEW], horizons[:FEW], strict=True)
            return [np.linalg.matrix_power(matrix, h)[s, ends].sum() for s, h in pairs]

        apart = np.abs(risks(matrix, ends, states, horizons)[:FEW] - one_by_one()).max()
        print(f"{name}: answers differ by at most {apart:.1e}")
        if apart > 1e-10:
            raise SystemExit("the two disagree")
        ours = lambda m=matrix, e=ends, s=states, h=horizons: risks(m, e, s, h)  # noqa: E731
        peer = lambda call=one_by_one: seconds(call) * QUERIES / FEW  # noqa: E731
        title = f"absorbing chains, 100,000 queries, {name}"
        results.append(compare(title, ours, peer, target=100, versions=MINE | {"peer": "numpy.linalg.matrix_power"}))
    return results


def against_pydtmc() -> list[dict]:
    sizes = {
        "5 states": (np.array([level_chain(policy) for policy in POLICIES]), np.arange(5) == 4),
        "60 states": (np.array([policy_chain(policy) for policy in POLICIES]), np.asarray(ENDS)),
    }
    results, environment = [], os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        asked, heard = Path(folder, "asked.npz"), Path(folder, "heard.npz")
        np.savez(asked, longest=LONGEST, **{size: chains for size, (chains, _) in sizes.items()})
        command = [peer_python(), "-W", "ignore", HERE / "peers" / "ask_pydtmc.py", asked, heard]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as on:
            assert on.stdin and on.stdout
            if on.stdout.readline() != "ready\n":
                raise SystemExit("PyDTMC gave no answer")
            peer = dict(np.load(heard))
            versions = MINE | {"peer": ", ".join(peer["versions"])}

            def turn(task: str) -> float:
                assert on.stdin and on.stdout
                print(task, file=on.stdin, flush=True)
                return float(on.stdout.readline())

            for size, (chains, ends) in sizes.items():
                for what, apart in differences(size, chains, ends, peer).items():
                    row = {"name": f"{what}: largest difference, four chains of {size}", "ours": apart, "peer": 0.0,
                           "unit": "difference", "ratio": None, "low": None, "high": None, "target": 1e-10}  # fmt: skip
                    results.append(row | {"holds": bool(apart <= 1e-10), "versions": versions})
                closed = lambda chains=chains, ends=ends: [fundamental(m, ends) for m in chains]  # noqa: E731
                within = lambda chains=chains, ends=ends: [risk_table(m, ends, LONGEST) for m in chains]  # noqa: E731
                for name, ours, task in (
                    ("closed forms", closed, "closed"),
                    (f"risks from every state within 1 to {LONGEST} steps", within, "within"),
                ):
                    title, ask = f"{name}, four chains of {size}", lambda task=task, size=size: turn(f"{size} {task}")
                    results.append(compare(title, ours, ask, target=1, versions=versions))
            on.stdin.close()
    return results


def differences(size: str, chains: np.ndarray, ends: np.ndarray, peer: dict) -> dict[str, float]:
    """Largest differences of our answers from the peer's, relative to the larger of 1 and the peer's answer."""
    found: dict[str, list[float]] = {}
    for i, matrix in enumerate(chains):
        inner, last = peer[f"{size} inner"][i], peer[f"{size} ends"][i]
        if sorted(inner) != np.flatnonzero(~ends).tolist() or sorted(last) != np.flatnonzero(ends).tolist():
            raise SystemExit("the two do not have the same absorbing states")
        ours, column = fundamental(matrix, ends), [np.flatnonzero(ends).tolist().index(state) for state in last]
        for what, mine, key in (
            ("fundamental matrix", ours.visits[np.ix_(inner, inner)], "visits"),
            ("absorption probabilities", ours.absorbed[np.ix_(inner, column)], "absorbed"),
            ("mean absorption times", ours.steps[inner], "steps"),
            (f"risk within 1 to {LONGEST} steps", risk_table(matrix, ends, LONGEST)[1:, inner], "within"),
        ):
            theirs = peer[f"{size} {key}"][i]
            found.setdefault(what, []).append(float((np.abs(mine - theirs) / np.maximum(1, np.abs(theirs))).max()))
    return {what: max(apart) for what, apart in found.items()}


def main() -> None:
    results = against_powers() + against_pydtmc()
    about = {"machine": f"{platform.machine()}, {platform.system()}", "date": datetime.now(UTC).date().isoformat()}
    for row in results:
        times = "" if row["ratio"] is None else f", ratio {row['ratio']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
        print(f"{row['name']}: ours {row['ours']:.4g}, peer {row['peer']:.4g} {row['unit']}{times}")
    path = HERE / "results" / "absorbing_chains.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([row | about for row in results], indent=1) + "\n")
    sys.exit(not all(row["holds"] for row in results if row["ratio"] is None))


if __name__ == "__main__":
    main()
