"""Reports that garak itself wrote (`make_garak.py`), held against the verdicts that stand in them."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.logs import read_attempts
from workbench.logs.records import HalfWritten, read_records

DATA = Path(__file__).resolve().parent / "data"
REPORTS = sorted(DATA.glob("garak_*.report.jsonl"))
FIRST, SECOND, BROKEN = (DATA / f"garak_0.17.1_{name}.report.jsonl" for name in ("first", "second", "broken"))
OLD = DATA / "garak_0.12.0_first.report.jsonl"
THRESHOLDS = {"first": 0.7, "second": 0.5, "broken": 0.5}
BYPASS = "scores['mitigation.MitigationBypass'] >= 0.5"


def entries(report: Path, kind: str, status: int | None = None) -> list[dict]:
    lines = map(json.loads, report.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["entry_type"] == kind and line.get("status") == status]


def text(message) -> str | None:
    return message["text"] if isinstance(message, dict) else message


def test_there_are_reports_of_both_formats():
    assert len(REPORTS) == 4
    assert isinstance(entries(OLD, "attempt", 2)[0]["prompt"], str)
    assert isinstance(entries(FIRST, "attempt", 2)[0]["prompt"], dict)
    missing = [[text(out) if out else out for line in entries(r, "attempt", 2) for out in line["outputs"] if not text(out)]
               for r in (OLD, FIRST, SECOND)]  # fmt: skip
    assert all(None in found for found in missing)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.stem)
def test_counts_are_those_that_garak_evaluated(report):
    threshold, seen = THRESHOLDS[report.name.split("_")[2].split(".")[0]], 0
    for verdict in entries(report, "eval"):
        detector = verdict["detector"].removeprefix("detector.")
        found = read_attempts(report, f"scores['{detector}'] >= {threshold}")
        here = [i for i, name in enumerate(found.ids) if name.startswith(f"{verdict['probe']}/")]
        counts = [(int(found.attempts[i]), int(found.successes[i])) for i in here]
        tried = verdict.get("total_evaluated", verdict.get("total"))
        assert (sum(n for n, _ in counts), sum(c for _, c in counts)) == (tried, tried - verdict["passed"])
        # The share of prompts hit within k tries, which garak reports since 0.17.1, needs the counts of each prompt.
        for k, hit in verdict.get("hit_at_k", {}).items():
            shares = [1 - comb(n - c, m) / comb(n, m) for n, c in counts for m in [n if k == "n" else int(k)] if m <= n]
            assert len(shares) == hit["prompts"] and sum(shares) / len(shares) == pytest.approx(hit["score"], abs=1e-12)
        seen += 1
    assert seen >= 2


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.stem)
def test_each_output_keeps_its_own_scores(report):
    # In garak 0.12 MitigationBypass leaves out the outputs that are missing and always.Fail does not.
    records = [record.scores or {} for record in read_records(report) if record.why != "it was sent but not judged"]
    said = [text(output) for line in entries(report, "attempt", 2) for output in line["outputs"]]
    right = [None if words is None else float("inappropriate" not in words) for words in said]
    assert [scores.get("mitigation.MitigationBypass") for scores in records] == right
    assert None in right and 0.0 in right and 1.0 in right


def by_prompt(reports: list[Path]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for report in reports:
        for line in entries(report, "attempt", 2):
            scores = [s for s in line["detector_results"]["mitigation.MitigationBypass"] if s is not None]
            asked = line["probe_classname"] + text(line["prompt"]["turns"][-1]["content"])
            tried, won = found.get(asked, [0, 0])
            found[asked] = [tried + len(scores), won + sum(s >= 0.5 for s in scores)]
    return found


def test_a_prompt_has_the_same_name_in_every_report():
    # The second report lacks the first one's probe test.Blank, so its prompts stand in other places.
    right, found = by_prompt([FIRST, SECOND]), read_attempts([FIRST, SECOND], BYPASS)
    assert list(zip(found.attempts, found.successes, strict=True)) == [tuple(counts) for counts in right.values()]
    back = read_attempts([SECOND, FIRST], BYPASS)
    both = [dict(zip(each.ids, each.successes, strict=True)) for each in (found, back)]
    assert both[0] == both[1] and list(found.ids) != list(back.ids)
    assert set(read_attempts(SECOND, BYPASS).ids) < set(found.ids)


@pytest.mark.parametrize("report", [OLD, FIRST, SECOND], ids=lambda report: report.stem)
def test_a_report_put_together_from_others_has_judged_attempts_only(report, tmp_path):
    # garak.analyze.aggregate_reports leaves the lines of status 1 out.
    lines = [line for line in report.read_text(encoding="utf-8").splitlines() if '"status": 1' not in line]
    path = tmp_path / "all.report.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    found, right = read_attempts(path, BYPASS), read_attempts(report, BYPASS)
    assert found.ids == right.ids and found.notes == right.notes
    assert found.attempts.tolist() == right.attempts.tolist() and found.successes.tolist() == right.successes.tolist()


def test_attempts_that_a_broken_run_did_not_judge_are_said(tmp_path):
    judged = {line["uuid"] for line in entries(BROKEN, "attempt", 2)}
    left = sum(len(line["outputs"]) for line in entries(BROKEN, "attempt", 1) if line["uuid"] not in judged)
    found = read_attempts(BROKEN, BYPASS)
    assert left == 3 and f"{left} attempts are left out: it was sent but not judged." in found.notes
    assert found.attempts.tolist() == [2] and not any(
        "not judged" in note for note in read_attempts(FIRST, BYPASS).notes
    )
    cut = tmp_path / "cut.report.jsonl"
    cut.write_text(BROKEN.read_text(encoding="utf-8") + '{"entry_type": "att', encoding="utf-8")
    assert read_attempts(cut, BYPASS).notes == (
        *found.notes,
        "cut.report.jsonl breaks off; what stands before that is used.",
    )
    with pytest.raises(HalfWritten):
        list(read_records(cut))
    lines = [line for line in BROKEN.read_text(encoding="utf-8").splitlines(keepends=True) if '"status": 2' not in line]
    cut.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(
        WorkbenchError, match=r"no scored attempt in cut.report.jsonl. 6 attempts are left out: it was sent"
    ):
        read_attempts(cut, BYPASS)


@pytest.mark.parametrize("report", [OLD, FIRST], ids=lambda report: report.stem)
def test_reports_on_two_targets_are_not_mixed(report, tmp_path):
    other = tmp_path / "other.report.jsonl"
    other.write_text(report.read_text(encoding="utf-8").replace("make_garak#answer", "twin"), encoding="utf-8")
    with pytest.raises(
        WorkbenchError, match=r"several models: function.Single make_garak#answer .*function.Single twin"
    ):
        read_attempts([report, other], BYPASS)


def test_a_score_that_is_no_number_is_no_score(tmp_path):
    path = tmp_path / "nan.report.jsonl"
    whole = SECOND.read_text(encoding="utf-8").replace('"mitigation.MitigationBypass": [1.0, 1.0, 1.0]',
                                                       '"mitigation.MitigationBypass": [NaN, 1.0, 1.0]')  # fmt: skip
    path.write_text(whole, encoding="utf-8")
    before, after = read_attempts(SECOND, BYPASS), read_attempts(path, BYPASS)
    assert (before.attempts.sum(), after.attempts.sum()) == (5, 4)
    assert before.successes.sum() == after.successes.sum() + 1
