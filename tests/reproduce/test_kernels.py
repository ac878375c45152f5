"""Forked kernels against ordinary ones: whatever a client can see of a kernel's life is the same."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from queue import Empty
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from workbench.reproduce import provisioner
from workbench.reproduce.kernels import LocalKernelManager

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")


@pytest.fixture(autouse=True, scope="module")
def mother():
    """One that imports no more than a kernel: how kernels live and die is the same, and it starts at once."""
    with provisioner.pre_imported(libraries=False):
        yield


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("prefix")
    provisioner.write_kernelspec(str(prefix))
    return KernelSpecManager(kernel_dirs=[str(prefix / "share/jupyter/kernels")])


@pytest.fixture(params=["python3", "workbench"])
def kernel(request, specs, tmp_path):
    """A kernel manager as JupyterLab would use it, over the usual transport, and its client."""
    manager = KernelManager(kernel_name=request.param, kernel_spec_manager=specs)
    env = os.environ | {"MARK": "made for this kernel"}
    env.pop("PYTEST_CURRENT_TEST")  # under pytest ipykernel leaves the descriptors alone
    manager.start_kernel(cwd=str(tmp_path), env=env)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    forked = type(manager.provisioner.process).__name__ == "ForkedKernel"
    assert forked == (request.param == "workbench")
    yield manager, client
    client.stop_channels()
    if manager.is_alive():
        manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def printed(client, code: str, timeout: float = 30) -> str:
    """What the code prints; its error's name if it raises."""
    said = []

    def heard(message):
        if message["msg_type"] == "stream":
            said.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=heard, timeout=timeout)["content"]
    return reply.get("ename") or "".join(said)


def reply_to(client, asked: str, timeout: float = 30) -> dict:
    while (reply := client.get_shell_msg(timeout=timeout))["parent_header"]["msg_id"] != asked:
        pass
    return reply["content"]


def gone(pid: int, within: float = 5) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_it_starts_as_an_ordinary_process_would(kernel, tmp_path):
    _, client = kernel
    code = """
import os, signal, sys, threading
print(os.getcwd(), os.environ["MARK"], os.getsid(0) == os.getpid(), sorted(set(globals()) - set(dir(__builtins__)))[:0])
print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGPIPE))
print(sys.argv[0].endswith("ipykernel_launcher.py"), sys.argv[1], "__main__" == __name__, repr(sys.path[0]))
print(sys.stdin.read() if not sys.stdin else "", threading.current_thread() is threading.main_thread())
print(os.environ["JPY_PARENT_PID"] == str(%d), os.environ.get("OPENBLAS_NUM_THREADS"))
"""
    lines = printed(client, code % os.getpid()).splitlines()
    assert lines[0] == f"{tmp_path} made for this kernel True []"
    assert lines[1] == "0 0 1"
    assert lines[2].startswith("True -f True")
    assert lines[4] == f"True {os.environ.get('OPENBLAS_NUM_THREADS')}"


def test_an_interrupt_ends_the_cell_and_not_the_kernel(kernel):
    manager, client = kernel
    printed(client, "kept = 7")
    asked = client.execute("import time\nwhile True: time.sleep(0.01)", stop_on_error=False)
    time.sleep(0.5)
    manager.interrupt_kernel()
    assert reply_to(client, asked)["ename"] == "KeyboardInterrupt"
    assert printed(client, "print(kept)") == "7\n"


def test_a_time_out_of_the_client_leaves_the_kernel_alive(kernel):
    manager, client = kernel
    # An error would otherwise abort what is asked right after it.
    asked = client.execute("import time\ntime.sleep(60)", stop_on_error=False)
    with pytest.raises(Empty):
        reply_to(client, asked, timeout=0.5)
    assert manager.is_alive()
    manager.interrupt_kernel()
    reply_to(client, asked)
    assert printed(client, "print('well')") == "well\n"


def test_a_restart_is_another_process_with_nothing_left(kernel):
    manager, client = kernel
    before = int(printed(client, "kept = 7\nimport os\nprint(os.getpid())"))
    manager.restart_kernel()
    client.wait_for_ready(timeout=60)
    assert printed(client, "kept") == "NameError"
    assert int(printed(client, "import os\nprint(os.getpid())")) != before
    assert gone(before)


@pytest.mark.parametrize("last_words, status", [("os.kill(os.getpid(), 9)", -9), ("os._exit(3)", 3)])
def test_its_death_is_seen_with_its_exit_status(kernel, last_words, status):
    manager, client = kernel
    process = manager.provisioner.process
    client.execute(f"import os; {last_words}")
    assert process.wait(timeout=10) == status
    assert not manager.is_alive()
    manager.restart_kernel()
    client.wait_for_ready(timeout=60)
    assert printed(client, "print('again')") == "again\n"


def test_shutdown_ends_it_and_what_it_started(kernel):
    manager, client = kernel
    code = "import subprocess, os\nchild = subprocess.Popen(['sleep', '1000'])\nprint(os.getpid(), child.pid)"
    pid, child = map(int, printed(client, code).split())
    manager.shutdown_kernel(now=True)
    assert gone(pid) and gone(child) and not manager.is_alive()


def test_a_polite_shutdown_lets_it_clean_up(kernel, tmp_path):
    manager, client = kernel
    printed(client, f"import atexit, pathlib\natexit.register(pathlib.Path({str(tmp_path / 'left')!r}).touch)")
    manager.shutdown_kernel()
    assert (tmp_path / "left").exists()


def test_what_is_written_past_python_reaches_the_notebook(kernel):
    _, client = kernel
    assert "from the shell" in printed(client, "import os, time\nos.system('echo from the shell')\ntime.sleep(0.5)")


def fork(**more):
    mother = provisioner.start_mother()
    while not mother.ready():
        time.sleep(0.02)
    usual = {"argv": [], "env": dict(os.environ), "cwd": "/", "threads": 1, "writable": None, "output": None}
    return mother.fork((1, 2), **(usual | {"scratch": None} | more))


def test_a_kernel_that_is_dropped_ends():
    kernel = fork()
    pid = kernel.pid
    assert kernel.poll() is None
    del kernel
    assert gone(pid)


def test_a_mother_that_is_killed_takes_her_kernels_with_her():
    kernel = fork()
    mother = provisioner.start_mother()
    os.kill(mother.process.pid, signal.SIGKILL)
    assert kernel.wait(timeout=5) == -9 and gone(kernel.pid)
    mother.process.wait()
    assert fork().poll() is None, "another one takes over"
    provisioner.stop_mother()
    provisioner.start_mother(libraries=False)


OWNER = """
import asyncio, json, os, sys, time
from workbench.reproduce import provisioner
from workbench.reproduce.kernels import LocalKernelManager
provisioner.start_mother(libraries=False)
manager = LocalKernelManager()
asyncio.run(manager._async_start_kernel())
print(json.dumps([provisioner.start_mother().process.pid, manager.process.pid]), flush=True)
time.sleep(600)
"""


def test_all_of_it_ends_with_its_owner_even_if_that_is_killed():
    with tempfile.TemporaryDirectory() as own:
        env = os.environ | {"TMPDIR": own}
        owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=env)
        mother, kernel = json.loads(owner.stdout.readline())
        assert os.listdir(own)
        owner.kill()
        owner.wait()
        owner.stdout.close()
        assert gone(kernel) and gone(mother) and os.listdir(own) == []


UNSAFE = """
import sys, threading, types
from workbench.reproduce import mother
assert mother._unsafe() == "", mother._unsafe()
sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: True))
assert mother._unsafe() == "the pre-imported process has initialised CUDA and can't be forked"
stop = threading.Event()
threading.Thread(target=stop.wait).start()
said = mother._unsafe()
stop.set()
assert said == "the pre-imported process has 2 threads and can't be forked", said
"""


def test_it_refuses_to_fork_with_threads_or_cuda():
    quiet = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", UNSAFE], check=True, env=quiet)


def start(manager: LocalKernelManager, **kwargs) -> None:
    asyncio.run(manager._async_start_kernel(**kwargs))


def stop(manager: LocalKernelManager) -> None:
    asyncio.run(manager._async_shutdown_kernel(now=True))


def test_a_changed_module_is_never_used_from_memory(tmp_path, monkeypatch):
    site = tmp_path / "sitecustomize.py"
    site.write_text("version = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    provisioner.stop_mother()
    provisioner.start_mother(libraries=False)
    old, new = LocalKernelManager(), LocalKernelManager()
    try:
        start(old)
        site.write_text("version = 2\n")
        start(new)
        assert type(new.process).__name__ == "ForkedKernel"
        assert old.process._mother is not new.process._mother
        assert old.process.poll() is None, "the kernel that runs already is left alone"
    finally:
        for manager in (old, new):
            stop(manager)
        monkeypatch.undo()
        provisioner.stop_mother()
        provisioner.start_mother(libraries=False)


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"WORKBENCH_KERNELS": "ordinary"}, "WORKBENCH_KERNELS=ordinary asks for them"),
        ({"HF_HOME": "/elsewhere"}, "wants another HF_HOME than its libraries were imported with"),
        ({"platform": "darwin"}, "on darwin a process can't be forked safely once its libraries are imported"),
        ({"stdout": subprocess.PIPE}, "its stdout is to be a pipe"),
    ],
)
def test_without_a_fork_it_is_an_ordinary_kernel_and_one_line_says_so(setting, said, monkeypatch, caplog):
    monkeypatch.setattr(provisioner, "_told", set())
    kwargs = {"stdout": setting.pop("stdout")} if "stdout" in setting else {}
    if "platform" in setting:
        monkeypatch.setattr(provisioner, "sys", SimpleNamespace(platform="darwin", executable=sys.executable))
    elif "HF_HOME" in setting:
        kwargs["env"] = os.environ | setting
    for name, value in setting.items():
        if name == "WORKBENCH_KERNELS":
            monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING, logger="workbench"):
        for _ in range(2 if "WORKBENCH_KERNELS" in setting else 1):
            manager = LocalKernelManager()
            try:
                start(manager, **kwargs)
                assert isinstance(manager.process, subprocess.Popen)
            finally:
                if manager.process.stdout:
                    manager.process.stdout.close()
                stop(manager)
    [line] = [record.getMessage() for record in caplog.records if record.name == "workbench"]
    assert line.startswith("workbench: ordinary kernels") and said in line


def test_papermill_finds_the_engine_and_ends_as_with_its_own(tmp_path):
    cell = nbformat.v4.new_code_cell
    parameters = cell("a = 1", metadata={"tags": ["parameters"]})
    good = nbformat.v4.new_notebook(cells=[parameters, cell("print(a + 1)")])
    bad = nbformat.v4.new_notebook(cells=[parameters, cell("1 / 0")])
    nbformat.write(good, tmp_path / "good.ipynb")
    nbformat.write(bad, tmp_path / "bad.ipynb")
    outputs = {}
    for engine in ("workbench", None):
        done = papermill.execute_notebook(
            str(tmp_path / "good.ipynb"),
            str(tmp_path / "out.ipynb"),
            parameters={"a": 41},
            engine_name=engine,
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
        assert nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs == done.cells[-1].outputs
        outputs[engine] = done.cells[-1].outputs
        with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
            papermill.execute_notebook(
                str(tmp_path / "bad.ipynb"), None, engine_name=engine, kernel_name="python3", progress_bar=False
            )
    assert outputs["workbench"] == outputs[None] == [{"output_type": "stream", "name": "stdout", "text": "42\n"}]


def test_sockets_have_a_short_absolute_path_and_go_with_the_kernel():
    manager = LocalKernelManager()
    start(manager)
    assert manager.transport == "ipc" and manager.ip.startswith("/") and len(manager.ip) < 90
    folder, deadline = manager.folder, time.monotonic() + 30
    while len([name for name in os.listdir(folder) if name.startswith("k-")]) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stop(manager)
    assert not os.path.exists(folder)
