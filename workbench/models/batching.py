"""Continuous batching: the rows under way of one request; finished ones leave, waiting ones enter.

Does: keeps as many rows as there is memory for in the models' sessions, gives each its own random numbers by its own
number and step, stops them, and starts again with half the rows where memory ran out.
Does not: choose tokens; `sampling` passes the function that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from workbench.budget import charge
from workbench.errors import refuse, require_integer
from workbench.models.base import (
    LanguageModel,
    Session,
    by_length,
    check_tokens,
    fitted,
    make_smaller,
    on_one_thread,
    prompt_lists,
)
from workbench.streams import Stream

_DRAWN_AHEAD = 32
Stop = Callable[[np.ndarray], Any]


class Output:
    """What is kept of each completion: (rows, steps) arrays as in `sampling.Samples`, one of scores a law."""

    def __init__(self, rows: int, steps: int) -> None:
        self.tokens = np.full((rows, steps), -1, dtype=np.int64)
        self.reasons = np.full(rows, "length", dtype="<U6")
        self.scores: list[np.ndarray] = []
        self.recorded: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        return (self.tokens >= 0).sum(axis=1)

    def keep(self, rows: np.ndarray, steps: np.ndarray, tokens: np.ndarray, scores: Sequence[np.ndarray]) -> None:
        self.tokens[rows, steps] = tokens
        if not self.scores:
            self.scores = [np.zeros(self.tokens.shape) for _ in scores]
        for mine, values in zip(self.scores, scores, strict=True):
            mine[rows, steps] = values

    def record(self, rows: np.ndarray, steps: np.ndarray, values: np.ndarray) -> None:
        if self.recorded is None:
            self.recorded = np.zeros((*self.tokens.shape, *values.shape[1:]))
        self.recorded[rows, steps] = values

    def forget(self, rows: np.ndarray) -> None:
        self.tokens[rows], self.reasons[rows] = -1, "length"
        for values in (*self.scores, *([] if self.recorded is None else [self.recorded])):
            values[rows] = 0


class Flight:
    """The rows under way: which they are, how many tokens each has, and each model's session on them."""

    def __init__(self, task: Task, rows: np.ndarray, sessions: list[Session]) -> None:
        self.task, self.rows, self.sessions = task, rows, sessions
        self.steps = np.zeros(len(rows), dtype=np.int64)
        self.alive = np.ones(len(rows), dtype=bool)
        self._ahead = np.empty((len(rows), min(_DRAWN_AHEAD, task.steps)))
        self._each = np.arange(len(rows))
        self._steps_ahead = 0

    def name(self, row: int) -> str:
        model, at, n = self.task.models[0].name, int(self.rows[row]), self.task.n
        return f"{model} for prompt {at // n}, sample {at % n}, step {self.steps[row]}"

    def record(self, values: torch.Tensor) -> None:
        kept = values.double().cpu().numpy()[self.alive]
        self.task.out.record(self.rows[self.alive], self.steps[self.alive], kept)

    def input_ids(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """[(rows, their texts so far (len(rows), length), prompt included)], one entry for each length."""
        prompts = [self.task.prompts[row // self.task.n] for row in self.rows]
        lengths = np.array([len(prompt) for prompt in prompts]) + self.steps
        device, made = self.sessions[0].logits.device, []
        for length in np.unique(lengths):
            at = np.flatnonzero(lengths == length)
            texts = [np.concatenate([prompts[i], self.task.out.tokens[self.rows[i], : self.steps[i]]]) for i in at]
            ids = torch.as_tensor(np.maximum(np.stack(texts), 0), device=device)
            made.append((torch.as_tensor(at, device=device), ids))
        return made

    def uniforms(self) -> np.ndarray:
        """(rows,) the number with which each row draws its next token."""
        width = self._ahead.shape[1]
        column = self.steps % width
        if self._steps_ahead == 0:
            for step in np.unique(self.steps[column == 0]):
                fresh = np.flatnonzero(self.steps == step)
                self._ahead[fresh] = self.task.stream.uniforms_of(self.rows[fresh], width, int(step))
            self._steps_ahead = width - int(column.max())
        self._steps_ahead -= 1
        return self._ahead[self._each, column]

    def keep_alive(self) -> None:
        """Lets the rows that have ended go."""
        chosen = np.flatnonzero(self.alive)
        self.sessions = [session.select(chosen) for session in self.sessions]
        self.rows, self.steps, self._ahead = self.rows[chosen], self.steps[chosen], self._ahead[chosen]
        self.alive, self._each = self.alive[chosen], np.arange(len(chosen))

    def join(self, other: Flight) -> None:
        self.sessions = [mine.join(theirs) for mine, theirs in zip(self.sessions, other.sessions, strict=True)]
        self.rows = np.concatenate([self.rows, other.rows])
        self.steps = np.concatenate([self.steps, other.steps])
        self.alive = np.concatenate([self.alive, other.alive])
        self._ahead = np.concatenate([self._ahead, other._ahead])
        self._each = np.arange(len(self.rows))
        self._steps_ahead = min(self._steps_ahead, other._steps_ahead)


Choose = Callable[[Flight, torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]
"""(rows under way, a uniform number for each) -> (their next tokens, those tokens' log-probs under each law kept)."""


class Task:
    """One request: n completions of each prompt by models that go in step; see `sampling` for the arguments."""

    def __init__(
        self,
        models: Sequence[LanguageModel],
        choose: Choose,
        prompts: Any,
        n: int,
        max_new_tokens: int,
        stream: Stream,
        stop_ids: Iterable[int],
        stop_sequences: Iterable[str | Sequence[int]],
        stop: Stop | None,
        needed: Callable[[int, np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.models, self.choose, self.stream, self.stop, self.needed = list(models), choose, stream, stop, needed
        self.n = require_integer("n", n, low=1, cure="ask for at least one completion")
        self.steps = require_integer("max_new_tokens", max_new_tokens, low=1, cure="ask for at least one token")
        self.prompts = prompt_lists(models[0], prompts, self.steps)
        for model in models[1:]:
            prompt_lists(model, self.prompts, self.steps)
        ids = np.array(sorted(set(stop_ids)), dtype=np.int64)
        check_tokens(models[0], "stop_ids", ids)
        self.ends = np.zeros(models[0].vocab_size, dtype=bool)
        self.ends[[*ids, *(token for token in models[0].eos_ids if token < len(self.ends))]] = True
        self.stop_texts, self.stop_tokens = _stop_sequences(models[0], stop_sequences)
        longest = max(len(prompt) for prompt in self.prompts) + self.steps
        self.room = min(model.room(longest) // len(self.models) or 1 for model in self.models)
        self.out = Output(len(self.prompts) * self.n, self.steps)

    def run(self) -> Output:
        waiting = list(range(len(self.out.tokens)))[::-1]
        flight: Flight | None = None
        while waiting or flight is not None:
            room = min(self.room, *(model.rows_at_once for model in self.models))
            under_way = 0 if flight is None else int(flight.alive.sum())
            entering: list[int] = []
            if waiting and 2 * under_way <= room:
                entering = [waiting.pop() for _ in range(min(room - under_way, len(waiting)))]
            state: list[Flight | None] = [flight]
            flight = None
            rows = under_way + len(entering)
            with on_one_thread(not any(model.gains_from_threads(rows) for model in self.models)):
                done = fitted(
                    lambda state=state, entering=entering: self._advance(state, np.array(entering, dtype=int))
                )
            flight = state[0]
            if done:
                continue
            # The same rows again: their tokens depend on their numbers alone.
            again = sorted({*entering, *(flight.rows[flight.alive].tolist() if flight is not None else ())})
            flight = None
            state.clear()
            self.out.forget(np.array(again))
            make_smaller(self.models, len(again))
            waiting.extend(reversed(again))
        return self.out

    def _advance(self, state: list[Flight | None], entering: np.ndarray) -> None:
        """Steps until rows should leave or enter; state[0] is the flight before and after."""
        flight = state[0]
        if flight is not None and len(entering) and not flight.alive.all():
            flight.keep_alive()
        for group in self._by_prompt_length(entering):
            fresh = self._begun(group)
            if flight is None:
                flight = fresh
            else:
                flight.join(fresh)
            state[0] = flight
        assert flight is not None
        while True:
            self._step(flight)
            alive = int(flight.alive.sum())
            if alive == 0:
                state[0] = None
                return
            if 2 * alive <= len(flight.alive):
                flight.keep_alive()
                self._read(flight)
                return
            self._read(flight)

    def _by_prompt_length(self, rows: np.ndarray) -> list[np.ndarray]:
        if not len(rows):
            return []
        return [rows[group] for group in by_length([self.prompts[row // self.n] for row in rows])]

    def _begun(self, rows: np.ndarray) -> Flight:
        prompts = np.stack([self.prompts[row // self.n] for row in rows])
        sessions = [model.start(prompts) for model in self.models]
        # A sequence's last token is never read, but it was generated.
        zero = np.zeros(len(rows), dtype=np.int64)
        charge(tokens=sum(int(self._wanted(i, rows, zero).sum()) for i in range(len(self.models))))
        return Flight(self, rows, sessions)

    def _wanted(self, model: int, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), dtype=bool) if self.needed is None else self.needed(model, rows, steps)

    def _step(self, flight: Flight) -> None:
        """Draws a token for each row, keeps it, and marks the rows that end with it."""
        device = flight.sessions[0].logits.device
        uniforms = torch.as_tensor(flight.uniforms(), device=device)
        drawn, scores = self.choose(flight, uniforms)
        alive, rows, steps = flight.alive, flight.rows, flight.steps
        tokens, kept = drawn.cpu().numpy(), [score.cpu().numpy() for score in scores]
        if alive.all():
            self.out.keep(rows, steps, tokens, kept)
        else:
            self.out.keep(rows[alive], steps[alive], tokens[alive], [score[alive] for score in kept])
        last = self.ends[tokens]
        stopped = self._stopped(flight)
        if stopped is not None:
            last |= stopped
        last &= alive
        if last.any():
            self.out.reasons[rows[last]] = np.where(np.isin(tokens[last], self.models[0].eos_ids), "eos", "stop")
        flight.steps = steps + alive
        flight.alive = alive & ~last & (flight.steps < self.steps)

    def _read(self, flight: Flight) -> None:
        """Lets the models read the tokens just drawn, where a row goes on and wants the model."""
        tokens = self.out.tokens[flight.rows, flight.steps - 1]
        for i, session in enumerate(flight.sessions):
            wanted = flight.alive if self.needed is None else flight.alive & self.needed(i, flight.rows, flight.steps)
            if wanted.any():
                session.advance(np.where(wanted, tokens, -1))

    def _stopped(self, flight: Flight) -> np.ndarray | None:
        if self.stop is None and not self.stop_tokens and not self.stop_texts:
            return None
        stopped = np.zeros(len(flight.rows), dtype=bool)
        for step in np.unique(flight.steps[flight.alive]):
            at = np.flatnonzero(flight.alive & (flight.steps == step))
            texts = self.out.tokens[flight.rows[at], : step + 1]
            if self.stop is not None:
                stopped[at] |= np.asarray(self.stop(texts), dtype=bool)
            for sequence in self.stop_tokens:
                if len(sequence) <= step + 1:
                    stopped[at] |= (texts[:, step + 1 - len(sequence) :] == sequence).all(axis=1)
            if self.stop_texts:
                decoded = [self.models[0].decode(text.tolist()) for text in texts]
                stopped[at] |= [any(stop in text for stop in self.stop_texts) for text in decoded]
        return stopped


def _stop_sequences(
    model: LanguageModel, given: Iterable[str | Sequence[int]]
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    if isinstance(given, str):
        given = [given]
    texts, tokens = [], []
    for i, sequence in enumerate(given):
        if len(sequence) == 0:
            raise refuse(f"stop_sequences[{i}]", "empty", "hold something to look for", "leave it out")
        if isinstance(sequence, str):
            texts.append(sequence)
        else:
            tokens.append(np.asarray(sequence, dtype=np.int64))
            check_tokens(model, f"stop_sequences[{i}]", tokens[-1])
    return tuple(texts), tokens
