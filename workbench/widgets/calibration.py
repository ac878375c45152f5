"""Explorer of calibration: alpha against sets, coverage and groups, for methods that promise something at 1 - alpha.

Does: add alpha to the controls of a method's curves; the curves of batch predictive inference, exact.
Does not: calibrate; see `plots.calibration` for the figure and the methods for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from workbench.errors import refuse, require_choice
from workbench.methods.conformal import batch_pi
from workbench.plots.calibration import Calibration, calibration_figure
from workbench.widgets.controls import Short, Slider, spec
from workbench.widgets.explorer import check_controls, explore

ALPHAS = np.unique(np.round(np.concatenate([np.geomspace(0.01, 0.1, 19), np.linspace(0.1, 0.5, 41)]), 4))
TARGETS = ("quantile", "mean", "count")
_MOST_N, _MOST_M, _SETS = 40, 10, 60


def explore_calibration(
    curves: Callable[..., Calibration],
    *,
    alpha: Slider | tuple[float, float, float] = (0.01, 0.5, 0.1),
    static: Sequence[Mapping[str, Any]] | None = None,
    **controls: Short,
) -> None:
    """Show `curves(alpha=alpha, **values)` for alpha and the values of `controls`. Raises as `explore` does."""

    def draw(alpha: float, **values: Any) -> Figure:
        return calibration_figure(curves(alpha=alpha, **values), alpha)

    asked = {"alpha": alpha, **controls}
    check_controls(curves, {name: spec(name, short) for name, short in asked.items()})
    alt = "What a calibrated method gives against the level alpha: its sets, and how often they keep their promise"
    explore(draw, alt=alt, static=static, **asked)


def batch_calibration(
    n: int, m: int, alpha: float, delta: float, eta: int, target: str = "quantile", seed: int = 0
) -> Calibration:
    """Batch predictive inference from n calibration scores for a batch of m, at all `ALPHAS`, beside plain conformal.

    target  "quantile": at least (1 - delta) m points covered; "count": at most eta false claims, which is the same
            with m - eta points; "mean": the mean of m scores is at most a bound
    For a quantile and a count all is exact, for every continuous law of the scores: the number covered by rank r is
    BetaBinomial(m, r, n + 1 - r). The mean's bound depends on the law: here 60 sets of uniform scores, drawn from
    `seed`, and because its dynamic program is slow for n <= 40 and m <= 10; larger ones are cut to that.
    """
    require_choice("target", target, TARGETS)
    if target == "mean":
        return _mean_calibration(min(n, _MOST_N), min(m, _MOST_M), alpha, seed)
    if target == "count" and not 0 <= eta < m:
        raise refuse("eta", eta, f"be at least 0 and below m = {m}", "allow fewer false claims or take a larger batch")
    zeta = batch_pi.points_to_cover(m, delta) if target == "quantile" else m - eta
    ranks = np.arange(1, n + 1)
    kept_by_rank = np.append(stats.betabinom.sf(zeta - 1, m, ranks, n + 1 - ranks), 1.0)
    # Rounding may lift a probability over 1 - alpha; the slack is far below what one rank changes.
    alphas = np.union1d(ALPHAS, [alpha])
    chosen = np.argmax(kept_by_rank[None, :] >= 1 - alphas[:, None] - 1e-12, axis=1) + 1
    rank = batch_pi.quantile_rank(n, m, zeta, alpha)
    covered, law = np.arange(m + 1), batch_pi.coverage_law(rank, n, m)
    if target == "quantile":
        single, said, x, bar = batch_pi.split_conformal_rank(n, delta), f"at least {zeta} of {m} covered", covered, zeta
    else:
        single = min(batch_pi.split_conformal_rank(n, max(eta, 1) / m), n + 1)
        said, x, bar = f"at most {eta} of {m} beyond the bound", (m - covered)[::-1], eta
        law = law[::-1]
    bound = f"score {rank} of {n}" if rank <= n else f"no bound: n = {n} is too few for this promise"
    return Calibration(
        alphas,
        kept=kept_by_rank[chosen - 1],
        size=np.where(chosen <= n, chosen / n, np.inf),
        size_label="bound, as a quantile of the scores",
        name="batch PI",
        groups={"point by point": np.full(len(alphas), kept_by_rank[min(single, n + 1) - 1])},
        law=(x, law),
        law_label="points covered in the batch" if target == "quantile" else "points beyond the bound",
        bar=bar,
        below=target == "count",
        said=f"alpha = {alpha:g}: {bound}; {said} with probability {kept_by_rank[rank - 1]:.3f}, "
        f"point by point (score {single}) {kept_by_rank[min(single, n + 1) - 1]:.3f}",
    )


def _mean_calibration(n: int, m: int, alpha: float, seed: int) -> Calibration:
    generator = np.random.default_rng(seed)
    scores, means = generator.random((_SETS, n)), generator.random((4000, m)).mean(axis=1)
    levels = np.union1d(ALPHAS[::6], [alpha])
    bounds = np.stack([batch_pi.mean_bounds(scores, m, level, score_range=(0, 1))[1] for level in levels])
    kept = (means[None, None, :] <= bounds[:, :, None]).mean(axis=(1, 2))
    at = int(np.searchsorted(levels, alpha))
    heights, edges = np.histogram(means, bins=40, range=(0, 1))
    naive = np.mean(means[None, :] <= scores.mean(axis=1)[:, None])
    return Calibration(
        levels,
        kept=kept,
        size=bounds.mean(axis=1),
        size_label="bound on the mean of scores in 0 to 1",
        name="batch PI",
        groups={"calibration mean": np.full(len(levels), naive)},
        law=((edges[1:] + edges[:-1]) / 2, heights / heights.sum()),
        law_label="mean of the batch's scores",
        bar=float(bounds[at].mean()),
        below=True,
        said=f"alpha = {alpha:g}, n = {n}, m = {m} uniform scores: mean at most {bounds[at].mean():.3f}, "
        f"kept with probability {kept[at]:.3f}",
    )
