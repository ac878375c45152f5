"""`workbench tidy`: what it mends, what it only tells, and that the stored notebooks are tidy."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from workbench.errors import WorkbenchError
from workbench.reproduce import tidy

ROOT = Path(__file__).resolve().parents[2]
STORED = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
TITLES = (
    "## The idea",
    "## A first look",
    "## Reproduction",
    "## What could not be reproduced here",
    "## On your own data",
    "## Exercises",
    "## Verdicts",
)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_notebooks_are_tidy(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    notebook = tidy.read_notebook(path)
    assert tidy.untidy(notebook) == [] and tidy.problems(path) == []
    assert tidy.as_text(notebook) == path.read_text(encoding="utf-8"), "not as Jupyter stores it: run workbench tidy"


@pytest.fixture
def paper(home) -> Path:
    """A tidy notebook of a small paper."""
    path = home.add("alpha", ["paper.measure('C1', 5, interval=(4, 6))"]).with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# Alpha"))
    notebook.cells += [nbformat.v4.new_markdown_cell(title) for title in TITLES]
    nbformat.write(notebook, path)
    assert tidy.problems(path) == [] and tidy.untidy(tidy.read_notebook(path)) == []
    return path


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(home.folder))


def change(path: Path, **sources: str) -> None:
    """Set the source of cells by their place ("cell3"), or add one at the end ("more")."""
    notebook = nbformat.read(path, as_version=4)
    for place, source in sources.items():
        if place == "more":
            notebook.cells.append(nbformat.v4.new_code_cell(source))
        else:
            notebook.cells[int(place.removeprefix("cell"))].source = source
    nbformat.write(notebook, path)


def test_the_fixer_strips_what_decides_nothing_and_keeps_the_rest(paper):
    clean = paper.read_text(encoding="utf-8")
    notebook = nbformat.read(paper, as_version=4)
    notebook.metadata["widgets"] = {"state": {}}
    notebook.metadata.kernelspec["display_name"] = "my environment"
    notebook.cells[2].metadata["scrolled"] = True
    notebook.cells[2].execution_count = 7
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="secret")]
    nbformat.write(notebook, paper)
    assert tidy.tidy(paper) == ["it holds outputs or execution counts", "it holds metadata that decide nothing"]
    assert paper.read_text(encoding="utf-8") == clean, "prose, code, ids and tags stay"
    before = paper.stat().st_mtime_ns
    assert tidy.tidy(paper) == [] and paper.stat().st_mtime_ns == before


def test_a_missing_kernel_is_named_and_mended(paper):
    notebook = json.loads(paper.read_text())
    paper.write_text(json.dumps(notebook | {"metadata": {}}))
    assert "it names no kernel" in tidy.tidy(paper)
    assert json.loads(paper.read_text())["metadata"]["kernelspec"]["name"] == "python3"


LONG = "def long():\n" + "    1\n" * 6 + "\n\ndef short():\n" + "    1\n" * 5


@pytest.mark.parametrize(
    "sources, said",
    [
        ({"cell0": "Alpha"}, "does not begin with its title; make the first cell markdown"),
        ({"cell4": "## Nothing"}, "no section for the idea; add a heading '## The idea'"),
        (
            {"cell4": "## A first look", "cell5": "## The idea"},
            "for a first look stands before that for the idea; swap",
        ),
        ({"more": LONG}, "the function long has 6 lines; move it into the package"),
        ({"more": "open('/Users/ada/data.csv')"}, "the path /Users/ada/data.csv of one machine; use a relative path"),
        ({"more": r"open('C:\Users\ada')"}, "of one machine"),
        ({"more": "paper.measure('C7', 1)"}, "claim C7 is measured but is not in alpha.toml; write it there"),
        ({"cell3": "1"}, "claim C1 is in the TOML but is not measured; measure it, or take it out"),
        ({"cell4": "## The idea\n[there](no-such.md)"}, "the link no-such.md leads nowhere; mend it"),
        ({"cell4": "## The idea\n[out](../../../etc/passwd)"}, "leads out of the repository"),
        ({"cell1": "scale = 'quick'\nseed = 0"}, "does not set control; add the line control = False"),
    ],
)
def test_what_only_a_person_can_mend_is_told(paper, sources, said):
    change(paper, **sources)
    [sentence] = tidy.problems(paper)
    assert said in sentence


def test_links_inside_and_to_the_web_are_fine(paper):
    change(paper, cell4="## The idea\n[toml](alpha.toml), [web](https://arxiv.org), [here](#idea), [up](../)")
    assert tidy.problems(paper) == []


def test_what_is_no_notebook_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match=r"gone.ipynb is no notebook and no folder; pass files that end in .ipynb"):
        tidy.find_notebooks([tmp_path / "gone.ipynb"])
    (tmp_path / "torn.ipynb").write_text("{")
    with pytest.raises(WorkbenchError, match=r"torn.ipynb is not a valid notebook.*open it in JupyterLab and save it"):
        tidy.read_notebook(tmp_path / "torn.ipynb")


def test_the_command_checks_without_writing_and_goes_on_after_a_bad_file(home, paper):
    notebook = nbformat.read(paper, as_version=4)
    notebook.cells[3].execution_count = 3
    nbformat.write(notebook, paper)
    torn = paper.with_name("torn.ipynb")
    torn.write_text("{")
    before = paper.read_text()
    checked = home.run("tidy", "--check")
    assert checked.returncode == 1 and paper.read_text() == before
    assert "alpha.ipynb: it holds outputs or execution counts (run: workbench tidy)" in checked.stdout
    assert "torn.ipynb is not a valid notebook" in checked.stdout and "Traceback" not in checked.stderr
    mended = home.run("tidy", str(paper))
    assert mended.returncode == 0 and ": mended" in mended.stdout and paper.read_text() != before
    assert home.run("tidy", "--check", str(paper)).returncode == 0


def test_a_notebook_in_another_layout_is_stored_as_jupyter_does(paper):
    text = paper.read_text()
    paper.write_text(json.dumps(json.loads(text), indent=4))
    assert tidy.untidy_file(paper) == tidy.tidy(paper) == ["it is not stored as Jupyter stores it"]
    assert paper.read_text() == text and tidy.tidy(paper) == []
