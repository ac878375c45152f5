import io
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from IPython import display as ipython_display
from PIL import Image

import workbench as wb
from workbench import plots
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.problems.analytic import GaussianTail
from workbench.widgets import Slider, explore, theme


def draw(n, name, dashed):
    fig, ax = plots.figure()
    plots.line(ax, range(n), [value**2 for value in range(n)], label=name, low=[0] * n, high=[n] * n)
    if dashed:
        plots.truth(ax, 4.0)
        plots.truth(ax, 1.0, vertical=True)
    ax.set(xlabel="n", ylabel="square")
    return fig


explorer = sys.modules["workbench.widgets.explorer"]
CONTROLS = {"n": (2, 9, 5), "name": ["one", "two"], "dashed": True}


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(explorer, "display", found.append)
    monkeypatch.delenv("WORKBENCH_HEADLESS", raising=False)
    return found


def parts(panel):
    """The controls' fields by label, the view, the box for errors, the reset button."""
    _, left, right = panel.children
    *rows, reset = left.children
    fields = {}
    for row in rows:
        field = row.children[0]
        fields[field.description] = field
    trouble, view = right.children
    return fields, view, trouble, reset


def until(holds, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.005)


def width(view):
    return Image.open(io.BytesIO(bytes(view.value))).width


def test_headless_shows_the_default_state_as_a_picture_with_its_description(shown, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    explore(draw, **CONTROLS)
    [picture] = shown
    assert isinstance(picture, ipython_display.Image)
    assert picture.data == plots.to_png(draw(5, "one", True))
    assert picture.alt == "Figure: square against n. n 5, name one, dashed."


def test_headless_shows_up_to_three_states_side_by_side(shown, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    explore(draw, static=[{"n": 3}, {"n": 5}, {"n": 9, "name": "two"}], **CONTROLS)
    [picture] = shown
    alone = Image.open(io.BytesIO(plots.to_png(draw(5, "one", True))))
    w, h = alone.size
    rows = Image.open(io.BytesIO(picture.data))
    assert rows.size == (2 * w, 2 * h), "three in a row would be too wide to read"
    quarters = [rows.crop((x * w, y * h, (x + 1) * w, (y + 1) * h)) for y in (0, 1) for x in (0, 1)]
    assert len({quarter.tobytes() for quarter in quarters}) == 4
    assert quarters[3].getextrema() == ((255, 255),) * 3
    assert picture.alt.endswith("n 3, name one, dashed. Next to it: n 5, name one. Next to it: n 9, name two.")


def test_moving_a_control_redraws_off_the_main_thread_at_once_and_then_sharply(shown):
    drawn = []

    def watched(n, name, dashed):
        drawn.append((threading.current_thread() is threading.main_thread(), n, name, dashed))
        return draw(n, name, dashed)

    explore(watched, **CONTROLS)
    fields, view, _, reset = parts(shown[0])
    assert list(fields) == ["n", "name", "dashed"]
    assert drawn == [(True, 5, "one", True)] and view.value == plots.to_png(draw(5, "one", True), dpi=192)
    sharp, seen = width(view), []
    view.observe(lambda change: seen.append(change["new"]), names="value")
    fields["n"].value = 8
    until(lambda: len(seen) == 2)
    assert drawn[1:] == [(False, 8, "one", True)] and "n 8" in view.tooltip
    assert width(view) == sharp > 1.5 * Image.open(io.BytesIO(bytes(seen[0]))).width
    fields["dashed"].value = False
    until(lambda: len(seen) == 4)
    assert drawn[2:] == [(False, 8, "one", False)] and "not dashed" in view.tooltip
    reset.click()
    until(lambda: "n 5, name one, dashed" in view.tooltip)
    assert [field.value for field in fields.values()] == [5, "one", True]


def test_the_rough_picture_has_its_axes_where_the_last_one_had_them_and_leaves_the_figure_as_it_was():
    before, after, untouched = draw(5, "one", True), draw(8, "one", True), draw(8, "one", True)
    theme.screen_png(before)
    rough = theme.rough_png(after, like=before)
    assert after.axes[0].get_position().bounds == before.axes[0].get_position().bounds
    assert rough == theme.rough_png(after, like=before)
    theme.screen_png(after), theme.screen_png(untouched)
    assert after.axes[0].get_position().bounds == pytest.approx(untouched.axes[0].get_position().bounds, abs=0.005)
    assert after.axes[0].get_position().bounds != before.axes[0].get_position().bounds


def test_an_error_is_one_sentence_and_the_last_picture_stays(shown):
    def fragile(n):
        if n == 7:
            raise ValueError("no <b>sevens</b>\nhere")
        return draw(n, "one", True)

    explore(fragile, n=(2, 9, 5))
    fields, view, trouble, _ = parts(shown[0])
    before = view.value
    fields["n"].value = 7
    until(lambda: trouble.value)
    assert "ValueError: no &lt;b&gt;sevens&lt;/b&gt; here<details>" in trouble.value
    assert "<b>" not in trouble.value and view.value == before
    fields["n"].value = 6
    until(lambda: not trouble.value)
    assert view.value != before and "n 6" in view.tooltip


def test_what_is_drawn_may_be_text(shown):
    explore(lambda n: ipython_display.HTML(f"<p>{n}</p>"), n=(2, 9, 5))
    fields, view, _, _ = parts(shown[0])
    assert view.value == "<p>5</p>"
    fields["n"].value = 6
    until(lambda: view.value == "<p>6</p>")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"n": (2, 9, 5), "name": ["a"]}, r"draw's argument dashed has no control; add one, e\.g\. dashed="),
        ({**CONTROLS, "m": True}, r"draw has no argument m, only n, name, dashed, .* remove the control"),
        (
            {**CONTROLS, "n": Slider(2, 9, 5, label="name")},
            r"the label of name is 'name' but must differ from that of n",
        ),
        ({**CONTROLS, "static": [{"k": 3}]}, r"static is 'k' but must name controls only \(n, name, dashed\)"),
        ({**CONTROLS, "static": [{"n": 30}]}, r"static n is 30 but must be .* at most 9"),
        ({**CONTROLS, "static": [{"name": "tow"}]}, r"static name is 'tow' .* did you mean 'two'"),
        ({**CONTROLS, "static": [{}] * 4}, r"len\(static\) is 4 but must be at most 3; keep"),
    ],
)
def test_controls_that_do_not_fit_the_drawing_are_refused(asked, said):
    with pytest.raises(WorkbenchError, match=said):
        explore(draw, **asked)


def test_figures_are_pictures_and_leave_nothing_behind():
    import matplotlib.pyplot as plt

    for _ in range(30):
        picture = Image.open(io.BytesIO(plots.to_png(draw(6, "one", True))))
    assert picture.width > 400 and picture.getextrema()[0][0] < 100
    assert plt.get_fignums() == []
    assert len(set(plots.COLORS.values())) == len(plots.COLORS)


def test_progress_appears_in_a_long_run_only(capsys, monkeypatch):
    import ipykernel  # noqa: F401  (imported, as by a neighbour, but this is no kernel)

    from workbench import progress

    wb.run(GaussianTail(2.0), MonteCarlo(), wb.Budget(samples=100), progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    seen = []
    monkeypatch.setattr(progress.Progress, "_begin", lambda self: begin(self, seen))
    monkeypatch.setattr(progress.Progress, "_task", 0, raising=False)
    wb.run(GaussianTail(2.0), MonteCarlo(), wb.Budget(samples=1000), batch_size=100, progress=True)
    assert seen[0] == "begun" and seen[-1] == "stopped" and len(seen) == 12


def test_in_a_kernel_progress_is_a_widget_that_shows_the_interval(monkeypatch):
    import ipykernel  # noqa: F401

    from workbench import progress

    shown = []
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=True))
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    wb.run(GaussianTail(2.0), MonteCarlo(), wb.Budget(samples=1000), batch_size=100, progress=True)
    [box] = shown
    bar, label = box.children
    assert bar.value == 1.0 and bar.bar_style == "success" and label.value.startswith("0.0")


def begin(bar, seen):
    seen.append("begun")
    bar._bar = Recorder(seen)
    return bar._bar


class Recorder:
    def __init__(self, seen):
        self.seen = seen

    def update(self, task, completed, description):
        assert 0 < completed <= 1 and "[" in description
        self.seen.append(completed)

    def stop(self):
        self.seen.append("stopped")
