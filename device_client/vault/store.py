"""The store: one SQLite file that holds what an owner entrusts to their device, sealed piece by piece."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, final

from umbel.device_client.vault.keys import KeyHolder, unwrap, wrap
from umbel.device_client.vault.runs import HOLDER, KeptRun, Runs
from umbel.device_client.vault.schema import VERSION, migrate, version_of
from umbel.device_client.vault.sealing import Sealer, new_key
from umbel.shared.checks import NestingError, parsed_json
from umbel.shared.errors import StoreError

_WAIT_SECONDS = 30.0
_PAUSE_SECONDS = 0.05
_TOTAL = "egress total"
CURRENT = "current"
"""Stands, in an export, for the state of the entries beside it."""

_HINT = "Check the permissions of its folder, and that there is room."
_HINTS = {
    sqlite3.SQLITE_FULL: "Nothing of this was kept, and nothing is lost. Free some space and try again.",
    sqlite3.SQLITE_BUSY: "Another umbel is writing to it. Try again when it has ended.",
    sqlite3.SQLITE_ERROR: "Something in it is not as umbel wrote it. Take it from a backup.",
}
_DAMAGED = "Take it from a backup, or begin anew and import an export of yours."

Event = Mapping[str, Any] | None
"""What the log says, with what it speaks of or not at all."""

Total = Callable[[Any, Mapping[str, Any]], Any]
"""What entries come to, one by one, as `Store.enter` says."""

Holders = Callable[[str, str], KeyHolder]
"""(kind of holder, the store's number) -> who holds the key."""


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """A text of the owner's. Text and label are left out of `repr`.

    Attributes:
        text: What they wrote or read.
        label: What they said of it; None if they have not.
        added: When it was entrusted, ISO 8601 in UTC.
        number: Its number in the store; it stays the same. 0 before it is in one.
    """

    text: str = field(repr=False)
    label: str | None = field(repr=False)
    added: str
    number: int = 0


@final
@dataclass(frozen=True, slots=True)
class Added:
    """What came of adding entries.

    Attributes:
        new: Texts that were not known.
        changed: Known texts that got another label.
        known: Texts that were known as they are.
        kept: Known texts that kept their label, and not the other one that came.
    """

    new: int
    changed: int
    known: int
    kept: int = 0


@final
@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased: entries with a label and without one, and what came of them.

    Attributes:
        examples: Texts that had a label.
        texts: Texts that had none.
        profiles: Profiles, of all releases: each was learned from all examples.
        runs: Learnings that were under way.
        readings: Notes of what texts had been read as.
    """

    examples: int = 0
    texts: int = 0
    profiles: int = 0
    runs: int = 0
    readings: int = 0


@final
@dataclass(frozen=True, slots=True)
class KeptProfile:
    """A profile and what is known of its learning.

    Attributes:
        packed: The profile's file, as `pack_profile` gives it; left out of `repr`.
        about: When and from how many examples it was learned, what it gained, and so on.
    """

    packed: bytes = field(repr=False)
    about: Mapping[str, Any]


@final
class Store:
    """One owner's examples, profiles and log.

    What a method has returned from is on the disk, and what it has not returned from is there wholly or not
    at all, whatever ends the process or the power. Several processes may use one store; who writes waits for
    the other.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        key: bytes,
        number: str,
        holder: KeyHolder,
        wrapped: Mapping[str, Any],
    ):
        self._connection = connection
        self._key = key
        self._wrapped = wrapped
        self._sealer = Sealer(key)
        self._holder = holder
        self._runs = Runs(connection, self._sealer)
        self.number = number

    @classmethod
    def create(
        cls,
        path: Path,
        kind: str,
        holders: Holders,
        settings: Mapping[str, Any] | None = None,
        event: Event = None,
    ) -> Store:
        """Makes a store.

        A file that an interrupted beginning has left is gone on with.

        Args:
            path: Its file; the folder is made for its owner alone.
            kind: Who holds its key: "file", "keyring" or "passphrase".
            holders: Gives the holder.
            settings: What it holds from the first moment on.
            event: What the log says of it.

        Raises:
            StoreError: There is one, its key cannot be kept, or the disk says no.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _explained(path):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = _connected(path)
            with _closed_on_error(connection), _transaction(connection):
                if version_of(connection):
                    raise taken_place(path)
                migrate(connection)
                number, key = secrets.token_hex(16), new_key()
                holder = holders(kind, number)
                kept = wrap(key, holder, number)
                rows = [("store", number.encode()), ("key", json.dumps(kept).encode())]
                connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
                store = cls(connection, key, number, holder, kept)
                for name, value in (settings or {}).items():
                    store._put_setting(name, value)
                store._put_event(event)
        return store

    @classmethod
    def open(cls, path: Path, holders: Holders) -> Store:
        """Opens a store.

        Raises:
            StoreError: There is none, it does not open with this key or passphrase, or it is damaged.
        """
        if not path.is_file() or not path.stat().st_size:
            raise _absent(path)
        with _explained(path):
            connection = _connected(path)
            with _closed_on_error(connection):
                if version_of(connection) != VERSION:
                    _update(connection, path)
                number, kept = _meta(connection, path)
                holder = holders(str(kept.get("holder")), number)
                return cls(connection, unwrap(kept, holder, number), number, holder, kept)

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def holder(self) -> str:
        """Who holds the key: "file", "keyring" or "passphrase"."""
        return self._holder.kind

    def add(
        self,
        entries: Sequence[Entry],
        profiles: Mapping[str, KeptProfile] | None = None,
        event: Event = None,
        *,
        relabel: bool = True,
    ) -> Added:
        """Adds entries, and profiles by release, all or none; a known text gets the new label, if any.

        Without `relabel` a text that has a label keeps it: which of two is newer is not known of an export.
        Profiles that were learned from just these entries (`CURRENT`) are so here, too, if nothing else is.
        """
        counts = {"new": 0, "changed": 0, "known": 0, "kept": 0}
        with self._writing():
            alone = self._connection.execute("SELECT COUNT(*) FROM entries").fetchone()[0] == 0
            for entry in entries:
                counts[self._put(entry, relabel)] += 1
            for release, kept in (profiles or {}).items():
                current = alone and kept.about["state"] == CURRENT
                about = {**kept.about, "state": self._state() if current else ""}
                self._put_profile(release, KeptProfile(kept.packed, about))
            self._put_event(event)
        return Added(**counts)

    def _put(self, entry: Entry, relabel: bool) -> str:
        mark = self._sealer.mark(entry.text.encode())
        found = self._connection.execute("SELECT id, sealed FROM entries WHERE mark = ?", (mark,)).fetchone()
        old = None if found is None else self._entry(found[0], mark, found[1])
        if old is not None and entry.label in (None, old.label):
            return "known"
        if old is not None and old.label is not None and not relabel:
            return "kept"
        row = {"text": entry.text, "label": entry.label, "added": entry.added if old is None else old.added}
        sealed = self._sealer.seal(json.dumps(row).encode(), f"entries/{mark.hex()}")
        labelled = entry.label is not None
        if old is None:
            self._connection.execute(
                "INSERT INTO entries (mark, labelled, sealed) VALUES (?, ?, ?)", (mark, labelled, sealed)
            )
            return "new"
        self._connection.execute(
            "UPDATE entries SET labelled = ?, sealed = ? WHERE id = ?", (labelled, sealed, old.number)
        )
        return "changed"

    def entries(self) -> list[Entry]:
        """Returns everything that was entrusted, in the order in which it was."""
        with self._reading():
            rows = self._connection.execute(
                "SELECT id, mark, sealed, labelled FROM entries ORDER BY id"
            ).fetchall()
        found = [self._entry(*row[:3]) for row in rows]
        if any(row[3] != (own.label is not None) for row, own in zip(rows, found, strict=True)):
            raise StoreError("the store is damaged", ["its count of examples is not right"], _DAMAGED)
        return found

    def snapshot(self) -> tuple[list[Entry], dict[str, KeptProfile]]:
        """Returns entries, and profiles by release, of one moment, whatever other processes do.

        The state of a profile that was learned from just these entries is `CURRENT`, and others' is empty.
        """
        with _explained(None), _transaction(self._connection, "BEGIN"):
            entries, state, profiles = self.entries(), self._state(), self._profiles(None)
        told = {
            name: KeptProfile(
                kept.packed, {**kept.about, "state": CURRENT if kept.about["state"] == state else ""}
            )
            for name, kept in profiles.items()
        }
        return entries, told

    def first_added(self) -> str | None:
        """Returns when the oldest entry was entrusted; None if there is none."""
        with self._reading():
            row = self._connection.execute(
                "SELECT id, mark, sealed FROM entries ORDER BY id LIMIT 1"
            ).fetchone()
        return None if row is None else self._entry(*row).added

    def counts(self) -> tuple[int, int]:
        """Returns how many entries have a label, and how many have none; nothing is opened for it."""
        with self._reading():
            row = self._connection.execute("SELECT TOTAL(labelled), COUNT(*) FROM entries").fetchone()
        labelled = _whole(row[0])
        return labelled, int(row[1]) - labelled

    def state(self) -> str:
        """Returns a hash of all entries, by which one sees whether a profile was learned from these."""
        with self._reading():
            return self._state()

    def _state(self) -> str:
        rows = self._connection.execute("SELECT mark, sealed FROM entries ORDER BY id").fetchall()
        return self._sealer.mark(repr(rows).encode()).hex()

    def erasures(self) -> int:
        """Returns how often something was erased: what is learned meanwhile must not be kept."""
        with self._reading():
            return self._erasures()

    def _erasures(self) -> int:
        row = self._connection.execute("SELECT value FROM meta WHERE name = 'erasures'").fetchone()
        return 0 if row is None else _whole(row[0])

    def remove(self, numbers: Sequence[int], event: Event = None) -> Erased:
        """Erases entries by number, and every profile and run, for they were learned from them.

        Args:
            numbers: Which ones; numbers that are no entry's are passed over.
            event: What the log says of it, beside what was erased.

        Raises:
            StoreError: It cannot be written; or it is erased, but its bytes are not overwritten yet.
        """
        with self._writing():
            kinds = [kind for number in numbers if (kind := self._remove(number)) is not None]
            found = Erased()
            if kinds:
                labelled, readings = (sum(kind[place] for kind in kinds) for place in range(2))
                profiles = self._connection.execute("DELETE FROM profiles").rowcount
                found = Erased(labelled, len(kinds) - labelled, profiles, self._runs.drop(), readings)
                count = self._erasures() + 1
                self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('erasures', ?)", (count,))
                self._put_event(None if event is None else {**event, **asdict(found)})
        # Where nothing was erased now, one before may have left something; who still reads is no error then.
        with nullcontext() if kinds else suppress(StoreError):
            self._scrub()
        return found

    def _remove(self, number: int) -> tuple[int, int] | None:
        """Returns whether the entry had a label, and its readings; None if there is none."""
        row = self._connection.execute("SELECT labelled FROM entries WHERE id = ?", (number,)).fetchone()
        if row is None:
            return None
        self._connection.execute("DELETE FROM entries WHERE id = ?", (number,))
        return int(row[0]), self._runs.drop_reading(number)

    def save_profile(
        self,
        release: str,
        kept: KeptProfile,
        erasures: int | None = None,
        event: Event = None,
        *,
        staying: Sequence[str] = (),
        ends_run: bool = False,
    ) -> None:
        """Keeps the profile for a release in place of an older one.

        Args:
            release: The release's id.
            kept: The profile.
            erasures: What `erasures` said before it was learned; None: nothing was learned from entries.
            event: What the log says of it.
            staying: An older one that was made in one of these ways stays instead.
            ends_run: Whether the release's run ends with it.

        Raises:
            StoreError: Something was erased meanwhile, from which it may have been learned; or see `add`.
        """
        with self._writing():
            self._check_erasures(erasures)
            old = self._profiles(release).get(release) if staying else None
            if old is None or old.about.get("how") not in staying:
                self._put_profile(release, kept)
            if ends_run:
                self._runs.drop(release)
            self._put_event(event)

    def switch(
        self,
        settings: Mapping[str, Any],
        profiles: Mapping[str, KeptProfile],
        event: Event = None,
        *,
        keep: Collection[str] | None = None,
        erasures: int | None = None,
    ) -> None:
        """Keeps settings and profiles, and drops what is of releases that are no longer here, all at once.

        Args:
            settings: What is kept under which name.
            profiles: New profiles by release.
            event: What the log says of it.
            keep: Releases whose profiles and learning stay, if they have one; None: all.
            erasures: What `erasures` said before the profiles were learned; None: nothing was learned.

        Raises:
            StoreError: As in `save_profile`; then nothing is changed.
        """
        with self._writing():
            self._check_erasures(erasures)
            for release, kept in profiles.items():
                self._put_profile(release, kept)
            for (release,) in self._connection.execute("SELECT release FROM profiles").fetchall():
                if keep is not None and release not in keep:
                    self._connection.execute("DELETE FROM profiles WHERE release = ?", (release,))
            for release in () if keep is None else self._runs.releases() - set(keep):
                self._runs.drop(release)
            for name, value in settings.items():
                self._put_setting(name, value)
            self._put_event(event)

    def _check_erasures(self, erasures: int | None) -> None:
        if erasures is not None and self._erasures() != erasures:
            raise StoreError(
                "the profile was not kept: some of what it was learned from has been forgotten",
                hint="Learn again from what is left: umbel device learn.",
            )

    def keep_run(
        self,
        release: str,
        about: Mapping[str, Any],
        parts: Mapping[str, bytes | None],
        erasures: int,
        holder: str | None = None,
        event: Event = None,
    ) -> None:
        """Keeps what has changed of a release's learning, wholly or not at all; what is None is gone.

        Args:
            release: The release's id.
            about: What it is of, how far it is, its number (`RUN`), and who has it (`HOLDER`).
            parts: Changed parts of its state.
            erasures: What `erasures` said before it began.
            holder: Who had it last; None: it begins, in place of another one.
            event: What the log says of it.

        Raises:
            StoreError: Something was erased meanwhile, or somebody else goes on with it; or see `add`.
        """
        with self._writing():
            self._check_erasures(erasures)
            if holder is None:
                self._runs.begin(release, about)
                holder = str(about[HOLDER])
            self._runs.put(release, holder, about, parts)
            self._put_event(event)

    def run(self, release: str) -> KeptRun | None:
        """Returns a release's learning that was stopped, if there is one."""
        with self._reading():
            return self._runs.run(release)

    def run_about(self, release: str) -> dict[str, Any] | None:
        """Returns what a release's learning is of that was stopped, and how far it is."""
        with self._reading():
            return self._runs.about(release)

    def keep_readings(self, reader: str, found: Mapping[int, bytes], erasures: int) -> bool:
        """Keeps what entries were read as, by number, and forgets what others read; False: it is too much.

        Raises:
            StoreError: Something was erased since `erasures` was asked for; or see `add`.
        """
        with self._writing():
            self._check_erasures(erasures)
            return self._runs.put_readings(reader, found)

    def readings(self, reader: str) -> dict[int, bytes]:
        """Returns what entries were read as, by their number."""
        with self._reading():
            return self._runs.readings(reader)

    def _put_profile(self, release: str, kept: KeptProfile) -> None:
        piece = json.dumps({"about": dict(kept.about), "packed": kept.packed.hex()}).encode()
        sealed = self._sealer.seal(piece, f"profiles/{release}")
        self._connection.execute("INSERT OR REPLACE INTO profiles VALUES (?, ?)", (release, sealed))

    def profile(self, release: str) -> KeptProfile | None:
        """Returns the profile for a release, if there is one."""
        return self.profiles(release).get(release)

    def profiles(self, release: str | None = None) -> dict[str, KeptProfile]:
        """Returns all profiles by release, or one."""
        with self._reading():
            return self._profiles(release)

    def _profiles(self, release: str | None) -> dict[str, KeptProfile]:
        rows = self._connection.execute("SELECT release, sealed FROM profiles ORDER BY release").fetchall()
        # All are opened: one whose name was changed would be missing, and nothing would be said of it.
        found = {name: self._kept_profile(name, sealed) for name, sealed in rows}
        return {name: kept for name, kept in found.items() if release in (None, name)}

    def note(self, event: Mapping[str, Any]) -> None:
        """Writes an event into the log."""
        with self._writing():
            self._put_event(event)

    def _put_event(self, event: Event) -> None:
        if event is not None:
            self._append("log", event)

    def _append(self, table: str, row: Mapping[str, Any]) -> None:
        found = self._connection.execute(f"SELECT COALESCE(MAX(id), 0) + 1 FROM {table}").fetchone()
        sealed = self._sealer.seal(json.dumps(dict(row)).encode(), f"{table}/{found[0]}")
        self._connection.execute(f"INSERT INTO {table} VALUES (?, ?)", (found[0], sealed))

    def log(self, last: int = -1) -> list[dict[str, Any]]:
        """Returns the log, oldest first; all of it, or so many of its last events."""
        return self._rows("log", last)

    def egress(self, last: int = -1) -> list[dict[str, Any]]:
        """Returns the log of what left and what was refused, oldest first; all, or so many of its last."""
        return self._rows("egress", last)

    def egress_total(self, add: Total) -> Any:
        """Returns what the entries of that log come to; None if there are none. `add` as in `enter`."""
        with self._reading():
            return self._egress_total(add)

    def _egress_total(self, add: Total) -> Any:
        kept = self._setting(_TOTAL)
        return reduce(add, self._rows("egress"), None) if kept is None else kept  # an older umbel kept none

    def _rows(self, table: str, last: int = -1) -> list[dict[str, Any]]:
        query = f"SELECT id, sealed FROM {table} ORDER BY id DESC LIMIT ?"
        with self._reading():
            rows = self._connection.execute(query, (last,)).fetchall()
        return [self._opened(sealed, f"{table}/{number}") for number, sealed in reversed(rows)]

    def enter(
        self, name: str, judge: Callable[[Any, int], tuple[Any, Mapping[str, Any]]], add: Total
    ) -> Mapping[str, Any]:
        """Writes an entry of the egress log, and what a setting is after it, in one transaction.

        Args:
            name: The setting's.
            judge: (its value or None, the count of erasures) -> (its new value, the entry).
            add: (what all entries before come to or None, the entry) -> what they come to with it.

        Returns:
            The entry.
        """
        with self._writing():
            old = self._setting(name)
            new, entry = judge(old, self._erasures())
            if new != old:
                self._put_setting(name, new)
            total = add(self._egress_total(add), entry)
            self._append("egress", entry)
            self._put_setting(_TOTAL, total)
        return entry

    def setting(self, name: str) -> Any:
        """Returns what was kept under a name; None if nothing was."""
        with self._reading():
            return self._setting(name)

    def _setting(self, name: str) -> Any:
        row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (f"own {name}",)).fetchone()
        return None if row is None else self._opened(row[0], f"settings/{name}")

    def first_setting(self, name: str, value: Any) -> Any:
        """Keeps a value under a name unless one is there already, and returns the one that is kept."""
        found = self.setting(name)
        if found is not None:
            return found
        with self._writing():
            found = self._setting(name)
            if found is None:
                self._put_setting(name, value)
        return value if found is None else found

    def _put_setting(self, name: str, value: Any) -> None:
        sealed = self._sealer.seal(json.dumps(value).encode(), f"settings/{name}")
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"own {name}", sealed))

    def check_holder(self) -> None:
        """Checks that the key is held as it was when this store was opened.

        Raises:
            StoreError: Another process has given it to another holder, or has taken another passphrase.
        """
        with self._reading():
            row = self._connection.execute("SELECT value FROM meta WHERE name = 'key'").fetchone()
        try:
            same = row is not None and parsed_json(row[0]) == self._wrapped
        except (ValueError, TypeError, NestingError):
            same = False
        if not same:
            raise StoreError(
                "another process has changed who holds the store's key", hint="Open the store again."
            )

    def rekey(self, holder: KeyHolder, event: Event = None) -> None:
        """Gives the key to another holder, or takes another passphrase; nothing is sealed again.

        Raises:
            StoreError: The holder cannot keep it, the store cannot be written, or `check_holder` says no: the
                old one still opens it.
        """
        self.check_holder()
        new = wrap(self._key, holder, self.number)  # asks, so nobody is kept waiting
        with self._writing():
            self.check_holder()
            self._connection.execute(
                "UPDATE meta SET value = ? WHERE name = 'key'", (json.dumps(new).encode(),)
            )
            self._put_event(event)
        old, self._holder, self._wrapped = self._holder, holder, new
        if holder.kind != old.kind:
            old.erase()
        self._scrub()

    def _scrub(self) -> None:
        """Leaves no erased piece in the write-ahead log; what the file freed, SQLite overwrote."""
        until = time.monotonic() + _WAIT_SECONDS / 2
        try:
            # SQLite itself waits for readers and writers, but not for another process that does the same.
            while self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > until:
                    raise _unscrubbed("another process is still reading what was there before")
                time.sleep(_PAUSE_SECONDS)
        except sqlite3.Error as error:
            raise _unscrubbed(_said(error)) from None

    def _entry(self, number: int, mark: object, sealed: object) -> Entry:
        if not isinstance(mark, bytes):
            raise StoreError("the store is damaged", ["a mark is no bytes"], _DAMAGED)
        row = self._opened(sealed, f"entries/{mark.hex()}")
        return Entry(row["text"], row["label"], row["added"], number)

    def _kept_profile(self, release: str, sealed: object) -> KeptProfile:
        row = self._opened(sealed, f"profiles/{release}")
        return KeptProfile(bytes.fromhex(row["packed"]), row["about"])

    def _opened(self, sealed: object, place: str) -> Any:
        if not isinstance(sealed, bytes):
            raise StoreError("the store is damaged", ["a sealed piece is no bytes"], _DAMAGED)
        return json.loads(self._sealer.open(sealed, place))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _explained(None), _transaction(self._connection):
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with _explained(None):
            yield


def is_taken(path: Path) -> bool:
    """Says whether a store, or something that is none, lies where one is to be made.

    What an interrupted beginning has left does not count: a file that has no tables yet.

    Raises:
        StoreError: It cannot be read.
    """
    if not path.is_file() or not path.stat().st_size:
        return False
    with _explained(path), closing(_connected(path)) as connection:
        return version_of(connection) > 0


def taken_place(path: Path) -> StoreError:
    """Returns what is said where a store is that is to be made."""
    return StoreError(f"there is a store at {path}", hint="Use it, or name another home: --home FOLDER.")


def _unscrubbed(why: str) -> StoreError:
    return StoreError(
        "it is done, but what was erased may still lie, sealed, in the store's write-ahead log",
        [why],
        "The next command that erases overwrites it. Free some space if the disk is full.",
    )


def _absent(path: Path) -> StoreError:
    return StoreError(
        f"there is no store at {path}", hint="Begin with: umbel device enroll --release RELEASE."
    )


def destroy(path: Path, holders: Holders) -> None:
    """Erases a store for good: first its key, so that nothing opens any more, then its files.

    It need not open: the passphrase may be forgotten, the key lost, the file damaged. Stopped in between, it
    is gone on with by the same call.

    Raises:
        StoreError: There is none, its key cannot be erased, or a file cannot be removed.
    """
    files = [path.with_name(path.name + ending) for ending in ("-wal", "-shm", "")]
    if not any(file.exists() for file in files):
        raise StoreError(f"there is no store at {path}")
    number = kept = None
    with suppress(StoreError, sqlite3.Error), closing(_connected(path)) as connection:
        number, kept = _meta(connection, path)
    if number is not None and kept is not None and kept.get("holder") in ("keyring", "passphrase"):
        holders(str(kept["holder"]), number).erase()
    holders("file", number or "").erase()  # one may lie there from before, whoever holds the key now
    with _explained(path):
        for file in files:
            file.unlink(missing_ok=True)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
    with _closed_on_error(connection):
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",  # what was acknowledged outlives a power loss
            "secure_delete = ON",
            "trusted_schema = OFF",
            "cell_size_check = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def _meta(connection: sqlite3.Connection, path: Path) -> tuple[str, dict[str, Any]]:
    rows = dict(connection.execute("SELECT name, value FROM meta WHERE name IN ('store', 'key')").fetchall())
    try:
        number, kept = memoryview(rows["store"]).tobytes().decode(), parsed_json(rows["key"])
    except (KeyError, ValueError, TypeError, NestingError):
        raise StoreError(f"the store {path} is damaged", ["its key is missing"], _DAMAGED) from None
    if not isinstance(kept, dict):
        raise StoreError(f"the store {path} is damaged", ["its key is malformed"], _DAMAGED)
    return number, kept


def _whole(cell: object) -> int:
    """Returns a count that stands in a cell."""
    if not isinstance(cell, int | float) or not 0 <= cell < 1 << 53:
        raise StoreError("the store is damaged", ["a count is no whole number"], _DAMAGED)
    return int(cell)


def _update(connection: sqlite3.Connection, path: Path) -> None:
    """Brings a store of an older version to this one."""
    if version_of(connection) == 0:
        raise _absent(path)
    with _transaction(connection):
        migrate(connection)


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextmanager
def _explained(path: Path | None) -> Iterator[None]:
    """Turns what SQLite and the system say into one kind of error; their words name no content."""
    where = "the store" if path is None else f"the store {path}"
    try:
        yield
    except sqlite3.ProgrammingError:
        raise StoreError(f"{where} is closed, or is used from another thread than it was opened in") from None
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise StoreError(f"{where} cannot be used", [_said(error)], _HINTS.get(code, _HINT)) from None
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{where} is damaged", [_said(error)], _DAMAGED) from None
    except UnicodeDecodeError:  # SQLite says what is wrong in the file's own words
        raise StoreError(f"{where} is damaged", ["a name in it is no text"], _DAMAGED) from None
    except OSError as error:
        raise StoreError(
            f"{where} cannot be used",
            [error.strerror or type(error).__name__],
            "Check the folder's permissions.",
        ) from None


def _said(error: sqlite3.Error) -> str:
    """Returns SQLite's name for an error; its words could quote what a cell holds."""
    return str(getattr(error, "sqlite_errorname", "") or type(error).__name__)
