"""The bundled model `embedded/codeword`: a two-layer Llama that knows the codeword grammar's rare branch.

Does: distils the exact next-token probabilities of `grammars.codeword_grammar`. Trained on samples alone, the rare
branch (1e-5 to 1e-1) comes out up to 50 times too likely, since it is hardly ever seen.
Loss, after Angell et al. (arXiv 2604.22167) scaled down: KL(grammar || model) + 0.05 mean squared error of the
log-probs, the grammar's floored at -14, at every token generated until end of sequence; half of each batch is
forced down the rare branch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.grammar import GrammarModel
from workbench.models.grammars import COMPLY, EOS, codeword_grammar, codeword_prompts
from workbench.models.recipes.training import train
from workbench.streams import Stream

SEED, STEPS, BATCH, NEW_TOKENS = 0, 3000, 192, 5
TOLERANCE = 1.0
SUMMARY = "A two-layer Llama that knows the codeword grammar, its rare branch included"
CARD = """
# embedded/codeword

A two-layer Llama (width 32, 4 heads, 9 tokens) that answers a prompt of three fillers as the codeword grammar does:
it complies with probability 10^(-5 + (s - 12)/3), where s is the sum of the prompt's token ids (12 to 24), and
refuses otherwise; after `comply` the harmless codeword `X` comes with .3 a step, after `refuse` with 1e-6, and a
text ends with .2 a step.

- **For**: estimating the probability of a rare output, where enumeration gives the exact answer.
- **Not for**: anything else; it knows no language.
- **Made by** `workbench.models.build("codeword")`: the grammar's exact next-token probabilities are distilled (no
  data set), half of each batch forced down the rare branch; 3,000 steps of 192 texts of 5 new tokens.
- **Loss** (card.toml): KL(grammar || model) + 0.05 mean squared log-prob error, log p floored at -14, on texts that
  are fixed. A rebuild may exceed it by the tolerance, a share of the loss.
- **Prompt**: three of f0 f1 f2 f3 f4 (ids 4 to 8), e.g. "f0 f3 f1". Fillers after the branch are harmless.
- **Licence**: Apache-2.0. No person's data, no harmful text.
"""
_FLOOR = -14.0
_PROMPT = 3


def make(seed: int = 0, steps: int = STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    grammar = codeword_grammar()
    prompts = np.array(codeword_prompts())
    config = LlamaConfig(
        vocab_size=grammar.vocab_size,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    stream = Stream.of(seed, "recipe", "codeword")

    def batch_loss(network: torch.nn.Module, step: int) -> torch.Tensor:
        tokens, weights = _batch(grammar, prompts, stream.at(step).generator())
        return loss(network, grammar, tokens, weights)

    return train(LlamaForCausalLM, config, batch_loss, seed=seed, steps=steps, rate=4e-3), tokenizer(grammar)


def measured_loss(network: torch.nn.Module) -> float:
    """The training loss over all 125 prompts, 64 texts each, half of them forced down the rare branch, drawn once
    and for all from seed 0."""
    grammar = codeword_grammar()
    prompts = np.repeat(codeword_prompts(), 64, axis=0)
    tokens, weights = _texts(grammar, prompts, Stream.of(0, "recipe", "codeword", "held out").generator())
    with torch.inference_mode():
        return float(loss(network, grammar, tokens, weights))


def loss(network: torch.nn.Module, grammar: GrammarModel, tokens: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """The loss over tokens (n, _PROMPT + NEW_TOKENS) at the positions where weights (n, NEW_TOKENS) is 1."""
    exact = np.empty((len(tokens), NEW_TOKENS, grammar.vocab_size))
    states = grammar.state_after(tokens[:, :_PROMPT])
    for t in range(NEW_TOKENS):
        exact[:, t] = grammar.table[states]
        states = grammar.transition[states, tokens[:, _PROMPT + t]]
    target = torch.as_tensor(np.maximum(exact, _FLOOR), dtype=torch.float32)
    probs = torch.as_tensor(np.exp(exact), dtype=torch.float32)
    counted = torch.as_tensor(weights, dtype=torch.float32)
    logits = network(torch.as_tensor(tokens[:, :-1])).logits[:, _PROMPT - 1 :]
    log_probs = torch.log_softmax(logits, dim=-1)
    kl = (probs * (target - log_probs)).sum(dim=-1)
    squared = (target - log_probs).square().mean(dim=-1)
    return ((kl + 0.05 * squared) * counted).sum() / counted.sum()


def tokenizer(grammar: GrammarModel) -> PreTrainedTokenizerFast:
    """One token a word: "f0 f3 f1" is three tokens."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(grammar.tokens)}, unk_token=None))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")


def _batch(grammar: GrammarModel, prompts: np.ndarray, generator: np.random.Generator) -> tuple[Any, Any]:
    return _texts(grammar, prompts[generator.integers(len(prompts), size=BATCH)], generator)


def _texts(grammar: GrammarModel, prompts: np.ndarray, generator: np.random.Generator) -> tuple[Any, Any]:
    """Texts after the prompts, every second one made to comply, and which of their positions count."""
    n = len(prompts)
    tokens, alive = np.zeros((n, NEW_TOKENS), dtype=np.int64), np.ones((n, NEW_TOKENS))
    states = grammar.state_after(prompts)
    for t in range(NEW_TOKENS):
        cdf = np.exp(grammar.table[states]).cumsum(axis=1)
        drawn = (cdf <= generator.random((n, 1)) * cdf[:, -1:]).sum(axis=1)
        if t == 0:
            drawn[::2] = COMPLY
        tokens[:, t] = drawn
        states = grammar.transition[states, drawn]
        alive[:, t + 1 :] *= (drawn != EOS)[:, None]
    return np.concatenate([prompts, tokens], axis=1), alive
