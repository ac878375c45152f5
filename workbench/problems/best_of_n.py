"""Best-of-N: each query may be tried N times and counts as hit if one try succeeds.

Does: queries with known success probabilities (`BestOfN`), queries drawn afresh for each run from a
Beta population (`BetaPopulation`), and attempts made by a function of the user's (`Attempts`), a
language model behind it, say.
Does not: model attackers whose tries learn from earlier ones; tries at one query are independent.

`about` says what `truth` is: "queries" for the mean of 1 - (1 - theta_i)^N over these very queries,
"population" for its expectation over the population they are drawn from. For 159 queries the two
differ by points.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betainccinv, betaincinv, betaln

from workbench.errors import (
    WorkbenchError,
    refuse,
    require_finite,
    require_integer,
    require_number,
    require_probability,
)
from workbench.streams import Stream

MOST_TRIES = 1e30
Attempt = Callable[[np.ndarray, Stream], np.ndarray]


def hit_rate(thetas: Any, n_tries: Any) -> np.ndarray:
    """Mean of 1 - (1 - theta_i)^N over the last axis: (..., n_queries) to (...); N >= 1 broadcasts with (...)."""
    thetas, tries = _checked(thetas), require_finite("n_tries", n_tries, "pass a number of tries such as 1000")
    if (tries < 1).any():
        raise refuse("n_tries", float(tries.min()), "be at least 1", "pass the number of tries per query, e.g. 1000")
    with np.errstate(divide="ignore"):
        return -np.expm1(tries[..., None] * np.log1p(-thetas)).mean(axis=-1)


def tries_until(thetas: Any, target: float) -> np.ndarray:
    """The N (real, >= 1) at which hit_rate reaches `target`: (..., n_queries) to (...); inf if never."""
    thetas = _checked(thetas)
    with np.errstate(divide="ignore"):
        log_miss = np.log1p(-thetas)

    def log_survival(tries: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(np.exp(tries[..., None] * log_miss).mean(axis=-1))

    return solve_tries(log_survival, target, thetas.shape[:-1])


def solve_tries(
    log_survival: Callable[[np.ndarray], np.ndarray], target: float, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """The N >= 1 (real) at which log(1 - ASR@N), falling in N, meets log(1 - target); inf beyond 1e30.

    log_survival: an array of N of the given shape to log(1 - ASR@N), the same shape.
    """
    cure = "pass the ASR to reach, e.g. 0.95"
    goal = np.log1p(-require_probability("target", target, cure=cure))
    low, high = np.zeros(shape), np.full(shape, np.log(MOST_TRIES))
    for _ in range(60):
        middle = (low + high) / 2
        above = log_survival(np.exp(middle)) > goal
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(high >= np.log(MOST_TRIES), np.inf, np.exp(high))


def _checked(thetas: Any) -> np.ndarray:
    cure = "pass one success probability per query"
    values = require_finite("thetas", thetas, cure)
    bad = (values < 0) | (values > 1)
    if bad.any():
        where = int(np.flatnonzero(bad.ravel())[0])
        raise refuse(f"thetas[{where}]", float(values.ravel()[where]), "lie between 0 and 1", cure)
    if values.ndim == 0:
        raise refuse("thetas", thetas, "be an array", cure)
    return values


def draw_thetas(a: float, b: float, n_queries: int, stream: Stream) -> np.ndarray:
    """(n_queries,) success probabilities from Beta(a, b), by inversion: query i depends on i alone."""
    uniforms = stream.uniforms(n_queries)[:, 0]
    # From the nearer end, so that probabilities near 0 and near 1 are both accurate.
    return np.where(uniforms < 0.5, betaincinv(a, b, uniforms), betainccinv(a, b, 1 - uniforms))


def draw_counts(
    generator: np.random.Generator,
    a: float,
    b: float,
    n_queries: int = 159,
    n: int = 100,
    *,
    repeats: int | None = None,
    spike: float = 0.0,
    uneven: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(thetas, k, n), each (n_queries,), or (repeats, n_queries): queries from a Beta and tries at them.

    A share `spike` of the queries never succeeds (theta = 0). With `uneven` the tries n_i are uniform on
    1..2n rather than n each.
    """
    a, b = _shape(a, b)
    spike = require_number("spike", spike, low=0, high=1, cure="pass a share such as 0.2")
    require_integer("n_queries", n_queries, low=1, cure="ask for at least one query")
    require_integer("n", n, low=1, cure="make at least one try")
    shape = (n_queries,) if repeats is None else (repeats, n_queries)
    thetas = generator.beta(a, b, shape) * (generator.random(shape) >= spike)
    tries = generator.integers(1, 2 * n + 1, shape) if uneven else np.full(shape, n)
    return thetas, generator.binomial(tries, thetas), tries


@dataclass(frozen=True)
class BestOfN:
    """Queries with known success probabilities `thetas`, each tried up to `n_tries` times.

    `truth` is the mean of 1 - (1 - theta_i)^n_tries over these queries.
    """

    thetas: tuple[float, ...]
    n_tries: int = 1000
    label: str = ""

    def __post_init__(self) -> None:
        thetas = _checked(self.thetas)
        if thetas.ndim != 1:
            raise refuse(
                "the shape of thetas", thetas.shape, "be that of one row", "pass one success probability per query"
            )
        object.__setattr__(self, "thetas", tuple(thetas.tolist()))
        _whole_tries(self.n_tries)

    @classmethod
    def from_beta(cls, a: float, b: float, n_queries: int, n_tries: int = 1000, seed: int = 0) -> BestOfN:
        """`n_queries` queries drawn once from Beta(a, b)."""
        a, b = _shape(a, b)
        require_integer("n_queries", n_queries, low=1, cure="ask for at least one query")
        label = f"Beta({a:g}, {b:g}), seed {seed}"
        return cls(tuple(draw_thetas(a, b, n_queries, Stream.of(seed, "best-of-n", a, b))), n_tries, label)

    @property
    def about(self) -> str:
        return "queries"

    @property
    def n_queries(self) -> int:
        return len(self.thetas)

    @property
    def name(self) -> str:
        digest = hashlib.blake2b(np.array(self.thetas).tobytes(), digest_size=6).hexdigest()
        label = f"{self.label}, " if self.label else ""
        return f"best-of-n({label}{self.n_queries} queries {digest}, N = {self.n_tries})"

    @property
    def truth(self) -> float:
        return float(hit_rate(self.thetas, self.n_tries))

    def attempt(self, queries: np.ndarray, stream: Stream) -> np.ndarray:
        """(n,) bool: whether sample `stream.first + j`, a try at query `queries[j]`, succeeds."""
        return stream.uniforms(len(queries))[:, 0] < np.array(self.thetas)[queries]


@dataclass(frozen=True)
class BetaPopulation:
    """`n_queries` queries drawn anew from Beta(a, b) in each run; `truth` is the population's ASR@N.

    truth = 1 - B(a, b + N) / B(a, b). The draw of the queries is part of a run's noise, so intervals
    for a population are held to their level here, over seeds.
    """

    a: float = 0.4
    b: float = 4.0
    n_queries: int = 159
    n_tries: int = 1000

    def __post_init__(self) -> None:
        _shape(self.a, self.b)
        require_integer("n_queries", self.n_queries, low=1, cure="ask for at least one query")
        _whole_tries(self.n_tries)

    @property
    def about(self) -> str:
        return "population"

    @property
    def name(self) -> str:
        return f"best-of-n-population(Beta({float(self.a)!r}, {float(self.b)!r}), {self.n_queries} queries, N = {self.n_tries})"

    @property
    def truth(self) -> float:
        return float(-np.expm1(betaln(self.a, self.b + self.n_tries) - betaln(self.a, self.b)))

    def attempt(self, queries: np.ndarray, stream: Stream) -> np.ndarray:
        """(n,) bool: whether sample `stream.first + j`, a try at query `queries[j]`, succeeds."""
        thetas = draw_thetas(self.a, self.b, self.n_queries, stream.child("thetas"))
        return stream.uniforms(len(queries))[:, 0] < thetas[queries]


@dataclass(frozen=True)
class Attempts:
    """Attempts made by `function(queries, stream) -> (n,) bool`; the truth is known only if it is given.

    Row j is a try at query `queries[j]` and must depend on nothing but that query and sample
    `stream.first + j` (`stream.uniforms` gives such numbers), or the answer will depend on the batch size.
    `label` must identify what the function does: it keys the random numbers.
    """

    function: Attempt
    n_queries: int
    label: str
    n_tries: int = 1000
    truth: float | None = None

    def __post_init__(self) -> None:
        require_integer("n_queries", self.n_queries, low=1, cure="ask for at least one query")
        _whole_tries(self.n_tries)
        if not callable(self.function):
            raise refuse("function", self.function, "be callable", "pass a function of (queries, stream)")
        if self.truth is not None:
            require_number("truth", self.truth, low=0, high=1, cure="leave it out where it is unknown")

    @property
    def about(self) -> str:
        return "queries"

    @property
    def name(self) -> str:
        return f"best-of-n({self.label}, {self.n_queries} queries, N = {self.n_tries})"

    def attempt(self, queries: np.ndarray, stream: Stream) -> np.ndarray:
        """(n,) bool: what the function says, checked."""
        hits = np.asarray(self.function(queries, stream))
        if hits.dtype != bool or hits.shape != (len(queries),):
            raise WorkbenchError(
                f"The attempt function of {self.label} returned {hits.dtype} of shape {hits.shape} for {len(queries)} queries; return one bool for each."
            )
        return hits


def _shape(a: float, b: float) -> tuple[float, float]:
    cure = "a Beta distribution has two positive parameters, e.g. a=0.4, b=4"
    return require_number("a", a, low=0, open_low=True, cure=cure), require_number(
        "b", b, low=0, open_low=True, cure=cure
    )


def _whole_tries(n_tries: int) -> None:
    require_integer("n_tries", n_tries, low=1, cure="pass a whole number of tries per query, e.g. 1000")


def noisy_digits(
    generator: np.random.Generator, n_attempts: int, *, n_blocks: int = 1, n_queries: int = 159, noise: float = 0.25
) -> np.ndarray:
    """Counts of a real Best-of-N attack, noise on pixels that flips a label: (n_blocks, n_queries) successes.

    Each of the blocks makes `n_attempts` attempts at each query.

    A multinomial logistic regression is fitted to 1,000 of scikit-learn's 1,797 handwritten digits (8 x 8,
    grey levels scaled to 0..1), chosen by the generator. The queries are the first other images that it
    classifies correctly; an attempt adds noise of standard deviation `noise` to every pixel and
    succeeds if the predicted label changes. The ten logits of an attempt are Gaussian with covariance
    noise^2 W W', so they are drawn directly.
    """
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    noise = require_number("noise", noise, low=0, open_low=True, cure="pass a standard deviation such as 0.25")
    require_integer("n_attempts", n_attempts, low=1, cure="make at least one attempt")
    images, labels = load_digits(return_X_y=True)
    order = generator.permutation(len(labels))
    images, labels = images[order] / 16, labels[order]
    with threadpool_limits(1):  # matrices this small only lose by threads
        model = LogisticRegression(max_iter=1000).fit(images[:1000], labels[:1000])
        logits = model.decision_function(images[1000:])
        right = np.flatnonzero(logits.argmax(axis=1) == labels[1000:])
        require_integer(
            "n_queries", n_queries, low=1, high=len(right), cure="only correctly classified images are queries"
        )
        # R with W W' = R' R: ten normals times R have the logits' covariance.
        factor = noise * np.asarray(np.linalg.qr(model.coef_.T, mode="r"), dtype=np.float32)
        hits = np.empty((n_blocks, n_queries), dtype=np.int64)
        for column, query in enumerate(right[:n_queries]):
            drawn = generator.standard_normal((n_blocks * n_attempts, len(factor)), dtype=np.float32) @ factor
            flipped = (drawn + logits[query].astype(np.float32)).argmax(axis=1) != labels[1000 + query]
            hits[:, column] = flipped.reshape(n_blocks, n_attempts).sum(axis=1)
    return hits
