"""Authenticated encryption of what is private, each piece bound to where it belongs."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from umbel.shared.errors import StoreError

KEY_BYTES = 32
_NONCE_BYTES = 12  # random: under one key 2^32 pieces may be sealed, far more than a person has
_BLOCK_BYTES = 64  # lengths are rounded up, so that they tell little of a text


def new_key() -> bytes:
    """Returns 32 bytes from the system's generator."""
    return secrets.token_bytes(KEY_BYTES)


@final
class Sealer:
    """Seals pieces under one key; nothing of the key or of a piece is in its `repr` or in an error.

    A sealed piece is nonce (12 bytes) || ChaCha20-Poly1305(piece, padded to blocks of 64 bytes). That cipher
    is quick and free of timing leaks on boards without AES instructions, too. The place that a piece was
    sealed for is authenticated with it: moved elsewhere it does not open.
    """

    def __init__(self, key: bytes):
        """Derives a key for sealing and one for marks, so that neither says anything of the other."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"expected a key of {KEY_BYTES} bytes")
        self._cipher = ChaCha20Poly1305(_derived(key, b"umbel seal"))
        self._marks = _derived(key, b"umbel mark")

    def __repr__(self) -> str:
        return "Sealer()"

    def seal(self, piece: bytes, place: str) -> bytes:
        """Returns the piece sealed for a place.

        Args:
            piece: What is private.
            place: Where it belongs, such as "profiles/<release>".
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, _padded(piece), place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """Returns the piece that was sealed for a place.

        Raises:
            StoreError: It was changed, belongs elsewhere, or was sealed under another key.
        """
        try:
            padded = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode())
        except (InvalidTag, ValueError):
            raise StoreError(
                "a sealed piece does not open",
                [f"{_kind(place)}: it was changed, belongs elsewhere, or has another key"],
                "Take the store from a backup, or import an export of yours.",
            ) from None
        return _unpadded(padded)

    def mark(self, piece: bytes) -> bytes:
        """Returns 32 bytes by which equal pieces are found; without the key they say nothing."""
        return hmac.new(self._marks, piece, hashlib.sha256).digest()


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(key)


def _padded(piece: bytes) -> bytes:
    """Returns length (4 bytes) || piece || zeros, whole blocks in all."""
    framed = len(piece).to_bytes(4, "big") + piece
    return framed + bytes(-len(framed) % _BLOCK_BYTES)


def _unpadded(padded: bytes) -> bytes:
    return padded[4 : 4 + int.from_bytes(padded[:4], "big")]


def _kind(place: str) -> str:
    return place.partition("/")[0]
