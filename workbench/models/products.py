"""Products of float32 rows with a weight on the CPU: a row's bits are the same whatever number of rows go together.

Does: few rows by a compiled loop and many by oneDNN with the weight packed for it (`Packed`), where these were seen on
this machine to agree to the bit: both add up a row's terms in order, one fused multiply-add after another. Weights too
large to be held twice more, and machines where they disagree, go by torch's own products (`Plain`) at widths that were
tried (`row_quantum`), or else in blocks of one width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol

import numba
import numpy as np
import torch
import torch.nn.functional as F

LARGEST = 32e6
"""Bytes of a network's weights up to which they are held twice more, packed and transposed."""
FEW = 4
"""Rows up to which our own loop is the faster one."""
BLOCK = 8
"""Rows of one product where results move with the width."""
_TRIED = (5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 31, 64, 100, 256, 511, 1040)


def jit(*allowed: str, inline: str = "never") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiled at the first call, and kept on disk where there is a folder to write to."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(allowed), "inline": inline}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    return compiled


@jit("contract")
def multiply(x: Any, transposed: Any, out: Any) -> None:
    """out (n, N) = x (n, K) times transposed (K, N), each entry summed over k in order."""
    inner, outer = transposed.shape
    whole = inner - inner % 4
    for row in range(x.shape[0]):
        given, made = x[row], out[row]
        made[:] = 0
        for k in range(0, whole, 4):
            a, b, c, d = given[k], given[k + 1], given[k + 2], given[k + 3]
            w, v, u, t = transposed[k], transposed[k + 1], transposed[k + 2], transposed[k + 3]
            for j in range(outer):
                made[j] = d * t[j] + (c * u[j] + (b * v[j] + (a * w[j] + made[j])))
        for k in range(whole, inner):
            a, w = given[k], transposed[k]
            for j in range(outer):
                made[j] = a * w[j] + made[j]


@jit()
def _checksum(words: Any) -> Any:
    total = np.int64(0)
    for i in range(words.size):
        total += words[i]
    return total


class Product(Protocol):
    """x W^T + b for rows x (n, K), W (N, K), b (N,) or None."""

    def __call__(self, x: np.ndarray) -> np.ndarray: ...

    def up_to_date(self) -> bool:
        """Whether W is still what it was when this was made."""
        ...


class Packed:
    """By our own loop or oneDNN's product."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        weight = weight.detach()
        self.bias = None if bias is None else bias.detach().numpy()
        self.transposed = weight.t().contiguous().numpy()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, max(_TRIED))
        self._words = weight.numpy().view(np.int32).reshape(-1)
        self._checksum = _checksum(self._words)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out = self.few(x) if len(x) <= FEW else self.many(x)
        if self.bias is not None:
            out += self.bias
        return out

    def few(self, x: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), self.transposed.shape[1]), np.float32)
        multiply(x, self.transposed, out)
        return out

    def many(self, x: np.ndarray) -> np.ndarray:
        return torch.ops.mkldnn._linear_pointwise(torch.from_numpy(x), self.packed, None, "none", [], "").numpy()

    def up_to_date(self) -> bool:
        return _checksum(self._words) == self._checksum


class Plain:
    """By torch's product, the rows filled up to a multiple of `quantum`; or `block` of them at a time."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, quantum: int, block: int | None = None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.quantum, self.block = quantum, block

    def __call__(self, x: np.ndarray) -> np.ndarray:
        rows, short = torch.from_numpy(x), -len(x) % self.quantum
        if short:
            rows = F.pad(rows, (0, 0, 0, short))
        parts = (rows,) if self.block is None else rows.split(self.block)
        made = [F.linear(part, self.weight, self.bias) for part in parts]
        return (made[0] if len(made) == 1 else torch.cat(made))[: len(x)].numpy()

    def up_to_date(self) -> bool:
        return True


def choose(
    weights: Sequence[torch.Tensor], held: float, block: int | None
) -> Callable[[torch.Tensor, torch.Tensor | None], Product]:
    """How to multiply with `weights`, and others of their shapes, of a network that holds `held` bytes; block: the one
    width to take, or None."""
    if block is not None:
        return partial(Plain, quantum=block, block=block)
    shapes = tuple(sorted({(weight.shape[0], weight.shape[1]) for weight in weights}))
    if held <= LARGEST and agree(shapes, torch.get_num_threads()):
        return Packed
    found = row_quantum(weights)
    return partial(Plain, quantum=found) if found else partial(Plain, quantum=BLOCK, block=BLOCK)


@lru_cache
def agree(shapes: tuple[tuple[int, int], ...], threads: int) -> bool:
    """Whether our loop and oneDNN give the same bits for weights of these shapes at every tried width, on one thread and
    on `threads`.

    The order in which a product adds does not depend on its numbers, so one try on random ones settles a width.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        for outer, inner in shapes:
            # A slice of a wide product is a product of its own; the remainder keeps its edge.
            weight = torch.randn(min(outer, 256 + outer % 64), inner, generator=generator)
            x = torch.randn(max(_TRIED), inner, generator=generator).numpy()
            product = Packed(weight, None)
            expected = product.few(x)
            for count in {1, threads}:
                torch.set_num_threads(count)
                if not all(np.array_equal(product.many(x[:n]), expected[:n]) for n in _TRIED):
                    return False
    except (RuntimeError, AttributeError):  # a torch built without oneDNN
        return False
    finally:
        torch.set_num_threads(threads)
    return True


def row_quantum(weights: Sequence[torch.Tensor]) -> int | None:
    """The smallest q of 4, 8 and 16 for which `linear` on this machine gives a row the same bits at every tried width
    that is a multiple of q, on one thread and on all; None where there is none.

    The order in which a product adds does not depend on its numbers, so one try on random ones settles a width.
    """
    threads = torch.get_num_threads()
    shapes = tuple(sorted({(weight.shape[1], weight.shape[0]) for weight in weights}))
    return _row_quantum(shapes, weights[0].dtype, threads)


@lru_cache
def _row_quantum(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, threads: int) -> int | None:
    generator = torch.Generator().manual_seed(0)
    tries = []
    for inner, outer in shapes:
        # A slice of a wide product is a product of its own; the remainder keeps its edge.
        outer = min(outer, 256 + outer % 64)
        weight = torch.randn(outer, inner, generator=generator).to(dtype)
        tries.append((weight, torch.randn(1040, inner, generator=generator).to(dtype)))
    try:
        for quantum in (4, 8, 16):
            agree = (_same_bits(w, rows, quantum, count) for w, rows in tries for count in {1, threads})
            if all(agree):
                return quantum
    finally:
        torch.set_num_threads(threads)
    return None


def _same_bits(weight: torch.Tensor, rows: torch.Tensor, quantum: int, threads: int) -> bool:
    torch.set_num_threads(threads)
    start = rows @ weight.t() * 0.5
    whole, added = F.linear(rows, weight), torch.addmm(start, rows, weight.t())
    for times in (1, 2, 3, 5, 7, 8, 16, 31, 64):
        part = slice(16, 16 + quantum * times)
        if not torch.equal(F.linear(rows[part], weight), whole[part]):
            return False
        if not torch.equal(torch.addmm(start[part], rows[part], weight.t()), added[part]):
            return False
    return True
