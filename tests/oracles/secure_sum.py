"""Secure sums, slowly: who is left after each stage, and the plain mean of what they sent, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from fractions import Fraction

import numpy as np
import numpy.typing as npt

STAGES = ("train.setup", "train.share", "train.collect", "train.unmask")


def opens(devices: int, least: int, threshold: int, lost: Mapping[str, Set[int]]) -> bool:
    """Whether a sum in which everyone works with everyone is opened, if so many are lost in each stage."""
    left = set(range(devices))
    for stage in STAGES:
        if len(left) < max(least, threshold):
            return False
        left -= lost[stage]
    return len(left) >= max(least, threshold)


def senders(devices: int, lost: Mapping[str, Set[int]]) -> list[int]:
    """Whose change is in the sum: all who were there until they had sent it."""
    gone = lost["train.setup"] | lost["train.share"] | lost["train.collect"]
    return [device for device in range(devices) if device not in gone]


def mean(
    changes: Sequence[Mapping[str, npt.NDArray[np.float32]]], weights: Sequence[int]
) -> dict[str, npt.NDArray[np.float64]]:
    """The weighted mean, number by number, as fractions."""
    found = {}
    for name, first in changes[0].items():
        numbers = []
        for position in range(first.size):
            terms = [
                weight * Fraction(float(c[name].flat[position]))
                for c, weight in zip(changes, weights, strict=True)
            ]
            numbers.append(float(sum(terms) / sum(weights)))
        found[name] = np.array(numbers, np.float64).reshape(first.shape)
    return found
