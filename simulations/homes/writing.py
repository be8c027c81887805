"""Writes a table of people as they come, a person at a time: what was written is not held."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example, checked_example
from umbel.shared.files import sole_use, sync_folder
from umbel.simulations.homes.person import Row, row_of, row_of_nobody
from umbel.simulations.homes.table import FILE, MARK, MOST_PEOPLE, SCHEMA, sqlite_words

_UNFINISHED, MARK_UNFINISHED = ".examples.unfinished", ".people.unfinished"
BEFORE = "examples.parquet"  # of an earlier version's table: it would be left for nobody
_KEPT = ("profiles-*.table", "read-*.table")
OWN = (MARK, FILE, _UNFINISHED, MARK_UNFINISHED, BEFORE, *_KEPT)
"""What the files in a table's folder are called, those of one that was not written to its end, too."""
_MOST_PROBLEMS = 1000
_TABLE = (
    "CREATE TABLE person (number INTEGER PRIMARY KEY, first INTEGER NOT NULL, checksum INTEGER NOT NULL, "
    "examples TEXT NOT NULL)"
)
_INSERT = "INSERT INTO person VALUES (?, ?, ?, ?)"


@final
class TableWriter:
    """Writes a table; it is there when its context ends without an error, and an older one until then.

    Example:
        >>> import tempfile
        >>> from umbel.simulations.homes.table import PeopleTable
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with TableWriter(Path(folder)) as writer:
        ...         writer.add([Example("ann", "a slow film", "yes")])
        ...         writer.add([])
        ...     PeopleTable(Path(folder)).people
        2
    """

    def __init__(self, folder: Path):
        """Begins a table; at its end it takes the place of one that is there, and of that one's profiles.

        Args:
            folder: Where it goes; made if it is missing.

        Raises:
            BusyError: Another process is writing a table there.
            ExampleError: The folder cannot be written.
        """
        self.folder, self.people, self.examples = folder, 0, 0
        self._problems: list[str] = []
        self._alone, self._made = ExitStack(), not folder.exists()
        try:
            with self._explained():
                self._alone.enter_context(sole_use(folder))
                self._connection = _new_database(folder / _UNFINISHED)
        except ExampleError:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._explained():
                    self._finish()
        finally:
            self._connection.close()
            for left in (_UNFINISHED, MARK_UNFINISHED):
                (self.folder / left).unlink(missing_ok=True)
            self._let_go()

    def _let_go(self) -> None:
        """Lets others write here; a folder that was made in vain is removed."""
        self._alone.close()
        if self._made:
            with suppress(OSError):  # the table is in it
                self.folder.rmdir()

    def add(
        self, support: Sequence[Example], heldout: Sequence[Example] = (), *, checked: bool = False
    ) -> None:
        """Adds the next person; what is wrong with their examples is told at the end, for all people.

        Args:
            support: Their examples to learn from.
            heldout: Those from which nothing is learned.
            checked: They are as `read_examples` gives them, which need not be checked again.

        Raises:
            ExampleError: The folder cannot be written, or a thousand examples cannot be used.
        """
        parts = (support, heldout) if checked else self._checked(support, heldout)
        self._written([row_of(self.people, self.examples, *parts)])
        self.people, self.examples = self.people + 1, self.examples + sum(map(len, parts))
        if len(self._problems) >= _MOST_PROBLEMS:
            self._refuse()

    def add_nobodies(self, people: int) -> None:
        """Adds so many people without examples."""
        self._written(row_of_nobody(self.people + number, self.examples) for number in range(people))
        self.people += people

    def _checked(
        self, support: Sequence[Example], heldout: Sequence[Example]
    ) -> tuple[list[Example], list[Example]]:
        """Returns the examples that can be used; of the others, notes the problems."""
        kinds: tuple[list[Example], list[Example]] = [], []
        for number, example in enumerate((*support, *heldout)):
            row: dict[str, Any] = {name: getattr(example, name) for name in ("user", "text", "label", "time")}
            place = f"person {self.people:06d}, example {number + 1}"
            found = checked_example(place, row, None, None, self._problems)
            if found is not None:
                kinds[number >= len(support)].append(found)
        return kinds

    def _written(self, rows: Iterable[Row]) -> None:
        with self._explained():
            self._connection.executemany(_INSERT, rows)

    def _refuse(self) -> None:
        if not 1 <= self.people <= MOST_PEOPLE:
            self._problems.append(f"there are {self.people:,} people, expected 1 to {MOST_PEOPLE:,}")
        if self._problems:
            raise ExampleError(f"{self.folder} was not written", self._problems, "Mend these and try again.")

    def _finish(self) -> None:
        """Makes the table whole: the file of examples, and then what says that it is."""
        self._refuse()
        self._connection.execute("COMMIT")
        self._connection.close()
        size = _to_disk(self.folder / _UNFINISHED)
        row = {"schema": SCHEMA, "people": self.people, "examples": self.examples, "bytes": size}
        _new_file(self.folder / MARK_UNFINISHED, json.dumps(row).encode() + b"\n")
        _to_disk(self.folder / MARK_UNFINISHED)
        # From here on only names change, for which a full disk has room.
        kept = (path for name in (*_KEPT, BEFORE) for path in self.folder.glob(name))
        for old in (self.folder / MARK, *kept):
            old.unlink(missing_ok=True)
        for unfinished, name in ((_UNFINISHED, FILE), (MARK_UNFINISHED, MARK)):
            os.replace(self.folder / unfinished, self.folder / name)
        sync_folder(self.folder)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what SQLite and the system say into an error that its reader can act on."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            words = error.strerror if isinstance(error, OSError) else sqlite_words(error)
            problem = words or type(error).__name__
            raise ExampleError(f"{self.folder} cannot be written", [problem]) from None


def write_people(folder: Path, people: Iterable[tuple[Sequence[Example], Sequence[Example]]]) -> None:
    """Writes a table of people, each by their examples to learn from and the held-out ones.

    Raises:
        ExampleError: Somebody's examples cannot be used, there is nobody, or the folder cannot be written.
    """
    with TableWriter(folder) as writer:
        for support, heldout in people:
            writer.add(support, heldout)


def _new_file(path: Path, data: bytes = b"") -> None:
    """Makes a new file in place of what a writer that was killed has left."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)


def _new_database(path: Path) -> sqlite3.Connection:
    """Returns a new database with an empty table, in a transaction that is never taken back.

    There is no journal: a file that is not finished is taken away.
    """
    _new_file(path)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for words in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", _TABLE, "BEGIN"):
            connection.execute(words)
    except BaseException:
        connection.close()
        path.unlink(missing_ok=True)
        raise
    return connection


def _to_disk(path: Path) -> int:
    """Waits until a file is on the disk, and returns its length."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return os.fstat(stream.fileno()).st_size
