"""The cryptography of secure aggregation: Flower's SecAgg+ primitives, and AES for the masks.

Both sides must compute the same keys, shares and masks, so this is the one place where they are made; Flower
and cryptography are loaded when they are first used. One of Flower's is left out, `pseudo_rand_gen`: it folds
a seed into 32 bits, so that a mask is found by trying, and Mersenne Twister is no cipher. Masks are the key
stream of AES-256 in counter mode instead, as in the protocol's paper (Bonawitz et al., CCS 2017).
Sizes are constant, so that every message of a stage has one size.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

Words: TypeAlias = npt.NDArray[np.uint32]

PUBLIC_BYTES = 215
"""A public key on the curve P-384, as PEM."""
PRIVATE_BYTES = 48
SEED_BYTES = 32
SEED_SHARE_BYTES, KEY_SHARE_BYTES = 52, 68
"""A share: 4 bytes that say which it is, then 16 for every begun 16 bytes of the secret and one more."""
SEALED_BYTES = 268
"""Two shares and whom they are from and for, under Fernet."""
COMMITMENT_BYTES = 32


def key_pair() -> tuple[bytes, bytes]:
    """Returns a new private key and its public key."""
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

    private, public = generate_key_pairs()
    return private.private_numbers().private_value.to_bytes(PRIVATE_BYTES, "big"), public_key_to_bytes(public)


def public_key(private: bytes) -> bytes:
    """Returns the public key of a private one.

    Raises:
        ValueError: It is no private key.
    """
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return public_key_to_bytes(_private(private).public_key())


def is_public_key(data: bytes) -> bool:
    """Says whether it is a public key that two sides can agree on a key with."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key

    try:
        curve = bytes_to_public_key(data).curve
    except (ValueError, TypeError, UnsupportedAlgorithm, AttributeError):
        return False
    return isinstance(curve, ec.SECP384R1)


def agreed_key(private: bytes, public: bytes) -> bytes:
    """Returns the key that two sides have in common, each with its own private and the other's public key.

    Raises:
        ValueError: One of them is no key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key

    try:
        return generate_shared_key(_private(private), bytes_to_public_key(public))
    except (ValueError, TypeError, UnsupportedAlgorithm, AttributeError):
        raise ValueError("no key of the curve P-384") from None


def new_seed() -> bytes:
    """Returns the seed of a device's own mask, from the system."""
    return os.urandom(SEED_BYTES)


def commitment(seed: bytes) -> bytes:
    """Returns what binds a device to its seed and tells nothing of it: the seed has 256 random bits."""
    return hashlib.sha256(b"umbel secure aggregation seed" + seed).digest()


def shares_of(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Returns Shamir's shares of a secret: `threshold` of them give it, fewer tell nothing."""
    from flwr.common.secure_aggregation.crypto.shamir import create_shares

    return create_shares(secret, threshold, count)


def secret_of(shares: Sequence[bytes]) -> bytes:
    """Returns the secret that shares were made of.

    Raises:
        ValueError: They are not shares of one secret.
    """
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares

    try:
        return combine_shares(list(shares))
    except (ValueError, IndexError, ZeroDivisionError):
        raise ValueError("not shares of one secret") from None


def sealed(key: bytes, source: int, target: int, seed_share: bytes, key_share: bytes) -> bytes:
    """Returns two shares as only the holder of `key` can read them."""
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat

    return encrypt(key, share_keys_plaintext_concat(source, target, seed_share, key_share))


def unsealed(key: bytes, data: bytes) -> tuple[int, int, bytes, bytes]:
    """Returns source, target, the seed's share and the key's share.

    Raises:
        ValueError: It was not sealed with this key, or is damaged.
    """
    from cryptography.fernet import InvalidToken
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_separate

    try:
        return share_keys_plaintext_separate(decrypt(key, data))
    except InvalidToken:
        raise ValueError("not sealed with this key") from None


def key_for(agreed: bytes, terms: bytes) -> bytes:
    """Returns the key of a mask out of one that two sides agreed on: HMAC-SHA256 of what it is for."""
    return hmac.digest(base64.urlsafe_b64decode(agreed), b"umbel secure aggregation mask" + terms, "sha256")


def mask(key: bytes, count: int) -> Words:
    """Returns `count` numbers that look random to who does not have the key; a key makes one mask only.

    Args:
        key: 32 bytes: a seed, or what `key_for` gives.
        count: How many.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(4 * count)), "<u4").astype(np.uint32, copy=False)


def _private(private: bytes) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP384R1())
