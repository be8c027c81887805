"""Learning under way and what texts were read as: the rows of a store that can be made anew, sealed like all.

These are parts of `Store`'s methods, which give the transaction around them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from umbel.device_client.vault.sealing import Sealer
from umbel.shared.errors import StoreError

ABOUT = ""
"""The part that says what a run is of."""

RUN, HOLDER = "run", "holder"
"""What it has of itself: its number, which its parts are bound to, and who goes on with it at the moment."""

_MOST_READ_BYTES = 64 << 20


@final
@dataclass(frozen=True, slots=True)
class KeptRun:
    """A learning that was stopped: what it is of, and the parts of its state, left out of `repr`."""

    about: Mapping[str, Any]
    parts: Mapping[str, bytes] = field(repr=False)


@final
class Runs:
    """The runs and readings of one store, within the transaction that is open."""

    def __init__(self, connection: sqlite3.Connection, sealer: Sealer):
        self._connection = connection
        self._sealer = sealer

    def begin(self, release: str, about: Mapping[str, Any]) -> None:
        """Makes a run of a release in place of another one; `about` has its number."""
        self.drop(release)
        self._put(release, str(about[RUN]), ABOUT, json.dumps(dict(about)).encode())

    def put(
        self, release: str, holder: str, about: Mapping[str, Any], parts: Mapping[str, bytes | None]
    ) -> None:
        """Keeps the parts of a run that have changed; what is None is gone.

        Raises:
            StoreError: Somebody else than `holder` has it now, or it is gone.
        """
        held = self.about(release)
        if held is None or held[HOLDER] != holder:
            raise StoreError(
                "this learning was not kept: another one has begun, or ended, meanwhile",
                hint="Learn again: umbel device learn.",
            )
        run = str(about[RUN])
        self._put(release, run, ABOUT, json.dumps(dict(about)).encode())
        for part, data in parts.items():
            if data is None:
                self._connection.execute("DELETE FROM runs WHERE (release, part) = (?, ?)", (release, part))
            else:
                self._put(release, run, part, data)

    def _put(self, release: str, run: str, part: str, data: bytes) -> None:
        place = _place(release, run if part != ABOUT else "", part)
        row = (release, part, self._sealer.seal(data, place))
        self._connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", row)

    def about(self, release: str) -> dict[str, Any] | None:
        """Returns what the run of a release is of; None if there is none."""
        row = self._connection.execute(
            "SELECT sealed FROM runs WHERE (release, part) = (?, ?)", (release, ABOUT)
        ).fetchone()
        if row is None:
            return None
        return dict(json.loads(self._sealer.open(row[0], _place(release, "", ABOUT))))

    def run(self, release: str) -> KeptRun | None:
        """Returns the run of a release, if there is one."""
        about = self.about(release)
        if about is None:
            return None
        rows = self._connection.execute(
            "SELECT part, sealed FROM runs WHERE release = ? AND part != ?", (release, ABOUT)
        ).fetchall()
        run = str(about[RUN])
        return KeptRun(about, {p: self._sealer.open(data, _place(release, run, p)) for p, data in rows})

    def releases(self) -> set[str]:
        """Returns the releases that have a run."""
        return {row[0] for row in self._connection.execute("SELECT DISTINCT release FROM runs")}

    def drop(self, release: str | None = None) -> int:
        """Erases the run of a release, or all; returns how many there were."""
        where, own = ("", ()) if release is None else (" WHERE release = ?", (release,))
        held = self._connection.execute(f"SELECT COUNT(DISTINCT release) FROM runs{where}", own).fetchone()
        self._connection.execute(f"DELETE FROM runs{where}", own)
        return int(held[0])

    def put_readings(self, reader: str, found: Mapping[int, bytes]) -> bool:
        """Keeps what entries were read as, those by other readers no longer; False: it would be too much."""
        self._connection.execute("DELETE FROM readings WHERE reader != ?", (reader,))
        held = self._connection.execute("SELECT TOTAL(LENGTH(sealed)) FROM readings").fetchone()[0]
        if held + sum(map(len, found.values())) > _MOST_READ_BYTES:
            return False
        rows = [(n, reader, self._sealer.seal(data, _read_place(n, reader))) for n, data in found.items()]
        self._connection.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?)", rows)
        return True

    def readings(self, reader: str) -> dict[int, bytes]:
        """Returns what entries were read as by a reader, by their number."""
        rows = self._connection.execute(
            "SELECT entry, sealed FROM readings WHERE reader = ?", (reader,)
        ).fetchall()
        return {number: self._sealer.open(data, _read_place(number, reader)) for number, data in rows}

    def drop_reading(self, entry: int) -> int:
        """Erases what an entry was read as; returns how many readings there were."""
        return self._connection.execute("DELETE FROM readings WHERE entry = ?", (entry,)).rowcount


def _place(release: str, run: str, part: str) -> str:
    return f"runs/{release}/{run}/{part}"


def _read_place(entry: int, reader: str) -> str:
    return f"readings/{reader}/{entry}"
