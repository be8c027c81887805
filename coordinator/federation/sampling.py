"""Who is chosen, as a function of seed, round and purpose."""

from __future__ import annotations

from collections.abc import Sequence

from umbel.shared.rng import generator


def sampled(clients: Sequence[int], count: int, seed: int, round_: int, purpose: str) -> list[int]:
    """Returns `count` of the devices, all of them if there are fewer; a function of the arguments only.

    Args:
        clients: Device numbers, sorted.
        count: How many to choose.
        seed: The run's seed.
        round_: The round; 0 where the choice is for all rounds.
        purpose: What for.

    Example:
        >>> sampled([10, 20, 30], 5, 0, 1, "sample")
        [10, 20, 30]
    """
    if count >= len(clients):
        return list(clients)
    index = generator(seed, round_, "", purpose).choice(len(clients), count, replace=False)
    return sorted(clients[i] for i in index.tolist())
