"""A JupyterLab in a browser, as tests drive it.

Does: open a notebook, run its cells, drag sliders, interrupt, restart, reopen; and keep every fault that the page
showed (errors on its console, requests that failed or went to another host). Does not: start servers; see `conftest.py`.

JupyterLab's own commands run cells, as its menus would; sliders, buttons and dialogs are moved with mouse and keyboard.
"""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from playwright.sync_api import Browser, Locator, Page

ARTEFACTS = Path(__file__).resolve().parents[2] / ".artefacts"
SIZES = {"laptop": {"width": 1280, "height": 800}, "desk": {"width": 2560, "height": 1440}}
SECONDS = 60  # for what a reader would wait for; a busy machine needs it now and then
# What Chromium says of an answer that `_answer` looks at itself, and JupyterLab's debugger of a kernel that restarts.
_THEIRS = ("Failed to load resource: the server responded with a status of", "Could not restore the debugger state")


@dataclass
class Server:
    """A server that runs: its address, its token, its folder of notebooks."""

    url: str
    token: str
    root: Path
    process: Any = None

    def request(self, path: str, method: str = "GET") -> Any:
        asked = urllib.request.Request(
            f"{self.url}{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            return json.loads(answer.read() or b"null")


@dataclass
class Faults:
    """What went wrong on a page: errors on its console and in its scripts, requests that failed or left the machine."""

    url: str
    found: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", lambda said: self._console(said.type, said.text))
        page.on("pageerror", lambda error: self.found.append(f"script: {error}"))
        page.on("request", lambda request: self._request(request.url))
        page.on("response", lambda answer: self._answer(answer.status, answer.url))

    def _console(self, kind: str, text: str) -> None:
        if kind == "error" and not text.startswith(_THEIRS):
            self.found.append(f"console: {text}")

    def _request(self, url: str) -> None:
        if urlsplit(url).scheme in ("http", "https", "ws", "wss") and urlsplit(url).netloc != urlsplit(self.url).netloc:
            self.found.append(f"another host: {url}")

    def _answer(self, status: int, url: str) -> None:
        # JupyterLab asks for a workspace, and for translations, before there are any.
        if status >= 400 and "/api/workspaces/" not in url and "/api/translations/" not in url:
            self.found.append(f"status {status}: {url}")


class Lab:
    """A JupyterLab page of its own context, with no notebook yet."""

    def __init__(self, server: Server, browser: Browser, name: str, size: str = "laptop", dark: bool = False) -> None:
        self.server, self.name, self.faults = server, name, Faults(server.url)
        self.context = browser.new_context(viewport=SIZES[size], color_scheme="dark" if dark else "light")
        self.context.set_default_timeout(SECONDS * 1000)
        self.page = self.context.new_page()
        self.faults.watch(self.page)
        self._written: list[Path] = []
        self._dark = False

    def goto(self, path: str = "") -> Page:
        """The lab with this notebook open, or with the launcher."""
        tree = f"/tree/{quote(path)}" if path else ""
        workspace = f"/lab/workspaces/{quote(self.name)}{tree}?reset&token={self.server.token}"
        self.page.goto(self.server.url + workspace)
        self.page.wait_for_selector("#jp-main-dock-panel")
        self.page.wait_for_function("window.jupyterapp?.restored")
        self.page.evaluate("window.jupyterapp.restored.then(() => null)")
        return self.page

    def open(self, path: str) -> Notebook:
        """The notebook at this path below the server's folder, e.g. "tail_risk/saber.ipynb"."""
        self.goto(path)
        return Notebook(self, path)

    def write(self, *sources: str) -> Notebook:
        """A new notebook with these code cells, open."""
        name = f"{self.name}-{len(self._written)}.ipynb"
        cells = [
            {
                "cell_type": "code",
                "id": f"c{i}",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": source,
            }
            for i, source in enumerate(sources)
        ]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        self._written.append(self.server.root / name)
        self._written[-1].write_text(json.dumps(notebook))
        return self.open(name)

    def run_command(self, command: str, **arguments: Any) -> None:
        """One of JupyterLab's commands, to its end."""
        self.page.evaluate(
            "([name, args]) => jupyterapp.commands.execute(name, args).then(() => null)", [command, arguments]
        )

    def theme(self, dark: bool) -> None:
        self.run_command("apputils:change-theme", theme="JupyterLab Dark" if dark else "JupyterLab Light")
        self._dark = dark
        self.page.wait_for_selector(f"body[data-jp-theme-light={'false' if dark else 'true'}]", state="attached")

    def screenshot(self, name: str) -> Path:
        return keep_screenshot(self.page, f"{self.name}-{name}")

    def close(self) -> None:
        """End the page and its kernels; the theme, which the server keeps, is light again."""
        if self._dark:
            self.theme(dark=False)
            self.page.wait_for_timeout(500)  # settings are saved a moment later
        self.context.close()
        for session in self.server.request("/api/sessions"):
            self.server.request(f"/api/sessions/{session['id']}", "DELETE")
        for path in self._written:
            path.unlink(missing_ok=True)


class Notebook:
    """A notebook that is open and in front."""

    def __init__(self, lab: Lab, path: str) -> None:
        self.lab, self.page, self.path = lab, lab.page, path
        self.panel = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.panel.locator(".jp-Cell").first.wait_for()
        self.wait_for_kernel()

    def wait_for_kernel(self, seconds: float = SECONDS) -> None:
        """Until the kernel is there and has nothing to do."""
        self.page.wait_for_function(
            "['idle'].includes(jupyterapp.shell.currentWidget?.sessionContext?.kernelDisplayStatus)",
            timeout=seconds * 1000,
        )

    def run_all(self) -> None:
        """Run all cells and wait for the last; a cell that raises ends the wait too."""
        self.lab.run_command("notebook:run-all-cells")
        self.wait_for_kernel()

    def start_all(self) -> None:
        """Run all cells, and don't wait."""
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")

    def run(self, cell: int) -> str:
        """Run one cell, wait for it, and give what it showed as text."""
        self.start(cell)
        self.page.wait_for_function(
            "i => { const m = jupyterapp.shell.currentWidget.content.widgets[i].model; return m.executionState === 'idle' && m.executionCount }",
            arg=cell,
        )
        return self.text(cell)

    def start(self, cell: int) -> None:
        """Run one cell, and don't wait."""
        self.page.evaluate(
            """i => { const panel = jupyterapp.shell.currentWidget;
            panel.content.activeCellIndex = i; panel.content.deselectAll();
            jupyterapp.commands.execute('notebook:run-cell') }""",
            cell,
        )

    def cell(self, number: int) -> Locator:
        """The cell with this number, scrolled into view: JupyterLab does not draw those far away."""
        self.page.evaluate(
            "i => jupyterapp.shell.currentWidget.content.scrollToItem(i, 'smart').then(() => null)", number
        )
        return self.panel.locator(f".jp-Cell[data-windowed-list-index='{number}']")

    def output(self, number: int) -> Locator:
        """The output area of a cell: everything that it has shown."""
        return self.cell(number).locator(".jp-Cell-outputWrapper .jp-OutputArea").first

    def text(self, number: int) -> str:
        """What a cell has shown, as text, without the prompts."""
        return "\n".join(self.cell(number).locator(".jp-OutputArea-output").all_inner_texts()).strip()

    def interrupt(self) -> None:
        """As a reader does: I, I in command mode."""
        self._command_mode()
        self.page.keyboard.press("i")
        self.page.keyboard.press("i")

    def restart(self) -> None:
        """As a reader does: 0, 0 in command mode, and yes."""
        self._command_mode()
        self.page.keyboard.press("0")
        self.page.keyboard.press("0")
        self.page.locator(".jp-Dialog button.jp-mod-accept").click()
        self.wait_for_kernel()

    def reopen(self) -> Notebook:
        """Close the notebook's tab, saved, and open it again; its kernel stays."""
        self.lab.run_command("docmanager:save")
        self.lab.run_command("application:close")
        self.panel.wait_for(state="detached")
        self.page.evaluate(
            "path => jupyterapp.commands.execute('docmanager:open', {path, factory: 'Notebook'}).then(() => null)",
            self.path,
        )
        return Notebook(self.lab, self.path)

    def _command_mode(self) -> None:
        self.page.evaluate(
            "() => { jupyterapp.shell.currentWidget.content.mode = 'command'; jupyterapp.shell.currentWidget.content.node.focus() }"
        )
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:enter-command-mode').then(() => null)")


def drag(slider: Locator, fraction: float) -> None:
    """Drag an ipywidgets slider's handle with the mouse to this fraction of its range."""
    page = slider.page
    slider.scroll_into_view_if_needed()
    handle, track = slider.locator(".noUi-handle").first, slider.locator(".noUi-base").first
    at, along = handle.bounding_box(), track.bounding_box()
    assert at and along
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.down()
    page.mouse.move(along["x"] + fraction * along["width"], along["y"] + along["height"] / 2, steps=8)
    page.mouse.up()


def seconds_until(page: Page, expression: str, argument: Any = None, timeout: float = SECONDS) -> float:
    """How long until a JavaScript expression holds on the page, looked at in every frame."""
    began = time.perf_counter()
    page.wait_for_function(expression, arg=argument, timeout=timeout * 1000)
    return time.perf_counter() - began


def keep_screenshot(page: Page, name: str) -> Path:
    """The page as it is now, as a picture among the artefacts."""
    path = ARTEFACTS / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    return path


def serious(page: Page, within: str = "html") -> list[Any]:
    """What axe-core finds on the page, or in the part that a selector names, that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        (fault["id"], [node["html"][:200] for node in fault["nodes"][:3]])
        for fault in Axe().run(page, context=within).response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
