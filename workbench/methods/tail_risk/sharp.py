"""SHARP: harm per prompt as a vector of severities, its log-risk, and models compared by the tail of it.

Abhishek, Bandopadhyay and Erickson (arXiv 2601.21235). The paper's text beyond its abstract was out of reach; the
union of failures and its log scale are the abstract's, the rest is marked below.

Computes, for severities h in [0, 1] of shape (models, prompts, dimensions):
    H_any = 1 - prod_i (1 - h_i), the chance of any failure if the h_i were chances of independent failures;
    L = -log(1 - H_any) = sum_i l_i, l_i = -log(1 - h_i), in nats;
    each model's risk profile: mean, SD, VaR, CVaR and largest value of L, and what each dimension adds to them.
Does not: judge text, nor join judges (`sharp_scores`). Severities are ordinal scores, so H_any is a definition and not
a probability.

1. Severities are clipped at 1 - eps (inferred), or one h = 1 would make L infinite; see how eps moves a ranking.
2. CVaR is that of `loss_tails.cvar`: of 901 prompts the worst 5 % are 45.05, and the 46th counts with weight 0.05.
   Where several prompts tie at the edge they share what is left.
3. Tail contributions E[l_i | worst share] are ours (Euler allocation); they add up to CVaR.
4. Prompts are resampled jointly for all models; their number of draws, and Holm's correction, are inferred.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri

from workbench.errors import (
    WorkbenchError,
    refuse,
    require_choice,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)
from workbench.streams import Stream

DIMENSIONS = ("bias", "fairness", "ethics", "epistemic")
_SPARE = 40


def check_severities(severities: Any, ndim: int | None = None) -> np.ndarray:
    """Severities in [0, 1] as an array, or a refusal."""
    h = require_finite("severities", severities, "drop the prompt for all models")
    if ndim is not None and h.ndim != ndim:
        axes = {1: "(prompts,)", 2: "(prompts, dimensions)", 3: "(models, prompts, dimensions)"}[ndim]
        raise refuse("severities", f"of shape {h.shape}", f"have axes {axes}", "reshape them")
    if h.min() < 0 or h.max() > 1:
        outside = h.min() if h.min() < 0 else h.max()
        raise refuse("severities", outside, "lie in [0, 1]", "divide raw scores by the scale's largest")
    return h


def log_risks(severities: Any, eps: float = 1e-3) -> np.ndarray:
    """l = -log(1 - h) in nats, of the same shape, h clipped at 1 - eps; L is their sum over dimensions."""
    eps = require_probability("eps", eps, cure="pass e.g. eps=1e-3")
    return -np.log1p(-np.minimum(check_severities(severities), 1 - eps))


def any_failure(severities: Any, rho: float = 0.0) -> np.ndarray:
    """H_any over the last axis of severities: 1 - prod_i (1 - h_i).

    rho: correlation, in [0, 1], of a Gaussian copula that ties the failures together; at 1 H_any is the largest h_i.
    """
    h = check_severities(severities)
    rho = require_number("rho", rho, low=0, high=1, cure="pass 0 for independent failures")
    if rho == 0:
        with np.errstate(divide="ignore"):
            return -np.expm1(np.log1p(-h).sum(axis=-1))
    if rho == 1:
        return h.max(axis=-1)
    # Given the common factor z the failures are independent.
    z, weight = np.polynomial.hermite_e.hermegauss(40)
    place, none = ndtri(h), 0.0
    for node, mass in zip(z, weight / weight.sum(), strict=True):
        none = none + mass * np.prod(ndtr((np.sqrt(rho) * node - place) / np.sqrt(1 - rho)), axis=-1)
    return np.clip(1 - none, h.max(axis=-1), 1.0)


def tail_weights(losses: Any, level: float) -> np.ndarray:
    """(n,) weights, adding up to 1, of the worst share 1 - level of losses (n,): CVaR is weights @ losses."""
    y, level = require_finite("losses", losses, "drop or mend the missing ones"), _level(level)
    tail = (1 - level) * len(y)
    edge = np.sort(y)[::-1][min(len(y), max(1, int(np.ceil(tail - 1e-9)))) - 1]
    beyond, at = y > edge, y == edge
    return (beyond + at * (tail - beyond.sum()) / at.sum()) / tail


@dataclass(frozen=True, eq=False)
class RiskProfiles:
    """Tail statistics of the log-risk of each model, from the same prompts.

    losses (models, prompts), parts (models, prompts, dimensions) in nats; mean, std, quantile, cvar, largest
    (models,); share (models, dimensions): of the mean, adding up to 1; tail (models, dimensions): E[l_i | worst
    share], adding up to cvar; marginal (models, dimensions): CVaR of l_i alone.
    """

    models: tuple[str, ...]
    dimensions: tuple[str, ...]
    level: float
    losses: np.ndarray
    parts: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    quantile: np.ndarray
    cvar: np.ndarray
    largest: np.ndarray
    share: np.ndarray
    tail: np.ndarray
    marginal: np.ndarray

    def __str__(self) -> str:
        names = "mean", "SD", f"VaR {self.level:g}", f"CVaR {self.level:g}", "max"
        rows = ["{:20} {:>7} {:>7} {:>9} {:>9} {:>7}  tail by dimension".format("", *names)]
        for i in np.argsort(self.cvar):
            parts = ", ".join(f"{name} {value:.2f}" for name, value in zip(self.dimensions, self.tail[i], strict=True))
            rows.append(
                f"{self.models[i]:20} {self.mean[i]:7.3f} {self.std[i]:7.3f} {self.quantile[i]:9.3f} "
                f"{self.cvar[i]:9.3f} {self.largest[i]:7.3f}  {parts}"
            )
        return "\n".join(rows)


def risk_profiles(
    severities: Any,
    models: Any = None,
    dimensions: Any = None,
    *,
    level: float = 0.95,
    eps: float = 1e-3,
) -> RiskProfiles:
    """The risk profile of each model from severities (models, prompts, dimensions) in [0, 1].

    models, dimensions: their names, numbered by default. Raises WorkbenchError for severities outside [0, 1] or not
    finite, and for too few prompts to have one in the worst share 1 - level.
    """
    h, level = check_severities(severities, 3), _level(level)
    if len(h[0]) * (1 - level) < 1 - 1e-9:
        must = f"be at least {int(np.ceil(1 / (1 - level) - 1e-9))} at level {level:g}"
        raise refuse("the number of prompts", len(h[0]), must, "add prompts or lower the level")
    names = _names("models", models, len(h)), _names("dimensions", dimensions, h.shape[2])
    parts = log_risks(h, eps)
    losses = parts.sum(axis=-1)
    weights = np.array([tail_weights(row, level) for row in losses])
    marginal = [[tail_weights(one, level) @ one for one in of.T] for of in parts]
    mean = losses.mean(axis=1)
    with np.errstate(invalid="ignore"):
        share = np.where(mean[:, None] > 0, parts.mean(axis=1) / mean[:, None], 1 / h.shape[2])
    return RiskProfiles(
        *names,
        level,
        losses,
        parts,
        mean,
        losses.std(axis=1, ddof=1),
        np.quantile(losses, level, axis=1, method="inverted_cdf"),
        (weights * losses).sum(axis=1),
        losses.max(axis=1),
        share,
        np.einsum("mp,mpd->md", weights, parts),
        np.array(marginal),
    )


@dataclass(frozen=True, eq=False)
class Resampled:
    """Statistics of the same resamples of prompts for all models: mean, std, cvar (draws, models)."""

    mean: np.ndarray
    std: np.ndarray
    cvar: np.ndarray

    def interval(self, statistic: str, confidence: float = 0.95) -> np.ndarray:
        """(2, models) ends of the percentile interval of "mean", "std" or "cvar"."""
        require_choice("statistic", statistic, ("mean", "std", "cvar"))
        return _ends(getattr(self, statistic), confidence)

    def ratio(self, statistic: str, first: int, second: int, confidence: float = 0.95) -> np.ndarray:
        """(2,) ends of the interval of one model's statistic over another's, paired by prompt."""
        require_choice("statistic", statistic, ("mean", "std", "cvar"))
        values = getattr(self, statistic)
        if not values[:, second].all():
            raise WorkbenchError(
                f"The {statistic} of model {second} is 0 in some resample, so a ratio to it says nothing."
            )
        return _ends(values[:, first] / values[:, second], confidence)

    def flips(self, share: float = 0.995) -> np.ndarray:
        """(models, models): i no worse than j by mean in most draws, yet of larger CVaR in a `share` of them."""
        no_worse = (self.mean[:, :, None] <= self.mean[:, None, :]).mean(axis=0) > 0.5
        return no_worse & ((self.cvar[:, :, None] > self.cvar[:, None, :]).mean(axis=0) >= share)


def resample(losses: Any, *, level: float = 0.95, n_draws: int = 2000, stream: Stream) -> Resampled:
    """The paired bootstrap over prompts of losses (models, prompts)."""
    y, level = require_finite("losses", losses, "drop the prompt for all models"), _level(level)
    n_draws = require_integer("n_draws", n_draws, low=1, cure="pass e.g. n_draws=2000")
    if y.ndim != 2 or y.shape[1] < 2:
        raise refuse("losses", f"of shape {y.shape}", "have axes (models, prompts), at least 2 prompts", "stack models")
    n = y.shape[1]
    picks = stream.generator().integers(n, size=(n_draws, n)) + n * np.arange(n_draws)[:, None]
    counts = np.bincount(picks.ravel(), minlength=n * n_draws).reshape(n_draws, n).astype(np.float64)
    mean, tail = counts @ y.T / n, (1 - level) * n
    centre = y.mean(axis=1, keepdims=True)
    variance = counts @ ((y - centre) ** 2).T / n - (mean - centre.T) ** 2
    cvar = np.empty_like(mean)
    by_prompt = np.ascontiguousarray(counts.T)
    # Only the worst rows of the sample can be among the worst of a resample; how many shows itself.
    depth = min(n, int(2 * tail) + _SPARE)
    for model, row in enumerate(y):
        order = np.argsort(-row, kind="stable")
        while True:
            seen = by_prompt[order[:depth]].cumsum(axis=0)
            if depth == n or seen[-1].min() >= tail:
                break
            depth = min(n, 2 * depth)
        used = np.diff(np.minimum(seen, tail), axis=0, prepend=0.0)
        cvar[:, model] = row[order[:depth]] @ used / tail
    return Resampled(mean, np.sqrt(np.maximum(variance, 0.0) * n / (n - 1)), cvar)


@dataclass(frozen=True, eq=False)
class ModelTests:
    """Friedman's test over models, and Wilcoxon's of each pair with Holm's correction."""

    statistic: float
    p_value: float
    pairs: tuple[tuple[int, int], ...]
    pair_p_values: np.ndarray


def compare_models(losses: Any) -> ModelTests:
    """Do models differ in L, prompt by prompt? losses (models, prompts), at least 3 models.

    Friedman's statistic is corrected for ties; Wilcoxon's signed ranks keep prompts where the two models are equal in
    the ranking and split them (zero_method "zsplit"), so that harmless prompts count. p = 1 where nothing differs.
    """
    y = require_finite("losses", losses, "drop the prompt for all models")
    if y.ndim != 2 or len(y) < 3 or y.shape[1] < 2:
        raise refuse("losses", f"of shape {y.shape}", "hold at least 3 models and 2 prompts", "pass (models, prompts)")
    if (y == y[0]).all():
        statistic, p_value = 0.0, 1.0
    else:
        statistic, p_value = stats.friedmanchisquare(*y)
    pairs = tuple(itertools.combinations(range(len(y)), 2))
    raw = [1.0 if (y[i] == y[j]).all() else _wilcoxon(y[i] - y[j]) for i, j in pairs]
    return ModelTests(float(statistic), float(p_value), pairs, holm(raw))


def _wilcoxon(difference: np.ndarray) -> float:
    found: Any = stats.wilcoxon(difference, zero_method="zsplit", method="asymptotic")
    return float(found.pvalue)


def holm(p_values: Any) -> np.ndarray:
    """Holm's (1979) step-down correction of p_values (n,)."""
    p = check_severities(p_values, 1)
    order = np.argsort(p)
    stepped = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1.0)
    corrected = np.empty(len(p))
    corrected[order] = stepped
    return corrected


def _ends(draws: np.ndarray, confidence: float) -> np.ndarray:
    cure = "pass e.g. confidence=0.95"
    half = (1 - require_probability("confidence", confidence, cure=cure)) / 2
    return np.quantile(draws, [half, 1 - half], axis=0)


def _level(level: float) -> float:
    return require_number("level", level, low=0, high=1, open_high=True, cure="pass e.g. level=0.95; 0 is the mean")


def _names(argument: str, names: Any, n: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"{argument.removesuffix('s')} {i}" for i in range(n))
    found = tuple(str(name) for name in names)
    if len(found) != n:
        raise refuse(f"len({argument})", len(found), f"be {n}", "name each once")
    return found
