"""The metadata of a channel as it stands in its folder: read, checked, made anew, signed, written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, final

from securesystemslib.exceptions import StorageError
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from umbel.shared.channel import METADATA, TIMESTAMP, root_name
from umbel.shared.errors import ReleaseError
from umbel.shared.files import atomic_write, sync_folder

_NEXT = ".next.root.json"
_DAMAGE = (RepositoryError, DeserializationError, StorageError, OSError, KeyError, ValueError)

LIFE_DAYS = {"root": 365, "targets": 365, "snapshot": 90, "timestamp": 14}
"""For how long devices believe a role's metadata; a host can keep newer ones from them as long, unseen."""


@final
@dataclass(slots=True)
class State:
    """What a channel's newest metadata says.

    Attributes:
        root: Whose keys count.
        targets: The current release.
        snapshot: The newest targets file.
        timestamp: The newest snapshot.
    """

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    def of(self, role: str) -> Metadata[Any]:
        """Returns a role's metadata."""
        found: Metadata[Any] = getattr(self, role)
        return found

    def keyids(self, role: str) -> list[str]:
        """Returns the ids of the keys that count for a role."""
        return list(self.root.signed.roles[role].keyids)

    def is_due(self, role: str, now: datetime) -> bool:
        """Says whether half of the time is over for which a role's metadata is believed."""
        expires: datetime = self.of(role).signed.expires
        return expires - now < timedelta(days=LIFE_DAYS[role] / 2)


def begun(root: Root) -> State:
    """Returns the state of a channel that has no release yet; only its root is complete."""
    return State(Metadata(root), Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp()))


def read_state(folder: Path) -> State:
    """Reads a channel's newest metadata and checks every signature.

    Raises:
        ReleaseError: There is none, or it is damaged.
    """
    place = folder / METADATA
    if not (place / TIMESTAMP).is_file():
        raise ReleaseError(
            f"there is no channel at {folder}", hint="Make one: umbel coordinator channel init."
        )
    try:
        return _verified(place, root_name(newest_root(folder)))
    except _DAMAGE as error:
        raise ReleaseError(
            f"the metadata of the channel at {folder} cannot be used",
            [f"{type(error).__name__}: {error}"],
            "Take the folder from a copy, such as the one that your host serves. If giving a role a new key "
            "was interrupted, do so again: umbel coordinator channel rotate.",
        ) from None


def _verified(place: Path, root_file: str) -> State:
    """Reads the newest metadata in a folder, each signed by the keys that a root file in it names."""
    root = Metadata[Root].from_file(str(place / root_file))
    timestamp = Metadata[Timestamp].from_file(str(place / TIMESTAMP))
    snapshot = Metadata[Snapshot].from_file(_versioned(place, "snapshot", timestamp.signed.snapshot_meta))
    targets = Metadata[Targets].from_file(_versioned(place, "targets", snapshot.signed.meta["targets.json"]))
    state = State(root, targets, snapshot, timestamp)
    for role in LIFE_DAYS:
        root.signed.verify_delegate(role, state.of(role).signed_bytes, state.of(role).signatures)
    return state


def newest_root(folder: Path) -> int:
    """Returns the version of the newest root file; 0 where there is none."""
    version = 0
    while (folder / METADATA / root_name(version + 1)).is_file():
        version += 1
    return version


def write_chain(folder: Path, state: State, roles: Sequence[str], signers: Signers, now: datetime) -> None:
    """Makes the next version of some roles, each of which names the one before, and writes them.

    The timestamp comes last: until then devices see what was there.

    Args:
        folder: The channel.
        state: What is changed.
        roles: The end of targets, snapshot, timestamp.
        signers: Who signs for each.
        now: From when on it is believed.

    Raises:
        OSError: The folder cannot be written; what devices see is as before.
    """
    for role in roles:
        metadata = state.of(role)
        advance(metadata.signed, role, now)
        data = signed_bytes(metadata, signers[role])
        version = metadata.signed.version
        name = TIMESTAMP if role == "timestamp" else f"{version}.{role}.json"
        atomic_write(folder / METADATA / name, data)
        described = MetaFile.from_data(version, data, ["sha256"])
        if role == "targets":
            state.snapshot.signed.meta["targets.json"] = described
        elif role == "snapshot":
            state.timestamp.signed.snapshot_meta = described


def write_root(folder: Path, root: Metadata[Root], signers: Iterable[CryptoSigner], now: datetime) -> None:
    """Makes the next version of root and writes it.

    Raises:
        OSError: The folder cannot be written.
    """
    keep_next_root(folder, root, signers, now)
    take_next_root(folder, root.signed.version)


def keep_next_root(
    folder: Path, root: Metadata[Root], signers: Iterable[CryptoSigner], now: datetime
) -> None:
    """Makes the next version of root and keeps it beside, where no device looks.

    Raises:
        OSError: The folder cannot be written.
    """
    advance(root.signed, "root", now)
    atomic_write(folder / METADATA / _NEXT, signed_bytes(root, signers))


def take_next_root(folder: Path, version: int) -> None:
    """Gives a root that is kept beside the name under which devices find it.

    Raises:
        OSError: The folder cannot be written.
    """
    os.replace(folder / METADATA / _NEXT, folder / METADATA / root_name(version))
    sync_folder(folder / METADATA)


def finish_rotation(folder: Path) -> None:
    """Takes the root that is kept beside, if the rest is signed by its keys alone already.

    So it is where a rotation without the old key was interrupted before its root was taken.

    Raises:
        OSError: The folder cannot be written.
    """
    place, newest = folder / METADATA, newest_root(folder)
    with suppress(*_DAMAGE):
        _verified(place, root_name(newest))
        return
    try:
        old = Metadata[Root].from_file(str(place / root_name(newest)))
        new = _verified(place, _NEXT).root
        old.signed.verify_delegate("root", new.signed_bytes, new.signatures)
    except _DAMAGE:
        return  # it is something else, which `read_state` tells
    if new.signed.version == newest + 1:
        take_next_root(folder, newest + 1)


Signers = dict[str, list[CryptoSigner]]
"""Role -> who signs for it."""


def advance(signed: Root | Targets | Snapshot | Timestamp, role: str, now: datetime) -> None:
    """Gives a role's metadata the next version and a new time until which it is believed."""
    signed.version += 1
    signed.expires = (now + timedelta(days=LIFE_DAYS[role])).replace(microsecond=0)


def signed_bytes(metadata: Metadata[Any], signers: Iterable[CryptoSigner]) -> bytes:
    """Signs metadata and returns it as JSON."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer())


def clock() -> datetime:
    """Returns the time in UTC."""
    return datetime.now(UTC)


def _versioned(place: Path, role: str, described: MetaFile) -> str:
    return str(place / f"{described.version}.{role}.json")
