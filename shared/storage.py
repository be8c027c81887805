"""Weights that a release holds in fewer bytes: float16, or int8 with one scale per first index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from umbel.shared.checks import shown
from umbel.shared.errors import ReleaseError
from umbel.shared.profile import FloatArray

STORAGES = ("float16", "int8")
_DTYPES = {"float16": np.dtype("<f2"), "int8": np.dtype("i1")}
_SCALES = ".scales"
_LARGEST = 127

Arrays = Mapping[str, npt.NDArray[Any]]


def packed(name: str, values: FloatArray, storage: str) -> dict[str, npt.NDArray[Any]]:
    """Returns what a weights file holds of a tensor.

    int8: each values[i] is the nearest whole multiple, from -127 to 127, of scales[i], the largest size in it
    over 127; so no value is off by more than half of its scale.

    Args:
        name: The tensor's name.
        values: (n, *shape).
        storage: One of `STORAGES`.

    Returns:
        The tensor under its name; of int8 also "NAME.scales" (n,) float32.
    """
    if storage == "float16":
        with np.errstate(over="ignore"):
            return {name: values.astype(np.float16)}
    rows = values.reshape(len(values), -1)
    scales = (np.abs(rows).max(1) / np.float32(_LARGEST)).astype(np.float32)
    steps = np.where(scales > 0, scales, np.float32(1))
    levels = np.clip(np.rint(rows / steps[:, None]), -_LARGEST, _LARGEST).astype(np.int8)
    return {name: levels.reshape(values.shape), name + _SCALES: scales}


def unpacked(arrays: Arrays, storage: Mapping[str, str]) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """Returns the weights of a file as graphs take them, and a line for each that is stored otherwise.

    Args:
        arrays: What the file holds; tensors that `storage` does not name are passed on as they are.
        storage: Tensor name -> how it is stored. Those that the file does not hold are left out.
    """
    own = {name: kind for name, kind in storage.items() if name in arrays}
    scales = {name + _SCALES for name, kind in own.items() if kind == "int8"}
    found = {name: array for name, array in arrays.items() if name not in scales}
    problems = []
    for name, kind in own.items():
        wrong = _problem(arrays, name, kind)
        problems += [f"'{name}' {wrong}"] if wrong else []
        if not wrong:
            found[name] = _values(arrays, name, kind)
    return found, problems


def _values(arrays: Arrays, name: str, kind: str) -> FloatArray:
    values = arrays[name].astype(np.float32)
    if kind == "float16":
        return values
    scales: FloatArray = arrays[name + _SCALES]
    return np.asarray(values * scales.reshape(-1, *(1,) * (values.ndim - 1)), np.float32)


def _problem(arrays: Arrays, name: str, kind: str) -> str:
    stored = arrays[name]
    if stored.dtype != _DTYPES[kind]:
        return f"is {stored.dtype}, not {kind}"
    if kind == "int8":
        scales = arrays.get(name + _SCALES)
        if scales is None or scales.dtype != "f4" or not stored.ndim or scales.shape != stored.shape[:1]:
            return "has no float32 scale for each of its parts"
    return ""


def read_storage(rows: object) -> dict[str, str]:
    """Reads a manifest's tensor name -> storage.

    Raises:
        ReleaseError: It is malformed, or names a storage that is not known.
    """
    if not isinstance(rows, dict) or not rows:
        raise ReleaseError("the storage is malformed", ["expected an object of tensors, or no such key"])
    problems = [
        f"'{shown(name)}' is stored as {shown(kind)}, expected one of {', '.join(STORAGES)}"
        for name, kind in rows.items()
        if kind not in STORAGES
    ]
    if problems:
        raise ReleaseError("the storage is malformed", problems)
    return dict(rows)
