"""Who holds the key of a store: the system's keyring, a file that only its owner reads, or a passphrase.

The store's own key is random and lies in the store, wrapped by the holder's: another holder or passphrase
wraps it anew, and nothing needs to be sealed again.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from umbel.device_client.vault.sealing import KEY_BYTES, Sealer, new_key
from umbel.shared.errors import StoreError
from umbel.shared.files import atomic_write, plain_file

Ask = Callable[[], str]
"""Gives the passphrase when it is needed."""

MIN_PASSPHRASE = 8
_SERVICE = "umbel"
_SALT_BYTES = 16
_SCRYPT = {"n": 1 << 16, "r": 8, "p": 1}  # 64 MiB for a moment: what a small board can spare
_MOST_N = 1 << 17  # 128 MiB
_PLACE = "key"
_OTHERS = "Keep the key in a file or have a passphrase: --key file, or --key passphrase."


class KeyHolder(ABC):
    """Holds the key that wraps a store's own.

    Attributes:
        kind: Its name in the store.
    """

    kind: ClassVar[str]

    @abstractmethod
    def make(self) -> tuple[bytes, dict[str, Any]]:
        """Makes a key and keeps it; returns it, and what must be told to `read` (nothing secret).

        Raises:
            StoreError: It cannot be kept.
        """

    @abstractmethod
    def read(self, told: Mapping[str, Any]) -> bytes:
        """Returns the key.

        Raises:
            StoreError: It is not there, or cannot be read.
        """

    @abstractmethod
    def erase(self) -> None:
        """Forgets the key, where it is kept anywhere; then nobody opens the store again."""


@final
class KeyFile(KeyHolder):
    """A file of 32 random bytes that only its owner may read."""

    kind = "file"

    def __init__(self, path: Path):
        self.path = path

    def make(self) -> tuple[bytes, dict[str, Any]]:
        """Writes a new key, or takes the one that is there: an interrupted beginning is gone on with."""
        if self.path.exists():
            return self.read({}), {}
        key = new_key()
        try:
            atomic_write(self.path, key, mode=0o600)
        except OSError as error:
            raise _unkept(self.path, error) from None
        return key, {}

    def read(self, told: Mapping[str, Any]) -> bytes:
        """Reads the key; refuses a file that others may read."""
        try:
            with plain_file(self.path) as stream:
                mode = os.fstat(stream.fileno()).st_mode & 0o777
                key = stream.read(KEY_BYTES + 1)
        except OSError as error:
            raise StoreError(
                f"the store's key cannot be read from {self.path}",
                [error.strerror or type(error).__name__],
                "Without it the store cannot be opened: take it from a backup, or import an export of yours.",
            ) from None
        problems = [f"others may read it (mode {mode:03o})"] if os.name == "posix" and mode & 0o077 else []
        problems += [f"it has not {KEY_BYTES} bytes"] if len(key) != KEY_BYTES else []
        if problems:
            hint = f"Make it yours alone: chmod 600 {self.path}" if mode & 0o077 else ""
            raise StoreError(f"{self.path} is no key of a store", problems, hint)
        return key

    def erase(self) -> None:
        """Overwrites the file and removes it."""
        if not self.path.exists():
            return
        try:
            with suppress(OSError):  # overwritten as far as the disk lets anybody, a full one may not
                self.path.chmod(0o600)
                with self.path.open("r+b") as stream:
                    stream.write(secrets.token_bytes(KEY_BYTES))
                    stream.flush()
                    os.fsync(stream.fileno())
            self.path.unlink()
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise StoreError(f"the store's key {self.path} cannot be erased", [why]) from None


@final
class Keyring(KeyHolder):
    """The system's keyring, under the store's number."""

    kind = "keyring"

    def __init__(self, store: str):
        self.store = store

    def make(self) -> tuple[bytes, dict[str, Any]]:
        """Puts a new key into the keyring."""
        key = new_key()
        with _keyring() as ring:
            ring.set_password(_SERVICE, self.store, base64.b64encode(key).decode())
        if self.read({}) != key:  # some keyrings take everything and keep nothing
            raise StoreError("the system's keyring does not keep what it is given", hint=_OTHERS)
        return key, {}

    def read(self, told: Mapping[str, Any]) -> bytes:
        """Takes the key out of the keyring."""
        with _keyring() as ring:
            found = ring.get_password(_SERVICE, self.store)
        try:
            key = base64.b64decode(found or "", validate=True)
        except binascii.Error:
            key = b""
        if len(key) != KEY_BYTES:
            raise StoreError(
                "the system's keyring has no key for this store",
                hint="It is another person's or machine's: import an export of yours.",
            )
        return key

    def erase(self) -> None:
        """Takes the key out for good."""
        with _keyring() as ring:
            if ring.get_password(_SERVICE, self.store) is not None:
                ring.delete_password(_SERVICE, self.store)


@final
class Passphrase(KeyHolder):
    """Nothing is kept: key = scrypt(passphrase, salt)."""

    kind = "passphrase"

    def __init__(self, ask: Ask):
        self._ask = ask

    def make(self) -> tuple[bytes, dict[str, Any]]:
        """Draws a salt."""
        words = self._ask()
        if len(words) < MIN_PASSPHRASE:
            raise StoreError(
                "the passphrase is too short",
                [f"it has {len(words)} characters, at least {MIN_PASSPHRASE} are needed"],
                "Several words that nobody would guess are easy to remember.",
            )
        salt = secrets.token_bytes(_SALT_BYTES)
        return _stretched(words, salt, _SCRYPT), {"salt": salt.hex(), **_SCRYPT}

    def read(self, told: Mapping[str, Any]) -> bytes:
        """Asks for the passphrase and stretches it."""
        salt, costs = _checked(told)
        return _stretched(self._ask(), salt, costs)

    def erase(self) -> None:
        """Does nothing: the salt goes with the store."""


def wrap(key: bytes, holder: KeyHolder, store: str) -> dict[str, Any]:
    """Returns what a store keeps of its key: who holds the other one, and itself, sealed by that.

    Args:
        key: The store's own.
        holder: Makes and keeps the other.
        store: The store's number.
    """
    outer, told = holder.make()
    sealed = Sealer(outer).seal(key, f"{_PLACE}/{store}/{holder.kind}")
    return {"holder": holder.kind, "told": told, "wrapped": sealed.hex()}


def unwrap(kept: Mapping[str, Any], holder: KeyHolder, store: str, what: str = "the store") -> bytes:
    """Returns the key of a store, or of an export of one: `what` is its name in words.

    Raises:
        StoreError: The holder's key is not there or is another one: a wrong passphrase, say.
    """
    told, wrapped = kept.get("told"), kept.get("wrapped")
    if not isinstance(told, dict) or not isinstance(wrapped, str):
        raise StoreError(f"{what}'s key is damaged", hint=f"Take {what} from a backup.")
    outer = holder.read(told)
    try:
        return Sealer(outer).open(bytes.fromhex(wrapped), f"{_PLACE}/{store}/{holder.kind}")
    except (StoreError, ValueError):
        why = "the passphrase is wrong" if holder.kind == Passphrase.kind else "the key is another store's"
        raise StoreError(
            f"{what} does not open: {why}, or {what}'s key was changed", hint="Nothing was changed."
        ) from None


def _stretched(words: str, salt: bytes, costs: Mapping[str, int]) -> bytes:
    # Typed on another system, an accented letter may be two characters; and an environment holds any bytes.
    plain = unicodedata.normalize("NFC", words).encode("utf-8", "surrogateescape")
    return Scrypt(salt=salt, length=KEY_BYTES, **costs).derive(plain)


def _checked(told: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """Returns salt and costs; a changed file must not make scrypt fill the memory."""
    costs = {name: told.get(name) for name in _SCRYPT}
    salt = told.get("salt")
    n = costs["n"]
    fits = isinstance(n, int) and 2 <= n <= _MOST_N and n & (n - 1) == 0
    fits = fits and costs["r"] == _SCRYPT["r"] and costs["p"] == _SCRYPT["p"]
    try:
        raw = bytes.fromhex(salt) if isinstance(salt, str) else b""
    except ValueError:
        raw = b""
    if not fits or len(raw) != _SALT_BYTES:
        raise StoreError("what is kept beside the passphrase is damaged", hint="Take the file from a backup.")
    return raw, {name: int(value) for name, value in costs.items() if value is not None}


class _keyring:  # noqa: N801 - a context, used like a function
    """Gives the keyring library, and turns its errors into one of ours."""

    def __enter__(self) -> Any:
        try:
            import keyring
        except ModuleNotFoundError:
            raise StoreError(
                "the library 'keyring' is not installed",
                hint="pip install keyring, or keep the key in a file: --key file, or --key passphrase.",
            ) from None
        return keyring

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, StoreError) or not isinstance(error, Exception):
            return
        raise StoreError("this system's keyring cannot be used", [type(error).__name__], _OTHERS) from None


def _unkept(path: Path, error: OSError) -> StoreError:
    return StoreError(f"the store's key cannot be kept in {path}", [error.strerror or type(error).__name__])
