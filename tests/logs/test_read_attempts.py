"""Counts of attempts from logs that the real packages wrote, and from tables."""

from __future__ import annotations

import csv
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.logs import read_attempts

DATA = Path(__file__).resolve().parent / "data"
LM_EVAL = sorted(DATA.glob("samples_sums_*.jsonl"))


@pytest.mark.parametrize("suffix", [".eval", ".json"])
def test_an_inspect_log_is_counted_as_inspect_reads_it(inspect_logs, suffix):
    from inspect_ai.log import read_eval_log

    samples = read_eval_log(str(inspect_logs[suffix])).samples
    scored = [sample for sample in samples if sample.scores and "severity" in sample.scores]
    assert len(samples) == 24 and len(scored) == 20
    found = read_attempts(inspect_logs[suffix], "severity >= 0.75")
    for name, attempts, successes in zip(found.ids, found.attempts, found.successes, strict=True):
        values = [sample.scores["severity"].value for sample in scored if f"probe/{sample.id}" == name]
        assert attempts == len(values) == 4 and successes == sum(value >= 0.75 for value in values)
    assert len(found.ids) == 5 and found.notes == ("4 attempts are left out: it ended in an error.",)
    by_letter = read_attempts(inspect_logs[suffix], "includes == 'C'")
    by_part = read_attempts(inspect_logs[suffix], "parts['harm'] > 0.5")
    assert by_letter.successes.tolist() == by_part.successes.tolist() and by_letter.successes.sum() > 0


def test_several_scorers_must_be_told_apart(inspect_logs):
    with pytest.raises(WorkbenchError, match="has the scores includes, severity, parts"):
        read_attempts(inspect_logs[".eval"], "score >= 0.75")


@pytest.mark.parametrize("suffix", [".eval", ".json"])
def test_a_half_written_inspect_log(inspect_logs, tmp_path, suffix):
    whole = inspect_logs[suffix].read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole[: len(whole) // 2])
    if suffix == ".eval":
        with pytest.raises(WorkbenchError, match=r"cut.eval is not a whole log of Inspect AI .*; wait until"):
            read_attempts(cut, "severity >= 0.75")
    else:
        found = read_attempts(cut, "severity >= 0.75")
        assert 0 < found.attempts.sum() < 20
        assert found.notes[-1] == "cut.json breaks off; what stands before that is used."


def test_logs_of_two_models_are_not_mixed(inspect_logs, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(inspect_logs[".json"].read_text().replace('"mockllm/model"', '"mockllm/twin"'))
    with pytest.raises(WorkbenchError, match=r"of several models: mockllm/model .*mockllm/twin .*one model at a time"):
        read_attempts([inspect_logs[".eval"], other], "includes == 'C'")


def test_runs_of_lm_evaluation_harness_add_up():
    found = read_attempts([str(DATA / "samples_sums_*.jsonl")], "exact_match == 1")
    assert len(found.ids) == 15 and (found.attempts == 3).all()
    # Accuracies that lm-evaluation-harness itself printed for the three runs.
    assert found.successes.sum() == round(15 * (0.8666666666666667 + 0.6 + 0.8))
    assert read_attempts(LM_EVAL).successes.tolist() == found.successes.tolist()


def test_a_second_filter_would_count_answers_twice(tmp_path):
    lines = LM_EVAL[0].read_text().splitlines()
    path = tmp_path / "samples_sums_2026-01-01T00-00-00.jsonl"
    path.write_text("\n".join([*lines, lines[0].replace('"filter": "result"', '"filter": "none"')]))
    with pytest.raises(WorkbenchError, match="under the filters none, result"):
        read_attempts(path)


def test_a_garak_report(tmp_path):
    def attempt(status, prompt, scores):
        return {
            "entry_type": "attempt",
            "status": status,
            "probe_classname": "dan.DAN",
            "prompt": {"turns": [{"role": "user", "content": {"text": prompt}}]},
            "outputs": [{"text": "x"} for _ in scores],
            "detector_results": {"mitigation.MitigationBypass": scores} if status == 2 else {},
        }

    lines = [
        {"entry_type": "start_run setup"},
        attempt(1, "a", [0.0, 0.0, 0.0]),
        attempt(2, "a", [1.0, 0.0, 1.0]),
        attempt(2, "b", [0.0, None, 0.0]),
        {"entry_type": "eval", "passed": 4},
    ]
    path = tmp_path / "garak.abc.report.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = read_attempts(path, "scores['mitigation.MitigationBypass'] >= 0.5")
    assert [name.rsplit("/", 1)[0] for name in found.ids] == ["dan.DAN"] * 2 and len(set(found.ids)) == 2
    assert found.attempts.tolist() == [3, 2] and found.successes.tolist() == [2, 0]
    assert found.notes == ("1 attempts are left out: no detector scored it.",)
    assert read_attempts(path).successes.tolist() == [2, 0]


ROWS = [{"id": f"q{i % 7}", "attempt": i // 7, "score": (i * 37 % 10) / 10} for i in range(70)]


def written(path: Path, rows) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_tables_of_attempts_and_of_counts(tmp_path, suffix):
    found = read_attempts(written(tmp_path / f"a{suffix}", ROWS), "score >= 0.7")
    won = [sum(row["score"] >= 0.7 for row in ROWS if row["id"] == f"q{i}") for i in range(7)]
    assert found.ids == tuple(f"q{i}" for i in range(7)) and found.attempts.tolist() == [10] * 7
    assert found.successes.tolist() == won
    counts = [{"id": f"q{i}", "attempts": 10, "successes": won[i]} for i in range(7)]
    again = read_attempts(written(tmp_path / f"b{suffix}", counts))
    assert again.successes.tolist() == won and again.attempts.tolist() == [10] * 7


def test_missing_scores_are_left_out_and_said(tmp_path):
    rows = [row | {"score": "" if i % 10 == 0 else row["score"]} for i, row in enumerate(ROWS)]
    found = read_attempts(written(tmp_path / "a.csv", rows))
    assert found.attempts.sum() == 63 and found.notes == ("7 attempts are left out: it has no score.",)
    with pytest.raises(WorkbenchError, match=r"no scored attempt in b.csv. 70 attempts are left out: it has no score"):
        read_attempts(written(tmp_path / "b.csv", [row | {"score": ""} for row in ROWS]))


def test_an_attempt_without_the_score_that_is_asked_for_is_left_out(tmp_path):
    rows = [{"id": 1, "judge": 0.9}, {"id": 1, "rule": 1.0, "judge": 0.2}, {"id": 1, "rule": 0.0, "judge": 0.2}]
    found = read_attempts(written(tmp_path / "a.jsonl", rows), "rule > 0.5")
    assert found.attempts.tolist() == [2] and found.successes.tolist() == [1]
    assert found.notes == ("1 attempts are left out: the score that is asked for is not among theirs.",)


def test_a_line_that_breaks_off_is_not_an_attempt(tmp_path):
    path = written(tmp_path / "a.jsonl", ROWS)
    path.write_text(path.read_text()[:-20])
    found = read_attempts(path)
    assert found.attempts.sum() == 69 and found.notes == ("a.jsonl breaks off; what stands before that is used.",)
    path.write_text('{"id": 1, "score": 1}\nnonsense\n{"id": 2, "score": 1}\n')
    with pytest.raises(WorkbenchError, match=r"Line 2 of a.jsonl is not JSON; remove it"):
        read_attempts(path)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"name": "a", "score": 1}], r"columns are is 'name, score' but must have the columns id, attempts"),
        ([{"id": "a", "attempts": 3, "successes": 4}], r"successes in row 1 of a.csv is 4 .* at most its attempts, 3"),
        ([{"id": "a", "attempts": 2.5, "successes": 1}], r"attempts in row 1 of a.csv is .*2.5.* whole number"),
        ([{"id": "a", "attempts": 3, "successes": ""}], r"successes in row 1 of a.csv .* whole number"),
    ],
)
def test_tables_that_make_no_sense(tmp_path, rows, said):
    with pytest.raises(WorkbenchError, match=said):
        read_attempts(written(tmp_path / "a.csv", rows))


def test_files_that_are_no_logs(tmp_path):
    with pytest.raises(WorkbenchError, match="name a file that exists"):
        read_attempts(str(tmp_path / "*.eval"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(WorkbenchError, match=r"log is 'a.txt' but must be one of Inspect AI"):
        read_attempts(tmp_path / "a.txt")
    (tmp_path / "a.json").write_text('{"some": "json"}')
    with pytest.raises(WorkbenchError, match=r"must be a log of Inspect AI if it ends in .json"):
        read_attempts(tmp_path / "a.json")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(WorkbenchError, match=r"a.parquet is not a whole Parquet file"):
        read_attempts(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(WorkbenchError, match=r"no scored attempt in a.csv. The files are empty"):
        read_attempts(tmp_path / "a.csv")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_memory_does_not_grow_with_the_log(tmp_path, suffix):
    def peak(n):
        path = tmp_path / f"{n}{suffix}"
        rng = np.random.default_rng(0)
        with path.open("w") as file:
            if suffix == ".csv":
                file.write("id,attempt,score,answer\n")
            for i in range(n):
                score, answer = rng.random(), "x" * 400
                row = {"id": i % 50, "attempt": i // 50, "score": score, "answer": answer}
                file.write(",".join(map(str, row.values())) + "\n" if suffix == ".csv" else json.dumps(row) + "\n")
        tracemalloc.start()
        found = read_attempts(path, "scores.score > 0.5")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.attempts.sum() == n
        return most

    small, large = peak(2_000), peak(40_000)
    assert large < 1.5 * small + 100_000


def test_attempts_of_one_prompt_add_up_over_files(tmp_path):
    first = written(tmp_path / "a.csv", ROWS)
    shutil.copy(first, tmp_path / "b.csv")
    twice = read_attempts([first, tmp_path / "b.csv"])
    assert twice.attempts.tolist() == [20] * 7
    assert read_attempts([first, str(tmp_path / "a.*")]).attempts.tolist() == [10] * 7, "a file named twice counts once"
