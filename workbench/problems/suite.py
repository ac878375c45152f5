"""Problems whose exact answer is known: what the contract tests and the comparisons of methods run on."""

from __future__ import annotations

from typing import Any

from workbench.errors import Unsuitable
from workbench.problems.analytic import GaussianTail


def known_truth() -> list[Any]:
    """One small problem of each kind, cheap enough to be run thousands of times."""
    from workbench.problems.best_of_n import BestOfN, BetaPopulation
    from workbench.problems.event import codeword_event

    return [
        GaussianTail(1.5),
        codeword_event("grammar", prompt=(7, 7, 7)),
        BestOfN.from_beta(0.4, 4.0, n_queries=40, n_tries=200, seed=1),
        BetaPopulation(0.4, 4.0, n_queries=40, n_tries=200),
    ]


def suitable(estimator: Any) -> list[Any]:
    """The problems of the suite that the estimator accepts."""
    accepted = []
    for problem in known_truth():
        try:
            estimator.init(problem)
        except Unsuitable:
            continue
        accepted.append(problem)
    return accepted
