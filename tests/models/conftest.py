"""Small random models of three architectures, written to disk once and loaded the way a user would."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from workbench.models import load
from workbench.models.grammars import codeword_grammar
from workbench.models.recipes.codeword import tokenizer

COMMON = {"vocab_size": 9, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def network(kind: str) -> torch.nn.Module:
    """A random network with clearly unequal next-token probabilities."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "gpt2":
            made = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, **COMMON))
        elif kind == "qwen2":
            config = Qwen2Config(**SHAPE, num_key_value_heads=2, max_position_embeddings=32, **COMMON)
            made = Qwen2ForCausalLM(config)
        else:
            made = LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=32, **COMMON))
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(5.0)
    return made.eval()


def words() -> PreTrainedTokenizerFast:
    return tokenizer(codeword_grammar())


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """{kind: folder} of models in Hugging Face format."""
    made = {}
    for kind in ("gpt2", "qwen2", "llama"):
        made[kind] = tmp_path_factory.mktemp(kind)
        network(kind).save_pretrained(made[kind])
        words().save_pretrained(made[kind])
    return made


@pytest.fixture(scope="session", params=["gpt2", "qwen2", "llama"])
def model(request, folders):
    return load(f"hf:{folders[request.param]}")


@pytest.fixture(scope="session")
def llama(folders):
    return load(f"hf:{folders['llama']}")


@pytest.fixture(scope="session")
def codeword():
    return load("embedded/codeword")


@pytest.fixture(scope="session")
def grammar():
    return codeword_grammar()
