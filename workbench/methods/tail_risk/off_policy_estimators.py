"""Off-policy estimators: what a policy is worth, from the logs of another.

With rho_t = pi(a_t | s_t) / pi_b(a_t | s_t), a weight w_t, and Q_t, V_t the values of pi in a model of the process,

    weighted return   sum_t gamma^t w_t r_t
    doubly robust     V_0(s_0) + sum_t gamma^t w_t (r_t + gamma V_{t+1}(s_{t+1}) - Q_t(s_t, a_t)),   V_T = 0.

The weight rho_0 ... rho_t gives PDIS (Precup, Sutton and Singh 2000) and DR (Jiang and Li 2016); the marginal ratio
d^pi(s, a) / d^b(s, a) of the discounted visits over all steps gives MIS (Liu, Li, Tang and Zhou 2018) and MDR (Kallus
and Uehara 2020); the model alone gives DM. At one step PDIS is IPS; SNIPS (Swaminathan and Joachims 2015) divides by
the sum of the weights. MIS is unbiased where the ratio is right. MDR is where Q is right; with the right ratio and a
wrong Q it is only if Q's error is the same at every step, since the ratio does not know the step.

Does: these as functions of logged arrays, for tabular processes and contextual bandits with many target policies at
once; IPS, SNIPS and PDIS as estimators of the workbench. Does not: learn values or ratios by function approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from workbench.errors import Unsuitable, refuse, require_finite, require_probability
from workbench.estimate import Estimate
from workbench.exact_sum import ExactSum
from workbench.run import Batch, State
from workbench.streams import Stream

_LEAST_EFFECTIVE = 300  # below it normal intervals of decisions over eight steps cover 75 to 93 %


class TabularModel(NamedTuple):
    """A process by counts: start (S,), transitions (S, A, S), mean rewards (S, A)."""

    start: np.ndarray
    transitions: np.ndarray
    rewards: np.ndarray


def count_model(state: Any, action: Any, reward: Any, n_states: int, n_actions: int) -> TabularModel:
    """The model with the observed frequencies; a pair never seen goes anywhere and earns 0.

    state, action (n, T) whole numbers, reward (n, T). Raises WorkbenchError: a state or action outside its range.
    """
    state, action = _indices("state", state, n_states), _indices("action", action, n_actions)
    reward = require_finite("reward", reward, "leave out trajectories with a reward missing")
    visits, earned = np.zeros((n_states, n_actions)), np.zeros((n_states, n_actions))
    moves = np.zeros((n_states, n_actions, n_states))
    np.add.at(visits, (state, action), 1)
    np.add.at(earned, (state, action), reward)
    np.add.at(moves, (state[:, :-1], action[:, :-1], state[:, 1:]), 1)
    left = moves.sum(axis=-1, keepdims=True)
    start = np.bincount(state[:, 0], minlength=n_states) / len(state)
    transitions = np.where(left > 0, moves / np.maximum(left, 1), 1 / n_states)
    return TabularModel(start, transitions, earned / np.maximum(visits, 1))


def model_values(
    model: TabularModel, target: np.ndarray, horizon: int, discount: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Q (..., T, S, A) and V (..., T + 1, S) of policies `target` (..., S, A) in the model, by backward recursion."""
    after = np.zeros((*target.shape[:-2], model.rewards.shape[0]))
    q, v = [], [after]
    for _ in range(horizon):
        now = model.rewards + discount * np.moveaxis(
            np.tensordot(model.transitions, after, axes=(2, -1)), (0, 1), (-2, -1)
        )
        after = (target * now).sum(axis=-1)
        q.append(now)
        v.append(after)
    return np.stack(q[::-1], axis=-3), np.stack(v[::-1], axis=-2)


def occupancy(model: TabularModel, policy: np.ndarray, horizon: int, discount: float = 1.0) -> np.ndarray:
    """(..., S): sum_t gamma^t P(s_t = s) under `policy` (..., S, A) in the model."""
    place = np.broadcast_to(model.start, (*policy.shape[:-2], len(model.start)))
    total = np.zeros(place.shape)
    for t in range(horizon):
        total += discount**t * place
        place = np.tensordot(place[..., None] * policy, model.transitions, axes=((-2, -1), (0, 1)))
    return total


def weighted_return(weight: np.ndarray, reward: np.ndarray, discount: float = 1.0) -> np.ndarray:
    """(..., n): sum_t gamma^t w_t r_t of each trajectory; weight (..., n, T), reward (n, T)."""
    return (weight * reward * discount ** np.arange(reward.shape[-1])).sum(axis=-1)


def doubly_robust(
    weight: np.ndarray, reward: np.ndarray, q_taken: np.ndarray, v_path: np.ndarray, discount: float = 1.0
) -> np.ndarray:
    """(..., n): the doubly robust value of each trajectory.

    weight, q_taken (..., n, T): w_t and Q_t(s_t, a_t); v_path (..., n, T + 1): V_t(s_t), 0 at the end; reward (n, T).
    Unbiased for the cumulative ratio whatever Q and V are, as long as V_t = sum_a pi(a) Q_t(a).
    """
    surprise = reward + discount * v_path[..., 1:] - q_taken
    return v_path[..., 0] + weighted_return(weight, surprise, discount)


def evaluate_tabular(
    state: Any, action: Any, reward: Any, behaviour: Any, targets: Any, discount: float = 1.0
) -> dict[str, np.ndarray]:
    """DM, PDIS, DR, MIS and MDR of each target policy: {name: (m,)}.

    state, action, reward (n, T); behaviour (S, A), targets (m, S, A) action probabilities. The model is counted on the
    same log. Raises WorkbenchError: an action in the log that the behaviour policy never takes; as `count_model`.
    """
    targets = require_finite("targets", targets, "give a probability for each action")
    behaviour = require_finite("behaviour", behaviour, "give a probability for each action")
    n_states, n_actions = behaviour.shape
    model = count_model(state, action, reward, n_states, n_actions)
    state, action, reward = np.asarray(state), np.asarray(action), np.asarray(reward, dtype=np.float64)
    horizon, steps = state.shape[1], np.arange(state.shape[1])
    if (behaviour[state, action] <= 0).any():
        cure = "pass the probabilities under which the log was drawn"
        raise refuse("behaviour of a logged action", 0.0, "be positive", cure)
    q, v = model_values(model, targets, horizon, discount)
    ends = np.zeros((*targets.shape[:-2], len(state), 1))
    v_path = np.concatenate([v[..., steps, state], ends], axis=-1)
    q_taken = q[..., steps, state, action]
    ratio = targets[..., state, action] / behaviour[state, action]
    cumulative = np.cumprod(ratio, axis=-1)
    theirs, mine = (occupancy(model, policy, horizon, discount) for policy in (behaviour, targets))
    marginal = ratio * mine[..., state] / theirs[state]
    return {
        "DM": v[..., 0, :] @ model.start,
        "PDIS": weighted_return(cumulative, reward, discount).mean(axis=-1),
        "DR": doubly_robust(cumulative, reward, q_taken, v_path, discount).mean(axis=-1),
        "MIS": weighted_return(marginal, reward, discount).mean(axis=-1),
        "MDR": doubly_robust(marginal, reward, q_taken, v_path, discount).mean(axis=-1),
    }


def evaluate_bandit(action: Any, reward: Any, propensity: Any, targets: Any, predicted: Any) -> dict[str, np.ndarray]:
    """IPS, SNIPS, DM and DR of each target policy from a bandit's log: {name: (m,)}.

    action, reward, propensity (n,): what was done, what came of it, and pi_b(action | context) > 0; targets (m, n, A):
    action probabilities in the logged contexts; predicted (n, A): a model's mean rewards there.
    Raises WorkbenchError: propensities outside (0, 1], an action out of range, weights that are all 0.
    """
    targets = require_finite("targets", targets, "give a probability for each action")
    predicted = require_finite("predicted", predicted, "predict a reward for each action")
    reward = require_finite("reward", reward, "leave out rows without a reward")
    propensity = require_finite("propensity", propensity, "log the probability of each action taken")
    if (propensity <= 0).any() or (propensity > 1).any():
        bad = propensity[(propensity <= 0) | (propensity > 1)][0]
        raise refuse("propensity", bad, "lie in (0, 1]", "log the probability of the action taken")
    action, rows = _indices("action", action, predicted.shape[1]), np.arange(len(reward))
    weight = targets[:, rows, action] / propensity
    total = weight.sum(axis=1)
    if (total <= 0).any():
        where = int(np.flatnonzero(total <= 0)[0])
        cure = "log under a policy that sometimes does what the target would"
        raise refuse(f"the sum of weights of target {where}", 0.0, "be positive", cure)
    dm = (targets * predicted).sum(axis=2)
    return {
        "IPS": (weight * reward).mean(axis=1),
        "SNIPS": (weight * reward).sum(axis=1) / total,
        "DM": dm.mean(axis=1),
        "DR": (dm + weight * (reward - predicted[rows, action])).mean(axis=1),
    }


def _indices(argument: str, values: Any, size: int) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise refuse(argument, array.dtype, "hold whole numbers", "number the states and actions from 0")
    if array.size == 0 or array.min() < 0 or array.max() >= size:
        worst = array.max(initial=-1) if array.min(initial=0) >= 0 else array.min()
        raise refuse(argument, worst, f"lie in 0..{size - 1}", "number the states and actions from 0")
    return array


@dataclass(frozen=True)
class Pdis:
    """Per-decision importance sampling: the mean of sum_t gamma^t rho_0 ... rho_t r_t, with a normal interval.

    Answers problems with `log`; rewards must lie in [0, 1]. Flagged where the weights of whole trajectories have an
    effective sample size below 50: a mean carried by few trajectories has no normal interval.
    """

    level: float = 0.95

    def __post_init__(self) -> None:
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        if not callable(getattr(problem, "log", None)):
            name = type(self).__name__
            raise Unsuitable(
                f"{name} needs logs of another policy, and {problem.name} has no method 'log'; "
                "use an off-policy problem."
            )
        discount, horizon = float(getattr(problem, "discount", 1.0)), int(getattr(problem, "horizon", 1))
        largest = float(np.sum(discount ** np.arange(horizon)))
        sums = {name: ExactSum() for name in ("x", "xx", "w", "ww", "wx")}
        return {"n": 0, "discount": discount, "largest": largest, **sums}

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        log = problem.log(n, stream)
        ratio, reward = (np.asarray(log[key], dtype=np.float64).reshape(n, -1) for key in ("ratio", "reward"))
        if ((reward < 0) | (reward > 1)).any():
            bad = reward[(reward < 0) | (reward > 1)][0]
            raise refuse("log['reward']", bad, "lie in [0, 1]", "rescale the rewards to that range")
        cumulative = np.cumprod(ratio, axis=1)
        weight = self._weight(cumulative)
        return {"weighted": weighted_return(weight, reward, state["discount"]), "weight": cumulative[:, -1]}

    def _weight(self, cumulative: np.ndarray) -> np.ndarray:
        return cumulative

    def absorb(self, state: State, batch: Batch) -> State:
        x, w = batch["weighted"], batch["weight"]
        terms = {"x": x, "xx": x * x, "w": w, "ww": w * w, "wx": w * x}
        return state | {"n": state["n"] + len(x)} | {name: state[name].add(term) for name, term in terms.items()}

    def result(self, state: State) -> Estimate:
        n, top = state["n"], state["largest"]
        w, ww = float(state["w"]), float(state["ww"])
        effective = w * w / ww if ww > 0 else 0.0
        common: dict[str, Any] = {"level": self.level, "n_samples": n}
        common["diagnostics"] = {"effective sample size": effective, "mean weight": w / n if n else None}
        if n < 2 or not w > 0:
            why = "no trajectory has a weight above 0 yet" if n > 1 else f"{n} logged trajectories have no spread"
            return Estimate.unknown(0.0, top, why, **common)
        value, variance = self._value(n, state)
        if not variance > 1e-15 * max(value, 1e-300) ** 2:
            return Estimate.unknown(
                0.0, top, "all weighted returns are equal so far, so their spread is unknown", **common
            )
        error = float(np.sqrt(variance / n))
        half = float(-ndtri((1 - self.level) / 2)) * error
        few = effective < _LEAST_EFFECTIVE
        why = (
            f"the weights are worth {effective:.0f} trajectories of {n:,}: few of them carry the answer" if few else ""
        )
        low, high = max(value - half, 0.0), min(value + half, top)
        if low >= high:
            return Estimate.unknown(0.0, top, f"the estimate {value:.3g} lies beyond any return", **common)
        value = min(value, high)
        return Estimate(value=value, low=low, high=high, std_error=error, reliable=not few, why=why, **common)

    def _value(self, n: int, state: State) -> tuple[float, float]:
        """The estimate, and n times its variance."""
        value = float(state["x"]) / n
        return value, float(state["xx"]) / (n - 1) - value**2 * n / (n - 1)


@dataclass(frozen=True)
class Ips(Pdis):
    """Inverse propensity scoring: the mean of rho_0 ... rho_{T-1} sum_t gamma^t r_t, with a normal interval.

    The whole trajectory's weight at every reward; on a bandit it is `Pdis`.
    """

    def _weight(self, cumulative: np.ndarray) -> np.ndarray:
        return cumulative[:, -1:]


@dataclass(frozen=True)
class Snips(Ips):
    """Self-normalised IPS: sum w_i G_i / sum w_i with w = rho_0 ... rho_{T-1}, and its delta-method interval.

    Biased by the order of 1 / n, never beyond the largest return, and mostly less noisy than IPS.
    """

    def _value(self, n: int, state: State) -> tuple[float, float]:
        x, xx, w, ww, wx = (float(state[name]) for name in ("x", "xx", "w", "ww", "wx"))
        value = x / w
        return value, (xx - 2 * value * wx + value**2 * ww) / (n - 1) / (w / n) ** 2
