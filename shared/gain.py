"""How a device tells what its profile gains: one number on a grid, with noise of its own (local privacy).

The gain is the share of held-out examples that are right with the profile, less that without: from -1 to 1.
It is told as a whole number of steps of the grid, with discrete Laplace noise, P(k) ~ exp(-|k| / scale). Two
gains differ by at most twice `STEPS`, so a scale of 2 STEPS / epsilon makes the number epsilon-private for
whatever the owner's examples are (Ghosh et al., 2009). All is in whole numbers: there are no gaps between
floating-point numbers by which somebody could tell what was noised.
"""

from __future__ import annotations

import math
from typing import Final

STEPS: Final = 1024
"""Steps of the grid from 0 to 1."""

EPSILON: Final = 1.0
"""What one number costs its owner."""

SCALE: Final = round(2 * STEPS / EPSILON)
"""The noise's scale, in steps."""

MOST: Final = 32 * STEPS
"""The largest number that is told, and taken: noise beyond it has a chance of 2e-7, and is cut to it."""


def noise_variance(scale: int = SCALE) -> float:
    """Returns the variance of the noise, in steps squared: 2 q / (1 - q)^2 with q = exp(-1 / scale).

    Example:
        >>> round(noise_variance() ** 0.5 / STEPS, 3)
        2.828
    """
    return 2 * math.exp(-1 / scale) / math.expm1(-1 / scale) ** 2
