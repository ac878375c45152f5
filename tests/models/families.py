"""A tiny random network of each family that the architecture map knows, with every setting of the family in play."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 41
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_GEMMA = _GROUPED | {"head_dim": 16}
_WINDOWED = {"sliding_window": 5, "query_pre_attn_scalar": 24}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GROUPED | {"rope_parameters": _LLAMA3}),
    "mistral": ("Mistral", _GROUPED | {"head_dim": 12, "sliding_window": 5}),
    "qwen2": ("Qwen2", _GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", _GROUPED | {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("Gemma", _GEMMA),
    "gemma2": ("Gemma2", _GEMMA | _WINDOWED | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3Text", _GEMMA | _WINDOWED | {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    "gpt2": ("GPT2", {"scale_attn_by_inverse_layer_idx": True}),
    "phi": ("Phi", _GROUPED | {"qk_layernorm": True}),
    "phi3": ("Phi3", _GROUPED | {"sliding_window": 5}),
}
_CLASSES = {"gemma3": "Gemma3ForCausalLM", "gpt2": "GPT2LMHeadModel"}
FAMILIES = tuple(SETTINGS)


def family_network(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random network of `family`, its own size unless `changes` to the config say otherwise; every parameter is
    random, so that no norm or bias can be left out unnoticed. Attention is eager, which alone knows soft caps."""
    prefix, settings = SETTINGS[family]
    options = _COMMON | settings | changes
    if "layer_types" in options:
        options["layer_types"] = options["layer_types"][: options["num_hidden_layers"]]
    if family == "gpt2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}
        options = {names.get(key, key): value for key, value in options.items()}
    config = getattr(transformers, f"{prefix}Config")(**options)
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = getattr(transformers, _CLASSES.get(family, f"{prefix}ForCausalLM"))(config)
        for parameter in network.parameters():
            spread = 0.15 if parameter.ndim > 1 else 0.2
            parameter.data.add_(spread * torch.randn_like(parameter))
    return network.eval()
