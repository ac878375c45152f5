"""Off-policy evaluation with known policy values: logs drawn under one policy, a question about another.

Does: contextual bandits and finite-horizon tabular decision processes with exact values by summation and backward
recursion. Does not: evaluate; an evaluator gets the log, the ratios, and what it asks of the problem.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from workbench.errors import refuse, require_integer
from workbench.problems.chains import check_transitions
from workbench.streams import Stream


def _check_policy(name: str, policy: np.ndarray, shape: tuple[int, ...], support: np.ndarray | None = None) -> None:
    if policy.shape != shape:
        raise refuse(name, policy.shape, f"have shape {shape}", "give one row of action probabilities a state")
    if not np.isfinite(policy).all() or (policy < 0).any() or np.abs(policy.sum(axis=-1) - 1).max() > 1e-9:
        raise refuse(name, "rows", "be probabilities that sum to 1", "divide each row by its sum")
    if support is not None and ((policy > 0) & (support == 0)).any():
        cure = "log under a policy that takes every action now and then"
        raise refuse(name, "an action that the log can't hold", "be covered by the behaviour policy", cure)


def choose(probabilities: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """(n,) indices from rows of probabilities (n, K) by inversion."""
    return (probabilities.cumsum(axis=1)[:, :-1] <= uniforms[:, None]).sum(axis=1)


@dataclass(frozen=True, eq=False)
class LoggedBandit:
    """The mean reward of `target` when the log was drawn under `behaviour`.

    contexts (K,) their probabilities; rewards (K, A) means of Bernoulli rewards; behaviour, target (K, A).
    """

    name: str
    contexts: np.ndarray = field(repr=False)
    rewards: np.ndarray = field(repr=False)
    behaviour: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        shape = self.rewards.shape
        _check_policy("behaviour", self.behaviour, shape)
        _check_policy("target", self.target, shape, self.behaviour)

    @property
    def truth(self) -> float:
        return float(self.contexts @ (self.target * self.rewards).sum(axis=1))

    def log(self, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"context", "action": (n,) int, "reward": (n,), "ratio": (n,) target over behaviour}."""
        uniforms = stream.uniforms(n, 3)
        context = choose(np.broadcast_to(self.contexts, (n, len(self.contexts))), uniforms[:, 0])
        action = choose(self.behaviour[context], uniforms[:, 1])
        reward = (uniforms[:, 2] < self.rewards[context, action]).astype(float)
        ratio = self.target[context, action] / self.behaviour[context, action]
        return {"context": context, "action": action, "reward": reward, "ratio": ratio}


@dataclass(frozen=True, eq=False)
class LoggedDecisions:
    """The expected discounted return of `target` over a fixed horizon, from trajectories under `behaviour`.

    transitions (S, A, S); rewards (S, A) means of Bernoulli rewards; start (S,); behaviour, target (S, A).
    """

    name: str
    transitions: np.ndarray = field(repr=False)
    rewards: np.ndarray = field(repr=False)
    start: np.ndarray = field(repr=False)
    behaviour: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)
    horizon: int = 8
    discount: float = 1.0

    def __post_init__(self) -> None:
        for action in range(self.transitions.shape[1]):
            check_transitions(self.transitions[:, action])
        require_integer("horizon", self.horizon, low=1, cure="take at least one step")
        _check_policy("behaviour", self.behaviour, self.rewards.shape)
        _check_policy("target", self.target, self.rewards.shape, self.behaviour)

    def value(self, policy: np.ndarray) -> float:
        """sum_t discount^t E r_t under `policy` (S, A), by backward recursion."""
        values = np.zeros(len(self.start))
        for _ in range(self.horizon):
            values = (policy * (self.rewards + self.discount * self.transitions @ values)).sum(axis=1)
        return float(self.start @ values)

    @property
    def truth(self) -> float:
        return self.value(self.target)

    def log(self, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"state", "action", "reward", "ratio"}, each (n, horizon); ratio is that step's, not the product."""
        uniforms = stream.uniforms(n, 1 + 3 * self.horizon)
        state = choose(np.broadcast_to(self.start, (n, len(self.start))), uniforms[:, 0])
        found: dict[str, list[np.ndarray]] = {"state": [], "action": [], "reward": [], "ratio": []}
        for t in range(self.horizon):
            draws = uniforms[:, 1 + 3 * t : 4 + 3 * t]
            action = choose(self.behaviour[state], draws[:, 0])
            found["state"].append(state)
            found["action"].append(action)
            found["reward"].append((draws[:, 1] < self.rewards[state, action]).astype(float))
            found["ratio"].append(self.target[state, action] / self.behaviour[state, action])
            state = choose(self.transitions[state, action], draws[:, 2])
        return {name: np.stack(values, axis=1) for name, values in found.items()}


def random_bandit(seed: int, contexts: int = 20, actions: int = 5, sharpness: float = 3.0) -> LoggedBandit:
    """Rewards uniform; the log prefers the better actions a little (softmax of 1), the target by `sharpness`."""
    rng = Stream.of(seed, "random-bandit").generator()
    rewards = rng.random((contexts, actions))
    return LoggedBandit(
        f"bandit({contexts} x {actions}, sharpness {sharpness:g}, seed {seed})",
        rng.dirichlet(np.ones(contexts)),
        rewards,
        _softmax(rewards),
        _softmax(sharpness * rewards),
    )


def random_decisions(
    seed: int, states: int = 12, actions: int = 3, horizon: int = 8, sharpness: float = 4.0
) -> LoggedDecisions:
    """Transitions Dirichlet(0.2), rewards uniform on two fifths of the pairs; behaviour a soft greedy policy mixed with
    the uniform one, target a sharper one."""
    rng = Stream.of(seed, "random-decisions").generator()
    transitions, rewards, gains = random_process(rng, states, actions, 0.2, horizon)
    return LoggedDecisions(
        f"decisions({states} x {actions}, T={horizon}, sharpness {sharpness:g}, seed {seed})",
        transitions,
        rewards,
        np.full(states, 1 / states),
        0.7 * _softmax(gains) + 0.3 / actions,
        0.9 * _softmax(sharpness * gains) + 0.1 / actions,
        horizon,
    )


def random_process(
    rng: np.random.Generator, states: int, actions: int, spread: float, horizon: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(transitions (S, A, S) Dirichlet(spread), rewards (S, A) uniform on two fifths of the pairs, Q* (S, A) of the first
    of `horizon` steps)."""
    transitions = rng.dirichlet(np.full(states, spread), (states, actions))
    rewards = rng.random((states, actions)) * (rng.random((states, actions)) < 0.4)
    gains = rewards
    for _ in range(horizon - 1):
        gains = rewards + transitions @ gains.max(axis=1)
    return transitions, rewards, gains


def _softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
