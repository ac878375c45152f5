"""Is a chain fitted on an agent's traces to be believed? Its order, its survival curve, and its score at a fixed step.

For safety-drift (arXiv 2603.27148), whose own check compares predictions of order 1, 2 and 3 and adds a chi-square.
Does: that comparison, a chi-square test of order 2 against 1 with its proper degrees of freedom, Kaplan and Meier's
curve with Greenwood's variance, and landmark scores.
Does not: fit monitors (`safety_drift`).

Departures
1. The released chi-square counts cells for its degrees of freedom and skips contexts with fewer than 5 visits, yet
   takes the expected shares from all visits. Here, for each state j in the middle, the table (state before, state
   after) is tested for independence: X^2 = sum (n_ijk - e_ijk)^2 / e_ijk with e_ijk = n_ij n_jk / n_j over the
   contexts kept, df = (states before - 1)(states after - 1) over those that occur. (The likelihood ratio rejects true
   chains of 60 states too often: most of their cells are thin.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

from workbench.errors import refuse, require_finite, require_integer, require_number


def _windows(paths: np.ndarray, width: int) -> np.ndarray:
    """(m, width) every run of `width` states of paths (n, L) padded with -1."""
    if np.asarray(paths).shape[1] < width:
        return np.zeros((0, width), dtype=int)
    views = np.lib.stride_tricks.sliding_window_view(np.asarray(paths), width, axis=1).reshape(-1, width)
    return views[(views >= 0).all(axis=1)]


class OrderTest(NamedTuple):
    """statistic X^2, its degrees of freedom, and p_value = P(chi^2_df >= X^2)."""

    statistic: float
    df: int
    p_value: float


def order_test(paths: np.ndarray, n_states: int, *, least: int = 5) -> OrderTest:
    """Is the next state independent of the one before the last, given the last? paths (n, L), padded with -1.

    Contexts (before, last) with fewer than `least` visits are left out. Raises WorkbenchError if nothing is left to
    compare.
    """
    n_states = require_integer("n_states", n_states, low=2, cure="a chain has two states or more")
    before, last, after = _windows(paths, 3).T
    table = np.zeros((n_states,) * 3)
    np.add.at(table, (last, before, after), 1)
    statistic, df = 0.0, 0
    for counts in table:
        kept = counts[counts.sum(axis=1) >= least]
        kept = kept[:, kept.sum(axis=0) > 0]
        if min(kept.shape) < 2:
            continue
        expected = kept.sum(axis=1, keepdims=True) * kept.sum(axis=0) / kept.sum()
        statistic += float(((kept - expected) ** 2 / expected).sum())
        df += (kept.shape[0] - 1) * (kept.shape[1] - 1)
    if df == 0:
        must = f"visit two contexts of one state at least {least} times each"
        raise refuse("paths", f"{len(last)} runs of three states", must, "gather more traces")
    return OrderTest(statistic, df, float(chi2.sf(statistic, df)))


def order_scores(
    train: np.ndarray, test: np.ndarray, n_states: int, order: int, *, prior: float = 0.2
) -> tuple[float, float]:
    """(accuracy, mean log-likelihood) on test paths of the next state given the last `order` ones, counts + prior
    from train.

    Scored on the steps that have three states before them, so that orders 1 to 3 answer the same questions.
    """
    order = require_integer("order", order, low=1, high=3, cure="compare orders 1 to 3")
    prior = require_number("prior", prior, low=0, open_low=True, cure="an unseen context needs one, e.g. prior=0.2")
    place = n_states ** np.arange(order)[::-1]
    table = np.full((n_states**order, n_states), prior)
    runs = _windows(train, order + 1)
    np.add.at(table, (runs[:, :-1] @ place, runs[:, -1]), 1)
    asked = _windows(test, 4)
    if not len(asked):
        raise refuse("test", "no path of four states", "hold one", "take longer traces")
    law, happened = table[asked[:, 3 - order : 3] @ place], asked[:, 3]
    law = law / law.sum(axis=1, keepdims=True)
    return float((law.argmax(axis=1) == happened).mean()), float(np.log(law[np.arange(len(law)), happened]).mean())


def kaplan_meier(steps: np.ndarray, violated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(survival, standard error), (longest + 1,) each: S(t) = prod_{s <= t} (1 - d_s / n_s), and Greenwood's standard
    error.

    steps (n,) until the violation or until the trace stopped; a trace that stopped at t counts as at risk at t.
    """
    steps, violated = require_finite("steps", steps, "count steps").astype(int), np.asarray(violated, dtype=bool)
    if steps.min() < 0 or steps.shape != violated.shape:
        raise refuse("steps", steps.tolist(), "be counts of at least 0, one a trace", "count each trace's steps")
    time = np.arange(steps.max() + 1)
    died = np.bincount(steps[violated], minlength=len(time))
    at_risk = (steps >= time[:, None]).sum(axis=1)
    survival = np.cumprod(1 - died / at_risk)
    left = np.maximum(at_risk - died, 1)
    return survival, survival * np.sqrt(np.cumsum(died / (at_risk * left)))


def landmark(
    scores: np.ndarray, steps: np.ndarray, violated: np.ndarray, at: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, labels) of the traces still going after step `at`: does one violate within the next `horizon` steps?

    scores (n, L) after each step. A trace that stopped earlier than at + horizon without violating is left out: its
    answer is not known. Every trace is asked at one and the same step, so that long traces get no more chances to
    alarm.
    """
    at = require_integer("at", at, low=1, high=scores.shape[1], cure="pass a step within the traces")
    horizon = require_integer("horizon", horizon, low=1, cure="pass a horizon of one step or more")
    going, hit = (steps > at) | ((steps == at) & ~violated), violated & (steps <= at + horizon)
    known = going & (hit | (steps >= at + horizon))
    return scores[known, at - 1], hit[known]
