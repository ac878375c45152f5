"""From judges' scores to severities, for SHARP (arXiv 2601.21235).

Does: read a long table of scores, leave out prompts that were not fully judged, join several judges. Does not: judge.

1. Judges are joined by the mean on an exponential scale, log(mean_j exp(t s_j)) / t (inferred; that a log-sum-exp is
   used is known from a third party). The mean, not the sum: else the result would depend on how many judges there are.
2. A prompt with a missing score is left out for all models, or refused; a judge who refuses is never a 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import refuse, require_choice, require_number
from workbench.methods.tail_risk.sharp import check_severities

_COLUMNS = ("model", "prompt", "dimension", "judge", "score")


def join_judges(scores: Any, temperature: float = 5.0) -> np.ndarray:
    """log(mean_j exp(t s_j)) / t over the last axis of scores (..., judges) in [0, 1].

    t = 0 is the mean over judges, t = inf their largest score.
    """
    s = check_severities(scores)
    top = s.max(axis=-1)
    if temperature == np.inf:
        return top
    t = require_number("temperature", temperature, low=0, cure="pass e.g. temperature=5.0")
    if t == 0:
        return s.mean(axis=-1)
    mean = np.exp(t * (s - top[..., None])).mean(axis=-1)
    return np.clip(top + np.log(mean) / t, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Scores:
    """Judges' scores in order: values (models, prompts, dimensions, judges), with the names along each axis.

    dropped: prompts that are left out for all models because some score of theirs was missing.
    """

    models: tuple[str, ...]
    prompts: tuple[str, ...]
    dimensions: tuple[str, ...]
    judges: tuple[str, ...]
    values: np.ndarray
    dropped: tuple[str, ...]


def read_scores(table: Any, *, missing: str = "refuse") -> Scores:
    """A long table with columns model, prompt, dimension, judge, score (a pandas DataFrame, or a dict of columns).

    missing: "refuse", or "drop" a prompt for all models where one score of it is absent or NaN; never 0.
    Raises WorkbenchError: a column lacks, a score outside [0, 1], one score given twice, or no prompt left.
    """
    require_choice("missing", missing, ("refuse", "drop"))
    lacking = [name for name in _COLUMNS if name not in table]
    if lacking:
        must = f"have the columns {', '.join(_COLUMNS)}"
        raise refuse("table", f"without {', '.join(lacking)}", must, "rename yours")
    columns = [np.asarray(table[name]).astype(str) for name in _COLUMNS[:-1]]
    try:
        score = np.asarray(table["score"], dtype=np.float64)
    except (TypeError, ValueError):
        raise refuse("table['score']", "not numeric", "hold numbers", "convert labels to [0, 1]") from None
    lengths = {len(column) for column in (*columns, score)}
    if len(lengths) > 1 or lengths == {0}:
        raise refuse("the columns' lengths", sorted(lengths), "be equal, and not 0", "pass whole columns")
    known = score[~np.isnan(score)]
    if known.size:
        check_severities(known)
    names, places = zip(*(np.unique(column, return_inverse=True) for column in columns), strict=True)
    shape = tuple(len(name) for name in names)
    cell: Any = np.ravel_multi_index(places, shape)
    if len(np.unique(cell)) < len(cell):
        must = "hold one row for each model, prompt, dimension and judge"
        raise refuse("table", "with a score given twice", must, "average repeats first")
    values = np.full(shape, np.nan)
    values.ravel()[cell] = score
    gaps: Any = np.isnan(values).any(axis=(0, 2, 3))
    if gaps.any() and missing == "refuse":
        first = names[1][gaps][0]
        told = f"missing for {gaps.sum()} of {shape[1]} prompts, the first {str(first)!r}"
        cure = "pass missing='drop' to leave these prompts out for all models"
        raise refuse("scores", told, "be complete", cure)
    if gaps.all():
        raise refuse("prompts with all scores", 0, "be at least one", "see which model, dimension or judge is absent")
    models, prompts, dimensions, judges = (tuple(name.tolist()) for name in names)
    kept = tuple(name for name, gap in zip(prompts, gaps, strict=True) if not gap)
    dropped = tuple(name for name, gap in zip(prompts, gaps, strict=True) if gap)
    return Scores(models, kept, dimensions, judges, values[:, ~gaps], dropped)
