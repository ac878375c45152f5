"""States on disk: written whole or not at all, and read back bit for bit.

A state is a dict (nested at will) of str, bool, int, float, None, lists, NumPy arrays and `ExactSum`s.
The file is one line of JSON with a checksum before it: no pickles, so a checkpoint can't run code.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.exact_sum import ExactSum


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, sync, rename: a reader sees the old file or the new one, never a torn one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives a file to its owner alone; the rest of the run's folder follows the umask.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def save(path: Path, content: dict[str, Any]) -> None:
    body = json.dumps(_encode(content), allow_nan=False).encode()
    write_atomically(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body + b"\n")


def load(path: Path) -> dict[str, Any]:
    """The content that `save` wrote, or a sentence that names the file."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise WorkbenchError(
            f"The checkpoint {path} can't be read ({error.strerror}); pass another path, or mend the file's permissions."
        ) from None
    body = body.rstrip(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise WorkbenchError(
            f"The checkpoint {path} is damaged (its checksum does not match); delete it to start afresh."
        )
    return _decode(json.loads(body))


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, ExactSum):
        return {"sum": hex(value.units)}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise WorkbenchError(
                "A state holds an array of Python objects; keep numbers in arrays and objects in lists."
            )
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": [value.dtype.str, list(value.shape), data]}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise WorkbenchError(
        f"A state holds a {type(value).__name__}; use numbers, strings, lists, dicts, NumPy arrays or ExactSum."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "dict":
        return {key: _decode(item) for key, item in content}
    if kind == "sum":
        return ExactSum(int(content, 16))
    if kind == "float":
        return float(content)
    dtype, shape, data = content
    return np.frombuffer(base64.b64decode(data), dtype=np.dtype(dtype)).reshape(shape).copy()
