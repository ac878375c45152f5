"""The bundled model `embedded/arith-verifier`: P(step is right | prompt, steps so far) for the `arith` family.

Does: puts a head on the body of `embedded/arith` and trains both by cross-entropy on `step_labels` of solutions that
the three bundled sizes sampled, so that it sees the slips of weak and of strong models.
Does not: see the held-out prompts, or text after the '#'.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForTokenClassification, PreTrainedTokenizerFast

from workbench.models.loading import load
from workbench.models.recipes import ngram
from workbench.models.recipes.arith import TOKENS, tokenizer
from workbench.models.recipes.training import measuring, train
from workbench.models.sampling import sample
from workbench.models.tasks import arith_prompts, step_labels, terms_of
from workbench.streams import Stream

SEED, STEPS, BATCH = 0, 1000, 128
TOLERANCE = 0.25
SUMMARY = "Judges each step of a worked sum: the probability that it is right"
CARD = """
# embedded/arith-verifier

`embedded/arith` (three layers, width 64) with a head of one output, body and head trained: log-odds that the step which ends at a ';' is right, given the
prompt and the steps so far. Token classification in Hugging Face's terms; it does not generate.

- **For**: process rewards, verification under a budget, what happens when one searches against a verifier that errs.
- **Not for**: texts other than worked sums of two to four two-digit terms.
- **Use**: `workbench.models.step_probabilities(prompts, solutions)`.
- **Made by** `workbench.models.build("arith-verifier")`: 12,000 solutions sampled from each of `embedded/arith-small`,
  `embedded/arith` and `embedded/arith-large`, labelled by `step_labels`; 1,000 steps of 128 of them.
- **Loss** (card.toml): mean -log P (nats) of the label of a step, over 2,000 held-out solutions from each size.
  `base_rate` is the share of right steps there, `base_rate_loss` the loss of one who says just that. The n-gram baseline
  predicts the label from the last characters of the step, its order chosen on further solutions. `auc`: P(a right step
  gets a higher probability than a wrong one). `calibration_error`: expected calibration error in ten bins of equal
  counts; `brier`: mean squared error of the probability.
- **Licence**: Apache-2.0. No person's data, no harmful text.
"""
SIZES = ("arith-small", "arith", "arith-large")
_IGNORED = -1
_WRONG, _RIGHT, _WRONG_SO_FAR, _RIGHT_SO_FAR = 0, 1, 2, 3


def make(seed: int = SEED, steps: int = STEPS) -> tuple[LlamaForTokenClassification, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    config.num_labels = 1
    ids, labels = solutions(4000, "training")
    stream = Stream.of(seed, "recipe", "arith-verifier", "batches")

    def batch_loss(network: torch.nn.Module, step: int) -> torch.Tensor:
        rows = torch.as_tensor(stream.at(step).generator().integers(len(ids), size=BATCH))
        logits, target = network(ids[rows]).logits[..., 0], labels[rows]
        asked = target != _IGNORED
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[asked], (target[asked] % 2).float())

    return train(_on_the_adder, config, batch_loss, seed=seed, steps=steps, rate=2e-3), tokenizer()


def measured_loss(network: torch.nn.Module) -> float:
    """Mean -log P of the label of a step, over the held-out solutions."""
    p, right = judged(network)
    return float(-np.log(np.where(right, p, 1 - p)).mean())


def figures(network: torch.nn.Module) -> dict[str, Any]:
    """What the card says beside the loss; see CARD."""
    p, right = judged(network)
    training, validation, held_out = (
        _sequences(*solutions(n, part)) for n, part in ((4000, "training"), (500, "validation"), (500, "held out"))
    )
    baseline = ngram.fit(training, validation, len(TOKENS) + 2, _labels(validation))
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
    ids, labels = solutions(500, "held out")
    with measuring():
        p = torch.sigmoid(network(ids).logits[..., 0].double())
    asked = (labels == _WRONG) | (labels == _RIGHT)
    return p[asked].numpy(), (labels[asked] == _RIGHT).numpy()


def _on_the_adder(config: LlamaConfig) -> LlamaForTokenClassification:
    """Two new layers and a head on those of `embedded/arith`, which can add already: what it expects to come next is
    ready in its last layer only, and has to be compared with what did come in layers above."""
    network = LlamaForTokenClassification(config)
    adder: Any = load("embedded/arith", device="cpu")
    network.model.load_state_dict(adder.network.model.state_dict(), strict=False)
    return network


@lru_cache(maxsize=3)
def solutions(n_prompts: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Four samples from each size for each of n_prompts prompts of a part: token ids (n, longest) filled up with <eos>,
    and labels: at each ';' that ends a step _RIGHT or _WRONG; at each symbol between steps' ends whether all is right
    so far (odd) or not (even), which is for training only; _IGNORED elsewhere."""
    texts = []
    for size in SIZES:
        model, stream = load(f"embedded/{size}", device="cpu"), Stream.of(0, "recipe", "arith-verifier", part, size)
        prompts = arith_prompts(n_prompts, stream)
        drawn = sample(model, prompts, n=4, max_new_tokens=48, stream=stream.child("samples"))
        given = [model.decode(completion.tolist()).split("#")[0] for completion in drawn.completions()]
        texts += [(prompts[i // 4], solution) for i, solution in enumerate(given)]
    words = tokenizer()
    ids = torch.zeros((len(texts), max(len(prompt + solution) for prompt, solution in texts)), dtype=torch.int64)
    labels = torch.full_like(ids, _IGNORED)
    for i, (prompt, solution) in enumerate(texts):
        ids[i, : len(prompt + solution)] = torch.as_tensor(words.encode(prompt + solution))
        marks = _marks(prompt, solution)
        labels[i, len(prompt) : len(prompt) + len(marks)] = torch.as_tensor(marks, dtype=torch.int64)
    return ids, labels


def _marks(prompt: str, solution: str) -> list[int]:
    """The label of each symbol of the finished steps of a solution."""
    total, *rest = terms_of(prompt)
    marks: list[int] = []
    for i, (step, right) in enumerate(zip(solution.split(";"), step_labels(prompt, solution), strict=False)):
        wanted = f"{total}+{rest[i]}={total + rest[i]}" if i < len(rest) else ""
        so_far = [wanted[: n + 1] == step[: n + 1] for n in range(len(step))]
        marks += [_RIGHT_SO_FAR if good else _WRONG_SO_FAR for good in so_far]
        marks.append(_RIGHT if right else _WRONG)
        result = step.rpartition("=")[2]
        total = int(result) if result.isdigit() else total
    return marks


def _sequences(ids: torch.Tensor, labels: torch.Tensor) -> list[np.ndarray]:
    """For each step, the text up to its ';' and then its label as a token."""
    tokens, given = ids.numpy(), labels.numpy()
    return [
        np.append(tokens[row, : at + 1], len(TOKENS) + int(given[row, at] == _RIGHT))
        for row, at in np.argwhere((given == _RIGHT) | (given == _WRONG))
    ]


def _labels(sequences: list[np.ndarray]) -> list[np.ndarray]:
    return [np.arange(len(sequence)) == len(sequence) - 1 for sequence in sequences]
