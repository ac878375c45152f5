"""Tails of a bounded loss: CVaR, expectile and quantile with intervals, from independent draws.

For expectile-var (arXiv 2507.13391) and the risk profiles of the workbench; Rockafellar and Uryasev (2000) for CVaR, Owen
(2001) for empirical likelihood, Scheffe and Tukey (1945) for quantiles.

Computes for losses L in [0, 1], as the problem asks:
    cvar       min_c c + E(L - c)+ / (1 - level), the mean of the worst share 1 - level;
    expectile  the e with level E(L - e)+ = (1 - level) E(e - L)+;
    quantile   the smallest c with P(L <= c) >= level.
Does: the workbench's estimator `LossTail`; the functionals of one sample with their intervals.
Does not: losses without known bounds; dependent draws; see `expectile_var` for series of returns.

The interval of CVaR and expectile is that of empirical likelihood, the set of values whose estimating equation
E g(L, value) = 0 is not rejected by -2 log R = 2 sum log(1 + lambda g_i), chi-squared(1). Two things make it honest where
few losses carry the tail:
1. Half an observation at the worst loss, 1, joins the sample for the upper end, and half a one at 0 for the lower. Without
   it no interval reaches beyond the losses that were seen; on 0/1 losses it is the continuity correction of a proportion.
2. Fewer than ten effective losses beyond the estimate, (sum y)^2 / sum y^2 of their excesses, and `reliable` is False.
For CVaR the quantile c is held at its estimate; the minimum makes its error one of second order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from workbench.errors import Unsuitable, refuse, require_choice, require_finite, require_probability
from workbench.estimate import Estimate
from workbench.methods.tail_risk.expectile_var import expectile
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.problems.losses import FUNCTIONALS
from workbench.run import Batch, State
from workbench.streams import Stream

_FEW = 10.0
_EXTRA = 0.5
_DUST = 1e-12  # losses nearer than this are one loss


def check_losses(losses: Any) -> np.ndarray:
    """(n,) losses in [0, 1], sorted, or a refusal."""
    y = np.sort(require_finite("losses", losses, "drop or mend the missing ones").ravel())
    if y[0] < 0 or y[-1] > 1:
        outside = y[0] if y[0] < 0 else y[-1]
        raise refuse("losses", outside, "lie in [0, 1]", "divide by the largest loss that is possible")
    return y


def cvar(losses: Any, level: float) -> float:
    """The mean of the worst share 1 - level of losses (n,), the observation at the edge counted in part."""
    y = np.sort(require_finite("losses", losses, "drop or mend the missing ones").ravel())
    level = _level(level)
    place = _quantile(y, level)
    return float(place + np.maximum(y - place, 0).mean() / (1 - level))


def _level(level: float) -> float:
    return require_probability("level", level, cure="pass e.g. level=0.95")


def _quantile(y: np.ndarray, level: float) -> float:
    """The smallest c with a share of at least `level` at or below, of sorted y."""
    return float(y[min(len(y), max(1, int(np.ceil(level * len(y) - 1e-9)))) - 1])


def quantile_interval(losses: Any, level: float, confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the `level`-quantile between order statistics that covers at least at `confidence` for every law.

    The number of losses at or below the quantile is at least, and that below it at most, Binomial(n, level).
    """
    y, level = check_losses(losses), _level(level)
    tail = (1 - require_probability("confidence", confidence, cure="pass 0.95")) / 2
    below, above = int(stats.binom.ppf(tail, len(y), level)), int(stats.binom.isf(tail, len(y), level)) + 1
    return float(y[below - 1]) if below >= 1 else 0.0, float(y[above - 1]) if above <= len(y) else 1.0


def likelihood_interval(losses: Any, functional: str, level: float, confidence: float = 0.95) -> tuple[float, float]:
    """The empirical likelihood interval of CVaR or expectile of losses (n,) in [0, 1], as told above."""
    require_choice("functional", functional, ("cvar", "expectile"))
    y, level = check_losses(losses), _level(level)
    most = float(stats.chi2.ppf(confidence, 1))
    ends = []
    place = _quantile(y, level)
    for worst in (0.0, 1.0):
        sample, weight = np.append(y, worst), np.append(np.ones(len(y)), _EXTRA)
        if functional == "cvar":
            values = place + np.maximum(sample - place, 0) / (1 - level)
            centre = float(weight @ values / weight.sum())
        else:
            values, centre = sample, expectile(sample, level, weight)

        def off(theta: float, values: np.ndarray = values, weight: np.ndarray = weight) -> float:
            return _log_ratio(_equation(values, theta, functional, level), weight) - most

        bound = float(values.max() if worst else values.min())
        if functional == "cvar" and not worst and np.ptp(values) < _DUST:
            # The worst share lies at the largest loss v, whatever lies below: P(L >= v) >= q gives CVaR >= v q / (1 - level).
            q, _ = clopper_pearson(int((y >= place).sum()), len(y), confidence)
            ends.append(place * min(1.0, q / (1 - level)))
            continue
        # At the very end of the range no law is left and the ratio is infinite.
        if abs(bound - centre) < _DUST:
            ends.append(bound)
        else:
            ends.append(float(optimize.brentq(off, centre, bound, xtol=1e-12, rtol=1e-10)))  # type: ignore[arg-type]
    return max(0.0, ends[0]), min(1.0, ends[1])


def _equation(values: np.ndarray, theta: float, functional: str, level: float) -> np.ndarray:
    if functional == "cvar":
        return values - theta
    return np.where(values > theta, level, 1 - level) * (values - theta)


def _log_ratio(g: np.ndarray, weight: np.ndarray) -> float:
    """-2 log R of E g = 0; large where no law on the sample fulfils it."""
    if not (g.min() < 0 < g.max()):
        return 0.0 if not g.any() else 1e6
    low, high = -1 / g.max(), -1 / g.min()
    step = 0.0
    for _ in range(60):
        inside = 1 + step * g
        slope = weight @ (g / inside)
        low, high = (step, high) if slope > 0 else (low, step)
        with np.errstate(divide="ignore", invalid="ignore"):  # what is no number is no step: the middle is taken
            newton = step + slope / (weight @ (g / inside) ** 2)
        newton = newton if low < newton < high else (low + high) / 2
        if abs(newton - step) <= 1e-12 * (high - low + abs(step)):
            break
        step = newton
    return float(2 * weight @ np.log1p(step * g))


@dataclass(frozen=True)
class BoundedTail:
    """CVaR, expectile or quantile of a loss in [0, 1], whichever the problem asks for, with its interval at `level`.

    The state holds the losses in order of size, so the answer does not depend on batches. The quantile's interval holds
    for every law and every n; those of CVaR and expectile are likelihood intervals, flagged where few losses carry them.
    """

    level: float = 0.95

    def __post_init__(self) -> None:
        _level(self.level)

    def init(self, problem: Any) -> State:
        functional = getattr(problem, "functional", None)
        if not callable(getattr(problem, "losses", None)) or functional not in FUNCTIONALS:
            raise Unsuitable(
                f"BoundedTail needs a problem that draws losses and asks for one of {', '.join(FUNCTIONALS)}, and "
                f"{problem.name} does not; use a loss problem."
            )
        return {"functional": functional, "at": _level(problem.level), "losses": np.empty(0)}

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        return problem.losses(n, stream)

    def absorb(self, state: State, batch: Batch) -> State:
        new = check_losses(batch["loss"])
        return state | {"losses": np.sort(np.concatenate([state["losses"], new]), kind="stable")}

    def result(self, state: State) -> Estimate:
        y, functional, at = state["losses"], state["functional"], state["at"]
        if not len(y):
            return Estimate.unknown(0.0, 1.0, "no loss has been drawn yet", level=self.level)
        if functional == "quantile":
            place = value = _quantile(y, at)
            low, high = quantile_interval(y, at, self.level)
        else:
            value = cvar(y, at) if functional == "cvar" else expectile(y, at)
            place = _quantile(y, at) if functional == "cvar" else value
            low, high = likelihood_interval(y, functional, at, self.level)
        excess = np.maximum(y - place, 0.0)
        effective = float(excess.sum() ** 2 / (excess @ excess)) if excess.any() else 0.0
        beyond = effective if functional != "quantile" else len(y) * (1 - at)
        why = "" if beyond >= _FEW else f"the tail rests on {beyond:.1f} effective losses; draw more"
        return Estimate(
            value=value,
            low=min(low, value),
            high=max(high, value),
            std_error=_std_error(y, functional, at, value, place),
            level=self.level,
            interval="order statistics" if functional == "quantile" else "empirical likelihood on [0, 1]",
            n_samples=len(y),
            reliable=not why,
            why=why,
            diagnostics={"functional": functional, "quantile": _quantile(y, at), "effective_losses": effective},
        )


def _std_error(y: np.ndarray, functional: str, level: float, value: float, place: float) -> float | None:
    """From the spread of the influence of single losses; None for a quantile, whose error needs the density."""
    if functional == "quantile" or len(y) < 2:
        return None
    if functional == "cvar":
        pull = np.maximum(y - place, 0) / (1 - level)
    else:
        above = float(np.mean(y > value))
        pull = _equation(y, value, functional, level) / (level * above + (1 - level) * (1 - above))
    return float(pull.std(ddof=1) / np.sqrt(len(y)))
