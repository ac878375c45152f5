import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.errors import WorkbenchError
from workbench.streams import Stream, philox4x32


@pytest.mark.parametrize(
    "counter, key, expected",
    # The known-answer vectors of the Random123 library for philox4x32 with 10 rounds.
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    assert philox4x32(np.array(counter, dtype=np.uint64), key).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    first=st.integers(0, 2**40),
    n=st.integers(1, 20),
    width=st.integers(1, 9),
    step=st.integers(0, 30),
    row=st.integers(0, 19),
    column=st.integers(0, 8),
)
def test_an_entry_depends_on_sample_and_step_alone(seed, first, n, width, step, row, column):
    stream = Stream.of(seed, "a", "b").at(first)
    row, column = row % n, column % width
    whole = stream.uniforms(n, width, step)
    assert whole.shape == (n, width) and (whole >= 0).all() and (whole < 1).all()
    assert stream.at(first + row).uniforms(1, 1, step + column)[0, 0] == whole[row, column]


def test_seeds_names_and_order_of_names_give_different_numbers():
    draws = [
        tuple(Stream.of(seed, *names).uniforms(4, 2).ravel())
        for seed in (0, 1, 2**40)
        for names in ((), ("a",), ("b",), ("a", "b"), ("b", "a"), ("ab",))
    ]
    assert len(set(draws)) == len(draws)
    assert Stream.of(0, "a").child("b") == Stream.of(0, "a", "b")


def test_uniforms_are_uniform_along_samples_and_steps():
    # Kolmogorov-Smirnov at a false-alarm probability of 1e-6 each.
    for numbers in (Stream.of(0, "u").uniforms(200_000)[:, 0], Stream.of(0, "u").uniforms(1, 200_000)[0]):
        assert stats.kstest(numbers, "uniform").pvalue > 1e-6
    pairs = Stream.of(1, "u").uniforms(100_000, 2)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 5 / np.sqrt(100_000)


def test_generators_differ_by_sample_and_repeat():
    assert Stream.of(0).generator().random() == Stream.of(0).generator().random()
    assert Stream.of(0).generator().random() != Stream.of(0).at(1).generator().random()


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True, None, 2**63])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(WorkbenchError, match=r"seed is .* whole number"):
        Stream.of(seed)
