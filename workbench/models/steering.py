"""Steering a transformer by its residual stream, on the untouched Hugging Face model.

Does: adds a direction at named points of one decoder layer (persona addition), or removes a direction at every block
input, attention output and MLP output (ablation, a <- a - strength (a.d) d).
Source: Angell et al. (arXiv 2604.22167), after Arditi et al. (arXiv 2406.11717).
Does not: change weights, or find directions (`directions` does). The hooks stand only while a forward pass of the
steered view runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.errors import (
    LacksCapability,
    refuse,
    require_choice,
    require_finite,
    require_integer,
    require_number,
)
from workbench.models.architecture import POINTS, point_modules


@dataclass(frozen=True)
class Steering:
    """What to do to the residual stream.

    kind "add": h <- h + strength * direction at the points of `layer`, at all positions (one layer: name it).
    kind "ablate": a <- a - strength (a.d) d with d the unit vector along `direction`, at the points of `layer`, or of
    every layer where layer is None.
    direction (width,); strength 0 is the base model, bit for bit. points: any of "layer_input", "attention_output",
    "mlp_output" (the last two are what is added to the stream, so after a norm that Gemma 2 and 3 put there);
    None is ("layer_input",) for "add" and all three for "ablate".
    """

    direction: np.ndarray
    strength: float
    kind: str = "add"
    layer: int | None = None
    points: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_choice("steering kind", self.kind, ("add", "ablate"))
        require_number("steering strength", self.strength, cure="pass a finite number such as 8.0")
        direction = require_finite("steering direction", self.direction, "pass a vector of the model's width")
        if direction.ndim != 1 or not np.linalg.norm(direction) > 0:
            cure = "use mean_difference_direction(...)"
            raise refuse("steering direction", f"of shape {direction.shape}", "be one vector other than zero", cure)
        if self.kind == "add" and self.layer is None:
            raise refuse("steering layer", None, "name one layer for kind 'add'", "pass e.g. layer=1")
        points = self.points
        if points is None:
            points = POINTS if self.kind == "ablate" else POINTS[:1]
        points = (points,) if isinstance(points, str) else tuple(points)
        for point in points:
            require_choice("steering point", point, POINTS)
        if not points or len(set(points)) < len(points):
            cure = f"name each once, of {', '.join(POINTS)}"
            raise refuse("steering points", points, "hold at least one point and none twice", cure)
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "points", points)


def decoder_layers(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The one list of `n_layers` blocks in `model`. Refuses where there is none or several."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    blocks = [m for m in lists if len({type(block) for block in m}) == 1 and any(True for _ in m[0].children())]
    if len(blocks) != 1:
        raise LacksCapability(
            f"{type(model).__name__} has {len(blocks)} lists of {n_layers} decoder layers but steering and hidden "
            "states need exactly one; use a decoder-only model."
        )
    return blocks[0]


def check_steering(steering: Steering, layers: nn.ModuleList, width: int) -> None:
    """Refuses a direction of the wrong width, a layer that is not there, a block whose parts can't be told apart."""
    if len(steering.direction) != width:
        cure = "take the direction from this very model"
        raise refuse("steering direction", f"of length {len(steering.direction)}", f"have length {width}", cure)
    if steering.layer is not None:
        require_integer("steering layer", steering.layer, low=0, high=len(layers) - 1, cure="count layers from 0")
    if steering.points != POINTS[:1]:
        for layer in layers:
            point_modules(layer)


# Hooks stand on modules that all views share, so one thread at a time runs these modules.
ONE_THREAD = threading.RLock()


@contextmanager
def active(layers: nn.ModuleList, steerings: Sequence[Steering]) -> Iterator[None]:
    """Hooks for `steerings`, in order, on while the block runs and gone after it, whatever happens inside."""
    with ONE_THREAD, ExitStack() as stack:
        for steering in steerings:
            if steering.strength == 0:
                continue
            change = change_of(steering)
            for layer in layers if steering.layer is None else [layers[steering.layer]]:
                for point in steering.points or ():
                    if point == "layer_input":
                        hook = layer.register_forward_pre_hook(_on_input(change), with_kwargs=True)
                    else:
                        hook = point_modules(layer)[point].register_forward_hook(_on_output(change))
                    stack.callback(hook.remove)
        yield


@contextmanager
def recording(layers: nn.ModuleList, layer: int, record: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Calls `record` with the residual stream at the input of `layer`; at the last block's output for len(layers)."""

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        record(args[0] if args else kwargs["hidden_states"])

    with ONE_THREAD:
        if layer == len(layers):
            hook = layers[-1].register_forward_hook(lambda module, args, output: record(_first(output)))
        else:
            hook = layers[layer].register_forward_pre_hook(look, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def change_of(steering: Steering) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of hidden states (..., width) that `steering` is."""
    given = torch.as_tensor(steering.direction)
    vector = steering.strength * given if steering.kind == "add" else given / given.norm()

    @cache
    def there(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return vector.to(device, dtype)

    def add(h: torch.Tensor) -> torch.Tensor:
        return h + there(h.device, h.dtype)

    def ablate(h: torch.Tensor) -> torch.Tensor:
        d = there(h.device, h.dtype)
        return h - steering.strength * (h * d).sum(dim=-1, keepdim=True) * d

    return add if steering.kind == "add" else ablate


def _on_input(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    return hook


def _on_output(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
