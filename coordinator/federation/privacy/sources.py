"""Where chance comes from: a secret key in real runs, the experiment's seed in simulations.

Who was sampled must be as secret as the noise: the accounting counts on it. Devices are told the run's seed,
so in a real run neither may follow from it. With a key that is kept beside the rounds, a run that was killed
goes on with the same sample and noise as if it had not been.
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from umbel.shared.errors import ConfigError
from umbel.shared.files import atomic_write
from umbel.shared.rng import generator

KEY = "noise.key"
_KEY_BYTES = 32
_PAIRS = 2**16  # pairs of normal numbers that are made at a time

Floats = npt.NDArray[np.float64]


class Source(Protocol):
    """Gives chance as a function of place: round, purpose and what it is for."""

    def uniform(self, round_: int, purpose: str, subject: str, size: int) -> Floats:
        """Returns numbers from 0 up to 1: (size,)."""

    def normal(self, round_: int, purpose: str, subject: str, size: int) -> Floats:
        """Returns normal numbers of mean 0 and standard deviation 1: (size,)."""


@final
class SeedSource:
    """Everything follows from the seed, so whoever knows it can take the noise off: for simulations only."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def uniform(self, round_: int, purpose: str, subject: str, size: int) -> Floats:
        """Returns numbers from 0 up to 1."""
        return generator(self._seed, round_, subject, purpose).random(size)

    def normal(self, round_: int, purpose: str, subject: str, size: int) -> Floats:
        """Returns normal numbers, the same for every subject."""
        del subject
        return generator(self._seed, round_, "", purpose).standard_normal(size)


@final
class KeySource:
    """Everything follows from a secret key of 256 bits, by HMAC-SHA256 and ChaCha20.

    A normal number is half the sum of four, each by Box and Muller from 53 random bits, so that the gaps
    between floating-point numbers do not tell what was added to it (Holohan and Braghin, 2021).
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError(f"the key has {len(key)} bytes, expected {_KEY_BYTES}")
        self._key = key

    def uniform(self, round_: int, purpose: str, subject: str, size: int) -> Floats:
        """Returns numbers from 0 up to 1, of 53 random bits each."""
        bits = np.frombuffer(self._stream(round_, purpose, subject).update(bytes(8 * size)), "<u8")
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, round_: int, purpose: str, subject: str, size: int) -> Floats:
        """Returns normal numbers."""
        stream = self._stream(round_, purpose, subject)
        found = np.empty(size)
        for start in range(0, size, 2 * _PAIRS):
            count = min(2 * _PAIRS, size - start)
            pairs = (count + 1) // 2
            four = [_box_muller(stream.update(bytes(16 * pairs)))[:count] for _ in range(4)]
            found[start : start + count] = (four[0] + four[1] + four[2] + four[3]) / 2
        return found

    def _stream(self, round_: int, purpose: str, subject: str) -> Any:
        """Returns what turns zeros into the random bytes of a place."""
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

        place = hmac.digest(self._key, f"{round_}|{len(purpose)}|{purpose}|{subject}".encode(), sha256)
        # The key is used for this place alone, so its nonce may be anything.
        return Cipher(ChaCha20(place, bytes(16)), mode=None).encryptor()


def _box_muller(data: bytes) -> Floats:
    """Returns a normal number for every 8 random bytes: sqrt(-2 ln u) cos(2 pi v) and the same with sin."""
    bits = np.frombuffer(data, "<u8") >> np.uint64(11)
    u, v = ((bits.astype(np.float64) + 1) * 2.0**-53).reshape(2, -1)  # above 0, up to 1
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * v
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def kept_key(folder: Path, *, begun: bool = False) -> bytes:
    """Returns the key of a run's folder; makes it with the system's random numbers if there is none.

    Args:
        folder: The run's.
        begun: Whether rounds are finished, so that there must be a key: under another one, a round that is
            run again would show the same changes with other noise.

    Raises:
        ConfigError: It cannot be read or written, is damaged, or is missing although there must be one.
    """
    path = folder / KEY
    hint = "Restore it, or choose another out folder: without it the noise of a run cannot go on."
    try:
        if not path.exists() and begun:
            problem = f"{path} is missing, but rounds that were noised with it are there"
            raise ConfigError("the key of the noise cannot be used", [problem], hint)
        if not path.exists():
            atomic_write(path, secrets.token_bytes(_KEY_BYTES), mode=0o600)
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            "the key of the noise cannot be used", [f"{path}: {error.strerror}"], hint
        ) from None
    if len(key) != _KEY_BYTES:
        problem = f"{path} has {len(key)} bytes, expected {_KEY_BYTES}"
        raise ConfigError("the key of the noise cannot be used", [problem], hint)
    return key
