"""The lab in a browser: the walk of someone new, the index, what is trusted, the launcher."""

from __future__ import annotations

import json
import sys
import time

import pytest

from workbench.lab.server import START
from workbench.papers import all_papers

from .conftest import start, stop
from .jupyter import SIZES, Lab, drag, serious

PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
FIGURE = f"document.querySelector('{PANEL} .jp-OutputArea .widget-image').src"
TRUSTED = "[...jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type === 'code').map(c => c.trusted)"
FRONT = "jupyterapp.shell.currentWidget?.context?.path"


@pytest.fixture
def index(lab):
    """A function that opens the index, and gives its lab and its root."""

    def opened(**look):
        page = lab(**look)
        page.goto("index.ipynb")
        root = page.page.locator(".workbench-index[data-awake]")
        root.wait_for()
        return page, root

    return opened


def test_the_walk_of_someone_new_from_the_command_to_a_moved_slider(bench, browser, tmp_path):
    """`make lab`, a click on a paper's button, a slider dragged: within 60 s and 4 clicks, on a server that is cold."""
    began, clicks = time.perf_counter(), 0
    server = start(bench, "lab")
    page = Lab(server, browser, "walk")
    try:
        page.page.goto(f"{server.url}{START}?token={server.token}")
        page.page.get_by_role("button", name="First look").first.click()
        clicks += 1
        panel = page.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        slider = panel.locator(".jp-OutputArea .widget-slider").first
        slider.locator(".noUi-handle").wait_for()
        page.page.wait_for_function(f"{FIGURE}.startsWith('blob:')")
        before = page.page.evaluate(FIGURE)
        box = slider.bounding_box()
        assert box and 0 <= box["y"] <= SIZES["laptop"]["height"], "the slider is in sight without scrolling"
        drag(slider, 0.9)
        clicks += 1
        page.page.wait_for_function(f"before => {FIGURE} !== before", arg=before)
        seconds = time.perf_counter() - began
        page.screenshot("moved")
        print(f"walk: {seconds:.1f} s, {clicks} clicks")
        assert seconds <= 60 and clicks <= 4
        assert page.faults.found == []
    finally:
        page.close()
        status = stop(server)
    assert status == 0, "Ctrl-C ends it without a question"


def test_the_index_shows_itself_and_narrows_as_one_types(index):
    page, root = index()
    shown, said = root.locator("li[data-status]:visible"), root.locator("output")
    papers = all_papers()
    assert shown.count() == len(papers) and said.inner_text() == f"{len(papers)} of {len(papers)} papers"
    root.locator("[name=search]").press_sequentially("tail risks angell")
    assert shown.count() == 1 and "Estimating Tail Risks" in shown.inner_text()
    root.locator("[name=search]").fill("no such paper")
    assert shown.count() == 0 and root.locator(".none").is_visible() and root.locator("h2:visible").count() == 0
    root.get_by_role("button", name="Clear").click()
    page.page.wait_for_function(
        f"document.querySelector('.workbench-index output').textContent.startsWith('{len(papers)} ')"
    )
    root.locator("[name=status]").select_option("ready")
    ready = [paper for paper in papers.values() if paper.status == "ready"]
    assert shown.count() == len(ready)
    root.locator("[name=family]").select_option("conformal")
    assert shown.count() == sum(paper.family == "conformal" for paper in ready)
    root.locator("[name=verdict]").select_option("needs gpu")
    expected = [p for p in ready if p.family == "conformal" and any(claim.mode == "gpu" for claim in p.claims)]
    assert shown.count() == len(expected)


def test_a_paper_opens_by_keyboard_inside_the_same_page(index):
    page, root = index()
    page.page.evaluate("window.stays = true")
    root.locator("[name=search]").fill("saber")
    root.locator("[name=search]").focus()
    for _ in range(12):
        page.page.keyboard.press("Tab")
        if page.page.evaluate("document.activeElement.matches('a.title')"):
            break
    outline = page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus is marked"
    for key in "ddab":
        page.page.keyboard.press(key)
    cells = page.page.evaluate("jupyterapp.shell.currentWidget.content.model.cells.length")
    assert cells == 2, "the notebook's keys, D D to delete a cell, are not for what has the focus here"
    page.page.keyboard.press("Enter")
    page.page.wait_for_function(f"{FRONT} === 'tail_risk/saber.ipynb'")
    assert page.page.evaluate("window.stays")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_index_is_accessible_and_fits(index, size, dark):
    page, root = index(size=size)
    page.theme(dark=dark)
    page.screenshot("index")
    assert root.evaluate("root => root.scrollWidth <= root.clientWidth")
    assert serious(page.page, ".workbench-index") == []


def test_the_index_is_stored_as_it_was(index, server):
    before = (server.root / "index.ipynb").read_bytes()
    page, _ = index()
    page.page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.kernelDisplayStatus === 'idle'")
    page.run_command("notebook:run-all-cells")
    page.run_command("docmanager:save")
    assert (server.root / "index.ipynb").read_bytes() == before


def test_bundled_notebooks_open_trusted_and_those_of_others_do_not(lab, server):
    page = lab()
    page.open("tail_risk/saber.ipynb")
    assert set(page.page.evaluate(TRUSTED)) == {True}
    script = "<b class='foreign'>here</b><script>document.title = 'owned'</script>"
    output = {"output_type": "display_data", "data": {"text/html": script}, "metadata": {}}
    notebook = json.loads((server.root / "tail_risk/saber.ipynb").read_text())
    next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")["outputs"] = [output]
    foreign = server.root / "foreign.ipynb"
    foreign.write_text(json.dumps(notebook))
    try:
        page.open("foreign.ipynb")
        page.page.locator(f"{PANEL} .foreign").wait_for()
        assert page.page.evaluate(TRUSTED)[0] is False and page.page.title() != "owned"
    finally:
        foreign.unlink()


def test_the_launcher_has_a_card_for_the_papers_and_one_for_the_kernel(lab, bench):
    page = lab()
    page.goto()
    page.run_command("launcher:create")
    page.screenshot("launcher")
    assert page.page.locator(".jp-LauncherCard[title*='workbench']").count() >= 1
    page.page.locator(".jp-LauncherCard", has_text="Workbench papers").click()
    page.page.locator(".workbench-index[data-awake]").wait_for()
    assert page.page.evaluate(FRONT) == "index.ipynb"
    assert not (bench / "data/kernels").exists(), "the kernel's card was not written into the user's folder"


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
def test_a_notebook_that_names_python3_gets_a_kernel_that_is_pre_imported(lab):
    assert lab().write("import sys\n'torch' in sys.modules").run(0) == "True"


def test_cells_are_interrupted_and_kernels_restarted_by_keyboard(lab):
    notebook = lab().write("import time; print('begun'); time.sleep(60)", "1 + 1")
    notebook.start(0)
    notebook.page.locator(f"{PANEL} .jp-OutputArea-output", has_text="begun").wait_for()
    notebook.interrupt()
    notebook.page.locator(f"{PANEL} .jp-OutputArea-output", has_text="KeyboardInterrupt").wait_for()
    notebook.wait_for_kernel()
    notebook.restart()
    assert notebook.reopen().run(1) == "2"
