"""A clip that follows a quantile of the devices' norms (Andrew et al., 2021).

Each sampled device says whether its change was within the clip C before it was clipped, b = 1 or 0. With m
devices expected in a round, their share is told with noise of standard deviation s, and the clip follows it:

    share = 1/2 + (sum_i (b_i - 1/2) + N(0, s^2)) / m,     C <- C exp(-rate (share - quantile))

Both noises together cost what the sum alone would cost with multiplier z, if the sum's own is
z_sum = (z^-2 - (2 s)^-2)^(-1/2) (their Theorem 1).
"""

from __future__ import annotations

import math
from typing import Final

LEAST_CLIP, MOST_CLIP = 1e-9, 1e9
_SHARE_OF_EXPECTED: Final = 1 / 20  # the paper's own choice of s
_TIMES_MULTIPLIER: Final = 2.0  # at least, so that the sum's noise grows by 3.3 % at most


def count_noise(noise_multiplier: float, expected: float) -> float:
    """Returns s, the standard deviation of the noise on the count.

    Example:
        >>> count_noise(1.0, 1000), count_noise(1.0, 8)
        (50.0, 2.0)
    """
    return max(expected * _SHARE_OF_EXPECTED, _TIMES_MULTIPLIER * noise_multiplier)


def sum_multiplier(noise_multiplier: float, count_noise: float) -> float:
    """Returns z_sum.

    Example:
        >>> round(sum_multiplier(1.0, 2.0), 3)
        1.033
    """
    return float((noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5)


def next_clip(clip: float, share: float, quantile: float, rate: float) -> float:
    """Returns the clip of the next round.

    Example:
        >>> next_clip(1.0, 0.5, 0.5, 0.2), round(next_clip(1.0, 1.0, 0.5, 0.2), 3)
        (1.0, 0.905)
    """
    return min(MOST_CLIP, max(LEAST_CLIP, clip * math.exp(-rate * (share - quantile))))
