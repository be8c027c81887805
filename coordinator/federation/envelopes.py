"""Arrays and scalars as Flower's records carry them, and how many bytes that takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

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


def wire_bytes(record: RecordDict) -> int:
    """Returns the bytes in which Flower sends a record: those of its objects, each sent once.

    Objects go by hashes of all that they hold, which takes longer than the work of a small device. All hashes
    are as long, so that records of arrays of the same names, types and sizes have the same bytes, but for
    their config: the bytes of some such kinds are remembered.
    """
    arrays, config = record.get(ARRAYS), record.get(CONFIG)
    if len(record) != 2 or not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        return _whole_bytes(record)
    if any(len(array.data) > FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE for array in arrays.values()):
        return _whole_bytes(record)  # it is sent in pieces, of which some may be equal
    kind = (tuple(record), *_kind(arrays))
    told, without = len(config.deflate()), _known_kinds.get(kind)
    if without is None:
        without = _whole_bytes(record) - told
        if len(_known_kinds) >= _MOST_KINDS:  # devices may send what they like
            _known_kinds.clear()
        _known_kinds[kind] = without
    return told + without


_MOST_KINDS = 64
_known_kinds: dict[tuple[Any, ...], int] = {}


def _kind(arrays: ArrayRecord) -> tuple[Any, ...]:
    """Returns all that the bytes of a record of arrays depend on, such as which of them are equal."""
    whole: dict[tuple[Any, ...], int] = {}
    data: dict[bytes, int] = {}
    return tuple(
        (
            name, array.dtype, tuple(array.shape), array.stype, len(array.data),
            whole.setdefault((array.dtype, tuple(array.shape), array.stype, array.data), place),
            data.setdefault(array.data, place),
        )
        for place, (name, array) in enumerate(arrays.items())
    )  # fmt: skip


def _whole_bytes(record: Any) -> int:
    """Returns the bytes of any record, by Flower's own hashes."""
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
