"""Many expectations from one sample (ME-aISCV, arXiv 2212.00568) against separate estimation, at equal model runs.

Statistics, not timing: each row compares the sum of squared errors against the exact truth (relative errors for the
moments, as the criterion there weighs them) over repeats, ratio = peer / ours. Peers: each expectation by a run of its
own with a J-th of the points, by plain Monte Carlo (its exact variance: repeats would miss what high moments hang on)
and by adaptive importance sampling (our code with J = 1, where the control variate does nothing). For Sobol' indices
scipy.stats.sobol_indices, on its quasi-random points and on random ones, with at most as many runs of the model for us
as for it. Intervals: 95 % bootstrap over repeats. The target, 1, was set before measuring; scipy's estimator beats
ours by far on quasi-random points.
"""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from workbench import Stream
from workbench.methods.tail_risk.expectation_questions import (
    beam_indices,
    beam_laws,
    deflection_moments,
    exact_indices,
    first_order,
    gaussian_moments,
    mean_deflections,
    moment_variances,
    scipy_indices,
)
from workbench.methods.tail_risk.multi_expectation_ais import Expectations, aiscv, separate

POINTS, REPEATS, SCIPY_POINTS = 20_000, 60, 2**14


def compare(name: str, unit: str, ours: np.ndarray, peer: np.ndarray, stream: Stream) -> dict:
    """ours, peer (repeats,): sums of squared errors; ratio above 1 means ours is more accurate."""
    generator = stream.child("bootstrap", name).generator()
    again = [errors[generator.integers(0, len(errors), (4000, len(errors)))].mean(axis=1) for errors in (peer, ours)]
    low, high = np.quantile(again[0] / again[1], [0.025, 0.975])
    return {
        "name": name,
        "ours": float(ours.mean()),
        "peer": float(peer.mean()),
        "unit": unit,
        "ratio": float(peer.mean() / ours.mean()),
        "low": float(low),
        "high": float(high),
        "target": 1,
        "holds": bool(low >= 1),
    }


def against_separate(name: str, unit: str, question: Expectations, variances: np.ndarray, stream: Stream) -> list[dict]:
    """variances (J,): of one draw of Monte Carlo."""

    def errors(run) -> np.ndarray:
        found = np.array([run(stream.child(name, k)) for k in range(REPEATS)])
        return np.square(found - np.asarray(question.truth)) @ question.weights

    ours = errors(lambda own: aiscv(question, POINTS, stream=own).value)
    peers = {
        "separate Monte Carlo": np.full(REPEATS, question.weights @ variances * len(question) / POINTS),
        "separate adaptive importance sampling": errors(
            lambda own: np.concatenate([run.value for run in separate(question, POINTS, stream=own)])
        ),
    }
    return [compare(f"{name}, against {peer}", unit, ours, theirs, stream) for peer, theirs in peers.items()]


def against_scipy(stream: Stream) -> list[dict]:
    question, exact = beam_indices(), exact_indices()
    runs = SCIPY_POINTS * (len(exact) + 2)
    points = runs // question.runs

    def ours(k: int) -> np.ndarray:
        answer = aiscv(question, points, stream=stream.child("ours", k))
        return first_order(answer.value, answer.covariance)[0]

    def errors(indices) -> np.ndarray:
        return np.array([np.sum((indices(k) - exact) ** 2) for k in range(REPEATS)])

    mine = errors(ours)
    peers = {
        f"{said} points": errors(
            lambda k, quasi=quasi: scipy_indices(SCIPY_POINTS, stream.child("theirs", k), quasi=quasi)
        )
        for said, quasi in (("quasi-random", True), ("random", False))
    }
    name = f"first-order Sobol' indices of the beam, {runs:,} runs, against scipy.stats.sobol_indices"
    return [compare(f"{name}, {points}", "sum of squared errors", mine, peer, stream) for points, peer in peers.items()]


def main() -> None:
    stream = Stream.of(0, "benchmark")
    moments, laws = gaussian_moments(), beam_laws(20, stream)
    beams = mean_deflections(laws)
    means, squares = np.array([deflection_moments(law) for law in laws]).T
    results = [
        *against_separate(
            "10 moments of a normal law", "sum of squared relative errors", moments, moment_variances(), stream
        ),
        *against_separate("a beam under 20 laws", "sum of squared errors, m^2", beams, squares - means**2, stream),
        *against_scipy(stream),
    ]
    about = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("numpy", "scipy")} | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    for result in results:
        print(
            "{name}: ours {ours:.3g}, peer {peer:.3g} {unit}, ratio {ratio:.3g} ({low:.3g} to {high:.3g})".format(
                **result
            )
        )
    path = Path(__file__).parent / "results" / "multi_expectation.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([result | about for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
