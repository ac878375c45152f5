"""The report in headless Chromium: phone and desktop, light and dark, keyboard, and what axe-core finds.

Chromium is the system's; WORKBENCH_CHROMIUM names another. Without one the tests are skipped, in CI they fail.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from workbench.papers import all_papers
from workbench.reproduce.compare import write_comparison
from workbench.reproduce.report import build_site

from .written_runs import attacks, executed, row, thirty_papers, write_run

SIZES = {"phone": {"width": 360, "height": 740}, "desktop": {"width": 1280, "height": 800}}
PAPER = "aifs-crps"
BUILD_SECONDS: list[float] = []


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = os.environ.get("WORKBENCH_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        sentence = (
            "There is no Chromium; install Debian's package chromium, or set WORKBENCH_CHROMIUM to a browser's path."
        )
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Thirty papers at two seeds with their control, one of them hostile, with an earlier run beside it."""
    runs = tmp_path_factory.mktemp("runs")
    papers = thirty_papers()
    papers[PAPER] += [row(PAPER, "C11", None), row(PAPER, "C12", None, verdict="needs gpu", mode="gpu")]
    earlier = write_run(runs, "20260101-000000", {PAPER: papers[PAPER][:4]})
    run = write_run(runs, "20260202-000000", papers, seeds=2, with_control=True, notebook=executed(attacks()))
    began = time.process_time()
    build_site(run)
    BUILD_SECONDS.append(time.process_time() - began)
    write_comparison(earlier, run)
    return run.folder


@pytest.fixture
def open_page(browser, site):
    """A function that opens a page of the site and fails at whatever left it or broke in it."""
    contexts, faults = [], []

    def opened(name: str, size: str = "desktop", scheme: str = "light"):
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "request", lambda request: faults.append(request.url) if request.url[:5] not in ("file:", "data:") else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto((site / name).as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


PAGES = ("report.html", f"{PAPER}.html")
LOOKS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]


@pytest.mark.parametrize("size, scheme", LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_accessible_and_fit_their_width(open_page, name, size, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(name, size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    found = Axe().run(page).response["violations"]
    serious = [
        (fault["id"], [node["html"][:200] for node in fault["nodes"][:3]])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_the_comparison_is_accessible_and_fits_a_phone(open_page):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page("compare-20260101-000000.html", "phone", "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not [
        fault["id"] for fault in Axe().run(page).response["violations"] if fault["impact"] in ("serious", "critical")
    ]


def test_axe_finds_what_is_put_there(open_page):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page("report.html")
    page.evaluate("document.querySelector('#search').closest('label').replaceWith(document.querySelector('#search'))")
    page.evaluate("document.querySelector('#search').removeAttribute('placeholder')")
    assert "label" in [fault["id"] for fault in Axe().run(page).response["violations"]]


def test_a_script_in_a_claim_or_an_output_stays_text(open_page):
    page = open_page(f"{PAPER}.html")
    page.wait_for_timeout(200)
    assert (
        "owned" not in page.title() and page.locator(".notebook script, .notebook iframe, .notebook input").count() == 0
    )
    assert "<script>document.title='owned'</script>" in page.locator(".output_stdout").last.inner_text()
    # The second fence: what a mistake of ours let through would not run either.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:x onerror=\"document.title=1\">')")
    page.wait_for_timeout(200)
    assert page.title() != "1"


def test_filters_and_search_narrow_the_map_and_say_so(open_page):
    page = open_page("report.html")
    shown = page.locator(".tile:visible")
    everything = shown.count()
    all_of_them = f"{everything} of {everything} shown"
    assert everything == len(all_papers()) and page.locator("#shown").inner_text() == all_of_them
    page.fill("#search", "continuous ranked lang")
    assert shown.count() == 1 and PAPER in shown.inner_text()
    page.fill("#search", "no such paper")
    assert shown.count() == 0 and page.locator("#none").is_visible() and page.locator(".family:visible").count() == 0
    page.click("text=Clear")
    page.wait_for_function("said => document.getElementById('shown').textContent === said", arg=all_of_them)
    page.select_option("#state", "here")
    assert shown.count() == 30
    page.select_option("#verdict", "needs gpu")
    assert shown.count() == 1
    page.select_option("#family", "audits")
    assert shown.count() == 0


def test_the_keyboard_reaches_the_content_and_a_paper(open_page):
    page = open_page("report.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.tile') !== null"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus is marked"
    page.keyboard.press("Enter")
    page.wait_for_url("**.html")
    assert not page.url.endswith("report.html") and page.locator("#claims").is_visible()


def test_the_theme_can_be_switched_and_is_kept(open_page):
    page = open_page("report.html", scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.click("#theme")
    assert page.locator("#theme").inner_text() == "Theme: light" and page.evaluate(colour) == light
    page.click("#theme")
    dark = page.evaluate(colour)
    assert dark != light
    page.reload()
    assert page.evaluate(colour) == dark
    assert open_page("report.html", scheme="dark").evaluate(colour) == dark


def test_wide_code_scrolls_in_its_own_box_and_can_be_hidden(open_page):
    page = open_page(f"{PAPER}.html", "phone")
    box = page.locator(".notebook .input pre").first
    assert box.evaluate("box => box.scrollWidth > box.clientWidth") and box.get_attribute("tabindex") == "0"
    page.click("#code")
    assert not box.is_visible() and page.locator("#code").get_attribute("aria-pressed") == "false"


def test_a_printed_page_is_light_and_without_controls(open_page):
    page = open_page(f"{PAPER}.html", scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible() and page.locator("#claims").is_visible()


def test_formulas_are_drawn_by_the_browser(open_page):
    page = open_page(f"{PAPER}.html")
    fraction = page.locator("math mfrac").first.bounding_box()
    name = page.locator("math mi").first.bounding_box()
    assert fraction["height"] > 1.5 * name["height"], "numerator over denominator"


def test_thirty_papers_are_built_quickly_and_the_index_is_small(site):
    assert len(list(site.glob("*.html"))) == 32
    # Processor time: the build is one thread, and what else the machine does should not decide.
    assert BUILD_SECONDS[0] < 5
    assert (site / "report.html").stat().st_size <= 300_000
