"""Looks for many pieces of bytes at once: what must not leave a device, in all that has left it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

LEAST = 8
"""Shorter pieces are found by chance, so there are none."""
_NUMBERS = 6
_WIDTHS = ("<f4", "<f2", "<f8", ">f4")
_FEW = 4  # a piece of so few different bytes is padding, or found by chance

Array = npt.NDArray[Any]


def found_in(data: bytes, pieces: Iterable[bytes]) -> set[bytes]:
    """Returns the pieces that some bytes hold.

    Args:
        data: The bytes.
        pieces: Each of at least `LEAST` bytes.
    """
    by_head: dict[int, list[bytes]] = {}
    for piece in pieces:
        by_head.setdefault(int.from_bytes(piece[:LEAST], "little"), []).append(piece)
    heads, found = np.array(sorted(by_head), np.uint64), set()
    for shift in range(min(LEAST, len(data))):
        whole = (len(data) - shift) // LEAST
        row = np.frombuffer(data, "<u8", whole, shift)
        for at in np.flatnonzero(np.isin(row, heads)).tolist():
            start = shift + LEAST * at
            found |= {p for p in by_head[int(row[at])] if data.startswith(p, start)}
    return found


def of_numbers(values: Mapping[str, Array], widths: Iterable[str] = _WIDTHS) -> set[bytes]:
    """Returns every few neighbouring numbers of some arrays, in each width in which they could travel."""
    return {
        piece for array in values.values() for width in widths for piece in _rows(array.ravel().astype(width))
    }


def of_bits(profile: Mapping[str, Array], packed: bytes) -> set[bytes]:
    """Returns a profile's masks, bit by bit, whole and each row of them, and what its packed form holds."""
    pieces = {packed[at : at + 2 * LEAST] for at in range(40, len(packed) - 2 * LEAST, LEAST)}
    for array in profile.values():
        if set(np.unique(array).tolist()) <= {0.0, 1.0}:
            rows = array.reshape(-1, array.shape[-1]) > 0
            for order in ("big", "little"):
                pieces |= {np.packbits(row, bitorder=order).tobytes() for row in rows}
                pieces.add(np.packbits(rows, bitorder=order).tobytes())
    return {piece for piece in pieces if len(piece) >= LEAST and len(set(piece)) > _FEW}


def _rows(row: Array) -> list[bytes]:
    cut = [row[start : start + _NUMBERS] for start in range(0, len(row) - _NUMBERS + 1, _NUMBERS)]
    pieces = [piece.tobytes() for piece in cut if len(set(piece.tolist())) > 1]
    return [piece for piece in pieces if len(set(piece)) > _FEW]
