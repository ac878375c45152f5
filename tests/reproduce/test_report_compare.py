"""What moved between two runs, and whether a drawing is to scale."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.reproduce.compare import compare, counts, write_comparison
from workbench.reproduce.drawing import draw
from workbench.reproduce.history import recorded_run

from .test_report_safety import Fetching
from .written_runs import row, write_run

SLUG = "saber"


def command(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_a_value_that_moved_beyond_its_interval_is_told_from_one_that_did_not(tmp_path):
    before = {"C1": 5.0, "C2": 5.0, "C3": 5.0, "C4": 5.0, "C6": 5.0, "C7": 5.0}
    after = {"C1": 5.0, "C2": 5.9, "C3": 6.5, "C4": 1.5, "C5": 5.0, "C6": 5.0 * (1 + 1e-12), "C7": 9.0}
    old = write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, name, value) for name, value in before.items()]})
    new = write_run(
        tmp_path, "20260202-000000", {SLUG: [row(SLUG, name, value) for name, value in after.items()]}, seed=1
    )
    changes = {change.row["claim"]: change for change in compare(*(recorded_run(run.folder) for run in (old, new)))}
    # write_run moves a value by 0.2 a seed.
    assert {name: change.kind for name, change in changes.items()} == {
        "C1": "inside", "C2": "outside", "C3": "outside", "C4": "apart", "C5": "one only", "C6": "inside", "C7": "apart",
    }  # fmt: skip
    assert next(iter(changes)) == "C4" and changes["C4"].verdict_changed
    assert counts(list(changes.values()))["worse"] == 1
    done = command("report", "20260101-000000", "20260202-000000", "--runs", str(tmp_path))
    assert (
        done.exit_code == 0
        and "saber C4: 5 (4 to 6) -> 1.7 (0.7 to 2.7) (apart); reproduced -> not reproduced" in done.stdout
    )
    page = (new.folder / "compare-20260101-000000.html").read_text()
    assert "4 claims moved beyond" in page and "seeds differ" in page and Fetching(page).found == []


def test_a_changed_bar_is_told_in_a_comparison(tmp_path):
    old = write_run(tmp_path, "20260101-000000", {SLUG: [row(SLUG, "C1")]})
    new = write_run(tmp_path, "20260202-000000", {SLUG: [row(SLUG, "C1", passes=">= 2")]})
    assert "&gt;= 3 before, &gt;= 2 now" in write_comparison(old, new).read_text()


@pytest.mark.parametrize(
    "passes, value, inside",
    [(">= 3", 5, True), (">= 3", 1, False), ("in [0.9, 1.1]", 1, True), ("in [1, 1]", 2, False), ("< -2", -3, True), ("<= 0", 0.5, False)],
)  # fmt: skip
def test_a_drawing_is_to_scale(passes, value, inside):
    drawing = draw([("", "ours", row(SLUG, "C1", value, 0.01, passes))], passes)
    assert drawing is not None
    [lane] = drawing.lanes
    assert lane.low < lane.value < lane.high or lane.high - lane.low < 1
    assert any(left <= lane.value <= left + width for left, width in drawing.passing) == inside
    assert all(
        drawing.left - 1 <= x <= drawing.width for x in (*drawing.bars, lane.value, *(x for x, _ in drawing.ticks))
    )
    [(first, low), *_, (last, high)] = drawing.ticks
    scale = (last - first) / (float(high) - float(low))
    assert abs(first + (value - float(low)) * scale - lane.value) < 0.2


def test_a_far_control_does_not_squash_the_drawing():
    ours, far = row(SLUG, "C1", 5), row(SLUG, "C1", -1e6)
    drawing = draw([("seed 0", "ours", ours), ("control", "control", far)], ">= 3")
    assert drawing is not None and [lane.beyond for lane in drawing.lanes] == [0, -1]
    assert drawing.lanes[0].high - drawing.lanes[0].low > 30
    assert draw([("", "ours", row(SLUG, "C1", None))], ">= 3") is None and draw([("", "ours", ours)], "about 3") is None
