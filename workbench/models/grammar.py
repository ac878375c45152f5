"""Probabilistic finite automata behind the `LanguageModel` interface, with exact answers.

Does: gives next-token probabilities by state, tilts tokens (their steering), and computes by dynamic
programming the probability of an event and the exact second moment of an importance-sampling estimate of it.
Does not: learn. The grammars that our experiments use are in `grammars`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import WorkbenchError, refuse, require_finite, require_integer, require_number
from workbench.models.base import LanguageModel, Session, check_tokens, one_length

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tilt:
    """Raises the log-odds of `token` against all others by `log_odds` in `states` (None = every state)."""

    token: int
    log_odds: float
    states: tuple[int, ...] | None = None


class GrammarModel(LanguageModel):
    """A finite automaton that emits tokens.

    log_probs (S, V): log p(token | state); transition (S, V): the state after it. Reading a prompt begins in
    `start_state` and follows the transitions, whatever the prompt's own probability. With `eos_id` set, that
    token ends a text. Raises WorkbenchError for tables that are not a law or point outside the states.
    """

    capabilities = frozenset({"sample", "log_probs", "next_log_probs", "steer"})
    rows_at_once = 8192

    def __init__(
        self,
        log_probs: np.ndarray,
        transition: np.ndarray,
        *,
        start_state: int = 0,
        eos_id: int | None = None,
        tokens: Sequence[str] | None = None,
        name: str = "grammar",
    ) -> None:
        self.name = name
        self.table = _checked_law(log_probs)
        self.transition = np.asarray(transition, dtype=np.int64)
        states, self.vocab_size = self.table.shape
        if self.transition.shape != self.table.shape:
            cure = "give one next state for each state and token"
            raise refuse("transition", self.transition.shape, f"have shape {self.table.shape}", cure)
        if self.transition.min() < 0 or self.transition.max() >= states:
            cure = "number the states from 0"
            raise refuse("transition", "outside the states", f"hold states from 0 to {states - 1}", cure)
        self.start_state = require_integer("start_state", start_state, low=0, high=states - 1, cure="name a state")
        self.eos_ids = () if eos_id is None else (eos_id,)
        check_tokens(self, "eos_id", np.array(self.eos_ids, dtype=np.int64))
        self.tokens = tuple(tokens) if tokens is not None else tuple(str(v) for v in range(self.vocab_size))

    def encode(self, text: str) -> list[int]:
        words = text.split()
        for word in words:
            if word not in self.tokens:
                raise refuse("text", word, f"be made of {', '.join(self.tokens)}", "separate the tokens by spaces")
        return [self.tokens.index(word) for word in words]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(self.tokens[token] for token in tokens if token >= 0)

    def vocabulary(self) -> Sequence[str] | None:
        return None if self.tokens[0] == "0" else self.tokens

    def state_after(self, prompts: Any) -> np.ndarray:
        """(n,) the state in which each prompt (all of one length) leaves the automaton."""
        states = np.full(len(prompts), self.start_state)
        for column in np.asarray(prompts, dtype=np.int64).reshape(len(prompts), -1).T:
            states = self.transition[states, column]
        return states

    def start(self, prompts: Any) -> GrammarSession:
        given = one_length(prompts)
        self.charge_read(given.size, calls=len(given))
        return GrammarSession(self, self.state_after(given))

    def steered(self, steering: Tilt | Mapping[int, float]) -> GrammarModel:
        """The same automaton with tilted odds: one `Tilt`, or {token: log_odds} for every state."""
        tilts = [steering] if isinstance(steering, Tilt) else [Tilt(t, odds) for t, odds in dict(steering).items()]
        table = self.table.copy()
        for tilt in tilts:
            check_tokens(self, "tilt token", np.array([tilt.token]))
            odds = require_number("tilt log_odds", tilt.log_odds, cure="pass a finite number such as 4.0")
            states = range(len(table)) if tilt.states is None else tilt.states
            for state in states if odds else ():
                table[state, tilt.token] += odds
                table[state] -= np.logaddexp.reduce(table[state])
        return GrammarModel(
            table,
            self.transition,
            start_state=self.start_state,
            eos_id=self.eos_id,
            tokens=self.tokens,
            name=f"{self.name} tilted",
        )

    def event_probability(self, prompt: Sequence[int], tokens: int | Iterable[int], max_new_tokens: int) -> float:
        """P(any of `tokens` is among the tokens generated), exact: sum over (state, tokens left)."""
        return self.second_moment(self, prompt, tokens, max_new_tokens)

    def second_moment(
        self,
        proposal: GrammarModel,
        prompt: Sequence[int],
        tokens: int | Iterable[int],
        max_new_tokens: int,
        *,
        mixture: float = 0.0,
        switch: int | None = None,
        stop_at_event: bool = True,
    ) -> float:
        """E_q[w^2 h] = E_p[w h] exactly, for h = "any of `tokens` is generated" and w = p / q.

        q_t = (1 - mixture) proposal_t + mixture p_t for t < switch, p_t afterwards (None = never), as in
        `sampling.sample_mixture`; p is this model. Backwards in t, in log space,
        M_t(s, hit) = sum_v p(v|s)^2 / q_t(v|s) M_{t+1}(s', hit or v in tokens), and M = hit where the text ends.
        stop_at_event: generation ends at the event, else it runs on and the later ratios add variance.
        The per-sample variance of the estimate is this minus the squared event probability.
        Returns inf where q gives no weight to a path that p can take.
        """
        if self.transition.shape != proposal.transition.shape or (self.transition != proposal.transition).any():
            raise WorkbenchError(f"proposal is {proposal.name} but must share the states of {self.name}; tilt it.")
        mixture = require_number("mixture", mixture, low=0, high=1, cure="pass the base model's share, e.g. 0.2")
        steps = require_integer("max_new_tokens", max_new_tokens, low=0, cure="ask for at least 0 tokens")
        switch = steps if switch is None else require_integer("switch", switch, low=0, cure="pass a step or None")
        hits = np.atleast_1d(np.asarray(tokens if not isinstance(tokens, Iterable) else list(tokens), dtype=np.int64))
        check_tokens(self, "tokens", hits)

        with np.errstate(divide="ignore"):
            log_q = np.logaddexp(np.log1p(-mixture) + proposal.table, np.log(mixture) + self.table)
        possible = self.table > -np.inf
        ratio = np.where(possible, 2 * self.table - np.where(possible, log_q, 0.0), -np.inf)
        missed = np.full(len(self.table), -np.inf)
        hit = np.zeros(len(self.table))
        for step in reversed(range(steps)):
            terms = ratio if step < switch else self.table
            onward_missed, onward_hit = missed[self.transition], hit[self.transition]
            onward_missed[:, list(self.eos_ids)], onward_hit[:, list(self.eos_ids)] = -np.inf, 0.0
            onward_missed[:, hits] = 0.0 if stop_at_event else onward_hit[:, hits]
            missed, hit = _onward(terms, onward_missed), _onward(terms, onward_hit)
        return float(np.exp(missed[self.state_after([prompt])[0]]))


class GrammarSession(Session):
    """The state of each row; reading a token is one table look-up."""

    def __init__(self, model: GrammarModel, states: np.ndarray) -> None:
        self.model, self.states, self.n = model, states, len(states)

    @property
    def log_probs(self) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.model.table[self.states])

    def advance(self, tokens: Any) -> None:
        tokens = np.asarray(tokens, dtype=np.int64)
        read = tokens >= 0
        self.model.charge_read(int(read.sum()))
        self.states = np.where(read, self.model.transition[self.states, tokens], self.states)

    def select(self, rows: Any) -> GrammarSession:
        return GrammarSession(self.model, self.states[np.asarray(rows)])

    def join(self, other: Session) -> Session:
        if not isinstance(other, GrammarSession) or other.model is not self.model:
            return super().join(other)
        return GrammarSession(self.model, np.concatenate([self.states, other.states]))


def _onward(terms: np.ndarray, onward: np.ndarray) -> np.ndarray:
    """log sum_v exp(terms + onward) by state, where a way on that leads nowhere counts for nothing, come what may."""
    dead = (onward == -np.inf) | (terms == -np.inf)
    ways = np.where(dead, 0.0, terms) + np.where(dead, 0.0, onward)
    return np.logaddexp.reduce(np.where(dead, -np.inf, ways), axis=1)


def _checked_law(log_probs: np.ndarray) -> np.ndarray:
    table = np.array(log_probs, dtype=np.float64)
    if table.ndim != 2 or table.size == 0:
        raise refuse("log_probs", f"of shape {table.shape}", "have shape (states, vocabulary)", "give one row a state")
    if np.isnan(table).any() or (table > 0).any():
        require_finite("log_probs", np.where(table == -np.inf, 0.0, table), cure="take logs of probabilities")
        raise refuse("log_probs", table.max(), "be at most 0", "take logs of probabilities")
    mass = np.exp(np.logaddexp.reduce(table, axis=1))
    off = np.flatnonzero(np.abs(mass - 1) > 1e-9)
    if len(off):
        raise refuse(f"exp(log_probs) of state {off[0]}", mass[off[0]], "sum to 1", "normalise each row")
    return table
