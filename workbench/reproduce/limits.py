"""What a notebook may take: time, memory, output; and what it does take.

Does: add up the memory of a kernel and its child processes, interrupt and then kill a kernel that passes a limit, and
remember why. Does not: see a peak shorter than `TICK`, or a process that has left the kernel's family; keep a notebook
from writing elsewhere (see `confine.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

TICK = 0.05  # seconds between two looks
GRACE = 5.0  # seconds that a kernel has, once interrupted, to come to its senses
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True)
class Limits:
    """seconds: wall time of the whole notebook; memory: bytes of its own, child processes included; output: bytes kept
    of what its cells print and display. None: no limit."""

    seconds: float | None = None
    memory: int | None = None
    output: int | None = 10 * 2**20


def said_of_cut(limit: int) -> str:
    return f"\n[cut: more than {limit / 2**20:.3g} MB of output; the rest was dropped]\n"


def default_limits(scale: str, workers: int) -> Limits:
    """At quick a quarter of an hour, where a minute is usual; always a worker's share of the machine's memory."""
    return Limits(seconds=900.0 if scale == "quick" else None, memory=int(0.85 * machine_memory() / max(workers, 1)))


def machine_memory() -> int:
    """Bytes that this process may hope for: the machine's, or its container's if that is less."""
    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def family(pid: int) -> list[int]:
    """A process and its descendants, as far as they can be seen; empty once it is gone."""
    if sys.platform != "linux":
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(pid)
            return [pid, *(child.pid for child in parent.children(recursive=True))]
        return []
    found, waiting = [], [pid]
    while waiting:
        each = waiting.pop()
        try:
            for task in os.listdir(f"/proc/{each}/task"):
                waiting += map(int, Path(f"/proc/{each}/task/{task}/children").read_text().split())
        except OSError:
            continue
        found.append(each)
    return found


def resident(pid: int) -> int:
    """Bytes in memory, shared pages counted in full; 0 once it is gone. Costs microseconds."""
    with contextlib.suppress(OSError, IndexError, psutil.Error):
        if sys.platform == "linux":
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        return psutil.Process(pid).memory_info().rss
    return 0


def proportional(pid: int) -> int:
    """Bytes in memory, each shared page divided among its users (Linux's PSS); elsewhere `resident`.

    Costs milliseconds.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return resident(pid)


class Watch:
    """Looks at a kernel while the body of `with` runs, and ends it at a limit.

    process: called for the kernel's process (pid, send_signal, kill) or None while there is none. After it: peak_memory
    in bytes; reason "" or "time" or "memory"; at: seconds or bytes when the limit was passed.
    """

    def __init__(self, process: Callable[[], Any], limits: Limits) -> None:
        self.limits, self.peak_memory, self.reason, self.at = limits, 0, "", 0.0
        self._process, self._over = process, threading.Event()
        self._highest = 0
        self._thread = threading.Thread(target=self._look, name="workbench-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        # Elsewhere than on Linux a look goes through all processes of the machine.
        while not self._over.wait(TICK if sys.platform == "linux" else 10 * TICK):
            process = self._process()
            if process is None:
                continue
            memory = self._memory(process.pid)
            passed = time.monotonic() - self._began
            if self.limits.memory is not None and memory > self.limits.memory:
                self.reason, self.at = "memory", memory
                return process.kill()
            if self.limits.seconds is not None and passed > self.limits.seconds:
                self.reason, self.at = "time", passed
                # The traceback of the interrupt shows where it hung.
                process.send_signal(signal.SIGINT)
                if not self._over.wait(GRACE):
                    process.kill()
                return

    def _memory(self, pid: int) -> int:
        """Own memory now if it may be a new peak; otherwise less than the peak."""
        pids = family(pid)
        total = sum(map(resident, pids))
        # Own memory is never more than what is resident, so the dear look is needed at new heights only.
        if total <= 1.02 * self._highest:
            return 0
        self._highest = total
        own = sum(map(proportional, pids))
        self.peak_memory = max(self.peak_memory, own)
        return own
