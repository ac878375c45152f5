"""A progress bar that shows the interval tightening: rich in a terminal, ipywidgets in Jupyter, else nothing."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

from workbench.budget import Budget, Spend
from workbench.estimate import Estimate


def somebody_is_looking() -> bool:
    if os.environ.get("WORKBENCH_HEADLESS"):
        return False
    return _in_jupyter() or sys.stderr.isatty()


def _in_jupyter() -> bool:
    """Whether this code runs in a kernel; that ipykernel is imported is not enough."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


_PATIENCE, _EVERY = 0.5, 0.1


class Progress:
    """Shows how much of the budget's tightest limit is used, and the interval so far.

    Appears after half a second, so that quick runs leave no trace, and asks for an update ten times a second.
    """

    def __init__(self, budget: Budget, wanted: bool | None) -> None:
        self.budget = budget
        self._wanted = somebody_is_looking() if wanted is None else wanted
        self._next = time.perf_counter() + _PATIENCE
        self._in_jupyter = _in_jupyter()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    @property
    def due(self) -> bool:
        """Whether an update would be shown now."""
        return self._wanted and time.perf_counter() >= self._next

    def update(self, estimate: Estimate, used: Spend) -> None:
        if not self.due:
            return
        self._next = time.perf_counter() + _EVERY
        bar = self._bar if self._bar is not None else self._begin()
        done = min(1.0, max(getattr(used, unit) / limit for unit, limit in self.budget.limits().items()))
        point = "unknown" if estimate.value is None else f"{estimate.value:.3g}"
        text = f"{point} [{estimate.low:.3g}, {estimate.high:.3g}]"
        if self._in_jupyter:
            bar.value, self._label.value = done, text
        else:
            bar.update(self._task, completed=done, description=text)

    def _begin(self) -> Any:
        if self._in_jupyter:
            import ipywidgets
            from IPython.display import display

            self._bar = ipywidgets.FloatProgress(min=0, max=1, layout={"width": "60%"})
            self._label = ipywidgets.Label()
            display(ipywidgets.HBox([self._bar, self._label]))
            return self._bar
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Bars(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("starting", total=1.0)
        return self._bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is None:
            return
        if self._in_jupyter:
            self._bar.bar_style = "success" if kind is None else "danger"
        else:
            self._bar.stop()
