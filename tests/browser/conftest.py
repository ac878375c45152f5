"""A real JupyterLab server (`workbench lab`) and a real browser (headless Chromium), for all tests of this folder.

    def test_a_slider_moves(lab):
        notebook = lab().write("from ipywidgets import IntSlider\\nIntSlider()")   # or lab().open("tail_risk/saber.ipynb")
        notebook.run_all()
        drag(notebook.output(0).locator(".widget-slider"), 0.8)
        assert notebook.text(0) == "80"
        notebook.lab.screenshot("moved")                                       # kept in .artefacts/

`lab()` opens a page; `lab(size="desk", dark=True)` one of 2,560 pixels that prefers dark. A test fails at its end if a
page had an error on its console, a failed request or a request to another host; `notebook.lab.faults.found.clear()`
where that is what the test is about. All that can be done with a notebook is in `jupyter.py`.

The server has its own folders of notebooks, settings and data: nothing of the user's is read or written. It starts
once, and all these tests run in one worker. Without a Chromium they are skipped, in CI they fail.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from workbench.paths import datasets_folder, notebooks_folder

from ..reproduce.test_report_browser import chromium
from .jupyter import Lab, Server

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.fixture(scope="package")
def browser():
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture(scope="package")
def bench(tmp_path_factory) -> Path:
    """A home of its own: notebooks that tests may change, the bundled data, and a user's folders, all empty."""
    home = tmp_path_factory.mktemp("bench")
    # Without the pictures, which nothing here looks at.
    shutil.copytree(
        notebooks_folder(), home / "notebooks", ignore=shutil.ignore_patterns("*.png", ".ipynb_checkpoints")
    )
    (home / "datasets").symlink_to(datasets_folder())
    config = home / "config"
    config.mkdir()
    (config / "jupyter_lab_config.py").write_text("c.LabApp.expose_app_in_browser = True\n")
    return home


def environment(bench: Path) -> dict[str, str]:
    """Jupyter's folders below `bench`, so that nothing of the user's is touched."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "WORKBENCH_HEADLESS"))}
    return kept | {
        "WORKBENCH_HOME": str(bench),
        "JUPYTER_CONFIG_DIR": str(bench / "config"),
        "JUPYTER_DATA_DIR": str(bench / "data"),
        "JUPYTER_RUNTIME_DIR": str(bench / "runtime"),
        "JUPYTER_NO_CONFIG": "",
        "IPYTHONDIR": str(bench / "ipython"),
        "OMP_NUM_THREADS": "1",
    }


def start(bench: Path, *words: str, seconds: float = 90) -> Server:
    """Start `workbench <words>` and read the address that it prints."""
    log = (bench / f"{words[0]}.log").open("a+")
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", *words, "--no-browser"],
        cwd=bench,
        env=environment(bench),
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    deadline = time.monotonic() + seconds
    assert process.stdout is not None
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        found = re.search(r"(http://127\.0\.0\.1:\d+)\S*?token=(\w+)", line)
        if found:
            return Server(found[1], found[2], bench / "notebooks", process)
        if not line:
            break
    process.kill()
    process.wait()
    log.seek(0)
    raise AssertionError(f"workbench {' '.join(words)} printed no address:\n{log.read()[-2000:]}")


def stop(server: Server) -> int:
    """Ctrl-C; the exit status."""
    server.process.send_signal(signal.SIGINT)
    try:
        return server.process.wait(20)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise


@pytest.fixture(scope="package")
def server(bench, browser):
    running = start(bench, "lab")
    yield running
    stop(running)


@pytest.fixture
def lab(server, browser, request):
    """A function that opens a JupyterLab page of its own."""
    opened: list[Lab] = []

    def open_lab(**look: Any) -> Lab:
        name = re.sub(r"\W+", "-", request.node.name.partition("@")[0]).strip("-")
        opened.append(Lab(server, browser, f"{name}-{len(opened)}" if opened else name, **look))
        return opened[-1]

    yield open_lab
    for page in opened:
        page.close()
    faults = [fault for page in opened for fault in page.faults.found]
    assert not faults, "\n".join(faults)
