import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.budget import Spend
from workbench.errors import WorkbenchError
from workbench.estimate import Estimate

number = st.floats(allow_nan=False, allow_infinity=False)
diagnostics = st.dictionaries(
    st.text(max_size=8), st.one_of(st.integers(-(10**9), 10**9), number, st.text(max_size=8), st.booleans()), max_size=4
)


@given(
    st.lists(number, min_size=3, max_size=3).map(sorted),
    diagnostics,
    st.integers(0, 10**9),
    st.booleans(),
    st.text(max_size=20),
)
def test_json_round_trip_is_exact(numbers, extra, n, reliable, why):
    low, value, high = numbers
    estimate = Estimate(
        value=value,
        low=low,
        high=high,
        n_samples=n,
        diagnostics=extra,
        reliable=reliable,
        why=why,
        spend=Spend(tokens=n),
    )
    text = estimate.to_json()
    assert Estimate.from_json(text) == estimate
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_infinite_ends_survive_json():
    estimate = Estimate.unknown(-math.inf, math.inf, "nothing seen yet")
    assert Estimate.from_json(estimate.to_json()) == estimate


@pytest.mark.parametrize(
    "fields, argument",
    [
        ({"value": math.nan, "low": 0, "high": 1}, "value"),
        ({"value": 0.5, "low": math.nan, "high": 1}, "low"),
        ({"value": 0.5, "low": 0.6, "high": 1}, "value"),
        ({"value": 0.5, "low": 1, "high": 0}, "low"),
        ({"value": 0.5, "low": 0, "high": 1, "std_error": math.nan}, "std_error"),
    ],
)
def test_an_estimate_that_makes_no_sense_is_refused(fields, argument):
    with pytest.raises(WorkbenchError, match=rf"Estimate\({argument}\)"):
        Estimate(**fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"value": 1}',
        '{"value": 1, "low": 0, "high": 2, "colour": 3, "spend": {}}',
        '{"value": 1, "lo',
    ],
)
def test_torn_json_is_refused_with_a_sentence(text):
    with pytest.raises(WorkbenchError) as refusal:
        Estimate.from_json(text)
    assert str(refusal.value).rstrip().endswith((".", "?"))


def test_rich_display_escapes_and_warns():
    estimate = Estimate(value=0.1, low=0.0, high=0.2, reliable=False, why="<b>no</b> & so on", problem="<script>")
    page = estimate._repr_html_()
    assert "<script>" not in page and "<b>no</b>" not in page and "unreliable" in page
    assert "unreliable: <b>no</b>" in str(estimate)
