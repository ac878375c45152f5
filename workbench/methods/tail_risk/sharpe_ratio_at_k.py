"""SharpeRatio@k: what an off-policy evaluation gains for the risk of the policies that it sends to the online test.

Kiyohara, Kishimoto, Kawakami, Kobayashi, Nakata and Saito, "Towards Assessing and Benchmarking Risk-Return Tradeoff of
Off-Policy Evaluation" (ICLR 2024, arXiv 2311.18207). With J the true values of the candidate policies, J_b that of the
policy that wrote the logs and Pi_k the k candidates with the largest estimates,

    SharpeRatio@k = max(max_{Pi_k} J - J_b, 0) / std_{Pi_k} J,    k = 2, ..., number of candidates.

Does: the metric with all that it is made of, the conventional metrics, which estimator is best by each, point estimates
other than the mean, and scope-rl's result dictionaries. Does not: estimate J; see `off_policy_estimators`.

Departures
1. The text's standard deviation divides by k; the released code and the published figures divide by k - 1, and so does
   this (`ddof=1`). At k = 2 the two differ by sqrt(2).
2. Ties of the estimates change the portfolio and the paper does not say how it breaks them. The published figures take
   the larger true value first (`ties="best"`), which favours estimators with ties; "worst", "first" and "average" are
   there to see how much depends on it.
3. k candidates of equal value have no risk: the ratio is inf, or NaN where nothing is gained either. The released code
   clips to [0, 100] on demand, and so does `clip=True`; its 1e-10 on J_b is left out.
4. Regret@k is max J - max_{Pi_k} J, which gives the published 0 of toy 1; the released code takes the
   difference of two sums over k policies.
5. nMSE is normalised by the square of the largest true value (inferred).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from workbench.errors import WorkbenchError, refuse, require_choice, require_finite, require_integer, require_number

TIES = ("best", "worst", "first", "average")
_MOST_ORDERS = 10_000


class TopK(NamedTuple):
    """Portfolios of k = 1, ..., K policies; each array is (..., K), and `sharpe` is NaN at k = 1, where it has no
    meaning."""

    k: np.ndarray
    best: np.ndarray
    worst: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    last: np.ndarray
    violation_rate: np.ndarray
    sharpe: np.ndarray


class Accuracy(NamedTuple):
    """The conventional metrics, each (...)."""

    mse: np.ndarray
    nmse: np.ndarray
    rank_correlation: np.ndarray
    regret: np.ndarray


def top_k(
    values: Any,
    estimates: Any,
    behaviour_value: Any,
    *,
    ddof: int = 1,
    ties: str = "best",
    floor: bool = True,
    clip: bool = False,
    threshold: Any = None,
) -> TopK:
    """What deploying the k policies with the largest estimates brings, for every k.

    values, estimates (..., n_policies): true and estimated, larger is better; leading axes (trials, estimators)
    broadcast. behaviour_value (...): J_b. ddof 1 or 0. ties: among equal estimates the larger true value comes first
    ("best"), the smaller ("worst"), the earlier column ("first"), or all orders are averaged ("average", one table at a
    time). floor: the numerator is at least 0, as if the behaviour policy could always be kept. clip: ratios to
    [0, 100], with inf -> 100 and 0/0 -> 0. threshold (...): a policy below it violates safety; J_b by default.
    Raises WorkbenchError: NaN, shapes that do not match, fewer than two policies, too many tied orders to average.
    """
    require_choice("ties", ties, TIES)
    if ddof not in (0, 1):
        raise refuse("ddof", ddof, "be 0 or 1", "pass 1 for the published figures, 0 for the paper's text")
    values, estimates = _tables(values, estimates)
    baseline = _beside("behaviour_value", behaviour_value, values)
    limit = baseline if threshold is None else _beside("threshold", threshold, values)
    if ties == "average":
        if values.ndim > 1:
            raise refuse("values.ndim", values.ndim, 'be 1 with ties="average"', "pass one table at a time")
        ranked = values[_tied_orders(estimates)]
    else:
        order = _order(values, estimates, ties)
        ranked = np.take_along_axis(values, order, axis=-1)
    found = _portfolios(ranked, baseline, limit, ddof, floor)
    if clip:
        found = found._replace(sharpe=np.clip(np.nan_to_num(found.sharpe, posinf=100.0), 0, 100))
        found.sharpe[..., 0] = np.nan
    if ties == "average":
        found = found._replace(**{name: getattr(found, name).mean(axis=0) for name in TopK._fields[1:]})
    return found


def sharpe_ratio_at_k(values: Any, estimates: Any, behaviour_value: Any, k: int, **options: Any) -> np.ndarray:
    """SharpeRatio@k (...) at one k; `options` are those of `top_k`.

    Raises WorkbenchError: as `top_k`, true values that are all equal, and k below 2 (one policy has no spread) or above
    the number of policies.
    """
    n = np.shape(values)[-1] if np.ndim(values) else 0
    require_integer("k", k, low=2, high=n, cure=f"there are {n} policies, and one alone has no spread; pass e.g. k=2")
    _require_spread(_tables(values, estimates)[0])
    return top_k(values, estimates, behaviour_value, **options).sharpe[..., k - 1]


def accuracy(values: Any, estimates: Any, k: int = 1) -> Accuracy:
    """MSE, MSE over max J^2, Spearman's correlation, and Regret@k = max J - max of J over the top k (ties: "best").

    values, estimates (..., n_policies). Estimates that are all equal rank nothing: their correlation counts as 0.
    Raises WorkbenchError: true values that are all equal, where there is nothing to rank, and as `top_k`.
    """
    values, estimates = _tables(values, estimates)
    require_integer("k", k, low=1, high=values.shape[-1], cure="pass e.g. k=1")
    _require_spread(values)
    mse = np.mean((estimates - values) ** 2, axis=-1)
    top = np.max(values, axis=-1)
    with np.errstate(divide="ignore"):
        nmse = mse / top**2
    true, guessed = (rankdata(x, axis=-1) - (x.shape[-1] + 1) / 2 for x in (values, estimates))
    spread = np.sqrt((true**2).sum(axis=-1) * (guessed**2).sum(axis=-1))
    correlation = np.divide((true * guessed).sum(axis=-1), spread, out=np.zeros_like(spread), where=spread > 0)
    chosen = np.take_along_axis(values, _order(values, estimates, "best"), axis=-1)[..., :k]
    return Accuracy(mse, nmse, correlation, top - chosen.max(axis=-1))


def best_of(scores: Any, *, largest: bool = True) -> np.ndarray:
    """(trials, n_estimators) bool: which estimators are best in each trial; those equal to nine digits are so jointly.

    scores (trials, n_estimators). NaN is never best unless all are NaN, when all are.
    """
    scores = np.asarray(scores, dtype=np.float64) * (1 if largest else -1)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    return np.asarray(np.isclose(scores, scores.max(axis=-1, keepdims=True), rtol=1e-9, atol=1e-12))


def disagree(best: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(trials,) bool: no estimator is best by both; `best` and `other` as `best_of` gives them."""
    return np.asarray(~(best & other).any(axis=-1))


def point_estimate(returns: Any, weights: Any = None, *, kind: str = "mean", alpha: float = 0.05) -> float:
    """A policy's value in other words: the mean of its returns, its lower quantile, or the mean below (lower CVaR).

    returns (n,), weights (n,) nonnegative importance weights, self-normalised; equal by default.
    kind "mean"; "quantile": smallest return with distribution function at least alpha; "cvar": mean of the worst share
    alpha, where the return at its edge counts in part. Raises WorkbenchError: weights that are negative or all 0.
    """
    require_choice("kind", kind, ("mean", "quantile", "cvar"))
    alpha = require_number("alpha", alpha, low=0, high=1, open_low=True, cure="pass the worst share, e.g. 0.05")
    returns = require_finite("returns", returns, "leave out trajectories without a return").ravel()
    weights = (
        np.ones(len(returns)) if weights is None else require_finite("weights", weights, "look for a zero propensity")
    )
    if weights.shape != returns.shape:
        raise refuse("weights.shape", weights.shape, f"be {returns.shape}", "give one weight for each return")
    if weights.min() < 0 or not weights.sum() > 0:
        raise refuse("the smallest weight", weights.min(), "be at least 0, and one above 0", "look for a sign error")
    order = np.argsort(returns, kind="stable")
    returns, mass = returns[order], weights[order] / weights.sum()
    if kind == "mean":
        return float(mass @ returns)
    reached = np.cumsum(mass)
    if kind == "quantile":
        return float(returns[min(np.searchsorted(reached, alpha - 1e-12), len(returns) - 1)])
    taken = np.clip(alpha - (reached - mass), 0, mass)
    return float(taken @ returns / taken.sum())


def from_scope_rl(selection: Mapping[str, Any]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]:
    """({estimator: (values, estimates)}, J_b) from the dictionary of scope-rl's
    `OffPolicySelection.select_by_policy_value(..., return_true_values=True)`.

    J_b is the ratio of a policy's true value to its relative one. Raises WorkbenchError: keys that are missing, with
    the option that writes them.
    """
    tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    baseline = math.nan
    for name, found in selection.items():
        for key in ("estimated_policy_value", "true_policy_value", "true_relative_policy_value"):
            if not isinstance(found, Mapping) or key not in found:
                raise WorkbenchError(
                    f"The result of estimator {name!r} has no {key!r}; "
                    "call select_by_policy_value with return_true_values=True."
                )
        tables[name] = _tables(found["true_policy_value"], found["estimated_policy_value"])
        relative = np.asarray(found["true_relative_policy_value"], dtype=np.float64)
        at = int(np.abs(relative).argmax())
        baseline = float(tables[name][0][at] / relative[at]) if relative[at] else math.nan
    if not math.isfinite(baseline):
        raise refuse(
            "J_b from the selection", baseline, "be finite", "pass at least one policy whose true value is not 0"
        )
    return tables, baseline


def _portfolios(ranked: np.ndarray, baseline: np.ndarray, limit: np.ndarray, ddof: int, floor: bool) -> TopK:
    """`TopK` of values (..., n) in the order of their ranks; baseline and limit broadcast against (..., 1)."""
    n = ranked.shape[-1]
    k = np.arange(1, n + 1)
    best, worst = np.maximum.accumulate(ranked, axis=-1), np.minimum.accumulate(ranked, axis=-1)
    std = np.stack([np.std(ranked[..., :size], axis=-1, ddof=ddof) for size in k[1:]], axis=-1)
    std = np.where(best[..., 1:] == worst[..., 1:], 0.0, std)
    std = np.concatenate([np.full_like(std[..., :1], np.nan if ddof else 0.0), std], axis=-1)
    gain = best - baseline
    with np.errstate(divide="ignore", invalid="ignore"):
        sharpe = (np.maximum(gain, 0.0) if floor else gain) / std
    sharpe[..., 0] = np.nan
    means, violations = (np.cumsum(x, axis=-1) / k for x in (ranked, (ranked < limit).astype(float)))
    return TopK(k, best, worst, means, std, ranked, violations, sharpe)


def _order(values: np.ndarray, estimates: np.ndarray, ties: str) -> np.ndarray:
    """(..., n) columns by falling estimate."""
    second = {"best": -values, "worst": values, "first": np.zeros_like(values)}[ties]
    return np.lexsort((second, -estimates), axis=-1)


def _tied_orders(estimates: np.ndarray) -> np.ndarray:
    """(n_orders, n): every order of the columns by falling estimate."""
    order = np.argsort(-estimates, kind="stable")
    groups = [list(group) for _, group in itertools.groupby(order.tolist(), key=lambda i: estimates[i])]
    count = math.prod(math.factorial(len(group)) for group in groups)
    if count > _MOST_ORDERS:
        must = f'be at most {_MOST_ORDERS:,} with ties="average"'
        raise refuse("the number of tied orders", count, must, 'bracket it by ties="best" and ties="worst"')
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    return np.array([list(itertools.chain(*order)) for order in orders])


def _tables(values: Any, estimates: Any) -> tuple[np.ndarray, np.ndarray]:
    values = require_finite("values", values, "every policy needs its true value; drop those without")
    estimates = require_finite("estimates", estimates, "every policy needs an estimate; drop those without")
    shapes = values.shape[-1:] == estimates.shape[-1:] and values.ndim > 0
    if not shapes or values.shape[-1] < 2:
        must = f"end in as many policies as that of values, {values.shape}, and at least two"
        raise refuse("estimates.shape", estimates.shape, must, "put the policies on the last axis of both")
    try:
        values, estimates = np.broadcast_arrays(values, estimates)
    except ValueError:
        must = f"broadcast against that of values, {values.shape}"
        raise refuse("estimates.shape", estimates.shape, must, "match the leading axes of both") from None
    return values, estimates


def _require_spread(values: np.ndarray) -> None:
    if (np.ptp(values, axis=-1) == 0).any():
        cure = "policies that are worth the same have no ranking to find"
        raise refuse("the spread of values", 0.0, "be above 0", cure)


def _beside(argument: str, value: Any, values: np.ndarray) -> np.ndarray:
    """`value` (...) with an axis for k."""
    if value is None:
        raise refuse(
            argument, None, "be the true value of the policy that wrote the logs", "pass the mean logged return"
        )
    number = require_finite(argument, value, "pass the true value of the policy that wrote the logs")
    try:
        np.broadcast_shapes(number.shape, values.shape[:-1])
    except ValueError:
        must = f"broadcast against the tables' leading axes {values.shape[:-1]}"
        raise refuse(f"{argument}.shape", number.shape, must, "pass one number, or one for each table") from None
    return number[..., None]
