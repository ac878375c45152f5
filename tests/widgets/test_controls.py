import math

import ipywidgets
import pytest

from workbench.errors import WorkbenchError
from workbench.widgets import Choice, Slider, Tick, controls


def test_short_forms_become_a_slider_a_choice_and_a_tick():
    assert controls.spec("n", (1, 9, 5)) == Slider(1, 9, 5)
    assert controls.spec("n", [1, 2]) == Choice([1, 2])
    assert controls.spec("n", True) == Tick(True)


@pytest.mark.parametrize(
    "bad", [(1, 2), (5, 1, 3), (3, 3, 3), (1, 5, 9), [], "n", (1, float("nan"), 3), (True, 5, 3), ("a", "b", "c"), None]
)
def test_a_control_that_makes_no_sense_is_refused(bad):
    with pytest.raises(WorkbenchError, match=r"^n is .* but must (be|offer) .*; .*\.$"):
        controls.spec("n", bad)


def test_a_refusal_says_what_is_wrong_with_the_range():
    with pytest.raises(WorkbenchError, match=r"low < high, here low is 5 and high 1; swap"):
        controls.spec("n", (5, 1, 3))
    with pytest.raises(WorkbenchError, match=r"a default from 1 to 5"):
        controls.spec("n", (1, 5, 9))
    with pytest.raises(WorkbenchError, match=r"n is 0 but must be greater than 0 .* log scale"):
        controls.spec("n", Slider(0, 10, 5, log=True))
    with pytest.raises(WorkbenchError, match=r"n's step is -1"):
        controls.spec("n", Slider(0, 10, 5, step=-1))


@pytest.mark.parametrize(
    ("asked", "slider", "field"),
    [
        ((1, 9, 5), ipywidgets.IntSlider, ipywidgets.BoundedIntText),
        ((1.0, 9, 5), ipywidgets.FloatSlider, ipywidgets.BoundedFloatText),
        (Slider(1, 10_000, 100, log=True), ipywidgets.FloatLogSlider, ipywidgets.BoundedIntText),
        (Slider(1e-4, 1.0, 0.01, log=True), ipywidgets.FloatLogSlider, ipywidgets.BoundedFloatText),
    ],
)
def test_a_slider_and_its_field_hold_one_value(asked, slider, field):
    control = controls.build("n", asked)
    box, drag = control.box.children
    assert (type(drag), type(box)) == (slider, field)
    seen = []
    control.observe(lambda change: seen.append(change["new"]))
    drag.value = 7 if not isinstance(drag, ipywidgets.FloatLogSlider) else drag.value * 1.23456
    assert box.value == control.value == seen[-1] and box.value == pytest.approx(drag.value, rel=0.01)
    assert isinstance(control.value, int) == (field is ipywidgets.BoundedIntText)
    box.value = 2 if asked != Slider(1e-4, 1.0, 0.01, log=True) else 0.2
    assert drag.value == pytest.approx(control.value)
    box.value = 1e9
    assert control.value == box.max == pytest.approx(drag.value)
    control.reset()
    assert control.value == control.default


def test_a_typed_value_between_two_steps_stays_as_typed():
    control = controls.build("x", (0.0, 1.0, 0.5))
    control.field.value = 0.3331
    assert control.value == 0.3331


def test_every_field_has_a_name_that_a_screen_reader_says():
    for asked in (
        Slider(1, 9, 5, label="tries", unit="per <query>"),
        Choice([1, 2], label="tries", unit="per <query>"),
    ):
        control = controls.build("n", asked)
        assert control.field.description == "tries (per <query>)" and not control.field.description_allow_html
    assert controls.build("n", Tick(True, label="uneven")).field.description == "uneven"


def test_states_are_told_in_words():
    assert controls.said(Slider(1, 10**6, 5, label="tries", unit="a query"), "n", 12_000) == "tries 12,000 (a query)"
    assert controls.said(Choice({"never": 0}, label="switch"), "s", 0) == "switch never"
    assert controls.said(Tick(label="uneven"), "u", False) == "not uneven"


@pytest.mark.parametrize(
    ("asked", "value"), [((1, 9, 5), 10), ((1, 9, 5), 2.5), ([1, 2], 3), (True, "yes"), ((1, 9, 5), "2")]
)
def test_a_value_that_a_control_does_not_have_is_refused(asked, value):
    with pytest.raises(WorkbenchError, match=r"^static n is .* but must be"):
        controls.admits("static n", controls.spec("n", asked), value)


@pytest.mark.parametrize(
    "asked",
    [
        (0.1, 2.0, 0.4),
        (0.5, 30.0, 4.0),
        (0.01, 0.5, 0.1),
        (0.0, 1.0, 0.123),
        Slider(1e-5, 0.1, 0.002, log=True),
        Slider(1, 10_000, 150, log=True),
    ],
)
def test_a_handle_that_the_page_moves_to_its_nearest_step_changes_no_value(asked):
    control = controls.build("x", asked)
    field, slider = control.box.children
    log = isinstance(slider, ipywidgets.FloatLogSlider)
    for typed in (control.default, control.default * 1.0371):
        field.value = typed
        held = control.value
        low, at = (slider.min, math.log10(slider.value)) if log else (slider.min, slider.value)
        rounded = low + round((at - low) / slider.step) * slider.step
        slider.value = 10**rounded if log else rounded
        assert control.value == held
    field.value = control.default
    at = math.log10(slider.value) if log else slider.value
    slider.value = 10 ** (at + slider.step) if log else at + slider.step
    assert control.value > control.default


@pytest.mark.parametrize("asked", [(0.1, 2.0, 0.4), (0.5, 30.0, 4.0), (0.01, 0.5, 0.1), (0.0, 20.0, 5.0)])
def test_a_slider_has_round_steps_that_its_default_lies_on(asked):
    slider = controls.build("x", asked).box.children[1]
    low, high, default = asked
    assert (default - low) / slider.step == pytest.approx(round((default - low) / slider.step))
    assert 100 <= (high - low) / slider.step + 1e-9 <= 2000
    assert f"{slider.step:.0e}"[0] in "125" and float(f"{slider.step:.0e}") == pytest.approx(slider.step)


def test_a_handle_in_the_hand_is_not_moved_to_the_whole_number_that_it_stands_for():
    control = controls.build("n", Slider(1, 10_000, 150, log=True))
    field, slider = control.box.children
    sent = []
    slider.observe(lambda change: sent.append(change["new"]), names="value")
    for at in (1.6, 1.3, 1.0):
        slider.value = at
    assert sent == [1.6, 1.3, 1.0] and control.value == 1
    field.value = 3
    assert slider.value == 3
