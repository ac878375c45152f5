"""A sampling law is the one that it says: Hugging Face's own warpers agree, and log-probs are under it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, SuppressTokensLogitsProcessor
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.models import Law, event_mass, next_log_probs, prefix_tree, sample, score
from workbench.models.laws import likeliest, log_softmax

PROMPT = [4, 5, 6]
NO_IDS = torch.zeros(1, 1, dtype=torch.int64)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=30, unique=True),
    st.floats(0.2, 3),
    st.integers(1, 35),
    st.floats(0.05, 0.98),
)
def test_a_law_is_that_of_hugging_faces_warpers(logits, temperature, top_k, top_p):
    z = torch.tensor([logits], dtype=torch.float64)
    ours = torch.softmax(Law(temperature, top_k, top_p).scores(z), dim=-1)
    warped = TopPLogitsWarper(top_p)(
        NO_IDS, TopKLogitsWarper(top_k)(NO_IDS, TemperatureLogitsWarper(temperature)(NO_IDS, z))
    )
    theirs = torch.softmax(warped, dim=-1)
    # Theirs adds from the bottom, ours from the top: where the sum lands on top_p itself, rounding decides.
    cumulative = torch.softmax(z.sort(descending=True).values / temperature, dim=-1).cumsum(-1)
    if (cumulative - top_p).abs().min() > 1e-9:
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_processors_see_whole_texts_and_come_first(llama):
    processor = RepetitionPenaltyLogitsProcessor(3.0)
    seen = []

    def spy(ids, scores):
        seen.append((ids.clone(), scores.shape))
        return scores

    settings = {"n": 30, "max_new_tokens": 4, "stream": Stream.of(0, "processors"), "temperature": 0.7}
    drawn = sample(llama, [PROMPT, [7, 8, 4, 4]], logits_processor=LogitsProcessorList([processor, spy]), **settings)
    assert all(len(ids) == shape[0] for ids, shape in seen)
    for row, tokens in enumerate(drawn.completions()):
        text = list([PROMPT, [7, 8, 4, 4]][row // 30])
        for step, token in enumerate(tokens):
            with torch.no_grad():
                z = llama.network(torch.tensor([text])).logits[:, -1]
            law = torch.log_softmax(processor(torch.tensor([text]), z) / 0.7, dim=-1)
            assert drawn.log_probs[row, step] == pytest.approx(float(law[0, token]), abs=2e-5)
            text.append(int(token))


def test_log_probs_are_those_of_the_truncated_law_and_what_is_cut_is_never_drawn(llama):
    samples = sample(llama, PROMPT, n=500, max_new_tokens=1, stream=Stream.of(0, "cut"), top_k=3)
    law = torch.as_tensor(next_log_probs(llama, PROMPT))
    kept = law.topk(3).indices[0]
    assert set(samples.tokens.ravel()) <= set(kept.tolist())
    inside = torch.logsumexp(law[0, kept], dim=0)
    expected = (law[0] - inside).numpy()[samples.tokens[:, 0]]
    np.testing.assert_allclose(samples.log_probs[:, 0], expected, atol=1e-6)
    counts = [(samples.tokens == int(token)).sum() for token in kept]
    # One false alarm in a million.
    assert stats.chisquare(counts, 500 * (law[0, kept] - inside).exp().numpy()).pvalue > 1e-6


def test_greedy_is_hugging_faces_greedy(model):
    ids = torch.tensor([PROMPT])
    theirs = model.network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    ours = sample(model, PROMPT, max_new_tokens=12, greedy=True, stream=Stream.of(0, "greedy")).completions()[0]
    assert theirs[0, 3:].tolist() == ours.tolist()


def test_the_lowest_id_wins_a_tie_and_suppressed_tokens_lose(llama):
    tokens, _ = likeliest(torch.tensor([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0]]))
    assert tokens.tolist() == [1, 0]
    first = sample(llama, PROMPT, max_new_tokens=1, greedy=True, stream=Stream.of(0)).tokens[0, 0]
    processor = SuppressTokensLogitsProcessor([int(first)])
    second = sample(llama, PROMPT, max_new_tokens=1, greedy=True, stream=Stream.of(0), logits_processor=[processor])
    assert second.tokens[0, 0] == next_log_probs(llama, PROMPT)[0].argsort()[-2]


def test_what_is_recorded_is_the_models_own_law_whatever_is_drawn(llama):
    settings = {"n": 40, "max_new_tokens": 5, "stream": Stream.of(0, "record")}
    plain = sample(llama, PROMPT, record=event_mass([1, 3]), **settings)
    whole = sample(llama, PROMPT, record=lambda log_probs: log_probs, **settings)
    assert plain.recorded.shape == (40, 5)
    assert whole.recorded.shape == (40, 5, 9)
    assert np.array_equal(plain.tokens, whole.tokens)
    for row, (tokens, length) in enumerate(zip(whole.tokens, whole.lengths, strict=True)):
        kept = np.arange(length)
        np.testing.assert_allclose(
            whole.recorded[row, kept, tokens[:length]], whole.log_probs[row, :length], atol=1e-12
        )
        mass = np.logaddexp(whole.recorded[row, :length, 1], whole.recorded[row, :length, 3])
        np.testing.assert_allclose(plain.recorded[row, :length], mass, atol=1e-12)
        assert not plain.recorded[row, length:].any()
    cut = sample(llama, PROMPT, record=event_mass([1, 3]), top_k=2, temperature=0.5, **settings)
    assert np.array_equal(cut.recorded[:, 0], plain.recorded[:, 0])
    assert (event_mass([])(torch.zeros(3, 9)) == -torch.inf).all()


def test_the_recorded_hazards_give_the_events_probability(llama):
    """E[sum over steps before the event of P(event now)] = P(event): hazards along paths that go on, exactly."""
    tree = prefix_tree(llama, PROMPT, 4, [1])
    samples = sample(
        llama, PROMPT, n=4000, max_new_tokens=4, stop_ids=[1], stream=Stream.of(0, "hazard"), record=event_mass([1])
    )
    hazards = np.where(np.arange(4) < samples.lengths[:, None], np.exp(samples.recorded), 0.0).sum(axis=1)
    truth = tree.probability(tree.contains(1))
    # The normal law: a false-alarm probability of 6e-7 at z = 5.
    assert abs(hazards.mean() - truth) < 5 * hazards.std() / np.sqrt(4000)
    assert hazards.std() < np.sqrt(truth * (1 - truth))


def test_stop_sequences_of_ids_and_of_text(llama):
    settings = {"n": 300, "max_new_tokens": 8, "stream": Stream.of(0, "stops")}
    free = sample(llama, PROMPT, **settings)
    by_ids = sample(llama, PROMPT, stop_sequences=[[5, 6], [8]], **settings)
    by_text = sample(llama, PROMPT, stop_sequences=[llama.decode([5, 6]), llama.decode([8])], **settings)
    assert np.array_equal(by_ids.tokens, by_text.tokens)
    for row in range(300):
        text = free.completions()[row].tolist()
        ends = [i + 1 for i in range(len(text)) if text[i] == 8 or text[max(0, i - 1) : i + 1] == [5, 6]]
        length = ends[0] if ends else len(text)
        assert by_ids.completions()[row].tolist() == text[:length]
        if ends and text[length - 1] != 0:
            assert by_ids.finish_reasons[row] == "stop"


@pytest.mark.parametrize(
    "options, told",
    [
        ({"top_k": 0}, "top_k is 0 but must be a whole number at least 1; pass e.g. top_k=50"),
        ({"top_p": 0.0}, "top_p is 0.0 but must be a finite number greater than 0 and at most 1; pass e.g. top_p=0.9"),
        ({"top_p": 1.5}, "top_p is 1.5 but"),
        ({"logits_processor": ["no"]}, "logits_processor is 'no' but must be callable; pass functions"),
        ({"logits_processor": [lambda ids, scores: scores[:, :2]]}, "scores of function is .* must keep their shape"),
        ({"stop_sequences": [[]]}, r"stop_sequences\[0\] is 'empty' but must hold something to look for; leave it out"),
        ({"stop_sequences": [[99]]}, r"stop_sequences\[0\]\[0\] is 99 but must be a token id from 0 to 8"),
        (
            {"logits_processor": [lambda ids, scores: scores * torch.nan]},
            "logits of .* for prompt 0, sample 0, step 0 are not numbers",
        ),
    ],
)
def test_bad_laws_are_refused_in_one_sentence(llama, options, told):
    with pytest.raises(WorkbenchError, match=told) as refusal:
        sample(llama, PROMPT, n=2, max_new_tokens=3, stream=Stream.of(0), **options)
    assert "\n" not in str(refusal.value)


def test_scores_of_a_law_are_normalised_by_log_softmax(llama):
    law = log_softmax(Law(top_k=4).scores(torch.as_tensor(next_log_probs(llama, PROMPT))))
    assert float(law.exp().sum()) == pytest.approx(1)
    assert score(llama, PROMPT, [4])[0][0] <= law.max()
