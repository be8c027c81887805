"""Krum and Multi-Krum (Blanchard et al., 2017), by Flower's own function.

A change's score is the sum of its squared distances to its n - f - 2 nearest others, n devices of which f
are taken to be liars. Krum follows the change with the lowest score, Multi-Krum the mean of the n - f lowest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import final

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum

from umbel.coordinator.federation.aggregation.base import AbstractHeldRule, AnyFloats
from umbel.coordinator.federation.aggregation.exact import ExactSum
from umbel.shared.profile import FloatArray


class AbstractKrum(AbstractHeldRule):
    """Chooses changes by their scores, and follows their mean.

    Memory: four models for each device: the changes, Flower's records of them, and its matrix, made twice.
    """

    def outcome(self, changes: list[Mapping[str, FloatArray]]) -> dict[str, AnyFloats]:
        """Returns the mean of the chosen changes."""
        records = [_record(change) for change in changes]
        liars = self.outliers(len(changes))
        chosen = {id(record) for record in select_multikrum(records, liars, self.kept(len(changes)))}
        mean = ExactSum({name: values.shape for name, values in changes[0].items()}, self.options.most)
        for record, change in zip(records, changes, strict=True):
            if id(record) in chosen:
                mean.add(change)
        return {name: values / mean.weight for name, values in mean.sums().items()}

    @abstractmethod
    def kept(self, count: int) -> int:
        """Returns how many of `count` changes are followed."""


@final
class Krum(AbstractKrum):
    """Follows the one change that lies nearest to the others."""

    def kept(self, count: int) -> int:
        """Returns 1."""
        del count
        return 1


@final
class MultiKrum(AbstractKrum):
    """Follows the mean of all changes but the outlier share that lies furthest from the others."""

    def kept(self, count: int) -> int:
        """Returns all but the outliers."""
        return count - self.outliers(count)


def _record(change: Mapping[str, FloatArray]) -> RecordDict:
    return RecordDict({"change": ArrayRecord({name: Array(values) for name, values in change.items()})})
