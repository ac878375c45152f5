"""What a configuration says about memory: parameters, linear layers, the cache's layers. No weights are read or made.

Does: builds the network on torch's "meta" device, where tensors have shapes and no storage, so that tied embeddings,
grouped heads and odd head widths are counted as the network itself has them.
Does not: run code that came with a model; for such a one, and for unknown kinds, it goes by the configuration's numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from workbench.models.quiet import quietly


@dataclass(frozen=True)
class Skeleton:
    """parameters: each counted once however often it is used; None where the kind is unknown. linear: shapes (out, in)
    of the matrices in linear layers, the output layer left out (quantisation leaves it as it is). cache: for each layer
    how many numbers a token's key and value are, and the most tokens kept (None: all)."""

    parameters: int | None
    linear: tuple[tuple[int, int], ...]
    cache: tuple[tuple[int, int | None], ...]
    vocab_size: int
    context_length: int | None


def skeleton(config: dict[str, Any]) -> Skeleton:
    """The skeleton of the model that a config.json describes."""
    return _skeleton(json.dumps(config, sort_keys=True))


@lru_cache(maxsize=32)
def _skeleton(config_json: str) -> Skeleton:
    raw = json.loads(config_json)
    config, network = _on_meta(raw)
    text = SimpleNamespace(**(raw.get("text_config") or raw)) if config is None else config.get_text_config()

    def number(*names: str, default: int = 0) -> int:
        return next((int(value) for name in names if (value := getattr(text, name, None)) is not None), default)

    heads = number("num_attention_heads", "n_head", default=1)
    head_width = number("head_dim", default=number("hidden_size", "n_embd") // max(1, heads))
    values = 2 * number("num_key_value_heads", default=heads) * head_width
    layers = number("num_hidden_layers", "n_layer")
    kept = _kept(config) if config is not None else [None] * layers
    output = None if network is None else network.get_output_embeddings()
    return Skeleton(
        parameters=None if network is None else sum(p.numel() for p in network.parameters()),
        linear=()
        if network is None
        else tuple(
            (m.out_features, m.in_features) for m in network.modules() if isinstance(m, nn.Linear) and m is not output
        ),
        cache=tuple((values, most) for most in kept),
        vocab_size=number("vocab_size"),
        context_length=number("max_position_embeddings", "n_positions") or None,
    )


def _kept(config: Any) -> list[int | None]:
    """The most tokens that each layer's cache keeps: a sliding window needs itself less the token being read."""
    from transformers import DynamicCache

    windows = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]
    return [None if window is None else int(window) - 1 for window in windows]


def _on_meta(raw: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration and the network, or None for what transformers does not know by itself."""
    with quietly():
        from transformers import AutoModelForCausalLM
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if raw.get("model_type") not in CONFIG_MAPPING or raw.get("auto_map"):
        return None, None
    try:
        with quietly():
            config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None, None
    try:
        with quietly(), torch.device("meta"), torch.random.fork_rng(devices=[]):
            return config, AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError):
        return config, None
