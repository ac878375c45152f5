"""Adaptive multilevel splitting along generation: answers that come near the event are branched, the others are ended.

P(a token of O is generated | prompt), O a set of tokens. Splitting as in Cerou and Guyader, "Adaptive multilevel splitting
for rare event analysis", Stochastic Analysis and Applications 25 (2007); for paths, Brehier, Gazeau, Goudenege, Lelievre
and Rousset, "Unbiasedness of some generalized adaptive multilevel splitting algorithms", Annals of Applied Probability 26
(2016): the mean over a replicate is right for every score, N and kill share, and for every function of the path.

A path is an answer drawn with O suppressed, and its term is phi = 1 - prod_t (1 - h_t), h_t = P(x_t in O | x_<t), whose
mean is the risk (REACH; Solo et al., arXiv 2602.03730). Every prefix has a score, a path the highest of its prefixes'.
N paths of weight w / N each, w = 1 at first. The level L is the ceil(kill N)-th smallest score; the K paths of a score
<= L are booked with their weight and replaced: each new path takes another's (chosen uniformly among the rest) up to the
first prefix with a score above L, and is drawn anew from there; w becomes w (1 - K / N). In the end all are booked:

    Z = sum over all paths ever drawn of (their weight) phi,      E Z = P(event),     0 <= Z <= 1.

It ends where nothing is above L, or where w, which bounds what is still to come, is at most `rest` of what has been
booked. (Both are known from the paths up to L. To end where the paths at hand look good would look ahead, and bias Z.)
Replicates are independent and make the interval. Without conditioning, paths go as the model does, phi = 1{hit}, and a
hit scores above all: the classical algorithm.

Scores: "hazard", h of the prefix; "learned", h + sum_v P(v | prefix) V(t + 1, v) over the other tokens v, where V is the
mean of 1 - prod over later steps (1 - h) by step and last token, from a paid pilot of plain paths; "none".

One sample is one replicate of N paths. A new path is charged as a fresh answer that begins with what it took over.
Does: the events that `Reach` accepts. Does not: keep sessions to branch from; find what no score leads to and no path of
the first population met: a risk that is one improbable token away is found by chance, as by plain paths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.budget import charge
from workbench.errors import (
    refuse,
    require_choice,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)
from workbench.estimate import Estimate
from workbench.exact_sum import NO_POWERS, ExactSum, add_powers, spread_of
from workbench.methods.tail_risk.proportions import clopper_pearson, room_for_unseen
from workbench.methods.tail_risk.scope_reach import chernoff_interval, event_outcome
from workbench.methods.tail_risk.skewed_mean import log_scale_t
from workbench.models.base import Session, surviving_memory
from workbench.models.laws import draw
from workbench.run import Batch, State
from workbench.streams import Stream

if TYPE_CHECKING:
    import torch

SCORES = ("hazard", "learned", "none")
_MOST_LEVELS = 2000
_LEAST_REPLICATES = 5
_LEAST_CARRIERS = 10.0
_SHRINK = 4.0  # pseudo-paths by which a class of prefixes is drawn to the mean of its step


@dataclass(frozen=True)
class ToGo:
    """V(t, last token), learned from paths: tokens (paths, T) padded with -1, to_go (paths, T) of each step's prefix."""

    tokens: np.ndarray
    to_go: np.ndarray

    def after(self, step: int, ends: np.ndarray) -> np.ndarray:
        """(vocab_size,) V of prefixes of `step` tokens by their last one; 0 where that ends a path."""
        none = np.zeros(len(ends))
        if step == self.tokens.shape[1]:
            return none
        last = self.tokens[:, step - 1]
        goes = (last >= 0) & ~ends[last]
        if not goes.any():
            return none
        counts = np.bincount(last[goes], minlength=len(ends))
        sums = np.bincount(last[goes], self.to_go[goes, step], minlength=len(ends))
        return np.where(ends, 0.0, (sums + _SHRINK * self.to_go[goes, step].mean()) / (counts + _SHRINK))


class Answers:
    """n answers under way or ended, row by row.

    tokens (n, T) padded with -1; strikes (n, T): h of each step, or 1 for a hit where there is no conditioning;
    scores (n, T + 1): of the prefix of t tokens, -inf where no law was read; spent (n,) tokens.
    """

    def __init__(self, problem: Any, outcome: list[int], learned: ToGo | None, score: str, conditioning: bool, n: int):
        self.problem, self.outcome, self.learned = problem, outcome, learned
        self.score, self.conditioning = score, conditioning
        steps, vocabulary = problem.max_new_tokens, np.arange(problem.model.vocab_size)
        self.tokens, self.strikes = np.full((n, steps), -1), np.zeros((n, steps))
        self.scores, self.spent = np.full((n, steps + 1), -np.inf), np.zeros(n, dtype=np.int64)
        self.hits = np.isin(vocabulary, outcome)
        self.ends = self.hits | np.isin(vocabulary, [*problem.model.eos_ids, *problem.stop_ids])

    def terms(self, rows: np.ndarray) -> np.ndarray:
        """rows' shape and T: phi step by step, P(the outcome comes at this step, and not before)."""
        strikes = self.strikes[rows]
        with np.errstate(divide="ignore"):
            free = np.cumsum(np.log1p(-strikes), axis=-1)
        return strikes * np.exp(np.concatenate([np.zeros_like(free[..., :1]), free[..., :-1]], axis=-1))

    def branch(self, rows: np.ndarray, parents: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Gives each row its parent's past up to the first prefix with a score above the height; returns that prefix'
        length. What is known of the prefix itself goes along; what came after it does not."""
        at = (self.scores[parents] > heights[:, None]).argmax(axis=1)
        steps = np.arange(self.tokens.shape[1] + 1)
        known = steps <= at[:, None]
        self.scores[rows] = np.where(known, self.scores[parents], -np.inf)
        self.tokens[rows] = np.where(known[:, 1:], self.tokens[parents], -1)
        kept = known[:, :-1] if self.conditioning else known[:, 1:]
        self.strikes[rows] = np.where(kept, self.strikes[parents], 0.0)
        return at

    def grow(self, rows: np.ndarray, at: np.ndarray, uniforms: np.ndarray) -> None:
        """Draws the rows on from their prefix of `at` tokens, with uniforms (len(rows), T) by step.

        A branch that has nothing left to draw, since all of its parent was taken over, reads nothing.
        """
        ended = self.ends[self.tokens[rows, at - 1]] | (at == self.tokens.shape[1] - self.conditioning)
        goes = (at == 0) | ~ended
        rows, at, uniforms = rows[goes], at[goes], uniforms[goes]
        order = np.argsort(at, kind="stable")
        surviving_memory([self.problem.model], order, lambda block: self._grow(rows[block], at[block], uniforms[block]))

    def _grow(self, rows: np.ndarray, at: np.ndarray, uniforms: np.ndarray) -> None:
        """Rows in the order of `at`: each enters at its own step, and all that are under way go in step."""
        model, prompt = self.problem.model, np.array(self.problem.prompt)
        session: Session | None = None
        alive, spent = np.zeros(0, dtype=bool), len(prompt) + at
        for step in range(int(at[0]), self.tokens.shape[1]):
            entering = rows[at == step]
            if len(entering):
                fresh = model.start(
                    np.column_stack([np.tile(prompt, (len(entering), 1)), self.tokens[entering, :step]])
                )
                charge(tokens=len(entering))
                session = fresh if session is None else session.join(fresh)
                alive = np.append(alive, np.ones(len(entering), dtype=bool))
            here = len(alive)
            spent[:here] += alive
            if session is not None and alive.any():
                self._step(session, step, rows[:here], alive, at[:here] < step, uniforms[:here, step])
        self.spent[rows] += spent

    def _step(
        self, session: Session, step: int, rows: np.ndarray, alive: np.ndarray, new: np.ndarray, uniforms: np.ndarray
    ) -> None:
        """Scores the prefixes (but those taken over, which are scored), draws a token for each, and reads it."""
        import torch

        laws = session.log_probs
        hazards = torch.logsumexp(laws[:, self.outcome], dim=-1).exp().clamp(max=1.0).cpu().numpy()
        scored = alive & (new | (step == 0))
        self.scores[rows[scored], step] = self._scores(laws, hazards, step)[scored]
        if self.conditioning:
            self.strikes[rows[scored], step] = hazards[scored]
            alive &= hazards < 1
            free = laws.clone()
            free[:, self.outcome] = -torch.inf
            laws = torch.where(torch.as_tensor(hazards < 1, device=laws.device)[:, None], free, laws)
        last = step + 1 == self.tokens.shape[1]
        if not alive.any() or (last and self.conditioning):
            return
        tokens = draw(laws, torch.as_tensor(uniforms, device=laws.device))[0].cpu().numpy()
        self.tokens[rows[alive], step] = tokens[alive]
        if not self.conditioning:
            hit = rows[alive & self.hits[tokens]]
            self.strikes[hit, step], self.scores[hit, step + 1] = 1.0, np.inf
        alive &= ~self.ends[tokens]
        if not last and alive.any():
            session.advance(np.where(alive, tokens, -1))

    def _scores(self, laws: torch.Tensor, hazards: np.ndarray, step: int) -> np.ndarray:
        if self.score == "none":
            return np.zeros(len(hazards))
        if self.learned is None:
            return hazards
        import torch

        onward = torch.as_tensor(self.learned.after(step + 1, self.ends)).to(laws)
        # Not a matrix product, whose last bits may move with the number of rows.
        return hazards + (laws.exp() * onward).sum(dim=-1).cpu().numpy()


@dataclass(frozen=True)
class Replicates:
    """n replicates: by_step (n, T), whose sum over steps is Z; first (n,), the mean phi of the first population, which are
    plain paths; levels (n,); tokens (n,) paid."""

    by_step: np.ndarray
    first: np.ndarray
    levels: np.ndarray
    tokens: np.ndarray


def replicates(
    problem: Any,
    outcome: list[int],
    n: int,
    stream: Stream,
    *,
    particles: int,
    kill: float,
    rest: float,
    score: str,
    learned: ToGo | None = None,
    conditioning: bool = True,
) -> Replicates:
    """n replicates of the module's algorithm on a `ModelEvent`; row j is sample `stream.first + j`."""
    steps = problem.max_new_tokens
    answers = Answers(problem, outcome, learned, score, conditioning, n * particles)

    def uniforms(samples: np.ndarray, level: int) -> np.ndarray:
        """(samples, particles, T + 1): the last one chooses the parent."""
        width = particles * (steps + 1)
        return stream.uniforms_of(samples, width, step=level * width).reshape(len(samples), particles, steps + 1)

    everyone = np.arange(n * particles)
    answers.grow(everyone, np.zeros_like(everyone), uniforms(np.arange(n), 0).reshape(-1, steps + 1)[:, :-1])
    first = answers.terms(everyone).sum(axis=1).reshape(n, particles).mean(axis=1)
    weight, booked, levels = np.ones(n), np.zeros((n, steps)), np.zeros(n, dtype=np.int64)
    under_way = np.arange(n)
    for level in range(1, _MOST_LEVELS + 2):
        rows = under_way[:, None] * particles + np.arange(particles)
        scores = answers.scores[rows].max(axis=2)
        heights = np.sort(scores, axis=1)[:, math.ceil(kill * particles) - 1]
        killed = scores <= heights[:, None]
        worth, terms = weight[under_way, None] / particles, answers.terms(rows)
        found = booked[under_way] + worth * (terms * killed[:, :, None]).sum(axis=1)
        left = weight[under_way] * (1 - killed.mean(axis=1))
        ends = killed.all(axis=1) | (left <= rest * found.sum(axis=1)) | (level > _MOST_LEVELS)
        booked[under_way] = np.where(ends[:, None], booked[under_way] + worth * terms.sum(axis=1), found)
        weight[under_way] = left
        under_way, rows, killed, heights = under_way[~ends], rows[~ends], killed[~ends], heights[~ends]
        if not len(under_way):
            break
        levels[under_way] = level
        numbers = uniforms(under_way, level)
        survivors = np.argsort(killed, axis=1, kind="stable")
        chosen = (numbers[:, :, -1] * (~killed).sum(axis=1)[:, None]).astype(np.int64)
        parents = np.take_along_axis(rows, np.take_along_axis(survivors, chosen, axis=1), axis=1)
        above = np.broadcast_to(heights[:, None], rows.shape)
        at = answers.branch(rows[killed], parents[killed], above[killed])
        answers.grow(rows[killed], at, numbers[killed][:, :-1])
    tokens = answers.spent.reshape(n, particles).sum(axis=1)
    return Replicates(booked, first, levels, tokens)


@dataclass(frozen=True)
class SplittingDecoding:
    """P(a token of a set is generated | prompt) by adaptive multilevel splitting; the module says how.

    Interval: Student's t over replicates on the log scale. A kind of path as rare as `unseen_at_most` may be missing from
    the first populations, which are n N independent plain paths, and the risk may be 1 along it; no spread tells. So where
    the risk lies below that bound, the upper end is the mean plus the bound, as `Reach` has it. With fewer than 5
    replicates, or fewer than 10 replicates' worth of spread, Chernoff's on the first populations' terms alone, which holds
    for any number of them.

    particles     N of a replicate
    kill          the share of them that a level replaces at least, in (0, 1)
    rest          a replicate ends where what is still to come is at most this many times what is booked
    score         "hazard", "learned" or "none" (no levels: REACH in groups of N)
    pilot         replicates' worth of plain paths that "learned" is learned from
    conditioning  whether P(outcome | prefix) takes the place of hits
    level         of the interval
    """

    particles: int = 16
    kill: float = 0.5
    rest: float = 1.0
    score: str = "hazard"
    pilot: int = 32
    conditioning: bool = True
    level: float = 0.95

    def __post_init__(self) -> None:
        require_integer("particles", self.particles, low=2, cure="splitting needs survivors to branch from, e.g. 16")
        require_probability("kill", self.kill, cure="pass the share that a level replaces, e.g. 0.5")
        if math.ceil(self.kill * self.particles) == self.particles:
            must = f"leave at least one of {self.particles} particles to branch from"
            raise refuse("kill", self.kill, must, "pass a smaller share, e.g. 0.5")
        require_number("rest", self.rest, low=0, cure="pass e.g. rest=1.0; 0 goes on to the highest score")
        require_choice("score", self.score, SCORES)
        require_integer("pilot", self.pilot, low=1, cure="a score is learned from a pilot, e.g. 32 replicates")
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        event_outcome(type(self).__name__, problem)
        nothing = np.zeros((0, self.particles, problem.max_new_tokens))
        pilot = {"index": np.zeros(0, dtype=np.int64), "path": nothing.astype(np.int64), "to_go": nothing}
        sums = {"powers": list(NO_POWERS), "first": ExactSum(), "levels": 0}
        return {"pilot_n": 0, "pilot": pilot, "n": 0, **sums}

    def round_size(self, problem: Any, state: State) -> int | None:
        left = self._pilot_left(state)
        return left if left else None

    def _pilot_left(self, state: State) -> int:
        return self.pilot - state["pilot_n"] if self.score == "learned" else 0

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        outcome = event_outcome(type(self).__name__, problem)
        if self._pilot_left(state):
            return plain_paths(problem, outcome, self.particles, n, stream)
        learned = None
        if self.score == "learned":
            steps = problem.max_new_tokens
            learned = ToGo(*(state["pilot"][name].reshape(-1, steps) for name in ("path", "to_go")))
        drawn = replicates(
            problem,
            outcome,
            n,
            stream,
            particles=self.particles,
            kill=self.kill,
            rest=self.rest,
            score=self.score,
            learned=learned,
            conditioning=self.conditioning,
        )
        term = drawn.by_step.sum(axis=1)
        return {"term": term, "first": drawn.first, "levels": drawn.levels, "tokens": drawn.tokens}

    def absorb(self, state: State, batch: Batch) -> State:
        if self._pilot_left(state):
            rows = {name: np.concatenate([kept, batch[name]]) for name, kept in state["pilot"].items()}
            if len(rows["index"]) == self.pilot:
                order = np.argsort(rows["index"])
                rows = {name: values[order] for name, values in rows.items()}
            return state | {"pilot": rows, "pilot_n": len(rows["index"])}
        term = require_finite("batch['term']", batch["term"], "look for logits that are not numbers", allow_empty=True)
        return state | {
            "n": state["n"] + len(term),
            "powers": add_powers(state["powers"], term),
            "first": state["first"].add(batch["first"]),
            "levels": state["levels"] + int(np.sum(batch["levels"])),
        }

    def result(self, state: State) -> Estimate:
        n, drawn = state["n"], state["n"] + state["pilot_n"]
        common: dict[str, Any] = {"level": self.level, "n_samples": drawn}
        if n == 0:
            under_way = f"the pilot is under way ({drawn} of {self.pilot} replicates)"
            return Estimate.unknown(0.0, 1.0, under_way if drawn else "no sample has been drawn yet", **common)
        value, variance, carriers = spread_of(state["powers"], n)
        paths, first = n * self.particles, float(state["first"]) / n
        unseen = clopper_pearson(0, paths, self.level)[1]
        facts = {"replicates": n, "levels": state["levels"] / n, "carriers": carriers, "unseen_at_most": unseen}
        common["diagnostics"] = facts
        low, high = chernoff_interval(min(first, 1.0), paths, self.level)
        interval, error = "Chernoff on the first populations", None
        why = (
            "" if value > 0 else "nothing that can hit was met: this bounds the risk and does not show that it is zero"
        )
        if variance > 1e-12 * value**2 and n > 1:
            error = math.sqrt(variance / (n - 1))
            if n >= _LEAST_REPLICATES and carriers >= _LEAST_CARRIERS:
                low, high = log_scale_t(value, error, n, self.level)
                high, moved, why = room_for_unseen(value, high, unseen)
                interval = "t below, log scale; unseen paths above" if moved else "t over replicates, log scale"
        return Estimate(
            value=min(value, 1.0),
            low=min(low, value, 1.0),
            high=min(max(high, value), 1.0),
            std_error=error,
            interval=interval,
            why=why,
            **common,
        )


def plain_paths(problem: Any, outcome: list[int], particles: int, n: int, stream: Stream) -> Batch:
    """n groups of plain paths with the outcome suppressed, and 1 - prod over later steps (1 - h) of each prefix."""
    steps, rows = problem.max_new_tokens, n * particles
    answers = Answers(problem, outcome, None, "none", True, rows)
    numbers = stream.child("pilot").at(stream.first).uniforms(n, particles * steps).reshape(rows, steps)
    answers.grow(np.arange(rows), np.zeros(rows, dtype=np.int64), numbers)
    with np.errstate(divide="ignore"):
        onward = np.log1p(-answers.strikes)[:, ::-1].cumsum(axis=1)[:, ::-1]
    return {
        "index": stream.first + np.arange(n),
        "path": answers.tokens.reshape(n, particles, steps),
        "to_go": -np.expm1(onward).reshape(n, particles, steps),
        "tokens": answers.spent.reshape(n, particles).sum(axis=1),
    }
