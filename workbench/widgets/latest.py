"""The newest value wins: work that a moved control asks for, off the thread that hears the control.

Does: one worker thread at a time; a value that was overtaken is never computed; errors are handed over, not lost.
Does not: interrupt a computation that has begun, or keep a thread while there is nothing to do.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any


class Latest:
    """Calls `show(compute(value))` for the newest submitted value, and `failed(error)` where `compute` raises.

    A `compute` that yields gives several results for one value, the quick and rough one first. What follows it begins
    after `settle` seconds without a newer value, so that a control in motion never waits for it.

    >>> latest = Latest(compute=lambda value: value**2, show=print, failed=print)
    >>> latest.submit(3)
    >>> latest.wait(timeout=5)
    9
    True
    """

    def __init__(
        self,
        compute: Callable[[Any], Any],
        show: Callable[[Any], None],
        failed: Callable[[Exception], None],
        settle: float = 0.25,
    ) -> None:
        self._compute, self._show, self._failed, self._settle = compute, show, failed, settle
        self._lock = threading.Lock()
        self._waiting: list[Any] = []
        self._newer = threading.Event()
        self._idle = threading.Event()
        self._idle.set()

    def submit(self, value: Any) -> None:
        """Ask for `value`; one that still waits is forgotten. Returns at once."""
        with self._lock:
            self._waiting = [value]
            self._newer.set()
            if self._idle.is_set():
                self._idle.clear()
                threading.Thread(target=self._work, name="workbench-latest", daemon=True).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is asked for; False if `timeout` seconds were not enough."""
        return self._idle.wait(timeout)

    def _work(self) -> None:
        try:
            while self._take():
                pass
        except BaseException:
            # Even `failed` failed; the next value is to find a worker all the same.
            self._idle.set()
            raise

    def _take(self) -> bool:
        """Compute and show the newest value; False if there is none, and then the worker is done."""
        with self._lock:
            if not self._waiting:
                self._idle.set()
                return False
            value = self._waiting.pop()
            self._newer.clear()
        try:
            result = self._compute(value)
            for part in result if inspect.isgenerator(result) else [result]:
                self._show(part)
                if inspect.isgenerator(result) and self._newer.wait(self._settle):
                    break
        except Exception as error:
            self._failed(error)
        return True
