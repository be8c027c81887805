"""An export: a store's entries and profiles in one file, sealed by a passphrase, for another device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from umbel.device_client.vault.keys import Ask, Passphrase, unwrap, wrap
from umbel.device_client.vault.sealing import Sealer, new_key
from umbel.device_client.vault.store import Entry, KeptProfile
from umbel.shared.checks import NestingError, parsed_json
from umbel.shared.errors import StoreError
from umbel.shared.files import atomic_write, first_bytes, plain_bytes

_FORMAT = "umbel.export/1"
_MAGIC = b"UMBX"
_ABOUT = {"how", "at", "state", "examples"}
_MAX_HEADER = 1 << 12
_MAX_BYTES = 1 << 30


@final
@dataclass(frozen=True, slots=True)
class Exported:
    """What is taken along: the number of the store it is from, entries, and profiles by release."""

    store: str
    entries: tuple[Entry, ...] = field(repr=False)
    profiles: Mapping[str, KeptProfile] = field(repr=False)


def write_export(path: Path, kept: Exported, ask: Ask) -> int:
    """Writes an export, whole or not at all; returns its size in bytes.

    File: "UMBX", length of the header (4 bytes), header (JSON: format, store, key), sealed JSON.

    Raises:
        StoreError: The passphrase is too short, or something else than an export is there.
        OSError: The file cannot be written; an older one is untouched.
    """
    if first_bytes(path, len(_MAGIC)) not in (None, _MAGIC):
        raise StoreError(f"{path} is no export, so none is written over it", hint="Name another file.")
    key = new_key()
    header = {"format": _FORMAT, "store": kept.store, "key": wrap(key, Passphrase(ask), kept.store)}
    row = {
        "entries": [[own.text, own.label, own.added] for own in kept.entries],
        "profiles": {
            name: {"packed": own.packed.hex(), "about": dict(own.about)}
            for name, own in kept.profiles.items()
        },
    }
    told = json.dumps(header).encode()
    sealed = Sealer(key).seal(json.dumps(row).encode(), f"export/{kept.store}")
    data = _MAGIC + len(told).to_bytes(4, "big") + told + sealed
    atomic_write(path, data, mode=0o600)
    return len(data)


def read_export(path: Path, ask: Ask) -> Exported:
    """Reads an export.

    Raises:
        StoreError: It is none, was changed, or has another passphrase.
    """
    header, sealed = _parts(path)
    number, kept = header.get("store"), header.get("key")
    if header.get("format") != _FORMAT or not isinstance(number, str) or not isinstance(kept, dict):
        raise _no_export(path)
    key = unwrap(kept, Passphrase(ask), number, "the export")
    piece = Sealer(key).open(sealed, f"export/{number}")
    try:
        return _exported(number, parsed_json(piece))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StoreError(f"what {path} holds is not what an export holds") from None


def _exported(number: str, row: Any) -> Exported:
    entries = tuple(Entry(text, label, added) for text, label, added in row["entries"])
    profiles = {
        name: KeptProfile(bytes.fromhex(own["packed"]), own["about"]) for name, own in row["profiles"].items()
    }
    words = [*(part for own in entries for part in (own.text, own.label or "", own.added)), *profiles]
    if not all(isinstance(part, str) for part in words):
        raise TypeError
    if not all(set(own.about) >= _ABOUT for own in profiles.values()):
        raise KeyError
    return Exported(number, entries, profiles)


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        data = plain_bytes(path, _MAX_BYTES)
    except OSError as error:
        raise StoreError(f"cannot read the export {path}", [error.strerror or type(error).__name__]) from None
    length = int.from_bytes(data[4:8], "big")
    if data[:4] != _MAGIC or length > _MAX_HEADER or len(data) > _MAX_BYTES:
        raise _no_export(path)
    try:
        header = parsed_json(data[8 : 8 + length].decode())
    except (ValueError, NestingError):
        raise _no_export(path) from None
    if not isinstance(header, dict):
        raise _no_export(path)
    return header, data[8 + length :]


def _no_export(path: Path) -> StoreError:
    return StoreError(
        f"{path} is no export of umbel's, or it was changed", hint="Make one with: umbel device export FILE."
    )
