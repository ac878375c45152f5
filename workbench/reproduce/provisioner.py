"""Kernels forked from a pre-imported process, for anything that starts kernels through `jupyter_client`.

Does: start one mother a process on first use (see `mother.py`), ask it for kernels, and offer them as a kernel
provisioner named "workbench-forked". Does not: exist where there is no fork worth having (Windows, macOS, other
Unixes). There, where the mother can't be started, and where a kernel wants other values of variables that libraries
read at import, the kernel is an ordinary one and one line on the log says why; WORKBENCH_KERNELS=ordinary asks for it.

JupyterLab: run `python -m workbench.reproduce.provisioner` once; the launcher then has "Python 3 (workbench)". Its
first kernel waits for the imports, the next ones do not. Each JupyterLab server has a mother of its own, which ends
with it. A kernel never gets a stale module: if a file of a loaded module has changed, it comes from a new mother.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from workbench.reproduce.forked import THREADS, ForkedKernel, Mother, NoFork, Stale, outfit

NAME = "workbench-forked"
# Read by libraries when they are imported: a kernel that wants others than the mother had can't come from her.
_READ_AT_IMPORT = (
    "CUDA", "GOTO_", "HF_", "HIP_", "HUGGINGFACE_", "KMP_", "LD_", "MKL_", "MATPLOTLIB", "MPLCONFIG", "NUMPY_",
    "NUMEXPR_", "NVIDIA_", "OPENBLAS_", "PYTHON", "PYTORCH_", "SCIPY_", "SKLEARN_", "TORCH", "TRANSFORMERS_",
    "TRITON_", "XDG_CACHE_HOME",
)  # fmt: skip
_ORDINARY = "ordinary kernels, each with imports of its own"
log = logging.getLogger("workbench")


class ForkedProvisioner(LocalProvisioner):
    """jupyter_client's local provisioner, but for where the process comes from.

    `threads`: how many torch and the linear algebra libraries may use; None for what OMP_NUM_THREADS says, or all
    cores. `writable`: the folders the kernel may write in; None for everywhere. `output`: characters it may print;
    None for no limit. `scratch`: a folder that goes if this process is killed while the kernel runs. An ordinary
    kernel, where there is no fork, has the threads alone.
    """

    threads: int | None = None
    writable: list[str] | None = None
    output: int | None = None
    scratch: str | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        env = outfit(kwargs.pop("env", None) or dict(os.environ), self.threads)
        try:
            self.process = await self._fork(cmd, env, kwargs)  # type: ignore[assignment]
        except NoFork as why:
            tell_once(f"{_ORDINARY}: {why}")
            return await super().launch_kernel(cmd, env=env, **kwargs)
        # Without a process group of its own to signal, the base class signals through the process: through the mother,
        # who knows whether the number is still the kernel's.
        self.pid, self.pgid, self.cwd = self.process.pid, None, kwargs.get("cwd", os.getcwd())
        return self.connection_info

    async def _fork(self, cmd: list[str], env: dict[str, str], kwargs: dict[str, Any]) -> ForkedKernel:
        launcher = cmd.index("ipykernel_launcher") if "ipykernel_launcher" in cmd else 0
        if not launcher or not _same_python(cmd[0]):
            raise NoFork("the kernel is not the ipykernel of this Python")
        for attempt in range(2):
            mother = start_mother()
            _compare(mother.environment, env)
            while not mother.ready():
                await asyncio.sleep(0.02)
            try:
                with _streams(kwargs) as streams:
                    return mother.fork(
                        streams,
                        argv=cmd[launcher + 1 :],
                        env=env | {"JPY_PARENT_PID": str(os.getpid())},
                        cwd=str(kwargs.get("cwd") or os.getcwd()),
                        threads=_threads(env),
                        writable=self.writable,
                        output=self.output,
                        scratch=self.scratch,
                    )
            except Stale:
                if attempt:
                    raise
                _retire(mother)
                start_mother(mother.libraries)
        raise AssertionError


def _same_python(program: str) -> bool:
    """Two environments share the file that their interpreters link to, but not the folder."""
    ours = sys.executable
    folders = {os.path.realpath(os.path.dirname(path)) for path in (program, ours)}
    return len(folders) == 1 and os.path.realpath(program) == os.path.realpath(ours)


def _threads(env: dict[str, str]) -> int:
    asked = env.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


def _compare(hers: dict[str, str], wanted: dict[str, str]) -> None:
    for name in sorted(hers.keys() | wanted.keys()):
        if name.startswith(_READ_AT_IMPORT) and name not in THREADS and hers.get(name) != wanted.get(name):
            raise NoFork(f"the kernel wants another {name} than its libraries were imported with")


@contextlib.contextmanager
def _streams(kwargs: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """The descriptors that Popen would have given the kernel as stdout and stderr."""
    with open(os.devnull, "wb") as null:
        found = []
        for name, usual in (("stdout", 1), ("stderr", 2)):
            asked = kwargs.get(name)
            if asked in (subprocess.PIPE, subprocess.STDOUT):
                raise NoFork(f"its {name} is to be a pipe")
            asked = usual if asked is None else null if asked == subprocess.DEVNULL else asked
            found.append(asked if isinstance(asked, int) else asked.fileno())
        yield found[0], found[1]


_mother: Mother | None = None
_lock = threading.Lock()
_told: set[str] = set()


def start_mother(libraries: bool = True) -> Mother:
    """This process's mother; if there is none yet, her imports begin. Raises NoFork where there can be none."""
    global _mother
    if os.environ.get("WORKBENCH_KERNELS") == "ordinary":
        raise NoFork("WORKBENCH_KERNELS=ordinary asks for them")
    if sys.platform != "linux":
        raise NoFork(f"on {sys.platform} a process can't be forked safely once its libraries are imported")
    with _lock:
        if _mother is None:
            _mother = Mother(libraries)
        elif _mother.process.poll() is not None:
            _mother = Mother(_mother.libraries)
        return _mother


def stop_mother() -> None:
    """End the mother and all her kernels; the next request starts another."""
    global _mother
    with _lock:
        mother, _mother = _mother, None
    if mother is not None:
        mother.close()


@contextlib.contextmanager
def pre_imported(libraries: bool = True) -> Iterator[None]:
    """For the length of a run: the imports begin at once, beside whatever else is to be prepared, and end with it.

    libraries: False where there are no more kernels than workers, as each may then as well do its own imports.
    """
    try:
        start_mother(libraries)
    except NoFork as why:
        tell_once(f"{_ORDINARY}: {why}")
    try:
        yield
    finally:
        stop_mother()


def _retire(stale: Mother) -> None:
    """No more kernels from her; those she has keep her alive."""
    global _mother
    with _lock:
        if _mother is stale:
            _mother = None


def tell_once(sentence: str) -> None:
    if sentence not in _told:
        _told.add(sentence)
        log.warning("workbench: %s.", sentence)


def write_kernelspec(prefix: str | None = None) -> Path:
    """Write the kernel "Python 3 (workbench)" where Jupyter finds it: below `prefix`, default this environment's."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 (workbench)",
        "language": "python",
        "metadata": {"debugger": True, "kernel_provisioner": {"provisioner_name": NAME}},
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")
        return Path(KernelSpecManager().install_kernel_spec(folder, "workbench", prefix=prefix or sys.prefix))


if __name__ == "__main__":
    print(f"written: {write_kernelspec()}; JupyterLab's launcher now has 'Python 3 (workbench)'")
