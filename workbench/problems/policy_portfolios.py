"""Candidate policies whose true values are known, and logs to evaluate them from.

Does: seven tabular processes, a bandit made of handwritten digits, and a small language model at several temperatures,
each with its candidates' exact values. Does not: evaluate or rank; see `workbench.methods.tail_risk`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from workbench.errors import refuse, require_finite, require_integer
from workbench.models import PrefixTree
from workbench.problems.off_policy import LoggedDecisions, choose, random_process
from workbench.streams import Stream

_NOISES = (0.05, 0.2, 0.5, 1.0, 2.0)
_MIXES = (0.05, 0.1, 0.3, 0.5, 0.7)
HORIZON = 8


@dataclass(frozen=True, eq=False)
class TabularPortfolio:
    """Ten candidates for one process, which logs under `process.behaviour`; targets (10, S, A), exact values (10,)."""

    process: LoggedDecisions
    targets: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    behaviour_value: float


def tabular_portfolio(mixing: int, stream: Stream) -> TabularPortfolio:
    """One of seven kinds of process, mixing = 0, ..., 6, with ten candidates.

    12 states, 3 actions, 8 steps; transitions Dirichlet(0.15 + 0.1 mixing). Rewards are uniform on two fifths of the
    pairs, Bernoulli in the log; the log's policy is softmax(2 Q*) mixed with 30 % of the uniform one. A candidate is
    greedy in Q* plus noise, mixed with the uniform policy: five sizes of noise, each with two shares of mixing, small
    with small and the other way round.
    """
    require_integer("mixing", mixing, low=0, high=6, cure="there are seven processes, 0 to 6")
    rng, (states, actions) = stream.generator(), (12, 3)
    transitions, rewards, gains = random_process(rng, states, actions, 0.15 + 0.1 * mixing, HORIZON)
    soft = np.exp((gains - gains.max(axis=1, keepdims=True)) / 0.5)
    behaviour = 0.7 * soft / soft.sum(axis=1, keepdims=True) + 0.3 / actions
    noise, mix = np.array(_NOISES * 2), np.array(_MIXES + _MIXES[::-1])
    greedy = (gains + noise[:, None, None] * rng.standard_normal((10, states, actions))).argmax(axis=2)
    targets = (1 - mix)[:, None, None] * np.eye(actions)[greedy] + mix[:, None, None] / actions
    start, name = (
        np.full(states, 1 / states),
        f"portfolio(mixing {mixing}, {'/'.join(stream.path)}, seed {stream.seed})",
    )
    process = LoggedDecisions(name, transitions, rewards, start, behaviour, behaviour, HORIZON)
    values = np.array([process.value(target) for target in targets])
    return TabularPortfolio(process, targets, values, process.truth)


@dataclass(frozen=True, eq=False)
class DigitsPortfolio:
    """Classifiers of handwritten digits as policies: the context is an image, the reward 1 for its digit.

    features (1797, 64) in [0, 1]; digits (1797,); behaviour (1797, 10) and targets (10, 1797, 10) action probabilities;
    values (10,) and behaviour_value: exact accuracies over all images.
    """

    features: np.ndarray = field(repr=False)
    digits: np.ndarray = field(repr=False)
    behaviour: np.ndarray = field(repr=False)
    targets: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    behaviour_value: float

    def log(self, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """{"row", "action", "reward", "propensity"}, each (n,): images drawn with replacement."""
        row = rng.integers(len(self.digits), size=n)
        action = choose(self.behaviour[row], rng.random(n))
        reward = (action == self.digits[row]).astype(float)
        return {"row": row, "action": action, "reward": reward, "propensity": self.behaviour[row, action]}

    def predict(self, log: dict[str, np.ndarray], ridge: float = 10.0) -> np.ndarray:
        """(n, 10): the reward of each action at the log's images, by one ridge regression an action on that log."""
        x = np.column_stack([np.ones(len(log["row"])), self.features[log["row"]]])
        penalty = ridge * np.eye(x.shape[1])
        found = np.empty((len(x), 10))
        for action in range(10):
            mine = log["action"] == action
            weights = np.linalg.solve(x[mine].T @ x[mine] + penalty, x[mine].T @ log["reward"][mine])
            found[:, action] = x @ weights
        return np.clip(found, 0, 1)


def digits_portfolio(stream: Stream) -> DigitsPortfolio:
    """Five classifiers, each fitted on 30 to 200 images, each mixed with 10 % and with 40 % of the uniform policy.

    The log's policy is a logistic regression on 60 images, half of it uniform.
    """
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.tree import DecisionTreeClassifier

    rng = stream.generator()
    images, digits = (np.asarray(part) for part in load_digits(return_X_y=True))
    features, seed = images / 16, int(rng.integers(2**31))
    plan = [
        (LogisticRegression(C=0.1), 40),
        (GaussianNB(var_smoothing=1e-2), 80),
        (KNeighborsClassifier(1), 30),
        (KNeighborsClassifier(5), 120),
        (DecisionTreeClassifier(max_depth=6, random_state=seed), 200),
    ]

    def choices(model, size: int) -> np.ndarray:
        # Three images of each digit at least, so that every classifier knows all ten.
        few = np.concatenate([rng.choice(np.flatnonzero(digits == d), size // 10, replace=False) for d in range(10)])
        return model.fit(features[few], digits[few]).predict_proba(features)

    surest = np.array([np.eye(10)[choices(model, size).argmax(axis=1)] for model, size in plan])
    targets = np.concatenate([(1 - mix) * surest + mix / 10 for mix in (0.1, 0.4)])
    behaviour = 0.5 * choices(LogisticRegression(C=0.1), 60) + 0.05
    right = np.arange(len(digits)), digits
    values = targets[:, *right].mean(axis=1)
    return DigitsPortfolio(features, digits, behaviour, targets, values, float(behaviour[right].mean()))


def tempered_log_probs(tree: PrefixTree, temperatures: np.ndarray) -> np.ndarray:
    """(m, leaves): log-probability of each completion when the model is sampled at each temperature.

    Every next-token law of the tree becomes p^(1 / temperature), normalised. Raises WorkbenchError: a temperature that
    is not positive.
    """
    temperatures = require_finite("temperatures", temperatures, "pass e.g. [0.5, 1.0]")
    if temperatures.ndim != 1 or (temperatures <= 0).any():
        raise refuse("temperatures", temperatures, "be a list of positive numbers", "pass e.g. [0.5, 1.0]")
    scaled = tree.log_prob[1:] / temperatures[:, None]
    parent, paths = tree.parent[1:], np.zeros((len(temperatures), len(tree)))
    for row, z in enumerate(scaled):
        top = np.full(len(tree), -np.inf)
        np.maximum.at(top, parent, z)
        total = np.bincount(parent, np.exp(z - top[parent]), minlength=len(tree))
        step = z - top[parent] - np.log(total[parent])
        for depth in range(1, int(tree.depth.max()) + 1):
            here = np.flatnonzero(tree.depth[1:] == depth)
            paths[row, here + 1] = paths[row, parent[here]] + step[here]
    return paths[:, tree.is_leaf]


@cache
def toy_tables() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"X", "Y", "W", "Z": (values, estimates)}: the paper's toy examples, read off its figures."""
    first, second = np.array([1.0, 3, 4, 5, 6, 7, 8, 9, 10, 12]), np.arange(1.0, 20)
    x, y = first.copy(), first.copy()
    x[[7, 8]], y[[1, 2]] = 2, 11
    w = np.where(second <= 10, second - 0.5, 20 - second)
    z = np.array([5.0, 11, 14, 17, 15, 3, 10, 4, 1, 19, 12, 7, 2, 18, 13, 8, 9, 6, 16])
    return {"X": (first, x), "Y": (first, y), "W": (second, w), "Z": (second, z)}
