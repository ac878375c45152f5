"""Which attempts count as a success."""

from __future__ import annotations

import pytest

from workbench.errors import WorkbenchError
from workbench.logs import Condition

SCORES = {"includes": "C", "severity": 0.8, "parts": {"harm": 0.6, "refusal": 0.4}, "dan.DAN": 1.0, "won": True}


@pytest.mark.parametrize(
    "text, said",
    [
        ("severity >= 0.75", True),
        ("severity > 0.8", False),
        ("includes == 'C'", True),
        ("includes >= 1", True),
        ("includes != 'I'", True),
        ("parts['harm'] > 0.5 and not parts.refusal > 0.5", True),
        ("severity < 0.5 or dan.DAN == 1", True),
        ("scores['dan.DAN'] < 1", False),
        ("0.5 < severity <= 0.8", True),
        ("severity > -1", True),
        ("won", True),
    ],
)
def test_comparisons_of_scores(text, said):
    assert Condition(text)(SCORES) is said


def test_score_is_the_only_score():
    assert Condition("score >= 0.75")({"judge": 0.8}) and Condition("score > 0.5")({"score": 0.6, "other": 0})
    with pytest.raises(
        WorkbenchError, match=r"names score, but an attempt has the scores includes, severity, parts\['"
    ):
        Condition("score >= 0.75")(SCORES)


@pytest.mark.parametrize("text", ["", "severity >=", "open('x')", "severity + 1 > 2", "[1]", "severity in (1, 2)", "1"])
def test_anything_else_is_refused(text):
    with pytest.raises(WorkbenchError, match=r"success is .* but must .*; write e.g. 'score >= 0.75'"):
        Condition(text)


def test_words_are_not_compared_with_numbers():
    with pytest.raises(WorkbenchError, match=r"compares 'fine' with 0\.5; compare words with words"):
        Condition("verdict > 0.5")({"verdict": "fine"})
