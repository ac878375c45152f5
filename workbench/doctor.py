"""What this machine has, what is missing, and how to get it."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata, util

from workbench.errors import WorkbenchError
from workbench.reproduce.engine import machine, versions

_EXTRAS = {
    "app": (("voila",), "a first look as a page ('workbench app')"),
    "gpu": (("accelerate", "peft", "torchao"), "quantised loading, adapters and offload"),
    "cluster": (("dask", "distributed"), "runs on many machines"),
    "logs": (("pyarrow",), "reading Parquet logs"),
    "dev": (("pytest", "hypothesis", "ruff", "pyright"), "running the tests"),
}


def examine() -> list[dict[str, str]]:
    """A list of {state: ok | missing | broken, what, found, cure}."""
    checks = []

    def add(state: str, what: str, found: str, cure: str = "") -> None:
        checks.append({"state": state, "what": what, "found": found, "cure": cure})

    here = platform.python_version()
    supported = (3, 11) <= tuple(int(part) for part in here.split(".")[:2]) <= (3, 13)
    add("ok" if supported else "broken", "Python", here, "" if supported else "use Python 3.11, 3.12 or 3.13")
    facts = machine()
    add("ok", "machine", f"{facts['system']}, {facts['cores']} cores, {facts['memory_gib']} GiB memory")
    add("ok", "accelerator", _accelerator())
    for device, room in _room().items():
        add("ok", f"memory of {device}", room)
    add("ok", "versions", ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python"))
    try:
        from workbench.papers import all_papers, how_many

        papers = all_papers()
        ready = sum(paper.status == "ready" for paper in papers.values())
        add("ok", "papers", f"{how_many(papers.values())}, {ready} ready")
    except WorkbenchError as error:
        add("broken", "papers", str(error), "mend the file that is named")
    try:
        from workbench import models

        for name in models.list_embedded():
            facts = models.info(f"embedded/{name}")
            good = facts["checksum_ok"]
            found = f"checksum right; {facts['fits'][0]}" if good else "weights differ from their checksum"
            cure = (
                "" if good else f"restore datasets/models/ from the repository, or run: workbench models build {name}"
            )
            add("ok" if good else "broken", f"embedded/{name}", found, cure)
    except WorkbenchError as error:
        add("broken", "embedded models", str(error), "restore datasets/ from the repository")
    kernels = util.find_spec("ipykernel") is not None
    add(
        "ok" if kernels else "broken",
        "Jupyter kernel",
        f"ipykernel {metadata.version('ipykernel')}" if kernels else "none",
        "" if kernels else "pip install ipykernel",
    )
    for extra, (packages, purpose) in _EXTRAS.items():
        absent = [name for name in packages if util.find_spec(name) is None]
        found = f"{purpose}: all there" if not absent else f"{purpose}: {', '.join(absent)} not installed"
        add("missing" if absent else "ok", f"extra '{extra}'", found, f"pip install -e '.[{extra}]'" if absent else "")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    add(
        "ok" if browser else "missing",
        "browser",
        "found" if browser else "none, needed only for browser tests",
        "" if browser else "install chromium with your system's package manager",
    )
    return checks


def _room() -> dict[str, str]:
    """What models each device has room for, by weights alone."""
    from workbench.models.memory import COUNTED_ON, DTYPES, devices_found, free_memory, said

    found = {}
    for device in devices_found():
        free = free_memory(device)
        sizes = {kind: dtype.itemsize for kind, dtype in DTYPES.items() if kind in ("float32", "bfloat16")} | {
            "int8": 1
        }
        most = ", ".join(f"{COUNTED_ON * free / size / 1e9:.1f} B as {kind}" for kind, size in sizes.items())
        found[device] = f"{said(free)} free: models of up to {most} parameters"
    return found


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free (CUDA {torch.version.cuda})"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return "none: models run on the CPU"
