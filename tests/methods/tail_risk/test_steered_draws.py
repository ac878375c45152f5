import numpy as np
import pytest

from workbench.errors import LacksCapability, WorkbenchError
from workbench.methods.tail_risk import steered_draws as draws
from workbench.methods.tail_risk.lm_tail_risk import Proposal
from workbench.models import prefix_tree
from workbench.models.grammars import CODEWORD
from workbench.problems.event import ModelEvent, codeword_event
from workbench.streams import Stream

STREAM = Stream.of(0, "steered draws")
SWITCHES = (0, 1, 3, None)


@pytest.fixture(scope="module")
def event():
    return codeword_event("grammar", (5, 6, 6))


@pytest.mark.parametrize("mixture", [0.0, 0.2, 1.0])
def test_both_ways_to_the_variance_ratio_agree(event, mixture):
    strengths = (0.0, 2.0, 5.0)
    by_states = draws.grammar_ratios(event, CODEWORD, strengths, mixture, SWITCHES)
    np.testing.assert_allclose(by_states, draws.enumerated_ratios(event, strengths, mixture, SWITCHES), rtol=1e-9)
    np.testing.assert_allclose(by_states[0], 1.0, rtol=1e-9)
    np.testing.assert_allclose(by_states[:, 0], 1.0, rtol=1e-9)
    assert mixture < 1 or by_states == pytest.approx(1.0)
    assert mixture == 1 or by_states[2, 1] > 20


def test_the_variance_of_draws_is_the_exact_one(event):
    proposal, k = Proposal(5.0, 0.2, 1), 100_000
    found = draws.weigh(event, proposal, k, STREAM)
    risk = event.truth
    ratio = draws.grammar_ratios(event, CODEWORD, [5.0], 0.2, [1])[0, 0]
    variance = risk * (1 - risk) / ratio
    # Bernstein: |mean - risk| <= sqrt(2 V L / k) + b L / (3 k) but for a chance of 2 exp(-L) < 1e-6; w <= 1 / 0.2.
    log_term = np.log(2e6)
    assert abs(found.value - risk) <= np.sqrt(2 * variance * log_term / k) + 5 * log_term / (3 * k)
    # The sample variance of terms in [0, 5]: their squares have mean <= 25 mean(term), so the same bound holds.
    second, largest = variance + risk**2, 25.0
    spread = np.sqrt(2 * largest * second * log_term / k) + largest * log_term / (3 * k)
    terms = np.where(found.hit, np.exp(found.log_weight), 0.0)
    assert abs((terms**2).mean() - second) <= spread
    assert found.trusted and 0 < found.ess <= found.hit.sum()
    assert found.std_error == pytest.approx(terms.std(ddof=1) / np.sqrt(k))


@pytest.mark.parametrize("switch", [0, 2, None])
def test_what_an_estimate_without_the_end_ratio_tends_to_is_the_sum_over_answers(switch):
    event, proposal = draws.running_on_event(4), Proposal(3.0, 0.2, switch)
    tree = prefix_tree(event.model, [list(event.prompt)], 4)
    pushed = tree.log_probs_under(event.steered(3.0))
    mixed = np.logaddexp(np.log(0.8) + pushed, np.log(0.2) + tree.log_prob)
    steered = (tree.token == 0) & (tree.depth <= (4 if switch is None else switch))
    terms = tree.path_sums(np.where(steered, mixed, tree.log_prob))
    expected = np.exp(terms[tree.is_leaf & event.judge(tree.tokens)]).sum()
    found = draws.risk_without_end_ratio(event, CODEWORD, proposal)
    assert found == pytest.approx(expected, rel=1e-9)
    assert (abs(found / event.truth - 1) > 1e-4) == (switch != 0)


def test_an_answer_that_stops_at_the_event_has_no_end_to_leave_out(event):
    assert draws.risk_without_end_ratio(event, CODEWORD, Proposal(5.0, 0.2, None)) == pytest.approx(event.truth)


def test_leaving_the_end_out_changes_the_answers_that_end_by_the_end_token_alone():
    event, proposal = draws.running_on_event(), Proposal(3.0, 0.2, None)
    whole, without = (draws.weigh(event, proposal, 500, STREAM, end_ratio=kept) for kept in (True, False))
    samples = whole.samples
    np.testing.assert_array_equal(samples.tokens, without.samples.tokens)
    ended = (samples.tokens == 0).any(axis=1)
    assert 0 < ended.sum() < 500
    np.testing.assert_array_equal(whole.log_weight[~ended], without.log_weight[~ended])
    last = samples.lengths[ended] - 1
    ratio = (samples.log_p - samples.log_q)[ended, last]
    np.testing.assert_allclose(whole.log_weight[ended] - without.log_weight[ended], ratio)
    np.testing.assert_allclose(whole.log_weight, samples.log_weights)


def test_hazards_begin_at_the_risk_end_at_what_happened_and_average_to_themselves(event):
    grammar = event.model
    tokens = [3, 4, 1]  # comply, a filler, X
    found = draws.hazards(event, tokens)
    np.testing.assert_allclose(found, draws.grammar_hazards(event, CODEWORD, tokens), rtol=1e-9)
    assert found[0] == pytest.approx(event.truth) and found[-1] == 1.0
    assert draws.hazards(event, [2, 0])[-1] == 0.0
    for before in ([], [3], [3, 5]):
        law = np.exp(grammar.table[grammar.state_after([[*event.prompt, *before]])[0]])
        after = [draws.grammar_hazards(event, CODEWORD, [*before, v])[-1] if law[v] else 0.0 for v in range(len(law))]
        assert law @ after == pytest.approx(draws.hazards(event, before)[-1], rel=1e-9)


def test_hazards_of_a_trained_model_are_a_law_too():
    event = codeword_event("embedded", (5, 6, 6))
    found = draws.weigh(event, Proposal(8.0, 0.2, 1), 200, STREAM)
    tokens = found.samples.completions()[int(np.flatnonzero(found.hit)[0])]
    hazard = draws.hazards(event, tokens.tolist())
    assert hazard[0] == pytest.approx(event.truth) and hazard[-1] == 1.0 and (np.diff(hazard)[-1] > 0)


def test_bad_input_is_refused(event):
    plain = ModelEvent(event.model, (5, 6, 6), event.judge, max_new_tokens=5, name="plain", stop_ids=(1,))
    with pytest.raises(LacksCapability, match=r"plain can't be steered.*; give the event steer="):
        draws.weigh(plain, Proposal(), 10, STREAM)
    with pytest.raises(LacksCapability, match=r"embedded.* is no grammar.*; enumerate"):
        draws.grammar_hazards(codeword_event("embedded", (5, 6, 6)), CODEWORD, [3])
    with pytest.raises(WorkbenchError, match=r"k is 1 but must be .* at least 2; draw at least two"):
        draws.weigh(event, Proposal(), 1, STREAM)
    with pytest.raises(WorkbenchError, match=r"tokens holds 3 where .* can't give it; pass tokens that were drawn"):
        draws.hazards(event, [3, 3])
