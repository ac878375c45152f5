"""Jobs in the background that take turns, and can be paused and stopped between two slices of work.

Does: one thread a job, of which one works at a time; pause, resume, stop; an error ends its own job and is kept.
Does not: cut a slice short, or know what a job computes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

Job = Callable[[Callable[[], bool]], None]


class Background:
    """Runs `jobs`, each in a thread, one at a time.

    jobs     name -> job(between); a job calls `between()` before each slice of its work, which waits for its turn
             and returns True where the job should end
    turn     which of the unfinished names goes next; by default the first, so that one follows the other
    changed  called, from any thread, when `state` may have changed
    after    a run to wait for before the first slice, so that two runs never overlap
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        turn: Callable[[Sequence[str]], str] = lambda names: names[0],
        changed: Callable[[], None] = lambda: None,
        after: Background | None = None,
    ) -> None:
        self.errors: dict[str, Exception] = {}
        self._turn, self._changed, self._after = turn, changed, after
        self._unfinished, self._working = list(jobs), ""
        self._paused = self._stopped = False
        self._moved = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, args=(name, job), name=f"workbench-{name}", daemon=True)
            for name, job in jobs.items()
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def state(self) -> str:
        """running | pausing | paused | stopping | stopped | failed (every job) | done"""
        with self._moved:
            if not self._unfinished:
                if self._stopped:
                    return "stopped"
                return "failed" if self.errors and len(self.errors) == len(self._threads) else "done"
            if self._stopped:
                return "stopping"
            if self._paused:
                return "pausing" if self._working else "paused"
            return "running"

    @property
    def unfinished(self) -> tuple[str, ...]:
        with self._moved:
            return tuple(self._unfinished)

    def pause(self) -> None:
        self._set(paused=True)

    def resume(self) -> None:
        self._set(paused=False)

    def stop(self) -> None:
        """Ask every job to end; those at work do so before their next slice."""
        self._set(stopped=True)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for all jobs to end; False if `timeout` seconds were not enough."""
        with self._moved:
            return self._moved.wait_for(lambda: not self._unfinished, timeout)

    def _set(self, *, paused: bool | None = None, stopped: bool = False) -> None:
        with self._moved:
            self._paused = self._paused if paused is None else paused
            # A run that has ended was not stopped.
            self._stopped = self._stopped or (stopped and bool(self._unfinished))
            self._moved.notify_all()
        self._changed()

    def _between(self, name: str) -> bool:
        with self._moved:
            self._working = "" if self._working == name else self._working
            self._moved.notify_all()
            waiting = self._paused
        if waiting:
            self._changed()
        with self._moved:
            self._moved.wait_for(lambda: self._stopped or self._may_go(name))
            if self._stopped:
                return True
            self._working = name
            return False

    def _may_go(self, name: str) -> bool:
        return not self._paused and not self._working and self._turn(self.unfinished) == name

    def _work(self, name: str, job: Job) -> None:
        try:
            if self._after is not None:
                self._after.join()
                self._after = None
            if not self._between(name):
                job(lambda: self._between(name))
        except Exception as error:
            self.errors[name] = error
        finally:
            with self._moved:
                self._working = "" if self._working == name else self._working
                self._unfinished.remove(name)
                self._moved.notify_all()
            self._changed()
