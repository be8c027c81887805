"""What a device may tell of its owner's gain: on a grid, and noised by the device itself."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from umbel.shared.gain import MOST, SCALE, STEPS

Below: TypeAlias = Callable[[int], int]
"""n -> a whole number from 0 to n - 1, each as likely."""


def gain_of(about: Mapping[str, Any]) -> float | None:
    """Returns what a profile gains on held-out examples; None where none were held out.

    Args:
        about: What the store knows of the profile.

    Example:
        >>> gain_of({"held_out": {"accuracy_personal": 0.75, "accuracy_generic": 0.5}})
        0.25
    """
    held = about.get("held_out")
    return None if held is None else float(held["accuracy_personal"] - held["accuracy_generic"])


def noised(gain: float, below: Below = secrets.randbelow) -> int:
    """Returns a gain with its noise, in steps of the grid.

    Args:
        gain: It is clipped to [-1, 1].
        below: Where chance comes from: the system, but in tests.
    """
    steps = round(STEPS * max(-1.0, min(1.0, gain)))
    return max(-MOST, min(MOST, steps + discrete_laplace(SCALE, below)))


def discrete_laplace(scale: int, below: Below) -> int:
    """Draws k with P(k) = (1 - q) / (1 + q) q^|k|, q = exp(-1 / scale), exactly.

    By whole numbers alone (Canonne, Kamath and Steinke, 2020, Algorithm 2).
    """
    while True:
        low = below(scale)
        if not _coin(low, scale, below):
            continue
        high = 0
        while _coin(1, 1, below):
            high += 1
        size, negative = low + scale * high, below(2) == 1
        if size or not negative:  # else 0 would come twice as often
            return -size if negative else size


def _coin(numerator: int, denominator: int, below: Below) -> bool:
    """Says yes with the chance exp(-numerator / denominator), which is at most 1 (von Neumann)."""
    tries = 1
    while below(denominator * tries) < numerator:
        tries += 1
    return tries % 2 == 1
