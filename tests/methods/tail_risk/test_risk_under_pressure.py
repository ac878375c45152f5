"""Risk against compute: costs and metrics against hand work and closed forms, Kaplan-Meier against its peer, traps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from statsmodels.duration.survfunc import SurvfuncRight

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import risk_under_pressure as rup
from workbench.methods.tail_risk.risk_under_pressure_trials import (
    Price,
    Trials,
    book_transfer,
    query_costs,
    read_trials,
    simulated_trials,
)

STREAM = Stream.of(4, "risk-under-pressure-test")
LINE: dict[str, Any] = {
    "prompt_id": "a",
    "category": "c",
    "steps": [
        {"n_prompt_tok": 100, "n_resp_tok": 50, "judgment": 0},
        {"n_prompt_tok": 200, "n_resp_tok": 50, "judgment": 1},
    ],
}
FAILED = {"prompt_id": "b", "category": "d", "steps": [{"n_prompt_tok": 10, "n_resp_tok": 0, "judgment": 0}] * 3}


def two() -> Trials:
    return read_trials([LINE, FAILED], budget=3)


def test_step_costs_are_those_worked_by_hand():
    trials = two()
    template = Price("template", 0.5, judge=8.0)
    first = 2 * 0.5 * 150 / 1000 + 2 * 8 * 152 / 1000
    assert template.steps(trials)[0] == pytest.approx([first, 0.25 + 2 * 8 * 252 / 1000, 0])
    iterative = Price("iterative", 0.5, judge=0, attacker=7.62, attacker_reads=300)
    assert iterative.steps(trials)[0, 0] == pytest.approx(0.15 + 2 * 7.62 * 400 / 1000)
    gradient = Price("gradient", 0.5, judge=0, reference=20)
    assert gradient.steps(trials)[0, 0] == pytest.approx(0.15 + (3 + 128) * 2 * 0.5 * 120 / 1000)
    surrogate = Price("gradient", 0.5, judge=0, reference=20, optimised=0.1)
    assert surrogate.steps(trials)[0, 0] == pytest.approx(0.15 + 131 * 2 * 0.1 * 120 / 1000)


def test_a_judge_reads_no_more_than_it_is_given():
    long = read_trials([LINE | {"steps": [{"n_prompt_tok": 9000, "n_resp_tok": 9000, "judgment": 1}]}], budget=1)
    assert Price("template", 1, judge=8.0).parts(long)["judge"][0, 0] == pytest.approx(2 * 8 * (250 + 375 + 2) / 1000)


def test_curve_charges_only_steps_that_were_run():
    trials = two()
    curve = rup.pressure_curve(trials, query_costs(trials), levels=(0, 1, 2, 3), resamples=50)
    assert curve.risk.tolist() == [0, 0, 0.5, 0.5] and curve.cost.tolist() == [0, 1, 2, 2.5]
    flat = rup.pressure_curve(trials, np.ones((2, 3)), levels=(0, 1, 2, 3), resamples=50)
    assert flat.cost.tolist() == curve.cost.tolist(), "a price on steps that were not run changes nothing"
    assert (curve.low <= curve.risk).all() and (curve.risk <= curve.high).all()


def test_metrics_are_those_worked_by_hand():
    risk, cost = np.array([0, 0.2, 0.4, 0.5]), np.array([0, 1.0, 3.0, 6.0])
    curve = rup.Curve(np.array([0, 1, 2, 4]), risk, cost, risk, risk)
    found = rup.metrics(curve, taus=(0.2, 0.3, 0.5, 0.8), at=(2, 10))
    log = np.log10(cost + 1)
    area = sum((log[i + 1] - log[i]) * (risk[i] + risk[i + 1]) / 2 for i in range(3))
    expected = {"C@0.2": 1, "C@0.3": 2, "C@0.5": 6, "C@0.8": np.inf, "AE": 1 / 12, "EE": 0.4 / 3, "ER": 0.8}
    expected |= {"CAURC": 2.05, "log-CAURC": area, "R@2": 0.3, "R@10": 0.5, "AURC": 1.3, "ASR": 0.5}
    assert found == pytest.approx(expected, rel=1e-7)
    assert rup.compute_to([0.3, 0.5], [0, 1], 0.2) == 0


def test_infinite_costs_are_not_averaged_away():
    found = rup.over_seeds([2.0, 4.0, np.inf, np.inf])
    assert found.mean == 3 and found.infinite == 0.5 and found.low is not None and found.low < 3
    assert found.sd == pytest.approx(np.sqrt(2))
    assert rup.over_seeds([np.inf]) == (None, None, None, None, 1.0)
    assert rup.over_seeds([1.0]).low is None, "one seed has no spread"


@pytest.mark.parametrize("p, step_cost", [(0.1, 5.0), (0.4, 1.0)])
def test_equal_prompts_give_a_straight_line_at_any_pressure(p, step_cost):
    risk, cost = rup.expected_curve(range(11), step_cost, p=p)
    assert risk[1:] / cost[1:] == pytest.approx(p / step_cost)
    assert rup.compute_to(risk, cost, 0.3) == pytest.approx(0.3 * step_cost / p)
    assert np.trapezoid(risk, cost) == pytest.approx(risk[-1] * cost[-1] / 2)
    trials = simulated_trials(np.full(20_000, p), 10, STREAM.child("line", p))
    curve = rup.pressure_curve(trials, step_cost * query_costs(trials), levels=range(11), resamples=20)
    assert curve.risk == pytest.approx(risk, abs=0.02) and curve.cost == pytest.approx(cost, rel=0.03)


def test_unlike_prompts_bend_the_line_as_the_closed_form_says():
    risk, cost = rup.expected_curve(range(11), 1.0, beta=(0.7, 2.0))
    bend = rup.average_efficiency(risk, cost, 1) / rup.average_efficiency(risk, cost)
    assert bend == pytest.approx(1.787, abs=5e-4)
    chance = STREAM.child("beta").generator().beta(0.7, 2.0, 40_000)
    trials = simulated_trials(chance, 10, STREAM.child("bend"))
    curve = rup.pressure_curve(trials, query_costs(trials), levels=range(11), resamples=20)
    assert curve.risk == pytest.approx(risk, abs=0.015) and curve.cost == pytest.approx(cost, rel=0.02, abs=1e-9)


def test_budget_curve_is_kaplan_meiers_of_a_peer():
    rng = STREAM.child("km").generator()
    trials = simulated_trials(rng.beta(1, 4, 300), 6, STREAM.child("km", "trials"))
    costs = query_costs(trials) * (rng.integers(1, 12, (300, 1)) / 4)
    at, risk = rup.budget_curve(trials, costs)
    peer = SurvfuncRight(costs.sum(axis=1), trials.success.astype(int))
    kept = [np.flatnonzero(np.isclose(peer.surv_times, c))[0] for c in at[1:]]
    assert risk[1:] == pytest.approx(1 - np.asarray(peer.surv_prob)[kept])


def test_budget_curve_of_equal_steps_is_geometric_and_not_the_mean_cost_curve():
    trials = simulated_trials(np.full(20_000, 0.2), 10, STREAM.child("geometric"))
    at, risk = rup.budget_curve(trials, query_costs(trials))
    assert at.tolist() == list(range(11))
    assert risk == pytest.approx(1 - 0.8**at, abs=0.02)


def test_categories_and_their_permutations():
    chance = np.repeat([0.6, 0.05], 400)
    trials = simulated_trials(chance, 10, STREAM.child("groups"))
    label, costs = np.repeat([0, 1], 400), query_costs(trials)
    found = rup.category_costs(trials, costs, 0.5, label, unreached=20.0)
    assert found == pytest.approx([0.5 / 0.6, 20.0], rel=0.1), "1 - 0.95^10 = 0.40 stays below 0.5"
    mixed = rup.category_costs(trials, costs, 0.5, np.tile([0, 1], 400), unreached=20.0)
    assert found[1] / found[0] > 5 > mixed.max() / mixed.min()
    curves = rup.by_category(two(), query_costs(two()), levels=(0, 1, 3))
    assert curves["c"].risk.tolist() == [0, 0, 1] and curves["d"].risk.tolist() == [0, 0, 0]


def test_a_transfers_search_is_paid_once_and_can_be_shared():
    costs = np.ones((2, 3))
    assert book_transfer(costs, [6.0, 0.0]).tolist() == [[7, 1, 1], [1, 1, 1]]
    assert book_transfer(costs, 6.0, targets=3)[0, 0] == 3 and costs[0, 0] == 1


def test_a_jsonl_file_is_read(tmp_path):
    (tmp_path / "trials.jsonl").write_text(json.dumps(LINE) + "\n\n" + json.dumps(FAILED) + "\n")
    found = read_trials(tmp_path / "trials.jsonl", budget=3)
    assert found.ran.tolist() == [2, 3] and found.success.tolist() == [True, False]
    assert found.categories == ("c", "d") and found.prompt_tokens[0].tolist() == [100, 200, 0]


def test_resampled_curves_weigh_prompts():
    trials = two()
    risk, cost = rup.resampled_curves(trials, query_costs(trials), np.array([[2, 0], [1, 1]]), levels=(0, 2, 3))
    assert risk.tolist() == [[0, 1, 1], [0, 0.5, 0.5]] and cost[0].tolist() == [0, 2, 2]


STEP = LINE["steps"][0]


@pytest.mark.parametrize(
    "lines, budget, said",
    [
        ([], 3, "trials is 'empty'"),
        ([{"prompt_id": 1}], 3, "without category"),
        ([LINE | {"steps": []}], 3, "steps of trial 0 is 0"),
        ([LINE], 1, "steps of trial 0 is 2 but must be 1 to the budget of 1"),
        ([LINE | {"steps": [STEP | {"judgment": 0.7}]}], 1, "judgment of trial 0, step 0 is 0.7 but must be 0 or 1"),
        ([LINE | {"steps": [STEP | {"n_resp_tok": -1}]}], 1, "n_resp_tok of trial 0 is -1"),
        ([LINE | {"steps": LINE["steps"][::-1]}], 3, "going on after success at step 0"),
        ([FAILED], 4, "3 steps of b, no success' but must run all 4 steps"),
    ],
)
def test_bad_records_are_refused_with_a_sentence(lines, budget, said):
    with pytest.raises(WorkbenchError) as refusal:
        read_trials(lines, budget=budget)
    assert said in str(refusal.value) and str(refusal.value).endswith(".")


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda t: Price("magic", 1.0), "kind is 'magic'"),
        (lambda t: Price("template", 0.0), "target is 0.0"),
        (lambda t: rup.pressure_curve(t, -query_costs(t), levels=(0, 3)), "costs is -1.0 but must be at least 0"),
        (lambda t: rup.pressure_curve(t, np.ones((2, 2)), levels=(0, 3)), "the shape of costs is (2, 2)"),
        (lambda t: rup.pressure_curve(t, query_costs(t), levels=(0, 4)), "rise from 0 to at most the budget, 3"),
        (lambda t: rup.pressure_curve(t, query_costs(t), levels=(1, 3)), "levels is [1, 3]"),
        (lambda t: rup.compute_to([0, 0.5], [0, 1], 1.5), "tau is 1.5"),
        (lambda t: rup.compute_to([0, 0.5], [1, 0], 0.5), "falling somewhere"),
        (lambda t: rup.over_seeds([np.nan]), "without NaN"),
        (lambda t: book_transfer(np.ones((2, 3)), [1.0, 2.0, 3.0]), "search is (3,)"),
        (lambda t: rup.expected_curve([1], 1.0), "p and beta"),
        (lambda t: simulated_trials([0.5, 1.5], 3, STREAM), "within [0, 1]"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, said):
    with pytest.raises(WorkbenchError) as refusal:
        call(two())
    assert said in str(refusal.value) and str(refusal.value).endswith(".")
