"""The contract of every estimator, on problems whose answer is known exactly.

False alarms: each statistical threshold here fails a correct estimator with probability below 1e-6.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

import workbench as wb
import workbench.methods
import workbench.methods.tail_risk
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods import estimators
from workbench.problems.analytic import GaussianTail
from workbench.problems.suite import suitable
from workbench.run import is_estimator

from .battery import cases

HERE = Path(__file__).parent
CASES = cases()
every_case = pytest.mark.parametrize("estimator, problem", [pytest.param(e, p, id=label) for label, e, p in CASES])
every_estimator = pytest.mark.parametrize("kind", list(estimators().values()), ids=list(estimators()))


@every_estimator
def test_is_a_frozen_dataclass_with_defaults_and_a_known_problem(kind):
    assert is_estimator(kind)
    assert repr(kind()) == repr(kind()) and kind() == kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), dataclasses.fields(kind)[0].name, 1)
    assert suitable(kind()), "no problem of the suite suits this estimator, so nothing tests it"


@every_case
def test_same_seed_same_answer_and_another_seed_another(estimator, problem):
    budget = wb.Budget(samples=400)
    first = wb.run(problem, estimator, budget, seed=5)
    assert first.answer == wb.run(problem, estimator, budget, seed=5).answer
    others = [wb.run(problem, estimator, budget, seed=seed) for seed in (6, 7, 8, 9)]
    assert any(
        other.answer["diagnostics"] != first.answer["diagnostics"] or other.value != first.value for other in others
    )


@every_case
def test_batch_size_and_workers_do_not_change_the_answer(estimator, problem):
    budget = wb.Budget(samples=403)
    whole = wb.run(problem, estimator, budget, seed=1)
    for batch_size in (1, 7, 64, 1000):
        assert wb.run(problem, estimator, budget, seed=1, batch_size=batch_size).answer == whole.answer
    with ThreadPoolExecutor(3) as pool:
        assert wb.run(problem, estimator, budget, seed=1, batch_size=16, executor=pool).answer == whole.answer


@every_case
def test_a_limit_in_tokens_does_not_depend_on_the_batch_size_and_is_kept(estimator, problem):
    pilot = wb.run(problem, estimator, wb.Budget(samples=64), seed=2)
    each = pilot.spend.tokens / 64
    if not each:
        with pytest.raises(WorkbenchError, match="spends none"):
            wb.run(problem, estimator, wb.Budget(tokens=100), seed=2)
        return
    budget = wb.Budget(tokens=int(200 * each))
    answers = [wb.run(problem, estimator, budget, seed=2, batch_size=size) for size in (1, 16, 64)]
    assert answers[0].answer == answers[1].answer == answers[2].answer
    # One sample too many at the most when samples are drawn one by one.
    assert budget.tokens <= answers[0].spend.tokens <= budget.tokens + 4 * each * 2


@every_case
@pytest.mark.parametrize("unit", ["samples", "tokens", "model_calls", "flops"])
def test_never_more_than_one_batch_over_budget(estimator, problem, unit):
    pilot = wb.run(problem, estimator, wb.Budget(samples=100), seed=0)
    if not getattr(pilot.spend, unit):
        with pytest.raises(WorkbenchError, match="spends none"):
            wb.run(problem, estimator, wb.Budget(**{unit: 100}), seed=0)
        return
    limit = math.ceil(getattr(pilot.spend, unit) * 1.7)
    seen: list[float] = [0.0]
    estimate = wb.run(
        problem,
        estimator,
        wb.Budget(**{unit: limit}),
        seed=0,
        batch_size=32,
        callback=lambda e: seen.append(getattr(e.spend, unit)),
    )
    largest_batch = getattr(wb.run(problem, estimator, wb.Budget(samples=32), seed=0, batch_size=32).spend, unit) * 2
    assert limit <= getattr(estimate.spend, unit) <= limit + largest_batch
    assert max(seen[:-1]) < limit, "it went on after the limit was reached"
    if unit == "samples":
        assert estimate.spend.samples == limit


@every_case
def test_every_interim_result_is_valid(estimator, problem):
    seen: list[wb.Estimate] = []
    final = wb.run(problem, estimator, wb.Budget(samples=300), seed=4, batch_size=11, callback=seen.append)
    seen = [estimator.result(estimator.init(problem)), *seen, final]
    counts = [estimate.n_samples for estimate in seen]
    assert counts == sorted(counts) and counts[0] == 0
    assert seen[0].value is None and seen[0].why and not seen[0].reliable, "before the first draw nothing can be said"
    for estimate in seen:
        assert seen[0].low <= estimate.low < estimate.high <= seen[0].high, "no finite data gives width zero"
        assert estimate.value is None or estimate.low <= estimate.value <= estimate.high
        assert estimate.std_error is None or (math.isfinite(estimate.std_error) and estimate.std_error >= 0)
        assert estimate.reliable or estimate.why, "an unreliable estimate says why"
        assert wb.Estimate.from_json(estimate.to_json()) == estimate
        json.loads(estimate.to_json())
        assert str(estimate) and estimate._repr_html_()


@every_case
def test_batches_of_a_round_may_come_in_any_order(estimator, problem):
    state, stream = estimator.init(problem), wb.Stream.of(9, problem.name)
    ask = getattr(estimator, "round_size", None)
    size = (ask(problem, state) if ask else None) or 200
    size = max(1, size // 5)
    batches = [estimator.draw(problem, state, size, stream.at(size * i)) for i in range(5)]

    def absorbed(order):
        now = state
        for i in order:
            now = estimator.absorb(now, batches[i])
        return estimator.result(now).answer

    expected = absorbed(range(5))
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert absorbed(order) == expected


@every_case
def test_draw_and_absorb_are_pure(estimator, problem):
    state, stream = estimator.init(problem), wb.Stream.of(9, problem.name)
    before = repr(state)
    first = estimator.draw(problem, state, 20, stream)
    again = estimator.draw(problem, state, 20, stream)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    estimator.absorb(state, first)
    assert repr(state) == before


@every_case
def test_a_larger_budget_goes_on_from_the_checkpoint(estimator, problem, tmp_path):
    whole = wb.run(problem, estimator, wb.Budget(samples=300), seed=3)
    path = tmp_path / "state"
    part = wb.run(problem, estimator, wb.Budget(samples=120), seed=3, batch_size=9, checkpoint=path)
    assert part.n_samples <= 120
    if not hasattr(estimator, "round_size"):
        # A budget that ends inside an adaptive round changes that round; elsewhere the cut leaves no trace.
        assert wb.run(problem, estimator, wb.Budget(samples=300), seed=3, checkpoint=path).answer == whole.answer
    with pytest.raises(WorkbenchError, match="belongs to another run"):
        wb.run(problem, estimator, wb.Budget(samples=300), seed=4, checkpoint=path)


@every_case
def test_twenty_random_kills_and_resumes_give_the_identical_answer(estimator, problem):
    label = next(label for label, e, p in CASES if e is estimator and p is problem)
    entropy = int.from_bytes(os.urandom(4), "little")
    done = subprocess.run(
        [sys.executable, str(HERE / "killer.py"), label, "20", str(entropy)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WORKBENCH_HEADLESS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["identical"] == [True] * 20, f"entropy {entropy}: {outcome}"


# Coverage: `RUNS` runs at nominal 95 %; a method that covers 92 % fails with probability < 1e-6.
RUNS = 300
LEAST_COVERED = int(binom.ppf(1e-6, RUNS, 0.92))


@every_case
def test_nominal_intervals_cover_the_truth(estimator, problem):
    estimates = [
        wb.run(problem, estimator, wb.Budget(samples=2000, tokens=200_000), seed=1000 + seed, batch_size=500)
        for seed in range(RUNS)
    ]
    trusted = [estimate for estimate in estimates if estimate.reliable]
    assert len(trusted) >= RUNS // 2, "most runs should be able to stand by their interval on this easy problem"
    covered = sum(estimate.low <= problem.truth <= estimate.high for estimate in trusted)
    assert covered >= int(binom.ppf(1e-6, len(trusted), 0.92)), f"{covered} of {len(trusted)}"


@every_estimator
def test_bad_hyper_parameters_are_refused_with_a_sentence(kind):
    for field in dataclasses.fields(kind):
        if not isinstance(field.default, (int, float)) or isinstance(field.default, bool):
            continue
        for bad in (math.nan, math.inf, "much", -1e9):
            with pytest.raises(WorkbenchError) as refusal:
                kind(**{field.name: bad})
            assert field.name in str(refusal.value) and str(refusal.value).endswith(".")


@every_case
def test_bad_input_to_run_is_refused_with_a_sentence(estimator, problem):
    good = wb.Budget(samples=10)
    refused = {
        "no limit": lambda: wb.run(problem, estimator, wb.Budget()),
        "not a budget": lambda: wb.run(problem, estimator, 1000),
        "negative seed": lambda: wb.run(problem, estimator, good, seed=-1),
        "fractional seed": lambda: wb.run(problem, estimator, good, seed=0.5),
        "batch of nothing": lambda: wb.run(problem, estimator, good, batch_size=0),
        "class, not instance": lambda: wb.run(problem, type(estimator), good),
        "no problem": lambda: wb.run("a prompt", estimator, good),
    }
    for what, attempt in refused.items():
        with pytest.raises(WorkbenchError) as refusal:
            attempt()
        assert str(refusal.value).rstrip().endswith("."), what


@every_estimator
def test_a_problem_it_can_not_answer_is_refused_by_name(kind):
    class Nothing:
        name, truth = "nothing-at-all", None

    with pytest.raises(Unsuitable, match="nothing-at-all"):
        wb.run(Nothing(), kind(), wb.Budget(samples=10))


def test_a_new_estimator_is_found_without_editing_anything(tmp_path, monkeypatch):
    (tmp_path / "my_idea.py").write_text(
        textwrap.dedent(
            """
            from workbench.methods.tail_risk.monte_carlo import MonteCarlo
            from dataclasses import dataclass

            @dataclass(frozen=True)
            class MyIdea(MonteCarlo):
                pass
            """
        )
    )
    assert "MyIdea" not in estimators()
    monkeypatch.setattr(workbench.methods.tail_risk, "__path__", [*workbench.methods.tail_risk.__path__, str(tmp_path)])
    assert "MyIdea" in estimators() and "MonteCarlo" in estimators()


def test_the_suite_knows_its_truth():
    assert GaussianTail(1.5).truth == pytest.approx(0.0668072, abs=1e-7)
    for _, estimator, problem in CASES:
        whole = estimator.result(estimator.init(problem))
        assert whole.low < problem.truth < whole.high
