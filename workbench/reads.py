"""Which data a process has read, so that a notebook's results can be kept until that data changes.

Does: from `watch` on, remember the files beneath given folders that Python code opens for reading (an audit hook: it
sees `open` whoever calls it), and that something was read which can't be checked later: weights outside these
folders, or an answer from a network.

Does not: see files that compiled code opens by itself, or what other processes read.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ELSEWHERE = "weights outside the workbench's folders"
NETWORK = "the network"

_folders: list[str] = []
_seen: set[str] = set()
_CODE = (".py", ".pyc", ".ipynb")
_WEIGHTS = (".safetensors", ".gguf")


def watch(*folders: Path) -> None:
    """Remember from now on what is read beneath `folders`. A process is watched until it ends."""
    if not _folders:
        sys.addaudithook(_noticed)
    _folders.extend(f"{os.path.realpath(folder)}{os.sep}" for folder in folders)


def seen(home: Path) -> list[str]:
    """What was read so far: files by their place beneath `home`, ELSEWHERE, NETWORK."""
    start = f"{os.path.realpath(home)}{os.sep}"
    return sorted(name.removeprefix(start).replace(os.sep, "/") for name in _seen)


def _noticed(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, mode, flags = arguments
        reading = mode.startswith("r") if isinstance(mode, str) else not flags & (os.O_WRONLY | os.O_CREAT)
        if reading and isinstance(path, (str, bytes, os.PathLike)):
            _opened(os.fsdecode(path))
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        _seen.add(NETWORK)


def _opened(path: str) -> None:
    # A hook that raises would break the caller's open(): the folder one stands in may be gone.
    try:
        full = os.path.realpath(path)
    except OSError:
        return
    if full.startswith(tuple(_folders)):
        if not full.endswith(_CODE):
            _seen.add(full)
    elif full.endswith(_WEIGHTS):
        _seen.add(ELSEWHERE)
