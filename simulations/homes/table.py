"""A table of people: the examples of many simulated devices in one Parquet file, sorted by person.

    people.json         how many people there are, how large the file of their examples is, and a hash
    examples.parquet    person, user, text, label, time, heldout; rows sorted by person, from 0
    profiles-*.table    one row per person, for each release (`home.py`)
    read-*.table        one row per example: what texts were read as

Of the examples, only the row groups that hold a person's rows are read; the file's own statistics say which.
They are read by `pread`, not mapped, so that what one round has read is not held in the next. Parquet has a
checksum for each page, but none for its footer, which says whose rows lie where: people.json has its hash.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from umbel.device_client.simulated import TABLE
from umbel.shared.checks import count_problems, key_problems, parsed_json, shown
from umbel.shared.errors import ExampleError, MissingExtraError
from umbel.shared.examples import Example, checked_example
from umbel.shared.files import plain_bytes, plain_file, sha256_bytes
from umbel.shared.text import IntArray
from umbel.simulations.homes.rows import RowFile

MARK: Final = TABLE
FILE: Final = "examples.parquet"
KIND: Final = "umbel.people/"
SCHEMA: Final = f"{KIND}2"
COLUMNS: Final[Mapping[str, str]] = {
    "person": "int32", "user": "string", "text": "string", "label": "string", "time": "double",
    "heldout": "bool",
}  # fmt: skip
"""Column -> its type in Parquet."""
MOST_PEOPLE: Final = 2**31 - 1
_openings = itertools.count()
_HINT = "Make it again: umbel data pack."
MARK_BYTES: Final = 4096  # at most; people.json has some hundred
_TAIL = struct.Struct("<I4s")  # of a Parquet file: bytes of the footer before it, and "PAR1"


@final
@dataclass(frozen=True, slots=True)
class Own:
    """One person's examples of a kind.

    Attributes:
        examples: In their order.
        rows: Their rows in the table: (examples,).
    """

    examples: list[Example] = field(repr=False)
    rows: IntArray


@final
@dataclass(frozen=True, slots=True)
class _Groups:
    """What is known of the row groups that have rows, from the file's own statistics: (groups,) each.

    Attributes:
        number: Which of the file's row groups it is.
        first: The first person in it.
        last: The last.
        begin: The first row of it.
    """

    number: IntArray
    first: IntArray
    last: IntArray
    begin: IntArray

    @classmethod
    def of(cls, metadata: Any, problems: list[str]) -> _Groups:
        """Reads it; a group that does not say whose rows it has is a problem."""
        place, begin = list(metadata.schema.names).index("person"), 0
        found: list[tuple[int, int, int, int]] = []
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            told = group.column(place).statistics
            if group.num_rows and (told is None or not told.has_min_max):
                problems.append(f"{FILE}: row group {number} does not say whose rows it has")
            elif group.num_rows:
                found.append((number, told.min, told.max, begin))
            begin += group.num_rows
        return cls(*np.array(found, np.int64).reshape(-1, 4).T)


@final
class PeopleTable:
    """The examples of many people; in memory there is only a little per row group.

    Attributes:
        folder: Where it lies.
        people: How many people there are; some may have no examples.
        rows: How many examples there are.
        opened: Which opening of a table this is: another one may find others in the same folder.
    """

    def __init__(self, folder: Path):
        """Opens a table.

        Raises:
            ExampleError: The folder holds none, or a damaged one; all problems are listed.
            MissingExtraError: pyarrow is not installed.
        """
        self.folder, self.opened = folder, next(_openings)
        self.people, self.rows, told = _described(folder)
        self._lock, self._row_files = threading.Lock(), dict[str, RowFile]()
        self._file, problems = _opened(folder / FILE, told)
        if self._file is not None:
            self._groups = _Groups.of(self._file.metadata, problems)
        if self._file is not None and not problems:
            problems += self._order_problems()
        if problems:
            raise ExampleError(f"{folder} is no whole table of people", problems, _HINT)

    def of(self, number: int) -> tuple[Own, Own]:
        """Returns a person's examples to learn from, and the held-out ones.

        Raises:
            ExampleError: There is no such person, or their rows are damaged.
        """
        if not 0 <= number < self.people:
            raise ExampleError(f"there is no person {number} in {self.folder}, which has {self.people:,}")
        groups = self._groups
        low = int(np.searchsorted(groups.last, number, "left"))
        high = int(np.searchsorted(groups.first, number, "right"))
        if low >= high:
            return Own([], np.zeros(0, np.int64)), Own([], np.zeros(0, np.int64))
        place = f"person {number:06d} of {self.folder / FILE}"
        found = self._read(groups.number[low:high].tolist(), place)
        persons = found["person"].to_numpy()
        start, end = (int(np.searchsorted(persons, number, side)) for side in ("left", "right"))
        rows = found.slice(start, end - start).to_pylist()
        return _parts(rows, int(groups.begin[low]) + start, place)

    def row_file(self, name: str, subject: str, rows: int, row_bytes: int) -> RowFile:
        """Returns a file of rows beside the examples; one that was opened before stays open.

        Raises:
            WrongFileError: The file is none of rows, or of others.
            OSError: It cannot be opened or made.
        """
        with self._lock:
            if name not in self._row_files:
                self._row_files[name] = RowFile(self.folder / name, subject, rows, row_bytes)
            return self._row_files[name]

    def _read(self, groups: list[int], place: str) -> Any:
        pyarrow, _ = parquet_modules()
        try:
            with self._lock:  # a reader of Parquet is for one thread
                found = self._file.read_row_groups(groups, columns=list(COLUMNS), use_threads=False)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            problem = f"its row groups {groups[0]} to {groups[-1]}: {type(error).__name__}"
            raise ExampleError(f"{place} cannot be read", [problem], _HINT) from None
        if found["person"].null_count or (np.diff(found["person"].to_numpy()) < 0).any():
            raise ExampleError(f"{place} cannot be read", ["its rows are not sorted by person"], _HINT)
        return found

    def _order_problems(self) -> list[str]:
        problems, rows = [], self._file.metadata.num_rows
        first, last = self._groups.first, self._groups.last
        if rows != self.rows:
            problems.append(f"{FILE} has {rows:,} rows, expected {self.rows:,}")
        if len(first) and (first[0] < 0 or last[-1] >= self.people):
            problems.append(f"{FILE} has people beyond 0 to {self.people - 1:,}")
        if (first[1:] < last[:-1]).any():
            problems.append(f"{FILE} is not sorted by person")
        return problems


def parquet_modules() -> tuple[Any, Any]:
    """Returns pyarrow, and its module for Parquet.

    Raises:
        MissingExtraError: It is not installed.
    """
    # Arrow's own allocator keeps up to 40 MB of what is read for a person and freed at once again.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(
            "a table of people needs pyarrow, which is not installed", hint="pip install 'umbel[simulation]'"
        ) from None
    return pyarrow, pyarrow.parquet


def described(people: int, examples: int, file: Path) -> bytes:
    """Returns what people.json says of a file of examples that was written whole.

    Raises:
        OSError: The file cannot be read.
    """
    size, footer = _footer(file)
    row = {"schema": SCHEMA, "people": people, "examples": examples, "bytes": size}
    return json.dumps(row | {"sha256": _hash(people, examples, footer)}).encode() + b"\n"


def _hash(people: int, examples: int, footer: bytes) -> str:
    return sha256_bytes(f"{people} {examples}\n".encode() + footer)


def _footer(file: Path) -> tuple[int, bytes]:
    """Returns a Parquet file's length, and its footer: what it says of its rows; empty if it has none.

    Raises:
        OSError: It is no plain file, or cannot be read.
    """
    with plain_file(file) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _TAIL.size))
        tail = stream.read()
        length, magic = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, b"")
        if magic != b"PAR1" or length > size - _TAIL.size:
            return size, b""
        stream.seek(size - _TAIL.size - length)
        return size, stream.read(length)


def _described(folder: Path) -> tuple[int, int, dict[str, Any]]:
    """Returns what people.json says: people, examples, and all of it."""
    path, names = folder / MARK, ("schema", "people", "examples", "bytes", "sha256")
    row: Any = None
    try:
        row = parsed_json(plain_bytes(path, MARK_BYTES))
        problems = ["it is no object"] if not isinstance(row, dict) else []
    except FileNotFoundError:
        problems = ["it is missing: the table was not written to its end"]
    except (OSError, ValueError) as error:
        problems = [type(error).__name__]
    if not problems and row.get("schema", SCHEMA) != SCHEMA:  # of another version: its keys are others
        problems = [f"schema is {shown(row['schema'])}, expected {SCHEMA}"]
    elif not problems:
        problems = key_problems(row, names)
    if not problems:
        problems = count_problems("people", row["people"], 1, MOST_PEOPLE)
        problems += count_problems("examples", row["examples"], 0, 2**62)
        problems += count_problems("bytes", row["bytes"], 0, 2**62)
    if problems:
        told = [f"{MARK}: {problem}" for problem in problems]
        raise ExampleError(f"{folder} is no whole table of people", told, _HINT)
    return row["people"], row["examples"], row


def _opened(path: Path, told: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Returns the file of examples and no problem, or None and what is wrong with it.

    Its footer is looked at before Arrow does: a damaged one may end the process, or show other people's rows.
    """
    pyarrow, parquet = parquet_modules()
    try:
        size, footer = _footer(path)
        if size != told["bytes"]:
            return None, [f"{FILE} has {size:,} bytes, expected {told['bytes']:,}"]
        if _hash(told["people"], told["examples"], footer) != told["sha256"]:
            return None, [f"{FILE} is not the file that {MARK} was written for, or one of them is damaged"]
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        return None, [f"{FILE} is missing"]
    except (pyarrow.ArrowException, OSError) as error:
        return None, [f"{FILE} cannot be read as Parquet: {type(error).__name__}"]
    kinds = {entry.name: str(entry.type) for entry in file.schema_arrow}
    problems = [
        f"{FILE}: column {name} is {kinds.get(name, 'missing')}, expected {kind}"
        for name, kind in COLUMNS.items()
        if kinds.get(name) != kind
    ]
    return (None if problems else file), problems


def _parts(rows: list[dict[str, Any]], first: int, place: str) -> tuple[Own, Own]:
    """Returns rows as examples to learn from and held-out ones."""
    problems: list[str] = []
    parts: tuple[list[Example], list[Example]] = [], []
    numbers: tuple[list[int], list[int]] = [], []
    for number, row in enumerate(rows, first):
        example = checked_example(f"row {number}", row, None, "owner", problems)
        if example is not None:
            parts[bool(row["heldout"])].append(example)
            numbers[bool(row["heldout"])].append(number)
    if problems:
        raise ExampleError(f"{place} has examples that cannot be used", problems, _HINT)
    support, heldout = (Own(own, np.array(at, np.int64)) for own, at in zip(parts, numbers, strict=True))
    return support, heldout
