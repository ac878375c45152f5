"""The report from records alone: all that was measured is said, and what can't be used is named."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.reproduce.history import find_run, recorded_run, runs_beside
from workbench.reproduce.report import build_site, write_report

from .written_runs import row, site, write_run

SLUG = "saber"


def command(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_a_page_says_all_that_was_measured_and_how(tmp_path):
    write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1", 4.0)]})
    run = write_run(tmp_path, "20260202-000000", {SLUG: [row(SLUG, "C1"), row(SLUG, "C2", 2.0, note="It fell short.")]})
    pages = site(run)
    assert set(pages) == {"report.html", "saber.html"}
    page = pages["saber.html"]
    for said in (
        "5 (4 to 6)",
        "&gt;= 3",
        "7.2 against 1.6",
        "It fell short.",
        "not reproduced",
        "the plug-in in its place",
    ):
        assert said in page
    for name, version in run.made_with["versions"].items():
        assert f"{name} {version}" in page
    assert "20260101-000000" in page and "In 1 other run" in page, "earlier runs are told"
    assert "1 reproduced, 1 not reproduced" in pages["report.html"]
    assert 'href="saber.html#C2"' in pages["report.html"] and 'href="saber.html#C1"' not in pages["report.html"]


def test_seeds_and_control_stand_side_by_side(tmp_path):
    run = write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1", 2.9)]}, seeds=3, with_control=True)
    pages = site(recorded_run(run.folder))
    page = pages["saber.html"]
    assert "at 2 of 3 seeds" in page and "at 0 of 3 seeds" in page and "not reproduced as it must be" in page
    assert all(label in page for label in (">seed 0<", ">seed 2<", ">control 0<", ">control 2<"))
    assert "1 claims of 1 paper" in pages["report.html"], "seeds and control are no further claims"
    assert "1 of 1 claims fail every time" in pages["report.html"]


def test_a_control_of_another_run_is_shown_and_named(tmp_path):
    write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1")]}, control=True)
    run = write_run(tmp_path, "20260202-000000", {SLUG: [row(SLUG, "C1")]})
    assert "(run 20260101-000000)" in site(run)["saber.html"]


def test_a_second_build_writes_nothing_and_a_changed_record_converts_no_notebook_again(tmp_path, monkeypatch):
    run = write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1")]})
    build_site(run)
    page = run.folder / "saber.html"
    stamp = page.stat().st_mtime_ns
    build_site(run)
    assert page.stat().st_mtime_ns == stamp
    monkeypatch.setattr(
        "workbench.reproduce.notebook_html.notebook_html", lambda notebook: pytest.fail("converted again")
    )
    run.notebooks[SLUG].claims[0]["note"] = "Another note."
    build_site(run)
    assert "Another note." in page.read_text() and "What the figure shows." in page.read_text()


def test_published_pages_link_no_notebook_file(tmp_path):
    run = write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1")]})
    assert 'href="saber.ipynb"' in site(run)["saber.html"]
    public = site(run, tmp_path / "public")
    assert set(public) == {"index.html", "saber.html"} and ".ipynb" not in "".join(public.values())
    assert 'href="index.html"' in public["saber.html"]


def test_what_lies_beside_a_run_and_cannot_be_used_is_named_and_the_rest_goes_on(tmp_path):
    run = write_run(tmp_path, "20260105-000000", {SLUG: [row(SLUG, "C1")]})
    for name, text in {
        "20260101-000000": '{"slugs": ["saber"]}',
        "20260102-000000": '{"version": 2, "slu',
        "20260103-000000": (run.folder / "run.json").read_text().replace('"saber"', '"../../x"'),
        "20260104-000000": (run.folder / "run.json").read_text().replace('"value": 5.0', '"value": "five"'),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    found, trouble = runs_beside(run)
    assert found == [] and len(trouble) == 4
    assert all(f"2026010{day}-000000" in " ".join(trouble) for day in range(1, 5))
    done = command("report", "--runs", str(tmp_path))
    assert done.exit_code == 0 and done.stderr.count("left out:") == 4 and "Traceback" not in done.output
    assert (run.folder / "report.html").is_file() and not (tmp_path.parent / "x.html").exists()


def test_the_latest_usable_run_is_taken_and_the_newer_broken_one_named(tmp_path):
    write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1")]})
    (tmp_path / "20260909-000000").mkdir()
    (tmp_path / "20260909-000000" / "run.json").write_text("{")
    done = command("report", "--runs", str(tmp_path))
    assert done.exit_code == 0 and "20260909-000000" in done.stderr and "20260101-000000" in done.stdout


def test_a_run_under_way_is_told_as_such(tmp_path):
    run = write_run(tmp_path, "20260101-000000", {SLUG: [], "batch-pi": [row("batch-pi", "C1")]})
    run.notebooks[SLUG].state = "running"
    from workbench.reproduce.records import as_json

    (run.folder / "run.json").write_text(as_json(run))
    (run.folder / "saber.ipynb").unlink()
    done = command("report", "--runs", str(tmp_path))
    assert done.exit_code == 0 and "1 of 2 notebook runs have not ended" in done.stderr and "--resume" in done.stderr
    assert "1 of 2 notebook runs have ended" in (run.folder / "report.html").read_text()
    assert "There is no executed notebook" in (run.folder / "saber.html").read_text()


def test_a_torn_notebook_and_an_unknown_paper_cost_only_their_own_part(tmp_path):
    run = write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1")], "gone-paper": [row("gone-paper", "C1")]})
    (run.folder / "saber.ipynb").write_text('{"cells": [')
    pages = site(run)
    assert "can't be shown" in pages["saber.html"] and "5 (4 to 6)" in pages["saber.html"]
    assert "no longer has this paper" in pages["gone-paper.html"] and 'href="gone-paper.html"' in pages["report.html"]


def test_a_record_that_a_notebook_made_up_is_left_out_and_named(tmp_path):
    rows = [row(SLUG, "C1"), {"claim": "C2"}, row(SLUG, "C3", low=float("nan")), row(SLUG, "C4", verdict="splendid")]
    run = write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1")]})
    run.notebooks[SLUG].claims = rows
    index = write_report(run)
    assert index.count("a claim is left out") == 3 and "1 claims of 1 paper" in index


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["20260101-000001"], "There is no run '20260101-000001' in {runs}; did you mean 20260101-000000?"),
        (["saber"], "There is no run 'saber' in {runs}; the latest is 20260101-000000."),
        (["empty"], "holds no run.json"),
        (["a", "b", "c"], "takes one run, or two to compare, but got 3"),
        (["--to", "{runs}/file"], "--to is '{runs}/file' but must be a folder"),
        (["20260101-000000", "20250101-000000"], "was written by an older workbench"),
    ],
)
def test_bad_words_get_one_sentence(tmp_path, arguments, sentence):
    write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1")]})
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "20250101-000000").mkdir()
    (tmp_path / "20250101-000000" / "run.json").write_text('{"slugs": []}')
    done = command("report", *(word.format(runs=tmp_path) for word in arguments), "--runs", str(tmp_path))
    assert isinstance(done.exception, WorkbenchError) and sentence.format(runs=tmp_path) in str(done.exception)


def test_no_run_at_all_names_the_cure(tmp_path):
    with pytest.raises(WorkbenchError, match=r"There is no run in .*; start one with 'workbench reproduce'"):
        find_run(tmp_path, "any")
