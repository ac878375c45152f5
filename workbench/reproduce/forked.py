"""The owner's end of a pre-imported process and of the kernels forked from it (the other end: `mother.py`).

Does: start one, wait for its imports, ask it for kernels, and pass signals to them and hear of their end. Does not:
know of Jupyter's messages, or decide when there is to be a mother; see `provisioner.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

START_TIMEOUT = 180.0  # seconds for the imports, on a slow and busy machine
REPLY_TIMEOUT = 60.0  # seconds for a fork
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def outfit(env: dict[str, str], threads: int | None) -> dict[str, str]:
    """The environment with so many threads for torch and linear algebra; as it is for None."""
    return env if threads is None else env | dict.fromkeys(THREADS, str(threads))


class NoFork(Exception):
    """Why there is no forked kernel, as half a sentence."""


class Stale(NoFork):
    """A file that the mother has imported has changed since."""


class Mother:
    """The owner's end of a mother. She lives as long as this object or a kernel of hers is held.

    libraries: whether she imports what notebooks import, or no more than a kernel itself.
    """

    def __init__(self, libraries: bool = True) -> None:
        self.libraries, self.environment = libraries, dict(os.environ)
        self._control, hers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with hers:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "workbench.reproduce.mother",
                    str(hers.fileno()),
                    "libraries" if libraries else "kernel",
                ],
                pass_fds=(hers.fileno(),),
                cwd=Path(__file__).resolve().parents[2],
                env=outfit(self.environment, 1) | {"TOKENIZERS_PARALLELISM": "false"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._lock, self._ready, self._started = threading.Lock(), False, time.monotonic()

    def ready(self) -> bool:
        """Whether her imports are done. Raises NoFork if they never will be."""
        with self._lock:
            if self._ready:
                return True
            try:
                heard = self._control.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if time.monotonic() - self._started > START_TIMEOUT:
                    raise NoFork(f"the imports were not done within {START_TIMEOUT:.0f} s") from None
                return False
            except OSError as error:
                raise NoFork(f"the pre-imported process is gone ({error.strerror})") from None
            said = json.loads(heard or b'{"failed": "it ended"}')
            if "failed" in said:
                raise NoFork(f"the pre-imported process could not start ({said['failed']})")
            self._ready = True
            return True

    def fork(self, streams: tuple[int, int], **request: Any) -> ForkedKernel:
        """A kernel with these descriptors as stdout and stderr, once `ready()`; `request` as in `mother.py`.

        Raises NoFork if there is none to be had.
        """
        line, hers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        line.settimeout(REPLY_TIMEOUT)
        message = json.dumps(request).encode()
        try:
            with self._lock, hers:
                socket.send_fds(self._control, [b"k"], [hers.fileno(), *streams])
            line.sendall(struct.pack("!I", len(message)) + message)
            return ForkedKernel(self, line)
        except OSError as error:
            line.close()
            raise NoFork(f"the pre-imported process does not answer ({error})") from None
        except NoFork:
            line.close()
            raise

    def close(self) -> None:
        """End her, and with her all her kernels."""
        self._control.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __del__(self) -> None:
        self._control.close()


class ForkedKernel:
    """A forked kernel's process, with what `LocalProvisioner` uses of subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, mother: Mother, line: socket.socket) -> None:
        self._mother, self._line = mother, line
        self.returncode: int | None = None
        self.peak_resident = 0  # bytes, with the pages that are the mother's too; known at the end
        heard = b""
        while b"\n" not in heard:
            if not (part := line.recv(4096)):
                raise NoFork("the pre-imported process is gone")
            heard += part
        first, self._heard = heard.split(b"\n", 1)
        said = json.loads(first)
        if "pid" not in said:
            raise Stale(said["stale"]) if "stale" in said else NoFork(said["refused"])
        self.pid: int = said["pid"]
        line.setblocking(False)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        while self.returncode is None:
            if self._heard.endswith(b"\n"):
                said = json.loads(self._heard)
                self.returncode, self.peak_resident = said["status"], said["peak"]
                self._line.close()
                break
            try:
                part = self._line.recv(4096)
            except BlockingIOError:
                return None
            except OSError:
                part = b""
            self._heard += part
            if not part:
                # The mother is gone without a word, and her kernels died with her.
                self.returncode = -int(signal.SIGKILL)
                self._line.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(["kernel"], timeout or 0.0)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        """To the kernel and its process group; nothing if it has ended. Any thread may call it."""
        with contextlib.suppress(OSError):
            self._line.send(bytes([number]))

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)
