"""Judges' scores: joined between mean and maximum, read in any order, never guessed where they are missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.sharp_scores import join_judges, read_scores


def test_judges_are_joined_between_mean_and_maximum_whatever_their_number():
    scores = np.random.default_rng(2).random((50, 3))
    assert np.allclose(join_judges(scores, 1e-7), scores.mean(axis=1), atol=1e-6)
    assert (join_judges(scores, 0) == scores.mean(axis=1)).all()
    assert (join_judges(scores, np.inf) == scores.max(axis=1)).all()
    assert np.allclose(join_judges(scores, 1e4), scores.max(axis=1), atol=1e-3)
    assert np.allclose(join_judges(scores), np.log(np.exp(5 * scores).mean(axis=1)) / 5)
    assert np.allclose(join_judges(np.tile(scores, 4)), join_judges(scores)), "the number of judges is no harm"


def long_table(scores):
    index = pd.MultiIndex.from_product([["b", "a"], range(30), ["x", "y"], ["j1", "j2", "j3"]])
    table = pd.DataFrame({"score": scores}, index=index).reset_index()
    return table.rename(
        columns={f"level_{i}": name for i, name in enumerate(("model", "prompt", "dimension", "judge"))}
    )


def test_a_table_becomes_an_array_whatever_the_order_of_its_rows():
    values = np.random.default_rng(6).random((2, 30, 2, 3))
    table = long_table(values.ravel())
    for shape in (table, table.sample(frac=1, random_state=0), table.to_dict("list")):
        found = read_scores(shape)
        assert found.models == ("a", "b") and found.judges == ("j1", "j2", "j3") and found.dropped == ()
        order = np.argsort(np.arange(30).astype(str))
        assert (found.values == values[::-1][:, order]).all()


def test_a_missing_score_drops_the_prompt_for_all_models_and_is_never_nought():
    table = long_table(np.full(360, 0.5))
    table.loc[(table.model == "a") & (table.prompt == 7) & (table.judge == "j2"), "score"] = np.nan
    table = table[~((table.model == "b") & (table.prompt == 12) & (table.dimension == "x"))]
    found = read_scores(table, missing="drop")
    assert found.dropped == ("12", "7") and found.values.shape == (2, 28, 2, 3) and (found.values == 0.5).all()
    with pytest.raises(WorkbenchError, match="missing for 2 of 30 prompts, the first '12'"):
        read_scores(table)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: join_judges([[0.5]], -1), "temperature is -1"),
        (lambda: read_scores({"model": [1]}), "without prompt, dimension, judge, score"),
        (lambda: read_scores(long_table(np.full(360, 1.2))), "lie in [0, 1]"),
        (lambda: read_scores(pd.concat([long_table(0.1)] * 2)), "a score given twice"),
        (lambda: read_scores(long_table(np.nan), missing="drop"), "prompts with all scores is 0"),
        (lambda: read_scores(long_table("bad")), "not numeric"),
        (lambda: read_scores(long_table(0.1), missing="zero"), "missing is 'zero'"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, said):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    assert said in str(refusal.value) and str(refusal.value).endswith(".")
