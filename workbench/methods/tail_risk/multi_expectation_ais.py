"""Many expectations from one sample: adaptive importance sampling with control variates (ME-aISCV).

Demange-Chryst, Bachoc and Morio (2022), arXiv 2212.00568; the algorithm's constants are those of its code. Wanted are
I_j = E_{f_j}[phi_j(X)], j = 1..J, from N points at which all phi_j are evaluated. With X_i ~ g_alpha = sum alpha_j g_j,

    I_hat_j = 1/N sum_i [ f_j(X_i) phi_j(X_i) - sum_l beta_lj g_l(X_i) ] / g_alpha(X_i) + sum_l beta_lj

is unbiased for fixed (g, alpha, beta) wherever g_alpha covers f_j phi_j, as E[g_l / g_alpha] = 1. The paper's beta is
diagonal. With g_j = f_j phi_j / I_j and beta_jj = I_j the variance is 0 for each alpha; `aiscv` adapts towards that.
Does: the paper's algorithm, the variants that its comparisons need, and the samplers it is compared with.
Does not: intermediate levels for events that the first batch never sees; a phi_j of both signs is estimated without
bias, but zero variance is out of reach (split it into its positive and negative parts).

Departures from the paper's code:
1. `defensive` keeps that share of g_alpha for the input laws, so that weights are bounded; by default 0, as there.
2. Members that too few points support keep their last law; see `gaussian_families`.
3. alpha is accepted only near the optimum (`_GAP`); where SLSQP stops short, multiplicative updates go on from there.
4. |phi_j| takes the place of phi_j in fits, where signs would give negative weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize
from threadpoolctl import threadpool_limits

from workbench.budget import charge
from workbench.errors import refuse, require_choice, require_finite, require_integer, require_number
from workbench.methods.tail_risk.gaussian_families import KINDS, Family, fitted
from workbench.streams import Stream

CONTROLS = ("own", "all", "none")
SMALLEST_ALPHA = 9e-12
_GAP, _UPDATES, _COVERED = 1e-3, 2000, 1e-80
# Directions among the controls shorter than this share of the longest are noise. Found by trying on the ten moments:
# 1e-5 to 1e-2 serve, 1e-6 makes matters worse than without controls.
_RANK = 1e-4


@dataclass(frozen=True)
class Expectations:
    """The question: J expectations of phi_j under f_j.

    laws     the input laws as a `Family` of one member, or of one for each j; bring other laws to normal ones first
    phi      (n, d) -> (n, J), or (n, 1) if all are the same function
    weights  (J,) w_j > 0 of the criterion sum_j w_j Var(I_hat_j), e.g. 1 / I_j^2 for relative errors
    truth    (J,) I_j where known
    runs     runs of the model that a point costs; charged as model calls
    """

    name: str
    laws: Family
    phi: Callable[[np.ndarray], np.ndarray]
    weights: Any
    truth: np.ndarray | None = None
    runs: int = 1

    def __post_init__(self) -> None:
        weights = require_finite("weights", self.weights, "give each expectation a positive weight, e.g. 1 / I_j**2")
        if weights.ndim != 1 or not (weights > 0).all():
            raise refuse("weights", self.weights, "be a list of positive numbers", "drop expectations of no interest")
        if len(self.laws) not in (1, len(weights)):
            raise refuse(
                "len(laws)", len(self.laws), f"be 1 or {len(weights)}, one for each weight", "match laws and weights"
            )
        if self.truth is not None and np.shape(self.truth) != weights.shape:
            raise refuse(
                "the shape of truth", np.shape(self.truth), f"be {weights.shape}", "give a value for each weight"
            )
        require_integer("runs", self.runs, low=1, cure="a point costs at least one run of the model")
        object.__setattr__(self, "weights", weights)

    def __len__(self) -> int:
        return len(self.weights)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        """(n, J) phi_j at each row of x (n, d); charges `runs` model calls a row."""
        charge(model_calls=len(x) * self.runs)
        found = np.asarray(self.phi(x), dtype=np.float64)
        if found.ndim != 2 or found.shape[0] != len(x) or found.shape[1] not in (1, len(self)):
            raise refuse(
                "the shape of phi(x)", found.shape, f"be ({len(x)}, {len(self)})", "return a column for each weight"
            )
        if not np.isfinite(found).all():
            bad = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
            raise refuse(
                f"phi at {np.round(x[bad], 3)}", found[bad], "be finite", "bound phi, or leave out where it isn't"
            )
        return np.broadcast_to(found, (len(x), len(self)))


class Proposal(NamedTuple):
    """The law (1 - defensive) sum_j alpha_j g_j + defensive (equal mixture of the input laws)."""

    family: Family
    alpha: np.ndarray
    laws: Family
    defensive: float = 0.0

    def draw(self, n: int, generator: np.random.Generator) -> np.ndarray:
        edges = self.alpha.cumsum()
        members = np.searchsorted(edges[:-1], generator.random(n) * edges[-1], side="right")
        x = self.family.draw(members, generator)
        if self.defensive:
            plain = generator.random(n) < self.defensive
            x[plain] = self.laws.draw(generator.integers(0, len(self.laws), int(plain.sum())), generator)
        return x

    def log_density(self, log_g: np.ndarray, log_f: np.ndarray) -> np.ndarray:
        """(n,) from log g_j (n, members) and log f_j (n, laws)."""
        with np.errstate(divide="ignore"):
            total = _log_mixture(log_g, self.alpha)
            if self.defensive:
                total = np.logaddexp(np.log1p(-self.defensive) + total, np.log(self.defensive) + _log_mixture(log_f))
        return total


class Step(NamedTuple):
    """One adaptation: points evaluated so far, the proposal that it chose, beta (members, J), variances (J,) of a draw
    on the batch of that proposal, their weighted sum, and the effective sample size (J,) of each fit."""

    evaluated: int
    proposal: Proposal
    beta: np.ndarray
    variances: np.ndarray
    criterion: float
    effective: np.ndarray


class Answer(NamedTuple):
    """value (J,), its covariance (J, J), the points evaluated in all and for the last sample, the steps (the first is
    the batch from the input laws), and max_weight (J,), the largest f_j / g_alpha of the last sample."""

    value: np.ndarray
    covariance: np.ndarray
    evaluated: int
    last: int
    steps: tuple[Step, ...]
    max_weight: np.ndarray

    @property
    def variances(self) -> np.ndarray:
        """(J,) estimated variances of the values, from within the run."""
        return np.diag(self.covariance)

    @property
    def std_error(self) -> np.ndarray:
        return np.sqrt(self.variances)


@threadpool_limits.wrap(limits=1)  # on matrices this small threads lose: 25 times, where the cores are busy
def aiscv(
    question: Expectations,
    n: int,
    *,
    stream: Stream,
    kind: str = "SG",
    diagonal: bool = False,
    controls: str = "own",
    keep: str = "last",
    defensive: float = 0.0,
    iterations: int | None = None,
) -> Answer:
    """ME-aISCV with n points in all: up to n / 2 in batches of n / 10 for adaptation, the rest for the estimate.

    kind        the g_j: "SG", one Gaussian each, or "GM", a mixture of two; fitted closely to few points, this one
                understates its errors (four moments: several times at n = 1,000, not at 10,000)
    diagonal    whether covariances are
    controls    "own": g_j / g_alpha for I_j, as in the paper; "all": each I_j is regressed on all of them (after Owen
                and Zhou, 2000; here on the last batch, so that nothing is biased); "none": beta = 0
    keep        where the stop rule fires, the parameters of the "last" batch, as the paper's code, or of the "best"
    defensive   share of the input laws in each proposal
    iterations  adaptation steps, whatever the stop rule says
    """
    n = require_integer("n", n, low=50, cure="a tenth of n is one batch, so take 1,000 or more")
    require_choice("kind", kind, KINDS)
    require_choice("controls", controls, CONTROLS)
    require_choice("keep", keep, ("last", "best"))
    require_number("defensive", defensive, low=0, high=1, open_high=True, cure="pass e.g. defensive=0.05")
    if iterations is not None:
        require_integer(
            "iterations", iterations, low=0, high=8, cure="each takes a tenth of n, and the first batch one"
        )
    generator, batch, w = stream.child("draws").generator(), n // 10, question.weights
    laws = family = question.laws
    start = Proposal(laws, np.full(len(laws), 1 / len(laws)), laws)
    x = start.draw(batch, generator)
    phi, log_f = question.evaluate(x), laws.log_density(x)
    log_h = start.log_density(log_f, log_f)[:, None]  # (points, batches): each past law at each point
    weighted = np.exp(log_f - log_h) * phi
    variances = weighted.var(axis=0, ddof=1)
    steps = [Step(batch, start, np.zeros((len(laws), len(w))), variances, float(w @ variances), np.full(len(w), batch))]
    alpha = _normalised(np.sqrt(w) * np.abs(weighted).mean(axis=0))
    guess = np.zeros(len(w)) if controls == "none" else weighted.mean(axis=0)  # of the optimal beta, I_j

    while len(x) < n / 2 if iterations is None else len(steps) <= iterations:
        mixed = _log_mixture(log_h)
        target = np.exp(log_f - mixed[:, None]) * phi
        family, effective = fitted(x, np.abs(target), family, kind=kind, diagonal=diagonal)
        log_g = family.log_density(x)
        ratios = np.exp(log_g - mixed[:, None])
        fixed = defensive * np.exp(_log_mixture(log_f) - mixed)
        alpha = best_alpha(np.square(target - ratios * guess) @ w, ratios, alpha, fixed=fixed, share=1 - defensive)
        proposal = Proposal(family, alpha, laws, defensive)

        new = proposal.draw(batch, generator)
        log_f_new, log_g_new = laws.log_density(new), family.log_density(new)
        log_new = proposal.log_density(log_g_new, log_f_new)
        phi_new = question.evaluate(new)
        weighted, ratio = np.exp(log_f_new - log_new[:, None]) * phi_new, np.exp(log_g_new - log_new[:, None])
        beta = control_coefficients(weighted, ratio, controls)
        guess = np.diag(beta) if controls != "all" else np.diag(control_coefficients(weighted, ratio))
        variances = (weighted - ratio @ beta).var(axis=0, ddof=1)

        past = [step.proposal.log_density(step.proposal.family.log_density(new), log_f_new) for step in steps]
        log_h = np.vstack(
            [np.column_stack([log_h, proposal.log_density(log_g, log_f)]), np.column_stack([*past, log_new])]
        )
        x, phi, log_f = np.vstack([x, new]), np.vstack([phi, phi_new]), np.vstack([log_f, log_f_new])
        before = steps[-1]
        steps.append(Step(len(x), proposal, beta, variances, float(w @ variances), effective))
        if iterations is None and not pays(before, steps[-1], n):
            break

    chosen = min(steps, key=lambda step: step.criterion) if keep == "best" else steps[-1]
    value, covariance, max_weight = iscv(question, chosen.proposal, chosen.beta, n - len(x), generator)
    return Answer(value, covariance, n, n - len(x), tuple(steps), max_weight)


def pays(before: Step, after: Step, n: int) -> bool:
    """Whether the criterion that the rest of n points promises has fallen from one step to the next (the stop rule)."""
    return before.criterion / (n - before.evaluated) > after.criterion / (n - after.evaluated)


def iscv(
    question: Expectations, proposal: Proposal, beta: np.ndarray, n: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The estimator for given parameters: value (J,), covariance (J, J), and the largest weights f_j / g_alpha (J,)."""
    x = proposal.draw(n, generator)
    log_f, log_g = question.laws.log_density(x), proposal.family.log_density(x)
    log_q = proposal.log_density(log_g, log_f)[:, None]
    weight = np.exp(log_f - log_q)
    terms = weight * question.evaluate(x) - np.exp(log_g - log_q) @ beta + beta.sum(axis=0)
    max_weight = np.broadcast_to(weight.max(axis=0), len(question))
    return terms.mean(axis=0), np.atleast_2d(np.cov(terms.T)) / n, max_weight


def control_coefficients(weighted: np.ndarray, ratio: np.ndarray, controls: str = "own") -> np.ndarray:
    """beta (members, J) of least variance: weighted (n, J) f_j phi_j / g_alpha, ratio (n, members) g_l / g_alpha.

    "own": Cov(ratio_j, weighted_j) / Var(ratio_j), and the mean of weighted_j where a ratio does not vary (J = 1, or
    alpha at a corner); "all": by least squares on all ratios; "none": 0.
    """
    if controls == "none":
        return np.zeros((ratio.shape[1], weighted.shape[1]))
    y, u = weighted - weighted.mean(axis=0), ratio - ratio.mean(axis=0)
    if controls == "all":
        return np.linalg.lstsq(u, y, rcond=_RANK)[0]
    spread = (u**2).mean(axis=0)
    varies = spread > 1e-20 * np.maximum((ratio**2).mean(axis=0), 1e-280)
    slope = (u * y).mean(axis=0) / np.where(varies, spread, 1)
    return np.diag(np.where(varies, slope, weighted.mean(axis=0)))


def best_alpha(
    numerator: np.ndarray, ratios: np.ndarray, start: np.ndarray, *, fixed: Any = 0.0, share: float = 1.0
) -> np.ndarray:
    """alpha (J,) on the simplex that minimises mean_i numerator_i / (share sum_j alpha_j ratios_ij + fixed_i).

    numerator (n,) = sum_j w_j (f_j phi_j - beta_j g_j)^2 / h^2, ratios (n, J) = g_j / h, fixed (n,) or 0. The function
    is convex. Judged by its gap: with F' the gradient, F(alpha) - min F <= max_l(-F'_l) - sum_l alpha_l (-F'_l).
    """
    covered = (share * ratios.max(axis=1) + fixed) > _COVERED  # what no member covers no alpha mends
    ratios, numerator, fixed = ratios[covered], numerator[covered], np.broadcast_to(fixed, len(covered))[covered]
    numerator = numerator / max(float(numerator.max(initial=0)), 1e-300)

    def value_and_pull(alpha: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(share * (ratios @ alpha) + fixed, _COVERED * SMALLEST_ALPHA)
        each = numerator / mixed
        return float(each.mean()), share * ((each / mixed) @ ratios) / len(each)

    alpha = _normalised(start)
    unit = value_and_pull(alpha)[0] if covered.any() else 0.0
    if len(alpha) == 1 or not unit > 0:
        return alpha

    def scaled(alpha: np.ndarray) -> tuple[float, np.ndarray]:
        value, pull = value_and_pull(alpha)
        return value / unit, -pull / unit

    sums = {"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(len(a))}
    found = optimize.minimize(scaled, alpha, jac=True, method="SLSQP", constraints=[sums],
                              bounds=[(SMALLEST_ALPHA, 1)] * len(alpha), options={"maxiter": 200})  # fmt: skip
    if np.isfinite(found.x).all() and value_and_pull(_normalised(found.x))[0] <= unit:
        alpha = _normalised(found.x)
    for _ in range(_UPDATES):
        value, pull = value_and_pull(alpha)
        if pull.max() - alpha @ pull <= _GAP * value:
            break
        alpha = _normalised(alpha * np.sqrt(pull))
    return alpha


@threadpool_limits.wrap(limits=1)
def plain(question: Expectations, n: int, *, stream: Stream, how: str = "mixture") -> Answer:
    """Plain sampling with n points in all, without control variates.

    "mixture": from the equal mixture of the input laws, weighted; "individual": n / J points from each law, for its own
    expectation alone. With one law both are Monte Carlo with one sample for all.
    """
    n = require_integer("n", n, low=2 * len(question.laws), cure="give each law two points or more")
    require_choice("how", how, ("mixture", "individual"))
    generator, laws, j = stream.child("plain").generator(), question.laws, len(question.laws)
    start = Proposal(laws, np.full(j, 1 / j), laws)
    if how == "mixture" or j == 1:
        value, covariance, max_weight = iscv(question, start, np.zeros((j, len(question))), n, generator)
        return Answer(value, covariance, n, n, (), max_weight)
    each = n // j
    drawn = [question.evaluate(laws.draw(np.full(each, k), generator))[:, k] for k in range(j)]
    variances = np.diag(np.var(drawn, axis=1, ddof=1) / each)
    return Answer(np.mean(drawn, axis=1), variances, each * j, each * j, (), np.ones(j))


def separate(question: Expectations, n: int, *, stream: Stream, **settings: Any) -> list[Answer]:
    """Each expectation by an `aiscv` of its own with n / J points (J = 1: there the control does nothing)."""
    return [
        aiscv(only(question, j), n // len(question), stream=stream.child("separate", j), **settings)
        for j in range(len(question))
    ]


def only(question: Expectations, j: int) -> Expectations:
    """Expectation j alone."""

    def column(x: np.ndarray) -> np.ndarray:
        found = np.asarray(question.phi(x))
        return found[:, [j]] if found.shape[1] > 1 else found

    law = question.laws.member(j) if len(question.laws) > 1 else question.laws
    truth = None if question.truth is None else question.truth[[j]]
    return Expectations(f"{question.name}, {j}", law, column, question.weights[[j]], truth, question.runs)


def _log_mixture(logs: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
    """(n,) log sum_j alpha_j exp(logs_ij); alpha equal by default."""
    top = logs.max(axis=1)
    share = np.full(logs.shape[1], 1 / logs.shape[1]) if alpha is None else alpha
    return top + np.log(np.exp(logs - top[:, None]) @ share)


def _normalised(alpha: np.ndarray) -> np.ndarray:
    """alpha on the simplex, none below SMALLEST_ALPHA; equal where all are 0."""
    alpha = np.asarray(alpha, dtype=np.float64)
    if not alpha.sum() > 0:
        return np.full(len(alpha), 1 / len(alpha))
    alpha = np.maximum(alpha / alpha.sum(), SMALLEST_ALPHA)
    return alpha / alpha.sum()
