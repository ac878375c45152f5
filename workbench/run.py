"""The one verb: `run(problem, estimator, budget, seed)` joins question, method and answer.

`run` is the only loop. It sizes batches to the clock and to what is left of the budget, never
overspends by more than one batch, calls back with each interim `Estimate`, writes the state after
each round, and can hand draws to an executor.

The answer does not depend on the batch size: sample i is the same in every batch, and where a limit
falls inside a batch, the samples used are the shortest run of samples, in order, whose spend reaches
it. The sample that crosses the limit counts, so the number of samples is a stopping time. Only a
limit in seconds gives an answer that depends on the machine.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from workbench import checkpoint as checkpoints
from workbench.budget import UNITS, Budget, Meter, Spend
from workbench.errors import Unsuitable, WorkbenchError, refuse, require_integer, require_number
from workbench.estimate import Estimate
from workbench.progress import Progress
from workbench.streams import Stream

State = dict[str, Any]
Batch = dict[str, np.ndarray]
Callback = Callable[[Estimate], bool | None]
Between = Callable[[], bool | None]

_FORMAT = 1
_FIRST_BATCH, _LARGEST_BATCH = 256, 1 << 16
_BATCH_SECONDS = 0.25
_FIRST_SLICE = 8  # what a model decodes at once; fewer would cost as much
_ASKED_TO_STOP = "asked to stop"


@runtime_checkable
class Problem(Protocol):
    """The question. `name` identifies it (it keys the random numbers); `truth` is None where unknown."""

    @property
    def name(self) -> str: ...

    @property
    def truth(self) -> float | None: ...


@runtime_checkable
class Estimator(Protocol):
    """The method: a frozen dataclass whose fields, all with defaults, are its hyper-parameters.

    init(problem) -> state                   checks the question; raises `Unsuitable` if it can't answer it
    draw(problem, state, n, stream) -> batch pure; arrays with the sample axis first; row j is sample
                                             `stream.first + j`; an optional "tokens" entry (n,) says what each cost
    absorb(state, batch) -> state            pure, cheap; batches of one round may come in any order
    result(state) -> Estimate                valid at any moment
    round_size(problem, state) -> int        optional, adaptive methods: draws left in this round;
                                             all of a round's draws see the state of its beginning
    """

    def init(self, problem: Any) -> State: ...

    def draw(self, problem: Any, state: State, n: int, stream: Stream) -> Batch: ...

    def absorb(self, state: State, batch: Batch) -> State: ...

    def result(self, state: State) -> Estimate: ...


def is_estimator(kind: Any) -> bool:
    """Whether a class has the protocol's shape."""
    frozen = is_dataclass(kind) and getattr(kind, "__dataclass_params__").frozen  # noqa: B009 (not in the stubs)
    return (
        isinstance(kind, type)
        and frozen
        and all(callable(getattr(kind, verb, None)) for verb in ("init", "draw", "absorb", "result"))
    )


def refusal(estimator: Any, problem: Any) -> str | None:
    """Why the estimator can't answer the problem, as it says itself; None if it can."""
    try:
        estimator.init(problem)
    except Unsuitable as reason:
        return str(reason)
    return None


def run(
    problem: Any,
    estimator: Any,
    budget: Budget,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    executor: Executor | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
    between: Between | None = None,
    slice_seconds: float | None = None,
    progress: bool | None = None,
) -> Estimate:
    """Estimate the problem's quantity within the budget.

    batch_size  samples a draw; by default found by the clock. It does not change the answer.
    executor    a concurrent.futures executor that runs the draws; it does not change the answer.
    checkpoint  a file for the state, written after each round; if it exists, the run goes on from it.
    callback    called with each interim estimate; returning True stops the run.
    between     called before each draw. It may block, which pauses the run and is not counted as seconds; returning
                True stops the run where it is, with the answer of a budget of the samples drawn so far.
    slice_seconds  keeps each draw to about this long, and to an eighth of the samples so far, so that `between` and
                `callback` are called often; by default draws are as large as is quick. It does not change the answer.
    progress    a progress bar; by default where somebody is looking.

    An interrupt ends the run with the estimate so far (`stopped` says so). An error in a draw is
    raised with the estimate so far as its attribute `estimate`.
    """
    if not isinstance(budget, Budget):
        raise refuse("budget", budget, "be a Budget", "write e.g. Budget(samples=1000)")
    if not budget.limits():
        raise WorkbenchError("Budget() sets no limit, so the run would never end; set one, e.g. Budget(samples=1000).")
    if not is_estimator(type(estimator)):
        raise refuse(
            "estimator",
            type(estimator).__name__,
            "be a frozen dataclass with init, draw, absorb and result",
            "see CONTRIBUTING.md for the four methods",
        )
    if batch_size is not None:
        require_integer("batch_size", batch_size, low=1, cure="leave it out and the machine finds it")
    if slice_seconds is not None:
        require_number("slice_seconds", slice_seconds, low=0, open_low=True, cure="pass seconds such as 0.05")
    if not isinstance(problem, Problem):
        raise refuse(
            "problem",
            type(problem).__name__,
            "have a name and a truth (None where unknown)",
            "see workbench.problems for examples",
        )
    stream = Stream.of(seed, problem.name)
    state = estimator.init(problem)
    path = Path(checkpoint) if checkpoint is not None else None
    ledger = _Ledger(budget)
    identity = {"format": _FORMAT, "problem": problem.name, "estimator": repr(estimator), "seed": int(seed)}
    if path is not None and path.exists():
        state = _restore(path, identity, ledger)

    def report(stopped: str) -> Estimate:
        estimate = estimator.result(state)
        replay = getattr(problem, "replay", "exact replay")
        return estimate.with_run(
            spend=ledger.spent,
            problem=problem.name,
            estimator=repr(estimator),
            seed=int(seed),
            truth=problem.truth,
            stopped=stopped,
            replay=replay,
        )

    sizes = _BatchSizes(batch_size, cautious=set(budget.limits()) != {"samples"}, slice_seconds=slice_seconds)
    workers = getattr(executor, "_max_workers", 2) if executor is not None else 1
    stopped = ledger.reached()
    with Progress(budget, progress) as bar:
        try:
            while not stopped:
                ask = getattr(estimator, "round_size", None)
                wanted = ask(problem, state) if ask is not None else None
                waves, halted = _draw_round(
                    problem, estimator, state, stream, ledger, sizes, wanted, executor, workers, between
                )
                for batch in waves:
                    state = estimator.absorb(state, batch)
                stopped = ledger.reached() or (_ASKED_TO_STOP if halted else "")
                if not halted:
                    ledger.check_progress(problem.name)
                path = _save(path, identity, state, ledger)
                if callback is not None or bar.due:
                    interim = report("running")
                    bar.update(interim, ledger.used)
                    if callback is not None and callback(interim) and not stopped:
                        stopped = "the callback asked to stop"
        except KeyboardInterrupt:
            stopped = "interrupted"
        except Exception as error:
            _attach(error, report, path)
            raise
    return report(stopped)


class _Ledger:
    """What was spent in all, and what the samples in use account for; the latter decides when to stop."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.spent, self.used = budget, Spend(), Spend()

    @property
    def samples(self) -> int:
        return int(self.used.samples)

    def reached(self) -> str:
        unit = self.budget.reached(self.used)
        return f"budget of {unit.replace('_', ' ')} reached" if unit else ""

    def affordable(self) -> int:
        """Samples that the rest of the budget pays for, judged by the mean cost so far; at least 1."""
        left, n = self.budget.remaining(self.used), max(self.samples, 1)
        counts = [math.ceil(left["samples"])] if "samples" in left else []
        for unit in left.keys() - {"samples"}:
            each = getattr(self.used, unit) / n
            if each > 0:
                counts.append(math.ceil(left[unit] / each))
        return max(1, min(counts, default=_LARGEST_BATCH))

    def admit(self, batch: Batch, n: int, spend: Spend) -> Batch:
        """Account for a batch of n samples; returns the part of it that the budget pays for."""
        self.spent = self.spent + spend + Spend(samples=n)
        share = _shares(batch, n)
        keep = n
        for unit, left in self.budget.remaining(self.used).items():
            if unit == "seconds":
                continue
            each = (
                np.ones(n)
                if unit == "samples"
                else getattr(spend, unit) * (np.full(n, 1 / n) if unit == "model_calls" else share)
            )
            # Rounded, so that 1/n shares of whole numbers add up to whole numbers.
            crossed = np.flatnonzero(np.round(np.cumsum(each), 6) >= left)
            if crossed.size:
                keep = min(keep, int(crossed[0]) + 1)
        part = float(share[:keep].sum()) if keep < n else 1.0
        self.used = self.used + Spend(
            samples=keep,
            tokens=round(spend.tokens * part),
            model_calls=round(spend.model_calls * keep / n),
            flops=spend.flops * part,
            seconds=spend.seconds,
            usd=spend.usd * part,
        )
        return batch if keep == n else {name: values[:keep] for name, values in batch.items()}

    def check_progress(self, problem: str) -> None:
        if not any(getattr(self.used, unit) > 0 for unit in self.budget.limits()):
            units = " and ".join(unit.replace("_", " ") for unit in self.budget.limits())
            raise WorkbenchError(
                f"The budget limits {units} but {problem} spends none, so the run would never end; add a limit such as samples=1000."
            )


def _shares(batch: Batch, n: int) -> np.ndarray:
    """Each sample's share (n,) of what the batch spent: by its tokens where the batch tells them."""
    tokens = np.asarray(batch["tokens"], dtype=np.float64) if "tokens" in batch else np.ones(n)
    total = tokens.sum()
    return tokens / total if total > 0 else np.full(n, 1 / n)


class _BatchSizes:
    """Doubles the batch while a draw is quick, and halves it where it outlasts a slice; a size given by the user stays."""

    def __init__(self, fixed: int | None, cautious: bool, slice_seconds: float | None) -> None:
        self._fixed = fixed
        self._longest = math.inf if slice_seconds is None else slice_seconds
        self._quick = _BATCH_SECONDS if slice_seconds is None else slice_seconds / 2
        first = _FIRST_SLICE if slice_seconds is not None else 32 if cautious else _FIRST_BATCH
        self._size = fixed or first

    def next(self, at_most: int, drawn: int) -> int:
        if self._fixed is None and self._longest < math.inf:
            at_most = min(at_most, max(_FIRST_SLICE, drawn // 8))
        return max(1, min(self._size, at_most))

    def took(self, n: int, seconds: float) -> None:
        if self._fixed is not None:
            return
        if n >= self._size and seconds < self._quick:
            self._size = min(2 * self._size, _LARGEST_BATCH)
        elif seconds > self._longest:
            self._size = max(1, self._size // 2)


def _metered_draw(problem: Any, estimator: Any, state: State, n: int, stream: Stream) -> tuple[Batch, Spend]:
    with Meter() as meter:
        batch = estimator.draw(problem, state, n, stream)
    for name, values in batch.items():
        if len(values) != n:
            raise WorkbenchError(
                f"{type(estimator).__name__}.draw returned {len(values)} rows of {name!r} for {n} samples; the first axis must be the sample."
            )
    return batch, meter.spend


def _draw_round(
    problem: Any,
    estimator: Any,
    state: State,
    stream: Stream,
    ledger: _Ledger,
    sizes: _BatchSizes,
    wanted: int | None,
    executor: Executor | None,
    workers: int,
    between: Between | None,
) -> tuple[list[Batch], bool]:
    """The batches of one round, all drawn with the round's first state, cut where a limit falls or `between` says so.

    Returns them, and whether it was `between`.
    """
    if wanted is not None:
        require_integer("round_size()", wanted, low=1, cure="a round needs at least one draw")
    batches: list[Batch] = []
    left = wanted
    while True:
        if between is not None and between():
            return batches, True
        plan: list[tuple[int, Stream]] = []
        first = ledger.samples
        for _ in range(workers):
            at_most = min(ledger.affordable() - (first - ledger.samples), left if left is not None else _LARGEST_BATCH)
            if at_most < 1:
                break
            n = sizes.next(at_most, first)
            plan.append((n, stream.at(first)))
            first += n
            left = left - n if left is not None else None
        if not plan:
            return batches, False
        for n, (batch, spend) in zip(
            [n for n, _ in plan], _draw_all(problem, estimator, state, plan, executor), strict=True
        ):
            sizes.took(n, spend.seconds)
            if not ledger.reached():
                batches.append(ledger.admit(batch, n, spend))
            else:
                ledger.spent = ledger.spent + spend + Spend(samples=n)
        if ledger.reached() or left is None or left < 1:
            return batches, False


def _draw_all(
    problem: Any, estimator: Any, state: State, plan: list[tuple[int, Stream]], executor: Executor | None
) -> Iterator[tuple[Batch, Spend]]:
    if executor is None:
        return (_metered_draw(problem, estimator, state, n, stream) for n, stream in plan)
    futures = [executor.submit(_metered_draw, problem, estimator, state, n, stream) for n, stream in plan]
    return (future.result() for future in futures)


def _save(path: Path | None, identity: dict[str, Any], state: State, ledger: _Ledger) -> Path | None:
    """Write the state; a disk that refuses costs the checkpoint (told once), never the run."""
    if path is None:
        return None
    try:
        checkpoints.save(path, identity | {"state": state, "spent": asdict(ledger.spent), "used": asdict(ledger.used)})
    except OSError as error:
        warnings.warn(
            f"The checkpoint {path} can't be written ({error.strerror}); the run goes on without it. Free space or pass another path to be able to resume.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return path


def _restore(path: Path, identity: dict[str, Any], ledger: _Ledger) -> State:
    content = checkpoints.load(path)
    for key, mine in identity.items():
        theirs = content.get(key)
        if theirs != mine:
            raise WorkbenchError(
                f"The checkpoint {path} belongs to another run ({key} is {theirs!r}, here it is {mine!r}); pass another path or delete the file."
            )
    ledger.spent, ledger.used = (Spend(**{unit: content[kind][unit] for unit in UNITS}) for kind in ("spent", "used"))
    return content["state"]


def _attach(error: Exception, report: Callable[[str], Estimate], path: Path | None) -> None:
    with contextlib.suppress(Exception):
        estimate = report("an error in a draw")
        error.estimate = estimate  # type: ignore[attr-defined]
        kept = f" The state is in {path}." if path is not None else ""
        if estimate.n_samples:
            error.add_note(
                f"{estimate.n_samples:,} samples had been absorbed; the estimate so far is this error's attribute 'estimate'.{kept}"
            )


__all__ = ["Batch", "Estimator", "Problem", "State", "Unsuitable", "is_estimator", "run"]
