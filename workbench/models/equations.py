"""Sums with their carry, the language of `embedded/masked`: "37+48=085c", where c says that the units carry, n that not.

Two terms from 10 to 99, each equally likely. Seen from left to right the carry comes last, though the tens of the sum
hang on it: in which order a text is filled decides how hard each step is.
Does: enumerates the language, gives exact marginals, and checks texts. Does not: decode.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, refuse

SYMBOLS = "0123456789+=cn"
MASK = "_"
MASK_ID = len(SYMBOLS)
LENGTH = 10


@lru_cache(maxsize=1)
def carried_sums() -> np.ndarray:
    """Every text of the language as tokens (8100, 10), all equally likely."""
    texts = [
        f"{left}+{right}={left + right:03d}{'c' if left % 10 + right % 10 > 9 else 'n'}"
        for left in range(10, 100)
        for right in range(10, 100)
    ]
    return np.array([equation_tokens(text) for text in texts])


def equation_tokens(text: str) -> list[int]:
    """Token ids of a text of ten symbols, "_" for a mask; the same as the tokenizer's of `embedded/masked`."""
    if len(text) != LENGTH or any(symbol not in SYMBOLS + MASK for symbol in text):
        must = f"be {LENGTH} symbols of {SYMBOLS}{MASK}"
        raise refuse("text", text, must, "write e.g. '37+48=085c' or '__+__=____'")
    return [(SYMBOLS + MASK).index(symbol) for symbol in text]


@lru_cache(maxsize=1)
def _columns() -> np.ndarray:
    return np.ascontiguousarray(carried_sums().T.astype(np.int8))


def exact_marginals(states: Any) -> np.ndarray:
    """(n, 10, 15) float64: log p(token at a masked position | what is not masked) under the language itself; NaN
    elsewhere, as with `MaskedModel.marginals`. Refuses a state that no text of the language fits."""
    columns = _columns()
    given = np.asarray(states, dtype=np.int64).reshape(-1, LENGTH)
    out = np.full((len(given), LENGTH, MASK_ID + 1), np.nan)
    for i, state in enumerate(given):
        fits = np.ones(columns.shape[1], dtype=bool)
        for position in np.flatnonzero(state != MASK_ID):
            fits &= columns[position] == state[position]
        if not fits.any():
            told = "".join((SYMBOLS + MASK)[token] for token in state)
            raise refuse(f"states[{i}]", told, "be fitted by a text of the language", "unmask tokens that go together")
        for position in np.flatnonzero(state == MASK_ID):
            with np.errstate(divide="ignore"):
                counts = np.bincount(columns[position][fits], minlength=MASK_ID + 1)
                out[i, position] = np.log(counts / fits.sum())
    return out


def equation_is_right(text: str) -> bool:
    """Whether a text such as "37+48=085c" belongs to the language: right sum, right carry."""
    try:
        tokens = np.array(equation_tokens(text))
    except WorkbenchError:
        return False
    return bool((carried_sums() == tokens).all(axis=1).any())
