"""What rounds cost: the epsilon of Poisson-sampled Gaussian sums, by Google's dp-accounting.

Two runs are neighbours if they differ by one device, with all its examples, being there or not.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=4096)
def epsilon(rate: float, noise_multiplier: float, rounds: int, delta: float) -> float:
    """Returns the epsilon that a number of rounds has cost, at a delta.

    It is composed from privacy loss distributions, rounded up (`dp_accounting.pld`).

    Args:
        rate: q, the chance of each device to be sampled in a round.
        noise_multiplier: z, the noise's standard deviation over the clip.
        rounds: How many.
        delta: The chance with which the bound may fail.
    """
    if rounds == 0:
        return 0.0
    return float(_one_round(rate, noise_multiplier).self_compose(rounds).get_epsilon_for_delta(delta))


def chance_of_deciding(rate: float, population: int, least: int) -> float:
    """Returns the chance that one device decides in a round whether a secure sum is opened.

    It is sampled, and of the others exactly `least` - 1 are: with it their sum is seen, without it nothing.

    Args:
        rate: q, the chance of each device to be sampled.
        population: How many devices there are.
        least: A sum over fewer is not opened.

    Example:
        >>> round(chance_of_deciding(0.5, 10, 5), 3), chance_of_deciding(1.0, 5, 5)
        (0.123, 1.0)
    """
    others, needed = population - 1, least - 1
    if needed > others:
        return 0.0
    if rate >= 1.0:
        return float(needed == others)
    ways = math.lgamma(others + 1) - math.lgamma(needed + 1) - math.lgamma(others - needed + 1)
    return rate * math.exp(ways + needed * math.log(rate) + (others - needed) * math.log1p(-rate))


@lru_cache(maxsize=8)  # the same for all rounds of a run, and most of the work
def _one_round(rate: float, noise_multiplier: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(noise_multiplier, sampling_prob=rate)
