"""What `decoder` remembers of the rows that began together: their prompts' keys and values, shared, and their own.

Does: picks rows, repeats allowed; makes room for the next token.
Does not: compute anything from what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.models.products import BLOCK

FIRST_CAPACITY = 8


@dataclass(frozen=True)
class Shared:
    """Prompts' keys and values that rows share in blocks of up to `BLOCK` rows of one prompt.

    caches: by layer, (2, blocks, kv heads, prompt tokens, head width). prompt_of (blocks,): a block's prompt.
    place (width,): where a row stands among the blocks' places, and source (blocks * BLOCK,): the row at each place
    (any of the block where there is none); both None for row r at place r.
    """

    caches: list[torch.Tensor]
    prompt_of: np.ndarray
    place: torch.Tensor | None
    source: torch.Tensor | None

    @classmethod
    def of(cls, caches: list[torch.Tensor], old_block: np.ndarray, prompt_of_row: np.ndarray) -> Shared:
        """Rows with the prompts `prompt_of_row`, which stand in block `old_block` (of each row) of the given caches."""
        order = np.argsort(prompt_of_row, kind="stable")
        prompts, first, count = np.unique(prompt_of_row[order], return_index=True, return_counts=True)
        blocks = -(-count // BLOCK)
        offset = np.concatenate([[0], np.cumsum(blocks)[:-1]])
        of_prompt = np.repeat(np.arange(len(prompts)), count)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = offset[of_prompt] * BLOCK + np.arange(len(order)) - first[of_prompt]
        source = np.repeat(order[first], blocks * BLOCK)
        source[place] = np.arange(len(place))
        device = caches[0].device
        taken = torch.as_tensor(np.repeat(old_block[order[first]], blocks), device=device)
        identity = len(place) == len(source) and bool((place == source).all())
        return cls(
            [cache.index_select(1, taken) for cache in caches],
            np.repeat(prompts, blocks),
            None if identity else torch.as_tensor(place, device=device),
            None if identity else torch.as_tensor(source, device=device),
        )

    def by_block(self, values: torch.Tensor, kv: int) -> torch.Tensor:
        """(width, heads, n) as (blocks * kv heads, BLOCK * group, n)."""
        if self.source is not None:
            values = values.index_select(0, self.source)
        n = values.shape[-1]
        values = values.reshape(len(self.prompt_of), BLOCK, kv, -1, n).transpose(1, 2)
        return values.reshape(len(self.prompt_of) * kv, -1, n)

    def by_row(self, values: torch.Tensor, kv: int) -> torch.Tensor:
        """The way back."""
        blocks, n = len(self.prompt_of), values.shape[-1]
        values = values.view(blocks, kv, BLOCK, -1, n).transpose(1, 2).reshape(blocks * BLOCK, -1, n)
        return values if self.place is None else values.index_select(0, self.place)

    def select(self, rows: np.ndarray) -> Shared:
        places = rows if self.place is None else self.place.cpu().numpy()[rows]
        return Shared.of(self.caches, places // BLOCK, self.prompt_of[places // BLOCK])


@dataclass(frozen=True)
class SharedByRow:
    """Prompts' keys and values, by layer (2, prompts, kv heads, prompt tokens, head width), and each row's prompt."""

    caches: list[torch.Tensor]
    prompt_of: np.ndarray

    def select(self, rows: np.ndarray) -> SharedByRow:
        return SharedByRow(self.caches, self.prompt_of[rows])


@dataclass
class Segment:
    """Rows whose prompts have one length and that have read equally many tokens since.

    `rows` of them count; the caches have `width` rows, filled up by the last one to a width that products may have.
    shared: the prompts' keys and values; None for prompts shorter than `SHARED_FROM`, whose rows keep their own.
    own: by layer, (2, width * kv heads, capacity, head width), a row's own keys and values, of which `held` hold.
    """

    rows: int
    width: int
    prompt_length: int
    shared: Shared | SharedByRow | None
    own: list[torch.Tensor]
    held: int
    graph: Any = None

    def __post_init__(self) -> None:
        at = np.minimum(np.arange(self.width), self.rows - 1)
        self.filling = None if self.rows == self.width else torch.as_tensor(at, device=self.own[0].device)

    @property
    def position(self) -> int:
        return self.held if self.shared is None else self.prompt_length + self.held

    def select(self, rows: np.ndarray, quantum: int) -> Segment:
        """The segment of `rows` of this one, repeats allowed; this one stays as it is."""
        filled = filled_up(rows, quantum)
        taken = torch.as_tensor(filled, device=self.own[0].device)
        shared = None if self.shared is None else self.shared.select(filled)
        own = [cache.unflatten(1, (self.width, -1)).index_select(1, taken).flatten(1, 2) for cache in self.own]
        return Segment(len(rows), len(filled), self.prompt_length, shared, own, self.held)

    def make_room(self) -> None:
        """Room for one more token. On a CPU by little at a time, since reading past what is not held yet takes most of
        the time that attention takes there; on a GPU by doubling, since a graph is captured anew for each capacity."""
        if self.held == self.own[0].shape[2]:
            self.graph = None
            more = self.held if self.own[0].is_cuda else max(FIRST_CAPACITY, self.held // 4)
            self.own = [with_room(cache, more) for cache in self.own]


def with_room(cache: torch.Tensor, more: int) -> torch.Tensor:
    """The cache (..., held, width) with room for `more`; what is there before it is written is never read, save by
    CUDA graphs, which want it to be numbers."""
    make = cache.new_zeros if cache.is_cuda else cache.new_empty
    wider = make(*cache.shape[:-2], cache.shape[-2] + more, cache.shape[-1])
    wider[..., : cache.shape[-2], :] = cache
    return wider


def filled_up(rows: np.ndarray, quantum: int) -> np.ndarray:
    return rows[np.minimum(np.arange(-(-len(rows) // quantum) * quantum), len(rows) - 1)]
