"""10,000 completions through a network that fails a fifth of the time: nothing lost, nothing paid twice, every token counted.

A reference server (over a grammar model), a TCP proxy that injects eight kinds of faults, and the client are processes of
their own on this machine. The peer is the server's own count. Once with a proxy that answers a repeated
Idempotency-Key from store, where the meter must equal that count; once without, where the count must lie between the
meter and what the endpoint says may have been lost. The speed of the client is set against a plain loop of httpx2
calls at the same concurrency, without faults.
"""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import httpx2
import numpy as np

from workbench.budget import Meter
from workbench.models import load
from workbench.streams import Stream

ROOT = Path(__file__).resolve().parent.parent
COMPLETIONS, WITHOUT_STORE, PAIRS, PLAIN = 10_000, 2_000, 15, 500
RATE, CONCURRENCY, TOKENS = 0.2, 32, 3
PROMPTS = [f"f{a} f{b} f{c}" for a in range(4) for b in range(5) for c in range(5)]
STREAM = Stream.of(0, "benchmark", "endpoint")
PATIENT = {"max_tries": 20, "timeout": 2.0, "first_wait": 0.02, "longest_wait": 0.3}


@contextmanager
def process(module: str, *arguments: str):
    """A server of the test rig in a process of its own; yields its port."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield int(running.stdout.readline())
        finally:
            running.terminate()


def told(port: int, path: str) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
        return json.load(answer)


def connect(port: int, folder: str, name: str, **options):
    spec = f"openai:http://127.0.0.1:{port}/v1#tiny"
    path = Path(folder) / name
    return load(spec, transcript=path, probe_prompt=PROMPTS[0], concurrency=CONCURRENCY, **options)


def through_faults(folder: str, n: int, store: bool) -> dict:
    options = ["--rate", str(RATE), "--stall", "2.5", "--seed", "1", *([] if store else ["--no-store"])]
    with (
        process("tests.models.reference_server") as port,
        process("tests.models.faulty_proxy", str(port), *options) as front,
    ):
        began = time.perf_counter()
        with Meter() as meter:
            model = connect(front, folder, f"store-{store}", **PATIENT)
            drawn = model.sample(PROMPTS, n=n // len(PROMPTS), max_new_tokens=TOKENS, stream=STREAM)
        seconds = time.perf_counter() - began
        ledger, faults = told(port, "ledger"), told(front, "faults")
    return {
        "answered": sum(bool(text) for text in drawn.texts),
        "asked": n,
        "metered": meter.spend.tokens,
        "calls": meter.spend.model_calls,
        "billed": ledger["prompt_tokens"] + ledger["completion_tokens"],
        "done": ledger["completions"],
        "lost": model.lost,
        "faults": {name: count for name, count in faults.items() if name not in ("none", "from store")},
        "attempts": sum(count for name, count in faults.items() if name != "from store"),
        "seconds": seconds,
    }


async def plain(port: int, seed: int) -> None:
    """PLAIN completions by a plain loop: no retries, no transcript, no meter."""
    limits = httpx2.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    waiting = iter(range(PLAIN))
    async with httpx2.AsyncClient(limits=limits, timeout=60) as client:

        async def worker() -> None:
            for row in waiting:
                body = {"model": "tiny", "prompt": PROMPTS[row % len(PROMPTS)], "max_tokens": TOKENS, "temperature": 1}
                body |= {"seed": seed + row, "logprobs": 1}
                answer = await client.post(f"http://127.0.0.1:{port}/v1/completions", json=body)
                answer.raise_for_status()
                answer.json()

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


def speed(folder: str) -> np.ndarray:
    """(PAIRS, 2) completions a second, of ours and of the plain loop, in turn, without faults."""
    rates = []
    with process("tests.models.reference_server") as port:
        model = connect(port, folder, "speed")
        for pair in range(PAIRS + 1):
            began = time.perf_counter()
            model.sample(PROMPTS, n=PLAIN // len(PROMPTS), max_new_tokens=TOKENS, stream=STREAM.child(pair))
            between = time.perf_counter()
            asyncio.run(plain(port, 10_000 * pair))
            rates.append((PLAIN / (between - began), PLAIN / (time.perf_counter() - between)))
    return np.array(rates[1:])  # the first pair warms both up


def row(name: str, ours: float, peer: float, unit: str, ratio: float, low: float, high: float, target: float) -> dict:
    return {
        "name": name,
        "ours": float(ours),
        "peer": float(peer),
        "unit": unit,
        "ratio": float(ratio),
        "low": float(low),
        "high": float(high),
        "target": target,
        "holds": bool(low >= target),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stored = through_faults(folder, COMPLETIONS, store=True)
        print(
            f"{stored['answered']:,} of {stored['asked']:,} answered in {stored['seconds']:.0f} s; {stored['attempts']:,} "
            f"attempts met {sum(stored['faults'].values()):,} faults: {stored['faults']}"
        )
        bare = through_faults(folder, WITHOUT_STORE, store=False)
        rates = speed(folder)

    def equal(name: str, ours: float, peer: float, unit: str) -> dict:
        # 1 where the two are equal, less by as much as they differ, whichever is larger.
        ratio = min(ours, peer) / max(ours, peer)
        return row(name, ours, peer, unit, ratio, ratio, ratio, 1.0)

    share = f"through {RATE:.0%} faults"
    results = [
        equal(f"endpoint {share}: completions answered", stored["answered"], stored["asked"], "completions"),
        equal(f"endpoint {share}: meter against the server's count", stored["metered"], stored["billed"], "tokens"),
        equal(f"endpoint {share}: calls charged against calls served", stored["calls"], stored["done"], "calls"),
    ]
    high = bare["metered"] + bare["lost"].tokens_at_most
    inside = bare["metered"] <= bare["billed"] <= high
    interval = row(
        f"endpoint {share}, no store of answers: server's count within [meter, meter + lost]",
        bare["metered"],
        bare["billed"],
        "tokens",
        bare["billed"] / bare["metered"],
        1.0,
        high / bare["metered"],
        1.0,
    )
    results.append(interval | {"holds": bool(inside)})
    ratios = np.sort(rates[:, 0] / rates[:, 1])
    # The 4th smallest and 4th largest of 15 bracket the median with 96.5 % confidence.
    mine, theirs = np.median(rates, axis=0)
    name = f"endpoint without faults, {CONCURRENCY} at once, against a plain httpx2 loop"
    results.append(row(name, mine, theirs, "completions per s", np.median(ratios), ratios[3], ratios[-4], 0.8))
    about = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("httpx2", "numpy")} | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    for result in results:
        print(
            "{name}: ours {ours:,.6g}, peer {peer:,.6g} {unit}, ratio {ratio:.4g} ({low:.4g} to {high:.4g}), "
            "target {target:g}: {holds}".format(**result)
        )
    path = Path(__file__).parent / "results" / "endpoint.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([result | about for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
