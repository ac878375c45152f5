"""The bundled model `embedded/arith-large`: `embedded/arith` larger, with a more careful teacher."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.recipes import arith

SEED, TOLERANCE = arith.SEED, arith.TOLERANCE
SLIPS = 0.3
SUMMARY = "The large one of three sizes that add two-digit numbers in worked steps"
CARD = """
# embedded/arith-large

A four-layer Llama (width 96, 4 heads, 15 character tokens): `embedded/arith` (three layers, width 64) in another
size. All three learnt from the same prompts and steps; the teacher of this one slips 0.3 times as often.

- **For**: methods that choose between a cheap and a dear model, or ask how a measure moves from model to model.
- **Not for**: arithmetic, nor for laws of scale: **accuracy rises with size because the teachers differ**. Width 64
  is as right as its teacher already (about 71 % of the prompts), so more width alone would show nothing. The teacher
  of this model is right on about 91 %.
- **Made by** `workbench.models.build("arith-large")`: 1,600 steps of 96 solutions, drawn afresh each step (no data set).
- **Loss** (card.toml): mean -log p (nats) of a token of 1,000 such solutions that are fixed, prompts left out. A rebuild
  may exceed it by the tolerance, a share of the loss. The n-gram baseline was fitted on as many solutions as the model
  saw. `accuracy`: share of right answers at temperature 1, 8 samples of 1,000 prompts, with its 95 % interval; the
  prompts and the random numbers are the same for the three sizes (`embedded/arith`: .713, .700 to .726).
- **Tasks**: `workbench.models.arith_prompts`, `true_answer`, `parse_answer`, `worked_solution`, `step_labels`.
- **Licence**: Apache-2.0. No person's data, no harmful text.
"""


def make(seed: int = SEED, steps: int = arith.STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    return arith.make(seed, steps, width=96, layers=4, slips=SLIPS)


def measured_loss(network: torch.nn.Module) -> float:
    """As `recipes.arith.measured_loss`, on solutions of this model's teacher."""
    return arith.measured_loss(network, SLIPS)


def figures(network: torch.nn.Module) -> dict[str, Any]:
    """As `recipes.arith.figures`, on solutions of this model's teacher."""
    return arith.figures(network, SLIPS)
