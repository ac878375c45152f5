"""A decoding step as one CUDA graph: the launch of one graph in place of some hundred kernels.

Does: writes the step with shapes that do not change while a cache keeps its capacity (the whole capacity is attended
to, what lies ahead masked), captures it once for each segment and capacity, and replays it. `attend_statically` is
the same step without a graph. What a cache holds ahead must be numbers, since a weight of 0 would not undo others.
Does not: promise the bits of `decoder`'s own step, which attends to what is held alone: the same law, other roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from workbench.models.segments import Shared

if TYPE_CHECKING:
    from workbench.models.decoder import Changes, Decoder
    from workbench.models.segments import Segment

_WARM_UP = 2


class Graph:
    """The captured step of one segment; its inputs are tokens (width,), position (1,) and held (1,)."""

    def __init__(self, decoder: Decoder, segment: Segment, changes: Changes) -> None:
        device = decoder.device
        self.tokens = torch.zeros(segment.width, dtype=torch.int64, device=device)
        self.position = torch.tensor([segment.position], device=device)
        self.held = torch.tensor([segment.held], device=device)
        reach = segment.position - segment.held + segment.own[0].shape[2]

        def run() -> torch.Tensor:
            attend = attend_statically(decoder, segment, self.held)
            return decoder.pass_over(self.tokens, self.position, reach, [(segment.width, attend)], changes)

        # What the warm-up writes stands where the first real token will.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = run()

    def replay(self, tokens: torch.Tensor, segment: Segment) -> torch.Tensor:
        self.tokens.copy_(tokens)
        self.position.fill_(segment.position)
        self.held.fill_(segment.held)
        self.graph.replay()
        return self.logits[: segment.rows].clone()


def step(decoder: Decoder, segment: Segment, tokens: torch.Tensor, changes: Changes) -> torch.Tensor:
    """As `Decoder.step` for one segment, by its graph, which is captured where there is none yet."""
    segment.make_room()
    if segment.graph is None:
        segment.graph = Graph(decoder, segment, changes)
    logits = segment.graph.replay(tokens if segment.filling is None else tokens[segment.filling], segment)
    segment.held += 1
    return logits


def attend_statically(decoder: Decoder, segment: Segment, held: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Attention as `Decoder` does it, where the number of tokens held is a tensor (1,) on the device."""
    width, kv, d, heads = segment.width, decoder.kv_heads, decoder.head_width, decoder.heads
    shared, capacity = segment.shared, segment.own[0].shape[2]
    ahead = torch.arange(capacity, device=held.device) > held
    layers = iter(range(len(segment.own)))

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        layer = next(layers)
        own = segment.own[layer]
        new = qkv[:, heads:].view(width, 2, kv, d).transpose(0, 1).reshape(2, width * kv, 1, d)
        own.index_copy_(2, held, new)
        q = qkv[:, :heads].reshape(width * kv, -1, d)
        keys, values = own.unbind()
        if not isinstance(shared, Shared):
            mixed = F.scaled_dot_product_attention(
                q.view(width, kv, -1, d),
                keys.view(width, kv, capacity, d),
                values.view(width, kv, capacity, d),
                attn_mask=~ahead[None],
                scale=1.0,
            )
            return mixed.reshape(width, -1)
        prefix = shared.caches[layer].flatten(1, 2)
        before = shared.by_row(torch.bmm(shared.by_block(q.view(width, heads, d), kv), prefix[0].transpose(1, 2)), kv)
        since = torch.bmm(q, keys.transpose(1, 2)).view(width, heads, capacity).masked_fill(ahead, -torch.inf)
        weights = torch.softmax(torch.cat([before, since], dim=-1).float(), dim=-1).to(q.dtype)
        length = segment.prompt_length
        mixed = shared.by_row(torch.bmm(shared.by_block(weights[..., :length], kv), prefix[1]), kv)
        since = torch.bmm(weights[..., length:].reshape(width * kv, -1, capacity), values)
        return mixed.reshape(width, -1) + since.view(width, -1)

    return attend
