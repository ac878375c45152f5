"""A Llama-shaped pass over many rows on the CPU in float32, all but its matrix products in four compiled loops.

Does: norms, rotary positions, attention over what each row has read, and gates, by loops that see one row at a time, so
that a row's bits depend on nothing but the row: torch's own move in the last bits with where a row stands in its tensor.
Does not: keep what was read (`segments`), or multiply matrices (`products`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from workbench.models.products import Product, jit

_ROWS_A_THREAD = 64


_compiled = jit("contract")
# Sums may be taken in the order that suits the vector unit: it is the same for every row.
_compiled_sums = jit("contract", "reassoc")


@jit("contract", inline="always")
def _exp(x: Any) -> Any:
    """e^x in float32 within 1e-7 of it, 0 below e^-87, by 2^n times a polynomial (Cephes' coefficients)."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + np.float32(1.0)) * power


@_compiled_sums
def _norm(x: Any, weight: Any, eps: Any, out: Any, first: int, last: int) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight, for the rows from first to last."""
    width = x.shape[1]
    for row in range(first, last):
        given, made, total = x[row], out[row], np.float32(0)
        for j in range(width):
            total += given[j] * given[j]
        scale = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
        for j in range(width):
            made[j] = given[j] * scale * weight[j]


@_compiled
def _gate(both: Any, out: Any, first: int, last: int) -> None:
    """out (n, F) = silu(gate) * up for both (n, 2 F) = [gate, up]."""
    width = out.shape[1]
    for row in range(first, last):
        given, made = both[row], out[row]
        for j in range(width):
            made[j] = given[j] / (np.float32(1) + _exp(-given[j])) * given[width + j]


@_compiled_sums
def _attend(
    qkv: Any, cos: Any, sin: Any, scale: Any, prefix: Any, prompt_of: Any, own: Any, held: int, out: Any, first: int,
    last: int,
) -> None:  # fmt: skip
    """Turns a row's query and key to its position, keeps its key and value, and mixes the values that it has read.

    qkv (n, heads + 2 kv, d); cos, sin (d,), the rotation's sign in sin; prefix (2, prompts, kv, length, d), of which row r
    has read prompt_of[r]; own (2, n * kv, capacity, d), of which `held` hold; out (n, heads * d).
    """
    kv, length, d = prefix.shape[2], prefix.shape[3], prefix.shape[4]
    heads = qkv.shape[1] - 2 * kv
    group, half, many = heads // kv, d // 2, length + held + 1
    scores, q, mixed = np.empty(many, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    for row in range(first, last):
        for h in range(kv):
            key, at = qkv[row, heads + h], row * kv + h
            kept = own[0, at, held]
            for j in range(half):
                kept[j] = key[j] * cos[j] + key[j + half] * sin[j]
                kept[j + half] = key[j + half] * cos[j + half] + key[j] * sin[j + half]
            own[1, at, held, :] = qkv[row, heads + kv + h]
            for g in range(group):
                given = qkv[row, h * group + g]
                for j in range(half):
                    q[j] = (given[j] * cos[j] + given[j + half] * sin[j]) * scale
                    q[j + half] = (given[j + half] * cos[j + half] + given[j] * sin[j + half]) * scale
                peak = np.float32(-np.inf)
                for t in range(many):
                    key = prefix[0, prompt_of[row], h, t] if t < length else own[0, at, t - length]
                    total = np.float32(0)
                    for j in range(d):
                        total += q[j] * key[j]
                    scores[t] = total
                    # A score that is no number must not be passed over.
                    peak = total if not total <= peak else peak
                for t in range(many):
                    scores[t] = _exp(scores[t] - peak)
                whole = np.float32(0)
                for t in range(many):
                    whole += scores[t]
                mixed[:] = 0
                for t in range(many):
                    value = prefix[1, prompt_of[row], h, t] if t < length else own[1, at, t - length]
                    weight = scores[t]
                    for j in range(d):
                        mixed[j] += weight * value[j]
                place = (h * group + g) * d
                for j in range(d):
                    out[row, place + j] = mixed[j] / whole


@dataclass(frozen=True)
class _Layer:
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    input_norm: np.ndarray
    mlp_norm: np.ndarray
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None


Attend = Callable[[Any], Any]
"""The queries, keys and values of a part's rows (rows, heads + 2 kv heads, head width) -> (rows, heads * head width).
Arrays, not turned to their positions yet; where `decoder` runs the network in torch, tensors, turned."""


class RowNetwork:
    """A `Decoder`'s network, its weights packed for row after row."""

    def __init__(self, decoder: Any, product: Callable[[torch.Tensor, torch.Tensor | None], Product]) -> None:
        self.heads, self.kv_heads, self.head_width = decoder.heads, decoder.kv_heads, decoder.head_width
        self.scale = np.float32(decoder.query_scale)
        self.eps = np.float32(decoder.eps)
        self.layers = [
            _Layer(
                product(layer.qkv, layer.qkv_bias),
                product(layer.out, layer.out_bias),
                product(layer.gate_up, layer.gate_up_bias),
                product(layer.down, layer.down_bias),
                layer.input_norm.detach().numpy(),
                layer.mlp_norm.detach().numpy(),
                layer.query_norm,
                layer.key_norm,
            )
            for layer in decoder.layers
        ]
        self.norm = decoder.norm.detach().numpy()
        self.embedding = decoder.embedding.detach().numpy()
        self.head = product(decoder.head, decoder.head_bias)
        self._products = [self.head, *(p for la in self.layers for p in (la.qkv, la.out, la.gate_up, la.down))]

    def up_to_date(self) -> bool:
        """Whether the products still know the weights; asking costs less than a pass over one token."""
        return all(product.up_to_date() for product in self._products)

    def forward(self, tokens: np.ndarray, attends: Sequence[tuple[int, Attend]], changes: Any) -> np.ndarray:
        """Hidden states (rows, width) after the last norm; the arguments as in `Decoder._forward`."""
        x = self.embedding[tokens]
        for i, layer in enumerate(self.layers):
            x = _changed(x, changes.get(("layer_input", i)))
            qkv = layer.qkv(self._normed(x, layer.input_norm)).reshape(len(x), -1, self.head_width)
            if layer.query_norm is not None and layer.key_norm is not None:
                heads, turned = self.heads, self.heads + self.kv_heads
                given, eps = torch.from_numpy(qkv), float(self.eps)
                given[:, :heads] = F.rms_norm(given[:, :heads], (self.head_width,), layer.query_norm, eps)
                given[:, heads:turned] = F.rms_norm(given[:, heads:turned], (self.head_width,), layer.key_norm, eps)
            if len(attends) == 1:
                mixed = attends[0][1](qkv)
            else:
                ends = np.cumsum([rows for rows, _ in attends])[:-1]
                parts = zip(attends, np.split(qkv, ends), strict=True)
                mixed = np.concatenate([attend(part) for (_, attend), part in parts])
            x += _changed(layer.out(mixed), changes.get(("attention_output", i)))
            both = layer.gate_up(self._normed(x, layer.mlp_norm))
            gated = np.empty((len(x), both.shape[1] // 2), np.float32)
            _over_rows(_gate, len(x), both, gated)
            x += _changed(layer.down(gated), changes.get(("mlp_output", i)))
        return self._normed(x, self.norm)

    def attend_to(self, segment: Any, cos: torch.Tensor, sin: torch.Tensor) -> Attend:
        """Attention of one token a row of a `decoder.Segment`; the function for all layers in turn. cos, sin (d,)."""
        n, prompt_of, held = segment.width, segment.shared.prompt_of, segment.held
        caches = zip(segment.shared.caches, segment.own, strict=True)
        turn, back = cos.numpy(), sin.numpy()

        def attend(qkv: np.ndarray) -> np.ndarray:
            prefix, own = next(caches)
            out = np.empty((n, self.heads * self.head_width), np.float32)
            _over_rows(_attend, n, qkv, turn, back, self.scale, prefix.numpy(), prompt_of, own.numpy(), held, out)
            return out

        return attend

    def _normed(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        _over_rows(_norm, len(x), x, weight, self.eps, out)
        return out


def _changed(x: np.ndarray, changes: Sequence[Callable[[torch.Tensor], torch.Tensor]] | None) -> np.ndarray:
    if not changes:
        return x
    made = torch.from_numpy(x)
    for change in changes:
        made = change(made)
    return made.contiguous().numpy()


def _over_rows(kernel: Callable[..., None], rows: int, *arrays: Any) -> None:
    """kernel(*arrays, first, last) over all rows, by as many threads as torch may use."""
    threads = min(torch.get_num_threads(), rows // _ROWS_A_THREAD)
    if threads < 2:
        kernel(*arrays, 0, rows)
        return
    ends = [rows * i // threads for i in range(threads + 1)]
    others = [_pool(os.getpid()).submit(kernel, *arrays, first, last) for first, last in pairwise(ends[1:])]
    kernel(*arrays, 0, ends[1])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; one that was forked makes its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="rows")
