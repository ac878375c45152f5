"""DCS: its algebra, what it rewards, the readers of log-likelihoods, the traps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import distributional_correctness as dc

loadings = st.tuples(st.floats(0.1, 5), st.floats(0, 1)).map(lambda pair: (pair[0], pair[0] * pair[1]))
points = st.lists(st.floats(0.001, 1), min_size=3, max_size=3).map(lambda w: np.array(w) / sum(w))


@given(points, loadings)
def test_the_score_is_quadratic_in_what_is_answered(point, pair):
    right, wrong, idk = point
    l_right, l_wrong = pair
    x, u = right / (right + wrong), idk
    score = dc.dcs(right, wrong, idk, l_right=l_right, l_wrong=l_wrong)
    assert score == pytest.approx(((l_right + l_wrong) * x - l_wrong) * (1 - u) ** 2, abs=1e-9)
    assert -l_wrong - 1e-12 <= score <= l_right + 1e-12
    by_u = [dc.dcs(x * (1 - u), (1 - x) * (1 - u), u, l_right=l_right, l_wrong=l_wrong) for u in np.linspace(0, 1, 21)]
    theta = dc.threshold(l_right, l_wrong)
    if abs(x - theta) > 1e-6:
        assert int(np.argmax(by_u)) == (0 if x > theta else 20), "answer all or nothing"


@given(points, loadings)
def test_mass_moved_from_wrong_to_idk_gains_at_the_rate_of_the_formula(point, pair):
    right, wrong, idk = point
    l_right, l_wrong = pair
    step = 1e-4 * min(wrong, idk)
    up, down = (dc.dcs(right, wrong - s, idk + s, l_right=l_right, l_wrong=l_wrong) for s in (step, -step))
    assert (up - down) / (2 * step) == pytest.approx(2 * l_wrong * wrong - (l_right - l_wrong) * right, abs=1e-6)


def test_corners_and_the_rate_that_can_be_negative():
    corner = np.eye(3)
    assert dc.dcs(*corner, l_right=3, l_wrong=2).tolist() == [3, -2, 0]
    assert dc.dcs(0.9, 0.1, 0.0, l_right=2, l_wrong=0.5) > dc.dcs(0.9, 0.05, 0.05, l_right=2, l_wrong=0.5)


def test_the_public_codes_vectors_are_of_the_linear_form():
    rows = np.array([[0.4, 0.59, 0.01], [0.4, 0.21, 0.39], [0.26, 0.73, 0.01], [0.96, 0.03, 0.01]]).T
    assert dc.dcs(*rows, form="linear") == pytest.approx([-0.19, 0.19, -0.47, 0.93])
    assert dc.dcs(*rows) == pytest.approx([-0.1881, 0.1159, -0.4653, 0.9207])


def test_spreading_wrong_mass_earns_nothing_and_chance_falls_with_options():
    few = dc.answers([[0.4, 0.5, 0.0, 0.0, 0.1]], [0], idk=4)
    many = dc.answers([[0.4, 0.2, 0.2, 0.1, 0.1]], [0], idk=4)
    assert dc.item_scores(few)["DCS"] == pytest.approx(dc.item_scores(many)["DCS"])
    assert dc.item_scores(many)["chance DCS"] == pytest.approx(-0.5)
    assert dc.item_scores(dc.answers([[0.4, 0.5, 0.1]], [0], idk=2))["chance DCS"] == pytest.approx(0)


@given(st.lists(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), min_size=2, max_size=8))
def test_a_positive_item_has_the_right_option_on_top(rows):
    p = np.array(rows) / np.sum(rows, axis=1, keepdims=True)
    found = dc.item_scores(dc.answers(p, np.zeros(len(p), dtype=int), idk=3))
    assert (found["accuracy"][found["DCS"] > 1e-12] == 1).all()


def test_companions_are_those_of_their_definitions_and_of_scikit_learn():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(4), 200), rng.integers(4, size=200)
    found = dc.item_scores(dc.answers(p, y))
    assert found["log"].mean() == pytest.approx(log_loss(y, p))
    assert found["Brier"].mean() == pytest.approx(brier_score_loss(y, p, scale_by_half=False))
    assert found["CWA"] == pytest.approx(p.max(axis=1) * (p.argmax(axis=1) == y))
    with_idk = dc.item_scores(
        dc.answers([[0.3, 0.2, 0.5], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], [0, 0, 0], idk=2), l_right=2
    )
    assert with_idk["ternary"].tolist() == [0, 2, -1] and with_idk["accuracy"].tolist() == [1, 1, 0]
    assert with_idk["Brier"][0] == pytest.approx(2 * 0.4**2) and with_idk["log"][0] == pytest.approx(-np.log(0.6))
    assert with_idk["CWA"].tolist() == [0, 0.6, 0]


def test_all_mass_on_one_option_scores_twice_accuracy_minus_one():
    p = np.random.default_rng(1).dirichlet(np.ones(5), 300)
    given = dc.answers(p, np.random.default_rng(2).integers(4, size=300), idk=4)
    hard = dc.item_scores(given.hardened())
    assert hard["DCS"] == pytest.approx(2 * hard["accuracy"] - 1)
    assert hard["accuracy"] == pytest.approx(dc.item_scores(given)["accuracy"])


def test_where_abstention_lies_is_a_covariance():
    rng = np.random.default_rng(3)
    x, u = rng.random(4000), rng.random(4000)
    given = dc.answers(np.column_stack([x * (1 - u), (1 - x) * (1 - u), u]), np.zeros(4000, dtype=int), idk=2)
    gain, error = dc.placement_gain(given)
    shuffles = [((2 * x - 1) * (1 - rng.permutation(u)) ** 2).mean() for _ in range(400)]
    assert gain == pytest.approx(dc.item_scores(given)["DCS"].mean() - np.mean(shuffles), abs=4 * np.std(shuffles) / 20)
    assert error == pytest.approx(np.std(shuffles), rel=0.15)
    by_x = np.sort(u)[::-1][np.argsort(np.argsort(x))]
    good = dc.answers(np.column_stack([x * (1 - by_x), (1 - x) * (1 - by_x), by_x]), np.zeros(4000, dtype=int), idk=2)
    assert dc.placement_gain(good)[0] > 0.1
    z = [np.divide(*dc.placement_gain(good, shuffle=Stream.of(i, "x"))) for i in range(50)]
    assert abs(np.mean(z)) < 5 / np.sqrt(50) and np.max(np.abs(z)) < 5


def test_an_item_without_any_answer_adds_nothing():
    p = [[0.0, 0.0, 1.0], [0.9, 0.1, 0.0], [0.8, 0.2, 0.0]]
    assert dc.placement_gain(dc.answers(p, [0, 0, 0], idk=2))[0] == pytest.approx(0)


ITEM = {"log_likelihoods": {"Paris": -2.0, "Rome": -3.0, "Bonn": -4.0, " ?": -1.0}, "correct": "Paris"}


def test_idk_is_found_whatever_its_case_and_blanks_and_may_be_several_strings():
    plain = dc.read_answers([ITEM], length="none")
    e = np.exp([-2, -3, -4, -1])
    assert plain.p_idk == pytest.approx(e[3] / e.sum()) and plain.p_right == pytest.approx(e[0] / e.sum())
    assert plain.listed == pytest.approx(e.sum()), "most of the model's belief lies elsewhere"
    more = {**ITEM, "log_likelihoods": ITEM["log_likelihoods"] | {"I  Don't know ": -1.5}}
    both = dc.read_answers([more], length="none")
    assert both.p_idk == pytest.approx((e[3] + np.exp(-1.5)) / (e.sum() + np.exp(-1.5)))
    assert both.idk.sum() == 2 and both.p_wrong == pytest.approx((e[1] + e[2]) / (e.sum() + np.exp(-1.5)))


def test_lengths_divide_log_likelihoods():
    scaled = np.array([-2 / 5, -3 / 4, -4 / 4, -1 / 2])
    found = dc.read_answers([ITEM])
    assert found.probabilities[0] == pytest.approx(np.exp(scaled) / np.exp(scaled).sum())
    assert found.listed == pytest.approx(np.exp([-2, -3, -4, -1]).sum()), "of the strings as they are"
    tokens = {**ITEM, "tokens": {"Paris": 1, "Rome": 2, "Bonn": 2, " ?": 1}}
    scaled = np.array([-2, -3 / 2, -4 / 2, -1])
    found = dc.read_answers([tokens], length="tokens")
    assert found.probabilities[0] == pytest.approx(np.exp(scaled) / np.exp(scaled).sum())


def test_several_right_options_add_up_and_items_may_differ_in_options():
    two = {**ITEM, "correct": ["Paris", "Rome"]}
    short = {"log_likelihoods": {"yes": -1.0, "no": -2.0, "?": -3.0}, "correct": "no"}
    found = dc.read_answers([two, short], length="none")
    e = np.exp([-2, -3, -4, -1])
    assert found.p_right[0] == pytest.approx((e[0] + e[1]) / e.sum()) and found.chance.tolist() == [2 / 3, 1 / 2]
    assert (found.p_right + found.p_wrong + found.p_idk) == pytest.approx(1)
    assert dc.item_scores(found)["accuracy"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "broken, said",
    [
        ({"log_likelihoods": {**ITEM["log_likelihoods"], "Rome": np.nan}}, "must be finite"),
        ({"log_likelihoods": {**ITEM["log_likelihoods"], "Rome": -np.inf}}, "must be finite"),
        ({"log_likelihoods": {**ITEM["log_likelihoods"], "Rome": 0.4}}, "be at most 0"),
        ({"log_likelihoods": {}}, "empty"),
        ({"log_likelihoods": {"Paris": -1.0, "Rome": -2.0}}, "1 right, 0 IDK, 2 in all"),
        ({"log_likelihoods": {"Paris": -1.0, "?": -2.0}}, "hold right, wrong and IDK ones"),
        ({"correct": "Oslo"}, "name options of this item"),
        ({"correct": []}, "name options of this item"),
        ({"correct": " ?"}, "hold right, wrong and IDK ones"),
    ],
)
def test_an_item_that_can_not_be_scored_is_told_and_is_no_nought(broken, said):
    found = dc.read_answers([ITEM, ITEM | broken, ITEM])
    assert len(found) == 2 and list(found.errors) == [1] and said in found.errors[1]
    with pytest.raises(WorkbenchError, match="without one that can be scored"):
        dc.read_answers([ITEM | broken])


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: dc.dcs(0.5, 0.5, 0.5), "add up to 1"),
        (lambda: dc.dcs(1.5, -0.5, 0.0), "none below 0"),
        (lambda: dc.dcs(1, 0, 0, l_wrong=2), "high_stakes=True"),
        (lambda: dc.dcs(1, 0, 0, form="cubic"), "form is 'cubic'"),
        (lambda: dc.threshold(0, 1), "l_right is 0"),
        (lambda: dc.answers([[0.5, 0.6]], [0]), "sum to 1"),
        (lambda: dc.answers([[0.5, 0.5]], [2]), "labels"),
        (lambda: dc.answers([[0.5, 0.5]], [1], idk=1), "and not IDK"),
        (lambda: dc.answers([[0.5, np.nan]], [0]), "must be finite"),
        (lambda: dc.read_answers([ITEM], length="words"), "length is 'words'"),
        (lambda: dc.read_answers([ITEM], length="tokens"), "without one that can be scored"),
        (lambda: dc.read_answers([ITEM], idk="?"), "be a list of strings"),
        (lambda: dc.read_answers([]), "there was none"),
        (lambda: dc.summary(dc.answers([[0.5, 0.5]], [0])), "at least 2"),
        (lambda: dc.placement_gain(dc.answers([[0.5, 0.5]], [0])), "at least 2"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, said):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    assert said in str(refusal.value) and str(refusal.value).endswith(".")


def test_high_stakes_go_beyond_one_half_and_errors_have_the_size_of_a_mean():
    assert dc.threshold(1, 2) == pytest.approx(2 / 3)
    assert dc.dcs(0.6, 0.4, 0.0, l_right=1, l_wrong=2, high_stakes=True) == pytest.approx(-0.2)
    p = np.random.default_rng(5).dirichlet(np.ones(3), 500)
    mean, error = dc.summary(dc.answers(p, np.zeros(500, dtype=int), idk=2))["DCS"]
    scores = p[:, 0] * (1 - p[:, 2]) - p[:, 1] * (1 - p[:, 2])
    assert mean == pytest.approx(scores.mean()) and error == pytest.approx(scores.std(ddof=1) / np.sqrt(500))
