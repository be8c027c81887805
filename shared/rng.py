"""Randomness as a function of place: who, when and what for, never of the order in which things ran."""

import hashlib

import numpy as np


def generator(seed: int, round_: int, user: str, purpose: str) -> np.random.Generator:
    """Returns the generator of one (seed, round, user, purpose).

    The same place gives the same numbers on every machine, whatever the engine or the worker count, and two
    different places give independent streams.

    Args:
        seed: The experiment's seed, any integer.
        round_: The round or step; 0 where there is none.
        user: The user's id; empty for randomness that belongs to no user.
        purpose: What the numbers are for, such as "dropout" or "split".

    Example:
        >>> generator(1, 0, "ann", "split").integers(100) == generator(1, 0, "ann", "split").integers(100)
        np.True_
        >>> generator(1, 0, "ann", "split").integers(2**60) == generator(1, 0, "bob", "split").integers(2**60)
        np.False_
    """
    return np.random.Generator(np.random.Philox(key=_digest(seed, round_, user, purpose) >> 128))


def integer_seed(seed: int, round_: int, user: str, purpose: str) -> int:
    """Returns a 63-bit seed of one place, for libraries that take only an integer."""
    return _digest(seed, round_, user, purpose) >> 193


def _digest(seed: int, round_: int, user: str, purpose: str) -> int:
    # JSON-like quoting by length, so that ("a", "bc") and ("ab", "c") are different places.
    place = f"{seed}|{round_}|{len(user)}|{user}|{purpose}"
    return int.from_bytes(hashlib.sha256(place.encode()).digest(), "big")
