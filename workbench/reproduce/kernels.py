"""A papermill engine for many notebooks: kernels without imports, and nothing of a notebook is lost.

Does: take kernels from a pre-imported process (`provisioner.py`) over Unix sockets in a short private folder, keep them
within their limits, cut what they print, and save the notebook as it goes, whatever happens to the kernel or the disk.
Does not: parameterise or judge notebooks.

Usable alone: `papermill in.ipynb out.ipynb --engine workbench`, or `engine_name="workbench"` in
`papermill.execute_notebook`. The first notebook of a process waits for the imports, so this pays from the second on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any, ClassVar

import nbformat
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from workbench.checkpoint import write_atomically
from workbench.measure import CLAIM_MIME
from workbench.reproduce.limits import Limits, Watch, said_of_cut
from workbench.reproduce.provisioner import ForkedProvisioner

ENGINE = "workbench"
# What ends a notebook is told in its outcome.
_SILENT = logging.getLogger("workbench.silent")
_SILENT.setLevel(logging.CRITICAL + 1)
SAVE_EVERY = 2.0  # seconds between two saves of a notebook that is running


class QuickClient(AsyncKernelClient):
    """A client that is ready when the kernel has answered, without waiting for silence afterwards."""

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        deadline = time.monotonic() + (timeout or float("inf"))
        while True:
            self.kernel_info()
            with contextlib.suppress(Empty):
                reply = await self.shell_channel.get_msg(timeout=1)
                # Something on the second channel shows that it is connected too.
                await self.iopub_channel.get_msg(timeout=0.2)
                self._handle_kernel_info_reply(reply)
                return
            if not await self.is_alive():
                raise RuntimeError("Kernel died before replying to kernel_info")
            if time.monotonic() > deadline:
                raise RuntimeError(f"Kernel didn't respond in {timeout:.0f} seconds")


class LocalKernelManager(AsyncKernelManager):
    """A kernel over Unix sockets in a short private folder (a socket's path may have 104 bytes), TCP elsewhere.

    The folder also holds the kernel's temporary files, and goes with it.
    """

    running: ClassVar[set[LocalKernelManager]] = set()

    def __init__(self, *, job: Job | None = None, **kwargs: Any) -> None:
        super().__init__(client_factory=QuickClient, **kwargs)
        self._job = job
        self.folder = tempfile.mkdtemp(prefix="wb-")
        self.connection_file = os.path.join(self.folder, "connection.json")
        if os.name == "posix" and len(self.folder) < 80:
            self.transport, self.ip = "ipc", os.path.join(self.folder, "k")

    @property
    def process(self) -> Any:
        """The kernel's process, None before it starts and after it was waited for."""
        return getattr(self.provisioner, "process", None)

    async def _async_start_kernel(self, **kwargs: Any) -> None:
        if self.provisioner is None:
            self.provisioner = ForkedProvisioner(kernel_id="", kernel_spec=self.kernel_spec, parent=self)
            self.provisioner.scratch = self.folder
            if job := self._job:
                self.provisioner.threads, self.provisioner.output = job.threads, job.limits.output
                self.provisioner.writable = None if job.writable is None else [*job.writable, self.folder]
        temporary = os.path.join(self.folder, "t")
        os.makedirs(temporary, exist_ok=True)
        env = (kwargs.pop("env", None) or dict(os.environ)) | {"TMPDIR": temporary}
        LocalKernelManager.running.add(self)
        await super()._async_start_kernel(env=env, **kwargs)

    start_kernel = _async_start_kernel

    async def _async_wait(self, pollinterval: float = 0.1) -> None:
        await super()._async_wait(pollinterval=min(pollinterval, 0.01))

    async def _async_cleanup_resources(self, restart: bool = False) -> None:
        await super()._async_cleanup_resources(restart=restart)
        if not restart:
            LocalKernelManager.running.discard(self)
            shutil.rmtree(self.folder, ignore_errors=True)

    cleanup_resources = _async_cleanup_resources


def kill_all_kernels() -> None:
    """End every kernel at once; the threads that wait for them then see a dead kernel."""
    for manager in list(LocalKernelManager.running):
        if (process := manager.process) is not None:
            with contextlib.suppress(OSError):
                process.kill()


@dataclass
class Job:
    """What is asked of one notebook beyond papermill's words, and what becomes of it.

    writable: folders the kernel may write in, None for all. claimed: called with each claim's record as it is
    measured, in the thread that runs the notebook. Known afterwards: the notebook object as far as it came,
    the last error in saving it, the execution count of the last cell begun, and what the watch saw.
    """

    save_to: Path
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None
    writable: list[str] | None = None
    claimed: Callable[[dict[str, Any]], None] = lambda record: None
    notebook: Any = None
    save_error: OSError | None = None
    cell: int = 0
    watch: Watch | None = None
    exit_status: int | None = None
    peak_resident: int = 0


class Client(PapermillNotebookClient):
    """papermill's client, which keeps of a notebook's output no more than it may have."""

    def __init__(self, nb_man: Any, *, job: Job, **kwargs: Any) -> None:
        super().__init__(nb_man, **kwargs)
        self._job, self._kept = job, 0

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "display_data" and (record := msg["content"]["data"].get(CLAIM_MIME)):
            self._job.claimed(record)
        limit, text = self._job.limits.output, msg["content"].get("text", "")
        # A forked kernel has cut what it prints, and said so; the rest is for displays and for ordinary kernels.
        if limit is not None and not text.endswith(said_of_cut(limit)):
            before, self._kept = self._kept, self._kept + _size(msg)
            if _size(msg) and self._kept > limit:
                if before > limit:
                    return None
                content = {"name": "stdout", "text": text[: limit - before] + said_of_cut(limit)}
                msg = msg | {"msg_type": "stream", "content": content}
                msg["header"] = msg["header"] | {"msg_type": "stream"}
        return super().process_message(msg, cell, cell_index)


def _size(msg: dict[str, Any]) -> int:
    """Characters of an output that may be cut; a claim may not."""
    content = msg["content"]
    if msg["msg_type"] == "stream":
        return len(content["text"])
    if msg["msg_type"] in ("display_data", "execute_result") and CLAIM_MIME not in content["data"]:
        return sum(len(value) if isinstance(value, str) else len(str(value)) for value in content["data"].values())
    return 0


class KeepingEngine(NBClientEngine):
    """papermill's engine with `LocalKernelManager`'s kernels.

    With a `job` the notebook is also handed out at once, held to its limits, and saved to `job.save_to`, where a full
    disk does not stop it.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, job: Job | None = None, **kwargs: Any) -> Any:
        if job is None:
            return super().execute_managed_notebook(
                nb_man, kernel_name, kernel_manager_class=LocalKernelManager, **kwargs
            )
        _save_to(nb_man, job)
        manager = LocalKernelManager(kernel_name=kernel_name, job=job)
        asked = {"start_timeout": 60, "timeout": None} | kwargs
        client = Client(
            nb_man,
            job=job,
            km=manager,
            kernel_name=kernel_name,
            log=_SILENT,
            startup_timeout=asked["start_timeout"],
            resources=asked.get("resources", {}),
        )
        with Watch(lambda: manager.process, job.limits) as job.watch:
            try:
                # What is written past Python is in the notebook; ipykernel would also echo it to the terminal.
                client.execute(cleanup_kc=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            finally:
                job.cell = client.code_cells_executed
                if (process := manager.process) is not None:
                    job.exit_status, job.peak_resident = process.poll(), getattr(process, "peak_resident", 0)
        return nb_man.nb


def _save_to(nb_man: Any, job: Job) -> None:
    last = 0.0

    def save(**_: Any) -> None:
        nonlocal last
        if time.monotonic() - last < SAVE_EVERY and nb_man.end_time is None:
            return
        try:
            write_atomically(job.save_to, nbformat.versions[4].writes_json(nb_man.nb).encode())
            job.save_error = None
        except OSError as error:
            job.save_error = error
        last = time.monotonic()
        nb_man.last_save_time = nb_man.now()

    nb_man.save = save
    nb_man.nb.metadata.get("papermill", {}).update(input_path=job.save_to.name)
    job.notebook = nb_man.nb


papermill_engines.register(ENGINE, KeepingEngine)
