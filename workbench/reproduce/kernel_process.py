"""What a freshly forked process does to become an ordinary kernel.

Does: take its own session, streams, environment, folder, randomness, threads and limits, then run ipykernel to its end.
Does not: fork; see `mother.py`, in whose children it runs.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import threading
from typing import Any

from workbench.reproduce.confine import confine
from workbench.reproduce.limits import said_of_cut

INLINE = "module://matplotlib_inline.backend_inline"
_PR_SET_PDEATHSIG = 1


def become_kernel(request: dict[str, Any], streams: list[int], pipe: list[int], mother: int) -> None:
    """In the child: all that an ordinary kernel's process would start with, then the kernel itself, to its end."""
    os.setsid()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != mother:
        os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in zip((null, *streams), (0, 1, 2), strict=True):
        os.dup2(source, target)
    for fd in (null, *streams, *pipe):
        os.close(fd)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    _prefer_to_be_killed()
    _settle_libraries(request["threads"])
    if request["output"] is not None:
        _cut_streams(request["output"])
    if request["writable"] is not None:
        confine(request["writable"])
    # ipykernel watches its parent, which is the mother, and says nothing on stdout.
    arguments = [*request["argv"], f"--IPKernelApp.parent_handle={mother}"]
    sys.argv = ["ipykernel_launcher.py", *request["argv"]]
    sys.orig_argv = [sys.executable, "-m", "ipykernel_launcher", *request["argv"]]
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=arguments)
    # ipykernel closes the thread that sends before the one that answers on the control channel, which may then wait for
    # ever to have its answer to the shutdown sent.
    control = IPKernelApp.instance().control_thread
    if control is not None and control.is_alive():
        control.stop()
        control.join(2)
    # What a process does at its end, but for tearing down half a gigabyte of modules.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)


def _settle_libraries(threads: int) -> None:
    """Undo in a child what libraries took from the mother's environment or share through the fork."""
    tempfile.tempdir = None
    if random := sys.modules.get("numpy.random"):
        random.seed()
    if matplotlib := sys.modules.get("matplotlib"):
        matplotlib.rcParams["backend"] = os.environ.get("MPLBACKEND") or INLINE
    if ipywidgets := sys.modules.get("ipywidgets"):
        ipywidgets.register_comm_target()  # as it does where it is imported in a kernel
    if torch := sys.modules.get("torch"):
        # A new process has a seed of its own here; CUDA's generators begin where CUDA does.
        torch.default_generator.seed()
        torch.set_num_threads(threads)
    if threads > 1:
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)


def _cut_streams(limit: int) -> None:
    """Drop what cells print past `limit` characters here, before it costs memory and time on the way."""
    from ipykernel.iostream import OutStream

    write, left = OutStream.write, limit

    def cut(stream: OutStream, string: str) -> int | None:
        nonlocal left
        if left < 0:
            return len(string)
        kept, left = string[:left], left - len(string)
        return write(stream, kept + said_of_cut(limit) if left < 0 else kept)

    OutStream.write = cut  # type: ignore[method-assign]


def _prefer_to_be_killed() -> None:
    """If the machine itself runs out of memory, let it end a notebook rather than the runner or JupyterLab."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
