"""What `run` promises beyond the contract of single estimators: errors, interrupts, full disks, clocks."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

import workbench as wb
from workbench.budget import charge
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.lm_tail_risk import CrossEntropy
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.methods.tail_risk.saber import Saber
from workbench.problems.analytic import GaussianTail
from workbench.problems.best_of_n import BestOfN
from workbench.problems.event import codeword_event


@dataclass(frozen=True)
class Words:
    """Samples that cost 1 to 9 tokens each."""

    name: str = "words"
    truth: float = 0.5
    fail_at: int | None = None
    error: type[BaseException] = RuntimeError

    def sample(self, n, stream):
        if self.fail_at is not None and stream.first + n > self.fail_at:
            raise self.error("the model fell over")
        uniforms = stream.uniforms(n, 2)
        tokens = 1 + (9 * uniforms[:, 1]).astype(int)
        charge(tokens=int(tokens.sum()), model_calls=n)
        return {"hit": uniforms[:, 0] < 0.5, "tokens": tokens}


def test_stops_at_the_first_sample_that_reaches_a_token_limit():
    stream = wb.Stream.of(0, "words")
    tokens = 1 + (9 * stream.uniforms(1000, 2)[:, 1]).astype(int)
    expected = int(np.flatnonzero(np.cumsum(tokens) >= 1234)[0]) + 1
    for batch_size in (None, 1, 10, 500):
        estimate = wb.run(Words(), MonteCarlo(), wb.Budget(tokens=1234), batch_size=batch_size)
        assert estimate.n_samples == expected
        assert estimate.stopped == "budget of tokens reached"


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, ZeroDivisionError])
def test_an_error_in_a_draw_keeps_what_was_computed(tmp_path, error):
    path = tmp_path / "state"
    with pytest.raises(error, match="fell over") as caught:
        wb.run(Words(fail_at=500, error=error), MonteCarlo(), wb.Budget(samples=1000), batch_size=100, checkpoint=path)
    assert caught.value.estimate.n_samples == 500
    assert "500 samples" in caught.value.__notes__[0] and str(path) in caught.value.__notes__[0]
    whole = wb.run(Words(), MonteCarlo(), wb.Budget(samples=1000))
    assert wb.run(Words(), MonteCarlo(), wb.Budget(samples=1000), checkpoint=path).answer == whole.answer


def test_an_interrupt_returns_the_estimate_so_far(tmp_path):
    path = tmp_path / "state"
    problem = Words(fail_at=300, error=KeyboardInterrupt)
    estimate = wb.run(problem, MonteCarlo(), wb.Budget(samples=1000), batch_size=100, checkpoint=path)
    assert estimate.stopped == "interrupted" and estimate.n_samples == 300
    whole = wb.run(Words(), MonteCarlo(), wb.Budget(samples=1000))
    assert wb.run(Words(), MonteCarlo(), wb.Budget(samples=1000), checkpoint=path).answer == whole.answer


def test_spend_is_part_of_the_state(tmp_path):
    path = tmp_path / "state"
    whole = wb.run(Words(), MonteCarlo(), wb.Budget(samples=400))
    wb.run(Words(), MonteCarlo(), wb.Budget(samples=150), checkpoint=path)
    resumed = wb.run(Words(), MonteCarlo(), wb.Budget(samples=400), checkpoint=path)
    assert resumed.spend.tokens == whole.spend.tokens and resumed.spend.samples == 400
    # Nothing is left to spend: the stored answer comes back at no cost.
    again = wb.run(Words(fail_at=0), MonteCarlo(), wb.Budget(samples=400), checkpoint=path)
    assert again.answer == whole.answer


def test_a_full_disk_costs_the_checkpoint_not_the_run(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="can't be written .No space left on device.; the run goes on") as told:
        estimate = wb.run(Words(), MonteCarlo(), wb.Budget(samples=300), batch_size=10, checkpoint=tmp_path / "state")
    assert estimate.n_samples == 300 and len(told) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_named_and_left_alone(tmp_path):
    path = tmp_path / "state"
    path.write_text("rubbish")
    with pytest.raises(WorkbenchError, match="state is damaged"):
        wb.run(Words(), MonteCarlo(), wb.Budget(samples=10), checkpoint=path)
    assert path.read_text() == "rubbish"


def test_a_limit_in_seconds_holds_within_a_batch():
    estimate = wb.run(GaussianTail(2.0), MonteCarlo(), wb.Budget(seconds=0.2))
    assert estimate.stopped == "budget of seconds reached" and 0.2 <= estimate.spend.seconds < 2.0


def test_a_callback_sees_growing_estimates_and_can_stop():
    seen = []

    def watch(estimate):
        seen.append(estimate.n_samples)
        return estimate.high - estimate.low < 0.2

    estimate = wb.run(Words(), MonteCarlo(), wb.Budget(samples=10_000), batch_size=20, callback=watch)
    assert estimate.stopped == "the callback asked to stop" and estimate.n_samples == seen[-1] < 1000


def test_a_failing_callback_keeps_the_estimate():
    def broken(estimate):
        raise LookupError("no such axis")

    with pytest.raises(LookupError) as caught:
        wb.run(Words(), MonteCarlo(), wb.Budget(samples=100), batch_size=20, callback=broken)
    assert caught.value.estimate.n_samples == 20


def test_a_draw_with_the_wrong_number_of_rows_is_refused():
    class Short(Words):
        def sample(self, n, stream):
            return {"hit": np.zeros(n - 1, dtype=bool)}

    with pytest.raises(WorkbenchError, match="returned 9 rows of 'hit' for 10 samples"):
        wb.run(Short(), MonteCarlo(), wb.Budget(samples=10), batch_size=10)


def test_nothing_is_shown_where_nobody_is_looking(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wb.run(Words(), MonteCarlo(), wb.Budget(samples=100))
    assert capsys.readouterr() == ("", "")
    wb.run(Words(), MonteCarlo(), wb.Budget(samples=100), progress=True)


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_clopper_pearson_covers_for_every_p(n):
    from scipy.stats import binom

    intervals = np.array([clopper_pearson(k, n, 0.9) for k in range(n + 1)])
    for p in np.linspace(0.001, 0.999, 211):
        inside = (intervals[:, 0] <= p) & (p <= intervals[:, 1])
        assert binom.pmf(np.arange(n + 1), n, p)[inside].sum() >= 0.9 - 1e-12
    assert (intervals[:, 1] > intervals[:, 0]).all()


PLAIN_AND_ADAPTIVE = [
    (GaussianTail(1.5), MonteCarlo()),
    (codeword_event("grammar", prompt=(7, 7, 7)), CrossEntropy(particles=30)),
    (BestOfN.from_beta(0.4, 4.0, n_queries=40, n_tries=200, seed=1), Saber()),
]


@pytest.mark.parametrize(("problem", "estimator"), PLAIN_AND_ADAPTIVE)
def test_slices_and_pauses_do_not_change_the_answer(problem, estimator):
    plain = wb.run(problem, estimator, wb.Budget(samples=700), seed=3)
    calls = []

    def slowly():
        calls.append(time.perf_counter())
        time.sleep(0.005 if len(calls) % 5 == 0 else 0)

    sliced = wb.run(problem, estimator, wb.Budget(samples=700), seed=3, between=slowly, slice_seconds=1e-9)
    assert sliced.answer == plain.answer and sliced.stopped == plain.stopped
    # Slices as short as that shrink to one sample each.
    assert len(calls) > 600


@pytest.mark.parametrize(("problem", "estimator"), PLAIN_AND_ADAPTIVE)
def test_a_run_that_is_asked_to_stop_is_that_of_so_many_samples(problem, estimator):
    """Stopped in the middle of a round too: CrossEntropy's pilot takes 90."""
    for stop_at in (3, 20):
        calls = []
        stopped = wb.run(
            problem,
            estimator,
            wb.Budget(samples=10_000),
            batch_size=4,
            between=lambda calls=calls, stop_at=stop_at: calls.append(0) or len(calls) > stop_at,
        )
        assert stopped.stopped == "asked to stop" and stopped.n_samples == 4 * stop_at == stopped.spend.samples
        assert stopped.answer == wb.run(problem, estimator, wb.Budget(samples=4 * stop_at)).answer


def test_a_stop_before_the_first_draw_spends_nothing_and_can_be_resumed(tmp_path):
    path = tmp_path / "state"
    nothing = wb.run(Words(), MonteCarlo(), wb.Budget(tokens=400), checkpoint=path, between=lambda: True)
    assert nothing.value is None and nothing.spend == wb.Spend()
    whole = wb.run(Words(), MonteCarlo(), wb.Budget(tokens=400))
    assert wb.run(Words(), MonteCarlo(), wb.Budget(tokens=400), checkpoint=path).answer == whole.answer


def test_a_pause_costs_no_seconds():
    paused = []

    def between():
        if len(paused) < 3:
            paused.append(time.sleep(0.2))

    estimate = wb.run(GaussianTail(2.0), MonteCarlo(), wb.Budget(seconds=0.05), between=between, slice_seconds=0.01)
    assert estimate.stopped == "budget of seconds reached" and len(paused) == 3
    assert 0.05 <= estimate.spend.seconds < 0.5


def test_slices_keep_to_their_time():
    @dataclass(frozen=True)
    class Slow(Words):
        def sample(self, n, stream):
            time.sleep(0.001 * n)
            return super().sample(n, stream)

    at = []
    wb.run(
        Slow(), MonteCarlo(), wb.Budget(samples=600), between=lambda: at.append(time.perf_counter()), slice_seconds=0.05
    )
    # 8, 16, 32, 32, ...: another doubling would last longer than a slice.
    assert len(at) >= 15
    with pytest.raises(
        WorkbenchError, match=r"slice_seconds is 0 but must .* greater than 0; pass seconds such as 0.05"
    ):
        wb.run(Slow(), MonteCarlo(), wb.Budget(samples=6), slice_seconds=0)


def test_a_class_that_inherits_from_a_dataclass_is_no_surprise():
    from workbench.methods.tail_risk.monte_carlo import MonteCarlo
    from workbench.run import is_estimator

    class Plain(MonteCarlo):
        pass

    class NoEstimator(wb.Budget):
        pass

    assert is_estimator(Plain) and not is_estimator(NoEstimator)
