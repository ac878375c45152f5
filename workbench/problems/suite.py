"""Problems whose exact answer is known: what the contract tests and the league of methods run on.

Does: name each problem, make it when it is asked for, and say of what kind it is. Does not: know estimators; which of
them can answer a problem is found by asking (`suitable`).
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from workbench.errors import WorkbenchError
from workbench.run import refusal

KINDS = {
    "gaussian": "P(g(Z) <= 0), Z standard normal: tails and classics of structural reliability",
    "chain": "a Markov chain reaches its target before it is absorbed or before a horizon",
    "population": "Best-of-N success over queries of different strength, with and without atoms",
    "grammar": "an event in a text that a finite automaton with exact probabilities generates",
    "transformer": "an event in the answers of an embedded language model, enumerated",
    "timeline": "an outcome within a horizon of an event log",
    "loss": "a tail functional (CVaR, expectile, quantile) of a bounded loss",
    "off-policy": "the value of a policy from logs of another",
}


class Entry(NamedTuple):
    """A problem of the suite: its kind, and how it is made."""

    kind: str
    make: Callable[[], Any]


@cache
def catalogue() -> dict[str, Entry]:
    """Every problem of the suite by its name in the suite, which is short and stays; nothing is made yet."""
    from workbench.problems import analytic, chains, losses, off_policy
    from workbench.problems.best_of_n import BestOfN, BetaPopulation
    from workbench.problems.event import codeword_event, timeline_event

    found: dict[str, Entry] = {}

    def add(kind: str, name: str, make: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        assert name not in found and kind in KINDS
        found[name] = Entry(kind, partial(make, *args, **kwargs))

    for exponent in (1, 3, 6, 9):
        threshold = float(-ndtri(10.0**-exponent))
        add("gaussian", f"tail-1e-{exponent}", analytic.GaussianTail, threshold)
    for exponent in (3, 6):
        add("gaussian", f"two-sided-1e-{exponent}", analytic.GaussianTail, float(-ndtri(0.5 * 10.0**-exponent)), True)  # fmt: skip
        add("gaussian", f"shell-1e-{exponent}", analytic.shell, 10.0**-exponent)
        add("gaussian", f"exponential-sum-1e-{exponent}", analytic.exponential_sum, 10.0**-exponent)
        add("gaussian", f"heavy-maximum-1e-{exponent}", analytic.heavy_maximum, 10.0**-exponent)
    for exponent in (2, 4, 8):
        add("gaussian", f"linear-50d-1e-{exponent}", analytic.linear, 10.0**-exponent)
    add("gaussian", "lopsided", analytic.lopsided)
    add("gaussian", "four-branch", analytic.four_branch)
    add("gaussian", "four-branch-rare", analytic.four_branch, 5.0, 11.0)

    add("chain", "ladder-even", chains.ladder, 0.45, 5)
    for rungs in (8, 16, 24):
        add("chain", f"ladder-{rungs}", chains.ladder, 0.3, rungs)
    add("chain", "repairs", chains.repairs, 4, 0.05)
    add("chain", "repairs-rare", chains.repairs)
    add("chain", "two-ways", chains.two_ways)
    add("chain", "agent-risk", chains.agent_risk)
    add("chain", "agent-risk-mild", chains.agent_risk, 10, 1)

    add("population", "queries-beta", BestOfN.from_beta, 0.4, 4.0, n_queries=40, n_tries=200, seed=1)
    add("population", "queries-atom", _with_atom)
    add("population", "population-beta", BetaPopulation, 0.4, 4.0, n_queries=40, n_tries=200)
    add("population", "population-thin", BetaPopulation, 0.8, 40.0, n_queries=159, n_tries=1000)

    for source, kind in (("grammar", "grammar"), ("embedded", "transformer")):
        for filler in (4, 5, 6, 7, 8):
            add(kind, f"{kind}-{filler}", codeword_event, source, (filler,) * 3)
    for outcome, horizon in (("fault", 5), ("fault", 20), ("crash", 20)):
        add("timeline", f"timeline-{outcome}-{horizon}", timeline_event, "grammar", outcome, horizon)

    laws = {"rare-harm": losses.RARE_HARM, "spread": losses.SPREAD, "two-point": losses.TWO_POINT}
    for label, law in laws.items():
        add("loss", f"cvar-{label}", losses.LossTail, "cvar", 0.95, law, label)
        add("loss", f"expectile-{label}", losses.LossTail, "expectile", 0.95, law, label)
    add("loss", "quantile-spread", losses.LossTail, "quantile", 0.95, losses.SPREAD, "spread")

    for sharpness in (3.0, 8.0):
        add("off-policy", f"bandit-{sharpness:g}", off_policy.random_bandit, 1, sharpness=sharpness)
    for sharpness in (4.0, 10.0):
        add("off-policy", f"decisions-{sharpness:g}", off_policy.random_decisions, 1, sharpness=sharpness)
    return found


def find_problem(name: str) -> Any:
    """The suite's problem of that name, made once."""
    entries = catalogue()
    if name not in entries:
        near = get_close_matches(name, entries, n=1)
        hint = f"did you mean {near[0]}?" if near else "'workbench problems list' names them all."
        raise WorkbenchError(f"There is no problem {name!r} in the suite; {hint}")
    return _made(name)


@cache
def _made(name: str) -> Any:
    return catalogue()[name].make()


def _with_atom() -> Any:
    """A quarter of the queries never succeeds, whatever the tries."""
    from workbench.problems.best_of_n import BestOfN, draw_thetas
    from workbench.streams import Stream

    thetas = np.r_[np.zeros(10), draw_thetas(1.0, 10.0, 30, Stream.of(1, "with-atom"))]
    return BestOfN(tuple(thetas.tolist()), 200, "Beta(1, 10) and a quarter at 0")


def known_truth() -> list[Any]:
    """One small problem of each kind that can be run thousands of times."""
    from workbench.problems.analytic import GaussianTail
    from workbench.problems.best_of_n import BestOfN, BetaPopulation
    from workbench.problems.event import codeword_event

    return [
        GaussianTail(1.5),
        codeword_event("grammar", prompt=(7, 7, 7)),
        BestOfN.from_beta(0.4, 4.0, n_queries=40, n_tries=200, seed=1),
        BetaPopulation(0.4, 4.0, n_queries=40, n_tries=200),
        find_problem("agent-risk-mild"),
        find_problem("cvar-spread"),
        find_problem("expectile-spread"),
        find_problem("quantile-spread"),
        find_problem("timeline-crash-20"),
        find_problem("bandit-3"),
        find_problem("decisions-4"),
    ]


def suitable(estimator: Any) -> list[Any]:
    """The problems of `known_truth` that the estimator accepts."""
    return [problem for problem in known_truth() if refusal(estimator, problem) is None]
