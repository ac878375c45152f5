"""Audits: scores and their refusals, AUROC and eta squared against peers and exact values, stability, the traps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from statsmodels.api import OLS
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.proportion import proportion_confint

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import simple_audit as sa
from workbench.methods.tail_risk.audit_codeword import AUDITORS, JUDGES, TURNS, codeword_audit, scenarios
from workbench.methods.tail_risk.audit_records import read_audit, simpleaudit_records
from workbench.methods.tail_risk.audit_simulation import (
    PlantedAudit,
    exact_score,
    planted_audit,
    severity_law,
    spread_effects,
    twin_auroc,
    twins,
)
from workbench.plots.audits import twins_figure
from workbench.problems.event import codeword_event

STREAM = Stream.of(3, "simple-audit-test")


def records(**changes: Any) -> list[dict[str, Any]]:
    rows = [
        {"target": t, "auditor": a, "judge": j, "scenario": s, "category": s[0], "run": r, "severity": "pass"}
        for t in "TU" for a in "A" for j in "JK" for s in ("x1", "x2", "y1") for r in range(2)
    ]  # fmt: skip
    rows[0] = rows[0] | changes
    return rows


def test_score_is_the_mean_severity_in_per_cent_and_errors_are_counted_apart():
    found = sa.score(np.array([0, 1, 2, 3, 4, 4, -1, -1]))
    assert found.value == pytest.approx(100 * 14 / 24) and found.critical_rate == pytest.approx(1 / 6)
    assert found.n == 6 and found.errors == 2 and found.profile.sum() == pytest.approx(1)


def test_nothing_scored_is_refused_and_is_not_a_score_of_nought():
    with pytest.raises(WorkbenchError, match="2 errors' but must hold at least one graded run"):
        sa.score(np.array([-1, -1]))
    with pytest.raises(WorkbenchError, match=r"scenario \[1\] without a graded run"):
        sa.scenario_scores(np.array([[1, 2], [-1, -1]]))


def test_records_become_a_crossed_audit():
    audit = read_audit(records(severity="critical"))
    assert audit.severity.shape == (2, 1, 2, 3, 2) and audit.categories == ("x", "x", "y")
    assert sa.score(audit.of("T", judge="J")).critical_rate == pytest.approx(1 / 6)
    assert sa.score(audit.of("T", judge="K")).critical_rate == 0 and audit.self_judged == ()
    judged_by_itself = [record | {"judge": "T" if record["judge"] == "J" else "K"} for record in records()]
    assert read_audit(judged_by_itself).self_judged == ("T",)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([], "records is 'empty'"),
        (records(severity="catastrophic"), "records[0]['severity'] is 'catastrophic'"),
        ([{"target": "T"}], "records[0] is 'without auditor'"),
        (records()[1:], "without T / A / J / x1 / 0' but must hold every combination"),
        ([*records(), records()[0]], "a second T / A / J / x1 / 0"),
        (records(category="z"), "category of x1 is 'z and x'"),
    ],
)
def test_bad_records_are_refused_with_a_sentence(rows, said):
    with pytest.raises(WorkbenchError) as refusal:
        read_audit(rows)
    assert said in str(refusal.value) and str(refusal.value).endswith(".")


def test_files_of_the_simpleaudit_package_are_read(tmp_path):
    one = {"results": [{"scenario_name": "s", "severity": "low"}, {"scenario_name": "t", "severity": "ERROR"}]}
    (tmp_path / "one.json").write_text(json.dumps(one))
    (tmp_path / "many.json").write_text(json.dumps({"runs": {"M": [one, one], "other": [one]}}))
    names: dict[str, Any] = {"target": "M", "auditor": "A", "judge": "A"}
    single = read_audit(simpleaudit_records(tmp_path / "one.json", **names))
    repeated = read_audit(simpleaudit_records(tmp_path / "many.json", **names, categories={"s": "kind"}))
    assert single.severity.ravel().tolist() == [3, -1]
    assert repeated.severity[0, 0, 0].tolist() == [[3, 3], [-1, -1]] and repeated.categories == ("kind", "all")


def test_auroc_of_all_pairs_is_sklearns_and_same_scenario_pairs_are_left_out():
    rng = np.random.default_rng(0)
    safe, twin = rng.integers(3, 9, 15), rng.integers(0, 7, 15)
    pooled = roc_auc_score(np.repeat([1, 0], 15), np.r_[safe, twin])
    own = np.mean((safe > twin) + 0.5 * (safe == twin))
    assert sa.auroc(safe, twin)[0] == pytest.approx((pooled * 15**2 - own * 15) / (15 * 14))


def test_a_resample_weighs_scenarios_as_often_as_it_holds_them():
    rng = np.random.default_rng(1)
    safe, twin, weights = rng.normal(size=6), rng.normal(size=6), np.array([[2, 0, 1, 3, 0, 0]])
    rows = np.repeat(np.arange(6), weights[0])
    pairs = [(i, j) for i in rows for j in rows if i != j]
    assert sa.auroc(safe, twin, weights)[0] == pytest.approx(np.mean([safe[i] > twin[j] for i, j in pairs]))


def test_exact_auroc_and_scores_are_those_of_many_draws():
    audit = twins(1.0)
    drawn = audit.draw(4000, 3, STREAM.child("auroc"))
    assert sa.auroc(*sa.scenario_scores(drawn[:, 0, 0]))[0] == pytest.approx(twin_auroc(audit, 3), abs=0.015)
    assert twin_auroc(twins(0.0), 3) == pytest.approx(0.5)
    assert 25 * drawn.mean(axis=(1, 2, 3, 4)) == pytest.approx(audit.scores().ravel(), abs=1.5)
    assert severity_law(0.3, 1.0).sum() == pytest.approx(1) and exact_score(9.0, 1.0) == pytest.approx(100)


def test_the_bootstrap_covers_the_exact_auroc():
    truth, hits = twin_auroc(twins(1.0), 3), 0
    for repeat in range(100):
        stream = STREAM.child("cover", repeat)
        scores = sa.scenario_scores(twins(1.0).draw(40, 3, stream)[:, 0, 0])
        found = sa.responsiveness(scores[0], scores[1], stream.child("b"), resamples=200)
        hits += found.low <= truth <= found.high
    assert hits >= 82, "P(fewer) < 1e-4 at the coverage of 0.93 that 900 repeats gave"


def test_eta_squared_is_that_of_statsmodels_and_sums_below_one():
    severity = planted_audit(STREAM).draw(5, 2, STREAM.child("anova"))
    index = np.indices(severity.shape).reshape(5, -1)
    frame = pd.DataFrame({"y": severity.ravel(), "t": index[0], "a": index[1], "j": index[2]})
    table = anova_lm(OLS.from_formula("y ~ C(t) + C(a) + C(j)", frame).fit())
    squares = table["sum_sq"].to_numpy()
    assert sa.eta_squared(severity) == pytest.approx(squares[:3] / squares.sum())
    assert sa.partial_eta_squared(severity) == pytest.approx(squares[:3] / (squares[:3] + squares[3]))
    assert sa.eta_squared(severity).sum() <= 1


def test_partial_shares_may_sum_above_one():
    wide = PlantedAudit(
        spread_effects(4, 1.0), spread_effects(4, 1.0), spread_effects(4, 1.0), np.zeros((4, 4)), 0.1, 0.1, 0.1
    )
    assert sa.partial_eta_squared(wide.draw(5, 2, STREAM)).sum() > 1


def test_exact_eta_squared_is_approached_and_covered_only_if_scenarios_are_drawn():
    planted = planted_audit(STREAM.child("planted"), auditor=0.6)
    exact, hits = planted.eta_squared(), {"scenarios": 0, "runs": 0}
    assert sa.eta_squared(planted.draw(2000, 1, STREAM.child("large"))) == pytest.approx(exact, abs=0.03)
    for repeat in range(30):
        stream = STREAM.child("eta", repeat)
        severity = planted.draw(30, 10, stream)
        for over in hits:
            found = sa.eta_intervals(severity, stream.child(over), over=over, resamples=100)
            hits[over] += found[0].low <= exact[0] <= found[0].high
    assert hits["scenarios"] >= 22 and hits["runs"] <= 15


def test_a_twin_among_the_targets_raises_the_targets_share():
    planted = planted_audit(STREAM.child("planted"))
    more = PlantedAudit(
        np.append(planted.target, planted.target[0] - 1.5),
        planted.auditor,
        planted.judge,
        np.vstack([planted.interaction, planted.interaction[:1]]),
    )
    assert more.eta_squared()[0] > planted.eta_squared()[0] + 0.05


def test_deviation_from_ones_own_mean_falls_ninefold_whatever_the_noise():
    runs = np.random.default_rng(2).exponential(size=(40_000, 20))
    same = sa.deviations(runs[:, :10])
    fresh = sa.deviations(runs[:, :10], runs[:, 10:].mean(axis=1))
    n = np.arange(1, 11)
    assert same.std(axis=0)[:9] == pytest.approx(sa.deviation_sd(n, 10)[:9], rel=0.03)
    assert fresh.std(axis=0) == pytest.approx(sa.deviation_sd(n, 10, "fresh"), rel=0.03)
    assert np.abs(same[:, 9]).max() < 1e-12
    assert sa.deviation_sd(1, 10) / sa.deviation_sd(9, 10) == pytest.approx(9)
    assert sa.deviation_sd(1, 10, "expectation") / sa.deviation_sd(9, 10, "expectation") == pytest.approx(3)


def test_critical_miss_conditions_on_the_reference():
    reference, judge = np.array([0, 0, 0, 0, 2, 3, 4]), np.array([0, 0, 0, 1, 0, 0, 4])
    found = sa.critical_miss(judge, reference)
    assert found.value == 0.25 and found[1:] == pytest.approx(proportion_confint(1, 4, method="wilson"))
    assert sa.critical_miss(reference, judge).value == pytest.approx(2 / 5)
    assert sa.critical_miss(np.array([-1, 0]), np.array([0, 0])).value == 0, "an ungraded case is no miss"


def test_matched_deltas_of_categories_hold_jointly():
    first, second = np.full((6, 2), 4), np.array([[4, 4], [3, 4], [2, 3], [1, 1], [0, 2], [2, 2]])
    found = sa.matched_delta(first, second, ["a", "a", "a", "b", "b", "b"])
    assert found["all"].value == pytest.approx(sa.score(first).value - sa.score(second).value)
    alone = sa.matched_delta(first[:3], second[:3])["all"]
    assert found["a"].value == pytest.approx(alone.value) and found["a"].low < alone.low


def test_a_main_effect_cancels_in_the_delta_and_independent_effects_do_not():
    rng = np.random.default_rng(3)
    shared, own = rng.normal(size=(2000, 1)), rng.normal(size=(2000, 2))
    assert sa.left_in_delta(np.array([50, 60]) + shared, STREAM).value == pytest.approx(0, abs=1e-12)
    found = sa.left_in_delta(shared + own, STREAM)
    assert found.low < 0.5 < found.high and found.high - found.low < 0.1
    assert sa.left_in_delta(own, STREAM).value == pytest.approx(1, abs=0.05)


def test_the_repeating_auditor_meets_the_models_own_risk():
    runs = 60
    audit = codeword_audit(STREAM.child("codeword"), runs=runs)
    prompts, _ = scenarios()
    riskiest = int(np.argmax([sum(prompt) for prompt in prompts]))
    truth = codeword_event("embedded", prompts[riskiest]).truth
    assert truth is not None
    told = audit.of("safe", "repeats", "exact")[0, 0, riskiest] < 4
    chance = 1 - (1 - truth) ** TURNS
    assert abs(told.mean() - chance) < 4.9 * np.sqrt(chance * (1 - chance) / runs)
    graded = audit.of("twin", "repeats", "exact")[0, 0, riskiest]
    at_once, ever = (graded == 0).mean(), (graded < 4).mean()
    assert ever == pytest.approx(1 - (1 - at_once) ** TURNS, abs=0.05), "every turn is a fresh try of equal chance"
    safe, twin = (sa.score(audit.of(target, "escalates", "exact")).value for target in audit.targets)
    assert safe > twin + 20
    mildest = [name == "sum 12 to 15" for name in audit.categories]
    assert (audit.of("safe", "escalates", "exact")[0, 0, mildest] < 4).mean() > 0.06, "it ends at the riskiest prompt"
    assert audit.auditors == AUDITORS and audit.judges == JUDGES and len(set(audit.scenarios)) == 24


def test_reruns_differ_and_a_twin_without_steering_is_the_safe_model_drawn_afresh():
    audit = codeword_audit(STREAM.child("same"), strength=0.0, runs=8)
    safe, twin = (audit.of(target, "escalates", "exact")[0, 0] for target in audit.targets)
    assert (safe != twin).any() and (safe.std(axis=1) > 0).any()
    found = sa.responsiveness(sa.scenario_scores(safe), sa.scenario_scores(twin), STREAM)
    assert found.low < 0.5


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: sa.score(np.array([5])), "severity is 5 but must lie from 0 to 4"),
        (lambda: sa.score(np.array([1.5])), "of type float64"),
        (lambda: sa.eta_squared(np.full((2, 2, 2, 3, 1), -1)), "24 failed runs' but must be balanced"),
        (lambda: sa.eta_squared(np.ones((2, 2, 2), dtype=int)), "the shape of severity is (2, 2, 2)"),
        (lambda: sa.eta_squared(np.ones((2, 2, 2, 3, 1), dtype=int)), "All severities are the same"),
        (lambda: sa.eta_intervals(np.ones((2, 2, 2, 3, 1), dtype=int), STREAM, over="targets"), "over is 'targets'"),
        (lambda: sa.auroc([1.0], [2.0]), "the shapes of safe and twin"),
        (lambda: sa.auroc([1.0, np.nan], [2.0, 1.0]), "safe[1] is nan"),
        (lambda: sa.deviations([3.0]), "one run alone has no spread"),
        (lambda: sa.deviation_sd(11, 10), "n is 11 but must lie from 1 to 10"),
        (lambda: sa.critical_miss(np.array([1]), np.array([1])), "reference is 'never critical'"),
        (lambda: sa.left_in_delta(np.ones((3, 2)), STREAM), "the shape of scores is (3, 2)"),
        (lambda: sa.matched_delta([[1], [2]], [[1]]), "same scenarios"),
        (lambda: codeword_audit(STREAM, runs=0), "runs is 0"),
        (lambda: twins(-1.0), "distance is -1.0"),
        (lambda: twins(1.0, scenario=0, scenario_target=0, rerun=0), "the SDs is 0"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(call, said):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    assert said in str(refusal.value) and str(refusal.value).endswith(".")


def test_the_first_look_draws_at_the_ends_of_its_sliders():
    for strength, distance in ((-4.0, 0.0), (5.0, 3.0)):
        fig = twins_figure(distance, strength, 5, 1, 0.0, 0.1, stream=STREAM)
        assert "exact" in fig.axes[1].get_title(loc="left")
