"""Models of tomorrow's expectile: linear expectile regression, CARE, and a GARCH filter.

For expectile-var (arXiv 2507.13391), after Newey and Powell (1987), Taylor (2008), Kuan, Yeh and Hsu (2009).
Does: fit by asymmetric least squares; forecast one day ahead; simulate GARCH(1,1)-t days whose expectile is known.
Does not: test the forecasts; see `backtests`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats
from scipy.signal import lfilter

from workbench.errors import (
    LacksCapability,
    WorkbenchError,
    refuse,
    require_choice,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)
from workbench.methods.tail_risk.expectile_var import calibrated_tau, check_returns, expectile, varying_returns
from workbench.streams import Stream

CARE_KINDS = ("symmetric", "asymmetric")
_STEPS = 100


def asymmetric_squares(y: np.ndarray, e: np.ndarray, tau: float) -> np.ndarray:
    """|tau - 1{y <= e}| (y - e)^2, the score that the expectile minimises; arrays broadcast."""
    return np.where(y <= e, 1 - tau, tau) * (y - e) ** 2


def expectile_regression(x: Any, y: Any, tau: float) -> np.ndarray:
    """b (p,) of e_tau(Y | X) = X b, by iteratively reweighted least squares; x (n, p) with a column of ones, y (n,).

    w_i = tau if y_i > x_i'b else 1 - tau; b = (X'WX)^-1 X'Wy. The loss is convex. Raises where the first-order condition
    X'W(y - Xb) = 0 does not hold to 1e-10 of its scale, as when columns depend on each other.
    """
    tau = require_probability("tau", tau)
    y, x = check_returns(y), require_finite("x", x, "drop rows with missing values")
    if x.ndim != 2 or len(x) != len(y):
        raise refuse("the shape of x", x.shape, f"be ({len(y)}, columns)", "give one row a value of y")
    b, seen = np.linalg.lstsq(x, y, rcond=None)[0], None
    for _ in range(_STEPS):
        above = y > x @ b
        if seen is not None and (above == seen).all():
            break
        seen, root = above, np.sqrt(np.where(above, tau, 1 - tau))
        b = np.linalg.lstsq(root[:, None] * x, root * y, rcond=None)[0]
    weight = np.where(y > x @ b, tau, 1 - tau)
    off = np.abs(x.T @ (weight * (y - x @ b))) / np.maximum(np.abs(x).T @ (weight * np.abs(y)), 1e-300)
    rank = int(np.linalg.matrix_rank(x))
    if rank < x.shape[1] or off.max() > 1e-10:
        raise WorkbenchError(
            f"The regression has no unique answer (rank {rank} of {x.shape[1]} columns, first-order condition off by "
            f"{off.max():.1e}); drop columns that depend on others, or add rows."
        )
    return b


class Care(NamedTuple):
    """A fitted CARE model: coefficients, the mean score on the days it was fitted to, and the scores of all starts."""

    kind: str
    coefficients: np.ndarray
    first: float
    score: float
    start_scores: np.ndarray

    def forecast(self, returns: Any) -> np.ndarray:
        """(n,) e_t of each day of returns (n,) from the days before it; the first is the fit's first expectile."""
        return _care_path(self.coefficients, check_returns(returns), self.first, self.kind)


def fit_care(
    returns: Any,
    tau: float,
    *,
    kind: str = "symmetric",
    starts: int = 1000,
    refined: int = 10,
    stream: Stream,
) -> Care:
    """e_t = b0 + b1 e_{t-1} + b2 |y_{t-1}|, or with y+ and y- apart (kind "asymmetric"), by asymmetric least squares.

    returns (n,); the score has many optima, so that of `starts` random ones the `refined` best are polished by
    Nelder and Mead and the best is kept; `start_scores` shows how far apart they ended.
    """
    y, tau = varying_returns(returns), require_probability("tau", tau)
    require_choice("kind", kind, CARE_KINDS)
    starts = require_integer("starts", starts, low=1, cure="pass e.g. starts=1000")
    refined = require_integer("refined", refined, low=1, high=starts, cure="refine no more than there are starts")
    first, width = float(expectile(y[: min(len(y), 300)], tau)), 3 if kind == "symmetric" else 4
    drawn = stream.uniforms(starts, width)
    begin = np.column_stack([-0.5 * drawn[:, 0], drawn[:, 1], -1.5 * drawn[:, 2:]])

    def score(b: np.ndarray) -> float:
        if not abs(b[1]) < 1:
            return np.inf
        return float(asymmetric_squares(y, _care_path(b, y, first, kind), tau).mean())

    best = begin[np.argsort([score(b) for b in begin])[:refined]]
    options = {"maxiter": 600, "xatol": 1e-5, "fatol": 1e-9}
    ends = [optimize.minimize(score, b, method="Nelder-Mead", options=options) for b in best]
    found = min(ends, key=lambda end: end.fun)
    return Care(kind, found.x, first, float(found.fun), np.sort([end.fun for end in ends]))


def _care_path(b: np.ndarray, y: np.ndarray, first: float, kind: str) -> np.ndarray:
    past = y[:-1]
    news = b[2] * np.abs(past) if kind == "symmetric" else b[2] * np.maximum(past, 0) + b[3] * np.maximum(-past, 0)
    rest, _ = lfilter([1.0], [1.0, -b[1]], b[0] + news, zi=[b[1] * first])
    return np.append(first, rest)


class Garch(NamedTuple):
    """GARCH(1,1): sigma2_t = omega + alpha (y_{t-1} - mu)^2 + beta sigma2_{t-1}; innovations Student with nu degrees."""

    mu: float
    omega: float
    alpha: float
    beta: float
    nu: float

    def sigmas(self, returns: np.ndarray, first: float) -> np.ndarray:
        """(n + 1,) sigma_t of each day and of the day after the last; that of day 0 is `first`, the past's SD, say."""
        news = self.omega + self.alpha * (returns - self.mu) ** 2
        rest, _ = lfilter([1.0], [1.0, -self.beta], news, zi=[self.beta * first**2])
        return np.sqrt(np.append(first**2, rest))


def fit_garch(returns: Any) -> Garch:
    """GARCH(1,1) with Student innovations by maximum likelihood, through the package arch; returns (n,) in per cent."""
    y = varying_returns(returns)
    if len(y) < 100:
        raise refuse("len(returns)", len(y), "be at least 100 for GARCH", "pass more days")
    try:
        from arch import arch_model
    except ImportError:
        raise LacksCapability('GARCH needs the package arch; install it with "pip install arch".') from None
    model = arch_model(y, vol="GARCH", p=1, q=1, dist="t", rescale=False)
    found = model.fit(disp="off", show_warning=False).params.to_dict()
    return Garch(*(found[name] for name in ("mu", "omega", "alpha[1]", "beta[1]", "nu")))


class Filtered(NamedTuple):
    """One-day-ahead forecasts from day `window` on: expectiles by tau, quantiles by alpha, sigma, and the taus used."""

    expectile: np.ndarray
    quantile: np.ndarray
    sigma: np.ndarray
    tau: np.ndarray


def garch_filter(
    returns: Any, alpha: float, *, tau: float | None = None, window: int = 1000, refit: int = 20
) -> Filtered:
    """e_t = mu + sigma_t e_tau(z) and q_t = mu + sigma_t q_alpha(z), z the window's standardised residuals.

    returns (n,); each array of the answer is (n - window,). The model is fitted to the last `window` days and refitted
    every `refit` days. tau None: recalibrated at each refit, to the tau whose expectile of the fit's Student law is its
    alpha-quantile (the threshold by time series of the abstract, as we read it).
    """
    y, alpha = varying_returns(returns), require_probability("alpha", alpha)
    window = require_integer("window", window, low=100, high=len(y) - 1, cure="take a window shorter than the sample")
    refit = require_integer("refit", refit, low=1, cure="refit every 20 days, say")
    parts = []
    for day in range(window, len(y), refit):
        past, ahead = y[day - window : day], y[day : day + refit]
        model = fit_garch(past)
        sigma = model.sigmas(np.append(past, ahead), past.std())
        z = (past - model.mu) / sigma[:window]
        used = calibrated_tau(stats.t(model.nu), alpha) if tau is None else tau
        now = sigma[window : window + len(ahead)]
        parts.append(
            (
                model.mu + now * expectile(z, used),
                model.mu + now * np.quantile(z, alpha),
                now,
                np.full(len(ahead), used),
            )
        )
    return Filtered(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def simulate_garch(
    n: int,
    stream: Stream,
    *,
    omega: float = 0.02,
    alpha: float = 0.09,
    beta: float = 0.90,
    nu: float = 6.0,
    burn_in: int = 500,
) -> tuple[np.ndarray, np.ndarray]:
    """(returns (n,), sigma (n,)) of GARCH(1,1) with mean 0 and Student innovations of variance 1.

    The true conditional expectile of day t is sigma_t e_tau(z), z Student with variance 1.
    """
    n = require_integer("n", n, low=1, cure="simulate at least one day")
    require_number("nu", nu, low=2, open_low=True, cure="take more than 2 degrees, or there is no variance")
    for name, value in (("omega", omega), ("alpha", alpha), ("beta", beta)):
        require_number(name, value, low=0, cure="pass e.g. omega=0.02, alpha=0.09, beta=0.9")
    if alpha + beta >= 1:
        raise refuse("alpha + beta", alpha + beta, "be less than 1, or the variance explodes", "lower beta")
    z = stream.generator().standard_t(nu, size=n + burn_in) * np.sqrt((nu - 2) / nu)
    y, sigma, variance = np.empty(len(z)), np.empty(len(z)), omega / (1 - alpha - beta)
    for day, shock in enumerate(z.tolist()):
        sigma[day] = variance**0.5
        y[day] = sigma[day] * shock
        variance = omega + alpha * y[day] ** 2 + beta * variance
    return y[burn_in:], sigma[burn_in:]
