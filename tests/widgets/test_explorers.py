import math
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from IPython.display import HTML, Image

from workbench.budget import Spend
from workbench.errors import LacksCapability, WorkbenchError
from workbench.methods.conformal import batch_pi
from workbench.methods.decoding import best_of_majority as bom
from workbench.plots.calibration import Calibration, calibration_figure
from workbench.plots.proposals import proposal_figure
from workbench.plots.risk_compute import Price, RiskCurve, cost_in_words, risk_figure, tries_for
from workbench.plots.selection import selection_figure
from workbench.plots.tokens import token_table
from workbench.problems.event import ModelEvent, codeword_event
from workbench.problems.selection import arena
from workbench.streams import Stream
from workbench.widgets import (
    Slider,
    batch_calibration,
    codeword_questions,
    explore_calibration,
    explore_proposals,
    explore_risk,
    explore_tokens,
)
from workbench.widgets.calibration import ALPHAS
from workbench.widgets.proposals import grammar_question, proposal_view, token_view

explorer = sys.modules["workbench.widgets.explorer"]
GRID = np.geomspace(1, 10_000, 60)
STREAM = Stream.of(0, "explorers")


def power_law(a=0.5):
    risk = 1 - GRID**-a
    return RiskCurve(GRID, risk, low=np.maximum(risk - 0.05, 0), high=np.minimum(risk + 0.05, 1), truth=risk, seen=20)


def test_tries_for_a_target_invert_the_curve_and_its_band():
    curve = power_law()
    for target in (0.3, 0.6, 0.9):
        tries, low, high = tries_for(curve, target)
        assert np.interp(np.log(tries), np.log(GRID), curve.risk) == pytest.approx(target)
        assert np.interp(np.log(low), np.log(GRID), curve.high) == pytest.approx(target)
        assert np.interp(np.log(high), np.log(GRID), curve.low) == pytest.approx(target)
        assert low < tries < high
        assert tries == pytest.approx((1 - target) ** -2, rel=0.01)
    assert tries_for(curve, 0.995) == (math.inf, pytest.approx((1 - 0.945) ** -2, rel=0.01), math.inf)
    assert tries_for(RiskCurve(GRID, np.full(60, 0.5)), 0.4) == (1.0, 0.0, math.inf)


def test_a_try_costs_two_operations_a_parameter_and_token():
    cost = Price(tokens_per_try=200, usd_per_1000_tokens=0.002, parameters=8e9).of(1000)
    assert cost == Spend(tokens=200_000, flops=2 * 8e9 * 200_000, usd=0.4)
    assert cost_in_words(cost) == "200,000 tokens, 3.2e+15 FLOPs, 0.4 USD"
    with pytest.raises(WorkbenchError, match=r"tokens_per_try is -1 .* at least 0; pass e\.g\. 200"):
        Price(tokens_per_try=-1).of(1)


@pytest.mark.parametrize("unit", ["tokens", "flops", "usd"])
def test_the_figure_says_risk_budget_and_cost(unit):
    fig = risk_figure(power_law(), 100, 0.9, Price(), unit)
    said = fig.axes[0].get_title(loc="left")
    assert "N = 100: risk 90.0 %" in said and "20,000 tokens, 3.2e+14 FLOPs, 0.04 USD a query" in said
    assert re.search(r"90 % takes (99|100|101) tries", said)
    assert "not reached" in risk_figure(RiskCurve(GRID, np.full(60, 0.1)), 100, 0.9, Price()).axes[0].get_title("left")


def test_curves_that_make_no_sense_are_refused():
    with pytest.raises(WorkbenchError, match=r"(?s)tries is .* that rise; sort them"):
        RiskCurve(GRID[::-1], np.zeros(60))
    with pytest.raises(WorkbenchError, match=r"the shape of low is \(3,\) but must have the shape of tries, \(60,\)"):
        RiskCurve(GRID, np.zeros(60), low=np.zeros(3))
    with pytest.raises(WorkbenchError, match=r"risk\[0\] is nan"):
        RiskCurve(GRID, np.full(60, np.nan))
    with pytest.raises(WorkbenchError, match=r"unit is 'eur'"):
        risk_figure(power_law(), 100, 0.9, Price(), "eur")


@pytest.mark.parametrize("target", ["quantile", "count"])
def test_batch_curves_are_the_exact_ones_at_every_alpha(target):
    found = batch_calibration(200, 100, 0.1, 0.1, 4, target)
    zeta = 90 if target == "quantile" else 96
    ranks = [batch_pi.quantile_rank(200, 100, zeta, alpha) for alpha in ALPHAS.tolist()]
    np.testing.assert_array_equal(found.size * 200, ranks)
    kept = [batch_pi.coverage_law(rank, 200, 100)[zeta:].sum() for rank in ranks]
    np.testing.assert_allclose(found.kept, kept, rtol=1e-9)
    assert (found.kept >= 1 - found.alphas).all() and (np.diff(found.size) <= 0).all()
    x, law = found.law
    assert law.sum() == pytest.approx(1) and (np.diff(x) == -1).all() != (np.diff(x) == 1).all()
    held = law[x <= found.bar].sum() if found.below else law[x >= found.bar].sum()
    assert held == pytest.approx(found.kept[ALPHAS.searchsorted(0.1)])


def test_known_ranks_and_the_honest_refusal_of_small_sets():
    found = batch_calibration(200, 100, 0.1, 0.1, 4, "quantile")
    assert "score 188 of 200" in found.said and "0.902" in found.said and "(score 181) 0.588" in found.said
    small = batch_calibration(20, 100, 0.1, 0.1, 4, "quantile")
    assert "no bound: n = 20 is too few" in small.said and np.isinf(small.size[small.alphas <= 0.1]).all()
    assert (small.kept[small.alphas <= 0.1] == 1).all()
    assert len(calibration_figure(small, 0.1).axes) == 3


def test_the_bound_on_a_mean_keeps_its_promise_and_falls_with_alpha():
    found = batch_calibration(200, 100, 0.1, 0.1, 4, "mean")
    assert "n = 40, m = 10" in found.said
    assert (found.kept >= 1 - found.alphas).all() and (np.diff(found.size) <= 0).all()


def test_calibrations_that_make_no_sense_are_refused():
    with pytest.raises(WorkbenchError, match=r"eta is 5 but must be at least 0 and below m = 5"):
        batch_calibration(200, 5, 0.1, 0.1, 5, "count")
    with pytest.raises(WorkbenchError, match=r"target is 'median'"):
        batch_calibration(200, 5, 0.1, 0.1, 5, "median")
    with pytest.raises(WorkbenchError, match=r"(?s)alphas is .* in \(0, 1\) that rise"):
        Calibration(np.array([0.5, 0.1]), np.ones(2), np.ones(2))
    with pytest.raises(WorkbenchError, match=r"the shape of young is \(3,\)"):
        Calibration(np.array([0.1, 0.5]), np.ones(2), np.ones(2), groups={"young": np.ones(3)})


def test_the_view_of_a_proposal_says_what_its_draws_are_worth():
    question = codeword_questions()["f1 f2 f2"]
    fig = proposal_view(question, 5.0, 0.2, 1, 500, False, STREAM)
    said = fig.get_suptitle()
    ratio = question.ratios([5.0], 0.2, [1])[0, 0]
    assert f"500 draws count like {500 * ratio:,.0f} plain ones" in said
    image = fig.axes[1].images[0].get_array()
    assert image.shape == (len(question.strengths), len(question.switches))
    between = proposal_view(question, 5.5, 0.2, 1, 500, False, STREAM)
    assert between.axes[1].images[0].get_array().shape[0] == len(question.strengths) + 1
    assert "no hit has an end" in proposal_view(question, 5.0, 0.2, 1, 500, True, STREAM).get_suptitle()


def test_without_the_end_ratio_the_view_says_where_the_estimate_goes():
    question = codeword_questions()["20 words, X does not end them"]
    said = proposal_view(question, 3.0, 0.2, None, 200, True, STREAM).axes[0].get_title(loc="left")
    wrong = float(re.search(r"bring it to ([\d.e-]+),", said)[1])
    assert abs(wrong / question.event.truth - 1) > 0.05
    assert "bring it" not in proposal_view(question, 3.0, 0.2, None, 200, False, STREAM).axes[0].get_title(loc="left")


def test_a_map_of_another_shape_is_refused():
    with pytest.raises(WorkbenchError, match=r"the shape of ratios is \(2, 2\) but must have shape \(1, 2\)"):
        proposal_figure(
            np.zeros(3), np.ones(3, bool), np.ones((2, 2)), [1.0], ["1", "2"], at=(0, 0), value=1, std_error=0
        )


def test_tokens_are_escaped_numbered_and_reachable_by_keyboard():
    text = token_table(
        ["<script>", "b&c"],
        np.log([0.5, 0.2]),
        np.log([0.25, 0.8]),
        spent=np.array([4, 8]),
        hazard=np.array([0.1, 0.4, 1.0]),
        usd_per_1000_tokens=0.5,
        caption="a < b",
    )
    assert "<script>" not in text and "&lt;script&gt;" in text and "b&amp;c" in text and "a &lt; b" in text
    assert 'tabindex="0"' in text and 'scope="row"' in text and text.count('scope="col"') == 6
    cells = re.findall(
        r"</span>([+-][\d.]+)</td><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>", text
    )
    assert cells == [("+0.69", "2", "4", "0.002", "0.4"), ("-1.39", "0.5", "8", "0.004", "1")]
    left, right = re.findall(r"left:(\d+)%;width:(\d+)%", text)
    assert left == ("50", "25") and right == ("0", "50")


def test_tables_of_other_shapes_are_refused():
    with pytest.raises(WorkbenchError, match=r"the shape of hazard is \(1,\) but must be \(2,\)"):
        token_table(["a"], np.zeros(1), np.zeros(1), hazard=np.zeros(1))
    with pytest.raises(WorkbenchError, match=r"log_q\[0\] is -inf"):
        token_table(["a"], np.zeros(1), np.array([-np.inf]))


def test_a_generation_is_told_with_its_weight_its_spend_and_its_hazards():
    question = codeword_questions()["f1 f2 f2"]
    text = token_view(question, 5.0, 0.2, 1, 1, True, 0.002, STREAM).data
    assert "Hits the event." in text and "<td>1</td></tr></tbody>" in text and "comply" in text
    assert f"before the first token: {question.event.truth:.3g}" in text
    # The prompt's three tokens and one word, read by both models; the second word by the base model alone.
    assert re.findall(r"</td><td>(\d+)</td><td>[\d.e-]+</td><td>", text)[:2] == ["8", "9"]
    plain = token_view(question, 0.0, 0.2, 0, 3, False, 0.002, STREAM).data
    assert set(re.findall(r"</span>([+-][\d.]+)</td>", plain)) == {"+0.00"}


def test_a_selection_names_who_finds_the_right_answer():
    toy, rng = arena(), np.random.default_rng(0)
    counts = toy.counts(500, 1, rng)[0]
    chosen = {
        "majority voting": bom.majority_voting(counts, 3, rng=rng),
        "best-of-majority": bom.best_of_majority(counts, toy.proxy_rewards, 3, 0.0375, rng=rng),
    }
    fig = selection_figure(counts / 500, toy.proxy_rewards, {"all": (slice(None), "band")}, chosen, alpha=0.0375)
    said = [text.get_text() for text in fig.axes[0].texts]
    assert "majority voting misses y*" in said and "best-of-majority finds y*" in said and "alpha = 0.0375" in said


def show_risk(static=None):
    explore_risk(power_law, a=Slider(0.1, 2.0, 0.5, label="a"), static=static)


def show_calibration(static=None):
    explore_calibration(lambda alpha, n: batch_calibration(n, 100, alpha, 0.1, 4), n=(20, 400, 200), static=static)


def show_proposals(static=None):
    explore_proposals({"f1": grammar_question(codeword_event("grammar", (5, 6, 6)))}, STREAM, static=static)


def show_tokens(static=None):
    explore_tokens({"f1": grammar_question(codeword_event("grammar", (5, 6, 6)))}, STREAM)


EXPLORERS = {
    show_risk: ("a", 0.8),
    show_calibration: ("n", 100),
    show_proposals: ("steering strength", 2.0),
    show_tokens: ("steering strength", 2.0),
}


@pytest.mark.parametrize("show", EXPLORERS)
def test_headless_there_is_a_static_figure_and_no_widget(show, monkeypatch):
    found = []
    monkeypatch.setattr(explorer, "display", found.append)
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    show()
    assert [type(each) for each in found] == [HTML if show is show_tokens else Image]


@pytest.mark.parametrize("show", EXPLORERS)
def test_a_moved_slider_changes_what_is_shown(show, monkeypatch):
    found = []
    monkeypatch.setattr(explorer, "display", found.append)
    monkeypatch.delenv("WORKBENCH_HEADLESS", raising=False)
    show()
    _, left, right = found[0].children
    trouble, view = right.children
    fields = {row.children[0].description: row.children[0] for row in left.children[:-1]}
    before = bytes(view.value) if not isinstance(view.value, str) else view.value
    name, value = EXPLORERS[show]
    fields[name].value = value
    deadline = time.monotonic() + 10
    while view.value == before:
        assert not trouble.value and time.monotonic() < deadline
        time.sleep(0.01)


def test_an_event_that_cannot_be_steered_is_refused_in_one_sentence():
    event = codeword_event("grammar", (5, 6, 6))
    plain = ModelEvent(event.model, (5, 6, 6), event.judge, max_new_tokens=5, name="plain", stop_ids=(1,), truth=0.1)
    with pytest.raises(LacksCapability, match=r"^plain can't be steered, so it has no proposal; give"):
        explore_proposals({"plain": grammar_question(plain)}, STREAM)


def test_an_unknown_prompt_is_refused():
    with pytest.raises(WorkbenchError, match=r"static prompt is 'f9' but must be one of f1"):
        show_proposals(static=[{"prompt": "f9"}])


@pytest.mark.parametrize("headless", [True, False])
def test_the_example_for_contributors_runs(headless, monkeypatch):
    guide = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [example] = [block for block in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL) if "explore(" in block]
    found = []
    monkeypatch.setattr(explorer, "display", found.append)
    if headless:
        monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    else:
        monkeypatch.delenv("WORKBENCH_HEADLESS", raising=False)
    exec(compile(example, "CONTRIBUTING.md", "exec"), {})
    [shown] = found
    assert isinstance(shown, Image) == headless
    if headless:
        assert "law of the loss normal, level 0.9 (share" in shown.alt and "Next to it: level 0.99" in shown.alt


def test_a_control_that_the_curve_does_not_take_is_refused():
    with pytest.raises(WorkbenchError, match=r"power_law has no argument b, only a, .*; rename or remove"):
        explore_risk(power_law, a=(0.1, 2.0, 0.5), b=(0.1, 2.0, 0.5))
    with pytest.raises(WorkbenchError, match=r"batch_calibration's argument m has no control; add one, e\.g\. m="):
        explore_calibration(batch_calibration, n=(20, 400, 200), delta=(0.01, 0.5, 0.1), eta=(0, 9, 4))
