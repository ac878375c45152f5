"""The BudgetTuner without a browser: what its controls say is what is run, shown, stopped, frozen and refused."""

from __future__ import annotations

import gc
import html
import json
import re
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace

import psutil
import pytest
from matplotlib.figure import Figure

import workbench as wb
from workbench.errors import DoesNotFit, WorkbenchError
from workbench.methods.tail_risk.lm_tail_risk import CrossEntropy, ImportanceSampling
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.methods.tail_risk.saber import Saber
from workbench.problems.analytic import GaussianTail
from workbench.problems.event import codeword_event
from workbench.widgets import equal_spend, fields, tuner
from workbench.widgets.tuner import BudgetTuner

SOON = 30  # seconds; what is waited for takes tenths
ENDLESS = wb.Budget(samples=10**12)


@dataclass(frozen=True)
class Slow(GaussianTail):
    """A tail whose draws take a millisecond for each 8 samples, and may fail."""

    threshold: float = 1.0
    fail_at: int | None = None

    def sample(self, n, stream):
        if self.fail_at is not None and stream.first + n > self.fail_at:
            raise LookupError("no <such> sample")
        time.sleep(n / 8000)
        return super().sample(n, stream)


@pytest.fixture(autouse=True)
def somebody_is_looking(monkeypatch):
    monkeypatch.delenv("WORKBENCH_HEADLESS", raising=False)


@pytest.fixture
def made():
    tuners = []

    def make(*args, **kwargs):
        tuners.append(BudgetTuner(*args, **kwargs))
        return tuners[-1]

    yield make
    for each in tuners:
        each.close()
        each.wait(SOON)


def until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def status(shown):
    return re.sub("<.*?>", "", shown.screen._status.value)


def field(shown, name, method=None):
    """The text widget and the note of a field."""
    screen = shown.screen
    found = screen.controls.limits | screen.controls.risks | {"seed": screen.controls.seed}
    if method is not None:
        found = {each.name: each for each in screen.controls.settings[method]}
    parts = found[name].box.children
    return next(part for part in parts if type(part).__name__ == "Text"), parts[-1]


def test_a_run_gives_what_workbench_run_gives(made):
    problem = codeword_event("grammar", prompt=(5, 6, 6))
    methods = {"plain": MonteCarlo(), "weighted": ImportanceSampling(5.0, 0.2, 1), "chosen": CrossEntropy()}
    for interleaved in (True, False):
        shown = made({"toy": problem}, methods, wb.Budget(tokens=10_000), seed=4, interleaved=interleaved)
        shown.screen.run()
        assert shown.wait(SOON) and status(shown).startswith("Done at 3")
        for name, method in methods.items():
            mine = wb.run(problem, method, wb.Budget(tokens=10_000), seed=4)
            assert shown.estimates[name].answer == mine.answer and shown.estimates[name].stopped == mine.stopped
        table = shown.screen._table.value
        assert "at 10,000 tokens each" in table and "at 5,000 tokens each" in table
        assert f"{shown.estimates['chosen'].value:.4g}" in table and "truth" in table


def test_methods_in_turns_spend_alike(made):
    shown = made(Slow(), {"a": MonteCarlo(), "b": MonteCarlo(0.9)}, ENDLESS)
    shown.screen.run()
    until(lambda: len(shown.estimates) == 2 and shown.estimates["b"].n_samples > 2000)
    shown.screen.pause()
    until(lambda: status(shown).startswith("Paused at"))
    spent = sorted(estimate.n_samples for estimate in shown.estimates.values())
    # A slice of 50 ms holds some 400 samples, and at most a whole one lies between the two.
    assert spent[1] - spent[0] <= 800


def test_pause_resume_stop_and_the_last_estimate_stays(made):
    shown = made(Slow(), MonteCarlo(), ENDLESS)
    screen = shown.screen
    assert screen._pause_button.disabled and screen._stop_button.disabled
    screen.run()
    until(lambda: shown.estimates)
    screen.pause()
    until(lambda: status(shown).startswith("Paused at") and screen._pause_button.description == "Resume")
    held = shown.estimates["MonteCarlo"]
    time.sleep(0.15)
    assert shown.estimates["MonteCarlo"] is held
    screen.pause()
    until(lambda: shown.estimates["MonteCarlo"].n_samples > held.n_samples)
    assert status(shown) == "Running."
    began = time.perf_counter()
    screen.stop()
    until(lambda: status(shown).startswith("Stopped at"))
    assert time.perf_counter() - began < 0.5
    assert shown.wait(SOON) and screen._stop_button.disabled and not screen._run_button.disabled
    last = shown.estimates["MonteCarlo"]
    assert last.answer == wb.run(Slow(), MonteCarlo(), wb.Budget(samples=last.n_samples)).answer
    assert f"{last.value:.4g}" in screen._table.value and screen._picture.value[:4] == b"\x89PNG"


def test_a_second_run_ends_the_first_and_hears_nothing_of_it(made):
    shown = made(Slow(), MonteCarlo(), ENDLESS)
    screen = shown.screen
    screen.run()
    until(lambda: shown.estimates)
    first = screen._run
    field(shown, "samples")[0].value = "40"
    screen.run()
    assert shown.wait(SOON) and first.state == "stopped" and status(shown).startswith("Done at 40 samples")
    assert shown.estimates["MonteCarlo"].n_samples == 40
    first._changed()
    assert status(shown).startswith("Done at 40 samples")


def test_two_tuners_do_not_touch_each_other(made):
    one, two = made(Slow(), MonteCarlo(), ENDLESS), made(Slow(2.0), MonteCarlo(), wb.Budget(samples=300))
    one.screen.run()
    two.screen.run()
    assert two.wait(SOON) and one.screen._run.state == "running"
    assert two.estimates["MonteCarlo"].answer == wb.run(Slow(2.0), MonteCarlo(), wb.Budget(samples=300)).answer
    two.close()
    assert one.screen._run.state == "running"


def test_closing_the_last_view_stops_the_work(made, monkeypatch):
    monkeypatch.setattr("workbench.widgets.tuner_screen._GONE_SECONDS", 0.05)
    shown = made(Slow(), MonteCarlo(), ENDLESS)
    root = shown.widget
    assert root._view_count == 0
    root._view_count = 1
    shown.screen.run()
    root._view_count = 2
    root._view_count = 1
    root._view_count = 0
    root._view_count = 1  # as when a cell is moved
    time.sleep(0.2)
    assert status(shown) == "Running."
    root._view_count = 0
    until(lambda: status(shown).startswith("Stopped"))


def test_a_slider_moves_its_field_and_the_figure(made):
    shown = made(GaussianTail(2.0), MonteCarlo(), wb.Budget(samples=2000))
    assert shown.wait(SOON)
    before, text = shown.screen._picture.value, field(shown, "samples")[0]
    slider = next(
        part for part in shown.screen.controls.limits["samples"].box.children if "Slider" in type(part).__name__
    )
    slider.value = 50_000.0
    assert text.value == "50_000" and shown.screen.controls.setup.budget == wb.Budget(samples=50_000)
    assert shown.wait(SOON) and shown.screen._picture.value != before
    text.value = "12345"
    assert slider.value == 12345 and text.value == "12345"
    # A browser moves the slider to its nearest step.
    slider.value = 12400.0
    assert text.value == "12345"
    text.value = "5e9"
    assert shown.screen.controls.setup.budget == wb.Budget(samples=5 * 10**9)


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("samples", "0", r"Budget\(samples\) is 0 but must .*greater than 0; give a positive limit"),
        ("samples", "-5", r"Budget\(samples\) is -5 but must .*give a positive limit"),
        ("samples", "many", r"samples is 'many' but must be a finite number; type e.g. 20_000 or 2e4"),
        ("samples", "nan", r"samples is 'nan' but must be a finite number"),
        ("samples", "1.5", r"samples is '1.5' but must be a whole number; round it, e.g. 2"),
        ("level", "1.2", r"level is 1.2 but must .*less than 1; pass e.g. level=0.95"),
        ("seed", "-1", r"seed is -1 but must be a whole number at least 0"),
    ],
)
def test_a_value_that_cannot_be_run_is_told_under_its_field(made, name, typed, said):
    shown = made(GaussianTail(2.0), MonteCarlo(), wb.Budget(samples=2000))
    text, note = field(shown, name)
    right, text.value = text.value, typed
    assert re.search(said, html.unescape(note.value)) and shown.screen._run_button.disabled
    shown.screen.run()
    assert shown.estimates == {}
    text.value = right
    assert note.value == "" and not shown.screen._run_button.disabled


def test_a_setting_that_a_method_refuses_is_told_under_it(made):
    shown = made(codeword_event(), {"weighted": ImportanceSampling()}, wb.Budget(samples=100))
    text, note = field(shown, "mixture", "weighted")
    text.value = "1.5"
    assert "mixture is 1.5 but must" in html.unescape(note.value) and shown.screen.controls.setup is None
    text.value = "0.25"
    field(shown, "switch", "weighted")[0].value = "none"
    assert shown.screen.controls.setup.methods["weighted"] == replace(ImportanceSampling(), mixture=0.25, switch=None)


def test_no_limit_and_no_method_are_told(made):
    shown = made(GaussianTail(2.0), MonteCarlo(), wb.Budget(samples=2000))
    shown.screen.controls.ticks["MonteCarlo"].value = False
    assert shown.screen.controls.setup is None and shown.screen._run_button.disabled
    shown.screen.controls.ticks["MonteCarlo"].value = True
    limit = shown.screen.controls.limits["samples"].box.children[0]
    limit.value = False
    assert shown.screen.controls.setup is None
    limit.value = True
    assert shown.screen.controls.setup is not None


def test_a_method_that_cannot_answer_is_greyed_with_the_reason(made):
    shown = made(
        {"tail": GaussianTail(2.0), "many": wb_population()}, {"plain": MonteCarlo(), "saber": Saber()}, ENDLESS
    )
    screen = shown.screen
    assert (
        screen.controls.ticks["saber"].disabled
        and "Saber needs a Best-of-N problem" in screen.controls.reasons["saber"].value
    )
    assert list(screen.controls.setup.methods) == ["plain"]
    screen.controls.pick.value = "many"
    assert not screen.controls.ticks["saber"].disabled and screen.controls.ticks["plain"].disabled
    assert list(screen.controls.setup.methods) == ["saber"]


def wb_population():
    from workbench.problems.best_of_n import BetaPopulation

    return BetaPopulation()


def test_a_model_that_does_not_fit_is_told_in_its_sentence(made):
    asked = []

    def large():
        asked.append(0)
        raise DoesNotFit("large needs 40 GB but 8 GB are free; load it with dtype='int4'.")

    shown = made({"small": GaussianTail(2.0), "large": large}, MonteCarlo())
    shown.screen.controls.pick.value = "large"
    assert "large needs 40 GB" in shown.screen.controls.pick_note.value and shown.screen._run_button.disabled
    assert "DoesNotFit" not in shown.screen.controls.pick_note.value.partition("<details>")[0]
    assert shown.wait(SOON) and len(asked) == 1 and shown.screen._trouble.value == ""
    shown.screen.controls.pick.value = "small"
    assert shown.screen.controls.pick_note.value == "" and not shown.screen._run_button.disabled


def test_an_error_in_a_run_is_one_sentence_and_the_estimate_stays(made):
    shown = made({"slow": Slow(fail_at=500)}, {"a": MonteCarlo(), "b": MonteCarlo(0.9)}, wb.Budget(samples=5000))
    shown.screen.run()
    assert shown.wait(SOON) and status(shown).startswith("Failed at")
    sentence, _, details = shown.screen._trouble.value.partition("<details>")
    assert "LookupError: no &lt;such&gt; sample" in sentence and "Traceback" not in sentence
    assert "Traceback" in details and "<such>" not in details
    assert (
        0 < shown.estimates["a"].n_samples <= 500 and f"{shown.estimates['a'].value:.4g}" in shown.screen._table.value
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"budget": wb.Budget()}, "budget is Budget\\(\\) but must be a Budget with at least one limit; write e.g."),
        ({"budget": 500}, "budget is 500 but must be a Budget"),
        ({"ranges": {"tokens": (100, 10)}}, r"ranges\['tokens'\] is \(100, 10\) but must rise from low to high; swap"),
        ({"ranges": {"tokens": (0, 10)}}, r"ranges\['tokens'\]\[0\] is 0 but must .*greater than 0"),
        ({"ranges": {"token": (1, 10)}}, "did you mean 'tokens'"),
        ({"ranges": {"tokens": 5}}, r"ranges\['tokens'\] is 5 but must be \(low, high\)"),
        ({"seed": -1}, "seed is -1 but must be a whole number at least 0 .*; pass a whole number such as seed=0"),
        ({"estimators": []}, "estimators is \\[\\] but must hold at least one"),
        ({"estimators": [MonteCarlo(), MonteCarlo()]}, "names 'MonteCarlo' twice"),
        ({"estimators": {"plain": MonteCarlo}}, r"estimators\['plain'\] is 'type' but must be a frozen dataclass"),
        ({"tuned": {"bugdet": {}}}, "did you mean 'budget'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments, said):
    with pytest.raises(WorkbenchError, match=said):
        BudgetTuner(**{"problem": GaussianTail(2.0), "estimators": MonteCarlo()} | arguments)


def test_a_hundred_updates_leave_nothing_behind(made, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr("workbench.widgets.theme._SHARP_DPI", 60)  # a tenth of the pixels, for a test that is quick

    shown = made(GaussianTail(2.0), {"a": MonteCarlo(), "b": MonteCarlo(0.9)}, wb.Budget(samples=500))
    screen = shown.screen
    screen.run()
    assert shown.wait(SOON)

    def redraw(times):
        for _ in range(times):
            screen._show(screen._compute(None))
            screen._next_redraw = 0.0
        gc.collect()

    redraw(20)
    threads, memory = threading.active_count(), psutil.Process().memory_info().rss
    figures = sum(issubclass(type(thing), Figure) for thing in gc.get_objects())
    redraw(100)
    # A figure holds half a megabyte of pixels, and its artists as much again: a hundred kept ones are over 100 MB.
    assert psutil.Process().memory_info().rss - memory < 60e6
    assert threading.active_count() <= threads and plt.get_fignums() == []
    assert sum(issubclass(type(thing), Figure) for thing in gc.get_objects()) <= figures


def test_a_trace_stays_bounded_and_keeps_both_ends():
    trace = []
    for n in range(5000):
        equal_spend.add(trace, wb.Estimate(value=0.5, low=0.0, high=1.0, n_samples=n, spend=wb.Spend(samples=n)))
    assert len(trace) <= 401 and trace[0].n_samples == 0 and trace[-1].n_samples == 4999
    assert sorted(trace, key=lambda estimate: estimate.n_samples) == trace


def test_equal_spend_reads_what_had_been_said_by_then():
    def trace(*spends):
        return [wb.Estimate(value=0.5, low=0.0, high=1.0, spend=wb.Spend(tokens=spent)) for spent in spends]

    found = equal_spend.rows({"a": trace(3, 40, 99, 101, 700), "b": trace(10, 199, 230)}, "tokens")
    assert [(row.point, row.method, row.spent) for row in found] == [
        (None, "a", 700),
        (None, "b", 230),
        (200.0, "a", 101),
        (200.0, "b", 199),
        (100.0, "a", 99),
        (100.0, "b", 10),
    ]
    assert equal_spend.rows({"a": [], "b": []}, "tokens") == []
    table = equal_spend.table({"<a>": trace(5)}, "tokens", 0.5)
    assert "&lt;a&gt;" in table and "<a>" not in table


@pytest.mark.parametrize(
    ("text", "value"),
    [("20_000", 20_000), ("2e4", 20_000), ("20,000", 20_000), (" 7 ", 7), (str(2**62 + 1), 2**62 + 1)],
)
def test_a_field_reads_exact_values(text, value):
    assert fields.parse("n", text, whole=True) == value
    assert fields.parse("n", fields.show(value), whole=True) == value or value > 1e15
    assert fields.parse("x", fields.show(1 / 3), whole=False) == 1 / 3


@pytest.fixture
def displayed(monkeypatch):
    found = []
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    monkeypatch.setattr(tuner, "display", lambda thing, **_: found.append(thing))
    return found


def test_headless_shows_a_figure_at_once(displayed):
    began = time.perf_counter()
    shown = BudgetTuner(
        {"slow": Slow()}, {"a": MonteCarlo(), "b": MonteCarlo(0.9), "saber": Saber()}, ENDLESS, tuned={}
    )
    shown._ipython_display_()
    assert time.perf_counter() - began < 3 * (0.6 + 1)
    picture, table = displayed
    assert picture.data[:4] == b"\x89PNG" and "a says 0.1" in picture.alt and "saber" not in table.data
    assert threading.active_count() == len(threading.enumerate()) and shown._screen is None


def test_what_was_frozen_on_screen_is_what_a_headless_run_gives(made, displayed, monkeypatch):
    problem, methods = codeword_event("grammar", prompt=(5, 6, 6)), {"plain": MonteCarlo(), "chosen": CrossEntropy()}
    monkeypatch.delenv("WORKBENCH_HEADLESS")
    shown = made({"toy": problem}, methods, wb.Budget(tokens=10**9), seed=2)
    field(shown, "level")[0].value = "0.9"
    field(shown, "particles", "chosen")[0].value = "40"
    shown.screen.run()
    until(lambda: shown.estimates.get("chosen") and shown.estimates["chosen"].value is not None)
    shown.screen.stop()
    assert shown.wait(SOON)
    shown.screen.show_frozen()
    line = html.unescape(re.search(r"<textarea.*?>(tuned = .*?)</textarea>", shown.screen._text.value)[1])
    assert "seconds do not replay" in shown.screen._text.value or "does not replay" in shown.screen._text.value
    namespace = {}
    exec(line, namespace)
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    again = BudgetTuner({"toy": problem}, methods, tuned=namespace["tuned"])
    again._ipython_display_()
    told = dict(part.split(": ", 1) for part in displayed[-1]["text/plain"].splitlines())
    for name, estimate in shown.estimates.items():
        assert wb.Estimate.from_json(told[name]).answer == estimate.answer == again.estimates[name].answer
        assert json.loads(told[name])["level"] == 0.9
    # What is shown, and in which order the methods work, is not what was run.
    shown.screen.controls.unit.value = "samples"
    shown.screen.controls.turns.value = False
    assert shown.screen.frozen().stopped_at == namespace["tuned"]["stopped_at"]
    # On screen it begins with what was frozen, and a run ends where that one ended.
    monkeypatch.delenv("WORKBENCH_HEADLESS")
    back = made({"toy": problem}, methods, tuned=namespace["tuned"])
    back.screen.run()
    assert back.wait(SOON)
    assert {n: e.answer for n, e in back.estimates.items()} == {n: e.answer for n, e in shown.estimates.items()}
    assert back.screen.frozen().stopped_at == namespace["tuned"]["stopped_at"]
    field(back, "seed")[0].value = "3"
    assert back.screen.frozen().stopped_at == {}


TOML = """
title = "A tuner in small"
authors = ["A. Author"]
year = 2026
family = "conformal"
kind = "method"
status = "ready"
summary = "A small paper."

[[claims]]
id = "C1"
statement = "A statement"
source = "Table 1"
paper = "7"
mode = "exact"
measure = "a number"
passes = ">= 3"
bar = "theory"
"""
CELLS = [
    "import workbench as wb\nfrom workbench.methods.tail_risk.lm_tail_risk import CrossEntropy\n"
    "from workbench.methods.tail_risk.monte_carlo import MonteCarlo\nfrom workbench.problems.event import codeword_event\n"
    "from workbench.widgets import BudgetTuner\n"
    "paper = wb.paper('small', scale=scale, seed=seed, control=control)",
    "toy, methods = codeword_event('grammar', prompt=(5, 6, 6)), {\"Monte Carlo's\": MonteCarlo(), 'chosen': CrossEntropy()}\n"
    "tuner = BudgetTuner({'toy': toy}, methods, wb.Budget(tokens=10**9), paper=paper, tuned=tuned)\ntuner",
    "paper.measure('C1', 7.0)",
]


def test_frozen_parameters_rerun_by_the_command_give_the_identical_estimate(made, tmp_path, monkeypatch):
    """As a person does it: tune, stop, copy the command into a shell."""
    import nbformat

    folder = tmp_path / "notebooks" / "conformal"
    folder.mkdir(parents=True)
    (tmp_path / "datasets").mkdir()
    (folder / "small.toml").write_text(TOML)
    parameters = nbformat.v4.new_code_cell(
        "scale = 'quick'\nseed = 0\ncontrol = False\ntuned = {}", metadata={"tags": ["parameters"]}
    )
    notebook = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, CELLS)])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, folder / "small.ipynb")
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_KERNELS", "ordinary")

    namespace = {"scale": "quick", "seed": 5, "control": False, "tuned": {}}
    for cell in CELLS[:2]:
        exec(cell, namespace)
    shown = namespace["tuner"]
    field(shown, "particles", "chosen")[0].value = "40"
    field(shown, "level")[0].value = "0.9"
    shown.screen.run()
    until(lambda: shown.estimates.get("chosen") and shown.estimates["chosen"].value)
    shown.close()
    assert shown.wait(SOON)
    _, _, command = shown._freeze(shown.screen.frozen())
    assert command.startswith("workbench reproduce small --seed 5 --set ")

    script = f"{shlex.quote(sys.executable)} -m {command} --out {shlex.quote(str(tmp_path / 'runs'))}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [ran] = (tmp_path / "runs").glob("2*/**/small*.ipynb")
    texts = [
        o.data.get("text/plain", "") for c in nbformat.read(ran, 4).cells for o in c.get("outputs", []) if "data" in o
    ]
    [told] = [text for text in texts if text.startswith("Monte Carlo's: ")]
    for line in told.splitlines():
        name, _, estimate = line.partition(": ")
        assert wb.Estimate.from_json(estimate).answer == shown.estimates[name].answer
    assert len(told.splitlines()) == 2


def test_a_handle_that_is_held_is_not_moved_to_its_rounded_value():
    made_field = fields.number("tokens", "tokens", 20_000_000, 100, 1e7, log=True, whole=True)
    text, slider, _ = made_field.box.children
    slider.value = 302.4
    assert text.value == "302" and slider.value == 302.4
    text.value = "5_000"
    assert slider.value == 5000
