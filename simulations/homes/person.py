"""One person's examples as a row of a table of people: JSON, and a checksum over it and its place."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, final

import numpy as np

from umbel.shared.examples import Example
from umbel.shared.text import IntArray

Row: TypeAlias = tuple[int, int, int, str]
"""A person's number, the row of the first of their examples among everybody's, a checksum, the examples."""

_PLACE = struct.Struct("<QQ")
_NOTHING = "[[],[]]"


class OtherRowError(ValueError):
    """A row is not as it was written; its text says no word of anybody's."""


@final
@dataclass(frozen=True, slots=True)
class Own:
    """One person's examples of a kind.

    Attributes:
        examples: In their order.
        rows: Their rows among everybody's: (examples,).
    """

    examples: list[Example] = field(repr=False)
    rows: IntArray


def row_of(number: int, first: int, support: Sequence[Example], heldout: Sequence[Example]) -> Row:
    """Returns the row of a person.

    Args:
        number: Theirs.
        first: The row of the first of their examples among everybody's.
        support: What is learned from.
        heldout: What nothing is learned from.
    """
    kinds = [[(e.user, e.text, e.label, e.time) for e in own] for own in (support, heldout)]
    told = json.dumps(kinds, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return number, first, _checksum(number, first, told.encode()), told


def row_of_nobody(number: int, first: int) -> Row:
    """Returns the row of a person without examples; arguments as in `row_of`."""
    return number, first, _checksum(number, first, _NOTHING.encode()), _NOTHING


def parts_of(number: int, first: int, checksum: int, told: bytes) -> tuple[Own, Own]:
    """Returns a person's examples to learn from, and the held-out ones.

    Examples were checked before they were written, and the checksum says that they are those.

    Raises:
        OtherRowError: They are others, or somebody else's.
    """
    try:
        if _checksum(number, first, told) != checksum:
            raise ValueError
        support, heldout = ([Example(*cells) for cells in kind] for kind in json.loads(told))
    except (ValueError, TypeError, struct.error):
        raise OtherRowError("it is not as it was written") from None
    middle, end = first + len(support), first + len(support) + len(heldout)
    return Own(support, np.arange(first, middle)), Own(heldout, np.arange(middle, end))


def _checksum(number: int, first: int, told: bytes) -> int:
    return zlib.crc32(told, zlib.crc32(_PLACE.pack(number, first)))
