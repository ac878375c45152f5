"""The bundled model `embedded/masked`: a small masked-diffusion language model of sums with their carries.

Does: absorbing-state training. The bound on -log p of a text of L tokens weighs the masked tokens' -log p by 1/t, where
each token is masked with probability t; given how many are masked, k, all sets of that size are equally likely, and
integrating over t leaves  sum_{k=1}^{L} (1/k) E[sum over masked tokens of -log p]: the same bound with less noise. It is
measured with k uniform, and trained with k drawn in proportion to 1/k, which needs no weights and sees more texts that
are nearly whole, from which sums are learnt.
Does not: see the pairs of terms of the validation and held-out texts (a tenth each) in training.
Source: Sahoo et al., "Simple and Effective Masked Diffusion Language Models" (arXiv 2406.07524), equation 11.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from workbench.models.equations import LENGTH, MASK, MASK_ID, SYMBOLS, carried_sums, equation_is_right, exact_marginals
from workbench.models.masked import MaskedModel
from workbench.models.recipes import ngram
from workbench.models.recipes.training import measuring, train
from workbench.streams import Stream

SEED, STEPS, BATCH = 0, 4000, 256
TOLERANCE = 0.03
SUMMARY = "A masked-diffusion model of sums and their carries, to be decoded in any order"
CARD = """
# embedded/masked

A three-layer bidirectional transformer (BERT, width 64, 4 heads, 14 symbols and the mask `_`) that fills the masks of
sums, "37+48=085c": two terms from 10 to 99, their sum, and c where the units carry or n where not. The order in which
masks are filled decides how hard each step is: the carry stands last, and the tens hang on it.

- **For**: decoding order, parallel unmasking, look-ahead. `load("embedded/masked").marginals(states)` gives the
  marginals; the exact ones are `workbench.models.exact_marginals`, and `equation_is_right` checks a text.
- **Not for**: sampling from left to right (it refuses), or arithmetic.
- **Made by** `workbench.models.build("masked")`: absorbing-state training on texts drawn afresh from the language (no
  data set), pairs of terms in two tenths kept for tests; 4,000 steps of 256 texts.
- **Loss** (card.toml): the variational bound on mean -log p (nats) of a token of 1,000 held-out texts, 10 tokens each,
  one mask for each number of masked tokens, drawn once and for all; `floor` is the bound of the exact marginals on 2,000
  of these masks. The n-gram baseline reads from left to right; its -log p is exact, not a bound; it was fitted on as many
  texts as the model saw. `marginal_kl`: mean KL(exact || model), nats, of a masked position over 2,000 of these masks.
  `right_left_to_right`, `right_carry_first`, `right_at_once`: share of right texts among 1,000 that are filled in three
  orders: from left to right; terms, carry, then the sum from its units; and all of them in one step.
- **Licence**: Apache-2.0. No person's data, no harmful text.
"""
ORDERS = {
    "right_left_to_right": [[position] for position in range(LENGTH)],
    "right_carry_first": [[position] for position in (2, 5, 0, 1, 3, 4, 9, 8, 7, 6)],
    "right_at_once": [list(range(LENGTH))],
}
"""Positions filled in each step."""


def make(seed: int = SEED, steps: int = STEPS) -> tuple[BertForMaskedLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    config = BertConfig(
        vocab_size=MASK_ID + 1,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=None,
    )
    stream = Stream.of(seed, "recipe", "masked")

    def batch_loss(network: torch.nn.Module, step: int) -> torch.Tensor:
        generator = stream.at(step).generator()
        drawn = _drawn("training", BATCH, generator)
        shares = 1 / np.arange(1, LENGTH + 1)
        n_masked = generator.choice(np.arange(1, LENGTH + 1), size=BATCH, p=shares / shares.sum())
        return shares.sum() / LENGTH * _scores(network, drawn, _masks(n_masked, generator))[0].sum() / BATCH

    return train(BertForMaskedLM, config, batch_loss, seed=seed, steps=steps, rate=3e-3), tokenizer()


def measured_loss(network: torch.nn.Module) -> float:
    """The bound on mean -log p of a token of the held-out texts."""
    texts, masks = _held_out()
    with measuring():
        blocks = [_bound(network, texts[at : at + 4000], masks[at : at + 4000]) for at in range(0, len(texts), 4000)]
    return float(torch.stack(blocks).mean())


def figures(network: torch.nn.Module) -> dict[str, Any]:
    """What the card says beside the loss; see CARD."""
    texts, masks = _held_out()
    generator = Stream.of(SEED, "recipe", "masked", "n-gram").generator()
    training, validation = _drawn("training", STEPS * BATCH, generator), _drawn("validation", 2000, generator)
    baseline = ngram.fit(list(training), list(validation), MASK_ID)
    some = generator.choice(len(texts), size=2000, replace=False)
    states = np.where(masks[some], MASK_ID, texts[some])
    exact = exact_marginals(states)[masks[some]]
    with measuring():
        logits = network(torch.as_tensor(states)).logits[torch.as_tensor(masks[some])].double()
        learnt = torch.log_softmax(_without_mask(logits), dim=-1).numpy()
    possible = exact > -np.inf
    kl = np.where(possible, np.exp(exact) * (np.where(possible, exact, 0) - np.where(possible, learnt, 0)), 0).sum(
        axis=1
    )
    said = exact[np.arange(len(exact)), texts[some][masks[some]]]
    weight = (1 / masks[some].sum(axis=1))[:, None].repeat(LENGTH, axis=1)[masks[some]]
    return {
        "ngram_loss": baseline.loss(list(texts[::LENGTH])),
        "ngram_order": baseline.order,
        "floor": float(-(weight * said).sum() / len(some)),
        "marginal_kl": float(kl.mean()),
        **{name: right_share(network, order) for name, order in ORDERS.items()},
    }


def right_share(network: torch.nn.Module, order: list[list[int]], n: int = 1000) -> float:
    """Share of right texts among n, filled from all masks in the given order, tokens drawn from the marginals."""
    model, states = MaskedModel(network, tokenizer(), "masked"), np.full((n, LENGTH), MASK_ID)
    uniforms = Stream.of(0, "recipe", "masked", "decoding").uniforms(n, LENGTH)
    for positions in order:
        cdf = np.exp(model.marginals(states)[:, positions]).cumsum(axis=2)
        states[:, positions] = (cdf <= uniforms[:, positions, None] * cdf[..., -1:]).sum(axis=2)
    return float(np.mean([equation_is_right("".join((SYMBOLS + MASK)[token] for token in row)) for row in states]))


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a symbol."""
    symbols = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(SYMBOLS + MASK)}))
    symbols.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    symbols.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=symbols, mask_token=MASK, model_max_length=16)


def _bound(network: torch.nn.Module, texts: np.ndarray, masks: np.ndarray) -> torch.Tensor:
    """Mean over texts of (1 / k) sum over the k masked tokens of -log p: the bound by token, where k is uniform."""
    scores, n_masked = _scores(network, texts, masks)
    return (scores / n_masked).sum() / len(texts)


def _scores(network: torch.nn.Module, texts: np.ndarray, masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p of each masked token, and how many are masked in its text."""
    tokens, masked = torch.as_tensor(texts), torch.as_tensor(masks)
    logits = _without_mask(network(torch.where(masked, MASK_ID, tokens)).logits)
    scores = torch.nn.functional.cross_entropy(logits[masked], tokens[masked], reduction="none")
    return scores, masked.sum(dim=1, keepdim=True).expand(masked.shape)[masked]


def _without_mask(logits: torch.Tensor) -> torch.Tensor:
    """The mask is no token of a text: it has no share of the probability."""
    return logits.masked_fill(torch.arange(logits.shape[-1]) == MASK_ID, -torch.inf)


def _masks(n_masked: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(n, LENGTH) booleans with n_masked[i] of them true, every set equally likely."""
    rank = generator.random((len(n_masked), LENGTH)).argsort(axis=1).argsort(axis=1)
    return rank < n_masked[:, None]


@lru_cache(maxsize=3)
def _part(name: str) -> np.ndarray:
    """The texts of a part, "training", "validation" or "held out": eight pairs of terms in ten, one and one."""
    place = Stream.of(0, "recipe", "masked", "split").uniforms(len(carried_sums()))[:, 0]
    low, high = {"training": (0.0, 0.8), "validation": (0.8, 0.9), "held out": (0.9, 1.0)}[name]
    return carried_sums()[(low <= place) & (place < high)]


def _drawn(part: str, n: int, generator: np.random.Generator) -> np.ndarray:
    texts = _part(part)
    return texts[generator.integers(len(texts), size=n)]


@lru_cache(maxsize=1)
def _held_out() -> tuple[np.ndarray, np.ndarray]:
    """1,000 held-out texts, once for each number of masked tokens, and what is masked: both (10000, LENGTH)."""
    generator = Stream.of(0, "recipe", "masked", "held out").generator()
    drawn = _drawn("held out", 1000, generator).repeat(LENGTH, axis=0)
    return drawn, _masks(np.tile(np.arange(1, LENGTH + 1), 1000), generator)
