"""The store: what was acknowledged is there, what is private is sealed, what is erased is gone."""

import errno
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.device_client.vault import schema
from umbel.device_client.vault.keys import KeyFile, KeyHolder, Passphrase, wrap
from umbel.device_client.vault.portable import Exported, read_export, write_export
from umbel.device_client.vault.runs import KeptRun
from umbel.device_client.vault.sealing import Sealer, new_key
from umbel.device_client.vault.store import (
    Added,
    Entry,
    Erased,
    Holders,
    KeptProfile,
    Store,
    destroy,
    is_taken,
)
from umbel.shared.errors import StoreError
from umbel.shared.rng import generator

CANARY = "a canary sang in the mine at noon"
LABEL = "canary-label"
WORDS = "correct horse battery"
ABOUT = {"how": "learned", "examples": 3, "at": "2026-01-01T00:00:00+00:00", "state": ""}
PROFILE = KeptProfile(bytes(range(200)), ABOUT)


def keys(home: Path, words: str = WORDS) -> Holders:
    def holder(kind: str, number: str) -> KeyHolder:
        return KeyFile(home / "key") if kind == "file" else Passphrase(lambda: words)

    return holder


def made(home: Path, kind: str = "file") -> Store:
    return Store.create(home / "store.sqlite", kind, keys(home), {"release": "first"})


def reopened(home: Path) -> Store:
    return Store.open(home / "store.sqlite", keys(home))


def entry(text: str, label: str | None = LABEL) -> Entry:
    return Entry(text, label, "2026-01-01T00:00:00+00:00")


def told(store: Store) -> list[tuple[str, str | None]]:
    return [(own.text, own.label) for own in store.entries()]


@pytest.mark.parametrize("kind", ["file", "passphrase"])
def test_everything_is_there_again(kind: str, tmp_path: Path) -> None:
    with made(tmp_path, kind) as store:
        assert store.add([entry("one"), entry("two", None)]) == Added(2, 0, 0)
        store.save_profile("r", PROFILE)
        store.note({"what": "learned"})
        store.switch({"x": [1]}, {})
        number, state = store.number, store.state()
    with reopened(tmp_path) as store:
        assert (store.number, store.holder, store.state()) == (number, kind, state)
        assert told(store) == [("one", LABEL), ("two", None)]
        assert store.counts() == (1, 1)
        assert store.profile("r") == PROFILE
        assert store.profile("s") is None
        assert store.log() == [{"what": "learned"}]
        assert (store.setting("release"), store.setting("x"), store.setting("y")) == ("first", [1], None)


def test_a_known_text_is_kept_once_and_takes_a_new_label(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one"), entry("two")])
        before = store.state()
        assert store.add([entry("one"), entry("two", None)]) == Added(0, 0, 2)
        assert store.state() == before
        assert store.add([entry("one", "other"), entry("three"), entry("three")]) == Added(1, 1, 1)
        assert store.state() != before
        assert told(store) == [("one", "other"), ("two", LABEL), ("three", LABEL)]


@given(
    rows=st.lists(st.tuples(st.text(min_size=1, max_size=5), st.sampled_from(["a", "b", None])), max_size=20)
)
@settings(max_examples=25, deadline=None)
def test_entries_are_those_of_a_plain_dictionary(
    rows: list[tuple[str, str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with made(tmp_path_factory.mktemp("home")) as store:
        plain: dict[str, str | None] = {}
        for text, label in rows:
            store.add([entry(text, label)])
            if label is not None or text not in plain:
                plain[text] = label
        assert told(store) == list(plain.items())
        assert store.counts()[0] == sum(label is not None for label in plain.values())


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with made(home) as store:
        store.add([entry("one")])
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in home.iterdir()}
    assert set(modes) >= {"store.sqlite", "store.sqlite-wal", "key"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["file", "passphrase"])
def test_no_file_holds_a_canary(kind: str, tmp_path: Path) -> None:
    canaries = [CANARY.encode(), CANARY.encode("utf-16-le"), LABEL.encode(), PROFILE.packed[:16]]
    canaries += [PROFILE.packed[:16].hex().encode(), WORDS.encode(), b"secret-event"]
    with made(tmp_path, kind) as store:
        store.add([entry(CANARY), *(entry(f"{CANARY} {n}") for n in range(50))])
        store.save_profile("r", PROFILE)
        store.note({"what": "secret-event"})
        _search(tmp_path, canaries)
        store.remove([1])
        write_export(
            tmp_path / "export", Exported(store.number, tuple(store.entries()), {"r": PROFILE}), words
        )
        _search(tmp_path, canaries)
    _search(tmp_path, canaries)


def words() -> str:
    return WORDS


def _search(folder: Path, canaries: Sequence[bytes]) -> None:
    for file in folder.rglob("*"):
        data = file.read_bytes()
        for canary in canaries:
            assert canary not in data, file.name


def test_what_is_forgotten_is_in_no_file_any_more(tmp_path: Path) -> None:
    """Not even sealed: the very bytes that held it are gone."""
    with made(tmp_path) as store:
        store.add([entry("one"), entry(CANARY), entry("three")])
        store.save_profile("r", PROFILE)
        with sqlite3.connect(tmp_path / "store.sqlite") as raw:
            sealed = [row[0] for row in raw.execute("SELECT sealed FROM entries WHERE id = 2")]
            sealed += [row[0] for row in raw.execute("SELECT sealed FROM profiles")]
        raw.close()
        assert len(sealed) == 2
        found = b"".join(file.read_bytes() for file in tmp_path.glob("store*"))
        assert all(piece[:40] in found for piece in sealed)
        assert store.remove([2, 99, 2]) == Erased(1, 0, 1)
        found = b"".join(file.read_bytes() for file in tmp_path.glob("store*"))
        assert not any(piece[:40] in found for piece in sealed)
        assert told(store) == [("one", LABEL), ("three", LABEL)]
        assert store.profiles() == {}


def test_what_a_reader_still_holds_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is erased, but not yet from the write-ahead log; where nothing was erased, that is no error."""
    monkeypatch.setattr("umbel.device_client.vault.store._WAIT_SECONDS", 0.2)
    with made(tmp_path) as store:
        store.add([entry("one"), entry(CANARY)])
        with closing(sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)) as raw:
            raw.execute("BEGIN")
            raw.execute("SELECT sealed FROM entries").fetchall()
            store.add([entry("three")])
            assert store.remove([99]) == Erased()
            with pytest.raises(StoreError, match="it is done, but") as caught:
                store.remove([2])
        assert caught.value.problems == ("another process is still reading what was there before",)
        assert told(store) == [("one", LABEL), ("three", LABEL)]
        store.remove([99])
        assert (tmp_path / "store.sqlite-wal").stat().st_size == 0


def test_a_snapshot_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forgotten while it is read is wholly in it: the entry, and the profile that came of it."""
    monkeypatch.setattr("umbel.device_client.vault.store._WAIT_SECONDS", 0.2)
    plain = Store.entries
    with made(tmp_path) as store, reopened(tmp_path) as other:
        store.add([entry("one"), entry(CANARY)])
        store.save_profile("r", KeptProfile(PROFILE.packed, {**ABOUT, "state": store.state()}))
        store.save_profile("old", PROFILE)

        def meanwhile(self: Store) -> list[Entry]:
            found = plain(self)
            if self is store:
                with suppress(StoreError):  # the snapshot is the reader that holds on
                    other.remove([2])
            return found

        monkeypatch.setattr(Store, "entries", meanwhile)
        entries, profiles = store.snapshot()
        assert [own.text for own in entries] == ["one", CANARY]
        assert {name: kept.about["state"] for name, kept in profiles.items()} == {"old": "", "r": "current"}
        monkeypatch.setattr(Store, "entries", plain)
        assert ([own.text for own in store.snapshot()[0]], store.snapshot()[1]) == (["one"], {})


def test_erased_for_good_even_if_it_does_not_open(tmp_path: Path) -> None:
    made(tmp_path).close()
    (tmp_path / "key").write_bytes(b"lost")
    with pytest.raises(StoreError):
        reopened(tmp_path)
    destroy(tmp_path / "store.sqlite", keys(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="no store"):
        destroy(tmp_path / "store.sqlite", keys(tmp_path))
    made(tmp_path).close()


def test_a_file_that_is_no_store_goes_with_its_key(tmp_path: Path) -> None:
    made(tmp_path).close()
    (tmp_path / "store.sqlite").write_bytes(b"garbage" * 1000)
    destroy(tmp_path / "store.sqlite", keys(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("column", ["sealed", "mark"])
@pytest.mark.parametrize("value", ["text", 5, None])
def test_cells_of_a_wrong_type_are_damage(column: str, value: object, tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one")])
    with sqlite3.connect(tmp_path / "store.sqlite") as raw:
        try:
            raw.execute(f"UPDATE entries SET {column} = ?", (value,))
        except sqlite3.IntegrityError:
            pytest.skip("the table refuses it")
    raw.close()
    with reopened(tmp_path) as store, pytest.raises(StoreError):
        store.entries()


@pytest.mark.parametrize("value", ["[" * 5000, "{", "[]", 2**40, b"\xff"])
@pytest.mark.parametrize("name", ["key", "store"])
def test_a_damaged_key_is_said(name: str, value: object, tmp_path: Path) -> None:
    made(tmp_path).close()
    with sqlite3.connect(tmp_path / "store.sqlite") as raw:
        raw.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))
    raw.close()
    with pytest.raises(StoreError):
        reopened(tmp_path)


@pytest.mark.parametrize("value", ["", "x", b"", float("inf"), -1, 2**63 - 1, 1e300])
def test_counts_that_are_none_are_damage(value: object, tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one")])
    with sqlite3.connect(tmp_path / "store.sqlite") as raw:
        raw.execute("INSERT OR REPLACE INTO meta VALUES ('erasures', ?)", (value,))
        raw.execute("UPDATE entries SET labelled = ?", (value,))
    raw.close()
    with reopened(tmp_path) as store:
        with pytest.raises(StoreError, match="damaged"):
            store.erasures()
        if not isinstance(value, str | bytes):  # SQLite counts words as 0
            with pytest.raises(StoreError, match="damaged"):
                store.counts()


def test_a_beginning_that_was_killed_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    assert not is_taken(path)
    path.touch()
    assert not is_taken(path)
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA journal_mode = WAL").fetchall()  # what is written first
    raw.close()
    assert path.stat().st_size > 0
    assert not is_taken(path)
    made(tmp_path).close()
    assert is_taken(path)


def test_a_closed_store_is_not_called_damaged(tmp_path: Path) -> None:
    store = made(tmp_path)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.entries()


def test_a_profile_that_knows_what_was_forgotten_is_not_kept(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one"), entry("two")])
        before = store.erasures()
        store.save_profile("r", PROFILE, before)
        store.remove([1], {"what": "forgot"})
        with pytest.raises(StoreError, match="forgotten"):
            store.save_profile("r", PROFILE, before)
        assert store.profiles() == {}
        store.save_profile("r", PROFILE, store.erasures(), {"what": "learned"})
        assert [row["what"] for row in store.log()] == ["forgot", "learned"]


def test_one_home_has_one_store(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one")])
    with pytest.raises(StoreError, match="there is a store"):
        made(tmp_path)
    with reopened(tmp_path) as store:
        assert told(store) == [("one", LABEL)]
    with pytest.raises(StoreError, match="no store"):
        reopened(tmp_path / "elsewhere")


def test_a_wrong_passphrase_changes_nothing(tmp_path: Path) -> None:
    with made(tmp_path, "passphrase") as store:
        store.add([entry("one")])
    before = (tmp_path / "store.sqlite").read_bytes()
    with pytest.raises(StoreError, match="passphrase is wrong"):
        Store.open(tmp_path / "store.sqlite", keys(tmp_path, "wrong horse battery"))
    assert (tmp_path / "store.sqlite").read_bytes() == before


def test_another_holder_takes_the_key_over(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one")])
        store.rekey(Passphrase(words))
        assert not (tmp_path / "key").exists()
        assert told(store) == [("one", LABEL)]
    with reopened(tmp_path) as store:
        assert (store.holder, told(store)) == ("passphrase", [("one", LABEL)])


def test_who_holds_the_key_is_changed_by_one_at_a_time(tmp_path: Path) -> None:
    """Who opened it before another changed the holder changes nothing, and makes no key."""
    with made(tmp_path) as store, reopened(tmp_path) as late:
        store.rekey(Passphrase(lambda: WORDS))
        with pytest.raises(StoreError, match="another process has changed who holds"):
            late.rekey(KeyFile(tmp_path / "key"))
        assert not (tmp_path / "key").exists()
    with reopened(tmp_path) as store:
        assert store.holder == "passphrase"


def test_a_holder_that_changes_while_another_is_asked(tmp_path: Path) -> None:
    with made(tmp_path) as store, reopened(tmp_path) as other:

        def ask() -> str:
            other.rekey(Passphrase(lambda: WORDS))
            return "another horse battery"

        with pytest.raises(StoreError, match="another process has changed who holds"):
            store.rekey(Passphrase(ask))
    with reopened(tmp_path) as store:
        assert store.holder == "passphrase"


@pytest.mark.parametrize("table", ["entries", "profiles", "log"])
def test_pieces_that_were_swapped_do_not_open(table: str, tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one"), entry("two")])
        store.save_profile("a", PROFILE)
        store.save_profile("b", PROFILE)
        store.note({"what": "a"})
        store.note({"what": "b"})
    with sqlite3.connect(tmp_path / "store.sqlite") as raw:
        key = {"entries": "id", "profiles": "release", "log": "id"}[table]
        (one, first), (two, second) = raw.execute(
            f"SELECT {key}, sealed FROM {table} ORDER BY {key}"
        ).fetchall()
        raw.executemany(f"UPDATE {table} SET sealed = ? WHERE {key} = ?", [(second, one), (first, two)])
    raw.close()
    with reopened(tmp_path) as store, pytest.raises(StoreError, match="does not open"):
        getattr(store, table)()


def test_flipped_bits_give_a_clear_error_or_the_same_answer(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry(f"{CANARY} {n}") for n in range(90)])
        wanted = told(store)
    path = tmp_path / "store.sqlite"
    data = path.read_bytes()
    rng = generator(0, 0, "", "test")
    refused: list[str] = []
    for _ in range(300):
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            with reopened(tmp_path) as store:
                assert told(store) == wanted
        except StoreError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert not any("canary" in words for words in refused)


@pytest.mark.parametrize("data", [b"", b"no database at all, but some text" * 100, bytes(5000)])
def test_what_is_no_store_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(data)
    with pytest.raises(StoreError):
        reopened(tmp_path)


def test_a_newer_store_is_refused_and_an_older_one_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(tmp_path) as store:
        store.add([entry("one")])
    monkeypatch.setattr(schema, "_MIGRATIONS", (*schema._MIGRATIONS, "CREATE TABLE further (x)"))
    for module in (schema, sys.modules[Store.__module__]):
        monkeypatch.setattr(module, "VERSION", schema.VERSION if module is not schema else schema.VERSION + 1)
    with reopened(tmp_path) as store:
        assert told(store) == [("one", LABEL)]
    monkeypatch.undo()
    with pytest.raises(StoreError, match="newer umbel"):
        reopened(tmp_path)


def test_a_store_of_the_first_version_gets_a_log_of_what_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_MIGRATIONS", schema._MIGRATIONS[:1])
    monkeypatch.setattr(schema, "VERSION", 1)
    with made(tmp_path) as store:
        store.add([entry("one")])
    monkeypatch.undo()
    with reopened(tmp_path) as store:
        assert (told(store), store.egress()) == ([("one", LABEL)], [])
        store.enter("policy", lambda old, erasures: (old, {"kind": "query"}), counted)
        assert store.egress() == [{"kind": "query"}]


def counted(total: int | None, entry: Mapping[str, Any]) -> int:
    return (total or 0) + 1


def test_an_entry_and_the_setting_it_uses_up_are_written_together(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.switch({"left": 1}, {})
        store.add([entry("one")])
        store.remove([1])

        def judge(old: int, erasures: int) -> tuple[int, dict[str, int]]:
            return old - 1, {"old": old, "erasures": erasures}

        def fails(old: int, erasures: int) -> tuple[int, dict[str, int]]:
            raise KeyboardInterrupt

        assert store.enter("left", judge, counted) == {"old": 1, "erasures": 1}
        with pytest.raises(KeyboardInterrupt):
            store.enter("left", fails, counted)
    with reopened(tmp_path) as store:
        assert (store.setting("left"), store.egress()) == (0, [{"old": 1, "erasures": 1}])
        assert store.egress_total(counted) == 1
        assert store.log() == []


def test_a_first_setting_stays(tmp_path: Path) -> None:
    with made(tmp_path) as store, reopened(tmp_path) as other:
        assert store.first_setting("client", 7) == 7
        assert other.first_setting("client", 8) == 7
        assert store.setting("client") == 7


def test_a_profile_made_in_a_better_way_stays(tmp_path: Path) -> None:
    newer = KeptProfile(b"newer", {**ABOUT, "how": "round"})
    with made(tmp_path) as store:
        store.save_profile("r", newer, staying=("learned",))
        store.save_profile("r", KeptProfile(b"again", newer.about), staying=("learned",))
        assert store.profile("r") == KeptProfile(b"again", newer.about)
        store.save_profile("r", PROFILE)
        store.save_profile("r", newer, event={"what": "took part"}, staying=("learned",))
        assert store.profile("r") == PROFILE
        assert store.log() == [{"what": "took part"}]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one")])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StoreError, match="Free some space"):
            store.add([entry(f"{CANARY} {n}") for n in range(1000)])
        assert told(store) == [("one", LABEL)]
    with reopened(tmp_path) as store:
        assert told(store) == [("one", LABEL)]
        store.add([entry("two")])


def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    made(tmp_path).close()
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            with reopened(tmp_path) as store:
                for n in range(20):
                    store.add([entry(f"{name} {n}")])
                    store.note({"who": name})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with reopened(tmp_path) as store:
        assert len(store.entries()) == len(store.log()) == 60


_WRITER = """
import sys
from pathlib import Path
from tests.device_client.vault.test_vault_store import entry, reopened
with reopened(Path(sys.argv[1])) as store:
    n = len(store.entries())
    print("ready", flush=True)
    while True:
        store.add([entry(f"text {n} {m}") for m in range(3)])
        print(n, flush=True)
        n += 3
"""


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """Three entries are added at once: all of them are there, or none; and all that was acknowledged is."""
    kills_while_writing(tmp_path, 8)


@pytest.mark.slow
def test_killed_while_it_writes_very_often(tmp_path: Path) -> None:
    kills_while_writing(tmp_path, 200)


def kills_while_writing(home: Path, times: int) -> None:
    made(home).close()
    rng = generator(1, 0, "", "test")
    known = 0
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(home)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        lines = process.stdout.read().split("\n")[:-1]
        process.stdout.close()
        process.wait()
        with reopened(home) as store:
            entries = store.entries()
        acknowledged = int(lines[-1]) + 3 if lines else known
        assert len(entries) % 3 == 0
        assert acknowledged <= len(entries) <= acknowledged + 3
        assert len({own.text for own in entries}) == len(entries)
        known = len(entries)


def test_an_export_comes_back(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one"), entry("two", None)])
        kept = Exported(store.number, tuple(store.entries()), {"r": PROFILE})
    assert write_export(tmp_path / "export", kept, words) == (tmp_path / "export").stat().st_size
    assert stat.S_IMODE((tmp_path / "export").stat().st_mode) == 0o600
    found = read_export(tmp_path / "export", words)
    assert [(e.text, e.label) for e in found.entries] == [("one", LABEL), ("two", None)]
    assert (found.store, found.profiles) == (kept.store, kept.profiles)
    with pytest.raises(StoreError, match="passphrase is wrong"):
        read_export(tmp_path / "export", lambda: "wrong horse battery")


def test_nothing_but_an_export_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("mine")
    kept = Exported("number", (entry("one"),), {})
    with pytest.raises(StoreError, match="no export"):
        write_export(tmp_path / "mine.jsonl", kept, words)
    assert (tmp_path / "mine.jsonl").read_text() == "mine"
    assert write_export(tmp_path / "export", kept, words) == write_export(tmp_path / "export", kept, words)


@pytest.mark.parametrize(
    "row",
    [
        [],
        {},
        {"entries": [["one"]], "profiles": {}},
        {"entries": [[1, None, "2026"]], "profiles": {}},
        {"entries": [], "profiles": {"r": {"packed": "zz", "about": ABOUT}}},
        {"entries": [], "profiles": {"r": {"packed": "00", "about": {}}}},
        b"[" * 100_000,
        b"\xff",
        b"no JSON",
    ],
)
def test_an_export_that_holds_something_else_is_refused(row: object, tmp_path: Path) -> None:
    key = new_key()
    header = json.dumps(
        {"format": "umbel.export/1", "store": "number", "key": wrap(key, Passphrase(words), "number")}
    )
    sealed = Sealer(key).seal(row if isinstance(row, bytes) else json.dumps(row).encode(), "export/number")
    data = b"UMBX" + len(header).to_bytes(4, "big") + header.encode() + sealed
    (tmp_path / "export").write_bytes(data)
    with pytest.raises(StoreError, match="not what an export holds"):
        read_export(tmp_path / "export", words)


def test_a_changed_export_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "export"
    write_export(path, Exported("number", (entry("one"),), {}), words)
    data = path.read_bytes()
    rng = generator(0, 0, "", "test")
    for at in sorted({0, 3, 5, 9, len(data) - 1, *(int(rng.integers(len(data))) for _ in range(6))}):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StoreError):
            read_export(path, words)
    for part in (b"", data[:3], data[:100], data[:-1], b"UMBX" + b"\xff" * 100):
        path.write_bytes(part)
        with pytest.raises(StoreError):
            read_export(path, words)
    with pytest.raises(StoreError, match="cannot read"):
        read_export(tmp_path, words)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "export")
    with pytest.raises(StoreError, match="cannot read"):
        read_export(tmp_path / "export", words)
    made(tmp_path).close()
    (tmp_path / "key").unlink()
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(StoreError, match="cannot be read"):
        reopened(tmp_path)
    (tmp_path / "store.sqlite").unlink()
    os.mkfifo(tmp_path / "store.sqlite")
    with pytest.raises(StoreError, match="no store"):
        reopened(tmp_path)


RUN_ABOUT = {"run": "0123456789abcdef", "holder": "me", "state": "x"}
STATE = {"all/step": bytes(range(256)) * 5, "all/piece 0": bytes(300)}


def test_a_run_is_kept_by_its_parts_and_ends_with_the_learning(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one")])
        assert store.run("r") is None
        store.keep_run("r", RUN_ABOUT, STATE, 0)
        store.keep_run("r", {**RUN_ABOUT, "done": 1}, {"all/step": b"new", "all/piece 0": None}, 0, "me")
    with reopened(tmp_path) as store:
        assert store.run("r") == KeptRun({**RUN_ABOUT, "done": 1}, {"all/step": b"new"})
        assert store.run("s") is None
        store.save_profile("r", PROFILE)
        assert store.run_about("r") is not None
        store.save_profile("r", PROFILE, ends_run=True)
        assert store.run_about("r") is None


def test_a_run_goes_with_its_release(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        for release in ("old", "new", "gone"):
            store.keep_run(release, RUN_ABOUT, STATE, 0)
        store.switch({}, {}, keep=("old", "new"))
        assert [store.run_about(release) is None for release in ("old", "new", "gone")] == [
            False,
            False,
            True,
        ]


def test_one_goes_on_with_a_run_at_a_time(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.keep_run("r", RUN_ABOUT, STATE, 0)
        store.keep_run("r", {**RUN_ABOUT, "holder": "you"}, {}, 0, "me")
        with pytest.raises(StoreError, match="another one has begun"):
            store.keep_run("r", RUN_ABOUT, {"all/step": b"mine"}, 0, "me")
        found = store.run("r")
        assert found is not None
        assert found.parts == STATE
        store.keep_run("r", {**RUN_ABOUT, "run": "other"}, {"p": b"1"}, 0)  # who begins anew takes its place
        assert store.run("r") == KeptRun({**RUN_ABOUT, "run": "other"}, {"p": b"1"})


def test_runs_and_readings_go_with_what_is_forgotten(tmp_path: Path) -> None:
    """The very bytes that held them are gone, and nothing that is learned meanwhile brings them back."""
    with made(tmp_path) as store:
        store.add([entry("one"), entry("two", None), entry("three")])
        store.keep_run("r", RUN_ABOUT, STATE, 0)
        assert store.keep_readings("reader", {1: b"one" * 50, 2: b"two" * 50, 3: b"three" * 50}, 0)
        with sqlite3.connect(tmp_path / "store.sqlite") as raw:
            rows = raw.execute(
                "SELECT sealed FROM runs UNION ALL SELECT sealed FROM readings WHERE entry < 3"
            )
            sealed = [row[0] for row in rows]
        raw.close()
        held = b"".join(file.read_bytes() for file in tmp_path.glob("store*"))
        assert all(piece[:40] in held for piece in sealed)
        assert store.remove([1, 2], {"what": "forgot"}) == Erased(1, 1, 0, 1, 2)
        held = b"".join(file.read_bytes() for file in tmp_path.glob("store*"))
        assert not any(piece[:40] in held for piece in sealed)
        assert store.readings("reader") == {3: b"three" * 50}
        told = {"what": "forgot", "examples": 1, "texts": 1, "profiles": 0, "runs": 1, "readings": 2}
        assert store.log() == [told]
        with pytest.raises(StoreError, match="forgotten"):
            store.keep_run("r", RUN_ABOUT, STATE, 0)
        with pytest.raises(StoreError, match="forgotten"):
            store.keep_readings("reader", {3: b"x"}, 0)
        assert store.run("r") is None
        assert store.remove([99], {"what": "forgot"}) == Erased()
        assert store.log() == [told]


def test_readings_are_of_one_reader_and_do_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umbel.device_client.vault.runs._MOST_READ_BYTES", 1000)
    with made(tmp_path) as store:
        assert store.keep_readings("old", {1: bytes(400)}, 0)
        assert store.keep_readings("new", {1: bytes(400)}, 0)
        assert store.readings("old") == {}
        assert not store.keep_readings("new", {2: bytes(800)}, 0)
        assert store.readings("new") == {1: bytes(400)}


def test_a_part_of_another_run_does_not_open(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.keep_run("r", RUN_ABOUT, STATE, 0)
        with sqlite3.connect(tmp_path / "store.sqlite") as raw:
            (old,) = raw.execute("SELECT sealed FROM runs WHERE part = 'all/step'").fetchone()
            store.keep_run("r", {**RUN_ABOUT, "run": "other"}, STATE, 0)
            raw.execute("UPDATE runs SET sealed = ? WHERE part = 'all/step'", (old,))
        raw.close()
        with pytest.raises(StoreError, match="does not open"):
            store.run("r")


def test_the_last_of_the_log_and_the_first_of_the_entries(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        assert store.first_added() is None
        store.add([Entry("one", None, "2025"), Entry("two", None, "2026")])
        for number in range(4):
            store.note({"what": str(number)})
        assert store.first_added() == "2025"
        assert [row["what"] for row in store.log(2)] == ["2", "3"]
        assert len(store.log()) == 4


def test_a_damage_that_sqlite_cannot_put_into_words_is_told(tmp_path: Path) -> None:
    made(tmp_path).close()
    path = tmp_path / "store.sqlite"
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE log", b"CREATE \xa0ABLE log"))
    with pytest.raises(StoreError, match="damaged"):
        reopened(tmp_path)


def test_a_profile_whose_name_was_changed_is_damage_and_not_missing(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.save_profile("r", PROFILE)
    with sqlite3.connect(tmp_path / "store.sqlite") as raw:
        raw.execute("UPDATE profiles SET release = 's'")
    raw.close()
    with reopened(tmp_path) as store:
        with pytest.raises(StoreError, match="does not open"):
            store.profile("r")
        with pytest.raises(StoreError, match="does not open"):
            store.profiles()


def test_a_count_of_examples_that_is_not_right_is_damage(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        store.add([entry("one"), entry("two", None)])
    with sqlite3.connect(tmp_path / "store.sqlite") as raw:
        raw.execute("UPDATE entries SET labelled = 1")
    raw.close()
    with reopened(tmp_path) as store, pytest.raises(StoreError, match="damaged"):
        store.entries()


def test_an_empty_file_is_no_store_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").touch()
    with pytest.raises(StoreError, match="no store"):
        reopened(tmp_path)
    assert (tmp_path / "store.sqlite").stat().st_size == 0


def test_a_key_that_cannot_be_overwritten_is_removed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk that writes every block anew."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made(tmp_path).close()
    monkeypatch.setattr(os, "fsync", full)
    KeyFile(tmp_path / "key").erase()
    assert not (tmp_path / "key").exists()
