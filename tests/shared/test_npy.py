"""Arrays as .npy bytes are what numpy itself writes and reads."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from umbel.shared.npy import npy_array, npy_bytes

_KINDS = st.one_of(
    hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.boolean_dtypes()
)
ARRAYS = hnp.arrays(_KINDS, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


def saved(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@given(ARRAYS, st.sampled_from(("C", "F")), st.integers(1, 2))
def test_what_is_written_is_what_numpy_writes(array: npt.NDArray[Any], order: Any, every: int) -> None:
    array = np.array(array, order=order)
    array = array[::every] if array.ndim else array
    assert npy_bytes(array) == saved(array)


@given(ARRAYS, st.sampled_from(("C", "F")), st.binary(max_size=3))
def test_what_is_read_is_what_numpy_reads(array: npt.NDArray[Any], order: Any, more: bytes) -> None:
    found = npy_array(saved(np.array(array, order=order)) + more)
    assert same(found, array)
    assert found.flags.writeable
    assert found.flags.owndata or not found.size or order == "F"


@given(ARRAYS, st.data())
def test_what_is_cut_off_is_refused(array: npt.NDArray[Any], data: st.DataObject) -> None:
    whole = saved(array)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises((ValueError, EOFError)):
        npy_array(cut)


@given(st.binary(max_size=200), st.integers(0, 127), st.binary(min_size=1, max_size=4))
def test_whatever_bytes_come_it_does_what_numpy_does(tail: bytes, at: int, put: bytes) -> None:
    whole = saved(np.arange(6, dtype=np.float32).reshape(2, 3))
    for data in (tail, whole[:at] + put + whole[at + len(put) :]):
        try:
            expected = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception:
            with pytest.raises(Exception):  # noqa: B017, PT011 - numpy's reader fails in many ways
                npy_array(data)
        else:
            assert same(npy_array(data), expected)


def test_what_holds_objects_is_neither_written_nor_read() -> None:
    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="allow_pickle"):
        npy_bytes(objects)
    stream = io.BytesIO()
    np.save(stream, objects, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        npy_array(stream.getvalue())
