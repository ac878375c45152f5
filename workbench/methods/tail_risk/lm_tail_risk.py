"""Angell, Singhal, Horvitz, Yu, Ranganath, McKeown, He: "Estimating Tail Risks in Language Model Output
Distributions", arXiv 2604.22167 (2026).

Computes the probability that one prompt's sampled answer hits an event, by importance sampling from a steered
version of the same model:

    QRISK_hat = (1/k) sum_i w_i h_i,   w_i = exp sum_t [log p(x_t) - log q(x_t)],   x_i ~ q,

the inner sum over every generated token, end of sequence included. The proposal q mixes the steered model with
the base model and may switch to the base model after some tokens; the cross-entropy method chooses it.

Does: the estimators `ImportanceSampling` (a given proposal) and `CrossEntropy` (pilot, choice, fresh draws), and
the choice itself for one or many prompts.
Does not: exact variances by enumeration (`exact_risk`) and worst-case forecasts (`extreme_value`).

Departures from the paper and its code:
1. The ratio of the end-of-sequence token is part of the weight. The released sampler leaves it out, which
   estimates the risk under the proposal's stopping rule.
2. Guard on the choice: the base model keeps a share of at least 0.1, because cross entropy does not see weights
   that the pilot never drew. `choose_proposal` can leave switches up to `free_switch` unguarded.
3. A strength whose pilot has fewer than `_LEAST_HITS` hits is left out: its loss is near 0, the smallest.
4. The paper compares strengths by losses from different draws. `CrossEntropy` pools the hits of all strengths and
   scores each under every strength, so that all losses are estimated from the same paths. The paper's way is
   `choose_proposal` on pilots that were not pooled.
5. The pilot scores only its hits under the steered model; the others do not enter the loss.
6. The event is binary, as in the paper's definition; its code averages a graded score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import (
    Unsuitable,
    WorkbenchError,
    refuse,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)
from workbench.estimate import Estimate
from workbench.exact_sum import NO_POWERS, ExactSum, add_powers
from workbench.methods.tail_risk.missed_modes import MOST_AWAY, NO_LOOK, look, share_away
from workbench.methods.tail_risk.skewed_mean import skewness_corrected
from workbench.run import Batch, State
from workbench.streams import Stream

LEAST_ESS = 30.0
_LEAST_HITS = 3
MIXTURES = tuple(np.round(np.linspace(0.0, 1.0, 25), 6).tolist())


@dataclass(frozen=True)
class Proposal:
    """Where the draws come from: q_t = (1 - mixture) q_steered + mixture p for t < switch, then q_t = p.

    strength   of the steering, in the problem's own unit
    mixture    the base model's share, in [0, 1]; above 0 it bounds each token's ratio by 1 / mixture
    switch     the first token drawn from the base model alone; None = never
    """

    strength: float = 4.0
    mixture: float = 0.2
    switch: int | None = 1

    def __post_init__(self) -> None:
        require_number("strength", self.strength, low=-1e4, high=1e4, cure="pass a finite strength such as 4.0")
        require_number("mixture", self.mixture, low=0, high=1, cure="pass the base model's share, e.g. mixture=0.2")
        if self.switch is not None:
            require_integer("switch", self.switch, low=0, cure="pass a number of tokens, or None for never")

    def log_weight_bound(self, n_tokens: int) -> float:
        """The largest possible log-weight of an answer of at most `n_tokens` tokens; inf if nothing bounds it."""
        steps = n_tokens if self.switch is None else min(self.switch, n_tokens)
        if steps == 0:
            return 0.0
        return -steps * math.log(self.mixture) if self.mixture > 0 else math.inf


def _refuse_unless_steerable(method: str, problem: Any, *needs: str) -> None:
    lacking = [need for need in needs if not callable(getattr(problem, need, None))]
    if lacking or getattr(problem, "steer", True) is None:
        raise Unsuitable(
            f"{method} needs a problem with a steered proposal, and {problem.name} has none; "
            "give the problem steer=..., or use MonteCarlo."
        )


NO_WEIGHTS: State = {
    "n": 0,
    "hits": 0,
    "weights": ExactSum(),
    "weights_squared": ExactSum(),
    "terms": NO_POWERS[:3],
    "largest_term": 0.0,
    "look": NO_LOOK,
}


def absorb_weights(state: State, batch: Batch) -> State:
    """Sufficient statistics of w and w h, exact whatever the order, and the look at the nearest plain draws."""
    hit, log_weight = np.asarray(batch["hit"]), np.asarray(batch["log_weight"], dtype=np.float64)
    if hit.dtype != bool or hit.shape != log_weight.shape:
        told = f"{hit.dtype} of shape {hit.shape}"
        raise refuse("batch['hit']", told, "hold one bool a draw", "return whether each draw hit the event")
    if np.isnan(log_weight).any() or (log_weight == np.inf).any():
        cure = "the proposal gave no probability to a token that it drew; check the steered model's logits"
        raise refuse("log_weight", "NaN or infinite", "be finite or -inf", cure)
    with np.errstate(over="ignore"):
        weight = np.exp(log_weight)
        cube = weight**3
    if not np.isfinite(cube).all():
        raise WorkbenchError(
            f"log_weight reaches {log_weight.max():.4g}, and the weight's cube overflows; "
            "give the base model a share of the proposal, e.g. mixture=0.1, or switch earlier."
        )
    term = weight * hit
    return state | {
        "n": state["n"] + len(term),
        "hits": state["hits"] + int(np.count_nonzero(term)),
        "weights": state["weights"].add(weight),
        "weights_squared": state["weights_squared"].add(weight**2),
        "terms": add_powers(state["terms"], term),
        "largest_term": max(state["largest_term"], float(term.max(initial=0.0))),
        "look": look(state["look"], batch),
    }


def importance_estimate(state: State, level: float, log_weight_bound: float) -> Estimate:
    """The estimate and its diagnostics from the sufficient statistics.

    value = sum w h / n; std_error = sqrt((sum (w h)^2 / n - value^2) / (n - 1)); Hall's interval, corrected for the
    skewness of w h (see `skewed_mean`), cut to [0, 1]; ESS = (sum w h)^2 / sum (w h)^2, the effective number of hits.
    The interval is not to be trusted, and `reliable` is False, where ESS is below 30 and where more than a twentieth of
    the nearest plain draws lie away (see `missed_modes`). Without a hit the upper end is the largest weight times the
    Clopper-Pearson bound on how often the proposal hits. Where hits are not graded, no diagnostic of the draws shows
    answers that the proposal hardly ever gives; `unseen_at_most`, the largest weight times that same bound, is what they
    could add, and the estimate says so where this exceeds the upper half of its interval.
    """
    n, hits = state["n"], state["hits"]
    if n == 0:
        return Estimate.unknown(0.0, 1.0, "no sample has been drawn yet", level=level)
    total, squares, cubes = (float(power) for power in state["terms"])
    mean_weight = float(state["weights"]) / n
    weight_variance = max(float(state["weights_squared"]) / n - mean_weight**2, 0.0)
    diagnostics = {
        "hits": hits,
        "effective_sample_size": total**2 / squares if squares > 0 else 0.0,
        "largest_weight_share": state["largest_term"] / total if total > 0 else 0.0,
        "mean_weight": mean_weight,
        "mean_weight_std_error": math.sqrt(weight_variance / n),
    }
    seldom = -math.expm1(math.log((1 - level) / 2) / n)
    high = diagnostics["unseen_at_most"] = min(1.0, math.exp(min(log_weight_bound, 700.0)) * seldom)
    common: dict[str, Any] = {"level": level, "n_samples": n, "diagnostics": diagnostics}
    if hits == 0:
        why = f"no hit in {n:,} draws; this is weaker evidence than as many plain draws would be"
        if high == 1.0:
            return Estimate.unknown(0.0, 1.0, why, **common)
        return Estimate(
            value=0.0,
            low=0.0,
            high=high,
            interval="largest weight times Clopper-Pearson",
            reliable=False,
            why=why,
            **common,
        )
    value = total / n
    if n == 1 or value > 1:
        why = (
            "a single draw has no spread"
            if n == 1
            else f"the weights are so uneven that the estimate is {value:.3g}, above 1"
        )
        return Estimate.unknown(0.0, 1.0, why, **common)
    variance = max(squares / n - value**2, 0.0)
    third = cubes / n - 3 * value * squares / n + 2 * value**3
    ends = skewness_corrected(value, variance, third, n, level)
    low, high = max(0.0, float(ends[0])), min(1.0, float(ends[1]))
    # Equal weights leave a spread of rounding errors alone.
    if low == high or diagnostics["effective_sample_size"] > n * (1 - 1e-12):
        return Estimate.unknown(0.0, 1.0, f"all {n:,} draws hit with one weight, which shows no spread", **common)
    ess, unseen = diagnostics["effective_sample_size"], diagnostics["unseen_at_most"]
    away = share_away(state.get("look", NO_LOOK))
    if away is not None:
        diagnostics["away"] = away
    why = ""
    if ess < LEAST_ESS:
        why = f"the effective number of hits is {ess:.3g}, below {LEAST_ESS:g}: the interval may be far too short"
    elif away is not None and away > MOST_AWAY:
        why = (
            f"{away:.0%} of the plain draws nearest to the event lie where the proposal seldom goes: it has other modes"
        )
    reliable = not why
    if reliable and unseen > high - value:
        why = f"a mode may have been missed: answers that the proposal hardly ever gives could add up to {unseen:.2g}"
    return Estimate(
        value=value,
        low=low,
        high=high,
        std_error=math.sqrt(variance / (n - 1)),
        interval="skewness-corrected normal",
        reliable=reliable,
        why=why,
        **common,
    )


@dataclass(frozen=True)
class ImportanceSampling:
    """QRISK by importance sampling from a given proposal; see `Proposal` and `importance_estimate`."""

    strength: float = 4.0
    mixture: float = 0.2
    switch: int | None = 1
    level: float = 0.95

    def __post_init__(self) -> None:
        _ = self.proposal
        _check_level(self.level)

    @property
    def proposal(self) -> Proposal:
        return Proposal(self.strength, self.mixture, self.switch)

    def init(self, problem: Any) -> State:
        _refuse_unless_steerable("ImportanceSampling", problem, "sample_from")
        return NO_WEIGHTS | {"max_new_tokens": getattr(problem, "max_new_tokens", 1)}

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        return problem.sample_from(self.proposal, n, stream)

    def absorb(self, state: State, batch: Batch) -> State:
        return absorb_weights(state, batch)

    def result(self, state: State) -> Estimate:
        return importance_estimate(state, self.level, self.proposal.log_weight_bound(state["max_new_tokens"]))


def _check_level(level: float) -> None:
    require_probability("level", level, cure="pass e.g. level=0.95")


@dataclass(frozen=True)
class Pilot:
    """The hits of one prompt's pilot at one strength, of `n` particles drawn.

    log_p, log_q (hits, T): log-probability of each token under the base and the steered model, padded with 0;
    log_weight (hits,): against the proposal that drew each particle, whose mixture and switch were random.
    """

    n: int
    log_p: np.ndarray
    log_q: np.ndarray
    log_weight: np.ndarray


def run_pilot(
    problem: Any, strengths: Sequence[float], particles: int, stream: Stream
) -> tuple[dict[float, Pilot], dict[float, Pilot]]:
    """One prompt's pilot: (as in the paper, each strength with its own draws; pooled over strengths).

    For each strength `particles` draws, each with a random mixture ~ U(0, 1) and switch ~ U{0..T}.
    """
    if not len(strengths):
        raise refuse("strengths", "empty", "hold at least one number", "pass e.g. strengths=(2.0, 4.0, 6.0)")
    steps = getattr(problem, "max_new_tokens", 1)
    own, parts = {}, []
    for number, strength in enumerate(strengths):
        mine = stream.child(f"strength {strength:g}")
        settings = mine.child("settings").uniforms(particles, 2)
        switch = (settings[:, 1] * (steps + 1)).astype(np.int64)
        batch = problem.pilot_from(strength, settings[:, 0], switch, particles, mine, score_under=strengths)
        hits = {name: batch[name][batch["hit"]] for name in ("log_p", "log_q", "log_weight")}
        own[strength] = Pilot(particles, hits["log_p"], hits["log_q"][:, number], hits["log_weight"])
        parts.append(hits)
    log_p, log_q, log_weight = (
        np.concatenate([part[name] for part in parts]) for name in ("log_p", "log_q", "log_weight")
    )
    return own, pooled(strengths, particles * len(strengths), log_p, log_q, log_weight)


def pooled(
    strengths: Sequence[float], n: int, log_p: np.ndarray, log_q: np.ndarray, log_weight: np.ndarray
) -> dict[float, Pilot]:
    """One prompt's pilot with the hits of all strengths in each strength's loss (departure 4).

    log_p (hits, T), log_q (hits, strengths, T), log_weight (hits,) against the proposal that drew each; n particles
    in all.
    """
    return {strength: Pilot(n, log_p, log_q[:, number], log_weight) for number, strength in enumerate(strengths)}


def log_weights(log_p: np.ndarray, log_q: np.ndarray, mixture: float) -> np.ndarray:
    """(rows, T + 1) log w of each path for each switch 0..T at one mixture, from token log-probs (rows, T).

    Column s: sum over t < s of log p_t - log((1 - mixture) q_t + mixture p_t). Two forward passes of each
    path give the weight under every mixture and switch.
    """
    require_number("mixture", mixture, low=0, high=1, cure="pass the base model's share, e.g. mixture=0.2")
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mixed = np.logaddexp(np.log1p(-mixture) + log_q, np.log(mixture) + log_p)
    steps = np.where(log_p == log_q, 0.0, log_p - log_mixed)
    return np.concatenate([np.zeros((len(steps), 1)), np.cumsum(steps, axis=1)], axis=1)


def cross_entropy(pilot: Pilot, mixtures: Sequence[float] = MIXTURES) -> np.ndarray:
    """(mixtures, T + 1) the loss -(1/n) sum_i w_i h_i log q_phi(x_i) for every mixture and switch at one strength."""
    bad = ~(pilot.log_weight < 700)
    if bad.any():
        cure = "give the base model a share of the pilot's proposals, and check the steered model's logits"
        raise refuse("log_weight", pilot.log_weight[bad][0], "be a number below 700", cure)
    counts = pilot.log_weight > -np.inf  # where w = 0 the base model can't give the path: log q may be -inf too
    log_p, log_q, weight = pilot.log_p[counts], pilot.log_q[counts], np.exp(pilot.log_weight[counts])
    path = log_p.sum(axis=1)
    return np.stack([-(weight @ (path[:, None] - log_weights(log_p, log_q, m))) / pilot.n for m in mixtures])


def choose_proposal(
    pilots: Sequence[Mapping[float, Pilot]],
    *,
    mixtures: Sequence[float] = MIXTURES,
    least_mixture: float = 0.1,
    free_switch: int = 0,
) -> tuple[Proposal | None, np.ndarray, tuple[float, ...]]:
    """The proposal of smallest cross entropy over all prompts; one proposal for all, as in the paper.

    pilots: for each prompt a pilot by strength. Each prompt's losses are divided by their own sum, so that no
    prompt drowns the others; a prompt without a hit contributes nothing. Excluded from the choice: strengths with
    fewer than 3 hits over all prompts (departure 3), and mixtures below `least_mixture` with switches later than
    `free_switch` (departure 2; least_mixture=0 is the paper's plain grid).

    Returns (proposal or None where no strength has hits enough, loss (strengths, mixtures, T + 1), strengths).
    """
    if not pilots or not pilots[0] or any(pilot.keys() != pilots[0].keys() for pilot in pilots):
        told = [tuple(by_strength) for by_strength in pilots]
        must = "hold one pilot for each strength, the same strengths for every prompt"
        raise refuse("pilots", f"of strengths {told}", must, "pass what run_pilot gives for each prompt")
    require_number("least_mixture", least_mixture, low=0, high=1, cure="pass e.g. 0.1, or 0 for the paper's grid")
    require_integer("free_switch", free_switch, low=0, cure="pass 0, or 1 to free switches after one token")
    strengths = tuple(pilots[0])
    n_switches = next(iter(pilots[0].values())).log_p.shape[1] + 1
    loss = np.zeros((len(strengths), len(mixtures), n_switches))
    for by_strength in pilots:
        own = np.stack([cross_entropy(by_strength[strength], mixtures) for strength in strengths])
        total = own[np.isfinite(own)].sum()  # infinite: the setting can't draw a path that was seen to hit
        if total > 0:
            loss += own / total
    hits = np.array([sum(np.count_nonzero(each[s].log_weight > -np.inf) for each in pilots) for s in strengths])
    allowed = np.isfinite(loss)
    allowed[hits < _LEAST_HITS] = False
    allowed[:, np.asarray(mixtures) < least_mixture, free_switch + 1 :] = False
    if not allowed.any():
        return None, loss, strengths
    best = [int(at) for at in np.unravel_index(np.argmin(np.where(allowed, loss, np.inf)), loss.shape)]
    return Proposal(strengths[best[0]], float(mixtures[best[1]]), best[2]), loss, strengths


@dataclass(frozen=True)
class CrossEntropy:
    """Importance sampling from a proposal that a pilot chose; the pilot's draws are paid for and not reused.

    strengths            tried by the pilot
    particles            pilot draws for each strength, with random mixture ~ U(0, 1) and switch ~ U{0..T}
    level                of the interval
    If the pilot finds too few hits, the draws go on from `Proposal()` and the estimate says so.
    """

    strengths: tuple[float, ...] = (2.0, 4.0, 6.0)
    particles: int = 50
    level: float = 0.95

    def __post_init__(self) -> None:
        strengths = require_finite("strengths", self.strengths, "pass e.g. strengths=(2.0, 4.0, 6.0)")
        if strengths.ndim != 1 or len(set(self.strengths)) != len(self.strengths):
            raise refuse("strengths", self.strengths, "be different numbers", "pass e.g. strengths=(2.0, 4.0, 6.0)")
        for strength in self.strengths:
            require_number("strengths", strength, low=-1e4, high=1e4, cure="pass e.g. strengths=(2.0, 4.0, 6.0)")
        require_integer("particles", self.particles, low=1, cure="100 is usual")
        _check_level(self.level)

    @property
    def n_pilot(self) -> int:
        return len(self.strengths) * self.particles

    def init(self, problem: Any) -> State:
        _refuse_unless_steerable("CrossEntropy", problem, "sample_from", "pilot_from")
        steps = getattr(problem, "max_new_tokens", 1)
        population = {
            "index": np.zeros(0, dtype=np.int64),
            "log_p": np.zeros((0, steps)),
            "log_q": np.zeros((0, len(self.strengths), steps)),
            "log_weight": np.zeros(0),
        }
        return {
            "pilot_seen": 0,
            "pilot_hits": 0,
            "population": population,
            "proposal": None,
            "max_new_tokens": steps,
            "final": NO_WEIGHTS,
        }

    def round_size(self, problem: Any, state: State) -> int | None:
        return None if state["proposal"] else self.n_pilot - state["pilot_seen"]

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        if state["proposal"]:
            return problem.sample_from(_proposal(state), n, stream)
        # Sample i belongs to strength i // particles; its own numbers choose its mixture and switch.
        index = np.arange(stream.first, stream.first + n)
        settings = stream.child("pilot").at(stream.first).uniforms(n, 2)
        switches = (settings[:, 1] * (state["max_new_tokens"] + 1)).astype(np.int64)
        parts = []
        for number in np.unique(index // self.particles):
            rows = np.flatnonzero(index // self.particles == number)
            at = stream.at(int(index[rows[0]]))
            drawn = settings[rows, 0], switches[rows], len(rows), at
            parts.append(problem.pilot_from(self.strengths[number], *drawn, score_under=self.strengths))
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return batch | {"index": index}

    def absorb(self, state: State, batch: Batch) -> State:
        if state["proposal"]:
            return state | {"final": absorb_weights(state["final"], batch)}
        hit = np.asarray(batch["hit"], dtype=bool)
        population = {name: np.concatenate([values, batch[name][hit]]) for name, values in state["population"].items()}
        seen = state["pilot_seen"] + len(hit)
        state = state | {
            "pilot_seen": seen,
            "pilot_hits": state["pilot_hits"] + int(hit.sum()),
            "population": population,
        }
        return self._choose(state) if seen == self.n_pilot else state

    def _choose(self, state: State) -> State:
        """End of the pilot: the population, in the order of its samples, gives the proposal and is dropped."""
        population = state["population"]
        order = np.argsort(population["index"])
        log_p, log_q, log_weight = (population[name][order] for name in ("log_p", "log_q", "log_weight"))
        pilots = pooled(self.strengths, self.n_pilot, log_p, log_q, log_weight)
        chosen = choose_proposal([pilots])[0]
        proposal = chosen or Proposal()
        record = {
            "strength": proposal.strength,
            "mixture": proposal.mixture,
            "switch": proposal.switch,
            "chosen": chosen is not None,
        }
        return state | {"population": {}, "proposal": record}

    def result(self, state: State) -> Estimate:
        pilot = {"pilot_samples": state["pilot_seen"], "pilot_hits": state["pilot_hits"]}
        if not state["proposal"]:
            why = f"the pilot is under way ({state['pilot_seen']} of {self.n_pilot} draws)"
            return Estimate.unknown(0.0, 1.0, why, level=self.level, n_samples=state["pilot_seen"], diagnostics=pilot)
        proposal = _proposal(state)
        estimate = importance_estimate(state["final"], self.level, proposal.log_weight_bound(state["max_new_tokens"]))
        why = estimate.why
        if not state["proposal"]["chosen"]:
            why = f"{why}; " * bool(why) + "the pilot found too few hits, so the proposal is the default one"
        return estimate.with_run(
            n_samples=state["pilot_seen"] + estimate.n_samples,
            diagnostics=estimate.diagnostics
            | pilot
            | {f"proposal_{name}": value for name, value in state["proposal"].items()},
            why=why,
        )


def _proposal(state: State) -> Proposal:
    chosen = state["proposal"]
    return Proposal(chosen["strength"], chosen["mixture"], chosen["switch"])
