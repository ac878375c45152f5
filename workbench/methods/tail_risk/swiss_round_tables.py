"""Tables of scores to aggregate, and the ways to aggregate them that a Swiss round is held against.

For swiss-round: Liu et al., "LLM Swiss Round" (arXiv 2512.21010).
Does: a table of twelve classifiers on fourteen tasks with every item's outcome, its item bootstrap and halves,
planted tables, tables from a CSV file; mean score, average rank, win rate, Bradley and Terry's and Elo's ratings.
Does not: play tournaments (`swiss_round`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from workbench.errors import WorkbenchError, refuse, require_finite, require_integer, require_number
from workbench.paths import datasets_folder
from workbench.streams import Stream


def mean_score(scores: np.ndarray) -> np.ndarray:
    """(M,) mean over the benchmarks of scores (M, K)."""
    return require_finite("scores", scores, "leave incomplete benchmarks out").mean(axis=1)


def average_rank(scores: np.ndarray) -> np.ndarray:
    """(M,) minus the mean rank over the benchmarks (1 is best, ties share), so that larger is better. It orders
    models as the win rate does: a rank is 1 + the number of models that are better."""
    return -rankdata(-require_finite("scores", scores, "leave incomplete benchmarks out"), axis=0).mean(axis=1)


def bradley_terry(win: np.ndarray, *, prior: float = 0.5, tol: float = 1e-10) -> np.ndarray:
    """(M,) log strengths with mean 0: P(i beats j) = s_i / (s_i + s_j), fitted to the games of win (K, M, M) by
    Hunter's minorisation (2004). prior: half wins added each way between every pair, without which an unbeaten model
    has no finite strength."""
    prior = require_number("prior", prior, low=0, open_low=True, cure="pass e.g. prior=0.5")
    wins = np.asarray(win, dtype=float).sum(axis=0) + prior
    np.fill_diagonal(wins, 0)
    games, strength = wins + wins.T, np.ones(len(wins))
    for _ in range(10_000):
        new = wins.sum(axis=1) / (games / (strength[:, None] + strength)).sum(axis=1)
        new /= np.exp(np.log(new).mean())
        if np.abs(np.log(new / strength)).max() < tol:
            return np.log(new)
        strength = new
    raise WorkbenchError("Bradley and Terry's strengths did not settle in 10,000 rounds; pass a larger prior.")


def elo(win: np.ndarray, stream: Stream, *, step: float = 16.0) -> np.ndarray:
    """(M,) Elo ratings after one pass over all games of win (K, M, M), benchmark by benchmark, each in random order.

    The games' order matters: that is Elo's own noise.
    """
    step = require_number("step", step, low=0, open_low=True, cure="pass e.g. step=16")
    rng, rating = stream.generator(), np.full(np.asarray(win).shape[1], 1500.0)
    first, second = np.triu_indices(len(rating), 1)
    for task in np.asarray(win, dtype=float):
        for game in rng.permutation(len(first)):
            a, b = first[game], second[game]
            gain = step * (task[a, b] - 1 / (1 + 10 ** ((rating[b] - rating[a]) / 400)))
            rating[a], rating[b] = rating[a] + gain, rating[b] - gain
    return rating


def places(values: np.ndarray) -> np.ndarray:
    """(..., M) places from 1, the largest value first; ties share the mean of their places."""
    return rankdata(-np.asarray(values), axis=-1)


def planted_scores(stream: Stream, *, failures: str = "early", models: int = 6, tasks: int = 5) -> np.ndarray:
    """(models, tasks) scores: strengths falling evenly from 1 to -1 with noise of SD 0.6, and the third model a
    specialist that loses the first two tasks ("early") or the last two ("late") to everyone and wins all others."""
    models = require_integer("models", models, low=3, cure="the specialist is the third")
    tasks = require_integer("tasks", tasks, low=3, cure="two failures and a win")
    if failures not in ("early", "late", "none"):
        raise refuse("failures", failures, "be 'early', 'late' or 'none'", "choose one of them")
    scores = stream.generator().normal(0, 0.6, (models, tasks)) + np.linspace(1, -1, models)[:, None]
    if failures != "none":
        scores[2] = 100.0
        scores[2, slice(0, 2) if failures == "early" else slice(-2, None)] = -100.0
    return scores


@dataclass(frozen=True)
class ItemTable:
    """correct[k] (M, n_k) bool: which items of benchmark k each model got right; benchmarks from the easiest on."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    correct: tuple[np.ndarray, ...]

    @property
    def scores(self) -> np.ndarray:
        """(M, K) accuracies."""
        return np.stack([task.mean(axis=1) for task in self.correct], axis=1)

    def resampled(self, stream: Stream) -> np.ndarray:
        """(M, K) accuracies on items drawn anew with replacement within each benchmark, the same for all models."""
        rng = stream.generator()
        picks = [rng.integers(task.shape[1], size=task.shape[1]) for task in self.correct]
        return np.stack([task[:, pick].mean(axis=1) for task, pick in zip(self.correct, picks, strict=True)], axis=1)

    def halved(self, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        """Two (M, K) tables of accuracies, each on one random half of every benchmark's items."""
        rng, halves = stream.generator(), []
        for task in self.correct:
            order = rng.permutation(task.shape[1])
            middle = len(order) // 2
            halves.append((task[:, order[:middle]].mean(axis=1), task[:, order[middle:]].mean(axis=1)))
        first, second = (np.stack(half, axis=1) for half in zip(*halves, strict=True))
        return first, second


@cache
def classifier_table() -> ItemTable:
    """The bundled table that `build_classifier_table` made: twelve classifiers on fourteen tasks, easiest first."""
    with np.load(datasets_folder() / "classifiers" / "correct.npz", allow_pickle=False) as stored:
        models, tasks, items = (stored[name] for name in ("models", "tasks", "items"))
        flat = np.unpackbits(stored["correct"], axis=1, count=int(items.sum())).astype(bool)
    parts = np.split(flat, np.cumsum(items)[:-1], axis=1)
    return ItemTable(tuple(map(str, models)), tuple(map(str, tasks)), tuple(parts))


def store(table: ItemTable, path: Path) -> None:
    """Write a table as `classifier_table` reads it: a bit for each model and item."""
    items = np.array([task.shape[1] for task in table.correct])
    flat = np.packbits(np.concatenate(table.correct, axis=1), axis=1)
    np.savez_compressed(path, models=table.models, tasks=table.tasks, items=items, correct=flat)


def build_classifier_table(only: Iterable[str] = ()) -> ItemTable:
    """Twelve scikit-learn classifiers on fourteen small tasks, every item predicted in 5-fold cross-validation (10 s).

    Seven pairs of handwritten digits; parity, "5 or more" and all ten classes on 400 digits; iris, wine, breast cancer;
    diabetes above its median. Pixels are taken as they are, the columns of the last four tables standardised. Tasks
    stand from the easiest (mean accuracy) to the hardest; `only` names some of them.
    """
    from sklearn import datasets
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    digits: Any = datasets.load_digits()
    pixels, digit = digits.data, digits.target
    some = np.random.default_rng(0).choice(len(digit), 400, replace=False)
    tasks: dict[str, tuple[Any, Any]] = {}
    for a, b in ((0, 1), (2, 7), (4, 9), (3, 5), (1, 8), (3, 8), (8, 9)):
        rows = (digit == a) | (digit == b)
        tasks[f"{a} or {b}"] = pixels[rows], digit[rows]
    tasks |= {"parity": (pixels[some], digit[some] % 2), "5 or more": (pixels[some], digit[some] >= 5)}
    tasks |= {"ten digits": (pixels[some], digit[some])}
    tables = ("iris", "wine", "breast cancer", "diabetes")
    for name in tables:
        x, y = getattr(datasets, f"load_{name.replace(' ', '_')}")(return_X_y=True)
        tasks[name] = x, y > np.median(y) if name == "diabetes" else y
    models, correct = _classifiers(), {}
    for name in only or tasks:
        x, y = tasks[name]
        right = np.zeros((len(models), len(y)), dtype=bool)
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
            for row, model in enumerate(models.values()):
                fresh: Any = make_pipeline(StandardScaler(), clone(model)) if name in tables else clone(model)
                right[row, test] = fresh.fit(x[train], y[train]).predict(x[test]) == y[test]
        correct[name] = right
    order = sorted(correct, key=lambda name: -correct[name].mean())
    return ItemTable(tuple(models), tuple(order), tuple(correct[name] for name in order))


def _classifiers() -> dict[str, Any]:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    return {
        "logistic": LogisticRegression(C=0.05, max_iter=2000),
        "ridge": RidgeClassifier(),
        "LDA": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        "QDA": QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.3),
        "naive Bayes": GaussianNB(),
        "1 neighbour": KNeighborsClassifier(1),
        "5 neighbours": KNeighborsClassifier(5),
        "25 neighbours": KNeighborsClassifier(25),
        "tree, depth 3": DecisionTreeClassifier(max_depth=3, random_state=0),
        "full tree": DecisionTreeClassifier(random_state=0),
        "extra trees": ExtraTreesClassifier(25, random_state=0),
        "SVC": SVC(),
    }


def read_scores(source: str | Path | Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """(models, benchmarks, scores (M, K)) from CSV lines with the columns model, benchmark, score and, if wanted,
    order.

    Benchmarks stand by `order`, else as they first appear. Raises WorkbenchError: a column, a number or a pair is
    missing, a pair comes twice.
    """
    lines = Path(source).read_text(encoding="utf-8").splitlines() if isinstance(source, (str, Path)) else list(source)
    rows = list(csv.DictReader(line for line in lines if line.strip()))
    for column in ("model", "benchmark", "score"):
        if not rows or rows[0].get(column) is None:
            raise refuse(
                "the columns",
                sorted(map(str, rows[0])) if rows else "none",
                f"include {column}",
                "write model,benchmark,score",
            )
    cells: dict[tuple[str, str], float] = {}
    position: dict[str, float] = {}
    for number, row in enumerate(rows, start=2):
        key = row["model"], row["benchmark"]
        if key in cells:
            raise refuse(f"line {number}", key, "come once", "keep one score for each model and benchmark")
        cells[key] = _number(f"line {number}: score", row["score"])
        place = _number(f"line {number}: order", row["order"]) if row.get("order") else float(len(position))
        position.setdefault(row["benchmark"], place)
    models, tasks = (
        tuple(dict.fromkeys(model for model, _ in cells)),
        tuple(sorted(position, key=lambda name: position[name])),
    )
    for model in models:
        for task in tasks:
            if (model, task) not in cells:
                raise refuse(
                    "scores", "missing", f"have one for {model!r} on {task!r}", "leave out the model or the benchmark"
                )
    return models, tasks, np.array([[cells[model, task] for task in tasks] for model in models])


def _number(name: str, text: str | None) -> float:
    try:
        return require_number(name, float(text or ""), cure="write a number")
    except ValueError:
        raise refuse(name, text, "be a finite number", "write e.g. 0.73") from None
