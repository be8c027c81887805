"""Who works with whom in a secure sum, as a function of the seed and the round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from umbel.shared.checks import count_problems, number_problems
from umbel.shared.rng import generator
from umbel.shared.secure.group import FEWEST, MOST_SHARES, Group, least_threshold


@final
@dataclass(frozen=True, slots=True)
class SecureSettings:
    """How changes are summed without the coordinator seeing them.

    Attributes:
        least: A sum over fewer devices is not opened, here and by the devices.
        threshold: Share of a device's holders that must remain for its masks to be taken off.
        peers: The most others that a device has masks and shares with; all of them where there are fewer.
    """

    least: int = 5
    threshold: float = 0.6
    peers: int = 32

    def problems(self) -> list[str]:
        """Returns what is out of range, one line each."""
        return [
            *count_problems("min_devices_in_a_sum", self.least, FEWEST, MOST_SHARES),
            *number_problems("secure_threshold", self.threshold, 0.5, 1.0),
            *count_problems("secure_peers", self.peers, 2, MOST_SHARES - 1),
        ]


def plan(
    clients: Sequence[int], settings: SecureSettings, seed: int, round_: int, weighted: bool
) -> dict[int, Group]:
    """Returns every device's group: the devices on a circle in an order that nobody could choose.

    Args:
        clients: Device numbers, at least `settings.least` of them.
        settings: How.
        seed: The run's seed.
        round_: The round.
        weighted: Whether changes count as much as their examples.
    """
    devices = len(clients)
    shares = _shares(devices, settings)
    least = min(settings.least, shares)
    threshold = max(int(settings.threshold * shares) + 1, least_threshold(shares, least))
    order = generator(seed, round_, "", "secure circle").permutation(devices)
    return {
        client: Group(int(place), devices, shares, min(shares, threshold), least, weighted)
        for client, place in zip(sorted(clients), order, strict=True)
    }


def _shares(devices: int, settings: SecureSettings) -> int:
    wanted = max(settings.peers + 1, settings.least)
    wanted += 1 - wanted % 2  # as many peers on one side as on the other
    return min(devices, wanted)
