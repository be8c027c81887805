"""The store's tables, and how a store of an older version becomes one of this."""

from __future__ import annotations

import sqlite3

from umbel.shared.errors import StoreError

_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        mark BLOB NOT NULL UNIQUE,
        labelled INTEGER NOT NULL,
        sealed BLOB NOT NULL
    );
    CREATE TABLE profiles (release TEXT PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, sealed BLOB NOT NULL);
    """,
    "CREATE TABLE egress (id INTEGER PRIMARY KEY AUTOINCREMENT, sealed BLOB NOT NULL);",
    """
    CREATE TABLE runs (release TEXT, part TEXT, sealed BLOB NOT NULL, PRIMARY KEY (release, part));
    CREATE TABLE readings (entry INTEGER, reader TEXT, sealed BLOB NOT NULL, PRIMARY KEY (entry, reader));
    """,
)
"""What leads from each version to the next one; the first makes the tables."""

VERSION = len(_MIGRATIONS)


def version_of(connection: sqlite3.Connection) -> int:
    """Returns a store's version; 0 before it has tables."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Brings the tables to this version, within the transaction that is open.

    Raises:
        StoreError: A newer umbel made the store.
    """
    found = version_of(connection)
    if found > VERSION:
        raise StoreError(
            "a newer umbel made this store",
            [f"it has version {found}, this umbel knows {VERSION}"],
            "Install that version of umbel or a newer one.",
        )
    for script in _MIGRATIONS[found:]:
        for statement in filter(str.strip, script.split(";")):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
