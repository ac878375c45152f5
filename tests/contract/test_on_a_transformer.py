"""The parts of the contract that a real transformer could break: its logits move with the width of a batch."""

from __future__ import annotations

import pytest

import workbench as wb
from workbench.methods.tail_risk.lm_tail_risk import CrossEntropy, ImportanceSampling
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.problems.event import codeword_event

ESTIMATORS = [MonteCarlo(), ImportanceSampling(8.0, 0.2, 2), CrossEntropy(strengths=(4.0, 8.0), particles=20)]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_the_answer_does_not_depend_on_batches_and_survives_a_restart(estimator, tmp_path):
    problem = codeword_event("embedded", prompt=(7, 8, 8))
    assert problem.replay == "exact replay"
    whole = wb.run(problem, estimator, wb.Budget(samples=120), seed=3)
    for batch_size in (1, 7, 50):
        assert wb.run(problem, estimator, wb.Budget(samples=120), seed=3, batch_size=batch_size).answer == whole.answer
    path = tmp_path / "state"
    # 40 is where the pilot of CrossEntropy ends.
    wb.run(problem, estimator, wb.Budget(samples=40), seed=3, batch_size=9, checkpoint=path)
    resumed = wb.run(problem, estimator, wb.Budget(samples=120), seed=3, batch_size=33, checkpoint=path)
    assert resumed.answer == whole.answer and resumed.spend.tokens == whole.spend.tokens
    budget = wb.Budget(tokens=1500)
    by_tokens = [wb.run(problem, estimator, budget, seed=3, batch_size=size).answer for size in (1, 40)]
    assert by_tokens[0] == by_tokens[1]
