"""Tasks for DCS: of the sizes told, IDK learnt from errors and no test row seen, a posterior that is the true one."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import distributional_correctness as dc
from workbench.methods.tail_risk import distributional_correctness_tasks as dt
from workbench.plots.correctness_maps import SCORES, simplex_figure, simplex_score

TASKS = {task.name: task for task in dt.tasks()}


def test_there_are_twelve_tasks_with_classes_from_nought():
    assert len(TASKS) == 12
    for task in TASKS.values():
        assert np.isfinite(task.x).all() and len(task.x) == len(task.y) > task.n_train
        assert set(task.y) == set(range(task.n_classes))
    thirds, fifths = (np.bincount(TASKS[f"diabetes, {name}"].y) for name in ("thirds", "fifths"))
    assert np.ptp(thirds) <= 6 and np.ptp(fifths) <= 6 and len(TASKS["marriage"].y) == 2122


def test_idk_is_learnt_from_errors():
    task, model, stream = TASKS["digits, 60 rows"], dt.classifiers()["logistic"], Stream.of(0, "x")
    wrong = dt.cross_validation_errors(task, model, stream)
    shuffled = np.random.default_rng(0).permutation(wrong)
    plain, learnt, at_random = (dt.fitted_answers(task, model, stream, rows) for rows in (None, wrong, shuffled))
    assert len(plain) == len(learnt) == 1500 and plain.p_idk.max() == 0 and (plain.right == learnt.right).all()
    assert learnt.p_idk.mean() > 0.05
    gains = [dc.placement_gain(found)[0] for found in (plain, at_random, learnt)]
    assert gains[0] == pytest.approx(0) and gains[2] > 1.3 * gains[1] > 0


def test_test_rows_are_never_fitted_on(monkeypatch):
    class Recorder:
        seen: list[np.ndarray]

        def fit(self, x, y):
            self.seen.append(x)
            self.classes_ = np.unique(y)
            return self

        def predict(self, x):
            return np.zeros(len(x), dtype=int)

        def predict_proba(self, x):
            self.tested = x
            return np.full((len(x), len(self.classes_)), 1 / len(self.classes_))

    model = Recorder()
    model.seen = []
    task = TASKS["wine"]
    wrong = dt.cross_validation_errors(task, model, Stream.of(1, "x"))
    found = dt.fitted_answers(task, model, Stream.of(1, "x"), wrong)
    assert [len(x) for x in model.seen] == [40, 40, 40, 60] and len(found) == 118
    fitted = {row.tobytes() for row in np.concatenate(model.seen)}
    assert not fitted & {row.tobytes() for row in model.tested}
    assert model.seen[-1].mean(axis=0) == pytest.approx(0, abs=1e-12)
    assert found.p_idk == pytest.approx(1 / len(model.classes_)), "class 0 was right, all others are IDK now"


def test_the_sample_comes_first_and_all_classifiers_must_be_below():
    rng = np.random.default_rng(4)
    low, high = rng.normal(-0.2, 1, 400), rng.normal(0.02, 1, 400)
    found = dt.all_below_zero([low, low - 0.1], Stream.of(4, "x"))
    assert found.shape == (1001,) and found[0] and found[1:].mean() > 0.99
    both = dt.all_below_zero([low, high - high.mean() + 1e-9], Stream.of(4, "x"))
    assert not both[0] and both[1:].mean() == pytest.approx(0.5, abs=0.1)


def test_the_posterior_of_the_gaussians_is_the_true_one():
    p, y = dt.gaussian_classes(200_000, Stream.of(3, "x"))
    assert p.sum(axis=1) == pytest.approx(1)
    for k in range(3):
        for low in (0.1, 0.4, 0.7):
            here = (p[:, k] >= low) & (p[:, k] < low + 0.1)
            off = (y[here] == k).mean() - p[here, k].mean()
            assert abs(off) < 5 * 0.5 / np.sqrt(here.sum())


def test_maps_of_scores_have_the_corners_of_their_definitions():
    corner = np.eye(3)
    wanted = {"DCS, product form": [2, -1, 0], "DCS, linear form": [2, -1, 0], "ternary": [2, -1, 0]}
    for score in SCORES:
        values = simplex_score(score, *corner, l_right=2, l_wrong=1)
        assert values.tolist() == wanted.get(score, [0, -2, -0.5])
    right = simplex_figure(1, 1, "DCS, product form").axes[1]
    dots = [line.get_xdata()[0] for line in right.lines if len(line.get_xdata()) == 1]
    assert set(dots) <= {0.0, 1.0} and len(dots) == 5, "never in between"


def test_bad_input_is_refused():
    with pytest.raises(WorkbenchError, match="must be 60 truth values"):
        dt.fitted_answers(TASKS["iris"], dt.classifiers()["tree"], Stream.of(0, "x"), [True])
    with pytest.raises(WorkbenchError, match="axes"):
        dt.all_below_zero([0.1, 0.2], Stream.of(0, "x"))
    with pytest.raises(WorkbenchError, match="n is 0"):
        dt.gaussian_classes(0, Stream.of(0, "x"))
    with pytest.raises(WorkbenchError, match="score is 'F1'"):
        simplex_score("F1", *np.eye(3))
