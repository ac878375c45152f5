"""The notebook runner against papermill's default engine and `pytest --nbmake -n 2`, in one run, interleaved; medians.

The small notebook imports torch, transformers, scipy.stats and matplotlib and does nothing else: all its time is
overhead. What is paid once a run (the imports of the pre-imported process; pytest's start) is kept apart by measuring
few and many notebooks and taking the slope. nbmake is installed into a folder of its own for the measurement.

Rows with a limit instead of a peer have the limit as `peer` and limit / ours as `ratio`. `--part` runs some parts alone
and keeps the other rows of the last results. A file of the package that changes meanwhile costs new imports: leave them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil

from workbench.papers import all_papers
from workbench.reproduce import provisioner
from workbench.reproduce.limits import Limits
from workbench.reproduce.notebook_run import Outcome, run_notebook

RESULTS = Path(__file__).parent / "results" / "runner.json"
HEAVY = "import torch, transformers, scipy.stats, matplotlib.pyplot\nprint('ready')"
PARAMETERS = "scale = 'quick'\nseed = 0\ncontrol = False"
FEW, MANY, NBMAKE = 2, 8, "nbmake==1.5.5"
BAD = {
    "kills its kernel": ("import os; os.kill(os.getpid(), 9)", Limits()),
    "loops for ever": ("while True: pass", Limits(seconds=3)),
    "prints 200 MB": ("for _ in range(200): print('x' * (1 << 20))", Limits()),
    "allocates without end": ("kept = []\nwhile True: kept.append(bytearray(1 << 24))", Limits(memory=10**9)),
    "writes outside its folder": ("import pathlib; pathlib.Path.home().joinpath('evil').write_text('')", Limits()),
}


def main() -> None:
    parts: dict[str, Callable[[Path, int], list[dict[str, Any]]]] = {
        "overhead": overhead,
        "side-by-side": side_by_side,
        "kernel": kernel,
        "leaks": leaks,
        "bad": bad_ones,
        "present": present_notebooks,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=parts, action="append", help="default: all")
    asked = parser.parse_args()
    for name in asked.part or parts:
        with tempfile.TemporaryDirectory() as folder:
            rows = parts[name](Path(folder), asked.repeats)
        for each in rows:
            print("{name}: ours {ours:.3g}, {peer:.3g} {unit}, ratio {ratio:.3g}, target {target:g}".format(**each))
        record(rows)


def notebook(path: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (PARAMETERS, *cells)])
    made.cells[0].metadata["tags"] = ["parameters"]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)
    return path


def run(path: Path, folder: Path, limits: Limits | None = None) -> Outcome:
    parameters = {"scale": "quick", "seed": 0, "control": False}
    return run_notebook(path, parameters, folder / path.name, limits=limits, threads=1)


def ready_mother() -> float:
    """Seconds until the imports are done."""
    began = time.perf_counter()
    mother = provisioner.start_mother()
    while not mother.ready():
        time.sleep(0.01)
    return time.perf_counter() - began


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def overhead(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """One at a time, from the call to the saved notebook: ours, papermill's default engine."""
    path = notebook(folder / "small.ipynb", HEAVY)
    ours, peer, imports = [], [], []
    for _ in range(repeats):
        peer.append(
            seconds(
                lambda: papermill.execute_notebook(
                    str(path), str(folder / "peer.ipynb"), {"seed": 0}, kernel_name="python3", progress_bar=False
                )
            )
        )
        with provisioner.pre_imported():
            imports.append(ready_mother())
            for _ in range(4):
                done = run(path, folder / "ours")
                assert done.state == "done", done.error
                ours.append(done.seconds)
    return [
        row("overhead a notebook, one at a time, against papermill's default engine", ours, peer, "s", 10),
        row("overhead a notebook, one at a time, against its limit", ours, [0.7], "s", 1),
        row("imports, once a run, against one kernel that does its own", imports, peer, "s", 0.5),
    ]


def side_by_side(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Two at a time: the slope from few to many notebooks, of ours and of `pytest --nbmake -n 2`."""
    paths = [notebook(folder / "many" / f"n{i}.ipynb", HEAVY) for i in range(MANY)]
    nbmake = install_nbmake(folder)
    ours, peer = [], []
    for _ in range(repeats):
        few, many = (seconds(lambda n=n: nbmake(paths[:n])) for n in (FEW, MANY))
        peer.append((many - few) / (MANY - FEW))
        with provisioner.pre_imported(), ThreadPoolExecutor(2) as pool:
            ready_mother()
            few, many = (
                seconds(lambda n=n: list(pool.map(lambda path: run(path, folder / "ours"), paths[:n])))
                for n in (FEW, MANY)
            )
        ours.append((many - few) / (MANY - FEW))
    return [row("a further notebook, two at a time, against pytest --nbmake -n 2", ours, peer, "s", 5)]


def install_nbmake(folder: Path) -> Callable[[list[Path]], None]:
    there = folder / "nbmake"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(there), NBMAKE]
    subprocess.run(pip, check=True)

    path = [str(there), *filter(None, [os.environ.get("PYTHONPATH")])]

    def call(paths: list[Path]) -> None:
        options = ["--nbmake", "-n", "2", "-q", "-p", "no:cacheprovider", "-p", "no:workbench"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "--rootdir", str(paths[0].parent), *map(str, paths)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
            cwd=paths[0].parent,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]

    return call


def kernel(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """From the start of a kernel to the reply of its first cell, and what it holds of its own then."""
    import asyncio

    from workbench.reproduce.kernels import LocalKernelManager

    async def first_cell() -> tuple[float, float]:
        began = time.perf_counter()
        manager = LocalKernelManager(kernel_name="python3")
        await manager._async_start_kernel(cwd=str(folder))
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=120)
        await client.execute_interactive(HEAVY, output_hook=lambda message: None)
        took = time.perf_counter() - began
        own = psutil.Process(manager.process.pid).memory_full_info().uss / 1e6
        client.stop_channels()
        await manager.shutdown_kernel()
        return took, own

    ours, peer = [], []
    with provisioner.pre_imported():
        ready_mother()
        for _ in range(repeats):
            os.environ["WORKBENCH_KERNELS"] = "ordinary"
            peer.append(asyncio.run(first_cell()))
            del os.environ["WORKBENCH_KERNELS"]
            ours += [asyncio.run(first_cell()) for _ in range(4)]
    (our_seconds, our_own), (peer_seconds, peer_own) = zip(*ours, strict=True), zip(*peer, strict=True)
    return [
        row("first cell answered, imports in it, against an ordinary kernel", our_seconds, peer_seconds, "s", 10),
        row("first cell answered, imports in it, against its limit", our_seconds, [0.42], "s", 1),
        row("own memory of a further kernel, against an ordinary one", our_own, peer_own, "MB", 2),
        row("own memory of a further kernel, against its limit", our_own, [150], "MB", 1),
    ]


def leaks(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """What 200 notebooks that print a line leave behind, two at a time; the first ten open what stays open by design."""
    paths = [notebook(folder / f"n{i}.ipynb", f"print({i})") for i in range(200)]
    own = folder / "tmp"
    own.mkdir()
    tempfile.tempdir, usual = str(own), tempfile.tempdir
    try:
        with provisioner.pre_imported(), ThreadPoolExecutor(2) as pool:
            ready_mother()
            list(pool.map(lambda path: run(path, folder / "ours"), paths[:10]))
            before = counts(own)
            took = seconds(lambda: list(pool.map(lambda path: run(path, folder / "ours"), paths[10:])))
            time.sleep(1)
            after = counts(own)
    finally:
        tempfile.tempdir = usual
    print(f"190 notebooks in {took:.1f} s, {took / 190:.2f} s each; before {before}, after {after}")
    return [
        row(f"left by 200 notebooks: {name}", [max(after[name] - before[name], 0)], [0], "more", 1) for name in before
    ]


def counts(own: Path) -> dict[str, int]:
    gc.collect()
    me = psutil.Process()
    mother = psutil.Process(provisioner.start_mother().process.pid)
    return {
        "processes": len(me.children(recursive=True)),
        "threads": threading.active_count(),
        "handles": me.num_fds() + mother.num_fds(),
        "sockets": len(me.net_connections("unix")) + len(mother.net_connections("unix")),
        "temporary files": len(list(own.iterdir())),
    }


def bad_ones(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Notebooks that misbehave, at once with good ones: how many of the good ones are hurt."""
    good = [notebook(folder / f"good{i}.ipynb", "import time\ntime.sleep(2)") for i in range(4)]
    bad = {notebook(folder / f"bad{i}.ipynb", cell): limits for i, (cell, limits) in enumerate(BAD.values())}
    with provisioner.pre_imported(), ThreadPoolExecutor(len(good) + len(bad)) as pool:
        ready_mother()
        spoilt = pool.map(lambda item: run(item[0], folder / "ours", item[1]), bad.items())
        fine = pool.map(lambda path: run(path, folder / "ours"), good)
        for name, outcome in zip(BAD, spoilt, strict=True):
            print(f"  {name}: {outcome.error or outcome.state}")
        hurt = [outcome.error for outcome in fine if outcome.state != "done"]
    return [row("good notebooks hurt by five bad ones beside them", [len(hurt)], [0], "of 4", 1)]


def present_notebooks(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """All present notebooks, fresh and unchanged, by the command, from its start to its end."""
    paths = [paper.notebook for paper in all_papers().values() if paper.status == "ready"]
    nbmake = install_nbmake(folder)
    ours, peer, unchanged = [], [], []

    def reproduce(*options: str) -> None:
        command = [sys.executable, "-m", "workbench", "reproduce", "--workers", "2", "--out", str(folder / "runs")]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    for _ in range(repeats):
        peer.append(seconds(lambda: nbmake(paths)))
        ours.append(seconds(lambda: reproduce("--fresh")))
        unchanged.append(seconds(reproduce))
    return [
        row(f"all {len(paths)} present notebooks, fresh, against pytest --nbmake -n 2", ours, peer, "s", 3),
        row(f"all {len(paths)} present notebooks, unchanged, against its limit", unchanged, [3], "s", 1),
    ]


def row(name: str, ours: Any, peer: Any, unit: str, target: float) -> dict[str, Any]:
    """Medians; low and high are the ratio's ends over all pairs. Of nothing left, the ratio is 1."""
    mine, theirs = statistics.median(ours), statistics.median(peer)
    ratios = [b / a if a else float(b == a) for a in ours for b in peer]
    ratio = theirs / mine if mine else float(theirs == mine)
    return {
        "name": name, "ours": mine, "peer": theirs, "unit": unit, "ratio": ratio, "low": min(ratios), "high": max(ratios),
        "target": target, "holds": bool(ratio >= target),
    }  # fmt: skip


def record(rows: list[dict[str, Any]]) -> None:
    names = ("papermill", "ipykernel", "nbclient", "torch", "transformers")
    about = {
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} threads",
        "versions": {name: version(name) for name in names} | {"python": platform.python_version(), "peer": NBMAKE},
        "date": datetime.now(UTC).date().isoformat(),
    }
    new = {row["name"]: row | about for row in rows}
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = [new.pop(row["name"], row) for row in old]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept + list(new.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
