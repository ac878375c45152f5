"""What is taken from earlier runs, what is run again, and what it says of it.

All but the last tests run the notebooks' code in this process: it is the cache that is tested, not kernels.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from workbench import reads
from workbench.reproduce import cache, engine

from .bench import Bench

GOOD = "paper.measure('C1', 1 if control else 5, interval=(0, 2) if control else (4, 6), note='Said.')"


@pytest.fixture
def bench(home, monkeypatch):
    home.add("alpha", [GOOD])
    home.add("beta", [GOOD])
    return Bench(home, monkeypatch)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_unchanged_is_taken_and_fresh_runs_all(bench):
    first = bench.go()
    assert bench.ran == ["alpha", "beta"] and first.notebooks["alpha"].why == "never run"
    second = bench.go()
    assert bench.ran == [] and second.claims == first.claims
    assert second.notebooks["alpha"].cached == first.id and second.notebooks["alpha"].state == "done"
    executed = (second.folder / "alpha.ipynb").read_bytes()
    assert executed == (first.folder / "alpha.ipynb").read_bytes() and b"Said." in executed
    assert bench.go().notebooks["beta"].cached == first.id, "the run that measured it, not the one that took it"
    third = bench.go(fresh=True)
    assert bench.ran == ["alpha", "beta"] and third.notebooks["alpha"].why == "--fresh"


def test_prose_tags_ids_titles_and_notes_are_not_part_of_the_key_but_are_shown_as_they_are_now(bench):
    bench.go()
    path = bench.home.folder / "notebooks/conformal/alpha.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# New prose"))
    notebook.cells[-1].metadata["tags"] = ["thumbnail"]
    notebook.cells[-1]["id"] = "another"
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="an old output")]
    nbformat.write(notebook, path)
    toml = path.with_suffix(".toml")
    edit(toml, "alpha in small", "Another title")
    edit(toml, 'statement = "A statement"', 'statement = "Another"\nnote = "From the TOML."')
    run = bench.go()
    assert bench.ran == []
    [row] = run.notebooks["alpha"].claims
    assert (row["statement"], row["note"]) == ("Another", "From the TOML. Said.")
    executed = nbformat.read(run.folder / "alpha.ipynb", as_version=4)
    nbformat.validate(executed)
    assert executed.cells[0].source == "# New prose" and executed.cells[-1].metadata["tags"] == ["thumbnail"]
    assert [len(cell.outputs) for cell in executed.cells if cell.cell_type == "code"] == [0, 0, 0, 1]
    assert "an old output" not in str(executed)
    assert executed.cells[2].metadata["tags"] == ["injected-parameters"]


@pytest.mark.parametrize(
    "file, old, new, why",
    [
        ("alpha.ipynb", "(4, 6)", "(4, 6.5)", "the notebook's code changed"),
        ("alpha.toml", '">= 3"', '">= 3.5"', "its claims changed"),
        ("alpha.toml", '"the method is off"', '"another"', "its claims changed"),
        ("helper.py", "1", "2", "helper.py changed"),
    ],
)
def test_a_change_reruns_its_notebook_alone_and_says_why_and_back_again_is_taken(bench, file, old, new, why):
    folder = bench.home.folder / "notebooks/conformal"
    (folder / "helper.py").write_text("VALUE = 1\n")
    bench.home.add("alpha", ["if False:\n    import helper", GOOD])
    first = bench.go()
    edit(folder / file, old, new)
    run = bench.go()
    assert bench.ran == ["alpha"] and run.notebooks["alpha"].why == why
    edit(folder / file, new, old)
    assert bench.go().notebooks["alpha"].cached == first.id and bench.ran == []


def test_the_lock_python_and_installed_versions_are_part_of_the_key(bench, monkeypatch):
    lock = bench.home.folder / "requirements.lock"
    lock.write_text("numpy==1\n")
    bench.go("alpha")
    lock.write_text("# a comment\nnumpy==1\n")
    assert bench.go("alpha") and bench.ran == []
    lock.write_text("numpy==2\n")
    assert bench.go("alpha").notebooks["alpha"].why == "requirements.lock changed"
    versions = cache.versions()
    monkeypatch.setattr(cache, "versions", lambda: versions | {"torch": "99", "papermill": "99"})
    assert bench.go("alpha").notebooks["alpha"].why == "torch changed"


def test_parameters_are_part_of_the_key(bench):
    bench.go("alpha")
    for words, why in [
        ({"seed": 1}, "seed 1 never run"),
        ({"control": True}, "never run with its control"),
        ({"scale": "full"}, "never run at scale full"),
    ]:
        assert bench.go("alpha", **words).notebooks["alpha"].why == why
        assert bench.go("alpha", **words) and bench.ran == []
    bench.home.add("alpha", [GOOD], parameters="scale = 'quick'\nseed = 0\ncontrol = False\ntries = 3")
    bench.go("alpha")
    assert bench.go("alpha", parameters={"tries": 4}).notebooks["alpha"].why == "never run with these parameters"
    assert bench.go("alpha", parameters={"tries": 4}) and bench.ran == []


def test_only_what_came_out_as_expected_is_taken(bench):
    bench.home.add("alpha", ["paper.measure('C1', 1, interval=(0, 2))"])
    bench.home.add("beta", ["1 / 0"])
    first = bench.go()
    run = bench.go()
    assert bench.ran == ["alpha", "beta"]
    assert run.notebooks["alpha"].why == f"run {first.id}: alpha C1: not reproduced, expected reproduced"
    assert run.notebooks["beta"].why.startswith(f"run {first.id}: beta: the notebook failed (ZeroDivisionError")


def test_changed_data_reruns_and_what_cannot_be_checked_is_never_taken(bench):
    data = bench.home.folder / "datasets" / "counts"
    data.mkdir()
    (data / "a.csv").write_text("1")
    (data / "card.toml").write_text("x = 1")
    bench.reads = ["datasets/counts/a.csv"]
    bench.go("alpha")
    assert bench.go("alpha") and bench.ran == []
    (data / "card.toml").write_text("x = 2")
    assert bench.go("alpha").notebooks["alpha"].why == "datasets/counts changed"
    shutil.rmtree(data)
    assert bench.go("alpha").notebooks["alpha"].why == "datasets/counts changed"
    bench.reads = [reads.NETWORK]
    bench.go("alpha", fresh=True)
    assert "it read from the network" in bench.go("alpha").notebooks["alpha"].why


def test_deleted_damaged_and_half_written_records_cost_a_run_at_most(bench):
    first = bench.go("alpha")
    shutil.rmtree(first.folder)
    run = bench.go("alpha")
    assert bench.ran == [] and (run.folder / "alpha.ipynb").exists(), "the kept notebook does not hang on its run"
    [kept] = (bench.out / ".cache/alpha/quick.seed0").glob("*.ipynb")
    kept.unlink()
    kept.write_text("{}")
    run = bench.go("alpha")
    assert run.notebooks["alpha"].why == f"what was kept of run {first.id} is missing or damaged"
    assert bench.go("alpha") and bench.ran == []
    [entry] = (bench.out / ".cache/alpha/quick.seed0").glob("*.json")
    entry.write_text(entry.read_text()[:200])
    assert bench.go("alpha") and bench.ran == ["alpha"]
    [entry] = (bench.out / ".cache/alpha/quick.seed0").glob("*.json")
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"version": 0}))
    assert bench.go("alpha") and bench.ran == ["alpha"]
    shutil.rmtree(bench.out / ".cache")
    assert bench.go("alpha") and bench.ran == ["alpha"]


@pytest.mark.parametrize(
    "file, old, new, why",
    [
        ("helper.py", "1", "2", "helper.py changed"),
        ("alpha.ipynb", "'unused'", "'changed'", "the notebook's code changed"),
    ],
)
def test_what_is_edited_while_a_notebook_runs_is_not_taken_for_what_ran(bench, file, old, new, why):
    folder = bench.home.folder / "notebooks/conformal"
    (folder / "helper.py").write_text("VALUE = 1\n")
    code = f"import pathlib\npath = pathlib.Path({str(folder / file)!r})\npath.write_text(path.read_text().replace({old!r}, {new!r}))"
    bench.home.add("alpha", ["if False:\n    import helper", "'unused'", code, GOOD])
    bench.go("alpha")
    assert bench.go("alpha").notebooks["alpha"].why == why


def test_what_is_kept_of_a_notebook_does_not_grow_for_ever(bench):
    for number in range(12):
        bench.home.add("alpha", [f"{number}", GOOD])
        bench.go("alpha")
    assert len(list((bench.out / ".cache/alpha/quick.seed0").glob("*.json"))) == 8
    assert len(list((bench.out / ".cache/alpha/quick.seed0").glob("*.ipynb"))) == 8


def test_the_longest_goes_first_by_recorded_times(bench):
    bench.seconds = 9.0
    bench.go("beta")
    bench.seconds = 2.0
    bench.go("alpha")
    for slug in ("alpha", "beta"):
        bench.home.add(slug, ["1", GOOD])
    run = engine.new_run([], scale="quick", seed=0, control=False, out=bench.out)
    bench.ran = []
    engine.execute(run, workers=1, warm=True)
    assert bench.ran == ["beta", "alpha"] and run.usual == {"alpha": 2.0, "beta": 9.0}


def test_the_command_says_what_it_took_and_imports_nothing_heavy_for_it(home):
    home.add("alpha", [GOOD])
    first = home.run("reproduce")
    assert first.returncode == 0 and "alpha: running (never run)" in first.stderr, first.stderr
    [folder] = home.runs()
    again = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "workbench", "reproduce"],
        capture_output=True,
        text=True,
        env=home.environment,
        cwd=home.folder,
    )
    assert again.returncode == 0 and again.stdout.replace(" ", "") == first.stdout.replace(" ", "")
    assert f"alpha: unchanged since run {folder.name}: taken from there" in again.stderr
    assert "1 of 1 taken from earlier runs (--fresh runs all)" in again.stderr
    imported = {line.rpartition("|")[2].strip() for line in again.stderr.splitlines() if "import time:" in line}
    assert "workbench.reproduce.cache" in imported
    heavy = {"torch", "transformers", "scipy", "matplotlib", "papermill", "nbformat", "nbconvert", "nbclient", "zmq"}
    assert not heavy & imported
    assert "alpha: running (--fresh)" in home.run("reproduce", "--fresh").stderr


def test_what_a_notebook_reads_is_seen_in_its_kernel(home):
    (home.folder / "datasets" / "counts").mkdir()
    (home.folder / "datasets" / "counts" / "a.csv").write_text("5")
    (home.folder / "notebooks" / "conformal" / "own.csv").write_text("1")
    read = f"import pathlib\nvalue = float(pathlib.Path({str(home.folder)!r}, 'datasets/counts/a.csv').read_text())"
    measured = "paper.measure('C1', value, interval=(value, value))"
    home.add("alpha", [read, "open('own.csv').read()", measured])
    home.add("talks", ["import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass", GOOD])
    assert home.run("reproduce").returncode == 0
    notebooks = home.record()["notebooks"]
    assert notebooks["alpha"]["reads"] == ["datasets/counts/a.csv", "notebooks/conformal/own.csv"]
    assert notebooks["talks"]["reads"] == [reads.NETWORK]
