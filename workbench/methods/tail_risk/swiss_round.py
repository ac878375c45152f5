"""Liu, Wu, Wu, Liu, Wang, Zhou, Huang, Namkoong: "LLM Swiss Round: Aggregating Multi-Benchmark Performance via
Competitive Swiss-System Dynamics", arXiv 2512.21010 (2025).

Computes a model's expected number of wins in a Swiss-system tournament whose rounds are benchmarks in a chosen order:
before round k models are grouped by their wins so far and paired at random within each group; the one with the better
score on benchmark k wins. After a round T members of the lowest group, drawn at random, may be removed (failure
sensitivity).

Does: the win tensor, seasons by simulation (`play`), the exact expectation for few models (`exact_wins`), profiles
over T.
Does not: baselines and tables of scores (`swiss_round_tables`). Rules of chess are left out on purpose: opponents may
meet again, and nobody is moved to another group to even it out.

Inferred, since the paper's text was not to be had in full and no code was found:
1. Equal scores: a fair coin for each pair and benchmark, drawn once for a table, or half a win each.
2. Where the lowest group has fewer than T members, all of it goes and nobody else. (Removal after the last round
   changes nothing.)
3. An odd group's bye is worth 0 (as the paper says) or, if asked for, half a win.
4. Sensitivity is the slope of a least-squares line of E[S](T) on T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from workbench.errors import refuse, require_choice, require_finite, require_integer
from workbench.models.products import jit
from workbench.streams import Stream

_BATCH = 4096  # seasons that share a generator
_MOST_EXACT = 8


def win_tensor(scores: Any, stream: Stream, *, ties: str = "coin") -> np.ndarray:
    """(K, M, M) float64: 1 where the row's model beats the column's on benchmark k, 0 where it loses, 0.5 on the
    diagonal.

    scores (M, K), larger is better; only their order within a benchmark matters. ties: "coin" or "half". Raises
    WorkbenchError for a missing score: leave the benchmark out, or say what a missing one is worth.
    """
    table = require_finite("scores", scores, "leave the benchmark out, or put in what a missing score is worth")
    if table.ndim != 2 or len(table) < 2 or table.shape[1] < 1:
        raise refuse("scores", table.shape, "be a table of two models or more by one benchmark or more", "pass (M, K)")
    require_choice("ties", ties, ("coin", "half"))
    by_task = table.T
    win = 0.5 + 0.5 * np.sign(by_task[:, :, None] - by_task[:, None, :])
    if ties == "coin":
        coins = np.triu((stream.generator().random(win.shape) < 0.5).astype(float), 1)
        coins += np.tril(1 - coins.transpose(0, 2, 1), -1)
        off = ~np.eye(len(table), dtype=bool)
        win = np.where((win == 0.5) & off, coins, win)
    return win


def _halves(win: Any) -> np.ndarray:
    tensor = require_finite("win", win, "make it with win_tensor")
    if tensor.ndim != 3 or tensor.shape[1] != tensor.shape[2] or tensor.shape[1] < 2:
        raise refuse("win", tensor.shape, "have shape (K, M, M)", "make it with win_tensor")
    halves = np.ascontiguousarray(np.rint(2 * tensor).astype(np.int64))  # one layout, one compilation
    if (halves != 2 * tensor).any() or (halves + halves.transpose(0, 2, 1) != 2).any():
        raise refuse("win", "a tensor", "hold 0, 0.5 and 1 with win + its transpose = 1", "make it with win_tensor")
    return halves


def _checked(win: Any, eliminate: Any, bye: Any) -> tuple[np.ndarray, int, int]:
    halves = _halves(win)
    models = halves.shape[1]
    cure = f"there are {models} models; pass 0 for no removal"
    removed = require_integer("eliminate", eliminate, low=0, high=models - 1, cure=cure)
    if bye not in (0, 0.5):
        raise refuse("bye", bye, "be 0 or 0.5", "the paper's is 0")
    return halves, removed, round(2 * bye)


@jit()
def _shuffle(order: Any, rng: Any) -> None:
    for i in range(len(order) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        order[i], order[j] = order[j], order[i]


@jit()
def _play(
    win: Any, removed: int, bye: int, grouped: bool, pairing: Any, removal: Any, score: Any, byes: Any, games: Any
) -> None:
    """Seasons one after another, scores in half wins. Going through the models in random order, each is paired with
    the one of its group that waits, or waits: within a group that is a uniform pairing, and whoever still waits at
    the end has the bye."""
    rounds, models = win.shape[0], win.shape[1]
    order, out_order, active = np.arange(models), np.arange(models), np.empty(models, dtype=np.bool_)
    waiting = np.empty(2 * rounds + 1, dtype=np.int64)
    for season in range(len(score)):
        mine = score[season]
        active[:] = True
        for k in range(rounds):
            waiting[:] = -1
            _shuffle(order, pairing)
            for m in order:
                if not active[m]:
                    continue
                group = mine[m] if grouped else 0
                other = waiting[group]
                if other < 0:
                    waiting[group] = m
                    continue
                waiting[group] = -1
                mine[m] += win[k, m, other]
                mine[other] += win[k, other, m]
                games[k] += 1
            for m in waiting:
                if m >= 0:
                    byes[m] += 1
                    mine[m] += bye
            if removed == 0:
                continue
            lowest = 2 * rounds + 1
            for m in range(models):
                if active[m] and mine[m] < lowest:
                    lowest = mine[m]
            left = removed
            _shuffle(out_order, removal)
            for m in out_order:
                if left > 0 and active[m] and mine[m] == lowest:
                    active[m] = False
                    left -= 1


@dataclass(frozen=True)
class Seasons:
    """wins (N, M): each season's wins; byes (M,): byes a season; games (K,): games a season in each round."""

    wins: np.ndarray
    byes: np.ndarray
    games: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(M,) E[S], the expected wins."""
        return self.wins.mean(axis=0)

    @property
    def std_error(self) -> np.ndarray:
        """(M,) standard error of `mean` from the random pairings alone; at most K / (2 sqrt N)."""
        return self.wins.std(axis=0, ddof=1) / np.sqrt(len(self.wins))


def play(
    win: Any, *, eliminate: int = 0, seasons: int = 100_000, bye: float = 0.0, pairing: str = "group", stream: Stream
) -> Seasons:
    """`seasons` tournaments over the win tensor (K, M, M), with `eliminate` models removed after each round.

    pairing "any" ignores the groups. Season i is the same whatever the number of seasons, and its pairings are drawn
    from the same numbers for every `eliminate`.
    """
    halves, removed, extra = _checked(win, eliminate, bye)
    seasons = require_integer("seasons", seasons, low=2, cure="play two or more")
    require_choice("pairing", pairing, ("group", "any"))
    rounds, models = halves.shape[:2]
    score, byes = np.zeros((seasons, models), dtype=np.int64), np.zeros(models, dtype=np.int64)
    games = np.zeros(rounds, dtype=np.int64)
    for start in range(0, seasons, _BATCH):
        rngs = (stream.child(use, start).generator() for use in ("pairing", "removal"))
        _play(halves, removed, extra, pairing == "group", *rngs, score[start : start + _BATCH], byes, games)
    return Seasons(score / 2, byes / seasons, games / seasons)


def exact_wins(win: Any, *, eliminate: int = 0, bye: float = 0.0) -> np.ndarray:
    """(M,) E[S] by going through every pairing and removal, M at most 8: the distribution over (wins so far, who is
    left)."""
    halves, removed, extra = _checked(win, eliminate, bye)
    rounds, models = halves.shape[:2]
    cure = "simulate larger tournaments with play"
    require_integer("the number of models", models, low=2, high=_MOST_EXACT, cure=cure)
    law: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {((0,) * models, tuple(range(models))): 1.0}
    for k in range(rounds):
        after: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
        for (score, active), chance in law.items():
            groups = [[m for m in active if score[m] == s] for s in sorted({score[m] for m in active})]
            choices = [list(_pairings(group)) for group in groups]
            share = chance / math.prod(len(one) for one in choices)
            for chosen in product(*choices):
                now = list(score)
                for pairs, alone in chosen:
                    for a, b in pairs:
                        now[a] += int(halves[k, a, b])
                        now[b] += int(halves[k, b, a])
                    if alone is not None:
                        now[alone] += extra
                for left, part in _after_removal(now, active, removed):
                    state = tuple(now), left
                    after[state] = after.get(state, 0.0) + share * part
        law = after
    return sum(chance * np.array(score) for (score, _), chance in law.items()) / 2.0  # type: ignore[return-value]


def _pairings(group: Sequence[int]) -> Iterator[tuple[list[tuple[int, int]], int | None]]:
    """Every way to pair a group, equally likely: (pairs, who is left over)."""
    if len(group) % 2:
        for alone in group:
            for pairs, _ in _pairings([m for m in group if m != alone]):
                yield pairs, alone
    elif not group:
        yield [], None
    else:
        for other in group[1:]:
            for pairs, _ in _pairings([m for m in group[1:] if m != other]):
                yield [(group[0], other), *pairs], None


def _after_removal(score: Sequence[int], active: tuple[int, ...], removed: int) -> list[tuple[tuple[int, ...], float]]:
    if removed == 0 or not active:
        return [(active, 1.0)]
    lowest = min(score[m] for m in active)
    last = [m for m in active if score[m] == lowest]
    gone = list(combinations(last, min(removed, len(last))))
    return [(tuple(m for m in active if m not in out), 1 / len(gone)) for out in gone]


def failure_profile(
    win: Any, most: int, *, seasons: int = 20_000, bye: float = 0.0, stream: Stream
) -> tuple[np.ndarray, np.ndarray]:
    """(E[S](T), its standard error), (most + 1, M) each, for T = 0 to `most` models removed a round, on common
    pairings."""
    most = require_integer("most", most, low=1, cure="ask for T = 0 and 1 at least")
    found = [play(win, eliminate=t, seasons=seasons, bye=bye, stream=stream) for t in range(most + 1)]
    return np.array([one.mean for one in found]), np.array([one.std_error for one in found])


def sensitivity(profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slope, relative slope), (M,) each: wins lost by one more removal a round, by least squares, and as a share of
    E[S](0).

    E[S] at different T are not on one scale, since fewer games are played; compare relative slopes. 0 where E[S](0)
    is 0.
    """
    table = require_finite("profile", profile, "make it with failure_profile")
    if table.ndim != 2 or len(table) < 2:
        raise refuse(
            "profile", table.shape, "have shape (levels of T, M) with two levels or more", "ask for T = 0 and 1"
        )
    t = np.arange(len(table)) - (len(table) - 1) / 2
    slope = t @ table / (t @ t)
    return slope, np.divide(slope, table[0], out=np.zeros_like(slope), where=table[0] > 0)


def failure_cost(
    scores: Any,
    tasks: Any,
    *,
    value: float = 0.0,
    top: int = 4,
    eliminate: int = 1,
    seasons: int = 2000,
    stream: Stream,
) -> np.ndarray:
    """(top,) share of E[S] that each of the `top` models of scores (M, K), by E[S] without removal, would lose if its
    own scores on `tasks` (an index or a slice of the K) were `value`; with `eliminate` models removed a round."""
    table = require_finite("scores", scores, "leave the benchmark out")
    top = require_integer("top", top, low=1, high=len(table), cure="there are no more models")
    coins, pairs = stream.child("ties"), stream.child("pairings")

    def wins(values: np.ndarray, removed: int) -> np.ndarray:
        return play(win_tensor(values, coins), eliminate=removed, seasons=seasons, stream=pairs).mean

    whole, lost = wins(table, eliminate), []
    for m in np.argsort(-wins(table, 0))[:top]:
        broken = table.copy()
        broken[m, tasks] = value
        lost.append(1 - wins(broken, eliminate)[m] / whole[m])
    return np.array(lost)
