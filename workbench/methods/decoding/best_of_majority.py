"""Best-of-majority: which k of N sampled answers to submit when an imperfect reward model scores them.

Paper: Q. Di, K. Ji, X. Li, H. Zhao and Q. Gu, "Best-of-Majority: Minimax-Optimal Strategy for Pass@k Inference
Scaling", arXiv 2510.03199 (2025).

Computes, from N answers to one prompt and their rewards, the k distinct answers to submit (Algorithm 3): keep the
answers that make up at least a share alpha of the samples, and submit the k of them with the largest reward. Beside
it stand the rules it is compared with (majority voting, weighted majority, best-of-N, soft best-of-N), the regret bound
of Theorem 5.1 with explicit constants, and Pass@k.

Does: work on classes of equivalent answers; `select` takes raw answers, the other rules take tables of counts
(..., answers), so that thousands of repeats go through one call. Does not: choose alpha from data. It depends on the
unknown coverage C* = 1 / pi(y*); tuning it on graded test prompts would use up their grades.

Departures from the paper:
1. Its model has one reward per distinct answer. Samples of one answer may be scored differently (worked solutions), so
   `aggregate` takes their mean, the default, or their maximum.
2. Where no answer reaches alpha the paper is silent. The most frequent answer is submitted, alone, and flagged.
3. Where fewer than k answers reach alpha, fewer are submitted. `pad=True` fills the places with the most frequent of
   the others, and says which they are.
4. Ties, in reward as in frequency, are broken at random. The order of appearance would favour early samples.
5. The constants of the bound (2 in front of its middle term, the two exponentials of the event) are ours, derived from
   the paper's argument; it states the rates.
6. Soft best-of-N, a k = 1 rule, is extended to k answers by drawing without replacement.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from workbench.errors import refuse, require_choice, require_finite, require_integer, require_number

_BOXED = re.compile(r"\\boxed\{(.*)\}")
_AGGREGATES = ("mean", "max")


def canonicalise(answer: Any) -> str | None:
    """The class of an answer: equal strings for equivalent answers, None for no answer.

    A \\boxed{...} is opened; dollar signs, outer space, case and a final full stop are dropped; a number is written as a
    fraction in lowest terms, so that "1,000", "1000.0" and 1000 agree, and "0.5" with "1/2". Meant for short answers;
    for formulas pass a `key` of your own, e.g. one that calls a mathematics parser.
    """
    if answer is None:
        return None
    text = str(answer)
    boxed = _BOXED.search(text)
    text = (boxed.group(1) if boxed else text).replace("$", "").strip().rstrip(".").strip().casefold()
    number = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text)
    try:
        return str(Fraction(re.sub(r"\s*/\s*", "/", number)))
    except (ValueError, ZeroDivisionError):
        return " ".join(text.split()) or None


@dataclass(frozen=True)
class Selection:
    """What `select` submits, best first.

    answers: for each submitted class the first sample of it, as it was given. frequencies and rewards: the class's
    share of the N samples and its aggregated reward. padded: true for an answer that did not reach alpha and only
    fills a place. fallback: no answer reached alpha, so this is the most frequent one.
    """

    answers: tuple[Any, ...]
    frequencies: tuple[float, ...]
    rewards: tuple[float, ...]
    padded: tuple[bool, ...]
    fallback: bool


def select(
    answers: Sequence[Any],
    rewards: Sequence[float],
    k: int,
    alpha: float,
    *,
    key: Callable[[Any], Hashable | None] = canonicalise,
    aggregate: str = "mean",
    pad: bool = False,
    seed: int | np.random.Generator = 0,
) -> Selection:
    """Best-of-majority on the N sampled `answers` to one prompt and their `rewards` (Algorithm 3).

    `key` maps an answer to its class; frequencies are over classes, since raw strings would each be rare. A sample
    whose class is None (nothing could be parsed) counts in N and is never submitted. `alpha` in [0, 1]: 0 is
    best-of-N; see `theory_alpha` and `practice_alpha`. `aggregate`: "mean" or "max" of a class's rewards. `seed` breaks
    ties. Raises WorkbenchError: alpha outside [0, 1], k < 1, no answers, rewards of another number or not finite.
    """
    answers = list(answers)
    scores = np.atleast_1d(require_finite("rewards", rewards, "score every answer", allow_empty=True))
    if not answers:
        raise refuse("len(answers)", 0, "be at least 1", "sample N answers to the prompt")
    if scores.shape != (len(answers),):
        must = f"be ({len(answers)},), one for each answer"
        raise refuse("rewards.shape", scores.shape, must, "score every answer once")
    classes: dict[Hashable, int] = {}
    given: list[Any] = []
    labels = np.full(len(answers), -1)
    for i, answer in enumerate(answers):
        name = key(answer)
        if name is None:
            continue
        if name not in classes:
            classes[name] = len(classes)
            given.append(answer)
        labels[i] = classes[name]
    if not classes:
        raise refuse("the number of answers with a class", 0, "be at least 1", "look at what key makes of them")
    counts, values = tabulate(labels, scores, len(classes), aggregate=aggregate)
    keeps = survivors(counts, alpha, n_samples=len(answers))
    chosen = best_of_majority(
        counts, values, k, alpha, rng=np.random.default_rng(seed), pad=pad, n_samples=len(answers)
    )
    chosen = chosen[chosen >= 0]
    fallback = not keeps.any()
    return Selection(
        answers=tuple(given[i] for i in chosen),
        frequencies=tuple(float(counts[i] / len(answers)) for i in chosen),
        rewards=tuple(float(values[i]) for i in chosen),
        padded=tuple(not keeps[i] and not (fallback and at == 0) for at, i in enumerate(chosen)),
        fallback=fallback,
    )


def tabulate(
    labels: np.ndarray, rewards: np.ndarray, n_answers: int, *, aggregate: str = "mean"
) -> tuple[np.ndarray, np.ndarray]:
    """(counts, rewards), both (..., n_answers), of samples with class `labels` (..., N), -1 for no answer, and
    `rewards` (..., N). A class that was not drawn gets reward 0, which no rule looks at."""
    require_choice("aggregate", aggregate, _AGGREGATES)
    n_answers = require_integer("n_answers", n_answers, low=1, cure="give the number of distinct answers")
    scores = require_finite("rewards", rewards, "score every answer")
    classes = np.asarray(labels)
    if classes.dtype.kind not in "iu":
        raise refuse("labels.dtype", classes.dtype, "be a whole number's", "give each sample the index of its class")
    if classes.shape != scores.shape or classes.ndim == 0:
        raise refuse("labels.shape", classes.shape, f"be the rewards' {scores.shape}", "give each sample a class")
    if classes.min() < -1 or classes.max() >= n_answers:
        worst = classes.min() if classes.min() < -1 else classes.max()
        raise refuse("labels", worst, f"lie in [-1, {n_answers - 1}]", "-1 stands for a sample without an answer")
    rows = np.broadcast_to(np.arange(classes[..., 0].size)[:, None], (classes[..., 0].size, classes.shape[-1]))
    drawn = classes.ravel() >= 0
    cell = (rows.ravel() * n_answers + classes.ravel())[drawn]
    size = len(rows) * n_answers
    counts = np.bincount(cell, minlength=size)
    if aggregate == "mean":
        values = np.bincount(cell, scores.ravel()[drawn], minlength=size) / np.maximum(counts, 1)
    else:
        values = np.full(size, -np.inf)
        np.maximum.at(values, cell, scores.ravel()[drawn])
        values[counts == 0] = 0
    shape = (*classes.shape[:-1], n_answers)
    return counts.reshape(shape), values.reshape(shape)


# Every rule below takes counts (..., answers) of the samples, and rewards that broadcast to that shape, and returns
# (..., k) indices of the answers to submit, best first, -1 where there are fewer. Only answers that were drawn count,
# and the first j columns are what the rule submits for j <= k.


def majority_voting(counts: np.ndarray, k: int, *, rng: np.random.Generator) -> np.ndarray:
    """The k most frequent answers."""
    drawn = _counted(counts)
    return _top(drawn.astype(float), drawn > 0, k, rng)


def weighted_majority(counts: np.ndarray, rewards: np.ndarray, k: int, *, rng: np.random.Generator) -> np.ndarray:
    """The k answers with the largest frequency x reward, i.e. sum of their samples' rewards; these must be >= 0."""
    drawn, scores = _scored(counts, rewards)
    if scores[drawn > 0].min() < 0:
        raise refuse("rewards", scores[drawn > 0].min(), "be at least 0 to serve as weights", "pass exp(rewards)")
    return _top(drawn * scores, drawn > 0, k, rng)


def best_of_n(counts: np.ndarray, rewards: np.ndarray, k: int, *, rng: np.random.Generator) -> np.ndarray:
    """The k answers with the largest reward."""
    drawn, scores = _scored(counts, rewards)
    return _top(scores, drawn > 0, k, rng)


def soft_best_of_n(
    counts: np.ndarray, rewards: np.ndarray, k: int, temperature: float, *, rng: np.random.Generator
) -> np.ndarray:
    """k answers drawn one after the other, without replacement, with chances proportional to count x exp(reward / T).

    That is the softmax over samples; T to 0 is best-of-N. Drawn as the top k of log-weights with Gumbel noise.
    """
    cure = "pass e.g. temperature=0.1"
    temperature = require_number("temperature", temperature, low=0, open_low=True, cure=cure)
    drawn, scores = _scored(counts, rewards)
    noisy = np.log(np.maximum(drawn, 1)) + scores / temperature + rng.gumbel(size=drawn.shape)
    return _top(noisy, drawn > 0, k, rng)


def survivors(counts: np.ndarray, alpha: float, *, n_samples: int | None = None) -> np.ndarray:
    """(..., answers) which answers were drawn and make up a share of at least `alpha` of the samples.

    `n_samples` is N where some samples had no answer; else N is the sum of the counts.
    """
    alpha = require_number("alpha", alpha, low=0, high=1, cure="pass the smallest share that passes, e.g. alpha=0.015")
    drawn = _counted(counts)
    total = drawn.sum(axis=-1, keepdims=True)
    if n_samples is not None:
        cure = "count the samples without an answer too"
        total = require_integer("n_samples", n_samples, low=int(total.max()), cure=cure)
    # A quotient of whole numbers rounds to the float that was typed for alpha; a product alpha * N need not.
    return (drawn > 0) & (drawn / total >= alpha)


def best_of_majority(
    counts: np.ndarray,
    rewards: np.ndarray,
    k: int,
    alpha: float,
    *,
    rng: np.random.Generator,
    pad: bool = False,
    n_samples: int | None = None,
) -> np.ndarray:
    """The k survivors of the filter with the largest reward (Algorithm 3); `survivors` says which passed.

    Where none passed, the most frequent answer alone. `pad` fills places that are left with the most frequent of the
    answers that did not pass.
    """
    drawn, scores = _scored(counts, rewards)
    keeps = survivors(drawn, alpha, n_samples=n_samples)
    submitted = _top(scores, keeps, k, rng)
    empty = ~keeps.any(axis=-1)
    if empty.any():
        submitted[empty, 0] = _top(drawn[empty].astype(float), drawn[empty] > 0, 1, rng)[..., 0]
    if pad:
        waiting = (drawn > 0) & ~keeps
        np.put_along_axis(waiting, np.maximum(submitted[..., :1], 0), False, axis=-1)
        others = _top(drawn.astype(float), waiting, k, rng)
        both = np.concatenate([submitted, others], axis=-1)
        first = np.argsort(both < 0, axis=-1, kind="stable")[..., : submitted.shape[-1]]
        submitted = np.take_along_axis(both, first, axis=-1)
    return submitted


def theory_alpha(coverage: float) -> float:
    """alpha = 3 / (4 C*) for coverage C* >= 1 (Theorem 5.1)."""
    return 0.75 / require_number("coverage", coverage, low=1, cure="pass C* = 1 / pi(y*)")


def practice_alpha(n_samples: int) -> float:
    """The paper's practical values: 0.015 up to N = 100, 0.005 beyond."""
    return (
        0.015 if require_integer("n_samples", n_samples, low=1, cure="pass the number of samples N") <= 100 else 0.005
    )


def failure_bound(coverage: float, n_samples: int) -> float:
    """C* exp(-N / (32 C*)) + (8 C* + 1) exp(-(3 log 3 - 2) N / (4 C*)), cut at 1: bounds the probability that at
    alpha = 3 / (4 C*) the filter drops an answer with pi >= 1 / C* or keeps one with pi < 1 / (4 C*).

    Chernoff's bound at 3/4 of the mean for each of at most C* answers, and at 3 times the mean for answers of small pi,
    merged into at most 8 C* + 1 bins of pi <= 1 / (4 C*) first: a bin's count is at least its answers'.
    """
    c = require_number("coverage", coverage, low=1, cure="pass C* = 1 / pi(y*)")
    n = require_integer("n_samples", n_samples, low=1, cure="pass the number of samples N")
    return min(1.0, c * math.exp(-n / (32 * c)) + (8 * c + 1) * math.exp(-(3 * math.log(3) - 2) * n / (4 * c)))


def regret_bound(eps_opt: float, eps_rm_sq: float, coverage: float, k: int, failure: float) -> float:
    """Regret of best-of-majority at alpha = 3 / (4 C*) <= eps_opt + 2 sqrt(C* eps_RM^2 / k) + P(event fails).

    `failure` is that probability or a bound such as `failure_bound`. Proof (Theorem 5.1): on the event y* passes. If
    it is not submitted, k answers with r^ >= r^(y*) are, so regret <= eps_opt + min_i D_i, D_i = |r^(y_i) - r*(y_i)|;
    and all have pi >= a = 1 / (4 C*), so min_i D_i <= sqrt(sum_i D_i^2 / k) <= sqrt(eps_RM^2 / (a k)).
    """
    k = require_integer("k", k, low=1, cure="submit at least one answer")
    cure = "pass what was measured, between 0 and 1"
    eps_opt = require_number("eps_opt", eps_opt, low=0, high=1, cure=cure)
    eps_rm_sq = require_number("eps_rm_sq", eps_rm_sq, low=0, high=1, cure=cure)
    failure = require_number("failure", failure, low=0, high=1, cure="pass a probability, e.g. failure_bound(...)")
    coverage = require_number("coverage", coverage, low=1, cure="pass C* = 1 / pi(y*)")
    return eps_opt + 2 * math.sqrt(coverage * eps_rm_sq / k) + failure


def samples_needed(coverage: float, eps_rm_sq: float, k: int) -> float:
    """N = 16 C* log(k C* / eps_RM^2), from which on the last term of the paper's bound no longer matters."""
    k = require_integer("k", k, low=1, cure="submit at least one answer")
    coverage = require_number("coverage", coverage, low=1, cure="pass C* = 1 / pi(y*)")
    cure = "pass a positive mean squared error"
    eps_rm_sq = require_number("eps_rm_sq", eps_rm_sq, low=0, high=1, open_low=True, cure=cure)
    return 16 * coverage * math.log(k * coverage / eps_rm_sq)


def selected_pass(submitted: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(...,) whether one of the `submitted` (..., k) answers is right, by `correct` (answers,) or (..., answers).

    Its mean over prompts is the paper's Pass@k, of answers that a rule *selected*. `unbiased_pass_at_k` is another thing.
    """
    places = np.asarray(submitted)
    right = np.broadcast_to(np.asarray(correct, dtype=bool), (*places.shape[:-1], np.shape(correct)[-1]))
    return np.asarray(((places >= 0) & np.take_along_axis(right, np.maximum(places, 0), axis=-1)).any(axis=-1))


def unbiased_pass_at_k(n_samples: Any, n_right: Any, k: int) -> np.ndarray:
    """1 - C(N - c, k) / C(N, k): the chance that k samples picked *at random* out of N, c of them right, hold a right one.

    Unbiased for 1 - (1 - p)^k when each sample is right with probability p. No rule is at work here and repeated
    answers take up places. Shapes broadcast. Source: Chen et al., arXiv 2107.03374 (2021), equation 1.
    """
    n, c = np.broadcast_arrays(np.asarray(n_samples), np.asarray(n_right))
    k = require_integer("k", k, low=1, high=int(n.min()), cure="draw at least k samples for every prompt")
    if n.dtype.kind not in "iu" or c.dtype.kind not in "iu" or (c < 0).any() or (c > n).any():
        raise refuse("n_right", n_right, "be whole numbers between 0 and n_samples", "count the right samples")
    misses = np.ones(n.shape)
    for j in range(k):
        misses = misses * (np.maximum(n - c - j, 0) / (n - j))
    return 1 - misses


def _counted(counts: np.ndarray) -> np.ndarray:
    table = np.asarray(counts)
    cure = "count the samples of each answer"
    if table.dtype.kind not in "iu":
        raise refuse("counts.dtype", table.dtype, "be a whole number's", cure)
    if table.ndim == 0 or table.shape[-1] == 0:
        raise refuse("counts.shape", table.shape, "be (..., answers)", cure)
    if table.size and table.min() < 0:
        raise refuse("counts", table.min(), "be at least 0", cure)
    if table.size and table.sum(axis=-1).min() < 1:
        raise refuse("the number of samples", 0, "be at least 1 in every row", "sample N >= 1 answers")
    return table


def _scored(counts: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    drawn, scores = _counted(counts), require_finite("rewards", rewards, "score every answer")
    shape = drawn.shape
    lead = zip(reversed(scores.shape[:-1]), reversed(shape[:-1]), strict=False)
    if scores.shape[-1:] != shape[-1:] or scores.ndim > len(shape) or any(s not in (1, c) for s, c in lead):
        must = f"end in {shape[-1]}, one for each answer, and broadcast to the counts' {shape}"
        raise refuse("rewards.shape", scores.shape, must, "score every answer")
    return drawn, np.broadcast_to(scores, shape)


def _top(scores: np.ndarray, eligible: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """(..., k) indices of the k largest eligible scores, best first, ties at random, -1 where there are fewer."""
    k = require_integer("k", k, low=1, cure="submit at least one answer")
    table = np.where(eligible, scores, -np.inf).reshape(-1, scores.shape[-1])
    best = np.full((len(table), k), -1)
    # Sorting is left to what can be among the first k: whatever reaches the k-th largest score.
    kth = min(k, table.shape[1])
    bar = np.partition(table, -kth, axis=-1)[:, -kth, None] if len(table) else table
    row, answer = np.nonzero((table >= bar) & (table > -np.inf))
    order = np.lexsort((rng.random(row.size), -table[row, answer], row))
    row, answer = row[order], answer[order]
    place = np.arange(row.size) - np.searchsorted(row, row)
    best[row[place < k], place[place < k]] = answer[place < k]
    return best.reshape(*scores.shape[:-1], k)
