"""How large a change is, against how large it may be."""

from __future__ import annotations

_SLACK = 1e-5  # a sum of squares in another order is no larger change


def exceeds(norm: float, most: float) -> bool:
    """Says whether an L2 norm is larger than it may be, by more than rounding.

    Example:
        >>> exceeds(1.000001, 1.0), exceeds(1.001, 1.0), exceeds(float("nan"), 1.0)
        (False, True, True)
    """
    return not norm <= largest(most)


def largest(most: float) -> float:
    """Returns the largest L2 norm that does not exceed `most` by more than rounding."""
    return most * (1 + _SLACK)
