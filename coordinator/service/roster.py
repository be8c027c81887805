"""Devices that may take part, and one-time codes by which further ones are taken in: one SQLite file.

A code is kept as a hash only: it is random with 128 bits, so the hash needs no salt and cannot be guessed.
`enroll` writes here while `serve` runs; SQLite keeps the two apart.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, final

from umbel.shared.errors import ConfigError

CODE_BYTES = 16
_VERSION = 1
_WAIT_S = 10.0
_NAME_DIGITS = 12
_KEPT = timedelta(days=30)  # so long a device is told that its code has expired, not that there is none
_TABLES = """
CREATE TABLE codes (
    hash BLOB PRIMARY KEY, made TEXT NOT NULL, expires TEXT NOT NULL, used TEXT, device BLOB
) WITHOUT ROWID;
CREATE TABLE devices (
    key BLOB PRIMARY KEY, joined TEXT NOT NULL, seen TEXT, number INTEGER UNIQUE, barred TEXT
) WITHOUT ROWID;
"""


class CodeError(ConfigError):
    """A code takes no device in.

    Attributes:
        why: "unknown", "expired", "used" (by another device), or "barred" (the device is shut out).
    """

    def __init__(self, why: str):
        super().__init__(
            f"the code takes no device in: {why}", hint="Make another: umbel coordinator enroll."
        )
        self.why = why


@final
@dataclass(frozen=True, slots=True)
class Known:
    """A device that was taken in.

    Attributes:
        key: Its public key (PEM).
        joined: When it was taken in.
        seen: When it was last heard of; None if never since.
        barred: When the operator has shut it out; None if not.
        number: By which rounds sample it; None until it has told it.
    """

    key: bytes
    joined: str
    seen: str | None
    barred: str | None
    number: int | None


@final
class Roster:
    """The file of devices and codes."""

    def __init__(self, connection: sqlite3.Connection, path: Path):
        self._connection, self._path = connection, path
        self._alone = threading.Lock()  # one connection has one transaction, whichever thread began it

    @classmethod
    def open(cls, path: Path) -> Roster:
        """Opens the file; makes it if it is missing.

        Raises:
            ConfigError: It cannot be used.
        """
        with _explained(path):
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            roster = cls(connection, path)
            roster._prepare()
        return roster

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def __enter__(self) -> Roster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def new_codes(self, count: int, life: timedelta, now: datetime | None = None) -> list[str]:
        """Makes codes and opens them."""
        codes = fresh_codes(count)
        self.open_codes(codes, life, now)
        return codes

    def open_codes(self, codes: Sequence[str], life: timedelta, now: datetime | None = None) -> None:
        """Lets codes take devices in for a while, and forgets those that expired unused long ago."""
        at = now or _now()
        rows = [(_hash(code), _text(at), _text(at + life)) for code in codes]
        with self._transaction() as connection:
            connection.execute("DELETE FROM codes WHERE used IS NULL AND expires <= ?", (_text(at - _KEPT),))
            connection.executemany("INSERT INTO codes (hash, made, expires) VALUES (?, ?, ?)", rows)

    def redeem(self, code: str, key: bytes, now: datetime | None = None) -> bool:
        """Takes a device in for a code.

        The same device may ask again with the same code: its first answer may have been lost.

        Args:
            code: The code.
            key: The device's public key (PEM).
            now: The time.

        Returns:
            Whether the device is new.

        Raises:
            CodeError: It is unknown, has expired, or was used by another device; or this one is shut out.
        """
        at, hashed = now or _now(), _hash(code)
        with self._transaction() as connection:
            if connection.execute(
                "SELECT 1 FROM devices WHERE key = ? AND barred IS NOT NULL", (key,)
            ).fetchone():
                raise CodeError("barred")
            row = connection.execute("SELECT expires, device FROM codes WHERE hash = ?", (hashed,)).fetchone()
            if row is None:
                raise CodeError("unknown")
            expires, device = row
            if device == key:
                return False
            if device is not None:
                raise CodeError("used")
            if expires <= _text(at):
                raise CodeError("expired")
            connection.execute(
                "UPDATE codes SET used = ?, device = ? WHERE hash = ?", (_text(at), key, hashed)
            )
            connection.execute(
                "INSERT INTO devices (key, joined) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, _text(at))
            )
        return True

    def devices(self) -> list[Known]:
        """Returns every device that was taken in, in the order of their joining."""
        found = self._read("SELECT key, joined, seen, barred, number FROM devices ORDER BY joined, key")
        return [Known(*row) for row in found]

    def codes(self, now: datetime | None = None) -> dict[str, int]:
        """Returns how many codes are open, used and expired."""
        ((used, expired, every),) = self._read(
            "SELECT count(used), coalesce(sum(used IS NULL AND expires <= ?), 0), count(*) FROM codes",
            _text(now or _now()),
        )
        return {"open": every - used - expired, "used": used, "expired": expired}

    def heard(self, keys: list[bytes], now: datetime | None = None) -> None:
        """Notes that devices were heard of."""
        with self._transaction() as connection:
            rows = [(_text(now or _now()), key) for key in keys]
            connection.executemany("UPDATE devices SET seen = ? WHERE key = ?", rows)

    def claim(self, key: bytes, number: int) -> bool:
        """Binds the number that a device tells to its key, for good; says whether it may use that number."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE OR IGNORE devices SET number = ? WHERE key = ? AND number IS NULL", (number, key)
            )
            row = connection.execute("SELECT number FROM devices WHERE key = ?", (key,)).fetchone()
        return row is not None and row[0] == number

    def bar(self, key: bytes, now: datetime | None = None) -> bool:
        """Shuts a device out; says whether it was known and let in."""
        with self._transaction() as connection:
            found = connection.execute(
                "UPDATE devices SET barred = ? WHERE key = ? AND barred IS NULL", (_text(now or _now()), key)
            )
        return found.rowcount == 1

    def _prepare(self) -> None:
        if self._version() == 0:
            with self._transaction() as connection:
                if self._version() == 0:  # and nobody else has made them meanwhile
                    for statement in filter(str.strip, _TABLES.split(";")):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
        if self._version() > _VERSION:
            raise ConfigError(
                f"{self._path} was made by a newer umbel", hint="Install that version or a newer one."
            )

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _read(self, query: str, *values: object) -> list[Any]:
        """Reads without the lock for writing, so that it waits for nobody: one query sees one moment."""
        with self._alone, _explained(self._path):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._alone, _explained(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def fresh_codes(count: int) -> list[str]:
    """Returns codes that take nobody in before `Roster.open_codes`."""
    codes = [base64.b32encode(secrets.token_bytes(CODE_BYTES)) for _ in range(count)]
    return [code.decode().lower().rstrip("=") for code in codes]


def name_of(key: bytes) -> str:
    """Returns by what an operator knows a device: the first digits of its public key's hash."""
    return hashlib.sha256(key).hexdigest()[:_NAME_DIGITS]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what SQLite and the system say into an error that an operator can act on."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
        hint = "Another umbel is writing to it: try again." if busy else "Restore it from a backup."
        name = str(getattr(error, "sqlite_errorname", "") or type(error).__name__)
        raise ConfigError(f"{path} cannot be used", [name], hint) from None


def _hash(code: str) -> bytes:
    return hashlib.sha256(code.encode()).digest()


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")


def _now() -> datetime:
    return datetime.now(UTC)
