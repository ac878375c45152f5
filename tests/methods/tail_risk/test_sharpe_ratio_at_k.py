"""Properties of SharpeRatio@k: the published figures, exact fractions, ties, traps, bad input."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.sharpe_ratio_at_k import (
    accuracy,
    best_of,
    disagree,
    from_scope_rl,
    point_estimate,
    sharpe_ratio_at_k,
    top_k,
)
from workbench.models import codeword_grammar, prefix_tree
from workbench.plots.portfolios import portfolio_figure, rank_scatter, sharpe_bands
from workbench.problems.policy_portfolios import (
    digits_portfolio,
    tabular_portfolio,
    tempered_log_probs,
    toy_tables,
)

FIRST = {
    "X": [1.414, 1.512, 1.521, 1.480, 1.414, 1.337, 1.314, 1.363, 1.185],
    "Y": [0.707, 0.811, 0.904, 1.023, 1.142, 1.247, 1.324, 1.363, 1.185],
}
SECOND_K = [2, 3, 4, 5, 8, 12, 16, 19]
SECOND = {
    ("W", 5): [8.485, 6.0, 5.422, 4.427, 3.674, 3.051, 2.731, 2.488],
    ("W", 10): [1.414, 1.0, 1.549, 1.265, 1.633, 1.664, 1.680, 1.599],
    ("W", 15): [0, 0, 0, 0, 0, 0.277, 0.630, 0.711],
    ("Z", 5): [3.182, 1.788, 2.207, 2.233, 2.427, 2.350, 2.325, 2.488],
    ("Z", 10): [1.414, 0.795, 1.419, 1.436, 1.560, 1.511, 1.495, 1.599],
    ("Z", 15): [0, 0, 0.630, 0.638, 0.694, 0.672, 0.664, 0.711],
}
numbers = st.floats(-50, 50).map(lambda x: round(x, 3))


def by_fractions(portfolio, baseline):
    """The ratio with nothing rounded before the last square root."""
    values = [Fraction(value) for value in portfolio]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return max(float(max(values)) - baseline, 0.0) / math.sqrt(variance)


def test_published_figures_of_both_toys():
    tables = toy_tables()
    for name, printed in FIRST.items():
        values, estimates = tables[name]
        assert top_k(values, estimates, 8.0).sharpe[1:] == pytest.approx(printed, abs=5e-4)
        found = accuracy(values, estimates, 3)
        assert found.mse == pytest.approx(11.3, abs=1e-12) and found.regret == 0
        assert found.rank_correlation == pytest.approx(0.41338, abs=5e-6)
    for (name, baseline), printed in SECOND.items():
        found = top_k(*tables[name], float(baseline)).sharpe
        assert found[np.array(SECOND_K) - 1] == pytest.approx(printed, abs=5e-4)
    assert [accuracy(*tables[name]).mse for name in "WZ"] == pytest.approx([1142.5 / 19, 1114 / 19], abs=1e-10)
    assert [accuracy(*tables[name]).regret for name in "WZ"] == [9, 9]


def test_every_toy_figure_equals_exact_arithmetic():
    for name, baselines in {"X": [8], "Y": [8], "W": [5, 10, 15], "Z": [5, 10, 15]}.items():
        values, estimates = toy_tables()[name]
        order = sorted(range(len(values)), key=lambda i: (-estimates[i], -values[i]))
        for baseline in baselines:
            exact = [by_fractions(values[order[:k]], baseline) for k in range(2, len(values) + 1)]
            assert top_k(values, estimates, float(baseline)).sharpe[1:] == pytest.approx(exact, abs=1e-10)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9), numbers)
@settings(max_examples=60, deadline=None)
def test_every_part_is_that_of_the_first_k(pairs, baseline):
    values, estimates = np.array(pairs).T
    order = sorted(range(len(values)), key=lambda i: (-estimates[i], -values[i]))
    found = top_k(values, estimates, baseline)
    for k in range(1, len(values) + 1):
        chosen = values[order[:k]]
        assert (found.best[k - 1], found.worst[k - 1]) == (chosen.max(), chosen.min())
        assert found.mean[k - 1] == pytest.approx(chosen.mean()) and found.last[k - 1] == chosen[-1]
        assert found.violation_rate[k - 1] == pytest.approx(np.mean(chosen < baseline))
        if k > 1 and np.ptp(chosen) > 0:
            assert found.std[k - 1] == pytest.approx(np.std(chosen, ddof=1))
            gain = max(chosen.max() - baseline, 0)
            assert found.sharpe[k - 1] == pytest.approx(gain / np.std(chosen, ddof=1))


def test_the_texts_definition_is_larger_by_a_known_factor():
    values, estimates = toy_tables()["W"]
    text, figures = (top_k(values, estimates, 5.0, ddof=ddof).sharpe[1:] for ddof in (0, 1))
    k = np.arange(2, 20)
    assert text / figures == pytest.approx(np.sqrt(k / (k - 1)))


def test_only_a_map_of_both_values_and_baseline_changes_nothing():
    values, estimates = toy_tables()["X"]
    mapped = top_k(3 * values + 7, estimates, 3 * 8.0 + 7).sharpe[1:]
    assert mapped == pytest.approx(top_k(values, estimates, 8.0).sharpe[1:])
    assert top_k(values + 7, estimates, 8.0).sharpe[2] != pytest.approx(mapped[1])


def test_equal_policies_have_no_risk_and_no_silent_large_number():
    same = np.array([0.1, 0.1, 0.1, 0.0])
    found = top_k(same, np.array([4.0, 3, 2, 1]), 0.05)
    assert found.std[2] == 0 and found.sharpe[2] == np.inf
    assert np.isnan(top_k(same, np.array([4.0, 3, 2, 1]), 0.1).sharpe[2])
    clipped = [top_k(same, np.array([4.0, 3, 2, 1]), b, clip=True).sharpe[2] for b in (0.05, 0.1)]
    assert clipped == [100.0, 0.0]
    assert np.isnan(found.sharpe[0]), "one policy has no ratio"


def test_ties_are_broken_as_asked():
    values, estimates = toy_tables()["Y"]
    best, worst, first, mean = (
        top_k(values, estimates, 8.0, ties=ties).sharpe for ties in ("best", "worst", "first", "average")
    )
    assert best[1] == pytest.approx(1.41421356 / 2) and np.isclose(best[1:], worst[1:]).sum() < 9
    # The two tied at 11 are 3 and 4; with 12 first, k = 2 holds one of them: (12 - 8) / (9 / sqrt 2) or (8 / sqrt 2).
    assert worst[1] == pytest.approx(4 * math.sqrt(2) / 9) and first[1] == pytest.approx(4 * math.sqrt(2) / 9)
    assert mean[1] == pytest.approx((4 * math.sqrt(2) / 9 + 4 * math.sqrt(2) / 8) / 2)


def test_floor_is_what_keeps_the_ratio_from_being_negative():
    values, estimates = toy_tables()["W"]
    assert (top_k(values, estimates, 15.0).sharpe[1:] >= 0).all()
    assert (top_k(values, estimates, 15.0, floor=False).sharpe[1:6] < 0).all()


def test_many_tables_at_once_are_each_alone():
    rng = np.random.default_rng(0)
    values, estimates, baseline = rng.random((4, 1, 7)), rng.random((4, 3, 7)).round(1), rng.random((4, 1))
    found = sharpe_ratio_at_k(values, estimates, baseline, 4)
    marks = accuracy(values, estimates, 2)
    for i in range(4):
        for j in range(3):
            alone = sharpe_ratio_at_k(values[i, 0], estimates[i, j], baseline[i, 0], 4)
            assert found[i, j] == pytest.approx(float(alone))
            peer = np.asarray(spearmanr(values[i, 0], estimates[i, j]))[0]
            assert marks.rank_correlation[i, j] == pytest.approx(peer)


def test_best_estimators_may_be_joint_and_nan_is_not_best():
    best = best_of([[1.0, 1.0 + 1e-13, 0.5], [np.nan, 2.0, np.inf]])
    assert best.tolist() == [[True, True, False], [False, False, True]]
    assert best_of([[1.0, 2.0]], largest=False).tolist() == [[True, False]]
    assert disagree(best, best_of([[0, 1, 0], [0, 1, 0]])).tolist() == [False, True]


def test_point_estimates_of_the_tail():
    returns = np.arange(1.0, 101)[::-1]
    assert point_estimate(returns, kind="cvar", alpha=0.05) == pytest.approx(3.0)
    assert point_estimate(returns, kind="quantile", alpha=0.25) == 25
    assert point_estimate(returns) == 50.5
    doubled = np.where(returns <= 10, 2.0, 0.0)
    assert point_estimate(returns, doubled, kind="cvar", alpha=0.2) == pytest.approx(1.5)
    assert point_estimate([1.0, 2.0, 3.0], kind="cvar", alpha=0.5) == pytest.approx((1 + 0.5 * 2) / 1.5)


def test_scope_rls_dictionaries_are_read():
    values, estimates = toy_tables()["X"]
    order = np.argsort(-estimates, kind="stable")
    selection = {
        "dm": {
            "estimated_policy_value": estimates[order],
            "true_policy_value": values[order],
            "true_relative_policy_value": values[order] / 8,
        }
    }
    tables, baseline = from_scope_rl(selection)
    assert baseline == pytest.approx(8)
    assert sharpe_ratio_at_k(*tables["dm"], baseline, 2) == pytest.approx(math.sqrt(2))
    with pytest.raises(WorkbenchError, match=r"'dm' has no 'true_policy_value'; call .* return_true_values=True"):
        from_scope_rl({"dm": {"estimated_policy_value": estimates}})


def test_portfolios_hold_exact_values():
    portfolio = tabular_portfolio(2, wb.Stream.of(0, "test"))
    assert portfolio.values.shape == (10,) and np.ptp(portfolio.values) > 0
    rewards = portfolio.process.log(20_000, wb.Stream.of(0, "log"))["reward"].sum(axis=1)
    # Five standard errors: false alarm below 1e-6.
    assert abs(rewards.mean() - portfolio.behaviour_value) < 5 * rewards.std() / np.sqrt(20_000)

    digits = digits_portfolio(wb.Stream.of(0, "test"))
    assert np.allclose(digits.targets.sum(axis=2), 1) and np.allclose(digits.behaviour.sum(axis=1), 1)
    log = digits.log(20_000, np.random.default_rng(0))
    assert abs(log["reward"].mean() - digits.behaviour_value) < 5 * log["reward"].std() / np.sqrt(20_000)
    assert (log["propensity"] >= 0.05).all()


def test_figures_mark_the_baseline_and_name_every_estimator():
    found = {name: top_k(*toy_tables()[name], 5.0) for name in "WZ"}
    fig = portfolio_figure(found, 5.0, 4)
    left, _, right = fig.axes
    assert right.get_legend_handles_labels()[1] == ["W", "Z"]
    assert any(5.0 in np.asarray(line.get_ydata()) for line in left.lines)
    sharpe = np.stack([found["W"].sharpe, found["Z"].sharpe])[None].repeat(3, axis=0)
    assert sharpe_bands(sharpe, ["W", "Z"], np.random.default_rng(0)).axes[0].get_ylabel()
    assert len(rank_scatter(sharpe[..., 3], {"a": sharpe[..., 4], "b": sharpe[..., 5]}, ["W", "Z"]).axes) == 2


def test_tempered_completions_are_laws_and_temperature_one_is_the_model():
    tree = prefix_tree(codeword_grammar(), [4, 5, 6], 3, stop_ids=[1])
    logs = tempered_log_probs(tree, np.array([0.5, 1.0, 2.0]))
    assert np.exp(logs).sum(axis=1) == pytest.approx(1)
    assert logs[1] == pytest.approx(tree.path_log_prob[tree.is_leaf], abs=1e-9)
    assert logs[0].max() > logs[1].max() > logs[2].max()


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda v, e: sharpe_ratio_at_k(v, e, 8.0, 1), r"k is 1 but must be .* at least 2.*one alone has no spread"),
        (lambda v, e: sharpe_ratio_at_k(v, e, 8.0, 11), r"k is 11 but must be .* at most 10; there are 10 policies"),
        (lambda v, e: sharpe_ratio_at_k(0 * v + 1, e, 1.0, 2), "spread of values is 0.0 but must be above 0"),
        (lambda v, e: top_k(v, np.where(e > 10, np.nan, e), 8.0), r"estimates\[\d\] is nan but must be finite; every"),
        (lambda v, e: top_k(v, e, None), "behaviour_value is None but must be the true value .* mean logged return"),
        (lambda v, e: top_k(v, e[:-1], 8.0), r"estimates.shape is \(9,\) .* put the policies on the last axis"),
        (lambda v, e: top_k(v, e, 8.0, ddof=2), "ddof is 2 but must be 0 or 1; pass 1"),
        (lambda v, e: top_k(v, e, 8.0, ties="bset"), "ties is 'bset' .* did you mean 'best'"),
        (lambda v, e: top_k(v, 0 * e, 8.0, ties="average"), r"tied orders is 3628800 .* at most 10,000"),
        (lambda v, e: accuracy(0 * v, e), "spread of values is 0.0 but must be above 0"),
        (lambda v, e: point_estimate(v, -e), "smallest weight is -12.0 but must be at least 0"),
        (lambda v, e: tabular_portfolio(7, wb.Stream.of(0)), "mixing is 7 but must be .* at most 6"),
    ],
)
def test_bad_input_is_refused_with_argument_value_and_cure(call, said):
    with pytest.raises(WorkbenchError, match=said):
        call(*toy_tables()["X"])
