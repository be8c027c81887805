"""The mean: each change is added to an exact sum as it arrives, and dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from umbel.coordinator.federation.aggregation.base import AbstractRule, RuleOptions
from umbel.coordinator.federation.aggregation.exact import ExactSum
from umbel.shared.messages import Contribution
from umbel.shared.profile import FloatArray


@final
@dataclass(frozen=True, slots=True)
class Total:
    """A weighted sum of changes: all that is known of them where secure aggregation opens no more.

    Attributes:
        sums: name -> sum over the devices of weight times change.
        weight: Sum of the weights.
    """

    sums: Mapping[str, npt.NDArray[np.float64]]
    weight: float

    def mean(self) -> dict[str, FloatArray]:
        """Returns the sums divided by the weight."""
        return {name: (values / self.weight).astype(np.float32) for name, values in self.sums.items()}


@final
class Mean(AbstractRule):
    """The mean of the changes, of all devices alike or weighted by their examples.

    Memory: four models for the exact sum, whatever the number of devices.
    """

    sees_each = False

    def __init__(self, options: RuleOptions) -> None:
        super().__init__(options)
        self._sum = ExactSum({}, options.most)

    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Begins a sum at zero."""
        self._sum = ExactSum(shapes, self.options.most)

    def add(self, device: int, contribution: Contribution) -> None:
        """Adds a change to the sum."""
        del device
        by_examples = self.options.weighting == "examples"
        self._sum.add(contribution.change, contribution.examples if by_examples else 1)

    def total(self) -> Total:
        """Returns what was summed."""
        return Total(self._sum.sums(), self._sum.weight)

    def finish(self) -> dict[str, FloatArray]:
        """Returns the mean."""
        return self.total().mean()
