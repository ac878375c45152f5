import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.budget import UNITS, Budget, Meter, Spend, charge
from workbench.errors import WorkbenchError

limits = st.fixed_dictionaries({}, optional={unit: st.integers(1, 10**9) for unit in UNITS})


@given(limits, limits, limits)
def test_and_holds_both_and_is_commutative_and_associative(a, b, c):
    both = Budget(**a) & Budget(**b)
    assert both == Budget(**b) & Budget(**a)
    assert both & Budget(**c) == Budget(**a) & (Budget(**b) & Budget(**c))
    for unit in UNITS:
        given_limits = [side[unit] for side in (a, b) if unit in side]
        assert both.limits().get(unit) == (min(given_limits) if given_limits else None)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, "10", True])
def test_a_budget_of_nothing_is_refused(unit, limit):
    with pytest.raises(WorkbenchError, match=rf"Budget\({unit}\) is .*greater than 0.*leave {unit} out"):
        Budget(**{unit: limit})


def test_whole_units_are_whole():
    with pytest.raises(WorkbenchError, match="whole number"):
        Budget(samples=1.5)
    assert Budget(seconds=1.5).seconds == 1.5


def test_remaining_and_reached():
    budget = Budget(tokens=100, usd=1.0)
    assert budget.reached(Spend(tokens=99, usd=0.5)) is None
    assert budget.reached(Spend(tokens=100)) == "tokens"
    assert budget.remaining(Spend(tokens=250, usd=0.25)) == {"tokens": 0, "usd": 0.75}


def test_meters_nest_and_close():
    with Meter() as outer:
        charge(tokens=10, model_calls=1)
        with Meter() as inner:
            charge(tokens=5, flops=1e9, usd=0.01)
        charge(tokens=1)
    charge(tokens=1000)
    assert (inner.spend.tokens, inner.spend.flops, inner.spend.usd) == (5, 1e9, 0.01)
    assert (outer.spend.tokens, outer.spend.model_calls) == (16, 1)


def test_a_meter_counts_seconds_and_survives_an_error():
    meter = Meter()
    with pytest.raises(RuntimeError), meter:
        charge(tokens=3)
        time.sleep(0.02)
        raise RuntimeError
    assert meter.spend.tokens == 3 and 0.02 <= meter.spend.seconds < 5
    charge(tokens=1)
    assert meter.spend.tokens == 3


@pytest.mark.parametrize("amounts", [{"tokens": -1}, {"tokens": math.nan}, {"seconds": 1}, {"coffee": 1}])
def test_bad_charges_are_refused(amounts):
    with pytest.raises(WorkbenchError, match="charge"):
        charge(**amounts)


def test_spend_adds_and_reads_well():
    assert Spend(tokens=1) + Spend(tokens=2, usd=0.5) - Spend(tokens=1) == Spend(tokens=2, usd=0.5)
    assert str(Spend(samples=1000, tokens=12_345)) == "1,000 samples, 12,345 tokens"
    assert str(Spend()) == "nothing"
