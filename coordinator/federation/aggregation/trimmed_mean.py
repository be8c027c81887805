"""The trimmed mean of each value by itself (Yin et al., 2018), by Flower's own function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

from umbel.coordinator.federation.aggregation.base import AbstractHeldRule, AnyFloats
from umbel.shared.profile import FloatArray


@final
class TrimmedMean(AbstractHeldRule):
    """The mean of each value over the devices, without the outlier share at either end.

    Memory: a model for each device, and twice as much again of the largest tensor while it is computed.
    """

    def outcome(self, changes: list[Mapping[str, FloatArray]]) -> dict[str, AnyFloats]:
        """Returns the trimmed means."""
        share = self.options.outlier_share
        return {name: trim_mean(np.stack([change[name] for change in changes]), share) for name in changes[0]}
