"""`pytest notebooks/`: each notebook and each claim a test; each notebook run once."""

from __future__ import annotations

import re
import subprocess
import sys

from .conftest import CLAIM

TWO = CLAIM.format(id="C1", mode="scaled", passes=">= 3", more='control = "off"\nnote = "Mind this."') + CLAIM.format(
    id="C2", mode="exact", passes="<= 1", more=""
)
GOOD = ["paper.measure('C1', 1 if control else 5, interval=(0, 2) if control else (4, 6))", "paper.measure('C2', 1)"]


def collect(home, *arguments: str) -> tuple[int, dict[str, str], str]:
    """Exit status, {item: outcome}, and all that was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "notebooks", "-v", "-rA", "--rootdir=.", "-p", "no:randomly", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=home.environment,
        cwd=home.folder,
    )
    text = done.stdout + done.stderr
    found = re.findall(r"^(PASSED|FAILED|SKIPPED|ERROR) \S*/(\w+\.ipynb::\w+)", text, flags=re.MULTILINE)
    return done.returncode, {item: outcome.lower() for outcome, item in found}, text


def runs(home) -> list[str]:
    """The slugs of the notebooks that have been run, in order."""
    records = sorted((home.folder / ".pytest_cache" / "d" / "workbench" / "runs").glob("2*/*.ipynb"))
    return [path.stem for path in records]


def test_claims_are_items_and_a_failure_tells_what_was_measured(home):
    home.add("good", GOOD, claims=TWO)
    home.add("weak", [GOOD[0].replace("(4, 6)", "(2.5, 6)"), GOOD[1]], claims=TWO)
    home.add("dies", [GOOD[0], "raise KeyError('gone')", GOOD[1]], claims=TWO)
    (home.folder / "notebooks" / "conformal" / "loose.ipynb").write_text("no paper's notebook is left alone")
    status, items, text = collect(home)
    assert status == 1
    assert items == {
        "good.ipynb::notebook": "passed", "good.ipynb::C1": "passed", "good.ipynb::C2": "passed",
        "weak.ipynb::notebook": "passed", "weak.ipynb::C1": "failed", "weak.ipynb::C2": "passed",
        "dies.ipynb::notebook": "failed", "dies.ipynb::C1": "passed",
    }  # fmt: skip
    assert "not measured: see dies.ipynb::notebook, which failed" in text
    assert re.search(r"the notebook failed: cell \d+: KeyError: 'gone'", text)
    for line in (
        "weak C1: consistent, expected reproduced",
        "the paper says  A statement (7)",
        "measured        a number: 5 (interval 2.5 to 6)",
        "passes if       >= 3",
        "run             scale quick, seed 0",
        "note            Mind this.",
    ):
        assert line in text
    assert "Traceback" not in text and sorted(runs(home)) == ["dies", "good", "weak"]

    status, items, _ = collect(home, "--lf", "-x", "-k", "weak")
    assert status == 1 and items == {"weak.ipynb::C1": "failed"}
    assert sorted(runs(home)) == ["dies", "good", "weak", "weak"]

    status, items, _ = collect(home, "-k", "good and C1", "--workbench-cached", "--workbench-seed", "0")
    assert (status, items) == (0, {"good.ipynb::C1": "passed"})


def test_workers_run_each_notebook_once_and_options_reach_it(home):
    for slug in ("alpha", "beta"):
        home.add(slug, GOOD, claims=TWO)
    status, items, text = collect(home, "-n", "2", "--workbench-control", "--workbench-seed", "3")
    assert status == 0 and len(items) == 6, text
    assert sorted(runs(home)) == ["alpha", "beta"]
    records = [path.read_text() for path in (home.folder / ".pytest_cache/d/workbench/runs").glob("2*/claims.json")]
    assert len(records) == 2 and all('"seed": 3' in text and '"controlled": true' in text for text in records)
    # Every item on every worker: what one has run, the other reads.
    status, _, text = collect(home, "-n", "2", "--dist", "each", "-k", "alpha")
    assert status == 0 and sorted(runs(home)) == ["alpha", "alpha", "beta"], text


def test_bad_papers_are_named_and_the_others_run(home):
    toml = home.add("broken", GOOD, claims=TWO)
    toml.write_text(toml.read_text().replace('mode = "scaled"', 'mode = "sclaed"'))
    torn = home.add("torn", GOOD, claims=TWO)
    torn.with_suffix(".ipynb").write_text("{")
    home.add("good", GOOD, claims=TWO)
    status, items, text = collect(home, "--continue-on-collection-errors")
    assert status == 1 and items["good.ipynb::C2"] == "passed" and items["torn.ipynb::notebook"] == "failed"
    assert "claim C1: key 'mode' is 'sclaed'; it must be one of exact, scaled, gpu" in text
    assert "torn.ipynb is not a valid notebook (JSONDecodeError); open it in JupyterLab" in text


def test_a_folder_that_is_not_the_workbenchs_home_is_told_the_cure(home, tmp_path):
    home.add("alpha", GOOD, claims=TWO)
    (home.folder / "elsewhere" / "notebooks" / "conformal").mkdir(parents=True)
    for name in ("alpha.ipynb", "alpha.toml"):
        (home.folder / "elsewhere/notebooks/conformal" / name).write_text(
            (home.folder / "notebooks/conformal" / name).read_text()
        )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "elsewhere", "--rootdir=.", "-k", "C1"],
        capture_output=True, text=True, env=home.environment, cwd=home.folder, timeout=60,
    )  # fmt: skip
    assert (
        done.returncode == 1
        and "set WORKBENCH_HOME to the folder that holds its notebooks/ and datasets/" in done.stdout
    )
