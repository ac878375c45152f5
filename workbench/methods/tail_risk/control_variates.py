"""Control variates: what is known of a draw beside whether it hit pays for some of its noise.

Lavenberg and Welch, "A perspective on the use of control variables to increase the efficiency of Monte Carlo simulations",
Management Science 27 (1981); Owen, Monte Carlo theory, methods and examples (2013), section 8.9. With y = 1{hit} and
controls c (q,) of known mean 0,

    p_hat = mean(y - b . c),     Var p_hat = p (1 - p) (1 - R^2) / n  at the best b = Var(c)^-1 Cov(c, y),

R^2 the share of the variance of y that the controls explain. Fitted to the draws that it corrects, b biases p_hat by an
amount of the order 1 / n; here b comes from a pilot of its own, whose draws are paid for and not used again, so that p_hat
is unbiased for every n (but for the cut to [0, 1]). A pilot of m draws costs a share q / m of the variance. With fewer than
five hits or misses in it b is 0; or, for the martingales below, 1 for the last of them, if the sums of predicted risks
that this leaves have less than half the variance p (1 - p) in the pilot.

The controls that a problem offers:
- a Gaussian event: Hermite polynomials x, (x^2 - 1) / sqrt 2 of the coordinate x along the problem's direction, and
  (|z|^2 - d) / sqrt(2 d) where d > 1;
- a chain: M_k = sum_t [r_k(X_t+1) - (P r_k)(X_t)], martingales with r_k the probability to reach the target within k
  steps, k = 0 .. depth - 1. M_0 is the hit less the sum of the one-step reach probabilities. As k grows to the horizon
  r_k tends to the answer itself, and the variance to 0 (Henderson and Glynn 2002);
- a model's answer: the hit less the sum of its next-token hazards, so that b = 0 is Monte Carlo and b = 1 is SCOPE
  (arXiv 2602.03730, see `scope_reach`).

The interval is normal where at least 30 draws carry the spread of the terms t, (sum d^2)^2 / sum d^4 with d = t - mean t.
Below that it is Clopper and Pearson's on the hits of the same draws, which trusts no control.
Does: unbiased regression adjustment. Does not: make a rare event less rare; what the polynomials explain of a tail fades
with it, R^2 of the order p log(1 / p)^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import norm

from workbench.errors import Unsuitable, refuse, require_finite, require_integer, require_probability
from workbench.estimate import Estimate
from workbench.exact_sum import NO_POWERS, add_powers, spread_of
from workbench.methods.tail_risk.chain_walks import is_chain, walk
from workbench.methods.tail_risk.proportions import clopper_pearson, room_for_unseen
from workbench.methods.tail_risk.scope_reach import Scope, scope_paths
from workbench.run import Batch, State
from workbench.streams import Stream

_LEAST_CARRIERS = 30.0  # draws that carry the spread, for a normal interval
_LEAST_PILOT_HITS = 5
_CLEARLY = 0.5


@dataclass(frozen=True)
class ControlVariates:
    """mean(y - b . c) with controls c of mean 0 that the problem offers and coefficients b from a pilot.

    pilot  draws that choose b; they count as spent
    depth  a chain's controls: reach within 0 .. depth - 1 steps
    level  of the interval
    """

    pilot: int = 400
    depth: int = 2
    level: float = 0.95

    def __post_init__(self) -> None:
        require_integer("pilot", self.pilot, low=10, cure="coefficients need a pilot, e.g. 400 draws")
        require_integer("depth", self.depth, low=1, cure="pass e.g. 2")
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        count = _controls_of(problem)[0](self, problem)
        return {
            "martingale": not callable(getattr(problem, "limit_state", None)),
            "index": np.zeros(0, dtype=np.int64),
            "pilot_hit": np.zeros(0, dtype=bool),
            "pilot_control": np.zeros((0, count)),
            "pilot_n": 0,
            "pilot_hits": 0,
            "coefficients": None,
            "n": 0,
            "hits": 0,
            "powers": list(NO_POWERS),
        }

    def round_size(self, problem: Any, state: State) -> int | None:
        return self.pilot - state["pilot_n"] if state["coefficients"] is None else None

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        drawn = _controls_of(problem)[1](self, problem, n, stream)
        if state["coefficients"] is None:
            return drawn | {"index": stream.first + np.arange(n)}
        return drawn

    def absorb(self, state: State, batch: Batch) -> State:
        hit, control = np.asarray(batch["hit"]), require_finite("controls", batch["control"], _CURE, allow_empty=True)
        if hit.dtype != bool:
            raise refuse("batch['hit']", hit.dtype, "hold bool", "return whether each sample hit the event")
        if state["coefficients"] is None:
            state = state | {
                "index": np.concatenate([state["index"], batch["index"]]),
                "pilot_hit": np.concatenate([state["pilot_hit"], hit]),
                "pilot_control": np.concatenate([state["pilot_control"], control]),
                "pilot_n": state["pilot_n"] + len(hit),
                "pilot_hits": state["pilot_hits"] + int(hit.sum()),
            }
            return self._fit(state) if state["pilot_n"] >= self.pilot else state
        # A sum over few controls, term by term, so that a row's number does not depend on its neighbours.
        term = hit.astype(float)
        for coefficient, column in zip(state["coefficients"], control.T, strict=True):
            term = term - coefficient * column
        return state | {
            "n": state["n"] + len(hit),
            "hits": state["hits"] + int(hit.sum()),
            "powers": add_powers(state["powers"], term),
        }

    def _fit(self, state: State) -> State:
        """End of the pilot: b by least squares; where the pilot has hardly a hit or hardly a miss, 0 or that of SCOPE."""
        order = np.argsort(state["index"])
        hit, control = state["pilot_hit"][order], state["pilot_control"][order]
        coefficients = [0.0] * control.shape[1]
        if state["martingale"]:
            # The last control alone, at coefficient 1, leaves a sum of predicted risks, whose spread shows without hits.
            risk = hit - control[:, -1]
            if risk.var() < _CLEARLY * risk.mean() * (1 - risk.mean()):
                coefficients[-1] = 1.0
        if min(hit.sum(), (~hit).sum()) >= _LEAST_PILOT_HITS:
            found = np.linalg.lstsq(np.c_[control, np.ones(len(hit))], hit.astype(float), rcond=1e-9)[0]
            coefficients = found[:-1].tolist()
        nothing = {"index": order[:0], "pilot_hit": hit[:0], "pilot_control": control[:0]}
        return state | nothing | {"coefficients": coefficients}

    def result(self, state: State) -> Estimate:
        pilot = {"pilot_samples": state["pilot_n"], "pilot_hits": state["pilot_hits"]}
        n, hits, level = state["n"], state["hits"], self.level
        if n == 0:
            why = f"the pilot is under way ({state['pilot_n']} of {self.pilot} draws)"
            return Estimate.unknown(0.0, 1.0, why, level=level, n_samples=state["pilot_n"], diagnostics=pilot)
        value, variance, carriers = spread_of(state["powers"], n)
        diagnostics = {"hits": hits, **pilot}
        diagnostics |= {f"coefficient_{k}": b for k, b in enumerate(state["coefficients"])}
        low, high = clopper_pearson(hits, n, level)
        interval, error = "Clopper-Pearson on the hits", math.sqrt(variance / max(n - 1, 1))
        # Equal terms leave a spread of rounding errors alone.
        if variance > 1e-12 * value**2:
            diagnostics["variance_ratio"] = hits / n * (1 - hits / n) / variance
            diagnostics["carriers"] = carriers
            half = float(norm.isf((1 - level) / 2)) * error
            if carriers >= _LEAST_CARRIERS and -half < value < 1 + half:
                # Predicted risks show a spread without a hit; a kind of path that no draw has seen is not in it.
                high, moved, _ = room_for_unseen(value, value + half, clopper_pearson(0, n, level)[1])
                interval, low = "normal below, unseen paths above" if moved else "normal", value - half
        why = (
            "" if any(state["coefficients"]) else "the pilot had too few hits to choose coefficients: plain Monte Carlo"
        )
        value = min(max(value, 0.0), 1.0)
        return Estimate(
            value=value,
            low=min(max(low, 0.0), value),
            high=max(min(high, 1.0), value),
            std_error=error if variance > 0 else None,
            level=level,
            interval=interval,
            n_samples=state["pilot_n"] + n,
            why=why,
            diagnostics=diagnostics,
        )


_CURE = "look for a limit state or logits that are not numbers"


def _controls_of(problem: Any) -> tuple[Any, Any]:
    """(how many controls there are, how draws with their controls are made)."""
    if callable(getattr(problem, "limit_state", None)):
        return lambda settings, problem: 2 + (problem.dimension > 1), _gaussian
    if is_chain(problem):
        return lambda settings, problem: settings.depth, _chain
    try:
        Scope().init(problem)
    except Unsuitable:
        raise Unsuitable(
            f"ControlVariates needs a Gaussian event, a chain, or an outcome that is one token of a set, and {problem.name} "
            "is none of these; use MonteCarlo."
        ) from None
    return lambda settings, problem: 1, _answers


def _gaussian(settings: ControlVariates, problem: Any, n: int, stream: Stream) -> Batch:
    z = ndtri(np.maximum(stream.uniforms(n, problem.dimension), 2.0**-54))
    # Not a matrix product, whose last bits may depend on the number of rows.
    x = (z * problem.direction).sum(axis=1)
    controls = [x, (x**2 - 1) / math.sqrt(2)]
    if problem.dimension > 1:
        controls.append(((z**2).sum(axis=1) - problem.dimension) / math.sqrt(2 * problem.dimension))
    return {"hit": problem.limit_state(z) <= 0, "control": np.stack(controls, axis=1)}


def _chain(settings: ControlVariates, problem: Any, n: int, stream: Stream) -> Batch:
    reach, expected = reach_tables(problem, settings.depth)
    states, control = np.full(n, problem.start), np.zeros((n, settings.depth))
    for rows, t, before, after in walk(problem, n, stream):
        states[rows] = after
        left = None if problem.horizon is None else problem.horizon - t - 1
        for k in range(settings.depth):
            # With fewer steps left than k, reach within what is left: the value then is exact to the end.
            now = k if left is None else min(k, left)
            control[rows, k] += reach[now, after] - expected[now, before]
    return {"hit": problem.target[states], "control": control}


def reach_tables(problem: Any, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """r_k(x) = P(target within k steps | x) and (P r_k)(x), (depth, S) each, for k = 0 .. depth - 1."""
    stopped = np.where(problem.ends[:, None], np.eye(len(problem.transitions)), problem.transitions)
    reach = [problem.target.astype(float)]
    for _ in range(depth):
        reach.append(stopped @ reach[-1])
    return np.array(reach[:-1]), np.array(reach[1:])


def _answers(settings: ControlVariates, problem: Any, n: int, stream: Stream) -> Batch:
    paths = scope_paths(
        problem.model,
        [problem.prompt],
        problem.judge.args[0],
        n=n,
        max_new_tokens=problem.max_new_tokens,
        stream=stream,
        end_ids=problem.stop_ids,
    )
    control = paths.hit.astype(float) - paths.scope
    return {"hit": paths.hit, "control": control[:, None], "tokens": len(problem.prompt) + paths.lengths}
