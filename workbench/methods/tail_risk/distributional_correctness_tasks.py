"""Twelve small tasks and classifiers that may say "I don't know", and a problem with a known posterior; for DCS.

Stands in for the language models and benchmarks of arXiv 2510.04302. A classifier learns "I don't know" (IDK) as one
class more: the training rows on which it errs in 3-fold cross-validation are relabelled IDK, and it is fitted again.
Does not: claim that language models abstain like this.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from workbench.errors import refuse, require_finite, require_integer
from workbench.methods.tail_risk.distributional_correctness import Answers, answers
from workbench.streams import Stream

_AT_MOST = 1500


@dataclass(frozen=True, eq=False)
class Task:
    """Rows x (n, features), classes y (n,) from 0, and how many rows a classifier is fitted on."""

    name: str
    x: np.ndarray
    y: np.ndarray
    n_train: int

    @property
    def n_classes(self) -> int:
        return int(self.y.max()) + 1


def tasks() -> list[Task]:
    """The twelve: data sets that ship with scikit-learn and statsmodels."""
    from sklearn import datasets
    from statsmodels.datasets import anes96, fair

    sets = {name: getattr(datasets, f"load_{name}")(return_X_y=True) for name in ("iris", "wine", "breast_cancer")}
    x, digit = datasets.load_digits(return_X_y=True)
    pair = np.isin(digit, (3, 8))
    body, disease = datasets.load_diabetes(return_X_y=True)
    election: Any = anes96.load_pandas()
    affairs: Any = fair.load_pandas()
    wives, voters = affairs.exog.iloc[::3], election.exog

    def parts(values: Any, n: int) -> np.ndarray:
        return np.searchsorted(np.quantile(values, np.arange(1, n) / n), values, side="right")

    found = [
        ("iris", *sets["iris"], 60),
        ("wine", *sets["wine"], 60),
        ("breast cancer", *sets["breast_cancer"], 100),
        ("digits, 60 rows", x, digit, 60),
        ("digits, 500 rows", x, digit, 500),
        ("3 or 8", x[pair], digit[pair] == 8, 60),
        ("odd or even", x, digit % 2, 200),
        ("diabetes, thirds", body, parts(disease, 3), 220),
        ("diabetes, fifths", body, parts(disease, 5), 220),
        ("party", voters, election.endog, 470),
        ("education", voters.drop(columns="educ"), voters["educ"], 470),
        ("marriage", wives.drop(columns="rate_marriage"), wives["rate_marriage"], 700),
    ]
    return [
        Task(name, np.asarray(rows, dtype=float), np.unique(np.asarray(y), return_inverse=True)[1].reshape(-1), n)
        for name, rows, y, n in found
    ]


def classifiers(forest: bool = False) -> dict[str, Any]:
    """Five small classifiers by name, unfitted; a forest as the sixth if asked for."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.tree import DecisionTreeClassifier

    found: dict[str, Any] = {
        "logistic": LogisticRegression(C=0.3, max_iter=300),
        "LDA": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2),
        "naive Bayes": GaussianNB(var_smoothing=0.05),
        "15 neighbours": KNeighborsClassifier(15),
        "tree": DecisionTreeClassifier(max_depth=4, random_state=0),
    }
    return found | ({"forest": RandomForestClassifier(100, random_state=0)} if forest else {})


def cross_validation_errors(task: Task, model: Any, stream: Stream) -> np.ndarray:
    """(n_train,) training rows that `model` gets wrong in 3-fold cross-validation, in the order of its fit."""
    train, _, x = _split(task, stream)
    fold = stream.child("folds").generator().permutation(len(train)) % 3
    wrong = np.zeros(len(train), dtype=bool)
    with _quietly():
        for part in range(3):
            inside, outside = train[fold != part], train[fold == part]
            wrong[fold == part] = model.fit(x[inside], task.y[inside]).predict(x[outside]) != task.y[outside]
    return wrong


def fitted_answers(task: Task, model: Any, stream: Stream, idk_rows: Any = None) -> Answers:
    """Answers on the test rows, which nothing is fitted on (at most 1,500), with IDK as the last option.

    idk_rows: (n_train,) the training rows that are relabelled IDK, as `cross_validation_errors` gives them for the same
    stream; none by default, and IDK has no mass then.
    """
    train, test, x = _split(task, stream)
    y, last = task.y.copy(), task.n_classes
    if idk_rows is not None:
        rows = np.asarray(idk_rows)
        if rows.shape != train.shape or rows.dtype != bool:
            must = f"be {len(train)} truth values"
            raise refuse("idk_rows", f"of shape {rows.shape}", must, "pass what cross_validation_errors gives")
        y[train[rows]] = last
    with _quietly():
        model.fit(x[train], y[train])
        p = np.zeros((len(test), last + 1))
        p[:, model.classes_] = model.predict_proba(x[test])
    return answers(p / p.sum(axis=1, keepdims=True), task.y[test], idk=last)


def all_below_zero(scores: Sequence[Any], stream: Stream, n_draws: int = 1000) -> np.ndarray:
    """(1 + n_draws,) whether the mean of every row of scores (classifiers, items) is below 0: first in the sample
    itself, then in resamples of its items, the same for all rows."""
    table = require_finite("scores", scores, "leave out items without a score")
    if table.ndim != 2:
        raise refuse(
            "scores", f"of shape {table.shape}", "have axes (classifiers, items)", "stack one row a classifier"
        )
    n = table.shape[1]
    again = stream.generator().multinomial(n, np.full(n, 1 / n), size=n_draws)
    means: Any = np.vstack([np.ones(n), again]) @ table.T
    return (means < 0).all(axis=1)


def _split(task: Task, stream: Stream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, test rows, and all features scaled by the mean and SD of the training rows."""
    order = stream.generator().permutation(len(task.y))
    train, test = order[: task.n_train], order[task.n_train : task.n_train + _AT_MOST]
    centre, scale = task.x[train].mean(axis=0), task.x[train].std(axis=0)
    return train, test, (task.x - centre) / np.where(scale > 0, scale, 1.0)


@contextmanager
def _quietly() -> Iterator[None]:
    """One thread, since on small matrices threads cost more than they save; no word on classes left with one row."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Only one sample available")
        yield


def gaussian_classes(n: int, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) true posteriors and (n,) classes: three equally likely unit Gaussians in the plane, 1.2 from the origin at
    120 degrees from each other. With two classes and loadings (1, 1) nobody should ever abstain; hence three."""
    n = require_integer("n", n, low=1, cure="draw at least one item")
    rng = stream.generator()
    angle = 2 * np.pi * np.arange(3) / 3
    centres = 1.2 * np.column_stack([np.cos(angle), np.sin(angle)])
    labels = rng.integers(3, size=n)
    points = centres[labels] + rng.standard_normal((n, 2))
    return softmax(points @ centres.T, axis=1), labels
