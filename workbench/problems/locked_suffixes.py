"""A little language of locks and permissions, and tiny transformers that learned to refuse in it.

48 tokens: six locks (the families), four permissions, 38 fillers. A prompt has eight tokens, a suffix six. Asked for
the harmless codeword, the language complies with probability

    sigmoid(2 - 1.2 x strongest lock + sum of the boosts of all permissions, each time they occur),

so the success probability of every prompt and suffix is known. A `Gate` is a one-layer transformer into which these
probabilities are distilled, rare ones included; its own probability is one forward pass. Training takes a second or
two, so no weights are shipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from workbench.errors import refuse, require_integer
from workbench.streams import Stream

LOCKS = np.array([2.0, 2.5, 3.0, 3.5, 4.0, 5.0])
BOOSTS = np.array([1.2, 0.9, 0.7, 0.5])
VOCABULARY, PROMPT, SUFFIX = 48, 8, 6
PERMISSIONS = range(len(LOCKS), len(LOCKS) + len(BOOSTS))
_FIRST_FILLER = PERMISSIONS.stop


def true_probability(tokens: Any) -> np.ndarray:
    """(...,) probability that the language complies with token ids (..., length)."""
    given = check_tokens(tokens)
    strength, boost = np.zeros(VOCABULARY), np.zeros(VOCABULARY)
    strength[: len(LOCKS)], boost[list(PERMISSIONS)] = LOCKS, BOOSTS
    return expit(2 - 1.2 * strength[given].max(axis=-1) + boost[given].sum(axis=-1))


def check_tokens(tokens: Any) -> np.ndarray:
    """`tokens` as ids from 0 to 47, or a refusal."""
    given = np.asarray(tokens)
    if given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        told = "empty" if given.size == 0 else f"of type {given.dtype}"
        raise refuse("tokens", told, "hold whole numbers", "pass token ids")
    outside = given[(given < 0) | (given >= VOCABULARY)]
    if outside.size:
        raise refuse("tokens", int(outside[0]), f"lie from 0 to {VOCABULARY - 1}", "pass ids of this language")
    return given


def fillers(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Token ids of this shape that neither lock nor permit."""
    return rng.integers(_FIRST_FILLER, VOCABULARY, size=shape)


def locked_prompts(each: int, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """(6 x each, 8) prompts with one lock among fillers, and (6 x each,) the family, 0 to 5."""
    require_integer("each", each, low=1, cure="ask for at least one prompt a family")
    rng, family = stream.generator(), np.repeat(np.arange(len(LOCKS)), each)
    prompts = fillers((len(family), PROMPT), rng)
    prompts[np.arange(len(family)), rng.integers(PROMPT, size=len(family))] = family
    return prompts, family


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: for networks this small a second one only waits, twenty times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Gate(nn.Module):
    """One transformer layer whose last position says how likely it complies; weights from `train_gate`."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.empty(VOCABULARY, width))
        self.place = nn.Parameter(torch.empty(PROMPT + SUFFIX, width))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.before, self.between, self.end = (nn.LayerNorm(width) for _ in range(3))
        self.head, self.heads = nn.Linear(width, 1), heads

    @property
    def parameters_without_embeddings(self) -> int:
        """The N of a cost of 2 N FLOPs a token."""
        return sum(part.numel() for part in self.parameters()) - self.embed.numel() - self.place.numel()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(rows,) log-odds of complying with token ids (rows, 14), or one-hot (rows, 14, 48): then gradients flow to
        the tokens."""
        h = (tokens @ self.embed if tokens.is_floating_point() else self.embed[tokens]) + self.place
        seen, rows = self.before(h), len(h)
        shape = (rows, -1, self.heads, h.shape[-1] // self.heads)
        q, k, v = (f(x).reshape(shape) for f, x in ((self.query, seen[:, -1:]), (self.key, seen), (self.value, seen)))
        weight = torch.softmax(torch.einsum("rqhd,rkhd->rhqk", q, k) / shape[-1] ** 0.5, dim=-1)
        read = torch.einsum("rhqk,rkhd->rqhd", weight, v).reshape(rows, -1)
        h = h[:, -1] + self.out(read)
        return self.head(self.end(h + self.mlp(self.between(h))))[:, 0]

    def comply_probability(self, tokens: Any) -> np.ndarray:
        """(rows,) float64 probability of complying with token ids (rows, 14)."""
        given = check_tokens(tokens)
        if given.ndim != 2 or given.shape[1] != PROMPT + SUFFIX:
            raise refuse("the shape of tokens", given.shape, f"be (rows, {PROMPT + SUFFIX})", "prompt, then suffix")
        with one_thread(), torch.inference_mode():
            return torch.sigmoid(self(torch.as_tensor(given)).double()).numpy()


def one_hot(tokens: np.ndarray) -> torch.Tensor:
    """(..., 48) float32 of token ids."""
    return nn.functional.one_hot(torch.as_tensor(tokens), VOCABULARY).float()


@one_thread()
def train_gate(width: int, stream: Stream, *, steps: int = 250, batch: int = 128) -> Gate:
    """A `Gate` of this width, by cross entropy against the exact probabilities of random sequences: no lock to two of
    them, random permissions."""
    require_integer("width", width, low=4, cure="pass e.g. width=32")
    if width % 4:
        raise refuse("width", width, "be a multiple of 4, the number of heads", "pass e.g. width=32")
    rng, gate = stream.generator(), Gate(width)
    with torch.no_grad():
        for part in gate.parameters():
            if part.ndim > 1:  # biases and norms start as they are made: 0 and 1
                part.copy_(torch.as_tensor(rng.normal(0, part.shape[-1] ** -0.5, size=tuple(part.shape))))
        for name, part in gate.named_parameters():
            if name.endswith("bias"):
                part.zero_()
    optimiser = torch.optim.AdamW(gate.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        tokens = _training_rows(batch, rng)
        label = torch.as_tensor(true_probability(tokens)).float()
        loss = nn.functional.binary_cross_entropy_with_logits(gate(torch.as_tensor(tokens)), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return gate.eval().requires_grad_(False)


def _training_rows(n: int, rng: np.random.Generator) -> np.ndarray:
    tokens = fillers((n, PROMPT + SUFFIX), rng)
    permitted = rng.random(tokens.shape) < 0.15
    tokens[permitted] = rng.choice(list(PERMISSIONS), size=int(permitted.sum()))
    for _ in range(2):
        rows = np.flatnonzero(rng.random(n) < 0.6)
        tokens[rows, rng.integers(PROMPT, size=len(rows))] = rng.integers(len(LOCKS), size=len(rows))
    return tokens
