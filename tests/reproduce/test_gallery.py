"""The gallery is what the TOMLs say, its pictures are small, its links resolve."""

from __future__ import annotations

import base64
import io
import random
import re

import nbformat
import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.papers import all_papers
from workbench.paths import notebooks_folder
from workbench.reproduce.gallery import THUMBNAIL_BYTES, gallery_text, small_png, thumbnail, write_thumbnail

from .conftest import CLAIM
from .written_runs import row, write_run

README = notebooks_folder() / "README.md"


def test_the_gallery_is_not_stale():
    assert README.read_text(encoding="utf-8") == gallery_text(), "write it anew with 'workbench gallery'"


def test_every_ready_paper_has_a_small_picture():
    for paper in all_papers().values():
        if paper.status == "ready":
            cure = f"make it with 'workbench reproduce {paper.slug}' and 'workbench gallery --pictures latest'"
            assert thumbnail(paper).is_file(), cure
            assert thumbnail(paper).stat().st_size <= THUMBNAIL_BYTES, cure


def test_every_link_and_picture_of_the_gallery_resolves():
    text = README.read_text(encoding="utf-8")
    places = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    inside = [place for place in places if not place.startswith("https://")]
    assert len(inside) >= 4 * len([paper for paper in all_papers().values() if paper.status == "ready"])
    for place in inside:
        assert (notebooks_folder() / place).is_file(), place
    for slug in all_papers():
        assert slug in text


def test_a_changed_paper_makes_it_stale_and_the_command_mends_it(home, monkeypatch):
    toml = home.add("alpha", [])
    home.add("gamma", [], status="planned", claims="")
    monkeypatch.setenv("WORKBENCH_HOME", str(home.folder))
    all_papers.__globals__["_registry"].cache_clear()
    run = lambda *words: CliRunner().invoke(app, ["gallery", *words])  # noqa: E731
    stale = run("--check")
    assert stale.exit_code == 1 and "stale; write it with 'workbench gallery'" in stale.stderr
    assert run().exit_code == 0 and run("--check").exit_code == 0
    text = (home.folder / "notebooks" / "README.md").read_text()
    assert "1 of 2 papers are ready" in text and "1 reproduced" in text and "Planned: gamma." in text
    gpu = CLAIM.format(id="C2", mode="gpu", passes=">= 3", more='expected = "consistent"')
    toml.write_text(toml.read_text() + gpu)
    all_papers.__globals__["_registry"].cache_clear()
    assert run("--check").exit_code == 1
    assert run().exit_code == 0 and "1 reproduced, 1 needs gpu" in (home.folder / "notebooks" / "README.md").read_text()


def test_the_picture_is_the_tagged_one_else_the_first_of_the_reproduction(tmp_path):
    from PIL import Image

    def cell(shade: int, tag: str = ""):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 20), (shade, shade, shade)).save(buffer, "PNG")
        made = nbformat.v4.new_code_cell("fig", metadata={"tags": [tag]} if tag else {})
        png = base64.b64encode(buffer.getvalue()).decode()
        made.outputs = [nbformat.v4.new_output("display_data", data={"image/png": png})]
        return made

    heading = nbformat.v4.new_markdown_cell("## The reproduction")
    for cells, shade in [
        ([cell(10), heading, cell(20), cell(30)], 20),
        ([cell(10), heading, cell(20), cell(30, "thumbnail")], 30),
        ([cell(10), cell(20)], 10),
        ([heading], None),
    ]:
        paper = next(iter(all_papers().values()))
        executed = tmp_path / "executed.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), executed)
        target = tmp_path / "here.toml"
        paper = type(paper)(**{**vars(paper), "path": target})
        assert write_thumbnail(paper, executed) == (shade is not None)
        if shade is not None:
            assert Image.open(thumbnail(paper)).convert("RGB").getpixel((5, 5)) == (shade,) * 3


def test_the_noisiest_picture_still_becomes_a_small_one():
    from PIL import Image

    buffer = io.BytesIO()
    Image.frombytes("RGB", (900, 300), random.Random(0).randbytes(900 * 300 * 3)).save(buffer, "PNG")
    small = small_png(buffer.getvalue())
    assert len(small) <= THUMBNAIL_BYTES and Image.open(io.BytesIO(small)).width <= 480


def test_a_torn_executed_notebook_is_named(tmp_path):
    run = write_run(tmp_path, "20260101-000000", {"saber": [row("saber", "C1")]})
    (run.folder / "saber.ipynb").write_text("{")
    with pytest.raises(WorkbenchError, match=r"saber\.ipynb can't be read .* run saber again"):
        write_thumbnail(all_papers()["saber"], run.folder / "saber.ipynb")
