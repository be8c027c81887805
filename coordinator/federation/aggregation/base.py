"""What every rule has: it is begun, given each checked change as it arrives, and asked for the outcome."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
import numpy.typing as npt

from umbel.shared.messages import Contribution
from umbel.shared.profile import FloatArray

AnyFloats: TypeAlias = npt.NDArray[np.floating[Any]]


@final
@dataclass(frozen=True, slots=True)
class RuleOptions:
    """What a rule may need to know of the settings.

    Attributes:
        most: Largest L2 norm of a change that passes the check, and so the largest size of any value in it.
        weighting: "uniform": devices count the same; "examples": as much as the examples they report.
        outlier_share: Share of the devices that a robust rule takes to be liars.
    """

    most: float
    weighting: str = "uniform"
    outlier_share: float = 0.2


class AbstractRule(ABC):
    """Makes one change out of a round's. What comes out does not depend on the order in which they arrive.

    Attributes:
        sees_each: Whether it must look at each device's change by itself. Such a rule keeps them all, and
            cannot be used where secure aggregation opens nothing but their sum.
    """

    sees_each: ClassVar[bool]

    def __init__(self, options: RuleOptions) -> None:
        self.options = options

    @abstractmethod
    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Begins a round.

        Args:
            shapes: name -> shape of every tensor of a change.
        """

    @abstractmethod
    def add(self, device: int, contribution: Contribution) -> None:
        """Takes in a change that was checked: once for a device."""

    @abstractmethod
    def finish(self) -> dict[str, FloatArray]:
        """Returns the outcome of all that were added, at least one: name -> float32."""


class AbstractHeldRule(AbstractRule):
    """A rule that looks at all changes together, and so keeps them: a model for each device."""

    sees_each = True

    def __init__(self, options: RuleOptions) -> None:
        super().__init__(options)
        self._held: dict[int, Mapping[str, FloatArray]] = {}

    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Forgets the last round's."""
        del shapes
        self._held = {}

    def add(self, device: int, contribution: Contribution) -> None:
        """Keeps a change."""
        self._held[device] = contribution.change

    def finish(self) -> dict[str, FloatArray]:
        """Returns the outcome, and forgets the changes."""
        changes = [self._held[device] for device in sorted(self._held)]
        self._held = {}
        return {name: values.astype(np.float32) for name, values in self.outcome(changes).items()}

    @abstractmethod
    def outcome(self, changes: list[Mapping[str, FloatArray]]) -> dict[str, AnyFloats]:
        """Returns the outcome of the changes, which are sorted by device."""

    def outliers(self, count: int) -> int:
        """Returns how many of `count` devices are taken to be liars."""
        return int(self.options.outlier_share * count)
