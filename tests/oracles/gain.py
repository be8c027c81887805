"""Noised gains by the definitions: the noise's chances one by one, and the mean of what was told."""

import math
from collections.abc import Sequence


def laplace_chances(scale: int, most: int) -> list[float]:
    """Returns P(-most), ..., P(most) of discrete Laplace noise; what is beyond `most` must not matter."""
    weights = [math.exp(-abs(k) / scale) for k in range(-most, most + 1)]
    every = math.fsum(weights)
    return [weight / every for weight in weights]


def gain_oracle(noised: Sequence[int], steps: int, noise_variance: float) -> tuple[float, float]:
    """Returns the mean gain that devices' numbers tell, and its standard error.

    The noise has mean 0, so the mean of the numbers leans to no side. A number's variance is the noise's and
    that of the gains themselves, which is what the numbers' own variance has beyond the noise's, if any.
    """
    told = [number / steps for number in noised]
    mean = math.fsum(told) / len(told)
    own = math.fsum((number - mean) ** 2 for number in told) / (len(told) - 1)
    noise = noise_variance / steps**2
    gains = max(0.0, own - noise)
    return mean, math.sqrt((noise + gains) / len(told))
