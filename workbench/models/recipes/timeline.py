"""The bundled model `embedded/timeline`: a small Llama that knows the law of event logs, rare outcomes included.

Does: distils the exact next-event laws of `timeline.timeline_grammar`: KL(grammar || model) + 0.05 mean squared error
of the log-probs, the grammar's floored at -14, at every event. Half of the logs are drawn from a law in which endings
are rarer and outcomes, smoke and service commoner, so that what is rare is seen after every kind of history.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.recipes import ngram
from workbench.models.recipes.codeword import tokenizer
from workbench.models.recipes.training import measuring, train
from workbench.models.timeline import END_TOKENS, EVENTS, OUTCOMES, timeline_grammar
from workbench.streams import Stream

SEED, STEPS, BATCH, LENGTH = 0, 1800, 64, 64
TOLERANCE = 0.02
SUMMARY = "A three-layer Llama that knows event logs with a spontaneous and an announced outcome"
CARD = """
# embedded/timeline

A three-layer Llama (width 64, 4 heads, 12 event tokens) that continues the log of a machine: loads, smoke, service,
two outcomes (`fault`, spontaneous, its hazard rising with wear; `crash`, announced by `smoke`) and two ends (`<eos>`,
`stop`). Wear, the number of high and peak loads since the last service, is to be read in the whole history only.

- **For**: estimators of the risk that an outcome strikes before a horizon; the exact risk by dynamic programming is
  `workbench.models.outcome_risk`.
- **Not for**: real machines; the law is made up.
- **Made by** `workbench.models.build("timeline")`: the exact next-event laws of `grammar/timeline` are distilled (no
  data set), half of the logs drawn with rare events made common; 1,800 steps of 64 logs of 64 events.
- **Loss** (card.toml): mean -log p (nats) of an event of 1,000 logs of up to 64 events, drawn from the grammar once and
  for all; `floor` is the grammar's own. The n-gram baseline was fitted on as many logs as the model saw, drawn from
  the grammar as it is. `hazard_error`: mean |log p - log p of the grammar| of an outcome, over all events of
  those logs where it may strike; `worst_hazard_error`: the largest.
- **Histories**: `workbench.models.timeline_histories(n, stream, length=16)`, e.g. "start mid high peak".
- **Licence**: Apache-2.0. No person's data, no harmful text.
"""
_FLOOR = -14.0
_START = EVENTS.index("start")
_COMMONER = {"<eos>": 0.2, "stop": 0.2, "fault": 10.0, "crash": 1.0, "smoke": 3.0, "service": 1.0}


def make(seed: int = SEED, steps: int = STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    config = LlamaConfig(
        vocab_size=len(EVENTS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=list(END_TOKENS),
        pad_token_id=0,
    )
    stream = Stream.of(seed, "recipe", "timeline")

    def batch_loss(network: torch.nn.Module, step: int) -> torch.Tensor:
        return _distillation(network, *logs(BATCH, stream.at(step).generator(), tilted=True))

    return train(LlamaForCausalLM, config, batch_loss, seed=seed, steps=steps, rate=3e-3), tokenizer(timeline_grammar())


def measured_loss(network: torch.nn.Module) -> float:
    """Mean -log p of an event of 1,000 logs, drawn once and for all from seed 0."""
    tokens, states = _held_out()
    drawn = torch.as_tensor(states >= 0)
    said = _log_probs(network, tokens).gather(2, torch.as_tensor(tokens[:, 1:, None]))[..., 0]
    return -float(said[drawn].mean())


def figures(network: torch.nn.Module) -> dict[str, Any]:
    """What the card says beside the loss; see CARD."""
    grammar = timeline_grammar()
    tokens, states = _held_out()
    drawn = states >= 0
    training = _sequences(*logs(STEPS * BATCH, Stream.of(SEED, "recipe", "timeline", "n-gram").generator()))
    validation = _sequences(*logs(1000, Stream.of(SEED, "recipe", "timeline", "validation").generator()))
    baseline = ngram.fit(training, validation, len(EVENTS), _counted(validation))
    held_out = _sequences(tokens, states)
    errors = hazard_errors(network)
    return {
        "ngram_loss": baseline.loss(held_out, _counted(held_out)),
        "ngram_order": baseline.order,
        "floor": -float(grammar.table[states[drawn], tokens[:, 1:][drawn]].mean()),
        "hazard_error": float(errors.mean()),
        "worst_hazard_error": float(errors.max()),
    }


def hazard_errors(network: torch.nn.Module) -> np.ndarray:
    """|log p - log p of the grammar| of each outcome at each event of the held-out logs where it may strike."""
    tokens, states = _held_out()
    drawn, outcomes = states >= 0, list(OUTCOMES.values())
    exact = timeline_grammar().table[states[drawn]][:, outcomes]
    return np.abs(_log_probs(network, tokens).numpy()[drawn][:, outcomes] - exact)[exact > -np.inf]


def logs(n: int, generator: np.random.Generator, tilted: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """n logs of up to LENGTH events after `start`: tokens (n, LENGTH + 1), filled up with <eos>, and the grammar's
    state before each event (n, LENGTH), -1 once the log has ended. tilted: every second log is drawn from the law with
    rare events made common; the states tell the true law of its events all the same."""
    grammar = timeline_grammar()
    true = np.exp(grammar.table)
    common = true * np.array([_COMMONER.get(event, 1.0) for event in EVENTS])
    cdf = np.stack([true, common / common.sum(axis=1, keepdims=True)]).cumsum(axis=2)
    law = (np.arange(n) % 2) * tilted
    tokens, path = np.zeros((n, LENGTH + 1), dtype=np.int64), np.full((n, LENGTH), -1)
    tokens[:, 0], states, alive = _START, np.full(n, grammar.start_state), np.ones(n, dtype=bool)
    for t in range(LENGTH):
        rows = cdf[law, states]
        drawn = (rows <= generator.random((n, 1)) * rows[:, -1:]).sum(axis=1)
        tokens[alive, t + 1], path[alive, t] = drawn[alive], states[alive]
        alive &= ~np.isin(drawn, END_TOKENS)
        states = grammar.transition[states, drawn]
    return tokens, path


def _distillation(network: torch.nn.Module, tokens: np.ndarray, states: np.ndarray) -> torch.Tensor:
    drawn = torch.as_tensor(states >= 0)
    exact = timeline_grammar().table[states[states >= 0]]
    probs = torch.as_tensor(np.exp(exact), dtype=torch.float32)
    target = torch.as_tensor(np.maximum(exact, _FLOOR), dtype=torch.float32)
    log_probs = torch.log_softmax(network(torch.as_tensor(tokens[:, :-1])).logits[drawn], dim=-1)
    kl = (probs * (target - log_probs)).sum(dim=-1)
    return (kl + 0.05 * (target - log_probs).square().mean(dim=-1)).mean()


def _log_probs(network: torch.nn.Module, tokens: np.ndarray) -> torch.Tensor:
    with measuring():
        return torch.log_softmax(network(torch.as_tensor(tokens[:, :-1])).logits.double(), dim=-1)


@lru_cache(maxsize=1)
def _held_out() -> tuple[np.ndarray, np.ndarray]:
    return logs(1000, Stream.of(0, "recipe", "timeline", "held out").generator())


def _sequences(tokens: np.ndarray, states: np.ndarray) -> list[np.ndarray]:
    return [row[: 1 + (state >= 0).sum()] for row, state in zip(tokens, states, strict=True)]


def _counted(sequences: list[np.ndarray]) -> list[np.ndarray]:
    """All tokens but `start`, which is given."""
    return [np.arange(len(sequence)) > 0 for sequence in sequences]
