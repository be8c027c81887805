"""The median of each value by itself (Yin et al., 2018), as in Flower's FedMedian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from umbel.coordinator.federation.aggregation.base import AbstractHeldRule, AnyFloats
from umbel.shared.profile import FloatArray


@final
class Median(AbstractHeldRule):
    """The median over the devices of each value.

    Memory: a model for each device, and twice as much again of the largest tensor while it is computed.
    """

    def outcome(self, changes: list[Mapping[str, FloatArray]]) -> dict[str, AnyFloats]:
        """Returns the medians."""
        return {
            name: np.median(np.stack([change[name] for change in changes]), axis=0) for name in changes[0]
        }
