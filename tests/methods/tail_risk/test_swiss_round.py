"""Swiss rounds: simulation is enumeration, ranks alone count, byes and removal by the rules, what must not matter does not."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import swiss_round as sr
from workbench.methods.tail_risk.swiss_round_tables import planted_scores

S = Stream.of(0, "swiss")


def one_order(models, tasks):
    """Win tensor of models in one order on every benchmark, the first the best."""
    return sr.win_tensor(np.tile(np.arange(models)[::-1, None], (1, tasks)), S)


def test_the_derived_figures():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 0.6, (6, 5)) + np.linspace(1, -1, 6)[:, None]
    scores[2] = [-100, -100, 100, 100, 100]
    win = sr.win_tensor(scores, S)
    assert np.allclose(sr.exact_wins(win), [2.8667, 2, 2.6667, 1.8494, 1.1506, 0.4667], atol=5e-5)
    assert np.allclose(sr.exact_wins(win, eliminate=1), [2.6, 1.9111, 0, 1.1235, 0.8988, 0.4667], atol=5e-5)
    assert sr.play(win, seasons=50, stream=S).games.tolist() == [3, 2, 2, 2, 2]
    assert np.allclose(sr.exact_wins(one_order(4, 5)), [3, 2, 1, 0]), "each alone in its group: byes from then on"


@pytest.mark.parametrize("models, eliminate, bye, ties", [
    (4, 0, 0.0, "coin"), (6, 0, 0.0, "coin"), (6, 1, 0.0, "coin"), (5, 1, 0.5, "half"), (7, 2, 0.0, "half"), (5, 4, 0.0, "coin"), (2, 1, 0.5, "coin"),
])  # fmt: skip
def test_simulation_is_enumeration(models, eliminate, bye, ties):
    scores = np.random.default_rng(models).integers(0, 4, (models, 4))
    win = sr.win_tensor(scores, S, ties=ties)
    found = sr.play(win, eliminate=eliminate, bye=bye, seasons=20_000, stream=S)
    exact = sr.exact_wins(win, eliminate=eliminate, bye=bye)
    assert (np.abs(found.mean - exact) <= 5.33 * found.std_error + 1e-9).all()


def test_ignoring_the_groups_is_another_tournament():
    win = sr.win_tensor(planted_scores(S), S)
    free = sr.play(win, seasons=20_000, pairing="any", stream=S)
    assert (np.abs(free.mean - sr.exact_wins(win)) > 50 * free.std_error).any()


def test_wins_are_half_the_groups_and_byes_the_rest():
    win = sr.win_tensor(np.random.default_rng(1).random((9, 6)), S)
    found = sr.play(win, seasons=3000, stream=S)
    assert np.allclose(found.wins.sum(axis=1), found.games.sum()), "each game hands out one win"
    assert found.byes.sum() + 2 * found.games.sum() == pytest.approx(9 * 6)
    assert found.games[0] == 4 and found.byes.min() >= 1 / 9 - 0.05
    paid = sr.play(win, seasons=3000, bye=0.5, stream=S)
    assert np.allclose(paid.wins.sum(axis=1).mean(), paid.games.sum() + paid.byes.sum() / 2)


def test_only_the_order_within_a_benchmark_counts():
    scores = np.random.default_rng(2).random((6, 5))
    assert np.array_equal(sr.win_tensor(scores, S), sr.win_tensor(np.exp(9 * scores), S))


def test_the_unbeaten_model_wins_all_but_its_byes():
    win = sr.win_tensor(np.random.default_rng(3).random((8, 6)) + np.arange(8)[:, None] // 7 * 9, S)
    found = sr.play(win, seasons=20_000, stream=S)
    assert found.mean[7] == pytest.approx(6 - found.byes[7])


@pytest.mark.parametrize("models", [3, 4, 5, 6])
@pytest.mark.parametrize("eliminate", [0, 1])
def test_one_order_everywhere_is_kept(models, eliminate):
    for tasks in range(1, 6):
        assert (np.diff(sr.exact_wins(one_order(models, tasks), eliminate=eliminate)) <= 1e-12).all()


def test_early_failure_costs_all_and_late_failure_nothing():
    early, late = (sr.win_tensor(planted_scores(S.child(2), failures=when), S) for when in ("early", "late"))
    assert sr.exact_wins(early)[2] > 2 and sr.exact_wins(early, eliminate=1)[2] == pytest.approx(0)
    assert sr.exact_wins(late, eliminate=1)[2] > 1.5
    backwards = sr.exact_wins(early[::-1])
    assert not np.allclose(backwards, sr.exact_wins(early), atol=0.1), (
        "the order of the benchmarks is part of the method"
    )


def test_the_cost_of_a_failure_depends_on_when_it_comes():
    scores = np.random.default_rng(6).random((8, 9)) + np.linspace(1, 0, 8)[:, None]
    first, last, none = (
        sr.failure_cost(scores, where, value=-9.0, stream=S) for where in (slice(0, 2), slice(-2, None), [])
    )
    assert first.mean() > last.mean() + 0.2 and (none == 0).all() and first.shape == (4,)


def test_removal_takes_only_the_lowest_group_and_never_cascades():
    # after round 1 of three: one winner, one loser, one bye at 0; T = 2 takes both at 0 and leaves the winner
    win = one_order(3, 3)
    found = sr.play(win, eliminate=2, seasons=4000, stream=S)
    assert (found.wins.sum(axis=1) == 1).all() and found.games.tolist() == [1, 0, 0]
    assert sr.exact_wins(win, eliminate=2).sum() == pytest.approx(1)


def test_seasons_do_not_depend_on_their_number_and_share_pairings_over_t():
    win = sr.win_tensor(np.random.default_rng(4).random((7, 5)), S)
    assert np.array_equal(sr.play(win, seasons=5000, stream=S).wins[:100], sr.play(win, seasons=100, stream=S).wins)
    none, few = (sr.play(win, eliminate=t, seasons=4000, stream=S).wins for t in (0, 1))
    apart = sr.play(win, eliminate=1, seasons=4000, stream=S.child("other")).wins
    assert (none - few).std(axis=0).sum() < 0.9 * (none - apart).std(axis=0).sum()


def test_a_coin_is_drawn_once_and_half_splits():
    win = sr.win_tensor(np.zeros((12, 40)), S)
    upper = np.triu_indices(12, 1)
    tossed = win[:, upper[0], upper[1]]
    assert set(np.unique(tossed)) == {0, 1} and abs(tossed.mean() - 0.5) < 0.05
    assert np.array_equal(win + win.transpose(0, 2, 1), np.ones_like(win))
    half = sr.play(sr.win_tensor(np.zeros((4, 3)), S, ties="half"), seasons=100, stream=S)
    assert (half.wins == 1.5).all() and (half.games == 2).all()


def test_sensitivity_is_the_least_squares_slope():
    profile = np.random.default_rng(5).random((4, 3)) + 1
    slope, relative = sr.sensitivity(profile)
    assert np.allclose(slope, np.polyfit(np.arange(4), profile, 1)[0]) and np.allclose(relative, slope / profile[0])
    assert sr.sensitivity(np.array([[0.0, 2], [0, 1]]))[1].tolist() == [0, -0.5]
    means, errors = sr.failure_profile(one_order(4, 3), 2, seasons=500, stream=S)
    assert means.shape == errors.shape == (3, 4) and (errors >= 0).all()


@pytest.mark.parametrize("attempt, said", [
    (lambda: sr.win_tensor([[1, np.nan], [0, 1]], S), r"scores\[1\] is nan but must be finite; leave the benchmark out, or"),
    (lambda: sr.win_tensor([[1, 2]], S), r"scores is \(1, 2\) but must be a table of two models or more"),
    (lambda: sr.win_tensor(np.zeros((3, 0)), S), r"scores is 'empty' but must hold at least one number"),
    (lambda: sr.win_tensor(np.eye(3), S, ties="skip"), r"ties is 'skip' but must be one of coin, half"),
    (lambda: sr.play(one_order(3, 2), eliminate=3, stream=S), r"eliminate is 3 but must .* at most 2; there are 3 models"),
    (lambda: sr.play(one_order(3, 2), bye=1.0, stream=S), r"bye is 1.0 but must be 0 or 0.5; the paper's is 0"),
    (lambda: sr.play(np.ones((2, 3, 3)), stream=S), r"win is 'a tensor' but must hold 0, 0.5 and 1 .*; make it with win_tensor"),
    (lambda: sr.play(np.eye(3), stream=S), r"win is \(3, 3\) but must have shape \(K, M, M\)"),
    (lambda: sr.play(one_order(3, 2), pairing="chess", stream=S), r"pairing is 'chess' but must be one of group, any"),
    (lambda: sr.exact_wins(one_order(9, 2)), r"number of models is 9 but must .* at most 8; simulate larger"),
    (lambda: sr.failure_profile(one_order(3, 2), 0, stream=S), r"most is 0 but must .* at least 1; ask"),
    (lambda: sr.failure_cost(np.eye(3), 0, stream=S), r"top is 4 but must .* at most 3; there are no more models"),
    (lambda: sr.sensitivity(np.ones(3)), r"profile is \(3,\) but must have shape"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")
