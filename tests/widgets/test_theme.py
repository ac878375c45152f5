import re

import pytest

from workbench import plots
from workbench.errors import DoesNotFit, WorkbenchError
from workbench.widgets import theme


def sheet():
    return theme.Style()._css


def test_an_error_is_one_escaped_sentence_with_its_details_folded():
    try:
        raise KeyError("<b>")
    except KeyError as error:
        text = theme.error_html(error, "Drawing <it> failed")
    sentence, details = text.split("<details>")
    assert 'role="alert">Drawing &lt;it&gt; failed: KeyError: &#x27;&lt;b&gt;&#x27;' in sentence
    assert "Traceback" not in sentence and "Traceback" in details and "<b>" not in text


@pytest.mark.parametrize("kind", [WorkbenchError, DoesNotFit])
def test_a_refusal_is_told_without_its_class(kind):
    sentence = theme.error_html(kind("n is 0 but must be at least 1; raise it."), "Running").split("<details>")[0]
    assert sentence.endswith("Running: n is 0 but must be at least 1; raise it.")


def test_a_picture_says_what_it_shows_and_takes_another():
    fig, ax = plots.figure()
    ax.set(xlabel="time, s", ylabel="risk", title="one run")
    said = theme.describe(fig, "n 5")
    assert said == "Figure: one run: risk against time, s. n 5."
    shown = theme.picture(fig, said)
    assert shown.tooltip == said and "workbench-figure" in shown._dom_classes
    before = bytes(shown.value)
    ax.plot([0, 1], [0, 1])
    theme.redraw(shown, fig, "another")
    assert bytes(shown.value) != before and shown.tooltip == "another"


def test_a_panel_brings_its_style_and_shows_its_children():
    children = [theme.ipywidgets.Label("one"), theme.ipywidgets.Label("two")]
    made = theme.panel(children)
    style, *rest = made.children
    assert isinstance(style, theme.Style) and rest == children and "workbench" in made._dom_classes
    assert "workbench-side" in theme.panel(children, side_by_side=True)._dom_classes


def test_colours_follow_the_theme_of_the_page_and_have_a_fallback_without_one():
    text = str(sheet())
    taken = re.findall(r"var\((--jp-[\w-]+)(,?)", text)
    assert taken and all(fallback for _, fallback in taken)
    assert '[data-jp-theme-light="false"]' in text


def contrast(one, other):
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_of_the_theme_can_be_read_on_light_and_dark():
    light, dark = "#ffffff", "#111111"
    text = str(sheet())
    for name, least in (("warn", 4.5), ("focus", 3.0)):
        first, second = re.findall(rf"--wb-{name}: (#\w{{6}})", text)
        assert contrast(first, light) >= least and contrast(second, dark) >= least


def test_a_rough_picture_leaves_the_figure_to_find_its_places_again():
    def drawn(title, label):
        fig, ax = plots.figure()
        ax.plot([0, 1], [0, 1e6])
        ax.set(title=title, ylabel=label)
        return fig

    fig, like = drawn("new\ntwo lines", "far"), drawn("old", "far")
    alone = theme.screen_png(drawn("new\ntwo lines", "far"))
    theme.screen_png(like)
    theme.rough_png(fig, like)
    assert fig.axes[0].yaxis.label.get_position() == like.axes[0].yaxis.label.get_position()
    assert theme.screen_png(fig) == alone
