"""How much memory a model will take, from its files alone, and how much is free; said before anything is loaded.

Does: counts weights for each dtype and quantisation, the key-value cache of a sequence (grouped heads, sliding windows),
and the largest batch that fits on each device found; refuses what does not fit, with what would.
Does not: count the activations of reading a prompt, for which a tenth of the free memory is left alone.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from workbench.errors import DoesNotFit, LacksCapability, refuse, require_choice, require_integer
from workbench.models.folder import Tensor, checked
from workbench.models.skeleton import skeleton

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
QUANTISATIONS = ("int8", "int4")
INT4_GROUP = 128
_STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_TOKENS = 1024
COUNTED_ON = 0.9


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a model takes on a device.

    weights_bytes: all weights at `dtype`, matrices of linear layers at `quantization` where it is given (a checkpoint
    that is quantised already: as stored). cache_layers: for each layer the bytes of a token's key and value, and the
    most tokens that it keeps (None: all). row_bytes: one sequence's next-token distribution, the logits beside it in
    the model's dtype. free_bytes: free on the device when asked; nine tenths of it are counted on.
    """

    device: str
    dtype: str
    quantization: str | None
    parameters: int
    weights_bytes: int
    cache_layers: tuple[tuple[int, int | None], ...]
    row_bytes: int
    context_length: int | None
    free_bytes: int

    @property
    def cache_bytes_per_token(self) -> int:
        """What one more token of a sequence takes, as long as no window is full."""
        return sum(n_bytes for n_bytes, _ in self.cache_layers)

    @property
    def tokens(self) -> int:
        """The length that is spoken of where none is given: 1,024 tokens, or the context where that is shorter."""
        return min(_TOKENS, self.context_length or _TOKENS)

    def cache_bytes(self, tokens: int) -> int:
        """The cache of one sequence of `tokens` tokens."""
        return sum(n_bytes * min(tokens, kept or tokens) for n_bytes, kept in self.cache_layers)

    def needed_bytes(self, batch: int = 1, tokens: int | None = None) -> int:
        """Weights, and cache and distribution of `batch` sequences of `tokens` tokens, prompt and answer together."""
        return self.weights_bytes + batch * (self.cache_bytes(tokens or self.tokens) + self.row_bytes)

    def largest_batch(self, tokens: int | None = None) -> int:
        """The most sequences of `tokens` tokens that fit beside the weights; 0 where not even one does."""
        left = int(COUNTED_ON * self.free_bytes) - self.weights_bytes
        return max(0, left // max(1, self.cache_bytes(tokens or self.tokens) + self.row_bytes))

    @property
    def fits(self) -> bool:
        return self.largest_batch() >= 1

    @property
    def kind(self) -> str:
        """The dtype, and the quantisation where there is one."""
        return self.dtype if self.quantization is None else f"{self.quantization} with {self.dtype}"

    def sentence(self, tokens: int | None = None) -> str:
        """Whether it fits, and how many at once, or what is lacking."""
        length = tokens or self.tokens
        batch = self.largest_batch(length)
        if batch:
            return f"fits on {self.device} as {self.kind}: largest batch {batch:,} at {length:,} tokens"
        lacking = self.needed_bytes(1, length) - int(COUNTED_ON * self.free_bytes)
        return (
            f"does not fit on {self.device} as {self.kind}: {said(lacking)} too little for one sequence of "
            f"{length:,} tokens"
        )

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters as {self.kind}: {said(self.weights_bytes)} of weights, "
            f"{self.cache_bytes_per_token:,} bytes of cache a token, {said(self.free_bytes)} free; {self.sentence()}"
        )


def memory_estimate(
    spec: str | Path, *, device: str = "auto", dtype: str = "auto", quantization: str | None = None
) -> MemoryEstimate:
    """What loading `spec` ("hf:<folder or id>", "embedded/<name>" or a folder) would take; nothing is loaded.

    A model on the hub that is not on this machine yet is downloaded first.
    """
    from workbench.models.loading import folder_of

    if quantization is not None:
        require_choice("quantization", quantization, QUANTISATIONS, cure="or leave it out")
    folder = spec if isinstance(spec, Path) else folder_of(spec)
    config, tensors = checked(folder)
    return estimate(config, tensors, chosen_device(device), dtype, quantization)


def estimate(
    config: dict[str, Any], tensors: dict[str, Tensor], device: str, dtype: str, quantization: str | None = None
) -> MemoryEstimate:
    """See `MemoryEstimate`; config and tensors as `folder.checked` returns them."""
    chosen = chosen_dtype(tensors, device, dtype, quantization)
    item, bones = DTYPES[chosen].itemsize, skeleton(config)
    if bones.parameters is None or config.get("quantization_config"):
        parameters = sum(t.n_elements for t in tensors.values())
        weights = sum(t.n_elements * item if t.dtype in _STORED else t.n_bytes for t in tensors.values())
    else:
        parameters, weights = bones.parameters, bones.parameters * item
        if quantization is not None:
            weights += sum(_quantised(shape, quantization, item) for shape in bones.linear)
    cache = tuple((values * item, kept) for values, kept in bones.cache)
    # The distribution in float64, the exponentials that it is drawn by, and the logits it is made from.
    row = bones.vocab_size * (16 + item)
    context = bones.context_length
    return MemoryEstimate(device, chosen, quantization, parameters, weights, cache, row, context, free_memory(device))


def _quantised(shape: tuple[int, int], quantization: str, item: int) -> int:
    """Bytes by which a matrix (out, in) grows (less than 0: shrinks) when torchao quantises it."""
    out, inside = shape
    if quantization == "int8":
        return out * inside * (1 - item) + 4 * out
    if inside % INT4_GROUP:
        return 0
    # The kernels want whole tiles: 8 rows, 1,024 columns. A group of columns has a scale and a zero in 16 bits.
    rows, columns = -(-out // 8) * 8, -(-inside // 1024) * 1024
    return rows * columns // 2 + 4 * rows * (columns // INT4_GROUP) - out * inside * item


def every_estimate(config: dict[str, Any], tensors: dict[str, Tensor]) -> list[MemoryEstimate]:
    """One for each device found, at the dtype that loading there would choose."""
    return [estimate(config, tensors, device, "auto") for device in devices_found()]


def weights_by_kind(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, int]:
    """Bytes of weights for float32, bfloat16, int8 and int4, as far as the model can be had so."""
    kinds = {"float32": ("float32", None), "bfloat16": ("bfloat16", None)}
    if skeleton(config).linear and not config.get("quantization_config"):
        kinds |= {name: ("bfloat16", name) for name in QUANTISATIONS}
    found = {name: estimate(config, tensors, "cpu", *kind).weights_bytes for name, kind in kinds.items()}
    # Where every matrix is too narrow for a group, int4 changes nothing.
    return {name: n_bytes for name, n_bytes in found.items() if name != "int4" or n_bytes < found["bfloat16"]}


def devices_found() -> list[str]:
    """Every device that models can be loaded on: cuda:0, cuda:1, ..., mps, cpu."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def first_device(network: Any) -> torch.device:
    """Where the first layer of a network with offloaded weights computes, and so where its tokens go."""
    hooks = (getattr(module, "_hf_hook", None) for module in network.modules())
    places = [place for hook in hooks if (place := getattr(hook, "execution_device", None)) is not None]
    return torch.device(places[0]) if places else torch.device("cpu")


def chosen_device(device: str) -> str:
    """ "auto" is the first of cuda, mps, cpu that is there."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in found.items() if there)
    kind = require_choice("device", str(device).split(":")[0], ("auto", *found))
    if not found[kind] or (":" in device and device not in devices_found()):
        raise refuse("device", device, "be on this machine", "pass device='auto' or device='cpu'")
    return device


def chosen_dtype(tensors: dict[str, Tensor], device: str, dtype: str, quantization: str | None = None) -> str:
    """ "auto" is float32 on the CPU; elsewhere bfloat16 for weights stored in 16 bits, and as stored otherwise;
    int4 kernels know bfloat16 alone."""
    require_choice("dtype", dtype, ("auto", *DTYPES))
    if quantization == "int4":
        if dtype not in ("auto", "bfloat16"):
            raise refuse("dtype", dtype, "be 'bfloat16' with quantization='int4'", "leave it out")
        return "bfloat16"
    if dtype != "auto":
        return dtype
    stored = Counter(_STORED[t.dtype] for t in tensors.values() if t.dtype in _STORED)
    common = stored.most_common(1)[0][0] if stored else "bfloat16"
    if device == "cpu":
        return "float32"
    return "bfloat16" if common in ("bfloat16", "float16") else common


def check_quantization(name: str, quantization: str, device: str, config: dict[str, Any]) -> None:
    """Refuses a quantisation that is unknown, not installed, or that this device or this model can't have."""
    require_choice("quantization", quantization, QUANTISATIONS, cure="or leave it out")
    if importlib.util.find_spec("torchao") is None:
        raise LacksCapability("quantization needs the package torchao; install research-workbench[gpu].")
    if not runs_on(quantization, device):
        cure = "pass quantization='int8', which the CPU has, or device='cuda' where there is one"
        raise refuse("quantization", quantization, f"be one that {device} has kernels for", cure, LacksCapability)
    if config.get("quantization_config"):
        cure = "leave quantization out and load it as it is"
        raise refuse("quantization", quantization, f"be left out for {name}, which is quantised already", cure)
    if not skeleton(config).linear:
        must = f"be left out for {name}, which has no linear layers that torchao quantises"
        raise refuse("quantization", quantization, must, "pass dtype='bfloat16' to save memory", LacksCapability)


def runs_on(quantization: str, device: str) -> bool:
    """int8 runs everywhere; int4 needs a CUDA device with tensor cores of 2020 or later (compute capability 8.0)."""
    if quantization == "int8":
        return True
    return device.startswith("cuda") and torch.cuda.get_device_capability(torch.device(device))[0] >= 8


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


def check_fits(name: str, wanted: MemoryEstimate, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuses what does not fit: by how much, and what would."""
    if wanted.fits:
        return
    counted, needed = int(COUNTED_ON * wanted.free_bytes), wanted.needed_bytes()
    raise DoesNotFit(
        f"{name} needs {said(needed)} as {wanted.kind} ({said(wanted.weights_bytes)} of weights and "
        f"{said(needed - wanted.weights_bytes)} for one sequence of {wanted.tokens:,} tokens), {said(needed - counted)} "
        f"more than can be counted on of the {said(wanted.free_bytes)} free on {wanted.device}; "
        f"{_what_would_fit(wanted, config, tensors)}."
    )


def _what_would_fit(wanted: MemoryEstimate, config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    options: list[tuple[str, MemoryEstimate]] = []
    same = {wanted.device, f"{wanted.device}:0"}
    for device in [wanted.device, *(found for found in devices_found() if found not in same)]:
        there = "" if device == wanted.device else f", device='{device}'"
        kinds = [("auto", None)] if there else []
        kinds += [("bfloat16", None)] + [("auto", q) for q in QUANTISATIONS if runs_on(q, device)]
        for dtype, quantization in kinds:
            if quantization is not None and (not skeleton(config).linear or config.get("quantization_config")):
                continue
            asked = f"quantization='{quantization}'" if quantization else f"dtype='{dtype}'"
            options.append((asked + there, estimate(config, tensors, device, dtype, quantization)))
    fitting = [f"{asked} would fit ({said(option.needed_bytes())})" for asked, option in options if option.fits]
    if fitting:
        return " or ".join(fitting[:2])
    asked, least = min(options, key=lambda option: option[1].needed_bytes())
    return (
        f"nothing smaller fits here either ({asked} takes {said(least.needed_bytes())}), so spread it over devices and "
        "disk with max_memory={...}, or use a larger machine"
    )


def require_tokens(tokens: Any, context: int | None) -> int | None:
    """A length of prompt and answer together, within the context, or None."""
    if tokens is None:
        return None
    cure = f"pass prompt and answer together, e.g. {min(_TOKENS, context or _TOKENS)}"
    return require_integer("tokens", tokens, low=1, high=context, cure=cure)


def said(n_bytes: int) -> str:
    """1.2 GB, 3.4 MB, 5.6 kB."""
    unit, size = ("GB", 1e9) if n_bytes >= 1e8 else ("MB", 1e6) if n_bytes >= 1e5 else ("kB", 1e3)
    return f"{n_bytes / size:.1f} {unit}"
