"""The bundled model `embedded/arith`: a small Llama that adds in worked steps, and slips now and then.

Does: learns from worked solutions in which each step slips with a known probability (more often where there is a
carry) and goes on from the wrong running sum. So its errors differ between samples of one prompt, the majority is
right more often than a single sample, and prompts differ in difficulty in a way that is known.
Does not: learn from the slip-free solution alone; a model trained that way errs the same way each time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.hf import HFModel
from workbench.models.recipes import ngram
from workbench.models.recipes.training import measuring, train
from workbench.models.sampling import sample
from workbench.models.tasks import arith_prompts, parse_answer, terms_of, true_answer
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


def make(
    seed: int = SEED, steps: int = STEPS, *, width: int = 64, layers: int = 3, slips: float = 1.0
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine.

    The other sizes of the family pass their width and layers, and how often their teacher slips, as a multiple.
    """
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    words = tokenizer()
    batch = partial(_loss_of_batch, words, Stream.of(seed, "recipe", "arith"), slips)
    return train(LlamaForCausalLM, config, batch, seed=seed, steps=steps, rate=3e-3), words


def measured_loss(network: torch.nn.Module, slips: float = 1.0) -> float:
    """Mean -log p of a token of 1,000 solutions, slips included, drawn once and for all from seed 0."""
    stream = Stream.of(0, "recipe", "arith", "held out")
    with measuring():
        return float(_loss(network, *_texts(tokenizer(), arith_prompts(1000, stream), stream.generator(), slips)))


def figures(network: torch.nn.Module, slips: float = 1.0) -> dict[str, Any]:
    """What the cards of the family say beside the loss: the n-gram's loss and order, and `accuracy`."""
    stream, words = Stream.of(SEED, "recipe", "arith", "n-gram"), tokenizer()
    training, _ = _rows(words, arith_prompts(STEPS * BATCH, stream), stream.child("slips").generator(), slips)
    validation, valid = _rows(words, arith_prompts(1000, stream.child("validation")), stream.generator(), slips)
    held = Stream.of(0, "recipe", "arith", "held out")
    held_out, counted = _rows(words, arith_prompts(1000, held), held.generator(), slips)
    baseline = ngram.fit(training, validation, len(TOKENS), valid)
    share, low, high = accuracy(network)
    return {
        "ngram_loss": baseline.loss(held_out, counted),
        "ngram_order": baseline.order,
        "accuracy": share,
        "accuracy_low": low,
        "accuracy_high": high,
    }


def accuracy(network: torch.nn.Module, prompts: int = 1000, samples: int = 8) -> tuple[float, float, float]:
    """Share of right answers at temperature 1 and its 95% interval (normal, prompts as clusters), over prompts and
    randomness that are the same for every size."""
    stream, model = Stream.of(0, "recipe", "arith", "accuracy"), HFModel(network, tokenizer(), "arith")
    asked = arith_prompts(prompts, stream)
    drawn = sample(model, asked, n=samples, max_new_tokens=48, stream=stream.child("samples"))
    answers = [parse_answer(model.decode(completion.tolist())) for completion in drawn.completions()]
    right = np.array([answers[i] == true_answer(asked[i // samples]) for i in range(len(answers))])
    of_prompt = right.reshape(prompts, samples).mean(axis=1)
    margin = 1.96 * of_prompt.std(ddof=1) / np.sqrt(prompts)
    return float(of_prompt.mean()), float(of_prompt.mean() - margin), float(of_prompt.mean() + margin)


def slip_probability(left: int, right: int) -> float:
    """P(a step left + right goes wrong) in the solutions that the model learnt from."""
    return SLIP_CARRY if left % 10 + right % 10 >= 10 else SLIP_PLAIN


def solution_with_slips(prompt: str, generator: np.random.Generator, slips: float = 1.0) -> str:
    """A worked solution; a step that slips is out by one in the units or the tens, most often by a lost carry.
    slips: how often, as a multiple of `slip_probability`."""
    total, *rest = terms_of(prompt)
    steps = []
    for term in rest:
        result = total + term
        if generator.random() < slips * slip_probability(total, term):
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


def _loss_of_batch(
    words: PreTrainedTokenizerFast, stream: Stream, slips: float, network: torch.nn.Module, step: int
) -> torch.Tensor:
    prompts = arith_prompts(BATCH, stream.at(step * BATCH))
    return _loss(network, *_texts(words, prompts, stream.child("slips").at(step).generator(), slips))


def _rows(
    words: PreTrainedTokenizerFast, prompts: list[str], generator: np.random.Generator, slips: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The tokens of each prompt with a solution and <eos>, and which of them are to be learnt: not the prompt's."""
    texts = [prompt + solution_with_slips(prompt, generator, slips) for prompt in prompts]
    rows = [np.array([*ids, 0]) for ids in words(texts)["input_ids"]]
    return rows, [np.arange(len(row)) >= len(prompt) for row, prompt in zip(rows, prompts, strict=True)]


def _texts(
    words: PreTrainedTokenizerFast, prompts: list[str], generator: np.random.Generator, slips: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (n, longest), filled up with <eos>, and the same with everything that is not to be learnt ignored:
    the prompt and the filling."""
    rows, learnt = _rows(words, prompts, generator, slips)
    ids = torch.zeros((len(rows), max(len(row) for row in rows)), dtype=torch.int64)
    targets = torch.full_like(ids, _IGNORED)
    for i, (row, counted) in enumerate(zip(rows, learnt, strict=True)):
        ids[i, : len(row)] = torch.as_tensor(row)
        targets[i, : len(row)] = torch.where(torch.as_tensor(counted), ids[i, : len(row)], _IGNORED)
    return ids, targets


def _loss(network: torch.nn.Module, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = network(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=_IGNORED)
