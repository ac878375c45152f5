"""Take from this process, and all that it starts, the right to write outside the folders it is given.

Does: ask Linux's Landlock (5.13 and later, no root needed) to refuse creating, writing, removing and renaming files
elsewhere; the notebook sees a PermissionError that names the path. Does not: restrict reading, the network, memory or
time; undo itself; or do anything on a system without Landlock, where `available()` is False and nothing is refused.

Source: the kernel's documentation, "Landlock: unprivileged access control".
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_NO_NEW_PRIVS = 38
_O_PATH = 0o10000000
# Bits of LANDLOCK_ACCESS_FS_*: write a file; remove a folder or a file; make each kind of file.
_WRITE_FILE = 1 << 1
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14


def available() -> int:
    """The version of Landlock that this kernel has; 0 if none."""
    if sys.platform != "linux":
        return 0
    return max(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1), 0)


def confine(writable: Iterable[str]) -> bool:
    """From now on files are written below `writable` alone. False where the system can't see to it.

    What of `writable` does not exist is passed over. Raises OSError if the system refuses.
    """
    version = available()
    if not version:
        return False
    handled = _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    libc = _libc()
    ruleset = _checked(libc.syscall(_CREATE_RULESET, ctypes.byref(ctypes.c_uint64(handled)), ctypes.c_size_t(8), 0))
    try:
        for path in writable:
            _allow(libc, ruleset, path, handled)
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


class _Below(ctypes.Structure):
    """struct landlock_path_beneath_attr"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, handled: int) -> None:
    try:
        folder = os.open(path, _O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        allowed = handled if os.path.isdir(path) else handled & (_WRITE_FILE | _TRUNCATE)
        _checked(libc.syscall(_ADD_RULE, ruleset, 1, ctypes.byref(_Below(allowed, folder)), 0))
    finally:
        os.close(folder)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
