"""Several seeds, and method beside control: what runs, what is counted, what is said."""

from __future__ import annotations

import json

import pytest
from scipy import stats
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.reproduce import engine
from workbench.reproduce.records import passes, read_run, wilson

from .bench import Bench
from .conftest import CLAIM

TWO = CLAIM.format(id="C1", mode="scaled", passes=">= 3", more='control = "the method is off"') + CLAIM.format(
    id="C2", mode="scaled", passes=">= 3", more='expected = "consistent"'
)
# C1 holds at every seed with its method and at none with its control; C2 holds at even seeds.
CELLS = [
    "paper.measure('C1', 1 if control else 5, interval=(0, 2) if control else (4, 6))",
    "paper.measure('C2', 3.5 if seed % 2 == 0 else 2, interval=(1, 5))",
]


@pytest.fixture
def bench(home, monkeypatch):
    home.add("alpha", CELLS, claims=TWO)
    home.add("beta", CELLS[:1])
    return Bench(home, monkeypatch)


def test_each_notebook_runs_at_each_seed_with_method_and_control(bench):
    run = bench.go(seed=4, seeds=3, with_control=True)
    expected = [
        f"{slug}{seed}{control}"
        for slug in ("alpha", "beta")
        for control in ("", ".control")
        for seed in ("", ".seed5", ".seed6")
    ]
    assert list(run.notebooks) == expected and sorted(bench.ran) == sorted(expected)
    rows = [(row["slug"], row["claim"], row["controlled"], row["seed"]) for row in run.claims]
    assert len(set(rows)) == len(rows) == 2 * 3 * 2 + 2 * 3
    assert {(row["seed"], row["verdict"]) for row in run.claims if row["claim"] == "C2"} == {
        (4, "consistent"), (5, "not reproduced"), (6, "consistent"),
    }  # fmt: skip


def test_shares_of_passes_are_counted_by_claim_and_control(bench):
    run = bench.go("alpha", seed=4, seeds=3, with_control=True)
    found = {(share["claim"], share["controlled"]): (share["passed"], share["runs"]) for share in passes(run)}
    assert found == {("C1", False): (3, 3), ("C2", False): (2, 3), ("C1", True): (0, 3), ("C2", True): (2, 3)}
    record = json.loads((run.folder / "run.json").read_text())
    assert record["passes"] == passes(run) and record["version"] == 2 and record["seeds"] == 3
    assert json.loads((run.folder / "claims.json").read_text()) == run.claims
    read = read_run(run.folder)
    assert read.notebooks == run.notebooks and read.claims == run.claims and passes(read) == passes(run)


def test_what_never_measured_a_claim_does_not_count(bench):
    bench.home.add("alpha", [CELLS[0], "assert seed != 5", CELLS[1]], claims=TWO)
    run = bench.go("alpha", seed=4, seeds=3)
    assert {share["claim"]: share["runs"] for share in passes(run)} == {"C1": 3, "C2": 2}


@pytest.mark.parametrize("passed, runs", [(0, 1), (1, 1), (0, 5), (3, 5), (5, 5), (40, 60)])
def test_the_interval_is_wilsons(passed, runs):
    peer = stats.binomtest(passed, runs).proportion_ci(0.95, "wilson")
    assert wilson(passed, runs) == pytest.approx((peer.low, peer.high), abs=1e-12)


def test_an_alarm_names_its_seed_and_its_control(bench):
    run = bench.go("alpha", seed=4, seeds=2, with_control=True)
    assert run.alarms == [
        "alpha at seed 5 C2: not reproduced, expected consistent",
        "alpha at seed 5 under control C2: not reproduced, expected consistent",
    ]


def test_more_seeds_later_run_the_new_ones_alone(bench):
    bench.go("beta", seed=4, seeds=2)
    run = bench.go("beta", seed=3, seeds=3)
    assert bench.ran == ["beta"] and run.notebooks["beta"].why == "seed 3 never run"
    assert [row["seed"] for row in run.claims] == [3, 4, 5]
    assert [row["value"] for row in bench.go("beta", seed=4, control=True).claims] == [1]
    assert bench.ran == ["beta"]


def test_an_interrupted_run_goes_on_with_the_seeds_that_are_missing(bench):
    run = bench.go("beta", seeds=3)
    record = json.loads((run.folder / "run.json").read_text())
    record["notebooks"]["beta.seed1"] |= {"state": "interrupted", "claims": []}
    (run.folder / "run.json").write_text(json.dumps(record))
    bench.ran = []
    taken_up = engine.execute(engine.resume_run(bench.out, "latest"), fresh=True, warm=True)
    assert bench.ran == ["beta.seed1"]
    assert [(row["seed"], row["value"]) for row in taken_up.claims] == [(0, 5), (1, 5), (2, 5)]


def test_contradictions_are_refused(bench):
    with pytest.raises(WorkbenchError, match=r"--seeds is 0 but must be a whole number at least 1; .*--seeds 5"):
        bench.go("alpha", seeds=0)
    with pytest.raises(WorkbenchError, match="--control runs the controls alone; leave it out beside --with-control"):
        bench.go("alpha", control=True, with_control=True)
    assert not bench.out.exists()


def test_the_command_prints_the_shares(bench, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    words = ["reproduce", "alpha", "--seeds", "2", "--with-control", "--out", str(bench.out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and "alpha at seed 1 C2: not reproduced, expected consistent" in done.stderr
    table = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()]
    told = {row[2]: (row[5], row[7]) for row in table if len(row) > 7 and row[2].startswith("C")}
    assert told["C1"] == ("2 of 2 (0.34 to 1.00)", "2 reproduced")
    assert told["C1 control"] == ("0 of 2 (0.00 to 0.66)", "2 not reproduced")
    assert told["C2"][0] == "1 of 2 (0.09 to 0.91)"
    assert "8 claims of 1 paper in 4 runs" in done.stderr
