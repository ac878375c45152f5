"""Masked-diffusion language models: what may stand at each masked position, given what stands at the others.

Does: holds a bidirectional network (`load("embedded/masked")`, or any folder that AutoModelForMaskedLM loads) and gives
its marginals.
Does not: sample. A decoder chooses which positions to fill, and in which order; it is made of `marginals` calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.errors import LacksCapability, WorkbenchError, refuse
from workbench.models.base import EXACT_REPLAY, SAME_IN_DISTRIBUTION, LanguageModel, check_tokens, on_one_thread

_WIDTH = 64


class MaskedModel(LanguageModel):
    """A masked language model with its tokenizer. It has none of the capabilities of a causal model: `marginals` is
    all that it does. `mask_id` is the token that stands for "not known yet"."""

    def __init__(self, network: Any, tokenizer: Any, name: str) -> None:
        self.network, self.tokenizer, self.name = network.eval(), tokenizer, name
        config = network.config
        self.device = next(network.parameters()).device
        self.parameters = sum(p.numel() for p in network.parameters())
        self.vocab_size = int(config.vocab_size)
        self.context_length = getattr(config, "max_position_embeddings", None)
        self.flops_per_token = 2.0 * self.parameters
        self.replay = EXACT_REPLAY if self.device.type == "cpu" else SAME_IN_DISTRIBUTION
        mask_id = getattr(tokenizer, "mask_token_id", None)
        if mask_id is None:
            raise WorkbenchError(f"{name} has no mask token; set mask_token in its tokenizer_config.json.")
        self.mask_id = int(mask_id)

    def require(self, capability: str) -> None:
        if capability not in self.capabilities:
            raise LacksCapability(
                f"{self.name} can't do {capability!r}, being a masked model that reads both ways; fill its masks with "
                "marginals(states), or load a causal model such as 'embedded/chat'."
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; the mask token, "_" for `embedded/masked`, stands for a position to be filled."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # tokenizers raises nothing narrower for a word it does not know
            raise refuse("text", text, f"be made of tokens that {self.name} knows", "see its tokenizer.json") from error

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode([int(token) for token in tokens], clean_up_tokenization_spaces=False)

    def start(self, prompts: Any) -> Any:
        self.require("sample")

    def marginals(self, states: Any) -> np.ndarray:
        """(n, length, vocab_size) float64: log p(token at a masked position | all that is not masked), each position
        by itself; NaN at positions that are not masked, where there is nothing to be asked.

        states (n, length) token ids, `mask_id` where masked, all of one length. The mask token itself has probability
        0. A row depends on its own state alone. Charges length tokens and one model call a row.
        Raises WorkbenchError: states that are not (n, length) token ids, or longer than the context.
        """
        given = self._checked(states)
        self.charge_read(given.size, calls=len(given))
        out = np.full((*given.shape, self.vocab_size), np.nan)
        with torch.inference_mode(), on_one_thread(self.device.type == "cpu" and self.parameters < 50_000_000):
            for at in range(0, len(given), _WIDTH):
                block = given[at : at + _WIDTH]
                # One fixed width, the last block filled up, so that a row's bits do not depend on how many there are.
                whole = block[np.minimum(np.arange(_WIDTH), len(block) - 1)]
                logits = self.network(torch.as_tensor(whole, device=self.device)).logits[: len(block)]
                wide = (logits.cpu() if logits.device.type == "mps" else logits).double()
                if not bool(torch.isfinite(wide).all()):
                    cure = "load it with dtype='float32', or check the weights"
                    raise refuse(f"logits of {self.name}", "NaN or infinite", "be finite", cure)
                wide[..., self.mask_id] = -torch.inf
                masked = block == self.mask_id
                out[at : at + len(block)][masked] = torch.log_softmax(wide, dim=-1).cpu().numpy()[masked]
        return out

    def _checked(self, states: Any) -> np.ndarray:
        cure = "stack states of one length, e.g. np.full((8, 10), model.mask_id)"
        try:
            given = np.asarray(states)
        except ValueError:
            raise refuse("states", "of several lengths", "have shape (n, length)", cure) from None
        if given.ndim != 2 or given.size == 0 or given.dtype.kind not in "iu":
            told = f"of shape {given.shape} and kind {given.dtype}"
            raise refuse("states", told, "be whole numbers of shape (n, length)", cure)
        for i, row in enumerate(given):
            check_tokens(self, f"states[{i}]", row)
        if self.context_length is not None and given.shape[1] > self.context_length:
            must = f"fit the context of {self.name}, {self.context_length} tokens"
            raise refuse("states", f"{given.shape[1]} tokens long", must, "pass shorter states")
        return given.astype(np.int64)
