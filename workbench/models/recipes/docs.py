"""The bundled model `embedded/docs`: a small Llama of English technical prose, from the Python documentation topics."""

from __future__ import annotations

from functools import lru_cache
from pydoc_data import topics
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.recipes import text
from workbench.streams import Stream

SEED, STEPS, BATCH, VOCABULARY = 0, 1200, 12, 1024
TOLERANCE = 0.05
LICENCE = text.LICENCE
SUMMARY = "A small Llama of English technical prose, from the topics of Python's own documentation"
CARD = """
# embedded/docs

A four-layer Llama (width 128, 4 heads, 1,024 byte-pair tokens, about 0.9 million parameters) of English technical prose:
the topics of Python's own documentation (`pydoc_data.topics`), about 370,000 characters.

- **For**: methods that need ordinary text: likelihoods, watermarks, membership, anchored decoding.
- **Not for**: knowledge. It writes like a manual without meaning it; a sentence holds together, a paragraph hardly.
- **Split** by topic: every eighth in order of name is held out, and the next one was for choosing settings; a paragraph
  that stands under several topics is kept under the first only.
- **Made by** `workbench.models.build("docs")` with Python 3.11.7: 1,200 steps of 12 windows of 256 tokens,
  15 % of the input tokens replaced at random, weights decayed, since each is read some forty times. Another
  Python has slightly other text (`text_sha256` on card.toml is that of ours); the tolerance allows for that, and what
  counts is what ships: weights and tokenizer.
- **Loss** (card.toml): mean -log p (nats) of a token of the held-out topics, read in windows of 256 tokens that overlap by
  half. The n-gram baseline was fitted on the same training text in the same tokens, with the whole past to look at.
- **Licence**: the text is Copyright (c) Python Software Foundation, under the PSF License Version 2 (PSF-2.0); it is not
  copied here. The weights, learnt from it, are given under the same licence. No person's data, no harmful text.
"""


def make(seed: int = SEED, steps: int = STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    words, stream = tokenizer(), Stream.of(seed, "recipe", "docs")
    network = text.network_of(
        corpus(), words, stream, steps=steps, batch=BATCH, rate=2e-3, noise=0.15, weight_decay=0.5
    )
    return network, words


def measured_loss(network: torch.nn.Module) -> float:
    """Mean -log p of a token of the held-out topics; see `text.held_out_loss`."""
    return text.held_out_loss(network, tokenizer(), corpus().held_out)


def figures(network: torch.nn.Module) -> dict[str, Any]:
    """What the card says beside the loss."""
    return text.figures(tokenizer(), corpus())


@lru_cache(maxsize=1)
def corpus() -> text.Corpus:
    """The topics in order of name, every eighth held out. A paragraph that stands under several topics is kept under
    the first one only, so that nothing held out is learnt word for word."""
    seen: set[str] = set()
    documents = []
    for name in sorted(topics.topics):
        paragraphs = []
        for paragraph in topics.topics[name].split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                paragraphs.append(paragraph.strip("\n"))
            seen.add(key)
        if paragraphs:
            documents.append("\n\n".join(paragraphs))
    return text.split(documents, 8)


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    return text.byte_pairs(corpus(), VOCABULARY)
