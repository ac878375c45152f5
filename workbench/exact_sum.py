"""Sums of floats that do not depend on order or grouping.

An estimator's state has to be the same whatever the batch size and whichever worker finished first;
float addition is not associative, so the state keeps exact sums and rounds once, when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from workbench.errors import require_finite

_UNIT = 1074  # every finite float64 is a whole multiple of 2**-1074


@dataclass(frozen=True)
class ExactSum:
    """The exact sum of finite float64 numbers, as a whole multiple of 2**-1074.

    >>> float(ExactSum().add([1e16, 1.0, -1e16]))
    1.0
    """

    units: int = 0

    def add(self, values: Any) -> ExactSum:
        """This sum with `values` (any shape) added; O(n) vectorised, plus one big integer per exponent."""
        array = require_finite(
            "values to sum", values, "look for a log of zero or an overflow in the draw", allow_empty=True
        ).ravel()
        array = array[array != 0.0]
        if array.size == 0:
            return self
        fraction, exponent = np.frexp(array)
        whole = np.ldexp(fraction, 53).astype(np.int64)
        # Halves of 26 bits, so that 2**36 of them fit an int64 accumulator.
        high, low = whole >> 26, whole & ((1 << 26) - 1)
        units = self.units
        powers, place = np.unique(exponent, return_inverse=True)
        highs, lows = np.zeros(powers.size, dtype=np.int64), np.zeros(powers.size, dtype=np.int64)
        np.add.at(highs, place, high)
        np.add.at(lows, place, low)
        for power, top, bottom in zip(powers.tolist(), highs.tolist(), lows.tolist(), strict=True):
            mantissa, shift = (top << 26) + bottom, power - 53 + _UNIT
            # A negative shift only meets subnormal numbers, whose low bits are zero.
            units += mantissa << shift if shift >= 0 else mantissa >> -shift
        return ExactSum(units)

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.units + other.units)

    def __float__(self) -> float:
        """The sum, correctly rounded."""
        return float(Fraction(self.units, 1 << _UNIT))


NO_POWERS = (ExactSum(),) * 4


def add_powers(powers: Sequence[ExactSum], values: np.ndarray) -> list[ExactSum]:
    """The sums of x, x^2, x^3, ..., as many as there are, with `values` added."""
    return [total.add(values**power) for power, total in enumerate(powers, start=1)]


def spread_of(powers: Sequence[ExactSum], n: int) -> tuple[float, float, float]:
    """(mean, variance, carriers) of n numbers from their sums of powers.

    variance = sum d^2 / n with d = x - mean. carriers = (sum d^2)^2 / sum d^4: how many of them tell the spread, n
    where all lie equally far from the mean, about 1 where one does; 0 where there is no spread.
    """
    value, square, cube, fourth = (float(total) / n for total in powers)
    variance = max(square - value**2, 0.0)
    tailed = max(fourth - 4 * value * cube + 6 * value**2 * square - 3 * value**4, 0.0)
    return value, variance, n * variance**2 / tailed if tailed > 0 else 0.0
