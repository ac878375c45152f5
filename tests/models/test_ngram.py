"""The baseline is a law over tokens, knows what it has seen, and finds the order that its text calls for."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.models.recipes import ngram


def markov(order: int, n: int, seed: int, vocabulary: int = 5) -> list[np.ndarray]:
    """Sequences in which a token depends on the `order` tokens before it, by a law drawn once."""
    law = np.random.default_rng(order).dirichlet(np.full(vocabulary, 0.3), size=vocabulary**order)
    generator, out = np.random.default_rng(seed), []
    for _ in range(n):
        row = list(generator.integers(vocabulary, size=order))
        for _ in range(60):
            context = sum(token * vocabulary**i for i, token in enumerate(row[-order:])) if order else 0
            row.append(int(generator.choice(vocabulary, p=law[context])))
        out.append(np.array(row))
    return out


@pytest.fixture(scope="module")
def fitted():
    return ngram.fit(markov(2, 300, 1), markov(2, 50, 2), 5)


def test_probabilities_add_up_after_contexts_seen_and_unseen(fitted):
    for context in ([0, 1, 2], [4, 4, 4, 4, 4, 4, 4, 4], [], [3]):
        asked = [np.arange(len(context) + 1) == len(context)]
        probs = [np.exp(-fitted.loss([np.array([*context, token])], asked)) for token in range(5)]
        assert sum(probs) == pytest.approx(1.0, abs=1e-12)
        assert min(probs) > 0


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_order_chosen_is_that_of_the_text(order):
    assert ngram.fit(markov(order, 300, 1), markov(order, 100, 2), 5).order == order + 1


def test_the_loss_is_near_the_entropy_of_a_text_of_its_own_order(fitted):
    law = np.random.default_rng(2).dirichlet(np.full(5, 0.3), size=25)
    held_out = markov(2, 200, 3)
    exact = [-np.log(law[row[t - 2] + 5 * row[t - 1], row[t]]) for row in held_out for t in range(2, len(row))]
    counted = [np.arange(len(row)) >= 2 for row in held_out]
    assert 0 < fitted.loss(held_out, counted) - np.mean(exact) < 0.01


def test_discounts_and_continuation_counts_by_hand():
    """Two sequences, order 1 only: "0 0 0 1" has counts 3 and 1; counts of counts of 2 and 4 are nil, so the fallback
    discounts hold: P(0) = (3 - 1.5 + 2 / 3) / 4, where 2 is the mass that discounts take and 3 the vocabulary."""
    model = ngram.fit([np.array([0, 0, 0, 1])], [np.array([2, 2, 1, 0])], 3)
    assert model.order == 1
    assert np.exp(-model.loss([np.array([0])])) == pytest.approx((3 - 1.5 + 2 / 3) / 4)
    assert np.exp(-model.loss([np.array([2])])) == pytest.approx(2 / 3 / 4)
