"""Importance sampling and cross entropy against hand computation, enumeration and dynamic programming."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import workbench as wb
from workbench import Stream
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk import exact_risk
from workbench.methods.tail_risk import lm_tail_risk as tail
from workbench.methods.tail_risk.lm_tail_risk import (
    MIXTURES,
    CrossEntropy,
    ImportanceSampling,
    Pilot,
    Proposal,
    choose_proposal,
    cross_entropy,
    log_weights,
    run_pilot,
)
from workbench.methods.tail_risk.skewed_mean import skewness_corrected
from workbench.models import bigram, codeword_grammar, score, two_branch
from workbench.models.grammars import CODEWORD, COMPLY
from workbench.problems.analytic import GaussianTail
from workbench.problems.event import ModelEvent, codeword_event, generates, tabulate_event

PROMPT = (7, 7, 7)
STRENGTHS = (2.0, 4.0, 6.0)
SHORT = two_branch(0.05, 0.3, after_refuse=0.0, n_fillers=2)


def steered_short(strength):
    return SHORT.steered({COMPLY: strength, CODEWORD: -strength / 4})


def bernstein(variance, largest, n, chance=1e-6):
    """How far the mean of n independent terms of [0, largest] strays from its expectation, but for `chance`.

    variance and largest may be sums over, and the largest of, terms of unequal laws: then n is 1 and the mean a sum.
    """
    odds = math.log(2 / chance)
    linear = largest * odds / 3
    return (linear + math.sqrt(linear**2 + 2 * n * variance * odds)) / n


def log_mixed(log_p, log_q, mixture):
    """log((1 - mixture) q + mixture p) of one token, the plain way."""
    value = (1 - mixture) * math.exp(log_q) + mixture * math.exp(log_p)
    return math.log(value) if value > 0 else -math.inf


class Recorder:
    """An event that remembers which proposals it was asked to draw from."""

    def __init__(self, event):
        self.event, self.name, self.truth = event, event.name, event.truth
        self.max_new_tokens = getattr(event, "max_new_tokens", 1)
        self.pilots, self.batches = [], []

    def sample_from(self, proposal, n, stream):
        batch = self.event.sample_from(proposal, n, stream)
        self.batches.append((proposal, batch))
        return batch

    def pilot_from(self, strength, mixture, switch, n, stream, score_under):
        batch = self.event.pilot_from(strength, mixture, switch, n, stream, score_under)
        self.pilots.append((strength, mixture, switch, batch))
        return batch


@pytest.fixture(scope="module")
def short():
    """A grammar with few enough paths for the law of every particle, tabulated.

    Steering raises `comply` at the first token and, harmfully, lowers the codeword later: switches matter, and there
    are weights above 1, but none so large that Bernstein's bounds would say nothing.
    """
    grammar, judge = SHORT, lambda tokens: generates([CODEWORD], tokens)
    event = ModelEvent(grammar, [4], judge, max_new_tokens=4, name="short", stop_ids=[CODEWORD], steer=steered_short)
    return tabulate_event(event, STRENGTHS)


# The estimate and its diagnostics


def estimate_from(hit, log_weight, estimator=None):
    estimator = estimator or ImportanceSampling()
    state = estimator.init(codeword_event())
    return estimator.result(estimator.absorb(state, {"hit": np.array(hit), "log_weight": np.array(log_weight)}))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.floats(-30, 2)), min_size=2, max_size=60),
    st.sampled_from([0.5, 0.9, 0.95, 0.999]),
)
def test_the_estimate_is_what_plain_numpy_makes_of_the_draws(draws, level):
    hit, log_weight = (np.array(column) for column in zip(*draws, strict=True))
    estimate = estimate_from(hit, log_weight, ImportanceSampling(level=level))
    w, n = np.exp(log_weight), len(draws)
    terms = w * hit
    told = estimate.diagnostics
    assert told["hits"] == hit.sum() and estimate.n_samples == n and estimate.level == level
    assert told["mean_weight"] == pytest.approx(w.mean(), rel=1e-12)
    assert told["mean_weight_std_error"] == pytest.approx(w.std() / math.sqrt(n), rel=1e-6, abs=1e-7 * w.mean())
    seldom = 1 - ((1 - level) / 2) ** (1 / n)
    assert told["unseen_at_most"] == pytest.approx(min(1, 5 * seldom), rel=1e-12)
    if not hit.any():
        assert told["effective_sample_size"] == told["largest_weight_share"] == 0
        return
    assert told["effective_sample_size"] == pytest.approx(terms.sum() ** 2 / (terms**2).sum(), rel=1e-12)
    assert told["largest_weight_share"] == pytest.approx(terms.max() / terms.sum(), rel=1e-12)
    if terms.mean() > 1 or (hit.all() and np.ptp(log_weight) < 1e-3):
        assert not estimate.reliable and (estimate.value is None) == (estimate.interval == "whole range")
        return
    spread = terms.std(ddof=1) / math.sqrt(n)
    low, high = skewness_corrected(terms.mean(), terms.var(), ((terms - terms.mean()) ** 3).mean(), n, level)
    assert estimate.value == pytest.approx(terms.mean(), rel=1e-12)
    assert estimate.std_error == pytest.approx(spread, rel=1e-9)
    assert estimate.low == pytest.approx(max(0, low), rel=1e-6, abs=1e-6 * spread)
    assert estimate.high == pytest.approx(min(1, high), rel=1e-6)
    assert estimate.reliable == (told["effective_sample_size"] >= 30)


def test_without_a_hit_the_upper_end_is_the_largest_weight_times_the_rate_that_was_not_seen():
    estimate = estimate_from([False] * 500, [0.3] * 500, ImportanceSampling(8.0, mixture=0.5, switch=1))
    assert (estimate.value, estimate.low) == (0, 0) and estimate.std_error is None and not estimate.reliable
    assert estimate.high == pytest.approx(2 * (1 - 0.025 ** (1 / 500)), rel=1e-12)
    assert "no hit in 500 draws" in estimate.why and "weaker evidence" in estimate.why
    wide = estimate_from([False] * 500, [0.3] * 500, ImportanceSampling(8.0, mixture=0.0, switch=1))
    assert (wide.value, wide.low, wide.high) == (None, 0, 1) and "no hit in 500 draws" in wide.why


def test_the_bound_without_a_hit_covers_even_where_every_hit_has_the_largest_weight():
    # X comes after `refuse` alone and steering all but forbids `refuse`, so that the event comes from the base
    # model's share of 0.05 only, with the weight 1 / 0.05: p = 20 P_q(hit), as large as the bound allows.
    grammar, judge, reach = two_branch(0.5, 0.0, after_refuse=0.01), lambda tokens: generates([CODEWORD], tokens), []
    event = ModelEvent(grammar, [4], judge, max_new_tokens=2, name="b", steer=lambda s: grammar.steered({COMPLY: s}))
    tabulated = tabulate_event(event, [60.0])
    paths = exact_risk.event_paths(tabulated.tree, tabulated.hits, tabulated.log_q[60.0])
    q = np.exp(paths.log_p.sum(axis=1) - log_weights(paths.log_p, paths.log_q, 0.05)[:, 1]).sum()
    p = tabulated.event.truth
    assert p == pytest.approx(0.005) and p / q == pytest.approx(20, rel=1e-9)
    for n in np.unique(np.geomspace(2, 1e5, 60).astype(int)):
        high = estimate_from([False] * n, [0.0] * n, ImportanceSampling(60.0, 0.05, 1)).high
        # Either the truth is inside, or seeing no hit at all had a probability of at most (1 - level) / 2.
        reach.append(high >= p * (1 - 1e-9))
        assert reach[-1] or (1 - q) ** n <= 0.025
    assert reach[0] and not reach[-1]


def test_hits_of_weight_zero_are_no_hits():
    estimate = estimate_from([True, False, False], [-math.inf, 0.0, 0.0])
    assert estimate.diagnostics["hits"] == 0 and "no hit in 3 draws" in estimate.why


@pytest.mark.parametrize(
    "hit, log_weight, says",
    [
        ([True], [-2.0], "a single draw has no spread"),
        ([True, True, False], [3.0, 2.0, 0.0], "above 1"),
        ([True] * 50, [0.0] * 50, "all 50 draws hit with one weight"),
        *(([True] * n, [w] * n, f"all {n} draws hit with one weight") for n in (2, 7, 40) for w in (-0.1, -2.7, -9.0)),
    ],
)
def test_where_no_interval_can_be_had_the_whole_range_is_given_and_why(hit, log_weight, says):
    estimate = estimate_from(hit, log_weight)
    assert (estimate.value, estimate.low, estimate.high) == (None, 0, 1) and says in estimate.why
    assert not estimate.reliable and estimate.interval == "whole range"


def test_equal_weights_never_pass_rounding_off_as_spread():
    for log_weight in np.linspace(-9, -0.05, 150):
        assert estimate_from([True] * 40, [log_weight] * 40).value is None
    spread = estimate_from([True] * 40, np.linspace(-3.001, -3, 40))
    assert spread.value is not None and spread.low < spread.high


def test_too_few_effective_hits_are_told():
    few = estimate_from([True] * 29 + [False] * 71, [-3.0] * 100)
    enough = estimate_from([True] * 31 + [False] * 69, [-3.0] * 100)
    assert not few.reliable and "effective number of hits is 29, below 30" in few.why and enough.reliable
    uneven = estimate_from([True] * 200 + [False] * 300, [-9.0] * 190 + [-1.0] * 10 + [0.0] * 300)
    assert uneven.diagnostics["hits"] == 200 and not uneven.reliable and "below 30" in uneven.why


@pytest.mark.parametrize(
    "hit, log_weight, says",
    [
        ([True, True], [0.0, math.nan], ("log_weight", "NaN", "steered model's logits")),
        ([True, False], [0.0, math.inf], ("log_weight", "infinite", "steered model's logits")),
        ([True, False], [0.0, 400.0], ("log_weight reaches 400", "mixture=0.1")),
        ([True, False], [0.0, 1e4], ("log_weight reaches 1e+04", "mixture=0.1")),
        ([0.75, 0.0], [0.0, 0.0], ("batch['hit'] is 'float64 of shape (2,)'", "whether each draw hit")),
        ([[True], [False]], [0.0, 0.0], ("batch['hit'] is 'bool of shape (2, 1)'", "whether each draw hit")),
    ],
)
def test_weights_that_are_no_numbers_and_graded_hits_are_refused(hit, log_weight, says):
    with pytest.raises(WorkbenchError) as refusal:
        estimate_from(hit, log_weight)
    message = str(refusal.value)
    assert all(part in message for part in says) and message.endswith(".") and "\n" not in message


def test_a_missed_mode_is_spoken_of_where_the_interval_misses_the_truth():
    # The left tail is drawn with probability 1e-7 Phi(-3) a draw: among 2,000 with less than 3e-7.
    problem = GaussianTail(3.0, two_sided=True)
    estimate = wb.run(problem, ImportanceSampling(3.0, mixture=1e-7, switch=None), wb.Budget(samples=2000))
    assert estimate.reliable and estimate.diagnostics["effective_sample_size"] > 200
    assert estimate.high < problem.truth and "a mode may have been missed" in estimate.why
    assert estimate.low < problem.truth / 2 < estimate.high + 3 * estimate.std_error
    assert estimate.diagnostics["unseen_at_most"] > problem.truth - estimate.high

    # Four fifths of the risk is in answers that refuse first; the proposal refuses once in a million draws.
    grammar = two_branch(1e-4, 0.3, after_refuse=1e-4)
    judge = lambda tokens: generates([CODEWORD], tokens)  # noqa: E731
    steer = lambda strength: grammar.steered({COMPLY: strength})  # noqa: E731
    event = ModelEvent(grammar, [4], judge, max_new_tokens=3, name="two", stop_ids=[CODEWORD], steer=steer)
    truth = grammar.event_probability([4], CODEWORD, 3)
    # A draw that refuses and says X has probability below 1e-6 x 2e-4; 1,000 draws: 2e-7.
    estimate = wb.run(event, ImportanceSampling(40.0, mixture=1e-6, switch=1), wb.Budget(samples=1000))
    assert estimate.reliable and estimate.high < truth / 3 and "a mode may have been missed" in estimate.why


def test_a_bounded_proposal_that_has_seen_enough_is_not_warned_of():
    # Weights are at most 1.25 here and the risk is 0.07: what could be unseen is below half the interval.
    estimate = wb.run(GaussianTail(1.5), ImportanceSampling(1.0, mixture=0.8), wb.Budget(samples=5000))
    assert estimate.reliable and not estimate.why
    assert estimate.diagnostics["unseen_at_most"] < (estimate.high - estimate.low) / 2


# Weights and losses


def random_paths(seed, rows=12, steps=4):
    """log_p and log_q of made-up paths of unequal lengths, padded with 0."""
    rng = np.random.default_rng(seed)
    inside = np.arange(steps) < rng.integers(1, steps + 1, rows)[:, None]
    return np.where(inside, -rng.exponential(2, (rows, steps)), 0), np.where(
        inside, -rng.exponential(1, inside.shape), 0
    )


@pytest.mark.parametrize("mixture", [0.0, 1e-6, 0.3, 0.97, 1.0])
def test_log_weights_equal_a_loop_over_tokens(mixture):
    log_p, log_q = random_paths(0)
    found = log_weights(log_p, log_q, mixture)
    assert found.shape == (12, 5)
    for row, switch in np.ndindex(found.shape):
        terms = [log_p[row, t] - log_mixed(log_p[row, t], log_q[row, t], mixture) for t in range(switch)]
        assert found[row, switch] == pytest.approx(sum(terms), abs=1e-12)
    # No token's ratio exceeds 1 / mixture, and log_weight_bound is the sum of that.
    for switch in (*range(5), None):
        bound = Proposal(1.0, mixture, switch).log_weight_bound(4)
        assert found[:, 4 if switch is None else switch].max() <= bound + 1e-12
        assert (
            bound == pytest.approx((4 if switch is None else switch) * (-math.log(mixture) if mixture else math.inf))
            or not switch
        )
    assert Proposal(1.0, 0.0, 0).log_weight_bound(4) == 0 and Proposal(1.0, 0.5, 9).log_weight_bound(
        2
    ) == pytest.approx(math.log(4))


def test_equal_laws_have_a_weight_of_exactly_one():
    log_p, _ = random_paths(1)
    for mixture in MIXTURES:
        assert not log_weights(log_p, log_p.copy(), mixture).any()


def direct_cross_entropy(pilot, mixtures):
    rows, steps = pilot.log_p.shape
    out = np.zeros((len(mixtures), steps + 1))
    for m, switch in np.ndindex(out.shape):
        for i in range(rows):
            token = [
                log_mixed(pilot.log_p[i, t], pilot.log_q[i, t], mixtures[m]) if t < switch else pilot.log_p[i, t]
                for t in range(steps)
            ]
            out[m, switch] -= math.exp(pilot.log_weight[i]) * sum(token)
    return out / pilot.n


def random_pilot(seed, n=100, rows=12):
    return Pilot(n, *random_paths(seed, rows), np.random.default_rng([seed, 1]).normal(-3, 2, rows))


def test_cross_entropy_is_minus_the_weighted_log_probability_of_the_hits():
    for seed in range(3):
        pilot = random_pilot(seed)
        np.testing.assert_allclose(cross_entropy(pilot), direct_cross_entropy(pilot, MIXTURES), rtol=1e-12)
    nothing = Pilot(50, np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0))
    assert not cross_entropy(nothing).any() and cross_entropy(nothing).shape == (25, 5)


def test_a_particle_that_the_base_model_can_not_give_adds_nothing():
    pilot = random_pilot(0)
    impossible = np.array([[-1.0, -math.inf, 0.0, 0.0]]), np.array([[-1.0, -2.0, 0.0, 0.0]]), [-math.inf]
    longer = Pilot(
        100,
        *(np.concatenate(pair) for pair in zip((pilot.log_p, pilot.log_q, pilot.log_weight), impossible, strict=True)),
    )
    np.testing.assert_array_equal(cross_entropy(longer), cross_entropy(pilot))
    assert choose_proposal([{1.0: longer}])[0] == choose_proposal([{1.0: pilot}])[0]


def test_a_setting_that_can_not_draw_a_hit_is_never_chosen():
    log_p = np.full((5, 2), -1.0)
    log_q = np.tile([-0.1, -math.inf], (5, 1))
    best, loss, _ = choose_proposal([{2.0: Pilot(9, log_p, log_q, np.zeros(5))}], mixtures=(0.0, 0.5), least_mixture=0)
    assert loss[0, 0, 2] == math.inf and np.isfinite(loss).sum() == 5
    assert best == Proposal(2.0, 0.0, 1)


# The choice


def test_the_choice_is_the_smallest_loss_among_the_allowed():
    for seed in range(6):
        pilots = [{2.0: random_pilot(10 * seed + i), 5.0: random_pilot(10 * seed + i + 5)} for i in range(3)]
        total = sum(
            own / own.sum()
            for own in (np.stack([direct_cross_entropy(each[s], MIXTURES) for s in (2.0, 5.0)]) for each in pilots)
        )
        for least, free in ((0.1, 0), (0.1, 1), (0.5, 2), (0.0, 0)):
            chosen, loss, strengths = choose_proposal(pilots, least_mixture=least, free_switch=free)
            np.testing.assert_allclose(loss, total, rtol=1e-10)
            assert strengths == (2.0, 5.0)
            allowed = [(i, m, s) for i, m, s in np.ndindex(loss.shape) if MIXTURES[m] >= least or s <= free]
            i, m, s = min(allowed, key=lambda at: total[at])
            assert chosen == Proposal((2.0, 5.0)[i], MIXTURES[m], s)


def test_the_guard_holds_where_cross_entropy_would_leave_the_base_model_out():
    # The steered model gives each token of each hit a larger probability, so the loss wants no base model at all.
    log_p = np.full((20, 3), -2.0)
    pilots = [{4.0: Pilot(50, log_p, log_p + 1.5, np.zeros(20))}]
    assert choose_proposal(pilots, least_mixture=0)[0] == Proposal(4.0, 0.0, 3)
    assert choose_proposal(pilots)[0] == Proposal(4.0, 0.125, 3)
    assert choose_proposal(pilots, least_mixture=0.4)[0].mixture == pytest.approx(10 / 24, abs=1e-6)
    # With two free tokens, two at 0 are better than three at 0.9 or more.
    assert choose_proposal(pilots, least_mixture=0.9, free_switch=2)[0] == Proposal(4.0, 0.0, 2)


def test_a_strength_with_fewer_than_three_hits_is_left_out_though_its_loss_is_the_smallest():
    many, two, three = random_pilot(0), random_pilot(1, rows=2), random_pilot(1, rows=3)
    tiny = lambda pilot: replace(pilot, log_weight=pilot.log_weight - 20)  # noqa: E731
    chosen, loss, _ = choose_proposal([{2.0: many, 4.0: tiny(two)}])
    assert loss[1].max() < 1e-6 * loss[0].min() and chosen.strength == 2.0
    assert choose_proposal([{2.0: many, 4.0: tiny(three)}])[0].strength == 4.0
    # The hits of all prompts count together.
    one = random_pilot(2, rows=1)
    assert choose_proposal([{2.0: many, 4.0: tiny(two)}, {2.0: many, 4.0: tiny(one)}])[0].strength == 4.0


def test_no_hits_no_choice():
    nothing = Pilot(50, np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0))
    chosen, loss, strengths = choose_proposal([{2.0: nothing, 4.0: nothing}] * 3)
    assert chosen is None and not loss.any() and strengths == (2.0, 4.0)
    # A prompt without a hit contributes nothing to the others.
    pilots = [{2.0: random_pilot(0), 4.0: random_pilot(1)}]
    alone, beside = choose_proposal(pilots), choose_proposal([*pilots, {2.0: nothing, 4.0: nothing}])
    assert alone[0] == beside[0] and np.array_equal(alone[1], beside[1])


def test_scaling_one_prompts_weights_changes_nothing():
    pilots = [{2.0: random_pilot(i), 4.0: random_pilot(i + 5)} for i in range(3)]
    scaled = {s: replace(pilot, log_weight=pilot.log_weight + math.log(1000)) for s, pilot in pilots[1].items()}
    before, after = choose_proposal(pilots), choose_proposal([pilots[0], scaled, pilots[2]])
    assert before[0] == after[0]
    np.testing.assert_allclose(before[1], after[1], rtol=1e-12)


# The pilot


def test_the_pilot_is_a_function_of_its_stream_and_pools_the_same_hits(short):
    strengths = STRENGTHS
    own, pooled = run_pilot(short.event, strengths, 80, Stream.of(3, "pilot"))
    for a, b in zip(run_pilot(short.event, strengths, 80, Stream.of(3, "pilot")), (own, pooled), strict=True):
        for strength in strengths:
            for field in ("log_p", "log_q", "log_weight"):
                assert np.array_equal(getattr(a[strength], field), getattr(b[strength], field))
    other, _ = run_pilot(short.event, strengths, 80, Stream.of(4, "pilot"))
    assert any(not np.array_equal(other[s].log_weight, own[s].log_weight) for s in strengths)
    assert [own[s].n for s in strengths] == [80] * 3 and [pooled[s].n for s in strengths] == [240] * 3
    for strength in strengths:
        for field in ("log_p", "log_weight"):
            together = np.concatenate([getattr(own[s], field) for s in strengths])
            assert np.array_equal(getattr(pooled[strength], field), together)
    first, last = len(own[2.0].log_p), len(own[6.0].log_p)
    assert np.array_equal(pooled[2.0].log_q[:first], own[2.0].log_q)
    assert np.array_equal(pooled[6.0].log_q[-last:], own[6.0].log_q)
    assert not np.array_equal(pooled[2.0].log_q, pooled[6.0].log_q)


@pytest.mark.parametrize("way", ["run_pilot", "CrossEntropy"])
def test_each_particle_has_a_random_mixture_and_switch_and_is_weighed_against_its_own_proposal(short, way):
    strengths, particles, recorder = STRENGTHS, 600, Recorder(short.event)
    if way == "run_pilot":
        run_pilot(recorder, strengths, particles, Stream.of(0, "settings"))
    else:
        estimator = CrossEntropy(strengths, particles)
        estimator.draw(recorder, estimator.init(recorder), 3 * particles, Stream.of(0, "settings"))
    assert [strength for strength, *_ in recorder.pilots] == list(strengths)
    for number, (_, mixture, switch, batch) in enumerate(recorder.pilots):
        hit = batch["hit"]
        every = [
            log_weights(batch["log_p"][[i]], batch["log_q"][[i], number], mixture[i])[0, switch[i]]
            for i in np.flatnonzero(hit)
        ]
        assert len(every) > 50
        np.testing.assert_allclose(batch["log_weight"][hit], every, atol=1e-12)
    mixture, switch = (np.concatenate([each[i] for each in recorder.pilots]) for i in (1, 2))
    # Each p-value is uniform under the null, so three fail by chance with probability 1e-6 in all.
    assert stats.kstest(mixture, "uniform").pvalue > 3e-7
    assert stats.chisquare(np.bincount(switch, minlength=5)).pvalue > 3e-7 and switch.max() == 4
    assert stats.spearmanr(mixture, switch).pvalue > 3e-7


def test_pooled_losses_are_the_exact_cross_entropy_and_their_choice_its_optimum(short):
    strengths, particles, recorder = STRENGTHS, 30_000, Recorder(short.event)
    _, pooled = run_pilot(recorder, strengths, particles, Stream.of(0, "optimum"))
    found = np.stack([cross_entropy(pooled[s]) for s in strengths])
    by_strength = [exact_risk.event_paths(short.tree, short.hits, short.log_q[s]) for s in strengths]
    p = np.exp(by_strength[0].log_p.sum(axis=1))
    # (strengths, mixtures, T + 1, paths) -log q_phi(path), and the exact loss: its sum under p.
    minus_log_q = np.stack(
        [
            [(log_weights(path.log_p, path.log_q, m) - path.log_p.sum(axis=1)[:, None]).T for m in MIXTURES]
            for path in by_strength
        ]
    )
    exact = minus_log_q @ p
    # Given its mixture and switch a particle is one draw from a known law, so that its term's variance is known too.
    second, largest = np.zeros(len(p)), 0.0
    for path, (_, mixture, switch, _) in zip(by_strength, recorder.pilots, strict=True):
        mixed = mixture[:, None, None] * np.exp(path.log_p) + (1 - mixture[:, None, None]) * np.exp(path.log_q)
        ratio = np.where(np.arange(4) < switch[:, None, None], np.exp(path.log_p) / mixed, 1.0)
        w = ratio.prod(axis=2)
        second, largest = second + p * w.sum(axis=0), max(largest, w.max())
    n = 3 * particles
    variance = (minus_log_q**2 @ second) / n - exact**2
    allowed = np.vectorize(bernstein)(variance, largest * minus_log_q.max(axis=-1), n, 1e-6 / exact.size)
    assert (np.abs(found - exact) < allowed).all()
    assert np.median(allowed / exact) < 0.1 < np.ptp(exact) / exact.min(), "the bound says something"
    for least, free in ((0.0, 0), (0.1, 0), (0.1, 1)):
        chosen = choose_proposal([pooled], least_mixture=least, free_switch=free)[0]
        at = strengths.index(chosen.strength), MIXTURES.index(chosen.mixture), chosen.switch
        permitted = np.ones(exact.shape, dtype=bool)
        permitted[:, np.array(MIXTURES) < least, free + 1 :] = False
        assert exact[at] - exact[permitted].min() < 2 * allowed.max()
    # With a particle for each path and its exact weight the choice is the exact optimum.
    perfect = {s: Pilot(1, path.log_p, path.log_q, np.log(p)) for s, path in zip(strengths, by_strength, strict=True)}
    chosen = choose_proposal([perfect], least_mixture=0)[0]
    at = strengths.index(chosen.strength), MIXTURES.index(chosen.mixture), chosen.switch
    assert exact[at] == pytest.approx(exact.min(), rel=1e-12)


# The estimators


def test_cross_entropy_pays_for_its_pilot_and_does_not_reuse_it(short):
    estimator, recorder = CrossEntropy(STRENGTHS, particles=60), Recorder(short.event)
    estimate = wb.run(recorder, estimator, wb.Budget(samples=180 + 700), seed=2, batch_size=64)
    told = estimate.diagnostics
    proposal = Proposal(told["proposal_strength"], told["proposal_mixture"], told["proposal_switch"])
    assert told["proposal_chosen"] and told["pilot_samples"] == 180 and estimate.n_samples == 880
    assert estimate.spend.samples == 880
    assert {used for used, _ in recorder.batches} == {proposal}
    batches = [batch for *_, batch in recorder.pilots] + [batch for _, batch in recorder.batches]
    assert estimate.spend.tokens == sum(batch["tokens"].sum() for batch in batches)
    assert told["pilot_hits"] == sum(batch["hit"].sum() for *_, batch in recorder.pilots) > 20

    fresh = short.event.sample_from(proposal, 700, Stream.of(2, short.event.name).at(180))
    terms = np.exp(fresh["log_weight"]) * fresh["hit"]
    assert estimate.value == pytest.approx(terms.mean(), rel=1e-12)
    assert estimate.std_error == pytest.approx(terms.std(ddof=1) / math.sqrt(700), rel=1e-9)
    assert told["hits"] == fresh["hit"].sum()
    # The choice is that of the pooled hits, each scored under every strength.
    log_p, log_weight = (
        np.concatenate([b[name][b["hit"]] for *_, b in recorder.pilots]) for name in ("log_p", "log_weight")
    )
    log_q = np.concatenate([b["log_q"][b["hit"]] for *_, b in recorder.pilots])
    pilots = {s: Pilot(180, log_p, log_q[:, i], log_weight) for i, s in enumerate(estimator.strengths)}
    assert choose_proposal([pilots])[0] == proposal


def exact_spread(short, proposal):
    """(variance of a draw, by dynamic programming; the largest weight of a hit, by enumeration)."""
    told = {"mixture": proposal.mixture, "switch": proposal.switch}
    second = SHORT.second_moment(steered_short(proposal.strength), [4], CODEWORD, 4, **told)
    paths = exact_risk.event_paths(short.tree, short.hits, short.log_q[proposal.strength])
    column = 4 if proposal.switch is None else proposal.switch
    return second - short.event.truth**2, math.exp(
        log_weights(paths.log_p, paths.log_q, proposal.mixture)[:, column].max()
    )


@pytest.mark.parametrize("estimator", [ImportanceSampling(4.0, 0.2, None), CrossEntropy(STRENGTHS, particles=20)])
def test_both_estimators_are_unbiased(short, estimator):
    n, repeats, p = 100, 250, short.event.truth
    total, variance, largest, known = 0.0, 0.0, 0.0, {}
    for seed in range(repeats):
        stream, state, start = Stream.of(seed, "unbiased"), estimator.init(short.event), 0
        if isinstance(estimator, CrossEntropy):
            start = 60
            state = estimator.absorb(state, estimator.draw(short.event, state, start, stream))
        state = estimator.absorb(state, estimator.draw(short.event, state, n, stream.at(start)))
        chosen, sums = state.get("proposal"), state.get("final", state)
        settings = ("strength", "mixture", "switch")
        proposal = Proposal(*(chosen[name] for name in settings)) if chosen else estimator.proposal
        assert sums["n"] == n
        total += float(sums["terms"][0])
        if proposal not in known:
            known[proposal] = exact_spread(short, proposal)
        variance, largest = variance + n * known[proposal][0], max(largest, known[proposal][1])
    # Given the pilots, all n x repeats draws are independent with these exact variances: Bernstein at 1e-6.
    allowed = bernstein(variance, largest, 1)
    assert allowed < 0.06 * n * repeats * p
    assert abs(total - n * repeats * p) < allowed


def test_a_pilot_without_hits_falls_back_and_says_so():
    # Four particles hit with probability below 4 x 2e-8 each time.
    grammar, judge = two_branch(1e-8, 0.3, after_refuse=1e-9), lambda tokens: generates([CODEWORD], tokens)
    steer = lambda strength: grammar.steered({COMPLY: strength})  # noqa: E731
    problem = ModelEvent(grammar, [4], judge, max_new_tokens=4, name="rare", stop_ids=[CODEWORD], steer=steer)
    estimate = wb.run(problem, CrossEntropy((-9.0, -10.0), particles=2), wb.Budget(samples=500))
    told = estimate.diagnostics
    assert not told["proposal_chosen"] and told["pilot_hits"] == 0
    assert (told["proposal_strength"], told["proposal_mixture"], told["proposal_switch"]) == (4.0, 0.2, 1)
    assert estimate.why.endswith("the pilot found too few hits, so the proposal is the default one")
    early = wb.run(problem, CrossEntropy(particles=50), wb.Budget(samples=30))
    assert (early.value, early.low, early.high) == (None, 0, 1) and "30 of 150" in early.why


def test_leaving_out_the_end_of_sequence_ratio_is_biased_and_keeping_it_is_not():
    language, n = bigram(5, rare=0.05), 100_000
    steer = lambda s: language.steered({0: s, 1: 1.0})  # noqa: E731
    judge = lambda tokens: generates([1], tokens)  # noqa: E731
    event = ModelEvent(language, [2], judge, max_new_tokens=5, name="bigram", steer=steer)
    tabulated, proposal = tabulate_event(event, [2.5]), Proposal(2.5, 0.2, None)
    tree, leaves = tabulated.tree, np.flatnonzero(tabulated.tree.is_leaf & tabulated.hits)
    q_token = np.logaddexp(np.log(0.8) + tabulated.log_q[2.5], np.log(0.2) + tree.log_prob)
    q_token[0] = 0.0
    q = np.exp(tree.path_sums(q_token))[leaves]
    ratio = tree.log_prob - q_token
    for keep, biased in ((np.ones(len(tree), bool), False), (tree.token != 0, True)):
        w = np.exp(tree.path_sums(np.where(keep, ratio, 0.0)))[leaves]
        expected = np.sum(q * w)
        assert (
            abs(expected / event_truth(language) - 1) > 0.1
            if biased
            else expected == pytest.approx(event_truth(language))
        )
        drawn = event.mixed(2.5, 0.2, None, n, Stream.of(0, "eos"))
        kept = np.where(biased & (drawn.tokens == 0), 0.0, drawn.log_p - drawn.log_q)
        terms = np.exp(kept.sum(axis=1)) * judge(drawn.tokens)
        allowed = bernstein(np.sum(q * w**2) - expected**2, w.max(), n)
        assert allowed < 0.03 * expected, "small enough to tell the two apart"
        assert abs(terms.mean() - expected) < allowed
    # What the estimator gets is the first: every token of the answer, scored by the two models on their own.
    batch = event.sample_from(proposal, 200, Stream.of(1, "eos"))
    drawn = event.mixed(2.5, 0.2, None, 200, Stream.of(1, "eos"))
    assert (drawn.finish_reasons == "eos").sum() > 20
    prompts, answers = [[2]] * 200, drawn.completions()
    pairs = zip(score(language, prompts, answers), score(event.steered(2.5), prompts, answers), strict=True)
    by_hand = [np.sum(p - np.logaddexp(np.log(0.8) + q, np.log(0.2) + p)) for p, q in pairs]
    np.testing.assert_allclose(batch["log_weight"], by_hand, atol=1e-12)


def event_truth(language):
    return language.event_probability([2], 1, 5)


# Refusals


class Unsteered:
    name, truth = "unsteered-thing", None

    def sample(self, n, stream):
        return {"hit": np.zeros(n, dtype=bool)}


@pytest.mark.parametrize("estimator", [ImportanceSampling(), CrossEntropy()])
@pytest.mark.parametrize(
    "problem",
    [
        Unsteered(),
        ModelEvent(codeword_grammar(), PROMPT, lambda t: t[:, 0] == 1, max_new_tokens=2, name="unsteered-thing"),
    ],
)
def test_a_problem_without_steering_is_refused_by_name(estimator, problem):
    with pytest.raises(Unsuitable, match=rf"{type(estimator).__name__} needs .* unsteered-thing has none; .*steer="):
        wb.run(problem, estimator, wb.Budget(samples=10))


GOOD = {2.0: random_pilot(0), 4.0: random_pilot(1)}


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: Proposal(strength=math.nan), ("strength is nan", "such as 4.0")),
        (lambda: Proposal(strength=1e5), ("strength is 100000.0", "such as 4.0")),
        (lambda: Proposal(mixture=1.2), ("mixture is 1.2", "mixture=0.2")),
        (lambda: Proposal(mixture=-0.1), ("mixture is -0.1", "mixture=0.2")),
        (lambda: Proposal(mixture=math.nan), ("mixture is nan", "mixture=0.2")),
        (lambda: Proposal(switch=-1), ("switch is -1", "None for never")),
        (lambda: Proposal(switch=1.5), ("switch is 1.5", "None for never")),
        (lambda: ImportanceSampling(switch="never"), ("switch is 'never'", "None for never")),
        (lambda: ImportanceSampling(level=1.0), ("level is 1.0", "level=0.95")),
        (lambda: CrossEntropy(strengths=()), ("strengths is 'empty'", "(2.0, 4.0, 6.0)")),
        (lambda: CrossEntropy(strengths=4.0), ("strengths is 4.0", "(2.0, 4.0, 6.0)")),
        (lambda: CrossEntropy(strengths=(2.0, 2.0)), ("strengths is (2.0, 2.0)", "different", "(2.0, 4.0, 6.0)")),
        (lambda: CrossEntropy(strengths=(2.0, math.nan)), ("strengths[1] is nan", "(2.0, 4.0, 6.0)")),
        (lambda: CrossEntropy(strengths=(2.0, 1e5)), ("strengths is 100000.0", "(2.0, 4.0, 6.0)")),
        (lambda: CrossEntropy(particles=0), ("particles is 0", "100 is usual")),
        (lambda: CrossEntropy(particles=2.5), ("particles is 2.5", "100 is usual")),
        (lambda: CrossEntropy(level=math.nan), ("level is nan", "level=0.95")),
        (lambda: choose_proposal([]), ("pilots is 'of strengths []'", "run_pilot")),
        (lambda: choose_proposal([{}]), ("pilots is 'of strengths [()]'", "run_pilot")),
        (
            lambda: choose_proposal([GOOD, {2.0: GOOD[2.0]}]),
            ("pilots is 'of strengths [(2.0, 4.0), (2.0,)]'", "run_pilot"),
        ),
        (lambda: choose_proposal([GOOD], least_mixture=1.5), ("least_mixture is 1.5", "0.1")),
        (lambda: choose_proposal([GOOD], least_mixture=math.nan), ("least_mixture is nan", "0.1")),
        (lambda: choose_proposal([GOOD], free_switch=-1), ("free_switch is -1", "pass 0")),
        (lambda: choose_proposal([GOOD], mixtures=(0.1, 2.0)), ("mixture is 2.0", "mixture=0.2")),
        (lambda: cross_entropy(replace(GOOD[2.0], log_weight=np.full(12, math.nan))), ("log_weight is nan", "check")),
        (lambda: cross_entropy(replace(GOOD[2.0], log_weight=np.full(12, 800.0))), ("log_weight is 800", "share")),
        (lambda: log_weights(np.zeros((1, 2)), np.zeros((1, 2)), math.nan), ("mixture is nan", "mixture=0.2")),
        (lambda: run_pilot(GaussianTail(), (), 5, Stream.of(0)), ("strengths is 'empty'", "(2.0, 4.0, 6.0)")),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    message = str(refusal.value)
    assert all(part in message for part in says), message
    assert message.endswith(".") and "\n" not in message


def test_a_pilot_runs_on_a_problem_of_one_token():
    own, pooled = run_pilot(GaussianTail(1.0), (1.0, 2.0), 50, Stream.of(0, "gauss"))
    assert own[1.0].log_p.shape[1] == 1 and choose_proposal([pooled])[0].switch in (0, 1)
    assert tail.LEAST_ESS == 30
