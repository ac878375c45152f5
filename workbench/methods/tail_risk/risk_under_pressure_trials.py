"""Recorded trials of attacks, and what their steps cost in TFLOPs (Ehghaghi et al., arXiv 2606.11409).

Does: read trials of any attack on any model from jsonl, price their steps by the paper's formulas, book what a
transferred attack cost on its surrogate, simulate trials of given chances. Does not: curves and metrics;
`risk_under_pressure` gives them.

Departures from the paper's code:
1. An empty list of trials is refused; the released code returns 0.
2. A judge reads characters in the released code (at most 1,000 and 1,500 of them); records hold tokens, so we cut at
   250 and 375, four characters a token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import refuse, require_choice, require_finite, require_integer, require_number
from workbench.streams import Stream

KINDS = ("template", "iterative", "gradient")


@dataclass(frozen=True)
class Trials:
    """n recorded trials, one a prompt, of at most `budget` steps.

    ran (n,) steps run, from 1; success (n,) bool, the last step run was judged 1; prompt_tokens, response_tokens
    (n, budget), 0 where no step was run. A trial that failed ran all its steps.
    """

    prompt_ids: tuple[str, ...]
    categories: tuple[str, ...]
    ran: np.ndarray
    success: np.ndarray
    prompt_tokens: np.ndarray
    response_tokens: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.prompt_ids)
        if n == 0:
            raise refuse("trials", "empty", "hold at least one trial", "pass the records of an attack")
        shapes = [len(self.categories), len(self.ran), len(self.success), len(self.prompt_tokens)]
        if set(shapes) != {n} or self.prompt_tokens.shape != self.response_tokens.shape:
            raise refuse("lengths of the trials' fields", shapes, f"all be {n}", "give each trial its row")
        if self.ran.min() < 1 or self.ran.max() > self.budget:
            raise refuse("ran", int(self.ran.max()), f"lie from 1 to the budget, {self.budget}", "cut the steps")
        short = ~self.success & (self.ran < self.budget)
        if short.any():
            which = f"{int(self.ran[short][0])} steps of {self.prompt_ids[int(np.flatnonzero(short)[0])]}, no success"
            cure = "record every step up to the budget, or pass a smaller budget"
            raise refuse("trial", which, f"run all {self.budget} steps or end with a success", cure)

    @property
    def budget(self) -> int:
        return self.prompt_tokens.shape[1]

    def of(self, rows: Any) -> Trials:
        """The trials of these rows (a mask or indices)."""
        kept = np.arange(len(self.prompt_ids))[rows]
        ids, categories = (tuple(group[i] for i in kept) for group in (self.prompt_ids, self.categories))
        ran, success = self.ran[kept], self.success[kept]
        return Trials(ids, categories, ran, success, self.prompt_tokens[kept], self.response_tokens[kept])


def read_trials(source: Any, *, budget: int = 10) -> Trials:
    """Trials of a jsonl file, or of its lines as dicts: {prompt_id, category, steps: [{n_prompt_tok, n_resp_tok,
    judgment}, ...]}, judgment 0 or 1. Steps after a success, and more steps than `budget`, are refused."""
    require_integer("budget", budget, low=1, cure="pass the number of steps each trial was allowed, e.g. 10")
    if isinstance(source, (str, Path)):
        lines = Path(source).read_text(encoding="utf-8").splitlines()
        source = [json.loads(line) for line in lines if line.strip()]
    records = list(source)
    ids, categories, ran, success = [], [], [], []
    tokens = np.zeros((2, len(records), budget))
    for row, record in enumerate(records):
        where = f"trial {row}"
        for field in ("prompt_id", "category", "steps"):
            if field not in record:
                raise refuse(where, f"without {field}", "have prompt_id, category and steps", "add the field")
        steps = record["steps"]
        if not 1 <= len(steps) <= budget:
            cure = "pass the budget that the attack had, or leave out what was never run"
            raise refuse(f"steps of {where}", len(steps), f"be 1 to the budget of {budget}", cure)
        for number, step in enumerate(steps):
            judged = step.get("judgment")
            if judged not in (0, 1):
                raise refuse(
                    f"judgment of {where}, step {number}", judged, "be 0 or 1", "threshold graded scores first"
                )
            if judged and number + 1 < len(steps):
                raise refuse(where, f"going on after success at step {number}", "stop there", "cut the later steps")
            for kind, field in enumerate(("n_prompt_tok", "n_resp_tok")):
                count = require_number(f"{field} of {where}", step.get(field), low=0, cure="count the step's tokens")
                tokens[kind, row, number] = count
        ids.append(str(record["prompt_id"]))
        categories.append(str(record["category"]))
        ran.append(len(steps))
        success.append(bool(steps[-1]["judgment"]))
    return Trials(tuple(ids), tuple(categories), np.array(ran, dtype=int), np.array(success, dtype=bool), *tokens)


@dataclass(frozen=True)
class Price:
    """What a step costs, in TFLOPs; sizes in billions of parameters, a token forward costs 2 N / 1000.

    template   2 N L_gen / 1000, L_gen = prompt + response tokens
    iterative  the same, and the attacker's 2 N_A L_att / 1000, L_att = `attacker_reads` + about the prompt's tokens
    gradient   (backward + candidates) 2 N L_opt / 1000 more, L_opt = prompt + `reference` tokens; `backward` 3 is one
               forward and backward pass together; `optimised` is the size of the model that is differentiated, where
               that is not the target
    judge      2 N_J L_J / 1000 every step, L_J = min(prompt, 250) + min(response, 375) + 2; 0 for a formal predicate
    """

    kind: str
    target: float
    judge: float = 8.03
    attacker: float = 7.62
    attacker_reads: float = 0.0
    candidates: int = 128
    backward: float = 3.0
    reference: float = 0.0
    optimised: float | None = None

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, KINDS)
        require_number("target", self.target, low=0, open_low=True, cure="pass billions of parameters, e.g. 7.62")
        for name in ("judge", "attacker", "attacker_reads", "candidates", "backward", "reference"):
            require_number(name, getattr(self, name), low=0, cure=f"pass a number such as {name}=0")

    def parts(self, trials: Trials) -> dict[str, np.ndarray]:
        """ "target", "attacker", "judge" -> (n, budget) TFLOPs of each step, 0 where no step was run."""
        asked = np.arange(trials.budget) < trials.ran[:, None]
        prompt, response = trials.prompt_tokens, trials.response_tokens
        attacker = np.zeros(prompt.shape)
        if self.kind == "iterative":
            attacker = 2 * self.attacker * (self.attacker_reads + prompt) / 1000
        elif self.kind == "gradient":
            size = self.target if self.optimised is None else self.optimised
            attacker = (self.backward + self.candidates) * 2 * size * (prompt + self.reference) / 1000
        judge = 2 * self.judge * (np.minimum(prompt, 250) + np.minimum(response, 375) + 2) / 1000
        costs = {"target": 2 * self.target * (prompt + response) / 1000, "attacker": attacker, "judge": judge}
        return {name: np.where(asked, cost, 0.0) for name, cost in costs.items()}

    def steps(self, trials: Trials) -> np.ndarray:
        """(n, budget) TFLOPs of each step, all parts together."""
        return np.sum(list(self.parts(trials).values()), axis=0)


def query_costs(trials: Trials) -> np.ndarray:
    """(n, budget) one unit a step: the axis that the paper replaces."""
    return (np.arange(trials.budget) < trials.ran[:, None]).astype(float)


def book_transfer(costs: Any, search: Any, *, targets: int = 1) -> np.ndarray:
    """Costs (n, budget) of replaying on a target, with what the search on the surrogate cost, (n,) TFLOPs a prompt,
    booked on the first step; it is paid once and shared by `targets` models that are attacked with it."""
    given, paid = np.array(costs, dtype=float), require_finite("search", search, "pass the surrogate's cost a prompt")
    require_integer("targets", targets, low=1, cure="count the models that the search was for")
    if paid.shape not in ((), given.shape[:1]) or (paid < 0).any():
        raise refuse("search", paid.shape, f"be ({len(given)},) and at least 0", "pass one cost a prompt")
    given[:, 0] += paid / targets
    return given


def simulated_trials(chance: Any, budget: int, stream: Stream) -> Trials:
    """Trials of prompts whose steps succeed independently with probability `chance` (n,); one token a step."""
    p = require_finite("chance", chance, "pass one probability a prompt")
    if p.ndim != 1 or (p < 0).any() or (p > 1).any():
        raise refuse("chance", p.shape, "be (prompts,) within [0, 1]", "pass one probability a prompt")
    hit = stream.uniforms(len(p), budget) < p[:, None]
    success = np.asarray(hit.any(axis=1))
    ran = np.where(success, hit.argmax(axis=1) + 1, budget)
    tokens = (np.arange(budget) < ran[:, None]).astype(float)
    names = tuple(str(i) for i in range(len(p)))
    return Trials(names, ("all",) * len(p), ran, success, tokens, np.zeros_like(tokens))
