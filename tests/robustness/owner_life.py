"""What an owner may do with their device, what must be there afterwards, and what is found in its home."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from umbel.device_client.device import packed_learning, packed_onboarding
from umbel.device_client.owner import Device, erase
from umbel.device_client.releases.trust import Pin
from umbel.device_client.releases.updating import Wanted
from umbel.device_client.vault.portable import read_export
from umbel.shared.errors import StoreError
from umbel.shared.examples import Example
from umbel.shared.files import sha256_file
from umbel.shared.profile import unpack_profile
from umbel.shared.release import MANIFEST

WORDS = ("correct horse battery", "purple monkey dishwasher")
EXPORT_WORDS = "an export of mine"
MARK = "cnry"
"""Begins a word of every text, so that it can be searched for."""

_LABELS = ("no", "yes")
_PREFIX = 40  # bytes of a sealed piece by which it is searched for
_VOCABULARY = ("good", "bad", "film", "book", "slow", "tender", "we", "like")

Row = tuple[str, str | None]


@final
@dataclass(frozen=True, slots=True)
class Held:
    """What a device holds.

    Attributes:
        store: Whether there is a store.
        entries: Text and label, in the order in which they came.
        profiles: sha256 of the packed profile by release; "new": what comes of learning.
        key: Who holds the key.
        words: The passphrase.
        exports: Name, entries and profiles of each export that was acknowledged.
        release: Which of the releases is in use.
        previous: Which one was before; -1: none.
    """

    store: bool = False
    entries: tuple[Row, ...] = ()
    profiles: Mapping[str, str] = field(default_factory=dict)
    key: str = "file"
    words: str = WORDS[0]
    exports: tuple[tuple[str, tuple[Row, ...], Mapping[str, str]], ...] = ()
    release: int = 0
    previous: int = -1


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One thing that an owner does: a command's name, and what is given to it."""

    what: str
    rows: tuple[Row, ...] = ()
    name: str = ""

    def as_json(self) -> dict[str, Any]:
        """Returns the step as a child tells it."""
        return {"what": self.what, "rows": [list(row) for row in self.rows], "name": self.name}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Step:
        """Reads it back."""
        return cls(row["what"], tuple((text, label) for text, label in row["rows"]), row["name"])


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where it all happens: a folder with the home and exports; two releases, and a channel of the second."""

    folder: Path
    releases: tuple[Path, Path]

    @property
    def home(self) -> Path:
        """The device's home."""
        return self.folder / "home"

    def export(self, name: str) -> Path:
        """An export's file."""
        return self.folder / "exports" / name

    @property
    def channel(self) -> Path:
        """The channel, beside the second release."""
        return self.releases[1].with_name("channel")

    def release_id(self, number: int) -> str:
        """The id of a release."""
        return sha256_file(self.releases[number] / MANIFEST)


def merged(entries: Sequence[Row], more: Sequence[Row]) -> tuple[Row, ...]:
    """Returns entries once more are added: a known text takes the new label, if there is one."""
    known = dict(entries)
    for text, label in more:
        if label is not None or text not in known:
            known[text] = label
    return tuple(known.items())


def after(place: Place, held: Held, step: Step) -> Held:
    """Returns what is held once a step is done."""
    own = place.release_id(held.release)
    if step.what == "enroll":
        return replace(held, store=True, key=step.name, entries=(), profiles={}, release=0, previous=-1)
    if step.what == "add":
        return replace(held, entries=merged(held.entries, step.rows))
    if step.what == "forget":
        left = tuple(row for row in held.entries if row not in step.rows)
        return replace(held, entries=left, profiles={} if left != held.entries else held.profiles)
    if step.what in ("learn", "onboard"):
        return replace(held, profiles={**held.profiles, own: "new"})
    if step.what == "rekey":
        to_file = step.name == "file"
        key = "file" if to_file else "passphrase"
        return replace(held, key=key, words=held.words if to_file else step.name)
    if step.what in ("export", "import"):
        return _moved(held, step)
    if step.what in ("update", "fetch") and int(step.name) != held.release:
        new = {place.release_id(int(step.name)): "new"} if own in held.profiles else {}
        return replace(held, release=int(step.name), previous=held.release, profiles={**held.profiles, **new})
    if step.what == "back":
        return replace(held, release=held.previous, previous=held.release)
    if step.what == "erase":
        return replace(held, store=False, entries=(), profiles={}, release=0, previous=-1)
    return held


def _moved(held: Held, step: Step) -> Held:
    if step.what == "export":
        others = tuple(own for own in held.exports if own[0] != step.name)
        return replace(held, exports=(*others, (step.name, held.entries, held.profiles)))
    _, rows, profiles = next(found for found in held.exports if found[0] == step.name)
    labels = dict(held.entries)
    rows = tuple(row for row in rows if labels.get(row[0]) is None)  # a label from here stays
    return replace(held, entries=merged(held.entries, rows), profiles={**profiles, **held.profiles})


def chosen(held: Held, rng: np.random.Generator) -> Step:
    """Returns what an owner does next."""
    if not held.store:
        return Step("enroll", name=("file", "file", "passphrase")[int(rng.integers(3))])
    kinds = ["add"] * 6 + ["predict", "onboard"] + ["rekey"] * (1 + (held.key == "passphrase"))
    kinds += ["learn"] * 3 if any(label for _, label in held.entries) else []
    kinds += ["forget"] * 3 + ["export"] if held.entries else []
    kinds += ["import"] if held.exports else []
    kinds += ["update", "update", "fetch"] + (["back"] if held.previous >= 0 else [])
    kinds += ["erase"] if rng.random() < 0.2 else []
    what = kinds[int(rng.integers(len(kinds)))]
    if what in ("onboard",) and not held.entries:
        what = "add"
    return Step(what, _rows(what, held, rng), _name(what, held, rng))


def _rows(what: str, held: Held, rng: np.random.Generator) -> tuple[Row, ...]:
    if what == "forget":
        count = 1 + int(rng.integers(min(3, len(held.entries))))
        return tuple(held.entries[int(n)] for n in rng.permutation(len(held.entries))[:count])
    if what != "add":
        return ()
    rows: list[Row] = []
    for _ in range(1 + int(rng.integers(4))):
        label = (*_LABELS, *_LABELS, None)[int(rng.integers(5))]
        if held.entries and rng.random() < 0.2:
            rows.append((held.entries[int(rng.integers(len(held.entries)))][0], label))
            continue
        words = [_VOCABULARY[int(n)] for n in rng.integers(len(_VOCABULARY), size=int(rng.integers(1, 40)))]
        rows.append((f"{MARK}{int(rng.integers(1 << 60)):x} {' '.join(words)}", label))
    rows.sort(key=lambda row: row[1] is None)  # a device takes examples first, then texts
    return tuple(rows)


def _name(what: str, held: Held, rng: np.random.Generator) -> str:
    if what == "rekey":
        others = [name for name in ("file", *WORDS) if name != ("file" if held.key == "file" else held.words)]
        return others[int(rng.integers(len(others)))]
    if what == "export":
        return f"{int(rng.integers(2))}.umbel"
    if what == "import":
        return held.exports[int(rng.integers(len(held.exports)))][0]
    if what == "update":
        return str(int(rng.integers(2)))
    return "1" if what == "fetch" else ""


def opened(place: Place, held: Held) -> Device:
    """Opens the device."""
    return Device.open(place.home, ask=lambda: held.words)


def _opened_by(place: Place, held: Held, other: str) -> tuple[Device, str]:
    """Opens it under another passphrase, too, where a new one may be kept already; returns which it was."""
    try:
        return opened(place, held), held.words
    except StoreError:
        if not other:
            raise
        return Device.open(place.home, ask=lambda: other), other


def do(place: Place, held: Held, step: Step) -> dict[str, str]:
    """Does a step as Python code would; returns sha256 of the profile for each release."""
    if step.what == "enroll":
        Device.enroll(place.home, place.releases[0], key=step.name, ask=lambda: held.words).close()
        return {}
    if step.what == "erase":
        erase(place.home)
        return {}
    with opened(place, held) as device:
        _do(device, place, step)
        return _digests(device)


def _do(device: Device, place: Place, step: Step) -> None:
    if step.what == "add":
        examples = [Example("owner", text, label) for text, label in step.rows if label is not None]
        device.add(examples, [text for text, label in step.rows if label is None])
    elif step.what == "forget":
        gone = {text for text, _ in step.rows}
        device.forget([own.number for own in device.entries() if own.text in gone])
    elif step.what == "learn":
        device.learn()
    elif step.what == "onboard":
        device.onboard(explain=False)
    elif step.what == "update":
        device.update(Wanted(release=place.releases[int(step.name)], force=True))
    elif step.what == "fetch":
        device.update(Wanted(source=str(place.channel), pin=Pin(first_use=True), force=True))
    elif step.what == "back":
        device.update(Wanted(back=True))
    elif step.what == "predict":
        device.predict(["a good film"])
    elif step.what == "rekey":
        device.rekey("file" if step.name == "file" else "passphrase", lambda: step.name)
    elif step.what == "export":
        device.export(place.export(step.name), lambda: EXPORT_WORDS)
    elif step.what == "import":
        device.import_(place.export(step.name), lambda: EXPORT_WORDS)


def _digests(device: Device) -> dict[str, str]:
    kept = device._store.profiles()
    return {name: hashlib.sha256(own.packed).hexdigest() for name, own in kept.items()}


def pieces(home: Path) -> list[str]:
    """Returns what the sealed pieces of a store begin with, in hex; nothing where there is no store."""
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"file:{home / 'store.sqlite'}?mode=rw", uri=True)) as raw,
    ):
        tables = ("entries", "profiles", "runs", "readings")
        rows = raw.execute(" UNION ALL ".join(f"SELECT sealed FROM {name}" for name in tables)).fetchall()
        return [bytes(row[0][:_PREFIX]).hex() for row in rows]
    return []


def seen(place: Place, held: Held, other: str = "") -> dict[str, Any]:
    """Returns what a home holds; everything that can be opened is opened.

    Args:
        place: Where it is.
        held: What was acknowledged.
        other: Another passphrase that may open it.

    Raises:
        UmbelError: Something does not open.
        AssertionError: Something is half there.
    """
    device, words = _opened_by(place, held, other)
    with device:
        check = device._store._connection.execute("PRAGMA integrity_check").fetchall()
        assert check == [("ok",)], f"integrity check: {check}"
        rows = [(own.text, own.label) for own in device.entries()]
        assert device.counts() == (
            sum(label is not None for _, label in rows),
            sum(t[1] is None for t in rows),
        )
        for event in device.log():
            assert {"at", "what"} <= set(event), "an event is half there"
        device.profile()  # unpacks it
        profiles, status = _digests(device), device.status()
        own = profiles.get(device.release.release_id)
        found = {
            "rows": rows,
            "profiles": profiles,
            "key": status["key"],
            "words": words,
            "release": device.release.release_id,
            "previous": device._store.setting("previous"),
            "learned": own is not None and (own in held.profiles.values() or _learned(device)),
        }
    return {**found, "pieces": pieces(place.home)}


def _learned(device: Device) -> bool:
    """Says whether the profile is what is learned from the entries that are there.

    But for rounding: what a text was read as is kept, and it was read beside other texts than it is now.
    """
    examples, texts = device.known()
    kept = device._store.profile(device.release.release_id)
    assert kept is not None
    if kept.about["how"] == "onboarded":
        packed, _ = packed_onboarding(device.release, examples, texts, explain=False)
    else:
        packed, _ = packed_learning(device.release, examples, texts=texts)
    spec, release = device.release.manifest.profile, device.release.release_id
    own, anew = (unpack_profile(spec, data, release) for data in (kept.packed, packed))
    return all(np.allclose(own[name], anew[name], rtol=2e-3, atol=1e-3) for name in anew)


def as_held(place: Place, held: Held, found: dict[str, Any]) -> Held:
    """Returns what was found, in the form of what was expected."""
    rows = tuple((text, label) for text, label in found["rows"])
    words = found["words"] if found["key"] == "passphrase" else held.words
    known = [place.release_id(0), place.release_id(1)]
    return replace(
        held,
        store=True,
        entries=rows,
        profiles=found["profiles"],
        key=found["key"],
        words=words,
        release=known.index(found["release"]),
        previous=-1 if found["previous"] is None else known.index(found["previous"]),
    )


def leftovers(place: Place, held: Held) -> list[str]:
    """Returns what lies about that no command left on purpose."""
    own = {"releases", "trust"} | ({"store.sqlite"} if held.store else set())
    own |= {"key"} if held.store and held.key == "file" else set()
    names = [name.name for name in place.home.iterdir()] if place.home.is_dir() else []
    found = sorted(set(names) - own)
    releases = place.home / "releases"
    found += [name.name for name in releases.glob("*") if len(name.name) != 64]
    exports = {name for name, _, _ in held.exports}
    found += [name.name for name in place.export("").glob("*") if name.name not in exports]
    return found


def plain_words(place: Place) -> list[str]:
    """Returns the files under home and exports in which a word of a text can be read."""
    wanted = (MARK.encode(), MARK.encode("utf-16-le"), MARK.encode().hex().encode())
    return [
        str(file.relative_to(place.folder))
        for part in (place.home, place.export(""))
        for file in part.rglob("*")
        if file.is_file() and any(word in file.read_bytes() for word in wanted)
    ]


def undead(place: Place, gone: set[str]) -> int:
    """Returns how many erased pieces still lie in the store's files."""
    data = b"".join(file.read_bytes() for file in place.home.glob("store.sqlite*"))
    return sum(bytes.fromhex(piece) in data for piece in gone)


def exports_open(place: Place, names: Sequence[str]) -> None:
    """Reads exports whole.

    Raises:
        UmbelError: One does not open.
    """
    for name in names:
        if place.export(name).exists():
            read_export(place.export(name), lambda: EXPORT_WORDS)
