"""How much memory a model will take, from its files alone, and how much is free; said before anything is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from workbench.errors import DoesNotFit, refuse, require_choice
from workbench.models.folder import Tensor, checked

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_ROWS, _TOKENS = 8, 1024


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a model takes on a device.

    weights_bytes: all weights at `dtype` (quantised and integer tensors as stored). cache_bytes_per_token: keys
    and values of one token of one sequence. needed_bytes: weights plus the cache of 8 sequences of 1,024 tokens (or
    of the context, where that is shorter). free_bytes: free on the device when asked.
    """

    device: str
    dtype: str
    parameters: int
    weights_bytes: int
    cache_bytes_per_token: int
    context_length: int | None
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        return self.weights_bytes + _ROWS * min(_TOKENS, self.context_length or _TOKENS) * self.cache_bytes_per_token

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.free_bytes

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does not fit"
        return (
            f"{self.parameters:,} parameters as {self.dtype}: {_gigabytes(self.weights_bytes)} of weights, "
            f"{self.cache_bytes_per_token:,} bytes of cache a token; {verdict} in the "
            f"{_gigabytes(self.free_bytes)} free on {self.device}"
        )


def memory_estimate(spec: str | Path, *, device: str = "auto", dtype: str = "auto") -> MemoryEstimate:
    """What loading `spec` ("hf:<folder or id>", "embedded/<name>" or a folder) would take; nothing is loaded.

    A model on the hub that is not on this machine yet is downloaded first.
    """
    from workbench.models.loading import folder_of

    folder = spec if isinstance(spec, Path) else folder_of(spec)
    config, tensors = checked(folder)
    return estimate(config, tensors, chosen_device(device), dtype)


def estimate(config: dict[str, Any], tensors: dict[str, Tensor], device: str, dtype: str) -> MemoryEstimate:
    chosen = chosen_dtype(tensors, device, dtype)
    item = _DTYPES[chosen].itemsize
    weights = sum(t.n_elements * item if t.dtype in _STORED else t.n_bytes for t in tensors.values())
    text = config.get("text_config") or config

    def number(*names: str, default: int = 0) -> int:
        return next((int(text[name]) for name in names if text.get(name) is not None), default)

    heads = number("num_attention_heads", "n_head", default=1)
    head_width = number("head_dim", default=number("hidden_size", "n_embd") // max(1, heads))
    kept = number("num_hidden_layers", "n_layer") * number("num_key_value_heads", default=heads) * head_width
    context = number("max_position_embeddings", "n_positions") or None
    parameters = sum(t.n_elements for t in tensors.values())
    return MemoryEstimate(device, chosen, parameters, weights, 2 * kept * item, context, free_memory(device))


def chosen_device(device: str) -> str:
    """ "auto" is the first of cuda, mps, cpu that is there."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in found.items() if there)
    kind = require_choice("device", device.split(":")[0], ("auto", *found))
    if not found[kind]:
        raise refuse("device", device, "be on this machine", "pass device='auto' or device='cpu'")
    return device


def chosen_dtype(tensors: dict[str, Tensor], device: str, dtype: str) -> str:
    """ "auto" is float32 on the CPU; elsewhere bfloat16 for weights stored in 16 bits, and as stored otherwise."""
    require_choice("dtype", dtype, ("auto", *_DTYPES))
    if dtype != "auto":
        return dtype
    stored = Counter(_STORED[t.dtype] for t in tensors.values() if t.dtype in _STORED)
    common = stored.most_common(1)[0][0] if stored else "bfloat16"
    if device == "cpu":
        return "float32"
    return "bfloat16" if common in ("bfloat16", "float16") else common


def torch_dtype(name: str) -> torch.dtype:
    return _DTYPES[name]


def free_memory(device: str) -> int:
    """Free bytes on a device; on the CPU no more than the container is allowed."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(free, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):
        return free


def check_fits(name: str, wanted: MemoryEstimate) -> None:
    if not wanted.fits:
        smaller = "dtype='bfloat16', " if wanted.dtype in ("float32", "float64") else ""
        raise DoesNotFit(
            f"{name} needs {_gigabytes(wanted.needed_bytes)} as {wanted.dtype} but {wanted.device} has "
            f"{_gigabytes(wanted.free_bytes)} free; use {smaller}another device, a quantised checkpoint, or "
            "max_memory={...} to spread it over several devices."
        )


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
