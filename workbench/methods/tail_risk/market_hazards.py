"""Daily S&P 500 returns as a timeline with outcomes: real prefixes, real later outcomes, exact model risks.

The state of a day is the decile bin of the volatility known before it, an exponentially weighted mean of squared
returns; the token of the day is the outcome "fall" if the return is at most -`drop` %, else the next day's bin. The first half of
the days gives the bins' edges and, by counts with smoothing, the model; every fifth day of the second half is a prefix.
"Fifth down day in a row" is an announced outcome of the same returns: it can follow on four down days alone.

Does: the two models, the cohort, and how well risks rank it. Does not: predict markets; the model is a stand-in for a generative timeline whose
risks are known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from workbench.errors import WorkbenchError, refuse, require_finite, require_integer, require_number
from workbench.methods.tail_risk.hazard_chains import HazardChain

_BINS = 10
_DECAY = 0.94
_EVERY = 5


def sp500_returns() -> np.ndarray:
    """(5030,) daily returns of the S&P 500 in percent, 1999 to 2018, from the package `arch`."""
    try:
        from arch.data import sp500
    except ImportError:
        raise WorkbenchError(
            "The S&P 500 data come with the package 'arch', which is not installed; pip install arch."
        ) from None
    close = sp500.load()["Adj Close"].to_numpy(dtype=np.float64)
    return 100 * np.diff(close) / close[:-1]


@dataclass(frozen=True)
class Market:
    """A model of falls and the cohort it is tried on.

    chain    hazards by volatility bin, from the first half
    starts   (prefixes,) the bin of each prefix, from the second half
    happened (prefixes,) whether a fall came within the horizon after it
    """

    chain: HazardChain
    starts: np.ndarray
    happened: np.ndarray


def market_of_falls(returns: np.ndarray, drop: float = 3.0, horizon: int = 10) -> Market:
    """returns (days,) in percent; the outcome is a day of at most -`drop` %, within `horizon` days of the prefix.

    Counts of the first half, plus 0.2 for the outcome and 0.01 for each bin. Prefixes whose horizon passes the last day
    are left out.
    """
    returns = require_finite("returns", returns, "pass daily returns in percent")
    drop = require_number("drop", drop, low=0, open_low=True, cure="pass percent, e.g. drop=3.0")
    horizon = require_integer("horizon", horizon, low=1, cure="pass a number of days")
    half = len(returns) // 2
    bins = _volatility_bins(returns, half)
    fell = returns <= -drop
    counts = np.full((_BINS, _BINS + 1), 0.01)
    counts[:, 0] = 0.2
    tokens = np.where(fell[: half - 1], 0, 1 + bins[1:half])
    np.add.at(counts, (bins[: half - 1], tokens), 1)
    law = counts / counts.sum(axis=1, keepdims=True)
    prefixes = np.arange(half, len(returns) - horizon, _EVERY)
    happened = np.array([fell[day : day + horizon].any() for day in prefixes])
    return Market(HazardChain(law[:, 0], law[:, 1:]), bins[prefixes], happened)


def _volatility_bins(returns: np.ndarray, half: int) -> np.ndarray:
    """(days,) the bin of the volatility known before each day; edges are deciles of the first half."""
    if half < 10 * _BINS:
        raise WorkbenchError(f"returns has {len(returns)} days but must have at least {20 * _BINS}; pass daily data.")
    variance = np.empty(len(returns))
    variance[0] = np.mean(returns[:20] ** 2)  # forgotten within weeks, and in the half that is fitted
    for day in range(1, len(returns)):
        variance[day] = _DECAY * variance[day - 1] + (1 - _DECAY) * returns[day - 1] ** 2
    edges = np.quantile(variance[:half], np.arange(1, _BINS) / _BINS)
    return np.searchsorted(edges, variance, side="right")


def streak_chain(returns: np.ndarray, length: int = 5) -> HazardChain:
    """The outcome "`length` down days in a row": state k is a run of k down days, k < length, by counts of the first half.

    The hazard is 0 in all states but the last: an outcome that is always announced.
    """
    returns = require_finite("returns", returns, "pass daily returns in percent")
    length = require_integer("length", length, low=2, cure="a streak has at least two days")
    down = returns[: len(returns) // 2] < 0
    falls, days, run = np.zeros(length), np.zeros(length), 0
    for again in down:
        days[run] += 1
        falls[run] += again
        run = (run + 1) % length if again else 0
    if not days.all():
        raise WorkbenchError(f"returns never show {length - 1} down days in a row; pass a smaller length or more data.")
    share = falls / days
    onward = np.zeros((length, length))
    onward[:, 0] = 1 - share
    onward[np.arange(length - 1), np.arange(1, length)] = share[:-1]
    return HazardChain(np.append(np.zeros(length - 1), share[-1]), onward)


def auc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(...,) area under the ROC curve over the last axis, ties counted half: (sum of the positives' ranks - P (P + 1) / 2) /
    (P N), with P positives and N negatives. scores and labels (bool) may be broadcast against each other."""
    scores, positive = np.broadcast_arrays(
        require_finite("scores", scores, "rank numbers"), np.asarray(labels, dtype=bool)
    )
    positives = positive.sum(axis=-1)
    pairs = positives * (positive.shape[-1] - positives)
    if (pairs == 0).any():
        raise refuse(
            "labels", "all alike", "hold positives and negatives", "take a larger cohort or a likelier outcome"
        )
    return ((rankdata(scores, axis=-1) * positive).sum(axis=-1) - positives * (positives + 1) / 2) / pairs
