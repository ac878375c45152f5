"""The bundled model `embedded/arith`: a small Llama that adds in worked steps, and slips now and then.

Does: learns from worked solutions in which each step slips with a known probability (more often where there is a
carry) and goes on from the wrong running sum. So its errors differ between samples of one prompt, the majority is
right more often than a single sample, and prompts differ in difficulty in a way that is known.
Does not: learn from the slip-free solution alone; a model trained that way errs the same way each time.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.recipes.training import train
from workbench.models.tasks import arith_prompts, terms_of
from workbench.streams import Stream

SEED, STEPS, BATCH = 0, 1600, 96
TOLERANCE = 0.1
SUMMARY = "A small Llama that adds two-digit numbers in worked steps, and slips now and then"
CARD = """
# embedded/arith

A three-layer Llama (width 64, 4 heads, 15 character tokens) that answers "23+45+18=" with worked steps,
"23+45=68;68+18=86;#86". Right on about seven samples in ten at temperature 1, over prompts of two to four two-digit
terms; the majority of 16 samples and the likeliest answer are right far more often.

- **For**: methods that spend samples, tokens or verification on a question: voting, best of N, early stopping.
- **Not for**: arithmetic. **Its slips are taught**: it learnt from solutions in which each step goes wrong with
  probability 0.3 where the units carry and 0.05 elsewhere (`recipes.arith.slip_probability`), and goes on from the
  wrong running sum; so errors differ between samples, and how hard a prompt is, is known.
- **Made by** `workbench.models.build("arith")`: 1,600 steps of 96 solutions, drawn afresh each step (no data set),
  about five minutes on one core.
- **Loss** (card.toml): mean -log p of a token of 1,000 such solutions that are fixed, prompts left out. A rebuild may
  exceed it by the tolerance, a share of the loss.
- **Tasks**: `workbench.models.arith_prompts`, `true_answer`, `parse_answer`, `worked_solution`, `step_labels`.
- **Licence**: Apache-2.0. No person's data, no harmful text.
"""
TOKENS = ("<eos>", *"0123456789+=;#")
SLIP_PLAIN, SLIP_CARRY = 0.05, 0.3
_IGNORED = -100


def make(seed: int = SEED, steps: int = STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    words = tokenizer()
    batch = partial(_loss_of_batch, words, Stream.of(seed, "recipe", "arith"))
    return train(LlamaForCausalLM, config, batch, seed=seed, steps=steps, rate=3e-3), words


def measured_loss(network: torch.nn.Module) -> float:
    """Mean -log p of a token of 1,000 solutions, slips included, drawn once and for all from seed 0."""
    stream = Stream.of(0, "recipe", "arith", "held out")
    with torch.inference_mode():
        return float(_loss(network, *_texts(tokenizer(), arith_prompts(1000, stream), stream.generator())))


def slip_probability(left: int, right: int) -> float:
    """P(a step left + right goes wrong) in the solutions that the model learnt from."""
    return SLIP_CARRY if left % 10 + right % 10 >= 10 else SLIP_PLAIN


def solution_with_slips(prompt: str, generator: np.random.Generator) -> str:
    """A worked solution; a step that slips is out by one in the units or the tens, most often by a lost carry."""
    total, *rest = terms_of(prompt)
    steps = []
    for term in rest:
        result = total + term
        if generator.random() < slip_probability(total, term):
            likely = (-10, -10, -10, 10, -1, 1) if total % 10 + term % 10 >= 10 else (10, -10, -1, 1)
            result += int(generator.choice(likely))
        steps.append(f"{total}+{term}={result};")
        total = result
    return "".join(steps) + f"#{total}"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    characters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<eos>", pad_token="<eos>")


def _loss_of_batch(words: PreTrainedTokenizerFast, stream: Stream, network: torch.nn.Module, step: int) -> torch.Tensor:
    prompts = arith_prompts(BATCH, stream.at(step * BATCH))
    return _loss(network, *_texts(words, prompts, stream.child("slips").at(step).generator()))


def _texts(words: PreTrainedTokenizerFast, prompts: list[str], generator: np.random.Generator) -> tuple:
    """Token ids (n, longest), filled up with <eos>, and the same with everything that is not to be learnt ignored:
    the prompt and the filling."""
    solutions = [solution_with_slips(prompt, generator) for prompt in prompts]
    rows = [[*words.encode(p + s), 0] for p, s in zip(prompts, solutions, strict=True)]
    ids = torch.zeros((len(rows), max(len(row) for row in rows)), dtype=torch.int64)
    targets = torch.full_like(ids, _IGNORED)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        targets[i, len(prompt) : len(row)] = ids[i, len(prompt) : len(row)]
    return ids, targets


def _loss(network: torch.nn.Module, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = network(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=_IGNORED)
