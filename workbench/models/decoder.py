"""A Llama-shaped network decoded by a loop of our own: the same weights, a fraction of the overhead.

Does: reads prompts once each and shares their keys and values among the samples of a prompt, appends to a cache that
is never copied, and steers in passing. Rows that began at different times go through the matrix products together.
A row's numbers do not depend on its neighbours (CPU): float32 goes row by row (`rows`). In other dtypes every attention
product has a shape that the row's own history decides (prefix products go in blocks of rows of one prompt, the rest row
by row), and the matrix products run at widths that were checked on this machine to give a row the same bits at every
width (`row_quantum`), or else in blocks of one fixed width.
Does not: know other shapes than Llama, Mistral, Qwen2 and Qwen3 (`suits`); `hf` runs those through their own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from workbench.models import graphs
from workbench.models.products import BLOCK, choose, row_quantum
from workbench.models.rows import Attend, RowNetwork
from workbench.models.segments import FIRST_CAPACITY, Segment, Shared, SharedByRow, filled_up, with_room

SHARED_FROM = 48
"""Tokens of a prompt from which its rows share its keys; below, sharing costs more than it saves."""
_KINDS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_ROPES = ("default", "linear", "llama3", "yarn")
TOKENS_READ = 8192
"""Tokens of prompts that are read in one pass."""
_QUERIES = 256

Change = Callable[[torch.Tensor], torch.Tensor]
Changes = dict[tuple[str, int], list[Change]]
"""What steering does, by named point and layer: ("layer_input" | "attention_output" | "mlp_output", layer)."""


def suits(network: Any) -> bool:
    """Whether the network is of a kind that `Decoder` runs: Llama-shaped, on one device, ordinary linear layers, no
    sliding window that binds, rotary positions that do not depend on the text's length."""
    config = network.config
    if type(network).__name__ not in _KINDS or getattr(config, "hidden_act", None) != "silu":
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _ROPES:
        return False
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return False
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings and getattr(config, "use_sliding_window", True):
        return False
    if len({parameter.device for parameter in network.parameters()}) != 1 or hasattr(network, "hf_device_map"):
        return False
    try:
        parts = [part for layer in network.model.layers for part in _linear_parts(layer)]
    except AttributeError:
        return False
    # A quantised layer is still an nn.Linear, but its weight is no ordinary parameter.
    return all(type(part) is nn.Linear and type(part.weight) is nn.Parameter for part in parts)


@dataclass(frozen=True)
class _Layer:
    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class Decoder:
    """The network's own weights, laid side by side so that one product does the work of three.

    The network's parameters become views of the joined tensors: no memory is doubled, and whatever is done to them in
    place is seen here. block: None where matrix products may have any width that is a multiple of `quantum`, else
    their one width.
    """

    def __init__(self, network: Any, block: int | None = None) -> None:
        config = network.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.network, self.given_block = network, block
        first = network.model.layers[0].self_attn
        self.head_width = int(first.head_dim)
        self.embedding = network.model.embed_tokens.weight
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        # The scale of the scores goes into the queries' rotation.
        self.scale = torch.ones(self.heads + self.kv_heads, 1, dtype=self.dtype, device=self.device)
        self.query_scale = float(first.scaling)
        self.scale[: self.heads] = self.query_scale
        self.eps = float(config.rms_norm_eps)
        self.layers = [_joined(layer) for layer in network.model.layers]
        self.norm = network.model.norm.weight
        self.head, self.head_bias = network.lm_head.weight, network.lm_head.bias
        self._cos = self._sin = torch.empty(0, device=self.device)
        self.graphs = self.device.type == "cuda"
        self.first_capacity = 32 if self.graphs else FIRST_CAPACITY
        self.by_rows: RowNetwork | None = None
        self.quantum, self.block = (1, None) if block is None else (block, block)
        if self.device.type == "cpu":
            layer = self.layers[0]
            weights = [layer.qkv, layer.out, layer.gate_up, layer.down, self.head]
            with torch.inference_mode():
                if self.dtype == torch.float32:
                    self.quantum, self.block = 1, None
                    self.by_rows = RowNetwork(self, choose(weights, sum(p.nbytes for p in network.parameters()), block))
                elif block is None:
                    found = row_quantum(weights)
                    self.quantum, self.block = (found, None) if found else (BLOCK, BLOCK)

    @property
    def cache_bytes_per_token(self) -> int:
        return 2 * len(self.layers) * self.kv_heads * self.head_width * self.dtype.itemsize

    def current(self) -> Decoder:
        """This decoder, or a new one where the network has new weights: `network.to(...)` makes such."""
        joined = zip(self.network.model.layers, self.layers, strict=True)
        if (
            self.embedding.dtype == self.dtype
            and all(
                layer.self_attn.q_proj.weight.data_ptr() == mine.qkv.data_ptr()
                and layer.mlp.gate_proj.weight.data_ptr() == mine.gate_up.data_ptr()
                for layer, mine in joined
            )
            and (self.by_rows is None or self.by_rows.up_to_date())
        ):
            return self
        return Decoder(self.network, self.given_block)

    def start(self, prompts: torch.Tensor, rows: np.ndarray, changes: Changes) -> tuple[Segment, torch.Tensor]:
        """Reads prompts (n, length); a segment with row j on prompt rows[j], and their logits (len(rows), V)."""
        chunks = prompts.split(max(1, TOKENS_READ // prompts.shape[1]))
        hidden, caches = zip(*(self.read(chunk, changes) for chunk in chunks), strict=True)
        logits = self.logits(torch.cat([h[:, -1] for h in hidden]))
        prefixes = [torch.cat(of_layer, dim=1) for of_layer in zip(*caches, strict=True)]
        length, filled = prompts.shape[1], filled_up(rows, self.quantum)
        if self.by_rows is None and length < SHARED_FROM:
            taken = torch.as_tensor(filled, device=self.device)
            own = [with_room(prefix[:, taken].flatten(1, 2), self.first_capacity) for prefix in prefixes]
            segment = Segment(len(rows), len(filled), length, None, own, length)
        else:
            shape = (2, len(filled) * self.kv_heads, self.first_capacity, self.head_width)
            make = torch.zeros if self.graphs else torch.empty
            own = [make(shape, dtype=self.dtype, device=self.device) for _ in self.layers]
            by_rows = self.by_rows is not None
            shared = SharedByRow(prefixes, filled) if by_rows else Shared.of(prefixes, filled, filled)
            segment = Segment(len(rows), len(filled), length, shared, own, 0)
        return segment, logits[torch.as_tensor(rows, device=self.device)]

    def read(self, tokens: torch.Tensor, changes: Changes) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Hidden states (n, length, width) after the last norm of tokens (n, length), and by layer their keys and
        values (2, n, kv heads, length, head width)."""
        n, length = tokens.shape
        rows = n * length
        caches: list[torch.Tensor] = []

        def attend(qkv: Any) -> Any:
            if self.by_rows is not None:
                qkv = torch.from_numpy(qkv)
                _rotate(qkv[:, : self.heads + self.kv_heads], cos, sin)
            by_head = qkv[:rows].view(n, length, -1, self.head_width).transpose(1, 2)
            q, kv = by_head[:, : self.heads], by_head[:, self.heads :]
            caches.append(kv.unflatten(1, (2, self.kv_heads)).transpose(0, 1).contiguous())
            mixed = self._filled(_causal(q, *caches[-1]).transpose(1, 2).reshape(rows, -1))
            return mixed if self.by_rows is None else mixed.numpy()

        positions = torch.arange(length, device=self.device).repeat(n)
        flat = tokens.reshape(-1)
        if self.by_rows is not None:
            cos, sin = self._turns(positions, length)
        short = -rows % self.quantum
        if short:
            positions, flat = F.pad(positions, (0, short)), F.pad(flat, (0, short))
        hidden = self._forward(flat, positions, length, [(len(flat), attend)], changes)
        return hidden[:rows].view(n, length, -1), caches

    def step(self, segments: Sequence[Segment], tokens: torch.Tensor, changes: Changes) -> torch.Tensor:
        """Each row reads its token (rows,); logits (rows, V) of what may come next."""
        if self.graphs and len(segments) == 1:
            return graphs.step(self, segments[0], tokens, changes)
        rows, positions = [segment.rows for segment in segments], [segment.position for segment in segments]
        attends = [(segment.width, self._attend_to(segment)) for segment in segments]
        if len(segments) == 1:
            filling = segments[0].filling
            filled = tokens if filling is None else tokens[filling]
            at = torch.tensor(positions, device=self.device)
        else:
            parts = zip(segments, tokens.split(rows), strict=True)
            filled = torch.cat([part if s.filling is None else part[s.filling] for s, part in parts])
            at = torch.tensor(np.repeat(positions, [width for width, _ in attends]), device=self.device)
        logits = self.pass_over(filled, at, max(positions) + 1, attends, changes)
        for segment in segments:
            segment.held += 1
        if len(segments) == 1:
            return logits[: rows[0]]
        widths = [width for width, _ in attends]
        return torch.cat([part[:n] for part, n in zip(logits.split(widths), rows, strict=True)])

    def pass_over(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        reach: int,
        attends: Sequence[tuple[int, Attend]],
        changes: Changes,
    ) -> torch.Tensor:
        """Logits (rows, V) of tokens (rows,) at positions (rows,) or (1,), all below `reach`; attends as in
        `_forward`."""
        return self._logits(self._forward(tokens, positions, reach, attends, changes))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, V) from hidden states (rows, width), float32 or as wide as the network."""
        return self._logits(self._filled(hidden))[: len(hidden)]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.by_rows is not None:
            return torch.from_numpy(self.by_rows.head(hidden.numpy()))
        logits = self._linear(hidden, self.head, self.head_bias)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        reach: int,
        attends: Sequence[tuple[int, Attend]],
        changes: Changes,
    ) -> torch.Tensor:
        """Hidden states (rows, width) after the last norm. attends: how many rows a part has, and its attention."""
        if self.by_rows is not None:
            return torch.from_numpy(self.by_rows.forward(tokens.numpy(), attends, changes))
        heads, turned = self.heads, self.heads + self.kv_heads
        cos, sin = self._turns(positions, reach)
        x = self.embedding[tokens]
        for i, layer in enumerate(self.layers):
            x = _changed(x, changes, "layer_input", i)
            qkv = self._linear(self._normed(x, layer.input_norm), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(len(x), -1, self.head_width)
            if layer.query_norm is not None and layer.key_norm is not None:
                qkv[:, :heads] = F.rms_norm(qkv[:, :heads], (self.head_width,), layer.query_norm, self.eps)
                qkv[:, heads:turned] = F.rms_norm(qkv[:, heads:turned], (self.head_width,), layer.key_norm, self.eps)
            _rotate(qkv[:, :turned], cos, sin)
            if len(attends) == 1:
                mixed = attends[0][1](qkv)
            else:
                parts = zip(attends, qkv.split([width for width, _ in attends]), strict=True)
                mixed = torch.cat([attend(part) for (_, attend), part in parts])
            x = self._added(x, mixed, layer.out, layer.out_bias, changes.get(("attention_output", i)))
            both = self._linear(self._normed(x, layer.mlp_norm), layer.gate_up, layer.gate_up_bias)
            gate, up = both.chunk(2, dim=-1)
            gated = F.silu(gate).mul_(up)
            x = self._added(x, gated, layer.down, layer.down_bias, changes.get(("mlp_output", i)))
        return self._normed(x, self.norm)

    def _attend_to(self, segment: Segment) -> Attend:
        """Attention of one token a row; the functions for all layers in turn."""
        segment.make_room()
        if self.by_rows is not None:
            cos, sin = self._rotation(segment.position + 1)
            return self.by_rows.attend_to(segment, cos[segment.position], sin[segment.position])
        if isinstance(segment.shared, Shared):
            return self._attend_shared(segment, segment.shared)
        return self._attend_alone(segment)

    def _attend_alone(self, segment: Segment) -> Callable[[torch.Tensor], torch.Tensor]:
        """To what each row has read."""
        caches, t, width, kv, d = iter(segment.own), segment.held, segment.width, self.kv_heads, self.head_width
        heads, group = self.heads, self.heads // kv

        def attend(qkv: torch.Tensor) -> torch.Tensor:
            own = next(caches)
            own.select(2, t).view(2, width, kv, d).copy_(qkv[:, heads:].view(width, 2, kv, d).transpose(0, 1))
            keys, values = own.narrow(2, 0, t + 1).unbind()
            q = qkv[:, : self.heads].reshape(width * kv, group, d)
            weights = torch.softmax(torch.bmm(q, keys.transpose(1, 2)), dim=-1)
            return torch.bmm(weights, values).view(width, -1)

        return attend

    def _attend_shared(self, segment: Segment, shared: Shared) -> Callable[[torch.Tensor], torch.Tensor]:
        """To the prompts, shared in blocks, and to what each row has read since."""
        width, t, kv, d = segment.width, segment.held, self.kv_heads, self.head_width
        heads, group, length = self.heads, self.heads // kv, segment.prompt_length
        caches = zip(shared.caches, segment.own, strict=True)

        def attend(qkv: torch.Tensor) -> torch.Tensor:
            prefix, own = next(caches)
            prefix = prefix.flatten(1, 2)
            own.select(2, t).view(2, width, kv, d).copy_(qkv[:, heads:].view(width, 2, kv, d).transpose(0, 1))
            keys, values = own.narrow(2, 0, t + 1).unbind()
            q = qkv[:, : self.heads]
            before = shared.by_row(torch.bmm(shared.by_block(q, kv), prefix[0].transpose(1, 2)), kv)
            since = torch.bmm(q.reshape(width * kv, group, d), keys.transpose(1, 2))
            weights = torch.softmax(torch.cat([before, since.view(width, self.heads, t + 1)], dim=-1), dim=-1)
            mixed = shared.by_row(torch.bmm(shared.by_block(weights[..., :length], kv), prefix[1]), kv)
            since = torch.bmm(weights[..., length:].reshape(width * kv, group, t + 1), values)
            return mixed.reshape(width, -1).add_(since.view(width, -1))

        return attend

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)

    def _added(
        self,
        x: torch.Tensor,
        inner: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        changes: list[Change] | None,
    ) -> torch.Tensor:
        """x + what a part adds to the residual stream; x may be used up."""
        if not changes and bias is None and self.block is None:
            return x.addmm_(inner, weight.t())
        part = self._linear(inner, weight, bias)
        for change in changes or ():
            part = change(part)
        return x + part

    def _filled(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows, and zeros up to a width at which the products may run."""
        short = -len(rows) % self.quantum
        return F.pad(rows, (0, 0, 0, short)) if short else rows

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.block is None or len(x) == self.block:
            return F.linear(x, weight, bias)
        return torch.cat([F.linear(part, weight, bias) for part in x.split(self.block)])

    def _turns(self, positions: torch.Tensor, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin (positions, heads + kv heads, head width), the scores' scale in them."""
        cos, sin = self._rotation(reach)
        return cos[positions][:, None] * self.scale, sin[positions][:, None] * self.scale

    def _rotation(self, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin (positions, head width) for at least `reach` positions, the sign of the rotation in the sin."""
        if len(self._cos) < reach:
            many = max(256, 2 * reach)
            positions = torch.arange(many, device=self.device)[None]
            cos, sin = self.network.model.rotary_emb(self.embedding[:1], positions)
            half = self.head_width // 2
            self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        return self._cos, self._sin


def _linear_parts(layer: Any) -> tuple[Any, ...]:
    mlp = layer.mlp
    return *_projections(layer.self_attn), layer.self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _projections(attention: Any) -> tuple[Any, Any, Any]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _joined(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    qkv, qkv_bias = _join(_projections(attention))
    gate_up, gate_up_bias = _join((mlp.gate_proj, mlp.up_proj))
    return _Layer(
        layer.input_layernorm.weight,
        qkv,
        qkv_bias,
        attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        attention.o_proj.weight,
        attention.o_proj.bias,
        layer.post_attention_layernorm.weight,
        gate_up,
        gate_up_bias,
        mlp.down_proj.weight,
        mlp.down_proj.bias,
    )


@torch.no_grad()
def _join(parts: Iterable[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The parts' weights (and biases) as one tensor, of which theirs become views."""
    parts = tuple(parts)
    joined: list[torch.Tensor | None] = []
    for name in ("weight", "bias"):
        own = [getattr(part, name) for part in parts]
        if own[0] is None:
            joined.append(None)
            continue
        sizes = [len(parameter) for parameter in own]
        whole = _joined_before([parameter.data for parameter in own])
        if whole is None:
            whole = torch.cat([parameter.data for parameter in own])
            for parameter, view in zip(own, whole.split(sizes), strict=True):
                parameter.data = view
        joined.append(whole)
    weight, bias = joined
    assert weight is not None
    return weight, bias


def _joined_before(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The tensor that another decoder of the network made of the parts; None where there is none."""
    first, rows = parts[0], sum(len(part) for part in parts)
    if first.untyped_storage().nbytes() < (first.storage_offset() + rows * first.stride(0)) * first.itemsize:
        return None
    whole = first.as_strided((rows, *first.shape[1:]), first.stride())
    views = whole.split([len(part) for part in parts])
    same = all(v.data_ptr() == p.data_ptr() and v.stride() == p.stride() for v, p in zip(views, parts, strict=True))
    return whole if same else None


def _causal(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention: q (n, heads, length, d), scaled already, keys and values (n, kv heads, length, d)."""
    n, heads, length, d = q.shape
    kv = keys.shape[1]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, keys, values, is_causal=True, scale=1.0, enable_gqa=heads != kv)
    # torch's own moves in the last bits with the number of prompts where there are several threads. These products
    # have shapes that the length alone decides, and _QUERIES bounds what they hold at once.
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    out = torch.empty_like(q)
    for at in range(0, length, _QUERIES):
        part = q[:, :, at : at + _QUERIES]
        many, reach = part.shape[2], at + part.shape[2]
        scores = torch.bmm(part.reshape(n * kv, -1, d), keys[:, :reach].transpose(1, 2)).view(n, heads, many, reach)
        ahead = torch.ones(many, reach, dtype=torch.bool).triu_(at + 1)
        weights = torch.softmax(scores.masked_fill_(ahead, -torch.inf), dim=-1).view(n * kv, -1, reach)
        out[:, :, at:reach] = torch.bmm(weights, values[:, :reach]).view(n, heads, many, d)
    return out


def _changed(x: torch.Tensor, changes: Changes, point: str, layer: int) -> torch.Tensor:
    for change in changes.get((point, layer), ()):
        x = change(x)
    return x


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """x <- x cos + (its halves swapped) sin, in place; the sign of the rotation is in sin."""
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat([second, first], dim=-1)
    x.mul_(cos).addcmul_(swapped, sin)
