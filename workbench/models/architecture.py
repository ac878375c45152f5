"""One map from a transformer to its named points, for the shapes of Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3,
GPT-2, Phi and Phi-3.

Does: says where a network's embedding, blocks, projections and norms are, and the settings (rotary frequencies, scales,
windows, soft caps) that its forward pass needs beside the weights; the tests rebuild every family's logits from the map
alone. Everything that steers, adapts or decodes reads this map and none other.
Does not: copy or change weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workbench.errors import LacksCapability

POINTS = ("layer_input", "attention_output", "mlp_output")
"""The points of a block at which the residual stream is read or written: what enters the block, what its attention
adds, and what its MLP adds. Where a block norms a part's output before adding it (Gemma 2 and 3), that norm's output."""


@dataclass(frozen=True)
class _Layout:
    """Attribute paths in a family's network; those of a block start at the block. None: the family has none."""

    family: str
    block: str
    trunk: str = "model"
    embedding: str = "embed_tokens"
    position_embedding: str | None = None
    layers: str = "layers"
    final_norm: str = "norm"
    rotary: str | None = "rotary_emb"
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    attention_projection: str = "o_proj"
    qk_norms: tuple[str, str] | None = None
    mlp: str = "mlp"
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    mlp_projection: str = "down_proj"
    attention_norm: str = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    gated: bool = True
    transposed: bool = False
    norm: str = "rms"
    activation: str = "hidden_act"


_QK_NORMS = ("q_norm", "k_norm")
_SANDWICH: dict[str, Any] = {
    "mlp_norm": "pre_feedforward_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
    "norm": "rms_plus_one",
    "activation": "hidden_activation",
}
_LAYOUTS = {
    "LlamaForCausalLM": _Layout("llama", "LlamaDecoderLayer"),
    "MistralForCausalLM": _Layout("mistral", "MistralDecoderLayer"),
    "Qwen2ForCausalLM": _Layout("qwen2", "Qwen2DecoderLayer"),
    "Qwen3ForCausalLM": _Layout("qwen3", "Qwen3DecoderLayer", qk_norms=_QK_NORMS),
    "GemmaForCausalLM": _Layout("gemma", "GemmaDecoderLayer", norm="rms_plus_one"),
    "Gemma2ForCausalLM": _Layout("gemma2", "Gemma2DecoderLayer", **_SANDWICH),
    "Gemma3ForCausalLM": _Layout("gemma3", "Gemma3DecoderLayer", qk_norms=_QK_NORMS, **_SANDWICH),
    "GPT2LMHeadModel": _Layout(
        "gpt2",
        "GPT2Block",
        trunk="transformer",
        embedding="wte",
        position_embedding="wpe",
        layers="h",
        final_norm="ln_f",
        rotary=None,
        attention="attn",
        qkv=("c_attn",),
        attention_projection="c_proj",
        gate_up=("c_fc",),
        mlp_projection="c_proj",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        gated=False,
        transposed=True,
        norm="layer",
        activation="activation_function",
    ),
    "PhiForCausalLM": _Layout(
        "phi",
        "PhiDecoderLayer",
        final_norm="final_layernorm",
        attention_projection="dense",
        qk_norms=("q_layernorm", "k_layernorm"),
        gate_up=("fc1",),
        mlp_projection="fc2",
        mlp_norm=None,
        gated=False,
        norm="layer",
    ),
    "Phi3ForCausalLM": _Layout("phi3", "Phi3DecoderLayer", qkv=("qkv_proj",), gate_up=("gate_up_proj",)),
}


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary position embedding of the first 2 len(inverse_frequencies) columns of each head, halves rotated.

    theta: the base. partial_factor: the share of a head's columns that is rotated. kind: "default", "linear", "llama3",
    "yarn", "dynamic", "longrope"; with the last two the frequencies here are those of short inputs. scale: what cos
    and sin are multiplied by.
    """

    theta: float
    partial_factor: float
    kind: str
    scaling: dict[str, Any]
    inverse_frequencies: torch.Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class Layer:
    """The named points of one block.

    attention_output and mlp_output are the modules whose output is added to the residual stream. qkv: (q, k, v), or
    one fused module whose output columns are q, k, v in that order; gate_up: (gate, up), one fused (gate first), or
    (up,) where the family has no gate. mlp_norm None: the MLP reads what the attention reads, in parallel with it.
    attention_scale multiplies q.k; softcap c: s <- c tanh(s / c); window: a token sees itself and the window - 1
    tokens before it (None: all).
    """

    module: nn.Module
    attention: nn.Module
    qkv: tuple[nn.Module, ...]
    attention_projection: nn.Module
    attention_output: nn.Module
    mlp: nn.Module
    gate_up: tuple[nn.Module, ...]
    mlp_projection: nn.Module
    mlp_output: nn.Module
    attention_norm: nn.Module
    mlp_norm: nn.Module | None
    attention_post_norm: nn.Module | None
    mlp_post_norm: nn.Module | None
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    attention_scale: float
    attention_softcap: float | None
    window: int | None
    rotary: Rotary | None


@dataclass(frozen=True, eq=False)
class Architecture:
    """A network's named points and settings; modules and tensors are the network's own, shared.

    norm: "rms" (x / rms(x) * w), "rms_plus_one" (x / rms(x) * (1 + w)) or "layer" (LayerNorm with bias), each with
    norm_epsilon. embedding_scale multiplies the embedding (rounded to the weights' dtype). gated: activation(gate) * up
    rather than activation(up). transposed: projections are (in, out) as in GPT-2's Conv1D rather than (out, in).
    logit_softcap c: logits <- c tanh(logits / c).
    """

    family: str
    network: nn.Module
    embedding: nn.Module
    position_embedding: nn.Module | None
    layers: tuple[Layer, ...]
    final_norm: nn.Module
    lm_head: nn.Module
    width: int
    n_heads: int
    n_key_value_heads: int
    head_width: int
    vocab_size: int
    context_length: int | None
    norm: str
    norm_epsilon: float
    activation: str
    activation_function: Callable[[torch.Tensor], torch.Tensor]
    gated: bool
    transposed: bool
    embedding_scale: float
    logit_softcap: float | None
    tied: bool


def architecture_of(network: nn.Module) -> Architecture:
    """The map of `network`, an `AutoModelForCausalLM` of a known family (compiled or adapted ones too).

    Raises LacksCapability for a class that is not known, or that lacks a part which its family has.
    """
    network = getattr(network, "_orig_mod", network)
    layout = _layout_of(network)
    config: Any = network.config
    config = config.get_text_config()
    trunk = _part(network, layout.trunk)
    blocks = _part(trunk, layout.layers)
    layers = tuple(_layer(layout, config, trunk, block, index) for index, block in enumerate(blocks))
    embedding, lm_head = _part(trunk, layout.embedding), _part(network, "lm_head")
    first = layers[0]
    heads = int(config.num_attention_heads)
    final_norm = _part(trunk, layout.final_norm)
    return Architecture(
        family=layout.family,
        network=network,
        embedding=embedding,
        position_embedding=_part(trunk, layout.position_embedding) if layout.position_embedding else None,
        layers=layers,
        final_norm=final_norm,
        lm_head=lm_head,
        width=int(config.hidden_size),
        n_heads=heads,
        n_key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_width=int(first.attention.head_dim),  # type: ignore[arg-type]
        vocab_size=int(config.vocab_size),
        context_length=getattr(config, "max_position_embeddings", None),
        norm=layout.norm,
        norm_epsilon=float(getattr(final_norm, "variance_epsilon", getattr(final_norm, "eps", 0.0))),
        activation=str(getattr(config, layout.activation)),
        activation_function=_activation(first.mlp),
        gated=layout.gated,
        transposed=layout.transposed,
        embedding_scale=float(getattr(embedding, "scalar_embed_scale", 1.0)),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        tied=getattr(embedding, "weight", None) is getattr(lm_head, "weight", lm_head),
    )


def point_modules(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of a decoder block whose outputs are added to the residual stream: attention_output, mlp_output.

    Raises LacksCapability for a block of another family, or without its family's parts.
    """
    kinds = {layout.block: layout for layout in _LAYOUTS.values()}
    layout = next((kinds[kind.__name__] for kind in type(block).__mro__ if kind.__name__ in kinds), None)
    if layout is None:
        raise LacksCapability(
            f"{type(block).__name__} is no decoder layer whose parts are known here; use kind='add', which needs the "
            f"layer's input only, or a model of the families {known_families()}."
        )
    return {
        "attention_output": _part(block, layout.attention_post_norm or layout.attention),
        "mlp_output": _part(block, layout.mlp_post_norm or layout.mlp),
    }


def projection_names(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """The weight matrices of a block by what they do, as paths from the block: qkv, attention_projection, gate_up,
    mlp_projection. Raises LacksCapability for an unknown family."""
    layout = _layout_of(network)
    inside = {
        "qkv": (layout.attention, layout.qkv),
        "attention_projection": (layout.attention, (layout.attention_projection,)),
        "gate_up": (layout.mlp, layout.gate_up),
        "mlp_projection": (layout.mlp, (layout.mlp_projection,)),
    }
    return {point: tuple(f"{part}.{name}" for name in names) for point, (part, names) in inside.items()}


def known_families() -> str:
    """The families of the map, for a sentence."""
    return ", ".join(layout.family for layout in _LAYOUTS.values())


def _layout_of(network: nn.Module) -> _Layout:
    layout = next((_LAYOUTS[kind.__name__] for kind in type(network).__mro__ if kind.__name__ in _LAYOUTS), None)
    if layout is None:
        raise LacksCapability(
            f"{type(network).__name__} is no architecture whose parts are known here; use a model of the families "
            f"{known_families()}, or kind='add', which needs the decoder layers only."
        )
    return layout


def _layer(layout: _Layout, config: Any, trunk: nn.Module, block: nn.Module, index: int) -> Layer:
    def part(path: str | None, inside: nn.Module = block) -> Any:
        return None if path is None else _part(inside, path)

    attention, mlp = part(layout.attention), part(layout.mlp)
    attention_post_norm, mlp_post_norm = part(layout.attention_post_norm), part(layout.mlp_post_norm)
    q_norm, k_norm = (getattr(attention, name, None) for name in layout.qk_norms or ("", ""))
    kinds = getattr(config, "layer_types", None)
    kind = kinds[index] if kinds else None
    windowed = kind in (None, "sliding_attention")
    return Layer(
        module=block,
        attention=attention,
        qkv=tuple(part(name, attention) for name in layout.qkv),
        attention_projection=part(layout.attention_projection, attention),
        attention_output=attention_post_norm or attention,
        mlp=mlp,
        gate_up=tuple(part(name, mlp) for name in layout.gate_up),
        mlp_projection=part(layout.mlp_projection, mlp),
        mlp_output=mlp_post_norm or mlp,
        attention_norm=part(layout.attention_norm),
        mlp_norm=part(layout.mlp_norm),
        attention_post_norm=attention_post_norm,
        mlp_post_norm=mlp_post_norm,
        q_norm=q_norm,
        k_norm=k_norm,
        attention_scale=float(attention.scaling),
        attention_softcap=getattr(attention, "attn_logit_softcapping", None),
        window=getattr(config, "sliding_window", None) if windowed else None,
        rotary=None if layout.rotary is None else _rotary(part(layout.rotary, trunk), config, kind),
    )


def _rotary(module: Any, config: Any, kind: str | None) -> Rotary:
    """The rotary settings of a block; Gemma 3 keeps one set for each kind of layer."""
    settings, prefix = config.rope_parameters, ""
    if kind in settings:
        settings, prefix = settings[kind], f"{kind}_"
    return Rotary(
        theta=float(settings["rope_theta"]),
        partial_factor=float(settings.get("partial_rotary_factor", 1.0)),
        kind=settings.get("rope_type", "default"),
        scaling={key: value for key, value in settings.items() if key not in ("rope_theta", "rope_type")},
        inverse_frequencies=getattr(module, f"{prefix}inv_freq"),
        scale=float(getattr(module, f"{prefix}attention_scaling")),
    )


def _activation(mlp: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return next(getattr(mlp, name) for name in ("act_fn", "activation_fn", "act") if hasattr(mlp, name))


def _part(inside: nn.Module, name: str) -> Any:
    found = getattr(inside, name, None)
    if found is None:
        raise LacksCapability(
            f"{type(inside).__name__} has no single part named {name} where its family has one, so its parts can't be "
            "told apart; use kind='add', or a model as transformers builds it."
        )
    return found
