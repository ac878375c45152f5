"""Methods compared on one problem in the background, each by `workbench.run`.

Does: let methods take turns at equal spend or follow each other; keep a bounded trace of each; pause, resume, stop.
Does not: draw, or know of widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from workbench.estimate import Estimate
from workbench.run import run
from workbench.widgets import equal_spend
from workbench.widgets.background import Background
from workbench.widgets.freeze import Setup

SLICE_SECONDS = 0.05


class Comparison:
    """One run of every method of `setup`; `changed` is called, from any thread, after each estimate and each change.

    problem  called in the background for the problem, so that loading a model holds nobody up
    after    a comparison that is stopped, and waited for before this one draws
    """

    def __init__(
        self,
        problem: Callable[[], Any],
        setup: Setup,
        changed: Callable[[], None] = lambda: None,
        after: Comparison | None = None,
    ) -> None:
        self.setup = setup
        self.traces: dict[str, list[Estimate]] = {name: [] for name in setup.methods}
        self._problem, self._changed = problem, changed
        jobs = {name: partial(self._job, name) for name in setup.methods}
        turn = self._least_spent if setup.interleaved else _first
        if after is not None:
            after.stop()
        self.work = Background(jobs, turn, changed, after.work if after is not None else None)

    def start(self) -> None:
        self.work.start()

    @property
    def state(self) -> str:
        return self.work.state

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Each method's latest estimate, for those that have one."""
        return {name: trace[-1] for name, trace in self.traces.items() if trace}

    def share(self, name: str) -> float:
        """How much of its budget a method has used, in [0, 1]: that of the limit that is nearest."""
        if name not in self.work.unfinished:
            return 1.0
        estimate = self.estimates.get(name)
        if estimate is None:
            return 0.0
        limits = self.setup.budget_of(name).limits()
        return min(1.0, max(getattr(estimate.spend, unit) / limit for unit, limit in limits.items()))

    def stop(self) -> None:
        self.work.stop()

    def _job(self, name: str, between: Callable[[], bool]) -> None:
        def heard(estimate: Estimate) -> None:
            equal_spend.add(self.traces[name], estimate)
            self._changed()

        try:
            last = run(
                self._problem(),
                self.setup.methods[name],
                self.setup.budget_of(name),
                seed=self.setup.seed,
                between=between,
                slice_seconds=SLICE_SECONDS,
                callback=heard,
                progress=False,
            )
        except Exception as error:
            last = getattr(error, "estimate", None)
            if last is not None and last.n_samples:
                self.traces[name][-1:] = [last]
            raise
        self.traces[name][-1:] = [last]

    def _least_spent(self, names: Sequence[str]) -> str:
        return min(names, key=self.share)


def _first(names: Sequence[str]) -> str:
    return names[0]
