"""Tables and baselines: the bundled table is the built one, ratings agree with their definitions, CSV files are checked."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.stats import spearmanr

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import swiss_round_tables as tables
from workbench.methods.tail_risk.swiss_round import win_tensor
from workbench.paths import datasets_folder

S = Stream.of(0, "tables")
TABLE = tables.classifier_table()


def test_the_bundled_table_is_the_one_that_its_recipe_builds():
    built = tables.build_classifier_table(["iris", "diabetes"])
    for name, correct in zip(built.tasks, built.correct, strict=True):
        ours = TABLE.correct[TABLE.tasks.index(name)]
        assert ours.shape == correct.shape and (ours != correct).mean() < 0.02, "single items may flip between versions"
    folder = datasets_folder() / "classifiers"
    digest = hashlib.sha256((folder / "correct.npz").read_bytes()).hexdigest()
    assert digest in (folder / "CARD.md").read_text(encoding="utf-8")
    assert (TABLE.scores.shape, sum(task.shape[1] for task in TABLE.correct)) == ((12, 14), 5048)
    assert (np.diff(TABLE.scores.mean(axis=0)) <= 1e-12).all(), "easiest first"


def test_a_stored_table_is_read_back(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    small = tables.ItemTable(("a", "b"), ("x", "y"), (rng.random((2, 5)) < 0.5, rng.random((2, 12)) < 0.5))
    (tmp_path / "classifiers").mkdir()
    tables.store(small, tmp_path / "classifiers" / "correct.npz")
    monkeypatch.setattr(tables, "datasets_folder", lambda: tmp_path)
    read = tables.classifier_table.__wrapped__()
    assert read.models == ("a", "b") and read.tasks == ("x", "y")
    assert all(np.array_equal(one, other) for one, other in zip(read.correct, small.correct, strict=True))


def test_items_are_resampled_for_all_models_alike_and_halves_are_disjoint():
    one = tables.ItemTable(("a", "b"), ("x",), (np.array([[True] * 3 + [False] * 5, [False] * 3 + [True] * 5]),))
    again = np.array([one.resampled(S.child(i))[:, 0] for i in range(400)])
    assert np.allclose(again.sum(axis=1), 1), "b is right where a is wrong, on the same items"
    assert abs(again[:, 0].mean() - 3 / 8) < 0.05 and again[:, 0].std() == pytest.approx(np.sqrt(15 / 64 / 8), rel=0.2)
    first, second = one.halved(S)
    assert np.allclose(first + second, 2 * one.scores)


def test_average_rank_orders_as_the_win_rate():
    scores = np.random.default_rng(1).random((7, 9))
    rate = win_tensor(scores, S).sum(axis=(0, 2))
    assert spearmanr(rate, tables.average_rank(scores)).statistic == pytest.approx(1)
    assert np.allclose(tables.average_rank(np.exp(scores)), tables.average_rank(scores))
    assert tables.places([3.0, 5, 3, 1]).tolist() == [2.5, 1, 2.5, 4]


def test_bradley_terry_solves_its_equations_and_orders_a_round_robin_as_wins_do():
    win = win_tensor(np.random.default_rng(2).random((6, 8)), S)
    strength = np.exp(tables.bradley_terry(win, prior=0.5))
    off = ~np.eye(6, dtype=bool)
    wins = np.where(off, win.sum(axis=0) + 0.5, 0)
    expected = ((wins + wins.T) * strength[:, None] / (strength[:, None] + strength)).sum(axis=1)
    assert np.allclose(expected, wins.sum(axis=1)) and np.log(strength).sum() == pytest.approx(0, abs=1e-8)
    assert spearmanr(strength, wins.sum(axis=1)).statistic == pytest.approx(1)
    beaten = win_tensor(np.arange(6)[:, None] + np.zeros((1, 3)), S)
    assert np.isfinite(tables.bradley_terry(beaten)).all()


def test_elo_keeps_its_sum_and_finds_the_best():
    win = win_tensor(np.arange(5)[:, None] + np.zeros((1, 30)), S)
    rating = tables.elo(win, S)
    assert rating.sum() == pytest.approx(5 * 1500) and rating.argsort().tolist() == [0, 1, 2, 3, 4]
    assert not np.array_equal(rating, tables.elo(win, S.child("again"))), "the order of the games is its noise"


def test_a_csv_file_becomes_a_table(tmp_path):
    (tmp_path / "scores.csv").write_text(
        "model,benchmark,score,order\na,hard,0.2,2\na,easy,0.9,1\nb,hard,0.4,2\nb,easy,0.8,1\n"
    )
    models, tasks, scores = tables.read_scores(tmp_path / "scores.csv")
    assert models == ("a", "b") and tasks == ("easy", "hard") and scores.tolist() == [[0.9, 0.2], [0.8, 0.4]]
    assert tables.read_scores(["model,benchmark,score", "a,hard,1", "a,easy,2"])[1] == ("hard", "easy")


HEAD = "model,benchmark,score"


@pytest.mark.parametrize("attempt, said", [
    (lambda: tables.read_scores([]), r"columns is 'none' but must include model; write model,benchmark,score"),
    (lambda: tables.read_scores(["model,score", "a,1"]), r"columns is .* must include benchmark"),
    (lambda: tables.read_scores([HEAD, "a,x,much"]), r"line 2: score is 'much' but must be a finite number; write"),
    (lambda: tables.read_scores([HEAD, "a,x,nan"]), r"line 2: score is 'nan' but must be a finite number; write"),
    (lambda: tables.read_scores([HEAD, "a,x,1", "a,x,2"]), r"line 3 is \('a', 'x'\) but must come once; keep"),
    (lambda: tables.read_scores([HEAD, "a,x,1", "b,y,2"]), r"scores is 'missing' but must have one for 'a' on 'y'; leave out"),
    (lambda: tables.planted_scores(S, failures="often"), r"failures is 'often' but must be 'early', 'late' or 'none'"),
    (lambda: tables.bradley_terry(np.zeros((1, 2, 2)), prior=0.0), r"prior is 0.0 but must .* greater than 0; pass"),
    (lambda: tables.mean_score(np.array([[np.nan]])), r"scores\[0\] is nan but must be finite; leave"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(attempt, said):
    with pytest.raises(WorkbenchError, match=said) as refusal:
        attempt()
    assert str(refusal.value).endswith(".")
