"""Arrays as numpy's .npy bytes: what `numpy.save` writes and `numpy.load` reads, a header worked out once.

A message of a round has a few small arrays of the same shapes over and over; numpy formats and parses the
header of each anew, which takes longer than the work of a small device.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_FIRST = b"\x93NUMPY\x01\x00"  # what numpy writes for all but the longest headers
_LENGTH = slice(8, 10)
_MOST_HEADER = 512  # one that is longer is read by numpy alone, and never kept
_KEPT = 256


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """Returns what `numpy.save` writes, in C order.

    Args:
        array: Of numbers or booleans, any shape.

    Raises:
        ValueError: It holds Python's objects.

    Example:
        >>> npy_array(npy_bytes(np.arange(3)))
        array([0, 1, 2])
    """
    if array.dtype.kind not in "biuf" or not array.flags.c_contiguous:
        return _saved(array)
    return _header(array.dtype.str, array.shape) + array.tobytes()


def npy_array(data: bytes) -> npt.NDArray[Any]:
    """Returns the array in what `numpy.save` wrote, its own copy; what is behind the values is not looked at.

    Raises:
        ValueError: It is damaged; other errors of `numpy.load` pass, too.
    """
    begin = 10 + int.from_bytes(data[_LENGTH], "little")
    if not data.startswith(_FIRST) or begin > _MOST_HEADER or len(data) < begin:
        return _loaded(data)
    dtype, shape, fortran = _described(data[:begin])
    count = math.prod(shape)
    if dtype.kind not in "biuf" or fortran or len(data) < begin + count * dtype.itemsize:
        return _loaded(data)
    return np.frombuffer(data, dtype, count, begin).reshape(shape).copy()


def _saved(array: npt.NDArray[Any]) -> bytes:
    place = io.BytesIO()
    np.save(place, array, allow_pickle=False)
    return place.getvalue()


def _loaded(data: bytes) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return found


@lru_cache(maxsize=_KEPT)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    place = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(place, described)
    return place.getvalue()


@lru_cache(maxsize=_KEPT)
def _described(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Reads a header by numpy's own reader.

    Raises:
        ValueError: It is none.
    """
    place = io.BytesIO(header)
    np.lib.format.read_magic(place)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(place)
    return dtype, shape, fortran
