"""The twist and its paths: exact sums over all paths, bounded weights, the optimum where the classes can express it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from workbench import Stream
from workbench.budget import Meter
from workbench.methods.tail_risk.beyond_tail_risk import TwistedSampling
from workbench.methods.tail_risk.twist import PathLaw, Twist, twisted_paths
from workbench.methods.tail_risk.twist_exact import exact_moments, train
from workbench.models import GrammarModel
from workbench.models.grammars import bigram
from workbench.problems.event import ModelEvent, codeword_event, generates, tabulate_event

TEMPERATURES = (1.0, 3.0, 0.7)
WORD = [1]


def untaught(table, **settings):
    none = np.zeros((0, table.event.max_new_tokens))
    return Twist(none.astype(int), none, none, 0, table.event.model.vocab_size, **settings)


def taught(table, **settings):
    """A twist that arbitrary paths taught, far from any optimum."""
    drawn = twisted_paths(table.event, PathLaw(untaught(table), 1.0, TEMPERATURES), 40, Stream.of(3), outcome=WORD)
    value = Stream.of(4).uniforms(*drawn.to_go.shape) * (drawn.tokens >= 0)
    return Twist(drawn.tokens, drawn.log_base, value, 0, table.event.model.vocab_size, **settings)


@pytest.fixture(scope="module")
def table():
    return tabulate_event(codeword_event("grammar", (6, 6, 6), max_new_tokens=4))


@pytest.mark.parametrize("outcome", [WORD, None], ids=["conditioned", "judged"])
@pytest.mark.parametrize("explore", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_over_all_paths_the_term_adds_up_to_the_risk_whatever_the_twist(table, outcome, explore, depth):
    law = PathLaw(taught(table, depth=depth), explore, TEMPERATURES)
    moments = exact_moments(table, law, outcome)
    assert moments.mass == pytest.approx(1, abs=1e-10)
    assert moments.mean == pytest.approx(table.event.truth, rel=1e-10)
    assert moments.paths.log_weight.max() <= law.log_weight_bound + 1e-9


def test_where_the_classes_tell_prefixes_apart_the_twist_learns_the_law_without_variance():
    grammar = bigram(5, rare=1e-4)
    event = ModelEvent(grammar, [2], partial(generates, WORD), max_new_tokens=4, name="bigram", stop_ids=WORD)
    table = tabulate_event(event)
    everything = exact_moments(table, PathLaw(untaught(table), 1.0, TEMPERATURES), WORD)
    paths, share = everything.paths, np.exp(everything.paths.log_density)
    value = share[:, None] * paths.to_go
    relative = {}
    for depth in (0, 1, 2, 3):
        twist = Twist(paths.tokens, paths.log_base, value, 0, 5, shrink=0.0, floor=1e-12, depth=depth)
        moments = exact_moments(table, PathLaw(twist, 1e-9, (1.0,)), WORD)
        relative[depth] = moments.variance / moments.mean**2
    # What is still to come depends on the token alone, and on the step: that is depth 2.
    assert max(relative[2], relative[3]) < 1e-7 < relative[1] < relative[0]


@pytest.mark.parametrize("outcome", [WORD, None], ids=["conditioned", "judged"])
def test_drawn_paths_have_the_law_that_they_are_scored_with(table, outcome):
    law, n = PathLaw(taught(table), 0.5, TEMPERATURES), 20_000
    drawn = twisted_paths(table.event, law, n, Stream.of(1), outcome=outcome)
    again = twisted_paths(table.event, law, n, Stream.of(2), outcome=outcome, given=drawn.tokens)
    for name in ("term", "to_go", "log_weight", "log_density", "laws_read", "tokens"):
        assert np.array_equal(getattr(drawn, name), getattr(again, name)), name
    moments = exact_moments(table, law, outcome)
    # Five standard errors, exact ones: a false alarm has chance 6e-7.
    assert abs(drawn.term.mean() - moments.mean) < 5 * np.sqrt(moments.variance / n)
    assert abs(drawn.laws_read.mean() + 3 - moments.tokens) < 5 * drawn.laws_read.std() / np.sqrt(n)


@pytest.mark.parametrize("explore", [0.2, 1.0])
def test_every_path_is_drawn_as_often_as_its_density_says(table, explore):
    law, n = PathLaw(taught(table), explore, TEMPERATURES), 30_000
    paths = exact_moments(table, law, None).paths
    share = dict(zip(map(tuple, paths.tokens.tolist()), np.exp(paths.log_density), strict=True))
    drawn = twisted_paths(table.event, law, n, Stream.of(5))
    found, times = np.unique(drawn.tokens, axis=0, return_counts=True)
    counts = dict(zip(map(tuple, found.tolist()), times, strict=True))
    assert counts.keys() <= share.keys()
    for path, p in share.items():
        if p * n >= 30:
            # Some hundred paths, six standard errors each: a false alarm has chance below 1e-6.
            assert abs(counts.get(path, 0) - p * n) < 6 * np.sqrt(p * n) + 2, path


def test_a_paths_tokens_depend_on_its_number_alone_and_are_paid_for(table):
    law = PathLaw(taught(table), 0.3, TEMPERATURES)
    with Meter() as meter:
        whole = twisted_paths(table.event, law, 50, Stream.of(1), outcome=WORD)
    part = twisted_paths(table.event, law, 20, Stream.of(1).at(30), outcome=WORD)
    assert np.array_equal(whole.tokens[30:], part.tokens) and np.array_equal(whole.term[30:], part.term)
    assert meter.spend.tokens == 50 * len(table.event.prompt) + whole.laws_read.sum()


def test_ratios_are_means_over_hits_shrunk_and_floored():
    tokens, value = np.array([[0, 2], [0, 1], [1, 2]]), np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    log_base = np.log([[0.5, 0.1], [0.5, 0.1], [0.2, 0.1]])
    learn = partial(Twist, tokens, log_base, value, start=2, vocab_size=3)
    # At step 0 both paths of weight took token 0 at b = 1/2, so its mean ratio is 2; N = 2.
    bare = np.exp(learn(shrink=0.0, floor=1e-6, depth=2).log_ratios(0, np.array([2])))
    assert bare == pytest.approx(np.array([[2.0, 1e-6, 1e-6]]))
    shrunk = np.exp(learn(shrink=2.0, floor=0.1, depth=1).log_ratios(1, np.array([0, 1])))
    assert shrunk == pytest.approx(np.array([[1.5, 0.5, 0.5]] * 2))
    assert np.all(learn(depth=0).log_ratios(0, np.array([2, 0])) == 0)
    nested = np.exp(learn(shrink=2.0, floor=0.1, depth=2).log_ratios(0, np.array([2])))
    assert nested == pytest.approx(np.array([[1.75, 0.25, 0.25]]))
    assert nested == pytest.approx(np.exp(learn(shrink=2.0, depth=3).log_ratios(0, np.array([1]))))


def test_values_far_apart_or_all_zero_leave_the_ratios_finite():
    tokens, log_base = np.array([[0], [1]]), np.log([[0.5], [0.5]])
    for value in (np.array([[1e-300], [1e-20]]), np.zeros((2, 1))):
        assert np.isfinite(Twist(tokens, log_base, value, 0, 2).log_ratios(0, np.array([0]))).all()


def test_an_outcome_that_is_certain_ends_the_path_with_all_of_its_weight():
    with np.errstate(divide="ignore"):
        rows = np.log(np.array([[0.0, 0.25, 0.75], [0.0, 1.0, 0.0]]))
    grammar = GrammarModel(rows, np.array([[0, 0, 1], [1, 1, 1]]), eos_id=0, name="certain in two")
    event = ModelEvent(grammar, [1], partial(generates, WORD), max_new_tokens=3, name="certain")
    none = np.zeros((0, 3))
    law = PathLaw(Twist(none.astype(int), none, none, 1, 3), 0.5, (1.0,))
    drawn = twisted_paths(event, law, 10, Stream.of(0), outcome=WORD)
    assert drawn.term == pytest.approx(np.ones(10)) and np.all(drawn.laws_read == 2)


def test_training_stops_where_the_estimate_would_begin(table):
    estimator = TwistedSampling(rounds=2, per_round=50)
    trained = train(estimator, table, Stream.of(0))
    assert len(trained.effective) == 2 and 100 * (3 + 1) < trained.tokens <= 100 * (3 + 4)
    before = exact_moments(table, PathLaw(untaught(table), 0.2, TEMPERATURES), WORD)
    after = exact_moments(table, trained.law, WORD)
    assert after.draws_for(0.1) < before.draws_for(0.1) / 20
