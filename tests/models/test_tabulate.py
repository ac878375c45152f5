"""A tabulated model gives the very answers of the model it stands for, a thousand times faster."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import Stream
from workbench.models import GrammarModel, bigram, prefix_tree, sample, sample_mixture
from workbench.models.grammars import CODEWORD, COMPLY
from workbench.models.tabulate import tabulate
from workbench.problems.event import codeword_event, tabulate_event

PROMPT = [8, 7, 7]


def test_a_grammars_draws_are_the_same_token_for_token(grammar):
    tilted = grammar.steered({COMPLY: 5.0, CODEWORD: 1.0})
    for stops in ((), (CODEWORD,)):
        tree = prefix_tree(grammar, PROMPT, 5, stop_ids=stops)
        tables = tabulate(tree, grammar), tabulate(tree, grammar, tree.log_probs_under(tilted))
        told = {"n": 3000, "max_new_tokens": 5, "stop_ids": stops, "stream": Stream.of(0, "tabulated")}
        ours, theirs = sample(tables[0], [0], **told), sample(grammar, PROMPT, **told)
        for field in ("tokens", "lengths", "finish_reasons", "log_probs"):
            assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
        for mixture, switch in (
            (0.2, 1),
            (0.0, None),
            (np.resize([0.0, 0.5, 1.0], 3000), np.resize([0, 1, 5, 2], 3000)),
        ):
            ours = sample_mixture(*tables, [0], mixture=mixture, switch=switch, **told)
            theirs = sample_mixture(grammar, tilted, PROMPT, mixture=mixture, switch=switch, **told)
            for field in ("tokens", "lengths", "finish_reasons", "log_p", "log_q", "log_weights"):
                assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field


def test_a_trained_models_draws_are_the_same_token_for_token(codeword):
    n, steps = 400, 4
    tree = prefix_tree(codeword, PROMPT, steps, stop_ids=(CODEWORD,))
    told = {"n": n, "max_new_tokens": steps, "stop_ids": (CODEWORD,), "stream": Stream.of(0, "tabulated")}
    ours, theirs = sample(tabulate(tree, codeword), [0], **told), sample(codeword, PROMPT, **told)
    uniforms = told["stream"].uniforms(n, steps)
    for row in np.flatnonzero((ours.tokens != theirs.tokens).any(axis=1)):
        # Logits are float32 and their last bits depend on how many rows are read at once: a token may differ where
        # the random number falls on the step between two tokens, and nowhere else.
        step = int(np.flatnonzero(ours.tokens[row] != theirs.tokens[row])[0])
        before = (tree.depth == step) & (tree.tokens[:, :step] == ours.tokens[row, :step]).all(axis=1)
        law = np.exp(tree.log_prob[np.isin(tree.parent, np.flatnonzero(before))])
        assert np.abs(np.cumsum(law) - uniforms[row, step]).min() < 1e-5
    same = (ours.tokens == theirs.tokens).all(axis=1)
    assert same.mean() > 0.9 and len(np.unique(ours.tokens[same], axis=0)) > 20
    np.testing.assert_allclose(ours.log_probs[same], theirs.log_probs[same], atol=2e-5)


def test_every_prefix_has_the_models_own_law(grammar):
    language = bigram(5, rare=0.02)
    for model, prompt in ((grammar, PROMPT), (language, [3])):
        tree = prefix_tree(model, prompt, 3)
        table = tabulate(tree, model)
        for node in np.flatnonzero(~tree.is_leaf):
            said = tree.tokens[node, : tree.depth[node]].tolist()
            np.testing.assert_array_equal(
                table.next_log_probs(np.array([[0, *said]])), model.next_log_probs(np.array([[*prompt, *said]]))
            )
        assert (table.vocab_size, table.eos_ids) == (model.vocab_size, model.eos_ids)
        assert table.event_probability([0], CODEWORD, 3) == pytest.approx(
            model.event_probability(prompt, CODEWORD, 3), rel=1e-12
        )


def test_the_tables_of_one_tree_share_their_states_so_that_one_can_be_a_proposal_of_the_other(grammar):
    tilted = grammar.steered({COMPLY: 4.0})
    tree = prefix_tree(grammar, PROMPT, 4, stop_ids=(CODEWORD,))
    base, proposal = tabulate(tree, grammar), tabulate(tree, grammar, tree.log_probs_under(tilted))
    assert np.array_equal(base.transition, proposal.transition)
    ours = base.second_moment(proposal, [0], CODEWORD, 4, mixture=0.1, switch=2)
    theirs = grammar.second_moment(tilted, PROMPT, CODEWORD, 4, mixture=0.1, switch=2)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("ends", [(), (0, 4)])
def test_models_with_no_end_or_with_two_keep_them(ends):
    plain = bigram(6, rare=0.05)
    model = GrammarModel(plain.table, plain.transition, start_state=2, eos_id=ends[0] if ends else None)
    model.eos_ids = ends
    table = tabulate(prefix_tree(model, [2], 4), model)
    told = {"n": 2000, "max_new_tokens": 4, "stream": Stream.of(0, "ends")}
    ours, theirs = sample(table, [0], **told), sample(model, [2], **told)
    assert np.array_equal(ours.tokens, theirs.tokens) and np.array_equal(ours.finish_reasons, theirs.finish_reasons)
    assert set(theirs.finish_reasons) == ({"eos", "length"} if ends else {"length"})


def test_a_tabulated_event_draws_what_the_event_draws():
    event = codeword_event("grammar", tuple(PROMPT))
    tabulated = tabulate_event(event, (3.0, 6.0))
    stream, n = Stream.of(0, "event"), 500
    mixture, switch = np.resize([0.1, 0.8, 0.0], n), np.resize([0, 1, 5, 2], n)
    pairs = [
        (tabulated.event.sample(n, stream), event.sample(n, stream)),
        *(
            tuple(
                each.pilot_from(s, mixture, switch, n, stream, score_under=(6.0, 3.0))
                for each in (tabulated.event, event)
            )
            for s in (3.0, 6.0)
        ),
    ]
    for ours, theirs in pairs:
        assert theirs["hit"].any()
        for name in ours.keys() - {"tokens"}:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-12)
    # Its one-token prompt is the only difference in what it spends.
    assert np.array_equal(pairs[0][0]["tokens"] + 2, pairs[0][1]["tokens"])
