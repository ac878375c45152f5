"""Twisted sequential Monte Carlo for language models: particles that write where the outcome can still come.

Zhao, Brekelmans, Makhzani and Grosse, "Probabilistic inference in language models via twisted sequential Monte Carlo",
arXiv 2404.17546 (ICML 2024); Whiteley and Lee (2014) and Guarniero, Johansen and Lee (2017) for twists; `twisted` does
the same for Markov chains. P(a token of a set O is generated), b the model's law, h(x) = b(O | x) after the prefix x,
which the model gives before anything is drawn, so that no path has to hit:

    P(event) = sum_t E[h(x_<t); x_<t free of O and of ends],      V(x) = h(x) + sum_{v not in O} b(v | x) V(x v).

The N particles of an island draw the next token from q(v) = b(v) A(x v) / m(x), m = sum_v b A over v neither in O nor
an end, where A > 0 stands for V(x v). g is a particle's weight against the model's own paths, psi what stands for V:

    Z += mean of g h,    g <- g m / A,    psi(x v) = A(x v) [psi(x) / (h(x) + m(x))]^memory,    psi(prompt) = 1.

Before the draw an island is resampled (systematically) by u = g sum_v b(v) psi(x v) where its effective number is below
half; a survivor's g becomes its own times mean u / u. Z is unbiased for every N, memory and A > 0, since each of its
terms is, whatever was resampled before. With A = V, Z = P(event) in every island: u is what is left to collect, and
resampling keeps its sum. Hits as they are drawn, in place of h, had 9 to 600 times the variance on the codeword grammar
and about the same on event logs.

A is learned from a pilot, paid for and not used again: paths with O suppressed, whose value to go after t tokens is
1 - prod_{s > t} (1 - h_s), as in REACH (`scope_reach`), so that they need no hit. A is its mean by step and last token,
drawn by `shrink` pseudo-paths to the step's mean over plain paths, and never below `floor` m. A share of the paths,
`explore`, is tempered for its first 1, 2, 4, ... tokens (as in `twist`) and teaches what comes after those, so that an
unlikely way to the outcome is met at all.

At memory = 0, psi is the class's value. It forgets which way a path took where later tokens don't tell, and resampling
then removes the paths that matter, in nearly all islands alike. At memory = 1 psi follows the path: h + sum_v b psi(x v)
over v off O is psi(x), and an island is resampled only as its paths use up what they had to collect.

Islands are independent and give the interval: Student's t on the log scale. They agree with each other about a kind of
path that neither they nor the pilot met. With twist="learned" no bound on g tells how seldom they would meet it, but
the pilot's plain paths do, as all paths do with "none": where the risk is below what so many paths can rule out, the
upper end is the risk plus that bound, as REACH's is.

One sample is an island of N paths: hold it against other methods at equal tokens.
Does: a `ModelEvent` that is one token of a set, on a model with next-token laws. Does not: outcomes of several tokens;
twists that are networks; a bound on the weights (`beyond_tail_risk` has one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from workbench.exact_sum import NO_POWERS, add_powers, spread_of
from workbench.methods.tail_risk.proportions import clopper_pearson, room_for_unseen
from workbench.methods.tail_risk.scope_reach import event_outcome
from workbench.methods.tail_risk.skewed_mean import log_scale_t
from workbench.methods.tail_risk.twisted import systematic
from workbench.models.base import fitted, make_smaller, on_one_thread
from workbench.models.laws import draw, log_softmax
from workbench.models.sampling import event_mass, sample_in_step
from workbench.run import Batch, State
from workbench.streams import Stream

_LEAST_CARRIERS = 10.0
TWISTS = ("learned", "none")

Twist = Callable[[np.ndarray], np.ndarray]
"""Prefixes (rows, t), without the prompt -> log A of each next token, (vocab_size,) or (rows, vocab_size)."""


@dataclass(frozen=True)
class TwistedDecoding:
    """The mean of Z over islands of `particles` paths each; the module says how.

    particles     N of an island
    twist         "learned" from a pilot, or "none": A = 1, plain paths in islands
    pilot         islands' worth of paths that the twist is learned from
    shrink        pseudo-paths by which a class of prefixes is drawn to its step's mean
    memory        1: psi follows the path; 0: psi is the class's value
    floor         smallest A of a token, as a share of their mean m
    explore       share of the pilot's paths that are tempered
    temperatures  of those, each as often
    level         of the interval
    """

    particles: int = 16
    twist: str = "learned"
    pilot: int = 64
    shrink: float = 16.0
    memory: float = 1.0
    floor: float = 0.5
    explore: float = 0.5
    temperatures: tuple[float, ...] = (2.0, 4.0, 8.0)
    level: float = 0.95

    def __post_init__(self) -> None:
        require_integer("particles", self.particles, low=2, cure="an island has paths to choose between, e.g. 16")
        require_choice("twist", self.twist, TWISTS)
        require_integer("pilot", self.pilot, low=1, cure="a twist is learned from a pilot, e.g. 64 islands")
        require_number("shrink", self.shrink, low=0, open_low=True, cure="pass a number of pseudo-paths such as 16")
        require_number("memory", self.memory, low=0, high=1, cure="1 is usual; 0 is the twist by class alone")
        require_number("floor", self.floor, low=0, high=1, cure="pass e.g. floor=0.5; 0 trusts the classes")
        require_number("explore", self.explore, low=0, high=1, cure="pass a share such as 0.5, or 0 for plain paths")
        cure = "pass e.g. temperatures=(2.0, 4.0, 8.0)"
        given = require_finite("temperatures", self.temperatures, cure)
        if given.ndim != 1 or not len(given) or (given <= 0).any():
            raise refuse("temperatures", self.temperatures, "be positive numbers, at least one", cure)
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    def init(self, problem: Any) -> State:
        event_outcome(type(self).__name__, problem)
        learns = self.twist == "learned"
        return {
            "pilot_left": self.pilot if learns else 0,
            "paths": _no_paths(self.particles, problem.max_new_tokens),
            "n": 0,
            "powers": list(NO_POWERS),
        }

    def round_size(self, problem: Any, state: State) -> int | None:
        return state["pilot_left"] or None

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch:
        if state["pilot_left"]:
            return self._pilot(problem, n, stream)
        settings = {"memory": self.memory, "floor": self.floor}
        return islands(problem, self._twist(problem, state), self.particles, n, stream, **settings)

    def _pilot(self, problem: Any, n: int, stream: Stream) -> Batch:
        """n islands' worth of paths, each array (n, particles, ...)."""
        rows, first = n * self.particles, stream.first * self.particles
        pick = stream.child("heat").at(first).uniforms(rows, 3)
        switches = 2 ** np.arange(problem.max_new_tokens.bit_length())
        switch = switches[(pick[:, 1] * len(switches)).astype(np.int64)]
        switch = np.where(pick[:, 0] < self.explore, switch, 0)
        heat = np.array(self.temperatures)[(pick[:, 2] * len(self.temperatures)).astype(np.int64)]
        tokens, to_go = pilot_paths(problem, heat, switch, stream.child("pilot").at(first))
        paths = {"drawn": tokens, "to_go": to_go, "switch": switch}
        batch: Batch = {name: values.reshape(n, self.particles, *values.shape[1:]) for name, values in paths.items()}
        laws_read = (batch["drawn"] >= 0).sum(axis=(1, 2))
        spent = self.particles * len(problem.prompt) + laws_read
        return batch | {"index": stream.first + np.arange(n), "tokens": spent}

    def _twist(self, problem: Any, state: State) -> Twist:
        paths, model = state["paths"], problem.model
        never = [*model.eos_ids, *problem.stop_ids, *event_outcome(type(self).__name__, problem)]
        flat = {name: paths[name].reshape(-1, *paths[name].shape[2:]) for name in ("drawn", "to_go", "switch")}
        return ClassTwist(*flat.values(), never=tuple(never), vocab_size=model.vocab_size, shrink=self.shrink)

    def absorb(self, state: State, batch: Batch) -> State:
        if state["pilot_left"]:
            paths = {name: np.concatenate([kept, batch[name]]) for name, kept in state["paths"].items()}
            order = np.argsort(paths["index"])
            paths = {name: values[order] for name, values in paths.items()}
            return state | {"paths": paths, "pilot_left": state["pilot_left"] - len(batch["index"])}
        z = require_finite("batch['z']", batch["z"], "look for logits that are not numbers", allow_empty=True)
        return state | {"n": state["n"] + len(z), "powers": add_powers(state["powers"], z)}

    def result(self, state: State) -> Estimate:
        n, pilot = state["n"], len(state["paths"]["index"])
        common: dict[str, Any] = {"level": self.level, "n_samples": n + pilot}
        if n == 0:
            under_way = f"the pilot is under way ({pilot} of {self.pilot} islands)"
            return Estimate.unknown(0.0, 1.0, under_way if pilot else "no sample has been drawn yet", **common)
        value, variance, carriers = spread_of(state["powers"], n)
        plain = int((state["paths"]["switch"] == 0).sum()) if self.twist == "learned" else n * self.particles
        unseen = clopper_pearson(0, plain, self.level)[1] if plain else 1.0
        common["diagnostics"] = {"islands": n, "carriers": carriers, "unseen_at_most": unseen}
        if n == 1 or value > 1:
            uneven = f"the islands are so uneven that their mean is {value:.3g}"
            return Estimate.unknown(0.0, 1.0, uneven if n > 1 else "a single island has no spread", **common)
        if variance <= 1e-12 * value**2:
            ends = {"low": 0.0, "high": min(1.0, value + unseen), "interval": "unseen paths above"}
            why = f"all {n:,} islands gave one value, which shows no spread"
            return Estimate(value=value, **ends, reliable=False, why=why, **common)
        error = math.sqrt(variance / (n - 1))
        low, high = log_scale_t(value, error, n, self.level)
        high, moved, why = room_for_unseen(value, high, unseen)
        interval = "t over islands below, unseen paths above" if moved else "t over islands, log scale"
        few = carriers < _LEAST_CARRIERS
        if few:
            why = f"{carriers:.1f} islands' worth carry the spread, below {_LEAST_CARRIERS:g}"
        return Estimate(
            value=value,
            low=low,
            high=min(1.0, high),
            std_error=error,
            interval=interval,
            reliable=not few,
            why=why,
            **common,
        )


@dataclass(frozen=True)
class ClassTwist:
    """A by step and last token, from the pilot's paths: tokens (paths, T), their value to go (paths, T) after each
    token, and how many of a path's first tokens were tempered; A = 0 for the tokens of `never`."""

    tokens: np.ndarray
    to_go: np.ndarray
    switch: np.ndarray
    never: tuple[int, ...]
    vocab_size: int
    shrink: float

    def __call__(self, prefixes: np.ndarray) -> np.ndarray:
        step = prefixes.shape[1]
        going = (self.tokens[:, step] >= 0) & ~np.isin(self.tokens[:, step], self.never) & (self.switch <= step + 1)
        plain = going & (self.switch == 0)
        token, value = self.tokens[going, step], self.to_go[going, step]
        # One more path for the plain ones, of the value that all have on average, in case none of them had any.
        pooled = float(value.mean()) if going.any() else 0.0
        mean = (float(self.to_go[plain, step].sum()) + pooled) / (int(plain.sum()) + 1) if pooled > 0 else 1.0
        paths = np.bincount(token, minlength=self.vocab_size)
        total = np.bincount(token, value, minlength=self.vocab_size)
        log_value = np.log((total + self.shrink * mean) / (paths + self.shrink))
        log_value[list(self.never)] = -np.inf
        return log_value


def pilot_paths(problem: Any, heat: np.ndarray, switch: np.ndarray, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """(tokens (n, T) padded with -1, to_go (n, T)) of n paths with the outcome suppressed; path j is drawn at
    temperature heat[j] for its first switch[j] tokens. to_go[:, t] = 1 - prod_{s > t} (1 - h_s), unbiased for the
    value of a path's first t + 1 tokens where no later one is tempered."""
    import torch

    ids = event_outcome("pilot_paths", problem)
    mass, steps = event_mass(ids), problem.max_new_tokens
    log_hazards = np.full((len(heat), steps + 1), -np.inf)

    def suppress(laws: list[torch.Tensor], rows: np.ndarray, at: np.ndarray) -> torch.Tensor:
        # A row that has ended is at the column after its last, which nobody reads.
        log_hazards[rows, at] = mass(laws[0]).double().cpu().numpy()
        masked = laws[0].clone()
        masked[:, ids] = -torch.inf
        certain = masked.amax(dim=-1, keepdim=True) == -torch.inf
        hot = torch.as_tensor(np.where(at < switch[rows], heat[rows], 1.0)).to(masked)[:, None]
        return torch.log_softmax(torch.where(certain, laws[0], masked / hot), dim=-1)

    drawn = sample_in_step(
        [problem.model],
        [problem.prompt],
        fuse=suppress,
        n=len(heat),
        max_new_tokens=steps,
        stream=stream,
        stop_ids=(*problem.stop_ids, *ids),
    )
    inside = np.arange(steps) < drawn.lengths[:, None]
    with np.errstate(divide="ignore"):
        log_free = np.log1p(-np.where(inside, np.exp(np.minimum(log_hazards[:, :-1], 0.0)), 0.0))
    later = np.column_stack([log_free[:, 1:], np.zeros(len(heat))])
    return drawn.tokens, -np.expm1(later[:, ::-1].cumsum(axis=1)[:, ::-1])


def islands(
    problem: Any,
    twist: Twist,
    particles: int,
    n: int,
    stream: Stream,
    *,
    memory: float = 1.0,
    floor: float = 0.0,
) -> dict[str, np.ndarray]:
    """{"z": (n,), "tokens": (n,)} of n islands under any twist; row j is sample `stream.first + j`.

    Spends the prompt and one token for each law that is read, for every path.
    """
    found, at, model = [], 0, problem.model
    while at < n:
        block = np.arange(at, min(n, at + max(1, model.rows_at_once // particles)))
        with on_one_thread(not model.gains_from_threads(len(block) * particles)):
            done = fitted(
                lambda block=block: found.append(_islands(problem, twist, particles, block, stream, memory, floor))
            )
        if done:
            at += len(block)
        else:
            make_smaller([model], len(block) * particles)
    z, tokens = zip(*found, strict=True)
    return {"z": np.concatenate(z), "tokens": np.concatenate(tokens)}


def _islands(
    problem: Any, twist: Twist, particles: int, block: np.ndarray, stream: Stream, memory: float, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    outcome, steps, shape = event_outcome("islands", problem), problem.max_new_tokens, (len(block), particles)
    rows = len(block) * particles
    session = problem.model.start([list(problem.prompt)] * rows)
    charge(tokens=rows)
    tokens = np.full((rows, steps), -1)
    log_g, log_psi, alive = np.zeros(rows), np.zeros(rows), np.ones(rows, dtype=bool)
    z, laws_read = np.zeros(len(block)), np.zeros(rows, dtype=np.int64)
    for step in range(steps):
        laws_read += alive
        law = log_softmax(session.log_probs)
        log_h = torch.logsumexp(law[:, outcome], dim=-1).double().cpu().numpy()
        z += np.where(alive, np.exp(log_g + log_h), 0.0).reshape(shape).mean(axis=1)
        if step + 1 == steps:
            break
        log_a = torch.as_tensor(twist(tokens[:, :step])).to(law).expand(law.shape)
        if floor > 0:
            least = torch.logsumexp(law + log_a, dim=-1, keepdim=True) + math.log(floor)
            log_a = torch.where(log_a == -torch.inf, log_a, torch.maximum(log_a, least))
        onward = law + log_a
        log_m = torch.logsumexp(onward, dim=-1).double().cpu().numpy()
        alive &= log_m > -np.inf
        if not alive.any():
            break
        log_kappa = np.where(alive, memory * (log_psi - np.logaddexp(log_h, np.where(alive, log_m, 0.0))), 0.0)
        log_u = np.where(alive, log_g + log_kappa + log_m, -np.inf)
        uniforms = stream.uniforms_of(block, particles + 1, step=step * (particles + 1))
        chosen, log_mean = _survivors(log_u.reshape(shape), uniforms[:, -1])
        if (chosen != np.arange(rows)).any():
            session, tokens = session.select(chosen), tokens[chosen]
            onward, log_a = onward[torch.as_tensor(chosen)], log_a[torch.as_tensor(chosen)]
            log_kappa, log_m, alive = log_kappa[chosen], log_m[chosen], alive[chosen]
            log_g = log_g[chosen]
        log_g = np.where(np.isnan(log_mean), log_g, log_mean - log_kappa - np.where(alive, log_m, 0.0))
        lost = torch.as_tensor(~alive, device=law.device)[:, None]
        token = draw(
            torch.where(lost, torch.zeros_like(onward), onward),
            torch.as_tensor(uniforms[:, :-1].reshape(-1), device=law.device),
        )[0]
        drawn, log_chosen = token.cpu().numpy(), log_a.gather(1, token[:, None])[:, 0].double().cpu().numpy()
        tokens[:, step] = np.where(alive, drawn, -1)
        log_g = np.where(alive, log_g + log_m - np.where(alive, log_chosen, 0.0), -np.inf)
        log_psi = np.where(alive, log_kappa + log_chosen, 0.0)
        session.advance(tokens[:, step])
    spent = particles * len(problem.prompt) + laws_read.reshape(shape).sum(axis=1)
    return z, spent


def _survivors(log_u: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which row each place takes, (n N,), and the log of its island's mean of u where it was resampled, else NaN, for
    islands with log u (n, N), one uniform each."""
    n, count = log_u.shape
    peak = log_u.max(axis=1, keepdims=True)
    u = np.where(peak > -np.inf, np.exp(log_u - np.where(peak > -np.inf, peak, 0.0)), 0.0)
    total = u.sum(axis=1, keepdims=True)
    share = np.divide(u, total, out=np.zeros_like(u), where=total > 0)
    poor = count / 2 * (share**2).sum(axis=1) > 1
    chosen = np.arange(n * count).reshape(n, count)
    chosen[poor] = np.take_along_axis(chosen[poor], systematic(share[poor], uniform[poor]), axis=1)
    log_mean = np.full((n, count), np.nan)
    log_mean[poor] = peak[poor] + np.log(total[poor] / count)
    return chosen.ravel(), log_mean.ravel()


def _no_paths(particles: int, steps: int) -> dict[str, np.ndarray]:
    return {
        "index": np.zeros(0, dtype=np.int64),
        "drawn": np.zeros((0, particles, steps), dtype=np.int64),
        "to_go": np.zeros((0, particles, steps)),
        "switch": np.zeros((0, particles), dtype=np.int64),
    }
