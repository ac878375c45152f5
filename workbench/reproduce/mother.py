"""The mother of pre-imported kernels: a process that has done the heavy imports once and forks a kernel when asked.

Does: import what notebooks import, or the kernel alone if so asked; fork; let each child become an ordinary ipykernel
with its own session, environment, working directory and standard streams; pass signals on; report how each kernel
ended. It ends with its owner and takes its kernels with it.
Does not: run a tensor operation, start a thread, open a ZeroMQ context or an event loop, or touch CUDA. A fork copies
locks but not the threads that would release them, so it refuses to fork where any of these has happened.

Started by `forked.py`, over a pair of Unix sockets (no path, so nothing collides or is left behind). A request is one
byte on the control socket that carries three descriptors: the kernel's line, its stdout, its stderr. On the line the
owner then sends a length and a JSON request ({argv, env, cwd, threads, writable, output, scratch}), later one byte for
each signal; the mother answers with lines of JSON: {"pid": ...} or {"refused": ...} or {"stale": ...}, and at the end
{"status": ..., "peak": ...}. A line that its owner drops ends the kernel.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from workbench.reproduce.kernel_process import INLINE, become_kernel, prctl

KERNEL = (
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.extensions.storemagic",
    "debugpy",
    "ipykernel.debugger",
    "ipykernel.displayhook",
    "ipykernel.iostream",
    "ipykernel.kernelapp",
    "ipykernel.zmqshell",
    "sqlite3",
    "threadpoolctl",
    "tornado.platform.asyncio",
)
LIBRARIES = (
    "numpy",
    "scipy.optimize",
    "scipy.special",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "matplotlib.pyplot",
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "anywidget",
    "ipywidgets",
    "nbformat",
)
# The runners are nothing that a notebook imports.
NOT_PRELOADED = (
    "workbench.__main__", "workbench.cli", "workbench.commands", "workbench.doctor", "workbench.lab", "workbench.reproduce",
)  # fmt: skip
_PR_SET_CHILD_SUBREAPER = 36


class Kernel(NamedTuple):
    """A kernel that runs: its line to the owner, and its owner's folder for it, removed if the owner can't do so."""

    line: socket.socket
    scratch: str | None


def main() -> NoReturn:
    control = socket.socket(fileno=int(sys.argv[1]))
    # Where the mother was found is no place for a notebook's imports; ipykernel drops its own folder too.
    if not sys.flags.safe_path:
        sys.path.pop(0)
    os.environ.setdefault("MPLBACKEND", INLINE)
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    kernels: dict[int, Kernel] = {}
    try:
        started = time.time_ns()
        _import_all(control, libraries=sys.argv[2] == "libraries")
        # What was changed meanwhile may have been read before or after.
        born = {path: when if when < started else -1 for path, when in _modified().items()}
        _say(control, {"ready": True})
        serve(control, kernels, born)
    except OSError:
        pass  # The owner is gone.
    except BaseException as error:
        with contextlib.suppress(OSError):
            _say(control, {"failed": f"{type(error).__name__}: {error}"})
    finally:
        _end_all_children()
        for kernel in kernels.values():
            _clear(kernel)
    os._exit(0)


def _import_all(control: socket.socket, libraries: bool) -> None:
    names = [*KERNEL]
    if libraries:
        import workbench

        found = pkgutil.walk_packages(workbench.__path__, "workbench.", onerror=lambda name: None)
        names += [*LIBRARIES, *(each.name for each in found if not each.name.startswith(NOT_PRELOADED))]
    with warnings.catch_warnings(), _absent("pandas", "pyarrow"):
        warnings.simplefilter("ignore")
        for name in names:
            # A module that fails here fails again in the notebook that wants it, which is where it can be read.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
            with contextlib.suppress(BlockingIOError):
                if not control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    raise ConnectionError("the owner is gone")
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _absent(*names: str) -> Iterator[None]:
    """As if these packages were not installed. scikit-learn imports pandas where there is one, and pandas pyarrow, whose
    import starts a thread; a kernel imports them itself."""
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def serve(control: socket.socket, kernels: dict[int, Kernel], born: dict[str, int]) -> None:
    """Fork on request until the owner is gone. `kernels` is kept to what runs; `born`: see `_modified`."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    while True:
        lines = {pid: kernel.line for pid, kernel in kernels.items() if kernel.line.fileno() >= 0}
        poll = select.poll()
        for fd in (control.fileno(), read, *(line.fileno() for line in lines.values())):
            poll.register(fd, select.POLLIN)
        readable = {fd for fd, _ in poll.poll()}
        for pid, line in lines.items():
            if line.fileno() in readable:
                _pass_on_signals(pid, line)
        if read in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(read, 4096)
            _reap(kernels)
        if control.fileno() in readable:
            sent, fds, _, _ = socket.recv_fds(control, 1, 3)
            if not sent:
                return
            line, pid = socket.socket(fileno=fds[0]), 0
            with contextlib.suppress(OSError):
                request = _request(line)
                pid = _fork(request, line, fds[1:], born, [control, *lines.values()], [read, write])
                if pid:
                    kernels[pid] = Kernel(line, request["scratch"])
                    _say(line, {"pid": pid})
            if not pid:
                line.close()
            for fd in fds[1:]:
                os.close(fd)


def _fork(
    request: dict[str, Any],
    line: socket.socket,
    streams: list[int],
    born: dict[str, int],
    sockets: list[socket.socket],
    pipe: list[int],
) -> int:
    """A new kernel's process id; 0 if it was refused."""
    if why := _unsafe():
        _say(line, {"refused": why})
        return 0
    if changed := next((path for path, when in _modified(born).items() if when != born[path]), None):
        _say(line, {"stale": changed})
        return 0
    mother = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for each in (*sockets, line):
            each.close()
        become_kernel(request, streams, pipe, mother)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def _unsafe() -> str:
    """Why a fork would be unsafe; empty if it is safe."""
    tasks = len(os.listdir("/proc/self/task"))
    if threading.active_count() > 1 or tasks > 1:
        return f"the pre-imported process has {tasks} threads and can't be forked"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the pre-imported process has initialised CUDA and can't be forked"
    return ""


def _modified(paths: Any = None) -> dict[str, int]:
    """When each loaded module's file was changed, in ns (0: gone)."""
    if paths is None:
        paths = {file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    found = {}
    for path in paths:
        try:
            found[path] = os.stat(path).st_mtime_ns
        except OSError:
            found[path] = 0
    return found


def _pass_on_signals(pid: int, line: socket.socket) -> None:
    try:
        wanted = line.recv(16)
    except OSError:
        wanted = b""
    for number in wanted or bytes([signal.SIGKILL]):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            # Just forked, and not yet the leader of its group.
            os.kill(pid, number)
    if not wanted:
        line.close()


def _reap(kernels: dict[int, Kernel]) -> None:
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        # What a kernel leaves running in its group ends with it. Its number is its own until it is waited for.
        if ended.si_pid in kernels:
            with contextlib.suppress(OSError):
                os.killpg(ended.si_pid, signal.SIGKILL)
        pid, status, usage = os.wait4(ended.si_pid, 0)
        if kernel := kernels.pop(pid, None):
            try:
                _say(kernel.line, {"status": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * 1024})
            except OSError:
                _clear(kernel)
            kernel.line.close()


def _end_all_children() -> None:
    """Kernels, and what they left behind in sessions of their own: ours too, as orphans come to a subreaper."""
    signal.set_wakeup_fd(-1)
    while True:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
            for pid in file.read().split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _clear(kernel: Kernel) -> None:
    if kernel.scratch:
        shutil.rmtree(kernel.scratch, ignore_errors=True)


def _request(line: socket.socket) -> dict[str, Any]:
    (length,) = struct.unpack("!I", _exactly(line, 4))
    return json.loads(_exactly(line, length))


def _exactly(line: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = line.recv(length - len(data))
        if not part:
            raise ConnectionError("the owner hung up")
        data += part
    return data


def _say(to: socket.socket, message: dict[str, Any]) -> None:
    to.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
