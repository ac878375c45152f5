"""What a BudgetTuner shows: controls, buttons, a live figure and table, and what was tuned as text to copy.

Does: drive a `Comparison` with what the controls say, redraw at most ten times a second on a thread of its
own, stop the work when the last view of it has gone.
Does not: decide what is compared, or write files.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets

from workbench.estimate import Estimate
from workbench.plots import to_rough_png
from workbench.widgets import equal_spend, theme
from workbench.widgets.comparison import Comparison
from workbench.widgets.equal_spend import amount
from workbench.widgets.freeze import Setup, ended_early
from workbench.widgets.latest import Latest
from workbench.widgets.tuner_controls import Controls

_REDRAW_SECONDS, _GONE_SECONDS = 0.1, 1.0


class Screen:
    """The widgets of one tuner; `root` is what to display.

    controls   what can be set
    problem    name -> the problem
    write      setup -> (Python, the parameter's line, the command)
    """

    def __init__(
        self,
        controls: Controls,
        problem: Callable[[str], Any],
        write: Callable[[Setup], tuple[str, str, str]],
    ) -> None:
        self._problem, self._write = problem, write
        self._run: Comparison | None = None
        self._lock = threading.RLock()
        self._next_redraw, self._closed = 0.0, False
        self._make_view()
        self._latest = Latest(self._compute, self._show, self._failed)
        self.controls = controls
        self.controls.observe(self._edited)
        left = ipywidgets.VBox(self.controls.boxes)
        left.add_class("workbench-controls")
        right = ipywidgets.VBox(self._view)
        right.add_class("workbench-view")
        self.root = theme.panel([left, right], side_by_side=True)
        # Counted by the browser from 0 on; None would mean that nobody counts.
        self.root._view_count = 0
        self.root.observe(self._views_changed, names="_view_count")

    @property
    def estimates(self) -> dict[str, Estimate]:
        return {} if self._run is None else self._run.estimates

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run has ended and the last picture stands."""
        run = self._run
        return (run is None or run.work.join(timeout)) and self._latest.wait(timeout)

    def close(self) -> None:
        """Stop the work and take the widgets off the page."""
        self._closed = True
        if self._run is not None:
            self._run.stop()
        self.root.close()

    # What is done

    def _make_view(self) -> None:
        def button(name: str, tooltip: str, pressed: Callable[[], None], style: str = "") -> Any:
            made = ipywidgets.Button(description=name, tooltip=tooltip, button_style=style, layout={"width": "auto"})
            made.on_click(lambda _: self._guarded(pressed))
            return made

        self._run_button = button(
            "Run", "Run the ticked methods; a run that goes on is stopped first", self.run, "primary"
        )
        self._pause_button = button("Pause", "Pause the run, or let it go on", self.pause)
        self._stop_button = button("Stop", "Stop the run and keep its estimates", self.stop)
        self._copy_button = button("Copy as code", "The Python calls that give these estimates", self.show_code)
        self._freeze_button = button("Freeze", "The line and the command that run this again", self.show_frozen)
        self._bars = ipywidgets.VBox()
        self._status, self._picture = ipywidgets.HTML(), theme.Picture(format="png")
        self._picture.add_class("workbench-figure")
        self._table, self._trouble, self._text = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        row = ipywidgets.HBox(
            [self._run_button, self._pause_button, self._stop_button, self._copy_button, self._freeze_button]
        )
        row.layout.flex_flow = "row wrap"
        self._view = [row, self._status, self._bars, self._text, self._trouble, self._picture, self._table]

    def _guarded(self, pressed: Callable[[], None]) -> None:
        try:
            pressed()
        except Exception as error:
            self._failed(error)

    def run(self) -> None:
        """Start a run with what the controls say; one that still goes on is stopped and waited for."""
        setup = self.controls.setup
        if setup is None or self._closed:
            return
        self._trouble.value = self._text.value = ""
        with self._lock:
            before = self._run
            run = Comparison(lambda: self._problem(setup.problem), setup, lambda: self._heard(run), before)
            self._run = run
            self._bars.children = [_bar(name) for name in setup.methods]
        run.start()
        self._heard(run)

    def pause(self) -> None:
        if self._run is not None:
            paused = self._run.state in ("paused", "pausing")
            (self._run.work.resume if paused else self._run.work.pause)()

    def stop(self) -> None:
        if self._run is not None:
            self._run.stop()

    def _edited(self) -> None:
        """Draw what depends on the controls."""
        self._tell()
        self._latest.submit(None)

    def _heard(self, run: Comparison) -> None:
        # What a run says that another has replaced is dropped.
        if run is self._run:
            self._tell()
            self._latest.submit(None)

    def _views_changed(self, change: Any) -> None:
        if not change["new"] and change["old"]:
            # A cell that is moved loses its view for a moment.
            timer = threading.Timer(_GONE_SECONDS, lambda: None if self.root._view_count else self.stop())
            timer.daemon = True
            timer.start()

    # What is shown

    def _tell(self) -> None:
        """The state in words and which buttons can be pressed."""
        with self._lock:
            run = self._run
            state = "ready" if run is None else run.state
            going = state in ("running", "pausing", "paused", "stopping")
            said = f'<div role="status" aria-live="polite">{html.escape(self._in_words(state))}</div>'
            if self._status.value != said:
                self._status.value = said
            ready = self.controls.setup is not None
            for part, usable in (
                (self._run_button, ready),
                (self._pause_button, going and state != "stopping"),
                (self._stop_button, going and state != "stopping"),
                (self._copy_button, ready),
                (self._freeze_button, ready),
            ):
                part.disabled = not usable
            self._pause_button.description = "Resume" if state in ("pausing", "paused") else "Pause"

    def _in_words(self, state: str) -> str:
        run = self._run
        if run is None or state in ("running", "pausing", "stopping"):
            return {"ready": "Ready. Press Run.", "running": "Running."}.get(state, f"{state.capitalize()}.")
        unit = str(self.controls.unit.value)
        spent = sum(getattr(estimate.spend, unit) for estimate in run.estimates.values())
        at = f"{state.capitalize()} at {amount(unit, spent)}" + (" in all." if len(run.traces) > 1 else ".")
        why = dict.fromkeys(estimate.stopped for estimate in run.estimates.values())
        return f"{at} {'; '.join(why).capitalize()}." if state == "done" else at

    def _compute(self, _: Any) -> tuple[bytes, str, str, dict[str, float], str]:
        time.sleep(max(0.0, self._next_redraw - time.monotonic()))
        began = time.monotonic()
        run, unit = self._run, str(self.controls.unit.value)
        # A model that could not be loaded is not tried again for a picture.
        name = self.controls.loaded if run is None else run.setup.problem
        truth = None if name is None else self._problem(name).truth
        traces = {} if run is None else {method: list(trace) for method, trace in run.traces.items()}
        figure = equal_spend.draw(traces, unit, truth, self.controls.limit())
        # Coarse while it goes on, so that most of the time is left to the run.
        going = run is not None and run.state == "running"
        png = to_rough_png(figure) if going else theme.screen_png(figure)
        shares = {} if run is None else {method: run.share(method) for method in run.traces}
        errors = {} if run is None else run.work.errors
        trouble = "".join(
            theme.error_html(error, f"{method} on {name} ended early") for method, error in errors.items()
        )
        # While it goes on at most a third of the time is spent on pictures; a slider that is moved waits for nothing.
        self._next_redraw = began + max(_REDRAW_SECONDS, 3 * (time.monotonic() - began)) if going else 0.0
        words = equal_spend.describe(traces, unit, truth)
        return png, words, equal_spend.table(traces, unit, truth), shares, trouble

    def _show(self, drawn: tuple[bytes, str, str, dict[str, float], str]) -> None:
        png, alt, table, shares, trouble = drawn
        if self._closed:
            return
        theme.swap(self._picture, png, alt)
        for part, text in ((self._table, table), (self._trouble, trouble)):
            if part.value != text:
                part.value = text
        for bar, share in zip(self._bars.children, shares.values(), strict=False):
            bar.children[1].value = share

    def _failed(self, error: Exception) -> None:
        self._trouble.value = theme.error_html(error, "This could not be shown, so the last picture stays")

    # What is taken away

    def frozen(self) -> Setup | None:
        """What the controls say, with the samples really absorbed where the run on screen is of that and ended early."""
        setup, run = self.controls.setup, self._run
        if setup is None or run is None or not setup.gives_what(run.setup):
            return setup
        return ended_early(setup, run.estimates)

    def show_code(self) -> None:
        setup = self.frozen()
        if setup is not None:
            self._text.value = _told(setup) + _copyable("Python", self._write(setup)[0])

    def show_frozen(self) -> None:
        setup = self.frozen()
        if setup is not None:
            _, line, command = self._write(setup)
            self._text.value = (
                _told(setup)
                + _copyable("For the notebook's parameters cell; BudgetTuner(..., tuned=tuned) begins with it", line)
                + _copyable("For the shell", command)
            )


def _bar(name: str) -> Any:
    label = ipywidgets.HTML(f"{html.escape(name)}, share of its budget", layout={"flex": "0 1 16rem"})
    return ipywidgets.HBox(
        [label, ipywidgets.FloatProgress(min=0, max=1, layout={"flex": "1 1 8rem", "width": "auto"})]
    )


def _told(setup: Setup) -> str:
    if not setup.stopped_at:
        return "<p>This gives the identical estimates.</p>"
    ends = ", ".join(f"{html.escape(name)} after {samples:,} samples" for name, samples in setup.stopped_at.items())
    return (
        f"<p>The run ended early or by the clock, which does not replay; so it is written with the samples that were "
        f"really used: {ends}. This gives the identical estimates.</p>"
    )


def _copyable(label: str, text: str) -> str:
    """A text to select, with a button that copies it where the browser lets it."""
    rows = min(14, sum(1 + len(line) // 60 for line in text.splitlines()))
    copy = "const t=this.parentElement.querySelector('textarea');t.select();navigator.clipboard&&navigator.clipboard.writeText(t.value);"
    return (
        f'<div class="workbench-copy"><label>{html.escape(label)}<br><textarea readonly spellcheck="false" rows="{rows}">{html.escape(text)}</textarea></label>'
        f'<button type="button" class="jupyter-button" onclick="{html.escape(copy)}">Copy</button></div>'
    )
