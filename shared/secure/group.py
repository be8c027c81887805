"""Who works with whom in a secure sum: the devices of a round on a circle, each with the peers next to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from umbel.shared.checks import count_problems

FEWEST = 3
"""A sum over two tells each of them the other's change."""
MOST_DEVICES = 2**16
MOST_SHARES = 1025


@final
@dataclass(frozen=True, slots=True)
class Group:
    """A device's place in a round.

    Attributes:
        place: From 0; a device is known to its peers by it, and to nobody outside the round.
        devices: n, how many are on the circle.
        shares: k, how many hold a share of a device's secrets: itself and its peers. n, or odd.
        threshold: t, how many shares give a secret.
        least: How many devices a sum must be over to be opened.
        weighted: Whether a change counts as much as the examples that it rests on.
    """

    place: int
    devices: int
    shares: int
    threshold: int
    least: int
    weighted: bool = False

    def problems(self) -> list[str]:
        """Returns what makes this no group in which a device may take part, one line each."""
        found = count_problems("devices", self.devices, FEWEST, MOST_DEVICES)
        if found:
            return found
        found += count_problems("place", self.place, 0, self.devices - 1)
        found += count_problems("shares", self.shares, FEWEST, min(self.devices, MOST_SHARES))
        found += count_problems("least", self.least, FEWEST, self.devices)
        found += count_problems("threshold", self.threshold, 2, self.devices)
        return found or self._threshold_problems()

    def _threshold_problems(self) -> list[str]:
        found = []
        if self.shares < self.devices and self.shares % 2 == 0:
            found.append("shares is even, and fewer than the devices")
        if self.least > self.shares:
            found.append(f"least is {self.least}, but a device sees only {self.shares} of the sum")
        low = least_threshold(self.shares, min(self.least, self.shares))
        if not low <= self.threshold <= self.shares:
            found.append(f"threshold is {self.threshold}, expected {low} to {self.shares}")
        return found

    def peers(self) -> tuple[int, ...]:
        """Returns the places of a device's peers, sorted."""
        if self.shares == self.devices:
            return tuple(place for place in range(self.devices) if place != self.place)
        half = self.shares // 2
        steps = [step for step in range(-half, half + 1) if step]
        return tuple(sorted((self.place + step) % self.devices for step in steps))


def least_threshold(shares: int, least: int) -> int:
    """Returns the smallest t that holds against a coordinator that tells each device another tale.

    A device gives one kind of share of each peer, and the other kind only if it is told of at least t that
    remain. To open a sum over s of k devices, a coordinator needs t shares each of the keys of the k - s
    others, and k devices give at most k (k - t) of them; so s >= k (2 t - k) / t, which is at least
    `least` from t = k^2 / (2 k - least) on. That is more than half of k: no device's both secrets come out.

    Example:
        >>> least_threshold(12, 5), least_threshold(3, 3)
        (8, 3)
    """
    return math.ceil(shares * shares / (2 * shares - least))
