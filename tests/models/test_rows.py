"""Row after row: the compiled loops are the formulas, and a row has the same bits however many are beside it."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workbench import Stream
from workbench.models import load, next_log_probs, products, rows, sample

F32 = np.float32


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_the_exponential_is_right_to_the_last_bits_and_passes_nan_on():
    @numba.njit(fastmath={"contract"})
    def over(x, out):
        for i in range(x.size):
            out[i] = rows._exp(x[i])

    x = np.linspace(-87, 88, 400_001).astype(F32)
    out = np.empty_like(x)
    over(x, out)
    assert np.abs(out / np.exp(x.astype(float)) - 1).max() < 2e-7
    edges = np.array([np.nan, -np.inf, -1e30, np.inf, 0.0], F32)
    out = np.empty_like(edges)
    over(edges, out)
    assert np.isnan(out[0])
    assert (out[1:3] < 1e-37).all()
    assert out[3] > 1e38
    assert out[4] == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_a_product_has_the_same_bits_at_widths_that_were_not_tried(generator, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shapes = [(640, 128), (128, 384), (33, 50), (7, 301)]
        served = [shape for shape in shapes if products.agree((shape,), threads)]
        if not served:
            pytest.skip("this machine's library adds up in another order, so torch serves it")
        for outer, inner in served:
            weight = torch.from_numpy(generator.normal(size=(outer, inner)).astype(F32))
            bias = torch.from_numpy(generator.normal(size=outer).astype(F32))
            x = generator.normal(size=(600, inner)).astype(F32)
            product = products.Packed(weight, bias)
            whole = product(x)
            for n in (1, 2, 3, 4, 5, 14, 15, 17, 33, 65, 127, 130, 257, 599):
                np.testing.assert_array_equal(product(x[:n]), whole[:n])
            np.testing.assert_allclose(whole, F.linear(torch.from_numpy(x), weight, bias).numpy(), atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_attention_is_attention_over_what_the_prompt_and_the_row_hold(generator):
    n, heads, kv, d, length, held = 5, 6, 2, 16, 7, 9
    qkv = generator.normal(size=(n, heads + 2 * kv, d)).astype(F32)
    angle = np.repeat([generator.uniform(0, 6, d // 2)], 2, axis=0).reshape(-1)
    cos, sin = np.cos(angle).astype(F32), np.sin(angle).astype(F32)
    sin[: d // 2] *= -1
    prefix = generator.normal(size=(2, 3, kv, length, d)).astype(F32)
    prompt_of = np.array([0, 2, 1, 2, 0])
    own = np.full((2, n * kv, held + 4, d), np.nan, F32)
    own[:, :, :held] = generator.normal(size=(2, n * kv, held, d))
    out = np.empty((n, heads * d), F32)
    rows._attend(qkv, cos, sin, F32(0.3), prefix, prompt_of, own, held, out, 0, n)

    turned = qkv * cos + np.concatenate([qkv[..., d // 2 :], qkv[..., : d // 2]], axis=-1) * sin
    keys = np.concatenate([prefix[0, prompt_of], own[0].reshape(n, kv, -1, d)[:, :, :held]], axis=2)
    values = np.concatenate([prefix[1, prompt_of], own[1].reshape(n, kv, -1, d)[:, :, :held]], axis=2)
    keys = np.concatenate([keys, turned[:, heads : heads + kv, None]], axis=2)
    values = np.concatenate([values, qkv[:, heads + kv :, None]], axis=2)
    expected = F.scaled_dot_product_attention(
        torch.from_numpy(turned[:, :heads, None]),
        torch.from_numpy(keys),
        torch.from_numpy(values),
        scale=0.3,
        enable_gqa=True,
    )
    np.testing.assert_allclose(out, expected.reshape(n, -1), atol=2e-6)
    # The new key and value are kept.
    np.testing.assert_allclose(own[0, :, held].reshape(n, kv, d), turned[:, heads : heads + kv], atol=1e-6)
    np.testing.assert_array_equal(own[1, :, held].reshape(n, kv, d), qkv[:, heads + kv :])


def test_norms_and_gates_are_torchs_to_the_last_bits(generator):
    x, weight = generator.normal(size=(9, 50)).astype(F32), generator.normal(size=50).astype(F32)
    out = np.empty_like(x)
    rows._norm(x, weight, F32(1e-6), out, 0, 9)
    np.testing.assert_allclose(out, F.rms_norm(torch.from_numpy(x), (50,), torch.from_numpy(weight), 1e-6), atol=2e-6)
    both = (5 * generator.normal(size=(9, 46))).astype(F32)
    gated = np.empty((9, 23), F32)
    rows._gate(both, gated, 0, 9)
    gate, up = torch.from_numpy(both).chunk(2, dim=1)
    np.testing.assert_allclose(gated, F.silu(gate) * up, atol=1e-5)


def test_rows_split_among_threads_keep_their_bits():
    model, before = load("embedded/chat"), torch.get_num_threads()
    settings = {"n": 300, "max_new_tokens": 12, "stream": Stream.of(0, "threads")}
    prompt = list(range(20, 30))
    try:
        torch.set_num_threads(1)
        alone = sample(model, prompt, **settings)
        torch.set_num_threads(2)
        shared = sample(model, prompt, **settings)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(alone.tokens, shared.tokens)
    np.testing.assert_array_equal(alone.log_probs, shared.log_probs)


def test_weights_changed_behind_torchs_back_are_the_ones_used():
    model = load("embedded/codeword")
    before = next_log_probs(model, [4, 5])
    weight = model.network.model.layers[-1].mlp.down_proj.weight
    kept = weight.data.clone()
    try:
        weight.data *= 1.25
        assert np.abs(next_log_probs(model, [4, 5]) - before).max() > 1e-6
    finally:
        weight.data.copy_(kept)
    np.testing.assert_array_equal(next_log_probs(model, [4, 5]), before)


def test_where_the_librarys_products_have_other_bits_torch_serves(monkeypatch):
    products.agree.cache_clear()
    honest = products.Packed.many
    monkeypatch.setattr(products.Packed, "many", lambda self, x: honest(self, x) * F32(1.0000001))
    try:
        assert isinstance(products.choose([torch.zeros(8, 8)], 256, None)(torch.zeros(8, 8), None), products.Plain)
    finally:
        products.agree.cache_clear()
    monkeypatch.undo()
    for held, block in ((2 * products.LARGEST, None), (256, 8)):
        assert products.choose([torch.zeros(8, 8)], held, block) is not products.Packed
