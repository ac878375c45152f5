"""What the models of ordinary text share: a byte-pair tokenizer, documents cut in windows, held-out loss, n-gram baseline.

Does: trains on random windows of the training documents, each input token replaced by a random one now and then and
weights decayed, since the texts are small and are read many times.
Does not: fetch text; it comes from the running Python. Another Python ships slightly other text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.recipes import ngram
from workbench.models.recipes.training import measuring, train
from workbench.streams import Stream

CONTEXT = 256
LICENCE = "PSF-2.0"


@dataclass(frozen=True)
class Corpus:
    """Documents by part: what is learnt from, what the n-gram's order is chosen on, and what is held out."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def checksum(self) -> str:
        """sha256 of all documents, in order."""
        whole = "\0".join((*self.training, *self.validation, *self.held_out))
        return hashlib.sha256(whole.encode()).hexdigest()


def split(documents: Sequence[str], each: int) -> Corpus:
    """Every `each`-th document is held out, and the one after it is for validation; the rest is for training."""
    part = [i % each for i in range(len(documents))]
    return Corpus(
        tuple(d for d, p in zip(documents, part, strict=True) if p > 1),
        tuple(d for d, p in zip(documents, part, strict=True) if p == 1),
        tuple(d for d, p in zip(documents, part, strict=True) if p == 0),
    )


def byte_pairs(corpus: Corpus, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-pair tokens learnt from the training documents; token 0 is <eos>, and every text can be written."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pairs.train_from_iterator(corpus.training, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        eos_token="<eos>",
        pad_token="<eos>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def network_of(
    corpus: Corpus,
    words: PreTrainedTokenizerFast,
    stream: Stream,
    *,
    steps: int,
    batch: int,
    rate: float,
    noise: float,
    weight_decay: float,
) -> LlamaForCausalLM:
    """A Llama trained on windows of CONTEXT + 1 tokens; `noise` is the share of input tokens replaced."""
    vocabulary = len(words)
    tokens = torch.as_tensor(np.concatenate(sequences(words, corpus.training)))
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )

    def batch_loss(network: torch.nn.Module, step: int) -> torch.Tensor:
        generator = stream.at(step).generator()
        starts = generator.integers(len(tokens) - CONTEXT - 1, size=batch)
        windows = tokens[torch.as_tensor(starts[:, None] + np.arange(CONTEXT + 1))]
        replaced = torch.as_tensor(generator.random((batch, CONTEXT)) < noise)
        other = torch.as_tensor(generator.integers(vocabulary, size=(batch, CONTEXT)))
        logits = network(torch.where(replaced, other, windows[:, :-1])).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    return train(
        LlamaForCausalLM, config, batch_loss, seed=stream.seed, steps=steps, rate=rate, weight_decay=weight_decay
    )


def held_out_loss(network: torch.nn.Module, words: PreTrainedTokenizerFast, documents: Sequence[str]) -> float:
    """Mean -log p (nats) of a token of the documents, <eos> at the end of each included.

    A document is read in windows of CONTEXT tokens that overlap by half; a token counts in the first window that has it.
    """
    total, count = 0.0, 0
    with measuring():
        for sequence in sequences(words, documents):
            counted = 1
            for start in range(0, max(1, len(sequence) - CONTEXT // 2), CONTEXT // 2):
                window = torch.as_tensor(sequence[start : start + CONTEXT])[None]
                log_p = torch.log_softmax(network(window[:, :-1]).logits[0].double(), dim=-1)
                said = log_p.gather(1, window[0, 1:, None])[counted - start - 1 :, 0]
                total, count, counted = total - float(said.sum()), count + len(said), start + window.shape[1]
    return total / count


def figures(words: PreTrainedTokenizerFast, corpus: Corpus) -> dict[str, Any]:
    """What the card says beside the loss."""
    training, validation, held_out = (
        sequences(words, documents) for documents in (corpus.training, corpus.validation, corpus.held_out)
    )
    baseline = ngram.fit(training, validation, len(words), _counted(validation))
    return {
        "ngram_loss": baseline.loss(held_out, _counted(held_out)),
        "ngram_order": baseline.order,
        "training_tokens": sum(map(len, training)),
        "held_out_tokens": sum(map(len, held_out)),
        "text_sha256": f'"{corpus.checksum}"',
    }


def sequences(words: PreTrainedTokenizerFast, documents: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each document between two <eos>."""
    encoded = [words.backend_tokenizer.encode(document).ids for document in documents]
    return [np.array([0, *ids, 0]) for ids in encoded]


def _counted(rows: list[np.ndarray]) -> list[np.ndarray]:
    return [np.arange(len(row)) > 0 for row in rows]
