"""The league: its figures are the formulas that it states, and no repeat is lost or played twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.stats import beta

import workbench as wb
from workbench import league
from workbench.commands.league import _words
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.problems.suite import catalogue, find_problem

SMALL = wb.Budget(model_calls=300)


def test_every_repeat_is_one_run_at_its_own_seed(tmp_path):
    rows = league.play(["tail-1e-1"], ["MonteCarlo(level=0.9)"], SMALL, repeats=3, seed=5, out=tmp_path, workers=1)
    assert [row["seed"] for row in rows] == [5, 6, 7]
    for row in rows:
        alone = wb.run(find_problem("tail-1e-1"), MonteCarlo(level=0.9), SMALL, seed=row["seed"])
        assert (row["value"], row["low"], row["high"], row["level"]) == (alone.value, alone.low, alone.high, 0.9)
        assert row["model_calls"] == 300 and row["truth"] == pytest.approx(0.1)


def made_up(values, ends, reliable, truth=2.0):
    spend = dict.fromkeys(("samples", "tokens", "model_calls", "flops", "seconds", "usd"), 10.0)
    return [
        {"problem": "p", "estimator": "e", "seed": i, "truth": truth, "value": v, "low": low, "high": high}
        | {"std_error": None, "level": 0.95, "reliable": ok, "why": "", "stopped": ""}
        | spend
        for i, (v, (low, high), ok) in enumerate(zip(values, ends, reliable, strict=True))
    ]


def test_the_standings_are_the_formulas():
    values = [1.0, 2.5, 3.0, None, 2.0]
    ends = [(0.5, 1.5), (2.0, 3.0), (1.0, None), (None, None), (2.1, 2.2)]
    [found] = league.standings(made_up(values, ends, [True, True, True, False, True]))
    errors = (np.array([1.0, 2.5, 3.0, 2.0]) - 2) / 2
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert found["rmse_low"] <= found["rmse"] <= found["rmse_high"]
    assert found["bias"] == pytest.approx(errors.mean())
    assert found["bias_t"] == pytest.approx(2 * errors.mean() / errors.std(ddof=1))
    assert (found["answered"], found["unflagged"], found["coverage"]) == (4, 4, 0.5)
    assert found["coverage_low"] == pytest.approx(beta.ppf(0.025, 2, 3))
    assert found["flagged"] == pytest.approx(0.2) and found["flagged_high"] == pytest.approx(beta.ppf(0.975, 2, 4))
    assert found["width"] == pytest.approx(0.5), "the median of 0.5, 0.5, infinity and 0.05"
    assert found["tokens"] == 10.0


def test_a_pair_that_never_answers_or_always_warns_has_no_figures():
    [found] = league.standings(made_up([None, None], [(None, None)] * 2, [False, False]))
    assert found["rmse"] is found["bias_t"] is found["coverage"] is found["width"] is None and found["flagged"] == 1
    assert json.dumps(found, allow_nan=False)


def test_a_known_bias_shows_and_none_is_made_up():
    rng = np.random.default_rng(0)
    fair = league.standings(made_up(2 + 0.1 * rng.standard_normal(400), [(1, 3)] * 400, [True] * 400))[0]
    off = league.standings(made_up(2.05 + 0.1 * rng.standard_normal(400), [(1, 3)] * 400, [True] * 400))[0]
    # |t| > 4.9 has probability 1e-6 where there is no bias; a bias of half an SD has t = 10 +/- 1.
    assert abs(fair["bias_t"]) < 4.9 < off["bias_t"]


def test_workers_and_stops_change_nothing(tmp_path):
    games = (["tail-1e-1", "ladder-even"], ["MonteCarlo"], SMALL)
    whole = league.play(*games, repeats=20, out=tmp_path / "whole", workers=1)
    assert _same(league.play(*games, repeats=20, out=tmp_path / "two", workers=2), whole)
    assert _same(league.read_rows(tmp_path / "two"), whole)
    part = league.play(*games, repeats=7, out=tmp_path / "part", workers=1)
    assert _same(league.play(*games, repeats=20, out=tmp_path / "part", workers=1), whole) and len(part) == 14


def _same(some, others):
    """The same rows, but for the clock and the order."""

    def told(rows):
        return sorted(json.dumps(row | {"seconds": 0}, sort_keys=True) for row in rows)

    return told(some) == told(others)


def test_what_is_there_is_not_played_again_and_a_torn_line_is(tmp_path, monkeypatch):
    games = (["tail-1e-1"], ["MonteCarlo"], SMALL)
    first = league.play(*games, repeats=4, out=tmp_path, workers=1)
    path = tmp_path / "repeats.jsonl"
    path.write_text(path.read_text()[:-40])
    played = []
    monkeypatch.setattr(league, "play_chunk", lambda chunk: played.extend(chunk[3]) or PLAY(chunk))
    assert _same(league.play(*games, repeats=4, out=tmp_path, workers=1), first) and played == [3]
    assert len(path.read_text().splitlines()) == 4


PLAY = league.play_chunk


def test_a_killed_league_goes_on_where_it_was(tmp_path):
    words = ["--problems", "tail-1e-1,ladder-even", "--estimators", "MonteCarlo", "--budget", "model_calls=2k"]
    command = [sys.executable, "-m", "workbench", "league", *words, "--workers", "1", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--repeats", "4000"], env=environment, stdout=subprocess.DEVNULL)
    kept, deadline = tmp_path / "repeats.jsonl", time.monotonic() + 100
    while not (kept.is_file() and kept.stat().st_size > 20_000) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = league.read_rows(tmp_path)
    assert before, "nothing was kept before the kill"
    repeats = len(before) // 2 + 8
    done = subprocess.run(
        [*command, "--repeats", str(repeats), "--json"], env=environment, capture_output=True, text=True
    )
    standings = json.loads(done.stdout)
    assert [row["repeats"] for row in standings] == [repeats] * 2
    after = league.read_rows(tmp_path)
    assert after[: len(before)] == before and len({(row["problem"], row["seed"]) for row in after}) == len(after)
    assert (tmp_path / "league.png").stat().st_size > 5_000
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "repeats.parquet")
    assert table.num_rows == 2 * repeats and {"value", "low", "high", "tokens"} <= set(table.column_names)


def test_problems_are_named_by_kind_and_pattern():
    assert set(league.choose_problems([])) == set(catalogue())
    assert set(league.choose_problems(["chain"])) == {
        name for name, entry in catalogue().items() if entry.kind == "chain"
    }
    assert league.choose_problems(["tail-*", "tail-1e-3"]) == ["tail-1e-1", "tail-1e-3", "tail-1e-6", "tail-1e-9"]
    assert _words(["a,b c", "F(x=1, y=(2, 3)),G"]) == ["a", "b", "c", "F(x=1, y=(2, 3))", "G"]
    assert league.choose_players(["Saber", "MonteCarlo( level = 0.9 )"]) == ["Saber", "MonteCarlo(level=0.9)"]
    assert league.read_budget("tokens=200k, seconds=1.5") == wb.Budget(tokens=200_000, seconds=1.5)


@pytest.mark.parametrize(
    "ask, said",
    [
        (
            lambda out: league.choose_problems(["tail-1e-5"]),
            r"has 'tail-1e-5', which is no problem.*did you mean tail-1e-",
        ),
        (lambda out: league.read_estimator("MonteCralo"), r"no estimator 'MonteCralo'; did you mean MonteCarlo\?"),
        (lambda out: league.read_estimator("MonteCarlo(levle=0.9)"), r"no setting 'levle'; it has level"),
        (lambda out: league.read_estimator("MonteCarlo(level=2)"), r"level is 2"),
        (lambda out: league.read_estimator("MonteCarlo(0.9)"), r"can't be read; write a name, or"),
        (lambda out: league.read_estimator("__import__('os').system('x')"), r"can't be read"),
        (lambda out: league.read_budget("token=5"), r"--budget is 'token=5' but must name units among samples, tokens"),
        (lambda out: league.read_budget("tokens=many"), r"write e.g. tokens=200k"),
        (lambda out: league.read_budget(""), r"must set a limit"),
        (lambda out: league.play(["cvar-spread"], ["MonteCarlo"], SMALL, out=out), r"None of MonteCarlo can answer"),
        (lambda out: league.play(["tail-1e-1"], ["MonteCarlo"], SMALL, repeats=0, out=out), r"repeats is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_cure(ask, said, tmp_path):
    with pytest.raises(WorkbenchError, match=said):
        ask(tmp_path / "out")


def test_a_pair_that_fails_is_left_out_and_the_others_go_on(tmp_path, monkeypatch):
    good = ("tail-1e-1", "MonteCarlo")
    games = (["tail-1e-1", "grammar-8"], ["MonteCarlo", "ImportanceSampling"], SMALL)

    def breaks(self, state):
        raise RuntimeError("Failed to converge")

    monkeypatch.setattr("workbench.methods.tail_risk.lm_tail_risk.ImportanceSampling.result", breaks)
    told = []
    rows = league.play(*games, repeats=3, out=tmp_path, workers=1, left_out=told.append)
    assert {(row["problem"], row["estimator"]) for row in rows} == {good, ("grammar-8", "MonteCarlo")}
    assert told == [
        f"ImportanceSampling on {problem} failed at seed 0: RuntimeError: Failed to converge."
        for problem in ("tail-1e-1", "grammar-8")
    ]
    with pytest.raises(WorkbenchError, match=r"failed at seed 0: RuntimeError"):
        league.play(*games, repeats=3, out=tmp_path, workers=1)
    assert len(league.read_rows(tmp_path)) == 6, "what the others gave is kept"


def test_a_budget_that_no_problem_spends_is_told_and_one_that_some_spend_is_played(tmp_path):
    tokens = wb.Budget(tokens=2000)
    told = []
    rows = league.play(
        ["tail-1e-1", "grammar-8"], ["MonteCarlo"], tokens, repeats=2, out=tmp_path / "a", left_out=told.append
    )
    assert {row["problem"] for row in rows} == {"grammar-8"} and len(told) == 1
    assert "MonteCarlo on tail-1e-1 failed at seed 0: The budget limits tokens but" in told[0]
    with pytest.raises(WorkbenchError, match=r"spends none, so the run would never end; add a limit"):
        league.play(["tail-1e-1"], ["MonteCarlo"], tokens, repeats=2, out=tmp_path / "b", left_out=told.append)


def test_a_folder_with_another_league_is_left_alone(tmp_path):
    league.play(["tail-1e-1"], ["MonteCarlo"], SMALL, repeats=1, out=tmp_path, workers=1)
    with pytest.raises(WorkbenchError, match=r"holds a league with budget .*300.*; choose another folder with --out"):
        league.play(["tail-1e-1"], ["MonteCarlo"], wb.Budget(model_calls=400), repeats=1, out=tmp_path, workers=1)
