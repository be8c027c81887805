"""Arrays and scalars as Flower's records carry them, and how many bytes that takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from umbel.shared.errors import MessageError
from umbel.shared.messages import Scalar, Wire
from umbel.shared.profile import FloatArray

ARRAYS, CONFIG = "arrays", "config"


def array_record(values: Mapping[str, FloatArray]) -> ArrayRecord:
    """Returns the record of some arrays."""
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def enveloped(arrays: ArrayRecord, config: Mapping[str, Scalar]) -> RecordDict:
    """Returns what a message carries."""
    return RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(dict(config))})


def opened(content: RecordDict) -> Wire:
    """Returns what came in a message.

    Raises:
        MessageError: It has other records than these two.
    """
    if set(content) != {ARRAYS, CONFIG}:
        raise MessageError(
            "an answer cannot be used", [f"it has {len(content)} records, expected arrays and config"]
        )
    arrays, config = content[ARRAYS], content[CONFIG]
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise MessageError("an answer cannot be used", ["its records are of a wrong type"])
    return Wire.of(arrays, config)


def wire_bytes(record: Any) -> int:
    """Returns the bytes in which Flower sends a record: those of its objects, each sent once."""
    sizes: dict[str, int] = {}
    waiting = [record]
    while waiting:
        item = waiting.pop()
        key = item.object_id  # a hash over all of it, made anew at every look
        if key not in sizes:
            sizes[key] = len(item.deflate())
            waiting += (item.children or {}).values()
    return sum(sizes.values())


@final
class SharedArrays:
    """Makes records of arrays; one that several messages have is made once, so that it is held once."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[npt.NDArray[Any], Array]] = {}

    def record(self, arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
        """Returns the record of some arrays."""
        return ArrayRecord({name: self._array(array) for name, array in arrays.items()})

    def _array(self, array: npt.NDArray[Any]) -> Array:
        made = self._made.get(id(array))
        if made is None:  # the array is kept too: its id is its own only as long as it is there
            made = self._made[id(array)] = (array, Array(array))
        return made[1]
