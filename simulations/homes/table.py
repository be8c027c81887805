"""A table of people: the examples of many simulated devices in one SQLite file, a row per person.

    people.json         how many people and examples there are, and how large the file of examples is
    examples.sqlite     a row per person, those without examples too: `person.py` says what it holds
    profiles-*.table    one row per person, for each release (`home.py`)
    read-*.table        one row per example: what texts were read as

What is read for a person is their own row, found by its number. SQLite reads it by `pread`, so that what one
round has read is not held in the next; the file is opened as one that nobody changes, so nothing is locked.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from umbel.device_client.simulated import TABLE
from umbel.shared.checks import count_problems, key_problems, parsed_json, shown
from umbel.shared.errors import ExampleError
from umbel.shared.files import plain_bytes, plain_file, sha256_bytes
from umbel.simulations.homes.person import OtherRowError, Own, parts_of
from umbel.simulations.homes.rows import RowFile

if TYPE_CHECKING:
    from sqlite3 import Connection

MARK: Final = TABLE
FILE: Final = "examples.sqlite"
KIND: Final = "umbel.people/"
SCHEMA: Final = f"{KIND}3"
MOST_PEOPLE: Final = 2**31 - 1
MARK_BYTES: Final = 4096  # at most; people.json has some hundred
_openings = itertools.count()
_HINT = "Make it again from the file of examples that it was made of: umbel data pack."
_ROW = "SELECT first, checksum, examples FROM person WHERE number = ?"
_CHECKSUM = "SELECT checksum FROM person WHERE number = ?"
_TOLD = 64  # people by whom tables are told apart
_LAST = "SELECT max(number) FROM person"
_WARY = ("PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON")  # of a file that may be damaged


@final
class PeopleTable:
    """The examples of many people, of which none are in memory.

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
        """
        self.folder, self.opened = folder, next(_openings)
        self.people, self.rows, file_bytes = _described(folder)
        self._lock, self._row_files = threading.Lock(), dict[str, RowFile]()
        connection, problems = _opened(folder / FILE, file_bytes)
        if connection is not None:
            self._connection = connection
            weakref.finalize(self, connection.close)
            problems += self._end_problems()
        if problems:
            raise ExampleError(f"{folder} is no whole table of people", problems, _HINT)

    def of(self, number: int) -> tuple[Own, Own]:
        """Returns a person's examples to learn from, and the held-out ones.

        Raises:
            ExampleError: There is no such person, or their row is damaged.
        """
        if not 0 <= number < self.people:
            raise ExampleError(f"there is no person {number} in {self.folder}, which has {self.people:,}")
        try:
            return self._read(number)[1:]
        except OtherRowError as error:
            place = f"person {number:06d} of {self.folder / FILE}"
            raise ExampleError(f"{place} cannot be read", [str(error)], _HINT) from None

    def digest(self) -> str:
        """Returns what tells tables apart: a hash of how much they hold, and of the checksums of some people.

        Raises:
            ExampleError: Somebody's row is missing, or cannot be read.
        """
        last = self.people - 1
        some = sorted({last * part // _TOLD for part in range(_TOLD + 1)})
        try:
            found = [self._asked(_CHECKSUM, number) for number in some]
        except OtherRowError as error:
            raise ExampleError(f"{self.folder / FILE} cannot be read", [str(error)], _HINT) from None
        return sha256_bytes(json.dumps([self.people, self.rows, found]).encode())

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

    def _read(self, number: int) -> tuple[int, Own, Own]:
        """Returns the row of a person's first example, and both kinds of them.

        Everybody has a row, so one that is missing is damage, too.
        """
        found = self._asked(_ROW, number)
        if found is None:
            raise OtherRowError("its row is missing")
        return found[0], *parts_of(number, *found)

    def _asked(self, question: str, *values: int) -> Any:
        """Returns the row that SQLite answers with, or None.

        Raises:
            OtherRowError: It cannot read one.
        """
        import sqlite3

        try:
            with self._lock:
                return self._connection.execute(question, values).fetchone()
        except (
            sqlite3.Error,
            UnicodeDecodeError,
        ) as error:  # a message of SQLite's may quote what is damaged
            raise OtherRowError(sqlite_words(error)) from None

    def _end_problems(self) -> list[str]:
        """Returns what is wrong with the end of the file: who is last, and where their examples end."""
        try:
            (last,) = self._asked(_LAST)
            if last != self.people - 1:
                return [f"{FILE} ends with person {last}, expected {self.people - 1}"]
            first, support, heldout = self._read(last)
        except OtherRowError as error:
            return [f"{FILE} cannot be read: {error}"]
        end = first + len(support.examples) + len(heldout.examples)
        return [] if end == self.rows else [f"{FILE} has {end:,} examples, expected {self.rows:,}"]


def sqlite_words(error: Exception) -> str:
    """Returns by what name SQLite knows an error: its words could quote a cell."""
    name = str(getattr(error, "sqlite_errorname", "") or type(error).__name__)
    return os.strerror(errno.ENOSPC) if name == "SQLITE_FULL" else name


def _described(folder: Path) -> tuple[int, int, int]:
    """Returns what people.json says: people, examples, bytes of the file of examples."""
    path, names = folder / MARK, ("schema", "people", "examples", "bytes")
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
    return row["people"], row["examples"], row["bytes"]


def _opened(path: Path, file_bytes: int) -> tuple[Connection | None, list[str]]:
    """Returns the file of examples and no problem, or None and what is wrong with it."""
    import sqlite3

    try:
        with plain_file(path) as stream:
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        return None, [f"{FILE} is missing"]
    except OSError as error:
        return None, [f"{FILE} cannot be read: {error.strerror or type(error).__name__}"]
    if size != file_bytes:
        return None, [f"{FILE} has {size:,} bytes, expected {file_bytes:,}"]
    place = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(place, uri=True, isolation_level=None, check_same_thread=False)
        for words in _WARY:
            connection.execute(words)
    except sqlite3.Error as error:
        return None, [f"{FILE} cannot be opened: {sqlite_words(error)}"]
    connection.text_factory = bytes
    return connection, []
