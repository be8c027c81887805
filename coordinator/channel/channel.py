"""What a publisher does with a channel: begin it, add a release, keep it fresh, change keys."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, final

from tuf.api.metadata import Root, TargetFile

from umbel.coordinator.channel.keys import Keys
from umbel.coordinator.channel.metadata import (
    LIFE_DAYS,
    Signers,
    State,
    begun,
    clock,
    finish_rotation,
    keep_next_root,
    newest_root,
    read_state,
    take_next_root,
    write_chain,
    write_root,
)
from umbel.shared.channel import BLOBS, METADATA, ROLES, TARGETS, root_name
from umbel.shared.errors import ConfigError, ReleaseError
from umbel.shared.files import atomic_write, refuse_taken, sha256_file, sole_use, sync_folder
from umbel.shared.release import MANIFEST, Release

_CHAIN = ("targets", "snapshot", "timestamp")


@final
class Channel:
    """A channel and the keys that are at hand.

    What devices see changes at once or not at all: files with new names come first, `timestamp.json` after
    them, and a new root last.
    """

    def __init__(self, folder: Path, keys: Keys, now: Callable[[], datetime] = clock):
        self.folder, self.keys, self._now = folder, keys, now

    def create(self) -> None:
        """Begins a channel without a release, and makes a key for each role.

        Raises:
            ConfigError: Something is there already, or the keys would be served.
            OSError: Channel or keys cannot be written.
        """
        refuse_taken(self.folder)
        self._check_apart()
        if list((self.folder / METADATA).glob("2.*")):  # more than a beginning that was interrupted leaves
            raise ConfigError(f"{self.folder} holds parts of a channel", hint="Name another folder.")
        with sole_use(self.folder):
            signers = {role: [self.keys.make(role)] for role in ROLES}
            root = Root(version=1)
            for role, (signer,) in signers.items():
                root.add_key(signer.public_key, role)
            state = begun(root)
            for role in ROLES:
                state.of(role).signed.version = 0  # each is advanced before it is written
            write_root(self.folder, state.root, signers["root"], self._now())
            write_chain(self.folder, state, _CHAIN, signers, self._now())

    def check(self) -> None:
        """Makes sure that a release can be added: the channel is whole, and its keys are at hand and open.

        Raises:
            ConfigError: A key is missing, or does not open.
            ReleaseError: The channel is damaged.
        """
        with sole_use(self.folder):
            self._signers(self._state(), _CHAIN)

    def add(self, release: Release) -> bool:
        """Makes a release the current one of the channel.

        Args:
            release: The release, checked.

        Returns:
            False if it is already.

        Raises:
            ConfigError: A key is missing.
            OSError: The channel cannot be written; devices still see what was there.
            ReleaseError: The channel is damaged.
        """
        with sole_use(self.folder):
            state = self._state()
            if _current(state) == release.release_id:
                return False
            signers = self._signers(state, _CHAIN)
            self._take(release)
            data = release.manifest.to_bytes()
            state.targets.signed.targets = {MANIFEST: TargetFile.from_data(MANIFEST, data, ["sha256"])}
            write_chain(self.folder, state, _CHAIN, signers, self._now())
        return True

    def refresh(self) -> list[str]:
        """Makes the timestamp anew, and whatever else has used up half of its time and whose key is at hand.

        Returns:
            The roles that were made anew.

        Raises:
            ConfigError: A key is missing.
            OSError: The channel cannot be written.
            ReleaseError: The channel is damaged.
        """
        with sole_use(self.folder):
            state, now = self._state(), self._now()
            due = [role for role in ROLES if state.is_due(role, now) and self._at_hand(state, role)]
            first = next((n for n, role in enumerate(_CHAIN) if role in due), len(_CHAIN) - 1)
            roles = _CHAIN[first:]
            signers = self._signers(state, roles)
            write_chain(self.folder, state, roles, signers, now)
            if "root" not in due:
                return list(roles)
            write_root(self.folder, state.root, self._signers(state, ["root"])["root"], now)
            return ["root", *roles]

    def rotate(self, role: str) -> Path:
        """Gives a role a new key; the old one no longer counts.

        A new root is signed by old and new key. What else is made anew is signed by both while the old one is
        at hand, so that devices that have the old root yet go on. Interrupted without the old key, it is
        finished by whatever changes the channel next.

        Returns:
            Where the new key lies.

        Raises:
            ConfigError: There is no such role, or a key is missing that is needed for it.
            OSError: Channel or keys cannot be written.
            ReleaseError: The channel is damaged.
        """
        if role not in ROLES:
            raise ConfigError(f"there is no role '{role}'", hint=f"Choose one of: {', '.join(ROLES)}.")
        self._check_apart()
        with sole_use(self.folder):
            state, now = self._state(), self._now()
            after = () if role == "root" else _CHAIN[_CHAIN.index(role) :]
            old = state.keyids(role)
            needed = self._signers(state, ["root", *(name for name in after if name != role)])
            new = self.keys.make(role)
            root = copy.deepcopy(state.root)
            for keyid in old:
                root.signed.revoke_key(keyid, role)
            root.signed.add_key(new.public_key, role)
            needed.setdefault(role, [self.keys.read(role, own) for own in old if self.keys.has(role, own)])
            needed[role].append(new)
            keep_next_root(self.folder, root, needed["root"], now)
            write_chain(self.folder, state, after, needed, now)
            take_next_root(self.folder, root.signed.version)
        return self.keys.place(role, new.public_key.keyid)

    def status(self) -> dict[str, Any]:
        """Returns the current release, and until when each role's metadata is believed.

        Raises:
            ReleaseError: The channel is damaged.
        """
        state, now = read_state(self.folder), self._now()
        return {
            "channel": str(self.folder),
            "release": _current(state),
            "pin": sha256_file(self.folder / METADATA / root_name(newest_root(self.folder))),
            "roles": {
                role: {
                    "version": state.of(role).signed.version,
                    "expires": state.of(role).signed.expires.isoformat(),
                    "expired": state.of(role).signed.expires <= now,
                    "due": state.is_due(role, now),
                    "keys": state.keyids(role),
                }
                for role in LIFE_DAYS
            },
        }

    def _state(self) -> State:
        """Reads the channel, once a rotation that was interrupted is finished."""
        finish_rotation(self.folder)
        return read_state(self.folder)

    def _signers(self, state: State, roles: Sequence[str]) -> Signers:
        """Reads the keys of some roles; all that are missing are told at once."""
        missing = [
            f"{role}: {self.keys.place(role, keyid)}"
            for role in roles
            for keyid in state.keyids(role)
            if not self.keys.has(role, keyid)
        ]
        if missing:
            raise ConfigError(
                "keys of the channel are missing",
                missing,
                "Name their folders: --keys FOLDER, and --offline FOLDER for those of root and targets.",
            )
        return {role: [self.keys.read(role, keyid) for keyid in state.keyids(role)] for role in roles}

    def _check_apart(self) -> None:
        """Keeps private keys out of the folder that is served."""
        served = self.folder.resolve()
        inside = {
            str(own) for own in (self.keys.online, self.keys.offline) if own.resolve().is_relative_to(served)
        }
        if inside:
            raise ConfigError(
                "private keys would lie among the files that are served",
                sorted(inside),
                "Name another folder.",
            )

    def _at_hand(self, state: State, role: str) -> bool:
        return all(self.keys.has(role, keyid) for keyid in state.keyids(role))

    def _take(self, release: Release) -> None:
        """Copies blobs and manifest; each is there wholly or not at all, the manifest last."""
        blobs = self.folder / TARGETS / BLOBS
        blobs.mkdir(parents=True, exist_ok=True)
        for name, blob in release.manifest.blobs.items():
            place = blobs / blob.sha256
            if place.is_file() and sha256_file(place) == blob.sha256:
                continue
            fresh = place.with_name(f".{blob.sha256}")
            shutil.copyfile(release.blob_path(name), fresh)
            if sha256_file(fresh) != blob.sha256:
                raise ReleaseError(f"blob '{name}' was changed while it was copied", hint="Publish it again.")
            with fresh.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(fresh, place)
        sync_folder(blobs)
        atomic_write(self.folder / TARGETS / f"{release.release_id}.{MANIFEST}", release.manifest.to_bytes())


def _current(state: State) -> str | None:
    target = state.targets.signed.targets.get(MANIFEST)
    return None if target is None else target.hashes["sha256"]
