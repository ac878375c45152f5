"""Solo, McDermott, Parker, Ramadan, Burkhart, Beaulieu-Jones: "Efficient Variance-reduced Estimation from Generative EHR
Models: The SCOPE and REACH Estimators", arXiv 2602.03730 (2026).

Computes the probability that a token of a set O is generated before the text ends or a horizon is reached, from the
hazards h_t = P(x_t in O | x_<t) that a model gives at every step anyway. tau is the first step at which a token of O or
an end is drawn, or the last step of all.

    Monte Carlo  1{x_tau in O}                                      paths as they come
    SCOPE        S = sum_{t <= tau} h_t                             the same paths
    REACH        R = 1 - prod_t (1 - h_t)                           paths with O suppressed, q = p / (1 - h_t) off O

All three have the risk for their mean. 1{hit by t} - sum_{s <= t} h_s is a martingale, hence SCOPE; S may exceed 1 and
its variance that of Monte Carlo. E_q prod (1 - h_t) adds up the paths free of O, hence REACH; 0 <= R <= 1 gives
Var R = E R^2 - p^2 <= p (1 - p) for every model and outcome.

Does: paths with their hazards, on any model that gives next-token laws (`scope_paths`, `reach_paths`), several outcomes
from one pool of paths (`pooled_paths`), and both as estimators of a `ModelEvent`.
Does not: outcomes of several tokens in a row; another temperature than the model's own, since that is another model's
risk; exact moments, which are in `hazard_chains`.

Departures from the released code:
1. The step that ends a path counts, whatever ends it: its hazard was at stake. Left out, both estimators are low, the more
   so the larger the hazards: by an eighth for falls on the market, by nearly half for an announced streak of them.
2. So does the step whose token crosses a horizon in time; that token itself is not kept as part of the path.
3. A path that is empty, or longer than the model's context, is refused; the code scores it 0 or cuts it silently.
4. A certain outcome (h = 1) ends a REACH path with R = 1; there is no law left to draw from.
5. SCOPE is not clipped at 1, which would bias it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import rel_entr
from scipy.stats import norm

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
from workbench.exact_sum import ExactSum
from workbench.methods.tail_risk.proportions import clopper_pearson, room_for_unseen
from workbench.models.base import LanguageModel, check_tokens
from workbench.models.sampling import event_mass, sample, sample_in_step
from workbench.problems.event import generates
from workbench.run import Batch, State
from workbench.streams import Stream

LEAST_ESS = 30.0


@dataclass(frozen=True)
class HazardPaths:
    """Paths and the hazard of every step of theirs; row r belongs to prompt r // n.

    tokens (rows, T) int64 padded with -1; lengths (rows,), the step that ended the path included;
    hazards (rows, T) = P(outcome at this step | path so far) under the model's own law, padded with 0;
    hit (rows,): whether the path ended with the outcome.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    hazards: np.ndarray
    hit: np.ndarray

    @property
    def scope(self) -> np.ndarray:
        """(rows,) S = sum of the hazards; for paths that stop at the outcome. May exceed 1."""
        return self.hazards.sum(axis=1)

    @property
    def reach(self) -> np.ndarray:
        """(rows,) R = 1 - prod (1 - hazard), in [0, 1]; for paths with the outcome suppressed."""
        return reach_risk(self.hazards)


def reach_risk(hazards: np.ndarray) -> np.ndarray:
    """1 - prod_t (1 - h_t) over the last axis of hazards in [0, 1], in log space; 1 where any hazard is 1."""
    hazards = require_finite("hazards", hazards, "pass probabilities, padded with 0")
    if (hazards < 0).any() or (hazards > 1).any():
        outside = hazards[(hazards < 0) | (hazards > 1)][0]
        raise refuse("hazards", outside, "lie from 0 to 1", "pass P(outcome | path so far) of each step")
    with np.errstate(divide="ignore"):
        return -np.expm1(np.log1p(-hazards).sum(axis=-1))


def scope_paths(
    model: LanguageModel,
    prompts: Any,
    outcome: Sequence[int],
    *,
    n: int = 1,
    max_new_tokens: int,
    stream: Stream,
    end_ids: Sequence[int] = (),
    durations: Sequence[float] | None = None,
    time_horizon: float | None = None,
) -> HazardPaths:
    """n paths of each prompt as the model goes, each up to the first token of `outcome`: for Monte Carlo and SCOPE.

    outcome       token ids; a token that is both outcome and end is an outcome
    end_ids       tokens that end a path besides the model's own end
    durations     (vocab_size,) the time that each token takes, 0 for the outcome's, with `time_horizon` in the same
                  unit: a path ends with the token that would take its total beyond the horizon
    Raises WorkbenchError: no outcome, one of several tokens, an id outside the vocabulary, a model without next-token
    laws, durations that don't fit.
    """
    ids = outcome_ids(model, outcome)
    drawn = sample(
        model,
        prompts,
        n=n,
        max_new_tokens=max_new_tokens,
        stream=stream,
        stop_ids=(*end_ids, *ids),
        stop=_out_of_time(model, ids, durations, time_horizon),
        record=event_mass(ids),
    )
    return _hazard_paths(drawn.tokens, drawn.lengths, drawn.recorded, ids)


def reach_paths(
    model: LanguageModel,
    prompts: Any,
    outcome: Sequence[int],
    *,
    n: int = 1,
    max_new_tokens: int,
    stream: Stream,
    end_ids: Sequence[int] = (),
    durations: Sequence[float] | None = None,
    time_horizon: float | None = None,
) -> HazardPaths:
    """n paths of each prompt from the law with `outcome` suppressed and renormalised, with the hazards of the model's
    own law: for REACH. Arguments as in `scope_paths`. A path hits where the outcome was certain (hazard 1), and there
    alone."""
    import torch

    ids = outcome_ids(model, outcome)
    mass, kept = event_mass(ids), np.full((0, max_new_tokens + 1), -np.inf)

    def suppress(laws: list[torch.Tensor], rows: np.ndarray, steps: np.ndarray) -> torch.Tensor:
        nonlocal kept
        if rows.max() >= len(kept):
            more = np.full((max(int(rows.max()) + 1, 2 * len(kept)) - len(kept), kept.shape[1]), -np.inf)
            kept = np.concatenate([kept, more])
        # A row that has ended is at the column after its last, which nobody reads.
        kept[rows, steps] = mass(laws[0]).double().cpu().numpy()
        masked = laws[0].clone()
        masked[:, ids] = -torch.inf
        certain = masked.amax(dim=-1, keepdim=True) == -torch.inf
        return torch.log_softmax(torch.where(certain, laws[0], masked), dim=-1)

    drawn = sample_in_step(
        [model],
        prompts,
        fuse=suppress,
        n=n,
        max_new_tokens=max_new_tokens,
        stream=stream,
        stop_ids=(*end_ids, *ids),
        stop=_out_of_time(model, ids, durations, time_horizon),
    )
    return _hazard_paths(drawn.tokens, drawn.lengths, kept[: len(drawn), :-1], ids)


def pooled_paths(
    model: LanguageModel,
    prompts: Any,
    outcomes: Mapping[str, Sequence[int]],
    *,
    n: int = 1,
    max_new_tokens: int,
    stream: Stream,
    end_ids: Sequence[int] = (),
) -> dict[str, HazardPaths]:
    """One pool of paths, none of them stopped by an outcome, read once for each of several outcomes.

    For each outcome the paths are cut at its own first token, which is where SCOPE has to stop.
    """
    import torch

    if not outcomes:
        raise refuse("outcomes", "empty", "name at least one outcome", "pass e.g. {'fault': [2], 'crash': [3]}")
    named = {name: outcome_ids(model, ids) for name, ids in outcomes.items()}
    masses = [event_mass(ids) for ids in named.values()]
    drawn = sample(
        model,
        prompts,
        n=n,
        max_new_tokens=max_new_tokens,
        stream=stream,
        stop_ids=end_ids,
        record=lambda log_probs: torch.stack([mass(log_probs) for mass in masses], dim=-1),
    )
    assert drawn.recorded is not None
    pooled = {}
    for number, (name, ids) in enumerate(named.items()):
        struck = np.isin(drawn.tokens, ids)
        lengths = np.where(struck.any(axis=1), struck.argmax(axis=1) + 1, drawn.lengths)
        tokens = np.where(np.arange(max_new_tokens) < lengths[:, None], drawn.tokens, -1)
        pooled[name] = _hazard_paths(tokens, lengths, drawn.recorded[:, :, number], ids)
    return pooled


def outcome_ids(model: LanguageModel, outcome: Any) -> list[int]:
    """The outcome's token ids, checked against the model."""
    model.require("next_log_probs")
    cure = "pass single tokens, e.g. outcome=[2]; a phrase has no hazard at one step"
    if isinstance(outcome, (str, bytes)) or not hasattr(outcome, "__iter__"):
        raise refuse("outcome", outcome, "be a list of token ids", cure)
    ids = sorted({require_integer(f"outcome[{i}]", token, low=0, cure=cure) for i, token in enumerate(outcome)})
    if not ids:
        raise refuse("outcome", "empty", "hold at least one token id", cure)
    check_tokens(model, "outcome", np.array(ids))
    return ids


def _hazard_paths(tokens: np.ndarray, lengths: np.ndarray, log_hazards: Any, ids: list[int]) -> HazardPaths:
    steps = np.arange(tokens.shape[1]) < lengths[:, None]
    # Rounding may take the logarithm of a certain outcome's probability past 0.
    hazards = np.where(steps, np.exp(np.minimum(log_hazards, 0.0)), 0.0)
    last = tokens[np.arange(len(tokens)), lengths - 1]
    return HazardPaths(tokens, lengths, hazards, np.isin(last, ids))


def _out_of_time(
    model: LanguageModel, ids: list[int], durations: Sequence[float] | None, time_horizon: float | None
) -> Callable[[np.ndarray], np.ndarray] | None:
    if durations is None and time_horizon is None:
        return None
    if durations is None or time_horizon is None:
        raise WorkbenchError(
            "durations and time_horizon belong together: pass both, in one unit, or neither for a horizon in tokens."
        )
    times = require_finite("durations", durations, "give each token the time that it takes")
    horizon = require_number("time_horizon", time_horizon, low=0, cure="pass a time such as 24.0")
    if times.shape != (model.vocab_size,) or (times < 0).any():
        must = f"hold a time of at least 0 for each of {model.vocab_size} tokens"
        raise refuse("durations", f"of shape {times.shape}, smallest {times.min():g}", must, "use 0 where none passes")
    if times[ids].any():
        cure = "give the outcome's tokens the duration 0: the time passes with the tokens before them"
        raise refuse("the outcome's duration", times[ids].max(), "be 0", cure)
    return lambda tokens: times[tokens].sum(axis=1) > horizon


def chernoff_interval(mean: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """{p: n KL(mean, p) <= log(2 / (1 - level))}, KL of Bernoulli laws: covers E X at least at `level` for the mean of n
    independent draws of any law on [0, 1] (Chernoff 1952, Hoeffding 1963). At mean 0 it is Clopper and Pearson's."""
    mean = require_number("mean", mean, low=0, high=1, cure="average draws from [0, 1]")
    n = require_integer("n", n, low=1, cure="draw at least one sample")
    level = require_probability("level", level, cure="pass e.g. level=0.95")
    most = math.log(2 / (1 - level)) / n

    def excess(p: float) -> float:
        return float(rel_entr(mean, p) + rel_entr(1 - mean, 1 - p)) - most

    def root(left: float, right: float) -> float:
        # On the log scale: the lower end of a small mean may lie dozens of powers of ten below it.
        found: Any = brentq(lambda x: excess(math.exp(x)), math.log(left), math.log(right), xtol=1e-15)
        return math.exp(found)

    tiny, almost = np.finfo(float).tiny, float(np.nextafter(1.0, 0.0))
    low = 0.0 if mean == 0 or excess(tiny) <= 0 else root(tiny, mean)
    if mean == 1:
        low = math.exp(-most)
    high = -math.expm1(-most) if mean == 0 else 1.0
    if 0 < mean < almost and excess(almost) > 0:
        high = root(mean, almost)
    return min(low, mean), max(high, mean)


def event_outcome(method: str, problem: Any) -> list[int]:
    """The token ids whose generation is the problem's event, or a refusal."""
    judge, model = getattr(problem, "judge", None), getattr(problem, "model", None)
    if not (isinstance(judge, partial) and judge.func is generates and len(judge.args) == 1):
        raise Unsuitable(
            f"{method} needs an outcome that is one token of a set, and {problem.name} has none; "
            "pass a ModelEvent whose judge is partial(generates, token_ids), or use MonteCarlo."
        )
    if "next_log_probs" not in getattr(model, "capabilities", ()):
        raise Unsuitable(
            f"{method} reads hazards off next-token laws, and the model of {problem.name} does not give them; "
            "load it on this machine, or use MonteCarlo."
        )
    return outcome_ids(problem.model, judge.args[0])


@dataclass(frozen=True)
class _Hazards:
    """What the two estimators share: which event they accept, and exact sums of their terms."""

    level: float = 0.95

    def __post_init__(self) -> None:
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        event_outcome(type(self).__name__, problem)
        return {"n": 0, "hits": 0, "terms": ExactSum(), "terms_squared": ExactSum()}

    def _draw(
        self, paths: Callable[..., HazardPaths], problem: Any, n: int, stream: Stream
    ) -> tuple[HazardPaths, Batch]:
        drawn = paths(
            problem.model,
            [problem.prompt],
            event_outcome(type(self).__name__, problem),
            n=n,
            max_new_tokens=problem.max_new_tokens,
            stream=stream,
            end_ids=problem.stop_ids,
        )
        return drawn, {"hit": drawn.hit, "tokens": len(problem.prompt) + drawn.lengths}

    def absorb(self, state: State, batch: Batch) -> State:
        term = require_finite("batch['term']", batch["term"], "look for logits that are not numbers", allow_empty=True)
        return {
            "n": state["n"] + len(term),
            "hits": state["hits"] + int(np.count_nonzero(batch["hit"])),
            "terms": state["terms"].add(term),
            "terms_squared": state["terms_squared"].add(term**2),
        }

    def _moments(self, state: State) -> tuple[float, float, float]:
        """Mean, mean square and variance of a term."""
        mean, square = (float(state[name]) / state["n"] for name in ("terms", "terms_squared"))
        return mean, square, max(square - mean**2, 0.0) * state["n"] / max(state["n"] - 1, 1)

    def _estimate(self, state: State, ess: float, fallback: tuple[str, float, float]) -> Estimate:
        """The normal interval where `ess` allows it, else the fallback (its name, low, high), which always holds.

        The normal one has room above for paths that were never drawn (`room_for_unseen`).
        """
        n, level = state["n"], self.level
        mean, _, variance = self._moments(state)
        std_error, (interval, low, high) = math.sqrt(variance / n), fallback
        unseen = clopper_pearson(0, n, level)[1]
        diagnostics = {"effective_sample_size": ess, "unseen_at_most": unseen}
        if variance > 0:
            diagnostics["variance_ratio"] = max(mean * (1 - mean), 0.0) / variance
        why = ""
        # Equal terms leave a spread of rounding errors alone.
        if ess >= LEAST_ESS and variance > 1e-12 * mean**2:
            half = float(norm.isf((1 - level) / 2)) * std_error
            high, moved, why = room_for_unseen(mean, mean + half, unseen)
            interval = "normal below, unseen paths above" if moved else "normal"
            low, high = max(0.0, mean - half), min(1.0, high)
        if mean > 1:
            why = f"the sums of hazards are so uneven that their mean is {mean:.3g}, above 1; draw more paths"
            return Estimate.unknown(0.0, 1.0, why, level=level, n_samples=n, diagnostics=diagnostics)
        return Estimate(
            value=mean,
            low=min(low, mean),
            high=max(high, mean),
            std_error=std_error if variance > 0 else None,
            level=level,
            interval=interval,
            n_samples=n,
            why=why,
            diagnostics=diagnostics,
        )


@dataclass(frozen=True)
class Scope(_Hazards):
    """The risk by SCOPE: the mean over ordinary paths of their summed hazards.

    Normal interval where the effective number of terms, (sum S)^2 / sum S^2, is at least 30, with an upper end for unseen
    paths where the risk is too small for n paths to rule them out (`unseen_at_most`); below 30 Clopper and Pearson's on the
    hits of the same paths, which needs no trust in the sums.
    """

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        drawn, batch = self._draw(scope_paths, problem, n, stream)
        return batch | {"term": drawn.scope}

    def result(self, state: State) -> Estimate:
        n = state["n"]
        if n == 0:
            return Estimate.unknown(0.0, 1.0, "no sample has been drawn yet", level=self.level)
        mean, square, _ = self._moments(state)
        ess = n * mean**2 / square if square > 0 else 0.0
        low, high = clopper_pearson(state["hits"], n, self.level)
        return self._estimate(state, ess, ("Clopper-Pearson on the hits", low, high))


@dataclass(frozen=True)
class Reach(_Hazards):
    """The risk by REACH: the mean over paths with the outcome suppressed of 1 - prod (1 - hazard).

    Normal interval where the effective numbers of terms R and of terms 1 - R are at least 30, with an upper end for unseen
    paths where the risk is too small for n paths to rule them out (`unseen_at_most`); below 30 Chernoff's, which holds for
    any law on [0, 1] and any n.
    """

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        drawn, batch = self._draw(reach_paths, problem, n, stream)
        return batch | {"term": drawn.reach}

    def result(self, state: State) -> Estimate:
        n = state["n"]
        if n == 0:
            return Estimate.unknown(0.0, 1.0, "no sample has been drawn yet", level=self.level)
        mean, square, _ = self._moments(state)
        opposite = 1 - 2 * mean + square
        ess = min(n * part**2 / whole if whole > 0 else 0.0 for part, whole in ((mean, square), (1 - mean, opposite)))
        low, high = chernoff_interval(min(mean, 1.0), n, self.level)
        return self._estimate(state, ess, ("Chernoff", low, high))
