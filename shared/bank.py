"""A bank of random matrices that a seed stands for: every machine rebuilds the same bits of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from umbel.shared.profile import FloatArray
from umbel.shared.rng import generator

GENERATOR = "umbel.bank/1"
"""Name and version of what `random_bank` makes: whoever changes one bit of it changes the version."""

_DEVIATION = math.sqrt((256**2 - 1) / 3)
"""Standard deviation of the odd numbers from -255 to 255, all as likely."""


def random_bank(seed: int, part: str, shape: tuple[int, ...], deviation: float) -> FloatArray:
    """Returns random values of mean 0 and the given standard deviation: (*shape) float32.

    Each is one of the 256 odd numbers from -255 to 255, all as likely, times one float32. Only the raw bits
    of the generator are used, which numpy promises never to change, and one multiplication, which every
    processor rounds alike.

    Args:
        seed: Seed of the bank.
        part: Which part of it, such as "layer 0 down"; the parts are independent.
        shape: Shape of this part.
        deviation: Standard deviation of the values.

    Example:
        >>> random_bank(0, "layer 0 down", (2, 2), 1.0).dtype
        dtype('float32')
        >>> bool((random_bank(1, "x", (5,), 1.0) == random_bank(1, "x", (5,), 1.0)).all())
        True
    """
    count = math.prod(shape)
    raw = generator(seed, 0, "", f"bank {part}").bit_generator.random_raw(-(-count // 8))
    levels = np.asarray(raw).astype("<u8").view(np.int8)[:count]
    odd = 2 * levels.astype(np.float32) + 1
    return (odd * np.float32(deviation / _DEVIATION)).reshape(shape)


@final
@dataclass(frozen=True, slots=True)
class RandomTensor:
    """What `random_bank` needs to make one tensor.

    Attributes:
        seed: Seed of the bank.
        part: Which part of the bank it is.
        shape: Its shape.
        deviation: Standard deviation of its values.
    """

    seed: int
    part: str
    shape: tuple[int, ...]
    deviation: float

    def values(self) -> FloatArray:
        """Returns the tensor: (*shape) float32."""
        return random_bank(self.seed, self.part, self.shape, self.deviation)
