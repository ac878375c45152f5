"""Widgets in a real JupyterLab and headless Chromium: how long a reader waits, against the limits that we set.

Rows have the limit as `peer` and limit / ours as `ratio`. Milliseconds are taken in the page, from the key press on a
slider's handle until another picture has been decoded. Needs a Chromium and the extra `dev`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, sync_playwright  # noqa: E402

from tests.browser.conftest import start, stop  # noqa: E402
from tests.browser.jupyter import Lab, Server  # noqa: E402
from tests.browser.test_tuner_browser import ANSWER, LONG, SETUP, TUNER, Tuner  # noqa: E402
from tests.reproduce.test_report_browser import chromium  # noqa: E402
from workbench.paths import datasets_folder, notebooks_folder  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "widgets.json"
EXPLORERS = {
    "saber": ("tail_risk", "ArrowRight"),
    "batch-pi": ("conformal", "ArrowRight"),
    "best-of-majority": ("decoding", "ArrowRight"),
    "lm-tail-risk": ("tail_risk", "ArrowRight"),
}
MOVE = """async ([cell, key]) => {
    const root = document.querySelector(`.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell[data-windowed-list-index='${cell}'] .workbench`);
    const image = root.querySelector('img.workbench-figure'), before = image.src, began = performance.now();
    const handle = root.querySelector('.noUi-handle');
    handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
    while (image.src === before && performance.now() - began < 20000) await new Promise(next => setTimeout(next, 1));
    await image.decode().catch(() => 0);
    return performance.now() - began;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=25)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = furnish(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        server = start(home, "lab")
        try:
            rows = [row for slug in EXPLORERS for row in redraws(server, browser, slug, asked.moves)]
            rows += while_a_run_goes(server, browser)
        finally:
            stop(server)
        server = start(home, "app", "saber")
        try:
            rows += app(server, browser)
        finally:
            stop(server)
        browser.close()
    for each in rows:
        print("{name}: {ours:.3g} {unit} ({low:.3g} to {high:.3g}), limit {peer:g}".format(**each))
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def furnish(home: Path) -> Path:
    shutil.copytree(
        notebooks_folder(), home / "notebooks", ignore=shutil.ignore_patterns("*.png", ".ipynb_checkpoints")
    )
    (home / "datasets").symlink_to(datasets_folder())
    (home / "config").mkdir()
    (home / "config" / "jupyter_lab_config.py").write_text("c.LabApp.expose_app_in_browser = True\n")
    return home


def redraws(server: Server, browser: Browser, slug: str, moves: int) -> list[dict[str, Any]]:
    """The first explorer of a paper's notebook: one step of its first slider after the other."""
    family, key = EXPLORERS[slug]
    lab = Lab(server, browser, f"bench-{slug}")
    notebook = lab.open(f"{family}/{slug}.ipynb")
    cells = json.loads((notebooks_folder() / family / f"{slug}.ipynb").read_text())["cells"]
    at = next(
        i
        for i, cell in enumerate(cells)
        if "explore" in "".join(cell["source"]) and "import" not in "".join(cell["source"])
    )
    for i, cell in enumerate(cells[: at + 1]):
        if cell["cell_type"] == "code":
            notebook.run(i)
    notebook.output(at).locator("img.workbench-figure").wait_for()
    lab.page.wait_for_timeout(2000)
    rows = []
    # A picture that is drawn again sharply, a quarter of a second after the last move, is not waited for here.
    for said, pause in (("after a rest", 1200), ("one move after the other", 20)):
        taken = []
        for _ in range(moves):
            taken.append(lab.page.evaluate(MOVE, [at, key]))
            lab.page.wait_for_timeout(pause)
        rows.append(row(f"slider to redraw, first explorer of {slug}, {said}", taken, 150, "ms"))
    lab.close()
    return rows


def while_a_run_goes(server: Server, browser: Browser) -> list[dict[str, Any]]:
    """A cell with 1 + 1, and Stop, while a BudgetTuner runs."""
    lab = Lab(server, browser, "bench-tuner")
    notebook = lab.write(SETUP, TUNER % LONG)
    notebook.run_all()
    tuner = Tuner(notebook, 1)
    answers, stops = [], []
    for _ in range(5):
        tuner.press("Run", "Running")
        lab.page.wait_for_timeout(1500)
        answers += [lab.page.evaluate(ANSWER) for _ in range(5)]
        stops.append(tuner.press("Stop", "Stopped"))
    lab.close()
    return [
        row("1 + 1 while a run goes", answers, 200, "ms"),
        row("Stop takes effect", stops, 500, "ms"),
    ]


def app(server: Server, browser: Browser) -> list[dict[str, Any]]:
    """From the request of an app's page to its first widget and figure, a kernel being warm."""
    taken = []
    for visit in range(6):
        context = browser.new_context()
        page = context.new_page()
        began = time.perf_counter()
        page.goto(f"{server.url}/?token={server.token}")
        page.locator(".noUi-handle").first.wait_for(timeout=60_000)
        page.wait_for_function("(document.querySelector('.widget-image')?.src ?? '').startsWith('blob:')")
        if visit:  # the first one waits for the imports
            taken.append(time.perf_counter() - began)
        page.goto("about:blank")
        context.close()
        time.sleep(6)
    return [row("first widget and figure of an app, a kernel being warm", taken, 2, "s")]


def row(name: str, taken: list[float], limit: float, unit: str) -> dict[str, Any]:
    ours = statistics.median(taken)
    return {
        "name": name,
        "ours": ours,
        "peer": limit,
        "unit": unit,
        "ratio": limit / ours,
        "low": min(taken),
        "high": max(taken),
        "target": 1,
        "holds": ours <= limit,
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} threads",
        "versions": {name: version(name) for name in ("jupyterlab", "ipywidgets", "anywidget", "voila", "matplotlib")}
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
