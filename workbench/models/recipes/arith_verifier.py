"""The bundled model `embedded/arith-verifier`: which step is right, after any text so far, of the `arith` family.

Does: goes on from the weights of `embedded/arith-small`, on solutions that the three bundled sizes sampled, slips and all. At
each symbol of a step it learns the symbol of the right step, for as long as the step is right so far: the right step
is one, so the model's probability of a step is its belief that the step is right (see `workbench.models.verifier`).
Does not: see the held-out prompts, or text after the '#'. A head of one output on the body of `embedded/arith`, trained
on labels, stayed at an AUC below .7 for as long a training: it learnt where there is a carry, not to compare digits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.hf import HFModel
from workbench.models.loading import load
from workbench.models.recipes import ngram
from workbench.models.recipes.arith import TOKENS, tokenizer
from workbench.models.recipes.training import train
from workbench.models.sampling import sample
from workbench.models.tasks import arith_prompts, step_labels, terms_of
from workbench.models.verifier import step_probabilities
from workbench.streams import Stream

SEED, STEPS, BATCH = 0, 1500, 128
TOLERANCE = 0.3
SUMMARY = "Judges each step of a worked sum: the probability that it is right"
CARD = """
# embedded/arith-verifier

A two-layer Llama (width 32, 4 heads, 15 character tokens), `embedded/arith-small` trained on: it gives the right next
step of a worked sum, whatever the steps so far, so that its probability of a step is P(step is right | prompt, steps so
far). Checking is easier to learn than adding without slips: this body, small as it is, errs on few steps only.

- **For**: process rewards, verification under a budget, what happens when one searches against a verifier that errs.
- **Not for**: texts other than worked sums of two to four two-digit terms.
- **Use**: `workbench.models.step_probabilities(prompts, solutions)`.
- **Made by** `workbench.models.build("arith-verifier")`: 16,000 solutions sampled from each of `embedded/arith-small`,
  `embedded/arith` and `embedded/arith-large`; 1,500 steps of 128 of them. Not a head on a label: see the recipe for why.
- **Loss** (card.toml): mean -log P (nats) of the label, right or wrong, of a step, over 2,000 held-out solutions from each
  size. `base_rate` is the share of right steps there, `base_rate_loss` the loss of one who says just that. The n-gram
  baseline predicts the label from the last characters of the step, its order chosen on further solutions. `auc`: P(a
  right step gets a higher probability than a wrong one). `calibration_error`: expected calibration error in ten bins of
  equal counts; `brier`: mean squared error of the probability.
- **Licence**: Apache-2.0. No person's data, no harmful text.
"""
SIZES = ("arith-small", "arith", "arith-large")
_IGNORED = -100
_WRONG, _RIGHT, _ASKED = range(len(TOKENS), len(TOKENS) + 3)
_LEAST = 1e-6


def make(seed: int = SEED, steps: int = STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    ids, targets = _training(solutions(4000, "training"))
    stream = Stream.of(seed, "recipe", "arith-verifier", "batches")

    def batch_loss(network: torch.nn.Module, step: int) -> torch.Tensor:
        rows = torch.as_tensor(stream.at(step).generator().integers(len(ids), size=BATCH))
        logits = network(ids[rows, :-1]).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets[rows, 1:].flatten(), ignore_index=_IGNORED
        )

    adder: Any = load("embedded/arith-small", device="cpu")
    return train(
        _copied(adder.network), adder.network.config, batch_loss, seed=seed, steps=steps, rate=2e-3
    ), tokenizer()


def measured_loss(network: torch.nn.Module) -> float:
    """Mean -log P of the label of a step, over the held-out solutions."""
    p, right = judged(network)
    return float(-np.log(np.clip(np.where(right, p, 1 - p), _LEAST, 1)).mean())


def figures(network: torch.nn.Module) -> dict[str, Any]:
    """What the card says beside the loss; see CARD."""
    p, right = judged(network)
    training, validation, held_out = (
        _sequences(solutions(n, part)) for n, part in ((4000, "training"), (500, "validation"), (500, "held out"))
    )
    baseline = ngram.fit(training, validation, len(TOKENS) + 3, _labels(validation))
    rate = right.mean()
    order = p.argsort()
    ranks = np.empty(len(p))
    ranks[order] = np.arange(1, len(p) + 1)
    n_right = int(right.sum())
    bins = np.array_split(order, 10)
    return {
        "ngram_loss": baseline.loss(held_out, _labels(held_out)),
        "ngram_order": baseline.order,
        "base_rate": float(rate),
        "base_rate_loss": float(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate)),
        "auc": float((ranks[right].sum() - n_right * (n_right + 1) / 2) / (n_right * (len(p) - n_right))),
        "calibration_error": float(sum(abs(p[b].mean() - right[b].mean()) * len(b) for b in bins) / len(p)),
        "brier": float(np.square(p - right).mean()),
    }


def judged(network: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """P(right) and whether it was, for each step of the held-out solutions."""
    texts = solutions(500, "held out")
    found = step_probabilities(*zip(*texts, strict=True), model=HFModel(network, tokenizer(), "arith-verifier"))
    right = [step_labels(prompt, solution) for prompt, solution in texts]
    return np.concatenate(found), np.concatenate(right).astype(bool)


@lru_cache(maxsize=3)
def solutions(n_prompts: int, part: str) -> list[tuple[str, str]]:
    """Four samples from each size for each of n_prompts prompts of a part, each with its prompt, up to the '#'."""
    texts = []
    for size in SIZES:
        model, stream = load(f"embedded/{size}", device="cpu"), Stream.of(0, "recipe", "arith-verifier", part, size)
        prompts = arith_prompts(n_prompts, stream)
        drawn = sample(model, prompts, n=4, max_new_tokens=48, stream=stream.child("samples"))
        given = [model.decode(completion.tolist()).split("#")[0] for completion in drawn.completions()]
        texts += [(prompts[i // 4], solution) for i, solution in enumerate(given)]
    return texts


def right_symbols(prompt: str, solution: str) -> list[str]:
    """For each symbol of a solution, the one that the right step has there; "" once the step has gone wrong."""
    total, *rest = terms_of(prompt)
    wanted: list[str] = []
    for i, step in enumerate(solution.split(";")):
        right = f"{total}+{rest[i]}={total + rest[i]};" if i < len(rest) else "#"
        written = step + ";"
        wanted += [right[n] if n < len(right) and written[:n] == right[:n] else "" for n in range(len(written))]
        result = step.rpartition("=")[2]
        total = int(result) if result.isdigit() else total
    return wanted[: len(solution)]


def _training(texts: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (n, longest) filled up with <eos>, and at each symbol of a solution the right one, _IGNORED elsewhere."""
    ids = torch.zeros((len(texts), max(len(prompt + solution) for prompt, solution in texts)), dtype=torch.int64)
    targets = torch.full_like(ids, _IGNORED)
    for i, (prompt, solution) in enumerate(texts):
        ids[i, : len(prompt + solution)] = torch.as_tensor([TOKENS.index(symbol) for symbol in prompt + solution])
        wanted = [TOKENS.index(symbol) if symbol else _IGNORED for symbol in right_symbols(prompt, solution)]
        targets[i, len(prompt) : len(prompt) + len(wanted)] = torch.as_tensor(wanted, dtype=torch.int64)
    return ids, targets


def _copied(network: torch.nn.Module) -> Any:
    """An architecture, as `train` takes it, that begins with the weights of `network`."""

    def begin(config: LlamaConfig) -> LlamaForCausalLM:
        begun = LlamaForCausalLM(config)
        begun.load_state_dict(network.state_dict())
        return begun

    return begin


def _sequences(texts: list[tuple[str, str]]) -> list[np.ndarray]:
    """For each step, the text up to its ';', a token after which labels alone come, and its label."""
    out = []
    for prompt, solution in texts:
        tokens = [TOKENS.index(symbol) for symbol in prompt + solution]
        ends = [at for at in range(len(prompt), len(tokens)) if TOKENS[tokens[at]] == ";"]
        for end, right in zip(ends, step_labels(prompt, solution), strict=True):
            out.append(np.array([*tokens[: end + 1], _ASKED, _RIGHT if right else _WRONG]))
    return out


def _labels(sequences: list[np.ndarray]) -> list[np.ndarray]:
    return [np.arange(len(sequence)) == len(sequence) - 1 for sequence in sequences]
