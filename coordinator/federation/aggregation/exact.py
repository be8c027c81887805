"""Sums of float32 tensors that do not depend on the order, in memory that does not depend on their number.

A floating-point sum depends on the order of its terms, and answers arrive in any order. So each value is
written as two whole numbers, which add up exactly in any order: with |x| < 2^e,

    x = (high + low 2^-32) 2^(e - 32) + error,   |high| <= 2^32,   |low| <= 2^31,   |error| <= 2^(e - 65)

The error is that of the last digit of `low`; a float32 of at least 2^(e - 41) has none. Divided by the sum
of the weights, the mean is off by at most 2^(e - 65), and then rounded to float32 as any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import final

import numpy as np
import numpy.typing as npt

from umbel.shared.profile import FloatArray

_DIGITS = 32  # bits of `high`, and of `low`
MOST_WEIGHT = 2**30
"""The largest sum of weights: 2^32 times it still is a number of 64 bits."""
_BLOCK = 2**14

Integers = npt.NDArray[np.int64]


@final
class ExactSum:
    """A weighted sum of tensors: 16 bytes for each value, whatever the number of terms."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], bound: float) -> None:
        """Begins at zero.

        Args:
            shapes: name -> shape of every tensor.
            bound: Largest size of any value; e is the smallest power with bound < 2^e.
        """
        exponent = math.frexp(bound)[1]
        self._unit = 2.0 ** (exponent - _DIGITS)
        self._shapes = dict(shapes)
        self._high: dict[str, Integers] = {n: np.zeros(math.prod(s), np.int64) for n, s in shapes.items()}
        self._low: dict[str, Integers] = {n: np.zeros(math.prod(s), np.int64) for n, s in shapes.items()}
        self.weight = 0

    def add(self, values: Mapping[str, FloatArray], weight: int = 1) -> None:
        """Adds `weight` times the tensors.

        Args:
            values: name -> float32 of the shape that was given, all finite, none larger than the bound.
            weight: A whole number from 1.

        Raises:
            OverflowError: The sum of the weights is above MOST_WEIGHT.
        """
        if self.weight + weight > MOST_WEIGHT:
            raise OverflowError(f"the sum of the weights would be above {MOST_WEIGHT}")
        self.weight += weight
        for name, high in self._high.items():
            flat, low = values[name].reshape(-1), self._low[name]
            for place in _blocks(flat.size):
                scaled = flat[place].astype(np.float64) / self._unit  # exact: the unit is a power of two
                whole = np.rint(scaled)
                rest = np.rint((scaled - whole) * 2.0**_DIGITS)
                high[place] += weight * whole.astype(np.int64)
                low[place] += weight * rest.astype(np.int64)

    def sums(self) -> dict[str, npt.NDArray[np.float64]]:
        """Returns the sums, rounded to float64 once: name -> (*shape)."""
        return {name: self._rounded(name).reshape(shape) for name, shape in self._shapes.items()}

    def _rounded(self, name: str) -> npt.NDArray[np.float64]:
        high, low = self._high[name], self._low[name]
        rounded = np.empty(high.size)
        for place in _blocks(high.size):
            # Carried first, so that no digits cancel when the two parts are rounded and added.
            carried = (low[place] + 2 ** (_DIGITS - 1)) >> _DIGITS
            rest = low[place] - (carried << _DIGITS)
            rounded[place] = (high[place] + carried + rest * 2.0**-_DIGITS) * self._unit
        return rounded


def _blocks(size: int) -> Iterator[slice]:
    """Yields slices that cover `size` values, so few at a time that they stay in the processor's cache."""
    for start in range(0, size, _BLOCK):
        yield slice(start, start + _BLOCK)
