"""A BudgetTuner in a real JupyterLab: moved by mouse and keyboard while it works, stopped, reopened, frozen."""

from __future__ import annotations

import re
import statistics
import time
from typing import Any

import pytest

from workbench.estimate import Estimate

from .jupyter import Notebook, drag, serious

SETUP = """
import workbench as wb
from workbench.methods.tail_risk.lm_tail_risk import ImportanceSampling
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.methods.tail_risk.saber import Saber
from workbench.problems.event import codeword_event
from workbench.widgets import BudgetTuner

toy = codeword_event("grammar", prompt=(5, 6, 6))
plain, weighted = MonteCarlo(), ImportanceSampling(5.0, 0.2, 1)
"""
TUNER = """
tuner = BudgetTuner({"toy": toy}, {"Monte Carlo": plain, "importance sampling": weighted, "SABER": Saber()}, wb.Budget(tokens=%s))
tuner
"""
LONG = "20_000_000"

# In the page, so that neither the test's own process nor its looking takes part in what is measured.
ANSWER = """async () => {
  const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel, began = performance.now();
  await kernel.requestExecute({code: "1 + 1", store_history: false}).done;
  return performance.now() - began;
}"""
PRESS = """async ([root, name, said]) => {
  const panel = document.querySelectorAll(root)[0];
  const button = () => [...panel.querySelectorAll("button")].find(button => button.textContent === name);
  // The kernel may still be reading what was typed before, and then press nothing.
  for (let tried = performance.now(); button().disabled && performance.now() - tried < 20000;)
    await new Promise(requestAnimationFrame);
  const began = performance.now();
  button().click();
  while (!panel.querySelector("[role=status]").textContent.startsWith(said)) {
    await new Promise(requestAnimationFrame);
    if (performance.now() - began > 20000) return null;
  }
  return performance.now() - began;
}"""


class Tuner:
    """The tuner that a cell shows."""

    def __init__(self, notebook: Notebook, cell: int) -> None:
        self.notebook, self.page = notebook, notebook.page
        self.root = notebook.output(cell).locator(".workbench")
        self.root.locator("[role=status]").wait_for()
        self.selector = f".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell[data-windowed-list-index='{cell}'] .workbench"

    @property
    def status(self) -> str:
        return self.root.locator("[role=status]").inner_text()

    def press(self, name: str, said: str) -> float:
        """Press a button; milliseconds until the status begins with `said`."""
        took = self.page.evaluate(PRESS, [self.selector, name, said])
        assert took is not None, f"after {name} the status is {self.status!r}"
        return took

    def wait(self, said: str, seconds: float = 60) -> None:
        self.page.wait_for_function(
            "([root, said]) => document.querySelector(root + ' [role=status]')?.textContent.startsWith(said)",
            arg=[self.selector, said],
            timeout=1000 * seconds,
        )

    @property
    def picture(self) -> str:
        return self.root.locator("img.workbench-figure").get_attribute("src") or ""

    def wait_for_another_picture(self, before: str) -> None:
        self.page.wait_for_function(
            "([root, before]) => document.querySelector(root + ' img.workbench-figure').src !== before",
            arg=[self.selector, before],
        )


@pytest.fixture
def tuner(lab):
    notebook = lab().write(SETUP, TUNER % LONG, "1 + 1")
    notebook.run_all()
    return Tuner(notebook, 1)


def test_moving_a_slider_moves_number_and_figure(tuner):
    limit = tuner.root.locator(".workbench-row", has_text="limit tokens")
    field, before = limit.locator("input[type=text]"), tuner.picture
    assert field.input_value() == "20_000_000"
    drag(limit.locator(".widget-slider"), 0.1)
    tuner.wait_for_another_picture(before)
    # A tenth of the way from 100 to 10 million tokens, in decades.
    tuner.page.wait_for_function("field => field.value.length === 3", arg=field.element_handle())
    small = int(field.input_value())
    assert 250 < small < 400
    tuner.press("Run", "Done")
    # By keyboard: a step of the slider, then an exact value.
    handle = limit.locator(".noUi-handle")
    assert handle.get_attribute("aria-label")
    handle.focus()
    tuner.page.keyboard.press("ArrowRight")
    tuner.page.wait_for_function("([field, was]) => field.value !== was", arg=[field.element_handle(), f"{small:_}"])
    field.fill("0")
    tuner.page.keyboard.press("Tab")
    tuner.root.get_by_text("Budget(tokens) is 0 but must be").wait_for()
    assert tuner.root.get_by_role("button", name="Run").is_disabled()
    field.fill("2e4")
    tuner.page.keyboard.press("Tab")
    tuner.root.get_by_text("Budget(tokens) is 0").wait_for(state="hidden")
    tuner.press("Run", "Done at 40,0")
    tuner.root.locator("td", has_text=re.compile("^20,0")).first.wait_for()
    tuner.notebook.lab.screenshot("done")
    # A second run in the middle of the first.
    field.fill("20_000_000")
    tuner.page.keyboard.press("Tab")
    tuner.press("Run", "Running")
    tuner.page.wait_for_timeout(500)
    field.fill("5_000")
    tuner.page.keyboard.press("Tab")
    tuner.root.get_by_role("button", name="Run").click()
    tuner.wait("Done at 10,0")
    tuner.page.wait_for_timeout(500)
    assert tuner.status.startswith("Done at 10,0")


def test_the_kernel_is_free_while_a_run_goes_and_stop_is_quick(tuner):
    tuner.press("Run", "Running")
    tuner.root.locator("table").wait_for()
    answers = [tuner.page.evaluate(ANSWER) for _ in range(25)]
    assert tuner.notebook.run(2) == "2" and tuner.status == "Running."
    tuner.press("Pause", "Paused at")
    held = tuner.status
    time.sleep(0.5)
    assert tuner.status == held
    tuner.press("Resume", "Running")
    stops = [tuner.press("Stop", "Stopped at")]
    for _ in range(4):
        tuner.press("Run", "Running")
        tuner.page.wait_for_timeout(700)
        stops.append(tuner.press("Stop", "Stopped at"))
    print(
        f"1 + 1: median {statistics.median(answers):.0f} ms, largest {max(answers):.0f} ms; "
        f"Stop: median {statistics.median(stops):.0f} ms, largest {max(stops):.0f} ms"
    )
    # The promise is 200 ms and 500 ms; a machine that does other things at the same time gets three times that, and one
    # answer of 25 may have met another process.
    assert statistics.median(answers) <= 200 and sorted(answers)[-2] <= 600
    assert statistics.median(stops) <= 500 and max(stops) <= 1500
    assert tuner.root.locator("table").is_visible()


def running(notebook: Notebook) -> list[str]:
    """Names of the background jobs that go on in the notebook's kernel."""
    code = "import threading; print([t.name for t in threading.enumerate() if t.name.startswith('workbench-') and t.name != 'workbench-latest'])"
    return notebook.page.evaluate(
        """async code => { const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        const asked = kernel.requestExecute({code, store_history: false}); let said = "";
        asked.onIOPub = message => { if (message.header.msg_type === "stream") said += message.content.text };
        await asked.done; return JSON.parse(said.replaceAll("'", '"')) }""",
        code,
    )


def test_clearing_the_output_stops_the_work_and_scrolling_away_does_not(lab):
    notebook = lab().write(SETUP, TUNER % LONG, *["print('a line\\n' * 60)"] * 6, "1 + 1")
    notebook.run_all()
    shown = Tuner(notebook, 1)
    shown.press("Run", "Running")
    notebook.cell(8)
    time.sleep(3)
    assert len(running(notebook)) == 2
    notebook.cell(1)
    assert Tuner(notebook, 1).status == "Running."
    # A second view, and only that one closed again.
    notebook.page.evaluate("() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 1 }")
    notebook.lab.run_command("notebook:create-output-view")
    notebook.page.locator(".jp-LinkedOutputView .workbench").wait_for()
    notebook.page.evaluate(
        "() => [...jupyterapp.shell.widgets('main')].find(w => w.content.node.querySelector('.jp-LinkedOutputView') || w.content.node.classList.contains('jp-LinkedOutputView')).close()"
    )
    time.sleep(2)
    assert len(running(notebook)) == 2
    notebook.lab.run_command("notebook:clear-all-cell-outputs")
    deadline = time.monotonic() + 10
    while running(notebook):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_tuners_at_once(lab):
    notebook = lab().write(SETUP, TUNER % LONG, TUNER % "20_000")
    notebook.run_all()
    one, two = Tuner(notebook, 1), Tuner(notebook, 2)
    one.press("Run", "Running")
    two.press("Run", "Done at 40,0")
    assert one.status == "Running."
    one.press("Stop", "Stopped")
    assert two.status.startswith("Done at 40,0")


def test_after_an_interrupt_a_restart_and_a_reopening_the_tuner_works(tuner):
    notebook = tuner.notebook
    tuner.press("Run", "Running")
    notebook.interrupt()
    assert tuner.press("Stop", "Stopped at") is not None
    tuner.root.locator("table").wait_for()
    again = notebook.reopen()
    shown = Tuner(again, 1)
    shown.root.locator("table").wait_for()
    assert shown.status.startswith("Stopped at")
    shown.press("Run", "Running")
    again.restart()
    again.run_all()
    fresh = Tuner(again, 1)
    assert fresh.status == "Ready. Press Run."
    fresh.press("Run", "Running")
    fresh.press("Stop", "Stopped at")
    # JupyterLab ends its connection before its widgets say that they are gone, and complains of that itself.
    faults = notebook.lab.faults.found
    faults[:] = [fault for fault in faults if not fault.startswith("console: Could not send widget sync message")]


def test_what_is_frozen_in_the_browser_gives_the_identical_estimate(lab):
    said = "print('\\n'.join(f'{name}: {estimate.to_json()}' for name, estimate in tuner.estimates.items()))"
    notebook = lab().write(SETUP, TUNER % LONG, said)
    notebook.run_all()
    shown = Tuner(notebook, 1)
    shown.press("Run", "Running")
    shown.root.locator("table").wait_for()
    shown.press("Stop", "Stopped at")
    shown.root.get_by_role("button", name="Freeze").click()
    line = shown.root.get_by_label("For the notebook's parameters cell").input_value()
    shown.root.get_by_role("button", name="Copy as code").click()
    code = shown.root.get_by_label("Python").input_value()
    told = dict(part.split(": ", 1) for part in notebook.run(2).splitlines())

    here: dict[str, Any] = {}
    exec(SETUP, here)
    exec(line, here)
    exec(code, here)
    frozen = here["tuned"]["stopped_at"]
    assert set(told) == set(frozen) == {"Monte Carlo", "importance sampling"}
    for name, estimate in here["estimates"].items():
        assert estimate.answer == Estimate.from_json(told[name]).answer and estimate.n_samples == frozen[name]


@pytest.mark.parametrize(("size", "dark"), [("laptop", False), ("laptop", True), ("desk", False), ("desk", True)])
def test_looks_and_axe(lab, size, dark):
    page = lab(size=size)
    notebook = page.write(SETUP, TUNER % "200_000")
    page.theme(dark)
    notebook.run_all()
    shown = Tuner(notebook, 1)
    shown.press("Run", "Done")
    shown.root.get_by_role("button", name="Freeze").click()
    shown.root.locator("textarea").first.wait_for()
    shown.root.evaluate("root => root.scrollIntoView()")
    page.page.wait_for_timeout(700)
    page.screenshot("frozen")
    assert serious(page.page, ".workbench") == []
