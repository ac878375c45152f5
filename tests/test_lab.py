"""The lab and the app without a browser: the index's content, what is trusted, what an app keeps, what is refused."""

from __future__ import annotations

import json
import shutil
import socket
import sys

import nbformat
import pytest
from nbformat.sign import MemorySignatureStore, NotebookNotary

from workbench.errors import WorkbenchError
from workbench.lab.app import app_notebook, serve_app
from workbench.lab.contents import show_index, trust_bundled
from workbench.lab.index_page import index_html, latest_verdicts
from workbench.lab.server import LOOPBACK, checked_port, open_lab
from workbench.papers import all_papers, find_paper
from workbench.paths import datasets_folder, notebooks_folder

from .reproduce.written_runs import row, write_run

PAPERS = len(all_papers())
READY = [slug for slug, paper in all_papers().items() if paper.status == "ready"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home whose notebooks may be changed."""
    shutil.copytree(notebooks_folder(), tmp_path / "notebooks", ignore=shutil.ignore_patterns("*.png"))
    (tmp_path / "datasets").symlink_to(datasets_folder())
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_index_says_whether_verdicts_were_measured_or_are_expected(home):
    assert index_html().count("as expected; not run here yet") == len(READY)
    write_run(home / "runs", "20260101-000000", {"saber": [row("saber", "C1")]})
    write_run(home / "runs", "20260202-000000", {"saber": [row("saber", "C1", value=1.0)]})
    html = index_html()
    assert html.count("as expected; not run here yet") == len(READY) - 1
    assert "measured in run 20260202-000000" in html and 'title="C1: not reproduced"' in html
    assert "20260101-000000" not in html, "the newest run that measured it counts"


def test_a_control_or_an_unfinished_run_is_no_verdict(home):
    write_run(home / "runs", "20260101-000000", {"saber": [row("saber", "C1")]})
    newer = write_run(home / "runs", "20260202-000000", {"saber": [row("saber", "C1", value=1.0)]})
    record = json.loads((newer.folder / "run.json").read_text())
    for change in ({"state": "running"}, {"control": True}):
        text = json.dumps(record | {"notebooks": {"saber": record["notebooks"]["saber"] | change}})
        (newer.folder / "run.json").write_text(text)
        found, trouble = latest_verdicts(home / "runs")
        assert found["saber"][0] == "20260101-000000" and trouble == []


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(home):
    write_run(home / "runs", "20260101-000000", {"saber": [row("saber", "C1")]})
    cut = write_run(home / "runs", "20260202-000000", {"saber": [row("saber", "C1")]})
    text = (cut.folder / "run.json").read_text()
    (cut.folder / "run.json").write_text(text[: len(text) // 2])
    (home / "runs" / "20260303-000000").mkdir()
    (home / "notebooks/causal/image-cate.toml").write_text("title = ")
    html = index_html()
    assert "measured in run 20260101-000000" in html
    assert "20260202-000000" in html and "image-cate.toml: not valid TOML" in html
    assert html.count("<li class=") == PAPERS - 1


def test_hostile_words_in_a_paper_or_a_record_stay_words(home):
    path = home / "notebooks/tail_risk/saber.toml"
    path.write_text(path.read_text().replace('summary = "', "summary = \"<script>alert(1)</script>'"))
    write_run(home / "runs", "20260202-000000", {"saber": [row("saber", "<img src=x>")]})
    html = index_html()
    assert "<script>alert" not in html and "<img" not in html and "&lt;script&gt;alert" in html


def test_bundled_notebooks_are_trusted_unless_they_came_with_outputs(home):
    notary = NotebookNotary(store_factory=MemorySignatureStore, secret=b"of this test")
    path = home / "notebooks/tail_risk/saber.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs = [nbformat.v4.new_output("display_data", {"text/html": "<script>alert(1)</script>"})]
    nbformat.write(notebook, path)
    (home / "notebooks/tail_risk/no-paper.ipynb").write_text((home / "notebooks/index.ipynb").read_text())
    signed = trust_bundled(notary)
    assert set(signed) == {"index.ipynb", *(f"{slug}.ipynb" for slug in READY if slug != "saber")}
    assert not notary.check_signature(nbformat.read(path, as_version=4))
    assert notary.check_signature(nbformat.read(home / "notebooks/conformal/batch-pi.ipynb", as_version=4))


def test_the_index_notebook_shows_what_its_cell_would():
    notebook = json.loads((notebooks_folder() / "index.ipynb").read_text())
    show_index(notebook)
    [cell] = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cell["outputs"][0]["data"]["text/html"] == index_html()
    assert "index()" in "".join(cell["source"])


@pytest.mark.parametrize("slug", READY)
def test_an_app_keeps_the_title_the_code_up_to_the_first_look_and_the_first_look(slug):
    paper = find_paper(slug)
    stored = json.loads(paper.notebook.read_text())["cells"]
    kept = app_notebook(paper)["cells"]
    prose = ["".join(cell["source"]) for cell in kept if cell["cell_type"] == "markdown"]
    assert prose[0].startswith("# ") and "first look" in prose[1].lower()
    assert not any(word in text for text in prose for word in ("## The idea", "eproduction", "Exercises"))
    code = [cell["id"] for cell in stored if cell["cell_type"] == "code"]
    ours = [cell["id"] for cell in kept if cell["cell_type"] == "code"]
    assert ours == code[: len(ours)] and 3 <= len(ours) < len(code)
    assert not any("measure(" in "".join(cell["source"]) for cell in kept)


def test_a_notebook_without_a_first_look_is_refused(home):
    paper = find_paper("saber")
    paper.notebook.write_text(paper.notebook.read_text().replace("first look", "glance"))
    with pytest.raises(WorkbenchError, match=r"saber has no first look to serve; give it a section '## A first look'"):
        app_notebook(paper)


@pytest.mark.parametrize("slug, sentence", [("sabre", "did you mean saber"), ("fover", "planned and has no notebook")])
def test_an_app_of_no_paper_is_refused(slug, sentence):
    with pytest.raises(WorkbenchError, match=sentence):
        serve_app(slug, browser=False)


def test_a_port_that_is_taken_or_is_none_is_refused_with_the_cure():
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WorkbenchError, match=rf"--port is {port} but must .*in use.*leave it out for a free one"):
            checked_port(port)
    assert checked_port(port) == port and checked_port(None) > 1023
    for bad in (0, 70_000, -1):
        with pytest.raises(WorkbenchError, match=rf"--port is {bad} but must be a whole number .*leave it out"):
            checked_port(bad)


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "voila.app", None)
    with pytest.raises(WorkbenchError, match=r"Voila is not installed \(voila.app is missing\).*pip install 'research"):
        serve_app("saber", browser=False)
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", None)
    with pytest.raises(WorkbenchError, match=r"JupyterLab is not installed .*'pip install jupyterlab'"):
        open_lab(browser=False)


def test_a_home_without_notebooks_or_index_is_refused(home, monkeypatch):
    (home / "notebooks/index.ipynb").unlink()
    with pytest.raises(WorkbenchError, match=r"has no index\.ipynb; set WORKBENCH_HOME"):
        open_lab(browser=False)
    monkeypatch.setenv("WORKBENCH_HOME", str(home / "nowhere"))
    with pytest.raises(WorkbenchError, match=r"No folders notebooks/ and datasets/ in .*nowhere; set WORKBENCH_HOME"):
        open_lab(browser=False)
