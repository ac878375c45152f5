"""What a folder of a Hugging Face model holds, read without loading it; and a plain refusal for each thing amiss.

Does: reads config, safetensors headers and shard indices. Does not: open pickles, ever.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_RESAVE = "save it again with model.save_pretrained(folder), which writes safetensors"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: dtype as the format names it (F32, BF16, ...), shape, bytes on disk."""

    dtype: str
    shape: tuple[int, ...]
    n_bytes: int

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


def checked(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The folder's config and its tensors by name; refuses a folder from which a model can't be loaded."""
    if not folder.is_dir():
        raise WorkbenchError(f"{folder} is no folder; pass 'hf:' and a model's folder, or its id on the hub.")
    config = read_config(folder)
    tensors = {name: tensor for path in weight_files(folder) for name, tensor in read_header(path).items()}
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise WorkbenchError(
            f"{folder} has no tokenizer.json; save the tokenizer there too with tokenizer.save_pretrained(folder)."
        )
    return config, tensors


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise WorkbenchError(f"{folder} has no config.json; copy the one that came with the model.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise WorkbenchError(f"{path} is not a JSON object; copy the one that came with the model.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, all of them there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise WorkbenchError(f"{index} is not a shard index; download the file again.") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise WorkbenchError(
                f"{index} names {missing[0]} but it is not in the folder ({len(missing)} of {len(names)} shards are "
                "missing); download the missing files."
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise WorkbenchError(
            f"{folder} holds its weights as {pickles[0]}, a pickle, which can run code and is never opened; {_RESAVE}."
        )
    raise WorkbenchError(f"{folder} has no model.safetensors; {_RESAVE}.")


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; refuses one that is cut short or not in that format."""
    size = path.stat().st_size
    broken = f"{path} is cut short or damaged"
    again = "download or save the file again"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise WorkbenchError(f"{broken} ({size:,} bytes, too few for its own header); {again}.")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: Tensor(entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
                for name, entry in header.items()
            }
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise WorkbenchError(f"{broken} (its header is not that of a safetensors file); {again}.") from None
    if size != 8 + length + end:
        raise WorkbenchError(f"{broken} ({size:,} bytes where its header says {8 + length + end:,}); {again}.")
    return tensors
