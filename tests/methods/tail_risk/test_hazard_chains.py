"""Exact moments against enumeration, linear algebra and draws; the two guarantees; the market's timeline."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.hazard_chains import (
    HazardChain,
    announced_chain,
    announced_share,
    draw_paths,
    exact_moments,
    random_chain,
    risk_without_last_step,
    spontaneous_chain,
    two_state_chain,
)
from workbench.methods.tail_risk.market_hazards import auc, market_of_falls, sp500_returns, streak_chain
from workbench.problems.chains import reach_probability

CHAINS = [(random_chain(g), int(g.integers(2, 61))) for g in (np.random.default_rng([7, i]) for i in range(200))]
SIGMA = 5.6  # 2e-8 two-sided for a normal score, so that the 36 of a test give a false alarm below 1e-6


def enumerated(chain, start, horizon):
    """Var of Monte Carlo, SCOPE and REACH, and the risk, by going through every path."""
    masked = chain.masked

    def ordinary(state, left, p, s):
        h = chain.hazard[state]
        yield p * h, 1.0, s + h
        ends = 1 - h - chain.onward[state].sum() if left > 1 else 1 - h
        yield p * ends, 0.0, s + h
        if left > 1:
            for after, share in enumerate(chain.onward[state]):
                yield from ordinary(after, left - 1, p * share, s + h)

    def suppressed(state, left, p, survived):
        h = chain.hazard[state]
        survived *= 1 - h
        ends = (1 - masked[state].sum()) if left > 1 else 1.0
        yield p * ends, 1 - survived
        if left > 1:
            for after, share in enumerate(masked[state]):
                yield from suppressed(after, left - 1, p * share, survived)

    p, hit, s = np.array(list(ordinary(start, horizon, 1.0, 0.0))).T
    q, r = np.array(list(suppressed(start, horizon, 1.0, 1.0))).T
    assert p.sum() == pytest.approx(1) and q.sum() == pytest.approx(1)
    means = [(p * hit).sum(), (p * s).sum(), (q * r).sum()]
    squares = [(p * hit).sum(), (p * s**2).sum(), (q * r**2).sum()]
    return means, [square - mean**2 for mean, square in zip(means, squares, strict=True)]


def test_moments_are_those_of_enumeration_on_200_random_problems_and_reach_is_never_worse():
    for i in range(200):
        rng = np.random.default_rng([11, i])
        rows = rng.dirichlet(np.full(5, 10.0 ** rng.uniform(-1.5, 0.5)), size=3)
        chain, horizon = HazardChain(rows[:, 0], rows[:, 2:]), int(rng.integers(1, 6))
        moments = exact_moments(chain, horizon)
        for start in range(3):
            means, variances = enumerated(chain, start, horizon)
            assert means == pytest.approx([moments.risk[start]] * 3, abs=1e-12)
            stated = [moments.monte_carlo[start], moments.scope[start], moments.reach[start]]
            assert variances == pytest.approx(stated, abs=1e-12)
            assert variances[2] <= variances[0] + 1e-12 and variances[2] <= variances[1] + 1e-12


def test_reach_is_never_worse_than_monte_carlo_or_scope_and_scope_has_no_guarantee():
    worse = 0
    for chain, horizon in CHAINS:
        moments = exact_moments(chain, horizon)
        assert (moments.monte_carlo - moments.reach >= -1e-12).all()
        assert (moments.scope - moments.reach >= -1e-12).all()
        worse += bool((moments.scope > moments.monte_carlo + 1e-12).any())
    assert worse >= 20, "SCOPE should be worse than plain draws on some chains, or the comparison tests nothing"


def test_the_risk_is_that_of_linear_algebra():
    for chain, horizon in CHAINS[:50]:
        states = len(chain.hazard)
        matrix = np.zeros((states + 2, states + 2))
        matrix[:states, :states], matrix[:states, states] = chain.onward, chain.hazard
        matrix[:states, -1] = np.maximum(1 - matrix[:states].sum(axis=1), 0)
        matrix[[-2, -1], [-2, -1]] = 1
        known = reach_probability(matrix, np.arange(states + 2) == states, horizon)[:states]
        assert exact_moments(chain, horizon).risk == pytest.approx(known, abs=1e-10)


def test_drawn_paths_have_the_exact_means_and_lengths():
    # Nearly normal scores of 20,000 draws, 36 of them.
    n = 20_000
    for i, (chain, horizon) in enumerate(CHAINS[:6]):
        exact, stream = exact_moments(chain, horizon), Stream.of(3, "draws", i)
        plain = draw_paths(chain, np.array([0]), n, horizon, stream)
        masked = draw_paths(chain, np.array([0]), n, horizon, stream.child("masked"), masked=True)
        for drawn, variance in (
            (plain.hit, exact.monte_carlo[0]),
            (plain.scope, exact.scope[0]),
            (masked.reach, exact.reach[0]),
        ):
            assert abs(drawn.mean() - exact.risk[0]) <= SIGMA * np.sqrt(variance / n) + 1e-12
        left_out = plain.scope - plain.last_hazard
        short = risk_without_last_step(chain, horizon)[0]
        assert abs(left_out.mean() - short) <= SIGMA * left_out.std() / np.sqrt(n) + 1e-12
        for paths, tokens in ((plain, exact.tokens[0]), (masked, exact.reach_tokens[0])):
            assert abs(paths.tokens.mean() - tokens) <= SIGMA * paths.tokens.std() / np.sqrt(n) + 1e-12
        assert not masked.hit.any()


def test_paths_of_other_starts_and_seeds_differ_and_the_same_agree():
    chain = spontaneous_chain(np.random.default_rng(0), 0.05)
    first, again, other = (draw_paths(chain, np.array([0, 5]), 50, 20, Stream.of(s, "x")) for s in (0, 0, 1))
    assert (first.tokens == again.tokens).all() and (first.tokens != other.tokens).any()
    assert first.hit.shape == (2, 50)


def test_two_states_show_that_scope_can_be_worse():
    moments = exact_moments(two_state_chain(), 60)
    assert moments.risk[0] == pytest.approx(0.5, abs=1e-8)
    assert moments.ratio("scope")[0] == pytest.approx(0.25 / 0.6, abs=1e-6)
    assert moments.ratio("reach")[0] == pytest.approx(1.0, abs=1e-6)


def test_the_saving_grows_with_rarity_for_a_spontaneous_outcome_alone():
    rng = np.random.default_rng(2)
    spontaneous = [exact_moments(spontaneous_chain(rng, rate), 60) for rate in (0.05, 0.01, 0.002, 0.0002)]
    saving = [moments.token_ratio("reach")[0] for moments in spontaneous]
    assert saving == sorted(saving) and saving[-1] > 80
    assert spontaneous[-1].spontaneity[0] > 0.99
    rare = exact_moments(announced_chain(rng, 0.0002, strength=0.8), 60)
    # A precursor as good as the outcome itself: REACH saves the draw that decides between them and no more.
    assert rare.ratio("reach")[0] == pytest.approx(1 / 0.8, rel=0.01)


def test_the_announced_share_tells_the_two_apart():
    rng = np.random.default_rng(4)
    assert announced_share(announced_chain(rng, 0.01), 0, 60) == pytest.approx(1)
    assert announced_share(spontaneous_chain(rng, 0.01), 0, 60) == 0
    assert announced_share(HazardChain(np.zeros(1), np.ones((1, 1))), 0, 5) == 0


def test_leaving_out_the_last_step_is_what_drawn_paths_tend_to():
    # One token: the only step ends the path. A certain way to the outcome: all but the last hazard, which is 0.
    chain = HazardChain(np.array([0.0, 0.6]), np.array([[0.0, 1.0], [0.1, 0.2]]))
    assert risk_without_last_step(chain, 1).tolist() == [0, 0]
    # Two tokens from state 1: the first step's 0.6 counts where the path goes on, 0.3 of the time.
    assert risk_without_last_step(chain, 2) == pytest.approx([0, 0.6 * 0.3])
    assert (risk_without_last_step(chain, 9) < exact_moments(chain, 9).risk).all()


def test_auc_is_scikit_learns_ties_included():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(8)
    scores, labels = rng.integers(0, 5, (6, 40)) / 5, rng.random(40) < 0.3
    assert auc(scores, labels) == pytest.approx([roc_auc_score(labels, row) for row in scores], abs=1e-12)


def test_a_certain_outcome_gives_no_nan():
    chain = HazardChain(np.array([0.5, 1.0]), np.array([[0.0, 0.5], [0.0, 0.0]]))
    moments = exact_moments(chain, 5)
    assert moments.risk == pytest.approx([1, 1]) and moments.reach == pytest.approx([0, 0])
    paths = draw_paths(chain, np.array([0, 1]), 100, 5, Stream.of(0, "x"), masked=True)
    assert (paths.reach == 1).all() and np.isfinite(paths.scope).all()


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: HazardChain(np.array([0.5]), np.array([[0.6]])), "must be at most 1; normalise the row"),
        (lambda: HazardChain(np.array([-0.1]), np.array([[0.6]])), "is -0.1 but must be at least 0"),
        (lambda: HazardChain(np.array([np.nan]), np.array([[0.6]])), "must be finite"),
        (lambda: HazardChain(np.array([0.5]), np.ones((2, 2))), "the shape of onward"),
        (lambda: exact_moments(two_state_chain(), 0), "horizon is 0"),
        (lambda: draw_paths(two_state_chain(), np.array([2]), 5, 5, Stream.of(0, "x")), "states from 0 to 1"),
        (lambda: announced_chain(np.random.default_rng(0), 0.1, strength=1.5), "strength is 1.5"),
        (lambda: market_of_falls(np.zeros(50)), "50 days"),
        (lambda: market_of_falls(np.zeros(500), drop=-3), "drop is -3"),
        (lambda: auc(np.ones(4), np.ones(4)), "labels is 'all alike'"),
        (lambda: streak_chain(np.ones(500)), "4 down days in a row"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(make, said):
    with pytest.raises(WorkbenchError) as refusal:
        make()
    assert said in str(refusal.value) and str(refusal.value).endswith(".")


def test_the_market_is_a_timeline_with_real_outcomes():
    pytest.importorskip("arch")
    returns = sp500_returns()
    assert len(returns) == 5030 and (returns <= -3).sum() == 71
    market = market_of_falls(returns)
    assert market.starts.shape == market.happened.shape == (501,)
    assert market.happened.mean() == pytest.approx(0.094, abs=1e-3)
    # Nothing after the day itself is known to a prefix: other returns to come leave its state and the model alone.
    changed = returns.copy()
    changed[4000:] = 0.0
    other = market_of_falls(changed)
    before = np.arange(2515, 4001, 5)
    assert (other.starts[: len(before)] == market.starts[: len(before)]).all()
    assert (other.chain.hazard == market.chain.hazard).all()
    streak = streak_chain(returns)
    assert (streak.hazard[:-1] == 0).all() and 0.3 < streak.hazard[-1] < 0.6
