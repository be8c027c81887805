"""From the mean change of a round to the next values of the shared tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from umbel.shared.profile import FloatArray


def moved(
    values: Mapping[str, FloatArray],
    velocity: Mapping[str, FloatArray],
    mean: Mapping[str, FloatArray],
    rate: float,
    momentum: float,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Moves the shared tensors along the mean change: v <- momentum v + mean, x <- x + rate v.

    Args:
        values: x, the round's values.
        velocity: v, empty before the first move.
        mean: The mean change.
        rate: The server's rate.
        momentum: Share of the last velocity that is kept.

    Returns:
        The next values and the next velocity; no velocity without momentum.
    """
    if momentum == 0.0:
        return {name: x + np.float32(rate) * mean[name] for name, x in values.items()}, {}
    kept = np.float32(momentum)
    next_velocity = {name: kept * velocity.get(name, np.float32(0)) + mean[name] for name in values}
    return {name: x + np.float32(rate) * next_velocity[name] for name, x in values.items()}, next_velocity
