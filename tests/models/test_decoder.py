"""Our decoder is the network itself, and a row's bits do not depend on what is decoded beside it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.models.conftest import network
from workbench import Meter, Stream
from workbench.models import Steering, graphs, load, next_log_probs, products, sample, sample_in_step, score
from workbench.models.decoder import SHARED_FROM, Decoder, suits
from workbench.models.hf import HFModel
from workbench.models.products import BLOCK, row_quantum

COMMON = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
SHAPE = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "max_position_embeddings": 256}
NETWORKS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_attention_heads": 4}),
    "llama, grouped queries, biases": (
        LlamaForCausalLM,
        LlamaConfig,
        {"num_attention_heads": 6, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, one key head, llama3 positions": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": (
        MistralForCausalLM,
        MistralConfig,
        {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}),
}
SHORT, LONG = list(range(3, 15)), [(7 * i) % 49 + 1 for i in range(SHARED_FROM + 5)]


def make(kind: str) -> HFModel:
    architecture, configuration, options = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made = architecture(configuration(**COMMON, **SHAPE, **options)).eval()
        for name, parameter in made.named_parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter) if "norm" in name or "bias" in name else 0)
            if parameter.ndim > 1:
                parameter.data.mul_(3.0)
    return HFModel(made, None, kind)


WAYS = ("packed", "plain products", "float64")


@pytest.fixture(scope="module", params=[(kind, way) for kind in sorted(NETWORKS) for way in WAYS])
def any_model(request):
    return make_by(*request.param)


def make_by(kind, way):
    model = make(kind)
    if way == "plain products":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "LARGEST", 0)
            model = make(kind)
    elif way == "float64":
        model = HFModel(model.network.double(), None, kind)
    if way == "float64":
        assert model.decoder.by_rows is None
    else:
        kind = products.Packed if way == "packed" else products.Plain
        assert isinstance(model.decoder.by_rows.head, kind)
    return model


def plain(model, texts):
    with torch.no_grad():
        return torch.log_softmax(model.network(torch.tensor(texts)).logits.double(), dim=-1).numpy()


@pytest.mark.parametrize("prompt", [SHORT, LONG, [9]])
def test_sampled_and_scored_log_probs_are_those_of_a_full_forward_pass(any_model, prompt):
    drawn = sample(
        any_model, prompt, n=11, max_new_tokens=40, stream=Stream.of(0, "forward"), logits_processor=[no_end]
    )
    assert (drawn.lengths == 40).all()
    texts = [prompt + row.tolist() for row in drawn.tokens]
    law = plain(any_model, texts)[:, len(prompt) - 1 : -1]
    expected = np.take_along_axis(law, drawn.tokens[..., None], axis=2)[..., 0]
    # The sampler's law leaves the end of sequence out.
    inside = np.log1p(-np.exp(law[..., 0]))
    np.testing.assert_allclose(drawn.log_probs, expected - inside, atol=1e-5)
    scored = np.stack(score(any_model, [prompt] * 11, list(drawn.tokens)))
    np.testing.assert_allclose(scored, expected, atol=1e-5)
    np.testing.assert_allclose(next_log_probs(any_model, texts), plain(any_model, texts)[:, -1], atol=1e-5)


def no_end(ids, scores):
    return scores.index_fill(1, torch.tensor([0]), -torch.inf)


def rows(drawn, which):
    return [(drawn.tokens[i].tobytes(), drawn.log_probs[i].tobytes()) for i in which]


def test_a_sample_has_the_same_bits_for_every_batch_size_and_order_of_prompts(any_model):
    prompts = [SHORT, LONG, SHORT[::-1], LONG[::-1], [5]]
    stream, settings = Stream.of(1, "replay"), {"max_new_tokens": 20}
    whole = sample(any_model, prompts, n=64, stream=stream, **settings)
    for size in (1, 7, 64):
        for prompt in range(5):
            at = 64 * prompt
            first = at + (17 if size == 1 else 0)
            alone = sample(any_model, prompts[prompt], n=size, stream=stream.at(first), **settings)
            assert rows(alone, range(size)) == rows(whole, range(first, first + size)), (size, prompt)
    # One prompt after another, each at its own place in the stream.
    for order in ([4, 2, 0, 1, 3], [1, 3, 0, 4, 2]):
        mixed = [sample(any_model, prompts[p], n=64, stream=stream.at(64 * p), **settings) for p in order]
        for p, drawn in zip(order, mixed, strict=True):
            assert rows(drawn, range(64)) == rows(whole, range(64 * p, 64 * p + 64))
    # And all of them interleaved in batches that finished rows leave and waiting ones enter.
    sizes = any_model._sizes
    before, sizes.rows_at_once = sizes.rows_at_once, 24
    try:
        assert rows(sample(any_model, prompts, n=64, stream=stream, **settings), range(320)) == rows(whole, range(320))
    finally:
        sizes.rows_at_once = before


def test_two_hundred_and_fifty_six_are_the_same_as_one_and_as_seven():
    model, stream = load("embedded/codeword"), Stream.of(0, "sizes")
    prompt = [4, 5, 6]
    whole = sample(model, prompt, n=256, max_new_tokens=5, stream=stream)
    for size in (1, 7, 64):
        for first in range(0, 256 - size, 61):
            part = sample(model, prompt, n=size, max_new_tokens=5, stream=stream.at(first))
            assert rows(part, range(size)) == rows(whole, range(first, first + size))


def test_another_process_draws_the_same_bits_whatever_its_threads():
    program = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[1]))\n"
        "from workbench import Stream\nfrom workbench.models import load, sample\n"
        "drawn = sample(load('embedded/arith'), '23+45+18=', n=int(sys.argv[3]), max_new_tokens=30,"
        " stream=Stream.of(0, 'processes').at(int(sys.argv[2])))\n"
        "print(drawn.tokens.tolist(), [row.tobytes().hex() for row in drawn.log_probs])"
    )

    def run(threads, first, n):
        command = [sys.executable, "-c", program, str(threads), str(first), str(n)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        tokens, log_probs = told.rstrip().split("]] ", 1)
        return [row.strip("[] ") for row in tokens.split("], [")], eval(log_probs)

    whole = run(1, 0, 64)
    halves = [run(2, 0, 32), run(1, 32, 32)]
    assert halves[0][0] + halves[1][0] == whole[0]
    assert halves[0][1] + halves[1][1] == whole[1]


def test_where_widths_disagree_products_run_in_blocks_of_one_width(monkeypatch):
    monkeypatch.setattr(products, "LARGEST", 0)
    monkeypatch.setattr(products, "row_quantum", lambda weights: None)
    model = make("qwen3")
    assert model.decoder.by_rows.head.block == BLOCK
    drawn = sample(model, LONG, n=21, max_new_tokens=6, stream=Stream.of(0, "blocks"))
    np.testing.assert_allclose(
        np.concatenate([row[:n] for row, n in zip(drawn.log_probs, drawn.lengths, strict=True)]),
        np.concatenate(score(make("qwen3"), [LONG] * 21, drawn.completions())),
        atol=1e-5,
    )
    alone = sample(model, LONG, n=1, max_new_tokens=6, stream=Stream.of(0, "blocks").at(20))
    assert rows(alone, [0]) == rows(drawn, [20])


def test_the_quantum_found_here_holds_at_widths_that_were_not_tried():
    weights = [torch.randn(out, inner) for inner, out in ((48, 33), (128, 640), (300, 7))]
    quantum = row_quantum(weights)
    assert quantum in (4, 8, 16)
    for weight in weights:
        x = torch.randn(40 * quantum, weight.shape[1])
        whole = x @ weight.t()
        assert all(
            torch.equal(torch.nn.functional.linear(x[: quantum * k], weight), whole[: quantum * k])
            for k in range(4, 40)
        )


def test_steering_in_the_decoder_is_steering_by_hooks(any_model):
    generator = np.random.default_rng(0)
    for steering in (
        Steering(generator.normal(size=48), 2.0, "add", 1),
        Steering(generator.normal(size=48), 0.7, "ablate"),
        Steering(generator.normal(size=48), 1.0, "ablate", 2, ("mlp_output",)),
    ):
        steered = any_model.steered(steering)
        ours = next_log_probs(steered, [SHORT, LONG])
        hook = any_model.network.register_forward_hook(lambda *_: None)
        try:
            assert steered.decoder is None
            theirs = next_log_probs(steered, [SHORT, LONG])
        finally:
            hook.remove()
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.abs(ours - next_log_probs(any_model, [SHORT, LONG])).max() > 1e-3
        session = steered.start([LONG[:-1]])
        session.advance(LONG[-1:])
        np.testing.assert_allclose(session.log_probs[0].numpy(), ours[1], atol=1e-5)


def test_weights_changed_in_place_or_replaced_are_the_ones_used():
    model = make("llama")
    before = next_log_probs(model, SHORT)
    with torch.no_grad():
        model.network.model.layers[0].self_attn.k_proj.weight.mul_(1.5)
    changed = next_log_probs(model, SHORT)
    np.testing.assert_allclose(changed, plain(model, [SHORT])[:, -1], atol=1e-5)
    assert np.abs(changed - before).max() > 1e-3
    model.network.double()
    np.testing.assert_allclose(next_log_probs(model, SHORT), plain(model, [SHORT])[:, -1], atol=1e-12)


def test_views_and_second_models_of_a_network_share_its_joined_weights():
    model = make("llama, grouped queries, biases")
    view, second = model.steered(Steering(np.ones(48), 1.0, "add", 1)), HFModel(model.network, None, "second")
    assert view.decoder is model.decoder
    assert second.decoder.layers[0].qkv.data_ptr() == model.decoder.layers[0].qkv.data_ptr()
    for other in (model, view, second, model):
        made = other.decoder
        other.start([SHORT])
        assert other.decoder is made


def test_joined_weights_are_saved_whole(tmp_path):
    model = make("qwen3")
    model.network.save_pretrained(tmp_path)
    again = HFModel(Qwen3ForCausalLM.from_pretrained(tmp_path), None, "again")
    assert np.array_equal(next_log_probs(again, LONG), next_log_probs(model, LONG))


def test_other_kinds_and_windows_that_bind_go_by_their_own_forward_pass():
    assert not suits(network("gpt2"))
    window = MistralConfig(**COMMON, **SHAPE, num_attention_heads=4, num_key_value_heads=2, sliding_window=16)
    assert not suits(MistralForCausalLM(window))
    assert suits(network("llama"))
    assert Decoder(network("llama").double()).block is None


def test_every_weight_of_mild_proposals_has_mean_one():
    """20 random mild proposals: E_q[w] = 1 within 4 standard errors (all twenty: a false alarm once in 800 runs were the
    seed not fixed)."""
    model = load("embedded/codeword")
    generator = np.random.default_rng(5)
    scores = []
    for i in range(20):
        direction = generator.normal(size=model.width)
        steered = model.steered(Steering(direction / np.linalg.norm(direction), generator.uniform(0.1, 0.6), "add", 1))
        drawn = sample_in_step(
            [model, steered],
            [int(token) for token in generator.integers(4, 9, size=3)],
            fuse=lambda laws, rows, steps: laws[1],
            n=2000,
            max_new_tokens=5,
            stream=Stream.of(i, "mild"),
        )
        weights = np.exp(drawn.log_weights)
        scores.append((weights.mean() - 1) / (weights.std() / np.sqrt(len(weights))))
        assert weights.std() > 1e-3
    assert np.abs(scores).max() < 4
    # Nor are they all too near: the scores are normal ones.
    assert stats.kstest(scores, "norm").pvalue > 1e-6


def test_contrastive_decoding_is_the_law_that_it_says():
    model = make("llama")
    weak = model.steered(Steering(np.ones(48), 1.0, "add", 0))

    def contrast(laws, rows, steps):
        return torch.log_softmax(1.5 * laws[0] - 0.5 * laws[1], dim=-1)

    with Meter() as meter:
        drawn = sample_in_step(
            [model, weak], SHORT, fuse=contrast, n=50, max_new_tokens=6, stream=Stream.of(0, "contrast")
        )
    assert meter.spend.tokens == 2 * (50 * len(SHORT) + drawn.lengths.sum())
    texts = [SHORT + row[:n].tolist() for row, n in zip(drawn.tokens, drawn.lengths, strict=True)]
    for row, text in enumerate(texts):
        p, r = (
            np.stack([next_log_probs(m, text[:at])[0] for at in range(len(SHORT), len(text))]) for m in (model, weak)
        )
        q = 1.5 * p - 0.5 * r
        q -= np.logaddexp.reduce(q, axis=1, keepdims=True)
        new = text[len(SHORT) :]
        np.testing.assert_allclose(drawn.log_q[row, : len(new)], q[np.arange(len(new)), new], atol=5e-5)
        np.testing.assert_allclose(drawn.log_p[row, : len(new)], p[np.arange(len(new)), new], atol=2e-5)
        if row == 5:
            break


@pytest.mark.parametrize("prompt", [SHORT, LONG])
def test_the_step_that_cuda_graphs_capture_is_the_step(any_model, prompt):
    """Run here without a graph, on the CPU: shapes that do not change, what lies ahead masked."""
    decoder = make_by(any_model.name, "float64").decoder
    tokens = torch.as_tensor(np.random.default_rng(0).integers(1, 50, size=(45, 11)))
    start = torch.tensor([prompt])
    with torch.inference_mode():
        (plain_way, _), (static_way, _) = (decoder.start(start, np.zeros(11, dtype=int), {}) for _ in range(2))
        for row in tokens:
            usual = decoder.step([plain_way], row, {})
            static_way.make_room()
            for cache in static_way.own:
                cache[:, :, static_way.held :] = 0
            reach = static_way.position - static_way.held + static_way.own[0].shape[2]
            attend = graphs.attend_statically(decoder, static_way, torch.tensor([static_way.held]))
            filled, at = row[static_way.filling], torch.tensor([static_way.position])
            static = decoder.pass_over(filled, at, reach, [(static_way.width, attend)], {})[:11]
            static_way.held += 1
            torch.testing.assert_close(static, usual, atol=2e-5, rtol=0)
