import io

import ipywidgets
import pytest
from IPython import display as ipython_display
from PIL import Image

import workbench as wb
from workbench import plots, widgets
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.problems.analytic import GaussianTail


def draw(n, name, dashed):
    fig, ax = plots.figure()
    plots.line(ax, range(n), [value**2 for value in range(n)], label=name, low=[0] * n, high=[n] * n)
    if dashed:
        plots.truth(ax, 4.0)
        plots.truth(ax, 1.0, vertical=True)
    ax.set(xlabel="n", ylabel="square")
    return fig


CONTROLS = {"n": (2, 9, 5), "name": ["one", "two"], "dashed": True}


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(widgets, "display", found.append)
    return found


def test_headless_shows_the_default_state_as_a_picture(shown, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    widgets.explore(draw, **CONTROLS)
    [picture] = shown
    assert isinstance(picture, ipython_display.Image)
    assert picture.data == plots.to_png(draw(5, "one", True))


def test_moving_a_control_redraws(shown, monkeypatch):
    monkeypatch.delenv("WORKBENCH_HEADLESS", raising=False)
    widgets.explore(draw, **CONTROLS)
    *boxes, picture = shown[0].children
    assert [type(box) for box in boxes] == [ipywidgets.IntSlider, ipywidgets.Dropdown, ipywidgets.Checkbox]
    before = picture.value
    boxes[0].value = 8
    assert picture.value == plots.to_png(draw(8, "one", True)) != before
    boxes[2].value = False
    assert picture.value == plots.to_png(draw(8, "one", False))


@pytest.mark.parametrize("bad", [(1, 2), (5, 1, 3), (1, 5, 9), [], "n"])
def test_a_control_that_makes_no_sense_is_refused(bad):
    with pytest.raises(WorkbenchError, match=r"n is .*low, high, default"):
        widgets.explore(draw, n=bad, name=["one"], dashed=False)


def test_figures_are_pictures_and_leave_nothing_behind():
    import matplotlib.pyplot as plt

    for _ in range(30):
        picture = Image.open(io.BytesIO(plots.to_png(draw(6, "one", True))))
    assert picture.width > 400 and picture.getextrema()[0][0] < 100
    assert plt.get_fignums() == []
    assert len(set(plots.COLORS.values())) == len(plots.COLORS)


def test_progress_appears_in_a_long_run_only(capsys, monkeypatch):
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
