"""A prefix-dependent twist of a model's next-token law, learned from weighted paths, and the law of paths with it.

Twist: q(v | prefix) ~ b(v | prefix) r(v | t, u), b the model's law (less the outcome's tokens where the event is to
generate one of them), t the step, u the token before. The ratio without variance would be

    r*(v | prefix) = V(prefix v) / sum_v' b(v' | prefix) V(prefix v'),   V(prefix) = P(event | prefix),

and 1{x_t = v} / b(v | prefix) has r* for its mean under the law of paths that hit. So a weighted mean over paths is
the ratio's least-squares fit in a class of prefixes: no gradient, no normaliser, nothing but the probability of the
token that was drawn. Classes, each shrunk towards the one before by `shrink` pseudo-paths: all steps; a step; a step
and the token before. With N effective paths (sum of values)^2 / sum of values^2 in the class,

    r = (N mean + shrink r_coarser) / (N + shrink),   r = 1 where no path has been,   never below `floor`.

Whole paths come from a mixture of laws of paths,

    M = (1 - explore) q + explore mean over temperatures and switches of [b^(1 / temperature) up to the switch, then b],

switches 1, 2, 4, ... tokens. It finds the first hits and bounds the weights: temperature 1 is b itself, so that
p / M <= temperatures / explore after every prefix.

Does: fit, draw, weigh. Does not: decide how often; `beyond_tail_risk` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.budget import charge
from workbench.models.base import surviving_memory
from workbench.models.laws import draw, log_softmax
from workbench.streams import Stream

if TYPE_CHECKING:
    import torch

_NEGLIGIBLE = 1e-100
"""Values below this share of the largest would square to 0."""


@dataclass(frozen=True)
class Twist:
    """The ratios r that weighted paths teach.

    tokens    (paths, T) int64 padded with -1; log_base (paths, T): log b of each
    value     (paths, T) >= 0: the weight of each step, what comes after it of the path's estimate of P(event)
    start     the prompt's last token
    shrink, floor as above; depth 0: r = 1; 1: one class; 2: by step; 3: by step and token before
    """

    tokens: np.ndarray
    log_base: np.ndarray
    value: np.ndarray
    start: int
    vocab_size: int
    shrink: float = 16.0
    floor: float = 0.1
    depth: int = 3

    @cached_property
    def _seen(self) -> tuple[np.ndarray, ...]:
        """(step, token before, token, value, value / b) of every step with weight."""
        before = np.concatenate([np.full((len(self.tokens), 1), self.start), self.tokens[:, :-1]], axis=1)
        scaled = self.value / self.value.max(initial=_NEGLIGIBLE)
        row, step = np.nonzero((scaled > _NEGLIGIBLE) & (self.tokens >= 0))
        value = scaled[row, step]
        return step, before[row, step], self.tokens[row, step], value, value / np.exp(self.log_base[row, step])

    def _fit(self, inside: np.ndarray, coarser: np.ndarray) -> np.ndarray:
        if not inside.any():
            return coarser
        _, _, token, value, over_base = (each[inside] for each in self._seen)
        mean = np.bincount(token, over_base, minlength=self.vocab_size) / value.sum()
        effective = value.sum() ** 2 / (value**2).sum()
        return (effective * mean + self.shrink * coarser) / (effective + self.shrink)

    @cached_property
    def _anywhere(self) -> np.ndarray:
        return self._fit(np.full(len(self._seen[0]), self.depth > 0), np.ones(self.vocab_size))

    def log_ratios(self, step: int, before: np.ndarray) -> np.ndarray:
        """(n, vocab_size) log r at a step after the tokens `before` (n,)."""
        here = (self._seen[0] == step) & (self.depth > 1)
        by_step = self._fit(here, self._anywhere)
        kinds, kind = np.unique(before, return_inverse=True)
        ratios = [self._fit(here & (self._seen[1] == u) & (self.depth > 2), by_step) for u in kinds]
        return np.log(np.maximum(ratios, self.floor))[kind]


@dataclass(frozen=True)
class PathLaw:
    """M; see the module. temperatures must hold 1, so that the weights are bounded."""

    twist: Twist
    explore: float
    temperatures: tuple[float, ...]

    @property
    def log_weight_bound(self) -> float:
        return float(np.log(len(self.temperatures) / self.explore))


@dataclass(frozen=True)
class TwistedPaths:
    """n paths from a `PathLaw` with what they say of P(event).

    tokens (n, T) int64 and log_base (n, T), padded with -1 and 0; laws_read (n,): how many next-token laws each took;
    term (n,): unbiased for P(event); to_go (n, T): the part of the term that comes after each step;
    log_weight (n,) = log p - log M of the whole path; log_density (n,) = log M.
    """

    tokens: np.ndarray
    log_base: np.ndarray
    laws_read: np.ndarray
    term: np.ndarray
    to_go: np.ndarray
    log_weight: np.ndarray
    log_density: np.ndarray


def twisted_paths(
    problem: Any,
    law: PathLaw,
    n: int,
    stream: Stream,
    *,
    outcome: Sequence[int] | None = None,
    given: np.ndarray | None = None,
) -> TwistedPaths:
    """n paths of a `ModelEvent`'s model, drawn from `law` and weighted.

    outcome  token ids whose generation is the event. They are never drawn; each step adds the path's weight so far
             times P(outcome | prefix), and the last step needs no token. None: whole answers, which the event judges.
    given    (n, T) tokens to score in place of drawing, padded with -1: sums over all paths are exact
    Spends the prompt and one token for each law that is read.
    """
    parts: dict[int, TwistedPaths] = {}

    def work(block: np.ndarray) -> None:
        parts[int(block[0])] = _Walk(problem, law, block, stream, outcome).walk(None if given is None else given[block])

    surviving_memory([problem.model], np.arange(n), work)
    whole = [parts[first] for first in sorted(parts)]
    return TwistedPaths(*(np.concatenate([getattr(p, name) for p in whole]) for name in TwistedPaths.__annotations__))


class _Walk:
    """Paths under way: their tokens, and their log-probabilities so far under p, q and each tempered law."""

    def __init__(
        self, problem: Any, law: PathLaw, rows: np.ndarray, stream: Stream, outcome: Sequence[int] | None
    ) -> None:
        self.problem, self.law, self.rows, self.stream = problem, law, rows, stream
        self.outcome = None if outcome is None else list(outcome)
        n, steps = len(rows), problem.max_new_tokens
        self.switches = np.unique(np.minimum(2 ** np.arange(steps.bit_length() + 1), steps))
        self.temperatures = np.array(law.temperatures)
        pick = stream.child("component").at(stream.first).uniforms_of(rows, 3)
        self.explores = pick[:, 0] < law.explore
        self.heat = (pick[:, 1] * len(self.temperatures)).astype(np.int64)
        self.switch = self.switches[(pick[:, 2] * len(self.switches)).astype(np.int64)]
        self.tokens, self.log_base = np.full((n, steps), -1), np.zeros((n, steps))
        self.gains, self.alive = np.zeros((n, steps)), np.ones(n, dtype=bool)
        self.laws_read = np.zeros(n, dtype=np.int64)
        self.log_p, self.log_m, self.log_q = np.zeros(n), np.zeros(n), np.zeros(n)
        self.log_tempered = np.zeros((n, len(self.temperatures), len(self.switches)))

    def walk(self, given: np.ndarray | None) -> TwistedPaths:
        model, steps = self.problem.model, self.problem.max_new_tokens
        ends = np.isin(np.arange(model.vocab_size), [*model.eos_ids, *self.problem.stop_ids])
        session = model.start([list(self.problem.prompt)] * len(self.rows))
        charge(tokens=len(self.rows))
        for step in range(steps):
            self.laws_read += self.alive
            base, log_free = self._without_outcome(log_softmax(session.log_probs), step)
            if not self.alive.any() or (self.outcome and step + 1 == steps):
                break
            self._go(step, base, log_free, None if given is None else np.maximum(given[:, step], 0))
            self.alive &= ~ends[self.tokens[:, step]]
            if step + 1 < steps and self.alive.any():
                session.advance(np.where(self.alive, self.tokens[:, step], -1))
        log_weight = self.log_p - self.log_m
        if self.outcome:
            from_here = self.gains[:, ::-1].cumsum(axis=1)[:, ::-1]
            term, to_go = from_here[:, 0], np.column_stack([from_here[:, 1:], np.zeros(len(self.rows))])
        else:
            term = np.where(self.problem.judge(self.tokens), np.exp(log_weight), 0.0)
            to_go = np.where(self.tokens >= 0, term[:, None], 0.0)
        return TwistedPaths(self.tokens, self.log_base, self.laws_read, term, to_go, log_weight, self.log_m)

    def _without_outcome(self, base: torch.Tensor, step: int) -> tuple[torch.Tensor, np.ndarray]:
        """The law less the outcome, renormalised, and the log-probability (n,) of what it keeps; books the hazards.
        A path whose next token is the outcome for certain ends there."""
        import torch

        if not self.outcome:
            return base, np.zeros(len(self.rows))
        hazard = torch.logsumexp(base[:, self.outcome], dim=-1).exp().clamp(max=1.0).cpu().numpy()
        self.gains[:, step] = np.where(self.alive, np.exp(self.log_p - self.log_m) * hazard, 0.0)
        free = base.clone()
        free[:, self.outcome] = -torch.inf
        kept = torch.logsumexp(free, dim=-1)
        certain = kept == -torch.inf
        self.alive &= ~certain.cpu().numpy()
        return torch.where(certain[:, None], base, free - kept[:, None]), kept.cpu().numpy()

    def _go(self, step: int, base: torch.Tensor, log_free: np.ndarray, given: np.ndarray | None) -> None:
        """One token for each path: drawn from its own component, scored under all."""
        import torch

        def there(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values, device=base.device)

        n, kinds = len(self.rows), len(self.temperatures)
        before = self.tokens[:, step - 1] if step else np.full(n, self.law.twist.start)
        twisted = log_softmax(base + there(self.law.twist.log_ratios(step, before)).to(base))
        hotter = base / there(self.temperatures).to(base)[:, None, None]
        tempered = log_softmax(hotter.reshape(n * kinds, -1)).reshape(hotter.shape)
        laws = torch.cat([twisted[None], base[None], tempered])
        token = given
        if token is None:
            kind = np.where(self.explores, np.where(step < self.switch, 2 + self.heat, 1), 0)
            chosen = laws[there(kind), torch.arange(n, device=base.device)]
            token = draw(chosen, there(self.stream.uniforms_of(self.rows, 1, step)[:, 0]))[0].cpu().numpy()
        at = there(token).expand(len(laws), n)[:, :, None]
        log_q, log_b, *log_hot = laws.gather(2, at)[:, :, 0].cpu().numpy()
        alive = self.alive
        self.tokens[alive, step], self.log_base[alive, step] = token[alive], log_b[alive]
        self.log_p[alive] += (log_b + log_free)[alive]
        self.log_q[alive] += log_q[alive]
        onward = np.where(step < self.switches, np.stack(log_hot, axis=1)[:, :, None], log_b[:, None, None])
        self.log_tempered[alive] += onward[alive]
        self.log_m = self._mixed()

    def _mixed(self) -> np.ndarray:
        components = np.column_stack([self.log_q, self.log_tempered.reshape(len(self.rows), -1)])
        kinds, peak = components.shape[1] - 1, components.max(axis=1)
        shares = np.append(1 - self.law.explore, np.full(kinds, self.law.explore / kinds))
        return peak + np.log((np.exp(components - peak[:, None]) * shares).sum(axis=1))
