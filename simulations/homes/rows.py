"""A file of rows of equal length, each with a checksum: a torn write is noticed, and spoils one row alone.

    header (64 bytes)   magic, version, what the rows are of (sha256), number and length of the rows, checksum
    row 0, row 1, ...   a checksum, and the data; zeros where nothing was written yet

A row is written in place. The file is made in its whole length at once, which takes no room where the disk
knows holes: only rows that were written do. Rows are written by `pwrite`, not into mapped memory: a full disk
is then an error, and not a signal that ends the process; and what was written does not stay in its memory.
"""

from __future__ import annotations

import os
import struct
import weakref
import zlib
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

_HEADER = struct.Struct("<4sHxx32sQI")
_SUM = struct.Struct("<I")
_HEADER_BYTES = 64
_MAGIC, _VERSION = b"UMBR", 1


class TornRowError(ValueError):
    """A row was not written whole."""


class WrongFileError(ValueError):
    """A file is none of rows, or of other rows; its text is one problem."""


@final
class RowFile:
    """The rows, of which several processes may read and write different ones at the same time.

    Attributes:
        path: The file.
        rows: How many there are.
        row_bytes: Bytes of the data of each.
    """

    def __init__(self, path: Path, subject: str, rows: int, row_bytes: int):
        """Opens the file, or makes it.

        Args:
            path: The file.
            subject: What the rows are of: a sha256 as hex digits.
            rows: How many there are.
            row_bytes: Bytes of the data of each.

        Raises:
            WrongFileError: The file is none of rows, or of others.
            OSError: It cannot be opened or made.
        """
        self.path, self.rows, self.row_bytes = path, rows, row_bytes
        self._subject = bytes.fromhex(subject)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._handle)
        self._make_or_check()

    def read(self, row: int, bound: bytes = b"") -> bytes | None:
        """Returns a row's data, or None if nothing was written there.

        Args:
            row: Which one.
            bound: What the row was bound to when it was written.

        Raises:
            TornRowError: It was not written whole, or was bound to something else.
            OSError: The file cannot be read.
        """
        found = os.pread(self._handle, self._stride, self._place(row))
        if not any(found):
            return None
        data = found[_SUM.size :]
        if len(found) < self._stride or self._sum(row, data, bound) != _SUM.unpack_from(found)[0]:
            raise TornRowError(f"row {row} was not written whole")
        return data

    def write(self, row: int, data: bytes, bound: bytes = b"") -> None:
        """Writes a row in place.

        Args:
            row: Which one.
            data: `row_bytes` bytes.
            bound: What the row belongs to besides; whoever reads it must name the same.

        Raises:
            OSError: The file cannot be written.
            ValueError: The data are longer or shorter.
        """
        if len(data) != self.row_bytes:
            raise ValueError(f"a row has {self.row_bytes} bytes, not {len(data)}")
        whole, start = _SUM.pack(self._sum(row, data, bound)) + data, self._place(row)
        done = 0
        while done < len(whole):
            done += os.pwrite(self._handle, whole[done:], start + done)

    def mapped(self) -> npt.NDArray[Any]:
        """Returns all rows, memory-mapped and read-only: (rows,) of "sum" and "data"; a sum of 0: nothing."""
        kind = np.dtype([("sum", "<u4"), ("data", f"V{self.row_bytes}")])
        return np.memmap(self.path, kind, "r", offset=_HEADER_BYTES, shape=(self.rows,))

    @property
    def _stride(self) -> int:
        return _SUM.size + self.row_bytes

    def _place(self, row: int) -> int:
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        return _HEADER_BYTES + row * self._stride

    def _sum(self, row: int, data: bytes, bound: bytes) -> int:
        """Returns a row's checksum, which also tells a row of another file or place; never 0."""
        return zlib.crc32(data, zlib.crc32(self._subject + row.to_bytes(8, "little") + bound)) or 1

    def _make_or_check(self) -> None:
        header = _HEADER.pack(_MAGIC, _VERSION, self._subject, self.rows, self.row_bytes)
        header = (header + _SUM.pack(zlib.crc32(header))).ljust(_HEADER_BYTES, b"\0")
        found = os.pread(self._handle, _HEADER_BYTES, 0)
        if not any(found):  # new, or whoever made it was ended before the header; to make it twice is no harm
            os.ftruncate(self._handle, _HEADER_BYTES + self.rows * self._stride)
            os.pwrite(self._handle, header, 0)
        elif found != header:
            raise WrongFileError(f"{self.path.name} {_difference(found, header)}")
        elif os.fstat(self._handle).st_size != _HEADER_BYTES + self.rows * self._stride:
            raise WrongFileError(f"{self.path.name} is cut off")


def _difference(found: bytes, expected: bytes) -> str:
    """Says in what a header is another than expected."""
    if len(found) < _HEADER_BYTES or found[:4] != _MAGIC:
        return "is no file of rows"
    if zlib.crc32(found[: _HEADER.size]) != _SUM.unpack_from(found, _HEADER.size)[0]:
        return "is damaged"
    _, version, subject, rows, row_bytes = _HEADER.unpack_from(found)
    _, own_version, own_subject, own_rows, own_bytes = _HEADER.unpack_from(expected)
    if version != own_version:
        return f"is of version {version}, expected {own_version}"
    if subject != own_subject:
        return f"is of {subject.hex()[:12]}, expected {own_subject.hex()[:12]}"
    return f"has {rows:,} rows of {row_bytes} bytes, expected {own_rows:,} of {own_bytes}"
