"""The step verifier tells right steps from wrong ones, and means what its probabilities say."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import Meter, Stream
from workbench.errors import WorkbenchError
from workbench.models import arith_prompts, card, load, sample, step_labels, step_probabilities


@pytest.fixture(scope="module")
def sampled():
    """160 samples of the bundled adder on fresh prompts: (prompts, solutions), a prompt for each."""
    model, prompts = load("embedded/arith"), arith_prompts(40, Stream.of(21, "prompts"))
    drawn = sample(model, prompts, n=4, max_new_tokens=48, stream=Stream.of(21, "samples"))
    return [p for p in prompts for _ in range(4)], [model.decode(c) for c in drawn.completions()]


def test_one_probability_a_finished_step(sampled):
    prompts, solutions = sampled
    with Meter() as meter:
        found = step_probabilities(prompts, solutions)
    labels = [step_labels(prompt, solution) for prompt, solution in zip(prompts, solutions, strict=True)]
    assert [len(row) for row in found] == [len(row) for row in labels]
    assert all(((row >= 0) & (row <= 1)).all() for row in found)
    finished = [(p, s.split("#")[0].rpartition(";")[0] + ";") for p, s in zip(prompts, solutions, strict=True)]
    assert meter.spend.model_calls == len(prompts)
    assert meter.spend.tokens == sum(len(p + s) for p, s in finished)


def test_right_steps_are_told_from_wrong_ones(sampled):
    prompts, solutions = sampled
    p = np.concatenate(step_probabilities(prompts, solutions))
    right = np.concatenate([step_labels(a, b) for a, b in zip(prompts, solutions, strict=True)]).astype(bool)
    assert right.any() and not right.all()
    auc = (p[right][:, None] > p[~right]).mean()
    # The card's AUC is above .99; that of so few steps has a standard error below .01.
    assert auc > 0.95
    assert np.square(p - right).mean() < right.mean() * (1 - right.mean())


def test_a_probability_depends_on_the_text_so_far_alone(sampled):
    prompts, solutions = sampled
    whole = step_probabilities(prompts, solutions)
    for i in (0, 5, 77):
        first = solutions[i].split(";")[0] + ";"
        assert step_probabilities(prompts[i], first)[0][0] == pytest.approx(whole[i][0], abs=1e-6)
        alone = step_probabilities(prompts[i], solutions[i])[0]
        assert alone == pytest.approx(whole[i], abs=1e-6)


def test_the_card_states_calibration_and_discrimination():
    stated = card("arith-verifier")
    assert stated["loss"] < stated["ngram_loss"] < stated["base_rate_loss"]
    assert 0.9 < stated["auc"] <= 1
    assert stated["calibration_error"] < 0.05
    assert stated["brier"] < stated["base_rate"] * (1 - stated["base_rate"])


def test_unfinished_steps_and_answers_get_none():
    assert [len(row) for row in step_probabilities(["23+45+18=", "23+45="], ["23+45=68;68+1", "#68"])] == [1, 0]


def test_bad_input_is_refused():
    with pytest.raises(WorkbenchError, match="prompt is 'what' but must be a sum such as"):
        step_probabilities("what", "23+45=68;")
    with pytest.raises(WorkbenchError, match=r"solutions\[0\] is 'sixty' but must be made of 0123456789\+=;#; pass a"):
        step_probabilities("23+45=", "sixty")
    with pytest.raises(WorkbenchError, match="solutions is '2 texts' but must be as many as the prompts, 1; pass one"):
        step_probabilities(["23+45="], ["23+45=68;", "23+45=68;"])
    with pytest.raises(
        WorkbenchError, match="must fit the context of embedded/arith-verifier, 128 tokens; shorten the"
    ):
        step_probabilities("23+45=", "1" * 1000 + ";")
