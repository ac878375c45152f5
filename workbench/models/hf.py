"""Any Hugging Face causal language model behind the `LanguageModel` interface.

Does: decodes, scores, reads hidden states and steers: Llama-shaped networks by `decoder`, all others by their own
forward pass with a key-value cache and hooks.
A row's log-probs on the CPU do not depend on its neighbours: torch's results move in the last bits with the
batch width (matrix kernels differ) but not with the neighbours at one width, so every forward pass of a network
has one fixed width; the last batch is filled up by repeating a row. Prompts of one length go together, so
nothing is padded on the left either. `decoder` says how it keeps the same promise.
Does not: load anything; see `loading`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from workbench.errors import LacksCapability, refuse, require_integer
from workbench.models import laws
from workbench.models.base import (
    EXACT_REPLAY,
    SAME_IN_DISTRIBUTION,
    LanguageModel,
    Session,
    by_length,
    check_context,
    on_one_thread,
    one_length,
    prompt_lists,
    rows_by_part,
)
from workbench.models.decoder import TOKENS_READ, Changes, Decoder, suits
from workbench.models.memory import free_memory
from workbench.models.segments import Segment
from workbench.models.steering import ONE_THREAD, Steering, active, change_of, check_steering, decoder_layers, recording

MICRO_BATCH = 32
"""Rows of one forward pass on a GPU. On a CPU: 64 for a small model, where a pass costs the same anyway, and 8
for a large one (the narrowest width at which the results were seen not to move)."""
_SMALL = 50_000_000


@dataclass
class _Sizes:
    """Widths that a model and its steered views share, so that one that ran out of memory warns them all."""

    micro_batch: int
    prefill_width: int
    rows_at_once: int
    vocabulary: list[str] | None = None


class HFModel(LanguageModel):
    """A causal language model of `transformers` with its tokenizer (None: token ids only).

    `micro_batch` is the fixed width of a forward pass. `steered` gives a view that shares the weights.
    """

    def __init__(self, network: Any, tokenizer: Any, name: str, *, micro_batch: int | None = None) -> None:
        self.network, self.tokenizer, self.name = network.eval(), tokenizer, name
        config = network.config.get_text_config()
        self.device = next(network.parameters()).device
        self.parameters = sum(p.numel() for p in network.parameters())
        small, on_cpu = self.parameters < _SMALL, self.device.type == "cpu"
        self.small = small and on_cpu
        width = ((64 if small else 8) if on_cpu else MICRO_BATCH) if micro_batch is None else micro_batch
        width = require_integer("micro_batch", width, low=1, cure="pass e.g. micro_batch=32")
        # A small model reads many prompts in the time of one; a large one should not read a prompt 32 times.
        self._sizes = _Sizes(width, width if small else 1, width * 8)
        self.vocab_size = int(config.vocab_size)
        self.width = int(config.hidden_size)
        self.n_layers = int(config.num_hidden_layers)
        self.context_length = getattr(config, "max_position_embeddings", None)
        self.eos_ids = _eos_ids(network)
        self.flops_per_token = 2.0 * self.parameters
        # An expert sees as many rows as are routed to it, so its results move with a row's neighbours.
        experts = any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
        self.replay = EXACT_REPLAY if on_cpu and not experts else SAME_IN_DISTRIBUTION
        self.capabilities = frozenset({"sample", "log_probs", "next_log_probs", "hidden_states", "steer", "train"})
        self.steerings: tuple[Steering, ...] = ()
        self.changes: Changes = {}
        self._decoder = Decoder(network, micro_batch) if suits(network) else None
        if self._decoder is not None:
            self._sizes.rows_at_once = 4096 if not on_cpu else 1024 if small else 64
        self._keeps_last = "logits_to_keep" in inspect.signature(network.forward).parameters

    @property
    def micro_batch(self) -> int:
        return self._sizes.micro_batch

    @property
    def rows_at_once(self) -> int:
        return self._sizes.rows_at_once

    def room(self, tokens: int) -> int:
        """As many rows of `tokens` tokens as nine tenths of the free memory have caches and laws for, and at most
        `rows_at_once`."""
        if self._decoder is None:
            return self.rows_at_once
        # A cache is copied when it grows; a law takes a few arrays of the vocabulary's length.
        each = 2 * tokens * self._decoder.cache_bytes_per_token + 40 * self.vocab_size
        return max(1, min(self.rows_at_once, int(0.9 * free_memory(str(self.device)) / each)))

    def shrink(self) -> None:
        self._sizes.rows_at_once = max(1, self._sizes.rows_at_once // 2)
        self._sizes.micro_batch = min(self._sizes.micro_batch, self._sizes.rows_at_once)
        self._sizes.prefill_width = min(self._sizes.prefill_width, self._sizes.micro_batch)

    @property
    def decoder(self) -> Decoder | None:
        """The network's fast decoder; None where it has none, and while hooks that only its own forward pass would
        call stand on it."""
        if self._decoder is None:
            return None
        with ONE_THREAD:
            if any(module._forward_hooks or module._forward_pre_hooks for module in self.network.modules()):
                return None
        self._decoder = self._decoder.current()
        return self._decoder

    def __getstate__(self) -> dict[str, Any]:
        made = None if self._decoder is None else {"block": self._decoder.given_block}
        return self.__dict__ | {"_decoder": made, "changes": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._decoder = None if state["_decoder"] is None else Decoder(self.network, **state["_decoder"])
        for steering in self.steerings:
            self._add_changes(steering)

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, found by shape."""
        return decoder_layers(self.network, self.n_layers)

    def encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            return super().encode(text)
        try:
            return self.tokenizer.encode(text)
        except Exception as error:  # tokenizers raises nothing narrower for a word it does not know
            raise refuse("text", text, f"be made of tokens that {self.name} knows", "see its tokenizer.json") from error

    def decode(self, tokens: Sequence[int]) -> str:
        if self.tokenizer is None:
            return super().decode(tokens)
        return self.tokenizer.decode([int(t) for t in tokens if t >= 0], skip_special_tokens=True)

    def steered(self, steering: Steering) -> HFModel:
        """A view with `steering` on top of what this one has; the weights are shared."""
        check_steering(steering, self.layers, self.width)
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.steerings = (*self.steerings, steering)
        view.changes = {point: list(changes) for point, changes in self.changes.items()}
        view._add_changes(steering)
        view.name = f"{self.name} ({steering.kind} {steering.strength:g})"
        return view

    def _add_changes(self, steering: Steering) -> None:
        if steering.strength != 0:
            for layer in range(self.n_layers) if steering.layer is None else (steering.layer,):
                for point in steering.points or ():
                    self.changes.setdefault((point, layer), []).append(change_of(steering))

    def vocabulary(self) -> Sequence[str] | None:
        if self.tokenizer is None:
            return None
        if self._sizes.vocabulary is None:
            self._sizes.vocabulary = self.tokenizer.convert_ids_to_tokens(list(range(self.vocab_size)))
        return self._sizes.vocabulary

    def start(self, prompts: Any) -> Session:
        given = one_length(prompts)
        if given.shape[1] == 0:
            raise refuse("prompts", "empty", "hold at least one token", "begin with the end-of-sequence token")
        number: dict[bytes, int] = {}
        row_of = np.array([number.setdefault(prompt.tobytes(), len(number)) for prompt in given])
        distinct = given[np.unique(row_of, return_index=True)[1]]
        self.charge_read(given.size, calls=len(given))
        decoder = self.decoder
        if decoder is not None:
            tokens = torch.as_tensor(distinct, device=self.device)
            with torch.inference_mode():
                segment, logits = decoder.start(tokens, row_of, self.changes)
            return DecoderSession(self, decoder, [segment], logits)
        caches, laws = [], []
        prefill_width, width, rows = self._sizes.prefill_width, self.micro_batch, row_of
        for block in _blocks(distinct, prefill_width):
            output = self.forward(block, use_cache=True, keep=1)
            caches.append(output.past_key_values)
            laws.append(self.log_softmax(output.logits[:, -1]))
        log_probs = torch.cat(laws)[torch.as_tensor(rows)]
        return HFSession(self, _regroup(caches, rows, prefill_width, width), log_probs, width, given.shape[1])

    def next_log_probs(self, prefixes: np.ndarray) -> np.ndarray:
        self.charge_read(prefixes.size, calls=len(prefixes))
        # What follows the last token does not depend on the token that a sequence needs to end with.
        whole = np.concatenate([prefixes, prefixes[:, -1:]], axis=1)
        laws = [self.log_softmax(logits[:, -1]) for logits, _ in self._logits_from(whole, prefixes.shape[1])]
        return torch.cat(laws)[: len(prefixes)].cpu().numpy()

    def token_log_probs(self, sequences: np.ndarray, first: int) -> np.ndarray:
        self.charge_read(sequences.size, calls=len(sequences))
        out = []
        for logits, part in self._logits_from(sequences, first):
            target = torch.as_tensor(part[:, first:], device=logits.device)[..., None]
            # One position at a time: a float64 copy of all logits at once would be the largest tensor by far.
            columns = [
                self.log_softmax(logits[:, t - target.shape[1]]).gather(1, target[:, t]) for t in range(target.shape[1])
            ]
            out.append(torch.cat(columns, dim=1))
        return torch.cat(out)[: len(sequences)].cpu().numpy()

    def _logits_from(self, sequences: np.ndarray, first: int) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """Logits (rows, length - first, V) of the tokens from position `first` on, and their sequences, in parts."""
        decoder = self.decoder
        if decoder is None:
            for block in _blocks(sequences, self.micro_batch):
                yield self.forward(block[:, :-1], keep=sequences.shape[1] - first).logits, block
            return
        n = max(1, TOKENS_READ // sequences.shape[1])
        for part in (sequences[at : at + n] for at in range(0, len(sequences), n)):
            with torch.inference_mode(), on_one_thread(not self.gains_from_threads(part.size)):
                tokens = torch.as_tensor(part[:, :-1], device=self.device)
                hidden = decoder.read(tokens, self.changes)[0][:, first - 1 :]
                logits = decoder.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
            yield logits, part

    def hidden_states(self, prompts: Any, layer: int) -> np.ndarray:
        """(n, width) float64: the residual stream at the input of `layer` (0 the first; n_layers: after the last)
        for the last token of each prompt; prompts as in `sampling.sample`."""
        require_integer("layer", layer, low=0, high=self.n_layers, cure=f"{self.name} has {self.n_layers} layers")
        given = prompt_lists(self, prompts)
        out = np.empty((len(given), self.width))
        for group in by_length(given):
            sequences = np.stack([given[i] for i in group])
            self.charge_read(sequences.size, calls=len(sequences))
            seen: list[torch.Tensor] = []
            with recording(self.layers, layer, lambda h, seen=seen: seen.append(h[:, -1].double().cpu())):
                for block in _blocks(sequences, self.micro_batch):
                    self.forward(block, keep=1)
            out[group] = torch.cat(seen)[: len(group)].numpy()
        return out

    def forward(self, tokens: Any, *, cache: Any = None, use_cache: bool = False, keep: int = 0) -> Any:
        """One pass of the network over tokens (width, length) with this view's steering on; logits are float32 or
        as wide as the network. keep: logits of the last `keep` positions only (0: all), where the network can."""
        options = {"logits_to_keep": keep} if self._keeps_last and keep else {}
        ids = torch.as_tensor(tokens, dtype=torch.int64, device=self.device)
        steering = active(self.layers if self.steerings else nn.ModuleList(), self.steerings)
        with ONE_THREAD, torch.inference_mode(), on_one_thread(self.small), steering:
            output = self.network(ids, past_key_values=cache, use_cache=use_cache, **options)
        if use_cache and getattr(output, "past_key_values", None) is None:
            raise LacksCapability(
                f"{self.name} keeps no key-value cache that can be branched, so it can't be sampled here; "
                "use score() or next_log_probs(), or another architecture."
            )
        return output

    def log_softmax(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, V) log p as `laws.log_softmax`; refuses logits that are not numbers."""
        return laws.log_softmax(logits, lambda row: f"{self.name} in row {row}")


class DecoderSession(Session):
    """Rows in segments that began together; see `decoder`."""

    def __init__(self, model: HFModel, decoder: Decoder, segments: list[Segment], logits: torch.Tensor) -> None:
        self.model, self.decoder, self.segments, self._logits = model, decoder, segments, logits
        self.n = len(logits)
        self._log_probs: torch.Tensor | None = None

    @property
    def logits(self) -> torch.Tensor:
        return self._logits

    @property
    def log_probs(self) -> torch.Tensor:
        if self._log_probs is None:
            self._log_probs = self.model.log_softmax(self._logits)
        return self._log_probs

    def advance(self, tokens: Any) -> None:
        given = np.asarray(tokens, dtype=np.int64)
        ends = np.cumsum([segment.rows for segment in self.segments])
        # A segment whose rows are all parked stays where it is: it has nothing more to say.
        moving = [bool((part >= 0).any()) for part in np.split(given, ends[:-1])] if len(ends) > 1 else [True]
        segments = [segment for segment, moves in zip(self.segments, moving, strict=True) if moves]
        if not segments:
            return
        check_context(self.model, max(segment.position for segment in segments), 1)
        self.model.charge_read(int(np.count_nonzero(given >= 0)))
        rows = None if all(moving) else np.repeat(moving, np.diff(ends, prepend=0))
        read = torch.from_numpy(np.maximum(given if rows is None else given[rows], 0)).to(self.decoder.device)
        with torch.inference_mode(), on_one_thread(not self.model.gains_from_threads(len(read))):
            logits = self.decoder.step(segments, read, self.model.changes)
            if rows is not None:
                logits = self._logits.index_put((torch.as_tensor(rows, device=logits.device),), logits)
        self._logits = logits
        self._log_probs = None

    def select(self, rows: Any) -> DecoderSession:
        given = np.asarray(rows, dtype=np.int64)
        chosen = rows_by_part(given, [segment.rows for segment in self.segments])
        with torch.inference_mode():
            kept = [
                segment.select(own, self.decoder.quantum)
                for segment, own in zip(self.segments, chosen, strict=True)
                if len(own)
            ]
            logits = self._logits[torch.as_tensor(given, device=self._logits.device)]
        return DecoderSession(self.model, self.decoder, kept, logits)

    def join(self, other: Session) -> Session:
        if not isinstance(other, DecoderSession) or other.model is not self.model:
            return super().join(other)
        with torch.inference_mode():
            logits = torch.cat([self._logits, other._logits])
        return DecoderSession(self.model, self.decoder, [*self.segments, *other.segments], logits)


class HFSession(Session):
    """Rows in groups of one fixed width, each with a key-value cache of its own."""

    def __init__(self, model: HFModel, caches: list[Any], log_probs: torch.Tensor, width: int, read: int) -> None:
        self.model, self.caches, self.log_probs, self.width, self.read = model, caches, log_probs, width, read
        self.n = len(log_probs)

    def advance(self, tokens: Any) -> None:
        tokens = np.asarray(tokens, dtype=np.int64)
        check_context(self.model, self.read, 1)
        self.model.charge_read(int((tokens >= 0).sum()))
        self.read += 1
        laws = []
        for i, block in enumerate(_blocks(np.maximum(tokens, 0)[:, None], self.width)):
            output = self.model.forward(block, cache=self.caches[i], use_cache=True)
            self.caches[i] = output.past_key_values
            laws.append(self.model.log_softmax(output.logits[:, -1]))
        self.log_probs = torch.cat(laws)[: self.n]

    def select(self, rows: Any) -> HFSession:
        rows = np.asarray(rows, dtype=np.int64)
        caches = _regroup(self.caches, rows, self.width, self.width)
        return HFSession(self.model, caches, self.log_probs[torch.as_tensor(rows)], self.width, self.read)


def _regroup(caches: list[Any], rows: np.ndarray, width: int, new_width: int) -> list[Any]:
    """Caches of `new_width` rows each that hold `rows` of the old ones, which are left as they are."""
    return [_rows_of(caches, torch.as_tensor(block), width) for block in _blocks(rows, new_width)]


def _rows_of(parts: list[Any], rows: torch.Tensor, width: int) -> Any:
    """`rows` of what `parts` hold together: a cache, its list of layers, or the tensors in them, whose first axis is
    the batch. Goes by shape, so that caches of attention, of sliding windows and of recurrent layers will do."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        if first.ndim == 0 or first.shape[0] != width:
            return first
        whole = first if len(parts) == 1 else torch.cat(parts)
        return whole.index_select(0, rows.to(whole.device))
    if isinstance(first, dict):
        return {key: _rows_of([part[key] for part in parts], rows, width) for key in first}
    if isinstance(first, list):
        return [_rows_of([part[i] for part in parts], rows, width) for i in range(len(first))]
    if not hasattr(first, "layers") and not isinstance(first, CacheLayerMixin | LinearAttentionCacheLayerMixin):
        return first
    picked = copy.copy(first)
    vars(picked).update(_rows_of([part.__dict__ for part in parts], rows, width))
    return picked


def _blocks(rows: np.ndarray, width: int) -> list[np.ndarray]:
    """`rows` in blocks of exactly `width`, the last filled up by repeating its last row."""
    whole = rows[np.minimum(np.arange(-(-len(rows) // width) * width), len(rows) - 1)]
    return [whole[at : at + width] for at in range(0, len(whole), width)]


def _eos_ids(network: Any) -> tuple[int, ...]:
    generation = getattr(network, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    eos = network.config.get_text_config().eos_token_id if eos is None else eos
    return () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)
