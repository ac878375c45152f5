"""Which k of N sampled answers to submit: problems whose policy and rewards are tables, so that regret is exact.

Does: the regret of any submission; the *expected* regret of best-of-N and best-of-majority and the probability
that the filter fails, without simulation; the families that the theory of selection is about (an arena where
majority voting and best-of-N both fail, a least-favourable family, an under-scored optimum); and a problem with
real images, where a forest is the policy.
Does not: sample a language model; what it answered becomes counts with
`workbench.methods.decoding.best_of_majority.tabulate`.

The expected values rest on this: with N replaced by a Poisson number of samples the counts of all answers are
independent, so the generating function of an event is a product over answers; its coefficient at z^N, read off by
one Fourier transform, is the event's probability for exactly N samples. Regret lies in [0, 1] like the rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import comb, gammaln

from workbench.errors import refuse, require_finite, require_integer, require_number


@dataclass(frozen=True)
class SelectionProblem:
    """One prompt, or a batch of them, with every answer's probability and rewards.

    policy (..., answers): pi(y), the chance that a sample is y; each row sums to 1.
    true_rewards (..., answers): r*(y) in [0, 1]. proxy_rewards (..., answers): what the reward model says, in [0, 1].
    The optimum y* is the answer of the largest r*; where several share it, the likeliest of them (the theory assumes
    that there is one).
    """

    policy: np.ndarray
    true_rewards: np.ndarray
    proxy_rewards: np.ndarray

    def __post_init__(self) -> None:
        for name in ("policy", "true_rewards", "proxy_rewards"):
            table = require_finite(name, getattr(self, name), "give every answer a number")
            if table.ndim == 0 or table.shape != np.shape(self.policy):
                must = f"be the policy's {np.shape(self.policy)}, answers on the last axis"
                raise refuse(f"{name}.shape", table.shape, must, "give every answer a number")
            outside = (table < 0) | (table > 1)
            if outside.any():
                raise refuse(name, table[outside][0], "lie in [0, 1]", "rescale it to [0, 1]")
            object.__setattr__(self, name, table)
        off = np.abs(self.policy.sum(axis=-1) - 1)
        if off.max() > 1e-9:
            worst = self.policy.sum(axis=-1).ravel()[off.argmax()]
            raise refuse("policy's sum over the answers", worst, "be 1", "divide it by its sum")

    @property
    def optimum(self) -> np.ndarray:
        """(...,) index of y*."""
        best = self.true_rewards == self.true_rewards.max(axis=-1, keepdims=True)
        return np.where(best, self.policy, -1).argmax(axis=-1)

    @property
    def coverage(self) -> np.ndarray:
        """(...,) C* = 1 / pi(y*); infinite where the policy never gives y*."""
        with np.errstate(divide="ignore"):
            return 1 / self._at_optimum(self.policy)

    @property
    def eps_rm_sq(self) -> np.ndarray:
        """(...,) eps_RM^2 = E_{y ~ pi} (r^(y) - r*(y))^2."""
        return (self.policy * (self.proxy_rewards - self.true_rewards) ** 2).sum(axis=-1)

    @property
    def eps_opt(self) -> np.ndarray:
        """(...,) |r^(y*) - r*(y*)|."""
        return np.abs(self._at_optimum(self.proxy_rewards) - self._at_optimum(self.true_rewards))

    def counts(self, n_samples: int, repeats: int, rng: np.random.Generator) -> np.ndarray:
        """(..., repeats, answers) how often each answer came up among `n_samples` samples, `repeats` times over."""
        n_samples = require_integer("n_samples", n_samples, low=1, cure="draw at least one sample")
        repeats = require_integer("repeats", repeats, low=1, cure="repeat at least once")
        shape = (*self.policy.shape[:-1], repeats)
        return rng.multinomial(n_samples, self.policy[..., None, :], size=shape)

    def regret(self, submitted: np.ndarray) -> np.ndarray:
        """r*(y*) - max_i r*(y_i) for `submitted` (..., repeats, k) answer indices; the result has shape (..., repeats).

        -1 is an empty place; a submission of nothing earns reward 0. For one prompt, any leading axes will do.
        """
        places, answers = np.asarray(submitted), self.policy.shape[-1]
        if (
            places.dtype.kind != "i"
            or places.ndim < 1
            or (places.size and not -1 <= places.min() <= places.max() < answers)
        ):
            cure = "pass what a selection rule returns"
            raise refuse("submitted", submitted, f"be an array of indices from -1 to {answers - 1}", cure)
        lead = self.policy.shape[:-1]
        if places.shape[: len(lead)] != lead:
            cure = "keep the prompts on the first axis"
            raise refuse("submitted.shape", places.shape, f"begin with the prompts' {lead}", cure)
        table = self.true_rewards.reshape(*lead, *(1,) * (places.ndim - 1 - len(lead)), answers)
        earned = np.take_along_axis(
            np.broadcast_to(table, (*places.shape[:-1], answers)), np.maximum(places, 0), axis=-1
        )
        return table.max(axis=-1) - np.where(places < 0, 0, earned).max(axis=-1, initial=0)

    def _at_optimum(self, table: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table, self.optimum[..., None], axis=-1)[..., 0]


def arena(
    eps_rm_sq: float = 0.02,
    *,
    optimum: float = 0.05,
    n_decoys: int = 6,
    decoy: float = 0.10,
    n_tail: int = 4000,
    reward: float = 0.95,
) -> SelectionProblem:
    """Majority voting falls for the decoys, best-of-N for the tail.

    Answer 0 is y* with pi = `optimum` and r^ = r* = `reward`; then `n_decoys` wrong answers of probability `decoy`,
    seen through by the reward model (r^ = r* = 0); the rest is spread over `n_tail` wrong answers, of which a mass
    `eps_rm_sq` (in whole answers) is over-scored with r^ = 1 and so makes eps_RM^2.
    """
    tail = _tail_probability(1 - optimum - n_decoys * decoy, n_tail)
    policy = np.concatenate([[optimum], np.full(n_decoys, decoy), np.full(n_tail, tail)])
    true_rewards, proxy_rewards = np.zeros(policy.size), np.zeros(policy.size)
    true_rewards[0] = proxy_rewards[0] = reward
    first = 1 + n_decoys
    proxy_rewards[first : first + _over_scored(eps_rm_sq, tail, n_tail)] = 1
    return SelectionProblem(policy, true_rewards, proxy_rewards)


def least_favourable(
    k: int, *, coverage: float = 80, eps_rm_sq: float = 0.002, n_tail: int = 4000, reward: float = 0.9
) -> SelectionProblem:
    """No rule that looks at counts and proxy rewards can do better than d / 2 here: the lower bound's instance, made
    explicit.

    2k answers of probability 1 / C* share r^ = `reward`. Answer 0 is y* with r* = `reward`; the others have
    r* = `reward` - d, d = sqrt(C* (eps_RM^2 / 2) / (2k - 1)), which takes half of eps_RM^2. The other half is
    over-scored tail (r^ = 1, r* = 0), as in `arena`. Exchangeable answers are missed half of the time: regret d / 2.
    """
    coverage = require_number("coverage", coverage, low=2, cure="pass C* = 1 / pi(y*) of at least 2k")
    k = require_integer(
        "k", k, low=1, high=int(coverage / 2), cure="2k answers of probability 1 / C* must fit: k <= C*/2"
    )
    gap = np.sqrt(coverage * eps_rm_sq / 2 / (2 * k - 1))
    if gap > reward:
        raise refuse("eps_rm_sq", eps_rm_sq, f"leave r* - d positive, d = {gap:.3g}", "pass a smaller error")
    tail = _tail_probability(1 - 2 * k / coverage, n_tail)
    policy = np.concatenate([np.full(2 * k, 1 / coverage), np.full(n_tail, tail)])
    true_rewards, proxy_rewards = np.zeros(policy.size), np.zeros(policy.size)
    proxy_rewards[: 2 * k], true_rewards[: 2 * k] = reward, reward - gap
    true_rewards[0] = reward
    proxy_rewards[2 * k : 2 * k + _over_scored(eps_rm_sq / 2, tail, n_tail)] = 1
    return SelectionProblem(policy, true_rewards, proxy_rewards)


def under_scored_optimum(
    eps_opt: float, delta: float, *, n_rivals: int = 12, coverage: float = 20, n_tail: int = 4000
) -> SelectionProblem:
    """y* (r* = 1) is scored 1 - eps_opt, and `n_rivals` answers as likely as it, worth 1 - eps_opt + delta, are scored
    as they are: whoever trusts the reward model submits all rivals before y*. Answer 0 is y*; the tail is worth 0."""
    eps_opt = require_number("eps_opt", eps_opt, low=0, high=1, cure="pass the optimum's reward error, e.g. 0.2")
    delta = require_number("delta", delta, low=0, high=eps_opt, cure="pass a delta of at most eps_opt")
    n_rivals = require_integer("n_rivals", n_rivals, low=1, cure="set at least one rival before y*")
    coverage = require_number("coverage", coverage, low=1, cure="pass C* = 1 / pi(y*) of at least n_rivals + 1")
    tail = _tail_probability(1 - (n_rivals + 1) / coverage, n_tail)
    policy = np.concatenate([np.full(1 + n_rivals, 1 / coverage), np.full(n_tail, tail)])
    rewards = np.zeros(policy.size)
    rewards[1 : 1 + n_rivals] = 1 - eps_opt + delta
    true_rewards, proxy_rewards = rewards.copy(), rewards.copy()
    true_rewards[0], proxy_rewards[0] = 1, 1 - eps_opt
    return SelectionProblem(policy, true_rewards, proxy_rewards)


def digit_triples(
    n_prompts: int,
    rng: np.random.Generator,
    *,
    depth: int = 5,
    n_pixels: int = 12,
    n_trees: int = 400,
    n_training: int = 300,
    n_reward_models: int = 1,
) -> SelectionProblem:
    """Real images with a checkable answer: a prompt is three test images of digits, its answer their number 000..999.

    Policy: for each image a tree drawn from an extra-trees forest (`depth`, two features a split, `n_training`
    images) says a digit, so pi(y|x) is a product of three vote shares and known exactly. Reward model: logistic
    regression on `n_pixels` random pixels, r^ = product of its three probabilities; with `n_reward_models` of them,
    each with its own pixels, prompt i is scored by number i modulo their number. r* = 1 for the right number, else 0.
    Shapes (n_prompts, 1000). Data: scikit-learn's `load_digits`, 1,797 images of 8 x 8 pixels.
    """
    from sklearn.datasets import load_digits
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    n_prompts = require_integer("n_prompts", n_prompts, low=1, cure="ask for at least one prompt")
    n_reward_models = require_integer(
        "n_reward_models", n_reward_models, low=1, high=n_prompts, cure="each of them needs a prompt to score"
    )
    images, digits = map(np.asarray, load_digits(return_X_y=True))
    order = rng.permutation(len(digits))
    train, test = order[:n_training], order[n_training:]
    options: dict[str, Any] = {"max_depth": depth, "max_features": 2, "random_state": int(rng.integers(2**31))}
    forest = ExtraTreesClassifier(n_trees, **options)
    forest.fit(images[train], digits[train])
    votes = np.stack([tree.predict(images[test]).astype(int) for tree in forest.estimators_], axis=-1)
    shares = (votes[:, :, None] == np.arange(10)).mean(axis=1)
    drawn = rng.integers(len(test), size=(n_prompts, 3))
    true_rewards = (np.arange(1000) == (digits[test][drawn] @ [100, 10, 1])[:, None]).astype(float)
    proxy_rewards = np.empty_like(true_rewards)
    for first in range(n_reward_models):
        pixels = rng.choice(images.shape[1], n_pixels, replace=False)
        # On matrices this small, threads cost several times what they save.
        with threadpool_limits(1):
            weak = LogisticRegression(max_iter=1000).fit(images[train][:, pixels] / 16, digits[train])
        scores = weak.predict_proba(images[test][:, pixels] / 16)
        proxy_rewards[first::n_reward_models] = _triple(scores[drawn[first::n_reward_models]])
    return SelectionProblem(_triple(shares[drawn]), true_rewards, proxy_rewards)


def threshold_count(alpha: float, n_samples: int) -> int:
    """The smallest count c >= 1 with c / N >= alpha: what an answer needs to pass the filter."""
    # A quotient of whole numbers rounds to the float that was typed, a product alpha * N need not.
    return max(1, int(np.argmax(np.arange(n_samples + 1) / n_samples >= alpha)))


def expected_regret(problem: SelectionProblem, n_samples: int, k: int, alpha: float = 0.0) -> float:
    """Expected regret, without simulation, of submitting the k highest proxy rewards among the answers that make up at
    least a share alpha of N samples: best-of-majority, and best-of-N at alpha = 0. Ties are broken at random; an
    empty filter submits nothing, so where `empty_filter` matters this is an upper bound for rules that fall back.

        E max_i r*(y_i) = sum over the levels t of r* of (t - t_previous) P(some y_i has r*(y_i) >= t).

    One prompt only. Answers with the same numbers are taken together; the cost is about N times the largest number of
    answers tied in r^ with one of positive r*. Absolute error about 1e-12.
    """
    groups, n_samples, threshold = _exact_question(problem, n_samples, alpha)
    k = require_integer("k", k, low=1, cure="submit at least one answer")
    laws = [(_Law(size, n_samples * p, threshold, n_samples), true, proxy) for size, p, true, proxy in groups]
    levels = np.unique([true for _, true, _ in laws if true > 0])
    earned = previous = 0.0
    for level in levels:
        found = np.zeros_like(laws[0][0].free)
        # above[u]: so far no answer worth `level` survived, and u others did.
        above = np.zeros((k, found.size), dtype=complex)
        above[0] = 1
        lowest = min(proxy for _, true, proxy in laws if true >= level)
        for score in sorted({proxy for *_, proxy in laws if proxy >= lowest}, reverse=True):
            good = _joint([law for law, true, proxy in laws if proxy == score and true >= level])
            # Where nothing good is tied with them, k others or more leave no place.
            bad = _joint(
                [law for law, true, proxy in laws if proxy == score and true < level], None if len(good) > 1 else k
            )
            lower = np.prod([law.free for law, _, proxy in laws if proxy < score], axis=0)
            for g in range(1, len(good)):
                chosen = _some_chosen(g, np.arange(len(bad)), k - np.arange(k)[:, None])
                found += (above * (chosen @ bad)).sum(axis=0) * good[g] * lower
            above = _convolve(above, bad[:k])[:k] * good[0]
        earned += (level - previous) * _probability(found, n_samples)
        previous = level
    return float(problem.true_rewards.max() - earned)


def event_failure(problem: SelectionProblem, n_samples: int) -> float:
    """P(the event behind the regret bound fails), exactly: that at alpha = 3 / (4 C*) some answer with pi >= 1 / C* is
    filtered out or some answer with pi < 1 / (4 C*) passes. One prompt only."""
    # 1 / (1 / pi) can come out a last bit above pi, which would leave y* itself out.
    coverage = float(np.max(problem.coverage))
    share = (1 - 1e-12) / coverage
    groups, n_samples, threshold = _exact_question(problem, n_samples, 0.75 / coverage)
    holds = np.ones(1)
    for size, p, *_ in groups:
        law = _Law(size, n_samples * p, threshold, n_samples)
        holds = holds * (law.survivors(size) if p >= share else law.survivors(0) if p < share / 4 else law.free)
    return 1 - _probability(holds, n_samples)


def empty_filter(problem: SelectionProblem, n_samples: int, alpha: float) -> float:
    """P(no answer makes up a share alpha of N samples), exactly. One prompt only."""
    groups, n_samples, threshold = _exact_question(problem, n_samples, alpha)
    laws = [_Law(size, n_samples * p, threshold, n_samples) for size, p, *_ in groups]
    return _probability(np.prod([law.survivors(0) for law in laws], axis=0), n_samples)


class _Law:
    """Generating functions, at the roots of unity, of `size` independent Poisson(rate) counts."""

    def __init__(self, size: int, rate: float, threshold: int, n_samples: int) -> None:
        # What lies at 3 N + 64 samples or beyond is mistaken for N, but a Poisson(N) number never gets there.
        roots = 1 << (2 * n_samples + 64).bit_length()
        z = np.exp(-2j * np.pi * np.arange(roots // 2 + 1) / roots)
        one = np.exp(rate * (z - 1))
        self.size, self.free = size, np.exp(size * rate * (z - 1))
        low = np.fft.rfft(stats.poisson.pmf(np.arange(threshold), rate), roots)
        # The shift keeps log finite where a count can't (or must) reach the threshold.
        self.log_low, self.log_high = np.log(low + 1e-300), np.log(one - low + 1e-300)

    def survivors(self, number: int) -> np.ndarray:
        """`number` of the counts reach the threshold and the others don't."""
        ways = gammaln(self.size + 1) - gammaln(number + 1) - gammaln(self.size - number + 1)
        return np.exp(ways + number * self.log_high + (self.size - number) * self.log_low)


def _exact_question(problem: SelectionProblem, n_samples: int, alpha: float) -> tuple[list[tuple], int, int]:
    """Groups (size, pi, r*, r^) of answers with the same numbers, N, and the count that passes the filter."""
    if problem.policy.ndim != 1:
        cure = "take one prompt, e.g. SelectionProblem(policy[0], true_rewards[0], proxy_rewards[0])"
        raise refuse("problem.policy.shape", problem.policy.shape, "be that of a single prompt, (answers,)", cure)
    n_samples = require_integer("n_samples", n_samples, low=1, cure="draw at least one sample")
    alpha = require_number("alpha", alpha, low=0, high=1, cure="pass the smallest share that passes, e.g. alpha=0.015")
    drawn = problem.policy > 0
    rows = np.stack([table[drawn] for table in (problem.policy, problem.true_rewards, problem.proxy_rewards)], axis=1)
    kinds, sizes = np.unique(rows, axis=0, return_counts=True)
    groups = [(int(size), *map(float, kind)) for size, kind in zip(sizes, kinds, strict=True)]
    return groups, n_samples, threshold_count(alpha, n_samples)


def _joint(laws: list[_Law], most: int | None = None) -> np.ndarray:
    """(survivors + 1, roots): row s says that s of all their answers survive; rows beyond `most` are left out."""
    total = np.ones((1, 1), dtype=complex)
    for law in laws:
        own = [law.survivors(s) for s in range(1 + min(law.size, law.size if most is None else most))]
        total = _convolve(total, np.stack(own))[: None if most is None else most + 1]
    return total


def _convolve(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    total = np.zeros((len(left) + len(right) - 1, max(left.shape[1], right.shape[1])), dtype=complex)
    for s, row in enumerate(right):
        total[s : s + len(left)] += left * row
    return total


def _some_chosen(good: int, bad: np.ndarray, places: np.ndarray) -> np.ndarray:
    """P(a random choice of `places` out of good + bad tied answers holds a good one)."""
    everyone = good + bad <= places
    return np.where(everyone, 1, 1 - comb(bad, places) / np.where(everyone, 1, comb(good + bad, places)))


def _probability(transform: np.ndarray, n_samples: int) -> float:
    """The coefficient at z^N, given that the Poisson number of samples is N; rounding may leave [0, 1] by 1e-12."""
    share = np.fft.irfft(transform)[n_samples] / stats.poisson.pmf(n_samples, n_samples)
    return float(np.clip(share, 0, 1))


def _triple(digits: np.ndarray) -> np.ndarray:
    """(prompts, 1000) products of (prompts, 3, 10) probabilities."""
    return np.einsum("pa,pb,pc->pabc", digits[:, 0], digits[:, 1], digits[:, 2]).reshape(len(digits), 1000)


def _tail_probability(mass: float, n_tail: int) -> float:
    n_tail = require_integer("n_tail", n_tail, low=1, cure="spread the rest over at least one answer")
    if not -1e-12 <= mass <= 1:
        raise refuse("the tail's mass", mass, "lie in [0, 1]", "make the other answers' probabilities sum to at most 1")
    return max(mass, 0.0) / n_tail


def _over_scored(mass: float, tail: float, n_tail: int) -> int:
    mass = require_number("eps_rm_sq", mass, low=0, high=1, cure="pass a mean squared error, e.g. 0.02")
    number = round(mass / tail) if tail > 0 else 0
    if number > n_tail or (tail == 0 and mass > 0):
        raise refuse("eps_rm_sq", mass, f"be at most the tail's mass {tail * n_tail:.3g}", "pass a smaller error")
    return number
