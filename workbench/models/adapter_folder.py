"""What a folder of a LoRA adapter holds, read before anything is loaded, and whether it belongs to a model.

Does: reads the configuration and the safetensors header; holds an adapter against a base by the note that `adapters.save`
leaves in it (architecture, width, layers, some entries of the embedding), and by the shapes of its matrices.
Does not: open pickles, or load anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.models.folder import Tensor, read_header

if TYPE_CHECKING:
    from workbench.models.hf import HFModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_SAMPLED = 64


def checked(folder: Path) -> dict[str, Tensor]:
    """The adapter's matrices by name; refuses a folder from which no LoRA adapter can be loaded."""
    again = "save it again with workbench.models.adapters.save(model, folder)"
    if not (folder / CONFIG).is_file():
        raise WorkbenchError(f"{folder} has no {CONFIG}; pass the folder of a LoRA adapter, or {again}.")
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"]
    except (ValueError, KeyError, TypeError):
        raise WorkbenchError(f"{folder / CONFIG} is no adapter's configuration; {again}.") from None
    if kind != "LORA":
        raise WorkbenchError(f"{folder} holds an adapter of kind {kind} but only LORA is loaded here; train a LoRA.")
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickles:
            raise WorkbenchError(
                f"{folder} holds its adapter as {pickles[0]}, a pickle, which can run code and is never opened; {again}."
            )
        raise WorkbenchError(f"{folder} has no {WEIGHTS}; {again}.")
    tensors = read_header(folder / WEIGHTS)
    other = [name for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if other or not tensors:
        held = other[0] if other else "nothing"
        raise WorkbenchError(f"{folder / WEIGHTS} holds {held} beside plain LoRA's A and B; train a plain LoRA.")
    return tensors


def identity(model: HFModel) -> dict[str, Any]:
    """What a base is known by: its shape, and a few entries of its embedding, which outlive a change of dtype."""
    table = model.network.get_input_embeddings().weight
    entries: list[float] = []
    if table.device.type != "meta":
        at = torch.linspace(0, table.numel() - 1, _SAMPLED, dtype=torch.float64).long().to(table.device)
        entries = table.detach().reshape(-1)[at].cpu().double().tolist()
    architecture = type(model.network).__name__
    return {
        "name": model.name,
        "architecture": architecture,
        "width": model.width,
        "layers": model.n_layers,
        "embedding": entries,
    }


def check_base(model: HFModel, folder: Path, tensors: dict[str, Tensor], note: dict[str, Any] | None) -> None:
    """Refuses an adapter for another base, with what differs."""
    cure = "load it onto the base that it was trained on"
    mine = identity(model)
    if note is not None:
        for what, shown in (("architecture", "{}"), ("width", "width {}"), ("layers", "{} layers")):
            if note[what] != mine[what]:
                theirs, ours = shown.format(note[what]), shown.format(mine[what])
                raise WorkbenchError(
                    f"{folder} holds an adapter for {note['name']}, of {theirs}, but {model.name} is of {ours}; {cure}."
                )
        if note["embedding"] and mine["embedding"]:
            one, other = np.asarray(note["embedding"]), np.asarray(mine["embedding"])
            # A hundredth is twice what rounding to 16 bits does; another model's entries differ by their whole size.
            if one.shape != other.shape or np.abs(one - other).max() > 0.01 * np.abs(one).max():
                raise WorkbenchError(
                    f"{folder} holds an adapter for {note['name']}, whose weights are not those of {model.name}; {cure}."
                )
    for name, tensor in tensors.items():
        path, _, matrix = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        try:
            module: Any = model.network.get_submodule(path)
            inside, outside = _sizes(module)
        except AttributeError:
            raise WorkbenchError(
                f"{folder} holds an adapter for a model with {path}, but {model.name} "
                f"({mine['architecture']}, {model.n_layers} layers) has none; {cure}."
            ) from None
        here, there = (inside, tensor.shape[1]) if matrix == "lora_A" else (outside, tensor.shape[0])
        if here != there:
            raise WorkbenchError(
                f"{folder} holds an adapter for width {there} at {path}, but {model.name} has width {here} there; {cure}."
            )


def _sizes(module: Any) -> tuple[int, int]:
    """Input and output width of a linear layer or of GPT-2's Conv1D."""
    return (module.nx, module.nf) if hasattr(module, "nf") else (module.in_features, module.out_features)
