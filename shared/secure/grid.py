"""Numbers as secure aggregation sums them: whole steps of a grid, modulo 2^32, the weight in front.

A device's vector is (w, w x_1, ..., w x_d): its weight, and its change times that. Where devices tell
whether their change was within the clip, b, 1 or 0, comes behind the weight. The grid is as fine as 32 bits
allow for the largest sum that there can be: no coordinate of a change is larger than the clip C of
its L2 norm, so with n devices of weight at most W no sum leaves [-n W C, n W C], and nothing is cut off. A
number is rounded up or down by chance, so that the sum is right on average; the error of a mean of n changes
of d numbers and equal weight has an L2 norm of about C sqrt(n d) / 2^32 or less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from umbel.shared.errors import MessageError
from umbel.shared.profile import FloatArray
from umbel.shared.secure.primitives import Words

_HALF = 2**31 - 1
_SLACK = 1e-4  # a clipped norm is a little larger than the clip, as float32 has it


@final
@dataclass(frozen=True, slots=True)
class Grid:
    """How numbers are coded in one round.

    Attributes:
        devices: n, the most that are summed.
        clip: C, the largest L2 norm of one device's change.
        most_weight: W, the largest weight of a device.
        tells: Whether devices tell if their change was within the clip before it was clipped.
    """

    devices: int
    clip: float
    most_weight: int = 1
    tells: bool = False

    def __post_init__(self) -> None:
        if self.devices * self.most_weight >= _HALF:
            problem = (
                f"{self.devices} devices of weight up to {self.most_weight} are more than 31 bits can count"
            )
            raise MessageError("the changes cannot be coded for a secure sum", [problem])

    @property
    def scale(self) -> float:
        """Steps per unit; each device's rounding may add one step to the largest sum."""
        return (_HALF - self.devices) / (self.devices * self.most_weight * self.clip * (1 + _SLACK))

    def coded(
        self,
        values: npt.NDArray[np.float32],
        weight: int,
        rng: np.random.Generator,
        within: bool | None = None,
    ) -> Words:
        """Returns a device's vector.

        Args:
            values: (d,), its change.
            weight: Its weight.
            rng: Decides what is rounded up.
            within: Whether the change was within the clip; None where devices do not tell.

        Returns:
            (1 + d,), or (2 + d,) where devices tell.

        Raises:
            MessageError: A value is no number or larger than the clip, the weight is out of range, or
                `within` is told though it is not asked, or the other way around.
        """
        problems = [] if 1 <= weight <= self.most_weight else ["the weight is out of range"]
        if self.tells == (within is None):
            problems.append("whether the change was within the clip is told if and only if it is asked")
        if not (np.abs(values) <= self.clip * (1 + _SLACK)).all():
            problems.append("a value is no number, or larger than the clip")
        if problems:
            raise MessageError("the change cannot be coded for a secure sum", problems)
        steps = np.floor(values.astype(np.float64) * (weight * self.scale) + rng.random(values.shape))
        head = [weight] if within is None else [weight, int(within)]
        return np.concatenate([np.array(head), steps.astype(np.int64)]).astype(np.uint32)

    def decoded(self, total: Words) -> tuple[npt.NDArray[np.float64], int, int | None]:
        """Returns the weighted sum of the changes (d,), the sum of the weights, and how many were within."""
        signed = total.view(np.int32)
        within = int(signed[1]) if self.tells else None
        return signed[1 + self.tells :].astype(np.float64) / self.scale, int(signed[0]), within

    def error(self, numbers: int, devices: int, weight: int) -> float:
        """Returns the largest expected L2 norm of what rounding does to a mean.

        Args:
            numbers: d.
            devices: How many were summed.
            weight: The sum of their weights.
        """
        return math.sqrt(numbers * devices) / (2 * self.scale * weight)


def flat(change: Mapping[str, FloatArray], shapes: Mapping[str, tuple[int, ...]]) -> npt.NDArray[np.float32]:
    """Returns a change as one vector, its tensors in the order of `shapes`."""
    parts = [np.zeros(0, np.float32), *(change[name].ravel() for name in shapes)]
    return np.concatenate(parts)


def unflat(
    vector: npt.NDArray[np.float64], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns the tensors of a vector: name -> an array of the shape."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()], dtype=np.int64)[:-1]
    parts = np.split(vector, ends) if shapes else []
    return {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def vector_size(shapes: Mapping[str, tuple[int, ...]], *, tells: bool = False) -> int:
    """Returns 1 + d, or 2 + d: how many numbers a device's vector has."""
    return 1 + tells + sum(math.prod(shape) for shape in shapes.values())
