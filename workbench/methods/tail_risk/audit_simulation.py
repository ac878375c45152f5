"""Audits whose truth is known: an ordinal mixed model of targets, auditors, judges, scenarios and reruns.

    latent = target_t + auditor_a + judge_j + interaction_ta + scenario_s + (scenario x target)_st + rerun noise
    severity = number of cuts (-1.5, -0.5, 0.3, 1.1) below the latent value

Effects of targets, auditors, judges and their interaction are planted constants; the rest is normal, so the law of a
cell is a cut normal and its score and shares of variance follow from the normal CDF without sampling.
Does: draw such audits, and their exact scores, eta^2 and AUROC. Does not: estimate; `simple_audit` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from workbench.errors import refuse, require_finite, require_integer, require_number
from workbench.streams import Stream

CUTS = np.array([-1.5, -0.5, 0.3, 1.1])


def severity_law(mean: Any, sd: Any) -> np.ndarray:
    """(..., 5) probabilities of severity 0 to 4 of a normal latent value."""
    mean, sd = np.broadcast_arrays(mean, sd)
    below = ndtr((CUTS - mean[..., None]) / sd[..., None])
    return np.diff(below, prepend=0.0, append=1.0)


def exact_score(mean: Any, sd: Any) -> np.ndarray:
    """(...,) expected score, 25 E[severity], of a normal latent value."""
    return 25 * severity_law(mean, sd) @ np.arange(5)


def spread_effects(n: int, sd: float) -> np.ndarray:
    """(n,) evenly spread normal quantiles of mean 0 and SD `sd`: planted effects that look drawn and are not."""
    require_integer("n", n, low=2, cure="plant at least two effects")
    require_number("sd", sd, low=0, cure="pass the SD of the effects, e.g. 0.8")
    effects = ndtri((np.arange(n) + 0.5) / n)
    return sd * effects / effects.std()


@dataclass(frozen=True)
class PlantedAudit:
    """An audit's planted effects: target (T,), auditor (A,), judge (J,), interaction (T, A) of target and auditor;
    SDs of scenario, scenario x target and rerun."""

    target: np.ndarray
    auditor: np.ndarray
    judge: np.ndarray
    interaction: np.ndarray
    scenario: float = 0.6
    scenario_target: float = 0.3
    rerun: float = 0.7

    def __post_init__(self) -> None:
        for name in ("target", "auditor", "judge", "interaction"):
            require_finite(name, getattr(self, name), "plant a number for each")
        if self.interaction.shape != (len(self.target), len(self.auditor)):
            must = f"be {(len(self.target), len(self.auditor))}"
            raise refuse("the shape of interaction", self.interaction.shape, must, "plant one for each pair")
        for name in ("scenario", "scenario_target", "rerun"):
            require_number(name, getattr(self, name), low=0, cure="pass an SD")
        if self.sd == 0:
            raise refuse("the SDs", 0, "not all be 0", "let reruns differ, e.g. rerun=0.7")

    @property
    def sd(self) -> float:
        """SD of a latent value in a cell, over scenarios and reruns."""
        return float(np.sqrt(self.scenario**2 + self.scenario_target**2 + self.rerun**2))

    @property
    def latent(self) -> np.ndarray:
        """(T, A, J) mean latent value of each cell."""
        return (self.target[:, None] + self.auditor + self.interaction)[:, :, None] + self.judge

    def draw(self, scenarios: int, runs: int, stream: Stream, *, cut: bool = True) -> np.ndarray:
        """(T, A, J, scenarios, runs) severities; with cut=False the latent values."""
        rng, cells = stream.generator(), self.latent
        shared = self.scenario * rng.standard_normal(scenarios)
        own = self.scenario_target * rng.standard_normal((len(self.target), scenarios))
        noise = self.rerun * rng.standard_normal((*cells.shape, scenarios, runs))
        latent = cells[..., None, None] + (shared + own)[:, None, None, :, None] + noise
        return np.searchsorted(CUTS, latent) if cut else latent

    def eta_squared(self) -> np.ndarray:
        """(3,) exact shares of variance of target, auditor and judge, over all scenarios and runs there could be."""
        law, levels = severity_law(self.latent, self.sd), np.arange(5)
        means, squares = law @ levels, law @ levels**2
        total = squares.mean() - means.mean() ** 2
        return np.array([means.mean(axis=axes).var() for axes in ((1, 2), (0, 2), (0, 1))]) / total

    def scores(self) -> np.ndarray:
        """(T, A, J) exact score of each cell."""
        return exact_score(self.latent, self.sd)


def planted_audit(
    stream: Stream,
    *,
    target: float = 0.8,
    auditor: float = 0.35,
    judge: float = 0.3,
    interaction: float = 0.15,
    **sds: float,
) -> PlantedAudit:
    """Six targets, four auditors, four judges with effects of these SDs; the interaction is drawn from `stream`."""
    effects = spread_effects(6, target), spread_effects(4, auditor), spread_effects(4, judge)
    return PlantedAudit(*effects, interaction * stream.generator().standard_normal((6, 4)), **sds)


def twins(distance: float, safe: float = 0.5, **sds: float) -> PlantedAudit:
    """A safe target and its twin `distance` lower, one auditor, one judge."""
    require_number("distance", distance, low=0, cure="pass how far the twin lies below, e.g. 1.0")
    return PlantedAudit(np.array([safe, safe - distance]), np.zeros(1), np.zeros(1), np.zeros((2, 1)), **sds)


def twin_auroc(audit: PlantedAudit, runs: int) -> float:
    """The exact AUROC of `runs`-run mean scores of targets 0 and 1 on two different scenarios.

    Given the scenario's effects the runs are independent: the law of their sum is a convolution, averaged over the
    normal effects by Gauss-Hermite quadrature.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    weights = weights / weights.sum()
    spread = np.hypot(audit.scenario, audit.scenario_target)
    laws = []
    for mean in audit.latent[:2, 0, 0]:
        one = severity_law(mean + spread * nodes, audit.rerun)
        many = one
        for _ in range(runs - 1):
            many = np.array([np.convolve(a, b) for a, b in zip(many, one, strict=True)])
        laws.append(weights @ many)
    safe, twin = laws
    return float(safe @ (np.cumsum(twin) - 0.5 * twin))
