"""The map is right if a network's logits can be rebuilt from it alone: every point, every scale, every window."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.models.families import FAMILIES, VOCABULARY, family_network
from workbench.errors import LacksCapability
from workbench.models.architecture import POINTS, Architecture, Layer, architecture_of
from workbench.models.base import on_one_thread

IDS = torch.randint(0, VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def one_thread():
    with on_one_thread():
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    return family_network(request.param).double()


def linear(a: Architecture, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    weight = module.weight.T if a.transposed else module.weight
    return nn.functional.linear(x, weight, module.bias)


def norm(a: Architecture, module: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
    if module is None:
        return x
    if a.norm == "layer":
        return nn.functional.layer_norm(x, x.shape[-1:], module.weight, module.bias, a.norm_epsilon)
    gain = module.weight + 1 if a.norm == "rms_plus_one" else module.weight
    # The networks take their norms in float32 whatever their dtype.
    wide = x.float()
    unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + a.norm_epsilon)
    return unit.double() * gain.double()


def rotated(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    if layer.rotary is None:
        return x
    angles = torch.arange(x.shape[-2]).float()[:, None] * layer.rotary.inverse_frequencies.float()
    cos, sin = ((f(angles) * layer.rotary.scale).double() for f in (torch.cos, torch.sin))
    half = angles.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def attended(a: Architecture, layer: Layer, x: torch.Tensor) -> torch.Tensor:
    rows, length, _ = x.shape
    parts = torch.cat([linear(a, module, x) for module in layer.qkv], dim=-1)
    heads = parts.view(rows, length, -1, a.head_width).transpose(1, 2)
    q, k, v = heads.split([a.n_heads, a.n_key_value_heads, a.n_key_value_heads], dim=1)
    q, k = rotated(layer, norm(a, layer.q_norm, q)), rotated(layer, norm(a, layer.k_norm, k))
    shared = a.n_heads // a.n_key_value_heads
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    scores = (q @ k.transpose(-1, -2)) * layer.attention_scale
    if layer.attention_softcap is not None:
        scores = layer.attention_softcap * torch.tanh(scores / layer.attention_softcap)
    back = torch.arange(length)[:, None] - torch.arange(length)
    seen = (back >= 0) & (back < (layer.window or length))
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    return linear(a, layer.attention_projection, (weights @ v).transpose(1, 2).reshape(rows, length, -1))


def fed_forward(a: Architecture, layer: Layer, x: torch.Tensor) -> torch.Tensor:
    wide = torch.cat([linear(a, module, x) for module in layer.gate_up], dim=-1)
    if not a.gated:
        return linear(a, layer.mlp_projection, a.activation_function(wide))
    gate, up = wide.chunk(2, dim=-1)
    return linear(a, layer.mlp_projection, a.activation_function(gate) * up)


def rebuilt(a: Architecture, ids: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Logits from the map alone, and the value at each named point of each block."""
    h = a.embedding.weight[ids] * a.embedding_scale
    if a.position_embedding is not None:
        h = h + a.position_embedding.weight[: ids.shape[1]]
    points = []
    for layer in a.layers:
        seen = {"layer_input": h}
        normed = norm(a, layer.attention_norm, h)
        seen["attention_output"] = norm(a, layer.attention_post_norm, attended(a, layer, normed))
        h = h + seen["attention_output"]
        normed = normed if layer.mlp_norm is None else norm(a, layer.mlp_norm, h)
        seen["mlp_output"] = norm(a, layer.mlp_post_norm, fed_forward(a, layer, normed))
        h = h + seen["mlp_output"]
        points.append(seen)
    logits = nn.functional.linear(norm(a, a.final_norm, h), a.lm_head.weight, getattr(a.lm_head, "bias", None))
    return (logits if a.logit_softcap is None else a.logit_softcap * torch.tanh(logits / a.logit_softcap)), points


@torch.no_grad()
def test_the_logits_can_be_rebuilt_from_the_map_alone(network):
    """Tolerance: the networks round norms and rotary angles to float32 (relative 6e-8) inside a float64 pass."""
    a = architecture_of(network)
    logits, _ = rebuilt(a, IDS)
    torch.testing.assert_close(logits, network(IDS).logits, atol=2e-5, rtol=0)
    assert logits.std() > 0.1


@torch.no_grad()
def test_the_modules_at_the_named_points_carry_those_values(network):
    a = architecture_of(network)
    _, expected = rebuilt(a, IDS)
    for layer, values in zip(a.layers, expected, strict=True):
        seen = {}

        def keep(module, args, output, point, seen=seen):
            seen[point] = output[0] if isinstance(output, tuple) else output

        hooks = [getattr(layer, point).register_forward_hook(partial(keep, point=point)) for point in POINTS[1:]]
        hooks.append(
            layer.module.register_forward_pre_hook(lambda m, args, seen=seen: seen.update(layer_input=args[0]))
        )
        network(IDS)
        for handle in hooks:
            handle.remove()
        for point in POINTS:
            torch.testing.assert_close(seen[point], values[point], atol=2e-5, rtol=0)


def test_the_settings_are_those_of_the_config(network):
    a = architecture_of(network)
    assert (a.width, a.vocab_size, len(a.layers), a.context_length) == (32, VOCABULARY, 3, 64)
    assert a.tied == (network.lm_head.weight is network.get_input_embeddings().weight)
    assert a.embedding is network.get_input_embeddings()
    assert a.lm_head is network.get_output_embeddings()
    windows = {"mistral": [5, 5, 5], "phi3": [5, 5, 5], "qwen2": [None, 5, 5], "gemma2": [5, None, 5]}
    windows["gemma3"] = [5, None, 5]
    assert [layer.window for layer in a.layers] == windows.get(a.family, [None, None, None])


def test_a_compiled_network_has_the_map_of_its_origin():
    network = family_network("llama")
    assert architecture_of(torch.compile(network)).layers[1].module is network.model.layers[1]


def test_an_unknown_class_is_refused_with_what_is_known():
    class Unheard(nn.Module):
        pass

    told = r"Unheard is no architecture whose parts are known here; use a model of the families llama, .*phi3, or kind="
    with pytest.raises(LacksCapability, match=told):
        architecture_of(Unheard())


def test_a_network_without_one_of_its_familys_parts_is_refused():
    network = family_network("qwen3")
    network.model.layers[0].mixer = network.model.layers[0]._modules.pop("mlp")
    told = "Qwen3DecoderLayer has no single part named mlp where .*; use kind='add', or a model as transformers"
    with pytest.raises(LacksCapability, match=told):
        architecture_of(network)
