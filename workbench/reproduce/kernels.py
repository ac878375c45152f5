"""A papermill engine that keeps what a notebook has done, whatever happens to its kernel or to the disk.

Kernels talk over Unix sockets where the system has them: no ports to collide, and ipykernel does not
warn. Every running kernel is known here, so that an interrupt can end them all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import nbformat
from jupyter_client.manager import AsyncKernelManager
from papermill.engines import NBClientEngine, papermill_engines

from workbench.checkpoint import write_atomically

ENGINE = "workbench"


class LocalKernelManager(AsyncKernelManager):
    """A kernel over Unix sockets in a short private folder (a socket's path may have 104 bytes)."""

    running: ClassVar[set[LocalKernelManager]] = set()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sockets: str | None = None
        if os.name == "posix":
            self._sockets = tempfile.mkdtemp(prefix="wb-")
            if len(self._sockets) < 80:
                self.transport, self.ip = "ipc", os.path.join(self._sockets, "k")

    async def _async_start_kernel(self, **kwargs: Any) -> None:
        LocalKernelManager.running.add(self)
        await super()._async_start_kernel(**kwargs)

    start_kernel = _async_start_kernel

    async def _async_cleanup_resources(self, restart: bool = False) -> None:
        await super()._async_cleanup_resources(restart=restart)
        if not restart:
            LocalKernelManager.running.discard(self)
            if self._sockets:
                shutil.rmtree(self._sockets, ignore_errors=True)

    cleanup_resources = _async_cleanup_resources


def kill_all_kernels() -> None:
    """End every kernel at once; the threads that wait for them then see a dead kernel."""
    for manager in list(LocalKernelManager.running):
        process = getattr(manager.provisioner, "process", None)
        if process is not None:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)


class KeepingEngine(NBClientEngine):
    """papermill's engine, except that the notebook is handed out at once and a full disk does not stop it.

    `keep` receives the notebook object ("notebook") and the last error in saving it ("save_error").
    """

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, save_to: Path, keep: dict[str, Any], **kwargs: Any
    ) -> Any:
        def save(**_: Any) -> None:
            try:
                write_atomically(save_to, nbformat.writes(nb_man.nb).encode())
                keep.pop("save_error", None)
            except OSError as error:
                keep["save_error"] = error
            nb_man.last_save_time = nb_man.now()

        nb_man.save = save
        nb_man.nb.metadata.get("papermill", {}).update(input_path=Path(save_to).name)
        keep["notebook"] = nb_man.nb
        return super().execute_managed_notebook(nb_man, kernel_name, kernel_manager_class=LocalKernelManager, **kwargs)


papermill_engines.register(ENGINE, KeepingEngine)
