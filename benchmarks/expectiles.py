"""Expectiles against what one would call instead: scipy's root finding and statsmodels' weighted least squares.

Three jobs, each at tau = 0.01 of Student t with 4 degrees of freedom: one sample of 1,000,000; one of 1,000; and a
window of 500 that rolls over 5,000 days, where ours keeps what windows share. Answers are held against each other to
1e-8 before anything is timed. statsmodels has no expectile of a sample; its WLS with only a constant, weights
renewed until they stay, is one. Run it alone:

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/expectiles.py
"""

from __future__ import annotations

import json
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import statsmodels.api as sm
from scipy import stats

from workbench import Stream
from workbench.methods.tail_risk.expectile_var import RollingWindows, expectile

TAU, DAYS, WINDOW, PAIRS = 0.01, 5_000, 500, 9


def by_statsmodels(values: np.ndarray) -> float:
    """Iterated weighted least squares on a constant."""
    constant, found = np.ones_like(values), float(values.mean())
    while True:
        weights = np.where(values <= found, 1 - TAU, TAU)
        (new,) = sm.WLS(values, constant, weights=weights).fit().params
        if new == found or abs(new - found) <= 1e-15 * abs(new):
            return float(new)
        found = float(new)


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    draws = stats.t(4).rvs(1_000_000, random_state=Stream.of(0, "benchmark").generator())
    days = draws[: DAYS + WINDOW]
    # Each window forecasts the day after it, so the last day has none of its own.
    rolled = np.lib.stride_tricks.sliding_window_view(days, WINDOW)[:-1]
    jobs = []
    for n in (1_000_000, 1_000):
        sample = draws[:n]
        jobs += [
            (f"one sample of {n:,}, scipy.stats.expectile", lambda y=sample: expectile(y, TAU),
             lambda y=sample: stats.expectile(y, TAU)),
            (f"one sample of {n:,}, statsmodels WLS", lambda y=sample: expectile(y, TAU),
             lambda y=sample: by_statsmodels(y)),
        ]  # fmt: skip
    jobs.append((
        f"{DAYS:,} windows of {WINDOW}, scipy.stats.expectile of each",
        lambda: RollingWindows(days, WINDOW).expectile(TAU),
        lambda: np.array([stats.expectile(row, TAU) for row in rolled]),
    ))  # fmt: skip
    results = []
    for name, ours, peer in jobs:
        apart = float(np.abs(np.asarray(ours()) - np.asarray(peer())).max())
        print(f"{name}: at most {apart:.1e} apart")
        if apart > 1e-8:
            raise SystemExit("the two disagree")
        pairs = np.array([(seconds(ours), seconds(peer)) for _ in range(PAIRS)]) * 1000
        ratios, (mine, yours) = np.sort(pairs[:, 1] / pairs[:, 0]), np.median(pairs, axis=0)
        # The 2nd smallest and 2nd largest of 9 bracket the median with 96 % confidence.
        results.append({"name": f"expectile, {name}", "ours": mine, "peer": yours, "unit": "ms",
                        "ratio": np.median(ratios), "low": ratios[1], "high": ratios[-2], "target": 1,
                        "holds": bool(ratios[1] >= 1)})  # fmt: skip
    about = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("numpy", "scipy", "statsmodels")}
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    for row in results:
        print(
            "{name}: ours {ours:.3g}, peer {peer:.3g} {unit}, ratio {ratio:.3g} ({low:.3g} to {high:.3g})".format(**row)
        )
    path = Path(__file__).parent / "results" / "expectiles.json"
    path.write_text(json.dumps([row | about for row in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
