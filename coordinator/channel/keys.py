"""The private keys of a channel: Ed25519, one file each, which root says whether to trust."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from umbel.shared.errors import ConfigError
from umbel.shared.files import atomic_write

OFFLINE = ("root", "targets")
"""Roles whose keys are needed only to change keys and to add a release."""

_SHOWN_DIGITS = 12


@final
@dataclass(frozen=True, slots=True)
class Keys:
    """Where a channel's private keys lie.

    Attributes:
        online: Folder of the keys of snapshot and timestamp, which are needed every few days.
        offline: Folder of the keys of root and targets.
        ask: Gives the passphrase of sealed keys, for a role.
        sealed: Whether new keys are sealed by it.
    """

    online: Path
    offline: Path
    ask: Callable[[str], str]
    sealed: bool = False

    def place(self, role: str, keyid: str) -> Path:
        """Returns where the key with an id lies."""
        folder = self.offline if role in OFFLINE else self.online
        return folder / f"{role}-{keyid[:_SHOWN_DIGITS]}.pem"

    def make(self, role: str) -> CryptoSigner:
        """Makes a key for a role and keeps it in a file of mode 0600.

        Raises:
            OSError: It cannot be written.
        """
        private = Ed25519PrivateKey.generate()
        seal = BestAvailableEncryption(self.ask(role).encode()) if self.sealed else NoEncryption()
        signer = CryptoSigner(private)
        path = self.place(role, signer.public_key.keyid)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, seal), mode=0o600)
        return signer

    def has(self, role: str, keyid: str) -> bool:
        """Says whether the file of a key is there."""
        return self.place(role, keyid).is_file()

    def read(self, role: str, keyid: str) -> CryptoSigner:
        """Reads a key.

        Raises:
            ConfigError: It is missing, no Ed25519 key, another key, or its passphrase is wrong.
            OSError: It cannot be read.
        """
        path = self.place(role, keyid)
        if not path.is_file():
            raise ConfigError(f"the key of {role} is not at {path}", hint=_WHERE)
        data = path.read_bytes()
        secret = self.ask(role).encode() if b"ENCRYPTED" in data else None
        try:
            private = load_pem_private_key(data, secret)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigError(
                f"the key at {path} does not open", hint="Its passphrase is wrong, or the file is damaged."
            ) from None
        signer = CryptoSigner(private) if isinstance(private, Ed25519PrivateKey) else None
        if signer is None or signer.public_key.keyid != keyid:
            raise ConfigError(f"{path} holds another key than the one that the channel trusts", hint=_WHERE)
        return signer


_WHERE = "Name the folders of its keys: --keys FOLDER, and --offline FOLDER for those of root and targets."
