"""A verifier of worked sums, step by step: P(step is right | prompt, steps so far), from `embedded/arith-verifier`.

Does: reads each solution once and gives one probability for every finished step ("23+45=68;").
Does not: generate, or judge the answer after '#'. What a right step is, `tasks.step_labels` says; a probability is the
verifier's belief in it, calibrated as its card states on samples of the `arith` family.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.budget import charge
from workbench.errors import refuse
from workbench.models.base import on_one_thread
from workbench.models.embedded import verified_folder
from workbench.models.quiet import quietly
from workbench.models.tasks import terms_of

_WIDTH = 64
_CHARACTERS = "0123456789+=;#"


def step_probabilities(prompts: str | Sequence[str], solutions: str | Sequence[str]) -> list[np.ndarray]:
    """P(right) of each finished step, one float64 array for each solution, in the order of its steps.

    prompts, e.g. "23+45+18=", and solutions, e.g. "23+45=68;68+1", one for each. A step is finished where its ';'
    stands before any '#'. A probability depends on the text up to that ';' alone. Charges the tokens read and one model
    call a solution.
    Raises WorkbenchError: a prompt that is no sum, a solution with other characters, unequal numbers, too long a text.
    """
    asked, given = _listed(prompts), _listed(solutions)
    if len(asked) != len(given):
        cure = "pass one solution for each prompt"
        raise refuse("solutions", f"{len(given)} texts", f"be as many as the prompts, {len(asked)}", cure)
    network = _network()
    longest = network.config.max_position_embeddings
    rows, ends = [], []
    for i, (prompt, solution) in enumerate(zip(asked, given, strict=True)):
        terms_of(prompt)
        if not isinstance(solution, str) or set(solution) - set(_CHARACTERS):
            raise refuse(f"solutions[{i}]", solution, f"be made of {_CHARACTERS}", "pass a solution as it was sampled")
        text = prompt + solution.split("#")[0]
        if len(text) > longest:
            raise refuse(f"solutions[{i}]", f"{len(text)} tokens with its prompt", f"fit {longest}", "cut it short")
        rows.append([1 + _CHARACTERS.index(character) for character in text])
        ends.append(np.array([at for at, character in enumerate(text) if character == ";"], dtype=np.int64))
    tokens = sum(map(len, rows))
    charge(tokens=tokens, model_calls=len(rows), flops=2.0 * network.num_parameters() * tokens)
    # Solutions of like length go together; padding is on the right, where a causal network doesn't see it.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = [np.empty(0)] * len(rows)
    for at in range(0, len(order), _WIDTH):
        block = order[at : at + _WIDTH]
        for i, row in zip(block, _right(network, [rows[i] for i in block]), strict=True):
            out[i] = row[ends[i]]
    return out


def _right(network: Any, rows: list[list[int]]) -> np.ndarray:
    """(n, longest) float64 P(right) read off after each token; a block has one fixed width and a length that is a
    multiple of 16."""
    ids = np.zeros((_WIDTH, -(-max(map(len, rows)) // 16) * 16), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    with torch.inference_mode(), on_one_thread():
        return torch.sigmoid(network(torch.as_tensor(ids)).logits[..., 0].double()).numpy()[: len(rows)]


@lru_cache(maxsize=1)
def _network() -> Any:
    folder = verified_folder("arith-verifier")
    with quietly():
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
