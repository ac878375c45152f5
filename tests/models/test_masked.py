"""Sums with their carries, their exact marginals, and the masked model that learnt them."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import Meter, Stream
from workbench.errors import LacksCapability, WorkbenchError
from workbench.models import (
    card,
    carried_sums,
    equation_is_right,
    exact_marginals,
    load,
    next_log_probs,
    sample,
    score,
)
from workbench.models.equations import LENGTH, MASK_ID, equation_tokens
from workbench.models.recipes.masked import ORDERS, right_share


@pytest.fixture(scope="module")
def masked():
    return load("embedded/masked")


def test_the_language_holds_each_pair_of_terms_once_and_right():
    assert len(np.unique(carried_sums(), axis=0)) == len(carried_sums()) == 8100
    assert equation_is_right("37+48=085c") and equation_is_right("31+48=079n")
    for wrong in ("37+48=085n", "37+48=086c", "37+48=85c", "cccccccccc", "37+48=085y", "07+48=055c"):
        assert not equation_is_right(wrong)


def test_exact_marginals_by_hand():
    law = np.exp(exact_marginals([equation_tokens("37+48=____"), equation_tokens("1_+1_=0__n")]))
    assert law[0, 6, 0] == law[0, 7, 8] == law[0, 8, 5] == law[0, 9, 12] == 1
    # Without a carry the units of the terms add up to at most 9: 10 - d of 55 pairs begin with d.
    assert law[1, 1, :10] == pytest.approx((10 - np.arange(10)) / 55)
    assert law[1, 7, 2] == 1
    assert np.isnan(law[0, :6]).all() and np.isnan(law[1, 9]).all()
    empty = np.exp(exact_marginals([[MASK_ID] * LENGTH]))[0]
    assert empty[9, [12, 13]] == pytest.approx([0.45, 0.55])
    with pytest.raises(
        WorkbenchError, match=r"states\[0\] is '11\+11=999c' but must be fitted by a text of the language"
    ):
        exact_marginals([equation_tokens("11+11=999c")])


def test_marginals_are_laws_without_the_mask_and_nan_where_nothing_is_masked(masked):
    states = np.array([masked.encode(text) for text in ("__+__=____", "37+48=0_5_", "37+48=085c")])
    with Meter() as meter:
        found = masked.marginals(states)
    assert (meter.spend.tokens, meter.spend.model_calls) == (30, 3)
    assert found.shape == (3, 10, 15) and found.dtype == np.float64
    asked = states == masked.mask_id
    assert np.isnan(found[~asked]).all()
    assert np.exp(found[asked]).sum(axis=1) == pytest.approx(np.ones(asked.sum()))
    assert (found[asked][:, masked.mask_id] == -np.inf).all()


def test_a_row_does_not_depend_on_its_neighbours(masked):
    states = np.array([masked.encode("37+__=0_5_"), masked.encode("__+__=____"), masked.encode("9_+_8=1__n")])
    many = masked.marginals(np.repeat(states, 40, axis=0))
    for i, state in enumerate(states):
        np.testing.assert_array_equal(masked.marginals([state])[0], many[40 * i])


def test_the_model_is_near_the_exact_marginals(masked):
    generator = Stream.of(1, "masks").generator()
    drawn = carried_sums()[generator.integers(8100, size=300)]
    states = np.where(generator.random(drawn.shape) < generator.random((300, 1)), MASK_ID, drawn)
    asked = states == MASK_ID
    exact, learnt = np.exp(exact_marginals(states)[asked]), np.exp(masked.marginals(states)[asked])
    assert (np.abs(exact - learnt).sum(axis=1) / 2).mean() < 0.1


def test_texts_filled_one_by_one_are_right_and_filled_at_once_are_not(masked):
    stated = card("masked")
    for name, order in ORDERS.items():
        # Another 300 of the card's own draws: the card's share and ours differ by 4.9 standard deviations at most.
        share = right_share(masked.network, order, n=300)
        assert abs(share - stated[name]) < 4.9 * np.sqrt(0.25 / 300)
    assert min(stated["right_left_to_right"], stated["right_carry_first"]) > stated["right_at_once"] + 0.5


def test_what_only_a_causal_model_can_do_is_refused_by_name(masked):
    told = "embedded/masked can't do {!r}, being a masked model that reads both ways; fill its masks with marginals"
    stream = Stream.of(0)
    with pytest.raises(LacksCapability, match=told.format("sample")):
        sample(masked, "37+48=", max_new_tokens=4, stream=stream)
    with pytest.raises(LacksCapability, match=told.format("log_probs")):
        score(masked, "37+48=", "085y")
    with pytest.raises(LacksCapability, match=told.format("next_log_probs")):
        next_log_probs(masked, "37+48=")
    for capability, ask in (("hidden_states", masked.hidden_states), ("steer", lambda *_: masked.steered(None))):
        with pytest.raises(LacksCapability, match=told.format(capability)):
            ask("37+48=", 0)


def test_bad_states_are_refused(masked):
    for states, told in (
        ([[1, 2], [3]], "states is 'of several lengths' but must have shape"),
        ([1, 2, 3], r"states is 'of shape \(3,\) and kind int64' but must be whole numbers of shape"),
        ([[0.5, 1.0]], "kind float64' but must be whole numbers of shape"),
        ([[99] * 10], r"states\[0\]\[0\] is 99 but must be a token id from 0 to 14; encode"),
        (
            [[14] * 40],
            "states is '40 tokens long' but must fit the context of embedded/masked, 16 tokens; pass shorter",
        ),
    ):
        with pytest.raises(WorkbenchError, match=told):
            masked.marginals(states)
    with pytest.raises(WorkbenchError, match="text is 'what' but must be made of tokens that embedded/masked knows"):
        masked.encode("what")
    assert masked.decode(masked.encode("37+4_=___n")) == "37+4_=___n"
