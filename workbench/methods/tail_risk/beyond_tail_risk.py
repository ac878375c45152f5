"""Our own estimator of the tail risk of one prompt: importance sampling from a twist that rounds of draws teach.

P(event | prompt) when an answer is sampled, from three parts: rounds that learn a prefix-dependent twist of the model's
own law (`twist`), a last sample of fresh draws from it, and, where the event is to generate a token of a set O, the
model's probability of those tokens in place of hits:

    Y = sum_t w_t h_t,   w_t = p(x_<t) / M(x_<t),   h_t = P(x_t in O | x_<t),   x ~ M, which never draws O.

E Y = P(event): term t adds up the paths that meet O at step t first. Without a twist Y is REACH's 1 - prod (1 - h)
(Solo et al., arXiv 2602.03730); the weight of term t stops at t, so that later ratios add no noise. Where every token v
off O is drawn with p(v) P(event | prefix v), up to a factor, Y is P(event) for every path. Rounds repeat what the
cross-entropy method does (Rubinstein 1999; for language models Angell et al., arXiv 2604.22167): each draws from the
twist so far, and all of them teach the next one.

Does: a `ModelEvent` whose model gives next-token laws: with conditioning where the judge is `generates`, by whole
judged answers elsewhere. One model, no steering, no gradient.
Does not: use the training's draws in the estimate, which is unbiased given the training for that reason; see an event
of which neither training nor draws show a trace. It then says so. Where all terms are equal (answers of one token, read
off one law) no spread is seen, and it gives no interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from workbench.errors import (
    Unsuitable,
    refuse,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)
from workbench.estimate import Estimate
from workbench.exact_sum import NO_POWERS, ExactSum, add_powers
from workbench.methods.tail_risk.lm_tail_risk import importance_estimate
from workbench.methods.tail_risk.scope_reach import outcome_ids
from workbench.methods.tail_risk.twist import PathLaw, Twist, twisted_paths
from workbench.problems.event import generates
from workbench.run import Batch, State
from workbench.streams import Stream

_LEAST_FOUND = 4.0
"""Effective hits of the first round below which kinds of answers that hit may have been missed: the later draws would
not show it, since they repeat what was found."""


@dataclass(frozen=True)
class TwistedSampling:
    """P(event | prompt) by importance sampling from a learned twist; the module says how.

    Flagged besides what `importance_estimate` flags: fewer than 4 effective hits in the first round, or none at all.

    rounds        of training; 0 draws from the exploration and the model's own law
    per_round     draws of each round
    explore       share of the draws from tempered laws once something is learned; the first round is all exploration
    temperatures  of the exploration; must hold 1, the model's own law
    shrink        pseudo-paths by which a class of prefixes is drawn to the coarser one
    floor         smallest ratio of the twisted law to the model's, up to normalisation
    depth         classes of prefixes: 0 none, 1 all in one, 2 by step, 3 by step and token before
    conditioning  whether P(outcome | prefix) takes the place of hits where the event allows it
    level         of the interval
    """

    rounds: int = 3
    per_round: int = 128
    explore: float = 0.2
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    shrink: float = 16.0
    floor: float = 0.1
    depth: int = 3
    conditioning: bool = True
    level: float = 0.95

    def __post_init__(self) -> None:
        require_integer("rounds", self.rounds, low=0, cure="3 is usual; 0 learns nothing")
        require_integer("per_round", self.per_round, low=1, cure="128 is usual")
        share = "pass a share such as 0.2; it bounds the weights"
        require_number("explore", self.explore, low=0, high=1, open_low=True, cure=share)
        given = require_finite("temperatures", self.temperatures, "pass e.g. temperatures=(1.0, 2.0, 4.0)")
        if given.ndim != 1 or (given <= 0).any() or len(set(self.temperatures)) != len(given) or 1 not in given:
            must = "be different positive numbers, 1 among them"
            raise refuse("temperatures", self.temperatures, must, "pass e.g. temperatures=(1.0, 2.0, 4.0)")
        require_number("shrink", self.shrink, low=0, cure="pass a number of pseudo-paths such as 8")
        bounds = "pass e.g. floor=0.1; at 0 a token never seen in a hit would never be drawn"
        require_number("floor", self.floor, low=0, high=1, open_low=True, cure=bounds)
        require_integer("depth", self.depth, low=0, cure="pass 0, 1, 2 or 3")
        if self.depth > 3:
            raise refuse("depth", self.depth, "be 0, 1, 2 or 3", "3 is by step and token before")
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        model = getattr(problem, "model", None)
        if not callable(getattr(problem, "judge", None)) or "next_log_probs" not in getattr(model, "capabilities", ()):
            raise Unsuitable(
                f"TwistedSampling reweighs next-token laws, and {problem.name} is no ModelEvent whose model gives "
                "them; load the model on this machine, or use MonteCarlo."
            )
        steps = problem.max_new_tokens
        paths = {
            "tokens": np.zeros((0, steps), dtype=np.int64),
            "log_base": np.zeros((0, steps)),
            "value": np.zeros((0, steps)),
        }
        return {
            "round": 0,
            "rows": _no_rows(steps),
            "taught": paths,
            "effective": [],
            "means": [],
            "n": 0,
            "hits": 0,
            "largest_term": 0.0,
            "weights": ExactSum(),
            "weights_squared": ExactSum(),
            "terms": NO_POWERS[:3],
        }

    def round_size(self, problem: Any, state: State) -> int | None:
        return self.per_round - len(state["rows"]["index"]) if state["round"] < self.rounds else None

    def law(self, problem: Any, state: State) -> PathLaw:
        """What the next draws come from."""
        taught, settings = state["taught"], {"shrink": self.shrink, "floor": self.floor, "depth": self.depth}
        twist = Twist(**taught, start=problem.prompt[-1], vocab_size=problem.model.vocab_size, **settings)
        return PathLaw(twist, self.explore if len(taught["tokens"]) else 1.0, self.temperatures)

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        drawn = twisted_paths(problem, self.law(problem, state), n, stream, outcome=self.outcome(problem))
        spent = len(problem.prompt) + drawn.laws_read
        batch = {
            "index": stream.first + np.arange(n),
            "term": drawn.term,
            "log_weight": drawn.log_weight,
            "tokens": spent,
        }
        if state["round"] == self.rounds:
            return batch
        return batch | {"path": drawn.tokens, "log_base": drawn.log_base, "to_go": drawn.to_go}

    def outcome(self, problem: Any) -> list[int] | None:
        """The token ids whose generation is the event; None where hits are judged."""
        judge = problem.judge
        ready = self.conditioning and isinstance(judge, partial) and judge.func is generates and len(judge.args) == 1
        return outcome_ids(problem.model, judge.args[0]) if ready else None

    def absorb(self, state: State, batch: Batch) -> State:
        cure = "look for logits that are not numbers"
        term = require_finite("batch['term']", batch["term"], cure, allow_empty=True)
        if state["round"] < self.rounds:
            rows = {name: np.concatenate([kept, batch[name]]) for name, kept in state["rows"].items()}
            state = state | {"rows": rows}
            return self._teach(state) if len(rows["index"]) == self.per_round else state
        weight = np.exp(batch["log_weight"])
        return state | {
            "n": state["n"] + len(term),
            "hits": state["hits"] + int(np.count_nonzero(term)),
            "largest_term": max(state["largest_term"], float(term.max(initial=0.0))),
            "weights": state["weights"].add(weight),
            "weights_squared": state["weights_squared"].add(weight**2),
            "terms": add_powers(state["terms"], term),
        }

    def _teach(self, state: State) -> State:
        """End of a round: its paths join those that teach. Rounds count alike: one that missed the unlikelier hits
        looks the more certain for it, and would teach the next rounds to miss them too."""
        rows, taught = state["rows"], state["taught"]
        order = np.argsort(rows["index"])
        term = rows["term"][order]
        total, effective = term.sum(), 0.0
        if total > 0:
            effective = float(1 / np.sum((term / total) ** 2))
            hit = order[term > 0]
            new = {"tokens": rows["path"][hit], "log_base": rows["log_base"][hit], "value": rows["to_go"][hit]}
            taught = {name: np.concatenate([kept, new[name]]) for name, kept in taught.items()}
        return state | {
            "round": state["round"] + 1,
            "rows": _no_rows(rows["path"].shape[1]),
            "taught": taught,
            "effective": [*state["effective"], effective],
            "means": [*state["means"], float(total / len(term))],
        }

    def result(self, state: State) -> Estimate:
        drawn = state["round"] * self.per_round + len(state["rows"]["index"])
        training = {
            "training_samples": drawn,
            "training_effective_hits": state["effective"],
            "training_means": state["means"],
        }
        common: dict[str, Any] = {"level": self.level, "n_samples": drawn + state["n"]}
        if drawn == 0 and state["n"] == 0:
            return Estimate.unknown(0.0, 1.0, "no sample has been drawn yet", **common)
        if state["round"] < self.rounds:
            why = f"the training is under way ({drawn} of {self.rounds * self.per_round} draws)"
            return Estimate.unknown(0.0, 1.0, why, diagnostics=training, **common)
        learned = len(state["taught"]["tokens"]) > 0
        bound = float(np.log(len(self.temperatures) / (self.explore if learned else 1.0)))
        estimate = importance_estimate(state, self.level, bound)
        reliable, why = estimate.reliable, estimate.why
        found = state["effective"][0] if self.rounds else math.inf
        if not learned and self.rounds:
            reliable = False
            why = f"{why}; " * bool(why) + "the training found no hit, so the draws are the exploration's"
        elif found < _LEAST_FOUND and reliable:
            reliable = False
            seen = f"the first round had {found:.2g} effective hits, below {_LEAST_FOUND:g}"
            why = f"{seen}: answers of another kind may hit too; draw more a round"
        return estimate.with_run(
            n_samples=common["n_samples"],
            diagnostics=estimate.diagnostics | training,
            reliable=reliable,
            why=why,
        )


def _no_rows(steps: int) -> dict[str, np.ndarray]:
    none = np.zeros((0, steps))
    return {
        "index": np.zeros(0, dtype=np.int64),
        "term": np.zeros(0),
        "path": none.astype(np.int64),
        "log_base": none,
        "to_go": none,
    }
