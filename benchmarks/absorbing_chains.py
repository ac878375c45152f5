"""Risks of absorbing chains for 100,000 queries (state, horizon): one table and a look-up against what one would
write first.

Peers: a matrix power for every query (timed on 2,000 and scaled up), and PyDTMC, whose chains give absorption
probabilities and expected steps but no risk within a horizon, so it is held against our closed form instead; it is
left out, and said so, where it can't be imported. Answers are compared to 1e-10 before anything is timed. Run it alone:

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/absorbing_chains.py
"""

from __future__ import annotations

import json
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from workbench.methods.tail_risk.absorbing_chains import fundamental, risks
from workbench.methods.tail_risk.tool_lattice import ENDS, POLICIES, level_chain, policy_chain

QUERIES, FEW, PAIRS = 100_000, 2_000, 15


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, ours, peer, *, scale: float, unit: str, target: float) -> dict:
    """Times of `PAIRS` alternating runs; the peer's times `scale`; ratio above 1 means ours is faster."""
    ours(), peer()
    pairs = np.array([(seconds(ours), seconds(peer) * scale) for _ in range(PAIRS)]) * 1000
    ratios, (mine, theirs) = np.sort(pairs[:, 1] / pairs[:, 0]), np.median(pairs, axis=0)
    # The 4th smallest and 4th largest of 15 bracket the median with 96.5 % confidence.
    low, high = ratios[3], ratios[-4]
    row = {"name": name, "ours": mine, "peer": theirs, "unit": unit, "ratio": np.median(ratios)}
    return row | {"low": low, "high": high, "target": target, "holds": bool(low >= target)}


def main() -> None:
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
        title = f"absorbing chains, 100,000 queries, {name}"
        results.append(compare(title, ours, one_by_one, scale=QUERIES / FEW, unit="ms", target=100))
    try:
        import pydtmc  # type: ignore[import-not-found]
    except ImportError:
        print("PyDTMC can't be imported; pip install PyDTMC to compare the closed form with it")
    else:
        matrices, ends = [level_chain(name) for name in POLICIES], np.arange(5) == 4
        peers = [pydtmc.MarkovChain(m, list("01234")) for m in matrices]
        steps = [np.array(peer.mean_absorption_times()) for peer in peers]
        apart = max(np.abs(fundamental(m, ends).steps[:4] / t - 1).max() for m, t in zip(matrices, steps, strict=True))
        print(f"expected steps differ from PyDTMC's by at most {apart:.1e} (relative)")
        named, closed = pydtmc.MarkovChain, lambda: [fundamental(m, ends) for m in matrices]
        theirs = lambda: [named(m, list("01234")).mean_absorption_times() for m in matrices]  # noqa: E731
        results.append(compare("absorbing chains, four closed forms", closed, theirs, scale=1, unit="ms", target=1))
    about = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"numpy": version("numpy"), "python": platform.python_version(), "peer": _peer()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    for result in results:
        print(
            "{name}: ours {ours:.4g}, peer {peer:.4g} {unit}, ratio {ratio:.3g} ({low:.3g} to {high:.3g})".format(
                **result
            )
        )
    path = Path(__file__).parent / "results" / "absorbing_chains.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([result | about for result in results], indent=1) + "\n")


def _peer() -> str:
    try:
        return f"PyDTMC=={version('PyDTMC')}"
    except PackageNotFoundError:
        return "numpy.linalg.matrix_power"


if __name__ == "__main__":
    main()
