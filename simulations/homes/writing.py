"""Writes a table of people as they come: no more of them is held than a row group has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, final

import numpy as np

from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example, checked_example
from umbel.shared.files import sole_use, sync_folder
from umbel.simulations.homes.table import COLUMNS, FILE, MARK, MOST_PEOPLE, described, parquet_modules

GROUP_ROWS = 4096
"""Rows of a row group.

All of a group are read for one of its people, in 0.4 ms; and a reader holds 5 kB for each group.
"""
_UNFINISHED, _MARK_UNFINISHED = ".examples.unfinished", ".people.unfinished"
_KEPT = ("profiles-*.table", "read-*.table")
OWN = (MARK, FILE, _UNFINISHED, _MARK_UNFINISHED, *_KEPT)
"""What the files in a table's folder are called, those of one that was not written to its end, too."""
_MOST_PROBLEMS = 1000


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
            MissingExtraError: pyarrow is not installed.
        """
        self.folder, self.people, self.examples = folder, 0, 0
        self._pyarrow, parquet = parquet_modules()
        self.schema = self._pyarrow.schema(
            [(name, self._pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()]
        )
        self._waiting: list[dict[str, Any]] = []
        self._problems: list[str] = []
        self._alone, self._made = ExitStack(), not folder.exists()
        try:
            self._alone.enter_context(sole_use(folder))
            self._stream = _new_file(folder / _UNFINISHED)
        except OSError as error:
            self._let_go()
            raise _cannot(folder, error) from None
        self._writer = parquet.ParquetWriter(
            self._stream, self.schema, compression="lz4", use_dictionary=["user", "label"],
            write_statistics=["person"], write_page_checksum=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as failed:
            raise _cannot(self.folder, failed) from None
        finally:
            with suppress(OSError, self._pyarrow.ArrowException):
                self._writer.close()
            with suppress(OSError):
                self._stream.close()
            for left in (_UNFINISHED, _MARK_UNFINISHED):
                (self.folder / left).unlink(missing_ok=True)
            self._let_go()

    def _let_go(self) -> None:
        """Lets others write here; a folder that was made in vain is removed."""
        self._alone.close()
        if self._made:
            with suppress(OSError):  # the table is in it
                self.folder.rmdir()

    def add(self, support: Sequence[Example], heldout: Sequence[Example] = ()) -> None:
        """Adds the next person; what is wrong with their examples is told at the end, for all people.

        Args:
            support: Their examples to learn from.
            heldout: Those from which nothing is learned.
        """
        for number, example in enumerate((*support, *heldout)):
            row: dict[str, Any] = {name: getattr(example, name) for name in ("user", "text", "label", "time")}
            place = f"person {self.people:06d}, example {number + 1}"
            if checked_example(place, row, None, None, self._problems) is not None:
                self._waiting.append({**row, "person": self.people, "heldout": number >= len(support)})
        self.people += 1
        if len(self._waiting) >= GROUP_ROWS:
            self._flush()
        if len(self._problems) >= _MOST_PROBLEMS:
            self._refuse()

    def add_batch(self, batch: Any, people: int) -> None:
        """Adds the rows of the next `people` people, who count on from those that were added.

        Args:
            batch: A record batch of `COLUMNS`, sorted by person.
            people: How many people it is of.

        Raises:
            ExampleError: It has other columns, people or orders.
        """
        self._flush()
        persons = batch.column("person").to_numpy() if batch.schema.equals(self.schema) else np.array([-1])
        outside = len(persons) and not self.people <= persons[0] <= persons[-1] < self.people + people
        if outside or (np.diff(persons) < 0).any():
            problem = f"expected rows of people {self.people} to {self.people + people - 1}, sorted"
            raise ExampleError(f"{self.folder} was not written", [problem])
        self._written(batch)
        self.people += people

    def _flush(self) -> None:
        if self._waiting:
            self._written(self._pyarrow.RecordBatch.from_pylist(self._waiting, schema=self.schema))
            self._waiting = []

    def _written(self, batch: Any) -> None:
        if not batch.num_rows:
            return
        try:
            self._writer.write_batch(batch, row_group_size=GROUP_ROWS)
        except OSError as error:
            raise _cannot(self.folder, error) from None
        self.examples += batch.num_rows

    def _refuse(self) -> None:
        if not 1 <= self.people <= MOST_PEOPLE:
            self._problems.append(f"there are {self.people:,} people, expected 1 to {MOST_PEOPLE:,}")
        if self._problems:
            raise ExampleError(f"{self.folder} was not written", self._problems, "Mend these and try again.")

    def _finish(self) -> None:
        """Makes the table whole: the file of examples, and then what says that it is."""
        self._refuse()
        self._flush()
        self._writer.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._write_mark()
        # From here on only names change, for which a full disk has room.
        for old in (self.folder / MARK, *(path for kept in _KEPT for path in self.folder.glob(kept))):
            old.unlink(missing_ok=True)
        for unfinished, name in ((_UNFINISHED, FILE), (_MARK_UNFINISHED, MARK)):
            os.replace(self.folder / unfinished, self.folder / name)
        sync_folder(self.folder)

    def _write_mark(self) -> None:
        """Writes what says that the table is whole, under a name that does not say so yet."""
        told = described(self.people, self.examples, self.folder / _UNFINISHED)
        with _new_file(self.folder / _MARK_UNFINISHED) as stream:
            stream.write(told)
            stream.flush()
            os.fsync(stream.fileno())


def write_people(folder: Path, people: Iterable[tuple[Sequence[Example], Sequence[Example]]]) -> None:
    """Writes a table of people, each by their examples to learn from and the held-out ones.

    Raises:
        ExampleError: Somebody's examples cannot be used, there is nobody, or the folder cannot be written.
        MissingExtraError: pyarrow is not installed.
    """
    with TableWriter(folder) as writer:
        for support, heldout in people:
            writer.add(support, heldout)


def _new_file(path: Path) -> IO[bytes]:
    """Opens a new file in place of what a writer that was killed has left."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _cannot(folder: Path, error: OSError) -> ExampleError:
    return ExampleError(f"{folder} cannot be written", [error.strerror or type(error).__name__])
