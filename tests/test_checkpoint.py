import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from workbench.checkpoint import load, save, write_atomically
from workbench.errors import WorkbenchError
from workbench.exact_sum import ExactSum

leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.integers(-(10**40), 10**40).map(ExactSum),
    nps.arrays(st.sampled_from([np.int64, np.float64, np.bool_]), nps.array_shapes(max_dims=2, max_side=3, min_side=0)),
)
states = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_size=4,
)


def same(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


@settings(deadline=None)
@given(states)
def test_a_state_comes_back_bit_for_bit(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("c") / "state"
    save(path, state)
    assert same(load(path), state)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_torn_or_flipped_file_is_refused_by_name(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("c") / "state"
    save(path, {"n": 3, "x": np.arange(4.0)})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 2))]
    else:
        at = data.draw(st.integers(0, len(content) - 2))
        content[at] ^= data.draw(st.integers(1, 255))
        # The line feed that ends the checksum may only move.
    path.write_bytes(bytes(content))
    with pytest.raises(WorkbenchError, match="state is damaged"):
        load(path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "state"
    save(path, {"n": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert load(path) == {"n": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("bad", [{"x": object()}, {"x": np.array([object()])}, {"x": {1, 2}}])
def test_what_can_not_be_stored_is_refused(tmp_path, bad):
    with pytest.raises(WorkbenchError, match="A state holds"):
        save(tmp_path / "state", bad)
    assert not (tmp_path / "state").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WorkbenchError, match=r"nowhere can't be read \(No such file"):
        load(tmp_path / "nowhere")
