"""Bits flipped, files swapped, cut short or replaced: one typed error, and nothing changed."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from umbel import cli
from umbel.device_client.owner import Device
from umbel.device_client.vault import keys
from umbel.device_client.vault.portable import read_export
from umbel.device_client.vault.sealing import KEY_BYTES
from umbel.shared.errors import StoreError, UmbelError
from umbel.shared.examples import Example
from umbel.shared.files import sha256_bytes
from umbel.shared.release import MANIFEST, Release
from umbel.shared.rng import generator

CANARY = "a canary sang in the mine at noon"
WORDS = "correct horse battery"
EXAMPLES = [Example("owner", f"{CANARY} {n}", ("yes", "no")[n % 2]) for n in range(6)]


@pytest.fixture(autouse=True)
def _bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends what waits for ever, and makes stretching a passphrase cheap."""

    def stop(*_: object) -> None:
        raise TimeoutError("it did not end within a minute")

    monkeypatch.setattr(keys, "_SCRYPT", {"n": 16, "r": 8, "p": 1})
    monkeypatch.setenv("UMBEL_PASSPHRASE", WORDS)
    monkeypatch.setenv("UMBEL_EXPORT_PASSPHRASE", WORDS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def words() -> str:
    return WORDS


def device(home: Path, release: Release, key: str = "file") -> Path:
    """Makes a device that has learned, with an export beside its home."""
    with Device.enroll(home, release.folder, key=key, ask=words) as own:
        own.add(EXAMPLES, ["only read"])
        own.onboard(explain=False)
        own.export(home.with_suffix(".export"), words)
    return home


@pytest.fixture
def home(embedded_release: Release, tmp_path: Path) -> Path:
    return device(tmp_path / "home", embedded_release)


def everything(home: Path) -> tuple[Any, ...]:
    """Opens all that a home holds."""
    with Device.open(home, ask=words) as own:
        entries = [(entry.text, entry.label, entry.added) for entry in own.entries()]
        profile = {name: values.tolist() for name, values in (own.profile() or {}).items()}
        return entries, profile, own.log(), own.egress(), own.counts(), own.status()["release"]


def state_of(folder: Path) -> dict[str, str]:
    """Returns what lies in a folder: names, kinds, contents."""
    return {
        str(path.relative_to(folder)): sha256_bytes(path.read_bytes())
        if path.is_file()
        else f"mode {path.lstat().st_mode}"
        for path in sorted(folder.rglob("*"))
    }


def refused_or_same(home: Path, wanted: tuple[Any, ...]) -> bool:
    """Opens all; what was refused must have changed nothing. Says whether it was."""
    before, said = state_of(home), ""
    found: tuple[Any, ...] = ()
    try:
        found = everything(home)
    except UmbelError as error:
        said = str(error)
    if not said:
        assert found == wanted
        return False
    assert CANARY not in said
    assert state_of(home) == before, "what was refused was changed"
    return True


def flips(data: bytes, whole: int, some: int, purpose: str) -> Iterator[bytes]:
    """Returns bytes with one bit flipped: each of the first ones, then some anywhere."""
    rng = generator(0, 0, "", purpose)
    places = [*range(min(whole, len(data)) * 8), *(int(n) for n in rng.integers(len(data) * 8, size=some))]
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


@pytest.mark.parametrize("key", ["file", "passphrase"])
def test_a_bit_flipped_in_the_store(key: str, embedded_release: Release, tmp_path: Path) -> None:
    home = device(tmp_path / "home", embedded_release, key)
    wanted, path = everything(home), home / "store.sqlite"
    data = path.read_bytes()
    refused = 0
    for changed in flips(data, 100, 200, f"store {key}"):
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        path.write_bytes(changed)
        refused += refused_or_same(home, wanted)
    assert refused > 100


def test_every_bit_of_the_key_and_of_what_wraps_it(home: Path) -> None:
    wanted, path = everything(home), home / "key"
    for changed in flips(path.read_bytes(), KEY_BYTES, 0, "key"):
        path.write_bytes(changed)
        with pytest.raises(StoreError, match="does not open"):
            everything(home)
    path.write_bytes(b"")
    assert refused_or_same(home, wanted)


def test_bits_of_an_export(home: Path) -> None:
    path = home.with_suffix(".export")
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[4:8], "big")
    wanted, taken = read_export(path, words), 0
    for changed in flips(data, header, 200, "export"):
        path.write_bytes(changed)
        with suppress(StoreError):
            assert read_export(path, words) == wanted
            taken += 1  # a letter of hex in the other case, say
    assert taken < header
    for length in sorted({*range(40), *range(0, len(data), 101), len(data) - 1}):
        path.write_bytes(data[:length])
        with pytest.raises(StoreError):
            read_export(path, words)


def test_what_is_of_another_device_does_not_open_here(embedded_release: Release, tmp_path: Path) -> None:
    one, two = device(tmp_path / "one", embedded_release), device(tmp_path / "two", embedded_release)
    wanted = everything(two)
    for name in ("store.sqlite", "key"):
        kept = (two / name).read_bytes()
        shutil.copyfile(one / name, two / name)
        before = state_of(two)
        with pytest.raises(StoreError, match="another store"):
            everything(two)
        assert state_of(two) == before
        (two / name).write_bytes(kept)
    assert everything(two) == wanted
    with Device.open(two) as own, pytest.raises(StoreError, match="passphrase is wrong"):
        own.import_(one.with_suffix(".export"), lambda: "wrong horse battery")
    assert everything(two) == wanted


def test_a_wrong_passphrase_changes_nothing(embedded_release: Release, tmp_path: Path) -> None:
    home = device(tmp_path / "home", embedded_release, "passphrase")
    before = state_of(home)
    with pytest.raises(StoreError, match="passphrase is wrong"):
        Device.open(home, ask=lambda: "wrong horse battery")
    assert state_of(home) == before


def _removed(path: Path) -> None:
    path.unlink()


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other(path: Path) -> None:
    path.write_bytes(b"something else altogether, and long enough" * 200)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


CHANGES = (_removed, _emptied, _halved, _other, _folder, _pipe, _dangling, _circle, _endless, _nothing)


def _blob(home: Path) -> Path:
    (release,) = (path for path in (home / "releases").iterdir() if len(path.name) == 64)
    row = json.loads((release / MANIFEST).read_bytes())
    return release / "blobs" / str(row["blobs"]["tokenizer.json"]["sha256"])


PLACES: dict[str, Callable[[Path], Path]] = {
    "store": lambda home: home / "store.sqlite",
    "key": lambda home: home / "key",
    "manifest": lambda home: _blob(home).parents[1] / MANIFEST,
    "blob": _blob,
    "export": lambda home: home.with_suffix(".export"),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
@pytest.mark.parametrize("place", sorted(PLACES))
def test_what_is_replaced_is_one_clear_error(
    place: str,
    change: Callable[[Path], None],
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UMBEL_HOME", str(home))
    path = PLACES[place](home)
    change(path)
    before = state_of(home)
    command = ["import", str(path)] if place == "export" else ["predict", "a good film"]
    assert cli.main(["device", *command]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.strip()
    assert CANARY not in shown.err
    assert "Traceback" not in shown.err
    assert "bug" not in shown.err
    assert state_of(home) == before


def test_a_home_that_may_not_be_read(home: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is closed to root")
    (home / "store.sqlite").chmod(0)
    with pytest.raises(StoreError):
        everything(home)


def test_states_are_told_apart(home: Path) -> None:
    """The control: a file that was changed is seen as changed."""
    before, path = state_of(home), home / "key"
    key = path.read_bytes()
    path.write_bytes(hashlib.sha256(key).digest())
    assert state_of(home) != before
    path.write_bytes(key)
    with pytest.raises(AssertionError):
        refused_or_same(home, ())
